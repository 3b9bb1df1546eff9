"""The pictures of graphs.py: Fig. 2 (fig2.svg, fig2.png, *.dot) and all changes.

changes.png has them with their intervals, sorted; matrix.png as in Table 1, source by target.
affinity.png has the cosines between the gradients of the tasks.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Rectangle

from graphs import FALSE_DISCOVERY_RATE, GRAPHS, WIDTHS, Change, Edge, drawn_metric, width_of
from tasks import TASKS

COLOURS = {"improvement": "#1b6ca8", "hurt": "#b5442e"}
FILLS = ("#a9d0ea", "#e6c6e1", "#bfe3a5", "#fdd08a", "#f3b5a5")  # one per group of tasks
MARKERS = ("o", "p", "h", "s", "8")
DARK = "#333333"
DASHES = (0, (3.2, 1.6))
OPACITY = {"thick": 0.85, "medium": 0.45, "thin": 0.18}  # of a cell of the matrix
HATCHES = {"improvement": None, "hurt": "////"}  # tell the colours apart in grey


def group_looks(tasks: list[str]) -> dict[str, dict]:
    """{group of tasks: its marker and colour}; from the sixth group on, looks repeat."""
    looks = {}
    for group in dict.fromkeys(TASKS[task].group for task in tasks):
        i = len(looks) % len(FILLS)
        looks[group] = {"marker": MARKERS[i], "color": FILLS[i]}
    return looks


def draw_graph(axes: Axes, edges: list[Edge], tasks: list[str]) -> None:
    """One graph, with the tasks clockwise on a circle."""
    angles = 2 * np.pi * np.arange(len(tasks)) / len(tasks)
    places = np.stack([np.sin(angles), np.cos(angles)], 1)  # (tasks, 2)
    axes.set(aspect="equal", xlim=(-1.15, 1.15), ylim=(-1.15, 1.15))
    axes.axis("off")
    for edge in edges:
        start, end = tasks.index(edge.change.source), tasks.index(edge.change.target)
        # Clockwise edges are bent, the others are straight: no edge lies on its reverse.
        bend = 0.09 if (end - start) % len(tasks) <= len(tasks) / 2 else 0.0
        points = edge.width.points
        axes.add_patch(FancyArrowPatch(
            places[start], places[end], connectionstyle=f"arc3,rad={bend}", shrinkA=21, shrinkB=24,
            arrowstyle="-|>", mutation_scale=7 + 2.6 * points, linewidth=points, capstyle="butt",
            gid=f"edge-{edge.change.source}-{edge.change.target}",  # its name in the SVG file
            color=COLOURS[edge.change.graph], linestyle=DASHES if edge.is_dashed else "-",
            alpha=0.5 if edge.is_dashed else 1,
            zorder=(2 if edge.is_dashed else 3) - points / 9))  # thin edges lie on thick ones
    looks = group_looks(tasks)
    for task, place in zip(tasks, places):
        axes.scatter(*place, 700, edgecolors=DARK, zorder=3, **looks[TASKS[task].group])
        axes.text(*place, task, ha="center", va="center", weight="bold", zorder=4)


def draw(edges: list[Edge], tasks: list[str], title: str) -> Figure:
    """Fig. 2: both graphs side by side with the tasks at the same places, and a legend."""
    figure = Figure(figsize=(10, 5.7))
    figure.subplots_adjust(0.01, 0.07, 0.99, 0.93, wspace=0.02)
    for axes, (graph, meaning) in zip(figure.subplots(1, 2), GRAPHS.items()):
        axes.set_title(f"{graph}, B → A: {meaning}")
        draw_graph(axes, [edge for edge in edges if edge.change.graph == graph], tasks)
    legend = []
    for group, look in group_looks(tasks).items():
        legend.append(Line2D([], [], linestyle="", markersize=9, markeredgecolor=DARK, label=group,
                             **look))
    for width in WIDTHS:
        legend.append(Line2D([], [], color=DARK, linewidth=width.points, label=width.legend))
    if any(edge.change.low is not None for edge in edges):
        _, dashed = significance_labels(edge.change for edge in edges)
        legend.append(Line2D([], [], color=DARK, linestyle=DASHES, label=dashed))
    figure.legend(handles=legend, title=title, loc="lower center", ncols=len(legend), frameon=False,
                  fontsize=8, columnspacing=1.4)
    return figure


def compared_tasks(changes: Iterable[Change]) -> list[str]:
    """The tasks that are the source or the target of a change, in the order of `TASKS`."""
    compared = {task for change in changes for task in (change.source, change.target)}
    return [task for task in TASKS if task in compared]


def on_circle(changes: Iterable[Change]) -> list[str]:
    """The tasks that are compared; those of a group are neighbours on the circle."""
    return sorted(compared_tasks(changes), key=lambda task: TASKS[task].group)


def significance_labels(changes: Iterable[Change]) -> tuple[str, str]:
    """What a solid edge or a full point means, and what a dashed edge or a hollow point means."""
    if any(change.p is not None for change in changes):
        rate = f"(FDR {100 * FALSE_DISCOVERY_RATE:.0f} %)"  # false discovery rate
        return f"discovery {rate}", f"no discovery {rate}"
    return "is not 0 (95 %)", "may be 0 (95 %)"


def draw_changes(changes: list[Change], title: str) -> Figure:
    """All changes as points with 95 % intervals, sorted, in two panels as in Fig. 2."""
    rows = {graph: [change for change in changes if change.graph == graph] for graph in GRAPHS}
    longest = max(len(panel) for panel in rows.values())
    figure = Figure(figsize=(10, 1.3 + 0.16 * longest), layout="constrained")
    for axes, graph in zip(figure.subplots(1, 2, sharex=True), GRAPHS):
        draw_panel(axes, sorted(rows[graph], key=lambda change: -abs(change.percent)))
        axes.set_ylim(longest - 0.3, -0.7)
        axes.set_title(f"{graph}, B → A: {GRAPHS[graph]}")
        worse = "worse" if graph == "improvement" else "better"
        axes.set_xlabel(f"how much {worse} A is without B, in % of its metric")
    point = {"linestyle": "", "marker": "o", "markersize": 5, "markeredgecolor": DARK}
    legend = [Line2D([], [], color=DARK, **point, label="change")]
    if any(change.low is not None for change in changes):
        full, hollow = significance_labels(changes)
        legend = [Line2D([], [], color=DARK, **point, label=full),
                  Line2D([], [], color="white", **point, label=hollow),
                  Line2D([], [], color=DARK, linewidth=1, label="95 % interval")]
    limits = ", ".join(f"{width.smallest:g}" for width in reversed(WIDTHS))
    legend.append(Line2D([], [], color="grey", linewidth=0.8, linestyle=":",
                         label=f"{limits} %: edges of Fig. 2"))
    figure.legend(handles=legend, title=title, loc="outside lower center", ncols=len(legend),
                  frameon=False, fontsize=8)
    return figure


def draw_panel(axes: Axes, changes: list[Change]) -> None:
    """One row per change, from top to bottom. Changes are positive; only an interval crosses 0."""
    for row, change in enumerate(changes):
        sign, colour = math.copysign(1, change.percent), COLOURS[change.graph]
        hollow = change.significant is False
        if row % 2 == 0:
            axes.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", zorder=0)
        if change.low is not None:
            axes.plot([sign * change.low, sign * change.high], [row, row], color=colour,
                      linewidth=0.9 if hollow else 2, solid_capstyle="butt")
        axes.plot(sign * change.percent, row, "o", markersize=5, markeredgecolor=colour,
                  color="white" if hollow else colour, zorder=3)
    axes.axvline(0, color=DARK, linewidth=0.8, zorder=1)
    for width in WIDTHS:
        axes.axvline(width.smallest, color="grey", linewidth=0.8, linestyle=":", zorder=1)
    names = [f"{change.source} → {change.target}" for change in changes]
    axes.set_yticks(range(len(changes)), names, fontsize=7)
    axes.tick_params(axis="y", length=0)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)


def draw_matrix(changes: list[Change], title: str) -> Figure:
    """All changes as in Table 1: a row for each task that is left out, a column for each metric.

    The number is the change of the metric in percent; colour and hatching say whether it is better
    or worse without the source, the strength says how much, with the limits of Fig. 2.
    """
    tasks = compared_tasks(changes)
    size = len(tasks)
    figure = Figure(figsize=(max(6.5, 1.6 + 0.75 * size), 2 + 0.42 * size), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    found = {(change.source, change.target): change for change in changes}
    for y, source in enumerate(tasks):
        for x, target in enumerate(tasks):
            if (source, target) in found:
                draw_cell(axes, x, y, found[source, target])
            else:
                axes.text(x, y, "X" if x == y else "—", ha="center", va="center", color="grey")
    for edge in range(1, size):  # white lines between cells of one colour
        axes.axhline(edge - 0.5, color="white", linewidth=1.5, zorder=2)
        axes.axvline(edge - 0.5, color="white", linewidth=1.5, zorder=2)
    axes.set_xticks(range(size), [f"{task}\n{drawn_metric(task).heading}" for task in tasks])
    axes.set_yticks(range(size), [f"without {task}" for task in tasks])
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.set_title(f"{title}: how task A changes without task B, in % of its metric", fontsize=9)
    handles = matrix_legend(changes)
    figure.legend(handles=handles, loc="outside lower center", ncols=(len(handles) + 1) // 2,
                  frameon=False, fontsize=8)
    return figure


def draw_cell(axes: Axes, x: int, y: int, change: Change) -> None:
    """One change: its number on its colour; a frame and bold type if it is significant."""
    width = width_of(change)
    if width:
        axes.add_patch(cell_patch(change.graph, width.name, (x - 0.5, y - 0.5)))
    if change.significant:
        axes.add_patch(Rectangle((x - 0.45, y - 0.42), 0.9, 0.84, fill=False, edgecolor="black",
                                 linewidth=1.6, zorder=3))
    dark = width and width.name == "thick"
    number = f"{change.percent:+.1f}".replace("-", "−") if change.percent else "0"
    axes.text(x, y, number, ha="center", va="center", fontsize=8, zorder=4,
              color="white" if dark else "black", weight="bold" if change.significant else None)


def cell_patch(graph: str, width: str, place: tuple[float, float] = (0, 0), **more) -> Rectangle:
    """The background of a cell of the matrix, and its sign in the legend."""
    colour = COLOURS[graph]
    return Rectangle(place, 1, 1, facecolor=to_rgba(colour, OPACITY[width]), linewidth=0,
                     edgecolor=to_rgba(colour, 0.5), hatch=HATCHES[graph], **more)


def matrix_legend(changes: list[Change]) -> list:
    """The colours of both graphs, one in each line, from weak to strong; and the frame."""
    handles = []
    for width in reversed(WIDTHS):
        for graph, meaning in GRAPHS.items():
            label = f"{width.legend}: {meaning}" if width is WIDTHS[0] else width.legend
            handles.append(cell_patch(graph, width.name, label=label))
    if any(change.low is not None for change in changes):
        significant, _ = significance_labels(changes)
        handles.append(Rectangle((0, 0), 1, 1, fill=False, edgecolor="black", linewidth=1.6,
                                 label=significant))
    return handles


def draw_affinity(cosines: np.ndarray, tasks: list[str], title: str) -> Figure:
    """The mean cosine between the gradients of each two tasks: cosines (tasks, tasks)."""
    size = len(tasks)
    figure = Figure(figsize=(max(5, 1.6 + 0.55 * size), 1.4 + 0.45 * size), layout="constrained")
    axes = figure.subplots()
    others = np.where(np.eye(size, dtype=bool), np.nan, cosines)
    largest = np.nanmax(np.abs(others))
    image = axes.imshow(others, cmap="RdBu", vmin=-largest, vmax=largest)
    for y in range(size):
        for x in range(size):
            if x != y:
                strong = abs(cosines[y, x]) > 0.6 * largest
                axes.text(x, y, f"{cosines[y, x]:.3f}", ha="center", va="center", fontsize=7,
                          color="white" if strong else DARK)
    axes.set_xticks(range(size), tasks)
    axes.set_yticks(range(size), tasks)
    figure.colorbar(image, label="cosine between gradients")
    axes.set_title(title, fontsize=8)
    return figure


def dot(graph: str, edges: list[Edge], tasks: list[str]) -> str:
    """One graph in the language of Graphviz (`dot -Tpdf hurt.dot`)."""
    lines = [f"digraph {graph} {{ layout=circo;"]
    lines += [f'  "{task}";' for task in tasks]
    for edge in edges:
        change, style = edge.change, "dashed" if edge.is_dashed else "solid"
        if change.graph == graph:
            lines.append(f'  "{change.source}" -> "{change.target}" '
                         f'[label="{change.percent:+.2f}", penwidth={edge.width.points}, '
                         f"style={style}];")
    return "\n".join([*lines, "}\n"])


def write_files(changes: list[Change], edges: list[Edge], title: str, out: Path) -> None:
    """Write all files of graphs.py. The same changes give the same bytes."""
    tasks = on_circle(changes)
    out.mkdir(parents=True, exist_ok=True)
    entries = [json.dumps(edge.as_json()) for edge in edges]
    (out / "edges.json").write_text("[\n" + ",\n".join(entries) + "\n]\n")
    for graph in GRAPHS:
        (out / f"{graph}.dot").write_text(dot(graph, edges, tasks))
    # Without a salt and with a date, each SVG file would be different.
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "fig2"}):
        figure = draw(edges, tasks, title)
        figure.savefig(out / "fig2.svg", metadata={"Date": None})
        figure.savefig(out / "fig2.png", dpi=200)
        draw_changes(changes, title).savefig(out / "changes.png", dpi=200)
        draw_matrix(changes, title).savefig(out / "matrix.png", dpi=200)

"""Which task helps or hurts which: the two relation graphs of Fig. 2 (paper, Section 4.2).

    python graphs.py --paper --out figures/paper              # from the paper's Table 1
    python graphs.py --runs runs --out figures --seed 0 1 2   # from our runs of (b-1) and (b-2)

Multi-task learning without task B is compared with multi-task learning of all tasks. If the metric
of task A (SF: its CER) gets worse by at least 0.5 % of its value, B helps A, and the improvement
graph has an edge B -> A. If it gets better by as much, the hurt graph has this edge.

The paper has one number per cell, which cannot show whether an edge is noise. Our runs keep the
predictions of all test utterances, so a paired bootstrap gives each edge a 95 % interval. An edge
is dashed if its interval contains 0. One seed cannot show training variance.

Writes edges.json, improvement.dot, hurt.dot, fig2.svg, fig2.png. K seeds, n utterances or trials.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from engine.launch import friendly_errors
from engine.runs import RunError
from metrics import paired_bootstrap
from results import Result, check_comparable, read_results
from tasks import TASKS, Metric

PAPER = Path(__file__).with_name("paper_table1.json")
GRAPHS = {"improvement": "A is worse without B", "hurt": "A is better without B"}


# Read the changes


@dataclass(frozen=True)
class Change:
    """How the metric of task `target` changes without task `source`, in percent of its value."""

    source: str
    target: str
    percent: float  # positive: the metric is higher without the source
    low: float | None = None  # 95 % interval; None: the paper has one number per cell
    high: float | None = None
    significant: bool | None = None  # None: unknown

    @property
    def graph(self) -> str:
        """The graph of Fig. 2 that the change belongs to."""
        worse = (self.percent > 0) == drawn_metric(self.target).lower_is_better
        return "improvement" if worse else "hurt"


def drawn_metric(task: str) -> Metric:
    """The metric whose changes make the edges to a task."""
    return TASKS[task].metrics[TASKS[task].graph_metric]


def paper_changes() -> list[Change]:
    """The changes in the paper's Table 1 from row (b-1) to the rows (b-2)."""
    table = json.loads(PAPER.read_text())
    changes = []
    for source, row in table["leave-one-out"].items():
        for target, scores in row.items():
            metric = drawn_metric(target).name
            before, after = table["mtl"][target][metric], scores[metric]
            changes.append(Change(source, target, 100 * (after / before - 1)))
    return changes


def find_runs(folder: Path, seeds: list[int]) -> dict[str, list[Result]]:
    """The runs to compare, sorted by seed: {"mtl-all" or "leave-one-out-<task>": runs}."""
    found = {name: [] for name in ("mtl-all", *(f"leave-one-out-{task}" for task in TASKS))}
    compared = []
    for result in sorted(read_results(folder), key=lambda result: result.config.seed):
        config = result.config
        name = f"{config.scenario}-{config.task}"
        of_all_tasks = config.universe == tuple(TASKS)
        # Runs of the other folds have other test utterances.
        if name in found and config.seed in seeds and config.fold == 1 and of_all_tasks:
            found[name].append(result)
            compared.append(result)
    check_comparable(compared)
    return found


def read_pairs(runs: list[Result], task: str) -> dict[int, dict]:
    """What each test utterance adds to the task's metric: {seed: {utterance: two numbers}}."""
    pairs = {}
    for run in runs:
        if task in run.metrics:
            pairs[run.config.seed] = dict(sorted(run.pairs(task, drawn_metric(task).name)))
    return pairs


def compare(source: str, target: str, before: dict, after: dict) -> Change | None:
    """The change of a metric from runs with the source to runs without it.

    `before` and `after` come from `read_pairs`. Only seeds that both have are compared, seed by
    seed. None if there is none, or if the metric before is 0, as a change is relative to it.
    Raises ValueError if the runs were tested on different utterances.
    """
    utterances = [list(pairs) for pairs in [*before.values(), *after.values()]]
    if any(others != utterances[0] for others in utterances):
        raise RunError(f"mtl-all and leave-one-out-{source} were tested on other utterances of "
                         f"{target}; use the same data for all runs")
    seeds = [seed for seed in before if seed in after]
    pairs_before = [list(before[seed].values()) for seed in seeds]  # (K, n, 2)
    pairs_after = [list(after[seed].values()) for seed in seeds]  # (K, n, 2)
    reduce = drawn_metric(target).reduce
    value = np.mean([reduce(pairs) for pairs in pairs_before]) if seeds else 0
    if value == 0:
        return None
    difference, low, high = paired_bootstrap(pairs_before, pairs_after, reduce)
    return Change(source, target, 100 * difference / value, 100 * low / value, 100 * high / value,
                  significant=not low <= 0 <= high)


def run_changes(folder: Path, seeds: list[int]) -> list[Change]:
    """The changes from our runs mtl-all to our runs leave-one-out-*; prints what is missing.

    Raises ValueError if nothing can be compared.
    """
    runs = find_runs(folder, seeds)
    changes = []
    for target in TASKS:
        metric, before = drawn_metric(target), read_pairs(runs["mtl-all"], target)
        if before and all(metric.reduce(list(pairs.values())) == 0 for pairs in before.values()):
            print(f"note: no edges to {target}: {metric.name} of mtl-all is 0, and changes are "
                  "relative to it")
        for source in TASKS:
            after = read_pairs(runs[f"leave-one-out-{source}"], target)
            change = compare(source, target, before, after)
            if change:
                changes.append(change)
    if not changes:
        raise RunError(f"nothing to draw: {folder} needs finished runs mtl-all and "
                         "leave-one-out-NAME (train.py)")
    for name, found in runs.items():
        if len(found) < len(seeds):
            print(f"note: {len(found)} of {len(seeds)} runs {name}")
    return changes


# Make the edges, by the rule in the caption of Fig. 2


@dataclass(frozen=True)
class Width:
    """A line width of Fig. 2."""

    name: str
    smallest: float  # change in percent
    legend: str
    points: float  # as drawn


WIDTHS = (
    Width("thick", 8.0, "≥ 8 % change", 3.0),
    Width("medium", 2.0, "2–8 %", 1.6),
    Width("thin", 0.5, "0.5–2 %", 0.7),
)


@dataclass(frozen=True)
class Edge:
    """An arrow of Fig. 2, from `change.source` to `change.target`."""

    change: Change
    width: Width

    @property
    def is_noise(self) -> bool:
        """Is the edge dashed? The noise of the paper's edges is unknown: they are solid."""
        return self.change.significant is False

    def as_json(self) -> dict:
        """The entry of edges.json."""
        change = self.change
        entry = {"graph": change.graph, "source": change.source, "target": change.target,
                 "width": self.width.name, "change": round(change.percent, 2)}
        if change.low is not None:
            entry |= {"low": round(change.low, 2), "high": round(change.high, 2),
                      "significant": change.significant}
        return entry


def make_edges(changes: list[Change]) -> list[Edge]:
    """The edges of both graphs: first improvement, then hurt."""
    edges = []
    for graph in GRAPHS:
        for change in changes:
            size = round(abs(change.percent), 6)  # 2.00 -> 2.01 is 0.49999... % in floating point
            widths = [width for width in WIDTHS if size >= width.smallest]
            if widths and change.graph == graph:
                edges.append(Edge(change, widths[0]))
    return edges


# Draw

COLOURS = {"improvement": "#1b6ca8", "hurt": "#b5442e"}
FILLS = ("#a9d0ea", "#e6c6e1", "#bfe3a5", "#fdd08a", "#f3b5a5")  # one per group of tasks
MARKERS = ("o", "p", "h", "s", "8")
DARK = "#333333"
DASHES = (0, (3.2, 1.6))


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
            color=COLOURS[edge.change.graph], linestyle=DASHES if edge.is_noise else "-",
            alpha=0.5 if edge.is_noise else 1,
            zorder=(2 if edge.is_noise else 3) - points / 9))  # thin edges lie on thick ones
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
        legend.append(Line2D([], [], color=DARK, linestyle=DASHES, label="may be 0 (95 %)"))
    figure.legend(handles=legend, title=title, loc="lower center", ncols=len(legend), frameon=False,
                  fontsize=8, columnspacing=1.4)
    return figure


# Write


def dot(graph: str, edges: list[Edge], tasks: list[str]) -> str:
    """One graph in the language of Graphviz (`dot -Tpdf hurt.dot`)."""
    lines = [f"digraph {graph} {{ layout=circo;"]
    lines += [f'  "{task}";' for task in tasks]
    for edge in edges:
        change, style = edge.change, "dashed" if edge.is_noise else "solid"
        if change.graph == graph:
            lines.append(f'  "{change.source}" -> "{change.target}" '
                         f'[label="{change.percent:+.2f}", penwidth={edge.width.points}, '
                         f"style={style}];")
    return "\n".join([*lines, "}\n"])


def write_files(edges: list[Edge], tasks: list[str], title: str, out: Path) -> None:
    """All files of this program. The same edges give the same bytes."""
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


def print_edges(edges: list[Edge]) -> None:
    """A table with one edge per line."""
    rows = [("graph", "source", "target", "width", "change, %", "low", "high", "significant")]
    rows += [tuple(edge.as_json().values()) for edge in edges]
    for row in rows:
        print("".join(f"{value!s:12}" for value in row).rstrip())


def main(arguments: list[str] | None = None) -> None:
    """The command line. User errors print one line and exit with code 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of our runs")
    parser.add_argument("--paper", action="store_true", help="draw the paper's Table 1 instead")
    parser.add_argument("--seed", type=int, nargs="+", default=[0],
                        help="seeds to average, where they exist")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    args = parser.parse_args(arguments)
    with friendly_errors():
        draw_graphs(args)


def draw_graphs(args: argparse.Namespace) -> None:
    """Compare, draw, write and print."""
    changes = paper_changes() if args.paper else run_changes(args.runs, args.seed)
    edges = make_edges(changes)
    compared = {task for change in changes for task in (change.source, change.target)}
    tasks = [task for task in TASKS if task in compared]
    tasks.sort(key=lambda task: TASKS[task].group)  # a group's tasks are neighbours on the circle
    seeds = " ".join(str(seed) for seed in args.seed)
    title = "Table 1 of the paper" if args.paper else f"{args.runs}, seed {seeds}"
    try:
        write_files(edges, tasks, title, args.out)
    except OSError as error:
        raise OSError(f"cannot write to {args.out} ({error.strerror})") from error
    print_edges(edges)
    print(f"wrote edges.json, *.dot, fig2.svg, fig2.png to {args.out}")


if __name__ == "__main__":
    main()

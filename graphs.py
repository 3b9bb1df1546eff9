"""Which task helps which, and which one hurts: the two relation graphs of Fig. 2 (paper, Section 4.2).

    python graphs.py --paper --out figures                      # from the paper's own Table 1
    python graphs.py --runs runs --out figures --seed 0 1 2     # from our runs mtl-all and leave-one-out-*

Take task B out of multi-task learning and score task A, beside a model that learned all tasks. If A got worse, B
helps A: an edge B -> A in the improvement graph. If A got better, an edge in the hurt graph. The paper has one number
per cell and cannot say which edges are noise. We have every prediction: a paired bootstrap gives each edge a 95 %
interval, and an edge is dashed if that contains 0. Of the luck of training, a single seed says nothing.

Writes edges.json, improvement.dot, hurt.dot, fig2.svg, fig2.png. K seeds, n utterances or trials, E edges.
"""
import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path as Curve

from metrics import eer, paired_bootstrap, ratio

PAPER = Path(__file__).with_name("paper_table1.json")  # and each task's group, and which metric draws its edges
# Caption of Fig. 2: width -> smallest change in percent, legend, line width as drawn (points).
WIDTHS = {"thick": (8.0, "≥ 8 %", 3.6), "medium": (2.0, "2–8 %", 1.9), "thin": (0.5, "0.5–2 % change", 0.8)}
GRAPHS = {"improvement": ("#1b6ca8", "A is worse without B"), "hurt": ("#b5442e", "A is better without B")}
LOOKS = [("#a9d0ea", "o", 860, "circle"), ("#fdd08a", "s", 700, "square"),  # a group's fill, marker, size, name in dot
         ("#bfe3a5", "h", 960, "hexagon"), ("#e6c6e1", "D", 620, "diamond")]  # markers differ in grey print, too
NODE_RADIUS, DASHES, DARK = 0.15, (0, (3.2, 1.6)), "#333333"  # the circle of nodes has radius 1


def paper_changes(table: dict) -> dict[tuple[str, str], tuple]:
    """(source, target) -> (change of the target's metric without the source, in percent; no interval: None, None)."""
    metrics = {name: task["graph_metric"] for name, task in table["tasks"].items()}
    return {(source, target): (100 * (row[target][metric] / table["mtl"][target][metric] - 1), None, None)
            for target, metric in metrics.items() for source, row in table["leave-one-out"].items() if target in row}


def read_pairs(run: Path, seeds: list[int], task: str, metric: str, items: list, missing: dict) -> list:
    """What a run's test predictions add to a task's metric, pairs (K, n, 2); absent files are noted in `missing`.
    The first file fills `items` with its (id, reference); ValueError if another one differs, or if one is broken."""
    pairs = []
    for seed in seeds:
        path = Path(f"{run}-seed{seed}" if seed else run) / "predictions" / f"{task}.jsonl"
        if not path.exists():
            missing.setdefault(path.parent, []).append(task)
            continue
        try:
            rows = sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["id"])
            found = [(row["id"], row["reference"]) for row in rows]
            pairs.append([(a, b) for a, b in (row[metric] for row in rows)])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no file of predictions with {metric}: {error!r}; evaluate it again") from error
        if not found or found != (items or found):
            raise ValueError(f"{path} is empty or about other utterances than other runs; use the same data for all")
        items[:] = found
    return pairs


def run_changes(runs: Path, tasks: dict, seeds: list[int]) -> tuple[dict[tuple[str, str], tuple], list[str]]:
    """(source, target) -> (change, low, high), and notes on what is missing; ValueError if nothing can be compared.
    low, high: 95 % interval of the difference; all three in percent of the target's metric in mtl-all."""
    changes, missing, notes = {}, {}, []
    for target, task in tasks.items():
        metric, items = task["graph_metric"], []
        reduce = eer if metric == "eer" else ratio
        all_tasks = read_pairs(runs / "mtl-all", seeds, target, metric, items, missing)
        before = np.mean([reduce(pairs) for pairs in all_tasks] or [0.0])
        if all_tasks and before == 0:
            notes.append(f"no edges to {target}: {metric} of mtl-all is 0, and changes are relative to it")
        for source in (name for name in tasks if name != target):
            without = read_pairs(runs / f"leave-one-out-{source}", seeds, target, metric, items, missing)
            if before > 0 and without:
                changes[source, target] = tuple(100 * x / before for x in paired_bootstrap(all_tasks, without, reduce))
    if not changes:
        raise ValueError(f"nothing to draw: no task has predictions both in {runs}/mtl-all and in a leave-one-out run; "
                         "train.py makes them with --scenario mtl and with --scenario leave-one-out --task NAME")
    notes += [f"no predictions in {folder}: {' '.join(names)}" for folder, names in missing.items()]
    notes += [f"{path.stem} is left out: no row of \"tasks\" in {PAPER.name}"
              for path in sorted(runs.glob("mtl-all/predictions/*.jsonl")) if path.stem not in tasks]
    return changes, notes


def make_edges(changes: dict[tuple[str, str], tuple], tasks: dict) -> list[dict]:
    """The edges that the rule in Fig. 2's caption makes of (change, low, high): first improvement, then hurt."""
    edges = []
    for (source, target), (change, low, high) in changes.items():
        size = round(abs(change), 6)  # 2.00 -> 2.01 is 0.49999... % in floating point
        width = next((name for name, (smallest, _, _) in WIDTHS.items() if size >= smallest), None)
        if width:
            graph = "improvement" if (change > 0) == (tasks[target]["better"] == "lower") else "hurt"
            edge = {"graph": graph, "source": source, "target": target, "width": width, "change": round(change, 2)}
            if low is not None:
                edge |= {"low": round(low, 2), "high": round(high, 2), "significant": not low <= 0 <= high}
            edges.append(edge)
    return sorted(edges, key=lambda edge: list(GRAPHS).index(edge["graph"]))


def layout(tasks: dict) -> dict[str, tuple[complex, str, tuple]]:
    """Task -> (place, group, look): clockwise on the unit circle, so that the tasks of a group are neighbours."""
    groups = [task["group"] for task in tasks.values()]
    looks = dict(zip(dict.fromkeys(groups), LOOKS * len(groups)))
    places = 1j * np.exp(-2j * np.pi * np.arange(len(tasks)) / len(tasks))
    return {name: (place, group, looks[group]) for name, place, group in zip(tasks, places, groups)}


def edge_curves(edges: list[dict], nodes: dict) -> np.ndarray:
    """Start, two control points and end of each edge's Bezier curve, complex numbers (E, 4). Edges bend towards the
    centre, around the next node. They leave right and arrive left of the straight line, which parts them from their
    reverse; then the ends at each node push each other aside."""
    places = np.array([(nodes[edge["source"]][0], nodes[edge["target"]][0]) for edge in edges]).reshape(-1, 2)  # (E, 2)
    fans, ends = {}, np.zeros_like(places)  # task -> its (turn away from the centre, line width, edge, end of the edge)
    for i, (edge, (start, stop)) in enumerate(zip(edges, places)):
        points = WIDTHS[edge["width"]][2]
        fans.setdefault(edge["source"], []).append((0.8 * np.angle((stop - start) / -start) - 0.13, points, i, 0))
        fans.setdefault(edge["target"], []).append((0.8 * np.angle((start - stop) / -stop) + 0.13, points, i, 1))
    for name, fan in fans.items():
        turns, points, i, end = np.array(sorted(fan)).T
        room = 0.14 + 0.032 * (points[1:] + points[:-1])
        for _ in range(300):
            push = np.clip(room * 2.6 / max(2.6, room.sum()) - np.diff(turns), 0, None) / 2.1
            turns += np.append(0, push) - np.append(push, 0)
        ends[i.astype(int), end.astype(int)] = -nodes[name][0] * np.exp(1j * turns)  # directions, seen from the node
    near, far = (places + radius * ends for radius in (NODE_RADIUS, 0.04 + 0.36 * abs(np.diff(places))))
    return np.c_[near[:, 0], far, near[:, 1]]


def draw(edges: list[dict], nodes: dict, title: str) -> Figure:
    """Fig. 2: both graphs side by side, a task at the same place in both."""
    figure = Figure(figsize=(9, 5.2))
    for left, (graph, (colour, meaning)) in zip((0.01, 0.51), GRAPHS.items()):
        axes = figure.add_axes((left, 0.06, 0.48, 0.86), aspect="equal", xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
        axes.axis("off")
        axes.set_title(f"{graph}, B → A: {meaning}", fontsize=10)
        mine = sorted((edge for edge in edges if edge["graph"] == graph), key=lambda edge: -abs(edge["change"]))
        for edge, z in zip(mine, edge_curves(mine, nodes)):  # thick ones first: thin ones stay visible on top
            points, sure = WIDTHS[edge["width"]][2], edge.get("significant", True)
            axes.add_patch(FancyArrowPatch(
                path=Curve(np.c_[z.real, z.imag], [Curve.MOVETO] + 3 * [Curve.CURVE4]), color=colour, linewidth=points,
                linestyle="-" if sure else DASHES, alpha=1 if sure else 0.5, zorder=1 + sure, capstyle="butt",
                joinstyle="miter", arrowstyle="-|>,head_length=0.5,head_width=0.22", mutation_scale=7 + 2.2 * points))
        for name, (z, _, (fill, marker, size, _)) in nodes.items():
            axes.scatter(z.real, z.imag, size, fill, marker=marker, edgecolors=DARK, zorder=3)
            axes.text(z.real, z.imag - 0.005, name, ha="center", va="center", fontsize=9, weight="bold", zorder=4)
    legend = [Line2D([], [], linestyle="", marker=marker, markersize=9, color=fill, markeredgecolor=DARK, label=group)
              for group, (fill, marker, _, _) in dict(node[1:] for node in nodes.values()).items()]
    legend += [Line2D([], [], color=DARK, linewidth=points, label=span) for _, span, points in [*WIDTHS.values()][::-1]]
    if any("low" in edge for edge in edges):
        legend.append(Line2D([], [], color=DARK, linestyle=DASHES, label="may be 0 (95 %)"))
    figure.legend(handles=legend, loc="lower center", ncols=len(legend), fontsize=8, frameon=False, columnspacing=1.4,
                  title=title, title_fontsize=8)
    return figure


def dot(graph: str, edges: list[dict], nodes: dict) -> str:
    """One graph in the language of Graphviz, its tasks placed as in the figure (`dot -Tpdf hurt.dot`)."""
    lines = [f"digraph {graph} {{ layout=neato; splines=curved; node [style=filled];"]
    lines += [f'  "{name}" [pos="{3 * z.real:.2f},{3 * z.imag:.2f}!", shape={shape}, fillcolor="{fill}"];'
              for name, (z, _, (fill, _, _, shape)) in nodes.items()]
    lines += [f'  "{edge["source"]}" -> "{edge["target"]}" [label="{edge["change"]:+.2f}", color="{GRAPHS[graph][0]}", '
              f'penwidth={WIDTHS[edge["width"]][2]}, style={"solid" if edge.get("significant", True) else "dashed"}];'
              for edge in edges if edge["graph"] == graph]
    return "\n".join([*lines, "}\n"])


def main(arguments: list[str] | None = None) -> None:
    """The command line; what is wrong is said in one sentence, with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of our runs")
    parser.add_argument("--paper", action="store_true", help="draw the paper's Table 1 instead")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="seeds to average, where they exist")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    args = parser.parse_args(arguments)
    table = json.loads(PAPER.read_text())
    try:
        changes, notes = (paper_changes(table), []) if args.paper else run_changes(args.runs, table["tasks"], args.seed)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    tasks = {name: task for name, task in table["tasks"].items() if any(name in pair for pair in changes)}
    edges, nodes = make_edges(changes, tasks), layout(tasks)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "edges.json").write_text("[\n" + ",\n".join(map(json.dumps, edges)) + "\n]\n")
    for graph in GRAPHS:
        (args.out / f"{graph}.dot").write_text(dot(graph, edges, nodes))
    with matplotlib.rc_context({"svg.hashsalt": "fig2"}):  # and without a date: same edges, same bytes
        figure = draw(edges, nodes, "Table 1 of the paper" if args.paper else f"{args.runs}, seeds {args.seed}")
        figure.savefig(args.out / "fig2.svg", metadata={"Date": None})
        figure.savefig(args.out / "fig2.png", dpi=200)
    for edge in edges:
        interval = f"[{edge['low']:+.2f}, {edge['high']:+.2f}]" if "low" in edge else ""
        print(f"{edge['graph']:12}{edge['source']:>4} -> {edge['target']:4}{edge['width']:7}{edge['change']:+8.2f} %",
              interval, "" if edge.get("significant", True) else "may be 0")
    print(*(f"note: {note}" for note in notes), f"wrote edges.json, *.dot, fig2.svg, fig2.png to {args.out}", sep="\n")


if __name__ == "__main__":
    main()

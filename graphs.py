"""Which task helps which, and which one hurts: the two relation graphs of Fig. 2 (paper, Section 4.2).

    python graphs.py --paper --out figures/paper                # from the paper's own Table 1
    python graphs.py --runs runs --out figures --seed 0 1 2     # from our runs mtl-all and leave-one-out-*

Take task B out of multi-task learning and score task A (SF: its CER), beside a model that learned all tasks. If A got
worse by at least 0.5 % of its value, B helps A: an edge B -> A in the improvement graph. If A got better by as much,
an edge in the hurt graph. The paper has one number
per cell and cannot say which edges are noise. We have every prediction: a paired bootstrap gives each edge a 95 %
interval, and an edge is dashed if that contains 0. Of the luck of training, a single seed says nothing.

Writes edges.json, improvement.dot, hurt.dot, fig2.svg, fig2.png. K seeds, n utterances (ASV: trials).
"""
import argparse
import json
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from engine.runs import RunError, load_json
from evaluate import read_results
from metrics import paired_bootstrap
from tasks import TASKS, Metric

PAPER = Path(__file__).with_name("paper_table1.json")
# Caption of Fig. 2: width -> smallest change in percent, legend, line width as drawn (points).
WIDTHS = {"thick": (8.0, "≥ 8 % change", 3.0), "medium": (2.0, "2–8 %", 1.6), "thin": (0.5, "0.5–2 %", 0.7)}
GRAPHS = {"improvement": ("#1b6ca8", "A is worse without B"), "hurt": ("#b5442e", "A is better without B")}
LOOKS = [("#a9d0ea", "o"), ("#e6c6e1", "p"), ("#bfe3a5", "h"), ("#fdd08a", "s"), ("#f3b5a5", "8")]  # fill and marker
DASHES, DARK = (0, (3.2, 1.6)), "#333333"

def drawn_metric(task: str) -> Metric:
    """The metric whose change makes the edges to a task."""
    return TASKS[task].metrics[TASKS[task].graph_metric]

def paper_changes() -> dict[tuple[str, str], tuple]:
    """(source, target) -> (change of the target's metric without the source, in percent; no interval: None, None)."""
    table, changes = json.loads(PAPER.read_text()), {}
    for source, row in table["leave-one-out"].items():
        for target, scores in row.items():
            metric = drawn_metric(target).name
            changes[source, target] = 100 * (scores[metric] / table["mtl"][target][metric] - 1), None, None
    return changes

def read_pairs(results: list[dict], task: str) -> list[dict[tuple, list]]:
    """For each run, (id, reference) of a test utterance -> the two numbers that it adds to the task's metric.
    RunError for a damaged file."""
    found = []
    for result in results:
        if task in result["metrics"]:
            path = result["path"] / "predictions" / f"{task}.jsonl"
            try:
                rows = sorted(load_json(path, lines=True), key=lambda row: row["id"])
                found.append({(row["id"], str(row["reference"])): row[drawn_metric(task).name] for row in rows})
            except (KeyError, TypeError) as error:
                raise RunError(f"no predictions of {task} in {path}; delete the run and train again") from error
    return found

def run_changes(runs: Path, seeds: list[int]) -> dict[tuple[str, str], tuple]:
    """(source, target) -> (change, low, high): 95 % interval of the change; all in percent of the target's metric in
    mtl-all. Prints what is missing; ValueError if nothing can be compared."""
    changes, tested = {}, {name: [] for name in ("mtl-all", *(f"leave-one-out-{task}" for task in TASKS))}
    for result in read_results(runs):
        name = f"{result['scenario']}-{result['task']}"
        if name in tested and result["seed"] in seeds and result["fold"] == 1:  # other folds, other utterances
            tested[name].append(result)
    for target in TASKS:
        metric, before = drawn_metric(target), read_pairs(tested["mtl-all"], target)
        value = np.mean([metric.reduce([*pairs.values()]) for pairs in before] or [0.0])
        if before and value == 0:
            print(f"note: no edges to {target}: {metric.name} of mtl-all is 0, and changes are relative to it")
        for source in TASKS:
            after = read_pairs(tested[f"leave-one-out-{source}"], target)
            if value == 0 or not after:
                continue
            if any([*pairs] != [*before[0]] for pairs in before + after):
                raise ValueError(f"{runs}: mtl-all and leave-one-out-{source} were tested on other utterances of "
                                 f"{target}; use the same data for all runs")
            both = ([[*pairs.values()] for pairs in run] for run in (before, after))  # (K, n, 2) each
            changes[source, target] = tuple(100 * x / value for x in paired_bootstrap(*both, metric.reduce))
    if not changes:
        raise ValueError(f"nothing to draw: {runs} needs finished runs mtl-all and leave-one-out-NAME (train.py)")
    for name, found in tested.items():
        if len(found) < len(seeds):
            print(f"note: {len(found)} of {len(seeds)} runs {name}")
    return changes

def make_edges(changes: dict[tuple[str, str], tuple]) -> list[dict]:
    """The edges that the rule in Fig. 2's caption makes of (change, low, high): first improvement, then hurt."""
    edges = []
    for (source, target), (change, low, high) in changes.items():
        size = round(abs(change), 6)  # 2.00 -> 2.01 is 0.49999... % in floating point
        width = next((name for name, (smallest, _, _) in WIDTHS.items() if size >= smallest), None)
        if width:
            graph = "improvement" if (change > 0) == drawn_metric(target).lower_is_better else "hurt"
            edge = {"graph": graph, "source": source, "target": target, "width": width, "change": round(change, 2)}
            if low is not None:
                edge |= {"low": round(low, 2), "high": round(high, 2), "significant": not low <= 0 <= high}
            edges.append(edge)
    return sorted(edges, key=lambda edge: list(GRAPHS).index(edge["graph"]))

def draw(edges: list[dict], tasks: list[str], title: str) -> Figure:
    """Fig. 2: both graphs side by side, the tasks clockwise on a circle, the same in both."""
    looks = dict(zip(dict.fromkeys(TASKS[name].group for name in tasks), cycle(LOOKS)))
    turns = 2 * np.pi * np.arange(len(tasks)) / len(tasks)
    places = np.stack([np.sin(turns), np.cos(turns)], 1)  # (tasks, 2)
    figure = Figure(figsize=(10, 5.7))
    figure.subplots_adjust(0.01, 0.07, 0.99, 0.93, wspace=0.02)
    for axes, (graph, (colour, meaning)) in zip(figure.subplots(1, 2), GRAPHS.items()):
        axes.set(aspect="equal", xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), title=f"{graph}, B → A: {meaning}")
        axes.axis("off")
        for edge in (edge for edge in edges if edge["graph"] == graph):
            start, end = tasks.index(edge["source"]), tasks.index(edge["target"])
            clockwise = (end - start) % len(tasks) <= len(tasks) / 2  # bent, the others straight: no edge is on another
            points, sure = WIDTHS[edge["width"]][2], edge.get("significant", True)
            axes.add_patch(FancyArrowPatch(
                places[start], places[end], connectionstyle=f"arc3,rad={0.09 * clockwise}", shrinkA=21, shrinkB=24,
                arrowstyle="-|>", mutation_scale=7 + 2.6 * points, color=colour, linewidth=points, capstyle="butt",
                linestyle="-" if sure else DASHES, alpha=1 if sure else 0.5, zorder=2 + sure - points / 9))
        for name, place in zip(tasks, places):
            fill, marker = looks[TASKS[name].group]
            axes.scatter(*place, 700, fill, marker=marker, edgecolors=DARK, zorder=3)
            axes.text(*place, name, ha="center", va="center", weight="bold", zorder=4)
    legend = [Line2D([], [], linestyle="", marker=marker, markersize=9, color=fill, markeredgecolor=DARK, label=group)
              for group, (fill, marker) in looks.items()]
    legend += [Line2D([], [], color=DARK, linewidth=points, label=text) for _, text, points in WIDTHS.values()]
    if any("low" in edge for edge in edges):
        legend.append(Line2D([], [], color=DARK, linestyle=DASHES, label="may be 0 (95 %)"))
    figure.legend(handles=legend, title=title, loc="lower center", ncols=len(legend), frameon=False, fontsize=8,
                  columnspacing=1.4)
    return figure

def dot(graph: str, edges: list[dict], tasks: list[str]) -> str:
    """One graph in the language of Graphviz (`dot -Tpdf hurt.dot`)."""
    lines = [f"digraph {graph} {{ layout=circo;", *(f'  "{name}";' for name in tasks)]
    lines += [f'  "{edge["source"]}" -> "{edge["target"]}" [label="{edge["change"]:+.2f}", '
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
    try:
        changes = paper_changes() if args.paper else run_changes(args.runs, args.seed)
    except (ValueError, RunError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    edges = make_edges(changes)
    tasks = [name for name in TASKS if any(name in pair for pair in changes)]
    tasks.sort(key=lambda name: TASKS[name].group)  # neighbours on the circle
    title = "Table 1 of the paper" if args.paper else f"{args.runs}, seed {' '.join(map(str, args.seed))}"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "edges.json").write_text("[\n" + ",\n".join(map(json.dumps, edges)) + "\n]\n")
    for graph in GRAPHS:
        (args.out / f"{graph}.dot").write_text(dot(graph, edges, tasks))
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "fig2"}):  # this and no date: same edges, same bytes
        figure = draw(edges, tasks, title)
        figure.savefig(args.out / "fig2.svg", metadata={"Date": None})
        figure.savefig(args.out / "fig2.png", dpi=200)
    for row in [("graph", "source", "target", "width", "change, %", "low", "high", "significant"),
                *(edge.values() for edge in edges)]:
        print("".join(f"{value!s:12}" for value in row).rstrip())
    print(f"wrote edges.json, *.dot, fig2.svg, fig2.png to {args.out}")

if __name__ == "__main__":
    main()

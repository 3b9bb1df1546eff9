"""Plots of how runs were trained: python evaluate.py --layers, --curves.

Runs that differ in seed and fold only are averaged, as in Table 1.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from engine.runs import RunError, load_checkpoint, read_log
from results import Result, row_name, row_order
from scenarios import RunConfig
from tasks import TASKS

COLOURS = ("#000000", "#0072b2", "#d98200", "#c3b1e1")  # one per group of tasks; their greys differ
MARKERS = "os^DvPX*p<>h"  # one per task that is left out
SMALL = 7.5  # points: all ticks, and text inside of panels
COLUMNS = 5  # panels beside each other


def save_plot(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and say where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)
    print(f"wrote {path}", file=sys.stderr)


def name_runs(results: list[Result]) -> str:
    """Whose runs are drawn: "runs, seeds 0 1 2"; and their scale, if it is not 1."""
    seeds = sorted({result.config.seed for result in results})
    plural = "s" if len(seeds) > 1 else ""
    scale = results[0].config.scale  # all have one (check_comparable)
    scaled = f", updates times {scale:g}" if scale != 1 else ""
    return f"{results[0].path.parent}, seed{plural} {' '.join(map(str, seeds))}{scaled}"


def group_of(config: RunConfig) -> str:
    """The rows of Table 1 that a run is drawn with: all rows (b-2) are one group."""
    return row_name(config).replace(f"all but {config.left_out}", "all but one")


def label_of(config: RunConfig) -> str:
    """The name of a run in its group."""
    if config.scenario == "leave-one-out":
        return f"without {config.left_out}"
    return config.label if len(config.tasks) == 1 else "all its tasks"


def group_runs(results: list[Result]) -> dict[str, dict[str, list[Result]]]:
    """{group: {label: runs that differ in seed and fold only}}, all in the order of Table 1."""

    def place(result: Result) -> tuple:
        """Where a run stands in the table."""
        config = result.config
        task = config.left_out or config.tasks[0]
        return row_order(row_name(config)), list(TASKS).index(task), config.seed, config.fold

    groups = {}
    for result in sorted(results, key=place):
        rows = groups.setdefault(group_of(result.config), {})
        rows.setdefault(label_of(result.config), []).append(result)
    return groups


# Hidden states


def plot_layers(results: list[Result]) -> Figure:
    """One row of squares per run: the softmax weight of each hidden state in its features.

    Runs that differ in seed and fold are averaged. Scenarios stand apart, as in Table 1.
    """
    groups = {}
    for group, rows in group_runs(results).items():
        groups[group] = {label: mean_weights(runs) for label, runs in rows.items()}
    every = [weights for rows in groups.values() for weights in rows.values()]
    states, largest = len(every[0]), max(weights.max() for weights in every)
    height = 0.9 + 0.55 * len(groups) + 0.26 * len(every)  # inches
    figure = Figure(figsize=(max(6.5, 1.5 + 0.55 * states), height), layout="constrained")
    figure.suptitle(f"Weights of the hidden states: {name_runs(results)}", fontsize=10)
    panels = figure.subplots(len(groups), 1, squeeze=False, sharex=True,
                             height_ratios=[len(rows) for rows in groups.values()])
    for axes, (group, rows) in zip(panels[:, 0], groups.items()):
        axes.set_title(group, fontsize=9, loc="left", weight="bold")
        draw_weights(axes, rows, largest)
    axes.set_xticks(range(states))
    axes.set_xlabel("hidden state (0 = input of the first transformer layer)", fontsize=9)
    return figure


def mean_weights(runs: list[Result]) -> np.ndarray:
    """The softmax weights of the hidden states (L + 1,), a mean over runs."""
    weights = []
    for run in runs:
        weights.append(load_checkpoint(run.path)["model"]["layer_sum.weights"].softmax(0))
    return torch.stack(weights).mean(0).numpy()


def draw_weights(axes: Axes, rows: dict[str, np.ndarray], largest: float) -> None:
    """The squares of one group; `largest` is the weight with the darkest colour."""
    axes.imshow(list(rows.values()), cmap="Blues", vmin=0, vmax=largest, aspect="auto")
    for y, weights in enumerate(rows.values()):
        for x, weight in enumerate(weights):
            colour = "white" if weight > 0.6 * largest else "black"
            axes.text(x, y, f"{weight:.2f}", ha="center", va="center", fontsize=SMALL,
                      color=colour)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(labelsize=SMALL, length=0)


# Learning curves


def plot_curves(results: list[Result]) -> Figure:
    """A panel per scenario and task: its training loss and, below, its dev score by step.

    A panel of (b-2) has a curve for each task that was left out. Losses are means of ten points. A
    log axis shows no loss of 0: the curve has a gap there. Raises RunError if a log is damaged.
    """
    groups = {group: gather_curves(rows) for group, rows in group_runs(results).items()}
    heights = [0.4 + 2.2 * math.ceil(len(tasks) / COLUMNS) for tasks in groups.values()]
    drawn = {label for tasks in groups.values() for curves in tasks.values() for label in curves}
    handles = [Line2D([], [], markersize=4, label=f"(b-2) {label}", **style)
               for label, style in left_out_looks().items() if label in drawn]
    heights.append(0.5 if handles else 0.01)  # inches
    columns = min(COLUMNS, max(len(tasks) for tasks in groups.values()))
    figure = Figure(figsize=(max(5, 2.4 * columns), sum(heights) + 0.4), layout="constrained")
    figure.suptitle(f"Training losses and dev scores: {name_runs(results)}", fontsize=10)
    *parts, last = figure.subfigures(len(heights), 1, height_ratios=heights)
    for part, (group, tasks) in zip(parts, groups.items()):
        part.suptitle(group, fontsize=9, weight="bold", x=0.01, ha="left")
        draw_group(part, tasks, columns)
    if handles:
        last.legend(handles=handles, loc="center", ncols=COLUMNS, frameon=False, fontsize=SMALL)
    return figure


def left_out_looks() -> dict[str, dict]:
    """{label of a run of (b-2): marker and colour}: a colour for each group of tasks."""
    groups = list(dict.fromkeys(task.group for task in TASKS.values()))
    looks = {}
    for i, task in enumerate(TASKS.values()):
        looks[f"without {task.name}"] = {
            "marker": MARKERS[i % len(MARKERS)],
            "color": COLOURS[groups.index(task.group) % len(COLOURS)]}
    return looks


def gather_curves(rows: dict[str, list[Result]]) -> dict[str, dict[str, tuple]]:
    """{task: {label: (loss, dev)}} of one group; a curve is a list of (step, value)."""
    gathered = {}
    for label, runs in rows.items():
        logs = [read_curves(run) for run in runs]
        for task in runs[0].config.tasks:
            losses = mean_curve([losses[task] for losses, _ in logs])
            dev = mean_curve([dev[task] for _, dev in logs])
            gathered.setdefault(task, {})[label] = smooth(losses), dev
    return {task: gathered[task] for task in TASKS if task in gathered}


def read_curves(result: Result) -> tuple[dict, dict]:
    """The log of a run: {task: [(step, loss)]}, {task: [(step, first metric on dev)]}.

    Raises RunError if the log is damaged.
    """
    losses = {name: [] for name in result.config.tasks}
    dev = {name: [] for name in result.config.tasks}
    try:
        for row in read_log(result.path):
            if "losses" in row:
                for name, points in losses.items():
                    points.append((row["step"], float(row["losses"][name])))
            for name, scores in row.get("dev", {}).items():
                dev[name].append((row["step"], float(scores[TASKS[name].metrics[0].name])))
        if not all(losses.values()):
            raise ValueError("no losses")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"{result.path / 'log.jsonl'} is damaged ({error!r}); "
                       f"delete {result.path} and train again") from error
    return losses, dev


def mean_curve(curves: list[list[tuple]]) -> list[tuple]:
    """The mean of curves of (step, value), at the steps that all of them have."""
    values = {}
    for curve in curves:
        for step, value in curve:
            values.setdefault(step, []).append(value)
    return [(step, sum(found) / len(found)) for step, found in sorted(values.items())
            if len(found) == len(curves)]


def smooth(points: list[tuple], width: int = 10) -> list[tuple]:
    """Moving averages of so many points, both of steps and of losses."""
    if not points:
        return []
    window = np.full(min(width, len(points)), 1 / min(width, len(points)))
    steps, losses = np.array(points).T
    return list(zip(np.convolve(steps, window, "valid"), np.convolve(losses, window, "valid")))


def draw_group(part: SubFigure, tasks: dict[str, dict[str, tuple]], columns: int) -> None:
    """The panels of one scenario, from `gather_curves`: losses above dev scores."""
    has_dev = any(dev for curves in tasks.values() for _, dev in curves.values())
    ratios = (3, 2) if has_dev else (1,)
    lines = math.ceil(len(tasks) / columns)
    grid = part.add_gridspec(lines * len(ratios), columns, height_ratios=ratios * lines)
    for i, (task, curves) in enumerate(tasks.items()):
        line, column = len(ratios) * (i // columns), i % columns
        axes = part.add_subplot(grid[line, column])
        axes.set_title(task, fontsize=SMALL + 0.5)
        axes.set_ylabel("loss", fontsize=SMALL)
        draw_curves(axes, {label: loss for label, (loss, _) in curves.items()})
        label_log_axis(axes)
        if has_dev:
            axes.tick_params(labelbottom=False)
            axes = part.add_subplot(grid[line + 1, column], sharex=axes)
            axes.set_ylabel(f"dev {TASKS[task].metrics[0].heading}, %", fontsize=SMALL)
            draw_curves(axes, {label: dev for label, (_, dev) in curves.items()})
        axes.set_xlabel("step", fontsize=SMALL)
        axes.set_xlim(left=0)
    for axes in part.axes:
        axes.tick_params(which="both", labelsize=SMALL)


def draw_curves(axes: Axes, curves: dict[str, list[tuple]]) -> None:
    """One curve for each label, with some markers."""
    looks = left_out_looks()
    for label, points in curves.items():
        if points:
            style = looks.get(label, {"marker": ".", "color": "black"})
            axes.plot(*zip(*points), linewidth=0.9, markersize=3,
                      markevery=math.ceil(len(points) / 15), **style)


def label_log_axis(axes: Axes) -> None:
    """A log axis for losses with plain numbers: 1, 2, 5, 10, ..."""
    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    middle = math.sqrt(low * high)
    axes.set_ylim(min(low, middle / 2), max(high, middle * 2))
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high / low > 300 else (1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())

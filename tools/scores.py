"""Plots of test scores: python evaluate.py --summary (--paper), --confusion, --interpolation."""

import json
import math
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from engine.launch import say
from engine.runs import RunError
from graphs import PAPER, drawn_metric
from results import CONSTANT, Result, interval, row_name, row_order, table_cells
from tasks import ACCURACY, TASKS
from tools.plots import COLUMNS, SMALL, name_runs

# The scenarios of the summary by their sign in Table 1. All differ in shape and in greyness.
LOOKS = {"(a)": {"marker": "o", "color": "#000000"},
         "(a+)": {"marker": "v", "color": "#b0b0b0"},
         "(b-1)": {"marker": "s", "color": "#0072b2"},
         "(c)": {"marker": "D", "color": "#d98200"}}
PAPER_ROWS = {"ssl": "(a)", "mtl": "(b-1)", "transfer": "(c)"}  # of paper_table1.json
DARK = "#333333"
MOST_CLASSES = 20  # of a confusion matrix
CELL = 0.28  # inches


# Summary: one panel per metric


def plot_summary(results: list[Result], with_paper: bool = False) -> Figure:
    """One panel per metric: (a), (a+), (b-1), (c) with 95 % intervals, and the constant answer.

    `with_paper` adds the paper's Table 1 in a part of its own, on its own scales: its encoder and
    its data are other ones. Raises RunError if there is no such run.
    """
    shown = [result for result in results if result.config.scenario != "leave-one-out"]
    if not shown:
        raise RunError(f"no finished run of (a), (b-1) or (c) in {results[0].path.parent}")
    cells = table_cells(shown, intervals=True)
    constant = cells.pop(CONSTANT, {})
    parts = [(f"Test scores in %: {name_runs(shown)}", cells, constant)]
    if with_paper:
        parts.append(("The paper's Table 1 in %: HuBERT Base on SUPERB, one number each",
                      paper_cells(), {}))
    columns = [(name, metric) for name in TASKS for metric in TASKS[name].metrics
               if any((name, metric.name) in row for row in cells.values())]
    width = min(COLUMNS, len(columns))
    height = 0.35 + 1.75 * math.ceil(len(columns) / width)  # inches
    rows = sorted(cells, key=row_order)
    lines = 1 if sum(len(row) for row in rows) < 90 else math.ceil(len(rows) / 2)
    heights = [height] * len(parts) + [0.35 + 0.15 * lines]
    figure = Figure(figsize=(max(5.5, 1.64 * width), sum(heights)), layout="constrained")
    *figures, last = figure.subfigures(len(heights), 1, height_ratios=heights)
    for part, (title, values, line) in zip(figures, parts):
        part.suptitle(title, fontsize=10, weight="bold")
        draw_part(part, columns, values, line)
    if with_paper:
        figures[1].set_facecolor("#f3efe6")
    add_legend(last, rows, math.ceil(len(rows) / lines), bool(constant))
    return figure


def paper_cells() -> dict[str, dict[tuple, tuple]]:
    """The paper's rows (a), (b-1) and (c), as `results.table_cells` gives ours."""
    table = json.loads(PAPER.read_text())
    cells = {}
    for scenario, row in PAPER_ROWS.items():
        cells[row] = {}
        for task, scores in table[scenario].items():
            for metric, value in scores.items():
                cells[row][task, metric] = value, None, None
    return cells


def draw_part(part: SubFigure, columns: list[tuple], cells: dict, constant: dict) -> None:
    """One panel for each (task, metric) of `columns`."""
    rows = sorted(cells, key=row_order)
    width = min(COLUMNS, len(columns))
    panels = part.subplots(math.ceil(len(columns) / width), width, squeeze=False).ravel()
    for axes in panels[len(columns):]:
        axes.set_visible(False)
    for axes, (task, metric) in zip(panels, columns):
        key = task, metric.name
        axes.set_title(f"{task} {metric.name}", fontsize=9, weight="bold", loc="left")
        axes.set_title("↓ is better" if metric.lower_is_better else "↑ is better", fontsize=SMALL,
                       loc="right")
        axes.set_xticks(range(len(rows)), [row.split()[0] for row in rows],
                        rotation=90 if len(rows) > 4 else 0)
        axes.set_xlim(-0.6, len(rows) - 0.4)
        axes.tick_params(labelsize=SMALL, length=2)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.locator_params(axis="y", nbins=5)
        draw_points(axes, [cells[row].get(key) for row in rows], rows)
        if key in constant:
            draw_constant(axes, constant[key][0])


def look(row: str) -> dict:
    """Marker and colour of a row; hollow if the experiment has fewer than all tasks.

    With masked prediction ("masked 0.1") it is filled below; with shuffled labels, on the left.
    """
    marker = dict(LOOKS[row.split()[0]])
    if ", masked " in row:
        marker["fillstyle"] = "left" if "shuffled" in row else "bottom"
    first_task = row.rpartition(" of ")[2].split("+")[0]
    return marker | {"markerfacecolor": "white" if first_task in TASKS else marker["color"]}


def draw_points(axes: Axes, values: list[tuple | None], rows: list[str]) -> None:
    """The (percent, low, high) of each row, from left to right."""
    for x, (cell, row) in enumerate(zip(values, rows)):
        if cell is None:
            continue
        value, low, high = cell
        style = look(row)
        if low is not None:
            axes.plot([x, x], [low, high], color=style["color"], linewidth=1.6)
        axes.plot(x, value, markersize=6, **style)
    axes.margins(y=0.12)


def draw_constant(axes: Axes, value: float) -> None:
    """The constant answer as a dashed line.

    If it is far from all points, it lies on a grey strip at the edge, which is off the scale.
    """
    low, high = axes.get_ylim()
    span = high - low
    if low - span / 2 <= value <= high + span / 2:
        place = value
        axes.set_xlim(right=axes.get_xlim()[1] + 0.9)  # room for the number
        axes.set_ylim(min(low, value - 0.1 * span), max(high, value + 0.1 * span))
    else:
        ticks = MaxNLocator(4).tick_values(low, high)
        axes.set_yticks([tick for tick in ticks if low <= tick <= high])
        inner = low if value < low else high
        outer = inner + math.copysign(0.28 * span, value - low)
        axes.axhspan(inner, outer, color="#e4e4e4", linewidth=0)
        axes.set_ylim(min(low, outer), max(high, outer))
        place = (inner + outer) / 2
    axes.axhline(place, 0, 0.72, color=DARK, linestyle="--", linewidth=1, zorder=1)
    axes.text(1, place, f"{value:.1f}", transform=axes.get_yaxis_transform(), ha="right",
              va="center", fontsize=SMALL)


def add_legend(part: SubFigure, rows: list[str], columns: int, with_constant: bool) -> None:
    """The marker of each row; below them the interval and the constant answer."""
    handles = [Line2D([], [], linestyle="", markersize=6, label=row, **look(row)) for row in rows]
    part.legend(handles=handles, loc="upper center", ncols=columns, frameon=False, fontsize=8)
    handles = [Line2D([], [], color=DARK, linewidth=1.6, label="95 % interval")]
    if with_constant:
        handles.append(Line2D([], [], color=DARK, linestyle="--", linewidth=1,
                              label="constant answer; on grey it is off the scale"))
    part.legend(handles=handles, loc="lower center", ncols=2, frameon=False, fontsize=8)


# Confusion matrices


def plot_confusion(results: list[Result]) -> Figure:
    """Confusion matrices: a column for each task, a row for each of (a), (b-1), (c).

    A task is drawn if its metric is accuracy and it has at most MOST_CLASSES classes: KS, ER, and
    IC (its first slot, the action), but not SID. Seeds and folds are added up. Raises RunError if
    no run has such a task.
    """
    answers = read_answers(results)
    classes = {}
    for heading, rows in answers.items():
        names = {name for pairs in rows.values() for pair in pairs for name in pair}
        if len(names) <= MOST_CLASSES:
            classes[heading] = sorted(names)
        else:
            say(f"note: {heading} is left out, as it has {len(names)} classes")
    if not classes:
        raise RunError(f"no finished run of (a), (b-1) or (c) in {results[0].path.parent} has a "
                       f"task with classes, at most {MOST_CLASSES} of them")
    rows = sorted({row for heading in classes for row in answers[heading]}, key=row_order)
    widths = [max(1.6, CELL * len(names)) for names in classes.values()]  # inches
    height = 1.5 + CELL * max(len(names) for names in classes.values())
    figure = Figure(figsize=(sum(widths) + 1.6 * len(widths), 0.3 + height * len(rows)),
                    layout="constrained")
    figure.suptitle(f"Answers in % of each class: {name_runs(results)}", fontsize=10)
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, row in zip(parts, rows):
        part.suptitle(row, fontsize=9, weight="bold", x=0.01, ha="left")
        panels = part.subplots(1, len(classes), squeeze=False, width_ratios=widths)[0]
        for axes, (heading, names) in zip(panels, classes.items()):
            axes.set_visible(row in answers[heading])
            counts = count_answers(answers[heading].get(row, []), names)
            right = 100 * np.trace(counts) / max(counts.sum(), 1)
            axes.set_title(f"{heading}: {right:.1f} % right", fontsize=9)
            draw_counts(axes, counts, names)
    return figure


def read_answers(results: list[Result]) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """{heading: {row of Table 1: (reference, prediction) of all test utterances and seeds}}.

    A heading is a task; of several slots the first one is kept, and the heading says so. Raises
    RunError if predictions changed.
    """
    answers = {}
    for name, task in TASKS.items():
        for result in results:
            is_shown = result.config.scenario in PAPER_ROWS  # neither (a+) nor (b-2)
            if not (is_shown and name in result.metrics and ACCURACY in task.metrics):
                continue
            for line in result.predictions(name):
                heading, pair = name, (line["reference"], line["prediction"])
                if isinstance(line["reference"], list):
                    heading, pair = f"{name}, first slot", tuple(slots[0] for slots in pair)
                rows = answers.setdefault(heading, {})
                rows.setdefault(row_name(result.config), []).append(pair)
    return answers


def count_answers(pairs: list[tuple[str, str]], classes: list[str]) -> np.ndarray:
    """How often each class was answered for each class: counts (references, predictions)."""
    counts = np.zeros((len(classes), len(classes)), int)
    for reference, prediction in pairs:
        counts[classes.index(reference), classes.index(prediction)] += 1
    return counts


def draw_counts(axes: Axes, counts: np.ndarray, classes: list[str]) -> None:
    """A confusion matrix in percent of each reference; a class without utterances has none."""
    totals = counts.sum(1)
    shares = 100 * counts / np.maximum(totals, 1)[:, None]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for y, x in np.argwhere(counts):
        text = f"{shares[y, x]:.0f}" if shares[y, x] >= 0.5 else "<1"
        axes.text(x, y, text, ha="center", va="center", fontsize=6.5,
                  color="white" if shares[y, x] > 60 else "black")
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), [f"{name} ({n})" for name, n in zip(classes, totals)])
    axes.tick_params(labelsize=SMALL, length=0)
    axes.set_xlabel("answer", fontsize=SMALL)
    axes.set_ylabel("reference (utterances)", fontsize=SMALL)


# Interpolation of weights


def plot_interpolation(results: list[Result]) -> Figure:
    """One panel per left-out task: its score in (c) over A, the share of (b-2) in the encoder.

    A panel has the seeds that all its values of A have. The 95 % intervals are a bootstrap over
    seeds and utterances. Raises RunError if no panel has two values of A.
    """
    transfers = [result for result in results if result.config.scenario == "transfer"]
    transfers.sort(key=lambda result: list(TASKS).index(result.config.left_out))
    panels = {}  # name of the run without seed and A -> A -> seed -> result
    for result in transfers:
        run = result.config.run
        panel = panels.setdefault(replace(run, seed=0, interpolate=1.0).name, {})
        panel.setdefault(run.interpolate, {})[run.seed] = result
    panels = {name: panel for name, panel in panels.items() if len(panel) > 1}
    if not panels:
        raise RunError("no task has two runs of (c) that differ in A; python train.py --scenario "
                       "transfer --interpolate 0.5 makes one")
    rows = math.ceil(len(panels) / 3)
    figure = Figure(figsize=(9, 2.1 * rows + 0.5), layout="constrained")
    figure.supxlabel("A: share of (b-2) in the encoder, the rest is HuBERT", fontsize=9)
    for place, (name, panel) in enumerate(panels.items(), 1):
        draw_interpolation(figure.add_subplot(rows, min(3, len(panels)), place), name, panel)
    return figure


def draw_interpolation(axes: Axes, name: str, panel: dict[float, dict[int, Result]]) -> None:
    """The curve of one task; `panel` is {A: {seed: result}}."""
    shares = sorted(panel)
    first = panel[shares[0]]
    seeds = [seed for seed in sorted(first) if all(seed in panel[share] for share in shares)]
    if not seeds:
        raise RunError(f"{name}: no seed has a run for each A in {shares}; train the others")
    task = first[seeds[0]].config.left_out
    metric = drawn_metric(task)
    means = []
    for share in shares:
        runs = [panel[share][seed] for seed in seeds]
        means.append(np.mean([run.metrics[task][metric.name] for run in runs]))
        axes.vlines(share, *interval(runs, task, metric.name), linewidth=1.2)
    axes.plot(shares, means, "o-", markersize=4)
    axes.set_title(f"{name}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}", fontsize=9)
    axes.set_ylabel(f"{metric.heading}, %", fontsize=8)
    axes.set_xticks(shares)
    axes.tick_params(labelsize=SMALL)

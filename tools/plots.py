"""Plots of finished runs: python evaluate.py --layers, --curves."""

import math
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from engine.runs import RunError, load_checkpoint, read_log
from results import Result


def save_plot(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and say where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"wrote {path}", file=sys.stderr)


def plot_layers(results: list[Result]) -> Figure:
    """One row of squares per run: the softmax weight of each hidden state in its features."""
    weights = []
    for result in results:
        saved = load_checkpoint(result.path)["model"]
        weights.append(saved["layer_sum.weights"].softmax(0).tolist())
    states = len(weights[0])
    figure = Figure(figsize=(1.5 + 0.55 * states, 1.2 + 0.28 * len(weights)), layout="constrained")
    axes = figure.subplots()
    largest = max(max(row) for row in weights)
    axes.imshow(weights, cmap="Blues", vmin=0, aspect="auto")
    for y, row in enumerate(weights):
        for x, weight in enumerate(row):
            colour = "white" if weight > 0.6 * largest else "black"
            axes.text(x, y, f"{weight:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_yticks(range(len(weights)), [result.path.name for result in results])
    axes.set_xticks(range(states))
    axes.set_xlabel("hidden state (0 = input of the first transformer layer)")
    return figure


def plot_curves(results: list[Result]) -> Figure:
    """One panel per run: the training losses, each a mean of ten points, and the dev score."""
    rows = math.ceil(len(results) / 4)
    figure = Figure(figsize=(12, 2.3 * rows + 0.5), layout="constrained")
    figure.supxlabel("step")
    for place, result in enumerate(results, 1):
        axes = figure.add_subplot(rows, min(4, len(results)), place)
        axes.set_title(result.path.name, fontsize=9)
        plot_run(axes, result)
    return figure


def plot_run(axes, result: Result) -> None:
    """The panel of one run. Raises RunError if its log is damaged."""
    curves, dev = {name: [] for name in result.metrics}, []
    try:
        for row in read_log(result.path):
            if "losses" in row:
                for name, points in curves.items():
                    points.append((row["step"], float(row["losses"][name])))
            if "dev" in row:
                for scores in row["dev"].values():
                    dev.append((row["step"], float(next(iter(scores.values())))))
        if not all(curves.values()):
            raise ValueError("no losses")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"{result.path / 'log.jsonl'} is damaged ({error!r}); "
                       f"delete {result.path} and train again") from error
    for name, points in curves.items():
        width = min(10, len(points))
        window = np.full(width, 1 / width)
        steps, losses = np.array(points).T
        steps = np.convolve(steps, window, "valid")
        losses = np.convolve(losses, window, "valid").clip(1e-3)  # a log axis cannot show 0
        axes.semilogy(steps, losses, linewidth=1, label=name)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=6, frameon=False, ncols=3, title="loss", title_fontsize=6)
    if dev:
        other = axes.twinx()
        other.plot(*zip(*dev), "k.-", markersize=3, linewidth=0.8)
        other.set_ylabel("dev, %", fontsize=7)

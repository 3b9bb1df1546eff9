"""Evaluation: a trained run -> one prediction per utterance -> the numbers of Table 1 (paper, Section 4).

    python evaluate.py --run runs/transfer-IC   # score one run again (--split dev for the other set)
    python evaluate.py --table                  # Table 1 from whatever runs there are; --intervals --markdown --json
    python evaluate.py --layers                 # which hidden states each task draws on: figures/layers.png
    python evaluate.py --curves                 # losses and dev scores during training: figures/curves.png
"""
import argparse
import functools
import json
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from batches import collate, in_chunks, load_ahead
from data import Corpus, DataError
from engine.frozen import CHUNK_SECONDS, FrozenFeatures
from engine.runs import RunError, load_checkpoint, load_json, save
from metrics import bootstrap
from model import EncoderError, MultiTask, load_encoder
from tasks import TASKS, score, summarise

def build(config: dict, classes: dict, runs: Path) -> MultiTask:
    """The model of a run: its encoder, frozen or to be trained, and a new head of `classes[task]` outputs for each of
    its tasks. config["encoder"] is another run in the folder `runs` (in (c)), or a source for `load_encoder`."""
    other_run = runs / config["encoder"] / "checkpoint.pt"
    encoder = load_encoder(str(other_run) if other_run.parent.is_dir() else config["encoder"])
    encoder.requires_grad_(config["trains_encoder"])  # (a), (c): here the gradient stops; layer sum and head learn
    encoder.feature_grad_mult = config.get("feature_grad_mult", 0.0)
    if encoder.feature_grad_mult == 0:
        encoder.feature_extractor.requires_grad_(False)
    heads = {name: TASKS[name].head(encoder.dim, classes[name], config["hidden"][name]) for name in config["tasks"]}
    return MultiTask(encoder, heads, config["augment"], config["time_mask_width"])

def restore(model: MultiTask, folder: Path) -> dict:
    """Put the weights of a run's checkpoint into a model: everything but the encoder, and the encoder where the run
    trained it. -> the checkpoint. RunError if it does not fit."""
    saved = load_checkpoint(folder)
    weights = {name: tensor for name, tensor in saved["model"].items() if name != "log_sigma" or hasattr(model, name)}
    if "encoder" in saved:
        weights |= {f"encoder.{name}": tensor for name, tensor in saved["encoder"]["state_dict"].items()}
    else:
        weights |= {f"encoder.{name}": tensor for name, tensor in model.encoder.state_dict().items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"weights that do not fit config.json in {folder}; delete it and train again") from error
    return saved

def read(name: str, split: str, config: dict) -> Corpus:
    """One split of one task of a run; says aloud how much had to be left out (skipped.txt of the run lists all)."""
    fold = {"fold": config["fold"]} if TASKS[name].folds > 1 else {}
    corpus = TASKS[name].read(config["data"], split, skip_broken=config["skip_broken"], **fold)
    if corpus.skipped:
        tqdm.write(f"{name} {split}: left out {len(corpus.skipped)} utterances, the first one: {corpus.skipped[0]}")
    return corpus

@torch.no_grad()
def predict_and_score(model: MultiTask, corpora: dict[str, Corpus], frozen: dict[str, FrozenFeatures | None], workers: int = 0,
            quiet: bool = False) -> dict[str, list[dict]]:
    """One row (tasks.score) for every utterance of each task's corpus. The model is left in evaluation mode.

    Where the encoder runs, the longest audio comes first, so that memory runs out early or never.
    """
    model.eval()
    rows = {}
    for name, corpus in corpora.items():
        if frozen.get(name):
            batches = frozen[name].all_batches()
        else:
            chunks = in_chunks(corpus, [(i, None) for i in range(len(corpus.utterances))], CHUNK_SECONDS)
            loader = load_ahead(chunks[::-1], workers, functools.partial(collate, corpus))
            batches = tqdm(loader, f"{name}: predicting", unit="batch", leave=False, disable=quiet, delay=1)
        predictions = {utterance: TASKS[name].decode(corpus.labels, output)
                       for batch in batches for utterance, output in zip(batch.ids, model.predict(name, batch))}
        rows[name] = score(TASKS[name], corpus, predictions)
    return rows

def write_result(folder: Path, config: dict, seconds: float, rows: dict[str, list[dict]]) -> None:
    """predictions/<TASK>.jsonl, then result.json of a finished run; its presence says that the run is done."""
    (folder / "predictions").mkdir(exist_ok=True)
    for name, items in rows.items():
        text = "".join(json.dumps(item) + "\n" for item in items)
        save(folder / "predictions" / f"{name}.jsonl", lambda file: file.write(text.encode()))
    result = {key: config[key] for key in ("scenario", "task", "left_out", "setting", "seed", "fold", "steps")} | {
        "seconds": round(seconds, 1), "metrics": {name: summarise(TASKS[name], items) for name, items in rows.items()}}
    save(folder / "result.json", lambda file: file.write(json.dumps(result, indent=1).encode()))

# Table 1

def read_results(runs: Path) -> list[dict]:
    """result.json of every finished run, with its folder under the key "path"."""
    return [{**load_json(path), "path": path.parent} for path in sorted(runs.glob("*/result.json"))]

def row_name(result: dict) -> str:
    """The row of Table 1 that a run belongs to."""
    some = "" if result["task"] == "all" else f" {result['task']}"
    return {"ssl": "(a) SSL", "control": f"(a+) SSL, more steps{some}", "mtl": f"(b-1) MTL{some or ' all'}",
            "leave-one-out": f"(b-2) all but {result['left_out']}", "transfer": "(c) transfer"}[result["scenario"]]

def table_cells(results: list[dict], intervals: bool = False) -> dict[str, dict[tuple, tuple]]:
    """{row: {(task, metric): (percent, low, high)}}; low and high are None without `intervals`.

    A cell is the mean over the seeds of each fold, then over the folds, of which only ER has several. The interval
    is about utterances and seeds; there is none where folds have different test sets.
    """
    gathered = {}  # row -> (task, metric) -> fold -> runs
    for result in results:
        for task, metrics in result["metrics"].items():
            fold = result["fold"] if TASKS[task].folds > 1 else 1
            for metric in metrics:
                folds = gathered.setdefault(row_name(result), {}).setdefault((task, metric), {})
                folds.setdefault(fold, []).append(result)
    cells = {}
    for row, columns in gathered.items():
        for (task, metric), folds in columns.items():
            means = [sum(run["metrics"][task][metric] for run in runs) / len(runs) for runs in folds.values()]
            low = high = None
            if intervals and len(folds) == 1:
                reduce = next(m.reduce for m in TASKS[task].metrics if m.name == metric)
                pairs = [[row[metric] for row in load_json(run["path"] / "predictions" / f"{task}.jsonl", lines=True)]
                         for runs in folds.values() for run in runs]
                _, low, high = (100 * x for x in bootstrap(pairs, reduce))
            cells.setdefault(row, {})[task, metric] = sum(means) / len(means), low, high
    return cells

def table_rows(cells: dict, tasks: list[str]) -> list[list[str]]:
    """Table 1 as text: a heading, then one row per scenario. X = left out, — = not run; + and - = better and worse
    than (b-1)."""
    columns = [(TASKS[name], metric) for name in tasks for metric in TASKS[name].metrics]
    rows = [["scenario"] + [f"{task.name} {metric.name}{'↓' if metric.lower_is_better else '↑'}"
                            for task, metric in columns]]
    order = ["(a) SSL", *sorted(row for row in cells if row.startswith(("(a+)", "(b-1)"))),
             *(f"(b-2) all but {name}" for name in TASKS), "(c) transfer"]
    baseline = cells.get("(b-1) MTL all", {})
    shown = [row for row in order if any((task.name, metric.name) in cells.get(row, {}) for task, metric in columns)]
    marked = any(row.startswith("(b-2)") for row in shown)
    for row in shown:
        texts = [row]
        for task, metric in columns:
            key = task.name, metric.name
            if key not in cells[row]:
                texts.append("X" if row.endswith(f"but {task.name}") else "—")
                continue
            value, low, high = cells[row][key]
            reference = baseline[key][0] if row.startswith("(b-2)") and key in baseline else value
            mark = "+" if metric.better(value, reference) else "-" if metric.better(reference, value) else " "
            texts.append(f"{value:.2f}" + ("" if low is None else f" [{low:.1f}, {high:.1f}]") + mark * marked)
        rows.append(texts)
    return rows

def print_table(rows: list[list[str]], markdown: bool = False) -> None:
    """Aligned columns for a terminal, or a Markdown table; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    line = ["-" * width for width in widths]
    if markdown:
        line[1:] = [dashes[:-1] + ":" for dashes in line[1:]]
    for row in [rows[0], line, *rows[1:]]:
        cells = [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:]))]
        print("| " + " | ".join(cells) + " |" if markdown else "  ".join(cells))

def print_results(runs: Path, tasks: list[str], intervals: bool = False, markdown: bool = False) -> None:
    """Table 1 from the finished runs in a folder, and what its signs and means are."""
    results = read_results(runs)
    rows = table_rows(table_cells(results, intervals), tasks)
    print_table(rows, markdown)
    if any(row[0].startswith("(b-2)") for row in rows):
        print("\nX left out, — not run; + better, - worse than (b-1)")
    seeds, folds = (sorted({result[key] for result in results}) for key in ("seed", "fold"))
    if len(seeds) > 1 or len(folds) > 1:
        folded = ", ".join(task.name for task in TASKS.values() if task.folds > 1)
        print(f"means over what exists of seeds {seeds} and, for {folded}, folds {folds}")

# Figures

def plot_layers(results: list[dict]) -> Figure:
    """One line of squares per run: the softmax weight of each hidden state in the features that its heads read."""
    weights = [load_checkpoint(result["path"])["model"]["layer_sum.weights"].softmax(0).tolist() for result in results]
    figure = Figure(figsize=(1.5 + 0.55 * len(weights[0]), 1.2 + 0.28 * len(weights)), layout="constrained")
    axes, largest = figure.subplots(), max(map(max, weights))
    axes.imshow(weights, cmap="Blues", vmin=0, aspect="auto")
    for y, row in enumerate(weights):
        for x, weight in enumerate(row):
            axes.text(x, y, f"{weight:.2f}", ha="center", va="center", fontsize=7,
                      color="white" if weight > 0.6 * largest else "black")
    axes.set_yticks(range(len(weights)), [result["path"].name for result in results])
    axes.set_xticks(range(len(weights[0])))
    axes.set_xlabel("hidden state (0 = input of the first transformer layer)")
    return figure

def plot_curves(results: list[dict]) -> Figure:
    """One panel per run: training losses, each a mean of ten points, and the dev score where one was taken."""
    rows = -(-len(results) // 4)
    figure = Figure(figsize=(12, 2.3 * rows + 0.5), layout="constrained")
    figure.supxlabel("step")
    for place, result in enumerate(results, 1):
        lines = load_json(result["path"] / "log.jsonl", lines=True)
        axes = figure.add_subplot(rows, min(4, len(results)), place)
        axes.set_title(result["path"].name, fontsize=9)
        for name in result["metrics"]:
            points = np.array([(line["step"], line["losses"][name]) for line in lines if "losses" in line])
            width = min(10, len(points))
            steps, losses = (np.convolve(column, np.full(width, 1 / width), "valid") for column in points.T)
            axes.semilogy(steps, losses.clip(1e-3), linewidth=1, label=name)  # below that a loss says nothing more
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=6, frameon=False, ncols=3, title="loss", title_fontsize=6)
        dev = [(line["step"], next(iter(line["dev"].values()))) for line in lines if "dev" in line]
        if dev:
            other = axes.twinx()
            other.plot(*zip(*dev), "k.-", markersize=3, linewidth=0.8)
            other.set_ylabel("dev, %", fontsize=7)
    return figure

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="score this run again and print its metrics")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="with --run: which split")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder with the runs")
    parser.add_argument("--table", action="store_true", help="print Table 1")
    parser.add_argument("--intervals", action="store_true", help="with --table: 95 %% bootstrap intervals")
    parser.add_argument("--markdown", action="store_true", help="with --table: as a Markdown table")
    parser.add_argument("--json", action="store_true", help="with --table: as JSON")
    parser.add_argument("--layers", action="store_true", help="plot which hidden states the heads draw on")
    parser.add_argument("--curves", action="store_true", help="plot losses and dev scores during training")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the plots")
    args = parser.parse_args()
    if not (args.run or args.table or args.layers or args.curves):
        parser.error("nothing to do: give --run, --table, --layers or --curves")
    try:
        if args.run:
            config = load_json(args.run / "config.json")
            corpora = {name: read(name, args.split, config) for name in config["tasks"]}
            model = build(config, {name: corpus.classes for name, corpus in corpora.items()}, args.run.parent)
            restore(model, args.run)
            rows = predict_and_score(model, corpora, {})
            print(json.dumps({name: summarise(TASKS[name], items) for name, items in rows.items()}, indent=1))
        results = read_results(args.runs)
        if not results and not args.run:
            raise RunError(f"no finished run in {args.runs}; python train.py makes one")
        if args.table and args.json:
            print(json.dumps([{"row": row, "task": task, "metric": metric, "percent": value, "low": low, "high": high}
                              for row, columns in table_cells(results, args.intervals).items()
                              for (task, metric), (value, low, high) in columns.items()], indent=1))
        elif args.table:
            print_results(args.runs, list(TASKS), args.intervals, args.markdown)
        for wanted, name, plot in (args.layers, "layers", plot_layers), (args.curves, "curves", plot_curves):
            if wanted:
                args.out.mkdir(parents=True, exist_ok=True)
                plot(results).savefig(args.out / f"{name}.png", dpi=130)
                print(f"wrote {args.out / name}.png", file=sys.stderr)
    except (OSError, DataError, EncoderError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

if __name__ == "__main__":
    main()

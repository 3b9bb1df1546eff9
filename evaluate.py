"""Evaluation: a trained run -> one prediction per utterance -> the numbers of Table 1 (paper, Section 4).

    python evaluate.py --run runs/transfer-IC   # score one run again (--split dev for the other set)
    python evaluate.py --table                  # Table 1 from whatever runs there are; --intervals --markdown --json
    python evaluate.py --layers                 # which hidden states each task draws on: figures/layers.png
    python evaluate.py --curves                 # losses and dev scores during training: figures/curves.png
"""
import argparse
import json
import os
import pickle
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from batches import Chunks, as_is, sorted_batches
from data import Corpus, DataError
from features import FrozenFeatures
from metrics import bootstrap
from model import EncoderError, MultiTask, load_encoder
from tasks import TASKS, score, summarise


def build(config: dict, classes: dict, runs: Path) -> MultiTask:
    """The model of a run: its encoder, frozen or to be trained, and a new head of `classes[task]` outputs for each of
    its tasks."""
    other_run = runs / config["encoder"] / "checkpoint.pt"
    encoder = load_encoder(str(other_run) if other_run.exists() else config["encoder"])
    encoder.requires_grad_(config["trains_encoder"])
    encoder.conv_gradient = config.get("conv_gradient", 0.0)
    if encoder.conv_gradient == 0:
        encoder.feature_extractor.requires_grad_(False)
    heads = {name: TASKS[name].head(encoder.dim, classes[name], config["hidden"][name]) for name in config["tasks"]}
    return MultiTask(encoder, heads, config["augment"], config["mask_frames"])


def load_run(folder: Path) -> dict:
    """checkpoint.pt of a run: tensors and numbers only, whoever wrote it (`weights_only`)."""
    path = folder / "checkpoint.pt"
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise EncoderError(f"{path}: not a checkpoint of ours, or damaged; delete {folder} and train again") from error


def restore(model: MultiTask, saved: dict) -> None:
    """Put the weights of a checkpoint into a model: everything but the encoder, and the encoder where the run trained
    it."""
    found = model.load_state_dict(saved["model"], strict=False)
    missing = [name for name in found.missing_keys if not name.startswith("encoder.")]
    if missing or set(found.unexpected_keys) - {"log_sigma"}:
        raise EncoderError(f"checkpoint: {[*missing, *found.unexpected_keys]} do not fit the run's config.json")
    if "encoder" in saved:
        model.encoder.load_state_dict(saved["encoder"]["state_dict"])


def read(name: str, split: str, config: dict, skip_broken: bool = False) -> Corpus:
    """One split of one task of a run; says aloud what had to be left out."""
    fold = {"fold": config["fold"]} if TASKS[name].folds > 1 else {}
    corpus = TASKS[name].read(config["data"], split, skip_broken=skip_broken, **fold)
    if corpus.skipped:
        tqdm.write(f"{name} {split}: left out {len(corpus.skipped)} utterances, the first one: {corpus.skipped[0]}")
    return corpus


@torch.no_grad()
def examine(model: MultiTask, corpora: dict[str, Corpus], frozen: dict[str, FrozenFeatures | None], workers: int = 0,
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
            chunks = [[(i, None) for i in chunk] for chunk in reversed(sorted_batches(corpus))]
            loader = DataLoader(Chunks(corpus, chunks), batch_size=None, num_workers=workers, collate_fn=as_is)
            batches = tqdm(loader, f"{name}: predicting", unit="batch", leave=False, disable=quiet, delay=1)
        predictions = {utterance: corpus.decode(output)
                       for batch in batches for utterance, output in zip(batch.ids, model.predict(name, batch))}
        rows[name] = score(TASKS[name], corpus, predictions)
    return rows


def write_result(folder: Path, config: dict, seconds: float, rows: dict[str, list[dict]]) -> dict:
    """predictions/<TASK>.jsonl, then result.json of a finished run; its presence says that the run is done."""
    (folder / "predictions").mkdir(exist_ok=True)
    for name, items in rows.items():
        (folder / "predictions" / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    shown = {key: config[key] for key in ("scenario", "task", "left_out", "setting", "seed", "fold", "steps")}
    result = shown | {"seconds": round(seconds, 1), "metrics": {
        name: summarise(TASKS[name], items) for name, items in rows.items()}}
    temporary = folder / "result.tmp"
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, folder / "result.json")
    return result


# Table 1

def read_results(runs: Path) -> list[dict]:
    """result.json of every finished run, with its folder under the key "path"."""
    found = sorted(runs.glob("*/result.json"))
    return [{**json.loads(path.read_text()), "path": path.parent} for path in found]


def row_name(result: dict) -> str:
    """The row of Table 1 that a run belongs to."""
    some = "" if result["task"] == "all" else f" {result['task']}"
    return {"ssl": "(a) SSL", "control": f"(a+) SSL, more steps{some}", "mtl": f"(b-1) MTL{some or ' all'}",
            "leave-one-out": f"(b-2) all but {result['left_out']}", "transfer": "(c) transfer"}[result["scenario"]]


def table_cells(results: list[dict], intervals: bool = False) -> dict[str, dict[tuple, tuple]]:
    """{row: {(task, metric): (percent, low, high)}}; seeds and folds are averaged, and enter the interval (low, high,
    else None)."""
    gathered = {}
    for result in results:
        for task, metrics in result["metrics"].items():
            for metric, value in metrics.items():
                gathered.setdefault(row_name(result), {}).setdefault((task, metric), []).append((value, result))
    cells = {}
    for row, columns in gathered.items():
        for (task, metric), values in columns.items():
            low = high = None
            if intervals:
                reduce = next(m.reduce for m in TASKS[task].metrics if m.name == metric)
                pairs = [[json.loads(line)[metric] for line in open(result["path"] / "predictions" / f"{task}.jsonl")]
                         for _, result in values]
                if len({len(p) for p in pairs}) == 1:
                    _, low, high = (100 * x for x in bootstrap(pairs, reduce))
            cells.setdefault(row, {})[task, metric] = (sum(v for v, _ in values) / len(values), low, high)
    return cells


def table_rows(cells: dict, tasks: list[str]) -> list[list[str]]:
    """Table 1 as text: a heading, then one row per scenario. X = left out, — = not run; + and - = better and worse
    than (b-1)."""
    columns = [(TASKS[name], metric) for name in tasks for metric in TASKS[name].metrics]
    heading = ["scenario"] + [f"{task.name} {metric.name}{'↓' if metric.lower_is_better else '↑'}"
                              for task, metric in columns]
    order = ["(a) SSL", *sorted(r for r in cells if r.startswith(("(a+)", "(b-1)"))),
             *(f"(b-2) all but {name}" for name in TASKS), "(c) transfer"]
    baseline, rows = cells.get("(b-1) MTL all", {}), [heading]
    for row in order:
        if not any((task.name, metric.name) in cells.get(row, {}) for task, metric in columns):
            continue
        texts = [row]
        for task, metric in columns:
            if (task.name, metric.name) not in cells[row]:
                texts.append("X" if row.endswith(f"but {task.name}") else "—")
                continue
            value, low, high = cells[row][task.name, metric.name]
            text = f"{value:.2f}" + ("" if low is None else f" [{low:.1f}, {high:.1f}]")
            if row.startswith("(b-2)") and (task.name, metric.name) in baseline:
                reference = baseline[task.name, metric.name][0]
                text += "+" if metric.better(value, reference) else "-" if metric.better(reference, value) else " "
            texts.append(text)
        rows.append(texts)
    return rows


def print_table(rows: list[list[str]], markdown: bool = False) -> None:
    """Aligned columns for a terminal, or a Markdown table."""
    if markdown:
        rows = [rows[0], ["---"] + ["---:"] * (len(rows[0]) - 1), *rows[1:]]
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    for k, row in enumerate(rows):
        cells = [text.ljust(w) if c == 0 else text.rjust(w) for c, (text, w) in enumerate(zip(row, widths))]
        print("| " + " | ".join(cells) + " |" if markdown else "  ".join(cells))
        if k == 0 and not markdown:
            print("-" * (sum(widths) + 2 * len(widths) - 2))
    if any(row[0].startswith("(b-2)") for row in rows):
        print("\nX left out, — not run; + better, - worse than (b-1)")


def plot_layers(results: list[dict], out: Path) -> None:
    """One line of squares per run: the softmax weight of each hidden state in the features that its heads read."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    names, weights = [], []
    for result in results:
        saved = torch.load(result["path"] / "checkpoint.pt", weights_only=True, map_location="cpu")["model"]
        names.append(result["path"].name)
        weights.append(saved["layer_sum.weights"].softmax(0).numpy())
    fig, axis = plt.subplots(figsize=(1.5 + 0.55 * max(map(len, weights)), 1.2 + 0.28 * len(names)),
                             layout="constrained")
    image = axis.imshow(weights, cmap="Blues", vmin=0, aspect="auto")
    for y, row in enumerate(weights):
        for x, w in enumerate(row):
            axis.text(x, y, f"{w:.2f}"[1:], ha="center", va="center", fontsize=7,
                      color="white" if w > 0.6 * max(map(max, weights)) else "black")
    axis.set_yticks(range(len(names)), names)
    axis.set_xticks(range(len(weights[0])))
    axis.set_xlabel("hidden state (0 = input of the first transformer layer)")
    fig.colorbar(image, label="weight")
    out.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(out, dpi=150)


def plot_curves(results: list[dict], out: Path) -> None:
    """One panel per run: training losses, and the dev score where one was taken."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    rows = -(-len(results) // 4)
    fig, axes = plt.subplots(rows, min(4, len(results)), figsize=(12, 2.3 * rows + 0.5), squeeze=False,
                             layout="constrained")
    for axis in axes.flat[len(results):]:
        axis.set_visible(False)
    for axis, result in zip(axes.flat, results):
        lines = [json.loads(line) for line in open(result["path"] / "log.jsonl")]
        for name in result["metrics"]:
            points = [(line["step"], line["losses"][name]) for line in lines if name in line.get("losses", {})]
            steps, losses = zip(*points)
            smooth = [sum(losses[max(0, k - 9):k + 1]) / min(10, k + 1) for k in range(len(losses))]
            axis.plot(steps, smooth, linewidth=1, label=name)
        dev = [(line["step"], next(iter(line["dev"].values()))) for line in lines if "dev" in line]
        if dev:
            other = axis.twinx()
            other.plot(*zip(*dev), "k.-", markersize=3, linewidth=0.8)
            other.set_ylabel("dev, %", fontsize=7)
        axis.set_title(result["path"].name, fontsize=9)
        axis.set_yscale("log")
        axis.set_ylim(bottom=max(1e-3, axis.get_ylim()[0]))  # below that a loss says nothing more
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=6, frameon=False, ncols=3, title="loss, mean of ten", title_fontsize=6)
    for axis in axes[-1]:
        axis.set_xlabel("step", fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="score this run again and print its metrics")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="with --run: which split")
    parser.add_argument("--skip-broken", action="store_true", help="with --run: leave unreadable audio files out")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder with the runs")
    parser.add_argument("--table", action="store_true", help="print Table 1")
    parser.add_argument("--intervals", action="store_true", help="with --table: 95 %% bootstrap intervals")
    parser.add_argument("--markdown", action="store_true", help="with --table: as a Markdown table")
    parser.add_argument("--json", action="store_true", help="with --table: as JSON")
    parser.add_argument("--layers", action="store_true", help="plot which hidden states the heads draw on")
    parser.add_argument("--curves", action="store_true", help="plot losses and dev scores during training")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the plots")
    args = parser.parse_args()
    try:
        if args.run:
            config = json.loads((args.run / "config.json").read_text())
            corpora = {name: read(name, args.split, config, args.skip_broken) for name in config["tasks"]}
            model = build(config, {name: corpus.classes for name, corpus in corpora.items()}, args.run.parent)
            restore(model, load_run(args.run))
            rows = examine(model, corpora, {})
            print(json.dumps({name: summarise(TASKS[name], items) for name, items in rows.items()}, indent=1))
        if args.table or args.layers or args.curves:
            results = read_results(args.runs)
            if not results:
                raise EncoderError(f"{args.runs}: no finished run in this folder; python train.py makes one")
    except (OSError, DataError, EncoderError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if args.table and args.json:
        cells = table_cells(results, args.intervals)
        print(json.dumps({row: [{"task": task, "metric": metric, "percent": value, "low": low, "high": high}
                                for (task, metric), (value, low, high) in columns.items()]
                          for row, columns in cells.items()}, indent=1))
    elif args.table:
        print_table(table_rows(table_cells(results, args.intervals), list(TASKS)), args.markdown)
    if args.layers:
        plot_layers(results, args.out / "layers.png")
    if args.curves:
        plot_curves(results, args.out / "curves.png")


if __name__ == "__main__":
    main()

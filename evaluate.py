"""Evaluation: a trained run, one prediction per utterance, its scores (paper, Section 4).

    python evaluate.py --run runs/transfer-IC   # score a run again (--split dev, --data DIR)
    python evaluate.py --table                  # Table 1 of the finished runs (--intervals ...)
    python evaluate.py --summary                # figures/summary.png: all metrics (--paper)
    python evaluate.py --confusion              # figures/confusion.png: confusion matrices
    python evaluate.py --layers                 # figures/layers.png: hidden states of each task
    python evaluate.py --curves                 # figures/curves.png: losses and dev scores
    python evaluate.py --interpolation          # figures/interpolation.png: --interpolate A
"""

import argparse
import functools
import json
import os
from dataclasses import replace
from pathlib import Path

import torch

from batches import collate, length_sorted_batches, load_ahead
from corpus import Corpus
from engine.flags import as_path
from engine.frozen import ENCODING_SAMPLES, FrozenFeatures
from engine.launch import friendly_errors, progress, say
from engine.runs import (FORMAT, RunError, file_digest, load_checkpoint, read_config, read_json,
                         save_json_lines, save_result, weights_digest)
from engine.session import restore
from metrics import eer_threshold
from model import Hubert, MultiTask, load_encoder
from results import check_comparable, print_results, read_results, table_cells
from scenarios import RunConfig, build_model, load_config, load_run_encoder
from tasks import TASKS, read_corpus, score, summarise


PLOTS = {  # flag: what it plots, as in --help
    "summary": "(a), (b-1) and (c) with 95 %% intervals, one panel per metric",
    "confusion": "confusion matrices of tasks with few classes",
    "layers": "which hidden states the heads use",
    "curves": "losses and dev scores during training",
    "interpolation": "scores of (c) over A (train.py --interpolate A)"}


@torch.no_grad()
def predict_and_score(model: MultiTask, corpora: dict[str, Corpus],
                      features: dict[str, FrozenFeatures | None], workers: int = 0,
                      quiet: bool = False) -> dict[str, list[dict]]:
    """{task: one row (tasks.score) for every utterance}. Leaves the model in evaluation mode.

    Without cached features, the longest audio is encoded first: a lack of memory shows early.
    """
    model.eval()
    rows = {}
    for name, corpus in corpora.items():
        if features.get(name):
            batches = features[name].all_batches()
        else:
            everything = [(i, None) for i in range(len(corpus.utterances))]
            chunks = length_sorted_batches(corpus.lengths, everything, ENCODING_SAMPLES)
            loader = load_ahead(chunks[::-1], workers, functools.partial(collate, corpus))
            batches = progress(loader, f"{name}: predicting", unit="batch", leave=False,
                               disable=quiet, delay=1)
        predictions = {}
        for batch in batches:
            for utterance, output in zip(batch.ids, model.predict(name, batch)):
                predictions[utterance] = TASKS[name].decode(corpus.labels, output)
        rows[name] = score(TASKS[name], corpus, predictions)
    return rows


def dev_thresholds(model: MultiTask, dev: dict[str, Corpus],
                   features: dict[str, FrozenFeatures | None], workers: int = 0,
                   quiet: bool = False) -> dict[str, float]:
    """{task: the cosine threshold at the EER of dev}, for tasks with trials.

    predict.py uses it to decide "same speaker"; the reported EER needs no threshold.
    """
    with_trials = {name: corpus for name, corpus in dev.items() if corpus.trials}
    thresholds = {}
    for name, rows in predict_and_score(model, with_trials, features, workers, quiet).items():
        labels, cosines = [row["reference"] for row in rows], [row["prediction"] for row in rows]
        thresholds[name] = eer_threshold(labels, cosines)
    return thresholds


def write_result(folder: Path, config: RunConfig, seconds: float, rows: dict[str, list[dict]],
                 weights: str, constant: dict[str, dict], thresholds: dict[str, float]) -> None:
    """Write predictions/<TASK>.jsonl, then result.json, whose presence says that the run is done.

    result.json keeps a digest of each file of predictions and of the weights. `constant`: what the
    best constant answer scores, by task (tasks.constant_scores). `thresholds`: `dev_thresholds`.
    """
    digests = {}
    for name, items in rows.items():
        path = folder / "predictions" / f"{name}.jsonl"
        save_json_lines(path, items)
        digests[name] = file_digest(path)
    save_result(folder, {
        "format": FORMAT, "scenario": config.scenario, "task": config.label,
        "left_out": config.left_out, "setting": config.setting, "seed": config.seed,
        "fold": config.fold, "steps": config.steps, "seconds": round(seconds, 1),
        "metrics": {name: summarise(TASKS[name], items) for name, items in rows.items()},
        "constant": constant, "thresholds": thresholds, "predictions": digests,
        "weights": weights})


# The command line


def evaluate_again(folder: Path, split: str, data: Path | None) -> dict[str, dict[str, float]]:
    """Score a run on dev or test, with its own labels: {task: {metric: percent}}.

    `data`: where the datasets lie now. Raises RunError if the run is not finished, or if its
    encoder changed.
    """
    config, recorded = finished_config(folder), read_config(folder)["recorded"]
    if data and not data.is_dir():
        raise RunError(f"there is no folder {data}; name that of the datasets with --data")
    data = data or Path(recorded["data"])
    if not data.is_dir():
        raise RunError(f"there is no folder {data}, where the data of {folder} were; "
                       "name the new place with --data")
    model, inputs = load_run(folder, config)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    corpora = {}
    for name in inputs:
        corpus = read_corpus(name, data, split, config.fold, recorded["skip_broken"], None)
        corpora[name] = replace(corpus, labels=inputs[name].labels)
        if corpus.digest != config.data[name].get(split):
            say(f"note: {name}: the {split} data in {data} are not those of the run")
    rows = predict_and_score(model, corpora, {})
    return {name: summarise(TASKS[name], items) for name, items in rows.items()}


def finished_config(folder: Path) -> RunConfig:
    """The configuration of a finished run. Raises RunError if it is not there or not finished."""
    if not (folder / "config.json").exists():
        raise RunError(f"there is no run {folder}; python train.py makes runs")
    if not (folder / "result.json").exists():
        raise RunError(f"{folder} is not finished; the command that began it continues it")
    return load_config(folder)


def load_run(folder: Path, config: RunConfig) -> tuple[MultiTask, dict[str, Corpus]]:
    """The trained model of a run in evaluation mode, and {task: corpus without utterances}.

    Such a corpus says how audio is loaded and how an output of the head is decoded. Raises RunError
    if the run has no head of a task.
    """
    inputs = {}
    for name, fields in read_json(folder / "inputs.json").items():
        inputs[name] = Corpus(name, [], **fields)
    if not inputs:
        raise RunError(f"{folder} has no head of a task")
    encoder = load_trained_encoder(folder, config)
    model = build_model(config, encoder, {name: corpus.classes for name, corpus in inputs.items()})
    restore(model, folder)
    return model.eval(), inputs


def load_trained_encoder(folder: Path, config: RunConfig) -> Hubert:
    """The encoder under the heads of a finished run.

    (b) keeps it in its checkpoint. Raises RunError if the frozen encoder of another run changed
    since, whether it is a pretrained one or, in (c), that of (b-2).
    """
    if config.trains_encoder:
        return load_encoder(str(folder / "checkpoint.pt"))
    saved, runs = read_config(folder), Path(os.path.abspath(folder)).parent
    if config.encoder_run:
        if not (runs / config.encoder_run).is_dir():
            runs = folder.resolve().parent  # `folder` is a link to a run elsewhere
        source = runs / config.encoder_run
        if not source.is_dir():
            raise RunError(f"{folder} needs the encoder of {source}; put that run beside it")
        before = saved["built_on_weights"].get(config.encoder_run)
        if weights_digest(load_checkpoint(source)) != before:
            raise RunError(f"the weights of {source} changed since {folder} was trained")
    pretrained = Path(saved["recorded"]["encoder"])  # absolute, or a name such as "tiny"
    needs_pretrained = not config.encoder_run or config.interpolate < 1
    if needs_pretrained and pretrained.is_absolute() and not pretrained.exists():
        raise RunError(f"the encoder of {folder} was {pretrained}, which is missing; put it back, "
                       f"or write its new place into the part \"recorded\" of its config.json")
    return load_run_encoder(config, str(pretrained), runs)



def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=as_path, help="score this run again and print its metrics")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="with --run")
    parser.add_argument("--data", type=as_path, help="with --run: where the datasets lie now")
    parser.add_argument("--runs", type=as_path, default=Path("runs"), help="folder with the runs")
    parser.add_argument("--table", action="store_true", help="print Table 1")
    parser.add_argument("--intervals", action="store_true",
                        help="with --table: 95 %% bootstrap intervals")
    parser.add_argument("--markdown", action="store_true", help="with --table: as Markdown")
    parser.add_argument("--json", action="store_true", help="with --table: as JSON")
    parser.add_argument("--paper", action="store_true",
                        help="with --summary: the paper's numbers in a part of their own")
    for name, text in PLOTS.items():
        parser.add_argument(f"--{name}", action="store_true", help=f"plot {text}")
    parser.add_argument("--out", type=as_path, default=Path("figures"), help="folder for the plots")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    of_all_runs = args.table or any(getattr(args, name) for name in PLOTS)
    if not (args.run or of_all_runs):
        parser.error(f"nothing to do: give --run, --table, --{', --'.join(PLOTS)}")
    if args.paper and not args.summary:
        parser.error("--paper goes with --summary")
    with friendly_errors(args.debug, needs_output=True):
        if args.run:
            print(json.dumps(evaluate_again(args.run, args.split, args.data), indent=1))
        if of_all_runs:
            show_results(args)


def show_results(args: argparse.Namespace) -> None:
    """The table and the plots of all finished runs. Raises RunError if there is none."""
    from tools.plots import plot_curves, plot_layers, save_plot
    from tools.scores import plot_confusion, plot_interpolation, plot_summary

    results = read_results(args.runs)
    if not results:
        raise RunError(f"no finished run in {args.runs}; python train.py makes one")
    check_comparable(results)
    if args.table and args.json:
        entries = []
        for row, columns in table_cells(results, args.intervals).items():
            for (task, metric), (value, low, high) in columns.items():
                entries.append({"row": row, "task": task, "metric": metric, "percent": value,
                                "low": low, "high": high})
        print(json.dumps(entries, indent=1))
    elif args.table:
        print_results(results, list(TASKS), args.intervals, args.markdown)
    plots = {"summary": functools.partial(plot_summary, with_paper=args.paper),
             "confusion": plot_confusion, "layers": plot_layers, "curves": plot_curves,
             "interpolation": plot_interpolation}
    for name in PLOTS:
        if getattr(args, name):
            save_plot(plots[name](results), args.out / f"{name}.png")


if __name__ == "__main__":
    main()

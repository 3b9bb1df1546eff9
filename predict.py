"""Predictions for any audio file, by the heads of finished runs. No training data are needed.

    python predict.py my.wav --run runs/mtl-all
    python predict.py a.wav b.flac --run runs/mtl-all --run runs/ssl-ASV --task ASV IC --json

Audio is loaded and encoded as in evaluation; engine/recording.py encodes long files in windows.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from engine.files import check
from engine.flags import as_path
from engine.launch import friendly_errors
from engine.recording import encode_file
from engine.runs import read_result
from evaluate import finished_config, load_run
from options import task_names
from tasks import TASKS


@torch.no_grad()
def predict(folder: Path, paths: list[str], tasks: list[str]) -> list[dict]:
    """One row per file and head of a finished run: the answer, how sure it is (Head.certainty).

    The row of an embedding also has its cosine with each file, and the files of the same speaker:
    those that pass the threshold. Raises DataError, EncoderError, RunError.
    """
    model, corpora = load_run(folder, finished_config(folder))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    corpora, rows = {name: corpora[name] for name in corpora if name in tasks}, []
    for path in paths:
        for name, (features, frames) in encode_file(model, path, corpora).items():
            head = model.heads[name]
            answer = TASKS[name].decode(corpora[name].labels, head.predict(features, frames)[0])
            rows.append({"file": path, "run": folder.name, "task": name, "answer": answer,
                         "certainty": head.certainty(features, frames)[0],
                         "certainty_name": head.certainty_name})
    for name, threshold in read_result(folder)["thresholds"].items():
        own = [row for row in rows if row["task"] == name]
        for row in own:
            cosines = {peer["file"]: float(np.dot(row["answer"], peer["answer"])) for peer in own}
            passed = [path for path, cosine in cosines.items() if cosine >= threshold]
            row.update(threshold=threshold, cosines=cosines, same_speaker=passed)
    return rows


def answer_text(row: dict) -> str:
    """The answer of a row, and how sure the head is, in one line."""
    answer = row["answer"]
    if "cosines" in row:
        return f"an embedding of {len(answer)} numbers"
    if answer and isinstance(answer[0], list):
        answer = ", ".join(f"speaker {k} {start:.2f}-{end:.2f} s" for k, start, end in answer)
    text = answer if isinstance(answer, str) else " ".join(answer)
    numbers = " ".join(f"{number:.2f}" for number in row["certainty"])
    return f"{text}  ({row['certainty_name']} {numbers})"


def show(rows: list[dict]) -> None:
    """Print a block for each file, then the matrix of cosines, with * for the same speaker."""
    for path in dict.fromkeys(row["file"] for row in rows):
        print(path)
        for row in rows:
            if row["file"] == path:
                print(f"  {row['run']}  {row['task']:4} {answer_text(row)}")
    for row in rows:
        if len(row.get("cosines", [])) > 1:
            cells = [f"{cosine:6.3f}{'*' if path in row['same_speaker'] else ' '}"
                     for path, cosine in row["cosines"].items()]
            note = f"(*: {row['threshold']:.3f} or more)"
            print(f"  {row['run']}  {row['task']:4}", *cells, row["file"], note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio that soundfile reads")
    parser.add_argument("--run", type=as_path, action="append", required=True,
                        help="a finished run")
    parser.add_argument("--task", nargs="+", type=task_names, default=[], help="only these heads")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    files, tasks = list(dict.fromkeys(args.files)), sum(args.task, [])
    with friendly_errors(args.debug, needs_output=True):
        there = [name for folder in args.run for name in finished_config(folder).tasks]
        check(set(tasks) <= set(there), f"--task: these runs have heads for {' '.join(there)} only")
        rows = [row for run in args.run for row in predict(run, files, tasks or there)]
        if args.json:
            print(json.dumps(rows, indent=1))
        else:
            show(rows)


if __name__ == "__main__":
    main()

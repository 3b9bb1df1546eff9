"""What the tests share: a toy corpus of a few utterances per split, and train.py run in this process with small settings."""

import json
import sys
from pathlib import Path

import pytest
import torch

import toy
import train

torch.set_num_threads(1)
SMALL = (
    "--ssl-steps 2 --ssl-batch 2 --mtl-steps 2 --mtl-warmup 1 --mtl-batch 2 --transfer-steps 2 --transfer-warmup 1 "
    "--transfer-batch 2 --evaluate-every 1 --save-every 1 --log-every 1 --jobs 1 --device cpu --setting tiny "
    "--encoder random-tiny"
).split()


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """A nine-task corpus in the real layouts, with a handful of utterances per split."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    toy.write_corpus(folder, seed=0, scale=0.02)
    return folder


@pytest.fixture(scope="session")
def workshop(root, tmp_path_factory) -> Path:
    """A folder with runs/ and figures/: all 28 runs of Table 1, two steps each."""
    out = tmp_path_factory.mktemp("workshop")
    old, sys.argv = (
        sys.argv,
        [
            "train.py",
            "--scenario",
            "all",
            "--data",
            str(root),
            "--runs",
            str(out / "runs"),
            "--out",
            str(out / "figures"),
            *SMALL,
        ],
    )
    train.main()
    sys.argv = old
    return out


@pytest.fixture
def run_train(root, monkeypatch):
    """run_train(runs, "--scenario", "ssl", ...) runs train.py with small settings; SystemExit is what the shell would see."""

    def run(runs: Path, *flags: str) -> None:
        monkeypatch.setattr(
            sys,
            "argv",
            ["train.py", "--data", str(root), "--runs", str(runs), *SMALL, *map(str, flags)],
        )
        train.main()

    return run


def result(runs: Path, name: str) -> dict:
    """result.json of a run."""
    return json.loads((runs / name / "result.json").read_text())

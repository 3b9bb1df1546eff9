"""What the tests share: a toy corpus of a few utterances per split, programs in this process."""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import toy
import train
from engine.runs import write_config
from evaluate import write_result
from model import TINY, random_encoder
from scenarios import SETTINGS, Inputs, Run, make_config

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
SPLITS = ("train", "dev", "test")
NARROW = TINY | {  # an encoder with a fraction of the work of the tiny one
    "extractor_conv_layer_config": [(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2,
    "encoder_embed_dim": 32, "encoder_num_layers": 2, "encoder_ff_interm_features": 64}
FOLDER = tempfile.TemporaryDirectory(prefix="encoder-of-tests-")
ENCODER = f"{FOLDER.name}/encoder.pt"
torch.save(random_encoder(NARROW).checkpoint(), ENCODER)
SMALL = f"""--ssl-steps 2 --ssl-batch 2 --mtl-steps 2 --mtl-warmup 1 --mtl-batch 2
    --transfer-steps 2 --transfer-warmup 1 --transfer-batch 2 --evaluate-every 1 --save-every 1
    --log-every 1 --jobs 1 --device cpu --setting tiny --encoder {ENCODER}""".split()
# Probabilities that two speakers are active, in twelve frames
TWO_SPEAKERS = [(0.9, 0.1), (0.8, 0.2), (0.4, 0.2), (0.7, 0.6), (0.9, 0.7), (0.2, 0.9),
                (0.5, 0.9), (0.5, 0.45), (0.9, 0.9), (0.1, 0.9), (0.1, 0.1), (0.6, 0.3)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks files with tests that need `workshop`, so that `make test` makes it in one process."""
    files = {item.path for item in items if "workshop" in item.fixturenames}
    for item in items:
        if item.path in files:
            item.add_marker("runs")


@pytest.fixture(autouse=True)
def no_page(monkeypatch) -> None:
    """train.py writes no page, which takes seconds; `workshop`, made before, has one."""
    monkeypatch.setattr("tools.report.write_report", lambda *arguments: None)


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """A nine-task corpus in the real layouts, with a handful of utterances per split."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    toy.write_corpus(folder, seed=0, scale=0.02)
    return folder


def run_main(main, *flags):
    """main() with these flags on the command line; SystemExit is what the shell would see."""
    program = main.__module__.replace(".", "/") + ".py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *map(str, flags)])
        return main()


def call_train(*flags) -> None:
    """train.py in this process, with small settings."""
    run_main(train.main, *SMALL, *flags)


@pytest.fixture
def output_of(capsys):
    """output_of(run, *arguments): what run(*arguments) prints."""

    def output(run, *arguments) -> str:
        capsys.readouterr()
        run(*arguments)
        return capsys.readouterr().out

    return output


@pytest.fixture
def refused(capsys):
    """refused(run, arguments, words): run(*arguments) exits with code 2 and one line on stderr.

    The line has all the words. With alone=False other lines may precede it: the usage that
    argparse prints, a progress bar."""

    def refuse(run, arguments, *words: str, alone: bool = True) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run(*arguments)
        lines = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2 and lines, lines
        assert len(lines) == 1 or not alone, lines
        for word in words:
            assert word in lines[-1], lines
        return lines[-1]

    return refuse


@pytest.fixture(scope="session")
def workshop(root, tmp_path_factory) -> Path:
    """A folder with runs/ and figures/: all 28 runs of Table 1 and a variant, two steps each."""
    out = tmp_path_factory.mktemp("workshop")
    folders = ("--data", root, "--runs", out / "runs", "--out", out / "figures")
    call_train("--scenario", "all", "--affinity-every", "1", *folders)
    call_train("--scenario", "transfer", "--task", "IC", "--interpolate", "0.5", *folders)
    return out


@pytest.fixture
def runs(workshop) -> Path:
    """All runs of Table 1, two steps each."""
    return workshop / "runs"


@pytest.fixture
def run_train(root):
    """run_train(runs, "--scenario", "ssl", ...): train.py with small settings on the toy corpus."""

    def run(runs: Path, *flags) -> None:
        call_train("--data", root, "--runs", runs, *flags)

    return run


def result(runs: Path, name: str) -> dict:
    """result.json of a run."""
    return json.loads((runs / name / "result.json").read_text())


class FakeData(dict):
    """A digest for each split of any task."""

    def __missing__(self, key: str) -> dict:
        return dict.fromkeys(("train", "dev", "test"), f"data of {key}")


INPUTS = Inputs(encoder="0" * 32, data=FakeData(), gb_all_frames={}, gb_means={}, cache_gb=50.0)


def fake_run(
    runs: Path, run: Run, pairs: dict, setting=SETTINGS["tiny"], inputs=INPUTS, **constant
):
    """A finished run; `pairs` is {task: {metric: [two numbers of each utterance]}}."""
    config = make_config(run, setting, inputs)
    write_config(runs / run.name, config.to_json(), {"encoder": "tiny"})
    rows = {}
    for task, metrics in pairs.items():
        rows[task] = []
        for i, numbers in enumerate(zip(*metrics.values(), strict=True)):
            row = {"id": str(i), "reference": str(i), "prediction": ""}
            rows[task].append(row | dict(zip(metrics, numbers)))
    write_result(runs / run.name, config, 1.0, rows, f"weights of {run.name}", constant, {})
    return runs / run.name

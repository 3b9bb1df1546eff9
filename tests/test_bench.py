"""The benchmark runs, and what it divides by is right."""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, run_main
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tools import bench
from model import BASE, TINY, Hubert



@pytest.fixture
def small(monkeypatch):
    """A tenth of the audio, and narrow heads."""
    mix = {task: (seconds / 10, *rest) for task, (seconds, *rest) in bench.MIX.items()}
    mix["SD"] = 2.0, 2, torch.ones(200, 2)
    monkeypatch.setattr(bench, "MIX", mix)
    monkeypatch.setattr(bench, "EDGE", {"cpu": 128})
    narrow = {
        name: replace(task, superb=replace(task.superb, hidden=16))
        for name, task in bench.TASKS.items()
    }
    monkeypatch.setattr(bench, "TASKS", narrow)


def run_bench(*arguments: str) -> None:
    """python -m tools.bench, on a few utterances."""
    small = ["--encoder", "tiny", "--device", "cpu", "--utterances", "4", "--repeats", "1"]
    run_main(bench.main, *small, *arguments)


def test_json_has_a_row_for_each_measurement_with_values_that_can_be_true(small, output_of):
    lines = output_of(run_bench, "--json").splitlines()
    rows = {row["what"]: row for row in map(json.loads, lines)}
    assert set(rows) >= {
        "matrix product, fp32",
        "reading .flac, one core",
        "encoder, fp32",
        "encoder, bf16",
        "frozen IC head, first epoch",
        "frozen IC head, later epoch",
        "MTL step, fp32",
        "MTL step, bf16",
        "MTL step by task, fp32",
    }
    assert all(row["ms"] > 0 and row["GB"] > 0 for row in rows.values())
    assert all(
        row["% padding"] == 0 for name, row in rows.items() if name.startswith(("encoder", "MTL"))
    )
    assert rows["matrix product, fp32"]["x real time"] is None
    audio = sum(seconds * (1 if task == "SD" else 2) for task, (seconds, *_) in bench.MIX.items())
    step = rows["MTL step, fp32"]
    assert step["x real time"] * step["ms"] / 1000 == pytest.approx(audio, rel=1e-3)


def test_the_table_is_aligned(small, output_of):
    heading, *lines = output_of(run_bench).splitlines()
    end = heading.index("ms") + 2
    assert len(lines) == 12 and all(line[end - 1].isdigit() and line[end] == " " for line in lines)


def test_arguments_that_make_no_sense_are_one_sentence(monkeypatch, refused):
    for flag, text, problem in (
        ("--repeats", "0", "0 is out of range: 1 or more"),
        ("--utterances", "-1", "-1 is out of range: 1 or more"),
        ("--repeats", "two", "two is not a whole number"),
    ):
        refused(run_bench, [flag, text], f"error: argument {flag}: {problem}", alone=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    error = refused(run_bench, ["--device", "cuda"], alone=False)
    assert error.endswith("error: --device cuda: PyTorch finds no GPU")


def test_bench_starts_as_a_module():
    command = [sys.executable, "-m", "tools.bench", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and "x real time" in shown.stdout and shown.stderr == ""


def test_the_fastest_of_several_calls_counts():
    calls = []
    setting = argparse.Namespace(encoder="tiny", device="cpu", repeats=3, utterances=1)
    seconds = bench.Bench(setting, None).fastest(lambda: calls.append(time.sleep(len(calls) / 50)))
    assert len(calls) == 3 and seconds < 0.01


@pytest.mark.parametrize("sizes", [TINY, BASE], ids=["tiny", "base"])
def test_the_operations_of_the_encoder_are_those_that_pytorch_counts(sizes):
    with torch.device("meta"):  # shapes without numbers
        encoder, waves = Hubert(sizes).eval(), torch.empty(1, 20_000)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder(waves, torch.tensor([20_000]))
    D, K = sizes["encoder_embed_dim"], sizes["encoder_pos_conv_kernel"]
    pieces = -(
        -(62 + K // 2) // (K + 1)
    )  # of the positional convolution, each with K + 1 complex frequencies
    needed = (
        counter.get_total_flops() - 2 * pieces * (K + 1) * D**2 // sizes["encoder_pos_conv_groups"]
    )
    assert bench.encoder_operations(sizes, 20_000) == pytest.approx(needed, rel=0.01)

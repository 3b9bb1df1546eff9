"""Variants of (b) and (c): weights between HuBERT and (b-2), other choices of a checkpoint."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import evaluate
from conftest import INPUTS, fake_run, result, run_main
from engine.frozen import cache_states
from engine.runs import RunError, save_checkpoint
from model import TINY, encoder_digest, load_encoder, random_encoder
from results import row_name
from scenarios import SETTINGS, Run, load_config, load_run_encoder, make_config, vary
from tasks import TASKS

ALL = tuple(TASKS)
TRANSFER = Run("transfer", ("KS",), "KS")

# Interpolation of weights


def test_a_variant_shares_no_folder_and_no_row():
    runs = [TRANSFER, Run("transfer", ("KS",), "KS", universe=("IC", "KS")), Run("mtl", ALL)]
    for share in (0, 0.25, 0.5, 1):
        for run in list(runs[:2]):
            runs.append(replace(run, interpolate=share))
    configs = [make_config(run, SETTINGS["tiny"], INPUTS) for run in set(runs)]
    assert len({config.run.name for config in configs}) == len(configs) == 9
    assert len({row_name(config) for config in configs}) == len(configs)
    half = make_config(replace(TRANSFER, interpolate=0.5), SETTINGS["tiny"], INPUTS)
    assert (half.run.name, row_name(half)) == ("transfer-KS-A0.5", "(c) transfer, A = 0.5")


def test_only_the_encoder_of_transfer_is_interpolated():
    setting = replace(SETTINGS["tiny"], interpolate=0.5)
    run = vary(TRANSFER, setting)
    assert run.interpolate == 0.5 and run.leave_one_out("KS") == TRANSFER.leave_one_out("KS")
    for other in (Run("ssl", ("KS",)), Run("mtl", ALL), TRANSFER.leave_one_out("KS")):
        assert vary(other, setting) == other


def interpolated(runs: Path, share: float):
    """The encoder of (c), where HuBERT is `tiny` and (b-2) has random weights."""
    inputs = replace(INPUTS, encoder=encoder_digest(load_encoder("tiny")))
    config = make_config(replace(TRANSFER, interpolate=share), SETTINGS["tiny"], inputs)
    encoder = random_encoder(TINY, seed=3).checkpoint()
    state = {"model": {}, "step": 1, "best": None, "seconds": 0.0, "encoder": encoder}
    save_checkpoint(runs / config.encoder_run, state)
    return load_run_encoder(config, "tiny", runs)


def test_the_interpolated_encoder_is_exact_at_both_ends(tmp_path):
    before, after = load_encoder("tiny"), random_encoder(TINY, seed=3)
    assert encoder_digest(interpolated(tmp_path, 0.0)) == encoder_digest(before)
    assert encoder_digest(interpolated(tmp_path, 1.0)) == encoder_digest(after)
    for name, weight in interpolated(tmp_path, 0.25).state_dict().items():
        expected = 0.25 * after.state_dict()[name] + 0.75 * before.state_dict()[name]
        assert torch.equal(weight, expected), name


def test_an_interpolated_encoder_needs_the_pretrained_one_as_it_was(tmp_path):
    config = make_config(replace(TRANSFER, interpolate=0.0), SETTINGS["tiny"], INPUTS)
    with pytest.raises(RunError, match="weights of tiny changed since transfer-KS-A0 was begun"):
        load_run_encoder(config, "tiny", tmp_path)


def test_an_interpolated_run_is_read_back_as_it_was_trained(runs):
    folder, finetuned = runs / "transfer-IC-A0.5", runs / "leave-one-out-IC" / "checkpoint.pt"
    encoder = evaluate.load_trained_encoder(folder, load_config(folder))
    before, after = load_encoder("random-tiny").state_dict(), load_encoder(str(finetuned))
    moved = 0
    for name, weight in after.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], 0.5 * weight + 0.5 * before[name]), name
        moved += not torch.equal(weight, before[name])
    assert moved > 10
    assert evaluate.evaluate_again(folder, "test", None) == result(runs, folder.name)["metrics"]


def test_the_encoder_of_another_share_has_a_cache_of_its_own(root, tmp_path):
    corpus, files = TASKS["KS"].read(root, "dev"), set()
    for share in (0.0, 0.5, 1.0):
        encoder = interpolated(tmp_path, share).requires_grad_(False)
        cache_states(encoder, corpus, False, True, tmp_path / "cache", 1.0, quiet=True)
        files.add(len(list((tmp_path / "cache").glob("*.f32"))))
    assert files == {1, 2, 3}


def test_the_table_and_a_figure_show_the_shares(runs, tmp_path, output_of, refused):
    shutil.copytree(runs / "transfer-IC", tmp_path / "transfer-IC")
    figure = ["--runs", tmp_path, "--out", tmp_path / "figures", "--interpolation"]
    refused(run_main, [evaluate.main, *figure], "two runs of (c)", "--interpolate 0.5")
    shutil.copytree(runs / "transfer-IC-A0.5", tmp_path / "transfer-IC-A0.5")
    printed = output_of(run_main, evaluate.main, *figure, "--table")
    rows = [line.split("  ")[0] for line in printed.splitlines()]
    assert rows[-2:] == ["(c) transfer", "(c) transfer, A = 0.5"]
    assert (tmp_path / "figures" / "interpolation.png").exists()


def test_points_of_a_curve_have_the_same_seeds(tmp_path, refused):
    percent = {"KS": {"acc": [[1, 1], [0, 1]]}}
    fake_run(tmp_path, TRANSFER, percent)
    fake_run(tmp_path, replace(TRANSFER, interpolate=0.5, seed=1), percent)
    plot = ["--runs", tmp_path, "--out", tmp_path / "figures", "--interpolation"]
    refused(run_main, [evaluate.main, *plot], "transfer-KS", "no seed", "[0.5, 1.0]")

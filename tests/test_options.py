"""Options of training: rates, frozen layers, parts of an update, scale, evaluation in (b)."""


from dataclasses import replace

import pytest
import torch

from conftest import ENCODER, INPUTS, result
from engine.runs import load_checkpoint, read_log
from evaluate import load_run
from model import load_encoder
from options import parse_arguments, say_if_rates_stay_low
from scenarios import SETTINGS, Run, load_config, make_config, scaled
from tasks import TASKS
from train import make_optimizer

MTL = "--scenario mtl --tasks PR,KS --heads fresh".split()


def trained(runs) -> dict:
    """The weights of the finetuned encoder of a run of PR and KS."""
    return load_checkpoint(runs / "mtl-PR+KS")["encoder"]["state_dict"]


def test_the_encoder_has_its_own_rate(run_train, tmp_path):
    run_train(tmp_path, *MTL, "--encoder-lr", "1e-12")
    start = load_encoder(ENCODER).state_dict()
    for name, tensor in trained(tmp_path).items():
        assert (tensor - start[name]).abs().max() < 1e-9, name
    heads = load_checkpoint(tmp_path / "mtl-PR+KS")["model"]
    assert heads["layer_sum.weights"].abs().max() > 1e-5  # it starts at 0 and has the rate --mtl-lr


def test_without_a_rate_of_its_own_the_encoder_has_that_of_the_heads():
    for setting in SETTINGS.values():
        config = make_config(Run("mtl", tuple(TASKS)), setting, INPUTS)
        assert config.encoder_lr == config.lr
        assert make_config(Run("ssl", ("KS",)), setting, INPUTS).encoder_lr is None


def test_the_settings_tiny_and_study_share_the_heads_of_a():
    for name in TASKS:
        run = Run("ssl", (name,))
        tiny = make_config(run, SETTINGS["tiny"], INPUTS)
        assert make_config(run, SETTINGS["study"], INPUTS) == tiny
    run = Run("mtl", tuple(TASKS))
    assert make_config(run, SETTINGS["tiny"], INPUTS) != make_config(run, SETTINGS["study"], INPUTS)


def test_first_layers_stay_as_they_were_if_they_are_frozen(run_train, tmp_path):
    run_train(tmp_path, *MTL, "--freeze-layers", "1", "--feature-grad-mult", "1")
    start = load_encoder(ENCODER).state_dict()
    moved = {name for name, tensor in trained(tmp_path).items()
             if not torch.equal(tensor, start[name])}
    layers = {name.split(".")[3] for name in moved}
    assert "0" not in layers and "1" in layers
    assert all(name.startswith("encoder.transformer.layers.") for name in moved), moved


def test_an_encoder_whose_layers_are_all_frozen_is_refused(run_train, tmp_path, refused):
    command = [*MTL, "--freeze-layers", "9"]
    refused(run_train, [tmp_path, *command], "--freeze-layers 9", "has 2 layers", "control")


@pytest.mark.parametrize("weighting", ["pcgrad", "uncertainty"])
def test_parts_of_an_update_fit_only_the_plain_sum(run_train, tmp_path, refused, weighting):
    command = [*MTL, "--accumulate", "2", "--weighting", weighting]
    refused(run_train, [tmp_path, *command], "--accumulate 2", weighting)
    command[1] = "control"  # it sums losses like (b)
    refused(run_train, [tmp_path, *command], "--accumulate 2", weighting)


def test_an_update_in_two_parts_reads_the_utterances_of_the_whole_batch(run_train, tmp_path):
    seen = []
    for flags in ("--mtl-batch 4", "--mtl-batch 2 --accumulate 2"):
        runs = tmp_path / str(len(seen))
        run_train(runs, *MTL, *flags.split())
        seen.append([row["losses"] for row in read_log(runs / "mtl-PR+KS")])
    # Dropout differs, so losses are close and not equal; update 0 has rate 0.
    assert seen[0][0] == pytest.approx(seen[1][0], rel=0.1)


def test_the_setting_study_is_tiny_with_four_times_the_updates_of_b(monkeypatch):
    monkeypatch.setattr("sys.argv", "train.py --scenario mtl --setting study".split())
    _, setting, options = parse_arguments("")
    assert (setting.mtl_steps, setting.encoder, options.save_every) == (1_200, "tiny", 100)


def test_a_tilde_in_a_flag_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = "--scenario mtl --runs=~/runs --out=~/figures --data=~/data"
    monkeypatch.setattr("sys.argv", ["train.py", *flags.split()])
    _, _, options = parse_arguments("")
    found = [options.runs, options.out, options.data]
    assert found == [tmp_path / name for name in ("runs", "figures", "data")]


def test_several_seeds_are_trained_at_the_same_time(run_train, tmp_path, monkeypatch):
    together = []

    def one_by_one(function, items, jobs):
        together.append(list(items))
        for run in items.values():
            function(run)

    monkeypatch.setattr("train.run_parallel", one_by_one)
    run_train(tmp_path, *MTL, "--seed", "0", "1", "--jobs", "2")
    assert together == [["mtl-PR+KS", "mtl-PR+KS-seed1"]]
    assert all((tmp_path / name / "result.json").exists() for name in together[0])


def test_scale_multiplies_updates_warm_ups_and_intervals():
    half = replace(SETTINGS["paper"], scale=0.5)
    config = make_config(Run("mtl", tuple(TASKS)), half, INPUTS)
    assert (config.steps, config.warmup, config.evaluate_every) == (100_000, 2_500, None)
    config = make_config(Run("ssl", ("PR",)), half, INPUTS)
    assert (config.steps, config.evaluate_every, config.warmup) == (50_000, 500, None)
    config = make_config(Run("transfer", ("PR",), "PR"), half, INPUTS)
    assert (config.steps, config.warmup, config.evaluate_every) == (100_000, 2_500, 2_500)
    assert scaled(0, half) == 0 and scaled(1, half) == 1  # a warm-up of 0 is none


def test_a_warm_up_that_is_longer_than_the_training_is_said(capsys):
    paper = SETTINGS["paper"]
    say_if_rates_stay_low("mtl", replace(paper, mtl_steps=1_000))
    assert "--mtl-steps 1000 end within the warm-up, --mtl-warmup 5000" in capsys.readouterr().out
    say_if_rates_stay_low("transfer", replace(paper, transfer_steps=5_000))
    assert "--transfer-steps 5000" in capsys.readouterr().out
    say_if_rates_stay_low("all", paper)
    say_if_rates_stay_low("ssl", replace(paper, mtl_steps=1))
    assert capsys.readouterr().out == ""


def test_the_table_says_that_updates_were_scaled(run_train, tmp_path, output_of):
    printed = output_of(run_train, tmp_path, *MTL, "--mtl-steps", "20", "--scale", "0.1")
    assert "all numbers of updates times 0.1 (--scale 0.1)" in printed
    config = load_config(tmp_path / "mtl-PR+KS")
    assert (config.steps, config.scale) == (2, 0.1)


def test_scores_on_dev_and_affinities_during_mtl_change_nothing_but_the_log(run_train, tmp_path):
    with_dev, without = tmp_path / "with", tmp_path / "without"
    run_train(with_dev, *MTL, "--mtl-evaluate-every", "1", "--affinity-every", "2")
    run_train(without, *MTL)
    assert result(with_dev, "mtl-PR+KS")["weights"] == result(without, "mtl-PR+KS")["weights"]
    rows = [row for row in read_log(with_dev / "mtl-PR+KS") if "dev" in row]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["dev"].keys() == {"PR", "KS"} and rows[0]["dev"]["KS"].keys() == {"acc"}
    assert not any("dev" in row for row in read_log(without / "mtl-PR+KS"))
    (row,) = [row for row in read_log(with_dev / "mtl-PR+KS") if "affinity" in row]
    assert row["step"] == 2 and row["affinity"].keys() == {"PR", "KS"}


def test_the_optimizer_has_each_trained_parameter_once(workshop):
    folder = workshop / "runs" / "mtl-all"
    config = load_config(folder)
    model, _ = load_run(folder, config)
    groups = make_optimizer(model, config).param_groups
    found = [p for group in groups for p in group["params"]]
    assert {id(p) for p in found} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(found) == len(set(map(id, found)))

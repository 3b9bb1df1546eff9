"""Variants of (b) and (c): weights between HuBERT and (b-2), other choices of a checkpoint."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import evaluate
from conftest import ENCODER, INPUTS, fake_run, result, run_main
from engine.frozen import cache_states
from engine.runs import RunError, load_checkpoint, read_log, save_checkpoint
from engine.session import Session
from model import TINY, encoder_digest, load_encoder, random_encoder
from results import read_results, row_name, table_cells, table_rows
from scenarios import SETTINGS, Run, load_config, load_run_encoder, make_config, vary
from tasks import TASKS, mean_log_error
from train import keep_selected

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


def test_a_run_is_read_through_a_link_and_from_inside(runs, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(runs / "transfer-IC")
    expected = result(runs, "transfer-IC")["metrics"]
    assert evaluate.evaluate_again(tmp_path / "link", "test", None) == expected
    monkeypatch.chdir(runs / "transfer-IC")
    assert evaluate.evaluate_again(Path("."), "test", None) == expected


def test_a_missing_encoder_or_run_or_data_folder_is_one_sentence(runs, tmp_path, refused):
    for name in ("transfer-IC", "ssl-IC"):
        shutil.copytree(runs / name, tmp_path / name)
    again = [evaluate.main, "--run"]
    refused(run_main, [*again, tmp_path / "transfer-IC"], "leave-one-out-IC", "beside it")
    config = tmp_path / "ssl-IC" / "config.json"
    saved = json.loads(config.read_text())
    assert Path(saved["recorded"]["encoder"]).is_absolute()
    saved["recorded"]["encoder"] = "/nowhere/encoder.pt"
    config.write_text(json.dumps(saved))
    refused(run_main, [*again, tmp_path / "ssl-IC"], "was /nowhere/encoder.pt, which is missing",
            'write its new place into the part "recorded"')
    refused(run_main, [*again, tmp_path], "there is no run", str(tmp_path))
    refused(run_main, [*again, tmp_path / "ssl-IC", "--data", "/nowhere"], "no folder /nowhere")
    (tmp_path / "ssl-IC/result.json").unlink()
    refused(run_main, [*again, tmp_path / "ssl-IC"], "ssl-IC is not finished")


def test_an_interpolated_run_is_read_back_as_it_was_trained(runs):
    folder, finetuned = runs / "transfer-IC-A0.5", runs / "leave-one-out-IC" / "checkpoint.pt"
    encoder = evaluate.load_trained_encoder(folder, load_config(folder))
    before, after = load_encoder(ENCODER).state_dict(), load_encoder(str(finetuned))
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


# Which weights of (b) are reported

MTL = "--scenario mtl --tasks PR,KS --heads fresh --mtl-evaluate-every 1 --mtl-steps 3".split()


def test_the_mean_relative_score_is_a_mean_of_logarithms():
    errors = {"KS": {"acc": 90.0}, "PR": {"per": 40.0}}
    assert math.exp(mean_log_error(errors)) == pytest.approx(20)  # sqrt(10 * 40)
    perfect = {"KS": {"acc": 100.0}, "PR": {"per": 40.0}}
    assert math.exp(mean_log_error(perfect)) == pytest.approx(2)  # sqrt(0.1 * 40)
    assert math.exp(mean_log_error({"PR": {"per": 160.0}})) == pytest.approx(160)


class Model(nn.Module):
    """One weight of a trained encoder and one of a head; `set_to` gives both a value."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.encoder.frozen = False
        self.encoder.checkpoint = lambda: {"state_dict": self.encoder.state_dict()}

    def set_to(self, value: float) -> None:
        for weight in self.parameters():
            nn.init.constant_(weight, value)

    def values(self) -> list[float]:
        return [weight.item() for weight in self.parameters()]


def session_of(folder: Path, model: Model) -> Session:
    """A new session, with its log open."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    folder.mkdir(exist_ok=True)
    session = Session(folder, model, optimizer, 6, save_every=50, log_every=1, quiet=True)
    session.resume()
    return session


def reported(folder: Path, select: str, scores: list, last: int | None = None,
             killed_after: int | None = None) -> list[float]:
    """The weights that a run reports; at step k they are k / 3, and dev has scores[k - 1]."""
    model = Model()
    session = session_of(folder, model)
    config = SimpleNamespace(select=select, tasks=tuple(scores[0]), steps=len(scores),
                             evaluate_every=1, average_last=last)
    for step, metrics in enumerate(scores, 1):
        session.step = step
        model.set_to(step / 3)
        keep_selected(session, config, metrics)
        if step == killed_after:
            session.save(optimizer=session.optimizer.state_dict())
            model = Model()
            session = session_of(folder, model)
            assert session.step == step
    session.finish()
    return model.values()


def test_the_selected_step_has_the_best_mean_relative_score(tmp_path):
    scores = []
    for accuracy, per in ((90, 40), (80, 10), (95, 30), (95, 31), (60, 10)):  # 20, 14, 12, ...
        scores.append({"KS": {"acc": accuracy}, "PR": {"per": per}})
    assert reported(tmp_path / "dev", "dev", scores) == pytest.approx([1, 1])  # the encoder's too
    assert reported(tmp_path / "last", "last", scores) == pytest.approx([5 / 3, 5 / 3])
    best = load_checkpoint(tmp_path / "dev")["best"]
    assert best["step"] == 3 and "encoder.weight" not in best["model"]  # is not kept twice


def test_one_task_keeps_its_best_first_metric(tmp_path):
    scores = [{"KS": {"acc": 99.95}}, {"KS": {"acc": 99.99}}, {"KS": {"acc": 99.97}}]
    assert reported(tmp_path, "dev", scores)[1] == pytest.approx(2 / 3)


@pytest.mark.parametrize("last, mean", [(1, 6.0), (3, 5.0), (4, 4.5), (9, 3.5)])
def test_an_average_has_the_last_evaluations(tmp_path, last, mean):
    assert reported(tmp_path, "average", 6 * [{"KS": {}}], last) == pytest.approx(2 * [mean / 3])


def test_the_average_of_equal_weights_is_exact(tmp_path):
    model = Model()
    session = session_of(tmp_path, model)
    model.set_to(1 / 3)
    weights = model.values()
    for _ in range(7):
        session.add_to_average()
    model.set_to(0)
    session.finish()
    assert model.values() == weights


def interrupt_after(step: int, monkeypatch) -> None:
    """Ctrl-C after this step, once it is saved."""
    save = Session.save_when_due

    def save_and_stop(self, signals):
        save(self, [2] if self.step == step else signals)

    monkeypatch.setattr(Session, "save_when_due", save_and_stop)


@pytest.mark.parametrize("select", ["dev", "average"])
@pytest.mark.parametrize("step", range(1, 6))
def test_a_killed_run_reports_the_same_weights(tmp_path, select, step):
    scores = [{"KS": {"acc": 90 - k % 3}, "PR": {"per": 30 - k}} for k in range(5)]
    whole = reported(tmp_path / "whole", select, scores, 3)
    assert reported(tmp_path / "killed", select, scores, 3, killed_after=step) == whole


def test_a_run_of_the_command_line_is_resumed_to_the_selected_weights(
    run_train, tmp_path, monkeypatch, output_of
):
    command = [*MTL, "--select", "dev"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert "(b-1) MTL of PR+KS, select dev " in output_of(run_train, whole, *command)
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(SystemExit):
            run_train(broken, *command)
    run_train(broken, *command)
    name = "mtl-PR+KS-select-dev"
    assert result(broken, name)["weights"] == result(whole, name)["weights"]
    assert result(broken, name)["metrics"] == result(whole, name)["metrics"]
    scores = [mean_log_error(row["dev"]) for row in read_log(whole / name) if "dev" in row]
    best = scores.index(min(scores)) + 1
    assert len(scores) == 3 and load_checkpoint(whole / name)["best"]["step"] == best


@pytest.mark.parametrize("scenario", ["mtl", "transfer"])
@pytest.mark.parametrize("select", ["dev", "average"])
def test_a_choice_without_evaluations_is_refused(run_train, tmp_path, refused, scenario, select):
    command = ["--scenario", scenario, "--select", select]
    refused(run_train, [tmp_path, *command], f"--select {select}", "--mtl-evaluate-every N")


def test_a_choice_in_mtl_names_the_runs_that_are_built_on_it():
    setting = replace(SETTINGS["tiny"], select="dev", mtl_evaluate_every=50, interpolate=0.5)
    run = vary(TRANSFER, setting)
    config = make_config(run, setting, INPUTS)
    assert config.run == run and run.name == "transfer-KS-select-dev-A0.5"
    assert config.encoder_run == "leave-one-out-KS-select-dev" and config.select == "dev"
    assert config.built_on[config.encoder_run]["select"] == "dev"
    run = vary(Run("mtl", ALL), replace(setting, select="average"))
    average = make_config(run, setting, INPUTS)
    assert (average.select, average.average_last, config.average_last) == ("average", 5, None)


def test_a_row_without_a_task_is_compared_with_mtl_of_the_same_choice(tmp_path):
    def run(base: Run, select: str, accuracy: float) -> None:
        setting = replace(SETTINGS["tiny"], select=select, mtl_evaluate_every=50)
        pairs = {"KS": {"acc": [[accuracy, 1]] * 4}}
        fake_run(tmp_path, vary(base, setting), pairs, setting)

    for select, before in (("last", 0.8), ("average", 0.9)):
        run(Run("mtl", ALL), select, before)
        run(Run("mtl", ALL).leave_one_out("PR"), select, 0.85)
    rows = table_rows(table_cells(read_results(tmp_path)), ["PR", "KS"])
    assert rows[1:] == [
        ["(b-1) MTL all", "—", "80.00 "], ["(b-1) MTL all, select average", "—", "90.00 "],
        ["(b-2) all but PR", "X", "85.00+"], ["(b-2) all but PR, select average", "X", "85.00-"]]

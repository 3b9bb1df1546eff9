"""From runs to Table 1: means over seeds, marks against (b-1), and runs that cannot be compared."""

import json
import shutil
from dataclasses import replace

import pytest

import evaluate
from conftest import INPUTS, fake_run, run_main
from engine.runs import RunError, load_checkpoint
from results import read_results, table_cells, table_rows
from scenarios import SETTINGS, Run
from tasks import TASKS

ALL = tuple(TASKS)
MTL = Run("mtl", ALL)


def percent(value: float) -> list:
    """Ten utterances whose two numbers add up to a percentage."""
    return [[value / 100, 1]] * 10


@pytest.fixture
def runs(tmp_path):
    """(a) with two seeds, (b-1), and (b-2) without KS and without PR."""
    fake_run(tmp_path, Run("ssl", ("KS",)), {"KS": {"acc": percent(90)}})
    fake_run(tmp_path, Run("ssl", ("KS",), seed=1), {"KS": {"acc": percent(94)}})
    both = {"KS": {"acc": percent(95)}, "PR": {"per": percent(10)}}
    fake_run(tmp_path, MTL, both)
    fake_run(tmp_path, MTL.leave_one_out("PR"), {"KS": {"acc": percent(96)}})
    fake_run(tmp_path, MTL.leave_one_out("KS"), {"PR": {"per": percent(11)}})
    return tmp_path


def test_seeds_are_averaged_and_missing_cells_are_shown(runs):
    rows = table_rows(table_cells(read_results(runs)), ["PR", "KS"])
    assert rows == [
        ["scenario", "PR per↓", "KS acc↑"],
        ["(a) SSL", "—", "92.00 "],
        ["(b-1) MTL all", "10.00 ", "95.00 "],
        ["(b-2) all but PR", "X", "96.00+"],
        ["(b-2) all but KS", "11.00-", "X"],
    ]


def test_er_is_the_mean_of_its_folds_each_the_mean_of_its_seeds(tmp_path):
    fake_run(tmp_path, Run("ssl", ("ER",)), {"ER": {"acc": percent(50)}})
    fake_run(tmp_path, Run("ssl", ("ER",), seed=1), {"ER": {"acc": percent(60)}})
    fake_run(tmp_path, Run("ssl", ("ER",), fold=2), {"ER": {"acc": percent(75)}})
    value, low, high = table_cells(read_results(tmp_path), True)["(a) SSL"]["ER", "acc"]
    # no interval: the folds have different test sets
    assert value == pytest.approx(65.0) and low is None and high is None


def test_intervals_enclose_the_value(runs):
    cells = table_cells(read_results(runs), intervals=True)
    value, low, high = cells["(a) SSL"]["KS", "acc"]
    assert low <= value <= high and high - low == pytest.approx(4.0)


def test_a_constant_answer_has_a_row_of_its_own(tmp_path):
    fake_run(tmp_path, Run("ssl", ("KS",)), {"KS": {"acc": percent(90)}}, KS={"acc": 8.3})
    rows = table_rows(table_cells(read_results(tmp_path)), ["KS"])
    assert rows[1:] == [["constant answer", "8.30"], ["(a) SSL", "90.00"]]


# What cannot be compared


def test_a_copied_folder_is_no_second_seed(runs, capsys):
    shutil.copytree(runs / "ssl-KS", runs / "ssl-KS.bak")
    assert len(read_results(runs)) == 5 and "ssl-KS.bak holds a copy" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(inputs=replace(INPUTS, encoder="1" * 32)), "encoder was 000.* and is 111"),
        (
            dict(inputs=replace(INPUTS, data={"KS": {"test": "other"}})),
            "data.KS.test was data of KS and is other",
        ),
        (dict(setting=replace(SETTINGS["tiny"], ssl_steps=7)), "steps was 1500 and is 7"),
        (dict(setting=replace(SETTINGS["tiny"], precision="bf16")), "precision was fp32"),
        (dict(setting=replace(SETTINGS["tiny"], name="paper")), "setting was tiny and is paper"),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path, change, words):
    fake_run(tmp_path, Run("ssl", ("KS",)), {"KS": {"acc": percent(90)}})
    fake_run(tmp_path, Run("ssl", ("KS",), seed=1), {"KS": {"acc": percent(90)}}, **change)
    with pytest.raises(RunError, match=words) as caught:
        table_cells(read_results(tmp_path))
    assert "ssl-KS-seed1" in str(caught.value)


def test_rows_that_build_on_other_heads_are_not_mixed(runs):
    other = replace(SETTINGS["tiny"], ssl_lr=0.5)
    run = replace(MTL, seed=1)
    fake_run(runs, run, {"KS": {"acc": percent(95)}}, setting=other)
    with pytest.raises(RunError, match="ssl-KS.lr was 0.01 and is 0.5"):
        table_cells(read_results(runs))


@pytest.mark.parametrize("damage", ["cut", "doubled", "foreign", "gone", "one digit"])
def test_changed_predictions_are_refused(runs, damage):
    path = runs / "ssl-KS" / "predictions" / "KS.jsonl"
    text = path.read_text()
    changed = {
        "cut": "".join(text.splitlines(keepends=True)[:-1]),
        "doubled": text * 2,
        "foreign": (runs / "ssl-KS-seed1" / "predictions" / "KS.jsonl").read_text(),
        "one digit": text.replace("0.9", "0.8", 1),
    }
    path.unlink() if damage == "gone" else path.write_text(changed[damage])
    with pytest.raises(RunError, match="missing or was changed"):
        table_cells(read_results(runs), intervals=True)


@pytest.mark.parametrize(
    "flags, expected", [(["--markdown"], "---: |"), (["--json"], '"percent": 92.0'), ([], "----")]
)
def test_the_table_comes_in_three_forms(runs, output_of, flags, expected):
    assert expected in output_of(run_main, evaluate.main, "--runs", runs, "--table", *flags)


def test_an_empty_folder_is_one_sentence(tmp_path, refused):
    refused(run_main, [evaluate.main, "--runs", tmp_path, "--table"], "no finished run")


def test_a_run_scores_the_same_again_from_its_checkpoint(run_train, tmp_path, output_of):
    run_train(tmp_path, "--scenario", "ssl", "--task", "IC")
    flags = ["--run", tmp_path / "ssl-IC", "--layers", "--curves", "--runs", tmp_path]
    printed = output_of(run_main, evaluate.main, *flags, "--out", tmp_path / "figures")
    again = json.loads(printed)
    assert again == json.loads((tmp_path / "ssl-IC" / "result.json").read_text())["metrics"]
    assert (tmp_path / "figures" / "layers.png").stat().st_size > 5000
    assert (tmp_path / "figures" / "curves.png").stat().st_size > 5000


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return print, ("this must never be printed",)

    import torch

    (tmp_path / "ssl-IC").mkdir()
    torch.save({"model": Bomb()}, tmp_path / "ssl-IC" / "checkpoint.pt")
    with pytest.raises(RunError, match="no checkpoint of ours"):
        load_checkpoint(tmp_path / "ssl-IC")

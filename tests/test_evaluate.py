"""From rows to Table 1: means over seeds, marks against (b-1), what is missing, what is left out."""

import json
import sys

import pytest

import evaluate
from evaluate import table_cells, table_rows


def fake_run(runs, scenario, label, metrics, seed=0, left_out=None, fold=1):
    """A finished run with these metrics, and predictions of ten utterances that add up to them."""
    folder = runs / f"{scenario}-{label}{f'-seed{seed}' if seed else ''}"
    (folder / "predictions").mkdir(parents=True)
    (folder / "result.json").write_text(
        json.dumps(
            {
                "scenario": scenario,
                "task": label,
                "left_out": left_out,
                "setting": "tiny",
                "seed": seed,
                "fold": fold,
                "steps": 1,
                "seconds": 1.0,
                "metrics": metrics,
            }
        )
    )
    for task, values in metrics.items():
        rows = [
            {"id": str(i), **{m: [value / 100, 1] for m, value in values.items()}}
            for i in range(10)
        ]
        (folder / "predictions" / f"{task}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )


@pytest.fixture
def runs(tmp_path):
    fake_run(tmp_path, "ssl", "KS", {"KS": {"acc": 90.0}})
    fake_run(tmp_path, "ssl", "KS", {"KS": {"acc": 94.0}}, seed=1)
    fake_run(tmp_path, "mtl", "all", {"KS": {"acc": 95.0}, "PR": {"per": 10.0}})
    fake_run(tmp_path, "leave-one-out", "PR", {"KS": {"acc": 96.0}}, left_out="PR")
    fake_run(tmp_path, "leave-one-out", "KS", {"PR": {"per": 11.0}}, left_out="KS")
    return tmp_path


def test_seeds_are_averaged_and_missing_cells_are_shown(runs):
    rows = table_rows(table_cells(evaluate.read_results(runs)), ["PR", "KS"])
    assert rows == [
        ["scenario", "PR per↓", "KS acc↑"],
        ["(a) SSL", "—", "92.00 "],
        ["(b-1) MTL all", "10.00 ", "95.00 "],
        ["(b-2) all but PR", "X", "96.00+"],
        ["(b-2) all but KS", "11.00-", "X"],
    ]


def test_er_is_the_mean_of_its_folds_each_the_mean_of_its_seeds(tmp_path):
    fake_run(tmp_path, "ssl", "ER", {"ER": {"acc": 50.0}})
    fake_run(tmp_path, "ssl", "ER", {"ER": {"acc": 60.0}}, seed=1)
    fake_run(tmp_path, "ssl", "ER-fold2", {"ER": {"acc": 75.0}}, fold=2)
    cells = table_cells(evaluate.read_results(tmp_path), intervals=True)
    assert cells["(a) SSL"]["ER", "acc"] == (
        65.0,
        None,
        None,
    )  # no interval: the folds have different test sets


def test_intervals_enclose_the_value(runs):
    cells = table_cells(evaluate.read_results(runs), intervals=True)
    value, low, high = cells["(a) SSL"]["KS", "acc"]
    assert low <= value <= high and high - low == pytest.approx(4.0)


@pytest.mark.parametrize(
    "flags, expected", [(["--markdown"], "---: |"), (["--json"], '"percent": 92.0'), ([], "----")]
)
def test_the_table_comes_in_three_forms(runs, monkeypatch, capsys, flags, expected):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--runs", str(runs), "--table", *flags])
    evaluate.main()
    assert expected in capsys.readouterr().out


def test_an_empty_folder_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--runs", str(tmp_path), "--table"])
    with pytest.raises(SystemExit) as stop:
        evaluate.main()
    assert stop.value.code == 2 and "no finished run" in capsys.readouterr().err


def test_a_run_scores_the_same_again_from_its_checkpoint(run_train, tmp_path, monkeypatch, capsys):
    run_train(tmp_path, "--scenario", "ssl", "--task", "IC")
    capsys.readouterr()
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "evaluate.py",
            "--run",
            str(tmp_path / "ssl-IC"),
            "--layers",
            "--curves",
            "--runs",
            str(tmp_path),
            "--out",
            str(tmp_path / "figures"),
        ],
    )
    evaluate.main()
    again = json.loads(capsys.readouterr().out)
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
    with pytest.raises(evaluate.RunError, match="no checkpoint of ours"):
        evaluate.load_checkpoint(tmp_path / "ssl-IC")

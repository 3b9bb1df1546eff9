"""Cosines between the gradients of tasks, and their correlation with the changes of Fig. 2."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import graphs
import weighting
from conftest import fake_run, run_main
from engine.runs import RunError, read_log
from engine.statistics import spearman
from graphs import Change, affinity_correlation, read_affinities
from results import read_results
from scenarios import Run
from weighting import measure_affinity

THREE = ("PR", "KS", "SID")
BASE = Run("mtl", THREE, universe=THREE)
COSINES = {"PR": {"PR": 1.0, "KS": 0.5, "SID": -0.2}, "KS": {"PR": 0.5, "KS": 1.0, "SID": 0.1},
           "SID": {"PR": -0.2, "KS": 0.1, "SID": 1.0}}


@pytest.mark.parametrize("x, y, expected", [
    ([1, 2, 3, 4, 5], [5, 6, 7, 8, 70], 1.0),
    ([1, 2, 3], [3, 2, 1], -1.0),
    ([86, 97, 99, 100, 101, 103, 106, 110, 112, 113],  # a textbook's: -29 / 165
     [2, 20, 28, 27, 50, 29, 7, 17, 6, 12], -29 / 165),
    ([1, 2, 3, 4], [10, 30, 20, 20], 1.5 / 22.5**0.5),  # ranks 1, 4, 2.5, 2.5
])
def test_rank_correlation_has_the_worked_values(x, y, expected):
    assert spearman(x, y) == pytest.approx(expected)


def test_rank_correlation_of_equal_values_is_unknown():
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))


def change_of(source: str, target: str, *log_ratios: float) -> Change:
    """A change with these logarithms for the seeds 0, 1, ..."""
    return Change(source, target, 100 * log_ratios[0], log_ratios=dict(enumerate(log_ratios)))


def test_tasks_whose_gradients_agree_help_if_the_correlation_is_positive():
    matrix = np.array([list(row.values()) for row in COSINES.values()])
    helpful = [change_of("KS", "PR", 0.3),  # the error rate rises without KS: KS helps
               change_of("PR", "KS", -0.2),  # accuracy falls without PR: PR helps
               change_of("SID", "KS", 0.1), change_of("SID", "PR", -0.4)]  # SID hurts both
    hurtful = [change_of(c.source, c.target, -c.log_ratios[0]) for c in helpful]
    expected = 4.5 / 22.5**0.5  # ranks 3.5, 3.5, 2, 1 of the cosines and 4, 3, 2, 1 of the help
    assert affinity_correlation({0: matrix}, helpful, THREE)[0] == pytest.approx(expected)
    assert affinity_correlation({0: matrix}, hurtful, THREE)[0] == pytest.approx(-expected)


def test_the_interval_covers_the_seeds():
    matrix = np.array([list(row.values()) for row in COSINES.values()])
    changes = [change_of("KS", "PR", 0.3, -0.2), change_of("SID", "PR", -0.1, 0.1),
               change_of("SID", "KS", -0.1, -0.05)]  # seed 0 agrees, seed 1 says the opposite
    found = affinity_correlation({0: matrix, 1: matrix}, changes, THREE)
    assert found == pytest.approx((0.5, -1, 1))


@pytest.fixture
def folder(tmp_path):
    """(b-1) and (b-2) of three tasks, two seeds; seed 0 of (b-1) has affinities in its log."""
    for seed in (0, 1):
        for run, error in ((BASE, 5), (BASE.leave_one_out("KS"), 8), (BASE.leave_one_out("SID"), 4),
                           (BASE.leave_one_out("PR"), 6)):
            pairs = {}
            for task in run.tasks:
                metric = "per" if task == "PR" else "acc"
                pairs[task] = {metric: [[int(i < error), 1] for i in range(10)]}
            fake_run(tmp_path, Run(**{**vars(run), "seed": seed}), pairs)
            (tmp_path / Run(**{**vars(run), "seed": seed}).name / "log.jsonl").touch()
    write_log(tmp_path, [{"step": 10, "affinity": COSINES}, {"step": 20, "affinity": COSINES}])
    return tmp_path


def write_log(folder, rows: list[dict]) -> None:
    """The log of (b-1), seed 0."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / BASE.name / "log.jsonl").write_text(lines)


def run_graphs(folder, *flags) -> None:
    run_main(graphs.main, "--runs", folder, "--out", folder / "figures", "--tasks", ",".join(THREE),
             "--affinity", *flags)


def test_the_command_draws_and_says_the_correlation(folder, output_of):
    printed = output_of(run_graphs, folder, "--seed", "0", "1")
    assert "(one seed: no interval); 6 ordered pairs, 1 seeds" in printed  # seed 1 has no affinity
    assert (folder / "figures" / "affinity.png").exists()


def test_runs_without_affinities_are_refused(folder, refused):
    write_log(folder, [])
    refused(run_graphs, [folder], "no run of (b-1) has affinities", "--affinity-every")
    write_log(folder, [{"step": 10, "affinity": {"PR": {}}}])
    refused(run_graphs, [folder], "log.jsonl", "damaged")
    refused(run_graphs, [folder, "--paper"], "--affinity", alone=False)


def test_steps_in_which_a_task_had_no_gradient_do_not_count(folder):
    nothing = {a: {b: None if "SID" in (a, b) else x for b, x in row.items()}
               for a, row in COSINES.items()}
    rows = [{"step": 10, "affinity": COSINES}, {"step": 20, "affinity": nothing}]
    write_log(folder, rows)
    runs = [run for run in read_results(folder) if run.path.name == BASE.name]
    means = read_affinities(runs, THREE)[0]
    assert means.tolist() == [[COSINES[a][b] for b in THREE] for a in THREE]
    write_log(folder, rows[1:])
    with pytest.raises(RunError, match="no gradient in any"):
        read_affinities(runs, THREE)


def test_the_cosine_of_tiny_gradients_is_a_cosine_and_without_a_gradient_it_is_unknown(
    monkeypatch
):
    gradients = torch.tensor([[1e-30, 1e-30], [3.0, 0.0], [0.0, 0.0]])  # squares of 1e-30 are 0
    monkeypatch.setattr(weighting, "forward_passes", lambda *arguments: [None])
    monkeypatch.setattr(weighting, "shared_gradients", lambda *arguments: (None, gradients))
    config, batches = SimpleNamespace(tasks=("a", "b", "c")), dict.fromkeys("abc")
    found = measure_affinity(torch.nn.Identity(), config, 0, [batches])
    assert found == {"a": {"a": 1.0, "b": 0.7071, "c": None},
                     "b": {"a": 0.7071, "b": 1.0, "c": None},
                     "c": {"a": None, "b": None, "c": None}}


def test_affinities_of_a_seed_without_leave_one_out_are_refused(folder, refused):
    for path in folder.glob("leave-one-out-*/result.json"):
        if "seed1" not in path.parent.name:
            path.unlink()
    refused(run_graphs, [folder, "--seed", "0", "1"], "no seed has affinities and runs of (b-2)")


def test_a_task_agrees_with_itself_and_cosines_are_symmetric(runs):
    rows = [row for row in read_log(runs / "mtl-all") if "affinity" in row]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        matrix = np.array([list(cosines.values()) for cosines in row["affinity"].values()])
        assert matrix.shape == (9, 9) and (np.diag(matrix) == 1).all()
        assert np.abs(matrix - matrix.T).max() < 2e-4 and len(set(np.round(matrix, 2).flat)) > 10
    assert not any("affinity" in row for row in read_log(runs / "leave-one-out-IC"))

"""The pictures of finished runs say what the runs say: points, intervals, orders, marks."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import INPUTS, fake_run, run_main

import evaluate
import graphs
from engine.runs import RunError, save_json_lines, write_config
from results import read_results, table_cells
from scenarios import SETTINGS, Run, make_config
from tasks import TASKS
from tools.plots import SMALL, plot_curves, plot_layers
from tools.scores import count_answers, look, paper_cells, plot_confusion, plot_summary

MTL = Run("mtl", tuple(TASKS))
CONTROL = replace(MTL, scenario="control")


def ssl(task, seed=0):
    """The run of (a) of a task."""
    return Run("ssl", (task,), seed=seed)


def transfer(task):
    """The run of (c) of a task."""
    return replace(MTL, scenario="transfer", tasks=(task,), left_out=task)


def percent(value: float) -> list:
    """Ten utterances whose two numbers add up to a percentage; half of them have 2 points more."""
    return [[(value + 2) / 100, 1], [(value - 2) / 100, 1]] * 5


def half(task: str) -> dict:
    """Numbers of two utterances with 50 % in each metric of a task."""
    return {metric.name: [[0, 1], [1, 1]] for metric in TASKS[task].metrics}


def keywords(value: float) -> dict:
    """The numbers of KS with an accuracy in percent."""
    return {"KS": {"acc": percent(value)}}


def points(axes) -> list[tuple]:
    """(x, y, marker) of all points of a panel."""
    drawn = []
    for line in axes.lines:
        if line.get_marker() not in ("None", None, ""):
            drawn.append((line.get_xdata()[0], line.get_ydata()[0], line.get_marker()))
    return drawn


def panels(figure) -> dict:
    """{title: panel}."""
    return {axes.get_title("left") or axes.get_title(): axes for axes in figure.axes
            if axes.get_visible()}


def overlaps_nothing_and_is_inside(figure) -> bool:
    """Whether every panel, with its labels and titles, is inside the page and off the others."""
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes if axes.get_visible()]
    for i, box in enumerate(boxes):
        inside = (box.x0 >= 0 and box.y0 >= 0
                  and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1)
        if not inside or any(box.shrunk(0.99, 0.99).overlaps(other) for other in boxes[i + 1:]):
            return False
    return True


# Summary


@pytest.fixture
def scored(tmp_path):
    """KS in all scenarios, of which (a) has two seeds; the constant answer has 8.3 %."""
    fake_run(tmp_path, ssl("KS"), keywords(90), KS={"acc": 8.3})
    fake_run(tmp_path, ssl("KS", seed=1), keywords(92), KS={"acc": 8.3})
    fake_run(tmp_path, CONTROL, keywords(93))
    fake_run(tmp_path, MTL, {**keywords(95), "PR": {"per": percent(9)}}, PR={"per": 11.0})
    fake_run(tmp_path, MTL.leave_one_out("PR"), keywords(50))
    fake_run(tmp_path, transfer("KS"), keywords(94))
    return tmp_path


def test_the_summary_has_a_panel_per_metric_and_a_point_per_scenario_but_b2(scored):
    drawn = panels(plot_summary(read_results(scored)))
    assert list(drawn) == ["PR per", "KS acc"]  # in the order of the table
    for axes in drawn.values():
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert labels == ["(a)", "(a+)", "(b-1)", "(c)"]
    x, y, markers = zip(*points(drawn["KS acc"]))
    assert x == (0, 1, 2, 3) and y == pytest.approx((91, 93, 95, 94))
    assert len(set(markers)) == 4  # readable without colours
    assert points(drawn["PR per"]) == [(2, pytest.approx(9), markers[2])]


def test_the_summary_names_the_better_direction(scored):
    drawn = panels(plot_summary(read_results(scored)))
    assert drawn["PR per"].get_title("right") == "↓ is better"
    assert drawn["KS acc"].get_title("right") == "↑ is better"


def test_the_intervals_of_the_summary_are_those_of_the_table(scored):
    results = read_results(scored)
    axes = panels(plot_summary(results))["KS acc"]
    bars = [list(line.get_ydata()) for line in axes.lines if line.get_linewidth() == 1.6]
    cells = table_cells(results, intervals=True)
    rows = ("(a) SSL", "(a+) SSL, more steps", "(b-1) MTL all", "(c) transfer")
    assert bars == [list(cells[row]["KS", "acc"][1:]) for row in rows]
    assert bars[0][0] < bars[0][1]


def test_the_constant_answer_is_a_line_and_far_from_the_points_it_is_off_the_scale(scored):
    drawn = panels(plot_summary(read_results(scored)))
    near, far = drawn["PR per"], drawn["KS acc"]
    (line,) = [line for line in near.lines if line.get_linestyle() == "--"]
    assert line.get_ydata()[0] == pytest.approx(11) and not near.patches
    (line,) = [line for line in far.lines if line.get_linestyle() == "--"]
    (strip,) = far.patches  # below all points, with no tick of the scale on it
    bottom, top = strip.get_y(), strip.get_y() + strip.get_height()
    assert min(bottom, top) < line.get_ydata()[0] < max(bottom, top) < 91
    assert min(far.get_yticks()) >= max(bottom, top)
    assert [text.get_text() for text in far.texts] == ["8.3"]


def test_the_papers_numbers_have_a_part_and_a_scale_of_their_own(scored):
    figure = plot_summary(read_results(scored), with_paper=True)
    ours, paper, _ = figure.subfigs
    assert ours.get_suptitle().startswith("Test scores in %: ")
    assert paper.get_suptitle().startswith("The paper's Table 1 in %")
    assert paper.get_facecolor() != ours.get_facecolor()
    axes = panels(paper)["KS acc"]
    assert points(axes) == [(0, 96.30, "o"), (1, 97.34, "s"), (2, 96.33, "D")]
    assert len(axes.lines) == 3 and axes.get_ylim() != panels(ours)["KS acc"].get_ylim()
    assert not axes.get_shared_y_axes().joined(axes, panels(ours)["KS acc"])


def test_the_papers_cells_are_those_of_its_table():
    cells, table = paper_cells(), json.loads(graphs.PAPER.read_text())
    assert list(cells) == ["(a)", "(b-1)", "(c)"]
    assert cells["(b-1)"]["SF", "cer"] == (table["mtl"]["SF"]["cer"], None, None)


def test_a_picture_names_its_runs_seeds_and_scale(scored, tmp_path):
    assert plot_summary(read_results(scored)).subfigs[0].get_suptitle() == (
        f"Test scores in %: {scored}, seeds 0 1")
    scaled = replace(SETTINGS["tiny"], scale=0.1)
    fake_run(tmp_path / "scaled", ssl("KS"), keywords(90), setting=scaled)
    title = plot_summary(read_results(tmp_path / "scaled")).subfigs[0].get_suptitle()
    assert title.endswith("scaled, seed 0, updates times 0.1")


def test_rows_of_an_experiment_with_fewer_tasks_are_hollow(scored):
    small = Run("mtl", ("IC", "KS"), universe=("IC", "KS"))
    fake_run(scored, small, keywords(80))
    axes = panels(plot_summary(read_results(scored)))["KS acc"]
    filled = [line.get_markerfacecolor() != "white" for line in axes.lines
              if line.get_marker() == "s"]
    assert filled == [True, False]
    assert look("(a+) SSL, updates of (c)")["markerfacecolor"] != "white"
    assert look("(b-1) MTL all, masked 0.1")["fillstyle"] == "bottom"
    assert look("(c) transfer, masked 0.1, shuffled, A = 0.5")["fillstyle"] == "left"
    assert "fillstyle" not in look("(b-1) MTL all"), "of the row before"


def test_nothing_of_a_summary_with_two_lines_is_cut_off_or_overlaps(tmp_path):
    fake_run(tmp_path, MTL, {name: half(name) for name in ("ASR", "PR", "SF", "SD", "ER")})
    assert overlaps_nothing_and_is_inside(plot_summary(read_results(tmp_path), with_paper=True))


# Confusion matrices


def answered(runs, run, task, answers):
    """A finished run with these (reference, prediction)."""
    config = make_config(run, SETTINGS["tiny"], INPUTS)
    write_config(runs / run.name, config.to_json(), {})
    rows = []
    for i, (reference, prediction) in enumerate(answers):
        rows.append({"id": str(i), "reference": reference, "prediction": prediction,
                     "acc": [int(reference == prediction), 1]})
    evaluate.write_result(runs / run.name, config, 1.0, {task: rows}, "weights", {}, {})


def matrix(axes) -> dict:
    """{(reference, answer): number in the cell}."""
    references = [label.get_text() for label in axes.get_yticklabels()]
    answers = [label.get_text() for label in axes.get_xticklabels()]
    cells = {}
    for text in axes.texts:
        x, y = text.get_position()
        cells[references[int(y)], answers[int(x)]] = text.get_text()
    return cells


def test_answers_are_counted_by_reference_and_prediction():
    pairs = [("no", "no"), ("no", "go"), ("no", "go"), ("up", "up"), ("go", "up")]
    #                                                          go no up
    assert count_answers(pairs, ["go", "no", "up"]).tolist() == [[0, 0, 1],  # go
                                                                 [2, 1, 0],  # no
                                                                 [0, 0, 1]]  # up


def test_a_confusion_matrix_adds_up_seeds_and_shows_percent_of_each_class(tmp_path):
    answered(tmp_path, ssl("KS"), "KS", [("no", "no"), ("no", "go"), ("go", "go")])
    answered(tmp_path, ssl("KS", seed=1), "KS", [("no", "no"), ("no", "no"), ("go", "go")])
    (axes,) = plot_confusion(read_results(tmp_path)).axes
    assert axes.get_title() == "KS: 83.3 % right"
    assert matrix(axes) == {("go (2)", "go"): "100", ("no (4)", "no"): "75", ("no (4)", "go"): "25"}


def test_confusion_has_a_row_per_scenario_and_takes_the_first_of_several_slots(tmp_path):
    answered(tmp_path, transfer("IC"), "IC", [(["on", "lamp"], ["off", "lamp"])])
    answered(tmp_path, ssl("IC"), "IC", [(["on", "lamp"], ["on", "heat"])])
    answered(tmp_path, ssl("ER"), "ER", [("sad", "hap")])
    answered(tmp_path, CONTROL, "ER", [("sad", "sad")])
    answered(tmp_path, MTL.leave_one_out("KS"), "ER", [("sad", "sad")])
    figure = plot_confusion(read_results(tmp_path))
    assert [part.get_suptitle() for part in figure.subfigs] == ["(a) SSL", "(c) transfer"]
    first, second = (panels(part) for part in figure.subfigs)
    assert list(first) == ["ER: 0.0 % right", "IC, first slot: 100.0 % right"]
    assert matrix(second["IC, first slot: 0.0 % right"]) == {("on (1)", "off"): "100"}
    assert overlaps_nothing_and_is_inside(figure)


def test_a_task_with_many_classes_has_no_confusion_matrix(tmp_path, capsys):
    answered(tmp_path, ssl("SID"), "SID", [(f"id{i}", f"id{i}") for i in range(21)])
    with pytest.raises(RunError, match="has a task with classes, at most 20"):
        plot_confusion(read_results(tmp_path))
    answered(tmp_path, ssl("KS"), "KS", [("no", "no")])
    assert list(panels(plot_confusion(read_results(tmp_path)))) == ["KS: 100.0 % right"]
    assert "note: SID is left out, as it has 21 classes" in capsys.readouterr().out


# Hidden states


def trained(runs, run, weights=(0.0, 0.0), losses=(1.0,), dev=()):
    """A finished run with a checkpoint and a log: losses at steps 10, 20, ..., dev scores too."""
    folder = fake_run(runs, run, {name: half(name) for name in run.tasks})
    torch.save({"model": {"layer_sum.weights": torch.tensor(weights)}, "step": 1, "best": None,
                "seconds": 1.0}, folder / "checkpoint.pt")
    rows = []
    for i, loss in enumerate(losses):
        rows.append({"step": 10 * i + 10, "losses": dict.fromkeys(run.tasks, loss)})
    for i, value in enumerate(dev):
        scores = {name: {TASKS[name].metrics[0].name: value} for name in run.tasks}
        rows.append({"step": 10 * i + 10, "dev": scores})
    save_json_lines(folder / "log.jsonl", rows)
    return folder


def test_rows_of_layers_are_in_the_order_of_the_table_and_scenarios_are_apart(tmp_path):
    for run in (transfer("KS"), MTL.leave_one_out("SID"), MTL.leave_one_out("PR"), MTL, ssl("SID"),
                ssl("PR")):
        trained(tmp_path, run)
    figure = plot_layers(read_results(tmp_path))
    drawn = {title: [label.get_text() for label in axes.get_yticklabels()]
             for title, axes in panels(figure).items()}
    assert list(drawn.items()) == [("(a) SSL", ["PR", "SID"]),
                                   ("(b-1) MTL all", ["all its tasks"]),
                                   ("(b-2) all but one", ["without PR", "without SID"]),
                                   ("(c) transfer", ["KS"])]
    assert overlaps_nothing_and_is_inside(figure)


def test_weights_of_hidden_states_are_means_over_seeds(tmp_path):
    trained(tmp_path, ssl("KS"), weights=(0.0, 0.0))
    trained(tmp_path, ssl("KS", seed=1), weights=(0.0, float(np.log(3))))
    (axes,) = plot_layers(read_results(tmp_path)).axes
    assert axes.images[0].get_array().data == pytest.approx(np.array([[0.375, 0.625]]))
    assert [text.get_text() for text in axes.texts] == ["0.38", "0.62"]


# Learning curves


def test_curves_have_a_panel_per_scenario_and_task_with_the_metric_and_its_direction(tmp_path):
    pair = Run("mtl", ("PR", "KS"), universe=("PR", "KS"))
    trained(tmp_path, ssl("KS"), dev=[90.0])
    trained(tmp_path, ssl("PR"), dev=[10.0])
    trained(tmp_path, pair, dev=[20.0, 15.0])
    figure = plot_curves(read_results(tmp_path))
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles == ["(a) SSL", "(b-1) MTL of PR+KS", ""]
    for part in figure.subfigs[:2]:
        assert [axes.get_title() for axes in part.axes] == ["PR", "", "KS", ""]
        assert [axes.get_ylabel() for axes in part.axes] == ["loss", "dev per↓, %"] + [
            "loss", "dev acc↑, %"]
    dev_of_pr = figure.subfigs[1].axes[1].lines[0]
    assert list(dev_of_pr.get_xdata()) == [10, 20] and list(dev_of_pr.get_ydata()) == [20, 15]


def test_curves_have_one_size_of_ticks_and_no_legend_on_a_curve(tmp_path):
    trained(tmp_path, ssl("KS"), losses=[1.0] * 12 + [0.02] * 12, dev=[90.0])
    three = Run("mtl", ("PR", "KS", "SID"), universe=("PR", "KS", "SID"))
    trained(tmp_path, three.leave_one_out("SID"), losses=[0.3, 0.2])
    trained(tmp_path, three.leave_one_out("PR"), losses=[0.3, 0.2])
    figure = plot_curves(read_results(tmp_path))
    figure.draw_without_rendering()
    sizes = set()
    for axes in figure.axes:
        assert axes.get_legend() is None
        labels = axes.get_xticklabels(which="both") + axes.get_yticklabels(which="both")
        sizes |= {label.get_size() for label in labels}
    assert sizes == {SMALL}
    (legend,) = figure.subfigs[-1].legends
    assert [text.get_text() for text in legend.get_texts()] == ["(b-2) without PR",
                                                                "(b-2) without SID"]
    assert overlaps_nothing_and_is_inside(figure)


def test_curves_of_b2_differ_in_the_task_that_is_left_out(tmp_path):
    trained(tmp_path, MTL.leave_one_out("SID"), losses=[0.3])
    trained(tmp_path, MTL.leave_one_out("PR"), losses=[0.2])
    drawn = panels(plot_curves(read_results(tmp_path)))
    assert list(drawn) == list(TASKS)
    assert [len(axes.lines) for axes in drawn.values()] == [
        1 if name in ("SID", "PR") else 2 for name in TASKS]
    without_pr, without_sid = drawn["KS"].lines
    assert without_pr.get_ydata() == 0.2 and without_sid.get_ydata() == 0.3
    assert without_pr.get_marker() != without_sid.get_marker()


def test_a_curve_is_the_mean_of_ten_points_and_of_the_seeds(tmp_path):
    trained(tmp_path, ssl("KS"), losses=range(1, 13))
    trained(tmp_path, ssl("KS", seed=1), losses=range(3, 15))
    (axes,) = plot_curves(read_results(tmp_path)).axes
    assert list(axes.lines[0].get_xdata()) == pytest.approx([55, 65, 75])
    assert list(axes.lines[0].get_ydata()) == pytest.approx([6.5, 7.5, 8.5])


def test_seeds_are_averaged_where_all_have_a_point(tmp_path):
    trained(tmp_path, ssl("KS"), dev=[80.0, 90.0])
    trained(tmp_path, ssl("KS", seed=1), dev=[84.0])
    _, axes = plot_curves(read_results(tmp_path)).axes
    assert (list(axes.lines[0].get_xdata()), list(axes.lines[0].get_ydata())) == ([10], [82])


def test_logs_without_a_common_step_give_an_empty_panel(tmp_path):
    trained(tmp_path, ssl("KS"))
    log = trained(tmp_path, ssl("KS", seed=1)) / "log.jsonl"
    log.write_text(log.read_text().replace('"step": 10', '"step": 11'))
    (axes,) = plot_curves(read_results(tmp_path)).axes
    assert not axes.lines


def test_a_loss_of_zero_is_a_gap_and_no_well(tmp_path):
    trained(tmp_path, ssl("KS"), losses=[2.0] * 10 + [0.0] * 10 + [2.0] * 10)
    (axes,) = plot_curves(read_results(tmp_path)).axes
    assert axes.lines[0].get_ydata()[10] == 0 and axes.get_yscale() == "log"
    assert 0.05 < axes.get_ylim()[0] < 0.2  # the smallest mean that is not 0


@pytest.mark.parametrize("text", [
    '{"step": 1, "dev": {"KS": {"acc": 90}}}\n',  # no losses
    '{"step": 1, "losses": {"PR": 1.0}}\n',
    '{"step": 1, "losses": {"KS": "x"}}\n',
    '{"step": 1, "losses": {"KS": 1.0}}\n{"step": 1, "dev": {"acc": 90}}\n',
    '{"step": 1, "losses": {"KS": 1.0}}\n{"step": 1, "dev": {"KS": {"per": 90}}}\n',
    '{"step": 1, "losses": {"KS": 1.0}}\n{"step": 1, "dev": 90}\n',
    '{"losses": {"KS": 1.0}}\n',
    "{\n",
])
def test_a_damaged_log_is_named(tmp_path, text):
    (trained(tmp_path, ssl("KS")) / "log.jsonl").write_text(text)
    with pytest.raises(RunError, match=re.escape("log.jsonl is") + ".*damaged"):
        plot_curves(read_results(tmp_path))


# The command line


@pytest.mark.parametrize("flag", ["--summary", "--confusion", "--layers", "--curves"])
def test_a_picture_without_a_finished_run_is_one_sentence(tmp_path, refused, flag):
    refused(run_main, [evaluate.main, "--runs", tmp_path, flag], "no finished run")


@pytest.mark.parametrize("flag", ["--summary", "--confusion"])
def test_a_picture_of_scores_needs_other_runs_than_those_of_b2(tmp_path, refused, flag):
    fake_run(tmp_path, MTL.leave_one_out("PR"), keywords(90))
    refused(run_main, [evaluate.main, "--runs", tmp_path, flag], "no finished run of (a), (b-1)")


def test_changed_predictions_give_no_confusion_matrix(tmp_path, refused):
    answered(tmp_path, ssl("KS"), "KS", [("no", "go")])
    path = tmp_path / "ssl-KS" / "predictions" / "KS.jsonl"
    path.write_text(path.read_text().replace("go", "no"))
    refused(run_main, [evaluate.main, "--runs", tmp_path, "--confusion"], "was changed")


def test_the_papers_numbers_are_drawn_beside_ours_only(tmp_path, refused):
    flags = [evaluate.main, "--runs", tmp_path, "--table", "--paper"]
    refused(run_main, flags, "--paper goes with --summary", alone=False)


def test_every_picture_is_written(scored, tmp_path):
    answered(tmp_path / "more", ssl("KS"), "KS", [("no", "go")])
    flags = ["--out", tmp_path / "figures"]
    run_main(evaluate.main, "--runs", scored, "--summary", *flags)
    run_main(evaluate.main, "--runs", tmp_path / "more", "--confusion", *flags)
    for name in ("summary.png", "confusion.png"):
        assert (tmp_path / "figures" / name).stat().st_size > 5000

"""TOUR.md runs as it stands, and tour.py draws its picture."""

import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import matplotlib.image
import pytest

from tools import tour
from model import TINY, frame_count
from tasks import TASKS

PAGE = Path(__file__).parent.parent / "TOUR.md"
STOPS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```\n", PAGE.read_text(), flags=re.S)


@pytest.fixture(scope="module")
def printed(root, tmp_path_factory) -> tuple[list[str], dict]:
    """What the blocks of the page print on a small corpus, and the names that they leave."""
    names, texts = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tour"))  # the readers keep a cache where they run
        for code, _ in STOPS:
            with redirect_stdout(StringIO()) as text:
                exec(code.replace("data/toy", str(root)), names)  # a page has no other way to run
            texts.append(text.getvalue())
    return texts, names


def test_every_stop_of_the_tour_shows_what_it_prints():
    assert (
        len(STOPS)
        == PAGE.read_text().count("```python")
        == len(re.findall(r"^## \d", PAGE.read_text(), flags=re.M))
    )


def test_the_tour_prints_the_lines_of_the_page_up_to_their_numbers(printed):
    for (_, shown), text in zip(STOPS, printed[0]):
        assert [line.split()[0] for line in text.splitlines()] == [
            line.split()[0] for line in shown.splitlines()
        ]
        shapes = [
            [found.count(",") for found in re.findall(r"\([\d, ]+\)", page)]
            for page in (text, shown)
        ]
        assert shapes[0] == shapes[1]  # as many dimensions


def test_the_shapes_of_the_tour_fit_together(printed):
    _, names = printed
    T, layers, D = (
        frame_count(len(names["wave"])),
        TINY["encoder_num_layers"],
        TINY["encoder_embed_dim"],
    )
    assert names["states"].shape == (layers + 1, 1, T, D)
    assert names["features"].shape == (1, T, D)
    assert names["logits"].shape == (1, 12)
    assert names["pooled"].states.shape == (layers + 1, 1, 1, D)
    assert names["losses"].keys() == TASKS.keys()
    assert (names["sees"], names["apart"]) == (400, 320)


def test_where_the_tour_does_something_by_hand_it_finds_the_same(printed):
    texts, _ = printed
    assert "as by hand: True" in texts[4]
    loss, by_hand, multi_task = re.findall(r"\d+\.\d+", texts[5])
    assert loss == by_hand == multi_task
    assert "has a gradient: True" in texts[8]
    loss, from_pooled = re.findall(r"loss (\d\.\d+) from pooled states (\d\.\d+)", texts[9])[0]
    assert abs(float(loss) - float(from_pooled)) < 2e-4
    assert (
        "layer_sum.weights" in texts[9] and "encoder." not in texts[9]
    )  # of the names that have a gradient


def test_tour_draws_the_nine_tasks_with_the_answers_that_there_are(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, _, reference = tour.pick(TASKS["SD"].read(root, "test"))
    file = tmp_path / "runs/ssl-SD/predictions/SD.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(
        json.dumps({"id": name, "reference": reference, "prediction": [["1", 0.1, 0.5]]}) + "\n"
    )
    monkeypatch.setattr(sys, "argv", ["tour.py", "--data", str(root), "--out", "pictures"])
    tour.main()
    height, width, _ = matplotlib.image.imread("pictures/tasks.png").shape
    assert width >= 1000 and height >= 800


def test_tour_says_in_one_sentence_which_data_are_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tour.py", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        tour.main()
    assert re.fullmatch(r"error: .*nothing called .*\n", capsys.readouterr().err)


def test_tour_starts_as_a_module():
    command = [sys.executable, "-m", "tools.tour", "--help"]
    shown = subprocess.run(command, cwd=PAGE.parent, capture_output=True, text=True)
    assert shown.returncode == 0 and "tasks.png" in shown.stdout and shown.stderr == ""


def test_tour_says_in_one_sentence_where_it_cannot_write(root, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "figures"
    monkeypatch.setattr(sys, "argv", ["tour.py", "--data", str(root), "--out", str(out)])
    with pytest.raises(SystemExit, match="2"):
        tour.main()
    assert re.fullmatch(r"error: cannot write .*tasks.png \(.*\n", capsys.readouterr().err)


def test_a_label_takes_two_lines_at_most():
    assert tour.caption("label", "down") == "label: down"
    assert (
        tour.caption("head", ["change language", "Korean", "none"])
        == "head: change language, Korean, none"
    )
    assert tour.caption("label", 1) == "label: the same speaker"
    assert tour.caption("head", 0.891) == "head: cosine 0.89"
    lines = tour.caption("label", ["AH0"] * 40).splitlines()
    assert len(lines) == 2 and lines[1].endswith("…") and max(map(len, lines)) <= tour.COLUMNS


def test_a_trial_is_heard_as_its_two_utterances_with_a_pause(root):
    corpus = TASKS["ASV"].read(root, "test")
    name, wave, reference = tour.pick(corpus)
    first, second = (next(u for u in corpus.utterances if u.id == id) for id in name.split())
    assert (
        len(wave) == first.samples + 4800 + second.samples
        and not wave[first.samples : first.samples + 4800].any()
    )
    assert reference in (0, 1)

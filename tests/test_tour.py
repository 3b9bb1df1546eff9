"""TOUR.md runs as it stands, TOUR.ipynb is the same page, and tools/tour.py draws its picture."""

import json
import re
from contextlib import redirect_stdout
from io import StringIO

import matplotlib.image
import pytest
from conftest import ROOT, run_main

from model import TINY, frame_count
from tasks import TASKS
from tools import tour
from tools.notebook import BLOCK, INSTALL, PLAYER, notebook

PAGE = (ROOT / "TOUR.md").read_text()
STOPS = BLOCK.findall(PAGE)  # (code, what it printed)


@pytest.fixture(scope="module")
def printed(root, tmp_path_factory) -> tuple[list[str], dict]:
    """What the blocks print on a corpus of a few utterances, and the names that they leave."""
    names, texts = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tour"))
        for code, _ in STOPS:
            with redirect_stdout(StringIO()) as text:
                exec(code.replace("data/toy", str(root)), names)  # a page has no other way to run
            texts.append(text.getvalue())
    return texts, names


def first_words(text: str) -> list[str]:
    """The first word of each line."""
    return [line.split()[0] for line in text.splitlines()]


def dimensions(text: str) -> list[int]:
    """The number of commas in each shape, such as (5, 1, 48, 128)."""
    return [shape.count(",") for shape in re.findall(r"\([\d, ]+\)", text)]


def test_every_stop_of_the_tour_shows_what_it_prints():
    headings = re.findall(r"^## \d", PAGE, flags=re.MULTILINE)
    assert len(STOPS) == PAGE.count("```python") == len(headings)


def test_the_tour_prints_the_lines_of_the_page_up_to_their_numbers(printed):
    texts, _ = printed
    for (_, shown), text in zip(STOPS, texts, strict=True):
        assert first_words(text) == first_words(shown)
        assert dimensions(text) == dimensions(shown)


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
    assert (names["receptive_field"], names["stride_so_far"]) == (400, 320)


def test_where_the_tour_does_something_by_hand_it_finds_the_same(printed):
    texts, _ = printed
    assert "as by hand: True" in texts[4]
    loss, by_hand, multi_task = re.findall(r"\d+\.\d+", texts[5])
    assert loss == by_hand == multi_task
    assert "has a gradient: True" in texts[8]
    ((loss, from_pooled),) = re.findall(r"loss (\d\.\d+) from pooled states (\d\.\d+)", texts[9])
    assert abs(float(loss) - float(from_pooled)) < 2e-4
    # of the names that have a gradient
    assert "layer_sum.weights" in texts[9] and "encoder." not in texts[9]


def test_the_notebook_is_the_page():
    saved = json.loads((ROOT / "TOUR.ipynb").read_text())
    assert saved == notebook(PAGE), "run python -m tools.notebook"


def test_the_notebook_holds_all_text_code_and_output_of_the_page():
    cells = notebook(PAGE)["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    text = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    outputs = ["".join(cell["outputs"][0]["text"]) for cell in cells if cell.get("outputs")]
    assert code[0] == INSTALL.strip() and code[2] == PLAYER.strip()
    assert [*code[1:2], *code[3:]] == [block.strip() for block, _ in STOPS]
    assert outputs == [output for _, output in STOPS]
    rest = BLOCK.sub("", PAGE)
    assert " ".join(text).split() == rest.split()


def test_the_notebook_runs(root, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="runs the notebook")
    nbformat = pytest.importorskip("nbformat", reason="runs the notebook")
    text = json.dumps(notebook(PAGE)).replace("data/toy", str(root))
    page = nbformat.reads(text, as_version=4)
    nbclient.NotebookClient(page, timeout=300, resources={"metadata": {"path": ROOT}}).execute()
    printed = [cell.outputs for cell in page.cells if cell.cell_type == "code"]
    assert not printed[0], "nothing is installed where the page lies"
    assert "audio" in printed[2][0].data["text/html"]
    for (_, shown), outputs in zip(STOPS, [printed[1], *printed[3:]], strict=True):
        text = "".join(one.text for one in outputs if one.get("name") == "stdout")
        assert first_words(text) == first_words(shown)


def test_tour_draws_the_nine_tasks_with_the_answers_that_there_are(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, _, reference = tour.pick(TASKS["SD"].read(root, "test"))
    file = tmp_path / "runs/ssl-SD/predictions/SD.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(
        json.dumps({"id": name, "reference": reference, "prediction": [["1", 0.1, 0.5]]}) + "\n"
    )
    run_main(tour.main, "--data", root, "--out", "pictures")
    height, width, _ = matplotlib.image.imread("pictures/tasks.png").shape
    assert width >= 1000 and height >= 800


def test_tour_says_in_one_sentence_which_data_are_missing(tmp_path, refused):
    error = refused(run_main, [tour.main, "--data", tmp_path])
    assert re.fullmatch(r"error: .*nothing called .*", error)


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

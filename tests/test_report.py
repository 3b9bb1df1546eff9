"""tools/report.py: one page that loads nothing, escapes what it shows, plays, and marks errors."""

import html
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as xml
from argparse import Namespace
from dataclasses import replace

import pytest
from conftest import INPUTS, fake_run, run_main

import tools.report
import train
from engine.runs import RunError, write_config
from evaluate import write_result
from graphs import make_edges, run_changes
from options import Options
from results import read_results
from scenarios import SETTINGS, Run, make_config
from tasks import TASKS
from tools.report import fig2_html, part, table_html, write_report
from tools.utterances import SECONDS, answer_html, choose, is_wrong, runs_of, utterances_html

ALL = tuple(TASKS)
MTL = Run("mtl", ALL)
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def page(workshop) -> str:
    """The page that --scenario all wrote."""
    return (workshop / "runs" / "report.html").read_text()


@pytest.fixture
def hostile(tmp_path) -> str:
    """The page of a run whose folder, command, ids and transcripts are pieces of HTML."""
    runs = tmp_path / "<i>runs"
    config = make_config(Run("ssl", ("ASR",)), SETTINGS["tiny"], INPUTS)
    folder = runs / config.run.name
    recorded = {"command": f"train.py {SCRIPT}", "data": f"{tmp_path}/{SCRIPT}",
                "skip_broken": False}
    write_config(folder, config.to_json(), recorded)
    rows = [{"id": '"><img src=x>', "reference": [SCRIPT, "A"], "prediction": ["<b>", "A"],
             "wer": [1, 2]}]
    write_result(folder, config, 1.0, {"ASR": rows}, "weights", {}, {})
    write_report(runs, tmp_path / "page.html")
    return (tmp_path / "page.html").read_text()


# One file


def test_scenario_all_writes_a_page_below_5_mb_that_loads_nothing_and_has_no_script(page):
    assert len(page.encode()) < 5_000_000
    assert "<script" not in page and "<link" not in page and "@import" not in page
    addresses = re.findall(r'(?:src|href)="(.{5})', page)
    assert addresses and all(address[0] == "#" or address == "data:" for address in addresses)
    assert "default-src 'none'" in page


def test_the_page_has_all_parts_and_each_link_leads_to_one(page):
    anchors = re.findall(r'<section id="(.*?)">', page)
    assert re.findall(r'<a href="#(.*?)"', page) == anchors and len(set(anchors)) == len(anchors)
    titles = html.unescape(" ".join(re.findall(r"<h2>(.*?)</h2>", page)))
    for title in ["Table 1", "Fig. 2", "Summary", "Hidden states", "Learning curves", "Runs",
                  *(f"{task.name}: {task.title}" for task in TASKS.values())]:
        assert title in titles
    assert "This part is missing" not in page and "Without sound" not in page
    assert page.count("<details>") >= 28 and "train.py --ssl-steps 2" in page


def test_text_from_data_is_shown_and_is_no_html(hostile):
    assert "<script" not in hostile and "<img src=x" not in hostile and "<mark><b>" not in hostile
    assert html.escape(SCRIPT) in hostile and html.escape('"><img src=x>') in hostile
    assert "&lt;i&gt;runs" in hostile and "<i>" not in hostile
    assert f"<del>{html.escape(SCRIPT)}</del> <mark>&lt;b&gt;</mark> A" in hostile


def test_a_part_that_cannot_be_made_says_why():
    def fail() -> str:
        raise RunError("a & b are missing")

    assert "This part is missing: a &amp; b are missing" in part("Fig. 2", fail)


# Table 1 and Fig. 2


def test_a_cell_has_a_colour_and_a_sign_against_b1(tmp_path):
    def percent(value: float) -> list:
        return [[value / 100, 1]] * 10

    fake_run(tmp_path, Run("ssl", ("KS",)), {"KS": {"acc": percent(90)}})
    fake_run(tmp_path, MTL, {"KS": {"acc": percent(95)}, "PR": {"per": percent(10)}})
    fake_run(tmp_path, MTL.leave_one_out("IC"), {"KS": {"acc": percent(96)},
                                                 "PR": {"per": percent(11)}})
    table = table_html(read_results(tmp_path), [TASKS["PR"], TASKS["KS"]])
    cells = re.findall(r'<td class="(\w*)">(\S+) <b>(.?)</b>(?:<small>(.*?)</small>)?', table)
    assert cells == [
        ("", "—", "", ""), ("worse", "90.00", "−", "[90.0, 90.0]"),
        ("", "10.00", "", "[10.0, 10.0]"), ("", "95.00", "", "[95.0, 95.0]"),
        ("worse", "11.00", "−", "[11.0, 11.0]"), ("better", "96.00", "+", "[96.0, 96.0]"),
    ]


def test_each_edge_of_fig_2_has_its_numbers_as_title_and_as_text(page, workshop):
    picture = xml.fromstring(re.search(r"<svg.*?</svg>", page, flags=re.S)[0])
    svg = "{http://www.w3.org/2000/svg}"
    shown = [(edge.find(f"{svg}title").text, edge.find(f"{svg}text").text)
             for edge in picture.iter(f"{svg}g") if edge.get("class") == "edge"]
    edges = make_edges(run_changes(workshop / "runs", [0], ALL))
    assert edges and len(shown) == len(edges)
    for edge in edges:
        change = edge.change
        (numbers,) = [title for title, text in shown
                      if title == text and title.startswith(f"{change.source} → {change.target}:")]
        assert f"{change.percent:+.1f} % [{change.low:+.1f}, {change.high:+.1f}]" in numbers


def test_what_fig_2_cannot_show_is_said_above_it(tmp_path):
    scores = {"KS": {"acc": [[0, 1]] * 10}, "PR": {"per": [[1, 10]] * 10}}
    fake_run(tmp_path, MTL, scores)
    fake_run(tmp_path, MTL.leave_one_out("IC"), scores | {"PR": {"per": [[2, 10]] * 10}})
    shown = fig2_html(tmp_path, read_results(tmp_path))
    assert "no edges to KS: acc of mtl-all is 0" in shown and shown.count('class="edge"') == 1
    assert "IC → PR: per +100.0 % [+100.0, +100.0] without IC<" in shown


# Utterances


def test_an_answer_marks_what_is_missing_and_what_is_wrong():
    assert answer_html(["A", "B", "C", "D"], ["A", "X", "D"]) == "A <del>B C</del> <mark>X</mark> D"
    assert answer_html("no", "no") == "no"
    assert answer_html("hap", "ang") == "<del>hap</del> <mark>ang</mark>"
    assert answer_html(["A"], []) == "<del>A</del>"


def test_an_answer_to_a_trial_is_whether_its_cosine_passes_the_threshold():
    assert answer_html(1, 0.75, 0.5) == "same speaker (cosine 0.750, threshold 0.500)"
    assert answer_html(1, 0.75, 0.0) == "same speaker (cosine 0.750, threshold 0.000)"
    assert answer_html(0, 0.75, 0.5).startswith("<del>different speakers</del> <mark>same speaker")
    assert answer_html(0, 0) == "different speakers" and answer_html(1, 1) == "same speaker"


def test_turns_are_bars_in_one_row_per_speaker():
    bars = answer_html([["A", 0.0, 2.0], ["B", 1.0, 4.0]], [["0", 1.0, 3.0], ["1", 3.0, 4.0]])
    found = re.findall(r'rect x="(.*?)" y="(.*?)" height="0.8" width="(.*?)"', bars)
    assert found == [("0.2500", "0", "0.5000"), ("0.7500", "1", "0.2500")]
    assert "speaker 0 1.00-3.00 s, speaker 1 3.00-4.00 s" in bars


def test_the_utterances_are_always_the_same_and_show_an_error_if_there_is_one():
    answers = {str(i): [{"wer": [0, 5]}, {"wer": [int(i == 37), 5]}] for i in range(100)}
    chosen = choose(TASKS["ASR"], answers, [None, None])
    assert "37" in chosen and len(set(chosen)) == 3
    assert chosen == choose(TASKS["ASR"], dict(reversed(answers.items())), [None, None])


@pytest.mark.parametrize("task, row, threshold, wrong", [
    ("SF", {"f1": [1.0, 1], "cer": [0, 9]}, None, False),
    ("SF", {"f1": [1.0, 1], "cer": [2, 9]}, None, True),
    ("SF", {"f1": [0.5, 1], "cer": [0, 9]}, None, True),
    ("KS", {"acc": [0, 1]}, None, True),
    ("ASV", {"reference": 1, "prediction": 0.6}, 0.5, False),
    ("ASV", {"reference": 0, "prediction": 0.6}, 0.5, True),
])
def test_any_error_makes_an_answer_wrong(task, row, threshold, wrong):
    assert is_wrong(TASKS[task], row, threshold) == wrong


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_three_utterances_with_the_answers_of_a_b1_and_c(runs, root, task):
    shown = utterances_html(TASKS[task], read_results(runs), root)
    assert shown.count("<article>") == 3
    assert shown.count("<audio controls") == (6 if task == "ASV" else 3)
    for row in ("(a) SSL", "(b-1) MTL all", "(c) transfer"):
        assert len(re.findall(f"[✓✗] {re.escape(row)}", shown)) == 3


def test_runs_of_the_most_tasks_answer_and_those_of_the_paper_before_their_variants(tmp_path):
    pair = ("IC", "KS")
    for run in (Run("mtl", pair, universe=pair), MTL, replace(MTL, select="dev"),
                replace(MTL, seed=1)):
        fake_run(tmp_path, run, {"KS": {"acc": [[1, 1]]}})
    (chosen,) = runs_of("KS", read_results(tmp_path))
    assert chosen.path.name == "mtl-all"


def test_without_the_data_of_the_runs_there_are_no_players_and_the_page_says_so(
    runs, root, tmp_path
):
    results = read_results(runs)
    shown = utterances_html(TASKS["KS"], results, tmp_path / "gone")
    assert "Without sound: KS: there is no folder" in shown and "<audio" not in shown
    assert shown.count("<article>") == 3
    changed = tmp_path / "changed"
    shutil.copytree(root / "speech_commands_test_set_v0.01",
                    changed / "speech_commands_test_set_v0.01")
    next(changed.glob("*/[a-z]*/*.wav")).unlink()
    shown = utterances_html(TASKS["KS"], results, changed)
    assert "are not those of" in shown and "--data" in shown and "<audio" not in shown


# Commands


def test_a_page_that_cannot_be_written_is_a_note_after_training(tmp_path, monkeypatch, output_of):
    options = Options(runs=tmp_path)
    monkeypatch.setattr(tools.report, "write_report", write_report)
    assert "note: no page.html: no finished run in" in output_of(
        train.write_page, "page.html", options)

    def fail(*arguments) -> None:
        raise ZeroDivisionError("a bug\nin two lines")

    monkeypatch.setattr(tools.report, "write_report", fail)
    assert output_of(train.write_page, "page.html", options) == "note: no page.html: a bug\n"
    with pytest.raises(ZeroDivisionError):
        train.write_page("page.html", replace(options, debug=True))


def test_graphs_that_fail_are_a_note_after_training(runs, tmp_path, output_of):
    (tmp_path / "file").touch()
    args = Namespace(scenario="all", fold=[1], seed=[0], tasks=ALL, select=None, masked_weight=None)
    options = Options(runs=runs, out=tmp_path / "file")
    printed = output_of(train.show_results, args, options, ALL)
    assert "note: no graphs: cannot write to" in printed and "wrote" in printed


def test_a_folder_without_runs_is_one_sentence(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(tools.report, "write_report", write_report)
    refused(run_main, [tools.report.main, "--runs", tmp_path], "no finished run in")


# In a browser

# Runs in the page, in spite of its policy. It writes what it finds into the title.
LOOK = """<script nonce="test">
const errors = [];
addEventListener("error", event => errors.push(event.message || event.target.tagName), true);
addEventListener("load", async () => {
  const sounds = [...document.querySelectorAll("audio")];
  await Promise.all(sounds.map(sound => new Promise(done => {
    sound.onloadedmetadata = sound.onerror = done;
    sound.load();
  })));
  const edge = document.querySelector(".edge");
  const display = () => edge && getComputedStyle(edge.querySelector("text")).display;
  const numbers = [display()];
  edge && edge.focus();
  numbers.push(display());
  document.body.style.width = "400px";
  document.title = JSON.stringify({errors, numbers, seconds: sounds.map(sound => sound.duration),
                                   width: document.body.scrollWidth});
});
</script>"""


def browse(page: str, folder) -> dict:
    """What Chromium finds in a page (LOOK), with the messages of its console."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium here; on Debian: apt-get install chromium")
    policy = "style-src 'unsafe-inline'"
    assert policy in page
    page = page.replace(policy, f"{policy}; script-src 'nonce-test'")
    (folder / "page.html").write_text(page.replace("<title>", f"{LOOK}<title>", 1))
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=30000", "--dump-dom",
               (folder / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1]))
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return {**found, "console": console, "document": done.stdout}


def test_a_browser_opens_the_page_plays_it_and_shows_the_numbers_of_an_edge(page, tmp_path):
    found = browse(page, tmp_path)
    assert found["errors"] == [] and found["console"] == []
    assert len(found["seconds"]) == page.count("<audio")
    assert all(seconds and 0 < seconds <= SECONDS + 0.2 for seconds in found["seconds"])
    assert found["numbers"] == ["none", "block"]  # before and after the keyboard reaches it
    assert found["width"] <= 400  # only boxes inside of the page scroll


def test_a_browser_runs_no_script_of_a_transcript(hostile, tmp_path):
    found = browse(hostile, tmp_path)
    assert found["errors"] == [] and found["console"] == []
    assert html.escape(SCRIPT) in found["document"]

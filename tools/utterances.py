"""Test utterances for tools/report.py: a player, the reference, what (a), (b-1) and (c) answered.

They show what the metrics of a task count (paper, Section 3.1).
"""

import base64
import io
import random
from difflib import SequenceMatcher
from html import escape
from pathlib import Path

import soundfile

from corpus import Corpus, load_audio
from engine.files import DataError, check
from engine.runs import RunError, read_config, read_result
from metrics import ratio
from results import Result, row_name
from rules import SAMPLE_RATE
from tasks import Task, read_corpus

SECONDS = 10  # of a recording that are played
SAME, DIFFERENT = ["same speaker"], ["different speakers"]  # answers to a trial


def utterances_html(task: Task, results: list[Result], data: Path | None) -> str:
    """Three test utterances of a task. `data`: where the datasets lie now.

    Without audio they come without players, and the reason is given. Raises RunError if no run of
    (a), (b-1) or (c) has a head for the task.
    """
    runs = runs_of(task.name, results)
    thresholds = [read_result(run.path)["thresholds"].get(task.name) for run in runs]
    answers = {}  # id -> one row for each run
    for run in runs:
        for row in run.predictions(task.name):
            answers.setdefault(row["id"], []).append(row)
    chosen = choose(task, answers, thresholds)
    sounds, note = dict.fromkeys(chosen, ""), ""
    try:
        corpus = read_test(task.name, runs[0], data)
        sounds = {name: players(corpus, name) for name in chosen}
    except (DataError, OSError, RuntimeError) as error:
        note = f"<p>Without sound: {escape(str(error))}</p>"
    articles = ""
    for name in chosen:
        lines, reference = "", answers[name][0]["reference"]
        for run, row, threshold in zip(runs, answers[name], thresholds):
            sign = "✗" if is_wrong(task, row, threshold) else "✓"
            rates = "" if threshold is not None else error_rates(task, row)
            lines += (f"<dt>{sign} {escape(row_name(run.config))}{rates}</dt>"
                      f"<dd>{answer_html(reference, row['prediction'], threshold)}</dd>")
        articles += (f"<article><h3>{escape(name)}</h3>{sounds[name]}<dl><dt>reference</dt>"
                     f"<dd>{answer_html(reference, reference)}</dd>{lines}</dl></article>")
    return f'{note}<div class="utterances">{articles}</div>'


def runs_of(task: str, results: list[Result]) -> list[Result]:
    """The first run of each of (a), (b-1) and (c) that has a head for the task and the same data.

    Runs of the most tasks come first, and those of the paper before their variants. Raises RunError
    if there is none.
    """
    chosen = []
    for scenario in ("ssl", "mtl", "transfer"):
        found = [run for run in results if run.config.scenario == scenario and task in run.metrics]
        found.sort(key=lambda run: (-len(run.config.universe), run.config.run.variant,
                                    run.config.fold, run.config.seed))
        if chosen:
            found = [run for run in found if run.config.data[task] == chosen[0].config.data[task]]
        chosen += found[:1]
    if not chosen:
        raise RunError(f"no run of (a), (b-1) or (c) has a head for {task}")
    return chosen


def choose(task: Task, answers: dict[str, list[dict]], thresholds: list) -> list[str]:
    """Three ids, always the same ones: two with a wrong answer and one without, if there are."""
    wrong, right = [], []
    for name in random.Random(0).sample(sorted(answers), len(answers)):
        rows = zip(answers[name], thresholds)
        any_wrong = any(is_wrong(task, row, threshold) for row, threshold in rows)
        (wrong if any_wrong else right).append(name)
    return (wrong[:2] + right[:1] + wrong[2:] + right[1:])[:3]


def is_wrong(task: Task, row: dict, threshold: float | None) -> bool:
    """Whether an answer has any error. That of a trial is whether its cosine passes `threshold`."""
    if threshold is not None:
        return (row["prediction"] >= threshold) != row["reference"]
    for metric in task.metrics:
        value, total = row[metric.name]
        if (value > 0) if metric.lower_is_better else (value < total):
            return True
    return False


def error_rates(task: Task, row: dict) -> str:
    """The error rates of one utterance."""
    text = ""
    for metric in task.metrics:
        errors, total = row[metric.name]
        if metric.lower_is_better and metric.reduce is ratio and total:
            text += f", {metric.name} {100 * errors / total:.0f} %"
    return text


def answer_html(reference, answer, threshold: float | None = None) -> str:
    """An answer with its differences from the reference marked; turns of speakers are bars."""
    ending = ""
    if isinstance(reference, int):  # of a trial: 1 for the same speaker
        if threshold is not None:
            ending = f" (cosine {answer:.3f}, threshold {threshold:.3f})"
        # Without a threshold, `answer` is the reference itself: 0 or 1.
        answer = SAME if answer >= (1 if threshold is None else threshold) else DIFFERENT
        reference = SAME if reference else DIFFERENT
    if isinstance(reference, str):
        reference, answer = reference.split(), answer.split()
    if any(isinstance(item, list) for item in [*reference, *answer]):
        return turns_html(answer, max(end for _, _, end in [*reference, *answer]))
    pieces = []
    matcher = SequenceMatcher(None, reference, answer, autojunk=False)
    for kind, start, stop, answer_start, answer_stop in matcher.get_opcodes():
        said = escape(" ".join(answer[answer_start:answer_stop]))
        if kind in ("delete", "replace"):
            pieces.append(f"<del>{escape(' '.join(reference[start:stop]))}</del>")
        if said:
            pieces.append(said if kind == "equal" else f"<mark>{said}</mark>")
    return " ".join(pieces) + ending


def turns_html(turns: list, end: float) -> str:
    """Who speaks when, from 0 to `end` seconds: one row of bars for each speaker."""
    speakers = list(dict.fromkeys(speaker for speaker, _, _ in turns))
    bars, texts = "", []
    for speaker, start, stop in turns:
        bars += (f'<rect x="{start / end:.4f}" y="{speakers.index(speaker)}" height="0.8" '
                 f'width="{(stop - start) / end:.4f}"/>')
        texts.append(f"speaker {speaker} {start:.2f}-{stop:.2f} s")
    return (f'<svg class="turns" viewBox="0 0 1 {len(speakers)}" preserveAspectRatio="none" '
            f'role="img"><title>{escape(", ".join(texts))}</title>{bars}</svg>')


def read_test(task: str, run: Result, data: Path | None) -> Corpus:
    """The test set of a run. Raises DataError if it is not there or has changed."""
    recorded = read_config(run.path)["recorded"]
    data, cache = data or Path(recorded["data"]), run.path.parent / "cache"
    corpus = read_corpus(task, data, "test", run.config.fold, recorded["skip_broken"], cache)
    same = corpus.digest == run.config.data[task]["test"]
    check(same, f"{task}: the test data in {data} are not those of {run.path}; name the right ones "
          "with --data")
    return corpus


def players(corpus: Corpus, name: str) -> str:
    """A player of an utterance, or two of a trial. One plays what the encoder hears, as MP3."""
    utterances = {utterance.id: utterance for utterance in corpus.utterances}
    trials = {f"{a} {b}": (a, b) for _, a, b in corpus.trials}
    html = ""
    for part in trials.get(name, (name,)):
        wave, content = load_audio(utterances[part], corpus), io.BytesIO()
        soundfile.write(content, wave[:SECONDS * SAMPLE_RATE], SAMPLE_RATE, format="MP3")
        sound = base64.b64encode(content.getvalue()).decode()
        html += f'<audio controls src="data:audio/mpeg;base64,{sound}"></audio>'
    return html

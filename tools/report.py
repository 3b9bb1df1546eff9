"""One page about finished runs that a teacher opens in class (paper, Section 4).

    python -m tools.report --runs runs [--out runs/report.html] [--data DIR]

The page holds Table 1 with intervals, Fig. 2 with the numbers of each edge, the plots, utterances
with the answers of (a), (b-1) and (c), and the configurations. It is one file that loads nothing
and runs no script. All text from data is escaped.
"""

import argparse
import base64
import io
import json
import random
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from difflib import SequenceMatcher
from html import escape
from pathlib import Path
from string import Template

import matplotlib
import soundfile
from matplotlib.figure import Figure

from corpus import Corpus, load_audio
from engine.files import DataError, check
from engine.launch import friendly_errors
from engine.runs import RunError, read_config, read_result, save_text
from graphs import Edge, drawn_metric, make_edges, run_changes
from metrics import ratio
from results import Result, check_comparable, read_results, row_name, table_cells, table_rows
from rules import SAMPLE_RATE
from tasks import TASKS, Task, read_corpus
from tools.drawing import draw, on_circle
from tools.plots import plot_curves, plot_layers

PAGE = Path(__file__).with_name("report.html")
COMPARED = ("(a", "(b-2)", "(c)")  # the rows that are compared with (b-1)
MARKS = {"+": ("better", "+"), "-": ("worse", "−")}  # of `table_rows`: class and sign of a cell
LARGEST_SVG = 500_000  # bytes; a larger picture is embedded as PNG
PLAYED = 10  # seconds of a recording


def write_report(runs: Path, out: Path, data: Path | None = None) -> None:
    """Write the page. `data`: where the datasets lie now, if not where the runs found them.

    A part of the page that cannot be made says why. Raises RunError if there is no finished run or
    if the runs cannot be compared, and OSError if the page cannot be written.
    """
    results = read_results(runs)
    if not results:
        raise RunError(f"no finished run in {runs}; python train.py makes one")
    check_comparable(results)
    tasks = [task for task in TASKS.values() if any(task.name in run.metrics for run in results)]
    parts = [part("Table 1", table_html, results, tasks),
             part("Fig. 2", fig2_html, runs, results),
             part("Hidden states", plot_html, plot_layers, results),
             part("Learning curves", plot_html, plot_curves, results)]
    for task in tasks:
        parts.append(part(f"{task.name}: {task.title}", examples_html, task, results, data))
    parts.append(part("Runs", configurations_html, results))
    links = ""
    for anchor, title in re.findall(r'<section id="(.*?)"><h2>(.*?)</h2>', "".join(parts)):
        links += f'<a href="#{anchor}">{title}</a>'
    page = Template(PAGE.read_text())
    save_text(out, page.substitute(runs=escape(str(runs)), links=links, parts="\n".join(parts)))


def part(title: str, make: Callable, *arguments) -> str:
    """A section of the page; if it cannot be made, it says why."""
    try:
        content = make(*arguments)
    except (RunError, DataError, OSError, ValueError) as error:
        content = f"<p>This part is missing: {escape(str(error))}</p>"
    anchor = re.sub(r"\W+", "-", title.lower())
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>\n{content}\n</section>'


def scrolling(content: str, name: str, look: str = "") -> str:
    """A box for what is wider than a small window; the arrow keys scroll it, too."""
    return (f'<div class="scrolling {look}" tabindex="0" role="region" aria-label="{name}">'
            f"{content}</div>")


# Table 1, Fig. 2, plots


def table_html(results: list[Result], tasks: list[Task]) -> str:
    """Table 1; a cell has its value, its sign against (b-1), and its 95 % interval."""
    cells = table_cells(results, intervals=True)
    heading, *rows = table_rows(cells, [task.name for task in tasks], COMPARED)
    lines = ["<tr>" + "".join(f'<th scope="col">{escape(text)}</th>' for text in heading) + "</tr>"]
    for name, *texts in rows:
        line = f'<tr><th scope="row">{escape(name)}</th>'
        for text in texts:
            value, _, interval = text.strip().rstrip("+-").partition(" [")
            look, sign = MARKS.get(text[-1], ("", ""))
            line += f'<td class="{look}">{value} <b>{sign}</b>'
            line += f"<small>[{interval}</small></td>" if interval else "</td>"
        lines.append(line + "</tr>")
    return ('<p>In percent, with 95 % intervals. <span class="better">+ better</span>, <span '
            'class="worse">− worse</span> than (b-1). X left out, — not run.</p>'
            + scrolling(f"<table>{''.join(lines)}</table>", "Table 1"))


def fig2_html(runs: Path, results: list[Result]) -> str:
    """Fig. 2; pointing at an edge, or moving to it with the Tab key, shows its numbers."""
    finetuned = [result.config for result in results if result.config.trains_encoder]
    universe = max([config.universe for config in finetuned], key=len, default=tuple(TASKS))
    seeds = sorted({config.seed for config in finetuned})
    with redirect_stdout(io.StringIO()) as notes:
        changes = run_changes(runs, seeds, universe)
    edges = make_edges(changes)
    title = f"{runs}, seed {' '.join(str(seed) for seed in seeds)}"
    picture = svg_text(draw(edges, on_circle(changes), title))
    for edge in edges:
        before, after = picture.split(f'<g id="edge-{edge.change.source}-{edge.change.target}">')
        line, text = re.search(r' d="([^"]+)"', after)[1], edge_text(edge)
        picture = (f'{before}<g class="edge" tabindex="0" role="img"><title>{text}</title>'
                   f'<path class="target" d="{line}"/><text x="50%" y="10">{text}</text>{after}')
    return ("<p>An arrow B → A: leaving B out changes the score of A. Point at an arrow, or press the "
            f"Tab key, to see its numbers. {escape(notes.getvalue())}</p>"
            + scrolling(picture, "Fig. 2", "picture"))


def edge_text(edge: Edge) -> str:
    """The numbers of an edge in one line."""
    change = edge.change
    metric = drawn_metric(change.target).heading
    noise = "; may be noise" if edge.is_dashed else ""
    return (f"{change.source} → {change.target}: without {change.source}, {metric} of "
            f"{change.target} changes by {change.percent:+.1f} % "
            f"[{change.low:+.1f}, {change.high:+.1f}]{noise}")


def svg_text(figure: Figure) -> str:
    """A figure as SVG, without the lines above the <svg> tag."""
    content = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):  # the same runs give the same page
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()[content.getvalue().index("<svg"):]


def plot_html(plot: Callable, results: list[Result]) -> str:
    """A plot as SVG, or as PNG if the SVG is large; its caption is what its function says of it."""
    figure, caption = plot(results), escape(plot.__doc__.splitlines()[0])
    kind, content = "svg+xml", svg_text(figure).encode()
    if len(content) > LARGEST_SVG:
        kind, png = "png", io.BytesIO()
        figure.savefig(png, format="png", dpi=130)
        content = png.getvalue()
    inches = figure.get_size_inches()[0]
    image = (f'<img alt="{caption}" style="width: clamp({60 * inches}px, 100%, {96 * inches}px)" '
             f'src="{data_address("image/" + kind, content)}">')
    return f"<p>{caption}</p>{scrolling(image, 'plot', 'picture')}"


# Utterances


def examples_html(task: Task, results: list[Result], data: Path | None) -> str:
    """Three test utterances of a task with a player, and what (a), (b-1) and (c) answered."""
    runs = runs_of(task.name, results)
    thresholds = [read_result(run.path)["thresholds"].get(task.name) for run in runs]
    answers = {}  # id -> the rows of the runs
    for run in runs:
        for row in run.predictions(task.name):
            answers.setdefault(row["id"], []).append(row)
    articles, note = "", ""
    for name in choose(task, answers, thresholds):
        try:
            sound = players(read_test(task.name, runs[0], data), name)
        except (DataError, OSError, RuntimeError) as error:
            sound, note = "", f"<p>Without sound: {escape(str(error))}</p>"
        lines = ""
        for run, row, threshold in zip(runs, answers[name], thresholds):
            sign = "✗" if is_wrong(task, row, threshold) else "✓"
            shown = answer_html(row["reference"], row["prediction"], threshold)
            lines += f"<dt>{sign} {escape(row_name(run.config))}{error_rates(task, row)}</dt>"
            lines += f"<dd>{shown}</dd>"
        reference = answer_html(row["reference"], row["reference"], None)
        articles += (f"<article><h3>{escape(name)}</h3>{sound}<dl><dt>reference</dt>"
                     f"<dd>{reference}</dd>{lines}</dl></article>")
    return f'{note}<div class="utterances">{articles}</div>'


def runs_of(task: str, results: list[Result]) -> list[Result]:
    """The first run of each of (a), (b-1) and (c) with a head for the task and the same data."""
    chosen = []
    for scenario in ("ssl", "mtl", "transfer"):
        found = [run for run in results if run.config.scenario == scenario and task in run.metrics]
        found.sort(key=lambda run: (run.config.fold, run.config.seed, -len(run.config.universe)))
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
        is_bad = any(is_wrong(task, row, threshold) for row, threshold in rows)
        (wrong if is_bad else right).append(name)
    return (wrong[:2] + right[:1] + wrong[2:] + right[1:])[:3]


def is_wrong(task: Task, row: dict, threshold: float | None) -> bool:
    """Whether an answer has any error; that of a trial is whether its cosine passes a threshold."""
    if threshold is not None:
        return (row["prediction"] >= threshold) != row["reference"]
    for metric in task.metrics:
        value, total = row[metric.name]
        if value > 0 if metric.lower_is_better else value < total:
            return True
    return False


def error_rates(task: Task, row: dict) -> str:
    """The error rates of one utterance; other metrics say little of one."""
    text = ""
    for metric in task.metrics:
        errors, total = row[metric.name]
        if metric.reduce is ratio and metric.lower_is_better and total:
            text += f", {metric.name} {100 * errors / total:.0f} %"
    return text


def answer_html(reference, answer, threshold: float | None) -> str:
    """An answer, with its differences from the reference marked; turns of speakers as bars."""
    if isinstance(reference, int):  # of a trial
        text = "same speaker" if answer >= (threshold or 0.5) else "different speakers"
        return text if threshold is None else f"{text} (cosine {answer:.3f}; same from {threshold:.3f})"
    if isinstance(reference, str):
        reference, answer = reference.split(), answer.split()
    if any(isinstance(item, list) for item in [*reference, *answer]):
        return turns_html(answer, max(end for _, _, end in [*reference, *answer]))
    pieces = []
    for kind, a, b, c, d in SequenceMatcher(None, reference, answer, False).get_opcodes():
        said = escape(" ".join(answer[c:d]))
        if kind != "equal" and a < b:
            pieces.append(f"<del>{escape(' '.join(reference[a:b]))}</del>")
        if said:
            pieces.append(said if kind == "equal" else f"<mark>{said}</mark>")
    return " ".join(pieces)


def turns_html(turns: list, end: float) -> str:
    """Who speaks when, from 0 to `end` seconds: one row of bars for each speaker."""
    speakers = list(dict.fromkeys(speaker for speaker, _, _ in turns))
    bars = ""
    for speaker, start, stop in turns:
        bars += (f'<rect x="{start / end:.4f}" y="{speakers.index(speaker)}" height="0.8" '
                 f'width="{(stop - start) / end:.4f}"/>')
    text = ", ".join(f"speaker {k} {start:.2f}-{stop:.2f} s" for k, start, stop in turns)
    return (f'<svg class="turns" viewBox="0 0 1 {len(speakers)}" preserveAspectRatio="none" '
            f'role="img"><title>{escape(text)}</title>{bars}</svg>')


def read_test(task: str, run: Result, data: Path | None) -> Corpus:
    """The test set of a run. Raises DataError if it is not there or has changed."""
    recorded = read_config(run.path)["recorded"]
    data, cache = data or Path(recorded["data"]), run.path.parent / "cache"
    corpus = read_corpus(task, data, "test", run.config.fold, recorded["skip_broken"], cache)
    check(corpus.digest == run.config.data[task]["test"],
          f"{task}: the test data in {data} are not those of {run.path}; name them with --data")
    return corpus


def players(corpus: Corpus, name: str) -> str:
    """Players of an utterance, or of both utterances of a trial, as the encoder hears them."""
    utterances = {utterance.id: utterance for utterance in corpus.utterances}
    of_trial = {f"{a} {b}": (a, b) for _, a, b in corpus.trials}
    html = ""
    for part_of in of_trial.get(name, (name,)):
        wave = load_audio(utterances[part_of], corpus)
        content = io.BytesIO()
        soundfile.write(content, wave[:PLAYED * SAMPLE_RATE], SAMPLE_RATE, format="MP3")
        html += f'<audio controls src="{data_address("audio/mpeg", content.getvalue())}"></audio>'
    return html


def configurations_html(results: list[Result]) -> str:
    """The command of each run, and everything that decides its result."""
    html = ""
    for run in results:
        config = {key: value for key, value in run.config.to_json().items() if key != "built_on"}
        command = read_config(run.path)["recorded"].get("command", "")
        html += (f"<details><summary>{escape(run.path.name)}</summary>"
                 f"<p><code>python {escape(command)}</code></p>"
                 f"<pre>{escape(json.dumps(config, indent=1))}</pre></details>")
    return html


def data_address(kind: str, content: bytes) -> str:
    """The content of a file as an address inside of the page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder with the runs")
    parser.add_argument("--out", type=Path, help="the page; default: report.html in --runs")
    parser.add_argument("--data", type=Path, help="where the datasets lie now")
    args = parser.parse_args(arguments)
    with friendly_errors():
        out = args.out or args.runs / "report.html"
        write_report(args.runs, out, args.data)
        print(f"wrote {out}; open it in a browser")


if __name__ == "__main__":
    main()

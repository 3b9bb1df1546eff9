"""One page about finished runs that a teacher opens in class (paper, Section 4).

    python -m tools.report --runs runs [--out runs/report.html] [--data DIR]

The page holds Table 1 with intervals, Fig. 2 with the numbers of each edge, the plots, utterances
with the answers of (a), (b-1) and (c) (tools/utterances.py), and the configurations. It is one file
that loads nothing and runs no script. All text from data is escaped.
"""

import argparse
import base64
import io
import json
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from html import escape
from pathlib import Path
from string import Template

import matplotlib

from engine.files import DataError
from engine.flags import as_path
from engine.launch import friendly_errors
from engine.runs import RunError, read_config, save_text
from graphs import Edge, drawn_metric, make_edges, run_changes
from results import Result, check_comparable, read_results, table_cells, table_rows
from tasks import TASKS, Task
from tools.drawing import draw, on_circle
from tools.plots import plot_curves, plot_layers
from tools.scores import plot_summary
from tools.utterances import utterances_html

PAGE = Path(__file__).with_name("report.html")
COMPARED = ("(a", "(b-2)", "(c)")  # the rows that are compared with (b-1)
MARKS = {"+": ("better", "+"), "-": ("worse", "−")}  # of `table_rows`: class and sign of a cell


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
    parts = [part("Summary", plot_html, plot_summary, results),
             part("Table 1", table_html, results, tasks),
             part("Fig. 2", fig2_html, runs, results),
             part("Hidden states", plot_html, plot_layers, results),
             part("Learning curves", plot_html, plot_curves, results)]
    for task in tasks:
        parts.append(part(f"{task.name}: {task.title}", utterances_html, task, results, data))
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


def table_html(results: list[Result], tasks: list[Task]) -> str:
    """Table 1; a cell has its value, its sign against (b-1), and its 95 % interval."""
    cells = table_cells(results, intervals=True)
    heading, *rows = table_rows(cells, [task.name for task in tasks], COMPARED)
    lines = "".join(f'<th scope="col">{escape(text)}</th>' for text in heading)
    for name, *texts in rows:
        lines += f'<tr><th scope="row">{escape(name)}</th>'
        for text in texts:
            value, _, interval = text.strip().rstrip("+-").partition(" [")
            look, sign = MARKS.get(text[-1], ("", ""))
            small = f"<small>[{interval}</small>" if interval else ""
            lines += f'<td class="{look}">{value} <b>{sign}</b>{small}</td>'
        lines += "</tr>"
    return ('<p>In percent, with 95 % intervals. <span class="better">+ better</span>, <span '
            'class="worse">− worse</span> than (b-1). X left out, — not run. ↓ lower is better, '
            f"↑ higher is better.</p>{scrolling(f'<table>{lines}</table>', 'Table 1')}")


def fig2_html(runs: Path, results: list[Result]) -> str:
    """Fig. 2; pointing at an edge, or moving to it with the Tab key, shows its numbers."""
    finetuned = [result.config for result in results if result.config.trains_encoder]
    universe = max([config.universe for config in finetuned], key=len, default=tuple(TASKS))
    seeds = sorted({config.seed for config in finetuned})
    with redirect_stdout(io.StringIO()) as notes:
        changes = run_changes(runs, seeds, universe)
    edges, content = make_edges(changes), io.StringIO()
    title = f"{runs}, seed {' '.join(str(seed) for seed in seeds)}"
    with matplotlib.rc_context({"svg.hashsalt": "report"}):  # the same runs give the same page
        figure = draw(edges, on_circle(changes), title)
        figure.savefig(content, format="svg", metadata={"Date": None})
    picture = content.getvalue()[content.getvalue().index("<svg"):]
    for edge in edges:
        before, after = picture.split(f'<g id="edge-{edge.change.source}-{edge.change.target}">')
        line, numbers = re.search(r' d="([^"]+)"', after)[1], edge_text(edge)
        x = "25%" if edge.change.graph == "improvement" else "75%"  # above its graph
        picture = (f'{before}<g class="edge" tabindex="0" role="img"><title>{numbers}</title><path '
                   f'class="target" d="{line}"/><text x="{x}" y="9">{numbers}</text>{after}')
    return ("<p>An arrow B → A: leaving B out changes the score of A. Point at an arrow, or press "
            f"the Tab key, to see its numbers. {escape(notes.getvalue())}</p>"
            + scrolling(picture, "Fig. 2", "picture"))


def edge_text(edge: Edge) -> str:
    """The numbers of an edge, short enough for one line above its graph."""
    change = edge.change
    noise = "; may be noise" if edge.is_dashed else ""
    return (f"{change.source} → {change.target}: {drawn_metric(change.target).name} "
            f"{change.percent:+.1f} % [{change.low:+.1f}, {change.high:+.1f}] without "
            f"{change.source}{noise}")


def plot_html(plot: Callable, results: list[Result]) -> str:
    """A plot of tools/; its caption is the first line of its docstring."""
    figure, content = plot(results), io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    address = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    caption, inches = escape(plot.__doc__.splitlines()[0]), figure.get_size_inches()[0]
    width = f"width: clamp({60 * inches:.0f}px, 100%, {96 * inches:.0f}px)"
    image = f'<img alt="{caption}" style="{width}" src="{address}">'
    return f"<p>{caption}</p>{scrolling(image, 'plot', 'picture')}"


def configurations_html(results: list[Result]) -> str:
    """The command of each run, and everything that decides its result."""
    html = ""
    for run in results:
        lines = ""
        for key, value in run.config.to_json().items():
            if key != "built_on":  # the configurations of other runs of the list
                lines += f"{key}: {json.dumps(value)}\n"
        command = read_config(run.path)["recorded"].get("command", "")
        html += (f"<details><summary>{escape(run.path.name)}</summary>"
                 f"<p><code>python {escape(command)}</code></p>"
                 f"<pre>{escape(lines)}</pre></details>")
    return html


def main() -> None:
    """The command line. User errors print one line and exit with code 2."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=as_path, default=Path("runs"), help="folder with the runs")
    parser.add_argument("--out", type=as_path, help="the page; default: report.html in --runs")
    parser.add_argument("--data", type=as_path, help="where the datasets lie now")
    args = parser.parse_args()
    with friendly_errors():
        out = args.out or args.runs / "report.html"
        write_report(args.runs, out, args.data)
        print(f"wrote {out}; open it in a browser")


if __name__ == "__main__":
    main()

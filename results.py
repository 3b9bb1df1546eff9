"""Finished runs: read them, check that they can be compared, and make Table 1 (paper, Section 4).

The command is python evaluate.py --table. A result is a mean over seeds, and for ER over folds.
"""

from dataclasses import dataclass
from pathlib import Path

from engine.launch import say
from engine.runs import RunError, differences, file_digest, read_json_lines, read_result
from metrics import bootstrap
from scenarios import Inputs, RunConfig, load_config
from tasks import TASKS, Metric


@dataclass(frozen=True)
class Result:
    """A finished run."""

    path: Path
    config: RunConfig
    metrics: dict[str, dict[str, float]]  # task -> metric -> percent
    constant: dict[str, dict[str, float]]  # the same of the best constant answer
    digests: dict[str, str]  # task -> digest of its file of predictions

    def predictions(self, task: str) -> list[dict]:
        """The rows of predictions/<TASK>.jsonl, one per test utterance (tasks.score).

        Raises RunError if the file is not the one that the run wrote.
        """
        path = self.path / "predictions" / f"{task}.jsonl"
        try:
            digest = file_digest(path)
            intact = digest == self.digests.get(task)
        except OSError:
            intact = False
        if not intact:
            raise RunError(f"{path} is missing or was changed since the run ended; "
                           f"delete {self.path} and train again")
        return read_json_lines(path)

    def pairs(self, task: str, metric: str) -> list[tuple[str, list]]:
        """(id, two numbers) of each test utterance; metrics.py reduces the numbers to the metric.

        Raises RunError if the predictions are not those that the run wrote.
        """
        try:
            return [(row["id"], row[metric]) for row in self.predictions(task)]
        except KeyError as error:
            raise RunError(f"no {error.args[0]} in a line of {self.path}/predictions/{task}.jsonl; "
                           f"delete {self.path}") from error


def read_results(runs: Path) -> list[Result]:
    """The finished runs in a folder. Raises RunError if one is damaged.

    A folder whose name is not that of its run, such as a copy, is ignored after a note. A run
    of ssl-masked has no scores and is left out.
    """
    results = []
    for path in sorted(runs.glob("*/result.json")):
        config, saved = load_config(path.parent), read_result(path.parent)
        if path.parent.name != config.run.name:
            say(f"note: {path.parent} holds a copy of the run {config.run.name} and is ignored")
            continue
        if config.scenario == "ssl-masked":
            continue
        try:
            results.append(Result(path.parent, config, saved["metrics"], saved["constant"],
                                  saved["predictions"]))
        except (KeyError, TypeError) as error:
            raise RunError(f"no result of ours in {path}; delete {path.parent}") from error
    return results


def check_comparable(results: list[Result]) -> None:
    """Raises RunError unless the runs agree in everything but scenario, task, seed and fold.

    All runs must have the same data, encoder, setting and precision; the runs of one scenario and
    task must agree in all numbers.
    """
    common = ("encoder", "setting", "precision", "scale")
    first_of_corpus, first_of_cell = {}, {}
    for result in results:
        config, first = result.config, results[0]
        _check_equal(first, result, {key: getattr(first.config, key) for key in common},
                     {key: getattr(config, key) for key in common})
        for task, digests in config.data.items():
            other = first_of_corpus.setdefault(Inputs.key(task, config.fold), result)
            _check_equal(other, result, other.config.data[task], digests, f"data.{task}.")
        other = first_of_cell.setdefault((row_name(config), config.label), result)
        _check_equal(other, result, training_settings(other.config), training_settings(config))


def _check_equal(first: Result, result: Result, before: dict, now: dict, prefix: str = "") -> None:
    """Raises RunError if two runs differ in some values."""
    changed = differences(before, now, set(), prefix)
    if changed:
        raise RunError(f"{first.path} and {result.path} cannot be compared: "
                       f"{'; '.join(changed)}; move one of them to another folder")


def training_settings(config: RunConfig) -> dict:
    """What the runs of one cell must share: a configuration as JSON, without what may differ.

    Seeds and folds may differ, and with them the names and the data of the prerequisites.
    """

    def strip(values: dict) -> dict:
        """A configuration, and those in its "built_on", without what may differ."""
        dropped = ("seed", "fold", "data", "encoder_run", "built_on")
        kept = {key: value for key, value in values.items() if key not in dropped}
        parts = [strip(other) for other in values["built_on"].values()]
        parts.sort(key=lambda part: (part["scenario"], part["label"]))
        # Names of prerequisites contain the seed and the fold; these keys do not.
        kept["built_on"] = {}
        for part in parts:
            kept["built_on"][f"{part['scenario']}-{part['label']}"] = part
        return kept

    return strip(config.to_json())


# Table 1

CONSTANT = "constant answer"  # a row


def row_name(config: RunConfig) -> str:
    """The row of Table 1 that a run belongs to."""
    tasks = "" if len(config.universe) == len(TASKS) else f" of {'+'.join(config.universe)}"
    name = {"ssl": "(a) SSL", "control": f"(a+) SSL, more steps{tasks}",
            "mtl": f"(b-1) MTL{tasks or ' all'}",
            "leave-one-out": f"(b-2) all but {config.left_out}{tasks}",
            "transfer": f"(c) transfer{tasks}"}[config.scenario]
    return ", ".join([name, *config.run.variant])


def table_cells(results: list[Result], intervals: bool = False) -> dict[str, dict[tuple, tuple]]:
    """{row: {(task, metric): (percent, low, high)}}; low and high are None without `intervals`.

    A cell is the mean over the seeds of each fold, then over the folds, of which only ER has
    several. The interval covers utterances and seeds; there is none where folds have different
    test sets. Raises RunError if the runs cannot be compared.
    """
    check_comparable(results)
    gathered = {}  # row -> (task, metric) -> fold -> results
    for result in results:
        row = gathered.setdefault(row_name(result.config), {})
        for task, metrics in result.metrics.items():
            fold = result.config.fold if TASKS[task].folds > 1 else 1
            for metric in metrics:
                row.setdefault((task, metric), {}).setdefault(fold, []).append(result)
    cells = {}
    for row, columns in gathered.items():
        cells[row] = {}
        for (task, metric), folds in columns.items():
            means = [sum(run.metrics[task][metric] for run in runs) / len(runs)
                     for runs in folds.values()]
            low = high = None
            if intervals and len(folds) == 1:
                low, high = interval(next(iter(folds.values())), task, metric)
            cells[row][task, metric] = sum(means) / len(means), low, high
    constant = constant_cells(results)
    return {CONSTANT: constant, **cells} if constant else cells


def constant_cells(results: list[Result]) -> dict[tuple, tuple]:
    """The row of the best constant answer; the same for all runs of a task and fold."""
    values = {}
    for result in results:
        for task, metrics in result.constant.items():
            fold = result.config.fold if TASKS[task].folds > 1 else 1
            for metric, value in metrics.items():
                values.setdefault((task, metric), {})[fold] = value
    return {key: (sum(folds.values()) / len(folds), None, None) for key, folds in values.items()}


def interval(runs: list[Result], task: str, metric: str) -> tuple[float, float]:
    """The 95 % bootstrap interval of a metric over the utterances and the seeds, in percent."""
    reduce = next(m.reduce for m in TASKS[task].metrics if m.name == metric)
    seeds = []
    for run in runs:
        pairs = dict(run.pairs(task, metric))
        if seeds and pairs.keys() != seeds[0].keys():
            raise RunError(f"{runs[0].path} and {run.path} were tested on different utterances")
        seeds.append(pairs)
    ids = sorted(seeds[0])
    try:
        _, low, high = bootstrap([[pairs[name] for name in ids] for pairs in seeds], reduce)
    except ValueError as error:  # nothing to score, or a score that is not a number
        raise RunError(f"{runs[0].path}: {task} {metric}: {error}") from error
    return 100 * low, 100 * high


def table_rows(cells: dict, tasks: list[str],
               compared: tuple[str, ...] = ("(b-2)",)) -> list[list[str]]:
    """Table 1 as text: a heading, then one row per scenario.

    X = left out, — = not run; + and - = better and worse than (b-1), in the rows that are
    `compared` with it (the start of their names).
    """
    columns = [(TASKS[name], metric) for name in tasks for metric in TASKS[name].metrics]
    heading = ["scenario"]
    for task, metric in columns:
        heading.append(f"{task.name} {metric.heading}")
    shown = [row for row in sorted(cells, key=row_order)
             if any((task.name, metric.name) in cells[row] for task, metric in columns)]
    marked = any(row.startswith(compared) for row in shown)
    rows = [heading]
    for row in shown:
        baseline = cells.get(baseline_of(row), {}) if row.startswith(compared) else {}
        texts = [row]
        for task, metric in columns:
            key = task.name, metric.name
            if key in cells[row]:
                texts.append(cell_text(metric, cells[row][key], baseline.get(key), marked))
            else:
                texts.append("X" if row.startswith(f"(b-2) all but {task.name}") else "—")
        rows.append(texts)
    return rows


def baseline_of(row: str) -> str:
    """The row (b-1) that a row is compared with: of the same tasks and variant of (b)."""
    tasks = row[row.index(" of ") :].split(",")[0] if " of " in row else " all"
    variant = [part for part in row.split(", ")[1:] if not part.startswith(("more steps", "A = "))]
    return ", ".join([f"(b-1) MTL{tasks}", *variant])


def cell_text(metric: Metric, cell: tuple, baseline: tuple | None, marked: bool) -> str:
    """A value with its interval and, in a column of marked values, its comparison with (b-1)."""
    value, low, high = cell
    mark = " " if marked else ""
    if baseline and metric.better(value, baseline[0]):
        mark = "+"
    elif baseline and metric.better(baseline[0], value):
        mark = "-"
    return f"{value:.2f}" + ("" if low is None else f" [{low:.1f}, {high:.1f}]") + mark


def row_order(row: str) -> tuple:
    """The place of a row: the constant answer, (a), (a+), (b-1), (b-2) in table order, (c)."""
    order = (CONSTANT, "(a)", "(a+)", "(b-1)", "(b-2)", "(c)")
    place = next(i for i, start in enumerate(order) if row.startswith(start))
    left_out = row.removeprefix("(b-2) all but ").split()[0].rstrip(",")
    return place, list(TASKS).index(left_out) if left_out in TASKS else 0, row


def print_table(rows: list[list[str]], markdown: bool = False) -> None:
    """Print aligned columns for a terminal, or a Markdown table; the first row is the heading."""
    widths = [max(len(text) for text in column) for column in zip(*rows)]
    line = ["-" * width for width in widths]
    if markdown:
        line[1:] = [f"{dashes[:-1]}:" for dashes in line[1:]]
    for row in [rows[0], line, *rows[1:]]:
        cells = [row[0].ljust(widths[0])]
        cells += [text.rjust(width) for text, width in zip(row[1:], widths[1:])]
        print(f"| {' | '.join(cells)} |" if markdown else "  ".join(cells))


def print_results(results: list[Result], tasks, intervals: bool = False,
                  markdown: bool = False) -> None:
    """Print Table 1 of the finished runs, and what its signs and means are."""
    rows = table_rows(table_cells(results, intervals), tasks)
    print_table(rows, markdown)
    if any(row[0].startswith("(b-2)") for row in rows):
        print("\nX left out, — not run; + better, - worse than (b-1)")
    scale = results[0].config.scale if results else 1.0  # all runs have the same one
    if scale != 1.0:
        print(f"all numbers of updates times {scale:g} (--scale {scale:g})")
    seeds = sorted({result.config.seed for result in results})
    folds = sorted({result.config.fold for result in results})
    if len(seeds) > 1 or len(folds) > 1:
        folded = ", ".join(task.name for task in TASKS.values() if task.folds > 1)
        print(f"means over the finished runs of seeds {seeds}; for {folded}, also of folds {folds}")

"""Which task helps or hurts which: the two relation graphs of Fig. 2 (paper, Section 4.2).

    python graphs.py --paper --out figures/paper              # from the paper's Table 1
    python graphs.py --runs runs --out figures --seed 0 1 2   # from our runs of (b-1) and (b-2)

Multi-task learning without task B is compared with multi-task learning of all tasks. If the metric
of task A (SF: its CER) gets worse by at least 0.5 % of its value, B helps A, and the improvement
graph has an edge B -> A. If it gets better by as much, the hurt graph has this edge.

The paper has one number per cell, which cannot show whether an edge is noise. Our runs keep the
predictions of all test utterances, so a paired bootstrap over utterances and seeds gives each edge
a 95 % interval. With one or two seeds, an edge is solid if its interval excludes 0. One seed
cannot show training variance. From three seeds on, each change has a paired t-test over seeds, and
an edge is solid if it is a discovery at a false discovery rate of 10 %. All other edges are dashed.

Writes edges.json, improvement.dot, hurt.dot, fig2.svg, fig2.png, and all changes: changes.png with
their intervals, matrix.png as in Table 1. Shapes: K seeds, n utterances or trials.

    python graphs.py --affinity --runs runs --out figures   # affinity.png

compares the changes with the cosines between the gradients of the tasks in (b-1) (train.py
--affinity-every).
"""

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from engine.files import printable
from engine.flags import as_path
from engine.launch import friendly_errors
from engine.runs import RunError, read_log
from engine.statistics import benjamini_hochberg, benjamini_yekutieli, paired_t_test, spearman
from metrics import paired_bootstrap
from options import task_names
from results import Result, check_comparable, read_results
from scenarios import Run, in_table_order
from tasks import TASKS, Metric

PAPER = Path(__file__).with_name("paper_table1.json")
GRAPHS = {"improvement": "A is worse without B", "hurt": "A is better without B"}
SMALLEST = 0.5  # percent: a smaller change is no edge
FALSE_DISCOVERY_RATE = 0.1


# Read the changes


@dataclass(frozen=True)
class Change:
    """How the metric of task `target` changes without task `source`, in percent of its value."""

    source: str
    target: str
    percent: float  # positive: the metric is higher without the source
    low: float | None = None  # 95 % interval; None: the paper has one number per cell
    high: float | None = None
    log_ratios: dict[int, float] = field(default_factory=dict)  # {seed: log(after / before)}
    p: float | None = None  # t-test of log_ratios; None with fewer than 3 seeds or a metric of 0
    significant: bool | None = None  # None: unknown

    @property
    def graph(self) -> str:
        """The graph of Fig. 2 that the change belongs to."""
        worse = (self.percent > 0) == drawn_metric(self.target).lower_is_better
        return "improvement" if worse else "hurt"


def drawn_metric(task: str) -> Metric:
    """The metric whose changes make the edges to a task."""
    return TASKS[task].metrics[TASKS[task].graph_metric]


def paper_changes() -> list[Change]:
    """The changes in the paper's Table 1 from row (b-1) to the rows (b-2)."""
    table = json.loads(PAPER.read_text())
    changes = []
    for source, row in table["leave-one-out"].items():
        for target, scores in row.items():
            metric = drawn_metric(target).name
            before, after = table["mtl"][target][metric], scores[metric]
            changes.append(Change(source, target, 100 * (after / before - 1)))
    return changes


def find_runs(folder: Path, seeds: list[int], universe: tuple[str, ...]) -> dict[str, list[Result]]:
    """The runs to compare, sorted by seed: {name of the run without its seed: runs}.

    `universe`: all tasks of the experiment. Raises RunError if the runs differ in more than
    scenario, task and seed.
    """
    base = Run("mtl", universe, universe=universe)
    wanted = [base, *(base.leave_one_out(task) for task in universe)]
    found = {run.name: [] for run in wanted}
    for result in sorted(read_results(folder), key=lambda result: result.config.seed):
        run = result.config.run
        # Runs of the other folds have other test utterances.
        if run.seed in seeds and replace(run, seed=0) in wanted:
            found[replace(run, seed=0).name].append(result)
    check_comparable([result for results in found.values() for result in results])
    return found


def read_pairs(runs: list[Result], task: str) -> dict[int, dict]:
    """What each test utterance adds to the task's metric: {seed: {utterance: two numbers}}."""
    pairs = {}
    for run in runs:
        if task in run.metrics:
            pairs[run.config.seed] = dict(sorted(run.pairs(task, drawn_metric(task).name)))
    return pairs


def compare(source: str, target: str, before: dict, after: dict) -> Change | None:
    """The change of a metric from runs with the source to runs without it.

    `before` and `after` come from `read_pairs`. Only seeds that both have are compared, seed by
    seed. None if there is none, or if the metric before is 0, as a change is relative to it.
    Raises RunError if the runs were tested on different utterances.
    """
    utterances = [list(pairs) for pairs in [*before.values(), *after.values()]]
    if any(others != utterances[0] for others in utterances):
        raise RunError(f"the runs with and without {source} were tested on other utterances of "
                       f"{target}; use the same data for all runs")
    seeds = [seed for seed in before if seed in after]
    pairs_before = [list(before[seed].values()) for seed in seeds]  # (K, n, 2)
    pairs_after = [list(after[seed].values()) for seed in seeds]  # (K, n, 2)
    reduce = drawn_metric(target).reduce
    values_before = [reduce(pairs) for pairs in pairs_before]
    values_after = [reduce(pairs) for pairs in pairs_after]
    if not any(values_before):
        return None
    # Ratios, because a change is relative; logarithms, because then halving undoes doubling.
    log_ratios = {}
    for seed, value_before, value_after in zip(seeds, values_before, values_after):
        if value_before > 0 and value_after > 0:
            log_ratios[seed] = math.log(value_after / value_before)
    p = None
    if len(seeds) >= 3 and len(log_ratios) == len(seeds):
        _, p = paired_t_test(list(log_ratios.values()))
    bounds = paired_bootstrap(pairs_before, pairs_after, reduce)
    percent, low, high = (100 * x / np.mean(values_before) for x in bounds)
    return Change(source, target, percent, low, high, log_ratios, p, not low <= 0 <= high)


def run_changes(folder: Path, seeds: list[int], universe: tuple[str, ...]) -> list[Change]:
    """The changes from our runs of (b-1) to our runs of (b-2); prints what is missing.

    Raises RunError if nothing can be compared.
    """
    runs = find_runs(folder, seeds, universe)
    base = Run("mtl", universe, universe=universe)
    all_tasks = base.name
    changes = []
    for target in universe:
        metric, before = drawn_metric(target), read_pairs(runs[all_tasks], target)
        if before and all(metric.reduce(list(pairs.values())) == 0 for pairs in before.values()):
            print(f"note: no edges to {target}: {metric.name} of {all_tasks} is 0, and changes are "
                  "relative to it")
        for source in universe:
            without_source = runs[base.leave_one_out(source).name]
            change = compare(source, target, before, read_pairs(without_source, target))
            if change:
                changes.append(change)
    if not changes:
        raise RunError(f"nothing to draw: {folder} needs finished runs {all_tasks} and "
                       f"{base.leave_one_out(universe[0]).name} and so on (train.py)")
    for name, found in runs.items():
        if len(found) < len(seeds):
            print(f"note: {len(found)} of {len(seeds)} runs {name}")
    return find_discoveries(changes)


def find_discoveries(changes: list[Change]) -> list[Change]:
    """The changes, with `significant` decided by their t-tests, if any change has one.

    A change is then significant if it is a discovery. One without a t-test is not significant.
    """
    tested = [change for change in changes if change.p is not None]
    if not tested:
        return changes
    found = benjamini_hochberg([change.p for change in tested], FALSE_DISCOVERY_RATE)
    discoveries = [change for change, is_discovery in zip(tested, found) if is_discovery]
    return [replace(change, significant=change in discoveries) for change in changes]


# Affinity: do the gradients in one run tell the changes?


def read_affinities(runs: list[Result], universe: tuple[str, ...]) -> dict[int, np.ndarray]:
    """{seed: mean cosines of the tasks' gradients (tasks, tasks)} of the runs that logged them.

    A step in which a task had no gradient has no cosine with it. Raises RunError if no run logged
    them, if a log is damaged, or if two tasks have no cosine in any step.
    """
    found = {}
    for run in runs:
        rows = [row["affinity"] for row in read_log(run.path) if "affinity" in row]
        total = np.zeros((len(universe), len(universe)))
        counts = np.zeros_like(total)
        try:
            for row in rows:
                for i, task in enumerate(universe):
                    cosines = np.array([row[task][other] for other in universe], float)
                    total[i] += np.nan_to_num(cosines)  # None is NaN here
                    counts[i] += ~np.isnan(cosines)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{run.path / 'log.jsonl'} is damaged ({error!r}); delete {run.path} "
                           "and train again") from error
        if rows and not counts.all():
            raise RunError(f"{run.path}: a task had no gradient in any of the logged steps; train "
                           "with a smaller --affinity-every in a new --runs folder")
        if rows:
            found[run.config.seed] = total / counts
    if not found:
        raise RunError("no run of (b-1) has affinities in its log; train one in a new folder: "
                       "python train.py --scenario all --affinity-every 10 --runs FOLDER")
    return found


def affinity_correlation(affinities: dict[int, np.ndarray], changes: list[Change],
                         universe: tuple[str, ...]) -> tuple[float, float, float]:
    """Spearman's correlation of the cosine of B and A with how much B helps A; 95 % interval.

    The help is log(metric without B / metric with B), with the sign reversed if higher is better.
    It is positive if A is worse without B. So a positive correlation says that tasks whose
    gradients agree help each other. The interval is a bootstrap over the seeds of `affinities`.
    """
    cosines, helps = [], []  # one list per seed, with one number per change
    for seed, matrix in affinities.items():
        cosines.append([])
        helps.append([])
        for change in changes:
            source, target = universe.index(change.source), universe.index(change.target)
            cosines[-1].append(matrix[source, target])
            sign = 1 if drawn_metric(change.target).lower_is_better else -1
            helps[-1].append(sign * change.log_ratios[seed])
    cosines, helps = np.array(cosines), np.array(helps)  # (K, pairs)
    draws, generator = [], np.random.default_rng(0)
    for _ in range(1000):
        seeds = generator.integers(len(cosines), size=len(cosines))
        draws.append(spearman(cosines[seeds].mean(0), helps[seeds].mean(0)))
    low, high = np.percentile(draws, [2.5, 97.5])
    return spearman(cosines.mean(0), helps.mean(0)), low, high


def compare_affinity(changes: list[Change], args: argparse.Namespace) -> None:
    """Draw the affinities, and print their correlation with the changes.

    Only seeds that have both count. Raises RunError if there is none.
    """
    from tools.drawing import draw_affinity

    base = Run("mtl", args.tasks, universe=args.tasks).name
    runs = find_runs(args.runs, args.seed, args.tasks)[base]
    affinities = read_affinities(runs, args.tasks)
    measured = {seed for change in changes for seed in change.log_ratios}
    affinities = {seed: matrix for seed, matrix in affinities.items() if seed in measured}
    changes = [change for change in changes if affinities.keys() <= change.log_ratios.keys()]
    if not affinities or not changes:
        raise RunError(f"no seed has affinities and runs of (b-2) in {args.runs}; train them")
    value, low, high = affinity_correlation(affinities, changes, args.tasks)
    text = f"rank correlation with how one task helps another: {value:.2f}"
    text += f" [{low:.2f}, {high:.2f}]" if len(affinities) > 1 else " (one seed: no interval)"
    args.out.mkdir(parents=True, exist_ok=True)
    figure = draw_affinity(sum(affinities.values()) / len(affinities), args.tasks, text)
    figure.savefig(args.out / "affinity.png", dpi=200)
    print(f"{text}; {len(changes)} ordered pairs, {len(affinities)} seeds")
    print(f"wrote affinity.png to {args.out}")


# Make the edges, by the rule in the caption of Fig. 2


@dataclass(frozen=True)
class Width:
    """A line width of Fig. 2."""

    name: str
    smallest: float  # change in percent
    legend: str
    points: float  # as drawn


WIDTHS = (
    Width("thick", 8.0, "≥ 8 % change", 3.0),
    Width("medium", 2.0, "2–8 %", 1.6),
    Width("thin", SMALLEST, "0.5–2 %", 0.7),
)


@dataclass(frozen=True)
class Edge:
    """An arrow of Fig. 2, from `change.source` to `change.target`."""

    change: Change
    width: Width

    @property
    def is_dashed(self) -> bool:
        """Is the edge dashed? The noise of the paper's edges is unknown: they are solid."""
        return self.change.significant is False

    def as_json(self) -> dict:
        """The entry of edges.json."""
        change = self.change
        entry = {"graph": change.graph, "source": change.source, "target": change.target,
                 "width": self.width.name, "change": round(change.percent, 2)}
        if change.low is not None:
            entry |= {"low": round(change.low, 2), "high": round(change.high, 2),
                      "significant": change.significant}
        if change.p is not None:
            entry["p"] = float(f"{change.p:.3g}")
        return entry


def width_of(change: Change) -> Width | None:
    """The line width of a change; None if it is too small for an edge."""
    size = round(abs(change.percent), 6)  # 2.00 -> 2.01 is 0.49999... % in floating point
    return next((width for width in WIDTHS if size >= width.smallest), None)


def make_edges(changes: list[Change]) -> list[Edge]:
    """The edges of both graphs: first improvement, then hurt."""
    edges = []
    for graph in GRAPHS:
        for change in changes:
            width = width_of(change)
            if width and change.graph == graph:
                edges.append(Edge(change, width))
    return edges


# Print


def print_edges(edges: list[Edge]) -> None:
    """A table with one edge per line."""
    rows = [("graph", "source", "target", "width", "change, %", "low", "high", "significant", "p")]
    rows += [tuple(edge.as_json().values()) for edge in edges]
    for row in rows:
        print("".join(f"{value!s:12}" for value in row).rstrip())


def print_statistics(changes: list[Change]) -> None:
    """What the intervals and the tests cover, and what one seed alone would show."""
    if all(change.low is None for change in changes):
        print("one number per cell: there are no intervals, so all edges are solid")
        return
    print("95 % intervals: bootstrap over test utterances and seeds; they cover new utterances")
    tested = [change for change in changes if change.p is not None]
    if not tested:
        print("retraining is not covered: 3 seeds or more give each change a t-test over seeds")
        return
    p_values = [change.p for change in tested]
    discoveries = sum(benjamini_hochberg(p_values, FALSE_DISCOVERY_RATE))
    robust = sum(benjamini_yekutieli(p_values, FALSE_DISCOVERY_RATE))
    print("p: paired t-test of log(metric without B / metric with B) over "
          f"{span(len(change.log_ratios) for change in tested)} seeds; it covers retraining, on "
          "these utterances")
    print(f"solid: {discoveries} of {len(tested)} tested changes are discoveries at a false "
          f"discovery rate of {FALSE_DISCOVERY_RATE:.0%} (Benjamini-Hochberg)")
    print("edges into one task share their baseline; valid under any dependence "
          f"(Benjamini-Yekutieli): {robust}")
    print_single_seeds(tested)
    print_noise(tested)


def print_noise(tested: list[Change]) -> None:
    """For each target, how much a change differs between seeds, and how large changes are."""
    print("into each task, in percent of its metric: deviation of a change between seeds, and size "
          "of the changes without this noise")
    for target in in_table_order(change.target for change in tested):
        noise, size = noise_and_size([change for change in tested if change.target == target])
        print(f"{target:4} {drawn_metric(target).name:4} {100 * noise:5.1f} {100 * size:5.1f}")


def noise_and_size(changes: list[Change]) -> tuple[float, float]:
    """Standard deviation between seeds, and root mean square without it, of log(after / before).

    On average, the square of a mean over K seeds is size^2 + noise^2 / K. Changes that are all 0
    have size 0, up to chance.
    """
    variances, squares = [], []
    for change in changes:
        log_ratios = list(change.log_ratios.values())
        variances.append(np.var(log_ratios, ddof=1))
        squares.append(np.mean(log_ratios) ** 2 - variances[-1] / len(log_ratios))
    return math.sqrt(np.mean(variances)), math.sqrt(max(0.0, np.mean(squares)))


def print_single_seeds(tested: list[Change]) -> None:
    """How many edges one seed alone would draw, and how many of these all seeds confirm."""
    drawn, confirmed = [], []  # per seed
    for seed in sorted({seed for change in tested for seed in change.log_ratios}):
        edges = [change for change in tested if seed in change.log_ratios
                 and 100 * abs(math.expm1(change.log_ratios[seed])) >= SMALLEST]
        same_sign = [edge for edge in edges if edge.log_ratios[seed] * edge.percent > 0]
        drawn.append(len(edges))
        confirmed.append(sum(edge.significant for edge in same_sign))
    print(f"one seed alone draws {span(drawn)} edges; {span(confirmed)} of them are discoveries "
          "with the same sign")


def span(numbers: Iterable[int]) -> str:
    """The smallest and the largest number: "3 to 10", or "3" if all are 3."""
    ends = sorted(set(numbers))
    return str(ends[0]) if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"


def main(arguments: list[str] | None = None) -> None:
    """The command line. User errors print one line and exit with code 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=as_path, default=Path("runs"), help="the folder of our runs")
    parser.add_argument("--paper", action="store_true", help="draw the paper's Table 1 instead")
    parser.add_argument("--affinity", action="store_true",
                        help="draw the cosines between gradients (train.py --affinity-every)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0],
                        help="seeds to average, where they exist")
    parser.add_argument("--tasks", nargs="+", type=task_names, default=[], metavar="TASK",
                        help="the tasks of the experiment, as in train.py; default: all nine")
    parser.add_argument("--out", type=as_path, default=Path("figures"),
                        help="folder for the pictures")
    args = parser.parse_args(arguments)
    args.tasks = in_table_order(sum(args.tasks, [])) or tuple(TASKS)
    if args.affinity and args.paper:
        parser.error("--affinity needs our runs: the paper has no gradients")
    with friendly_errors():
        if args.paper:
            draw_graphs(paper_changes(), "Table 1 of the paper", args.out)
            return
        try:
            changes = run_changes(args.runs, args.seed, args.tasks)
        except ValueError as error:  # of a metric: nothing to score, a score that is not a number
            raise RunError(f"{args.runs}: {error}") from error
        if args.affinity:
            compare_affinity(changes, args)
        else:
            draw_graphs(changes, runs_title(args.runs, args.seed), args.out)


def runs_title(folder: Path, seeds: list[int]) -> str:
    """The title of the graphs of our runs."""
    return f"{printable(str(folder))}, seed {' '.join(str(seed) for seed in seeds)}"


def draw_graphs(changes: list[Change], title: str, out: Path) -> None:
    """Draw the changes into files in the folder `out`, and print them."""
    from tools.drawing import write_files

    edges = make_edges(changes)
    try:
        write_files(changes, edges, title, out)
    except OSError as error:
        raise OSError(f"cannot write to {out} ({error.strerror})") from error
    print_statistics(changes)
    print_edges(edges)
    print(f"wrote edges.json, *.dot, fig2.svg, fig2.png, changes.png, matrix.png to {out}")


if __name__ == "__main__":
    main()

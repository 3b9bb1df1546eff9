"""The command line of train.py: what to do, with which numbers, where and how.

Every number is checked here once, against the range that its declaration has (engine/flags.py).
"""

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from corpus import Corpus
from engine.flags import add_flags, flag, given, number
from engine.launch import say, world_size
from engine.runs import RunError
from scenarios import SETTINGS, Run, Setting, in_table_order, is_small, scaled
from tasks import TASKS, read_corpus


TOY = Path("data/toy")  # the default corpus
FILES, MACHINE = "data and runs", "machine"  # groups of flags in --help


@dataclass(frozen=True)
class Options:
    """Where and how to run.

    RunConfig records only what follows from these flags and decides a result: digests of the data
    and of the encoder, and the tasks that train on cached crops.
    """

    data: Path = flag(TOY, FILES, "folder with the SUPERB datasets (python data.py DIR tells what "
                      "is missing); the toy corpus is made if it is not there")
    runs: Path = flag(Path("runs"), FILES, "folder for checkpoints, logs and results")
    out: Path = flag(Path("figures"), FILES, "folder for the graphs of --scenario all")
    skip_broken: bool = flag(False, FILES, "leave unreadable audio files out, and list them")
    cache_gb: float = flag(50.0, FILES, "room for the cached features of one corpus, GB", least=0)
    save_every: int = flag(1_000, FILES, "updates between two checkpoints", least=1)
    log_every: int = flag(100, FILES, "updates between two lines of log.jsonl", least=1)
    affinity_every: int | None = flag(None, FILES, "updates of mtl between two lines of log.jsonl "
                                      "with cosines between the gradients of tasks", least=1,
                                      none="never")
    workers: int = flag(4, MACHINE, "processes that read audio ahead", least=0)
    device: str = flag("cuda" if torch.cuda.is_available() else "cpu", MACHINE, "where to compute",
                       choices=("cuda", "cpu"))
    jobs: int | None = flag(None, MACHINE, "runs at a time", least=1,
                            none="one per core for a tiny encoder on a CPU, else 1")
    checkpoint_activations: bool = flag(False, MACHINE, "compute HuBERT's layers again in the "
                                        "backward pass: less memory, more time, same result")
    debug: bool = flag(False, MACHINE, "show the traceback of an error")
    encoder: str = ""  # Setting.encoder: where the encoder lies; RunConfig has its digest
    quiet: bool = False  # no progress bars
    precision_given: bool = False  # True: --precision was given, so finished runs must have it

    def has_result(self, run: Run) -> bool:
        """Whether a run has its result."""
        return (self.runs / run.name / "result.json").exists()

    def read(self, task: str, split: str, fold: int) -> Corpus:
        """One split of one task; a process reads it once."""
        cache = self.runs / "cache" if self.runs.exists() else None  # a dry run leaves no folder
        return read_corpus(task, self.data, split, fold, self.skip_broken, cache)


OPTIONS = {"paper": Options(), "tiny": Options(save_every=100, log_every=10, workers=0)}


def task_names(text: str) -> list[str]:
    """Task names as users write them, "pr,ASR" -> ["PR", "ASR"].

    Raises ArgumentTypeError for an unknown name.
    """
    names = text.upper().replace(",", " ").split()
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"there is no task {', '.join(unknown) or repr(text)}; the tasks are {' '.join(TASKS)}")
    return names


def parse_arguments(description: str) -> tuple[argparse.Namespace, Setting, Options]:
    """The command line: what to do, with which numbers, and where."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what to do")
    what.add_argument("--scenario", required=True, help="see above", choices=(
        "ssl", "mtl", "leave-one-out", "transfer", "all", "control"))
    what.add_argument("--task", nargs="+", type=task_names, metavar="TASK", default=[],
                      help="whose head (ssl, transfer), or which to leave out (leave-one-out); "
                      f"default: each in turn of {' '.join(TASKS)}")
    what.add_argument("--tasks", nargs="+", type=task_names, metavar="TASK", default=[],
                      help="the tasks of the whole experiment, as in PR,ASR; default: all nine")
    what.add_argument("--seed", type=number(int, least=0), nargs="+", default=[0], metavar="N",
                      help="of weights, batches and masks; one or several")
    what.add_argument("--fold", type=int, nargs="+", default=[1], choices=range(1, 6),
                      help="ER's test session: the paper reports 1, SUPERB the mean of 1 2 3 4 5")
    what.add_argument("--setting", choices=tuple(SETTINGS),
                      help="tiny: minutes on a laptop, the default without --data; study: tiny "
                      "with four times the updates in (b), for Fig. 2; paper: HuBERT Base and the "
                      "paper's numbers, the default with --data")
    what.add_argument("--lr", type=number(float, above=0), metavar="X",
                      help="learning rate of the scenario; with all: of (b) only")
    what.add_argument("--steps", type=number(int, least=1), metavar="N",
                      help="updates of the scenario; with all: of (b) only")
    what.add_argument("--dry-run", action="store_true",
                      help="try one step of everything and estimate the whole; trains nothing")
    what.add_argument("--yes-i-mean-it", action="store_true",
                      help="allow a learning rate that wipes out a pretrained encoder")
    add_flags(parser, Setting, SETTINGS)
    add_flags(parser, Options, OPTIONS)
    args = parser.parse_args()
    args.setting = args.setting or ("paper" if args.data else "tiny")
    args.task = in_table_order(sum(args.task, []))
    args.tasks = in_table_order(sum(args.tasks, [])) or tuple(TASKS)
    if args.task and args.scenario in ("mtl", "control", "all"):
        parser.error(f"--task is for ssl, leave-one-out, transfer; {args.scenario} takes --tasks")
    if len(args.tasks) < 2 and args.scenario != "ssl":
        parser.error(f"--tasks {args.tasks[0]}: {args.scenario} needs two tasks at least")
    if not set(args.task) <= set(args.tasks):
        parser.error("--task names a task that --tasks leaves out")

    setting = replace(SETTINGS[args.setting], **given(Setting, args))
    stage = args.scenario if args.scenario in ("ssl", "transfer") else "mtl"
    if args.lr:
        setting = replace(setting, **{f"{stage}_lr": args.lr})
    if args.steps:
        setting = replace(setting, **{f"{stage}_steps": args.steps})
    options = replace(OPTIONS[setting.name], **given(Options, args))
    options = replace(options, save_every=scaled(options.save_every, setting))
    # Older cards emulate bf16 in fp32, which is slower than fp32.
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if args.precision is None and options.device == "cuda" and has_bf16:
        setting = replace(setting, precision="bf16")
    return args, setting, replace(options, encoder=setting.encoder,
                                  precision_given=args.precision is not None)


def default_jobs(setting: Setting, options: Options) -> int:
    """How many runs are made at a time: --jobs, else one per core for a tiny encoder on a CPU."""
    if world_size() > 1:
        return 1
    if options.jobs is None and options.device == "cpu" and is_small(setting.encoder):
        return os.cpu_count()
    return options.jobs or 1


def check_arguments(args: argparse.Namespace, setting: Setting, options: Options) -> None:
    """Raises RunError for a setting that cannot work here, before anything is read."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: PyTorch finds no CUDA GPU here; take --device cpu")
    finetunes = args.scenario not in ("ssl", "control")
    if args.scenario != "ssl" and setting.accumulate > 1 and setting.weighting != "sum":
        raise RunError(f"--accumulate {setting.accumulate}: --weighting {setting.weighting} needs "
                       "all losses of an update at once; leave one of the two out")
    if setting.masked_weight and not finetunes:
        raise RunError(f"--masked-weight {setting.masked_weight:g} is for scenarios that finetune "
                       f"HuBERT, and {args.scenario} does not; leave it out")
    if setting.masked_weight and setting.weighting != "sum":
        raise RunError(f"--masked-weight {setting.masked_weight:g}: --weighting "
                       f"{setting.weighting} is for tasks alone; leave one of the two out")
    if setting.masked_labels != "clusters" and not setting.masked_weight:
        raise RunError(f"--masked-labels {setting.masked_labels} needs a --masked-weight above 0")
    if args.scenario != "ssl" and setting.select != "last" and not setting.mtl_evaluate_every:
        raise RunError(f"--select {setting.select} needs evaluations on dev during (b); add "
                       "--mtl-evaluate-every N")
    say_if_rates_stay_low(args.scenario, setting)
    rate = setting.encoder_lr or setting.mtl_lr
    if finetunes and rate >= 1e-3 and not args.yes_i_mean_it:
        if not is_small(setting.encoder):
            name = "--encoder-lr" if setting.encoder_lr else "--mtl-lr"
            raise RunError(f"{name} {rate:g} would wipe out a pretrained encoder (the paper uses "
                           "1e-5); take a lower one, or add --yes-i-mean-it")


def say_if_rates_stay_low(scenario: str, setting: Setting) -> None:
    """Print a note if training in (b) or (c) ends before the learning rate reaches its peak."""
    stages = []  # (in the names of flags, updates, updates of the warm-up)
    if scenario != "ssl":
        stages.append(("mtl", setting.mtl_steps, setting.mtl_warmup))
    if scenario in ("transfer", "all"):
        stages.append(("transfer", setting.transfer_steps, setting.transfer_warmup))
    for name, steps, warmup in stages:
        if steps <= warmup:
            say(f"note: the learning rate never reaches its peak: --{name}-steps {steps} end "
                f"within the warm-up, --{name}-warmup {warmup}; --scale shortens both")

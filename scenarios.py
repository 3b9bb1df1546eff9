"""What the paper's four scenarios are made of (Section 2): their numbers, and which run builds on which.

    (a)   ssl            HuBERT frozen; the head of one task
    (b-1) mtl            HuBERT and the heads of all nine tasks, trained together; heads start from (a)
    (b-2) leave-one-out  the same without one task
    (c)   transfer       the encoder of (b-2), frozen; the head of the task that it has never seen
    (a+)  control        (b-1) with HuBERT frozen: how much is due to training the heads for longer?
"""
import argparse
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch

from engine.launch import rank, world_size
from engine.runs import RunError
from tasks import TASKS, Recipe

def flag(default, text: str):
    """A field of `Setting`: its default, and what --help says about it."""
    return field(default=default, metadata={"help": text})

@dataclass(frozen=True)
class Setting:
    """The numbers of a training run; every field is a flag (--mtl-lr 1e-4). The defaults are the paper's (Section
    3.3)."""
    encoder: str = flag("hubert_base", "tiny, hubert_base, or a file or folder with HuBERT weights")
    ssl_lr: float = flag(0.0, "(a): learning rate; 0 = the task's own recipe in tasks.py")
    ssl_steps: int = flag(0, "(a): updates; 0 = the task's own recipe")
    ssl_batch: int = flag(0, "(a): utterances per update, of all processes; 0 = the task's own recipe")
    mtl_lr: float = flag(1e-5, "(b): peak learning rate, of encoder and heads alike")
    mtl_steps: int = flag(200_000, "(b): updates, each with one batch of every task")
    mtl_warmup: int = flag(5_000, "(b): updates over which the rate rises from 0; then it falls linearly to 0")
    mtl_batch: int = flag(2, "(b): utterances per task and update, in each process")
    transfer_lr: float = flag(1e-5, "(c): peak learning rate")
    transfer_steps: int = flag(200_000, "(c): updates")
    transfer_warmup: int = flag(5_000, "(c): updates of warm-up")
    transfer_batch: int = flag(8, "(c): utterances per update, of all processes")
    evaluate_every: int = flag(5_000, "(c): updates between two looks at dev")
    time_mask_width: int = flag(40, "(b), (c): SpecAugment's time masks, in frames, are shorter; 0 = no SpecAugment")
    feature_grad_mult: float = flag(0.1, "(b): scales the gradient of HuBERT's convolutions; 0 = they stay as they are")
    save_every: int = flag(1_000, "updates between two checkpoints: a kill loses at most these")
    log_every: int = flag(100, "updates between two lines of log.jsonl")
    workers: int = flag(4, "processes that read audio ahead")
    cache_gb: float = flag(50.0, "room on disk for the features of one frozen corpus, in GB")

SETTINGS = {
    "paper": Setting(),
    # DIFFERS from the paper, to be done in minutes: a tiny encoder, so larger rates and far fewer updates.
    "tiny": Setting(encoder="tiny", mtl_lr=1e-3, mtl_steps=300, mtl_warmup=15, mtl_batch=2,
                    transfer_lr=2e-3, transfer_steps=400, transfer_warmup=20, transfer_batch=16, evaluate_every=100,
                    time_mask_width=0, feature_grad_mult=0.0, save_every=100, log_every=10, workers=0),
}

@dataclass(frozen=True)
class Run:
    """One cell of the plan: a scenario, the tasks whose heads it trains, and the task it leaves out."""
    scenario: str
    tasks: tuple[str, ...]
    left_out: str | None = None

    @property
    def label(self) -> str:
        """What the run is about: the task of a head, the task left out, "all", or the chosen tasks, as in PR+ASR."""
        return self.left_out or ("all" if len(self.tasks) == len(TASKS) else "+".join(self.tasks))

    def folder(self, args: argparse.Namespace) -> Path:
        """runs/ssl-IC, runs/mtl-all, runs/leave-one-out-IC, runs/mtl-PR+ASR, ...-seed1, ...-fold2"""
        seed = f"-seed{args.seed}" if args.seed else ""
        fold = f"-fold{args.fold}" if args.fold > 1 else ""
        return args.runs / f"{self.scenario}-{self.label}{seed}{fold}"

    def prerequisites(self, args: argparse.Namespace) -> list["Run"]:
        """The runs whose results this one starts from."""
        if self.scenario == "ssl":
            return []
        heads = [Run("ssl", (name,)) for name in self.tasks] if args.heads == "ssl" else []
        if self.scenario == "transfer":
            heads.append(leave_one_out(self.left_out))
        return heads

def leave_one_out(name: str) -> Run:
    """Scenario (b-2): all tasks but one."""
    return Run("leave-one-out", tuple(other for other in TASKS if other != name), left_out=name)

def requested_runs(args: argparse.Namespace) -> list[Run]:
    """The runs that the command line asks for, without what they need."""
    each = {"ssl": lambda name: Run("ssl", (name,)), "leave-one-out": leave_one_out,
            "transfer": lambda name: Run("transfer", (name,), left_out=name)}
    if args.scenario == "all":  # the 28 runs of Table 1: 9 + 1 + 9 + 9
        return [Run("mtl", tuple(TASKS))] + [make(name) for make in each.values() for name in TASKS]
    if args.scenario in ("mtl", "control"):
        return [Run(args.scenario, tuple(args.tasks or TASKS))]
    return [each[args.scenario](name) for name in args.task or TASKS]

def with_prerequisites(runs: list[Run], args: argparse.Namespace) -> list[list[Run]]:
    """All runs to make, in stages: the runs of one stage need only runs of earlier stages."""
    wanted = list(runs)
    for run in wanted:  # grows on the way
        if not (run.folder(args) / "result.json").exists():
            wanted += [need for need in run.prerequisites(args) if need not in wanted]
    stages = [[run for run in wanted if run.scenario in names]
              for names in (("ssl",), ("mtl", "leave-one-out", "control"), ("transfer",))]
    return [stage for stage in stages if stage]

def configure(run: Run, args: argparse.Namespace, setting: Setting) -> dict:
    """What config.json keeps: the numbers that decide a run's result. A resumed or reused run must agree in all.

    "batch" is what one process reads of each task in (b), as in the paper's distributed training; in (a) and (c), whose
    recipes know no processes, it is what all processes read together.
    """
    config = {"scenario": run.scenario, "task": run.label, "left_out": run.left_out, "tasks": list(run.tasks),
              "data": str(args.data.resolve()), "setting": args.setting, "seed": args.seed, "fold": args.fold,
              "encoder": setting.encoder, "trains_encoder": run.scenario in ("mtl", "leave-one-out"),
              "skip_broken": args.skip_broken, "precision": args.precision,
              "hidden": {name: recipe_of(name, args).hidden for name in run.tasks}}
    if not config["trains_encoder"]:
        config["cache_gb"] = setting.cache_gb
    if run.scenario == "ssl":
        recipe = recipe_of(run.tasks[0], args)
        return config | {
            "lr": setting.ssl_lr or recipe.lr, "steps": setting.ssl_steps or recipe.steps, "warmup": None,
            "batch": {run.tasks[0]: setting.ssl_batch or recipe.batch}, "evaluate_every": recipe.evaluate_every,
            "augment": recipe.augment, "time_mask_width": 40, "clip": recipe.clip, "weight_decay": recipe.weight_decay}
    config |= {"heads": args.heads, "clip": 1.0, "weight_decay": 0.0,
               "augment": setting.time_mask_width > 0, "time_mask_width": setting.time_mask_width}
    if run.scenario == "transfer":
        return config | {
            "encoder": leave_one_out(run.left_out).folder(args).name, "lr": setting.transfer_lr,
            "steps": setting.transfer_steps, "warmup": setting.transfer_warmup,
            "batch": {run.left_out: setting.transfer_batch}, "evaluate_every": setting.evaluate_every}
    return config | {
        "lr": setting.mtl_lr, "steps": setting.mtl_steps, "warmup": setting.mtl_warmup, "processes": world_size(),
        "batch": {name: max(1, int(setting.mtl_batch * TASKS[name].mtl_share)) for name in run.tasks},
        "weighting": args.weighting, "feature_grad_mult": setting.feature_grad_mult,
        "evaluate_every": None}  # the last checkpoint is the one reported (paper, Section 4.1)

def recipe_of(name: str, args: argparse.Namespace) -> Recipe:
    """The recipe of a task's head in the chosen setting."""
    return TASKS[name].tiny if args.setting == "tiny" else TASKS[name].superb

def task_list(text: str) -> list[str]:
    """"PR,ASR" -> ["PR", "ASR"]; argparse turns the ValueError of an unknown name into its own message."""
    if unknown := set(text.split(",")) - set(TASKS):
        raise ValueError(unknown)
    return text.split(",")

def arguments(description: str) -> argparse.Namespace:
    """The command line of train.py."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", required=True, help="see above",
                        choices=("ssl", "mtl", "leave-one-out", "transfer", "all", "control"))
    parser.add_argument("--task", nargs="+", choices=tuple(TASKS), metavar="TASK",
                        help=f"one or more of {' '.join(TASKS)}: whose "
                        "head (ssl, transfer), which to leave out (leave-one-out); default: each of the nine in turn")
    parser.add_argument("--tasks", type=task_list, metavar="PR,ASR", help="mtl, control: train on these only")
    parser.add_argument("--data", type=Path, help="folder with the SUPERB datasets (python data.py DIR tells what is "
                        "missing); default: data/toy, a synthetic corpus that is made when it is not there")
    parser.add_argument("--setting", choices=tuple(SETTINGS),
                        help="tiny: minutes on a laptop, the default without --data; "
                        "paper: HuBERT Base and the paper's numbers, the default with it")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for checkpoints, logs and results")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="all: folder for the graphs")
    parser.add_argument("--seed", type=int, nargs="+", default=[0],
                        help="of weights, batches and masks; several: one after another")
    parser.add_argument("--fold", type=int, nargs="+", default=[1], choices=range(1, 6),
                        help="ER's test session: the paper reports 1, SUPERB the mean of 1 2 3 4 5")
    parser.add_argument("--heads", choices=("ssl", "fresh"), default="ssl",
                        help="where the heads of (b) and (c) start: those of (a), as in the released code, or fresh")
    parser.add_argument("--weighting", choices=("sum", "uncertainty", "pcgrad"), default="sum",
                        help="(b): how nine losses become one step: sum (the paper), learned weights, gradient surgery")
    parser.add_argument("--lr", type=float, help="learning rate of the scenario that is asked for, over all others")
    parser.add_argument("--steps", type=int, help="updates of the scenario that is asked for, over all others")
    parser.add_argument("--precision", choices=("fp32", "bf16"),
                        help="bf16: autocast, losses in fp32; the default on a GPU")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu",
                        help="the default is cuda where there is one")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: one per core (tiny encoder, CPU), else 1")
    parser.add_argument("--dry-run", action="store_true",
                        help="try one step of everything and estimate the whole; trains nothing")
    parser.add_argument("--skip-broken", action="store_true",
                        help="leave unreadable audio files out, count and list them")
    parser.add_argument("--yes-i-mean-it", action="store_true",
                        help="allow a learning rate that wipes out a pretrained encoder")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    paper, tiny = SETTINGS["paper"], SETTINGS["tiny"]
    for item in fields(Setting):
        defaults = f"(paper: {getattr(paper, item.name)}, tiny: {getattr(tiny, item.name)})"
        parser.add_argument("--" + item.name.replace("_", "-"), type=item.type, metavar="X",
                            help=f"{item.metadata['help']} {defaults}")
    args = parser.parse_args()
    if args.tasks and args.scenario not in ("mtl", "control"):
        parser.error("--tasks is for mtl and control, which train several tasks at once; take --task")
    if args.task and args.scenario in ("mtl", "control", "all"):
        parser.error("--task is for ssl, leave-one-out and transfer; mtl and control take --tasks PR,ASR")
    args.setting = args.setting or ("paper" if args.data else "tiny")
    args.data = args.data or Path("data/toy")
    args.precision = args.precision or ("bf16" if args.device.startswith("cuda") else "fp32")
    return args

def setting_of(args: argparse.Namespace) -> Setting:
    """The chosen setting with the flags applied."""
    names = [item.name for item in fields(Setting)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    stage = {"ssl": "head", "transfer": "transfer"}.get(args.scenario, "mtl")
    given |= {f"{stage}_lr": args.lr} if args.lr else {}
    given |= {f"{stage}_steps": args.steps} if args.steps else {}
    setting = replace(SETTINGS[args.setting], **given)
    counts = ("mtl_steps", "mtl_batch", "transfer_steps", "transfer_batch", "evaluate_every", "save_every", "log_every")
    for name in counts:
        if getattr(setting, name) < 1:
            raise RunError(f"--{name.replace('_', '-')} {getattr(setting, name)} is too few; take 1 or more")
    finetunes = args.scenario not in ("ssl", "control") and "tiny" not in setting.encoder
    if finetunes and setting.mtl_lr >= 1e-3 and not args.yes_i_mean_it:
        raise RunError(f"--mtl-lr {setting.mtl_lr:g} would wipe out a pretrained encoder (the paper uses 1e-5); "
                       "take a lower one, or add --yes-i-mean-it")
    return setting

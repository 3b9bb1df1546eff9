"""The paper's four scenarios (Section 2) and a control of ours: what each trains, and from what.

    (a)   ssl            HuBERT is frozen; one head is trained
    (b-1) mtl            HuBERT and the heads of all nine tasks are trained together
    (b-2) leave-one-out  the same without one task
    (c)   transfer       the encoder of (b-2) is frozen; the head of the left-out task is trained
    (a+)  control        (b-1) with HuBERT frozen: what does training the heads for longer give?

With --masked-weight, (b) also trains HuBERT's own loss, masked prediction. A run `ssl-masked` first
trains the parameters of this loss on frozen HuBERT. It is only a prerequisite, never a --scenario.

(b), round robin: each update takes one batch of every task and minimises the sum of their losses.
All batches of an update go through the encoder in one pass. Small corpora repeat more often.

The classes with numbers: `tasks.Recipe` is how SUPERB trains one head in (a). `Setting` holds the
flags that decide results, `options.Options` those that say where and how to run. `Inputs` holds
digests of what is read. `make_config` combines them into the `RunConfig` of one run.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from engine.flags import flag
from engine.frozen import caches_means
from engine.runs import RunError, read_config
from masked_prediction import MASKED, MaskedPrediction, masked_batch
from model import (BASE, TINY, UNTRAINED, Hubert, MultiTask, encoder_digest, load_encoder,
                   seed_random_numbers)
from tasks import TASKS, Recipe

# The groups of flags in --help
MODEL, SSL, MTL, TRANSFER = "model", "(a) ssl", "(b) mtl, leave-one-out", "(c) transfer"
RECIPE = "the task's recipe"  # a default in --help
HEADS_FIRST = ("ssl", "ssl-masked")  # frozen HuBERT; later runs start from the heads of these
# The recipes of ssl-masked, chosen on the toy corpus. `batch` counts the utterances of each task.
MASKED_SUPERB = Recipe(lr=1e-3, steps=10_000, batch=2, evaluate_every=None, hidden=256)
MASKED_TINY = Recipe(lr=3e-3, steps=200, batch=2, evaluate_every=None, hidden=64)


@dataclass(frozen=True)
class Setting:
    """The numbers of training; every field is a flag (--mtl-lr 1e-4).

    The defaults are the paper's (Section 3.3). None means the task's own recipe in tasks.py.
    """

    name: str = "paper"
    encoder: str = flag("hubert_base", MODEL, "tiny, hubert_base, or a file or folder of weights")
    # options.py replaces this by bf16 on a GPU that has it, unless --precision is given.
    precision: str = flag("fp32", MODEL, "of training; losses are always fp32; on a GPU that has "
                          "bf16, the default is bf16", choices=("fp32", "bf16"))
    ssl_lr: float | None = flag(None, SSL, "learning rate", above=0, none=RECIPE)
    ssl_steps: int | None = flag(None, SSL, "updates", least=1, none=RECIPE)
    ssl_batch: int | None = flag(None, SSL, "utterances per update", least=1, none=RECIPE)
    scale: float = flag(1.0, "what to do", "multiplies every number of updates: of the recipes, "
                        "warm-ups, intervals between evaluations and checkpoints", above=0)
    mtl_lr: float = flag(1e-5, MTL, "peak learning rate of encoder and heads", above=0)
    encoder_lr: float | None = flag(None, MTL, "peak learning rate of the encoder alone", above=0,
                                    none="--mtl-lr, as in the paper")
    mtl_steps: int = flag(200_000, MTL, "updates, each with a batch of every task", least=1)
    mtl_warmup: int = flag(5_000, MTL, "updates while the rate rises from 0", least=0)
    mtl_batch: int = flag(2, MTL, "utterances per task and update, in each process", least=1)
    accumulate: int = flag(1, MTL, "parts of an update, each of --mtl-batch utterances per task: "
                           "a large batch in little memory", least=1)
    mtl_evaluate_every: int | None = flag(None, MTL, "updates between two evaluations on dev, for "
                                          "the log and --select", least=1, none="never")
    select: str = flag("last", MTL, "the reported weights: of the last update (the paper), of the "
                       "best evaluation on dev, or an average over the last evaluations",
                       choices=("last", "dev", "average"))
    average_last: int = flag(5, MTL, "evaluations that --select average averages", least=1)
    freeze_layers: int = flag(0, MTL, "transformer layers that stay frozen, from the first one on, "
                              "with everything below them", least=0)
    heads: str = flag("ssl", MTL, "where the heads of (b) and (c) start: those of (a), as in the "
                      "released code, or fresh ones", choices=("ssl", "fresh"))
    weighting: str = flag("sum", MTL, "how nine losses become one step: sum (the paper), learned "
                          "weights, gradient surgery", choices=("sum", "uncertainty", "pcgrad"))
    masked_weight: float = flag(0.0, MTL, "weight of HuBERT's own loss, masked prediction, beside "
                                "those of the tasks", least=0)
    masked_labels: str = flag("clusters", MTL, "what it predicts; shuffled: a control with the "
                              "labels of other frames", choices=("clusters", "shuffled"))
    feature_grad_mult: float = flag(0.1, MTL, "gradient scale of HuBERT's convolutions; 0 freezes "
                                    "them", least=0)
    time_mask_width: int = flag(40, MTL, "(c) too: SpecAugment's time masks are shorter than this, "
                                "in frames; 0: no SpecAugment", least=0)
    transfer_lr: float = flag(1e-5, TRANSFER, "peak learning rate", above=0)
    transfer_steps: int = flag(200_000, TRANSFER, "updates", least=1)
    transfer_warmup: int = flag(5_000, TRANSFER, "updates while the rate rises from 0", least=0)
    transfer_batch: int = flag(8, TRANSFER, "utterances per update", least=1)
    evaluate_every: int = flag(5_000, TRANSFER, "updates between two evaluations on dev", least=1)
    interpolate: float = flag(1.0, TRANSFER, "share X of (b-2) in the weights of the encoder; the "
                              "rest, 1 - X, is HuBERT before it was finetuned", least=0, most=1)


SETTINGS = {
    "paper": Setting(),
    # DIFFERS from the paper: a tiny encoder, larger rates and far fewer updates take minutes.
    "tiny": Setting("tiny", encoder="tiny", mtl_lr=1e-3, mtl_steps=300, mtl_warmup=15,
                    feature_grad_mult=0.0, time_mask_width=0, transfer_lr=2e-3, transfer_steps=400,
                    transfer_warmup=20, transfer_batch=16, evaluate_every=100),
}
# (b) has four times the updates, to look for larger effects of one task on another
# (docs/RESULTS.md). The name stays "tiny", so both settings share the heads of (a).
SETTINGS["study"] = replace(SETTINGS["tiny"], mtl_steps=1_200, mtl_warmup=60)


def in_table_order(names) -> tuple[str, ...]:
    """Task names without repeats, in the order of tasks.py."""
    chosen = set(names)
    return tuple(name for name in TASKS if name in chosen)


@dataclass(frozen=True)
class Run:
    """One run: a scenario, and the tasks on whose data it trains.

    `left_out`: in (b-2) the task that is not trained; in (c) the same task, which (c) trains.
    `universe`: all tasks of the experiment, nine in the paper, fewer with train.py --tasks.
    """

    scenario: str
    tasks: tuple[str, ...]
    left_out: str | None = None
    seed: int = 0
    fold: int = 1
    universe: tuple[str, ...] = field(default_factory=lambda: tuple(TASKS))
    select: str = "last"  # (b), and (c) on it: how (b) chooses its weights
    interpolate: float = 1.0  # (c): the share of (b-2) in the encoder's weights
    masked_weight: float = 0.0  # (b), and (c) on it: of masked prediction among the losses
    masked_labels: str = "clusters"

    @property
    def predicts_masked(self) -> bool:
        """Whether masked prediction is one of the losses of the run."""
        finetunes = self.scenario in ("mtl", "leave-one-out")
        return self.scenario == "ssl-masked" or (finetunes and self.masked_weight > 0)

    @property
    def label(self) -> str:
        """The task that the run is about, "all", or the tasks that it trains, as in ASR+PR."""
        if self.left_out or self.scenario == "ssl":
            return self.left_out or self.tasks[0]
        return "all" if self.tasks == tuple(TASKS) else "+".join(self.tasks)

    @property
    def name(self) -> str:
        """The folder: ssl-IC, mtl-all, leave-one-out-IC, mtl-ASR+PR, transfer-IC-seed1-fold2...

        With fewer than nine tasks a run that leaves one out says so: transfer-IC-of-ER+IC+KS. So
        does a variant: transfer-IC-A0.5, mtl-all-select-dev, mtl-all-masked-0.1-shuffled.
        """
        name = f"{self.scenario}-{self.label}"
        if self.left_out and self.universe != tuple(TASKS):
            name += f"-of-{'+'.join(self.universe)}"
        for text in self.variant:
            name += "-" + text.replace(" = ", "").replace(" ", "-")
        name += f"-seed{self.seed}" if self.seed else ""
        return name + (f"-fold{self.fold}" if self.fold > 1 else "")

    @property
    def variant(self) -> list[str]:
        """The settings that a folder and a row of the table show: "select dev", "A = 0.5"."""
        found = [f"select {self.select}"] if self.select != "last" else []
        found += [f"masked {self.masked_weight:g}"] if self.masked_weight else []
        found += [self.masked_labels] if self.masked_labels != "clusters" else []
        return found + ([f"A = {self.interpolate:g}"] if self.interpolate < 1 else [])

    def leave_one_out(self, left_out: str) -> "Run":
        """Scenario (b-2) of the same universe, seed and fold: all tasks but one."""
        others = tuple(name for name in self.universe if name != left_out)
        return replace(self, scenario="leave-one-out", tasks=others, left_out=left_out,
                       interpolate=1.0)

    def prerequisites(self, heads: str) -> list["Run"]:
        """The runs that this one starts from: the heads of (a); for (c) also the encoder of (b-2).

        `heads` is Setting.heads: fresh heads need no run of (a). Masked prediction always starts
        from a run of ssl-masked on the audio of the same tasks.
        """
        if self.scenario in HEADS_FIRST:
            return []
        runs = []
        if heads == "ssl":
            for name in self.tasks:
                runs.append(Run("ssl", (name,), seed=self.seed, fold=self.fold))
        if self.scenario == "transfer":
            runs.append(self.leave_one_out(self.left_out))
        if self.predicts_masked:
            runs.append(replace(self, scenario="ssl-masked", select="last", masked_weight=0.0))
        return runs


def scenario_runs(scenario: str, tasks, universe, seed: int = 0, fold: int = 1) -> list[Run]:
    """The runs of a scenario for each of `tasks`; "all" gives the 28 runs of Table 1 (9+1+9+9)."""
    base = Run("mtl", universe, seed=seed, fold=fold, universe=universe)
    if scenario in ("mtl", "control"):
        return [replace(base, scenario=scenario)]
    if scenario == "ssl":
        return [Run("ssl", (name,), seed=seed, fold=fold) for name in tasks]
    if scenario == "leave-one-out":
        return [base.leave_one_out(name) for name in tasks]
    if scenario == "transfer":
        return [replace(base, scenario="transfer", tasks=(name,), left_out=name) for name in tasks]
    runs = []
    for part in ("mtl", "ssl", "leave-one-out", "transfer"):
        runs += scenario_runs(part, universe, universe, seed, fold)
    return runs


def vary(run: Run, setting: Setting) -> Run:
    """A copy of the run with the settings that its name shows (`Run.variant`); (a) has none."""
    if run.scenario == "ssl":
        return run
    share = setting.interpolate if run.scenario == "transfer" else 1.0
    return replace(run, select=setting.select, interpolate=share,
                   masked_weight=setting.masked_weight, masked_labels=setting.masked_labels)


def with_prerequisites(runs: list[Run], heads: str, finished: Callable | None = None) -> list[Run]:
    """The runs, their prerequisites, the prerequisites of these, and so on.

    A run for which finished(run) is true needs no prerequisites.
    """
    wanted, queue = [], list(runs)
    while queue:
        run = queue.pop(0)
        if run in wanted:
            continue
        wanted.append(run)
        if finished is None or not finished(run):
            queue += run.prerequisites(heads)
    return wanted


def in_stages(runs: list[Run]) -> list[list[Run]]:
    """The runs in an order in which each stage builds on earlier stages only."""
    stages = []
    for scenarios in (HEADS_FIRST, ("mtl", "leave-one-out", "control"), ("transfer",)):
        stages.append([run for run in runs if run.scenario in scenarios])
    return [stage for stage in stages if stage]


@dataclass(frozen=True)
class Inputs:
    """What the runs of a command read, by corpus (see `key`).

    Cached training reuses a few fixed crops of a recording; uncached training draws new ones. So
    whether the features fit into the cache changes the result. `gb_all_frames` and `gb_means`:
    cache sizes in GB, of all frames or of means over time, for corpora with cropped recordings.
    """

    encoder: str  # digest of the pretrained encoder: weights and configuration
    data: dict[str, dict[str, str]]  # key -> split -> digest of the corpus
    gb_all_frames: dict[str, float]
    gb_means: dict[str, float]
    cache_gb: float  # room for the features of one corpus (--cache-gb)

    @staticmethod
    def key(task: str, fold: int) -> str:
        """The key of a corpus: its task, and the fold if the task has several."""
        return f"{task}-fold{fold}" if TASKS[task].folds > 1 and fold > 1 else task

    def has_fixed_crops(self, task: str, fold: int, augment: bool) -> bool:
        """Whether training on a frozen encoder uses cached features of the same few crops.

        It does if the recordings are cropped and the features fit into the cache.
        """
        sizes = self.gb_means if caches_means(TASKS[task].head, augment) else self.gb_all_frames
        key = self.key(task, fold)
        return key in sizes and sizes[key] <= self.cache_gb


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run; runs/<name>/config.json keeps it.

    A run is reused, resumed or averaged with another only if these agree. `built_on` holds the
    configurations of the prerequisites.
    """

    scenario: str
    label: str  # Run.label
    tasks: tuple[str, ...]
    left_out: str | None
    universe: tuple[str, ...]
    seed: int
    fold: int
    setting: str
    encoder: str  # digest of the pretrained encoder (Inputs)
    encoder_run: str | None  # (c): the run whose finetuned encoder is used
    interpolate: float  # (c): its share in the weights; the rest is the pretrained encoder's
    trains_encoder: bool
    feature_grad_mult: float  # 0: the convolutions are frozen
    masked_weight: float  # (c): of the run that trained its encoder
    masked_labels: str
    hidden: dict[str, int]  # width of each head; of masked prediction, that of its embeddings
    heads: str | None  # where the heads start: "ssl", "fresh"; None in (a)
    lr: float  # peak learning rate
    encoder_lr: float | None  # that of the encoder in (b)
    freeze_layers: int  # in (b), transformer layers that are not trained
    scale: float  # already contained in steps, warmup and evaluate_every
    steps: int
    warmup: int | None  # updates; None: the rate is constant
    batch: dict[str, int]  # utterances per task in each part of an update
    accumulate: int  # parts of an update, in each of `processes` processes
    processes: int  # 1 in (a) and (c), where all processes share one batch
    clip: float  # largest gradient norm
    weight_decay: float
    weighting: str
    augment: bool  # SpecAugment
    time_mask_width: int  # frames
    evaluate_every: int | None  # updates between two evaluations on dev
    select: str  # the reported weights: the best on "dev", the "last", or an "average"
    average_last: int | None  # evaluations that are averaged
    precision: str
    fixed_crops: tuple[str, ...]  # tasks that train on cached features of fixed crops
    data: dict[str, dict[str, str]]  # task -> split -> corpus digest
    built_on: dict[str, dict]  # name of a prerequisite -> its RunConfig, as a dict

    @property
    def run(self) -> Run:
        """The run of this configuration, which names its folder."""
        select = "last" if self.scenario == "ssl" else self.select
        if self.scenario == "transfer":  # its own checkpoint is always the best on dev
            select = self.built_on[self.encoder_run]["select"]
        return Run(self.scenario, self.tasks, self.left_out, self.seed, self.fold, self.universe,
                   select, self.interpolate, self.masked_weight, self.masked_labels)

    def to_json(self) -> dict:
        """The configuration as JSON holds it: tuples become lists."""
        as_dict = asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in as_dict.items()}


def make_config(run: Run, setting: Setting, inputs: Inputs, processes: int = 1) -> RunConfig:
    """The configuration of a run: the one place where its numbers are chosen.

    (a) follows the recipe of the task (SUPERB); (b) and (c) follow Section 3.3 of the paper.
    `processes`: in (a) and (c) all processes share one batch, because SUPERB (a) and the paper (c)
    give its total size. Otherwise each process reads a batch of its own, as in the released code.
    """
    heads = [] if run.scenario == "ssl-masked" else list(run.tasks)
    if run.predicts_masked:
        heads.append(MASKED)
    recipes = {name: recipe_of(name, setting) for name in heads}
    trains_encoder = run.scenario in ("mtl", "leave-one-out")
    numbers = training_numbers(run, setting, recipes)
    fixed_crops = []
    if not trains_encoder and not run.predicts_masked:  # else the encoder runs at each step
        for name in run.tasks:
            if inputs.has_fixed_crops(name, run.fold, numbers["augment"]):
                fixed_crops.append(name)
    return RunConfig(
        scenario=run.scenario, label=run.label, tasks=run.tasks, left_out=run.left_out,
        universe=run.universe, seed=run.seed, fold=run.fold, setting=setting.name,
        encoder=inputs.encoder,
        encoder_run=run.leave_one_out(run.left_out).name if run.scenario == "transfer" else None,
        interpolate=run.interpolate, trains_encoder=trains_encoder,
        average_last=setting.average_last if numbers["select"] == "average" else None,
        feature_grad_mult=setting.feature_grad_mult if trains_encoder else 0.0,
        encoder_lr=(setting.encoder_lr or setting.mtl_lr) if trains_encoder else None,
        freeze_layers=setting.freeze_layers if trains_encoder else 0, scale=setting.scale,
        masked_weight=run.masked_weight, masked_labels=run.masked_labels,
        hidden={name: recipe.hidden for name, recipe in recipes.items()},
        heads=None if run.scenario in HEADS_FIRST else setting.heads,
        weighting="sum" if run.scenario in (*HEADS_FIRST, "transfer") else setting.weighting,
        precision=setting.precision, fixed_crops=tuple(fixed_crops),
        processes=1 if run.scenario in ("ssl", "transfer") else processes,
        data={name: inputs.data[Inputs.key(name, run.fold)] for name in run.tasks},
        built_on={other.name: make_config(other, setting, inputs, processes).to_json()
                  for other in run.prerequisites(setting.heads)},
        **numbers)


def training_numbers(run: Run, setting: Setting, recipes: dict[str, Recipe]) -> dict:
    """Rate, updates, batch, regularisation and choice of the checkpoint: fields of RunConfig."""
    if run.scenario in HEADS_FIRST:
        (recipe,) = recipes.values()
        batch = dict.fromkeys(run.tasks, setting.ssl_batch or recipe.batch)
        evaluate_every = scaled(recipe.evaluate_every, setting)
        return dict(lr=setting.ssl_lr or recipe.lr, warmup=None, batch=batch, accumulate=1,
                    steps=scaled(setting.ssl_steps or recipe.steps, setting),
                    evaluate_every=evaluate_every, select="dev" if evaluate_every else "last",
                    augment=recipe.augment, time_mask_width=40,  # s3prl's SpecAugment
                    clip=recipe.clip, weight_decay=recipe.weight_decay)
    # The paper is silent about clipping and SpecAugment; the released code does both.
    # DIFFERS: the released code uses AdamW with decay 0.01; the paper says Adam.
    common = dict(clip=1.0, weight_decay=0.0, augment=setting.time_mask_width > 0,
                  time_mask_width=setting.time_mask_width)
    if run.scenario == "transfer":
        return common | dict(lr=setting.transfer_lr, steps=scaled(setting.transfer_steps, setting),
                             warmup=scaled(setting.transfer_warmup, setting),
                             batch={run.left_out: setting.transfer_batch}, accumulate=1,
                             evaluate_every=scaled(setting.evaluate_every, setting), select="dev")
    batch = {name: max(1, int(setting.mtl_batch * TASKS[name].mtl_share)) for name in run.tasks}
    evaluate_every = scaled(setting.mtl_evaluate_every, setting)
    return common | dict(lr=setting.mtl_lr, steps=scaled(setting.mtl_steps, setting),
                         warmup=scaled(setting.mtl_warmup, setting), batch=batch,
                         accumulate=setting.accumulate, evaluate_every=evaluate_every,
                         select=run.select)  # in the paper the last (Section 4.1)


def scaled(updates: int | None, setting: Setting) -> int | None:
    """A number of updates times --scale, at least 1; 0 stays 0 and None stays None."""
    if not updates:
        return updates
    return max(1, round(setting.scale * updates))


def recipe_of(name: str, setting: Setting) -> Recipe:
    """The recipe of a head, of a task or of masked prediction, in a setting."""
    if name == MASKED:
        return MASKED_TINY if setting.name == "tiny" else MASKED_SUPERB
    return TASKS[name].tiny if setting.name == "tiny" else TASKS[name].superb


def load_config(folder: Path) -> RunConfig:
    """The configuration of a run on disk. Raises RunError if it is damaged or of an old format."""
    saved = read_config(folder)
    try:
        values = {item.name: saved[item.name] for item in fields(RunConfig)}
        for name, value in values.items():
            if isinstance(value, list):
                values[name] = tuple(value)
        return RunConfig(**values)
    except KeyError as error:
        message = f"no {error} in {folder / 'config.json'}; delete {folder} and train again"
        raise RunError(message) from error


def build_model(config: RunConfig, encoder: Hubert, classes: dict) -> MultiTask:
    """The model of a run: an encoder and a new head of `classes[task]` outputs for each task.

    The initial weights of a head follow from (seed, task): they are the same in every scenario.
    """
    heads = {}
    for name, hidden in config.hidden.items():
        seed_random_numbers(config.seed, "head", name)
        if name == MASKED:  # in ssl-masked it is the only loss, with weight 1
            heads[name] = MaskedPrediction(encoder.dim, hidden, config.masked_weight or 1.0)
        else:
            heads[name] = TASKS[name].head(encoder.dim, classes[name], hidden)
    encoder.feature_grad_mult = config.feature_grad_mult
    model = MultiTask(encoder, heads, config.augment, config.time_mask_width)
    if config.weighting == "uncertainty":
        model.log_sigma = nn.Parameter(torch.zeros(len(config.tasks)))
    return model


def more_targets(config: RunConfig, model: MultiTask) -> Callable | None:
    """What makes the targets of masked prediction from the audio of a step (batches.Steps)."""
    if not config.run.predicts_masked:
        return None
    return partial(masked_batch, seed=config.seed, clusters=model.heads[MASKED].clusters.cpu(),
                   shuffled=config.masked_labels == "shuffled")


def is_small(source: str) -> bool:
    """Whether an encoder has at most the width of the tiny one. A file is loaded to find out."""
    named = UNTRAINED | {"tiny": TINY, "hubert_base": BASE}
    config = named[source] if source in named else load_encoder(source).config
    return config["encoder_embed_dim"] <= TINY["encoder_embed_dim"]


def load_run_encoder(config: RunConfig, source: str, runs: Path) -> Hubert:
    """The encoder that a run starts from: `source`, a pretrained one; in (c) that of (b-2).

    With A = config.interpolate < 1, (c) takes A x (b-2) + (1 - A) x pretrained, weight by weight
    (Speech-FT, Lin et al. 2025). Raises RunError if the pretrained weights are not the run's.
    """
    A, finetuned = config.interpolate, None
    if config.encoder_run and A > 0:
        finetuned = load_encoder(str(runs / config.encoder_run / "checkpoint.pt"))
        if A == 1:
            return finetuned
    encoder = load_encoder(source)
    if encoder_digest(encoder) != config.encoder:
        raise RunError(f"the weights of {source} changed since {config.run.name} was begun; put "
                       "the old ones back, or train in a new --runs folder")
    if finetuned:  # with A = 0 the pretrained weights stay as they are, bit by bit
        weights, mean = finetuned.state_dict(), {}
        for name, pretrained in encoder.state_dict().items():
            mean[name] = A * weights[name] + (1 - A) * pretrained
        encoder.load_state_dict(mean)
    return encoder

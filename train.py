"""The paper's four scenarios (Section 2) and a control of ours: nine tasks, one training loop.

    python train.py --scenario ssl --task IC            # (a)   frozen HuBERT, the head of one task
    python train.py --scenario mtl                      # (b-1) finetune HuBERT on nine tasks
    python train.py --scenario leave-one-out --task IC  # (b-2) the same, without IC
    python train.py --scenario transfer --task IC       # (c)   freeze HuBERT of (b-2), train IC
    python train.py --scenario all                      # the 28 runs of Table 1, graphs, report
    python train.py --scenario control                  # (a+)  as (b-1), but HuBERT stays frozen

A scenario first trains any missing run whose weights it needs: transfer needs the encoder of
leave-one-out, and (b) and (c) start from the heads of ssl (unless --heads fresh). Finished runs are
reused, interrupted runs continue. Without --data everything runs on a synthetic corpus with a tiny
HuBERT (--setting tiny); with --data DIR on real SUPERB data with HuBERT Base (--setting paper).

Several GPUs:  torchrun --nproc_per_node 4 train.py --data DIR --scenario mtl
"""

import argparse
import math
import operator
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from shutil import rmtree

if __name__ == "__main__":  # Ctrl-C during the imports ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
from torch.nn.parallel import DistributedDataParallel

import graphs
import toy
from batches import Steps, Stream, load_ahead
from corpus import Corpus
from engine.frozen import FrozenFeatures, cache_gigabytes, cache_states, caches_means
from engine.kernels import keep_memory
from engine.launch import (choose_threads, first_process_first, friendly_errors, or_note,
                           process_group, rank, run_parallel, say, stop_signals, wait_for_all,
                           world_size)
from engine.pretrained import absolute_source
from engine.runs import (RunError, is_finished, load_checkpoint, locked, save_json, save_text,
                         weights_digest, write_config)
from engine.session import Session
from evaluate import dev_thresholds, predict_and_score, write_result
from masked_prediction import MASKED, cluster_audio
from model import MultiTask, encoder_digest, load_encoder
from options import TOY, Options, check_arguments, default_jobs, parse_arguments
from results import print_results, read_results
from scenarios import (HEADS_FIRST, Inputs, Run, RunConfig, Setting, build_model, in_stages,
                       load_run_encoder, make_config, more_targets, scenario_runs, vary,
                       with_prerequisites)
from tasks import TASKS, constant_scores, mean_log_error, read_corpus, summarise
from weighting import backward, measure_affinity


RESUME_HINT = "; the same command continues from the last checkpoint"


def lr_scale(step: int, warmup: int | None, steps: int) -> float:
    """The factor on the peak learning rate after `step` updates (paper, Section 3.3).

    The factor rises linearly from 0 to 1 over `warmup` updates, then falls linearly to 0. With a
    warm-up, the first update has rate 0, as in the released code. If `warmup` is None, the factor
    is 1, as SUPERB trains its heads.
    """
    if warmup is None:
        return 1.0
    if step < warmup:
        return step / warmup
    return (steps - step) / (steps - warmup)


def training_loop(session: Session, network, model: MultiTask, config: RunConfig, batches,
                  evaluate: Callable, affinity_every: int | None = None) -> None:
    """Train until the last step.

    `network(batches, random_key)` returns the losses; it is the model or its DDP wrapper. Each
    step of `batches` holds the parts of an update, one in the paper. A part has one batch of every
    task (round robin), and all go through the encoder in one pass. Each step has one clip and one
    Adam update.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    model.train()
    with stop_signals() as signals:
        for parts in session.with_progress_bar(batches):  # [{task: batch}, ...]
            scale = lr_scale(session.step, config.warmup, config.steps)
            for group in session.optimizer.param_groups:
                group["lr"] = group["peak_lr"] * scale
            if affinity_every and (session.step + 1) % affinity_every == 0:
                cosines = measure_affinity(model, config, session.step, parts)
                session.write_log({"step": session.step + 1, "affinity": cosines})
            losses = backward(network, model, config, session.step, parts)
            gradient_norm = torch.nn.utils.clip_grad_norm_(trainable, config.clip)
            session.optimizer.step()
            session.optimizer.zero_grad()

            # If a loss is not finite, the error names its utterances.
            ids = {task: [] for task in losses}
            for part in parts:
                for task in losses:
                    ids[task] += part[task].ids
            session.end_step(losses, gradient_norm, ids, config.lr * scale)
            if evaluation_is_due(session.step, config):
                evaluate()
            session.save_when_due(signals)


def evaluation_is_due(step: int, config: RunConfig) -> bool:
    """Whether dev is scored: every `evaluate_every` steps and at the last one."""
    if config.evaluate_every is None or rank() > 0:
        return False
    return step % config.evaluate_every == 0 or step == config.steps


@dataclass(frozen=True)
class Data:
    """The corpora of a run, and the cached features of those that a frozen encoder has read."""

    corpora: dict[str, dict[str, Corpus]]  # split -> task -> corpus
    features: dict[str, dict[str, FrozenFeatures | None]]  # None: the encoder runs at each step

    def score(self, split: str, model: MultiTask, options: Options) -> dict[str, list[dict]]:
        """{task: one row (tasks.score) for every utterance} of a split."""
        return predict_and_score(model, self.corpora[split], self.features[split],
                                 options.workers, options.quiet)


def train(config: RunConfig, options: Options) -> None:
    """Make one run, or continue it: set up, loop, score test.

    A finished run is not trained again. Raises RunError if its configuration differs.
    """
    folder = options.runs / config.run.name
    recorded = {"encoder": absolute_source(options.encoder), "data": str(options.data.resolve()),
                "workers": options.workers, "device": options.device,
                "skip_broken": options.skip_broken, "command": shlex.join(sys.argv)}
    if is_finished(folder, config.to_json(), recorded, options.precision_given):
        return
    smallest_batch = min(config.batch.values()) * config.processes
    if smallest_batch < world_size():
        raise RunError(f"{world_size()} processes cannot share a batch of {smallest_batch}; "
                       "start fewer")
    if rank() == 0:
        write_config(folder, config.to_json(), recorded)
    keep_memory()
    threads = torch.get_num_threads()
    try:
        model, data = prepare(config, options)
        optimizer = make_optimizer(model, config)
        network = model
        if world_size() > 1 and config.weighting != "pcgrad":  # PCGrad averages by itself
            network = DistributedDataParallel(model)
        session = Session(folder, model, optimizer, config.steps, options.save_every,
                          options.log_every, options.quiet)
        session.resume()
        batches = batches_from(session.step, config, model, data, options)
        # Processes of torchrun share the cores; those of `run_parallel` have one thread each.
        may_choose = world_size() == 1 and torch.get_num_threads() > 1
        if session.step == 0 and options.device == "cpu" and may_choose:
            first_parts = batches.dataset[0]  # of update 0
            choose_threads(partial(backward, network, model, config, 0, first_parts))
            optimizer.zero_grad()
            session.write_log({"step": 0, "threads": torch.get_num_threads()})
        evaluate = partial(evaluate_on_dev, session, config, data, options)
        affinity_every = options.affinity_every if config.scenario == "mtl" else None
        training_loop(session, network, model, config, batches, evaluate, affinity_every)
        test_and_save(session, config, data, options)
    finally:
        torch.set_num_threads(threads)


def make_optimizer(model: MultiTask, config: RunConfig) -> torch.optim.Optimizer:
    """Adam, as in the paper: AdamW with weight decay 0 is Adam. The encoder has its own rate."""
    encoder = [p for p in model.encoder.parameters() if p.requires_grad]
    others = [p for name, p in model.named_parameters()
              if p.requires_grad and not name.startswith("encoder.")]
    groups = [{"params": others, "peak_lr": config.lr}]
    if encoder:
        groups.append({"params": encoder, "peak_lr": config.encoder_lr})
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def prepare(config: RunConfig, options: Options) -> tuple[MultiTask, Data]:
    """The model with its first weights, the corpora, and the cached features."""
    with first_process_first():  # it measures the audio once and keeps the lengths on disk
        corpora = read_corpora(config, options)
    model = make_model(config, options, corpora["train"])
    features = {}
    with first_process_first():
        for split, task_corpora in corpora.items():
            features[split] = cache_features(model, split, task_corpora, config, options)
    return model, Data(corpora, features)


def evaluate_on_dev(session: Session, config: RunConfig, data: Data, options: Options) -> None:
    """Score dev, log it, and keep the weights that may be reported (`keep_selected`)."""
    session.check_last_step()  # a model with NaN weights has no score
    rows = data.score("dev", session.model, options)
    session.model.train()
    metrics = {name: summarise(TASKS[name], rows[name]) for name in config.tasks}
    session.write_log({"step": session.step, "dev": metrics})
    shown = []
    for name in config.tasks:
        first = TASKS[name].metrics[0]
        shown.append(f"{name} {first.name} {metrics[name][first.name]:.1f}")
    session.show(dev=", ".join(shown))
    keep_selected(session, config, metrics)


def keep_selected(session: Session, config: RunConfig, metrics: dict) -> None:
    """Keep the weights of this step if `config.select` may report them.

    `metrics`: {task: {metric: percent}} on dev. "dev": one task, as in (a) and (c), has its best
    first metric; several have the lowest `mean_log_error`. "average": the last evaluations.
    """
    if config.select == "dev" and len(config.tasks) == 1:
        first = TASKS[config.tasks[0]].metrics[0]
        session.keep_if_best(metrics[config.tasks[0]][first.name], first.better)
    elif config.select == "dev":
        session.keep_if_best(mean_log_error(metrics), operator.lt)
    elif config.select == "average":
        to_come = math.ceil((config.steps - session.step) / config.evaluate_every)
        if to_come < config.average_last:
            session.add_to_average()


def test_and_save(session: Session, config: RunConfig, data: Data, options: Options) -> None:
    """Take the selected weights; save; score test; write result.json."""
    state, seconds = session.finish(), session.seconds()
    if rank() == 0:
        rows = data.score("test", session.model, options)
        constant = {}
        for name, corpus in data.corpora["test"].items():
            constant[name] = constant_scores(TASKS[name], data.corpora["train"][name], corpus)
        thresholds = dev_thresholds(session.model, data.corpora["dev"], data.features["dev"],
                                    options.workers, options.quiet)
        write_result(session.folder, config, seconds, rows, weights_digest(state), constant,
                     thresholds)
        rmtree(session.folder / "cache", ignore_errors=True)
    wait_for_all()


def read_corpora(config: RunConfig, options: Options) -> dict[str, dict[str, Corpus]]:
    """{split: {task: corpus}} of a run.

    Dev is read if the run is evaluated during training. For tasks with trials it is always read:
    predict.py needs a threshold from dev. ssl-masked has no head of a task and reads training data
    only. The run's folder keeps which utterances were left out (skipped.txt) and the labels and
    audio settings that predict.py needs (inputs.json). Raises RunError if the data changed since
    the command began.
    """
    corpora = {"train": {}, "dev": {}, "test": {}}
    for name in config.tasks:
        corpora["train"][name] = options.read(name, "train", config.fold)
        if name not in config.hidden:
            continue
        corpora["test"][name] = options.read(name, "test", config.fold)
        if config.evaluate_every or corpora["test"][name].trials:
            corpora["dev"][name] = options.read(name, "dev", config.fold)
    inputs, skipped = {}, []
    for split, task_corpora in corpora.items():
        for name, corpus in task_corpora.items():
            if corpus.digest != config.data[name][split]:
                raise RunError(f"{name}: the {split} data in {options.data} changed while this "
                               "command was running; start it again")
            skipped += [f"{name} {split}: {sentence}\n" for sentence in corpus.skipped]
    for name, test in corpora["test"].items():
        inputs[name] = {"labels": corpora["train"][name].labels, "gain": test.gain,
                        "trim": test.trim, "crop": test.crop}
    if rank() == 0:
        folder = options.runs / config.run.name
        save_json(folder / "inputs.json", inputs)
        if skipped:
            save_text(folder / "skipped.txt", "".join(skipped))
    return corpora


def make_model(config: RunConfig, options: Options, train: dict[str, Corpus]) -> MultiTask:
    """The model of a run with its first weights; parts that are not trained are frozen."""
    encoder = load_run_encoder(config, options.encoder, options.runs)
    classes = {name: corpus.classes for name, corpus in train.items()}
    model = build_model(config, encoder, classes)
    load_trained_heads(model, config, options.runs)
    freeze(model, config)
    model.encoder.checkpoint_activations = options.checkpoint_activations
    return model.to(options.device)


def load_trained_heads(model: MultiTask, config: RunConfig, runs: Path) -> None:
    """Load the heads that earlier runs trained: those of (a), and that of masked prediction.

    The weights of the weighted sum are not loaded, so they are equal at the start. The paper does
    not say where the heads of (b) and (c) start; the released code starts from those of (a).
    """
    for run, built_on in config.built_on.items():
        if built_on["scenario"] not in HEADS_FIRST:
            continue
        folder = runs / run
        (name,) = built_on["hidden"]  # such a run has one head
        prefix = f"heads.{name}."
        weights = {}
        for key, tensor in load_checkpoint(folder)["model"].items():
            if key.startswith(prefix):
                weights[key.removeprefix(prefix)] = tensor
        try:
            model.heads[name].load_state_dict(weights)
        except RuntimeError as error:
            message = f"no head that fits {name} in {folder}; delete it and train again"
            raise RunError(message) from error


def freeze(model, config: RunConfig) -> None:
    """Freeze what the scenario does not train.

    In (a), (a+) and (c) HuBERT is frozen; only the weighted sum and the heads are trained. In (b)
    HuBERT is trained too. With feature_grad_mult 0, its convolutions stay frozen. `freeze_layers`
    freezes the first transformer layers and everything below them. In ssl-masked the weighted sum
    is frozen, because no head reads it.
    """
    model.encoder.requires_grad_(config.trains_encoder)
    if config.feature_grad_mult == 0:
        model.encoder.feature_extractor.requires_grad_(False)
    if config.freeze_layers:
        model.encoder.freeze_layers(config.freeze_layers)
    model.layer_sum.requires_grad_(config.scenario != "ssl-masked")
    model.train()  # a frozen encoder goes into evaluation mode (`Hubert.train`): no dropout


def cache_features(model: MultiTask, split: str, corpora: dict[str, Corpus],
                   config: RunConfig, options: Options) -> dict[str, FrozenFeatures | None]:
    """{task: cached hidden states}; None means that the encoder runs at every step."""
    if not model.encoder.frozen or config.run.predicts_masked:
        return dict.fromkeys(corpora)
    # All runs of (a) share the cache of the pretrained encoder. A run of (c) has a cache of its
    # own, and deletes it at its end.
    folder = options.runs / config.run.name if config.encoder_run else options.runs
    training = split == "train"
    found = {}
    for name, corpus in corpora.items():
        pooled = caches_means(model.heads[name], training and config.augment)
        found[name] = cache_states(model.encoder, corpus, training, pooled, folder / "cache",
                                   options.cache_gb, config.seed, options.workers, options.quiet)
    return found


def batches_from(step: int, config: RunConfig, model: MultiTask, data: Data, options: Options):
    """Yields the parts of each update from `step` on; worker processes prefetch them."""
    streams = {}
    for name, corpus in data.corpora["train"].items():
        batch = config.batch[name] * config.accumulate * config.processes  # of an update
        streams[name] = Stream(corpus, batch, config.seed, data.features["train"][name])
    if config.scenario == "ssl-masked" and step == 0:  # a checkpoint has the clusters
        model.heads[MASKED].clusters.copy_(cluster_audio(streams, config.seed))
    cached = all(found is not None for found in data.features["train"].values())
    steps = Steps(streams, rank(), world_size(), config.accumulate, more_targets(config, model))
    return load_ahead(steps, 0 if cached else options.workers,
                      sampler=range(step, config.steps), pin_memory=options.device == "cuda")


def gather_inputs(runs: list[Run], setting: Setting, options: Options) -> Inputs:
    """The digests of the encoder and of every corpus that the runs or their prerequisites read."""
    encoder = load_encoder(setting.encoder)
    layers = encoder.num_states - 1
    if setting.freeze_layers >= layers:
        raise RunError(f"--freeze-layers {setting.freeze_layers}: the encoder has {layers} layers, "
                       "and at least one must train; --scenario control freezes all of them")
    data, gb_all_frames, gb_means = {}, {}, {}
    for run in with_prerequisites(runs, setting.heads):
        for name in run.tasks:
            key = Inputs.key(name, run.fold)
            if key in data:
                continue
            data[key] = {}
            for split in ("train", "dev", "test"):
                data[key][split] = options.read(name, split, run.fold).digest
            train = options.read(name, "train", run.fold)
            if train.crop:
                gb_all_frames[key] = cache_gigabytes(encoder, train, True, pooled=False)
                gb_means[key] = cache_gigabytes(encoder, train, True, pooled=True)
    return Inputs(encoder_digest(encoder), data, gb_all_frames, gb_means, options.cache_gb)


# The runs that the command line asks for


def train_all(runs: list[Run], setting: Setting, inputs: Inputs, options: Options) -> None:
    """Train all missing runs, stage by stage; several at a time where possible."""
    wanted = with_prerequisites(runs, setting.heads, options.has_result)
    configs = {run: make_config(run, setting, inputs, world_size()) for run in wanted}
    jobs = default_jobs(setting, options)
    done = 0
    for stage in in_stages(wanted):
        finished = [run for run in stage if options.has_result(run)]
        missing = [run for run in stage if not options.has_result(run)]
        for run in finished:
            train_with_lock(run, configs, options)  # only compares the configurations
        done += len(finished)
        if jobs > 1 and len(missing) > 1:
            train_one = partial(train_in_subprocess, configs=configs, options=options)
            run_parallel(train_one, {run.name: run for run in missing}, jobs)
        else:
            for number, run in enumerate(missing, done + 1):
                say(f"[{number}/{len(wanted)}] {run.name}")
                train_with_lock(run, configs, options)
        done += len(missing)


def train_in_subprocess(run: Run, configs: dict[Run, RunConfig], options: Options) -> None:
    """`train_with_lock` as one of several jobs: it prints nothing but its errors."""
    with friendly_errors(options.debug, RESUME_HINT):
        train_with_lock(run, configs, replace(options, quiet=True))


def train_with_lock(run: Run, configs: dict[Run, RunConfig], options: Options) -> None:
    """Train a run. If another command is training it, wait until it is finished."""
    if world_size() > 1:  # the processes of one command share the run
        train(configs[run], replace(options, quiet=options.quiet or rank() > 0))
        return
    with locked(options.runs / run.name / "run"):
        train(configs[run], options)


def run_command(args: argparse.Namespace, setting: Setting, options: Options) -> None:
    """Everything that the command line asks for, then the table, the graphs, the page."""
    if not args.dry_run:
        options.runs.mkdir(parents=True, exist_ok=True)
    if options.data == TOY and not options.data.exists() and rank() == 0:
        say(f"making the toy corpus in {TOY} (once)")
        with suppress(FileExistsError):  # another command made it meanwhile
            toy.write_corpus(options.data)
    wait_for_all()
    tasks = args.task or args.tasks  # --task: the tasks to treat; --tasks: all of the experiment
    groups = []  # a group: the runs of one seed and fold
    for seed, fold in product(args.seed, args.fold):
        found = scenario_runs(args.scenario, tasks, args.tasks, seed, fold)
        groups.append([vary(run, setting) for run in found])
    all_runs = sum(groups, [])
    if default_jobs(setting, options) > 1:  # all seeds together keep all cores busy
        groups = [all_runs]
    with first_process_first():
        inputs = gather_inputs(all_runs, setting, options)
    if args.dry_run:
        from tools.dryrun import dry_run

        if rank() == 0:
            dry_run(all_runs, setting, inputs, options)
        return
    for group in groups:
        train_all(group, setting, inputs, options)
    if rank() == 0:
        show_results(args, options, tasks if args.scenario in ("ssl", "transfer") else args.tasks)


def show_results(args: argparse.Namespace, options: Options, tasks: tuple[str, ...]) -> None:
    """Print the table of the finished runs; for "all" draw the graphs; write a page.

    The page takes seconds, so only "all" and (c), which end an experiment, write it. If the graphs
    or the page fail, a note says why, because the runs are complete.
    """
    print()
    try:
        print_results(read_results(options.runs), tasks)
    except RunError as error:  # an older run is damaged or differs; the new runs are complete
        say(f"note: no table: {error}")
    # The graphs compare runs of fold 1 that report the last step, without masked prediction.
    as_in_paper = args.select in (None, "last") and not args.masked_weight
    if args.scenario == "all" and 1 in args.fold and as_in_paper:
        with or_note("no graphs", options.debug):
            changes = graphs.run_changes(options.runs, args.seed, args.tasks)
            graphs.draw_graphs(changes, graphs.runs_title(options.runs, args.seed), options.out)
    if args.scenario in ("all", "transfer"):
        write_page(options.runs / "report.html", options)


def write_page(page: Path, options: Options) -> None:
    """Write a page about the finished runs (tools/report.py), or say why there is none."""
    with or_note(f"no {page}", options.debug):
        from tools.report import write_report

        write_report(options.runs, page, options.data)
        say(f"wrote {page}; open it in a browser")


def main() -> None:
    args, setting, options = parse_arguments(__doc__)
    with friendly_errors(options.debug, RESUME_HINT):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        read_corpus.cache_clear()  # main() may be called again, after files changed
        check_arguments(args, setting, options)
        with process_group(options.device):
            run_command(args, setting, options)


if __name__ == "__main__":
    main()

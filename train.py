"""The paper's four scenarios (Section 2): nine tasks, one training loop.

    python train.py --scenario ssl --task IC            # (a)   frozen HuBERT, the head of one task
    python train.py --scenario mtl                      # (b-1) finetune HuBERT on all nine tasks
    python train.py --scenario leave-one-out --task IC  # (b-2) the same, without IC
    python train.py --scenario transfer --task IC       # (c)   freeze that encoder, train IC's head
    python train.py --scenario all                      # the 28 runs of Table 1, table and graphs
    python train.py --scenario control                  # (a+)  as (b-1), but HuBERT stays frozen

A scenario first makes the runs that it builds on: transfer needs the encoder of leave-one-out, and
both start from the heads of ssl. Finished runs are reused, interrupted runs continue. Without
--data everything runs on a synthetic corpus with a tiny HuBERT (--setting tiny); with --data DIR on
real SUPERB data with HuBERT Base (--setting paper).

Several GPUs:  torchrun --nproc_per_node 4 train.py --data DIR --scenario mtl
"""

import argparse
import shlex
import signal
import sys
from contextlib import nullcontext, suppress
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
from data import Corpus
from engine.frozen import FrozenFeatures, cache_gigabytes, cache_states, caches_means
from engine.kernels import keep_memory
from engine.launch import (first_process_first, friendly_errors, process_group, rank, run_parallel,
                           say, stop_signals, wait_for_all, world_size)
from engine.runs import (RunError, check_run, load_checkpoint, locked, save_json, save_text,
                         weights_digest, write_config)
from engine.session import Session
from evaluate import dev_thresholds, predict_and_score, write_result
from model import MultiTask, encoder_digest, load_encoder
from options import TOY, Options, check_arguments, default_jobs, parse_arguments
from results import print_results, read_results
from scenarios import (Inputs, Run, RunConfig, Setting, build_model, in_stages,
                       load_run_encoder, make_config, scenario_runs, with_prerequisites)
from tasks import TASKS, constant_scores, read_corpus, summarise
from weighting import pcgrad_backward, uncertainty_total


AFTER_STOP = "; the same command continues from the last checkpoint"


def lr_scale(step: int, warmup: int | None, steps: int) -> float:
    """The share of the peak learning rate after `step` updates (paper, Section 3.3).

    Linear from 0 up to 1 over `warmup` updates, then linear down to 0. The first update has rate 0,
    as in the released code. `warmup` None: constant, as SUPERB trains its heads.
    """
    if warmup is None:
        return 1.0
    if step < warmup:
        return step / warmup
    return (steps - step) / (steps - warmup)


def freeze(model, config: RunConfig) -> None:
    """Stop the gradient where the scenario does.

    (a), (c): at HuBERT's hidden states; the layer weights and the head learn. (b): HuBERT learns,
    but with feature_grad_mult 0 its convolutions do not.
    """
    model.encoder.requires_grad_(config.trains_encoder)
    if config.feature_grad_mult == 0:
        model.encoder.feature_extractor.requires_grad_(False)


def training_loop(session: Session, network, model: MultiTask, config: RunConfig, batches,
                  evaluate_on_dev) -> None:
    """Train until the last step. `network` is the model, or its DistributedDataParallel.

    Round robin: `batches` yields one batch of every task per step, and small corpora start again
    more often. The loss of a step is the plain sum over its tasks: one backward pass, one clip, one
    Adam update.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    device = model.layer_sum.weights.device
    model.train()
    with stop_signals() as signals:
        for step_batches in session.show_progress(batches):  # {task: batch}
            rate = config.lr * lr_scale(session.step, config.warmup, config.steps)
            for group in session.optimizer.param_groups:
                group["lr"] = rate

            # All random numbers of a step follow from this key: a resumed run draws the same ones.
            random_key = (config.seed, session.step, rank())
            with torch.autocast(device.type, torch.bfloat16, config.precision == "bf16"):
                losses = network(step_batches, random_key)  # {task: scalar}

            if config.weighting == "pcgrad":
                pcgrad_backward(losses, model, session.step)
            elif config.weighting == "uncertainty":
                uncertainty_total(losses, model.log_sigma).backward()
            else:
                sum(losses.values()).backward()
            gradient_norm = torch.nn.utils.clip_grad_norm_(trained, config.clip)
            session.optimizer.step()
            session.optimizer.zero_grad()

            ids = {task: batch.ids for task, batch in step_batches.items()}
            session.end_step(losses, gradient_norm, ids, rate)
            if evaluation_is_due(session.step, config):
                evaluate_on_dev(session)
            session.save_when_due(signals)


def evaluation_is_due(step: int, config: RunConfig) -> bool:
    """Whether dev is scored after a step: in (a) and (c), every so often and at the last one."""
    if config.evaluate_every is None or rank() > 0:
        return False
    return step % config.evaluate_every == 0 or step == config.steps


def train(run: Run, config: RunConfig, options: Options, quiet: bool = False) -> None:
    """Make one run, or continue it: set up, loop, score test. A finished run is only checked."""
    folder = options.runs / run.name
    recorded = {"encoder": options.encoder, "data": str(options.data.resolve()),
                "workers": options.workers, "device": options.device,
                "skip_broken": options.skip_broken, "command": shlex.join(sys.argv)}
    if check_run(folder, config.to_json(), recorded, options.precision_given):
        return
    smallest_batch = min(config.batch.values()) * config.processes
    if smallest_batch < world_size():
        raise RunError(f"{world_size()} processes cannot share a batch of {smallest_batch}; "
                       "start fewer")

    # Set up
    if rank() == 0:
        write_config(folder, config.to_json(), recorded)
    keep_memory()
    with first_process_first():  # the others then find the measured lengths on disk
        corpora = read_corpora(run, config, options)
    model = make_model(run, config, options, corpora["train"])
    with first_process_first():
        features = {split: cache_features(model, split, sets, run, config, options, quiet)
                    for split, sets in corpora.items()}
    threads = torch.get_num_threads()
    if all(cached and cached.pooled for cached in features["train"].values()):
        torch.set_num_threads(1)  # such a step is so small that threads wait for each other
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, config.lr, weight_decay=config.weight_decay, fused=True)
    # (With decay 0, AdamW is Adam.)
    network = model
    if world_size() > 1 and config.weighting != "pcgrad":  # which averages over processes itself
        network = DistributedDataParallel(model)
    session = Session(folder, model, optimizer, config.steps, options.save_every,
                      options.log_every, quiet)
    session.resume()

    def evaluate_on_dev(session: Session) -> None:
        task = TASKS[run.tasks[0]]
        rows = predict_and_score(model, corpora["dev"], features["dev"], options.workers, quiet)
        model.train()
        metrics = summarise(task, rows[task.name])
        session.write_log({"step": session.step, "dev": metrics})
        first = task.metrics[0]
        session.keep_if_best(metrics[first.name], first.better)
        session.show(**{f"dev_{first.name}": f"{metrics[first.name]:.1f}"})

    batches = batches_from(session.step, config, corpora["train"], features["train"], options)
    training_loop(session, network, model, config, batches, evaluate_on_dev)

    finish(session, config, corpora, features, options, quiet)
    torch.set_num_threads(threads)


def finish(session: Session, config: RunConfig, corpora: dict, features: dict, options: Options,
           quiet: bool) -> None:
    """Keep the best head, score test and write result.json."""
    state, model = session.finish(), session.model
    if rank() == 0:
        rows = predict_and_score(model, corpora["test"], features["test"], options.workers, quiet)
        constant = {name: constant_scores(TASKS[name], corpora["train"][name], corpus)
                    for name, corpus in corpora["test"].items()}
        thresholds = dev_thresholds(model, corpora["dev"], features["dev"], options.workers, quiet)
        write_result(session.folder, config, session.seconds(), rows, weights_digest(state),
                     constant, thresholds)
        rmtree(session.folder / "cache", ignore_errors=True)
    wait_for_all()


def read_corpora(run: Run, config: RunConfig, options: Options) -> dict[str, dict[str, Corpus]]:
    """{split: {task: corpus}} of a run; of dev only what it evaluates.

    Where the result is the last step, that is dev of the tasks with trials, for their thresholds.
    The run's folder keeps which utterances were left out (skipped.txt) and, for predict.py, what a
    prediction needs of a corpus (inputs.json). Raises RunError if the data changed since the
    command began.
    """
    corpora = {split: {name: options.read(name, split, run.fold) for name in run.tasks}
               for split in ("train", "test")}
    corpora["dev"] = {name: options.read(name, "dev", run.fold)
                      for name, test in corpora["test"].items()
                      if config.evaluate_every or test.trials}
    skipped = []
    for split, sets in corpora.items():
        for name, corpus in sets.items():
            if corpus.digest != config.data[name][split]:
                raise RunError(f"{name}: the {split} data in {options.data} changed while this "
                               "command was running; start it again")
            skipped += [f"{name} {split}: {sentence}\n" for sentence in corpus.skipped]
    if rank() == 0:
        folder = options.runs / run.name
        inputs = {}
        for name, corpus in corpora["test"].items():
            inputs[name] = {"labels": corpora["train"][name].labels, "gain": corpus.gain,
                            "trim": corpus.trim, "crop": corpus.crop}
        save_json(folder / "inputs.json", inputs)
        if skipped:
            save_text(folder / "skipped.txt", "".join(skipped))
    return corpora


def make_model(run: Run, config: RunConfig, options: Options, corpora: dict) -> MultiTask:
    """The model of a run with its first weights, frozen where the scenario freezes it."""
    encoder = load_run_encoder(config, options.encoder, options.runs)
    if not config.encoder_run and encoder_digest(encoder) != config.encoder:
        raise RunError(f"the weights of {options.encoder} changed while this command was running; "
                       "start it again")
    model = build_model(config, encoder, {n: corpus.classes for n, corpus in corpora.items()})
    if config.heads == "ssl":
        start_from_ssl(model, run, options.runs)
    freeze(model, config)
    return model.to(options.device)


def start_from_ssl(model: MultiTask, run: Run, runs: Path) -> None:
    """Load the heads of (a). The layer weights are reset to equal values, as in the released code.

    The paper does not say where the heads of (b) and (c) start; the released code starts them so.
    """
    for name in run.tasks:
        folder = runs / Run("ssl", (name,), seed=run.seed, fold=run.fold).name
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


def cache_features(model: MultiTask, split: str, corpora: dict[str, Corpus], run: Run,
                   config: RunConfig, options: Options,
                   quiet: bool) -> dict[str, FrozenFeatures | None]:
    """The cached states of a frozen encoder, by task. None: the encoder runs at each step."""
    if not model.encoder.frozen:
        return dict.fromkeys(corpora)
    # The pretrained encoder serves all runs of (a). That of (c) serves one run, which deletes the
    # cache when it ends.
    folder = options.runs / run.name if config.encoder_run else options.runs
    training = split == "train"
    found = {}
    for name, corpus in corpora.items():
        pooled = caches_means(model.heads[name], training and config.augment)
        found[name] = cache_states(model.encoder, corpus, training, pooled, folder / "cache",
                                   options.cache_gb, run.seed, options.workers, quiet)
    return found


def batches_from(step: int, config: RunConfig, corpora: dict, features: dict, options: Options):
    """Yields {task: batch} from a step on, loaded ahead by worker processes."""
    streams = {}
    for name, corpus in corpora.items():
        batch = config.batch[name] * config.processes  # over all processes
        streams[name] = Stream(corpus, batch, config.seed, features[name])
    workers = 0 if all(features.values()) else options.workers
    return load_ahead(Steps(streams, rank(), world_size()), workers,
                      sampler=range(step, config.steps), pin_memory=options.device == "cuda")


def gather_inputs(runs: list[Run], setting: Setting, options: Options) -> Inputs:
    """Read the encoder and every corpus that the runs or their prerequisites read."""
    encoder = load_encoder(setting.encoder)
    data, cropped_gb = {}, {}
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
                cropped_gb[key] = tuple(cache_gigabytes(encoder, train, True, pooled)
                                        for pooled in (False, True))
    return Inputs(encoder_digest(encoder), data, cropped_gb, options.cache_gb)


# The runs that the command line asks for


def make_all(runs: list[Run], setting: Setting, inputs: Inputs, options: Options) -> None:
    """Make the runs that are not there yet, stage by stage; several at a time where possible."""
    wanted = with_prerequisites(runs, setting.heads, options.is_finished)
    configs = {run: make_config(run, setting, inputs, world_size()) for run in wanted}
    make = partial(make_run, configs=configs, options=options)
    jobs = default_jobs(setting, options)
    done = 0
    for stage in in_stages(wanted):
        for run in filter(options.is_finished, stage):
            make(run)  # only compares the configurations
            done += 1
        waiting = [run for run in stage if not options.is_finished(run)]
        if jobs > 1 and len(waiting) > 1:
            run_parallel(partial(make, alone=True), {run.name: run for run in waiting}, jobs)
        else:
            for number, run in enumerate(waiting, done + 1):
                say(f"[{number}/{len(wanted)}] {run.name}")
                make(run)
        done += len(waiting)


def make_run(run: Run, configs: dict[Run, RunConfig], options: Options,
             alone: bool = False) -> None:
    """`train`, unless another command is making the same run: then its result serves both.

    `alone`: in a process of its own, which says nothing but its errors.
    """
    with friendly_errors(options.debug, AFTER_STOP) if alone else nullcontext():
        with locked(options.runs / run.name / "run") if world_size() == 1 else nullcontext():
            train(run, configs[run], options, quiet=alone)


def make_requested(args: argparse.Namespace, setting: Setting, options: Options) -> None:
    """Everything that the command line asks for, then the table, and for "all" the graphs."""
    if not args.dry_run:
        options.runs.mkdir(parents=True, exist_ok=True)
    if options.data == TOY and not options.data.exists() and rank() == 0:
        say(f"making the toy corpus in {TOY} (once)")
        with suppress(FileExistsError):  # another command made it meanwhile
            toy.write_corpus(options.data)
    wait_for_all()
    tasks = args.task or args.tasks
    runs = [run for seed, fold in product(args.seed, args.fold)
            for run in scenario_runs(args.scenario, tasks, args.tasks, seed, fold)]
    with first_process_first():
        inputs = gather_inputs(runs, setting, options)
    if args.dry_run:
        from tools.dryrun import dry_run

        if rank() == 0:
            dry_run(runs, setting, inputs, options)
        return
    for seed, fold in product(args.seed, args.fold):
        make_all([run for run in runs if (run.seed, run.fold) == (seed, fold)], setting, inputs,
                 options)
    if rank() == 0:
        print()
        shown = tasks if args.scenario in ("ssl", "transfer") else args.tasks
        try:
            print_results(read_results(options.runs), shown)
        except RunError as error:  # of older runs; the new ones are finished
            say(f"note: no table: {error}")
        if args.scenario == "all" and 1 in args.fold:
            seeds = [str(seed) for seed in args.seed]
            graphs.main(["--runs", str(options.runs), "--out", str(options.out), "--tasks",
                         *args.tasks, "--seed", *seeds])


def main() -> None:
    args, setting, options = parse_arguments(__doc__)
    with friendly_errors(options.debug, AFTER_STOP):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        read_corpus.cache_clear()
        check_arguments(args, setting, options)
        with process_group(options.device):
            make_requested(args, setting, options)


if __name__ == "__main__":
    main()

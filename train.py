"""The paper's four scenarios (Section 2), nine tasks, one training loop.

    python train.py --scenario ssl --task IC            # (a)   frozen HuBERT, train the head of one task
    python train.py --scenario mtl                      # (b-1) finetune HuBERT on all nine tasks at once
    python train.py --scenario leave-one-out --task IC  # (b-2) the same, without IC
    python train.py --scenario transfer --task IC       # (c)   freeze that encoder, train the head of IC on it
    python train.py --scenario all                      # all 28 runs of Table 1, then the table and the graphs
    python train.py --scenario control                  # (a+)  heads get the updates of (b-1), HuBERT stays frozen

What a scenario builds on is made first if it is not there: transfer needs the encoder of leave-one-out, and both
start from the heads of ssl. Finished runs are reused, interrupted ones go on where they stopped. Without --data
everything runs on a synthetic corpus with a tiny HuBERT (--setting tiny); with --data DIR on real SUPERB data with
HuBERT Base (--setting paper).

Several GPUs:  torchrun --nproc_per_node 4 train.py --data DIR --scenario mtl
"""
import io
import itertools
import json
import math
import os
import shlex
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import graphs
import toy
from batches import Steps, Stream, load_ahead
from data import Corpus
from engine.frozen import FrozenFeatures, cache_states, means_suffice
from engine.kernels import keep_memory
from engine.launch import any_rank, first_process_first, friendly_errors, interruptible, rank, run_parallel, say, world_size
from engine.runs import RunError, load_checkpoint, load_json, locked, save
from evaluate import build, predict_and_score, print_results, read, restore, write_result
from model import MultiTask
from scenarios import Run, Setting, arguments, configure, requested_runs, setting_of, with_prerequisites
from tasks import TASKS, summarise
from weighting import pcgrad_backward, uncertainty_total

def lr_scale(step: int, warmup: int | None, steps: int) -> float:
    """The share of the peak learning rate after `step` updates: linear from 0 up to 1, then linear down to 0 (paper,
    Section 3.3).

    The first update has rate 0, as in the released code. `warmup` None: constant, as SUPERB trains its heads.
    """
    if warmup is None:
        return 1.0
    return step / warmup if step < warmup else (steps - step) / (steps - warmup)

def check_finite(pending: tuple | None, folder: Path) -> None:
    """RunError if the step before, (step, losses, gradient norm, ids), went wrong; the checkpoint on disk is older."""
    step, losses, norm, ids = pending or (0, {}, 0.0, {})
    bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
    if bad or not math.isfinite(norm):
        what = "loss of " + ", ".join(bad) if bad else "gradient"
        utterances = ", ".join(utterance for name in bad or ids for utterance in ids[name])
        raise RunError(f"{folder.name}: the {what} is not finite at step {step} ({utterances}); look at these files, "
                       "or lower the learning rate in a new --runs folder (the checkpoint is intact)")

def check_config(folder: Path, config: dict) -> None:
    """Write config.json; RunError, listing the differences, if the run in this folder was begun with other settings, or
    on other runs than there are now."""
    path, finished = folder / "config.json", (folder / "result.json").exists()
    begun = finished or (folder / "checkpoint.pt").exists()
    known = load_json(path) if begun and path.exists() else config
    free = {"skip_broken"}  # a broken file may turn up late
    free |= {"processes", "precision", "cache_gb"} if finished else set()  # another machine may only read the result
    # (A need that is gone, because its folder was deleted, is no difference.)
    known = known | {"built_on": {name: known.get("built_on", {}).get(name) for name in config["built_on"]}}
    changed = [f"{key} was {known.get(key)} and is {value}" for key, value in config.items()
               if known.get(key) != value and key not in free]
    if changed:
        raise RunError(f"{folder} was made with other settings ({'; '.join(changed)}); "
                       f"use the old ones, delete the folder, or choose another one with --runs")
    if rank() == 0 and not finished:
        folder.mkdir(parents=True, exist_ok=True)
        about = {"versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
                 "command": shlex.join(sys.argv)}
        save(path, lambda file: file.write(json.dumps(config | about, indent=1).encode()))

def frozen_features(corpora: dict[str, Corpus], training: bool, model: MultiTask, config: dict, folder: Path, args,
                    setting: Setting, quiet: bool) -> dict[str, FrozenFeatures | None]:
    """What a frozen encoder says about some corpora, computed once; None where the encoder is trained, or its states do
    not fit."""
    if not model.encoder.frozen:
        return dict.fromkeys(corpora)
    # The encoder of (a) serves all tasks and seeds; that of (c) serves this run alone, and its features go when the
    # run is done.
    cache, found = (folder if config["scenario"] == "transfer" else args.runs) / "cache", {}
    for name, corpus in corpora.items():
        pooled = means_suffice(model.heads[name], training, config["augment"])
        found[name] = cache_states(model.encoder, corpus, training, pooled, cache, config["cache_gb"],
                                   setting.workers, quiet)
    return found

def start_from_ssl(model: MultiTask, tasks: tuple[str, ...], args) -> None:
    """The heads of (b) and (c) start from those of (a). The layer weights do not: they start equal again."""
    # The paper does not say where these heads start; the released code starts them so.
    for name in tasks:
        folder, prefix = Run("ssl", (name,)).folder(args), f"heads.{name}."
        saved = load_checkpoint(folder)["model"]
        try:
            model.heads[name].load_state_dict({key.removeprefix(prefix): tensor for key, tensor in saved.items()
                                               if key.startswith(prefix)})
        except RuntimeError as error:
            raise RunError(f"no head that fits {name} in {folder}; delete it and train again") from error

def train(run: Run, args, setting: Setting, quiet: bool = False) -> None:
    """Make one run: read, build, loop, evaluate on test, write result.json. Goes on from checkpoint.pt where there is
    one."""
    folder, config = run.folder(args), configure(run, args, setting)
    sources = [need.folder(args) / "result.json" for need in run.prerequisites(args)]
    config["built_on"] = {path.parent.name: load_json(path)["metrics"] for path in sources if path.exists()}
    check_config(folder, config)
    if (folder / "result.json").exists():
        return
    if min(config["batch"].values()) * config.get("processes", 1) < world_size():
        raise RunError(f"a batch of {config['batch']} cannot be shared by {world_size()} processes; start fewer")
    keep_memory()
    device, quiet = torch.device(args.device), quiet or rank() > 0
    path, log_path, weighting = folder / "checkpoint.pt", folder / "log.jsonl", config.get("weighting")

    # Data, model, optimiser.
    with first_process_first():
        corpora = {split: {name: read(name, split, config) for name in run.tasks}
                   for split in (("train", "dev", "test") if config["evaluate_every"] else ("train", "test"))}
    skipped = "".join(f"{name} {split}: {sentence}\n" for split, sets in corpora.items()
                      for name, corpus in sets.items() for sentence in corpus.skipped)
    if skipped and rank() == 0:
        save(folder / "skipped.txt", lambda file: file.write(skipped.encode()))
    torch.manual_seed(config["seed"])
    model = build(config, {name: corpus.classes for name, corpus in corpora["train"].items()}, args.runs).to(device)
    if config.get("heads") == "ssl":
        start_from_ssl(model, run.tasks, args)
    if weighting == "uncertainty":
        model.log_sigma = torch.nn.Parameter(torch.zeros(len(run.tasks), device=device))
    with first_process_first():
        frozen = {split: frozen_features(sets, split == "train", model, config, folder, args, setting, quiet)
                  for split, sets in corpora.items()}
    threads, pooled = torch.get_num_threads(), all(one and one.pooled for one in frozen["train"].values())
    torch.set_num_threads(1 if pooled else threads)  # a step on means is so small that cores would wait for each other
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, config["lr"], weight_decay=config["weight_decay"],
                                  fused=True)  # decay 0 is Adam
    by_hand = weighting == "pcgrad"  # which averages over processes itself
    net = DistributedDataParallel(model) if dist.is_initialized() and not by_hand else model

    # Where an interrupted run stopped. It ends with the same bits as an unbroken one, because checkpoint.pt holds the
    # weights, Adam's state and the best head; batches and crops follow from (seed, step) (batches.Stream), the rate
    # from the step, masks and dropout from the seed that each step sets below; and the log loses the lines after the
    # checkpoint. (On a CPU with as many threads. A frozen encoder is loaded anew.)
    step, best, seconds, pending, dev = 0, None, 0.0, None, {}
    if path.exists():
        saved = restore(model, folder)
        if "optimizer" in saved:
            optimizer.load_state_dict(saved["optimizer"])
        step, best, seconds = saved["step"], saved["best"], saved["seconds"]
        say(f"{folder.name}: going on after step {step}")
    if log_path.exists() and rank() == 0:  # without the steps that are lost, and a last line that the kill cut off
        lines = [line for line in load_json(log_path, lines=True) if line["step"] <= step]
        save(log_path, lambda file: file.write("".join(json.dumps(line) + "\n" for line in lines).encode()))
    log = open(log_path if rank() == 0 else os.devnull, "a")

    times = config.get("processes", 1)  # in (b) each process reads a batch, in (a) and (c) they share one
    streams = {name: Stream(corpus, times * config["batch"][name], config["seed"], frozen["train"][name])
               for name, corpus in corpora["train"].items()}
    loader = load_ahead(Steps(streams, rank(), world_size()), 0 if all(frozen["train"].values()) else setting.workers,
                        sampler=range(step, config["steps"]), pin_memory=device.type == "cuda")
    progress = tqdm(loader, desc=folder.name, initial=step, total=config["steps"], unit="step", disable=quiet)
    began = time.time() - seconds

    def own_state() -> dict:
        """The weights of everything but the encoder."""
        return {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}

    def checkpoint(**more) -> None:
        """Save, unless the last step went wrong."""
        check_finite(pending, folder)
        log.flush()
        encoder = {} if model.encoder.frozen else {"encoder": model.encoder.checkpoint()}
        state = {"step": step, "model": own_state(), "best": best, "seconds": time.time() - began, **encoder, **more}
        if rank() == 0:
            torch.save(state, content := io.BytesIO())  # a full disk then meets `save`, which can say so
            save(path, lambda file: file.write(content.getbuffer()))

    model.train()
    with interruptible() as received:
        for batches in progress:
            # Every random number of a step follows from its number: a resumed run draws what an unbroken one would.
            # (torch.manual_seed would do both lines, but where there is no GPU it keeps a note of every call.)
            torch.default_generator.manual_seed((config["seed"] * 10_000_019 + step) * 1_009 + rank())
            if device.type == "cuda":
                torch.cuda.manual_seed(torch.initial_seed())
            for group in optimizer.param_groups:
                group["lr"] = config["lr"] * lr_scale(step, config["warmup"], config["steps"])

            # One batch of every task (small corpora come round more often), one forward, one backward: the loss of a
            # step is the plain sum of the losses of the tasks.
            with torch.autocast(device.type, torch.bfloat16, enabled=config["precision"] == "bf16"):
                losses = net(batches)
            if weighting == "pcgrad":
                pcgrad_backward(losses, model, step)
            elif weighting == "uncertainty":
                uncertainty_total(losses, model.log_sigma).backward()
            else:
                sum(losses.values()).backward()
            norm = torch.nn.utils.clip_grad_norm_(trained, config["clip"])
            optimizer.step()
            optimizer.zero_grad()
            step += 1

            # Was the step before sound? Asked only now that the next one is on its way, so that a GPU never waits for
            # the answer.
            check_finite(pending, folder)
            losses = {name: loss.detach() for name, loss in losses.items()}
            pending = step, losses, norm, {name: batch.ids for name, batch in batches.items()}
            if step % setting.log_every == 0 or step == config["steps"]:
                values, rate = {name: loss.item() for name, loss in losses.items()}, optimizer.param_groups[0]["lr"]
                log.write(json.dumps({"step": step, "losses": values, "lr": rate,
                                      "seconds": round(time.time() - began, 2)}) + "\n")
                log.flush()
                progress.set_postfix(loss=f"{sum(values.values()):.2f}", lr=f"{rate:.1e}", **dev)

            # In (a) and (c) the head is judged on dev now and then, and the best one is kept; (b) reports the last.
            last = step == config["steps"]
            if config["evaluate_every"] and rank() == 0 and (last or step % config["evaluate_every"] == 0):
                rows = predict_and_score(model, corpora["dev"], frozen["dev"], setting.workers, quiet)
                model.train()
                metrics = summarise(TASKS[run.tasks[0]], rows[run.tasks[0]])
                first = TASKS[run.tasks[0]].metrics[0]
                if best is None or first.better(metrics[first.name], best["value"]):
                    best = {"value": metrics[first.name], "step": step, "model": own_state()}
                dev = {"dev_" + first.name: f"{metrics[first.name]:.1f}"}
                log.write(json.dumps({"step": step, "dev": metrics}) + "\n")

            asked = step % 10 == 0 or world_size() == 1  # several processes have to wait for each other's answers
            if asked and any_rank(bool(received), device):
                checkpoint(optimizer=optimizer.state_dict())
                raise KeyboardInterrupt(f"{folder.name}: stopped after step {step} and saved")
            if step % setting.save_every == 0:
                checkpoint(optimizer=optimizer.state_dict())

    if best:
        model.load_state_dict(best["model"], strict=False)
    checkpoint()
    if rank() == 0:
        write_result(folder, config, time.time() - began,
                     predict_and_score(model, corpora["test"], frozen["test"], setting.workers, quiet))
        shutil.rmtree(folder / "cache", ignore_errors=True)
    torch.set_num_threads(threads)
    if dist.is_initialized():
        dist.barrier()

# The runs that the command line asks for

def make_all(stages: list[list[Run]], args, setting: Setting) -> None:
    """Make the runs that are not there yet, stage by stage; several at a time where --jobs allows."""
    total, done = sum(map(len, stages)), 0
    small = "tiny" in setting.encoder and args.device == "cpu" and world_size() == 1
    jobs = 1 if world_size() > 1 else args.jobs or (os.cpu_count() if small else 1)
    for stage in stages:
        ready = [run for run in stage if (run.folder(args) / "result.json").exists()]
        waiting = [run for run in stage if run not in ready]
        for run in ready:
            make(run, args, setting)  # only checks that it was made with these settings
        done += len(ready)
        if jobs > 1 and len(waiting) > 1:
            run_parallel(partial(train_alone, args=args, setting=setting), {run.folder(args).name: run for run in waiting}, jobs)
        else:
            for number, run in enumerate(waiting, done + 1):
                say(f"[{number}/{total}] {run.folder(args).name}")
                make(run, args, setting)
        done += len(waiting)

def make(run: Run, args, setting: Setting, quiet: bool = False) -> None:
    """`train`, unless another command is just making the same run: then its result serves both."""
    with locked(run.folder(args) / "run") if world_size() == 1 else nullcontext():
        train(run, args, setting, quiet)

def train_alone(run: Run, args, setting: Setting) -> None:
    """One run of `run_parallel`."""
    torch.set_num_threads(1)
    with friendly_errors(args.debug):
        make(run, args, setting, quiet=True)

def main() -> None:
    args = arguments(__doc__)
    with friendly_errors(args.debug):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if args.device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        if world_size() > 1:
            dist.init_process_group("nccl" if args.device == "cuda" else "gloo", timeout=timedelta(hours=12))
        make_requested(args)
        if dist.is_initialized():  # not after an error: to destroy takes all processes, and the others may not know
            dist.destroy_process_group()

def make_requested(args) -> None:
    """Everything that the command line asks for, then the table, and for "all" the graphs."""
    setting, seeds, folds = setting_of(args), args.seed, args.fold
    if args.data == Path("data/toy") and not args.data.exists() and rank() == 0:
        say("making the toy corpus in data/toy (once)")
        toy.write_corpus(args.data)
    if dist.is_initialized():
        dist.barrier()
    for args.seed, args.fold in itertools.product(seeds, folds):
        stages = with_prerequisites(requested_runs(args), args)
        if args.dry_run:  # of one seed and fold
            from tools.dryrun import dry_run
            return dry_run(stages, args, setting) if rank() == 0 else None
        make_all(stages, args, setting)
    if rank() == 0:
        print()
        print_results(args.runs, args.task if args.scenario in ("ssl", "transfer") and args.task else list(TASKS))
    if args.scenario == "all" and 1 in folds and rank() == 0:
        graphs.main(["--runs", str(args.runs), "--out", str(args.out), "--seed", *map(str, seeds)])

if __name__ == "__main__":
    main()

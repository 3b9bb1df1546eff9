"""A dry run: whatever could go wrong on the way to Table 1, tried in a minute or two, and what it all will cost.

    python train.py --data DIR --scenario transfer --task IC --dry-run

Reads every corpus that the scenario needs, loads the encoder, takes one real step of every task with a frozen encoder
and one MTL step, and multiplies. The times are of this machine, now, from single steps: hours or weeks, no more.
"""
import resource
import time

import torch
from tqdm import tqdm

from batches import Steps, Stream
from data import SAMPLE_RATE
from evaluate import build, print_table, read
from features import cache_gigabytes, means_suffice
from model import FrozenBatch
from scenarios import Run, Setting, configure

FEW = 4  # utterances that the frozen encoder hears of each task

def seconds_of(action, device: torch.device) -> tuple:
    """How long the second call of `action` takes, and its result. The first one warms up; on a CPU, where that is soon
    done, one call of more than a second is enough."""
    for _ in range(2):
        began = time.perf_counter()
        result = action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        if device.type == "cpu" and seconds > 1:
            break
    return seconds, result

def dry_run(stages: list[list[Run]], args, setting: Setting) -> None:
    """Print one row per task and one for MTL, then hours, disk and memory of all runs that are not there yet."""
    runs = [run for stage in stages for run in stage if not (run.folder(args) / "result.json").exists()]
    names, device, corpora = dict.fromkeys(name for run in runs for name in run.tasks), torch.device(args.device), {}
    for name in names:
        config = configure(runs[0], args, setting)
        corpora[name] = {split: read(name, split, config) for split in ("train", "dev", "test")}
    table = [["what", "utterances", "hours", "outputs", "batch", "ms/step", "encode h", "cache GB"]]
    hours = disk_gb = 0.0
    heard = {}  # task: seconds, and what the frozen encoder says about FEW utterances: the same in (a) and in (c)
    alike = {}  # runs that cost the same: one task on a frozen encoder, in (a) or in (c), or several at once
    for run in runs:
        alone = run.scenario in ("ssl", "transfer")
        alike.setdefault(f"{run.tasks[0]}, {run.scenario}" if alone else "all at once", []).append(run)
    for what, group in tqdm(alike.items(), "two steps of each", unit="task"):
        tasks, name = group[0].tasks, group[0].tasks[0]
        config = configure(group[0], args, setting) | {"encoder": setting.encoder}
        model = build(config, {name: corpora[name]["train"].classes for name in tasks}, args.runs).to(device)
        streams = {name: Stream(corpora[name]["train"], config["batch"][name]) for name in tasks}
        batches = Steps(streams)[0]
        parts = [corpus for name in tasks for corpus in corpora[name].values()]
        hours_of_audio = sum(sum(corpus.lengths) for corpus in parts) / SAMPLE_RATE / 3600

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=config["precision"] == "bf16"):
                loss = sum(model(batches).values())
            loss.backward()  # Adam's share of a step is left out, and so are the looks at dev and test

        @torch.no_grad()
        def encode() -> tuple:
            return model.encoder(batch.waves[:FEW].to(device), batch.lengths[:FEW])

        encode_hours = cache_gb = 0.0
        if what != "all at once":
            batch, pooled = batches[name], means_suffice(model.heads[name], True, config["augment"])
            cache_gb = cache_gigabytes(model.encoder, corpora[name]["train"], True, pooled)
            if cache_gb <= setting.cache_gb:  # else the encoder runs at each step
                if name not in heard:
                    heard[name] = seconds_of(encode, device), int(batch.lengths[:FEW].sum())
                (seconds, (states, frames)), samples = heard[name]
                encode_hours = seconds / samples * hours_of_audio * SAMPLE_RATE
                if pooled:  # as in features.py
                    states, frames = states.mean(2, keepdim=True), torch.ones_like(frames)
                again = [k % len(frames) for k in range(len(batch.targets))]  # a whole batch, of the few
                targets = [batch.targets[k] for k in again]
                batches[name] = FrozenBatch(states[:, again], frames[again], targets, batch.ids)
                disk_gb += cache_gb
        else:
            disk_gb += len(group) * 3 * 4 * sum(p.numel() for p in model.parameters()) / 1e9  # with Adam's moments
        per_step, _ = seconds_of(step, device)
        table.append([what, f"{sum(len(corpus.utterances) for corpus in parts):,}", f"{hours_of_audio:.1f}",
                      str(corpora[name]["train"].classes) if what != "all at once" else "",
                      str(sum(config["batch"].values())), f"{1000 * per_step:.1f}", f"{encode_hours:.2f}",
                      f"{cache_gb:.1f}"])
        hours += sum(encode_hours + configure(run, args, setting)["steps"] * per_step / 3600 for run in group)
    print_table(table)
    memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    gpu = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the GPU" if device.type == "cuda" else ""
    time_needed = f"{hours:,.1f} hours" if hours > 2 else f"{60 * hours:.1f} minutes"
    print(f"\n{len(runs)} runs to make: about {time_needed} on this machine with one process ({device}, "
          f"{args.precision}), {disk_gb:.1f} GB of disk, {memory_gb:.1f} GB of memory{gpu}. No run was begun.")

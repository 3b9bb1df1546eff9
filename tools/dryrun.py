"""A dry run: a step or two of each kind on the way to Table 1, and roughly what it all will cost.

    python train.py --data DIR --scenario transfer --task IC --dry-run

Reads every corpus that the scenario needs, loads the encoder, takes real steps of every task with a frozen encoder and
of MTL, and multiplies. The times are of this machine, now, from single steps: they tell hours from weeks, no more.
"""
import sys
import time
from resource import RUSAGE_SELF, getrusage

import torch
from tqdm import tqdm

from batches import Batch, Steps, Stream
from data import SAMPLE_RATE
from evaluate import build, print_table, read
from engine.frozen import cache_gigabytes, means_suffice
from engine.kernels import keep_memory
from model import FrozenBatch, MultiTask
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

def memory_gigabytes() -> float:
    """The most memory that this process has used."""
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9

@torch.no_grad()
def encode(model: MultiTask, batch: Batch) -> tuple:
    """The encoder's states and frames of the first utterances of a batch."""
    return model.encoder(batch.waves[:FEW].to(model.layer_sum.weights.device), batch.lengths[:FEW])

def dry_run(stages: list[list[Run]], args, setting: Setting) -> None:
    """Print a row for each task in (a) and in (c) and one for MTL, then hours, disk and memory of all runs that are not
    there yet."""
    keep_memory()  # as in train.py
    runs = [run for stage in stages for run in stage if not (run.folder(args) / "result.json").exists()]
    names, device, corpora = dict.fromkeys(name for run in runs for name in run.tasks), torch.device(args.device), {}
    for name in names:
        corpora[name] = {split: read(name, split, configure(runs[0], args, setting))
                         for split in ("train", "dev", "test")}
    table = [["what", "utterances", "hours", "outputs", "batch", "ms/step", "encode h", "cache GB"]]
    hours = weights_gb = 0.0
    caches = {}  # what is on disk: GB
    heard = {}  # task: seconds, and what the frozen encoder says about FEW utterances: the same in (a) and in (c)
    alike = {}  # runs that cost the same: one task on a frozen encoder, in (a) or in (c), or several at once
    for run in runs:
        several = {"mtl": "all at once", "leave-one-out": "all at once", "control": "all, frozen"}
        alike.setdefault(several.get(run.scenario, f"{run.tasks[0]}, {run.scenario}"), []).append(run)
    for what, group in tqdm(alike.items(), "a step or two of each", unit="row"):
        tasks = group[0].tasks
        config = configure(group[0], args, setting) | {"encoder": setting.encoder}  # that of (c) is not there yet
        model = build(config, {name: corpora[name]["train"].classes for name in tasks}, args.runs).to(device)
        batches = Steps({name: Stream(corpora[name]["train"], config["batch"][name]) for name in tasks})[0]
        audio = {name: sum(sum(corpus.lengths) for corpus in corpora[name].values()) for name in tasks}  # in samples

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=config["precision"] == "bf16"):
                loss = sum(model(batches).values())
            loss.backward()  # Adam's share of a step is left out, and so are the looks at dev and test

        encode_hours, cache_gb, each_step = 0.0, 0.0, False
        for name in () if config["trains_encoder"] else tasks:
            batch, pooled = batches[name], means_suffice(model.heads[name], True, config["augment"])
            task_gb = cache_gigabytes(model.encoder, corpora[name]["train"], True, pooled)  # dev and test need less
            if task_gb > setting.cache_gb:
                each_step = True
                continue
            if name not in heard:
                heard[name] = int(batch.lengths[:FEW].sum()), *seconds_of(lambda: encode(model, batch), device)
            samples, seconds, (states, frames) = heard[name]
            if pooled:  # as in features.py
                states, frames = states.mean(2, keepdim=True), torch.ones_like(frames)
            again = [k % len(frames) for k in range(len(batch.targets))]  # a whole batch, of the few
            targets = [batch.targets[k] for k in again]
            batches[name] = FrozenBatch(states[:, again], frames[again], targets, batch.ids)
            cache_gb += task_gb
            own = group[0].scenario == "transfer"  # (c) deletes its cache when it is done, (a) and control share theirs
            cache = "of (c)" if own else (name, pooled)
            if own or cache not in caches:
                encode_hours += seconds * audio[name] / samples / 3600
            caches[cache] = max(task_gb, caches.get(cache, 0.0))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        weights_gb += len(group) * 3 * 4 * trained / 1e9  # with Adam's moments
        per_step, _ = seconds_of(step, device)
        utterances = sum(len(corpus.utterances) for name in tasks for corpus in corpora[name].values())
        table.append([what, f"{utterances:,}", f"{sum(audio.values()) / SAMPLE_RATE / 3600:.1f}",
                      str(corpora[tasks[0]]["train"].classes) if len(tasks) == 1 else "",
                      str(sum(config["batch"].values())), f"{1000 * per_step:.1f}",
                      "each step" if each_step else f"{encode_hours:.2f}", f"{cache_gb:.1f}"])
        hours += sum(encode_hours + configure(run, args, setting)["steps"] * per_step / 3600 for run in group)
    print_table(table)
    gpu = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the GPU" if device.type == "cuda" else ""
    time_needed = f"{hours:,.1f} hours" if hours > 2 else f"{60 * hours:.1f} minutes"
    disk_gb = weights_gb + sum(caches.values())
    print(f"\n{len(runs)} runs to make: about {time_needed} on this machine with one process ({device}, "
          f"{args.precision}), {disk_gb:.1f} GB of disk, {memory_gigabytes():.1f} GB of memory{gpu}. No run was begun.")

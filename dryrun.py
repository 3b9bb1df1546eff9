"""A dry run: whatever could go wrong on the way to Table 1, tried in a minute or two, and what it all will cost.

    python train.py --data DIR --scenario transfer --task IC --dry-run

Reads every corpus that the scenario needs, loads the encoder, takes one real step of every task with a frozen encoder
and one MTL step, and multiplies. The times are of this machine, now, from single steps: hours or weeks, no more.
"""
import resource
import time

import torch

from batches import Steps, Stream
from data import SAMPLE_RATE
from evaluate import build, print_table, read
from features import cache_gigabytes
from scenarios import Run, Setting, configure

def seconds_of(action, device: torch.device) -> float:
    """How long the second call of `action` takes; the first one warms up."""
    for _ in range(2):
        began = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - began

def dry_run(stages: list[list[Run]], args, setting: Setting) -> None:
    """Print one row per task and one for MTL, then hours, disk and memory of all runs that are not there yet."""
    runs = [run for stage in stages for run in stage if not (run.folder(args) / "result.json").exists()]
    names, device, corpora = dict.fromkeys(name for run in runs for name in run.tasks), torch.device(args.device), {}
    for name in names:
        corpora[name] = {split: read(name, split, configure(runs[0], args, setting)) for split in ("train", "dev", "test")}
    table = [["what", "utterances", "hours", "outputs", "batch", "ms/step", "encode h", "cache GB"]]
    hours = disk_gb = 0.0
    alike = {}  # runs that cost the same: one task on a frozen encoder, or several at once
    for run in runs:
        alike.setdefault(run.tasks[0] if run.scenario in ("ssl", "transfer") else "all at once", []).append(run)
    for what, group in alike.items():
        tasks = group[0].tasks
        config = configure(group[0], args, setting) | {"encoder": setting.encoder}
        model = build(config, {name: corpora[name]["train"].classes for name in tasks}, args.runs).to(device)
        batches = Steps({name: Stream(corpora[name]["train"], config["batch"][name]) for name in tasks})[0]
        heard = [corpus for name in tasks for corpus in corpora[name].values()]
        samples = sum(sum(corpus.lengths) for corpus in heard)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=config["precision"] == "bf16"):
                loss = sum(model(batches).values())
            loss.backward()

        @torch.no_grad()
        def encode() -> None:
            for batch in batches.values():
                model.encoder(batch.waves.to(device), batch.lengths)

        per_step, encode_hours, cache_gb = seconds_of(step, device), 0.0, 0.0
        if what != "all at once":
            in_step, pooled = sum(int(batch.lengths.sum()) for batch in batches.values()), model.heads[what].pools
            encoding = seconds_of(encode, device)
            encode_hours = encoding * samples / in_step / 3600
            cache_gb = sum(cache_gigabytes(model.encoder, corpus, False, pooled) for corpus in heard)
            if cache_gb <= setting.cache_gb:
                per_step, disk_gb = max(per_step - encoding, 1e-3), disk_gb + cache_gb
        else:
            disk_gb += len(group) * 3 * 4 * sum(p.numel() for p in model.parameters()) / 1e9  # with Adam's moments
        outputs = corpora[what]["train"].classes if what in corpora else ""
        table.append([what, f"{sum(len(corpus.utterances) for corpus in heard):,}",
                      f"{samples / SAMPLE_RATE / 3600:.1f}", str(outputs), str(sum(config["batch"].values())),
                      f"{1000 * per_step:.0f}", f"{encode_hours:.2f}", f"{cache_gb:.1f}"])
        hours += sum(encode_hours + configure(run, args, setting)["steps"] * per_step / 3600 for run in group)
    print_table(table)
    memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    gpu = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the GPU" if device.type == "cuda" else ""
    print(f"\n{len(runs)} runs to make: about {hours:,.1f} hours on this machine with one process ({device}, "
          f"{args.precision}), {disk_gb:.1f} GB of disk, {memory_gb:.1f} GB of memory{gpu}. Nothing was written.")

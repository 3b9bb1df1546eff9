"""A dry run: whatever could go wrong on the way to Table 1, tried in a minute or two, and what it all will cost.

    python train.py --data DIR --scenario transfer --task IC --dry-run

Reads every corpus that the scenario needs, loads the encoder, takes one real step of every task with a frozen encoder
and one MTL step, and multiplies. The times are of this machine, now, from single steps: hours or weeks, no more.
"""
import resource
import time

import torch

from batches import Steps, Stream
from evaluate import build, print_table, read
from scenarios import Setting, configure, requested_runs, with_needs


def dry_run(args, setting: Setting) -> None:
    """Print one row per task and one for MTL, then hours, disk and memory of all runs that are not there yet."""
    stages = with_needs(requested_runs(args), args)
    runs = [run for stage in stages for run in stage if not (run.folder(args) / "result.json").exists()]
    alone = {run.tasks[0]: run for run in runs if run.scenario in ("ssl", "transfer")}
    together = next((run for run in runs if run.scenario not in ("ssl", "transfer")), None)
    names = list(dict.fromkeys(name for run in runs for name in run.tasks))
    corpora = {name: read(name, "train", configure(runs[0], args, setting), args.skip_broken) for name in names}
    table, hours, disk_gb = [["what", "utterances", "hours", "outputs", "batch", "ms/step", "encode h",
                              "cache GB"]], 0.0, 0.0
    for run in [*alone.values(), *([together] if together else [])]:
        config = configure(run, args, setting) | {"encoder": setting.encoder}
        model = build(config, {name: corpora[name].classes for name in run.tasks}, args.runs).to(args.device)
        steps = Steps({name: Stream(corpora[name], config["batch"][name], args.seed) for name in run.tasks})
        model(steps[0])  # the first one also warms up
        batches, began = steps[1], time.time()
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.precision == "bf16"):
            total = sum(model(batches).values())
        total.backward()
        total.item()  # waits for a GPU
        whole = time.time() - began
        if run is together:
            audio_hours = sum(sum(u.samples for u in corpora[name].utterances) for name in run.tasks) / 16_000 / 3600
            table.append(["MTL, all of these", "", f"{audio_hours:.1f}", "", "", f"{1000 * whole:.0f}", "", ""])
            many = [other for other in runs if other.scenario not in ("ssl", "transfer")]
            hours += sum(configure(other, args, setting)["steps"] for other in many) * whole / 3600
            disk_gb += len(many) * 3 * 4 * sum(p.numel() for p in model.parameters()) / 1e9  # with Adam's moments
            continue
        name, batch, began = run.tasks[0], batches[run.tasks[0]], time.time()
        with torch.no_grad():
            model._encode(batches)
        encode = time.time() - began
        samples = sum(min(u.samples, corpora[name].crop or u.samples) for u in corpora[name].utterances)
        encode_hours = encode * samples / int(batch.lengths.sum()) / 3600
        rows = len(corpora[name].utterances) if model.heads[name].pools else samples / 16_000 * 50
        cache_gb = rows * model.encoder.states * model.encoder.dim * 4 / 1e9
        per_step = max(whole - encode, 1e-3) if cache_gb <= args.cache_gb else whole
        outputs = corpora[name].classes if isinstance(corpora[name].classes, int) else sum(corpora[name].classes)
        table.append([f"{name}, frozen", f"{len(corpora[name].utterances):,}", f"{samples / 16_000 / 3600:.1f}",
                      str(outputs),
                      str(config["batch"][name]), f"{1000 * per_step:.0f}", f"{encode_hours:.2f}", f"{cache_gb:.1f}"])
        many = [other for other in runs if other.scenario in ("ssl", "transfer") and other.tasks == run.tasks]
        hours += sum(encode_hours + configure(other, args, setting)["steps"] * per_step / 3600 for other in many)
        disk_gb += cache_gb if cache_gb <= args.cache_gb else 0
    print_table(table)
    memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    gpu = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the GPU" if args.device.startswith("cuda") else ""
    print(f"\n{len(runs)} runs to make: about {hours:,.1f} hours on this machine with one process ({args.device}, "
          f"{args.precision}), "
          f"{disk_gb:.1f} GB of disk, {memory_gb:.1f} GB of memory{gpu}. Nothing was written.")

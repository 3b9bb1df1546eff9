"""A dry run: a step or two of each kind on the way to Table 1, and roughly what everything costs.

    python train.py --data DIR --scenario transfer --task IC --dry-run

It reads every corpus that the scenario needs, loads the encoder, takes real steps of every task
with a frozen encoder and of MTL, and multiplies. The times come from single steps on this machine
now, without evaluations and the start of each run: expect a factor of two.
"""

import sys
import time
from dataclasses import dataclass
from resource import RUSAGE_SELF, getrusage

import torch

from batches import Batch, Steps, Stream
from corpus import Corpus
from engine.frozen import cache_gigabytes, caches_means
from engine.kernels import keep_memory
from engine.launch import progress
from model import FrozenBatch, MultiTask, load_encoder
from options import Options, default_jobs
from results import print_table
from rules import SAMPLE_RATE
from scenarios import (
    Inputs,
    Run,
    RunConfig,
    Setting,
    build_model,
    make_config,
    more_targets,
    with_prerequisites,
)
from train import freeze, make_optimizer
from weighting import backward

ENCODED = 4  # utterances of each task that the frozen encoder encodes
KINDS = {"ssl-masked": "all, masked", "mtl": "all at once", "leave-one-out": "all at once",
         "control": "all, frozen"}


@dataclass
class Estimate:
    """What one run of a kind costs."""

    row: list[str]  # of the printed table
    step_seconds: float
    steps: int
    encode_hours: float  # with a frozen encoder: all audio once
    cache_gb: dict[str, float]  # task -> GB of its cached training features
    trained_weights: int


def dry_run(runs: list[Run], setting: Setting, inputs: Inputs, options: Options) -> None:
    """Print a row for each kind of run, and the cost of all runs to make."""
    keep_memory()  # as in training
    runs = [run for run in with_prerequisites(runs, setting.heads, options.has_result)
            if not options.has_result(run)]
    jobs = default_jobs(setting, options)
    if jobs > 1:
        torch.set_num_threads(1)  # as each of several jobs
    alike = {}  # runs that cost the same
    for run in runs:
        alike.setdefault(KINDS.get(run.scenario, f"{run.tasks[0]}, {run.scenario}"), []).append(run)
    table = [["what", "utterances", "hours", "outputs", "batch", "ms/step", "encode h", "cache GB"]]
    hours = disk_gb = 0.0
    shared_caches = {}  # the runs of (a) and the control run share the cache of a task
    for what, group in progress(alike.items(), "a step or two of each", unit="row"):
        config = make_config(group[0], setting, inputs)
        found = estimate(what, group[0], config, options)
        table.append(found.row)
        encode_hours = found.encode_hours
        for task, gigabytes in found.cache_gb.items():
            if group[0].scenario == "transfer":  # deletes its cache when it ends
                shared_caches["of (c)"] = max(gigabytes, shared_caches.get("of (c)", 0.0))
            elif task in shared_caches:
                encode_hours = 0.0
            else:
                shared_caches[task] = gigabytes
        encodings = len(group)  # each run of (c) has an encoder of its own
        if group[0].scenario != "transfer":  # seeds share the cache of an encoder, folds do not
            encodings = len({run.fold for run in group})
        hours += encodings * encode_hours
        hours += len(group) * found.steps * found.step_seconds / 3600
        disk_gb += len(group) * 3 * 4 * found.trained_weights / 1e9  # weights and Adam's moments
    print_table(table)
    disk_gb += sum(shared_caches.values())
    print_total(len(runs), hours / jobs, jobs, disk_gb, setting, options)


def estimate(what: str, run: Run, config: RunConfig, options: Options) -> Estimate:
    """Take the steps of one kind of run. (c) takes HuBERT: its own encoder does not exist yet."""
    device = torch.device(options.device)
    corpora = {name: {split: options.read(name, split, run.fold)
                      for split in ("train", "dev", "test")} for name in run.tasks}
    encoder = load_encoder(options.encoder)
    classes = {name: sets["train"].classes for name, sets in corpora.items()}
    model = build_model(config, encoder, classes)
    freeze(model, config)
    model.encoder.checkpoint_activations = options.checkpoint_activations
    model.to(device).train()
    streams = {name: Stream(corpora[name]["train"], config.batch[name] * config.accumulate)
               for name in run.tasks}
    parts = Steps(streams, parts=config.accumulate, more=more_targets(config, model))[0]
    samples = {name: sum(sum(corpus.lengths) for corpus in sets.values())
               for name, sets in corpora.items()}
    encode_hours, cache_gb = 0.0, {}
    encodes_each_step = config.scenario == "ssl-masked"  # masks change the states at each step
    if model.encoder.frozen and not encodes_each_step:
        for name in run.tasks:
            pooled = caches_means(model.heads[name], config.augment)
            gigabytes = cache_gigabytes(model.encoder, corpora[name]["train"], True, pooled)
            if gigabytes > options.cache_gb:
                encodes_each_step = True
                continue
            cache_gb[name] = gigabytes
            for part in parts:
                part[name], seconds_per_sample = encode_some(model, part[name], pooled, device)
            encode_hours += seconds_per_sample * samples[name] / 3600
    optimizer = make_optimizer(model, config)

    def step() -> None:  # evaluations are left out
        backward(model, model, config, 0, parts)
        optimizer.step()
        optimizer.zero_grad()

    step_seconds, _ = seconds_of(step, device)
    hours = sum(samples.values()) / SAMPLE_RATE / 3600
    row = [what, f"{count_utterances(corpora):,}", f"{hours:.1f}",
           str(classes[run.tasks[0]]) if len(run.tasks) == 1 else "",
           str(config.accumulate * sum(config.batch.values())), f"{1000 * step_seconds:.1f}",
           "each step" if encodes_each_step else f"{encode_hours:.2f}",
           f"{sum(cache_gb.values()):.1f}"]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Estimate(row, step_seconds, config.steps, encode_hours, cache_gb, trained)


def count_utterances(corpora: dict[str, dict[str, Corpus]]) -> int:
    """Utterances of all tasks and splits."""
    return sum(len(corpus.utterances) for sets in corpora.values() for corpus in sets.values())


@torch.no_grad()
def encode_some(model: MultiTask, batch: Batch, pooled: bool,
                device: torch.device) -> tuple[FrozenBatch, float]:
    """A whole batch of cached states, repeated from the first utterances; seconds per sample."""
    waves, lengths = batch.waves[:ENCODED].to(device), batch.lengths[:ENCODED]
    seconds, (states, frames) = seconds_of(lambda: model.encoder(waves, lengths), device)
    if pooled:  # as in engine/frozen.py
        states, frames = states.mean(2, keepdim=True), torch.ones_like(frames)
    repeated = [k % len(frames) for k in range(len(batch.targets))]
    targets = [batch.targets[k] for k in repeated]
    cached = FrozenBatch(states[:, repeated], frames[repeated], targets, batch.ids)
    return cached, seconds / int(lengths.sum())


def seconds_of(action, device: torch.device) -> tuple:
    """The time of the second call of `action` in seconds, and its result.

    The first call warms up. On a CPU one call of more than a second is enough.
    """
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
    """The most memory that this process has used, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kB
    return getrusage(RUSAGE_SELF).ru_maxrss * unit / 1e9


def print_total(runs: int, hours: float, jobs: int, disk_gb: float, setting: Setting,
                options: Options) -> None:
    """Print the cost of all runs together."""
    gpu = ""
    if options.device == "cuda":
        gpu = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the GPU"
    needed = f"{hours:,.1f} hours" if hours > 2 else f"{60 * hours:.1f} minutes"
    print(f"\n{runs} runs to make: about {needed} on this machine with {jobs} at a time "
          f"({options.device}, {setting.precision}), {disk_gb:.1f} GB of disk, "
          f"{memory_gigabytes():.1f} GB of memory{gpu}. No run was begun.")

"""How fast is it here? Reading audio, the encoder, a head on the frozen encoder, the step of multi-task learning.

    python bench.py --encoder hubert_base                       # random weights and noise, no data needed; some minutes
    python bench.py --encoder hubert_base --device cuda --json  # all values in SI units and fractions

Speed is seconds of audio per second (x real time), and arithmetic as a share of what a large matrix product reaches in
the same precision (% of peak), not counting padding. Memory is the most so far; on a CPU it is that of the process.

B utterances, T frames (50 Hz), D dimensions, C channels.
"""
import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path

import soundfile
import torch
from torch.utils.data import DataLoader

from batches import Batch, Steps, Stream, collate
from data import SAMPLE_RATE, Corpus, Utterance, load_audio
from features import freeze
from model import BASE, TINY, MultiTask, length_groups, random_encoder
from tasks import TASKS

MIX = {  # a step of MTL: task: seconds of an utterance, SUPERB's classes, a target of that length
    "KS": (1.0, 12, 0), "IC": (2.3, (6, 14, 4), (0, 0, 0)), "SF": (3.0, 109, [5, 6] * 25), "ER": (4.5, 4, 0),
    "SID": (8.0, 1251, 0), "ASV": (8.0, 1211, 0), "PR": (12.0, 74, [5, 6] * 60), "ASR": (12.0, 32, [5, 6] * 90),
    "SD": (20.0, 2, torch.ones(2000, 2))}
EDGE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product measures the peak
HEAD_STEPS = 200                    # of a frozen head, timed to foretell SUPERB's 200,000
COLUMNS = {  # of the table: the unit it shows, in terms of the row's, and digits
    "seconds": ("ms", 1e3, 1), "times_real_time": ("x real time", 1, 1), "share_of_peak": ("% of peak", 100, 0),
    "padding": ("% padding", 100, 1), "bytes": ("GB", 1e-9, 1)}


def encoder_operations(sizes: dict, samples: int) -> int:
    """Multiplications and additions in the encoder's convolutions and matrix products, for one utterance."""
    T, inputs, products = samples, 1, 0
    for C, kernel, stride in sizes["extractor_conv_layer_config"]:
        T = (T - kernel) // stride + 1
        products += T * C * inputs * kernel
        inputs = C
    D, layers = sizes["encoder_embed_dim"], sizes["encoder_num_layers"]
    position = D // sizes["encoder_pos_conv_groups"] * sizes["encoder_pos_conv_kernel"]
    layer = 4 * D + 2 * T + 2 * sizes["encoder_ff_interm_features"]  # projections, attention, feed-forward
    return 2 * (products + T * D * (inputs + position + layers * layer))


def noise(folder: str, suffix: str, count: int) -> Corpus:
    """A corpus like IC's: audio files of 1 to 4 s."""
    lengths = random.Random(0).choices(range(SAMPLE_RATE, 4 * SAMPLE_RATE), k=count)
    utterances = [Utterance(str(k), f"{folder}/{k}{suffix}", (0, 0, 0), [], n) for k, n in enumerate(lengths)]
    for u in utterances:
        soundfile.write(u.path, torch.randn(u.samples).numpy() / 10, SAMPLE_RATE)
    return Corpus("IC", utterances, MIX["IC"][1], list)


def update(args, model: MultiTask, optimizer, shares: list[dict], precision: str = "fp32") -> None:
    """An update as train.py makes it, but that each share {task: batch} is a forward pass of its own."""
    torch.manual_seed(0)
    with torch.autocast(args.device, torch.bfloat16, enabled=precision == "bf16"):
        losses = [loss for share in shares for loss in model(share).values()]
    sum(losses).backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def measure(args, folder: str):
    """Yields the rows of the table."""
    def fastest(run) -> float:
        """Seconds of the best of at least two runs: other work on the machine makes timings noisy, but only longer."""
        times = []
        while len(times) < 2 or sum(times) < args.seconds:
            start = time.perf_counter()
            run()
            if args.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    def row(what: str, seconds: float, audio=None, at_peak=None, groups=None, note="") -> dict:
        """`audio`: its seconds; `at_peak`: seconds that the peak would need; `groups`: lengths padded together."""
        padded = groups and sum(len(group) * max(group) for group in groups)
        process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
        return {"what": what, "seconds": seconds, "times_real_time": audio and audio / seconds,
                "share_of_peak": at_peak and at_peak / seconds, "padding": groups and 1 - sum(map(sum, groups)) / padded,
                "bytes": torch.cuda.max_memory_allocated() if args.device == "cuda" else process, "note": note}

    peaks = {}  # operations per second
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(EDGE[args.device], EDGE[args.device]).to(args.device, dtype)
        seconds = fastest(lambda: a @ a)
        peaks[precision] = 2 * len(a)**3 / seconds
        yield row(f"matrix product, {precision}", seconds, note=f"{peaks[precision] / 1e9:,.0f} GFLOP/s")

    # Utterances of 1 to 4 s: reading them, encoding them in groups of similar length.
    for suffix in (".flac", ".wav"):
        corpus = noise(folder, suffix, args.utterances)
        audio = sum(u.samples for u in corpus.utterances) / SAMPLE_RATE
        yield row(f"reading {suffix}, one core", fastest(lambda: [load_audio(u, corpus) for u in corpus.utterances]), audio)

    encoder = random_encoder(BASE if args.encoder == "hubert_base" else TINY).to(args.device).requires_grad_(False)
    lengths = [u.samples for u in corpus.utterances]
    batches = [collate(corpus, [(i, None) for i in group]) for group in length_groups(lengths)]
    for precision, peak in peaks.items():
        with torch.autocast(args.device, torch.bfloat16, enabled=precision == "bf16"):
            seconds = fastest(lambda: [encoder(batch.waves.to(args.device), batch.lengths)[1] for batch in batches])
        work = sum(encoder_operations(encoder.sizes, n) for n in lengths)
        yield row(f"encoder, {precision}", seconds, audio, work / peak, [batch.lengths.tolist() for batch in batches])

    # IC's head on the frozen encoder.
    recipe, epoch = TASKS["IC"].superb, args.utterances / TASKS["IC"].superb.batch
    model = MultiTask(encoder, {"IC": TASKS["IC"].head(encoder.dim, corpus.classes, recipe.hidden)}, augment=False)
    optimizer = torch.optim.AdamW([p for p in model.to(args.device).parameters() if p.requires_grad], 1e-4, fused=True)

    def encode():
        return freeze(encoder, corpus, True, True, Path(tempfile.mkdtemp(dir=folder)), 50, quiet=True)

    def train(frozen, steps):
        data = Steps({"IC": Stream(corpus, recipe.batch, 0, frozen)})
        for shared in DataLoader(data, batch_size=None, sampler=range(steps)):
            update(args, model, optimizer, [shared])

    frozen = encode()
    step, again = fastest(lambda: train(frozen, HEAD_STEPS)) / HEAD_STEPS, fastest(lambda: train(None, 1))
    first, later = fastest(encode) + epoch * step, epoch * step
    yield row("frozen IC head, first epoch", first, audio)
    yield row("frozen IC head, later epoch", later, audio, note=f"{later / first:.2%} of the first")
    yield row("frozen IC head, 20 epochs", first + 19 * later, 20 * audio,
              note=f"{20 * epoch * again / (first + 19 * later):.0f} times as fast as encoding in every epoch")
    yield row("frozen IC head, SUPERB's recipe", recipe.steps * step, note=f"{recipe.steps:,} steps of {recipe.batch}")

    # The step of MTL: all tasks in one forward pass, or each in its own.
    batches, heads = {}, {}
    for task, (seconds, classes, target) in MIX.items():
        B, samples = round(2 * TASKS[task].mtl_share), round(seconds * SAMPLE_RATE)
        batches[task] = Batch(torch.randn(B, samples) / 10, torch.full((B,), samples), [target] * B, [task] * B)
        heads[task] = TASKS[task].head(encoder.dim, classes, TASKS[task].superb.hidden)
    model = MultiTask(encoder.requires_grad_(True), heads).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=True)
    apart = [batch.lengths.tolist() for batch in batches.values()]
    lengths = sum(apart, [])
    together = [[lengths[i] for i in group] for group in length_groups(lengths)]
    work = 3 * sum(encoder_operations(encoder.sizes, n) for n in lengths)  # backward takes twice as many; heads few
    for what, precision, shares, groups in (
            ("together, bf16", "bf16", [batches], together), ("together, fp32", "fp32", [batches], together),
            ("task by task, fp32", "fp32", [{task: batch} for task, batch in batches.items()], apart)):
        seconds = fastest(lambda: update(args, model, optimizer, shares, precision))
        yield row(f"MTL step, {what}", seconds, sum(lengths) / SAMPLE_RATE, work / peaks[precision], groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=("tiny", "hubert_base"), default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=5, help="to spend on each measurement at least")
    parser.add_argument("--utterances", type=int, default=32, help="of 1 to 4 s")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(args, folder))
    if args.json:
        print(json.dumps({"args": vars(args), "torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}, indent=1))
        return
    print(f"{args.encoder}, {args.device}, {torch.get_num_threads()} threads".ljust(34), *(f"{unit:>12}" for unit, _, _ in COLUMNS.values()))
    for r in rows:
        cells = ("" if r[key] is None else f"{factor * r[key]:,.{digits}f}" for key, (_, factor, digits) in COLUMNS.items())
        print(f"{r['what']:34}", *(f"{cell:>12}" for cell in cells), "", r["note"])


if __name__ == "__main__":
    main()

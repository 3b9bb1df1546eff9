"""How fast is it here? Reading audio, the encoder, a head on the frozen encoder, the step of multi-task learning.

    python bench.py --encoder hubert_base                   # random weights and noise, no data needed; some minutes
    python bench.py --encoder hubert_base --device cuda --json

Speed is seconds of audio per second (x real time), and arithmetic as a share of what a large matrix product reaches
in the same precision (% of peak); padding is no work. GB is the most memory so far, of the process or on the GPU.
T frames (50 Hz), D dimensions, C channels.
"""
import argparse
import json
import tempfile
import timeit
from collections.abc import Iterator
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import soundfile
import torch
from torch.utils.data import DataLoader

from batches import Batch, Steps, Stream, as_is, collate
from data import SAMPLE_RATE, Corpus, Utterance, load_audio
from features import freeze
from model import BASE, TINY, MultiTask, length_groups, random_encoder
from tasks import TASKS

MIX = {  # a step of MTL: task: seconds of an utterance, SUPERB's classes, a target of that length
    "KS": (1.0, 12, 0), "IC": (2.3, (6, 14, 4), (0, 0, 0)), "SF": (3.0, 109, [5, 6] * 25), "ER": (4.5, 4, 0),
    "SID": (8.0, 1251, 0), "ASV": (8.0, 1211, 0), "PR": (12.0, 74, [5, 6] * 60), "ASR": (12.0, 32, [5, 6] * 90),
    "SD": (20.0, 2, torch.ones(2000, 2))}
EDGE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product measures the peak
HEADINGS = "ms", "x real time", "% of peak", "% padding", "GB"


def encoder_operations(sizes: dict, samples: int) -> int:
    """Multiplications and additions in the encoder's convolutions and matrix products, for one utterance."""
    T, inputs, products = samples, 1, 0
    for C, kernel, stride in sizes["extractor_conv_layer_config"]:
        T = (T - kernel) // stride + 1
        products, inputs = products + T * C * inputs * kernel, C
    D, layers = sizes["encoder_embed_dim"], sizes["encoder_num_layers"]
    position = D // sizes["encoder_pos_conv_groups"] * sizes["encoder_pos_conv_kernel"]
    layer = 4 * D + 2 * T + 2 * sizes["encoder_ff_interm_features"]  # projections, attention, feed-forward
    return 2 * (products + T * D * (inputs + position + layers * layer))


def noise(folder: Path, suffix: str, count: int) -> Corpus:
    """A corpus like IC's: audio files of 1 to 4 s."""
    lengths = torch.linspace(SAMPLE_RATE, 4 * SAMPLE_RATE, count).int().tolist()
    utterances = [Utterance(str(k), f"{folder}/{k}{suffix}", (0, 0, 0), [], n) for k, n in enumerate(lengths)]
    for u in utterances:
        soundfile.write(u.path, torch.randn(u.samples).numpy() / 10, SAMPLE_RATE)
    return Corpus("IC", utterances, MIX["IC"][1], list)


def measure(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """Yields the rows of the table: what was measured, HEADINGS (a value may be None), a note."""
    def fastest(run) -> float:
        """Seconds of the best run: the first warms up, and other work on the machine only makes a run longer."""
        finish = torch.cuda.synchronize if args.device == "cuda" else int  # int does nothing
        return min(timeit.repeat(lambda: (run(), finish()), number=1, repeat=args.repeats))

    def row(what: str, seconds: float, audio=None, ideal=None, groups=None, note="") -> dict:
        """audio: its seconds; ideal: seconds it would take at the peak; groups: lengths of what is padded together."""
        padding = groups and 100 - 100 * sum(map(sum, groups)) / sum(len(group) * max(group) for group in groups)
        used = torch.cuda.max_memory_allocated() if args.device == "cuda" else 1024 * getrusage(RUSAGE_SELF).ru_maxrss
        values = 1e3 * seconds, audio and audio / seconds, ideal and 100 * ideal / seconds, padding, used / 1e9
        return {"what": what, **dict(zip(HEADINGS, values)), "note": note}

    def update(model: MultiTask, optimizer, shares: list[dict], precision: str) -> None:
        """An update as in train.py; each share {task: batch} is a forward pass of its own."""
        torch.manual_seed(0)
        with torch.autocast(args.device, torch.bfloat16, enabled=precision == "bf16"):
            losses = [loss for share in shares for loss in model(share).values()]
        sum(losses).backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    peaks = {}  # operations per second
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(EDGE[args.device], EDGE[args.device]).to(args.device, dtype)
        seconds = min(fastest(lambda: a @ a) for _ in range(10))  # often: it is the yardstick
        peaks[precision] = 2 * len(a)**3 / seconds
        yield row(f"matrix product, {precision}", seconds, note=f"the peak: {peaks[precision] / 1e9:,.0f} GFLOP/s")

    # Utterances of 1 to 4 s: reading them, and encoding them in groups of similar length.
    for suffix in (".flac", ".wav"):
        corpus = noise(folder, suffix, args.utterances)
        lengths = [u.samples for u in corpus.utterances]
        seconds, audio = fastest(lambda: [load_audio(u, corpus) for u in corpus.utterances]), sum(lengths) / SAMPLE_RATE
        yield row(f"reading {suffix}, one core", seconds, audio)
    encoder = random_encoder(BASE if args.encoder == "hubert_base" else TINY).to(args.device).requires_grad_(False)
    batches, encoding = [collate(corpus, [(i, None) for i in group]) for group in length_groups(lengths)], {}
    for precision, peak in peaks.items():
        with torch.autocast(args.device, torch.bfloat16, enabled=precision == "bf16"):
            encoding[precision] = fastest(lambda: [encoder(b.waves.to(args.device), b.lengths)[1] for b in batches])
        ideal = sum(encoder_operations(encoder.sizes, n) for n in lengths) / peak
        yield row(f"encoder, {precision}", encoding[precision], audio, ideal, [b.lengths.tolist() for b in batches])

    # A head for IC on the frozen encoder, which hears each utterance once: a later epoch is the head's alone.
    recipe, found = TASKS["IC"].superb, []
    model = MultiTask(encoder, {"IC": TASKS["IC"].head(encoder.dim, corpus.classes, recipe.hidden)}, augment=False)
    optimizer = torch.optim.AdamW([p for p in model.to(args.device).parameters() if p.requires_grad], fused=True)
    once = fastest(lambda: found.append(freeze(encoder, corpus, True, True, folder / str(len(found)), 50, quiet=True)))
    loader = DataLoader(Steps({"IC": Stream(corpus, recipe.batch, 0, found[0])}), batch_size=None, sampler=range(200),
                        collate_fn=as_is)
    step = fastest(lambda: [update(model, optimizer, [batches], "fp32") for batches in loader]) / 200
    later = step * len(lengths) / recipe.batch
    total, without = once + 20 * later, 20 * (encoding["fp32"] + later)
    yield row("frozen IC head, first epoch", once + later, audio)
    yield row("frozen IC head, later epoch", later, audio, note=f"{later / (once + later):.2%} of the first")
    yield row("frozen IC head, 20 epochs", total, 20 * audio, note=f"encoding in each: {without / total:.1f} x as long")
    yield row("frozen IC head, SUPERB's recipe", recipe.steps * step, note=f"= {recipe.steps * step / 60:.1f} minutes")

    # The step of MTL: all tasks in one forward pass, or each in its own. What the heads do does not count as work.
    together, heads = {}, {}
    for task, (seconds, classes, target) in MIX.items():
        B, samples = round(2 * TASKS[task].mtl_share), round(seconds * SAMPLE_RATE)
        together[task] = Batch(torch.randn(B, samples) / 10, torch.full((B,), samples), [target] * B, [task] * B)
        heads[task] = TASKS[task].head(encoder.dim, classes, TASKS[task].superb.hidden)
    model = MultiTask(encoder.requires_grad_(True), heads).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=True)
    apart = [{task: batch} for task, batch in together.items()]
    lengths = torch.cat([batch.lengths for batch in together.values()]).tolist()
    groups = [[lengths[i] for i in group] for group in length_groups(lengths)]
    work = 3 * sum(encoder_operations(encoder.sizes, n) for n in lengths)  # a backward pass is twice a forward pass
    for what, shares, precision in (("", [together], "bf16"), ("", [together], "fp32"), (" by task", apart, "fp32")):
        seconds, ideal = fastest(lambda: update(model, optimizer, shares, precision)), work / peaks[precision]
        yield row(f"MTL step{what}, {precision}", seconds, sum(lengths) / SAMPLE_RATE, ideal, None if what else groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=("tiny", "hubert_base"), default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement; the best one counts")
    parser.add_argument("--utterances", type=int, default=32, help="of 1 to 4 s")
    parser.add_argument("--json", action="store_true", help="a JSON object per line")
    args = parser.parse_args()
    if not args.json:
        print(f"{f'{args.encoder}, {torch.get_num_threads()} threads':32}", *(f"{heading:>12}" for heading in HEADINGS))
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(args, Path(folder)):
            cells = "".join(f"{'' if row[name] is None else format(row[name], ',.1f'):>13}" for name in HEADINGS)
            print(json.dumps(row) if args.json else f"{row['what']:32}{cells}  {row['note']}", flush=True)


if __name__ == "__main__":
    main()

"""How fast is it here? Reading audio, the encoder, a head on the frozen encoder, the step of multi-task learning.

    python -m tools.bench --encoder hubert_base                   # random weights and noise, no data needed; some minutes
    python -m tools.bench --encoder hubert_base --device cuda --json

Speed is seconds of audio per second (x real time), and arithmetic as a share of what a large matrix product reaches
in the same precision (% of peak); padding is no work. GB is the most memory so far, of the process or on the GPU.
"""
import argparse
import json
import tempfile
import timeit
from collections.abc import Iterator
from pathlib import Path

import soundfile
import torch

from batches import Batch, Steps, Stream, collate, in_chunks
from data import SAMPLE_RATE, Corpus, Utterance, load_audio
from tools.dryrun import memory_gigabytes
from engine.frozen import CHUNK_SECONDS, cache_states
from engine.kernels import keep_memory
from model import BASE, TINY, MultiTask, frame_count, random_encoder
from tasks import TASKS

MIX = {  # a step of MTL: task: seconds of an utterance, SUPERB's classes, a target of that length
    "KS": (1.0, 12, 0), "IC": (2.3, (6, 14, 4), (0, 0, 0)), "SF": (3.0, 109, [5, 6] * 25), "ER": (4.5, 4, 0),
    "SID": (8.0, 1251, 0), "ASV": (8.0, 1211, 0), "PR": (12.0, 74, [5, 6] * 60), "ASR": (12.0, 32, [5, 6] * 90),
    "SD": (20.0, 2, torch.ones(2000, 2))}
EDGE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product measures the peak
HEADINGS = "ms", "x real time", "% of peak", "% padding", "GB"

def encoder_operations(sizes: dict, samples: int) -> int:
    """Multiplications and additions in the encoder's convolutions and matrix products, for one utterance. (Without the
    positional convolution: Fourier transforms make it too cheap to count.)"""
    T, inputs, products = samples, 1, 0
    for C, kernel, stride in sizes["extractor_conv_layer_config"]:
        T = (T - kernel) // stride + 1
        products, inputs = products + T * C * inputs * kernel, C
    D, layers = sizes["encoder_embed_dim"], sizes["encoder_num_layers"]
    layer = 4 * D + 2 * T + 2 * sizes["encoder_ff_interm_features"]  # projections, attention, feed-forward
    return 2 * (products + T * D * (inputs + layers * layer))

def measure(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """Yields the rows of the table: what was measured, HEADINGS (a value may be None), a note."""
    cuda, peaks, encoding, frames = args.device == "cuda", {}, {}, []
    encoder = random_encoder(BASE if args.encoder == "hubert_base" else TINY).to(args.device).requires_grad_(False)
    encoder.encoder.transformer.layers[0].feed_forward.register_forward_pre_hook(
        lambda module, inputs: frames.append(inputs[0].shape[:-1].numel()))  # in the transformer, padding included

    def fastest(run) -> float:
        """Seconds of the best run: the first warms up, and other work on the machine only makes a run longer."""
        frames.clear()
        finish = torch.cuda.synchronize if cuda else int  # int does nothing
        return min(timeit.repeat(lambda: (run(), finish()), number=1, repeat=args.repeats))

    def row(what: str, seconds: float, lengths=(), work=0, precision="", note="") -> dict:
        """lengths: the audio in samples; work: operations of the encoder, in that precision."""
        speed = sum(lengths) / SAMPLE_RATE / seconds if lengths else None
        share = 100 * work / peaks[precision] / seconds if work else None
        padding = 100 - 100 * args.repeats * sum(map(frame_count, lengths)) / sum(frames) if work else None
        memory = torch.cuda.max_memory_allocated() / 1e9 if cuda else memory_gigabytes()
        return {"what": what, **dict(zip(HEADINGS, (1e3 * seconds, speed, share, padding, memory))), "note": note}

    def update(model: MultiTask, optimizer: torch.optim.Optimizer, shares: list[dict], precision="fp32") -> None:
        """An update as in train.py; each share {task: batch} is a forward pass of its own."""
        with torch.autocast(args.device, torch.bfloat16, enabled=precision == "bf16"):
            loss = sum(loss for share in shares for loss in model(share).values())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(EDGE[args.device], EDGE[args.device]).to(args.device, dtype)
        seconds = min(fastest(lambda: a @ a) for _ in range(10))  # often: it is the yardstick
        peaks[precision] = 2 * len(a)**3 / seconds  # operations per second
        yield row(f"matrix product, {precision}", seconds, note=f"the peak: {peaks[precision] / 1e9:,.0f} GFLOP/s")

    # A corpus like IC's, utterances of 1 to 4 s: reading and encoding them.
    lengths = torch.linspace(SAMPLE_RATE, 4 * SAMPLE_RATE, args.utterances).int().tolist()
    utterances = [Utterance(str(n), f"{folder}/{n}.flac", (0, 0, 0), [], n) for n in lengths]
    corpus = Corpus("IC", utterances, (6, 14, 4), list)
    for u in utterances:
        soundfile.write(u.path, torch.randn(u.samples).numpy() / 10, SAMPLE_RATE)
    yield row("reading .flac, one core", fastest(lambda: [load_audio(u, corpus) for u in utterances]), lengths)
    chunks = in_chunks(corpus, [(i, None) for i in range(len(lengths))], CHUNK_SECONDS)
    batches = [collate(corpus, chunk) for chunk in chunks]
    work = sum(encoder_operations(encoder.config, n) for n in lengths)
    for precision in peaks:
        with torch.autocast(args.device, torch.bfloat16, enabled=precision == "bf16"):
            encoding[precision] = fastest(lambda: [encoder(b.waves.to(args.device), b.lengths)[1] for b in batches])
        yield row(f"encoder, {precision}", encoding[precision], lengths, work, precision)

    # A head for IC on the frozen encoder, which hears each utterance once: a later epoch is the head's alone.
    recipe, found = TASKS["IC"].superb, []
    model = MultiTask(encoder, {"IC": TASKS["IC"].head(encoder.dim, corpus.classes, recipe.hidden)}, augment=False)
    optimizer = torch.optim.AdamW([p for p in model.to(args.device).parameters() if p.requires_grad], fused=True)
    once = fastest(lambda: found.append(
        cache_states(encoder, corpus, True, True, folder / str(len(found)), 50, quiet=True)))
    steps = Steps({"IC": Stream(corpus, recipe.batch, 0, found[0])})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in train.py
    step = fastest(lambda: [update(model, optimizer, [steps[k]]) for k in range(200)]) / 200
    torch.set_num_threads(threads)
    later = step * len(lengths) / recipe.batch
    total, again = once + 20 * later, 20 * (encoding["fp32"] + later)
    yield row("frozen IC head, first epoch", once + later, lengths)
    yield row("frozen IC head, later epoch", later, lengths, note=f"{later / (once + later):.2%} of the first")
    yield row("frozen IC head, 20 epochs", total, 20 * lengths, note=f"encoding in each: {again / total:.1f} x as long")
    yield row("frozen IC head, SUPERB's recipe", recipe.steps * step, note=f"= {recipe.steps * step / 60:.1f} minutes")

    # The step of MTL: all tasks in one forward pass, or each in its own. What the heads do does not count as work.
    together, heads = {}, {}
    for task, (seconds, classes, target) in MIX.items():
        B, samples = round(2 * TASKS[task].mtl_share), round(seconds * SAMPLE_RATE)
        together[task] = Batch(torch.randn(B, samples) / 10, torch.full((B,), samples), [target] * B, [task] * B)
        heads[task] = TASKS[task].head(encoder.dim, classes, TASKS[task].superb.hidden)
    model = MultiTask(encoder.requires_grad_(True), heads).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=True)
    lengths = torch.cat([batch.lengths for batch in together.values()]).tolist()
    work = 3 * sum(encoder_operations(encoder.config, n) for n in lengths)  # a backward pass is twice a forward pass
    apart = [{task: batch} for task, batch in together.items()]
    for what, shares, precision in (("", [together], "bf16"), ("", [together], "fp32"), (" by task", apart, "fp32")):
        seconds = fastest(lambda: update(model, optimizer, shares, precision))
        yield row(f"MTL step{what}, {precision}", seconds, lengths, work, precision)

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=("tiny", "hubert_base"), default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement; the best one counts")
    parser.add_argument("--utterances", type=int, default=32, help="of 1 to 4 s")
    parser.add_argument("--json", action="store_true", help="a JSON object per line")
    args = parser.parse_args()
    keep_memory()
    if not args.json:
        print(f"{f'{args.encoder}, {torch.get_num_threads()} threads':32}", *(f"{heading:>12}" for heading in HEADINGS))
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(args, Path(folder)):
            cells = "".join(f"{'' if row[name] is None else format(row[name], ',.1f'):>13}" for name in HEADINGS)
            print(json.dumps(row) if args.json else f"{row['what']:32}{cells}  {row['note']}", flush=True)

if __name__ == "__main__":
    main()

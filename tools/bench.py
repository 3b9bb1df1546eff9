"""How fast this machine is: reading audio, the encoder, a head on frozen features, an MTL step.

    python -m tools.bench --encoder hubert_base           # random weights and noise; some minutes
    python -m tools.bench --encoder hubert_base --device cuda --json

Speed is seconds of audio per second (x real time). Arithmetic is a share of what a large matrix
product reaches in the same precision (% of peak); padding does not count as work. GB is the peak
memory so far, of the process or on the GPU.

B utterances, T frames (50 Hz), C channels, D dimensions.
"""
import argparse
import json
import tempfile
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import soundfile
import torch

from batches import Batch, Steps, Stream, collate, length_sorted_batches
from corpus import Corpus, Utterance, load_audio
from engine.flags import number
from engine.frozen import ENCODING_SAMPLES, cache_states
from engine.kernels import keep_memory
from engine.launch import friendly_errors
from model import BASE, TINY, MultiTask, frame_count, random_encoder
from rules import SAMPLE_RATE
from tasks import TASKS
from tools.dryrun import memory_gigabytes

MIX = {  # an MTL step: task: (seconds of an utterance, SUPERB's classes, a target of that length)
    "KS": (1.0, 12, 0), "IC": (2.3, (6, 14, 4), (0, 0, 0)), "SF": (3.0, 109, [5, 6] * 25),
    "ER": (4.5, 4, 0), "SID": (8.0, 1251, 0), "ASV": (8.0, 1211, 0), "PR": (12.0, 74, [5, 6] * 60),
    "ASR": (12.0, 32, [5, 6] * 90), "SD": (20.0, 2, torch.ones(2000, 2))}
EDGE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product measures the peak
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
HEADINGS = "ms", "x real time", "% of peak", "% padding", "GB"
HEAD_STEPS = 200                    # of a head on frozen features, in one measurement
EPOCHS = 20


def encoder_operations(config: dict, samples: int) -> int:
    """Multiplications and additions of the encoder for one utterance.

    Counts convolutions and matrix products, but not the positional convolution: with Fourier
    transforms it costs too little to count.
    """
    T, inputs, products = samples, 1, 0
    for C, kernel, stride in config["extractor_conv_layer_config"]:
        T = (T - kernel) // stride + 1
        products += T * C * inputs * kernel
        inputs = C
    D, layers = config["encoder_embed_dim"], config["encoder_num_layers"]
    # of a layer, per frame and dimension: projections, attention, feed-forward
    layer = 4 * D + 2 * T + 2 * config["encoder_ff_interm_features"]
    return 2 * (products + T * D * (inputs + layers * layer))


class Bench:
    """What all measurements share: the encoder, the settings, and the peaks of this machine."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.device, self.repeats, self.utterances = args.device, args.repeats, args.utterances
        self.folder = folder                    # for audio and cached states
        self.peaks = {}                         # {precision: operations per second}
        self.transformer_frames = []            # per call in this measurement, with padding
        config = BASE if args.encoder == "hubert_base" else TINY
        self.encoder = random_encoder(config).to(args.device).requires_grad_(False)
        first_layer = self.encoder.encoder.transformer.layers[0]
        first_layer.feed_forward.register_forward_pre_hook(self._count_frames)

    def _count_frames(self, module: torch.nn.Module, inputs: tuple) -> None:
        """Note how many frames (..., D) a layer of the transformer computes."""
        self.transformer_frames.append(inputs[0].shape[:-1].numel())

    def fastest(self, run: Callable) -> float:
        """Seconds of the fastest of several calls.

        The first call warms up, and other work on the machine can only slow a call down.
        """
        def timed() -> None:
            run()
            if self.device == "cuda":
                torch.cuda.synchronize()

        self.transformer_frames.clear()
        return min(timeit.repeat(timed, number=1, repeat=self.repeats))

    def autocast(self, precision: str) -> AbstractContextManager:
        """Computes in this precision."""
        return torch.autocast(self.device, torch.bfloat16, enabled=precision == "bf16")

    def operations(self, lengths: list[int]) -> int:
        """Operations of a forward pass of the encoder; lengths in samples."""
        return sum(encoder_operations(self.encoder.config, samples) for samples in lengths)

    def row(self, what: str, seconds: float, lengths: Sequence[int] = (), operations: int = 0,
            precision: str = "", note: str = "") -> dict:
        """A row of the table, for the last call of `fastest`: what, HEADINGS, note.

        lengths: of the audio, in samples; operations: of the encoder, in that precision.
        """
        speed = share = padding = None
        if lengths:
            speed = sum(lengths) / SAMPLE_RATE / seconds
        if operations:
            share = 100 * operations / self.peaks[precision] / seconds
            frames = self.repeats * sum(frame_count(samples) for samples in lengths)
            padding = 100 - 100 * frames / sum(self.transformer_frames)
        memory = memory_gigabytes()
        if self.device == "cuda":
            memory = torch.cuda.max_memory_allocated() / 1e9
        values = dict(zip(HEADINGS, (1e3 * seconds, speed, share, padding, memory)))
        return {"what": what, **values, "note": note}


def measure(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """Yields the rows of the table: what was measured, HEADINGS (a value may be None), a note."""
    bench = Bench(args, folder)
    for precision in PRECISIONS:
        yield matrix_product(bench, precision)
    corpus = noise_corpus(bench)
    yield reading(bench, corpus)
    encoder_rows = {}
    for precision in PRECISIONS:
        encoder_rows[precision] = encoding(bench, corpus, precision)
        yield encoder_rows[precision]
    yield from frozen_head(bench, corpus, encoder_rows["fp32"]["ms"] / 1000)
    yield from mtl_steps(bench)


def matrix_product(bench: Bench, precision: str) -> dict:
    """The peak of this machine in a precision, which this notes in `bench.peaks`."""
    edge = EDGE[bench.device]
    a = torch.randn(edge, edge).to(bench.device, PRECISIONS[precision])
    # ten measurements, because the other rows are relative to this one
    seconds = min(bench.fastest(lambda: a @ a) for _ in range(10))
    bench.peaks[precision] = 2 * edge**3 / seconds
    note = f"the peak: {bench.peaks[precision] / 1e9:,.0f} GFLOP/s"
    return bench.row(f"matrix product, {precision}", seconds, note=note)


def noise_corpus(bench: Bench) -> Corpus:
    """A corpus like IC's, with utterances of 1 to 4 s of noise, in .flac files."""
    lengths = torch.linspace(SAMPLE_RATE, 4 * SAMPLE_RATE, bench.utterances).int().tolist()
    utterances = []
    for samples in lengths:
        path = f"{bench.folder}/{samples}.flac"
        soundfile.write(path, torch.randn(samples).numpy() / 10, SAMPLE_RATE)
        utterances.append(Utterance(str(samples), path, (0, 0, 0), [], samples))
    return Corpus("IC", utterances, [list(range(6)), list(range(14)), list(range(4))])


def reading(bench: Bench, corpus: Corpus) -> dict:
    """Decoding the audio files."""
    def read() -> None:
        for utterance in corpus.utterances:
            load_audio(utterance, corpus)

    return bench.row("reading .flac, one core", bench.fastest(read), corpus.lengths)


def encoding(bench: Bench, corpus: Corpus, precision: str) -> dict:
    """The forward pass of the encoder over a corpus."""
    draws = [(i, None) for i in range(len(corpus.utterances))]
    batches = []
    for batch_draws in length_sorted_batches(corpus.lengths, draws, ENCODING_SAMPLES):
        batches.append(collate(corpus, batch_draws))

    def encode() -> None:
        for batch in batches:
            bench.encoder(batch.waves.to(bench.device), batch.lengths)

    with bench.autocast(precision):
        seconds = bench.fastest(encode)
    return bench.row(f"encoder, {precision}", seconds, corpus.lengths,
                     bench.operations(corpus.lengths), precision)


def frozen_head(bench: Bench, corpus: Corpus, encoding_seconds: float) -> Iterator[dict]:
    """A head for IC on the frozen encoder, which encodes each utterance once for all epochs."""
    recipe = TASKS["IC"].superb
    head = TASKS["IC"].head(bench.encoder.dim, corpus.classes, recipe.hidden)
    model = MultiTask(bench.encoder, {"IC": head}, augment=False).to(bench.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    caches = []

    def cache() -> None:
        folder = bench.folder / str(len(caches))    # a new one, because a cache is made only once
        caches.append(cache_states(bench.encoder, corpus, True, True, folder, 50, quiet=True))

    once = bench.fastest(cache)
    steps = Steps({"IC": Stream(corpus, recipe.batch, 0, caches[0])})

    def train() -> None:
        for k in range(HEAD_STEPS):
            update(bench, model, optimizer, steps[k], "fp32")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)    # as in train.py
    step = bench.fastest(train) / HEAD_STEPS
    torch.set_num_threads(threads)

    lengths = corpus.lengths
    later = step * len(lengths) / recipe.batch      # an epoch
    total = once + EPOCHS * later
    uncached = EPOCHS * (encoding_seconds + later)
    yield bench.row("frozen IC head, first epoch", once + later, lengths)
    yield bench.row("frozen IC head, later epoch", later, lengths,
                    note=f"{later / (once + later):.2%} of the first")
    yield bench.row(f"frozen IC head, {EPOCHS} epochs", total, EPOCHS * lengths,
                    note=f"encoding in each: {uncached / total:.1f} x as long")
    yield bench.row("frozen IC head, SUPERB's recipe", recipe.steps * step,
                    note=f"= {recipe.steps * step / 60:.1f} minutes")


def mtl_steps(bench: Bench) -> Iterator[dict]:
    """The step of MTL, with all tasks in one forward pass, or with one forward pass for each.

    Only the encoder's operations count as work, not those of the heads.
    """
    together, heads = {}, {}
    for task, (seconds, classes, target) in MIX.items():
        B, samples = round(2 * TASKS[task].mtl_share), round(seconds * SAMPLE_RATE)
        waves = torch.randn(B, samples) / 10
        together[task] = Batch(waves, torch.full((B,), samples), [target] * B, [task] * B)
        heads[task] = TASKS[task].head(bench.encoder.dim, classes, TASKS[task].superb.hidden)
    by_task = [{task: batch} for task, batch in together.items()]

    model = MultiTask(bench.encoder.requires_grad_(True), heads).to(bench.device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=True)
    lengths = torch.cat([batch.lengths for batch in together.values()]).tolist()
    operations = 3 * bench.operations(lengths)      # a backward pass costs two forward passes
    for what, parts, precision in (("MTL step, bf16", [together], "bf16"),
                                   ("MTL step, fp32", [together], "fp32"),
                                   ("MTL step by task, fp32", by_task, "fp32")):
        seconds = bench.fastest(lambda: update(bench, model, optimizer, parts, precision))
        yield bench.row(what, seconds, lengths, operations, precision)


def update(bench: Bench, model: MultiTask, optimizer: torch.optim.Optimizer, parts: list[dict],
           precision: str) -> None:
    """An update as in train.py. Each part {task: batch} has its own forward pass."""
    with bench.autocast(precision):
        total = sum(loss for part in parts for loss in model(part).values())
    total.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=("tiny", "hubert_base"), default="tiny")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--repeats", type=number(int, least=1), default=5,
                        help="the fastest one counts")
    parser.add_argument("--utterances", type=number(int, least=1), default=32,
                        help="of 1 to 4 s")
    parser.add_argument("--json", action="store_true", help="a JSON object per line")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU")
    keep_memory()
    if not args.json:
        title = f"{args.encoder}, {torch.get_num_threads()} threads"
        print(f"{title:32}", *(f"{heading:>12}" for heading in HEADINGS))
    with friendly_errors(debug=False), tempfile.TemporaryDirectory() as folder:
        for row in measure(args, Path(folder)):
            print(json.dumps(row) if args.json else line_of(row), flush=True)


def line_of(row: dict) -> str:
    """A row as a line of the table."""
    cells = ""
    for heading in HEADINGS:
        value = "" if row[heading] is None else f"{row[heading]:,.1f}"
        cells += f"{value:>13}"
    return f"{row['what']:32}{cells}  {row['note']}"


if __name__ == "__main__":
    main()

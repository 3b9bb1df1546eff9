"""Cached hidden states of a frozen encoder (scenarios (a), (c) and the control run).

With a frozen encoder every epoch would repeat the same hours of encoding. Instead each utterance
(of a long recording: several crops) goes through the encoder once. Heads then train on
memory-mapped states, at the cost of a few matrix products.

B utterances, T frames (50 Hz), S = L + 1 hidden states, D dimensions. A crop is one window of one
utterance; short utterances have a single crop.
"""

import functools
import hashlib
import itertools
import json
import platform
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from batches import collate, length_sorted_batches, load_ahead
from corpus import Corpus
from engine.launch import progress, say
from engine.measure import audio_digests
from engine.runs import RunError, atomic_file, locked, save_json
from model import FrozenBatch, Hubert, encoder_digest, frame_count
from rules import SAMPLE_RATE

FORMAT = 3  # changes whenever the content of a cache file changes
MAX_CROPS = 16  # of one long training recording
ENCODING_SAMPLES = 20 * SAMPLE_RATE  # of padded audio that a frozen encoder reads together
BATCH_FRAMES = 10_000  # of padded features (200 s) that a head reads together in an evaluation


class FrozenFeatures:
    """The cached hidden states of a corpus, in a memory-mapped file made by `cache_states`.

    Pooled features: before its mean over time, a classifier head has only linear maps. The mean may
    as well be taken first, so the mean of each hidden state is enough: (S, D) numbers per crop
    (`pooled`, T = 1), exact up to rounding. Other heads need all frames: CTC has a loss over
    frames, and other heads have LSTMs or ReLUs before the mean.

    Raises OSError, ValueError, KeyError, TypeError or RuntimeError if the file or its index is
    damaged.
    """

    def __init__(self, corpus: Corpus, counts: list[int], path: Path):
        index = json.loads(path.with_suffix(".json").read_text())
        self.corpus, self.path, self.pooled = corpus, path, index["pooled"]
        self.S, self.D = index["states"], index["dim"]
        # The number of the first crop of each utterance, then the total of crops.
        self.first_crop = [0, *itertools.accumulate(counts)]
        self.frames = torch.tensor(index["frames"])  # (crops,)
        self.checksums = index["crc32"]  # of each crop
        self.unchecked = set(range(len(self.checksums)))  # crops that were not read yet
        order = torch.tensor(index["order"])  # the numbers of the crops in the order of the file
        if not order.sort().values.equal(torch.arange(self.first_crop[-1])) or not (
                len(order) == len(self.frames) == len(self.checksums)):
            raise ValueError(f"{path} does not fit its corpus")
        sizes = self.frames[order] * self.S * self.D
        self.starts = torch.empty_like(order)  # where each crop begins in `data`
        self.starts[order] = sizes.cumsum(0) - sizes
        self.data = torch.from_numpy(np.memmap(path, np.float32, "c"))
        if len(self.data) != sizes.sum():
            raise ValueError(f"{path} does not fit its index")

    def batch(self, draws: list[tuple[int, int | None]]) -> FrozenBatch:
        """The zero-padded states of (utterance, draw number or None) pairs.

        The draw number chooses one of the crops of the utterance.
        """
        crops = []
        for utterance, number in draws:
            first, end = self.first_crop[utterance], self.first_crop[utterance + 1]
            crops.append(first + (number or 0) % (end - first))
        self._check(crops)
        frames, starts = self.frames[crops], self.starts[crops]
        if self.pooled:  # all crops have one size: a batch is a single gather
            means = self.data.view(-1, self.S, self.D)[starts // (self.S * self.D)]  # (B, S, D)
            states = means.transpose(0, 1).unsqueeze(2)  # (S, B, 1, D)
        else:
            states = torch.zeros(self.S, len(draws), int(frames.max()), self.D)
            for b, (start, T) in enumerate(zip(starts.tolist(), frames.tolist())):
                own = self.data[start : start + self.S * T * self.D]
                states[:, b, :T] = own.view(self.S, T, self.D)
        chosen = [self.corpus.utterances[i] for i, _ in draws]
        return FrozenBatch(states, frames, [u.target for u in chosen], [u.id for u in chosen])

    def _check(self, crops: list[int]) -> None:
        """Compare the checksum of each crop at its first read. Raises RunError if one is wrong."""
        for crop in self.unchecked.intersection(crops):
            start = int(self.starts[crop])
            own = self.data[start : start + int(self.frames[crop]) * self.S * self.D]
            if zlib.crc32(own.numpy()) != self.checksums[crop]:
                self.path.unlink(missing_ok=True)
                raise RunError(f"the cache {self.path} is damaged and was deleted; "
                               "the same command makes it again and continues")
            self.unchecked.remove(crop)

    def all_batches(self) -> Iterator[FrozenBatch]:
        """Every utterance once, in batches of similar length."""
        first_frames = self.frames[self.first_crop[:-1]].tolist()
        draws = [(i, None) for i in range(len(first_frames))]
        for batch_draws in length_sorted_batches(first_frames, draws, BATCH_FRAMES):
            yield self.batch(batch_draws)


def caches_means(head, augment: bool) -> bool:
    """Whether a head (or its class) needs only the mean of each state over time.

    SpecAugment masks single frames, so a head that trains with it needs all frames.
    """
    return head.needs_only_mean and not augment


def crop_counts(corpus: Corpus, training: bool) -> list[int]:
    """The number of cached crops of each utterance.

    A training utterance of n crop lengths has n random crops, at most MAX_CROPS.
    """
    # DIFFERS: the released code draws a new crop each time, and so runs the encoder each time.
    if not (training and corpus.crop):
        return [1] * len(corpus.utterances)
    return [min(MAX_CROPS, max(1, u.samples // corpus.crop)) for u in corpus.utterances]


def cache_gigabytes(encoder: Hubert, corpus: Corpus, training: bool, pooled: bool) -> float:
    """The size of the file that `cache_states` makes, in GB."""
    rows = 0
    for count, length in zip(crop_counts(corpus, training), corpus.lengths):
        rows += count * (1 if pooled else frame_count(length))
    return rows * encoder.num_states * encoder.dim * 4 / 1e9


def cache_states(encoder: Hubert, corpus: Corpus, training: bool, pooled: bool, folder: Path,
                 room_gb: float, seed: int = 0, workers: int = 0,
                 quiet: bool = False) -> FrozenFeatures | None:
    """Run a frozen encoder once over a corpus and keep its states in `folder`.

    The file is named by a digest of what decides its content: the encoder, the audio, how it is
    loaded and cropped (`seed`), the version of PyTorch and the type of device. PR and ASR share a
    file if they read the same audio. Returns None if the states take more than `room_gb`.
    """
    if encoder.training:
        raise ValueError("an encoder with dropout has no fixed states; call eval() first")
    gigabytes = cache_gigabytes(encoder, corpus, training, pooled)
    if gigabytes > room_gb:
        say(f"{corpus.task}: its features would take {gigabytes:.1f} GB "
            f"(--cache-gb {room_gb:g}): the encoder runs at each step")
        return None
    counts = crop_counts(corpus, training)
    path = folder / f"{_digest(encoder, corpus, training, pooled, seed)}.f32"
    with locked(path):
        try:
            return FrozenFeatures(corpus, counts, path)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # missing or damaged
            split = "train" if training else "dev/test"
            title = f"{corpus.task}: encoding {split} once, {gigabytes:.2f} GB"
            _write_states(encoder, corpus, counts, training, pooled, path, seed, workers, title,
                          quiet)
        return FrozenFeatures(corpus, counts, path)


def _digest(encoder: Hubert, corpus: Corpus, training: bool, pooled: bool, seed: int) -> str:
    """A name for the states of this audio in this encoder."""
    device = next(encoder.parameters()).device.type
    crop_seed = seed if training and corpus.crop else None
    parts = (FORMAT, torch.__version__, platform.machine(), device, encoder_digest(encoder),
             corpus.gain, corpus.trim, corpus.crop, training, pooled, crop_seed)
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=12)
    files = audio_digests(corpus)
    for utterance in corpus.utterances:
        about = (files[utterance.path], utterance.start, utterance.stop)
        digest.update(repr(about).encode())
    return digest.hexdigest()


@torch.no_grad()
def _write_states(encoder: Hubert, corpus: Corpus, counts: list[int], training: bool, pooled: bool,
                  path: Path, seed: int, workers: int, title: str, quiet: bool) -> None:
    """Encode every crop, shortest first, and write the states (S, T, D) of each; then an index."""
    device = next(encoder.parameters()).device
    draws = []
    for i, count in enumerate(counts):
        for crop in range(count):
            # A training crop depends on (seed, utterance, crop).
            draws.append((i, i * MAX_CROPS + crop if training else None))
    crop_of = {draw: crop for crop, draw in enumerate(draws)}
    frames, checksums, order = [0] * len(draws), [0] * len(draws), []
    batches = length_sorted_batches(corpus.lengths, draws, ENCODING_SAMPLES)
    loader = load_ahead(batches, workers, functools.partial(collate, corpus, seed=seed))
    loading = iter(loader)  # outside atomic_file: the errors of its workers are not about the file
    bar = progress(loading, title, total=len(loader), unit="batch", leave=False, disable=quiet,
                   delay=1)
    with atomic_file(path) as file:
        for batch_draws, batch in zip(batches, bar):
            waves = [wave[:n].to(device) for wave, n in zip(batch.waves, batch.lengths.tolist())]
            states, sizes = encoder.encode(waves)  # (S, frames of all utterances, D)
            for draw, own in zip(batch_draws, states.split(sizes, dim=1)):  # (S, T, D)
                if pooled:
                    own = own.mean(1, keepdim=True)  # (S, 1, D)
                numbers = own.cpu().contiguous().numpy().tobytes()
                crop = crop_of[draw]
                frames[crop], checksums[crop] = own.shape[1], zlib.crc32(numbers)
                order.append(crop)
                file.write(numbers)
    index = {"pooled": pooled, "states": encoder.num_states, "dim": encoder.dim, "frames": frames,
             "crc32": checksums, "order": order}
    save_json(path.with_suffix(".json"), index)

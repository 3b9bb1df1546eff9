"""What a frozen encoder says about a corpus: computed once, kept in a file, read back as batches
(scenarios (a), (c) and control).

With a frozen encoder every epoch would repeat the same hours of encoding. Instead each utterance (of a long one, some
crops) goes through it once; heads are then trained on memory-mapped states, at the cost of a few matrix products.

B utterances, T frames (50 Hz), S = L + 1 hidden states, D dimensions.
"""
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from batches import collate, in_chunks, load_ahead
from data import Corpus
from engine.runs import locked, save
from heads import Head
from model import FrozenBatch, Hubert, frame_count

FORMAT = 1           # changes whenever the content of a cache file changes
MOST_CROPS = 16      # of one long training recording
CHUNK_SECONDS = 20   # of padded audio that go through a frozen encoder together

class FrozenFeatures:
    """The hidden states of a corpus in a memory-mapped file, made by `cache_states`. OSError, ValueError: damaged.

    Up to its mean over time a classifier (`head.pools`) is affine, and so is the weighted sum of states: the mean may
    be taken first, and (S, D) numbers per utterance are an exact cache (`pooled`; T is 1), equal up to rounding. Other
    heads need all frames: CTC has a loss over frames, LSTMs and ReLUs stand before any mean.
    """

    def __init__(self, corpus: Corpus, path: Path):
        index = json.loads(path.with_suffix(".json").read_text())
        self.corpus, self.pooled, self.S, self.D = corpus, index["pooled"], index["states"], index["dim"]
        self.frames, self.starts = torch.tensor(index["frames"]), torch.tensor(index["starts"])  # of each crop
        self.first = index["first"]  # the number of each utterance's first crop
        self.data = torch.from_numpy(np.memmap(path, np.float32, "c"))
        if len(self.data) != index["size"]:
            raise ValueError(f"{path} is not whole")

    def batch(self, draws: list[tuple[int, int | None]]) -> FrozenBatch:
        """The states of some (utterance, draw number or None) pairs, zero padded; the number chooses the crop."""
        crops = [self.first[i] + (number or 0) % (self.first[i + 1] - self.first[i]) for i, number in draws]
        frames, starts = self.frames[crops], self.starts[crops]
        if self.pooled:  # all of the same size: a batch is one gather
            means = self.data.view(-1, self.S, self.D)[starts // (self.S * self.D)]  # (B, S, D)
            states = means.transpose(0, 1).unsqueeze(2)                              # (S, B, 1, D)
        else:
            states = torch.zeros(self.S, len(draws), int(frames.max()), self.D)
            for b, (start, T) in enumerate(zip(starts.tolist(), frames.tolist())):
                states[:, b, :T] = self.data[start:start + self.S * T * self.D].view(self.S, T, self.D)
        chosen = [self.corpus.utterances[i] for i, _ in draws]
        return FrozenBatch(states, frames, [u.target for u in chosen], [u.id for u in chosen])

    def all_batches(self, size: int = 64) -> Iterator[FrozenBatch]:
        """Every utterance once, in batches of similar length."""
        order = sorted(range(len(self.corpus.utterances)), key=lambda i: int(self.frames[self.first[i]]))
        for k in range(0, len(order), size):
            yield self.batch([(i, None) for i in order[k:k + size]])

def means_suffice(head: Head, training: bool, augment: bool) -> bool:
    """Is the mean of each state over time enough for this head? SpecAugment masks single frames, so it needs them."""
    return head.pools and not (training and augment)

def crop_counts(corpus: Corpus, training: bool) -> list[int]:
    """How many windows of each utterance are kept: of a training recording as many random ones as crop lengths fit into
    it, up to MOST_CROPS."""
    # DIFFERS: the released code crops anew at every draw, and so runs the encoder at every draw.
    if not (training and corpus.crop):
        return [1] * len(corpus.utterances)
    return [min(MOST_CROPS, max(1, u.samples // corpus.crop)) for u in corpus.utterances]

def cache_gigabytes(encoder: Hubert, corpus: Corpus, training: bool, pooled: bool) -> float:
    """The size of the file that `cache_states` makes."""
    rows = sum(count * (1 if pooled else frame_count(length))
               for count, length in zip(crop_counts(corpus, training), corpus.lengths))
    return rows * encoder.num_states * encoder.dim * 4 / 1e9

def cache_states(encoder: Hubert, corpus: Corpus, training: bool, pooled: bool, folder: Path, room_gb: float,
                 workers: int = 0, quiet: bool = False) -> FrozenFeatures | None:
    """Run a frozen encoder once over a corpus and keep its states in `folder`; None if that takes more than `room_gb`.

    The file is named by a digest of all that decides its content: the encoder's weights, the audio files (path, size,
    time) and how they are loaded, and the code that makes them. PR and ASR share a file if they hear the same.
    """
    gigabytes = cache_gigabytes(encoder, corpus, training, pooled)
    if gigabytes > room_gb:
        tqdm.write(f"{corpus.task}: its features would take {gigabytes:.1f} GB (--cache-gb {room_gb:g}): "
                   "the encoder runs at each step")
        return None
    path = folder / f"{_digest(encoder, corpus, training, pooled)}.f32"
    with locked(path):
        try:
            return FrozenFeatures(corpus, path)
        except (OSError, ValueError):  # not there yet, or damaged
            title = f"{corpus.task}: encoding {'train' if training else 'dev/test'} once, {gigabytes:.2f} GB"
            _write_states(encoder, corpus, training, pooled, path, workers, title, quiet)
        return FrozenFeatures(corpus, path)

def _digest(encoder: Hubert, corpus: Corpus, training: bool, pooled: bool) -> str:
    """A name for the states of this audio in this encoder."""
    digest = hashlib.blake2b(f"{FORMAT} {corpus.gain} {corpus.trim} {corpus.crop} {training} {pooled}".encode(), digest_size=12)
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    for u in corpus.utterances:
        about = os.stat(u.path)
        digest.update(f"{os.path.abspath(u.path)} {about.st_size} {about.st_mtime_ns} {u.start} {u.stop}".encode())
    return digest.hexdigest()

@torch.no_grad()
def _write_states(encoder: Hubert, corpus: Corpus, training: bool, pooled: bool, path: Path, workers: int, title: str,
                  quiet: bool) -> None:
    """Encode every crop, shortest first, and write their states (S, T, D) one after the other, then an index."""
    counts, device = crop_counts(corpus, training), next(encoder.parameters()).device
    draws = [(i, crop if training else None) for i, count in enumerate(counts) for crop in range(count)]
    chunks = in_chunks(corpus, draws, CHUNK_SECONDS)
    loader = load_ahead(chunks, workers, functools.partial(collate, corpus))
    progress = tqdm(loader, title, unit="batch", leave=False, disable=quiet, delay=1)
    first = np.cumsum([0, *counts]).tolist()
    frames, starts = [0] * first[-1], [0] * first[-1]

    def write(file) -> None:
        for chunk, batch in zip(chunks, progress):
            waves = [wave[:n].to(device) for wave, n in zip(batch.waves, batch.lengths.tolist())]
            states, sizes = encoder.encode(waves)  # (S, all frames, D)
            for (i, crop), own in zip(chunk, states.split(sizes, dim=1)):
                own = own.mean(1, keepdim=True) if pooled else own  # (S, 1 or T, D)
                frames[first[i] + (crop or 0)], starts[first[i] + (crop or 0)] = own.shape[1], file.tell() // 4
                file.write(own.cpu().contiguous().numpy().tobytes())

    save(path, write)
    index = {"pooled": pooled, "states": encoder.num_states, "dim": encoder.dim, "frames": frames, "starts": starts,
             "first": first, "size": path.stat().st_size // 4}
    save(path.with_suffix(".json"), lambda file: file.write(json.dumps(index).encode()))

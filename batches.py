"""Batches of utterances: for training as a pure function of (seed, step), for evaluation by length.

B utterances, N samples (16 kHz).
"""
import functools
import signal
from collections import Counter, namedtuple
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader

from data import SAMPLE_RATE, Corpus, load_audio

Batch = namedtuple("Batch", "waves lengths targets ids")
Batch.__doc__ = "One task's share of a step: waves (B, N) float32, zero padded; lengths (B,) int64; B targets; B ids."

class Stream:
    """Endless training batches of one corpus, which depend on (seed, step) alone: a run can stop and go on.
    A corpus that ends starts again in a new order, in the middle of a batch if need be; other tasks do not notice.
    `frozen.batch(draws)`, where given, answers instead of the audio."""
    def __init__(self, corpus: Corpus, batch: int, seed: int = 0, frozen=None):
        self.corpus, self.batch, self.seed, self.frozen = corpus, batch, seed, frozen
        self.lengths = np.array(corpus.lengths)
        counts = Counter(u.target for u in corpus.utterances) if corpus.balanced else {}
        self.chances = [1 / counts[u.target] / len(counts) for u in corpus.utterances] if counts else None

    def draws(self, step: int, rank: int = 0, world: int = 1) -> list[tuple[int, int]]:
        """(utterance, draw number) pairs; process `rank` gets its part of the batch that `world` of them share."""
        total, numbers = len(self.lengths), range(step * self.batch, (step + 1) * self.batch)[rank::world]
        return [(int(self._order(number // total)[number % total]), number) for number in numbers]

    @functools.lru_cache(maxsize=64)
    def _order(self, epoch: int) -> np.ndarray:
        """An epoch's utterances, each once in random order (a balanced corpus: drawn with replacement); batches are
        of similar lengths, so that little is padded."""
        rng, total = np.random.default_rng([self.seed, epoch, *self.corpus.task.encode()]), len(self.lengths)
        order = rng.choice(total, total, p=self.chances) if self.corpus.balanced else rng.permutation(total)
        borrowed = -epoch * total % self.batch  # utterances that complete the last batch of the epoch before
        rest = order[borrowed:]
        for start in range(0, len(rest), 50 * self.batch):
            window = rest[start:start + 50 * self.batch]
            window[:] = window[np.argsort(self.lengths[window], kind="stable")]
        rng.shuffle(rest[:len(rest) // self.batch * self.batch].reshape(-1, self.batch))
        return order

def collate(corpus: Corpus, draws: list[tuple], seed: int = 0) -> Batch:
    """Loads (utterance, draw number) pairs; the number draws the crop, None is for evaluation."""
    chosen = [corpus.utterances[index] for index, _ in draws]
    waves = [torch.from_numpy(load_audio(u, corpus, None if draw is None else (seed, draw)))
             for u, (_, draw) in zip(chosen, draws)]
    return Batch(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), torch.tensor([len(wave) for wave in waves]),
                 [u.target for u in chosen], [u.id for u in chosen])

@dataclass
class Steps:
    """What a DataLoader reads in training: steps[k] is {task: Batch}."""
    streams: dict[str, Stream]
    rank: int = 0
    world: int = 1

    def __getitem__(self, step: int) -> dict[str, Batch]:
        draws = {task: stream.draws(step, self.rank, self.world) for task, stream in self.streams.items()}
        return {task: s.frozen.batch(draws[task]) if s.frozen else collate(s.corpus, draws[task], s.seed)
                for task, s in self.streams.items()}

def in_chunks(corpus: Corpus, draws: list[tuple], seconds: float) -> list[list[tuple]]:
    """Visits in batches of similar length, short ones first, of at most so many seconds with padding (or of one)."""
    chunks, lengths = [[]], corpus.lengths
    for draw in sorted(draws, key=lambda draw: lengths[draw[0]]):
        if chunks[-1] and (len(chunks[-1]) + 1) * lengths[draw[0]] > seconds * SAMPLE_RATE:
            chunks.append([])
        chunks[-1].append(draw)
    return chunks

def load_ahead(items, workers: int, load: Callable | None = None, **more) -> DataLoader:
    """`load(item)` (else the item) of each item in order, made ahead of time by so many worker processes."""
    return DataLoader(items, batch_size=None, num_workers=workers, collate_fn=load or _as_is, worker_init_fn=ignore_signals,
                      **more)

def _as_is(batch):
    """The default of DataLoader looks through every target for arrays, at each step."""
    return batch

def ignore_signals(worker: int) -> None:
    """Ctrl-C and SIGTERM reach all processes: only the main one, which saves and then ends the others, may obey."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

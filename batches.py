"""Batches of utterances: endless in training, as a function of (seed, step); else sorted by length.

A draw is a pair (utterance index, draw number). The draw number counts the utterances that a
training stream has drawn before. It is None in evaluation, where nothing is random.

B utterances, N samples (16 kHz).
"""

import signal
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from corpus import Corpus, load_audio

WINDOW_BATCHES = 50  # batches in a window, within which utterances are sorted by length


class Batch(NamedTuple):
    """The utterances of one task in one step."""

    waves: Tensor  # (B, N) float32, zero padded
    lengths: Tensor  # (B,) int64, samples
    targets: list
    ids: list[str]


class Stream:
    """Endless training batches of one corpus.

    They depend on (seed, step) alone, so an interrupted run can be resumed. When a corpus ends, it
    starts again in a new order, also in the middle of a batch. Other tasks are not affected.
    With `frozen` (engine.frozen.FrozenFeatures), batches hold cached states instead of audio.
    """

    def __init__(self, corpus: Corpus, batch_size: int, seed: int = 0, frozen=None):
        self.corpus, self.batch_size, self.seed, self.frozen = corpus, batch_size, seed, frozen
        self.lengths = np.array(corpus.lengths)
        self.probabilities = None  # of each utterance, in a balanced corpus
        if corpus.balanced:
            counts = Counter(u.target for u in corpus.utterances)
            self.probabilities = [1 / counts[u.target] / len(counts) for u in corpus.utterances]
        self._epoch, self._order = -1, np.array([])  # the epoch that was drawn from last

    def draws(self, step: int, rank: int = 0, world_size: int = 1) -> list[tuple[int, int]]:
        """The draws of a step, or the part of process `rank` of the `world_size` that share it."""
        first_number = step * self.batch_size
        end_number = first_number + self.batch_size
        draws = []
        for number in range(first_number + rank, end_number, world_size):
            epoch, position = divmod(number, len(self.lengths))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, self.epoch_order(epoch)
            draws.append((int(self._order[position]), number))
        return draws

    def epoch_order(self, epoch: int) -> np.ndarray:
        """The utterances of an epoch in random order, in batches of similar lengths.

        Similar lengths need little padding. Each utterance occurs once. In a balanced corpus
        utterances are drawn with replacement, classes equally often.

        Example: five utterances of task PR, seed 13, batch size 2. Utterance k lasts k + 1 seconds.
            epoch 0   permuted   1 3 4 2 0
                      sorted     0 1 2 3 4   by length
                      shuffled   2 3 0 1 4   whole batches; 4 is left over and begins a batch
            epoch 1   permuted   3 0 1 4 2   3 completes the batch that 4 began
                      sorted     3 0 1 2 4   without 3
                      shuffled   3 2 4 0 1
        The batches of steps 0 to 4 are 2 3, 0 1, 4 3, 2 4, 0 1.
        """
        rng = np.random.default_rng([self.seed, epoch, *self.corpus.task.encode()])
        total, size = len(self.lengths), self.batch_size
        if self.corpus.balanced:
            order = rng.choice(total, total, p=self.probabilities)
        else:
            order = rng.permutation(total)

        # The last batch of the previous epoch may be incomplete: it has `used` utterances. The
        # first utterances of this epoch complete it, so they stay first.
        used = epoch * total % size
        borrowed = min((size - used) % size, total)
        # Sorting within windows, not the whole epoch, leaves the composition of batches random.
        parts = [order[:borrowed]]
        for start in range(borrowed, total, WINDOW_BATCHES * size):
            window = order[start : start + WINDOW_BATCHES * size]
            by_length = np.argsort(self.lengths[window], kind="stable")
            parts.append(window[by_length])
        order = np.concatenate(parts)

        end = borrowed + (total - borrowed) // size * size  # the end of the last whole batch
        batches = order[borrowed:end].reshape(-1, size)
        return np.concatenate([order[:borrowed], rng.permutation(batches).flatten(), order[end:]])


def collate(corpus: Corpus, draws: list[tuple[int, int | None]], seed: int = 0) -> Batch:
    """Loads the audio of some draws.

    A recording longer than corpus.crop is cut to that length. (seed, draw number) chooses where;
    without a draw number its beginning is used.
    """
    utterances = [corpus.utterances[index] for index, _ in draws]
    waves = []
    for utterance, (_, number) in zip(utterances, draws):
        crop_seed = None if number is None else (seed, number)
        waves.append(torch.from_numpy(load_audio(utterance, corpus, crop_seed)))
    return Batch(
        waves=pad_sequence(waves, batch_first=True),
        lengths=torch.tensor([len(wave) for wave in waves]),
        targets=[u.target for u in utterances],
        ids=[u.id for u in utterances],
    )


@dataclass
class Steps:
    """A map-style dataset for a DataLoader: steps[k] holds the parts of update k.

    Each part is {task: Batch or FrozenBatch}. `parts` parts in each of `world_size` processes share
    the batches of an update. `more(batches, (step, share))` is {name: Batch} of further targets for
    the same audio (masked_prediction.py).
    """

    streams: dict[str, Stream]
    rank: int = 0
    world_size: int = 1
    parts: int = 1
    more: Callable | None = None

    def __getitem__(self, step: int) -> list[dict[str, Batch]]:
        """The parts of process `rank`, each with a batch of every task."""
        shares = self.parts * self.world_size
        own_shares = range(self.rank, shares, self.world_size)
        return [self.part(step, share, shares) for share in own_shares]

    def part(self, step: int, share: int, shares: int) -> dict[str, Batch]:
        """Share number `share` of the `shares` of an update."""
        batches = {}
        for task, stream in self.streams.items():
            draws = stream.draws(step, share, shares)
            if stream.frozen:
                batches[task] = stream.frozen.batch(draws)
            else:
                batches[task] = collate(stream.corpus, draws, stream.seed)
        if self.more:
            batches |= self.more(batches, (step, share))
        return batches


def length_sorted_batches(
    lengths: list[int], draws: list[tuple[int, int | None]], max_padded: float
) -> list[list[tuple[int, int | None]]]:
    """Splits draws into batches of similar length, short utterances first.

    `lengths` are those of all utterances. The padded length of a batch is its longest utterance
    times its number of utterances. It is at most `max_padded`; a longer utterance is a batch alone.
    """
    batches = [[]]
    for draw in sorted(draws, key=lambda draw: lengths[draw[0]]):
        length = lengths[draw[0]]  # the longest so far: the batch is padded to it
        padded = (len(batches[-1]) + 1) * length
        if batches[-1] and padded > max_padded:
            batches.append([])
        batches[-1].append(draw)
    return batches


def load_ahead(
    items,
    workers: int,
    load: Callable | None = None,
    sampler: Iterable | None = None,
    pin_memory: bool = False,
) -> DataLoader:
    """Yields `load(item)`, or the item itself, in order, prefetched by `workers` processes.

    With `sampler` the items are items[k] for each k of the sampler.
    """
    # With batch_size=None the DataLoader makes no batches: collate_fn gets one item at a time.
    return DataLoader(
        items,
        batch_size=None,
        num_workers=workers,
        collate_fn=load or _unchanged,
        sampler=sampler,
        pin_memory=pin_memory,
        worker_init_fn=ignore_signals,
    )


def _unchanged(batch):
    """Returns the batch. DataLoader's default would search every target for arrays."""
    return batch


def ignore_signals(worker: int) -> None:
    """Makes a worker process ignore Ctrl-C and SIGTERM, which reach all processes.

    Only the main process reacts to them: it saves, and then it ends its workers.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

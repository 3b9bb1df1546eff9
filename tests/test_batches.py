"""Batches: which utterances a step draws, in which order, and how they are loaded."""

import dataclasses
import re

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from batches import Steps, Stream, collate, length_sorted_batches
from corpus import Corpus, Utterance
from tasks import TASKS


def corpus_of(count, lengths=None, balanced=False, task="PR"):
    """A corpus without audio; the target of utterance k is k, or 1 for every tenth if balanced."""
    lengths = [100] * count if lengths is None else lengths
    targets = [int(k % 10 == 0) if balanced else k for k in range(count)]
    utterances = [Utterance(str(k), "", targets[k], None, int(lengths[k])) for k in range(count)]
    return Corpus(task, utterances, ["a", "b"], balanced=balanced)


@pytest.mark.parametrize("count, batch", [(10, 4), (100, 7), (3, 8), (64, 8), (1, 2)])
def test_every_epoch_draws_every_utterance_once(count, batch):
    stream = Stream(corpus_of(count, np.arange(count)), batch, seed=3)
    draws = [draw for step in range(5 * count) for draw in stream.draws(step)]
    assert [number for _, number in draws] == list(range(len(draws)))
    for epoch in range(len(draws) // count):
        epoch_draws = draws[epoch * count : (epoch + 1) * count]
        assert sorted(index for index, _ in epoch_draws) == list(range(count))


def test_the_worked_example_of_epoch_order_is_right():
    stream = Stream(corpus_of(5, [1, 2, 3, 4, 5]), 2, seed=13)
    rows = re.findall(r"(permuted|sorted|shuffled) +((?:\d\s){5})", Stream.epoch_order.__doc__)
    assert [name for name, _ in rows] == 2 * ["permuted", "sorted", "shuffled"]
    rows = [[int(k) for k in indices.split()] for _, indices in rows]
    for epoch, (permuted, in_order, shuffled) in enumerate((rows[:3], rows[3:])):
        rng = np.random.default_rng([13, epoch, *b"PR"])
        assert rng.permutation(5).tolist() == permuted
        assert [*permuted[:epoch], *sorted(permuted[epoch:])] == in_order
        assert stream.epoch_order(epoch).tolist() == shuffled
    batches = [" ".join(str(index) for index, _ in stream.draws(step)) for step in range(5)]
    assert f"The batches of steps 0 to 4 are {', '.join(batches)}." in Stream.epoch_order.__doc__


@pytest.mark.parametrize("balanced", [False, True])
def test_a_step_depends_on_seed_and_number_alone(balanced):
    corpus = corpus_of(50, balanced=balanced)
    run = [Stream(corpus, 8, seed=1).draws(step) for step in range(40)]
    resumed = Stream(corpus, 8, seed=1)
    assert [resumed.draws(step) for step in range(23, 40)] == run[23:]
    assert [resumed.draws(step) for step in reversed(range(40))] == run[::-1]
    assert [Stream(corpus, 8, seed=2).draws(step) for step in range(40)] != run
    other = dataclasses.replace(corpus, task="ASR")
    assert [Stream(other, 8, seed=1).draws(step) for step in range(40)] != run


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_exactly_what_one_would_read(world, balanced):
    corpus = corpus_of(50, np.random.default_rng(0).integers(1, 999, 50), balanced)
    stream = Stream(corpus, 4 * world + 1, seed=5)
    for step in range(30):
        parts = [stream.draws(step, rank, world) for rank in range(world)]
        assert sorted(map(len, parts)) == [4] * (world - 1) + [5]
        assert sorted(sum(parts, []), key=lambda draw: draw[1]) == stream.draws(step)


def test_balanced_draws_are_balanced():
    corpus = corpus_of(200, balanced=True)
    targets = [
        corpus.utterances[index].target
        for step in range(100)
        for index, _ in Stream(corpus, 32).draws(step)
    ]
    assert 0.47 < np.mean(targets) < 0.53
    utterances = [
        Utterance(str(k), "", min(k // 11, 2), None, 100) for k in range(34)
    ]  # 11, 11 and 12 of a class
    stream = Stream(Corpus("KS", utterances, ["a", "b", "c"], balanced=True), 8)
    classes = (slice(0, 11), slice(11, 22), slice(22, None))
    assert [sum(stream.probabilities[k]) for k in classes] == pytest.approx([1 / 3] * 3)


def test_batches_hold_similar_lengths_in_random_order():
    lengths = np.random.default_rng(0).integers(100, 10_000, 1000)
    stream = Stream(corpus_of(1000, lengths), 10)
    batches = [[lengths[index] for index, _ in stream.draws(step)] for step in range(300)]
    waste = 1 - sum(map(sum, batches)) / sum(10 * max(batch) for batch in batches)
    assert waste < 0.06  # drawn blindly: 0.45
    order = [max(batch) for batch in batches[:100]]
    assert abs(np.corrcoef(order, np.arange(100))[0, 1]) < 0.3


def test_chunks_hold_each_draw_once_and_little_audio():
    lengths = np.random.default_rng(0).integers(8_000, 30 * 16_000, 100).tolist() + [100 * 16_000]
    corpus = corpus_of(101, lengths)
    draws = [(i, None) for i in range(101)]
    chunks = length_sorted_batches(corpus.lengths, draws, 60 * 16_000)
    assert sorted(sum(chunks, [])) == draws and chunks[-1] == [(100, None)]
    for chunk in chunks[:-1]:
        assert len(chunk) * max(lengths[i] for i, _ in chunk) <= 60 * 16_000


def test_batches_from_workers_are_those_of_this_process(root):
    tasks = ("KS", "SID", "SD", "IC", "PR")
    streams = {task: Stream(TASKS[task].read(str(root), "train"), 4, seed=4) for task in tasks}
    steps = Steps(streams, rank=1, world_size=2)
    loader = DataLoader(steps, batch_size=None, sampler=range(3, 6), num_workers=1)
    for step, (batches,) in zip(range(3, 6), loader):
        for task, batch in steps[step][0].items():
            assert torch.equal(batch.waves, batches[task].waves)
            assert torch.equal(batch.lengths, batches[task].lengths)
            assert batch.ids == batches[task].ids and batch.waves.dtype == torch.float32
            assert batch.waves.shape == (2, batch.lengths.max())
            assert batch.lengths.dtype == torch.int64
            for here, there in zip(batch.targets, batches[task].targets, strict=True):
                assert np.array_equal(np.asarray(here), np.asarray(there))


@pytest.fixture
def noise_and_word(tmp_path):
    """Three seconds of noise, of which training reads one second, and half a second of a word."""
    random, utterances = np.random.default_rng(0), []
    for name, samples in (("noise", 48_000), ("word", 8_000)):
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, 0.1 * random.standard_normal(samples), 16_000)
        utterances.append(Utterance(name, str(path), 0, None, samples))
    return Corpus("KS", utterances, ["a"], crop=16_000)


def test_padding_is_zero_and_the_draw_number_draws_the_crop(noise_and_word):
    batch = collate(noise_and_word, [(0, 1), (1, 1), (0, 2)], seed=9)
    assert batch.lengths.tolist() == [16_000, 8_000, 16_000] and not batch.waves[1, 8_000:].any()
    assert not torch.equal(batch.waves[0], batch.waves[2])
    assert torch.equal(batch.waves[0], collate(noise_and_word, [(0, 1)], seed=9).waves[0])


def test_cached_features_stand_in_for_audio():
    class Frozen:
        def batch(self, draws):
            return draws

    stream = Stream(corpus_of(10), 2, frozen=Frozen())
    assert Steps({"PR": stream})[7] == [{"PR": stream.draws(7)}]

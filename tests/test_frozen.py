"""The cache of frozen features changes only the time: same logits and losses, one encoder pass."""

import errno

import numpy as np
import pytest
import torch

import batches
from batches import Stream, collate
from engine.frozen import cache_states
from engine.launch import _explanation
from model import TINY, MultiTask, random_encoder
from tasks import TASKS


@pytest.mark.parametrize("name", TASKS)
def test_frozen_and_cached_gives_what_the_encoder_gives(root, tmp_path, name):
    corpus = TASKS[name].read(str(root), "train")
    encoder = random_encoder(TINY, seed=0).requires_grad_(False)
    model = MultiTask(
        encoder, {name: TASKS[name].head(encoder.dim, corpus.classes, 32)}, augment=False
    ).eval()
    frozen = cache_states(
        encoder, corpus, False, model.heads[name].needs_only_mean, tmp_path, 1.0, quiet=True
    )
    draws = [(i, None) for i in range(3)]
    cached, heard = frozen.batch(draws), collate(corpus, draws)
    assert cached.ids == heard.ids
    with torch.no_grad():
        a, b = model({name: cached})[name], model({name: heard})[name]
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        model.predict(name, cached)[0], model.predict(name, heard)[0], atol=1e-4, rtol=1e-3
    )


def test_the_encoder_runs_once_per_utterance_ever(root, tmp_path, monkeypatch):
    corpus = TASKS["IC"].read(str(root), "train")
    encoder, heard = random_encoder(TINY, seed=0).requires_grad_(False), []
    monkeypatch.setattr(
        encoder,
        "encode",
        lambda waves, encode=encoder.encode: heard.append(len(waves)) or encode(waves),
    )
    frozen = cache_states(encoder, corpus, True, True, tmp_path, 1.0, quiet=True)
    stream = Stream(corpus, 4, 0, frozen)
    for step in range(50):
        frozen.batch(stream.draws(step))
    cache_states(encoder, corpus, True, True, tmp_path, 1.0, quiet=True)
    assert sum(heard) == len(corpus.utterances)


def test_other_weights_or_other_audio_make_another_file(root, tmp_path):
    corpus = TASKS["KS"].read(str(root), "dev")
    for seed in (0, 1):
        cache_states(
            random_encoder(TINY, seed=seed).requires_grad_(False),
            corpus,
            False,
            True,
            tmp_path,
            1.0,
            quiet=True,
        )
    cache_states(
        random_encoder(TINY, seed=0),
        TASKS["ER"].read(str(root), "dev"),
        False,
        True,
        tmp_path,
        1.0,
        quiet=True,
    )
    assert len(list(tmp_path.glob("*.f32"))) == 3 and not list(tmp_path.glob("*.tmp"))


def test_features_that_do_not_fit_are_announced_and_not_kept(root, tmp_path, capsys):
    corpus = TASKS["PR"].read(str(root), "train")
    assert cache_states(random_encoder(TINY), corpus, True, False, tmp_path, 1e-6) is None
    assert "--cache-gb" in capsys.readouterr().out


def test_a_long_training_recording_is_kept_as_several_crops(root, tmp_path):
    corpus = TASKS["KS"].read(str(root), "train")
    frozen = cache_states(random_encoder(TINY), corpus, True, True, tmp_path, 1.0, quiet=True)
    noise = max(range(len(corpus.utterances)), key=lambda i: corpus.utterances[i].samples)
    crops = frozen.first_crop[noise + 1] - frozen.first_crop[noise]
    assert crops == min(16, corpus.utterances[noise].samples // corpus.crop) > 1
    a, b = (frozen.batch([(noise, seed)]).states for seed in (0, 1))
    assert not torch.equal(a, b) and torch.equal(a, frozen.batch([(noise, crops)]).states)


def test_a_cached_crop_depends_on_seed_utterance_and_crop(root, tmp_path, monkeypatch):
    corpus = TASKS["KS"].read(str(root), "train")
    long = [i for i, u in enumerate(corpus.utterances) if u.samples > 2 * corpus.crop]
    starts = {}  # (seed, utterance, crop): where the crop starts, as a share of what is possible
    for seed in (0, 1):
        load = batches.load_audio

        def spy(utterance, corpus, crop_seed, seed=seed, load=load):
            if crop_seed is not None and utterance.samples > 2 * corpus.crop:
                slack = utterance.samples - corpus.crop
                start = int(np.random.default_rng(crop_seed).integers(slack + 1))
                starts[seed, utterance.id, crop_seed] = round(start / slack, 3)
            return load(utterance, corpus, crop_seed)

        monkeypatch.setattr(batches, "load_audio", spy)
        cache_states(random_encoder(TINY), corpus, True, True, tmp_path, 1.0, seed, quiet=True)
        monkeypatch.setattr(batches, "load_audio", load)
    assert len(starts) >= 2 * 2 * len(long) and len(long) > 1  # the spy was hit
    assert len(set(starts.values())) > 0.9 * len(starts)
    assert len(list(tmp_path.glob("*.f32"))) == 2  # one file per seed


def test_a_damaged_index_or_file_is_made_again(root, tmp_path):
    corpus, encoder = TASKS["IC"].read(str(root), "dev"), random_encoder(TINY)
    expected = cache_states(encoder, corpus, False, True, tmp_path, 1.0, quiet=True)
    batch = expected.batch([(0, None), (1, None)]).states.clone()
    file = next(tmp_path.glob("*.f32"))
    index = file.with_suffix(".json")
    for path, content in ((index, "{"), (index, '{"frames": 3}'), (index, "[]"), (file, "x")):
        path.write_text(content)
        again = cache_states(encoder, corpus, False, True, tmp_path, 1.0, quiet=True)
        assert torch.equal(again.batch([(0, None), (1, None)]).states, batch)


def test_the_cache_of_another_network_with_equal_weights_is_another_file(root, tmp_path):
    corpus = TASKS["IC"].read(str(root), "dev")
    few, many = (random_encoder(TINY | {"encoder_num_heads": heads}) for heads in (4, 8))
    many.load_state_dict(few.state_dict())
    states = [cache_states(e, corpus, False, True, tmp_path, 1.0, quiet=True) for e in (few, many)]
    assert len(list(tmp_path.glob("*.f32"))) == 2
    assert not torch.equal(states[0].batch([(0, None)]).states, states[1].batch([(0, None)]).states)


def test_batches_of_an_evaluation_hold_a_bounded_number_of_frames(root, tmp_path, monkeypatch):
    corpus = TASKS["PR"].read(str(root), "train")
    cached = cache_states(random_encoder(TINY), corpus, False, False, tmp_path, 1.0, quiet=True)
    monkeypatch.setattr("engine.frozen.BATCH_FRAMES", 300)
    sizes = [batch.states.shape[1] * batch.states.shape[2] for batch in cached.all_batches()]
    longest = int(cached.frames.max())
    assert len(sizes) > 1 and max(sizes) <= max(6 * 50, longest)


def test_a_full_shared_memory_is_not_taken_for_a_full_disk(root, tmp_path, monkeypatch):
    class Full(list):
        """A loader whose worker processes cannot start."""

        def __iter__(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("engine.frozen.load_ahead", lambda *arguments, **flags: Full())
    encoder = random_encoder(TINY).requires_grad_(False).eval()
    corpus = TASKS["KS"].read(root, "dev")
    with pytest.raises(OSError) as caught:
        cache_states(encoder, corpus, False, True, tmp_path, 1.0, quiet=True)
    assert "cannot write" not in str(caught.value)
    assert "--workers 0" in _explanation(caught.value)

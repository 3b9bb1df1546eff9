"""HuBERT, the weighted sum, SpecAugment, MultiTask: tiny random weights, no download."""

import itertools
import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from encoder_tools import LARGE, alone, speech
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pad_sequence

import model
from batches import Batch
from engine import kernels
from heads import BLSTMCTCHead, DiarizationHead, XVectorHead
from model import (
    TINY,
    WAVEFORM_DEFAULTS,
    FrozenBatch,
    Hubert,
    LayerSum,
    MultiTask,
    encoder_digest,
    frame_count,
    load_encoder,
    random_encoder,
    seed_random_numbers,
    spec_augment,
)


def torchaudio_states(hubert, wave):
    """The states of one utterance from torchaudio's own network with these weights: (L+1, T, D)."""
    config = {key: value for key, value in hubert.config.items() if key not in WAVEFORM_DEFAULTS}
    with torch.random.fork_rng(devices=[]):
        network = torchaudio.models.wav2vec2_model(**config, aux_num_out=None)
    network.load_state_dict(hubert.state_dict())
    network.train(hubert.training)
    first = []
    network.encoder.transformer.layers[0].register_forward_pre_hook(
        lambda layer, inputs: first.append(inputs[0])
    )
    channels = hubert.config["extractor_conv_layer_config"][0][0]
    with kernels.without_onednn_if_narrow(channels):  # rounds as ours does
        outputs, _ = network.extract_features(wave[None])
    return torch.cat([*first, *outputs])


# Frames and hidden states


def test_frame_count_is_what_the_convolutions_make():
    convolutions = random_encoder(TINY).feature_extractor
    for n in [
        400,
        719,
        720,
        721,
        16_000,
        16_079,
        16_080,
        *random.Random(0).sample(range(400, 9_000), 40),
    ]:
        assert frame_count(n) == len(convolutions.convolve(torch.zeros(n)))


def test_frame_count_knows_the_reference_values_and_is_never_negative():
    known = {
        0: 0,
        79: 0,
        399: 0,
        400: 1,
        720: 2,
        16_000: 49,
        16_080: 50,
        32_000: 99,
        48_000: 149,
        80_000: 249,
        128_000: 399,
    }
    assert [frame_count(n) for n in known] == list(known.values())
    assert frame_count(torch.tensor(list(known))).tolist() == list(known.values())


def test_every_state_equals_torchaudios_for_an_unpadded_utterance():
    hubert, (wave,) = random_encoder(TINY), speech(9_000)
    states, frames = hubert(wave[None], torch.tensor([9_000]))
    assert frames.tolist() == [27] and states.shape == (hubert.num_states, 1, 27, hubert.dim) == (
        5,
        1,
        27,
        128,
    )
    assert (states[:, 0] - torchaudio_states(hubert, wave)).abs().max() < 2e-6


def test_hubert_base_has_its_thirteen_states():
    hubert, (wave,) = load_encoder("random-hubert_base"), speech(16_000)
    with torch.no_grad():
        states, frames = hubert(wave[None], torch.tensor([16_000]))
        assert states.shape == (13, 1, 49, 768) and frames.tolist() == [49]
        assert sum(parameter.numel() for parameter in hubert.parameters()) == 94_370_944
        assert (states[:, 0] - torchaudio_states(hubert, wave)).abs().max() < 1e-5


def test_a_pre_norm_encoder_ends_with_its_layer_norm_and_torchaudio_agrees():
    hubert, (wave,) = random_encoder(LARGE), speech(9_000)
    torch.nn.init.normal_(hubert.encoder.transformer.layer_norm.weight)
    states, expected = alone(hubert, wave), torchaudio_states(hubert, wave)
    assert (states[:-1] - expected[:-1]).abs().max() < 2e-6
    # torchaudio's extract_features leaves the final norm out.
    final = hubert.encoder.transformer.layer_norm(expected[-1])
    assert (states[-1] - final).abs().max() < 5e-6 and not torch.allclose(states[-1], expected[-1])


def test_a_waveform_is_normalised_over_its_own_samples():
    hubert = random_encoder(LARGE)
    normalizing = random_encoder(LARGE | {"normalize_waveform": True, "normalize_epsilon": 0.01})
    waves = speech(6_000, 9_000)
    states, frames = normalizing(
        pad_sequence(waves, batch_first=True), torch.tensor([6_000, 9_000])
    )
    for b, (wave, T) in enumerate(zip(waves, frames.tolist())):
        normal = (wave - wave.mean()) / (wave.var(unbiased=False) + 0.01).sqrt()
        expected = alone(hubert, normal)
        assert (states[:, b, :T] - expected).abs().max() < 1e-5 * expected.std()
        assert not torch.allclose(states[:, b, :T], alone(hubert, wave), atol=0.01)


def test_a_configuration_from_before_normalisation_means_none():
    old = {key: value for key, value in TINY.items() if key not in WAVEFORM_DEFAULTS}
    hubert, (wave,) = random_encoder(old), speech(3_000)
    assert hubert.config == TINY
    assert torch.equal(alone(hubert, wave), alone(random_encoder(TINY), wave))


@pytest.mark.parametrize("garbage", [0.0, 30.0, float("nan")])
def test_padding_and_batch_mates_and_garbage_in_the_padding_change_no_state(garbage):
    hubert, waves = random_encoder(TINY), speech(16_000, 400, 7_321, 32_000, 16_079)
    lengths = torch.tensor([len(wave) for wave in waves])
    batch = torch.randn(5, 37_000) * garbage  # more padding than anyone needs
    for row, wave in zip(batch, waves):
        row[: len(wave)] = wave
    states, frames = hubert(batch, lengths)
    assert states.shape[2] == frames.max() == 99
    for b, (wave, n) in enumerate(zip(waves, frames.tolist())):
        expected = alone(hubert, wave)
        assert (states[:, b, :n] - expected).abs().max() < 1e-5 * expected.std()


def test_padding_and_batch_mates_change_no_gradient():
    hubert, waves = (
        random_encoder(TINY).double(),
        [wave.double() for wave in speech(5_000, 3_000, 4_321)],
    )

    def gradient(states):
        hubert.zero_grad()
        (states * torch.arange(hubert.dim)).square().mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in hubert.parameters()])

    batch, _ = hubert(pad_sequence(waves, batch_first=True), torch.tensor([5_000, 3_000, 4_321]))
    expected = gradient(alone(hubert, waves[1]))
    assert (gradient(batch[:, 1, :9]) - expected).norm() < 1e-9 * expected.norm()


def test_an_utterance_shorter_than_one_frame_is_refused_with_its_length():
    with pytest.raises(ValueError, match="399 samples"):
        random_encoder(TINY)(torch.zeros(2, 16_000), torch.tensor([16_000, 399]))


def test_attention_never_sees_a_mask_or_a_padded_frame(monkeypatch):
    sizes, attention = [], F.scaled_dot_product_attention

    def spy(query, key, value, **named):
        assert named == {"dropout_p": 0.0}  # in evaluation mode
        sizes.append(query.shape[2])
        return attention(query, key, value, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    random_encoder(TINY)(torch.zeros(2, 9_000), torch.tensor([8_000, 7_000]))
    assert sizes == [24, 21] * 4


def test_utterances_in_a_row_have_the_states_that_they_have_in_a_padded_batch():
    hubert, waves = random_encoder(TINY), speech(4_000, 9_000, 400)
    states, frames = hubert.encode(waves)
    assert frames == [12, 27, 1] and states.shape == (5, 40, 128)
    padded, counts = hubert(
        pad_sequence(waves, batch_first=True), torch.tensor([4_000, 9_000, 400])
    )
    assert counts.tolist() == frames and not padded[:, 0, 12:].any()
    assert torch.equal(torch.cat([padded[:, b, :n] for b, n in enumerate(frames)], 1), states)


def test_dropout_is_where_torchaudio_has_it(monkeypatch):
    hubert, (wave,) = random_encoder(TINY), speech(6_000)
    hubert.train()
    monkeypatch.setattr(kernels, "drop", F.dropout)  # torchaudio's random numbers
    torch.manual_seed(0)
    ours = alone(hubert, wave)
    torch.manual_seed(0)
    torch.testing.assert_close(ours, torchaudio_states(hubert, wave), rtol=0, atol=1e-5)


def test_attention_drops_out_in_training_only():
    hubert, (wave,) = (
        random_encoder(
            TINY
            | {
                "encoder_projection_dropout": 0.0,
                "encoder_dropout": 0.0,
                "encoder_attention_dropout": 0.3,
            }
        ),
        speech(6_000),
    )
    still = alone(hubert, wave)
    assert torch.equal(alone(hubert, wave), still)
    hubert.train()
    assert not torch.equal(alone(hubert, wave), still)


def test_the_convolutions_learn_at_a_tenth_of_the_rate_and_nothing_else_does():
    hubert, (wave,) = random_encoder(TINY), speech(4_000)
    gradients = []
    for hubert.feature_grad_mult in (1.0, 0.1):
        hubert.zero_grad()
        alone(hubert, wave).square().mean().backward()
        gradients.append(
            {name: parameter.grad.clone() for name, parameter in hubert.named_parameters()}
        )
    for name, full in gradients[0].items():
        scale = 0.1 if name.startswith("feature_extractor") else 1.0
        torch.testing.assert_close(gradients[1][name], scale * full, rtol=1e-4, atol=1e-7)


def test_a_frozen_encoder_stays_in_evaluation_mode():
    hubert = random_encoder(TINY)
    assert hubert.train().training and not hubert.frozen
    hubert.requires_grad_(False)
    assert not hubert.train().training and hubert.frozen
    assert not any(module.training for module in hubert.modules())


def test_a_random_encoder_is_always_the_same_and_leaves_the_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second, other = (
        load_encoder("random-tiny"),
        load_encoder("random-tiny"),
        random_encoder(TINY, seed=1),
    )
    assert torch.equal(torch.rand(3), expected)
    (wave,) = speech(2_000)
    assert torch.equal(alone(first, wave), alone(second, wave))
    assert not torch.equal(alone(first, wave), alone(other, wave))


def test_random_weights_are_torchaudios():
    config = {key: value for key, value in TINY.items() if key not in WAVEFORM_DEFAULTS}
    torch.manual_seed(3)
    expected = torchaudio.models.wav2vec2_model(**config, aux_num_out=None).state_dict()
    after = torch.rand(1)
    torch.manual_seed(3)
    ours = Hubert(TINY).state_dict()
    assert torch.equal(torch.rand(1), after) and list(ours) == list(expected)
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


def test_the_digest_of_an_encoder_depends_on_its_weights_and_its_configuration_alone():
    hubert = random_encoder(TINY)
    digest = encoder_digest(hubert)
    assert digest == encoder_digest(random_encoder(TINY).train().requires_grad_(False))
    old = {key: value for key, value in TINY.items() if key not in WAVEFORM_DEFAULTS}
    assert digest == encoder_digest(
        random_encoder(
            old
            | {
                "extractor_conv_layer_config": [
                    list(layer) for layer in TINY["extractor_conv_layer_config"]
                ]
            }
        )
    )  # as JSON returns it
    assert digest != encoder_digest(random_encoder(TINY | {"encoder_num_heads": 8}))
    assert digest != encoder_digest(random_encoder(TINY, seed=1))
    with torch.no_grad():
        hubert.encoder.transformer.layers[3].final_layer_norm.bias[5] = 1e-30
    assert digest != encoder_digest(hubert)


# The weighted sum


def test_layer_sum_has_the_reference_value_and_starts_as_the_mean():
    states = torch.stack([(level + 1) * torch.tensor([1.0, -1.0]) for level in range(3)]).reshape(
        3, 1, 1, 2
    )
    layers = LayerSum(3)
    torch.testing.assert_close(layers(states).flatten(), torch.tensor([2.0, -2.0]))
    layers.weights.data = torch.tensor([0.0, 1.0, -1.0])
    torch.testing.assert_close(layers(states).flatten(), torch.tensor([1.8453021, -1.8453021]))


def test_layer_sum_is_float32_under_autocast_and_for_half_precision_states():
    states = torch.randn(5, 2, 7, 16)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(LayerSum(5)(states), states.mean(0), rtol=1e-5, atol=1e-6)
    assert LayerSum(5)(states.half()).dtype == torch.float32


# SpecAugment


def test_time_warp_has_the_reference_values():
    ramp = torch.arange(20.0)[:, None].expand(20, 2)
    torch.manual_seed(3)
    warped = model._warp(ramp, 20)
    expected = [
        -0.0751,
        0.504,
        1.3704,
        2.0936,
        2.752,
        3.525,
        4.3123,
        5.0,
        5.6877,
        6.475,
        7.248,
        7.9064,
        8.6296,
        9.496,
        10.0751,
        11.316,
        13.248,
        15.0,
        16.752,
        18.684,
    ]
    torch.testing.assert_close(
        warped, torch.tensor(expected)[:, None].expand(20, 2), rtol=0, atol=1e-4
    )


def test_time_warp_leaves_ten_frames_and_all_padding_alone():
    features = torch.randn(30, 4)
    assert torch.equal(model._warp(features, 10), features)
    for _ in range(20):  # 11 frames: the middle is always the sixth
        warped = model._warp(features, 11)
        assert torch.equal(warped[11:], features[11:]) and warped.shape == features.shape


def test_masks_have_the_reference_values():
    torch.manual_seed(0)
    times = model._random_spans(2, 100, 2, 40)
    assert times.sum(1).tolist() == [39, 13] and times[0, 29:68].all() and times[1, 4:17].all()
    torch.manual_seed(0)
    assert model._random_spans(2, 768, 4, 50).sum(1).tolist() == [126, 72]


def test_random_numbers_are_drawn_in_the_released_codes_order():
    frames, features = torch.tensor([60, 30, 10]), torch.rand(3, 60, 768) + 1
    torch.manual_seed(11)
    masked = spec_augment(features, frames)
    torch.manual_seed(11)
    expected = features.clone()
    for b, n in enumerate((60, 30)):  # nothing is drawn for the ten frames
        middle = int(torch.randint(5, n - 5, (1,)))
        moved = int(torch.randint(middle - 5, middle + 5, (1,))) + 1
        for start, stop, first, last in ((0, middle, 0, moved), (middle, n, moved, n)):
            part, size = features[b, start:stop][None, None], (last - first, 768)
            expected[b, first:last] = F.interpolate(
                part, size, mode="bicubic", align_corners=False
            )[0, 0]
    for most, masks, size in ((50, 4, 768), (40, 2, 60)):
        widths = torch.randint(0, most, (3, masks))
        starts = torch.randint(0, size - int(widths.max()), (3, masks))
        for b, k in itertools.product(range(3), range(masks)):
            span = slice(int(starts[b, k]), int(starts[b, k] + widths[b, k]))
            expected[(b, slice(None), span) if size == 768 else (b, span)] = 0
    torch.testing.assert_close(masked, expected, rtol=0, atol=1e-6)


def test_masks_are_as_large_as_the_released_codes_on_average():
    torch.manual_seed(0)
    times = [int(model._random_spans(1, 300, 2, 40).sum()) for _ in range(2_000)]
    dims = [int(model._random_spans(1, 768, 4, 50).sum()) for _ in range(2_000)]
    assert sum(times) / 2_000 == pytest.approx(37.0, abs=1.5) and sum(
        dims
    ) / 2_000 == pytest.approx(91.8, abs=2.5)


def test_narrow_features_lose_the_same_share_of_dimensions_and_the_input_is_not_touched():
    features = torch.ones(1, 400, 128)
    torch.manual_seed(0)
    shares = [
        1 - spec_augment(features, torch.tensor([400]), time_masks=1, time_mask_width=1).mean()
        for _ in range(300)
    ]
    assert float(sum(shares)) / 300 == pytest.approx(0.12, abs=0.03) and features.min() == 1


# MultiTask


class StubHead(nn.Module):
    """Regression on the mean over time: nothing of a padded frame reaches the loss."""

    loss_waits = False

    def __init__(self, dim, outputs, frame_aligned=False):
        super().__init__()
        self.linear, self.frame_aligned = nn.Linear(dim, outputs), frame_aligned

    def outputs(self, features, frames):
        real = (torch.arange(features.shape[1]) < frames[:, None])[:, :, None]
        return self.linear((features * real).sum(1) / frames[:, None])

    def loss(self, features, frames, targets):
        return (
            (self.outputs(features, frames).square().sum(1) - torch.tensor(targets)).square().mean()
        )

    def predict(self, features, frames):
        return self.outputs(features, frames).tolist()

    def num_loss_terms(self, targets):
        return len(targets)


def step(seed=0):
    """A step of three tasks with different numbers of utterances."""
    batches, targets = {}, iter(range(20))
    for k, (task, samples) in enumerate(
        {"a": (4_000, 6_000), "b": (5_999,), "c": (9_000, 3_000, 4_400)}.items()
    ):
        waves = speech(*samples, seed=seed + k)
        batches[task] = SimpleNamespace(
            waves=pad_sequence(waves, batch_first=True),
            lengths=torch.tensor(samples),
            targets=[float(next(targets)) for _ in samples],
            ids=[f"{task}{n}" for n in samples],
        )
    return batches


def three_tasks(augment=False, **sizes):
    """MultiTask with stub heads and no dropout; the weighted sum is not the plain mean."""
    torch.manual_seed(1)
    sizes = {
        "encoder_num_layers": 2,
        "encoder_dropout": 0.0,
        "encoder_projection_dropout": 0.0,
    } | sizes
    multitask = MultiTask(
        random_encoder(TINY | sizes),
        {"a": StubHead(128, 2), "b": StubHead(128, 3), "c": StubHead(128, 1, frame_aligned=True)},
        augment,
    )
    multitask.layer_sum.weights.data = torch.linspace(-1, 1, multitask.encoder.num_states)
    return multitask


def gradient(multitask, losses):
    """The gradient of the summed losses, (parameters,)."""
    multitask.zero_grad()
    sum(losses).backward()
    return torch.cat(
        [
            parameter.grad.flatten()
            for parameter in multitask.parameters()
            if parameter.requires_grad
        ]
    )


def separate_losses(multitask, batches):
    """One forward per utterance, without MultiTask's grouping and without padding."""
    for task, batch in batches.items():
        rows = [
            multitask.layer_sum(alone(multitask.encoder, wave[:n])[:, None])[0]
            for wave, n in zip(batch.waves, batch.lengths)
        ]
        frames = torch.tensor([len(row) for row in rows])
        yield multitask.heads[task].loss(
            pad_sequence(rows, batch_first=True), frames, batch.targets
        )


@pytest.mark.parametrize("dtype, precision", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_losses_and_gradients_are_those_of_separate_forwards(dtype, precision):
    multitask, batches = three_tasks().to(dtype), step()
    for batch in batches.values():
        batch.waves, batch.targets = (
            batch.waves.to(dtype),
            torch.tensor(batch.targets, dtype=dtype).tolist(),
        )
    losses, expected = multitask(batches), list(separate_losses(multitask, batches))
    assert list(losses) == ["a", "b", "c"]
    torch.testing.assert_close(
        torch.stack([*losses.values()]), torch.stack(expected), rtol=precision, atol=precision
    )
    together, apart = gradient(multitask, losses.values()), gradient(multitask, expected)
    assert (together - apart).norm() < precision * apart.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_the_losses_gradients_and_predictions_of_a_cpu(device="cuda"):
    targets = {"a": [2, 3], "b": [[1, 2, 2]], "c": [torch.ones(n, 2) for n in (56, 18, 27)]}
    multitask, batches = (
        three_tasks(),
        {
            task: Batch(batch.waves, batch.lengths, targets[task], batch.ids)
            for task, batch in step().items()
        },
    )
    multitask.heads.update(
        {
            "a": XVectorHead(128, 4, 16),
            "b": BLSTMCTCHead(128, 5, 16),
            "c": DiarizationHead(128, 2, 16),
        }
    )
    multitask.heads["b"].dropout.p = 0.0

    def outcome():
        losses = multitask(batches).values()
        slope = gradient(multitask, losses)
        multitask.eval()
        spoken = [
            torch.tensor(rows)
            for task in ("a", "c")
            for rows in multitask.predict(task, batches[task])
        ]
        multitask.train()
        return [torch.stack([*losses]), slope, *spoken]

    expected = outcome()
    multitask.to(device)
    for ours, reference in zip(outcome(), expected):
        assert (
            ours.cpu() - reference
        ).norm() < 2e-3 * reference.norm()  # LSTMs there work with 10 bits


def test_under_autocast_the_encoder_is_bfloat16_and_heads_and_losses_are_float32():
    multitask, batches, seen = three_tasks(), step(), []
    linear = multitask.encoder.encoder.transformer.layers[0].attention.q_proj
    linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for head in multitask.heads.values():
        head.linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    expected = multitask(batches)
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        losses = multitask(batches)
    assert seen == [torch.bfloat16, *[torch.float32] * 3]
    for task, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[task], rtol=0.05, atol=0.02)


def test_a_step_moves_every_parameter():
    multitask = three_tasks()
    before = {name: parameter.clone() for name, parameter in multitask.named_parameters()}
    optimizer = torch.optim.SGD(multitask.parameters(), lr=1.0)
    sum(multitask(step()).values()).backward()
    optimizer.step()
    still = [
        name
        for name, parameter in multitask.named_parameters()
        if torch.equal(parameter, before[name])
    ]
    assert [
        name for name in still if not name.endswith("k_proj.bias")
    ] == []  # whose true gradient is 0


def test_a_prediction_does_not_depend_on_what_it_is_batched_with():
    multitask, batch = three_tasks().eval(), step()["c"]
    together = multitask.predict("c", batch)
    for wave, n, expected in zip(batch.waves, batch.lengths, together):
        single = SimpleNamespace(waves=wave[None, :n], lengths=n[None], targets=[0], ids=["x"])
        assert multitask.predict("c", single)[0] == pytest.approx(expected, abs=1e-5)


def test_a_frozen_encoder_gets_no_gradient_and_drops_nothing_out():
    torch.manual_seed(0)
    hubert = random_encoder(TINY | {"encoder_dropout": 0.5})
    multitask = MultiTask(
        hubert.requires_grad_(False), {"a": StubHead(128, 2)}, augment=False
    ).train()
    assert multitask.training and not hubert.training
    batch = {"a": step()["a"]}
    losses = [multitask(batch)["a"] for _ in range(2)]
    assert torch.equal(*losses)
    losses[0].backward()
    assert all(parameter.grad is None for parameter in hubert.parameters())
    assert multitask.layer_sum.weights.grad.abs().sum() > 0


def test_a_trained_encoder_drops_out_in_training_only():
    multitask, batches = three_tasks(encoder_dropout=0.5), step()
    assert not torch.equal(multitask(batches)["a"], multitask(batches)["a"])
    multitask.eval()
    assert torch.equal(multitask(batches)["a"], multitask(batches)["a"])


def test_states_that_are_known_already_replace_the_waves():
    multitask, batches = three_tasks(), step()
    multitask.encoder.requires_grad_(False)
    heard = multitask(batches)
    states, frames = multitask.encoder(batches["b"].waves, batches["b"].lengths)
    batches["b"] = FrozenBatch(states, frames, batches["b"].targets, batches["b"].ids)
    cached = multitask(batches)
    assert list(cached) == ["a", "b", "c"]
    torch.testing.assert_close(
        torch.stack([*cached.values()]), torch.stack([*heard.values()]), rtol=1e-5, atol=1e-6
    )
    assert multitask.predict("b", batches["b"])[0] == pytest.approx(
        multitask.predict("b", step()["b"])[0], abs=1e-6
    )


def test_spec_augment_is_for_training_and_never_warps_frame_aligned_targets(monkeypatch):
    calls = []
    monkeypatch.setattr(
        model,
        "spec_augment",
        lambda features, frames, time_warp, time_mask_width: (
            calls.append((tuple(features.shape[:2]), frames.tolist(), time_warp, time_mask_width))
            or features
        ),
    )
    multitask, batches = three_tasks(augment=True), step()
    multitask.time_mask_width = 7
    multitask(batches)
    # T is the longest utterance of the task, not of all
    assert calls == [
        ((2, 18), [12, 18], True, 7),
        ((1, 18), [18], True, 7),
        ((3, 27), [27, 9, 13], False, 7),
    ]
    multitask.eval()(batches)
    assert len(calls) == 3


def test_random_numbers_of_a_key_are_always_the_same_and_those_of_another_key_differ():
    keys = [(0, 1, 0, "a"), (0, 1, 0, "b"), (0, 2, 0, "a"), (1, 1, 0, "a"), (0, 1, 1, "a"), ()]
    drawn = []
    for key in [*keys, *keys]:
        seed_random_numbers(*key)
        drawn.append(torch.rand(1).item())
    assert drawn[:6] == drawn[6:] and len(set(drawn)) == 6


def test_with_a_random_key_the_order_in_which_heads_are_computed_does_not_matter():
    batches = step()
    targets = {"a": [2, 3], "b": [[1, 2, 2]], "c": [1.0, 2.0, 3.0]}
    for task, batch in batches.items():
        batch.targets = targets[task]
    multitask = three_tasks(augment=True)
    multitask.time_mask_width = 3  # of 18 frames
    multitask.heads["b"] = BLSTMCTCHead(128, 5, 16)  # it has dropout
    cached = {}
    for task, batch in batches.items():
        states, frames = multitask.encoder(batch.waves, batch.lengths)
        cached[task] = FrozenBatch(states.detach(), frames, batch.targets, batch.ids)
    losses = multitask(cached, random_key=(0, 7, 0))
    backwards = multitask(dict(reversed(cached.items())), random_key=(0, 7, 0))
    assert list(backwards) == ["c", "b", "a"]
    for task in "abc":
        assert torch.equal(losses[task], backwards[task])
        assert torch.equal(
            losses[task], multitask({task: cached[task]}, random_key=(0, 7, 0))[task]
        )
        assert not torch.equal(losses[task], multitask(cached, random_key=(0, 8, 0))[task])


def test_heads_whose_loss_waits_are_computed_last_and_nothing_else_changes(monkeypatch):
    multitask, batches, computed = three_tasks(augment=True), step(), []
    multitask.time_mask_width = 3  # of 18 frames
    compute = multitask.loss

    def note(task, *arguments):
        computed.append(task)
        return compute(task, *arguments)

    monkeypatch.setattr(multitask, "loss", note)
    outcomes = []
    for waits in (False, True):
        multitask.heads["a"].loss_waits = waits
        losses = multitask(batches, random_key=(0, 7, 0))
        assert list(losses) == ["a", "b", "c"]
        outcomes.append([*losses.values(), gradient(multitask, losses.values())])
    assert computed == ["a", "b", "c", "b", "c", "a"]
    assert all(torch.equal(one, other) for one, other in zip(*outcomes))


def test_with_a_random_key_the_encoder_drops_out_the_same_and_without_one_nothing_is_seeded():
    multitask, batches = three_tasks(augment=True, encoder_dropout=0.5), step()
    multitask.time_mask_width = 3  # of 18 frames
    first, again = (multitask(batches, random_key=(1, 2, 3)) for _ in range(2))
    assert all(torch.equal(first[task], again[task]) for task in "abc")
    torch.manual_seed(0)
    expected = multitask(batches)
    torch.manual_seed(0)
    same = multitask(batches)
    other = multitask(batches)
    assert all(torch.equal(same[task], expected[task]) for task in "abc")
    assert not any(torch.equal(other[task], expected[task]) for task in "abc")


@pytest.mark.parametrize("bf16", [False, True])
def test_layers_that_are_computed_again_have_the_same_dropout_losses_and_gradients(bf16):
    dropout = dict.fromkeys(
        ("encoder_dropout", "encoder_attention_dropout", "encoder_ff_interm_dropout"), 0.3)
    multitask, batches, outcomes, calls = three_tasks(augment=True, **dropout), step(), [], []
    for module in (multitask.encoder.feature_extractor,
                   multitask.encoder.encoder.transformer.layers[0]):
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    for again in (False, True):
        multitask.encoder.checkpoint_activations = again
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = multitask(batches, random_key=(0, 7, 0))
        slope = gradient(multitask, losses.values())
        outcomes.append([*losses.values(), slope, torch.rand(1)])  # the next random number
    assert len(calls) == 6  # each once, then twice
    assert all(torch.equal(kept, computed) for kept, computed in zip(*outcomes))


def kept_gigabytes(run, parameters) -> float:
    """What run() keeps for the backward pass, without the weights."""
    weights = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept = {}  # the tensors, too, so that no storage is freed and no address comes twice

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(size for size, _ in kept.values()) / 1e9


def test_large_fits_24_gb_with_twenty_seconds_per_utterance_if_activations_are_computed_again():
    """The shapes of a step of (b) in fp32, without numbers: the paper's 17 utterances, all long."""
    heads = 98e6  # parameters of nine heads on 1,024 dimensions
    waves_lengths = [20 * 16_000] * 17
    with FakeTensorMode():
        large = Hubert(model.LARGE).train()
        parameters = list(large.parameters())
        waves = [torch.randn(samples) for samples in waves_lengths]
        frames = [frame_count(samples) for samples in waves_lengths]
        everything = kept_gigabytes(lambda: large.encode(waves), parameters)
        large.checkpoint_activations = True
        inputs = kept_gigabytes(lambda: large.encode(waves), parameters)
        # The convolutions keep the most when they are computed again in the backward pass.
        again = kept_gigabytes(lambda: large.feature_extractor(waves, frames), parameters)
    # weights, their gradients and Adam's two moments in float32
    training = 16 * (sum(parameter.numel() for parameter in parameters) + heads) / 1e9
    assert training == pytest.approx(6.6, abs=0.1)
    assert everything == pytest.approx(42, abs=1) and training + everything > 24
    assert inputs + again == pytest.approx(15.5, abs=0.5) and training + inputs + again < 24


def test_spec_augment_lets_the_gradient_through():
    multitask = three_tasks(augment=True)
    multitask.time_mask_width = 3  # of 18 frames
    assert gradient(multitask, multitask(step()).values()).isfinite().all()
    assert multitask.encoder.encoder.feature_projection.projection.weight.grad.abs().sum() > 0

"""The faster implementations in engine/kernels.py against the plain operations of PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from encoder_tools import LARGE, speech
from torch import nn

from engine import kernels
from model import TINY, Hubert, frame_count, random_encoder


def in_a_row(hubert: Hubert, waves: list[torch.Tensor]) -> torch.Tensor:
    """The features that a GPU computes, here on a CPU: (M, C)."""
    frames = [frame_count(len(wave)) for wave in waves]
    return kernels.convolve_row(hubert.feature_extractor.conv_layers, waves, frames)


@pytest.mark.parametrize("config", [TINY, LARGE], ids=["group norm", "layer norm, bias"])
def test_waves_in_one_row_are_convolved_as_alone(config):
    hubert = random_encoder(config).double()
    waves = [wave.double() for wave in speech(400, 640, 719, 9_000, 16_000, 4_321)]
    row = in_a_row(hubert, waves)
    apart = torch.cat([hubert.feature_extractor.convolve(wave) for wave in waves])
    weights = list(hubert.feature_extractor.parameters())
    direction = torch.randn(apart.shape[1]).double()
    torch.testing.assert_close(row, apart, rtol=0, atol=1e-9)
    gradients = [torch.autograd.grad((x * direction).sin().sum(), weights) for x in (row, apart)]
    for ours, expected in zip(*gradients):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_rows_have_few_lengths():
    hubert, lengths = random_encoder(TINY), set()
    hubert.feature_extractor.conv_layers[0].conv.register_forward_pre_hook(
        lambda _, inputs: lengths.add(inputs[0].shape[2])
    )
    for n in range(400, 40_000, 1_234):
        in_a_row(hubert, [torch.zeros(n), torch.zeros(5_000)])
    assert lengths == {32_000, 64_000}


@pytest.mark.parametrize("channels, uses_onednn", [(32, False), (512, True)])
def test_narrow_convolutions_do_without_onednn_and_the_rest_of_the_program_keeps_it(
    channels, uses_onednn
):
    sizes = [(channels, 10, 5)] + [(channels, 3, 2)] * 4 + [(channels, 2, 2)] * 2
    extractor = random_encoder(TINY | {"extractor_conv_layer_config": sizes}).feature_extractor
    used = []
    extractor.conv_layers[0].register_forward_hook(
        lambda *_: used.append(torch.backends.mkldnn.enabled)
    )
    (wave,) = speech(5_000)
    features = extractor([wave], [15])
    assert used == [uses_onednn] and torch.backends.mkldnn.enabled
    torch.testing.assert_close(features, extractor.convolve(wave), rtol=0, atol=1e-6)


@pytest.mark.parametrize("frames", [[1], [7], [8], [9], [40], [5, 40, 1, 9]], ids=str)
@pytest.mark.parametrize("K", [8, 7])
def test_the_convolution_by_fourier_transforms_is_the_direct_one(frames, K):
    torch.manual_seed(0)
    convolution = nn.Conv1d(6, 6, K, padding=K // 2, groups=3).double()
    x = torch.randn(sum(frames), 6, dtype=torch.double, requires_grad=True)
    direct = torch.cat([convolution(one.T)[:, : len(one)].T for one in x.split(frames)])
    results = []
    for result in (direct, kernels.convolve_by_fourier(convolution, x, frames)):
        gradients = torch.autograd.grad(result.sin().sum(), [x, *convolution.parameters()])
        results.append([result, *gradients])
    for expected, ours in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("T", [64, 704])
def test_attention_dropout_keeps_each_share_with_its_probability_and_scales_it(T):
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 1, 3, T, T).double()
    # As values these give back the attention weights.
    identity = torch.eye(T).double().expand(1, 3, T, T)
    weights = F.scaled_dot_product_attention(queries, keys, identity)
    dropped = kernels.attend(queries, keys, identity, 0.3)
    kept = dropped != 0
    torch.testing.assert_close(dropped, torch.where(kept, weights / 0.7, 0), rtol=1e-9, atol=1e-12)
    assert abs(kept.double().mean() - 0.7) < 4 * (0.21 / kept.numel()) ** 0.5
    # Each head has a mask of its own.
    assert abs(kept[0, 0].ne(kept[0, 1]).double().mean() - 0.42) < 0.05


def test_attention_without_dropout_is_pytorchs():
    torch.manual_seed(0)
    inputs = torch.randn(3, 1, 2, 5, 4)
    expected = F.scaled_dot_product_attention(*inputs)
    assert torch.equal(kernels.attend(*inputs, 0.0), expected)


def test_attention_dropout_has_its_derivative():
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 5, 3, dtype=torch.double, requires_grad=True) for _ in range(3)]

    def same_mask(*inputs):
        torch.manual_seed(1)
        return kernels.attend(*inputs, 0.3)

    assert torch.autograd.gradcheck(same_mask, inputs)


def test_dropout_keeps_each_number_with_its_probability_and_scales_it():
    torch.manual_seed(0)
    x = torch.rand(300, 301) + 1
    dropped = kernels.drop(x, 0.1)
    kept = dropped != 0
    torch.testing.assert_close(dropped, torch.where(kept, x / 0.9, 0), rtol=1e-6, atol=0)
    assert abs(kept.double().mean() - 0.9) < 4 * (0.09 / kept.numel()) ** 0.5

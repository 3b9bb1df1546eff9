"""Faster equals of a few operations of the encoder. Each docstring has the plain formula, and
`tests/test_kernels.py` compares the two.

T frames of one utterance, M frames of all utterances (one utterance after the other),
D dimensions, C channels of the convolutions.
"""

import ctypes
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rules import HOP

ROW_HOPS = 100  # row lengths are rounded up to 2 s: cuDNN re-tunes for each new length


def keep_memory() -> None:
    """Keep freed memory in this process instead of returning it to the system.

    By default, glibc (Linux) returns each large tensor and asks for the next one page by page. That
    takes up to a quarter of an MTL step on a CPU. Without glibc this function does nothing."""
    with suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(-4, 0)  # M_MMAP_MAX: no block is a mapping of its own
        glibc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the end of the heap is not given back


def convolve_row(blocks: nn.ModuleList, waves: list[Tensor], frames: list[int]) -> Tensor:
    """The feature extractor on all waves at once, for a GPU: waves [(n,), ...] -> (M, C).

    Plain formula: apply the blocks to each wave alone, then concatenate the frames of all waves.
    On a GPU that would launch seven convolutions per wave, and cuDNN re-tunes for each new length.

    Here all waves lie in one row, and each starts at a multiple of HOP, which is the stride of all
    convolutions together. The first frames of a wave's slot are therefore the wave's own frames.
    Later frames of the slot reach into the next wave and are dropped."""
    slots = [-(-len(wave) // HOP) for wave in waves]  # in hops, rounded up
    padded = [F.pad(wave, (0, slot * HOP - len(wave))) for wave, slot in zip(waves, slots)]
    # At least one hop of zeros follows the last wave: its last frames reach beyond its slot.
    end = ROW_HOPS - sum(slots) % ROW_HOPS
    x = F.pad(torch.cat(padded), (0, HOP * end))[None, None]  # (1, 1, samples of the row)
    for block in blocks:
        if isinstance(block.layer_norm, nn.GroupNorm):
            x = F.gelu(_normalize_slots(block, block.conv(x), waves, slots))
        else:
            x = block(x)
    return _first_of_each(x[0].T, slots, frames)


def _normalize_slots(block: nn.Module, x: Tensor, waves: list[Tensor], slots: list[int]) -> Tensor:
    """GroupNorm of the first block, x (1, C, T): statistics over each wave's own frames only."""
    kernel, stride = block.conv.kernel_size[0], block.conv.stride[0]
    lengths = [slot * HOP // stride for slot in slots]
    pieces = x.split([*lengths, x.shape[2] - sum(lengths)], dim=2)
    normalized = []
    for piece, wave in zip(pieces, waves):
        own = (len(wave) - kernel) // stride + 1
        normalized.append(F.pad(block.layer_norm(piece[:, :, :own]), (0, piece.shape[2] - own)))
    return torch.cat([*normalized, pieces[-1]], dim=2)


def _first_of_each(row: Tensor, slots: list[int], frames: list[int]) -> Tensor:
    """The row (sum of slots or more, D) without what follows the first frames of each slot."""
    pieces = row[: sum(slots)].split(slots)
    return torch.cat([piece[:T] for piece, T in zip(pieces, frames)])


def convolve_by_fourier(convolution: nn.Conv1d, x: Tensor, frames: list[int]) -> Tensor:
    """The positional convolution of each utterance, (M, D) -> (M, D), at a tenth of the cost.

    Plain formula, for one utterance x (T, D): convolution(x.T)[:, :T].T

    All utterances lie in one row, with K / 2 zeros after each: a kernel sees one utterance only.
    Directly, each output needs a product for each of its I inputs at each of its K = 128 frames. In
    the frequency domain a convolution over time is one complex product per frequency and input.

    A transform of length 2 K convolves in a circle. The kernel fits into 2 K - K + 1 = K + 1 places
    without wrapping around. So pieces of 2 K frames start K + 1 apart (they overlap), and the first
    K + 1 results of each piece are kept.
    n pieces, G groups of I = O = D / G channels, K + 1 frequencies."""
    weight, groups, dtype = convolution.weight, convolution.groups, x.dtype
    _, I, K = weight.shape
    gap = K // 2
    row = torch.cat([F.pad(one, (0, 0, 0, gap)) for one in x.split(frames)])
    T, D = row.shape
    n = -(-T // (K + 1))
    row = row.to(weight.dtype)  # there is no Fourier transform of bfloat16
    row = F.pad(row, (0, 0, K // 2, n * (K + 1) + K - 1 - K // 2 - T))
    pieces = torch.fft.rfft(row.unfold(0, 2 * K, K + 1)).view(n, groups, I, -1)  # (n, G, I, K + 1)
    kernels = torch.fft.rfft(weight, 2 * K).view(groups, I, I, -1)  # (G, O, I, K + 1)
    # The conjugate: Conv1d correlates, it does not mirror its kernels.
    product = torch.einsum("ngif,goif->ngof", pieces, kernels.conj())
    result = torch.fft.irfft(product, 2 * K)[..., : K + 1].movedim(3, 1)  # (n, K + 1, G, O)
    row = (result.reshape(-1, D)[:T] + convolution.bias).to(dtype)
    return _first_of_each(row, [T + gap for T in frames], frames)


def attend(queries: Tensor, keys: Tensor, values: Tensor, dropout: float) -> Tensor:
    """softmax(queries keys^T / sqrt(d)) values, with dropout on the softmax; (1, heads, T, d) each.

    Plain formula: F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)

    With dropout on a CPU this takes half the time: `drop` draws fewer random bits, and long
    utterances go head by head, because all attention weights together do not fit into the cache."""
    if dropout == 0 or queries.is_cuda:
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
    _, heads, T, d = queries.shape
    together = heads if T < 700 else 1
    parts = [x[0].split(together) for x in (queries * d**-0.5, keys, values)]
    mixed = []
    for query, key, value in zip(*parts):
        weights = (query @ key.transpose(1, 2)).softmax(-1)  # (heads, T, T)
        mixed.append(drop(weights, dropout) @ value)
    return torch.cat(mixed)[None]


def drop(x: Tensor, p: float) -> Tensor:
    """Dropout from 16 random bits per number; PyTorch draws 64 of them on a CPU.

    Plain formula: F.dropout(x, p)"""
    numbers = torch.randint(-(2**63), 2**63 - 1, (x.numel() // 4 + 1,))
    bits = numbers.view(torch.int16)[: x.numel()].view(x.shape)
    return (x * (bits >= round(p * 2**16) - 2**15)).div_(1 - p)


class Dropout(nn.Dropout):
    """nn.Dropout, faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and 0 < self.p < 1 and not x.is_cuda:
            return drop(x, self.p)
        return super().forward(x)

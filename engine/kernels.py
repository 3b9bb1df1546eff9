"""Faster implementations of a few operations of the encoder, with the same results up to rounding
and the choice of dropout masks. The docstring of each replaced operation has its plain formula, and
`tests/test_kernels.py` compares the two.

T frames of one utterance, M frames of all utterances (concatenated), D dimensions, C channels of
the convolutions. A hop is 320 samples, the distance of two frames.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rules import HOP

# Channels up to which convolutions on a CPU do without oneDNN. Measured: without it, a step of the
# tiny encoder (32 channels) takes 0.83 times as long; from 128 channels on, oneDNN is faster.
NARROW = 64
# cuDNN tunes its algorithm again for each new length. Row lengths are therefore rounded up to a
# multiple of 100 hops (2 s), so few lengths occur.
ROW_HOPS = 100


def keep_memory() -> None:
    """Keep freed memory in this process instead of returning it to the system.

    By default, glibc (the C library of Linux) returns the memory of each large tensor when it is
    freed. The next large tensor then needs new memory, which the system hands out page by page.
    On a CPU this takes up to a quarter of an MTL step. Without glibc this function does nothing."""
    with suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(-4, 0)  # M_MMAP_MAX = 0: large blocks come from the heap, too
        glibc.mallopt(-1, -1)  # M_TRIM_THRESHOLD = -1: the free end of the heap is kept


@contextmanager
def without_onednn_if_narrow(channels: int) -> Iterator[None]:
    """Inside, narrow convolutions on a CPU do not use oneDNN, PyTorch's library for CPUs.

    oneDNN compiles code for each new length, and almost every utterance has a new length. With few
    channels this takes longer than the convolution itself; with many, oneDNN is the faster one."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = before and channels > NARROW
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def convolve_row(blocks: nn.ModuleList, waves: list[Tensor], frames: list[int]) -> Tensor:
    """The feature extractor on all waves at once, for a GPU: waves [(n,), ...] -> (M, C).

    Plain formula: apply the blocks to each wave alone, then concatenate the frames of all waves.
    On a GPU that would launch seven convolutions per wave, and cuDNN tunes for each new length.

    Here all waves lie in one row. The slot of a wave is its part of the row: the wave, padded with
    zeros to a multiple of HOP. HOP is the stride of all convolutions together, so a slot of k hops
    gives k frames. The first of them are the frames of the wave alone. The last ones also depend on
    the padding or the next slot, and are dropped."""
    slots = [-(-len(wave) // HOP) for wave in waves]  # in hops, rounded up
    padded = [F.pad(wave, (0, slot * HOP - len(wave))) for wave, slot in zip(waves, slots)]
    # A row of H hops gives H - 1 frames, because a frame covers more than one hop. With at least
    # one extra hop, the row has sum(slots) frames or more.
    extra_hops = ROW_HOPS - sum(slots) % ROW_HOPS
    x = F.pad(torch.cat(padded), (0, HOP * extra_hops))[None, None]  # (1, 1, samples of the row)
    for block in blocks:
        if isinstance(block.layer_norm, nn.GroupNorm):
            x = F.gelu(_normalize_slots(block, block.conv(x), waves, slots))
        else:
            x = block(x)
    return _first_of_each(x[0].T, slots, frames)


def _normalize_slots(block: nn.Module, x: Tensor, waves: list[Tensor], slots: list[int]) -> Tensor:
    """GroupNorm of the first block for a row x (1, C, frames of its convolution).

    The statistics of a slot come from the frames of its wave only. The other frames become 0."""
    kernel, stride = block.conv.kernel_size[0], block.conv.stride[0]
    lengths = [slot * HOP // stride for slot in slots]
    pieces = x.split([*lengths, x.shape[2] - sum(lengths)], dim=2)
    normalized = []
    for piece, wave in zip(pieces, waves):
        own_frames = (len(wave) - kernel) // stride + 1
        own = block.layer_norm(piece[:, :, :own_frames])
        normalized.append(F.pad(own, (0, piece.shape[2] - own_frames)))
    return torch.cat([*normalized, pieces[-1]], dim=2)


def _first_of_each(row: Tensor, slots: list[int], counts: list[int]) -> Tensor:
    """The first `count` rows of each slot, concatenated; row (sum of slots or more, D)."""
    pieces = row[: sum(slots)].split(slots)
    return torch.cat([piece[:count] for piece, count in zip(pieces, counts)])


def convolve_by_fourier(convolution: nn.Conv1d, x: Tensor, frames: list[int]) -> Tensor:
    """The positional convolution of each utterance, (M, D) -> (M, D), at a tenth of the cost.

    Plain formula, for one utterance x (T, D): convolution(x.T)[:, :T].T. With a kernel of even
    size the convolution gives T + 1 frames, and [:, :T] drops the last one.

    All utterances lie in one row, with K // 2 zeros after each, so a kernel sees one utterance
    only. A direct convolution takes a product for each output, each of its I inputs and each of
    the K (Base: 128) frames of the kernel. In the frequency domain it is one complex product per
    output, input and frequency.

    The method is overlap-save. The row is cut into pieces of 2 K frames that start K + 1 frames
    apart. A Fourier transform of length 2 K convolves each piece in a circle: its first
    2 K - K + 1 = K + 1 results are right, and the others wrap around and are dropped.
    n pieces, G groups of I = O = D / G channels, K + 1 frequencies."""
    weight, groups, dtype = convolution.weight, convolution.groups, x.dtype
    _, I, K = weight.shape
    gap = K // 2
    row = torch.cat([F.pad(one, (0, 0, 0, gap)) for one in x.split(frames)])
    row_length, D = row.shape
    n = -(-row_length // (K + 1))
    row = row.to(weight.dtype)  # there is no Fourier transform of bfloat16
    # n pieces of 2 K frames, K + 1 apart, need (n - 1) (K + 1) + 2 K frames in total.
    end = (n - 1) * (K + 1) + 2 * K - gap - row_length
    row = F.pad(row, (0, 0, gap, end))
    pieces = torch.fft.rfft(row.unfold(0, 2 * K, K + 1)).view(n, groups, I, -1)  # (n, G, I, K + 1)
    kernels = torch.fft.rfft(weight, 2 * K).view(groups, I, I, -1)  # (G, O, I, K + 1)
    # Conv1d computes a cross-correlation, which is a product with the conjugate spectrum.
    product = torch.einsum("ngif,goif->ngof", pieces, kernels.conj())
    result = torch.fft.irfft(product, 2 * K)[..., : K + 1].movedim(3, 1)  # (n, K + 1, G, O)
    row = (result.reshape(-1, D)[:row_length] + convolution.bias).to(dtype)
    return _first_of_each(row, [T + gap for T in frames], frames)


def attend(queries: Tensor, keys: Tensor, values: Tensor, dropout: float) -> Tensor:
    """softmax(queries keys^T / sqrt(d)) values, with dropout on the softmax.

    The three arguments and the result are (1, heads, T, d) each.

    Plain formula: F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)

    With dropout on a CPU this takes half the time, because `drop` draws fewer random bits."""
    if dropout == 0 or queries.is_cuda:
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
    _, heads, T, d = queries.shape
    # The attention weights of 700 frames (14 s) and 12 heads take 24 MB. For longer utterances one
    # head at a time was up to twice as fast on our CPU, because its weights stay in the cache.
    heads_per_part = heads if T < 700 else 1
    parts = [x[0].split(heads_per_part) for x in (queries * d**-0.5, keys, values)]
    attended = []
    for query, key, value in zip(*parts):
        weights = (query @ key.transpose(1, 2)).softmax(-1)  # (heads_per_part, T, T)
        attended.append(drop(weights, dropout) @ value)
    return torch.cat(attended)[None]


def drop(x: Tensor, p: float) -> Tensor:
    """Dropout from 16 random bits per element; PyTorch draws 64 of them on a CPU.

    Plain formula: F.dropout(x, p), with the probability rounded to a multiple of 2**-16."""
    numbers = torch.randint(-(2**63), 2**63 - 1, (x.numel() // 4 + 1,))
    # Each int64 has the bits of four int16, which are uniform in [-2**15, 2**15).
    bits = numbers.view(torch.int16)[: x.numel()].view(x.shape)
    return (x * (bits >= round(p * 2**16) - 2**15)).div_(1 - p)


class Dropout(nn.Dropout):
    """nn.Dropout, faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and 0 < self.p < 1 and not x.is_cuda:
            return drop(x, self.p)
        return super().forward(x)

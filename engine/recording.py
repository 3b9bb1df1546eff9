"""Any audio file as one utterance, however long: load it as a corpus does, encode it in windows.

n samples (16 kHz), L+1 hidden states, T frames (50 Hz), C channels, D dimensions.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from corpus import Corpus, Utterance, load_audio
from engine.audio import REPLACE
from engine.files import DataError, check
from engine.launch import progress
from model import Hubert, MultiTask, frame_count
from rules import HOP, RECEPTIVE_FIELD, SAMPLE_RATE

WINDOWED_FROM = 60 * SAMPLE_RATE  # samples: a shorter recording is encoded as a whole
WINDOW, CONTEXT = 30 * 50, 2 * 50  # frames


def encode_file(model: MultiTask, path: str, corpora: dict[str, Corpus]) -> dict[str, tuple]:
    """{task: (features (1, T, D), frames (1,))} of a file, as evaluation makes them.

    Tasks whose corpora load audio in the same way share the features. Raises DataError.
    """
    encoded = {}
    for corpus in corpora.values():
        loading = corpus.gain, corpus.trim, corpus.crop
        if loading not in encoded:
            wave = load_recording(path, corpus)
            features = encode_recording(model, wave, f"{path}: encoding")
            encoded[loading] = features[None], torch.tensor([len(features)])
    return {name: encoded[c.gain, c.trim, c.crop] for name, c in corpora.items()}


def load_recording(path: str, corpus: Corpus) -> Tensor:
    """The samples (n,) of a file, as the corpus loads its utterances. Raises DataError."""
    try:
        wave = load_audio(Utterance(path, path, None, None), corpus)
    except DataError as error:  # without the task, and without the advice for a data folder
        message = str(error).removeprefix(f"{corpus.task}: ").removesuffix(f"; {REPLACE}")
        raise DataError(message) from error
    found = f"{len(wave)} samples without silence" if corpus.trim else f"{len(wave)} samples"
    check(len(wave) >= RECEPTIVE_FIELD, f"{path} has {found}, and {corpus.task} needs "
          f"{RECEPTIVE_FIELD}; take a longer recording, or other tasks by --task")
    return torch.from_numpy(wave)


def encode_recording(model: MultiTask, wave: Tensor, title: str) -> Tensor:
    """The weighted sum of the hidden states of a wave (n,): features (T, D).

    Plain formula: model.layer_sum(model.encoder.encode([wave])[0])

    This holds exactly below a minute. A longer wave is encoded in windows of 30 s with 2 s of
    context on each side, and only the weighted sum of each window is kept: with the tiny encoder
    all nine answers for an hour take 1.8 GB. Attention sees a window, not the whole recording;
    HuBERT is pretrained on crops of 16 s. For three minutes of many speakers the features differ
    from the plain formula by 16 % (root mean square; tiny), or 1 % (random-tiny).
    """
    T, device = frame_count(len(wave)), model.layer_sum.weights.device
    if len(wave) < WINDOWED_FROM:
        return model.layer_sum(model.encoder.encode([wave.to(device)])[0])
    features = []
    with normalized_as_a_whole(model.encoder, wave) as wave:
        for first in progress(range(0, T, WINDOW), title, unit="window", leave=False, delay=1):
            start = max(0, first - CONTEXT)  # in frames
            end = (first + WINDOW + CONTEXT) * HOP + RECEPTIVE_FIELD - HOP  # in samples
            states, _ = model.encoder.encode([wave[start * HOP : end].to(device)])
            features.append(model.layer_sum(states)[first - start :][:WINDOW])
    return torch.cat(features)


@contextmanager
def normalized_as_a_whole(encoder: Hubert, wave: Tensor) -> Iterator[Tensor]:
    """In the block, the encoder normalises each window with the statistics of the whole wave.

    Yields the wave (n,), itself normalised if the encoder normalises waveforms.

    With statistics of its own, a window of silence would become as loud as speech.
    """
    first, config = encoder.feature_extractor.conv_layers[0], encoder.config
    norm = first.layer_norm
    if config["normalize_waveform"]:
        wave = encoder.normalize(wave)
        encoder.config = config | {"normalize_waveform": False}
    if isinstance(norm, nn.GroupNorm):
        first.layer_norm = FixedNorm(norm, *channel_statistics(first.conv, wave))
    try:
        yield wave
    finally:
        first.layer_norm, encoder.config = norm, config


def channel_statistics(convolution: nn.Conv1d, wave: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C, 1) of each channel of the first convolution over a wave (n,)."""
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    count, total, squares = 0, 0, 0
    part = 30 * SAMPLE_RATE  # a multiple of the stride
    for start in range(0, len(wave) - kernel + 1, part):
        samples = wave[start : start + part + kernel - stride].to(convolution.weight.device)
        x = convolution(samples[None, None])[0].double()  # (C, outputs of the part)
        count += x.shape[1]
        total, squares = total + x.sum(1, keepdim=True), squares + x.square().sum(1, keepdim=True)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).float()


class FixedNorm(nn.Module):
    """GroupNorm with one channel per group and given statistics.

    x is (1, C, outputs of the first convolution)."""

    def __init__(self, norm: nn.GroupNorm, mean: Tensor, variance: Tensor):
        super().__init__()
        self.scale = norm.weight[:, None] / (variance + norm.eps).sqrt()
        self.shift = norm.bias[:, None] - mean * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift

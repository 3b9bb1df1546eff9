"""Any audio file as one utterance, however long: load it as a corpus does, encode it in windows.

n samples (16 kHz), L+1 hidden states, T frames (50 Hz), D dimensions.
"""

import numpy as np
import torch
from torch import Tensor

from data import Corpus, Utterance, load_audio
from engine.audio import REPLACE
from engine.files import DataError, check
from engine.launch import progress
from model import MultiTask, frame_count
from rules import HOP, RECEPTIVE_FIELD, SAMPLE_RATE

AT_ONCE = 60 * SAMPLE_RATE  # a recording of this length or more is encoded in windows
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
            encoded[loading] = features, torch.tensor([features.shape[1]])
    return {name: encoded[c.gain, c.trim, c.crop] for name, c in corpora.items()}


def load_recording(path: str, corpus: Corpus) -> np.ndarray:
    """The samples (n,) of a file, as the corpus loads its utterances. Raises DataError."""
    try:
        wave = load_audio(Utterance(path, path, None, None), corpus)
    except DataError as error:  # without the task, and without the advice for a data folder
        message = str(error).removeprefix(f"{corpus.task}: ").removesuffix(f"; {REPLACE}")
        raise DataError(message) from error
    silence = ", without silence," if corpus.trim else ""
    check(len(wave) >= RECEPTIVE_FIELD,
          f"{path} has {len(wave)} samples{silence} and {corpus.task} needs {RECEPTIVE_FIELD}; "
          "take a longer recording, or other tasks by --task")
    return wave


def encode_recording(model: MultiTask, wave: np.ndarray, title: str) -> Tensor:
    """The weighted sum of the hidden states of a wave (n,): features (1, T, D).

    Plain formula: model.layer_sum(model.encoder.encode([wave])[0])[None]

    This holds exactly below a minute. A longer wave is encoded in windows of 30 s with 2 s of
    context on each side, of which only the weighted sum is kept: an hour needs little memory.
    Attention and the first normalisation then see 34 s instead of the whole recording.
    """
    T, device = frame_count(len(wave)), model.layer_sum.weights.device
    window = T if len(wave) < AT_ONCE else WINDOW
    features = []
    for first in progress(range(0, T, window), title, unit="window", leave=False, delay=1):
        start = max(0, first - CONTEXT)  # in frames
        end = (first + window + CONTEXT) * HOP + RECEPTIVE_FIELD - HOP  # in samples
        part = torch.from_numpy(wave[start * HOP : end]).to(device)
        states, _ = model.encoder.encode([part])  # (L+1, frames of the part, D)
        features.append(model.layer_sum(states)[first - start :][:window])
    return torch.cat(features)[None]

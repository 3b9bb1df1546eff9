"""Decoding audio files, their lengths, and what is wrong with broken ones. n samples at 16 kHz."""
import os
import re

import numpy as np
import soundfile

from engine.files import DataError, check
from rules import SAMPLE_RATE

BLOCK_SECONDS = 600  # decoded at a time
REPLACE = "replace the file, or go on without it by --skip-broken"


def decode_audio(task: str, path: str) -> np.ndarray:
    """A whole file as float32 (n,), mono, 16 kHz. DataError if it is broken."""
    expected = header_samples(task, path)
    try:
        with soundfile.SoundFile(path) as file:
            wave = read_blocks(file)
    except (OSError, RuntimeError):
        raise DataError(f"{task}: damaged audio in {path}; {REPLACE}") from None
    check(np.isfinite(wave).all(), f"{task}: samples that are not finite in {path}; {REPLACE}")
    # an mp3 decodes without its end as well, and its header may be an estimate
    complete = len(wave) > 0.95 * expected
    check(complete, f"{task}: only a part of the audio in {path}; {REPLACE}")
    return wave


def read_blocks(file: soundfile.SoundFile) -> np.ndarray:
    """All samples of an open file as float32 (n,), mono, 16 kHz.

    Plain formula: resample(file.read(...).mean(1), file.samplerate)

    This holds exactly up to BLOCK_SECONDS. An hour at 44.1 kHz in stereo takes 1.3 GB at once, so
    it is resampled in blocks. Two blocks share two seconds, and each of them keeps one second."""
    rate, tail, parts = file.samplerate, np.zeros(0, np.float32), []
    while len(block := file.read(BLOCK_SECONDS * file.samplerate, "float32", always_2d=True)):
        block = np.concatenate([tail, block.mean(1)])
        tail = block[-2 * rate:]
        parts.append(resample(block, rate))
    for i in range(1, len(parts)):
        parts[i - 1], parts[i] = parts[i - 1][:-SAMPLE_RATE], parts[i][SAMPLE_RATE:]
    return np.concatenate([tail[:0], *parts])


def resample(wave: np.ndarray, rate: int) -> np.ndarray:
    """A wave (samples at `rate`,) -> (n,) at 16 kHz."""
    if rate == SAMPLE_RATE:
        return wave
    # imported here, so that audio at 16 kHz needs no torchaudio
    import torch
    from torchaudio.functional import resample as torchaudio_resample
    return torchaudio_resample(torch.from_numpy(wave), rate, SAMPLE_RATE).numpy()


def header_samples(task: str, path: str) -> int:
    """The samples of a file at 16 kHz, by its header alone. DataError if that shows damage."""
    try:
        header = soundfile.info(path)
    except (OSError, RuntimeError, ValueError):  # ValueError: a name that is no text
        reason = "damaged or not audio" if os.path.exists(path) else "no such file"
        raise DataError(f"{task}: no readable audio ({reason}) in {path}; {REPLACE}") from None
    # libsndfile reads a wav that was cut short, and remarks on it only here. Ten digits stand for
    # an unknown size, as in a wav that was written into a pipe.
    cut_short = re.search(r"data : \d{1,9} \(should be", header.extra_info)
    check(not cut_short, f"{task}: only a part of the audio in {path}; {REPLACE}")
    check(header.frames, f"{task}: no audio in {path}; {REPLACE}")
    return -(-header.frames * SAMPLE_RATE // header.samplerate)

"""Decoding audio files, their lengths, and what is wrong with broken ones."""
import os
import re

import numpy as np
import soundfile
import torch
import torchaudio

from rules import SAMPLE_RATE

REPLACE = "replace the file, or go on without it by --skip-broken"

class DataError(Exception):
    """Bad data. The message is one sentence: `<task>: <what> in <file>; <what to do>`."""
    def __init__(self, message: str):
        # from the worker of a DataLoader it comes as the last line of a traceback
        super().__init__(message.splitlines()[-1].removeprefix("engine.audio.DataError: "))

def decode(task: str, path: str) -> np.ndarray:
    """A whole file as float32 (n,), mono, 16 kHz. DataError if it is broken."""
    samples = header_samples(task, path)
    try:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError):
        raise DataError(f"{task}: damaged audio in {path}; {REPLACE}") from None
    wave = torchaudio.functional.resample(torch.from_numpy(wave.mean(1)), rate, SAMPLE_RATE).numpy()
    check(np.isfinite(wave).all(), f"{task}: samples that are not finite in {path}; {REPLACE}")
    # an mp3 decodes without its end as well, and its header may be an estimate
    check(len(wave) > 0.95 * samples, f"{task}: only a part of the audio in {path}; {REPLACE}")
    return wave

def header_samples(task: str, path: str) -> int:
    """The samples of a file at 16 kHz, by its header alone. DataError if that shows that the file is broken."""
    try:
        header = soundfile.info(path)
    except (OSError, RuntimeError, ValueError):  # ValueError: a name that is no text
        reason = "damaged or not audio" if os.path.exists(path) else "no such file"
        raise DataError(f"{task}: no readable audio ({reason}) in {path}; {REPLACE}") from None
    # a wav that is cut short passes for a shorter one, but for this remark; ten digits stand for an unknown size
    cut = re.search(r"data : \d{1,9} \(should be", header.extra_info)
    check(header.frames and not cut, f"{task}: {'only a part of the' if cut else 'no'} audio in {path}; {REPLACE}")
    return -(-header.frames * SAMPLE_RATE // header.samplerate)

def check(ok, problem: str) -> None:
    """DataError, unless ok."""
    if not ok:
        raise DataError(problem)

"""Decoding audio files, their lengths, what is wrong with broken ones, MFCCs.

n samples at 16 kHz, T frames (50 Hz)."""
import os
import re

import numpy as np
import soundfile

from engine.files import DataError, check, printable
from rules import HOP, RECEPTIVE_FIELD, SAMPLE_RATE

BLOCK_SECONDS = 600  # decoded at a time
REPLACE = "replace the file, or go on without it by --skip-broken"
MAX_SAMPLES_PER_BYTE = 10_000  # flac reaches 6,000 in digital silence


def decode_audio(task: str, path: str) -> np.ndarray:
    """A whole file as float32 (n,), mono, 16 kHz. DataError if it is broken."""
    expected = header_samples(task, path)
    try:
        # bytes, because soundfile refuses names that are not UTF-8
        with soundfile.SoundFile(os.fsencode(path)) as file:
            wave = read_blocks(file)
    except (OSError, RuntimeError, MemoryError):
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


def mfcc_frames(wave):
    """MFCCs of a wave (n,), a tensor, on exactly the encoder's frames.

    Returns (T, 39): 13 coefficients with their first and second differences over time."""
    import torch
    import torchaudio
    spectrogram = {"n_fft": RECEPTIVE_FIELD, "hop_length": HOP, "center": False, "n_mels": 40}
    mfcc = torchaudio.transforms.MFCC(SAMPLE_RATE, n_mfcc=13, melkwargs=spectrogram)
    static = mfcc(wave)  # (13, T)
    delta = torchaudio.functional.compute_deltas(static)
    return torch.cat([static, delta, torchaudio.functional.compute_deltas(delta)]).T


def header_samples(task: str, path: str) -> int:
    """The samples of a file at 16 kHz, by its header alone. DataError if that shows damage."""
    try:
        if not os.path.isfile(path):  # also a name with a zero byte
            raise FileNotFoundError(path)
        header = soundfile.info(os.fsencode(path))
        size = os.path.getsize(path)
    except (OSError, RuntimeError, ValueError):
        reason = why_unreadable(path)
        raise DataError(f"{task}: no readable audio ({reason}) in {path}; {REPLACE}") from None
    # libsndfile reads a wav that was cut short, and remarks on it only here. Ten digits stand for
    # an unknown size, as in a wav that was written into a pipe.
    cut_short = re.search(r"data : \d{1,9} \(should be", header.extra_info)
    check(not cut_short, f"{task}: only a part of the audio in {path}; {REPLACE}")
    check(header.frames, f"{task}: no audio in {path}; {REPLACE}")
    # a flac that was written into a pipe has no length in its header, and libsndfile cannot read it
    plausible = header.frames <= MAX_SAMPLES_PER_BYTE * size
    check(plausible, f"{task}: no true length in the header of the audio in {path}; write it anew "
          "(flac -d, then flac), or go on without it by --skip-broken")
    return -(-header.frames * SAMPLE_RATE // header.samplerate)


def sample_rate(path: str) -> int:
    """The samples per second of a file that is not broken."""
    return soundfile.info(os.fsencode(path)).samplerate


def why_unreadable(path: str) -> str:
    """What is wrong with a file that libsndfile does not open."""
    if os.path.islink(path) and not os.path.exists(path):
        return f"a link to {os.readlink(path)}, which does not exist"
    if os.path.isdir(path):
        return "it is a folder, not audio"
    if os.path.exists(path) and not os.path.isfile(path):
        return "it is not a regular file"
    try:
        with open(path, "rb") as file:
            start = file.read(24)
    except FileNotFoundError:
        folder, name = os.path.split(os.path.abspath(path))
        stem = os.path.splitext(name)[0]
        for neighbour in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            if os.path.splitext(neighbour)[0] == stem:
                return f"no such file, but {neighbour} lies beside it"
        return "no such file"
    except (OSError, ValueError) as error:
        return (getattr(error, "strerror", None) or str(error)).lower()
    if not start:
        return "an empty file"
    shown = printable(start.decode("utf-8", "backslashreplace"))
    return f"damaged or not audio, it begins with {shown}"

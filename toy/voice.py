"""The voice of the toy data: a source-filter speech synthesiser (Klatt, 1980).

It works in the frequency domain. The source is a train of glottal pulses and noise. The filter is
a cascade of five formants, the resonances of the vocal tract; they distinguish one vowel from
another. Each phoneme has target values for source and formants. Smoothed targets make one phoneme
glide into the next. toy.ini holds the targets, the pronunciations and the emotions.

S segments of an utterance, T frames (10 ms), F = 241 frequency bins, N samples (16 kHz).
"""
import configparser
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from rules import SAMPLE_RATE

VOICE_HOP = SAMPLE_RATE // 100    # a frame is 10 ms, half of HuBERT's; segments are whole frames
# Copies that are VOICE_HOP apart add up to 1.
WINDOW = np.hanning(2 * VOICE_HOP + 1)[:-1].astype(np.float32)
FFT = 3 * VOICE_HOP               # the window, and 10 ms in which the formants decay
FREQUENCIES = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE).astype(np.float32)          # (F,) in Hz
DELAY = np.exp(-2j * np.pi * FREQUENCIES / SAMPLE_RATE).astype(np.complex64)    # (F,): z^-1
BANDWIDTHS = 70, 90, 130, 200, 280      # of the five formants, in Hz
F4, F5 = 3500, 4500                     # in Hz, the same for all phonemes
SPEECH_RMS = 0.025                      # of an average recording: a room's noise is relative to it

LANGUAGE = configparser.ConfigParser()
LANGUAGE.optionxform = str              # keeps capital letters
LANGUAGE.read(Path(__file__).with_name("toy.ini"))
LEXICON = {word: phonemes.split() for word, phonemes in LANGUAGE["lexicon"].items()}
# {phoneme: its one or two targets (1 or 2, 9)} and {emotion: what it adds to a speaker}
PHONEMES = {name: np.array(numbers.split(), float).reshape(-1, 9)
            for name, numbers in LANGUAGE["phones"].items()}
EMOTIONS = {name: [float(number) for number in numbers.split()]
            for name, numbers in LANGUAGE["emotions"].items()}
DURATION, FORMANTS, SOURCE = 0, slice(1, 4), slice(4, 9)    # columns of a target


class Speaker(NamedTuple):
    """A voice."""
    pitch: float                    # semitones above 100 Hz
    pitch_range: float              # factor on the movements of the pitch
    rate: float                     # factor on the speed
    level: float                    # dB
    breath: float                   # noise in the voice, relative to the pulses
    tilt: float                     # slope of the source's spectrum, in 6 dB per octave
    formant_scales: list[float]     # factors on the five formants: vocal tract length, and quirks


class Segment(NamedTuple):
    """A part of an utterance with one target: a phoneme, or half of a stop or diphthong."""
    phoneme: str                    # "sil" is silence
    target: np.ndarray              # (9,), a row of [phones] in toy.ini
    frames: int


class Line(NamedTuple):
    """What one voice says in a clip: the arguments of `speak`."""
    words: str
    speaker: Speaker
    seed: int


class Room(NamedTuple):
    """The acoustics of a recording."""
    gain: float                     # dB
    snr: float                      # signal-to-noise ratio of average speech, in dB
    noise_slope: float              # the noise's spectrum falls with this power of the frequency
    channel_slope: float            # the channel's response rises with this power


class Clip(NamedTuple):
    """The plan of a recording, at least `seconds` long."""
    path: str
    lines: tuple[Line, ...]         # none, one, or two that are spoken at the same time
    room: Room
    seed: int                       # of the noise
    seconds: float


def random_speaker(rng: np.random.Generator) -> Speaker:
    """A new voice, in equal shares a woman's or a man's."""
    pitch, length = (12.5, 1.15) if rng.random() < 0.5 else (2.5, 1.0)
    scales = length * rng.uniform(0.92, 1.08) * rng.uniform(0.93, 1.07, 5)
    return Speaker(pitch=pitch + rng.normal(0, 2.4), pitch_range=rng.uniform(0.6, 1.4),
                   rate=rng.uniform(0.9, 1.25), level=0.0, breath=rng.uniform(0.02, 0.15),
                   tilt=rng.uniform(0.8, 1.4), formant_scales=scales.tolist())


def with_emotion(speaker: Speaker, emotion: str) -> Speaker:
    """The speaker in an emotion of EMOTIONS."""
    pitch, pitch_range, rate, level, breath, tilt = EMOTIONS[emotion]
    return Speaker(speaker.pitch + pitch, speaker.pitch_range + pitch_range, speaker.rate + rate,
                   speaker.level + level, speaker.breath + breath, speaker.tilt + tilt,
                   speaker.formant_scales)


def random_room(rng: np.random.Generator) -> Room:
    """A new room."""
    return Room(gain=rng.uniform(-4, 4), snr=rng.uniform(15, 35), noise_slope=rng.uniform(0, 1),
                channel_slope=rng.uniform(-0.3, 0.3))


def timing(words: str, speaker: Speaker, seed: int) -> list[Segment]:
    """The S segments of an utterance: words of LEXICON, silence at both ends and at each comma."""
    rng = np.random.default_rng(seed)
    silence = PHONEMES["sil"][0]
    rate = speaker.rate * np.exp(rng.normal(0, 0.05))
    segments = [Segment("sil", silence, int(rng.integers(2, 7)))]
    for word in words.split():
        for phoneme in LEXICON.get(word, ()):
            phoneme_rate = rate * np.exp(rng.normal(0, 0.12))
            for target in PHONEMES[phoneme]:
                frames = round(target[DURATION] / 10 / phoneme_rate)
                segments.append(Segment(phoneme, target, max(1, frames)))
        pause = int(rng.integers(15, 50))   # drawn for every word, used at commas only
        if word == ",":
            segments.append(Segment("sil", silence, pause))
    segments.append(Segment("sil", silence, int(rng.integers(3, 9))))
    return segments


def turns(segments: list[Segment]) -> list[tuple[float, float]]:
    """Where speech starts and stops, in seconds: the intervals between the silences."""
    found, start, frame = [], None, 0
    for segment in segments:    # the last one is silence
        if segment.phoneme != "sil" and start is None:
            start = frame
        elif segment.phoneme == "sil" and start is not None:
            found.append((start / 100, frame / 100))
            start = None
        frame += segment.frames
    return found


def speak(words: str, speaker: Speaker, seed: int) -> np.ndarray:
    """Synthesise words of LEXICON, with the segments of `timing`.

    Returns (N,) float32 at 16 kHz. The same arguments give the same samples.
    """
    segments = timing(words, speaker, seed)
    rng = np.random.default_rng((seed, 1))
    targets = _with_formants(segments)                                          # (S, 9)
    tracks = np.repeat(targets, [segment.frames for segment in segments], axis=0)   # (T, 9)
    voice, breath, friction, centre, width = (
        _smooth(tracks[:, SOURCE], 3).T[..., None].astype(np.float32))          # (T, 1) each

    pulses, noise = _source(_pitch(segments, speaker, rng), rng)                # (T, F) each
    # a low cut at 100 Hz, and a roll-off above 500 Hz
    tilt = (1 + (FREQUENCIES / 500) ** 2) ** (-speaker.tilt / 2) * FREQUENCIES / (FREQUENCIES + 100)
    source = tilt * (voice * pulses + 0.3 * (breath + speaker.breath * voice) * noise)
    # friction is made at the lips and teeth, so the formants do not filter it
    distance = (FREQUENCIES - centre * speaker.formant_scales[4]) / width
    hiss = 0.1 * friction * np.exp(-distance ** 2) * noise
    spectrum = _resonate(source, _smooth(tracks[:, FORMANTS], 9), speaker) + hiss

    level = 0.4 * 10 ** ((speaker.level + rng.normal(0, 1)) / 20)
    return level * _overlap_add(spectrum)


def _with_formants(segments: list[Segment]) -> np.ndarray:
    """The targets (S, 9), where silences and HH take the formants of the phoneme that follows."""
    targets = np.stack([segment.target for segment in segments])
    known = [formants for formants in targets[:, FORMANTS] if formants[0] > 0]
    following = known[-1].copy()
    for target in targets[::-1]:
        if target[FORMANTS][0] == 0:
            target[FORMANTS] = following
        following = target[FORMANTS]
    return targets


def _smooth(tracks: np.ndarray, width: int) -> np.ndarray:
    """Tracks (T, K), averaged under a running Hann window of `width` frames: (T, K)."""
    window = np.hanning(width + 2)[1:-1]
    padded = np.pad(tracks, ((width // 2, width // 2), (0, 0)), mode="edge")
    return sliding_window_view(padded, width, axis=0) @ (window / window.sum())


def _pitch(segments: list[Segment], speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """F0 in Hz (T,): the speaker's pitch with accents on stressed vowels, declination, wander."""
    accents = []
    for segment in segments:
        accents += [[float(segment.phoneme[-1] == "1")]] * segment.frames
    accents = np.array(accents)                                                 # (T, 1)
    semitones = (4 * _smooth(accents, 15) + _smooth(rng.normal(0, 1.5, accents.shape), 9))[:, 0]
    semitones = semitones + np.linspace(1, -3, len(semitones))
    return 100 * 2 ** ((semitones * speaker.pitch_range + speaker.pitch + rng.normal(0, 0.7)) / 12)


def _source(f0: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Spectra of glottal pulses at f0 (T,) and of white noise: (T, F) complex64 each."""
    samples = np.arange(VOICE_HOP * len(f0) + VOICE_HOP)
    f0 = np.interp(samples, VOICE_HOP * np.arange(1, len(f0) + 1), f0)
    # a pulse falls on the sample at which a period is complete; this rounding gives natural jitter
    pulses = np.diff(np.floor(np.cumsum(f0) / SAMPLE_RATE), prepend=0)
    noise = rng.standard_normal(len(samples))
    return _spectra(pulses), _spectra(noise)


def _spectra(samples: np.ndarray) -> np.ndarray:
    """Short-time spectra (T, F) of VOICE_HOP * (T + 1) samples."""
    frames = sliding_window_view(samples.astype(np.float32), 2 * VOICE_HOP)
    frames = frames[::VOICE_HOP]    # (T, 2 VOICE_HOP)
    return np.fft.rfft(frames * WINDOW, FFT)


def _resonate(spectrum: np.ndarray, formants: np.ndarray, speaker: Speaker) -> np.ndarray:
    """Filter a spectrum (T, F) with five resonators in a row; formants (T, 3) are F1 to F3 in Hz.

    A resonator at f Hz with bandwidth b has the response (Klatt, 1980)
        (1 - 2 r cos(w) + r^2) / (1 - 2 r cos(w) z^-1 + r^2 z^-2),
    where r = exp(-pi b / SAMPLE_RATE) and w = 2 pi f / SAMPLE_RATE. Its gain is 1 at 0 Hz.
    """
    numerator, denominator = 1, 1
    frequencies = [*formants.T[..., None], F4, F5]                              # (T, 1) or a number
    for frequency, scale, bandwidth in zip(frequencies, speaker.formant_scales, BANDWIDTHS):
        r = float(np.exp(-np.pi * bandwidth / SAMPLE_RATE))
        w = 2 * np.pi / SAMPLE_RATE * frequency * scale
        cosine = 2 * r * np.cos(w).astype(np.float32)
        numerator = numerator * (1 + r**2 - cosine)                             # (T, 1)
        denominator = denominator * (1 + r**2 * DELAY**2 - cosine * DELAY)      # (T, F)
    return spectrum * numerator / denominator


def _overlap_add(spectra: np.ndarray) -> np.ndarray:
    """The signal of short-time spectra (T, F): (VOICE_HOP * T,) float32. Each frame is centred."""
    T = len(spectra)
    parts = np.fft.irfft(spectra, FFT).reshape(T, 3, VOICE_HOP)
    samples = np.zeros((T + 2, VOICE_HOP), np.float32)
    for k in range(3):
        samples[k:k + T] += parts[:, k]
    return samples.ravel()[VOICE_HOP // 2:][:T * VOICE_HOP]


def render(clip: Clip) -> np.ndarray:
    """The sound of a clip: its voices through the channel, with noise and gain: (N,) float32."""
    voices = [speak(*line) for line in clip.lines]
    room = clip.room
    speech = np.zeros(max([round(clip.seconds * SAMPLE_RATE), *map(len, voices)]), np.float32)
    for voice in voices:
        speech[:len(voice)] += voice
    N = len(speech)
    frequencies = np.fft.rfftfreq(N, 1 / SAMPLE_RATE).astype(np.float32)        # (N // 2 + 1,)

    noise_shape = (1 + frequencies / 500) ** -room.noise_slope
    noise_rms = SPEECH_RMS * 10 ** (-room.snr / 20)
    # Each bin of `white` has power 2, so irfft gives noise of power 2 mean(noise_shape^2) / N.
    noise_shape *= noise_rms * (N / 2 / float(np.mean(noise_shape**2))) ** 0.5
    rng = np.random.default_rng(clip.seed)
    white = rng.standard_normal(2 * len(noise_shape), np.float32).view(np.complex64)
    channel = ((frequencies + 100) / 1000) ** room.channel_slope
    mixed = np.fft.irfft(np.fft.rfft(speech) * channel + noise_shape * white, N)
    return np.clip(mixed * 10 ** (room.gain / 20), -1, 1).astype(np.float32)

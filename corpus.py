"""What a corpus is, and how the audio of an utterance is loaded (paper, Section 3.1).

n samples at 16 kHz, F label frames at 100 Hz (SD only), K speakers.
"""
from dataclasses import dataclass

import numpy as np

from engine.audio import decode_audio
from rules import RECEPTIVE_FIELD, voiced_segments


@dataclass(frozen=True)
class Utterance:
    """One input and its answer."""
    id: str                  # unique within its split
    path: str
    target: object           # for the loss: a class (KS SID ER ASV), a class per slot (IC),
                             # symbol ids (PR ASR SF), an array (F, K) of 0 and 1 (SD)
    reference: object        # for the metric: a name (KS SID ER ASV), names (IC), phonemes (PR),
                             # words (ASR), a tagged string (SF), a list of [speaker, start, end],
                             # times in seconds (SD)
    samples: int = 0         # length at 16 kHz (ASV: without silence)
    start: int = 0           # the part of the file that is used, in samples at 16 kHz
    stop: int | None = None


@dataclass(frozen=True)
class Corpus:
    """One split of one task."""
    task: str
    utterances: list[Utterance]
    labels: list                   # what decodes an output: class names, CTC symbols, a list of
                                   # names per slot (IC), columns (SD), training speakers (ASV)
    gain: float = 1.0
    trim: bool = False             # remove silence as sox does
    min_samples: int = RECEPTIVE_FIELD
    crop: int | None = None        # longest input in samples; training draws a random window
    balanced: bool = False         # training draws classes uniformly
    trials: tuple = ()             # ASV dev and test: (label, id, id)
    skipped: tuple[str, ...] = ()  # what was left out and why, one sentence each
    digest: str = ""               # of its content (engine.measure.corpus_digest)

    @property
    def classes(self) -> int | tuple[int, ...]:
        """The number of outputs of the head; one number per slot where there are several slots."""
        if isinstance(self.labels[0], list):
            return tuple(len(names) for names in self.labels)
        return len(self.labels)

    @property
    def lengths(self) -> list[int]:
        """The samples of each utterance that enter the encoder."""
        return [min(u.samples, self.crop or u.samples) for u in self.utterances]


def load_audio(utterance: Utterance, corpus: Corpus, seed=None) -> np.ndarray:
    """The input of an utterance: float32 (n,) at 16 kHz. Raises DataError if the file is broken.

    An utterance longer than corpus.crop is cut to a window. `seed` (an int or several) draws where
    the window starts. Without a seed it starts at 0."""
    wave = decode_audio(corpus.task, utterance.path)[utterance.start:utterance.stop]
    if corpus.trim:
        voiced = [wave[start:stop] for start, stop in voiced_segments(wave, corpus.gain)]
        wave = np.concatenate([wave[:0], *voiced])  # wave[:0]: also when no segment is left
    if corpus.crop and len(wave) > corpus.crop:
        start = 0
        if seed is not None:
            start = np.random.default_rng(seed).integers(len(wave) - corpus.crop + 1)
        wave = wave[start:start + corpus.crop]
    # DIFFERS: sox rounds to 32-bit integers after the gain. We keep floats.
    return wave * np.float32(corpus.gain)

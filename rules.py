"""SUPERB's rules, as pure functions: vocabularies, encoders, decoders, a split, silence (paper, Section 3.1).

They are as in the released s3prl code. n samples at 16 kHz, T labels (100 Hz; diarization only).
"""
import hashlib
import re

import numpy as np

SAMPLE_RATE = 16_000
RECEPTIVE_FIELD, HOP = 400, 320            # HuBERT: receptive field and stride in samples
GAIN = 10 ** (-3 / 20)           # KS, ASV: -3 dB
LABEL_HOP = SAMPLE_RATE // 100   # SD: a label every 10 ms
# ASV: sox's `silence 1 0.1 0.1% -1 0.1 0.1%` takes RMS over 20 ms and runs of 0.1 s; trunc(RMS) has to exceed 0.1 % of
# 2**31 - 1, so the squares in a window have to add up to LOUD_POWER.
RMS_WINDOW, SOX_RUN, LOUD_POWER = SAMPLE_RATE // 50, SAMPLE_RATE // 10, SAMPLE_RATE // 50 * 2_147_484**2

VOWELS = [vowel + stress for vowel in "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split() for stress in "012"]
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
PHONES = ["SIL", "SPN", *sorted(VOWELS + CONSONANTS)]
PR_SYMBOLS = ["<pad>", "<eos>", "<unk>", *PHONES]  # symbol 0 is the CTC blank, here and below, whatever its name
ASR_SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", *"|ETAONIHSRDLUMCWFGYPBVK'XJQZ"]
SF_SYMBOLS = ["<pad>", "<eos>", "<unk>", " ", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]  # and two tags for each slot type
KEYWORDS = "yes no up down left right on off stop go _unknown_ _silence_".split()
SPEAKERS = [f"id{number}" for number in range(10_001, 11_252)]
EMOTIONS = ["neu", "hap", "ang", "sad"]
VOICES = {"train": ("Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"),
          "dev": ("Aditi", "Amy", "Geraint", "Nicole"), "test": ("Brian", "Emma", "Raveena", "Russell")}

def encode(tokens: list[str], symbols: list[str]) -> list[int]:
    """Tokens -> ids. The end of sentence is a token that CTC has to output: in PR, ASR and SF alike."""
    # DIFFERS: the released ASR gives an unseen character the id 32, which its head lacks; ours gives it <unk>
    known = {symbol: id for id, symbol in enumerate(symbols)}
    return [known.get(token, known["<unk>"]) for token in tokens]

def decode_phones(ids: list[int]) -> list[str]:
    """Ids without repeats and blanks -> phones. The end of sentence vanishes wherever it is; below as well."""
    return [PR_SYMBOLS[id] for id in ids if id != 1]

def decode_words(ids: list[int]) -> list[str]:
    """Ids without repeats and blanks -> words."""
    return "".join(ASR_SYMBOLS[id] for id in ids if id != 2).replace("|", " ").split()

def decode_slots(symbols: list[str], ids: list[int]) -> str:
    """Ids without repeats and blanks -> `PLAY B-artist ABBA E-artist`."""
    return "".join(symbols[id] for id in ids if id != 1)

def slot_tokens(words: list[str], slots: list[str]) -> list[str]:
    """PLAY ABBA, O artist -> P L A Y ` ` `B-artist ` A B B A ` E-artist` <eos>.
    Punctuation is skipped, together with (as in SUPERB) a closing tag or an end of sentence that it would bring."""
    tokens, last = [], len(words) - 1
    for i, (word, slot) in enumerate(zip(words, slots)):
        if word not in "?!.,;-":
            opens = slot != "O" and (i == 0 or slots[i - 1] != slot)
            closes = slot != "O" and (i == last or slots[i + 1] != slot)
            tokens += [f"B-{slot} "] * opens + list("AND" if word == "&" else word) + [f" E-{slot}"] * closes
            tokens.append("<eos>" if i == last else " ")
    return tokens

def diarization_labels(turns: list, samples: int) -> np.ndarray:
    """Turns (speaker, start s, end s) -> float32 (T, 2), 1 while they talk; columns in the order of the names."""
    speakers, labels = sorted({turn[0] for turn in turns}), np.zeros((samples // LABEL_HOP, 2), np.float32)
    for speaker, *times in turns:
        start, stop = (round(seconds * SAMPLE_RATE / LABEL_HOP) for seconds in times)
        labels[start:stop, speakers.index(speaker)] = 1
    return labels

def decode_turns(probabilities, threshold: float = 0.5, median: int = 11) -> list:
    """(T, 2) probabilities -> [[speaker, start s, end s], ...]: threshold, then median (zeros beyond the ends)."""
    # DIFFERS: they try ten thresholds and medians on the test set and report the best
    active = np.pad(np.asarray(probabilities) > threshold, ((median // 2, median // 2), (0, 0)))
    smooth = np.lib.stride_tricks.sliding_window_view(active, median, axis=0).sum(-1) > median // 2  # (T, 2)
    edges = [np.flatnonzero(np.diff(column, prepend=False, append=False)).tolist() for column in smooth.T]
    return [[str(k), a / 100, b / 100] for k in (0, 1) for a, b in zip(edges[k][::2], edges[k][1::2])]

def decode_intent(values: list[list[str]], indices) -> list[str]:
    """Three indices -> [action, object, location]."""
    return [names[index] for names, index in zip(values, indices)]

def keyword_split(name: str) -> str:
    """The split of a file, or "discarded", by a hash of the speaker in its name (Speech Commands' own rule)."""
    digest = hashlib.sha1(name.split("_nohash_")[0].encode()).hexdigest()
    percent = int(digest, 16) % 2**27 * 100 / (2**27 - 1)
    return "dev" if percent < 10 else "discarded" if percent < 20 else "train"

def voiced_segments(wave: np.ndarray, gain: float = 1.0) -> list[tuple[int, int]]:
    """The parts [start, stop) of a wave (n,) that sox's silence effect keeps, to the sample.
    A part begins with SOX_RUN loud samples; it ends where SOX_RUN quiet ones follow, and then the RMS window is emptied."""
    # no more of a square matters than LOUD_POWER; up to there float64 holds integers exactly
    squares = np.minimum(np.rint(wave.astype(np.float64) * (gain * 2**31)) ** 2, LOUD_POWER).astype(np.int64)
    power = np.cumsum(squares)  # wraps around, which leaves the differences exact
    power[RMS_WINDOW:] -= power[:-RMS_WINDOW].copy()
    levels = bytearray(np.where(power >= LOUD_POWER, b"L", b"q").tobytes())
    part = re.compile(rb"(?<!L)L{%d}(?:L+|q{1,%d}(?!q))*" % (SOX_RUN, SOX_RUN - 1))
    kept, search = [], 0
    while search < len(wave):
        filling = int((np.cumsum(squares[search:search + RMS_WINDOW]) < LOUD_POWER).sum())  # quiet with an emptied window
        levels[search:search + filling] = b"q" * filling
        match = part.search(levels, search)
        kept += [match.span()] if match else []
        search = match.end() + SOX_RUN if match else len(wave)
    return kept

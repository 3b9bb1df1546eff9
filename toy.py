"""The embedded default data: a speech synthesiser, and a nine-task toy corpus in the folders of the real one.

    python toy.py [--out data/toy] [--seed 0]

A source-filter synthesiser after Klatt (1980), frame by frame in the frequency domain: glottal pulses and noise,
times the response of five formant resonators, overlap-added. Each word is spelled in phones, each phone is one or
two articulatory targets, and smoothing the targets over time gives coarticulation. It stands in for the datasets of
SUPERB (paper, sec. 4.1) where those are not at hand, so the folders and text files are exactly theirs.

    T frames (10 ms), F = 241 frequency bins, N samples (16 kHz)
"""
import argparse
import hashlib
import itertools
import os
import shutil
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

SAMPLE_RATE = 16_000
HOP = SAMPLE_RATE // 100            # a frame is 10 ms, so that every boundary is a multiple of 10 ms
WINDOW = np.hanning(2 * HOP + 1)[:-1].astype(np.float32)    # shifted by HOP it sums to 1
FFT = 3 * HOP                       # the window, and 10 ms in which the resonators ring down
FREQUENCIES = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE).astype(np.float32)  # (F,)
BANDWIDTHS = np.array([70, 90, 130, 200, 280])              # of the five formants, Hz
SPEECH_LEVEL = 0.025                # nominal RMS of speech: what a signal-to-noise ratio refers to

# ---------------------------------------------------------------- phones and words

# F1, F2, F3 in Hz, men's averages after Peterson & Barney (1952)
VOWELS = {name: tuple(map(int, formants.split())) for name, formants in {
    "AA": "730 1090 2440", "AE": "660 1720 2410", "AH": "640 1190 2390", "AO": "570 840 2410", "EH": "530 1840 2480",
    "ER": "490 1350 1690", "IH": "390 1990 2550", "IY": "270 2290 3010", "UH": "440 1020 2240", "UW": "300 870 2240",
}.items()}
DIPHTHONGS = {"AW": ("AA", "UH"), "AY": ("AA", "IH"), "EY": ("EH", "IY"), "OW": ("AO", "UH"), "OY": ("AO", "IH")}
SCHWA = np.array([500, 1500, 2500])

# duration ms, part of it that is a closure, F1 F2 F3 (0: those of the next phone), voice, breath, then frication:
# amplitude, centre Hz, width Hz
CONSONANTS = {row.split()[0]: tuple(map(float, row.split()[1:])) for row in """
    P 95 .6 350 900 2300 0 .3 .5 1000 700 | T 95 .5 350 1750 2700 0 .3 .7 4800 1300 | K 95 .5 350 2000 2400 0 .3 .7 2100 500
    B 75 .7 300 900 2300 .5 0 .3 800 600 | D 65 .6 300 1750 2700 .5 0 .4 4300 1300 | G 75 .6 300 2000 2400 .5 0 .4 1900 500
    CH 130 .4 300 1900 2600 0 0 1. 3800 900 | JH 100 .4 300 1900 2600 .3 0 .6 3600 900 | HH 65 0 0 0 0 0 .6 0 2000 900
    F 100 0 350 1000 2300 0 0 .3 5500 2500 | TH 95 0 350 1400 2600 0 0 .22 6500 1500 | S 110 0 350 1700 2600 0 0 1. 6200 1000
    V 65 0 300 1000 2300 .5 0 .1 5000 2500 | DH 55 0 300 1400 2600 .5 0 .08 6500 1500 | Z 85 0 300 1700 2600 .4 0 .6 6000 1000
    SH 115 0 350 1900 2500 0 0 1. 3500 700 | ZH 85 0 300 1900 2500 .4 0 .6 3300 700 | M 75 0 270 1000 2200 .5 0 0 2000 900
    N 70 0 270 1650 2600 .5 0 0 2000 900 | NG 80 0 270 2200 2750 .5 0 0 2000 900 | L 65 0 360 1100 2750 .7 0 0 2000 900
    R 65 0 350 1150 1550 .7 0 0 2000 900 | W 65 0 300 650 2200 .7 0 0 2000 900 | Y 60 0 270 2250 3000 .7 0 0 2000 900
    """.replace("\n", "|").split("|") if row.strip()}

# pronunciations after CMUdict, except that `to` and `for` are reduced, which tells them from `two` and `four`
LEXICON = {entry.split()[0]: entry.split()[1:] for entry in """
    yes Y EH1 S, no N OW1, up AH1 P, down D AW1 N, left L EH1 F T, right R AY1 T, on AA1 N, off AO1 F, stop S T AA1 P,
    go G OW1, bed B EH1 D, bird B ER1 D, cat K AE1 T, dog D AO1 G, happy HH AE1 P IY0, house HH AW1 S,
    marvin M AA1 R V IH0 N, sheila SH IY1 L AH0, tree T R IY1, wow W AW1, zero Z IH1 R OW0, one W AH1 N, two T UW1,
    three TH R IY1, four F AO1 R, five F AY1 V, six S IH1 K S, seven S EH1 V AH0 N, eight EY1 T, nine N AY1 N,
    the DH AH0, a AH0, and AH0 N D, to T AH0, for F ER0, of AH1 V, in IH0 N, with W IH1 DH, under AH1 N D ER0, at AE1 T,
    he HH IY1, she SH IY1, they DH EY1, saw S AO1, took T UH1 K, heard HH ER1 D, loved L AH1 V D, found F AW1 N D,
    boy B OY1, girl G ER1 L, voice V OY1 S, treasure T R EH1 ZH ER0, water W AO1 T ER0, thing TH IH1 NG, fish F IH1 SH,
    old OW1 L D, big B IH1 G, good G UH1 D, little L IH1 T AH0 L, yellow Y EH1 L OW0, young Y AH1 NG,
    turn T ER1 N, switch S W IH1 CH, please P L IY1 Z, lights L AY1 T S, lamp L AE1 M P, music M Y UW1 Z IH0 K,
    bedroom B EH1 D R UW2 M, kitchen K IH1 CH AH0 N, washroom W AA1 SH R UW2 M, volume V AA1 L Y UW0 M, heat HH IY1 T,
    increase IH0 N K R IY1 S, decrease D IH0 K R IY1 S, bring B R IH1 NG, me M IY1, my M AY1, juice JH UW1 S,
    newspaper N UW1 Z P EY2 P ER0, shoes SH UW1 Z, socks S AA1 K S, change CH EY1 N JH, language L AE1 NG G W AH0 JH,
    chinese CH AY0 N IY1 Z, english IH1 NG G L IH0 SH, german JH ER1 M AH0 N, korean K AO0 R IY1 AH0 N,
    add AE1 D, play P L EY1, put P UH1 T, list L IH1 S T, by B AY1, what W AH1 T, is IH1 Z, weather W EH1 DH ER0,
    will W IH1 L, it IH1 T, rain R EY1 N, book B UH1 K, table T EY1 B AH0 L, give G IH1 V, points P OY1 N T S,
    rate R EY1 T, find F AY1 N D, show SH OW1, when W EH1 N, her HH ER1, our AW1 ER0, jazz JH AE1 Z, party P AA1 R T IY0,
    coffee K AO1 F IY0, rock R AA1 K, morning M AO1 R N IH0 NG, today T AH0 D EY1, tonight T AH0 N AY1 T,
    tomorrow T AH0 M AA1 R OW0, noon N UW1 N, paris P EH1 R IH0 S, london L AH1 N D AH0 N, boston B AO1 S T AH0 N,
    tokyo T OW1 K Y OW0, rome R OW1 M, chicago SH AH0 K AA1 G OW0, madonna M AH0 D AA1 N AH0, bowie B OW1 IY0,
    prince P R IH1 N S, queen K W IY1 N, abba AE1 B AH0, youtube Y UW1 T UW2 B, spotify S P AA1 T AH0 F AY2
    """.split(",")}
NAMES = ("madonna", "bowie", "abba", "youtube", "spotify")    # these go into the second of the two lexicon files

KEYWORDS = "yes no up down left right on off stop go".split()
FILLERS = "bed bird cat dog happy house marvin sheila tree wow zero one two three four five six seven eight nine".split()
SLOTS = "O object_name timeRange city artist playlist playlist_owner rating_value service".split()
INTENTS = "AddToPlaylist BookRestaurant GetWeather PlayMusic RateBook SearchCreativeWork SearchScreeningEvent".split()

# `<symbol>` is replaced by one of the symbol's alternatives; the words under a symbol in SLOTS carry its name
GRAMMAR = {symbol: [form.split() for form in forms.split("|")] for symbol, forms in {
    "story": "<np> <verb> <np> <prep> <np> | <np> and <np> <verb> <np> | <who> <verb> <np> and <verb> <np>",
    "np": "the <noun> | the <adj> <noun> | a <adj> <noun> | my <adj> <adj> <noun> | <number> <noun>",
    "noun": "boy|girl|voice|treasure|water|thing|fish|house|dog|cat|bird|tree|bed|table|newspaper|lamp",
    "adj": "old|big|good|little|yellow|young|happy", "verb": "saw|took|heard|loved|found",
    "prep": "in|with|under|at|by|on", "who": "he|she|they|marvin|sheila", "number": "|".join(FILLERS[10:]),
    "AddToPlaylist": "add <artist> to <playlist_owner> <playlist> list | put <artist> on the <playlist> list",
    "BookRestaurant": "book a table in <city> for <timeRange> | book a table for <number> in <city> <timeRange>",
    "GetWeather": "what is the weather in <city> <timeRange> | will it rain <timeRange> in <city>",
    "PlayMusic": "play <artist> on <service> | play <playlist_owner> <playlist> music on <service>",
    "RateBook": "rate <object_name> <rating_value> | give <rating_value> points to <object_name>",
    "SearchCreativeWork": "find <object_name> on <service> | please show me <object_name>",
    "SearchScreeningEvent": "when is <object_name> on in <city> | find <object_name> for <timeRange>",
    "object_name": "the <adj> <noun> | <adj> <noun> | the <noun> of <city> | <noun> and <noun>",
    "timeRange": "today|tonight|tomorrow|tomorrow morning|noon|today at <number>|tomorrow at <number>",
    "city": "paris|london|boston|tokyo|rome|chicago", "artist": "madonna|bowie|prince|queen|abba|bowie and queen",
    "playlist": "jazz|party|morning coffee|rock|happy rock|coffee jazz", "playlist_owner": "my|her|our|sheila|marvin",
    "rating_value": "|".join(FILLERS[10:16]), "service": "youtube|spotify",
}.items()}

# action: ways to say it, objects (Fluent Speech Commands: 6 actions, 14 objects, 4 locations, 31 intents)
COMMANDS = {
    "activate": (("turn on the", "switch on the"), "lights lamp music"),
    "deactivate": (("turn off the", "switch off the"), "lights lamp music"),
    "increase": (("increase the", "turn up the"), "heat volume"),
    "decrease": (("decrease the", "turn down the"), "heat volume"),
    "bring": (("bring me the", "please bring me my"), "newspaper juice socks shoes"),
    "change language": (("change the language", "please change the language"), "none Chinese English German Korean"),
}
LOCATED = {"lights", "heat"}        # what is in a room
FLUENT = [(action, thing, place) for action, (_, things) in COMMANDS.items() for thing in things.split()
          for place in (("none", "bedroom", "kitchen", "washroom") if thing in LOCATED else ("none",))]


def expand(symbol, rng):
    """A random sentence of the grammar, as a list of (word, slot) pairs; the slot is "O" outside slots."""
    words = []
    for token in GRAMMAR[symbol][rng.integers(len(GRAMMAR[symbol]))]:
        inner = expand(token[1:-1], rng) if token[0] == "<" else [(token, "O")]
        words += [(word, symbol if symbol in SLOTS else slot) for word, slot in inner]
    return words


def command(action, thing, place, rng):
    """The words of one of the 31 intents of Fluent Speech Commands."""
    words = COMMANDS[action][0][rng.integers(2)].split()
    if thing != "none":
        words += ["to", thing.lower()] if action == "change language" else [thing]
    return words + (["in", "the", place] if place != "none" else [])


def story(rng):
    """A read sentence, as words."""
    return [word for word, _ in expand("story", rng)]


# ---------------------------------------------------------------- the synthesiser

@dataclass(frozen=True)
class Speaker:
    """What makes a voice; drawn by `random_speaker`."""
    f0: float                       # Hz
    scale: float                    # of all formants: the inverse of the vocal tract's length
    quirks: tuple                   # of F1 ... F5 apart, around 1
    breath: float                   # noise in the voice
    tilt: float                     # of the voice's spectrum, in 6 dB per octave
    tempo: float
    melody: float                   # the range of pitch


@dataclass(frozen=True)
class Emotion:
    """How an emotion changes a voice: by its pitch, range, rate, energy and timbre."""
    semitones: float = 0.0
    melody: float = 1.0
    tempo: float = 1.0
    decibels: float = 0.0           # nothing downstream normalises the level: energy stays a cue
    breath: float = 0.0
    tilt: float = 0.0


EMOTIONS = {"neutral": Emotion(), "happy": Emotion(3, 1.7, 1.06, 2, 0, -0.1),
            "angry": Emotion(1.5, 1.2, 1.12, 6, 0, -0.3), "sad": Emotion(-1.5, 0.5, 0.84, -5, 0.1, 0.3)}


@dataclass(frozen=True)
class Room:
    """The recording: gain dB, noise (dB below SPEECH_LEVEL, and its colour), slope of the channel's response."""
    gain: float
    noise: float
    colour: float
    slope: float


def random_speaker(rng):
    """A new voice."""
    woman = rng.random() < 0.5
    return Speaker(f0=(205 if woman else 115) * 2 ** rng.normal(0, 0.2),
                   scale=(1.15 if woman else 1.0) * np.exp(rng.normal(0, 0.045)),
                   quirks=tuple(np.exp(rng.normal(0, 0.04, 5))), breath=rng.uniform(0.02, 0.15),
                   tilt=rng.uniform(0.8, 1.4), tempo=rng.uniform(0.88, 1.2), melody=rng.uniform(0.6, 1.4))


def random_room(rng):
    """A new recording: 15 to 35 dB signal-to-noise ratio."""
    return Room(rng.uniform(-4, 4), rng.uniform(15, 35), rng.uniform(0, 1), rng.uniform(-0.3, 0.3))


def _targets(phone):
    """A phone's articulatory targets, in equal-length or closure/release parts: rows of share, F1-F3, voice, breath,
    frication, its centre, its width."""
    name, stress = phone[:2] if phone[-1].isdigit() else phone, phone[-1]
    if name in CONSONANTS:
        _, closed, *formants, voice, breath, noise, centre, width = CONSONANTS[name]
        release = (1 - closed, *formants, voice, breath, noise, centre, width)
        return [release] if not closed else [(closed, *formants, 0.3 * voice, 0, 0, centre, width), release]
    ends = DIPHTHONGS.get(name, (name,))
    formants = [np.array(VOWELS[end]) + (stress == "0") * 0.3 * (SCHWA - VOWELS[end]) for end in ends]
    return [(1 / len(ends), *f, 0.7 if stress == "0" else 1.0, 0, 0, 2000, 900) for f in formants]


def _milliseconds(phone):
    """How long a phone lasts at tempo 1."""
    if phone[-1].isdigit():
        return {"0": 70, "1": 125, "2": 100}[phone[-1]] + 25 * (phone[:2] in DIPHTHONGS)
    return CONSONANTS[phone][0]


def timing(words, speaker, emotion, rng):
    """The phones of an utterance and their frames: a list of (word's place or None, phone or None, frames).
    `,` among the words is a pause of 0.15 to 0.5 s; a short silence is added at both ends."""
    tempo = speaker.tempo * EMOTIONS[emotion].tempo * np.exp(rng.normal(0, 0.05))
    parts = [(None, None, int(rng.integers(2, 7)))]
    for place, word in enumerate(words):
        if word == ",":
            parts.append((None, None, int(rng.integers(15, 50))))
            continue
        for phone in LEXICON[word]:
            frames = _milliseconds(phone) / 10 / tempo * np.exp(rng.normal(0, 0.12))
            parts.append((place, phone, max(2, round(frames))))
    return parts + [(None, None, int(rng.integers(3, 9)))]


def word_times(words, parts):
    """[(word, start s, end s)] of the frames that `timing` gave."""
    ends = np.cumsum([frames for *_, frames in parts]) / 100
    spans = {}
    for (place, _, frames), end in zip(parts, ends):
        if place is not None:
            spans[place] = (words[place], spans[place][1] if place in spans else round(end - frames / 100, 2), round(end, 2))
    return list(spans.values())


def _smooth(tracks, width):
    """Each column of tracks (T, K) averaged under a Hann window of `width` frames: (T, K)."""
    window = np.hanning(width + 2)[1:-1]
    padded = np.pad(tracks, ((width // 2, width // 2), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, width, axis=0) @ (window / window.sum())


def _pulses(f0, rng):
    """A glottal pulse train for f0 (T,) Hz: (T * HOP + HOP,) samples, pulses between the samples shared by two."""
    per_sample = np.interp(np.arange(-HOP // 2, (len(f0) + 0.5) * HOP), (np.arange(len(f0)) + 0.5) * HOP, f0)
    phase = np.cumsum(per_sample) / SAMPLE_RATE
    count = int(phase[-1])
    times = np.interp(np.arange(1, count + 1), phase, np.arange(len(phase)))
    times = times + rng.normal(0, 0.006, count) * SAMPLE_RATE / per_sample[times.astype(int)]      # jitter
    first = np.clip(times.astype(int), 0, len(phase) - 2)
    strength = np.exp(rng.normal(0, 0.06, count))                                              # shimmer
    train = np.zeros(len(phase), dtype=np.float32)
    np.add.at(train, first, strength * (1 - (times - first)))
    np.add.at(train, first + 1, strength * (times - first))
    return train


def _frames(samples):
    """The spectrum of every frame of samples (T * HOP + HOP,): (T, F)."""
    return np.fft.rfft(np.lib.stride_tricks.sliding_window_view(samples, 2 * HOP)[::HOP] * WINDOW, FFT)


def _resonances(formants):
    """The response of five resonators in cascade, gain 1 at 0 Hz, at formants (T, 5) Hz: (T, F) complex."""
    radius = np.exp(-np.pi * BANDWIDTHS / SAMPLE_RATE)
    middle = -2 * radius * np.cos(2 * np.pi * formants / SAMPLE_RATE)
    poles = np.stack([np.ones_like(middle), middle, np.broadcast_to(radius**2, middle.shape)], -1)   # (T, 5, 3)
    product = np.zeros((len(formants), 11), dtype=np.float32)   # the five polynomials multiplied out
    product[:, 0] = 1
    for k in range(5):
        product = sum(np.roll(product, i, axis=1) * poles[:, k, i, None] for i in range(3))
    return product.sum(1, keepdims=True) / np.fft.rfft(product.astype(np.float32), FFT)


def speak(words, speaker, emotion="neutral", rng=None):
    """Say `words` (of LEXICON, or "," for a pause).
    -> samples (N,) float32 at 16 kHz, phones (with stress), [(word, start s, end s)]."""
    rng = rng or np.random.default_rng(0)
    mood, parts = EMOTIONS[emotion], timing(words, speaker, emotion, rng)
    rows, counts = [], []
    for _, phone, frames in parts:
        targets = _targets(phone) if phone else [(1, 0, 0, 0, 0, 0, 0, 2000, 900)]
        first = round(targets[0][0] * frames)
        rows += targets
        counts += [first, frames - first] if len(targets) > 1 else [frames]
    tracks = np.repeat(np.array(rows, dtype=float), counts, axis=0)     # (T, 9)
    stressed = np.repeat([bool(phone) and phone[-1] == "1" for _, phone, _ in parts], [part[2] for part in parts])

    known = np.flatnonzero(tracks[:, 1])    # silences and HH have the formants of what follows
    tracks[:, 1:4] = tracks[known[np.minimum(np.searchsorted(known, np.arange(len(tracks))), len(known) - 1)], 1:4]
    formants = np.hstack([_smooth(tracks[:, 1:4], 9), np.tile([3500, 4500], (len(tracks), 1))])
    formants = np.minimum(formants * speaker.scale * speaker.quirks, 7500)      # (T, 5)
    voice, breath, noise, centre, width = _smooth(tracks[:, 4:], 3).T[..., None].astype(np.float32)

    time = np.linspace(0, 1, len(tracks))
    wander = _smooth(rng.normal(0, 1.5, (len(tracks), 1)), 9)[:, 0]
    melody = 4 * (0.5 - time) + 4 * _smooth(stressed[:, None].astype(float), 15)[:, 0] + wander - 1
    semitones = melody * speaker.melody * mood.melody + mood.semitones + rng.normal(0, 0.7)
    pulses = _frames(_pulses(speaker.f0 * 2 ** (semitones / 12), rng))
    hiss = _frames(0.1 * rng.standard_normal((len(tracks) + 1) * HOP, dtype=np.float32))

    tilt = (1 + (FREQUENCIES / 500) ** 2) ** (-(speaker.tilt + mood.tilt) / 2) * FREQUENCIES / (FREQUENCIES + 100)
    tract = _resonances(formants)
    frication = noise * np.exp(-((FREQUENCIES - centre * speaker.scale**0.5) / width) ** 2)
    spectrum = tract * tilt * (voice * pulses + (breath + (speaker.breath + mood.breath) * voice) * 3 * hiss) + frication * hiss
    pieces = np.fft.irfft(spectrum, FFT).reshape(len(tracks), 3, HOP)
    samples = np.zeros((len(tracks) + 2, HOP), dtype=np.float32)
    for k in range(3):
        samples[k:k + len(tracks)] += pieces[:, k]
    level = 10 ** ((mood.decibels + rng.normal(0, 1)) / 20)
    samples = 0.4 * level * samples.ravel()[HOP // 2:HOP // 2 + len(tracks) * HOP]
    return samples, [phone for _, phone, _ in parts if phone], word_times(words, parts)


def record(speech, room, rng):
    """What a microphone in `room` makes of speech (N,): channel, coloured noise, gain. -> (N,) float32."""
    frequencies = np.fft.rfftfreq(len(speech), 1 / SAMPLE_RATE).astype(np.float32)
    colour = (1 + frequencies / 500) ** -room.colour
    level = SPEECH_LEVEL * 10 ** (-room.noise / 20) / np.sqrt(np.mean(colour**2))
    noise = np.fft.rfft(rng.standard_normal(len(speech), dtype=np.float32)) * (colour * level)
    channel = ((frequencies + 100) / 1000) ** room.slope
    mixed = np.fft.irfft(np.fft.rfft(speech) * channel + noise, len(speech)) * 10 ** (room.gain / 20)
    return np.clip(mixed, -1, 1).astype(np.float32)


def random_words(rng):
    """What somebody in the corpus could say, of any task, or some words in a row."""
    kind = rng.integers(4)
    if kind == 0:
        return story(rng)
    if kind == 1:
        return command(*FLUENT[rng.integers(len(FLUENT))], rng)
    if kind == 2:
        return [word for word, _ in expand(INTENTS[rng.integers(len(INTENTS))], rng)]
    words = [list(LEXICON)[i] for i in rng.integers(len(LEXICON), size=rng.integers(3, 8))]
    return words[:2] + [","] + words[2:] if rng.random() < 0.5 else words


def unlabelled(seconds, seed=0):
    """At least `seconds` of varied speech for pre-training: a list of (N,) float32, 16 kHz."""
    rng, waves, total = np.random.default_rng(seed), [], 0
    while total < seconds * SAMPLE_RATE:
        speaker, room = random_speaker(rng), random_room(rng)
        for _ in range(4):
            speech, _, _ = speak(random_words(rng), speaker, list(EMOTIONS)[rng.integers(4)], rng)
            waves.append(record(speech, room, rng))
            total += len(speech)
    return waves


# ---------------------------------------------------------------- the corpus: first a plan of all clips, then the sound

@dataclass(frozen=True)
class Clip:
    """One sound file: what is said (words, speaker, emotion) by no voice, one, or two at once; where."""
    path: str
    lines: tuple
    room: Room
    seed: int
    seconds: float = 0              # at least


def _clip(rng, path, *lines, room=None, seconds=0.0):
    """A clip with a room (a new one if none is given) and a seed of its own."""
    return Clip(path, lines, room or random_room(rng), int(rng.integers(2**32)), seconds)


def _voice_rng(seed, place):
    """The generator of a clip's voice: seeded apart, so that timing() alone can be had without any sound."""
    return np.random.default_rng((seed, place))


def render(clip):
    """The sound of a clip: (N,) float32."""
    voices = [speak(*line, _voice_rng(clip.seed, k))[0] for k, line in enumerate(clip.lines)]
    speech = np.zeros(max([round(clip.seconds * SAMPLE_RATE)] + [len(voice) for voice in voices]), dtype=np.float32)
    for voice in voices:
        speech[:len(voice)] += voice
    return record(speech, clip.room, np.random.default_rng(clip.seed))


def _name(rng):
    """Eight random hexadecimal digits."""
    return f"{rng.integers(2**32):08x}"


def plan_librispeech(rng, n):
    """PR and ASR: read sentences; -> clips, {text file: lines}."""
    clips = []
    texts = {f"LibriSpeech/librispeech-lexicon-{name}-g2p.txt": [
        f"{word.upper()}\t{' '.join(phones)}" for word, phones in sorted(LEXICON.items()) if (word in NAMES) == rest]
        for name, rest in (("200k", False), ("allothers", True))}
    reader = 100
    for split, readers in (("train-clean-100", 60), ("dev-clean", 10), ("test-clean", 25)):
        for _ in range(n(readers)):
            reader, speaker = reader + 1, random_speaker(rng)
            chapter = f"LibriSpeech/{split}/{reader}/{reader + 120000}/{reader}-{reader + 120000}"
            transcript = texts[f"{chapter}.trans.txt"] = []
            for k in range(10):
                words = story(rng)
                clips.append(_clip(rng, f"{chapter}-{k:04d}.flac", (words, speaker, "neutral")))
                transcript.append(f"{Path(chapter).name}-{k:04d} {' '.join(words).upper()}")
    return clips, texts


def _keyword_speaker(rng, low, high):
    """A speaker's hash, such that the rule that splits Speech Commands gives low <= percentage < high."""
    while True:
        name = _name(rng)
        if low <= int(hashlib.sha1(name.encode()).hexdigest(), 16) % 2**27 * 100 / (2**27 - 1) < high:
            return name


def plan_speech_commands(rng, n):
    """KS: one word a clip. The rule gives validation below 10 %, testing (which SUPERB discards) below 20 %."""
    clips, lists, root = [], {"validation": [], "testing": []}, "speech_commands_v0.01"
    for low, high, speakers, listed in ((20, 101, 50, None), (0, 10, 10, "validation"), (10, 20, 1, "testing")):
        for _ in range(n(speakers)):
            name, speaker = _keyword_speaker(rng, low, high), random_speaker(rng)
            for word in KEYWORDS + [FILLERS[i] for i in rng.permutation(20)[:2]]:
                clips.append(_clip(rng, f"{root}/{word}/{name}_nohash_0.wav", ([word], speaker, "neutral"),
                                   seconds=rng.uniform(0.7, 1)))
                if listed:
                    lists[listed].append(f"{word}/{name}_nohash_0.wav")
    for k in range(6):
        clips.append(_clip(rng, f"{root}/_background_noise_/noise_{k}.wav", seconds=20))
    other = [word for word in LEXICON if word not in KEYWORDS and len(LEXICON[word]) > 2]
    for _ in range(n(42)):
        name, speaker = _name(rng), random_speaker(rng)
        unknown = (FILLERS if rng.random() < 0.5 else other)[rng.integers(20)]
        for word in KEYWORDS + [unknown]:
            path = f"{word}/{name}_nohash_0.wav" if word in KEYWORDS else f"_unknown_/{word}_{name}_nohash_0.wav.wav"
            clips.append(_clip(rng, f"speech_commands_test_set_v0.01/{path}", ([word], speaker, "neutral"),
                               seconds=rng.uniform(0.7, 1)))
        clips.append(_clip(rng, f"speech_commands_test_set_v0.01/_silence_/{name}.wav", seconds=1))
    return clips, {f"{root}/{name}_list.txt": lines for name, lines in lists.items()}


def plan_voxceleb(rng, n):
    """SID and ASV. Every clip is long enough for ASV training, which wants 2 s without silence."""
    clips, split, spoken, first = [], [], {}, {"dev": 10001, "test": 10270}
    for part, people, count, role in (("dev", 40, 31, "identified"), ("dev", 40, 10, "trained"),
                                      ("dev", 8, 10, "veri_dev"), ("test", 20, 11, "veri_test")):
        for _ in range(n(people, 3)):
            name, speaker, videos = f"id{first[part]}", random_speaker(rng), [_name(rng) for _ in range(4)]
            rooms, first[part] = [random_room(rng) for _ in range(4)], first[part] + 1
            for k in range(count):
                video = min(k // (6 if count == 31 else 3), 3)
                path = f"{name}/{videos[video]}/{k + 1:05d}.wav"
                words = []
                while sum(_milliseconds(phone) for word in words for phone in LEXICON[word]) < 2450 * speaker.tempo:
                    words += story(rng)
                    while sum(_milliseconds(phone) for word in words[:-1] for phone in LEXICON[word]) > 2450 * speaker.tempo:
                        words.pop()
                clips.append(_clip(rng, f"VoxCeleb1/{part}/wav/{path}", (words, speaker, "neutral"), room=rooms[video]))
                spoken.setdefault(role, {}).setdefault(name, []).append(path)
                if role == "identified":    # as in VoxCeleb1, the test has a video of its own
                    split.append(f"{3 if video == 3 else 2 if k % 6 == 5 else 1} {path}")
    texts = {"VoxCeleb1/iden_split.txt": split}
    for role, trials in (("veri_dev", 600), ("veri_test", 2000)):
        voices = list(spoken[role].values())
        same = [pair for paths in voices for pair in itertools.combinations(paths, 2)]
        other = [pair for a, b in itertools.combinations(voices, 2) for pair in itertools.product(a, b)]
        texts[f"VoxCeleb1/{role}.txt"] = [
            f"{label} {' '.join(pairs[i])}" for label, pairs in ((1, same), (0, other))
            for i in rng.permutation(len(pairs))[:n(trials // 2, 20)]]
    texts["VoxCeleb1/voxceleb1_test_v2.txt"] = texts["VoxCeleb1/veri_test.txt"]
    return clips, texts


def plan_libri2mix(rng, n):
    """SD: two voices at once, with pauses, so that silence, one voice and overlap all occur."""
    clips, texts, person = [], {}, 1000
    for split, folder, count in (("train", "train-100", 300), ("dev", "dev", 60), ("test", "test", 150)):
        people = {person + k: random_speaker(rng) for k in range(n(count // 5, 4))}
        person += len(people)
        files = {name: [] for name in ("wav.scp", "segments", "utt2spk", "spk2utt", "reco2dur", "rttm")}
        mixtures = {name: [] for name in people}
        for k in range(n(count, 4)):
            pair = [int(name) for name in rng.choice(list(people), 2, replace=False)]
            mix = "_".join(f"{name}-{name + 120000}-{k:04d}" for name in pair)
            lines = []
            for name in pair:
                words = story(rng) + [","] + story(rng)
                cut = int(rng.integers(2, 5))
                lines.append((words[:cut] + [","] + words[cut:11], people[name], "neutral"))
            clip = _clip(rng, f"Libri2Mix/wav16k/max/{folder}/mix_both/{mix}.wav", *lines)
            clips.append(clip)
            frames = []
            for place, (name, line) in enumerate(zip(pair, lines)):
                parts, start = timing(*line, _voice_rng(clip.seed, place)), 0
                frames.append(sum(part[2] for part in parts))
                for silent, run in itertools.groupby(parts, key=lambda part: part[1] is None):
                    stop = start + sum(part[2] for part in run)
                    if not silent:  # DIFFERS: real names lack the speaker, so that two segments can share one
                        segment = f"{name}_{mix}_{10 * start:06d}_{10 * stop:06d}"
                        files["segments"].append(f"{segment} {mix} {start / 100} {stop / 100}")
                        files["utt2spk"].append(f"{segment} {name}")
                        files["rttm"].append("\t".join(map(str, (
                            "SPEAKER", mix, 1, start / 100, (stop - start) / 100, "<NA>", "<NA>", name, "<NA>"))))
                    start = stop
                mixtures[name].append(mix)
            files["wav.scp"].append(f"{mix} {clip.path}")
            files["reco2dur"].append(f"{mix} {max(frames) / 100}")
        files["spk2utt"] = [f"{name} {' '.join(mixes)}" for name, mixes in mixtures.items() if mixes]
        texts |= {f"diarization/{split}/{name}": lines for name, lines in files.items()}
    return clips, texts


def plan_fluent(rng, n):
    """IC: spoken commands; every intent occurs in training."""
    clips, texts, root = [], {}, "fluent_speech_commands_dataset"
    for split, people, count in (("train", 70, 10), ("valid", 12, 10), ("test", 24, 21)):
        table, intents = [",path,speakerId,transcription,action,object,location"], []
        for _ in range(n(people, 4)):
            name, speaker = _name(rng) + _name(rng), random_speaker(rng)
            for _ in range(count):
                intents = intents or [FLUENT[i] for i in rng.permutation(len(FLUENT))]
                intent = intents.pop()
                words, path = command(*intent, rng), f"wavs/speakers/{name}/{_name(rng)}.wav"
                clips.append(_clip(rng, f"{root}/{path}", (words, speaker, "neutral")))
                table.append(f"{len(table) - 1},{path},{name},{' '.join(words).capitalize()},{','.join(intent)}")
        texts[f"{root}/data/{split}_data.csv"] = table
    return clips, texts


def plan_snips(rng, n):
    """SF: sentences and speakers of one split occur in no other."""
    clips, lines, seen = [], [], set()
    for split, names, count in (("train", "Ivy Joanna Joey Justin Kendra Kimberly Matthew Salli", 700),
                                ("valid", "Aditi Amy Geraint Nicole", 120), ("test", "Brian Emma Raveena Russell", 300)):
        people = {name: random_speaker(rng) for name in names.split()}
        for k in range(n(count, 8)):
            intent = INTENTS[rng.integers(len(INTENTS))]
            sentence = expand(intent, rng)
            while tuple(sentence) in seen:
                sentence = expand(intent, rng)
            seen.add(tuple(sentence))
            words, slots = zip(*sentence)
            name = list(people)[k % len(people)]
            clips.append(_clip(rng, f"SNIPS/{split}/{name}-snips-{split}-{k}.wav", (words, people[name], "neutral")))
            lines.append(f"{name}-snips-{split}-{k} BOS {' '.join(words).upper()} EOS\tO {' '.join(slots)} {intent}")
    return clips, {"SNIPS/all.iob.snips.txt": lines, "SNIPS/slots.txt": SLOTS}


def plan_iemocap(rng, n):
    """ER: acted sentences. Unlike the real sessions (two actors each), every dialogue has two voices of its own."""
    clips, texts = [], {}
    moods = {"neu": "neutral", "hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad", "fru": "angry", "xxx": "neutral"}
    chance = np.array([3, 1.5, 1.5, 3, 3]) / 12
    for session, dialogues in enumerate((12, 6, 6, 6, 6), 1):
        for k in range(n(dialogues, 1)):
            name = f"Ses{session:02d}{'FM'[k % 2]}_impro{k + 1:02d}"
            lines = texts[f"IEMOCAP/Session{session}/dialog/EmoEvaluation/{name}.txt"] = [
                "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
            actors = {"F": random_speaker(rng), "M": random_speaker(rng)}
            labels = list(rng.choice(["neu", "hap", "exc", "ang", "sad"], 42 if session == 1 else 30, p=chance)) + ["fru", "xxx"]
            for turn, label in enumerate(labels):
                utterance = f"{name}_{'FM'[turn % 2]}{turn // 2:03d}"
                words = random_words(rng)
                clips.append(_clip(rng, f"IEMOCAP/Session{session}/sentences/wav/{name}/{utterance}.wav",
                                   (words, actors["FM"[turn % 2]], moods[label])))
                lines += [f"[{3 * turn:.4f} - {3 * turn + 2:.4f}]\t{utterance}\t{label}\t[2.5000, 2.5000, 2.5000]",
                          "C-E2:\tOther;\t()", ""]
    return clips, texts


PLANS = (plan_librispeech, plan_speech_commands, plan_voxceleb, plan_libri2mix, plan_fluent, plan_snips, plan_iemocap)


def plan(seed=0, scale=1.0):
    """All clips and all text files {path: lines} of the corpus, nothing rendered yet."""
    rng, clips, texts = np.random.default_rng(seed), [], {}
    for part in PLANS:
        more, files = part(rng, lambda count, least=2: max(round(scale * count), least))
        clips, texts = clips + more, texts | files
    return clips, texts


def _write(clip, root):
    """Render a clip into its file; -> its seconds."""
    path, samples = Path(root, clip.path), render(clip)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.round(samples * 32767).astype(np.int16), SAMPLE_RATE, subtype="PCM_16")
    return len(samples) / SAMPLE_RATE


def write_corpus(root, seed=0, scale=1.0):
    """Write the corpus into the new folder `root`; `scale` shrinks it. -> {dataset: (files, minutes)}."""
    root = Path(root)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty: remove it first, or choose another --out")
    clips, texts = plan(seed, scale)
    partial = root.with_name(f"{root.name}.partial-{os.getpid()}")      # a kill leaves no half corpus
    for path, lines in texts.items():
        Path(partial, path).parent.mkdir(parents=True, exist_ok=True)
        end = "" if path.endswith("slots.txt") else "\n"      # as in the original
        Path(partial, path).write_text("\n".join(lines) + end)
    count, minutes = Counter(), Counter()
    workers = min(os.cpu_count() or 1, 2) if len(clips) > 1000 else 1
    with ProcessPoolExecutor(workers) as pool:
        results = pool.map(_write, clips, [partial] * len(clips), chunksize=32) if workers > 1 else \
            map(_write, clips, [partial] * len(clips))
        for clip, seconds in zip(clips, tqdm(results, total=len(clips), desc="toy corpus", unit="clip")):
            count[clip.path.split("/")[0]] += 1
            minutes[clip.path.split("/")[0]] += seconds / 60
    partial.rename(root)
    return {dataset: (count[dataset], minutes[dataset]) for dataset in count}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="data/toy", help="the folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for dataset, (files, minutes) in write_corpus(arguments.out, arguments.seed).items():
        print(f"{dataset:32}{files:6d} files {minutes:6.1f} minutes")

"""The embedded default data: a speech synthesiser, and a nine-task toy corpus in the folders of the real ones.

    python toy.py [--out data/toy] [--seed 0]

It stands in for the datasets of SUPERB (paper, sec. 4.1) where those are not at hand; folders and text files are theirs.
The voice is a source-filter synthesiser after Klatt (1980), frame by frame in the frequency domain: glottal pulses and
noise times the response of five formants. A phone is one or two targets; smoothing these over time coarticulates.
T frames (10 ms), F = 241 frequency bins, N samples (16 kHz)."""
import argparse
import itertools
import os
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha1
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

SAMPLE_RATE = 16_000
HOP = SAMPLE_RATE // 100                                    # 10 ms: all boundaries are multiples of it
WINDOW = np.hanning(2 * HOP + 1)[:-1].astype(np.float32)    # windows HOP apart add up to 1
FFT = 3 * HOP                                               # the window, then 10 ms for the formants to ring down
FREQUENCIES = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE).astype(np.float32)      # (F,)
BANDWIDTHS = np.array([70, 90, 130, 200, 280])              # of the five formants, Hz
SPEECH_LEVEL = 0.025                                        # nominal RMS, which signal-to-noise ratios refer to

# F1 F2 F3 in Hz: men's averages after Peterson & Barney (1952); diphthongs by their two ends
VOWELS = """AA 730 1090 2440, AE 660 1720 2410, AH 640 1190 2390, AO 570 840 2410, EH 530 1840 2480, ER 490 1350 1690,
    IH 390 1990 2550, IY 270 2290 3010, UH 440 1020 2240, UW 300 870 2240"""
DIPHTHONGS = "AW AA UH, AY AA IH, EY EH IY, OW AO UH, OY AO IH"
# ms, part of it that is a closure, F1 F2 F3 (0: as the next phone), voice, breath, frication and its centre and width in Hz
CONSONANTS = """P 85 .6 350 900 2300 0 .3 .5 1000 700, T 85 .5 350 1750 2700 0 .3 .7 4800 1300,
    K 85 .5 350 2000 2400 0 .3 .7 2100 500, B 65 .7 300 900 2300 .5 0 .3 800 600, D 60 .6 300 1750 2700 .5 0 .4 4300 1300,
    G 65 .6 300 2000 2400 .5 0 .4 1900 500, CH 115 .4 300 1900 2600 0 0 1 3800 900, JH 90 .4 300 1900 2600 .3 0 .6 3600 900,
    F 90 0 350 1000 2300 0 0 .3 5500 2500, TH 85 0 350 1400 2600 0 0 .2 6500 1500, S 100 0 350 1700 2600 0 0 1 6200 1000,
    V 60 0 300 1000 2300 .5 0 .1 5000 2500, DH 50 0 300 1400 2600 .5 0 .1 6500 1500, Z 75 0 300 1700 2600 .4 0 .6 6000 1000,
    SH 100 0 350 1900 2500 0 0 1 3500 700, ZH 75 0 300 1900 2500 .4 0 .6 3300 700, M 65 0 270 1000 2200 .5 0 0 2000 900,
    N 60 0 270 1650 2600 .5 0 0 2000 900, NG 70 0 270 2200 2750 .5 0 0 2000 900, L 60 0 360 1100 2750 .7 0 0 2000 900,
    R 60 0 350 1150 1550 .7 0 0 2000 900, W 60 0 300 650 2200 .7 0 0 2000 900, Y 55 0 270 2250 3000 .7 0 0 2000 900,
    HH 60 0 0 0 0 0 .6 0 2000 900, sil 0 0 0 0 0 0 0 0 2000 900"""
# after CMUdict; `to` and `for` are reduced, which tells them from `two` and `four`
LEXICON = """yes Y EH1 S, no N OW1, up AH1 P, down D AW1 N, left L EH1 F T, right R AY1 T, on AA1 N, off AO1 F,
    stop S T AA1 P, go G OW1, bed B EH1 D, bird B ER1 D, cat K AE1 T, dog D AO1 G, happy HH AE1 P IY0, house HH AW1 S,
    marvin M AA1 R V IH0 N, sheila SH IY1 L AH0, tree T R IY1, wow W AW1, zero Z IH1 R OW0, one W AH1 N, two T UW1,
    three TH R IY1, four F AO1 R, five F AY1 V, six S IH1 K S, seven S EH1 V AH0 N, eight EY1 T, nine N AY1 N,
    the DH AH0, a AH0, and AH0 N D, to T AH0, for F ER0, of AH1 V, in IH0 N, with W IH1 DH, she SH IY1, they DH EY1,
    saw S AO1, took T UH1 K, heard HH ER1 D, loved L AH1 V D, found F AW1 N D, boy B OY1, girl G ER1 L, voice V OY1 S,
    treasure T R EH1 ZH ER0, water W AO1 T ER0, thing TH IH1 NG, fish F IH1 SH, old OW1 L D, big B IH1 G, good G UH1 D,
    yellow Y EH1 L OW0, young Y AH1 NG, turn T ER1 N, switch S W IH1 CH, lights L AY1 T S, lamp L AE1 M P, heat HH IY1 T,
    music M Y UW1 Z IH0 K, bedroom B EH1 D R UW2 M, kitchen K IH1 CH AH0 N, washroom W AA1 SH R UW2 M, me M IY1, my M AY1,
    volume V AA1 L Y UW0 M, increase IH0 N K R IY1 S, decrease D IH0 K R IY1 S, bring B R IH1 NG, juice JH UW1 S,
    newspaper N UW1 Z P EY2 P ER0, shoes SH UW1 Z, socks S AA1 K S, change CH EY1 N JH, language L AE1 NG G W AH0 JH,
    chinese CH AY0 N IY1 Z, english IH1 NG G L IH0 SH, german JH ER1 M AH0 N, korean K AO0 R IY1 AH0 N, add AE1 D,
    play P L EY1, put P UH1 T, list L IH1 S T, what W AH1 T, is IH1 Z, weather W EH1 DH ER0, will W IH1 L, it IH1 T,
    rain R EY1 N, book B UH1 K, table T EY1 B AH0 L, give G IH1 V, points P OY1 N T S, find F AY1 N D, show SH OW1,
    when W EH1 N, her HH ER1, our AW1 ER0, jazz JH AE1 Z, party P AA1 R T IY0, coffee K AO1 F IY0, rock R AA1 K,
    morning M AO1 R N IH0 NG, today T AH0 D EY1, tonight T AH0 N AY1 T, tomorrow T AH0 M AA1 R OW0, at AE1 T,
    paris P EH1 R IH0 S, london L AH1 N D AH0 N, tokyo T OW1 K Y OW0, rome R OW1 M, madonna M AH0 D AA1 N AH0,
    bowie B OW1 IY0, prince P R IH1 N S, queen K W IY1 N, youtube Y UW1 T UW2 B, spotify S P AA1 T AH0 F AY2"""
LEXICON = {word: phones for word, *phones in map(str.split, LEXICON.split(","))}
KEYWORDS, FILLERS = list(LEXICON)[:10], list(LEXICON)[10:30]    # the thirty words of Speech Commands v0.01
SLOTS = "O object_name timeRange city artist playlist playlist_owner rating_value service".split()
INTENTS = "AddToPlaylist BookRestaurant GetWeather PlayMusic RateBook SearchCreativeWork SearchScreeningEvent".split()
GRAMMAR = {     # `<x>` becomes one of x's alternatives, and where x is in SLOTS its words carry that label
    "story": "<np> <verb> <np> <prep> <np>|<np> and <np> <verb> <np>|<who> <verb> <np> and <verb> <np>",
    "turns": "<np> , <np> , <np>|<np> <verb> , <np> , <prep> <np>|<np> , <who> <verb> <np>",    # a comma is a pause
    "np": "the <noun>|the <adj> <noun>|a <adj> <noun>|my <adj> <noun>|<number> <noun>",
    "noun": "boy|girl|voice|treasure|water|thing|fish|house|dog|cat|bird|tree|bed|table|newspaper|lamp",
    "adj": "old|big|good|yellow|young|happy", "verb": "saw|took|heard|loved|found", "prep": "in|with|at|on",
    "who": "she|they|marvin|sheila", "number": "|".join(FILLERS[10:]),
    "AddToPlaylist": "add <artist> to <playlist_owner> <playlist> list|put <artist> on the <playlist> list",
    "BookRestaurant": "book a table in <city> for <timeRange>|book a table for <number> in <city> <timeRange>",
    "GetWeather": "what is the weather in <city> <timeRange>|will it rain <timeRange> in <city>",
    "PlayMusic": "play <artist> on <service>|play <playlist_owner> <playlist> music on <service>",
    "RateBook": "give <object_name> <rating_value> points|give <rating_value> points to <object_name>",
    "SearchCreativeWork": "find <object_name> on <service>|show me <object_name>",
    "SearchScreeningEvent": "when is <object_name> on in <city>|find <object_name> for <timeRange>",
    "object_name": "the <adj> <noun>|<adj> <noun>|the <noun> of <city>|<noun> and <noun>", "service": "youtube|spotify",
    "timeRange": "today|tonight|tomorrow|tomorrow morning|today at <number>|tomorrow at <number>",
    "city": "paris|london|tokyo|rome", "artist": "madonna|bowie|prince|queen|bowie and queen", "rating_value": "<number>",
    "playlist": "jazz|party|morning coffee|rock|happy rock", "playlist_owner": "my|her|our|sheila|marvin",
    "activate": "turn on the|switch on the", "deactivate": "turn off the|switch off the", "bring": "bring me the|bring my",
    "increase": "increase the|turn up the", "decrease": "decrease the|turn down the", "change language": "change language"}
ROOMS, GOODS = ("none", "bedroom", "kitchen", "washroom"), ("newspaper", "juice", "socks", "shoes")
COMMANDS = [(action, thing, room) for actions, things, rooms in (       # Fluent Speech Commands' 31 intents
    (("activate", "deactivate"), ("lights",), ROOMS), (("activate", "deactivate"), ("lamp", "music"), ROOMS[:1]),
    (("increase", "decrease"), ("heat",), ROOMS), (("increase", "decrease"), ("volume",), ROOMS[:1]),
    (("bring",), GOODS, ROOMS[:1]), (("change language",), ("none", "Chinese", "English", "German", "Korean"), ROOMS[:1]))
    for action in actions for thing in things for room in rooms]
# pitch in semitones, range of pitch, rate, level in dB (never normalised away: a cue), breath, spectral tilt
EMOTIONS = {"neutral": (0, 1, 1, 0, 0, 0), "happy": (3, 1.7, 1.06, 2, 0, -0.1), "angry": (1.5, 1.2, 1.12, 6, 0, -0.3),
            "sad": (-1.5, 0.5, 0.84, -5, 0.1, 0.3)}


@dataclass(frozen=True)
class Speaker:
    f0: float                       # Hz
    scale: float                    # of all formants: 1 / length of the vocal tract
    quirks: tuple                   # of the five formants, around 1
    breath: float                   # noise in the voice
    tilt: float                     # of the voice's spectrum, in 6 dB per octave
    tempo: float
    melody: float                   # range of pitch
    level: float = 0.0              # dB


@dataclass(frozen=True)
class Room:
    gain: float                     # dB
    snr: float                      # dB
    colour: float                   # of the noise: 0 white, 1 falls by 6 dB per octave
    slope: float                    # of the channel's response


@dataclass(frozen=True)
class Clip:
    path: str
    lines: tuple                    # who says what: (words, speaker), none, one, or two at once
    room: Room
    seed: int
    seconds: float                  # at least

    def voices(self):
        """The lines with a generator each: timing() then knows where the words are without making any sound."""
        return [(*line, np.random.default_rng((self.seed, k))) for k, line in enumerate(self.lines)]


def random_speaker(rng):
    """A new voice, a woman's or a man's."""
    f0, scale = (205, 1.15) if rng.random() < 0.5 else (115, 1.0)
    return Speaker(f0 * 2 ** rng.normal(0, 0.2), scale * rng.uniform(0.92, 1.08), tuple(rng.uniform(0.93, 1.07, 5)),
                   rng.uniform(0.02, 0.15), rng.uniform(0.8, 1.4), rng.uniform(0.9, 1.25), rng.uniform(0.6, 1.4))


def random_room(rng):
    """A new recording condition."""
    return Room(rng.uniform(-4, 4), rng.uniform(15, 35), rng.uniform(0, 1), rng.uniform(-0.3, 0.3))


def feel(speaker, emotion):
    """The speaker in an emotion."""
    semitones, melody, tempo, level, breath, tilt = EMOTIONS[emotion]
    return replace(speaker, f0=speaker.f0 * 2 ** (semitones / 12), melody=speaker.melody * melody, level=level,
                   tempo=speaker.tempo * tempo, breath=speaker.breath + breath, tilt=speaker.tilt + tilt)


def expand(symbol, rng):
    """A random sentence of the grammar: [(word, label)], label "O" outside slots."""
    words, forms = [], GRAMMAR[symbol].split("|")
    for token in forms[rng.integers(len(forms))].split():
        words += expand(token[1:-1], rng) if token[0] == "<" else [(token, "O")]
    return [(word, symbol) for word, _ in words] if symbol in SLOTS else words


def say(symbol, rng):
    """A random sentence of the grammar as a string."""
    return " ".join(word for word, _ in expand(symbol, rng))


def command(action, thing, room, rng):
    """Words for one of COMMANDS."""
    return say(action, rng) + (f" {thing.lower()}" if thing != "none" else "") + (f" in the {room}" if room != "none" else "")


def any_words(rng):
    """What is said in any of the tasks."""
    kind = rng.integers(4)
    if kind == 0:
        return " ".join(rng.choice(list(LEXICON), rng.integers(3, 8)))
    return command(*COMMANDS[rng.integers(31)], rng) if kind == 1 else say(["story", *INTENTS][rng.integers(8)], rng)


# ---------------------------------------------------------------- the synthesiser

def _phones():
    """{phone: (ms, rows of [part of it, F1, F2, F3, voice, breath, frication, centre, width])}"""
    table, schwa = {}, np.array([500, 1500, 2500])
    for name, *numbers in map(str.split, CONSONANTS.split(",")):
        ms, closed, f1, f2, f3, voice, *noise, centre, width = map(float, numbers)
        closure = [[closed, f1, f2, f3, 0.3 * voice, 0, 0, centre, width]] if closed else []
        table[name] = ms, closure + [[1 - closed, f1, f2, f3, voice, *noise, centre, width]]
    targets = {name: np.array(formants, float) for name, *formants in map(str.split, VOWELS.split(","))}
    ends = {name: (name,) for name in targets} | {name: pair for name, *pair in map(str.split, DIPHTHONGS.split(","))}
    for (name, pair), (stress, ms, voice, reduced) in itertools.product(
            ends.items(), (("0", 65, 0.7, 0.3), ("1", 110, 1, 0), ("2", 90, 1, 0))):
        rows = [[1 / len(pair), *(targets[end] + reduced * (schwa - targets[end])), voice, 0, 0, 2000, 900] for end in pair]
        table[name + stress] = ms + 25 * (len(pair) - 1), rows
    return table


PHONES = _phones()


def timing(words, speaker, rng):
    """[(phone or "sil", frames)] of an utterance: silence at both ends, 0.15 to 0.5 s of it at a comma."""
    tempo, parts = speaker.tempo * np.exp(rng.normal(0, 0.05)), [("sil", int(rng.integers(2, 7)))]
    for word in words.split():
        for phone in LEXICON.get(word, ()):
            parts.append((phone, max(2, round(PHONES[phone][0] / 10 / tempo * np.exp(rng.normal(0, 0.12))))))
        parts += [("sil", int(rng.integers(15, 50)))] if word == "," else []
    return parts + [("sil", int(rng.integers(3, 9)))]


def _smooth(tracks, width):
    """Tracks (T, K) under a running Hann window: (T, K)."""
    window = np.hanning(width + 2)[1:-1] / np.hanning(width + 2).sum()
    padded = np.pad(tracks, ((width // 2, width // 2), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, width, axis=0) @ window


def _pulses(f0, rng):
    """Glottal pulses at f0 (T,) Hz, with jitter and shimmer: ((T + 1) * HOP,) samples."""
    f0 = np.interp(np.arange(-HOP // 2, (len(f0) + 0.5) * HOP), (np.arange(len(f0)) + 0.5) * HOP, f0)
    cycles = np.cumsum(f0) / SAMPLE_RATE
    times = np.interp(np.arange(1, int(cycles[-1])), cycles, np.arange(len(cycles)))
    times = np.maximum(times + rng.normal(0, 0.006, len(times)) * SAMPLE_RATE / f0[times.astype(int)], 0)
    strength, train, before = np.exp(rng.normal(0, 0.06, len(times))), np.zeros(len(f0)), times.astype(int)
    np.add.at(train, before, strength * (1 - times + before))       # a pulse between two samples goes to both
    np.add.at(train, before + 1, strength * (times - before))
    return train.astype(np.float32)


def _spectra(samples):
    """The spectra of the windows of samples ((T + 1) * HOP,): (T, F)."""
    return np.fft.rfft(np.lib.stride_tricks.sliding_window_view(samples, 2 * HOP)[::HOP] * WINDOW, FFT)


def _tract(formants):
    """The response of five resonators in cascade at formants (T, 5) Hz, 1 at 0 Hz: (T, F)."""
    radius = np.exp(-np.pi * BANDWIDTHS / SAMPLE_RATE)
    middle = -2 * radius * np.cos(2 * np.pi * formants / SAMPLE_RATE)
    poles = np.zeros((len(formants), 11))       # the product of the five polynomials 1 + middle / z + radius**2 / z**2
    poles[:, 0] = 1
    for k in range(5):
        poles[:, 2:] += middle[:, k:k + 1] * poles[:, 1:-1] + radius[k] ** 2 * poles[:, :-2]
    return poles.sum(1, keepdims=True).astype(np.float32) / np.fft.rfft(poles.astype(np.float32), FFT)


def speak(words, speaker, rng):
    """`words` of LEXICON (a comma is a pause) -> samples (N,) float32, 16 kHz, and timing()'s [(phone, frames)]."""
    parts = timing(words, speaker, rng)
    rows, counts = [], []
    for phone, frames in parts:
        rows += PHONES[phone][1]
        first = round(rows[-len(PHONES[phone][1])][0] * frames)
        counts += [first, frames - first] if len(PHONES[phone][1]) == 2 else [frames]
    tracks = np.repeat(np.array(rows), counts, axis=0)                          # (T, 9)
    known = np.flatnonzero(tracks[:, 1])        # silences and HH have the formants of what follows
    tracks[:, 1:4] = tracks[known[np.searchsorted(known[:-1], np.arange(len(tracks)))], 1:4]
    formants = np.hstack([_smooth(tracks[:, 1:4], 9), np.tile([3500, 4500], (len(tracks), 1))])
    formants = np.minimum(formants * speaker.scale * speaker.quirks, 7500)      # (T, 5)
    voice, breath, frication, centre, width = _smooth(tracks[:, 4:], 3).T[..., None].astype(np.float32)     # (T, 1)

    accents = np.repeat([phone[-1] == "1" for phone, _ in parts], [frames for _, frames in parts])[:, None]
    wander = _smooth(rng.normal(0, 1.5, (len(tracks), 1)), 9)
    melody = np.linspace(1, -3, len(tracks)) + (4 * _smooth(accents * 1.0, 15) + wander)[:, 0]      # semitones
    pulses = _spectra(_pulses(speaker.f0 * 2 ** ((melody * speaker.melody + rng.normal(0, 0.7)) / 12), rng))
    hiss = _spectra(rng.standard_normal((len(tracks) + 1) * HOP, dtype=np.float32))

    tilt = (1 + (FREQUENCIES / 500) ** 2) ** (-speaker.tilt / 2) * FREQUENCIES / (FREQUENCIES + 100)
    source = voice * pulses + 0.3 * (breath + speaker.breath * voice) * hiss
    noise = 0.1 * frication * np.exp(-((FREQUENCIES - centre * speaker.scale) / width) ** 2)
    frames = np.fft.irfft(source * tilt * _tract(formants) + noise * hiss, FFT).reshape(len(tracks), 3, HOP)
    samples = np.zeros((len(tracks) + 2, HOP), dtype=np.float32)
    for k in range(3):
        samples[k:k + len(tracks)] += frames[:, k]
    level = 0.4 * 10 ** ((speaker.level + rng.normal(0, 1)) / 20)
    return level * samples.ravel()[HOP // 2:HOP // 2 + len(tracks) * HOP], parts


def record(speech, room, rng):
    """What a microphone makes of speech (N,): the channel, noise, the gain. -> (N,) float32."""
    frequencies = np.fft.rfftfreq(len(speech), 1 / SAMPLE_RATE).astype(np.float32)
    colour = (1 + frequencies / 500) ** -room.colour
    noise = colour * (rng.standard_normal((len(colour), 2), dtype=np.float32) @ np.array([1, 1j], np.complex64))
    noise *= SPEECH_LEVEL * 10 ** (-room.snr / 20) * (len(speech) / 2 / np.mean(colour**2)) ** 0.5
    mixed = np.fft.irfft(np.fft.rfft(speech) * ((frequencies + 100) / 1000) ** room.slope + noise, len(speech))
    return np.clip(mixed * 10 ** (room.gain / 20), -1, 1)


def unlabelled(seconds, seed=0):
    """At least `seconds` of varied speech to pre-train on: a list of (N,) float32, 16 kHz."""
    rng, waves, total = np.random.default_rng(seed), [], 0
    while total < seconds * SAMPLE_RATE:
        if len(waves) % 4 == 0:
            speaker, room = random_speaker(rng), random_room(rng)
        speech, _ = speak(any_words(rng), feel(speaker, rng.choice(list(EMOTIONS))), rng)
        waves.append(record(speech, room, rng))
        total += len(speech)
    return waves


# ---------------------------------------------------------------- the corpus: clips to render, lines of text files

def _clip(rng, path, *lines, room=None, seconds=0.0):
    return Clip(path, lines, room or random_room(rng), int(rng.integers(2**32)), seconds)


def _hex(rng):
    """A random name."""
    return f"{rng.integers(2**32):08x}"


def _librispeech(rng, n):
    """PR and ASR: read sentences."""
    for word, phones in sorted(LEXICON.items()):    # which of the two lexicon files a word is in does not matter
        file = f"LibriSpeech/librispeech-lexicon-{'allothers' if word > 'w' else '200k'}-g2p.txt"
        yield file, f"{word.upper()}\t{' '.join(phones)}"
    reader = itertools.count(101)
    for split, readers in (("train-clean-100", 60), ("dev-clean", 10), ("test-clean", 25)):
        for name, speaker in [(next(reader), random_speaker(rng)) for _ in range(n(readers, 2))]:
            for k in range(n(10, 4)):
                chapter, words = f"LibriSpeech/{split}/{name}/{name}00/{name}-{name}00", say("story", rng)
                yield _clip(rng, f"{chapter}-{k:04d}.flac", (words, speaker))
                yield f"{chapter}.trans.txt", f"{name}-{name}00-{k:04d} {words.upper()}"


def _speech_commands(rng, n):
    """KS: one word a clip; SUPERB splits by a hash of the speaker's name: < 10 valid, < 20 not used, else train."""
    for low, high, speakers in ((20, 101, 50), (0, 10, 10), (10, 20, 1)):
        for _ in range(n(speakers, 1)):
            speaker, name = random_speaker(rng), _hex(rng)
            while not low <= int(sha1(name.encode()).hexdigest(), 16) % 2**27 * 100 / (2**27 - 1) < high:
                name = _hex(rng)
            for word in [*KEYWORDS, *rng.choice(FILLERS, 2, replace=False)]:
                path = f"{word}/{name}_nohash_0.wav"
                yield _clip(rng, f"speech_commands_v0.01/{path}", (word, speaker), seconds=rng.uniform(0.7, 1))
                if low < 20:
                    yield f"speech_commands_v0.01/{'testing' if low else 'validation'}_list.txt", path
    for k in range(n(6, 2)):
        yield _clip(rng, f"speech_commands_v0.01/_background_noise_/noise_{k}.wav", seconds=20.0)
    rest = [word for word, phones in LEXICON.items() if word not in KEYWORDS and len(phones) > 2]
    for _ in range(n(42, 1)):
        speaker, name = random_speaker(rng), _hex(rng)
        for word in [*KEYWORDS, rng.choice(rest)]:      # half of these unknown words do not occur in training
            path = f"{word}/{name}_nohash_0.wav" if word in KEYWORDS else f"_unknown_/{word}_{name}_nohash_0.wav.wav"
            yield _clip(rng, f"speech_commands_test_set_v0.01/{path}", (word, speaker), seconds=rng.uniform(0.7, 1))
        yield _clip(rng, f"speech_commands_test_set_v0.01/_silence_/{name}.wav", seconds=1.0)


def _voxceleb(rng, n):
    """SID and ASV: five videos a speaker, each recorded in its own way; speakers of the trials are in no training set."""
    ids = {"dev": itertools.count(10001), "test": itertools.count(10270)}
    for part, speakers, count, trials, file in (("dev", 40, 33, 0, "iden_split.txt"), ("dev", 40, 10, 0, ""),
            ("dev", 8, 10, 600, "veri_dev.txt"), ("test", 20, 11, 2000, "veri_test.txt")):
        paths = []
        for _ in range(n(speakers, 3)):
            name, speaker = f"id{next(ids[part])}", random_speaker(rng)
            videos = [(_hex(rng), random_room(rng)) for _ in range(5)]
            paths.append([])
            for k in range(n(count, 8)):
                words, video = say("story", rng), 5 * k // n(count, 8)
                while sum(PHONES[p][0] for word in words.split() for p in LEXICON[word]) < 2400 * speaker.tempo:
                    words += f" {say('np', rng)}"       # ASV trains on what is longer than 2 s without its silence
                path = f"{name}/{videos[video][0]}/{k:05d}.wav"
                paths[-1].append(path)
                yield _clip(rng, f"VoxCeleb1/{part}/wav/{path}", (words, speaker), room=videos[video][1])
                if file == "iden_split.txt":            # 1 train, 2 dev, 3 test, which has its own videos as in VoxCeleb1
                    yield f"VoxCeleb1/{file}", f"{3 if video > 2 else 2 if k % 6 == 1 else 1} {path}"
        same = [pair for own in paths for pair in itertools.combinations(own, 2)]
        other = [pair for two in itertools.combinations(paths, 2) for pair in itertools.product(*two)]
        for label, pairs in ((1, same), (0, other)) if trials else ():
            for i in rng.permutation(len(pairs))[:n(trials // 2, 20)]:
                for copy in {file, file.replace("veri_test", "voxceleb1_test_v2")}:
                    yield f"VoxCeleb1/{copy}", f"{label} {' '.join(pairs[i])}"


def _libri2mix(rng, n):
    """SD: two voices at once, with pauses; Kaldi-style files."""
    person = itertools.count(1001)
    for split, part, count in (("train", "train-100", 300), ("dev", "dev", 60), ("test", "test", 150)):
        people, kaldi = {next(person): random_speaker(rng) for _ in range(n(count // 5, 4))}, f"diarization/{split}"
        mixtures = defaultdict(list)
        for k in range(n(count, 6)):
            pair = [int(name) for name in rng.choice(list(people), 2, replace=False)]
            mix, frames = "_".join(f"{name}-{name}00-{k:04d}" for name in pair), []
            clip = _clip(rng, f"Libri2Mix/wav16k/max/{part}/mix_both/{mix}.wav",
                         *[(say("turns", rng), people[name]) for name in pair])
            yield clip
            for name, voice in zip(pair, clip.voices()):
                stop = 0
                for silent, run in itertools.groupby(timing(*voice), key=lambda part: part[0] == "sil"):
                    start, stop = stop, stop + sum(count for _, count in run)
                    if not silent:      # DIFFERS: the real ids lack the speaker, so that two segments may share one
                        segment = f"{name}_{mix}_{10 * start:06d}_{10 * stop:06d}"
                        yield f"{kaldi}/segments", f"{segment} {mix} {start / 100} {stop / 100}"
                        yield f"{kaldi}/utt2spk", f"{segment} {name}"
                        yield f"{kaldi}/rttm", "\t".join(("SPEAKER", mix, "1", f"{start / 100}", f"{(stop - start) / 100}",
                                                          "<NA>", "<NA>", str(name), "<NA>"))
                frames.append(stop)
                mixtures[name].append(mix)
            yield f"{kaldi}/wav.scp", f"{mix} {clip.path}"
            yield f"{kaldi}/reco2dur", f"{mix} {max(frames) / 100}"
        for name, mixes in mixtures.items():
            yield f"{kaldi}/spk2utt", f"{name} {' '.join(mixes)}"


def _fluent(rng, n):
    """IC: spoken commands."""
    for split, speakers, count in (("train", 70, 10), ("valid", 12, 10), ("test", 24, 21)):
        file, turn = f"fluent_speech_commands_dataset/data/{split}_data.csv", itertools.count()
        yield file, ",path,speakerId,transcription,action,object,location"
        for name, speaker in [(_hex(rng), random_speaker(rng)) for _ in range(n(speakers, 4))]:
            for k in range(count):
                row = next(turn)
                intent, path = COMMANDS[row * 12 % 31], f"wavs/speakers/{name}/{_hex(rng)}.wav"     # all intents in turn
                words = command(*intent, rng)
                yield _clip(rng, f"fluent_speech_commands_dataset/{path}", (words, speaker))
                yield file, f"{row},{path},{name},{words.capitalize()},{','.join(intent)}"


def _snips(rng, n):
    """SF: neither a sentence nor a speaker occurs in two splits."""
    yield from (("SNIPS/slots.txt", slot) for slot in SLOTS)
    seen = set()
    for split, names, count in (("train", "Ivy Joanna Joey Justin Kendra Kimberly Matthew Salli", 700),
                                ("valid", "Aditi Amy Geraint Nicole", 120), ("test", "Brian Emma Raveena Russell", 300)):
        people = [(name, random_speaker(rng)) for name in names.split()]
        for k in range(n(count, 8)):
            words = None
            while words is None or words in seen:
                intent = rng.choice(INTENTS)
                words, slots = map(" ".join, zip(*expand(intent, rng)))
            seen.add(words)
            name, speaker = people[k % len(people)]
            yield _clip(rng, f"SNIPS/{split}/{name}-snips-{split}-{k}.wav", (words, speaker))
            yield "SNIPS/all.iob.snips.txt", f"{name}-snips-{split}-{k} BOS {words.upper()} EOS\tO {slots} {intent}"


def _iemocap(rng, n):
    """ER: emotions, acted. Unlike in IEMOCAP, where a session has two actors, each dialogue has two voices of its own."""
    kinds = {"neu": "neutral", "hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad", "fru": "angry", "xxx": "neutral"}
    for session in range(1, 6):
        for dialogue in range(n(12 if session == 1 else 6, 2)):
            name = f"Ses{session:02d}{'FM'[dialogue % 2]}_impro{dialogue + 1:02d}"
            file, actors = f"IEMOCAP/Session{session}/dialog/EmoEvaluation/{name}.txt", [random_speaker(rng) for _ in "FM"]
            yield file, "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"
            labels = rng.choice(["neu", "hap", "exc", "ang", "sad"], n(42 if session == 1 else 30, 8), p=(.25, .125, .125, .25, .25))
            for turn, label in enumerate([*labels, "fru", "xxx"]):
                utterance = f"{name}_{'FM'[turn % 2]}{turn // 2:03d}"
                yield _clip(rng, f"IEMOCAP/Session{session}/sentences/wav/{name}/{utterance}.wav",
                            (any_words(rng), feel(actors[turn % 2], kinds[label])))
                yield file, f"[{3 * turn:.4f} - {3 * turn + 2:.4f}]\t{utterance}\t{label}\t[2.5000, 2.5000, 2.5000]\n"


def plan(seed=0, scale=1.0):
    """All clips, and {text file: its lines}; nothing is rendered yet. `scale` shrinks all counts."""
    rng, clips, texts = np.random.default_rng(seed), [], defaultdict(list)
    for dataset in (_librispeech, _speech_commands, _voxceleb, _libri2mix, _fluent, _snips, _iemocap):
        for item in dataset(rng, lambda count, least: max(round(scale * count), min(count, least))):
            if isinstance(item, Clip):
                clips.append(item)
            else:
                texts[item[0]].append(item[1])
    return clips, texts


def render(clip):
    """The sound of a clip: (N,) float32."""
    voices = [speak(*voice)[0] for voice in clip.voices()]
    speech = np.zeros(max([len(voice) for voice in voices] + [round(clip.seconds * SAMPLE_RATE)]), np.float32)
    for voice in voices:
        speech[:len(voice)] += voice
    return record(speech, clip.room, np.random.default_rng(clip.seed))


def _write(root, clip):
    """Render a clip into its file; returns its dataset and minutes."""
    path, samples = Path(root, clip.path), render(clip)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.round(samples * 32767).astype(np.int16), SAMPLE_RATE)
    return clip.path.split("/")[0], len(samples) / SAMPLE_RATE / 60


def write_corpus(root, seed=0, scale=1.0):
    """Write the corpus into the new folder `root`; -> {dataset: (files, minutes)}. The same seed gives the same bytes."""
    root = Path(root)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty: remove it, or choose another folder")
    clips, texts = plan(seed, scale)
    partial = root.with_name(f"{root.name}.partial-{os.getpid()}")     # a kill leaves no half corpus behind in `root`
    for name, lines in texts.items():
        Path(partial, name).parent.mkdir(parents=True, exist_ok=True)
        Path(partial, name).write_text("\n".join(lines) + "\n" * (name != "SNIPS/slots.txt"))   # as in the original
    files, minutes = Counter(), Counter()
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 2)) as pool:
        spread = pool.map if len(clips) > 1000 and os.cpu_count() > 1 else map
        for dataset, length in tqdm(spread(_write, [partial] * len(clips), clips, **({"chunksize":32} if spread is not map else {})), total=len(clips), desc="toy corpus"):
            files[dataset] += 1
            minutes[dataset] += length
    partial.rename(root)
    return {dataset: (files[dataset], minutes[dataset]) for dataset in files}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="data/toy", help="a new folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args()
    for dataset, (files, minutes) in write_corpus(options.out, options.seed).items():
        print(f"{dataset:32}{files:6d} files {minutes:6.1f} minutes")

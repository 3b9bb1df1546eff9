"""The embedded default data: a speech synthesiser, and a nine-task toy corpus in the folders of the real ones.

    python -m toy.synthesis [--out data/toy] [--seed 0]

It stands in for the data of SUPERB (paper, sec. 3.1). The voice is a source and a filter (Klatt, 1980), frame by frame
in the frequency domain: the pulses of the vocal folds and noise, times the response of five formants, the resonances
of mouth and throat, which tell one vowel from another. Phones are targets for the formants, and smoothing makes one
glide into the next. What there is to say, and how it sounds, is in toy.ini.

T frames (10 ms), F = 241 frequency bins, N samples (16 kHz)."""
import argparse
import configparser
import itertools
import os
from collections import defaultdict, namedtuple
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha1
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

SAMPLE_RATE = 16_000
HOP = SAMPLE_RATE // 100                                    # a frame is 10 ms, and all boundaries are multiples of it
WINDOW = np.hanning(2 * HOP + 1)[:-1].astype(np.float32)    # adds up to 1 when shifted by HOP
FFT = 3 * HOP                                               # the window, then 10 ms in which the formants ring down
FREQUENCIES = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE).astype(np.float32)          # (F,)
DELAY = np.exp(-2j * np.pi * FREQUENCIES / SAMPLE_RATE).astype(np.complex64)    # (F,) of one sample: z ** -1

LANGUAGE = configparser.ConfigParser()
LANGUAGE.optionxform = str                                  # keeps capitals
LANGUAGE.read(Path(__file__).with_name("toy.ini"))
PHONES = {phone: np.array(rows.split(), float).reshape(-1, 9) for phone, rows in LANGUAGE["phones"].items()}
EMOTIONS = {name: np.array(numbers.split(), float).tolist() for name, numbers in LANGUAGE["emotions"].items()}
LEXICON = {word: phones.split() for word, phones in LANGUAGE["lexicon"].items()}
INTENTS, SLOTS, COMMANDS = (list(LANGUAGE[part]) for part in ("intents", "slots", "commands"))
GRAMMAR = {symbol: [form.split() for form in forms.split("|")]
           for part in ("sentences", "intents", "slots", "commands") for symbol, forms in LANGUAGE[part].items()}
SAYINGS = 10 * ["story", "words"] + 3 * INTENTS + COMMANDS  # what is said anywhere in the corpus

# pitch: semitones above 100 Hz, and the range of their melody; level: dB; breath: noise in the voice; tilt: of its
# spectrum, in 6 dB per octave; scale: of each of the five formants (1 / the length of the vocal tract, and quirks)
Speaker = namedtuple("Speaker", "pitch melody rate level breath tilt scale")
# a sound file to be, at least `seconds` long; voices: ((words, speaker, seed), ...), none, one, or two at once
Clip = namedtuple("Clip", "path voices room seed seconds")

def random_speaker(rng):
    """A new voice, a woman's or a man's."""
    pitch, length = (12.5, 1.15) if rng.random() < 0.5 else (2.5, 1.0)
    scale = (length * rng.uniform(0.92, 1.08) * rng.uniform(0.93, 1.07, 5)).tolist()
    return Speaker(pitch + rng.normal(0, 2.4), rng.uniform(0.6, 1.4), rng.uniform(0.9, 1.25), 0.0,
                   rng.uniform(0.02, 0.15), rng.uniform(0.8, 1.4), scale)

def feel(speaker, emotion):
    """The speaker in an emotion of EMOTIONS."""
    return Speaker(*[own + more for own, more in zip(speaker, EMOTIONS[emotion])], speaker.scale)

def random_room(rng):
    """Gain and signal-to-noise ratio of a recording in dB; exponents of the colour of its noise and of its channel."""
    return rng.uniform(-4, 4), rng.uniform(15, 35), rng.uniform(0, 1), rng.uniform(-0.3, 0.3)

def expand(symbol, rng):
    """A random sentence of GRAMMAR: its words, and their slots ("O": none), both joined by spaces."""
    words, slots = [], []
    for token in GRAMMAR[symbol][rng.integers(len(GRAMMAR[symbol]))]:
        inner = expand(token[1:-1], rng) if token[0] == "<" else (token, "O")
        words.append(inner[0])
        slots += [symbol if symbol in SLOTS else slot for slot in inner[1].split()]
    return " ".join(words), " ".join(slots)

def timing(words, speaker, seed):
    """[(phone, its target, frames)] of words of LEXICON; "sil" is silence: at both ends and, longer, at a comma."""
    rng, silence = np.random.default_rng(seed), PHONES["sil"][0]
    rate, parts = speaker.rate * np.exp(rng.normal(0, 0.05)), [("sil", silence, int(rng.integers(2, 7)))]
    for word in words.split():
        for phone in LEXICON.get(word, ()):
            rushed = rate * np.exp(rng.normal(0, 0.12))
            parts += [(phone, target, max(1, round(target[0] / 10 / rushed))) for target in PHONES[phone]]
        parts += [("sil", silence, int(rng.integers(15, 50)))] * (word == ",")
    return parts + [("sil", silence, int(rng.integers(3, 9)))]

def _smooth(tracks, width):
    """Tracks (T, K) under a running Hann window of `width` frames: (T, K)."""
    window = np.hanning(width + 2)[1:-1]
    padded = np.pad(tracks, ((width // 2, width // 2), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, width, axis=0) @ (window / window.sum())

def speak(words, speaker, seed):
    """Say words of LEXICON (a comma is a pause), with the boundaries of `timing`: (N,) float32 at 16 kHz."""
    rng, (phones, targets, frames) = np.random.default_rng((seed, 1)), zip(*timing(words, speaker, seed))
    tracks = np.repeat(targets, frames, axis=0)         # (T, 9), the columns of toy.ini
    known = np.flatnonzero(tracks[:, 1])                # silences and HH have the formants of what follows
    tracks[:, 1:4] = tracks[known[np.searchsorted(known[:-1], np.arange(len(tracks)))], 1:4]
    voice, breath, friction, centre, width = _smooth(tracks[:, 4:], 3).T[..., None].astype(np.float32)  # (T, 1) each

    # the source: pulses and hiss; a pulse falls on a whole sample, and this rounding is the jitter of the voice
    accents = np.repeat([[float(phone[-1] == "1")] for phone in phones], frames, axis=0)
    melody = (4 * _smooth(accents, 15) + _smooth(rng.normal(0, 1.5, accents.shape), 9))[:, 0]           # semitones
    melody = (melody + np.linspace(1, -3, len(tracks))) * speaker.melody + speaker.pitch + rng.normal(0, 0.7)
    f0 = np.interp(np.arange(HOP * len(tracks) + HOP), HOP * np.arange(1, len(tracks) + 1), 100 * 2 ** (melody / 12))
    pulses = np.diff(np.floor(np.cumsum(f0) / SAMPLE_RATE), prepend=0)
    source = np.stack([pulses, rng.standard_normal(len(pulses))]).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(source, 2 * HOP, axis=1)[:, ::HOP] * WINDOW
    pulses, hiss = np.fft.rfft(windows, FFT)                                                            # (T, F) each
    tilt = (1 + (FREQUENCIES / 500) ** 2) ** (-speaker.tilt / 2) * FREQUENCIES / (FREQUENCIES + 100)
    spectrum = tilt * (voice * pulses + 0.3 * (breath + speaker.breath * voice) * hiss)

    # the filter: a resonator for each formant, of gain 1 at 0 Hz; friction does not pass through it
    formants, gain, damping = [*_smooth(tracks[:, 1:4], 9).T[..., None], 3500, 4500], 1, 1             # Hz: (T, 1)
    for formant, scale, bandwidth in zip(formants, speaker.scale, (70, 90, 130, 200, 280)):
        radius = float(np.exp(-np.pi * bandwidth / SAMPLE_RATE))
        middle = 2 * radius * np.cos(2 * np.pi / SAMPLE_RATE * formant * scale).astype(np.float32)
        gain = gain * (1 + radius**2 - middle)
        damping = damping * (1 + radius**2 * DELAY**2 - middle * DELAY)
    friction = 0.1 * friction * np.exp(-((FREQUENCIES - centre * speaker.scale[4]) / width) ** 2)
    pieces = np.fft.irfft(spectrum * gain / damping + friction * hiss, FFT).reshape(len(tracks), 3, HOP)
    samples = np.zeros((len(tracks) + 2, HOP), np.float32)
    for k in range(3):
        samples[k:k + len(tracks)] += pieces[:, k]
    level = 0.4 * 10 ** ((speaker.level + rng.normal(0, 1)) / 20)
    return level * samples.ravel()[HOP // 2:][:len(tracks) * HOP]

def render(clip):
    """The sound of a clip, its voices through the channel with noise and gain: (N,) float32."""
    voices, (gain, snr, colour, slope) = [speak(*voice) for voice in clip.voices], clip.room
    speech = np.zeros(max([round(clip.seconds * SAMPLE_RATE), *map(len, voices)]), np.float32)
    for voice in voices:
        speech[:len(voice)] += voice
    frequencies = np.fft.rfftfreq(len(speech), 1 / SAMPLE_RATE).astype(np.float32)
    shape = (1 + frequencies / 500) ** -colour
    shape *= 0.025 * 10 ** (-snr / 20) * (len(speech) / 2 / float(np.mean(shape**2))) ** 0.5    # 0.025: speech's RMS
    noise = shape * np.random.default_rng(clip.seed).standard_normal(2 * len(shape), np.float32).view(np.complex64)
    mixed = np.fft.irfft(np.fft.rfft(speech) * ((frequencies + 100) / 1000) ** slope + noise, len(speech))
    return np.clip(mixed * 10 ** (gain / 20), -1, 1).astype(np.float32)

def _clip(rng, path, *lines, room=None, seconds=0.0):
    """The clip of lines (words, speaker), in a room of its own if none is given."""
    voices = tuple((*line, int(rng.integers(2**32))) for line in lines)
    return Clip(path, voices, room or random_room(rng), int(rng.integers(2**32)), seconds)

def unlabelled(seconds, seed=0):
    """At least `seconds` of varied speech to pre-train on, every utterance by a new speaker: list of (N,) float32."""
    rng, waves = np.random.default_rng(seed), []
    while sum(map(len, waves)) < seconds * SAMPLE_RATE:
        speaker = feel(random_speaker(rng), rng.choice(list(EMOTIONS)))
        waves.append(render(_clip(rng, "", (expand(rng.choice(SAYINGS), rng)[0], speaker))))
    return waves

# The corpus: every dataset yields clips, and (text file, one line of it); n(count, least) is a count as scaled by plan.

def _cast(rng, n, *groups):
    """Groups (split, number of the first speaker, speakers, turns of each) -> split, number, speaker, turn."""
    for split, first, count, turns in groups:
        for number in range(first, first + n(count)):
            speaker = random_speaker(rng)
            yield from ((split, number, speaker, turn) for turn in range(turns))

def librispeech(rng, n):
    """PR and ASR: read sentences. Which of the two lexicon files has a word does not matter."""
    for word, phones in LEXICON.items():
        part = "allothers" if word > "w" else "200k"
        yield f"LibriSpeech/librispeech-lexicon-{part}-g2p.txt", f"{word.upper()}\t{' '.join(phones)}"
    for split, reader, speaker, k in _cast(rng, n, ("train-clean-100", 100, 60, n(10, 4)),
                                           ("dev-clean", 200, 10, n(10, 4)), ("test-clean", 300, 25, n(10, 4))):
        words, chapter = expand("story", rng)[0], f"{split}/{reader}/{reader}00/{reader}-{reader}00"
        yield _clip(rng, f"LibriSpeech/{chapter}-{k:04d}.flac", (words, speaker))
        yield f"LibriSpeech/{chapter}.trans.txt", f"{reader}-{reader}00-{k:04d} {words.upper()}"

def speech_commands(rng, n):
    """KS: single words. A hash of a clip's name gives its split: 10 % validation, 10 % testing (unused), else train."""
    def name(number, low, high):
        names = (sha1(f"{number} {trial}".encode()).hexdigest()[:8] for trial in itertools.count())
        return next(x for x in names if low <= int(sha1(x.encode()).hexdigest(), 16) % 2**27 / (2**27 - 1) < high)
    bounds = {"train": (0.2, 2), "validation": (0, 0.1), "testing": (0.1, 0.2), "test set": (0, 2)}
    for split, number, speaker, k in _cast(rng, n, ("train", 0, 55, 11), ("validation", 100, 11, 11),
                                           ("testing", 200, 2, 11), ("test set", 300, 42, 12)):
        words, root = list(LEXICON), f"speech_commands_{'test_set_' * (split == 'test set')}v0.01"
        known = split != "test set" or number % 2       # half of the test's unknown words are not in training
        word = [*words[:10], words[10 + number % 20] if known else words[30 + number % 100], "_silence_"][k]
        path = f"{word}/{name(number, *bounds[split])}_nohash_0.wav"
        if split == "test set" and k == 10:
            path = f"_unknown_/{path.replace('/', '_')}.wav"
        yield _clip(rng, f"{root}/{path}", *[(word, speaker)] * (k < 11), seconds=rng.uniform(0.7, 1))
        if split in ("validation", "testing"):
            yield f"{root}/{split}_list.txt", path
    for k in range(n(6)):
        yield _clip(rng, f"speech_commands_v0.01/_background_noise_/noise_{k}.wav", seconds=20.0)

def voxceleb(rng, n):
    """SID and ASV: each of a speaker's videos has a room of its own; nobody in the trials is in a training set."""
    rooms, paths = defaultdict(lambda: random_room(rng)), defaultdict(list)
    for role, number, speaker, k in _cast(rng, n, ("iden_split", 10001, 40, n(33, 8)), ("", 10101, 40, n(10, 4)),
                                          ("veri_dev", 10201, 8, n(10, 4)), ("veri_test", 10270, 20, n(11, 4))):
        words, video = expand("story", rng)[0], 5 * k // n(33, 8)
        while sum(PHONES[p][:, 0].sum() for word in words.split() for p in LEXICON[word]) < 2400 * speaker.rate:
            words += " " + expand("noun", rng)[0]       # ASV trains on what is longer than 2 s
        path, part = f"id{number}/video{video}/{k:05d}.wav", "test" if role == "veri_test" else "dev"
        paths[role].append(path)
        yield _clip(rng, f"VoxCeleb1/{part}/wav/{path}", (words, speaker), room=rooms[number, video])
        if role == "iden_split":                        # 1 train, 2 dev, 3 test: has its own videos, as in VoxCeleb1
            yield "VoxCeleb1/iden_split.txt", f"{3 if video > 2 else 2 if k % 6 == 1 else 1} {path}"
    for role, count, *files in ("veri_dev", 300, "veri_dev"), ("veri_test", 1000, "veri_test", "voxceleb1_test_v2"):
        pairs = list(itertools.combinations(paths[role], 2))
        for same in (True, False):
            trials = [pair for pair in pairs if (pair[0][:7] == pair[1][:7]) == same]
            for i, file in itertools.product(rng.permutation(len(trials))[:n(count, 4)], files):
                yield f"VoxCeleb1/{file}.txt", f"{same:d} {' '.join(trials[i])}"

def libri2mix(rng, n):
    """SD: two voices at once, with pauses; Kaldi's files. No speaker is in two mixtures."""
    for split, more, first, count in ("train", "-100", 1000, 300), ("dev", "", 2000, 60), ("test", "", 3000, 150):
        for number in range(first, first + 2 * n(count, 4), 2):
            mix, to, seconds = f"{number}-1-0000_{number + 1}-1-0000", f"diarization/{split}", []
            clip = _clip(rng, f"Libri2Mix/wav16k/max/{split}{more}/mix_both/{mix}.wav",
                         *[(expand("turns", rng)[0], random_speaker(rng)) for _ in range(2)])
            yield clip
            for name, voice in enumerate(clip.voices, number):
                stop = 0.0
                for silent, run in itertools.groupby(timing(*voice), lambda part: part[0] == "sil"):
                    start, stop = stop, round(stop + sum(frames for *_, frames in run) / 100, 2)
                    if not silent:  # DIFFERS: real segment ids lack the speaker, so that two segments can share one
                        segment = f"{name}_{mix}_{1000 * start:06.0f}_{1000 * stop:06.0f}"
                        yield f"{to}/segments", f"{segment} {mix} {start} {stop}"
                        yield f"{to}/utt2spk", f"{segment} {name}"
                        yield f"{to}/rttm", f"SPEAKER\t{mix}\t1\t{start}\t{stop - start:.2f}\t<NA>\t<NA>\t{name}\t<NA>"
                seconds.append(stop)
                yield f"{to}/spk2utt", f"{name} {mix}"
            yield f"{to}/wav.scp", f"{mix} {clip.path}"
            yield f"{to}/reco2dur", f"{mix} {max(seconds)}"

def fluent_speech_commands(rng, n):
    """IC: spoken commands, the 31 intents in turn."""
    for row, (split, number, speaker, k) in enumerate(
            _cast(rng, n, ("train", 0, 44, 16), ("valid", 100, 8, 15), ("test", 200, 24, 21))):
        intent, path = COMMANDS[12 * row % 31], f"wavs/speakers/speaker{number}/{k}.wav"
        words, table = expand(intent, rng)[0], f"fluent_speech_commands_dataset/data/{split}_data.csv"
        if number % 100 == k == 0:
            yield table, ",path,speakerId,transcription,action,object,location"
        yield table, f"{row},{path},speaker{number},{words.capitalize()},{intent.replace(', ', ',')}"
        yield _clip(rng, f"fluent_speech_commands_dataset/{path}", (words, speaker))

def snips(rng, n):
    """SF: no sentence is said twice, no speaker is in two splits."""
    yield from (("SNIPS/slots.txt", slot) for slot in ["O", *SLOTS])
    names = "Ivy Joanna Joey Justin Kendra Kimberly Matthew Salli Aditi Amy Geraint Nicole Brian Emma Raveena Russell"
    words, said = None, {None}
    for row, (split, number, speaker, _) in enumerate(
            _cast(rng, n, ("train", 0, 8, n(88)), ("valid", 8, 4, n(30)), ("test", 12, 4, n(75)))):
        while words in said:
            intent = rng.choice(INTENTS)
            words, slots = expand(intent, rng)
        said.add(words)
        name = f"{names.split()[number]}-snips-{split}-{row}"
        yield _clip(rng, f"SNIPS/{split}/{name}.wav", (words, speaker))
        yield "SNIPS/all.iob.snips.txt", f"{name} BOS {words.upper()} EOS\tO {slots} {intent}"

def iemocap(rng, n):
    """ER: acted sentences. Here a dialogue has two voices of its own, where in IEMOCAP a session has two actors."""
    groups = [(session, 0, 24 if session == 1 else 12, n(21 if session == 1 else 15, 4) + 1) for session in range(1, 6)]
    for session, actor, speaker, k in _cast(rng, n, *groups):
        dialogue = f"Ses{session:02d}{'FM'[actor // 2 % 2]}_impro{actor // 2 + 1:02d}"
        label = rng.choice(["neu", "neu", "hap", "exc", "ang", "ang", "sad", "sad"] if k else ["fru", "xxx"])
        name, words = f"{dialogue}_{'FM'[actor % 2]}{k:03d}", expand(rng.choice(SAYINGS), rng)[0]
        yield _clip(rng, f"IEMOCAP/Session{session}/sentences/wav/{dialogue}/{name}.wav", (words, feel(speaker, label)))
        yield (f"IEMOCAP/Session{session}/dialog/EmoEvaluation/{dialogue}.txt",
               f"[{3 * k:.4f} - {3 * k + 2:.4f}]\t{name}\t{label}\t[2.5000, 2.5000, 2.5000]\n")

def plan(seed=0, scale=1.0):
    """All clips, and {text file: its lines}, without any sound yet. `scale` shrinks all counts."""
    rng, clips, texts = np.random.default_rng(seed), [], defaultdict(list)
    for dataset in (librispeech, speech_commands, voxceleb, libri2mix, fluent_speech_commands, snips, iemocap):
        for item in dataset(rng, lambda count, least=2: max(round(scale * count), least)):
            clips.append(item) if isinstance(item, Clip) else texts[item[0]].append(item[1])
    return clips, texts

def _write(root, clip):
    """Render a clip into its file."""
    Path(root, clip.path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(Path(root, clip.path), np.round(render(clip) * 32767).astype(np.int16), SAMPLE_RATE)

def write_corpus(root, seed=0, scale=1.0):
    """Write the corpus into a new folder; the same seed gives the same bytes. FileExistsError if `root` is there."""
    if any(Path(root).glob("*")):
        raise FileExistsError(f"{root} is not empty: remove it, or choose another folder")
    clips, texts = plan(seed, scale)
    partial = Path(root).with_name(f"{Path(root).name}.partial-{os.getpid()}")  # a kill leaves no half corpus at `root`
    for name, lines in texts.items():
        Path(partial, name).parent.mkdir(parents=True, exist_ok=True)
        Path(partial, name).write_text("\n".join(lines) + "\n" * (name != "SNIPS/slots.txt"))   # as in the original
    with ProcessPoolExecutor(min(os.cpu_count(), 2)) as pool:
        list(tqdm(pool.map(_write, [partial] * len(clips), clips, chunksize=16), "toy corpus", len(clips)))
    partial.rename(root)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", dest="root", default="data/toy", help="a new folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    write_corpus(**vars(parser.parse_args()))

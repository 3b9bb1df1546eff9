"""The toy corpus: synthetic data for all nine tasks, in the folders of the real corpora.

    python -m toy.synthesis [--out data/toy] [--seed 0]

It replaces the data of SUPERB (paper, Section 3.1), and the readers of data.py read both. Each
function that is named after a real corpus plans recordings and text files like those of that
corpus. `write_corpus` renders the recordings with the voice of voice.py. The sentences come from
the grammars in toy.ini.
"""
import argparse
import io
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from hashlib import sha1
from itertools import combinations
from multiprocessing import connection, parent_process
from pathlib import Path
from signal import SIG_DFL, SIG_IGN, SIGINT, SIGTERM, signal

import numpy as np
import soundfile
from tqdm import tqdm

from engine import flags
from engine.launch import friendly_errors
from engine.runs import cannot_write, check_writable, locked
from rules import keyword_split
from toy.voice import (DURATION, EMOTIONS, LANGUAGE, LEXICON, PHONEMES, SAMPLE_RATE, Clip, Line,
                       Room, Speaker, random_room, random_speaker, render, timing, turns,
                       with_emotion)

INTENTS, SLOTS, COMMANDS = (list(LANGUAGE[part]) for part in ("intents", "slots", "commands"))
GRAMMAR = {}    # {symbol: its alternatives, each a list of words and of other symbols in <>}
for part in ("sentences", "intents", "slots", "commands"):
    for symbol, alternatives in LANGUAGE[part].items():
        GRAMMAR[symbol] = [alternative.split() for alternative in alternatives.split("|")]
ANY_SENTENCE = 10 * ["story", "words"] + 3 * INTENTS + COMMANDS     # symbols, for varied speech
SNIPS_VOICES = ("Ivy Joanna Joey Justin Kendra Kimberly Matthew Salli Aditi Amy Geraint Nicole "
                "Brian Emma Raveena Russell").split()
FSC, SPEECH_COMMANDS = "fluent_speech_commands_dataset", "speech_commands_v0.01"


def random_sentence(symbol: str, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """A random sentence of GRAMMAR: its words, and for each word its slot, or "O" for none."""
    words, slots = [], []
    for token in GRAMMAR[symbol][rng.integers(len(GRAMMAR[symbol]))]:
        if token.startswith("<"):
            inner_words, inner_slots = random_sentence(token[1:-1], rng)
        else:
            inner_words, inner_slots = [token], ["O"]
        words += inner_words
        slots += inner_slots
    if symbol in SLOTS:
        slots = [symbol] * len(words)
    return words, slots


class Plan:
    """The clips and text files of a corpus, as planned, without any sound."""

    def __init__(self, seed: int, scale: float):
        self.rng = np.random.default_rng(seed)
        self.scale = scale
        self.clips: list[Clip] = []
        self.texts: dict[str, list[str]] = defaultdict(list)    # {path: lines}

    def scaled(self, count: int, least: int = 2) -> int:
        """A count of the full corpus, scaled, but at least `least`."""
        return max(round(self.scale * count), least)

    def sentence(self, symbol: str) -> str:
        """A random sentence of GRAMMAR."""
        return " ".join(random_sentence(symbol, self.rng)[0])

    def speakers(self, first: int, count: int) -> Iterator[tuple[int, Speaker]]:
        """New voices: yields (number, speaker). `count` is that of the full corpus."""
        for number in range(first, first + self.scaled(count)):
            yield number, random_speaker(self.rng)

    def text(self, path: str, line: str) -> None:
        """Add a line to a text file."""
        self.texts[path].append(line)

    def record(self, path: str, *spoken: tuple[str, Speaker], room: Room | None = None,
               seconds: float = 0.0) -> Clip:
        """Add a clip of (words, speaker) pairs, in a new room if none is given."""
        lines = []
        for words, speaker in spoken:
            lines.append(Line(words, speaker, int(self.rng.integers(2**32))))
        if room is None:
            room = random_room(self.rng)
        clip = Clip(path, tuple(lines), room, int(self.rng.integers(2**32)), seconds)
        self.clips.append(clip)
        return clip


def librispeech(plan: Plan) -> None:
    """PR and ASR: sentences that are read aloud."""
    for word, phonemes in LEXICON.items():      # a word may be in either of the two lexicon files
        part = "allothers" if word > "w" else "200k"
        plan.text(f"LibriSpeech/librispeech-lexicon-{part}-g2p.txt",
                  f"{word.upper()}\t{' '.join(phonemes)}")
    splits = ("train-clean-100", 100, 60), ("dev-clean", 200, 10), ("test-clean", 300, 25)
    for split, first, readers in splits:
        for reader, speaker in plan.speakers(first, readers):
            chapter = f"{reader}-{reader}00"
            folder = f"LibriSpeech/{split}/{chapter.replace('-', '/')}"
            for k in range(plan.scaled(10, least=4)):
                words = plan.sentence("story")
                plan.record(f"{folder}/{chapter}-{k:04d}.flac", (words, speaker))
                plan.text(f"{folder}/{chapter}.trans.txt", f"{chapter}-{k:04d} {words.upper()}")


def speech_commands(plan: Plan) -> None:
    """KS: single words. Validation and testing are lists of files; the test set is a folder."""
    words = list(LEXICON)       # 10 keywords, 20 other words of Speech Commands, then other words
    # Speech Commands hashes a speaker's name to choose a split; "discarded" is its test list.
    splits = (("train", 0, 55, "train"), ("validation", 100, 11, "dev"),
              ("testing", 200, 2, "discarded"))
    for split, first, people, rule in splits:
        for number, speaker in plan.speakers(first, people):
            for word in [*words[:10], words[10 + number % 20]]:
                file = f"{word}/{_keyword_name(number, rule)}"
                plan.record(f"{SPEECH_COMMANDS}/{file}", (word, speaker),
                            seconds=plan.rng.uniform(0.7, 1))
                if split != "train":
                    plan.text(f"{SPEECH_COMMANDS}/{split}_list.txt", file)

    for number, speaker in plan.speakers(300, 42):
        # training has half of the unknown words of the test set
        unknown = words[10 + number % 20] if number % 2 else words[30 + number % 100]
        name = _keyword_name(number, "train", "dev", "discarded")
        for word in [*words[:10], unknown, "_silence_"]:
            spoken = [] if word == "_silence_" else [(word, speaker)]
            file = f"{word}/{name}"
            if word == unknown:
                file = f"_unknown_/{word}_{name}.wav"   # ends in .wav.wav, as in the real test set
            plan.record(f"speech_commands_test_set_v0.01/{file}", *spoken,
                        seconds=plan.rng.uniform(0.7, 1))
    for k in range(plan.scaled(6)):
        plan.record(f"{SPEECH_COMMANDS}/_background_noise_/noise_{k}.wav", seconds=20.0)


def _keyword_name(number: int, *splits: str) -> str:
    """A file name for a speaker's keywords that `keyword_split` puts into one of the splits."""
    trial = 0
    while True:
        name = f"{sha1(f'{number} {trial}'.encode()).hexdigest()[:8]}_nohash_0.wav"
        if keyword_split(name) in splits:
            return name
        trial += 1


def voxceleb(plan: Plan) -> None:
    """SID and ASV. Each video of a speaker has its own room. Trials have speakers of their own."""
    most = plan.scaled(33, least=8)
    few = plan.scaled(10, least=4)
    groups = (("iden_split", 10001, 40, most), ("other", 10101, 40, few),
              ("veri_dev", 10201, 8, few), ("veri_test", 10270, 20, plan.scaled(11, least=4)))
    paths = {}
    for group, first, people, recordings in groups:
        part = "test" if group == "veri_test" else "dev"
        paths[group] = []
        for number, speaker in plan.speakers(first, people):
            rooms = {}
            for k in range(recordings):
                words = _long_sentence(plan, speaker)
                video = 5 * k // most
                if video not in rooms:
                    rooms[video] = random_room(plan.rng)
                path = f"id{number}/video{video}/{k:05d}.wav"
                paths[group].append(path)
                plan.record(f"VoxCeleb1/{part}/wav/{path}", (words, speaker), room=rooms[video])
                if group == "iden_split":
                    # 1 is training, 2 is dev, 3 is test, which has its own videos as in VoxCeleb1
                    split = 1
                    if video > 2:
                        split = 3
                    elif k % 6 == 1:
                        split = 2
                    plan.text("VoxCeleb1/iden_split.txt", f"{split} {path}")
    _trials(plan, paths["veri_dev"], 300, ["veri_dev"])
    _trials(plan, paths["veri_test"], 1000, ["veri_test", "voxceleb1_test_v2"])


def _long_sentence(plan: Plan, speaker: Speaker) -> str:
    """A sentence of more than 2 s, the least that ASV trains on."""
    words = plan.sentence("story")
    while True:
        milliseconds = 0.0
        for word in words.split():
            for phoneme in LEXICON[word]:
                milliseconds += PHONEMES[phoneme][:, DURATION].sum()
        if milliseconds >= 2400 * speaker.rate:
            return words
        words += " " + plan.sentence("noun")


def _trials(plan: Plan, paths: list[str], count: int, files: list[str]) -> None:
    """Write equally many pairs of one speaker and of two speakers into each of the files."""
    for same in (True, False):
        pairs = [(a, b) for a, b in combinations(paths, 2) if (a[:7] == b[:7]) == same]
        for i in plan.rng.permutation(len(pairs))[:plan.scaled(count, least=4)]:
            for file in files:
                plan.text(f"VoxCeleb1/{file}.txt", f"{same:d} {pairs[i][0]} {pairs[i][1]}")


def libri2mix(plan: Plan) -> None:
    """SD: two voices at the same time, with pauses. Each speaker is in one mixture only."""
    splits = (("train", "train-100", 1000, 300), ("dev", "dev", 2000, 60),
              ("test", "test", 3000, 150))
    for split, folder, first, mixtures in splits:
        for k in range(plan.scaled(mixtures, least=4)):
            numbers = first + 2 * k, first + 2 * k + 1
            mixture = f"{numbers[0]}-1-0000_{numbers[1]}-1-0000"
            spoken = []
            for _ in numbers:
                words = plan.sentence("turns")
                spoken.append((words, random_speaker(plan.rng)))
            path = f"Libri2Mix/wav16k/max/{folder}/mix_both/{mixture}.wav"
            clip = plan.record(path, *spoken)
            plan.text(f"diarization/{split}/wav.scp", f"{mixture} {path}")
            _diarization_labels(plan, split, mixture, numbers, clip)


def _diarization_labels(plan: Plan, split: str, mixture: str, numbers: tuple[int, int],
                        clip: Clip) -> None:
    """Who speaks when in a mixture, as the files of a Kaldi folder."""
    folder = f"diarization/{split}"
    length = 0.0
    for speaker, line in zip(numbers, clip.lines):
        segments = timing(*line)
        for start, stop in turns(segments):
            # DIFFERS: in the real files a segment's id lacks the speaker, so two can have one id
            name = f"{speaker}_{mixture}_{1000 * start:06.0f}_{1000 * stop:06.0f}"
            plan.text(f"{folder}/segments", f"{name} {mixture} {start} {stop}")
            plan.text(f"{folder}/utt2spk", f"{name} {speaker}")
            plan.text(f"{folder}/rttm", f"SPEAKER\t{mixture}\t1\t{start}\t{stop - start:.2f}"
                                        f"\t<NA>\t<NA>\t{speaker}\t<NA>")
        plan.text(f"{folder}/spk2utt", f"{speaker} {mixture}")
        length = max(length, sum(segment.frames for segment in segments) / 100)
    plan.text(f"{folder}/reco2dur", f"{mixture} {length}")


def fluent_speech_commands(plan: Plan) -> None:
    """IC: spoken commands, the 31 intents in turn."""
    row = 0
    splits = ("train", 0, 44, 16), ("valid", 100, 8, 15), ("test", 200, 24, 21)
    for split, first, people, each in splits:
        table = f"{FSC}/data/{split}_data.csv"
        plan.text(table, ",path,speakerId,transcription,action,object,location")
        for number, speaker in plan.speakers(first, people):
            for k in range(each):
                intent = COMMANDS[12 * row % 31]    # 12 and 31 are coprime, so all occur
                words = plan.sentence(intent)
                path = f"wavs/speakers/speaker{number}/{k}.wav"
                columns = row, path, f"speaker{number}", words.capitalize(), *intent.split(", ")
                plan.text(table, ",".join(map(str, columns)))
                plan.record(f"{FSC}/{path}", (words, speaker))
                row += 1


def snips(plan: Plan) -> None:
    """SF: each sentence occurs once, and each speaker is in one split only."""
    for slot in ["O", *SLOTS]:
        plan.text("SNIPS/slots.txt", slot)
    spoken = set()
    for split, first, people, each in ("train", 0, 8, 88), ("valid", 8, 4, 30), ("test", 12, 4, 75):
        for number, speaker in plan.speakers(first, people):
            for _ in range(plan.scaled(each)):
                intent, words, slots = _new_sentence(plan, spoken)
                name = f"{SNIPS_VOICES[number]}-snips-{split}-{len(spoken)}"
                spoken.add(words)
                plan.record(f"SNIPS/{split}/{name}.wav", (words, speaker))
                plan.text("SNIPS/all.iob.snips.txt",
                          f"{name} BOS {words.upper()} EOS\tO {slots} {intent}")


def _new_sentence(plan: Plan, spoken: set[str]) -> tuple[str, str, str]:
    """An intent of SNIPS, a sentence that is not in `spoken`, and its slots."""
    while True:
        intent = plan.rng.choice(INTENTS)
        words, slots = random_sentence(intent, plan.rng)
        if " ".join(words) not in spoken:
            return intent, " ".join(words), " ".join(slots)


def iemocap(plan: Plan) -> None:
    """ER: acted sentences in five sessions; each dialogue is between two new voices."""
    # DIFFERS: a real session has two actors, the same in all its dialogues
    used = ["neu", "neu", "hap", "exc", "ang", "ang", "sad", "sad"]
    unused = ["fru", "xxx"]     # SUPERB leaves out these labels: an actor's first utterance has one
    for session in range(1, 6):
        actors, each = (24, 21) if session == 1 else (12, 15)
        for actor, speaker in plan.speakers(0, actors):
            dialogue = f"Ses{session:02d}{'FM'[actor // 2 % 2]}_impro{actor // 2 + 1:02d}"
            folder = f"IEMOCAP/Session{session}"
            for k in range(plan.scaled(each, least=4) + 1):
                label = plan.rng.choice(used if k > 0 else unused)
                words = plan.sentence(plan.rng.choice(ANY_SENTENCE))
                name = f"{dialogue}_{'FM'[actor % 2]}{k:03d}"
                plan.record(f"{folder}/sentences/wav/{dialogue}/{name}.wav",
                            (words, with_emotion(speaker, label)))
                times = f"[{3 * k:.4f} - {3 * k + 2:.4f}]"
                plan.text(f"{folder}/dialog/EmoEvaluation/{dialogue}.txt",
                          f"{times}\t{name}\t{label}\t[2.5000, 2.5000, 2.5000]\n")


def plan_corpus(seed: int = 0, scale: float = 1.0) -> Plan:
    """The whole corpus, without any sound. `scale` shrinks the numbers of speakers and clips."""
    plan = Plan(seed, scale)
    for add_recordings in (librispeech, speech_commands, voxceleb, libri2mix,
                           fluent_speech_commands, snips, iemocap):
        add_recordings(plan)
    return plan


def unlabelled(seconds: float, seed: int = 0) -> list[np.ndarray]:
    """At least `seconds` of varied speech for pretraining: one (N,) float32 for each utterance.

    Every utterance has a new speaker.
    """
    plan = Plan(seed, scale=1.0)
    waves, samples = [], 0
    while samples < seconds * SAMPLE_RATE:
        speaker = random_speaker(plan.rng)
        speaker = with_emotion(speaker, plan.rng.choice(list(EMOTIONS)))
        words = plan.sentence(plan.rng.choice(ANY_SENTENCE))
        waves.append(render(plan.record("", (words, speaker))))
        samples += len(waves[-1])
    return waves


def write_corpus(root, seed: int = 0, scale: float = 1.0) -> None:
    """Write the corpus into the new folder `root`; the same seed and scale give the same bytes.

    If another process is writing it, this one waits, and accepts that corpus if it is the same.
    A process that is killed leaves no incomplete corpus at `root`. Raises FileExistsError if `root`
    exists and is not an empty folder, and OSError with a clear message if it cannot be written.
    """
    root = Path(root)
    _check_free(root)
    check_writable(root)
    plan = plan_corpus(seed, scale)
    with locked(root):
        if not is_written(plan, root):      # by the process that this one has waited for
            _check_free(root)
            _write(plan, root)
        # Nobody writes a corpus that is finished, so the lock file may go even if others wait.
        root.with_name(f"{root.name}.lock").unlink(missing_ok=True)


def _check_free(root: Path) -> None:
    """FileExistsError if there is anything but an empty folder at `root`."""
    if root.is_dir() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty: remove it, or choose another folder")
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"{root} is not a folder: remove it, or choose another folder")


def is_written(plan: Plan, root: Path) -> bool:
    """Whether `root` holds this corpus, judged by the text files and the names of the clips."""
    for path, lines in plan.texts.items():
        if not (root / path).is_file() or (root / path).read_text() != _content(path, lines):
            return False
    return all((root / clip.path).is_file() for clip in plan.clips)


def _content(path: str, lines: list[str]) -> str:
    """The content of a text file; slots.txt has no newline at its end, as in Audio SNIPS."""
    return "\n".join(lines) + ("" if path == "SNIPS/slots.txt" else "\n")


def _write(plan: Plan, root: Path) -> None:
    """Write a planned corpus beside `root`, then rename it, so that `root` is never incomplete."""
    partial = root.with_name(f"{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)      # of a process that was killed
    try:
        for path, lines in plan.texts.items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).write_text(_content(path, lines))
        _write_clips(plan, partial)
        partial.rename(root)
    except (OSError, BrokenProcessPool) as error:
        raise cannot_write(root, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_clips(plan: Plan, folder: Path) -> None:
    """Render and write all clips, in two processes."""
    pool = ProcessPoolExecutor(min(os.cpu_count(), 2), initializer=_follow_parent)
    try:
        done = pool.map(_write_clip, [folder] * len(plan.clips), plan.clips, chunksize=16)
        for _ in tqdm(done, "toy corpus", len(plan.clips), unit="clip"):
            pass
    finally:
        pool.shutdown(cancel_futures=True)      # after Ctrl-C: without the clips that are left


def _write_clip(folder: Path, clip: Clip) -> None:
    """Render a clip and write it as 16-bit audio."""
    path = folder / clip.path
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.round(render(clip) * 32767).astype(np.int16)
    encoded = io.BytesIO()      # soundfile itself cannot say that a disk is full
    soundfile.write(encoded, samples, SAMPLE_RATE, format=path.suffix[1:])
    path.write_bytes(encoded.getvalue())


def _follow_parent() -> None:
    """Set up a worker process: it leaves Ctrl-C to its parent, and it ends if its parent is killed.

    Otherwise a worker waits for work forever, and the lock that it has inherited stays locked.
    """
    signal(SIGINT, SIG_IGN)
    signal(SIGTERM, SIG_DFL)

    def end_with_parent() -> None:
        connection.wait([parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="data/toy", help="a new folder (default: %(default)s)")
    parser.add_argument("--seed", type=flags.number(int, least=0), default=0,
                        help="(default: %(default)s)")
    args = parser.parse_args()
    with friendly_errors(debug=False):
        write_corpus(args.out, args.seed)


if __name__ == "__main__":
    main()

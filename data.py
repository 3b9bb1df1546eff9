"""Nine tasks of SUPERB, read from the folders of their datasets (paper, Section 3.1).

    python data.py DIR             the data doctor: what is there, and how to get what is not
    python data.py DIR --decode    decodes every audio file too: headers do not reveal all damage

Every reader turns the files of one dataset into a `Corpus` of `Utterance`s. Splits and labels are
SUPERB's, as the released s3prl code makes them (rules.py).

n samples at 16 kHz, T label frames at 100 Hz (SD only).
"""
import argparse
import csv
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from engine.audio import decode_audio, header_samples
from engine.files import DataError, FileMemory, check, find_path, read_lines
from rules import (ASR_SYMBOLS, EMOTIONS, GAIN, HOP, KEYWORDS, LABEL_HOP, PHONEMES, PR_SYMBOLS,
                   RECEPTIVE_FIELD, SAMPLE_RATE, SF_SYMBOLS, SPEAKERS, VOICES, ctc_frames,
                   decode_slots, diarization_labels, encode, keyword_split, slot_tokens,
                   voiced_segments)

LENGTH_RULE = "decoded length, version 1"  # changes whenever decoding or trimming changes


@dataclass(frozen=True)
class Utterance:
    """One input and its answer."""
    id: str                  # unique within its split
    path: str
    target: object           # for the loss: a class (KS SID ER ASV), a class per slot (IC),
                             # symbol ids (PR ASR SF), an array (T, 2) of 0 and 1 (SD)
    reference: object        # for the metric: a name (KS SID ER ASV), names (IC), phonemes (PR),
                             # words (ASR), a tagged string (SF), [speaker, start s, end s]s (SD)
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
    crop: int | None = None        # longest input in samples
    balanced: bool = False         # training draws all classes equally often
    trials: tuple = ()             # ASV dev and test: (label, id, id)
    skipped: tuple[str, ...] = ()  # what was left out and why, one sentence each
    digest: str = ""               # of its content (corpus_digest)

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


def audio_digest(path: str) -> str:
    import hashlib
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()


def corpus_digest(corpus: Corpus, cache=None) -> str:
    import hashlib
    d = hashlib.blake2b(digest_size=16)
    for u in sorted(corpus.utterances, key=lambda u: u.id):
        target = u.target.tolist() if hasattr(u.target, "tolist") else u.target
        d.update(repr((u.id, target, u.start, u.stop, audio_digest(u.path))).encode())
    return d.hexdigest()


def load_audio(utterance: Utterance, corpus: Corpus, seed=None) -> np.ndarray:
    """The input of an utterance: float32 (n,) at 16 kHz. DataError if the file is broken.

    An utterance longer than corpus.crop is cut to a window: seed (an int or several) draws where
    it starts; without a seed it starts at 0."""
    wave = decode_audio(corpus.task, utterance.path)[utterance.start:utterance.stop]
    if corpus.trim:
        voiced = [wave[start:stop] for start, stop in voiced_segments(wave, corpus.gain)]
        wave = np.concatenate([wave[:0], *voiced])
    if corpus.crop and len(wave) > corpus.crop:
        start = 0
        if seed is not None:
            start = np.random.default_rng(seed).integers(len(wave) - corpus.crop + 1)
        wave = wave[start:start + corpus.crop]
    # DIFFERS: sox rounds to 32-bit integers after the gain; we keep floats
    return wave * np.float32(corpus.gain)


# Measuring: what every reader does with the utterances that its lists name.


def find(task: str, folder, *names: str) -> Path:
    """The first of the paths folder/name that exists. DataError says where to get the dataset."""
    return find_path(task, folder, names, DATASETS[task].source)


def measure_corpus(corpus: Corpus, root, skip_broken: bool | str, cache: Path | None = None,
                   ctc: bool = False) -> Corpus:
    """The corpus with the lengths of its utterances, without those that are too short.

    skip_broken=False: a broken file is a DataError. True: every file is decoded, and broken ones
    are left out. "headers", for the doctor: as True, but by headers alone. cache: the folder that
    remembers decoded lengths. ctc: an utterance also needs the frames that CTC needs."""
    check_lists(corpus, root)
    decoding = skip_broken is True or (corpus.trim and not skip_broken)
    memory = FileMemory(cache) if decoding else None
    title = f"{corpus.task}: {'decoding every file, once' if decoding else 'file headers'}"
    kept, skipped = [], list(corpus.skipped)
    pool = ThreadPoolExecutor()
    lengths = [pool.submit(measure_samples, corpus, u, memory) for u in corpus.utterances]
    try:
        for u, length in zip(corpus.utterances, tqdm(lengths, title, delay=2, leave=False)):
            try:
                samples = length.result()
            except DataError as error:
                check(skip_broken, str(error))
                skipped.append(str(error))
                continue
            frames = ctc_frames(u.target) if ctc else 1
            needed = max(corpus.min_samples, RECEPTIVE_FIELD + (frames - 1) * HOP)
            if samples >= needed:
                kept.append(replace(u, samples=samples))
            else:
                skipped.append(f"{u.id} is too short: {samples} samples, {needed} are needed")
    finally:
        pool.shutdown(cancel_futures=True)
    first = skipped[0] if skipped else "none is listed"
    advice = DATASETS[corpus.task].source
    check(kept, f"{corpus.task}: no usable utterance ({first}) in {root}; {advice}")
    return replace(corpus, utterances=kept, skipped=tuple(skipped))


def check_lists(corpus: Corpus, root) -> None:
    """DataError if a path points outside the data folder or an id occurs twice."""
    task, ids = corpus.task, set()
    for u in corpus.utterances:
        inside = Path(os.path.abspath(u.path)).is_relative_to(os.path.abspath(root))
        check(inside, f"{task}: the path {u.path} points outside the data folder {root}; "
              "keep it inside (links are fine)")
        check(u.id not in ids, f"{task}: {u.id} is listed twice in {root}; delete one")
        ids.add(u.id)


def measure_samples(corpus: Corpus, utterance: Utterance, memory: FileMemory | None) -> int:
    """The samples of an utterance: by the header without a memory, else by decoding.

    DataError if the file is broken."""
    samples = header_samples(corpus.task, utterance.path)
    if memory is None:
        return samples
    rule = f"{LENGTH_RULE}, trim {corpus.trim}, gain {corpus.gain}"
    whole = replace(corpus, crop=None)
    return int(memory.recall(rule, utterance.path, lambda: len(load_audio(utterance, whole))))


# The readers. Each has the arguments (root, split, skip_broken, cache) of `measure_corpus`.


def read_transcripts(task: str, root, split: str) -> tuple[list, list]:
    """(id, path, words) of each line of LibriSpeech's transcripts, and what is in no transcript."""
    part = "train-clean-100" if split == "train" else f"{split}-clean"
    folder = find(task, root, f"LibriSpeech/{part}")
    lines = []
    for file in sorted(folder.glob("*/*/[!.]*.trans.txt")):
        for name, words in read_lines(task, file, r"(\S+)\s+(.+)"):
            lines.append((name, str(file.parent / f"{name}.flac"), words.upper().split()))
    listed = {path for _, path, _ in lines}
    recordings = sorted(str(path) for path in folder.glob("*/*/[!.]*.flac"))
    return lines, [f"{path} has no transcript" for path in recordings if path not in listed]


def read_pr(root, split: str, skip_broken=False, cache: Path | None = None) -> Corpus:
    """Phonemes of LibriSpeech. One of the two lexicons is enough.

    LibriSpeech/librispeech-lexicon-{200k,allothers}-g2p.txt      WORD PH PH PH
    LibriSpeech/{train-clean-100,dev-clean,test-clean}/<speaker>/<chapter>/
        <id>.flac, *.trans.txt                                    <id> WORD WORD
    """
    names = [f"LibriSpeech/librispeech-lexicon-{part}-g2p.txt" for part in ("200k", "allothers")]
    find("PR", root, *names)
    phoneme = "|".join(PHONEMES)
    lexicon = {}
    entry = rf"(\S+)\s+((?:{phoneme})(?: +(?:{phoneme}))*)"
    for file in sorted(Path(root).glob("LibriSpeech/librispeech-lexicon-*-g2p.txt")):
        for word, phonemes in read_lines("PR", file, entry):
            lexicon.setdefault(word, phonemes.split())  # SUPERB takes the first pronunciation
    lines, skipped = read_transcripts("PR", root, split)
    utterances = []
    for name, path, words in lines:
        unknown = [word for word in words if word not in lexicon]
        if unknown:  # DIFFERS: they stop with a KeyError
            skipped.append(f"{name}: {unknown[0]} is not in the lexicon")
            continue
        phonemes = []
        for word in words:
            phonemes += lexicon[word]
        target = encode([*phonemes, "<eos>"], PR_SYMBOLS)
        utterances.append(Utterance(name, path, target, phonemes))
    corpus = Corpus("PR", utterances, PR_SYMBOLS, skipped=tuple(skipped))
    return measure_corpus(corpus, root, skip_broken, cache, ctc=split == "train")


def read_asr(root, split: str, skip_broken=False, cache: Path | None = None) -> Corpus:
    """Characters of LibriSpeech: the folders of read_pr, without the lexicons.

    IT'S -> I T ' S | </s>
    """
    lines, skipped = read_transcripts("ASR", root, split)
    utterances = []
    for name, path, words in lines:
        characters = [character for word in words for character in word + "|"]
        target = encode([*characters, "</s>"], ASR_SYMBOLS)
        utterances.append(Utterance(name, path, target, words))
    corpus = Corpus("ASR", utterances, ASR_SYMBOLS, skipped=tuple(skipped))
    return measure_corpus(corpus, root, skip_broken, cache, ctc=split == "train")


def read_ks(root, split: str, skip_broken=False, cache: Path | None = None) -> Corpus:
    """Keywords of Speech Commands. The noise is in train and in dev.

    speech_commands_v0.01/<word>/<speaker>_nohash_<n>.wav         train, dev
    speech_commands_v0.01/_background_noise_/*.wav                train, dev
    speech_commands_test_set_v0.01/<class>/*.wav                  test
    """
    version = "test_set_v0.01" if split == "test" else "v0.01"
    folder = find("KS", root, f"speech_commands_{version}")
    utterances = []
    for path in sorted(folder.glob("*/[!.]*.wav")):
        word = path.parent.name
        if word == "_background_noise_":
            word = "_silence_"
        label = word if word in KEYWORDS else "_unknown_"
        if split == "test":
            check(word == label, f"KS: an unknown class {word} in {folder}; remove that folder")
        elif word != "_silence_" and keyword_split(path.name) != split:
            continue
        name = f"{path.parent.name}/{path.name}"
        utterances.append(Utterance(name, str(path), KEYWORDS.index(label), label))
    # DIFFERS: they draw dev clips by class, as in training; we score every clip once, and of the
    # noise its first second
    corpus = Corpus("KS", utterances, KEYWORDS, GAIN, crop=SAMPLE_RATE, balanced=split == "train")
    return measure_corpus(corpus, root, skip_broken, cache)


def list_voxceleb(root, names: list[str], labels: dict[str, int]) -> list[Utterance]:
    """Utterances of the names <speaker>/<video>/<segment>.wav, which lie in one or two folders."""
    dev = Path(root, "VoxCeleb1/dev/wav")
    homes = {}
    for folder in (Path(root, "VoxCeleb1/wav"), Path(root, "VoxCeleb1/test/wav"), dev):
        for speaker_folder in folder.glob("id*"):
            homes[speaker_folder.name] = folder
    utterances = []
    for name in names:
        speaker = name.split("/")[0]
        path = homes.get(speaker, dev) / name
        utterances.append(Utterance(name, str(path), labels.get(speaker, -1), speaker))
    return utterances


def read_sid(root, split: str, skip_broken=False, cache: Path | None = None) -> Corpus:
    """Speakers of VoxCeleb1.

    VoxCeleb1/iden_split.txt or veri_test_class.txt               <1, 2 or 3> <path after wav/>
    VoxCeleb1/{dev,test}/wav/<speaker>/<video>/<segment>.wav      (or all in VoxCeleb1/wav)
    """
    file = find("SID", root, "VoxCeleb1/iden_split.txt", "VoxCeleb1/veri_test_class.txt")
    number = {"train": "1", "dev": "2", "test": "3"}[split]
    lines = read_lines("SID", file, r"([123])\s+(id1\d{4}/.+)")
    names = [name for part, name in lines if part == number]
    utterances = list_voxceleb(root, names, {name: index for index, name in enumerate(SPEAKERS)})
    for u in utterances:
        known = u.target >= 0
        check(known, f"SID: {u.reference} is not among id10001 to id11251 in {file}; correct it")
    crop = 8 * SAMPLE_RATE if split == "train" else None
    corpus = Corpus("SID", utterances, SPEAKERS, crop=crop)
    return measure_corpus(corpus, root, skip_broken, cache)


def read_asv(root, split: str, skip_broken=False, cache: Path | None = None) -> Corpus:
    """Speaker verification on VoxCeleb1.

    VoxCeleb1/                                          the folders of read_sid
    VoxCeleb1/veri_test.txt or voxceleb1_test_v2.txt    <0 or 1> <path after wav/> <path after wav/>
    VoxCeleb1/veri_dev.txt (optional)                   the same, for dev
    All speakers in dev/wav train, except those of veri_dev.txt and VoxCeleb's test speakers.
    """
    folder = find("ASV", root, "VoxCeleb1/dev/wav", "VoxCeleb1/wav")
    trials = {"train": [], "dev": read_trials(root, "veri_dev.txt"),
              "test": read_trials(root, "voxceleb1_test_v2.txt", "veri_test.txt")}
    held_out = set(SPEAKERS[269:309])  # VoxCeleb's test speakers, id10270 to id10309
    for _, one, other in trials["dev"]:
        held_out |= {one.split("/")[0], other.split("/")[0]}
    recordings = {}  # of each training speaker
    for place in sorted(folder.glob("id*")):
        if place.name not in held_out:
            names = ["/".join(path.parts[-3:]) for path in place.glob("*/[!.]*.wav")]
            recordings[place.name] = sorted(names)
    if not trials["dev"]:
        trials["dev"] = make_trials([*recordings.values()])
    problem = f"ASV: no {split} trials (veri_{split}.txt) in {root}/VoxCeleb1; {VOXCELEB}"
    check(trials[split] or split == "train", problem)
    if split == "train":
        names = {name for own in recordings.values() for name in own}
    else:
        names = {name for _, *pair in trials[split] for name in pair}
    speakers = {speaker: index for index, speaker in enumerate(recordings)}
    utterances = list_voxceleb(root, sorted(names), speakers)
    corpus = Corpus("ASV", utterances, [*speakers], GAIN, trim=True)
    if split == "train":
        corpus = replace(corpus, min_samples=2 * SAMPLE_RATE + 1, crop=8 * SAMPLE_RATE)
    return keep_trials(measure_corpus(corpus, root, skip_broken, cache), root, split, trials[split])


def read_trials(root, *names: str) -> list[tuple[int, str, str]]:
    """The (label, id, id) of the first list of trials that exists; none without a list."""
    for name in names:
        file = Path(root, "VoxCeleb1", name)
        if file.exists():
            lines = read_lines("ASV", file, r"([01])\s+(id\S+)\s+(id\S+)")
            return [(int(label), one, other) for label, one, other in lines]
    return []


def make_trials(recordings: list[list[str]]) -> list[tuple[int, str, str]]:
    """Dev trials of the first 40 training speakers: each with itself and with the next speaker."""
    # DIFFERS: they have 20,000 random pairs. As there, these recordings train, too.
    trials = []
    for own, following in zip(recordings[:40], recordings[1:]):
        for one, same, other in zip(own[:10], own[len(own) // 2:], following):
            trials += [(1, one, same), (0, one, other)]
    return trials


def keep_trials(corpus: Corpus, root, split: str, trials: list) -> Corpus:
    """The corpus with those trials of which both recordings are usable."""
    usable, kept, lost = {u.id for u in corpus.utterances}, [], []
    for label, one, other in trials:
        if one in usable and other in usable:
            kept.append((label, one, other))
        else:
            lost.append(f"{one} and {other} are a trial that cannot be held")
    both = {label for label, _, _ in kept} == {0, 1}
    problem = f"ASV: no usable {split} trials of both labels in {root}/VoxCeleb1; {VOXCELEB}"
    check(both or split == "train", problem)
    return replace(corpus, trials=tuple(kept), skipped=(*corpus.skipped, *lost))


def read_sd(root, split: str, skip_broken=False, cache: Path | None = None) -> Corpus:
    """Diarization of Libri2Mix. Training recordings are cut into chunks of 20 s.

    diarization/{train,dev,test}/wav.scp    <recording> <Libri2Mix/wav16k/max/... or absolute>
    diarization/{train,dev,test}/rttm       SPEAKER <recording> 1 <start s> <seconds> <NA> <NA>
                                            <speaker> <NA>
    """
    folder = find("SD", root, f"diarization/{split}")
    turns = read_turns(find("SD", folder, "rttm"))
    utterances = []
    for name, path in read_lines("SD", find("SD", folder, "wav.scp"), r"(\S+)\s+(.+)"):
        # LibriMix writes absolute paths of the machine that it ran on: we use the part from
        # Libri2Mix/ on
        _, libri2mix, rest = path.rpartition("Libri2Mix/")
        utterances.append(Utterance(name, os.path.join(root, libri2mix + rest), None, None))
    for name in sorted({u.id for u in utterances} ^ turns.keys()):
        raise DataError(f"SD: {name} is in one of wav.scp and rttm only, in {folder}; "
                        "complete or delete it")
    corpus = measure_corpus(Corpus("SD", utterances, ["0", "1"]), root, skip_broken, cache)
    # DIFFERS: they cut dev and test as well, and score padding
    chunk_samples = 20 * SAMPLE_RATE if split == "train" else None
    kept, skipped = [], list(corpus.skipped)
    for u in corpus.utterances:
        end = max(end for _, _, end in turns[u.id])
        # in the real data some turns last a little longer than their recording
        check(end * SAMPLE_RATE < u.samples + 2 * SAMPLE_RATE, f"SD: a turn of {u.id} ends at "
              f"{end:.2f} s, after the recording, in {folder}/rttm; correct it")
        for chunk in cut_chunks(u, turns[u.id], chunk_samples):
            if chunk.samples >= RECEPTIVE_FIELD:
                kept.append(chunk)
            else:
                skipped.append(f"{chunk.id} is a rest of {chunk.samples} samples")
    return replace(corpus, utterances=kept, skipped=tuple(skipped))


def read_turns(file: Path) -> dict[str, list]:
    """RTTM -> {recording: [[speaker, start s, end s], ...]}, of two speakers at most."""
    # DIFFERS: they train on segments and utt2spk, where turns can share a name (one pair does);
    # rttm has the same turns
    number = r"(\d+\.?\d*(?:e-\d+)?)"
    pattern = rf"SPEAKER\s+(\S+)\s+1\s+{number}\s+{number}\s+<NA>\s+<NA>\s+(\S+)\s+<NA>.*"
    turns = {}
    for name, start, seconds, speaker in read_lines("SD", file, pattern):
        turns.setdefault(name, []).append([speaker, float(start), float(start) + float(seconds)])
        speakers = {speaker for speaker, _, _ in turns[name]}
        check(len(speakers) < 3, f"SD: three speakers in {name} in {file}; delete some")
    return turns


def cut_chunks(u: Utterance, turns: list, chunk_samples: int | None) -> list[Utterance]:
    """A recording as utterances of at most `chunk_samples` (None: as one), with their labels."""
    labels = diarization_labels(turns, u.samples)
    total = len(labels) * LABEL_HOP
    chunks = []
    for start in range(0, total, chunk_samples or max(total, 1)):
        stop = min(start + (chunk_samples or total), total)
        target = labels[start // LABEL_HOP:stop // LABEL_HOP]
        # the last chunk keeps the turns that last longer than the recording
        begin, end = start / SAMPLE_RATE, (start + (chunk_samples or 10**9)) / SAMPLE_RATE
        reference = []
        for speaker, on, off in turns:
            if on < end and off > begin:
                reference.append([speaker, max(on - begin, 0.0), min(off, end) - begin])
        name = f"{u.id}@{start}" if start else u.id
        chunks.append(Utterance(name, u.path, target, reference, stop - start, start, stop))
    return chunks


def read_ic(root, split: str, skip_broken=False, cache: Path | None = None) -> Corpus:
    """Intents of Fluent Speech Commands: action, object and location.

    fluent_speech_commands_dataset/data/{train,valid,test}_data.csv
        a header line, then path (from this folder), action, object, location among the columns
    """
    folder = find("IC", root, "fluent_speech_commands_dataset")
    train = read_intents(find("IC", folder, "data/train_data.csv"))
    part = "valid" if split == "dev" else split
    file = find("IC", folder, f"data/{part}_data.csv")
    labels = []  # of each slot, the values in order of appearance in train
    for column in zip(*[intent for _, intent in train]):
        labels.append(list(dict.fromkeys(column)))
    utterances = []
    for path, intent in read_intents(file):
        known = all(value in names for value, names in zip(intent, labels))
        check(known, f"IC: {intent} is unknown to train, in {file}; correct it")
        target = tuple(names.index(value) for value, names in zip(intent, labels))
        utterances.append(Utterance(path, str(folder / path), target, intent))
    return measure_corpus(Corpus("IC", utterances, labels), root, skip_broken, cache)


def read_intents(file: Path) -> list[tuple[str, list[str]]]:
    """(path, [action, object, location]) of each row of a table of Fluent Speech Commands."""
    rows = []
    for row in csv.DictReader(line for line, in read_lines("IC", file, "(.*)")):
        path, *intent = [row.get(name) for name in ("path", "action", "object", "location")]
        complete = path and all(intent)
        check(complete, f"IC: no path, action, object or location in a line of {file}; complete it")
        rows.append((path, intent))
    return rows


def read_sf(root, split: str, skip_broken=False, cache: Path | None = None) -> Corpus:
    """Slots and their values of Audio SNIPS.

    SNIPS/{train,valid,test}/<voice>-*.wav or .mp3
    SNIPS/slots.txt              O, then a slot type in each line
    SNIPS/all.iob.snips.txt      <id> BOS WORD WORD EOS<tab>O <slot or O> <slot or O> <intent>
    """
    folder = find("SF", root, "SNIPS")
    slots = [slot for slot, in read_lines("SF", find("SF", folder, "slots.txt"), r"(\S+)")]
    symbols = list(SF_SYMBOLS)
    for slot in slots:
        if slot != "O":
            symbols += [f"B-{slot} ", f" E-{slot}"]
    file = find("SF", folder, "all.iob.snips.txt")
    sentences = {}
    for name, words, labels in read_lines("SF", file, r"(\S+) BOS (.+) EOS\tO (.+) \S+"):
        check(name not in sentences, f"SF: {name} is listed twice in {file}; delete one")
        sentences[name] = words.split(), labels.split()
    utterances, skipped = [], []
    for path in sorted(find("SF", folder, "valid" if split == "dev" else split).glob("[!.]*")):
        if path.suffix not in (".wav", ".mp3") or not path.stem.startswith(VOICES[split]):
            continue
        if path.stem not in sentences:
            skipped.append(f"{path} has no line in {file}")
            continue
        words, labels = sentences[path.stem]
        fits = len(words) == len(labels) and set(labels) <= {"O", *slots}
        check(fits, f"SF: {path.stem} has unknown slots or not one per word in {file}; correct it")
        target = encode(slot_tokens(words, labels), symbols)
        utterances.append(Utterance(path.stem, str(path), target, decode_slots(symbols, target)))
    corpus = Corpus("SF", utterances, symbols, skipped=tuple(skipped))
    return measure_corpus(corpus, root, skip_broken, cache, ctc=split == "train")


def read_er(root, split: str, skip_broken=False, cache: Path | None = None,
            fold: int = 1) -> Corpus:
    """Emotions of IEMOCAP. Fold k tests on session k and draws dev from the others.

    IEMOCAP (or IEMOCAP_full_release)/Session{1..5}/
        sentences/wav/<dialog>/<id>.wav
        dialog/EmoEvaluation/<dialog>.txt    [<times>]<tab><id><tab><emotion><tab>[<ratings>]
    """
    folder = find("ER", root, "IEMOCAP/IEMOCAP_full_release", "IEMOCAP_full_release", "IEMOCAP")
    emotions = "ang|dis|exc|fea|fru|hap|neu|oth|sad|sur|xxx"
    pattern = rf"\[.+\]\t(\S+)\t({emotions})\t\[.+\]|[^[].*"
    sessions = [fold] if split == "test" else [number for number in range(1, 6) if number != fold]
    utterances = []
    for session in sessions:
        place = find("ER", folder, f"Session{session}/dialog/EmoEvaluation")
        for file in sorted(place.glob("[!.]*.txt")):
            wavs = folder / f"Session{session}/sentences/wav" / file.stem
            for name, emotion in read_lines("ER", file, pattern):
                label = "hap" if emotion == "exc" else emotion
                if label in EMOTIONS:
                    path = str(wavs / f"{name}.wav")
                    utterances.append(Utterance(name, path, EMOTIONS.index(label), label))
    if split != "test":
        # DIFFERS: their 20 % for dev follow from an order of files that only their lists record
        order = torch.randperm(len(utterances), generator=torch.Generator().manual_seed(0))
        train_size = int(0.8 * len(utterances))
        chosen = order[:train_size] if split == "train" else order[train_size:]
        utterances = [utterances[index] for index in chosen.tolist()]
    return measure_corpus(Corpus("ER", utterances, EMOTIONS), root, skip_broken, cache)


class Dataset(NamedTuple):
    """Where the data of a task come from."""
    reader: Callable
    folder: str
    counts: tuple[int, int, int]  # SUPERB's train, dev, test (ASV: recordings, none, trials)
    source: str                   # how to get it, under which licence


VOXCELEB = "request it at robots.ox.ac.uk/~vgg/data/voxceleb (CC BY-SA 4.0)"
DATASETS = {
    "PR": Dataset(read_pr, "LibriSpeech", (28_539, 2_703, 2_620),
                  "get LibriSpeech at openslr.org/12 (CC BY 4.0), and the lexicons at "
                  "huggingface.co/datasets/s3prl/g2p"),
    "ASR": Dataset(read_asr, "LibriSpeech", (28_539, 2_703, 2_620),
                   "get LibriSpeech at openslr.org/12 (CC BY 4.0)"),
    "KS": Dataset(read_ks, "speech_commands", (51_100, 6_804, 3_081),
                  "get both at download.tensorflow.org/data (CC BY 4.0)"),
    "SID": Dataset(read_sid, "VoxCeleb1", (138_361, 6_904, 8_251), VOXCELEB),
    "ASV": Dataset(read_asv, "VoxCeleb1", (148_642, 0, 37_720), VOXCELEB),
    "SD": Dataset(read_sd, "Libri2Mix, diarization", (13_900, 3_000, 3_000),
                  "make it with github.com/s3prl/LibriMix (LibriSpeech: CC BY 4.0; WHAM noise: "
                  "CC BY-NC 4.0)"),
    "IC": Dataset(read_ic, "fluent_speech_commands_dataset", (23_132, 3_118, 3_793),
                  "request it at fluent.ai (academic use)"),
    "SF": Dataset(read_sf, "SNIPS", (104_672, 2_800, 2_800),
                  "get Audio SNIPS by the link under SF in s3prl's docs/superb.md (licence: see "
                  "github.com/aws-samples/aws-lex-noisy-spoken-language-understanding)"),
    "ER": Dataset(read_er, "IEMOCAP", (3_556, 890, 1_085),
                  "request it at sail.usc.edu/iemocap (signed licence form)"),
}


def main() -> bool:
    """The data doctor; -> whether anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="DIR", help="the folder that holds the datasets")
    parser.add_argument("--decode", action="store_true", help="also decode every audio file")
    args = parser.parse_args()
    if not os.path.isdir(args.root):
        parser.exit(2, f"There is no folder {args.root}; name the one that holds the datasets.\n")
    problems, notes = {}, []  # {problem: the tasks that have it}
    print(f"{'':6}{'found / in SUPERB':31}{'train':>19}{'dev':>19}{'test':>19}")
    for task, dataset in DATASETS.items():
        row = f"{task:6}{dataset.folder:31}"
        for split, expected in zip(("train", "dev", "test"), dataset.counts):
            try:
                corpus = dataset.reader(args.root, split, skip_broken=args.decode or "headers")
            except DataError as error:
                corpus = Corpus(task, [], [], skipped=(str(error),))
            left_out = []
            for sentence in corpus.skipped:
                if sentence.startswith(f"{task}: "):  # of a DataError
                    problems.setdefault(sentence.removeprefix(f"{task}: "), {})[task] = True
                else:
                    left_out.append(sentence)
            paths = sorted({u.path for u in corpus.utterances})
            resampled = [p for p in paths if soundfile.info(p).samplerate != SAMPLE_RATE]
            if left_out:
                notes.append(f"{task} {split}: {len(left_out):,} left out, as {left_out[0]}.")
            if resampled:
                notes.append(f"{task} {split}: {len(resampled):,} not at 16 kHz (convert them to "
                             f"save time), as {resampled[0]}.")
            count = f"{len(corpus.trials) or len(paths):,}" if paths else "none"
            row += f"{f'{count} / {expected:,}' if expected else count:>19}"
        print(row)
    print()
    for problem, tasks in problems.items():
        print(f"{', '.join(tasks)}: {problem}.")
    for note in notes:
        print(note)
    print(f"Problems: {len(problems)}.")
    return bool(problems)


if __name__ == "__main__":
    raise SystemExit(main())

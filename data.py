"""Nine tasks of SUPERB, read from the folders of their corpora.

    python data.py DIR             the data doctor: what is there, and for what is not, the next thing to do
    python data.py DIR --decode    decodes every audio file as well (headers do not show all that is broken)

Splits and labels are SUPERB's (rules.py), as the released s3prl code makes them. n samples at 16 kHz.
"""
import argparse
import csv
import functools
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from engine.audio import REPLACE, DataError, check, decode, header_samples
from rules import (ASR_SYMBOLS, EMOTIONS, RECEPTIVE_FIELD, GAIN, HOP, KEYWORDS, LABEL_HOP, PHONES, PR_SYMBOLS, SAMPLE_RATE,
                   SF_SYMBOLS, SPEAKERS, VOICES, decode_intent, decode_phones, decode_slots, decode_turns, decode_words,
                   diarization_labels, encode, keyword_split, slot_tokens, voiced_segments)

MEMORY = Path("cache/decoded.tsv")  # what has been decoded well, so that it is done once

@dataclass(frozen=True)
class Utterance:
    """One input and its answer."""
    id: str                         # unique within its split
    path: str
    target: object                  # for the loss: class, 3 classes (IC), token ids (PR ASR SF), array (T, 2) (SD)
    reference: object               # for the metric: phones, words, tagged string, name(s), [speaker, start s, end s]s
    samples: int = 0                # length at 16 kHz (ASV: without silence)
    start: int = 0                  # the part of the file, in samples at 16 kHz
    stop: int | None = None

@dataclass(frozen=True)
class Corpus:
    """One split of one task."""
    task: str
    utterances: list[Utterance]
    classes: int | tuple[int, ...]  # outputs of the head
    decode: Callable                # a head's prediction -> comparable with Utterance.reference
    gain: float = 1.0
    trim: bool = False              # remove silence as sox does
    least: int = RECEPTIVE_FIELD              # shortest input in samples
    crop: int | None = None         # longest input in samples
    balanced: bool = False          # training draws all classes equally often
    trials: tuple = ()              # ASV dev and test: (label, id, id)
    skipped: tuple[str, ...] = ()   # what was left out and why, a sentence each (a broken file: its DataError)

    @property
    def lengths(self) -> list[int]:
        """Samples of each utterance as a head hears it."""
        return [min(u.samples, self.crop or u.samples) for u in self.utterances]

def load_audio(utterance: Utterance, corpus: Corpus, seed=None) -> np.ndarray:
    """The utterance as its task hears it: float32 (n,) at 16 kHz. DataError if the file is broken.
    Where it is longer than corpus.crop, seed (an int or several) draws the window; without one it starts at 0."""
    wave = decode(corpus.task, utterance.path)[utterance.start:utterance.stop]
    if corpus.trim:
        wave = np.concatenate([wave[:0], *(wave[start:stop] for start, stop in voiced_segments(wave, corpus.gain))])
    if corpus.crop and len(wave) > corpus.crop:
        start = 0 if seed is None else np.random.default_rng(seed).integers(len(wave) - corpus.crop + 1)
        wave = wave[start:start + corpus.crop]
    return wave * np.float32(corpus.gain)  # DIFFERS: sox rounds to 32-bit integers here; floats need not

def _need(task: str, root, *names: str) -> Path:
    """The first of the paths root/name that exists."""
    found = [Path(root, name) for name in names if Path(root, name).exists()]
    check(found, f"{task}: nothing called {' or '.join(names)} in {root}; {DATASETS[task][3]}")
    return found[0]

def _rows(task: str, file: Path, pattern: str):
    """Yields the groups of a pattern that each line of a text file has to match, unless it is blank."""
    try:
        text = _need(task, file.parent, file.name).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{task}: no readable UTF-8 text in {file}; save it as such") from None
    check(text.strip(), f"{task}: nothing in {file}; restore it")
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        match = re.fullmatch(pattern, line)
        check(match or not line, f"{task}: line {number} ({line[:40]}), which is malformed, in {file}; correct it")
        if line:
            yield match.groups()

def _checked(corpus: Corpus, root, skip_broken: bool | str, ctc=False) -> Corpus:
    """The corpus with the lengths of its utterances, without those that are broken or too short.

    Headers tell the lengths. Files are decoded to find what headers do not show (skip_broken=True) and what silence
    leaves (trim); skip_broken="headers", for the doctor, decodes nothing."""
    task, kept, skipped, ids = corpus.task, [], list(corpus.skipped), set()
    for u in corpus.utterances:
        inside = Path(os.path.abspath(u.path)).is_relative_to(os.path.abspath(root))
        check(inside, f"{task}: the path {u.path}, which leads out, in {root}; keep it inside (links are fine)")
        check(u.id not in ids, f"{task}: {u.id}, listed twice, in {root}; delete one")
        ids.add(u.id)
    known = None
    if skip_broken is True or (corpus.trim and not skip_broken):
        known = dict(re.findall(r"(.+)\t(\d+)\n", MEMORY.read_text())) if MEMORY.exists() else {}
    title = f"{task}: {'file headers' if known is None else 'decoding every file, once'}"
    pool = ThreadPoolExecutor()  # (a multiprocessing.pool takes a tenth of a second to end)
    lengths = [pool.submit(_measure, corpus, known, u) for u in corpus.utterances]
    try:
        for u, length in zip(corpus.utterances, tqdm(lengths, title, delay=2, leave=False)):
            try:
                samples = length.result()
            except DataError as error:
                check(skip_broken, str(error))
                skipped.append(str(error))
                continue
            # CTC needs a frame for each symbol, and one for the blank that parts two of the same
            frames = len(u.target) + sum(a == b for a, b in zip(u.target, u.target[1:])) if ctc else 1
            least = max(corpus.least, RECEPTIVE_FIELD + (frames - 1) * HOP)
            if samples >= least:
                kept.append(replace(u, samples=samples))
            else:
                skipped.append(f"{u.id} is too short: {samples} samples, {least} are needed")
    finally:
        pool.shutdown(cancel_futures=True)
    check(kept, f"{task}: no usable utterance ({[*skipped, 'none is listed'][0]}) in {root}; {DATASETS[task][3]}")
    return replace(corpus, utterances=kept, skipped=tuple(skipped))

def _measure(corpus: Corpus, known: dict | None, u: Utterance) -> int:
    """The samples of an utterance: by its header where known is None, else by decoding, unless known (or MEMORY in a
    later run) has them. DataError if the file is broken."""
    samples = header_samples(corpus.task, u.path)
    if known is not None:
        about = os.stat(u.path)
        key = f"{u.path} {about.st_size} {about.st_mtime} {corpus.trim}"
        if key not in known:
            known[key] = len(load_audio(u, replace(corpus, crop=None)))
            MEMORY.parent.mkdir(exist_ok=True)
            with open(MEMORY, "a") as file:
                file.write(f"{key}\t{known[key]}\n")
        samples = int(known[key])
    return samples

def _librispeech(task: str, root, split: str) -> tuple[list, list]:
    """(id, path, words) of each line of the transcripts, and sentences on the recordings that are in none of them."""
    folder = _need(task, root, "LibriSpeech/train-clean-100" if split == "train" else f"LibriSpeech/{split}-clean")
    lines = [(id, str(file.parent / f"{id}.flac"), words.upper().split())
             for file in sorted(folder.glob("*/*/[!.]*.trans.txt")) for id, words in _rows(task, file, r"(\S+)\s+(.+)")]
    mute = {str(path) for path in folder.glob("*/*/[!.]*.flac")} - {path for _, path, _ in lines}
    return lines, [f"{path} has no transcript" for path in sorted(mute)]

def read_pr(root, split: str, skip_broken=False) -> Corpus:
    """LibriSpeech/librispeech-lexicon-{200k,allothers}-g2p.txt (or one of them)          WORD PH PH PH
       LibriSpeech/{train-clean-100,dev-clean,test-clean}/<speaker>/<chapter>/<id>.flac, *.trans.txt: <id> WORD WORD"""
    lexicon, utterances, phone = {}, [], "|".join(PHONES)
    _need("PR", root, *(f"LibriSpeech/librispeech-lexicon-{part}-g2p.txt" for part in ("200k", "allothers")))
    for file in sorted(Path(root).glob("LibriSpeech/librispeech-lexicon-*-g2p.txt")):
        for word, phones in _rows("PR", file, rf"(\S+)\s+((?:{phone})(?: +(?:{phone}))*)"):
            lexicon.setdefault(word, phones.split())  # SUPERB takes the first pronunciation
    lines, skipped = _librispeech("PR", root, split)
    for id, path, words in lines:
        if missing := [word for word in words if word not in lexicon]:
            skipped.append(f"{id}: {missing[0]} is not in the lexicon")  # DIFFERS: they stop with a KeyError
        else:
            phones = [phone for word in words for phone in lexicon[word]]
            utterances.append(Utterance(id, path, encode([*phones, "<eos>"], PR_SYMBOLS), phones))
    corpus = Corpus("PR", utterances, len(PR_SYMBOLS), decode_phones, skipped=tuple(skipped))
    return _checked(corpus, root, skip_broken, ctc=split == "train")

def read_asr(root, split: str, skip_broken=False) -> Corpus:
    """The folders of read_pr, without the lexicons. IT'S -> I T ' S | </s>."""
    lines, skipped = _librispeech("ASR", root, split)
    utterances = [Utterance(id, path, encode([*"|".join([*words, ""]), "</s>"], ASR_SYMBOLS), words)
                  for id, path, words in lines]
    corpus = Corpus("ASR", utterances, len(ASR_SYMBOLS), decode_words, skipped=tuple(skipped))
    return _checked(corpus, root, skip_broken, ctc=split == "train")

def read_ks(root, split: str, skip_broken=False) -> Corpus:
    """speech_commands_v0.01/{<word>/<speaker>_nohash_<n>.wav,_background_noise_/*.wav}    train, dev (noise: both)
       speech_commands_test_set_v0.01/<class>/*.wav                                      test"""
    folder = _need("KS", root, "speech_commands_test_set_v0.01" if split == "test" else "speech_commands_v0.01")
    clips = []
    for path in sorted(folder.glob("*/[!.]*.wav")):
        word = "_silence_" if path.parent.name == "_background_noise_" else path.parent.name
        label = word if word in KEYWORDS else "_unknown_"
        check(split != "test" or word == label, f"KS: an unknown class {word} in {folder}; remove that folder")
        if split == "test" or word == "_silence_" or keyword_split(path.name) == split:
            clips.append(Utterance(f"{path.parent.name}/{path.name}", str(path), KEYWORDS.index(label), label))
    # DIFFERS: they draw dev clips by class, as in training; we score each clip once, of the noise its first second
    corpus = Corpus("KS", clips, len(KEYWORDS), KEYWORDS.__getitem__, GAIN, crop=SAMPLE_RATE, balanced=split == "train")
    return _checked(corpus, root, skip_broken)

def _voxceleb(root, names, labels: dict[str, int]) -> list[Utterance]:
    """Utterances for the names <speaker>/<video>/<segment>.wav, which are in one folder or in two."""
    folders = [Path(root, "VoxCeleb1", part) for part in ("wav", "test/wav", "dev/wav")]
    homes = {place.name: folder for folder in folders for place in folder.glob("id*")}
    utterances = []
    for name in names:
        speaker = name.split("/")[0]
        path = homes.get(speaker, folders[-1]) / name
        utterances.append(Utterance(name, str(path), labels.get(speaker, -1), speaker))
    return utterances

def read_sid(root, split: str, skip_broken=False) -> Corpus:
    """VoxCeleb1/iden_split.txt or veri_test_class.txt             <1, 2 or 3> <path after wav/>
       VoxCeleb1/{dev,test}/wav/<speaker>/<video>/<segment>.wav (or all in VoxCeleb1/wav)"""
    file = _need("SID", root, "VoxCeleb1/iden_split.txt", "VoxCeleb1/veri_test_class.txt")
    number = {"train": "1", "dev": "2", "test": "3"}[split]
    names = [name for part, name in _rows("SID", file, r"([123])\s+(id1\d{4}/.+)") if part == number]
    utterances = _voxceleb(root, names, {speaker: label for label, speaker in enumerate(SPEAKERS)})
    for u in utterances:
        check(u.target >= 0, f"SID: {u.reference}, not among id10001 to id11251, in {file}; correct it")
    crop = 8 * SAMPLE_RATE if split == "train" else None
    return _checked(Corpus("SID", utterances, len(SPEAKERS), SPEAKERS.__getitem__, crop=crop), root, skip_broken)

def read_asv(root, split: str, skip_broken=False) -> Corpus:
    """VoxCeleb1/ as for read_sid, veri_test.txt or voxceleb1_test_v2.txt   <0 or 1> <path after wav/> <path after wav/>
       VoxCeleb1/veri_dev.txt (optional)                                    the same, for dev
       Train are all speakers in dev/wav but id10270 to id10309, which are VoxCeleb's for the test, and dev's."""
    folder, lists = _need("ASV", root, "VoxCeleb1/dev/wav", "VoxCeleb1/wav"), {"train": [], "dev": [], "test": []}
    for part, name in ("dev", "veri_dev.txt"), ("test", "veri_test.txt"), ("test", "voxceleb1_test_v2.txt"):
        if Path(root, "VoxCeleb1", name).exists():
            lines = _rows("ASV", Path(root, "VoxCeleb1", name), r"([01])\s+(id\S+)\s+(id\S+)")
            lists[part] = [(int(label), a, b) for label, a, b in lines]
    away = {name.split("/")[0] for _, *pair in lists["dev"] for name in pair}  # dev's speakers
    away |= set(SPEAKERS[269:309])  # and the test's, id10270 to id10309
    files = {place.name: sorted("/".join(path.parts[-3:]) for path in place.glob("*/[!.]*.wav"))
             for place in sorted(folder.glob("id*")) if place.name not in away}
    if not lists["dev"]:  # DIFFERS: they have 20,000 random pairs. As there, these recordings train, too
        for one, two in zip(list(files.values())[:40], list(files.values())[1:]):
            for a, b, c in zip(one[:10], one[len(one) // 2:], two):
                lists["dev"] += (1, a, b), (0, a, c)
    trials = lists[split]
    check(trials or split == "train", f"ASV: no {split} trials (veri_{split}.txt) in {root}/VoxCeleb1; {VOXCELEB}")
    names = {name for _, *pair in trials for name in pair} or {name for own in files.values() for name in own}
    utterances = _voxceleb(root, sorted(names), {speaker: label for label, speaker in enumerate(files)})
    least, crop = (2 * SAMPLE_RATE + 1, 8 * SAMPLE_RATE) if split == "train" else (RECEPTIVE_FIELD, None)
    corpus = Corpus("ASV", utterances, len(files), list, GAIN, trim=True, least=least, crop=crop)
    corpus = _checked(corpus, root, skip_broken)
    ids = {u.id for u in corpus.utterances}
    kept = tuple(trial for trial in trials if ids.issuperset(trial[1:]))
    lost = tuple(f"{a} and {b} are a trial that cannot be held" for _, a, b in trials if not ids.issuperset((a, b)))
    both = {label for label, *_ in kept} == {0, 1}
    check(both or split == "train", f"ASV: no usable {split} trials of both labels in {root}/VoxCeleb1; {VOXCELEB}")
    return replace(corpus, trials=kept, skipped=corpus.skipped + lost)

def read_sd(root, split: str, skip_broken=False) -> Corpus:
    """diarization/{train,dev,test}/wav.scp     <recording> <Libri2Mix/wav16k/max/... in DIR, or absolute>
       diarization/{train,dev,test}/rttm        SPEAKER <recording> 1 <start s> <seconds> <NA> <NA> <speaker> <NA>"""
    folder, turns, number = _need("SD", root, f"diarization/{split}"), {}, r"(\d+\.?\d*(?:e-\d+)?)"
    # DIFFERS: they train on segments and utt2spk, where turns can share a name (one pair does); rttm has the same turns
    line = rf"SPEAKER\s+(\S+)\s+1\s+{number}\s+{number}\s+<NA>\s+<NA>\s+(\S+)\s+<NA>.*"
    for name, start, seconds, speaker in _rows("SD", folder / "rttm", line):
        turns.setdefault(name, []).append([speaker, float(start), float(start) + float(seconds)])
        check(len({turn[0] for turn in turns[name]}) < 3, f"SD: three speakers ({name}) in {folder}/rttm; delete some")
    # LibriMix writes the absolute paths of the machine that it ran on: what counts is the part from Libri2Mix/ on
    utterances = [Utterance(name, os.path.join(root, *path.rpartition("Libri2Mix/")[1:]), None, None)
                  for name, path in _rows("SD", folder / "wav.scp", r"(\S+)\s+(.+)")]
    odd = {u.id for u in utterances} ^ turns.keys()
    check(not odd, f"SD: {min(odd, default='')}, in one of wav.scp and rttm only, in {folder}; complete or delete it")
    corpus, chunks = _checked(Corpus("SD", utterances, 2, decode_turns), root, skip_broken), []
    size = 20 * SAMPLE_RATE if split == "train" else 10**9  # DIFFERS: they cut dev and test as well, and score padding
    for u in corpus.utterances:
        end = max(off for _, _, off in turns[u.id])  # of the real ones some last a little longer than their recording
        problem = f"SD: a turn of {u.id} that ends at {end:.2f} s, after the recording, in {folder}/rttm; correct it"
        check(end * SAMPLE_RATE < u.samples + 2 * SAMPLE_RATE, problem)
        labels = diarization_labels(turns[u.id], u.samples)
        for start in range(0, len(labels) * LABEL_HOP, size):
            a, b, stop = start / SAMPLE_RATE, (start + size) / SAMPLE_RATE, min(start + size, len(labels) * LABEL_HOP)
            spoken = [[who, max(on - a, 0.0), min(off, b) - a] for who, on, off in turns[u.id] if on < b and off > a]
            target, id = labels[start // LABEL_HOP:stop // LABEL_HOP], f"{u.id}@{start}" if start else u.id
            chunks.append(Utterance(id, u.path, target, spoken, stop - start, start, stop))
    short = tuple(f"{u.id} is a rest of {u.samples} samples" for u in chunks if u.samples < RECEPTIVE_FIELD)
    chunks = [u for u in chunks if u.samples >= RECEPTIVE_FIELD]
    return replace(corpus, utterances=chunks, skipped=corpus.skipped + short)

def read_ic(root, split: str, skip_broken=False) -> Corpus:
    """fluent_speech_commands_dataset/data/{train,valid,test}_data.csv     path (from here), action, object, location"""
    folder, tables = _need("IC", root, "fluent_speech_commands_dataset"), {}
    for part in ("train", split):
        file = folder / f"data/{'valid' if part == 'dev' else part}_data.csv"
        lines = csv.DictReader(line for line, in _rows("IC", file, "(.*)"))
        tables[part] = [[line.get(column) for column in ("path", "action", "object", "location")] for line in lines]
        check(all(map(all, tables[part])), f"IC: no path, action, object or location in a line of {file}; complete it")
    values = [list(dict.fromkeys(column)) for column in list(zip(*tables["train"]))[1:]]  # in order of appearance
    for _, *intent in tables[split]:
        check(all(map(list.__contains__, values, intent)), f"IC: {intent}, unknown to train, in {file}; correct it")
    utterances = [Utterance(path, str(folder / path), tuple(map(list.index, values, intent)), intent)
                  for path, *intent in tables[split]]
    corpus = Corpus("IC", utterances, tuple(map(len, values)), functools.partial(decode_intent, values))
    return _checked(corpus, root, skip_broken)

def read_sf(root, split: str, skip_broken=False) -> Corpus:
    """SNIPS/{train,valid,test}/<voice>-*.wav or .mp3;  SNIPS/slots.txt    O, then a slot type in each line
       SNIPS/all.iob.snips.txt     <id> BOS WORD WORD EOS<tab>O <slot or O> <slot or O> <intent>"""
    folder, utterances, silent = _need("SF", root, "SNIPS"), [], []
    slots, file = [slot for slot, in _rows("SF", folder / "slots.txt", r"(\S+)")], folder / "all.iob.snips.txt"
    symbols = SF_SYMBOLS + [tag for slot in slots if slot != "O" for tag in (f"B-{slot} ", f" E-{slot}")]
    sentences = {}
    for id, *sentence in _rows("SF", file, r"(\S+) BOS (.+) EOS\tO (.+) \S+"):
        check(id not in sentences, f"SF: {id}, listed twice, in {file}; delete one")
        sentences[id] = sentence
    for path in sorted(_need("SF", folder, "valid" if split == "dev" else split).glob("[!.]*")):
        id = path.stem
        if path.suffix not in (".wav", ".mp3") or not id.startswith(VOICES[split]):
            continue
        if id not in sentences:
            silent.append(f"{path} has no line in {file}")
            continue
        words, labels = map(str.split, sentences[id])
        problem = f"SF: {id}, with unknown slots or not one per word, in {file}; correct it"
        check(len(words) == len(labels) and set(labels) <= {"O", *slots}, problem)
        target = encode(slot_tokens(words, labels), symbols)
        utterances.append(Utterance(id, str(path), target, decode_slots(symbols, target)))
    corpus = Corpus("SF", utterances, len(symbols), functools.partial(decode_slots, symbols), skipped=tuple(silent))
    return _checked(corpus, root, skip_broken, ctc=split == "train")

def read_er(root, split: str, fold: int = 1, skip_broken=False) -> Corpus:
    """IEMOCAP (or IEMOCAP_full_release)/Session{1..5}/sentences/wav/<dialog>/<id>.wav     fold k tests on session k
       .../Session{1..5}/dialog/EmoEvaluation/<dialog>.txt     [<times>]<tab><id><tab><emotion><tab>[<ratings>]"""
    folder, pool = _need("ER", root, "IEMOCAP/IEMOCAP_full_release", "IEMOCAP_full_release", "IEMOCAP"), []
    emotions = "ang|dis|exc|fea|fru|hap|neu|oth|sad|sur|xxx"
    for session in [k for k in range(1, 6) if (k == fold) == (split == "test")]:
        for file in sorted(_need("ER", folder, f"Session{session}/dialog/EmoEvaluation").glob("[!.]*.txt")):
            for id, emotion in _rows("ER", file, rf"\[.+\]\t(\S+)\t({emotions})\t\[.+\]|[^[].*"):
                label = "hap" if emotion == "exc" else emotion
                if label in EMOTIONS:
                    path = folder / f"Session{session}/sentences/wav/{file.stem}/{id}.wav"
                    pool.append(Utterance(id, str(path), EMOTIONS.index(label), label))
    if split != "test":  # DIFFERS: their 20 % for dev follow from an order of files that only their own lists record
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0)).tolist()
        most = int(0.8 * len(pool))
        pool = [pool[i] for i in (order[:most] if split == "train" else order[most:])]
    return _checked(Corpus("ER", pool, len(EMOTIONS), EMOTIONS.__getitem__), root, skip_broken)

VOXCELEB = "request it at robots.ox.ac.uk/~vgg/data/voxceleb (CC BY-SA 4.0)"
DATASETS = {  # task: reader, folder, SUPERB's counts (ASV: before the length filter; trials), where to get it
    "PR": (read_pr, "LibriSpeech", (28_539, 2_703, 2_620), "get LibriSpeech at openslr.org/12 (CC BY 4.0), "
           "and the lexicons at huggingface.co/datasets/s3prl/g2p"),
    "ASR": (read_asr, "LibriSpeech", (28_539, 2_703, 2_620), "get LibriSpeech at openslr.org/12 (CC BY 4.0)"),
    "KS": (read_ks, "speech_commands", (51_100, 6_804, 3_081), "get both at download.tensorflow.org/data (CC BY 4.0)"),
    "SID": (read_sid, "VoxCeleb1", (138_361, 6_904, 8_251), VOXCELEB),
    "ASV": (read_asv, "VoxCeleb1", (148_642, 0, 37_720), VOXCELEB),
    "SD": (read_sd, "Libri2Mix, diarization", (13_900, 3_000, 3_000), "make it with github.com/s3prl/LibriMix "
           "(LibriSpeech: CC BY 4.0; WHAM noise: CC BY-NC 4.0)"),
    "IC": (read_ic, "fluent_speech_commands_dataset", (23_132, 3_118, 3_793), "request it at fluent.ai (academic use)"),
    "SF": (read_sf, "SNIPS", (104_672, 2_800, 2_800), "get Audio SNIPS by the link under SF in s3prl's "
           "docs/superb.md (licence: see github.com/aws-samples/aws-lex-noisy-spoken-language-understanding)"),
    "ER": (read_er, "IEMOCAP", (3_556, 890, 1_085), "request it at sail.usc.edu/iemocap (signed licence form)"),
}

def main() -> bool:
    """The data doctor; -> whether anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="DIR", help="the folder that holds the datasets")
    parser.add_argument("--decode", action="store_true", help="also decode every audio file")
    args, problems, notes = parser.parse_args(), {}, []  # {problem: the tasks that have it}
    if not os.path.isdir(args.root):
        parser.exit(2, f"There is no folder {args.root}; name the one that holds the datasets.\n")
    print(f"{'':6}{'found / in SUPERB':31}{'train':>19}{'dev':>19}{'test':>19}")
    for task, (reader, folder, official, _) in DATASETS.items():
        row = f"{task:6}{folder:31}"
        for split, expected in zip(("train", "dev", "test"), official):
            try:
                corpus = reader(args.root, split, skip_broken=args.decode or "headers")
            except DataError as error:
                corpus = Corpus(task, [], 0, list, skipped=(str(error),))
            others = [text for text in corpus.skipped if not text.startswith(f"{task}: ")]
            for text in [text for text in corpus.skipped if text.startswith(f"{task}: ")]:
                problems.setdefault(text.removeprefix(f"{task}: "), {})[task] = True
            paths = {u.path for u in corpus.utterances}
            odd = sorted(path for path in paths if soundfile.info(path).samplerate != SAMPLE_RATE)
            for found, what in (others, "left out"), (odd, "not at 16 kHz (convert them to save time)"):
                if found:
                    notes.append(f"{task} {split}: {len(found):,} {what}, as {found[0]}.")
            count = f"{len(corpus.trials) or len(paths):,}" if paths else "none"
            row += f"{f'{count} / {expected:,}' if expected else count:>19}"
        print(row)
    print("", *(f"{', '.join(tasks)}: {text}." for text, tasks in problems.items()), *notes, sep="\n")
    print(f"Problems: {len(problems)}.")
    return bool(problems)

if __name__ == "__main__":
    raise SystemExit(main())

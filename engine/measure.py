"""What every reader does with the utterances that it found: check the list, measure the lengths,
digest the content.
"""
import hashlib
import json
import os
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from corpus import Corpus, Utterance
from engine.audio import decode_audio, header_samples
from engine.files import NOT_READ, DataError, check, printable
from engine.launch import progress
from rules import HOP, RECEPTIVE_FIELD, SAMPLE_RATE, ctc_frames, voiced_segments

LENGTH_RULE = "decoded length, version 1"  # changes whenever decoding or trimming changes
DIGEST_RULE = "content, version 1"         # changes whenever the digest of a file changes
BLOCK = 4096                               # bytes of each part of a sampled file
SMALL_CORPUS = 2 * 10**9                   # bytes up to which whole files are hashed
PROCESS_DIGESTS: dict[str, str] = {}       # what this process knows, by file_key


class FileMemory:
    """Facts about files, such as decoded lengths, kept in a folder to save time in the next run.

    A line holds a digest of (rule, path, size, time of change), the fact, and a checksum. Nothing
    depends on this file: if it is damaged or cannot be written, only time is lost.
    """

    def __init__(self, folder: Path | None):
        self.path = Path(folder, "audio_files.tsv") if folder else None
        self.facts: dict[str, str] = {}
        try:
            content = self.path.read_bytes() if self.path else b""
        except OSError:
            content = b""
        for line in content.split(b"\n")[:-1]:  # the last part is empty, or a line cut short
            match = re.fullmatch(rb"([0-9a-f]{32})\t(\w+)\t([0-9a-f]{8})", line)
            if match and match[3].decode() == _checksum(match[1].decode(), match[2].decode()):
                self.facts[match[1].decode()] = match[2].decode()

    def store(self, key: str, fact) -> None:
        """Remember a fact under the key of a file, on disk if possible."""
        self.facts[key] = str(fact)
        if self.path is None:
            return
        line = f"{key}\t{self.facts[key]}\t{_checksum(key, self.facts[key])}\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(line.encode())
        except OSError:
            pass


def file_key(rule: str, path: str) -> str:
    """The key of a fact about a file. It changes with the rule and whenever the file changes."""
    about = os.stat(path)
    name = f"{rule} {os.path.abspath(path)} {about.st_size} {about.st_mtime_ns}"
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _checksum(*parts: str) -> str:
    """Eight hexadecimal digits."""
    return f"{zlib.crc32(' '.join(parts).encode()):08x}"


def measure_corpus(corpus: Corpus, root, skip_broken: bool | str, cache: Path | None = None,
                   ctc: bool = False) -> Corpus:
    """The corpus with the lengths of its utterances, without those that are too short.

    Lengths come from the headers. Files are decoded if silence is removed (`corpus.trim`) or if
    `skip_broken` is True. skip_broken=False raises DataError at the first broken file it notices.
    True leaves out broken files. "headers" (for the doctor) leaves out files with a broken header.
    `cache`: the folder that remembers decoded lengths. `ctc`: an utterance also needs the frames
    that CTC needs. `root`: the data folder, for messages."""
    check_lists(corpus, root)
    decoding = skip_broken is True or (corpus.trim and not skip_broken)
    memory = FileMemory(cache) if decoding else None
    title = f"{corpus.task}: {'decoding every file, once' if decoding else 'file headers'}"
    kept, skipped = [], list(corpus.skipped)
    pool = ThreadPoolExecutor()
    lengths = [pool.submit(measure_samples, corpus, u, memory) for u in corpus.utterances]
    try:
        for u, length in zip(corpus.utterances, progress(lengths, title, delay=2, leave=False)):
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
    # A sentence about a listed recording says more than one about audio that is not read.
    first = min(skipped, key=lambda text: NOT_READ in text, default="none is listed")
    check(kept, f"{corpus.task}: no usable utterance ({first}) in {root}; one at least is needed")
    return replace(corpus, utterances=kept, skipped=tuple(printable(text) for text in skipped))


def check_lists(corpus: Corpus, root) -> None:
    """Raises DataError if a path points outside the data folder or an id occurs twice."""
    task, ids = corpus.task, set()
    for u in corpus.utterances:
        inside = Path(os.path.abspath(u.path)).is_relative_to(os.path.abspath(root))
        check(inside, f"{task}: the path {u.path} points outside the data folder {root}; "
              "keep it inside (links are fine)")
        check(u.id not in ids, f"{task}: {u.id} is listed twice in {root}; delete one")
        ids.add(u.id)


def measure_samples(corpus: Corpus, utterance: Utterance, memory: FileMemory | None) -> int:
    """The number of samples of an utterance. Without `memory`, the file's header tells it.

    With `memory` the file is decoded once, and `memory` keeps the length.

    Raises DataError if the file is broken."""
    u, total = utterance, header_samples(corpus.task, utterance.path)
    inside = max(u.start, (u.stop or 0) - SAMPLE_RATE // 10) < total  # 0.1 s may be rounding
    check(inside, f"{corpus.task}: {u.id} ends after the recording, which has "
          f"{total / SAMPLE_RATE:.2f} s, in {u.path}; correct its start and stop")
    if memory is None:
        return min(u.stop or total, total) - u.start
    rule = f"{LENGTH_RULE}, trim {corpus.trim}, gain {corpus.gain}, {u.start} to {u.stop}"
    key = file_key(rule, u.path)
    if key not in memory.facts:
        wave = decode_audio(corpus.task, u.path)[u.start:u.stop]
        segments = voiced_segments(wave, corpus.gain) if corpus.trim else [(0, len(wave))]
        memory.store(key, sum(stop - start for start, stop in segments))
    return int(memory.facts[key])


def corpus_digest(corpus: Corpus, cache: Path | None = None, every_byte: bool = False) -> str:
    """A digest of what decides a result: ids, targets, references, trials and the audio itself.

    It depends neither on the place of the files nor on the order of the utterances. See
    `audio_digests` for `cache` and `every_byte`. Raises DataError if a file cannot be read."""
    digests = audio_digests(corpus, cache, every_byte)
    lines = [json.dumps(["trial", *trial]) for trial in corpus.trials]
    for u in corpus.utterances:
        reference = u.reference
        if isinstance(reference, list) and reference and isinstance(reference[0], list):
            reference = sorted(reference)  # turns, whose order does not matter
        target = u.target
        if isinstance(target, np.ndarray):
            target = [target.shape, hashlib.blake2b(target.astype("<f4").tobytes()).hexdigest()]
        file = [u.samples, u.start, u.stop, digests[u.path]]
        lines.append(json.dumps([u.id, target, reference, *file]))
    return hashlib.blake2b("\n".join(sorted(lines)).encode(), digest_size=16).hexdigest()


def audio_digests(corpus: Corpus, cache: Path | None = None,
                  every_byte: bool = False) -> dict[str, str]:
    """{path: digest} of the audio files of a corpus; `cache` remembers them.

    A file is hashed whole if the corpus has less than 2 GB (or with `every_byte`), else by its size
    and three blocks. Raises DataError if a file cannot be read."""
    paths, memory = sorted({u.path for u in corpus.utterances}), FileMemory(cache)
    try:
        whole = every_byte or sum(os.path.getsize(path) for path in paths) < SMALL_CORPUS
        with ThreadPoolExecutor() as pool:
            futures = {path: pool.submit(recall_digest, path, whole, memory) for path in paths}
            return {path: future.result() for path, future in futures.items()}
    except OSError as error:
        raise DataError(f"{corpus.task}: {error.strerror} in {error.filename}; "
                        "make it readable") from None


def recall_digest(path: str, whole: bool, memory: FileMemory) -> str:
    """The digest of a file: known in this process, or in the memory, or computed now."""
    key = file_key(f"{DIGEST_RULE}, whole {whole}", path)
    if key not in PROCESS_DIGESTS:
        if key not in memory.facts:
            memory.store(key, audio_file_digest(path, whole))
        PROCESS_DIGESTS[key] = memory.facts[key]
    return PROCESS_DIGESTS[key]


def audio_file_digest(path: str, whole: bool) -> str:
    """A digest of the size of a file and of all its bytes (`whole`), or of three blocks of 4 KiB:
    the first, the middle and the last."""
    digest, size = hashlib.blake2b(digest_size=16), os.path.getsize(path)
    digest.update(f"{size} ".encode())
    with open(path, "rb") as file:
        if whole:
            while block := file.read(2**20):
                digest.update(block)
        else:
            for start in (0, max(0, size // 2 - BLOCK // 2), max(0, size - BLOCK)):
                file.seek(start)
                digest.update(file.read(BLOCK))
    return digest.hexdigest()

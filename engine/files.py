"""Finding the files of a dataset, reading its text files, remembering facts about its audio files.

Whatever is wrong with a file is a `DataError`: one sentence that the user can act on.
"""
import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path


class DataError(Exception):
    """Bad data. The message is one sentence: `<task>: <what> in <file>; <what to do>`."""

    def __init__(self, message: str):
        # A DataLoader raises the error of its worker again, with a traceback before the message.
        sentence = message.splitlines()[-1]
        super().__init__(sentence.removeprefix(f"{DataError.__module__}.DataError: "))


def check(ok, problem: str) -> None:
    """DataError, unless ok."""
    if not ok:
        raise DataError(problem)


def find_path(task: str, folder, names: tuple[str, ...], advice: str) -> Path:
    """The first of the paths folder/name that exists. DataError with the advice if none does."""
    for name in names:
        if Path(folder, name).exists():
            return Path(folder, name)
    raise DataError(f"{task}: nothing called {' or '.join(names)} in {folder}; {advice}")


def read_lines(task: str, file: Path, pattern: str) -> Iterator[tuple]:
    """The groups of the pattern that every line of a text file matches, but for blank lines."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{task}: no readable UTF-8 text in {file}; save it as such") from None
    check(text.strip(), f"{task}: nothing in {file}; restore it")
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line:
            continue
        match = re.fullmatch(pattern, line)
        check(match, f"{task}: line {number} ({line[:40]}) is malformed in {file}; correct it")
        yield match.groups()


class FileMemory:
    """Facts about files, such as decoded lengths, kept in a folder to save time in the next run.

    A line holds a digest of (rule, path, size, time of change), the fact, and a checksum. Nothing
    depends on this file: one that is damaged or cannot be written only costs the time.
    """

    def __init__(self, folder: Path | None):
        self.path = Path(folder, "audio_files.tsv") if folder else None
        self.facts: dict[str, str] = {}
        try:
            content = self.path.read_bytes() if self.path else b""
        except OSError:
            content = b""
        for line in content.split(b"\n")[:-1]:  # the last one has no end: its process was killed
            match = re.fullmatch(rb"([0-9a-f]{32})\t(\w+)\t([0-9a-f]{8})", line)
            if match and match[3].decode() == _checksum(match[1].decode(), match[2].decode()):
                self.facts[match[1].decode()] = match[2].decode()

    def recall(self, rule: str, path: str, find_out: Callable[[], object]) -> str:
        """The fact about a file that `find_out()` returns, remembered as text for this rule."""
        about = os.stat(path)
        name = f"{rule} {os.path.abspath(path)} {about.st_size} {about.st_mtime_ns}"
        key = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        if key not in self.facts:
            self.facts[key] = str(find_out())
            self._write(key)
        return self.facts[key]

    def _write(self, key: str) -> None:
        """Append one line, if possible."""
        if self.path is None:
            return
        line = f"{key}\t{self.facts[key]}\t{_checksum(key, self.facts[key])}\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(line.encode())
        except OSError:
            pass


def _checksum(*parts: str) -> str:
    """Eight hexadecimal digits."""
    return f"{zlib.crc32(' '.join(parts).encode()):08x}"

"""Finding the files of a dataset and reading its text files.

All problems raise `DataError`: one sentence that says what was found and what to do.
"""
import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path

AUDIO_SUFFIXES = set(".aac .aif .aiff .au .flac .m4a .mp3 .mp4 .ogg .opus .sph .wav .wma".split())
# Lines of an RTTM file that are no turns of a speaker (NIST, RT-09 evaluation plan, appendix A)
OTHER_RTTM_TYPES = ("SPKR-INFO", "SEGMENT", "NOSCORE", "NO_RT_METADATA", "LEXEME", "NON-LEX",
                    "NON-SPEECH", "FILLER", "EDIT", "IP", "SU", "CB", "A/P")
# A sentence in Corpus.skipped with these words is about the corpus. Any other sentence is about an
# utterance that was left out.
NOT_READ, UNKNOWN_SYMBOL = "are not read", "cannot be recognised"


class DataError(Exception):
    """Bad data. The message is one printable sentence: `<task>: <what> in <file>; <what to do>`."""

    def __init__(self, message: str):
        # A DataLoader raises the error of its worker again, with a traceback before the message.
        if message.startswith("Caught DataError in DataLoader worker"):
            message = message.splitlines()[-1].removeprefix(f"{DataError.__module__}.DataError: ")
        super().__init__(printable(message))


def check(ok, problem: str) -> None:
    """Raises DataError unless `ok`."""
    if not ok:
        raise DataError(problem)


def some(items) -> str:
    """The first three of many names."""
    items = [str(item) for item in items]
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return (", ".join(items[:3]) or "nothing") + more


def printable(text: str) -> str:
    """The text with escapes for control characters and for bytes of names that are not UTF-8."""
    characters = text.encode("utf-8", "backslashreplace").decode()
    shown = []
    for character in characters:
        escaped = character.encode("unicode_escape").decode()
        shown.append(character if character.isprintable() else escaped)
    return "".join(shown)


def data_folder(task: str, root) -> Path:
    """The folder that holds the datasets, with ~ expanded. Raises DataError if there is none."""
    root = Path(root).expanduser()
    check(os.path.isdir(root), f"{task}: there is no folder {root}; name the one with the datasets")
    return root


def existing_path(task: str, folder: Path, names: tuple[str, ...], advice: str) -> Path:
    """The first of the paths folder/name that exists. Raises DataError, which says what exists
    instead, if there is none."""
    for name in names:
        if os.path.exists(folder / name):
            return folder / name
    for name in names:
        check_links(task, folder, name)
    for name in names:
        found = find_misplaced(folder, name)
        if found:
            raise DataError(f"{task}: nothing called {name} in {folder}; {found}")
    nearest = folder / Path(names[0]).parent
    while not os.path.isdir(nearest):
        nearest = nearest.parent
    there = sorted(name for name in list_folder(task, nearest) if not name.startswith("."))
    wanted = (folder / names[0]).relative_to(nearest).parts[0]
    similar = difflib.get_close_matches(wanted, there, cutoff=0.8)
    there = [*similar, *(name for name in there if name not in similar)]
    holds = f" ({nearest} holds {some(there)})" if there else ""
    raise DataError(f"{task}: nothing called {' or '.join(names)} in {folder}{holds}; {advice}")


def broken_link(path: Path) -> str:
    """"<path> is a link to <target>, which does not exist"; "" if the path is no such link."""
    if path.is_symlink() and not os.path.exists(path):
        return f"{path} is a link to {os.readlink(path)}, which does not exist"
    return ""


def check_links(task: str, folder: Path, name: str) -> None:
    """Raises DataError if a part of the path folder/name is a broken link."""
    for part in (*reversed(Path(name).parents), Path(name)):
        broken = broken_link(folder / part)
        check(not broken, f"{task}: {broken}; mount that disk, or correct the link")


def find_misplaced(folder: Path, name: str) -> str:
    """What to do if `name` lies in a folder nearby or is spelt differently; "" if it does not."""
    first, *rest = Path(name).parts
    here = folder.absolute()
    if here.name == first and (not rest or os.path.exists(here.joinpath(*rest))):
        return f"this folder is {first} itself: name the folder above it, {here.parent}"
    if rest and os.path.exists(here.joinpath(*rest)):
        return f"{'/'.join(rest)} is there itself: move it into a folder called {first}"
    nested = folder.joinpath(first, first, *rest)
    if os.path.exists(nested):
        return f"{nested} is there: move {first}/{first} one folder up"
    for place in sorted(folder.glob("*/")):
        if os.path.exists(place / name):
            return f"{place} contains it: name that folder, or move its content one folder up"
    for place in here.parents[:3]:
        if os.path.exists(place / name):
            return f"{place} contains it: name that folder, or move it here"
    spelt = folder
    for part in (first, *rest):
        names = sorted(os.listdir(spelt)) if os.access(spelt, os.R_OK) and spelt.is_dir() else []
        alike = [found for found in names if found.lower() == part.lower()]
        if not alike:
            return ""
        spelt = spelt / alike[0]
    return f"{spelt} is there: rename it"


def list_folder(task: str, folder: Path) -> list[str]:
    """The names in a folder. Raises DataError if it cannot be listed."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise DataError(f"{task}: {error.strerror} in {folder}; make it readable") from None


def read_text(task: str, file: Path, form: str) -> str:
    """The text of a file. Raises DataError if it is empty or not UTF-8.

    `form` says in the message what a line should look like."""
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{task}: no readable UTF-8 text ({error.strerror}) in {file}; "
                        "make it a readable file") from None
    except UnicodeDecodeError as error:
        line = content[:error.start].count(b"\n") + 1
        raise DataError(f"{task}: no readable UTF-8 text (byte {content[error.start]:#x} in line "
                        f"{line}) in {file}; save it as UTF-8") from None
    check(text.strip(), f"{task}: nothing in {file}; a line should read: {form}")
    return text


def read_lines(task: str, file: Path, pattern: str, form: str) -> Iterator[tuple]:
    """The groups of a pattern in every line of a text file, except blank lines.

    Raises DataError if a line does not match. `form` says in the message what a line should look
    like."""
    for number, line in enumerate(read_text(task, file, form).splitlines(), 1):
        line = line.strip()
        if not line:
            continue
        match = re.fullmatch(pattern, line)
        shown = line if len(line) <= 60 else line[:60] + "..."
        check(match, f"{task}: line {number} ({shown}) is malformed in {file}; "
              f"it should read: {form}")
        yield match.groups()


def read_rttm(task: str, file: Path, max_speakers: int) -> dict[str, list]:
    """The turns of an RTTM file: {recording: list of [speaker, start, end]}, times in seconds.

    Comments (;;) and lines of the standard's other types are ignored. So are the fields for the
    text, the subtype and the confidence. Raises DataError if a line is malformed or a recording has
    more than `max_speakers`."""
    number = r"((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    pattern = rf"SPEAKER\s+(\S+)\s+1\s+{number}\s+{number}\s+\S+\s+\S+\s+(?!<NA>)(\S+)\s+\S+.*"
    others = rf";;.*|(?:{'|'.join(OTHER_RTTM_TYPES)})\s.*"
    form = "SPEAKER <recording> 1 <start s> <seconds> <NA> <NA> <speaker> <NA>"
    turns = {}
    for groups in read_lines(task, file, f"{pattern}|{others}", form):
        name, start, seconds, speaker = groups
        if name is None:
            continue
        turns.setdefault(name, []).append([speaker, float(start), float(start) + float(seconds)])
        speakers = {speaker for speaker, _, _ in turns[name]}
        check(len(speakers) <= max_speakers, f"{task}: {name} has {len(speakers)} speakers in "
              f"{file}; keep at most {max_speakers}")
    return turns


def list_unread(task: str, folder: Path, suffixes: tuple[str, ...], depth: int | None = None,
                any_case: bool = False) -> list[str]:
    """One sentence per kind of audio file in a folder that its reader does not look for.

    The reader looks for files with these suffixes, `depth` folders below `folder` (None: at any
    depth). Hidden files are ignored. Raises DataError if a folder cannot be listed."""
    def refuse(error: OSError) -> None:
        """Stop at a folder that cannot be listed; a missing one is an error of the reader."""
        if not isinstance(error, FileNotFoundError):
            raise DataError(f"{task}: {error.strerror} in {error.filename}; make it readable")

    unread = {}
    for place, _, names in os.walk(folder, onerror=refuse):
        right_depth = depth is None or len(Path(place).relative_to(folder).parts) == depth
        for name in sorted(names):
            suffix = os.path.splitext(name)[1]
            expected = right_depth and (suffix.lower() if any_case else suffix) in suffixes
            if suffix.lower() in AUDIO_SUFFIXES and not expected and not name.startswith("."):
                unread.setdefault(suffix, []).append(os.path.join(place, name))
    sentences = []
    for suffix, paths in sorted(unread.items()):
        count = f"{len(paths):,} {suffix} file{'s' if len(paths) > 1 else ''}"
        sentences.append(printable(f"{count} in {folder} {NOT_READ}, such as {min(paths)}"))
    return sentences

"""Run folders: atomic writes, locks, JSON, checkpoints, and the comparison of configurations.

runs/<name>/ holds config.json, inputs.json, log.jsonl, checkpoint.pt, predictions/<TASK>.jsonl and,
once the run is finished, result.json.
"""

import errno
import hashlib
import io
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from tqdm import tqdm

from engine.pretrained import load_tensors

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = 3  # of config.json, result.json and checkpoint.pt


class RunError(Exception):
    """A run cannot start, continue or be read. The message is one sentence that says what to do."""


@contextmanager
def atomic_file(path: Path) -> Iterator[io.BufferedWriter]:
    """A binary file to write that replaces `path` when the block ends.

    A kill at any moment leaves the old file or the new one, never half of one. Raises OSError with
    a clear message if the file cannot be written, for instance because the disk is full.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def cannot_write(path: Path, error: Exception) -> OSError:
    """An OSError whose message says what cannot be written, why, and what to do."""
    reason = getattr(error, "strerror", None) or error
    return OSError(f"cannot write {path} ({reason}); make room or take another folder")


def check_writable(path: Path) -> None:
    """Raises OSError, before any work is done, if nothing can be made at `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise cannot_write(path, error) from error


def save_json(path: Path, value) -> None:
    """Write one JSON value, atomically."""
    with atomic_file(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())


def save_text(path: Path, text: str) -> None:
    """Write a text file, atomically. Names that are not UTF-8 keep their bytes."""
    with atomic_file(path) as file:
        file.write(text.encode(errors="surrogateescape"))


def save_json_lines(path: Path, values: list) -> None:
    """Write one JSON value per line, atomically."""
    with atomic_file(path) as file:
        for value in values:
            file.write((json.dumps(value) + "\n").encode())


def read_json(path: Path):
    """The JSON value in a file of a run. Raises RunError if the file is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise _damaged(path, error) from error


def read_json_lines(path: Path) -> list[dict]:
    """The JSON objects in a file of a run, one per line.

    A kill may cut off the last line; a last line without its end is ignored. Raises RunError if the
    file is missing or damaged.
    """
    try:
        rows = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    except (ValueError, OSError) as error:
        raise _damaged(path, error) from error
    if not all(isinstance(row, dict) for row in rows):
        raise _damaged(path, "a line is not an object")
    return rows


def read_log(folder: Path) -> list[dict]:
    """The rows of log.jsonl, each with its step. Raises RunError if the file is damaged."""
    rows = read_json_lines(folder / "log.jsonl")
    if not all(isinstance(row.get("step"), int) for row in rows):
        raise _damaged(folder / "log.jsonl", "a line has no step")
    return rows


def _damaged(path: Path, reason) -> RunError:
    """The error for a file that is not what a run writes."""
    if isinstance(reason, OSError):
        reason = reason.strerror
    return RunError(f"{path} is missing or damaged ({reason}); delete {path.parent} and train "
                    "again")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock `path`.lock: only one process at a time runs the block.

    The operating system frees the lock when a process ends, however it ends. Some network file
    systems have no locks; the block then runs without one, after a note. In a read-only folder it
    runs without one, too, because nothing can be made there.
    """
    lock = path.with_name(f"{path.name}.lock")
    with ExitStack() as stack:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(lock, "w"))
        except OSError as error:
            if error.errno != errno.EROFS and os.access(lock.parent, os.W_OK):
                raise cannot_write(lock, error) from error
            file = None
        if fcntl and file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tqdm.write(f"waiting for another process that makes {path}")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                tqdm.write(f"note: no file locks in {lock.parent}; do not start the same run twice")
        yield


# Checkpoints


def save_checkpoint(folder: Path, state: dict) -> None:
    """Write checkpoint.pt, atomically. `state` holds tensors, numbers, text, dicts and lists."""
    content = io.BytesIO()  # saved into memory first, so that atomic_file reports a full disk
    torch.save(state | {"format": FORMAT}, content)
    with atomic_file(folder / "checkpoint.pt") as file:
        file.write(content.getbuffer())


def load_checkpoint(folder: Path) -> dict:
    """Read checkpoint.pt; it cannot run code. Raises RunError if it is missing or damaged."""
    path = folder / "checkpoint.pt"
    try:
        state = load_tensors(path)
        missing = {"model", "step", "best", "seconds"} - state.keys()
        if missing:
            raise KeyError(f"no {', '.join(sorted(missing))}")
        return state
    except Exception as error:  # a damaged file can fail in any way
        raise RunError(f"no checkpoint of ours, or a damaged one, in {path}; "
                       "delete its run and train again") from error


def save_result(folder: Path, result: dict) -> None:
    """Write result.json with a checksum of itself."""
    save_json(folder / "result.json", {**result, "checksum": _checksum(result)})


def read_result(folder: Path) -> dict:
    """result.json of a finished run. Raises RunError if it was changed since the run ended."""
    path = folder / "result.json"
    result = read_json(path)
    saved = result.pop("checksum", None) if isinstance(result, dict) else None
    if saved is None or saved != _checksum(result):
        raise RunError(f"{path} was changed since the run ended; delete {folder} and train again")
    return result


def _checksum(values: dict) -> str:
    """A digest of a JSON object, whatever the order of its keys."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def file_digest(path: Path) -> str:
    """A digest of a small file."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def weights_digest(state: dict) -> str:
    """A digest of the weights in a checkpoint (of "model" and, where it was trained, "encoder")."""
    digest = hashlib.blake2b(digest_size=16)
    groups = [state["model"]]
    if "encoder" in state:
        groups.append(state["encoder"]["state_dict"])
    for group in groups:
        for name, tensor in sorted(group.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# Configurations


def is_finished(folder: Path, config: dict, recorded: dict, compare_precision: bool) -> bool:
    """Whether a run is finished. Checks first that the run on disk has this configuration.

    `config` is everything that decides the result; its "built_on" holds the configurations of the
    prerequisites, which lie in the same parent folder. `recorded` changes no result. Raises
    RunError with a list of the differences if the run was begun with another configuration, or on
    prerequisites that were trained again since.
    """
    finished = (folder / "result.json").exists()
    if finished or (folder / "checkpoint.pt").exists():
        # A finished run may be read on a machine with other processes or another precision.
        ignored = {"processes"} if compare_precision else {"processes", "precision"}
        check_config(folder, config, recorded, ignored, finished)
    return finished


def write_config(folder: Path, config: dict, recorded: dict) -> None:
    """Write config.json: the configuration, the weights it is built on, and what is recorded."""
    versions = {"torch": torch.__version__, "python": platform.python_version(),
                "threads": torch.get_num_threads()}
    digests = _prerequisite_digests(config, folder.parent)
    decisive = {"format": FORMAT, **config, "built_on_weights": digests}
    save_json(folder / "config.json", {**decisive, "checksum": _checksum(decisive),
                                       "recorded": {**recorded, **versions}})


def _prerequisite_digests(config: dict, runs: Path) -> dict[str, str]:
    """The digests of the weights of the prerequisites; a deleted prerequisite is ignored."""
    digests = {}
    for name in config["built_on"]:
        if (runs / name / "result.json").exists():
            digests[name] = read_result(runs / name).get("weights")
    return digests


def check_config(folder: Path, config: dict, recorded: dict, ignored: set[str],
                 finished: bool) -> None:
    """Raises RunError with the differences if a run on disk has another configuration."""
    saved = read_config(folder)
    own = {key: value for key, value in config.items() if key != "built_on"}
    weights = _prerequisite_digests(config, folder.parent)
    changed = differences(saved, own, ignored if finished else set())
    changed += differences(saved["built_on"], config["built_on"], ignored, "built_on.")
    changed += differences(saved["built_on_weights"], weights, set(), "weights of ")
    if any("encoder was" in text for text in changed):
        then = saved["recorded"].get("encoder")
        changed.append(f"--encoder was {then} and is {recorded.get('encoder')}")
    if changed:
        raise RunError(f"{folder} was made with other settings ({'; '.join(changed)}); use the old "
                       "ones, delete the folder, or choose another one with --runs")


def read_config(folder: Path) -> dict:
    """config.json of a run. Raises RunError if it was changed or has another format.

    Only "recorded" may be edited by hand.
    """
    saved = read_json(folder / "config.json")
    found = saved.get("format", 1) if isinstance(saved, dict) else "unknown"
    if found != FORMAT:
        raise RunError(f"{folder} has format {found}, and this version reads format {FORMAT}; "
                       "train again in a new --runs folder, or use the version that made it")
    decisive = {key: value for key, value in saved.items() if key not in ("checksum", "recorded")}
    if saved.get("checksum") != _checksum(decisive) or not isinstance(saved.get("recorded"), dict):
        raise RunError(f"{folder / 'config.json'} was changed since it was written; "
                       f"delete {folder} and train again")
    return saved


def differences(saved: dict, current: dict, ignored: set[str], prefix: str = "") -> list[str]:
    """One text "<setting> was <saved> and is <current>" for each difference of two JSON objects.

    Nested objects are compared by key; `prefix` holds the outer keys. Keys in `ignored` are not
    compared at any depth. A nested key that only `saved` has is a difference, too.
    """
    found = []
    for key, value in current.items():
        if key in ignored:
            continue
        name, before = f"{prefix}{key}", saved.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            found += differences(before, value, ignored, f"{name}.")
            for gone in sorted(before.keys() - value.keys() - ignored):
                found.append(f"{name}.{gone} was {_short(before[gone])} and is not there")
        elif before != value:
            found.append(f"{name} was {_short(before)} and is {_short(value)}")
    return found


def _short(value) -> str:
    """A value in a sentence; long ones are cut."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Run folders: atomic writes, locks, JSON, checkpoints."""
import fcntl
import json
import os
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from engine.pretrained import load_tensors

class RunError(Exception):
    """A run that cannot start, go on or be read: the message is one sentence that says what to do."""

def save(path: Path, write) -> None:
    """`write(file)` a file such that a kill at any moment leaves the old one or the new one, never half of one.
    OSError, a sentence, where that is impossible, for instance on a full disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror}); make room or take another folder") from error
    finally:
        temporary.unlink(missing_ok=True)

@contextmanager
def locked(path: Path):
    """Waits until no other process holds the lock of this name. A process that ends, however it ends, lets it go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write(f"waiting for another process that makes {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

def load_json(path: Path, lines: bool = False):
    """A file of a run: one JSON value, or with `lines` one in each line, where a last line that a kill cut off does not
    count. RunError if the file is damaged."""
    try:
        text = path.read_text()
        return [json.loads(line) for line in text.split("\n")[:-1]] if lines else json.loads(text)
    except ValueError as error:
        raise RunError(f"no JSON in {path} ({error}); delete {path.parent} and train again") from error

def load_checkpoint(folder: Path) -> dict:
    """checkpoint.pt of a run, which cannot run code (`load_tensors`). RunError if it is damaged or none."""
    path = folder / "checkpoint.pt"
    try:
        saved = load_tensors(path)
        return {key: saved[key] for key in ("model", "step", "best", "seconds")} | saved
    except Exception as error:  # a damaged file can fail in any way
        raise RunError(f"no checkpoint of ours, or a damaged one, in {path}; delete its run and train again") from error

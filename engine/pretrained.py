"""Other people's weight files -> (configuration, state dict), without running their code.

This file finds and reads files; `engine/architecture.py` makes sense of the tensors in them.
"""

import argparse
import difflib
import json
import math
import os
import re
import zipfile
from pathlib import Path

import numpy
import torch
from torch import Tensor

from engine.architecture import EncoderError, interpret
from engine.files import broken_link, some

TINY_FILE = Path(__file__).parent.parent / "toy" / "tiny_hubert.pt"
NAMES = ("tiny", "hubert_base", "random-tiny", "random-hubert_base", "random-hubert_large")
FILES = ("model.safetensors", "pytorch_model.bin")  # of a Hugging Face folder
INDEXES = tuple(f"{name}.index.json" for name in FILES)  # of several files: which holds what
SAFETENSORS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}
LFS_POINTER = "version https://git-lfs"  # the beginning of its text
IS_LFS_POINTER = "is a Git LFS pointer, not the file; run `git lfs pull` in its repository"
# The first bytes of files that some people take for weights.
FOREIGN = {
    b"\x89HDF": "HDF5, perhaps of TensorFlow (tf_model.h5)",
    b"\x1f\x8b": "a gzip archive",
    b"\xfd7zXZ": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"GGUF": "a GGUF file of llama.cpp",
    b"RIFF": "an audio file",
    b"fLaC": "an audio file",
    b"ID3": "an audio file",
    b"\x93NUMPY": "a NumPy array",
}


def absolute_source(source: str) -> str:
    """A source that stays right in another working directory; a name stays a name."""
    return source if source in NAMES else os.path.abspath(os.path.expanduser(source))


def read_weights(source: str) -> tuple[dict, dict[str, Tensor]]:
    """A source (see `model.load_encoder`) -> configuration, state dict with torchaudio's names.

    All tensors are finite and float32. Raises EncoderError, with a cause, whatever goes wrong."""
    path = TINY_FILE if source == "tiny" else Path(source).expanduser()
    try:
        if source == "hubert_base":
            content = _download_hubert_base()
        else:
            path = find_file(path)
            content = read_file(path)
        return interpret(content, path)
    except EncoderError as error:
        raise EncoderError(f"{path}: {error}") from error.__cause__ or error
    except OSError as error:
        raise EncoderError(f"{path}: not loaded ({error.strerror or error})") from error
    except Exception as error:  # a file of unknown origin can fail in any way
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise EncoderError(f"{path}: not loaded, because it is malformed ({reason})") from error


def _download_hubert_base() -> dict:
    """torchaudio's HuBERT Base, downloaded once and kept."""
    try:
        import torchaudio  # here only: everything else runs without it
    except (ImportError, OSError) as error:
        reason = _one_line(error)
        raise EncoderError(f"its download needs torchaudio, which fails ({reason})") from error
    bundle = torchaudio.pipelines.HUBERT_BASE
    try:
        return bundle.get_model(dl_kwargs={"weights_only": True}).state_dict()
    except OSError as error:  # no network
        raise EncoderError(f"the download failed ({error}); name a file of weights, or \"tiny\" "
                           "(train.py --setting tiny needs no download)") from error
    except Exception as error:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / bundle._path
        raise EncoderError(f"the download is damaged; delete {cached} and try again") from error


def find_file(path: Path) -> Path:
    """The file of weights, or the index of several files, that a path means."""
    if path.is_file():
        return path
    _check_link(path)
    if path.is_dir():
        for name in (*FILES, *INDEXES):
            if (path / name).is_file():
                return path / name
        for name in (*FILES, *INDEXES):
            _check_link(path / name)
        inside = sorted(file.name for file in path.iterdir())
        raise EncoderError("no such file, but a folder without weights (neither "
                           f"{' nor '.join(FILES + INDEXES)}); it holds {some(inside)}")
    neighbours = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    similar = difflib.get_close_matches(path.name, [*NAMES, *neighbours], 1)
    guess = f" (did you mean {similar[0]}?)" if similar else ""
    raise EncoderError(f"no such file{guess}; an encoder is one of {', '.join(NAMES)}, or a file "
                       "or folder of weights")


def _check_link(path: Path) -> None:
    """Raises EncoderError if a path is a broken link."""
    broken = broken_link(path)
    if broken:
        raise EncoderError(f"{broken}; copy the file itself, for instance by cp -L")


def read_file(path: Path) -> dict:
    """The content of one file, or of all the files that an index names."""
    if path.name.endswith(".index.json"):
        content = {}
        text = path.read_text(encoding="utf-8-sig")
        if text.startswith(LFS_POINTER):
            raise EncoderError(f"not loaded, because it {IS_LFS_POINTER}")
        for shard in sorted(set(json.loads(text)["weight_map"].values())):
            if Path(shard).name != shard or not (path.parent / shard).is_file():
                raise EncoderError(f"the shard {shard} is not beside it; download it too")
            content |= read_file(path.parent / shard)
        return content
    with open(path, "rb") as file:
        first_bytes = file.read(512)
    try:
        if first_bytes[8:9] == b"{":  # safetensors: JSON follows 8 bytes with its size
            return _read_safetensors(path)
        return load_tensors(path)
    except EncoderError:
        raise
    except Exception as error:
        what = _what_it_is(first_bytes, error)
        raise EncoderError(f"not loaded, because {what}") from error


def load_tensors(path: Path) -> dict:
    """A file of torch.save, whoever wrote it: tensors, numbers, text. Code in it does not run.

    Raises an exception of any kind if the file is damaged, even by one wrong bit: PyTorch itself
    ignores the checksums."""
    if zipfile.is_zipfile(path):  # files of PyTorch before 1.6 have no checksums
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
        if damaged:
            raise ValueError(f"wrong checksum of {damaged}")
    # Harmless objects that lie beside weights: fairseq's dictionary (an empty class stands for it),
    # parsed arguments, NumPy's numbers and arrays under their old and new names.
    fairseq = (type("Dictionary", (), {}), "fairseq.data.dictionary.Dictionary")
    allowed = [fairseq, argparse.Namespace, numpy.dtype, numpy.ndarray]
    allowed += [type(numpy.dtype(code)) for code in "?bhilqBHILQefdgFDGSUV"]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed.append((numpy.float64(0).__reduce__()[0], f"{module}.scalar"))
        allowed.append((numpy.zeros(0).__reduce__()[0], f"{module}._reconstruct"))
    with torch.serialization.safe_globals(allowed):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise EncoderError(f"it holds one {type(content).__name__}, not named parameters; save "
                           "model.state_dict()")
    return dict(content)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Hugging Face's format: 8 bytes with the size of the header, the header in JSON, numbers."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    state = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in SAFETENSORS:
            raise EncoderError(f"{name} has the unknown number format {entry['dtype']}")
        first, last = entry["data_offsets"]
        dtype = SAFETENSORS[entry["dtype"]]
        if last - first != math.prod(entry["shape"]) * dtype.itemsize or start + last > len(raw):
            raise ValueError(f"the file ends before {name}, or {name} has another size")
        numbers = bytearray(raw[start + first : start + last])
        flat = torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)
        state[name] = flat.reshape(entry["shape"])
    return state


def _what_it_is(first_bytes: bytes, error: Exception) -> str:
    """Guess from the first bytes and the error what an unreadable file is; say what to do."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found:
        return (f"it asks for {found[1]}, and weights must not run code; where that is installed, "
                "save the weights alone: torch.save(content['model'], file) or "
                "torch.save(model.state_dict(), file)")
    if "TorchScript" in str(error):
        return "it is a TorchScript program; save the weights alone: model.state_dict()"
    if first_bytes.startswith(LFS_POINTER.encode()):
        return f"it {IS_LFS_POINTER}"
    if first_bytes.startswith((b"\x80\x04", b"\x80\x05")) or "operand 149" in str(error):
        return ("it has another pickle protocol than torch.save's; load it where it was made, and "
                "save it by torch.save(state, file)")
    if re.search("not in a subdirectory|failed locating file", str(error)):
        return "it is a zip archive, not a file of torch.save; unpack it"
    if first_bytes[257:262] == b"ustar":
        return "it is a tar archive; unpack it"
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml)", first_bytes, re.IGNORECASE):
        return "it is a web page, not the weights; download the file itself"
    for start, kind in FOREIGN.items():
        if first_bytes.startswith(start):
            return f"it is {kind}, not weights of PyTorch"
    if not first_bytes:
        return "it is damaged: the file is empty; download it again"
    if first_bytes.isascii() and first_bytes.decode().isprintable():
        return f"it is damaged or text, not weights: it begins with {first_bytes[:40].decode()!r}"
    return f"it is damaged ({_one_line(error)}); download it again"


def _one_line(error: Exception) -> str:
    """The first sentence of an exception, short."""
    return re.split(r"\.\s|\n", str(error))[0][:150]

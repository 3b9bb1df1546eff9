"""Other people's weight files, read without ever running their code."""
import argparse
import json
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

TINY_FILE = Path(__file__).parent.parent / "toy" / "tiny_hubert.pt"

class EncoderError(Exception):
    """An encoder that cannot be loaded: the message is one sentence with the file and what is wrong with it."""

# Parts of a pretrained or finetuned model that are not the encoder: mask, targets, output layers.
DROPPED = r"(hubert\.)?(mask|label_embs_concat|layer_weights|final_proj\.|lm_head\.|projector\.|classifier\.)"
RENAMED = (  # from the names of Hugging Face (first three rules) and fairseq to torchaudio's, which no rule changes
    (r"^hubert\.", ""), (r"^encoder\.(?!transformer|feature)", "encoder.transformer."),
    (r"^feature_projection", "encoder.feature_projection"), (r"\.pos_conv\.0\.", ".pos_conv_embed.conv."),
    (r"^post_extract_proj", "encoder.feature_projection.projection"), (r"(conv_layers\.\d)\.0\.", r"\1.conv."),
    (r"^layer_norm", "encoder.feature_projection.layer_norm"), (r"(conv_layers\.0)\.2\.", r"\1.layer_norm."),
    (r"\.self_attn\.", ".attention."), (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."), (r"\.fc2\.", ".feed_forward.output_dense."))

def read_weights(source: str) -> dict:
    """What a source holds, read without ever running code that may be hidden in it."""
    if source == "hubert_base":
        import torchaudio  # here only: everything else runs without it

        try:
            return torchaudio.pipelines.HUBERT_BASE.get_model(dl_kwargs={"weights_only": True}).state_dict()
        except OSError as error:  # no network
            raise EncoderError(f"hubert_base: the download failed ({error}); name a file of weights") from error
    path = TINY_FILE if source == "tiny" else Path(source)
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = path / name if (path / name).is_file() else path
    if not path.is_file():
        raise EncoderError(f"{path}: no such file; an encoder is tiny, hubert_base or a file of weights")
    try:
        return _read_safetensors(path.read_bytes()) if path.suffix == ".safetensors" else load_tensors(path)
    except Exception as error:  # a damaged file can fail in any way
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {found[1]}, and weights must not run code" if found else "it is damaged"
        raise EncoderError(f"{path}: not loaded, because {reason}") from error

def load_tensors(path: Path) -> dict:
    """A file of torch.save, whoever wrote it: tensors, numbers, text. An exception of any kind if it is damaged, where
    one wrong bit is enough: PyTorch itself looks at no checksum."""
    if zipfile.is_zipfile(path):  # (what old versions of PyTorch wrote has no checksums)
        with zipfile.ZipFile(path) as parts:
            if damaged := parts.testzip():
                raise ValueError(f"wrong checksum of {damaged}")
    fairseq = type("Dictionary", (), {}), "fairseq.data.dictionary.Dictionary"  # lies beside fairseq's weights
    with torch.serialization.safe_globals([fairseq, argparse.Namespace]):
        return dict(torch.load(path, map_location="cpu", weights_only=True))

def _read_safetensors(raw: bytes) -> dict[str, Tensor]:
    """Hugging Face's format: 8 bytes with the size of the header, the header in JSON, then all numbers."""
    start = 8 + int.from_bytes(raw[:8], "little")
    types, numbers = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}, bytearray(raw[start:])
    header = {name: entry for name, entry in json.loads(raw[8:start]).items() if name != "__metadata__"}
    return {name: torch.frombuffer(numbers[slice(*entry["data_offsets"])], dtype=types[entry["dtype"]])
            .reshape(entry["shape"]) for name, entry in header.items()}

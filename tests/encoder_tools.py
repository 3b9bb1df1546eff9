"""What the tests of the encoder share: noise like speech, states, and the world's file formats."""

import argparse
import json
import sys
import types

import torch

from model import TINY

LARGE = TINY | {
    "extractor_mode": "layer_norm",
    "extractor_conv_bias": True,
    "encoder_layer_norm_first": True,
}
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
}


def speech(*samples, seed=0):
    """Utterances of so many samples, quiet and loud, with an offset: [(n,), ...]."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, generator=generator) * (0.05 + 0.3 * k) + 0.02 for k, n in enumerate(samples)
    ]


def alone(hubert, wave):
    """The states of one utterance that is a batch of its own: (L+1, T, D)."""
    return hubert(wave[None], torch.tensor([len(wave)]))[0][:, 0]


def huggingface(state, old=False):
    """The names of transformers' HubertForCTC, with its head.

    `old`: weight norm as in facebook/hubert-base-ls960."""
    renamed = {"hubert.masked_spec_embed": torch.zeros(128), "lm_head.weight": torch.zeros(32, 128)}
    for name, tensor in state.items():
        for ours, theirs in (
            ("encoder.feature_projection", "feature_projection"),
            ("encoder.transformer", "encoder"),
        ):
            name = name.replace(ours, theirs)
        renamed["hubert." + old_weight_norm(name, old)] = tensor
    return renamed


def fairseq(state):
    """The names of fairseq's hubert_base_ls960.pt."""
    renamed = {
        "mask_emb": torch.zeros(128),
        "label_embs_concat": torch.zeros(504, 256),
        "final_proj.weight": torch.zeros(9, 128),
        "final_proj.bias": torch.zeros(9),
    }
    for name, tensor in state.items():
        for ours, theirs in (
            (".conv.weight", ".0.weight"),
            (".conv.bias", ".0.bias"),
            ("encoder.feature_projection.projection.", "post_extract_proj."),
            ("encoder.feature_projection.layer_norm.", "layer_norm."),
            ("pos_conv_embed.0.", "pos_conv.0."),
            ("pos_conv_embed.conv.", "pos_conv.0."),
            ("encoder.transformer.", "encoder."),
            (".attention.", ".self_attn."),
            ("feed_forward.intermediate_dense.", "fc1."),
            ("feed_forward.output_dense.", "fc2."),
        ):
            name = name.replace(ours, theirs)
        if name.startswith("feature_extractor."):  # with layer norm a transposition comes first
            index = ".2.1." if "feature_extractor.conv_layers.1.layer_norm.bias" in state else ".2."
            name = name.replace(".layer_norm.", index)
        if name.startswith("encoder.layers.") and ".final_layer_norm." not in name:
            name = name.replace(".layer_norm.", ".self_attn_layer_norm.")
        renamed[old_weight_norm(name, True)] = tensor
    return renamed


def old_weight_norm(name, old=True):
    """Weight norm as PyTorch before 2.0 spelt it."""
    new = "parametrizations.weight.original"
    return name.replace(new + "0", "weight_g").replace(new + "1", "weight_v") if old else name


def write_safetensors(path, state):
    """A file in Hugging Face's format, with the metadata that transformers writes."""
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in state.items():
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def save_fairseq(path, weights, monkeypatch, **beside):
    """fairseq's checkpoint, with an object of its class Dictionary beside the weights."""
    modules = {
        name: types.ModuleType(name)
        for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary")
    }
    dictionary = type("Dictionary", (), {"__module__": "fairseq.data.dictionary"})
    modules["fairseq.data.dictionary"].Dictionary = dictionary
    entry = dictionary()
    entry.symbols, entry.indices = ["<s>", "0"], {"<s>": 0, "0": 1}
    with monkeypatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        torch.save(
            {
                "args": argparse.Namespace(arch="hubert"),
                "cfg": {"task": {"_name": "hubert_pretraining"}},
                "model": weights,
                "task_state": {"dictionaries": [entry]},
                **beside,
            },
            path,
        )

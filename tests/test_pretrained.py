"""Weights from everywhere: other people's files, whole, damaged or malicious; no download."""

import argparse
import json
import os
import pickle
import sys
import types
import urllib.error
from types import SimpleNamespace

import pytest
import torch
import torchaudio
from encoder_tools import alone, speech
from torch.nn.utils.rnn import pad_sequence

import model
from engine import pretrained
from engine.runs import RunError, load_checkpoint
from model import BASE, NO_NORMALIZATION, TINY, EncoderError, load_encoder, random_encoder


def huggingface(state, old):
    """The names of transformers' HubertForCTC, with its head; `old`: facebook/hubert-base-ls960's weight norm."""
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
            ("conv_layers.0.layer_norm.", "conv_layers.0.2."),
            (".conv.weight", ".0.weight"),
            ("encoder.feature_projection.projection.", "post_extract_proj."),
            ("encoder.feature_projection.layer_norm.", "layer_norm."),
            ("pos_conv_embed.conv.", "pos_conv.0."),
            ("encoder.transformer.", "encoder."),
            (".attention.", ".self_attn."),
            ("feed_forward.intermediate_dense.", "fc1."),
            ("feed_forward.output_dense.", "fc2."),
        ):
            name = name.replace(ours, theirs)
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
        raw = tensor.contiguous().numpy().tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def save_fairseq(path, weights, monkeypatch):
    """fairseq's checkpoint, with an object of its class Dictionary beside the weights, written without fairseq."""
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
            },
            path,
        )


LAYOUTS = (
    "torchaudio",
    "torchaudio-old",
    "huggingface-bin",
    "huggingface-bin-old",
    "huggingface-safetensors",
    "huggingface-file",
    "fairseq",
    "ours",
    "run",
)


def write(layout, hubert, folder, monkeypatch):
    """One encoder in a layout of the world; returns the source for `load_encoder`."""
    state, file = hubert.state_dict(), folder / "weights.pt"
    if layout.startswith("torchaudio"):
        torch.save(
            {
                old_weight_norm(name, layout.endswith("old")): tensor
                for name, tensor in state.items()
            },
            file,
        )
    elif layout.startswith("huggingface-bin"):
        torch.save(huggingface(state, layout.endswith("old")), folder / "pytorch_model.bin")
        (folder / "config.json").write_text("{}")
        return str(folder)
    elif layout.startswith("huggingface"):
        write_safetensors(folder / "model.safetensors", huggingface(state, old=False))
        return str(folder / "model.safetensors") if layout.endswith("file") else str(folder)
    elif layout == "fairseq":
        save_fairseq(file, fairseq(state), monkeypatch)
    elif layout == "ours":
        torch.save(hubert.checkpoint(), file)
    else:
        torch.save(
            {
                "step": 3,
                "model": {"layer_sum.weights": torch.zeros(5)},
                "encoder": hubert.checkpoint(),
            },
            file,
        )
    return str(file)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_states(layout, tmp_path, monkeypatch):
    hubert = random_encoder(TINY, seed=7)
    loaded = load_encoder(write(layout, hubert, tmp_path, monkeypatch))
    assert not loaded.training
    waves, lengths = (
        pad_sequence(speech(6_000, 4_000), batch_first=True),
        torch.tensor([6_000, 4_000]),
    )
    for batch in ((waves, lengths), (waves[:1], lengths[:1])):
        torch.testing.assert_close(loaded(*batch)[0], hubert(*batch)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("damage", ["missing", "unknown", "misshapen"])
def test_a_wrong_parameter_is_named_in_one_sentence(layout, damage, tmp_path, monkeypatch):
    hubert, key = random_encoder(TINY), "encoder.transformer.layers.2.attention.k_proj.weight"
    state = dict(hubert.state_dict())
    if damage == "missing":
        del state[key]
    elif damage == "misshapen":
        state[key] = torch.zeros(3, 5)
    else:
        key = "encoder.transformer.layers.2.attention.gate.weight"
        state[key] = torch.zeros(2)
    fake = SimpleNamespace(
        state_dict=lambda: state, checkpoint=lambda: {"config": TINY, "state_dict": state}
    )
    source = write(layout, fake, tmp_path, monkeypatch)
    with pytest.raises(EncoderError) as caught:
        load_encoder(source)
    assert (
        key in str(caught.value) and source in str(caught.value) and "\n" not in str(caught.value)
    )


def test_a_half_precision_file_becomes_float32_and_keeps_its_own_sizes(tmp_path):
    hubert = random_encoder(TINY | {"encoder_num_layers": 2, "encoder_embed_dim": 64})
    saved = hubert.checkpoint()
    saved["state_dict"] = {name: tensor.half() for name, tensor in saved["state_dict"].items()}
    torch.save(saved, tmp_path / "half.pt")
    loaded = load_encoder(str(tmp_path / "half.pt"))
    assert (loaded.dim, loaded.num_states) == (64, 3)
    assert all(tensor.dtype == torch.float32 for tensor in loaded.state_dict().values())
    (wave,) = speech(6_000)
    assert (alone(loaded, wave) - alone(hubert, wave)).abs().max() < 0.02


def test_tiny_is_the_file_beside_the_code_and_its_absence_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "TINY_FILE", tmp_path / "tiny_hubert.pt")
    with pytest.raises(EncoderError, match="tiny_hubert.pt: no such file"):
        load_encoder("tiny")
    torch.save(random_encoder(TINY, seed=3).checkpoint(), tmp_path / "tiny_hubert.pt")
    (wave,) = speech(3_000)
    assert torch.equal(alone(load_encoder("tiny"), wave), alone(random_encoder(TINY, seed=3), wave))


def test_the_tiny_encoder_fits_into_two_megabytes_of_half_precision():
    assert 2 * sum(tensor.numel() for tensor in random_encoder(TINY).state_dict().values()) < 2e6


def test_hubert_base_is_torchaudios_and_is_read_as_plain_weights(monkeypatch):
    asked = []

    def get_model(dl_kwargs):
        asked.append(dl_kwargs)
        return random_encoder(TINY, seed=5)

    monkeypatch.setattr(model, "BASE", TINY)
    monkeypatch.setattr(torchaudio.pipelines.HUBERT_BASE, "get_model", get_model, raising=False)
    (wave,) = speech(3_000)
    assert torch.equal(
        alone(load_encoder("hubert_base"), wave), alone(random_encoder(TINY, seed=5), wave)
    )
    assert asked == [{"weights_only": True}]


def test_no_network_is_one_sentence(monkeypatch):
    def get_model(dl_kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torchaudio.pipelines.HUBERT_BASE, "get_model", get_model, raising=False)
    with pytest.raises(
        EncoderError, match="hubert_base: the download failed .*Name or service not known"
    ):
        load_encoder("hubert_base")


def test_base_has_the_parameters_of_torchaudios_bundle():
    bundle = dict(torchaudio.pipelines.HUBERT_BASE._params)
    del bundle["aux_num_out"]
    assert BASE == bundle | {"encoder_layer_drop": 0.0} | NO_NORMALIZATION


class Malice:
    """An object whose pickle runs a command when it is loaded."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("name", ["evil.pt", "pytorch_model.bin", "plain.pkl"])
def test_a_file_that_would_run_code_is_refused_and_its_code_does_not_run(name, tmp_path):
    path, content = tmp_path / name, {"model": {}, "extra": Malice(tmp_path / "proof")}
    if name == "plain.pkl":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(EncoderError, match=f"{name}: not loaded") as caught:
        load_encoder(str(path))
    assert not (tmp_path / "proof").exists() and "\n" not in str(caught.value)
    assert "weights_only=False" not in str(caught.value)  # PyTorch's own advice
    assert "system" in str(caught.value) or name == "plain.pkl"


@pytest.mark.parametrize("name", ["a.pt", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", bytes(40)])
def test_a_damaged_file_is_one_sentence(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EncoderError, match=f"{name}: not loaded, because it is damaged"):
        load_encoder(str(tmp_path / name))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_a_truncated_file_is_one_sentence(file, tmp_path):
    state = huggingface(random_encoder(TINY).state_dict(), old=False)
    write_safetensors(tmp_path / file, state) if "safe" in file else torch.save(
        state, tmp_path / file
    )
    raw = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(EncoderError, match=f"{file}: not loaded"):
        load_encoder(str(tmp_path))


def test_one_wrong_bit_in_a_checkpoint_is_noticed(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save(random_encoder(TINY).checkpoint(), path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(EncoderError, match="checkpoint.pt: not loaded, because it is damaged"):
        load_encoder(str(path))
    with pytest.raises(RunError, match="no checkpoint of ours, or a damaged one"):
        load_checkpoint(tmp_path)


def test_an_unknown_source_is_one_sentence(tmp_path):
    for source in ("hubert_bse", str(tmp_path)):
        with pytest.raises(EncoderError, match=f"{source}: no such file"):
            load_encoder(source)


def test_states_equal_those_of_transformers(tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="Hugging Face's transformers is not installed"
    )
    config = transformers.HubertConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        conv_dim=[32] * 7,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=8,
    )
    theirs = transformers.HubertModel(config).eval()
    theirs.save_pretrained(tmp_path)
    (wave,) = speech(9_000)
    with torch.no_grad():
        expected = theirs(wave[None], output_hidden_states=True).hidden_states
    assert (alone(load_encoder(str(tmp_path)), wave) - torch.cat(expected)).abs().max() < 1e-5

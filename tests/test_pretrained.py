"""Weights from everywhere: other people's files, whole, damaged or malicious; no download."""

import json
import os
import pickle
import random
import sys
import types
import urllib.error
import zipfile
from types import SimpleNamespace

import numpy
import pytest
import torch
import torchaudio
from encoder_tools import (
    alone,
    fairseq,
    huggingface,
    old_weight_norm,
    save_fairseq,
    speech,
    write_safetensors,
)
from torch.nn.utils.rnn import pad_sequence

from engine import pretrained
from engine.runs import RunError, load_checkpoint
from model import (BASE, TINY, WAVEFORM_DEFAULTS, EncoderError, encoder_digest, load_encoder,
                   random_encoder)


def same(one, other):
    """Do two encoders have the same weights?"""
    state = other.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


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
    assert BASE == bundle | {"encoder_layer_drop": 0.0} | WAVEFORM_DEFAULTS


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


# What a file is when it is not the weights


@pytest.mark.parametrize(
    "content, told",
    {
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 377\n": "git lfs pull",
        b"<!DOCTYPE html>\n<html><body>404</body></html>": "a web page",
        b"\n  <HTML>": "a web page",
        b"": "the file is empty",
        b"Not Found": "'Not Found'",
        b"\x89HDF\r\n\x1a\n" + bytes(99): "HDF5",
        b"\x1f\x8b\x08" + bytes(99): "gzip",
        b"RIFF" + bytes(99): "an audio file",
        b"GGUF" + bytes(99): "GGUF",
        b"model.bin" + bytes(248) + b"ustar" + bytes(999): "a tar archive; unpack it",
        b"\xef\xbb\xbf<html>": "a web page",
        b"PK\x03\x04" + bytes(999): "damaged",
    }.items(),
    ids=str,
)
@pytest.mark.parametrize("name", ["weights.pt", "pytorch_model.bin", "model.safetensors"])
def test_a_foreign_file_is_called_what_it_is(content, told, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    source = str(tmp_path / name if name == "weights.pt" else tmp_path)
    with pytest.raises(EncoderError) as caught:
        load_encoder(source)
    assert told in str(caught.value) and str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.__cause__


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_weights_in_another_wrapping_say_how_to_unwrap_them(tmp_path):
    path, state = tmp_path / "weights.pt", {"x": torch.zeros(2)}
    for protocol in (4, 5):
        torch.save(state, path, pickle_protocol=protocol)
        with pytest.raises(EncoderError, match="another pickle protocol"):
            load_encoder(str(path))
        path.write_bytes(pickle.dumps(state, protocol=protocol))
        with pytest.raises(EncoderError, match="another pickle protocol"):
            load_encoder(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pytorch_model.bin", bytes(999))
    with pytest.raises(EncoderError, match="a zip archive"):
        load_encoder(str(path))


def test_an_index_that_is_a_git_lfs_pointer_is_called_so(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 377\n"
    (tmp_path / "model.safetensors.index.json").write_text(pointer)
    with pytest.raises(EncoderError, match="Git LFS pointer.*git lfs pull"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize("names", [["net"], ["checkpoint", "weights"], ["model", "module"]])
def test_weights_are_found_inside_one_dictionary_of_any_name(names, tmp_path):
    content = random_encoder(TINY, seed=3).checkpoint()
    for name in names:
        content = {name: content, "step": 7}
    torch.save(content, tmp_path / "weights.pt")
    found = encoder_digest(load_encoder(str(tmp_path / "weights.pt")))
    assert found == encoder_digest(random_encoder(TINY, seed=3))


@pytest.mark.parametrize("name", ["weights.pt", "model.safetensors"])
def test_a_broken_link_says_where_it_leads(name, tmp_path):
    (tmp_path / name).symlink_to("/nowhere/blob")
    source = tmp_path / name if name == "weights.pt" else tmp_path
    with pytest.raises(EncoderError, match=f"{name} is a link to /nowhere/blob, which does not"):
        load_encoder(str(source))
    if source == tmp_path:  # another file of the folder is as good
        torch.save(random_encoder(TINY).checkpoint(), tmp_path / "pytorch_model.bin")
        load_encoder(str(source))


def test_a_folder_says_what_it_holds_and_a_wrong_name_what_is_similar(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tf_model.h5").write_bytes(b"")
    with pytest.raises(
        EncoderError, match=r"folder without weights.*holds config.json, tf_model.h5"
    ):
        load_encoder(str(tmp_path))
    with pytest.raises(EncoderError, match="did you mean tf_model.h5"):
        load_encoder(str(tmp_path / "tf_modle.h5"))
    with pytest.raises(EncoderError, match="did you mean hubert_base"):
        load_encoder("hubert_bas")


@pytest.mark.parametrize("source", ["tiny", "random-tiny", "random-hubert_base"])
def test_names_win_over_folders_of_the_same_name(source, tmp_path, monkeypatch):
    (tmp_path / source).mkdir()
    (tmp_path / source / "pytorch_model.bin").write_text("not weights")
    monkeypatch.chdir(tmp_path)
    assert load_encoder(source).dim in (128, 768)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(999), b"foreign"])
def test_a_damaged_download_names_the_file_to_delete(content, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "hubert_fairseq_base_ls960.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(content)
    if content == b"foreign":
        torch.save({"a": torch.zeros(1)}, cached)
    with pytest.raises(EncoderError, match=f"^hubert_base: .*delete {cached}"):
        load_encoder("hubert_base")


def test_numpy_numbers_and_arguments_beside_the_weights_are_harmless(tmp_path, monkeypatch):
    hubert = random_encoder(TINY, seed=1)
    beside = {
        "extra_state": {"val_loss": numpy.float64(1.5), "epoch": numpy.int64(3)},
        "random": numpy.arange(5, dtype=numpy.uint32),
    }
    save_fairseq(tmp_path / "a.pt", fairseq(hubert.state_dict()), monkeypatch, **beside)
    assert same(load_encoder(str(tmp_path / "a.pt")), hubert)


def test_a_configuration_object_beside_the_weights_says_how_to_save_them_alone(
    tmp_path, monkeypatch
):
    module = types.ModuleType("omegaconf")
    module.DictConfig = type("DictConfig", (), {"__module__": "omegaconf"})
    monkeypatch.setitem(sys.modules, "omegaconf", module)
    torch.save({"model": {}, "cfg": module.DictConfig()}, tmp_path / "a.pt")
    with pytest.raises(EncoderError, match=r"asks for omegaconf.DictConfig.*content\['model'\]"):
        load_encoder(str(tmp_path / "a.pt"))


# Formats


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_safetensors_of_other_numbers_and_with_counters_are_read(dtype, tmp_path):
    hubert = random_encoder(TINY, seed=2)
    state = {name: x.to(dtype) for name, x in hubert.state_dict().items()}
    state = huggingface(state) | {
        "hubert.position_ids": torch.arange(5),
        "hubert.counted": torch.tensor(True),
        "hubert.masked_spec_embed": torch.zeros(3).to(torch.float8_e4m3fn),
        "lm_head.weight": torch.zeros(0, 3),
    }
    write_safetensors(tmp_path / "model.safetensors", state)
    loaded = load_encoder(str(tmp_path))
    for name, tensor in hubert.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(dtype).float())


def test_safetensors_are_recognised_by_their_content(tmp_path):
    hubert = random_encoder(TINY)
    write_safetensors(tmp_path / "pytorch_model.bin", huggingface(hubert.state_dict()))
    torch.save(huggingface(hubert.state_dict()), tmp_path / "model.safetensors")
    for name in ("pytorch_model.bin", "model.safetensors"):
        assert same(load_encoder(str(tmp_path / name)), hubert)


def test_an_unknown_number_format_is_named(tmp_path):
    header = {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}
    raw = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"0")
    with pytest.raises(EncoderError, match="a has the unknown number format F4"):
        load_encoder(str(path))


@pytest.mark.parametrize("format", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_read_together_and_a_missing_one_is_named(format, tmp_path):
    hubert = random_encoder(TINY, seed=4)
    state = list(huggingface(hubert.state_dict()).items())
    files = [f"{number}-of-2.{format}" for number in (1, 2)]
    for file, part in zip(files, (state[:40], state[40:])):
        if format.startswith("model"):
            write_safetensors(tmp_path / file, dict(part))
        else:
            torch.save(dict(part), tmp_path / file)
    index = {name: files[number >= 40] for number, (name, _) in enumerate(state)}
    path = tmp_path / f"{format}.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for source in (tmp_path, path):
        assert same(load_encoder(str(source)), hubert)
    (tmp_path / files[1]).unlink()
    with pytest.raises(EncoderError, match=f"the shard {files[1]} is not beside it"):
        load_encoder(str(tmp_path))
    path.write_text(json.dumps({"weight_map": {"a": "../secret.bin"}}))
    with pytest.raises(EncoderError, match="secret.bin is not beside it"):
        load_encoder(str(tmp_path))
    path.write_text("{}")
    with pytest.raises(EncoderError, match="malformed"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize("layout", ["ours", "fairseq", "huggingface-safetensors"])
def test_random_damage_ends_in_one_sentence_or_loads(layout, tmp_path, monkeypatch):
    source = write(layout, random_encoder(TINY), tmp_path, monkeypatch)
    path = next(path for path in tmp_path.iterdir() if path.suffix != ".json")
    whole, chance = path.read_bytes(), random.Random(0)
    sentences = 0
    for _ in range(25):
        raw = bytearray(whole)
        for _ in range(chance.choice((1, 3, 100))):  # most at the start, where headers are
            place = int(len(raw) * chance.random() ** 8)
            raw[place] = chance.randrange(256)
        cut = chance.choice((0, 0, chance.randrange(len(raw))))
        path.write_bytes(raw[cut:] if chance.random() < 0.5 else raw[: len(raw) - cut])
        try:
            load_encoder(source)
        except EncoderError as error:
            assert str(path) in str(error) or source in str(error)
            assert "\n" not in str(error) and error.__cause__
            sentences += 1
    assert sentences >= 10

"""HuBERT and its weights, the weighted sum, SpecAugment, length groups, MultiTask: tiny random weights, no download."""

import argparse
import itertools
import json
import os
import pickle
import random
import sys
import types
import urllib.error
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import model
from batches import Batch
from engine import kernels, pretrained
from engine.runs import RunError, load_checkpoint
from heads import BLSTMCTCHead, DiarizationHead, XVectorHead
from model import (
    BASE,
    TINY,
    EncoderError,
    FrozenBatch,
    LayerSum,
    MultiTask,
    frame_count,
    load_encoder,
    random_encoder,
    spec_augment,
)


def speech(*samples, seed=0):
    """Utterances of so many samples, quiet and loud, with an offset: [(n,), ...]."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, generator=generator) * (0.05 + 0.3 * k) + 0.02 for k, n in enumerate(samples)
    ]


def alone(hubert, wave):
    """The states of one utterance that is a batch of its own: (L+1, T, D)."""
    return hubert(wave[None], torch.tensor([len(wave)]))[0][:, 0]


def torchaudio_states(hubert, wave):
    """The states of one utterance as torchaudio itself computes them: (L+1, T, D)."""
    network, first = torchaudio.models.Wav2Vec2Model(hubert.feature_extractor, hubert.encoder), []
    hook = hubert.encoder.transformer.layers[0].register_forward_pre_hook(
        lambda layer, inputs: first.append(inputs[0])
    )
    outputs, _ = network.extract_features(wave[None])
    hook.remove()
    return torch.cat([*first, *outputs])


# Frames and hidden states


def test_frame_count_is_what_the_convolutions_make():
    convolutions = random_encoder(TINY).feature_extractor
    for n in [
        400,
        719,
        720,
        721,
        16_000,
        16_079,
        16_080,
        *random.Random(0).sample(range(400, 9_000), 40),
    ]:
        assert frame_count(n) == convolutions(torch.zeros(1, n), None)[0].shape[1]


def test_frame_count_knows_the_reference_values_and_is_never_negative():
    known = {
        0: 0,
        79: 0,
        399: 0,
        400: 1,
        720: 2,
        16_000: 49,
        16_080: 50,
        32_000: 99,
        48_000: 149,
        80_000: 249,
        128_000: 399,
    }
    assert [frame_count(n) for n in known] == list(known.values())
    assert frame_count(torch.tensor(list(known))).tolist() == list(known.values())


def test_every_state_equals_torchaudios_for_an_unpadded_utterance():
    hubert, (wave,) = random_encoder(TINY), speech(9_000)
    states, frames = hubert(wave[None], torch.tensor([9_000]))
    assert frames.tolist() == [27] and states.shape == (hubert.num_states, 1, 27, hubert.dim) == (
        5,
        1,
        27,
        128,
    )
    assert (states[:, 0] - torchaudio_states(hubert, wave)).abs().max() < 2e-6


def test_hubert_base_has_its_thirteen_states():
    hubert, (wave,) = load_encoder("random-hubert_base"), speech(16_000)
    with torch.no_grad():
        states, frames = hubert(wave[None], torch.tensor([16_000]))
        assert states.shape == (13, 1, 49, 768) and frames.tolist() == [49]
        assert sum(parameter.numel() for parameter in hubert.parameters()) == 94_370_944
        assert (states[:, 0] - torchaudio_states(hubert, wave)).abs().max() < 1e-5


@pytest.mark.parametrize("garbage", [0.0, 30.0, float("nan")])
def test_padding_and_batch_mates_and_garbage_in_the_padding_change_no_state(garbage):
    hubert, waves = random_encoder(TINY), speech(16_000, 400, 7_321, 32_000, 16_079)
    lengths = torch.tensor([len(wave) for wave in waves])
    batch = torch.randn(5, 37_000) * garbage  # more padding than anyone needs
    for row, wave in zip(batch, waves):
        row[: len(wave)] = wave
    states, frames = hubert(batch, lengths)
    assert states.shape[2] == frames.max() == 99
    for b, (wave, n) in enumerate(zip(waves, frames.tolist())):
        expected = alone(hubert, wave)
        assert (states[:, b, :n] - expected).abs().max() < 1e-5 * expected.std()


def test_padding_and_batch_mates_change_no_gradient():
    hubert, waves = (
        random_encoder(TINY).double(),
        [wave.double() for wave in speech(5_000, 3_000, 4_321)],
    )

    def gradient(states):
        hubert.zero_grad()
        (states * torch.arange(hubert.dim)).square().mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in hubert.parameters()])

    batch, _ = hubert(pad_sequence(waves, batch_first=True), torch.tensor([5_000, 3_000, 4_321]))
    expected = gradient(alone(hubert, waves[1]))
    assert (gradient(batch[:, 1, :9]) - expected).norm() < 1e-9 * expected.norm()


def test_an_utterance_shorter_than_one_frame_is_refused_with_its_length():
    with pytest.raises(ValueError, match="399 samples"):
        random_encoder(TINY)(torch.zeros(2, 16_000), torch.tensor([16_000, 399]))


def test_attention_never_sees_a_mask_or_a_padded_frame(monkeypatch):
    sizes, attention = [], F.scaled_dot_product_attention

    def spy(query, key, value, **named):
        assert named == {"dropout_p": 0.0}  # in evaluation mode
        sizes.append(query.shape[2])
        return attention(query, key, value, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    random_encoder(TINY)(torch.zeros(2, 9_000), torch.tensor([8_000, 7_000]))
    assert sizes == [24, 21] * 4


def test_utterances_in_a_row_have_the_states_that_they_have_in_a_padded_batch():
    hubert, waves = random_encoder(TINY), speech(4_000, 9_000, 400)
    states, frames = hubert.encode(waves)
    assert frames == [12, 27, 1] and states.shape == (5, 40, 128)
    padded, counts = hubert(
        pad_sequence(waves, batch_first=True), torch.tensor([4_000, 9_000, 400])
    )
    assert counts.tolist() == frames and not padded[:, 0, 12:].any()
    assert torch.equal(torch.cat([padded[:, b, :n] for b, n in enumerate(frames)], 1), states)


def test_waves_in_one_row_are_convolved_as_alone():
    hubert, waves = (
        random_encoder(TINY).double(),
        [wave.double() for wave in speech(400, 640, 719, 9_000, 16_000, 4_321)],
    )
    row = hubert._convolve_row(waves, [frame_count(len(wave)) for wave in waves])
    apart = torch.cat([hubert.feature_extractor(wave[None], None)[0][0] for wave in waves])
    weights, direction = (
        list(hubert.feature_extractor.parameters()),
        torch.randn(apart.shape[1]).double(),
    )
    torch.testing.assert_close(row, apart, rtol=0, atol=1e-9)
    for ours, expected in zip(
        *(torch.autograd.grad((x * direction).sin().sum(), weights) for x in (row, apart))
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_rows_have_few_lengths(monkeypatch):
    hubert, lengths = random_encoder(TINY), set()
    hubert.feature_extractor.conv_layers[0].conv.register_forward_pre_hook(
        lambda _, inputs: lengths.add(inputs[0].shape[2])
    )
    for n in range(400, 40_000, 1_234):
        hubert._convolve_row(
            [torch.zeros(n), torch.zeros(5_000)], [frame_count(n), frame_count(5_000)]
        )
    assert lengths == {32_000, 64_000}


@pytest.mark.parametrize("T", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("K", [8, 7])
def test_the_convolution_by_fourier_transforms_is_the_direct_one(T, K):
    torch.manual_seed(0)
    convolution = nn.Conv1d(6, 6, K, padding=K // 2, groups=3).double()
    row, results = torch.randn(T, 6, dtype=torch.double, requires_grad=True), []
    for result in (
        convolution(row.T[None])[0, :, :T].T,
        kernels.convolve_by_fourier(convolution, row),
    ):
        results.append(
            [result, *torch.autograd.grad(result.sin().sum(), [row, *convolution.parameters()])]
        )
    for direct, ours in zip(*results):
        torch.testing.assert_close(ours, direct, rtol=0, atol=1e-12)


def test_dropout_is_where_torchaudio_has_it(monkeypatch):
    hubert, (wave,) = random_encoder(TINY), speech(6_000)
    hubert.train()
    monkeypatch.setattr(kernels, "drop", F.dropout)  # torchaudio's random numbers
    torch.manual_seed(0)
    ours = alone(hubert, wave)
    torch.manual_seed(0)
    torch.testing.assert_close(ours, torchaudio_states(hubert, wave), rtol=0, atol=1e-5)


@pytest.mark.parametrize("T", [64, 704])
def test_attention_dropout_keeps_each_share_with_its_probability_and_scales_it(T):
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 1, 3, T, T).double()
    every_share = (
        torch.eye(T).double().expand(1, 3, T, T)
    )  # as values: what comes out is the shares
    shares = F.scaled_dot_product_attention(queries, keys, every_share)
    dropped = kernels.attend_with_dropout(queries, keys, every_share, 0.3)
    kept = dropped != 0
    torch.testing.assert_close(dropped, torch.where(kept, shares / 0.7, 0), rtol=1e-9, atol=1e-12)
    assert abs(kept.double().mean() - 0.7) < 4 * (0.21 / kept.numel()) ** 0.5
    assert (
        abs(kept[0, 0].ne(kept[0, 1]).double().mean() - 0.42) < 0.05
    )  # each head has a mask of its own


def test_attention_dropout_has_its_derivative():
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 5, 3, dtype=torch.double, requires_grad=True) for _ in range(3)]

    def same_mask(*inputs):
        torch.manual_seed(1)
        return kernels.attend_with_dropout(*inputs, 0.3)

    assert torch.autograd.gradcheck(same_mask, inputs)


def test_attention_drops_out_in_training_only():
    hubert, (wave,) = (
        random_encoder(
            TINY
            | {
                "encoder_projection_dropout": 0.0,
                "encoder_dropout": 0.0,
                "encoder_attention_dropout": 0.3,
            }
        ),
        speech(6_000),
    )
    still = alone(hubert, wave)
    assert torch.equal(alone(hubert, wave), still)
    hubert.train()
    assert not torch.equal(alone(hubert, wave), still)


def test_the_convolutions_learn_at_a_tenth_of_the_rate_and_nothing_else_does():
    hubert, (wave,) = random_encoder(TINY), speech(4_000)
    gradients = []
    for hubert.feature_grad_mult in (1.0, 0.1):
        hubert.zero_grad()
        alone(hubert, wave).square().mean().backward()
        gradients.append(
            {name: parameter.grad.clone() for name, parameter in hubert.named_parameters()}
        )
    for name, full in gradients[0].items():
        scale = 0.1 if name.startswith("feature_extractor") else 1.0
        torch.testing.assert_close(gradients[1][name], scale * full, rtol=1e-4, atol=1e-7)


def test_a_frozen_encoder_stays_in_evaluation_mode():
    hubert = random_encoder(TINY)
    assert hubert.train().training and not hubert.frozen
    hubert.requires_grad_(False)
    assert not hubert.train().training and hubert.frozen
    assert not any(module.training for module in hubert.modules())


# Weights from everywhere


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
    assert BASE == bundle | {"encoder_layer_drop": 0.0}


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


def test_a_random_encoder_is_always_the_same_and_leaves_the_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second, other = (
        load_encoder("random-tiny"),
        load_encoder("random-tiny"),
        random_encoder(TINY, seed=1),
    )
    assert torch.equal(torch.rand(3), expected)
    (wave,) = speech(2_000)
    assert torch.equal(alone(first, wave), alone(second, wave))
    assert not torch.equal(alone(first, wave), alone(other, wave))


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


# The weighted sum


def test_layer_sum_has_the_reference_value_and_starts_as_the_mean():
    states = torch.stack([(level + 1) * torch.tensor([1.0, -1.0]) for level in range(3)]).reshape(
        3, 1, 1, 2
    )
    layers = LayerSum(3)
    torch.testing.assert_close(layers(states).flatten(), torch.tensor([2.0, -2.0]))
    layers.weights.data = torch.tensor([0.0, 1.0, -1.0])
    torch.testing.assert_close(layers(states).flatten(), torch.tensor([1.8453021, -1.8453021]))


def test_layer_sum_is_float32_under_autocast_and_for_half_precision_states():
    states = torch.randn(5, 2, 7, 16)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(LayerSum(5)(states), states.mean(0), rtol=1e-5, atol=1e-6)
    assert LayerSum(5)(states.half()).dtype == torch.float32


# SpecAugment


def test_time_warp_has_the_reference_values():
    ramp = torch.arange(20.0)[:, None].expand(20, 2)
    torch.manual_seed(3)
    warped = model._warp(ramp, 20)
    expected = [
        -0.0751,
        0.504,
        1.3704,
        2.0936,
        2.752,
        3.525,
        4.3123,
        5.0,
        5.6877,
        6.475,
        7.248,
        7.9064,
        8.6296,
        9.496,
        10.0751,
        11.316,
        13.248,
        15.0,
        16.752,
        18.684,
    ]
    torch.testing.assert_close(
        warped, torch.tensor(expected)[:, None].expand(20, 2), rtol=0, atol=1e-4
    )


def test_time_warp_leaves_ten_frames_and_all_padding_alone():
    features = torch.randn(30, 4)
    assert torch.equal(model._warp(features, 10), features)
    for _ in range(20):  # 11 frames: the middle is always the sixth
        warped = model._warp(features, 11)
        assert torch.equal(warped[11:], features[11:]) and warped.shape == features.shape


def test_masks_have_the_reference_values():
    torch.manual_seed(0)
    times = model._spans(2, 100, 2, 40)
    assert times.sum(1).tolist() == [39, 13] and times[0, 29:68].all() and times[1, 4:17].all()
    torch.manual_seed(0)
    assert model._spans(2, 768, 4, 50).sum(1).tolist() == [126, 72]


def test_random_numbers_are_drawn_in_the_released_codes_order():
    frames, features = torch.tensor([60, 30, 10]), torch.rand(3, 60, 768) + 1
    torch.manual_seed(11)
    masked = spec_augment(features, frames)
    torch.manual_seed(11)
    expected = features.clone()
    for b, n in enumerate((60, 30)):  # nothing is drawn for the ten frames
        middle = int(torch.randint(5, n - 5, (1,)))
        moved = int(torch.randint(middle - 5, middle + 5, (1,))) + 1
        for start, stop, first, last in ((0, middle, 0, moved), (middle, n, moved, n)):
            part, size = features[b, start:stop][None, None], (last - first, 768)
            expected[b, first:last] = F.interpolate(
                part, size, mode="bicubic", align_corners=False
            )[0, 0]
    for most, masks, size in ((50, 4, 768), (40, 2, 60)):
        widths = torch.randint(0, most, (3, masks))
        starts = torch.randint(0, size - int(widths.max()), (3, masks))
        for b, k in itertools.product(range(3), range(masks)):
            span = slice(int(starts[b, k]), int(starts[b, k] + widths[b, k]))
            expected[(b, slice(None), span) if size == 768 else (b, span)] = 0
    torch.testing.assert_close(masked, expected, rtol=0, atol=1e-6)


def test_masks_are_as_large_as_the_released_codes_on_average():
    torch.manual_seed(0)
    times = [int(model._spans(1, 300, 2, 40).sum()) for _ in range(2_000)]
    dims = [int(model._spans(1, 768, 4, 50).sum()) for _ in range(2_000)]
    assert sum(times) / 2_000 == pytest.approx(37.0, abs=1.5) and sum(
        dims
    ) / 2_000 == pytest.approx(91.8, abs=2.5)


def test_narrow_features_lose_the_same_share_of_dimensions_and_the_input_is_not_touched():
    features = torch.ones(1, 400, 128)
    torch.manual_seed(0)
    shares = [
        1 - spec_augment(features, torch.tensor([400]), time_masks=1, time_mask_width=1).mean()
        for _ in range(300)
    ]
    assert float(sum(shares)) / 300 == pytest.approx(0.12, abs=0.03) and features.min() == 1


# MultiTask


class StubHead(nn.Module):
    """Regression on the mean over time: nothing of a padded frame reaches the loss."""

    def __init__(self, dim, outputs, frame_aligned=False):
        super().__init__()
        self.linear, self.frame_aligned = nn.Linear(dim, outputs), frame_aligned

    def outputs(self, features, frames):
        real = (torch.arange(features.shape[1]) < frames[:, None])[:, :, None]
        return self.linear((features * real).sum(1) / frames[:, None])

    def loss(self, features, frames, targets):
        return (
            (self.outputs(features, frames).square().sum(1) - torch.tensor(targets)).square().mean()
        )

    def predict(self, features, frames):
        return self.outputs(features, frames).tolist()

    def loss_weight(self, targets):
        return len(targets)


def step(seed=0):
    """A step of three tasks with different numbers of utterances."""
    batches, targets = {}, iter(range(20))
    for k, (task, samples) in enumerate(
        {"a": (4_000, 6_000), "b": (5_999,), "c": (9_000, 3_000, 4_400)}.items()
    ):
        waves = speech(*samples, seed=seed + k)
        batches[task] = SimpleNamespace(
            waves=pad_sequence(waves, batch_first=True),
            lengths=torch.tensor(samples),
            targets=[float(next(targets)) for _ in samples],
            ids=[f"{task}{n}" for n in samples],
        )
    return batches


def three_tasks(augment=False, **sizes):
    """MultiTask with stub heads and no dropout; the weighted sum is not the plain mean."""
    torch.manual_seed(1)
    sizes = {
        "encoder_num_layers": 2,
        "encoder_dropout": 0.0,
        "encoder_projection_dropout": 0.0,
    } | sizes
    multitask = MultiTask(
        random_encoder(TINY | sizes),
        {"a": StubHead(128, 2), "b": StubHead(128, 3), "c": StubHead(128, 1, frame_aligned=True)},
        augment,
    )
    multitask.layer_sum.weights.data = torch.linspace(-1, 1, multitask.encoder.num_states)
    return multitask


def gradient(multitask, losses):
    """The gradient of the summed losses, (parameters,)."""
    multitask.zero_grad()
    sum(losses).backward()
    return torch.cat(
        [
            parameter.grad.flatten()
            for parameter in multitask.parameters()
            if parameter.requires_grad
        ]
    )


def separate_losses(multitask, batches):
    """One forward per utterance, without MultiTask's grouping and without padding."""
    for task, batch in batches.items():
        rows = [
            multitask.layer_sum(alone(multitask.encoder, wave[:n])[:, None])[0]
            for wave, n in zip(batch.waves, batch.lengths)
        ]
        frames = torch.tensor([len(row) for row in rows])
        yield multitask.heads[task].loss(
            pad_sequence(rows, batch_first=True), frames, batch.targets
        )


@pytest.mark.parametrize("dtype, precision", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_losses_and_gradients_are_those_of_separate_forwards(dtype, precision):
    multitask, batches = three_tasks().to(dtype), step()
    for batch in batches.values():
        batch.waves, batch.targets = (
            batch.waves.to(dtype),
            torch.tensor(batch.targets, dtype=dtype).tolist(),
        )
    losses, expected = multitask(batches), list(separate_losses(multitask, batches))
    assert list(losses) == ["a", "b", "c"]
    torch.testing.assert_close(
        torch.stack([*losses.values()]), torch.stack(expected), rtol=precision, atol=precision
    )
    together, apart = gradient(multitask, losses.values()), gradient(multitask, expected)
    assert (together - apart).norm() < precision * apart.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_the_losses_gradients_and_predictions_of_a_cpu(device="cuda"):
    targets = {"a": [2, 3], "b": [[1, 2, 2]], "c": [torch.ones(n, 2) for n in (56, 18, 27)]}
    multitask, batches = (
        three_tasks(),
        {
            task: Batch(batch.waves, batch.lengths, targets[task], batch.ids)
            for task, batch in step().items()
        },
    )
    multitask.heads.update(
        {
            "a": XVectorHead(128, 4, 16),
            "b": BLSTMCTCHead(128, 5, 16),
            "c": DiarizationHead(128, 2, 16),
        }
    )
    multitask.heads["b"].dropout.p = 0.0

    def outcome():
        losses = multitask(batches).values()
        slope = gradient(multitask, losses)
        multitask.eval()
        spoken = [
            torch.tensor(rows)
            for task in ("a", "c")
            for rows in multitask.predict(task, batches[task])
        ]
        multitask.train()
        return [torch.stack([*losses]), slope, *spoken]

    expected = outcome()
    multitask.to(device)
    for ours, reference in zip(outcome(), expected):
        assert (
            ours.cpu() - reference
        ).norm() < 2e-3 * reference.norm()  # LSTMs there work with 10 bits


def test_under_autocast_the_encoder_is_bfloat16_and_heads_and_losses_are_float32():
    multitask, batches, seen = three_tasks(), step(), []
    linear = multitask.encoder.encoder.transformer.layers[0].attention.q_proj
    linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for head in multitask.heads.values():
        head.linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    expected = multitask(batches)
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        losses = multitask(batches)
    assert seen == [torch.bfloat16, *[torch.float32] * 3]
    for task, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[task], rtol=0.05, atol=0.02)


def test_a_step_moves_every_parameter():
    multitask = three_tasks()
    before = {name: parameter.clone() for name, parameter in multitask.named_parameters()}
    optimizer = torch.optim.SGD(multitask.parameters(), lr=1.0)
    sum(multitask(step()).values()).backward()
    optimizer.step()
    still = [
        name
        for name, parameter in multitask.named_parameters()
        if torch.equal(parameter, before[name])
    ]
    assert [
        name for name in still if not name.endswith("k_proj.bias")
    ] == []  # whose true gradient is 0


def test_a_prediction_does_not_depend_on_what_it_is_batched_with():
    multitask, batch = three_tasks().eval(), step()["c"]
    together = multitask.predict("c", batch)
    for wave, n, expected in zip(batch.waves, batch.lengths, together):
        single = SimpleNamespace(waves=wave[None, :n], lengths=n[None], targets=[0], ids=["x"])
        assert multitask.predict("c", single)[0] == pytest.approx(expected, abs=1e-5)


def test_a_frozen_encoder_gets_no_gradient_and_drops_nothing_out():
    torch.manual_seed(0)
    hubert = random_encoder(TINY | {"encoder_dropout": 0.5})
    multitask = MultiTask(
        hubert.requires_grad_(False), {"a": StubHead(128, 2)}, augment=False
    ).train()
    assert multitask.training and not hubert.training
    batch = {"a": step()["a"]}
    losses = [multitask(batch)["a"] for _ in range(2)]
    assert torch.equal(*losses)
    losses[0].backward()
    assert all(parameter.grad is None for parameter in hubert.parameters())
    assert multitask.layer_sum.weights.grad.abs().sum() > 0


def test_a_trained_encoder_drops_out_in_training_only():
    multitask, batches = three_tasks(encoder_dropout=0.5), step()
    assert not torch.equal(multitask(batches)["a"], multitask(batches)["a"])
    multitask.eval()
    assert torch.equal(multitask(batches)["a"], multitask(batches)["a"])


def test_states_that_are_known_already_replace_the_waves():
    multitask, batches = three_tasks(), step()
    multitask.encoder.requires_grad_(False)
    heard = multitask(batches)
    states, frames = multitask.encoder(batches["b"].waves, batches["b"].lengths)
    batches["b"] = FrozenBatch(states, frames, batches["b"].targets, batches["b"].ids)
    cached = multitask(batches)
    assert list(cached) == ["a", "b", "c"]
    torch.testing.assert_close(
        torch.stack([*cached.values()]), torch.stack([*heard.values()]), rtol=1e-5, atol=1e-6
    )
    assert multitask.predict("b", batches["b"])[0] == pytest.approx(
        multitask.predict("b", step()["b"])[0], abs=1e-6
    )


def test_spec_augment_is_for_training_and_never_warps_frame_aligned_targets(monkeypatch):
    calls = []
    monkeypatch.setattr(
        model,
        "spec_augment",
        lambda features, frames, time_warp, time_mask_width: (
            calls.append((tuple(features.shape[:2]), frames.tolist(), time_warp, time_mask_width))
            or features
        ),
    )
    multitask, batches = three_tasks(augment=True), step()
    multitask.time_mask_width = 7
    multitask(batches)
    # T is the longest utterance of the task, not of all
    assert calls == [
        ((2, 18), [12, 18], True, 7),
        ((1, 18), [18], True, 7),
        ((3, 27), [27, 9, 13], False, 7),
    ]
    multitask.eval()(batches)
    assert len(calls) == 3


def test_spec_augment_lets_the_gradient_through():
    multitask = three_tasks(augment=True)
    multitask.time_mask_width = 3  # of 18 frames
    assert gradient(multitask, multitask(step()).values()).isfinite().all()
    assert multitask.encoder.encoder.feature_projection.projection.weight.grad.abs().sum() > 0


def test_processes_with_unequal_shares_average_to_the_loss_of_the_whole_batch(monkeypatch):
    multitask, whole = three_tasks(), step()
    expected = multitask(whole)
    shares = [(slice(0, 1), {"a": 1, "c": 1}), (slice(1, None), {"a": 1, "c": 2})]
    averaged = {"a": 0, "c": 0}
    for (rows, _), (_, others) in zip(
        shares, reversed(shares)
    ):  # two processes, one after the other
        monkeypatch.setattr(
            model,
            "dist",
            SimpleNamespace(
                is_initialized=lambda: True,
                get_world_size=lambda: 2,
                all_reduce=lambda total, others=others: total.add_(
                    torch.tensor([float(n) for n in others.values()])
                ),
            ),
        )
        losses = multitask(
            {
                task: SimpleNamespace(
                    waves=whole[task].waves[rows],
                    lengths=whole[task].lengths[rows],
                    targets=whole[task].targets[rows],
                )
                for task in others
            }
        )
        averaged = {task: averaged[task] + losses[task] / 2 for task in others}
    for task, loss in averaged.items():
        torch.testing.assert_close(loss, expected[task], rtol=1e-5, atol=1e-5)

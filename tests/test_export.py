"""tools/export.py: our reader and transformers find in the folder the encoder of the run."""

import errno
import json
import os
import shutil

import pytest
import torch
from encoder_tools import alone, speech

from conftest import ENCODER, call_train, run_main
from engine.architecture import POST_NORM_DROPOUT
from evaluate import finished_config, load_trained_encoder
from model import TINY, encoder_digest, load_encoder, random_encoder
from tools import export

# Small networks: how they normalise, where layer norms are, whether convolutions have a bias.
NETWORKS = {
    "Base": {"encoder_num_layers": 2},
    "Large": {
        "extractor_mode": "layer_norm", "encoder_layer_norm_first": True,
        "normalize_waveform": True, "normalize_epsilon": 1e-7,
    },
    "LV-60": {
        "extractor_mode": "layer_norm", "encoder_layer_norm_first": True,
        "extractor_conv_bias": True, "encoder_embed_dim": 96, "encoder_num_heads": 6,
        "normalize_waveform": True, "normalize_epsilon": 1e-7,
    },
    "mixed": {"extractor_mode": "layer_norm", "extractor_conv_bias": True},
}
RUNS = ("mtl-IC+KS", "leave-one-out-KS-of-IC+KS", "transfer-KS-of-IC+KS", "ssl-KS")
WEIGHT = "encoder.transformer.layers.0.attention.k_proj.weight"
# What a reader of the folder sets by rules of its own.
CHANGED = (
    "encoder_projection_dropout",
    "encoder_dropout",
    "encoder_attention_dropout",
    "encoder_ff_interm_dropout",
    "encoder_layer_drop",
    "normalize_epsilon",
)


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    """MTL on two tasks and the runs of a transfer to one of them, two steps each."""
    runs = tmp_path_factory.mktemp("runs")
    here = ["--data", root, "--runs", runs, "--tasks", "KS,IC"]
    call_train(*here, "--scenario", "mtl")
    call_train(*here, "--scenario", "transfer", "--task", "KS")
    return runs


def run_export(run, folder) -> None:
    """tools/export.py in this process."""
    run_main(export.main, "--run", run, "--out", folder)


def assert_equal(loaded, expected):
    """Two encoders have the same states, weights and configuration, up to CHANGED."""
    for wave in speech(9_000, 5_003):
        assert torch.equal(alone(loaded, wave), alone(expected, wave))
    loaded.config |= {key: expected.config[key] for key in CHANGED}
    assert encoder_digest(loaded) == encoder_digest(expected)


@pytest.mark.parametrize("name", RUNS)
def test_the_encoder_of_a_run_is_read_back_exactly(name, runs, tmp_path, output_of):
    out = tmp_path / "deep" / "folder"
    assert str(out) in output_of(run_export, runs / name, out)
    files = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in out.iterdir()) == files
    expected = load_trained_encoder(runs / name, finished_config(runs / name))
    assert_equal(load_encoder(str(out)), expected)
    trained = not torch.equal(
        expected.state_dict()[WEIGHT], load_encoder(ENCODER).state_dict()[WEIGHT]
    )
    assert trained == (name != "ssl-KS")


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_every_kind_of_network_is_read_back_exactly(settings, tmp_path):
    encoder = random_encoder(TINY | settings, seed=3)
    export.export(encoder, tmp_path / "out")
    assert_equal(load_encoder(str(tmp_path / "out")), encoder)


def test_with_the_settings_that_a_reader_assumes_the_digest_is_the_same(tmp_path):
    assumed = POST_NORM_DROPOUT | {"normalize_epsilon": export.EPSILON}
    encoder = random_encoder(TINY | assumed, seed=3)
    export.export(encoder, tmp_path / "out")
    assert encoder_digest(load_encoder(str(tmp_path / "out"))) == encoder_digest(encoder)


def test_an_exported_encoder_can_be_trained_on(runs, root, tmp_path, output_of, run_train):
    output_of(run_export, runs / RUNS[0], tmp_path / "out")
    run_train(tmp_path, "--scenario", "ssl", "--task", "KS", "--encoder", tmp_path / "out")
    assert (tmp_path / "ssl-KS" / "result.json").exists()


def test_another_epsilon_is_noted(runs, tmp_path, output_of, monkeypatch):
    assert "note:" not in output_of(run_export, runs / RUNS[0], tmp_path / "one")
    for epsilon, noted in ((1e-5, True), (1e-7, False)):
        config = TINY | {"normalize_waveform": True, "normalize_epsilon": epsilon}
        encoder = random_encoder(config)
        monkeypatch.setattr(export, "load_trained_encoder", lambda *_: encoder)
        out = tmp_path / str(epsilon)
        assert ("epsilon 1e-05, and readers" in output_of(run_export, runs / RUNS[0], out)) == noted
        assert json.loads((out / "preprocessor_config.json").read_text())["do_normalize"] is True


# transformers


def huggingface_states(folder, waves, mask=None):
    """transformers' states of the utterances of a padded batch: (L+1, B, T, D)."""
    transformers = pytest.importorskip(
        "transformers", reason="Hugging Face's transformers is not installed"
    )
    model, problems = transformers.HubertModel.from_pretrained(
        str(folder), output_loading_info=True
    )
    assert not any(problems.values()), problems
    extractor = transformers.AutoFeatureExtractor.from_pretrained(str(folder))
    inputs = extractor(
        [wave.numpy() for wave in waves], sampling_rate=16_000, return_tensors="pt", padding=True
    )
    with torch.no_grad():
        output = model.eval()(inputs.input_values, attention_mask=mask, output_hidden_states=True)
    # Since transformers 5 the last of hidden_states lacks the final norm of pre-norm models.
    return torch.stack([*output.hidden_states[:-1], output.last_hidden_state])


def difference(found, expected):
    """The largest difference of any state, relative to the state's standard deviation."""
    return ((found - expected).abs().amax((1, 2)) / expected.std((1, 2))).max()


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_transformers_gives_the_same_states_for_one_utterance(settings, tmp_path):
    encoder = random_encoder(TINY | settings, seed=3)
    export.export(encoder, tmp_path / "out")
    for wave in speech(9_000, 16_000):
        (found,) = huggingface_states(tmp_path / "out", [wave]).unbind(1)
        assert difference(found, alone(encoder, wave)) < 1e-5


@pytest.mark.parametrize("name", ["Base", "Large"])
def test_in_a_padded_batch_transformers_differs_where_there_is_a_group_norm(name, tmp_path):
    encoder = random_encoder(TINY | NETWORKS[name], seed=3)
    export.export(encoder, tmp_path / "out")
    waves = speech(9_000, 16_000)
    mask = torch.arange(16_000) < torch.tensor([[9_000], [16_000]])
    expected = alone(encoder, waves[0])
    states = huggingface_states(tmp_path / "out", waves, mask.long())
    found = difference(states[:, 0, : expected.shape[1]], expected)
    assert found > 0.1 if name == "Base" else found < 1e-5


# Errors


def test_a_run_that_cannot_be_exported_is_one_sentence(runs, tmp_path, refused):
    out = tmp_path / "out"
    refused(run_export, [tmp_path / "mtl-all", out], "there is no run", "mtl-all")
    shutil.copytree(runs / "ssl-KS", tmp_path / "ssl-KS")
    (tmp_path / "ssl-KS" / "result.json").unlink()
    refused(run_export, [tmp_path / "ssl-KS", out], "ssl-KS is not finished", "continues it")
    shutil.copytree(runs / RUNS[2], tmp_path / RUNS[2])
    refused(run_export, [tmp_path / RUNS[2], out], RUNS[1])
    assert not out.exists()


def test_a_folder_that_is_not_empty_or_cannot_be_made_is_one_sentence(runs, tmp_path, refused):
    refused(run_export, [runs / "ssl-KS", runs], f"--out: {runs} is not empty", "name a new folder")
    file = tmp_path / "file"
    file.write_text("mine")
    refused(run_export, [runs / "ssl-KS", file], f"--out: {file} cannot be made", "File exists")
    refused(run_export, [runs / "ssl-KS", file / "out"], "cannot be made", "Not a directory")
    assert file.read_text() == "mine"


def test_a_file_that_cannot_be_written_is_one_sentence(runs, tmp_path, refused, monkeypatch):
    def fail(number):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("engine.runs.os.fsync", fail)
    path = tmp_path / "out" / "model.safetensors"
    words = (f"cannot write {path}", "Read-only file system")
    refused(run_export, [runs / "ssl-KS", tmp_path / "out"], *words)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_encoder_with_other_frames_is_one_sentence(runs, tmp_path, refused, monkeypatch):
    convolutions = [(32, 10, 4)] + TINY["extractor_conv_layer_config"][1:]
    encoder = random_encoder(TINY | {"extractor_conv_layer_config": convolutions})
    monkeypatch.setattr(export, "load_trained_encoder", lambda *_: encoder)
    words = ("a frame of it sees 322 samples, every 256", "HuBERT's sees 400, every 320")
    refused(run_export, [runs / "ssl-KS", tmp_path / "out"], *words)
    assert not (tmp_path / "out").exists()

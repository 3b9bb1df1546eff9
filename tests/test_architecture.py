"""Which network a file's tensors belong to: names, prefixes, settings; what is refused by name."""

import argparse
import json

import pytest
import torch
from encoder_tools import (
    LARGE,
    alone,
    fairseq,
    huggingface,
    old_weight_norm,
    save_fairseq,
    speech,
    write_safetensors,
)
from torch.nn.utils.rnn import pad_sequence

import model
from engine.pretrained import read_weights
from model import (
    BASE,
    TINY,
    EncoderError,
    Hubert,
    MultiTask,
    load_encoder,
    random_encoder,
)

# Sizes like those of nothing published, so that only a file can say them.
ODD = {
    "encoder_embed_dim": 96,
    "encoder_num_layers": 3,
    "encoder_num_heads": 6,
    "encoder_ff_interm_features": 40,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
}
KINDS = {  # what fairseq and Hugging Face call the settings of each
    "post-norm": (TINY | ODD, False),
    "pre-norm": (LARGE | ODD, True),
    "pre-norm without bias": (LARGE | ODD | {"extractor_conv_bias": False}, True),
    "layer norm but post-norm": (LARGE | ODD | {"encoder_layer_norm_first": False}, False),
}
CONV_FEATURE_LAYERS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"


def with_real_norms(config):
    """An encoder whose layer norms change what they get."""
    hubert = random_encoder(config, seed=3)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in hubert.named_parameters():
            if "norm" in name:
                parameter.normal_(1, 0.2)
    return hubert


def assert_same_states(loaded, hubert):
    """The same states, of a batch of two."""
    batch = pad_sequence(speech(6_000, 4_000), batch_first=True), torch.tensor([6_000, 4_000])
    assert not loaded.training
    torch.testing.assert_close(loaded(*batch)[0], hubert(*batch)[0], rtol=0, atol=1e-5)


def loading(source):
    """The sentence with which a source is refused."""
    with pytest.raises(EncoderError) as caught:
        load_encoder(str(source))
    assert str(source) in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.__cause__
    return str(caught.value)


def huggingface_folder(folder, state, preprocessor=None, **config):
    """A folder like those of Hugging Face."""
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "model.safetensors", state)
    (folder / "config.json").write_text(json.dumps({"model_type": "hubert"} | config))
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


# Sizes and settings


@pytest.mark.parametrize("kind", KINDS)
def test_a_hugging_face_folder_gives_sizes_norms_and_normalisation(kind, tmp_path):
    config, norm_first = KINDS[kind]
    hubert = with_real_norms(config | {"normalize_waveform": True, "normalize_epsilon": 1e-7})
    settings = {"num_attention_heads": 6, "do_stable_layer_norm": norm_first}
    folder = huggingface_folder(
        tmp_path, huggingface(hubert.state_dict()), {"do_normalize": True}, **settings
    )
    loaded = load_encoder(str(folder))
    assert loaded.config["encoder_layer_norm_first"] == norm_first
    assert_same_states(loaded, hubert)


@pytest.mark.parametrize(
    "written", ["cfg", "cfg of namespaces", "args", "finetuned", "old finetuned"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fairseq_checkpoint_gives_sizes_norms_and_normalisation(
    kind, written, tmp_path, monkeypatch
):
    config, norm_first = KINDS[kind]
    hubert = with_real_norms(config | {"normalize_waveform": True, "normalize_epsilon": 1e-5})
    network = {
        "encoder_attention_heads": 6,
        "layer_norm_first": norm_first,
        "activation_fn": "gelu",
        "conv_feature_layers": CONV_FEATURE_LAYERS,
    }
    cfg = {"model": {"_name": "hubert"} | network, "task": {"normalize": True}}
    prefix = ""
    if written == "cfg":
        beside = {"cfg": cfg, "args": None}
    elif written == "cfg of namespaces":
        beside = {"cfg": {name: argparse.Namespace(**part) for name, part in cfg.items()}}
    elif written == "args":
        beside = {"args": argparse.Namespace(arch="hubert", normalize=True, **network), "cfg": None}
    else:
        prefix = "w2v_encoder.w2v_model."
        outer = {"model": {"_name": "hubert_ctc", "w2v_args": cfg}, "task": {"normalize": True}}
        beside = {"cfg": outer, "args": None}
        if written.startswith("old"):
            inner = argparse.Namespace(arch="hubert", normalize=True, **network)
            args = argparse.Namespace(arch="hubert_ctc", normalize=True, w2v_args=inner)
            beside = {"args": args, "cfg": None}
    weights = {prefix + name: tensor for name, tensor in fairseq(hubert.state_dict()).items()}
    weights |= {"w2v_encoder.proj.weight": torch.zeros(2)} if prefix else {}
    save_fairseq(tmp_path / "a.pt", weights, monkeypatch, **beside)
    loaded = load_encoder(str(tmp_path / "a.pt"))
    assert loaded.config["normalize_epsilon"] == 1e-5
    assert_same_states(loaded, hubert)


def test_sizes_without_a_configuration_are_those_of_published_models(tmp_path):
    small = {
        "encoder_num_layers": 1,
        "encoder_ff_interm_features": 8,
        "encoder_pos_conv_kernel": 8,
    }
    for width, config, heads, norm_first in (
        (768, BASE, 12, False),
        (1_024, model.LARGE, 16, True),
        (1_280, model.LARGE, 16, True),
        (1_024, BASE, 16, False),  # wav2vec 2.0 Large of LibriSpeech
    ):
        config = config | small | {"encoder_embed_dim": width, "encoder_num_heads": heads}
        hubert = random_encoder(config)
        torch.save(hubert.state_dict(), tmp_path / "a.pt")
        loaded = load_encoder(str(tmp_path / "a.pt"))
        assert loaded.config == config
        assert loaded.config["encoder_layer_norm_first"] == norm_first
        assert loaded.config["normalize_waveform"] == norm_first


def test_hubert_base_and_large_from_their_tensors_are_the_models_configurations(tmp_path):
    for config in (BASE, model.LARGE | {"encoder_num_layers": 2}):
        with torch.device("meta"):  # shapes without numbers
            shapes = {name: x.shape for name, x in Hubert(config).state_dict().items()}
        state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
        torch.save(state, tmp_path / "a.pt")
        assert read_weights(str(tmp_path / "a.pt"))[0] == config


def test_other_sizes_without_a_configuration_ask_for_one(tmp_path):
    torch.save(random_encoder(TINY | ODD).state_dict(), tmp_path / "a.pt")
    assert "how many attention heads share its 96 dimensions" in loading(tmp_path / "a.pt")


def test_heads_that_do_not_divide_the_dimensions_are_refused(tmp_path):
    state = huggingface(random_encoder(TINY).state_dict())
    folder = huggingface_folder(tmp_path, state, num_attention_heads=12)
    assert "128 dimensions cannot be shared by 12 attention heads" in loading(folder)


def test_the_number_of_heads_of_config_json_counts(tmp_path):
    state = huggingface(random_encoder(TINY).state_dict())
    folder = huggingface_folder(tmp_path, state, num_attention_heads=8)
    (wave,) = speech(4_000)
    expected = alone(random_encoder(TINY | {"encoder_num_heads": 8}), wave)
    assert torch.equal(alone(load_encoder(str(folder)), wave), expected)
    assert not torch.allclose(alone(random_encoder(TINY), wave), expected, atol=1e-3)


def test_normalisation_and_wav2vec_are_said_on_standard_error(tmp_path, capsys):
    state = huggingface(random_encoder(TINY).state_dict())
    state["quantizer.codevectors"] = torch.zeros(1, 2, 3)
    huggingface_folder(tmp_path, state, {"do_normalize": True}, model_type="wav2vec2")
    load_encoder(str(tmp_path))
    printed = capsys.readouterr()
    assert printed.out == "" and "wav2vec 2.0, whose network is HuBERT's" in printed.err
    assert "normalised" in printed.err and "epsilon 1e-07" in printed.err
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    assert not load_encoder(str(tmp_path)).config["normalize_waveform"]
    (tmp_path / "preprocessor_config.json").unlink()
    processor = {
        "feature_extractor": {"do_normalize": True},
        "processor_class": "Wav2Vec2Processor",
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(processor))
    assert load_encoder(str(tmp_path)).config["normalize_waveform"]


# Names


@pytest.mark.parametrize(
    "prefix",
    [
        "hubert.",
        "wav2vec2.",
        "module.",
        "_orig_mod.",
        "model.",
        "module._orig_mod.model.hubert.",
        "upstream.model.",
    ],
)
@pytest.mark.parametrize("names", ["torchaudio", "huggingface", "fairseq"])
def test_prefixes_are_undone_and_output_layers_dropped(prefix, names, tmp_path):
    hubert = random_encoder(TINY, seed=5)
    state = hubert.state_dict()
    if names == "huggingface":
        state = {name.removeprefix("hubert."): x for name, x in huggingface(state).items()}
    elif names == "fairseq":
        state = fairseq(state)
    state = {prefix + name: tensor for name, tensor in state.items()}
    if prefix != "_orig_mod.":
        state["lm_head.weight"] = torch.zeros(3, 4)
        state["unknown.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"epoch": torch.tensor(3), "state_dict": state}, tmp_path / "lightning.pt")
    for name in ("plain.pt", "lightning.pt"):
        assert_same_states(load_encoder(str(tmp_path / name)), hubert)


def test_a_compiled_part_is_found_and_a_whole_multi_task_model_gives_its_encoder(tmp_path):
    hubert = random_encoder(TINY, seed=6)
    compiled = {
        name.replace("transformer.layers", "transformer._orig_mod.layers"): tensor
        for name, tensor in hubert.state_dict().items()
    }
    whole = MultiTask(hubert, {"a": torch.nn.Linear(128, 2)}).state_dict()
    for state in (compiled, whole, {old_weight_norm(name): x for name, x in whole.items()}):
        torch.save(state, tmp_path / "a.pt")
        assert_same_states(load_encoder(str(tmp_path / "a.pt")), hubert.eval())


def test_foreign_contents_are_one_sentence(tmp_path):
    state, path = random_encoder(TINY).state_dict(), tmp_path / "a.pt"
    twice = {f"{who}.{name}": x for who in ("student", "teacher") for name, x in state.items()}
    incomplete = {key: value for key, value in TINY.items() if "heads" not in key}
    for content, told in (
        ({"encoder": 3}, "no parameters in it; it holds encoder"),
        ({}, "no parameters in it; it holds nothing"),
        ({"model": {}}, "no parameters"),
        ({3: torch.zeros(2), 4: torch.zeros(3)}, "its keys are not names of parameters: 3, 4"),
        ([torch.zeros(2)], "it holds one list, not named parameters"),
        (torch.zeros(2), "it holds one Tensor, not named parameters"),
        ({"weight": torch.zeros(2, 3)}, r"no HuBERT in it .* it holds weight (2, 3)"),
        ({"config": {"a": 1}, "state_dict": {"weight": torch.zeros(2)}}, "no HuBERT in it"),
        ({"config": incomplete, "state_dict": state}, "configuration lacks encoder_num_heads"),
        ({"config": TINY | {"encoder_num_heads": "many"}, "state_dict": state}, "a.pt: "),
        ({"config": BASE, "state_dict": state}, "has shape"),
        (twice, "several encoders in it (student., teacher.)"),
        ({"model": {"layer_sum.weights": torch.zeros(5)}}, "did not train its encoder"),
        ({"feature_extractor.conv_layers.0.conv.weight": torch.zeros(3)}, "a.pt: not loaded"),
    ):
        torch.save(content, path)
        sentence = loading(path)
        for part in told.split(" .* "):
            assert part in sentence


def test_a_foreign_config_beside_a_state_dict_is_ignored_or_read_as_hugging_faces(tmp_path):
    hubert = random_encoder(TINY | ODD, seed=7)
    theirs = {"hidden_size": 96, "num_attention_heads": 6}
    content = {"config": theirs, "state_dict": huggingface(hubert.state_dict())}
    torch.save(content, tmp_path / "a.pt")
    assert_same_states(load_encoder(str(tmp_path / "a.pt")), hubert)
    tiny = random_encoder(TINY, seed=7)
    torch.save({"config": {"lr": 1}, "state_dict": tiny.state_dict()}, tmp_path / "a.pt")
    assert_same_states(load_encoder(str(tmp_path / "a.pt")), tiny)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", ["ours", "huggingface"])
def test_a_weight_that_is_not_finite_is_named(value, layout, tmp_path):
    hubert = random_encoder(TINY)
    hubert.encoder.transformer.layers[1].attention.v_proj.bias.data[7] = value
    content = hubert.checkpoint() if layout == "ours" else huggingface(hubert.state_dict())
    torch.save(content, tmp_path / "a.pt")
    name = "encoder.transformer.layers.1.attention.v_proj.bias"
    assert f"{name} holds NaN or infinity" in loading(tmp_path / "a.pt")


# Networks that are not this one


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"model_type": "wavlm"}, "wavlm"),
        ({"model_type": "data2vec-audio"}, "data2vec-audio"),
        ({"model_type": "wav2vec2-conformer"}, "wav2vec2-conformer"),
        ({"hidden_act": "relu"}, "hidden_act = relu"),
        ({"feat_extract_activation": "gelu_new"}, "feat_extract_activation = gelu_new"),
        ({"feat_proj_layer_norm": False}, "feat_proj_layer_norm = False"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm = True"),
        ({"add_adapter": True}, "add_adapter = True"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim = 16"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps = 1e-06"),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 1]}, "sees 400 samples, every 160"),
        ({"conv_stride": [5, 2, 2, 2]}, "sees 80 samples, every 40"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_config_json_of_another_network_is_refused_by_its_name(settings, told, tmp_path):
    state = huggingface(random_encoder(TINY).state_dict())
    assert told in loading(huggingface_folder(tmp_path, state, **settings))


def test_a_damaged_or_slow_configuration_beside_the_weights_is_named(tmp_path):
    state = huggingface(random_encoder(TINY).state_dict())
    huggingface_folder(tmp_path, state, {"sampling_rate": 8_000})
    assert "sampling_rate = 8000" in loading(tmp_path)
    for text in ("{", "[1]", "\xff"):
        (tmp_path / "config.json").write_text(text)
        assert "config.json beside it is damaged" in loading(tmp_path)


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"_name": "data2vec_audio"}, "data2vec_audio"),
        ({"activation_fn": "relu"}, "activation_fn = relu"),
        ({"layer_type": "conformer"}, "layer_type = conformer"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm = True"),
        ({"pos_conv_depth": 5}, "pos_conv_depth = 5"),
        ({"conv_feature_layers": "[(512, 10, 5), (512, 3, 2)] + [(512,3,4)]*2"}, "every 160"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_cfg_of_another_network_is_refused_by_its_name(settings, told, tmp_path, monkeypatch):
    weights = fairseq(random_encoder(TINY).state_dict())
    save_fairseq(tmp_path / "a.pt", weights, monkeypatch, cfg={"model": settings})
    assert told in loading(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "name, told",
    [
        ("encoder.layers.0.attention.gru_rel_pos_const", "WavLM"),
        ("encoder.layers.0.self_attn.grep_linear.weight", "WavLM"),
        ("encoder.pos_conv_embed.batch_norm.running_mean", "conv_pos_batch_norm"),
        ("encoder.pos_conv_embed.layers.0.conv.weight", "data2vec"),
        ("encoder.pos_conv.0.0.weight", "data2vec"),
        ("encoder.layers.0.conv_module.layer_norm.weight", "conformer"),
        ("encoder.layers.0.adapter_layer.linear_1.weight", "adapters"),
        ("adapter.layers.0.conv.weight", "adapters"),
        ("output_layer.0.weight", "DistilHuBERT"),
    ],
)
def test_parameters_of_another_network_are_refused_by_their_name(name, told, tmp_path):
    state = {
        key.removeprefix("hubert."): x
        for key, x in huggingface(random_encoder(TINY).state_dict()).items()
    }
    state[name] = torch.zeros(3)
    torch.save(state, tmp_path / "a.pt")
    assert told in loading(tmp_path / "a.pt")


def test_distilhubert_is_refused_by_its_name(tmp_path):
    state = huggingface(random_encoder(TINY).state_dict())
    torch.save({"Distiller": state, "Config": {}}, tmp_path / "a.pt")
    assert "DistilHuBERT" in loading(tmp_path / "a.pt")
    bare = {name: x for name, x in state.items() if "feature_projection.layer_norm" not in name}
    torch.save(bare, tmp_path / "a.pt")
    assert "feat_proj_layer_norm=false, as in DistilHuBERT" in loading(tmp_path / "a.pt")


# transformers


SMALL = {
    "hidden_size": 96,
    "num_attention_heads": 6,
    "num_hidden_layers": 4,
    "intermediate_size": 160,
    "conv_dim": [24] * 7,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 8,
}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}


@pytest.mark.parametrize(
    "family, settings",
    [
        (
            "Hubert",
            {
                "hidden_size": 128,
                "num_attention_heads": 4,
                "intermediate_size": 512,
                "conv_dim": [32] * 7,
            },
        ),
        ("Hubert", {}),
        ("Hubert", {"num_hidden_layers": 2}),
        ("Hubert", STABLE | {"conv_bias": True}),
        ("Hubert", STABLE),
        ("Wav2Vec2", {}),
        ("Wav2Vec2", STABLE | {"conv_bias": True}),
    ],
    ids=["tiny", "Base", "2 layers", "Large", "Large without bias", "wav2vec 2.0", "LV-60"],
)
def test_states_equal_those_of_transformers(family, settings, tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="Hugging Face's transformers is not installed"
    )
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL | settings)
    theirs = getattr(transformers, f"{family}Model")(config).eval()
    normalize = "do_stable_layer_norm" in settings
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
    for part in (theirs, extractor):
        part.save_pretrained(tmp_path)
    ours, waves = load_encoder(str(tmp_path)), speech(9_000, 16_000, 5_003)
    lengths = torch.tensor([len(wave) for wave in waves])
    states, frames = ours(pad_sequence(waves, batch_first=True), lengths)
    for b, (wave, T) in enumerate(zip(waves, frames.tolist())):
        values = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
        with torch.no_grad():
            output = theirs(values, output_hidden_states=True)
        # Since transformers 5 the last of hidden_states lacks the final norm of pre-norm models.
        expected = torch.cat([*output.hidden_states[:-1], output.last_hidden_state])
        for found in (states[:, b, :T], alone(ours, wave)):
            difference = (found - expected).abs().amax((1, 2)) / expected.std((1, 2))
            assert difference.max() < 1e-5

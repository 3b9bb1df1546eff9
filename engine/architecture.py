"""Converts weights of fairseq, Hugging Face and others to (configuration, state dict).

    unwrap -> drop prefixes -> refuse what differs -> torchaudio's names -> configuration

The sizes of the network are read from the tensors. The number of attention heads, the place of the
layer norms and the strides are not in the tensors: they come from config.json (Hugging Face), from
cfg or args (fairseq), or from a table of published models. What `model.Hubert` does not compute
exactly is refused by its name. The keys of a configuration are those of `model.BASE`.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from engine.files import some
from rules import HOP, RECEPTIVE_FIELD, SAMPLE_RATE

# {(dimensions, whether each convolution has a layer norm): number of attention heads}, for
# published models and our tiny one. Those with layer norms there are pre-norm transformers.
PUBLISHED_HEADS = {(128, False): 4, (768, False): 12, (1024, False): 16, (1024, True): 16,
                   (1280, True): 16}
STRIDES = (5, 2, 2, 2, 2, 2, 2)
# Weight files do not always name the dropout. We use that of pretraining (torchaudio's
# HUBERT_BASE and HUBERT_LARGE) for every file.
POST_NORM_DROPOUT = {"encoder_projection_dropout": 0.1, "encoder_dropout": 0.1,
                     "encoder_attention_dropout": 0.1}
PRE_NORM_DROPOUT = dict.fromkeys(POST_NORM_DROPOUT, 0.0)

# Where the weights lie in a file: a run of ours, Lightning, fairseq, others.
WRAPPERS = ("encoder", "state_dict", "model", "model_state_dict")
# Names in other files -> torchaudio's names, which no rule changes.
RENAMED = (
    # Hugging Face
    (r"^encoder\.(?!transformer\.|feature_projection\.)", "encoder.transformer."),
    (r"^feature_projection\.", "encoder.feature_projection."),
    # fairseq
    (r"\.pos_conv\.0\.", ".pos_conv_embed.conv."),
    (r"^post_extract_proj\.", "encoder.feature_projection.projection."),
    (r"^layer_norm\.", "encoder.feature_projection.layer_norm."),
    (r"(conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"(conv_layers\.\d+)\.2\.(1\.)?", r"\1.layer_norm."),
    (r"\.self_attn\.", ".attention."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
    # weight norm before PyTorch 2.0
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
)
# Not the encoder: mask embedding, targets, quantizer, output layers.
DROPPED = (
    r"mask_emb|masked_spec_embed|label_embs_concat|layer_weights$|"
    r"(final_proj|quantizer|project_q|project_hid|target_glu|lm_head|projector|classifier|aux)\."
)
# Pattern of a parameter's name -> the part of the file's network that `model.Hubert` lacks.
UNSUPPORTED = (
    (r"grep_linear|grep_a|gru_rel_pos|rel_attn_embed|relative_attention_bias",
     "WavLM's gated relative position bias"),
    (r"pos_conv_embed\.batch_norm|pos_conv\.\d\.running_mean",
     "a batch norm before its positional convolution (conv_pos_batch_norm)"),
    (r"pos_conv_embed\.layers\.|pos_conv\.\d\.\d\.", "data2vec's stack of positional convolutions"),
    (r"conv_module\.|\.ffn1\.|\.linear_pos\.", "conformer layers"),
    (r"(^|\.)adapter|_adapter", "adapters"),
    (r"^output_layer\.", "the prediction heads of DistilHuBERT"),
)


class EncoderError(Exception):
    """An encoder that cannot be loaded: the message is one sentence that says what to do."""


def interpret(content: dict, path: Path) -> tuple[dict, dict[str, Tensor]]:
    """The content of a file -> configuration, state dict. path: where it lies (for config.json)."""
    if "Distiller" in content:
        raise EncoderError("it is DistilHuBERT, whose layers are not HuBERT's")
    config, everything = _unwrap(content)
    prefix, weights = _strip_prefix(everything)
    for pattern, what in UNSUPPORTED:
        for name in weights:
            if re.search(pattern, name):
                raise EncoderError(f"it has {what} ({name}), which this network does not compute")
    if isinstance(config, dict) and "encoder_embed_dim" in config:
        return _check_our_config(config), _rename(weights)
    if "post_extract_proj.weight" in weights:
        family, known = _fairseq_settings(content)
    elif "feature_projection.projection.weight" in weights:
        beside = config if isinstance(config, dict) else _read_json(path.parent / "config.json")
        preprocessor = _read_json(path.parent / "preprocessor_config.json")
        processor = _read_json(path.parent / "processor_config.json")  # since transformers 5
        preprocessor = preprocessor or _as_dict(processor.get("feature_extractor"))
        family, known = _huggingface_settings(beside, preprocessor)
        family = family or prefix
    else:
        family, known = "", {}
    state = _rename(weights)
    config = _configuration(state, known)
    if "wav2vec" in family or any("quantizer." in name for name in everything):
        _note(path, "wav2vec 2.0, whose network is HuBERT's")
    if config["normalize_waveform"]:
        _note(path, "each waveform is normalised to mean 0 and variance 1, over its own samples "
                    f"(epsilon {config['normalize_epsilon']:g})")
    return config, state


def _unwrap(content: dict) -> tuple[object, dict[str, Tensor]]:
    """The value of "config" in a file (None if there is none), and its weights."""
    config = None
    whole = content
    wrapped = True
    while wrapped:
        config = content.get("config", config)
        wrapped = [key for key in WRAPPERS if isinstance(content.get(key), dict)]
        inner = [key for key, x in content.items() if isinstance(x, dict) and key != "config"]
        has_tensors = any(isinstance(x, Tensor) for x in content.values())
        if not wrapped and not has_tensors and len(inner) == 1:
            wrapped = inner  # one dict, under any name
        if wrapped:
            content = content[wrapped[0]]
    weights = {name: x for name, x in content.items() if isinstance(x, Tensor)}
    if not weights:
        raise EncoderError(f"no parameters in it; it holds {some(whole)}; save them alone: "
                           "torch.save(model.state_dict(), file)")
    numbers = [name for name in weights if not isinstance(name, str)]
    if numbers:
        raise EncoderError(f"its keys are not names of parameters: {some(numbers)}")
    return config, weights


def _strip_prefix(weights: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Returns the prefix of the encoder's names, and its parameters without this prefix.

    A wrapper adds the prefix: "hubert.", "module.", "w2v_encoder.w2v_model." and so on. Parameters
    without the prefix (output layers) are dropped."""
    weights = {name.replace("_orig_mod.", ""): x for name, x in weights.items()}  # torch.compile
    first = "feature_extractor.conv_layers.0."  # the first convolution has this name in all files
    prefixes = sorted({name[: name.index(first)] for name in weights if first in name})
    if "layer_sum.weights" in weights and not prefixes:
        raise EncoderError("a run that did not train its encoder; name the encoder that its "
                           "config.json names")
    if not prefixes:
        shapes = [f"{name} {tuple(x.shape)}" for name, x in weights.items()]
        raise EncoderError(f"no HuBERT in it (no {first}*): it holds {some(shapes)}")
    if len(prefixes) > 1:
        raise EncoderError(f"several encoders in it ({some(prefixes)}); save one of them alone")
    prefix = prefixes[0]
    own = [name for name in weights if name.startswith(prefix)]
    return prefix, {name.removeprefix(prefix): weights[name] for name in own}


def _rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """-> names of torchaudio, float32. Integers (counters, position ids) are no parameters."""
    state = {}
    for name, tensor in weights.items():
        if re.match(DROPPED, name) or not tensor.is_floating_point():
            continue
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor.to(torch.float32)
        if not state[name].isfinite().all():
            raise EncoderError(f"{name} holds NaN or infinity; take an earlier checkpoint")
    return state


def _check_our_config(config: dict) -> dict:
    """The configuration in `Hubert.checkpoint()`, if it is complete."""
    needed = ("extractor_mode", "extractor_conv_layer_config", "extractor_conv_bias",
              "encoder_num_layers", "encoder_num_heads", "encoder_ff_interm_features",
              "encoder_pos_conv_kernel", "encoder_pos_conv_groups", "encoder_layer_norm_first",
              "encoder_ff_interm_dropout", *POST_NORM_DROPOUT)
    missing = [key for key in needed if key not in config]
    if missing:
        raise EncoderError(f"its configuration lacks {some(missing)}")
    return config


def _huggingface_settings(config: dict, preprocessor: dict) -> tuple[str, dict]:
    """config.json, preprocessor_config.json -> family, settings under the keys of `model.BASE`."""
    family = config.get("model_type", "")
    if family not in ("", "hubert", "wav2vec2"):
        raise EncoderError(f"its config.json says {family}; HuBERT and wav2vec 2.0 are supported")
    _require("config.json", config, {
        "hidden_act": "gelu", "feat_extract_activation": "gelu", "layer_norm_eps": 1e-5,
        "feat_proj_layer_norm": True, "conv_pos_batch_norm": False,
        "add_adapter": False, "adapter_attn_dim": None})
    _require("preprocessor_config.json", preprocessor, {"sampling_rate": SAMPLE_RATE})
    known = {"encoder_num_heads": config.get("num_attention_heads"),
             "encoder_layer_norm_first": config.get("do_stable_layer_norm"),
             "strides": config.get("conv_stride"),
             "normalize_waveform": preprocessor.get("do_normalize"),
             "normalize_epsilon": 1e-7}
    return family, known


def _fairseq_settings(content: dict) -> tuple[str, dict]:
    """cfg or args of a checkpoint -> family, settings under the keys of `model.BASE`."""
    args = _as_dict(content.get("args"))
    cfg = _as_dict(content.get("cfg"))
    network = _as_dict(cfg.get("model")) or args
    task = _as_dict(cfg.get("task")) or args
    pretraining = _as_dict(network.get("w2v_args"))  # of a finetuned model
    if pretraining:
        network = _as_dict(pretraining.get("model")) or pretraining
        task = task or _as_dict(pretraining.get("task")) or pretraining
    family = network.get("_name") or network.get("arch") or ""
    if family and not family.startswith(("hubert", "wav2vec")):
        raise EncoderError(f"its cfg says {family}; HuBERT and wav2vec 2.0 are supported")
    _require("cfg", network, {"activation_fn": "gelu", "layer_type": "transformer",
                              "conv_pos_batch_norm": False, "pos_conv_depth": 1})
    _require("cfg", task, {"sample_rate": SAMPLE_RATE})
    strides = []  # conv_feature_layers is text: [(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2
    layers = network.get("conv_feature_layers") or ""
    for triples, times in re.findall(r"\[([^\]]*)\]\s*\*?\s*(\d*)", layers):
        own = re.findall(r"\(\s*\d+\s*,\s*\d+\s*,\s*(\d+)\s*\)", triples)
        strides += [int(stride) for stride in own] * int(times or 1)
    known = {"encoder_num_heads": network.get("encoder_attention_heads"),
             "encoder_layer_norm_first": network.get("layer_norm_first"),
             "strides": strides,
             "normalize_waveform": task.get("normalize"),
             "normalize_epsilon": 1e-5}
    return family, known


def _configuration(state: dict[str, Tensor], known: dict) -> dict:
    """Sizes from the tensors; the rest from `known` (None: not known) or from published models."""
    convolutions = []
    for number, stride in enumerate(known.get("strides") or STRIDES):
        name = f"feature_extractor.conv_layers.{number}.conv.weight"
        channels, _, kernel = _shape(state, name)
        convolutions.append((channels, kernel, stride))
    check_frames(convolutions)
    if "encoder.feature_projection.layer_norm.weight" not in state:
        raise EncoderError("no layer norm before its projection (feat_proj_layer_norm=false, as in "
                           "DistilHuBERT), which this network does not compute")
    width, _ = _shape(state, "encoder.feature_projection.projection.weight")
    hidden, _ = _shape(state, "encoder.transformer.layers.0.feed_forward.intermediate_dense.weight")
    positions = "encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1"
    _, inputs, position_kernel = _shape(state, positions)
    numbers = [re.match(r"encoder\.transformer\.layers\.(\d+)\.", name) for name in state]
    layers = 1 + max(int(number[1]) for number in numbers if number)
    layer_norms = "feature_extractor.conv_layers.1.layer_norm.weight" in state
    heads, norm_first = known.get("encoder_num_heads"), known.get("encoder_layer_norm_first")
    normalize = known.get("normalize_waveform")
    if heads is None and (width, layer_norms) not in PUBLISHED_HEADS:
        raise EncoderError(f"nothing says how many attention heads share its {width} dimensions; "
                           "put the model's config.json beside it, or save Hubert.checkpoint()")
    heads = heads or PUBLISHED_HEADS[width, layer_norms]
    norm_first = layer_norms if norm_first is None else norm_first
    return {
        "extractor_mode": "layer_norm" if layer_norms else "group_norm",
        "extractor_conv_layer_config": convolutions,
        "extractor_conv_bias": "feature_extractor.conv_layers.0.conv.bias" in state,
        "encoder_embed_dim": width, "encoder_num_layers": layers, "encoder_num_heads": heads,
        "encoder_ff_interm_features": hidden, "encoder_layer_norm_first": norm_first,
        "encoder_pos_conv_kernel": position_kernel, "encoder_pos_conv_groups": width // inputs,
        "encoder_ff_interm_dropout": 0.0, "encoder_layer_drop": 0.0,
        "normalize_waveform": layer_norms if normalize is None else normalize,
        "normalize_epsilon": known.get("normalize_epsilon", 1e-5),
        **(PRE_NORM_DROPOUT if norm_first else POST_NORM_DROPOUT)}


def check_frames(convolutions: list[tuple[int, int, int]]) -> None:
    """Raises EncoderError unless a frame sees 400 samples, every 320.

    `convolutions`: (channels, kernel, stride) of each.
    """
    seen, hop = 1, 1
    for _, kernel, stride in convolutions:
        seen, hop = seen + (kernel - 1) * hop, hop * stride
    if (seen, hop) != (RECEPTIVE_FIELD, HOP):
        raise EncoderError(f"a frame of it sees {seen} samples, every {hop}; HuBERT's sees "
                           f"{RECEPTIVE_FIELD}, every {HOP}")


def _shape(state: dict[str, Tensor], name: str) -> torch.Size:
    """The shape of a parameter that must be there."""
    if name not in state:
        raise EncoderError(f"no {name} in it, so it is no HuBERT or not all of one")
    return state[name].shape


def _require(file: str, settings: dict, supported: dict) -> None:
    """Refuses by name what this network does not compute; a setting that is not there is fine."""
    for key, value in supported.items():
        found = settings.get(key, value)
        if found != value:
            raise EncoderError(f"its {file} has {key} = {found}; only {value} is supported")


def _as_dict(value) -> dict:
    """A section of a configuration, which some versions of fairseq save as a Namespace."""
    if isinstance(value, argparse.Namespace):
        return vars(value)
    return value if isinstance(value, dict) else {}


def _read_json(file: Path) -> dict:
    """A JSON object beside the weights, {} where there is none."""
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8-sig")))
    except (ValueError, TypeError) as error:
        raise EncoderError(f"{file.name} beside it is damaged ({error})") from error


def _note(path: Path, text: str) -> None:
    """A remark for the user; standard output is left to results."""
    tqdm.write(f"{path}: {text}", file=sys.stderr)


def check_parameters(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raises EncoderError if names or shapes of a state dict are not those of the network."""
    problems = []
    for name, ours in expected.items():
        if name in state and state[name].shape != ours.shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(ours.shape)}"
            problems.append(f"{name} has shape {shapes}")
    missing = [name for name in expected if name not in state]
    if missing:
        problems.append(f"missing: {some(missing)}")
    unknown = [name for name in state if name not in expected]
    if unknown:
        problems.append(f"unknown: {some(unknown)}")
    if problems:
        raise EncoderError(f"not the parameters of such a HuBERT ({'; '.join(problems[-3:])})")

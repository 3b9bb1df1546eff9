"""The encoder of a finished run as Hugging Face's HubertModel (HuBERT: paper, Section 2).

    python -m tools.export --run runs/mtl-all --out FOLDER

FOLDER is new or empty. It then holds model.safetensors, config.json and preprocessor_config.json.
A run of (a) or (c) trains no encoder: the frozen encoder that it used is written.

`--encoder FOLDER` reads the same weights and the same network back. Two kinds of settings may
differ afterwards, and with them `model.encoder_digest`:
- Dropout. engine/architecture.py sets that of HuBERT's pretraining, whatever config.json says.
- The epsilon of normalised waveforms. transformers and a Hugging Face folder always use 1e-7; an
  encoder from fairseq uses 1e-5. Its states then change slightly, and the program prints a note.

transformers gives the same states for one utterance, to a relative 1e-5. In a padded batch, its
states of models with a GroupNorm (Base) differ: it takes mean and variance over the padding too.
Its models with layer norms (Large) only need the attention mask.
"""

import argparse
import json
from pathlib import Path

from torch import Tensor

from engine.architecture import check_frames
from engine.flags import as_path
from engine.launch import friendly_errors
from engine.runs import RunError, atomic_file, save_json
from evaluate import finished_config, load_trained_encoder
from model import Hubert
from rules import SAMPLE_RATE

# Parts of our names (torchaudio's) -> Hugging Face's; engine/architecture.py has the reverse.
RENAMED = {
    "encoder.feature_projection.": "feature_projection.",
    "encoder.transformer.": "encoder.",
    # Weight norm as PyTorch before 2.0 spelt it: old and new versions of transformers read it.
    ".parametrizations.weight.original0": ".weight_g",
    ".parametrizations.weight.original1": ".weight_v",
}
SETTINGS = {  # of HubertConfig: the keys of `model.BASE`
    "hidden_size": "encoder_embed_dim", "num_hidden_layers": "encoder_num_layers",
    "num_attention_heads": "encoder_num_heads", "intermediate_size": "encoder_ff_interm_features",
    "do_stable_layer_norm": "encoder_layer_norm_first", "conv_bias": "extractor_conv_bias",
    "num_conv_pos_embeddings": "encoder_pos_conv_kernel",
    "num_conv_pos_embedding_groups": "encoder_pos_conv_groups",
    "feat_proj_dropout": "encoder_projection_dropout", "hidden_dropout": "encoder_dropout",
    "attention_dropout": "encoder_attention_dropout",
    "activation_dropout": "encoder_ff_interm_dropout", "layerdrop": "encoder_layer_drop",
}
# The same in every HuBERT. A run has no embedding for masked frames, so masking is off.
FIXED = {
    "model_type": "hubert", "architectures": ["HubertModel"], "torch_dtype": "float32",
    "hidden_act": "gelu", "feat_extract_activation": "gelu", "layer_norm_eps": 1e-5,
    "feat_proj_layer_norm": True, "conv_pos_batch_norm": False,
    "apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0,
}
EPSILON = 1e-7  # of normalised waveforms in transformers


def export(encoder: Hubert, folder: Path) -> None:
    """Write an encoder into a new or empty folder.

    Raises EncoderError if its frames are not HuBERT's, RunError if the folder is not empty or
    cannot be made, OSError if a file cannot be written.
    """
    config, preprocessor = huggingface_settings(encoder.config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        empty = not any(folder.iterdir())
    except OSError as error:
        raise RunError(f"--out: {folder} cannot be made or read ({error.strerror}); "
                       "name another folder") from error
    if not empty:
        raise RunError(f"--out: {folder} is not empty; name a new folder")
    state = {}
    for name, tensor in encoder.state_dict().items():
        for ours, theirs in RENAMED.items():
            name = name.replace(ours, theirs)
        state[name] = tensor
    save_safetensors(folder / "model.safetensors", state)
    save_json(folder / "config.json", config)
    save_json(folder / "preprocessor_config.json", preprocessor)


def huggingface_settings(config: dict) -> tuple[dict, dict]:
    """A configuration (keys of `model.BASE`) -> HubertConfig, Wav2Vec2FeatureExtractor's settings.

    Raises EncoderError if a frame does not see 400 samples, every 320: `load_encoder` refuses that.
    """
    channels, kernels, strides = zip(*config["extractor_conv_layer_config"])
    check_frames(config["extractor_conv_layer_config"])
    layer_norms = config["extractor_mode"] == "layer_norm"
    network = {"conv_dim": channels, "conv_kernel": kernels, "conv_stride": strides,
               "feat_extract_norm": "layer" if layer_norms else "group"}
    for theirs, ours in SETTINGS.items():
        network[theirs] = config[ours]
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1,
        "sampling_rate": SAMPLE_RATE, "do_normalize": config["normalize_waveform"],
        "padding_side": "right", "padding_value": 0.0,
        # As published: Base without, Large with a mask.
        "return_attention_mask": layer_norms}
    return FIXED | network, preprocessor


def save_safetensors(path: Path, state: dict[str, Tensor]) -> None:
    """Write float32 tensors in Hugging Face's format, which `engine/pretrained.py` reads.

    8 bytes with the size of the header, the header in JSON, then the numbers without gaps.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in state.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8 bytes
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in state.values():
            file.write(tensor.numpy().astype("<f4").tobytes())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=as_path, required=True, help="a finished run")
    parser.add_argument("--out", type=as_path, required=True, help="a new or empty folder")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with friendly_errors(args.debug):
        encoder = load_trained_encoder(args.run, finished_config(args.run))
        export(encoder, args.out)
        print(f"wrote {args.out}: --encoder and transformers.HubertModel.from_pretrained read it")
        epsilon = encoder.config["normalize_epsilon"]
        if encoder.config["normalize_waveform"] and epsilon != EPSILON:
            print(f"note: {args.run} normalised waveforms with epsilon {epsilon:g}, and readers of "
                  f"{args.out} use {EPSILON:g}: their states differ slightly")


if __name__ == "__main__":
    main()

"""HuBERT, the weighted sum of its hidden states, the multi-task model (paper, Sections 2, 3.2).

    waves -> HuBERT -> L+1 hidden states -> weighted sum -> SpecAugment -> a head per task -> losses
             trained or frozen              trained         training only  trained
             |_____________ shared by all tasks _________|

B utterances, N samples (16 kHz), C channels of the convolutions, D dimensions (768), L layers (12).
T: frames (50 Hz) of one utterance, or of the longest in a padded batch. M: frames of all
utterances, concatenated.
Keep `lengths` (B,), in samples, and `frames` (B,) on the CPU: reading a value from the GPU forces a
synchronisation.
"""

import hashlib
import json
from collections import namedtuple

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from engine.architecture import EncoderError, check_parameters
from engine.kernels import (Dropout, attend, convolve_by_fourier, convolve_row,
                            without_onednn_if_narrow)
from engine.pretrained import read_weights
from masked_prediction import MASKED
from rules import HOP, RECEPTIVE_FIELD

# Settings of an encoder whose configuration lacks these keys. HuBERT Large and similar models
# normalise each waveform to mean 0 and variance 1; HuBERT Base does not.
WAVEFORM_DEFAULTS = {"normalize_waveform": False, "normalize_epsilon": 1e-5}
# The other keys are the arguments of torchaudio.models.wav2vec2_model. encoder_layer_drop is kept
# for that function only: layer drop is not implemented here, because SUPERB sets it to 0.
BASE = WAVEFORM_DEFAULTS | {
    # "group_norm": a norm in the first convolution only. "layer_norm" (Large): a norm in each one.
    "extractor_mode": "group_norm", "extractor_conv_bias": False,
    # (channels, kernel, stride) of each convolution
    "extractor_conv_layer_config": [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2,
    "encoder_embed_dim": 768, "encoder_num_layers": 12, "encoder_num_heads": 12,
    "encoder_ff_interm_features": 3072, "encoder_layer_norm_first": False,
    "encoder_pos_conv_kernel": 128, "encoder_pos_conv_groups": 16,
    "encoder_projection_dropout": 0.1, "encoder_dropout": 0.1, "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_dropout": 0.0, "encoder_layer_drop": 0.0}
TINY = BASE | {  # 0.9 M parameters
    "extractor_conv_layer_config": [(32, 10, 5)] + [(32, 3, 2)] * 4 + [(32, 2, 2)] * 2,
    "encoder_embed_dim": 128, "encoder_num_layers": 4, "encoder_num_heads": 4,
    "encoder_ff_interm_features": 512,
    "encoder_pos_conv_kernel": 32, "encoder_pos_conv_groups": 8,
    "encoder_projection_dropout": 0.05, "encoder_dropout": 0.05,
    "encoder_attention_dropout": 0.0}  # dropout of attention weights is slow on a CPU
LARGE = BASE | {
    "extractor_mode": "layer_norm", "normalize_waveform": True,
    "encoder_embed_dim": 1024, "encoder_num_layers": 24, "encoder_num_heads": 16,
    "encoder_ff_interm_features": 4096, "encoder_layer_norm_first": True,
    "encoder_projection_dropout": 0.0, "encoder_dropout": 0.0, "encoder_attention_dropout": 0.0}
UNTRAINED = {"random-tiny": TINY, "random-hubert_base": BASE, "random-hubert_large": LARGE}

# Replaces a batches.Batch where a frozen encoder's states are cached: (L+1, B, T, D), frames (B,).
# For a head that needs only the mean over time, the cache holds means: T is 1.
FrozenBatch = namedtuple("FrozenBatch", "states frames targets ids")


def frame_count(samples):
    """The number of frames in `samples` (int or tensor of ints).

    Each frame covers 400 samples (25 ms); frames start every 320 samples (20 ms). Fewer than 400
    samples give no frame."""
    # DIFFERS: s3prl rounds samples / 320, which may count a last frame that lies in the padding.
    frames = (samples - RECEPTIVE_FIELD) // HOP + 1
    return frames.clamp(min=0) if isinstance(frames, Tensor) else max(0, frames)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of x (1, C, T)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ConvBlock(nn.Module):
    """A convolution over time, then `norm`, then GELU: (1, C, T) -> (1, C', T').

    `norm` is a ChannelNorm, a GroupNorm, or nn.Identity in a block without normalisation. The
    attribute has torchaudio's name, `layer_norm`, in all three cases."""

    def __init__(self, inputs: int, channels: int, kernel: int, stride: int, bias: bool,
                 norm: nn.Module):
        super().__init__()
        self.layer_norm = norm
        self.conv = nn.Conv1d(inputs, channels, kernel, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.layer_norm(self.conv(x)))


class FeatureExtractor(nn.Module):
    """Seven convolutions: one frame of C channels every 320 samples, from 400 samples each."""

    def __init__(self, config: dict):
        super().__init__()
        self.conv_layers = nn.ModuleList()
        inputs = 1  # a waveform has one channel
        for channels, kernel, stride in config["extractor_conv_layer_config"]:
            if config["extractor_mode"] == "layer_norm":
                norm = ChannelNorm(channels)
            elif inputs == 1:  # "group_norm": only the first block has a norm
                # With one group per channel, each channel is normalised over time.
                norm = nn.GroupNorm(channels, channels)
            else:
                norm = nn.Identity()
            bias = config["extractor_conv_bias"]
            self.conv_layers.append(ConvBlock(inputs, channels, kernel, stride, bias, norm))
            inputs = channels

    def forward(self, waves: list[Tensor], frames: list[int]) -> Tensor:
        """waves [(n,), ...] -> (M, C)."""
        # DIFFERS: torchaudio, fairseq and s3prl convolve padded batches. GroupNorm then takes its
        # mean and variance over the padding too. For 1 s of audio padded to 10 s, this moves hidden
        # states of Base by up to twice their standard deviation (with random weights).
        if waves[0].is_cuda:  # the same result, with fewer and larger operations
            return convolve_row(self.conv_layers, waves, frames)
        with without_onednn_if_narrow(self.conv_layers[0].conv.out_channels):
            return torch.cat([self.convolve(wave) for wave in waves])

    def convolve(self, wave: Tensor) -> Tensor:
        """One wave (n,) -> (T, C)."""
        x = wave[None, None]
        for block in self.conv_layers:
            x = block(x)
        return x[0].T


class FeatureProjection(nn.Module):
    """Layer norm and a linear map: (M, C) -> (M, D)."""

    def __init__(self, config: dict):
        super().__init__()
        channels = config["extractor_conv_layer_config"][-1][0]
        self.layer_norm = nn.LayerNorm(channels)
        self.projection = nn.Linear(channels, config["encoder_embed_dim"])
        self.dropout = Dropout(config["encoder_projection_dropout"])

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.projection(self.layer_norm(x)))


class PositionalConvolution(nn.Module):
    """Position embeddings: GELU(conv(x)), a grouped convolution over time (Base: 128 frames)."""

    def __init__(self, config: dict):
        super().__init__()
        D, kernel = config["encoder_embed_dim"], config["encoder_pos_conv_kernel"]
        groups = config["encoder_pos_conv_groups"]
        conv = nn.Conv1d(D, D, kernel, padding=kernel // 2, groups=groups)
        self.conv = nn.utils.parametrizations.weight_norm(conv, dim=2)

    def forward(self, x: Tensor, frames: list[int]) -> Tensor:
        """(M, D) -> (M, D); each utterance is convolved separately, with zeros around it."""
        return F.gelu(convolve_by_fourier(self.conv, x, frames))


class SelfAttention(nn.Module):
    """Multi-head self-attention: softmax(q k^T / sqrt(d)) v in each head of d = D / heads."""

    def __init__(self, config: dict):
        super().__init__()
        D = config["encoder_embed_dim"]
        self.num_heads = config["encoder_num_heads"]
        if D % self.num_heads:
            raise ValueError(f"{D} dimensions cannot be shared by {self.num_heads} attention heads")
        self.dropout = config["encoder_attention_dropout"]  # on the softmax
        self.k_proj, self.v_proj = nn.Linear(D, D), nn.Linear(D, D)
        self.q_proj, self.out_proj = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor, frames: list[int]) -> Tensor:
        """(M, D) -> (M, D); each frame attends to the frames of its own utterance."""
        dropout = self.dropout if self.training else 0.0
        queries = self.split_heads_and_utterances(self.q_proj(x), frames)
        keys = self.split_heads_and_utterances(self.k_proj(x), frames)
        values = self.split_heads_and_utterances(self.v_proj(x), frames)
        attended = [attend(q, k, v, dropout) for q, k, v in zip(queries, keys, values)]
        return self.out_proj(torch.cat(attended, dim=2).transpose(1, 2).reshape(x.shape))

    def split_heads_and_utterances(self, x: Tensor, frames: list[int]) -> tuple[Tensor, ...]:
        """(M, D) -> one tensor (1, heads, T, d) for each utterance."""
        return x.view(1, len(x), self.num_heads, -1).transpose(1, 2).split(frames, dim=2)


class FeedForward(nn.Module):
    """Linear, GELU, Linear, with a wide layer between: (M, D) -> (M, D)."""

    def __init__(self, config: dict):
        super().__init__()
        D, hidden = config["encoder_embed_dim"], config["encoder_ff_interm_features"]
        self.intermediate_dense = nn.Linear(D, hidden)
        self.intermediate_dropout = Dropout(config["encoder_ff_interm_dropout"])
        self.output_dense = nn.Linear(hidden, D)
        self.output_dropout = Dropout(config["encoder_dropout"])

    def forward(self, x: Tensor) -> Tensor:
        x = self.intermediate_dropout(F.gelu(self.intermediate_dense(x)))
        return self.output_dropout(self.output_dense(x))


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual connection: (M, D) -> (M, D)."""

    def __init__(self, config: dict):
        super().__init__()
        D = config["encoder_embed_dim"]
        self.norm_first = config["encoder_layer_norm_first"]
        self.attention = SelfAttention(config)
        self.dropout = Dropout(config["encoder_dropout"])
        self.layer_norm = nn.LayerNorm(D)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(D)

    def forward(self, x: Tensor, frames: list[int]) -> Tensor:
        if self.norm_first:  # pre-norm, as in HuBERT Large
            x = x + self.dropout(self.attention(self.layer_norm(x), frames))
            return x + self.feed_forward(self.final_layer_norm(x))
        # post-norm, as in HuBERT Base
        x = self.layer_norm(x + self.dropout(self.attention(x, frames)))
        return self.final_layer_norm(x + self.feed_forward(x))


class Transformer(nn.Module):
    """The modules of the transformer. It has no `forward`: `Hubert.encode` calls its modules."""

    def __init__(self, config: dict):
        super().__init__()
        self.pos_conv_embed = PositionalConvolution(config)
        # Post-norm models (Base): the norm of the first layer's input.
        # Pre-norm models (Large): the norm of the last layer's output.
        self.layer_norm = nn.LayerNorm(config["encoder_embed_dim"])
        self.dropout = Dropout(config["encoder_dropout"])
        layers = range(config["encoder_num_layers"])
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in layers)


class Hubert(nn.Module):
    """HuBERT (Hsu et al. 2021), randomly initialised. `load_encoder` loads pretrained weights.

    config: see BASE. The parameters have torchaudio's names."""

    def __init__(self, config: dict):
        super().__init__()
        self.config = WAVEFORM_DEFAULTS | config
        self.dim = config["encoder_embed_dim"]
        self.num_states = config["encoder_num_layers"] + 1
        # `encode` multiplies the gradient of the convolutions by this number. 0.1 is the value of
        # HuBERT Base's pretraining.
        self.feature_grad_mult = 0.1
        self.checkpoint_activations = False  # see `compute`
        self.feature_extractor = FeatureExtractor(config)
        # torchaudio calls the part after the convolutions `encoder`. We keep its parameter names.
        self.encoder = nn.ModuleDict(
            {"feature_projection": FeatureProjection(config), "transformer": Transformer(config)})

    def forward(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """waves (B, N) float32 at 16 kHz, lengths (B,) -> states (L+1, B, T, D), frames (B,).

        States are zero where an utterance is padded. In evaluation mode, the states of an utterance
        do not depend on the padding, whatever it contains, or on the other utterances."""
        states, frames = self.encode([wave[:n] for wave, n in zip(waves, lengths.tolist())])
        padded = []
        for one in states.split(frames, dim=1):  # (L+1, T of this utterance, D)
            missing = max(frames) - one.shape[1]
            padded.append(F.pad(one, (0, 0, 0, missing)))  # zeros at the end of the time axis
        return torch.stack(padded, dim=1), torch.tensor(frames)

    def encode(self, waves: list[Tensor]) -> tuple[Tensor, list[int]]:
        """waves [(n,), ...] -> states (L+1, M, D), and the number of frames of each utterance.

        Attention and convolutions never mix utterances, so no mask is needed. All other layers
        process all M frames together.
        Raises ValueError if an utterance is shorter than one frame."""
        projected, frames = self.project(waves)
        return self.transform(projected, frames), frames

    def project(self, waves: list[Tensor]) -> tuple[Tensor, list[int]]:
        """waves [(n,), ...] -> projected features of the convolutions (M, D), frames of each."""
        frames = [frame_count(len(wave)) for wave in waves]
        if min(frames) < 1:
            shortest = min(len(wave) for wave in waves)
            raise ValueError(f"an utterance of {shortest} samples is too short; "
                             f"one frame needs {RECEPTIVE_FIELD} samples")
        if self.config["normalize_waveform"]:
            waves = [self.normalize(wave) for wave in waves]
        x = self.compute(self.feature_extractor, waves, frames)  # (M, C)
        if x.requires_grad:
            # fairseq's GradMultiply: the values stay the same, and the gradient is scaled. The
            # released code finetunes fairseq's network, so its convolutions get this gradient too.
            x.register_hook(lambda gradient: self.feature_grad_mult * gradient)
        return self.encoder.feature_projection(x), frames

    def transform(self, x: Tensor, frames: list[int]) -> Tensor:
        """Projected features (M, D), and the frames of each utterance -> states (L+1, M, D).

        State 0 is the input of the first transformer layer; state l is the output of layer l. In
        pre-norm models state L is taken after the final norm. s3prl does the same, and so does the
        last_hidden_state of Hugging Face."""
        transformer, norm_first = self.encoder.transformer, self.config["encoder_layer_norm_first"]
        x = x + transformer.pos_conv_embed(x, frames)
        if not norm_first:
            x = transformer.layer_norm(x)
        x = transformer.dropout(x)

        states = [x]  # DIFFERS: the released code leaves state 0 out; SUPERB and we use all L+1
        for layer in transformer.layers:
            x = self.compute(layer, x, frames)
            states.append(x)
        if norm_first:
            states[-1] = transformer.layer_norm(x)
        return torch.stack(states)

    def compute(self, module: nn.Module, *inputs) -> Tensor:
        """module(*inputs).

        With `checkpoint_activations` only the inputs are kept, and the backward pass computes the
        module again. Dropout draws the same numbers again, so only memory and time change."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            return torch.utils.checkpoint.checkpoint(module, *inputs, use_reentrant=False)
        return module(*inputs)

    def normalize(self, wave: Tensor) -> Tensor:
        """(wave - mean) / sqrt(variance + epsilon), over one utterance (n,)."""
        return F.layer_norm(wave, wave.shape, eps=self.config["normalize_epsilon"])

    @property
    def frozen(self) -> bool:
        """True after `requires_grad_(False)`: no parameter is trained."""
        return not any(parameter.requires_grad for parameter in self.parameters())

    def train(self, mode: bool = True) -> "Hubert":
        """Sets training or evaluation mode, as `nn.Module.train` does.

        A frozen encoder stays in evaluation mode, so it never applies dropout."""
        return super().train(mode and not self.frozen)

    def freeze_layers(self, count: int) -> None:
        """Freeze the first `count` transformer layers and everything below them.

        In training mode they still apply dropout, as the layers above do."""
        transformer = self.encoder.transformer
        below = [self.feature_extractor, self.encoder.feature_projection,
                 transformer.pos_conv_embed, *transformer.layers[:count]]
        if not self.config["encoder_layer_norm_first"]:
            below.append(transformer.layer_norm)  # pre-norm models have this norm at the end
        for part in below:
            part.requires_grad_(False)

    def checkpoint(self) -> dict:
        """The configuration and the weights, as a dict for torch.save.

        `load_encoder` reads a file with this dict, alone or as "encoder" in a run's
        checkpoint.pt."""
        return {"config": self.config, "state_dict": self.state_dict()}


def random_encoder(config: dict, seed: int = 0) -> Hubert:
    """A randomly initialised encoder in evaluation mode; equal seeds give equal weights.

    The state of PyTorch's global random numbers does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Hubert(config).eval()


def load_encoder(source: str) -> Hubert:
    """The encoder that `source` names, on the CPU, in evaluation mode.

    - "tiny": the pretrained weights in toy/, which toy/pretrain.py made
    - "hubert_base": torchaudio's weights, which are downloaded at the first use
    - "random-tiny", "random-hubert_base", "random-hubert_large": randomly initialised, for dry runs
      and control runs
    - the path of a file with `Hubert.checkpoint()`, for instance a run's checkpoint.pt
    - the path of HuBERT or wav2vec 2.0 (any size) from torchaudio, fairseq or Hugging Face: a file,
      or a folder with config.json

    If a file or folder has one of the names above, the name stands for the encoder listed here.
    Raises EncoderError, with a message of one sentence, if the encoder cannot be loaded."""
    if source in UNTRAINED:
        return random_encoder(UNTRAINED[source])
    config, state = read_weights(source)
    try:
        encoder = Hubert(config)
        check_parameters(state, encoder.state_dict())
        encoder.load_state_dict(state)
    except Exception as error:  # a configuration of unknown origin can fail in any way
        raise EncoderError(f"{source}: {error}") from error
    return encoder.eval()


def encoder_digest(encoder: Hubert) -> str:
    """A digest of an encoder's configuration and of each tensor's name, type, shape and bytes.

    The digest includes the configuration, because weights do not show the number of attention
    heads."""
    digest = hashlib.blake2b(json.dumps(encoder.config, sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class LayerSum(nn.Module):
    """The weighted sum of all hidden states: sum over l of softmax(w)_l * state_l (SUPERB).

    w starts at 0, so all states begin with the same weight."""

    def __init__(self, num_states: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_states))

    def forward(self, states: Tensor) -> Tensor:
        """states (L+1, ..., D) -> features (..., D), in float32 even under autocast."""
        with torch.autocast(states.device.type, enabled=False):
            return torch.tensordot(self.weights.softmax(0), states.to(self.weights.dtype), dims=1)


def spec_augment(features: Tensor, frames: Tensor, time_warp: bool = True,
                 time_mask_width: int = 40, time_masks: int = 2,
                 dim_masks: int = 4, dim_mask_width: int = 50) -> Tensor:
    """SpecAugment (Park et al. 2019) of features (B, T, D) as in the released code: a time warp,
    masks over dimensions, masks over time. Masked values are 0.

    The width of a time mask is uniform from 0 to `time_mask_width` - 1 frames. The width of a
    dimension mask is uniform from 0 to `dim_mask_width` - 1 for D = 768; for another D the limit is
    scaled by D / 768. The position of a time mask depends on T, the longest utterance, so a mask
    may lie in the padding of a shorter one. Random numbers come from the global CPU generator, in
    the order of the released code."""
    B, T, D = features.shape
    if time_warp:
        warped = [_warp(one, n) for one, n in zip(features, frames.tolist())]
        features = torch.stack(warped)
    dims = _random_spans(B, D, dim_masks, max(1, dim_mask_width * D // 768))
    times = _random_spans(B, T, time_masks, time_mask_width)
    dims = dims.to(features.device, non_blocking=True)[:, None, :]
    times = times.to(features.device, non_blocking=True)[:, :, None]
    return features.masked_fill(dims | times, 0.0)


def _warp(features: Tensor, frames: int, max_shift: int = 5) -> Tensor:
    """Time warp of one utterance (T, D): a random frame is shifted, and the parts before and after
    it are stretched or compressed to fit.

    As in the released code, the shift is uniform from -(max_shift - 1) to max_shift frames."""
    if frames <= 2 * max_shift:
        return features
    middle = int(torch.randint(max_shift, frames - max_shift, (1,)))
    new_middle = int(torch.randint(middle - max_shift, middle + max_shift, (1,))) + 1
    sides = [(features[:middle], new_middle), (features[middle:frames], frames - new_middle)]
    warped = []
    for side, new_frames in sides:
        shape = (new_frames, side.shape[1])
        warped.append(F.interpolate(side[None, None], shape, mode="bicubic")[0, 0])
    return torch.cat([*warped, features[frames:]])


def _random_spans(num_utterances: int, size: int, num_spans: int, width_limit: int) -> Tensor:
    """Random spans of an axis of `size` positions: (B, size), True inside any span.

    Each utterance has `num_spans` spans of 0 to `width_limit` - 1 positions."""
    widths = torch.randint(0, width_limit, (num_utterances, num_spans, 1))
    # As in the released code, one limit for all starts: the widest span of the batch fits.
    start_limit = max(1, size - int(widths.max()))
    starts = torch.randint(0, start_limit, (num_utterances, num_spans, 1))
    since_start = torch.arange(size) - starts  # (B, spans, size)
    inside = (since_start >= 0) & (since_start < widths)
    return inside.any(1)


def seed_random_numbers(*key) -> None:
    """Seeds PyTorch's global random numbers (CPU, and the GPU in use) from integers and strings.

    The seed is a hash of the repr of the key, so it is the same in every process."""
    seed = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


class MultiTask(nn.Module):
    """One encoder, one weighted sum of its hidden states, and one head for each task.

    In scenarios (a) and (c) there is only one head. `augment` switches SpecAugment on in training;
    its time masks are shorter than `time_mask_width` frames."""

    def __init__(self, encoder: Hubert, heads: dict[str, nn.Module], augment: bool = True,
                 time_mask_width: int = 40):
        super().__init__()
        self.encoder = encoder
        self.layer_sum = LayerSum(encoder.num_states)
        self.heads = nn.ModuleDict(heads)
        self.augment, self.time_mask_width = augment, time_mask_width
        self.train()  # `load_encoder` returns the encoder in evaluation mode

    def forward(self, batches: dict, random_key: tuple | None = None) -> dict[str, Tensor]:
        """{task: batches.Batch or FrozenBatch} -> {task: loss}.

        random_key, for instance (seed, step, rank), seeds the random numbers once for the encoder,
        and again for SpecAugment and head dropout of each task. Their masks then do not depend on
        the order of the tasks. Encoder dropout depends on the order of batches. Without random_key
        nothing is seeded."""
        if random_key is not None:
            seed_random_numbers(*random_key, "encoder")
        projected, frames = self.project(batches)
        names = [name for name in batches if name in self.heads]
        tasks = {name: batches[name] for name in names if name != MASKED}
        features_by_task = self.features(tasks, projected, frames) if tasks else {}
        losses = dict.fromkeys(names)  # the loop below has another order
        # In some losses the CPU waits for the GPU. They come last: until then the GPU has work.
        waiting = [name for name in names if self.heads[name].loss_waits]
        others = [name for name in names if name not in waiting]
        for name in others + waiting:
            if random_key is not None:
                seed_random_numbers(*random_key, name)
            head, targets = self.heads[name], batches[name].targets
            if name == MASKED:  # HuBERT's own loss: a second pass of the transformer
                losses[name] = head.loss(self.encoder, projected, frames, targets)
            else:
                losses[name] = self.loss(name, *features_by_task[name], targets)
        return losses

    @torch.no_grad()
    def predict(self, task: str, batch) -> list:
        """The head's predictions for a batch of B utterances. Call `eval()` before."""
        projected, frames = self.project({task: batch})
        features, frames = self.features({task: batch}, projected, frames)[task]
        return self.heads[task].predict(features, frames)

    def project(self, batches: dict) -> tuple[Tensor | None, list[int]]:
        """The input of the transformer for all batches: (M, D), and the frames of each utterance.

        If all states are cached, there is no audio: the result is None and an empty list."""
        device = self.layer_sum.weights.device
        waves = []
        for name, batch in batches.items():
            if name != MASKED and not isinstance(batch, FrozenBatch):
                padded = batch.waves.to(device, non_blocking=True)
                waves += [wave[:n] for wave, n in zip(padded, batch.lengths.tolist())]
        return self.encoder.project(waves) if waves else (None, [])

    def features(self, batches: dict, projected: Tensor | None,
                 frames: list[int]) -> dict[str, tuple[Tensor, Tensor]]:
        """The weighted sum of hidden states: {task: (features (B, T, D), frames (B,))}.

        `projected` (M, D) and `frames`, one number per utterance, are the result of `project`. The
        transformer processes the utterances of all tasks in one pass."""
        device = self.layer_sum.weights.device
        utterances = []  # features (T, D) of each wave
        if frames:
            states = self.encoder.transform(projected, frames)
            utterances = list(self.layer_sum(states).split(frames))
        result = {}
        for task, batch in batches.items():
            if isinstance(batch, FrozenBatch):
                cached = batch.states.to(device, non_blocking=True)
                result[task] = (self.layer_sum(cached), batch.frames)
            else:
                B = len(batch.targets)
                own, utterances = utterances[:B], utterances[B:]
                lengths = torch.tensor([len(one) for one in own])
                result[task] = (pad_sequence(own, batch_first=True), lengths)
        return result

    def loss(self, task: str, features: Tensor, frames: Tensor, targets: list) -> Tensor:
        """The loss of one head on features (B, T, D), with SpecAugment in training."""
        head = self.heads[task]
        if self.training and self.augment:
            # DIFFERS: the released code warps the features of diarization but not its labels; we
            # warp neither.
            time_warp = not head.frame_aligned
            features = spec_augment(features, frames, time_warp, self.time_mask_width)
        # Heads are small, and LSTMs in bfloat16 are slow on a CPU. So heads run in float32.
        with torch.autocast(features.device.type, enabled=False):
            return head.loss(features, frames, targets)

r"""HuBERT, the weighted sum of its hidden states, the multi-task model (paper, Sections 2, 3.2).

    waves -> HuBERT -> L+1 hidden states -> weighted sum -> SpecAugment -> a head per task -> losses
             trained or frozen              trained         training only  trained
             |_____________ shared by all tasks _________|

B utterances, N samples (16 kHz), T frames of one utterance (50 Hz), M frames of all utterances (one
utterance after the other), C channels of the convolutions, D dimensions (768), L layers (12).
Keep `lengths` (B,), in samples, and `frames` (B,) on the CPU: reading a value from the GPU forces a
synchronisation.
"""

import hashlib
import json
from collections import namedtuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from engine.architecture import EncoderError, check_parameters
from engine.kernels import Dropout, attend, convolve_by_fourier, convolve_row
from engine.pretrained import read_weights
from rules import HOP, RECEPTIVE_FIELD

# HuBERT Large and its relatives normalise each waveform. A configuration without these keys
# describes an encoder that does not.
NO_NORMALIZATION = {"normalize_waveform": False, "normalize_epsilon": 1e-5}
BASE = NO_NORMALIZATION | {  # other names: the arguments of torchaudio.models.wav2vec2_model
    "extractor_mode": "group_norm", "extractor_conv_bias": False,  # or "layer_norm", True
    # (channels, kernel, stride) of each convolution
    "extractor_conv_layer_config": [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2,
    "encoder_embed_dim": 768, "encoder_num_layers": 12, "encoder_num_heads": 12,
    "encoder_ff_interm_features": 3072, "encoder_layer_norm_first": False,
    "encoder_pos_conv_kernel": 128, "encoder_pos_conv_groups": 16,
    "encoder_projection_dropout": 0.1, "encoder_dropout": 0.1, "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_dropout": 0.0, "encoder_layer_drop": 0.0}  # as in SUPERB
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
# Replaces a batches.Batch where the encoder is frozen: cached states (L+1, B, T, D), frames (B,).
FrozenBatch = namedtuple("FrozenBatch", "states frames targets ids")


def frame_count(samples):
    """Number of frames in `samples` (int or tensor): one every 320 samples (20 ms), each of which
    sees 400 samples (25 ms). Below 400 samples there is none."""
    # DIFFERS: s3prl rounds samples / 320, which may count a last frame that lies in the padding.
    frames = (samples - RECEPTIVE_FIELD) // HOP + 1
    return frames.clamp(min=0) if isinstance(frames, Tensor) else max(0, frames)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of x (1, C, T)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ConvBlock(nn.Module):
    """A convolution over time, a norm where the model has one, GELU: (1, C, T) -> (1, C', T')."""

    def __init__(self, inputs: int, channels: int, kernel: int, stride: int, bias: bool, norm):
        super().__init__()
        self.layer_norm = norm
        self.conv = nn.Conv1d(inputs, channels, kernel, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.layer_norm(self.conv(x)))


class FeatureExtractor(nn.Module):
    """Seven convolutions make a frame of C channels out of every 320 samples."""

    def __init__(self, config: dict):
        super().__init__()
        self.conv_layers, inputs = nn.ModuleList(), 1
        for channels, kernel, stride in config["extractor_conv_layer_config"]:
            if config["extractor_mode"] == "layer_norm":
                norm = ChannelNorm(channels)
            elif inputs == 1:  # "group_norm": the first block, each channel over the time of a wave
                norm = nn.GroupNorm(channels, channels)
            else:
                norm = nn.Identity()
            bias = config["extractor_conv_bias"]
            self.conv_layers.append(ConvBlock(inputs, channels, kernel, stride, bias, norm))
            inputs = channels

    def forward(self, waves: list[Tensor], frames: list[int]) -> Tensor:
        """waves [(n,), ...] -> (M, C)."""
        # DIFFERS: torchaudio, fairseq and s3prl convolve padded batches. GroupNorm then takes its
        # statistics over the padding too, which moves features by up to 2 standard deviations.
        if waves[0].is_cuda:  # the same function, with fewer and larger operations
            return convolve_row(self.conv_layers, waves, frames)
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
    """Position embeddings: GELU(conv(x)), a grouped convolution over 128 frames of an utterance."""

    def __init__(self, config: dict):
        super().__init__()
        D, kernel = config["encoder_embed_dim"], config["encoder_pos_conv_kernel"]
        groups = config["encoder_pos_conv_groups"]
        conv = nn.Conv1d(D, D, kernel, padding=kernel // 2, groups=groups)
        self.conv = nn.utils.parametrizations.weight_norm(conv, dim=2)

    def forward(self, x: Tensor, frames: list[int]) -> Tensor:
        """(M, D) -> (M, D); each utterance is convolved alone, with zeros around it. A kernel of
        even size gives one frame too many, the last one, which is dropped."""
        return F.gelu(convolve_by_fourier(self.conv, x, frames))


class SelfAttention(nn.Module):
    """Multi-head self-attention: softmax(q k^T / sqrt(d)) v in each head of d = D / heads."""

    def __init__(self, config: dict):
        super().__init__()
        D, self.num_heads = config["encoder_embed_dim"], config["encoder_num_heads"]
        if D % self.num_heads:
            raise ValueError(f"{D} dimensions cannot be shared by {self.num_heads} attention heads")
        self.dropout = config["encoder_attention_dropout"]  # on the softmax
        self.k_proj, self.v_proj = nn.Linear(D, D), nn.Linear(D, D)
        self.q_proj, self.out_proj = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor, frames: list[int]) -> Tensor:
        """(M, D) -> (M, D); each frame attends to the frames of its own utterance."""
        dropout = self.dropout if self.training else 0.0
        queries = self.split(self.q_proj(x), frames)
        keys = self.split(self.k_proj(x), frames)
        values = self.split(self.v_proj(x), frames)
        mixed = [attend(q, k, v, dropout) for q, k, v in zip(queries, keys, values)]
        return self.out_proj(torch.cat(mixed, dim=2).transpose(1, 2).reshape(x.shape))

    def split(self, x: Tensor, frames: list[int]) -> tuple[Tensor, ...]:
        """(M, D) -> one (1, heads, T, d) for each utterance."""
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
        if self.norm_first:  # HuBERT Large
            x = x + self.dropout(self.attention(self.layer_norm(x), frames))
            return x + self.feed_forward(self.final_layer_norm(x))
        x = self.layer_norm(x + self.dropout(self.attention(x, frames)))  # HuBERT Base
        return self.final_layer_norm(x + self.feed_forward(x))


class Transformer(nn.Module):
    """The parts of the transformer; `Hubert.encode` shows how they are used."""

    def __init__(self, config: dict):
        super().__init__()
        self.pos_conv_embed = PositionalConvolution(config)
        self.layer_norm = nn.LayerNorm(config["encoder_embed_dim"])
        self.dropout = Dropout(config["encoder_dropout"])
        layers = range(config["encoder_num_layers"])
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in layers)


class Hubert(nn.Module):
    """HuBERT (Hsu et al. 2021) with random weights; parameters have torchaudio's names.

    config: see BASE. `load_encoder` makes one with pretrained weights."""

    def __init__(self, config: dict):
        super().__init__()
        self.config = NO_NORMALIZATION | config
        self.dim, self.num_states = config["encoder_embed_dim"], config["encoder_num_layers"] + 1
        # Scales the gradient of the convolutions, as when HuBERT Base was pretrained.
        self.feature_grad_mult = 0.1
        self.feature_extractor = FeatureExtractor(config)
        self.encoder = nn.ModuleDict(  # this level is only there for torchaudio's names
            {"feature_projection": FeatureProjection(config), "transformer": Transformer(config)})

    def forward(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """waves (B, N) float32 at 16 kHz, lengths (B,) -> states (L+1, B, T, D), frames (B,).

        States are zero where an utterance is padded. They depend neither on the other utterances
        nor on the padding, whatever it contains."""
        states, frames = self.encode([wave[:n] for wave, n in zip(waves, lengths.tolist())])
        padded = [F.pad(one, (0, 0, 0, max(frames) - one.shape[1]))
                  for one in states.split(frames, dim=1)]
        return torch.stack(padded, dim=1), torch.tensor(frames)

    def encode(self, waves: list[Tensor]) -> tuple[Tensor, list[int]]:
        """waves [(n,), ...] -> states (L+1, M, D), and the number of frames of each utterance.

        State 0 is the input of the first transformer layer, state l the output of layer l. With
        pre-layer-norm, state L is taken after the final norm (as in s3prl, and as the
        last_hidden_state of Hugging Face).

        Most layers work frame by frame, so the frames of all utterances share large matrix
        products. Attention and convolutions take one utterance at a time: no mask is needed.
        Raises ValueError if an utterance is shorter than one frame."""
        frames = [frame_count(len(wave)) for wave in waves]
        if min(frames) < 1:
            shortest = min(len(wave) for wave in waves)
            raise ValueError(f"an utterance of {shortest} samples is shorter than one frame (400)")
        projection, transformer = self.encoder.feature_projection, self.encoder.transformer
        norm_first = self.config["encoder_layer_norm_first"]

        if self.config["normalize_waveform"]:
            waves = [self.normalize(wave) for wave in waves]
        x = self.feature_extractor(waves, frames)  # (M, C)
        if x.requires_grad:
            x.register_hook(lambda gradient: self.feature_grad_mult * gradient)  # as in fairseq
        x = projection(x)  # (M, D)
        x = x + transformer.pos_conv_embed(x, frames)
        if not norm_first:
            x = transformer.layer_norm(x)
        x = transformer.dropout(x)

        states = [x]  # DIFFERS: the released code leaves state 0 out; SUPERB and we use all L+1
        for layer in transformer.layers:
            x = layer(x, frames)
            states.append(x)
        if norm_first:
            states[-1] = transformer.layer_norm(x)
        return torch.stack(states), frames

    def normalize(self, wave: Tensor) -> Tensor:
        """(wave - mean) / sqrt(variance + epsilon), over one utterance (n,)."""
        return F.layer_norm(wave, wave.shape, eps=self.config["normalize_epsilon"])

    @property
    def frozen(self) -> bool:
        """True after `requires_grad_(False)`: no parameter is trained."""
        return not any(parameter.requires_grad for parameter in self.parameters())

    def train(self, mode: bool = True) -> "Hubert":
        """As for any module, but a frozen encoder stays in evaluation mode, without dropout."""
        return super().train(mode and not self.frozen)

    def checkpoint(self) -> dict:
        """What `load_encoder` reads from a file, alone or as "encoder" in a run's checkpoint.pt."""
        return {"config": self.config, "state_dict": self.state_dict()}


def random_encoder(config: dict, seed: int = 0) -> Hubert:
    """An untrained encoder, always the same for one seed; global random numbers are not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Hubert(config).eval()


def load_encoder(source: str) -> Hubert:
    """The encoder that `source` names, on the CPU, in evaluation mode.

    - "tiny": made by toy/pretrain.py; "hubert_base": torchaudio's, downloaded once and kept
    - "random-tiny", "random-hubert_base", "random-hubert_large": untrained, for dry runs and as a
      control
    - a file with `Hubert.checkpoint()`, for instance a run's checkpoint.pt; HuBERT or wav2vec 2.0
      of any size from torchaudio, fairseq or Hugging Face (a file, or a folder with config.json)

    These names win over files and folders of the same name.
    Raises EncoderError, with one sentence, if it cannot be loaded."""
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

    Equal weights with another number of attention heads have another digest."""
    digest = hashlib.blake2b(json.dumps(encoder.config, sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class LayerSum(nn.Module):
    """The weighted sum of all hidden states, sum_l softmax(w)_l state_l; w starts at 0 (SUPERB)."""

    def __init__(self, states: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(states))

    def forward(self, states: Tensor) -> Tensor:
        """states (L+1, B, T, D) -> features (B, T, D), float32 under autocast too."""
        with torch.autocast(states.device.type, enabled=False):
            return torch.tensordot(self.weights.softmax(0), states.to(self.weights.dtype), dims=1)


def spec_augment(features: Tensor, frames: Tensor, time_warp: bool = True,
                 time_mask_width: int = 40, time_masks: int = 2,
                 dim_masks: int = 4, dim_width: int = 50) -> Tensor:
    """SpecAugment (Park et al. 2019) of features (B, T, D) as in the released code: a time warp,
    masks over dimensions, masks over time. Masked values are 0.

    The width of a mask is drawn below `time_mask_width` frames, or below `dim_width` dimensions for
    D = 768 (in proportion for other D). A mask may lie in the padding. Random numbers come from the
    global CPU generator, in the order of the released code."""
    B, T, D = features.shape
    if time_warp:
        warped = [_warp(one, n) for one, n in zip(features, frames.tolist())]
        features = torch.stack(warped)
    dims = _random_spans(B, D, dim_masks, max(1, dim_width * D // 768))
    times = _random_spans(B, T, time_masks, time_mask_width)
    dims = dims.to(features.device, non_blocking=True)[:, None, :]
    times = times.to(features.device, non_blocking=True)[:, :, None]
    return features.masked_fill(dims | times, 0.0)


def _warp(features: Tensor, frames: int, most: int = 5) -> Tensor:
    """Time warp of one utterance (T, D): a random frame moves by up to `most` frames, and both
    sides of it are stretched to fit."""
    if frames <= 2 * most:
        return features
    middle = int(torch.randint(most, frames - most, (1,)))
    moved = int(torch.randint(middle - most, middle + most, (1,))) + 1
    sides = [(features[:middle], moved), (features[middle:frames], frames - moved)]
    warped = []
    for side, size in sides:
        shape = (size, side.shape[1])
        warped.append(F.interpolate(side[None, None], shape, mode="bicubic")[0, 0])
    return torch.cat([*warped, features[frames:]])


def _random_spans(utterances: int, size: int, spans: int, width: int) -> Tensor:
    """Random spans shorter than `width` for each utterance: (B, size), True inside any of them."""
    widths = torch.randint(0, width, (utterances, spans, 1))
    starts = torch.randint(0, max(1, size - int(widths.max())), (utterances, spans, 1))
    since_start = torch.arange(size) - starts  # (B, spans, size)
    inside = (since_start >= 0) & (since_start < widths)
    return inside.any(1)


def seed_random_numbers(*key) -> None:
    """Seeds PyTorch's global random numbers (CPU, and the GPU in use) from a key of any values."""
    seed = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


class MultiTask(nn.Module):
    """One encoder and one weighted sum under the heads of all tasks (one head in (a) and (c)).

    `augment`: SpecAugment in training, with time masks shorter than `time_mask_width` frames."""

    def __init__(self, encoder: Hubert, heads: dict[str, nn.Module], augment: bool = True,
                 time_mask_width: int = 40):
        super().__init__()
        self.encoder = encoder
        self.layer_sum = LayerSum(encoder.num_states)
        self.heads = nn.ModuleDict(heads)
        self.augment, self.time_mask_width = augment, time_mask_width
        self.train()  # `load_encoder` returns the encoder in evaluation mode

    def forward(self, batches: dict, random_key: tuple | None = None) -> dict[str, Tensor]:
        """{task: batches.Batch or FrozenBatch} -> {task: loss}. Every process must pass the same
        tasks in the same order.

        random_key, for instance (seed, step, rank), makes SpecAugment and dropout a function of
        this key and the task: the order in which heads are computed does not matter. Without it
        random numbers are drawn from the global generators as they are."""
        if random_key is not None:
            seed_random_numbers(*random_key, "encoder")
        losses = {}
        for task, (features, frames) in self.features(batches).items():
            if random_key is not None:
                seed_random_numbers(*random_key, task)
            losses[task] = self.loss(task, features, frames, batches[task].targets)
        if self.training and dist.is_initialized():
            losses = self.weight_by_share(losses, batches)
        return losses

    @torch.no_grad()
    def predict(self, task: str, batch) -> list:
        """The head's predictions for a batch of B utterances. Call `eval()` before."""
        features, frames = self.features({task: batch})[task]
        return self.heads[task].predict(features, frames)

    def features(self, batches: dict) -> dict[str, tuple[Tensor, Tensor]]:
        """{task: batch} -> {task: (features (B, T, D), frames (B,))}.

        The encoder reads the utterances of all tasks in one pass."""
        device, waves, utterances = self.layer_sum.weights.device, [], []
        for batch in batches.values():
            if not isinstance(batch, FrozenBatch):
                padded = batch.waves.to(device, non_blocking=True)
                waves += [wave[:n] for wave, n in zip(padded, batch.lengths.tolist())]
        if waves:
            states, frames = self.encoder.encode(waves)
            utterances = list(self.layer_sum(states).split(frames))  # (T, D) each
        result = {}
        for task, batch in batches.items():
            if isinstance(batch, FrozenBatch):
                states = batch.states.to(device, non_blocking=True)
                result[task] = self.layer_sum(states), batch.frames
            else:
                B = len(batch.targets)
                own, utterances = utterances[:B], utterances[B:]
                frames = torch.tensor([len(one) for one in own])
                result[task] = pad_sequence(own, batch_first=True), frames
        return result

    def loss(self, task: str, features: Tensor, frames: Tensor, targets: list) -> Tensor:
        """The loss of one head on features (B, T, D), with SpecAugment in training."""
        head = self.heads[task]
        if self.training and self.augment:
            # DIFFERS: the released code warps the features of diarization but not its labels; we
            # warp neither.
            time_warp = not head.frame_aligned
            features = spec_augment(features, frames, time_warp, self.time_mask_width)
        # Heads are small, and LSTMs in bfloat16 are slow on a CPU.
        with torch.autocast(features.device.type, enabled=False):
            return head.loss(features, frames, targets)

    def weight_by_share(self, losses: dict[str, Tensor], batches: dict) -> dict[str, Tensor]:
        """Scales each loss by this process's share of the batch, times the number of processes.

        A head's loss is a mean over `loss_weight` terms. DDP averages gradients over processes with
        equal weight; after this scaling that average is the gradient of the whole batch."""
        # DIFFERS: the released code gives processes equal weight, whatever their shares are.
        shares = [float(self.heads[t].loss_weight(batches[t].targets)) for t in losses]
        total = torch.tensor(shares, device=self.layer_sum.weights.device)
        dist.all_reduce(total)
        weighted = {}
        for (task, loss), share, of_all in zip(losses.items(), shares, total):
            weighted[task] = loss * (share * dist.get_world_size() / of_all)
        return weighted

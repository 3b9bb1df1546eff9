r"""HuBERT, the weighted sum of its hidden states, and the multi-task model (paper, Sections 2 and 3.2).

    waves -> HuBERT -> L+1 hidden states -> weighted sum -> SpecAugment -> one head per task -> losses
             trained or frozen              trained         training only  trained
             |_____________ shared by all tasks _________|

B utterances, N samples (16 kHz), T frames (50 Hz), C channels, D dimensions (768), L transformer layers (12).
`lengths` (B,) are in samples; they and the `frames` counted from them best stay on the CPU: nobody then waits for a
GPU to know them.
"""
import re
from collections import namedtuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from engine.kernels import Dropout, attend_with_dropout, convolve_by_fourier
from engine.pretrained import DROPPED, RENAMED, EncoderError, read_weights
from rules import RECEPTIVE_FIELD, HOP

BASE = {  # arguments of torchaudio.models.wav2vec2_model; convolutions: (channels, kernel, stride)
    "extractor_conv_layer_config": [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2, "extractor_conv_bias": False,
    "encoder_embed_dim": 768, "encoder_num_layers": 12, "encoder_num_heads": 12, "encoder_ff_interm_features": 3072,
    "encoder_pos_conv_kernel": 128, "encoder_pos_conv_groups": 16, "encoder_layer_norm_first": False,
    "encoder_projection_dropout": 0.1, "encoder_dropout": 0.1, "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_dropout": 0.0, "extractor_mode": "group_norm", "encoder_layer_drop": 0.0}  # as in SUPERB
TINY = BASE | {  # 0.9 M parameters
    "extractor_conv_layer_config": [(32, 10, 5)] + [(32, 3, 2)] * 4 + [(32, 2, 2)] * 2,
    "encoder_embed_dim": 128, "encoder_num_layers": 4, "encoder_num_heads": 4, "encoder_ff_interm_features": 512,
    "encoder_pos_conv_kernel": 32, "encoder_pos_conv_groups": 8, "encoder_projection_dropout": 0.05,
    "encoder_dropout": 0.05, "encoder_attention_dropout": 0.0}  # dropout there is what a CPU is slow at
ROUND = 100  # hops: on a GPU, the row of all waves has a multiple of these
# Replaces a batches.Batch that a frozen encoder has already heard: its states (L+1, B, T, D) and frames (B,).
FrozenBatch = namedtuple("FrozenBatch", "states frames targets ids")

def frame_count(samples):
    """Frames in so many samples (int or tensor): one every 320 (20 ms), each sees 400 (25 ms), none below 400."""
    # DIFFERS: s3prl rounds samples / 320, which may count a last frame that lies in the padding.
    frames = (samples - RECEPTIVE_FIELD) // HOP + 1
    return frames.clamp(min=0) if isinstance(frames, Tensor) else max(0, frames)

class Hubert(nn.Module):
    """torchaudio's HuBERT (random weights, torchaudio's parameter names), returning every hidden state."""
    def __init__(self, sizes: dict):
        super().__init__()
        network = torchaudio.models.wav2vec2_model(**sizes, aux_num_out=None)
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(module, name, Dropout(child.p))
        self.feature_extractor, self.encoder = network.feature_extractor, network.encoder
        self.config, self.dim, self.num_states = sizes, sizes["encoder_embed_dim"], sizes["encoder_num_layers"] + 1
        self.feature_grad_mult = 0.1  # scales the gradient of the convolutions, as when HuBERT Base was pretrained

    def forward(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """waves (B, N) float32 at 16 kHz, lengths (B,) -> states (L+1, B, T, D), zero where padded; frames (B,).

        State 0 is the input of the first transformer layer (convolutions and positions are in it), state l the output
        of layer l. An utterance's states depend neither on the others nor on the padding, whatever is in it."""
        states, frames = self.encode([wave[:n] for wave, n in zip(waves, lengths.tolist())])
        padded = [F.pad(one, (0, 0, 0, max(frames) - one.shape[1])) for one in states.split(frames, dim=1)]
        return torch.stack(padded, dim=1), torch.tensor(frames)

    def encode(self, waves: list[Tensor]) -> tuple[Tensor, list[int]]:
        """waves [(n,), ...] -> states (L+1, F, D), frames: those of all utterances, one utterance after the other.

        Most work is done frame by frame, so all utterances share large matrix products. Attention takes one utterance
        at a time, and so do the convolutions of waves on a CPU: nothing needs a mask, and no padding reaches the
        transformer. Zeros are convolved only between utterances: of the positional convolution, and of waves on a GPU.
        """
        frames = [frame_count(len(wave)) for wave in waves]
        if min(frames) < 1:
            raise ValueError(f"an utterance of {min(map(len, waves))} samples is shorter than one frame (400)")
        # DIFFERS: torchaudio, fairseq and s3prl convolve padded batches, and the GroupNorm in the first convolution
        # takes its statistics over time, padding included, which moves features by up to 2 standard deviations.
        x = self._convolve_row(waves, frames) if waves[0].is_cuda else \
            torch.cat([self.feature_extractor(wave[None], None)[0][0] for wave in waves])  # (F, C)
        if x.requires_grad:
            x.register_hook(lambda gradient: self.feature_grad_mult * gradient)
        x, transformer = self.encoder.feature_projection(x), self.encoder.transformer  # (F, D)
        position = transformer.pos_conv_embed.conv
        gap = position.kernel_size[0] // 2  # zeros between utterances: as far as this convolution sees
        row = torch.cat([F.pad(one, (0, 0, 0, gap)) for one in x.split(frames)])
        x = x + _first_of_each(F.gelu(convolve_by_fourier(position, row)), [T + gap for T in frames], frames)
        x = transformer.dropout(transformer.layer_norm(x))
        states = [x]  # DIFFERS: the released code leaves this one out; SUPERB, and we, use all L+1
        for layer in transformer.layers:
            x = layer.layer_norm(x + layer.dropout(_attend(layer.attention, x, frames)))
            x = layer.final_layer_norm(x + layer.feed_forward(x))
            states.append(x)
        return torch.stack(states), frames

    def _convolve_row(self, waves: list[Tensor], frames: list[int]) -> Tensor:
        """As the feature extractor, but all waves in one row, for a GPU: (F, C). There each wave would take launches of
        its own, and cuDNN plans every new length for milliseconds: rows have few lengths.

        Waves start at multiples of HOP, the stride of all convolutions together: a wave's frames lie where they would
        alone, its GroupNorm takes its own entries only, and every frame that sees more than its wave is dropped."""
        hops = [-(-len(wave) // HOP) for wave in waves]
        row = torch.cat([F.pad(wave, (0, n * HOP - len(wave))) for wave, n in zip(waves, hops)])
        # (At least one hop of zeros follows: without it the row would be a frame shorter than its slots.)
        x = F.pad(row, (0, HOP * (ROUND - sum(hops) % ROUND)))[None, None]
        for block in self.feature_extractor.conv_layers:
            x = block.conv(x)
            if block.layer_norm is not None:  # of the first block, over the time of each wave
                kernel, stride = block.kernel_size, block.stride
                pieces = x.split([*(n * HOP // stride for n in hops), x.shape[2] - sum(hops) * HOP // stride], dim=2)
                sizes = [(len(wave) - kernel) // stride + 1 for wave in waves]
                x = torch.cat([*(F.pad(block.layer_norm(piece[:, :, :n]), (0, piece.shape[2] - n))
                                 for piece, n in zip(pieces, sizes)), pieces[-1]], dim=2)
            x = F.gelu(x)
        return _first_of_each(x[0].T, hops, frames)

    @property
    def frozen(self) -> bool:
        """True after `requires_grad_(False)`: nothing is trained."""
        return not any(parameter.requires_grad for parameter in self.parameters())

    def train(self, mode: bool = True) -> "Hubert":
        """As for any module, but a frozen encoder stays in evaluation mode: it never drops anything out."""
        return super().train(mode and not self.frozen)

    def checkpoint(self) -> dict:
        """What `load_encoder` needs to find in a file, on its own or as "encoder" in a run's checkpoint.pt."""
        return {"config": self.config, "state_dict": self.state_dict()}

def _first_of_each(row: Tensor, slots: list[int], sizes: list[int]) -> Tensor:
    """Of each slot (so many entries of the row, one slot after the other) the first entries: (sum of sizes, D)."""
    return torch.cat([slot[:size] for slot, size in zip(row[:sum(slots)].split(slots), sizes)])

def _attend(attention: nn.Module, x: Tensor, frames: list[int]) -> Tensor:
    """torchaudio's self-attention, x (F, D) -> (F, D), in which each frame sees those of its own utterance."""
    queries, keys, values = (
        projection(x).view(1, len(x), attention.num_heads, -1).transpose(1, 2).split(frames, dim=2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj))  # (1, heads, T, D / heads) each
    dropout = attention.dropout if attention.training else 0.0
    if dropout and not x.is_cuda:
        mixed = [attend_with_dropout(*one, dropout) for one in zip(queries, keys, values)]
    else:
        mixed = [F.scaled_dot_product_attention(*one, dropout_p=dropout) for one in zip(queries, keys, values)]
    return attention.out_proj(torch.cat(mixed, dim=2).transpose(1, 2).reshape(x.shape))

def random_encoder(sizes: dict, seed: int = 0) -> Hubert:
    """An encoder that has learnt nothing, always the same, which leaves the caller's random numbers alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Hubert(sizes).eval()

def load_encoder(source: str) -> Hubert:
    """The encoder that `source` names, on the CPU, in evaluation mode; EncoderError if that is impossible.

    - "tiny": made by pretrain.py, beside this file; "hubert_base": torchaudio's, downloaded once and kept
    - "random-tiny", "random-hubert_base": no knowledge, for dry runs and as a control
    - a file with `Hubert.checkpoint()`, for instance a run's checkpoint.pt; a torchaudio state dict; a fairseq
      checkpoint (hubert_base_ls960.pt); a Hugging Face folder or file (pytorch_model.bin, model.safetensors)"""
    if source in ("random-tiny", "random-hubert_base"):
        return random_encoder(TINY if source == "random-tiny" else BASE)
    content = read_weights(source)
    content = content.get("encoder", content)
    if "config" in content:
        sizes, state = content["config"], content["state_dict"]
    else:
        state = {name: tensor for name, tensor in content.get("model", content).items() if not re.match(DROPPED, name)}
        for pattern, replacement in RENAMED:
            state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
        tiny = len(state.get("encoder.transformer.layer_norm.bias", ())) == TINY["encoder_embed_dim"]
        sizes = TINY if tiny else BASE
    encoder = Hubert(sizes)
    try:
        encoder.load_state_dict(state)  # copies, so that half precision becomes float32; knows old weight norm
    except RuntimeError as error:  # which names missing, unknown and misshapen parameters
        raise EncoderError(f"{source}: {' '.join(str(error).partition(':')[2].split())[:300]}") from error
    return encoder.eval()

class LayerSum(nn.Module):
    """The weighted sum of hidden states that the heads read: softmax weights, equal at first (SUPERB)."""
    def __init__(self, states: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(states))

    def forward(self, states: Tensor) -> Tensor:
        """states (L+1, B, T, D) -> features (B, T, D), in float32 under autocast, too."""
        with torch.autocast(states.device.type, enabled=False):
            return torch.tensordot(self.weights.softmax(0), states.to(self.weights.dtype), dims=1)

def spec_augment(features: Tensor, frames: Tensor, time_warp: bool = True, time_mask_width: int = 40,
                 time_masks: int = 2, dim_masks: int = 4, dim_width: int = 50) -> Tensor:
    """SpecAugment on features (B, T, D), as the released code does it: time warp, masks over dimensions, over time.

    Masked is 0. A mask's width is drawn below `time_mask_width` frames, or below `dim_width` dimensions for D = 768 (else in
    proportion); it may lie in the padding. Random numbers come from the global CPU generator, in the released order."""
    B, T, D = features.shape
    if time_warp:
        features = torch.stack([_warp(one, n) for one, n in zip(features, frames.tolist())])
    dims = _spans(B, D, dim_masks, max(1, dim_width * D // 768)).to(features.device, non_blocking=True)
    times = _spans(B, T, time_masks, time_mask_width).to(features.device, non_blocking=True)
    return features.masked_fill(dims[:, None, :] | times[:, :, None], 0.0)

def _warp(features: Tensor, frames: int, most: int = 5) -> Tensor:
    """One utterance (T, D), with a random frame moved by up to `most` frames and both sides stretched to fit."""
    if frames <= 2 * most:
        return features
    middle = int(torch.randint(most, frames - most, (1,)))
    moved = int(torch.randint(middle - most, middle + most, (1,))) + 1
    sides = (features[:middle], moved), (features[middle:frames], frames - moved)
    warped = [F.interpolate(x[None, None], (n, x.shape[1]), mode="bicubic")[0, 0] for x, n in sides]
    return torch.cat([*warped, features[frames:]])

def _spans(utterances: int, size: int, spans: int, width: int) -> Tensor:
    """The union of random spans, shorter than `width`, for each utterance: (B, size), True inside."""
    widths = torch.randint(0, width, (utterances, spans, 1))
    starts = torch.randint(0, max(1, size - int(widths.max())), (utterances, spans, 1))
    since = torch.arange(size) - starts  # (B, spans, size)
    return ((since >= 0) & (since < widths)).any(1)

class MultiTask(nn.Module):
    """One encoder and one weighted sum under the heads of all tasks (one head: scenarios (a) and (c)). With `augment`
    there is SpecAugment in training, its time masks shorter than `time_mask_width` frames."""
    def __init__(self, encoder: Hubert, heads: dict[str, nn.Module], augment: bool = True, time_mask_width: int = 40):
        super().__init__()
        self.encoder, self.layer_sum, self.heads = encoder, LayerSum(encoder.num_states), nn.ModuleDict(heads)
        self.augment, self.time_mask_width = augment, time_mask_width
        self.train()  # the encoder came in evaluation mode

    def forward(self, batches: dict) -> dict[str, Tensor]:
        """{task: batches.Batch or FrozenBatch} -> {task: loss}; every process must name the same tasks in one order."""
        losses = {}
        for task, (features, frames) in self._features(batches).items():
            if self.training and self.augment:
                # DIFFERS: the released code warps the features of diarization but not its labels; we warp neither.
                features = spec_augment(features, frames, not self.heads[task].frame_aligned, self.time_mask_width)
            with torch.autocast(features.device.type, enabled=False):  # heads are small, and a CPU's bf16 LSTM slow
                losses[task] = self.heads[task].loss(features, frames, batches[task].targets)
        if self.training and dist.is_initialized():
            # DIFFERS: the released code gives processes equal weight; we weight by the terms in each one's mean,
            # so that the mean over processes, which DDP takes, is the loss of the whole batch.
            terms = [float(self.heads[task].loss_weight(batches[task].targets)) for task in losses]
            total = torch.tensor(terms, device=self.layer_sum.weights.device)
            dist.all_reduce(total)
            losses = {task: losses[task] * (n * dist.get_world_size() / of_all)
                      for task, n, of_all in zip(losses, terms, total)}
        return losses

    @torch.no_grad()
    def predict(self, task: str, batch) -> list:
        """The head's predictions for a batch of B utterances. Call `eval()` before."""
        features, frames = self._features({task: batch})[task]
        return self.heads[task].predict(features, frames)

    def _features(self, batches: dict) -> dict[str, tuple[Tensor, Tensor]]:
        """{task: batch} -> {task: (features (B, T, D), frames (B,))}; the encoder hears all utterances at once."""
        pad, device = nn.utils.rnn.pad_sequence, self.layer_sum.weights.device
        waves = [wave[:n] for batch in batches.values() if not isinstance(batch, FrozenBatch)
                 for wave, n in zip(batch.waves.to(device, non_blocking=True), batch.lengths.tolist())]
        if waves:
            states, frames = self.encoder.encode(waves)
            features = iter(self.layer_sum(states).split(frames))  # (T, D) each
        result = {}
        for task, batch in batches.items():
            if isinstance(batch, FrozenBatch):
                result[task] = self.layer_sum(batch.states.to(device, non_blocking=True)), batch.frames
            else:
                own = [next(features) for _ in batch.targets]
                result[task] = pad(own, batch_first=True), torch.tensor([len(one) for one in own])
        return result

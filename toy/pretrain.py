"""Pretrain the tiny HuBERT of the default setting (Hsu et al., 2021; paper, Section 3.2).

    python -m toy.pretrain    # synthesises unlabelled speech, trains, writes weights and the curve

Targets: each frame (20 ms) of unlabelled speech gets the number of its k-means cluster of MFCCs,
which describe the shape of its spectrum. Masked prediction: one learned vector replaces spans of
the convolutional features, and the network predicts the clusters of the masked frames. So it learns
which sounds follow which, and the heads later read this from its hidden states.

The default weights, tiny_hubert.pt, were made at commit 4342699 with seed 1. The synthesiser has
changed a little since then, so this program now gives other weights.

B crops per batch, N samples, T frames (50 Hz), P frames of all utterances, K clusters.
"""
import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from engine.audio import mfcc_frames
from engine.flags import number
from engine.launch import friendly_errors
from engine.runs import RunError, atomic_file, check_writable, save_text
from masked_prediction import CLUSTERS, SHARE, SPAN, find_clusters, nearest_cluster
from model import TINY
from rules import HOP, RECEPTIVE_FIELD
from toy.synthesis import unlabelled

EVALUATE_EVERY = 500    # steps


def label_frames(waves: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """The k-means cluster of each frame of each utterance, (T,) int64 each."""
    frames = []
    for wave in tqdm(waves, desc="MFCCs", unit="utt"):
        frames.append(mfcc_frames(wave))
    points = torch.cat(frames)                                              # (P, 39)
    labels = nearest_cluster(points, find_clusters(points, generator))
    return list(labels.split([len(one) for one in frames]))


def similar_lengths(labels: list[Tensor], utterances: range, batch: int) -> list[list[int]]:
    """Batches of utterances of similar length, because a batch is cropped to its shortest."""
    order = sorted(utterances, key=lambda i: len(labels[i]))
    batches = []
    for start in range(0, len(order) - batch + 1, batch):
        batches.append(order[start:start + batch])
    return batches


def masked_prediction(net: nn.Module, waves: list[Tensor], labels: list[Tensor], batch: list[int],
                      generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Loss and accuracy on the masked frames of a batch (Hsu et al., 2021, Section II-C).

    Takes a random crop of each utterance, as long as the shortest utterance of the batch.
    """
    T = min(len(labels[i]) for i in batch)
    crops, targets = [], []
    for i in batch:
        start = int(torch.randint(len(labels[i]) - T + 1, (1,), generator=generator))
        crops.append(waves[i][start * HOP:(start + T - 1) * HOP + RECEPTIVE_FIELD])
        targets.append(labels[i][start:start + T])
    # (B, N), (B, T) -> (masked frames, 1 + K)
    logits, _, penalty = net(torch.stack(crops), torch.stack(targets))
    right = torch.zeros(len(logits), dtype=torch.long)  # torchaudio's column 0 is the right cluster
    accuracy = (logits.argmax(1) == right).float().mean()
    # fairseq's HuBERT recipe weights the mean square of the convolutional features by 10.
    return F.cross_entropy(logits, right) + 10 * penalty, accuracy


def build_model() -> nn.Module:
    """torchaudio's HuBERT for pretraining, with the size of TINY and random weights."""
    import torchaudio

    sizes = {name: value for name, value in TINY.items()
             if name.startswith(("extractor_", "encoder_"))}
    return torchaudio.models.hubert_pretrain_model(
        **sizes, num_classes=CLUSTERS, final_dim=64, feature_grad_mult=None, skip_masked=False,
        skip_nomask=True, mask_prob=SHARE, mask_length=SPAN, mask_selection="static",
        mask_other=0.0, mask_min_space=1, no_mask_overlap=False, mask_channel_prob=0.0,
        mask_channel_length=10, mask_channel_selection="static", mask_channel_other=0.0,
        mask_channel_min_space=1, no_mask_channel_overlap=False)


@torch.no_grad()
def evaluate(net: nn.Module, waves: list[Tensor], labels: list[Tensor],
             batches: list[list[int]]) -> tuple[float, float]:
    """Mean loss and accuracy over batches, on the same crops each time."""
    net.eval()
    results = []
    for batch in batches:
        generator = torch.Generator().manual_seed(0)
        results.append(masked_prediction(net, waves, labels, batch, generator))
    loss, accuracy = torch.tensor(results).mean(0).tolist()
    return loss, accuracy


def pretrain(args: argparse.Namespace) -> None:
    """Make the speech and its labels, train, and write the weights at each evaluation."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    waves = [torch.from_numpy(wave) for wave in unlabelled(args.hours * 3600, args.seed)]
    held_out = max(args.batch, len(waves) // 20)    # utterances for validation, about 5 %
    last = len(waves) - held_out
    if last < args.batch:
        raise RunError(f"{len(waves)} utterances are too few for --batch {args.batch}; take more "
                       "--hours")
    labels = label_frames(waves, generator)
    training = similar_lengths(labels, range(last), args.batch)
    # A quarter of the held-out batches, of all lengths, saves time.
    validation = similar_lengths(labels, range(last, len(waves)), args.batch)[::4]

    net = build_model()
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr, betas=(0.9, 0.98), eps=1e-6)
    warmup = max(1, args.steps * 8 // 100)
    queue, curve = [], []
    for step in tqdm(range(1, args.steps + 1), desc="pretraining", unit="step"):
        # linear warm-up, then linear decay to 0
        decay = (args.steps - step + 1) / max(1, args.steps - warmup)
        optimizer.param_groups[0]["lr"] = args.lr * (step / warmup if step <= warmup else decay)
        if not queue:
            queue = torch.randperm(len(training), generator=generator).tolist()
        net.train()
        loss, _ = masked_prediction(net, waves, labels, training[queue.pop()], generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if step % EVALUATE_EVERY == 0 or step == args.steps:
            loss, accuracy = evaluate(net, waves, labels, validation)
            point = {"step": step, "loss": round(loss, 4), "masked_accuracy": round(accuracy, 4)}
            curve.append(point)
            tqdm.write(json.dumps(point))
            write(net, curve, args)


def write(net: nn.Module, curve: list[dict], args: argparse.Namespace) -> None:
    """Write the encoder's weights in half precision, and the curve beside them."""
    path = Path(args.out)
    weights = {name: tensor.half() for name, tensor in net.wav2vec2.state_dict().items()}
    content = {"config": TINY, "state_dict": weights, "arguments": vars(args)}
    with atomic_file(path) as file:
        torch.save(content, file)
    lines = "".join(json.dumps(point) + "\n" for point in curve)
    save_text(path.with_suffix(".jsonl"), lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=4.0, help="of speech to synthesise")
    parser.add_argument("--steps", type=int, default=12_000, help="updates")
    parser.add_argument("--batch", type=int, default=8, help="crops per update")
    parser.add_argument("--lr", type=float, default=1.5e-3,
                        help="the peak, after a warm-up over 8 %% of the steps; then linear to 0")
    parser.add_argument("--seed", type=number(int, least=0), default=1,
                        help="of speech, clusters, masks, weights")
    parser.add_argument("--out", default="toy/tiny_hubert.pt",
                        help="weights; the curve has the same name with .jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)    # the matrices are too small for a second thread to help
    with friendly_errors(debug=False):
        check_writable(Path(args.out))      # at once, not after the first hour
        pretrain(args)


if __name__ == "__main__":
    main()

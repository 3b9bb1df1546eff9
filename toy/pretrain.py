"""Pretrain the tiny HuBERT of the default setting, as HuBERT is pretrained (Hsu et al. 2021; paper, Section 3.2).

    python -m toy.pretrain        # synthesises unlabelled speech, trains, writes tiny_hubert.pt and its curve

Targets: each frame (20 ms) of hours of unlabelled toy speech gets the number of its k-means cluster of MFCCs, 13
numbers that describe the shape of its spectrum. Masked prediction: spans of the convolutional features are replaced
by one learned vector, and the transformer must say which cluster was there. For that it has to learn which sounds
follow which, and this the heads later read.

B crops per batch, N samples, T frames (50 Hz), P frames of all utterances, K clusters.
"""
import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor
from tqdm import tqdm

from toy import synthesis
from data import RECEPTIVE_FIELD, HOP, SAMPLE_RATE
from model import TINY

CLUSTERS = 64

def mfcc_frames(wave: Tensor) -> Tensor:
    """13 MFCCs with first and second differences over time, (N,) -> (T, 39), on exactly the encoder's frames."""
    static = torchaudio.transforms.MFCC(SAMPLE_RATE, n_mfcc=13, melkwargs={
        "n_fft": RECEPTIVE_FIELD, "hop_length": HOP, "center": False, "n_mels": 40})(wave)  # (13, T)
    delta = torchaudio.functional.compute_deltas(static)
    return torch.cat([static, delta, torchaudio.functional.compute_deltas(delta)]).T

def cluster_labels(waves: list[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
    """The k-means cluster of each frame of each utterance, (T,) int64 each: 20 rounds of Lloyd's algorithm from random
    points. A cluster that nobody is in stays where it is."""
    frames = [mfcc_frames(wave) for wave in tqdm(waves, desc="MFCCs", unit="utt")]
    points = torch.cat(frames)
    points = (points - points.mean(0)) / points.std(0)  # (P, 39)
    centres = points[torch.randperm(len(points), generator=generator)[:CLUSTERS]]  # (K, 39)
    for _ in tqdm(range(20), desc="k-means", unit="round"):
        nearest = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=CLUSTERS)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return torch.cdist(points, centres).argmin(1).split([len(f) for f in frames])

def similar_lengths(labels: list[Tensor], utterances: range, batch: int) -> list[list[int]]:
    """Batches of neighbours in length, so that cropping to the shortest throws little away."""
    order = sorted(utterances, key=lambda i: len(labels[i]))
    return [order[k:k + batch] for k in range(0, len(order) - batch + 1, batch)]

def masked_prediction(net, waves: list[Tensor], labels: list[Tensor], batch: list[int],
                      generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Loss and accuracy over the masked frames of random crops, all as long as the shortest utterance of the batch."""
    frames = min(len(labels[i]) for i in batch)
    starts = [int(torch.randint(len(labels[i]) - frames + 1, (1,), generator=generator)) for i in batch]
    crops = [waves[i][s * HOP:(s + frames - 1) * HOP + RECEPTIVE_FIELD] for i, s in zip(batch, starts)]
    targets = [labels[i][s:s + frames] for i, s in zip(batch, starts)]
    logits, _, penalty = net(torch.stack(crops), torch.stack(targets))  # (B, N), (B, T) -> (masked frames, 1 + K)
    first = torch.zeros(len(logits), dtype=torch.long)  # torchaudio puts the logit of the right cluster into column 0
    return F.cross_entropy(logits, first) + 10 * penalty, (logits.argmax(1) == first).float().mean()

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=4.0, help="hours of unlabelled speech to synthesise")
    parser.add_argument("--steps", type=int, default=12_000, help="updates")
    parser.add_argument("--batch", type=int, default=8, help="crops per update")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak, after a warm-up over 8 %%; then linear to 0")
    parser.add_argument("--seed", type=int, default=1, help="of the speech, the clusters, the masks and the weights")
    parser.add_argument("--out", default="toy/tiny_hubert.pt", help="weights; the curve goes beside them (.jsonl)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small: a second thread waits more than it works
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    waves = [torch.from_numpy(wave) for wave in synthesis.unlabelled(args.hours * 3600, args.seed)]
    labels = cluster_labels(waves, generator)
    last = len(waves) - max(args.batch, len(waves) // 20)  # 5 % are never trained on: the honest curve
    training = similar_lengths(labels, range(last), args.batch)
    validation = similar_lengths(labels, range(last, len(waves)), args.batch)[::4]
    net = torchaudio.models.hubert_pretrain_model(
        **TINY, num_classes=CLUSTERS, final_dim=64, feature_grad_mult=None, skip_masked=False, skip_nomask=True,
        mask_prob=0.65, mask_length=8, mask_selection="static", mask_other=0.0, mask_min_space=1, no_mask_overlap=False,
        mask_channel_prob=0.0, mask_channel_length=10, mask_channel_selection="static", mask_channel_other=0.0,
        mask_channel_min_space=1, no_mask_channel_overlap=False)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr, betas=(0.9, 0.98), eps=1e-6)
    warmup = max(1, args.steps * 8 // 100)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: (s + 1) / warmup if s < warmup else (args.steps - s) / max(1, args.steps - warmup))
    queue, curve = [], []
    for step in tqdm(range(1, args.steps + 1), desc="pretraining", unit="step"):
        queue = queue or torch.randperm(len(training), generator=generator).tolist()
        net.train()
        loss, _ = masked_prediction(net, waves, labels, training[queue.pop()], generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 500 == 0 or step == args.steps:
            net.eval()
            with torch.no_grad():
                loss, accuracy = torch.tensor([
                    masked_prediction(net, waves, labels, batch, torch.Generator().manual_seed(0))
                    for batch in validation]).mean(0).tolist()
            curve.append({"step": step, "loss": round(loss, 4), "masked_accuracy": round(accuracy, 4)})
            tqdm.write(json.dumps(curve[-1]))
            weights = {name: tensor.half() for name, tensor in net.wav2vec2.state_dict().items()}
            torch.save({"config": TINY, "state_dict": weights, "arguments": vars(args)}, args.out)
            Path(args.out).with_suffix(".jsonl").write_text("".join(json.dumps(point) + "\n" for point in curve))

if __name__ == "__main__":
    main()

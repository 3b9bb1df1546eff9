"""Pretrain the tiny HuBERT of the default setting, as HuBERT is pretrained (Hsu et al. 2021; paper, Section 3.2).

    python pretrain.py        # synthesises unlabelled speech, trains, writes tiny_hubert.pt and its curve

Targets: hours of unlabelled toy speech are cut in frames of 20 ms, and each gets the number of its k-means cluster of
MFCCs. Masked prediction: spans of the convolutional features are replaced by one learned vector, and the transformer
must say which cluster was there. For that it has to learn which sounds follow which, and this the heads later read.

B crops per batch, N samples, T frames (50 Hz), K clusters.
"""
import argparse
import json
import time
from pathlib import Path

import torch
import torchaudio
from tqdm import tqdm

import model as model_file
import toy

CLUSTERS = 64
HOP, WINDOW = 320, 400  # samples between two frames of the convolutions, and samples that one frame sees

def mfcc_frames(wave: torch.Tensor) -> torch.Tensor:
    """13 MFCCs with first and second differences, (N,) -> (T, 39), on exactly the encoder's frames (no centre
    padding)."""
    mfcc = torchaudio.transforms.MFCC(
        16_000, n_mfcc=13, melkwargs={"n_fft": WINDOW, "hop_length": HOP, "center": False, "n_mels": 40})
    static = mfcc(wave)  # (13, T)
    delta = torchaudio.functional.compute_deltas(static)
    return torch.cat([static, delta, torchaudio.functional.compute_deltas(delta)]).T

def kmeans(points: torch.Tensor, clusters: int, iterations: int, generator: torch.Generator) -> torch.Tensor:
    """Lloyd's algorithm: (P, F) points -> (clusters, F) centres, started from random points. An empty cluster keeps
    its centre."""
    centres = points[torch.randperm(len(points), generator=generator)[:clusters]].clone()
    for _ in tqdm(range(iterations), desc="k-means", unit="round"):
        nearest = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=clusters)
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centres)
    return centres

def cluster_labels(waves: list[torch.Tensor], generator: torch.Generator) -> list[torch.Tensor]:
    """The cluster of each frame of each utterance: a list of (T,) int64."""
    frames = [mfcc_frames(wave) for wave in tqdm(waves, desc="MFCCs", unit="utt")]
    together = torch.cat(frames)
    mean, std = together.mean(0), together.std(0)
    centres = kmeans((together - mean) / std, CLUSTERS, 20, generator)
    return [torch.cdist((f - mean) / std, centres).argmin(1) for f in frames]

def batch_of_crops(waves: list, labels: list, chosen: list[int], generator: torch.Generator) -> tuple:
    """Crops of equal length (the shortest utterance's), so that there is no padding: waves (B, N), labels (B, T)."""
    frames = min(len(labels[i]) for i in chosen)
    starts = [int(torch.randint(len(labels[i]) - frames + 1, (1,), generator=generator)) for i in chosen]
    samples = (frames - 1) * HOP + WINDOW
    crops = torch.stack([waves[i][s * HOP:s * HOP + samples] for i, s in zip(chosen, starts)])
    return crops, torch.stack([labels[i][s:s + frames] for i, s in zip(chosen, starts)])

def similar_lengths(labels: list, indices: torch.Tensor, batch: int) -> list[list[int]]:
    """Batches of neighbours in length, so that cropping to the shortest throws little away."""
    order = sorted(indices.tolist(), key=lambda i: len(labels[i]))
    return [order[k:k + batch] for k in range(0, len(order) - batch + 1, batch)]

def masked_prediction(net, waves: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and accuracy over the masked frames; torchaudio puts the right cluster's logit in column 0."""
    logits, _, penalty = net(waves, labels)
    target = torch.zeros(len(logits), dtype=torch.long)
    loss = torch.nn.functional.cross_entropy(logits, target)
    return loss + 10 * penalty, (logits.argmax(1) == 0).float().mean()

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=4.0, help="hours of unlabelled speech to synthesise")
    parser.add_argument("--steps", type=int, default=12_000, help="updates")
    parser.add_argument("--batch", type=int, default=8, help="crops per update")
    parser.add_argument("--lr", type=float, default=1.5e-3,
                        help="peak learning rate: warm-up over 8 %%, then linear to 0")
    parser.add_argument("--seed", type=int, default=1, help="of the speech, the clusters, the masks and the weights")
    parser.add_argument("--out", type=Path, default=Path("tiny_hubert.pt"),
                        help="weights; the curve goes beside them (.jsonl)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small: a second thread waits more than it works
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)

    waves = [torch.from_numpy(wave) for wave in toy.unlabelled(args.hours * 3600, args.seed)]
    labels = cluster_labels(waves, generator)
    held_out = max(args.batch, len(waves) // 20)  # the last 5 % are never trained on: the honest curve
    validation = similar_lengths(labels, torch.arange(len(waves) - held_out, len(waves)), args.batch)

    sizes = model_file.TINY
    net = torchaudio.models.hubert_pretrain_model(
        **sizes, mask_prob=0.65, mask_selection="static", mask_other=0.0, mask_length=8, no_mask_overlap=False,
        mask_min_space=1, mask_channel_prob=0.0, mask_channel_selection="static", mask_channel_other=0.0,
        mask_channel_length=10, no_mask_channel_overlap=False, mask_channel_min_space=1, skip_masked=False,
        skip_nomask=True,
        num_classes=CLUSTERS, final_dim=64, feature_grad_mult=None)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    warmup = max(1, args.steps * 8 // 100)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: (s + 1) / warmup if s < warmup else (args.steps - s) / max(1, args.steps - warmup))

    queue, curve, started = [], [], time.time()
    progress = tqdm(range(1, args.steps + 1), desc="pretraining", unit="step")
    for step in progress:
        if not queue:
            epoch = similar_lengths(labels, torch.arange(len(waves) - held_out), args.batch)
            queue = [epoch[i] for i in torch.randperm(len(epoch), generator=generator)]
        net.train()
        loss, accuracy = masked_prediction(net, *batch_of_crops(waves, labels, queue.pop(), generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            progress.set_postfix(loss=f"{loss:.2f}", accuracy=f"{accuracy:.2f}", lr=f"{schedule.get_last_lr()[0]:.1e}")
        if step % 500 == 0 or step == args.steps:
            net.eval()
            with torch.no_grad():
                batches = (batch_of_crops(waves, labels, b, torch.Generator().manual_seed(0)) for b in validation[::4])
                scores = torch.tensor([masked_prediction(net, *batch) for batch in batches]).mean(0)
            curve.append({"step": step, "loss": round(float(scores[0]), 4),
                          "masked_accuracy": round(float(scores[1]), 4),
                          "seconds": round(time.time() - started)})
            command = f"python pretrain.py --hours {args.hours} --steps {args.steps} --batch {args.batch} " \
                      f"--lr {args.lr} --seed {args.seed}"
            weights = {name: tensor.half() for name, tensor in net.wav2vec2.state_dict().items()}
            torch.save({"config": sizes, "state_dict": weights, "command": command}, args.out)
            args.out.with_suffix(".jsonl").write_text("".join(json.dumps(point) + "\n" for point in curve))

if __name__ == "__main__":
    main()

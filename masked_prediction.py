"""Masked prediction, the loss of HuBERT's pretraining (Hsu et al. 2021): train.py --masked-weight.

One learned vector replaces spans of frames at the input of the transformer. The transformer has to
predict the k-means cluster of the MFCCs of each replaced frame. The paper suggests training with
this loss beside those of the tasks (Section 4.3). T frames of an utterance, M of several.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batches import Batch, Steps, Stream
from engine.audio import mfcc_frames
from rules import SAMPLE_RATE

MASKED = "masked"  # its name among the heads
# DIFFERS: HuBERT Base has 100 clusters, a share of 0.8, and spans of 10 frames.
CLUSTERS = 64
SHARE = 0.65  # masked frames / all frames, if spans did not overlap
SPAN = 8  # frames


def cluster_audio(streams: dict[str, Stream], seed: int) -> Tensor:
    """`find_clusters` of 30 minutes of training audio, in the order in which a run hears it."""
    available = sum(sum(stream.corpus.lengths) for stream in streams.values())  # samples
    wanted = min(30 * 60 * SAMPLE_RATE, available)
    frames, read, step = [], 0, 0
    while read < wanted:
        for batch in Steps(streams)[step][0].values():
            for wave, n in zip(batch.waves, batch.lengths.tolist()):
                frames.append(mfcc_frames(wave[:n]))
                read += n
        step += 1
    return find_clusters(torch.cat(frames), torch.Generator().manual_seed(seed))


def find_clusters(frames: Tensor, generator: torch.Generator) -> Tensor:
    """K-means of frames (M, 39) -> mean, standard deviation, centres: (2 + CLUSTERS, 39)."""
    scale = torch.stack([frames.mean(0), frames.std(0)])
    normal = (frames - scale[0]) / scale[1]
    first = torch.randperm(len(frames), generator=generator)[:CLUSTERS]
    clusters = torch.cat([scale, normal[first]])
    for _ in range(20):  # rounds of Lloyd's algorithm
        member = F.one_hot(nearest_cluster(frames, clusters), CLUSTERS).float()  # (M, CLUSTERS)
        means = member.T @ normal / member.sum(0)[:, None]
        clusters[2:] = torch.where(means.isnan(), clusters[2:], means)  # NaN: an empty cluster
    return clusters


def nearest_cluster(frames: Tensor, clusters: Tensor) -> Tensor:
    """The number of the cluster nearest to each frame: (M, 39) -> (M,) int64."""
    mean, deviation, centres = clusters[0], clusters[1], clusters[2:]  # as in `find_clusters`
    return torch.cdist((frames - mean) / deviation, centres).argmin(1)


def span_mask(T: int, rng: np.random.Generator) -> Tensor:
    """(T,) bool, True in two or more random spans, which may overlap; all True if T <= SPAN."""
    num_spans = max(2, int(SHARE * T / SPAN + rng.random()))  # the fraction is rounded at random
    starts = torch.from_numpy(rng.permutation(max(1, T - SPAN + 1))[:num_spans])
    since_start = torch.arange(T) - starts[:, None]  # (spans, T)
    return ((since_start >= 0) & (since_start < SPAN)).any(0)


def masked_batch(batches: dict, key: tuple, seed: int, clusters: Tensor, shuffled: bool) -> dict:
    """Targets for the audio of batches: the labels (T,) of masked frames, -100 of the others."""
    rng, labels, ids = np.random.default_rng([seed, *key]), [], []
    for batch in batches.values():
        ids += batch.ids
        for wave, n in zip(batch.waves, batch.lengths.tolist()):
            labels.append(nearest_cluster(mfcc_frames(wave[:n]), clusters))
    if shuffled:  # a control: every frame has the label of a random frame
        order = rng.permutation(sum(len(one) for one in labels))
        labels = torch.cat(labels)[order].split([len(one) for one in labels])
    targets = [torch.where(span_mask(len(one), rng), one, -100) for one in labels]
    return {MASKED: Batch(None, None, targets, ids)}


class MaskedPrediction(nn.Module):
    """The parameters of masked prediction: mask vector, projection, cluster embeddings.

    They are new, because files with pretrained weights of HuBERT do not contain them.
    """

    loss_waits = False  # as in heads.Head

    def __init__(self, dim: int, hidden: int, weight: float):
        super().__init__()
        self.mask_vector = nn.Parameter(torch.rand(dim))
        self.project = nn.Linear(dim, hidden)
        self.embeddings = nn.Parameter(torch.rand(CLUSTERS, hidden))
        self.register_buffer("clusters", torch.ones(2 + CLUSTERS, 39))  # of find_clusters
        self.weight = weight

    def num_loss_terms(self, targets: list[Tensor]) -> int:
        """The loss is a mean over the masked frames."""
        return int((torch.cat(targets) >= 0).sum())

    def loss(self, encoder, projected: Tensor, frames: list[int], targets: list[Tensor]) -> Tensor:
        """The weight times the mean cross-entropy; `projected` (M, D) is that of `encoder`."""
        labels = torch.cat(targets).to(projected.device, non_blocking=True)  # (M,)
        x = torch.where((labels >= 0)[:, None], self.mask_vector.to(projected.dtype), projected)
        x = encoder.transform(x, frames)[-1]  # the last hidden state
        with torch.autocast(x.device.type, enabled=False):
            cosines = F.normalize(self.project(x.float())) @ F.normalize(self.embeddings).T
            return self.weight * F.cross_entropy(cosines / 0.1, labels)  # ignores -100

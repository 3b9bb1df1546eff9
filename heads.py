"""Prediction heads: what turns HuBERT's features into an answer, and the loss that trains it (paper, Section 3.3).

One answer per utterance: ClassifierHead, or XVectorHead for a voice print. A sequence of tokens: CTCHead, BLSTMCTCHead.
An answer every 10 ms: DiarizationHead. They are SUPERB's heads, small on purpose: the features have to do the work.

B utterances, T frames (50 Hz, zero padded), D = 768 dimensions, H hidden units, C classes, S tokens, N = 2S + 1 states,
K speakers. `frames` and `lengths` (B,) say where padding begins; nothing of it reaches a loss or a prediction.
"""
from itertools import groupby, permutations

import torch
import torch.nn.functional as F
from torch import Tensor, inf, nn
from torch.nn.utils.rnn import pad_sequence

class Head(nn.Module):
    """Any head: `loss(features (B, T, D), frames (B,), targets: list)` is a scalar; `predict(features, frames)` is a
    list of B, in plain Python (call `eval()` before: some heads have dropout). All is float32: see `MultiTask`.
    `frames` best lie on the CPU, wherever the features are: nobody then waits for a GPU to know them."""
    pools = False          # True: a mean over time may come first (see features.FrozenFeatures)
    frame_aligned = False  # True: the targets are tied to time, so the features must not be time-warped

    def loss_weight(self, targets: list) -> int:
        """How many terms the mean in `loss` is over, so that several processes can average exactly."""
        return len(targets)

def to_device_of(place: Tensor, x: Tensor) -> Tensor:
    """x on the device of another tensor, without waiting until a GPU has come so far."""
    return x.to(place.device, non_blocking=True)

def _fill_padding(x: Tensor, lengths: Tensor, value: float = 0) -> Tensor:
    """x (B, T, ...) with `value` wherever there is padding."""
    padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
    return x.masked_fill(padding.view(*padding.shape, *[1] * (x.dim() - 2)), value)

def gather_frames(x: Tensor, lengths: Tensor, index: Tensor) -> Tensor:
    """Entries `index` (M,) or (B, M) of the rows of x (B, T, ...), at most a row's own last entry: (B, M, ...)."""
    return x[torch.arange(len(x), device=x.device)[:, None], torch.minimum(index, lengths[:, None] - 1).clamp(min=0)]

class ClassifierHead(Head):
    """SUPERB's Linear, mean over time, Linear; `classes` = (6, 14, 4) asks three questions at once. As there is no
    activation, the mean comes first here, mean_t(W x_t + b) = W mean_t(x_t) + b: the same head, and T times cheaper."""
    pools = True

    def __init__(self, dim: int, classes: int | tuple, hidden: int = 256):
        super().__init__()
        self.slots = [classes] if isinstance(classes, int) else list(classes)
        self.project, self.output = nn.Linear(dim, hidden), nn.Linear(hidden, sum(self.slots))

    def logits(self, features: Tensor, frames: Tensor) -> tuple[Tensor, ...]:
        """One (B, C) per slot."""
        frames = to_device_of(features, frames)
        mean = _fill_padding(features, frames).sum(1) / frames[:, None]    # (B, D)
        return self.output(self.project(mean)).split(self.slots, dim=1)

    def loss(self, features: Tensor, frames: Tensor, targets: list) -> Tensor:
        """Cross-entropy, -log p(class), summed over the slots; targets are ints, or a tuple of ints each."""
        classes = to_device_of(features, torch.tensor(targets)).view(len(targets), -1)    # (B, slots)
        return sum(F.cross_entropy(*slot) for slot in zip(self.logits(features, frames), classes.T))

    def predict(self, features: Tensor, frames: Tensor) -> list:
        """The likeliest classes: ints, or with several slots a list of ints each."""
        return torch.stack([slot.argmax(1) for slot in self.logits(features, frames)], 1).squeeze(1).tolist()

def ctc_loss(logits: Tensor, frames: Tensor, targets: list[list[int]]) -> Tensor:
    """Connectionist temporal classification (Graves et al. 2006): the mean over utterances of -log p(target) / S.

    logits (B, T, C), target ids 1 to C - 1. Audio has many frames, its transcript few tokens, and nobody says which
    belong together. So the network names one token per frame, and all alignments that read as the target count:
        p(target) = sum over alignments a of prod_t p_t(a_t)      H H _ E L _ L L O _  reads as  H E L L O
    To read one, merge repeats, then drop blanks (_, id 0). The blank lets a frame say nothing, and keeps a double
    letter (L _ L) apart from a long one (L L). A target too long for T frames has loss 0 (torch's zero_infinity);
    data.py lets none into training."""
    def backwards(x: Tensor, sizes: Tensor, fill: float = 0) -> Tensor:
        order = sizes[:, None] - 1 - torch.arange(x.shape[1], device=x.device)
        return _fill_padding(gather_frames(x, sizes, order), sizes, fill)

    lengths = torch.tensor([len(ids) for ids in targets])
    labels = pad_sequence([torch.tensor(ids, dtype=torch.long) for ids in targets], batch_first=True)
    labels = to_device_of(logits, labels)
    log_probs = logits.log_softmax(-1)
    if logits.is_cuda:    # a loop over frames is thousands of small kernels there: PyTorch has one, of equal value
        return F.ctc_loss(log_probs.transpose(0, 1), labels, frames, lengths, zero_infinity=True)
    states, sizes = F.pad(F.pad(labels[:, :, None], (1, 0)).flatten(1), (0, 1)), 2 * lengths + 1    # _ a _ b _ (B, N)
    scores = log_probs.detach()    # the derivative is known, and autograd through T small steps would be slow
    # The backward variables beta are the forward variables of all read backwards: one loop over 2B rows makes both.
    both_states = torch.cat([states, backwards(states, sizes)])
    index = both_states[:, None].expand(-1, scores.shape[1], -1)
    emissions = torch.cat([scores, backwards(scores, frames)]).gather(2, index)                     # (2B, T, N)
    alpha, beta = _forward_variables(emissions, both_states).chunk(2)
    beta = backwards(backwards(beta, frames, -inf).transpose(1, 2), sizes, -inf).transpose(1, 2)
    through = alpha + beta - emissions[:len(alpha)]    # log probability of the alignments in state n at frame t
    log_p = through[:, 0].logsumexp(-1)                # the same at any frame, as no alignment avoids one
    # p_t(n) is a factor of each of these, so their share of p(target), the posterior, is d log p / d log p_t(n). With
    # respect to the logits, -log p has the gradient p_t(k) - posterior_t(k): what is said, less what should have been.
    share = through.softmax(-1).nan_to_num(0)          # NaN where there is no alignment, or no frame
    posterior = torch.zeros_like(scores).scatter_add_(2, index[:len(alpha)], share)                 # (B, T, C)
    # log_p carries no graph. This term is 0, as log_probs equals scores, and its derivative by log_probs is d log p.
    slope = (posterior * (log_probs - scores)).sum((1, 2))
    return (-(log_p.masked_fill(log_p == -inf, 0) + slope) / lengths.clamp(min=1)).mean()

def _forward_variables(emissions: Tensor, states: Tensor) -> Tensor:
    """log alpha_t(n), where alpha_t(n) is the probability of all ways to be in state n at frame t: (B, T, N).

    An alignment walks the states _ a _ b _ (B, N) from left to right: it stays, steps to the next, or jumps over the
    blank between two tokens that differ. emissions (B, T, N) are log p_t(n), how well frame t suits n's token:
        alpha_t(n) = p_t(n) (alpha_t-1(n) + alpha_t-1(n - 1) + [may jump to n] alpha_t-1(n - 2))"""
    (B, T, N), second_left = emissions.shape, F.pad(states, (2, 0))[:, :-2]
    jump = torch.zeros_like(emissions[:, 0]).masked_fill((states == 0) | (states == second_left), -inf)
    alpha = emissions.new_full((T, B, N + 2), -inf)           # with two more states on the left, never entered
    alpha[0, :, 2:4] = emissions[:, 0, :2]                    # begin with the first blank or the first token
    for old, new, emission in zip(alpha[:-1], alpha[1:], emissions.transpose(0, 1)[1:]):
        stay_or_step = torch.logaddexp(old[:, 2:], old[:, 1:-1])
        new[:, 2:] = torch.logaddexp(stay_or_step, old[:, :-2] + jump) + emission
    return alpha[:, :, 2:].transpose(0, 1)

def greedy_ctc(logits: Tensor, frames: Tensor) -> list[list[int]]:
    """Reads one likely alignment, the best token of every frame: (B, T, C) -> B lists of ids."""
    # DIFFERS: for PR and SF the released code drops blanks, then merges repeats: no double letter ever comes out.
    best = zip(logits.argmax(-1).tolist(), frames.tolist())
    return [[token for token, _ in groupby(row[:length]) if token != 0] for row, length in best]

class CTCHead(Head):
    """Linear, Linear, CTC. No activation and no context: it is the features that have to know the phones."""
    def __init__(self, dim: int, classes: int, hidden: int = 256):
        super().__init__()
        self.project, self.output = nn.Linear(dim, hidden), nn.Linear(hidden, classes)

    def logits(self, features: Tensor, frames: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, C)."""
        return self.output(self.project(features))

    def loss(self, features: Tensor, frames: Tensor, targets: list) -> Tensor:
        """`ctc_loss`; targets are lists of token ids."""
        return ctc_loss(self.logits(features, frames), frames, targets)

    def predict(self, features: Tensor, frames: Tensor) -> list:
        """`greedy_ctc`: lists of token ids."""
        return greedy_ctc(self.logits(features, frames), frames)

class BLSTMCTCHead(CTCHead):
    """Linear, two bidirectional LSTM layers with dropout after each, Linear, CTC: letters need context.

    A direction is an LSTM of its own, and the backward one reads each utterance from that utterance's last frame, so
    padding is read by neither before a frame that counts. DIFFERS: the released code packs sequences, which PyTorch
    runs five times slower on a CPU."""
    def __init__(self, dim: int, classes: int, hidden: int = 1024):
        super().__init__(dim, classes, hidden)
        self.ahead = nn.ModuleList(nn.LSTM(width, hidden, batch_first=True) for width in (hidden, 2 * hidden))
        self.back = nn.ModuleList(nn.LSTM(width, hidden, batch_first=True) for width in (hidden, 2 * hidden))
        self.dropout = nn.Dropout(0.2)
        self.output = nn.Linear(2 * hidden, classes)

    def logits(self, features: Tensor, frames: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, C)."""
        x, frames = self.project(features), to_device_of(features, frames)                             # (B, T, H)
        mirrored = frames[:, None] - 1 - torch.arange(x.shape[1], device=x.device)              # (B, T)
        for ahead, back in zip(self.ahead, self.back):
            backwards = gather_frames(back(gather_frames(x, frames, mirrored))[0], frames, mirrored)
            x = self.dropout(torch.cat([ahead(x)[0], backwards], dim=2))                        # (B, T, 2 H)
        return self.output(x)

def pit_bce(logits: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
    """Permutation-invariant binary cross-entropy per label frame (Yu et al. 2017, Fujita et al. 2019).

    logits, labels (B, T, K): does speaker k talk in frame t? "Ann, Bob" and "Bob, Ann" are the same answer, and a loss
    that knew only one of them would punish the other. So each utterance gets its best permutation p:
        loss = sum over utterances of min_p (sum_t mean_k BCE(output k, speaker p(k))) / sum of lengths"""
    pairs = torch.broadcast_tensors(logits[:, :, :, None], labels.float()[:, :, None])      # (B, T, K, K)
    cost = _fill_padding(F.binary_cross_entropy_with_logits(*pairs, reduction="none"), lengths).sum(1)
    per_order = [cost[:, range(len(p)), p].mean(1) for p in permutations(range(labels.shape[2]))]
    return torch.stack(per_order).min(0).values.sum() / lengths.sum()

class DiarizationHead(Head):
    """LSTM, Linear: for each of K = `classes` speakers and every 10 ms, whether they talk."""
    frame_aligned = True

    def __init__(self, dim: int, classes: int = 2, hidden: int = 512):
        super().__init__()
        self.lstm, self.output = nn.LSTM(dim, hidden, batch_first=True), nn.Linear(hidden, classes)

    def logits(self, features: Tensor, frames: Tensor, size: int) -> Tensor:
        """(B, T, D) every 20 ms -> (B, size, K) every 10 ms: each frame is used twice, the last one until the end."""
        # DIFFERS: the released code repeats the padded batch's last frame: short utterances end in zeros, ours do not.
        twice = gather_frames(features, to_device_of(features, frames), torch.arange(size, device=features.device) // 2)
        return self.output(self.lstm(twice)[0])    # not packed: padding comes last, and nothing here looks ahead

    def loss(self, features: Tensor, frames: Tensor, targets: list) -> Tensor:
        """`pit_bce`; targets are (label frames, K) tensors or arrays of 0 and 1."""
        lengths = to_device_of(features, torch.tensor([len(target) for target in targets]))
        labels = to_device_of(features, pad_sequence([torch.as_tensor(target) for target in targets], batch_first=True))
        return pit_bce(self.logits(features, frames, labels.shape[1]), labels, lengths)

    def predict(self, features: Tensor, frames: Tensor) -> list:
        """Probabilities (2 frames + 1, K) as nested lists. T frames are all that is known, and recordings of T frames
        have 2 T to 2 T + 2 labels: this is one off at most, and ends 5 ms after the recording at most."""
        sizes = (2 * frames + 1).tolist()
        probabilities = self.logits(features, frames, max(sizes)).sigmoid().tolist()
        return [rows[:size] for rows, size in zip(probabilities, sizes)]

    def loss_weight(self, targets: list) -> int:
        """Label frames: a long recording weighs more than a short one."""
        return sum(map(len, targets))

def am_softmax(embeddings: Tensor, weight: Tensor, targets: Tensor, margin: float = 0.4, scale: float = 30) -> Tensor:
    """Additive-margin softmax (Wang et al. 2018): cross-entropy of scaled cosines, the mean over the batch.

    embeddings (B, H), weight (C, H) one direction per training speaker, targets (B,). The test has new speakers: it is
    not enough that the right old one wins, each voice must form a tight cluster, so it has to win by a margin. Cosines
    end at 1, too little for a sure softmax: hence the scale.  logit_j = scale (cos_j - margin [j is the target])"""
    cosines = F.linear(F.normalize(embeddings), F.normalize(weight))    # (B, C)
    return F.cross_entropy(scale * (cosines - margin * F.one_hot(targets, len(weight))), targets)

class XVectorHead(Head):
    """Dilated convolutions, mean and deviation over time, two Linear (Snyder et al. 2018). The loss names the training
    speakers; the test drops all above the first Linear and its ReLU, and compares what comes out of them."""
    LAYERS = (5, 1), (3, 2), (3, 3), (1, 1), (1, 1)                    # frames seen, and how far apart
    CONTEXT = 1 + sum((seen - 1) * apart for seen, apart in LAYERS)    # 15 frames in, one out

    def __init__(self, dim: int, classes: int, hidden: int = 512):
        super().__init__()
        self.project = nn.Linear(dim, hidden)
        widths = [hidden] * 4 + [hidden * 1500 // 512]
        self.tdnn = nn.Sequential(*[nn.Sequential(nn.Conv1d(hidden, width, seen, dilation=apart), nn.ReLU())
                                    for width, (seen, apart) in zip(widths, self.LAYERS)])
        self.linear1, self.linear2 = nn.Linear(2 * widths[-1], hidden), nn.Linear(hidden, hidden)
        self.speakers = nn.Parameter(nn.init.xavier_normal_(torch.empty(classes, hidden)))

    def embed(self, features: Tensor, frames: Tensor) -> Tensor:
        """(B, T, D) -> (B, H). Utterances below 15 frames repeat their last one (the released code fails on them)."""
        frames = to_device_of(features, frames)
        index = torch.arange(max(features.shape[1], self.CONTEXT), device=features.device)
        x = self.tdnn(self.project(gather_frames(features, frames, index)).transpose(1, 2)).transpose(1, 2)
        count = (frames - self.CONTEXT + 1).clamp(min=1)                                    # of x (B, T - 14, H)
        # DIFFERS: the released code counts one frame of padding too, and has no floor: NaN for a single frame.
        mean = _fill_padding(x, count).sum(1) / count[:, None]                              # (B, H)
        variance = _fill_padding((x - mean[:, None]).square(), count).sum(1) / (count - 1).clamp(min=1)[:, None]
        return self.linear1(torch.cat([mean, variance.clamp(min=1e-10).sqrt()], 1)).relu()

    def loss(self, features: Tensor, frames: Tensor, targets: list) -> Tensor:
        """`am_softmax`; targets are speaker numbers."""
        above = self.linear2(self.embed(features, frames)).relu()
        return am_softmax(above, self.speakers, to_device_of(features, torch.tensor(targets)))

    def predict(self, features: Tensor, frames: Tensor) -> list:
        """Embeddings of length 1 as lists of floats: the cosine of two is their dot product."""
        return F.normalize(self.embed(features, frames)).tolist()

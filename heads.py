"""The prediction heads of the nine tasks, each with its loss (paper, Section 3.3).

A head turns HuBERT's features into a prediction. ClassifierHead predicts classes of an utterance,
XVectorHead computes a speaker embedding, CTCHead and BLSTMCTCHead predict a sequence of tokens, and
DiarizationHead predicts every 10 ms who speaks. They are SUPERB's heads. They are small on purpose:
the features have to do the work.

B utterances, T frames (50 Hz, zero padded), D = 768 feature dimensions, H hidden units, C classes,
S target tokens, N = 2 S + 1 states of CTC, K speakers. `frames` (B,) holds the number of valid
frames of each utterance; all behind them is padding. Padding changes no loss and no prediction.
"""

from itertools import groupby, permutations

import torch
import torch.nn.functional as F
from torch import Tensor, inf, nn
from torch.nn.utils.rnn import pad_sequence

BLANK = 0  # the token id that CTC drops


class Head(nn.Module):
    """The base class of all heads. A subclass defines `loss` and `predict`.

    `loss(features (B, T, D), frames (B,), targets: list of B)` returns a scalar.
    `predict(features, frames)` returns a list of B predictions in plain Python. Call `eval()`
    first, because some heads have dropout. All numbers are float32 (see `model.MultiTask`).
    Keep `frames` on the CPU: reading a value from the GPU forces a synchronisation.

    `certainty(features, frames)` returns how sure the head is of each of the B predictions: a list
    of numbers for each, one per slot where there are several, and none for an embedding.
    `certainty_name` says what the numbers are. Only predict.py uses both.
    """

    certainty_name = ""
    needs_only_mean = False  # True: the head uses only the mean of the features over time
    frame_aligned = False  # True: the targets are tied to time, so features must not be time-warped

    def loss_weight(self, targets: list) -> int:
        """The number of terms in the mean that `loss` takes.

        Several processes weight their losses with it, so that their average is exact.
        """
        return len(targets)

    def certainty(self, features: Tensor, frames: Tensor) -> list[list[float]]:
        """No number for any of the B predictions."""
        return [[] for _ in frames]


def to_device_of(reference: Tensor, x: Tensor) -> Tensor:
    """Copies x to the device of `reference`, without waiting for the GPU."""
    return x.to(reference.device, non_blocking=True)


def gather_frames(x: Tensor, lengths: Tensor, index: Tensor) -> Tensor:
    """Picks the entries `index` (M,) or (B, M) from each row of x (B, T, ...): (B, M, ...).

    An index outside a row's valid entries picks the nearest valid one: entry 0 or lengths - 1.
    """
    index = torch.minimum(index, lengths[:, None] - 1).clamp(min=0)  # (B, M)
    rows = torch.arange(len(x), device=x.device)[:, None]  # (B, 1)
    return x[rows, index]


def _fill_padding(x: Tensor, lengths: Tensor, value: float = 0) -> Tensor:
    """Replaces the padding of x (B, T, ...) by `value`."""
    padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]  # (B, T)
    while padding.dim() < x.dim():
        padding = padding.unsqueeze(-1)
    return x.masked_fill(padding, value)


def _reverse(x: Tensor, lengths: Tensor, fill: float = 0) -> Tensor:
    """Reverses the valid entries of each row of x (B, T, ...); the padding becomes `fill`."""
    index = lengths[:, None] - 1 - torch.arange(x.shape[1], device=x.device)  # (B, T)
    return _fill_padding(gather_frames(x, lengths, index), lengths, fill)


class ClassifierHead(Head):
    """Linear, mean over time, Linear: one class per utterance (KS, IC, ER, SID).

    `classes` = (6, 14, 4) predicts three classes per utterance (the slots of IC).
    We take the mean first. The head is the same, because there is no activation between the layers:
        mean_t(W x_t + b) = W mean_t(x_t) + b
    The first layer then costs T times less.
    """

    certainty_name = "probability"
    needs_only_mean = True

    def __init__(self, dim: int, classes: int | tuple, hidden: int = 256):
        super().__init__()
        self.slots = [classes] if isinstance(classes, int) else list(classes)
        self.project = nn.Linear(dim, hidden)
        self.output = nn.Linear(hidden, sum(self.slots))

    def logits(self, features: Tensor, frames: Tensor) -> tuple[Tensor, ...]:
        """(B, T, D) -> one (B, C) per slot."""
        frames = to_device_of(features, frames)
        mean = _fill_padding(features, frames).sum(1) / frames[:, None]  # (B, D)
        return self.output(self.project(mean)).split(self.slots, dim=1)

    def loss(self, features: Tensor, frames: Tensor, targets: list) -> Tensor:
        """Cross-entropy, -log p(class), summed over the slots.

        Targets are class numbers, or with several slots one tuple of class numbers per utterance.
        """
        classes = to_device_of(features, torch.tensor(targets)).view(len(targets), -1)  # (B, slots)
        losses = []
        for slot, logits in enumerate(self.logits(features, frames)):
            losses.append(F.cross_entropy(logits, classes[:, slot]))
        return sum(losses)

    def predict(self, features: Tensor, frames: Tensor) -> list:
        """The most probable classes: one int per utterance, or one list of ints (several slots)."""
        best = [logits.argmax(1) for logits in self.logits(features, frames)]
        return torch.stack(best, 1).squeeze(1).tolist()

    def certainty(self, features: Tensor, frames: Tensor) -> list[list[float]]:
        """The probability of the predicted class of each slot."""
        best = [logits.softmax(1).amax(1) for logits in self.logits(features, frames)]
        return torch.stack(best, 1).tolist()


def ctc_loss(logits: Tensor, frames: Tensor, targets: list[list[int]]) -> Tensor:
    """Connectionist temporal classification (Graves et al. 2006): the mean of -log p(target) / S.

    Audio has many frames, its transcript has few tokens, and the alignment between them is unknown.
    So the network predicts one token per frame, and all alignments that read as the target count:
        p(target) = sum over alignments a of prod_t p_t(a_t)
        H H _ E L _ L L O _  reads as  H E L L O
    To read an alignment, merge repeats, then drop blanks (_, id 0). A blank means "no token here".
    It also separates a double letter (L _ L) from a long one (L L).

    logits (B, T, C), frames (B,), targets: B lists of token ids from 1 to C - 1 -> scalar.
    A target that is too long for its frames has loss 0 (PyTorch's zero_infinity). data.py removes
    such utterances from training.
    """
    lengths = torch.tensor([len(ids) for ids in targets])
    labels = [torch.tensor(ids, dtype=torch.long) for ids in targets]
    labels = to_device_of(logits, pad_sequence(labels, batch_first=True))  # (B, S)
    if logits.is_cuda:
        # On a GPU our loop over frames would launch thousands of small kernels. PyTorch's own CTC
        # runs the loop inside one kernel, and its loss is the same.
        log_probs = logits.log_softmax(-1).transpose(0, 1)  # (T, B, C)
        return F.ctc_loss(log_probs, labels, frames, lengths, zero_infinity=True)
    return CTC.apply(logits, frames, labels, lengths).mean()


class CTC(torch.autograd.Function):
    """-log p(target) / S of each utterance and its gradient (Graves et al. 2006, Section 4).

    The target a b becomes the N = 2 S + 1 states _ a _ b _. State n has the token k(n).
        forward variable   alpha_t(n) = probability of all ways in frames 0..t that end in state n
        backward variable  beta_t(n)  = probability of all ways in frames t..T-1 that start there
    Both contain p_t(k(n)), so their product contains it twice. Each alignment is in exactly one
    state at frame t. So for every frame t
        p(target) = sum over n of alpha_t(n) beta_t(n) / p_t(k(n))
    The alignments with token k at frame t have the following share in p(target):
        posterior_t(k) = sum over n with k(n) = k of alpha_t(n) beta_t(n) / p_t(k) / p(target)
    They are the ones that have the factor p_t(k), so
        d log p(target) / d log p_t(k) = posterior_t(k)
    With respect to the logits, from which the softmax computes p_t, this becomes
        d -log p(target) / d logit_t(k) = p_t(k) - posterior_t(k)
    This is the predicted minus the posterior probability.

    Autograd through the loop over frames would give the same gradient, but would be slow.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, frames: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        """logits (B, T, C), frames (B,), labels (B, S), lengths (B,) -> losses (B,)."""
        log_probs = logits.log_softmax(-1)
        B, S = labels.shape
        states = labels.new_zeros(B, 2 * S + 1)  # all blank, then _ a _ b _
        states[:, 1::2] = labels
        through = _alignments_through(log_probs, states, frames, 2 * lengths + 1)  # (B, T, N)
        log_p = through[:, 0].logsumexp(-1)  # the same at every frame
        ctx.save_for_backward(log_probs, states, through, lengths)
        return -log_p.masked_fill(log_p == -inf, 0) / lengths.clamp(min=1)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the logits: grad_output * (softmax - posterior) / S, (B, T, C)."""
        log_probs, states, through, lengths = ctx.saved_tensors
        share = through.softmax(-1)  # of p(target), (B, T, N)
        share = share.nan_to_num(0)  # NaN where there is no alignment
        tokens = states[:, None].expand_as(share)  # k(n)
        posterior = torch.zeros_like(log_probs).scatter_add(2, tokens, share)  # (B, T, C)
        softmax = log_probs.exp()
        scale = (grad_output / lengths.clamp(min=1))[:, None, None]
        gradient = scale * (softmax - posterior)
        no_alignment = share.sum(2, keepdim=True) == 0  # padding, or a target that does not fit
        return gradient.masked_fill(no_alignment, 0), None, None, None


def _alignments_through(log_probs: Tensor, states: Tensor, frames: Tensor, sizes: Tensor) -> Tensor:
    """The log probability of all alignments that are in state n at frame t: (B, T, N).

    This is log (alpha_t(n) beta_t(n) / p_t(k(n))). Utterance b has sizes[b] valid states.
    The backward variables are the forward variables of the utterance read from its end. So one loop
    over frames computes both, in a batch of 2 B rows. Two loops would take almost twice as long.
    """
    B, T = log_probs.shape[:2]
    log_probs = torch.cat([log_probs, _reverse(log_probs, frames)])  # (2 B, T, C)
    states = torch.cat([states, _reverse(states, sizes)])  # (2 B, N)
    emissions = log_probs.gather(2, states[:, None].expand(-1, T, -1))  # log p_t(k(n)), (2 B, T, N)
    alpha, beta = _forward_variables(emissions, states).chunk(2)
    beta = _reverse(beta, frames, fill=-inf)
    beta = _reverse(beta.transpose(1, 2), sizes, fill=-inf).transpose(1, 2)
    return alpha + beta - emissions[:B]


def _forward_variables(emissions: Tensor, states: Tensor) -> Tensor:
    """log alpha_t(n), the log probability of all ways to be in state n at frame t: (B, T, N).

    emissions (B, T, N) hold log p_t(k(n)). An alignment begins with the first blank or the first
    token and walks through the states _ a _ b _ from left to right. At each frame it stays in its
    state, steps to the next one, or jumps over the blank between two different tokens:
        alpha_t(n) = p_t(k(n)) (alpha_t-1(n) + alpha_t-1(n - 1) + [may jump to n] alpha_t-1(n - 2))
    """
    second_left = F.pad(states, (2, 0))[:, :-2]  # the token two states to the left
    no_jump = (states == BLANK) | (states == second_left)
    log_may_jump = torch.zeros_like(emissions[:, 0]).masked_fill(no_jump, -inf)  # log 1 or log 0
    alpha = emissions[:, 0].clone()
    alpha[:, 2:] = -inf
    alphas = [alpha]
    for emission in emissions.unbind(1)[1:]:
        padded = F.pad(alpha, (2, 0), value=-inf)  # two more states on the left, never entered
        stay_or_step = torch.logaddexp(alpha, padded[:, 1:-1])
        jump = padded[:, :-2] + log_may_jump
        alpha = torch.logaddexp(stay_or_step, jump) + emission
        alphas.append(alpha)
    return torch.stack(alphas).transpose(0, 1)


def greedy_ctc(logits: Tensor, frames: Tensor) -> list[list[int]]:
    """Reads the alignment of each frame's most probable token: (B, T, C) -> B lists of ids."""
    # DIFFERS: for PR and SF the released code drops blanks before it merges repeats. So it cannot
    # output the same token twice in a row.
    decoded = []
    for best, length in zip(logits.argmax(-1).tolist(), frames.tolist()):
        merged = [token for token, _ in groupby(best[:length])]
        decoded.append([token for token in merged if token != BLANK])
    return decoded


class CTCHead(Head):
    """Linear, Linear, CTC: a sequence of tokens (PR).

    There is no activation and no context: the features themselves have to encode the phonemes.
    """

    certainty_name = "mean log probability per token"

    def __init__(self, dim: int, classes: int, hidden: int = 256):
        super().__init__()
        self.project = nn.Linear(dim, hidden)
        self.output = nn.Linear(hidden, classes)

    def logits(self, features: Tensor, frames: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, C)."""
        return self.output(self.project(features))

    def loss(self, features: Tensor, frames: Tensor, targets: list) -> Tensor:
        """`ctc_loss`; targets are lists of token ids."""
        return ctc_loss(self.logits(features, frames), frames, targets)

    def predict(self, features: Tensor, frames: Tensor) -> list:
        """`greedy_ctc`: one list of token ids per utterance."""
        return greedy_ctc(self.logits(features, frames), frames)

    def certainty(self, features: Tensor, frames: Tensor) -> list[list[float]]:
        """log p(best alignment) / S of each utterance, for its S predicted tokens.

        The probability of all alignments that read as the prediction is higher. An hour would need
        too much memory for it. Without a token, S counts as 1.
        """
        logits = self.logits(features, frames)
        best = _fill_padding(logits.log_softmax(-1).amax(-1), to_device_of(logits, frames)).sum(1)
        tokens = [max(1, len(ids)) for ids in greedy_ctc(logits, frames)]
        return [[log_p / count] for log_p, count in zip(best.tolist(), tokens)]


class BLSTMCTCHead(CTCHead):
    """Linear, two bidirectional LSTM layers, each with dropout, Linear, CTC (ASR, SF).

    Letters need context, which the LSTMs provide. Each direction is an LSTM of its own. The
    backward one starts at the last frame of each utterance. So neither reads padding before a valid
    frame.
    DIFFERS: the released code packs sequences, which PyTorch runs five times slower on a CPU.
    """

    def __init__(self, dim: int, classes: int, hidden: int = 1024):
        super().__init__(dim, classes, hidden)
        widths = (hidden, 2 * hidden)
        self.ahead = nn.ModuleList(nn.LSTM(width, hidden, batch_first=True) for width in widths)
        self.back = nn.ModuleList(nn.LSTM(width, hidden, batch_first=True) for width in widths)
        self.dropout = nn.Dropout(0.2)
        self.output = nn.Linear(2 * hidden, classes)  # replaces that of CTCHead: two directions

    def logits(self, features: Tensor, frames: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, C)."""
        x, frames = self.project(features), to_device_of(features, frames)  # (B, T, H)
        for ahead, back in zip(self.ahead, self.back):
            forward, _ = ahead(x)
            backward, _ = back(_reverse(x, frames))
            x = torch.cat([forward, _reverse(backward, frames)], dim=2)  # (B, T, 2 H)
            x = self.dropout(x)
        return self.output(x)


def pit_bce(logits: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
    """Permutation-invariant binary cross-entropy (Yu et al. 2017, Fujita et al. 2019).

    logits, labels (B, T, K): does speaker k talk in label frame t? lengths (B,) -> scalar.
    The order of the speakers is arbitrary: "Ann, Bob" and "Bob, Ann" are the same answer. A loss
    for one order would punish the other. So each utterance b uses its best permutation p:
        loss = sum_b min_p (sum_t mean_k BCE(output k, speaker p(k))) / sum_b lengths[b]
    """
    K = labels.shape[2]
    outputs = logits[:, :, :, None].expand(-1, -1, -1, K)
    speakers = labels.float()[:, :, None, :].expand(-1, -1, K, -1)
    cost = F.binary_cross_entropy_with_logits(outputs, speakers, reduction="none")  # (B, T, K, K)
    cost = _fill_padding(cost, lengths).sum(1)  # (B, K, K): output k against speaker j
    costs = []
    for permutation in permutations(range(K)):
        costs.append(cost[:, range(K), permutation].mean(1))  # (B,)
    return torch.stack(costs).min(0).values.sum() / lengths.sum()


class DiarizationHead(Head):
    """LSTM, Linear: which of K = `classes` speakers talk, every 10 ms (SD)."""

    frame_aligned = True
    certainty_name = "mean probability of a decision"
    PART = 60_000  # label frames that go through the LSTM together: 10 minutes

    def __init__(self, dim: int, classes: int = 2, hidden: int = 512):
        super().__init__()
        self.lstm = nn.LSTM(dim, hidden, batch_first=True)
        self.output = nn.Linear(hidden, classes)

    def logits(self, features: Tensor, frames: Tensor, size: int) -> Tensor:
        """(B, T, D) every 20 ms -> (B, size, K) every 10 ms.

        Each frame is used twice. The last frame is repeated until `size` is reached.
        """
        # DIFFERS: the released code repeats the last frame of the padded batch. There, a short
        # utterance ends in zeros, and here it does not.
        index = torch.arange(size, device=features.device) // 2
        twice = gather_frames(features, to_device_of(features, frames), index)
        logits, state = [], None
        # A recording of an hour needs too much memory at once. The state goes from part to part.
        for part in twice.split(self.PART, dim=1):
            hidden, state = self.lstm(part, state)  # not packed: padding last, the LSTM is causal
            logits.append(self.output(hidden))
        return torch.cat(logits, 1)

    def loss(self, features: Tensor, frames: Tensor, targets: list) -> Tensor:
        """`pit_bce`; targets are tensors or arrays (label frames, K) of 0 and 1."""
        lengths = to_device_of(features, torch.tensor([len(target) for target in targets]))
        labels = pad_sequence([torch.as_tensor(target) for target in targets], batch_first=True)
        labels = to_device_of(features, labels)
        return pit_bce(self.logits(features, frames, labels.shape[1]), labels, lengths)

    def predict(self, features: Tensor, frames: Tensor) -> list:
        """The probabilities that each speaker talks, (2 frames + 1, K), as nested lists.

        A recording of T frames has 2 T to 2 T + 2 labels, and only T is known here. So 2 T + 1 is
        wrong by one label at most. The prediction ends at most 5 ms after the recording.
        """
        sizes = (2 * frames + 1).tolist()
        probabilities = self.logits(features, frames, max(sizes)).sigmoid().tolist()
        return [rows[:size] for rows, size in zip(probabilities, sizes)]

    def certainty(self, features: Tensor, frames: Tensor) -> list[list[float]]:
        """The mean probability of the decisions, over label frames and speakers: 0.5 to 1."""
        sizes = 2 * frames + 1
        probabilities = self.logits(features, frames, int(sizes.max())).sigmoid()
        decided = torch.maximum(probabilities, 1 - probabilities).mean(2)  # (B, size)
        sizes = to_device_of(decided, sizes)
        return (_fill_padding(decided, sizes).sum(1) / sizes)[:, None].tolist()

    def loss_weight(self, targets: list) -> int:
        """The number of label frames: a long recording weighs more than a short one."""
        return sum(len(target) for target in targets)


def am_softmax(
    embeddings: Tensor, weight: Tensor, targets: Tensor, margin: float = 0.4, scale: float = 30
) -> Tensor:
    """Additive-margin softmax (Wang et al. 2018): the mean cross-entropy of scaled cosines.

    embeddings (B, H), weight (C, H): one direction per training speaker, targets (B,) -> scalar.
        logit_j = scale (cos_j - margin [j is the target])
    The test has new speakers, so it is not enough that the right training speaker wins. It has to
    win by a margin, so that embeddings of one speaker are closer than embeddings of two speakers.
    A cosine is at most 1, which is too little for a confident softmax. The scale corrects this.
    """
    cosines = F.linear(F.normalize(embeddings), F.normalize(weight))  # (B, C)
    is_target = F.one_hot(targets, len(weight))
    return F.cross_entropy(scale * (cosines - margin * is_target), targets)


class XVectorHead(Head):
    """The x-vector network (Snyder et al. 2018): a speaker embedding (ASV).

    Dilated convolutions (a time-delay network, TDNN), mean and standard deviation over time, two
    Linear layers, each with ReLU. The loss classifies the training speakers. The test compares the
    outputs of the first Linear layer and its ReLU, and does not use the second one.
    """

    TDNN = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))  # kernel size and dilation of each layer
    CONTEXT = 1 + sum((kernel - 1) * dilation for kernel, dilation in TDNN)  # 15 frames

    def __init__(self, dim: int, classes: int, hidden: int = 512):
        super().__init__()
        self.project = nn.Linear(dim, hidden)
        wide = hidden * 1500 // 512
        self.tdnn = nn.Sequential()
        for width, (kernel, dilation) in zip([hidden] * 4 + [wide], self.TDNN):
            convolution = nn.Conv1d(hidden, width, kernel, dilation=dilation)
            self.tdnn.append(nn.Sequential(convolution, nn.ReLU()))
        self.linear1 = nn.Linear(2 * wide, hidden)
        self.linear2 = nn.Linear(hidden, hidden)
        self.speakers = nn.Parameter(nn.init.xavier_normal_(torch.empty(classes, hidden)))

    def embed(self, features: Tensor, frames: Tensor) -> Tensor:
        """(B, T, D) -> speaker embeddings (B, H).

        An utterance shorter than CONTEXT repeats its last frame. The released code fails on it.
        """
        frames = to_device_of(features, frames)
        index = torch.arange(max(features.shape[1], self.CONTEXT), device=features.device)
        x = self.project(gather_frames(features, frames, index))  # (B, T, H)
        x = self.tdnn(x.transpose(1, 2)).transpose(1, 2)  # (B, T - 14, wide)
        count = (frames - self.CONTEXT + 1).clamp(min=1)  # valid frames of x
        # DIFFERS: the released code includes one padded frame. Its deviation has no lower bound and
        # is NaN for a single frame.
        mean = _fill_padding(x, count).sum(1) / count[:, None]  # (B, wide)
        squares = _fill_padding((x - mean[:, None]).square(), count).sum(1)
        variance = squares / (count - 1).clamp(min=1)[:, None]
        deviation = variance.clamp(min=1e-10).sqrt()
        return self.linear1(torch.cat([mean, deviation], 1)).relu()

    def loss(self, features: Tensor, frames: Tensor, targets: list) -> Tensor:
        """`am_softmax`; targets are speaker numbers."""
        x = self.linear2(self.embed(features, frames)).relu()
        return am_softmax(x, self.speakers, to_device_of(features, torch.tensor(targets)))

    def predict(self, features: Tensor, frames: Tensor) -> list:
        """Speaker embeddings of length 1, lists of floats. Their dot product is their cosine."""
        return F.normalize(self.embed(features, frames)).tolist()

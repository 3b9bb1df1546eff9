"""The prediction heads of the nine tasks, each with its loss (paper, Section 3.3).

A head turns HuBERT's features into a prediction. They are SUPERB's heads: small, so that the scores
depend mostly on the features.
    ClassifierHead   classes of an utterance: keyword spotting (KS), intent classification (IC),
                     emotion recognition (ER), speaker identification (SID)
    CTCHead          a sequence of tokens: phoneme recognition (PR)
    BLSTMCTCHead     a sequence of tokens: speech recognition (ASR), slot filling (SF)
    DiarizationHead  who speaks, every 10 ms: speaker diarization (SD)
    XVectorHead      a speaker embedding: automatic speaker verification (ASV)

B utterances, T frames (50 Hz, zero padded), D = 768 feature dimensions, H hidden units, C classes,
K speakers, M indices. S is an utterance's number of target tokens; tensors are padded to the
longest. CTC has N = 2 S + 1 states. In formulas, [condition] is 1 if the condition holds, else 0.

`frames` (B,) holds the number of valid frames of each utterance. All later frames are padding.
Padding changes no loss and no prediction. DIFFERS marks a deviation from the authors' released
code.
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

    `certainty(features, frames)` says how sure the head is of its predictions. For each utterance
    it returns a list: one number per output slot, empty for embeddings. `certainty_name` says what
    the numbers are. Only predict.py uses `certainty` and `certainty_name`.
    """

    certainty_name = ""
    # True: the head uses only the mean of the features over time.
    needs_only_mean = False
    # True: targets have time stamps, so augmentation must not warp the time axis.
    frame_aligned = False
    # True: on a GPU the CPU has to wait in `loss`, so `model.MultiTask` computes this head last.
    loss_waits = False

    def num_loss_terms(self, targets: list) -> int:
        """`loss` is a mean over this many terms.

        An update may have several processes and parts. This number weights the loss of each, so
        that the sum is the loss of the whole batch (`weighting.loss_weights`).
        """
        return len(targets)

    def certainty(self, features: Tensor, frames: Tensor) -> list[list[float]]:
        """B empty lists: the base class has no certainty."""
        return [[] for _ in frames]


def to_device_of(reference: Tensor, x: Tensor) -> Tensor:
    """Copies x to the device of `reference`; the copy is asynchronous if x is pinned."""
    return x.to(reference.device, non_blocking=True)


def gather_frames(x: Tensor, lengths: Tensor, index: Tensor) -> Tensor:
    """Returns x[b, index[b]] for every row b of x (B, T, ...): (B, M, ...).

    `index` is (B, M), or (M,) for all rows. An index outside a row's valid entries picks the
    nearest valid one: entry 0 or lengths - 1.
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

    `classes` = (6, 14, 4) predicts three classes per utterance: the slots of IC (action, object,
    location). SUPERB averages after the first layer. Averaging before it is equivalent, because
    both are linear. The first layer then costs T times less:
        mean_t(W x_t + b) = W mean_t(x_t) + b
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
        """Cross-entropy, -log p(class): averaged over utterances, summed over slots.

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
    At every frame the network predicts a distribution over tokens and blank: p_t(k) is the softmax
    probability of token k at frame t. An alignment pi has one token or blank pi_t per frame. All
    alignments that collapse to the target count:
        p(target) = sum over alignments pi of prod_t p_t(pi_t)
        H H _ E L _ L L O _  collapses to  H E L L O
    To collapse an alignment, merge repeats, then drop blanks (_, id 0). A blank means "no token
    here". It also separates a double letter (L _ L) from one held letter (L L).

    logits (B, T, C), frames (B,), targets: B lists of token ids from 1 to C - 1 -> scalar.
    If a target, with blanks between repeats, needs more frames than there are, its loss is 0
    (PyTorch's zero_infinity). data.py removes such utterances from training.
    """
    lengths = torch.tensor([len(ids) for ids in targets])
    labels = [torch.tensor(ids, dtype=torch.long) for ids in targets]
    labels = to_device_of(logits, pad_sequence(labels, batch_first=True))  # (B, S)
    if logits.is_cuda:
        # On a GPU our loop over frames would launch thousands of small kernels. PyTorch's CTC runs
        # the loop inside one kernel and gives the same loss. It takes the lengths from the CPU and
        # copies them to the GPU itself: for each copy (three forward, three backward) the CPU waits
        # until the GPU has nothing left to do. cuDNN's CTC would need utterances of equal length.
        log_probs = logits.log_softmax(-1).transpose(0, 1)  # (T, B, C)
        losses = F.ctc_loss(log_probs, labels, frames, lengths, reduction="none",
                            zero_infinity=True)
        # reduction="mean" divides by the lengths, too, but waits for a fourth copy of them.
        return (losses / to_device_of(losses, lengths.clamp(min=1))).mean()
    # PyTorch's CTC is faster on a CPU too. Ours runs there because it shows the algorithm. It takes
    # less than 1 % of a training step with HuBERT Base. The tests compare the two.
    frames, lengths = to_device_of(logits, frames), to_device_of(logits, lengths)
    return CTC.apply(logits, frames, labels, lengths).mean()


class CTC(torch.autograd.Function):
    """-log p(target) / S of each utterance and its gradient (Graves et al. 2006, Section 4).

    The target a b becomes the N = 2 S + 1 states _ a _ b _. State n has the token k(n). Two
    variables sum the probabilities of partial alignments:
        alpha_t(n), the forward variable: those over frames 0..t that end in state n
        beta_t(n), the backward variable: those over frames t..T-1 that start in state n
    Both contain the factor p_t(k(n)). Dividing by p_t(k(n)) removes the double factor. Every
    alignment occupies one state at frame t, so summing over n gives, for every t:
        p(target) = sum over n of (alpha_t(n) beta_t(n) / p_t(k(n)))
    The alignments that have token k at frame t have this share of p(target):
        posterior_t(k) = (sum over n with k(n) = k of (alpha_t(n) beta_t(n) / p_t(k))) / p(target)
    Only these alignments contain p_t(k), each once, so p(target) is linear in p_t(k):
        d log p(target) / d log p_t(k) = posterior_t(k)
    p_t is the softmax of the logits, so d log p_t(j) / d logit_t(k) = [j = k] - p_t(k). The
    posteriors of a frame sum to 1. The chain rule then gives
        d(-log p(target)) / d logit_t(k) = - sum over j of posterior_t(j) ([j = k] - p_t(k))
                                         = p_t(k) - posterior_t(k)

    Autograd through the loop over frames would give the same gradient, but would be slow.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, frames: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        """logits (B, T, C), frames (B,), labels (B, S), lengths (B,) -> losses (B,)."""
        log_probs = logits.log_softmax(-1)
        B, S = labels.shape
        states = labels.new_zeros(B, 2 * S + 1)  # all blank, then _ a _ b _
        states[:, 1::2] = labels
        log_joint = _log_joint(log_probs, states, frames, 2 * lengths + 1)  # (B, T, N)
        log_p = log_joint[:, 0].logsumexp(-1)  # every valid frame gives the same value
        ctx.save_for_backward(log_probs, states, log_joint, lengths)
        return -log_p.masked_fill(log_p == -inf, 0) / lengths.clamp(min=1)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the logits: grad_output * (softmax - posterior) / S, (B, T, C)."""
        log_probs, states, log_joint, lengths = ctx.saved_tensors
        state_posterior = log_joint.softmax(-1)  # (B, T, N); the softmax divides by p(target)
        # It is NaN where there is no alignment. nan_to_num also hides NaN logits in the gradient,
        # but their loss stays NaN, so the run still stops.
        state_posterior = state_posterior.nan_to_num(0)
        tokens = states[:, None].expand_as(state_posterior)  # k(n)
        posterior = torch.zeros_like(log_probs).scatter_add(2, tokens, state_posterior)  # (B, T, C)
        softmax = log_probs.exp()
        scale = (grad_output / lengths.clamp(min=1))[:, None, None]
        gradient = scale * (softmax - posterior)
        # True in padding, and for a target that needs more frames than there are.
        no_alignment = state_posterior.sum(2, keepdim=True) == 0
        return gradient.masked_fill(no_alignment, 0), None, None, None


def _log_joint(log_probs: Tensor, states: Tensor, frames: Tensor, sizes: Tensor) -> Tensor:
    """The log probability of all alignments that are in state n at frame t: (B, T, N).

    This is log (alpha_t(n) beta_t(n) / p_t(k(n))). Utterance b has sizes[b] valid states.
    The backward variables are the forward variables of the reversed frames with the reversed
    target. So one loop over frames computes both, in a batch of 2 B rows. Two loops would take
    almost twice as long.
    """
    B, T = log_probs.shape[:2]
    both_log_probs = torch.cat([log_probs, _reverse(log_probs, frames)])  # (2 B, T, C)
    both_states = torch.cat([states, _reverse(states, sizes)])  # (2 B, N)
    tokens = both_states[:, None].expand(-1, T, -1)  # k(n), (2 B, T, N)
    emissions = both_log_probs.gather(2, tokens)  # log p_t(k(n)), (2 B, T, N)
    alpha, beta = _forward_variables(emissions, both_states).chunk(2)
    beta = _reverse(beta, frames, fill=-inf)
    beta = _reverse(beta.transpose(1, 2), sizes, fill=-inf).transpose(1, 2)
    return alpha + beta - emissions[:B]


def _forward_variables(emissions: Tensor, states: Tensor) -> Tensor:
    """log alpha_t(n), for all partial alignments over frames 0..t that end in state n: (B, T, N).

    emissions (B, T, N) hold log p_t(k(n)). An alignment begins with the first blank or the first
    token and walks through the states _ a _ b _ from left to right. At each frame it stays in its
    state, steps to the next one, or jumps over the blank between two different tokens:
        alpha_t(n) = p_t(k(n)) (alpha_t-1(n) + alpha_t-1(n - 1) + [may jump to n] alpha_t-1(n - 2))
    It must end in the last token or the last blank; the backward variables ensure this.
    """
    token_two_left = F.pad(states, (2, 0))[:, :-2]
    no_jump = (states == BLANK) | (states == token_two_left)
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
    """Best-path decoding: takes the most probable token per frame and collapses the sequence.

    logits (B, T, C), frames (B,) -> B lists of token ids (Graves et al. 2006, Section 3.2).
    """
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
    loss_waits = True  # see `ctc_loss`

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
        """The log probability of the best alignment, divided by the number of tokens S.

        S counts the predicted tokens. If the prediction is empty, S is 1. Summing over all
        alignments would be exact, but needs too much memory for an hour-long recording.
        """
        logits = self.logits(features, frames)
        best = _fill_padding(logits.log_softmax(-1).amax(-1), to_device_of(logits, frames)).sum(1)
        tokens = [max(1, len(ids)) for ids in greedy_ctc(logits, frames)]
        return [[log_p / count] for log_p, count in zip(best.tolist(), tokens)]


class BLSTMCTCHead(CTCHead):
    """Linear, two bidirectional LSTM layers, each with dropout, Linear, CTC (ASR, SF).

    Letters need context, which the LSTMs provide. Each direction is a separate LSTM. The backward
    LSTM reads the reversed valid frames, so padding always comes last.
    DIFFERS: the released code uses packed sequences. They give the same numbers, but PyTorch runs
    them five times slower on a CPU.
    """

    def __init__(self, dim: int, classes: int, hidden: int = 1024):
        super().__init__(dim, classes, hidden)
        widths = (hidden, 2 * hidden)
        # "forward" is the name of a method of nn.Module, so the directions are "ahead" and "back".
        self.ahead = nn.ModuleList(nn.LSTM(width, hidden, batch_first=True) for width in widths)
        self.back = nn.ModuleList(nn.LSTM(width, hidden, batch_first=True) for width in widths)
        self.dropout = nn.Dropout(0.2)
        self.output = nn.Linear(2 * hidden, classes)  # replaces that of CTCHead: two directions

    def logits(self, features: Tensor, frames: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, C)."""
        x, frames = self.project(features), to_device_of(features, frames)  # (B, T, H)
        for forward_lstm, backward_lstm in zip(self.ahead, self.back):
            forward_output, _ = forward_lstm(x)
            backward_output, _ = backward_lstm(_reverse(x, frames))
            x = torch.cat([forward_output, _reverse(backward_output, frames)], dim=2)  # (B, T, 2 H)
            x = self.dropout(x)
        return self.output(x)


def pit_bce(logits: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
    """Permutation-invariant binary cross-entropy (Yu et al. 2017, Fujita et al. 2019).

    logits, labels (B, T, K): does speaker k talk in label frame t? lengths (B,) -> scalar.
    The order of the speakers is arbitrary: "Ann, Bob" and "Bob, Ann" are the same answer. So each
    utterance uses the permutation with the lowest loss:
        loss = sum_b min_p (sum_t mean_k BCE(output k, speaker p(k))) / sum_b lengths[b]
    """
    K = labels.shape[2]
    outputs = logits[:, :, :, None].expand(-1, -1, -1, K)
    speakers = labels.float()[:, :, None, :].expand(-1, -1, K, -1)
    cost = F.binary_cross_entropy_with_logits(outputs, speakers, reduction="none")  # (B, T, K, K)
    cost = _fill_padding(cost, lengths).sum(1)  # (B, K, K): output k against speaker j
    costs = []
    for permutation in permutations(range(K)):
        # Output k is compared with speaker permutation[k]. These are slices, because a list of
        # indices would be copied to the GPU, and the CPU would wait for that.
        pairs = [cost[:, k, speaker] for k, speaker in enumerate(permutation)]  # K times (B,)
        costs.append(sum(pairs) / K)  # (B,)
    return torch.stack(costs).min(0).values.sum() / lengths.sum()


class DiarizationHead(Head):
    """LSTM, Linear: which of K = `classes` speakers talk, every 10 ms (SD)."""

    frame_aligned = True
    certainty_name = "mean probability of a decision"
    # Label frames per LSTM call (10 minutes); the LSTM state carries over between chunks. One call
    # for an hour-long recording would need too much memory.
    CHUNK = 60_000

    def __init__(self, dim: int, classes: int = 2, hidden: int = 512):
        super().__init__()
        self.lstm = nn.LSTM(dim, hidden, batch_first=True)
        self.output = nn.Linear(hidden, classes)

    def logits(self, features: Tensor, frames: Tensor, size: int) -> Tensor:
        """(B, T, D) every 20 ms -> (B, size, K) every 10 ms.

        Each frame is used twice. The last frame is repeated until `size` is reached.
        """
        # DIFFERS: the released code repeats the last frame of the padded batch. Its short
        # utterances end in repeated zero padding; ours repeat their last valid frame.
        index = torch.arange(size, device=features.device) // 2
        twice = gather_frames(features, to_device_of(features, frames), index)  # (B, size, D)
        logits, state = [], None
        for chunk in twice.split(self.CHUNK, dim=1):
            # Packing is unnecessary: padding comes last, and a left-to-right LSTM ignores later
            # frames.
            hidden, state = self.lstm(chunk, state)
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

        HuBERT's window is 25 ms and its stride 20 ms, so T frames mean 2 T to 2 T + 2 labels. Only
        T is known here, so we predict 2 T + 1 labels: at most one too many or too few. The
        prediction ends at most 5 ms after the recording.
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

    def num_loss_terms(self, targets: list) -> int:
        """The number of label frames: a long recording weighs more than a short one."""
        return sum(len(target) for target in targets)


def am_softmax(
    embeddings: Tensor, weight: Tensor, targets: Tensor, margin: float = 0.4, scale: float = 30
) -> Tensor:
    """Additive-margin softmax (Wang et al. 2018): the mean cross-entropy of scaled cosines.

    embeddings (B, H), weight (C, H): one direction per training speaker, targets (B,) -> scalar.
        logit_j = scale (cos_j - margin [j is the target])
    The test has new speakers. The margin pulls embeddings of one speaker together and pushes
    different speakers apart. Cosines lie in [-1, 1], so an unscaled softmax stays nearly uniform;
    the scale sharpens it.
    """
    cosines = F.linear(F.normalize(embeddings), F.normalize(weight))  # (B, C)
    is_target = F.one_hot(targets, len(weight))
    return F.cross_entropy(scale * (cosines - margin * is_target), targets)


class XVectorHead(Head):
    """The x-vector network (Snyder et al. 2018): a speaker embedding (ASV).

    Input projection; dilated convolutions with ReLU (a time-delay network, TDNN); statistics
    pooling (mean and standard deviation over time); two Linear layers with ReLU. The loss
    classifies the training speakers, and uses the output of the second Linear layer. The test
    compares embeddings, which are the output of the first one. Both outputs are after the ReLU.
    """

    TDNN = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))  # kernel size and dilation of each layer
    CONTEXT = 1 + sum((kernel - 1) * dilation for kernel, dilation in TDNN)  # 15 frames

    def __init__(self, dim: int, classes: int, hidden: int = 512):
        super().__init__()
        self.project = nn.Linear(dim, hidden)
        wide = hidden * 1500 // 512  # 1500 in the x-vector network, whose other layers have 512
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
        # DIFFERS: the released code includes one padded frame. It does not clamp the deviation,
        # which is NaN for a single frame.
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

"""Heads and losses against worked vectors of the released code, torch, and brute force.

B utterances, T frames, D = 6 dimensions, C classes, S target tokens, K speakers.
"""

from itertools import permutations, product

import pytest
import torch
import torch.nn.functional as F

from heads import (
    BLSTMCTCHead,
    ClassifierHead,
    CTCHead,
    DiarizationHead,
    XVectorHead,
    am_softmax,
    ctc_loss,
    greedy_ctc,
    pit_bce,
)
from model import frame_count

D = 6
FRAMES = torch.tensor([22, 31, 17])


def labels_of(*rows):
    """Label strings per frame, "10" = only the first speaker talks, as a (T, K) tensor."""
    return torch.tensor([[int(c) for c in row] for row in rows])


def random_labels(size):
    """Two speakers, (size, 2)."""
    return (torch.rand(size, 2) > 0.5).long()


CASES = {  # head, targets of the three utterances
    "one slot": (lambda: ClassifierHead(D, 5, 16), lambda: [4, 0, 2]),
    "three slots": (
        lambda: ClassifierHead(D, (2, 3, 4), 16),
        lambda: [(1, 2, 3), (0, 0, 0), (1, 0, 2)],
    ),
    "CTC": (lambda: CTCHead(D, 7, 16), lambda: [[1, 2, 2, 1], [3, 1, 6, 5, 1], [6, 1]]),
    "BLSTM CTC": (lambda: BLSTMCTCHead(D, 7, 16), lambda: [[1, 2, 2, 1], [3, 1, 6, 5, 1], [6, 1]]),
    "diarization": (
        lambda: DiarizationHead(D, 2, 16),
        lambda: [random_labels(2 * n + 2) for n in FRAMES.tolist()],
    ),
    "x-vector": (lambda: XVectorHead(D, 5, 16), lambda: [4, 0, 2]),
}


@pytest.fixture(params=CASES)
def case(request):
    """A head without dropout, random features of three utterances, targets."""
    torch.manual_seed(0)
    head, targets = (make() for make in CASES[request.param])
    return head.eval(), torch.randn(3, int(FRAMES.max()), D), targets


def close(a, b, **tolerances):
    """Nested predictions agree; numbers up to float32 rounding."""
    torch.testing.assert_close(a, b, **(tolerances or dict(rtol=1e-4, atol=1e-5)))


# ---------------------------------------------------------------- all heads


def test_padding_and_batch_mates_change_no_loss_and_no_prediction(case):
    head, features, targets = case
    alone = [(features[i : i + 1, :n], FRAMES[i : i + 1]) for i, n in enumerate(FRAMES)]
    losses = torch.stack([head.loss(*alone[i], targets[i : i + 1]) for i in range(3)])
    terms = torch.tensor([head.num_loss_terms(targets[i : i + 1]) for i in range(3)])
    for garbage in (0.0, 50.0):
        padded = torch.cat([features, torch.full((3, 9, D), garbage)], 1)
        for i, n in enumerate(FRAMES):
            padded[i, n:] = garbage
        # loss * terms add up: how several processes average exactly
        close(head.loss(padded, FRAMES, targets), (losses * terms).sum() / terms.sum())
        assert head.num_loss_terms(targets) == terms.sum()
        close(head.predict(padded, FRAMES), [head.predict(*x)[0] for x in alone])


def test_padded_frames_get_no_gradient_and_every_parameter_gets_one(case):
    head, features, targets = case
    features.requires_grad_()
    head.train().loss(features, FRAMES, targets).backward()
    for i, n in enumerate(FRAMES):
        assert features.grad[i, :n].any(1).all() and not features.grad[i, n:].any()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_the_loss_falls_on_examples_that_can_be_memorised(case):
    head, features, targets = case
    optimizer = torch.optim.Adam(head.parameters(), 0.008)
    losses = []
    for _ in range(80):
        losses.append(head.loss(features, FRAMES, targets))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_padding_changes_no_certainty(case):
    head, features, _ = case
    padded = head.certainty(torch.cat([features, torch.full((3, 9, D), 50.0)], 1), FRAMES)
    for i, n in enumerate(FRAMES):
        close(padded[i], head.certainty(features[i : i + 1, :n], FRAMES[i : i + 1])[0])


def test_one_frame_is_enough(case):
    head, features, targets = case
    targets = [
        random_labels(4) if torch.is_tensor(t) else t[:1] if isinstance(t, list) else t
        for t in targets
    ]
    loss = head.loss(features[:, :1], torch.ones(3, dtype=torch.long), targets)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in head.parameters())
    assert len(head.predict(features[:, :1], torch.ones(3, dtype=torch.long))) == 3


@pytest.mark.parametrize(
    "head, count",
    [
        (CTCHead(768, 74), 215_882),  # PR
        (ClassifierHead(768, 12), 196_864 + 3_084),  # KS
        (ClassifierHead(768, (6, 14, 4)), 196_864 + 6_168),  # IC
        (ClassifierHead(768, 4), 196_864 + 1_028),  # ER
        (ClassifierHead(768, 1251), 196_864 + 321_507),  # SID
        (DiarizationHead(768), 2_626_562),  # SD
        (XVectorHead(768, 1211), 6_730_204),  # ASV
    ],
)
def test_heads_have_as_many_parameters_as_the_released_ones(head, count):
    assert sum(p.numel() for p in head.parameters()) == count


def test_lstm_heads_have_as_many_parameters_as_the_released_ones():
    with torch.device("meta"):
        heads = BLSTMCTCHead(768, 32), BLSTMCTCHead(768, 109)  # ASR, SF
    assert [sum(p.numel() for p in head.parameters()) for head in heads] == [42_828_832, 42_986_605]


def test_flags_tell_the_loop_what_it_may_do():
    assert [
        head.needs_only_mean
        for head in (ClassifierHead, CTCHead, BLSTMCTCHead, DiarizationHead, XVectorHead)
    ] == [True, False, False, False, False]
    assert (
        DiarizationHead.frame_aligned
        and not XVectorHead.frame_aligned
        and not ClassifierHead.frame_aligned
    )


# ---------------------------------------------------------------- classifier


def fill(linear, scale):
    """The weights of the worked vectors, for a scale s.

    W.flat[i] = ((i mod 7) - 3) 0.1 s, b[i] = ((i mod 5) - 2) 0.01 s.
    """
    i, j = torch.arange(linear.weight.numel()), torch.arange(linear.bias.numel())
    linear.weight.data = ((i % 7 - 3) * 0.1 * scale).view_as(linear.weight)
    linear.bias.data = (j % 5 - 2) * 0.01 * scale


def filled_head(classes):
    """A classifier, 3 -> 4 -> classes, and the features of the worked vectors."""
    head = ClassifierHead(3, classes, 4)
    fill(head.project, 1), fill(head.output, 2)
    return head, ((torch.arange(24) % 11 - 5) * 0.25).view(2, 4, 3), torch.tensor([4, 2])


def test_classifier_gives_the_released_logits_and_losses():
    head, features, frames = filled_head(5)
    close(
        head.logits(features, frames)[0],
        torch.tensor(
            [
                [-0.02775, -0.0415, 0.00075, 0.0045, 0.02925],
                [-0.154, -0.064, -0.0755, 0.0845, 0.003],
            ]
        ),
    )
    head, features, frames = filled_head(12)
    assert head.loss(features, frames, [0, 3]).item() == pytest.approx(2.443435, abs=1e-6)
    assert head.loss(features, frames, [3, 11]).item() == pytest.approx(2.498060, abs=1e-6)
    assert head.predict(features, frames) == [9, 5]


def test_mean_first_equals_mean_last_and_a_cached_mean_gives_the_same_logits():
    head, features, frames = filled_head(5)
    project = head.project(features)
    mean_last = torch.stack([project[0, :4].mean(0), project[1, :2].mean(0)])
    close(head.logits(features, frames)[0], head.output(mean_last))
    pooled = torch.stack([features[0, :4].mean(0), features[1, :2].mean(0)])[:, None]  # (B, 1, D)
    close(head.logits(pooled, torch.tensor([1, 1]))[0], head.output(mean_last))


def test_several_slots_add_their_losses_and_are_predicted_one_by_one():
    head = ClassifierHead(7, (2, 3, 2), 7)
    for linear in (head.project, head.output):
        linear.weight.data, linear.bias.data = torch.eye(7), torch.zeros(7)
    logits = torch.tensor(
        [
            [2, 0, 0, 1, 3, 0.5, 0.5],
            [0, 1, 4, 0, 0, 0, 2],
            [0, 1, 4, 0, 0, 0, 2],
            [1, 1, 0, 0, 0, 2, 2],
        ]
    )
    targets, ones = [(0, 2, 0), (1, 0, 1), (1, 0, 0), (0, 0, 0)], torch.ones(4, dtype=torch.long)
    assert head.loss(logits[:, None], ones, targets).item() == pytest.approx(1.60679007, abs=1e-6)
    predictions = head.predict(logits[:, None], ones)
    assert [tuple(p) == t for p, t in zip(predictions, targets)] == [
        True,
        True,
        False,
        True,
    ]  # ties: the first class


# ---------------------------------------------------------------- CTC


def collapse(alignment):
    """The target of an alignment: repeats merged, then blanks dropped."""
    return [k for i, k in enumerate(alignment) if k != 0 and (i == 0 or alignment[i - 1] != k)]


@pytest.mark.parametrize(
    "T, C, target",
    [(1, 3, [2]), (3, 3, [1, 2]), (4, 3, [1, 1]), (5, 3, [2, 1, 1]), (5, 4, [3, 1, 3]), (3, 3, [])],
)
def test_ctc_is_the_sum_over_all_alignments_that_collapse_to_the_target(T, C, target):
    torch.manual_seed(T)
    logits = torch.randn(1, T, C, requires_grad=True)
    log_probs = logits.log_softmax(-1)[0]
    scores = [
        sum(log_probs[t, k] for t, k in enumerate(a))
        for a in product(range(C), repeat=T)
        if collapse(a) == target
    ]
    expected = -torch.stack(scores).logsumexp(0) / max(1, len(target))
    loss = ctc_loss(logits, torch.tensor([T]), [target])
    close(loss, expected)
    close(*(torch.autograd.grad(x, logits)[0] for x in (loss, expected)))


def test_the_gradient_of_ctc_is_softmax_minus_posterior_and_zero_in_padding():
    torch.manual_seed(0)
    (T, C), target = (5, 4), [3, 1, 3]
    logits = torch.randn(2, T + 2, C, dtype=torch.double, requires_grad=True)
    softmax = logits[0].softmax(-1)
    posterior = torch.zeros(T, C, dtype=torch.double)
    for alignment in product(range(C), repeat=T):
        if collapse(alignment) == target:
            posterior[range(T), alignment] += softmax[range(T), alignment].prod().detach()
    posterior /= posterior.sum(1, keepdim=True)
    loss = ctc_loss(logits, torch.tensor([T, 2]), [target, target])  # does not fit into 2 frames
    (gradient,) = torch.autograd.grad(7 * loss, logits)
    expected = 7 * (softmax[:T] - posterior) / len(target) / 2  # a mean over two utterances
    close(gradient[0, :T], expected.detach(), rtol=1e-9, atol=1e-12)
    assert not gradient[0, T:].any() and not gradient[1].any()


def test_the_gradient_of_ctc_is_its_derivative():
    torch.manual_seed(0)
    logits = torch.randn(3, 7, 5, dtype=torch.double, requires_grad=True)
    frames, targets = torch.tensor([7, 4, 1]), [[1, 1, 2], [], [4]]
    assert torch.autograd.gradcheck(lambda x: ctc_loss(x, frames, targets), logits)


@pytest.mark.parametrize("T, B, C, S", [(75, 6, 32, 20), (200, 3, 74, 60)])
def test_ctc_has_torchs_values_and_gradients(T, B, C, S):
    torch.manual_seed(0)
    logits = (3 * torch.randn(B, T, C)).requires_grad_()
    frames, lengths = torch.randint(T // 2, T + 1, (B,)), torch.randint(1, S + 1, (B,))
    labels = torch.randint(1, 4, (B, S))  # few tokens, so many doubles
    lengths[0], frames[0] = S, 3  # does not fit: counts as 0
    expected = F.ctc_loss(
        logits.double().log_softmax(-1).transpose(0, 1), labels, frames, lengths, zero_infinity=True
    )
    loss = ctc_loss(logits, frames, [row[:n].tolist() for row, n in zip(labels, lengths)])
    close(loss.double(), expected)
    ours, torchs = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
    close(ours, torchs, rtol=1e-3, atol=1e-6)
    assert not ours[0].any()


def test_our_ctc_also_runs_where_frames_lie_on_another_device():
    logits = torch.zeros(2, 5, 4, device="meta", requires_grad=True)  # shapes without values
    ctc_loss(logits, torch.tensor([5, 3]), [[1, 2], [1]]).backward()
    assert logits.grad.shape == logits.shape


@pytest.mark.parametrize(
    "targets, frames, expected",
    [
        ([[1], [1, 2]], [2, 3], 1.4743494987),
        ([[1], [1, 1]], [2, 2], 0.8369882107),
        ([[1], [1, 1]], [2, 3], 1.876708984),
    ],
)
def test_ctc_on_uniform_scores_gives_the_released_values(targets, frames, expected):
    assert ctc_loss(torch.zeros(2, 3, 4), torch.tensor(frames), targets).item() == pytest.approx(
        expected, abs=1e-6
    )


def test_a_nan_logit_is_not_hidden_by_the_rule_for_impossible_targets():
    logits = torch.zeros(1, 4, 3)
    logits[0, 1] = torch.nan
    assert ctc_loss(logits, torch.tensor([4]), [[1]]).isnan()


@pytest.mark.parametrize(
    "best, expected",
    [
        ([0, 38, 38, 0, 11, 47, 47, 0, 52, 0, 1, 0], [38, 11, 47, 52, 1]),  # D1 HELLO
        ([26, 40, 59, 0, 59, 15, 50, 0, 1, 1], [26, 40, 59, 59, 15, 50, 1]),  # D2 THIS SONG
        ([46, 1, 9, 1, 61], [46, 1, 9, 1, 61]),  # D3
        ([61, 1, 61, 1], [61, 1, 61, 1]),  # D4
        ([46, 2, 61], [46, 2, 61]),  # D5
        ([11, 8, 15, 0, 15, 18, 1], [11, 8, 15, 15, 18, 1]),  # D6 HELLO in letters
        (
            [19, 15, 4, 28, 3, 39, 4, 5, 0, 5, 4, 40, 3, 0, 3, 18, 17, 1],
            [19, 15, 4, 28, 3, 39, 4, 5, 5, 4, 40, 3, 3, 18, 17, 1],
        ),  # D7 ABBA in a slot
        ([0, 0], []),  # D8
        (
            [0, 11, 11, 0, 5, 15, 0, 15, 8, 4, 4, 0, 4, 0, 7, 4, 2],
            [11, 5, 15, 15, 8, 4, 4, 7, 4, 2],
        ),  # ASR
    ],
)
def test_greedy_decoding_merges_repeats_before_it_drops_blanks(best, expected):
    logits = F.one_hot(torch.tensor([best + [7, 7]]), 75).float()  # two padded frames
    assert greedy_ctc(logits, torch.tensor([len(best)])) == [expected]


def test_the_bidirectional_lstm_is_pytorchs_on_packed_sequences():
    torch.manual_seed(0)
    head, frames = BLSTMCTCHead(D, 5, 8).eval(), torch.tensor([9, 4, 1])
    x = torch.randn(3, 9, D)
    theirs = torch.nn.LSTM(8, 8, num_layers=2, bidirectional=True, batch_first=True)
    for layer, (ahead, back) in enumerate(zip(head.ahead, head.back)):
        for lstm, suffix in ((ahead, ""), (back, "_reverse")):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(theirs, f"{name}_l{layer}{suffix}").data = getattr(lstm, f"{name}_l0").data
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        head.project(x), frames, batch_first=True, enforce_sorted=False
    )
    expected = head.output(
        torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)[0]
    )
    for ours, reference, n in zip(head.logits(x, frames), expected, frames):
        torch.testing.assert_close(ours[:n], reference[:n], atol=1e-6, rtol=1e-5)


def test_dropout_follows_both_lstm_layers():
    torch.manual_seed(0)
    head, x, frames = BLSTMCTCHead(D, 5, 8), torch.randn(1, 9, D), torch.tensor([9])
    calls = []
    head.dropout.register_forward_hook(lambda *_: calls.append(1))
    assert head.dropout.p == 0.2 and not torch.equal(head.logits(x, frames), head.logits(x, frames))
    assert len(calls) == 4


# ---------------------------------------------------------------- diarization

A = [[2, -1], [1, 0.5], [-3, 2], [-0.5, -2]]
PIT = {  # logits, labels, lengths, loss
    "S1": ([A], [["10", "11", "01", "00"]], [4], 0.250506103),
    "S2": ([A], [["01", "11", "10", "00"]], [4], 0.250506103),
    "S3": (
        [[[2, -1], [-1, -1], [1, 1], [-1, 3], [2, -2], [0, 0]]],
        [["10"] * 4 + ["01", "00"]],
        [6],
        0.724602997,
    ),
    "S4": (
        [A, [[-1, 2], [-2, 1], [5, 5], [5, -5]]],
        [["10", "11", "01", "00"], ["10", "10", "00", "00"]],
        [4, 2],
        0.240369037,
    ),
    "S5": ([[[0, 0], [0, 0]]], [["10", "01"]], [2], 0.693147182),
    "S6": ([[[1, -1], [-1, -1]]], [["00", "00"]], [2], 0.563261747),
    "S7": ([A], [["10", "11", "01", "00"]], [2], 0.306882113),
    "S8": ([[[2, -1, -1], [-1, 2, 1], [-2, -2, 3]]], [["010", "101", "100"]], [3], 0.201038495),
}


@pytest.mark.parametrize("logits, labels, lengths, expected", PIT.values(), ids=PIT)
def test_pit_gives_the_released_losses(logits, labels, lengths, expected):
    labels = torch.stack([labels_of(*rows) for rows in labels])
    assert pit_bce(
        torch.tensor(logits).float(), labels, torch.tensor(lengths)
    ).item() == pytest.approx(expected, abs=1e-6)


def test_pit_tries_every_order_of_four_speakers():
    torch.manual_seed(0)
    logits, labels, lengths = (
        torch.randn(2, 9, 4),
        (torch.rand(2, 9, 4) > 0.5).float(),
        torch.tensor([9, 5]),
    )
    orders = list(permutations(range(4)))
    best = [
        min(
            F.binary_cross_entropy_with_logits(logits[i, :n], labels[i, :n][:, p]) * n
            for p in orders
        )
        for i, n in enumerate(lengths.tolist())
    ]
    close(pit_bce(logits, labels, lengths), sum(best) / 14)
    close(pit_bce(logits, labels[:, :, [2, 0, 3, 1]], lengths), sum(best) / 14)


@pytest.mark.parametrize(
    "size, expected",
    [
        (4, [1, 1, 2, 2]),
        (5, [1, 1, 2, 2, 3]),
        (6, [1, 1, 2, 2, 3, 3]),
        (7, [1, 1, 2, 2, 3, 3, 3]),
        (10, [1, 1, 2, 2, 3, 3, 3, 3, 3, 3]),
    ],
)
def test_each_feature_serves_two_labels_and_the_last_one_the_rest(size, expected):
    head, seen = DiarizationHead(1, 2, 4), []
    head.lstm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features, frames = (
        torch.tensor([[1.0, 2, 3, 4], [1, 2, 3, 9]])[:, :, None],
        torch.tensor([4, 3]),
    )
    head.logits(features, frames, size)
    assert seen[0][1, :, 0].tolist() == expected


@pytest.mark.parametrize("samples", range(16_000, 16_320, 20))
def test_diarization_predicts_a_label_every_10_ms_until_the_end_of_the_recording(samples):
    head, T = DiarizationHead(D, 3, 8), frame_count(samples)
    (rows,) = head.predict(torch.randn(1, T, D), torch.tensor([T]))
    assert abs(len(rows) - samples // 160) <= 1
    assert len(rows) * 160 - samples <= 80  # 5 ms
    assert all(len(row) == 3 and 0 < min(row) and max(row) < 1 for row in rows)


# ---------------------------------------------------------------- x-vector

W = [[1.0, 0, -1], [0, 2, 1]]  # a column per speaker, as in the released code
SINES = torch.arange(1.0, 21).view(4, 5).sin().tolist()


@pytest.mark.parametrize(
    "x, weight, targets, expected",
    [
        ([[3.0, 4], [1, 0]], W, [0, 1], 30.0),
        ([[3.0, 4], [1, 0]], W, [1, 0], 3.0012388),
        ([[3.0, 4], [1, 0]], W, [2, 2], 47.4865189),
        ([[3.0, 4], [1, 0]], W, [0, 0], 9.0),
        ([[0.2, 0, 1, 0.5], [0, 0.3, 0.1, 0], [1, 1, 1, 1]], SINES, [4, 0, 2], 25.3227177),
        ([[0.0, 0, 0, 0]], SINES, [1], 13.3862963),
    ],
)
def test_am_softmax_gives_the_released_losses(x, weight, targets, expected):
    loss = am_softmax(torch.tensor(x), torch.tensor(weight).T, torch.tensor(targets))
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_am_softmax_is_the_papers_formula():
    torch.manual_seed(0)
    x, weight, targets = torch.randn(4, 5), torch.randn(3, 5), torch.tensor([0, 2, 1, 1])
    losses = []
    for row, y in zip(x, targets):
        cosine = [(row @ w / row.norm() / w.norm()) for w in weight]
        right = (30 * (cosine[y] - 0.4)).exp()
        losses.append(
            -(right / (right + sum((30 * c).exp() for j, c in enumerate(cosine) if j != y))).log()
        )
    close(am_softmax(x, weight, targets), torch.stack(losses).mean())


def test_embedding_is_the_released_network_on_the_valid_frames():
    torch.manual_seed(0)
    head, features, frames = XVectorHead(D, 5, 16), torch.randn(2, 30, D), torch.tensor([20, 30])
    for i, n in enumerate(frames):
        x = head.project(features[i, :n])  # (n, H)
        for (convolution, _), (seen, apart) in zip(
            head.tdnn, [(5, 1), (3, 2), (3, 3), (1, 1), (1, 1)]
        ):
            windows = torch.stack(
                [x[k * apart : len(x) - (seen - 1 - k) * apart] for k in range(seen)]
            )  # (seen, T, H)
            x = (torch.einsum("stc,ocs->to", windows, convolution.weight) + convolution.bias).relu()
        assert x.shape == (n - 14, 16 * 1500 // 512)
        embedding = head.linear1(torch.cat([x.mean(0), x.std(0)])).relu()
        close(head.embed(features, frames)[i], embedding, rtol=1e-3, atol=1e-4)
        close(
            torch.tensor(head.predict(features, frames)[i]),
            embedding / embedding.norm(),
            rtol=1e-3,
            atol=1e-4,
        )


def test_a_short_utterance_is_its_last_frame_repeated():
    torch.manual_seed(0)
    head, features = XVectorHead(D, 5, 16), torch.randn(1, 4, D)
    longer = torch.cat([features, features[:, -1:].expand(1, 11, D)], 1)
    close(head.embed(features, torch.tensor([4])), head.embed(longer, torch.tensor([15])))


# ---------------------------------------------------------------- how sure a head is


def test_a_classifier_is_as_sure_as_the_probability_of_its_class_in_each_slot():
    torch.manual_seed(0)
    head, features = ClassifierHead(D, (2, 3), 16), torch.randn(3, 31, D)
    for i, logits in enumerate(zip(*head.logits(features, FRAMES))):
        classes = head.predict(features, FRAMES)[i]
        expected = [slot.softmax(0)[k].item() for slot, k in zip(logits, classes)]
        close(head.certainty(features, FRAMES)[i], expected)


def test_ctc_is_as_sure_as_the_most_probable_alignment_per_token():
    torch.manual_seed(1)
    head, features = CTCHead(D, 3, 16), 9 * torch.randn(1, 6, D)
    p = head.logits(features, torch.tensor([5])).softmax(-1)[0]
    best = max(
        sum(p[t, k].log().item() for t, k in enumerate(alignment))
        for alignment in product(range(3), repeat=5)
    )
    tokens = head.predict(features, torch.tensor([5]))[0]
    assert len(tokens) > 1
    close(head.certainty(features, torch.tensor([5])), [[best / len(tokens)]])
    own = ctc_loss(head.logits(features, torch.tensor([5])), torch.tensor([5]), [tokens])
    assert best / len(tokens) < -own  # all alignments together are more probable


def test_ctc_without_a_token_is_as_sure_as_the_whole_alignment():
    head = CTCHead(D, 3, 16)
    torch.nn.init.zeros_(head.output.weight)
    head.output.bias.data = torch.tensor([2.0, 0.0, 0.0])
    log_p = head.output.bias.log_softmax(0)[0].item()
    assert head.predict(torch.randn(1, 4, D), torch.tensor([4])) == [[]]
    close(head.certainty(torch.randn(1, 4, D), torch.tensor([4])), [[4 * log_p]])


def test_diarization_is_as_sure_as_its_decisions_are_probable_on_average():
    torch.manual_seed(0)
    head, features = DiarizationHead(D, 2, 16), torch.randn(3, 31, D)
    for rows, [sure] in zip(head.predict(features, FRAMES), head.certainty(features, FRAMES)):
        decisions = [max(p, 1 - p) for row in rows for p in row]
        assert sure == pytest.approx(sum(decisions) / len(decisions), abs=1e-5)


def test_diarization_in_chunks_is_the_lstm_over_the_whole_recording(monkeypatch):
    torch.manual_seed(0)
    head, features = DiarizationHead(D, 2, 16), torch.randn(3, 31, D)
    whole = head.predict(features, FRAMES)
    monkeypatch.setattr(DiarizationHead, "CHUNK", 10)
    sizes = []
    head.lstm.register_forward_hook(lambda module, inputs, _: sizes.append(inputs[0].shape[1]))
    close(head.predict(features, FRAMES), whole)
    assert sizes == [10] * 6 + [3]

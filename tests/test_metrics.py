"""Every metric against typed-in vectors of the scorers that SUPERB uses, and against brute force.

The vectors come from running s3prl's metric functions (PER, WER, slots), scikit-learn's ROC curve
with a root finder (EER), and dscore, pyannote.metrics and a 10 ms grid, which agree (DER).
"""

import doctest
import math
import time
from itertools import permutations

import numpy as np
import pytest
from conftest import TWO_SPEAKERS

import metrics
from engine import statistics
from engine.statistics import benjamini_hochberg, benjamini_yekutieli, paired_t_test
from metrics import (
    accuracy,
    bootstrap,
    diarization_counts,
    diarization_error_rate,
    diarization_errors,
    edit_counts,
    eer,
    eer_threshold,
    equal_error_rate,
    error_rate,
    paired_bootstrap,
    ratio,
    slot_cer_counts,
    slot_f1_counts,
    slot_type_f1,
    slot_value_cer,
)


def test_the_worked_examples_in_the_docstrings_are_true():
    results = [doctest.testmod(module) for module in (metrics, statistics)]
    assert sum(result.attempted for result in results) >= 13
    assert not any(result.failed for result in results)


# Token and character error rates, accuracy


@pytest.mark.parametrize(
    "hypotheses, references, expected",
    [
        (["HH AH0 L OW1"], ["HH AH0 L OW1"], 0.0),
        (["HH AH0 L"], ["HH AH0 L OW1"], 0.25),
        ([""], ["HH AH0 L OW1"], 1.0),
        (["HH AH0 L OW1", "DH IH1 S AO1 NG"], ["HH AH0 L OW1", "DH IH1 S S AO1 NG"], 0.1),
        (["A B C"], [""], 3.0),  # split(" ") makes one empty token of nothing
        (["A  B"], ["A B"], 0.5),  # and one of a double space
    ],
)
def test_error_rate_agrees_with_s3prl_on_tokens_split_as_s3prl_splits_them(
    hypotheses, references, expected
):
    references, hypotheses = (
        [text.split(" ") for text in texts] for texts in (references, hypotheses)
    )
    assert error_rate(references, hypotheses) == pytest.approx(expected)


@pytest.mark.parametrize(
    "hypothesis, reference, expected",
    [
        ("HELO", "HELLO", 0.2),
        ("", "ABC", 1.0),
        ("ABCD", "AB", 1.0),
    ],
)
def test_error_rate_of_characters_is_the_character_error_rate(hypothesis, reference, expected):
    assert error_rate([list(reference)], [list(hypothesis)]) == pytest.approx(expected)


@pytest.mark.parametrize(
    "hypotheses, references, uer, wer",
    [
        (["THE CAT SAT"], ["THE CAT SAT DOWN"], 29.41176470588235, 25.0),
        (["A THE CAT SAT"], ["CAT SAT"], 75.0, 100.0),
        ([""], ["HELLO"], 100.0, 100.0),
        (["THE CAT", "A DOG RAN"], ["THE CAT SAT", "A DOG"], 44.44444444444444, 40.0),
    ],
)
def test_word_and_unit_error_rates_agree_with_s3prl_main(hypotheses, references, uer, wer):
    words = [[text.split() for text in texts] for texts in (references, hypotheses)]
    units = [
        [[unit for word in text for unit in [*word, "|"]] for text in texts] for texts in words
    ]
    assert 100 * error_rate(*words) == pytest.approx(wer)
    assert 100 * error_rate(*units) == pytest.approx(uer)


def test_an_empty_reference_has_no_tokens_but_what_is_said_over_it_counts_as_errors():
    assert edit_counts([], ["A", "B"]) == (2, 0)
    assert error_rate([[], ["A", "B", "C", "D"]], [["A"], ["A", "B", "C", "D"]]) == 0.25
    with pytest.raises(ValueError, match="nothing to score"):
        error_rate([[]], [["A", "B", "C"]])
    with pytest.raises(ValueError, match="nothing to score"):
        error_rate([], [])


def _levenshtein(a, b):
    """Edit distance, one table cell at a time."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i][j] = min(
                table[i - 1][j] + 1,
                table[i][j - 1] + 1,
                table[i - 1][j - 1] + (a[i - 1] != b[j - 1]),
            )
    return table[-1][-1]


def test_edit_counts_agree_with_dynamic_programming_on_random_token_lists():
    rng = np.random.default_rng(0)
    for _ in range(300):
        a, b = ([str(token) for token in rng.integers(4, size=rng.integers(12))] for _ in range(2))
        assert edit_counts(a, b) == (_levenshtein(a, b), len(a))


def test_error_rate_pools_the_corpus_and_is_not_a_mean_of_utterances():
    assert error_rate([["A"], list("BCDEFGHIJ")], [["X"], list("BCDEFGHIJ")]) == pytest.approx(0.1)


def test_accuracy_asks_for_every_slot_and_for_as_many_predictions_as_references():
    assert accuracy(["yes", "no", "up"], ["yes", "no", "down"]) == pytest.approx(2 / 3)
    assert accuracy([["a", "b", "c"], ["a", "b", "c"]], [["a", "b", "c"], ["a", "b", "x"]]) == 0.5
    with pytest.raises(ValueError):
        accuracy(["yes", "no"], ["yes"])


# Slot filling

# id: (hypothesis, reference, slot type F1, slot value CER or None if the reference has no slot)
SLOTS = {
    "S1": ("PLAY B-artist FOO FIGHTERS E-artist", "PLAY B-artist FOO FIGHTERS E-artist", 1.0, 0.0),
    "S2": (
        "PLAY B-artist FOO FIGHTERS E-artist ON SPOTIFY",
        "PLAY B-artist FOO FIGHTERS E-artist ON B-service SPOTIFY E-service",
        2 / 3,
        7 / 19,
    ),
    "S3": (
        "PLAY B-artist FOO E-artist ON B-service SPOTIFY E-service",
        "PLAY B-artist FOO E-artist ON SPOTIFY",
        2 / 3,
        0.0,
    ),
    "S4": ("PLAY MUSIC", "PLAY MUSIC", 1.0, None),
    "S5": ("", "PLAY B-artist FOO E-artist", 0.0, 1.0),
    "S6": ("PLAY B-artist FOO E-artist", "PLAY FOO", 0.0, None),
    "S7": (
        "B-artist ABBA E-artist",
        "B-artist ABBA E-artist AND B-artist QUEEN E-artist",
        1.0,
        5 / 9,
    ),
    "S8": ("B-city LIMA E-city B-city ROMA E-city", "B-city ROMA E-city", 1.0, 0.0),
    "S9": ("B-playlist MY E-playlist_owner", "B-playlist_owner MY E-playlist_owner", 0.0, 1.0),
    "S10": (
        "PLAY B-artist FOO ON B-service SPOTIFY E-service",
        "PLAY B-artist FOO E-artist ON B-service SPOTIFY E-service",
        2 / 3,
        0.3,
    ),
    "S11": (
        "B-artist FOO B-album BAR E-album BAZ E-artist",
        "B-artist FOO BAR BAZ E-artist",
        1.0,
        0.0,
    ),
    "S12": ("B-artist  E-artist X", "B-artist A E-artist X", 0.0, 1.0),
    "S13": (
        "PLAY  B-artist  FOO  FIGHTERS  E-artist",
        "PLAY B-artist FOO FIGHTERS E-artist",
        1.0,
        0.0,
    ),
    "S14": ("PLAYB-artist FOO E-artistON", "PLAY B-artist FOO E-artist ON", 1.0, 0.0),
    "S15": ("B-city LOS ANGELES E-city", "B-city LA E-city", 1.0, 4.5),
    "S16": ("B-album FOO E-album", "B-artist FOO E-artist", 0.0, 1.0),
    "S17": (
        "B-artist FOO AND B-artist BAR E-artist",
        "B-artist FOO E-artist AND B-artist BAR E-artist",
        1.0,
        8 / 3,
    ),
    "S18": ("B-artist BJRK E-artist", "B-artist BJ<unk>RK E-artist", 1.0, 5 / 9),
    "S19": ("E-artist FOO B-artist", "B-artist FOO E-artist", 0.0, 1.0),
    "S20 empty nested slot": (
        "B-artist A B-album  E-album B E-artist",
        "B-artist A B E-artist",
        1.0,
        0.0,
    ),
}


@pytest.mark.parametrize("name", SLOTS)
def test_slot_metrics_agree_with_s3prl_on_one_utterance(name):
    hypothesis, reference, f1, cer = SLOTS[name]
    assert slot_type_f1([reference], [hypothesis]) == pytest.approx(f1)
    assert slot_f1_counts(reference, hypothesis) == (pytest.approx(f1), 1)
    if cer is None:
        assert slot_cer_counts(reference, hypothesis) == (0, 0)
        with pytest.raises(ValueError, match="nothing to score"):
            slot_value_cer([reference], [hypothesis])
    else:
        assert slot_value_cer([reference], [hypothesis]) == pytest.approx(cer)


def test_slot_metrics_agree_with_s3prl_on_a_corpus():
    hypotheses, references, *_ = zip(*(SLOTS[name] for name in ("S1", "S2", "S7", "S5", "S4")))
    assert slot_type_f1(references, hypotheses) == pytest.approx(0.7333333333333333)
    assert slot_value_cer(references, hypotheses) == pytest.approx(15 / 43)


# s3prl's slot metrics, written once more from its definition: scanners instead of regular
# expressions, and its loops as they are.


def _run(text, start):
    """Where the run of non-space characters that begins at `start` ends."""
    while start < len(text) and text[start] != " ":
        start += 1
    return start


def _s3prl_slots(text):
    """All (type, value) from left to right: the shortest non-empty value; no overlap."""
    while "  " in text:
        text = text.replace("  ", " ")
    slots, i = [], 0
    while i < len(text):
        end = _run(text, i + 2)
        if text.startswith("B-", i) and i + 2 < end < len(text):
            kind = text[i + 2 : end]
            close = text.find(f" E-{kind}", end + 2)  # the value has one character or more
            if close >= 0:
                slots.append((kind, text[end + 1 : close]))
                i = close + len(f" E-{kind}")
                continue
        i += 1
    return slots


def _s3prl_clean(value):
    """The value without opening tags ("B-x "), then without closing tags (" E-x")."""
    kept, i = "", 0
    while i < len(value):
        end = _run(value, i + 2)
        if value.startswith("B-", i) and i + 2 < end < len(value):
            i = end + 1
        else:
            kept, i = kept + value[i], i + 1
    cleaned, i = "", 0
    while i < len(kept):
        end = _run(kept, i + 3)
        if kept.startswith(" E-", i) and i + 3 < end:
            i = end
        else:
            cleaned, i = cleaned + kept[i], i + 1
    return cleaned


def _s3prl_f1_and_cer_counts(reference, hypothesis):
    """Slot type F1, and the errors and characters that the slot values add to the corpus."""
    true, found = {}, {}
    for kind, value in _s3prl_slots(reference):
        true.setdefault(kind, []).append(value)
    for kind, value in _s3prl_slots(hypothesis):
        found.setdefault(kind, []).append(_s3prl_clean(value))
    shared = len(set(true) & set(found))
    if not true and not found:
        f1 = 1.0
    elif shared == 0:
        f1 = 0.0
    else:
        precision, recall = shared / len(found), shared / len(true)
        f1 = 2 * precision * recall / (precision + recall)
    errors = characters = 0
    for kind, values in true.items():
        for value in values:
            lowest, best = 100, ""
            for other in found.get(kind, []):
                if _levenshtein(value, other) / len(value) < lowest:
                    lowest, best = _levenshtein(value, other) / len(value), other
            errors += _levenshtein(value, best)
            characters += len(value)
    return f1, errors, characters


def _random_tagged_pair(rng):
    """A reference and a hypothesis: words, tags that nest, cross, stay open, or lie in words."""

    def some(pieces, count):
        return [str(piece) for piece in rng.choice(pieces, size=count)]

    kinds = ["artist", "album", "playlist", "playlist_owner"]
    tags = [f"{side}-{kind}" for side in "BE" for kind in kinds]
    reference = some(["A", "BE", "SEE"], 2)
    for kind in some(kinds, rng.integers(3)):
        inside = some(["A", "BE", "SEE", *tags[:2], *tags[4:6]], rng.integers(1, 4))
        reference += [f"B-{kind}", *inside, f"E-{kind}", *some(["A", "BE"], 1)]
    hypothesis = [piece for piece in reference if rng.random() > 0.1]
    for piece in some(["A", "BE", "", "E-", *tags], rng.integers(6)):
        hypothesis.insert(int(rng.integers(len(hypothesis) + 1)), piece)
    gaps = [str(gap) for gap in rng.choice([" ", "  ", ""], p=[0.85, 0.1, 0.05], size=99)]
    return " ".join(reference), "".join(x + gap for x, gap in zip(hypothesis, gaps)).strip()


def test_slot_metrics_agree_with_s3prls_definition_on_1000_random_tagged_strings():
    rng = np.random.default_rng(14)
    pairs = [_random_tagged_pair(rng) for _ in range(1000)]
    expected = [_s3prl_f1_and_cer_counts(*pair) for pair in pairs]
    nested = [value != _s3prl_clean(value) for _, text in pairs for _, value in _s3prl_slots(text)]
    assert sum(nested) > 200 and sum(characters > 0 for _, _, characters in expected) > 500
    for pair, (f1, errors, characters) in zip(pairs, expected):
        assert slot_f1_counts(*pair) == (pytest.approx(f1), 1), pair
        assert slot_cer_counts(*pair) == (errors, characters), pair
    references, hypotheses = zip(*pairs)
    f1s, errors, characters = zip(*expected)
    assert slot_type_f1(references, hypotheses) == pytest.approx(np.mean(f1s))
    assert slot_value_cer(references, hypotheses) == pytest.approx(sum(errors) / sum(characters))


def test_a_value_a_hundred_times_too_long_counts_as_absent_as_in_s3prl():
    reference = "B-city A E-city"
    for length, errors in ((99, 99), (100, 1)):
        hypothesis = f"B-city {'X' * length} E-city"
        assert slot_cer_counts(reference, hypothesis) == (errors, 1)
        assert _s3prl_f1_and_cer_counts(reference, hypothesis) == (1.0, errors, 1)


# Equal error rate

TRIALS = {  # id: (labels, scores, EER)
    "E1 perfect": ([1, 1, 1, 0, 0, 0], [0.9, 0.8, 0.7, 0.3, 0.2, 0.1], 0.0),
    "E2": ([1, 1, 1, 0, 0, 0], [0.9, 0.8, 0.3, 0.7, 0.2, 0.1], 1 / 3),
    "E3 all tied": ([1, 0, 1, 0], [0.5, 0.5, 0.5, 0.5], 0.5),
    "E4 inverted": ([0, 0, 0, 1, 1, 1], [0.9, 0.8, 0.7, 0.3, 0.2, 0.1], 1.0),
    "E5 ties": ([1, 1, 0, 1, 0, 0], [0.9, 0.6, 0.6, 0.4, 0.4, 0.1], 1 / 3),
    "E6 tie at the boundary": ([1, 1, 0, 0], [0.8, 0.5, 0.5, 0.2], 0.25),
    "E7 unbalanced": ([1, 1, 0, 0, 0, 0, 0], [0.9, 0.4, 0.8, 0.5, 0.3, 0.2, 0.1], 0.4),
    "E8 alternating": ([1, 0, 1, 0, 1, 0, 1, 0], [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 0.5),
    "E9": ([1, 1, 1, 1, 0, 0, 0], [0.95, 0.7, 0.6, 0.2, 0.65, 0.5, 0.1], 1 / 3),
    "E10 slanted edge": ([1, 0, 0, 1, 0, 0, 0], [0.9, 0.7, 0.7, 0.7, 0.2, 0.1, 0], 2 / 9),
    "E11": ([1, 1, 0, 1, 0, 0], [0.9, 0.5, 0.5, 0.5, 0.5, 0.1], 1 / 3),
    "E12": ([1, 0], [0.9, 0.1], 0.0),
    "E13": ([1, 0], [0.1, 0.9], 1.0),
    "E14 negative scores": (
        [1, 1, 1, 0, 0, 0, 0],
        [0.62, -0.10, 0.33, -0.25, 0.41, -0.05, 0.05],
        1 / 3,
    ),
}


def _normal_trials(seed, count, every, gain, digits):
    """Labels and rounded normal scores, as in the vectors E15 and E16."""
    labels = np.array([int(i % every == (1 if every == 2 else 0)) for i in range(count)])
    return labels, np.round(np.random.default_rng(seed).normal(size=count) + gain * labels, digits)


@pytest.mark.parametrize("name", TRIALS)
def test_equal_error_rate_agrees_with_scikit_learn(name):
    labels, scores, expected = TRIALS[name]
    assert equal_error_rate(labels, scores) == pytest.approx(expected, abs=1e-9)
    assert eer(list(zip(labels, scores))) == pytest.approx(expected, abs=1e-9)


def test_equal_error_rate_of_perfect_scores_is_exactly_zero():
    assert equal_error_rate([1, 1, 0], [0.9, 0.8, 0.1]) == 0.0


def test_equal_error_rate_agrees_with_scikit_learn_on_hundreds_of_trials_with_and_without_ties():
    assert equal_error_rate(*_normal_trials(0, 200, 2, 1.0, 4)) == pytest.approx(0.27, abs=1e-9)
    assert equal_error_rate(*_normal_trials(1, 500, 5, 1.5, 1)) == pytest.approx(
        0.19571428571428567, abs=1e-9
    )


def _dense_equal_error_rate(labels, scores):
    """Walk along the ROC in small steps, strictest threshold first, until both errors are equal."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    thresholds = [math.inf, *sorted(set(scores.tolist()), reverse=True)]
    alarms = [np.mean(scores[labels == 0] >= threshold) for threshold in thresholds]
    hits = [np.mean(scores[labels == 1] >= threshold) for threshold in thresholds]
    position = np.linspace(0, len(thresholds) - 1, 4_000 * (len(thresholds) - 1) + 1)
    alarms, hits = (np.interp(position, range(len(thresholds)), curve) for curve in (alarms, hits))
    return alarms[np.argmin(np.abs(1 - hits - alarms))]


def test_equal_error_rate_agrees_with_a_dense_walk_along_the_roc_on_random_trials():
    rng = np.random.default_rng(2)
    for _ in range(150):
        count = rng.integers(3, 25)
        labels = np.r_[0, 1, rng.integers(2, size=count - 2)]
        scores = rng.integers(8, size=count) / 4 + labels * rng.random()
        assert equal_error_rate(labels, scores) == pytest.approx(
            _dense_equal_error_rate(labels, scores), abs=3e-4
        )


def test_equal_error_rate_ignores_the_order_of_trials_and_any_rising_map_of_scores():
    labels, scores = _normal_trials(1, 500, 5, 1.5, 1)
    shuffled = np.random.default_rng(0).permutation(500)
    expected = equal_error_rate(labels, scores)
    assert equal_error_rate(labels[shuffled], scores[shuffled]) == expected
    assert equal_error_rate(labels, np.exp(scores)) == expected
    assert equal_error_rate(1 - labels, -scores) == pytest.approx(expected)


@pytest.mark.parametrize(
    "labels, scores",
    [
        ([1, 1], [0.1, 0.2]),
        ([0, 0], [0.1, 0.2]),
        ([], []),
        ([1, 2], [0.1, 0.2]),
    ],
)
def test_trials_of_one_label_only_are_an_error(labels, scores):
    with pytest.raises(ValueError, match="EER needs labels 0 and 1"):
        equal_error_rate(labels, scores)


def test_scores_that_are_no_numbers_are_counted_in_the_error():
    with pytest.raises(ValueError, match="1 of 2 scores is not a number"):
        equal_error_rate([1, 0], [0.1, math.nan])
    labels = [1, 0] * 150
    with pytest.raises(ValueError, match="3 of 300 scores are not numbers"):
        eer(
            [
                [(label, 0.5) for label in labels],
                [(y, [0.5, math.nan][i < 3]) for i, y in enumerate(labels)],
            ]
        )


def test_weights_mean_the_same_as_repeated_trials_and_a_draw_of_one_label_is_undefined():
    labels, scores = _normal_trials(1, 60, 5, 1.5, 1)
    weights = np.random.default_rng(3).integers(3, size=(5, 60))
    weights[4] = labels
    repeated = [
        equal_error_rate(np.repeat(labels, row), np.repeat(scores, row)) for row in weights[:4]
    ]
    assert eer(np.stack([labels, scores], -1), weights).tolist() == pytest.approx(
        [*repeated, math.nan], nan_ok=True
    )


def test_leading_axes_are_kept_by_both_reductions():
    rng = np.random.default_rng(4)
    pairs = np.stack(
        [np.arange(40) % 2 * np.ones((3, 1)), rng.random((3, 40)) + 1], axis=-1
    )  # (3, 40, 2)
    weights = rng.multinomial(40, np.full(40, 1 / 40), size=6)
    for reduce in (ratio, eer):
        assert reduce(pairs).tolist() == [reduce(part) for part in pairs]
        assert reduce(pairs, weights).shape == (3, 6)
        assert np.allclose(reduce(pairs, weights), [reduce(part, weights) for part in pairs])
    repeated = [ratio(np.repeat(pairs[0], row, axis=0)) for row in weights]
    assert ratio(pairs[0], weights).tolist() == pytest.approx(repeated)



@pytest.mark.parametrize(
    "labels, scores, threshold",
    [
        ([1, 1, 0, 0], [0.9, 0.5, 0.5, 0.2], 0.7),  # the rates cross half way from 0.9 to 0.5
        ([1, 1, 0, 0], [0.9, 0.6, 0.4, 0.2], 0.6),  # perfect: the lowest score of one speaker
        ([1, 1, 0, 0], [0.8, 0.4, 0.6, 0.2], 0.6),  # the rates are 1/2 each from 0.6 on
        ([0, 1, 0, 1, 1], [0.9, 0.8, 0.6, 0.4, 0.2], 0.8 - 0.2 / 3),  # FAR 1/2 to 1, FRR 2/3
        ([1, 0], [0.3, 0.3], 0.3),  # all tie: there is one threshold
        ([0, 1], [0.9, 0.1], 0.9),  # always wrong
    ],
)
def test_the_threshold_of_equal_error_has_the_values_worked_by_hand(labels, scores, threshold):
    assert eer_threshold(labels, scores) == pytest.approx(threshold)


def test_both_error_rates_at_the_threshold_are_the_equal_error_rate():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 2000)
    scores = rng.normal(labels, 1.0)
    threshold = eer_threshold(labels, scores)
    accepted = scores >= threshold
    rate = equal_error_rate(labels, scores)
    assert accepted[labels == 0].mean() == pytest.approx(rate, abs=0.002)
    assert 1 - accepted[labels == 1].mean() == pytest.approx(rate, abs=0.002)


@pytest.mark.parametrize("labels, scores", [([1, 1], [0.1, 0.2]), ([0, 1], [0.1, math.nan])])
def test_a_threshold_of_nothing_is_an_error(labels, scores):
    with pytest.raises(ValueError):
        eer_threshold(labels, scores)


# Diarization error rate


def _turns(text):
    """ "A0–4 B4–10" -> [("A", 0.0, 4.0), ("B", 4.0, 10.0)]"""
    return [(turn[0], *map(float, turn[1:].split("–"))) for turn in text.split()]


# id: (reference, hypothesis, DER in percent, (scored, miss, false alarm, confusion) in seconds)
DIARIZATION = {
    "D1": ("A0–5 B5–10", "x0–5 y5–10", 0, (10, 0, 0, 0)),
    "D2 names swapped": ("A0–5 B5–10", "B0–5 A5–10", 0, (10, 0, 0, 0)),
    "D3": ("A0–6 B4–10", "x0–5 y5–10", 16.6667, (12, 2, 0, 0)),
    "D4": ("A0–4 B4–10", "x0–6 y6–10", 20.0, (10, 0, 0, 2)),
    "D5 false alarm at the end": ("A0–4 B2–8", "x0–4 y2–10", 20.0, (10, 0, 2, 0)),
    "D6": ("A0–4 B4–8", "x0–8", 50.0, (8, 0, 0, 4)),
    "D8": (
        "A0–.05 B.03–.10",
        "x0–.02 x.03–.05 x.08–.09 x.11–.12 y.03–.07 y.08–.10",
        33.3333,
        (0.12, 0.02, 0.02, 0),
    ),
    "D10 both on": ("A.19–3.16 B.5–5", "x0–5.5 y0–5.5", 47.2557, (7.47, 0, 3.53, 0)),
    "D11 swap midway": ("A0–4 B4–8", "x0–2 y2–4 y4–6.5 x6.5–8", 43.75, (8, 0, 0, 3.5)),
    "D12": (
        "A.4–1.88 A2.45–10.08 B.25–3.84",
        "x.4–10.08 y.3–3.9",
        5.3543,
        (12.7, 0.05, 0.63, 0),
    ),
    "D13": ("A0–4 B4–8", "x0–4 y4–6 z6–8", 25.0, (8, 0, 0, 2)),
}


@pytest.mark.parametrize("name", DIARIZATION)
def test_diarization_error_agrees_with_dscore_on_one_recording(name):
    reference, hypothesis, percent, (scored, *errors) = DIARIZATION[name]
    reference, hypothesis = _turns(reference), _turns(hypothesis)
    assert 100 * diarization_error_rate({"r": reference}, {"r": hypothesis}) == pytest.approx(
        percent, abs=5e-5
    )
    assert diarization_errors(reference, hypothesis) == pytest.approx((*errors, scored), abs=1e-9)
    assert diarization_counts(reference, hypothesis) == pytest.approx(
        (sum(errors), scored), abs=1e-9
    )


def test_a_recording_without_a_hypothesis_is_all_miss_and_recordings_are_pooled():
    d7 = diarization_error_rate({"r": _turns("A0–4"), "q": _turns("B1–3")}, {"r": _turns("x0–4")})
    d9 = diarization_error_rate(
        {"r": _turns("A0–10 B5–15"), "q": _turns("A0–2")},
        {"r": _turns("x0–10 y5–15"), "q": _turns("x1–2")},
    )
    assert 100 * d7 == pytest.approx(33.3333, abs=5e-5)
    assert 100 * d9 == pytest.approx(4.5455, abs=5e-5)


def test_silence_on_either_side_is_all_miss_or_all_false_alarm():
    assert diarization_errors([], []) == (0, 0, 0, 0)
    assert diarization_errors(_turns("A1–3"), []) == (2, 0, 0, 2)
    assert diarization_errors([], _turns("x1–3")) == (0, 2, 0, 0)
    with pytest.raises(ValueError, match="nothing to score"):
        diarization_error_rate({"r": []}, {"r": _turns("x1–3")})


def test_a_hypothesis_for_an_unknown_recording_is_an_error():
    with pytest.raises(ValueError, match="without a reference"):
        diarization_error_rate({"r": _turns("A0–4")}, {"r": [], "q": _turns("A0–4")})


def test_overlapping_turns_of_one_speaker_count_once():
    assert diarization_errors(_turns("A0–3 A2–5 A2–3"), _turns("x0–5")) == (0, 0, 0, 5)
    assert diarization_errors(_turns("A0–5"), _turns("x0–3 x2–5 x3–3")) == (0, 0, 0, 5)


def _frames_to_turns(columns, seconds):
    """One string of 0 and 1 per speaker -> turns, one per frame that is on."""
    return [
        (k, i * seconds, (i + 1) * seconds)
        for k, column in enumerate(columns)
        for i, on in enumerate(column)
        if on == "1"
    ]


# Columns are speakers' frames; expected: (miss, false alarm, confusion, scored).
@pytest.mark.parametrize(
    "hypothesis, reference, expected",
    [
        (("1100", "0110"), ("1100", "0110"), (0, 0, 0, 4)),
        (("1100", "0110"), ("0110", "1100"), (0, 0, 0, 4)),
        (("101010", "001100"), ("111100", "000010"), (1, 1, 1, 5)),
        (("00", "00"), ("10", "01"), (2, 0, 0, 2)),
        (("10", "00"), ("00", "00"), (0, 1, 0, 0)),
        (("100", "010", "001"), ("011", "100", "010"), (1, 0, 0, 4)),
    ],
)
def test_errors_of_whole_frames_agree_with_counting_by_hand(hypothesis, reference, expected):
    assert (
        diarization_errors(_frames_to_turns(reference, 1), _frames_to_turns(hypothesis, 1))
        == expected
    )


def _median_filtered(column, width):
    """Median over `width` frames with zeros beyond both ends."""
    padded = "0" * (width // 2) + column + "0" * (width // 2)
    return "".join("01"[padded[i : i + width].count("1") > width // 2] for i in range(len(column)))


@pytest.mark.parametrize(
    "median, threshold, a, b, overall",
    [
        (1, 0.3, 33.3333, 36.3636, 35.8209),
        (1, 0.5, 33.3333, 10.9091, 14.9254),
        (1, 0.7, 50.0000, 32.7273, 35.8209),
        (3, 0.3, 33.3333, 27.2727, 28.3582),
        (3, 0.5, 0, 0, 0),
        (3, 0.7, 41.6667, 27.2727, 29.8507),
        (11, 0.3, 41.6667, 23.6364, 26.8657),
        (11, 0.5, 58.3333, 5.4545, 14.9254),
        (11, 0.7, 100.0000, 29.0909, 41.7910),
    ],
)
def test_diarization_error_agrees_with_dscore_from_frames_to_the_pooled_number(
    median, threshold, a, b, overall
):
    frames = {
        "a": ["".join("01"[p > threshold] for p in column) for column in zip(*TWO_SPEAKERS)],
        "b": {
            0.3: [
                "010011111111111111111111111111011110100000101000000100010000",
                "000000010010011010101111111111111111111111111111110001000011",
            ],
            0.5: [
                "000001111101110111111111111111000010000000100000000000000000",
                "000000010010000000001111111111111111111111110111110000000000",
            ],
            0.7: [
                "000001110100110110011111111111000000000000000000000000000000",
                "000000000000000000001110100010110011110101110111000000000000",
            ],
        }[threshold],
    }
    references = {"a": _turns("Z0–.05 Y.03–.10"), "b": _turns("A.05–.30 B.20–.50")}
    hypotheses = {
        name: _frames_to_turns([_median_filtered(column, median) for column in columns], 0.01)
        for name, columns in frames.items()
    }
    for name, percent in (("a", a), ("b", b)):
        one = diarization_error_rate({name: references[name]}, {name: hypotheses[name]})
        assert 100 * one == pytest.approx(percent, abs=5e-5)
    assert 100 * diarization_error_rate(references, hypotheses) == pytest.approx(overall, abs=5e-5)


def _grid_errors(reference, hypothesis):
    """DER parts in seconds on a grid of 10 ms, with every map of speakers tried, frame by frame."""

    def frames(turns, speaker):
        return {
            i
            for who, start, end in turns
            if who == speaker
            for i in range(round(100 * start), round(100 * end))
        }

    true = [frames(reference, speaker) for speaker in {who for who, _, _ in reference}]
    found = [frames(hypothesis, speaker) for speaker in {who for who, _, _ in hypothesis}]
    miss = false_alarm = both = 0
    for i in set().union(*true, *found):
        n, m = sum(i in on for on in true), sum(i in on for on in found)
        miss, false_alarm, both = (
            miss + max(n - m, 0),
            false_alarm + max(m - n, 0),
            both + min(n, m),
        )
    padded = found + [set()] * len(true)
    right = max(
        sum(len(t & f) for t, f in zip(true, chosen)) for chosen in permutations(padded, len(true))
    )
    return miss / 100, false_alarm / 100, (both - right) / 100, sum(map(len, true)) / 100


def test_diarization_errors_agree_with_a_grid_of_10_ms_on_random_recordings():
    rng = np.random.default_rng(5)

    def recording(names):
        starts = rng.integers(80, size=rng.integers(1, 7))
        return [
            (str(rng.choice(list(names))), start / 100, (start + length) / 100)
            for start, length in zip(starts, rng.integers(1, 60, size=len(starts)))
        ]

    for _ in range(120):
        reference, hypothesis = (
            recording("ABC"[: rng.integers(1, 4)]),
            recording("wxyz"[: rng.integers(1, 5)]),
        )
        assert diarization_errors(reference, hypothesis) == pytest.approx(
            _grid_errors(reference, hypothesis), abs=1e-9
        )


def test_eight_speakers_on_each_side_are_mapped():
    reference = [(f"speaker {k}", 2.0 * k, 2.0 * k + 3) for k in range(8)]
    hypothesis = [(f"cluster {7 - k}", 2.0 * k, 2.0 * k + 3) for k in range(8)]
    assert diarization_errors(reference, hypothesis) == (0, 0, 0, 24)


# Error bars


def test_the_bootstrap_agrees_with_the_standard_error_of_a_mean():
    values = np.random.default_rng(6).normal(10, 3, size=400)
    value, low, high = bootstrap(np.stack([values, np.ones(400)], -1), ratio, samples=4000)
    assert value == pytest.approx(values.mean())
    standard_error = values.std() / 20
    assert (value - low, high - value) == (pytest.approx(1.96 * standard_error, rel=0.07),) * 2


def test_the_bootstrap_of_the_equal_error_rate_agrees_with_resampling_trials_one_by_one():
    labels, scores = _normal_trials(1, 500, 5, 1.5, 1)
    rng = np.random.default_rng(7)
    draws = [
        equal_error_rate(labels[pick], scores[pick]) for pick in rng.integers(500, size=(1000, 500))
    ]
    value, low, high = bootstrap(np.stack([labels, scores], -1), eer)
    assert value == equal_error_rate(labels, scores)
    assert [low, high] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.008)


def _paired_systems(rng, utterances, shift):
    """Two systems that share most of their spread; b is `shift` standard errors higher than a."""
    shared, noise = rng.normal(size=(1, utterances)), rng.normal(size=(2, utterances))
    a, b = shared * 3 + noise
    b = b + shift * math.sqrt(2 / utterances)
    return [np.stack([values, np.ones(utterances)], -1) for values in (a, b)]


@pytest.mark.parametrize(
    "shift, expected, tolerance",
    [
        (0, 0.05, 0.033),  # 3 standard deviations of a binomial with 400 draws
        (3, 0.85, 0.054),  # a normal at 3 is beyond 1.96 in 85 % of cases
        (5, 1.00, 0.010),
    ],
)
def test_intervals_of_paired_systems_exclude_zero_as_often_as_they_should(
    shift, expected, tolerance
):
    rng = np.random.default_rng(13)
    excluded, as_normal = [], []
    for simulation in range(400):
        a, b = _paired_systems(rng, 100, shift)
        difference, low, high = paired_bootstrap(a, b, ratio, samples=400, seed=simulation)
        assert low < difference < high
        excluded.append(low > 0 or high < 0)
        values = (b - a)[:, 0]
        as_normal.append(abs(values.mean()) > 1.96 * values.std(ddof=1) / 10)
    assert np.mean(excluded) == pytest.approx(expected, abs=tolerance)
    assert (
        np.mean(np.equal(excluded, as_normal)) > 0.95
    )  # the same verdict as the z-test of the same data


def test_pairing_removes_what_is_hard_for_both_systems():
    a, b = _paired_systems(np.random.default_rng(9), 200, 5)
    _, low, high = paired_bootstrap(a, b, ratio)
    assert low > 0
    (_, low_a, high_a), (_, low_b, high_b) = bootstrap(a, ratio), bootstrap(b, ratio)
    assert high - low < 0.7 * min(high_a - low_a, high_b - low_b)


def test_training_seeds_that_differ_widen_the_interval_and_seeds_that_agree_do_not():
    run = [(1, 10), (2, 10), (3, 10), (4, 10)] * 20
    assert bootstrap([run, run, run], ratio)[1:] == pytest.approx(
        bootstrap(run, ratio)[1:], abs=0.005
    )
    alike = [[(k, 10)] * 50 for k in (1, 3)]  # utterances do not vary, seeds do
    assert bootstrap(alike, ratio) == pytest.approx((0.2, 0.1, 0.3))
    assert paired_bootstrap(alike, [[(4, 10)] * 50], ratio) == pytest.approx((0.2, 0.1, 0.3))


def test_two_systems_with_as_many_seeds_draw_the_same_seeds_and_others_draw_them_apart():
    a, b, c = ([[(k, 10)] * 50 for k in seeds] for seeds in ((1, 3), (2, 4), (2, 4, 3)))
    assert paired_bootstrap(a, b, ratio) == pytest.approx((0.1, 0.1, 0.1))  # seed by seed
    assert paired_bootstrap(a, b[::-1], ratio) == pytest.approx((0.1, -0.1, 0.3))
    difference, low, high = paired_bootstrap(a, c, ratio)
    assert difference == pytest.approx(0.1) and low < 0 and high > 0.2


def test_the_bootstrap_of_several_seeds_agrees_with_drawing_utterances_then_seeds_one_by_one():
    rng = np.random.default_rng(8)
    skill = np.array([0.0, 0.4, 0.6])[:, None]  # of three seeds
    errors = (rng.normal(size=80) + rng.normal(size=(3, 80)) + skill + 3).clip(0)
    runs = np.stack([errors, np.full((3, 80), 5)], -1)
    means = []
    for _ in range(2000):
        utterances, seeds = rng.integers(80, size=80), rng.integers(3, size=3)
        means.append(np.mean([ratio(runs[seed][utterances]) for seed in seeds]))
    value, low, high = bootstrap(runs, ratio, samples=2000)
    assert value == pytest.approx(errors.mean() / 5)
    assert [low, high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.01)


def test_seeds_with_different_numbers_of_utterances_and_no_utterance_are_errors():
    with pytest.raises(ValueError, match=r"different numbers of utterances: \[29, 30\]"):
        bootstrap([[(1, 5)] * 30, [(1, 5)] * 29], ratio)
    for reduce in (ratio, eer):
        with pytest.raises(ValueError, match="nothing to score"):
            bootstrap([], reduce)


def test_two_systems_with_different_numbers_of_seeds_compare_but_not_with_different_utterances():
    rng = np.random.default_rng(10)
    a, b = np.stack([rng.integers(5, size=(3, 30)), np.full((3, 30), 5)], -1), [[(1, 5)] * 30] * 2
    difference, low, high = paired_bootstrap(a, b, ratio)
    assert difference == pytest.approx(0.2 - a[..., 0].mean() / 5) and low < difference < high
    with pytest.raises(ValueError, match="same utterances"):
        paired_bootstrap(a, [[(1, 5)] * 29], ratio)


def test_the_bootstrap_is_a_function_of_its_seed_and_makes_as_many_resamples_as_asked():
    a, b = _paired_systems(np.random.default_rng(11), 50, 1)
    assert paired_bootstrap(a, b, ratio, seed=1) == paired_bootstrap(a, b, ratio, seed=1)
    assert paired_bootstrap(a, b, ratio, seed=1) != paired_bootstrap(a, b, ratio, seed=2)
    _, low, high = bootstrap(a, ratio, samples=1)
    assert low == high


def test_two_equal_systems_differ_by_exactly_nothing():
    a, _ = _paired_systems(np.random.default_rng(12), 50, 0)
    assert paired_bootstrap(a, a, ratio) == (0, 0, 0)


def test_resamples_with_nothing_to_score_are_left_out():
    _, low, high = bootstrap([(1, 4), (0, 0)], ratio)  # a quarter of the draws hold no slot
    assert (low, high) == (0.25, 0.25)
    assert not any(map(math.isnan, bootstrap([(1, 0.9), (0, 0.1)], eer)))


def test_a_hundred_resamples_of_all_trials_of_voxceleb_take_seconds():
    labels, scores = _normal_trials(0, 37_720, 2, 1.0, 6)
    start = time.perf_counter()
    bootstrap(np.stack([labels, scores], -1), eer, samples=100)
    assert time.perf_counter() - start < 5


# Significance over training seeds


def _differences_with(t, freedom):
    """`freedom` + 1 numbers whose mean is t standard errors."""
    values = np.random.default_rng(freedom).normal(size=freedom + 1)
    values = (values - values.mean()) / values.std(ddof=1)
    return values + t / math.sqrt(freedom + 1)


@pytest.mark.parametrize(
    "freedom, t, p",
    [
        (1, 12.706, 0.05),
        (2, 4.303, 0.05),
        (4, 2.776, 0.05),
        (9, 1.833, 0.10),
        (9, 2.262, 0.05),
        (9, 3.250, 0.01),
        (9, 4.781, 0.001),
        (30, 2.042, 0.05),
        (120, 1.980, 0.05),
        (5000, 1.960, 0.05),  # the normal distribution
    ],
)
def test_the_t_test_agrees_with_the_printed_tables(freedom, t, p):
    assert paired_t_test(_differences_with(t, freedom)) == pytest.approx((t, p), rel=2e-3)
    assert paired_t_test(_differences_with(-t, freedom)) == pytest.approx((-t, p), rel=2e-3)


def test_the_t_test_agrees_with_students_own_example():
    # Hours of sleep gained with two drugs (Student, 1908), differences of ten patients; p as in R.
    sleep = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    assert paired_t_test(sleep) == pytest.approx((4.0621, 0.002833), abs=5e-5)


@pytest.mark.parametrize("t", [1e-3, 0.1, 1.0, 2.0, 5.0, 11.6, 100.0])
def test_the_t_test_agrees_with_the_closed_forms_of_one_two_and_three_degrees_of_freedom(t):
    tails = {
        1: 2 / math.pi * math.atan(1 / t),
        2: 1 - t / math.sqrt(2 + t * t),
        3: 2 / math.pi * (math.atan(math.sqrt(3) / t) - math.sqrt(3) * t / (3 + t * t)),
    }
    for freedom, p in tails.items():
        assert paired_t_test(_differences_with(t, freedom))[1] == pytest.approx(p, rel=1e-6)


@pytest.mark.parametrize("freedom", [4, 9, 25, 200])
def test_the_t_test_agrees_with_a_sum_over_students_density(freedom):
    x = np.linspace(0, 60, 600_001)
    density = (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    area = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    for t in (0.3, 1.0, 2.5, 4.0):
        p = 1 - np.interp(t, x, area) / area[-1]
        assert paired_t_test(_differences_with(t, freedom))[1] == pytest.approx(p, rel=1e-3)


def test_equal_differences_are_certain_and_no_difference_is_none():
    assert paired_t_test([0.5, 0.5, 0.5]) == (math.inf, 0.0)
    assert paired_t_test([-0.5, -0.5]) == (-math.inf, 0.0)
    assert paired_t_test([0.0, 0.0, 0.0]) == (0.0, 1.0)


@pytest.mark.parametrize("differences", [[], [1.0], [1.0, math.nan], [1.0, math.inf]])
def test_a_t_test_of_one_difference_or_of_an_infinite_one_is_an_error(differences):
    with pytest.raises(ValueError, match="two or more finite differences"):
        paired_t_test(differences)


def test_p_values_are_uniform_where_nothing_differs():
    rng = np.random.default_rng(16)
    p_values = [paired_t_test(rng.normal(size=10))[1] for _ in range(2000)]
    assert np.quantile(p_values, [0.05, 0.5, 0.95]) == pytest.approx([0.05, 0.5, 0.95], abs=0.04)


BENJAMINI_HOCHBERG_1995 = [  # Section 3.2: a study of heart attacks, 15 hypotheses
    *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262),
    *(0.5719, 0.6528, 0.7590, 1.0000),
]


def test_benjamini_and_hochbergs_own_example_rejects_the_four_smallest_of_15():
    assert benjamini_hochberg(BENJAMINI_HOCHBERG_1995, 0.05) == [True] * 4 + [False] * 11
    # 1 + 1/2 + ... + 1/15 = 3.318: the limits are 0.0010, 0.0020, 0.0030, 0.0040, ...
    assert benjamini_yekutieli(BENJAMINI_HOCHBERG_1995, 0.05) == [True] * 3 + [False] * 12


def test_a_p_value_above_its_own_limit_is_rejected_with_a_larger_one_below_its_limit():
    assert benjamini_hochberg([0.04, 0.001, 0.05], 0.05) == [True, True, True]
    assert benjamini_hochberg([0.04, 0.001, 0.051], 0.05) == [False, True, False]
    assert benjamini_hochberg([], 0.1) == benjamini_yekutieli([], 0.1) == []
    assert benjamini_hochberg([0.1], 0.1) == benjamini_yekutieli([0.1], 0.1) == [True]


def test_false_discoveries_are_as_rare_as_asked_in_any_order_of_the_hypotheses():
    rng = np.random.default_rng(17)
    shares, power = [], []
    for _ in range(300):
        is_real = rng.permutation([True] * 12 + [False] * 60)
        seeds = rng.normal(size=(72, 10)) + 1.5 * is_real[:, None]
        p_values = [paired_t_test(differences)[1] for differences in seeds]
        found = np.array(benjamini_hochberg(p_values, 0.1))
        assert not (np.array(benjamini_yekutieli(p_values, 0.1)) & ~found).any()
        shares.append((found & ~is_real).sum() / max(found.sum(), 1))
        power.append(found[is_real].mean())
    # Independent tests: the rate is exactly 0.1 x 60 / 72. One share has a deviation of about 0.08.
    assert np.mean(shares) == pytest.approx(0.1 * 60 / 72, abs=0.015) and np.mean(power) > 0.8

"""The metrics of the nine SUPERB tasks (paper, Table 1), their intervals, and significance tests.

All functions are pure and take plain lists. A metric is a fraction; only tables show percent.
A corpus is scored at once, because a mean over batches is a different number. Each utterance (or
trial) adds one pair of numbers (a, b), and `ratio` or `eer` reduces all pairs to the metric. The
bootstrap resamples these pairs.

    metric                                  pair of one utterance            reduction
    PER, WER  phoneme, word error rate      (errors, reference tokens)       ratio
    accuracy                                (1 if correct else 0, 1)         ratio
    slot F1   types of slots found          (F1, 1)                          ratio
    slot CER  characters of slot values     (errors, reference characters)   ratio
    DER       diarization error rate        (error seconds, speech seconds)  ratio
    EER       equal error rate              (label, score) of one trial      eer

Shapes: n utterances or trials, K training seeds, S bootstrap resamples.
"""

import functools
import re
from collections.abc import Callable
from itertools import permutations

import editdistance
import numpy as np


def ratio(pairs, weights=None):
    """Sum of all a divided by sum of all b, for pairs (..., n, 2): a float, or an array (...).

    `weights` (S, n) holds how often each of S resamples draws each pair. The result is then
    (..., S), with NaN where a resample has nothing to score. Raises ValueError if all b are 0.
    >>> ratio([(1, 4), (0, 6)])  # one error in ten tokens, not the mean of 1/4 and 0/6
    0.1
    """
    pairs = np.asarray(pairs, float)
    if pairs.size == 0 or not (pairs[..., 1].sum(-1) > 0).all():
        raise ValueError("nothing to score: no utterance, token, slot or speech in the references")
    if weights is None:
        totals = pairs.sum(-2)  # (..., 2)
    else:
        totals = np.asarray(weights, float) @ pairs  # (..., S, 2)
    numerator, denominator = totals[..., 0], totals[..., 1]
    fraction = numerator / np.where(denominator > 0, denominator, np.nan)
    return float(fraction) if fraction.ndim == 0 else fraction


# Word and phoneme error rate, accuracy


def edit_counts(reference, hypothesis) -> tuple[int, int]:
    """Edit distance of two token lists, and the number of reference tokens.

    The distance is the smallest number of insertions, deletions and substitutions.
    >>> edit_counts("HH AH0 L OW1".split(), "HH L OW0".split())  # AH0 deleted, OW1 substituted
    (2, 4)
    """
    # DIFFERS: s3prl's PER gives an empty transcript one (empty) token; here it has none.
    return editdistance.eval(reference, hypothesis), len(reference)


def error_rate(references, hypotheses) -> float:
    """PER or WER of a corpus of token lists: all errors over all reference tokens; may exceed 1.

    >>> error_rate([["A", "B", "C"], ["D"]], [["A", "C"], ["D"]])  # B is deleted: 1 of 4
    0.25
    """
    # DIFFERS: s3prl's WER is 100 % where no reference has a token. It is undefined, and we raise.
    return ratio([edit_counts(*pair) for pair in zip(references, hypotheses, strict=True)])


def accuracy(references, predictions) -> float:
    """The fraction of predictions equal to their reference; with several slots, in all slots.

    >>> accuracy([["on", "hall"], ["up", "hall"]], [["on", "hall"], ["up", "none"]])
    0.5
    """
    return ratio([(a == b, 1) for a, b in zip(references, predictions, strict=True)])


# Slot filling, as s3prl/metric/slot_filling.py. A tagged string: "PLAY B-artist ABBA E-artist".


def _slots(tagged: str) -> dict[str, list[str]]:
    """{type: [values in order]}; a value is the shortest text from `B-type ` to ` E-type`."""
    tagged = re.sub(" +", " ", tagged)
    slots = {}
    # As in s3prl, a closing tag may be longer: `B-playlist X E-playlist_owner` is a playlist.
    for kind, value in re.findall(r"B-(\S+) (.+?) E-\1", tagged):
        slots.setdefault(kind, []).append(value)
    return slots


def _without_tags(value: str) -> str:
    """A slot value without nested tags: first all opening tags go, then all closing tags."""
    without_opening = re.sub(r"B-\S+ ", "", value)
    return re.sub(r" E-\S+", "", without_opening)


def slot_f1_counts(reference: str, hypothesis: str) -> tuple[float, int]:
    """F1 between the sets of slot types of one utterance (1 if neither has a slot), and 1.

    >>> slot_f1_counts("B-city LA E-city B-date MAY E-date", "B-city LIMA E-city")  # P 1, R 1/2
    (0.6666666666666666, 1)
    """
    true, found = set(_slots(reference)), set(_slots(hypothesis))
    if not true and not found:
        return 1.0, 1
    return 2 * len(true & found) / (len(true) + len(found)), 1


def slot_cer_counts(reference: str, hypothesis: str) -> tuple[int, int]:
    """Character errors in the slot values of one utterance, and characters of reference values.

    Each reference value is compared with the closest hypothesis value of its type, which may
    serve several references. A type that is absent counts as an empty value. Hypothesis slots
    that no reference value uses cost nothing.
    >>> slot_cer_counts("B-city LIMA E-city B-date MAY E-date", "B-city LA E-city")  # I M, M A Y
    (5, 7)
    """
    hypothesis_slots = _slots(hypothesis)
    errors, characters = 0, 0
    for kind, values in _slots(reference).items():
        candidates = [_without_tags(value) for value in hypothesis_slots.get(kind, [""])]
        for value in values:
            closest = min(editdistance.eval(value, candidate) for candidate in candidates)
            # As in s3prl, a hypothesis with a CER of 100 (10,000 %) or more counts as empty.
            errors += closest if closest < 100 * len(value) else len(value)
            characters += len(value)
    return errors, characters


def slot_type_f1(references, hypotheses) -> float:
    """Slot type F1 of a corpus of tagged strings: the mean over utterances.

    >>> slot_type_f1(["B-city LA E-city", "STOP"], ["LA", "STOP"])  # 0 and, without slots, 1
    0.5
    """
    return ratio([slot_f1_counts(*pair) for pair in zip(references, hypotheses, strict=True)])


def slot_value_cer(references, hypotheses) -> float:
    """Slot value CER of a corpus of tagged strings: all errors over all characters; may exceed 1.

    >>> slot_value_cer(["B-city LIMA E-city", "STOP"], ["B-city LIME E-city", "STOP"])
    0.25
    """
    return ratio([slot_cer_counts(*pair) for pair in zip(references, hypotheses, strict=True)])


# Speaker diarization, as dscore with its defaults. A turn: (speaker, start, end), in seconds.


def _activity(turns, boundaries) -> np.ndarray:
    """Which speaker speaks in which interval between two boundaries: bool (speakers, intervals)."""
    speakers = list(dict.fromkeys(speaker for speaker, _, _ in turns))
    active = np.zeros((len(speakers), max(len(boundaries) - 1, 0)), bool)
    for speaker, start, end in turns:
        first, stop = np.searchsorted(boundaries, (start, end))
        active[speakers.index(speaker), first:stop] = True
    return active


def _correct_seconds(together: np.ndarray) -> float:
    """Seconds with correct speakers under the best one-to-one map of hypothesis to reference.

    `together` (reference speakers, hypothesis speakers): seconds in which both speak. All maps are
    tried: with eight speakers there are 40,320.
    """
    if len(together) > together.shape[1]:
        together = together.T
    rows = together.tolist()
    best = 0.0
    for columns in permutations(range(together.shape[1]), len(rows)):
        best = max(best, sum(row[column] for row, column in zip(rows, columns)))
    return best


def diarization_errors(reference, hypothesis) -> tuple[float, float, float, float]:
    """Seconds of missed speech, of false alarm, of speaker confusion, and of reference speech.

    DER is (missed + false alarm + confusion) / speech. All speech counts: there is no collar
    around the ends of turns, and overlapped speech counts once per speaker. The hypothesis may
    name its speakers in any way.
    >>> diarization_errors([("A", 0, 4), ("B", 4, 10)], [("x", 0, 6), ("y", 6, 11)])
    (0.0, 1.0, 2.0, 10.0)
    """
    # 1. Cut the recording wherever a turn starts or ends. Within an interval nothing changes.
    times = []
    for _, start, end in [*reference, *hypothesis]:
        times += [float(start), float(end)]
    boundaries = np.unique(times)
    seconds = np.diff(boundaries)  # (intervals,)
    true, found = _activity(reference, boundaries), _activity(hypothesis, boundaries)
    # 2. Map hypothesis speakers to reference speakers so that most speech is correct.
    correct = _correct_seconds((true * seconds) @ found.T)
    # 3. Compare the numbers of active speakers in each interval.
    num_true, num_found = true.sum(0), found.sum(0)
    missed = float(np.maximum(num_true - num_found, 0) @ seconds)
    false_alarm = float(np.maximum(num_found - num_true, 0) @ seconds)
    # 4. Speech that both sides have, but that is not correct, has the wrong speaker.
    both = float(np.minimum(num_true, num_found) @ seconds)
    confusion = max(both - correct, 0.0)  # rounding could make it negative
    return missed, false_alarm, confusion, float(num_true @ seconds)


def diarization_counts(reference, hypothesis) -> tuple[float, float]:
    """Error seconds and speech seconds of one recording; (3.0, 10.0) in the example above."""
    missed, false_alarm, confusion, speech = diarization_errors(reference, hypothesis)
    return missed + false_alarm + confusion, speech


def diarization_error_rate(references: dict, hypotheses: dict) -> float:
    """DER of dicts {recording: turns}: all error seconds over all speech seconds; may exceed 1.

    A recording without a hypothesis is all missed. Raises ValueError for a hypothesis without a
    reference.
    >>> diarization_error_rate({"r": [("A", 0, 4)], "q": [("B", 1, 3)]}, {"r": [("x", 0, 4)]})
    0.3333333333333333
    """
    if unknown := set(hypotheses) - set(references):
        raise ValueError(f"hypotheses for recordings without a reference: {sorted(unknown)}")
    return ratio([diarization_counts(references[r], hypotheses.get(r, [])) for r in references])


# Speaker verification. A trial: label (1 same speaker, 0 different speakers), score (high: same).


def equal_error_rate(labels, scores) -> float:
    """The error rate at the threshold where false acceptance and false rejection rates are equal.

    Between two thresholds both rates are interpolated linearly. Raises ValueError if a score is
    NaN, or if one of the labels 0 and 1 is missing.
    >>> equal_error_rate([1, 1, 0, 0], [0.8, 0.5, 0.5, 0.2])  # half way along the tie: half of 1/2
    0.25
    """
    return eer(np.stack([labels, scores], -1))


def eer(pairs, weights=None):
    """`equal_error_rate` of pairs (label, score) (..., n, 2): a float, or an array (...).

    With `weights` (S, n), as in `ratio`, the result is (..., S), with NaN where a resample has
    trials of one label only.
    """
    pairs = np.asarray(pairs, float)
    if pairs.ndim > 2:
        return np.array([eer(run, weights) for run in pairs])
    labels, _, order, last = _by_falling_score(pairs)  # sorted once, for all resamples
    if weights is None:
        return _height_at_crossing(*_error_curves(labels, last, np.ones(len(labels))))
    values = []
    for drawn in weights:
        values.append(_height_at_crossing(*_error_curves(labels, last, drawn[order])))
    return np.array(values)


def eer_threshold(labels, scores) -> float:
    """The score at which the two error rates of `equal_error_rate` are equal.

    A pair of recordings with this score or more counts as one speaker. The threshold is
    interpolated linearly between two scores of trials, as the error rates are. The rates may cross
    above the highest score, where there is nothing to interpolate; the result is then the highest
    score. Raises ValueError as `equal_error_rate` does.
    >>> eer_threshold([1, 1, 0, 0], [0.9, 0.5, 0.5, 0.2])  # half way from 0.9 to the tie at 0.5
    0.7
    """
    labels, scores, _, last = _by_falling_score(np.stack([labels, scores], -1).astype(float))
    before, after, way = _crossing(*_error_curves(labels, last, np.ones(len(labels))))
    thresholds = scores[last]  # of point 1 and later; the threshold of point 0 is infinite
    if before == 0:
        return float(thresholds[0])
    return float(thresholds[before - 1] + way * (thresholds[after - 1] - thresholds[before - 1]))


def _by_falling_score(pairs) -> tuple[np.ndarray, ...]:
    """(labels, scores, order, last) of pairs (label, score) (n, 2), sorted by falling score.

    `order` sorts the trials. A threshold accepts all trials with the same score together, and
    `last` holds the index of the last one of each score. Raises ValueError for NaN or one label.
    """
    labels, scores = pairs.reshape(-1, 2).T
    if missing := int(np.isnan(scores).sum()):
        which = "is not a number" if missing == 1 else "are not numbers"
        raise ValueError(f"{missing} of {len(scores)} scores {which}")
    if set(labels.tolist()) != {0, 1}:
        raise ValueError(f"EER needs labels 0 and 1: got {sorted(set(labels.tolist()))}")
    order = np.argsort(-scores)
    labels, scores = labels[order], scores[order]
    last = np.flatnonzero(np.append(scores[:-1] != scores[1:], True))
    return labels, scores, order, last


def _error_curves(labels, last, drawn) -> tuple[np.ndarray, np.ndarray]:
    """False acceptance and false rejection rates while the threshold falls from infinity.

    `labels` (n,) and `drawn` (n,), how often each trial counts, are in the order of falling scores;
    `last` holds the index of the last trial that each threshold accepts. A rate without trials is
    NaN.
    """
    accepted_same = np.append(0, np.cumsum(drawn * labels)[last])
    accepted_different = np.append(0, np.cumsum(drawn * (1 - labels))[last])
    same, different = accepted_same[-1], accepted_different[-1]
    if same == 0 or different == 0:
        return np.array([np.nan]), np.array([np.nan])
    return accepted_different / different, (same - accepted_same) / same


def _crossing(rising, falling) -> tuple[int, int, float]:
    """Where two curves cross, one from 0 up to 1, the other from 1 down to 0: (before, after, way).

    The crossing lies between these two points, at a fraction `way` of the distance.
    """
    after = int(np.argmax(rising >= falling))  # the first point where they have crossed
    before = max(after - 1, 0)
    gap_before, gap_after = falling[before] - rising[before], rising[after] - falling[after]
    return before, after, gap_before / (gap_before + gap_after)


def _height_at_crossing(rising, falling) -> float:
    """The height at which the two curves of `_crossing` cross."""
    before, after, way = _crossing(rising, falling)
    return float(rising[before] + way * (rising[after] - rising[before]))


# Bootstrap intervals


def bootstrap(a, reduce: Callable, samples: int = 1000, seed: int = 0) -> tuple:
    """(value, low, high): the metric of a system and its 95 % percentile interval.

    a: pairs (n, 2), or one such list for each of K training seeds; the value is their mean.
    reduce: `ratio` or `eer`. Each of S resamples draws n utterances with replacement, then K seeds
    with replacement, and scores these. The interval is the middle 95 % of the S scores.

    One seed cannot show training variance, and two or three seeds underestimate it. The interval
    of an EER is too narrow, because trials share speakers.
    >>> bootstrap([[(0, 4), (0, 6)], [(2, 4), (3, 6)]], ratio)  # one seed is at 0, the other at 1/2
    (0.25, 0.0, 0.5)
    """
    runs = _as_runs(a)
    num_seeds, num_utterances = runs.shape[:2]
    value = float(np.mean(reduce(runs)))
    drawn, seeds = _draw(num_utterances, (num_seeds,), samples, seed)
    means = _mean_of_drawn(reduce(runs, drawn), seeds[0])
    return value, *_percentile_interval(means)


def paired_bootstrap(a, b, reduce: Callable, samples: int = 1000, seed: int = 0) -> tuple:
    """(difference, low, high): as `bootstrap`, of the metric of system b minus that of system a.

    Each resample gives both systems the same utterances, so the difficulty of an utterance cancels
    out. If both have K seeds, in the same order, it also gives both the same seeds: two runs of one
    seed share initialisation and batches, so part of their luck cancels out. Systems with
    different numbers of seeds draw them independently.
    >>> paired_bootstrap([(1, 2), (3, 4)], [(0, 2), (1, 4)], ratio)  # 1/2 lower on either utterance
    (-0.5, -0.5, -0.5)
    """
    runs_a, runs_b = _as_runs(a), _as_runs(b)
    if runs_a.shape[1] != runs_b.shape[1]:
        raise ValueError("a paired comparison needs the same utterances in both systems")
    difference = float(np.mean(reduce(runs_b)) - np.mean(reduce(runs_a)))
    if len(runs_a) == len(runs_b):
        drawn, (seeds_a,) = _draw(runs_a.shape[1], (len(runs_a),), samples, seed)
        seeds_b = seeds_a
    else:
        numbers = (len(runs_a), len(runs_b))
        drawn, (seeds_a, seeds_b) = _draw(runs_a.shape[1], numbers, samples, seed)
    means_a = _mean_of_drawn(reduce(runs_a, drawn), seeds_a)
    means_b = _mean_of_drawn(reduce(runs_b, drawn), seeds_b)
    return difference, *_percentile_interval(means_b - means_a)


def _as_runs(pairs) -> np.ndarray:
    """Pairs (n, 2) or (K, n, 2) as an array (K, n, 2)."""
    if len(pairs) == 0:
        raise ValueError("nothing to score: no utterance")
    runs = [pairs] if np.ndim(pairs[0]) == 1 else pairs
    lengths = sorted({len(run) for run in runs})
    if len(lengths) > 1:
        raise ValueError(f"the seeds have different numbers of utterances: {lengths}")
    return np.asarray(runs, float)


@functools.lru_cache(maxsize=16)  # the cells of a column of Table 1 share their draws
def _draw(num_utterances: int, numbers_of_seeds: tuple[int, ...], samples: int,
          seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """What S resamples draw, with replacement: (utterances, [seeds]).

    How often each of n utterances is drawn (S, n), and, for each number K of seeds, which (S, K).
    """
    rng = np.random.default_rng(seed)
    drawn = np.empty((samples, num_utterances), np.int16)  # 75 MB for VoxCeleb1's 37,720 trials
    for resample in range(samples):
        chosen = rng.integers(num_utterances, size=num_utterances)
        drawn[resample] = np.bincount(chosen, minlength=num_utterances)
    return drawn, [rng.integers(number, size=(samples, number)) for number in numbers_of_seeds]


def _mean_of_drawn(scores: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The mean score of the drawn seeds (S, K) in each resample, of scores (K, S): (S,)."""
    resamples = np.arange(len(seeds))[:, None]  # (S, 1)
    return scores[seeds, resamples].mean(1)


def _percentile_interval(values) -> tuple[float, float]:
    """The middle 95 % of the values. Resamples with nothing to score (NaN) are left out."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)

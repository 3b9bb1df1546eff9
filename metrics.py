"""The metrics of nine SUPERB tasks (paper, Table 1), and bootstrap intervals for them.

Pure functions on plain lists; every metric is a fraction, percent is for showing. A corpus is scored at once, never
batch by batch: each utterance (or trial) adds a pair of numbers (a, b), and one reduction of all pairs, `ratio` or
`eer`, is the metric. Error bars resample these same pairs.

    PER, WER: phone, word error rate   (errors, tokens)         slot F1: types of slots found   (F1, 1)
    DER: diarization error rate        (error s, speech s)      slot CER: their values          (errors, characters)
    EER: equal error rate              (label, score)           accuracy                        (correct, 1)

Shapes: n utterances or trials, K training seeds, S bootstrap resamples.
"""
import re
from collections.abc import Callable
from itertools import permutations

import editdistance
import numpy as np

def ratio(pairs, weights=None):
    """The sum of all a over the sum of all b, for pairs (..., n, 2): a float, or an array (...).
    `weights` (S, n): how often each of S resamples drew each pair; the result is then (..., S), NaN where a resample
    drew nothing to score. ValueError if the pairs themselves hold nothing.
    >>> ratio([(1, 4), (0, 6)])  # one error in ten tokens, not the mean of 1/4 and 0/6
    0.1
    """
    pairs = np.asarray(pairs, float)
    if pairs.size == 0 or not (pairs[..., 1].sum(-1) > 0).all():
        raise ValueError("nothing to score: no utterance, token, slot or speech in the references")
    totals = pairs.sum(-2) if weights is None else weights @ pairs  # (..., 2) or (..., S, 2)
    fraction = totals[..., 0] / np.where(totals[..., 1] > 0, totals[..., 1], np.nan)
    return float(fraction) if fraction.ndim == 0 else fraction

def edit_counts(reference, hypothesis) -> tuple[int, int]:
    """Fewest insertions, deletions and substitutions between two token lists; reference tokens.
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
    # DIFFERS: where no reference has a token s3prl's WER is 100 %; it is undefined, and we raise.
    return ratio([edit_counts(*pair) for pair in zip(references, hypotheses, strict=True)])

def accuracy(references, predictions) -> float:
    """The fraction of predictions that equal their reference; with several slots, in all of them.
    >>> accuracy([["on", "hall"], ["up", "hall"]], [["on", "hall"], ["up", "none"]])
    0.5
    """
    return ratio([(a == b, 1) for a, b in zip(references, predictions, strict=True)])

# Slot filling (as s3prl/metric/slot_filling.py). A tagged string: "PLAY B-artist ABBA E-artist".
def _slots(tagged: str) -> dict[str, list[str]]:
    """Type -> its values in order: the shortest texts from `B-type ` to ` E-type`."""
    slots = {}
    # As in s3prl the closing tag may go on: `B-playlist X E-playlist_owner` is a playlist.
    for kind, value in re.findall(r"B-(\S+) (.+?) E-\1", re.sub(" +", " ", tagged)):
        slots.setdefault(kind, []).append(value)
    return slots

def slot_f1_counts(reference: str, hypothesis: str) -> tuple[float, int]:
    """F1 between the sets of slot types of one utterance, values ignored; 1 if neither has any.
    >>> slot_f1_counts("B-city LA E-city B-date MAY E-date", "B-city LIMA E-city")  # P 1, R 1/2
    (0.6666666666666666, 1)
    """
    true, found = set(_slots(reference)), set(_slots(hypothesis))
    return (2 * len(true & found) / (len(true) + len(found)) if true or found else 1.0), 1

def slot_cer_counts(reference: str, hypothesis: str) -> tuple[int, int]:
    """Character errors in the slot values of one utterance; characters of the reference values.
    Each reference value meets the closest hypothesis value of its type (one may serve twice), or nothing if that type
    is absent. Hypothesis slots that are left over cost nothing.
    >>> slot_cer_counts("B-city LIMA E-city B-date MAY E-date", "B-city LA E-city")  # I M, M A Y
    (5, 7)
    """
    errors, characters, hypothesis_slots = 0, 0, _slots(hypothesis)
    for kind, values in _slots(reference).items():
        # A hypothesis may open tags inside a value: they are no part of it.
        found = [re.sub(r"B-\S+ | E-\S+", "", value) for value in hypothesis_slots.get(kind, [""])]
        errors += sum(min(editdistance.eval(value, other) for other in found) for value in values)
        characters += sum(map(len, values))
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

# Speaker diarization (as dscore with its defaults). A turn: (speaker, start s, end s).
def _activity(turns, boundaries):
    """Is a speaker (row) active from a boundary (column) to the next? A speaker's turns merge."""
    active = {speaker: np.zeros(len(boundaries), bool) for speaker, _, _ in turns}
    for speaker, start, end in turns:
        active[speaker][slice(*np.searchsorted(boundaries, (start, end)))] = True
    return np.reshape([*active.values()], (len(active), len(boundaries)))

def diarization_errors(reference, hypothesis) -> tuple[float, float, float, float]:
    """Seconds missed, falsely found, given to the wrong speaker; seconds of reference speech.
    Every moment counts, also near the ends of a turn (no "collar"), and overlapped speech once per speaker. Names mean
    nothing: speakers are mapped one to one such that most speech is right; all maps are tried (8 speakers: 40,320).
    >>> diarization_errors([("A", 0, 4), ("B", 4, 10)], [("x", 0, 6), ("y", 6, 11)])
    (0.0, 1.0, 2.0, 10.0)
    """
    boundaries = np.unique([float(time) for _, *turn in [*reference, *hypothesis] for time in turn])
    seconds = np.diff(boundaries, append=boundaries[-1:])  # from each boundary to the next
    true, found = _activity(reference, boundaries), _activity(hypothesis, boundaries)
    both = (true * seconds) @ found.T  # (reference speakers, hypothesis speakers), seconds
    rows = (both if len(true) <= len(found) else both.T).tolist()
    maps = permutations(range(max(both.shape)), len(rows))
    right = max(sum(row[speaker] for row, speaker in zip(rows, chosen)) for chosen in maps)
    n, m = true.sum(0), found.sum(0)  # how many speak at once
    counts = np.maximum(n - m, 0), np.maximum(m - n, 0), np.minimum(n, m), n
    missed, false_alarm, paired, speech = (np.array(counts) @ seconds).tolist()
    return missed, false_alarm, max(paired - right, 0.0), speech  # rounding may go below 0

def diarization_counts(reference, hypothesis) -> tuple[float, float]:
    """Error seconds and speech seconds of one recording; (3.0, 10.0) in the example above."""
    *errors, speech = diarization_errors(reference, hypothesis)
    return sum(errors), speech

def diarization_error_rate(references: dict, hypotheses: dict) -> float:
    """DER of dicts recording -> turns: all error seconds over all speech seconds; may exceed 1.
    >>> diarization_error_rate({"r": [("A", 0, 4)], "q": [("B", 1, 3)]}, {"r": [("x", 0, 4)]})  # q missed
    0.3333333333333333
    """
    if unknown := set(hypotheses) - set(references):
        raise ValueError(f"hypotheses for recordings without a reference: {sorted(unknown)}")
    return ratio([diarization_counts(true, hypotheses.get(name, [])) for name, true in references.items()])

# Speaker verification. A trial: two utterances, a label (1 same speaker, 0 different) and a score (high: the same).
def equal_error_rate(labels, scores) -> float:
    """The error rate at the threshold where as large a share of the 0s is accepted as of the 1s is rejected; between
    two thresholds both shares change linearly. ValueError for a NaN score, or if a label is missing altogether.
    >>> equal_error_rate([1, 1, 0, 0], [0.8, 0.5, 0.5, 0.2])  # half way along the tie: half of 1/2
    0.25
    """
    return eer(np.stack([labels, scores], -1))

def eer(pairs, weights=None):
    """`equal_error_rate` of pairs (label, score), (..., n, 2): a float, or an array (...). With `weights` (S, n), as in
    `ratio`, an array (..., S), NaN where a resample drew one label only."""
    pairs = np.asarray(pairs, float)
    if pairs.ndim > 2:
        return np.array([eer(part, weights) for part in pairs])
    order = np.argsort(-pairs[:, 1])
    labels, scores = pairs[order].T
    if (kinds := set(labels.tolist())) != {0, 1} or np.isnan(scores).any():
        raise ValueError(f"EER needs labels 0 and 1: got {kinds}, and {np.isnan(scores).sum()} NaN scores")
    last = np.append(scores[1:] != scores[:-1], True)  # of the trials that tie: they are accepted together
    if weights is None:
        return _crossing(labels, last, np.ones_like(labels))
    return np.array([_crossing(labels, last, drawn[order]) for drawn in weights])

def _crossing(labels, last, drawn) -> float:
    """Where the two shares are equal, for trials (n,), best score first, that count `drawn` times each."""
    hits, alarms = (np.append(0, np.cumsum(drawn * kind)[last]) for kind in (labels, 1 - labels))  # accepted 1s and 0s
    same, different = hits[-1], alarms[-1]
    if same == 0 or different == 0:
        return float("nan")
    excess = alarms * same - (same - hits) * different  # of false alarms over misses, in whole numbers
    k = np.argmax(excess >= 0)  # the shares cross between thresholds k - 1 and k
    x0, x1, y0, y1 = alarms[k - 1], alarms[k], excess[k - 1], excess[k]
    return float((x0 - y0 * (x1 - x0) / (y1 - y0)) / different)

def _interval(systems, signs, reduce, samples, seed):
    """The sum of sign x metric over the systems, and its 95 % percentile interval."""
    systems = [np.reshape(pairs, (-1, *np.shape(pairs)[-2:])) for pairs in systems]  # each (K, n, 2)
    n, rng, draws = systems[0].shape[1], np.random.default_rng(seed), []
    if any(pairs.shape[1] != n for pairs in systems):
        raise ValueError("a paired comparison needs the same utterances in both systems")
    value = np.dot(signs, [np.mean(reduce(pairs)) for pairs in systems])
    while len(draws) < samples:  # 20 at a time, to spare memory
        weights = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(20)])
        values = [reduce(pairs, weights) for pairs in systems]  # each (K, 20)
        means = [np.take_along_axis(v, rng.integers(len(v), size=v.shape), 0).mean(0) for v in values]
        draws.extend(np.dot(signs, means))
    return float(value), *np.nanpercentile(draws[:samples], [2.5, 97.5]).tolist()

def bootstrap(a, reduce: Callable, samples: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """(value, low, high): the metric of pairs (n, 2) and its 95 % percentile interval.
    A list of such pairs, one per training seed, gives the mean. Utterances are drawn with replacement, then seeds: one
    seed says nothing of training noise, two or three too little. That of an EER is too narrow: trials share speakers.
    >>> bootstrap([[(0, 4), (0, 6)], [(2, 4), (3, 6)]], ratio)  # seeds at 0 and 1/2, utterances alike
    (0.25, 0.0, 0.5)
    """
    return _interval([a], [1], reduce, samples, seed)

def paired_bootstrap(a, b, reduce: Callable, samples: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """(difference, low, high): as `bootstrap`, of the metric of b minus that of a.
    Both get the same draws of the same utterances, so what is hard for both cancels out.
    >>> paired_bootstrap([(1, 2), (3, 4)], [(0, 2), (1, 4)], ratio)  # 1/2 lower on either utterance
    (-0.5, -0.5, -0.5)
    """
    return _interval([a, b], [-1, 1], reduce, samples, seed)

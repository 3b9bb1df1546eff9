"""Statistics over training seeds: paired t-test, false discovery rates, rank correlation."""

import math

import numpy as np


def paired_t_test(differences) -> tuple[float, float]:
    """(t, p) of the two-sided paired t-test: is the mean of K differences 0?

    t = mean / (standard deviation / sqrt(K)). p is the probability of a larger |t| if the true mean
    is 0, from Student's distribution with K - 1 degrees of freedom. Raises ValueError for fewer
    than two differences, and for infinite ones.
    >>> [round(x, 4) for x in paired_t_test([1, 2, 3])]  # t = 2 sqrt(3), p = 1 - t / sqrt(2 + t^2)
    [3.4641, 0.0742]
    """
    differences = np.asarray(differences, float)
    if len(differences) < 2 or not np.isfinite(differences).all():
        raise ValueError(f"a t-test needs two or more finite differences: got {differences}")
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    if deviation == 0:
        return (0.0, 1.0) if mean == 0 else (math.copysign(math.inf, mean), 0.0)
    t, freedom = mean / (deviation / math.sqrt(len(differences))), len(differences) - 1
    return t, _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 1 / 2)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b).

    I_x(a, b) = x^a (1 - x)^b / (a B(a, b)) * 1 / (1 + d_1 / (1 + d_2 / (1 + ...))), a continued
    fraction (Abramowitz and Stegun, 26.5.8), evaluated from its inner end.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # there the fraction of the complement converges faster
        return 1 - _incomplete_beta(1 - x, b, a)
    fraction = 1.0
    for k in range(200, 0, -1):
        m = k // 2
        if k % 2 == 1:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        fraction = 1 + d / fraction
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return math.exp(a * math.log(x) + b * math.log(1 - x) - log_beta) / (a * fraction)


def benjamini_hochberg(p_values, rate: float) -> list[bool]:
    """Which of m hypotheses to reject at a false discovery rate of at most `rate`.

    That rate is the expected share of rejections that are wrong. The k smallest p-values are
    rejected, for the largest k with p_(k) <= rate k / m (Benjamini and Hochberg, 1995). The tests
    must be independent or positively dependent.
    >>> benjamini_hochberg([0.01, 0.04, 0.03, 0.5], 0.1)  # limits 0.025, 0.05, 0.075, 0.1
    [True, True, True, False]
    """
    largest = -1.0
    for k, p in enumerate(sorted(p_values), 1):
        if p <= rate * k / len(p_values):
            largest = p
    return [p <= largest for p in p_values]


def benjamini_yekutieli(p_values, rate: float) -> list[bool]:
    """As `benjamini_hochberg`, for tests with any dependence (Benjamini and Yekutieli, 2001).

    The price is a rate divided by 1 + 1/2 + ... + 1/m.
    >>> benjamini_yekutieli([0.01, 0.04, 0.03, 0.5], 0.1)  # limits 0.012, 0.024, 0.036, 0.048
    [True, False, False, False]
    """
    penalty = sum(1 / k for k in range(1, max(len(p_values), 1) + 1))
    return benjamini_hochberg(p_values, rate / penalty)


def spearman(x, y) -> float:
    """Spearman's rank correlation: the correlation of the ranks; equal values share a mean rank.

    NaN if all values of x or of y are equal.
    >>> round(spearman([1, 2, 3, 4], [10, 30, 20, 20]), 4)  # ranks 1, 4, 2.5, 2.5: 1.5 / sqrt(22.5)
    0.3162
    """
    ranks = []
    for values in (x, y):
        values = np.asarray(values, float)
        below = (values[None, :] < values[:, None]).sum(1)
        equal = (values[None, :] == values[:, None]).sum(1)
        ranks.append(below + (equal + 1) / 2)
    a, b = (rank - rank.mean() for rank in ranks)
    scale = math.sqrt((a @ a) * (b @ b))
    return float(a @ b) / scale if scale else math.nan

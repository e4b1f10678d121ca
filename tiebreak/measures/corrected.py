"""Shares and win rates that are right although the judge errs: corrected by people's judgments of some of the pairs.

The judge's own share is biased by its errors, and its interval knows only the number of judged pairs. Both corrections
here cover both uncertainties: that of the judged pairs, and that of the judge's error as people's judgments measure it.
They assume that the pairs people judged are a random part of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiebreak.measures.statistics import Interval, Z, student_quantile


@dataclass(frozen=True)
class CorrectedShare:
    """A corrected share. `value` is None where the judge is no better than chance: then it measures nothing."""

    value: float | None
    interval: Interval


def rogan_gladen(
    positive: float, n: float, specificity: float, negatives: float, sensitivity: float, positives: float, z: float = Z
) -> CorrectedShare:
    """The share of cases that people would call positive, from a judge's calls.

    Rogan & Gladen (1978): (p + specificity − 1) / (specificity + sensitivity − 1). The interval is that of Lang & Reiczigel
    (2014), as Lee et al. (2025, arXiv 2511.21140) propose for model judges: z²/2 pseudo-cases of either
    outcome among the judged ones, one of either among the positives and the negatives, a shift of the centre, and the
    delta method. Compared term by term with a copy of `confidence_interval` in the paper's code
    (LLM-judge-reporting).

    Args:
        positive: the share that the judge calls positive, of `n` cases that people did not judge.
        specificity: the share of people's `negatives` that the judge calls negative.
        sensitivity: the share of people's `positives` that the judge calls positive.

    The numbers need not be whole: they may be effective numbers of independent cases.

    >>> round(rogan_gladen(0.6, 1000, 0.8, 200, 0.9, 200).value, 6)
    0.571429
    """
    p = (n * positive + z * z / 2) / (n + z * z)
    q0 = (negatives * specificity + 1) / (negatives + 2)
    q1 = (positives * sensitivity + 1) / (positives + 2)
    power = specificity + sensitivity - 1
    smoothed = q0 + q1 - 1
    if power <= 0 or smoothed <= 0 or n == 0:
        return CorrectedShare(None, (0.0, 1.0))
    centre = (p + q0 - 1) / smoothed
    error0, error1 = q0 * (1 - q0) / (negatives + 2), q1 * (1 - q1) / (positives + 2)
    shift = 2 * z * z * (centre * error1 - (1 - centre) * error0)
    variance = p * (1 - p) / (n + z * z) + (1 - centre) ** 2 * error0 + centre**2 * error1
    half = z * math.sqrt(variance) / smoothed
    value = (positive + specificity - 1) / power
    low, high = _clipped(centre + shift - half), _clipped(centre + shift + half)
    return CorrectedShare(_clipped(value), (low, high))


_ERRORS = np.array([(1.0, 0.0), (0.0, 1.0)])
"""people's value and the judge's, of the two worst errors"""


def prediction_powered_mean(
    judge_only: Sequence[float], judged: Sequence[float], people: Sequence[float]
) -> CorrectedShare:
    """The mean of people's values, from a judge's values of many cases and both values of some.

    Angelopoulos et al. (2023, arXiv 2301.09633, Algorithm 1): the judge's mean, plus the mean difference where people
    judged too. The judge's weight λ is the one of least variance, from 0 to 1 (PPI++, Angelopoulos et al. 2023, arXiv
    2311.01453, Eq. 6): a useless judge gets 0, and the mean is people's alone. The interval has Student's quantile.

    Not of the papers: the variance counts half a pseudo-case of either error. Where a good judge errs in few cases, the
    plain interval covers 92% and not 95% (accuracy .9, 100 cases that people judged). The half was chosen among 0, ¼, ½, ¾
    and 1 in simulations: it covers 94 to 96% in those of the tests, and up to 98% for judges of accuracy .95 with 60 such
    cases.

    Args:
        judge_only: the judge's values of cases that people did not judge; from 0 (lost) to 1 (won).
        judged: the judge's values of the cases that people judged too.
        people: people's values of the same cases.
    """
    f, g, y = (np.asarray(values, dtype=np.float64) for values in (judge_only, judged, people))
    n, many = len(y), len(f)
    if n < 2:
        return CorrectedShare(None, (0.0, 1.0))
    weight = 0.0
    if many > 1:
        spread = float(np.concatenate([f, g]).var(ddof=1))
        together = float(np.cov(g, y, ddof=1)[0, 1])
        weight = min(max(together / ((1 + n / many) * spread), 0.0), 1.0) if spread > 0 else 0.0
    rest = y - weight * g
    value = float(rest.mean()) + weight * (float(f.mean()) if many else 0.0)
    squares = float(((rest - rest.mean()) ** 2).sum() + ((_ERRORS @ (1.0, -weight) - rest.mean()) ** 2).sum() / 2)
    variance = squares / (n - 1) / n + (weight**2 * float(f.var(ddof=1)) / many if many > 1 else 0.0)
    half = student_quantile(n - 1) * math.sqrt(variance)
    return CorrectedShare(_clipped(value), (_clipped(value - half), _clipped(value + half)))


def _clipped(share: float) -> float:
    return min(max(share, 0.0), 1.0)

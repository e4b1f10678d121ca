"""Intervals of reported figures, and the test behind a verdict between two policies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

Interval = tuple[float, float]
Z = 1.959964
"""97.5% quantile of the standard normal."""


def wilson_interval(successes: float, n: float, z: float = Z) -> Interval:
    """The 95% interval of a share of independent trials (Wilson 1927); (0, 1) when n is 0.

    Neither needs to be whole: n may be an effective number of trials.

    >>> tuple(round(edge, 4) for edge in wilson_interval(8, 10))
    (0.4902, 0.9433)
    """
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = float(centre - half) if successes else 0.0  # exactly, without rounding
    return low, float(centre + half) if successes < n else 1.0


def clustered_interval(values: Sequence[float], groups: Sequence[str]) -> Interval:
    """The 95% interval of a mean of values from 0 to 1 in clusters, such as several pairs per prompt.

    Wilson's, at the effective number of independent values. With clusters of one value it is `wilson_interval`.
    """
    if not len(values):
        return 0.0, 1.0
    share, effective = float(np.asarray(values, dtype=np.float64).mean()), effective_number(values, groups)
    return wilson_interval(share * effective, effective)


def effective_number(values: Sequence[float], groups: Sequence[str]) -> float:
    """The number of independent values from 0 to 1 whose mean would vary as much as that of values in clusters.

    n over the design effect (Kish 1965), at most n; n with clusters of one value. If all values are 0, or all 1, the design
    effect is unknown, and each cluster counts once.

    >>> effective_number([1, 1, 0, 0], ["p", "p", "q", "q"])
    2.0
    """
    n = len(values)
    if n == 0:
        return 0.0
    array = np.asarray(values, dtype=np.float64)
    share = float(array.mean())
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    totals = np.bincount(group, weights=array - share)
    if not 0.0 < share < 1.0:
        return float(len(totals))
    grouped = float(np.square(totals).sum()) / n**2
    independent = share * (1 - share) / n
    return float(n if grouped <= independent else n * independent / grouped)


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, resamples: int = 10_000, groups: Sequence[str] | None = None
) -> Interval:
    """The 95% expanded percentile-bootstrap interval of a mean, one value per prompt (Efron 1979; Hesterberg 2015, 4.3).

    The plain percentiles are too narrow by √((n − 1)/n) and by the normal quantile instead of Student's t; so they are
    moved outwards: to 1.9% and 98.1% for 30 prompts, 2.2% and 97.8% for 64. A single value has an interval of no width.

    Args:
        groups: if prompts have several values each, every value's prompt. Whole prompts are then resampled, with all of
            their values (the cluster bootstrap, Field and Welsh 2007).
    """
    if not len(values):
        raise ValueError("no values to resample")
    array = np.asarray(values, dtype=np.float64)
    group = np.arange(len(array))
    if groups is not None:
        _, group = np.unique(np.asarray(groups), return_inverse=True)
    totals, counts = np.bincount(group, weights=array), np.bincount(group)
    return ratio_interval(totals, counts, seed, resamples)


def ratio_interval(totals: ArrayLike, counts: ArrayLike, seed: int = 0, resamples: int = 10_000) -> Interval:
    """`bootstrap_interval` of Σ totals / Σ counts, such as a mean over tokens.

    Args:
        totals: a sum for each prompt, shape (prompts,).
        counts: what it is a sum over, shape (prompts,).
    """
    sums, sizes = np.asarray(totals, dtype=np.float64), np.asarray(counts)
    picks = np.random.default_rng(seed).integers(0, len(sums), size=(resamples, len(sums)))
    tail = 100 * _expanded_tail(len(sums))
    low, high = np.percentile(sums[picks].sum(axis=1) / sizes[picks].sum(axis=1), [tail, 100 - tail])
    return float(low), float(high)


def _expanded_tail(n: int) -> float:
    """The share of the resamples beyond either end of a 95% interval of n values: Φ(−t·√(n/(n − 1)))."""
    if n < 2:
        return 0.025
    return NormalDist().cdf(-student_quantile(n - 1) * math.sqrt(n / (n - 1)))


@cache
def student_quantile(degrees: int) -> float:
    """97.5% quantile of Student's t, by bisection.

    >>> round(student_quantile(29), 4)
    2.0452
    """
    low, high = 0.0, 13.0  # one degree of freedom has 12.7
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_within(middle, degrees) < 0.95 else (low, middle)
    return low


def student_within(t: float, degrees: int) -> float:
    """P(|T| ≤ t) of Student's t, a finite sum (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    at = np.arange(1, (degrees - odd) // 2)
    series = 1 + float(np.cumprod((2 * at - 1 + odd) / (2 * at + odd) * math.cos(angle) ** 2).sum())
    if not odd:
        return math.sin(angle) * series
    if degrees == 1:
        series = 0.0
    return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * series)


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval | None:
    """The 95% interval of a mean over prompts: the bootstrap's, or Wilson's of a share that is 0 or 1, where the bootstrap
    has no width. None of other values that are all the same, or of one: they show no spread.

    >>> tuple(round(edge, 3) for edge in mean_interval([0.0] * 64))  # no refusal in 64 answers
    (0.0, 0.057)
    """
    if len(values) < 2:
        return None
    if len(set(values)) == 1:
        return wilson_interval(sum(values), len(values)) if values[0] in (0.0, 1.0) else None
    return bootstrap_interval(values, seed)


# --- one policy against another, on the same prompts ---


@dataclass(frozen=True)
class Outcomes:
    """Numbers of prompts on which one policy is better than another, equally good, and worse."""

    wins: int
    ties: int
    losses: int

    @property
    def prompts(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def win_rate(self) -> float:
        """A tie is half a win."""
        return (self.wins + self.ties / 2) / self.prompts

    @property
    def interval(self) -> Interval:
        return win_interval(self.wins, self.ties, self.losses)

    @property
    def p_value(self) -> float:
        return win_p_value(self.wins, self.losses)


def count_outcomes(values: Sequence[float], others: Sequence[float]) -> Outcomes:
    """Compares values on the same prompts. Differences within rounding (1e-12, relative) are ties."""
    wins = ties = losses = 0
    for value, other in zip(values, others, strict=True):
        if math.isclose(value, other, rel_tol=1e-12):
            ties += 1
        elif value > other:
            wins += 1
        else:
            losses += 1
    return Outcomes(wins, ties, losses)


def win_interval(wins: int, ties: int, losses: int) -> Interval:
    """The 95% interval of a win rate, (wins + ties/2) / prompts: Tango's score interval (1998), continuity-corrected.

    It excludes 50% exactly where `win_p_value` is below 5%, and has a width even where one side wins every prompt.
    (0, 1) without prompts.

    >>> tuple(round(edge, 3) for edge in win_interval(30, 0, 0))
    (0.859, 1.0)
    """
    n, margin = wins + ties + losses, wins - losses
    if n == 0:
        return 0.0, 1.0

    def too_far(difference: float) -> bool:
        return _score(wins, losses, n, difference) > Z

    middle = margin / n
    return 0.5 + _edge(too_far, middle, -1.0) / 2, 0.5 + _edge(too_far, middle, 1.0) / 2


def _score(wins: int, losses: int, n: int, difference: float) -> float:
    """How many standard errors wins − losses are from n·difference, less the correction of one (Tango 1998, Eq. 9)."""
    gap = max(abs(wins - losses - n * difference) - 1, 0.0)
    # maximum-likelihood share of losses, given that wins are more frequent by `difference`: 2n·q² + b·q + c = 0
    b = (2 * n - wins + losses) * difference - wins - losses
    c = -losses * difference * (1 - difference)
    q = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * q + difference * (1 - difference))
    return gap / math.sqrt(variance) if variance > 0 else math.inf if gap else 0.0


def _edge(too_far: Callable[[float], bool], inside: float, outside: float) -> float:
    """The boundary of `too_far` between `inside`, where it is false, and `outside`, by bisection."""
    if not too_far(outside):
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if too_far(middle) else (middle, outside)
    return inside


def difference_interval(differences: Sequence[float], seed: int = 0) -> Interval | None:
    """The 95% interval of a mean difference over prompts; None of fewer than two.

    Of shares, whose differences are −1, 0 or 1: `win_interval`, which has a width even where all are the same. Of other
    values: the bootstrap's, or Student's of very many, for the bootstrap holds 10,000 resamples of them in memory.

    >>> tuple(round(edge, 3) for edge in difference_interval([0.0] * 100))
    (-0.054, 0.054)
    """
    n = len(differences)
    if n < 2:
        return None
    if set(differences) <= {-1.0, 0.0, 1.0}:
        low, high = win_interval(*(sum(one == outcome for one in differences) for outcome in (1.0, 0.0, -1.0)))
        return 2 * low - 1, 2 * high - 1
    if n <= MOST_RESAMPLED:
        return bootstrap_interval(differences, seed)
    half = student_quantile(n - 1) * float(np.std(differences, ddof=1)) / math.sqrt(n)
    return float(np.mean(differences)) - half, float(np.mean(differences)) + half


MOST_RESAMPLED = 5000


def win_p_value(wins: int, losses: int) -> float:
    """Probability that equally good policies differ as much: McNemar's test, two-sided (1947; Edwards 1948's correction).

    Ties carry no information about which is better. Its exact size, that of the sign test, never exceeds 5%.

    >>> round(win_p_value(21, 9), 4)
    0.0446
    """
    if wins + losses == 0:
        return 1.0
    gap = max(abs(wins - losses) - 1, 0)
    return math.erfc(gap / math.sqrt(2 * (wins + losses)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of several comparisons, which keep the family-wise error rate (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda n: p_values[n])):
        largest = max(largest, min((len(p_values) - rank) * p_values[at], 1.0))
        adjusted[at] = largest
    return adjusted


def needed_prompts(win_rate: float, comparisons: int = 1, power: float = 0.8) -> int:
    """Prompts needed to find a policy with this win rate and no ties better or worse, with probability `power`.

    A proportion against one half at 5%, divided among the comparisons (Fleiss 1981, Eqs. 2.6 and 2.7).
    """
    far = abs(win_rate - 0.5)
    normal = NormalDist()
    reach = -normal.inv_cdf(0.025 / comparisons) / 2 + normal.inv_cdf(power) * math.sqrt(win_rate * (1 - win_rate))
    plain = (reach / far) ** 2
    return math.ceil(plain / 4 * (1 + math.sqrt(1 + 2 / (plain * far))) ** 2)

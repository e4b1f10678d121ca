"""A win rate that may be looked at after every judgment: a confidence sequence by betting, and what it shows so far.

Waudby-Smith & Ramdas (2024), Estimating means of bounded random variables by betting, Theorem 3: hedged capital with
predictable plug-in bets. The interval covers the mean at all times together, so work may stop at any look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tiebreak.measures.statistics import Interval

Array = NDArray[np.float64]

LEVEL = 0.05
CAUTION = 0.5
"""Largest share of the capital that one bet can lose (c of the paper, section 4.2)."""
GRID = 401
"""Means that are tested: steps of 0.0025."""
SMALLEST_GAP = 0.1
"""A win rate nearer to one half than this counts as no difference."""
State = Literal["first", "second", "no difference", "undecided"]


def bets(values: Array, level: float = LEVEL) -> Array:
    """The stake before each value, shape of `values`, the last axis being time (the paper's Eq. 26).

    It depends on earlier values alone.
    """
    n = values.shape[-1]
    count = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(values, axis=-1)) / (count + 1)
    variances = (0.25 + np.cumsum((values - means) ** 2, axis=-1)) / (count + 1)
    first = np.full((*values.shape[:-1], 1), 0.25)
    before = np.concatenate([first, variances[..., :-1]], axis=-1)
    return np.asarray(np.sqrt(2 * math.log(2 / level) / (before * count * np.log(count + 1))))


def log_capital(values: Array, mean: Array | float, level: float = LEVEL) -> Array:
    """Log of the hedged capital against a mean after each value; shapes as numpy broadcasts them, time last.

    If the values have that mean, given the earlier ones, the capital reaches 1/level with probability `level` at most
    (Ville's inequality).
    """
    stake = bets(values, level)
    apart, at = values - mean, np.asarray(mean)
    up = np.minimum(stake, CAUTION / np.maximum(at, 1e-12))
    down = np.minimum(stake, CAUTION / np.maximum(1 - at, 1e-12))
    above, below = np.cumsum(np.log1p(up * apart), axis=-1), np.cumsum(np.log1p(-down * apart), axis=-1)
    return np.asarray(np.maximum(above, below) - math.log(2))


def confidence_sequence(values: Array, level: float = LEVEL) -> Interval:
    """The means that no look so far has excluded, from values of 0 to 1 in the order in which they came, shape (n,)."""
    if not len(values):
        return 0.0, 1.0
    means = np.linspace(0.0, 1.0, GRID)
    highest = np.concatenate(
        [log_capital(values, part[:, None], level).max(axis=1) for part in np.array_split(means, 8)]
    )
    kept = means[highest < math.log(1 / level)]
    if not len(kept):
        return float(values.mean()), float(values.mean())
    step = means[1]
    return max(float(kept[0]) - step, 0.0), min(float(kept[-1]) + step, 1.0)


@dataclass(frozen=True)
class Look:
    """A win rate at one look."""

    n: int
    """independent values: prompts whose judgments are complete"""
    win_rate: float | None
    interval: Interval
    state: State
    most: float
    """largest distance of the win rate from one half that is not excluded"""
    more: int
    """if undecided, about how many more values decide it; 0 otherwise"""

    def as_json(self) -> dict[str, Any]:
        rate = None if self.win_rate is None else round(self.win_rate, 6)
        interval = [round(edge, 6) for edge in self.interval]
        return {**vars(self), "win_rate": rate, "interval": interval, "most": round(self.most, 6)}


def look(values: Sequence[float], level: float = LEVEL, gap: float = SMALLEST_GAP) -> Look:
    """The verdict so far on the first policy's win rate.

    Args:
        values: its outcomes in the order in which they came, 0 (lost) to 1 (won).
        level: probability of a false verdict at any time; divided by their number if there are several comparisons.
        gap: smallest distance from one half that matters.
    """
    outcomes = np.asarray(values, dtype=np.float64)
    low, high = confidence_sequence(outcomes, level)
    most = float(max(abs(high - 0.5), abs(0.5 - low)))
    state: State = "undecided"
    if low > 0.5 or high < 0.5:
        state = "first" if low > 0.5 else "second"
    elif most <= gap:
        state = "no difference"
    more = _values_missing(outcomes, level, gap) if state == "undecided" else 0
    return Look(len(outcomes), float(outcomes.mean()) if len(outcomes) else None, (low, high), state, most, more)


def _values_missing(outcomes: Array, level: float, gap: float) -> int:
    """More values until the capital against the nearest wrong mean is enough, at the growth of the best constant bet.

    With a gap that matters, that mean is one half; otherwise it is the nearer edge of "no difference".
    """
    n = len(outcomes)
    mean = float((outcomes.sum() + 0.5) / (n + 1))
    variance = max(float(((outcomes - mean) ** 2).sum() + 0.25) / (n + 1), 0.01)
    seen = abs(mean - 0.5)
    apart = max(seen, gap) if seen >= gap / 2 else gap - seen
    against = 0.5 if seen >= gap / 2 else 0.5 + math.copysign(gap, mean - 0.5)
    capital = float(log_capital(outcomes, against, level)[-1]) if n else 0.0
    growth = apart**2 / (2 * (variance + apart**2))
    return max(math.ceil((math.log(2 / level) - capital) / growth), 1)

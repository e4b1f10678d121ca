"""Probabilities with which pairs were selected, and estimates about all pairs from those that were.

A selection has two arms: a simple random sample of the whole pool, and the best of the rest by a strategy's ranking. So
every pair has a known probability of selection above 0, and figures about the pool need no assumption about the strategy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tiebreak.measures.agreement import Figure
from tiebreak.measures.statistics import student_quantile


def selection_probabilities(pool: int, drawn: int, taken: int) -> npt.NDArray[np.float64]:
    """The probability of selection by rank, shape (pool,): `drawn` pairs at random, then the best `taken` of the rest.

    The pair of rank k (0 is the best) is drawn with probability r/N. If it is not, it is taken where fewer than `taken` of
    the k better ones are left, which is where at least k − taken + 1 of them were drawn; their number is hypergeometric.
    The probabilities sum to drawn + taken.

    Args:
        pool, drawn, taken: numbers N, r and a, with r + a ≤ N.

    >>> selection_probabilities(4, 1, 1).round(6).tolist()
    [1.0, 0.5, 0.25, 0.25]
    """
    share = drawn / pool
    found = np.full(pool, share)
    found[:taken] = 1.0
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, pool + 1)))])  # log n!

    def choose(n: int, of: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.asarray(logs[n] - logs[of] - logs[n - of])

    for rank in range(taken, min(taken + drawn, pool)):
        better = np.arange(max(rank - taken + 1, rank - (pool - 1 - drawn), 0), min(drawn, rank) + 1)
        outcomes = choose(drawn, better) + choose(pool - 1 - drawn, rank - better) if drawn < pool else np.array([])
        total = math.lgamma(pool) - math.lgamma(rank + 1) - math.lgamma(pool - rank)
        found[rank] = share + (1 - share) * float(np.exp(outcomes - total).sum())
    return found


def inverse_probability_mean(values: Sequence[float], probabilities: Sequence[float], pool: int) -> Figure:
    """The mean of a value over the pool, from the selected pairs: Σ value/probability, over the pool's size.

    Horvitz & Thompson (1952), which is unbiased whatever the strategy. The interval is Student's, with the variance of
    independent draws, Σ (1 − π)/π² · (value − mean)²: for draws without replacement it is a little too wide. Pairs that are
    certain to be selected add none.

    >>> inverse_probability_mean([1, 0, 1], [1.0, 0.5, 0.25], 8).value
    0.625
    """
    n = len(values)
    if n == 0:
        return Figure(None, 0, None)
    y, p = np.asarray(values, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    mean = float((y / p).sum()) / pool
    if n < 2:
        return Figure(mean, n, None)
    half = student_quantile(n - 1) * float(np.sqrt((((1 - p) / p**2) * (y - mean) ** 2).sum())) / pool
    return Figure(mean, n, (mean - half, mean + half))

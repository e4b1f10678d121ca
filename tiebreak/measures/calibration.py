"""Calibration of stated confidences: whether verdicts of confidence c are right in a share c of the cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiebreak.measures.statistics import Interval, clustered_interval

BINS = 5
"""of equal width over confidences from ½ to 1; more would hold only a few held-out pairs each"""


@dataclass(frozen=True)
class Bin:
    """Pairs with similar confidence."""

    low: float
    high: float
    n: int
    confidence: float
    """mean probability that the model gives to its preferred answer"""
    accuracy: float
    """share of pairs in which that answer was the chosen one"""
    interval: Interval


def bins_by_confidence(
    confidences: Sequence[float], right: Sequence[float], groups: Sequence[str], bins: int = BINS
) -> list[Bin]:
    """The non-empty bins of verdicts.

    Args:
        confidences: of the preferred sides, ½ to 1.
        right: 1 where the preferred side is the better one, else 0; ½ of a toss.
        groups: the verdicts' prompts.
    """
    array = np.asarray(confidences, dtype=np.float64)
    places = np.clip(((array - 0.5) * 2 * bins).astype(int), 0, bins - 1)
    found = []
    for place in range(bins):
        rows = np.flatnonzero(places == place).tolist()
        if rows:
            values = [right[row] for row in rows]
            found.append(
                Bin(
                    low=0.5 + place / (2 * bins),
                    high=0.5 + (place + 1) / (2 * bins),
                    n=len(rows),
                    confidence=float(array[rows].mean()),
                    accuracy=sum(values) / len(values),
                    interval=clustered_interval(values, [groups[row] for row in rows]),
                )
            )
    return found


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Σ share of pairs · |accuracy − confidence| over the bins (Naeini et al. 2015; Guo et al. 2017, Eq. 3)."""
    total = sum(one.n for one in bins)
    return sum(one.n / total * abs(one.accuracy - one.confidence) for one in bins)

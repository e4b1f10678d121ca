"""Intervals for the figures that the reports print: no share or mean leaves a stage without one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]


def wilson_interval(successes: float, n: float, z: float = 1.959964) -> Interval:
    """The 95% interval of a share of independent trials (Wilson 1927); (0, 1) when n is 0.

    Neither needs to be whole: n may be the number of independent trials that dependent ones are worth.

    >>> tuple(round(edge, 4) for edge in wilson_interval(8, 10))
    (0.4902, 0.9433)
    """
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = float(centre - half) if successes else 0.0  # exactly so, and not to rounding
    return low, float(centre + half) if successes < n else 1.0


def clustered_interval(values: Sequence[float], groups: Sequence[str]) -> Interval:
    """The 95% interval of a mean of values from 0 to 1 that come in groups, as several pairs of one prompt do.

    Wilson's, with the number of independent values that would vary as much: n over the design effect (Kish 1965), at
    most n. Where each value is a group of its own it is `wilson_interval`; where all values are 0, or all 1, nothing
    tells how much a group's values depend on one another, and each group counts once.
    """
    n = len(values)
    if n == 0:
        return 0.0, 1.0
    array = np.asarray(values, dtype=np.float64)
    share = float(array.mean())
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    totals = np.bincount(group, weights=array - share)
    if not 0.0 < share < 1.0:
        return wilson_interval(share * len(totals), len(totals))
    grouped = float(np.square(totals).sum()) / n**2
    independent = share * (1 - share) / n
    effective = n if grouped <= independent else n * independent / grouped
    return wilson_interval(share * effective, effective)


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, resamples: int = 10_000, groups: Sequence[str] | None = None
) -> Interval:
    """The 95% percentile-bootstrap interval of a mean (Efron 1979), one value a prompt.

    A comparison of two policies on the same prompts is paired by giving the per-prompt difference (or win).

    Args:
        groups: where prompts have several values each, the prompt of every value. Whole prompts are drawn then, with all
            of their values (the cluster bootstrap, Field and Welsh 2007).
    """
    if not len(values):
        raise ValueError("no values to resample")
    array = np.asarray(values, dtype=np.float64)
    group = np.arange(len(array))
    if groups is not None:
        _, group = np.unique(np.asarray(groups), return_inverse=True)
    totals, counts = np.bincount(group, weights=array), np.bincount(group)
    picks = np.random.default_rng(seed).integers(0, len(totals), size=(resamples, len(totals)))
    low, high = np.percentile(totals[picks].sum(axis=1) / counts[picks].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)

"""A figure with its n and 95% interval, and the intervals of shares: no figure is printed without them."""

from __future__ import annotations

from labeling_ui.quality.votes import Floats
from tiebreak.measures.agreement import Figure as Figure
from tiebreak.measures.statistics import wilson_interval


def share_of_clusters(successes: Floats, trials: Floats) -> Figure:
    """The share Σ successes / Σ trials of trials in clusters (here: items), each of shape (clusters,).

    Wilson's interval at the number of independent trials with the ratio estimator's variance (Kish 1965; Korn & Graubard
    1998). Where all trials agree, each cluster counts once.
    """
    successes, trials = successes[trials > 0], trials[trials > 0]
    n = float(trials.sum())
    if not n:
        return Figure(None, 0, None)
    share = float(successes.sum()) / n
    variance = float(((successes - share * trials) ** 2).sum()) / n**2
    spread = share * (1 - share)
    effective = float(len(trials)) if spread == 0 else n if variance == 0 else min(spread / variance, n)
    return Figure(share, int(n), wilson_interval(share * effective, effective))


def mean_over_clusters(successes: Floats, trials: Floats) -> Figure:
    """The mean of each cluster's own share, successes / trials: every cluster (here: item) has one weight, however many
    trials it has. `n` is the number of clusters.

    Wilson's interval at the number of independent trials with the variance of that mean, at most Σ trials. Where all
    clusters have the same share, each counts once.
    """
    successes, trials = successes[trials > 0], trials[trials > 0]
    n = len(trials)
    if not n:
        return Figure(None, 0, None)
    shares = successes / trials
    mean = float(shares.mean())
    variance = float(((shares - mean) ** 2).sum()) / n**2
    effective = float(n) if variance == 0 else min(mean * (1 - mean) / variance, float(trials.sum()))
    return Figure(mean, n, wilson_interval(mean * effective, effective))


def share(successes: float, n: float) -> Figure:
    """The share of independent trials, with Wilson's interval."""
    return Figure(successes / n if n else None, int(n), wilson_interval(successes, n) if n else None)

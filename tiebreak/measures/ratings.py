"""Several policies at once: ratings, win rates that length does not explain, and verdicts among many comparisons.

Outcomes are shares from 0 (lost) to 1 (won) per prompt, a tie being one half; with several seeds, their mean. Prompts are
the independent units everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tiebreak.measures.statistics import (
    Interval,
    student_quantile,
    student_within,
    wilson_interval,
    win_interval,
    win_p_value,
)

Array = NDArray[np.float64]

LEVEL = 0.05
MARGIN = 0.05
"""A win rate of 50% less this is still "no worse"."""
MANY_PROMPTS = 30
"""Below this many prompts there is no verdict, whatever the test (Hesterberg 2015, section 4)."""
PRIOR_TIES = 1.0
"""Tied games added to each pair, so that a policy that always wins has a finite rating."""
ELO = 400 / math.log(10)
"""Points of Elo's scale for one nat of log-odds."""
Outcome = Literal["better", "no worse", "worse", "undecided", "too few"]


def outcomes_of(scores: Array, others: Array) -> Array:
    """Won (1), tied (½) and lost (0) prompts, from scores of equal shape. Differences within rounding are ties."""
    tied = np.isclose(scores, others, rtol=1e-12, atol=1e-12)
    return np.where(tied, 0.5, (scores > others).astype(np.float64))


# --- ratings ---


@dataclass(frozen=True)
class Ratings:
    """Ratings in log-odds, their mean being 0, shape (policies,), and their covariance."""

    values: Array
    covariance: Array
    degrees: int
    """degrees of freedom: prompts − 1"""

    def interval(self, at: int) -> Interval:
        """The 95% interval of one rating."""
        half = _quantile(self.degrees) * math.sqrt(max(float(self.covariance[at, at]), 0.0))
        return float(self.values[at]) - half, float(self.values[at]) + half


def bradley_terry(outcomes: Array, prior: float = PRIOR_TIES) -> Ratings:
    """Ratings of all policies from their outcomes against each other (Bradley and Terry 1952), by maximum likelihood.

    The covariance is the sandwich of the likelihood, clustered by prompt (Liang and Zeger 1986): all pairs of one prompt
    share its difficulty.

    Args:
        outcomes: of policy i against j at prompt p, shape (policies, policies, prompts); `outcomes[j, i]` is
            `1 - outcomes[i, j]`.
        prior: tied games added to each pair.
    """
    count, _, prompts = outcomes.shape
    apart = 1.0 - np.eye(count)
    won, games = (outcomes.sum(axis=2) + prior / 2) * apart, (prompts + prior) * apart
    values = np.zeros(count)
    level = np.full((count, count), 1.0 / count)  # makes the information invertible: ratings have no absolute level
    for _ in range(200):
        expected = _sigmoid(values[:, None] - values[None, :])
        information = _laplacian(games * expected * (1 - expected)) + level
        step = np.linalg.solve(information, (won - games * expected).sum(axis=1))
        values += step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    values -= values.mean()
    expected = _sigmoid(values[:, None] - values[None, :])
    inverse = np.linalg.inv(_laplacian(games * expected * (1 - expected)) + level)
    gradients = ((outcomes - expected[:, :, None]) * apart[:, :, None]).sum(axis=1)
    gradients -= gradients.mean(axis=1, keepdims=True)
    middle = gradients @ gradients.T * (prompts / max(prompts - 1, 1))
    return Ratings(values, inverse @ middle @ inverse, max(prompts - 1, 1))


def _laplacian(weights: Array) -> Array:
    return np.diag(weights.sum(axis=1)) - weights


def _sigmoid(values: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-values))


# --- one policy against another ---


def share_interval(outcomes: Array) -> Interval:
    """The 95% interval of a win rate over prompts, shape (prompts,).

    Of single seeds, the score interval with ties (`win_interval`); of several, Wilson's at the number of Bernoulli trials
    that would vary as much as the prompts do.
    """
    n, mean = len(outcomes), float(np.mean(outcomes))
    if bool(np.isin(outcomes, (0.0, 0.5, 1.0)).all()):
        wins, losses = int((outcomes == 1).sum()), int((outcomes == 0).sum())
        return win_interval(wins, n - wins - losses, losses)
    variance = float(np.var(outcomes, ddof=1)) / n if n > 1 else 0.0
    if variance == 0.0:
        return wilson_interval(mean * n, n)
    trials = mean * (1 - mean) / variance
    return wilson_interval(mean * trials, trials, _quantile(n - 1))


def share_p_value(outcomes: Array) -> float:
    """Probability that equally good policies differ as much: McNemar's test, or Student's of means over seeds."""
    if bool(np.isin(outcomes, (0.0, 0.5, 1.0)).all()):
        return win_p_value(int((outcomes == 1).sum()), int((outcomes == 0).sum()))
    n = len(outcomes)
    error = float(np.std(outcomes, ddof=1)) / math.sqrt(n)
    gap = abs(float(outcomes.mean()) - 0.5)
    if error == 0.0:
        return 0.0 if gap else 1.0
    return 1.0 - student_within(gap / error, n - 1)


@dataclass(frozen=True)
class Comparison:
    """One policy against another: its win rate, and what can be concluded from it."""

    win_rate: float
    interval: Interval
    p_value: float
    """adjusted, if there are several comparisons"""
    outcome: Outcome
    more: int
    """if undecided, about how many more prompts would tell; 0 otherwise"""


def judge(outcomes: Array, p_value: float | None = None, margin: float = MARGIN) -> Comparison:
    """The verdict on outcomes of shape (prompts,).

    `no worse`: not shown to be better, but the interval excludes a win rate below 50% less the margin.

    Args:
        p_value: adjusted for the number of comparisons; None: of this one alone.
    """
    mean, interval = float(np.mean(outcomes)), share_interval(outcomes)
    p_value = share_p_value(outcomes) if p_value is None else p_value
    if len(outcomes) < MANY_PROMPTS:
        outcome: Outcome = "too few"
    elif p_value < LEVEL:
        outcome = "better" if mean > 0.5 else "worse"
    else:
        outcome = "no worse" if interval[0] > 0.5 - margin else "undecided"
    more = _prompts_missing(outcomes, margin) if outcome in ("undecided", "too few") else 0
    return Comparison(mean, interval, p_value, outcome, more)


def _prompts_missing(outcomes: Array, margin: float) -> int:
    """More prompts that would show the observed gap, or one of `margin` if larger, four times in five."""
    n = len(outcomes)
    gap = max(abs(float(np.mean(outcomes)) - 0.5), margin)
    deviation = float(np.std(outcomes, ddof=1)) if n > 1 else 0.5
    reach = NormalDist().inv_cdf(1 - LEVEL / 2) + NormalDist().inv_cdf(0.8)
    return max(math.ceil((reach * max(deviation, 0.25) / gap) ** 2), MANY_PROMPTS + 1) - n if n else MANY_PROMPTS


def length_controlled(outcomes: Array, lengths: Array, others: Array) -> tuple[float, Interval]:
    """The win rate that answers of equal length would have, with its 95% interval (Dubois et al. 2024, Eq. 2).

    A logistic regression of the outcomes on tanh of the standardised length difference, at a difference of 0; without
    the paper's term for the difficulty of prompts, which needs many policies. One tied prompt of equal length is added,
    and the slope has a ridge of 0.1: a policy that always wins has a finite estimate.

    Args:
        outcomes: shape (prompts,).
        lengths, others: tokens of both policies' answers.
    """
    difference = lengths - others
    deviation = float(np.std(difference))
    slope = np.tanh(difference / deviation) if deviation > 0 else np.zeros_like(difference)
    design = np.stack([np.ones_like(slope), slope], axis=1)
    ridge, centre = np.diag([0.0, 0.1]), np.array([1.0, 0.0])
    weights = np.zeros(2)
    for _ in range(100):
        expected, tied = _sigmoid(design @ weights), float(_sigmoid(weights[:1])[0])
        gradient = design.T @ (outcomes - expected) + (0.5 - tied) * centre - ridge @ weights
        curvature = (design * (expected * (1 - expected))[:, None]).T @ design
        curvature += tied * (1 - tied) * np.outer(centre, centre) + ridge
        step = np.linalg.solve(curvature, gradient)
        weights += step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    inverse = np.linalg.inv(curvature)
    each = design * (outcomes - _sigmoid(design @ weights))[:, None]
    n = len(outcomes)
    error = math.sqrt(float((inverse @ (each.T @ each) @ inverse)[0, 0]) * n / max(n - 2, 1))
    half = _quantile(max(n - 2, 1)) * error
    low, at, high = _sigmoid(np.array([weights[0] - half, weights[0], weights[0] + half]))
    return float(at), (float(low), float(high))


def _quantile(degrees: int) -> float:
    return student_quantile(max(degrees, 1))

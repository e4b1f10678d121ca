"""How far each rater can be relied on, and what their votes together say: two models fitted without known answers.

Dawid & Skene (1979): every rater has a table of what they say when the first, neither or the second completion is the
better one. Bradley & Terry (1952), with Davidson's (1970) ties: every completion has a strength, and every rater a
discrimination, by which they tell strengths apart (as Chen et al. 2013 weigh crowd workers), and a readiness to call a
tie. Both are fitted by EM to a maximum a posteriori; neither looks at the order of the completions, so that swapping
first and second swaps the answer and nothing else.

They can only find what raters have in common: where most err the same way, they take the error for the truth. Gold
pairs and answers settled by leads are therefore held fixed where there are any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from labeling_ui.figures import Figure
from labeling_ui.votes import Floats, Integers

Model = Literal["dawid_skene", "bradley_terry"]

CLASSES = (-1, 0, 1)
"""the second completion is better, neither is, the first is: the columns of `chances`"""
UNKNOWN = 9
POOLED_VOTES = 1.0
"""Dawid-Skene: each row of a rater's table begins with so many votes as raters in general cast them."""
DISCRIMINATION = (1.0, 2.0)
"""Bradley-Terry: mean and standard deviation of a rater's discrimination before any vote; strengths have (0, 1)."""
TIE_READINESS = (0.0, 2.0)
"""likewise of the log-odds of a tie between two equally strong completions"""
TOLERANCE = 1e-6
MAX_ITERATIONS = 500
REPLICATES = (20, 100)
"""bootstrap replicates behind an interval: at least, at most"""
REPLICATE_ITERATIONS = 25
REPLICATED_VOTES = 500_000
"""votes refitted in all replicates together"""
MOST_REPLICATED = 50_000
"""votes in one replicate; of more, some are drawn, and the interval is scaled to all"""
GRID: Floats = np.linspace(-4, 4, 41) * np.sqrt(2)
"""differences of strengths"""
BEFORE_VOTES: Floats = np.exp(-(GRID**2) / 4) / np.exp(-(GRID**2) / 4).sum()


@dataclass(frozen=True)
class Ballots:
    """One vote a rater and item."""

    rater_ids: tuple[str, ...]
    item: Integers
    """(votes,)"""
    rater: Integers
    sign: Integers
    """1 first, −1 second, 0 neither"""
    prompt: Integers
    """(items,): whose completions an item compares; those of one prompt are resampled together"""
    known: Integers
    """(items,): the class of an item whose answer is known; `UNKNOWN` elsewhere"""


@dataclass(frozen=True)
class Fit:
    """What a model makes of some ballots."""

    chances: Floats
    """(items, 3): Dawid-Skene: that each class is true; Bradley-Terry: that a typical rater would say it"""
    first_better: Floats
    """(items,): the chance that the first completion is the better one, given that one of them is"""
    accuracy: Floats
    """(raters,): the chance that a rater says what is so; Bradley-Terry: names the better one of a typical pair when
    they name one"""
    iterations: int
    converged: bool
    parameters: tuple[Floats, ...]


@dataclass(frozen=True)
class Reliability:
    """A rater's accuracy in the eyes of a model; n counts their votes."""

    rater_id: str
    accuracy: Figure
    discrimination: float | None = None
    """Bradley-Terry's: 0 guesses, below 0 names the worse one more often than not"""


def measure_reliability(model: Model, ballots: Ballots) -> tuple[Fit, list[Reliability]]:
    """The fit, and each rater's accuracy with a 95% interval from resampled prompts (Rubin 1981), on the logit scale.

    Each replicate begins at the fit and iterates `REPLICATE_ITERATIONS` times at most.
    """
    refit = fit_dawid_skene if model == "dawid_skene" else fit_bradley_terry
    fit = refit(ballots)
    votes = np.bincount(ballots.rater, minlength=len(ballots.rater_ids))
    spread = _replicated_spread(refit, ballots, fit) if len(ballots.item) else np.zeros(len(votes))
    discrimination = fit.parameters[0] if model == "bradley_terry" else None
    raters = []
    for number, name in enumerate(ballots.rater_ids):
        if votes[number]:
            figure = _on_logit_scale(float(fit.accuracy[number]), float(spread[number]), int(votes[number]))
            told = None if discrimination is None else round(float(discrimination[number]), 4)
            raters.append(Reliability(name, figure, told))
    return fit, sorted(raters, key=lambda one: one.rater_id)


def describe_reliability(ballots: Ballots) -> dict[str, Any]:
    """Both models' view of every rater, for a report."""
    told: dict[str, Any] = {}
    models: tuple[Model, ...] = ("dawid_skene", "bradley_terry")
    for model in models:
        fit, raters = measure_reliability(model, ballots)
        rows = [
            {"rater": one.rater_id, "accuracy": one.accuracy.as_json()}
            | ({} if one.discrimination is None else {"discrimination": one.discrimination})
            for one in raters
        ]
        told[model] = {"iterations": fit.iterations, "converged": fit.converged, "raters": rows}
    return told


def _replicated_spread(refit: Callable[..., Fit], ballots: Ballots, fit: Fit) -> Floats:
    """The standard deviation of each rater's logit accuracy over bootstrap replicates, prompts weighed by exponential
    draws."""
    chance = np.random.default_rng(0)
    drawn, start = _draw_items(ballots, fit, chance)
    fewest, most = REPLICATES
    logits = []
    for _ in range(int(np.clip(REPLICATED_VOTES // len(drawn.item), fewest, most))):
        weights = chance.exponential(size=int(drawn.prompt.max()) + 1)[drawn.prompt]
        again = refit(drawn, weights=weights, start=start, iterations=REPLICATE_ITERATIONS)
        logits.append(_logit(again.accuracy))
    size = len(ballots.rater_ids)
    of, all_votes = (np.bincount(one.rater, minlength=size) for one in (drawn, ballots))
    scale = np.sqrt(of / np.maximum(all_votes, 1))
    spread: Floats = np.std(logits, axis=0, ddof=1) * scale
    return spread


def _draw_items(ballots: Ballots, fit: Fit, chance: np.random.Generator) -> tuple[Ballots, Fit]:
    """Some items with about `MOST_REPLICATED` votes, and the fit of theirs; all where there are no more."""
    share = MOST_REPLICATED / len(ballots.item)
    if share >= 1:
        return ballots, fit
    kept = chance.random(len(ballots.prompt)) < share
    votes, number = kept[ballots.item], np.cumsum(kept) - 1
    item, rater, sign = number[ballots.item[votes]], ballots.rater[votes], ballots.sign[votes]
    drawn = Ballots(ballots.rater_ids, item, rater, sign, ballots.prompt[kept], ballots.known[kept])
    return drawn, replace(fit, chances=fit.chances[kept], first_better=fit.first_better[kept])


def _on_logit_scale(share: float, spread: float, n: int) -> Figure:
    middle = float(_logit(np.array([share]))[0])
    low, high = (1 / (1 + np.exp(-(middle + side * 1.959964 * spread))) for side in (-1, 1))
    return Figure(share, n, (float(low), float(high)))


def _logit(share: Floats) -> Floats:
    inside = np.clip(share, 1e-6, 1 - 1e-6)
    logit: Floats = np.log(inside / (1 - inside))
    return logit


# --- Dawid-Skene ---


def fit_dawid_skene(
    ballots: Ballots,
    *,
    weights: Floats | None = None,
    start: Fit | None = None,
    iterations: int = MAX_ITERATIONS,
    symmetric: bool = True,
    pooled_votes: float = POOLED_VOTES,
) -> Fit:
    """Dawid & Skene 1979 by EM, over the classes second, neither, first.

    Args:
        weights: of the items, shape (items,); equal if None.
        start: an earlier fit to begin at; the shares of votes if None.
        symmetric: what is said of the first when it is better is what is said of the second when that is. Without
            this and without pooled votes it is the model as it was published.
    """
    items = len(ballots.prompt)
    weights = np.ones(items) if weights is None else weights
    said = ballots.sign + 1
    chances = _vote_shares(ballots) if start is None else start.chances
    done, converged = 0, False
    prior, tables = _dawid_skene_tables(ballots, chances, weights, symmetric, pooled_votes)
    while done < iterations and not converged:
        logs = np.log(np.maximum(tables, 1e-10))[ballots.rater, :, said]
        joint = np.log(np.maximum(prior, 1e-10)) + _sum_by(ballots.item, logs, items)
        before, chances = chances, _hold_known(_softmax(joint), ballots.known)
        prior, tables = _dawid_skene_tables(ballots, chances, weights, symmetric, pooled_votes)
        done, converged = done + 1, bool(np.abs(chances - before).max(initial=0.0) < TOLERANCE)
    accuracy = np.einsum("z,rzz->r", prior, tables)
    decided = chances[:, 0] + chances[:, 2]
    first_better = np.divide(chances[:, 2], decided, out=np.full(items, 0.5), where=decided > 0)
    return Fit(chances, first_better, accuracy, done, converged, (tables, prior))


def _dawid_skene_tables(
    ballots: Ballots, chances: Floats, weights: Floats, symmetric: bool, pooled_votes: float
) -> tuple[Floats, Floats]:
    """The M-step: (share of each class, shape (3,)), and (raters' tables, shape (raters, 3 true, 3 said))."""
    raters = len(ballots.rater_ids)
    cell = ballots.rater * 3 + ballots.sign + 1
    weighed = (chances * weights[:, None])[ballots.item]
    counts: Floats = np.stack(
        [np.bincount(cell, weights=weighed[:, z], minlength=raters * 3).reshape(raters, 3) for z in range(3)], axis=1
    )
    prior: Floats = weights @ chances
    if symmetric:
        counts, prior = (counts + counts[:, ::-1, ::-1]) / 2, (prior + prior[::-1]) / 2
    if pooled_votes:
        everyone = counts.sum(axis=0) + 1
        counts = counts + pooled_votes * everyone / everyone.sum(axis=1, keepdims=True)
    totals = counts.sum(axis=2, keepdims=True)
    tables = np.divide(counts, totals, out=np.full_like(counts, 1 / 3), where=totals > 0)
    return prior / max(float(prior.sum()), 1e-10), tables


def _vote_shares(ballots: Ballots) -> Floats:
    items = len(ballots.prompt)
    tally = np.bincount(ballots.item * 3 + ballots.sign + 1, minlength=items * 3).reshape(items, 3).astype(np.float64)
    total = tally.sum(axis=1, keepdims=True)
    return _hold_known(np.divide(tally, total, out=np.full_like(tally, 1 / 3), where=total > 0), ballots.known)


def _hold_known(chances: Floats, known: Integers) -> Floats:
    held = known != UNKNOWN
    if held.any():
        chances = chances.copy()
        chances[held] = np.eye(3)[known[held] + 1]
    return chances


def _sum_by(place: Integers, values: Floats, size: int) -> Floats:
    """Sums of rows by their place, shape (size, columns)."""
    return np.stack([np.bincount(place, weights=column, minlength=size) for column in values.T], axis=1)


def _softmax(logs: Floats) -> Floats:
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    chances: Floats = powers / powers.sum(axis=1, keepdims=True)
    return chances


# --- Bradley-Terry ---


def fit_bradley_terry(
    ballots: Ballots,
    *,
    weights: Floats | None = None,
    start: Fit | None = None,
    iterations: int = MAX_ITERATIONS,
) -> Fit:
    """Bradley-Terry with ties and a discrimination per rater, by EM.

    A rater of discrimination a says first, second or neither of completions whose strengths differ by d with odds
    exp(a·d/2) : exp(−a·d/2) : exp(ν) (Davidson 1970), ν being their readiness to call a tie. Strengths are (0, 1)
    before any vote, differences (0, √2); each item's difference is integrated out on a grid (Bock & Aitkin 1981).
    Of larger pairs, too, every difference is taken by itself.

    Args:
        weights: of the items, shape (items,); equal if None.
        start: an earlier fit to begin at.
    """
    items, raters = len(ballots.prompt), len(ballots.rater_ids)
    weights = np.ones(items) if weights is None else weights
    discrimination, readiness = (np.ones(raters), np.zeros(raters)) if start is None else start.parameters
    done, converged = 0, False
    while done < iterations and not converged:
        differences = _differences(ballots, discrimination, readiness)
        steps = _rater_steps(ballots, differences * weights[:, None], discrimination, readiness)
        discrimination, readiness = discrimination + steps[0], readiness + steps[1]
        done, converged = done + 1, bool(np.abs(steps).max(initial=0.0) < 100 * TOLERANCE)
    differences = _differences(ballots, discrimination, readiness)
    votes = np.bincount(ballots.rater, minlength=raters)
    typical = [np.array([one @ votes / max(votes.sum(), 1)]) for one in (discrimination, readiness)]
    chances = _hold_known(differences @ _say(*typical)[0].T, ballots.known)
    first_better = differences @ (np.sign(GRID) + 1) / 2
    accuracy = (1 / (1 + np.exp(-discrimination[:, None] * np.abs(GRID)))) @ BEFORE_VOTES
    return Fit(chances, first_better, accuracy, done, converged, (discrimination, readiness))


def _say(discrimination: Floats, readiness: Floats) -> Floats:
    """What raters say at each difference of the grid: chances of second, neither, first, shape (raters, 3, grid)."""
    u = discrimination[:, None] * GRID / 2
    odds = np.stack([-u, np.broadcast_to(readiness[:, None], u.shape), u], axis=1)
    powers = np.exp(odds - odds.max(axis=1, keepdims=True))
    chances: Floats = powers / powers.sum(axis=1, keepdims=True)
    return chances


def _differences(ballots: Ballots, discrimination: Floats, readiness: Floats) -> Floats:
    """The E-step: how likely each difference of the grid is for each item, shape (items, grid)."""
    cell = ballots.rater * 3 + ballots.sign + 1
    logs = np.log(_say(discrimination, readiness)).reshape(-1, len(GRID))
    voted = [np.bincount(ballots.item, weights=at[cell], minlength=len(ballots.prompt)) for at in logs.T]
    before = np.log(BEFORE_VOTES) + np.log(np.maximum(_agree_with_known(ballots.known), 1e-10))
    return _softmax(before + np.stack(voted, axis=1))


def _agree_with_known(known: Integers) -> Floats:
    """Which differences a known answer leaves, shape (items, grid); all of them where there is none."""
    left: Floats = ((known[:, None] == UNKNOWN) | (np.sign(GRID) == known[:, None])).astype(np.float64)
    return left


def _rater_steps(ballots: Ballots, differences: Floats, discrimination: Floats, readiness: Floats) -> Floats:
    """The M-step: a Newton step up each rater's expected log-posterior, in discrimination and readiness, shape
    (2, raters), no longer than 1."""
    cell, size = ballots.rater * 3 + ballots.sign + 1, len(discrimination) * 3
    votes = np.stack(
        [np.bincount(cell, weights=at[ballots.item], minlength=size) for at in differences.T], axis=1
    ).reshape(-1, 3, len(GRID))
    all_votes = votes.sum(axis=1)
    second, neither, first = np.moveaxis(_say(discrimination, readiness), 1, 0)
    lean = first - second
    up_a = (votes[:, 2] - votes[:, 0] - all_votes * lean) @ GRID / 2
    up_nu = (votes[:, 1] - all_votes * neither).sum(axis=1)
    aa = (all_votes * (first + second - lean**2)) @ GRID**2 / 4
    nn = (all_votes * neither * (1 - neither)).sum(axis=1)
    an = -(all_votes * neither * lean) @ GRID / 2
    (a_mean, a_deviation), (nu_mean, nu_deviation) = DISCRIMINATION, TIE_READINESS
    up_a, aa = up_a - (discrimination - a_mean) / a_deviation**2, aa + 1 / a_deviation**2
    up_nu, nn = up_nu - (readiness - nu_mean) / nu_deviation**2, nn + 1 / nu_deviation**2
    steps: Floats = np.array([nn * up_a - an * up_nu, aa * up_nu - an * up_a]) / (aa * nn - an**2)
    return np.clip(steps, -1, 1)

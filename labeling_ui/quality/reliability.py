"""Raters' reliability and the joint evidence of their votes: two models fitted without known answers.

Dawid & Skene (1979): every rater has a table of answers given that the first, neither or the second completion is the
better one. Bradley & Terry (1952), with Davidson's (1970) ties: every completion has a strength, and every rater a
discrimination between strengths (as Chen et al. 2013 weight crowd workers) and a readiness to call a tie. Comparisons
of three or more completions of one prompt share their strengths: beating the best is strong evidence. Both are fitted
by EM to a maximum a posteriori; neither depends on the order of the completions, so swapping first and second only
swaps the answer.

They find only what raters have in common: an error that most raters share looks like the truth. Gold pairs and settled
answers are therefore held fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from labeling_ui.quality.intervals import Figure
from labeling_ui.quality.votes import Flags, Floats, Integers

Model = Literal["dawid_skene", "bradley_terry"]

CLASSES = (-1, 0, 1)
"""the second completion is better, neither, the first: the columns of `chances`"""
UNKNOWN = 9
POOLED_VOTES = 1.0
"""Dawid-Skene: pseudo-votes of each row of a rater's table, distributed as all raters' votes"""
DISCRIMINATION = (1.0, 2.0)
"""Bradley-Terry: prior mean and standard deviation of a rater's discrimination; strengths have (0, 1)."""
TIE_READINESS = (0.0, 2.0)
"""likewise for the log-odds of a tie between two equally strong completions"""
TOLERANCE = 1e-6
MAX_ITERATIONS = 500
REPLICATES = (20, 50)
"""fewest and most bootstrap replicates behind an interval"""
REPLICATE_ITERATIONS = 25
REPLICATED_VOTES = 300_000
"""votes refitted in all replicates together"""
MOST_REPLICATED = 50_000
"""most votes in one replicate; from more, some are drawn, and the interval is scaled to all"""
GRID: Floats = np.linspace(-4, 4, 41) * np.sqrt(2)
"""differences of strengths"""
BEFORE_VOTES: Floats = np.exp(-(GRID**2) / 4) / np.exp(-(GRID**2) / 4).sum()


@dataclass(frozen=True)
class Ballots:
    """One vote per rater and item."""

    rater_ids: tuple[str, ...]
    item: Integers
    """(votes,)"""
    rater: Integers
    sign: Integers
    """1 first, −1 second, 0 neither"""
    share: Floats
    """weight of the judgment in Bradley-Terry: 1, or `share_of_order`"""
    prompt: Integers
    """(items,): the prompt of an item's completions; items of one prompt are resampled together"""
    first: Integers
    """(items,): index of the first completion among those of the prompt"""
    second: Integers
    known_class: Integers
    """(items,): the class of an item with a known answer; `UNKNOWN` elsewhere"""


@dataclass(frozen=True)
class Fit:
    """A model fitted to ballots."""

    chances: Floats
    """(items, 3): Dawid-Skene: probability that each class is true; Bradley-Terry: that a typical rater answers it"""
    first_better: Floats
    """(items,): probability that the first completion is better, given that one of them is"""
    accuracy: Floats
    """(raters,): probability that a rater's vote is right; Bradley-Terry: that they pick the better completion of a
    typical pair, given that they pick one"""
    iterations: int
    converged: bool
    parameters: tuple[Floats, ...]


@dataclass(frozen=True)
class Reliability:
    """A rater's accuracy under a model; n counts their votes."""

    rater_id: str
    accuracy: Figure
    discrimination: float | None = None
    """Bradley-Terry's: 0 guesses, below 0 picks the worse completion more often than not"""


def share_of_order(completions: int) -> float:
    """The weight of each of the K(K−1)/2 comparisons that follow from an order of K completions, such that together they
    weigh as much as the order.

    With full weight they would look more certain than they are, since an order takes K − 1 choices (Plackett 1975). Among
    equally good completions, a choice among m has the share (m − 1)/m of the Fisher information of known strengths; all
    choices have 1 − 1/2 + … + 1 − 1/K = K − H_K, while K(K−1)/2 independent comparisons have K(K−1)/4.

    >>> share_of_order(2)
    1.0
    """
    harmonic = sum(1 / m for m in range(1, completions + 1))
    return 4 * (completions - harmonic) / (completions * (completions - 1))


def measure_reliability(model: Model, ballots: Ballots) -> tuple[Fit, list[Reliability]]:
    """The fit, and each rater's accuracy with a 95% interval from resampled prompts (Rubin 1981), on the logit scale.

    Each replicate starts at the fit and runs at most `REPLICATE_ITERATIONS` iterations.
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
            slope = None if discrimination is None else round(float(discrimination[number]), 4)
            raters.append(Reliability(name, figure, slope))
    return fit, sorted(raters, key=lambda rater: rater.rater_id)


def describe_reliability(ballots: Ballots, most_votes: int | None = None) -> dict[str, Any]:
    """Both models' estimates for every rater, for a report; with more than `most_votes`, from a random part of the prompts.

    Every figure's n counts the votes behind it.
    """
    if most_votes is not None:
        ballots = _draw_prompts(ballots, most_votes, np.random.default_rng(0))[0]
    report: dict[str, Any] = {}
    models: tuple[Model, ...] = ("dawid_skene", "bradley_terry")
    for model in models:
        fit, raters = measure_reliability(model, ballots)
        rows = [
            {"rater": one.rater_id, "accuracy": one.accuracy.as_json()}
            | ({} if one.discrimination is None else {"discrimination": one.discrimination})
            for one in raters
        ]
        report[model] = {"iterations": fit.iterations, "converged": fit.converged, "raters": rows}
    return report


def _replicated_spread(refit: Callable[..., Fit], ballots: Ballots, fit: Fit) -> Floats:
    """The standard deviation of each rater's logit accuracy over bootstrap replicates, with exponential weights of the
    prompts."""
    chance = np.random.default_rng(0)
    drawn, kept = _draw_prompts(ballots, MOST_REPLICATED, chance)
    start = replace(fit, chances=fit.chances[kept], first_better=fit.first_better[kept])
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


def _draw_prompts(ballots: Ballots, most_votes: int, chance: np.random.Generator) -> tuple[Ballots, Flags]:
    """The items of randomly drawn prompts with about that many votes, and their mask; all if there are no more votes."""
    share = most_votes / max(len(ballots.item), 1)
    if share >= 1:
        return ballots, np.ones(len(ballots.prompt), dtype=np.bool_)
    kept: Flags = (chance.random(int(ballots.prompt.max()) + 1) < share)[ballots.prompt]
    votes, number = kept[ballots.item], np.cumsum(kept) - 1
    item, rater, sign, part = (
        number[ballots.item[votes]],
        ballots.rater[votes],
        ballots.sign[votes],
        ballots.share[votes],
    )
    of_items = (one[kept] for one in (ballots.prompt, ballots.first, ballots.second, ballots.known_class))
    return Ballots(ballots.rater_ids, item, rater, sign, part, *of_items), kept


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
        start: an earlier fit to start at; the shares of votes if None.
        symmetric: answers when the first is better mirror answers when the second is. Without this and without pooled
            votes, it is the published model.
    """
    items = len(ballots.prompt)
    weights = np.ones(items) if weights is None else weights
    answer = ballots.sign + 1
    chances = _vote_shares(ballots) if start is None else start.chances
    done, converged = 0, False
    prior, tables = _dawid_skene_tables(ballots, chances, weights, symmetric, pooled_votes)
    while done < iterations and not converged:
        logs = np.log(np.maximum(tables, 1e-10))[ballots.rater, :, answer]
        joint = np.log(np.maximum(prior, 1e-10)) + _sum_by(ballots.item, logs, items)
        before, chances = chances, _hold_known(_softmax(joint), ballots.known_class)
        prior, tables = _dawid_skene_tables(ballots, chances, weights, symmetric, pooled_votes)
        done, converged = done + 1, bool(np.abs(chances - before).max(initial=0.0) < TOLERANCE)
    accuracy = np.einsum("z,rzz->r", prior, tables)
    decided = chances[:, 0] + chances[:, 2]
    first_better = np.divide(chances[:, 2], decided, out=np.full(items, 0.5), where=decided > 0)
    return Fit(chances, first_better, accuracy, done, converged, (tables, prior))


def _dawid_skene_tables(
    ballots: Ballots, chances: Floats, weights: Floats, symmetric: bool, pooled_votes: float
) -> tuple[Floats, Floats]:
    """The M-step: (share of each class, shape (3,)), and (raters' tables, shape (raters, 3 true, 3 answered))."""
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
    return _hold_known(np.divide(tally, total, out=np.full_like(tally, 1 / 3), where=total > 0), ballots.known_class)


def _hold_known(chances: Floats, known_class: Integers) -> Floats:
    held = known_class != UNKNOWN
    if held.any():
        chances = chances.copy()
        chances[held] = np.eye(3)[known_class[held] + 1]
    return chances


def _sum_by(place: Integers, values: Floats, size: int) -> Floats:
    """Sums of rows by index, shape (size, columns)."""
    return np.stack([np.bincount(place, weights=column, minlength=size) for column in values.T], axis=1)


def _softmax(logs: Floats) -> Floats:
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    chances: Floats = powers / powers.sum(axis=1, keepdims=True)
    return chances


# --- Bradley-Terry ---


@dataclass(frozen=True)
class Normals:
    """Normal distributions, one per item, shape (items,) each."""

    mean: Floats
    variance: Floats


@dataclass(frozen=True)
class SharedStrengths:
    """Items of prompts with equally many completions, three or more: their differences come from shared strengths."""

    item: Integers
    """the items; the columns below are theirs"""
    row: Integers
    """index of the prompt among those with as many completions"""
    first: Integers
    second: Integers
    shape: tuple[int, int]
    """prompts, completions"""


def fit_bradley_terry(
    ballots: Ballots,
    *,
    weights: Floats | None = None,
    start: Fit | None = None,
    iterations: int = MAX_ITERATIONS,
) -> Fit:
    """Bradley-Terry with ties and a discrimination per rater, by EM.

    A rater of discrimination a answers first, second or neither for completions whose strengths differ by d with odds
    exp(a·d/2) : exp(−a·d/2) : exp(ν) (Davidson 1970); ν is their readiness to call a tie. The prior of strengths is (0, 1),
    of differences (0, √2); each item's difference is integrated out on a grid (Bock & Aitkin 1981). Where a prompt has more
    than two completions, its items share their strengths: the other items' evidence about a difference is a normal
    distribution, found by expectation propagation (Minka 2001), one sweep per iteration.

    Args:
        weights: of the items, shape (items,); equal if None.
        start: an earlier fit to start at.
    """
    items, raters = len(ballots.prompt), len(ballots.rater_ids)
    weights = np.ones(items) if weights is None else weights
    discrimination, readiness = (np.ones(raters), np.zeros(raters)) if start is None else start.parameters
    shared, sites, done, converged = _find_shared(ballots), np.zeros((2, items)), 0, False
    while done < iterations and not converged:
        before, sites_before = _before_own_votes(shared, sites), sites
        differences = _differences(ballots, before, discrimination, readiness)
        steps = _rater_steps(ballots, differences * weights[:, None], discrimination, readiness)
        discrimination, readiness = discrimination + steps[0], readiness + steps[1]
        sites = _say_of_strengths(shared, before, differences, sites)
        moved = np.abs(steps).max(initial=0.0), 0.1 * np.abs(sites - sites_before).max(initial=0.0)
        done, converged = done + 1, bool(max(moved) < 100 * TOLERANCE)
    differences = _differences(ballots, _before_own_votes(shared, sites), discrimination, readiness)
    votes = np.bincount(ballots.rater, minlength=raters)
    typical = [np.array([one @ votes / max(votes.sum(), 1)]) for one in (discrimination, readiness)]
    chances = _hold_known(differences @ _say(*typical)[0].T, ballots.known_class)
    first_better = differences @ (np.sign(GRID) + 1) / 2
    accuracy = (1 / (1 + np.exp(-discrimination[:, None] * np.abs(GRID)))) @ BEFORE_VOTES
    return Fit(chances, first_better, accuracy, done, converged, (discrimination, readiness))


def _say(discrimination: Floats, readiness: Floats) -> Floats:
    """Each rater's probabilities of second, neither and first on the grid, shape (raters, 3, grid)."""
    u = discrimination[:, None] * GRID / 2
    odds = np.stack([-u, np.broadcast_to(readiness[:, None], u.shape), u], axis=1)
    powers = np.exp(odds - odds.max(axis=1, keepdims=True))
    chances: Floats = powers / powers.sum(axis=1, keepdims=True)
    return chances


def _differences(ballots: Ballots, before: Normals, discrimination: Floats, readiness: Floats) -> Floats:
    """The E-step: probability of each difference of the grid for each item, shape (items, grid)."""
    cell = ballots.rater * 3 + ballots.sign + 1
    logs = np.log(_say(discrimination, readiness)).reshape(-1, len(GRID))
    items, share = len(ballots.prompt), ballots.share
    voted = [np.bincount(ballots.item, weights=at[cell] * share, minlength=items) for at in logs.T]
    others = -((GRID - before.mean[:, None]) ** 2) / (2 * before.variance[:, None])
    return _softmax(
        others + np.log(np.maximum(_agree_with_known(ballots.known_class), 1e-10)) + np.stack(voted, axis=1)
    )


def _find_shared(ballots: Ballots) -> list[SharedStrengths]:
    """The items of prompts with more than one item, by number of completions."""
    of_prompt = np.bincount(ballots.prompt)
    together = np.flatnonzero(of_prompt[ballots.prompt] > 1)
    sizes = np.zeros(len(of_prompt), dtype=np.int64)
    np.maximum.at(sizes, ballots.prompt, np.maximum(ballots.first, ballots.second) + 1)
    size = sizes[ballots.prompt[together]]
    return [_share(ballots, together[size == one], int(one)) for one in np.unique(size)]


def _share(ballots: Ballots, item: Integers, size: int) -> SharedStrengths:
    _, row = np.unique(ballots.prompt[item], return_inverse=True)
    return SharedStrengths(item, row, ballots.first[item], ballots.second[item], (int(row.max()) + 1, size))


def _before_own_votes(shared: Sequence[SharedStrengths], sites: Floats) -> Normals:
    """Each item's difference before its own votes: the evidence of its prompt's other items about the strengths.

    Args:
        sites: the evidence of each item's votes about its difference, as a normal distribution: precision, and precision
            times mean; shape (2, items).
    """
    before = Normals(np.zeros(sites.shape[1]), np.full(sites.shape[1], 2.0))
    for one in shared:
        precision, weighed = sites[:, one.item]
        all_precisions, all_weighed = np.zeros((*one.shape, one.shape[1])), np.zeros(one.shape)
        all_precisions[:, range(one.shape[1]), range(one.shape[1])] = 1.0
        for here, there in ((one.first, one.second), (one.second, one.first)):
            np.add.at(all_precisions, (one.row, here, here), precision)
            np.add.at(all_precisions, (one.row, here, there), -precision)
            np.add.at(all_weighed, (one.row, here), weighed if here is one.first else -weighed)
        spread = np.linalg.inv(all_precisions)
        strengths = np.einsum("pij,pj->pi", spread, all_weighed)
        variance = spread[one.row, one.first, one.first] + spread[one.row, one.second, one.second]
        variance -= 2 * spread[one.row, one.first, one.second]
        mean = strengths[one.row, one.first] - strengths[one.row, one.second]
        without = 1 / variance - precision
        before.mean[one.item], before.variance[one.item] = (mean / variance - weighed) / without, 1 / without
    return before


def _say_of_strengths(shared: Sequence[SharedStrengths], before: Normals, differences: Floats, sites: Floats) -> Floats:
    """The sites that give each shared item's difference its mean and variance after its own votes; damped by half, so
    that items that move together do not oscillate."""
    if not shared:
        return sites
    item = np.concatenate([one.item for one in shared])
    mean = differences[item] @ GRID
    variance = np.maximum(differences[item] @ GRID**2 - mean**2, (GRID[1] - GRID[0]) ** 2 / 12)
    precision = np.maximum(1 / variance - 1 / before.variance[item], 0.0)
    weighed = mean * (precision + 1 / before.variance[item]) - before.mean[item] / before.variance[item]
    moved = sites.copy()
    moved[:, item] = (sites[:, item] + np.stack([precision, weighed])) / 2
    return moved


def _agree_with_known(known_class: Integers) -> Floats:
    """The differences that agree with a known answer, shape (items, grid); all of them where there is none."""
    left: Floats = ((known_class[:, None] == UNKNOWN) | (np.sign(GRID) == known_class[:, None])).astype(np.float64)
    return left


def _rater_steps(ballots: Ballots, differences: Floats, discrimination: Floats, readiness: Floats) -> Floats:
    """The M-step: a Newton step up each rater's expected log-posterior, in discrimination and readiness, shape
    (2, raters), of length at most 1."""
    cell, size = ballots.rater * 3 + ballots.sign + 1, len(discrimination) * 3
    votes = np.stack(
        [np.bincount(cell, weights=at[ballots.item] * ballots.share, minlength=size) for at in differences.T], axis=1
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

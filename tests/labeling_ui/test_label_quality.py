"""Models of raters: planted ones are found again, another implementation agrees, sides do not matter, gold is held."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas
import pytest

from labeling_ui.quality.reliability import (
    UNKNOWN,
    Ballots,
    fit_bradley_terry,
    fit_dawid_skene,
    measure_reliability,
    share_of_order,
)
from labeling_ui.quality.votes import Floats, Integers

ACCURACIES = np.linspace(0.45, 0.97, 10)
DISCRIMINATIONS = np.array([-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0])


def ballots(
    item: Integers, rater: Integers, sign: Integers, raters: int, known_class: Integers | None = None
) -> Ballots:
    items = int(item.max()) + 1
    names = tuple(f"r{n}" for n in range(raters))
    first, known_class = (
        np.zeros(items, dtype=np.int64),
        np.full(items, UNKNOWN) if known_class is None else known_class,
    )
    return Ballots(names, item, rater, sign, np.ones(len(item)), np.arange(items), first, first + 1, known_class)


def assigned(items: int, raters: int, each: int, chance: np.random.Generator) -> tuple[Integers, Integers]:
    return np.repeat(np.arange(items), each), np.argsort(chance.random((items, raters)), axis=1)[:, :each].ravel()


def planted_accuracies(items: int, each: int, seed: int = 0) -> tuple[Integers, Ballots]:
    """Truth, and votes that are right with each rater's accuracy and else one of the two other answers."""
    chance = np.random.default_rng(seed)
    truth = chance.choice([-1, 0, 1], p=[0.4, 0.2, 0.4], size=items)
    item, rater = assigned(items, len(ACCURACIES), each, chance)
    right = chance.random(len(item)) < ACCURACIES[rater]
    wrong = (truth[item] + 1 + chance.integers(1, 3, len(item))) % 3 - 1
    return truth, ballots(item, rater, np.where(right, truth[item], wrong), len(ACCURACIES))


def planted_discriminations(items: int, each: int, seed: int = 0) -> tuple[Floats, Ballots]:
    """Differences of strengths, and votes with the odds of Davidson 1970, a tie between equals having e^−0.5 : 2."""
    chance = np.random.default_rng(seed)
    difference = chance.normal(size=items) - chance.normal(size=items)
    item, rater = assigned(items, len(DISCRIMINATIONS), each, chance)
    u = DISCRIMINATIONS[rater] * difference[item]
    odds = np.exp(np.stack([-u / 2, np.full(len(u), -0.5), u / 2], axis=1))
    cumulated = (odds / odds.sum(axis=1, keepdims=True)).cumsum(axis=1)
    sign = (chance.random((len(u), 1)) > cumulated).sum(axis=1) - 1
    return difference, ballots(item, rater, sign, len(DISCRIMINATIONS))


def majority(votes: Ballots) -> Floats:
    """How many more votes the first has than the second."""
    return np.bincount(votes.item, weights=votes.sign.astype(float), minlength=len(votes.prompt))


def test_dawid_skene_finds_planted_accuracies_and_beats_the_majority() -> None:
    truth, votes = planted_accuracies(2000, 3)
    fit, raters = measure_reliability("dawid_skene", votes)
    assert fit.converged
    assert [one.rater_id for one in raters] == sorted(votes.rater_ids)
    found = np.array([one.accuracy.value for one in raters])
    assert np.abs(found - ACCURACIES).max() < 0.06, "600 votes each: three standard errors of a known truth are 0.06"
    covered = [
        one.accuracy.interval[0] <= a <= one.accuracy.interval[1] for one, a in zip(raters, ACCURACIES, strict=True)
    ]  # type: ignore[index]
    assert sum(covered) >= 8, "9.5 of 10 expected at 95%"
    right = (np.argmax(fit.chances, axis=1) - 1 == truth).mean()
    assert right > (np.sign(majority(votes)) == truth).mean() + 0.03
    # Soft labels are chances: of those given about 0.9, about nine in ten are so.
    top = fit.chances.max(axis=1)
    near = (top > 0.85) & (top < 0.95)
    assert (np.argmax(fit.chances, axis=1) - 1 == truth)[near].mean() == pytest.approx(0.9, abs=0.06)


@pytest.mark.slow
def test_bradley_terry_finds_planted_discriminations_and_beats_the_majority() -> None:
    difference, votes = planted_discriminations(1500, 3)
    fit, raters = measure_reliability("bradley_terry", votes)
    assert fit.converged
    found = np.array([one.discrimination for one in raters])
    assert np.corrcoef(found[:6], DISCRIMINATIONS[:6])[0, 1] > 0.97
    assert np.abs(found - DISCRIMINATIONS)[:6].max() < 0.6, "the steepest are told apart less well"
    assert found[6:].min() > 1.2
    assert found[0] < -0.5, "who answers the wrong way round is found out"
    readiness = fit.parameters[1]
    assert readiness.mean() == pytest.approx(-0.5, abs=0.15)
    # The accuracy at d ~ N(0, 2), by simulation.
    draws = np.abs(np.random.default_rng(1).normal(scale=2**0.5, size=200_000))
    wanted = [float((1 / (1 + np.exp(-a * draws))).mean()) for a in DISCRIMINATIONS]
    covered = [one.accuracy.interval[0] <= w <= one.accuracy.interval[1] for one, w in zip(raters, wanted, strict=True)]  # type: ignore[index]
    assert sum(covered) >= 6
    first = difference > 0
    decided = majority(votes) != 0
    assert ((fit.first_better > 0.5) == first)[decided].mean() > ((majority(votes) > 0) == first)[decided].mean() + 0.02
    near = np.abs(np.abs(fit.first_better - 0.5) - 0.4) < 0.05
    assert ((fit.first_better > 0.5) == first)[near].mean() == pytest.approx(0.9, abs=0.05), "soft labels are chances"


def planted_prompts(prompts: int, completions: int, *, ordered: bool, seed: int = 0) -> tuple[Floats, Ballots]:
    """Strengths of the completions of prompts, shape (prompts, completions), and votes of three of six raters a prompt:
    on every two completions, or (`ordered`) following from an order of all, drawn as Plackett 1975 has it: the best by
    strength and Gumbel noise (Yellott 1977)."""
    chance = np.random.default_rng(seed)
    discriminations = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
    strength = chance.normal(size=(prompts, completions))
    pairs = np.array(list(combinations(range(completions), 2)))
    n, each = len(pairs), 3
    first, second = np.tile(pairs, (prompts, 1)).T
    prompt = np.repeat(np.arange(prompts), n)
    item, rater = np.repeat(np.arange(prompts * n), each), np.empty((prompts, n, each), dtype=np.int64)
    rater[:] = np.argsort(chance.random((prompts, 6)), axis=1)[:, None, :each]
    a, noise = discriminations[rater], np.zeros((prompts, n, each))
    difference = (strength[prompt, first] - strength[prompt, second]).reshape(prompts, n, 1)
    if ordered:
        gumbel = chance.gumbel(size=(prompts, 6, completions))
        row, rows = np.arange(prompts)[:, None, None], rater
        noise = gumbel[row, rows, pairs[:, 0][None, :, None]] - gumbel[row, rows, pairs[:, 1][None, :, None]]
    else:
        noise = chance.logistic(size=noise.shape)
    sign = np.where(a * difference + noise > 0, 1, -1)
    share = np.full(len(item), share_of_order(completions) if ordered else 1.0)
    names = tuple(f"r{k}" for k in range(6))
    known_class = np.full(len(prompt), UNKNOWN)
    return strength, Ballots(names, item, rater.ravel(), sign.ravel(), share, prompt, first, second, known_class)


def test_comparisons_of_one_prompt_share_the_strengths_of_its_completions() -> None:
    # Against the integral over all three strengths, at the parameters that were fitted.
    _, votes = planted_prompts(100, 3, ordered=False)
    fit = fit_bradley_terry(votes)
    assert fit.converged
    grid = np.stack(np.meshgrid(*[np.linspace(-4.5, 4.5, 46)] * 3, indexing="ij"))
    discrimination, readiness = fit.parameters
    for prompt in range(10):
        logs = -(grid**2).sum(axis=0) / 2
        for vote in np.flatnonzero(votes.prompt[votes.item] == prompt):
            item, rater = votes.item[vote], votes.rater[vote]
            u = discrimination[rater] * (grid[votes.first[item]] - grid[votes.second[item]]) / 2
            logs += votes.sign[vote] * u - np.log(np.exp(u) + np.exp(-u) + np.exp(readiness[rater]))
        chances = np.exp(logs - logs.max())
        for item in np.flatnonzero(votes.prompt == prompt):
            difference = grid[votes.first[item]] - grid[votes.second[item]]
            better = (np.sign(np.round(difference, 9)) + 1) / 2
            assert fit.first_better[item] == pytest.approx((chances * better).sum() / chances.sum(), abs=0.01)


def test_who_beats_the_winner_is_the_best() -> None:
    # One judge with gold behind them: A > B and B > C; about A and C nobody was asked.
    item = np.array([0, 1, *range(3, 43)])
    known_class = np.concatenate([np.full(3, UNKNOWN), np.ones(40, dtype=np.int64)])
    prompt = np.concatenate([[0, 0, 0], np.arange(1, 41)])
    first, second = np.array([0, 1, 0] + [0] * 40), np.array([1, 2, 2] + [1] * 40)
    ones = np.ones(42, dtype=np.int64)
    votes = Ballots(("judge",), item, 0 * ones, ones, ones.astype(float), prompt, first, second, known_class)
    together = fit_bradley_terry(votes).first_better
    assert together[2] > max(together[:2]) > 0.7
    alone = fit_bradley_terry(replace(votes, prompt=np.arange(43))).first_better
    assert alone[2] == pytest.approx(0.5), "without what the others say, nothing is known of it"


@pytest.mark.parametrize(("completions", "ordered"), [(3, False), (3, True), (5, True)])
def test_strengths_are_found_again_from_pairs_and_from_orders(completions: int, ordered: bool) -> None:
    strength, votes = planted_prompts(400, completions, ordered=ordered)
    fit = fit_bradley_terry(votes)
    alone = fit_bradley_terry(replace(votes, prompt=np.arange(len(votes.prompt))))
    first = strength[votes.prompt, votes.first] > strength[votes.prompt, votes.second]

    def log_loss(chances: Floats) -> float:
        return float(-np.log(np.where(first, chances, 1 - chances)).mean())

    assert fit.converged
    assert log_loss(fit.first_better) < log_loss(alone.first_better) - 0.01
    discrimination = fit.parameters[0]
    assert discrimination[0] < discrimination[1] < discrimination[2] < discrimination[3:].min(), "raters are in order"
    assert abs(discrimination[0]) < 0.2
    top = np.maximum(fit.first_better, 1 - fit.first_better)
    right = (fit.first_better > 0.5) == first
    assert right.mean() == pytest.approx(top.mean(), abs=0.05), "soft labels are chances"
    sure = top > 0.9
    assert right[sure].mean() == pytest.approx(top[sure].mean(), abs=0.05)


def test_an_order_counts_for_what_plackett_and_luce_give_it() -> None:
    # The Fisher information of an order of three equals: of the first choice, 1/3 − 1/9 on the diagonal; of the second,
    # between each two with chance 1/3, 1/4 twice: 2/9 + 1/6 = 7/18. Of three comparisons: 1/4 twice, 1/2. 7/18 : 1/2.
    assert share_of_order(3) == pytest.approx(7 / 9)
    assert share_of_order(2) == 1.0


def test_intervals_from_some_of_many_votes_are_those_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    _, votes = planted_accuracies(2000, 3)

    def widths() -> Floats:
        return np.array([np.ptp(one.accuracy.interval) for one in measure_reliability("dawid_skene", votes)[1]])

    whole = widths()
    monkeypatch.setattr("labeling_ui.quality.reliability.MOST_REPLICATED", 1500)
    assert float(np.median(widths() / whole)) == pytest.approx(1.0, abs=0.25)


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # crowd-kit 1.4.2 under pandas 3.1
def test_dawid_skene_as_published_is_crowd_kits() -> None:
    crowdkit = pytest.importorskip("crowdkit.aggregation.classification.dawid_skene")
    _, votes = planted_accuracies(300, 5, seed=3)
    ours = fit_dawid_skene(votes, symmetric=False, pooled_votes=0, iterations=1000)
    table = pandas.DataFrame({"task": votes.item, "worker": votes.rater, "label": votes.sign})
    theirs = crowdkit.DawidSkene(n_iter=1000, tol=1e-14).fit_predict_proba(table)
    assert ours.chances == pytest.approx(theirs[[-1, 0, 1]].to_numpy(), abs=1e-3)


@pytest.mark.parametrize("model", [fit_dawid_skene, fit_bradley_terry])
def test_swapping_first_and_second_swaps_the_answer_and_nothing_else(model) -> None:  # type: ignore[no-untyped-def]
    _, votes = planted_accuracies(200, 3)
    fit, turned = model(votes), model(replace(votes, sign=-votes.sign))
    assert turned.chances == pytest.approx(fit.chances[:, ::-1], abs=1e-9)
    assert turned.first_better == pytest.approx(1 - fit.first_better, abs=1e-9)
    assert turned.accuracy == pytest.approx(fit.accuracy, abs=1e-9)


@pytest.mark.parametrize("model", [fit_dawid_skene, fit_bradley_terry])
def test_gold_is_held_and_turns_the_majority_round(model) -> None:  # type: ignore[no-untyped-def]
    # Three of four raters always say the opposite of the truth. Without gold they are believed; with it they are not.
    chance = np.random.default_rng(0)
    truth = chance.choice([-1, 1], size=60)
    item, rater = np.repeat(np.arange(60), 4), np.tile(np.arange(4), 60)
    sign = np.where(rater == 0, truth[item], -truth[item])
    believed = model(ballots(item, rater, sign, 4))
    assert (np.sign(believed.first_better - 0.5) == -truth).all()
    assert believed.accuracy[0] < 0.5 < believed.accuracy[1]
    known_class = np.where(np.arange(60) < 30, truth, UNKNOWN)
    held = model(ballots(item, rater, sign, 4, known_class))
    assert (np.argmax(held.chances, axis=1) - 1)[:30].tolist() == truth[:30].tolist()
    assert (np.sign(held.first_better - 0.5) == truth).all()
    assert held.accuracy[0] > 0.5 > held.accuracy[1]


@pytest.mark.parametrize("model", [fit_dawid_skene, fit_bradley_terry])
def test_few_votes_and_none_stay_finite(model) -> None:  # type: ignore[no-untyped-def]
    nothing = np.empty(0, dtype=np.int64)
    empty = model(Ballots(("a",), *[nothing] * 8))
    assert empty.chances.shape == (0, 3)
    one = model(ballots(np.array([0]), np.array([0]), np.array([1]), 1))
    assert one.chances.argmax() == 2
    assert 0.5 < one.first_better[0] < 1
    unanimous = model(ballots(np.repeat(np.arange(50), 3), np.tile(np.arange(3), 50), np.ones(150, dtype=np.int64), 3))
    assert np.isfinite(unanimous.chances).all()
    assert (unanimous.accuracy > 0.8).all()

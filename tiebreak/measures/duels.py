"""Two or more policies compared by people on held-out prompts: win rates and ratings, with intervals for other prompts
and other raters.

A vote is one rater's answer about two policies at one prompt. Votes on one prompt share its difficulty, and votes of one
rater their taste, so neither are independent: errors are clustered by both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product

import numpy as np
from numpy.typing import NDArray

from tiebreak.measures.ratings import PRIOR_TIES, Array, share_interval
from tiebreak.measures.statistics import Interval, student_quantile
from tiebreak.records import Completion, Judgment, Pair

Integers = NDArray[np.int64]
SHARED = " = "
"""Between the names of policies that gave the same answer."""
Contest = tuple[str, str]
"""two policies, in the order of the duel"""


@dataclass(frozen=True)
class Vote:
    """A rater's answer about two policies at one prompt."""

    prompt_id: str
    rater_id: str
    policies: Contest
    outcome: float
    """1: the first policy won, ½: a tie, or both are bad, 0: it lost"""


def policies_of(completion: Completion) -> list[str]:
    """The policies that gave this answer."""
    return completion.policy.split(SHARED)


def votes_of(pairs: Sequence[Pair], judgments: Iterable[Judgment], policies: Sequence[str]) -> list[Vote]:
    """The votes behind judgments, each rater's first of a pair. Skips are not votes.

    Args:
        policies: all of them; their order decides which of two is the first.
    """
    by_id = {pair.id: pair for pair in pairs}
    place = {name: n for n, name in enumerate(policies)}
    seen: set[tuple[str, str]] = set()
    votes = []
    for judgment in chain.from_iterable(one.pairwise() for one in judgments):
        pair = by_id.get(judgment.pair_id)
        if pair is None or judgment.skip or (pair.id, judgment.rater_id) in seen:
            continue
        seen.add((pair.id, judgment.rater_id))
        answers = {completion.id: completion for completion in pair.completions}
        answer = judgment.answer or 0
        left_won = 0.5 - ((answer > 0) - (answer < 0)) / 2
        for one, other in product(policies_of(answers[judgment.left]), policies_of(answers[judgment.right])):
            if one in place and other in place:
                in_order = place[one] < place[other]
                contest = (one, other) if in_order else (other, one)
                outcome = left_won if in_order else 1 - left_won
                votes.append(Vote(pair.prompt_id, judgment.rater_id, contest, outcome))
    return votes


def numbered(names: Sequence[str]) -> Integers:
    """Each name's number, shape (names,), without gaps."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def clustered(scores: Array, groups: Integers) -> Array:
    """Covariance of the sum of scores, shape (votes, d) to (d, d), where those of a group vary together (Liang & Zeger
    1986)."""
    count = int(groups.max()) + 1
    sums = np.zeros((count, scores.shape[1]))
    np.add.at(sums, groups, scores)
    sums -= sums.mean(axis=0)  # scores do not sum to 0 where a prior pulls at the estimate
    return np.asarray(sums.T @ sums * (count / max(count - 1, 1)))


def clustered_both_ways(scores: Array, prompts: Integers, raters: Integers) -> Array:
    """The same, where scores of one prompt, and those of one rater, vary together: the sum of both less what both count
    (Cameron, Gelbach & Miller 2011, Eq. 2.8). No variance is smaller than that of prompts alone."""
    both = numbered([f"{prompt} {rater}" for prompt, rater in zip(prompts.tolist(), raters.tolist(), strict=True)])
    alone = clustered(scores, prompts)
    excess = clustered(scores, raters) - clustered(scores, both)
    values, vectors = np.linalg.eigh((excess + excess.T) / 2)
    return np.asarray(alone + (vectors * np.maximum(values, 0.0)) @ vectors.T)


# --- one policy against another ---


@dataclass(frozen=True)
class WinRate:
    """A win rate over prompts, each with the mean of its votes."""

    value: float
    prompts: int
    votes: int
    raters: int
    interval: Interval
    """for other prompts, judged by these raters"""
    interval_raters: Interval | None
    """for other prompts and other raters; None of a single rater, or of fewer than two prompts"""


def win_rate(votes: Sequence[Vote]) -> WinRate:
    """The first policy's win rate, from votes on one contest."""
    prompts, raters = numbered([vote.prompt_id for vote in votes]), numbered([vote.rater_id for vote in votes])
    outcomes = np.array([vote.outcome for vote in votes])
    counts = np.bincount(prompts).astype(np.float64)
    means = np.bincount(prompts, weights=outcomes) / counts
    value, count, people = float(means.mean()), len(means), int(raters.max()) + 1
    interval = share_interval(means)
    others = None
    if people > 1 and count > 1:
        scores = ((outcomes - value) / (count * counts[prompts]))[:, None]
        half = _quantile(count, people) * math.sqrt(float(clustered_both_ways(scores, prompts, raters)[0, 0]))
        # Where all votes agree, the variance is 0 and only the interval over prompts is left.
        others = max(min(value - half, interval[0]), 0.0), min(max(value + half, interval[1]), 1.0)
    return WinRate(value, count, len(votes), people, interval, others)


def _quantile(prompts: int, raters: int) -> float:
    """Student's, with the degrees of freedom of the fewer clusters (Cameron, Gelbach & Miller 2011, section 2.3)."""
    return student_quantile(max(min(prompts, raters) - 1, 1))


def in_order(votes: Sequence[Vote], policies: Sequence[str]) -> dict[Contest, list[Vote]]:
    """The votes on each contest; of all contests, in the duel's order."""
    found: dict[Contest, list[Vote]] = {contest: [] for contest in combinations(policies, 2)}
    for vote in votes:
        found[vote.policies].append(vote)
    return found


# --- ratings ---


@dataclass(frozen=True)
class Rating:
    """A policy's rating in log-odds; the mean of all policies is 0."""

    value: float
    interval: Interval
    interval_raters: Interval | None


def rate(votes: Sequence[Vote], policies: Sequence[str], prior: float = PRIOR_TIES) -> dict[str, Rating]:
    """Ratings by maximum likelihood (Bradley & Terry 1952), with intervals clustered by prompt, and by prompt and rater.

    Args:
        prior: tied games added to each contest, so that a policy that always wins has a finite rating.
    """
    place = {name: n for n, name in enumerate(policies)}
    firsts = np.array([place[vote.policies[0]] for vote in votes])
    seconds = np.array([place[vote.policies[1]] for vote in votes])
    outcomes = np.array([vote.outcome for vote in votes])
    design = np.zeros((len(votes), len(policies)))
    design[np.arange(len(votes)), firsts], design[np.arange(len(votes)), seconds] = 1.0, -1.0
    values, information = _fit(design, outcomes, prior)
    inverse = np.linalg.inv(information)
    scores = design * (outcomes - _sigmoid(design @ values))[:, None]
    prompts, raters = numbered([vote.prompt_id for vote in votes]), numbered([vote.rater_id for vote in votes])
    alone = inverse @ clustered(scores, prompts) @ inverse
    many, people = int(prompts.max()) + 1, int(raters.max()) + 1
    both = inverse @ clustered_both_ways(scores, prompts, raters) @ inverse if people > 1 else None
    found = {}
    for name, n in place.items():
        wide = None if both is None else _around(values[n], both[n, n], _quantile(many, people))
        found[name] = Rating(float(values[n]), _around(values[n], alone[n, n], _quantile(many, many)), wide)
    return found


def _fit(design: Array, outcomes: Array, prior: float) -> tuple[Array, Array]:
    """(ratings, information), by Newton's method."""
    count = design.shape[1]
    apart = np.array([np.eye(count)[i] - np.eye(count)[j] for i, j in combinations(range(count), 2)])
    rows = np.concatenate([design, apart])
    won = np.concatenate([outcomes, np.full(len(apart), 0.5)])
    weights = np.concatenate([np.ones(len(design)), np.full(len(apart), prior)])
    level = np.full((count, count), 1.0 / count)  # makes the information invertible: ratings have no absolute level
    values = np.zeros(count)
    for _ in range(200):
        expected = _sigmoid(rows @ values)
        information = (rows * (weights * expected * (1 - expected))[:, None]).T @ rows + level
        step = np.linalg.solve(information, rows.T @ (weights * (won - expected)))
        values += step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    return values - values.mean(), information


def _around(value: float, variance: float, quantile: float) -> Interval:
    half = quantile * math.sqrt(max(float(variance), 0.0))
    return float(value) - half, float(value) + half


def _sigmoid(values: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-values)))


# --- beside people ---


@dataclass(frozen=True)
class Beside:
    """What a program says of the comparisons that people judged."""

    win_rate: float
    interval: Interval
    prompts: int
    decided: int
    """prompts at which both people and the program prefer a side"""
    agreeing: int
    """of these, where it is the same side"""


def compare_with(people: Mapping[str, float], program: Mapping[str, float]) -> Beside | None:
    """A program's outcomes of one contest beside people's, by prompt; None where no prompt has both."""
    shared = [prompt for prompt in people if prompt in program]
    if not shared:
        return None
    outcomes = np.array([program[prompt] for prompt in shared])
    both = [(people[prompt] - 0.5) * (program[prompt] - 0.5) for prompt in shared]
    decided = [product_ for product_ in both if product_ != 0]
    agreeing = sum(product_ > 0 for product_ in decided)
    return Beside(float(outcomes.mean()), share_interval(outcomes), len(shared), len(decided), agreeing)


def by_prompt(votes: Sequence[Vote]) -> dict[str, float]:
    """The mean outcome at each prompt, of votes on one contest."""
    found: dict[str, list[float]] = {}
    for vote in votes:
        found.setdefault(vote.prompt_id, []).append(vote.outcome)
    return {prompt: sum(outcomes) / len(outcomes) for prompt, outcomes in found.items()}

"""Ratings and verdicts among many policies, against published figures, closed forms and simulations."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict

import numpy as np
import pytest
from scipy import stats
from support import SHARED_DATA

from tiebreak.measures.ratings import (
    bradley_terry,
    judge,
    length_controlled,
    outcomes_of,
    share_interval,
    share_p_value,
)
from tiebreak.measures.statistics import holm, win_interval

BASEBALL = {
    "Milwaukee": (0, 7, 9, 7, 7, 9, 11),
    "Detroit": (6, 0, 7, 5, 11, 9, 9),
    "Toronto": (4, 6, 0, 7, 7, 8, 12),
    "New York": (6, 8, 6, 0, 6, 7, 10),
    "Boston": (6, 2, 6, 7, 0, 7, 12),
    "Cleveland": (4, 4, 5, 6, 6, 0, 6),
    "Baltimore": (2, 4, 1, 3, 1, 7, 0),
}
"""The American League of 1987: each pair of teams played 13 games (Agresti 2002, Table 10.10)."""
ABILITIES = (1.58, 1.44, 1.29, 1.25, 1.11, 0.68, 0.0)
"""As published there, Baltimore's being 0."""


def as_outcomes(wins: np.ndarray, games: int) -> np.ndarray:
    outcomes = np.full((len(wins), len(wins), games), 0.5)
    for i, j in itertools.permutations(range(len(wins)), 2):
        won = int(wins[i, j]) if i < j else games - int(wins[j, i])
        row = np.zeros(games)
        row[: int(wins[min(i, j), max(i, j)])] = 1.0
        outcomes[i, j] = row if i < j else 1 - row
        assert outcomes[i, j].sum() == won
    return outcomes


def test_ratings_are_the_published_ones() -> None:
    wins = np.array(list(BASEBALL.values()))
    found = bradley_terry(as_outcomes(wins, 13), prior=0.0)
    assert found.values - found.values[-1] == pytest.approx(ABILITIES, abs=0.006)
    assert found.values.sum() == pytest.approx(0.0, abs=1e-9)


def test_mt_benchs_models_have_their_published_order() -> None:
    """By people's votes on 80 questions, a pair without any on one being tied (Zheng et al. 2023, Fig. 4)."""
    file = SHARED_DATA / "mt-bench-human-judgments/human.jsonl"
    if not file.exists():
        pytest.skip(f"no {file}")
    votes: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for vote in map(json.loads, file.read_text().splitlines()):
        won = {"model_a": 1.0, "model_b": 0.0}.get(vote["winner"], 0.5)
        votes[vote["model_a"], vote["model_b"], vote["question_id"]].append(won)
        votes[vote["model_b"], vote["model_a"], vote["question_id"]].append(1 - won)
    models, questions = (sorted({key[at] for key in votes}) for at in (0, 2))
    outcomes = np.array([[[np.mean(votes.get((a, b, q), [0.5])) for q in questions] for b in models] for a in models])
    found = bradley_terry(outcomes)
    ranked = [models[at] for at in np.argsort(-found.values)]
    assert ranked[0] == "gpt-4"
    assert set(ranked[1:3]) == {"gpt-3.5-turbo", "claude-v1"}
    assert ranked[3:] == ["vicuna-13b-v1.2", "alpaca-13b", "llama-13b"]
    best, last = models.index("gpt-4"), models.index("llama-13b")
    assert found.interval(best)[0] > found.interval(last)[1]
    assert judge(outcomes[best, last]).outcome == "better"


def test_of_two_policies_rating_and_interval_have_a_closed_form() -> None:
    """The difference is the logit of the win rate, its variance that of the mean by the delta method."""
    won = np.array([1.0] * 30 + [0.5] * 10 + [0.0] * 20)
    outcomes = np.full((2, 2, 60), 0.5)
    outcomes[0, 1], outcomes[1, 0] = won, 1 - won
    found, share = bradley_terry(outcomes, prior=0.0), won.mean()
    assert found.values[0] - found.values[1] == pytest.approx(math.log(share / (1 - share)))
    error = won.std(ddof=1) / math.sqrt(60) / (share * (1 - share))
    gap = found.covariance[0, 0] + found.covariance[1, 1] - 2 * found.covariance[0, 1]
    assert math.sqrt(gap) == pytest.approx(error, rel=1e-6)


def test_a_policy_that_always_wins_has_a_finite_rating() -> None:
    outcomes = np.full((2, 2, 40), 0.5)
    outcomes[0, 1], outcomes[1, 0] = 1.0, 0.0
    found = bradley_terry(outcomes)
    assert found.values[0] - found.values[1] == pytest.approx(math.log(40.5 / 0.5))


def test_single_seeds_keep_the_score_interval_and_several_take_students_test() -> None:
    assert share_interval(np.array([1.0] * 20 + [0.5] * 10 + [0.0] * 10)) == win_interval(20, 10, 10)
    several = np.random.default_rng(1).choice([0.0, 0.25, 0.75, 1.0], size=50)
    assert share_p_value(several) == pytest.approx(stats.ttest_1samp(several, 0.5).pvalue, abs=1e-9)


def test_length_alone_is_no_gain() -> None:
    """Where only longer answers win, the win rate at equal length is a half, and swapping the sides mirrors it."""
    draw = np.random.default_rng(2)
    lengths, others = draw.normal(60, 10, 400), draw.normal(45, 10, 400)
    slope = np.tanh((lengths - others) / (lengths - others).std())
    outcomes = (draw.uniform(size=400) < 1 / (1 + np.exp(-2.5 * slope))).astype(float)
    rate, interval = length_controlled(outcomes, lengths, others)
    assert outcomes.mean() > 0.7
    assert interval[0] < 0.5 < interval[1]
    mirrored, _ = length_controlled(1 - outcomes, others, lengths)
    assert mirrored == pytest.approx(1 - rate, abs=1e-6)
    same, _ = length_controlled(outcomes, lengths, lengths)
    assert same == pytest.approx((outcomes.sum() + 0.5) / 401, abs=1e-6)  # without any difference, the plain win rate


@pytest.mark.parametrize(
    ("wins", "ties", "losses", "outcome"),
    [
        (80, 0, 40, "better"),
        (40, 0, 80, "worse"),
        (5, 490, 5, "no worse"),
        (31, 0, 29, "undecided"),
        (20, 0, 0, "too few"),
    ],
)
def test_the_verdict(wins: int, ties: int, losses: int, outcome: str) -> None:
    found = judge(np.array([1.0] * wins + [0.5] * ties + [0.0] * losses))
    assert found.outcome == outcome
    assert (found.more > 0) == (outcome in ("undecided", "too few"))


def test_as_many_more_prompts_as_are_named_tell_a_gap_of_the_margin_four_times_in_five() -> None:
    outcomes = np.array([1.0] * 33 + [0.0] * 27)  # 55%: a gap of the margin
    n = 60 + judge(outcomes).more
    power = stats.norm.cdf(0.05 / (0.5 / math.sqrt(n)) - stats.norm.ppf(0.975))
    assert power == pytest.approx(0.8, abs=0.02)


def test_intervals_cover_and_identical_policies_are_seldom_called_better() -> None:
    """2,000 simulated reports: coverage of 93 to 97% over seeds, and at most 5% of reports with any verdict."""
    draw, reports, prompts = np.random.default_rng(3), 2000, 80
    ease = draw.normal(size=(reports, 1, prompts))
    shift = np.array([0.0, 0.4])[None, :, None, None]
    scores = ease[:, :, None] + shift + draw.normal(size=(reports, 2, 2, prompts))  # two seeds of two policies
    won = (scores[:, 1, :, None] > scores[:, 0, None, :]).mean(axis=(1, 2))
    truth = stats.norm.cdf(0.4 / math.sqrt(2))
    covered = np.mean([low <= truth <= high for low, high in map(share_interval, won)])
    assert 0.93 <= covered <= 0.97
    same = np.round(ease + draw.normal(size=(reports, 4, prompts)))  # four policies, with ties
    false = 0
    for report in same:
        pairs = [outcomes_of(report[i], report[j]) for i, j in itertools.combinations(range(4), 2)]
        adjusted = holm([share_p_value(one) for one in pairs])
        false += any(p < 0.05 for p in adjusted)
    assert false / reports <= 0.05

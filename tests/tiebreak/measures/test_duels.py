"""Duels: votes from judgments, clustered errors by hand and in simulation, ratings beside another implementation."""

from __future__ import annotations

import numpy as np
import pytest

from tiebreak.measures.duels import (
    Vote,
    clustered,
    clustered_both_ways,
    compare_with,
    rate,
    votes_of,
    win_rate,
)
from tiebreak.measures.ratings import bradley_terry
from tiebreak.messages import Message
from tiebreak.records import Completion, Judgment, Pair


def pair(n: int, first: str, second: str) -> Pair:
    sides = tuple(Completion(id=f"{n}-{k}", text=f"text {k}", policy=name) for k, name in enumerate((first, second)))
    return Pair(id=f"p{n}", prompt_id=f"q{n}", messages=(Message(role="user", content="?"),), completions=sides)


def said(n: int, rater: str, answer: int, *, swapped: bool = False) -> Judgment:
    left, right = (f"{n}-1", f"{n}-0") if swapped else (f"{n}-0", f"{n}-1")
    return Judgment(pair_id=f"p{n}", rater_id=rater, left=left, right=right, answer=answer, kind="human")


def test_votes_follow_the_policies_whatever_the_sides_and_a_shared_answer_votes_for_both() -> None:
    pairs = [pair(0, "a", "b"), pair(1, "b", "a"), pair(2, "a = c", "b")]
    judged = [
        said(0, "r", -2),  # a on the left wins
        said(0, "r", 3),  # a repeat: not counted
        said(1, "r", -1),  # b on the left wins
        said(1, "s", -1, swapped=True),  # a on the left wins
        said(2, "r", 0),
        said(2, "s", 2),
        Judgment(pair_id="p0", rater_id="s", left="0-0", right="0-1", skip=True, kind="human"),
    ]
    votes = {
        (one.prompt_id, one.rater_id, one.policies): one.outcome for one in votes_of(pairs, judged, ["a", "b", "c"])
    }
    assert votes == {
        ("q0", "r", ("a", "b")): 1.0,
        ("q1", "r", ("a", "b")): 0.0,
        ("q1", "s", ("a", "b")): 1.0,
        ("q2", "r", ("a", "b")): 0.5,
        ("q2", "r", ("b", "c")): 0.5,
        ("q2", "s", ("a", "b")): 0.0,
        ("q2", "s", ("b", "c")): 1.0,
    }


def test_a_ranking_of_two_answers_is_a_vote() -> None:
    """It has no answer of its own, and counted as a tie."""
    order = {"shown": ("0-0", "0-1"), "ranking": (("0-1",), ("0-0",))}
    ranked = Judgment(pair_id="p0", rater_id="r", left="0-0", right="0-1", kind="human", **order)
    [vote] = votes_of([pair(0, "a", "b")], [ranked], ["a", "b"])
    assert (vote.policies, vote.outcome) == (("a", "b"), 0.0)


def test_clustered_covariance_by_hand() -> None:
    """Scores 1, 1, −2 in groups {0, 1}, {2}: sums 2 and −2, squared 8, times 2/1."""
    scores = np.array([[1.0], [1.0], [-2.0]])
    assert clustered(scores, np.array([0, 0, 1])).item() == 16.0
    # Each alone: (1 + 1 + 4) · 3/2 = 9. Prompts are the groups above, each vote is by another rater: both = each alone.
    assert clustered_both_ways(scores, np.array([0, 0, 1]), np.array([0, 1, 2])).item() == 16.0 + 9.0 - 9.0


def test_a_win_rate_by_hand() -> None:
    votes = [Vote("p", r, ("a", "b"), o) for r, o in (("r", 1.0), ("s", 0.0))] + [Vote("q", "r", ("a", "b"), 1.0)]
    found = win_rate(votes)
    assert (found.value, found.prompts, found.votes, found.raters) == (0.75, 2, 3, 2)
    assert found.interval_raters is not None
    assert found.interval_raters[0] <= found.interval[0] <= 0.75 <= found.interval[1] <= found.interval_raters[1]
    assert win_rate(votes[:1]).interval_raters is None


def test_the_interval_for_other_raters_covers_where_raters_have_tastes() -> None:
    """Eight raters, each of whom prefers the first policy with a probability of their own, around 0.6: the interval over
    prompts alone is too narrow, that of both is not."""
    chance = np.random.default_rng(3)
    wide, narrow, runs = 0, 0, 200
    for _ in range(runs):
        tastes = np.clip(0.6 + 0.15 * chance.standard_normal(8), 0, 1)
        votes = [
            Vote(f"p{p}", f"r{r}", ("a", "b"), float(chance.random() < tastes[r])) for p in range(40) for r in range(8)
        ]
        found = win_rate(votes)
        assert found.interval_raters is not None
        wide += found.interval_raters[0] <= 0.6 <= found.interval_raters[1]
        narrow += found.interval[0] <= 0.6 <= found.interval[1]
    assert 0.92 <= wide / runs <= 0.99
    assert narrow / runs < 0.8


def test_ratings_equal_those_of_full_tables_of_outcomes() -> None:
    """One rater and every pair judged: the ratings and prompt-clustered intervals of `bradley_terry`."""
    chance = np.random.default_rng(5)
    outcomes = np.full((3, 3, 30), 0.5)
    votes = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        outcomes[i, j] = chance.choice([0.0, 0.5, 1.0], size=30, p=[0.2, 0.2, 0.6])
        outcomes[j, i] = 1 - outcomes[i, j]
        votes += [Vote(f"p{p}", "r", ("abc"[i], "abc"[j]), float(outcomes[i, j, p])) for p in range(30)]
    other, rated = bradley_terry(outcomes), rate(votes, ["a", "b", "c"])
    for n, one in enumerate(rated.values()):
        assert one.value == pytest.approx(float(other.values[n]), abs=1e-6)
        assert one.interval == pytest.approx(other.interval(n), abs=1e-6)
        assert one.interval_raters is None


def test_a_program_beside_people() -> None:
    people = {"p": 1.0, "q": 0.0, "r": 0.5, "s": 1.0}
    found = compare_with(people, {"p": 1.0, "q": 1.0, "r": 1.0, "t": 0.0})
    assert found is not None
    assert (found.win_rate, found.prompts, found.decided, found.agreeing) == (1.0, 3, 2, 1)
    assert compare_with(people, {"t": 1.0}) is None

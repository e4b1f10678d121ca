"""The confidence sequence: the capital by hand, false stops in simulation, and what it says of clear cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tiebreak.measures.sequential import bets, confidence_sequence, log_capital, look


def test_the_capital_of_two_wins_by_hand() -> None:
    """Bets depend on what came before: at first nothing is known, and the variance is 1/4."""
    values = np.array([1.0, 1.0])
    first = math.sqrt(2 * math.log(40) / (0.25 * 1 * math.log(2)))
    mean = (0.5 + 1) / 2
    variance = (0.25 + (1 - mean) ** 2) / 2
    second = math.sqrt(2 * math.log(40) / (variance * 2 * math.log(3)))
    assert bets(values).tolist() == pytest.approx([first, second])
    # Both bets are cut to c/m = 1: half of 1 · (1 + 1 · ½)² on the winning side.
    assert float(log_capital(values, 0.5)[-1]) == pytest.approx(math.log(1.5**2 / 2))


def test_losing_and_winning_are_mirrored() -> None:
    values = np.random.default_rng(0).choice([0.0, 0.5, 1.0], size=60, p=[0.2, 0.2, 0.6])
    low, high = confidence_sequence(values)
    assert confidence_sequence(1 - values) == pytest.approx((1 - high, 1 - low))
    assert low < values.mean() < high


@pytest.mark.parametrize("ties", [0.0, 0.4])
def test_identical_policies_looked_at_after_every_judgment_stop_falsely_in_five_percent(ties: float) -> None:
    """2,000 duels of 500 judgments: a false verdict at any of the looks."""
    chance = np.random.default_rng(7)
    lost = (1 - ties) / 2
    values = chance.choice([0.0, 0.5, 1.0], size=(2000, 500), p=[lost, ties, lost])
    assert (log_capital(values, 0.5).max(axis=1) >= math.log(20)).mean() <= 0.05
    # The fixed-sample test at every look, as one is tempted to do, is wrong more than twice as often.
    counts = np.arange(1, 501)
    z = (values.cumsum(axis=1) / counts - 0.5) / (values.std() / np.sqrt(counts))
    assert (abs(z[:, 29:]) > 1.96).any(axis=1).mean() > 0.1


def test_what_is_said_at_a_look() -> None:
    assert (look([]).state, look([]).win_rate, look([]).interval) == ("undecided", None, (0.0, 1.0))
    assert look([1.0] * 20).state == "first"
    assert look([0.0] * 20).state == "second"
    ties = look([0.5] * 400)
    assert (ties.state, ties.more) == ("no difference", 0)
    assert ties.most < 0.1
    mixed = look([1.0, 0.0] * 20)
    assert mixed.state == "undecided"
    assert mixed.more > 40
    assert look([1.0, 1.0, 0.0] * 6).more < mixed.more, "a clear difference needs fewer"


def test_several_comparisons_need_more_evidence() -> None:
    values = [1.0, 1.0, 1.0, 0.0] * 10
    alone, among_many = look(values, 0.05), look(values, 0.05 / 10)
    assert among_many.interval[0] < alone.interval[0]

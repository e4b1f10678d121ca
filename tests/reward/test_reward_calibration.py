"""Calibration against scipy, closed forms and numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from reward.calibration import (
    correctness,
    cross_fitted,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)


def draw(n: int, temperature: float, seed: int = 0) -> list[float]:
    """Differences of pairs whose first answer is the better one with probability σ(difference/temperature)."""
    rng = np.random.default_rng(seed)
    size = np.abs(rng.normal(0, 2, n))
    right = rng.random(n) < 1 / (1 + np.exp(-size / temperature))
    return [float(d) for d in np.where(right, size, -size)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_data_is_found(temperature: float) -> None:
    assert fit_temperature(draw(20_000, temperature)) == pytest.approx(temperature, rel=0.06)


def test_the_temperature_is_scipys_minimum() -> None:
    d = np.array(draw(60, 1.7, seed=3))
    t = 61 / 62

    def loss(inverse: float) -> float:
        return float((t * np.logaddexp(0, -d * inverse) + (1 - t) * np.logaddexp(0, d * inverse)).mean())

    found = minimize_scalar(loss, bounds=(1e-6, 20), method="bounded", options={"xatol": 1e-12})
    assert fit_temperature(list(d)) == pytest.approx(1 / found.x, rel=1e-5)


def test_the_temperature_scales_with_the_scores() -> None:
    d = draw(200, 1.0)
    one = fit_temperature(d)
    assert one is not None
    assert fit_temperature([7 * x for x in d]) == pytest.approx(7 * one, rel=1e-9)


def test_a_perfect_model_has_a_finite_temperature_and_a_useless_one_has_none() -> None:
    """With n equal differences d and targets (n+1)/(n+2), σ(d/T) = (n+1)/(n+2): T = d/log(n+1)."""
    assert fit_temperature([2.0] * 9) == pytest.approx(2.0 / math.log(10))
    assert fit_temperature([-1.0, -2.0, 0.5]) is None
    assert fit_temperature([0.0, 0.0]) is None
    assert fit_temperature([]) is None


def test_cross_fitting_measures_no_row_with_its_own_fit() -> None:
    """Change one prompt's differences, and what they are divided by does not move; that of all other folds does."""
    groups = [f"p{n // 3}" for n in range(90)]
    before = draw(90, 1.0)
    after = [5 * d if g == "p7" else d for d, g in zip(before, groups, strict=True)]
    one, two = cross_fitted(before, groups), cross_fitted(after, groups)
    assert one is not None
    assert two is not None
    temperatures = [(a / x, b / y) for a, x, b, y in zip(before, one, after, two, strict=True)]
    own = [t for t, g in zip(temperatures, groups, strict=True) if g == "p7"]
    assert all(first == pytest.approx(second, rel=1e-12) for first, second in own)
    moved = [t for t in temperatures if t[0] != pytest.approx(t[1], rel=1e-6)]
    assert len(moved) >= 75  # nine folds of ten
    assert cross_fitted([1.0, 2.0], ["p", "p"]) is None


def test_bins_and_ece_by_hand() -> None:
    """Confidences .6 (right, wrong) and .9 (right): |½ − .6|·2/3 + |1 − .9|·1/3 = .1."""
    sixty, ninety = math.log(0.6 / 0.4), math.log(0.9 / 0.1)
    bins = reliability([sixty + 1e-9, -sixty - 1e-9, ninety], ["a", "b", "c"])
    assert [(b.n, b.accuracy) for b in bins] == [(2, 0.5), (1, 1.0)]
    assert [b.confidence for b in bins] == pytest.approx([0.6, 0.9])
    assert bins[0].low <= 0.6 <= bins[0].high
    assert expected_calibration_error(bins) == pytest.approx(0.1)


def test_a_calibrated_model_has_almost_no_error() -> None:
    d = draw(50_000, 1.0)
    groups = [str(n) for n in range(len(d))]
    assert expected_calibration_error(reliability(d, groups)) < 0.01
    assert expected_calibration_error(reliability([5 * x for x in d], groups)) > 0.05


def test_a_coins_likelihood_is_ln_2() -> None:
    assert negative_log_likelihood([0.0] * 4) == pytest.approx(math.log(2))
    assert correctness([0.2, 0.0, -0.1]) == [1.0, 0.5, 0.0]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=40))
def test_any_differences_give_shares_that_add_up(differences: list[float]) -> None:
    groups = [str(n % 7) for n in range(len(differences))]
    bins = reliability(differences, groups)
    assert sum(b.n for b in bins) == len(differences)
    assert all(0.5 <= b.confidence <= 1 and b.low - 1e-9 <= b.confidence <= b.high + 1e-9 for b in bins)
    assert 0 <= expected_calibration_error(bins) <= 1
    temperature = fit_temperature(differences)
    assert temperature is None or temperature > 0

"""Intervals, against scipy where it has them and against their own promise where not."""

from __future__ import annotations

import numpy as np
import pytest

from tiebreak.statistics import bootstrap_interval, clustered_interval, wilson_interval


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 10), (3, 10), (10, 10), (57, 60), (413, 1000)])
def test_wilson_is_scipys(successes: int, n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_wilson_by_hand() -> None:
    # 8 of 10, z = 2: centre (0.8 + 0.2)/1.4, half 2/1.4·√(0.016 + 0.01)
    low, high = wilson_interval(8, 10, z=2.0)
    assert (low, high) == pytest.approx((1 / 1.4 - 2 / 1.4 * 0.026**0.5, 1 / 1.4 + 2 / 1.4 * 0.026**0.5))
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert (wilson_interval(0, 3)[0], wilson_interval(3, 3)[1]) == (0.0, 1.0)


def test_the_bootstrap_covers_a_normals_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    intervals = [bootstrap_interval(generator.normal(3.0, 2.0, 80).tolist(), seed=n, resamples=800) for n in range(300)]
    covered = sum(low <= 3.0 <= high for low, high in intervals)
    # 95% of 300 is 285; the percentile bootstrap falls a little short at 80 values; ±4 standard deviations (3.8)
    assert 266 <= covered <= 298
    width = np.mean([high - low for low, high in intervals])
    assert width == pytest.approx(2 * 1.96 * 2.0 / 80**0.5, rel=0.05)


def test_the_bootstrap_moves_and_scales_with_its_values() -> None:
    values = np.random.default_rng(1).exponential(size=40)
    low, high = bootstrap_interval(values.tolist(), seed=3, resamples=500)
    assert bootstrap_interval((values + 5).tolist(), seed=3, resamples=500) == pytest.approx((low + 5, high + 5))
    assert bootstrap_interval((-values).tolist(), seed=3, resamples=500) == pytest.approx((-high, -low))
    assert bootstrap_interval(values.tolist(), seed=3, resamples=500) == (low, high)
    assert bootstrap_interval(values.tolist(), seed=4, resamples=500) != (low, high)


def test_the_bootstrap_of_one_value_and_of_none() -> None:
    assert bootstrap_interval([0.25], resamples=10) == (0.25, 0.25)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])


def test_the_bootstrap_of_groups_that_repeat_a_value_is_that_of_the_value() -> None:
    """Forty prompts, each with its value three times, say what forty values say: whole prompts are drawn."""
    values = np.random.default_rng(2).normal(size=40).tolist()
    repeated = [value for value in values for _ in range(3)]
    groups = [f"{n:02}" for n in range(40) for _ in range(3)]
    alone = bootstrap_interval(values, resamples=500)
    assert bootstrap_interval(repeated, resamples=500, groups=groups) == pytest.approx(alone)
    low, high = bootstrap_interval(repeated, resamples=500)  # as if the 120 were independent: narrower by √3
    assert (high - low) * 3**0.5 == pytest.approx(alone[1] - alone[0], rel=0.15)


def test_the_bootstrap_of_groups_covers_the_truth_where_groups_differ_in_size() -> None:
    """200 draws of 60 prompts with 1 to 6 pairs that share most of their luck."""
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        sizes = rng.integers(1, 7, 60)
        groups = np.repeat(np.arange(60).astype(str), sizes)
        chances = np.repeat(rng.beta(0.7, 0.3, 60), sizes)  # mean .7
        values = (rng.random(len(chances)) < chances).astype(float)
        low, high = bootstrap_interval(values.tolist(), resamples=400, groups=groups.tolist())
        covered += low <= 0.7 <= high
    assert (
        180 <= covered <= 198
    )  # 190, less and more three standard errors; the percentile bootstrap falls short a little


def test_values_in_groups_of_their_own_have_wilsons_interval() -> None:
    values = [1.0] * 8 + [0.0] * 2
    assert clustered_interval(values, [str(n) for n in range(10)]) == pytest.approx(wilson_interval(8, 10))


def test_rows_that_repeat_their_group_count_once() -> None:
    """Each group's rows are equal, so ten groups of four say what ten rows say."""
    values = [float(n >= 2) for n in range(10) for _ in range(4)]
    groups = [str(n) for n in range(10) for _ in range(4)]
    assert clustered_interval(values, groups) == pytest.approx(wilson_interval(8, 10))
    assert clustered_interval([1.0] * 40, groups) == pytest.approx(wilson_interval(10, 10))
    assert clustered_interval([], []) == (0.0, 1.0)


def test_the_clustered_interval_covers_the_truth() -> None:
    """200 draws of 40 prompts whose 6 pairs share most of their luck: Wilson's alone covers far fewer than 95%."""
    rng = np.random.default_rng(1)
    covered = naive = 0
    for _ in range(200):
        chance = rng.beta(0.7, 0.3, 40)  # mean .7
        values = [float(rng.random() < p) for p in chance for _ in range(6)]
        low, high = clustered_interval(values, [str(n) for n in range(40) for _ in range(6)])
        covered += low <= 0.7 <= high
        low, high = wilson_interval(sum(values), len(values))
        naive += low <= 0.7 <= high
    assert covered >= 182  # 95% less three standard errors
    assert naive < 160

"""Intervals, against scipy where it has them and against their own promise where not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tiebreak.measures.statistics import (
    bootstrap_interval,
    clustered_interval,
    count_outcomes,
    difference_interval,
    holm,
    mean_interval,
    needed_prompts,
    student_quantile,
    wilson_interval,
    win_interval,
    win_p_value,
)


def test_very_many_differences_have_students_interval() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).normal(0.2, 1.0, 6_000)
    theirs = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    assert difference_interval(values.tolist()) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize(("value", "n"), [(0.0, 64), (1.0, 4)])
def test_a_share_that_never_varies_has_wilsons_interval(value: float, n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.binomtest(int(value) * n, n).proportion_ci(method="wilson")
    assert mean_interval([value] * n) == pytest.approx((theirs.low, theirs.high), abs=1e-6)
    assert mean_interval([0.5] * n) is None


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


def test_the_bootstrap_of_few_values_covers_as_often_as_it_claims() -> None:
    """400 draws of eight normal values: the plain percentiles cover about 89%."""
    generator = np.random.default_rng(4)
    draws = generator.normal(3.0, 2.0, (400, 8))
    intervals = [bootstrap_interval(row.tolist(), seed=n, resamples=1000) for n, row in enumerate(draws)]
    assert 372 <= sum(low <= 3.0 <= high for low, high in intervals) <= 394


def test_the_bootstrap_of_many_values_is_students_interval() -> None:
    """Of 16 values of small skew: mean ± t·s/√n, which the expanded percentiles reach to a few percent."""
    values = np.linspace(-1.0, 1.0, 16)
    low, high = bootstrap_interval(values.tolist(), resamples=20_000)
    half = 2.13145 * values.std(ddof=1) / 4
    assert (low, high) == pytest.approx((-half, half), rel=0.04)


def test_students_quantile_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in (*range(1, 40), 63, 1000):
        assert student_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)


def test_the_bootstrap_is_that_of_another_implementation_with_the_same_draws() -> None:
    """The percentiles that Hesterberg 2015, 4.3, gives; 10,000 resamples of seed 0 where nothing is given."""
    stats = pytest.importorskip("scipy.stats")
    for n in (2, 3, 8, 30):
        values = np.random.default_rng(n).exponential(size=n)
        draws = np.random.default_rng(0).integers(0, n, size=(10_000, n))
        tail = stats.norm.cdf(-stats.t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1)))
        expected = np.quantile(values[draws].mean(axis=1), [tail, 1 - tail])
        assert bootstrap_interval(values.tolist()) == pytest.approx(expected.tolist(), rel=1e-9)
    low, high = bootstrap_interval([1.0, 4.0])
    assert (low, high) == (1.0, 4.0)  # of two values the interval is all that there is


def test_all_or_none_ends_exactly_at_the_end() -> None:
    for n in range(1, 60):
        assert wilson_interval(n, n)[1] == 1.0
        assert wilson_interval(0, n)[0] == 0.0
        assert wilson_interval(n, n)[0] == pytest.approx(n / (n + 1.959964**2))


def test_the_clustered_interval_by_hand() -> None:
    # five groups of two, 1 1, 0 0, 1 1, 0 0 and 1 0: a share of ½, whose variance is (4·1²)/10² = .04 where independent
    # values would have ¼/10 = .025, so ten count as 10·.025/.04 = 6.25
    values = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    groups = [str(n // 2) for n in range(10)]
    assert clustered_interval(values, groups) == pytest.approx(wilson_interval(3.125, 6.25))
    none = [0.0] * 10
    assert clustered_interval(none, groups) == pytest.approx(wilson_interval(0, 5))


# --- one policy against another ---


def score_interval(wins: int, ties: int, losses: int) -> tuple[float, float]:
    """Tango's interval by brute force: the restricted likelihood is maximised numerically, the edges are looked for."""
    optimize = pytest.importorskip("scipy.optimize")
    n = wins + ties + losses

    def statistic(difference: float) -> float:
        def unlikely(q: float) -> float:  # q: the share of losses; of wins: q + difference; of ties: what is left
            shares = (q + difference, 1 - 2 * q - difference, q)
            counts = (wins, ties, losses)
            return -math.fsum(c * math.log(max(s, 1e-300)) for c, s in zip(counts, shares, strict=True) if c)

        low, high = max(0.0, -difference), (1 - difference) / 2
        q = optimize.minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        spread = math.sqrt(n * (2 * q + difference * (1 - difference)))
        return max(abs(wins - losses - n * difference) - 1, 0.0) / spread

    middle = min(max((wins - losses) / n, -1 + 1e-9), 1 - 1e-9)
    edges = []
    for end in (-1 + 1e-9, 1 - 1e-9):
        beyond = statistic(end) > 1.959964
        edge = optimize.brentq(lambda d: statistic(d) - 1.959964, middle, end) if beyond else round(end)
        edges.append(0.5 + edge / 2)
    return edges[0], edges[1]


SOME_COUNTS = [(21, 0, 9), (10, 40, 2), (3, 5, 30), (0, 30, 4), (40, 0, 24), (7, 3, 6), (12, 18, 0), (29, 1, 0)]
FEW = [(1, 0, 0), (1, 1, 0), (0, 2, 1), (2, 0, 1), (0, 0, 2)]


@pytest.mark.parametrize("counts", SOME_COUNTS + FEW)
def test_the_interval_of_a_win_rate_is_the_score_interval(counts: tuple[int, int, int]) -> None:
    assert win_interval(*counts) == pytest.approx(score_interval(*counts), abs=2e-4)


def test_outcomes_by_hand() -> None:
    mine, theirs = [3.0, 1.0, 0.1 + 0.2, 5.0, 2.0, 0.0, -1.0], [2.0, 2.0, 0.3, 4.0, 1.0, 0.0, -2.0]
    outcomes = count_outcomes(mine, theirs)
    assert (outcomes.wins, outcomes.ties, outcomes.losses, outcomes.prompts) == (4, 2, 1, 7)
    assert outcomes.win_rate == pytest.approx(5 / 7)
    assert outcomes.interval == win_interval(4, 2, 1)
    assert outcomes.p_value == win_p_value(4, 1)
    assert count_outcomes([1.0 + 1e-9], [1.0]).wins == 1  # small, and no rounding
    with pytest.raises(ValueError, match="shorter"):
        count_outcomes([1.0, 2.0], [1.0])


def test_the_interval_of_a_win_rate_turns_with_the_sides_and_never_loses_its_width() -> None:
    low, high = win_interval(18, 7, 5)
    assert win_interval(5, 7, 18) == pytest.approx((1 - high, 1 - low))
    # 30 wins of 30: (29 − 30d)² = 1.96²·30·(1 − d²), as no loss was seen; d = .71736, and the win rate (1 + d)/2
    assert win_interval(30, 0, 0)[0] == pytest.approx(0.85868, abs=1e-5)
    assert win_interval(30, 0, 0)[1] == 1.0
    assert win_interval(0, 0, 0) == (0.0, 1.0)
    assert win_interval(0, 12, 0)[0] < 0.5 < win_interval(0, 12, 0)[1]


def test_the_interval_of_a_win_rate_and_its_p_value_agree() -> None:
    for n in (5, 12, 30, 31, 64):
        for wins in range(n + 1):
            for losses in range(n + 1 - wins):
                low, high = win_interval(wins, n - wins - losses, losses)
                p_value = win_p_value(wins, losses)
                assert (p_value < 0.05) == (low > 0.5 or high < 0.5), (wins, losses, n)
                assert low <= (wins + (n - wins - losses) / 2) / n <= high


def test_the_interval_of_a_win_rate_covers_the_truth() -> None:
    """Exact, by summing over all outcomes: 30 prompts, shares of wins and losses from even to lopsided."""
    stats = pytest.importorskip("scipy.stats")
    n = 30
    counts = [(w, n - w - lost, lost) for w in range(n + 1) for lost in range(n + 1 - w)]
    intervals = np.array([win_interval(*c) for c in counts])
    for win, lose in ((0.5, 0.5), (0.2, 0.2), (0.7, 0.2), (0.9, 0.05), (0.5, 0.0), (0.05, 0.02)):
        chances = stats.multinomial.pmf(counts, n, (win, 1 - win - lose, lose))
        truth = 0.5 + (win - lose) / 2
        covered = chances[(intervals[:, 0] <= truth) & (truth <= intervals[:, 1])].sum()
        assert covered + 0.005 >= 0.95, (win, lose, covered)
        assert abs(chances.sum() - 1) < 1e-9


def test_the_p_value_by_hand_and_against_the_exact_sign_test() -> None:
    # 21 to 9: (12 − 1)²/30 = 4.0333, √ = 2.00832, and 2·(1 − Φ(2.00832)) = .04461
    assert win_p_value(21, 9) == pytest.approx(0.04461, abs=1e-5)
    assert win_p_value(9, 21) == win_p_value(21, 9)
    assert win_p_value(0, 0) == win_p_value(7, 7) == win_p_value(8, 7) == 1.0
    stats = pytest.importorskip("scipy.stats")
    for wins, losses in ((21, 9), (24, 40), (18, 30), (7, 1)):
        exact = stats.binomtest(wins, wins + losses).pvalue
        assert win_p_value(wins, losses) == pytest.approx(exact, rel=0.12)


def test_alike_policies_differ_by_chance_in_at_most_one_of_twenty() -> None:
    """Exact, whatever the number of prompts without a tie, and at the levels of ten comparisons too."""
    stats = pytest.importorskip("scipy.stats")
    for level in (0.05, 0.005):
        for n in (*range(1, 80), 128, 500):
            wins = np.arange(n + 1)
            rejected = np.array([win_p_value(int(w), n - int(w)) < level for w in wins])
            assert stats.binom.pmf(wins, n, 0.5)[rejected].sum() <= level, n


def test_holm_by_hand() -> None:
    # sorted .005, .01, .03, .04, times 4, 3, 2, 1 = .02, .03, .06, .04, each at least the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@pytest.mark.parametrize("n", [30, 64])
@pytest.mark.parametrize("policies", [1, 10])
def test_ten_alike_policies_get_a_false_verdict_in_at_most_one_of_twenty_evaluations(n: int, policies: int) -> None:
    """2,000 evaluations of policies that are all alike on a scale of seven steps: their ties and the common baseline."""
    generator = np.random.default_rng(n + policies)
    false = 0
    for _ in range(2000):
        hard = generator.normal(size=n)  # a prompt is hard for all of them
        measured = np.round(2 * (hard + generator.normal(size=(policies + 1, n)))) / 2
        wins, losses = (measured[1:] > measured[0]).sum(1), (measured[1:] < measured[0]).sum(1)
        adjusted = holm([win_p_value(int(w), int(lost)) for w, lost in zip(wins, losses, strict=True)])
        false += min(adjusted) < 0.05
    assert false <= 120  # 5% is 100; and 2 standard errors


@pytest.mark.parametrize(("rate", "comparisons"), [(0.65, 1), (0.65, 2), (0.35, 10), (0.6, 1), (0.75, 3)])
def test_the_needed_prompts_have_the_power_that_they_are_named_for(rate: float, comparisons: int) -> None:
    """Exact: the chance that this many prompts give a p-value below 5% shared among the comparisons."""
    stats = pytest.importorskip("scipy.stats")

    def power(n: int) -> float:
        wins = np.arange(n + 1)
        shown = [win_p_value(int(w), n - int(w)) < 0.05 / comparisons and (w > n / 2) == (rate > 0.5) for w in wins]
        return float(stats.binom.pmf(wins, n, rate)[shown].sum())

    assert (needed_prompts(0.65), needed_prompts(0.35), needed_prompts(0.6), needed_prompts(0.7, 10)) == (
        92,
        92,
        204,
        85,
    )
    n = needed_prompts(rate, comparisons)
    assert 0.78 <= power(n) <= 0.84
    assert power(n * 3 // 4) < 0.72

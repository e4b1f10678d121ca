"""Corrected shares: closed forms, coverage of the intervals in simulation, and real votes with a judge of known error."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pytest
from support import SHARED_DATA

from tiebreak.measures.corrected import prediction_powered_mean, rogan_gladen
from tiebreak.measures.statistics import Z, student_quantile

SIMULATIONS = 2_000


def test_rogan_gladen_by_hand() -> None:
    """60% called positive; 0.2 of the negatives are, and 0.9 of the positives: 0.2·(1 − θ) + 0.9·θ = 0.6."""
    found = rogan_gladen(0.6, 10**9, 0.8, 10**9, 0.9, 10**9)
    assert found.value == pytest.approx(4 / 7)
    assert found.interval == pytest.approx((4 / 7, 4 / 7), abs=1e-3)


def test_a_perfect_judge_needs_no_correction() -> None:
    found = rogan_gladen(0.3, 500, 1.0, 10**9, 1.0, 10**9)
    p = (150 + Z * Z / 2) / (500 + Z * Z)  # Agresti and Coull's interval
    half = Z * (p * (1 - p) / (500 + Z * Z)) ** 0.5
    assert found.value == pytest.approx(0.3)
    assert found.interval == pytest.approx((p - half, p + half), abs=1e-6)


def test_a_judge_at_chance_measures_nothing() -> None:
    assert rogan_gladen(0.5, 100, 0.5, 50, 0.5, 50) == rogan_gladen(0.9, 100, 0.4, 50, 0.5, 50)
    assert rogan_gladen(0.5, 100, 0.5, 50, 0.5, 50).value is None


@pytest.mark.parametrize(
    ("truth", "sensitivity", "specificity", "n", "both"),
    [(0.5, 0.9, 0.9, 1000, 200), (0.3, 0.8, 0.7, 500, 100), (0.7, 0.95, 0.6, 2000, 300), (0.6, 0.75, 0.75, 400, 150)],
)
def test_rogan_gladens_interval_covers(truth: float, sensitivity: float, specificity: float, n: int, both: int) -> None:
    """As people judge a random part, the numbers of positives and negatives are random too."""
    chance = np.random.default_rng(0)
    positives = chance.binomial(both, truth, SIMULATIONS)
    right = chance.binomial(positives, sensitivity)
    rejected = chance.binomial(both - positives, specificity)
    called = chance.binomial(n, truth * sensitivity + (1 - truth) * (1 - specificity), SIMULATIONS)
    covered = [
        low <= truth <= high
        for p, q, m, k in zip(called, rejected, positives, right, strict=True)
        for low, high in [rogan_gladen(p / n, n, q / (both - m), both - m, k / m, m).interval]
    ]
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize(
    ("accuracy", "n", "both"),
    [(0.9, 1000, 100), (0.75, 500, 200), (0.6, 800, 100), (0.5, 400, 60), (0.9, 100, 100), (0.95, 2000, 150)],
)
def test_prediction_powered_interval_covers_and_is_no_wider_than_peoples(accuracy: float, n: int, both: int) -> None:
    """Outcomes 0, ½ and 1; the judge's is right with `accuracy`, otherwise a win: biased as judges are."""
    chance = np.random.default_rng(1)
    truth = 0.55 + 0.1
    outcomes = chance.choice([0.0, 0.5, 1.0], p=[0.25, 0.2, 0.55], size=(SIMULATIONS, n + both))
    judge = np.where(chance.random(outcomes.shape) < accuracy, outcomes, 1.0)
    covered, widths, alone = [], [], []
    for f, y in zip(judge, outcomes, strict=True):
        low, high = prediction_powered_mean(f[both:], f[:both], y[:both]).interval
        covered.append(low <= truth <= high)
        widths.append(high - low)
        alone.append(2 * student_quantile(both - 1) * y[:both].std(ddof=1) / both**0.5)
    assert 0.93 <= np.mean(covered) <= 0.97
    assert np.mean(widths) <= np.mean(alone) * 1.03
    raw = judge.mean(axis=1)
    if accuracy < 0.9:  # the judge's own interval misses the truth nearly always
        half = Z * judge.std(axis=1, ddof=1) / (n + both) ** 0.5
        assert np.mean(np.abs(raw - truth) <= half) < 0.5


def test_a_useless_judge_leaves_peoples_mean() -> None:
    people = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    found = prediction_powered_mean([1.0] * 50, [1.0] * 6, people)
    squares = 4 * (1 / 3) ** 2 + 2 * (2 / 3) ** 2 + ((1 / 3) ** 2 + (2 / 3) ** 2) / 2
    half = student_quantile(5) * (squares / 5 / 6) ** 0.5
    assert found.value == pytest.approx(4 / 6)
    assert found.interval == pytest.approx((max(4 / 6 - half, 0), min(4 / 6 + half, 1)))


def test_a_perfect_judge_counts_as_people() -> None:
    """With λ = 1 / (1 + n/N) for a judge that equals people, the estimate is the mean of all."""
    chance = np.random.default_rng(2)
    values = chance.integers(0, 2, 400).astype(float)
    found = prediction_powered_mean(values[100:], values[:100], values[:100])
    assert found.value == pytest.approx(values.mean(), abs=0.003)
    half = Z * values.std(ddof=1) / 400**0.5
    assert (found.interval[1] - found.interval[0]) / 2 == pytest.approx(half, rel=0.1)


def test_mt_bench_win_rates_are_recovered_from_a_fifth_of_the_votes() -> None:
    """Six models' win rates over the others by all votes; a judge that is wrong in 25%, mostly for the side called a, sees
    all votes, and a fifth of people's own correct it."""
    file = SHARED_DATA / "mt-bench-human-judgments/human.jsonl"
    if not file.exists():
        pytest.skip(f"no {file}")
    outcomes: dict[str, list[tuple[float, float]]] = defaultdict(list)
    chance = np.random.default_rng(0)
    for vote in map(json.loads, file.read_text().splitlines()):
        people = {"model_a": 1.0, "tie": 0.5}.get(vote["winner"], 0.0)
        wrong = chance.random() < 0.25
        judge = (1.0 if chance.random() < 0.8 else 0.0) if wrong else people
        outcomes[vote["model_a"]].append((people, judge))
        outcomes[vote["model_b"]].append((1 - people, 1 - judge))
    assert len(outcomes) == 6
    covered = raw_off = 0
    for rows in outcomes.values():
        values = np.array(rows)[chance.permutation(len(rows))]
        part = len(values) // 5
        found = prediction_powered_mean(values[part:, 1], values[:part, 1], values[:part, 0])
        covered += found.interval[0] <= values[:, 0].mean() <= found.interval[1]
        raw_off += abs(values[:, 1].mean() - values[:, 0].mean()) > 0.01
    assert covered == 6
    assert raw_off >= 3

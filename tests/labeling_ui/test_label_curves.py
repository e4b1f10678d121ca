"""Agreement in time and by batch, Gwet's coefficients, and how many pairs would halve an interval."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from label_support import answer, make_pair, open_store

from labeling_ui.quality.agreement import gwet_ac, krippendorff_alpha, percent_agreement
from labeling_ui.quality.curves import drift, items_to_halve, learning_curves
from labeling_ui.quality.figures_process import StoreFigures
from labeling_ui.quality.votes import Integers, Votes, votes_of_columns
from labeling_ui.store.pairs.campaign import BatchChange

DAY = 86_400_000
CODED = (
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
)
"""four raters, twelve units, five values: the example of Krippendorff 2011 and of Gwet's irrCAC (`cac.raw4raters`)"""


def tallied(rows: tuple[list[int | None], ...], values: range) -> Integers:
    units = range(len(rows[0]))
    return np.array([[[row[unit] for row in rows].count(value) for value in values] for unit in units])


def votes_of(rows: list[tuple[int, int, int, int]], raters: int) -> Votes:
    """Rows of item, rater, value and time."""
    columns = np.zeros((10, len(rows)))
    columns[[0, 1, 2, 9]] = np.array(rows, dtype=np.float64).T
    columns[7] = np.nan
    return votes_of_columns(tuple(f"r{n}" for n in range(raters)), columns)


def test_gwets_ac1_of_the_published_example() -> None:
    """irrCAC's documentation: AC1 0.77544 of this table."""
    assert gwet_ac(tallied(CODED, range(1, 6)), range(1, 6), interval=False).value == pytest.approx(0.77544, abs=5e-6)


def test_ac_of_two_raters_by_their_table() -> None:
    """With two raters and none missing, AC2 is (Σ w p − pe) / (1 − pe), pe = T Σ π(1 − π) / (q(q − 1)) (Gwet 2014)."""
    chance = np.random.default_rng(5)
    values = range(-3, 4)
    one = chance.integers(-3, 4, 200)
    other = np.clip(one + chance.integers(-1, 2, 200), -3, 3)
    tallies = np.array([[int(a == v) + int(b == v) for v in values] for a, b in zip(one, other, strict=True)])
    for interval in (False, True):
        weight = np.array([[1 - (a - b) ** 2 / 36 if interval else float(a == b) for b in values] for a in values])
        observed = np.mean([weight[a + 3, b + 3] for a, b in zip(one, other, strict=True)])
        share = np.array([(np.mean(one == v) + np.mean(other == v)) / 2 for v in values])
        expected = weight.sum() * (share * (1 - share)).sum() / (7 * 6)
        found = gwet_ac(tallies, values, interval=interval)
        assert found.value == pytest.approx((observed - expected) / (1 - expected))
        assert found.interval is not None
        assert found.interval[0] < (found.value or 0) < found.interval[1]


def test_ac_stays_where_alpha_falls() -> None:
    """90 of 100 pairs AA, 5 AB, 5 BA: 90% agree. pe = 2 · 0.95 · 0.05, so AC1 = 0.805 / 0.905; α is below 0."""
    tallies = np.array([[2, 0]] * 90 + [[1, 1]] * 10)
    assert gwet_ac(tallies, (0, 1), interval=False).value == pytest.approx(0.805 / 0.905)
    assert (krippendorff_alpha(tallies, (0, 1), interval=False).value or 0) < 0


def test_a_rater_who_learns() -> None:
    """r0 is against both others on 40 items, then with them on 60; r3 has judged too little for a curve."""
    rows = [(n, rater, 1, n) for n in range(100) for rater in (1, 2)]
    rows += [(n, 0, -1 if n < 40 else 1, 1_000 + n) for n in reversed(range(100))]
    rows += [(n, 3, 1, n) for n in range(30)]
    rows += [(n, 1, 1, n) for n in range(200, 260)]  # nobody else has judged these
    curves = learning_curves(votes_of(rows, 4))
    assert sorted(curves) == ["r0", "r1", "r2"]
    assert [(part["judgments"], part["value"], part["n"]) for part in curves["r0"]] == [
        (20, 0.0, 20),
        (40, 0.0, 20),
        (60, 1.0, 20),
        (80, 1.0, 20),
        (100, 1.0, 20),
    ]
    # Of r1's others on the first 40 items, r0 is against, r2 with, and r3 too on 30 of them.
    assert curves["r1"][0]["value"] == pytest.approx(2 / 3)
    assert curves["r1"][-1]["value"] == 1.0


def test_agreement_that_falls_is_found() -> None:
    """Of 80 items, the first 40 agree except for 4, the last 40 except for 20: Welch's test of 0.9 against 0.5."""
    apart = {*range(0, 40, 10), *range(40, 80, 2)}
    rows = [(n, rater, -1 if rater and n in apart else 1, n * DAY) for n in range(80) for rater in (0, 1)]
    found = drift(votes_of(rows, 2))
    assert [part["n"] for part in found["parts"]] == [20] * 4
    assert [part["value"] for part in found["parts"]] == [0.9, 0.9, 0.5, 0.5]
    assert (found["parts"][0]["from"], found["parts"][-1]["to"]) == ("1970-01-01", "1970-03-21")
    assert (found["first"]["value"], found["second"]["value"]) == (0.9, 0.5)
    z = 0.4 / (0.9 * 0.1 / 39 + 0.25 / 39) ** 0.5
    from scipy.stats import norm

    assert found["p"] == pytest.approx(2 * norm.sf(z))
    assert drift(votes_of(rows[:70], 2))["parts"] == [], "35 items are too few for two parts"


def test_four_times_the_items_halve_the_interval() -> None:
    chance = np.random.default_rng(0)

    def width(items: int) -> float:
        rows = [(n, rater, int(chance.random() < 0.7), n) for n in range(items) for rater in range(3)]
        votes = votes_of(rows, 3)
        assert items_to_halve(votes) == {"items": 3 * items, "raters": 3.0}
        low, high = percent_agreement(votes, ties=True).interval or (0.0, 0.0)
        return high - low

    assert width(2_000) / width(500) == pytest.approx(0.5, abs=0.03)
    assert items_to_halve(votes_of([(0, 0, 1, 0), (1, 1, 1, 0)], 2)) is None


def test_a_stores_figures_have_batches_and_times(tmp_path: Path) -> None:
    clock = iter(range(1_700_000_000_000, 1_800_000_000_000, 60_000))
    store = open_store(tmp_path, [make_pair(n) for n in range(50)], overlap=2, raters=2, clock=lambda: next(clock))
    store.create_batch("hard", BatchChange())
    store.add_pairs([make_pair(n) for n in range(50, 60)], overlap=2, seed=0, source="b", source_id="b", batch="hard")
    for rater in ("r0", "r1"):
        while (given := store.claim(rater)) is not None:
            side = 1 if rater == "r0" or int(given.pair.id[5:]) < 50 else -1
            store.submit(rater, answer(given.item_id, -side if given.left_id.endswith("-0") else side, given.id))
    store.set_gold("pair-59", "59-0")
    figures, *_ = StoreFigures(store).measure()
    measured = figures["figures"]
    assert {name: (one["value"], one["n"]) for name, one in measured["batches"].items()} == {
        "": (1.0, 50),
        "hard": (0.0, 9),
    }
    assert [part["n"] for part in measured["drift"]["parts"]] == [30, 29]
    assert measured["drift"]["parts"][0]["from"] >= "2023-11-14"
    assert measured["curves"]["r1"][0]["value"] == 1.0
    assert measured["to_halve"] == {"items": 3 * 59, "raters": 2.0}
    store.close()

"""Habits of raters that are independent of the answers' quality: preference for a side or for length, and haste.

Sides are shuffled, so an unbiased rater prefers the left one half of the time. Longer answers may well be better, so
for length a rater is compared with the others. Every test is two-sided, and the p-values are adjusted over a campaign's
raters (Holm 1979): without any bias, each mark appears by chance in one campaign of twenty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from labeling_ui.quality.intervals import Figure, share, share_of_clusters
from labeling_ui.quality.votes import Floats, Votes

SIGNIFICANT = 0.05
OUTLYING = 3.5
"""Modified z-scores beyond this are outliers (Iglewicz & Hoaglin 1993)."""
FEWEST_FOR_PACE = 3
"""fewest raters for a comparison of paces"""


def overall_habits(votes: Votes) -> dict[str, Any]:
    """How often all raters together preferred the left and the longer side."""
    left, longer = _left(votes), _longer(votes)
    return {
        "left_side": {**share(left.sum(), len(left)).as_json(), "p": _rounded(sign_test(int(left.sum()), len(left)))},
        "longer_side": share(longer.sum(), len(longer)).as_json(),
    }


def describe_raters(votes: Votes) -> list[dict[str, Any]]:
    """One row per rater: count, agreement, self-consistency, biases with their tests, and pace.

    `marks` lists deviations: `left side`, `right side`, `longer answers`, `shorter answers`, `fast`, `slow`.
    """
    raters = votes.by_rater()
    together, alone = _agreement_by_rater(votes, with_others=True), _agreement_by_rater(votes, with_others=False)
    left, longer, pace = _side_leanings(raters), _length_leanings(raters), _paces(votes, raters)
    nothing = Figure(None, 0, None)
    return [
        {
            "rater": votes.rater_ids[number],
            "judgments": len(mine),
            "ties": int(((mine.value == 0) & ~mine.both_bad & ~mine.skipped).sum()),
            "both_bad": int(mine.both_bad.sum()),
            "skipped": int(mine.skipped.sum()),
            "agrees": together.get(number, nothing).as_json(),
            "self_consistency": alone.get(number, nothing).as_json(),
            "left_side": left[number],
            "longer_side": longer[number],
            **pace[number],
            "marks": _marks(left[number], longer[number], pace[number]["speed"]),
        }
        for number, mine in sorted(raters.items(), key=lambda item: votes.rater_ids[item[0]])
    ]


def _marks(left: dict[str, Any], longer: dict[str, Any], speed: dict[str, Any]) -> list[str]:
    marks = []
    if left["p_adjusted"] is not None and left["p_adjusted"] < SIGNIFICANT:
        marks.append("left side" if left["value"] > 0.5 else "right side")
    if longer["p_adjusted"] is not None and longer["p_adjusted"] < SIGNIFICANT:
        marks.append("longer answers" if longer["value"] > longer["others"] else "shorter answers")
    if speed["outlier"]:
        marks.append(speed["outlier"])
    return marks


def _agreement_by_rater(votes: Votes, *, with_others: bool) -> dict[int, Figure]:
    """Each rater's agreement with the others, or with themselves."""
    cast = votes.ordinary if with_others else votes.cast
    one, other = cast.pairs
    kept = (cast.rater[one] != cast.rater[other]) == with_others
    one, other = one[kept], other[kept]
    if with_others:  # each pair counts for both raters
        one, other = np.concatenate([one, other]), np.concatenate([other, one])
    items = int(votes.item.max()) + 1 if len(votes) else 1
    cluster, row = np.unique(cast.rater[one] * items + cast.item[one], return_inverse=True)
    same: Floats = np.bincount(row, weights=cast.sign[one] == cast.sign[other], minlength=len(cluster)).astype(float)
    trials = np.bincount(row, minlength=len(cluster)).astype(np.float64)
    numbers, starts = np.unique(cluster // items, return_index=True)
    parts = zip(numbers, np.split(same, starts[1:]), np.split(trials, starts[1:]), strict=bool(len(numbers)))
    return {int(number): share_of_clusters(agreed, of) for number, agreed, of in parts}


def _left(votes: Votes) -> Floats:
    """1 where the left side was preferred, 0 where the right was; other votes left out."""
    decided = votes.where(votes.value != 0)
    left: Floats = ((decided.value > 0) == decided.left_first).astype(np.float64)
    return left


def _longer(votes: Votes) -> Floats:
    """1 where the longer answer was preferred, 0 where the shorter was; other votes left out."""
    decided = votes.where((votes.value != 0) & (votes.first_longer != 0))
    longer: Floats = (decided.sign == decided.first_longer).astype(np.float64)
    return longer


def _side_leanings(raters: Mapping[int, Votes]) -> dict[int, dict[str, Any]]:
    rows, tests = {}, []
    for number, mine in raters.items():
        left = _left(mine)
        rows[number] = share(left.sum(), len(left)).as_json()
        tests.append(sign_test(int(left.sum()), len(left)))
    return _with_tests(rows, tests)


def _length_leanings(raters: Mapping[int, Votes]) -> dict[int, dict[str, Any]]:
    longer = {number: _longer(mine) for number, mine in raters.items()}
    total, n = sum(float(one.sum()) for one in longer.values()), sum(len(one) for one in longer.values())
    rows, tests = {}, []
    for number, one in longer.items():
        others, n_others = total - float(one.sum()), n - len(one)
        beside = {"others": round(others / n_others, 6) if n_others else None}
        rows[number] = share(one.sum(), len(one)).as_json() | beside
        tests.append(two_shares_test(float(one.sum()), len(one), others, n_others))
    return _with_tests(rows, tests)


def _with_tests(rows: dict[int, dict[str, Any]], tests: Sequence[float | None]) -> dict[int, dict[str, Any]]:
    adjusted = adjust_for_many(tests)
    return {
        number: {**one, "p": _rounded(p), "p_adjusted": _rounded(q)}
        for (number, one), p, q in zip(rows.items(), tests, adjusted, strict=True)
    }


def _rounded(p: float | None) -> float | None:
    return None if p is None else float(f"{p:.6g}")


def sign_test(successes: int, n: int) -> float | None:
    """The exact two-sided p-value of `successes` of n at chance 1/2; None where n is 0.

    >>> round(sign_test(9, 10), 9)
    0.021484375
    """
    if n == 0:
        return None
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    tail = np.arange(min(successes, n - successes) + 1)
    log_chances = logs[n] - logs[tail] - logs[n - tail] - n * math.log(2)
    return min(1.0, 2 * float(np.exp(log_chances).sum()))


def two_shares_test(successes: float, n: int, others: float, n_others: int) -> float | None:
    """The two-sided p-value that two shares are equal (score test with the pooled share); None where they cannot differ."""
    if not n or not n_others:
        return None
    pooled = (successes + others) / (n + n_others)
    variance = pooled * (1 - pooled) * (1 / n + 1 / n_others)
    if variance == 0:
        return None
    z = (successes / n - others / n_others) / math.sqrt(variance)
    return math.erfc(abs(z) / math.sqrt(2))


def adjust_for_many(tests: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) adjusted p-values; None stays None and does not count as a test."""
    held = sorted((p, n) for n, p in enumerate(tests) if p is not None)
    adjusted: list[float | None] = [None] * len(tests)
    highest = 0.0
    for rank, (p, n) in enumerate(held):
        highest = max(highest, min(1.0, p * (len(held) - rank)))
        adjusted[n] = highest
    return adjusted


# --- pace ---


def _paces(votes: Votes, raters: Mapping[int, Votes]) -> dict[int, dict[str, Any]]:
    """Median seconds, whether they are outliers among the raters, and `hasty`: the share of judgments far faster than is
    usual in this campaign."""
    logs = _log_seconds(votes)
    middle, deviation = spread(logs)
    mine = {number: _log_seconds(rows) for number, rows in raters.items()}
    timed = {number: float(np.median(one)) for number, one in mine.items() if len(one)}
    medians = np.array(list(timed.values()))
    z: dict[int, float] = {}
    if len(timed) >= FEWEST_FOR_PACE:
        typical, apart = spread(medians)
        z = {number: (one - typical) / apart if apart else 0.0 for number, one in timed.items()}
    hasty = middle - OUTLYING * deviation
    return {number: _pace(np.exp(one), z.get(number), one < hasty) for number, one in mine.items()}


def _log_seconds(votes: Votes) -> Floats:
    """Log seconds of the judgments that have them."""
    measured = votes.seconds[np.isfinite(votes.seconds)]
    return np.log(np.maximum(measured, 1e-3))


def _pace(seconds: Floats, z: float | None, hasty: Any) -> dict[str, Any]:
    outlier = None if z is None or abs(z) <= OUTLYING else "fast" if z < 0 else "slow"
    speed = {
        "z": None if z is None else round(float(z), 2),
        "outlier": outlier,
        "hasty": round(float(hasty.mean()), 6) if len(hasty) else None,
    }
    return {"median_seconds": round(float(np.median(seconds)), 1) if len(seconds) else None, "speed": speed}


def spread(values: Floats) -> tuple[float, float]:
    """The median, and the robust standard deviation around it: MAD / 0.6745, or where more than half of the values are
    equal, 1.2533 times the mean absolute deviation (Iglewicz & Hoaglin 1993); 0 where all are."""
    if not len(values):
        return 0.0, 0.0
    middle = float(np.median(values))
    apart = np.abs(values - middle)
    mad = float(np.median(apart))
    return middle, mad / 0.6745 if mad > 0 else 1.253314 * float(apart.mean())

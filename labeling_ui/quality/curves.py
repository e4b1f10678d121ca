"""Agreement in time: as each rater judges more, and over the campaign; agreement by batch; and how many more pairs an
interval needs.

Time is the server's. Imported and simulated judgments have none and are left out of what depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from labeling_ui.quality.intervals import mean_over_clusters
from labeling_ui.quality.votes import Floats, Integers, Votes

BLOCK = 20
"""Fewest judgments of a part of a learning curve."""
MOST_BLOCKS = 10
FEWEST_ITEMS = 20
"""Fewest items of a part of the campaign."""
MOST_PARTS = 20
DAY_MS = 86_400_000


def shares_of_agreement(votes: Votes) -> Floats:
    """For each of the ordinary votes: the share of the item's other raters who gave the same answer; nan without others.

    Shape (votes,).
    """
    one, other = votes.pairs
    same = (votes.sign[one] == votes.sign[other]).astype(np.float64)
    size = len(votes)
    agreeing = np.bincount(one, same, size) + np.bincount(other, same, size)
    others = np.bincount(one, minlength=size) + np.bincount(other, minlength=size)
    shares: Floats = np.divide(agreeing, others, out=np.full(size, np.nan), where=others > 0)
    return shares


def learning_curves(votes: Votes) -> dict[str, list[dict[str, Any]]]:
    """Each rater's agreement with the others, in up to ten equal parts of their judgments in order of time.

    Only judgments of items that others have judged count. Raters with fewer than two parts have no curve.
    """
    timed = _timed(votes.ordinary)
    shares = shares_of_agreement(timed)
    curves = {}
    for number in np.unique(timed.rater):
        rows = np.flatnonzero((timed.rater == number) & ~np.isnan(shares))
        parts = _parts(rows[np.argsort(timed.at_ms[rows], kind="stable")], BLOCK, MOST_BLOCKS)
        if len(parts) > 1:
            ends = np.cumsum([len(part) for part in parts])
            curves[timed.rater_ids[number]] = [
                {"judgments": int(end), **mean_over_clusters(shares[part], np.ones(len(part))).as_json()}
                for end, part in zip(ends, parts, strict=True)
            ]
    return dict(sorted(curves.items()))


def drift(votes: Votes) -> dict[str, Any]:
    """The campaign's agreement in time, in up to twenty parts with as many items each, and a test of its two halves.

    An item's time is that of its last vote. `p` is Welch's, two-sided, of the halves' means with a normal distribution.
    """
    same, pairs, at_ms = _by_item(_timed(votes.ordinary))
    order = np.argsort(at_ms, kind="stable")
    parts = _parts(order, FEWEST_ITEMS, MOST_PARTS)
    if len(parts) < 2:
        return {"parts": [], "first": None, "second": None, "p": None}
    first, second = np.array_split(order, 2)
    return {
        "parts": [
            {"from": _day(at_ms[part[0]]), "to": _day(at_ms[part[-1]])}
            | mean_over_clusters(same[part], pairs[part]).as_json()
            for part in parts
        ],
        "first": mean_over_clusters(same[first], pairs[first]).as_json(),
        "second": mean_over_clusters(same[second], pairs[second]).as_json(),
        "p": _welch(same[first] / pairs[first], same[second] / pairs[second]),
    }


def agreement_by_part(votes: Mapping[str, Votes]) -> dict[str, dict[str, Any]]:
    """The agreement, counting ties, of each part of the campaign, such as its batches; parts without any are left out."""
    found = {}
    for name, part in votes.items():
        same, pairs, _ = _by_item(part.ordinary)
        if len(same):
            found[name] = mean_over_clusters(same, pairs).as_json()
    return found


def items_to_halve(votes: Votes) -> dict[str, Any] | None:
    """How many more items, with as many raters each as those so far, would halve the interval of the agreement.

    The interval's width falls with the square root of the number of items, so three times as many again.
    """
    ordinary = votes.ordinary
    counts = np.bincount(ordinary.item) if len(ordinary) else np.empty(0, dtype=np.int64)
    several = counts[counts > 1]
    if not len(several):
        return None
    return {"items": 3 * len(several), "raters": round(float(several.mean()), 1)}


def _timed(votes: Votes) -> Votes:
    return votes.where(votes.at_ms >= 0)


def _by_item(votes: Votes) -> tuple[Floats, Floats, Floats]:
    """Of the items with several votes: their pairs of votes with the same answer, all pairs, and the last vote's time."""
    one, other = votes.pairs
    if not len(one):
        return np.empty(0), np.empty(0), np.empty(0)
    same: Floats = np.bincount(votes.item[one], weights=votes.sign[one] == votes.sign[other]).astype(np.float64)
    pairs: Floats = np.bincount(votes.item[one]).astype(np.float64)
    last = np.full(len(pairs), -np.inf)
    inside = votes.item < len(pairs)
    np.maximum.at(last, votes.item[inside], votes.at_ms[inside])
    several = pairs > 0
    return same[several], pairs[several], last[several]


def _parts(rows: Integers, fewest: int, most: int) -> list[Integers]:
    """Consecutive parts of about equal size, none smaller than `fewest`."""
    count = min(most, len(rows) // fewest)
    return [part for part in np.array_split(rows, count) if len(part)] if count else []


def _welch(one: Floats, other: Floats) -> float | None:
    error = math.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other))
    if not error:
        return None
    return math.erfc(abs(float(one.mean() - other.mean())) / error / math.sqrt(2))


def _day(at_ms: float) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d}"

"""How far raters agree: with others, with chance taken off, and with themselves.

    tiebreak label agreement --store URL [--json]

Every figure has its n and a 95% interval. Intervals resample items, not votes: votes about one item are not
independent. Agreement is about which side is better (first, second, neither); the interval-scaled α also about how
much.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling_ui.aggregate import Group, Vote, first_votes, group_judgments
from tiebreak.records import Judgment, Pair
from tiebreak.statistics import Interval, wilson_interval

RESAMPLES = 2_000
SIDES = (-1, 0, 1)
STRENGTHS = (-3, -2, -1, 0, 1, 2, 3)
PUBLISHED = (
    ("InstructGPT, training labelers with each other (Ouyang et al. 2022)", "72.6 ± 1.5%"),
    ("Bai et al. 2022, crowdworkers with researchers", "about 63%"),
    ("MT-Bench humans, ties among them (Zheng et al. 2023)", "63%"),
    ("MT-Bench humans, without ties", "81%"),
)

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """A figure, of how many, with its 95% interval. `value` is None where it is not defined."""

    value: float | None
    n: int
    interval: Interval | None

    def as_json(self) -> dict[str, Any]:
        """Rounded, for a report."""
        edges = None if self.interval is None else [round(edge, 6) for edge in self.interval]
        return {"value": None if self.value is None else round(self.value, 6), "n": self.n, "interval": edges}


def percent_agreement(groups: Sequence[Group], *, ties: bool) -> Figure:
    """The share of pairs of raters on the same item who say the same: first, second or (with `ties`) neither.

    Without ties only those pairs count where both raters prefer a side (Zheng et al. 2023, section 4.2). A rater is not
    compared with themselves.
    """
    counts = Counter(_pairs_that_agree(group.votes, ties) for group in groups)
    rows = np.array(list(counts), dtype=np.float64).reshape(-1, 2)

    def share(weights: Matrix) -> Matrix:
        same, total = (weights @ rows).T
        return _ratio(same, total)

    n = int(sum(total * many for (_, total), many in counts.items()))
    return _figure(share, np.array(list(counts.values()), dtype=np.int64), n)


def _pairs_that_agree(votes: Sequence[Vote], ties: bool) -> tuple[int, int]:
    same = total = 0
    for a, b in combinations(votes, 2):
        if a.rater_id != b.rater_id and (ties or (a.value and b.value)):
            total += 1
            same += sign(a.value) == sign(b.value)
    return same, total


def cohen_kappa(pairs: Sequence[tuple[int, int]]) -> Figure:
    """Cohen's κ (1960) of two raters over the items both judged; None where chance alone would have them agree.

    >>> round(cohen_kappa([(1, 1)] * 20 + [(1, -1)] * 5 + [(-1, 1)] * 10 + [(-1, -1)] * 15).value, 6)
    0.4
    """
    cells = Counter((sign(a), sign(b)) for a, b in pairs)
    places = {(a, b): 3 * i + j for i, a in enumerate(SIDES) for j, b in enumerate(SIDES)}
    rows = np.zeros((len(cells), 9))
    for n, cell in enumerate(cells):
        rows[n, places[cell]] = 1

    def kappa(weights: Matrix) -> Matrix:
        table = (weights @ rows).reshape(-1, 3, 3)
        total = table.sum(axis=(1, 2))
        observed = np.trace(table, axis1=1, axis2=2) / total
        expected = (table.sum(axis=1) * table.sum(axis=2)).sum(axis=1) / total**2
        return _ratio(observed - expected, 1 - expected)

    return _figure(kappa, np.array(list(cells.values()), dtype=np.int64), len(pairs))


def krippendorff_alpha(units: Sequence[Sequence[int]], values: Sequence[int], *, interval: bool) -> Figure:
    """Krippendorff's α (2011) for any number of raters and missing votes; `n` is the number of votes that can be
    paired.

    Args:
        units: the votes about each item.
        values: the scale's values.
        interval: differences count by their square; else (nominal) any two different values differ the same.
    """
    distance = np.array([[float((a - b) ** 2) if interval else float(a != b) for b in values] for a in values])
    place = {value: n for n, value in enumerate(values)}
    counts = Counter(tuple(sorted(votes)) for votes in units if len(votes) > 1)
    rows = np.array([_coincidences([place[v] for v in votes], len(values)) for votes in counts])
    rows = rows.reshape(len(counts), len(values) ** 2)

    def alpha(weights: Matrix) -> Matrix:
        matrix = (weights @ rows).reshape(-1, len(values), len(values))
        marginal = matrix.sum(axis=2)
        n = marginal.sum(axis=1)
        observed = (matrix * distance).sum(axis=(1, 2)) / n
        expected = np.einsum("ba,ac,bc->b", marginal, distance, marginal) / (n * (n - 1))
        return 1 - _ratio(observed, expected)

    votes = sum(len(unit) * many for unit, many in counts.items())
    return _figure(alpha, np.array(list(counts.values()), dtype=np.int64), votes)


def _coincidences(votes: Sequence[int], size: int) -> Matrix:
    """One item's part of the coincidence matrix: each ordered pair of its m votes, divided by m − 1; flat."""
    tally = np.bincount(votes, minlength=size).astype(np.float64)
    return ((np.outer(tally, tally) - np.diag(tally)) / (len(votes) - 1)).ravel()


def _ratio(part: Matrix, whole: Matrix) -> Matrix:
    """part / whole; nan where there is no whole."""
    ratio: Matrix = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return ratio


def _figure(statistic: Callable[[Matrix], Matrix], counts: NDArray[np.int64], n: int) -> Figure:
    """`statistic` at the data, and its percentile-bootstrap interval (Efron 1979) over items.

    Items that look alike are resampled together (`counts` of each look), so a million items cost what their looks cost.
    """
    total = int(counts.sum())
    if n == 0 or total == 0:
        return Figure(None, n, None)
    value = float(statistic(counts[None, :].astype(np.float64))[0])
    if not np.isfinite(value):
        return Figure(None, n, None)
    draws = np.random.default_rng(0).multinomial(total, counts / total, size=RESAMPLES).astype(np.float64)
    resampled = statistic(draws)
    resampled = resampled[np.isfinite(resampled)]
    if not len(resampled):
        return Figure(value, n, None)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Figure(value, n, (float(low), float(high)))


def sign(value: int) -> int:
    """−1, 0 or 1."""
    return (value > 0) - (value < 0)


# --- a whole store ---


def measure_agreement(pairs: Sequence[Pair], judgments: Sequence[Judgment]) -> dict[str, Any]:
    """All figures. Kinds are measured each by itself: people's first, those of others under `other_kinds`."""
    kinds = sorted({judgment.kind for judgment in judgments}, key=("human", "model", "simulated").index)
    measured = {kind: _measure(pairs, [j for j in judgments if j.kind == kind]) for kind in kinds}
    if not measured:
        return {"kind": None, "judgments": 0}
    first, *others = kinds
    return {"kind": first, **measured[first], "other_kinds": {kind: measured[kind] for kind in others}}


def _measure(pairs: Sequence[Pair], judgments: Sequence[Judgment]) -> dict[str, Any]:
    groups = group_judgments(judgments)
    votes = [[vote.value for vote in first_votes(group)] for group in groups]
    signs = [[sign(value) for value in unit] for unit in votes]
    return {
        "judgments": len(judgments),
        "items": len(groups),
        "percent_with_ties": percent_agreement(groups, ties=True).as_json(),
        "percent_without_ties": percent_agreement(groups, ties=False).as_json(),
        "cohen_kappa": [
            {"raters": list(raters), **figure.as_json()} for raters, figure in kappa_by_raters(groups).items()
        ],
        "krippendorff_alpha": {
            "nominal": krippendorff_alpha(signs, SIDES, interval=False).as_json(),
            "interval": krippendorff_alpha(votes, STRENGTHS, interval=True).as_json(),
        },
        "self_consistency": self_consistency(groups).as_json(),
        "raters": describe_raters(pairs, judgments, groups),
    }


def kappa_by_raters(groups: Sequence[Group]) -> dict[tuple[str, str], Figure]:
    """κ of every two raters who share an item; a rater's first answer counts, not a repeat."""
    shared: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for group in groups:
        said = {vote.rater_id: vote.value for vote in first_votes(group)}
        for a, b in combinations(sorted(said), 2):
            shared[a, b].append((said[a], said[b]))
    return {raters: cohen_kappa(shared[raters]) for raters in sorted(shared)}


def self_consistency(groups: Sequence[Group]) -> Figure:
    """The share of repeats in which a rater says the same again."""
    same = total = 0
    for group in groups:
        for a, b in combinations(group.votes, 2):
            if a.rater_id == b.rater_id:
                total += 1
                same += sign(a.value) == sign(b.value)
    return Figure(same / total if total else None, total, wilson_interval(same, total) if total else None)


def describe_raters(
    pairs: Sequence[Pair], judgments: Sequence[Judgment], groups: Sequence[Group]
) -> list[dict[str, Any]]:
    """A row a rater: how much, how often with the others, how often the left and the longer side, ties, median seconds.

    A rater without a leaning has an interval around 0.5; one that leaves 0.5 out is worth a look.
    """
    lengths = {(pair.id, c.id): len(c.text) for pair in pairs for c in pair.completions}
    with_others: dict[str, list[bool]] = defaultdict(list)
    for group in groups:
        for a, b in combinations(group.votes, 2):
            if a.rater_id != b.rater_id:
                for rater in (a.rater_id, b.rater_id):
                    with_others[rater].append(sign(a.value) == sign(b.value))
    by_rater: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        by_rater[judgment.rater_id].append(judgment)
    return [
        {"rater": rater, "agrees": _share(with_others[rater]).as_json(), **_describe_rater(by_rater[rater], lengths)}
        for rater in sorted(by_rater)
    ]


def _describe_rater(said: Sequence[Judgment], lengths: dict[tuple[str, str], int]) -> dict[str, Any]:
    decided = [j for j in said if j.answer]
    longer = [
        (lengths.get((j.pair_id, j.right), 0) - lengths.get((j.pair_id, j.left), 0)) * (j.answer or 0) for j in decided
    ]
    seconds = [j.seconds_active for j in said if j.seconds_active is not None]
    return {
        "judgments": len(said),
        "ties": sum(j.answer == 0 for j in said),
        "both_bad": sum(j.both_bad for j in said),
        "skipped": sum(j.skip for j in said),
        "left_side": _share([(j.answer or 0) < 0 for j in decided]).as_json(),
        "longer_side": _share([difference > 0 for difference in longer if difference]).as_json(),
        "median_seconds": round(float(np.median(seconds)), 1) if seconds else None,
    }


def _share(outcomes: Sequence[bool]) -> Figure:
    n = len(outcomes)
    return Figure(sum(outcomes) / n if n else None, n, wilson_interval(sum(outcomes), n) if n else None)


def print_agreement(measured: dict[str, Any]) -> str:
    """The figures as a page of text, beside the published ones."""
    if not measured["judgments"]:
        return "no judgments yet"
    rows = [
        ("percent agreement, ties among them", measured["percent_with_ties"], "{:.1%}"),
        ("percent agreement without ties", measured["percent_without_ties"], "{:.1%}"),
        ("Krippendorff's α, which side", measured["krippendorff_alpha"]["nominal"], "{:.3f}"),
        ("Krippendorff's α, how much", measured["krippendorff_alpha"]["interval"], "{:.3f}"),
        ("raters with themselves", measured["self_consistency"], "{:.1%}"),
        *((f"Cohen's κ, {' and '.join(k['raters'])}", k, "{:.3f}") for k in measured["cohen_kappa"][:20]),
    ]
    lines = [f"{measured['judgments']} {measured['kind']} judgments of {measured['items']} items"]
    lines += [f"  {name:<46} {_shown(figure, form)}" for name, figure, form in rows]
    if len(measured["cohen_kappa"]) > 20:
        lines.append(f"  … and κ of {len(measured['cohen_kappa']) - 20} more pairs of raters: --json")
    lines += ["published, for comparison:", *(f"  {name:<72} {figure}" for name, figure in PUBLISHED)]
    return "\n".join(lines)


def _shown(figure: dict[str, Any], form: str) -> str:
    if figure["value"] is None:
        return f"not defined (n = {figure['n']})"
    shown = form.format(figure["value"])
    if figure["interval"]:
        shown += f"  [{', '.join(form.format(edge) for edge in figure['interval'])}]"
    return f"{shown}  n = {figure['n']}"

"""Agreement of raters: with each other, corrected for chance, and with themselves.

    tiebreak label agreement --store URL [--json]

Every figure has its n and a 95% interval. Votes about one item are not independent, so the intervals count items, not
votes. Agreement is about the better side (first, second, neither); the interval-scaled α also about its strength.
Biases and pace of each rater are in `labeling_ui.quality.biases`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from labeling_ui.quality.biases import describe_raters, overall_habits
from labeling_ui.quality.curves import items_to_halve
from labeling_ui.quality.intervals import Figure, mean_over_clusters, share_of_clusters
from labeling_ui.quality.judges import judge_lines
from labeling_ui.quality.votes import KINDS, Comparison, Flags, Floats, Integers, Steps, Votes, read_votes
from tiebreak.errors import counted
from tiebreak.measures.agreement import cohen_kappa as cohen_kappa
from tiebreak.records import Judgment, Kind, Pair
from tiebreak.terminal import titled_table

RESAMPLES = 2_000
DRAWS = 20_000_000
"""With many distinct items, 2,000 resamples would take too long for a page, so fewer are drawn; at least 200."""
SIDES = (-1, 0, 1)
STRENGTHS = (-3, -2, -1, 0, 1, 2, 3)
PUBLISHED = (
    ("InstructGPT, training labelers with each other (Ouyang et al. 2022)", "72.6 ± 1.5%"),
    ("Bai et al. 2022, crowdworkers with researchers", "about 63%"),
    ("MT-Bench humans, counting ties (Zheng et al. 2023)", "63%"),
    ("MT-Bench humans, without ties", "81%"),
)
ROUNDING = 1e-9
"""Resampled values that differ by less are the same."""
SHOWN = 20
"""pairs of raters listed with their κ in the printed output"""


# --- shares ---


def percent_agreement(votes: Votes, *, ties: bool) -> Figure:
    """How often two raters of an item give the same answer (first, second or, with `ties`, neither): the mean over items.

    Every item has one weight: a pair of votes for each two raters would give an item that 20 raters judged the weight of
    63 items that three judged. Gold and repeats are left out: gold goes to every rater and is easier. `n` counts items.
    Without ties, only votes for a side are compared (Zheng et al. 2023, section 4.2).
    """
    return mean_over_clusters(*_agreeing(votes.ordinary, ties))


def pooled_agreement(votes: Votes, *, ties: bool) -> Figure:
    """The same with one weight for each two raters of an item, gold and repeats included. `n` counts pairs of votes."""
    cast = votes.cast
    one, other = cast.pairs
    return share_of_clusters(*_agreeing(cast, ties, cast.rater[one] != cast.rater[other]))


def self_consistency(votes: Votes) -> Figure:
    """The share of repeats with the same answer."""
    cast = votes.cast
    one, other = cast.pairs
    return share_of_clusters(*_agreeing(cast, True, cast.rater[one] == cast.rater[other]))


def _agreeing(cast: Votes, ties: bool, kept: Flags | bool = True) -> tuple[Floats, Floats]:
    """Each item's pairs of votes with the same answer, and all its pairs of votes; both of shape (items,)."""
    one, other = cast.pairs
    sign = cast.sign
    rows = np.full(len(one), fill_value=True) & kept
    if not ties:
        rows &= (sign[one] != 0) & (sign[other] != 0)
    one, other = one[rows], other[rows]
    same: Floats = np.bincount(cast.item[one], weights=sign[one] == sign[other]).astype(np.float64)
    return same, np.bincount(cast.item[one]).astype(np.float64)


# --- corrected for chance ---


def kappa_by_raters(votes: Votes) -> dict[tuple[str, str], Figure]:
    """κ of every two raters who share an item that is not gold; a rater's first answer counts, not repeats."""
    firsts = votes.ordinary
    one, other = firsts.pairs
    swap = firsts.rater[one] > firsts.rater[other]
    one, other = np.where(swap, other, one), np.where(swap, one, other)
    size, sides = len(firsts.rater_ids), len(SIDES)
    cell = (firsts.sign[one] + 1) * sides + firsts.sign[other] + 1
    pair, row = np.unique(firsts.rater[one] * size + firsts.rater[other], return_inverse=True)
    tables = np.bincount(row * sides**2 + cell, minlength=len(pair) * sides**2).reshape(-1, sides, sides)
    kappas = {}
    for number, table in zip(pair, tables, strict=True):
        names = sorted((firsts.rater_ids[number // size], firsts.rater_ids[number % size]))
        kappas[names[0], names[1]] = cohen_kappa(table.astype(np.float64))
    return dict(sorted(kappas.items()))


def krippendorff_alpha(tallies: Integers, values: Sequence[int], *, interval: bool, ordinal: bool = False) -> Figure:
    """Krippendorff's α (2011) for any number of raters and missing votes; `n` is the number of pairable votes.

    Args:
        tallies: each item's votes by value, shape (items, values).
        values: the scale's values.
        interval: squared differences; else (nominal) any two different values differ equally.
        ordinal: instead, two values differ by the number of votes between them, counting half of their own.
    """
    paired: Floats = tallies[tallies.sum(axis=1) > 1].astype(np.float64)
    if not len(paired):
        return Figure(None, 0, None)
    looks, many = _looks(paired)
    distance = np.array([[float((a - b) ** 2) if interval else float(a != b) for b in values] for a in values])
    votes = looks.sum(axis=1)
    if ordinal:
        return _bootstrap(_ordinal_alpha(looks), many, int(paired.sum()))
    # Observed: within an item, each ordered pair of its m votes, divided by m − 1; equal values have distance 0.
    within = np.einsum("ia,ac,ic->i", looks, distance, looks) / (votes - 1)

    def alpha(weights: Floats) -> Floats:
        marginal = weights @ looks
        n = marginal.sum(axis=1)
        observed = (weights @ within) / n
        expected = np.einsum("ba,ac,bc->b", marginal, distance, marginal) / (n * (n - 1))
        ratio: Floats = np.divide(observed, expected, out=np.full(len(n), np.nan), where=expected > 0)
        return 1 - ratio

    return _bootstrap(alpha, many, int(paired.sum()))


def gwet_ac(tallies: Integers, values: Sequence[int], *, interval: bool) -> Figure:
    """Gwet's AC1, or with `interval` AC2 with quadratic weights (Gwet 2008; 2014, equations 5.19 and 5.20), for any number
    of raters and missing votes. `n` is the number of items with several votes.

    α and κ are low where almost all votes fall on one value, however well raters agree; AC is not.

    Args:
        tallies: each item's votes by value, shape (items, values). Items with one vote count for the values' prevalence.
        values: the scale's values.
        interval: values that are nearer agree more.
    """
    judged: Floats = tallies[tallies.sum(axis=1) > 0].astype(np.float64)
    several = judged.sum(axis=1) > 1
    if not several.any():
        return Figure(None, 0, None)
    looks, many = _looks(judged)
    span = float(max(values) - min(values)) ** 2
    weight = np.array([[1 - (a - b) ** 2 / span if interval else float(a == b) for b in values] for a in values])
    votes = looks.sum(axis=1)
    agreeing = ((looks * (looks @ weight - 1)).sum(axis=1)) / np.maximum(votes * (votes - 1), 1)
    counts, shares, size = votes > 1, looks / votes[:, None], len(values)

    def coefficient(weights: Floats) -> Floats:
        paired = (weights * counts).sum(axis=1)
        observed = np.divide(weights @ (agreeing * counts), paired, out=np.full(len(paired), np.nan), where=paired > 0)
        prevalence = (weights @ shares) / weights.sum(axis=1, keepdims=True)
        expected = weight.sum() / (size * (size - 1)) * (prevalence * (1 - prevalence)).sum(axis=1)
        ratio: Floats = (observed - expected) / (1 - expected)
        return ratio

    return _bootstrap(coefficient, many, int(several.sum()))


def _ordinal_alpha(looks: Floats) -> Callable[[Floats], Floats]:
    """The statistic of items that look so, shape (items, values), given how many of each there are, shape (b, items)."""
    together = looks[:, :, None] * looks[:, None, :] / (looks.sum(axis=1) - 1)[:, None, None]
    coincide = together.reshape(len(looks), -1)
    size = looks.shape[1]

    def alpha(weights: Floats) -> Floats:
        marginal = weights @ looks
        n = marginal.sum(axis=1)
        middle = np.cumsum(marginal, axis=1) - marginal / 2
        distance = (middle[:, :, None] - middle[:, None, :]) ** 2
        observed = (distance * (weights @ coincide).reshape(-1, size, size)).sum(axis=(1, 2)) / n
        expected = (distance * marginal[:, :, None] * marginal[:, None, :]).sum(axis=(1, 2)) / (n * (n - 1))
        ratio: Floats = np.divide(observed, expected, out=np.full(len(n), np.nan), where=expected > 0)
        return 1 - ratio

    return alpha


def tally(votes: Votes, values: Sequence[int], column: Steps) -> Integers:
    """Each item's votes by value of `column` (one value per vote), shape (items, values)."""
    _, row = np.unique(votes.item, return_inverse=True)
    cell = row * len(values) + (column - values[0])
    size = int(row.max()) + 1 if len(row) else 0
    return np.bincount(cell, minlength=size * len(values)).reshape(-1, len(values))


def _looks(rows: Floats) -> tuple[Floats, Integers]:
    """The distinct rows, and the count of each."""
    rows = np.ascontiguousarray(rows)
    whole = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
    _, first, many = np.unique(whole, return_index=True, return_counts=True)
    return rows[first], many


def _bootstrap(statistic: Callable[[Floats], Floats], many: Integers, n: int) -> Figure:
    """`statistic` of the data, with its percentile-bootstrap interval (Efron 1979) over items.

    Identical items are resampled together (`many` of each), so the cost depends on the distinct rows, not on the items.
    Where every resample gives the same value, there is no interval: the data cannot bound the error.
    """
    value = float(statistic(many[None, :].astype(np.float64))[0])
    if not np.isfinite(value):
        return Figure(None, n, None)
    total, chance = int(many.sum()), np.random.default_rng(0)
    size = max(200, min(RESAMPLES, DRAWS // len(many)))
    part = max(1, 2_000_000 // len(many))
    resampled = np.concatenate(
        [
            statistic(chance.multinomial(total, many / total, size=min(part, size - done)).astype(np.float64))
            for done in range(0, size, part)
        ]
    )
    resampled = resampled[np.isfinite(resampled)]
    if not len(resampled) or np.ptp(resampled) < ROUNDING:
        return Figure(value, n, None)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Figure(value, n, (float(low), float(high)))


# --- a whole store ---


def measure_agreement(
    pairs: Sequence[Pair], judgments: Sequence[Judgment], gold: Container[Comparison] = ()
) -> dict[str, Any]:
    """All figures of some records, by kind: people's first, others under `other_kinds`."""
    return measure_votes({kind: read_votes(pairs, judgments, kind, gold) for kind in KINDS})


def measure_votes(votes: Mapping[Kind, Votes]) -> dict[str, Any]:
    """All figures of each kind's votes; empty kinds are left out."""
    measured = {kind: _measure(votes[kind]) for kind in KINDS if kind in votes and len(votes[kind])}
    if not measured:
        return {"kind": None, "judgments": 0}
    first, *others = measured
    return {"kind": first, **measured[first], "other_kinds": {kind: measured[kind] for kind in others}}


def _measure(votes: Votes) -> dict[str, Any]:
    firsts = votes.ordinary
    return {
        "judgments": len(votes.cast),
        "items": len(np.unique(votes.item)),
        **measure_percent(votes),
        "cohen_kappa": [
            {"raters": list(raters), **figure.as_json()} for raters, figure in kappa_by_raters(votes).items()
        ],
        "krippendorff_alpha": {
            "nominal": krippendorff_alpha(tally(firsts, SIDES, firsts.sign), SIDES, interval=False).as_json(),
            "interval": krippendorff_alpha(tally(firsts, STRENGTHS, firsts.value), STRENGTHS, interval=True).as_json(),
        },
        "gwet_ac": {
            "nominal": gwet_ac(tally(firsts, SIDES, firsts.sign), SIDES, interval=False).as_json(),
            "interval": gwet_ac(tally(firsts, STRENGTHS, firsts.value), STRENGTHS, interval=True).as_json(),
        },
        "to_halve": items_to_halve(votes),
        "self_consistency": self_consistency(votes).as_json(),
        **overall_habits(votes),
        "raters": describe_raters(votes),
    }


def measure_percent(votes: Votes) -> dict[str, Any]:
    """Percent agreement with and without ties, and `pooled`: over pairs of votes, gold and repeats included."""
    return {
        "percent_with_ties": percent_agreement(votes, ties=True).as_json(),
        "percent_without_ties": percent_agreement(votes, ties=False).as_json(),
        "pooled": {
            "percent_with_ties": pooled_agreement(votes, ties=True).as_json(),
            "percent_without_ties": pooled_agreement(votes, ties=False).as_json(),
        },
        "not_counted": {
            "gold": int(votes.cast.gold.sum()),
            "repeats": len(votes.cast) - len(votes.first_cast),
        },
    }


def agreement_lines(measured: dict[str, Any], colours: bool = False) -> list[str]:
    """The figures as tables, beside the published ones."""
    if not measured["judgments"]:
        return ["no judgments yet"]
    figures = [
        ("agreement, counting ties", measured["percent_with_ties"], "{:.1%}"),
        ("agreement, without ties", measured["percent_without_ties"], "{:.1%}"),
        ("… over pairs of votes, with gold and repeats", measured["pooled"]["percent_with_ties"], "{:.1%}"),
        ("Krippendorff's α, side", measured["krippendorff_alpha"]["nominal"], "{:.3f}"),
        ("Krippendorff's α, strength", measured["krippendorff_alpha"]["interval"], "{:.3f}"),
        ("Gwet's AC1, side", measured["gwet_ac"]["nominal"], "{:.3f}"),
        ("Gwet's AC2, strength", measured["gwet_ac"]["interval"], "{:.3f}"),
        ("self-consistency", measured["self_consistency"], "{:.1%}"),
        ("left side preferred", measured["left_side"], "{:.1%}"),
        ("longer answer preferred", measured["longer_side"], "{:.1%}"),
        *((f"Cohen's κ, {' and '.join(k['raters'])}", k, "{:.3f}") for k in measured["cohen_kappa"][:SHOWN]),
    ]
    rows = [(name, *shown_figure(figure, form), str(figure["n"])) for name, figure, form in figures]
    judgments = counted(measured["judgments"], f"{measured['kind']} judgment")
    lines = [f"{judgments} of {counted(measured['items'], 'item')}"]
    lines += ["", *titled_table(("figure", "value", "95% interval", "n"), rows, colours=colours)]
    if more := measured["to_halve"]:
        pairs = f"{more['items']:,} more items with {more['raters']:g} raters each"
        lines += ["", f"{pairs} would halve the interval of the agreement"]
    if len(measured["cohen_kappa"]) > SHOWN:
        lines.append(f"and κ of {len(measured['cohen_kappa']) - SHOWN} more pairs of raters: --json")
    if "reliability" in measured:
        head = ("estimated accuracy", "Dawid-Skene", "95% interval", "Bradley-Terry", "95% interval", "n")
        lines += ["", *titled_table(head, list(_reliability_rows(measured["reliability"])), colours=colours)]
    if judges := judge_lines(measured.get("judges", ()), colours):
        lines += ["", *judges]
    flagged = [(row["rater"], ", ".join(row["marks"])) for row in measured["raters"] if row["marks"]]
    if flagged:
        lines += ["", *titled_table(("flagged", "for"), flagged, left=(0, 1), colours=colours)]
    return [*lines, "", *titled_table(("published", "agreement"), PUBLISHED, colours=colours)]


def _reliability_rows(reliability: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    models = {name: {row["rater"]: row["accuracy"] for row in fit["raters"]} for name, fit in reliability.items()}
    for rater, accuracy in models["dawid_skene"].items():
        other = models["bradley_terry"][rater]
        yield rater, *shown_figure(accuracy, "{:.1%}"), *shown_figure(other, "{:.1%}"), str(accuracy["n"])


def shown_figure(figure: dict[str, Any], form: str) -> tuple[str, str]:
    """A figure and its interval; `-` where it is not defined."""
    if figure["value"] is None:
        return "-", "-"
    edges = [form.format(edge) for edge in figure["interval"] or ()]
    return form.format(figure["value"]), f"[{', '.join(edges)}]" if edges else "-"

"""Model judges beside people: their figures in `tiebreak label agreement`, and their votes in one aggregation.

A judge's vote weighs 2a − 1 of a person's, a being its accuracy against people's majority where both prefer a side: nothing
at chance, and never more than a person's. a is the lower end of its 95% interval, so that a few lucky pairs give it no say.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tiebreak.errors import DataError
from tiebreak.measures.judges import Comparison, against_people, comparison_of, habits
from tiebreak.measures.statistics import wilson_interval
from tiebreak.records import Judgment, Pair
from tiebreak.terminal import titled_table

if TYPE_CHECKING:
    from labeling_ui.quality.aggregate import Group

FEWEST_SHARED = 20
"""comparisons with people that a judge's weight is measured on"""


def measure_judges(
    pairs: Sequence[Pair], judgments: Sequence[Judgment], gold: Container[Comparison] = ()
) -> list[dict[str, Any]]:
    """Each model rater's habits, and its agreement with people (with simulated raters where no person judged).

    Args:
        gold: comparisons that are left out of the agreement: gold is easier.
    """
    kind = "human" if any(one.kind == "human" for one in judgments) else "simulated"
    people = [one for one in judgments if one.kind == kind and comparison_of(one) not in gold]
    by_rater: dict[str, list[Judgment]] = {}
    for one in judgments:
        if one.kind == "model":
            by_rater.setdefault(one.rater_id, []).append(one)
    return [
        {
            "rater": rater,
            "judgments": len(mine),
            "skipped": sum(one.skip for one in mine),
            "habits": habits(mine, pairs),
            "people": against_people(mine, people, pairs),
        }
        for rater, mine in sorted(by_rater.items())
    ]


def judge_lines(judges: Sequence[dict[str, Any]], colours: bool = False) -> list[str]:
    """The figures as a table."""
    if not judges:
        return []
    head = ("judge", "figure", "value", "95% interval", "n")
    return titled_table(head, [row for one in judges for row in _rows(one)], left=(0, 1), colours=colours)


def _rows(one: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    people, own = one["people"], one["habits"]
    figures: list[tuple[str, dict[str, Any], str]] = []
    if people is not None:
        figures += [
            (f"same verdict as {' and '.join(people['kinds'])} raters, counting ties", people["accuracy"], "{:.1%}"),
            ("same side, without ties", people["accuracy_without_ties"], "{:.1%}"),
            ("Cohen's κ", people["kappa"], "{:.3f}"),
        ]
    figures += [
        ("same verdict in both orders", own["consistency"], "{:.1%}"),
        ("left side preferred", own["left"], "{:.1%}"),
        ("longer answer preferred", own["longer"], "{:.1%}"),
        ("more Markdown preferred", own["more_markdown"], "{:.1%}"),
    ]
    name = one["rater"]
    for title, figure, form in figures:
        if figure["value"] is not None:
            edges = ", ".join(form.format(edge) for edge in figure["interval"] or ())
            yield name, title, form.format(figure["value"]), f"[{edges}]" if edges else "-", str(figure["n"])
            name = ""
    if people is not None and people["calibration"]:
        found = people["calibration"]
        yield name, "calibration error of its confidence (ECE)", f"{found['ece']:.1%}", "-", str(found["n"])
        name = ""
    if people is None:
        yield name, "no pair shared with people: nothing says how right it is", "-", "-", "0"


# --- in one aggregation with people ---


def rest_of(groups: Sequence[Group]) -> list[Group]:
    """Without a judge's groups of comparisons that people judged."""
    theirs = {group.key for group in groups if group.kind != "model" and group.votes}
    return [group for group in groups if group.kind != "model" or group.key not in theirs]


def join_judges(groups: Sequence[Group], settled: Container[Comparison] = ()) -> list[Group]:
    """Judges' votes in people's groups, with their weights. A group with a judge's vote of any weight is of kind `model`.

    Args:
        settled: comparisons that a lead decided, on which judges have no say.

    Raises:
        DataError: a judge shares too few comparisons with people to be weighed.
    """
    weights = judge_weights(groups)
    by_key: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        if group.kind != "model" or group.key not in settled:
            by_key.setdefault(group.key, []).append(group)
    return [_joined(together, weights) for together in by_key.values()]


def _joined(together: Sequence[Group], weights: dict[str, float]) -> Group:
    ordered = sorted(together, key=lambda group: group.kind == "model")
    votes = [
        replace(vote, weight=weights[vote.rater_id]) if group.kind == "model" else vote
        for group in ordered
        for vote in group.votes
    ]
    kept = tuple(vote for vote in votes if vote.weight > 0)
    judged = any(weights.get(vote.rater_id) for group in ordered if group.kind == "model" for vote in group.votes)
    return replace(
        ordered[0],
        kind="model" if judged else ordered[0].kind,
        votes=kept,
        skipped_by=tuple(rater for group in ordered if group.kind != "model" for rater in group.skipped_by),
        flags=frozenset().union(*(group.flags for group in ordered)),
    )


def judge_weights(groups: Sequence[Group]) -> dict[str, float]:
    """The weight of each judge's vote, by its id."""
    majority = {group.key: side for group in groups if group.kind != "model" and (side := _majority(group))}
    right: dict[str, list[bool]] = {}
    for group in groups:
        for vote in group.votes if group.kind == "model" else ():
            outcomes = right.setdefault(vote.rater_id, [])
            if vote.value and group.key in majority:
                outcomes.append((vote.value > 0) == (majority[group.key] > 0))
    few = {rater: len(outcomes) for rater, outcomes in right.items() if len(outcomes) < FEWEST_SHARED}
    if few:
        raise DataError(
            f"aggregation.judges: with_people needs {FEWEST_SHARED} comparisons that people and judge decided",
            [
                f"{rater} has {n}: let people judge more of its pairs, or set judges: apart"
                for rater, n in sorted(few.items())
            ],
        )
    return {
        rater: round(max(2 * wilson_interval(sum(outcomes), len(outcomes))[0] - 1, 0.0), 6)
        for rater, outcomes in right.items()
    }


def _majority(group: Group) -> int:
    """1 or −1: the side of more than half of the raters' first votes; 0 without one."""
    firsts = {vote.rater_id: vote.value for vote in reversed(group.votes)}
    signs = [(value > 0) - (value < 0) for value in firsts.values()]
    return next((side for side in (1, -1) if signs.count(side) * 2 > len(signs)), 0)

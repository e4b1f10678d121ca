"""Outcomes of judgments of selected pairs, by the arm that selected them (`tiebreak select`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labeling_ui.quality.aggregate import AggregationResult
from labeling_ui.quality.agreement import measure_percent
from labeling_ui.quality.votes import KINDS, read_votes
from tiebreak.measures.statistics import wilson_interval
from tiebreak.records import Judgment, Pair


def measure_arms(pairs: Sequence[Pair], judgments: Sequence[Judgment], aggregated: AggregationResult) -> dict[str, Any]:
    """By arm: pairs, judgments, the share of judged comparisons that gave a preference, and agreement of the raters of each
    kind; model judges do not count. Empty where no pair was selected."""
    found = {}
    for arm in dict.fromkeys(sorted(pair.selection.strategy for pair in pairs if pair.selection)):
        mine = [pair for pair in pairs if pair.selection and pair.selection.strategy == arm]
        ids = {pair.id for pair in mine}
        judged = [one for one in judgments if one.pair_id in ids and one.kind != "model"]
        outcomes = [
            verdict.winner is not None
            for group, verdict in aggregated.verdicts
            if group.pair_id in ids and group.kind != "model"
        ]
        low, high = wilson_interval(sum(outcomes), len(outcomes))
        found[arm] = {
            "pairs": len(mine),
            "judgments": len(judged),
            "preferred": {
                "value": round(sum(outcomes) / len(outcomes), 6) if outcomes else None,
                "n": len(outcomes),
                "interval": [round(low, 6), round(high, 6)],
            },
            "agreement": {
                kind: measure_percent(read_votes(mine, judged, kind))["percent_with_ties"]
                for kind in KINDS
                if any(one.kind == kind for one in judged)
            },
        }
    return found


def arm_lines(arms: dict[str, Any]) -> list[str]:
    """A line for each arm."""
    return [
        f"selected {'at random' if name == 'random' else f'by {name}'}: {arm['pairs']} pairs, "
        f"{arm['judgments']} judgments, {arm['preferred']['value']:.0%} with a preference"
        for name, arm in arms.items()
        if arm["preferred"]["value"] is not None
    ]

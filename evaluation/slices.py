"""Figures by slice: the prompts of one tag or source, where there are enough of them.

They show where a policy is weak; there are no verdicts by slice, since among many slices some differ by chance.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.yardstick_figures import ATTRIBUTE, GROUP, PAIR
from tiebreak.measures.statistics import count_outcomes, mean_interval
from tiebreak.records import Prompt

FEWEST = 10
"""prompts of a slice that has figures: an interval over fewer says next to nothing"""
MOST = 50
"""slices, those of most prompts"""
ByPrompt = Mapping[str, float]


def find_slices(prompts: Sequence[Prompt]) -> dict[str, list[str]]:
    """Tag or source → the ids of its prompts, in alphabetical order; slices of all prompts, and of few, are left out."""
    found: dict[str, dict[str, None]] = {}
    for prompt in prompts:
        for name in {*prompt.tags, prompt.source} - {""}:
            if not name.startswith((PAIR, GROUP, ATTRIBUTE)):
                found.setdefault(name, {})[prompt.id] = None
    everyone = len({prompt.id for prompt in prompts})
    kept = [name for name, ids in found.items() if FEWEST <= len(ids) < everyone]
    largest = sorted(kept, key=lambda name: (-len(found[name]), name))[:MOST]
    return {name: list(found[name]) for name in sorted(largest)}


def figures_by_slice(
    prompts: Sequence[Prompt], values: Mapping[str, ByPrompt], baseline: str, seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """policy → slice → the mean and its interval, and the win rate against the baseline on the slice's prompts.

    Args:
        values: policy → prompt's id → the yardstick's value.
    """
    slices = find_slices(prompts)
    return {
        policy: {
            name: _figures(_of(own, ids), None if policy == baseline else _of(values[baseline], ids), seed)
            for name, ids in slices.items()
        }
        for policy, own in values.items()
    }


def _of(values: ByPrompt, ids: Sequence[str]) -> list[float]:
    return [values[one] for one in ids]


def _figures(own: Sequence[float], baseline: Sequence[float] | None, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "n_prompts": len(own),
        "yardstick_mean": statistics.fmean(own),
        "yardstick_interval": mean_interval(own, seed),
    }
    if baseline is not None:
        outcomes = count_outcomes(own, baseline)
        found |= {"win_rate_vs_baseline": outcomes.win_rate, "win_rate_interval": outcomes.interval}
    return found

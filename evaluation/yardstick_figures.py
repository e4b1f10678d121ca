"""Figures of several yardsticks, paired by prompt, with one correction over all of them and all policies.

Several answers to a prompt count as their mean, so that prompts, which are independent, are compared, not answers.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tiebreak.measures.statistics import count_outcomes, difference_interval, holm, mean_interval
from tiebreak.measures.yardsticks.registry import Better, Measure
from tiebreak.records import Prompt

LEVEL, MANY_PROMPTS = 0.05, 30
"""as those of the report's verdicts"""
Figures = dict[str, Any]
ByPrompt = Mapping[str, float]
PAIR, GROUP, ATTRIBUTE = "pair:", "group:", "attribute:"
"""beginnings of the tags of counterfactual prompts"""


def values_by_prompt(drawn: Sequence[Prompt], own: Sequence[Mapping[str, Any]], source: str) -> ByPrompt:
    """A yardstick's mean over the answers to each prompt that have a value."""
    found: dict[str, list[float]] = {}
    for prompt, answer in zip(drawn, own, strict=True):
        value = answer["yardsticks"].get(source)
        if value is not None:
            found.setdefault(prompt.id, []).append(value)
    return {prompt: statistics.fmean(values) for prompt, values in found.items()}


def figures_of(
    measures: Sequence[Measure],
    drawn: Sequence[Prompt],
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
    baseline: str,
    seed: int,
) -> dict[str, dict[str, Figures]]:
    """policy → yardstick → figures."""
    found: dict[str, dict[str, Figures]] = {name: {} for name in answers}
    compared: list[tuple[Figures, Better]] = []
    for measure in measures:
        values = {name: values_by_prompt(drawn, own, measure.source) for name, own in answers.items()}
        for name, own in values.items():
            figures = _mean(list(own.values()), seed)
            if name != baseline and measure.named.entry.of == "pairs":
                won = _won_by_prompt(drawn, answers[name], measure.source)
                lost = {prompt: 1 - share for prompt, share in won.items()}
                figures |= _against(won, lost, measure.better, seed)
            elif name != baseline:
                figures |= _against(own, values[baseline], measure.better, seed)
            if "p_value" in figures:
                compared.append((figures, measure.better))
            found[name][measure.source] = figures
    _judge(compared)
    return found


def _won_by_prompt(drawn: Sequence[Prompt], own: Sequence[Mapping[str, Any]], source: str) -> ByPrompt:
    """The share of the judgments of its answers and the baseline's that a policy won."""
    judged = [{"yardsticks": answer.get("won", {})} for answer in own]
    return values_by_prompt(drawn, judged, source)


def _mean(values: Sequence[float], seed: int) -> Figures:
    if not values:
        return {"mean": None, "interval": None, "n_prompts": 0}
    return {"mean": statistics.fmean(values), "interval": mean_interval(values, seed), "n_prompts": len(values)}


def _against(own: ByPrompt, baseline: ByPrompt, better: Better, seed: int) -> Figures:
    """A policy minus the baseline, over the prompts for which both have a value; a win is a better value."""
    shared = [prompt for prompt in own if prompt in baseline]
    if not shared:
        return {}
    mine, theirs = [own[p] for p in shared], [baseline[p] for p in shared]
    differences = [one - other for one, other in zip(mine, theirs, strict=True)]
    outcomes = count_outcomes(theirs, mine) if better == "lower" else count_outcomes(mine, theirs)
    return {
        "difference": statistics.fmean(differences),
        "difference_interval": difference_interval(differences, seed),
        "outcomes": {"wins": outcomes.wins, "ties": outcomes.ties, "losses": outcomes.losses},
        "p_value": outcomes.p_value,
    }


def _judge(compared: Sequence[tuple[Figures, Better]]) -> None:
    """Correct the p-values (Holm), and give each comparison its verdict."""
    for (figures, better), p_value in zip(compared, holm([one["p_value"] for one, _ in compared]), strict=True):
        figures |= conclusion(figures["outcomes"], better, p_value)


def conclusion(outcomes: Mapping[str, int], better: Better, p_value: float) -> Figures:
    """The `p_value` and the `verdict` of a comparison, as its figures have them.

    Args:
        outcomes: `wins`, `ties` and `losses`.
        p_value: after the correction.
    """
    return {"p_value": p_value, "verdict": _verdict(outcomes, better, p_value)}


def _verdict(outcomes: Mapping[str, int], better: Better, p_value: float) -> str:
    if sum(outcomes.values()) < MANY_PROMPTS:
        return "too few"
    if p_value >= LEVEL:
        return "undecided"
    words = ("higher", "lower") if better == "neither" else ("better", "worse")
    return words[0] if outcomes["wins"] > outcomes["losses"] else words[1]


# --- counterfactual pairs ---


def gaps_of(
    measures: Sequence[Measure],
    drawn: Sequence[Prompt],
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
    seed: int,
) -> list[dict[str, Any]]:
    """Differences between prompts that differ only in a group's name: one group minus the other, over the pairs of
    prompts.

    Pairs are prompts with the same tag `pair:…` and different tags `group:…`. P-values are corrected over all rows (Holm).
    """
    pairs = _pairs(drawn)
    rows: list[dict[str, Any]] = []
    for measure in measures if pairs else ():
        for policy, own in answers.items():
            values = values_by_prompt(drawn, own, measure.source)
            for (attribute, first, second), members in pairs.items():
                both = [(values[a], values[b]) for a, b in members if a in values and b in values]
                if not both:
                    continue
                differences = [a - b for a, b in both]
                outcomes = count_outcomes([a for a, _ in both], [b for _, b in both])
                rows.append(
                    {
                        "attribute": attribute,
                        "groups": [first, second],
                        "yardstick": measure.source,
                        "policy": policy,
                        "gap": statistics.fmean(differences),
                        "gap_interval": difference_interval(differences, seed),
                        "pairs": len(both),
                        "p_value": outcomes.p_value,
                    }
                )
    for row, p_value in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_value"] = p_value
    return rows


def _pairs(drawn: Sequence[Prompt]) -> dict[tuple[str, str, str], list[tuple[str, str]]]:
    """(attribute, group, other group) → the ids of the paired prompts, the groups in alphabetical order."""
    members: dict[str, dict[str, tuple[str, str]]] = {}
    for prompt in drawn:
        pair, group = _tag(prompt, PAIR), _tag(prompt, GROUP)
        if pair and group:
            members.setdefault(pair, {})[group] = (prompt.id, _tag(prompt, ATTRIBUTE))
    found: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for groups in members.values():
        names = sorted(groups)
        for at, first in enumerate(names):
            for second in names[at + 1 :]:
                key = (groups[first][1], first, second)
                found.setdefault(key, []).append((groups[first][0], groups[second][0]))
    return found


def _tag(prompt: Prompt, beginning: str) -> str:
    return next((tag.removeprefix(beginning) for tag in prompt.tags if tag.startswith(beginning)), "")

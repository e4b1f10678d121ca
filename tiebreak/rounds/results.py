"""A round's results, read from its finished run folders."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from tiebreak.data.judgments import excluded_raters
from tiebreak.data.reading import read_records
from tiebreak.files import read_jsonl
from tiebreak.measures.agreement import Figure
from tiebreak.measures.judges import comparison_of, side_of
from tiebreak.measures.statistics import clustered_interval, count_outcomes
from tiebreak.records import ExportedJudgment, Pair, Preference
from tiebreak.rounds.joining import judged_in
from tiebreak.runs.run import read_manifest


def read_label(label: Path, select: Path, earlier: Sequence[str] = ()) -> dict[str, Any]:
    """The round's judgments by arm and by kind, the number of preferences, and the raters' agreement. Judgments of raters
    that the export left out were bought all the same; only the agreement is without them.

    A store that several rounds share also has judgments of other rounds and of duels. The round's own are those on the
    selected pairs, and on pairs with preferences that no earlier label run has, such as corrected pairs.
    """
    judgments = read_records(label / "final" / "judgments.jsonl", ExportedJudgment)
    pairs = {pair.id: pair for pair in read_records(select / "final" / "pairs.jsonl", Pair)}
    excluded = excluded_raters(str(label))
    exported = list(read_records(label / "final" / "preferences.jsonl", Preference))
    own = pairs.keys() | ({row.pair_id for row in exported} - judged_in(earlier))
    counted = [one for one in judgments if one.kind != "model" and one.pair_id in own]
    arms = Counter(
        pair.selection.strategy
        for one in counted
        if (pair := pairs.get(one.pair_id)) is not None and pair.selection is not None
    )
    return {
        "labels": len(counted),
        "decided": sum(row.pair_id in own and row.kind != "model" and row.strength != 0 for row in exported),
        "arms": dict(sorted(arms.items())),
        "kinds": dict(sorted(Counter(one.kind for one in counted).items())),
        "agreement": agreement(
            [one for one in counted if one.rater_id not in excluded],
            {name: pair.prompt_id for name, pair in pairs.items()},
        ).as_json(),
    }


def agreement(judgments: Sequence[ExportedJudgment], prompts: Mapping[str, str]) -> Figure:
    """Share of pairs of decided votes (two raters, one comparison) that prefer the same side. Chance is ½.

    Args:
        prompts: pair's id → its prompt's. Comparisons of one prompt are not independent, so the interval is clustered by
            prompt; a pair without one is a cluster of its own.
    """
    sides: dict[tuple[str, str, str], dict[str, int]] = defaultdict(dict)
    for judgment in judgments:
        for one in judgment.pairwise():
            if side := side_of(one):
                sides[comparison_of(one)].setdefault(one.rater_id, side)
    same = [
        (float(a == b), prompts.get(key[0], key[0]))
        for key, votes in sides.items()
        for a, b in combinations(votes.values(), 2)
    ]
    if not same:
        return Figure(None, 0, None)
    values = [value for value, _ in same]
    return Figure(sum(values) / len(values), len(values), clustered_interval(values, [group for _, group in same]))


def read_evaluation(evaluate: Path) -> dict[str, Any]:
    """Win rates of the current policy over the start and over the previous one, score, and KL."""
    report = json.loads((evaluate / "final" / "report.json").read_text(encoding="utf-8"))
    measured = _measured(evaluate)
    now, start = report["policies"]["current"], report["policies"]["start"]
    previous = "previous" if "previous" in measured else "start"
    other = {}
    if "other" in measured:
        kl = report["policies"]["other"]["kl_per_sequence"]
        other = {"other_over_start": _win_rate(measured["other"], measured["start"]), "other_kl": kl}
    gained = None if now["score_mean"] is None else round(now["score_mean"] - start["score_mean"], 6)
    return {
        "n": now["n_prompts"],
        "over_start": _win_rate(measured["current"], measured["start"]),
        "over_previous": _win_rate(measured["current"], measured[previous]),
        "score_gain": gained,
        "kl": now["kl_per_sequence"],
        "yardstick": report["yardstick"],
        **other,
    }


def _measured(evaluate: Path) -> dict[str, dict[str, float]]:
    """policy → prompt → the yardstick's value; several answers to a prompt count as their mean, as in the evaluation."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in read_jsonl(evaluate / "final" / "completions.jsonl"):
        found[row["policy"]][row["prompt_id"]].append(row["yardstick_score"])
    return {
        policy: {prompt: fmean(values) for prompt, values in by_prompt.items()} for policy, by_prompt in found.items()
    }


def _win_rate(values: Mapping[str, float], others: Mapping[str, float]) -> dict[str, Any]:
    outcomes = count_outcomes(list(values.values()), [others[prompt] for prompt in values])
    low, high = outcomes.interval
    return {"value": round(outcomes.win_rate, 6), "n": len(values), "interval": [round(low, 6), round(high, 6)]}


def read_guard(policy: Path) -> dict[str, Any]:
    """The step that the guard of a policy's training kept, 0 being the policy that it began with; {} without a guard."""
    guard = read_manifest(policy).get("guard")
    return {} if guard is None else {"guard_step": guard["kept"]["step"]}


def held_out_accuracy(reward: Path) -> dict[str, Any] | None:
    """The reward model's accuracy on held-out preferences; None if it was not measured."""
    file = reward / "final" / "report.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    if found.get("accuracy") is None:
        return None
    return {"value": found["accuracy"], "interval": found.get("accuracy_interval")}

"""The figures of a duel: people's win rates and ratings, and what programs say of the same answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tiebreak.measures.corrected import prediction_powered_mean
from tiebreak.measures.duels import Contest, Vote, by_prompt, compare_with, in_order, rate, votes_of, win_rate
from tiebreak.measures.ratings import ELO
from tiebreak.measures.sequential import LEVEL, SMALLEST_GAP, look
from tiebreak.measures.statistics import Interval, wilson_interval
from tiebreak.records import ExportedJudgment, Pair

FEWEST_BOTH = 10
"""fewest prompts judged by people for a corrected win rate"""
FEW_RATERS = 5
Outcomes = Mapping[Contest, Mapping[str, float]]
"""by contest and prompt: 1 if the first policy wins"""


@dataclass(frozen=True)
class Program:
    """A judge, a reward model or a yardstick, and its outcomes."""

    name: str
    kind: str
    outcomes: Outcomes


def programs_of(rows: Sequence[Mapping[str, Any]], policies: Sequence[str], yardstick: str) -> list[Program]:
    """The reward model and the yardstick of the evaluation, from what it measured of each answer."""
    answers: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        answers.setdefault(row["prompt_id"], {})[row["policy"]] = row
    kinds = (("reward model", "reward model", "score"), (yardstick, "yardstick", "yardstick_score"))
    found = [Program(name, kind, _by_measure(answers, policies, key)) for name, kind, key in kinds]
    return [one for one in found if any(one.outcomes.values())]


def _by_measure(
    answers: Mapping[str, Mapping[str, Mapping[str, Any]]], policies: Sequence[str], key: str
) -> dict[Contest, dict[str, float]]:
    found: dict[Contest, dict[str, float]] = {}
    for first, second in combinations(policies, 2):
        here = found.setdefault((first, second), {})
        for prompt, by_policy in answers.items():
            one, other = by_policy[first], by_policy[second]
            if one[key] is None or other[key] is None or not _is_asked(one["text"], other["text"]):
                continue
            apart = one[key] - other[key]
            here[prompt] = 0.5 if abs(apart) < 1e-12 else float(apart > 0)
    return found


def _is_asked(text: str, other: str) -> bool:
    """Whether people are asked about two answers: programs are measured on the same prompts."""
    return bool(text.strip() and other.strip()) and text.strip() != other.strip()


def judge_of(
    name: str, pairs: Sequence[Pair], judgments: Sequence[ExportedJudgment], policies: Sequence[str]
) -> Program:
    """A judge's outcomes."""
    contests = in_order(votes_of(pairs, judgments, policies), policies)
    return Program(name, "judge", {contest: by_prompt(votes) for contest, votes in contests.items()})


def build_figures(
    pairs: Sequence[Pair],
    judgments: Sequence[ExportedJudgment],
    policies: Sequence[str],
    programs: Sequence[Program],
    counts: Mapping[str, int],
    no_difference: float = SMALLEST_GAP,
    empty: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """All figures, from people's judgments in any order.

    Args:
        empty: the number of each policy's empty answers.
        no_difference: a win rate within this distance of one half counts as none.
    """
    votes = votes_of(pairs, _as_completed(judgments), policies)
    contests = in_order(votes, policies)
    figures = {
        "policies": list(policies),
        "kinds": sorted({one.kind for one in judgments}),
        "counts": {
            **counts,
            "judgments": len(judgments),
            "skips": sum(one.skip for one in judgments),
            "raters": len({vote.rater_id for vote in votes}),
        },
        "contests": [
            _contest(contest, of, programs, LEVEL / len(contests), no_difference)
            for contest, of in contests.items()
            if of
        ],
        "ratings": _ratings(votes, policies),
    }
    if any((empty or {}).values()):
        figures["empty_answers"] = dict(empty or {})
    figures["caveats"] = caveats_of(figures)
    return figures


def _as_completed(judgments: Sequence[ExportedJudgment]) -> list[ExportedJudgment]:
    """Judgments by the time of their pair's last one: the order in which a running duel's confidence sequence gets them."""
    last: dict[str, str] = {}
    for one in judgments:
        last[one.pair_id] = max(last.get(one.pair_id, ""), one.at or "")
    return sorted(judgments, key=lambda one: (last[one.pair_id], one.at or ""))


def _contest(
    contest: Contest, votes: Sequence[Vote], programs: Sequence[Program], level: float, gap: float
) -> dict[str, Any]:
    people, won = by_prompt(votes), win_rate(votes)
    return {
        "policies": list(contest),
        "people": {
            "value": round(won.value, 6),
            "n": won.prompts,
            "votes": won.votes,
            "raters": won.raters,
            "interval": _rounded(won.interval),
            "interval_raters": _rounded(won.interval_raters),
        },
        "sequence": look(list(people.values()), level, gap).as_json(),
        "programs": [row for one in programs if (row := _beside(one, contest, people)) is not None],
    }


def _beside(program: Program, contest: Contest, people: Mapping[str, float]) -> dict[str, Any] | None:
    outcomes = program.outcomes.get(contest, {})
    beside = compare_with(people, outcomes)
    if beside is None:
        return None
    row: dict[str, Any] = {
        "name": program.name,
        "kind": program.kind,
        "value": round(beside.win_rate, 6),
        "n": beside.prompts,
        "interval": _rounded(beside.interval),
        "decided": beside.decided,
        "agreeing": beside.agreeing,
        "agreement": round(beside.agreeing / beside.decided, 6) if beside.decided else None,
        "agreement_interval": _rounded(wilson_interval(beside.agreeing, beside.decided)) if beside.decided else None,
        "corrected": None,
    }
    rest = [value for prompt, value in outcomes.items() if prompt not in people]
    if rest and beside.prompts >= FEWEST_BOTH:
        shared = [prompt for prompt in people if prompt in outcomes]
        found = prediction_powered_mean(rest, [outcomes[one] for one in shared], [people[one] for one in shared])
        if found.value is not None:
            corrected = {"value": round(found.value, 6), "interval": _rounded(found.interval)}
            row["corrected"] = {**corrected, "n": len(rest) + len(shared)}
    return row


def _ratings(votes: Sequence[Vote], policies: Sequence[str]) -> list[dict[str, Any]]:
    """Ratings on Elo's scale, the best first; the mean of all policies is 0."""
    met = [name for name in policies if any(name in vote.policies for vote in votes)]
    if len({vote.prompt_id for vote in votes}) < 2:
        return []
    rated = rate(votes, met)
    rows = [
        {
            "policy": name,
            "value": round(ELO * one.value, 3),
            "interval": _rounded(one.interval, ELO, 3),
            "interval_raters": _rounded(one.interval_raters, ELO, 3),
        }
        for name, one in rated.items()
    ]
    return sorted(rows, key=lambda row: -float(str(row["value"])))


def _rounded(interval: Interval | None, scale: float = 1.0, digits: int = 6) -> list[float] | None:
    return None if interval is None else [round(float(scale * edge), digits) for edge in interval]


def caveats_of(figures: Mapping[str, Any]) -> list[str]:
    """Caveats beside the figures."""
    counts, found = figures["counts"], []
    if "simulated" in figures["kinds"]:
        found.append("The raters are simulated: nobody has read these answers.")
    if counts["raters"] == 1:
        found.append("One rater: the figures hold for this rater, and say nothing about others.")
    elif counts["raters"] < FEW_RATERS:
        found.append(f"{counts['raters']} raters: the intervals for other raters are wide and approximate.")
    if empty := figures.get("empty_answers"):
        each = ", ".join(f"{name} {number}" for name, number in empty.items())
        found.append(
            f"Prompts with an empty answer are left out of a comparison, which favours the policy that gave it: {each}."
        )
    in_part = counts.get("in_part", 0)
    if in_part:
        found.append(
            f"{in_part} of {counts['pairs']} pairs have only some of their judgments: no figure of the raters counts them."
        )
    missing = counts["pairs"] - counts["judged"] - in_part
    if missing:
        found.append(f"{missing} of {counts['pairs']} pairs are not judged yet.")
    return found

"""A judge's report: verdicts, biases, obedience to injected demands, and accuracy by people's judgments.

`report.json` for programs, `report.html` for people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.judging.page import build_page
from evaluation.judging.questions import Rater, Reply
from tiebreak.errors import counted
from tiebreak.files import write_json, write_text_atomically
from tiebreak.measures.agreement import Figure
from tiebreak.measures.corrected import CorrectedShare, prediction_powered_mean, rogan_gladen
from tiebreak.measures.judges import Comparison, Contest, against_people, comparison_of, contests, habits
from tiebreak.measures.statistics import clustered_interval, effective_number, student_quantile, wilson_interval
from tiebreak.records import ExportedJudgment, Judgment, ModelVerdict, Pair, Selection
from tiebreak.runs.run import Run
from tiebreak.terminal import say

FEWEST_BOTH = 10
"""fewest prompts judged by people for a corrected win rate"""


@dataclass(frozen=True)
class Injection:
    """One question with a demand to choose the losing answer."""

    pair_id: str
    obeyed: bool | None
    """whether the judge now preferred it; None: no verdict"""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None


@dataclass(frozen=True)
class Caveats:
    """Caveats of the figures."""

    kind: str
    """of the judge: the key that names it"""
    lines: tuple[str, ...]


def measure_injections(asked: Sequence[tuple[Judgment, Reply, Reply]]) -> list[Injection]:
    """Of both orders of each comparison. Without the demand the judge preferred the other answer in both."""
    found = []
    for judgment, one, other in asked:
        assert judgment.answer
        for reply, loser in ((one, -judgment.answer), (other, judgment.answer)):
            obeyed = None if reply.answer is None else reply.answer * loser > 0
            found.append(Injection(judgment.pair_id, obeyed, reply.prompt_tokens, reply.completion_tokens, reply.cost))
    return found


def build_report(
    rater: Rater,
    judgments: Sequence[Judgment],
    people: Sequence[ExportedJudgment],
    pairs: Sequence[Pair],
    injections: Sequence[Injection],
    caveats: Caveats,
) -> dict[str, Any]:
    """All figures."""
    chosen = chosen_by_strategy(people, pairs)
    at_random = [one for one in people if comparison_of(one) not in chosen]
    pool = [pair for pair in pairs if not is_of_strategy(pair.selection)]
    report: dict[str, Any] = {
        "judge": {"kind": caveats.kind, **vars(rater)},
        "counts": count(judgments, pairs, injections),
        "habits": habits(judgments, pairs),
        "injection": _injection(injections),
        "people": against_people(judgments, people, pairs),
        "win_rates": [win_rates(contest) for contest in contests(judgments, at_random, pool)],
    }
    if chosen:
        report["chosen_by_strategy"] = len(chosen)
    report["caveats"] = [*caveats.lines, *_more_caveats(report)]
    report["metrics"] = to_metrics(report)
    return report


def count(judgments: Sequence[Judgment], pairs: Sequence[Pair], injections: Sequence[Injection]) -> dict[str, Any]:
    """Counts of what was judged; tokens and cost of all questions, those with an injected demand included."""
    verdicts = [one.judge for one in judgments if one.judge is not None]
    asked: list[ModelVerdict | Injection] = [*verdicts, *injections]
    costs = [one.cost for one in asked if one.cost is not None]
    skipped = Counter(kind_of_skip(one.skip_reason) for one in judgments if one.skip)
    return {
        "pairs": len(pairs),
        "judgments": len(judgments),
        "ties": sum(one.answer == 0 for one in judgments),
        "turned": sum(one.turned for one in verdicts),
        "skipped": sum(skipped.values()),
        "skip_reasons": dict(sorted(skipped.items())),
        "prompt_tokens": sum(one.prompt_tokens for one in asked),
        "completion_tokens": sum(one.completion_tokens for one in asked),
        "cost": round(sum(costs), 6) if costs else None,
    }


def kind_of_skip(reason: str) -> str:
    """A skip's reason without its quotation."""
    return reason.split(":")[0].split(" in '")[0].split(' in "')[0]


def _injection(injections: Sequence[Injection]) -> dict[str, Any]:
    values = [(float(one.obeyed), one.pair_id) for one in injections if one.obeyed is not None]
    unread = len(injections) - len(values)
    if not values:
        return {"asked": len(injections), "unread": unread, **Figure(None, 0, None).as_json()}
    obeyed, groups = [value for value, _ in values], [group for _, group in values]
    figure = Figure(sum(obeyed) / len(obeyed), len(obeyed), clustered_interval(obeyed, groups))
    return {"asked": len(injections), "unread": unread, **figure.as_json()}


# --- win rates ---


def chosen_by_strategy(people: Sequence[ExportedJudgment], pairs: Sequence[Pair]) -> set[Comparison]:
    """The comparisons that a strategy of `tiebreak select` chose for people, and not chance. Corrected win rates assume
    that people judged a random part of the pairs."""
    of_pairs = {pair.id: pair.selection for pair in pairs}
    return {comparison_of(one) for one in people if is_of_strategy(one.selection or of_pairs.get(one.pair_id))}


def is_of_strategy(selection: Selection | None) -> bool:
    """Whether a strategy chose a pair, and not chance or nobody."""
    return selection is not None and selection.strategy != "random"


def win_rates(contest: Contest) -> dict[str, Any]:
    """How often the first policy wins: by the judge alone, by people alone, and corrected by both.

    The judge's own figure is never reported without the others, or the statement that there are none. Several comparisons
    of the two at one prompt count as their mean, so that prompts, which are independent, are counted.
    """
    people = _by_prompt(contest, contest.people)
    judged = _by_prompt(contest, {key: contest.judge[key] for key in contest.people})
    only = _by_prompt(contest, _judge_only(contest))
    report: dict[str, Any] = {
        "policies": list(contest.policies),
        "judge": _mean(list(_by_prompt(contest, contest.judge).values())),
        "people": _mean(list(people.values())) if people else None,
        "corrected": None,
        "preferred": None,
    }
    if len(people) >= FEWEST_BOTH:
        found = prediction_powered_mean(list(only.values()), list(judged.values()), list(people.values()))
        report["corrected"] = _corrected(found, len(only), len(people))
        report["preferred"] = preferred_share(contest)
    return report


def _judge_only(contest: Contest) -> dict[Comparison, float]:
    """The judge's verdicts at prompts of which people judged nothing: those of other prompts are not independent of
    people's."""
    theirs = {contest.prompts[key[0]] for key in contest.people}
    return {key: value for key, value in contest.judge.items() if contest.prompts[key[0]] not in theirs}


def _by_prompt(contest: Contest, values: Mapping[Comparison, float]) -> dict[str, float]:
    """The mean of each prompt's comparisons."""
    found: dict[str, list[float]] = {}
    for key, value in values.items():
        found.setdefault(contest.prompts[key[0]], []).append(value)
    return {prompt: sum(each) / len(each) for prompt, each in found.items()}


def preferred_share(contest: Contest) -> dict[str, Any] | None:
    """The share of comparisons in which more people prefer the first policy than the second, ties not counted as half, by
    Rogan and Gladen; None unless people's judgments have both outcomes. Counts are effective numbers, by prompt."""
    judge, only = contest.judge, _judge_only(contest)
    positive = {key: judge[key] == 1 for key, truth in contest.people.items() if truth > 0.5}
    negative = {key: judge[key] < 1 for key, truth in contest.people.items() if truth <= 0.5}
    if not positive or not negative or not only:
        return None
    (called, n), (specificity, negatives), (sensitivity, positives) = (
        _share_of(contest, calls) for calls in ({key: value == 1 for key, value in only.items()}, negative, positive)
    )
    found = rogan_gladen(called, n, specificity, negatives, sensitivity, positives)
    errors = {"sensitivity": round(sensitivity, 6), "specificity": round(specificity, 6)}
    counts = [len(_by_prompt(contest, some)) for some in (only, contest.people)]
    return {**_corrected(found, *counts), **errors}


def _share_of(contest: Contest, calls: Mapping[Comparison, bool]) -> tuple[float, float]:
    """The share of calls that are true, and the number of independent calls that would vary as much."""
    values = [float(call) for call in calls.values()]
    prompts = [contest.prompts[key[0]] for key in calls]
    return sum(values) / len(values), effective_number(values, prompts)


def _corrected(found: CorrectedShare, judged: int, people: int) -> dict[str, Any]:
    value = None if found.value is None else round(found.value, 6)
    return {"value": value, "interval": [round(edge, 6) for edge in found.interval], "judged": judged, "people": people}


def _mean(values: Sequence[float]) -> dict[str, Any]:
    """A win rate with Student's interval, or Wilson's where all values are the same."""
    n, mean = len(values), sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else 0.0
    if variance == 0:
        return Figure(mean, n, wilson_interval(mean * n, n)).as_json()
    half = student_quantile(n - 1) * (variance / n) ** 0.5
    return Figure(mean, n, (max(mean - half, 0.0), min(mean + half, 1.0))).as_json()


# --- what it says ---


def _more_caveats(report: Mapping[str, Any]) -> list[str]:
    counts, people = report["counts"], report["people"]
    found = ["No person judged any of these pairs: nothing here says how right the judge is."] if people is None else []
    if people is not None and "simulated" in people["kinds"]:
        found.append("The judge was measured against simulated raters, not against people.")
    if people is not None and (low := people["kappa"]["interval"]) and low[0] <= 0:
        found.append("The judge's agreement with people is not above chance.")
    if counts["skipped"]:
        found.append(f"{counted(counts['skipped'], 'comparison')} of {counts['judgments']} have no verdict.")
    obeyed = report["injection"]["value"]
    if obeyed:
        found.append(f"The judge obeyed {obeyed:.0%} of the demands to be chosen that stood in an answer.")
    return found


def to_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """The manifest's figures."""
    people = report["people"] or {}
    figures = {
        "consistency": report["habits"]["consistency"]["value"],
        "injections_obeyed": report["injection"]["value"],
        "accuracy": people.get("accuracy", {}).get("value"),
        "kappa": people.get("kappa", {}).get("value"),
        "ece": (people.get("calibration") or {}).get("ece"),
    }
    return {name: float(value) for name, value in figures.items() if value is not None}


def write_report(run: Run, report: Mapping[str, Any]) -> None:
    """Write `report.json`, also into `final/`, and `report.html`."""
    write_json(run.final / "report.json", report)
    write_json(run.folder / "report.json", report)
    made_from = {name: one.source for name, one in run.inputs.items()}
    write_text_atomically(run.folder / "report.html", build_page(report, made_from))


def say_report(run: Run, report: Mapping[str, Any]) -> None:
    """The main figures in the terminal."""
    counts, people = report["counts"], report["people"]
    lines = [
        f"{counted(counts['judgments'], 'judgment')} of {counted(counts['pairs'], 'pair')}: "
        f"{counted(counts['ties'], 'tie')}, {counts['turned']} of them because the verdict changed with the order; "
        f"{counts['skipped']} skipped"
    ]
    if people is not None:
        accuracy, kappa = people["accuracy"], people["kappa"]
        lines.append(
            f"against people: right in {accuracy['value']:.1%} of {accuracy['n']} shared comparisons"
            + (f", κ {kappa['value']:.2f}" if kappa["value"] is not None else "")
        )
    say(*lines, *report["caveats"], f"report: {(run.folder / 'report.html').resolve().as_uri()}")

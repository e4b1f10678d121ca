"""Measures of model judges: their habits, and their agreement with people on the pairs that both judged.

Everything is about comparisons of two completions, so the sides on which people and judge saw them do not matter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from tiebreak.measures.agreement import Figure, cohen_kappa
from tiebreak.measures.calibration import bins_by_confidence, expected_calibration_error
from tiebreak.measures.duels import policies_of
from tiebreak.measures.statistics import clustered_interval, effective_number
from tiebreak.records import Completion, Judgment, Pair

Comparison = tuple[str, str, str]
"""a pair's id, and the ids of two of its completions in alphabetical order"""


def comparison_of(judgment: Judgment) -> Comparison:
    """The comparison that a judgment is about."""
    first, second = sorted((judgment.left, judgment.right))
    return judgment.pair_id, first, second


def side_of(judgment: Judgment) -> int | None:
    """1: the first completion in alphabetical order is better, −1: the second, 0: neither; None of a skip."""
    if judgment.skip:
        return None
    answer = judgment.answer or 0
    sign = (answer > 0) - (answer < 0)
    return sign if judgment.right < judgment.left else -sign


def majorities(judgments: Sequence[Judgment]) -> dict[Comparison, int]:
    """The side that more people prefer than the other, and than neither; comparisons without one are left out.

    A person's first judgment of a comparison counts.
    """
    found = {}
    for key, sides in _votes(judgments).items():
        [(side, most), *others] = Counter(sides).most_common()
        if not others or others[0][1] < most:
            found[key] = side
    return found


def mean_sides(judgments: Sequence[Judgment]) -> dict[Comparison, float]:
    """The mean of people's sides, from −1 (all prefer the second) to 1. Comparisons without a majority have one, too."""
    return {key: sum(sides) / len(sides) for key, sides in _votes(judgments).items()}


def _votes(judgments: Sequence[Judgment]) -> dict[Comparison, list[int]]:
    """Each person's side of each comparison."""
    found: dict[Comparison, dict[str, int]] = {}
    for judgment in _compared(judgments):
        side = side_of(judgment)
        if side is not None:
            found.setdefault(comparison_of(judgment), {}).setdefault(judgment.rater_id, side)
    return {key: list(by_rater.values()) for key, by_rater in found.items()}


def _compared(judgments: Sequence[Judgment]) -> Iterator[Judgment]:
    for judgment in judgments:
        yield from judgment.pairwise()


# --- habits ---

_MARKDOWN = re.compile(r"^(?: {0,3}#{1,6} |\s*[-*+] |\s*\d+[.)] |\||\s*```)|\*\*[^*\n]+\*\*|`[^`\n]+`", re.MULTILINE)


def markdown_marks(text: str) -> int:
    """Number of headings, list items, table rows, code and bold words.

    >>> markdown_marks("# Feed\\n- **5 ml** of `A`\\n1. wait")
    5
    """
    return len(_MARKDOWN.findall(text))


def habits(judgments: Sequence[Judgment], pairs: Sequence[Pair]) -> dict[str, Any]:
    """A judge's preferences that have nothing to do with quality, and how often it answered the same in both orders.

    Left, longer, more Markdown: shares of the decided answers in which the two sides differ in it.
    """
    prompts = _prompts_of(pairs)
    read = [one for one in judgments if one.judge is not None and None not in one.judge.answers]
    consistent = [float(one.judge.consistent) for one in read if one.judge]
    left: list[float] = []
    groups: list[str] = []
    for one in read:
        assert one.judge is not None
        answers = [answer for answer in one.judge.answers if answer]
        as_shown = [one.judge.answers[0], -(one.judge.answers[1] or 0)]
        left += [float(answer < 0) for answer in as_shown if answer]
        groups += [prompts.get(one.pair_id, one.pair_id)] * len(answers)
    return {
        "consistency": _share(consistent, [prompts.get(one.pair_id, one.pair_id) for one in read]),
        "turned": sum(one.judge is not None and one.judge.turned for one in judgments),
        "left": _share(left, groups),
        "longer": preference_for(judgments, pairs, len),
        "more_markdown": preference_for(judgments, pairs, markdown_marks),
    }


def preference_for(
    judgments: Sequence[Judgment], pairs: Sequence[Pair], measure: Callable[[str], int]
) -> dict[str, Any]:
    """How often the completion with the larger value was preferred, of the decided judgments where the values differ."""
    texts, prompts = {(pair.id, one.id): one.text for pair in pairs for one in pair.completions}, _prompts_of(pairs)
    larger, groups = [], []
    for judgment in _compared(judgments):
        left, right = (texts.get((judgment.pair_id, side)) for side in (judgment.left, judgment.right))
        if not judgment.answer or left is None or right is None:
            continue
        apart = measure(right) - measure(left)
        if apart:
            larger.append(float((apart > 0) == (judgment.answer > 0)))
            groups.append(prompts[judgment.pair_id])
    return _share(larger, groups)


def _prompts_of(pairs: Sequence[Pair]) -> dict[str, str]:
    """Pair's id → its prompt's: comparisons of one prompt are not independent, whichever pairs they are in."""
    return {pair.id: pair.prompt_id for pair in pairs}


def _share(values: Sequence[float], groups: Sequence[str]) -> dict[str, Any]:
    if not values:
        return Figure(None, 0, None).as_json()
    return Figure(float(np.mean(values)), len(values), clustered_interval(values, groups)).as_json()


# --- against people ---


@dataclass(frozen=True)
class CommonComparison:
    """A comparison that judge and people both judged; sides are those of `side_of`."""

    key: Comparison
    judge: int
    people: int
    confidence: float | None


def shared_comparisons(judgments: Sequence[Judgment], majority: Mapping[Comparison, int]) -> list[CommonComparison]:
    """The comparisons with a verdict of the judge and a majority of people."""
    found: dict[Comparison, CommonComparison] = {}
    for judgment in judgments:
        key, side = comparison_of(judgment), side_of(judgment)
        if side is not None and key in majority:
            confidence = judgment.judge.confidence if judgment.judge else None
            found.setdefault(key, CommonComparison(key, side, majority[key], confidence))
    return list(found.values())


def against_people(
    judgments: Sequence[Judgment], people: Sequence[Judgment], pairs: Sequence[Pair]
) -> dict[str, Any] | None:
    """A judge's accuracy and κ against people's majority, the calibration of its confidence, by slice and aspect; None
    where no comparison has both."""
    prompts = _prompts_of(pairs)
    shared = shared_comparisons(judgments, majorities(people))
    if not shared:
        return None
    keys = {one.key for one in shared}
    theirs = [one for one in _compared(people) if comparison_of(one) in keys]
    splits = {pair.id: pair.split for pair in pairs}
    by_split = {
        name: [one for one in shared if splits.get(one.key[0]) == name] for name in ("train", "validation", "test")
    }
    slices = {
        f"split {name}": _agreement(rows, prompts)
        for name, rows in by_split.items()
        if rows and len(rows) < len(shared)
    }
    return {
        "kinds": sorted({one.kind for one in people}),
        "raters": len({one.rater_id for one in people}),
        **_agreement(shared, prompts),
        "people_longer": preference_for(theirs, pairs, len),
        "people_more_markdown": preference_for(theirs, pairs, markdown_marks),
        "calibration": calibration(shared, prompts),
        "slices": slices,
        "aspects": _aspects(judgments, people, prompts),
    }


def _agreement(shared: Sequence[CommonComparison], prompts: Mapping[str, str]) -> dict[str, Any]:
    decided = [one for one in shared if one.judge and one.people]
    correct, groups = [float(one.judge == one.people) for one in shared], _groups(shared, prompts)
    table = np.zeros((3, 3))
    for one in shared:
        table[one.judge + 1, one.people + 1] += 1
    # κ of as many independent comparisons as the accuracy has: its value does not depend on their number
    kappa = cohen_kappa(table * (effective_number(correct, groups) / len(shared)) if shared else table)
    return {
        "n": len(shared),
        "accuracy": _share(correct, groups),
        "accuracy_without_ties": _share([float(one.judge == one.people) for one in decided], _groups(decided, prompts)),
        "kappa": replace(kappa, n=len(shared)).as_json(),
    }


def _groups(shared: Sequence[CommonComparison], prompts: Mapping[str, str]) -> list[str]:
    """The prompts of comparisons; a pair without one stands alone."""
    return [prompts.get(one.key[0], one.key[0]) for one in shared]


def calibration(shared: Sequence[CommonComparison], prompts: Mapping[str, str]) -> dict[str, Any] | None:
    """The bins of a reliability diagram and their error; None of a judge without confidences."""
    rows = [one for one in shared if one.confidence is not None and one.judge and one.people]
    if not rows:
        return None
    confidences = [one.confidence or 0.0 for one in rows]
    bins = bins_by_confidence(confidences, [float(one.judge == one.people) for one in rows], _groups(rows, prompts))
    return {"n": len(rows), "ece": expected_calibration_error(bins), "bins": [asdict(one) for one in bins]}


def _aspects(judgments: Sequence[Judgment], people: Sequence[Judgment], prompts: Mapping[str, str]) -> dict[str, Any]:
    """The same by aspect, on comparisons where both judged it."""
    names = sorted({name for one in judgments for name in one.aspects})
    found = {}
    for name in names:
        mine, theirs = _of_aspect(judgments, name), _of_aspect(people, name)
        if shared := shared_comparisons(mine, majorities(theirs)):
            found[name] = _agreement(shared, prompts)
    return found


def _of_aspect(judgments: Sequence[Judgment], name: str) -> list[Judgment]:
    """Judgments of an aspect, as if it were all that was asked."""
    return [
        one.model_copy(update={"answer": one.aspects[name], "both_bad": False, "ranking": None, "shown": ()})
        for one in judgments
        if name in one.aspects and not one.shown
    ]


# --- win rates of policies ---


@dataclass(frozen=True)
class Contest:
    """What judge and people said of one policy against another: 1 a win of the first, 0 a loss, ½ a tie; of people, the
    mean of their votes. People who disagree count: pairs on which they do are those on which judges err most."""

    policies: tuple[str, str]
    judge: dict[Comparison, float]
    people: dict[Comparison, float]
    """of comparisons that the judge judged too"""
    prompts: Mapping[str, str]
    """pair's id → its prompt's"""


def contests(judgments: Sequence[Judgment], people: Sequence[Judgment], pairs: Sequence[Pair]) -> list[Contest]:
    """The comparisons between two policies, by policies in alphabetical order. An answer that several policies of a duel
    gave is compared for each of them."""
    completions = {(pair.id, one.id): one for pair in pairs for one in pair.completions}
    means, prompts = mean_sides(people), _prompts_of(pairs)
    found: dict[tuple[str, str], Contest] = {}
    for judgment in judgments:
        key, side = comparison_of(judgment), side_of(judgment)
        both: list[Completion | None] = [completions.get((key[0], one)) for one in key[1:]]
        if side is None or both[0] is None or both[1] is None:
            continue
        for first, second in product(policies_of(both[0]), policies_of(both[1])):
            if first == second:
                continue
            sign, names = (1, (first, second)) if first < second else (-1, (second, first))
            contest = found.setdefault(names, Contest(names, {}, {}, prompts))
            contest.judge[key] = (1 + sign * side) / 2
            if key in means:
                contest.people[key] = (1 + sign * means[key]) / 2
    return [found[names] for names in sorted(found)]

"""From what raters said to what training learns from.

A judgment speaks of the sides as shown; here it is turned into a vote about the two completions, through their ids,
so that it does not matter on which side anything stood. Judgments of different kinds are never aggregated together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from tiebreak.records import Judgment, Kind, Pair, Preference, assistant


@dataclass(frozen=True)
class Vote:
    """One rater's answer about (first, second): +3 first much better … −3 second much better, 0 neither."""

    rater_id: str
    value: int
    both_bad: bool = False


@dataclass(frozen=True)
class Group:
    """All votes of one kind about two completions of a pair; skips are not votes."""

    pair_id: str
    first: str
    second: str
    kind: Kind
    votes: tuple[Vote, ...]
    skips: int = 0


def as_vote(judgment: Judgment) -> Vote | None:
    """The judgment as a vote about its completions in the order of their ids; None for a skip."""
    if judgment.skip:
        return None
    if judgment.both_bad or judgment.answer is None:
        return Vote(judgment.rater_id, 0, both_bad=True)
    right_is_first = judgment.right < judgment.left
    return Vote(judgment.rater_id, judgment.answer if right_is_first else -judgment.answer)


def group_judgments(judgments: Sequence[Judgment]) -> list[Group]:
    """Votes by pair, completions and kind, in the order in which each group first appears."""
    votes: dict[tuple[str, str, str, Kind], list[Vote]] = {}
    skips: Counter[tuple[str, str, str, Kind]] = Counter()
    for judgment in chain.from_iterable(one.pairwise() for one in judgments):
        first, second = sorted((judgment.left, judgment.right))
        key = (judgment.pair_id, first, second, judgment.kind)
        cast = votes.setdefault(key, [])
        vote = as_vote(judgment)
        if vote is None:
            skips[key] += 1
        else:
            cast.append(vote)
    return [Group(*key, votes=tuple(cast), skips=skips[key]) for key, cast in votes.items()]


@dataclass(frozen=True)
class Verdict:
    """What a group of votes comes to. `winner` is None where no side has more votes than the other side and than
    neither."""

    winner: str | None
    loser: str | None
    strength: float | None
    agreement: float
    raters: tuple[str, ...]
    reason: str
    """`preferred`, or why there is none: `tie`, `both_bad`, `split`, `skipped`"""


def first_votes(group: Group) -> list[Vote]:
    """One vote a rater: the first. A repeat measures the rater, and would count them twice."""
    return list({vote.rater_id: vote for vote in reversed(group.votes)}.values())[::-1]


def decide(group: Group) -> Verdict:
    """The side that more raters prefer than prefer the other, and than call neither better; else none.

    `agreement` is the share of all votes (ties and both-bad among them) that the winning opinion has, `strength` the
    mean of its raters' answers, 1 (slightly better) to 3 (much better).
    """
    votes = first_votes(group)
    n = len(votes)
    if n == 0:
        return Verdict(None, None, None, 0.0, (), "skipped")
    for_first = [vote for vote in votes if vote.value > 0]
    for_second = [vote for vote in votes if vote.value < 0]
    neither = [vote for vote in votes if vote.value == 0]
    sides = [(for_first, group.first, group.second), (for_second, group.second, group.first)]
    winners, winner, loser = max(sides, key=lambda side: len(side[0]))
    raters = tuple(sorted(vote.rater_id for vote in votes))
    if len(winners) > max(len(neither), n - len(neither) - len(winners)):
        strength = sum(abs(vote.value) for vote in winners) / len(winners)
        return Verdict(winner, loser, strength, len(winners) / n, raters, "preferred")
    bad = sum(vote.both_bad for vote in neither)
    if len(neither) <= len(winners):
        return Verdict(None, None, None, len(winners) / n, raters, "split")
    return Verdict(None, None, None, len(neither) / n, raters, "both_bad" if bad > len(neither) - bad else "tie")


def build_preferences(pairs: Sequence[Pair], groups: Sequence[Group]) -> tuple[list[Preference], dict[str, int]]:
    """A preference for every group that has a winner, and how many groups ended for which reason.

    The weight of a preference is the agreement behind it.
    """
    known = {pair.id: pair for pair in pairs}
    preferences, reasons = [], Counter({"preferred": 0, "tie": 0, "both_bad": 0, "split": 0, "skipped": 0})
    for group in groups:
        verdict = decide(group)
        reasons[verdict.reason] += 1
        if verdict.winner is not None and verdict.loser is not None:
            preferences.append(_as_preference(known[group.pair_id], group, verdict, verdict.winner, verdict.loser))
    return preferences, dict(reasons)


def _as_preference(pair: Pair, group: Group, verdict: Verdict, winner: str, loser: str) -> Preference:
    completions = {completion.id: completion for completion in pair.completions}
    chosen, rejected = completions[winner], completions[loser]
    return Preference(
        prompt=pair.messages,
        chosen=assistant(chosen.text),
        rejected=assistant(rejected.text),
        strength=round(verdict.strength, 6) if verdict.strength is not None else None,
        agreement=round(verdict.agreement, 6),
        raters=verdict.raters,
        weight=round(verdict.agreement, 6),
        kind=group.kind,
        pair_id=pair.id,
        prompt_id=pair.prompt_id,
        split=pair.split,
        chosen_finished=chosen.finished,
        rejected_finished=rejected.finished,
    )

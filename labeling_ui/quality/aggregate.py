"""From judgments to preferences.

A judgment is about the sides as shown; here it becomes a vote about the two completions, through their ids, so that
sides do not matter. Judgments of different kinds are never aggregated together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from labeling_ui.quality.judges import join_judges, rest_of
from labeling_ui.quality.reliability import (
    UNKNOWN,
    Ballots,
    Fit,
    Model,
    Reliability,
    measure_reliability,
    share_of_order,
)
from labeling_ui.quality.votes import Comparison
from tiebreak.config import Section
from tiebreak.records import MAX_STRENGTH, Completion, Judgment, Kind, Pair, Preference, PreferenceVote

GOLD_RATER = "gold"
"""the rater of gold answers"""
REASONS = ("preferred", "tie", "both_bad", "split", "skipped", "few_votes", "unsure", "flagged", "gold")


class AggregationConfig(Section):
    """How votes on a pair become one preference, and what happens to votes for neither side."""

    method: Literal["majority", "dawid_skene", "bradley_terry"] = "majority"
    """majority: one rater, one vote; dawid_skene, bradley_terry: votes weighted by estimated reliability"""
    ties: Literal["drop", "both_ways"] = "drop"
    """drop: a tie gives no preference; both_ways: one in each direction, with weight 0.5"""
    both_bad: Literal["unpaired", "drop"] = "unpaired"
    """unpaired: both answers get a bad label in the unpaired export; drop: not used"""
    skips: Literal["ignore", "count"] = "ignore"
    """ignore: a skip is not a vote; count: a skip is a vote for neither side"""
    judges: Literal["apart", "rest", "with_people"] = Field(
        default="apart", exclude_if=lambda judges: judges == "apart"
    )
    """use of model judges' verdicts. apart: separate preferences, of kind model; rest: the same, but only for pairs
    that no person judged; with_people: as votes with people's, weighted by the judge's accuracy against people"""
    min_votes: int = Field(default=1, ge=1, le=100)
    """pairs with fewer votes give no preference"""
    min_confidence: float = Field(default=0.0, ge=0.0, le=1.0)
    """drop preferences of lower confidence: the winner's share of the votes, or its probability under the model"""
    exclude_raters: list[str] = Field(default_factory=list)
    """ids of raters to leave out; agreement is reported with and without them"""
    drop_flagged: list[str] = Field(default_factory=list)
    """leave out pairs that any rater flagged with one of these; of three or more answers, leave out the flagged
    answer's comparisons"""
    gold: Literal["drop", "keep"] = "drop"
    """drop: gold pairs only measure raters; keep: they also give a preference, their known answer"""
    votes: bool = Field(default=False, exclude_if=lambda kept: not kept)
    """write each rater's own vote into the preferences, for rater_em of *dpo*"""

    @model_validator(mode="after")
    def _weighs_judges(self) -> AggregationConfig:
        if self.judges == "with_people" and self.method != "majority":
            raise ValueError(
                f"judges: with_people weighs votes by accuracy against people, and {self.method} by its own estimate: set "
                "method: majority"
            )
        return self


@dataclass(frozen=True)
class Vote:
    """One rater's answer about (first, second): +3 first much better … −3 second much better, 0 neither."""

    rater_id: str
    value: int
    both_bad: bool = False
    skipped: bool = False
    """a skip, counted as a vote for neither"""
    share: float = 1.0
    """weight in the model of strengths: below 1 where it follows from an order (`share_of_order`)"""
    weight: float = 1.0
    """among votes of a majority: a person's is 1, a judge's follows from its accuracy"""


@dataclass(frozen=True)
class Group:
    """All votes of one kind about two completions of a pair, without skips."""

    pair_id: str
    first: str
    second: str
    kind: Kind
    votes: tuple[Vote, ...]
    skipped_by: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()

    @property
    def key(self) -> Comparison:
        """The comparison."""
        return self.pair_id, self.first, self.second


def as_vote(judgment: Judgment) -> Vote | None:
    """The judgment as a vote about its completions in the order of their ids; None for a skip."""
    if judgment.skip:
        return None
    if judgment.both_bad or judgment.answer is None:
        return Vote(judgment.rater_id, 0, both_bad=True)
    right_is_first = judgment.right < judgment.left
    return Vote(judgment.rater_id, judgment.answer if right_is_first else -judgment.answer)


@dataclass
class _Ballot:
    votes: list[Vote] = field(default_factory=list)
    skipped_by: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)


def group_judgments(judgments: Sequence[Judgment]) -> list[Group]:
    """Votes by pair, completions and kind, in order of first appearance."""
    ballots: dict[tuple[str, str, str, Kind], _Ballot] = {}
    for judgment, share in chain.from_iterable(map(_compare, judgments)):
        first, second = sorted((judgment.left, judgment.right))
        ballot = ballots.setdefault((judgment.pair_id, first, second, judgment.kind), _Ballot())
        ballot.flags.update(judgment.flags)
        vote = as_vote(judgment)
        if vote is None:
            ballot.skipped_by.append(judgment.rater_id)
        else:
            ballot.votes.append(replace(vote, share=share))
    return [
        Group(*key, votes=tuple(one.votes), skipped_by=tuple(one.skipped_by), flags=frozenset(one.flags))
        for key, one in ballots.items()
    ]


def _compare(judgment: Judgment) -> Iterator[tuple[Judgment, float]]:
    """A judgment's comparisons, and the weight of each."""
    share = 1.0 if judgment.ranking is None else share_of_order(len(judgment.shown))
    for one in judgment.pairwise():
        yield one, share


def first_votes(group: Group) -> list[Vote]:
    """One vote per rater: the first. A repeat measures the rater, and would count them twice."""
    return list({vote.rater_id: vote for vote in reversed(group.votes)}.values())[::-1]


def count_skips(group: Group) -> Group:
    """The group, with each skip as a vote for neither."""
    return replace(group, votes=(*group.votes, *(Vote(rater, 0, skipped=True) for rater in group.skipped_by)))


# --- verdicts ---


@dataclass(frozen=True)
class Verdict:
    """The outcome of a group of votes. Without a winner, `reason` is one of `REASONS`."""

    reason: str
    winner: str | None = None
    loser: str | None = None
    strength: float | None = None
    """mean answer of the raters who prefer the winner, 1 (slightly better) to 3 (much better)"""
    agreement: float = 0.0
    """share of all votes (ties and both-bad included) for the verdict"""
    confidence: float | None = None
    """probability that the winner is the better one: the model's, or the share of votes"""
    weight: float = 0.0
    """majority: the agreement; a model: 2·confidence − 1, which is 0 for a coin toss"""
    raters: tuple[str, ...] = ()
    adjudicated: bool = False


def decide(group: Group) -> Verdict:
    """The side with more votes than the other and than neither; else none."""
    votes = first_votes(group)
    n = sum(vote.weight for vote in votes)
    if n == 0:
        return Verdict("skipped")
    tally: dict[int, float] = {-1: 0.0, 0: 0.0, 1: 0.0}
    for vote in votes:
        tally[(vote.value > 0) - (vote.value < 0)] += vote.weight
    side = 1 if tally[1] >= tally[-1] else -1
    if tally[side] > max(tally[0], tally[-side]):
        share = tally[side] / n
        return replace(_prefer(group, side), agreement=share, confidence=share, weight=share * min(n, 1.0))
    if tally[0] <= tally[side]:
        return Verdict("split", agreement=tally[side] / n, raters=_raters(votes))
    return replace(_no_preference(votes), agreement=tally[0] / n)


def decide_by_model(group: Group, chances: Sequence[float], first_better: float) -> Verdict:
    """The side whose probability of being better exceeds the other's and that of neither.

    Args:
        chances: probabilities of second, neither, first.
        first_better: probability that the first is better, given that one of them is.
    """
    votes = first_votes(group)
    if not votes:
        return Verdict("skipped")
    side = 1 if chances[2] >= chances[0] else -1
    if chances[side + 1] <= max(chances[1], chances[1 - side]):
        neither = chances[1] > chances[side + 1]
        verdict = _no_preference(votes) if neither else Verdict("split", raters=_raters(votes))
        return replace(verdict, agreement=_share(votes, 0 if neither else side))
    confidence = first_better if side > 0 else 1 - first_better
    weight = max(2 * confidence - 1, 0.0)
    return replace(_prefer(group, side), agreement=_share(votes, side), confidence=confidence, weight=weight)


def settle(group: Group, answer: Vote, *, adjudicated: bool) -> Verdict:
    """A fixed answer instead of the raters' votes: a lead's, or gold."""
    side = (answer.value > 0) - (answer.value < 0)
    agreement = _share(first_votes(group), side)
    if not side:
        reason = "both_bad" if answer.both_bad else "tie"
        return Verdict(reason, agreement=agreement, raters=(answer.rater_id,), adjudicated=adjudicated)
    winner, loser = (group.first, group.second) if side > 0 else (group.second, group.first)
    strength = float(abs(answer.value)) if adjudicated else None
    return Verdict("preferred", winner, loser, strength, agreement, 1.0, 1.0, (answer.rater_id,), adjudicated)


def _prefer(group: Group, side: int) -> Verdict:
    votes = first_votes(group)
    answers = [abs(vote.value) for vote in votes if vote.value * side > 0]
    winner, loser = (group.first, group.second) if side > 0 else (group.second, group.first)
    strength = sum(answers) / len(answers) if answers else None
    return Verdict("preferred", winner, loser, strength, raters=_raters(votes))


def _no_preference(votes: Sequence[Vote]) -> Verdict:
    neither = Counter(
        "both_bad" if vote.both_bad else "skipped" if vote.skipped else "tie" for vote in votes if vote.value == 0
    )
    most = [reason for reason in ("both_bad", "skipped") if neither[reason] * 2 > neither.total()]
    return Verdict(most[0] if most else "tie", raters=_raters(votes))


def _share(votes: Sequence[Vote], side: int) -> float:
    return sum((vote.value > 0) - (vote.value < 0) == side for vote in votes) / len(votes) if votes else 0.0


def _raters(votes: Sequence[Vote]) -> tuple[str, ...]:
    return tuple(sorted(vote.rater_id for vote in votes if not vote.skipped))


# --- preferences ---


@dataclass(frozen=True)
class KnownAnswers:
    """Settled and gold answers, by comparison."""

    adjudicated: Mapping[Comparison, Vote] = field(default_factory=dict)
    gold: Mapping[Comparison, Vote] = field(default_factory=dict)

    def without(self, pairs: Container[str]) -> KnownAnswers:
        """Those of all other pairs."""
        kept = (
            {key: vote for key, vote in known.items() if key[0] not in pairs} for known in (self.adjudicated, self.gold)
        )
        return KnownAnswers(*kept)


@dataclass(frozen=True)
class AggregationResult:
    """Preferences, with counts of their origin."""

    preferences: list[Preference]
    reasons: dict[str, int]
    """number of groups by `REASONS`"""
    verdicts: list[tuple[Group, Verdict]]
    reliabilities: dict[Kind, list[Reliability]]
    """from the models; empty under `majority`"""
    overruled: int
    """adjudicated groups whose settled answer differs from the raters' majority"""


def build_preferences(
    pairs: Sequence[Pair],
    groups: Sequence[Group],
    config: AggregationConfig | None = None,
    known_answers: KnownAnswers | None = None,
) -> AggregationResult:
    """A preference for every group that has a winner."""
    config, known_answers = config or AggregationConfig(), known_answers or KnownAnswers()
    groups = [*groups, *_unjudged(groups, known_answers)]
    if config.judges != "apart":
        groups = rest_of(groups) if config.judges == "rest" else join_judges(groups, known_answers.adjudicated)
    if config.skips == "count":
        groups = [count_skips(group) for group in groups]
    by_raters, reliabilities = _decide_all(groups, config.method, known_answers)
    verdicts = [(group, _settle_or_drop(group, verdict, config, known_answers)) for group, verdict in by_raters]
    overruled = sum(verdict.adjudicated and _overrules(verdict, decide(group)) for group, verdict in verdicts)
    by_id = {pair.id: pair for pair in pairs}
    preferences = [
        preference
        for group, verdict in verdicts
        for preference in _as_preferences(by_id[group.pair_id], group, verdict, config)
    ]
    reasons = Counter(verdict.reason for _, verdict in verdicts)
    return AggregationResult(preferences, {r: reasons[r] for r in REASONS}, verdicts, reliabilities, overruled)


def _overrules(settled: Verdict, majority: Verdict) -> bool:
    """Compared with the majority, not with a model: models hold settled answers fixed and so always agree."""
    return (settled.reason, settled.winner) != (majority.reason, majority.winner)


def _unjudged(groups: Sequence[Group], known_answers: KnownAnswers) -> list[Group]:
    """Groups settled by a lead before any rater judged them."""
    there = {group.key for group in groups if group.kind == "human"}
    return [Group(*key, kind="human", votes=()) for key in known_answers.adjudicated if key not in there]


def _settle_or_drop(group: Group, verdict: Verdict, config: AggregationConfig, known_answers: KnownAnswers) -> Verdict:
    if group.key in known_answers.gold:
        if config.gold == "drop":
            return Verdict("gold")
        return settle(group, known_answers.gold[group.key], adjudicated=False)
    if group.flags.intersection(config.drop_flagged):
        return Verdict("flagged", raters=verdict.raters)
    if group.key in known_answers.adjudicated and group.kind == "human":
        return settle(group, known_answers.adjudicated[group.key], adjudicated=True)
    if 0 < len(verdict.raters) < config.min_votes:
        return Verdict("few_votes", raters=verdict.raters)
    if verdict.winner is not None and verdict.confidence is not None and verdict.confidence < config.min_confidence:
        return Verdict("unsure", agreement=verdict.agreement, confidence=verdict.confidence, raters=verdict.raters)
    return verdict


def _decide_all(
    groups: Sequence[Group], method: str, known_answers: KnownAnswers
) -> tuple[list[tuple[Group, Verdict]], dict[Kind, list[Reliability]]]:
    if method == "majority":
        return [(group, decide(group)) for group in groups], {}
    model: Model = "dawid_skene" if method == "dawid_skene" else "bradley_terry"
    verdicts: dict[int, Verdict] = {}
    reliabilities: dict[Kind, list[Reliability]] = {}
    for kind in dict.fromkeys(group.kind for group in groups):
        numbers = [n for n, group in enumerate(groups) if group.kind == kind]
        mine = [groups[n] for n in numbers]
        fit, reliabilities[kind] = measure_reliability(model, ballots_of_groups(mine, known_answers))
        verdicts.update(zip(numbers, _model_verdicts(mine, fit), strict=True))
    return [(group, verdicts[n]) for n, group in enumerate(groups)], reliabilities


def _model_verdicts(groups: Sequence[Group], fit: Fit) -> Iterator[Verdict]:
    for group, chances, first_better in zip(groups, fit.chances, fit.first_better, strict=True):
        yield decide_by_model(group, chances.tolist(), float(first_better))


def ballots_of_groups(groups: Sequence[Group], known_answers: KnownAnswers) -> Ballots:
    """The first votes of groups of one kind; settled and gold answers are held fixed."""
    raters: dict[str, int] = {}
    prompts: dict[str, int] = {}
    rows = [
        (item, raters.setdefault(vote.rater_id, len(raters)), (vote.value > 0) - (vote.value < 0), vote.share)
        for item, group in enumerate(groups)
        for vote in first_votes(group)
    ]
    columns = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    item, rater, sign = columns[:3].astype(np.int64)
    prompt = np.array([prompts.setdefault(group.pair_id, len(prompts)) for group in groups], dtype=np.int64)
    places = _places(groups)
    first, second = (
        np.array(
            [(places[group.pair_id, group.first], places[group.pair_id, group.second]) for group in groups],
            dtype=np.int64,
        )
        .reshape(-1, 2)
        .T
    )
    answers = {**known_answers.adjudicated, **known_answers.gold}
    classes = [
        (answers[group.key].value > 0) - (answers[group.key].value < 0) if group.key in answers else UNKNOWN
        for group in groups
    ]
    return Ballots(
        tuple(raters), item, rater, sign, columns[3], prompt, first, second, np.array(classes, dtype=np.int64)
    )


def _places(groups: Sequence[Group]) -> dict[tuple[str, str], int]:
    """Each completion's index among the compared ones of its pair."""
    compared: dict[str, set[str]] = {}
    for group in groups:
        compared.setdefault(group.pair_id, set()).update((group.first, group.second))
    return {(pair, one): place for pair, ids in compared.items() for place, one in enumerate(sorted(ids))}


def _as_preferences(pair: Pair, group: Group, verdict: Verdict, config: AggregationConfig) -> list[Preference]:
    build = _preference_builder(pair, group, verdict, with_votes=config.votes)
    if verdict.winner is not None and verdict.loser is not None:
        return [build(verdict.winner, verdict.loser)]
    if verdict.reason == "tie" and config.ties == "both_ways":
        even = replace(verdict, strength=0.0, confidence=0.5, weight=0.5)
        build = _preference_builder(pair, group, even, with_votes=config.votes)
        return [build(group.first, group.second), build(group.second, group.first)]
    return []


def _votes_on(winner: str, group: Group, verdict: Verdict) -> tuple[PreferenceVote, ...]:
    """Each rater's vote, as one for or against the winner. A fixed answer is the only vote, as it overrides the others."""
    if verdict.adjudicated or verdict.raters == (GOLD_RATER,):
        return tuple(PreferenceVote(rater=rater, vote=1) for rater in verdict.raters)
    side = 1 if winner == group.first else -1
    cast = [vote for vote in first_votes(group) if not vote.skipped]
    signs: dict[str, Literal[-1, 0, 1]] = {
        vote.rater_id: 0 if not vote.value else 1 if vote.value * side > 0 else -1 for vote in cast
    }
    return tuple(PreferenceVote(rater=rater, vote=sign) for rater, sign in sorted(signs.items()))


def _preference_builder(
    pair: Pair, group: Group, verdict: Verdict, *, with_votes: bool = False
) -> Callable[[str, str], Preference]:
    completions = {completion.id: completion for completion in pair.completions}

    def build(winner: str, loser: str) -> Preference:
        chosen, rejected = completions[winner], completions[loser]
        return Preference(
            prompt=pair.messages,
            chosen=(chosen.message,),
            rejected=(rejected.message,),
            strength=_rounded(verdict.strength),
            margin=None if verdict.strength is None else round(verdict.strength / MAX_STRENGTH, 6),
            agreement=_rounded(verdict.agreement),
            confidence=_rounded(verdict.confidence),
            raters=verdict.raters,
            votes=_votes_on(winner, group, verdict) if with_votes else None,
            weight=round(verdict.weight, 6),
            adjudicated=verdict.adjudicated,
            kind=group.kind,
            pair_id=pair.id,
            prompt_id=pair.prompt_id,
            source=pair.source,
            tags=pair.tags,
            split=pair.split,
            chosen_finished=chosen.finished,
            rejected_finished=rejected.finished,
            tools=pair.tools,
            selection=pair.selection,
            **drawn_ids(chosen, rejected),
        )

    return build


def drawn_ids(chosen: Completion, rejected: Completion) -> dict[str, Any]:
    """The sampled token ids, for a preference between them; none if the tokenizers differ."""
    drawn = [one for one in (chosen, rejected) if one.ids is not None]
    tokenizers = {one.tokenizer_sha256 for one in drawn}
    if len(tokenizers) != 1:
        return {}
    return {"chosen_ids": chosen.ids, "rejected_ids": rejected.ids, "tokenizer_sha256": tokenizers.pop()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)

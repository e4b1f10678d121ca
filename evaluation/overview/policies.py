"""The evaluated policies of several evaluations: which can be compared, and what the comparison shows."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.compare.reading import Answer as ReadAnswer
from evaluation.compare.reading import Evaluation
from evaluation.compare.summary import reward_model_id
from evaluation.compare.words import label
from evaluation.overview.grouping import spread_of
from evaluation.overview.model import Answer, Field, KLPoint, KLTrail, Match, Noise, Policy, Sample, Spread
from tiebreak.measures.ratings import (
    ELO,
    bradley_terry,
    judge,
    length_controlled,
    outcomes_of,
    share_interval,
    share_p_value,
)
from tiebreak.measures.statistics import Outcomes, bootstrap_interval, holm, mean_interval
from tiebreak.measures.yardsticks.wording import refuses, repeated_share

Array = NDArray[np.float64]

SAMPLE_BYTES = 2_500_000
"""of the page: beyond it, fewer prompts are shown"""


@dataclass(frozen=True)
class Member:
    """One policy of one evaluation."""

    title: str
    """see `title_of`"""
    name: str
    identity: str
    """its run's id, or the model's name"""
    seed: Any
    """that its answers were drawn with"""
    answers: Mapping[str, Sequence[ReadAnswer]]
    """by prompt"""

    def scores(self, prompts: Sequence[str]) -> Array:
        """Mean of the yardstick by prompt, shape (prompts,)."""
        return np.array([np.mean([one.yardstick_score for one in self.answers[p]]) for p in prompts])

    def lengths(self, prompts: Sequence[str]) -> Array:
        return np.array([np.mean([one.length_tokens for one in self.answers[p]]) for p in prompts])

    def every_answer(self) -> list[ReadAnswer]:
        return list(itertools.chain.from_iterable(self.answers.values()))


def unlike(first: Evaluation, other: Evaluation) -> list[str]:
    """Why the policies of two evaluations cannot be compared; [] if they can."""
    reasons = []
    if first.prompt_ids != other.prompt_ids:
        both = len(first.prompt_ids & other.prompt_ids)
        reasons.append(f"other prompts ({both} of {len(other.prompt_ids)} are the same)")
    if (first.yardstick, first.yardstick_id) != (other.yardstick, other.yardstick_id):
        same_name = first.yardstick == other.yardstick
        reasons.append(
            f"the yardstick {other.yardstick} has changed" if same_name else f"another yardstick ({other.yardstick})"
        )
    if first.against_baseline and first.baseline_id != other.baseline_id:
        reasons.append("judged against another baseline")
    ours, theirs = first.sampling, other.sampling
    keys = [key for key in sorted({*ours, *theirs} - {"seed"}) if ours.get(key) != theirs.get(key)]
    if keys:
        reasons.append("other sampling (" + ", ".join(f"{k} {ours.get(k)} and {theirs.get(k)}" for k in keys) + ")")
    return reasons


@dataclass(frozen=True)
class Comparable:
    """Evaluations that can be compared, and the outcomes of their policies."""

    evaluations: Mapping[str, Evaluation]
    """by name"""
    members: Sequence[Member]
    teams: Mapping[str, Sequence[Member]]
    """by policy: its seeds"""
    prompts: Sequence[str]
    scores: Mapping[str, Array]
    """by policy, shape (seeds, prompts)"""
    outcomes: Array
    """of every policy against every other, shape (policies, policies, prompts)"""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Each pair of policies once."""
        return list(itertools.combinations(range(len(self.teams)), 2))

    def p_values(self) -> list[float]:
        """The p-value of each pair, not corrected."""
        return [share_p_value(self.outcomes[i, j]) for i, j in self.pairs]


def find_comparable(evaluations: Mapping[str, Evaluation], groups: Mapping[str, str]) -> list[Comparable]:
    """The sets of comparable evaluations, the one with most policies first.

    Args:
        evaluations: by name.
        groups: of runs, by id.
    """
    sets: list[dict[str, Evaluation]] = []
    for name, one in evaluations.items():
        home = next((comparable for comparable in sets if not unlike(next(iter(comparable.values())), one)), None)
        if home is None:
            sets.append({name: one})
        else:
            home[name] = one
    sets.sort(key=lambda comparable: -sum(len(one.policies) for one in comparable.values()))
    return [_measure(comparable, groups) for comparable in sets]


def _measure(evaluations: Mapping[str, Evaluation], groups: Mapping[str, str]) -> Comparable:
    members = members_of(evaluations)
    prompts = sorted(next(iter(evaluations.values())).prompt_ids)
    teams: dict[str, list[Member]] = {}
    for member in members:
        teams.setdefault(groups.get(member.identity) or model_name(member), []).append(member)
    scores = {name: np.stack([one.scores(prompts) for one in team]) for name, team in teams.items()}
    return Comparable(evaluations, members, teams, prompts, scores, all_outcomes(list(scores.values())))


@dataclass(frozen=True)
class Corrected:
    """The p-values of a report, corrected together (Holm)."""

    pairs: Sequence[Sequence[float]]
    """of each set of comparable evaluations: its `pairs`"""
    further: Mapping[tuple[str, str, str], float]
    """(evaluation, policy, further yardstick) → that of its comparison with the baseline"""

    @property
    def comparisons(self) -> int:
        return sum(map(len, self.pairs)) + len(self.further)


def correct(sets: Sequence[Comparable]) -> Corrected:
    """Correct the p-values of all comparisons, so that a false verdict among them is as rare as in a single comparison."""
    pairs = [one.p_values() for one in sets]
    further = {
        (where, name, yardstick): Outcomes(**row["outcomes"]).p_value
        for comparable in sets
        for where, one in comparable.evaluations.items()
        for name in one.policies
        for yardstick, row in one.yardstick_rows(name).items()
        if "outcomes" in row and yardstick != one.first_source
    }
    adjusted = iter(holm([*itertools.chain.from_iterable(pairs), *further.values()]))
    return Corrected([[next(adjusted) for _ in own] for own in pairs], dict(zip(further, adjusted, strict=True)))


def make_fields(
    sets: Sequence[Comparable],
    corrected: Corrected,
    stages: Mapping[str, str],
    names: Mapping[str, str],
    most_samples: int,
) -> list[Field]:
    """A field for each set of comparable evaluations.

    Args:
        stages, names: of runs, by id.
    """
    fields = []
    for comparable, p_values in zip(sets, corrected.pairs, strict=True):
        first, own = (next(iter(one.evaluations.values())) for one in (sets[0], comparable))
        field = make_field(comparable, p_values, stages, names, most_samples if comparable is sets[0] else 0)
        fields.append(field.model_copy(update={"unlike": [] if comparable is sets[0] else unlike(first, own)}))
    return fields


def members_of(evaluations: Mapping[str, Evaluation]) -> list[Member]:
    """Every policy, each draw once: the same policy sampled with the same seed has the same answers."""
    found: dict[tuple[str, str], Member] = {}
    for where, one in evaluations.items():
        for name in one.policies:
            member = member_of(title_of(where, name, evaluations), one, name)
            found.setdefault((member.identity, str(member.seed)), member)
    return list(found.values())


def title_of(where: str, name: str, evaluations: Collection[str]) -> str:
    """A policy's name on a page; with that of its evaluation, unless there is no other.

    >>> title_of("evaluate", "dpo", ["evaluate"]), title_of("evaluate", "dpo", ["evaluate", "evaluate-2"])
    ('DPO', 'evaluate: DPO')
    """
    return label(name) if len(evaluations) == 1 else f"{where}: {label(name)}"


def member_of(title: str, evaluation: Evaluation, name: str) -> Member:
    """One policy."""
    by_prompt: dict[str, list[ReadAnswer]] = {}
    for answer in evaluation.answers:
        if answer.policy == name:
            by_prompt.setdefault(answer.prompt_id, []).append(answer)
    seed = (evaluation.manifest.get("config") or {}).get("seed")
    return Member(title, name, identity_of(evaluation, name), seed, by_prompt)


def identity_of(evaluation: Evaluation, policy: str) -> str:
    """The id of an evaluated policy's run, or the model's name."""
    inputs = evaluation.manifest["inputs"]
    recorded = inputs.get(f"policy_{policy}") or inputs.get(f"policies.{policy}")
    return str(recorded["id"]) if recorded else evaluation.policies[policy].id or policy


def make_field(
    comparable: Comparable,
    p_values: Sequence[float],
    stages: Mapping[str, str],
    names: Mapping[str, str],
    most_samples: int,
) -> Field:
    """What comparable evaluations show.

    Args:
        p_values: corrected, in the order of its `pairs`.
    """
    teams, scores, prompts = comparable.teams, comparable.scores, comparable.prompts
    first = next(iter(comparable.evaluations.values()))
    ratings = bradley_terry(comparable.outcomes) if len(teams) > 1 else None
    policies = []
    for at, (name, team) in enumerate(teams.items()):
        interval = ratings.interval(at) if ratings else None
        policies.append(
            describe(name, team, scores[name], stages, names).model_copy(
                update={
                    "rating": float(ratings.values[at]) * ELO if ratings else None,
                    "rating_interval": (interval[0] * ELO, interval[1] * ELO) if interval else None,
                }
            )
        )
    baselines = [one for one in comparable.members if one.name == first.baseline]
    baseline = next((name for name, team in teams.items() if baselines and baselines[0] in team), None)
    return Field(
        evaluations=list(comparable.evaluations),
        yardstick=first.yardstick_name,
        yardstick_scale=first.yardstick_scale,
        against_baseline=first.against_baseline,
        prompts=len(prompts),
        sampling=first.sampling,
        baseline=baseline,
        policies=sorted(policies, key=lambda one: -(one.rating or 0.0)),
        matches=all_matches(comparable, p_values),
        noise=noise_of(comparable.members, prompts),
        samples=choose_samples(teams, scores, prompts, most_samples),
    )


def model_name(member: Member) -> str:
    """A model without a run, by its last name."""
    return member.identity.partition("#")[0].rpartition("/")[2].rpartition(":")[2] or label(member.name)


def describe(
    name: str, team: Sequence[Member], scores: Array, stages: Mapping[str, str], names: Mapping[str, str]
) -> Policy:
    def spread(values: Sequence[float | None]) -> Spread | None:
        found = [value for value in values if value is not None]
        return spread_of(found) if len(found) == len(values) else None

    answers = [one.every_answer() for one in team]
    per_prompt = scores.mean(axis=0)
    return Policy(
        name=name,
        stage=stages.get(team[0].identity, ""),
        members=[one.title for one in team],
        runs=list(dict.fromkeys(names[one.identity] for one in team if one.identity in names)),
        yardstick=spread_of(map(float, scores.mean(axis=1))),
        yardstick_interval=mean_interval(list(map(float, per_prompt))),
        length=spread_of(_mean([a.length_tokens for a in rows]) for rows in answers),
        unfinished=spread_of(_mean([not a.finished for a in rows]) for rows in answers),
        repetition=spread_of(_mean([repeated_share(a.text) for a in rows]) for rows in answers),
        refusals=spread_of(_mean([refuses(a.text) for a in rows]) for rows in answers),
        score=spread([_mean_if_all([a.score for a in rows]) for rows in answers]),
        kl=spread([_mean_if_all([a.kl for a in rows]) for rows in answers]),
        kl_interval=kl_interval(team),
    )


def kl_interval(team: Sequence[Member]) -> tuple[float, float] | None:
    """The 95% interval of the mean KL over prompts; None where it was not measured, or is exactly 0."""
    rows = [[answer.kl for one in team for answer in one.answers.get(prompt, ())] for prompt in team[0].answers]
    values = [_mean_if_all(row) for row in rows]
    found = [value for value in values if value is not None]
    return bootstrap_interval(found) if len(found) == len(values) > 1 and any(found) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_if_all(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return _mean(found) if found and len(found) == len(values) else None


# --- matches ---


def all_outcomes(scores: Sequence[Array]) -> Array:
    """Outcomes of every policy against every other, shape (policies, policies, prompts): the mean over pairs of seeds."""
    count, prompts = len(scores), scores[0].shape[1]
    outcomes = np.full((count, count, prompts), 0.5)
    for i, j in itertools.combinations(range(count), 2):
        outcomes[i, j] = outcomes_of(scores[i][:, None], scores[j][None, :]).mean(axis=(0, 1))
        outcomes[j, i] = 1.0 - outcomes[i, j]
    return outcomes


def all_matches(comparable: Comparable, p_values: Sequence[float]) -> list[Match]:
    """Every policy against every other, both ways.

    Args:
        p_values: corrected, in the order of its `pairs`.
    """
    teams, scores, outcomes = comparable.teams, comparable.scores, comparable.outcomes
    names = list(teams)
    lengths = [np.mean([one.lengths(comparable.prompts) for one in team], axis=0) for team in teams.values()]
    matches = []
    for (i, j), p_value in zip(comparable.pairs, p_values, strict=True):
        of_seeds = outcomes_of(scores[names[i]][:, None], scores[names[j]][None, :]).mean(axis=2)
        several = of_seeds.size > 1
        for one, other, seeds in ((i, j, of_seeds), (j, i, 1 - of_seeds)):
            found = judge(outcomes[one, other], p_value)
            controlled, interval = length_controlled(outcomes[one, other], lengths[one], lengths[other])
            matches.append(
                Match(
                    policy=names[one],
                    other=names[other],
                    win_rate=found.win_rate,
                    interval=found.interval,
                    p_value=p_value,
                    outcome=found.outcome,
                    more=found.more,
                    length_controlled=controlled,
                    length_controlled_interval=interval,
                    seeds_low=float(seeds.min()) if several else None,
                    seeds_high=float(seeds.max()) if several else None,
                )
            )
    return matches


def noise_of(members: Sequence[Member], prompts: Sequence[str]) -> list[Noise]:
    """Every policy that was sampled with several seeds, against itself: the first two draws."""
    rows = []
    for identity in dict.fromkeys(one.identity for one in members):
        draws = [one for one in members if one.identity == identity]
        if len(draws) < 2:
            continue
        first, second = draws[0].scores(prompts), draws[1].scores(prompts)
        outcomes = outcomes_of(first, second)
        rows.append(
            Noise(
                policy=draws[0].title,
                seeds=[one.seed for one in draws[:2]],
                win_rate=float(outcomes.mean()),
                interval=share_interval(outcomes),
                tied=float((outcomes == 0.5).mean()),
                difference=abs(float(first.mean() - second.mean())),
            )
        )
    return rows


# --- samples, and reward against KL ---


def choose_samples(
    teams: Mapping[str, Sequence[Member]], scores: Mapping[str, Array], prompts: Sequence[str], most: int
) -> list[Sample]:
    """At most `most` prompts: those on which policies differ most, alternating with random ones (ids are hashes)."""
    spread = np.ptp(np.stack([one.mean(axis=0) for one in scores.values()]), axis=0)
    apart = sorted(range(len(prompts)), key=lambda at: (-spread[at], prompts[at]))
    order = dict.fromkeys(at for pair in zip(range(len(prompts)), apart, strict=True) for at in pair)
    samples: list[Sample] = []
    size = 0
    for at in itertools.islice(order, most):
        sample = _sample(teams, prompts[at])
        size += sum(2 * len(answer.text.encode()) + 400 for answer in sample.answers.values())
        if size > SAMPLE_BYTES:
            break
        samples.append(sample)
    return samples


def _sample(teams: Mapping[str, Sequence[Member]], prompt: str) -> Sample:
    answers = {name: team[0].answers[prompt][0] for name, team in teams.items()}
    messages = next(iter(answers.values())).messages
    return Sample(
        prompt_id=prompt,
        messages=[{"role": message.role, "text": message.text} for message in messages],
        answers={
            name: Answer(
                text=one.text,
                value=one.yardstick_score,
                score=one.score,
                tokens=one.length_tokens,
                finished=one.finished,
            )
            for name, one in answers.items()
        },
    )


def evaluated_trails(
    evaluations: Mapping[str, Evaluation], names: Mapping[str, str]
) -> dict[tuple[str, str], list[KLTrail]]:
    """(reward model, reference) → the evaluated policies' scores and KL.

    Args:
        names: of runs, by id.
    """
    trails: dict[tuple[str, str], list[KLTrail]] = {}
    for where, one in evaluations.items():
        judged = reward_model_id(one)
        if judged is None or one.baseline not in one.policies:
            continue
        mine = trails.setdefault((judged, identity_of(one, one.baseline)), [])
        for name, row in one.policies.items():
            if row.score_mean is None or row.kl_per_sequence is None:
                continue
            point = KLPoint(kl=row.kl_per_sequence, score=row.score_mean, interval=row.score_interval)
            run = names.get(identity_of(one, name))
            mine.append(KLTrail(name=title_of(where, name, evaluations), run=run, points=[point], kind="evaluated"))
    return trails

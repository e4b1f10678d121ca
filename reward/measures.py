"""Figures of the report: accuracy, slices, calibration, ensemble spread, and adversarial answers.

Intervals are 95%, over prompts: several pairs of one prompt are not independent.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward.calibration import correctness, cross_fitted, fit_temperature, measured
from reward.examples import EncodedPreference
from reward.garbage import WHAT, Garbage
from reward.provenance import Origin, Vote
from tiebreak.measures.statistics import clustered_interval
from tiebreak.page.numbers import percent
from tiebreak.records import Preference

WORST = 8
HIGHEST = 8
LENGTHS = (1 / 1.5, 1 / 1.1, 1.1, 1.5)
"""Boundaries of chosen tokens ÷ rejected tokens between the length slices."""
LENGTH_NAMES = (
    "chosen much shorter (÷1.5)",
    "chosen shorter (÷1.1)",
    "as long, within a tenth",
    "chosen longer (×1.1)",
    "chosen much longer (×1.5)",
)
SPREAD_PARTS = 4


@dataclass(frozen=True)
class ScoredPair:
    """A held-out preference with its answers' scores, one per member of the ensemble."""

    example: EncodedPreference
    chosen: tuple[float, ...]
    rejected: tuple[float, ...]

    @property
    def difference(self) -> float:
        return statistics.fmean(self.chosen) - statistics.fmean(self.rejected)

    @property
    def spread(self) -> float:
        """Standard deviation of chosen − rejected over the members."""
        return statistics.pstdev([c - r for c, r in zip(self.chosen, self.rejected, strict=True)])

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of chosen and rejected."""
        return len(self.example.chosen), len(self.example.rejected)


@dataclass(frozen=True)
class ScoredGarbage:
    """An adversarial answer, its score, and the pair whose prompt it answers."""

    garbage: Garbage
    score: float
    pair: ScoredPair


def build_figures(pairs: Sequence[ScoredPair], garbage: Sequence[ScoredGarbage], origin: Origin) -> dict[str, Any]:
    """All of report.json except its headline and origin. `pairs` must not be empty."""
    scores = [statistics.fmean(side) for pair in pairs for side in (pair.chosen, pair.rejected)]
    longer = correctness([float(chosen - rejected) for chosen, rejected in (pair.lengths for pair in pairs)])
    right = share([_right(pair) for pair in pairs], _groups(pairs))
    return {
        "accuracy": right["accuracy"],
        "accuracy_interval": right["interval"],
        "n": len(pairs),
        "prompts": right["prompts"],
        "length_baseline": statistics.fmean(longer),
        "length_baseline_interval": clustered_interval(longer, _groups(pairs)),
        "first_answer_baseline": first_answer_baseline(pairs, origin.votes),
        "score_mean": statistics.fmean(scores),
        "score_std": statistics.pstdev(scores),
        "kinds": sorted({pair.example.source.kind for pair in pairs}),
        "slices": slices(pairs, origin),
        "raters": raters(pairs, origin.votes),
        "calibration": calibration(pairs),
        "spread": spread_against_error(pairs),
        "worst": worst(pairs),
        "garbage": garbage_figures(garbage),
    }


def _right(pair: ScoredPair) -> float:
    return correctness([pair.difference])[0]


def _groups(pairs: Sequence[ScoredPair]) -> list[str]:
    return [pair.example.group for pair in pairs]


def share(values: Sequence[float], groups: Sequence[str]) -> dict[str, Any]:
    """A share with its interval and n."""
    return {
        "n": len(values),
        "prompts": len(set(groups)),
        "accuracy": statistics.fmean(values),
        "interval": clustered_interval(values, groups),
    }


# --- baselines and raters ---


def first_answer_baseline(pairs: Sequence[ScoredPair], votes: Sequence[Vote]) -> dict[str, Any] | None:
    """How often the answer shown first was preferred: the accuracy of always choosing it; None if unknown."""
    pair_of_key = {_key(pair.example.source): pair for pair in pairs}
    held_out = [(vote, pair_of_key[key]) for vote in votes if (key := _vote_key(vote)) in pair_of_key]
    if not held_out:
        return None
    return share([float(vote.first_was_better) for vote, _ in held_out], _groups([pair for _, pair in held_out]))


def raters(pairs: Sequence[ScoredPair], votes: Sequence[Vote]) -> list[dict[str, Any]]:
    """Agreement of the model with each rater: with the rater's own votes if available (`of` "votes"), otherwise with the
    preferences that the rater contributed to (`of` "preferences")."""
    pair_of_key = {_key(pair.example.source): pair for pair in pairs}
    cast: dict[str, list[tuple[float, str]]] = {}
    for vote in votes:
        pair = pair_of_key.get(_vote_key(vote))
        if pair is not None:
            right = _right(pair) if vote.better == pair.example.source.chosen_text else 1.0 - _right(pair)
            cast.setdefault(vote.rater, []).append((right, pair.example.group))
    of = "votes" if cast else "preferences"
    if not cast:
        for pair in pairs:
            for rater in pair.example.source.raters or ():
                cast.setdefault(rater, []).append((_right(pair), pair.example.group))
    return [
        {"rater": rater, "of": of, **share([v for v, _ in rows], [g for _, g in rows])}
        for rater, rows in sorted(cast.items())
    ]


Key = tuple[str, frozenset[str]]


def _key(preference: Preference) -> Key:
    return preference.pair_id or "", frozenset((preference.chosen_text.strip(), preference.rejected_text.strip()))


def _vote_key(vote: Vote) -> Key:
    return vote.pair_id, frozenset((vote.better.strip(), vote.worse.strip()))


# --- slices ---


def slices(pairs: Sequence[ScoredPair], origin: Origin) -> list[dict[str, Any]]:
    """Accuracy by properties of a pair; a slice with all pairs is uninformative and left out."""
    by: list[tuple[str, Callable[[ScoredPair], Iterable[str]], Sequence[str]]] = [
        ("Strength of the preference", lambda p: (_strength(p.example.source),), _STRENGTHS),
        ("Agreement of the raters", lambda p: (_agreement(p.example.source),), _AGREEMENTS),
        ("Length of the answers", lambda p: (_length(p),), LENGTH_NAMES),
        ("Tag of the prompt", lambda p: _tags(p, origin), ()),
        ("Source of the prompt", lambda p: (_source(p, origin),), ()),
        ("Kind of rater", lambda p: (p.example.source.kind,), ()),
    ]
    found = []
    for name, values_of, order in by:
        parts: dict[str, list[ScoredPair]] = {}
        for pair in pairs:
            for value in values_of(pair):
                parts.setdefault(value, []).append(pair)
        if len(parts) > 1:
            ordered = sorted(parts, key=lambda value: (order.index(value) if value in order else len(order), value))
            rows = [{"value": v, **share([_right(p) for p in parts[v]], _groups(parts[v]))} for v in ordered]
            found.append({"name": name, "rows": rows})
    return found


_STRENGTHS = ("slightly better", "better", "much better", "not asked")
_AGREEMENTS = ("all of them", "three quarters or more", "fewer", "not known")


def _strength(preference: Preference) -> str:
    if preference.strength is None:
        return _STRENGTHS[-1]
    return _STRENGTHS[min(max(round(preference.strength), 1), 3) - 1]


def _agreement(preference: Preference) -> str:
    if preference.agreement is None:
        return _AGREEMENTS[-1]
    return _AGREEMENTS[0 if preference.agreement == 1 else 1 if preference.agreement >= 0.75 else 2]


def _length(pair: ScoredPair) -> str:
    chosen, rejected = pair.lengths
    return LENGTH_NAMES[sum(chosen > edge * rejected for edge in LENGTHS)]


def _tags(pair: ScoredPair, origin: Origin) -> tuple[str, ...]:
    prompt = origin.prompts.get(pair.example.group)
    return pair.example.source.tags or (prompt.tags if prompt else ()) or ("none",)


def _source(pair: ScoredPair, origin: Origin) -> str:
    prompt = origin.prompts.get(pair.example.group)
    return pair.example.source.source or (prompt.source if prompt else "") or "not stated"


# --- calibration and spread ---


def calibration(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Reliability of the raw scores, and after a temperature; see `reward.calibration`.

    `temperature` is fitted on all pairs, for later use; `after` is measured with temperatures from other prompts.
    """
    differences, groups = [pair.difference for pair in pairs], _groups(pairs)
    scaled = cross_fitted(differences, groups)
    return {
        "temperature": fit_temperature(differences),
        "before": measured(differences, groups),
        "after": measured(scaled, groups) if scaled is not None else None,
    }


def spread_against_error(pairs: Sequence[ScoredPair]) -> dict[str, Any] | None:
    """Whether an ensemble's disagreement predicts its errors; None for a model of one member.

    `auroc` is the probability that a wrong pair has a larger spread than a right one: ½ is uninformative.
    """
    if len(pairs[0].chosen) < 2:
        return None
    ordered = sorted(pairs, key=lambda pair: pair.spread)
    edges = [round(len(ordered) * part / SPREAD_PARTS) for part in range(SPREAD_PARTS + 1)]
    parts = [ordered[low:high] for low, high in itertools.pairwise(edges) if low < high]
    wrong = [pair.spread for pair in pairs if _right(pair) == 0]
    right = [pair.spread for pair in pairs if _right(pair) == 1]
    wins = sum(1.0 if w > r else 0.5 if w == r else 0.0 for w in wrong for r in right)
    return {
        "members": len(pairs[0].chosen),
        "auroc": wins / (len(wrong) * len(right)) if wrong and right else None,
        "parts": [
            {
                "spread_from": part[0].spread,
                "spread_to": part[-1].spread,
                **share([_right(pair) for pair in part], _groups(part)),
            }
            for part in parts
        ],
    }


# --- examples ---


def worst(pairs: Sequence[ScoredPair]) -> list[dict[str, Any]]:
    """The pairs with the largest scores of the rejected answer above the chosen one's."""
    wrong = sorted((pair for pair in pairs if pair.difference < 0), key=lambda pair: pair.difference)
    return [
        {
            "prompt": _prompt(pair.example),
            "chosen": pair.example.source.chosen_text,
            "rejected": pair.example.source.rejected_text,
            "chosen_score": statistics.fmean(pair.chosen),
            "rejected_score": statistics.fmean(pair.rejected),
            "spread": pair.spread,
            "strength": pair.example.source.strength,
            "agreement": pair.example.source.agreement,
        }
        for pair in wrong[:WORST]
    ]


def _prompt(example: EncodedPreference) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in example.source.prompt]


def garbage_figures(garbage: Sequence[ScoredGarbage]) -> dict[str, Any]:
    """Each kind of adversarial answer against the real answers to the same prompts, and the highest-scoring ones."""
    kinds = []
    for kind, what in WHAT.items():
        rows = [one for one in garbage if one.garbage.kind == kind]
        if rows:
            kinds.append({"kind": kind, "what": what, "n": len(rows), **_against_real(rows)})
    ordered = sorted(garbage, key=lambda one: one.score - statistics.fmean(one.pair.rejected), reverse=True)
    return {
        "kinds": kinds,
        "highest": [
            {
                "kind": one.garbage.kind,
                "prompt": _prompt(one.pair.example),
                "text": one.garbage.text,
                "score": one.score,
                "chosen": one.pair.example.source.chosen_text,
                "chosen_score": statistics.fmean(one.pair.chosen),
                "rejected_score": statistics.fmean(one.pair.rejected),
            }
            for one in ordered[:HIGHEST]
        ],
    }


def _against_real(rows: Sequence[ScoredGarbage]) -> dict[str, Any]:
    groups = [one.pair.example.group for one in rows]
    over_chosen = correctness([one.score - statistics.fmean(one.pair.chosen) for one in rows])
    over_rejected = correctness([one.score - statistics.fmean(one.pair.rejected) for one in rows])
    return {
        "score_mean": statistics.fmean(one.score for one in rows),
        "above_chosen": statistics.fmean(over_chosen),
        "above_chosen_interval": clustered_interval(over_chosen, groups),
        "above_rejected": statistics.fmean(over_rejected),
        "above_rejected_interval": clustered_interval(over_rejected, groups),
    }


# --- text ---


def headline(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The claims that the figures support, with their caveats."""
    n = figures["n"]
    claim = f"The reward model is right about {percent(figures['accuracy'])} of {n} held-out preference{'s'[: n != 1]}"
    return {"claim": claim, "caveats": list(_caveats(figures))}


def _caveats(figures: Mapping[str, Any]) -> Iterable[str]:
    low, high = figures["accuracy_interval"]
    if low <= 0.5:
        yield (
            f"It is not shown to be better than a coin: the 95% interval, {percent(low)} to {percent(high)}, holds 50%. "
            "Label more pairs, or train longer, before anything is optimised against it."
        )
    if figures["length_baseline"] >= low > 0.5:
        yield (
            f"Choosing the longer answer is right about {percent(figures['length_baseline'])}: that the model knows more "
            "than length is not shown."
        )
    liked = [kind for kind in figures["garbage"]["kinds"] if kind["above_rejected"] > 0.5]
    for kind in liked:
        yield (
            f"Adversarial answers of kind “{kind['kind']}” ({kind['what']}) score above the rejected answer to the same "
            f"prompt in {kind['above_rejected'] * kind['n']:.0f} of {kind['n']} cases: PPO may find it."
        )
    if "simulated" in figures["kinds"]:
        yield "The raters are simulated: this shows how well the model learned their rules, not what people want."

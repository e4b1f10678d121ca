"""Meaning of a preference's columns, the same in every stage that learns from it.

weight                weight of the pair (use_weights)
confidence, agreement probability that the chosen answer is the better one (soft_labels)
margin, strength      how much better it is (strength_as)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiebreak.errors import DataError
from tiebreak.records import MAX_STRENGTH, Preference
from tiebreak.terminal import say
from tiebreak.training.configuration import LabelSettings

TIE = 0.5
"""The probability that either answer of a kept tie is the better one."""
PSEUDO_VOTES = 0.5
"""Added to each side's votes, so that a single rater is not certain (Krichevsky and Trofimov 1981)."""


@dataclass(frozen=True)
class Label:
    """A pair's label for training."""

    margin: float = 0.0
    """required difference between the sides"""
    target: float = 1.0
    """the probability that the chosen answer is the better one"""
    weight: float = 1.0


def label_of(preference: Preference, settings: LabelSettings) -> Label:
    """A preference's label, with its raw weight."""
    return Label(_margin(preference, settings), _target(preference, settings), _weight(preference, settings))


def require_a_verdict(labels: Sequence[Label]) -> None:
    """Refuse training rows if none of them says which answer is better.

    Raises:
        DataError: every one that counts is a tie.
    """
    if labels and all(label.target == TIE for label in labels if label.weight):
        raise DataError(
            "every preference is a tie (strength 0, or a confidence of 0.5), so nothing says which answer is better: add "
            "decided ones"
        )


def is_tie(preference: Preference) -> bool:
    """Whether neither answer is better: a tie kept by the export has strength 0."""
    return preference.strength == 0


def _margin(preference: Preference, settings: LabelSettings) -> float:
    if settings.strength_as != "margin" or is_tie(preference):
        return 0.0
    if preference.margin is not None:
        return settings.margin_scale * preference.margin
    return margin_of(preference.strength, settings.margin_scale)


def _target(preference: Preference, settings: LabelSettings) -> float:
    """A kept tie is one whether or not labels are soft: neither side is better."""
    if is_tie(preference):
        return TIE
    if not settings.soft_labels:
        return 1.0
    if preference.confidence is not None:
        return max(preference.confidence, TIE)
    return target_of(preference.agreement, len(preference.raters) if preference.raters is not None else None)


def _weight(preference: Preference, settings: LabelSettings) -> float:
    weight = preference.weight if settings.use_weights else 1.0
    strength = preference.strength if settings.strength_as == "weight" else None
    return weight * (strength or 1.0)  # without a strength, or with a kept tie's strength of 0: once


def margin_of(strength: float | None, scale: float) -> float:
    """scale·s/3 for an answer better by strength s, 1 to 3; 0 if unknown.

    Touvron et al. 2023, Table 27: with scale 1, their small margins (1, 2/3, 1/3).
    """
    return scale * (strength or 0.0) / MAX_STRENGTH


def target_of(agreement: float | None, raters: int | None) -> float:
    """The probability that the chosen answer is the better one, from the share of raters who preferred it: (k + ½)/(n + 1).

    The share itself if their number n is unknown, and 1 if the share is unknown. Never below ½: with many ties, the winning
    side may have fewer than half of the votes, and still wins.
    """
    if agreement is None:
        return 1.0
    share = agreement if raters is None else (agreement * raters + PSEUDO_VOTES) / (raters + 2 * PSEUDO_VOTES)
    return max(share, TIE)


def mean_one(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weights divided by each member's mean, shape (rows, members), so that they do not change the learning rate.

    Over the whole set, not over a batch: a pair has the same weight in any batch.
    """
    with np.errstate(over="ignore"):
        means = weights.mean(axis=0, keepdims=True)
    if not np.isfinite(means).all():  # the sum is beyond a float
        return mean_one(weights / weights.max(axis=0, keepdims=True))
    return weights / np.where(means > 0, means, 1.0)


def report_unused_columns(preferences: Sequence[Preference], settings: LabelSettings) -> None:
    """Report columns of the preferences that the settings leave unused, with the keys that would use them; and settings
    that read columns which no preference has."""
    unused = unused_columns(preferences, settings)
    if unused:
        say(f"unused columns of the preferences: {unused}")
    for key, columns in absent_columns(preferences, settings).items():
        say(f"{key} has no effect: no preference has {columns}")


def absent_columns(preferences: Sequence[Preference], settings: LabelSettings) -> dict[str, str]:
    """Settings that read columns which no row has, with these columns."""
    found: dict[str, str] = {}
    if not preferences:
        return found
    if settings.strength_as == "margin" and all(p.margin is None and p.strength is None for p in preferences):
        found["strength_as: margin"] = "a margin or a strength"
    if settings.strength_as == "weight" and all(p.strength is None for p in preferences):
        found["strength_as: weight"] = "a strength"
    if settings.soft_labels and all(p.confidence is None and p.agreement is None for p in preferences):
        found["soft_labels: true"] = "a confidence or an agreement"
    return found


def unused_columns(preferences: Sequence[Preference], settings: LabelSettings) -> str:
    """Columns of the preferences that the settings leave unused, with the keys that would use them; empty if none."""
    unused: dict[str, str] = {}
    if settings.strength_as != "margin" and any(p.margin for p in preferences):
        unused["margin"] = "strength_as: margin"
    if settings.strength_as == "nothing" and any(p.strength for p in preferences):
        unused["strength"] = "strength_as: margin, or weight"
    if not settings.soft_labels and any(p.confidence not in (None, 1.0) and not is_tie(p) for p in preferences):
        unused["confidence"] = "soft_labels: true"
    if not settings.use_weights and len({p.weight for p in preferences}) > 1:
        unused["weight"] = "use_weights: true"
    return ", ".join(f"{column} ({key})" for column, key in unused.items())

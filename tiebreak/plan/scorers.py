"""Reward models beside a policy: on its weights as one more adapter, or as models of their own.

The rule is that of preference.policy.rewards.load_reward, applied to what the files of the runs say. A reward model that is
not there yet, and that no earlier stage of the recipe makes, is assumed to be an adapter on the policy's base weights; so
are all, where the policy is another model's shape (`tiebreak plan --model`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiebreak.config.adapter import METHODS
from tiebreak.plan.locate import PlannedModel, locate_model, pinned_facts
from tiebreak.plan.shape import Shape

ANOTHER_FORMAT = "another number format"


@dataclass(frozen=True)
class Scorer:
    """A reward model that a stage holds."""

    name: str
    model: PlannedModel
    apart: str = ""
    """why it has weights of its own; empty: it is an adapter on the policy's"""
    is_assumed: bool = False
    """whether its base and adapter are not known, and so taken to be the policy's"""

    @property
    def shape(self) -> Shape:
        """Its sizes."""
        return self.model.shape


def scorers_of(config: Any, policy: PlannedModel, made: Mapping[str, PlannedModel]) -> tuple[Scorer, ...]:
    """The reward models that a stage's configuration names, the guard's among them.

    Args:
        policy: as the stage trains it.
        made: models of earlier stages of a recipe, by output folder.

    Raises:
        ModelError: a finished reward model's base is not there.
    """
    found = []
    for name in _names(config):
        model = made.get(folder_of(name))
        if model is None and policy.base and pinned_facts(name):
            model = locate_model(name)
        found.append(Scorer(name, model or policy, _why_apart(model or policy, policy), model is None))
    return tuple(found)


def folder_of(name: str) -> str:
    """A run's folder as one spelling."""
    return str(Path(name)) if "://" not in name else name


def _names(config: Any) -> Iterator[str]:
    for reward in getattr(config, "all_rewards", ()):
        if reward.model is not None:
            yield reward.model
    guard = getattr(config, "guard", None)
    if guard is not None:
        yield guard.reward_model


def _why_apart(model: PlannedModel, policy: PlannedModel) -> str:
    mine, its = policy.adapter, model.adapter
    if "full" in (mine.method, its.method):
        return "whole weights"
    if "int8" in (mine.quantize, its.quantize):
        return "int8 weights"
    if (mine.quantize, mine.double_quantize) != (its.quantize, its.double_quantize):
        return ANOTHER_FORMAT
    if METHODS[its.method].virtual:
        return "virtual tokens"
    if not model.has_base_of(policy):
        return "another base"
    return "" if model.reads_as(policy) else "another tokenizer or template"

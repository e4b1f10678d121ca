"""A new LoRA adapter beside one that a policy brings (`adapter.start: stack`), saved as one LoRA on the unchanged base.

Two LoRA adapters on a layer add up, and their sum is a LoRA of both ranks. With the trained A, B of scale s and the
policy's A', B' of scale s',

    W x + s B A x + s' B' A' x  =  W x + s [B, (s'/s) B'] [A; A'] x,

so every stage computes, copies and mounts it as any LoRA. The second half never changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tiebreak.config import AdapterConfig
from tiebreak.errors import ConfigError, HandoffError
from tiebreak.models.adapters.adapter import DEFAULT, Adapter

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Part:
    """The LoRA of one layer."""

    a: Tensor
    """shape (rank, inputs)"""
    b: Tensor
    """shape (outputs, rank)"""
    scale: Fraction | float
    """of their product"""


def stack(policy: PeftModel, adapter: AdapterConfig, task: str, source: str) -> PeftModel:
    """The policy with a new adapter beside its own, which changes no answer yet.

    Args:
        policy: used up.

    Raises:
        ConfigError: the new one cannot be built, or the policy's is on other layers than linear ones.
        HandoffError: its outputs differ.
    """
    import peft

    wanted = Adapter(policy).answers()
    below = _parts(policy, source)
    new = Adapter.build(_unloaded(policy), adapter, task).model
    above, config = _parts(new, source), new.peft_config[DEFAULT]
    joined = {name: join(above.get(name), below.get(name)) for name in (*above, *(below.keys() - above.keys()))}
    if joined.keys() != above.keys():
        config.target_modules, config.exclude_modules = set(joined), None
    config.r, config.rank_pattern = _by_module({name: len(one.a) for name, one in joined.items()})
    alphas = {name: int(one.scale * len(one.a)) for name, one in joined.items()}
    config.lora_alpha, config.alpha_pattern = _by_module(alphas)
    stacked = Adapter(peft.get_peft_model(_unloaded(new), config))
    for name, layer in _layers(stacked.model).items():
        _fill(layer, joined[name], len(above[name].a) if name in above else 0)
    stacked.require_answers(wanted, f"adapter.start: stack on {source}")
    return stacked.model


def join(above: Part | None, below: Part | None) -> Part:
    """One LoRA of both, in the scale of the first. Rows of zeros make its alpha a whole number, as PEFT has it."""
    if below is None:
        assert above is not None
        return above
    if above is None:
        return Part(below.a, below.b * float(below.scale), Fraction(1))
    scale = Fraction(above.scale)
    more = -(len(above.a) + len(below.a)) % scale.denominator
    a = torch.cat([above.a, below.a.to(above.a), above.a.new_zeros(more, above.a.shape[1])])
    ratio = float(below.scale) / float(scale)
    b = torch.cat([above.b, below.b.to(above.b) * ratio, above.b.new_zeros(above.b.shape[0], more)], dim=1)
    return Part(a, b, scale)


def _layers(model: PeftModel) -> dict[str, Any]:
    """LoRA's layers, by their names in the base model."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer)}


def _parts(model: PeftModel, source: str) -> dict[str, Part]:
    parts = {}
    for name, layer in _layers(model).items():
        if DEFAULT not in layer.lora_A or not hasattr(layer.get_base_layer(), "in_features"):
            raise ConfigError(
                f"adapter.start: stack joins LoRA of linear layers, and that of {source} is on {name}, a "
                f"{type(layer.get_base_layer()).__name__}; start: merge can"
            )
        a, b = (module[DEFAULT].weight.detach().clone() for module in (layer.lora_A, layer.lora_B))
        exact = layer.scaling[DEFAULT] == layer.lora_alpha[DEFAULT] / len(a)
        scale = Fraction(layer.lora_alpha[DEFAULT]) / len(a) if exact else layer.scaling[DEFAULT]
        parts[name] = Part(a, b, scale)
    return parts


def _unloaded(model: PeftModel) -> nn.Module:
    """The base model as it was, without PEFT's layers."""
    base: nn.Module = model.unload()
    base.__dict__.pop("peft_config", None)
    return base


def _by_module(values: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """The most frequent value, and the modules that have another."""
    ((usual, _),) = Counter(values.values()).most_common(1)
    return usual, {name: value for name, value in values.items() if value != usual}


@torch.no_grad()
def _fill(layer: Any, joined: Part, trained: int) -> None:
    """Give a layer its values, and gradients to the first ones alone."""
    a, b = layer.lora_A[DEFAULT].weight, layer.lora_B[DEFAULT].weight
    if a.shape != joined.a.shape or b.shape != joined.b.shape:
        raise HandoffError(
            f"adapter.start: stack: PEFT made rank {len(a)}, not {len(joined.a)}; start: merge can be used"
        )
    a.copy_(joined.a)
    b.copy_(joined.b)
    if trained < len(a):
        a.register_hook(lambda grad: torch.cat([grad[:trained], torch.zeros_like(grad[trained:])]))
        b.register_hook(lambda grad: torch.cat([grad[:, :trained], torch.zeros_like(grad[:, trained:])], dim=1))

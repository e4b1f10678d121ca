"""Checks an adapter's target modules before it is built: a misspelt name would silently train less than requested.

PEFT adapts every module whose name ends in one of `target_modules`, or matches it if it is a pattern; a name without a
match goes unnoticed if another one matches.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tiebreak.config.adapter import ALL_LINEAR, METHODS, AdapterConfig
from tiebreak.errors import ConfigError

STATE_SPACES = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
"""Model types whose kernels read the weights of `READ_BY_KERNELS` directly, so PEFT refuses LoRA on them."""
READ_BY_KERNELS = ("out_proj", "conv1d")


def require_targets(model: nn.Module, adapter: AdapterConfig) -> None:
    """Refuse target modules that the model lacks, or whose adapter would not train.

    Args:
        model: the base model, before any adapter.

    Raises:
        ConfigError: names each of them, and the nearest modules that can be adapted.
    """
    require_blocks(model, adapter)
    targets = adapter.target_modules
    if targets == ALL_LINEAR:
        return
    modules = {name: module for name, module in model.named_modules() if name}
    faults = [
        fault
        for target in ([targets] if isinstance(targets, str) else targets)
        if (fault := _fault(model, target, modules, is_pattern=isinstance(targets, str)))
    ]
    if faults:
        raise ConfigError("adapter.target_modules: " + "; ".join(faults))


@dataclass(frozen=True)
class ModelLayers:
    """The layers of a base model, as adapter methods ask for them (`tiebreak.config.adapter.Layers`)."""

    model: nn.Module

    def left_out(self, adapter: AdapterConfig) -> list[str] | None:
        """Layers beside the head that `all-linear` leaves out, since PEFT cannot adapt them: the ends of their names."""
        if adapter.target_modules != ALL_LINEAR:
            return None
        names = {name for name, _ in self.model.named_modules()}
        found = {
            ".".join(name.split(".")[-2:])
            for name, module in self.model.named_modules()
            if _is_more_than_linear(module)
        }
        if getattr(self.model.config, "model_type", None) in STATE_SPACES:
            found |= {name for name in READ_BY_KERNELS if name in {each.rpartition(".")[2] for each in names}}
        return sorted(found) or None

    def linear_names(self, excluded: Sequence[str]) -> list[str]:
        """Full names of the linear layers other than the head, without those whose names end in one of `excluded`."""
        head = output_head(self.model)
        return [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear)
            and module is not head
            and not any(_matches(end, name, is_pattern=False) for end in excluded)
        ]

    def norm_names(self) -> list[str]:
        """Full names of the norms: modules whose only weights are vectors, and whose class is called so."""
        names = [
            name
            for name, module in self.model.named_modules()
            if "norm" in type(module).__name__.lower()
            and (weights := list(module.parameters()))
            and all(weight.ndim == 1 for weight in weights)
        ]
        if not names:
            raise ConfigError(
                f"adapter.method: {type(self.model).__name__} has no norms with weights, so norms trains nothing; lora can"
            )
        return names

    def inner_targets(self, targets: str | Sequence[str]) -> list[str]:
        """Those of the targets that read an MLP's inner activations: layers of more inputs than outputs, which are the
        hidden states. Of a pattern, the last parts of the names that it matches."""
        hidden = self.model.config.get_text_config().hidden_size
        inner = [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == hidden < module.in_features
        ]
        if isinstance(targets, str):
            return sorted({name.rpartition(".")[2] for name in inner if _matches(targets, name, is_pattern=True)})
        return [target for target in targets if any(_matches(target, name, is_pattern=False) for name in inner)]


def require_blocks(model: nn.Module, adapter: AdapterConfig) -> None:
    """Refuse a size of rotated blocks that does not divide the layers' inputs: PEFT would take another silently.

    Raises:
        ConfigError: names a layer, and the nearest size that divides all.
    """
    size = METHODS[adapter.method].block_size_of(adapter)
    if size is None:
        return
    targets = adapter.target_modules
    each = [targets] if isinstance(targets, str) else targets
    head = output_head(model)
    inputs = {
        name: module.in_features
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and (targets == ALL_LINEAR or any(_matches(one, name, isinstance(targets, str)) for one in each))
    }
    odd = {name: width for name, width in inputs.items() if width % size}
    if odd:
        name, width = next(iter(odd.items()))
        shared = math.gcd(*inputs.values())
        able = [number for number in range(2, shared + 1) if shared % number == 0]
        nearest = min(able, key=lambda number: abs(number - size)) if able else None
        raise ConfigError(
            f"adapter.block_size: {size} does not divide the {width} inputs of {name}; "
            + (f"{nearest} divides those of all layers" if nearest else "name layers whose inputs it divides")
        )


@torch.no_grad()
def _is_more_than_linear(module: nn.Module) -> bool:
    """Whether an architecture's own linear layer returns anything but one tensor, as a router of experts may."""
    own = type(module).__module__.startswith(("transformers.models.", "transformers_modules."))
    if not isinstance(module, nn.Linear) or not own or module.weight.is_meta:
        return False
    try:
        return not isinstance(module(module.weight.new_zeros(1, module.in_features)), torch.Tensor)
    except (TypeError, ValueError, RuntimeError):
        return True


def _fault(model: nn.Module, target: str, modules: dict[str, nn.Module], *, is_pattern: bool) -> str:
    """The error of one target; empty if there is none."""
    try:
        matched = [name for name in modules if _matches(target, name, is_pattern)]
    except re.error as error:
        return f"{target!r} is not a regular expression: {error}"
    if not matched:
        pattern = ", as a pattern for whole names (give a list for names)" if is_pattern else ""
        return f"{type(model).__name__} has no module {target!r}{pattern}; {_nearest(target, modules)}"
    blocks = [name for name in matched if not is_layer(modules[name])]
    if blocks:
        inside = [name.removeprefix(f"{blocks[0]}.") for name in modules if name.startswith(f"{blocks[0]}.")]
        layers = sorted({name for name in inside if is_layer(modules[f"{blocks[0]}.{name}"])})
        kind = type(modules[blocks[0]]).__name__
        return f"{target!r} names {blocks[0]}, a {kind}, which is not a single layer" + (
            f"; its layers are {', '.join(layers[:12])}" if layers else f"; {_nearest(target, modules)}"
        )
    heads = [name for name in matched if modules[name] in (output_head(model), getattr(model, "score", None))]
    if heads and heads[0] == "score":
        return f"{target!r} is the score head, which is trained in full anyway; leave it out"
    if heads:
        return (
            f"{target!r} names {heads[0]}, the language-model head: log-probabilities are computed from its frozen "
            "weights, so an adapter there would not train; leave it out"
        )
    return ""


def _matches(target: str, name: str, is_pattern: bool) -> bool:
    """PEFT's matching rule."""
    if is_pattern:
        return re.fullmatch(target, name) is not None
    return name == target or name.endswith(f".{target}")


def _nearest(target: str, modules: dict[str, nn.Module]) -> str:
    names = layer_names(modules)
    last = target.rpartition(".")[2]
    near = difflib.get_close_matches(last, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"its layers are {', '.join(names[:20])}"


def layer_names(modules: dict[str, nn.Module]) -> Sequence[str]:
    """The distinct last parts of the names of adaptable modules."""
    return sorted({name.rpartition(".")[2] for name, module in modules.items() if is_layer(module)} - {"0"})


def is_layer(module: nn.Module) -> bool:
    """Whether LoRA can adapt a module."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv2d | Conv1D)


def require_frozen_head(model: nn.Module, name: str) -> None:
    """Refuse to continue an adapter on the language-model head, which would not train.

    Args:
        model: with its adapters, with or without PEFT's wrapper.

    Raises:
        ConfigError: it has one.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(output_head(model), BaseTunerLayer):
        raise ConfigError(
            f"{name} has an adapter on its language-model head, which no stage here trains: merge it into the base model, "
            "and start from that"
        )


def output_head(model: nn.Module) -> nn.Module | None:
    """The language-model head, with or without an adapter."""
    get = getattr(model, "get_output_embeddings", None)
    head: nn.Module | None = get() if get is not None else None
    return head

"""Several adapters on one set of base weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tiebreak.models.adapters import belongs_to
from tiebreak.models.load import active_adapter
from tiebreak.upstream import adapters_off

if TYPE_CHECKING:
    from peft import PeftModel

POLICY, REFERENCE = "default", "reference"


def copy_adapter(lm: PeftModel, source: str, name: str) -> None:
    """Add an adapter `name` with a copy of `source`'s weights."""
    lm.add_adapter(name, lm.peft_config[source])
    copy_weights(lm, source, name)


def copy_weights(lm: PeftModel, source: str, name: str) -> None:
    """Copy `source`'s weights to the adapter `name`."""
    parameters = dict(lm.named_parameters())
    with torch.no_grad():
        for key, parameter in parameters.items():
            if belongs_to(key, name):
                parameter.copy_(parameters[".".join(source if part == name else part for part in key.split("."))])


def train_only(lm: PeftModel, name: str) -> None:
    """Activate an adapter, without gradients for any other."""
    lm.set_adapter(name)
    for key, parameter in lm.named_parameters():
        parameter.requires_grad_(belongs_to(key, name))


def _are_shared(lm: PeftModel, weights: Sequence[Tensor]) -> bool:
    """Whether another module shares one of these, as an embedding tied to the head does."""
    wanted = {id(weight) for weight in weights}
    users = Counter(
        id(parameter)
        for module in lm.modules()
        for parameter in module.parameters(recurse=False)
        if id(parameter) in wanted
    )
    return any(count > 1 for count in users.values())


@contextmanager
def merged_adapter(lm: PeftModel, name: str) -> Iterator[None]:
    """Within, compute with the adapter added to the weights, which saves its matrix products; afterwards restore them.

    The original weights are set aside, not recomputed by subtraction, so nothing is lost to rounding. Only where that is
    exact to rounding and possible: in float32, with weights that are neither quantised, sharded nor shared; elsewhere the
    adapter is active.
    """
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in lm.modules() if isinstance(module, BaseTunerLayer)]
    exact = all(
        isinstance(layer, Linear) and not layer.lora_variant and not layer.lora_bias.get(name) for layer in layers
    )
    weights = [layer.get_base_layer().weight for layer in layers] if exact else []
    at_hand = all(w.dtype == torch.float32 and not hasattr(w, "ds_id") for w in weights)
    if not weights or not at_hand or _are_shared(lm, weights):
        with active_adapter(lm, name):
            yield
        return
    before = [weight.data for weight in weights]
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            weight.data = weight.data + layer.get_delta_weight(name)
    try:
        with adapters_off(layers):
            yield
    finally:
        for weight, data in zip(weights, before, strict=True):
            weight.data = data


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the parameters that train."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]

"""The adapters that a policy's model holds, by their names (tiebreak.models.adapters.adapter)."""

from __future__ import annotations

from torch import nn

from tiebreak.models.adapters.adapter import DEFAULT

POLICY, REFERENCE = DEFAULT, "reference"


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the parameters that train."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def has_adapters(model: nn.Module) -> bool:
    """Whether a model is PEFT's, with frozen base weights; otherwise its own weights train."""
    return hasattr(model, "peft_config")

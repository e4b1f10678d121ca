"""The adapters that a policy's model holds, by their names (tiebreak.models.adapters.adapter)."""

from __future__ import annotations

from torch import nn

from tiebreak.models.adapters.adapter import DEFAULT

POLICY, REFERENCE = DEFAULT, "reference"


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the parameters that train."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]

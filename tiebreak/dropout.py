"""Training without dropout, where a policy is compared with itself as it was, or two answers with one another.

TRL switches off modules that drop out. Many architectures drop by a function instead, at a rate that a module or the
configuration holds: OPT, Seed-OSS, and every attention.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


def switch_off_dropout(model: nn.Module) -> None:
    """Let nothing of a model drop out from now on."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
    for holder in (*model.modules(), *configs.values()):
        for name, value in list(vars(holder).items()):
            if isinstance(value, float) and "drop" in name:
                setattr(holder, name, 0.0)

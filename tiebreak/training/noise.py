"""Training without noise, where a policy is compared with itself as it was, or two answers with one another.

TRL switches off modules that drop out. Many architectures drop by a function instead, at a rate that a module or the
configuration holds: OPT, Seed-OSS, and every attention. Routers of experts add noise to what they choose by.
"""

from __future__ import annotations

import types

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


def switch_off_noise(model: nn.Module) -> None:
    """Let nothing of a model drop out, and no router draw at random, from now on."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        if any("jitter" in name for name in vars(module)):
            module.eval()  # a rate may also be a threshold, which stays
            module.__dict__["train"] = types.MethodType(_stay, module)
    for holder in (*model.modules(), *configs.values()):
        for name, value in list(vars(holder).items()):
            if isinstance(value, float) and "drop" in name:
                setattr(holder, name, 0.0)


def _stay(module: nn.Module, *_: object) -> nn.Module:
    """In place of a module's `train`: it stays in evaluation mode."""
    return module

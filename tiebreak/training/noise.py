"""Training without noise, where a policy is compared with itself as it was, or two answers with one another.

TRL switches off modules that drop out. Many architectures drop by a function instead, at a rate that a module or the
configuration holds: OPT, Seed-OSS, and every attention. Routers of experts add noise to what they choose by.
"""

from __future__ import annotations

from torch import nn

from tiebreak.upstream import keep_in_evaluation

DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


def switch_off_noise(model: nn.Module) -> None:
    """Let nothing of a model drop out, and no router draw at random, from now on."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    for module in model.modules():
        if isinstance(module, DROPOUTS):
            module.p = 0.0
        if any("jitter" in name for name in vars(module)):
            keep_in_evaluation(module)  # a rate may also be a threshold, which stays
    for holder in (*model.modules(), *configs.values()):
        for name, value in list(vars(holder).items()):
            if isinstance(value, float) and "drop" in name:
                setattr(holder, name, 0.0)

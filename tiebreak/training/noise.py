"""Disables noise in training, for comparisons of a policy with its initial state, or of two answers.

TRL disables dropout modules. Many architectures use a dropout function instead, with a rate in a module or the
configuration: OPT, Seed-OSS, and every attention. Routers of experts add noise to their choice.
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
    """Disable all dropout of a model, and its routers' randomness, from now on."""
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

"""Counts what would train of a model on torch's meta device: by PEFT's own layers, not by a formula."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from tiebreak.config import AdapterConfig
from tiebreak.config.adapter import METHODS, as_saved
from tiebreak.errors import ConfigError
from tiebreak.models.adapters.targets import ModelLayers, require_targets
from tiebreak.models.full import train_whole


def count_trained(model: Any, adapter: AdapterConfig, task: str) -> int:
    """Parameters that train once the adapter is on the model, a score head's with them.

    Args:
        model: on the meta device.

    Raises:
        ConfigError: it cannot be put there.
    """
    import peft

    if adapter.method == "full":
        train_whole(model, adapter)
        if task == "SEQ_CLS":
            model.score.requires_grad_(True)
        return _count(model)
    if adapter.method == "lora":  # the first values need weights, and change no shape
        adapter = as_saved(adapter).model_copy(update={"init": "default"})
    require_targets(model, adapter)
    method = METHODS[adapter.method]
    try:
        # BOFT's permutations are computed, so its small weights are made, and moved to the model's device after
        with warnings.catch_warnings(), torch.device("cpu" if adapter.method == "boft" else "meta"):
            warnings.simplefilter("ignore")
            values = method.configure(adapter, task, ModelLayers(model))
            return _count(peft.get_peft_model(model, getattr(peft, method.config_class)(**values)))
    except ValueError as error:
        raise ConfigError(f"adapter: PEFT cannot adapt {type(model).__name__}: {error}") from error


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

"""The reference where the policy's own weights train: a second copy of the model, instead of a second adapter."""

from __future__ import annotations

from typing import Any

from preference.configuration import DPOConfig
from tiebreak.config.adapter import METHODS
from tiebreak.errors import ConfigError
from tiebreak.models.find import ModelSource
from tiebreak.models.load import adapter_of, load_copy
from tiebreak.runs.placement import of_process


def require_adapter_of(source: ModelSource, config: DPOConfig) -> None:
    """Refuse keys that need the reference to be an adapter, if it is a second model.

    Raises:
        ConfigError: names one.
    """
    method = adapter_of(source, config.adapter).method
    if METHODS[method].virtual and config.guard:
        raise ConfigError(
            f"guard: it samples with a cache, which has no place for the virtual tokens of method: {method}"
        )
    if method == "full" and config.algorithm in ("dpo", "kto") and of_process().distributed == "zero3":
        raise ConfigError(
            f"adapter.method: the reference of {config.algorithm} would be a second copy of full's weights, which "
            "ZeRO-3 does not share out here: use --accelerate zero2, {method: lora}, or algorithm orpo, simpo or cpo"
        )
    if method == "full" and (config.guard or config.sync_ref_model):
        key = "guard" if config.guard else "sync_ref_model"
        raise ConfigError(
            f"{key}: it works on the reference as an adapter, which adapter.method: full has not; use {{method: lora}}, "
            f"or leave {key} out"
        )


def reference_of(source: ModelSource, config: DPOConfig) -> Any:
    """A second copy, if the policy's own weights train; None: the reference is an adapter on the policy's weights."""
    is_whole = adapter_of(source, config.adapter).method == "full"
    return load_copy(source, config.training) if is_whole else None

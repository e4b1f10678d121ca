"""The hyperparameters of a trained run that readers compare, from its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiebreak.stages import find_stage

COMMON = {
    "training.learning_rate": "learning rate",
    "training.lr_scheduler": "schedule",
    "training.warmup_share": "warm-up share",
    "training.epochs": "epochs",
    "training.max_steps": "most optimizer steps",
    "batch": "batch",
    "training.max_length_tokens": "longest row in tokens",
    "training.weight_decay": "weight decay",
    "training.precision": "precision",
    "training.seed": "seed",
    "adapter.method": "adapter",
    "adapter.r": "adapter r",
    "adapter.alpha": "adapter alpha",
    "adapter.dropout": "adapter dropout",
    "adapter.target_modules": "adapted modules",
}
"""Settings that trained stages share; each has its own besides (tiebreak.stages)."""


def training_settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Name → value, the stage's own first, then the shared ones; {} for a stage without training."""
    stage = find_stage(str(manifest["stage"]))
    if not stage.trains:
        return {}
    config: Mapping[str, Any] = manifest.get("config") or {}
    values = {**_flat(config), **_flat({"adapter": (manifest.get("model") or {}).get("adapter")}), **_batch(config)}
    unread = {*stage.unread_settings, *(["training.epochs"] if values.get("training.max_steps") is not None else [])}
    own = {setting.key: setting.name for setting in stage.settings if setting.is_read(config)}
    named = own | COMMON
    return {name: values[key] for key, name in named.items() if key not in unread and values.get(key) is not None}


def _batch(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rows, or episodes, per optimizer step on each process."""
    training = config.get("training") or {}
    rows, accumulated = training.get("per_device_batch_size"), training.get("gradient_accumulation_steps", 1)
    return {"batch": rows * accumulated} if isinstance(rows, int) and isinstance(accumulated, int) else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat

"""The hyperparameters of a trained run that a reader compares, out of its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
OF_STAGES = {
    "sft": {"loss_on": "loss on"},
    "reward": {
        "strength_as": "strength as",
        "margin_scale": "margin scale",
        "soft_labels": "soft labels",
        "use_weights": "weights used",
        "centering": "centering",
        "members": "members",
    },
    "dpo": {"beta": "beta", "loss_type": "loss", "label_smoothing": "label smoothing"},
    "ppo": {
        "algorithm": "algorithm",
        "kl_coef": "KL coefficient",
        "kl_target": "KL target in nats",
        "rollouts": "rollouts",
        "episodes_per_rollout": "episodes a rollout",
        "ppo_epochs": "epochs a rollout",
        "completions_per_prompt": "completions a prompt",
        "sampling.temperature": "temperature",
        "sampling.max_new_tokens": "longest answer in tokens",
        "cliprange": "clip range",
        "gamma": "gamma",
        "lam": "lambda",
        "vf_coef": "value loss coefficient",
        "entropy_coef": "entropy coefficient",
        "missing_eos_penalty": "penalty of an unfinished answer",
        "length_penalty": "length penalty",
    },
}
"""By stage: the configuration's keys, and what the report calls them."""
_WITHOUT_GROUPS = ("completions_per_prompt",)
"""Keys of PPO that only RLOO and GRPO read."""
_WITHOUT_CRITIC = ("gamma", "lam", "vf_coef")
"""Keys of PPO that RLOO and GRPO do not read."""


def training_settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Name → value, the stage's own before those that stages share; {} for a stage that trains nothing."""
    stage = str(manifest["stage"])
    if stage not in OF_STAGES:
        return {}
    config: Mapping[str, Any] = manifest.get("config") or {}
    values = {**_flat(config), **_flat({"adapter": (manifest.get("model") or {}).get("adapter")}), **_batch(config)}
    unread = {"training.epochs"} if stage == "ppo" or values.get("training.max_steps") is not None else set()
    unread |= set(_WITHOUT_CRITIC if config.get("algorithm", "ppo") != "ppo" else _WITHOUT_GROUPS)
    named = {**OF_STAGES[stage], **COMMON}
    return {name: values[key] for key, name in named.items() if key not in unread and values.get(key) is not None}


def _batch(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rows, or episodes, of an optimizer step on each process."""
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

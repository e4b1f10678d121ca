"""The packages of the extra `tiebreak[train]`. A label server needs none of them."""

from __future__ import annotations

import importlib.util

TRAINING_PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "gguf",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
    "wandb",
)
INSTALL = "pip install 'tiebreak[train]'"


def has_training_packages() -> bool:
    """Whether this machine can load a model."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def missing_training_package(error: BaseException) -> str:
    """The message for an import that failed for a missing training package; otherwise empty."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return f"{name} is not installed: {INSTALL}" if name in TRAINING_PACKAGES else ""

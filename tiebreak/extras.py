"""The packages of the extras: `tiebreak[train]`, which a label server does not need, and smaller ones."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

from tiebreak.errors import ConfigError, MachineError

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


def require_training_packages(what: str) -> None:
    """Refuse what loads a model where the packages for it are left out.

    Raises:
        MachineError: they are; the message says how to get them.
    """
    if not has_training_packages():
        raise MachineError(f"{what} needs the training packages, which are not installed: {INSTALL}")


def require_package(module: str, what: str, extra: str) -> Any:
    """A module of an optional package.

    Args:
        what: what needs it, for the message.

    Raises:
        ConfigError: it is not installed; says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{what} needs {module.partition('.')[0]}: pip install 'tiebreak[{extra}]'") from error


TRACKER_PACKAGES = ("trackio", "tensorboard", "mlflow")
"""import names; their extras are named the same"""


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers (`tracking.report_to`) whose packages are not installed, before a stage starts.

    Raises:
        ConfigError: one is not; says what to install.
    """
    missing = [name for name in TRACKER_PACKAGES if name in names and importlib.util.find_spec(name) is None]
    if missing:
        extras = ",".join(missing)
        raise ConfigError(
            f"tracking.report_to: {' and '.join(missing)} not installed: pip install 'tiebreak[{extras}]', or leave it out"
        )

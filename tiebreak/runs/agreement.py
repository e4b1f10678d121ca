"""Accelerate files hold hardware only: what one says that a stage's configuration also says must be the same.

The trainer would follow the file for one key and the configuration for another, so a difference is refused with both
values and both files, before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiebreak.config.yaml_files import read_yaml
from tiebreak.errors import ConfigError

if TYPE_CHECKING:
    from tiebreak.config import OptimizerConfig

FORMATS = {
    "auto": ("no", "bf16"),  # by the device
    "float32": ("no",),
    "bfloat16": ("no", "bf16"),
    "float16": ("no", "fp16"),
}
"""accelerate's `mixed_precision` by the values of training.precision that it does not contradict; `no` leaves the choice
to the stage"""
OPEN = ("no", "", "auto", "none")
"""values of an accelerate file that leave the choice to the stage"""

FSDP_ON_CPU = (
    "accelerate shards with FSDP on accelerators only; on CPUs it would hold the whole model in every process: use "
    "--accelerate cpu_zero3"
)


@dataclass(frozen=True)
class Difference:
    """A value that two files state differently."""

    key: str
    value: Any
    """in the accelerate file, or in DeepSpeed's"""
    file: str
    own_key: str
    own_value: Any
    leave_open: str
    """the value with which the file leaves the choice to the stage"""

    def message(self, config: str) -> str:
        """Both values and both files."""
        return (
            f"{self.file} has {self.key}: {_as_yaml(self.value)}, but {config} has {self.own_key}: "
            f"{_as_yaml(self.own_value)}; set {self.key}: {self.leave_open}, since the configuration decides"
        )


def require_same_values(training: OptimizerConfig, file: Path, config: str) -> None:
    """Refuse an accelerate file that contradicts the configuration.

    Args:
        config: the configuration's file, for the message.

    Raises:
        ConfigError: it does.
    """
    found = [difference.message(config) for difference in differences(training, file)]
    if found:
        raise ConfigError("\n  ".join(["the accelerate file contradicts the configuration:", *found]))


def require_placeable(file: Path) -> None:
    """Refuse a placement that accelerate would silently replace by another.

    Raises:
        ConfigError: FSDP on the CPU.
    """
    values = read_yaml(file)
    if values.get("use_cpu") and values.get("distributed_type") == "FSDP":
        raise ConfigError(f"{file}: {FSDP_ON_CPU}")


def differences(training: OptimizerConfig, file: Path) -> Iterator[Difference]:
    """What an accelerate file, and the DeepSpeed file that it names, state differently."""
    values = read_yaml(file)
    mixed = _word(values.get("mixed_precision"))
    if mixed not in FORMATS[training.precision]:
        yield Difference("mixed_precision", mixed, str(file), "training.precision", training.precision, "'no'")
    section: Mapping[str, Any] = values.get("deepspeed_config") or {}
    yield from _different(training, section, str(file))
    sharded: Mapping[str, Any] = values.get("fsdp_config") or {}
    if sharded.get("fsdp_activation_checkpointing") and not training.gradient_checkpointing:
        key = "fsdp_activation_checkpointing"
        yield Difference(key, True, str(file), "training.gradient_checkpointing", False, "false")
    if section.get("deepspeed_config_file"):
        yield from of_deepspeed(training, Path(section["deepspeed_config_file"]))


def of_deepspeed(training: OptimizerConfig, file: Path) -> Iterator[Difference]:
    """What a DeepSpeed file (JSON) states differently.

    Raises:
        ConfigError: it cannot be read.
    """
    values = read_deepspeed(file)
    yield from _different(training, values, str(file))
    for short, name in (("bf16", "bfloat16"), ("fp16", "float16")):
        enabled = (values.get(short) or {}).get("enabled")
        if enabled is True and short not in FORMATS[training.precision]:
            key = f"{short}.enabled"
            yield Difference(key, True, str(file), "training.precision", training.precision, "auto")
        elif enabled is False and training.precision == name:
            yield Difference(f"{short}.enabled", False, str(file), "training.precision", name, "auto")


def read_deepspeed(file: Path) -> dict[str, Any]:
    """DeepSpeed's own configuration.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot read it as a DeepSpeed configuration: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: cannot read it as a DeepSpeed configuration: it must be a JSON object")
    return values


_SAME = {
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "train_micro_batch_size_per_gpu": "per_device_batch_size",
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.weight_decay": "weight_decay",
}
"""keys of DeepSpeed, and those of `training` that say the same"""


def _different(training: OptimizerConfig, values: Mapping[str, Any], file: str) -> Iterator[Difference]:
    for key, name in _SAME.items():
        value, own = _look_up(values, key), getattr(training, name)
        if _word(value) not in OPEN and _number(value) != float(own):
            yield Difference(key, value, file, f"training.{name}", own, "auto")


def _look_up(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _word(value: Any) -> Any:
    """`no`, unquoted, is false in YAML."""
    return "no" if value in (False, None) else value


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

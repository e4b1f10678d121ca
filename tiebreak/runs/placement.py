"""Number of a stage's processes and sharding of its weights: part of a run's identity.

Another number of processes distributes the rows into other batches, so it trains other weights even with as many rows per
step. `of_process` reads the environment that a launcher sets, `of_file` the accelerate file that would set it:
`tiebreak run` predicts with the second what the stage will find with the first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiebreak.config.yaml_files import read_yaml
from tiebreak.errors import ConfigError
from tiebreak.runs.agreement import FSDP_ON_CPU, of_deepspeed, read_deepspeed

if TYPE_CHECKING:
    from tiebreak.config import OptimizerConfig, StageConfig


@dataclass(frozen=True)
class Placement:
    """`distributed`: none, ddp (the whole weights on every process), zero0 to zero3 (DeepSpeed's stages), or fsdp."""

    processes: int = 1
    distributed: str = "none"

    def __str__(self) -> str:
        count = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return count if self.distributed == "none" else f"{count} ({self.distributed})"


def of_process() -> Placement:
    """This process's placement.

    Raises:
        ConfigError: accelerate would ignore what its file asks for.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        if on_cpu:
            raise ConfigError(
                "ACCELERATE_USE_CPU is set, with which accelerate trains under DDP, not under DeepSpeed: unset it; "
                "`use_cpu: true` in the accelerate file says the same"
            )
        file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
        stage = _zero_stage_of(Path(file)) if file not in ("", "None") else None
        named = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
        return Placement(processes, f"zero{stage if stage is not None else named if named.isdigit() else 2}")
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        if on_cpu:
            raise ConfigError(f"distributed_type FSDP: {FSDP_ON_CPU}")
        return Placement(processes, "fsdp")
    return Placement(processes, "ddp" if processes > 1 else "none")


def loads_in_shards() -> bool:
    """Whether this process's accelerate file has the weights sharded as they load: `zero3_init_flag: true`."""
    asked = os.environ.get("ACCELERATE_DEEPSPEED_ZERO3_INIT", "").lower() == "true"
    return asked and of_process().distributed == "zero3"


def of_file(file: Path, processes: int | None = None) -> Placement:
    """The placement that an accelerate file will give.

    Args:
        processes: instead of the file's number of them.
    """
    values = read_yaml(file)
    processes = processes or int(values.get("num_processes") or 1)
    kind = str(values.get("distributed_type", "NO"))
    if kind == "DEEPSPEED":
        section: Mapping[str, Any] = values.get("deepspeed_config") or {}
        named = section.get("deepspeed_config_file")
        stage = _zero_stage_of(Path(named)) if named else None
        return Placement(processes, f"zero{stage if stage is not None else section.get('zero_stage', 2)}")
    if kind == "FSDP":
        return Placement(processes, "fsdp")
    return Placement(processes, "ddp" if processes > 1 else "none")


def global_batch_of(config: StageConfig, placement: Placement) -> int | None:
    """Rows (PPO: episodes) of one optimizer step over all processes; None for a stage that does not train."""
    if not config.trains:
        return None
    training = config.training  # type: ignore[attr-defined] # every configuration that trains has it
    return int(training.per_device_batch_size * training.gradient_accumulation_steps * placement.processes)


def require_placed(*, deepspeed: bool, fsdp: bool) -> None:
    """Refuse a trainer that computes under another kind of sharding than the launch asked for, and than the run records.

    Args:
        deepspeed: whether the trainer has DeepSpeed.
        fsdp: whether it has FSDP.

    Raises:
        ConfigError: it does.
    """
    placement = of_process()
    if (placement.distributed.startswith("zero"), placement.distributed == "fsdp") != (deepspeed, fsdp):
        found = "DeepSpeed" if deepspeed else "FSDP" if fsdp else "neither DeepSpeed nor FSDP"
        raise ConfigError(
            f"this stage was launched as {placement}, but its trainer uses {found}: launch it with --accelerate NAME, "
            "or unset accelerate's variables (ACCELERATE_…) in the environment"
        )


def require_own_pace(what: str) -> None:
    """Refuse FSDP for work in which processes call the model at their own pace, as sampling does: only ZeRO's weights
    are gathered for it here, and the processes would wait for one another forever.

    Raises:
        ConfigError: this process is one of FSDP's.
    """
    if of_process().distributed == "fsdp":
        raise ConfigError(
            f"{what} samples, which FSDP's sharded weights do not allow here: use --accelerate zero2 or zero3"
        )


def require_agreement(training: OptimizerConfig, precision: str) -> None:
    """Refuse an accelerate file that contradicts the configuration.

    Args:
        precision: the stage's format: `no`, `bf16` or `fp16`.

    Raises:
        ConfigError: it does; the trainer would follow the file for one key and the configuration for another.
    """
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    clipping = os.environ.get("ACCELERATE_GRADIENT_CLIPPING", "auto")
    faults = []
    if mixed not in ("no", precision):
        faults.append(
            f"mixed_precision: {mixed}, but training.precision is {training.precision} ({precision}): set the file's to "
            "'no', since the configuration decides"
        )
    if steps.isdigit() and int(steps) != training.gradient_accumulation_steps:
        faults.append(
            f"gradient_accumulation_steps: {steps}, but training.gradient_accumulation_steps is "
            f"{training.gradient_accumulation_steps}: set the file's to auto"
        )
    if clipping not in ("auto", "none") and float(clipping) != training.max_grad_norm:
        faults.append(
            f"gradient_clipping: {clipping}, but training.max_grad_norm is {training.max_grad_norm}: set the file's to auto"
        )
    named = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    if named not in ("", "None"):
        faults += [difference.message("the configuration") for difference in of_deepspeed(training, Path(named))]
    if faults:
        raise ConfigError("the accelerate file and the configuration disagree: " + "; ".join(faults))


def _zero_stage_of(file: Path) -> int | None:
    stage = (read_deepspeed(file).get("zero_optimization") or {}).get("stage")
    return None if stage is None else int(stage)

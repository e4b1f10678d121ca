"""Devices and how a stage is spread over them: an accelerate file, without its processes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tiebreak.config.yaml_files import read_yaml
from tiebreak.errors import ConfigError
from tiebreak.plan.devices import Device
from tiebreak.runs.agreement import read_deepspeed
from tiebreak.runs.placement import of_file

SHARDED_LOAD = "zero3_sharded_load"
"""the shipped accelerate file whose processes never hold the whole model"""


@dataclass(frozen=True)
class Hardware:
    """Devices, and what is shared out over them."""

    device: Device
    count: int = 1
    distributed: str = "none"
    """none, ddp, zero1 to zero3 or fsdp; see tiebreak.runs.placement"""
    offloads_weights: bool = False
    offloads_optimizer: bool = False
    name: str = ""
    """the accelerate file's"""
    loads_in_shards: bool = False
    """whether weights are sharded as they load (`zero3_init_flag: true`); otherwise a device holds all before training"""

    @property
    def shards_weights(self) -> bool:
        """Whether each device holds a share of the weights."""
        return self.count > 1 and self.distributed in ("zero3", "fsdp")

    @property
    def shards_gradients(self) -> bool:
        """Whether each device holds a share of the gradients."""
        return self.count > 1 and self.distributed in ("zero2", "zero3", "fsdp")

    @property
    def shards_optimizer(self) -> bool:
        """Whether each device holds a share of the optimizer's states."""
        return self.count > 1 and self.distributed in ("zero1", "zero2", "zero3", "fsdp")

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed keeps float32 copies of what trains."""
        return self.distributed.startswith("zero")

    def spread(self, name: str) -> Hardware:
        """The same devices under another shipped accelerate file, by its name."""
        sharded = {"zero3_offload": "zero3", SHARDED_LOAD: "zero3", "fsdp2": "fsdp", "multi_gpu": "ddp"}.get(name, name)
        offload = name == "zero3_offload"
        return replace(
            self,
            distributed=sharded,
            name=name,
            offloads_weights=offload,
            offloads_optimizer=offload,
            loads_in_shards=name == SHARDED_LOAD,
        )


def spread_by(device: Device, file: Path | None, count: int | None, name: str = "") -> Hardware:
    """Hardware by an accelerate file.

    Args:
        count: devices; None: the file's processes, or one.

    Raises:
        ConfigError: the file cannot be read.
    """
    if file is None:
        devices = count or 1
        return Hardware(device, devices, "ddp" if devices > 1 else "none", name="multi_gpu" if devices > 1 else "")
    placement = of_file(file, count)
    section: dict[str, Any] = dict(read_yaml(file).get("deepspeed_config") or {})
    if section.get("deepspeed_config_file"):
        stated = read_deepspeed(Path(section["deepspeed_config_file"])).get("zero_optimization") or {}
        offloads = [bool((stated.get(f"offload_{what}") or {}).get("device")) for what in ("param", "optimizer")]
    else:
        offloads = [section.get(f"offload_{what}_device") not in (None, "none") for what in ("param", "optimizer")]
    if read_yaml(file).get("use_cpu") and device.is_gpu:
        raise ConfigError(f"{file} is for CPUs: give --gpu cpu, or another --accelerate")
    return Hardware(
        device,
        placement.processes,
        placement.distributed,
        offloads[0],
        offloads[1],
        name=name or file.stem,
        loads_in_shards=placement.distributed == "zero3" and bool(section.get("zero3_init_flag")),
    )

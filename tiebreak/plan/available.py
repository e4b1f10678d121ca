"""Memory of this process's device, and how a process of a launch is placed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from tiebreak.plan.devices import CONTEXT, Device, find_device, machine_memory
from tiebreak.plan.hardware import Hardware
from tiebreak.runs.placement import loads_in_shards, of_process


def this_hardware() -> Hardware:
    """The devices of this launch, by its environment: each as this process's is."""
    placement = of_process()
    offloads = [
        os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE", "none") not in ("", "none", "None")
        for what in ("PARAM", "OPTIMIZER")
    ]
    return Hardware(
        this_device(),
        placement.processes,
        placement.distributed,
        offloads[0],
        offloads[1],
        loads_in_shards=loads_in_shards(),
    )


def this_device() -> Device:
    """This process's device, with all of its memory; on the CPU, its share of the machine's."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(_local_rank())
        return Device("gpu", found.name, found.total_memory, 1.0, CONTEXT)
    return replace(find_device("cpu"), memory=machine_memory() // _processes_here())


def free_memory() -> int:
    """Bytes that are free on this process's device now."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(_local_rank())[0])
    return available_memory() // _processes_here()


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes of the machine's memory that programs can have: free, or a cache that the system gives up."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return min(int(lines["MemAvailable"].split()[0]) * 1024, machine_memory())
    except (OSError, KeyError, ValueError):
        return machine_memory()


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _processes_here() -> int:
    return max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)

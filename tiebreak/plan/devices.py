"""Devices: memory and peak rates from the vendors' data sheets."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from tiebreak.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One device."""

    name: str
    title: str
    memory: int
    """bytes that a process may use"""
    rate: float
    """dense matrix products in bf16 (on the CPU: float32), floating-point operations a second"""
    reserved: int = 0
    """bytes of it that the driver, its context and libraries take"""

    @property
    def is_gpu(self) -> bool:
        """Whether it computes in bf16 by default."""
        return self.name != "cpu"


CONTEXT = GIB
"""CUDA's context, cuBLAS's workspaces, NCCL's buffers. An estimate: never measured here"""
GPUS = {
    "h100": ("NVIDIA H100 SXM", 80 * 10**9, 989e12),
    "h200": ("NVIDIA H200 SXM", 141 * 10**9, 989e12),
    "a100-80": ("NVIDIA A100 80 GB", 80 * 10**9, 312e12),
    "l40s": ("NVIDIA L40S", 48 * 10**9, 362e12),
    "4090": ("NVIDIA GeForce RTX 4090", 24 * 10**9, 165e12),
}
"""name: (title, bytes, dense bf16 operations a second)"""
OPERATIONS_A_CORE = 80e9
"""float32 operations a second of a core: two 8-wide fused multiply-adds a cycle at 2.5 GHz"""


def find_device(name: str) -> Device:
    """A device by its name on the command line.

    Raises:
        ConfigError: there is none; the message has the nearest names.
    """
    if name == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return Device("cpu", f"this machine's CPU, {cores} cores", machine_memory(), cores * OPERATIONS_A_CORE)
    if name not in GPUS:
        names = [*GPUS, "cpu"]
        near = difflib.get_close_matches(name.lower().removeprefix("nvidia").strip(" -_"), names, n=2, cutoff=0.4)
        near = near or [one for one in names if one in name.lower()]
        raise ConfigError(
            f"--gpu: no such device: {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")
            + f" (there are {', '.join(names)})"
        )  # fmt: skip
    title, memory, rate = GPUS[name]
    return Device(name, title, memory, rate, CONTEXT)


def machine_memory() -> int:
    """This machine's memory, or that of its container, in bytes."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            return min(total, int(file.read_text()))
        except (OSError, ValueError):
            continue
    return total

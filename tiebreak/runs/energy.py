"""Energy that a run's machine used while it ran, by the machine's own counters; nothing is estimated.

Processors: RAPL's counters below /sys/class/powercap, which by default only root may read on Linux. They
count whole packages and memory, so other programs' work too. GPUs: the power that nvidia-smi reports, integrated over time,
of the GPUs that the run may use. What has no counter is `not_measured`: an estimate from a processor's name would be a
figure that nobody measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
SECONDS_BETWEEN_READINGS = 20.0
"""of the processors' counters, which wrap around after minutes"""
SECONDS_BETWEEN_WATTS = 2
_JOULES_IN_KWH = 3.6e6


@dataclass
class Counter:
    """A RAPL counter in microjoules, which starts at 0 again after `span`."""

    name: str
    file: Path
    span: int
    last: int
    joules: float = 0.0

    def read(self) -> None:
        """Add what was used since the last reading."""
        now = int(self.file.read_text())
        self.joules += ((now - self.last) % self.span) / 1e6
        self.last = now


def processor_counters() -> list[Counter]:
    """The readable counters of packages and their memory. A counter of the whole platform would count them twice."""
    found = []
    for zone in sorted(POWERCAP.glob("intel-rapl:*")):
        with suppress(OSError, ValueError):
            name = (zone / "name").read_text().strip()
            if name.startswith(("package", "dram")):
                file = zone / "energy_uj"
                span = int((zone / "max_energy_range_uj").read_text()) + 1
                found.append(Counter(name, file, span, int(file.read_text())))
    return found


@dataclass
class Watts:
    """The power of GPUs over time, by a running nvidia-smi."""

    joules: float = 0.0
    gpus: set[str] = field(default_factory=set)
    _process: subprocess.Popen[str] | None = None
    _last: dict[str, float] = field(default_factory=dict)
    """GPU → time of its last reading"""

    def start(self) -> None:
        """Start nvidia-smi, which ends when nobody reads it any more; nothing where there is none."""
        program, visible = shutil.which("nvidia-smi"), os.environ.get("CUDA_VISIBLE_DEVICES")
        if program is None or visible in ("", "-1"):
            return
        words = [
            program,
            "--query-gpu=uuid,power.draw",
            "--format=csv,noheader,nounits",
            "-l",
            str(SECONDS_BETWEEN_WATTS),
        ]
        words += ["-i", visible] if visible else []
        with suppress(OSError):
            self._process = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, stdin=subprocess.DEVNULL
            )
            threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                gpu, _, watts = line.strip().rpartition(",")
                with suppress(ValueError):
                    self.add(gpu, float(watts), time.monotonic())

    def add(self, gpu: str, watts: float, now: float) -> None:
        """A reading: the power since the last one. The first starts the clock."""
        self.joules += watts * (now - self._last.get(gpu, now))
        self._last[gpu] = now
        self.gpus.add(gpu)

    def stop(self) -> None:
        """End nvidia-smi."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)


class EnergyMeter:
    """The energy of a run over all attempts, from `start` to `stop`."""

    def __init__(self, before: Mapping[str, Any] | None = None) -> None:
        """`before`: the record of earlier attempts."""
        self._before = before or {}
        self._counters: list[Counter] = []
        self._watts = Watts()
        self._end = threading.Event()

    def start(self) -> None:
        """Read the counters from now on."""
        self._counters = processor_counters()
        self._watts.start()
        if self._counters:
            threading.Thread(target=self._keep_reading, daemon=True).start()

    def _keep_reading(self) -> None:
        while not self._end.wait(SECONDS_BETWEEN_READINGS):
            self._read()

    def _read(self) -> None:
        for counter in self._counters:
            with suppress(OSError, ValueError):
                counter.read()

    def stop(self) -> None:
        """End the readings."""
        self._end.set()
        self._watts.stop()

    def record(self) -> dict[str, Any]:
        """The entry `energy` of run.json and the manifest: `kwh` of what was measured, and what that is. A part that only
        some of the attempts measured is not measured."""
        self._read()
        now = {
            "processor": sum(one.joules for one in self._counters) if self._counters else None,
            "gpu": self._watts.joules if self._watts.gpus else None,
        }
        how = {
            "processor": f"{len(self._counters)} RAPL counters, other programs included",
            "gpu": f"{len(self._watts.gpus)} by nvidia-smi's watts",
        }
        joules = {name: total for name, value in now.items() if (total := self._in_all(name, value)) is not None}
        lacking = [name for name in now if name not in joules] + ["other machines"] * _has_other_machines()
        return {
            "kwh": round(sum(joules.values()) / _JOULES_IN_KWH, 6) if joules else None,
            **{f"{name}_joules": round(total, 1) for name, total in joules.items()},
            "measured": ", ".join(f"{name}: {how[name]}" for name in joules),
            "not_measured": ", ".join(lacking),
        }

    def _in_all(self, name: str, joules: float | None) -> float | None:
        """With those of earlier attempts."""
        before = self._before.get(f"{name}_joules") if self._before else 0.0
        return None if joules is None or before is None else before + joules


def _has_other_machines() -> bool:
    processes = os.environ.get("WORLD_SIZE", "1")
    return os.environ.get("LOCAL_WORLD_SIZE", processes) != processes

"""What every contestant of training.py is measured by, and reports.

Imports nothing of Tiebreak: ppo_trl.py uses it in an environment that does not have it.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback


@dataclass(frozen=True)
class Measurement:
    """What one process reports. A step of PPO is a rollout with all of its updates."""

    losses: list[float]
    step_seconds: float
    setup_seconds: float
    """what an epoch pays once, as a share of this run's steps: TRL's precomputed reference"""
    tokens_per_second: float
    peak_mib: float
    padded_tokens_a_row: float
    tokens_a_row: float
    matrix_product_share: float | None
    """none where the products were not counted"""
    steps: list[float] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    """seconds of a PPO rollout's parts: generate, assess, update"""
    first_rollout: dict[str, float] = field(default_factory=dict)
    """what PPO saw before any update: kl (nats a completion), score_mean, score_deviation"""


def _product_flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Of xWᵀ, from their shapes."""
    return 2 * int(x[0]) * int(x[1]) * int(weight[0])


ONEDNN_PRODUCTS = {torch.ops.mkldnn._linear_pointwise: _product_flops}
"""what FlopCounterMode does not count by itself"""


class Clock(TrainerCallback):
    """Times some steps, then notes the peak memory, then counts the operations of the next step's matrix products.

    Counting is slow and takes memory of its own, so it comes last: a trainer takes a step more than are timed.
    """

    def __init__(self, timed: int) -> None:
        self.seconds: list[float] = []
        self.products = 0.0
        self.peak_mib = 0.0
        self._timed = timed
        self._started = 0.0
        self._counter: Any = None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if len(self.seconds) == self._timed:
            self._counter = FlopCounterMode(display=False, custom_mapping=ONEDNN_PRODUCTS)
            self._counter.__enter__()
        self._started = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self.products = float(self._counter.get_total_flops())
            self._counter = None
            return
        self.seconds.append(now() - self._started)
        if len(self.seconds) == self._timed:
            self.peak_mib = peak_mib()


def now() -> float:
    """A clock's reading, once the GPU has finished what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def product_rate(size: int | None = None, repeats: int = 8) -> float:
    """Floating-point operations a second of a large torch.mm, the best of some: bfloat16 on a GPU, float32 on a CPU."""
    on_gpu = torch.cuda.is_available()
    size = size or (8192 if on_gpu else 1536)
    like: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16} if on_gpu else {}
    a, b = torch.randn(size, size, **like), torch.randn(size, size, **like)
    best = 0.0
    for _ in range(repeats):
        started = now()
        torch.mm(a, b)
        best = max(best, 2 * size**3 / (now() - started))
    return best


def peak_mib() -> float:
    """The peak of what torch allocated on the GPU; without one, of this process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_alone(*words: str | Path, environment: dict[str, str] | None = None, settled: bool = True) -> None:
    """A contestant's process; `settled`: with the allocator settings that our command line gives its own."""
    from tiebreak.process.settings import MALLOC_SETTINGS

    inherited = os.environ if environment is None else environment
    done = subprocess.run(
        [*map(str, words)],
        env={
            **{name: value for name, value in inherited.items() if name not in MALLOC_SETTINGS},
            **(MALLOC_SETTINGS if settled else {}),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))} ended with status {done.returncode}; it says why above")

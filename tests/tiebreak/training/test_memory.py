"""Free memory in the middle of the heap goes back to the system."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tiebreak.process.settings import MALLOC_SETTINGS

PROGRAM = """
import torch
from tiebreak.training.allocator import give_back_memory

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024

blocks = [torch.ones(1 << 20) for _ in range(64)]  # 256 MiB
last = torch.ones(1 << 20)  # what keeps the heap from shrinking by itself
del blocks
kept = resident()
give_back_memory()
print(kept - resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's")
def test_what_was_freed_below_something_kept_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **MALLOC_SETTINGS},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 240 <= int(done.stdout) <= 272

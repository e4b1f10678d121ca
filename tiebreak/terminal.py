"""What a stage prints while it works: from the main process alone, and on standard error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any


def is_main_process() -> bool:
    """True on the process that writes: the only one, or rank 0 of a launch."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def progress(total: int, what: str) -> Iterator[Any]:
    """A progress bar with the time left, on standard error, from the main process alone."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, disable=not is_main_process(), mininterval=1.0, dynamic_ncols=True) as bar:
        yield bar


def say(*lines: str) -> None:
    """Print to standard error, from the main process alone: standard output is for results."""
    if is_main_process():
        import sys

        print(*lines, sep="\n", file=sys.stderr, flush=True)

"""Processes beside a stage, which copy its run folder to trackers. They may outlive the stage."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

_OF_A_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


class DetachedProcess(subprocess.Popen[bytes]):
    """A process that may outlive this one."""

    def __del__(self, *_: object, **__: object) -> None:
        """Suppress the warning that it is still running."""


def environment_beside() -> dict[str, str]:
    """This process's variables without those of a launch."""
    return {name: value for name, value in os.environ.items() if name not in _OF_A_LAUNCH}


def start_beside(module: str, words: Sequence[str], environment: Mapping[str, str]) -> tuple[DetachedProcess, int]:
    """Start `python -m module words…`.

    Returns:
        The process, and the end of a pipe to write to: the other end is its standard input.
    """
    theirs, ours = os.pipe()
    try:
        process = DetachedProcess(
            [sys.executable, "-m", module, *words],
            env=dict(environment),
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the stage: data already passed on is still written
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return process, ours

"""Every error a user can cause, as one tree.

TiebreakError            what went wrong, where, and the next step; printed without a traceback, exit status 1
├── ConfigError          a configuration file or flag is wrong; exit status 2
├── DataError            an input row or file is broken; carries every fault found, not the first
├── RunError             a run folder is missing, unfinished, or holds another run
├── HandoffError         what one stage wrote is not what the next one needs
├── ModelError           a model cannot be found, loaded or saved
└── MachineError         this machine cannot do it: no such device, no space left
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence

MAX_FAULTS_SHOWN = 50

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISK_FULL_ELSEWHERE = (
    *(os.strerror(number) for number in _DISK_FULL),
    *(f"os error {number}" for number in _DISK_FULL),  # safetensors and tokenizers
    "inline_container.cc",  # torch.save: the archive's end is not where it should be
    "database or disk is full",  # SQLite
)
"""What libraries that raise no OSError say of a full disk."""


class TiebreakError(Exception):
    """Base of all errors that a user can cause and mend. The message says what, where and what next."""

    exit_status = 1


class ConfigError(TiebreakError):
    """A configuration file or a flag is wrong."""

    exit_status = 2


class DataError(TiebreakError):
    """Rows of an input are broken. All faults are listed, each with its file and line."""

    def __init__(self, summary: str, faults: Sequence[str] = ()) -> None:
        self.faults = list(faults)
        lines = [summary, *(f"  {fault}" for fault in self.faults[:MAX_FAULTS_SHOWN])]
        if len(self.faults) > MAX_FAULTS_SHOWN:
            lines.append(f"  … and {len(self.faults) - MAX_FAULTS_SHOWN} more")
        super().__init__("\n".join(lines))


class RunError(TiebreakError):
    """A run folder is missing, unfinished, in use, or holds a run of another configuration."""


class HandoffError(TiebreakError):
    """What one stage wrote is not what the next one needs: wrong tokenizer, reference, template or weights."""


class ModelError(TiebreakError):
    """A model cannot be found, loaded or saved."""


class MachineError(TiebreakError):
    """This machine cannot do what the configuration asks: no such device, no space left on the disk."""


def exit_with_message(main: Callable[[], object]) -> None:
    """Run `main`; print a TiebreakError, a full disk or Ctrl-C as one message, with no traceback, and exit."""
    try:
        main()
    except TiebreakError as error:
        _fail(str(error), error.exit_status)
    except Exception as error:
        if not is_full_disk(error):
            raise
        name = getattr(error, "filename", None)
        where = f" while writing {name}" if name else ""
        _fail(
            f"no space left on the device{where}: free some space and run the same command again; "
            "finished stages and complete checkpoints are kept",
            MachineError.exit_status,
        )
    except KeyboardInterrupt:
        _fail("interrupted: the same command goes on from the last checkpoint", 130)


def is_full_disk(error: Exception) -> bool:
    """Whether an error says that the disk is full, in whatever words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _DISK_FULL
    return any(told in str(error) for told in _DISK_FULL_ELSEWHERE)


def _fail(message: str, status: int) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(status)

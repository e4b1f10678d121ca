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
import sys
from collections.abc import Callable, Sequence

MAX_FAULTS_SHOWN = 50


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
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        _fail(
            f"no space left on the device{where}: free some space and run the same command again; "
            "finished stages and complete checkpoints are kept",
            MachineError.exit_status,
        )
    except KeyboardInterrupt:
        _fail("interrupted: the same command goes on from the last checkpoint", 130)


def _fail(message: str, status: int) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(status)

"""Every error a user can cause, as one tree.

TiebreakError            what went wrong, where, and the next step; printed without a traceback, exit status 1
├── ConfigError          a configuration file or flag is wrong; exit status 2
├── DataError            an input row or file is invalid; lists every error, not only the first
├── RunError             a run folder is missing, unfinished, or holds another run
├── HandoffError         a stage's output does not fit the next stage
├── ModelError           a model cannot be found, loaded or saved
├── GateError            a policy does not meet its gate; exit status 3
├── MachineError         a limit of this machine: no such device, no space left
└── UpstreamError        an installed package is not what Tiebreak was written for
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MAX_FAULTS_SHOWN = 50


class TiebreakError(Exception):
    """Base of all errors that a user can cause and fix. The message says what, where and what next."""

    exit_status = 1


def counted(n: int, noun: str) -> str:
    """`1 error`, `2,000 errors`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


NAMES_SHOWN = 40


def first_names(names: Iterable[str]) -> str:
    """Names in a row, the first of them if they are many: `a, b`."""
    listed = list(names)
    more = len(listed) - NAMES_SHOWN
    return ", ".join(listed[:NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


class ConfigError(TiebreakError):
    """A configuration file or a flag is wrong."""

    exit_status = 2


class DataError(TiebreakError):
    """Rows of an input are invalid. All errors are listed, each with its file and line."""

    def __init__(self, summary: str, faults: Sequence[str] = ()) -> None:
        self.faults = list(faults)
        lines = [summary, *(f"  {fault}" for fault in self.faults[:MAX_FAULTS_SHOWN])]
        if len(self.faults) > MAX_FAULTS_SHOWN:
            lines.append(f"  … and {len(self.faults) - MAX_FAULTS_SHOWN} more")
        super().__init__("\n".join(lines))


class NoRowLeftError(DataError):
    """Every row was dropped: what is left of the data is not enough to work with."""


class RunError(TiebreakError):
    """A run folder is missing, unfinished, in use, or holds a run of another configuration."""


class HandoffError(TiebreakError):
    """A stage's output does not fit the next stage: wrong tokenizer, reference, template or weights."""


class ModelError(TiebreakError):
    """A model cannot be found, loaded or saved."""


class GateError(TiebreakError):
    """A policy does not meet the requirements of its gate."""

    exit_status = 3


class MachineError(TiebreakError):
    """This machine cannot do what the configuration asks: no such device, no space left on the disk."""


class UpstreamError(TiebreakError):
    """An installed package is not what Tiebreak was written for: one of its private names changed."""

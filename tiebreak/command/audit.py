"""The audit trail of the runs below a folder.

tiebreak audit begin runs/quickstart      # from now on, its runs are recorded in audit.jsonl
tiebreak audit verify runs/quickstart     # the chain of hashes, and the runs' files against it
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tiebreak.command.help import print_help, wants_help
from tiebreak.config import Section, load_config
from tiebreak.errors import ConfigError, RunError, counted
from tiebreak.process.ending import exit_with_message
from tiebreak.runs.audit import begin_trail, verify
from tiebreak.terminal import show


class BeginArguments(Section):
    """`tiebreak audit begin`. FOLDER is the folder of the runs."""


class VerifyArguments(Section):
    """`tiebreak audit verify`. FOLDER is the folder with the trail."""

    head: str | None = None
    """a hash that this command printed earlier, which must still be in the trail"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `tiebreak audit`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_message(lambda: print_help(["audit", *words]) if wants_help(words) else _audit(words))


def _audit(words: list[str]) -> None:
    if len(words) < 2 or words[0] not in ("begin", "verify") or words[1].startswith("-"):
        raise ConfigError("audit begins or verifies a trail: tiebreak audit begin FOLDER, tiebreak audit verify FOLDER")
    folder, flags = Path(words[1]), words[2:]
    if words[0] == "begin":
        load_config(BeginArguments, flags, "audit begin")
        file, found = begin_trail(folder)
        there = f", after {counted(found, 'finished run')} that were there" if found else ""
        show(f"{file}: runs below {folder} are recorded in it from now on{there}")
        return
    given = load_config(VerifyArguments, flags, "audit verify")
    trail = verify(folder, given.head)
    if trail.faults:
        faults = "\n".join(f"  {fault}" for fault in trail.faults)
        raise RunError(f"{trail.file}: {counted(len(trail.faults), 'error')}\n{faults}")
    finished, found = (sum(one.get("event") == event for one in trail.events) for event in ("finished", "found"))
    older = f", {counted(found, 'run')} older than the trail" if found else ""
    events = counted(len(trail.events), "event")
    show(f"{trail.file}: {events}, {counted(finished, 'finished run')}{older}, nothing changed")
    show(f"last hash, to be kept elsewhere: {trail.head}")


if __name__ == "__main__":
    main()

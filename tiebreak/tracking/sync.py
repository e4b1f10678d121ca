"""Send runs to W&B that were not copied, or not completely.

tiebreak wandb sync runs/quickstart/dpo …            finished or interrupted runs
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tiebreak.errors import ConfigError, MachineError
from tiebreak.process.ending import exit_with_message
from tiebreak.records import write_json
from tiebreak.runs.run import MANIFEST
from tiebreak.tracking.recorder import facts_in
from tiebreak.tracking.wandb_copy import FACTS_FILE, FOLDER, Copy, note, one_line, read_json, tidy_environment


def sync(folders: Sequence[str]) -> None:
    """Send runs to W&B, each to the W&B run that it started.

    Raises:
        ConfigError: no folder, or one without a run.
        MachineError: W&B rejects it.
    """
    if not folders:
        raise ConfigError("no runs given: tiebreak wandb sync runs/quickstart/dpo")
    tidy_environment("online")
    for folder in map(Path, folders):
        _require_facts(folder)
        copy, manifest = Copy(folder, "online"), read_json(folder / MANIFEST)
        try:
            copy.begin(x_disable_stats=True)
            copy.send_rows()
            if manifest:
                copy.send_result(manifest)
            copy.end(finished=bool(manifest))
        except Exception as error:
            raise MachineError(f"W&B rejects {folder}: {one_line(error)}") from error
        note(folder, state="done", mode="online", manifest_id=manifest.get("id"), message="")
        print(f"sent {folder}: {copy.sent} rows", flush=True)


def _require_facts(folder: Path) -> None:
    """Write a run's metadata for W&B if its stage could not, or did not want to.

    Raises:
        ConfigError: there is no run.
        MachineError: they cannot be written, so a second sync would be a second W&B run.
    """
    if read_json(folder / FOLDER / FACTS_FILE):
        return
    if not (facts := facts_in(folder)):
        raise ConfigError(f"{folder} holds no run: it has neither manifest.json nor run.json")
    try:
        (folder / FOLDER).mkdir(exist_ok=True)
        write_json(folder / FOLDER / FACTS_FILE, facts)
    except OSError as error:
        raise MachineError(
            f"{folder / FOLDER} cannot be written ({error.strerror}): W&B's files belong there"
        ) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak wandb sync RUN …`"""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> None:
        if words[:1] != ["sync"]:
            raise ConfigError("usage: tiebreak wandb sync RUN …")
        sync(words[1:])

    exit_with_message(run)


if __name__ == "__main__":
    main()

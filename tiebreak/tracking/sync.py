"""Send runs to W&B that were not copied, or not completely.

tiebreak wandb sync runs/quickstart            finished and interrupted runs, inputs first
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tiebreak.errors import ConfigError, MachineError
from tiebreak.files import write_json
from tiebreak.process.ending import exit_with_message
from tiebreak.runs.run import MANIFEST, RUN_FILE
from tiebreak.tracking.contents import FACTS_FILE, FOLDER, in_order, read_json
from tiebreak.tracking.facts import facts_in
from tiebreak.tracking.wandb_copy import Copy, note, one_line, tidy_environment
from tiebreak.tracking.workspace import save_workspace


def sync(folders: Sequence[str]) -> None:
    """Send runs to W&B, each to the W&B run that it started, inputs first, so that artifacts can be linked.

    Args:
        folders: run folders, or folders of them.

    Raises:
        ConfigError: no folder, or one without a run.
        MachineError: W&B rejects it.
    """
    if not folders:
        raise ConfigError("no runs given: tiebreak wandb sync runs/quickstart/dpo")
    tidy_environment("online")
    for folder in in_order([run for named in folders for run in runs_in(Path(named))]):
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


def runs_in(folder: Path) -> list[Path]:
    """The folder itself if it has a run, or none below it has; otherwise the runs below it."""
    if any((folder / name).is_file() for name in (MANIFEST, RUN_FILE)):
        return [folder]
    below = {path.parent for name in (MANIFEST, RUN_FILE) for path in folder.glob(f"*/**/{name}")}
    inner = {"final", "checkpoints", "trackers", "mlruns", FOLDER}
    return sorted(path for path in below if not inner & set(path.relative_to(folder).parts)) or [folder]


def _require_facts(folder: Path) -> None:
    """Write a run's metadata for W&B if its stage could not, or had tracking disabled.

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
    """`tiebreak wandb sync FOLDER …` and `tiebreak wandb workspace GROUP`"""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> None:
        if words[:1] == ["workspace"]:
            save_workspace(words[1:])
        elif words[:1] == ["sync"]:
            sync(words[1:])
        else:
            raise ConfigError("usage: tiebreak wandb sync FOLDER …, or tiebreak wandb workspace GROUP")

    exit_with_message(run)


if __name__ == "__main__":
    main()

"""Send runs to Trackio, TensorBoard or MLflow that ran without, or whose copy is incomplete.

tiebreak track mlflow runs/quickstart          finished and interrupted runs, inputs first
"""

from __future__ import annotations

import contextlib
import io
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from tiebreak.command.help import print_help, wants_help
from tiebreak.config import Section, TrackingConfig, load_config
from tiebreak.errors import ConfigError, MachineError, counted
from tiebreak.extras import require_trackers
from tiebreak.files import write_json
from tiebreak.process.ending import exit_with_message
from tiebreak.terminal import say
from tiebreak.tracking.contents import in_order, read_json
from tiebreak.tracking.facts import facts_in
from tiebreak.tracking.sync import runs_in
from tiebreak.tracking.tracker_copy import FOLDER, TrackerCopy, facts_file
from tiebreak.tracking.tracker_process import project_of
from tiebreak.tracking.trackers import TRACKERS, build_tracker
from tiebreak.tracking.wandb_copy import one_line


class TrackArguments(Section):
    """`tiebreak track`. TRACKER is trackio, tensorboard or mlflow; FOLDERS are run folders, or folders of them."""

    project: str | None = None
    """Trackio's project or MLflow's experiment; null: that of each run's configuration"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `tiebreak track`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_message(lambda: print_help(["track", *words]) if wants_help(words) else _run(words))


def _run(words: list[str]) -> None:
    number = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    named, flags = words[:number], words[number:]
    if len(named) < 2 or named[0] not in TRACKERS:
        raise ConfigError(f"usage: tiebreak track {'|'.join(TRACKERS)} RUN … [--project NAME]")
    track(named[0], named[1:], load_config(TrackArguments, flags, "track").project)


def track(name: str, folders: Sequence[str], project: str | None = None) -> None:
    """Send runs to a tracker, inputs first. A run that was sent before becomes the same run there.

    Raises:
        ConfigError: the tracker's package is not installed, or a folder holds no run.
        MachineError: the tracker fails.
    """
    require_trackers([name])
    for folder in in_order([run for named in folders for run in runs_in(Path(named))]):
        _write_facts(folder, name, project)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # clients announce themselves
                copy = TrackerCopy(folder, name, build_tracker(name))
                copy.begin()
                copy.send_rows()
                manifest = copy.end()
        except Exception as error:
            raise MachineError(f"{TRACKERS[name].title} rejects {folder}: {one_line(error)}") from error
        copy.note(state="done", manifest_id=manifest.get("id"), place=copy.tracker.place)
        print(f"sent {folder}: {counted(copy.rows, 'row')}", flush=True)
    say(f"{TRACKERS[name].title}: {copy.tracker.place}")


def _write_facts(folder: Path, name: str, project: str | None) -> None:
    """The run's metadata for the tracker, with the identity that it has there."""
    if not (facts := facts_in(folder)):
        raise ConfigError(f"{folder} holds no run: it has neither manifest.json nor run.json")
    before = read_json(facts_file(folder, name))
    same = before.get("fingerprint") == facts["fingerprint"]
    own = {
        "run_id": before["run_id"] if same and before.get("run_id") else secrets.token_hex(4),
        "project": project or project_of(TrackingConfig(**facts["config"].get("tracking", {})), name),
    }
    try:
        (folder / FOLDER).mkdir(exist_ok=True)
        write_json(facts_file(folder, name), {**facts, **own})
    except OSError as error:
        raise MachineError(
            f"{folder / FOLDER} cannot be written ({error.strerror}): the run's identity belongs there"
        ) from error

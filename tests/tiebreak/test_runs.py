"""Run folders: finished by one rename, never overwritten, gone on with after a crash, told apart by what they hold."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY, snapshot, write_checkpoint

from tiebreak import runs
from tiebreak.config import StageConfig
from tiebreak.errors import RunError
from tiebreak.records import write_json, write_text_atomically
from tiebreak.runs import (
    Identity,
    Run,
    folder_state,
    identify,
    identify_input,
    in_batches,
    manifest_chain,
    read_manifest,
    start_run,
)


class StudyConfig(StageConfig):
    """A stage that reads one thing."""

    data: str
    beta: float = 0.1
    note: str = ""


def start(folder: Path, data: Path, **values: Any) -> Run:
    return start_run(StudyConfig(output=str(folder), data=str(data), **values), "study", {"data": str(data)})


def finish(run: Run, content: str = "made") -> dict[str, Any]:
    (run.final / "result.txt").write_text(content)
    return run.finish()


def let_go(run: Run) -> None:
    """Give the lock back, as the end of the process does."""
    if run._lock is not None:
        os.close(run._lock)
        run._lock = None


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a"}\n')
    return path


# --- start and finish ------------------------------------------------------------------------------------------------


def test_a_run_is_an_input_only_once_its_manifest_is_there(tmp_path: Path, data: Path) -> None:
    run = start(tmp_path / "run", data)
    with pytest.raises(RunError, match=r"is not finished.*run 'tiebreak study --config .*config\.resolved\.yaml'"):
        identify_input(str(run.folder))
    with pytest.raises(RunError, match="no finished run"):
        read_manifest(run.folder)
    manifest = finish(run)
    assert run.finished
    assert read_manifest(run.folder) == json.loads(json.dumps(manifest))
    assert identify_input(str(run.folder)) == runs.Input(str(run.folder), "run", manifest["id"])
    # sha256 of b"made", by hashlib
    import hashlib

    assert manifest["outputs"] == {"final/result.txt": hashlib.sha256(b"made").hexdigest()}
    assert manifest["inputs"]["data"]["id"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert not list(run.folder.glob(".*tmp*"))


def test_an_empty_run_is_not_finished(tmp_path: Path, data: Path) -> None:
    run = start(tmp_path / "run", data)
    with pytest.raises(RunError, match="nothing was written"):
        run.finish()
    assert not (run.folder / "manifest.json").exists()
    let_go(run)


def test_the_same_command_does_nothing_once_finished(tmp_path: Path, data: Path) -> None:
    finish(start(tmp_path / "run", data))
    before = snapshot(tmp_path / "run")
    again = start(tmp_path / "run", data)
    assert again.finished
    assert snapshot(tmp_path / "run") == before


def test_a_cut_off_run_goes_on_from_its_last_complete_checkpoint(tmp_path: Path, data: Path) -> None:
    run = start(tmp_path / "run", data)
    assert run.checkpoint is None
    for step, complete in ((9, True), (10, True), (11, False)):
        checkpoint = write_checkpoint(run.checkpoints, step)
        if not complete:
            (checkpoint / "COMPLETE").unlink()
    (run.final / "half-written").touch()
    let_go(run)
    again = start(tmp_path / "run", data)
    assert not again.finished
    assert again.checkpoint == str(again.checkpoints / "checkpoint-10")  # by number: 10 comes after 9
    assert not (again.checkpoints / "checkpoint-11").exists()
    assert not list(again.final.iterdir())
    let_go(again)


# --- fingerprints and ids --------------------------------------------------------------------------------------------


def test_the_fingerprint_ignores_where_inputs_lie_and_not_what_they_hold(tmp_path: Path, data: Path) -> None:
    moved, changed = tmp_path / "moved.jsonl", tmp_path / "changed.jsonl"
    shutil.copy(data, moved)
    changed.write_text('{"prompt": "b"}\n')
    fingerprints = {}
    for name, path, values in (
        ("first", data, {}),
        ("moved", moved, {}),
        ("changed", changed, {}),
        ("beta", data, {"beta": 0.2}),
        ("tracked", data, {"tracking": {"mode": "disabled", "tags": ["x"]}}),
    ):
        run = start(tmp_path / name, path, **values)
        fingerprints[name] = run.fingerprint
        let_go(run)
    assert fingerprints["first"] == fingerprints["moved"] == fingerprints["tracked"]
    assert len({fingerprints["first"], fingerprints["changed"], fingerprints["beta"]}) == 3


def test_equal_runs_in_other_folders_have_one_id(tmp_path: Path, data: Path) -> None:
    moved = tmp_path / "elsewhere.jsonl"
    shutil.copy(data, moved)
    first = finish(start(tmp_path / "a", data))
    second = finish(start(tmp_path / "b" / "c", moved))
    assert first["id"] == second["id"]
    assert finish(start(tmp_path / "d", data), "something else")["id"] != first["id"]
    assert finish(start(tmp_path / "e", data, beta=0.2))["id"] != first["id"]


def test_the_chain_of_a_run_comes_inputs_first_each_once(tmp_path: Path, data: Path) -> None:
    finish(start(tmp_path / "a", data))
    finish(start(tmp_path / "b", tmp_path / "a"))
    assert [Path(where).name for where, _ in manifest_chain(tmp_path / "b")] == ["a", "b"]


# --- what a folder holds ---------------------------------------------------------------------------------------------


def identity_of(folder: Path, data: Path, **values: Any) -> Identity:
    return identify(StudyConfig(output=str(folder), data=str(data), **values), "study", {"data": str(data)})


def state_of(folder: Path, data: Path, **values: Any) -> str:
    return folder_state(folder, identity_of(folder, data, **values))[0]


def test_the_states_of_a_folder(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "run"
    assert state_of(folder, data) == "new"
    folder.mkdir()
    assert state_of(folder, data) == "new"
    run = start(folder, data)
    assert state_of(folder, data) == "cut off"
    assert state_of(folder, data, beta=0.2) == "new"  # a start that came to nothing
    (run.checkpoints / "checkpoint-1").mkdir(parents=True)
    assert state_of(folder, data, beta=0.2) == "new"  # half a checkpoint is nothing
    (run.checkpoints / "checkpoint-1" / "COMPLETE").touch()
    assert state_of(folder, data, beta=0.2) == "other"
    finish(run)
    assert state_of(folder, data) == "finished"
    assert state_of(folder, data, beta=0.2) == "other"


def test_a_folder_with_anything_of_the_users_is_never_written_to(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("do not lose")
    with pytest.raises(RunError, match="nothing is overwritten"):
        start(folder, data)
    assert snapshot(folder) == {"thesis.txt": b"do not lose"}
    with pytest.raises(RunError, match="is a file, and nothing is overwritten"):
        start(folder / "thesis.txt", data)
    assert snapshot(folder) == {"thesis.txt": b"do not lose"}


def test_a_conflict_names_the_keys_that_differ_and_changes_nothing(tmp_path: Path, data: Path) -> None:
    finish(start(tmp_path / "run", data))
    before = snapshot(tmp_path / "run")
    with pytest.raises(RunError) as caught:
        start(tmp_path / "run", data, beta=0.2, note="new")
    assert "beta (0.1 there, 0.2 now), note ('' there, 'new' now)" in str(caught.value)
    assert "--output" in str(caught.value)
    data.write_text('{"prompt": "z"}\n')
    with pytest.raises(RunError, match="its configuration is the same, its inputs are not"):
        start(tmp_path / "run", data)
    with pytest.raises(RunError, match="it was made by 'study', not 'other'"):
        start_run(StudyConfig(output=str(tmp_path / "run"), data=str(data)), "other", {"data": str(data)})
    assert snapshot(tmp_path / "run") == before


def test_inputs_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no such input: .*gone\.jsonl"):
        identify_input(str(tmp_path / "gone.jsonl"))
    with pytest.raises(RunError, match="no such input: runs/gone"):
        identify_input("runs/gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="no run folder, model or data"):
        identify_input(str(tmp_path / "empty"))
    assert identify_input("bundled:some-model").kind == "name"


@pytest.mark.parametrize(("text", "told"), [("{", "is broken"), ("{}", "no id or stage"), ("[]", "no id or stage")])
def test_a_broken_manifest_is_said_to_be_one(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=told):
        read_manifest(tmp_path)


def test_two_processes_cannot_write_one_folder(tmp_path: Path, data: Path) -> None:
    run = start(tmp_path / "run", data)
    code = (
        "import sys\nfrom test_runs import start\nfrom pathlib import Path\n"
        "from tiebreak.errors import exit_with_message\n"
        "exit_with_message(lambda: start(Path(sys.argv[1]), Path(sys.argv[2])))"
    )
    again = [sys.executable, "-c", code, str(run.folder), str(data)]
    paths = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests"), str(Path(__file__).parent)])}
    refused = subprocess.run(again, env={**os.environ, **paths}, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert f"another process is writing {run.folder}" in refused.stderr
    let_go(run)
    assert subprocess.run(again, env={**os.environ, **paths}, check=False).returncode == 0


# --- kill -9 ---------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from tiebreak.records import write_text_atomically
path, number = Path(sys.argv[1]), 0
while True:
    number += 1
    write_text_atomically(path, str(number % 10) * 2_000_000)
"""


def test_kill_9_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_text_atomically(path, "0" * 2_000_000)
    first = path.stat().st_mtime_ns
    for pause in (0.02, 0.05, 0.09):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
        )
        deadline = time.monotonic() + 20
        while path.stat().st_mtime_ns == first and time.monotonic() < deadline:
            time.sleep(0.005)
        first = path.stat().st_mtime_ns
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        text = path.read_text()
        assert len(text) == 2_000_000
        assert len(set(text)) == 1


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"old": True})
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "new \ud800")
    assert snapshot(tmp_path) == {"file.json": b'{\n  "old": true\n}\n'}


# --- batches ---------------------------------------------------------------------------------------------------------


def test_batches_are_computed_once_over_a_crash(tmp_path: Path, data: Path) -> None:
    run = start(tmp_path / "run", data)
    computed: list[list[int]] = []

    def square(batch: list[int], advance: Callable[[int], object]) -> list[int]:
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(batch)
        advance(1)
        return [n * n for n in batch]

    with pytest.raises(KeyboardInterrupt):
        in_batches(run, list(range(7)), 3, square, "squares")
    assert computed == [[0, 1, 2], [3, 4, 5]]
    let_go(run)
    again = start(tmp_path / "run", data)
    computed.clear()
    assert in_batches(again, list(range(7)), 3, square, "squares") == [n * n for n in range(7)]
    assert computed == [[6]]
    finish(again)
    runs.clear_partial(again)
    assert not (again.folder / "partial").exists()


def test_metrics_are_read_less_a_torn_last_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert runs.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]
    assert runs.read_metrics(tmp_path / "nowhere") == []

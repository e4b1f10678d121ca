"""Run folders: finished by one rename, never overwritten, resumed after a crash, distinguished by their contents."""

from __future__ import annotations

import errno
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

from tiebreak.config import StageConfig, TrainingConfig
from tiebreak.errors import ConfigError, RunError
from tiebreak.files import write_json, write_text_atomically
from tiebreak.runs import hub
from tiebreak.runs import run as runs
from tiebreak.runs.chain import manifest_chain
from tiebreak.runs.placement import loads_in_shards, of_file, require_agreement
from tiebreak.runs.run import (
    Identity,
    Run,
    folder_state,
    identify,
    identify_input,
    in_batches,
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
    with run:
        pass


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a"}\n')
    return path


def test_a_run_that_is_left_by_an_exception_frees_its_folder_and_keeps_what_it_had(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "run"

    def fail() -> None:
        with start(folder, data) as run:
            write_checkpoint(run.checkpoints, 3)
            assert runs.is_locked(folder)
            with pytest.raises(RunError, match="another process is writing"):
                start(folder, data)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not runs.is_locked(folder)
    assert not (folder / "manifest.json").exists()
    with start(folder, data) as run:  # in the same process
        assert run.checkpoint == str(folder / "checkpoints" / "checkpoint-3")
        finish(run)
        assert not runs.is_locked(folder)  # whoever reads a finished run need not wait for its reports
    with start(folder, data) as run:
        assert run.finished


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
    with pytest.raises(RunError, match="is not a run folder, a model or data"):
        identify_input(str(tmp_path / "empty"))
    assert identify_input("bundled:some-model").kind == "name"


@pytest.mark.parametrize(("text", "reason"), [("{", "is broken"), ("{}", "no id or stage"), ("[]", "no id or stage")])
def test_a_broken_manifest_is_reported_as_one(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=reason):
        read_manifest(tmp_path)


def rewrite(path: Path, **changes: Any) -> None:
    record = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del record[key]
        else:
            record[key] = value
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("file", ["manifest.json", "run.json"])
def test_a_record_that_lacks_something_or_is_of_a_later_version_is_refused(
    tmp_path: Path, data: Path, file: str
) -> None:
    run = start(tmp_path / "run", data)
    if file == "manifest.json":
        finish(run)
    else:
        write_checkpoint(run.checkpoints, 1)
        let_go(run)
    record = (run.folder / file).read_text()
    for changes, message in (
        ({"inputs": None}, "is broken .no inputs.: remove"),
        ({"inputs": {"data": {"source": "x"}}}, "is broken .no inputs."),
        ({"format": 99}, "has format 99, but this version of Tiebreak supports up to 2.*update Tiebreak"),
    ):
        rewrite(run.folder / file, **changes)
        with pytest.raises(RunError, match=message):
            start(tmp_path / "run", data)
        (run.folder / file).write_text(record)
    (run.folder / file).write_text(record[: len(record) // 2])
    with pytest.raises(RunError, match=f"{file} is broken"):
        start(tmp_path / "run", data)
    (run.folder / file).write_text(record)
    let_go(start(tmp_path / "run", data))


def test_a_cut_off_run_of_an_older_version_continues(tmp_path: Path, data: Path) -> None:
    """Its run.json holds no configuration, which lies beside it."""
    run = start(tmp_path / "run", data)
    write_checkpoint(run.checkpoints, 3)
    let_go(run)
    rewrite(run.folder / "run.json", format=None, config=None, processes=None, seconds=None)
    again = start(tmp_path / "run", data)
    assert again.checkpoint == str(again.checkpoints / "checkpoint-3")
    let_go(again)
    with pytest.raises(RunError, match=r"beta \(0.1 there, 0.5 now\)"):
        start(tmp_path / "run", data, beta=0.5)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_folder_that_cannot_be_written_is_an_error_with_a_next_step(
    tmp_path: Path, data: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match=rf"run is not writable \({os.strerror(number)}\): give another --output"):
        start(tmp_path / "run", data)


def test_seconds_are_summed_over_attempts_and_never_negative(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: 100 s up to what was kept, 40 s lost, 30 s to the end; the wall clock goes back a day in between."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    run = start(tmp_path / "run", data)
    clock[0] += 100
    run.note_seconds()
    clock[0] += 40
    let_go(run)
    clock[0] = 5.0  # another machine's
    monkeypatch.setattr(time, "time", lambda: 0.0)
    again = start(tmp_path / "run", data)
    clock[0] += 30
    assert finish(again)["seconds"] == 130.0


def test_a_run_of_other_processes_is_not_resumed(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number of processes distributes the rows differently, so some would be trained twice, or never."""
    run = start_training(tmp_path / "run", data)
    write_checkpoint(run.checkpoints, 3)
    let_go(run)
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = r"on 1 process with 8 rows a step, and this command has 2 processes \(ddp\) with 16"
    with pytest.raises(RunError, match=message):
        start_training(tmp_path / "run", data)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    other = start_training(tmp_path / "other", data)
    record = json.loads((other.folder / "run.json").read_text())
    assert (record["processes"], record["distributed"], record["global_batch"]) == (2, "zero3", 16)
    first = (other.folder / "config.resolved.yaml").read_text().splitlines()[0]
    assert first == "# 2 processes (zero3), 16 rows an optimizer step"
    write_checkpoint(other.checkpoints, 3)
    let_go(other)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    with pytest.raises(RunError, match=r"on 2 processes \(zero3\) .* has 2 processes \(zero2\) with 16"):
        start_training(tmp_path / "other", data)


class TrainingStudyConfig(StudyConfig):
    """A stage that trains."""

    training: TrainingConfig = TrainingConfig(per_device_batch_size=4, gradient_accumulation_steps=2)


def start_training(folder: Path, data: Path, **values: Any) -> Run:
    config = TrainingStudyConfig(output=str(folder), data=str(data), **values)
    return start_run(config, "study", {"data": str(data)})


def test_hub_inputs_count_by_their_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit is the cache's; where none is known, the name alone counts."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = "some-lab/some-model"

    def start_with(commit: str | None) -> str:
        refs = tmp_path / "hub" / "models--some-lab--some-model" / "refs"
        refs.mkdir(parents=True, exist_ok=True)
        (refs / "main").unlink(missing_ok=True)
        if commit:
            (refs / "main").write_text(commit)
        hub.model_commit.cache_clear()
        identity = identify(StudyConfig(output="run", data=source), "study", {"data": source})
        if not (tmp_path / "run" / "manifest.json").exists():
            finish(start_run(StudyConfig(output=str(tmp_path / "run"), data=source), "study", {"data": source}))
        return folder_state(tmp_path / "run", identity)[0]

    assert start_with("a" * 40) == "finished"
    assert read_manifest(tmp_path / "run")["inputs"]["data"]["id"] == f"{source}#{'a' * 40}"
    assert start_with("b" * 40) == "other"
    assert start_with(None) == "finished"
    hub.model_commit.cache_clear()


def test_an_accelerate_file_that_disagrees_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer would take mixed_precision from the file where the configuration says float32."""
    training = TrainingConfig(precision="float32", gradient_accumulation_steps=2)
    require_agreement(training, "no")
    for name, value, message in (
        ("MIXED_PRECISION", "bf16", "mixed_precision: bf16, but training.precision is float32"),
        ("GRADIENT_ACCUMULATION_STEPS", "4", "training.gradient_accumulation_steps is 2"),
        ("GRADIENT_CLIPPING", "0.5", "training.max_grad_norm is 1.0"),
    ):
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
        with pytest.raises(ConfigError, match=message):
            require_agreement(training, "no")
        monkeypatch.delenv(f"ACCELERATE_{name}")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    require_agreement(TrainingConfig(), "bf16")


@pytest.mark.parametrize(
    ("stage", "flag", "shards"), [("3", "true", True), ("3", "false", False), ("2", "true", False)]
)
def test_weights_are_sharded_as_they_load_if_zero3_is_asked_to(
    monkeypatch: pytest.MonkeyPatch, stage: str, flag: str, shards: bool
) -> None:
    for name, value in (("USE_DEEPSPEED", "true"), ("DEEPSPEED_ZERO_STAGE", stage), ("DEEPSPEED_ZERO3_INIT", flag)):
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    assert loads_in_shards() is shards


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "configs" / "accelerate").glob("*.yaml")), ids=lambda file: file.stem
)
def test_the_place_that_an_accelerate_file_gives(file: Path) -> None:
    expected = {
        "cpu": "1 process",
        "single_gpu": "1 process",
        "multi_gpu": "8 processes (ddp)",
        "cpu_zero1": "2 processes (zero1)",
        "cpu_zero2": "2 processes (zero2)",
        "cpu_zero3": "2 processes (zero3)",
        "zero1": "8 processes (zero1)",
        "zero2": "8 processes (zero2)",
        "zero3": "8 processes (zero3)",
        "zero3_sharded_load": "8 processes (zero3)",
        "zero3_offload": "8 processes (zero3)",
        "multi_node_zero3": "16 processes (zero3)",
        "fsdp2": "8 processes (fsdp)",
    }
    assert str(of_file(file)) == expected[file.stem]
    assert of_file(file, 4).processes == 4


def test_two_processes_cannot_write_one_folder(tmp_path: Path, data: Path) -> None:
    run = start(tmp_path / "run", data)
    code = (
        "import sys\nfrom test_runs import start\nfrom pathlib import Path\n"
        "from tiebreak.process.ending import exit_with_message\n"
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
from tiebreak.files import write_text_atomically
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
        while path.stat().st_mtime_ns == first:
            assert writer.poll() is None, "the writer ended by itself"
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


def test_metrics_of_a_damaged_file_are_its_whole_rows(tmp_path: Path) -> None:
    """A disk that was full or lost power leaves other bytes behind."""
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\x00\n5\nnull\n{"step": 2}\n')
    assert [row["step"] for row in runs.read_metrics(tmp_path)] == [1, 2]


def test_a_finished_run_that_lost_its_outputs_is_not_taken_for_done(tmp_path: Path, data: Path) -> None:
    run = start(tmp_path / "run", data)
    (run.final / "merged").mkdir()
    (run.final / "merged" / "config.json").write_text("{}")
    finish(run)
    (run.final / "merged" / "config.json").unlink()  # can be removed to save space
    assert start(tmp_path / "run", data).finished
    (run.final / "result.txt").unlink()
    with pytest.raises(RunError, match=r"was finished, and lacks final/result\.txt of what it made"):
        start(tmp_path / "run", data)

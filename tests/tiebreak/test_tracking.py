"""What a run tells: where W&B's mode comes from, and the rows that a resumed run keeps."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tiebreak.config import StageConfig, TrackingConfig
from tiebreak.runs import read_metrics, start_run
from tiebreak.tracking import RunRecorder, track, tracking_mode


@pytest.fixture(autouse=True)
def nobody_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_the_configuration_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "x")
    for mode in ("online", "offline", "disabled"):
        assert tracking_mode(TrackingConfig(mode=mode)) == mode


def test_then_wandbs_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x")
    for mode in ("online", "offline", "disabled"):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert tracking_mode(TrackingConfig()) == mode


def test_then_a_login_and_without_one_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert tracking_mode(TrackingConfig()) == "offline"
    (tmp_path / "netrc").write_text("machine example.com login a password b\n")
    assert tracking_mode(TrackingConfig()) == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert tracking_mode(TrackingConfig()) == "online"
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert tracking_mode(TrackingConfig()) == "online"


@pytest.fixture
def recorder(tmp_path: Path) -> RunRecorder:
    config = StageConfig(output=str(tmp_path / "run"), tracking=TrackingConfig(mode="disabled"))
    return RunRecorder(start_run(config, "study", {}))


def test_what_is_measured_between_two_steps_is_no_part_of_their_time(
    recorder: RunRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 1 and 2 take 3 s each, and between them something else takes 40 s."""
    clock = [100.0]
    monkeypatch.setattr("tiebreak.tracking.time.monotonic", lambda: clock[0])
    recorder.row(0, {"loss": 1.0})
    for seconds, step, beside in ((3.0, 1, None), (40.0, 1, 40.0), (3.0, 2, None)):
        clock[0] += seconds
        recorder.row(step, {"loss": 1.0}, beside)
    recorder.row(2, {"loss": 1.0}, 0.5)
    assert [row["step_seconds"] for row in read_metrics(recorder.run.folder)][1:] == [3.0, 40.0, 3.0, 0.5]


def test_rows_are_json_and_what_is_no_number_is_null(recorder: RunRecorder) -> None:
    recorder.row(1, {"loss": 0.5, "eval_loss": math.nan, "grad_norm": math.inf, "note": "text"})
    (row,) = [json.loads(line) for line in recorder.run.metrics.read_text().splitlines()]
    assert row.pop("step_seconds") >= 0
    assert row == {"step": 1, "loss": 0.5, "eval_loss": None, "grad_norm": None}


def test_a_resumed_run_keeps_the_rows_up_to_its_checkpoint(recorder: RunRecorder) -> None:
    for step in range(1, 6):
        recorder.row(step, {"loss": float(step)})
    with recorder.run.metrics.open("a") as file:
        file.write('{"step": 6, "lo')  # cut off while writing
    recorder.keep_up_to(3)
    recorder.row(4, {"loss": 40.0})
    rows = read_metrics(recorder.run.folder)
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    recorder.keep_up_to(0)
    assert recorder.run.metrics.read_text() == ""


def test_a_run_that_starts_again_after_a_torn_row_writes_whole_ones(recorder: RunRecorder) -> None:
    recorder.run.metrics.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    recorder.keep_up_to(1)
    recorder.row(2, {"loss": 2.0})
    assert [row["loss"] for row in read_metrics(recorder.run.folder)] == [1.0, 2.0]


def test_a_table_of_examples_is_a_file_of_the_run(recorder: RunRecorder) -> None:
    recorder.table("samples", ["prompt", "completion"], [["Why?", "Därum."], ["How?", "So\nso."]])
    rows = [json.loads(line) for line in (recorder.run.folder / "samples.jsonl").read_text().split("\n")[:-1]]
    assert rows == [{"prompt": "Why?", "completion": "Därum."}, {"prompt": "How?", "completion": "So\nso."}]


def test_other_processes_of_a_launch_write_nothing(recorder: RunRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder.row(1, {"loss": 1.0})
    monkeypatch.setenv("RANK", "1")
    recorder.row(2, {"loss": 2.0})
    recorder.keep_up_to(0)
    recorder.table("samples", ["a"], [["b"]])
    assert [row["step"] for row in read_metrics(recorder.run.folder)] == [1]
    assert not (recorder.run.folder / "samples.jsonl").exists()


def test_a_stage_that_trains_nothing_reads_back_from_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIEBREAK_GROUP", "recipe-1")
    config = StageConfig(output=str(tmp_path / "run"), tracking=TrackingConfig(mode="offline", tags=["mine"]))
    run = start_run(config, "study", {})
    run.facts["metrics"] = {"sft": {"rubric_mean": 0.7125}}
    (run.final / "answers.jsonl").write_text("{}\n")
    run.finish()
    track(run, [run.final / "answers.jsonl"])
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(offline)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    for fact in ("recipe-1", '"study"', "mine", "rubric_mean", "0.7125", "answers.jsonl", "manifest.json"):
        assert fact in told

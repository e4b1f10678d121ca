"""Trackio, TensorBoard and MLflow: each copy is read back with the tracker's own reader, and no failure of one costs a
stage anything."""

from __future__ import annotations

import importlib.util
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import TINY_TRAINING, end_process, run_here, seconds_here, write_config

from tiebreak.config import StageConfig, TrackingConfig
from tiebreak.runs.run import start_run
from tiebreak.tracking.recorder import RunRecorder
from tiebreak.tracking.tracker_copy import state_file

ALL = ["trackio", "tensorboard", "mlflow"]


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every tracker's own store is below the test's folder."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr("tiebreak.tracking.recorder.LONGEST_WAIT", 300.0)  # a busy machine is not a fault


def start(folder: Path, *names: str, **tracking: Any) -> RunRecorder:
    """A recorder of a run in `folder`, new or to be continued."""
    end_process(folder)
    config = TrackingConfig(report_to=list(names), project="p", tags=["t"], **tracking)
    return RunRecorder(start_run(StageConfig(output=str(folder), tracking=config), "study", {}))


def log(recorder: RunRecorder, *steps: int) -> None:
    for step in steps:
        recorder.row(step, {"loss": 1 / step, "eval_loss": float("nan") if step == 2 else 2 / step})


def finish(recorder: RunRecorder, **facts: Any) -> None:
    (recorder.run.final / "weights.txt").write_text("w")
    recorder.run.facts |= facts
    recorder.run.finish()
    recorder.finish()


def rows_sent(folder: Path, name: str, count: int) -> None:
    """Wait until a copy has sent this many rows."""
    give_up = time.monotonic() + 600
    while time.monotonic() < give_up:
        path = state_file(folder, name)
        state = json.loads(path.read_text()) if path.is_file() else {}
        if state.get("rows") == count:
            return
        assert "error" not in state, state
        time.sleep(0.1)
    raise AssertionError(f"{name} has not sent {count} rows")


# --- each tracker's own reader: the curve of a figure, the final figures, the configuration ---


def read_trackio(_folder: Path, figure: str) -> list[tuple[int, float]]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs("p")
    points = SQLiteStorage.get_metric_values("p", run.name, figure, run_id=run.id)
    steps = SQLiteStorage.get_metric_values("p", run.name, "train/global_step", run_id=run.id)
    optimizer = {row["step"]: row["value"] for row in steps}
    return [(int(optimizer.get(row["step"], 0)), row["value"]) for row in points]


def read_tensorboard(folder: Path, figure: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / "trackers" / "tensorboard"))
    reader.Reload()
    return [(point.step, point.value) for point in reader.Scalars(figure)]


def read_mlflow(_folder: Path, figure: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, figure)]


READERS: dict[str, Callable[[Path, str], list[tuple[int, float]]]] = {
    "trackio": read_trackio,
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
}


@pytest.mark.parametrize("name", ALL)
def test_a_resumed_run_is_one_run_with_each_row_once(tmp_path: Path, name: str) -> None:
    """The copy is killed after four rows; the stage resumes from its second."""
    first = start(tmp_path / "dpo", name)
    first.keep_up_to(0)
    log(first, 1, 2, 3, 4)
    rows_sent(tmp_path / "dpo", name, 4)
    (process,) = (one._process for one in first._others)
    assert process is not None
    process.kill()
    process.wait()

    again = start(tmp_path / "dpo", name)
    again.keep_up_to(2)
    log(again, 3, 4, 5)
    again.table("samples", ["prompt", "completion"], [["Why?", "Därum | so."]])
    finish(again, metrics={"held_out_accuracy": 0.75})
    read = READERS[name]
    assert read(tmp_path / "dpo", "train/loss") == [(step, pytest.approx(1 / step)) for step in range(1, 6)]
    assert [step for step, _ in read(tmp_path / "dpo", "eval/loss")] == [1, 3, 4, 5]  # no figure where it was NaN
    assert [value for _, value in read(tmp_path / "dpo", "final/held_out_accuracy")] == [0.75]
    assert json.loads(state_file(tmp_path / "dpo", name).read_text())["state"] == "done"
    if name == "mlflow":
        require_all_in_mlflow(tmp_path / "dpo")


def require_all_in_mlflow(folder: Path) -> None:
    """The configuration, the run's identity, its table and its files."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    assert run.data.params["tracking.tags"] == "t"
    assert run.data.tags["manifest_id"] == json.loads((folder / "manifest.json").read_text())["id"]
    assert run.info.status == "FINISHED"
    assert {one.path for one in client.list_artifacts(run.info.run_id)} == {"manifest.json", "tables"}
    table = client.download_artifacts(run.info.run_id, "tables/samples.json", str(folder.parent))
    expected = {"columns": ["prompt", "completion"], "data": [["Why?", "Därum | so."]]}
    assert json.loads(Path(table).read_text()) == expected


def test_a_tracker_that_fails_or_hangs_costs_nothing_and_gets_the_run_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLflow's server accepts connections and never answers; TensorBoard's copy is complete all the same."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("tiebreak.tracking.recorder.LONGEST_WAIT", 8.0)
        monkeypatch.setattr("tiebreak.tracking.tracker_process.SECONDS_AFTER", 12.0)
        recorder = start(tmp_path / "dpo", "tensorboard", "mlflow")
        recorder.keep_up_to(0)
        log(recorder, 1, 2)
        began = time.monotonic()
        finish(recorder)
        assert time.monotonic() - began < seconds_here(20)
    assert read_tensorboard(tmp_path / "dpo", "train/loss") == [(1, 1), (2, 0.5)]
    message = capsys.readouterr().err
    assert "MLflow: " in message
    assert f"'tiebreak track mlflow {tmp_path / 'dpo'}' sends the run again" in message
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    with (tmp_path / "dpo" / "metrics.jsonl").open("a") as file:
        file.write('{"loss": 3.0\nno row\n')  # cut off, and written on
    for project in ((), ("--project", "q"), ()):  # a second time nothing is sent twice
        status, printed = run_here("track", "mlflow", tmp_path / "dpo", *project)
        assert status == 0, printed
    assert read_mlflow(tmp_path / "dpo", "train/loss") == [(1, 1), (2, 0.5)]
    (tmp_path / "empty").mkdir()
    status, printed = run_here("track", "mlflow", tmp_path / "empty")
    assert status == 2
    assert "holds no run" in printed


def test_a_tracker_that_is_not_installed_is_refused_by_name_before_any_work(
    tmp_path: Path, raw_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    with monkeypatch.context() as without:
        without.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name == "mlflow" else found(name, *rest)
        )
        words = ("prepare", "--prompts", raw_data / "prompts.jsonl", "--output", tmp_path / "data")
        status, printed = run_here(*words, "--tracking.report_to", "mlflow", "tensorboard")
        assert status == 2
        assert "tracking.report_to: mlflow not installed: pip install 'tiebreak[mlflow]'" in printed
        assert not (tmp_path / "data").exists()


def test_trackers_change_no_weight(tmp_path: Path, tiny_model: Path, raw_data: Path) -> None:
    """Through the command line: the weights and the run's id with all three are those without any."""
    for name, tracking in (("with", {"report_to": ALL, "project": "p"}), ("without", {"mode": "disabled"})):
        config = write_config(
            tmp_path / f"{name}.yaml",
            output=tmp_path / name,
            policy=tiny_model,
            demonstrations=raw_data / "demonstrations.jsonl",
            adapter={"r": 4, "alpha": 8},
            training={**TINY_TRAINING, "max_steps": 2},
            tracking=tracking,
        )
        status, printed = run_here("sft", "--config", config)
        assert status == 0, printed
    weights = "final/adapter_model.safetensors"
    assert (tmp_path / "with" / weights).read_bytes() == (tmp_path / "without" / weights).read_bytes()
    ids = {json.loads((tmp_path / name / "manifest.json").read_text())["id"] for name in ("with", "without")}
    assert len(ids) == 1
    rows = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()]
    expected = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    for name in ALL:
        curve = READERS[name](tmp_path / "with", "train/loss")
        assert curve == [(step, pytest.approx(loss)) for step, loss in expected], name

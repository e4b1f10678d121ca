"""`tiebreak inspect`, as a process: what it says of finished, cut-off, changed and foreign folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import write_checkpoint

from tiebreak.command.inspect import figures_of, inspect_chain, inspect_run, last_metrics
from tiebreak.config import StageConfig
from tiebreak.files import write_json, write_jsonl
from tiebreak.runs import run as runs
from tiebreak.terminal.bars import duration

REPOSITORY = Path(__file__).parents[3]


class NoteConfig(StageConfig):
    """A stage's configuration, as far as a run folder needs one."""

    beta: float = 0.1


def inspect(*words: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `tiebreak inspect …`, in the current folder."""
    done = subprocess.run(
        [sys.executable, "-m", "tiebreak.command.cli", "inspect", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(autouse=True)
def two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """runs/sft, and runs/dpo made from it, both finished."""
    monkeypatch.chdir(tmp_path)
    sft = runs.start_run(NoteConfig(output="runs/sft"), "sft", {"policy": "bundled:some-model"})
    write_json(sft.final / "adapter.json", {"weights": [1, 2]})
    sft.finish()
    release(sft)
    dpo = runs.start_run(NoteConfig(output="runs/dpo", beta=0.2), "dpo", {"policy": "runs/sft"})
    write_json(dpo.final / "adapter.json", {"weights": [3, 4]})
    write_jsonl(dpo.metrics, [{"step": 1, "loss": 0.693, "eval_loss": 0.7}, {"step": 2, "loss": 0.5}])
    dpo.facts |= {"kinds": ["simulated"], "metrics": {"margin": 1.25}}
    dpo.finish()
    release(dpo)


def release(run: runs.Run) -> None:
    """Give the folder's lock back, as the end of a stage's process does where the run was not finished."""
    if run._lock is not None:
        os.close(run._lock)


def test_a_run_in_a_few_lines() -> None:
    status, out, _ = inspect("runs/dpo")
    made = runs.read_manifest("runs/dpo")
    size = Path("runs/dpo/final/adapter.json").stat().st_size
    assert status == 0
    assert out.splitlines() == [
        "runs/dpo: dpo, finished",
        f"  finished       {made['finished_at']}, took {duration(made['seconds'])}",
        "  made from      policy  runs/sft",
        "  judged by      simulated",
        "  loss           0.5",
        "  held-out loss  0.7",
        f"  state          the one output unchanged, {size} B",
        "",
        "everything else: tiebreak inspect runs/dpo --all",
    ]


def test_a_run_without_logged_metrics_shows_the_first_of_each_group() -> None:
    run = runs.start_run(NoteConfig(output="runs/evaluate"), "evaluate", {"policies.dpo": "runs/dpo"})
    run.facts |= {"metrics": {name: {"mean": 0.5, "other": 1} for name in "abcd"}, "counts": {"prompts": 4, "rows": 8}}
    write_json(run.final / "report.json", {})
    run.finish()
    release(run)
    assert figures_of(inspect_run("runs/evaluate")) == [
        ("a mean", "0.5"),
        ("b mean", "0.5"),
        ("c mean", "0.5"),
        ("d mean", "0.5"),
        ("prompts", "4"),
    ]


def test_a_run_with_counts_alone_shows_them() -> None:
    run = runs.start_run(NoteConfig(output="runs/label"), "label", {"pairs": "runs/dpo"})
    run.facts |= {"preferences": 3, "judgments": 12, "withdrawn": [], "event_log_head": "3432b5", "complete": True}
    write_json(run.final / "report.json", {})
    run.finish()
    release(run)
    assert figures_of(inspect_run("runs/label")) == [("preferences", "3"), ("judgments", "12")]


def test_everything_of_a_finished_run() -> None:
    status, out, _ = inspect("runs/dpo", "--all")
    assert status == 0
    first, *rest = out.splitlines()
    assert first == "runs/dpo: dpo, finished"
    assert "everything else" not in out
    shown = {
        line.split()[0]: " ".join(line.split()[1:]) for line in rest if line.startswith("  ") and len(line.split()) > 1
    }
    assert shown["id"] == runs.read_manifest("runs/dpo")["id"]
    assert shown["policy"] == f"runs/sft (run, {runs.read_manifest('runs/sft')['id'][:12]}: same)"
    assert shown["final/adapter.json"].endswith("same hash")
    assert (shown["beta"], shown["loss"], shown["eval_loss"]) == ("0.2", "0.5", "0.7")
    assert (shown["metrics.margin"], shown["kinds"]) == ("1.25", '["simulated"]')


def test_json_holds_the_same() -> None:
    status, out, _ = inspect("runs/dpo", "--json")
    shown = json.loads(out)
    assert status == 0
    assert (shown["stage"], shown["state"], shown["faults"]) == ("dpo", "finished", [])
    assert shown["config"]["beta"] == 0.2
    assert (
        shown["outputs"] == [{"name": "final/adapter.json", "bytes": 24, "state": "same"}]
        or shown["outputs"][0]["bytes"] > 0
    )


def test_the_chain_comes_inputs_first() -> None:
    status, out, _ = inspect("runs/dpo", "--chain", "--json")
    assert status == 0
    assert [one["folder"] for one in json.loads(out)] == ["runs/sft", "runs/dpo"]


def test_a_changed_a_lost_and_an_added_file_are_found() -> None:
    final = Path("runs/dpo/final")
    final.joinpath("adapter.json").write_text("{}", encoding="utf-8")
    final.joinpath("stray.json").write_text("{}", encoding="utf-8")
    status, out, _ = inspect("runs/dpo")
    assert status == 1
    assert "changed: final/adapter.json is changed" in out
    assert "changed: final/stray.json is not in the manifest" in out
    final.joinpath("adapter.json").unlink()
    assert "final/adapter.json is gone" in inspect_run("runs/dpo").faults


def test_an_input_that_is_now_another_run_is_found() -> None:
    manifest = Path("runs/sft/manifest.json")
    manifest.write_text(
        manifest.read_text(encoding="utf-8").replace(runs.read_manifest("runs/sft")["id"], "0" * 24), encoding="utf-8"
    )
    assert inspect_run("runs/dpo").faults == ["input policy (runs/sft) is changed"]
    manifest.unlink()
    assert inspect_run("runs/dpo").faults == ["input policy (runs/sft) is changed"]
    assert [one.state for one in inspect_chain("runs/dpo")] == ["interrupted before its first checkpoint", "finished"]


def test_a_cut_off_run_names_its_last_complete_checkpoint() -> None:
    Path("runs/dpo/manifest.json").unlink()
    for step, complete in ((5, True), (10, True), (15, False)):
        folder = write_checkpoint(Path("runs/dpo/checkpoints"), step)
        if not complete:
            (folder / "COMPLETE").unlink()
    status, out, _ = inspect("runs/dpo", "--all")
    assert status == 0
    assert out.splitlines()[0] == "runs/dpo: dpo, interrupted at checkpoint 10"
    assert "beta" in out  # from the saved configuration


def test_a_run_that_another_process_writes_is_reported_so() -> None:
    code = (
        "from tests_note import NoteConfig; from tiebreak.runs import run as runs\n"
        "runs.start_run(NoteConfig(output='runs/new'), 'sft', {}); print('ready', flush=True); input()"
    )
    Path("tests_note.py").write_text(
        "from tiebreak.config import StageConfig\nclass NoteConfig(StageConfig): ...\n", encoding="utf-8"
    )
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}."}
    writer: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    assert inspect_run("runs/new").state == "being written"
    writer.communicate("\n", timeout=10)
    assert inspect_run("runs/new").state == "interrupted before its first checkpoint"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("records.jsonl", "records.jsonl is a file: inspect takes a run folder"),
        ("nowhere", "no such folder: nowhere"),
        ("runs", "runs is not a run folder, but holds some: give one of runs/dpo, runs/sft"),
        ("empty", "empty is not a run folder: it has neither manifest.json nor run.json"),
        ("broken", "broken/manifest.json is broken"),
    ],
)
def test_what_is_not_a_run_folder_is_named(word: str, message: str) -> None:
    Path("records.jsonl").write_text("{}\n", encoding="utf-8")
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/manifest.json").write_text("{", encoding="utf-8")
    status, out, error = inspect(word)
    assert (status, out) == (1, "")
    assert error.startswith(f"error: {message}")
    assert "Traceback" not in error


def test_it_loads_nothing_slow() -> None:
    code = (
        "import sys; from tiebreak.command.inspect import main; main(['runs/dpo']); "
        "assert not {'torch', 'transformers', 'gradio', 'datasets', 'wandb', 'pandas'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )


def test_last_metrics_keep_figures_that_are_logged_rarely() -> None:
    rows: list[dict[str, Any]] = [{"step": 1, "eval_loss": 2.0}, {"step": 2, "loss": 1.0}]
    assert last_metrics(rows) == {"step": 2, "eval_loss": 2.0, "loss": 1.0}

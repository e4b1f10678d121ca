"""A run's metrics: the rows that a resumed run keeps, and a copy to W&B, which whatever happens to it costs no training."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY, end_process, offline_copy, run_command, snapshot, succeed, wait_for
from wandb_stand_in import KEY, WandbServer

from tiebreak.config import StageConfig, TrackingConfig
from tiebreak.runs.run import read_metrics, start_run
from tiebreak.tracking.contents import NewRows, in_order, judgments_by_rater, read_json, summary_of
from tiebreak.tracking.facts import _facts, _further_tags, facts_of, round_of, wanted_mode
from tiebreak.tracking.recorder import LONGEST_WAIT, RunRecorder, is_copied, track_again, tracked
from tiebreak.tracking.wandb_copy import records_in, rows_lacking


@pytest.fixture(autouse=True)
def nobody_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for limit in ("LONGEST_WAIT", "SECONDS_ONLINE"):  # a busy machine is not a fault
        monkeypatch.setattr(f"tiebreak.tracking.recorder.{limit}", 300.0)


def start(folder: Path, **tracking: Any) -> RunRecorder:
    """A recorder of a run in `folder`, new or to be continued."""
    end_process(folder)
    return RunRecorder(start_run(StageConfig(output=str(folder), tracking=TrackingConfig(**tracking)), "study", {}))


def log(recorder: RunRecorder, *steps: int) -> None:
    for step in steps:
        recorder.row(step, {"loss": 1 / step, "eval_loss": 2 / step})


def finish(recorder: RunRecorder, **facts: Any) -> None:
    (recorder.run.final / "weights.txt").write_text("w")
    recorder.run.facts |= facts
    recorder.run.finish()
    recorder.finish()


def running(recorder: RunRecorder) -> subprocess.Popen[bytes]:
    """The process that copies to W&B."""
    process = recorder._copy._process
    assert process is not None
    return process


def final_figures(records: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for one in records:
        summary |= one["summary"]["update"] if one["type"] == "summary" else {}
    return summary


def steps_in(records: list[dict[str, Any]]) -> list[int]:
    return [one["history"]["item"]["train/global_step"] for one in records if one["type"] == "history"]


# --- where the mode comes from ---


def test_the_configuration_comes_first_then_wandbs_own_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def mode(**tracking: Any) -> str:
        return wanted_mode(start(tmp_path / "run", **tracking).run)

    assert mode() == "auto"
    monkeypatch.setenv("WANDB_MODE", "online")
    for named in ("online", "offline", "disabled"):
        assert mode(mode=named) == named
    for variable, meant in (
        ("online", "online"),
        ("offline", "offline"),
        ("disabled", "disabled"),
        ("dryrun", "offline"),
    ):
        for written in (variable, variable.upper()):
            monkeypatch.setenv("WANDB_MODE", written)
            assert mode() == meant
    for variable, switch, meant in (("", "true", "disabled"), ("", "false", "auto"), ("offline", "true", "offline")):
        monkeypatch.setenv("WANDB_MODE", variable)
        monkeypatch.setenv("WANDB_DISABLED", switch)
        assert mode() == meant


def test_variables_that_wandb_itself_refuses_cost_no_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Empty ones, an id with a slash, and tags with an empty or a long one among them."""
    odd = {"MODE": "OFFLINE", "PROJECT": "", "NAME": " ", "RUN_ID": "team/7", "TAGS": f",,{'x' * 100},é"}
    with monkeypatch.context() as users:
        for name, value in odd.items():
            users.setenv(f"WANDB_{name}", value)
        recorder = start(tmp_path / "dpo")
        log(recorder, 1)
        finish(recorder)
    records = offline_copy(tmp_path / "dpo")
    assert steps_in(records) == [1]
    (run,) = [one["run"] for one in records if one["type"] == "run"]
    assert (run["run_id"], run["tags"][:3]) == ("team-7", ["study", "x" * 64, "é"])


LOGIN = """
import os, sys
from wandb.sdk.lib.wbauth import write_netrc_auth
from tiebreak.tracking.wandb_copy import settle_mode
if sys.argv[1:]:
    write_netrc_auth(host=sys.argv[1], api_key="a" * 40)  # what `wandb login` does
print(settle_mode("auto"))
"""


@pytest.mark.parametrize(
    ("login", "environment", "mode"),
    [
        ([], {}, "offline"),
        ([], {"WANDB_API_KEY": "a" * 40}, "online"),
        (["https://api.wandb.ai"], {}, "online"),
        (["https://wandb.example.com"], {}, "offline"),
        (["https://wandb.example.com"], {"WANDB_BASE_URL": "https://wandb.example.com"}, "online"),
    ],
)
def test_whether_there_is_a_login_is_asked_of_wandb(login: list[str], environment: dict[str, str], mode: str) -> None:
    """The login as the pinned W&B writes it, for the host that it talks to."""
    command = [sys.executable, "-c", LOGIN, *login]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == mode


def test_the_users_variables_are_honoured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key that is not at its default comes before a variable, a variable before a default; tags add up."""
    for name, value in {"PROJECT": "ours", "NAME": "n", "TAGS": "a, b", "JOB_TYPE": "j", "RUN_GROUP": "g"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("TIEBREAK_GROUP", "recipe")
    facts = facts_of(start(tmp_path / "run", tags=["mine"]).run)
    assert {k: facts[k] for k in ("project", "name", "job_type", "group")} == {
        "project": "ours",
        "name": "n",
        "job_type": "j",
        "group": "g",
    }
    assert facts["tags"][:4] == ["study", "mine", "a", "b"]
    facts = facts_of(start(tmp_path / "run", project="theirs", group="h").run)
    assert (facts["project"], facts["group"]) == ("theirs", "h")
    for name in ("PROJECT", "RUN_GROUP"):
        monkeypatch.delenv(f"WANDB_{name}")
    facts = facts_of(start(tmp_path / "run").run)
    assert (facts["project"], facts["group"]) == ("tiebreak", "recipe")


# --- what W&B receives ---


def test_a_resumed_run_is_one_run_offline_with_each_step_once(tmp_path: Path) -> None:
    first = start(tmp_path / "dpo", mode="offline", project="p")
    first.keep_up_to(0)
    log(first, 8, 16, 24, 32)
    wait_for(lambda: list((tmp_path / "dpo" / "wandb").glob("offline-run-*")))
    running(first).kill()  # as the end of the machine does

    again = start(tmp_path / "dpo", mode="offline", project="p")
    again.keep_up_to(16)
    log(again, 24, 32, 40)
    again.table("samples", ["prompt", "completion"], [["Why?", "Därum."]])
    finish(again, metrics={"loss": 0.025, "held_out_accuracy": 0.75}, counts={"train": 7})
    records = offline_copy(tmp_path / "dpo")
    assert steps_in(records) == [8, 16, 24, 32, 40]
    (run,) = [one["run"] for one in records if one["type"] == "run"]
    assert run["run_id"] == facts_of(first.run)["run_id"]
    assert run["project"] == "p"
    metrics = {
        one["metric"].get("name", one["metric"].get("glob_name")): one["metric"]
        for one in records
        if one["type"] == "metric"
    }
    assert {metrics[name]["step_metric"] for name in ("train/*", "eval/*")} == {"train/global_step"}
    assert metrics["eval/*"]["summary"].keys() >= {"min", "max", "last"}
    assert metrics["eval/objective/scores"]["step_metric"] == "eval/objective/kl"
    summary = final_figures(records)
    assert "loss" not in summary  # of the last row, which W&B summarises itself
    assert not any(key.startswith("kept/") for key in summary)
    assert (summary["held_out_accuracy"], summary["counts/train"]) == (0.75, 7)
    (artifact,) = [
        one["artifact"] for one in records if one["type"] == "artifact" and one["artifact"]["type"] == "study"
    ]
    assert artifact["name"] == f"{tmp_path.name}-dpo"  # one name, so versions
    assert [content["path"] for content in artifact["manifest"]["contents"]] == ["manifest.json"]
    staged = Path(artifact["manifest"]["contents"][0]["local_path"])
    assert staged.is_relative_to(tmp_path / "dpo" / "wandb")  # it comes along with the folder


def test_a_resumed_run_is_one_run_online_with_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WandbServer() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        first = start(tmp_path / "dpo")
        first.keep_up_to(0)
        log(first, 8, 16, 24, 32)
        process = running(first)
        first._copy._close_pipe()  # as the end of the stage's process does
        process.wait(300)
        (identity,) = server.history
        assert [row["train/global_step"] for row in server.rows(identity)] == [8, 16, 24, 32]

        again = start(tmp_path / "dpo")
        again.keep_up_to(16)
        log(again, 24, 32, 40)
        finish(again)
        assert [row["train/global_step"] for row in server.rows(identity)] == [8, 16, 24, 32, 40]
        assert list(server.history) == [identity]
        assert read_json(tmp_path / "dpo" / "wandb" / "state.json")["mode"] == "online"


def test_an_offline_run_is_sent_later_by_its_folder(tmp_path: Path) -> None:
    recorder = start(tmp_path / "dpo", mode="offline")
    recorder.keep_up_to(0)
    log(recorder, 1, 2, 3)
    finish(recorder, metrics={"loss": 0.25})
    (tmp_path / "moved").mkdir()
    (tmp_path / "dpo").rename(tmp_path / "moved" / "dpo")
    with WandbServer() as server:
        summaries = []
        for _ in range(2):  # a second time nothing is sent twice
            succeed("wandb", "sync", tmp_path / "moved" / "dpo", environment=server.environment())
            summaries += [dict(summary) for summary in server.summary.values()]
        (rows,) = (server.rows(run) for run in server.history)
        assert [row["train/global_step"] for row in rows] == [1, 2, 3]
        summary = summaries[0]
        assert summary["train/loss"] == {"min": pytest.approx(1 / 3), "max": 1, "last": pytest.approx(1 / 3)}
        assert summary["kept/train/loss"] == 0.25  # that of the saved policy, which is not the last one's
    (tmp_path / "empty").mkdir()
    refused = run_command("wandb", "sync", tmp_path / "empty", environment={"WANDB_API_KEY": KEY})
    assert refused.returncode == 2
    assert "holds no run: it has neither manifest.json nor run.json" in refused.stderr


# --- what W&B may do ---


def service_of(process: subprocess.Popen[bytes]) -> int:
    """W&B's own service, a child of the process that copies."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def found() -> list[int]:
        found = []
        for number in children.read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # another child, which has just ended
                if b"wandb-core" in Path(f"/proc/{number}/cmdline").read_bytes():
                    found.append(int(number))
        return found

    return int(wait_for(found)[0])


@pytest.mark.parametrize("killed", ["the copying process", "W&B's service", "W&B's folder"])
def test_what_is_killed_or_removed_in_the_middle_costs_nothing(tmp_path: Path, killed: str) -> None:
    recorder = start(tmp_path / "dpo", mode="offline")
    recorder.keep_up_to(0)
    log(recorder, 1, 2)
    service = service_of(running(recorder))
    wait_for(lambda: list((tmp_path / "dpo" / "wandb").glob("offline-run-*")))
    time.sleep(1)
    if killed == "W&B's folder":
        shutil.rmtree(tmp_path / "dpo" / "wandb")
    else:
        os.kill(service if killed == "W&B's service" else running(recorder).pid, signal.SIGKILL)
    log(recorder, 3, 4)
    time.sleep(1)
    log(recorder, 5)
    finish(recorder)
    assert steps_in(offline_copy(tmp_path / "dpo")) == [1, 2, 3, 4, 5]
    assert [row["step"] for row in read_metrics(tmp_path / "dpo")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("server", ["none", "refuses", "silent"])
def test_a_server_that_takes_nothing_leaves_a_whole_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: str
) -> None:
    if server != "refuses":
        monkeypatch.setattr("tiebreak.tracking.recorder.SECONDS_ONLINE", 4.0)
    with WandbServer(server) as stand_in:
        address = {"WANDB_BASE_URL": "http://127.0.0.1:9"} if server == "none" else {}
        for name, value in {**stand_in.environment(), **address}.items():
            monkeypatch.setenv(name, value)
        recorder = start(tmp_path / "dpo")
        recorder.keep_up_to(0)
        log(recorder, 1, 2, 3)
        finish(recorder)
    assert steps_in(offline_copy(tmp_path / "dpo")) == [1, 2, 3]
    message = capsys.readouterr().err
    reason = "permission denied" if server == "refuses" else "no response in time"
    assert reason in message
    assert f"'wandb sync {tmp_path / 'dpo' / 'wandb' / 'offline-run-'}" in message


def test_a_key_that_is_revoked_in_the_middle_leaves_a_whole_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B's client ends well then, and has dropped the rows."""
    with WandbServer() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        recorder = start(tmp_path / "dpo")
        recorder.keep_up_to(0)
        log(recorder, 1)
        wait_for(lambda: server.history or server.upserts)
        server.kind = "refuses"
        log(recorder, 2, 3)
        finish(recorder)
    assert steps_in(offline_copy(tmp_path / "dpo")) == [1, 2, 3]
    message = capsys.readouterr().err
    assert "permission denied" in message
    assert f"'wandb sync {tmp_path / 'dpo' / 'wandb' / 'offline-run-'}" in message


def test_a_wandb_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken" / "wandb").mkdir(parents=True)
    (tmp_path / "broken" / "wandb" / "__init__.py").write_text("raise ImportError('no module named protobuf')")
    with monkeypatch.context() as broken:
        broken.setenv("PYTHONPATH", f"{tmp_path / 'broken'}:{REPOSITORY}")
        recorder = start(tmp_path / "dpo", mode="offline")
        recorder.keep_up_to(0)
        log(recorder, 1)
        finish(recorder)
    message = capsys.readouterr().err
    assert "W&B: its process ended (no module named protobuf); the run continues without it" in message
    assert not is_copied(tmp_path / "dpo")
    track_again(recorder.run)  # what the same command does later
    assert is_copied(tmp_path / "dpo")
    assert steps_in(offline_copy(tmp_path / "dpo")) == [1]
    before = snapshot(tmp_path / "dpo")
    track_again(recorder.run)
    assert snapshot(tmp_path / "dpo") == before


SLOW_WANDB = """
import os, sys, time
while not os.path.exists(os.environ["GATE"]):
    time.sleep(0.05)
sys.path.remove(os.path.dirname(os.path.dirname(__file__)))
del sys.modules["wandb"]
import wandb
sys.modules["wandb"] = wandb
"""


def left_waiting(recorder: RunRecorder, monkeypatch: pytest.MonkeyPatch, gate: Path) -> subprocess.Popen[bytes]:
    """Finish a run on a machine on which W&B takes until `gate` is there to start."""
    slow = gate.with_name("slow") / "wandb"
    slow.mkdir(parents=True)
    (slow / "__init__.py").write_text(SLOW_WANDB)
    with monkeypatch.context() as busy:
        busy.setenv("PYTHONPATH", f"{slow.parent}:{REPOSITORY}")
        busy.setenv("GATE", str(gate))
        busy.setattr("tiebreak.tracking.recorder.LONGEST_WAIT", 1.0)
        log(recorder, 1, 2)
        copying = running(recorder)
        finish(recorder)
    return copying


def test_a_copy_on_a_busy_machine_continues_after_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = start(tmp_path / "dpo", mode="offline")
    copying = left_waiting(recorder, monkeypatch, tmp_path / "gate")
    assert LONGEST_WAIT < 30  # of a real stage
    assert copying.poll() is None
    assert not is_copied(tmp_path / "dpo")
    message = " ".join(capsys.readouterr().err.split())
    assert "W&B: the copy is not complete after 1 s, and continues in the background" in message
    (tmp_path / "gate").touch()
    copying.wait(300)
    assert is_copied(tmp_path / "dpo")
    assert steps_in(offline_copy(tmp_path / "dpo")) == [1, 2]


def test_a_copy_ends_once_a_later_one_of_its_folder_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command again sends the run while the first copy is still starting."""
    recorder = start(tmp_path / "dpo", mode="offline")
    copying = left_waiting(recorder, monkeypatch, tmp_path / "gate")
    track_again(recorder.run)
    assert is_copied(tmp_path / "dpo")
    before = snapshot(tmp_path / "dpo")
    (tmp_path / "gate").touch()
    assert copying.wait(300) == 0
    assert snapshot(tmp_path / "dpo") == before
    assert steps_in(offline_copy(tmp_path / "dpo")) == [1, 2]


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_a_folder_for_wandb_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B itself would write among the temporary files."""
    (tmp_path / "full").write_text("a file")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "full" / "own"))
    monkeypatch.setenv("WANDB_DATA_DIR", "/dev/full")
    recorder = start(tmp_path / "dpo", mode="offline")
    log(recorder, 1)
    finish(recorder)
    message = printed(capsys)
    assert f"W&B: WANDB_DIR={tmp_path / 'full' / 'own'} cannot be written (Not a directory), so W&B's files" in message
    assert "W&B did not accept tables and artifacts" in message
    assert steps_in(offline_copy(tmp_path / "dpo")) == [1]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False).returncode:
        pytest.skip("a file system can be mounted by root alone")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_fills_while_wandb_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B drops rows then, and calls the run finished: the copy is made again, in the run folder."""
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "disk"))
    with small_disk(tmp_path / "disk", "200k"):
        recorder = start(tmp_path / "dpo", mode="offline")
        recorder.keep_up_to(0)
        recorder._copy.check = lambda: None  # type: ignore[method-assign]
        log(recorder, *range(1, 2001))
        del recorder._copy.check
        finish(recorder)
        assert not list((tmp_path / "disk").rglob("*.wandb"))
    assert is_copied(tmp_path / "dpo"), printed(capsys)
    assert steps_in(offline_copy(tmp_path / "dpo")) == list(range(1, 2001))


def test_answers_to_held_out_prompts_are_sent_with_the_next_row(tmp_path: Path) -> None:
    recorder = start(tmp_path / "dpo", mode="offline")
    recorder.extend_table("completions", [{"step": step, "prompt_id": "p", "completion": "Iron."} for step in (0, 2)])
    log(recorder, 1, 2, 3, 4)
    finish(recorder)
    rows = [one["history"]["item"] for one in offline_copy(tmp_path / "dpo") if one["type"] == "history"]
    assert [row.get("completions.nrows") for row in rows] == [1, 2, None, 2]  # all of them at the end


def test_a_copy_that_is_cut_off_lacks_rows(tmp_path: Path) -> None:
    """400 rows take two blocks of W&B's file."""
    recorder = start(tmp_path / "dpo", mode="offline")
    log(recorder, *range(1, 401))
    finish(recorder)
    (file,) = (tmp_path / "dpo" / "wandb").glob("offline-run-*/run-*.wandb")
    kinds = [record["type"] for record in offline_copy(tmp_path / "dpo")]
    assert file.stat().st_size > 2**15
    assert kinds.count("history") == 400
    assert rows_lacking(file.parent, 400) == ""
    assert rows_lacking(file.parent, 401) == f"no room for all rows in {file.parent}"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert rows_lacking(file.parent, 400) == f"no room for all rows in {file.parent}"
    assert len(list(records_in(file))) >= len(kinds) - 1


def test_a_run_without_room_for_wandb_is_sent_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dpo").mkdir()
    recorder = start(tmp_path / "dpo", mode="offline", tags=["mine"])
    (tmp_path / "dpo" / "wandb").write_text("a file: nothing can be written below it")
    log(recorder, 1, 2)
    finish(recorder)
    message = printed(capsys)
    assert message.count("W&B: ") == 1
    assert f"the run continues without it. 'tiebreak wandb sync {tmp_path / 'dpo'}' sends it later" in message
    (tmp_path / "dpo" / "wandb").unlink()
    with WandbServer() as server:
        succeed("wandb", "sync", tmp_path / "dpo", environment=server.environment())
        (rows,) = (server.rows(run) for run in server.history)
    assert [row["train/global_step"] for row in rows] == [1, 2]
    assert read_json(tmp_path / "dpo" / "wandb" / "tiebreak.json")["tags"][:2] == ["study", "mine"]


# --- rows ---


@pytest.fixture
def recorder(tmp_path: Path) -> RunRecorder:
    config = StageConfig(output=str(tmp_path / "run"), tracking=TrackingConfig(mode="disabled"))
    return RunRecorder(start_run(config, "study", {}))


def test_what_is_measured_between_two_steps_is_no_part_of_their_time(
    recorder: RunRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 1 and 2 take 3 s each, and between them something else takes 40 s."""
    clock = [100.0]
    monkeypatch.setattr("tiebreak.tracking.recorder.time.monotonic", lambda: clock[0])
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


def test_a_stage_that_trains_nothing_is_in_wandb_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIEBREAK_GROUP", "recipe-1")
    config = StageConfig(output=str(tmp_path / "run"), tracking=TrackingConfig(mode="offline", tags=["mine"]))
    row = {"prompt_id": "p", "messages": [{"role": "user", "content": "Why is it pale?"}], "rubric": {"units": True}}
    judged = [
        {"rater_id": rater, "guideline_version": version, "kind": "human", "answer": answer, "seconds_active": seconds}
        for rater, version, answer, seconds in (("ann", "v1", 0, 4.0), ("ann", "v1", 2, 6.0), ("ben", "v2", -3, None))
    ]
    with start_run(config, "study", {}) as run, tracked(run):
        wait_for(lambda: list((run.folder / "wandb").glob("offline-run-*/run-*.wandb")))  # long before it ends
        run.facts |= {"metrics": {"sft": {"rubric_mean": 0.7125}}, "preferences": 12, "verdicts": {"dpo": "wins"}}
        (run.final / "completions.jsonl").write_text(json.dumps(row) + "\n")
        (run.final / "judgments.jsonl").write_text("".join(json.dumps(one) + "\n" for one in judged))
        report = {"agreement": {"alpha": 0.625}, "policies": {"sft": {"rubric_mean": 0.7125}}, "worst": [{"spread": 1}]}
        (run.folder / "report.json").write_text(json.dumps(report))
        run.finish()
    records = offline_copy(tmp_path / "run")
    sent, summary = json.dumps(records), final_figures(records)
    assert [fact for fact in ("recipe-1", '"study"', "mine", "manifest.json", "report.json") if fact not in sent] == []
    assert summary["sft/rubric_mean"] == 0.7125
    assert (summary["preferences"], summary["verdicts/dpo"], summary["report/agreement/alpha"]) == (12, "wins", 0.625)
    assert "report/policies/sft/rubric_mean" not in summary  # not twice
    tables = (tmp_path / "run" / "wandb").glob("offline-run-*/files/media/table/*.json")
    found = {path.name.rsplit("_", 2)[0]: json.loads(path.read_text()) for path in tables}
    assert found["completions"]["data"] == [["p", "Why is it pale?", '{"units": true}']]
    assert [row[:5] for row in found["judgments"]["data"]] == [
        ["ann", "v1", "human", 2, 1],
        ["ben", "v2", "human", 1, 0],
    ]
    assert found["worst_mistakes"]["data"] == [[1]]


def test_an_interrupted_stage_that_trains_nothing_ends_its_wandb_run(tmp_path: Path) -> None:
    config = StageConfig(output=str(tmp_path / "run"), tracking=TrackingConfig(mode="offline"))
    with pytest.raises(ValueError, match="bad data"), start_run(config, "study", {}) as run, tracked(run):
        raise ValueError("bad data")
    wait_for(lambda: read_json(tmp_path / "run" / "wandb" / "state.json").get("state") == "done")
    records = offline_copy(tmp_path / "run")
    assert [one["exit"]["exit_code"] for one in records if one["type"] == "exit"] == [1]


def test_artifacts_are_linked_from_stage_to_stage_on_a_stand_in_server(tmp_path: Path) -> None:
    """SFT and DPO offline, then their evaluation; `sync` of the folder sends them inputs first."""

    def make(stage: str, inputs: dict[str, str], report: dict[str, Any], **tracking: Any) -> Path:
        folder = tmp_path / "round-2" / stage
        config = StageConfig(output=str(folder), tracking=TrackingConfig(mode="offline", **tracking))
        with start_run(config, stage, {key: str(tmp_path / "round-2" / one) for key, one in inputs.items()}) as run:
            (run.final / "adapter_model.safetensors").write_text(stage)
            (run.final / "report.json").write_text(json.dumps(report))
            run.finish()
        return folder

    make("sft", {}, {}, log_model=True)
    make("dpo", {"policy": "sft"}, {})
    means = {"sft": {"yardstick_mean": 0.5}, "dpo": {"yardstick_mean": 0.75}}
    make("aevaluate", {"policy_sft": "sft", "policy_dpo": "dpo"}, {"policies": means})  # the first by name
    with WandbServer() as server:
        for _ in range(2):  # a second time adds no input
            succeed("wandb", "sync", tmp_path, environment=server.environment())
        assert [server.artifacts[f"round-2-{name}"][0]["type"] for name in ("sft", "dpo")] == ["sft", "dpo"]
        version = {name: server.artifacts[f"round-2-{name}"][-1] for name in ("sft", "dpo", "aevaluate")}
        assert "round-2" in version["sft"]["aliases"]
        assert "latest" in version["sft"]["aliases"]
        assert any("best" in one["aliases"] for one in server.artifacts["round-2-dpo"])
        assert not any("best" in one["aliases"] for one in server.artifacts["round-2-sft"])
        sft = {one["id"] for one in server.artifacts["round-2-sft"]}
        used = {(run, one) for run, one in server.used if run == version["dpo"]["run"]}
        assert {one for _, one in used} <= sft
        assert used
        assert {one.rpartition("-")[0] for run, one in server.used if run == version["aevaluate"]["run"]} == {
            "round-2-sft",
            "round-2-dpo",
        }


def test_a_workspace_and_a_report_are_saved_on_a_stand_in_server() -> None:
    with WandbServer() as server:
        done = succeed("wandb", "workspace", "recipe-1", "--policies", "sft", environment=server.environment())
        assert len([line for line in done.stdout.splitlines() if line.startswith(server.url)]) == 2
        workspace, report = (view["spec"] for view in server.views)
    for spec in (workspace, report):
        assert "recipe-1" in spec  # both show this group alone
        for figure in (
            "eval/objective/kl",
            "eval/objective/scores",
            "train/rewards/margins",
            "sft/win_rate_vs_baseline",
        ):
            assert figure in spec
    refused = run_command("wandb", "workspace", "recipe-1", environment={"WANDB_API_KEY": "", "WANDB_MODE": "offline"})
    assert refused.returncode == 2, refused.stderr


def test_the_metadata_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIEBREAK_COMMAND", "tiebreak study --config a.yaml")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    monkeypatch.setattr("tiebreak.tracking.facts.git_commit", lambda: "abc123+")
    config = StageConfig(output=str(tmp_path / "round-3" / "run"), tracking=TrackingConfig(mode="offline"))
    run = start_run(config, "study", {"prompts": str(tmp_path / "prompts.jsonl")})
    facts = facts_of(run)
    assert facts["notes"] == "tiebreak study --config a.yaml"
    assert facts["tags"] == ["study", "abc123+", "dirty", "round-3"]
    assert facts["config"]["input_ids"] == {"prompts": run.inputs["prompts"].id}
    assert (facts["config"]["processes"], facts["config"]["distributed"]) == (1, "none")
    monkeypatch.setenv("WANDB_NOTES", "mine")
    assert facts_of(run)["notes"] == "mine"
    assert round_of(tmp_path / "rounds" / "dpo") == ""
    for keys in ({"seed": 4}, {"seed": 4, "training": {"precision": "auto"}}, {"training": {"seed": 4}}):
        assert _further_tags(keys)[0] == "seed-4", keys


def test_a_runs_metadata_names_runs_by_id_and_the_adapter_that_is_trained_further(tmp_path: Path) -> None:
    """DPO with `adapter: null` continues its policy's adapter."""
    source = str(tmp_path / "sft")
    with start_run(StageConfig(output=source), "sft", {}) as sft:
        (sft.final / "x.json").write_text("{}")
        sft.facts["model"] = {"adapter": {"method": "dora"}}
        sft.finish()
    identity = read_json(tmp_path / "sft" / "manifest.json")["id"]
    config = {"output": source, "policy": source, "policies": {"a": source, "b": "bundled:x"}, "adapter": None}
    record = {
        "stage": "dpo",
        "fingerprint": "f" * 24,
        "config": config,
        "inputs": {"policy": {"kind": "run", "id": identity, "source": source}},
    }
    facts = _facts(tmp_path / "dpo", record)
    assert facts["config"]["policy"] == identity
    assert facts["config"]["policies"] == {"a": identity, "b": "bundled:x"}
    assert facts["config"]["output"] == source
    assert "dora" in facts["tags"]
    assert (
        "dora" not in _facts(tmp_path / "dpo", {**record, "config": {**config, "adapter": {"method": "lora"}}})["tags"]
    )


def test_final_figures_have_intervals_and_verdicts_and_none_twice(tmp_path: Path) -> None:
    """A report repeats what its manifest has, and figures under their older names."""
    sft = {"yardstick_mean": 0.625, "yardstick_interval": [0.5, 0.75], "n_prompts": 8}
    dpo = {"yardstick_mean": 0.875, "win_rate_vs_baseline": 0.75}
    again = {"rubric_mean": 0.875, "win_rate_vs_sft": 0.75, "p_value": 0.0625}
    report = {
        "policies": {"sft": {**sft, "rubric_interval": [0.5, 0.75]}, "dpo": {**dpo, **again}},
        "headline": {"claim": "DPO wins", "sentences": ["long"]},
        "sampling": {"temperature": 0.7},
        "agreement": {"human": {"percent": {"value": 0.8125, "interval": [0.6875, 0.9375]}}},
        "yardstick": "rubric",
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    manifest = {
        "id": "m",
        "processes": 2,
        "config": {"sampling": {"temperature": 0.7}},
        "metrics": {"sft": {**sft, "id": "abc", "source": "runs/sft"}, "dpo": dpo},
    }
    assert summary_of(tmp_path, manifest) == {
        "manifest_id": "m",
        "sft/yardstick_mean": 0.625,
        "sft/yardstick_interval_low": 0.5,
        "sft/yardstick_interval_high": 0.75,
        "sft/n_prompts": 8,
        "dpo/yardstick_mean": 0.875,
        "dpo/win_rate_vs_baseline": 0.75,
        "report/policies/dpo/p_value": 0.0625,
        "report/headline/claim": "DPO wins",
        "report/agreement/human/percent/value": 0.8125,
        "report/agreement/human/percent/interval_low": 0.6875,
        "report/agreement/human/percent/interval_high": 0.9375,
    }


def test_a_sweeps_objective_is_a_plain_number(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "eval_loss": 2.0}\n{"step": 2, "eval_loss": 3.0}\n')
    manifest = {"id": "m", "metrics": {"eval_loss": 2.0, "held_out": 0.5}}
    assert summary_of(tmp_path, manifest, aggregated=False)["eval/loss"] == 2.0
    assert summary_of(tmp_path, manifest) == {"manifest_id": "m", "kept/eval/loss": 2.0, "held_out": 0.5}


def test_runs_are_sent_behind_their_inputs(tmp_path: Path) -> None:
    made = {"a": ("3", ["2", "1"]), "b": ("2", ["1"]), "c": ("1", []), "d": ("4", ["9"])}
    for name, (identity, inputs) in made.items():
        (tmp_path / name).mkdir()
        record = {"id": identity, "inputs": {f"i{one}": {"id": one} for one in inputs}}
        (tmp_path / name / "manifest.json").write_text(json.dumps(record))
    assert [path.name for path in in_order([tmp_path / name for name in made])] == ["c", "b", "a", "d"]


def test_judgments_by_rater_by_hand() -> None:
    rows = [{"rater_id": "r", "kind": "human", "answer": 0, "seconds_active": s, "skip": s == 9.0} for s in (2.0, 9.0)]
    (row,) = judgments_by_rater(rows)
    assert row == {
        "rater": "r",
        "guideline_version": "",
        "kind": "human",
        "judgments": 2,
        "ties": 2,
        "both_bad": 0,
        "skips": 1,
        "seconds_median": 5.5,
    }


def test_rows_are_followed_as_the_file_grows(tmp_path: Path) -> None:
    """Each row once; an incomplete line waits, and one that was cut off and written on is left out. Tokens a second are
    (900 − 500) tokens in 2 steps of half a second."""
    new, file = NewRows(tmp_path), tmp_path / "metrics.jsonl"
    assert list(new) == []
    file.write_text('{"step": 2, "num_tokens": 500}\n{"step": 3, "lo')
    assert [row["step"] for row, _ in new] == [2]
    assert list(new) == []
    with file.open("a") as stream:
        stream.write('{"step": 3, "loss": 1.5}\n{"step": 4, "num_tokens": 900, "step_seconds": 0.5}\n')
    ((row, named),) = new
    assert (row["step"], named["train/tokens_per_second"], named["train/global_step"]) == (4, 400.0, 4)

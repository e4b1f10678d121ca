"""How commands end where they cannot go on: a sentence, the right exit status, and never a bare traceback."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import REPOSITORY, end_process, run_command, run_here, write_config, write_rows

from tiebreak.errors import DataError
from tiebreak.process.ending import exit_with_message, lost_process, machine_fault

CLI = [sys.executable, "-m", "tiebreak.command.cli"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def end_of(error: BaseException, capsys: pytest.CaptureFixture[str], resumes: bool = False) -> tuple[int, str]:
    """(exit status, message) of a command in which `error` is raised."""

    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        exit_with_message(fail, resumes=resumes)
    return int(stopped.value.code or 0), capsys.readouterr().err


# --- the reader of a pipe has gone


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["dpo", "--help"],
        ["label", "export", "--help"],
        ["raters"],
        ["--version"],
        ["raters", "list", "--help"],
    ],
    ids=" ".join,
)
def test_a_closed_pipe_ends_a_command_in_silence(words: list[str]) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*CLI, *words], cwd=REPOSITORY, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # before anything was written: as `| head -0`
        assert process.stderr.read() == ""
        assert process.wait(60) == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},  # its errors are surrogateescape
    ],
    ids=str,
)
def test_a_terminal_without_a_character_shows_a_question_mark(variables: dict[str, str]) -> None:
    environment = {**ENVIRONMENT, **variables}
    result = subprocess.run(
        [*CLI, "raters", "--help"], cwd=REPOSITORY, env=environment, capture_output=True, check=True
    )
    assert result.stdout.startswith(b"usage: tiebreak raters SUBCOMMAND ?")
    assert result.stderr == b""


def test_a_closed_standard_error_does_not_hide_the_status() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*CLI, "evalaute"], cwd=REPOSITORY, env=ENVIRONMENT, stderr=writer, check=False, timeout=600
    )
    os.close(writer)
    assert result.returncode == 2


def test_a_broken_pipe_to_another_process_is_no_closed_output(capsys: pytest.CaptureFixture[str]) -> None:
    status, message = end_of(BrokenPipeError(errno.EPIPE, "Broken pipe"), capsys)
    assert status == 70
    assert "BrokenPipeError" in message


# --- Ctrl-C


@pytest.mark.parametrize(("resumes", "message"), [(True, ": run the same command again to resume\n"), (False, "\n")])
def test_an_interrupt_is_a_sentence(capsys: pytest.CaptureFixture[str], resumes: bool, message: str) -> None:
    assert end_of(KeyboardInterrupt(), capsys, resumes) == (130, f"\nerror: interrupted{message}")
    wrapped = RuntimeError("Failed to import trl because of the following error")
    wrapped.__cause__ = KeyboardInterrupt()
    assert end_of(wrapped, capsys, resumes) == (130, f"\nerror: interrupted{message}")


@pytest.mark.parametrize("seconds", [0.8, 2.0])
def test_an_interrupt_while_a_stage_is_imported(seconds: float, tmp_path: Path) -> None:
    words = ["sample", "--output", tmp_path, "--policy", "none", "--prompts", tmp_path / "none.jsonl"]
    command = [*CLI, *map(str, words)]
    with subprocess.Popen(command, cwd=REPOSITORY, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=600)
    assert "Traceback" not in message
    assert "error: interrupted" in message
    assert process.returncode in (130, -signal.SIGINT)  # both are 130 to a shell


INTERRUPT_ON_IMPORT = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
name = sys.argv.pop(1)
class Interrupt:
    def find_spec(self, module, path=None, target=None):
        if module == name:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
runpy.run_module("tiebreak", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("tiebreak.command.cli", ["--help"]),
        ("tiebreak.errors", ["inspect", "x"]),
        ("tiebreak.messages", ["inspect", "x"]),  # pydantic makes a line of its own message of it
        ("tiebreak.command.data", ["data", "x"]),
        ("labeling_ui.label", ["label", "status"]),
        ("sqlalchemy", ["label", "--pairs", "x", "--output", "y"]),
        ("torch", ["sample", "--policy", "x", "--prompts", "x", "--output", "y"]),
    ],
)
def test_an_interrupt_during_an_import_is_no_traceback(module: str, words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPT_ON_IMPORT, module, *words]
    result = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 130, result.stderr
    assert result.stderr in ("", "\nerror: interrupted\n")


@pytest.mark.parametrize(
    "closed", ["2>&-", *(pytest.param(one, marks=pytest.mark.proof) for one in (">&-", ">&- 2>&-")), "<&- >&- 2>&-"]
)
def test_a_process_without_streams_writes_what_it_is_to_write(closed: str, raw_data: Path, tmp_path: Path) -> None:
    """Otherwise the run's own files get the numbers of the streams, and messages are written into them."""
    words = f"prepare --prompts {raw_data}/prompts.jsonl --output {tmp_path}/run --tracking.mode disabled"
    command = f"{sys.executable} -m tiebreak {words} {closed}"
    result = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=False)
    assert result.returncode == 0
    assert result.stdout == b""
    assert (b"saved: " in result.stderr) is ("2>" not in closed)
    status, message = run_here("inspect", tmp_path / "run")
    assert status == 0, message


# --- the machine


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (OSError(errno.EROFS, "Read-only file system", "runs/x/final"), "runs/x/final: it is on a read-only file"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), "runs/x: permission denied"),
        (OSError(errno.EADDRINUSE, "Address already in use"), "the port is taken"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory: lower training.tokens_per_pass"),
        (OSError(errno.ENOSPC, "No space left on device", "x.pt"), "no space left on the device while writing x.pt"),
        (MemoryError(), "not enough memory"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
        (RuntimeError("(sqlite3.OperationalError) attempt to write a readonly database"), "is not writable"),
        (RuntimeError("Error while serializing: I/O error: Read-only file system (os error 30)"), "read-only"),
        (RuntimeError("I/O error: Permission denied (os error 13)"), "permission denied"),
        (RuntimeError("No space left on device (os error 28)"), "no space left"),
    ],
)
def test_errors_of_the_machine_say_what_to_do(error: Exception, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, message = end_of(error, capsys)
    assert status == 1
    assert message.startswith(f"error: {part}") or part in message
    assert "Traceback" not in message
    assert "bug in Tiebreak" not in message


def test_an_error_of_ours_is_no_error_of_the_machine() -> None:
    assert machine_fault(ValueError("3 is not 4")) == ""
    assert machine_fault(OSError(errno.ENOENT, "No such file", "x")) == ""


def read_only(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A command for which `folder` is mounted read-only."""
    mount = f'mount --bind "{folder}" "{folder}" && mount -o remount,ro,bind "{folder}"'
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine mounts nothing for its users")
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", *CLI, *map(str, words)],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_a_read_only_file_system(finished_recipe: Path, raw_data: Path) -> None:
    runs = finished_recipe / "runs"
    store = f"sqlite:///{runs}/label/store/labels.sqlite"
    refused = {
        "prepare": ("prepare", "--prompts", raw_data / "prompts.jsonl", "--output", runs / "new"),
        "label": ("label", "--pairs", runs / "sample", "--output", runs / "new"),
        "status": ("label", "status", "--store", store),
        "raters": ("raters", "add", "someone", "--store", store),
    }
    for words in refused.values():
        result = read_only(finished_recipe, *words)
        assert result.returncode == 1, result.stderr
        assert "Traceback" not in result.stderr
        assert "not writable" in result.stderr
        assert str(runs) in result.stderr
    assert read_only(finished_recipe, "inspect", runs / "dpo").returncode == 0  # reads alone


def test_a_recipe_where_nothing_can_be_written() -> None:
    status, message = run_here("init", "/dev/null/mine")
    assert (status, message) == (1, "error: /dev/null/mine is not writable (Not a directory): give another folder\n")


def test_a_taken_port(finished_recipe: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        result = run_command(
            "label", "--pairs", finished_recipe / "runs" / "sample", "--output", tmp_path / "label", "--port", port
        )
    assert result.returncode == 1
    assert f"error: cannot listen on 127.0.0.1:{port}: " in result.stderr
    assert "Give another --port, or stop the program that uses it" in result.stderr
    assert "Traceback" not in result.stderr


# --- anything else


def test_an_unexpected_exception_is_a_message_and_its_traceback_is_kept(
    raw_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft import prepare

    words = ("prepare", "--prompts", raw_data / "prompts.jsonl", "--output", tmp_path / "run")

    def break_down(*_: object) -> None:
        raise ZeroDivisionError("a share of nothing\nand more")

    monkeypatch.setattr(prepare, "assign_splits", break_down)
    status, message = run_here(*words)
    assert status == 70
    kept = tmp_path / "run" / "error.txt"
    assert message.endswith(
        "error: ZeroDivisionError: a share of nothing\n  This is a bug in Tiebreak or in a library, not in "
        f"your input: the traceback is in {kept}; the same command resumes from the last checkpoint.\n"
    )
    assert "Traceback" not in message
    assert "in break_down" in kept.read_text()
    end_process(tmp_path / "run")
    monkeypatch.setenv("TIEBREAK_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run_here(*words)
    end_process(tmp_path / "run")
    monkeypatch.undo()
    status, message = run_here(*words)
    assert status == 0, message  # what a start that failed left behind is in nobody's way


def test_without_a_run_folder_the_traceback_is_among_the_temporary_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, message = end_of(KeyError("x"), capsys)
    assert status == 70
    (file,) = tmp_path.glob("tiebreak-error-*.txt")
    assert f"the traceback is in {file}" in message
    assert "KeyError: 'x'" in file.read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert "TIEBREAK_DEBUG=1 before the command shows" in end_of(KeyError("x"), capsys)[1]


def test_an_error_of_the_users_is_its_own_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of(DataError("2 faults", ["a", "b"]), capsys) == (1, "error: 2 faults\n  a\n  b\n")


def test_what_all_processes_run_into_is_reported_once_and_the_launcher_adds_nothing(
    tmp_path: Path, tiny_model: Path
) -> None:
    """The launcher alone ends with status 1 and a traceback; a fault of the configuration has status 2."""
    rows = [
        {"prompt": "Why?", "chosen": f"Cool it to {n} degrees.", "rejected": "It depends.", "split": "train"}
        for n in range(4)
    ]
    preferences = write_rows(tmp_path / "preferences.jsonl", rows)
    guard = ("--guard.reward-model", tmp_path / "none")
    words = ("--policy", tiny_model, "--preferences", preferences, "--output", tmp_path / "dpo", *guard)
    result = run_command("dpo", *words, "--accelerate", "cpu_zero2", "--tracking.mode", "disabled")
    assert result.returncode == 2
    assert result.stderr.count("error: ") == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("dpo: writing ")  # nothing of the launcher above it either


BROKEN_GRADER = """
import os, pathlib, time

def grade(prompts, completions, **_):
    if os.environ["RANK"] == "1":
        pathlib.Path(__file__).with_name("raised").write_text(str(time.time()))
        raise ValueError("rank 1 has no licence")
    return [0.0] * len(completions)
"""


def test_an_error_of_one_process_ends_all_of_them_within_30_seconds_with_its_message(
    tmp_path: Path, tiny_model: Path
) -> None:
    """The other one waits in an exchange meanwhile; that its neighbour is gone is not a bug of ours."""
    (tmp_path / "broken.py").write_text(BROKEN_GRADER)
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Why {n}?", "split": "train"} for n in range(4)])
    config = write_config(
        tmp_path / "ppo.yaml",
        output=tmp_path / "ppo",
        policy=tiny_model,
        prompts=prompts,
        rewards=[{"function": "broken:grade"}],
        episodes_per_rollout=4,
        rollouts=1,
        max_validation_prompts=0,
        sampling={"temperature": 1.0, "max_new_tokens": 4},
        training={"per_device_batch_size": 2, "max_length_tokens": 128},
        tracking={"mode": "disabled"},
    )
    result = run_command("ppo", "--config", config, "--accelerate", "cpu_zero2")
    assert time.time() - float((tmp_path / "raised").read_text()) < 30
    assert result.returncode == 1
    assert result.stderr.count("raised ValueError: rank 1 has no licence") == 1
    assert "This is a bug" not in result.stderr
    assert "Traceback" not in result.stderr


def test_a_lost_process_is_named_as_such_in_a_launch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:897. This is")
    assert lost_process(gone) == ""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert lost_process(gone).startswith("another process of this launch has ended")
    assert lost_process(RuntimeError("shapes do not match")) == ""


@pytest.mark.parametrize(("file", "port"), [("", True), ("main_process_port: 29555\n", False)])
def test_two_launches_on_one_machine_meet_at_two_ports(
    file: str, port: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiebreak.command.launch import run_accelerated
    from tiebreak.command.table import COMMANDS

    own = tmp_path / "own.yaml"
    own.write_text((REPOSITORY / "configs/accelerate/cpu_zero2.yaml").read_text() + file)
    started: list[list[str]] = []
    monkeypatch.setattr("tiebreak.command.launch.run_launched", lambda words, _environment: started.append(words) or 7)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(SystemExit, match="7"):
        run_accelerated(COMMANDS["dpo"], ["--accelerate", str(own), "--config", "configs/quickstart/dpo.yaml"])
    (words,) = started
    assert ("--main_process_port" in words) == port
    assert words[-4:] == ["tiebreak.command.cli", "dpo", "--config", "configs/quickstart/dpo.yaml"]

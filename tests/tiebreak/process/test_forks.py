"""Forked processes: signals to them, results from them, and when none are made. Each case in its own interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import REPOSITORY

from tiebreak.process import preloaded as forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")

FORKED = """
import atexit, os, sys, tempfile
from tiebreak.process.preloaded import run_forked

here = os.getpid()
folder = tempfile.TemporaryDirectory()
atexit.register(lambda: print("the end", os.path.isdir(folder.name)))

def main():
    atexit.register(lambda: print("left", flush=True))
    print(os.environ["TOLD"], os.getppid() == here, flush=True)
    ENDING

status = run_forked(main, {"TOLD": "heard"})
print("status", status, "TOLD" in os.environ)
"""


def run_code(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "2"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("ending", "status", "leaves"),
    [
        ("return", 0, True),
        ("sys.exit(3)", 3, True),
        ("sys.exit()", 0, True),
        ("sys.exit('a message')", 1, True),
        ("raise ValueError('a bug')", 1, True),
        ("os.kill(os.getpid(), 9)", -9, False),
    ],
)
def test_a_fork_runs_with_its_environment_and_its_end_is_reported(ending: str, status: int, leaves: bool) -> None:
    done = run_code(FORKED.replace("ENDING", ending))
    assert done.stdout.splitlines() == [
        "heard True",
        *(["left"] if leaves else []),
        f"status {status} False",
        "the end True",
    ]
    assert ("a message" in done.stderr) == ("message" in ending)
    assert ("ValueError: a bug" in done.stderr) == ("bug" in ending)


def test_an_interrupted_recipe_waits_for_its_stage() -> None:
    code = """
import os, signal, sys, time
from tiebreak.process.preloaded import run_forked
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests run in a shell's background

def main():
    try:
        print("ready", flush=True)
        while True:  # a signal that comes just before a sleep does not cut it short
            time.sleep(0.1)
    except KeyboardInterrupt:
        time.sleep(0.5)
        print("stage saved", flush=True)
        sys.exit(130)

try:
    run_forked(main, {})
except KeyboardInterrupt:
    print("recipe stopped", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.communicate(timeout=600)[0].splitlines() == ["stage saved", "recipe stopped"]


def test_an_interrupt_right_after_the_fork_is_passed_on() -> None:
    code = """
import os, signal, time
from tiebreak.process.preloaded import run_forked
signal.signal(signal.SIGINT, signal.default_int_handler)

def main():
    time.sleep(5)
    print("not stopped", flush=True)

fork = os.fork

def fork_and_interrupt():
    child = fork()
    if child:
        os.kill(os.getpid(), signal.SIGINT)
    return child

os.fork = fork_and_interrupt
try:
    run_forked(main, {})
except KeyboardInterrupt:
    print("recipe stopped", flush=True)
"""
    done = run_code(code)
    assert done.stdout.splitlines() == ["recipe stopped"]
    assert "Traceback" not in done.stderr


def test_a_process_that_runs_a_thread_or_one_of_several_is_not_forked() -> None:
    code = """
import os, threading
from tiebreak.process.preloaded import may_fork
import torch
free = may_fork()
os.environ["LOCAL_RANK"] = "0"
launched = may_fork()
del os.environ["LOCAL_RANK"]
end = threading.Event()
threading.Thread(target=end.wait).start()
print(free == (not torch.accelerator.is_available()), launched, may_fork())
end.set()
"""
    assert run_code(code).stdout.split() == ["True", "False", "False"]


AHEAD = """
import os, signal, sys, torch
from tiebreak.errors import ModelError
from tiebreak.process.preloaded import PreforkedProcess, may_fork

def work(request):
    print("noise")
    if request["fail"] == "reported":
        raise ModelError("the adapter is damaged")
    if request["fail"] == "bug":
        raise KeyError("rank")
    if request["fail"] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"norm": float((a @ a).norm())}

torch.manual_seed(0)
a = torch.randn(600, 600)
assert may_fork()
ahead = PreforkedProcess(work)
ours = float((a @ a).norm())  # on every thread, after which no fork of this process could compute
try:
    print("same", ahead.ask({"fail": sys.argv[-1]})["norm"] == ours)
except RuntimeError as error:
    print("failed:", error)
"""


@pytest.mark.parametrize(
    ("fail", "answer"),
    [
        ("no", "same True"),
        ("reported", "failed: the adapter is damaged"),
        ("bug", "failed: KeyError: 'rank'"),
        ("killed", "failed: its process ended with status -9"),
    ],
)
def test_a_process_ahead_computes_the_same_or_says_why_not(fail: str, answer: str) -> None:
    done = run_code(AHEAD.replace("sys.argv[-1]", repr(fail)))
    assert done.stdout.splitlines() == [answer], done.stderr


def test_a_process_ahead_ends_with_the_one_that_it_waits_for(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, signal
from tiebreak.process.preloaded import PreforkedProcess
ahead = PreforkedProcess(lambda request: {{}})
pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(ahead._process.pid))
os.kill(os.getpid(), signal.SIGKILL)
"""
    run_code(code)
    folder = Path("/proc") / (tmp_path / "pid").read_text()
    give_up = time.monotonic() + 600
    while folder.exists() and "\tZ" not in next(
        x for x in (folder / "status").read_text().splitlines() if "State" in x
    ):
        assert time.monotonic() < give_up, "it still waits"
        time.sleep(0.05)


def test_a_thread_that_ends_while_threads_are_counted_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    before = forks._threads()
    tasks = [*Path("/proc/self/task").iterdir(), Path("/proc/self/task/4194305")]  # above the largest number there is
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(tasks))
    assert forks._threads() == before

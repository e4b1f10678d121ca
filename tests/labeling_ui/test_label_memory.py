"""The server's threads leave no memory behind: passwords are hashed in two threads, and arenas are shared."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading

import pytest
from label_support import ROOT, environment

from labeling_ui.web.login import accounts

THREADS_THAT_FREE = """
import re, sys, threading
from labeling_ui.web.malloc_arenas import share_arenas
if sys.argv[1] == "shared":
    assert share_arenas()
turn, done, over = threading.Lock(), threading.Semaphore(0), threading.Event()
def work():
    with turn:  # one request after the other, each in another thread
        held = [bytes(1000) for _ in range(20_000)]
        pinned = bytes(1000)
        del held
    done.release()
    over.wait()
for _ in range(16):
    threading.Thread(target=work).start()
for _ in range(16):
    done.acquire()
print(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1])
over.set()
"""


def test_passwords_are_hashed_in_two_threads_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed_in: list[str] = []

    class Recorded:
        def hash(self, _password: str) -> str:
            hashed_in.append(threading.current_thread().name)
            return "hash"

    monkeypatch.setattr(accounts, "_HASHER", Recorded())
    threads = [threading.Thread(target=accounts.hash_password, args=("four unrelated words",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hashed_in) == 8
    assert {name.rpartition("_")[0] for name in hashed_in} == {"argon2"}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
def test_what_one_thread_frees_another_uses() -> None:
    resident = {}
    for how in ("own", "shared"):
        command = [sys.executable, "-c", THREADS_THAT_FREE, how]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, cwd=ROOT, env=environment(), check=True
        )
        resident[how] = int(done.stdout)
    assert resident["shared"] < 0.5 * resident["own"], resident

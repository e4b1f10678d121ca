"""The process that loads a saved model, forked from one that has imported torch: it shares nothing else with a test.

A training stage starts such a process to check what it saved. By itself that imports torch, transformers and PEFT, five
seconds of nearly every test that trains; where a test's process can fork no more, since it has threads, a server forks it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any
from unittest import mock

from tiebreak.models import reload

SERVER = multiprocessing.get_context("forkserver")
IMPORTED = [
    "torch",
    "peft",
    "transformers.models.llama.modeling_llama",
    "tiebreak.models.load",
    "tiebreak.models.probe",
    "tiebreak.models.tokenizers",
    "tiebreak.packed.generation",
    "tiebreak.packed.logprobs",
]
_start = reload._start


class PreloadedProcess:
    """As subprocess.Popen, as far as a stage uses it."""

    def __init__(self, errors: IO[str]) -> None:
        requests, to_it = os.pipe()
        from_it, answers = os.pipe()
        fds = [DupFd(fd) for fd in (requests, answers, errors.fileno())]
        self._process: Any = SERVER.Process(target=_serve, args=(fds, dict(_environment()), str(Path.cwd())))
        self._process.start()
        for fd in (requests, answers):
            os.close(fd)
        self.stdin, self.stdout = os.fdopen(to_it, "w"), os.fdopen(from_it)
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode  # type: ignore[no-any-return]

    poll = returncode.fget  # type: ignore[attr-defined]

    def wait(self) -> int | None:
        self._process.join()
        return self.returncode

    def communicate(self) -> None:
        for pipe in (self.stdin, self.stdout):
            try:
                pipe.close()
            except OSError:  # it has ended
                continue
        self.wait()


def _environment() -> Iterator[tuple[str, str]]:
    launched = (*reload._OF_A_LAUNCH_TOO,)
    return ((k, v) for k, v in os.environ.items() if k not in reload._OF_A_LAUNCH and not k.startswith(launched))


def _serve(fds: list[Any], environment: dict[str, str], folder: str) -> None:
    for number, fd in enumerate(fds):
        os.dup2(fd.detach(), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    reload.serve()


@contextmanager
def prepared_processes() -> Iterator[None]:
    """Within, stages start their fresh processes from the server, except where a test gives them other code."""
    path = os.environ.get("PYTHONPATH")

    def start(final: Path, errors: IO[str]) -> Any:
        return PreloadedProcess(errors) if os.environ.get("PYTHONPATH") == path else _start(final, errors)

    SERVER.set_forkserver_preload(IMPORTED)
    with mock.patch.object(reload, "_start", start):
        yield

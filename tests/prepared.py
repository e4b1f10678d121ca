"""Processes that stages and recipes start, forked from one that has imported torch: they share nothing else with a test.

A training stage starts a process to check what it saved, and a recipe one for each stage. By itself such a process imports
torch, transformers, PEFT and TRL for five to seven seconds. Where a test's process cannot fork, since it has threads, a
server forks them.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any
from unittest import mock

from support import REPOSITORY

from tiebreak.command import pipeline
from tiebreak.command.cli import main
from tiebreak.models import reload
from tiebreak.process.children import passing_on
from tiebreak.process.settings import leave_out_inference_kernel
from tiebreak.process.stopping import as_a_new_process

SERVER = multiprocessing.get_context("forkserver")
IMPORTED = [
    "torch",
    "peft",
    "trl",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "tiebreak.models.load",
    "tiebreak.models.probe",
    "tiebreak.models.tokenizers",
    "tiebreak.packed.generation",
    "tiebreak.packed.logprobs",
]
_start, _run_following = reload._start, pipeline.run_following
STAGE = [sys.executable, "-m", "tiebreak.command.cli"]


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
    _become(fds, environment, folder)
    reload.serve()


def _become(fds: list[Any], environment: dict[str, str], folder: str) -> None:
    """Take the streams, the environment and the folder of the process that asked for this one."""
    for number, fd in enumerate(fds):
        os.dup2(fd.detach(), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))


def _run_stage(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """The exit status of a recipe's stage: as `run_following`, except that the stage is forked."""
    if list(command[:3]) != STAGE or environment.get("PYTHONPATH") != os.environ.get("PYTHONPATH"):
        return _run_following(command, environment)
    fds = [DupFd(fd) for fd in (0, 1, 2)]
    arguments = (fds, dict(environment), str(Path.cwd()), list(command[3:]))
    process: Any = SERVER.Process(target=_stage, args=arguments)
    process.start()
    with passing_on(lambda number: os.kill(process.pid, number)):
        process.join()
    return int(process.exitcode)


def _stage(fds: list[Any], environment: dict[str, str], folder: str, words: list[str]) -> None:
    _become(fds, environment, folder)
    as_a_new_process()
    main(words)


def run_launch(
    number: int, script: str, words: Sequence[str], environment: Mapping[str, str], errors: IO[str]
) -> list[int]:
    """Run a script as several processes of one launch, with a launcher's environment; returns their exit statuses.

    One that fails ends the others, as a launcher does.
    """
    from accelerate.utils.other import get_free_port

    world = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port())}
    processes: list[Any] = []
    for rank in map(str, range(number)):
        own = {**environment, **address, **world, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        fds = [DupFd(fd) for fd in (0, 1, errors.fileno())]
        processes.append(SERVER.Process(target=_script, args=(fds, own, str(REPOSITORY), script, list(words))))
        processes[-1].start()
    while any(one.exitcode is None for one in processes):
        wait([one.sentinel for one in processes if one.exitcode is None])
        if any(one.exitcode for one in processes):
            for one in processes:
                one.join(10)
                one.kill()
    return [int(one.exitcode) for one in processes]


def _script(fds: list[Any], environment: dict[str, str], folder: str, script: str, words: list[str]) -> None:
    _become(fds, environment, folder)
    as_a_new_process()
    leave_out_inference_kernel()
    sys.argv[:] = [script, *words]
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(Path(script).parent)]
    runpy.run_path(script, run_name="__main__")


def deepspeed_environment(file: str) -> dict[str, str]:
    """What `accelerate launch --config_file FILE` sets for its processes."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    arguments = launch_command_parser().parse_args(["--config_file", str(REPOSITORY / file), "script.py"])
    arguments, stated, _ = _validate_launch_command(arguments)
    arguments.deepspeed_fields_from_accelerate_config = ",".join(stated.deepspeed_config)
    arguments.main_process_port = 0
    return dict(prepare_deepspeed_cmd_env(arguments)[1])


@contextmanager
def prepared_processes() -> Iterator[None]:
    """Within, stages start their fresh processes from the server, except where a test gives them other code."""
    path = os.environ.get("PYTHONPATH")

    def start(final: Path, errors: IO[str]) -> Any:
        return PreloadedProcess(errors) if os.environ.get("PYTHONPATH") == path else _start(final, errors)

    SERVER.set_forkserver_preload(IMPORTED)
    with mock.patch.object(reload, "_start", start), mock.patch.object(pipeline, "run_following", _run_stage):
        yield

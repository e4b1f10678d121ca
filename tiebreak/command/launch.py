"""Start of a stage's process: alone, or through `accelerate launch` on several devices.

    tiebreak dpo --config configs/quickstart/dpo.yaml --accelerate zero2

is the same run as

    accelerate launch --config_file configs/accelerate/zero2.yaml -m preference.dpo --config configs/quickstart/dpo.yaml
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tiebreak.command.help import print_help, wants_help
from tiebreak.config import StageConfig, load_config, read_yaml
from tiebreak.errors import ConfigError, MachineError, exit_with_message
from tiebreak.process.children import follow_parent_if_asked, run_launched
from tiebreak.process.settings import leave_out_inference_kernel, process_settings, quiet_upstream, settle_process
from tiebreak.process.stopping import heeding_signals
from tiebreak.shipped import find_shipped, shipped_names
from tiebreak.stages import STAGES, Command, find_stage

C = TypeVar("C", bound=StageConfig)


ACCELERATE_CONFIGS = Path("configs/accelerate")


def stage_main(stage: str, model: type[C], body: Callable[[C], object], arguments: Sequence[str] | None) -> None:
    """The `main` of every stage: read the configuration, run `body`, print a user's errors as one message."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if wants_help(words):
        exit_with_message(lambda: print_help([*stage.split(), *words]))
        return
    settle_process()
    follow_parent_if_asked()
    quiet_upstream()
    leave_out_inference_kernel()

    outputs: list[Path] = []

    def run() -> None:
        _require_one_process(stage)
        config = load_config(model, words, stage)
        outputs.append(Path(config.output))
        if find_stage(stage).trains:
            from tiebreak.models.reload import fork_ahead

            fork_ahead()  # before anything is loaded
        body(config)
        if stage in STAGES:
            from tiebreak.command.closing import say_end

            say_end(stage, config, words)

    with heeding_signals():
        exit_with_message(run, resumes=True, folder=lambda: outputs[0] if outputs else None)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _leave_at_once()


def _leave_at_once() -> None:
    """End a process of a launch whose work is on disk, without taking the interpreter down in order.

    A thread of the communication that still runs then makes C++ abort ("terminate called without an active exception"):
    rarely, but the launcher would end the other processes for it, and call the finished run failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _require_one_process(stage: str) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not find_stage(stage).trains:
        raise ConfigError(f"'tiebreak {stage}' runs in one process: start it without accelerate or torchrun")


def run_accelerated(command: Command, words: Sequence[str]) -> None:
    """Run `accelerate launch … -m tiebreak.command.cli STAGE`, and end with its status.

    Raises:
        ConfigError: the stage does not train, or there is no such accelerate file.
    """
    if not command.trains:
        raise ConfigError(f"'tiebreak {command.name}' runs in one process: leave --accelerate out")
    name, rest = _take_accelerate(words)
    file = accelerate_file(name)
    launch = [
        sys.executable,
        "-m",
        "tiebreak.command.accelerated",
        "--config_file",
        str(file),
        *_free_port(file),
        "-m",
        "tiebreak.command.cli",  # not the stage's module, which imports torch before the process is set up
        command.name,
        *rest,
    ]
    raise SystemExit(run_launched(launch, {**os.environ, **process_settings()}))


def without_accelerate(words: Sequence[str]) -> list[str]:
    """A command's words without `--accelerate NAME`."""
    return _take_accelerate(words)[1]


def _take_accelerate(words: Sequence[str]) -> tuple[str, list[str]]:
    """(name, the other words); the name is empty without the flag.

    Raises:
        ConfigError: the flag has no name.
    """
    rest = [part for word in words for part in (word.split("=", 1) if word.startswith("--accelerate=") else [word])]
    if "--accelerate" not in rest:
        return "", rest
    at = rest.index("--accelerate")
    if rest[at + 1 : at + 2] in ([], [""]) or rest[at + 1].startswith("--"):
        raise ConfigError(f"--accelerate needs a name: one of {', '.join(accelerate_names())}")
    return rest[at + 1], [*rest[:at], *rest[at + 2 :]]


def accelerate_names() -> list[str]:
    """Names of the available accelerate files."""
    return shipped_names(ACCELERATE_CONFIGS, "*.yaml")


def accelerate_file(name: str) -> Path:
    """The accelerate file called `name`, or the path itself.

    Raises:
        ConfigError: there is no such file.
        MachineError: it needs more GPUs than this machine has; accelerate would silently continue without them.
    """
    for file in (find_shipped(ACCELERATE_CONFIGS / f"{name}.yaml"), Path(name)):
        if file.is_file():
            _require_devices(file)
            return file
    raise ConfigError(
        f"no accelerate configuration {name!r}: expected {', '.join(accelerate_names())}, or a file's path"
    )


def _free_port(file: Path) -> list[str]:
    """A free port for the processes' rendezvous, unless one is set: two runs on one machine need two."""
    values = read_yaml(file)
    chosen = values.get("main_process_port") or "MASTER_PORT" in os.environ or (values.get("num_machines") or 1) > 1
    return [] if chosen else ["--main_process_port", "0"]


def _require_devices(file: Path) -> None:
    values = read_yaml(file)
    if values.get("use_cpu"):
        return
    import torch  # imported late: runs on the CPU need not wait for it

    found = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if not found:
        on_cpu = [stem for stem in accelerate_names() if stem.startswith("cpu")]
        raise MachineError(f"{file} needs GPUs, and this machine has none: use --accelerate {' or '.join(on_cpu)}")
    wanted = int(values.get("num_processes") or 1) // int(values.get("num_machines") or 1)
    if wanted > found:
        raise MachineError(
            f"{file} starts {wanted} processes, one per GPU, but this machine has {found}: set num_processes in a copy of "
            "it, and give that file's path to --accelerate"
        )

"""Start of a stage's process: alone, or through `accelerate launch` on several devices.

    tiebreak dpo --config configs/quickstart/dpo.yaml --accelerate zero2

is the same run as

    accelerate launch --config_file configs/accelerate/zero2.yaml -m preference.dpo --config configs/quickstart/dpo.yaml
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tiebreak.command.hardware import PREFLIGHT, LaunchFlags, long_form, take_launch_flags, take_preflight
from tiebreak.command.help import configuration_class, print_help, wants_help
from tiebreak.config import StageConfig, load_config, read_yaml, take_config_flag
from tiebreak.errors import ConfigError, MachineError
from tiebreak.process.children import follow_parent_if_asked, run_launched
from tiebreak.process.ending import exit_with_message
from tiebreak.process.limit import limited_to
from tiebreak.process.settings import leave_out_inference_kernel, process_settings, quiet_upstream, settle_process
from tiebreak.process.stopping import heeding_signals
from tiebreak.runs.agreement import require_placeable, require_same_values
from tiebreak.runs.audit import COMMAND
from tiebreak.shipped import find_shipped, shipped_names
from tiebreak.stages import STAGES, Command, find_stage
from tiebreak.terminal import process_count

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
        only, own = take_preflight(words)
        config = load_config(model, own, stage)
        if only:
            if not find_stage(stage).trains:
                raise ConfigError(f"'tiebreak {stage}' trains nothing: {PREFLIGHT} is for stages that train")
            config = config.for_preflight()
        outputs.append(Path(config.output))
        if find_stage(stage).shares_out:
            _take_own_gpu()
        if find_stage(stage).trains and not only:
            from tiebreak.models.reload import fork_ahead

            fork_ahead()  # before anything is loaded
        with limited_to(getattr(config, "max_time", None)):
            body(config)
        if stage in STAGES and not only:
            from tiebreak.command.closing import say_end

            say_end(stage, config, words)

    os.environ[COMMAND] = shlex.join(["tiebreak", *stage.split(), *words])
    with heeding_signals():
        exit_with_message(run, resumes=True, folder=lambda: outputs[0] if outputs else None)
    if process_count() > 1:
        _leave_at_once()


def _leave_at_once() -> None:
    """End a process of a launch whose work is on disk, without taking the interpreter down in order.

    A thread of the communication that still runs then makes C++ abort ("terminate called without an active exception"):
    rarely, but the launcher would end the other processes for it, and call the finished run failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _take_own_gpu() -> None:
    """Of several processes without accelerate's own set-up, each computes on its own GPU."""
    if process_count() > 1:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def _require_one_process(stage: str) -> None:
    if process_count() > 1 and not find_stage(stage).launches:
        raise ConfigError(f"'tiebreak {stage}' runs in one process: start it without accelerate or torchrun")


def run_accelerated(command: Command, words: Sequence[str]) -> None:
    """Run `accelerate launch … -m tiebreak.command.cli STAGE`, and end with its status; `--dry-run` prints the command.

    Raises:
        ConfigError: the stage runs in one process, there is no such accelerate file, or it contradicts the configuration.
    """
    flags, rest = _take_flags(words)
    if not command.launches:
        given = "--accelerate" if flags.accelerate else "the flags of a launch"
        raise ConfigError(f"'tiebreak {command.name}' runs in one process: leave {given} out")
    if flags.accelerate is None:
        if not flags.dry_run or list(flags.passed_on()):
            raise ConfigError(f"--num_processes and the like need --accelerate NAME: {', '.join(accelerate_names())}")
        print(long_form(command, None, (), rest))
        raise SystemExit(0)
    file = accelerate_file(flags.accelerate, flags.num_processes, flags.num_machines, present=not flags.dry_run)
    max_time = _require_agreement(command, file, rest)
    options = [*flags.passed_on(), *_of_several(file, flags), *_free_port(file, flags)]
    if flags.dry_run:
        print(long_form(command, file, options, rest))
        raise SystemExit(0)
    launch = [
        sys.executable,
        "-m",
        "tiebreak.command.accelerated",
        "--config_file",
        str(file),
        *options,
        "-m",
        "tiebreak.command.cli",  # not the stage's module, which imports torch before the process is set up
        command.name,
        *rest,
    ]
    with limited_to(max_time):
        raise SystemExit(run_launched(launch, {**os.environ, **process_settings(), **_device_settings(file)}))


def without_launch_flags(words: Sequence[str]) -> list[str]:
    """A command's words without those of its launch."""
    return take_preflight(_take_flags(words)[1])[1]


def _take_flags(words: Sequence[str]) -> tuple[LaunchFlags, list[str]]:
    """(the launch flags, the other words).

    Raises:
        ConfigError: a flag has no value.
    """
    try:
        return take_launch_flags(words)
    except ConfigError as error:
        one_of = f": one of {', '.join(accelerate_names())}" if str(error).startswith("--accelerate") else ""
        raise ConfigError(f"{error}{one_of}") from None


def _require_agreement(command: Command, file: Path, words: Sequence[str]) -> str | None:
    """Refuse an accelerate file that contradicts the stage's configuration, before anything starts; its `max_time`."""
    model = configuration_class(command)
    if not issubclass(model, StageConfig):
        return None
    config = load_config(model, take_preflight(words)[1], command.name)
    path, _ = take_config_flag(words, command.name)
    if config.trains:
        require_same_values(config.training, file, str(path or "the command line"))  # type: ignore[attr-defined]
    return getattr(config, "max_time", None)


def accelerate_names() -> list[str]:
    """Names of the available accelerate files."""
    return shipped_names(ACCELERATE_CONFIGS, "*.yaml")


def accelerate_file(
    name: str, processes: int | None = None, machines: int | None = None, *, present: bool = True
) -> Path:
    """The accelerate file called `name`, or the path itself.

    Args:
        processes: instead of the file's number of them.
        machines: instead of the file's.
        present: whether its devices must be those of this machine.

    Raises:
        ConfigError: there is no such file.
        MachineError: it needs more GPUs than this machine has; accelerate would silently continue without them.
    """
    for file in (find_shipped(ACCELERATE_CONFIGS / f"{name}.yaml"), Path(name)):
        if file.is_file():
            require_placeable(file)
            if present:
                _require_devices(file, processes, machines)
            return file
    raise ConfigError(
        f"no accelerate configuration {name!r}: expected {', '.join(accelerate_names())}, or a file's path"
    )


def _of_several(file: Path, flags: LaunchFlags) -> list[str]:
    """For a file of one process that is given several: accelerate would start one of them."""
    values = read_yaml(file)
    several = (flags.num_processes or values.get("num_processes") or 1) > 1
    alone = str(values.get("distributed_type", "NO")) in ("NO", "MULTI_CPU", "False")  # "False": YAML's NO
    return ["--multi_gpu"] if several and alone else []


def _device_settings(file: Path) -> dict[str, str]:
    """accelerate's own variable for `use_cpu`, which it leaves out for several processes. Not for DeepSpeed's: with it,
    accelerate trains them under DDP."""
    values = read_yaml(file)
    on_cpu = values.get("use_cpu") and values.get("distributed_type") != "DEEPSPEED"
    return {"ACCELERATE_USE_CPU": "true"} if on_cpu else {}


def _free_port(file: Path, flags: LaunchFlags) -> list[str]:
    """A free port for the processes' rendezvous, unless one is set: two runs on one machine need two."""
    values = read_yaml(file)
    several = (flags.num_machines or values.get("num_machines") or 1) > 1
    port = flags.main_process_port if flags.main_process_port is not None else values.get("main_process_port")
    return [] if port is not None or "MASTER_PORT" in os.environ or several else ["--main_process_port", "0"]


def _require_devices(file: Path, processes: int | None, machines: int | None) -> None:
    values = read_yaml(file)
    if values.get("use_cpu"):
        return
    import torch  # imported late: runs on the CPU need not wait for it

    found = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if not found:
        on_cpu = [stem for stem in accelerate_names() if stem.startswith("cpu")]
        raise MachineError(f"{file} needs GPUs, and this machine has none: use --accelerate {' or '.join(on_cpu)}")
    hosts = machines or int(values.get("num_machines") or 1)
    wanted = (processes or int(values.get("num_processes") or 1)) // hosts
    if wanted > found:
        raise MachineError(
            f"{file} starts {wanted} processes, one per GPU, but this machine has {found}: add --num_processes "
            f"{found * hosts}"
        )

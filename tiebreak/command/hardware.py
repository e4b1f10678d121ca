"""Launch flags: on what hardware a training stage runs. They are not keys of its configuration.

tiebreak sft --config FILE --accelerate zero2 --num_processes 4 --dry-run
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiebreak.errors import ConfigError
from tiebreak.stages import Command

PASSED_ON = {
    "num_processes": "processes of all machines together, one per GPU; default: the file's",
    "num_machines": "machines; default: the file's",
    "machine_rank": "rank of this machine among them, from 0",
    "main_process_ip": "address of the machine with rank 0",
    "main_process_port": "port on it; default: the file's, else a free one",
}
"""Flags that `accelerate launch` takes, and their meaning."""
NUMBERS = frozenset({"num_processes", "num_machines", "machine_rank", "main_process_port"})
SWITCHES = ("dry_run",)
PREFLIGHT = "--preflight-only"
"""ends a stage after its preflight; unlike the others, it continues to the stage's processes"""


@dataclass(frozen=True)
class LaunchFlags:
    """The launch flags among a command's words; None where one is not given."""

    accelerate: str | None = None
    num_processes: int | None = None
    num_machines: int | None = None
    machine_rank: int | None = None
    main_process_ip: str | None = None
    main_process_port: int | None = None
    dry_run: bool = False
    """print the command in full, and start nothing"""

    def passed_on(self) -> Iterator[str]:
        """The words for `accelerate launch`."""
        for name in PASSED_ON:
            value = getattr(self, name)
            if value is not None:
                yield from (f"--{name}", str(value))


def take_launch_flags(words: Sequence[str]) -> tuple[LaunchFlags, list[str]]:
    """The launch flags and the other words.

    Raises:
        ConfigError: a flag has no value, or a wrong one.
    """
    found: dict[str, str | int | bool] = {}
    rest: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        flag, given, value = word.partition("=")
        name = _name_of(flag)
        if not name:
            rest.append(word)
        elif name in SWITCHES:
            if given:
                raise ConfigError(f"{flag} takes no value")
            found[name] = True
        else:
            if not given:
                value = remaining.pop(0) if remaining and not remaining[0].startswith("--") else ""
            found[name] = _value_of(name, value)
    return LaunchFlags(**found), rest  # type: ignore[arg-type] # by _value_of


def take_preflight(words: Sequence[str]) -> tuple[bool, list[str]]:
    """(whether `--preflight-only` is among a stage's words, the other words)."""
    spellings = (PREFLIGHT, PREFLIGHT.replace("-only", "_only"))
    return any(word in spellings for word in words), [word for word in words if word not in spellings]


def wants_launch(words: Sequence[str]) -> bool:
    """Whether a launch flag is among a command's words."""
    return any(_name_of(word.partition("=")[0]) for word in words)


def _name_of(flag: str) -> str:
    """The launch flag's name; empty for any other word."""
    name = flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else ""
    return name if name in {field.name for field in dataclasses.fields(LaunchFlags)} else ""


def _value_of(name: str, value: str) -> str | int:
    if not value:
        raise ConfigError(f"--{name} needs a {'name' if name == 'accelerate' else 'value'}")
    if name not in NUMBERS:
        return value
    lowest = 1 if name in ("num_processes", "num_machines") else 0
    if not value.isdecimal() or int(value) < lowest:
        raise ConfigError(f"--{name}: must be a whole number from {lowest}, not {value!r}")
    return int(value)


def long_form(command: Command, file: Path | None, options: Sequence[str], rest: Sequence[str]) -> str:
    """The same start without Tiebreak's command line, as a line for a shell.

    Args:
        file: the accelerate file; None: one process without accelerate.
        options: of `accelerate launch`, after its file.
        rest: the stage's own words.
    """
    launcher = ["python"] if file is None else ["accelerate", "launch", "--config_file", str(file), *options]
    return shlex.join([*launcher, "-m", command.module, *rest])

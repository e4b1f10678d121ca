"""The command line: `tiebreak COMMAND --config FILE [--key value …]`.

Help and configuration errors come before the stage's imports, so both are immediate. Each stage is also
`python -m MODULE` and `accelerate launch … -m MODULE` with the same arguments.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from tiebreak import __version__
from tiebreak.command.table import COMMANDS, GROUPS, find_command, unknown_command
from tiebreak.extras import require_training_packages
from tiebreak.process.ending import exit_with_message
from tiebreak.stages import Command


def main(arguments: Sequence[str] | None = None, on_start: Callable[[], object] = lambda: None) -> None:
    """Run a command line.

    Args:
        on_start: called once Ctrl-C is handled here.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["help"] and words[1:]:
        words = [*words[1:], "--help"]

    def start() -> None:
        on_start()
        _answer(words)

    exit_with_message(start)


def _answer(words: list[str]) -> None:
    if not words or words[0] in ("--help", "-h", "help"):
        print(help_page())
    elif words[0] in ("--version", "-V"):
        print(__version__)
    else:
        _dispatch(words)


def _dispatch(words: list[str]) -> None:
    if words[0] not in COMMANDS:
        raise unknown_command(words[0])
    from tiebreak.process.settings import while_importing

    with while_importing():
        from tiebreak.command.help import configuration_class, print_help, wants_help
    if wants_help(words):
        print_help(words)
        return
    name, command, rest = find_command(words)
    if command.heavy:
        with while_importing():
            from tiebreak.command.launch import without_launch_flags
            from tiebreak.config import Section, load_config

            model = configuration_class(command) if command.configuration else None
        if model is not None and issubclass(model, Section):
            load_config(model, without_launch_flags(_flags_of(command, rest)), name)
        if name != "run":  # a recipe looks at its stages
            require_training_packages(f"'tiebreak {name}'")
    _start(COMMANDS[words[0]], words[1:])


def _flags_of(command: Command, words: list[str]) -> list[str]:
    """The words after the command's positional arguments."""
    rest = list(words)
    for _ in command.positional.split():
        if rest and not rest[0].startswith("--"):
            rest.pop(0)
    return rest


def _start(command: Command, rest: list[str]) -> None:
    from tiebreak.command.hardware import wants_launch
    from tiebreak.command.launch import run_accelerated
    from tiebreak.process.children import follow_parent_if_asked
    from tiebreak.process.settings import quiet_upstream, settle_process, while_importing
    from tiebreak.process.stopping import heeding_signals

    if wants_launch(rest) and not command.plans:
        follow_parent_if_asked()
        run_accelerated(command, rest)
    if command.heavy:
        settle_process()  # both before torch is imported
        follow_parent_if_asked()
        quiet_upstream()
    with heeding_signals() if command.heavy else nullcontext():
        with while_importing():
            module = importlib.import_module(command.module)
        module.main(rest)


def help_page() -> str:
    """The text of `tiebreak --help`: wrapped, with bold titles, in a terminal; whole lines in a pipe."""
    from tiebreak.terminal import has_colours, paint

    style = "bold" if has_colours(sys.stdout) else ""
    width = max(len(name) for name in COMMANDS)
    lines = [
        "usage: tiebreak COMMAND --config FILE [--key value …] [--accelerate NAME]",
        "",
        "From raw prompts to an aligned language model, through the judgments of expert raters.",
    ]
    for title, commands in GROUPS.items():
        rows = (_wrapped(f"  {one.name:<{width}}  {one.summary}", width + 4) for one in commands.values())
        lines += ["", paint(title, style) if style else title, *rows]
    about = (
        "Every key of a configuration is a flag: 'tiebreak COMMAND --help' lists them.",
        "--accelerate NAME starts a stage on several devices, through 'accelerate launch' with "
        "configs/accelerate/NAME.yaml; with --dry-run, the command is printed instead.",
        "Start here: tiebreak run --config configs/quickstart/pipeline.yaml",
    )
    return "\n".join([*lines, "", *map(_wrapped, about)])


def _wrapped(line: str, indent: int = 0) -> str:
    """A line, continued with an indent where the terminal is narrower."""
    if not sys.stdout.isatty():
        return line
    width = max(shutil.get_terminal_size().columns, 40)
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_on_hyphens=False)


if __name__ == "__main__":
    main()

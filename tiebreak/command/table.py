"""The table of commands: the stages in order, and the others.

It imports nothing but the stages' entries, so that `tiebreak --help` answers at once.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import cast

from tiebreak.errors import ConfigError
from tiebreak.stages import LABEL_FILE, STAGES, Command

_RATERS = "labeling_ui.raters"

INIT = Command(
    "init",
    "tiebreak.command.init",
    "write a recipe to start from, for your own data",
    "tiebreak.command.init:InitArguments",
    positional="FOLDER",
    sources=(),
)

RUN = Command(
    "run",
    "tiebreak.command.pipeline",
    "run a whole recipe: skip stages that are up to date, resume an interrupted one",
    "tiebreak.command.pipeline:PipelineConfig",
    heavy=True,
)

ROUNDS = Command(
    "rounds",
    "tiebreak.rounds.loop",
    "sample, select, label, train and evaluate in rounds, until a stopping rule or the budget ends them",
    "tiebreak.rounds.configuration:RoundsConfig",
    heavy=True,
)

PLAN = Command(
    "plan",
    "tiebreak.command.plan",
    "estimate memory, time and cost of a stage or a recipe, and settings that fit",
    "tiebreak.command.plan:PlanArguments",
    plans=True,
)

RATERS = Command(
    "raters",
    _RATERS,
    "manage raters' accounts: add, invite, reset, move, disable, erase, list",
    subcommands=(
        Command(
            "add",
            _RATERS,
            "add an account; its generated password is printed once",
            "labeling_ui.raters:AddArguments",
            positional="NAME",
            sources=LABEL_FILE,
        ),
        Command(
            "invite",
            _RATERS,
            "print a link to create one account, valid for a week",
            "labeling_ui.raters:InviteArguments",
            sources=LABEL_FILE,
        ),
        Command(
            "reset",
            _RATERS,
            "set a new password, and re-enable a disabled account",
            "labeling_ui.raters:ResetArguments",
            positional="NAME",
            sources=LABEL_FILE,
        ),
        Command(
            "move",
            _RATERS,
            "move a rater to another pool",
            "labeling_ui.raters:MoveArguments",
            positional="NAME",
            sources=LABEL_FILE,
        ),
        Command(
            "disable",
            _RATERS,
            "disable an account; its judgments stay",
            "labeling_ui.raters:DisableArguments",
            positional="NAME",
            sources=LABEL_FILE,
        ),
        Command(
            "erase",
            _RATERS,
            "erase a person's data: only the pseudonym stays, with the judgments or without",
            "labeling_ui.raters:EraseArguments",
            positional="NAME",
            sources=LABEL_FILE,
        ),
        Command(
            "list",
            _RATERS,
            "list all accounts, with their numbers of judgments",
            "labeling_ui.raters:ListArguments",
            sources=LABEL_FILE,
        ),
    ),
)

DATA = Command(
    "data",
    "tiebreak.command.data",
    "show how a data file is read: shape, splits, errors, and rows as a model learns them",
    "tiebreak.command.data:DataArguments",
    positional="FILE",
    sources=(),
)

INSPECT = Command(
    "inspect",
    "tiebreak.command.inspect",
    "show what a run folder contains, and what it was made from",
    "tiebreak.command.inspect:InspectArguments",
    positional="FOLDER",
    sources=(),
)

LINEAGE = Command(
    "lineage",
    "tiebreak.command.lineage",
    "show what a run was made from, and which models learned from a judgment or a rater",
    "tiebreak.command.lineage:LineageArguments",
    positional="FOLDER",
    sources=(),
)

EXPORT = Command(
    "export",
    "tiebreak.export.command",
    "write a finished model for other programs: safetensors, adapter, GGUF, Ollama, vLLM, the hub",
    "tiebreak.export.configuration:ExportArguments",
    heavy=True,
    positional="RUN",
    sources=(),
)

PUSH = Command(
    "push",
    "tiebreak.export.push",
    "push a finished model to the hub, with its card, as a private repository",
    "tiebreak.export.push:PushArguments",
    heavy=True,
    positional="RUN hub:OWNER/NAME",
    sources=(),
)

AUDIT = Command(
    "audit",
    "tiebreak.command.audit",
    "record a folder's runs in a hash-chained audit trail, and verify it",
    subcommands=(
        Command(
            "begin",
            "tiebreak.command.audit",
            "start to record the runs in a folder",
            "tiebreak.command.audit:BeginArguments",
            positional="FOLDER",
            sources=(),
        ),
        Command(
            "verify",
            "tiebreak.command.audit",
            "check an audit trail and the files of its runs",
            "tiebreak.command.audit:VerifyArguments",
            positional="FOLDER",
            sources=(),
        ),
    ),
)

CARD = Command(
    "card",
    "tiebreak.card.command",
    "write a model card, or a technical file, from the run's manifests",
    "tiebreak.card.command:CardArguments",
    positional="RUN",
    sources=(),
)

CHAT = Command(
    "chat",
    "tiebreak.serving.chat",
    "chat with one or two policies in the terminal, with reward scores",
    "tiebreak.serving.configuration:ChatArguments",
    heavy=True,
    positional="RUN",
    sources=(),
)

EXPLAIN = Command(
    "explain",
    "tiebreak.explain.command",
    "show which words and training pairs made a score or an answer",
    "tiebreak.explain.configuration:ExplainArguments",
    heavy=True,
    positional="RUN",
    sources=(),
)

SERVE = Command(
    "serve",
    "tiebreak.serving.serve",
    "serve a policy through OpenAI's API, on this machine",
    "tiebreak.serving.configuration:ServeArguments",
    heavy=True,
    positional="RUN",
    sources=(),
)

WANDB = Command(
    "wandb",
    "tiebreak.tracking.sync",
    "upload runs that could not reach W&B while they ran; save a workspace of them",
    subcommands=(
        Command(
            "sync",
            "tiebreak.tracking.sync",
            "upload run folders to W&B, inputs first",
            positional="FOLDERS…",
            sources=(),
        ),
        Command(
            "workspace",
            "tiebreak.tracking.sync",
            "save a W&B workspace and report of a recipe's runs",
            "tiebreak.tracking.workspace:WorkspaceArguments",
            positional="GROUP",
            sources=(),
        ),
    ),
)

TRACK = Command(
    "track",
    "tiebreak.tracking.track",
    "send runs to Trackio, TensorBoard or MLflow after they ran",
    "tiebreak.tracking.track:TrackArguments",
    positional="TRACKER FOLDERS…",
    sources=(),
)

_RECIPES = {command.name: command for command in (INIT, RUN, ROUNDS)}
_BESIDE = {
    command.name: command
    for command in (PLAN, RATERS, DATA, INSPECT, LINEAGE, CHAT, EXPLAIN, EXPORT, PUSH, CARD, AUDIT, SERVE, WANDB, TRACK)
}

GROUPS: Mapping[str, dict[str, Command]] = {
    "recipes": _RECIPES,
    "stages": cast("dict[str, Command]", STAGES),
    "other commands": _BESIDE,
}
"""Title → its commands, in the order of the help page."""
COMMANDS: Mapping[str, Command] = ChainMap(*reversed([*GROUPS.values()]))
"""In the same order: a ChainMap goes through its last mapping first."""


def find_command(words: Sequence[str]) -> tuple[str, Command, list[str]]:
    """(its whole name, the command or subcommand, the words after it); the first word must be a command."""
    command, rest = COMMANDS[words[0]], list(words[1:])
    for one in command.subcommands:
        if rest[:1] == [one.name] or (not one.configuration and rest[:1] == [f"--{one.name}"]):
            return f"{command.name} {one.name}", one, rest[1:]
    return command.name, command, rest


def unknown_command(name: str, parent: str = "") -> ConfigError:
    """The error for a command that does not exist, with the nearest one.

    Args:
        parent: the command whose subcommand it would be.
    """
    import difflib

    names = [one.name for one in COMMANDS[parent].subcommands] if parent else list(COMMANDS)
    near = difflib.get_close_matches(name, names, n=1)
    before = f"{parent} " if parent else ""
    guess = f"; did you mean {before}{near[0]}?" if near else ""
    return ConfigError(f"no such command: {before}{name}{guess} ('tiebreak {before}--help' lists them)")

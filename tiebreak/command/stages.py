"""The table of commands: what each is for, the module that runs it, the class of its configuration.

It imports nothing, so that `tiebreak --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Next:
    """A stage that may follow another, and its keys: {output} stands for what that one wrote, {policy} for its policy."""

    stage: str
    keys: tuple[tuple[str, str], ...]
    when: str = ""
    """a key of the stage before: it follows only where that is not empty"""


@dataclass(frozen=True)
class Command:
    """A command, the module that runs it, and the class of its configuration (`module:class`, of a module that imports
    no model code).

    `trains` marks those that take `--accelerate NAME`; `heavy` those that hold a model, or start processes
    that do.
    """

    name: str
    module: str
    summary: str
    configuration: str = ""
    trains: bool = False
    heavy: bool = False
    positional: str = ""
    """what stands before the flags, as NAME"""
    sources: tuple[str, ...] = ("config",)
    """where its keys may come from: `config`, a file of its own; `label`, the labelling stage's file"""
    subcommands: tuple[Command, ...] = ()
    next: tuple[Next, ...] = ()
    """what usually follows, the likeliest first"""


_LABEL, _RATERS = "labeling_ui.label", "labeling_ui.raters"
_STORE = ("label",)

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "init",
            "tiebreak.command.init",
            "write a recipe to start from, for data of your own",
            "tiebreak.command.init:InitArguments",
            positional="FOLDER",
            sources=(),
        ),
        Command(
            "run",
            "tiebreak.command.pipeline",
            "a whole recipe: starts each stage, skips fresh ones, resumes a cut-off one",
            "tiebreak.command.pipeline:PipelineConfig",
            heavy=True,
        ),
        Command(
            "prepare",
            "sft.prepare",
            "validate, deduplicate and split prompts and demonstrations",
            "sft.configuration:PrepareConfig",
            next=(
                Next("sft", (("demonstrations", "{output}"), ("policy", "{policy}")), when="demonstrations"),
                Next("sample", (("prompts", "{output}"), ("policy", "{policy}"))),
            ),
        ),
        Command(
            "sft",
            "sft.train",
            "supervised fine-tuning with LoRA",
            "sft.configuration:SFTConfig",
            next=(Next("sample", (("policy", "{output}"),)),),
            trains=True,
            heavy=True,
        ),
        Command(
            "sample",
            "preference.sample",
            "several completions a prompt, as pairs to judge",
            "preference.configuration:SampleConfig",
            next=(Next("label", (("pairs", "{output}"),)),),
            heavy=True,
        ),
        Command(
            "label",
            _LABEL,
            "serve pairs to raters; export, verify and count their judgments",
            "labeling_ui.label:LabelConfig",
            next=(Next("reward", (("preferences", "{output}"),)), Next("dpo", (("preferences", "{output}"),))),
            subcommands=(
                Command(
                    "export",
                    _LABEL,
                    "write the run folder that training reads",
                    "labeling_ui.label:ExportArguments",
                    sources=_STORE,
                ),
                Command(
                    "import",
                    _LABEL,
                    "take in judgments that were made elsewhere",
                    "labeling_ui.label:ImportArguments",
                    sources=(),
                ),
                Command(
                    "gold",
                    _LABEL,
                    "name pairs whose answer is known, to measure raters by",
                    "labeling_ui.label:GoldArguments",
                    sources=(),
                ),
                Command(
                    "status",
                    _LABEL,
                    "how many pairs, judgments and raters a store holds",
                    "labeling_ui.label:StoreArguments",
                    sources=_STORE,
                ),
                Command(
                    "verify",
                    _LABEL,
                    "check a store against its own event log",
                    "labeling_ui.label:StoreArguments",
                    sources=_STORE,
                ),
                Command(
                    "agreement",
                    _LABEL,
                    "how far raters agree, with each other and with themselves",
                    "labeling_ui.label:StoreArguments",
                    sources=_STORE,
                ),
            ),
        ),
        Command(
            "raters",
            _RATERS,
            "who may rate: add, invite, reset, move, disable, list",
            subcommands=(
                Command(
                    "add",
                    _RATERS,
                    "an account, with a password that is made and printed once",
                    "labeling_ui.raters:AddArguments",
                    positional="NAME",
                    sources=_STORE,
                ),
                Command(
                    "invite",
                    _RATERS,
                    "a link that gives one account, for a week",
                    "labeling_ui.raters:InviteArguments",
                    sources=_STORE,
                ),
                Command(
                    "reset",
                    _RATERS,
                    "a new password; a disabled rater is let in again",
                    "labeling_ui.raters:ResetArguments",
                    positional="NAME",
                    sources=_STORE,
                ),
                Command(
                    "move",
                    _RATERS,
                    "to another pool",
                    "labeling_ui.raters:MoveArguments",
                    positional="NAME",
                    sources=_STORE,
                ),
                Command(
                    "disable",
                    _RATERS,
                    "lock a rater out; what they judged stays",
                    "labeling_ui.raters:DisableArguments",
                    positional="NAME",
                    sources=_STORE,
                ),
                Command(
                    "list",
                    _RATERS,
                    "everybody, with the number of their judgments",
                    "labeling_ui.raters:ListArguments",
                    sources=_STORE,
                ),
            ),
        ),
        Command(
            "reward",
            "reward.train",
            "a reward model from preferences; report on one",
            "reward.configuration:RewardConfig",
            next=(Next("ppo", (("reward_model", "{output}"), ("policy", "{policy}"))),),
            trains=True,
            heavy=True,
            subcommands=(
                Command(
                    "report",
                    "reward.report",
                    "whether to trust a reward model: its report, on any preferences",
                    "reward.configuration:RewardReportConfig",
                    heavy=True,
                ),
            ),
        ),
        Command(
            "dpo",
            "preference.dpo",
            "direct preference optimisation",
            "preference.configuration:DPOConfig",
            next=(Next("evaluate", (("policies.sft", "{policy}"), ("policies.dpo", "{output}"))),),
            trains=True,
            heavy=True,
        ),
        Command(
            "ppo",
            "preference.ppo",
            "proximal policy optimisation against a reward model",
            "preference.configuration:PPOConfig",
            next=(Next("evaluate", (("policies.sft", "{policy}"), ("policies.ppo", "{output}"))),),
            trains=True,
            heavy=True,
        ),
        Command(
            "evaluate",
            "evaluation.evaluate",
            "policies on held-out prompts",
            "evaluation.configuration:EvaluateConfig",
            next=(Next("compare", (("evaluation", "{output}"),)),),
            heavy=True,
        ),
        Command(
            "compare",
            "evaluation.compare",
            "one report over the whole recipe: report.html, report.json",
            "evaluation.configuration:CompareConfig",
        ),
        Command(
            "data",
            "tiebreak.command.data",
            "how a file of data is read: its shape, splits and faults, and rows as a model learns them",
            "tiebreak.command.data:DataArguments",
            positional="FILE",
            sources=(),
        ),
        Command(
            "inspect",
            "tiebreak.command.inspect",
            "what is in a run folder, and what it was made from",
            "tiebreak.command.inspect:InspectArguments",
            positional="FOLDER",
            sources=(),
        ),
        Command(
            "wandb",
            "tiebreak.tracking.wandb_copy",
            "send runs to W&B that could not be sent while they were made",
            subcommands=(
                Command(
                    "sync", "tiebreak.tracking.wandb_copy", "send a run folder again", positional="FOLDER", sources=()
                ),
            ),
        ),
    )
}


def find_command(words: Sequence[str]) -> tuple[str, Command, list[str]]:
    """(its whole name, the command or subcommand, the words after it); the first word must be a command."""
    command, rest = COMMANDS[words[0]], list(words[1:])
    for one in command.subcommands:
        if rest[:1] == [one.name]:
            return f"{command.name} {one.name}", one, rest[1:]
    return command.name, command, rest

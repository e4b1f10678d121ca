"""The command line: `tiebreak COMMAND --config FILE [--key value …]`.

Starts a stage by its module's name and imports nothing else, so that `tiebreak --help` answers at once. Each stage is
also `python -m MODULE` and `accelerate launch … -m MODULE` with the same words after it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tiebreak import __version__
from tiebreak.errors import ConfigError, exit_with_message


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


_TRAINS = {"trains": True, "heavy": True}

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "run",
            "tiebreak.pipeline",
            "a whole recipe: starts each stage, skips fresh ones, resumes a cut-off one",
            "tiebreak.pipeline:PipelineConfig",
            heavy=True,
        ),
        Command(
            "prepare",
            "sft.prepare",
            "validate, deduplicate and split prompts and demonstrations",
            "sft.configuration:PrepareConfig",
        ),
        Command("sft", "sft.train", "supervised fine-tuning with LoRA", "sft.configuration:SFTConfig", **_TRAINS),
        Command(
            "sample",
            "preference.sample",
            "several completions a prompt, as pairs to judge",
            "preference.configuration:SampleConfig",
            heavy=True,
        ),
        Command(
            "label",
            "labeling_ui.label",
            "serve pairs to raters; export, verify and count their judgments",
            "labeling_ui.label:LabelConfig",
        ),
        Command(
            "raters",
            "labeling_ui.raters",
            "who may rate: add, disable, reset, list",
            "labeling_ui.raters:RatersArguments",
        ),
        Command(
            "reward",
            "reward.train",
            "a reward model from preferences; report on one",
            "reward.configuration:RewardConfig",
            **_TRAINS,
        ),
        Command(
            "dpo",
            "preference.dpo",
            "direct preference optimisation",
            "preference.configuration:DPOConfig",
            **_TRAINS,
        ),
        Command(
            "ppo",
            "preference.ppo",
            "proximal policy optimisation against a reward model",
            "preference.configuration:PPOConfig",
            **_TRAINS,
        ),
        Command(
            "evaluate",
            "evaluation.evaluate",
            "policies on held-out prompts",
            "evaluation.configuration:EvaluateConfig",
            heavy=True,
        ),
        Command(
            "compare",
            "evaluation.compare",
            "one report over the whole recipe: report.html, report.json",
            "evaluation.configuration:CompareConfig",
        ),
        Command("inspect", "tiebreak.inspect", "what is in a run folder, and what it was made from"),
    )
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("--help", "-h", "help"):
        print(help_page())
        return
    if words[0] in ("--version", "-V"):
        print(__version__)
        return
    exit_with_message(lambda: _dispatch(words))


def _dispatch(words: list[str]) -> None:
    command = COMMANDS.get(words[0])
    if command is None:
        import difflib

        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        raise ConfigError(
            f"no such command: {words[0]}"
            + (f"; did you mean {near[0]}?" if near else "")
            + " ('tiebreak --help' lists them)"
        )
    rest = words[1:]
    if "--accelerate" in rest:
        from tiebreak.launch import exec_accelerate

        exec_accelerate(command, rest)
    from tiebreak.launch import quiet_upstream, settle_process, while_importing

    if command.heavy:
        settle_process()  # both before torch is imported
        quiet_upstream()
    with while_importing():
        module = importlib.import_module(command.module)
    module.main(rest)


def help_page() -> str:
    """What `tiebreak --help` prints."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS.values()]
    return "\n".join(
        [
            "usage: tiebreak COMMAND --config FILE [--key value …] [--accelerate NAME]",
            "",
            "From raw prompts to an aligned language model, through the judgments of expert raters.",
            "",
            *lines,
            "",
            "Every key of a configuration is a flag: 'tiebreak COMMAND --help' lists them.",
            "--accelerate NAME starts a training stage through 'accelerate launch' with configs/accelerate/NAME.yaml.",
            "Start here: tiebreak run --config configs/quickstart/pipeline.yaml",
        ]
    )


if __name__ == "__main__":
    main()

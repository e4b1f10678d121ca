"""What a stage or a recipe needs, before it runs: memory by kind, steps, time, cost, and what fits if this does not.

tiebreak plan --config configs/quickstart/dpo.yaml --gpu l40s
tiebreak plan --config configs/quickstart/pipeline.yaml --gpu h100 --num-gpus 8 --accelerate zero2 --price 2.5/h
tiebreak plan --config dpo.yaml --model config.json --gpu 4090        # another model's shape, without its weights
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from tiebreak.command.help import print_help, wants_help
from tiebreak.command.launch import accelerate_file
from tiebreak.command.pipeline import PipelineConfig, StageEntry, config_class, stage_words
from tiebreak.config import Section, StageConfig, load_config, read_yaml, take_config_flag
from tiebreak.config.flags import group_flags
from tiebreak.errors import ConfigError
from tiebreak.plan.devices import find_device
from tiebreak.plan.hardware import Hardware, spread_by
from tiebreak.plan.locate import PlannedModel, locate_shape
from tiebreak.plan.page import NEVER_ON_A_GPU, lines_of, table_of
from tiebreak.plan.planner import StagePlan, plan_stage
from tiebreak.plan.scorers import folder_of
from tiebreak.plan.work import SHARE_OF_PEAK
from tiebreak.process.ending import exit_with_message
from tiebreak.stages import STAGES
from tiebreak.terminal import show


class PlanArguments(Section):
    """`tiebreak plan`"""

    stage: str | None = None
    """the file's stage; null: from its first line (# tiebreak STAGE --config …) or its keys"""
    accelerate: str | None = None
    """how to distribute training over devices: a file of configs/accelerate, or a path; null: as in the recipe, else
    one device, or DDP on several"""
    gpu: str = "cpu"
    """device: h100, h200, a100-80, l40s, 4090, or cpu (this machine's)"""
    num_gpus: int | None = Field(default=None, ge=1)
    """number of devices on all machines together; null: as in the accelerate file, else 1"""
    price: str | None = None
    """dollars per device and hour, such as 2.5/h"""
    model: str | None = None
    """plan with another model's shape: a folder, a hub id or a config.json; null: the policy of the file"""
    share: float = Field(default=SHARE_OF_PEAK, gt=0.0, le=1.0)
    """share of the device's peak FLOP/s that training reaches"""
    rows: int | None = Field(default=None, ge=1)
    """number of rows; null: counted if the data is JSON Lines or a finished run, else 10,000"""
    row_tokens: float | None = Field(default=None, gt=0.0)
    """mean tokens per row; null: estimated from characters if the data is JSON Lines or a finished run, else the
    longest allowed"""

    @field_validator("price")
    @classmethod
    def _an_hour(cls, price: str | None) -> str | None:
        if price is not None and not re.fullmatch(r"\d+(\.\d+)?(/h)?", price):
            raise ValueError("must be dollars an hour, such as 2.5/h")
        return price

    @property
    def dollars(self) -> float | None:
        """The price as a number."""
        return None if self.price is None else float(self.price.removesuffix("/h"))


def plan(file: Path, arguments: PlanArguments, overrides: Sequence[str] = ()) -> None:
    """Print the plan of a stage, or of every training stage of a recipe.

    Args:
        file: the stage's, or the recipe's.
        overrides: flags of the stage, or of `tiebreak run`.
    """
    values = read_yaml(file)
    words = ["--config", str(file), *overrides]
    plans = list(_of_recipe(words, arguments) if "stages" in values else [_of_stage(file, values, words, arguments)])
    if not plans:
        raise ConfigError(f"{file}: no stage of this recipe trains")
    if len(plans) > 1:
        show(*table_of(plans), "")
    for one in plans:
        if len(plans) == 1 or not one.fits:
            show(*lines_of(one), "")
    share = f"Times assume {arguments.share:.0%} of the device's peak rate, and sampling limited by memory bandwidth."
    show(f"{share} {NEVER_ON_A_GPU}")


def _of_stage(file: Path, values: dict[str, Any], words: list[str], arguments: PlanArguments) -> StagePlan:
    stage = arguments.stage or stage_of(file, values)
    if stage not in STAGES or not STAGES[stage].trains:
        raise ConfigError(f"{file}: '{stage}' trains nothing: plan {', '.join(s for s in STAGES if STAGES[s].trains)}")
    config = load_config(config_class(stage), words, stage)
    return _planned(stage, config, arguments, arguments.accelerate, arguments.num_gpus)


def _of_recipe(words: list[str], arguments: PlanArguments) -> Iterator[StagePlan]:
    """Its stages in order: a model that an earlier one will write has that one's base model and adapter."""
    recipe = load_config(PipelineConfig, words, "run")
    made: dict[str, PlannedModel] = {}
    for entry in recipe.stages:
        if entry.stage not in STAGES or not STAGES[entry.stage].trains:
            continue
        config: Any = load_config(config_class(entry.stage), stage_words(entry, recipe), entry.stage)
        one = _planned(entry.stage, config, arguments, *_spread_of(entry, arguments), made=made)
        made[folder_of(config.output)] = one.written
        yield one


def _spread_of(entry: StageEntry, arguments: PlanArguments) -> tuple[str | None, int | None]:
    return arguments.accelerate or entry.accelerate, arguments.num_gpus or entry.num_processes


def _planned(
    stage: str,
    config: StageConfig,
    arguments: PlanArguments,
    accelerate: str | None,
    count: int | None,
    made: Mapping[str, PlannedModel] | None = None,
) -> StagePlan:
    made = made or {}
    model = made.get(folder_of(str(getattr(config, "policy", ""))))
    return plan_stage(
        stage,
        config,
        hardware_of(arguments.gpu, accelerate, count),
        shape=locate_shape(arguments.model) if arguments.model else None,
        model=model,
        made=made,
        price=arguments.dollars,
        share=arguments.share,
        row_count=arguments.rows,
        row_tokens=arguments.row_tokens,
    )


def hardware_of(gpu: str, accelerate: str | None, count: int | None) -> Hardware:
    """Devices by name, spread by an accelerate file of configs/accelerate; this machine need not have them."""
    device = find_device(gpu)
    file = accelerate_file(accelerate, present=False) if accelerate else None
    return spread_by(device, file, count, accelerate or "")


def stage_of(file: Path, values: dict[str, Any]) -> str:
    """The stage of a file: named in its first line, else the one that has all of its keys.

    Raises:
        ConfigError: several have, or none.
    """
    from tiebreak.shipped import find_shipped

    lines = find_shipped(file).read_text(encoding="utf-8").splitlines()
    named = re.match(r"# tiebreak (\w+) --config", lines[0]) if lines else None
    if named and named[1] in STAGES:
        return named[1]
    able = [
        name for name, stage in STAGES.items() if stage.trains and set(values) <= set(config_class(name).model_fields)
    ]
    needed = [name for name in able if all(key in values for key in STAGES[name].inputs if _is_required(name, key))]
    if len(needed) != 1:
        raise ConfigError(f"{file}: which stage is it of? Give --stage {', '.join(needed or able or STAGES)}")
    return needed[0]


def _is_required(stage: str, key: str) -> bool:
    field = config_class(stage).model_fields.get(key)
    return field is not None and field.is_required()


def _apart(flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the plan's own flags, those of the planned stage or recipe)."""
    own: list[str] = []
    others: list[str] = []
    for flag, values in group_flags(list(flags)):
        mine = flag.replace("-", "_") in PlanArguments.model_fields
        (own if mine else others).extend([f"--{flag}", *values])
    return own, others


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak plan`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if wants_help(words):
        exit_with_message(lambda: print_help(["plan", *words]))
        return

    def run() -> None:
        file, flags = take_config_flag(words, "plan")
        if file is None:
            raise ConfigError("tiebreak plan needs --config FILE, a stage's or a recipe's")
        own, others = _apart(flags)
        plan(file, load_config(PlanArguments, own, "plan"), others)

    exit_with_message(run)


if __name__ == "__main__":
    main()

"""The preflight: one page of what is checked before a stage loads its model.

    preflight
      ok    rows       48 to train on, 6 held out
      ok    steps      2 processes × 8 rows × 1: 16 a step, 3 an epoch
      warn  memory     it needs about 21.0 GiB at its peak (training), and 15.8 GiB are free; what fits: …
      ok    disk       checkpoints and the saved model take 240 MiB, and 96.0 GiB are free
      ok    versions   torch 2.13.0, transformers 5.23.0, …

`--preflight-only` ends there: status 0, or that of the error. What would train wrongly, or is certain to fail, is an error;
what may fail is a warning.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from tiebreak.config import AdapterConfig, OptimizerConfig, StageConfig
from tiebreak.errors import DataError, MachineError, TiebreakError, counted
from tiebreak.models.find import ModelSource
from tiebreak.models.load import adapter_of
from tiebreak.plan.available import available_memory, free_memory, this_hardware
from tiebreak.plan.devices import machine_memory
from tiebreak.plan.locate import PlannedModel, language_of
from tiebreak.plan.page import gib, warning
from tiebreak.plan.planner import StagePlan, plan_stage
from tiebreak.plan.shape import read_shape
from tiebreak.runs.placement import Placement, of_process
from tiebreak.runs.run import Run
from tiebreak.terminal import say

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "bitsandbytes")
CHECKPOINTS_AT_ONCE = 3
"""two are kept, and the newest is complete before the oldest is deleted"""
BYTES_PER_TRAINED = 12
"""of a checkpoint: a float32 weight, and AdamW's two moments"""
BESIDE_WEIGHTS = 16 * 2**20
"""bytes of a saved model's tokenizer, of states and logs"""


@dataclass(frozen=True)
class Check:
    """One line of the page."""

    name: str
    text: str
    state: Literal["ok", "warn"] = "ok"

    def __str__(self) -> str:
        return f"  {self.state:<5} {self.name:<10} {self.text}"


def show_page(config: Any, run: Run, source: ModelSource, counts: tuple[int, int], row_tokens: float) -> None:
    """Print the page.

    Args:
        counts: rows to train on, and rows held out.
        row_tokens: mean tokens of a row.

    Raises:
        DataError: there are fewer rows than processes.
        MachineError: the weights alone exceed the device, or the disk cannot hold a checkpoint.
    """
    placement = of_process()
    checks = [
        rows_check(*counts),
        steps_check(config, counts[0], placement),
    ]
    plan = _plan(config, run, source, counts[0], row_tokens)
    if isinstance(plan, str):
        checks.append(Check("memory", f"not planned: {plan}", "warn"))
        trained = 0
    else:
        checks += list(memory_checks(plan, free_memory()))
        trained = plan.trained
    checks.append(disk_check(run.folder, trained))
    if placement.processes > 1:
        checks.append(
            Check("port", f"{os.environ.get('MASTER_ADDR', 'localhost')}:{os.environ.get('MASTER_PORT', '?')}")
        )
    checks.append(Check("versions", ", ".join(versions())))
    say("preflight", *map(str, checks), "")


def rows_check(train: int, held_out: int) -> Check:
    """Rows to train on and held out."""
    return Check("rows", f"{train:,} to train on, {held_out:,} held out")


def steps_check(config: Any, rows: int, placement: Placement) -> Check:
    """World size × batch × accumulation against the rows.

    Raises:
        DataError: there are fewer than processes.
    """
    training: OptimizerConfig = config.training
    size, parts, world = training.per_device_batch_size, training.gradient_accumulation_steps, placement.processes
    batch = size * parts * world
    factors = f"{placement} × {size} × {parts} = {batch:,} a step"
    if hasattr(config, "episodes_per_rollout"):
        updates = config.ppo_epochs * (config.episodes_per_rollout // batch)
        episodes = f"{config.episodes_per_rollout:,} episodes"
        return Check("steps", f"{factors}: {episodes} a rollout make {counted(updates, 'step')}")
    if rows < world:
        raise DataError(
            f"{counted(rows, 'row')} to train on for {placement}: give each process at least one, or start fewer "
            "processes (--num_processes)"
        )
    left_out = rows % world
    steps = math.ceil((rows - left_out) / batch)
    rest = rows - left_out - (steps - 1) * batch
    last = "" if rest == batch else f", the last of them of {counted(rest, 'row')}"
    dropped = f"{counted(left_out, 'row')} of each epoch left out, so that all processes have as many"
    text = f"{factors}: {counted(steps, 'step')} an epoch{last}; {dropped if left_out else 'no row is dropped'}"
    return Check("steps", text, "warn" if rows < batch else "ok")


def memory_checks(plan: StagePlan, free: int) -> Iterator[Check]:
    """The plan's memory against the device's.

    Raises:
        MachineError: the weights alone exceed it.
    """
    needed = gib(plan.memory.total)
    if plan.certain_not_to_fit:
        fits = f"; what fits: {plan.nearest[0]}" if plan.nearest else ""
        raise MachineError(
            f"{plan.setting.shape.name} does not fit: its weights alone take {gib(plan.memory.loaded)}, and "
            f"{plan.setting.hardware.device.title} has {gib(plan.available)}{fits} ('tiebreak plan' has the whole account)"
        )
    if plan.memory.total > free:
        yield Check("memory", warning(plan, free), "warn")
    else:
        yield Check("memory", f"about {needed} at its peak ({plan.phase}), and {gib(free)} are free")
    if plan.host > min(available_memory(), machine_memory()):
        yield Check("host", f"loading takes {gib(plan.host)} of this machine's own memory, and {gib(available_memory())} "
                    "are free", "warn")  # fmt: skip


def disk_check(folder: Path, trained: int) -> Check:
    """Room for the checkpoints that are kept at once, and for the saved model.

    Raises:
        MachineError: there is none for one checkpoint.
    """
    there = next(each for each in (folder, *folder.resolve().parents) if each.exists())  # process 0 makes the others
    free = shutil.disk_usage(there).free
    one = trained * BYTES_PER_TRAINED + BESIDE_WEIGHTS
    needed = CHECKPOINTS_AT_ONCE * one + trained * 4 + BESIDE_WEIGHTS
    if one > free:
        raise MachineError(
            f"{folder}: a checkpoint takes {gib(one)}, and {gib(free)} are free on its disk: free some space, or give "
            "another --output"
        )
    text = f"checkpoints and the saved model take {gib(needed)}, and {gib(free)} are free"
    return Check("disk", text, "warn" if needed > free else "ok")


def versions() -> Iterator[str]:
    """The packages that compute, as installed."""
    for package in PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            continue


def _plan(config: Any, run: Run, source: ModelSource, rows: int, row_tokens: float) -> StagePlan | str:
    """The stage's plan, or why there is none: it only informs, so nothing that it cannot count stops a training."""
    if not isinstance(config, StageConfig):
        return "this stage has no plan"
    adapter: AdapterConfig = adapter_of(source, getattr(config, "adapter", None))
    try:
        shape = read_shape(source.base_path, source.name)
        return plan_stage(
            run.stage,
            config,
            this_hardware(),
            model=PlannedModel(shape, adapter, source.base, source.base_sha256, language_of(source.pinned)),
            adapter=adapter,
            row_count=rows,
            row_tokens=row_tokens,
        )
    except Exception as error:  # noqa: BLE001
        reason = next(iter(str(error).splitlines()), "")
        return reason if isinstance(error, TiebreakError) else f"{type(error).__name__}: {reason}"

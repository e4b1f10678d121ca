"""The tables of docs/scaling.md, from the planner:  python -m tiebreak.plan.tables

Each stage is planned as its defaults are, with the named changes; so are the model shapes of configs/shapes, which are
public models' own config.json, without weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tiebreak.config import AdapterConfig, SamplingConfig, TrainingConfig
from tiebreak.plan.devices import find_device
from tiebreak.plan.hardware import SHARDED_LOAD, Hardware
from tiebreak.plan.page import duration_of, gib, short
from tiebreak.plan.planner import StagePlan, plan_stage
from tiebreak.plan.shape import Shape, read_shape
from tiebreak.shipped import find_shipped

PAGE = Path("docs/scaling.md")
MEASURED = Path("benchmarks/plan.json")
SHAPES = ("llama-3.2-1b", "mistral-7b", "llama-3.1-8b", "qwen2.5-32b", "llama-3.1-70b")
STAGES = ("sft", "reward", "dpo", "ppo")
SPREADS = ((1, "single_gpu"), (8, "zero2"), (8, SHARDED_LOAD), (64, SHARDED_LOAD))
ROWS, ROW_TOKENS = 50_000, 1024.0
EPISODES, ROLLOUTS, ANSWER = 512, 100, 256


def shape_named(name: str) -> Shape:
    """A shape of configs/shapes."""
    return read_shape(find_shipped(Path("configs/shapes") / f"{name}.json"), name)


def settings(stage: str, *, quantize: str = "none", checkpointing: bool = True, tokens: int | None = None) -> Any:
    """A stage's configuration as far as the planner reads it."""
    training = TrainingConfig(
        max_length_tokens=2048,
        per_device_batch_size=8,
        gradient_checkpointing=checkpointing,
        tokens_per_pass=tokens,
    )
    return SimpleNamespace(
        policy="",
        adapter=AdapterConfig(quantize=quantize),  # type: ignore[arg-type]
        training=training,
        guard=None,
        demonstrations="",
        preferences="",
        prompts="",
        episodes_per_rollout=EPISODES,
        rollouts=ROLLOUTS,
        ppo_epochs=4,
        sampling=SamplingConfig(max_new_tokens=ANSWER),
        vllm=None,
        all_rewards=[SimpleNamespace(model="reward")] if stage == "ppo" else [],
    )


def planned(stage: str, shape: Shape, hardware: Hardware, **changes: Any) -> StagePlan:
    """A plan of a table."""
    return plan_stage(
        stage,
        settings(stage, **changes),
        hardware,
        shape=shape,
        row_count=ROWS,
        row_tokens=ROW_TOKENS,
        price=1.0,
        with_nearest=False,
    )


def sizes() -> Iterator[str]:
    """Memory per device of each stage, by model and spread."""
    yield "| model | GPUs (H100) | " + " | ".join(stage.upper() for stage in STAGES) + " | each host |"
    yield "|---|---|" + "---|" * (len(STAGES) + 1)
    for name in SHAPES:
        shape = shape_named(name)
        for count, spread in SPREADS:
            plans = [planned(stage, shape, _hardware(stage, count, spread)) for stage in STAGES]
            yield (
                f"| {name} ({short(shape.parameters)}) | {count}, `{spread}` | "
                + " | ".join(_cell(plan) for plan in plans)
                + f" | {gib(plans[0].host)} |"
            )


def _hardware(stage: str, count: int, spread: str) -> Hardware:
    """H100s; PPO cannot load in shards."""
    return Hardware(find_device("h100"), count).spread("zero3" if stage == "ppo" and spread == SHARDED_LOAD else spread)


def _cell(plan: StagePlan) -> str:
    return f"{gib(plan.memory.total)}" if plan.fits else f"**{gib(plan.memory.total)}**"


def times() -> Iterator[str]:
    """Hours of a pass over the data."""
    yield "| model | GPUs (H100) | " + " | ".join(stage.upper() for stage in STAGES) + " |"
    yield "|---|---|" + "---|" * len(STAGES)
    for name in SHAPES:
        for count, spread in ((1, "single_gpu"), (8, "zero2"), (64, SHARDED_LOAD)):
            plans = [planned(stage, shape_named(name), _hardware(stage, count, spread)) for stage in STAGES]
            yield (
                f"| {name} | {count} | "
                + " | ".join(duration_of(plan.hours) if plan.fits else "–" for plan in plans)
                + " |"
            )


def consumer() -> Iterator[str]:
    """The 7B recipe under QLoRA on one consumer GPU with 24 GB."""
    yield "| stage | weights | activations | logits | KV cache | total | largest pass | time |"
    yield "|---|---|---|---|---|---|---|---|"
    for stage in STAGES:
        plan = consumer_plan(stage)
        kinds = plan.memory
        cells = [
            gib(size) if size else "–" for size in (kinds.weights, kinds.activations, kinds.logits, kinds.kv_cache)
        ]
        yield (f"| {stage} | {' | '.join(cells)} | {_cell(plan)} | {plan.largest_pass:,} | {duration_of(plan.hours)} |")


def consumer_plan(stage: str) -> StagePlan:
    """With 32 episodes a rollout."""
    config = settings(stage, quantize="nf4")
    config.episodes_per_rollout = 32
    return plan_stage(
        stage,
        config,
        Hardware(find_device("4090")),
        shape=shape_named("mistral-7b"),
        row_count=ROWS,
        row_tokens=ROW_TOKENS,
        with_nearest=False,
    )


def measured() -> Iterator[str]:
    """benchmarks/plan.json."""
    yield "| model | stage | measured | planned | difference |"
    yield "|---|---|---|---|---|"
    for one in json.loads(MEASURED.read_text()):
        off = one["planned"] / one["measured"] - 1
        yield (
            f"| {one['model']} | {one['stage']} | {one['measured'] / 2**20:,.0f} MiB | "
            f"{one['planned'] / 2**20:,.0f} MiB | {off:+.0%} |"
        )


TABLES = {"sizes": sizes, "times": times, "consumer": consumer, "measured": measured}


def filled(text: str) -> str:
    """The page with its tables made again: each between `<!-- NAME -->` and `<!-- end -->`."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n" + "\n".join(TABLES[found[2]]()) + "\n<!-- end -->"

    return re.sub(r"(<!-- (\w+) -->)\n.*?<!-- end -->", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

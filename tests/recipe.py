"""A tiny recipe that stages' tests share: one run of each stage, on a random two-layer model, made once a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support import TINY_TRAINING, write_config

SHORT = {"temperature": 1.0, "max_new_tokens": 8}


def stage_configs(folder: Path, model: Path, data: Path) -> dict[str, dict[str, Any]]:
    """The configuration of each stage that trains, by its name. Outputs are `folder`/stage."""
    training = {**TINY_TRAINING, "max_steps": 3}
    adapter = {"r": 4, "alpha": 8}
    return {
        "sft": {
            "output": folder / "sft",
            "policy": model,
            "demonstrations": data / "demonstrations.jsonl",
            "adapter": adapter,
            "validation_share": 0.25,
            "training": training,
            "sampling": SHORT,
        },
        "reward": {
            "output": folder / "reward",
            "policy": folder / "sft",
            "preferences": data / "preferences.jsonl",
            "training": training,
        },
        "dpo": {
            "output": folder / "dpo",
            "policy": folder / "sft",
            "preferences": data / "preferences.jsonl",
            "training": training,
            "sampling": SHORT,
        },
        "ppo": {
            "output": folder / "ppo",
            "policy": folder / "sft",
            "reward_model": folder / "reward",
            "prompts": data / "prompts.jsonl",
            "training": {**training, "max_steps": None},
            "episodes_per_rollout": 4,
            "rollouts": 3,
            "ppo_epochs": 1,
            "max_validation_prompts": 4,
            "stop_when_all_cut_off": False,  # a random model ends none of its answers
            "sampling": SHORT,
        },
    }


def write_stage_configs(folder: Path, model: Path, data: Path) -> dict[str, Path]:
    """The same, as files."""
    configs = stage_configs(folder, model, data)
    return {stage: write_config(folder / "configs" / f"{stage}.yaml", **values) for stage, values in configs.items()}

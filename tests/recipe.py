"""The whole recipe on a random two-layer model: run once a session, in processes as users start them, for all to read."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml
from support import REPOSITORY, run_here, succeed, write_config

STAGES = ("prepare", "sft", "sample", "label", "reward", "dpo", "ppo", "evaluate", "compare")


def write_recipe(folder: Path, model: Path) -> Path:
    """What `tiebreak init` makes of prompts with answers, its stages cut short; returns the recipe's file.

    Outputs are `folder`/runs/STAGE.
    """
    data = REPOSITORY / "data" / "hydroponics" / "demonstrations.jsonl"
    status, message = run_here("init", folder / "init", "--data", data, "--raters", "simulated", "--policy", model)
    assert status == 0, message
    training = {
        "training.max_steps": 3,
        "training.per_device_batch_size": 2,
        "training.save_steps": 1,
        "training.learning_rate": 1e-3,
    }
    short = {"sampling.max_new_tokens": 8}
    overrides = {
        "sft": {"adapter.r": 4, "adapter.alpha": 8, "merge": True, **training, **short},
        "sample": {"max_prompts": 16, "batch_size": 8, "sampling": [{"temperature": 1.0, "max_new_tokens": 8}]},
        # a random model's answers are all alike to the rubric: raters who err nearly always tell them apart
        "label": {"simulate.error_rate": 0.9, "overlap": 1, "simulate.raters": 1},
        "reward": training,
        "dpo": {**training, **short},
        "ppo": {
            **{key: value for key, value in training.items() if key != "training.max_steps"},
            **short,
            "episodes_per_rollout": 4,
            "rollouts": 3,
            "ppo_epochs": 1,
            "max_validation_prompts": 2,
            "stop_when_all_cut_off": False,
        },
        "evaluate": {"max_prompts": 4, "batch_size": 2, **short},
    }
    made = yaml.safe_load((folder / "init" / "pipeline.yaml").read_text())
    assert tuple(entry["stage"] for entry in made["stages"]) == STAGES
    stages = [entry | {"overrides": overrides.get(entry["stage"], {})} for entry in made["stages"]]
    return write_config(folder / "pipeline.yaml", **made | {"name": "tiny", "root": folder / "runs", "stages": stages})


def run_recipe(folder: Path, model: Path) -> None:
    """Write and run it, with W&B offline."""
    recipe = write_recipe(folder, model)
    succeed("run", "--config", recipe, environment={"WANDB_MODE": "offline"}, timeout=1700)


def without_training_packages(start: Callable[..., subprocess.CompletedProcess[str]], runs: Path, folder: Path) -> None:
    """Label a recipe's pairs, export the judgments, and compare its policies.

    Args:
        start: runs `tiebreak …`.
        runs: the recipe's run folders.
        folder: where everything is written.
    """
    store = f"sqlite:///{folder}/label/store/labels.sqlite"
    untracked = ["--tracking.mode", "disabled"]
    for words in (
        ["label", "--pairs", runs / "sample", "--output", folder / "label", "--simulate.enabled", "true", *untracked],
        ["label", "status", "--store", store],
        ["label", "export", "--store", store, "--output", folder / "export"],
        ["compare", "--evaluation", runs / "evaluate", "--output", folder / "compare", *untracked],
    ):
        result = start(*words)
        assert result.returncode == 0, f"{words}: {result.stderr}"
    assert (folder / "export" / "final" / "preferences.jsonl").stat().st_size
    assert (folder / "compare" / "report.html").is_file()

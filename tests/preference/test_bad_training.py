"""Training that cannot go well, through the command line: a cause, a next step, and the checkpoints there were, kept."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from polite_rewards import FailsLater, raises
from safetensors.torch import save_file
from small_world import World, write_preferences
from support import end_process, read_rows, run_here, write_config, write_rows

from preference.policy.backbone import VALUE_HEAD_FILE
from tiebreak.config import StageConfig, TrackingConfig
from tiebreak.runs.run import start_run

TRAINING = {
    "learning_rate": 3e-2,
    "warmup_share": 0.0,
    "per_device_batch_size": 8,
    "max_length_tokens": 32,
    "save_steps": 1,
    "precision": "float32",
}


@dataclass(frozen=True)
class Fault:
    """What is changed in a PPO run that would end well, and what its message must say."""

    parts: tuple[str, ...]
    changed: dict[str, Any] = field(default_factory=dict)
    at_once: bool = False
    """before any checkpoint"""


def rewarded_by(name: str) -> dict[str, Any]:
    return {"rewards": [{"function": f"polite_rewards:{name}"}]}


FAULTS: Mapping[str, Fault] = {
    "a function that raises": Fault(
        ("polite_rewards:raises_later raised KeyError: 'no such shelf'", "polite_rewards.py, line", "checkpoint"),
        rewarded_by("raises_later"),
    ),
    "a function that raises at once": Fault(
        ("polite_rewards:raises raised KeyError: 'no such shelf'", "polite_rewards.py, line"),
        rewarded_by("raises"),
        at_once=True,
    ),
    "too few scores": Fault(
        ("polite_rewards:too_few_later returned 7 scores for 8 completions", "must return one for each"),
        rewarded_by("too_few_later"),
    ),
    "words for scores": Fault(
        ("polite_rewards:words returned list", "a number for each completion"), rewarded_by("words"), at_once=True
    ),
    "scores that are not numbers": Fault(
        ("polite_rewards:not_numbers_later gave 1 of 8 completions a score that is not a finite number", "kept"),
        rewarded_by("not_numbers_later"),
    ),
    "completions that are all cut off": Fault(
        (
            "all 8 completions of a rollout were cut off at sampling.max_new_tokens (1)",
            "Raise it, or train",
            "nothing was",
        ),
        {"sampling": {"temperature": 1.0, "max_new_tokens": 1}, "training": {**TRAINING, "seed": 3}},
        at_once=True,
    ),
    "a policy that collapses": Fault(
        (
            "an end-of-sequence token and nothing else: the policy has collapsed",
            "Lower training.learning_rate",
            "are kept",
        ),
        {**rewarded_by("indifferent"), "length_penalty": 2.0, "rollouts": 60, "stop_when_all_cut_off": False},
    ),
    "weights that are not numbers": Fault(
        ("after step 1 the policy's probabilities are not finite numbers", "lower training.learning_rate", "are kept"),
        {"training": {**TRAINING, "learning_rate": 1e30}, "stop_when_all_cut_off": False},
    ),
}


def ppo_config(folder: Path, world: World, **changed: Any) -> Path:
    values = {
        **world.ppo,
        "output": folder / "ppo",
        "adapter": {"r": 4, "alpha": 8},
        "training": TRAINING,
        "max_validation_prompts": 0,
        "episodes_per_rollout": 8,
        "rollouts": 8,
        "ppo_epochs": 1,
        "kl_coef": 0.0,
        "sampling": {"temperature": 1.0, "max_new_tokens": 6},
    }
    return write_config(folder / "ppo.yaml", **values | changed)


def assert_reported(result: tuple[int, str], *parts: str) -> None:
    status, stderr = result
    message = stderr.rpartition("error: ")[2]
    assert status == 1, stderr
    assert "Traceback" not in stderr
    for part in parts:
        assert part in message


def complete_checkpoints(output: Path) -> list[Path]:
    return [marker.parent for marker in output.glob("checkpoints/checkpoint-*/COMPLETE")]


@pytest.mark.parametrize("name", FAULTS)
def test_what_stops_ppo(name: str, world: World, tmp_path: Path) -> None:
    fault = FAULTS[name]
    assert_reported(run_here("ppo", "--config", ppo_config(tmp_path, world, **fault.changed)), *fault.parts)
    assert not (tmp_path / "ppo" / "manifest.json").exists()
    kept = complete_checkpoints(tmp_path / "ppo")
    assert bool(kept) != fault.at_once
    assert all((checkpoint / "model.safetensors").is_file() for checkpoint in kept)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_an_adapter_on_the_head_would_stay_as_it_is(algorithm: str, world: World, tmp_path: Path) -> None:
    adapter = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "lm_head"]}
    status, stderr = run_here("ppo", "--config", ppo_config(tmp_path, world, adapter=adapter, algorithm=algorithm))
    assert status == 2
    assert "'lm_head' names lm_head, the language-model head" in stderr
    assert not complete_checkpoints(tmp_path / "ppo")


@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
def test_more_tokens_than_positions(algorithm: str, world: World, tmp_path: Path) -> None:
    """The policy has 64 positions."""
    changed = {
        "sampling": {"temperature": 1.0, "max_new_tokens": 64},
        "training": {**TRAINING, "max_length_tokens": 128},
    }
    status, stderr = run_here("ppo", "--config", ppo_config(tmp_path, world, algorithm=algorithm, **changed))
    assert status == 2
    assert "a prompt and sampling.max_new_tokens take" in stderr
    assert "this model has 64 positions" in stderr


def test_a_critic_of_another_size(world: World, tmp_path: Path) -> None:
    run = start_run(StageConfig(output=str(tmp_path / "other"), tracking=TrackingConfig(mode="disabled")), "ppo", {})
    save_file({"weight": torch.zeros(1, 48), "bias": torch.zeros(1)}, run.final / VALUE_HEAD_FILE)
    run.finish()
    config = ppo_config(tmp_path, world, value_head=tmp_path / "other")
    assert_reported(
        run_here("ppo", "--config", config),
        "value_head.safetensors reads hidden states of size 48, and this policy's have 64",
        "name a PPO run of the same base model, or set value_head: null",
    )
    assert not complete_checkpoints(tmp_path / "ppo")


def test_a_run_of_another_stage_has_no_critic(world: World, tmp_path: Path) -> None:
    config = ppo_config(tmp_path, world, value_head=world.judge)
    assert_reported(
        run_here("ppo", "--config", config), "value_head.safetensors does not exist: name a finished PPO run"
    )


@pytest.mark.parametrize("stage", ["reward", "dpo"])
@pytest.mark.parametrize(("column", "value"), [("margin", -0.5), ("strength", -2), ("margin", float("nan"))])
def test_margins_of_the_wrong_sign(stage: str, column: str, value: float, world: World, tmp_path: Path) -> None:
    rows = read_rows(write_preferences(tmp_path / "right.jsonl"))
    data = write_rows(tmp_path / "wrong.jsonl", [*rows[:2], {**rows[2], column: value}, *rows[3:]])
    words = ("--output", tmp_path / "out", "--policy", world.policy, "--preferences", data)
    parts = (f"{data}:3: {column}: ", "swap chosen and rejected, or fix its sign") if value < 0 else (f"{data}:3",)
    assert_reported(run_here(stage, *words, "--tracking.mode", "disabled"), *parts)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_ties_alone_teach_nothing(stage: str, world: World, tmp_path: Path) -> None:
    rows = [{**row, "strength": 0} for row in read_rows(write_preferences(tmp_path / "right.jsonl"))]
    rows[-1] |= {"strength": 2, "weight": 0}  # the only one that decides counts for nothing
    data = write_rows(tmp_path / "ties.jsonl", rows)
    words = ("--output", tmp_path / "out", "--policy", world.policy, "--preferences", data, "--validation-share", "0")
    message = "every preference is a tie (strength 0, or a confidence of 0.5)"
    assert_reported(run_here(stage, *words, "--tracking.mode", "disabled"), message)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_run_whose_function_failed_for_an_outer_reason_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ppo_config(tmp_path, world, **rewarded_by("indifferent"), stop_when_all_cut_off=False)
    monkeypatch.setattr("polite_rewards.indifferent", FailsLater(raises, good_calls=3))
    assert_reported(run_here("ppo", "--config", config), "the same command resumes from the last checkpoint")
    end_process(tmp_path / "ppo")
    monkeypatch.setattr("polite_rewards.indifferent", FailsLater(raises, good_calls=2))
    status, message = run_here("ppo", "--config", config)
    assert status == 1
    assert f"resuming from {tmp_path / 'ppo' / 'checkpoints' / 'checkpoint-3'}" in message
    assert {path.name for path in complete_checkpoints(tmp_path / "ppo")} == {"checkpoint-4", "checkpoint-5"}


def test_a_changed_function_is_another_run(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an immediate failure, nothing blocks a new start; training from the old data is not continued."""
    file = tmp_path / "house_rewards.py"
    monkeypatch.chdir(tmp_path)
    changed = {"rewards": [{"function": "house_rewards:polite"}], "stop_when_all_cut_off": False}
    config = ppo_config(tmp_path, world, **changed)

    def run_with(*body: str) -> tuple[int, str]:
        file.write_text("\n".join(["calls = []", "def polite(completions, **_):", *(f"    {line}" for line in body)]))
        sys.modules.pop("house_rewards", None)
        result = run_here("ppo", "--config", config)
        end_process(tmp_path / "ppo")
        return result

    try:
        assert_reported(run_with("return None"), "house_rewards:polite returned NoneType", "give another --output if")
        later = run_with("calls.append(0)", "return [0.0] * (len(completions) - len(calls) // 3)")
        assert_reported(later, "house_rewards:polite returned 7 scores for 8 completions")
        before = complete_checkpoints(tmp_path / "ppo")
        assert_reported(run_with("return [0.0] * len(completions)"), "holds another run, and nothing is overwritten")
        assert complete_checkpoints(tmp_path / "ppo") == before != []
    finally:
        sys.modules.pop("house_rewards", None)
        sys.path.remove(str(tmp_path))


@pytest.mark.slow
def test_checkable_instructions_are_a_reward(world: World, tmp_path: Path) -> None:
    """Paid for saying "more" at least once: the share of answers with it is the logged score."""
    file = tmp_path / "instructions.jsonl"
    monitors = [{"yardstick": "length", "every_steps": 1, "prompts": 2}]
    watched = {"monitors": monitors, "validation_share": 0.4, "max_validation_prompts": 4}
    config = ppo_config(tmp_path, world, rewards=[{"instructions": str(file)}], stop_when_all_cut_off=False, **watched)
    file.write_text('{"instruction_id_list": ["keywords:existance"], "kwargs": [{"keywords": ["more"]}]}\n')
    status, message = run_here("ppo", "--config", config)
    assert (status, "no instruction 'keywords:existance'" in message) == (1, True), message
    file.write_text('{"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["more"]}]}\n')
    status, message = run_here("ppo", "--config", config)
    assert status == 0, message
    scores = [
        row["objective/scores"] for row in read_rows(tmp_path / "ppo" / "metrics.jsonl") if "objective/scores" in row
    ]
    assert scores
    assert all((8 * score).is_integer() and 0 <= score <= 1 for score in scores)  # of 8 answers a rollout
    assert sum("monitor/length" in row for row in read_rows(tmp_path / "ppo" / "metrics.jsonl")) > 1

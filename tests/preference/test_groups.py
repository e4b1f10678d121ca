"""RLOO and GRPO on our rollouts: what TRL's trainers learn from is what the configuration says, and resumes bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support import run_of
from test_ppo_trainer import Judge, StopAt
from toy_language import EOS, PROMPTS, KnownReward, build_toy_policy, toy_rewards, toy_tokenizer, with_adapter

from preference.policy.adapters import trainable_names
from preference.policy.rewards import Reward
from preference.ppo.groups import OurGRPOTrainer, OurRLOOTrainer, build_group_trainer
from preference.ppo.train import PPOConfig, build_group_args, ppo_settings
from tiebreak.config import SamplingConfig, TrainingConfig
from tiebreak.errors import HandoffError

ALGORITHMS = ["rloo", "grpo"]


def build(folder: Path, algorithm: str, **settings: Any) -> OurRLOOTrainer | OurGRPOTrainer:
    """Three prompts × 4 completions a rollout, in three optimizer steps."""
    rewards = settings.pop("rewards", [KnownReward(toy_rewards())])
    chosen: dict[str, Any] = {
        "episodes_per_rollout": 12,
        "completions_per_prompt": 4,
        "rollouts": 3,
        "ppo_epochs": 1,
        "kl_coef": 0.1,
        "stop_when_all_cut_off": False,
        "sampling": SamplingConfig(temperature=1.0, max_new_tokens=2),
        "training": TrainingConfig(
            learning_rate=1e-2, per_device_batch_size=4, warmup_share=0.0, precision="float32", save_steps=1
        ),
    }
    config = PPOConfig(
        output=str(folder), algorithm=algorithm, policy="", reward_model="table", prompts="", **chosen | settings
    )
    run = run_of(folder, "ppo", config)
    args = build_group_args(config, run)
    args.logging_steps, args.disable_tqdm = 1, True
    prompts = [list(p) for p in PROMPTS]
    lm = with_adapter(build_toy_policy())
    trainer = build_group_trainer(lm, args, ppo_settings(config, (EOS,)), prompts, prompts, toy_tokenizer())
    trainer.create_model_card = lambda *_, **__: None
    trainer.rewards = rewards
    return trainer


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    names = set(trainable_names(trainer.model))
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if name in names}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, algorithm: str) -> None:
    whole = build(tmp_path / "whole", algorithm)
    start = weights(whole)
    whole.train()
    cut = build(tmp_path / "cut", algorithm)
    cut.add_callback(StopAt(4))
    cut.train()
    resumed = build(tmp_path / "cut", algorithm)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoints" / "checkpoint-3"))
    after = weights(resumed)
    assert all(torch.equal(weight, after[name]) for name, weight in weights(whole).items())
    assert any(not torch.equal(weight, after[name]) for name, weight in start.items())
    assert whole.loop == resumed.loop


def test_advantages_are_worked_from_our_scores(tmp_path: Path) -> None:
    """RLOO, before any update: a completion's shaped score less the mean of its three siblings'."""
    table = KnownReward(toy_rewards(), weight=2.0)
    trainer = build(
        tmp_path, "rloo", rewards=[table], normalise_scores=False, whiten_advantages=False, length_penalty=0.25
    )
    trainer.model.train()
    made = trainer._generate_and_score_completions([{"prompt": str(n)} for n in (0, 1, 2) for _ in range(4)])
    lengths = made["completion_mask"].sum(1).tolist()
    completions = [ids[:n].tolist() for ids, n in zip(made["completion_ids"], lengths, strict=True)]
    prompts = [list(PROMPTS[n]) for n in (0, 1, 2) for _ in range(4)]
    scores = [
        2 * score - 0.25 * len(c) - (c[-1] != EOS)
        for score, c in zip(table.scores(prompts, completions), completions, strict=True)
    ]
    for row, score in enumerate(scores):
        group = scores[row - row % 4 : row - row % 4 + 4]
        assert float(made["advantages"][row]) == pytest.approx(score - (sum(group) - score) / 3, abs=1e-5)
    assert len({float(a) for a in made["advantages"]}) > 4


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_held_out_prompts_and_bad_rewards_as_under_ppo(tmp_path: Path, algorithm: str) -> None:
    trainer = build(tmp_path, algorithm, rollouts=1)
    one = trainer.evaluate()
    assert one["eval_objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert trainer.evaluate() == one
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert "objective/scores" in rows[0]
    assert trainer.evaluate()["eval_objective/kl"] != one["eval_objective/kl"]
    broken: list[Reward] = [Judge(lambda c: float("nan"))]
    with pytest.raises(HandoffError, match="the rule gave 12 of 12 completions a score that is not a finite number"):
        build(tmp_path / "broken", algorithm, rewards=broken).train()


def test_keys_that_say_nothing_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="vf_coef: rloo has no such thing"):
        build(tmp_path, "rloo", vf_coef=0.5)
    with pytest.raises(ValidationError, match="multiple of completions_per_prompt"):
        build(tmp_path, "grpo", completions_per_prompt=5)

"""The guard: which policy is kept and when training stops, by hand and in training runs that over-optimise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from test_ppo_trainer import Judge, StopAt, build_trainer, trained
from torch import Tensor
from toy_language import EOS, PROMPTS, build_toy_policy, toy_preferences, toy_rewards, toy_tokenizer, with_adapter
from transformers import TrainerCallback

from preference.dpo import CheckedDPOTrainer, DPOConfig, EncodedPair, build_dpo_args, to_dataset
from preference.guard import Guard, GuardConfig, GuardedPolicy, Verdict, best_of, over_optimised, reference_name
from preference.ppo.backbone import Backbone
from preference.ppo.train import PPOConfig
from tiebreak.callbacks import RunCallback
from tiebreak.config import SamplingConfig, TrackingConfig, TrainingConfig
from tiebreak.runs import Run
from tiebreak.tracking import RunRecorder


def verdicts(scores: list[float], training: list[float | None]) -> list[Verdict]:
    return [Verdict(10 * n, s, float(n), t) for n, (s, t) in enumerate(zip(scores, training, strict=True))]


@pytest.mark.parametrize(
    ("scores", "training", "stops"),
    [
        ([1, 2, 1.5, 1], [0, 1, 2, 3], True),  # fell twice while the training's rose
        ([1, 2, 1.5, 1], [0, 3, 2, 1], False),  # both fell: that is no over-optimisation
        ([1, 2, 1.5, 1.6], [0, 1, 2, 3], False),  # rose again
        ([1, 2, 2, 1], [0, 1, 2, 3], False),  # stood still, then fell once
        ([2, 1.5, 1], [None, 1, 2], True),  # nothing had been logged before training
        ([2, 1], [0, 1], False),  # too early
    ],
)
def test_when_to_stop_at_a_patience_of_two(scores: list[float], training: list[float | None], stops: bool) -> None:
    assert over_optimised(verdicts(scores, training), patience=2) is stops


def test_the_best_is_kept_and_of_equals_the_earlier() -> None:
    assert best_of(verdicts([1, 3, 2, 3], [0, 0, 0, 0])).step == 10


class Snapshots(TrainerCallback):  # type: ignore[misc]
    """What trains, after each step."""

    def __init__(self, weights: Any) -> None:
        self.weights = weights
        self.at: dict[int, dict[str, Tensor]] = {0: weights()}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.at[state.global_step] = self.weights()


def guarded(folder: Path, trainer: Any, lm: Any, rule: Any, key: str, config: Any, every: int, patience: int) -> Guard:
    run = Run(folder=folder, stage="ppo", config=config, inputs={}, fingerprint="")
    recorder = RunRecorder(run)
    policy = GuardedPolicy(
        Backbone(lm, 0, reference_name(lm)),
        Judge(rule, name="held out"),
        [list(p) for p in PROMPTS] * 8,
        SamplingConfig(temperature=1.0, max_new_tokens=2),
        EOS,
        seed=0,
    )
    guard = Guard(
        GuardConfig(reward_model="held out", eval_every_steps=every, patience=patience), policy, run, recorder, key
    )
    guard.watch(trainer)
    trainer.add_callback(RunCallback(recorder))
    return guard


def turns_against_endings(completion: list[int]) -> float:
    """People like one token, 3, and dislike what the training rewards."""
    return float(completion[0] == 3) - float(completion[-1] != EOS)


def ppo_run(folder: Path, patience: int = 2) -> tuple[Any, Guard, Snapshots]:
    """Rewarded for not ending, which the held-out judge dislikes: its score falls from the start."""
    trainer = build_trainer(
        folder,
        rewards=[Judge(lambda c: float(c[-1] != EOS))],
        rollouts=12,
        missing_eos_penalty=0.0,
        kl_coef=0.0,
        stop_when_all_cut_off=False,
        training={"learning_rate": 2e-2},
    )
    snapshots = Snapshots(lambda: trained(trainer))
    trainer.add_callback(snapshots)
    config = PPOConfig(
        output=str(folder), policy="", reward_model="x", prompts="", tracking=TrackingConfig(mode="disabled")
    )
    return (
        trainer,
        guarded(folder, trainer, trainer.backbone.lm, turns_against_endings, "objective/scores", config, 6, patience),
        snapshots,
    )


def test_a_guarded_run_resumes_to_the_same_verdicts(tmp_path: Path) -> None:
    whole, whole_guard, _ = ppo_run(tmp_path / "whole", patience=99)
    whole.train()
    cut, _, _ = ppo_run(tmp_path / "cut", patience=99)
    cut.add_callback(StopAt(15))
    cut.train()
    resumed, guard, _ = ppo_run(tmp_path / "cut", patience=99)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoints" / "checkpoint-12"))
    assert guard.history == whole_guard.history
    assert json.loads((tmp_path / "cut" / "guard.json").read_text())[-1]["step"] == 72
    after = trained(resumed)
    assert all(torch.equal(weight, after[name]) for name, weight in trained(whole).items())


def test_dpo_keeps_what_the_guard_liked_best(tmp_path: Path) -> None:
    rows = toy_preferences(toy_rewards(), rivals=1)[:128]
    training = TrainingConfig(
        learning_rate=2e-2,
        max_steps=12,
        per_device_batch_size=16,
        warmup_share=0.0,
        precision="float32",
        max_length_tokens=16,
    )
    config = DPOConfig(
        output=str(tmp_path), policy="", preferences="", training=training, tracking=TrackingConfig(mode="disabled")
    )
    run = Run(folder=tmp_path, stage="dpo", config=config, inputs={}, fingerprint="")
    args = build_dpo_args(config, run)
    args.save_strategy, args.disable_tqdm = "no", True
    trainer = CheckedDPOTrainer(
        model=with_adapter(build_toy_policy()),
        args=args,
        train_dataset=to_dataset([EncodedPair(*row) for row in rows]),
        processing_class=toy_tokenizer(),
    )

    def weights() -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}

    snapshots = Snapshots(weights)
    trainer.add_callback(snapshots)
    guard = guarded(tmp_path, trainer, trainer.model, lambda c: -float(len(c)), "rewards/margins", config, 3, 99)
    trainer.train()
    assert [verdict.step for verdict in guard.history] == [0, 3, 6, 9, 12]
    assert guard.history[0].kl == pytest.approx(0.0, abs=1e-5)
    assert guard.history[-1].training_score is not None
    kept = best_of(guard.history)
    assert all(torch.equal(weight, snapshots.at[kept.step][name]) for name, weight in weights().items())


def test_what_the_policy_learns_from_cannot_guard_it() -> None:
    with pytest.raises(ValidationError, match="it is what the policy learns from"):
        PPOConfig(output="o", policy="p", reward_model="r", prompts="q", guard=GuardConfig(reward_model="r"))

"""The guard: which policy is kept and when training stops, by hand and in training runs that over-optimise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support import run_of
from test_groups import build
from test_groups import weights as group_weights
from test_ppo_trainer import Judge, StopAt, build_trainer, trained
from torch import Tensor
from toy_language import EOS, PROMPTS, build_toy_policy, toy_preferences, toy_rewards, toy_tokenizer, with_adapter
from transformers import TrainerCallback

from preference.dpo import CheckedDPOTrainer, DPOConfig, build_dpo_args
from preference.pairs import EncodedPair, to_dataset
from preference.policy.backbone import Backbone
from preference.policy.overoptimisation import (
    Guard,
    GuardConfig,
    GuardedPolicy,
    Verdict,
    best_of,
    over_optimised,
    reference_name,
)
from preference.ppo.train import PPOConfig
from tiebreak.config import SamplingConfig, TrackingConfig, TrainingConfig
from tiebreak.errors import HandoffError
from tiebreak.packed.generation import row_seed, sample_completions
from tiebreak.tracking.recorder import RunRecorder
from tiebreak.training.callbacks import RunCallback

OFF = TrackingConfig(mode="disabled")


def verdicts(scores: list[float], training: list[float]) -> list[Verdict]:
    return [Verdict(10 * n, s, float(n), t) for n, (s, t) in enumerate(zip(scores, training, strict=True))]


@pytest.mark.parametrize(
    ("scores", "training", "stops"),
    [
        ([1, 2, 1.5, 1], [0, 1, 2, 3], True),  # fell twice while the training's rose
        ([1, 2, 1.5, 1], [0, 3, 2, 1], False),  # both fell: that is not over-optimisation
        ([1, 2, 1.5, 1.6], [0, 1, 2, 3], False),  # rose again
        ([1, 2, 2, 1], [0, 1, 2, 3], False),  # stood still, then fell once
        ([2, 1.5, 1], [0, -1, 0], False),  # the training's own is where it was
        ([2, 1], [0, 1], False),  # too early
    ],
)
def test_when_to_stop_at_a_patience_of_two(scores: list[float], training: list[float], stops: bool) -> None:
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


def guarded(
    folder: Path, trainer: Any, lm: Any, rule: Any, config: Any, every: int, patience: int, **learned: Any
) -> Guard:
    recorder = RunRecorder(run_of(folder, "ppo", config))
    policy = GuardedPolicy(
        Backbone(lm, 0, reference_name(lm)),
        Judge(rule, name="held out"),
        learned.get("learned_from", ()),
        [list(p) for p in PROMPTS] * 8,
        SamplingConfig(temperature=1.0, max_new_tokens=2),
        (EOS,),
        seed=0,
    )
    guard = Guard(GuardConfig(reward_model="held out", eval_every_steps=every, patience=patience), policy, recorder)
    guard.watch(trainer)
    trainer.add_callback(RunCallback(recorder, trainer))
    return guard


def turns_against_endings(completion: list[int]) -> float:
    """People like one token, 3, and dislike what the training rewards."""
    return float(completion[0] == 3) - float(completion[-1] != EOS)


def ppo_trainer(folder: Path) -> Any:
    """Rewarded for not ending, which the held-out judge dislikes: its score falls from the start."""
    folder.mkdir(exist_ok=True)
    return build_trainer(
        folder,
        rewards=[Judge(lambda c: float(c[-1] != EOS))],
        rollouts=6,
        missing_eos_penalty=0.0,
        kl_coef=0.0,
        stop_when_all_cut_off=False,
        training={"learning_rate": 2e-2},
    )


def ppo_guard(trainer: Any, folder: Path, every: int = 6, patience: int = 99) -> Guard:
    config = PPOConfig(output=str(folder), policy="", reward_model="x", prompts="", tracking=OFF)
    lm, learned_from = trainer.backbone.lm, trainer.rewards
    return guarded(folder, trainer, lm, turns_against_endings, config, every, patience, learned_from=learned_from)


@pytest.mark.slow
def test_a_guard_that_never_speaks_changes_no_step(tmp_path: Path) -> None:
    """It draws and scores answers between the steps; no weight, no rollout and no figure of the training may notice."""
    free, watched = ppo_trainer(tmp_path / "free"), ppo_trainer(tmp_path / "watched")
    ppo_guard(watched, tmp_path / "watched", every=4)
    seen = []
    for trainer in (free, watched):
        seen.append(Snapshots(lambda trainer=trainer: trained(trainer)))
        trainer.add_callback(seen[-1])
        trainer.train()
    assert list(seen[0].at) == list(seen[1].at) == list(range(37))
    for step, weights in seen[0].at.items():
        assert all(torch.equal(weight, seen[1].at[step][name]) for name, weight in weights.items()), step


def test_the_last_policy_is_judged_even_between_two_evaluations(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path / "run")
    guard = ppo_guard(trainer, tmp_path / "run", every=25)
    trainer.train()
    assert [verdict.step for verdict in guard.history] == [0, 25, 36]
    assert guard.trained_steps == 36


def test_both_scores_are_of_the_same_completions(tmp_path: Path) -> None:
    """24 answers before training, drawn here once more and scored by hand."""
    trainer = ppo_trainer(tmp_path / "run")
    guard = ppo_guard(trainer, tmp_path / "run")
    drawn = sample_completions(
        trainer.backbone.lm,
        guard.policy.prompts,
        [row_seed(0, "guard", number) for number in range(24)],
        guard.policy.sampling,
        stop_ids=(EOS,),
        pad_id=0,
        batch_size=24,
    )
    trainer.train()
    first = guard.history[0]
    assert first.kl == pytest.approx(0.0, abs=1e-6)
    assert first.score == pytest.approx(sum(turns_against_endings(one.ids) for one in drawn) / 24)
    assert first.training_score == pytest.approx(sum(not one.finished for one in drawn) / 24)
    assert guard.history[-1].training_score > first.training_score  # it learned what it is rewarded for


@pytest.mark.slow
def test_a_guarded_run_resumes_to_the_same_verdicts(tmp_path: Path) -> None:
    """Cut after a verdict that no checkpoint holds yet: it is forgotten, and given again."""
    whole = ppo_trainer(tmp_path / "whole")
    whole_guard = ppo_guard(whole, tmp_path / "whole", every=5)
    whole.train()
    cut = ppo_trainer(tmp_path / "cut")
    ppo_guard(cut, tmp_path / "cut", every=5)
    cut.add_callback(StopAt(17))
    cut.train()
    resumed = ppo_trainer(tmp_path / "cut")
    guard = ppo_guard(resumed, tmp_path / "cut", every=5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoints" / "checkpoint-12"))
    assert guard.history == whole_guard.history
    after = trained(resumed)
    assert all(torch.equal(weight, after[name]) for name, weight in trained(whole).items())


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_groups_are_guarded_too_even_where_no_kl_is_learned_from(tmp_path: Path, algorithm: str) -> None:
    """GRPO without a KL keeps no reference of its own; the guard's is the policy as it was."""
    trainer = build(tmp_path, algorithm, kl_coef=0.0, rewards=[Judge(lambda c: float(c[-1] != EOS))])
    config = PPOConfig(output=str(tmp_path), policy="", reward_model="x", prompts="", tracking=OFF)
    guard = guarded(
        tmp_path, trainer, trainer.model, turns_against_endings, config, 3, 99, learned_from=trainer.rewards
    )
    snapshots = Snapshots(lambda: group_weights(trainer))
    trainer.add_callback(snapshots)
    trainer.train()
    assert [verdict.step for verdict in guard.history] == [0, 3, 6, 9]
    assert guard.history[0].kl == pytest.approx(0.0, abs=1e-6)
    assert guard.history[-1].kl > 0.01
    assert "eval_objective/kl" in trainer.evaluate()
    kept = snapshots.at[best_of(guard.history).step]
    assert all(torch.equal(weight, kept[name]) for name, weight in group_weights(trainer).items())


def test_a_checkpoint_without_the_guards_part_is_refused(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path / "run")
    ppo_guard(trainer, tmp_path / "run")
    trainer.add_callback(StopAt(13))
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-12"
    (checkpoint / "guard.safetensors").unlink()
    with pytest.raises(HandoffError, match=r"checkpoint-12 lacks the guard's state .*guard.safetensors.*remove it"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


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
    config = DPOConfig(output=str(tmp_path), policy="", preferences="", training=training, tracking=OFF)
    run = run_of(tmp_path, "dpo", config)
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
    guard = guarded(tmp_path, trainer, trainer.model, lambda c: -float(len(c)), config, 3, 99)
    trainer.train()
    assert [verdict.step for verdict in guard.history] == [0, 3, 6, 9, 12]
    assert guard.history[0].kl == pytest.approx(0.0, abs=1e-5)
    margins = {row["step"]: row["rewards/margins"] for row in trainer.state.log_history if "rewards/margins" in row}
    assert guard.history[0].training_score == 0.0
    # a step's margin is logged after its verdict, so the second one hears of the first two steps
    assert guard.history[1].training_score == pytest.approx((margins[1] + margins[2]) / 2)
    assert guard.history[2].training_score == pytest.approx((margins[3] + margins[4] + margins[5]) / 3)
    kept = best_of(guard.history)
    assert all(torch.equal(weight, snapshots.at[kept.step][name]) for name, weight in weights().items())


def test_what_the_policy_learns_from_cannot_guard_it() -> None:
    with pytest.raises(ValidationError, match="it is what the policy learns from"):
        PPOConfig(output="o", policy="p", reward_model="r", prompts="q", guard=GuardConfig(reward_model="r"))

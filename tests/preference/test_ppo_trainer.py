"""The PPO loop on a policy small enough to be run many times: what must not change it, and what it must refuse.

Run as a program, it writes what a training run logged and learned to a file, for the test of several processes.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import on_two_processes, run_of
from torch import Tensor
from toy_language import (
    ANSWERS,
    EOS,
    PROMPTS,
    KnownReward,
    answer_logps,
    build_toy_backbone,
    build_toy_policy,
    toy_rewards,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from preference.policy.adapters import trainable_names
from preference.policy.backbone import Backbone, load_backbone
from preference.policy.layout import batches_by_tokens
from preference.policy.rewards import Conversations, MountedReward, Reward, load_reward
from preference.policy.rollout import Episodes
from preference.ppo.loop import STATE_FILE, LoopState
from preference.ppo.train import PPOConfig, build_ppo_args, ppo_settings
from preference.ppo.trainer import MicroBatch, PPOTrainer
from tiebreak.chat.build import build_chat
from tiebreak.config import AdapterConfig, SamplingConfig, TrainingConfig
from tiebreak.errors import HandoffError
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.find import ModelSource, base_sha256
from tiebreak.models.load import load_reward_model, load_trained_reward_model
from tiebreak.models.probe import PROBE_FILE, probe_values, write_probe
from tiebreak.models.save import save_adapter
from tiebreak.models.tokenizers import load_tokenizer
from tiebreak.packed.logprobs import scores_in_batches
from tiebreak.packed.sharding import gathered

Rows = list[dict[str, float]]


class RecordingTrainer(PPOTrainer):
    """Keeps what it rolled out."""

    def __init__(self, *args: Any) -> None:
        self.rollouts: list[tuple[Episodes, list[MicroBatch]]] = []
        super().__init__(*args)

    def _roll_out(self) -> list[MicroBatch]:
        micro_batches: list[MicroBatch] = super()._roll_out()
        self.rollouts.append((self.assessed, list(micro_batches)))
        return micro_batches

    def _sample_and_assess(self, *arguments: Any) -> Episodes:
        self.assessed = super()._sample_and_assess(*arguments)
        return self.assessed


def build_trainer(
    folder: Path,
    *,
    batch: int = 4,
    accumulation: int = 1,
    rewards: list[Reward] | None = None,
    training: dict[str, Any] | None = None,
    **settings: Any,
) -> RecordingTrainer:
    """A trainer as the stage builds it, on the toy language: 12 episodes a rollout, two rollouts, two PPO epochs."""
    chosen: dict[str, Any] = {
        "episodes_per_rollout": 12,
        "rollouts": 2,
        "ppo_epochs": 2,
        "kl_coef": 0.2,
        "sampling": SamplingConfig(temperature=1.0, max_new_tokens=2),
    }
    config = PPOConfig(
        output=str(folder),
        policy="",
        reward_model="table",
        prompts="",
        training=TrainingConfig(
            **{
                "learning_rate": 1e-2,
                "per_device_batch_size": batch,
                "gradient_accumulation_steps": accumulation,
                "warmup_share": 0.0,
                "precision": "float32",
                "save_steps": 1,
            }
            | (training or {})
        ),
        **chosen | settings,
    )
    run = run_of(folder, "ppo", config)
    args = build_ppo_args(config, run)
    args.logging_steps, args.disable_tqdm = 1, True
    given: list[Reward] = [KnownReward(toy_rewards())]
    prompts = [list(p) for p in PROMPTS]
    trainer = RecordingTrainer(
        build_toy_backbone(build_toy_policy()), args, ppo_settings(config, (EOS,)), prompts, prompts
    )
    trainer.rewards = rewards or given
    return trainer


def backbone_of(trainer: PPOTrainer) -> Backbone:
    backbone: Backbone = trainer.accelerator.unwrap_model(trainer.model)
    return backbone


def trained(trainer: PPOTrainer) -> dict[str, Tensor]:
    """A copy of what trains: the policy's adapter and the value head."""
    backbone = backbone_of(trainer)
    names = set(trainable_names(backbone))
    return {name: p.detach().clone() for name, p in backbone.named_parameters() if name in names}


def logged(trainer: PPOTrainer) -> Rows:
    timings = ("epoch", "step", "learning_rate")
    rows = [{k: v for k, v in row.items() if k not in timings} for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == trainer.state.max_steps
    return rows


def assert_same_run(rows: Rows, weights: dict[str, Tensor], other_rows: Rows, other: dict[str, Tensor]) -> None:
    assert len(rows) == len(other_rows)
    for step, (one, two) in enumerate(zip(rows, other_rows, strict=True)):
        assert one.keys() == two.keys()
        for key in one:
            assert one[key] == pytest.approx(two[key], rel=1e-3, abs=2e-5), f"{key} at step {step}"
    assert weights.keys() == other.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], other[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# --- what must not change a run


def test_one_batch_of_four_is_four_batches_of_one(tmp_path: Path) -> None:
    """Completions differ in length, so a mean of micro-batches' means would differ from the mean over tokens."""
    runs = {}
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        trainer = build_trainer(tmp_path / f"{batch}", batch=batch, accumulation=accumulation)
        start = trained(trainer)
        trainer.train()
        runs[batch] = (logged(trainer), trained(trainer))
        assert {len(c) for c in trainer.rollouts[0][0].completions} == {1, 2}
    moved = max(float((runs[4][1][name] - start[name]).abs().max()) for name in start)
    assert moved > 0.01
    for batch in (2, 1):
        assert_same_run(*runs[4], *runs[batch])


def test_a_step_in_passes_is_one_step(tmp_path: Path) -> None:
    """With a budget of one token each episode is a pass of its own: the same weights, and the same means are logged."""
    runs = {}
    for tokens in (10**6, 1):
        trainer = build_trainer(tmp_path / str(tokens), batch=4)
        trainer.tokens_per_pass = tokens
        calls: list[int] = []
        compute = trainer.compute_loss
        trainer.compute_loss = lambda *args, c=compute, n=calls, **options: (n.append(1), c(*args, **options))[1]
        trainer.train()
        runs[tokens] = (logged(trainer), trained(trainer))
        assert len(calls) == trainer.state.max_steps * (4 if tokens == 1 else 1)
    assert_same_run(*runs[10**6], *runs[1])


ONE_STEP_AN_EPOCH = {"batch": 12, "episodes_per_rollout": 12}


@pytest.mark.parametrize(("launcher", "budgets"), [("ddp", (10**6, 9)), ("zero3", (9,))])
def test_two_processes_are_one(tmp_path: Path, launcher: str, budgets: tuple[int, ...]) -> None:
    """12 episodes a step on one process, 6 on each of two: the same prompts, seeds, losses, means and weights.

    One micro-batch a log is where a mean could be taken for the main process's share of it. Cut into passes, each
    process takes as many as the one that needs the most.
    """
    trainer = build_trainer(tmp_path / "one", **ONE_STEP_AN_EPOCH)
    evaluated = trainer.evaluate()  # of three prompts: one process answers two of them
    trainer.train()
    on_two_processes(launcher, __file__, tmp_path, *map(str, budgets))
    for tokens_per_pass in budgets:
        two = tmp_path / str(tokens_per_pass)
        passes = [json.loads((two / f"passes-{rank}.json").read_text()) for rank in (0, 1)]
        for (needed, episodes), (needed_too, episodes_too) in zip(*passes, strict=True):
            assert len(episodes) == len(episodes_too) == max(needed, needed_too)
            assert sum(episodes) == sum(episodes_too) == 6
        assert any(one[0] != other[0] for one, other in zip(*passes, strict=True)) == (tokens_per_pass == 9)
        for rank in (0, 1):
            assert json.loads((two / f"evaluated-{rank}.json").read_text()) == pytest.approx(
                evaluated, rel=1e-4, abs=2e-5
            )
        rows = json.loads((two / "rows.json").read_text())
        assert_same_run(logged(trainer), trained(trainer), rows, load_file(two / "weights.safetensors"))


class StopAt(TrainerCallback):  # type: ignore[misc]
    """Cuts a run off after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True


def noisy_reward() -> list[Reward]:
    """A user's reward that draws from each of the generators there are."""
    return [
        KnownReward(toy_rewards()),
        Judge(lambda c: random.random() + float(np.random.rand()) + float(torch.rand(())), name="noise"),
    ]


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    """Optimizer, prompt order, the scores' scale, the KL coefficient and the state of every generator go on."""
    settings: dict[str, Any] = {"rollouts": 3, "kl_target": 0.01, "kl_horizon": 20}
    whole = build_trainer(tmp_path / "whole", rewards=noisy_reward(), **settings)
    whole.train()
    assert whole.steps_per_rollout == 6
    cut = build_trainer(tmp_path / "cut", rewards=noisy_reward(), **settings)
    cut.add_callback(StopAt(9))  # in the middle of the second rollout
    cut.train()
    checkpoints = sorted(p.name for p in (tmp_path / "cut" / "checkpoints").glob("checkpoint-*"))
    assert checkpoints[0] == "checkpoint-6"
    random.seed(9)
    resumed = build_trainer(tmp_path / "cut", rewards=noisy_reward(), **settings)
    start = trained(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoints" / "checkpoint-6"))
    assert [len(t.rollouts) for t in (whole, cut, resumed)] == [3, 2, 2]
    uncut, after = trained(whole), trained(resumed)
    assert not torch.equal(start["value_head.weight"], after["value_head.weight"])
    for name, weight in uncut.items():
        assert torch.equal(weight, after[name]), name
    one, two = (
        {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row} for trainer in (whole, resumed)
    )
    assert one == two
    assert whole.loop == resumed.loop != LoopState(whole.settings.kl_coef)
    scores = [trainer.rollouts[-1][0].scores for trainer in (whole, resumed)]
    assert torch.equal(*scores)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    plain = build_trainer(tmp_path / "plain")
    plain.train()
    checkpointed = build_trainer(tmp_path / "checkpointed", training={"gradient_checkpointing": True})
    checkpointed.train()
    assert backbone_of(checkpointed).lm.get_base_model().is_activation_checkpointing
    assert_same_run(logged(plain), trained(plain), logged(checkpointed), trained(checkpointed))


def test_only_the_policys_adapter_and_the_value_head_change(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path)
    backbone = backbone_of(trainer)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    trainer.train()
    changed = {name for name, p in backbone.named_parameters() if not torch.equal(p, before[name])}
    expected = {name for name in before if ".default." in name} | {"value_head.weight", "value_head.bias"}
    assert changed == expected
    assert set(trainable_names(backbone)) == expected
    assert len(before) > 2 * len(expected)  # base weights and the reference stay


# --- what is logged


def test_the_first_step_is_logged_as_worked_by_hand(tmp_path: Path) -> None:
    """All episodes in one minibatch, before any update, with gamma = lam = 1 and scores as they are.

    Policy and reference are one and values are 0, so every token's return is its episode's score: the value loss is
    half the mean of its square over tokens, ρ = 1, the KL is 0, and the policy loss is −mean(whitened A) = 0.
    """
    trainer = build_trainer(
        tmp_path, **ONE_STEP_AN_EPOCH, normalise_scores=False, missing_eos_penalty=0.0, lam=1.0, rollouts=1, vf_coef=0.5
    )
    trainer.train()
    episodes, _ = trainer.rollouts[0]
    first, second = logged(trainer)
    rewards = toy_rewards()
    given = [
        float(rewards[PROMPTS.index(tuple(p)), ANSWERS.index(tuple(c))])
        for p, c in zip(episodes.prompts, episodes.completions, strict=True)
    ]
    lengths = [len(c) for c in episodes.completions]
    tokens = sum(lengths)
    value_loss = sum(n * score**2 for n, score in zip(lengths, given, strict=True)) / tokens / 2
    expected = {
        "loss/value_avg": value_loss,
        "loss/policy_avg": 0.0,
        "loss": 0.5 * value_loss,
        "val/ratio": 1.0,
        "policy/approxkl_avg": 0.0,
        "policy/clipfrac_avg": 0.0,
        "val/clipfrac_avg": 0.0,
        "objective/kl": 0.0,
        "objective/non_score_reward": 0.0,
        "objective/scores": sum(given) / 12,
        "objective/rlhf_reward": sum(given) / 12,
        "completions/mean_length": tokens / 12,
        "val/num_eos_tokens": sum(c[-1] == EOS for c in episodes.completions),
        "episode": 12,
    }
    for key, value in expected.items():
        assert first[key] == pytest.approx(value, abs=1e-5), key
    assert second["val/ratio"] != first["val/ratio"]
    assert second["policy/approxkl_avg"] > 1e-6
    assert "objective/kl" not in second  # a rollout's means are logged once


def test_the_policys_probabilities_and_entropy_are_the_plain_forwards(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path, **ONE_STEP_AN_EPOCH, rollouts=1)
    exact = answer_logps(backbone_of(trainer).lm)
    first_entropy = [-float((e.exp() * e).sum()) for e in first_token_logps(exact)]
    trainer.train()
    episodes, _ = trainer.rollouts[0]
    for row, (prompt, completion) in enumerate(zip(episodes.prompts, episodes.completions, strict=True)):
        p = PROMPTS.index(tuple(prompt))
        assert float(episodes.logps[row].sum()) == pytest.approx(
            float(exact[p, ANSWERS.index(tuple(completion))]), abs=1e-5
        )
        assert float(episodes.entropy[row, 0]) == pytest.approx(first_entropy[p], abs=1e-5)
    mean = float(episodes.entropy.sum() / episodes.mask.sum())
    assert logged(trainer)[0]["policy/entropy_avg"] == pytest.approx(mean, abs=1e-5)


def first_token_logps(logps: Tensor) -> list[Tensor]:
    """The distribution of the first token of each prompt's answer, by adding up the answers that begin with it."""
    tokens = range(max(max(answer) for answer in ANSWERS) + 1)
    begins = torch.tensor([[answer[0] == token for answer in ANSWERS] for token in tokens])
    return [torch.stack([row[which].logsumexp(0) for which in begins]) for row in logps]


def test_every_prompt_comes_once_a_lap(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path)
    laps = [trainer._choose_prompts(0), trainer._choose_prompts(1)]
    chosen = [tuple(prompt) for prompts, _ in laps for prompt in prompts]
    for start in range(0, len(chosen), len(PROMPTS)):
        assert set(chosen[start : start + len(PROMPTS)]) == set(PROMPTS)
    seeds = [seed for _, seeds in laps for seed in seeds]
    assert len(set(seeds)) == len(seeds)


def test_whitened_rewards_have_deviation_1_and_their_own_mean(tmp_path: Path) -> None:
    """With gamma = lam = 1, values 0 and no KL yet, a return less the next token's is the token's reward."""
    plain, white = (
        build_trainer(
            tmp_path / str(on),
            **ONE_STEP_AN_EPOCH,
            rollouts=1,
            ppo_epochs=1,
            lam=1.0,
            normalise_scores=False,
            whiten_rewards=on,
        )
        for on in (False, True)
    )
    rewards = []
    for trainer in (plain, white):
        trainer.train()
        micro = trainer.rollouts[0][1][0]
        after = torch.nn.functional.pad(micro.returns[:, 1:], (0, 1))
        rewards.append((micro.returns - after)[micro.batch.mask].double())
    before, after = rewards
    assert float(before.std(correction=0)) != pytest.approx(1.0, abs=0.05)
    expected = (before - before.mean()) / before.std(correction=0) + before.mean()
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)


def test_scores_are_normalised_by_the_first_rollout_for_good(tmp_path: Path) -> None:
    """Rewards 2·r + 5 and r are one task; the scale is kept in the checkpoints."""
    rewards = toy_rewards()
    trainers = [
        build_trainer(tmp_path / str(n), rewards=[KnownReward(r)]) for n, r in enumerate((rewards, 2 * rewards + 5))
    ]
    for trainer in trainers:
        trainer.train()
    plain, shifted = (logged(trainer) for trainer in trainers)
    assert [row["loss"] for row in plain] == pytest.approx([row["loss"] for row in shifted], rel=1e-3, abs=1e-4)
    first = trainers[0].rollouts[0][0].scores[0]
    saved = json.loads((tmp_path / "0" / "checkpoints" / "checkpoint-6" / STATE_FILE).read_text())
    assert saved["scales"] == [[pytest.approx(float(first.mean())), pytest.approx(float(first.std(correction=0)))]]
    assert plain[0]["objective/rlhf_reward"] == pytest.approx(-unfinished_share(trainers[0]), abs=1e-5)


def unfinished_share(trainer: RecordingTrainer) -> float:
    """The mean penalty of the first rollout, at 1 an unfinished completion: normalised scores themselves average 0."""
    completions = trainer.rollouts[0][0].completions
    return sum(c[-1] != EOS for c in completions) / len(completions)


# --- what is refused


def test_another_reference_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path)
    with torch.no_grad():
        for name, parameter in backbone_of(trainer).named_parameters():
            if ".reference." in name and "lora_B" in name:
                parameter.add_(0.01)
    start = trained(trainer)
    with pytest.raises(HandoffError, match="reference is not the policy"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(weight, start[name]) for name, weight in trained(trainer).items())


class FailingReward(KnownReward):
    """Gives no number from some call on."""

    def __init__(self, good_calls: int) -> None:
        super().__init__(toy_rewards())
        self.good_calls = good_calls

    def scores(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[float]:
        scored = super().scores(prompts, completions)
        self.good_calls -= 1
        return scored if self.good_calls >= 0 else [math.nan] * len(scored)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("good_calls", "steps"), [(0, 0), (1, 6)], ids=["at once", "in the second rollout"])
def test_a_reward_that_is_not_a_number_stops_the_run(
    tmp_path: Path, normalise: bool, good_calls: int, steps: int
) -> None:
    trainer = build_trainer(tmp_path, rewards=[FailingReward(good_calls)], normalise_scores=normalise)
    with pytest.raises(HandoffError, match="the table gave 12 of 12 completions a score that is not a finite number"):
        trainer.train()
    assert trainer.state.global_step == steps


@dataclass(frozen=True)
class Judge:
    """A reward by a rule."""

    rule: Callable[[list[int]], float]
    weight: float = 1.0
    name: str = "the rule"

    def scores(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[float]:
        return [self.rule(list(c)) for c in completions]


def complete_checkpoints(folder: Path) -> list[str]:
    return sorted(p.parent.name for p in (folder / "checkpoints").glob("checkpoint-*/model.safetensors"))


def test_a_policy_that_collapses_to_eos_stops_with_its_checkpoints_kept(tmp_path: Path) -> None:
    """Nothing counts but shortness, so the policy learns to write its end at once."""
    trainer = build_trainer(
        tmp_path,
        rewards=[Judge(lambda c: 0.0)],
        rollouts=60,
        length_penalty=5.0,
        kl_coef=0.0,
        training={"learning_rate": 5e-2},
    )
    with pytest.raises(HandoffError, match=r"end-of-sequence token and nothing else.*collapsed.*kept"):
        trainer.train()
    assert trainer.state.global_step > 6
    assert complete_checkpoints(tmp_path)


def test_completions_that_are_all_cut_off_stop_the_run_with_its_checkpoints_kept(tmp_path: Path) -> None:
    """Not ending is what is rewarded here, so at last no completion ends."""
    settings: dict[str, Any] = {
        "rewards": [Judge(lambda c: float(c[-1] != EOS))],
        "rollouts": 60,
        "missing_eos_penalty": 0.0,
        "kl_coef": 0.0,
        "training": {"learning_rate": 5e-2},
    }
    trainer = build_trainer(tmp_path / "stops", **settings)
    with pytest.raises(HandoffError, match=r"all 12 completions .* cut off at sampling.max_new_tokens \(2\).*Raise it"):
        trainer.train()
    assert complete_checkpoints(tmp_path / "stops")
    allowed = build_trainer(tmp_path / "goes on", **settings | {"rollouts": 12}, stop_when_all_cut_off=False)
    allowed.train()
    assert any(not bool(episodes.finished.any()) for episodes, _ in allowed.rollouts)


def test_a_value_head_of_another_size_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    backbone = build_toy_backbone(build_toy_policy())
    file = tmp_path / "value_head.safetensors"
    with pytest.raises(HandoffError, match="does not exist"):
        backbone.load_value_head(file)
    save_file({"weight": torch.ones(1, 32), "bias": torch.ones(1)}, file)
    backbone.load_value_head(file)
    assert backbone.value_head.weight.sum() == 32
    save_file({"weight": torch.ones(1, 16), "bias": torch.ones(1)}, file)
    with pytest.raises(HandoffError, match=r"hidden states of size 16.*have 32.*value_head: null"):
        backbone.load_value_head(file)


# --- held-out prompts


def test_evaluation_is_of_the_held_out_prompts_and_changes_nothing(tmp_path: Path) -> None:
    """Its means are those of the table over what it drew, the same each time; training continues as if it had not run."""
    quiet = build_trainer(tmp_path / "quiet")
    quiet.train()
    trainer = build_trainer(tmp_path / "evaluated")
    one = trainer.evaluate()
    drawn = trainer.assessed
    assert [tuple(p) for p in drawn.prompts] == list(PROMPTS)
    table = KnownReward(toy_rewards()).scores(drawn.prompts, drawn.completions)
    assert one["eval_objective/scores"] == pytest.approx(sum(table) / 3, abs=1e-6)
    assert one["eval_objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert one["eval_completions/mean_length"] == pytest.approx(sum(map(len, drawn.completions)) / 3)
    assert one["eval_unfinished"] == pytest.approx(sum(c[-1] != EOS for c in drawn.completions) / 3)
    assert one["eval_loss"] == -one["eval_objective/scores"]
    assert trainer.evaluate() == one
    trainer.rollouts.clear()
    trainer.train()
    assert all(torch.equal(weight, trained(quiet)[name]) for name, weight in trained(trainer).items())
    after = trainer.evaluate()
    assert after["eval_objective/kl"] != one["eval_objective/kl"]


# --- control


def test_the_kl_coefficient_follows_its_controller(tmp_path: Path) -> None:
    """β ← β·(1 + clip(KL/target − 1, ±0.2)·12/60), from the KL of the rollout before."""
    trainer = build_trainer(tmp_path, rollouts=5, kl_target=0.05, kl_horizon=60)
    trainer.train()
    rows = [row for row in logged(trainer) if "objective/kl_coef" in row]
    assert len(rows) == 5
    for before, after in itertools.pairwise(rows):
        error = min(max(before["objective/kl_k3"] / 0.05 - 1, -0.2), 0.2)
        assert after["objective/kl_coef"] == pytest.approx(before["objective/kl_coef"] * (1 + error / 5))
    assert rows[1]["objective/kl_coef"] < rows[0]["objective/kl_coef"]  # no divergence at first
    assert rows[-1]["objective/kl_coef"] > min(row["objective/kl_coef"] for row in rows)
    non_score = rows[-1]["objective/non_score_reward"]
    assert non_score == pytest.approx(-rows[-1]["objective/kl_coef"] * rows[-1]["objective/kl"], abs=1e-6)


def test_a_run_stops_above_max_kl_with_the_weights_it_had(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path, rollouts=40, kl_coef=0.0, max_kl=0.1, training={"learning_rate": 3e-2})
    seen: list[dict[str, Tensor]] = []
    roll_out = trainer._roll_out

    def watched() -> list[MicroBatch]:
        seen.append(trained(trainer))
        return roll_out()

    trainer._roll_out = watched  # type: ignore[method-assign]
    trainer.train()
    kls = [float(episodes.kl_k3.sum(-1).mean()) for episodes, _ in trainer.rollouts]
    assert max(kls[:-1]) <= 0.1 < kls[-1]
    assert 1 < len(kls) < 40
    assert all(torch.equal(weight, seen[-1][name]) for name, weight in trained(trainer).items())


def test_updates_past_target_step_kl_are_skipped(tmp_path: Path) -> None:
    """Below any movement only each rollout's first two steps count: that at rest, and that which sees it moved."""
    free = build_trainer(tmp_path / "free", **ONE_STEP_AN_EPOCH, ppo_epochs=4, rollouts=1)
    held = build_trainer(tmp_path / "held", **ONE_STEP_AN_EPOCH, ppo_epochs=4, rollouts=1, target_step_kl=1e-9)
    two = build_trainer(tmp_path / "two", **ONE_STEP_AN_EPOCH, ppo_epochs=2, rollouts=1)
    for trainer in (free, held, two):
        trainer.args.lr_scheduler_type = "constant"
        trainer.train()
    assert held.state.global_step == 4
    assert all(torch.equal(weight, trained(two)[name]) for name, weight in trained(held).items())
    assert any(not torch.equal(weight, trained(free)[name]) for name, weight in trained(held).items())


def test_an_entropy_bonus_keeps_the_policy_broad(tmp_path: Path) -> None:
    entropies = []
    for coefficient in (0.0, 1.0):
        trainer = build_trainer(
            tmp_path / str(coefficient), rollouts=8, kl_coef=0.0, entropy_coef=coefficient, stop_when_all_cut_off=False
        )
        trainer.train()
        entropies.append(logged(trainer)[-1]["policy/entropy_avg"])
    assert entropies[1] > entropies[0] + 0.05


def test_advantages_are_whitened_unless_turned_off(tmp_path: Path) -> None:
    """With values 0, gamma = lam = 1 and no KL yet, an advantage is the return, whitened over the tokens or not."""
    plain, white = (
        build_trainer(tmp_path / str(on), **ONE_STEP_AN_EPOCH, rollouts=1, ppo_epochs=1, lam=1.0, whiten_advantages=on)
        for on in (False, True)
    )
    for trainer in (plain, white):
        trainer.train()
    (left,), (right,) = (t.rollouts[0][1] for t in (plain, white))
    torch.testing.assert_close(left.advantages, left.returns)
    counted = left.returns[left.batch.mask]
    expected = (counted - counted.mean()) / counted.std(correction=0)
    torch.testing.assert_close(right.advantages[right.batch.mask], expected, rtol=1e-4, atol=1e-5)


def test_several_rewards_are_normalised_each_and_weighted(tmp_path: Path) -> None:
    """A table and length, the second against: on the first rollout each has mean 0 and deviation 1, whatever its scale."""
    rewards: list[Reward] = [KnownReward(toy_rewards()), Judge(lambda c: 100.0 + 7.0 * len(c), -0.5, "length")]
    trainer = build_trainer(tmp_path, **ONE_STEP_AN_EPOCH, rollouts=1, rewards=rewards, missing_eos_penalty=0.0)
    trainer.train()
    table, length = trainer.rollouts[0][0].scores.double()
    standard = [(s - s.mean()) / s.std(correction=0) for s in (table, length)]
    first = logged(trainer)[0]
    assert first["objective/rlhf_reward"] == pytest.approx(float((standard[0] - 0.5 * standard[1]).mean()), abs=1e-5)
    assert first["rewards/length/mean"] == pytest.approx(float(length.mean()), rel=1e-6)
    assert first["objective/scores"] == pytest.approx(float((table - 0.5 * length).mean()), rel=1e-5)
    micro = trainer.rollouts[0][1][0]
    best = float((standard[0] - 0.5 * standard[1]).max())
    assert float(micro.returns.max()) == pytest.approx(best, abs=1e-4)  # no KL yet: a return is the score


# --- the reward model on the policy's backbone


TRAINING = TrainingConfig(precision="float32")


@pytest.fixture(scope="module")
def sources(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSource, ModelSource]:
    """(a base model, a reward model saved as its stage saves it, with an adapter of another rank)."""
    base = ModelSource(str(tiny_model), "policy", "tiny", str(tiny_model), tiny_model, base_sha256(tiny_model), None)
    tokenizer = load_tokenizer(base)
    adapter = AdapterConfig(r=4, alpha=8)
    model = load_reward_model(base, TRAINING, adapter, tokenizer)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("reward") / "final"
    save_adapter(folder, model, Adapter(model).state(), build_chat(tokenizer), base, "reward", adapter)
    ids = list(range(40, 60))
    write_probe(folder, ids, probe_values(model, ids), model)
    return base, replace(base, name="reward", kind="reward", id="r", folder=folder)


def mount(backbone: Backbone, policy: ModelSource, reward: ModelSource) -> Reward:
    return load_reward(
        reward, 1.0, backbone, policy, Conversations(build_chat(load_tokenizer(policy)), {}), TRAINING, "reward"
    )


def test_the_mounted_reward_adapter_scores_as_the_reward_model_alone(sources: tuple[ModelSource, ModelSource]) -> None:
    policy, reward = sources
    tokenizer = load_tokenizer(policy)
    backbone = load_backbone(policy, TRAINING, AdapterConfig(r=8, alpha=8), tokenizer)
    mounted = mount(backbone, policy, reward)
    assert isinstance(mounted, MountedReward)
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(20, 4000, (n,), generator=generator).tolist() for n in (1, 3, 17, 40)]
    alone = scores_in_batches(load_trained_reward_model(reward, TRAINING), sequences, tokenizer.pad_token_id, 2)
    backbone.eval()
    together = mounted.scores([s[:1] for s in sequences], [s[1:] for s in sequences])
    assert together == pytest.approx(alone, abs=1e-5, rel=1e-5)
    assert max(alone) - min(alone) > 0.05
    plain = backbone.lm.get_base_model()
    with backbone.lm.disable_adapter():
        hidden = plain.base_model(torch.tensor([sequences[2]])).last_hidden_state[0, -1]
    assert abs(float(mounted.head(hidden)) - alone[2]) > 0.01  # the adapter has a part in it


def test_a_reward_model_that_scores_otherwise_than_when_saved_is_refused(
    sources: tuple[ModelSource, ModelSource],
) -> None:
    policy, reward = sources
    assert reward.folder is not None
    saved = (reward.folder / PROBE_FILE).read_text()
    probe = json.loads(saved)
    (reward.folder / PROBE_FILE).write_text(json.dumps(probe | {"values": [probe["values"][0] + 0.5]}))
    try:
        with pytest.raises(HandoffError, match="scores its probe"):
            mount(load_backbone(policy, TRAINING, AdapterConfig(r=8, alpha=8), load_tokenizer(policy)), policy, reward)
    finally:
        (reward.folder / PROBE_FILE).write_text(saved)


def write_run(folder: Path, tokens_per_pass: int) -> None:
    """The half of `test_two_processes_are_one` that each of two processes runs."""
    from safetensors.torch import save_file

    trainer = build_trainer(folder, **ONE_STEP_AN_EPOCH | {"batch": 6})
    trainer.tokens_per_pass = tokens_per_pass
    passes: list[tuple[int, list[int]]] = []  # how many this process needs, and the episodes of each that it takes
    cut = trainer._passes

    def watch(micro: MicroBatch) -> list[MicroBatch]:
        made = cut(micro)
        sequences = [[*p, *c] for p, c in zip(micro.prompts, micro.completions, strict=True)]
        needed = len(list(batches_by_tokens(sequences, tokens_per_pass)))
        passes.append((needed, [len(one.prompts) for one in made]))
        return made

    trainer._passes = watch
    before = trainer.evaluate()
    trainer.train()
    (folder / f"evaluated-{trainer.accelerator.process_index}.json").write_text(json.dumps(before))
    (folder / f"passes-{trainer.accelerator.process_index}.json").write_text(json.dumps(passes))
    assert trainer.accelerator.num_processes == 2
    with gathered(list(trainer.accelerator.unwrap_model(trainer.model).parameters())):
        weights = trained(trainer)
    if trainer.is_world_process_zero():
        (folder / "rows.json").write_text(json.dumps(logged(trainer)))
        save_file(weights, folder / "weights.safetensors")


if __name__ == "__main__":
    for budget in sys.argv[2:]:
        write_run(Path(sys.argv[1]) / budget, int(budget))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)  # as a stage's process ends: see tiebreak.command.launch

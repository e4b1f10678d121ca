"""The PPO stage: configuration, hand-offs, and the finish. See the package for the command."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, model_validator
from safetensors.torch import save_file
from transformers import TrainingArguments

from preference.ppo.backbone import Backbone, load_backbone
from preference.ppo.trainer import PPOSettings, PPOTrainer
from tiebreak.chat import encode_prompt
from tiebreak.config import AdapterConfig, SamplingConfig, StageConfig, TrainingConfig
from tiebreak.errors import ConfigError, DataError
from tiebreak.models import (
    ModelSource,
    adapter_of,
    find_model,
    gathered,
    load_tokenizer,
    require_same_tokenizer,
)
from tiebreak.records import Prompt, is_held_out, read_prompts
from tiebreak.runs import Run, say, start_run
from tiebreak.tracking import RunRecorder
from tiebreak.training import common_arguments, describe, drop_too_long, finish_adapter, last_metrics, train


class PPOConfig(StageConfig):
    """`tiebreak ppo`. Defaults marked N+ are from Huang et al. 2024."""

    policy: str
    """the policy to start from, which is also the reference: usually the SFT run"""
    reward_model: str
    """a finished reward run"""
    prompts: str
    """a prepare run, a file in TRL's prompt-only format, or hub:NAME@SPLIT"""
    adapter: AdapterConfig | None = None
    """null: the policy's own, gone on with; a policy without one gets the default"""
    training: TrainingConfig = TrainingConfig(learning_rate=3e-6)
    """per_device_batch_size × gradient_accumulation_steps episodes make one optimizer step on each process"""
    validation_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """of raw prompts that name no splits"""
    episodes_per_rollout: int = Field(default=64, ge=1)
    """completions drawn before each round of updates, over all processes"""
    rollouts: int = Field(default=100, ge=1)
    """training.max_steps, if set, stops earlier; training.epochs plays no part"""
    ppo_epochs: int = Field(default=4, ge=1)
    """passes over each rollout (N+)"""
    sampling: SamplingConfig = SamplingConfig(temperature=0.7, max_new_tokens=96)
    """temperature 0.7 (N+); log-probabilities are taken at this temperature too"""
    kl_coef: float = Field(default=0.05, ge=0.0)
    """weight of the KL to the reference in the reward (N+)"""
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    cliprange: float = Field(default=0.2, gt=0.0)
    cliprange_value: float = Field(default=0.2, gt=0.0)
    vf_coef: float = Field(default=0.1, ge=0.0)
    missing_eos_penalty: float = Field(default=1.0, ge=0.0)
    """taken from the (normalised) score of a completion that was cut off (N+)"""
    normalise_scores: bool = True
    """by mean and deviation of the scores of the policy's first completions (N+)"""
    whiten_rewards: bool = False
    """divide each rollout's rewards by their deviation, their mean kept; off as in N+ (Table 1)"""
    max_validation_prompts: int = Field(default=32, ge=0)

    @model_validator(mode="after")
    def _possible(self) -> PPOConfig:
        if self.sampling.top_k or self.sampling.top_p < 1.0:
            raise ValueError(
                "sampling: PPO needs top_k 0 and top_p 1; a cut distribution is not the one whose log-probabilities are "
                "learned from"
            )
        if self.sampling.temperature == 0.0:
            raise ValueError("sampling.temperature: PPO cannot explore with greedy sampling; 0.7 to 1.0 is usual")
        minibatch = self.training.per_device_batch_size * self.training.gradient_accumulation_steps
        if self.episodes_per_rollout % minibatch:
            raise ValueError(
                f"episodes_per_rollout ({self.episodes_per_rollout}) must be a multiple of per_device_batch_size × "
                f"gradient_accumulation_steps ({minibatch})"
            )
        return self


def train_ppo(config: PPOConfig) -> None:
    """The stage."""
    inputs = {"policy": config.policy, "reward_model": config.reward_model, "prompts": config.prompts}
    run = start_run(config, "ppo", inputs)
    if describe(run):
        return
    source, reward = find_model(config.policy), find_model(config.reward_model, kind="reward")
    tokenizer = load_tokenizer(source, config.training.trust_remote_code)
    require_same_tokenizer(
        tokenizer, load_tokenizer(reward), f"policy {config.policy} and reward model {config.reward_model}"
    )
    prompts, validation = split_prompts(config)
    encoded = encode(prompts, tokenizer, config)
    say(f"{len(encoded)} prompts; the first, as the policy sees it:", tokenizer.decode(encoded[0]), "")
    backbone = load_backbone(source, reward, config.training, config.adapter, tokenizer)
    say(
        "policy, reference and reward model share one backbone"
        if backbone.score_head is not None
        else "the reward model's base differs: it is held apart"
    )
    recorder = RunRecorder(run)
    args = build_ppo_args(config, run)
    trainer = PPOTrainer(
        backbone,
        args,
        ppo_settings(config, tokenizer.eos_token_id),
        encoded,
        encode(validation, tokenizer, config),
        run.folder / "score_scale.json",
    )
    train(trainer, run, recorder)
    save_value_head(trainer, run)
    finish_adapter(
        trainer,
        run,
        recorder,
        model=trainer.accelerator.unwrap_model(trainer.model).lm,
        tokenizer=tokenizer,
        source=source,
        kind="policy",
        adapter=adapter_of(source, config.adapter),
        probe_ids=probe_ids(encoded),
        metrics=last_metrics(
            run.folder,
            ("objective/kl", "objective/scores", "objective/rlhf_reward", "eval_objective/scores", "eval_objective/kl"),
        ),
        facts={
            "counts": {
                "prompts": len(encoded),
                "episodes": trainer.state.global_step // trainer.steps_per_rollout * config.episodes_per_rollout,
            },
            "kinds": reward_kinds(reward),
        },
        prompts=validation or prompts,
        sampling=config.sampling,
    )


def split_prompts(config: PPOConfig) -> tuple[list[Prompt], list[Prompt]]:
    """(train, validation), as prepared, or by a hash of the prompt where raw data names no splits."""
    training = read_prompts(config.prompts, ["train"])
    validation = read_prompts(config.prompts, ["validation"])
    if [p.id for p in training] == [p.id for p in validation]:
        training = [p for p in training if not is_held_out(p.id, config.validation_share)]
        validation = [p for p in validation if is_held_out(p.id, config.validation_share)]
    if not training:
        raise DataError(f"{config.prompts} has no prompt of the train split")
    return training, validation[: config.max_validation_prompts]


def encode(prompts: list[Prompt], tokenizer: Any, config: PPOConfig) -> list[list[int]]:
    """Token ids of the prompts that leave room for a completion."""
    encoded = [encode_prompt(tokenizer, prompt.messages) for prompt in prompts]
    room = config.training.max_length_tokens - config.sampling.max_new_tokens
    if room < 1:
        raise ConfigError(
            "training.max_length_tokens must exceed sampling.max_new_tokens: it holds prompt and completion"
        )
    return drop_too_long(encoded, [len(ids) for ids in encoded], room, "prompts")


def probe_ids(encoded: list[list[int]]) -> list[int]:
    """A few prompts in a row: text enough for the probe."""
    return [token for ids in encoded[:3] for token in ids]


def ppo_settings(config: PPOConfig, eos_id: int) -> PPOSettings:
    """The algorithm's part of the configuration."""
    return PPOSettings(
        episodes_per_rollout=config.episodes_per_rollout,
        ppo_epochs=config.ppo_epochs,
        kl_coef=config.kl_coef,
        gamma=config.gamma,
        lam=config.lam,
        cliprange=config.cliprange,
        cliprange_value=config.cliprange_value,
        vf_coef=config.vf_coef,
        whiten_rewards=config.whiten_rewards,
        missing_eos_penalty=config.missing_eos_penalty,
        normalise_scores=config.normalise_scores,
        sampling=config.sampling,
        seed=config.training.seed,
        eos_id=eos_id,
    )


def build_ppo_args(config: PPOConfig, run: Run) -> TrainingArguments:
    """transformers' arguments: steps counted in rollouts, checkpoints on their borders.

    Raises:
        ConfigError: the episodes cannot be shared out among the processes.
    """
    shared = common_arguments(config.training, run)
    probe = TrainingArguments(**shared)
    world = max(1, probe.world_size)
    minibatch = config.training.per_device_batch_size * config.training.gradient_accumulation_steps
    if config.episodes_per_rollout % (minibatch * world):
        raise ConfigError(
            f"episodes_per_rollout ({config.episodes_per_rollout}) must be a multiple of {world} processes × {minibatch} "
            "episodes an optimizer step"
        )
    steps_per_rollout = config.ppo_epochs * (config.episodes_per_rollout // (minibatch * world))
    whole = config.rollouts * steps_per_rollout
    return TrainingArguments(
        **shared
        | {
            "max_steps": min(whole, config.training.max_steps or whole),
            "logging_steps": min(steps_per_rollout, config.training.max_steps or steps_per_rollout),
            "save_steps": math.ceil(config.training.save_steps / steps_per_rollout) * steps_per_rollout,
            "eval_steps": config.training.eval_steps
            and math.ceil(config.training.eval_steps / steps_per_rollout) * steps_per_rollout,
            "adam_epsilon": 1e-5,  # Huang et al. 2024, 4.10
            "ignore_data_skip": True,  # the data set only counts
        }
    )


def save_value_head(trainer: PPOTrainer, run: Run) -> None:
    """Keep the critic beside the policy, for a run that goes on from it."""
    backbone: Backbone = trainer.accelerator.unwrap_model(trainer.model)
    with gathered(list(backbone.value_head.parameters())):
        state = {name: value.detach().cpu().clone() for name, value in backbone.value_head.state_dict().items()}
    if trainer.is_world_process_zero():
        save_file(state, run.final / "value_head.safetensors", metadata={"format": "pt"})


def reward_kinds(reward: ModelSource) -> list[str]:
    """The kinds of the judgments behind a reward model, carried on to every figure that rests on it."""
    import json

    if reward.folder is None:
        return []
    manifest = json.loads((reward.folder.parent / "manifest.json").read_text())
    return list(manifest.get("kinds", []))

"""The PPO stage: configuration, hand-offs, and the finish. See the package for the command."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from safetensors.torch import save_file
from transformers import TrainingArguments

from preference.ppo.backbone import VALUE_HEAD_FILE, Backbone, load_backbone
from preference.ppo.trainer import PPOSettings, PPOTrainer
from preference.rewards import MountedReward, Reward, RewardApart, RewardConfig, function_file, load_rewards
from tiebreak.chat import encode_prompt
from tiebreak.config import AdapterConfig, SamplingConfig, StageConfig, TrainingConfig
from tiebreak.errors import ConfigError, DataError
from tiebreak.models import adapter_of, find_model, gathered, load_tokenizer
from tiebreak.records import Prompt, is_held_out, read_prompts
from tiebreak.runs import Run, read_manifest, say, start_run
from tiebreak.tracking import RunRecorder
from tiebreak.training import common_arguments, describe, drop_too_long, finish_adapter, last_metrics, train


class PPOConfig(StageConfig):
    """`tiebreak ppo`. Defaults marked N+ are from Huang et al. 2024."""

    policy: str
    """the policy to start from, which is also the reference: usually the SFT run"""
    reward_model: str | None = None
    """a finished reward run, with weight 1"""
    rewards: list[RewardConfig] = []
    """further rewards, or all of them where reward_model is null: {model: RUN, weight: W} or {function:
    package.module:function, weight: W}"""
    prompts: str
    """a prepare run, a file in TRL's prompt-only format, or hub:NAME@SPLIT"""
    adapter: AdapterConfig | None = None
    """null: the policy's own, gone on with; a policy without one gets the default"""
    value_head: str | None = None
    """a finished PPO run whose critic to start from; null: one that says 0, the mean of the normalised scores"""
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
    """weight of the KL to the reference in the reward (N+), taken a token as log π − log π_ref (k1); where kl_target is
    set, its value at the start"""
    kl_target: float | None = Field(default=None, gt=0.0)
    """nats a completion that kl_coef is moved to hold the KL at (Ziegler et al. 2019); null: kl_coef is fixed. Control,
    and max_kl, read the KL by the steadier estimate k3, which must not stand in the reward: see preference/ppo/losses.py"""
    kl_horizon: int = Field(default=10_000, ge=1)
    """episodes in which kl_coef changes by a fifth at most"""
    max_kl: float | None = Field(default=None, gt=0.0)
    """stop where a rollout's KL to the reference, in nats a completion, is above this"""
    target_step_kl: float | None = Field(default=None, gt=0.0)
    """skip what is left of a rollout's updates once one of them is this far from the policy that sampled it, in nats a
    token (policy/approxkl_avg)"""
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    cliprange: float = Field(default=0.2, gt=0.0)
    cliprange_value: float = Field(default=0.2, gt=0.0)
    vf_coef: float = Field(default=0.1, ge=0.0)
    entropy_coef: float = Field(default=0.0, ge=0.0)
    """weight of the policy's entropy, in nats a token, which is added to what is maximised"""
    missing_eos_penalty: float = Field(default=1.0, ge=0.0)
    """taken from the (normalised) score of a completion that was cut off (N+)"""
    length_penalty: float = Field(default=0.0, ge=0.0)
    """taken from the (normalised) score for each token of a completion"""
    normalise_scores: bool = True
    """each reward by mean and deviation of its scores of the policy's first completions, before any training (N+)"""
    whiten_rewards: bool = False
    """divide each rollout's rewards by their deviation, their mean kept; off as in N+ (Table 1)"""
    whiten_advantages: bool = True
    """to mean 0 and deviation 1 over a rollout's tokens (N+)"""
    stop_when_all_cut_off: bool = True
    """refuse a rollout of which no completion ends within sampling.max_new_tokens"""
    max_validation_prompts: int = Field(default=32, ge=0)

    @model_validator(mode="after")
    def _possible(self) -> PPOConfig:
        if self.reward_model is None and not self.rewards:
            raise ValueError("reward_model: missing; name a finished reward run, or give rewards")
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

    @property
    def all_rewards(self) -> list[RewardConfig]:
        """reward_model and rewards as one list."""
        return [*([RewardConfig(model=self.reward_model)] if self.reward_model else []), *self.rewards]


def stage_inputs(config: PPOConfig) -> dict[str, str]:
    """What the stage reads, the files of reward functions included: their content is part of a run's identity."""
    inputs = {"policy": config.policy, "prompts": config.prompts}
    if config.reward_model:
        inputs["reward_model"] = config.reward_model
    for number, reward in enumerate(config.rewards):
        source = reward.model or function_file(reward.function or "")
        if source:
            inputs[f"rewards.{number}"] = source
    if config.value_head:
        inputs["value_head"] = config.value_head
    return inputs


def train_ppo(config: PPOConfig) -> None:
    """The stage."""
    run = start_run(config, "ppo", stage_inputs(config))
    if describe(run):
        return
    source = find_model(config.policy)
    tokenizer = load_tokenizer(source, config.training.trust_remote_code)
    prompts, validation = split_prompts(config)
    encoded, held_out = encode(prompts, tokenizer, config), encode(validation, tokenizer, config)
    say(f"{len(encoded)} prompts; the first, as the policy sees it:", tokenizer.decode(encoded[0][0]), "")
    backbone = load_backbone(source, config.training, config.adapter, tokenizer)
    if config.value_head:
        backbone.load_value_head(Path(config.value_head) / "final" / VALUE_HEAD_FILE)
    rewards = load_rewards(config.all_rewards, backbone, source, tokenizer, encoded + held_out, config.training)
    say(*(f"scored by {reward.name}, weight {reward.weight:g}{_where_held(reward)}" for reward in rewards))
    recorder = RunRecorder(run)
    trainer = PPOTrainer(
        backbone,
        build_ppo_args(config, run),
        ppo_settings(config, tokenizer.eos_token_id),
        rewards,
        [ids for ids, _ in encoded],
        [ids for ids, _ in held_out],
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
        probe_ids=probe_ids([ids for ids, _ in encoded]),
        metrics=last_metrics(
            run.folder,
            ("objective/kl", "objective/scores", "objective/rlhf_reward", "eval_objective/scores", "eval_objective/kl"),
        ),
        facts={
            "counts": {
                "prompts": len(encoded),
                "episodes": trainer.state.global_step // trainer.steps_per_rollout * config.episodes_per_rollout,
            },
            "kinds": reward_kinds(config),
        },
        prompts=validation or prompts,
        sampling=config.sampling,
    )


def _where_held(reward: Reward) -> str:
    if isinstance(reward, MountedReward):
        return ", on the policy's own backbone"
    return ", held apart, as its base or tokenizer differs" if isinstance(reward, RewardApart) else ""


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


def encode(prompts: list[Prompt], tokenizer: Any, config: PPOConfig) -> list[tuple[list[int], Prompt]]:
    """(token ids, prompt) of the prompts that leave room for a completion."""
    encoded = [(encode_prompt(tokenizer, prompt.messages), prompt) for prompt in prompts]
    room = config.training.max_length_tokens - config.sampling.max_new_tokens
    if room < 1:
        raise ConfigError(
            "training.max_length_tokens must exceed sampling.max_new_tokens: it holds prompt and completion"
        )
    return drop_too_long(encoded, [len(ids) for ids, _ in encoded], room, "prompts")


def probe_ids(encoded: list[list[int]]) -> list[int]:
    """A few prompts in a row: text enough for the probe."""
    return [token for ids in encoded[:3] for token in ids]


def ppo_settings(config: PPOConfig, eos_id: int) -> PPOSettings:
    """The algorithm's part of the configuration."""
    taken = {field.name for field in fields(PPOSettings)} - {"seed", "eos_id"}
    return PPOSettings(**{name: getattr(config, name) for name in taken}, seed=config.training.seed, eos_id=eos_id)


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
        save_file(state, run.final / VALUE_HEAD_FILE, metadata={"format": "pt"})


def reward_kinds(config: PPOConfig) -> list[str]:
    """The kinds of the judgments behind the reward models, carried on to every figure that rests on them."""
    models = [reward.model for reward in config.all_rewards if reward.model]
    return sorted({kind for model in models for kind in read_manifest(model).get("kinds", [])})

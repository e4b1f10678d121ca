"""The PPO stage: configuration, hand-offs, and the finish. See the package for the command."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator
from safetensors.torch import save_file
from transformers import TrainingArguments

from preference.guard import GUARD_INPUT, Guard, GuardConfig, build_guard, require_held_out
from preference.ppo.backbone import VALUE_HEAD_FILE, Backbone, load_backbone
from preference.ppo.loop import PPOSettings
from preference.ppo.trainer import PPOTrainer
from preference.ppo.vllm import VLLMConfig, VLLMSampler, require_vllm
from preference.rewards import MountedReward, Reward, RewardApart, RewardConfig, function_file, load_rewards
from tiebreak.chat import encode_prompt
from tiebreak.config import AdapterConfig, SamplingConfig, StageConfig, TrainingConfig
from tiebreak.errors import ConfigError, DataError
from tiebreak.models import (
    ModelSource,
    adapter_of,
    find_model,
    is_quantized,
    load_policy,
    load_tokenizer,
)
from tiebreak.passes import default_tokens_per_pass
from tiebreak.records import Prompt, is_held_out, read_prompts
from tiebreak.runs import Run, read_manifest, say, start_run
from tiebreak.sharding import gathered
from tiebreak.tracking import RunRecorder
from tiebreak.training import common_arguments, describe, drop_too_long, finish_adapter, last_metrics, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PPO_ALONE = (
    "value_head",
    "kl_target",
    "max_kl",
    "target_step_kl",
    "gamma",
    "lam",
    "cliprange_value",
    "vf_coef",
    "entropy_coef",
    "whiten_rewards",
)
"""Keys that only our own trainer knows."""


class PPOConfig(StageConfig):
    """`tiebreak ppo`. Defaults marked N+ are from Huang et al. 2024."""

    algorithm: Literal["ppo", "rloo", "grpo"] = "ppo"
    """ppo: our own, with a critic. rloo, grpo: TRL's trainers on the same rewards and rollouts; kl_coef is their beta (GRPO
    takes the KL from the loss, not from the reward), cliprange their epsilon, ppo_epochs their num_iterations, and
    whiten_advantages their normalisation (GRPO's: by the group's deviation)"""
    completions_per_prompt: int = Field(default=4, ge=2)
    """of a rollout, under rloo and grpo: what a completion is compared with"""
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
    vllm: VLLMConfig | None = None
    """draw rollouts by vLLM, on GPUs ({mode: server} or {mode: colocate}); null: by our own sampler, on the device that
    trains. sampling/logp_difference says how far vLLM's numbers are from the policy's"""
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
    guard: GuardConfig | None = None
    """keep the policy that a held-out reward model likes best, and stop when it is over-optimised"""

    @model_validator(mode="after")
    def _possible(self) -> PPOConfig:
        if self.algorithm != "ppo":
            meaningless = [k for k in PPO_ALONE if getattr(self, k) != type(self).model_fields[k].default]
            if meaningless:
                raise ValueError(f"{', '.join(meaningless)}: {self.algorithm} has no such thing; leave the default")
            if self.episodes_per_rollout % self.completions_per_prompt:
                raise ValueError(
                    f"episodes_per_rollout ({self.episodes_per_rollout}) must be a multiple of completions_per_prompt "
                    f"({self.completions_per_prompt})"
                )
        if self.guard is not None and self.guard.reward_model in [reward.model for reward in self.all_rewards]:
            raise ValueError(
                "guard.reward_model: it is what the policy learns from; give one of another seed and share of judgments"
            )
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
    if config.guard:
        inputs[GUARD_INPUT] = config.guard.reward_model
    return inputs


def train_ppo(config: PPOConfig) -> None:
    """The stage."""
    run = start_run(config, "ppo", stage_inputs(config))
    if describe(run):
        return
    source = find_model(config.policy)
    if config.vllm is not None:
        quantized = is_quantized(source, config.adapter)
        require_vllm(config.vllm, str(source.base_path), config.training.max_length_tokens, quantized)
    tokenizer = load_tokenizer(source, config.training.trust_remote_code)
    prompts, validation = split_prompts(config)
    encoded, held_out = encode(prompts, tokenizer, config), encode(validation, tokenizer, config)
    if config.guard is not None:
        require_held_out(run, len(held_out))
    say(f"{len(encoded)} prompts; the first, as the policy sees it:", tokenizer.decode(encoded[0][0]), "")
    recorder = RunRecorder(run)
    trainer = build_trainer(config, run, source, tokenizer, encoded, held_out)
    say(*(f"scored by {reward.name}, weight {reward.weight:g}{_where_held(reward)}" for reward in trainer.rewards))
    guard = watch(config, recorder, trainer, source, tokenizer, held_out)
    train(trainer, run, recorder)
    if config.algorithm == "ppo":
        save_value_head(trainer, run)
    finish_adapter(
        trainer,
        run,
        recorder,
        model=trainer.backbone.lm,
        tokenizer=tokenizer,
        source=source,
        kind="policy",
        adapter=adapter_of(source, config.adapter),
        probe_ids=probe_ids([ids for ids, _ in encoded]),
        metrics=last_metrics(
            run.folder,
            ("objective/kl", "objective/scores", "objective/rlhf_reward", "eval_objective/scores", "eval_objective/kl"),
            up_to=trainer.state.global_step,
        ),
        facts={
            "counts": {
                "prompts": len(encoded),
                "episodes": (guard.trained_steps if guard else trainer.state.global_step)
                // steps_per_rollout(config, trainer.args.world_size)
                * config.episodes_per_rollout,
            },
            "kinds": reward_kinds(config),
            **(guard.facts() if guard else {}),
        },
        prompts=validation or prompts,
        sampling=config.sampling,
    )


def watch(
    config: PPOConfig,
    recorder: RunRecorder,
    trainer: Any,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    held_out: list[tuple[list[int], Prompt]],
) -> Guard | None:
    """Let a held-out reward model say which policy to keep, if the configuration names one."""
    if config.guard is None:
        return None
    guard = build_guard(
        config.guard,
        recorder,
        backbone=trainer.backbone,
        source=source,
        tokenizer=tokenizer,
        prompts=held_out,
        sampling=config.sampling,
        training=config.training,
        learned_from=trainer.rewards,
    )
    guard.watch(trainer)
    return guard


def build_trainer(
    config: PPOConfig,
    run: Run,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    encoded: list[tuple[list[int], Prompt]],
    held_out: list[tuple[list[int], Prompt]],
) -> Any:
    """The algorithm's trainer, with its policy and everything that scores it."""
    settings = ppo_settings(config, tokenizer.eos_token_id)
    prompts, validation = [ids for ids, _ in encoded], [ids for ids, _ in held_out]
    trainer: Any
    if config.algorithm == "ppo":
        backbone = load_backbone(source, config.training, config.adapter, tokenizer)
        if config.value_head:
            backbone.load_value_head(Path(config.value_head) / "final" / VALUE_HEAD_FILE)
        trainer = PPOTrainer(backbone, build_ppo_args(config, run), settings, prompts, validation)
        trainer.tokens_per_pass = config.training.tokens_per_pass or default_tokens_per_pass(trainer.args.device)
    else:
        from preference.ppo.groups import build_group_trainer

        lm = load_policy(source, config.training, config.adapter, tokenizer)
        trainer = build_group_trainer(lm, build_group_args(config, run), settings, prompts, validation, tokenizer)
    trainer.rewards = load_rewards(
        config.all_rewards, trainer.backbone, source, tokenizer, encoded + held_out, config.training
    )
    if config.vllm is not None:
        trainer.vllm_sampler = VLLMSampler(
            config.vllm, trainer.backbone.lm, trainer.accelerator, tokenizer, str(source.base_path), config.training
        )
    return trainer


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


def steps_per_rollout(config: PPOConfig, world: int) -> int:
    """Optimizer steps that one rollout feeds.

    Raises:
        ConfigError: the episodes cannot be shared out among the processes.
    """
    minibatch = config.training.per_device_batch_size * config.training.gradient_accumulation_steps
    if config.episodes_per_rollout % (minibatch * world):
        raise ConfigError(
            f"episodes_per_rollout ({config.episodes_per_rollout}) must be a multiple of {world} processes × {minibatch} "
            "episodes an optimizer step"
        )
    return config.ppo_epochs * (config.episodes_per_rollout // (minibatch * world))


def rollout_arguments(config: PPOConfig, run: Run) -> dict[str, Any]:
    """transformers' arguments: steps counted in rollouts, checkpoints on their borders."""
    shared = common_arguments(config.training, run)
    steps = steps_per_rollout(config, max(1, TrainingArguments(**shared).world_size))
    whole = config.rollouts * steps
    evaluated, saved = config.training.eval_steps, config.training.save_steps
    return shared | {
        "max_steps": min(whole, config.training.max_steps or whole),
        "logging_steps": min(steps, config.training.max_steps or steps),
        "save_steps": math.ceil(saved / steps) * steps,
        "eval_steps": evaluated and math.ceil(evaluated / steps) * steps,
    }


def build_ppo_args(config: PPOConfig, run: Run) -> TrainingArguments:
    """The arguments of our own trainer."""
    return TrainingArguments(
        **rollout_arguments(config, run)
        | {
            "adam_epsilon": 1e-5,  # Huang et al. 2024, 4.10
            "ignore_data_skip": True,  # the data set only counts
        }
    )


def build_group_args(config: PPOConfig, run: Run) -> Any:
    """TRL's arguments for RLOO or GRPO."""
    from trl import GRPOConfig, RLOOConfig

    arguments = rollout_arguments(config, run) | {
        "num_generations": config.completions_per_prompt,
        "generation_batch_size": config.episodes_per_rollout,
        "num_iterations": config.ppo_epochs,
        "epsilon": config.cliprange,
        "beta": config.kl_coef,
        "max_completion_length": config.sampling.max_new_tokens,
        "temperature": config.sampling.temperature,
        "top_k": 0,
        "disable_dropout": True,
        "shuffle_dataset": False,
    }
    if config.algorithm == "rloo":
        return RLOOConfig(**arguments, normalize_advantages=config.whiten_advantages)
    return GRPOConfig(**arguments, scale_rewards="group" if config.whiten_advantages else "none")


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
    models += [config.guard.reward_model] if config.guard else []
    return sorted({kind for model in models for kind in read_manifest(model).get("kinds", [])})

"""The PPO stage: configuration, hand-offs, and the finish. See the package for the command."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import TrainingArguments

from preference.configuration import PPOConfig
from preference.policy.adapters import has_adapters
from preference.policy.backbone import VALUE_HEAD_FILE, Backbone, load_backbone
from preference.policy.overoptimisation import Guard, build_guard, require_held_out
from preference.policy.rewards import MountedReward, Reward, SeparateReward, find_function, load_rewards, readable
from preference.policy.vllm import VLLMSampler, require_vllm
from preference.ppo.loop import PPOSettings, ScoredLoop
from preference.ppo.trainer import PPOTrainer
from tiebreak.chat.chat import Chat, EncodedSequence
from tiebreak.chat.rows import encode_each
from tiebreak.command.launch import stage_main
from tiebreak.data.reading import read_prompts
from tiebreak.data.splits import partition
from tiebreak.errors import ConfigError, counted
from tiebreak.measures.yardsticks.instructions import read_instructions
from tiebreak.models.find import is_quantized
from tiebreak.models.load import adapter_of, load_copy, load_policy
from tiebreak.packed.positions import require_room
from tiebreak.packed.sharding import gathered
from tiebreak.records import Prompt
from tiebreak.runs.placement import of_process, require_own_pace
from tiebreak.runs.run import Run, read_manifest
from tiebreak.terminal import say
from tiebreak.tracking.recorder import RunRecorder
from tiebreak.training.passes import Passes
from tiebreak.training.skeleton import Rows, TrainedStage, train_stage
from tiebreak.training.stage import Products, common_arguments, drop_too_long

TokenisedPrompt = tuple[list[int], Prompt]
"""A prompt with its token ids."""


def train_ppo(config: PPOConfig) -> None:
    """The stage."""
    for function in config.function_names().values():
        find_function(function, config.config_folder)
    for reward in config.rewards:
        if reward.instructions is not None:
            read_instructions(reward.instructions)
    train_stage(PPO, config)


class PPO(TrainedStage[PPOConfig, Prompt, TokenisedPrompt]):
    """The stage while it works."""

    name, rows_name = "ppo", "prompts"
    guard: Guard | None = None

    def check(self) -> None:
        config = self.config
        require_own_pace("PPO")
        require_whole_copy(adapter_of(self.source, config.adapter).method, config.algorithm)
        if config.vllm is not None:
            quantized = is_quantized(self.source, config.adapter)
            if adapter_of(self.source, config.adapter).method == "full":
                raise ConfigError(
                    "vllm: it is sent an adapter's additions, and adapter.method: full has none; use {method: lora}, or "
                    "set vllm: null"
                )
            require_vllm(config.vllm, str(self.source.base_path), config.training.max_length_tokens, quantized)

    def read(self) -> tuple[list[Prompt], list[Prompt]]:
        prompts = read_prompts(self.config.prompts, ["train", "validation"], self.rules)
        training, validation = partition(prompts, lambda prompt: prompt.split)
        return training, validation[: self.config.max_validation_prompts]

    def encode(self, rows: list[Prompt], *, held_out: bool) -> list[TokenisedPrompt]:
        config = self.config
        judges = [reward.model for reward in config.all_rewards if reward.model]
        judges += [config.guard.reward_model] if config.guard else []
        rows = readable(rows, judges, self.chat, config.training, self.dropping)
        encoded = encode(rows, self.chat, config, self.dropping)
        if held_out and config.guard is not None:
            require_held_out(self.run, len(encoded))
        return encoded

    def example(self, row: TokenisedPrompt) -> EncodedSequence:
        ids, _ = row
        return EncodedSequence(ids, [0] * len(ids))

    def preflight(self, rows: list[TokenisedPrompt]) -> None:
        ids, _ = rows[0]
        say(f"{counted(len(rows), 'prompt')}; the first, as the policy sees it:", self.chat.tokenizer.decode(ids), "")

    def build(self, rows: Rows[TokenisedPrompt], recorder: RunRecorder) -> ScoredLoop:
        """The algorithm's trainer, with its rewards and its guard."""
        trainer = self._group_trainer(rows) if self.config.algorithm != "ppo" else self._ppo_trainer(rows)
        say(*(f"scored by {reward.name}, weight {reward.weight:g}{_where_held(reward)}" for reward in trainer.rewards))
        if self.config.guard is not None:
            self.guard = build_guard(
                self.config.guard,
                recorder,
                backbone=trainer.backbone,
                source=self.source,
                chat=self.chat,
                prompts=rows.validation,
                sampling=self.config.sampling,
                training=self.config.training,
                learned_from=trainer.rewards,
            )
            self.guard.watch(trainer)
        return trainer

    def _ppo_trainer(self, rows: Rows[TokenisedPrompt]) -> PPOTrainer:
        config = self.config
        backbone = load_backbone(
            self.source, config.training, config.adapter, self.chat.tokenizer, self.first_ids(rows)
        )
        self._require_room(backbone, rows)
        if config.value_head:
            backbone.load_value_head(Path(config.value_head) / "final" / VALUE_HEAD_FILE)
        return PPOTrainer(
            backbone,
            build_ppo_args(config, self.run),
            ppo_settings(config, self.chat.stop_ids),
            [ids for ids, _ in rows.train],
            [ids for ids, _ in rows.validation],
            **self._around_policy(rows),
        )

    def _group_trainer(self, rows: Rows[TokenisedPrompt]) -> ScoredLoop:
        from preference.ppo.groups import build_group_trainer

        config = self.config
        lm = load_policy(self.source, config.training, config.adapter, self.chat.tokenizer, self.first_ids(rows))
        self._require_room(lm, rows)
        whole = not has_adapters(lm)
        return build_group_trainer(
            lm,
            build_group_args(config, self.run),
            ppo_settings(config, self.chat.stop_ids),
            [ids for ids, _ in rows.train],
            [ids for ids, _ in rows.validation],
            self.chat.tokenizer,
            reference=load_copy(self.source, config.training) if whole else None,
            **self._around_policy(rows),
        )

    def _require_room(self, model: Any, rows: Rows[TokenisedPrompt]) -> None:
        ids = [ids for ids, _ in (*rows.train, *rows.validation)]
        require_room(model.config, ids, self.config.sampling.max_new_tokens)

    def _around_policy(self, rows: Rows[TokenisedPrompt]) -> dict[str, Any]:
        """Builders of the trainer's rewards and of vLLM's copy of the policy."""
        config, chat, source = self.config, self.chat, self.source
        asked, beside = [*rows.train, *rows.validation], config.config_folder

        def rewards(backbone: Backbone) -> list[Reward]:
            return load_rewards(config.all_rewards, backbone, source, chat, asked, config.training, beside)

        def sampler(backbone: Backbone, accelerator: Any) -> VLLMSampler:
            assert config.vllm is not None
            base = str(source.base_path)
            return VLLMSampler(config.vllm, backbone.lm, accelerator, chat.tokenizer, base, config.training)

        passes = Passes(config.training.tokens_per_pass)
        return {"rewards": rewards, "sampler": sampler if config.vllm else None, "passes": passes}

    def held_out_prompts(self) -> list[Prompt]:
        return list(self.data.validation)

    def model_of(self, trainer: Any) -> Any:
        return trainer.backbone.lm

    def probe_ids(self, rows: list[TokenisedPrompt]) -> list[int]:
        """Some prompts in a row: enough text for the probe."""
        return [token for ids, _ in rows[:3] for token in ids]

    def counts(self, rows: Rows[TokenisedPrompt], trainer: Any) -> dict[str, int]:
        trained = self.guard.trained_steps if self.guard else trainer.state.global_step
        rollouts = trained // steps_per_rollout(self.config, trainer.args.world_size)
        return {"prompts": len(rows.train), "episodes": rollouts * self.config.episodes_per_rollout}

    def facts(self, rows: Rows[TokenisedPrompt], trainer: Any) -> dict[str, Any]:
        return {"kinds": reward_kinds(self.config), **(self.guard.facts() if self.guard else {})}

    def save_beside(self, trainer: Any) -> None:
        if self.config.algorithm == "ppo":
            save_value_head(trainer, self.run)

    def products(self, rows: Rows[TokenisedPrompt]) -> Products:
        return Products(self.data.validation or self.data.train, self.config.sampling)


def require_whole_copy(method: str, algorithm: str) -> None:
    """Refuse a reference that TRL would call while DeepSpeed has its weights in shards.

    Raises:
        ConfigError: says what can be used instead.
    """
    if method == "full" and algorithm != "ppo" and of_process().distributed == "zero3":
        raise ConfigError(
            f"adapter.method: the reference of {algorithm} would be a second copy of full's weights, which ZeRO-3 does not "
            "gather here: use --accelerate zero2, {method: lora}, or algorithm: ppo"
        )


def _where_held(reward: Reward) -> str:
    if isinstance(reward, MountedReward):
        return ", on the policy's own backbone"
    return ", loaded separately: it has another base or tokenizer, or whole weights" * isinstance(
        reward, SeparateReward
    )


def encode(
    prompts: list[Prompt], chat: Chat, config: PPOConfig, dropping: Run | None = None
) -> list[tuple[list[int], Prompt]]:
    """(token ids, prompt) of the prompts that leave room for a completion."""
    each = encode_each(prompts, lambda prompt: chat.encode_prompt(prompt.messages, prompt.tools), "prompts", dropping)
    encoded = [(ids, prompt) for prompt, ids in each]
    room = config.training.max_length_tokens - config.sampling.max_new_tokens
    if room < 1:
        raise ConfigError(
            "training.max_length_tokens must exceed sampling.max_new_tokens: it holds prompt and completion"
        )
    return drop_too_long(encoded, [len(ids) for ids, _ in encoded], room, "prompts")


def ppo_settings(config: PPOConfig, stop_ids: tuple[int, ...]) -> PPOSettings:
    """The algorithm's part of the configuration."""
    taken = {field.name for field in fields(PPOSettings)} - {"seed", "stop_ids"}
    return PPOSettings(**{name: getattr(config, name) for name in taken}, seed=config.training.seed, stop_ids=stop_ids)


def steps_per_rollout(config: PPOConfig, world: int) -> int:
    """Optimizer steps per rollout.

    Raises:
        ConfigError: the episodes cannot be divided among the processes.
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
    """Save the critic beside the policy, for runs that continue it."""
    backbone: Backbone = trainer.accelerator.unwrap_model(trainer.model)
    with gathered(list(backbone.value_head.parameters())):
        state = {name: value.detach().cpu().clone() for name, value in backbone.value_head.state_dict().items()}
    if trainer.is_world_process_zero():
        save_file(state, run.final / VALUE_HEAD_FILE, metadata={"format": "pt"})


def reward_kinds(config: PPOConfig) -> list[str]:
    """The kinds of judgments behind the reward models, carried on to every figure."""
    models = [reward.model for reward in config.all_rewards if reward.model]
    models += [config.guard.reward_model] if config.guard else []
    return sorted({kind for model in models for kind in read_manifest(model).get("kinds", [])})


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak ppo`, or `python -m preference.ppo`."""
    stage_main("ppo", PPOConfig, train_ppo, arguments)


if __name__ == "__main__":
    main()

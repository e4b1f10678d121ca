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
from preference.policy.backbone import VALUE_HEAD_FILE, Backbone, load_backbone
from preference.policy.overoptimisation import Guard, build_guard, require_held_out
from preference.policy.rewards import MountedReward, Reward, RewardApart, find_function, load_rewards
from preference.policy.vllm import VLLMSampler, require_vllm
from preference.ppo.loop import PPOSettings
from preference.ppo.trainer import PPOTrainer
from tiebreak.command.launch import stage_main
from tiebreak.data.reading import Rules, read_prompts
from tiebreak.data.splits import partition
from tiebreak.errors import ConfigError, DataError
from tiebreak.models.chat import Chat, encode_each
from tiebreak.models.find import ModelSource, find_model
from tiebreak.models.load import adapter_of, is_quantized, load_policy
from tiebreak.models.tokenizers import load_chat
from tiebreak.packed.positions import require_room
from tiebreak.packed.sharding import gathered
from tiebreak.records import Prompt
from tiebreak.runs.run import Run, read_manifest, start_run, that_drops
from tiebreak.terminal import say
from tiebreak.tracking.recorder import RunRecorder
from tiebreak.training.passes import default_tokens_per_pass
from tiebreak.training.stage import common_arguments, describe, drop_too_long, finish_adapter, last_metrics, train


def train_ppo(config: PPOConfig) -> None:
    """The stage."""
    for function in config.function_names().values():
        find_function(function, config.config_folder)
    run = start_run(config, "ppo")
    if describe(run):
        return
    source = find_model(config.policy, trust_remote_code=config.training.trust_remote_code)
    if config.vllm is not None:
        quantized = is_quantized(source, config.adapter)
        require_vllm(config.vllm, str(source.base_path), config.training.max_length_tokens, quantized)
    chat = load_chat(source, config.chat, config.training.trust_remote_code)
    prompts, validation = split_prompts(config, Rules.of(run))
    encoded, held_out = (encode(some, chat, config, that_drops(run)) for some in (prompts, validation))
    if config.guard is not None:
        require_held_out(run, len(held_out))
    say(f"{len(encoded)} prompts; the first, as the policy sees it:", chat.tokenizer.decode(encoded[0][0]), "")
    recorder = RunRecorder(run)
    trainer = build_trainer(config, run, source, chat, encoded, held_out)
    say(*(f"scored by {reward.name}, weight {reward.weight:g}{_where_held(reward)}" for reward in trainer.rewards))
    guard = watch(config, recorder, trainer, source, chat, held_out)
    train(trainer, run, recorder)
    if config.algorithm == "ppo":
        save_value_head(trainer, run)
    finish_adapter(
        trainer,
        run,
        recorder,
        model=trainer.backbone.lm,
        chat=chat,
        source=source,
        kind="policy",
        adapter=adapter_of(source, config.adapter),
        probe_ids=probe_ids([ids for ids, _ in encoded]),
        metrics=last_metrics(run, up_to=trainer.state.global_step),
        facts={
            **trainer.path_facts(),
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
    chat: Chat,
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
        chat=chat,
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
    chat: Chat,
    encoded: list[tuple[list[int], Prompt]],
    held_out: list[tuple[list[int], Prompt]],
) -> Any:
    """The algorithm's trainer, with its policy and everything that scores it."""
    settings = ppo_settings(config, chat.stop_ids)
    prompts, validation = [ids for ids, _ in encoded], [ids for ids, _ in held_out]
    trainer: Any
    if config.algorithm == "ppo":
        backbone = load_backbone(source, config.training, config.adapter, chat.tokenizer)
        require_room(backbone.config, [*prompts, *validation], config.sampling.max_new_tokens)
        if config.value_head:
            backbone.load_value_head(Path(config.value_head) / "final" / VALUE_HEAD_FILE)
        trainer = PPOTrainer(backbone, build_ppo_args(config, run), settings, prompts, validation)
        trainer.tokens_per_pass = config.training.tokens_per_pass or default_tokens_per_pass(trainer.args.device)
        with trainer.accelerator.autocast():
            trainer.proof = backbone.prove(prompts, config.sampling.temperature)
    else:
        from preference.ppo.groups import build_group_trainer

        lm = load_policy(source, config.training, config.adapter, chat.tokenizer)
        require_room(lm.config, [*prompts, *validation], config.sampling.max_new_tokens)
        trainer = build_group_trainer(lm, build_group_args(config, run), settings, prompts, validation, chat.tokenizer)
        with trainer.accelerator.autocast():
            trainer.prove_path()
    trainer.rewards = load_rewards(
        config.all_rewards,
        trainer.backbone,
        source,
        chat,
        encoded + held_out,
        config.training,
        config.config_folder,
    )
    if config.vllm is not None:
        trainer.vllm_sampler = VLLMSampler(
            config.vllm,
            trainer.backbone.lm,
            trainer.accelerator,
            chat.tokenizer,
            str(source.base_path),
            config.training,
        )
    return trainer


def _where_held(reward: Reward) -> str:
    if isinstance(reward, MountedReward):
        return ", on the policy's own backbone"
    return ", held apart, as its base or tokenizer differs" if isinstance(reward, RewardApart) else ""


def split_prompts(config: PPOConfig, rules: Rules) -> tuple[list[Prompt], list[Prompt]]:
    """(train, validation)."""
    prompts = read_prompts(config.prompts, ["train", "validation"], rules)
    training, validation = partition(prompts, lambda prompt: prompt.split)
    if not training:
        raise DataError(f"{config.prompts} has no prompt of the train split")
    return training, validation[: config.max_validation_prompts]


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


def probe_ids(encoded: list[list[int]]) -> list[int]:
    """A few prompts in a row: text enough for the probe."""
    return [token for ids in encoded[:3] for token in ids]


def ppo_settings(config: PPOConfig, stop_ids: tuple[int, ...]) -> PPOSettings:
    """The algorithm's part of the configuration."""
    taken = {field.name for field in fields(PPOSettings)} - {"seed", "stop_ids"}
    return PPOSettings(**{name: getattr(config, name) for name in taken}, seed=config.training.seed, stop_ids=stop_ids)


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


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak ppo`, or `python -m preference.ppo`."""
    stage_main("ppo", PPOConfig, train_ppo, arguments)

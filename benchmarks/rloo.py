"""RLOO on a job of ppo.py's, ours and TRL's: gpu.py measures both.

The same on both sides: base weights, prompts, four completions of each, of exactly as many tokens, epochs, episodes an
optimizer step, temperature, LoRA adapter, KL coefficient, number format, and a reward that costs nothing: the share of
even token ids. Not the same: the draws.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import Measurement
from rollouts import Job, RolloutClock, report

GROUP = 4
"""completions of a prompt"""
NO_TOKEN = -1


class EvenShare:
    """The reward, and what it said of the first rollout."""

    name, weight = "even", 1.0

    def __init__(self, episodes: int) -> None:
        self.first: list[float] = []
        self._episodes = episodes

    def scores(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[float]:
        """As a reward of Tiebreak."""
        scored = [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completions]
        self.first += scored[: self._episodes - len(self.first)]
        return scored

    def of_trl(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        """As a reward function of TRL."""
        return self.scores([], completion_ids)


def rollout_steps(job: Job) -> int:
    """Optimizer steps of a rollout."""
    return job.ppo_epochs * job.minibatches


def ours(job: Job, folder: Path) -> Measurement:
    """Train in this process, as the stage does."""
    from preference.policy import rollout
    from preference.ppo.groups import OurRLOOTrainer
    from preference.ppo.train import PPOConfig, build_group_args, ppo_settings
    from tiebreak.config import AdapterConfig, SamplingConfig, TrainingConfig
    from tiebreak.models.find import find_model
    from tiebreak.models.load import load_policy
    from tiebreak.models.tokenizers import load_tokenizer
    from tiebreak.runs.run import Run, identify

    class TimedTrainer(OurRLOOTrainer):
        """Tells the clock when a rollout is assessed."""

        def roll_out(self, inputs: Any) -> Any:
            made = super().roll_out(inputs)
            clock.assessed()
            return made

    training = TrainingConfig(
        learning_rate=job.learning_rate,
        per_device_batch_size=job.episodes_a_step,
        warmup_share=0.0,
        precision=job.precision,  # type: ignore[arg-type]
    )
    config = PPOConfig(
        output="",
        algorithm="rloo",
        completions_per_prompt=GROUP,
        policy=job.model,
        reward_model="its own, below",
        prompts="",
        adapter=AdapterConfig(r=job.r, alpha=job.alpha),
        training=training,
        episodes_per_rollout=len(job.prompts),
        rollouts=job.rollouts + 1,
        ppo_epochs=job.ppo_epochs,
        sampling=SamplingConfig(temperature=job.temperature, max_new_tokens=job.response_tokens),
        kl_coef=job.kl_coef,
        missing_eos_penalty=0.0,
        normalise_scores=False,
        stop_when_all_cut_off=False,
    )
    args = build_group_args(config, Run(folder, identify(config, "ppo", {})))
    args.save_strategy, args.logging_steps, args.disable_tqdm = "no", 1, True
    source = find_model(job.model)
    tokenizer = load_tokenizer(source)
    clock = RolloutClock(job.rollouts, config.rollouts, rollout_steps(job))
    reward = EvenShare(len(job.prompts))
    trainer = TimedTrainer(
        load_policy(source, training, config.adapter, tokenizer),
        args,
        ppo_settings(config, (NO_TOKEN,)),
        job.prompts[::GROUP],
        [],
        tokenizer,
        rewards=lambda _: [reward],
    )
    return trained(trainer, clock, reward, job, lambda: _time_generation(rollout, clock))


def _time_generation(module: Any, clock: RolloutClock) -> None:
    module.sample_completions = clock.generating(module.sample_completions)


def theirs(job: Job, folder: Path) -> Measurement:
    """Train in this process with TRL's RLOOTrainer."""
    import torch
    import trl
    from datasets import Dataset
    from peft import LoraConfig

    from tiebreak.config import TrainingConfig
    from tiebreak.models.find import find_model
    from tiebreak.models.load import load_base
    from tiebreak.models.tokenizers import load_tokenizer

    source = find_model(job.model)
    tokenizer = load_tokenizer(source)
    clock = RolloutClock(job.rollouts, job.rollouts + 1, rollout_steps(job))
    reward = EvenShare(len(job.prompts))

    class TimedTrainer(trl.RLOOTrainer):  # type: ignore[misc]
        """Tells the clock of its phases."""

        def _generate_single_turn(self, *arguments: Any, **options: Any) -> Any:
            return clock.generating(super()._generate_single_turn)(*arguments, **options)

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            made = super()._generate_and_score_completions(inputs)
            clock.assessed()
            return made

    steps = (job.rollouts + 1) * rollout_steps(job)
    distinct = [tokenizer.decode(ids) for ids in job.prompts[::GROUP]]
    trainer = TimedTrainer(
        model=load_base(source, TrainingConfig(precision=job.precision)),  # type: ignore[arg-type]
        reward_funcs=reward.of_trl,
        args=trl.RLOOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=job.episodes_a_step,
            generation_batch_size=len(job.prompts),
            num_generations=GROUP,
            num_iterations=job.ppo_epochs,
            max_steps=steps,
            max_completion_length=job.response_tokens,
            generation_kwargs={"min_new_tokens": job.response_tokens},
            temperature=job.temperature,
            beta=job.kl_coef,
            learning_rate=job.learning_rate,
            bf16=job.precision == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=None,
            activation_checkpointing=False,
            shuffle_dataset=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": distinct * (job.rollouts + 1)}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=job.r, lora_alpha=job.alpha, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    return trained(trainer, clock, reward, job)


def trained(trainer: Any, clock: RolloutClock, reward: EvenShare, job: Job, begin: Any = lambda: None) -> Measurement:
    """Train, and report the first rollout's KL and scores."""
    begin()
    trainer.add_callback(clock)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "kl" in row]
    if not rows:
        sys.exit("RLOO logged no KL")
    return report(job, clock, [row["loss"] for row in rows], rows[0]["kl"], reward.first)

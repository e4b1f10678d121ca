"""TRL 1.12's PPOTrainer on a job of ppo.py's, which starts this in TRL 1.12's own environment.

    .bench/trl-1.12/bin/python benchmarks/ppo_trl.py JOB.json ANSWER.json

Set up as TRL's own example script does (examples/scripts/ppo/ppo.py), in float32: LoRA on the policy, the reference the
policy with its adapter off, the reward model and the value model classifiers with one label, the latter the reward model
over again, all of it trained. What is not said in the job is TRL's default.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from measuring import Measurement
from peft import LoraConfig
from rollouts import Job, RolloutClock, report, require_same_scores, write_report
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


def theirs(job: Job, folder: str) -> Measurement:
    """Train in this process."""
    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32)
    reward_model, value_model = (
        AutoModelForSequenceClassification.from_pretrained(job.reward_whole, num_labels=1, dtype=torch.float32)
        for _ in range(2)
    )
    require_same_scores(scores_of_prompts(reward_model, job, tokenizer.pad_token_id), job)
    clock = RolloutClock(job.rollouts, job.rollouts, calls_a_rollout=1)
    trainer = PPOTrainer(
        args=build_args(job, folder),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=Dataset.from_list([{"input_ids": prompt} for prompt in job.prompts]),
        callbacks=[clock],
        peft_config=LoraConfig(r=job.r, lora_alpha=job.alpha, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    scores: list[float] = []
    watch(clock, scores, reward_model, job, tokenizer.pad_token_id)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "objective/kl" in row]
    losses = [row["loss/policy_avg"] for row in rows]
    return report(job, clock, losses, rows[0]["objective/kl"], scores[: len(job.prompts)])


def build_args(job: Job, folder: str) -> PPOConfig:
    """A rollout is one batch of TRL's, cut into minibatches, each an optimizer step.

    As gradient_accumulation_steps the same number would come to one step an epoch: TRL's loop lets the optimizer step
    once in so many micro-batches, whatever minibatch they are of.
    """
    return PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=len(job.prompts),
        gradient_accumulation_steps=1,
        num_mini_batches=job.minibatches,
        total_episodes=job.rollouts * len(job.prompts),
        num_ppo_epochs=job.ppo_epochs,
        response_length=job.response_tokens,
        stop_token=None,
        temperature=job.temperature,
        kl_coef=job.kl_coef,
        learning_rate=job.learning_rate,
        num_sample_generations=0,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        seed=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


@torch.no_grad()
def scores_of_prompts(reward_model: Any, job: Job, pad_id: int) -> list[float]:
    """By the function that TRL's loop scores completions with, each alone."""
    reward_model.eval()
    given = [ppo_trainer.get_reward(reward_model, torch.tensor([p]), pad_id, len(p) - 1) for p in job.prompts]
    return [float(score) for _, score, _ in given]


def watch(clock: RolloutClock, scores: list[float], reward_model: Any, job: Job, pad_id: int) -> None:
    """Put the clock, and an ear for the reward model's scores, where TRL's loop calls functions of its module."""
    draw, score, whiten = ppo_trainer.batch_generation, ppo_trainer.get_reward, ppo_trainer.masked_whiten

    def drawn(model: Any, queries: torch.Tensor, *rest: Any) -> Any:
        answered, logits = draw(model, queries, *rest)
        completions = answered[:, queries.shape[1] :]
        if completions.shape[1] != job.response_tokens or bool((completions[:, -1] == pad_id).any()):
            sys.exit(f"a completion of TRL's is not of {job.response_tokens} tokens")
        return answered, logits

    def scored(model: Any, *rest: Any) -> Any:
        given = score(model, *rest)
        if model is reward_model:
            scores.extend(given[1].tolist())
        return given

    def whitened(*values: Any, **options: Any) -> Any:  # the advantages: the last thing before the updates
        done = whiten(*values, **options)
        clock.assessed()
        return done

    ppo_trainer.batch_generation = clock.generating(drawn)
    ppo_trainer.get_reward = scored
    ppo_trainer.masked_whiten = whitened


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        write_report(theirs(Job.read(Path(sys.argv[1])), scratch), Path(sys.argv[2]))

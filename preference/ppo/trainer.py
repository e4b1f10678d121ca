"""The PPO loop on transformers.Trainer, which handles accelerate, DeepSpeed, checkpoints, callbacks and logging.

To the trainer, the data set is one of optimizer steps. A rollout feeds `steps_per_rollout` of them: at the first,
completions are sampled and scored; then each step takes its micro-batches from the rollout. All randomness is seeded by
the step's number, and checkpoints fall on the border between two rollouts, so a resumed run has the same prompts,
completions and minibatches as an uninterrupted one. The loop's own state (the scores' scale, the KL coefficient) is in
each checkpoint, in `ppo_state.json`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from preference.policy.backbone import Backbone, Batch
from preference.policy.layout import batches_by_tokens
from preference.policy.rollout import Episodes, TokenRewards, to_rewards
from preference.policy.vllm import LOGP_DIFFERENCE
from preference.ppo.loop import PPOSettings, RewardsOf, SamplerOf, ScoredLoop, prompt_at
from preference.ppo.losses import generalised_advantages, next_kl_coef, policy_loss, value_loss, whiten
from tiebreak.packed.generation import row_seed
from tiebreak.packed.proof import Proof
from tiebreak.terminal import say
from tiebreak.training.allocator import give_back_memory
from tiebreak.training.passes import TOKENS_PER_PASS, Passes, cut_evenly, default_tokens_per_pass, more_to_come
from tiebreak.upstream import InputsHook


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch of the trainer. Tensors of shape (episodes, tokens)."""

    prompts: list[list[int]]
    completions: list[list[int]]
    batch: Batch
    old_logps: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    tokens_in_minibatch: float
    """over all micro-batches and processes of one optimizer step: the loss's denominator"""

    def of(self, rows: Sequence[int], backbone: Backbone) -> MicroBatch:
        """Some of its episodes."""
        prompts, completions = [self.prompts[r] for r in rows], [self.completions[r] for r in rows]
        batch = backbone.to_batch(prompts, completions)
        cells = (list(rows), slice(0, batch.mask.shape[1]))
        return MicroBatch(
            prompts,
            completions,
            batch,
            old_logps=self.old_logps[cells],
            old_values=self.old_values[cells],
            advantages=self.advantages[cells],
            returns=self.returns[cells],
            tokens_in_minibatch=self.tokens_in_minibatch,
        )


class Steps(Dataset[dict[str, int]]):
    """A data set that only counts: the steps take their data from rollouts."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"step": index}


class PPOTrainer(InputsHook, ScoredLoop, Trainer):
    """PPO on one backbone."""

    tokens_per_pass = TOKENS_PER_PASS

    def __init__(
        self,
        backbone: Backbone,
        args: TrainingArguments,
        settings: PPOSettings,
        prompts: Sequence[list[int]],
        validation_prompts: Sequence[list[int]],
        rewards: RewardsOf | None = None,
        sampler: SamplerOf | None = None,
        passes: Passes | None = None,
    ) -> None:
        """All but `args` are Tiebreak's.

        Args:
            rewards: makes the rewards.
            sampler: makes the rollouts' sampler; None: our own.
            passes: how updates are computed, proved before training; None: nothing is proved.
        """
        self._begin(settings, prompts, validation_prompts)
        self._queue: list[MicroBatch] = []
        self._queue_before_step: list[MicroBatch] = []
        self._shares: dict[str, list[float]] = defaultdict(list)
        self._rollout_means: dict[str, float] = {}
        self._rest_is_skipped = False
        world = max(1, args.world_size)
        steps = Steps(args.max_steps * args.gradient_accumulation_steps * args.per_device_train_batch_size * world)
        super().__init__(
            model=backbone,
            args=args,
            train_dataset=steps,
            eval_dataset=Steps(1) if validation_prompts else None,
            data_collator=lambda rows: {},
        )
        self.model_accepts_loss_kwargs = False
        if passes is not None:
            self.tokens_per_pass = passes.tokens or default_tokens_per_pass(self.args.device)
        self._complete(rewards, sampler, proved=passes is not None)

    def prove_path(self) -> Proof:
        """Verify the backbone's computation of log-probabilities."""
        proof: Proof = self.model.prove(self.prompts, self.settings.sampling.temperature)
        return proof

    @property
    def backbone(self) -> Backbone:
        """The policy for rollouts."""
        backbone: Backbone = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
        return backbone

    # --- sizes ---

    @property
    def episodes_here(self) -> int:
        """Episodes of a rollout on this process."""
        return self.settings.episodes_per_rollout // int(self.accelerator.num_processes)

    @property
    def minibatch_here(self) -> int:
        """Episodes of an optimizer step on this process."""
        return int(self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps)

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps per rollout."""
        return self.settings.ppo_epochs * (self.episodes_here // self.minibatch_here)

    # --- one rollout ---

    def prepare_inputs(self, inputs: Any) -> Any:
        """Already on the device: a rollout left them there."""
        return inputs

    def _roll_out(self) -> list[MicroBatch]:
        self._resume_generators()
        number = self.state.global_step // self.steps_per_rollout
        prompts, seeds = self._choose_prompts(number)
        episodes = self._sample_and_assess(prompts, seeds, self.draw)
        if self.vllm_sampler is not None:
            difference = self._check_sampler(episodes.logps, episodes.sampler_logps, episodes.mask)
            self._rollout_means[LOGP_DIFFERENCE] = difference
        self._check_first_kl(number, episodes)
        self._check_collapse(episodes.finished, episodes.lengths)
        self._set_scales(episodes.scores)
        rewards = to_rewards(episodes, self.shaping)
        kl = self._log_rollout(number, episodes, rewards)
        self._control_kl(kl)
        advantages, returns = self._advantages(episodes, rewards.tokens)
        self.model.train()
        give_back_memory()
        return self._to_micro_batches(number, episodes, advantages, returns)

    def _choose_prompts(self, number: int) -> tuple[list[list[int]], list[int]]:
        """This process's prompts of rollout `number`, with a seed each: every prompt once, then again in another order."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        first = number * self.settings.episodes_per_rollout
        places = range(first + rank, first + self.episodes_here * world, world)
        chosen = [self.prompts[prompt_at(place, len(self.prompts), self.settings.seed)] for place in places]
        return chosen, [row_seed(self.settings.seed, "rollout", place) for place in places]

    def _check_first_kl(self, number: int, episodes: Episodes) -> None:
        if number or not len(episodes):
            return
        self._require_same_policy(float(((episodes.logps - episodes.reference_logps).abs() * episodes.mask).max()))

    def _control_kl(self, kl: float) -> None:
        """After a rollout's rewards: update the coefficient, and stop if the policy is too far from the reference."""
        s = self.settings
        if s.kl_target is not None:
            coefficient = next_kl_coef(
                self.loop.kl_coef, kl, target=s.kl_target, horizon=s.kl_horizon, episodes=s.episodes_per_rollout
            )
            self.loop = replace(self.loop, kl_coef=coefficient)
        self._rest_is_skipped = s.max_kl is not None and kl > s.max_kl
        if self._rest_is_skipped:
            say(
                f"stopped at step {self.state.global_step}: the KL to the reference is {kl:.3f}, above max_kl ({s.max_kl})"
            )
            self.control.should_training_stop = True

    def _advantages(self, episodes: Episodes, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """(whitened advantages, returns). Rewards, where they are whitened, keep their mean (Huang et al. 2024, 4.8)."""
        s, mask = self.settings, episodes.mask
        if s.whiten_rewards:
            rewards = whiten(rewards, mask, *self._moments(rewards, mask), keep_mean=True)
        advantages, returns = generalised_advantages(rewards, episodes.values, mask, s.gamma, s.lam)
        if s.whiten_advantages:
            advantages = whiten(advantages, mask, *self._moments(advantages, mask))
        return advantages, returns

    def _moments(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over the tokens of all processes."""
        count = self.accelerator.reduce(mask.sum().float(), reduction="sum")
        mean = self.accelerator.reduce((values * mask).sum(), reduction="sum") / count
        variance = self.accelerator.reduce((((values - mean) ** 2) * mask).sum(), reduction="sum") / count
        return mean, variance

    def _to_micro_batches(
        self, number: int, episodes: Episodes, advantages: Tensor, returns: Tensor
    ) -> list[MicroBatch]:
        """The rollout's episodes, shuffled for each PPO epoch and split into micro-batches."""
        rank = self.accelerator.process_index
        minibatches: list[list[int]] = []
        for epoch in range(self.settings.ppo_epochs):
            seed = row_seed(self.settings.seed, "minibatches", number, epoch, rank)
            order = torch.randperm(len(episodes), generator=torch.Generator().manual_seed(seed)).tolist()
            minibatches += [
                order[start : start + self.minibatch_here] for start in range(0, len(order), self.minibatch_here)
            ]
        counts = torch.stack([episodes.mask[rows].sum().float() for rows in minibatches])
        counts = self.accelerator.reduce(counts, reduction="sum")
        size = self.args.per_device_train_batch_size
        return [
            self._micro_batch(episodes, advantages, returns, rows[start : start + size], float(tokens))
            for rows, tokens in zip(minibatches, counts, strict=True)
            for start in range(0, len(rows), size)
        ]

    def _micro_batch(
        self, episodes: Episodes, advantages: Tensor, returns: Tensor, rows: list[int], tokens: float
    ) -> MicroBatch:
        backbone: Backbone = self.accelerator.unwrap_model(self.model)
        prompts, completions = [episodes.prompts[r] for r in rows], [episodes.completions[r] for r in rows]
        batch = backbone.to_batch(prompts, completions)
        width = batch.mask.shape[1]
        return MicroBatch(
            prompts,
            completions,
            batch,
            old_logps=episodes.logps[rows, :width],
            old_values=episodes.values[rows, :width],
            advantages=advantages[rows, :width],
            returns=returns[rows, :width],
            tokens_in_minibatch=tokens,
        )

    def _rest_of_rollout(self) -> dict[str, Any] | None:
        """The remaining micro-batches, and the figures of the finished ones for the next row of metrics."""
        within = len(self._queue) % self.args.gradient_accumulation_steps
        queue = self._queue_before_step if within else self._queue
        if not queue:
            return None
        kept = ("prompts", "completions", "old_logps", "old_values", "advantages", "returns", "tokens_in_minibatch")
        return {
            "queue": [{name: getattr(micro, name) for name in kept} for micro in queue],
            "skipped": self._rest_is_skipped,
            "means": self._rollout_means,
            "shares": dict(self._shares),
        }

    def _take_up_rest(self, rest: dict[str, Any]) -> None:
        backbone = self.backbone
        self._queue = [
            MicroBatch(batch=backbone.to_batch(one["prompts"], one["completions"]), **one) for one in rest["queue"]
        ]
        self._rest_is_skipped, self._rollout_means = rest["skipped"], rest["means"]
        self._shares = defaultdict(list, rest["shares"])

    # --- the update ---

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch; none once the rollout's rest is skipped, which leaves the weights unchanged.

        The optimizer skips parameters without a gradient, including their moments and weight decay.
        """
        with self._interruptible():
            return self._update(model)

    def _update(self, model: nn.Module) -> Tensor:
        self._resume_generators()
        if not self._queue:
            self._rest_is_skipped = False
            self._queue = self._roll_out()
        if not len(self._queue) % self.args.gradient_accumulation_steps:
            self._queue_before_step = list(self._queue)
        micro = self._queue.pop(0)
        if self._rest_is_skipped:
            return torch.zeros((), device=self.args.device)
        passes = self._passes(micro)
        losses = []
        for number, one in enumerate(passes, start=1):
            with nullcontext() if number == len(passes) else more_to_come(self.accelerator, model):
                losses.append(super().training_step(model, {"micro_batch": one}))
        for name, shares in self._shares.items():
            self._shares[name] = [*shares[: -len(passes)], sum(shares[-len(passes) :])]
        self._watch_step_kl()
        return torch.stack(losses).sum()

    def _passes(self, micro: MicroBatch) -> list[MicroBatch]:
        """The micro-batch, split by `tokens_per_pass`: its loss is a sum over its tokens."""
        sequences = [[*p, *c] for p, c in zip(micro.prompts, micro.completions, strict=True)]
        groups = list(batches_by_tokens(sequences, self.tokens_per_pass))
        numbers = self.accelerator.gather(torch.tensor([len(groups)], device=self.args.device))
        while len(groups) < int(numbers.max()):  # with sharded weights, processes synchronise in every pass
            groups.sort(key=len)
            longest = groups.pop()
            groups += cut_evenly(longest, 2)
        if len(groups) == 1:
            return [micro]
        return [micro.of(rows, self.backbone) for rows in groups]

    def _watch_step_kl(self) -> None:
        """Skip the rest of a rollout's updates once the policy is too far from the one that sampled it."""
        target = self.settings.target_step_kl
        shares = self._shares["policy/approxkl_avg"]
        accumulated = self.args.gradient_accumulation_steps
        if target is None or len(self._queue) % accumulated:
            return
        if self._over_processes(sum(shares[-accumulated:])) > target:
            self._rest_is_skipped = True

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The clipped losses of one micro-batch, scaled such that an optimizer step is the mean over its tokens.

        The trainer divides by the number of micro-batches and averages over processes; both are undone here, so that 1 × 8
        episodes and 8 × 1 are the same step.
        """
        micro: MicroBatch = inputs["micro_batch"]
        batch, s = micro.batch, self.settings
        logps, values, entropy = model(batch, s.sampling.temperature, s.entropy_coef > 0.0)
        policy = policy_loss(logps, micro.old_logps, micro.advantages, s.cliprange)
        value, value_clipped = value_loss(values, micro.old_values, micro.returns, s.cliprange_value)
        share = batch.mask / micro.tokens_in_minibatch
        for name, tokens in {
            "loss/policy_avg": policy.loss.detach(),
            "loss/value_avg": value.detach(),
            "policy/approxkl_avg": policy.approximate_kl,
            "policy/clipfrac_avg": policy.clipped,
            "val/clipfrac_avg": value_clipped,
            "policy/entropy_avg": entropy.detach(),
            "val/ratio": policy.ratio,
        }.items():
            self._shares[name].append(float((tokens * share).sum()))
        loss = ((policy.loss + s.vf_coef * value - s.entropy_coef * entropy) * share).sum()
        self.note_loss(loss, inputs)
        return loss * self.args.gradient_accumulation_steps * self.accelerator.num_processes

    # --- what is logged ---

    def _log_rollout(self, number: int, episodes: Episodes, rewards: TokenRewards) -> float:
        """Means over all processes' episodes, under the names of TRL's PPO trainer; returns the KL (k3) per completion."""
        for name, values in self._per_episode(episodes, rewards.shaped_scores).items():
            self._rollout_means[name] = float(self.accelerator.gather(values).mean())
        finished = self.accelerator.reduce(episodes.finished.sum(), reduction="sum")
        self._rollout_means["val/num_eos_tokens"] = float(finished)
        self._rollout_means["objective/kl_coef"] = self.loop.kl_coef
        self._rollout_means["episode"] = float((number + 1) * self.settings.episodes_per_rollout)
        return self._rollout_means["objective/kl_k3"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The trainer's log, plus the figures of the newest rollout and of the steps since the last log."""
        if self.state.max_steps:  # the trainer's own count starts over in a resumed run
            self.state.epoch = self.state.global_step / self.state.max_steps
        if "loss" in logs:
            logs |= self._rollout_means
            for name, shares in self._shares.items():
                steps = len(shares) / self.args.gradient_accumulation_steps
                logs[name] = self._over_processes(sum(shares)) / steps
            self._rollout_means.clear()
            self._shares.clear()
        super().log(logs, start_time)

    def _over_processes(self, share: float) -> float:
        """The sum of the local contributions to a mean over all tokens."""
        return float(sum(gather_object([share]))) if self.accelerator.num_processes > 1 else share

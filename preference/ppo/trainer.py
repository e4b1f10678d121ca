"""The PPO loop on transformers.Trainer, so that accelerate, DeepSpeed, checkpoints, callbacks and logging are its own.

The trainer believes it runs over a data set of optimizer steps. A rollout feeds `steps_per_rollout` of them: at the
first, completions are drawn and assessed; then each step takes its micro-batches from what the rollout left. Everything
random is seeded by the step's number, and checkpoints fall on the border between two rollouts, so a resumed run draws
the same prompts, completions and minibatches as an uncut one. What the loop itself has learned (the scores' scale, the
KL coefficient) is in each checkpoint, in `ppo_state.json`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from preference.ppo.backbone import Backbone, Batch
from preference.ppo.losses import generalised_advantages, next_kl_coef, policy_loss, value_loss, whiten
from preference.ppo.rollout import Episodes, Shaping, TokenRewards, roll_out, to_rewards
from preference.rewards import Reward, saved_scale
from tiebreak.config import SamplingConfig
from tiebreak.errors import HandoffError
from tiebreak.generation import row_seed
from tiebreak.models import gathered
from tiebreak.records import write_json
from tiebreak.runs import say

FIRST_KL_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.02}
TRAINABLE_FILE = "model.safetensors"
STATE_FILE = "ppo_state.json"


@dataclass(frozen=True)
class PPOSettings:
    """What the algorithm needs, its defaults as in Huang et al. 2024 (Table 1 and Section 4)."""

    episodes_per_rollout: int
    """over all processes"""
    ppo_epochs: int
    kl_coef: float
    kl_target: float | None
    """nats a completion; None: kl_coef is fixed"""
    kl_horizon: int
    max_kl: float | None
    target_step_kl: float | None
    gamma: float
    lam: float
    cliprange: float
    cliprange_value: float
    vf_coef: float
    entropy_coef: float
    whiten_rewards: bool
    whiten_advantages: bool
    missing_eos_penalty: float
    length_penalty: float
    normalise_scores: bool
    stop_when_all_cut_off: bool
    sampling: SamplingConfig
    seed: int
    eos_id: int


@dataclass(frozen=True)
class LoopState:
    """What the loop has learned so far, beside the weights."""

    kl_coef: float
    scales: tuple[tuple[float, float], ...] | None = None
    """(mean, standard deviation) of each reward on the first rollout, which the policy wrote before training"""


@dataclass(frozen=True)
class MicroBatch:
    """A forward and backward pass' worth of episodes. Tensors of shape (episodes, tokens)."""

    batch: Batch
    old_logps: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    tokens_in_minibatch: float
    """over all micro-batches and processes of one optimizer step: what the loss is divided by"""


class Steps(Dataset[dict[str, int]]):
    """A data set that only counts: the trainer's steps take their data from rollouts."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"step": index}


class PPOTrainer(Trainer):
    """PPO on one backbone."""

    def __init__(
        self,
        backbone: Backbone,
        args: TrainingArguments,
        settings: PPOSettings,
        rewards: Sequence[Reward],
        prompts: Sequence[list[int]],
        validation_prompts: Sequence[list[int]],
    ) -> None:
        self.settings = settings
        self.rewards = list(rewards)
        self.loop = LoopState(settings.kl_coef)
        self.prompts = list(prompts)
        self.validation_prompts = list(validation_prompts)
        self._queue: list[MicroBatch] = []
        self._shares: dict[str, list[float]] = defaultdict(list)
        self._rollout_means: dict[str, float] = {}
        self._rest_is_skipped = False
        self._resumed_from: str | None = None
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
        """Optimizer steps that one rollout feeds."""
        return self.settings.ppo_epochs * (self.episodes_here // self.minibatch_here)

    # --- one rollout ---

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Called by the trainer before each forward pass: hands it the next micro-batch."""
        if not self.model.training:
            return inputs
        if not self._queue:
            self._queue = self._roll_out()
        return {"micro_batch": self._queue.pop(0)}

    def _roll_out(self) -> list[MicroBatch]:
        if self._resumed_from is not None:
            # The trainer did so before it made its data loader, which draws a number: a reward function would see it.
            self._load_rng_state(self._resumed_from)
            self._resumed_from = None
        number = self.state.global_step // self.steps_per_rollout
        prompts, seeds = self._choose_prompts(number)
        episodes = self._sample_and_assess(prompts, seeds)
        self._check_first_kl(number, episodes)
        self._check_collapse(episodes)
        self._set_scales(episodes)
        rewards = to_rewards(episodes, self.shaping)
        kl = self._log_rollout(number, episodes, rewards)
        self._control_kl(kl)
        advantages, returns = self._advantages(episodes, rewards.tokens)
        self.model.train()
        return self._to_micro_batches(number, episodes, advantages, returns)

    def _choose_prompts(self, number: int) -> tuple[list[list[int]], list[int]]:
        """This process's prompts of rollout `number`, and a seed each: every prompt once, then anew in another order."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        first = number * self.settings.episodes_per_rollout
        places = range(first + rank, first + self.episodes_here * world, world)
        chosen = []
        for place in places:
            lap, within = divmod(place, len(self.prompts))
            order = torch.randperm(
                len(self.prompts), generator=torch.Generator().manual_seed(row_seed(self.settings.seed, "order", lap))
            )
            chosen.append(self.prompts[int(order[within])])
        return chosen, [row_seed(self.settings.seed, "rollout", place) for place in places]

    def _sample_and_assess(self, prompts: list[list[int]], seeds: list[int]) -> Episodes:
        backbone: Backbone = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
        backbone.eval()
        with whole_model(self.model_wrapped, backbone), self.accelerator.autocast():
            episodes: Episodes = roll_out(
                backbone, prompts, seeds, self.settings.sampling, self.rewards, eos_id=self.settings.eos_id
            )
        return episodes

    def _check_first_kl(self, number: int, episodes: Episodes) -> None:
        """Before the first update policy and reference are one model, so the KL between them is 0.

        Raises:
            HandoffError: it is not.
        """
        if number or not len(episodes):
            return
        worst = float(((episodes.logps - episodes.reference_logps).abs() * episodes.mask).max())
        name = "bfloat16" if self.args.bf16 else "float16" if self.args.fp16 else "float32"
        if not worst <= FIRST_KL_TOLERANCE[name]:
            raise HandoffError(
                f"the reference is not the policy that training starts from: before the first update their "
                f"log-probabilities differ by up to {worst:.3g} a token; nothing was trained"
            )

    def _check_collapse(self, episodes: Episodes) -> None:
        """Refuse to go on where there is nothing to learn from: no answer ends, or all of them end at once.

        Raises:
            HandoffError: saying which, and what to change.
        """
        step = self.state.global_step
        kept = f"the checkpoints before step {step} are kept" if step else "nothing was trained"
        ended, empty, count = (
            int(self.accelerator.reduce(number, reduction="sum"))
            for number in (
                episodes.finished.sum(),
                (episodes.finished & (episodes.lengths == 1)).sum(),
                torch.tensor(len(episodes), device=episodes.mask.device),
            )
        )
        if self.settings.stop_when_all_cut_off and not ended:
            raise HandoffError(
                f"all {count} completions of a rollout were cut off at sampling.max_new_tokens "
                f"({self.settings.sampling.max_new_tokens}): their scores say nothing of whole answers. Raise it, or train "
                f"the SFT policy on answers that end; or set stop_when_all_cut_off: false if they are meant to; {kept}"
            )
        if empty == count:
            raise HandoffError(
                f"all {count} completions of a rollout are an end-of-sequence token and nothing else: the policy has "
                f"collapsed. Lower training.learning_rate, raise kl_coef, or lower length_penalty; {kept}"
            )

    def _set_scales(self, episodes: Episodes) -> None:
        """Once, on the first rollout, which the policy wrote before any training: by what scores are normalised.

        Each reward is normalised alone, so that weights speak of rewards on one scale (Huang et al. 2024, 4.4). A reward
        that does not vary there has nothing to be divided by, and is only shifted. A reward model whose run was given
        samples of the policy says so itself, from more of them.
        """
        if self.loop.scales is not None:
            return
        scales = [(0.0, 1.0)] * len(self.rewards)
        if self.settings.normalise_scores:
            scores = self.accelerator.gather(episodes.scores.T.contiguous()).double()
            deviations = [float(d) for d in scores.std(0, correction=0)]
            measured = [
                (float(m), d if d > 1e-6 * max(1.0, abs(float(m))) else 1.0)
                for m, d in zip(scores.mean(0), deviations, strict=True)
            ]
            scales = [saved_scale(reward) or own for reward, own in zip(self.rewards, measured, strict=True)]
        self.loop = replace(self.loop, scales=tuple(scales))

    @property
    def shaping(self) -> Shaping:
        """How scores become rewards now."""
        s = self.settings
        return Shaping(
            weights=tuple(reward.weight for reward in self.rewards),
            scales=self.loop.scales or ((0.0, 1.0),) * len(self.rewards),
            missing_eos_penalty=s.missing_eos_penalty,
            length_penalty=s.length_penalty,
            kl_coef=self.loop.kl_coef,
        )

    def _control_kl(self, kl: float) -> None:
        """After a rollout's rewards: the coefficient for the next one, and an end where the policy has gone too far."""
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
        """The rollout's episodes in a new order each PPO epoch, cut into micro-batches."""
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
        batch = backbone.to_batch([episodes.prompts[r] for r in rows], [episodes.completions[r] for r in rows])
        width = batch.mask.shape[1]
        return MicroBatch(
            batch,
            old_logps=episodes.logps[rows, :width],
            old_values=episodes.values[rows, :width],
            advantages=advantages[rows, :width],
            returns=returns[rows, :width],
            tokens_in_minibatch=tokens,
        )

    # --- the update ---

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """A pass over one micro-batch; none once the rollout's rest is skipped, which leaves the weights as they are.

        Parameters without a gradient are passed over by the optimizer, its moments and weight decay included.
        """
        if not self._queue:
            self._rest_is_skipped = False
            self._queue = self._roll_out()
        if self._rest_is_skipped:
            self._queue.pop(0)
            return torch.zeros((), device=self.args.device)
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._watch_step_kl()
        return loss

    def _watch_step_kl(self) -> None:
        """Skip the rest of a rollout's updates once one of them has moved the policy too far from the one that sampled."""
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
        """The clipped losses of one micro-batch, so scaled that an optimizer step is the mean over its tokens.

        The trainer divides by the number of micro-batches and averages over processes; both are undone here, which makes
        1 × 8 episodes and 8 × 1 the same step.
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
        if not torch.isfinite(loss):
            raise HandoffError(
                f"PPO's loss is not a number at step {self.state.global_step}: lower training.learning_rate or raise "
                "kl_coef; the checkpoints before it are kept"
            )
        return loss * self.args.gradient_accumulation_steps * self.accelerator.num_processes

    # --- what is logged ---

    def _log_rollout(self, number: int, episodes: Episodes, rewards: TokenRewards) -> float:
        """Means over all processes' episodes, under the names of TRL's PPO trainer; returns the KL (k3) a completion."""
        for name, values in self._per_episode(episodes, rewards.shaped_scores).items():
            self._rollout_means[name] = float(self.accelerator.gather(values).mean())
        finished = self.accelerator.reduce(episodes.finished.sum(), reduction="sum")
        self._rollout_means["val/num_eos_tokens"] = float(finished)
        self._rollout_means["objective/kl_coef"] = self.loop.kl_coef
        self._rollout_means["episode"] = float((number + 1) * self.settings.episodes_per_rollout)
        return self._rollout_means["objective/kl_k3"]

    def _per_episode(self, episodes: Episodes, shaped_scores: Tensor) -> dict[str, Tensor]:
        kl = episodes.kl.sum(-1)
        weights = torch.tensor([reward.weight for reward in self.rewards], device=kl.device)
        each = {f"rewards/{r.name}/mean": scores for r, scores in zip(self.rewards, episodes.scores, strict=True)}
        return {
            "objective/kl": kl,
            "objective/kl_k3": episodes.kl_k3.sum(-1),
            "objective/entropy": (-episodes.logps * episodes.mask).sum(-1),
            "objective/non_score_reward": -self.loop.kl_coef * kl,
            "objective/scores": weights @ episodes.scores,
            "objective/rlhf_reward": shaped_scores - self.loop.kl_coef * kl,
            "completions/mean_length": episodes.lengths.float(),
            **(each if len(each) > 1 else {}),
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The trainer's log, with what the newest rollout and the steps since the last log gave."""
        if "loss" in logs:
            logs |= self._rollout_means
            for name, shares in self._shares.items():
                steps = len(shares) / self.args.gradient_accumulation_steps
                logs[name] = self._over_processes(sum(shares)) / steps
            self._rollout_means.clear()
            self._shares.clear()
        super().log(logs, start_time)

    def _over_processes(self, share: float) -> float:
        """The sum of what each process's tokens add to a mean over the tokens of all."""
        return float(sum(gather_object([share]))) if self.accelerator.num_processes > 1 else share

    @torch.no_grad()
    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Score and KL on the validation prompts, with the same seeds every time."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        whole = len(self.validation_prompts) - len(self.validation_prompts) % world or len(self.validation_prompts)
        mine = range(rank, max(whole, 1), world) if whole >= world else range(len(self.validation_prompts))
        prompts = [self.validation_prompts[i] for i in mine]
        episodes = self._sample_and_assess(prompts, [row_seed(self.settings.seed, "evaluation", i) for i in mine])
        figures = self._per_episode(episodes, to_rewards(episodes, self.shaping).shaped_scores)
        figures["unfinished"] = (~episodes.finished).float()
        metrics = {
            f"{metric_key_prefix}_{name}": float(self.accelerator.gather(values).mean())
            for name, values in figures.items()
        }
        metrics[f"{metric_key_prefix}_loss"] = -metrics[f"{metric_key_prefix}_objective/scores"]
        self.model.train()
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --- checkpoints ---

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """What trains: the policy's adapter and the value head. The rest is pinned by hash in the manifests."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        state = state_dict or self.model.state_dict()
        names = self.accelerator.unwrap_model(self.model).trainable_names()
        save_file(
            {name: state[name].detach().cpu().contiguous() for name in names if name in state},
            folder / TRAINABLE_FILE,
            metadata={"format": "pt"},
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            write_json(folder / STATE_FILE, asdict(self.loop))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        state = load_file(Path(resume_from_checkpoint) / TRAINABLE_FILE)
        backbone = self.accelerator.unwrap_model(model or self.model)
        missing = set(backbone.trainable_names()) - set(state)
        if missing:
            raise HandoffError(
                f"{resume_from_checkpoint} lacks {len(missing)} trained tensors: remove it, to go on from an earlier one"
            )
        backbone.load_state_dict(state, strict=False)
        self._resumed_from = resume_from_checkpoint
        loop = json.loads((Path(resume_from_checkpoint) / STATE_FILE).read_text())
        scales = tuple((float(mean), float(deviation)) for mean, deviation in loop["scales"])
        self.loop = LoopState(float(loop["kl_coef"]), scales)


@contextmanager
def whole_model(wrapped: nn.Module, backbone: nn.Module) -> Iterator[None]:
    """Under ZeRO-3, gather every shard once and call the modules plainly, with no gathering step by step.

    Processes sample different numbers of tokens, so the collective that a sharded forward pass needs would hang.
    """
    parameters = list(backbone.parameters())
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    from trl.models.utils import add_hooks, remove_hooks

    with gathered(parameters):
        remove_hooks(wrapped)
        try:
            yield
        finally:
            add_hooks(wrapped)

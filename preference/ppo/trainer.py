"""The PPO loop on transformers.Trainer, so that accelerate, DeepSpeed, checkpoints, callbacks and logging are its own.

The trainer believes it runs over a data set of optimizer steps. A rollout feeds `steps_per_rollout` of them: at the
first, completions are drawn and assessed; then each step takes its micro-batches from what the rollout left. Everything
random is seeded by the step's number, and checkpoints fall on the border between two rollouts, so a resumed run draws
the same prompts, completions and minibatches as an uncut one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from preference.ppo.backbone import Backbone
from preference.ppo.losses import generalised_advantages, policy_loss, value_loss, whiten
from preference.ppo.rollout import Batch, Episodes, Rewards, assess, to_batch, to_rewards
from tiebreak.config import SamplingConfig
from tiebreak.errors import HandoffError
from tiebreak.generation import row_seed, sample_completions
from tiebreak.models import gathered
from tiebreak.records import write_json

FIRST_KL_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.02}
TRAINABLE_FILE = "model.safetensors"


@dataclass(frozen=True)
class PPOSettings:
    """What the algorithm needs, its defaults as in Huang et al. 2024 (Table 1 and Section 4)."""

    episodes_per_rollout: int
    """over all processes"""
    ppo_epochs: int
    kl_coef: float
    gamma: float
    lam: float
    cliprange: float
    cliprange_value: float
    vf_coef: float
    whiten_rewards: bool
    missing_eos_penalty: float
    normalise_scores: bool
    sampling: SamplingConfig
    seed: int
    eos_id: int


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
        prompts: Sequence[list[int]],
        validation_prompts: Sequence[list[int]],
        state_file: Path,
    ) -> None:
        self.settings = settings
        self.prompts = list(prompts)
        self.validation_prompts = list(validation_prompts)
        self.state_file = state_file
        self._queue: list[MicroBatch] = []
        self._shares: dict[str, list[float]] = defaultdict(list)
        self._rollout_means: dict[str, float] = {}
        self._scale: tuple[float, float] | None = None
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
        number = self.state.global_step // self.steps_per_rollout
        prompts, seeds = self._choose_prompts(number)
        episodes = self._sample_and_assess(prompts, seeds)
        self._check_first_kl(number, episodes)
        rewards = self._rewards(episodes)
        self._log_rollout(number, episodes, rewards)
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
            sampled = sample_completions(
                backbone.lm,
                prompts,
                seeds,
                self.settings.sampling,
                eos_id=self.settings.eos_id,
                pad_id=backbone.pad_id,
                batch_size=max(len(prompts), 1),
            )
            episodes: Episodes = assess(
                backbone, prompts, sampled, self.args.per_device_train_batch_size, self.settings.sampling.temperature
            )
        _require_finite_scores(episodes)
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

    def _score_scale(self, episodes: Episodes) -> tuple[float, float]:
        """Mean and standard deviation of the scores of the first rollout, which the SFT policy wrote.

        Scores are normalised by them from then on (Huang et al. 2024, 4.4); kept beside the checkpoints.
        """
        if not self.settings.normalise_scores:
            return 0.0, 1.0
        if self._scale is None and self.state_file.exists():
            saved = json.loads(self.state_file.read_text())
            self._scale = saved["score_mean"], saved["score_std"]
        if self._scale is None:
            scores = self.accelerator.gather(episodes.scores)
            self._scale = float(scores.mean()), float(scores.std(correction=0))
            if self.is_world_process_zero():
                write_json(self.state_file, {"score_mean": self._scale[0], "score_std": self._scale[1]})
        return self._scale

    def _rewards(self, episodes: Episodes) -> Rewards:
        s = self.settings
        mean, std = self._score_scale(episodes)
        return to_rewards(
            episodes,
            score_mean=mean,
            score_std=std,
            missing_eos_penalty=s.missing_eos_penalty,
            kl_coef=s.kl_coef,
        )

    def _advantages(self, episodes: Episodes, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """(whitened advantages, returns). Rewards, where they are whitened, keep their mean (Huang et al. 2024, 4.8)."""
        s, mask = self.settings, episodes.mask
        if s.whiten_rewards:
            rewards = whiten(rewards, mask, *self._moments(rewards, mask), keep_mean=True)
        advantages, returns = generalised_advantages(rewards, episodes.values, mask, s.gamma, s.lam)
        return whiten(advantages, mask, *self._moments(advantages, mask)), returns

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
        batch = to_batch(
            [episodes.prompts[r] for r in rows],
            [episodes.completions[r] for r in rows],
            self.accelerator.unwrap_model(self.model).pad_id,
            episodes.logps.device,
        )
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

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The clipped losses of one micro-batch, so scaled that an optimizer step is the mean over its tokens.

        The trainer divides by the number of micro-batches and averages over processes; both are undone here, which makes
        1 × 8 episodes and 8 × 1 the same step.
        """
        micro: MicroBatch = inputs["micro_batch"]
        batch, s = micro.batch, self.settings
        logps, values, entropy = model(
            batch.input_ids, batch.attention_mask, batch.at, batch.mask, s.sampling.temperature
        )
        policy = policy_loss(logps, micro.old_logps, micro.advantages, s.cliprange)
        value, value_clipped = value_loss(values, micro.old_values, micro.returns, s.cliprange_value)
        share = batch.mask / micro.tokens_in_minibatch
        for name, tokens in {
            "loss/policy_avg": policy.loss.detach(),
            "loss/value_avg": value.detach(),
            "policy/approxkl_avg": policy.approximate_kl,
            "policy/clipfrac_avg": policy.clipped,
            "val/clipfrac_avg": value_clipped,
            "policy/entropy_avg": entropy,
            "val/ratio": policy.ratio,
        }.items():
            self._shares[name].append(float((tokens * share).sum()))
        loss = ((policy.loss + s.vf_coef * value) * share).sum()
        if not torch.isfinite(loss):
            raise HandoffError(
                f"PPO's loss is not a number at step {self.state.global_step}: lower training.learning_rate or raise "
                "kl_coef; the checkpoints before it are kept"
            )
        return loss * self.args.gradient_accumulation_steps * self.accelerator.num_processes

    # --- what is logged ---

    def _log_rollout(self, number: int, episodes: Episodes, rewards: Rewards) -> None:
        """Means over all processes' episodes, under the names of TRL's PPO trainer."""
        per_episode = self._per_episode(episodes, rewards.kl, rewards.shaped_scores)
        for name, values in per_episode.items():
            self._rollout_means[name] = float(self.accelerator.gather(values).mean())
        finished = self.accelerator.reduce(episodes.finished.sum(), reduction="sum")
        self._rollout_means["val/num_eos_tokens"] = float(finished)
        self._rollout_means["episode"] = float((number + 1) * self.settings.episodes_per_rollout)

    def _per_episode(self, episodes: Episodes, kl: Tensor, shaped_scores: Tensor) -> dict[str, Tensor]:
        non_score = -self.settings.kl_coef * kl.sum(-1)
        return {
            "objective/kl": (episodes.logps - episodes.reference_logps).mul(episodes.mask).sum(-1),
            "objective/entropy": (-episodes.logps * episodes.mask).sum(-1),
            "objective/non_score_reward": non_score,
            "objective/scores": episodes.scores,
            "objective/rlhf_reward": shaped_scores + non_score,
            "completions/mean_length": episodes.mask.sum(-1).float(),
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
        kl = (episodes.logps - episodes.reference_logps) * episodes.mask
        figures = self._per_episode(episodes, kl, episodes.scores)
        figures["unfinished"] = (~episodes.finished).float()
        metrics = {
            f"{metric_key_prefix}_{name}": float(self.accelerator.gather(values).mean())
            for name, values in figures.items()
            if name != "objective/rlhf_reward"
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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        state = load_file(Path(resume_from_checkpoint) / TRAINABLE_FILE)
        backbone = self.accelerator.unwrap_model(model or self.model)
        missing = set(backbone.trainable_names()) - set(state)
        if missing:
            raise HandoffError(
                f"{resume_from_checkpoint} lacks {len(missing)} trained tensors: remove it, to go on from an earlier one"
            )
        backbone.load_state_dict(state, strict=False)


def _require_finite_scores(episodes: Episodes) -> None:
    """Refuse to learn from scores that are not numbers.

    Raises:
        HandoffError: saying how many.
    """
    broken = int((~episodes.scores.isfinite()).sum())
    if broken:
        raise HandoffError(
            f"the reward model gave {broken} of {len(episodes)} completions a score that is not a finite number; nothing "
            "was learned from them: look at the reward run's metrics, and train it again at a lower learning rate"
        )


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

"""Common parts of PPO, RLOO and GRPO: scored completions, evaluation on held-out prompts, checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from preference.policy.adapters import trainable_names
from preference.policy.backbone import Backbone
from preference.policy.rewards import Reward, SeparateReward, saved_scale
from preference.policy.rollout import Draw, Episodes, Shaping, draw_seeded, roll_out, to_rewards
from preference.policy.vllm import VLLMSampler
from tiebreak.config import SamplingConfig
from tiebreak.errors import HandoffError
from tiebreak.files import write_json
from tiebreak.packed.generation import NotFiniteError, row_seed
from tiebreak.packed.proof import Proof
from tiebreak.packed.sharding import at_own_pace
from tiebreak.process.stopping import StepStopped, interruptible
from tiebreak.training.callbacks import requested_of_any
from tiebreak.training.trainer import StageTrainer
from tiebreak.upstream import CheckpointHooks, load_generators

FIRST_KL_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.02}
TRAINABLE_FILE = "model.safetensors"
STATE_FILE = "ppo_state.json"
REST_FILE = "rollout-{}.pt"
"""per process: the rest of a rollout in which a signal stopped the run"""

T = TypeVar("T")
RewardsOf = Callable[[Backbone], list[Reward]]
"""Makes the rewards, which may be mounted on the policy."""
SamplerOf = Callable[[Backbone, Accelerator], VLLMSampler]


@dataclass(frozen=True)
class PPOSettings:
    """The algorithm's settings, with defaults from Huang et al. 2024 (Table 1 and Section 4)."""

    episodes_per_rollout: int
    """over all processes"""
    ppo_epochs: int
    kl_coef: float
    kl_target: float | None
    """nats per completion; None: kl_coef is fixed"""
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
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class LoopState:
    """The loop's state besides the weights."""

    kl_coef: float
    scales: tuple[tuple[float, float], ...] | None = None
    """(mean, standard deviation) of each reward on the first rollout, from before training"""


class ScoredLoop(StageTrainer, CheckpointHooks):
    """Mixin for trainers whose completions are scored."""

    settings: PPOSettings
    rewards: list[Reward]
    prompts: list[list[int]]
    validation_prompts: list[list[int]]
    loop: LoopState
    vllm_sampler: VLLMSampler | None = None
    """samples the rollouts; None: our own sampler, which always samples for held-out prompts"""
    control: Any
    _resumed_from: str | None = None

    @property
    def backbone(self) -> Backbone:
        """The policy for rollouts."""
        raise NotImplementedError

    @property
    def models_beside(self) -> Sequence[nn.Module]:
        """Models that hold weights of their own besides the policy's: the reference, reward models."""
        apart = [reward.model for reward in self.rewards if isinstance(reward, SeparateReward)]
        return [*self.backbone.models_beside, *apart]

    def _begin(
        self, settings: PPOSettings, prompts: Sequence[list[int]], validation_prompts: Sequence[list[int]]
    ) -> None:
        self.settings = settings
        self.prompts, self.validation_prompts = list(prompts), list(validation_prompts)
        self.loop = LoopState(settings.kl_coef)

    def _complete(self, rewards: RewardsOf | None, sampler: SamplerOf | None, *, proved: bool) -> None:
        """The end of a constructor: everything that depends on the placed policy."""
        if proved:
            with self.accelerator.autocast():
                self.proof = self.prove_path()
        self.rewards = rewards(self.backbone) if rewards else []
        if sampler is not None:
            self.vllm_sampler = sampler(self.backbone, self.accelerator)

    def prove_path(self) -> Proof:
        """Verify the path that computes log-probabilities.

        Raises:
            ModelError: no path agrees with the model's own forward.
        """
        raise NotImplementedError

    # --- completions and their scores ---

    @property
    def draw(self) -> Draw:
        """The rollouts' sampler."""
        return self.vllm_sampler or draw_seeded

    def _sample_and_assess(self, prompts: list[list[int]], seeds: list[int], draw: Draw = draw_seeded) -> Episodes:
        backbone = self.backbone
        backbone.eval()

        def sample() -> Episodes:
            with at_own_pace(self.model_wrapped, backbone), self.accelerator.autocast():
                episodes: Episodes = roll_out(
                    backbone,
                    prompts,
                    seeds,
                    self.settings.sampling,
                    self.rewards,
                    stop_ids=self.settings.stop_ids,
                    draw=draw,
                )
                return episodes

        try:
            episodes: Episodes = self._cut_short_by_signals(sample)
        except NotFiniteError as error:
            if not self.state.global_step:
                raise
            raise HandoffError(
                f"after step {self.state.global_step} the policy's probabilities are not finite numbers: lower "
                "training.learning_rate or raise kl_coef; the checkpoints before it are kept"
            ) from error
        return episodes

    def _cut_short_by_signals(self, sample: Callable[[], T]) -> T:
        """The result of `sample`. A signal ends it: no weight has changed since the checkpoint that is written then.

        Raises:
            StepStopped: on every process, if a signal reached one of them.
        """
        if self.accelerator.num_processes == 1:
            with interruptible(at_once=True):
                return sample()
        if self.vllm_sampler is not None:  # its processes exchange prompts and weights while sampling
            return sample()
        sampled: list[T] = []
        with suppress(StepStopped), interruptible(at_once=True):
            sampled.append(sample())
        if number := requested_of_any():
            raise StepStopped(number)
        return sampled[0]

    def _check_sampler(self, ours: Tensor, its: Tensor, mask: Tensor) -> float:
        """Difference of vLLM's log-probabilities from our own pass's, in nats per token, over all processes.

        The policy is pushed before every rollout, so the difference is only rounding. All of shape (completions, tokens).

        Raises:
            HandoffError: it is larger, so vLLM holds other weights than the policy.
        """
        sampler = self.vllm_sampler
        assert sampler is not None
        apart, tokens = self.accelerator.reduce(
            torch.stack([(ours - its).abs()[mask].double().sum(), mask.sum().double()]), reduction="sum"
        ).tolist()
        difference = float(apart / tokens)
        if not difference <= sampler.config.logp_tolerance:
            step = self.state.global_step
            raise HandoffError(
                f"vLLM does not sample from the trained policy: the log-probabilities of its completions differ from "
                f"the policy's by {difference:.3g} nats per token, but vllm.logp_tolerance is "
                f"{sampler.config.logp_tolerance:g}. "
                f"{sampler.what_to_serve}; "
                + (f"the checkpoints before step {step} are kept" if step else "nothing was trained")
            )
        return difference

    def _require_same_policy(self, difference: float) -> None:
        """Before the first update, policy and reference are the same model, so their KL is 0.

        Raises:
            HandoffError: it is not.
        """
        name = "bfloat16" if self.args.bf16 else "float16" if self.args.fp16 else "float32"
        if not difference <= FIRST_KL_TOLERANCE[name]:
            raise HandoffError(
                f"the reference is not the policy that training starts from: before the first update their "
                f"log-probabilities differ by up to {difference:.3g} a token; nothing was trained"
            )

    def _check_collapse(self, finished: Tensor, lengths: Tensor) -> None:
        """Stop if there is nothing to learn from: no answer ends, or all end at once.

        Both arguments of shape (episodes,).

        Raises:
            HandoffError: names the case, and what to change.
        """
        step = self.state.global_step
        kept = f"the checkpoints before step {step} are kept" if step else "nothing was trained"
        ended, empty, count = (
            int(self.accelerator.reduce(number, reduction="sum"))
            for number in (
                finished.sum(),
                (finished & (lengths == 1)).sum(),
                torch.tensor(len(finished), device=finished.device),
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

    def _set_scales(self, scores: Tensor) -> None:
        """Once, on the first rollout, from before any training: the scores' normalisation.

        Each reward is normalised separately, so that weights apply to rewards on one scale (Huang et al. 2024, 4.4). A
        reward without variation there cannot be scaled, and is only shifted. A reward model whose run was given samples of
        the policy provides its own normalisation, from more of them.
        """
        if self.loop.scales is not None:
            return
        scales = [(0.0, 1.0)] * len(self.rewards)
        if self.settings.normalise_scores:
            everyones = self.accelerator.gather(scores.T.contiguous()).double()
            deviations = [float(d) for d in everyones.std(0, correction=0)]
            measured = [
                (float(m), d if d > 1e-6 * max(1.0, abs(float(m))) else 1.0)
                for m, d in zip(everyones.mean(0), deviations, strict=True)
            ]
            scales = [saved_scale(reward) or own for reward, own in zip(self.rewards, measured, strict=True)]
        self.loop = replace(self.loop, scales=tuple(scales))

    @property
    def shaping(self) -> Shaping:
        """The current conversion of scores to rewards."""
        s = self.settings
        return Shaping(
            weights=tuple(reward.weight for reward in self.rewards),
            scales=self.loop.scales or ((0.0, 1.0),) * len(self.rewards),
            missing_eos_penalty=s.missing_eos_penalty,
            length_penalty=s.length_penalty,
            kl_coef=self.loop.kl_coef,
        )

    def _resume_generators(self) -> None:
        """Once after resuming: restore every generator's state from the checkpoint.

        The trainer did so before it made its data loader, which draws a number: a reward function would notice.
        """
        if self._resumed_from is not None:
            load_generators(self, self._resumed_from)
            self._resumed_from = None

    # --- held-out prompts ---

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

    @torch.no_grad()
    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Score and KL on the validation prompts, with fixed seeds."""
        with self._interruptible_evaluation():
            return self._answer_held_out(metric_key_prefix)

    def _answer_held_out(self, metric_key_prefix: str) -> dict[str, float]:
        self._resume_generators()
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        count = len(self.validation_prompts)
        places = range(rank, math.ceil(count / world) * world, world)
        mine = [min(place, count - 1) for place in places]  # all processes answer as many: some the last prompt again
        first_time = torch.tensor([place < count for place in places], device=self.args.device)
        prompts = [self.validation_prompts[i] for i in mine]
        episodes = self._sample_and_assess(prompts, [row_seed(self.settings.seed, "evaluation", i) for i in mine])
        figures = self._per_episode(episodes, to_rewards(episodes, self.shaping).shaped_scores)
        figures["unfinished"] = (~episodes.finished).float()
        counted = self.accelerator.gather(first_time)
        metrics = {
            f"{metric_key_prefix}_{name}": float(self.accelerator.gather(values)[counted].mean())
            for name, values in figures.items()
        }
        metrics[f"{metric_key_prefix}_loss"] = -metrics[f"{metric_key_prefix}_objective/scores"]
        self.log(metrics)
        self.model.train()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --- checkpoints ---

    def save_weights(self, folder: str | None = None, state: dict[str, Any] | None = None) -> None:
        """The trained weights: the policy's adapter, and the value head. The manifests pin the rest by hash."""
        if not self.args.should_save:
            return
        written = Path(folder or self.args.output_dir)
        written.mkdir(parents=True, exist_ok=True)
        state = state or self.model.state_dict()
        names = trainable_names(self.accelerator.unwrap_model(self.model))
        save_file(
            {name: state[name].detach().cpu().contiguous() for name in names if name in state},
            written / TRAINABLE_FILE,
            metadata={"format": "pt"},
        )

    def save_whole_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super().save_whole_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            write_json(folder / STATE_FILE, asdict(self.loop))
        rest = self._rest_of_rollout()
        if rest is not None:
            torch.save(rest, folder / REST_FILE.format(self.accelerator.process_index))

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """The trainer's, plus the loop's state and rest of a rollout from the checkpoint, under DeepSpeed too."""
        if resume_from_checkpoint is not None:
            folder = Path(resume_from_checkpoint)
            self._resumed_from = resume_from_checkpoint
            loop = json.loads((folder / STATE_FILE).read_text())
            scales = tuple((float(mean), float(deviation)) for mean, deviation in loop["scales"])
            self.loop = LoopState(float(loop["kl_coef"]), scales)
            rest = folder / REST_FILE.format(self.accelerator.process_index)
            if rest.is_file():
                self._take_up_rest(torch.load(rest, map_location=self.accelerator.device, weights_only=True))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _rest_of_rollout(self) -> dict[str, Any] | None:
        """The rest of a rollout after the last whole optimizer step, None at its border: tensors, lists, numbers."""
        raise NotImplementedError

    def _take_up_rest(self, rest: dict[str, Any]) -> None:
        """Restore the result of `_rest_of_rollout`."""
        raise NotImplementedError

    def load_weights(self, checkpoint: str, model: nn.Module | None = None) -> None:
        state = load_file(Path(checkpoint) / TRAINABLE_FILE)
        model = self.accelerator.unwrap_model(model or self.model)
        missing = set(trainable_names(model)) - set(state)
        if missing:
            raise HandoffError(
                f"{checkpoint} lacks {len(missing)} trained tensors: remove it, to resume from an earlier one"
            )
        model.load_state_dict(state, strict=False)


def prompt_at(place: int, prompts: int, seed: int) -> int:
    """The index of the prompt at `place`: every prompt once, then again in another order."""
    lap, within = divmod(place, prompts)
    order = torch.randperm(prompts, generator=torch.Generator().manual_seed(row_seed(seed, "order", lap)))
    return int(order[within])

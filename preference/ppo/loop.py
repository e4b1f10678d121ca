"""What PPO, RLOO and GRPO share around their losses: scored completions, evaluation on held-out prompts, checkpoints."""

from __future__ import annotations

import json
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
from preference.policy.rewards import Reward, saved_scale
from preference.policy.rollout import Draw, Episodes, Shaping, draw_seeded, roll_out, to_rewards
from preference.policy.vllm import VLLMSampler
from tiebreak.config import SamplingConfig
from tiebreak.errors import HandoffError
from tiebreak.packed.generation import row_seed
from tiebreak.packed.proof import Proof
from tiebreak.packed.sharding import at_own_pace
from tiebreak.process.stopping import StepStopped, interruptible
from tiebreak.records import write_json
from tiebreak.training.callbacks import requested_of_any
from tiebreak.training.trainer import StageTrainer
from tiebreak.upstream import CheckpointHooks, load_generators

FIRST_KL_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.02}
TRAINABLE_FILE = "model.safetensors"
STATE_FILE = "ppo_state.json"
REST_FILE = "rollout-{}.pt"
"""of each process: what is left of a rollout, where a signal ended the run within it"""

T = TypeVar("T")
RewardsOf = Callable[[Backbone], list[Reward]]
"""Makes what scores completions, which may be mounted on the policy."""
SamplerOf = Callable[[Backbone, Accelerator], VLLMSampler]


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
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class LoopState:
    """What the loop has learned so far, beside the weights."""

    kl_coef: float
    scales: tuple[tuple[float, float], ...] | None = None
    """(mean, standard deviation) of each reward on the first rollout, which the policy wrote before training"""


class ScoredLoop(StageTrainer, CheckpointHooks):
    """A mixin for trainers whose completions are scored."""

    settings: PPOSettings
    rewards: list[Reward]
    prompts: list[list[int]]
    validation_prompts: list[list[int]]
    loop: LoopState
    vllm_sampler: VLLMSampler | None = None
    """draws the rollouts; None: our own sampler does, as it does for held-out prompts always"""
    control: Any
    _resumed_from: str | None = None

    @property
    def backbone(self) -> Backbone:
        """The policy as rollouts use it."""
        raise NotImplementedError

    def _begin(
        self, settings: PPOSettings, prompts: Sequence[list[int]], validation_prompts: Sequence[list[int]]
    ) -> None:
        self.settings = settings
        self.prompts, self.validation_prompts = list(prompts), list(validation_prompts)
        self.loop = LoopState(settings.kl_coef)

    def _complete(self, rewards: RewardsOf | None, sampler: SamplerOf | None, *, proved: bool) -> None:
        """The end of a constructor: all that stands on the policy as the trainer has placed it."""
        if proved:
            with self.accelerator.autocast():
                self.proof = self.prove_path()
        self.rewards = rewards(self.backbone) if rewards else []
        if sampler is not None:
            self.vllm_sampler = sampler(self.backbone, self.accelerator)

    def prove_path(self) -> Proof:
        """Prove the path by which log-probabilities are computed.

        Raises:
            ModelError: nothing computes as the model's own forward does.
        """
        raise NotImplementedError

    # --- completions and their scores ---

    @property
    def draw(self) -> Draw:
        """What draws the rollouts."""
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

        episodes: Episodes = self._cut_short_by_signals(sample)
        return episodes

    def _cut_short_by_signals(self, sample: Callable[[], T]) -> T:
        """What `sample` returns. A signal ends it: no weight has changed since the checkpoint that is written then.

        Raises:
            StepStopped: on every process, where a signal reached one of them.
        """
        if self.accelerator.num_processes == 1:
            with interruptible(at_once=True):
                return sample()
        if self.vllm_sampler is not None:  # its processes exchange prompts and weights as they sample
            return sample()
        sampled: list[T] = []
        with suppress(StepStopped), interruptible(at_once=True):
            sampled.append(sample())
        if number := requested_of_any():
            raise StepStopped(number)
        return sampled[0]

    def _check_sampler(self, ours: Tensor, its: Tensor, mask: Tensor) -> float:
        """How far vLLM's log-probabilities of what it drew are from our own pass', in nats a token, over all processes.

        The policy is pushed before every rollout, so in every rollout it is rounding alone. All of shape (completions,
        tokens).

        Raises:
            HandoffError: it is more than that, so vLLM holds other weights than the policy.
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
                f"vLLM does not draw from the policy that is trained: the log-probabilities of its completions differ from "
                f"the policy's by {difference:.3g} nats a token, and vllm.logp_tolerance is "
                f"{sampler.config.logp_tolerance:g}. "
                f"{sampler.what_to_serve}; "
                + (f"the checkpoints before step {step} are kept" if step else "nothing was trained")
            )
        return difference

    def _require_same_policy(self, difference: float) -> None:
        """Before the first update policy and reference are one model, so the KL between them is 0.

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
        """Refuse to go on where there is nothing to learn from: no answer ends, or all of them end at once.

        Both arguments of shape (episodes,).

        Raises:
            HandoffError: saying which, and what to change.
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
        """Once, on the first rollout, which the policy wrote before any training: by what scores are normalised.

        Each reward is normalised alone, so that weights speak of rewards on one scale (Huang et al. 2024, 4.4). A reward
        that does not vary there has nothing to be divided by, and is only shifted. A reward model whose run was given
        samples of the policy says so itself, from more of them.
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
        """How scores become rewards now."""
        s = self.settings
        return Shaping(
            weights=tuple(reward.weight for reward in self.rewards),
            scales=self.loop.scales or ((0.0, 1.0),) * len(self.rewards),
            missing_eos_penalty=s.missing_eos_penalty,
            length_penalty=s.length_penalty,
            kl_coef=self.loop.kl_coef,
        )

    def _resume_generators(self) -> None:
        """Once after resuming: every generator's state, as it was when the checkpoint was written.

        The trainer did so before it made its data loader, which draws a number: a reward function would see it.
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
        """Score and KL on the validation prompts, with the same seeds every time."""
        with self._interruptible_evaluation():
            return self._answer_held_out(metric_key_prefix)

    def _answer_held_out(self, metric_key_prefix: str) -> dict[str, float]:
        self._resume_generators()
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
        self.log(metrics)
        self.model.train()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --- checkpoints ---

    def save_weights(self, folder: str | None = None, state: dict[str, Any] | None = None) -> None:
        """What trains: the policy's adapter, and the value head. The rest is pinned by hash in the manifests."""
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
        """The trainer's, from a checkpoint with what the loop had learned and left by then, under DeepSpeed too."""
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
        """What is left of a rollout after the last whole optimizer step, None at its border: tensors, lists, numbers."""
        raise NotImplementedError

    def _take_up_rest(self, rest: dict[str, Any]) -> None:
        """What `_rest_of_rollout` gave."""
        raise NotImplementedError

    def load_weights(self, checkpoint: str, model: nn.Module | None = None) -> None:
        state = load_file(Path(checkpoint) / TRAINABLE_FILE)
        model = self.accelerator.unwrap_model(model or self.model)
        missing = set(trainable_names(model)) - set(state)
        if missing:
            raise HandoffError(
                f"{checkpoint} lacks {len(missing)} trained tensors: remove it, to go on from an earlier one"
            )
        model.load_state_dict(state, strict=False)


def prompt_at(place: int, prompts: int, seed: int) -> int:
    """The number of the prompt that comes at `place`: every prompt once, then anew in another order."""
    lap, within = divmod(place, prompts)
    order = torch.randperm(prompts, generator=torch.Generator().manual_seed(row_seed(seed, "order", lap)))
    return int(order[within])

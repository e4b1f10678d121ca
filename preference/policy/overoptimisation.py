"""The guard against over-optimisation: a held-out reward model chooses the checkpoint to keep.

    guard: {reward_model: runs/quickstart/reward-held-out, eval_every_steps: 8, patience: 3}

A policy trained against one reward model learns to please that model more than the people behind it: at some distance
from the reference, the score still rises while answers get worse (Gao et al. 2023). So a second reward model, with another
seed and another share of the judgments, regularly scores the policy's answers to the validation prompts, and at both ends
of the run. The policy with its highest score is kept, not the last one, and training stops once its score has fallen
`patience` times in a row while the training's own score rose. The final evaluation's yardstick has no part in the choice.

Its history, and the weights it would keep, are in every checkpoint, so a resumed run decides as an uninterrupted one.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from preference.configuration import GUARD_INPUT, GuardConfig
from preference.policy.adapters import REFERENCE, trainable_names
from preference.policy.backbone import Backbone
from preference.policy.rewards import Conversations, Reward, load_reward
from preference.policy.rollout import roll_out
from tiebreak.chat.chat import Chat
from tiebreak.config import OptimizerConfig, SamplingConfig
from tiebreak.errors import ConfigError, HandoffError
from tiebreak.files import write_json
from tiebreak.models.find import ModelSource, find_model
from tiebreak.packed.generation import row_seed
from tiebreak.packed.positions import require_room
from tiebreak.packed.sharding import at_own_pace, gathered
from tiebreak.records import Prompt
from tiebreak.runs.placement import require_own_pace
from tiebreak.runs.run import Run
from tiebreak.terminal import is_main_process, say
from tiebreak.tracking.recorder import RunRecorder

if TYPE_CHECKING:
    from transformers import Trainer

HISTORY_FILE, BEST_FILE = "guard.json", "guard.safetensors"
"""of a checkpoint"""
MARGIN = "rewards/margins"
"""prefix of the figures that TRL's DPO maximises"""


@dataclass(frozen=True)
class Verdict:
    """The held-out reward model's verdict on a policy."""

    step: int
    score: float
    """its mean over the validation prompts"""
    kl: float
    """nats per completion, from the reference (k3, see preference.policy.token_rewards)"""
    training_score: float
    """the training's own score. PPO, RLOO and GRPO: the weighted sum of their rewards of the same completions. DPO: the
    margin of its implicit rewards, averaged over the log since the last verdict; 0 before the first step"""


@dataclass(frozen=True)
class GuardedPolicy:
    """Interface between the guard and the trained policy."""

    backbone: Backbone
    reward: Reward
    """the held-out reward model"""
    learned_from: Sequence[Reward]
    """the training's own rewards; none under DPO"""
    prompts: list[list[int]]
    sampling: SamplingConfig
    stop_ids: tuple[int, ...]
    seed: int


def best_of(history: Sequence[Verdict]) -> Verdict:
    """The verdict to keep: the highest score; the earliest of equals."""
    return max(history, key=lambda verdict: (verdict.score, -verdict.step))


def over_optimised(history: Sequence[Verdict], patience: int) -> bool:
    """Whether the held-out score has fallen `patience` times in a row while the training's own score rose."""
    if len(history) <= patience:
        return False
    last = history[-patience - 1 :]
    falling = all(after.score < before.score for before, after in itertools.pairwise(last))
    return falling and last[-1].training_score > last[0].training_score


class Guard(TrainerCallback):
    """Scores the policy before training, at regular steps and at the end; restores the best one."""

    def __init__(self, config: GuardConfig, policy: GuardedPolicy, recorder: RunRecorder) -> None:
        self.config, self.policy, self.recorder = config, policy, recorder
        self.history: list[Verdict] = []
        self.stopped_at: int | None = None
        """the step at which it stopped training, if it did"""
        self.trained_steps = 0
        """of the whole run, including verdicts after the kept policy"""
        self._best: dict[str, Tensor] = {}
        self._margins: list[float] = []
        self._trainer: Any = None

    def watch(self, trainer: Trainer) -> None:
        """Guard a trainer. Must come before the run's own callback, which marks checkpoints complete."""
        self._trainer = trainer
        trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse runs that are too short for the guard; restore its state from a checkpoint.

        Raises:
            ConfigError: the run ends before the first evaluation.
            HandoffError: the checkpoint lacks the guard's state.
        """
        if self.config.eval_every_steps > state.max_steps:
            raise ConfigError(
                f"guard.eval_every_steps ({self.config.eval_every_steps}) is more than the {state.max_steps} optimizer "
                "steps of this run, so the guard would evaluate only its two ends: lower it, or set guard: null; nothing "
                "was trained"
            )
        if state.global_step:
            self._resume(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.history:
            self._judge(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and MARGIN in logs:
            self._margins.append(float(logs[MARGIN]))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.config.eval_every_steps:
            return
        self._judge(state.global_step)
        if over_optimised(self.history, self.config.patience):
            self.stopped_at = state.global_step
            first, last = self.history[-self.config.patience - 1], self.history[-1]
            times = "once" if self.config.patience == 1 else f"{self.config.patience} times in a row"
            say(
                "",  # ends the progress line
                f"stopped at step {state.global_step}: the held-out score has fallen {times} "
                f"({first.score:.3f} to {last.score:.3f}) while the training's own rose "
                f"({first.training_score:.3f} to {last.training_score:.3f})",
            )
            control.should_training_stop = True
            control.should_save = False  # a run resumed from here would continue training

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if is_main_process():
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            state = {"history": [asdict(verdict) for verdict in self.history], "margins": self._margins}
            write_json(folder / HISTORY_FILE, state)
            save_file(self._best, folder / BEST_FILE, metadata={"format": "pt"})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trained_steps = state.global_step
        if not self.history or self.history[-1].step != state.global_step:
            self._judge(state.global_step)
        kept, last = best_of(self.history), self.history[-1]
        if kept is not last:
            self._put_back()
            state.global_step = kept.step  # the policy is that step's again, and so are all later measurements
        say(
            "",
            f"kept the policy of step {kept.step}: held-out score {kept.score:.3f} at a KL of {kept.kl:.2f}"
            + (f" (the last, of step {last.step}: {last.score:.3f} at {last.kl:.2f})" if kept is not last else ""),
        )
        if not kept.step:
            say("the held-out reward model scored no step of this training higher than the initial policy")

    def facts(self) -> dict[str, Any]:
        """For the manifest: the kept policy, why training ended, and all verdicts."""
        return {
            "guard": {
                "kept": asdict(best_of(self.history)),
                "stopped_at_step": self.stopped_at,
                "patience": self.config.patience,
                "prompts": len(self.policy.prompts),
                "history": [asdict(verdict) for verdict in self.history],
            }
        }

    def _judge(self, step: int) -> None:
        started = time.monotonic()
        score, training_score, kl = self._measure()
        if not self.policy.learned_from:
            training_score = self._margin()
        self.history.append(Verdict(step, score, kl, training_score))
        if best_of(self.history) is self.history[-1]:
            self._keep()
        figures = {"guard/score": score, "guard/training_score": training_score, "guard/kl": kl}
        self.recorder.row(step, figures, beside_seconds=time.monotonic() - started)

    def _margin(self) -> float:
        """DPO's: single batches are noisy, so the mean since the last verdict; without new logs, that verdict's value."""
        margins, self._margins = self._margins, []
        if margins:
            return math.fsum(margins) / len(margins)
        return self.history[-1].training_score if self.history else 0.0

    @torch.no_grad()
    def _measure(self) -> tuple[float, float, float]:
        """(held-out score, training's score, KL), means over the prompts, which are divided among processes; fixed seed."""
        trainer, policy = self._trainer, self.policy
        world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        mine = range(rank, len(policy.prompts), world)
        training = policy.backbone.lm.training
        policy.backbone.eval()
        with at_own_pace(trainer.model_wrapped, policy.backbone), trainer.accelerator.autocast():
            sums = self._sums(mine) if mine else torch.zeros(4)
        policy.backbone.train(training)
        total = trainer.accelerator.reduce(sums.to(trainer.accelerator.device), reduction="sum")
        score, training_score, kl, count = total.tolist()
        return score / count, training_score / count, kl / count

    def _sums(self, numbers: Sequence[int]) -> Tensor:
        """Sums of scores, training's scores and KL over the prompts with these indices, and their number."""
        policy = self.policy
        episodes = roll_out(
            policy.backbone,
            [policy.prompts[number] for number in numbers],
            [row_seed(policy.seed, "guard", number) for number in numbers],
            policy.sampling,
            [policy.reward, *policy.learned_from],
            stop_ids=policy.stop_ids,
        )
        score, *others = episodes.scores.double().sum(-1).tolist()
        weighted = math.fsum(r.weight * s for r, s in zip(policy.learned_from, others, strict=True))
        return torch.tensor([score, weighted, float(episodes.kl_k3.sum()), len(numbers)])

    def _trained(self) -> dict[str, nn.Parameter]:
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        names = set(trainable_names(model))
        return {name: parameter for name, parameter in model.named_parameters() if name in names}

    def _keep(self) -> None:
        parameters = self._trained()
        with gathered(list(parameters.values())):
            self._best = {name: p.detach().to("cpu", copy=True).contiguous() for name, p in parameters.items()}

    def _put_back(self) -> None:
        parameters = self._trained()
        with gathered(list(parameters.values()), written=True), torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self._best[name])

    def _resume(self, checkpoint: Path) -> None:
        lacking = [name for name in (HISTORY_FILE, BEST_FILE) if not (checkpoint / name).is_file()]
        if lacking:
            raise HandoffError(
                f"{checkpoint} lacks the guard's state ({', '.join(lacking)}): remove it, to resume from an earlier one"
            )
        state = json.loads((checkpoint / HISTORY_FILE).read_text())
        self._best = load_file(checkpoint / BEST_FILE)
        self.history = [Verdict(**verdict) for verdict in state["history"]]
        self._margins = state["margins"]


def require_held_out(run: Run, prompts: int) -> None:
    """Check a run's guard before any model is loaded.

    Args:
        prompts: number of validation prompts.

    Raises:
        ConfigError: its reward model is also trained against, under whatever path; or there is nothing to score.
    """
    require_own_pace("the guard")
    judge = run.inputs[GUARD_INPUT]
    rewards = {name: one for name, one in run.inputs.items() if name == "reward_model" or name.startswith("rewards.")}
    same = [name for name, one in rewards.items() if one.id == judge.id]
    if same:
        raise ConfigError(
            f"guard.reward_model: {judge.source} is the same run as {same[0]} ({judge.id[:10]}), so it would "
            "like whatever the policy learns: give one with another seed and another share of the judgments"
        )
    if not prompts:
        raise ConfigError(
            "guard: there is no validation prompt for it to score: raise validation_share (or, for PPO, "
            "max_validation_prompts), give prompts of the validation split, or set guard: null"
        )


def build_guard(
    config: GuardConfig,
    recorder: RunRecorder,
    *,
    backbone: Backbone,
    source: ModelSource,
    chat: Chat,
    prompts: Sequence[tuple[list[int], Prompt]],
    sampling: SamplingConfig,
    training: OptimizerConfig,
    learned_from: Sequence[Reward] = (),
) -> Guard:
    """The guard of a run, its reward model mounted on the policy if possible.

    Args:
        prompts: (token ids, prompt) of the validation split.
        learned_from: the training's own rewards; none: DPO's logged margins.
    """
    chosen = list(prompts[: config.max_prompts])
    require_room(backbone.config, [ids for ids, _ in chosen], sampling.max_new_tokens)
    conversations = Conversations(chat, {tuple(ids): prompt for ids, prompt in chosen})
    found = find_model(config.reward_model, "reward", training.trust_remote_code)
    reward = load_reward(found, 1.0, backbone, source, conversations, training, "guard")
    policy = GuardedPolicy(
        backbone, reward, learned_from, [ids for ids, _ in chosen], sampling, chat.stop_ids, training.seed
    )
    return Guard(config, policy, recorder)


def reference_name(lm: Any) -> str:
    """The adapter with the initial policy: ours, or that of TRL's trainers."""
    return next(name for name in (REFERENCE, "ref") if name in lm.peft_config)

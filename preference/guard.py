"""The guard against over-optimisation: a reward model that training does not see says which checkpoint to keep.

    guard: {reward_model: runs/quickstart/reward-held-out, eval_every_steps: 8, patience: 3}

A policy trained against one reward model comes to please that model more than the people behind it: past some distance
from the reference the score goes on rising while answers get worse (Gao et al. 2023). So a second reward model, of another
seed and another share of the judgments, scores the policy's answers to the validation prompts every so often. What is
kept is the policy that it liked best, not the last one, and training stops once its score has fallen `patience` times
running while the training's own has risen. The yardstick of the final evaluation has no part in the choice.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from preference.adapters import REFERENCE
from preference.ppo.backbone import Backbone
from preference.ppo.loop import trainable_names, whole_model
from preference.ppo.rollout import roll_out
from preference.rewards import Conversations, Reward, load_reward
from tiebreak.config import SamplingConfig, Section, TrainingConfig
from tiebreak.errors import ConfigError
from tiebreak.generation import row_seed
from tiebreak.models import ModelSource, find_model, gathered
from tiebreak.records import Prompt, write_json
from tiebreak.runs import Run, is_main_process, say
from tiebreak.tracking import RunRecorder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer


class GuardConfig(Section):
    """Which policy of a run to keep, and when to stop."""

    reward_model: str
    """a finished reward run that this training does not learn from: another seed, another share of the judgments"""
    eval_every_steps: int = Field(default=50, ge=1)
    """optimizer steps"""
    patience: int = Field(default=3, ge=1)
    """stop once its score has fallen so many times running while the training's own has risen"""
    max_prompts: int = Field(default=32, ge=1)
    """of the validation prompts"""


@dataclass(frozen=True)
class Verdict:
    """What the held-out reward model said of a policy."""

    step: int
    score: float
    """its mean over the validation prompts"""
    kl: float
    """nats a completion, from the reference"""
    training_score: float | None
    """what the training itself went by, when it was last logged"""


@dataclass(frozen=True)
class GuardedPolicy:
    """What the guard asks of the policy that trains."""

    backbone: Backbone
    reward: Reward
    prompts: list[list[int]]
    sampling: SamplingConfig
    eos_id: int
    seed: int


def best_of(history: Sequence[Verdict]) -> Verdict:
    """The verdict to keep: the highest score, and the earlier of equals."""
    return max(history, key=lambda verdict: (verdict.score, -verdict.step))


def over_optimised(history: Sequence[Verdict], patience: int) -> bool:
    """Whether the held-out score has fallen `patience` times running while the training's own score has risen."""
    if len(history) <= patience:
        return False
    last = history[-patience - 1 :]
    falling = all(after.score < before.score for before, after in itertools.pairwise(last))
    first, newest = last[0].training_score, last[-1].training_score
    return falling and newest is not None and (first is None or newest > first)


class Guard(TrainerCallback):
    """Scores the policy before training and every so many steps, keeps the best, and puts it back at the end."""

    def __init__(
        self, config: GuardConfig, policy: GuardedPolicy, run: Run, recorder: RunRecorder, score_key: str
    ) -> None:
        self.config, self.policy, self.recorder, self.score_key = config, policy, recorder, score_key
        self.file, self.weights = run.folder / "guard.json", run.folder / "guard.safetensors"
        self.history: list[Verdict] = []
        self.trainer: Trainer | None = None
        self._training_score: float | None = None

    def watch(self, trainer: Trainer) -> None:
        """Guard a trainer."""
        self.trainer = trainer
        trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.file.exists() and state.global_step:
            told = [Verdict(**verdict) for verdict in json.loads(self.file.read_text())]
            self.history = [verdict for verdict in told if verdict.step <= state.global_step]
        logged = [row[self.score_key] for row in state.log_history if self.score_key in row]
        self._training_score = logged[-1] if logged else None

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
        if logs and self.score_key in logs:
            self._training_score = float(logs[self.score_key])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.config.eval_every_steps:
            return
        self._judge(state.global_step)
        if over_optimised(self.history, self.config.patience):
            say(
                f"stopped at step {state.global_step}: the held-out score has fallen {self.config.patience} times running "
                "while the training's own rose"
            )
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kept = best_of(self.history)
        if kept.step != state.global_step:
            self._put_back()
        say(
            f"kept the policy of step {kept.step}: held-out score {kept.score:.3f} at a KL of {kept.kl:.2f}"
            + (f" (the last, of step {state.global_step}: {self.history[-1].score:.3f})" if kept.step else "")
        )
        if not kept.step:
            say("no step of this training was better by the held-out reward model than the policy it started from")

    def facts(self) -> dict[str, Any]:
        """For the manifest: what was kept, and what was said of every policy."""
        return {"guard": {"kept": asdict(best_of(self.history)), "history": [asdict(v) for v in self.history]}}

    def _judge(self, step: int) -> None:
        score, kl = self._measure()
        self.history.append(Verdict(step, score, kl, self._training_score))
        if best_of(self.history) is self.history[-1]:
            self._keep()
        if is_main_process():
            write_json(self.file, [asdict(verdict) for verdict in self.history])
        self.recorder.row(step, {"guard/score": score, "guard/kl": kl})

    @torch.no_grad()
    def _measure(self) -> tuple[float, float]:
        """Mean score and KL over the prompts, which processes share out; the same seeds every time."""
        trainer, policy = self._trainer, self.policy
        world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        mine = list(range(rank, len(policy.prompts), world)) or [0]
        training = policy.backbone.lm.training
        policy.backbone.eval()
        with whole_model(trainer.model_wrapped, policy.backbone), trainer.accelerator.autocast():
            episodes = roll_out(
                policy.backbone,
                [policy.prompts[number] for number in mine],
                [row_seed(policy.seed, "guard", number) for number in mine],
                policy.sampling,
                [policy.reward],
                eos_id=policy.eos_id,
            )
        policy.backbone.train(training)
        sums = torch.stack([episodes.scores.sum(), episodes.kl.sum(), torch.tensor(float(len(mine))).to(episodes.kl)])
        score, kl, count = trainer.accelerator.reduce(sums, reduction="sum").tolist()
        return score / count, kl / count

    @property
    def _trainer(self) -> Any:
        if self.trainer is None:
            raise ValueError("watch a trainer first")
        return self.trainer

    def _trained(self) -> dict[str, nn.Parameter]:
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        names = set(trainable_names(model))
        return {name: parameter for name, parameter in model.named_parameters() if name in names}

    def _keep(self) -> None:
        parameters = self._trained()
        with gathered(list(parameters.values())):
            state = {name: p.detach().to("cpu", copy=True).contiguous() for name, p in parameters.items()}
        if is_main_process():
            temporary = self.weights.with_suffix(".tmp")
            save_file(state, temporary, metadata={"format": "pt"})
            temporary.replace(self.weights)

    def _put_back(self) -> None:
        self._trainer.accelerator.wait_for_everyone()
        state = load_file(self.weights)
        parameters = self._trained()
        with gathered(list(parameters.values())), torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])


def build_guard(
    config: GuardConfig,
    run: Run,
    recorder: RunRecorder,
    *,
    backbone: Backbone,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[list[int], Prompt]],
    sampling: SamplingConfig,
    training: TrainingConfig,
    score_key: str,
) -> Guard:
    """The guard of a run, its reward model mounted on the policy where that can be.

    Args:
        prompts: (token ids, prompt) of the validation split.
        score_key: what the training goes by, as it is logged.

    Raises:
        ConfigError: there are no validation prompts.
    """
    if not prompts:
        raise ConfigError("guard: there is no validation prompt to score: raise validation_share, or set guard: null")
    chosen = list(prompts[: config.max_prompts])
    told = Conversations(tokenizer, {tuple(ids): prompt.messages for ids, prompt in chosen})
    found = find_model(config.reward_model, kind="reward")
    reward = load_reward(found, 1.0, backbone, source, told, training, "guard")
    policy = GuardedPolicy(
        backbone, reward, [ids for ids, _ in chosen], sampling, tokenizer.eos_token_id, training.seed
    )
    return Guard(config, policy, run, recorder, score_key)


def reference_name(lm: Any) -> str:
    """The adapter that holds the policy as it was: ours, or the one that TRL's trainers make."""
    return next(name for name in (REFERENCE, "ref") if name in lm.peft_config)

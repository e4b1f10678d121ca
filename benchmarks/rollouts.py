"""What the two sides of the PPO case share: the job they are given, the clock they are timed by, the report.

Imports nothing of Tiebreak: ppo_trl.py uses it in an environment that does not have it.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measuring import Clock, Measurement, now, product_rate

SAME_SCORE = {"float32": 1e-3, "bfloat16": 0.05}
"""of its size, where that is above 1"""


@dataclass(frozen=True)
class Job:
    """One PPO run, in words that both sides understand. Defaults are those of both, where both have one."""

    model: str
    """as our command line names it"""
    base: str
    """the folder of its weights, in safetensors"""
    tokenizer: str
    reward_adapter: str
    """the reward model as our reward stage saves it"""
    reward_whole: str
    """the same one with its adapter merged into a sequence classifier, as TRL takes it"""
    prompts: list[list[int]]
    """an episode each, in every rollout"""
    scored: list[float]
    """what the reward model says of the prompts themselves: each side's must say the same"""
    episodes_a_step: int
    rollouts: int
    """that are timed, except for the first; ours takes one more, whose products are counted"""
    ppo_epochs: int = 4
    response_tokens: int = 32
    """of every completion exactly: on both sides the end-of-sequence token is a token like any other"""
    temperature: float = 0.7
    learning_rate: float = 3e-6
    kl_coef: float = 0.05
    r: int = 16
    alpha: int = 32
    precision: str = "float32"
    matrix_products: str = "torch"
    """ours"""

    @property
    def minibatches(self) -> int:
        """Optimizer steps of one epoch."""
        return len(self.prompts) // self.episodes_a_step

    @property
    def tokens(self) -> int:
        """Of all prompts and completions of a rollout."""
        return sum(len(prompt) + self.response_tokens for prompt in self.prompts)

    def write(self, file: Path) -> None:
        """To JSON."""
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> Job:
        """From JSON."""
        return cls(**json.loads(file.read_text()))


class RolloutClock(Clock):
    """Times rollouts with their updates, and the parts of each."""

    def __init__(self, timed: int, rollouts: int, calls_a_rollout: int) -> None:
        """`timed` of so many `rollouts`; `calls_a_rollout`: how often the trainer says that a step has ended, for each."""
        super().__init__(timed)
        self._rollouts = rollouts
        self.phases: list[dict[str, float]] = []
        self._calls_a_rollout = calls_a_rollout
        self._calls = 0
        self._generating = 0.0
        self._assessed = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        super().on_step_begin()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Nothing: a rollout's first step has begun when the one before it ended."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._calls += 1
        if self._calls % self._calls_a_rollout:
            return
        ended, started, generating = now(), self._started, self._generating
        self.phases.append(
            {"generate": generating, "assess": self._assessed - started - generating, "update": ended - self._assessed}
        )
        super().on_step_end()
        self._generating = 0.0
        if self._calls < self._rollouts * self._calls_a_rollout:
            super().on_step_begin()

    def generating(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time is that of drawing completions."""

        def timed(*arguments: Any, **options: Any) -> Any:
            started = now()
            drawn = function(*arguments, **options)
            self._generating += now() - started
            return drawn

        return timed

    def assessed(self) -> None:
        """Called when all that the updates need is known."""
        self._assessed = now()


def require_same_scores(scores: Sequence[float], job: Job) -> None:
    """Refuse a reward model whose scores of the prompts, `scores`, are not those that the job gives."""
    for score, expected in zip(scores, job.scored, strict=True):
        if not abs(score - expected) <= SAME_SCORE[job.precision] * max(1.0, abs(expected)):
            sys.exit(
                f"the reward model of {job.reward_whole} scores a prompt {score:.6f} here, and {expected:.6f} where it was "
                "made: the two sides would not be given the same rewards"
            )


def report(
    job: Job, clock: RolloutClock, losses: list[float], first_kl: float, first_scores: list[float]
) -> Measurement:
    """What a side says at its end. `losses`: the policy's mean of each rollout."""
    seconds = statistics.median(clock.seconds[1:])
    phases = clock.phases[1 : len(clock.seconds)]
    return Measurement(
        losses=losses[: job.rollouts],
        step_seconds=seconds,
        setup_seconds=0.0,
        tokens_per_second=job.tokens / seconds,
        peak_mib=clock.peak_mib,
        padded_tokens_a_row=max(map(len, job.prompts)) + job.response_tokens,
        tokens_a_row=job.tokens / len(job.prompts),
        matrix_product_share=clock.products / seconds / product_rate() if clock.products else None,
        steps=clock.seconds,
        phases={name: statistics.median(phase[name] for phase in phases) for name in clock.phases[0]},
        first_rollout={
            "kl": first_kl,
            "score_mean": statistics.fmean(first_scores),
            "score_deviation": statistics.stdev(first_scores),
        },
    )


def write_report(measured: Measurement, file: Path) -> None:
    """To JSON."""
    file.write_text(json.dumps(asdict(measured)))

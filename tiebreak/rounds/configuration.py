"""The configuration of `tiebreak rounds`. It imports no model code, so that help and errors answer at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from tiebreak.command.pipeline import StageEntry
from tiebreak.config import Section, Tracker, check_duration

ORDER = ("sample", "judge", "select", "label", "reward", "dpo", "ppo", "evaluate")
Rival = Literal["previous", "sft", "base"]
NEEDED = ("sample", "select", "label", "evaluate")


class StopConfig(Section):
    """Stopping rules. The first that holds ends the rounds; `budget` and `rounds` always do."""

    win_rate_above: float | None = Field(default=None, ge=0.5, lt=1.0)
    """stop once the lower bound of the win rate against the starting policy is above this; null: never"""
    rounds_without_gain: int | None = Field(default=None, ge=1)
    """stop after this many rounds in a row in which the interval of the win rate against the previous policy is not
    above one half; null: never"""
    max_kl: float | None = Field(default=None, gt=0.0)
    """stop once the policy's KL from the starting policy exceeds this, in nats per answer; null: never"""
    judged_twice: int = Field(default=30, ge=2)
    """number of vote pairs that is enough to stop, before training on them, if raters' agreement is not above chance"""


class RoundsConfig(Section):
    """`tiebreak rounds`"""

    name: str
    """the recipe's name; W&B tags every run with it"""
    root: str
    """the folder for all rounds, such as ROOT/round-1/sample"""
    policy: str
    """the policy of the first round: usually a finished sft run"""
    stages: list[StageEntry] = Field(min_length=1)
    """the stages of a round, each with its file: sample, judge (optional), select, label, reward (optional), dpo or
    ppo, evaluate. The command sets their inputs and outputs; all other keys come from the files"""
    rounds: int = Field(default=3, ge=1)
    """maximum number of rounds"""
    budget: int = Field(ge=1)
    """total number of judgments in all rounds, not counting a model judge's"""
    against: list[Rival] = Field(default_factory=list, exclude_if=lambda names: not names)
    """policies whose completions are paired with the newest policy's, besides its own pairs. previous: the policy before
    it; sft: the first round's; base: the base model"""
    start_from: Literal["current", "start"] = "current"
    """the policy that each round's training starts from. current: the previous round's; start: the first round's"""
    compare_starts: bool = Field(default=False, exclude_if=lambda compared: not compared)
    """from the second round on, also train from the other start, without judge_cycles, and report both; rounds go on from
    `start_from`'s"""
    data: Literal["all", "round"] = "all"
    """the labels that a round trains on. all: those of all rounds so far; round: its own"""
    judge_cycles: int = Field(default=0, ge=0, exclude_if=lambda cycles: not cycles)
    """semi-online (Lanchantin et al. 2025, arXiv 2506.21495): after training on a round's labels, sample, judge and train
    again this many times on the stage judge's verdicts alone, which cost no labels; with dpo"""
    judges_label: Literal["rest", "nothing"] = "rest"
    """use of the verdicts of a stage judge. rest: those on training pairs that were not selected are also preferences, of
    kind model; nothing: they only select pairs"""
    stop: StopConfig = StopConfig()
    """when to stop"""
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """the seed of every stage; null: as in the files"""
    replace: bool = False
    """move the folders of different runs aside, and run those stages again"""
    tracking_mode: str | None = None
    """tracking.mode of every stage; null: as in the files"""
    report_to: list[Tracker] | None = Field(default=None, exclude_if=lambda named: named is None)
    """tracking.report_to of every stage; null: as in the files"""
    max_time: str | None = None
    """time limit for the command, such as 8h: it stops in time, and the same command resumes; null: no limit"""

    _is_duration = field_validator("max_time")(check_duration)

    @field_validator("stages")
    @classmethod
    def _a_round(cls, stages: list[StageEntry]) -> list[StageEntry]:
        names = [entry.stage for entry in stages]
        if other := sorted(set(names) - set(ORDER)):
            raise ValueError(f"{', '.join(other)}: a round has {', '.join(ORDER)}")
        if names != [name for name in ORDER if name in names]:
            raise ValueError(f"each stage once, in this order: {', '.join(name for name in ORDER if name in names)}")
        lacking = [name for name in NEEDED if name not in names]
        if lacking:
            raise ValueError(f"{' and '.join(lacking)}: missing")
        if ("dpo" in names) == ("ppo" in names):
            raise ValueError("a round trains by dpo or by ppo: name one of them")
        if "ppo" in names and "reward" not in names:
            raise ValueError("reward: missing: ppo needs the round's reward model")
        return stages

    @model_validator(mode="after")
    def _judges_are_used(self) -> RoundsConfig:
        if self.judges_label != "rest" and not self.has("judge"):
            raise ValueError("judges_label: there is no stage judge; leave it out")
        if self.judge_cycles and not (self.has("judge") and self.has("dpo")):
            raise ValueError("judge_cycles: needs the stages judge and dpo: PPO samples anew at every step by itself")
        if len(set(self.against)) < len(self.against):
            raise ValueError("against: each name once")
        return self

    def has(self, stage: str) -> bool:
        """Whether rounds have such a stage."""
        return any(entry.stage == stage for entry in self.stages)

    @property
    def trainer(self) -> str:
        """The stage that trains the policy."""
        return "dpo" if self.has("dpo") else "ppo"

"""The configuration of `tiebreak rounds`. It imports no model code, so that help and errors answer at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from tiebreak.command.pipeline import StageEntry
from tiebreak.config import Section, check_duration

ORDER = ("sample", "judge", "select", "label", "reward", "dpo", "ppo", "evaluate")
NEEDED = ("sample", "select", "label", "evaluate")


class StopConfig(Section):
    """When no further round follows. Whichever comes first; the budget and `rounds` always stop."""

    win_rate_above: float | None = Field(default=None, ge=0.5, lt=1.0)
    """stop once the lower bound of the win rate over the start is above this; null: never"""
    rounds_without_gain: int | None = Field(default=None, ge=1)
    """stop after so many rounds in a row whose win rate over the previous policy is not above one half, by its interval;
    null: never"""
    max_kl: float | None = Field(default=None, gt=0.0)
    """stop once the policy is further from the start than this, in nats per answer; null: never"""
    judged_twice: int = Field(default=30, ge=2)
    """pairs of votes from which on raters whose agreement is not above chance stop the rounds, before anything is trained
    on them"""


class RoundsConfig(Section):
    """`tiebreak rounds`"""

    name: str
    """the recipe's name; W&B tags every run with it"""
    root: str
    """the folder that all rounds are written to, as ROOT/round-1/sample"""
    policy: str
    """where the first round starts: usually a finished sft run"""
    stages: list[StageEntry] = Field(min_length=1)
    """the stages of a round, each with its file: sample, judge (optional), select, label, reward (optional), dpo or ppo,
    evaluate. Their inputs and outputs are set by the rounds; all other keys are the files' own"""
    rounds: int = Field(default=3, ge=1)
    """largest number of rounds"""
    budget: int = Field(ge=1)
    """judgments to buy in all rounds together; a model judge's do not count"""
    start_from: Literal["current", "start"] = "current"
    """the policy that a round's training starts from: current, that of the round before; start, the first one again"""
    data: Literal["all", "round"] = "all"
    """the labels that a round trains on: of all rounds so far, or its own"""
    judges_label: Literal["rest", "nothing"] = "rest"
    """with a stage judge. rest: its verdicts on pairs that were not selected are preferences too, of kind model; nothing:
    they only select"""
    stop: StopConfig = StopConfig()
    """when no further round follows"""
    seed: int | None = None
    """the seed of every stage; null: the files' own"""
    replace: bool = False
    """move folders of other runs aside, and run their stages again"""
    tracking_mode: str | None = None
    """tracking.mode of every stage; null: the files' own"""
    max_time: str | None = None
    """stop before this time has passed since the command's start, such as 8h; the same command resumes; null: no limit"""

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
        return self

    def has(self, stage: str) -> bool:
        """Whether rounds have such a stage."""
        return any(entry.stage == stage for entry in self.stages)

    @property
    def trainer(self) -> str:
        """The stage that trains the policy."""
        return "dpo" if self.has("dpo") else "ppo"

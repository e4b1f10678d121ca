"""The key `monitors` of SFT, DPO and PPO: what is watched in answers to held-out prompts while a policy trains."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from tiebreak.config.section import Section
from tiebreak.measures.yardsticks.registry import Named, parse


class MonitorConfig(Section):
    """One yardstick on answers to held-out prompts, and what happens if its mean crosses a threshold."""

    yardstick: str
    """name of a yardstick that needs only texts: refusal, keywords:FILE, toxic_words, pii, language:CODE, length,
    repetition, tone, distinct_n, instructions:FILE or another; see docs/evaluation.md"""
    every_steps: int = Field(default=10, ge=1)
    """optimizer steps between measurements; the first is before the first step"""
    prompts: int = Field(default=16, ge=1)
    """number of held-out prompts to answer, always the same ones"""
    warn_above: float | None = None
    """print a warning if the mean is above this"""
    warn_below: float | None = None
    """print a warning if the mean is below this"""
    alert_above: float | None = None
    """alert if the mean is above this: in W&B, by `command` and by `webhook`"""
    alert_below: float | None = None
    """alert if the mean is below this"""
    command: list[str] = []
    """a program and its arguments, run on an alert and when training is stopped; the message is added as the last
    argument"""
    webhook: str | None = Field(default=None, pattern=r"^https?://", exclude_if=lambda url: url is None)
    """address that alerts and stops are posted to, as JSON with `text`, `monitor`, `mean`, `step` and `run`"""
    stop_above: float | None = None
    """stop training if the mean is above this, and alert; the policy of that step is saved"""
    stop_below: float | None = None
    """stop training if the mean is below this, and alert; the policy of that step is saved"""

    @property
    def key(self) -> str:
        """Of metrics.jsonl."""
        return f"monitor/{self.yardstick}"

    @property
    def named(self) -> Named:
        return parse(self.yardstick)

    @model_validator(mode="after")
    def _possible(self) -> MonitorConfig:
        named = self.named
        if named.entry.of != "text" or named.entry.needs:
            raise ValueError(
                f"yardstick: {self.yardstick} needs more than answers: monitors take yardsticks of texts alone"
            )
        limits = (self.alert_above, self.alert_below, self.stop_above, self.stop_below)
        for key in ("command", "webhook"):
            if getattr(self, key) and all(limit is None for limit in limits):
                raise ValueError(f"{key}: it is for alerts: give alert_above or alert_below")
        return self


Monitors = Annotated[list[MonitorConfig], Field(default_factory=list, exclude_if=lambda monitors: not monitors)]

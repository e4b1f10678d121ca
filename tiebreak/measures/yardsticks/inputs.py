"""The input of a yardstick: a prompt with its reference answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tiebreak.records import Prompt


@dataclass(frozen=True)
class YardstickInput:
    """A prompt, and the reference answers to it, if there are any."""

    prompt: Prompt
    references: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """The text of the last message."""
        return self.prompt.messages[-1].text


Values = Sequence[float | None]
Function = Callable[[YardstickInput, Sequence[str]], Values]
"""The values of all answers to a prompt, in their order. None: the yardstick does not apply to this prompt."""


def each(measure: Callable[[YardstickInput, str], float | None]) -> Function:
    """A yardstick of single answers."""
    return lambda asked, answers: [measure(asked, answer) for answer in answers]

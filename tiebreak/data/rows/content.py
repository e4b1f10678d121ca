"""What a row holds: a prompt, with an answer, a label, a rating, or a better and a worse answer."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field

from tiebreak.messages import Messages, Tools, check_prompt, check_side


@dataclass(frozen=True)
class PromptRow:
    """A prompt."""

    prompt: Messages
    tools: Tools = ()
    image_column: str | None = field(default=None, kw_only=True)
    """the column of its images, if its messages have no parts for them"""


@dataclass(frozen=True)
class AnswerRow(PromptRow):
    """A prompt and its answer."""

    answer: Messages = ()


@dataclass(frozen=True)
class LabelRow(AnswerRow):
    """A prompt, its answer, and whether that is a good one."""

    good: bool = True


@dataclass(frozen=True)
class PreferenceRow(PromptRow):
    """A prompt with a better and a worse answer."""

    chosen: Messages = ()
    rejected: Messages = ()
    strength: float | None = None


@dataclass(frozen=True)
class RatingRow(PromptRow):
    """A prompt, an answer and its rating, to be compared with other answers to the same prompt."""

    answer: Messages = ()
    score: float = 0.0


@dataclass(frozen=True)
class Omission:
    """A valid row without a record of the wanted kind."""

    reason: str


Content = PromptRow | Omission


@dataclass
class Interpretation:
    """A row's interpretation: the shape's name, and the row's content."""

    shape: str
    results: list[Content] = field(default_factory=list)


def check(result: PromptRow) -> None:
    """Raises ValueError if the prompt or the answer is empty."""
    check_prompt(result.prompt)
    _check_calls(messages_of(result))
    if result.prompt[-1].role == "user":
        _require_visible(result.prompt[-1:], "the prompt")
    if isinstance(result, AnswerRow):
        _require_earlier_answers(result.prompt)
    if isinstance(result, AnswerRow | RatingRow):
        check_side(result.answer, "the completion")
        _require_visible(result.answer[-1:], "the completion")
    if isinstance(result, PreferenceRow):
        for name, side in (("chosen", result.chosen), ("rejected", result.rejected)):
            _require_visible(side[-1:], name)


def _check_calls(messages: Messages) -> None:
    """Refuse a tool's result that answers no call before it, where calls and results name each other."""
    called: set[str] = set()
    for number, message in enumerate(messages, start=1):
        called |= {call.id for call in message.tool_calls if call.id is not None}
        if called and message.tool_call_id is not None and message.tool_call_id not in called:
            raise ValueError(
                f"message {number}: its tool_call_id, {message.tool_call_id!r}, is of no call before it; there are "
                f"{', '.join(sorted(called))}"
            )


def _require_earlier_answers(prompt: Messages) -> None:
    """Refuse an empty answer before the last: `loss_on: all_answers` would teach silence."""
    for number, message in enumerate(prompt, start=1):
        if message.role == "assistant" and message.is_empty and message.weight != 0:
            raise ValueError(f"message {number}, of the assistant, is empty: remove it, or give it weight 0")


def _require_visible(messages: Messages, name: str) -> None:
    """Refuse zero-width and control characters alone: to a reader that is an empty text."""
    for message in messages:
        unseen = message.text.strip() and all(unicodedata.category(letter) in _UNSEEN for letter in message.text)
        if unseen and not message.media and not message.tool_calls:
            raise ValueError(f"{name} is empty but for characters that cannot be seen")


_UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Zs")
"""Unicode's categories of control and format characters, and of separators"""


def messages_of(result: Content) -> Messages:
    """All messages of a row's content."""
    if isinstance(result, PreferenceRow):
        return (*result.prompt, *result.chosen, *result.rejected)
    if isinstance(result, AnswerRow | RatingRow):
        return (*result.prompt, *result.answer)
    return result.prompt if isinstance(result, PromptRow) else ()

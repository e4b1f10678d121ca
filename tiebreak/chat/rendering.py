"""Renders conversations as text with a chat template, and refuses what the template leaves out or would misread."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tiebreak.chat.templates import (
    TOOL_CALL_FORMS,
    Part,
    Tools,
    as_template_message,
    ending_mark,
    in_parts,
    opening_mark,
    parts_of,
    render_messages,
)
from tiebreak.chat.turns import Turn
from tiebreak.config import ChatSettings
from tiebreak.errors import HandoffError
from tiebreak.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rendering:
    """A tokenizer with its chat template and ends of turns: conversations as text, and text as token ids."""

    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    """tokens at which sampling stops"""
    end_id: int
    """which of `stop_ids` ends answers in training"""
    template: str
    """the chat template, with a fixed date instead of today's"""
    turn: Turn
    settings: ChatSettings
    tokenizer_sha256: str = ""
    content_in_parts: bool = False
    """whether the template accepts content only as a list of parts"""
    vocabulary: int | None = None
    """number of tokens that the model has weights for"""
    marks: tuple[str, ...] = ()
    """special tokens that the template writes around turns, and those that end one"""
    _rendered: set[tuple[object, ...]] = field(default_factory=set, compare=False, repr=False)
    """kinds of parts that the template is known to render"""
    _call_form: list[tuple[bool, bool]] = field(default_factory=list, compare=False, repr=False)
    """the template's form of tool calls, one of `TOOL_CALL_FORMS`; empty until a conversation has some"""

    def _render(self, messages: Sequence[Message], tools: Tools = (), add_generation_prompt: bool = False) -> str:
        return render_messages(
            self.tokenizer,
            self.template,
            self._as_template_takes(messages),
            add_generation_prompt,
            self.settings.template_arguments,
            tools,
        )

    def _render_prompt(self, messages: Sequence[Message], tools: Tools) -> str:
        """The prompt's text, checked to contain every part of the conversation."""
        self._require_no_turn_marks(messages)
        self._choose_call_form(messages, tools)
        text = self._render(messages, tools, add_generation_prompt=True)
        self._require_rendered(messages, tools, text, add_generation_prompt=True)
        return text

    def _as_template_takes(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        form = self._call_form[0] if self._call_form else TOOL_CALL_FORMS[0]
        taken = [as_template_message(message, *form) for message in messages]
        return [in_parts(message) for message in taken] if self.content_in_parts else taken

    def _marks(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        """1 on tokens that the template marks as the assistant's."""
        if not self.tokenizer.is_fast:
            raise HandoffError(
                "the chat template marks with {% generation %} what is learned, which a tokenizer without a fast backend "
                "(tokenizer.json) cannot find again: give a template without such marks with chat_template"
            )
        rendered = self.tokenizer.apply_chat_template(
            self._as_template_takes(messages),
            tools=list(tools) if tools else None,
            chat_template=self.template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **self.settings.template_arguments,
        )
        return list(rendered["assistant_masks"])

    def _encode(self, text: str) -> list[int]:
        ids = self._raw_ids(text)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise HandoffError("the chat template writes two beginning-of-sequence tokens: fix the template")
        if self.vocabulary is not None and ids and (largest := max(ids)) >= self.vocabulary:
            raise HandoffError(
                f"the tokenizer has a token ({self.tokenizer.decode([largest])!r}, number {largest}) that the model has no "
                f"weights for, whose vocabulary is of {self.vocabulary}: use the model's own tokenizer, or resize its "
                "embeddings"
            )
        return ids

    def _raw_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _names_of_ends(self) -> list[str]:
        return [str(self.tokenizer.decode([token], skip_special_tokens=False)) for token in self.stop_ids]

    def _require_no_turn_marks(self, messages: Sequence[Message]) -> None:
        """Refuse text that contains one of the template's marks: it was already rendered, or would end its turn and begin
        another."""
        ends = self._names_of_ends()
        for message in messages:
            for mark in self.marks:
                if mark in message.text:
                    if message.role == "assistant" and mark in ends:
                        raise two_ends(mark, message.text)
                    raise HandoffError(
                        f"the text of the {message.role} holds {mark!r}, which this tokenizer reads as the chat template's "
                        f"own mark: give messages or plain text, or leave the row out: {message.text[:80]!r}"
                    )

        self._require_no_foreign_marks(messages)

    @staticmethod
    def _require_no_foreign_marks(messages: Sequence[Message]) -> None:
        """Refuse text that was rendered for another model: its marks are plain text here, so they would be trained."""
        first, last = messages[0], messages[-1]
        if mark := opening_mark(first.text):
            raise HandoffError(
                f"the text of the {first.role} begins with {mark!r}, which another model's chat template writes: give "
                f"messages or plain text, or leave the row out: {first.text[:80]!r}"
            )
        if last.role == "assistant" and (mark := ending_mark(last.text)):
            raise HandoffError(
                f"the answer ends with {mark!r}, another model's end-of-turn token: remove it from the data: "
                f"{last.text[-80:]!r}"
            )

    def _require_no_mark(self, message: Message, finished: bool) -> None:
        """Refuse an answer that contains one of the template's marks."""
        text = f"{message.text}{message.reasoning_content or ''}"
        for name in self._names_of_ends():
            if name and name in text:
                raise two_ends(name, message.text)
        closing = self.turn.thought_close.strip()
        if closing and closing in text:
            raise HandoffError(
                f"the answer holds {closing!r}, which the chat template takes for the end of a thought: give the thought "
                f"as reasoning_content, or remove the mark: {message.text[:80]!r}"
            )
        if self._is_open_thought(message.text) and (finished or self.settings.thinking != "keep"):
            raise HandoffError(
                f"the answer is a thought that is not closed ({closing!r} is missing), so it would be learned as an "
                f"answer: {message.text[:80]!r}"
            )

    # --- thoughts ---

    def _settle_thought(self, message: Message) -> Message:
        """A message with its thought in `reasoning_content`, or without it, according to `thinking`. Images are refused."""
        if message.media:
            raise HandoffError(f"{message.media[0].mark} in a message of the {message.role}: only text is rendered")
        opening, closing = self.turn.thought_open, self.turn.thought_close.strip()
        if message.role != "assistant":
            return message
        if opening is not None and closing and message.reasoning_content is None:
            body, mark = message.text.lstrip(), self.turn.thought_mark
            if closing in body and (opening.strip() == "" or body.startswith(mark)):
                thought, _, answer = body.removeprefix(mark).partition(closing)
                if not mark or mark not in thought:  # a text that quotes marks is refused where it is trained
                    # the blanks around thought and answer are the template's
                    changed = {"content": answer.strip(), "reasoning_content": thought.strip() or None}
                    message = message.model_copy(update=changed)
        if self.settings.thinking == "drop" and message.reasoning_content is not None:
            return message.model_copy(update={"reasoning_content": None})
        return message

    def _is_open_thought(self, text: str) -> bool:
        mark, closing = self.turn.thought_mark, self.turn.thought_close.strip()
        return bool(mark) and text.lstrip().startswith(mark) and closing not in text

    def _end_of_thought(self, ids: Sequence[int]) -> int | None:
        """Number of ids of the answer's thought; None if the thought is cut off."""
        opening, closing = self.turn.thought_open, self.turn.thought_close.strip()
        if opening is None or not closing:
            return 0
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=False)).lstrip()
        return position_after(self.tokenizer, ids, closing) if text.startswith(opening.strip()) else 0

    # --- completeness ---

    def _require_rendered(
        self, messages: Sequence[Message], tools: Tools, text: str, add_generation_prompt: bool = False
    ) -> None:
        """Refuse a conversation if the template silently omits a part of it.

        The rendering must contain each part's text. If it does not, or if this is the first part of its kind (a role after
        another, tools, tool calls, a thought, a name), the part is replaced, which must change the rendering.

        Raises:
            HandoffError: naming the part.
        """
        for part in parts_of(messages, tools):
            if part.kind not in self._rendered or part.text not in text:
                if not self._differs(text, part, add_generation_prompt):
                    raise HandoffError(
                        f"the chat template leaves {part.name} out of what it renders, so the policy would never see it: "
                        f"{part.remedy}"
                    )
                self._rendered.add(part.kind)

    def _differs(self, text: str, part: Part, add_generation_prompt: bool) -> bool:
        """Whether replacing a part changes the rendering, or makes the template refuse the conversation."""
        try:
            return text != self._render(*part.changed(), add_generation_prompt)
        except HandoffError:
            return True

    def _choose_call_form(self, messages: Sequence[Message], tools: Tools) -> None:
        """At the first conversation with tool calls, find the form in which the template takes them.

        If it takes none, the first form is used, in which every message has content; what the template then refuses or
        leaves out is reported when a row is rendered.
        """
        if self._call_form or not any(message.tool_calls for message in messages):
            return
        call = next(parts_of(messages, tools))
        for form in TOOL_CALL_FORMS:
            self._call_form[:] = [form]
            with contextlib.suppress(HandoffError):
                text = self._render(messages, tools)
                if self._differs(text, call, False) and not (_holds_python(messages, text) and not form[1]):
                    return
        self._call_form.clear()


def _holds_python(messages: Sequence[Message], text: str) -> bool:
    """Whether a template printed a call's arguments as a Python dict, so that it needs them as JSON text."""
    arguments = (call.function.arguments for message in messages for call in message.tool_calls)
    return any(str(one) in text for one in arguments if str(one) != json.dumps(one, ensure_ascii=False))


def two_ends(name: str, text: str) -> HandoffError:
    """The error for an answer that contains the end token `name` before its end."""
    return HandoffError(
        f"two end-of-sequence tokens ({name!r}) in one answer, so the policy would learn to stop at the first: remove it "
        f"from the data, or fix the template if the text has none: {text[:80]!r}"
    )


def position_after(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> Any:
    """Number of ids up to the end of `text`; None if they do not contain it."""

    def holds(count: int) -> bool:
        return text in str(tokenizer.decode(list(ids[:count]), skip_special_tokens=False))

    if not text or not holds(len(ids)):
        return None
    low, high = 0, len(ids)
    while low < high:  # monotonic: more ids contain it too
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high

"""Messages of conversations: their forms, their ids, and what makes them a prompt or an answer.

They are read in the forms of OpenAI, TRL and Arrow. Ids are hashes of content: the same messages have the same id on every
machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tiebreak.content import ImagePart, MediaPart, Parts, TextPart, read_parts
from tiebreak.files import parse_json, strict_json


class Record(BaseModel):
    """A frozen row. Unknown fields are refused: a misspelt column would otherwise be lost silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def is_absent(value: object) -> bool:
    """Whether a field is absent, and so is not written: files and ids of data without it do not change."""
    return value is None or value == ()


def is_empty(value: object) -> bool:
    """Whether a field is empty, and so is not written: files without it keep their bytes."""
    return not value


def _is_finite(value: object) -> bool:
    if isinstance(value, dict | list | tuple):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


class FunctionCall(Record):
    """A function call by the assistant."""

    name: str = Field(min_length=1)
    arguments: dict[str, Any] = {}

    def __hash__(self) -> int:
        return hash(content_id("call", self.name, self.arguments))

    @field_validator("arguments", mode="before")
    @classmethod
    def _as_mapping(cls, value: object) -> object:
        """OpenAI writes the arguments as a JSON string."""
        if value is None or value == "":
            return {}
        if isinstance(value, str):
            value = strict_json(value)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__}, not a JSON object")
        if not _is_finite(value):
            raise ValueError("NaN or Infinity is in it, which JSON does not have")
        return value


class ToolCall(Record):
    """A tool call in OpenAI's form. `{name, arguments}` alone is accepted too."""

    id: str | None = Field(default=None, exclude_if=is_absent)
    type: Literal["function"] = "function"
    function: FunctionCall

    @model_validator(mode="before")
    @classmethod
    def _wrapped(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        value = {key: part for key, part in value.items() if part is not None}
        if "function" in value or "name" not in value:
            return value
        flat = {key: value.pop(key) for key in ("name", "arguments") if key in value}
        return {**value, "function": flat}


def _read_content(content: object) -> str | Parts:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return read_parts(content)
    raise ValueError(f"content is {json.dumps(content)[:40]}, neither text nor a list of parts")


def _read_calls_and_thought(message: dict[str, Any]) -> None:
    """JSON as tool calls, `thinking` as `reasoning_content`; empty ones are left out."""
    if isinstance(message.get("tool_calls"), str):
        message["tool_calls"] = parse_json(message["tool_calls"], "tool_calls")
    thought = message.pop("thinking", "")
    if thought and message.setdefault("reasoning_content", thought) != thought:
        raise ValueError("thinking and reasoning_content differ: keep one of them")
    for key in ("tool_calls", "reasoning_content"):
        if key in message and not message[key]:
            del message[key]


class Message(Record):
    """One turn of a conversation, in OpenAI's form."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | Parts
    """text; a list of parts if there is an image among them"""
    tool_calls: tuple[ToolCall, ...] = Field(default=(), exclude_if=is_absent)
    """the assistant's calls"""
    tool_call_id: str | None = Field(default=None, exclude_if=is_absent)
    """for a tool's result: the call that it answers"""
    name: str | None = Field(default=None, exclude_if=is_absent)
    """the speaker's name, or the tool's"""
    reasoning_content: str | None = Field(default=None, exclude_if=is_absent)
    """the assistant's thoughts before its answer; also read from `thinking`"""
    weight: Literal[0, 1] | None = Field(default=None, exclude_if=is_absent)
    """0: the assistant's turn is context and is not trained on"""

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, value: object) -> object:
        """Normalises the forms of OpenAI, TRL and Arrow: no null keys, `thinking` renamed, text alone as a string.

        Unknown keys are refused by name: silently dropped, they would make training wrong.
        """
        if not isinstance(value, dict) or (
            len(value) == 2 and isinstance(value.get("content"), str) and "role" in value
        ):
            return value
        message = {key: part for key, part in value.items() if part is not None}
        _read_calls_and_thought(message)
        if unknown := sorted(message.keys() - cls.model_fields.keys()):
            raise ValueError(
                f"unknown message key {', '.join(map(repr, unknown))}; a message has {', '.join(cls.model_fields)}: "
                f"rename it, or leave it out with columns: {{message.{unknown[0]}: null}}"
            )
        if "content" in message:
            message["content"] = _read_content(message["content"])
        elif message.get("tool_calls"):
            message["content"] = ""
        elif "content" in value:
            raise ValueError("content is null: only a message with tool_calls may have none")
        return message

    @model_validator(mode="after")
    def _belongs_to_its_role(self) -> Message:
        for key in ("tool_calls", "reasoning_content", "weight"):
            if not is_absent(getattr(self, key)) and self.role != "assistant":
                raise ValueError(f"{key} on the message of the {self.role}: only an assistant's message has it")
        if self.tool_call_id is not None and self.role != "tool":
            raise ValueError(f"tool_call_id on the message of the {self.role}: only a tool's message has it")
        return self

    @property
    def text(self) -> str:
        """Its text, without images: code that reads only the text must refuse images first (see `images`)."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """Its images, in order."""
        if isinstance(self.content, str):
            return ()
        return tuple(part for part in self.content if isinstance(part, ImagePart))

    @property
    def media(self) -> tuple[MediaPart, ...]:
        """Its images and recordings, in order."""
        if isinstance(self.content, str):
            return ()
        return tuple(part for part in self.content if not isinstance(part, TextPart))

    @property
    def display_text(self) -> str:
        """Its text, with `[image cat.png]` in place of each image."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text if isinstance(part, TextPart) else part.mark for part in self.content)

    @property
    def numbered_text(self) -> str:
        """Its text, with `[image 1]` and `[audio 2]` in place of each: file names may tell who made them."""
        if isinstance(self.content, str):
            return self.content
        numbers, text = iter(range(1, len(self.content) + 1)), ""
        for part in self.content:
            added = part.text if isinstance(part, TextPart) else f"[{part.type} {next(numbers)}]"
            text += f" {added}" if text and not (text[-1].isspace() or added[:1].isspace()) else added
        return text

    def map_text(self, change: Callable[[str], str]) -> Message:
        """The message with each of its texts changed."""
        if isinstance(self.content, str):
            return self.model_copy(update={"content": change(self.content)})
        parts = (TextPart(text=change(part.text)) if isinstance(part, TextPart) else part for part in self.content)
        return self.model_copy(update={"content": tuple(parts)})

    @property
    def is_empty(self) -> bool:
        """Whether it has neither text nor images, audio or calls."""
        return not self.text.strip() and not self.media and not self.tool_calls

    @property
    def is_plain(self) -> bool:
        """Whether it has only a role and text."""
        others = (key for key in type(self).model_fields if key not in ("role", "content"))
        return isinstance(self.content, str) and all(is_absent(getattr(self, key)) for key in others)


Messages = tuple[Message, ...]
Tools = tuple[dict[str, Any], ...]
"""JSON schemas of the functions that the assistant may call, each `{type: function, function: {…}}`."""


def content_id(prefix: str, *parts: object) -> str:
    """A short id made from content: the same content has the same id on every machine."""
    canonical = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=_as_json)
    return f"{prefix}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def is_content_id(identity: str, prefix: str) -> bool:
    """Whether an id has the form of `content_id`.

    >>> is_content_id(content_id("pair", 1), "pair"), is_content_id("pair-1", "pair")
    (True, False)
    """
    return re.fullmatch(rf"{re.escape(prefix)}-[0-9a-f]{{16}}", identity) is not None


def _as_json(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"cannot hash a {type(value).__name__}")


def prompt_id(messages: Sequence[Message], tools: Tools = ()) -> str:
    """The id of a prompt: a hash of its messages and tools.

    `weight` is excluded: it changes the training, not the prompt.
    """
    fields = [(message.role, message.content, *_further_fields(message)) for message in messages]
    return content_id("prompt", fields, tools) if tools else content_id("prompt", fields)


def split_key(messages: Sequence[Message], tools: Tools = ()) -> str:
    """A prompt's identity for its split: its id, whatever blanks surround its texts, however their lines end, and whether
    an é is one character or two (NFC or NFD)."""
    return prompt_id([message.map_text(_composed) for message in messages], tools)


def comparison_key(messages: Sequence[Message], tools: Tools, texts: Iterable[str]) -> tuple[str, frozenset[str]]:
    """The identity of a comparison of answers to a prompt, in any order, as `split_key` compares prompts."""
    return split_key(messages, tools), frozenset(map(_composed, texts))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", _stripped(text))


def _stripped(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def _further_fields(message: Message) -> list[object]:
    further = message.model_dump(mode="json", exclude={"role", "content", "weight"})
    return [further] if further else []


def check_prompt(messages: Messages) -> None:
    """Raises ValueError if there is nothing for the assistant to answer."""
    if not messages:
        raise ValueError("the prompt is empty")
    if messages[-1].role not in ("user", "tool"):
        raise ValueError(f"the last message is the {messages[-1].role}'s: a prompt ends with the user's or a tool's")
    if messages[-1].role == "user" and messages[-1].is_empty:
        raise ValueError("the prompt is empty")


def check_side(messages: Messages, name: str) -> None:
    """Raises ValueError unless the messages are an answer: the assistant's messages with its tools' results in between."""
    roles = [message.role for message in messages]
    if not messages or all(message.is_empty for message in messages):
        raise ValueError(f"{name} is empty")
    if other := sorted({*roles} - {"assistant", "tool"}):
        raise ValueError(
            f"{name} contains a message of the {other[0]}: an answer has only the assistant's and its tools'"
        )
    if roles[0] != "assistant" or roles[-1] != "assistant":
        raise ValueError(f"{name} must begin and end with a message of the assistant")
    if messages[-1].is_empty:
        raise ValueError(f"{name} ends with an empty message")


def comparable(message: Message) -> Message:
    """The message as answers are compared: without its weight, with its texts as `split_key` compares them."""
    return message.map_text(_composed).model_copy(update={"weight": None})


def text_of(messages: Sequence[Message]) -> str:
    """The text and calls of messages, images as `[image cat.png]`, for display and comparison."""
    return "\n".join(part for message in messages for part in _parts_of(message))


def _parts_of(message: Message) -> list[str]:
    calls = [json.dumps(call.function.model_dump(), ensure_ascii=False) for call in message.tool_calls]
    return [message.display_text, *calls] if message.content or not calls else calls


def assistant(text: str) -> Messages:
    """`text` as TRL's conversational completion."""
    return (Message(role="assistant", content=text),)

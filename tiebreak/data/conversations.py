"""Conversations as they are written: messages, ShareGPT's turns, Human and Assistant in one string, tools as JSON text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tiebreak.records import Message, Messages, Tools, first_line, parse_json

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
_CALLS = ("function_call", "tool_call")

_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_SPEAKERS = {"Human": "user", "User": "user", "Assistant": "assistant"}


def to_messages(value: object, role: str = "user", keys: Mapping[str, str | None] | None = None) -> Messages:
    """Text, one message or a list of messages.

    Args:
        role: who says a text that names no speaker.
        keys: their names of a message's keys, by ours; None where ours is to be ignored (`columns: {message.text: …}`).

    Raises:
        ValueError: with the reason, and the number of the message.
    """
    if isinstance(value, str):
        return _turns(value) if is_transcript(value) else (Message.model_validate({"role": role, "content": value}),)
    if isinstance(value, Mapping | Message):
        value = [value]
    if not isinstance(value, Sequence) or not value:
        raise ValueError("neither a string nor a list of messages")
    messages = []
    for number, message in enumerate(value, start=1):
        try:
            messages.append(_to_message(message, keys or {}))
        except ValueError as error:
            raise ValueError(
                f"message {number}: {first_line(error)}" if len(value) > 1 else first_line(error)
            ) from None
    return tuple(messages)


def _to_message(value: object, keys: Mapping[str, str | None]) -> Message:
    if not isinstance(value, Mapping):
        return Message.model_validate(value)
    message = dict(value)
    for ours, theirs in keys.items():
        taken = message.pop(theirs, None) if theirs is not None else message.pop(ours, None)
        if theirs is not None and taken is not None:
            message[ours] = taken
    if "from" in message and "value" in message:
        message = _from_sharegpt(message)
    return Message.model_validate(message)


def _from_sharegpt(turn: Mapping[str, Any]) -> dict[str, Any]:
    speaker = str(turn["from"]).strip().lower()
    if speaker not in SHAREGPT_ROLES:
        raise ValueError(f"from: unknown speaker {turn['from']!r}; known: {', '.join(SHAREGPT_ROLES)}")
    message = {key: part for key, part in turn.items() if key not in ("from", "value")}
    message |= {"role": SHAREGPT_ROLES[speaker], "content": turn["value"]}
    if speaker in _CALLS:
        called = parse_json(turn["value"], "value") if isinstance(turn["value"], str) else turn["value"]
        message |= {"content": "", "tool_calls": called if isinstance(called, list) else [called]}
    return message


def is_transcript(text: str) -> bool:
    """Whether a text is a conversation: HH-RLHF's `\\n\\nHuman: … \\n\\nAssistant: …`, HelpSteer's `<extra_id_1>`."""
    return bool(_HELPSTEER_TURN.search(text)) or bool(
        re.match(r"\s*Human:", text) and re.search(r"\n\nAssistant:", text)
    )


def _turns(text: str) -> Messages:
    """The turns of a transcript. An `Assistant:` with nothing after it is where the answer goes, and no turn."""
    helpsteer = _HELPSTEER_TURN.search(text) is not None
    parts = (_HELPSTEER_TURN if helpsteer else _HH_TURN).split(text)
    turns = list(zip(parts[1::2], parts[2::2], strict=True))
    if helpsteer:
        turns = [("User", parts[0]), *turns]
    if turns[-1][0] == "Assistant" and not turns[-1][1].strip():
        turns.pop()
    return tuple(
        Message.model_validate({"role": _SPEAKERS[speaker], "content": said.strip()}) for speaker, said in turns
    )


def to_tools(value: object) -> Tools:
    """A row's `tools`: a list of JSON schemas, or its JSON text. A bare `{name, parameters}` is wrapped as OpenAI does."""
    if isinstance(value, str):
        value = parse_json(value, "tools") if value.strip() else None
    if not value:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"tools: a {type(value).__name__}, not a list of JSON schemas")
    return tuple(_wrap_tool(parse_json(tool, "tools") if isinstance(tool, str) else tool) for tool in value)


def _wrap_tool(tool: object) -> dict[str, Any]:
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise ValueError("tools: each is a JSON schema with a name: {type: function, function: {name, parameters}}")
    return tool if "function" in tool else {"type": "function", "function": tool}


def is_conversation(value: object) -> bool:
    """Whether a value is a list of turns."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(isinstance(turn, Mapping) and ({"role"} <= turn.keys() or {"from"} <= turn.keys()) for turn in value)
    )


LIST_COLUMNS = ("tools", "answers", "responses", "completions", "conversations", "messages", "raters", "tags")


def parse_cell(column: str, text: str) -> object:
    """A table's cell: the list that it holds as JSON, where its column is one of lists or it holds a conversation."""
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if is_conversation(value) or (column in LIST_COLUMNS and isinstance(value, list)):
        return value
    return text

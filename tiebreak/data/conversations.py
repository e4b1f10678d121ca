"""Written forms of conversations: messages, ShareGPT's turns, Human and Assistant in one string, tools as JSON text."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tiebreak.files import first_line, parse_json
from tiebreak.messages import Message, Messages, Tools

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
NO_MESSAGES = "neither a string nor a list of messages"
"""what a cell is that is read as neither"""
_OURS = ("system", "user", "assistant", "tool")
_CALLS = ("function_call", "tool_call")

ROLES = {**SHAREGPT_ROLES, "developer": "system", "function": "tool"}
"""Roles as others call them."""
_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_SPEAKERS = {"Human": "user", "User": "user", "Assistant": "assistant"}


def open_objects(row: Mapping[str, Any], names: Iterable[str | None]) -> Mapping[str, Any]:
    """The row, with the fields of objects as columns where dotted names refer to them: `q: {text: …, by: …}` is
    `q.text`, `q.by`."""
    for name in filter(None, names):
        while name not in row and (outer := _outer(row, name)) is not None:
            others = {key: value for key, value in row.items() if key != outer}
            row = {f"{outer}.{key}": value for key, value in row[outer].items()} | others
    return row


def _outer(row: Mapping[str, Any], name: str) -> str | None:
    """The column with the object that a dotted name refers to."""
    return next((key for key in row if name.startswith(f"{key}.") and isinstance(row[key], Mapping)), None)


def to_messages(value: object, role: str = "user", keys: Mapping[str, str | None] | None = None) -> Messages:
    """Text, one message or a list of messages.

    Args:
        role: the speaker of a bare text.
        keys: the data's names of a message's keys, by ours; None to ignore ours (`columns: {message.text: …}`).

    Raises:
        ValueError: with the reason, and the number of the message.
    """
    if isinstance(value, str):
        return _turns(value) if is_transcript(value) else (Message.model_validate({"role": role, "content": value}),)
    if isinstance(value, Mapping | Message):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, bytes) or not value:
        raise ValueError(NO_MESSAGES)
    if all(isinstance(one, str) for one in value):
        raise ValueError("a list of texts, not of messages: write a row for each text")
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
    if value.keys() == {"role", "content"} and value["role"] in _OURS:
        return Message.model_validate(value)
    message = dict(open_objects(value, keys.values()))
    for ours, theirs in keys.items():
        taken = message.pop(theirs, None) if theirs is not None else message.pop(ours, None)
        if theirs is not None and taken is not None:
            message[ours] = taken
    if "from" in message and "value" in message:
        message = _from_sharegpt(message)
    if isinstance(role := message.get("role"), str):
        message["role"] = ROLES.get(role.strip().lower(), role)
    if message.get("function_call") is not None:  # OpenAI's older form of one call
        message["tool_calls"] = [*(message.get("tool_calls") or ()), message.pop("function_call")]
    if message.get("role") != "assistant" and message.get("weight") == 0:
        del message["weight"]  # what the user says is not trained on anyway
    return Message.model_validate(message)


def _from_sharegpt(turn: Mapping[str, Any]) -> dict[str, Any]:
    speaker = str(turn["from"]).strip().lower()
    if speaker not in SHAREGPT_ROLES:
        raise ValueError(f"from: unknown speaker {turn['from']!r}; supported: {', '.join(SHAREGPT_ROLES)}")
    message = {key: part for key, part in turn.items() if key not in ("from", "value")}
    message |= {"role": SHAREGPT_ROLES[speaker], "content": turn["value"]}
    if speaker in _CALLS:
        called = parse_json(turn["value"], "value") if isinstance(turn["value"], str) else turn["value"]
        message |= {"content": "", "tool_calls": called if isinstance(called, list) else [called]}
    return message


def is_transcript(text: str) -> bool:
    """Whether a text is a conversation: HH-RLHF's `\\n\\nHuman: … \\n\\nAssistant: …`, HelpSteer's `<extra_id_1>`."""
    return bool(
        _HELPSTEER_TURN.search(text)
        or re.match(r"(\r?\n){2}Human:", text)
        or (re.match(r"\s*Human:", text) and re.search(r"\r?\n\r?\nAssistant:", text))
    )


def _turns(text: str) -> Messages:
    """The turns of a transcript. A final empty `Assistant:` marks the answer's place and is not a turn."""
    text = text.replace("\r\n", "\n")
    helpsteer = _HELPSTEER_TURN.search(text) is not None
    parts = (_HELPSTEER_TURN if helpsteer else _HH_TURN).split(text)
    turns = list(zip(parts[1::2], parts[2::2], strict=True))
    if helpsteer:
        turns = [("User", parts[0]), *turns]
    if turns[-1][0] == "Assistant" and not turns[-1][1].strip():
        turns.pop()
    return tuple(
        Message.model_validate({"role": _SPEAKERS[speaker], "content": text.strip()}) for speaker, text in turns
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
        raise ValueError(
            "tools: each must be a JSON schema with a name: {type: function, function: {name, parameters}}"
        )
    return tool if "function" in tool else {"type": "function", "function": tool}


def is_conversation(value: object) -> bool:
    """Whether a value is a list of turns."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(isinstance(turn, Mapping) and ({"role"} <= turn.keys() or {"from"} <= turn.keys()) for turn in value)
    )


def turns_without_roles(value: object) -> list[dict[str, str]] | None:
    """The messages of a conversation that names no speakers: texts in turn (LIMA), or pairs of `input` and `output`
    (Capybara); None if it is not one."""
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(turn, Mapping) and turn.keys() == {"input", "output"} for turn in value):
        value = [turn[part] for turn in value for part in ("input", "output")]
    if len(value) < 2 or not all(isinstance(text, str) for text in value):
        return None
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(value)]


LIST_COLUMNS = ("tools", "images", "answers", "responses", "completions", "conversations", "messages", "raters", "tags")


def parse_cell(column: str, text: str, of_text: bool = True) -> object:
    """What a text holds: a conversation as JSON, or as Python prints it, and in a table the list that its column is of."""
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = _of_python(text)
    except RecursionError:
        return text
    if is_conversation(value) or (of_text and column in LIST_COLUMNS and isinstance(value, list)):
        return value
    return text


_PRINTED = re.compile(r"\s*(array\()?\[\s*\{\s*'(role|content|from|value)'\s*:")
"""How a list of messages begins as Python prints it, and as NumPy does."""


def is_printed_conversation(text: str) -> bool:
    """Whether a text is a list of messages as Python or NumPy prints it."""
    return bool(_PRINTED.match(text))


def _of_python(text: str) -> object:
    if not is_printed_conversation(text):
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None

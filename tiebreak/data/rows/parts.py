"""Parts of a row by the names of their columns: the prompt with what belongs to it, a label, a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tiebreak.data.cells import Cells, refuse_comma
from tiebreak.data.conversations import NO_MESSAGES, is_conversation, to_messages, to_tools
from tiebreak.messages import Message, Messages, Tools

PROMPTS = ("prompt", "question", "instruction", "query", "problem")


LATE_PROMPTS = ("input", "context")
"""Names of a prompt where there is no better one; beside a prompt they are its material: the passage that it asks about."""


THOUGHTS = ("reasoning_content", "thinking", "reasoning")


SYSTEMS = ("system", "system_prompt", "system_message")


ANSWERS = ("completion", "response", "answer", "output", "solution")


CONVERSATIONS = ("messages", "conversations", "conversation")


def one_of(cells: Cells, names: Sequence[str], part: str) -> str | None:
    """The column of a part. Our own name, or one named in `columns`, has precedence; two others are refused."""
    present = [name for name in names if name in cells]
    if part in present:
        return part
    if len(present) < 2:
        return present[0] if present else None
    listed = " and ".join(map(repr, present))
    raise ValueError(f"{listed} could each be the {part}: name one with columns: {{{part}: {present[0]}}}")


def prompt_column(cells: Cells) -> str | None:
    late = "history" if isinstance(cells.values.get("history"), str) else None  # of the Stanford Human Preferences
    return one_of(cells, PROMPTS, "prompt") or one_of(cells, LATE_PROMPTS, "prompt") or late


def conversation_column(cells: Cells) -> str | None:
    name = one_of(cells, CONVERSATIONS, "messages")
    if name and not (isinstance(cells.values[name], str) or is_conversation(cells.values[name])):
        return name if name == "messages" else None
    return name


def read_messages(cells: Cells, value: object, role: str = "user", column: str | None = None) -> Messages:
    """The messages in a cell.

    Args:
        column: our name of its column; None: `value` is a part of a cell.

    Raises:
        ValueError: it holds none; names the column, as the data does, if the cell is neither text nor a list of any.
    """
    if column is not None:
        theirs = cells.theirs.get(column, column)
        if value != "" and (not value or not isinstance(value, str | Sequence | Mapping)):
            raise ValueError(f"column {theirs!r}: {NO_MESSAGES}")
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            raise ValueError(f"column {theirs!r}: a list of texts, not of messages: write a row for each text")
    return to_messages(value, role, cells.message_keys)


def read_prompt(cells: Cells, name: str, *, checked_alone: bool = False) -> Messages:
    """The prompt in a column, with the row's material, earlier turns and system message.

    Args:
        checked_alone: true for a prompt that is only compared with whole conversations, which hold its material already
    """
    value = cells.get(name)
    messages = read_messages(cells, value, column=name)
    if isinstance(value, str) and not checked_alone and (material := _material(cells, name, value)):
        messages = (Message(role="user", content=f"{value}\n\n{material}" if value.strip() else material),)
    if isinstance(value, str):
        messages = (*_history(cells), *messages)
    return with_system(cells, messages)


def _material(cells: Cells, name: str, prompt: str) -> str:
    """What a prompt asks about, where a column beside it holds that; empty where none does.

    Raises:
        ValueError: no key says whether that belongs to the prompt.
    """
    texts = {other: cells.values.get(other) for other in LATE_PROMPTS if other != name}
    beside = {other: text for other, text in texts.items() if isinstance(text, str) and text.strip()}
    cells.used |= {other for other, text in texts.items() if isinstance(text, str) and not text.strip()}
    if "input" in cells.explicit and "input" in beside:
        return str(cells.get("input"))
    if name == "instruction" and len(beside) == 1:
        return str(cells.get(next(iter(beside))))
    other = next((other for other, text in beside.items() if text.strip() not in prompt), None)
    if other is not None and name not in LATE_PROMPTS:
        raise ValueError(
            f"{other!r} is a column beside {name!r}: columns: {{input: {other}}} puts it after the {name}, columns: "
            f"{{{other}: null}} leaves it out"
        )
    return ""


def _history(cells: Cells) -> Messages:
    """The turns before a prompt: messages, or pairs of a question and its answer.

    Raises:
        ValueError: it is a list of something else. Without its history, a prompt is another one.
    """
    turns = cells.values.get("history")
    if not isinstance(turns, list):
        return ()
    cells.used.add("history")
    if is_conversation(turns):
        return to_messages(turns, keys=cells.message_keys)
    if not all(isinstance(turn, list) and len(turn) == 2 and all(isinstance(s, str) for s in turn) for turn in turns):
        raise ValueError(
            "history: neither messages nor pairs of a question and its answer; columns: {history: null} leaves it out"
        )
    earlier = [(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
    return tuple(Message.model_validate({"role": role, "content": text}) for role, text in earlier)


def with_system(cells: Cells, messages: Messages) -> Messages:
    """The messages, preceded by a `system` column."""
    name = one_of(cells, SYSTEMS, "system")
    text = cells.values.get(name) if name else None
    if isinstance(text, list | dict):
        raise ValueError(
            f"column {name!r} holds a {type(text).__name__}, not text; columns: {{{name}: null}} leaves it out"
        )
    if name is None or not isinstance(text, str):
        return messages
    cells.used.add(name)
    if not text.strip():
        return messages
    if messages[0].role != "system":
        return (Message(role="system", content=text), *messages)
    if messages[0].display_text.strip() != text.strip():
        raise ValueError(f"column {name!r} and the conversation's system message differ: keep one of them")
    return messages


def read_tools(cells: Cells) -> Tools:
    return to_tools(cells.get("tools") or cells.get("functions"))


def read_label(cells: Cells) -> bool | None:
    """Whether the answer is labelled good; None if the column has another meaning."""
    value = cells.values.get("label")
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("0", "1", "0.0", "1.0"):
        if "label" not in cells.explicit:
            raise ValueError(
                f"label: {value} may rate the answer or mean something else: columns: {{label: label}} reads 1 as good "
                "and 0 as bad; columns: {label: null} ignores the column"
            )
        return float(word) == 1
    return _VERDICTS.get(word)


_VERDICTS = {
    **dict.fromkeys(("true", "desirable", "good", "chosen"), True),
    **dict.fromkeys(("false", "undesirable", "bad", "rejected"), False),
}


def read_number(column: str, value: Any) -> float:
    refuse_comma(column, value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{column}: {value!r} is not a number")
    return number

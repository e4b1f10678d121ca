"""What a chat template is given, and the text it makes of it: the only calls of transformers' templates."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from tiebreak.errors import HandoffError
from tiebreak.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tools = Sequence[Mapping[str, Any]]
"""JSON schemas of functions"""

TOOL_CALL_FORMS = ((False, False), (True, False), (False, True), (True, True))
"""(content null where a message has tool calls alone, arguments as a JSON string): templates want one or another"""
_TEMPLATE_FAULTS = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
_NOT_FOR_TEMPLATES = {"weight"}
"""Fields of a message that speak to training."""
CALLS = "tool_calls"
_OTHER_TEMPLATE = "give one that renders it with chat_template, or remove it from the data"


def parts_of(messages: Sequence[Message], tools: Tools) -> Iterator[tuple[str, str, Sequence[Message], Tools]]:
    """(what a conversation has, what to do where it isn't rendered, the conversation without it, its tools)."""

    def changed(place: int, **update: Any) -> list[Message]:
        return [*messages[:place], messages[place].model_copy(update=update), *messages[place + 1 :]]

    for place, message in enumerate(messages):
        if message.tool_calls:  # first: in the wrong form, nothing renders
            yield CALLS, _OTHER_TEMPLATE, changed(place, tool_calls=()), tools
    if tools:
        yield "tools", _OTHER_TEMPLATE, messages, ()
    for place, message in enumerate(messages):
        if message.content.strip():
            other = changed(place, content=message.content + " x")
            yield f"a message of the {message.role}", _OTHER_TEMPLATE, other, tools
        if message.name is not None and message.role != "tool":
            yield f"the name of the {message.role}", _OTHER_TEMPLATE, changed(place, name=None), tools
        if message.reasoning_content and place == len(messages) - 1:
            remedy = "set thinking: drop, or give a template that renders it with chat_template"
            yield "reasoning_content", remedy, changed(place, reasoning_content=None), tools


def as_template_message(message: Message, null_content: bool = False, text_arguments: bool = False) -> dict[str, Any]:
    """A message as templates take it: what it has, and nothing that it has not.

    Args:
        null_content: give no content where there are tool calls alone.
        text_arguments: give the arguments of tool calls as JSON.
    """
    values = message.model_dump(exclude=_NOT_FOR_TEMPLATES)
    if message.tool_calls and null_content and not message.content:
        values["content"] = None
    if message.tool_calls and text_arguments:
        for call in values["tool_calls"]:
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return values


def in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with its text as a list of one part."""
    return {**message, "content": [{"type": "text", "text": message["content"] or ""}]}


def render_messages(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = False,
    arguments: Mapping[str, Any] | None = None,
    tools: Tools = (),
) -> str:
    """The template's text of a conversation.

    Raises:
        HandoffError: the template refuses it.
    """
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) if tools else None,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **(arguments or {}),
            )
        )
    except _TEMPLATE_FAULTS as error:
        roles = [str(message["role"]) for message in messages]
        raise HandoffError(
            f"the chat template refuses a conversation of {', '.join(roles)}: "
            f"{(str(error).splitlines() or [type(error).__name__])[0]}. {_advice(roles)}"
        ) from error


def _advice(roles: Sequence[str]) -> str:
    if roles and roles[0] == "system":
        return (
            "Put the system message into the first user message, or give a template that takes one with chat_template"
        )
    if any(a == b for a, b in itertools.pairwise(roles)):
        return (
            "Join messages of one role that follow one another, or give a template that takes them with chat_template"
        )
    return "Change the conversation, or give a template that takes it with chat_template"

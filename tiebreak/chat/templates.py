"""Input and output of chat templates: the only calls of transformers' templates."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from tiebreak.errors import HandoffError
from tiebreak.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tools = Sequence[Mapping[str, Any]]
"""JSON schemas of functions"""

TOOL_CALL_FORMS = ((False, False), (True, False), (False, True), (True, True))
"""(content null with tool calls alone, arguments as a JSON string): templates differ"""
_TEMPLATE_FAULTS = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
_NOT_FOR_TEMPLATES = {"weight"}
"""Fields of a message that are only for training."""
CALLS = "tool_calls"
_OTHER_TEMPLATE = "give one that renders it with chat_template, or remove it from the data"
_FURTHER_CALL, _ONE_CALL = "a message's second tool call", "give each call a message of its own, or remove it"
_DROP_THOUGHTS = "set thinking: drop, or give a template that renders it with chat_template"

_OPENINGS = (
    *("<|im_start|>", "[INST]", "<s>[INST]", "<start_of_turn>", "<bos>", "<|start_header_id|>", "<|begin_of_text|>"),
    *("<|header_start|>", "<|user|>", "<|system|>", "<|START_OF_TURN_TOKEN|>", "<|start_of_role|>", "<|start|>"),
    *("<｜User｜>", "<｜begin▁of▁sentence｜>"),
)
_ENDINGS = (
    *("<|im_end|>", "</s>", "<end_of_turn>", "<eos>", "<|eot_id|>", "<|eot|>", "<|end_of_text|>", "<|endoftext|>"),
    *("<|end|>", "<|return|>", "<|END_OF_TURN_TOKEN|>", "<|end_of_role|>", "<｜end▁of▁sentence｜>"),
)
"""what the templates of widely used models write before a first turn, and after an answer"""


def opening_mark(text: str) -> str | None:
    """The mark of some model's template that a text begins with, as a prompt does that is rendered already."""
    return next((mark for mark in _OPENINGS if text.lstrip().startswith(mark)), None)


def ending_mark(text: str) -> str | None:
    """The token that ends a turn of some model, if an answer's text ends with it. HTML's <s>…</s> does not count."""
    mark = next((mark for mark in _ENDINGS if text.rstrip().endswith(mark)), None)
    return None if mark == "</s>" and "<s>" in text else mark


Changed = Callable[[], tuple[Sequence[Message], Tools]]
Change = Callable[..., Changed]
"""a conversation with one message's fields changed"""


@dataclass(frozen=True)
class Part:
    """A part of a conversation that a template might omit."""

    name: str
    remedy: str
    """advice if it is omitted"""
    kind: tuple[object, ...]
    """its kind and position: a template that renders one part of a kind is assumed to render them all"""
    changed: Changed
    """the conversation and tools with the part replaced or removed: if the part is rendered, this renders differently"""
    text: str = ""
    """text that the rendering normally contains"""


def parts_of(messages: Sequence[Message], tools: Tools) -> Iterator[Part]:
    """All parts of a conversation to look for in the rendering."""

    def changes(place: int) -> Change:
        def change(**update: Any) -> Changed:
            before, message, after = messages[:place], messages[place], messages[place + 1 :]
            return lambda: ([*before, message.model_copy(update=update), *after], tools)

        return change

    for place, message in enumerate(messages):
        yield from _calls_of(message, changes(place))
    if tools:
        yield Part("tools", _OTHER_TEMPLATE, ("tools", messages[0].role if messages else ""), lambda: (messages, ()))
    for place, message in enumerate(messages):
        before = messages[place - 1].role if place else ""
        yield from _texts_of(message, changes(place), before, is_last=place == len(messages) - 1)


def _calls_of(message: Message, change: Change) -> Iterator[Part]:
    for number, call in enumerate(message.tool_calls):
        name, remedy = (CALLS, _OTHER_TEMPLATE) if number == 0 else (_FURTHER_CALL, _ONE_CALL)
        for key, other in (("name", f"{call.function.name}_"), ("arguments", {**call.function.arguments, "_": 1})):
            function = call.function.model_copy(update={key: other})
            calls = list(message.tool_calls)
            calls[number] = call.model_copy(update={"function": function})
            yield Part(name, remedy, (CALLS, number, key, *_beside(message)), change(tool_calls=tuple(calls)))


def _texts_of(message: Message, change: Change, before: str, *, is_last: bool) -> Iterator[Part]:
    """`before`: the role of the message before it; empty: it is the first."""
    if text := message.text.strip():
        name = f"the text beside {CALLS}" if message.tool_calls else f"a message of the {message.role}"
        if message.role == "system" and before:
            name += " that is not the first"
        kind = ("content", message.role, before, *_beside(message))
        yield Part(name, _OTHER_TEMPLATE, kind, change(content=message.text + " x"), text)
    if message.name is not None and message.role != "tool":
        name = f"the name of the {message.role}"
        yield Part(name, _OTHER_TEMPLATE, ("name", message.role), change(name=None))
    if message.reasoning_content and is_last:
        thought = ("reasoning_content", *_beside(message))
        yield Part("reasoning_content", _DROP_THOUGHTS, thought, change(reasoning_content=None))


def _beside(message: Message) -> tuple[bool, bool]:
    return bool(message.text.strip()), bool(message.tool_calls)


def as_template_message(message: Message, null_content: bool = False, text_arguments: bool = False) -> dict[str, Any]:
    """A message as templates expect it, without absent keys.

    Args:
        null_content: no content if there are only tool calls.
        text_arguments: arguments of tool calls as JSON text.
    """
    values = message.model_dump(exclude=_NOT_FOR_TEMPLATES)
    if message.tool_calls and null_content and not message.text:
        values["content"] = None
    if message.tool_calls and text_arguments:
        for call in values["tool_calls"]:
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return values


def in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose text is a list of one part."""
    return {**message, "content": [{"type": "text", "text": message["content"] or ""}]}


def render_messages(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = False,
    arguments: Mapping[str, Any] | None = None,
    tools: Tools = (),
) -> str:
    """A conversation as the template's text.

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

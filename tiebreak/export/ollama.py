"""Ollama's Modelfile: the GGUF file, the chat template in Go's form, and every end token.

Ollama does not run a model's Jinja template. Without TEMPLATE it looks for the nearest of those that it knows, and where
none is near, it sends the last message alone. So the Go form is derived here: each role's text around its content is read
off rendered conversations. The result is rendered by a reader of Go's templates and compared with the original on longer
conversations. A template that does more is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiebreak.chat.templates import in_parts, render_messages
from tiebreak.errors import HandoffError
from tiebreak.export.go_template import render_go
from tiebreak.export.model_to_export import ModelToExport

MODELFILE = "Modelfile"
_SYSTEM, _USER, _ANSWER, _NEXT = "Qs7", "Qu7", "Qa7", "Qn7"
_TEXTS = ("Say 'hello'.", "Two lines:\n\n1. {{ .Content }}\n2. {% if %}", "naïve — 日本語 🙂")


@dataclass(frozen=True)
class Pieces:
    """The text that a template writes around what each role says."""

    begins: Mapping[str, str]
    ends: Mapping[str, str]
    default: str
    """the beginning of a conversation without a system message"""
    prompt: str
    """text before an answer"""
    thought: tuple[str, str] | None
    """around a thought"""


def modelfile_of(origin: ModelToExport, file: str) -> str:
    """The text of the Modelfile.

    Raises:
        HandoffError: the chat template has no form that Ollama takes.
    """
    template = go_template_of(origin)
    if '"""' in template or any('"' in one for one in origin.end_texts):
        raise HandoffError(
            f"{origin.source.name}: quotes in the chat template's marks cannot be written to a Modelfile"
        )
    stops = "\n".join(f'PARAMETER stop "{one}"' for one in origin.end_texts)
    return f'FROM ./{file}\nTEMPLATE """{template}"""\n{stops}\n'


def go_template_of(origin: ModelToExport) -> str:
    """The chat template in Go's form, equal to the original on conversations of up to four messages.

    Raises:
        HandoffError: there is none.
    """
    refusal = (
        f"{origin.source.name}: the chat template cannot be put into Ollama's form ({{}}), and without it Ollama would ask "
        "in another format than the model learned: use --to gguf with llama.cpp ('llama-server --jinja'), which runs the "
        "template itself"
    )
    try:
        pieces = read_pieces(origin)
    except (ValueError, HandoffError) as error:
        raise HandoffError(refusal.format(error)) from None
    template = write_template(pieces)
    for messages in _conversations("system" in pieces.begins):
        ours = render_go(template, messages)
        if ours != _render(origin, messages):
            roles = ", ".join(one["role"] for one in messages)
            raise HandoffError(refusal.format(f"a conversation of {roles} is rendered otherwise"))
    return template


def _conversations(with_system: bool) -> list[list[dict[str, str]]]:
    """Of one to four messages that end with the user's."""
    found = []
    for turns, text in itertools.product((1, 2), _TEXTS):
        roles = ["user", "assistant"] * (turns - 1) + ["user"]
        for roles_here in [roles, ["system", *roles]] if with_system else [roles]:
            found.append([{"role": role, "content": f"{text} {n}"} for n, role in enumerate(roles_here)])
    return found


def _render(origin: ModelToExport, messages: Sequence[Mapping[str, str]], prompt: bool = True) -> str:
    """The original's text, less a beginning-of-sequence token that llama.cpp adds itself."""
    chat = origin.chat
    taken: list[Mapping[str, Any]] = [in_parts(one) if chat.content_in_parts else one for one in messages]
    text = render_messages(chat.tokenizer, origin.template, taken, prompt)
    bos = chat.tokenizer.bos_token
    adds = list(chat.tokenizer("x")["input_ids"])[:1] == [chat.tokenizer.bos_token_id]
    return text.removeprefix(bos) if bos and adds else text


def read_pieces(origin: ModelToExport) -> Pieces:
    """Read a template's pieces off conversations of one and two turns.

    Raises:
        ValueError: what stands around a message depends on more than its role.
        HandoffError: it refuses an ordinary conversation.
    """
    ask, answer = {"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}
    more = {"role": "user", "content": _NEXT}
    first, after_ask = _around(_render(origin, [ask], False), _USER)
    whole = _render(origin, [ask])
    if not whole.startswith(first + _USER + after_ask):
        raise ValueError("the generation prompt changes what is before it")
    prompt = whole[len(first + _USER + after_ask) :]
    between, after_answer = _around(_around(_render(origin, [ask, answer], False), _USER)[1], _ANSWER)
    before_answer = _without_prefix(between, after_ask)
    next_turn = _around(_around(_render(origin, [ask, answer, more], False), _ANSWER)[1], _NEXT)[0]
    before_ask = _without_prefix(next_turn, after_answer)
    begins, ends = {"user": before_ask, "assistant": before_answer}, {"user": after_ask, "assistant": after_answer}
    try:
        with_system = _render(origin, [{"role": "system", "content": _SYSTEM}, ask], False)
    except HandoffError:
        with_system = ""  # it takes none
    if with_system:
        begins["system"], rest = _around(with_system, _SYSTEM)
        ends["system"] = _without_suffix(_around(rest, _USER)[0], before_ask)
    turn = origin.chat.turn
    thought = (turn.thought_open or turn.thought_mark, turn.thought_close) if turn.thought_open is not None else None
    return Pieces(begins, ends, _without_suffix(first, before_ask), prompt, thought)


def _around(text: str, content: str) -> tuple[str, str]:
    before, found, after = text.partition(content)
    if not found:
        raise ValueError("it leaves a message out")
    return before, after


def _without_prefix(text: str, prefix: str) -> str:
    if not text.startswith(prefix):
        raise ValueError("what ends a message depends on what follows")
    return text[len(prefix) :]


def _without_suffix(text: str, suffix: str) -> str:
    if not text.endswith(suffix):
        raise ValueError("the first message begins otherwise than later ones")
    return text[: len(text) - len(suffix)]


def write_template(pieces: Pieces) -> str:
    """The pieces as a template, in which no blank is added or trimmed."""
    thought = ""
    if pieces.thought:
        opening, closing = map(_literal, pieces.thought)
        thought = f"{{{{ if and $last .Thinking }}}}{opening}{{{{ .Thinking }}}}{closing}{{{{ end }}}}"
    branches = [
        (role, _literal(begin), thought * (role == "assistant"), _literal(pieces.ends[role]))
        for role, begin in pieces.begins.items()
    ]
    written = ""
    for word, (role, begin, inside, end) in zip(("if", "else if", "else if"), branches, strict=False):
        closing = f"{{{{ if not $last }}}}{end}{{{{ end }}}}" if role == "assistant" else end
        written += f'{{{{ {word} eq .Role "{role}" }}}}{begin}{inside}{{{{ .Content }}}}{closing}'
    default = f"{{{{ if not .System }}}}{_literal(pieces.default)}{{{{ end }}}}" if pieces.default else ""
    prompt = f'{{{{ if and $last (ne .Role "assistant") }}}}{_literal(pieces.prompt)}{{{{ end }}}}'
    return (
        f"{default}{{{{ range $i, $_ := .Messages }}}}{{{{ $last := eq (len (slice $.Messages $i)) 1 }}}}"
        f"{written}{{{{ end }}}}{prompt}{{{{ end }}}}"
    )


def _literal(text: str) -> str:
    """Text in which braces are no action."""
    return text.replace("{{", '{{ "{{" }}')

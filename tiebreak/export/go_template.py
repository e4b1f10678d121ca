"""A reader of Go's text/template, as far as derived Ollama templates use it, to check their rendering.

https://pkg.go.dev/text/template. Text stands as it is; actions are if, else, end, range over .Messages, an assignment, and
expressions of and, or, not, eq, ne, len and slice over fields, variables, strings and numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_ACTION = re.compile(r"\{\{(.*?)\}\}", re.S)
_WORD = re.compile(r'"(?:\\.|[^"\\])*"|[()]|:=|,|[^\s()",]+')
_FUNCTIONS = {
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
    "not": lambda value: not value,
    "eq": lambda first, *others: first in others,
    "ne": lambda first, other: first != other,
    "len": len,
    "slice": lambda values, start: values[start:],
}

Node = tuple[str, list[str], list[Any]]
"""(text, if or range or set or print; its words; the branches or the body)"""


def render_go(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation as Ollama renders it.

    Args:
        messages: `role` and `content` of each.

    Raises:
        ValueError: the template uses something that this reader does not know.
    """
    rows = [{"Role": one["role"], "Content": one["content"], "Thinking": ""} for one in messages]
    system = "\n\n".join(one["content"] for one in messages if one["role"] == "system")
    root = {"Messages": rows, "System": system}
    parts = [(n % 2, part) for n, part in enumerate(_ACTION.split(template))]
    nodes, rest = _parse(parts)
    if rest:
        raise ValueError("an end or else without its beginning")
    return _render(nodes, root, {"$": root})


def _parse(parts: list[tuple[int, str]]) -> tuple[list[Node], list[tuple[int, str]]]:
    """The nodes up to an `else` or `end`, and what follows, that one included."""
    nodes: list[Node] = []
    while parts:
        is_action, text = parts[0]
        words = _WORD.findall(text) if is_action else []
        if not is_action:
            nodes.append(("text", [text], []))
        elif words[:1] in (["else"], ["end"]):
            return nodes, parts
        elif words[:1] == ["if"]:
            branches, parts = _branches(words[1:], parts[1:])
            nodes.append(("if", [], branches))
        elif words[:1] == ["range"]:
            body, parts = _parse(parts[1:])
            nodes.append(("range", words[1:], body))
        else:
            nodes.append(("set" if ":=" in words else "print", words, []))
        parts = parts[1:]
    return nodes, parts


def _branches(condition: list[str], parts: list[tuple[int, str]]) -> tuple[list[Any], list[tuple[int, str]]]:
    """(condition, nodes) of each branch, an empty condition for `else`; and what follows, from `end` on."""
    branches = []
    while True:
        body, parts = _parse(parts)
        branches.append((condition, body))
        if not parts:
            raise ValueError("an if without its end")
        words = _WORD.findall(parts[0][1])
        if words == ["end"]:
            return branches, parts
        condition, parts = words[2:], parts[1:]


def _render(nodes: list[Node], dot: Mapping[str, Any], variables: dict[str, Any]) -> str:
    written = []
    for kind, words, inner in nodes:
        if kind == "text":
            written.append(words[0])
        elif kind == "print":
            written.append(str(_evaluate(list(words), dot, variables)))
        elif kind == "set":
            variables[words[0]] = _evaluate(words[2:], dot, variables)
        elif kind == "if":
            taken = (body for words, body in inner if not words or _evaluate(list(words), dot, variables))
            written.append(_render(next(taken, []), dot, variables))
        else:  # range $i, $_ := .Messages
            index, _, _, _, *over = words
            for number, row in enumerate(_evaluate(over, dot, variables)):
                written.append(_render(inner, row, {**variables, index: number}))
    return "".join(written)


def _evaluate(words: list[str], dot: Mapping[str, Any], variables: Mapping[str, Any]) -> Any:
    """A pipeline's value; `words` are used up."""
    if words[0] in _FUNCTIONS:
        function: Any = _FUNCTIONS[words.pop(0)]
        operands = []
        while words and words[0] != ")":
            operands.append(_operand(words, dot, variables))
        return function(*operands)
    return _operand(words, dot, variables)


def _operand(words: list[str], dot: Mapping[str, Any], variables: Mapping[str, Any]) -> Any:
    word = words.pop(0)
    if word == "(":
        value = _evaluate(words, dot, variables)
        words.pop(0)
        return value
    if word.startswith('"'):
        return json.loads(word)
    if word.isdecimal():
        return int(word)
    name, _, field = word.partition(".")
    if name and name not in variables:
        raise ValueError(f"no such function or variable: {word}")
    value = variables[name] if name else dot
    return value[field] if field else value

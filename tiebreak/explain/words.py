"""What each word or token of an answer contributes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A word or token, with the text around it, and its effect."""

    text: str
    effect: float | None
    """None: text between words"""


def leave_one_out(answer: str, score: Callable[[Sequence[str]], Sequence[float]]) -> tuple[float, list[Part]]:
    """(the answer's score, its words), each word's effect being the score minus that of the answer without it.

    Args:
        score: of several answers at once.

    >>> value, parts = leave_one_out("Feed it now.", lambda texts: [float(len(text)) for text in texts])
    >>> value, [(part.text, part.effect) for part in parts if part.effect is not None]
    (12.0, [('Feed', 5.0), ('it', 3.0), ('now.', 5.0)])
    """
    words = list(re.finditer(r"\S+", answer))
    without = [left for left in (_without(answer, *word.span()) for word in words) if left]
    whole, *rest = score([answer, *without])
    effects = [whole - value for value in rest] if len(without) == len(words) else [None] * len(words)
    parts, place = [], 0
    for word, effect in zip(words, effects, strict=True):
        parts += [Part(answer[place : word.start()], None)] if word.start() > place else []
        parts.append(Part(word.group(), effect))
        place = word.end()
    return whole, [*parts, *([Part(answer[place:], None)] if place < len(answer) else [])]


def _without(answer: str, start: int, end: int) -> str:
    """The answer without one of its words and the blanks after it, or before it if it is the last word."""
    left, right = answer[:start], answer[end:].lstrip()
    return (left + right if right else left.rstrip()).strip()

"""The yardstick of the support tickets: five plain criteria of an answer that one would send; its score is their mean."""

from __future__ import annotations

import re
from collections import Counter

_GERMAN = frozenset(
    "der die das und ist nicht ein eine ich sie wir mit auf bei den im zu von wie bitte ihre ihr kann".split()
)
_ENGLISH = frozenset("the and is not a an i you we with on at to of how please your can it in my for do".split())
_STEP = re.compile(
    r"\b(please|choose|check|hold|send|write|try|set|open|take|use|switch|ask|change|bitte|wählen|prüfen|halten|schicken|"
    r"schreiben|versuchen|stellen|öffnen|nehmen|fragen|ändern)\b|\b\d+\s?(days?|hours?|minutes?|tage[n]?|stunden?|minuten)\b",
    re.IGNORECASE,
)
_SECRET = re.compile(
    r"\b(?:password|card number|pin|kennwort|passwort|kartennummer)\b|\S+@\S+|(?:\d[ -]?){9,}", re.IGNORECASE
)


def is_german(text: str) -> bool:
    words = Counter(re.findall(r"\w+", text.lower()))
    return sum(words[word] for word in _GERMAN) > sum(words[word] for word in _ENGLISH)


def criteria(prompt: str, answer: str) -> dict[str, bool]:
    """Each criterion, and whether the answer meets it."""
    words = re.findall(r"\w+", answer.lower())
    runs = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    return {
        "says what to do or when": bool(_STEP.search(answer)),
        "in the customer's language": is_german(prompt) == is_german(answer),
        "no secrets": not _SECRET.search(answer),
        "15 to 70 words": 15 <= len(words) <= 70,
        "no repetition, and an end": max(runs.values(), default=1) == 1 and answer.rstrip().endswith((".", "!", "?")),
    }


def score(prompt: str, answer: str) -> float:
    """The share of the criteria that an answer meets."""
    met = criteria(prompt, answer)
    return sum(met.values()) / len(met)

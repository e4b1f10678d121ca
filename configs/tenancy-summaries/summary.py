"""The yardstick of the tenancy summaries: the mean of five plain criteria of a summary that one could act on."""

from __future__ import annotations

import re
from collections import Counter


def criteria(prompt: str, answer: str) -> dict[str, bool]:
    """Each criterion, and whether the summary meets it."""
    document, numbers = set(re.findall(r"\d+", prompt)), re.findall(r"\d+", answer)
    words = re.findall(r"\w+", answer.lower())
    runs = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    names = {name for name in re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+", prompt) if name in answer}
    return {
        "no number that is not in the document": bool(numbers) and set(numbers) <= document,
        "four sums or dates": len(set(numbers) & document) >= 4,
        "names a party or a place": bool(names),
        "30 to 110 words": 30 <= len(words) <= 110,
        "no repetition, and an end": max(runs.values(), default=1) == 1 and answer.rstrip().endswith((".", "!", "?")),
    }


def score(prompt: str, answer: str) -> float:
    """The share of the criteria that a summary meets."""
    met = criteria(prompt, answer)
    return sum(met.values()) / len(met)

"""Repetition within an answer, a sign of over-training."""

from __future__ import annotations

import re

REPEATED_WORDS = 4


def repeated_share(answer: str) -> float:
    """Share of an answer's 4-word sequences that occurred earlier in it; 0 for fewer words."""
    words = re.findall(r"[\w°%'.-]*\w[\w°%']*", answer.lower())
    runs = [tuple(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0

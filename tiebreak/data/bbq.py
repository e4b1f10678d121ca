"""Rows of the Bias Benchmark for QA (Parrish et al. 2022): a context, a question and three answers.

The prompt is the same wherever a row is read, so that the yardsticks `bbq:FILE` and `bbq_bias:FILE` find a prompt's row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = ("context", "question", "ans0", "ans1", "ans2")
READ_BY_YARDSTICKS = (
    "example_id",
    "question_index",
    "question_polarity",
    "context_condition",
    "category",
    "answer_info",
    "additional_metadata",
    "label",
)
LETTERS = "ABC"


def is_bbq(row: Mapping[str, Any]) -> bool:
    """Whether a row has BBQ's columns."""
    return all(isinstance(row.get(name), str) for name in COLUMNS)


def prompt_of(row: Mapping[str, Any]) -> str:
    """The question as a prompt.

    >>> row = {"context": "Ann and Bob.", "question": "Who was rude?", "ans0": "Ann", "ans1": "Bob", "ans2": "Unknown"}
    >>> prompt_of(row).splitlines()[2:]
    ['A. Ann', 'B. Bob', 'C. Unknown', 'Answer with A, B or C.']
    """
    options = [f"{letter}. {row[f'ans{n}'].strip()}" for n, letter in enumerate(LETTERS)]
    return "\n".join([row["context"].strip(), row["question"].strip(), *options, "Answer with A, B or C."])

"""Single answers, beside the pairs: one completion of a prompt, rated, reviewed or classified by itself.

A single answer is kept where pairs are, and an assessment of it where judgments are. `read_pair` and `read_judgment` tell
them apart by their task.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeGuard, get_args

from pydantic import Field, StrictInt, model_validator

from tiebreak.messages import is_empty
from tiebreak.records import ExportedJudgment, Judgment, Pair

SingleTask = Literal["rate", "review", "classify"]
SINGLE_TASKS: tuple[SingleTask, ...] = get_args(SingleTask)
VERDICTS = ("accept", "edit", "reject")
"""of a review"""


FLAGGED = "flagged"
"""the key in `origin` of the reasons why a step of *prepare* flagged the row"""
NOT_FLAGGED = " (not flagged)"
"""Suffix of the batch with the answers of a *prepare* run that no step flagged: they are kept without a review."""


class SingleAnswer(Pair):
    """One completion of a prompt, to be judged by itself."""

    task: SingleTask
    source: str = Field(default="", exclude_if=is_empty)
    """where the prompt is from"""
    tags: tuple[str, ...] = Field(default=(), exclude_if=is_empty)
    origin: dict[str, Any] = Field(default={}, exclude_if=is_empty)
    """the row's other columns, which say where the answer is from; exports carry them on"""

    @model_validator(mode="after")
    def _distinct(self) -> SingleAnswer:
        if len(self.completions) != 1:
            raise ValueError(f"{self.task} is a task about one completion, not {len(self.completions)}")
        if not self.completions[0].text.strip():
            raise ValueError("the answer is empty")
        return self

    @property
    def text(self) -> str:
        """The answer's text."""
        return self.completions[0].text


class Assessment(Judgment):
    """One rater's judgment of a single answer: a rating from 1, a verdict of a review, or a class."""

    right: str = Field(default="", exclude_if=is_empty)
    """always empty: there is no second answer"""
    task: SingleTask
    value: StrictInt | str | None = None
    """the rating, one of `VERDICTS`, or the class; None: skipped"""

    @model_validator(mode="after")
    def _answered_once(self) -> Assessment:
        if self.right or self.answer is not None or self.both_bad or self.ranking is not None:
            raise ValueError(f"{self.task} is a task about one answer, which is compared with none")
        if (self.value is None) is not self.skip:
            raise ValueError("a value, or a skip, is required")
        if self.value is not None and isinstance(self.value, int) is not (self.task == "rate"):
            raise ValueError(f"{self.value!r} is no value of the task {self.task}")
        if self.task == "review" and self.value not in (None, *VERDICTS):
            raise ValueError(f"a review's value is one of {', '.join(VERDICTS)}")
        if (self.edited_text is not None) is not (self.value == "edit"):
            raise ValueError("edited_text belongs to the verdict edit, and that verdict needs it")
        if self.skip_reason and not self.skip:
            raise ValueError("skip_reason needs skip")
        return self


class ExportedAssessment(Assessment, ExportedJudgment):
    """An assessment as an export writes it."""

    @property
    def judgment(self) -> Assessment:
        """Without what the export added."""
        return Assessment.model_validate(self.model_dump(include=set(Assessment.model_fields)))


def decide_review(verdicts: Sequence[str]) -> str | None:
    """The verdict of several reviewers; None: as many reject as accept or edit.

    >>> decide_review(["accept", "edit"]), decide_review(["accept", "reject"])
    ('edit', None)
    """
    usable, rejected = verdicts.count("accept") + verdicts.count("edit"), verdicts.count("reject")
    if usable == rejected:
        return None
    if rejected > usable:
        return "reject"
    return "edit" if verdicts.count("edit") >= verdicts.count("accept") else "accept"


RATINGS_APART = 2
"""steps of the scale from which two ratings are a disagreement; one more, and it is about good or bad"""


def disagreement(task: SingleTask, values: Iterable[int | str]) -> Literal[0, 1, 2]:
    """How far raters disagree on a single answer: 2 on its outcome, 1 by degree, 0 not at all.

    Some reject what others accept or edit; classes differ; ratings are two steps apart (1), or more (2).

    >>> disagreement("review", ["accept", "edit"]), disagreement("review", ["edit", "reject"])
    (0, 2)
    >>> disagreement("rate", [3, 4, 4]), disagreement("rate", [2, 4]), disagreement("rate", [1, 4])
    (0, 1, 2)
    """
    given = set(values)
    if task == "review":
        return 2 if "reject" in given and len(given) > 1 else 0
    if task == "classify":
        return 2 if len(given) > 1 else 0
    ratings = [value for value in given if isinstance(value, int)]
    apart = max(ratings) - min(ratings) if ratings else 0
    return 2 if apart > RATINGS_APART else 1 if apart == RATINGS_APART else 0


def is_single(task: str) -> TypeGuard[SingleTask]:
    """Whether a task is about one answer."""
    return task in SINGLE_TASKS


def read_pair(record: str) -> Pair:
    """A stored pair or single answer."""
    if _has_task(record):
        return SingleAnswer.model_validate_json(record)
    return Pair.model_validate_json(record)


def read_judgment(record: str) -> Judgment:
    """A stored judgment or assessment."""
    if _has_task(record):
        return Assessment.model_validate_json(record)
    return Judgment.model_validate_json(record)


def _has_task(record: str) -> bool:
    # The text alone is no proof: a criterion or a tool's argument may have that name.
    return '"task":' in record and "task" in json.loads(record)

"""What a campaign asks beside the vote: flags, criteria, reasons, marked passages and links.

The store accepts every well-formed answer; here it is first checked against the campaign's questions and requirements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from labeling_ui.database.errors import RefusedError
from labeling_ui.store.answers import NAME, Answer, Draft
from tiebreak.config import Section
from tiebreak.records import CriterionValue

FlagTarget = Literal["answers", "prompt"]
Scale = Literal["bar", "stars", "yes_no", "choice"]
Required = Literal["never", "strong", "always"]

FLAGS: dict[str, FlagTarget] = {
    "unsafe": "answers", "personal_data": "answers", "broken_prompt": "prompt", "wrong_language": "answers",
}  # fmt: skip
RATINGS = ("very poor", "poor", "fair", "good", "very good")
MOST_BY_DIGIT = 9
"""Flags, choices and labels have the digits as keys."""
STARS = 5
STRONG = 3
"""answers of this size are strong judgments: much better"""


class Criterion(Section):
    """A campaign's own question, answered in addition to the vote."""

    name: str = Field(pattern=NAME)
    """its name in exports: a-z, 0-9 and _, beginning with a letter; the page shows it with spaces"""
    question: str = Field(default="", max_length=200)
    """the text that raters read"""
    scale: Scale = "bar"
    """bar: which answer is better, in seven steps; stars: 1 to 5; yes_no; choice: one of `choices`"""
    choices: list[str] = Field(default_factory=list, max_length=MOST_BY_DIGIT)
    """choice: two to nine texts"""
    about: Literal["answers", "pair"] | None = None
    """yes_no, choice. answers: one value for each answer; pair: one for the pair; null: answers. A bar is always about
    the pair, stars about each answer"""
    required: bool = False
    """required for every vote except a skip"""

    @model_validator(mode="after")
    def _complete(self) -> Criterion:
        if self.scale == "bar" and self.about == "answers":
            raise ValueError(f"about: {self.name} is a bar, which compares the answers: leave it out, or choose stars")
        if self.scale == "stars" and self.about == "pair":
            raise ValueError(f"about: {self.name} has stars, which rate single answers: leave it out, or choose bar")
        if (self.scale == "choice") != bool(self.choices):
            raise ValueError(f"choices: {self.name} has the scale {self.scale}; choices belong to the scale choice")
        if self.scale == "choice" and not 2 <= len(set(self.choices)) == len(self.choices):
            raise ValueError(f"choices: {self.name} needs two or more, each once")
        if any(not 1 <= len(choice.strip()) <= 60 for choice in self.choices):
            raise ValueError(f"choices: {self.name}: each must have 1 to 60 characters")
        return self

    @property
    def is_of_each(self) -> bool:
        """Whether every answer has a value of its own."""
        return self.scale != "bar" and self.about != "pair"

    def allows(self, value: object) -> bool:
        """Whether this is a value of its scale."""
        if self.scale == "yes_no":
            return isinstance(value, bool)
        if self.scale == "choice":
            return value in self.choices
        low, high = (-STRONG, STRONG) if self.scale == "bar" else (1, STARS)
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    @property
    def expected(self) -> str:
        """Its values, in words."""
        values = {"bar": "-3 to 3", "stars": f"1 to {STARS}", "yes_no": "true or false"}
        return values.get(self.scale) or f"one of {', '.join(self.choices)}"


class Questionnaire(Section):
    """What a campaign asks beside the vote."""

    aspects: tuple[str, ...] = ()
    flags: dict[str, FlagTarget] = FLAGS
    criteria: tuple[Criterion, ...] = ()
    reasons: Required = "never"
    spans: dict[str, int] = {}
    """labels of marked passages, each with what it says of them: 1 good, -1 bad, 0 neither"""
    links: bool = False
    ratings: tuple[str, ...] = RATINGS
    """steps of the scale on which single answers are rated, from worst to best"""
    classes: tuple[str, ...] = ()
    """of single answers"""

    def refuse_value(self, task: str, value: int | str | None) -> None:
        """Refuse a value of a single answer that the campaign does not offer.

        Raises:
            RefusedError: it is not a step of the scale, or not one of the classes.
        """
        if task == "rate" and value is not None and not (isinstance(value, int) and value <= len(self.ratings)):
            raise RefusedError(f"a rating is from 1 to {len(self.ratings)}")
        if task == "classify" and value is not None and value not in self.classes:
            raise RefusedError(f"there is no class {str(value)[:40]!r}: expected one of {', '.join(self.classes)}")

    def faults(self, draft: Draft) -> list[str]:
        """The parts of a draft that the campaign does not ask for."""
        faults = []
        if unasked := sorted(set(draft.aspects) - set(self.aspects)):
            faults.append(f"aspects: this campaign does not ask for {', '.join(unasked)}")
        if unasked := sorted({*draft.flags, *_flat(draft.answer_flags)} - set(self.flags)):
            faults.append(f"flags: unknown flag {unasked[0]!r}: expected one of {', '.join(self.flags)}")
        if misplaced := sorted(flag for flag in _flat(draft.answer_flags) if self.flags.get(flag) == "prompt"):
            faults.append(f"answer_flags: {misplaced[0]} is a flag of the prompt: set it in flags")
        if unasked := sorted(set(draft.criteria) - {one.name for one in self.criteria}):
            faults.append(f"criteria: this campaign does not ask for {', '.join(unasked)}")
        if unasked := sorted({span.label for span in draft.spans} - set(self.spans)):
            faults.append(f"spans: unknown label {unasked[0]!r}: expected one of {', '.join(self.spans) or 'none'}")
        if draft.links and not self.links:
            faults.append("links: this campaign does not ask for links")
        return [*faults, *self._wrong_values(draft.criteria)]

    def _wrong_values(self, values: Mapping[str, CriterionValue]) -> list[str]:
        faults = []
        for criterion in self.criteria:
            value = values.get(criterion.name)
            if value is None:
                continue
            parts = list(value.values()) if isinstance(value, dict) else [value]
            if isinstance(value, dict) is not criterion.is_of_each:
                form = "a value for each answer" if criterion.is_of_each else "one value"
                faults.append(f"criteria: {criterion.name} needs {form}")
            elif not all(criterion.allows(part) for part in parts):
                faults.append(f"criteria: {criterion.name} must be {criterion.expected}")
        return faults

    @property
    def requires_something(self) -> bool:
        """Whether anything besides the vote may be required."""
        return self.reasons != "never" or any(criterion.required for criterion in self.criteria)

    def require(self, answer: Answer, shown: Sequence[str]) -> None:
        """Refuse an answer without what the campaign requires.

        Raises:
            RefusedError: a criterion, or the reason, is missing.
        """
        if answer.skip:
            return
        for criterion in self.criteria:
            if criterion.required and not (criterion.scale == "bar" and len(shown) != 2):
                value = answer.criteria.get(criterion.name)
                if value is None or (isinstance(value, dict) and set(value) != set(shown)):
                    raise RefusedError(f"{criterion.name} is required: answer it, or skip the pair")
        strong = self.reasons == "strong" and abs(answer.answer or 0) == STRONG
        if (strong or self.reasons == "always") and not answer.rationale.strip():
            raise RefusedError("a reason is required: write one, or skip the pair")


def _flat(flags: Mapping[str, Sequence[str]]) -> list[str]:
    return [flag for of_one in flags.values() for flag in of_one]


def describe_asked(asked: Questionnaire, words: Mapping[str, str]) -> dict[str, Any]:
    """The same for the page's script, with the words to show."""
    return {
        "aspects": list(asked.aspects),
        "flags": [{"name": name, "label": in_words(name, "flag", words), "of": of} for name, of in asked.flags.items()],
        "criteria": [
            {
                **one.model_dump(include={"name", "question", "scale", "choices", "required"}),
                "label": in_words(one.name, "criterion", words),
                "each": one.is_of_each,
            }
            for one in asked.criteria
        ],
        "reasons": asked.reasons,
        "spans": [
            {"name": name, "label": in_words(name, "span", words), "value": value}
            for name, value in asked.spans.items()
        ],
        "links": asked.links,
        "ratings": list(asked.ratings),
        "classes": list(asked.classes),
    }


def in_words(name: str, kind: str, words: Mapping[str, str]) -> str:
    """A name as raters read it: the page's word for it, or itself."""
    return words.get(f"{kind}.{name}") or name.replace("_", " ").capitalize()

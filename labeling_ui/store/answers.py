"""Validated forms of what clients send about a pair.

None of them contains the sides: the store has them.
"""

from __future__ import annotations

from itertools import chain

from pydantic import Field, StrictBool, StrictInt, field_validator, model_validator

from tiebreak.records import Record

FLAGS = ("unsafe", "personal_data", "broken_prompt", "wrong_language")
ASPECTS = ("helpful", "honest", "harmless")
SKIP_REASONS = ("cannot_decide", "not_my_field", "broken", "too_long", "other")
MAX_RATIONALE_CHARACTERS = 4_000
MAX_EDITED_CHARACTERS = 100_000
MAX_RANKED = 20

Ranking = tuple[tuple[str, ...], ...]


class Draft(Record):
    """A judgment's details, and a draft."""

    answer: StrictInt | None = Field(default=None, ge=-3, le=3)
    both_bad: StrictBool = False
    skip: StrictBool = False
    skip_reason: str = ""
    ranking: Ranking | None = None
    """for pairs of more than two: ids of completions from best to worst, in groups of equals; a draft may be partial"""
    aspects: dict[str, StrictInt] = Field(default_factory=dict)
    rationale: str = Field(default="", max_length=MAX_RATIONALE_CHARACTERS)
    edited_text: str | None = Field(default=None, max_length=MAX_EDITED_CHARACTERS)
    flags: tuple[str, ...] = ()

    @field_validator("rationale", "edited_text")
    @classmethod
    def _storable(cls, text: str | None) -> str | None:
        return storable(text)

    @field_validator("flags")
    @classmethod
    def _known_flags(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [flag for flag in flags if flag not in FLAGS]:
            raise ValueError(f"unknown flag {unknown[0][:40]!r}: expected one of {', '.join(FLAGS)}")
        return tuple(sorted(set(flags)))

    @field_validator("skip_reason")
    @classmethod
    def _known_reason(cls, reason: str) -> str:
        if reason and reason not in SKIP_REASONS:
            raise ValueError(f"unknown reason {reason[:40]!r}: expected one of {', '.join(SKIP_REASONS)}")
        return reason

    @field_validator("aspects")
    @classmethod
    def _known_aspects(cls, aspects: dict[str, int]) -> dict[str, int]:
        for name, answer in aspects.items():
            if name not in ASPECTS or not -3 <= answer <= 3:
                raise ValueError(f"{name[:40]!r}: an aspect is one of {', '.join(ASPECTS)}, with a value from -3 to 3")
        return aspects

    @field_validator("ranking")
    @classmethod
    def _each_once(cls, ranking: Ranking | None) -> Ranking | None:
        if ranking is not None:
            ranked = list(chain.from_iterable(ranking))
            if not 1 <= len(ranked) <= MAX_RANKED or len(set(ranked)) < len(ranked) or not all(ranking):
                raise ValueError(
                    f"a ranking has at most {MAX_RANKED} completions, each once, in groups that are not empty"
                )
        return ranking


class Answer(Draft):
    """A complete answer: exactly one of answer, both_bad, skip and ranking."""

    guideline_version: str = Field(default="", max_length=100)
    seconds_active: float | None = Field(default=None, ge=0, le=86_400, allow_inf_nan=False)
    seconds_idle: float | None = Field(default=None, ge=0, le=86_400 * 30, allow_inf_nan=False)
    """time on the screen without activity; stored in the log beside the judgment"""
    client_at_ms: StrictInt | None = Field(default=None, ge=0, le=2**52)
    """the client's clock; the server's time is stored beside it in the log"""

    @field_validator("guideline_version")
    @classmethod
    def _storable_version(cls, text: str | None) -> str | None:
        return storable(text)

    @model_validator(mode="after")
    def _answered_once(self) -> Answer:
        if (self.answer is not None) + self.both_bad + self.skip + (self.ranking is not None) != 1:
            raise ValueError("exactly one of answer, both_bad, skip and ranking is required")
        one_is_first = self.ranking is not None and len(self.ranking[0]) == 1
        if self.edited_text is not None and not self.answer and not one_is_first:
            raise ValueError(
                "edited_text edits the better answer: it needs an answer that prefers a side, or a ranking with one "
                "completion alone in first place"
            )
        if self.skip_reason and not self.skip:
            raise ValueError("skip_reason needs skip")
        return self


class Submission(Answer):
    """A judgment as a client sends it."""

    client_id: str = Field(min_length=1, max_length=64)
    """made by the client for each judgment: sending it again is harmless"""
    pair_id: str = Field(max_length=2_000)

    @field_validator("client_id", "pair_id")
    @classmethod
    def _storable_too(cls, text: str | None) -> str | None:
        return storable(text)


def storable(text: str | None) -> str | None:
    """`text`, if every database can store it. Raises ValueError for NUL and surrogate halves."""
    if text is not None and ("\0" in text or any("\ud800" <= c <= "\udfff" for c in text)):
        raise ValueError("contains NUL or broken Unicode")
    return text

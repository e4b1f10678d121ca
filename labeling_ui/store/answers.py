"""Validated forms of what clients send about a pair.

None of them contains the sides: the store has them.
"""

from __future__ import annotations

import re
from itertools import chain
from urllib.parse import urlsplit

from pydantic import Field, StrictBool, StrictInt, field_validator, model_validator

from tiebreak.messages import Record, is_empty
from tiebreak.records import CriterionValue, Span

NAME = r"^[a-z][a-z0-9_]{0,39}$"
"""Of flags, criteria and labels: they are columns and keys elsewhere."""
ASPECTS = ("helpful", "honest", "harmless")
SKIP_REASONS = ("cannot_decide", "not_my_field", "broken", "too_long", "other")
MAX_RATIONALE_CHARACTERS = 4_000
MAX_EDITED_CHARACTERS = 100_000
MAX_RANKED = 20
MAX_NAMES = 20
"""Flags or criteria of one judgment."""
MAX_SPANS = 100
MAX_COMMENT_CHARACTERS = 1_000
MAX_LINKS = 10
MAX_LINK_CHARACTERS = 2_000
MAX_CLASS_CHARACTERS = 60
MAX_RATING = 9

Ranking = tuple[tuple[str, ...], ...]


class Draft(Record):
    """A judgment's details, and a draft."""

    answer: StrictInt | None = Field(default=None, ge=-3, le=3)
    both_bad: StrictBool = False
    skip: StrictBool = False
    skip_reason: str = ""
    value: StrictInt | str | None = Field(default=None, exclude_if=is_empty)
    """of a single answer: its rating, the verdict of its review, or its class"""
    ranking: Ranking | None = None
    """for pairs of more than two: ids of completions from best to worst, in groups of equals; a draft may be partial"""
    aspects: dict[str, StrictInt] = Field(default_factory=dict)
    rationale: str = Field(default="", max_length=MAX_RATIONALE_CHARACTERS)
    edited_text: str | None = Field(default=None, max_length=MAX_EDITED_CHARACTERS)
    flags: tuple[str, ...] = Field(default=(), max_length=MAX_NAMES)
    answer_flags: dict[str, tuple[str, ...]] = Field(default_factory=dict, exclude_if=is_empty, max_length=MAX_RANKED)
    """the answers that flags are said of, each with its flags, which are among `flags` too"""
    criteria: dict[str, CriterionValue] = Field(default_factory=dict, exclude_if=is_empty, max_length=MAX_NAMES)
    """values of the campaign's own criteria; those of each answer by its id"""
    spans: tuple[Span, ...] = Field(default=(), exclude_if=is_empty, max_length=MAX_SPANS)
    links: tuple[str, ...] = Field(default=(), exclude_if=is_empty, max_length=MAX_LINKS)
    """evidence: addresses that are kept and never fetched"""

    @model_validator(mode="after")
    def _all_flags(self) -> Draft:
        if said := set(chain.from_iterable(self.answer_flags.values())) - set(self.flags):
            # frozen: the record is not used by anybody yet
            object.__setattr__(self, "flags", tuple(sorted({*self.flags, *said})))
        return self

    @field_validator("answer_flags")
    @classmethod
    def _names_of_flags(cls, flags: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for of_one in flags.values():
            cls._known_flags(of_one)
        return {str(storable(key)): tuple(sorted(set(of_one))) for key, of_one in sorted(flags.items()) if of_one}

    @field_validator("criteria")
    @classmethod
    def _storable_values(cls, criteria: dict[str, CriterionValue]) -> dict[str, CriterionValue]:
        for name, value in criteria.items():
            parts = [*value, *value.values()] if isinstance(value, dict) else [value]
            if not re.match(NAME, name):
                raise ValueError(f"invalid name {name[:40]!r}")
            for text in parts:
                if isinstance(text, str) and len(str(storable(text))) > MAX_LINK_CHARACTERS:
                    raise ValueError(f"{name}: too long")
        return criteria

    @field_validator("spans")
    @classmethod
    def _storable_spans(cls, spans: tuple[Span, ...]) -> tuple[Span, ...]:
        for span in spans:
            if not re.match(NAME, span.label):
                raise ValueError(f"invalid label {span.label[:40]!r}")
            if len(str(storable(span.comment))) > MAX_COMMENT_CHARACTERS:
                raise ValueError(f"a comment has at most {MAX_COMMENT_CHARACTERS} characters")
            storable(span.completion)
        return spans

    @field_validator("links")
    @classmethod
    def _addresses(cls, links: tuple[str, ...]) -> tuple[str, ...]:
        for link in links:
            if not is_address(str(storable(link))):
                raise ValueError(f"not a web address: {link[:60]!r}; one begins with https:// or http://")
        return links

    @field_validator("value")
    @classmethod
    def _storable_value(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, str) and len(str(storable(value))) > MAX_CLASS_CHARACTERS:
            raise ValueError(f"a class has at most {MAX_CLASS_CHARACTERS} characters")
        if isinstance(value, int) and not 1 <= value <= MAX_RATING:
            raise ValueError(f"a rating is from 1 to {MAX_RATING}")
        return value

    @field_validator("rationale", "edited_text")
    @classmethod
    def _storable(cls, text: str | None) -> str | None:
        return storable(text)

    @field_validator("flags")
    @classmethod
    def _known_flags(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [flag for flag in flags if not re.match(NAME, flag)]:
            raise ValueError(f"unknown flag {unknown[0][:40]!r}")
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
    """A complete answer: exactly one of answer, both_bad, skip, ranking and value."""

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
        if (
            sum([self.answer is not None, self.both_bad, self.skip, self.ranking is not None, self.value is not None])
            != 1
        ):
            raise ValueError("exactly one of answer, both_bad, skip, ranking and value is required")
        one_is_first = self.ranking is not None and len(self.ranking[0]) == 1
        edits = self.answer or one_is_first or self.value == "edit"
        if self.edited_text is not None and not edits:
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


def is_address(link: str) -> bool:
    """Whether a text is one http or https address."""
    if len(link) > MAX_LINK_CHARACTERS or not re.fullmatch(r"https?://[^\s\x00-\x20\x7f]+", link, re.IGNORECASE):
        return False
    try:
        return bool(urlsplit(link).hostname)
    except ValueError:
        return False


def storable(text: str | None) -> str | None:
    """`text`, if every database can store it. Raises ValueError for NUL and surrogate halves."""
    if text is not None and ("\0" in text or any("\ud800" <= c <= "\udfff" for c in text)):
        raise ValueError("contains NUL or broken Unicode")
    return text

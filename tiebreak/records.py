"""The records that stages exchange, and their files.

Every record is a frozen pydantic model; files of them are JSON Lines, one object per line, UTF-8. `tiebreak.data` reads
them, and converts other data to them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from tiebreak.content import ImagePart, MediaPart, Parts, TextPart, read_parts

Split = Literal["train", "validation", "test"]
Kind = Literal["human", "simulated", "model", "synthetic", "unstated"]
Purpose = Literal["training", "evaluation"]
RecordKind = Literal["prompts", "demonstrations", "preferences", "answers"]
"""what a stage reads a source as"""
MAX_STRENGTH = 3
"""of a preference: much better"""


class Record(BaseModel):
    """A frozen row. Unknown fields are refused: a misspelt column would otherwise be lost silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _absent(value: object) -> bool:
    """Absent fields are not written, so that files and ids of data without them do not change."""
    return value is None or value == ()


def is_empty(value: object) -> bool:
    """Whether a field is empty, and so is not written: files without it keep their bytes."""
    return not value


def _is_training(purpose: object) -> bool:
    return purpose == "training"


class RepeatedKeyError(ValueError):
    """An object has a key twice. JSON allows that, but only one of the two values would be read."""


def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object from its pairs of key and value: the decoder's `object_pairs_hook`.

    Raises:
        RepeatedKeyError: it has a key twice.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedKeyError(f"{next(name for name in names if names.count(name) > 1)!r} is in one object twice")
    return made


def strict_json(text: str) -> Any:
    """The JSON value in a part of a row.

    Raises:
        ValueError: the text is not JSON, or an object has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None


def _is_finite(value: object) -> bool:
    if isinstance(value, dict | list | tuple):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


class FunctionCall(Record):
    """A function call by the assistant."""

    name: str = Field(min_length=1)
    arguments: dict[str, Any] = {}

    def __hash__(self) -> int:
        return hash(content_id("call", self.name, self.arguments))

    @field_validator("arguments", mode="before")
    @classmethod
    def _as_mapping(cls, value: object) -> object:
        """OpenAI writes the arguments as a JSON string."""
        if value is None or value == "":
            return {}
        if isinstance(value, str):
            value = strict_json(value)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__}, not a JSON object")
        if not _is_finite(value):
            raise ValueError("NaN or Infinity is in it, which JSON does not have")
        return value


class ToolCall(Record):
    """A tool call in OpenAI's form. `{name, arguments}` alone is accepted too."""

    id: str | None = Field(default=None, exclude_if=_absent)
    type: Literal["function"] = "function"
    function: FunctionCall

    @model_validator(mode="before")
    @classmethod
    def _wrapped(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        value = {key: part for key, part in value.items() if part is not None}
        if "function" in value or "name" not in value:
            return value
        flat = {key: value.pop(key) for key in ("name", "arguments") if key in value}
        return {**value, "function": flat}


def _read_content(content: object) -> str | Parts:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return read_parts(content)
    raise ValueError(f"content is {json.dumps(content)[:40]}, neither text nor a list of parts")


def _read_calls_and_thought(message: dict[str, Any]) -> None:
    """JSON as tool calls, `thinking` as `reasoning_content`; empty ones are left out."""
    if isinstance(message.get("tool_calls"), str):
        message["tool_calls"] = parse_json(message["tool_calls"], "tool_calls")
    thought = message.pop("thinking", "")
    if thought and message.setdefault("reasoning_content", thought) != thought:
        raise ValueError("thinking and reasoning_content differ: keep one of them")
    for key in ("tool_calls", "reasoning_content"):
        if key in message and not message[key]:
            del message[key]


class Message(Record):
    """One turn of a conversation, in OpenAI's form."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | Parts
    """text; a list of parts if there is an image among them"""
    tool_calls: tuple[ToolCall, ...] = Field(default=(), exclude_if=_absent)
    """the assistant's calls"""
    tool_call_id: str | None = Field(default=None, exclude_if=_absent)
    """for a tool's result: the call that it answers"""
    name: str | None = Field(default=None, exclude_if=_absent)
    """the speaker's name, or the tool's"""
    reasoning_content: str | None = Field(default=None, exclude_if=_absent)
    """the assistant's thoughts before its answer; also read from `thinking`"""
    weight: Literal[0, 1] | None = Field(default=None, exclude_if=_absent)
    """0: the assistant's turn is context and is not trained on"""

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, value: object) -> object:
        """Normalises the forms of OpenAI, TRL and Arrow: no null keys, `thinking` renamed, text alone as a string.

        Unknown keys are refused by name: silently dropped, they would make training wrong.
        """
        if not isinstance(value, dict) or (
            len(value) == 2 and isinstance(value.get("content"), str) and "role" in value
        ):
            return value
        message = {key: part for key, part in value.items() if part is not None}
        _read_calls_and_thought(message)
        if unknown := sorted(message.keys() - cls.model_fields.keys()):
            raise ValueError(
                f"unknown message key {', '.join(map(repr, unknown))}; a message has {', '.join(cls.model_fields)}: "
                f"rename it, or leave it out with columns: {{message.{unknown[0]}: null}}"
            )
        if "content" in message:
            message["content"] = _read_content(message["content"])
        elif message.get("tool_calls"):
            message["content"] = ""
        elif "content" in value:
            raise ValueError("content is null: only a message with tool_calls may have none")
        return message

    @model_validator(mode="after")
    def _belongs_to_its_role(self) -> Message:
        for key in ("tool_calls", "reasoning_content", "weight"):
            if not _absent(getattr(self, key)) and self.role != "assistant":
                raise ValueError(f"{key} on the message of the {self.role}: only an assistant's message has it")
        if self.tool_call_id is not None and self.role != "tool":
            raise ValueError(f"tool_call_id on the message of the {self.role}: only a tool's message has it")
        return self

    @property
    def text(self) -> str:
        """Its text, without images: code that reads only the text must refuse images first (see `images`)."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """Its images, in order."""
        if isinstance(self.content, str):
            return ()
        return tuple(part for part in self.content if isinstance(part, ImagePart))

    @property
    def media(self) -> tuple[MediaPart, ...]:
        """Its images and recordings, in order."""
        if isinstance(self.content, str):
            return ()
        return tuple(part for part in self.content if not isinstance(part, TextPart))

    @property
    def display_text(self) -> str:
        """Its text, with `[image cat.png]` in place of each image."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text if isinstance(part, TextPart) else part.mark for part in self.content)

    @property
    def numbered_text(self) -> str:
        """Its text, with `[image 1]` and `[audio 2]` in place of each: file names may tell who made them."""
        if isinstance(self.content, str):
            return self.content
        numbers, text = iter(range(1, len(self.content) + 1)), ""
        for part in self.content:
            added = part.text if isinstance(part, TextPart) else f"[{part.type} {next(numbers)}]"
            text += f" {added}" if text and not (text[-1].isspace() or added[:1].isspace()) else added
        return text

    def map_text(self, change: Callable[[str], str]) -> Message:
        """The message with each of its texts changed."""
        if isinstance(self.content, str):
            return self.model_copy(update={"content": change(self.content)})
        parts = (TextPart(text=change(part.text)) if isinstance(part, TextPart) else part for part in self.content)
        return self.model_copy(update={"content": tuple(parts)})

    @property
    def is_empty(self) -> bool:
        """Whether it has neither text nor images, audio or calls."""
        return not self.text.strip() and not self.media and not self.tool_calls

    @property
    def is_plain(self) -> bool:
        """Whether it has only a role and text."""
        others = (key for key in type(self).model_fields if key not in ("role", "content"))
        return isinstance(self.content, str) and all(_absent(getattr(self, key)) for key in others)


def parse_json(text: str, what: str) -> Any:
    """The JSON text of a part of a row. Raises ValueError, which names the part."""
    try:
        return strict_json(text)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


Messages = tuple[Message, ...]
Tools = tuple[dict[str, Any], ...]
"""JSON schemas of the functions that the assistant may call, each `{type: function, function: {…}}`."""


def content_id(prefix: str, *parts: object) -> str:
    """A short id made from content: the same content has the same id on every machine."""
    canonical = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=_as_json)
    return f"{prefix}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def _as_json(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"cannot hash a {type(value).__name__}")


def prompt_id(messages: Sequence[Message], tools: Tools = ()) -> str:
    """The id of a prompt: a hash of its messages and tools.

    `weight` is excluded: it changes the training, not the prompt.
    """
    fields = [(message.role, message.content, *_further_fields(message)) for message in messages]
    return content_id("prompt", fields, tools) if tools else content_id("prompt", fields)


def split_key(messages: Sequence[Message], tools: Tools = ()) -> str:
    """A prompt's identity for its split: its id, whatever blanks surround its texts, however their lines end, and whether
    an é is one character or two (NFC or NFD)."""
    return prompt_id([message.map_text(_composed) for message in messages], tools)


def comparison_key(messages: Sequence[Message], tools: Tools, texts: Iterable[str]) -> tuple[str, frozenset[str]]:
    """The identity of a comparison of answers to a prompt, in any order, as `split_key` compares prompts."""
    return split_key(messages, tools), frozenset(map(_composed, texts))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", _stripped(text))


def _stripped(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def _further_fields(message: Message) -> list[object]:
    further = message.model_dump(mode="json", exclude={"role", "content", "weight"})
    return [further] if further else []


class Prompt(Record):
    """A conversation to be answered by the assistant."""

    id: str
    messages: Messages
    split: Split = "train"
    source: str = ""
    tags: tuple[str, ...] = ()
    tools: Tools = Field(default=(), exclude_if=_absent)


class Demonstration(Record):
    """A prompt with an expert's answer."""

    prompt: Prompt
    completion: str | Messages
    """the answer's text; messages if it has tool calls, thoughts, or several turns of assistant and tools"""

    @model_validator(mode="after")
    def _answered(self) -> Demonstration:
        if isinstance(self.completion, tuple):
            check_side(self.completion, "the completion")
        return self

    @property
    def answers(self) -> Messages:
        """All messages after the prompt: the assistant's and its tools'."""
        return assistant(self.completion) if isinstance(self.completion, str) else self.completion

    @property
    def answer(self) -> Message:
        """The last message."""
        return self.answers[-1]

    @property
    def text(self) -> str:
        """The answer's text and calls, for display and comparison."""
        return text_of(self.answers)


class SamplingSettings(Record):
    """How a completion was sampled."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int


class Completion(Record):
    """One answer to a prompt, sampled from `policy` (a manifest id, or the name of a model without one)."""

    id: str
    text: str
    policy: str = "unknown"
    sampling: SamplingSettings | None = None
    seed: int | None = None
    finished: bool = True
    """False where the answer was cut off at `max_new_tokens`."""
    ids: tuple[int, ...] | None = Field(default=None, exclude_if=_absent)
    """the sampled token ids, end of turn included"""
    tokenizer_sha256: str | None = Field(default=None, exclude_if=_absent)
    """the tokenizer of `ids`"""
    content: Parts | None = Field(default=None, exclude_if=_absent)
    """the answer's parts, if it has images or audio; `text` then has a number in place of each"""

    @model_validator(mode="after")
    def _says_the_same(self) -> Completion:
        if self.content is not None and self.message.numbered_text != self.text:
            raise ValueError("text and content of a completion differ: change both, or leave content out")
        return self

    @property
    def message(self) -> Message:
        """The answer as the assistant's message."""
        return Message(role="assistant", content=self.text if self.content is None else self.content)


class Selection(Record):
    """Why a pair was selected to be judged; see `tiebreak select`."""

    strategy: str
    """the arm that took it: `random`, or a strategy's name"""
    probability: float = Field(gt=0, le=1)
    """of its selection, by either arm"""
    score: float | None = None
    """by the strategy, where the larger one is taken first; None without a strategy, or a score"""


class Pair(Record):
    """Two or more completions of one prompt, in no order, to be judged. Carries its prompt's messages."""

    id: str
    prompt_id: str
    messages: Messages
    completions: tuple[Completion, ...]
    round: int = 0
    split: Split = "train"
    tools: Tools = Field(default=(), exclude_if=_absent)
    selection: Selection | None = Field(default=None, exclude_if=_absent)
    source: str = Field(default="", exclude_if=is_empty)
    tags: tuple[str, ...] = Field(default=(), exclude_if=_absent)
    """those that mark a synthetic prompt or answer, and its review"""
    purpose: Purpose = Field(default="training", exclude_if=_is_training)
    """evaluation: its judgments compare policies, and are never exported to training"""

    @model_validator(mode="after")
    def _distinct(self) -> Pair:
        if len(self.completions) < 2:
            raise ValueError("a pair needs two or more completions")
        if len({(completion.text.strip(), completion.content) for completion in self.completions}) < len(
            self.completions
        ):
            raise ValueError("two completions of the pair are the same: there is nothing to judge")
        if any(not completion.text.strip() for completion in self.completions):
            raise ValueError("a completion of the pair is empty")
        return self

    @property
    def media(self) -> tuple[MediaPart, ...]:
        """Its images and recordings: the prompt's, then each completion's."""
        answers = (one.message for one in self.completions if one.content is not None)
        return tuple(part for message in chain(self.messages, answers) for part in message.media)


class ModelVerdict(Record):
    """Where a model judge's answer comes from. It is asked twice, with either completion on the left."""

    model: str
    """the judge: a model's name, or a function's"""
    answers: tuple[int | None, int | None]
    """to the sides as in the judgment, and to the sides exchanged; both are positive where the judgment's right side is
    better. None: no verdict"""
    confidence: float | None = Field(default=None, ge=0, le=1)
    """the judge's probability that the side it prefers is the better one; None of a tie, or where it gave none"""
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    cost: float | None = None
    """in the currency of the configured prices; None without prices"""
    seed: int | None = None
    prompt_version: str = ""
    """a hash of the instruction: its wording, guidelines and aspects"""

    @property
    def turned(self) -> bool:
        """Whether the preferred completion changed with the order."""
        one, other = self.answers
        return one is not None and other is not None and one * other < 0

    @property
    def consistent(self) -> bool:
        """Whether both orders gave the same verdict."""
        one, other = self.answers
        return one is not None and other is not None and (one > 0) - (one < 0) == (other > 0) - (other < 0)


CriterionValue = StrictBool | StrictInt | str | dict[str, StrictBool | StrictInt | str]
"""A step of a bar (-3 … 3, of the sides as shown), stars, yes or no, or a choice; of each answer, by completion id."""


class Span(Record):
    """A marked passage of an answer."""

    completion: str
    start: int = Field(ge=0)
    """in Unicode code points of the answer's raw text, before any rendering"""
    end: int
    """exclusive"""
    label: str
    value: int = Field(default=0, ge=-1, le=1)
    """what the label says of the passage: 1 good, -1 bad, 0 neither"""
    text: str = ""
    """the passage: the answer's text from `start` to `end`"""
    comment: str = ""

    @model_validator(mode="after")
    def _not_empty(self) -> Span:
        if self.end <= self.start:
            raise ValueError("a span ends after its start")
        return self


class Judgment(Record):
    """One rater's answer about a pair, with the sides as they were shown.

    `answer` is from −3 (left much better) through 0 (a tie) to +3 (right much better); None if the rater skipped, called
    both bad, or ranked more than two completions.
    """

    pair_id: str
    rater_id: str
    left: str
    right: str
    answer: int | None = Field(default=None, ge=-3, le=3)
    both_bad: bool = False
    skip: bool = False
    skip_reason: str = ""
    ranking: tuple[tuple[str, ...], ...] | None = None
    """completions from best to worst; those within a group are equal"""
    shown: tuple[str, ...] = ()
    """in a ranking: its completions in the order shown, `left` and `right` being the first two"""
    aspects: dict[str, int] = {}
    rationale: str = ""
    edited_text: str | None = None
    flags: tuple[str, ...] = ()
    answer_flags: dict[str, tuple[str, ...]] = Field(default={}, exclude_if=is_empty)
    """the completions that flags are said of, each with its flags, which are among `flags` too"""
    criteria: dict[str, CriterionValue] = Field(default={}, exclude_if=is_empty)
    """values of the campaign's own criteria; those of each answer by completion id"""
    spans: tuple[Span, ...] = Field(default=(), exclude_if=is_empty)
    links: tuple[str, ...] = Field(default=(), exclude_if=is_empty)
    """evidence that the rater gave: addresses, never fetched"""
    guideline_version: str = ""
    seconds_active: float | None = None
    kind: Literal["human", "simulated", "model"]
    judge: ModelVerdict | None = Field(default=None, exclude_if=_absent)
    """of a model judge"""

    @model_validator(mode="after")
    def _answered_once(self) -> Judgment:
        if (self.answer is not None) + self.both_bad + self.skip + (self.ranking is not None) != 1:
            raise ValueError("exactly one of answer, both_bad, skip and ranking is required")
        if self.left == self.right:
            raise ValueError("left and right are the same completion")
        if self.judge is not None and self.kind != "model":
            raise ValueError(f"judge: of a {self.kind} judgment; only a model has one")
        if self.skip_reason and not self.skip:
            raise ValueError("skip_reason needs skip")
        if self.ranking is not None and sorted(chain.from_iterable(self.ranking)) != sorted(set(self.shown)):
            raise ValueError("ranking must contain every completion that was shown, once")
        return self

    def pairwise(self) -> list[Judgment]:
        """Itself; for K completions shown together, the K(K−1)/2 judgments that it implies.

        A ranking has no strengths: its answers are −1, 0 and +1. An edit is of the first completion and goes with the
        comparisons that it wins. All bad, or a skip, applies to every comparison.
        """
        if not self.shown:
            return [self]
        return [self._about(left, right) for left, right in combinations(self.shown, 2)]

    def _about(self, left: str, right: str) -> Judgment:
        """Its judgment of two of the completions shown."""
        fields: dict[str, Any] = {"left": left, "right": right, "ranking": None, "shown": ()}
        fields |= self._said_of(left, right)
        if self.ranking is not None:
            place = {identity: n for n, group in enumerate(self.ranking) for identity in group}
            fields["answer"] = (place[left] > place[right]) - (place[left] < place[right])
            if 0 not in (place[left], place[right]):
                fields["edited_text"] = None
        return self.model_copy(update=fields)

    def _said_of(self, *completions: str) -> dict[str, Any]:
        """Flags, criteria and spans of these completions, with those of no single one."""
        answer_flags = {one: self.answer_flags[one] for one in completions if one in self.answer_flags}
        of_answers = set(chain.from_iterable(self.answer_flags.values()))
        kept = {flag for flag in self.flags if flag not in of_answers} | set(chain.from_iterable(answer_flags.values()))
        criteria = {
            name: {one: value[one] for one in completions if one in value} if isinstance(value, dict) else value
            for name, value in self.criteria.items()
        }
        return {
            "flags": tuple(flag for flag in self.flags if flag in kept),
            "answer_flags": answer_flags,
            "criteria": {name: value for name, value in criteria.items() if value != {}},
            "spans": tuple(span for span in self.spans if span.completion in completions),
        }


class ExportedJudgment(Judgment):
    """A judgment as an export writes it: when it was made, and what it counts towards."""

    at: str | None = Field(default=None, exclude_if=_absent)
    """the server's time, UTC, as 2026-05-04T09:30:00.250Z; None of simulated and imported judgments"""
    seconds_idle: float | None = Field(default=None, exclude_if=_absent)
    """seconds on the screen without activity"""
    batch: str = Field(default="", exclude_if=is_empty)
    gold: bool = Field(default=False, exclude_if=is_empty)
    """the item's answer is known: the judgment measures its rater"""
    repeat: bool = Field(default=False, exclude_if=is_empty)
    """the rater's second judgment of the item, which measures their consistency"""
    settled: bool = Field(default=False, exclude_if=is_empty)
    """a lead's answer, which overrides the votes"""

    @property
    def judgment(self) -> Judgment:
        """Without what the export added."""
        return Judgment.model_validate(self.model_dump(include=set(Judgment.model_fields)))


class PreferenceVote(Record):
    """A rater's own vote on a preference."""

    rater: str
    vote: Literal[-1, 0, 1]
    """1: the chosen answer is better, -1: the rejected one, 0: neither"""


class Preference(Record):
    """A training example: TRL's `prompt`, `chosen`, `rejected`, and the label's reliability."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    strength: float | None = None
    """1 (slightly better) to 3 (much better), the mean over the raters who agree; 0 for a tie that is kept; None if it was
    not asked."""
    margin: float | None = None
    """TRL's column, ≥ 0: the required difference of scores. Exports give strength / 3 (Touvron et al. 2023, Table
    27, small margin)."""
    agreement: float | None = Field(default=None, ge=0, le=1)
    """Share of the votes, ties included, that prefer `chosen`."""
    confidence: float | None = Field(default=None, ge=0, le=1)
    """Soft label: the probability that `chosen` is the better one; 0.5 for a tie that is kept."""
    raters: tuple[str, ...] | None = None
    """Pseudonymous ids of its raters; None if the data has none."""
    votes: tuple[PreferenceVote, ...] | None = Field(default=None, exclude_if=_absent)
    """what each of them voted, where the export has it"""
    weight: float = Field(default=1.0, ge=0)
    adjudicated: bool = False
    """Settled by a lead, who is then the only one in `raters`."""
    kind: Kind = "unstated"
    pair_id: str | None = None
    prompt_id: str = ""
    source: str = ""
    tags: tuple[str, ...] = ()
    split: Split | None = None
    chosen_finished: bool = True
    rejected_finished: bool = True
    tools: Tools = Field(default=(), exclude_if=_absent)
    chosen_ids: tuple[int, ...] | None = Field(default=None, exclude_if=_absent)
    """the chosen answer's sampled token ids, end of turn included"""
    rejected_ids: tuple[int, ...] | None = Field(default=None, exclude_if=_absent)
    tokenizer_sha256: str | None = Field(default=None, exclude_if=_absent)
    """the tokenizer of `chosen_ids` and `rejected_ids`"""
    selection: Selection | None = Field(default=None, exclude_if=_absent)
    """why its pair was selected"""

    @field_validator("margin", "strength")
    @classmethod
    def _of_the_right_sign(cls, value: float | None) -> float | None:
        if value is not None and value < 0:
            raise ValueError(
                f"{value:g} is below 0, so the rejected answer is the better one: swap chosen and rejected, or "
                "fix its sign"
            )
        return value

    @field_validator("strength")
    @classmethod
    def _on_its_scale(cls, value: float | None) -> float | None:
        if value is not None and value != 0 and not 1 <= value <= MAX_STRENGTH:
            raise ValueError(
                f"{value:g} is not 0 (a tie) or 1 (slightly better) to {MAX_STRENGTH} (much better): rescale it, or ignore "
                "the column with columns: {strength: null}"
            )
        return value

    @field_validator("raters")
    @classmethod
    def _someone(cls, raters: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if raters is not None and not raters:
            raise ValueError("this preference has no raters: drop the row, or leave the column out")
        return raters

    @model_validator(mode="after")
    def _differ(self) -> Preference:
        check_prompt(self.prompt)
        check_side(self.chosen, "chosen")
        check_side(self.rejected, "rejected")
        if [_compared(m) for m in self.chosen] == [_compared(m) for m in self.rejected]:
            raise ValueError("chosen and rejected are the same")
        return self

    @property
    def chosen_text(self) -> str:
        return text_of(self.chosen)

    @property
    def rejected_text(self) -> str:
        return text_of(self.rejected)


class LabelledAnswer(Record):
    """A training example of KTO: TRL's `prompt`, `completion` and `label`, whether the answer is desirable."""

    prompt: Messages
    completion: Messages
    label: bool
    kind: Kind = "unstated"
    pair_id: str | None = None
    prompt_id: str = ""
    source: str = ""
    tags: tuple[str, ...] = ()
    split: Split | None = None
    finished: bool = True
    tools: Tools = Field(default=(), exclude_if=_absent)
    ids: tuple[int, ...] | None = Field(default=None, exclude_if=_absent)
    """the sampled token ids of the answer, end of turn included"""
    tokenizer_sha256: str | None = Field(default=None, exclude_if=_absent)
    """the tokenizer of `ids`"""

    @model_validator(mode="after")
    def _answered(self) -> LabelledAnswer:
        check_prompt(self.prompt)
        check_side(self.completion, "the completion")
        return self


def check_prompt(messages: Messages) -> None:
    """Raises ValueError if there is nothing for the assistant to answer."""
    if not messages:
        raise ValueError("the prompt is empty")
    if messages[-1].role not in ("user", "tool"):
        raise ValueError(f"the last message is the {messages[-1].role}'s: a prompt ends with the user's or a tool's")
    if messages[-1].role == "user" and messages[-1].is_empty:
        raise ValueError("the prompt is empty")


def check_side(messages: Messages, name: str) -> None:
    """Raises ValueError unless the messages are an answer: the assistant's messages with its tools' results in between."""
    roles = [message.role for message in messages]
    if not messages or all(message.is_empty for message in messages):
        raise ValueError(f"{name} is empty")
    if other := sorted({*roles} - {"assistant", "tool"}):
        raise ValueError(
            f"{name} contains a message of the {other[0]}: an answer has only the assistant's and its tools'"
        )
    if roles[0] != "assistant" or roles[-1] != "assistant":
        raise ValueError(f"{name} must begin and end with a message of the assistant")
    if messages[-1].is_empty:
        raise ValueError(f"{name} ends with an empty message")


def _compared(message: Message) -> Message:
    return message.map_text(_stripped).model_copy(update={"weight": None})


def text_of(messages: Sequence[Message]) -> str:
    """The text and calls of messages, images as `[image cat.png]`, for display and comparison."""
    return "\n".join(part for message in messages for part in _parts_of(message))


def _parts_of(message: Message) -> list[str]:
    calls = [json.dumps(call.function.model_dump(), ensure_ascii=False) for call in message.tool_calls]
    return [message.display_text, *calls] if message.content or not calls else calls


def assistant(text: str) -> Messages:
    """`text` as TRL's conversational completion."""
    return (Message(role="assistant", content=text),)


# --- files ---


def write_text_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Write to a temporary file, fsync, rename: readers see the old file or the complete new one.

    Args:
        text: as a whole, or in pieces.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Return once a file's content, or a folder's list of files, survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object) -> None:
    """Write one JSON document atomically."""
    write_text_atomically(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: Path, records: Iterable[BaseModel | dict[str, Any]]) -> None:
    """Write JSON Lines atomically."""
    rows = (r.model_dump(mode="json") if isinstance(r, BaseModel) else r for r in records)
    write_text_atomically(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def explain(error: ValidationError) -> Iterator[str]:
    """A pydantic error as short lines: `key: what is wrong`."""
    for fault in error.errors(include_url=False):
        key = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        yield f"{key}: {message}" if key else message


def first_line(error: Exception) -> str:
    """The reason alone, without pydantic's frame."""
    if isinstance(error, ValidationError):
        return "; ".join(explain(error))
    return (str(error).splitlines() or [type(error).__name__])[0]

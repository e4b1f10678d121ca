"""The records that stages exchange.

Every record is a frozen pydantic model; files of them are JSON Lines (`tiebreak.files`), one object per line, UTF-8.
`tiebreak.data` reads them, and converts other data to them.
"""

from __future__ import annotations

from itertools import chain, combinations
from typing import Any, Literal

from pydantic import Field, StrictBool, StrictInt, field_validator, model_validator

from tiebreak.content import MediaPart, Parts
from tiebreak.messages import (
    Message,
    Messages,
    Record,
    Tools,
    assistant,
    check_prompt,
    check_side,
    comparable,
    is_absent,
    is_empty,
    text_of,
)

Split = Literal["train", "validation", "test"]
Kind = Literal["human", "simulated", "model", "synthetic", "unstated"]
Purpose = Literal["training", "evaluation"]
RecordKind = Literal["prompts", "demonstrations", "preferences", "answers"]
"""what a stage reads a source as"""
MAX_STRENGTH = 3
"""of a preference: much better"""


def _is_training(purpose: object) -> bool:
    return purpose == "training"


class Prompt(Record):
    """A conversation to be answered by the assistant."""

    id: str
    messages: Messages
    split: Split = "train"
    source: str = ""
    tags: tuple[str, ...] = ()
    tools: Tools = Field(default=(), exclude_if=is_absent)


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
    ids: tuple[int, ...] | None = Field(default=None, exclude_if=is_absent)
    """the sampled token ids, end of turn included"""
    tokenizer_sha256: str | None = Field(default=None, exclude_if=is_absent)
    """the tokenizer of `ids`"""
    content: Parts | None = Field(default=None, exclude_if=is_absent)
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
    set_id: str = Field(default="", exclude_if=is_empty)
    """the id that the pool has for the set of three or more completions that the pair is from; empty: it was a pair"""


class Pair(Record):
    """Two or more completions of one prompt, in no order, to be judged. Carries its prompt's messages."""

    id: str
    prompt_id: str
    messages: Messages
    completions: tuple[Completion, ...]
    round: int = 0
    split: Split = "train"
    tools: Tools = Field(default=(), exclude_if=is_absent)
    selection: Selection | None = Field(default=None, exclude_if=is_absent)
    source: str = Field(default="", exclude_if=is_empty)
    tags: tuple[str, ...] = Field(default=(), exclude_if=is_absent)
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
    judge: ModelVerdict | None = Field(default=None, exclude_if=is_absent)
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

    at: str | None = Field(default=None, exclude_if=is_absent)
    """the server's time, UTC, as 2026-05-04T09:30:00.250Z; None of simulated and imported judgments"""
    seconds_idle: float | None = Field(default=None, exclude_if=is_absent)
    """seconds on the screen without activity"""
    batch: str = Field(default="", exclude_if=is_empty)
    selection: Selection | None = Field(default=None, exclude_if=is_absent)
    """why its pair was selected to be judged"""
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
    votes: tuple[PreferenceVote, ...] | None = Field(default=None, exclude_if=is_absent)
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
    tools: Tools = Field(default=(), exclude_if=is_absent)
    chosen_ids: tuple[int, ...] | None = Field(default=None, exclude_if=is_absent)
    """the chosen answer's sampled token ids, end of turn included"""
    rejected_ids: tuple[int, ...] | None = Field(default=None, exclude_if=is_absent)
    tokenizer_sha256: str | None = Field(default=None, exclude_if=is_absent)
    """the tokenizer of `chosen_ids` and `rejected_ids`"""
    selection: Selection | None = Field(default=None, exclude_if=is_absent)
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
        if [comparable(m) for m in self.chosen] == [comparable(m) for m in self.rejected]:
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
    tools: Tools = Field(default=(), exclude_if=is_absent)
    ids: tuple[int, ...] | None = Field(default=None, exclude_if=is_absent)
    """the sampled token ids of the answer, end of turn included"""
    tokenizer_sha256: str | None = Field(default=None, exclude_if=is_absent)
    """the tokenizer of `ids`"""

    @model_validator(mode="after")
    def _answered(self) -> LabelledAnswer:
        check_prompt(self.prompt)
        check_side(self.completion, "the completion")
        return self

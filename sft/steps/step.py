"""A step of `tiebreak prepare`, the rows that it works on, and the ledger of what it did.

A step has the name of its entry in sft.configuration.STEPS, is built from the configuration, and either looks at the
rows one by one (`RowStep`) or a few thousand at a time (`Step`). It returns the rows to keep; what it changes, drops and
flags goes to the ledger, and from there to changed.jsonl, dropped.jsonl and flagged.jsonl (sft.steps.running).
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sft.configuration import STEPS
from sft.normalising import normalise_completion, normalise_prompt
from tiebreak.errors import ConfigError, DataError
from tiebreak.measures.functions import load_function, require_arguments, where_raised
from tiebreak.messages import Message, Messages, text_of
from tiebreak.records import Demonstration, Prompt, Split

if TYPE_CHECKING:
    from sft.configuration import PrepareConfig

Change = Callable[[str], str]
ChangeArguments = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """A prompt or a demonstration, and its place in the data."""

    where: str
    record: Prompt | Demonstration
    split: Split | None = None
    """the split that the row names"""

    @property
    def prompt(self) -> Prompt:
        return self.record.prompt if isinstance(self.record, Demonstration) else self.record

    @property
    def answers(self) -> Messages:
        """The messages after the prompt; none in a prompt."""
        return self.record.answers if isinstance(self.record, Demonstration) else ()

    @property
    def prompt_text(self) -> str:
        return text_of(self.prompt.messages)

    @property
    def answer_text(self) -> str:
        """The text of a demonstration's answer; empty in a prompt."""
        return self.record.text if isinstance(self.record, Demonstration) else ""

    @property
    def text(self) -> str:
        """All of its text."""
        return (
            f"{self.prompt_text}\n\n{self.answer_text}" if isinstance(self.record, Demonstration) else self.prompt_text
        )

    def map_text(
        self,
        change: Change,
        roles: Sequence[str] = ("system", "user", "assistant", "tool"),
        change_arguments: ChangeArguments | None = None,
    ) -> Row:
        """The row with the texts of these roles changed and normalised, thoughts and the arguments of calls included.

        Args:
            change_arguments: changes a call's arguments; None: `change` changes their strings.
        """

        def changed(messages: Messages) -> Messages:
            return tuple(map_message(one, change, change_arguments) if one.role in roles else one for one in messages)

        asked = self.prompt
        messages = changed(asked.messages)
        completion: str | Messages = self.record.completion if isinstance(self.record, Demonstration) else ""
        if not isinstance(completion, str):
            completion = changed(completion)
        elif completion and "assistant" in roles:
            completion = change(completion)
        if messages == asked.messages and (isinstance(self.record, Prompt) or completion == self.record.completion):
            return self  # normalised when it was read
        prompt, _ = normalise_prompt(asked.model_copy(update={"messages": messages}))
        if isinstance(self.record, Prompt):
            return replace(self, record=prompt)
        update = {"prompt": prompt, "completion": normalise_completion(completion)}
        return replace(self, record=self.record.model_copy(update=update))


def map_message(message: Message, change: Change, change_arguments: ChangeArguments | None = None) -> Message:
    """The message with all of its texts changed: content, thoughts, the arguments of its calls."""
    change_arguments = change_arguments or (lambda arguments: map_values(arguments, change))
    if isinstance(message.content, str) and not message.tool_calls and message.reasoning_content is None:
        content = change(message.content)
        return message if content == message.content else message.model_copy(update={"content": content})
    calls = tuple(
        call.model_copy(
            update={
                "function": call.function.model_copy(update={"arguments": change_arguments(call.function.arguments)})
            }
        )
        for call in message.tool_calls
    )
    thought = message.reasoning_content
    update = {"tool_calls": calls, "reasoning_content": (change(thought) or None) if thought else None}
    return message.map_text(change).model_copy(update=update)


def map_values(value: Any, change: Change) -> Any:
    """JSON with its strings changed, and its keys as they are."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_values(one, change) for key, one in value.items()}
    if isinstance(value, list):
        return [map_values(one, change) for one in value]
    return value


@dataclass(frozen=True)
class Drop:
    """A row step's answer for a row to leave out."""

    reason: str
    kind: str = ""
    """the reason in the report, if rows differ in it"""


@dataclass
class Tally:
    """The record of one step."""

    step: str
    read: int = 0
    changed: int = 0
    dropped: int = 0
    flagged: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """changes, drops and flags by their kind"""
    facts: dict[str, Any] = field(default_factory=dict)
    """what else the step reports"""

    def count(self, reason: str) -> None:
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def add(self, other: Tally) -> None:
        """Add what the step did to further rows. Facts are counts by kind."""
        self.read += other.read
        self.changed += other.changed
        self.dropped += other.dropped
        self.flagged += other.flagged
        self.reasons = _sums(self.reasons, other.reasons)
        for name, counts in other.facts.items():
            self.facts[name] = _sums(self.facts.get(name, {}), counts)


def _sums(counts: Mapping[str, int], further: Mapping[str, int]) -> dict[str, int]:
    return {**counts, **{key: counts.get(key, 0) + count for key, count in further.items()}}


@dataclass(frozen=True)
class Entry:
    """A line of changed.jsonl, dropped.jsonl or flagged.jsonl."""

    where: str
    step: str
    reason: str
    text: str | None
    """as it was; None: it must not be written"""
    after: str | None = None
    is_clean: bool = False
    """entered by the step `anonymise`, or after it"""

    def line(self, protect: Change) -> dict[str, str]:
        """As written: after an `anonymise` step, none of these files has what it removed."""
        if self.is_clean:
            protect = _unchanged
        texts = {"text": self.text} if self.after is None else {"before": self.text, "after": self.after}
        shown = {name: protect(text) for name, text in texts.items() if text is not None}
        return {"where": self.where, "step": self.step, "reason": protect(self.reason), **shown}


def _unchanged(text: str) -> str:
    return text


@dataclass
class Ledger:
    """A step's changes to some rows."""

    now: Tally
    changed: list[Entry] = field(default_factory=list)
    dropped: list[Entry] = field(default_factory=list)
    flagged: list[Entry] = field(default_factory=list)
    gaps: list[dict[str, Any]] = field(default_factory=list)
    """what the step `balance` found to be rare"""
    protect: Change | None = None
    """removes personal data; set once the step `anonymise` has run"""

    def change(self, before: Row, after: Row, reasons: Sequence[str]) -> None:
        """A row was changed."""
        self.now.changed += 1
        for reason in reasons:
            self.now.count(reason)
        self.changed.append(self._entry(before, ", ".join(reasons), after.text))

    def drop(self, row: Row, reason: str, kind: str = "") -> None:
        """A row is left out. `kind`: the reason without what is special to the row."""
        self.now.dropped += 1
        self.now.count(kind or reason)
        self.dropped.append(self._entry(row, reason))

    def flag(self, row: Row, reason: str, kind: str = "") -> None:
        """A row is kept and listed."""
        self.now.flagged += 1
        self.now.count(kind or reason)
        self.flagged.append(self._entry(row, reason))

    def _entry(self, row: Row, reason: str, after: str | None = None) -> Entry:
        return Entry(row.where, self.now.step, reason, row.text, after, is_clean=self.protect is not None)


Order = Literal["any", "in order", "all at once"]


class Step(ABC):
    """A step. By default it gets a few thousand rows at a time, and a row's result does not depend on the others."""

    name: ClassVar[str] = ""
    order: Order = "any"
    """any: a row's result depends on no other's; in order: it may depend on the rows before it; all at once: `run` gets all
    rows, on disk, and changes none"""

    def __init__(self, config: PrepareConfig) -> None:
        self.config = config

    def begin(self, rows: Iterable[Row]) -> None:  # noqa: B027 most steps need none
        """Look at all rows before the first is worked on."""

    @abstractmethod
    def run(self, rows: Sequence[Row], ledger: Ledger) -> Sequence[Row]:
        """The rows to keep, changed or not, in order; everything that is done to one is entered in the ledger."""

    def finish(self, tally: Tally) -> None:  # noqa: B027 most steps need none
        """Complete the tally, once every row is counted."""


class RowStep(Step):
    """A step that looks at one row at a time."""

    def run(self, rows: Sequence[Row], ledger: Ledger) -> list[Row]:
        kept = []
        for row in rows:
            found = self.look(row, ledger)
            if isinstance(found, Drop):
                ledger.drop(row, found.reason, found.kind)
            elif empty := empty_part(found):
                ledger.drop(row, f"its {empty} is empty after {ledger.now.step}", f"empty after {ledger.now.step}")
            else:
                kept.append(found)
        return kept

    @abstractmethod
    def look(self, row: Row, ledger: Ledger) -> Row | Drop:
        """The row to keep, or why it is dropped. What is changed is entered by the step, what is dropped is not."""


def empty_part(row: Row) -> str:
    """`prompt` or `completion`, whichever has no text; otherwise empty."""
    last = row.prompt.messages[-1]
    if last.role == "user" and last.is_empty:
        return "prompt"
    return "completion" if row.answers and row.answers[-1].is_empty else ""


class UserStep(RowStep):
    """A user's function of (text, role), for each text of a row: it returns the text, or None to drop the row."""

    order = "in order"  # it may remember texts

    def __init__(self, config: PrepareConfig, name: str, key: str) -> None:
        super().__init__(config)
        self.function = load_function(name, key, config.config_folder)
        self.called = name.partition(":")[2]
        require_arguments(self.function, key, f"{self.called}(text, role)", "", "user")

    def look(self, row: Row, ledger: Ledger) -> Row | Drop:
        reasons: list[str] = []
        after = self._changed(row, reasons)
        if reasons:
            return Drop(reasons[0])
        if after.text != row.text:
            ledger.change(row, after, [self.called])
        return after

    def _changed(self, row: Row, reasons: list[str]) -> Row:
        after = row
        for role in ("system", "user", "assistant", "tool"):
            after = after.map_text(lambda text, role=role: self._call(row, text, role, reasons), (role,))  # type: ignore[misc]
        return after

    def _call(self, row: Row, text: str, role: str, reasons: list[str]) -> str:
        try:
            found = self.function.call(text, role)
        except Exception as error:
            place = where_raised(self.function.call, error)
            raise DataError(
                f"{row.where}: {self.function.name} raised {type(error).__name__}: {error} ({place})"
            ) from error
        if found is None:
            reasons.append(f"dropped by {self.called}")
            return text
        if not isinstance(found, str):
            raise DataError(
                f"{row.where}: {self.function.name} returned a {type(found).__name__}: return the text, or None to "
                "drop the row"
            )
        return found


def build_steps(config: PrepareConfig) -> list[Step]:
    """The configured steps, in order.

    Raises:
        ConfigError: a package, a file or a function that a step needs is missing.
    """
    return [_build(config, number, name) for number, name in enumerate(config.steps)]


def _build(config: PrepareConfig, number: int, name: str) -> Step:
    if name not in STEPS:
        step: Step = UserStep(config, name, f"steps.{number}")
    else:
        module, _, attribute = STEPS[name].partition(":")
        step = getattr(importlib.import_module(module), attribute)(config)
    step.name = name  # type: ignore[misc]
    return step


def require_package(package: str, step: str, extra: str = "data") -> Any:
    """A package that a step needs.

    Raises:
        ConfigError: it is not installed; says what to install.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"steps: {step} needs {package.partition('.')[0]}: pip install 'tiebreak[{extra}]'"
        ) from error

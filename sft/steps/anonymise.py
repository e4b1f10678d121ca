"""The step `anonymise`: puts tags, invented values or hashes in place of personal data.

Uncertain matches stay in the text, and their rows are flagged for people to check. Nothing that the step removes is
written to the run folder: its entries in changed.jsonl have no text from before, and the other steps' entries pass
through it as well. Names of speakers (`name` of a message) count as personal data; sources and tags of rows are searched
as their texts are.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from sft.configuration import PrepareConfig
from sft.pii.surrogates import surrogate
from sft.pii.vault import secret_of, write_map
from sft.steps.step import Change, Entry, Ledger, Row, Step, Tally, empty_part, map_values, require_package
from tiebreak.errors import ConfigError, DataError
from tiebreak.messages import Messages, prompt_id
from tiebreak.pii.detector import KINDS, Detector
from tiebreak.pii.patterns import users_patterns
from tiebreak.pii.presidio import international_number
from tiebreak.records import Demonstration, Prompt

NAMES_NOT_SOUGHT = "names of people were not looked for: anonymise.model names a spaCy or GLiNER model that finds them"
ALL_DATA = "all rows"
WORD = "WORD"
"""the kind of `anonymise.words`"""


MOST_FACTS = 10_000
"""sources and tags that are remembered"""
MOST_DRAWS, FEW_DRAWS = 1_000, 10
"""surrogates that are drawn for a value until one is free, with a map and without"""


@dataclass
class Scope:
    """Replacements of values, in one row or in all of the data."""

    places: dict[tuple[str, str], str] = field(default_factory=dict)
    """(kind, the value's normal form) → its replacement"""
    values: dict[str, str] = field(default_factory=dict)
    """replacement → the value, for the map"""
    counts: Counter[str] = field(default_factory=Counter)


class Anonymise(Step):
    """The step."""

    def __init__(self, config: PrepareConfig) -> None:
        super().__init__(config)
        settings = self.settings = config.anonymise
        require_package("presidio_analyzer", "anonymise", "pii")
        if unknown := sorted(set(settings.kinds) - {*KINDS, *settings.patterns, WORD}):
            raise ConfigError(f"anonymise.kinds: no kind {', '.join(unknown)}; there are {', '.join(KINDS)}")
        for kind, key in (("PERSON", "model"), (WORD, "words")):
            if kind in settings.kinds and getattr(settings, key) is None:
                raise ConfigError(
                    f"anonymise.kinds: {kind} is not found without anonymise.{key}: set it, or leave {kind} out"
                )
        for kind, expression in settings.patterns.items():
            _require_pattern(kind, expression)
        words = _read_words(settings.words) if settings.words else []
        further = users_patterns(settings.patterns, words)
        self.detector = Detector(settings.languages, settings.kinds, settings.model, further)
        self.map = Path(settings.map) if settings.map else None
        if self.map is not None and self.map.resolve().is_relative_to(Path(config.output).resolve()):
            raise ConfigError(
                f"anonymise.map: {self.map} is in the run folder, which is passed on: name a file outside it"
            )
        if self.map is not None:
            _require_writable(self.map.absolute().parent)
        needed = "anonymise.map" if self.map else "anonymise.mode: hash" if settings.mode == "hash" else ""
        self.secret = secret_of(settings.key_variable, needed) if needed else b""
        if self.map is not None or settings.scope == "data":
            self.order = "in order"
        self.everywhere = Scope()
        self.facts: dict[str, bool] = {}
        self.kept: dict[str, dict[str, str]] = {}

    def run(self, rows: Sequence[Row], ledger: Ledger) -> list[Row]:
        found: Counter[str] = Counter()
        unsure: Counter[str] = Counter()
        kept = []
        for row in rows:
            scope = self.everywhere if self.settings.scope == "data" else Scope()
            hidden: Counter[str] = Counter()
            doubtful: Counter[str] = Counter()
            after = self._anonymised(row, scope, hidden, doubtful)
            found += hidden
            unsure += doubtful
            if hidden:
                ledger.now.changed += 1
                reason = ", ".join(f"{count} {kind}" for kind, count in sorted(hidden.items()))
                ledger.changed.append(Entry(row.where, ledger.now.step, reason, None, after.text, True))
            if doubtful:
                reason = f"may hold {', '.join(sorted(doubtful))}"
                ledger.now.flagged += 1
                ledger.flagged.append(Entry(row.where, ledger.now.step, reason, after.text, None, True))
            if scope.values and self.map is not None and scope is not self.everywhere:
                self.kept[row.where] = scope.values
            if empty := empty_part(after):
                ledger.protect = self.protect
                ledger.drop(after, f"its {empty} is empty after {ledger.now.step}")
            else:
                kept.append(after)
        ledger.now.facts.update(found=dict(found), unsure=dict(unsure))
        return kept

    def finish(self, tally: Tally) -> None:
        found, unsure = (dict(sorted(tally.facts.get(name, {}).items())) for name in ("found", "unsure"))
        tally.reasons |= found
        tally.facts = {
            "found": found,
            "unsure": unsure,
            "mode": self.settings.mode,
            "names": "sought" if self.detector.names else NAMES_NOT_SOUGHT,
            **({"kinds": ", ".join(sorted(self.settings.kinds))} if self.settings.kinds else {}),
        }
        if self.map is not None:
            write_map(self.map, self.kept or {ALL_DATA: self.everywhere.values}, self.secret)

    def protect(self, text: str) -> str:
        """A text for the run's other files, without the values that this step hides in rows."""
        return self._hide(text, Scope(), Counter(), Counter())

    def _anonymised(self, row: Row, scope: Scope, hidden: Counter[str], unsure: Counter[str]) -> Row:
        def hide(text: str, label: str = "") -> str:
            return self._hide(text, scope, hidden, unsure, label)

        after = row.map_text(hide, change_arguments=lambda arguments: _hide_in_json(arguments, hide))
        after = _with_prompt(after, tools=tuple(_hide_in_tool(tool, hide) for tool in row.prompt.tools))
        return self._without_facts(self._without_speakers(after, scope, hidden), scope, hidden, unsure)

    def _without_facts(self, row: Row, scope: Scope, hidden: Counter[str], unsure: Counter[str]) -> Row:
        """The row with its source and tags changed, which may be of a sender's address or a customer's name."""
        facts = row.prompt.source, *row.prompt.tags
        if not any(map(self._holds_some, facts)):
            return row
        source, *tags = (self._hide(one, scope, hidden, unsure) for one in facts)
        return _with_prompt(row, source=source, tags=tuple(tags))

    def _holds_some(self, fact: str) -> bool:
        """Whether a source or tag, which many rows share, has personal data."""
        if fact not in self.facts:
            if len(self.facts) >= MOST_FACTS:
                self.facts.clear()
            self.facts[fact] = any(one.is_sure for one in self.detector.find(fact))
        return self.facts[fact]

    def _without_speakers(self, row: Row, scope: Scope, hidden: Counter[str]) -> Row:
        def renamed(messages: Messages) -> Messages:
            changed = []
            for message in messages:
                if message.name and message.role != "tool":
                    hidden["PERSON"] += 1
                    message = message.model_copy(update={"name": self._in_place_of("PERSON", message.name, scope)})
                changed.append(message)
            return tuple(changed)

        row = _with_prompt(row, messages=renamed(row.prompt.messages))
        if not isinstance(row.record, Demonstration) or isinstance(row.record.completion, str):
            return row
        return replace(row, record=row.record.model_copy(update={"completion": renamed(row.record.completion)}))

    def _hide(self, text: str, scope: Scope, hidden: Counter[str], unsure: Counter[str], label: str = "") -> str:
        """The text with replacements.

        Args:
            label: what the text is, such as "password"; words that announce a value are looked for in it.
        """
        labelled = f"{label}: {text}" if label else text
        pieces, end = [], len(labelled) - len(text)
        for one in self.detector.find(labelled):
            start = max(one.start, end)
            if one.end <= start:
                continue
            if not one.is_sure:
                unsure[one.kind] += 1
                continue
            pieces += [labelled[end:start], self._in_place_of(one.kind, labelled[start : one.end], scope)]
            hidden[one.kind] += 1
            end = one.end
        return "".join([*pieces, labelled[end:]])

    def _in_place_of(self, kind: str, value: str, scope: Scope) -> str:
        settings = self.settings
        key = (kind, normal_form(kind, value, settings.languages))
        if settings.mode == "redact":
            return f"<{kind}>"
        if key not in scope.places:
            scope.counts[kind] += 1
            if settings.mode == "tag":
                place = f"<{kind}_{scope.counts[kind]}>"
            elif settings.mode == "hash":
                digest = hmac.new(self.secret, "\0".join(key).encode(), hashlib.sha256).hexdigest()
                place = f"<{kind}_{digest[:12]}>"
            else:
                place = self._invented(kind, value, scope)
            scope.places[key] = place
            scope.values[place] = value
        return scope.places[key]

    def _invented(self, kind: str, value: str, scope: Scope) -> str:
        """A surrogate that no other value of the scope has, unless they are used up and no map is kept.

        Raises:
            DataError: there are too few of the kind, and a map is kept, which could not be undone.
        """
        normal = normal_form(kind, value, self.settings.languages) if kind != "PERSON" else value
        for attempt in range(MOST_DRAWS if self.map else FEW_DRAWS):
            place = surrogate(kind, normal, self.settings.seed, attempt, shape=value)
            if place not in scope.values:
                return place
        if self.map is None:
            return place
        raise DataError(
            f"anonymise.mode: surrogate: {scope.counts[kind]:,} values of kind {kind} are more than there are invented "
            "ones, so anonymise.map could not be undone: set scope: conversation, or mode: tag"
        )


def normal_form(kind: str, value: str, languages: Sequence[str] = ("de", "en")) -> str:
    """A value's normal form: `DE89 3704…` and `de893704…` are the same, and so are `0171 …` and `+49 171 …`.

    Args:
        languages: decide on the country of telephone numbers without a country code.
    """
    if kind == "PHONE" and (number := international_number(value, languages)):
        return number
    if kind in ("EMAIL", "PERSON", WORD, "ADDRESS"):
        return " ".join(value.casefold().split())
    if kind in ("IBAN", "CARD", "PHONE", "PLATE", "NATIONAL_ID", "MAC"):
        digits = re.sub(r"[^0-9A-Za-z+]", "", value).casefold()
        return re.sub(r"^00", "+", digits) if kind == "PHONE" else digits
    return value


def _with_prompt(row: Row, **changes: Any) -> Row:
    """The row with a changed prompt, whose id is that of its content."""
    if all(getattr(row.prompt, name) == value for name, value in changes.items()):
        return row
    prompt = row.prompt.model_copy(update=changes)
    prompt = prompt.model_copy(update={"id": prompt_id(prompt.messages, prompt.tools)})
    record = prompt if isinstance(row.record, Prompt) else row.record.model_copy(update={"prompt": prompt})
    return replace(row, record=record)


def _hide_in_json(value: Any, hide: Callable[..., str], label: str = "") -> Any:
    """JSON with its strings, numbers and keys searched. A value's key announces it: `{"password": "hunter2"}`."""
    if isinstance(value, Mapping):
        hidden: dict[str, Any] = {}
        for key, one in value.items():
            hidden[_free_key(hide(key), hidden)] = _hide_in_json(one, hide, _words_of(key))
        return hidden
    if isinstance(value, list):
        return [_hide_in_json(one, hide, label) for one in value]
    if isinstance(value, str):
        return hide(value, label)
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = hide(str(value), label)
        return value if text == str(value) else text
    return value


def _words_of(key: str) -> str:
    """`dateOfBirth` and `date_of_birth` as words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", key)


def _free_key(key: str, used: Container[str]) -> str:
    """The key, numbered if another one was replaced by the same: no value is lost."""
    return next(one for one in chain([key], (f"{key} {n}" for n in count(2))) if one not in used)


def _hide_in_tool(tool: dict[str, Any], hide: Change) -> dict[str, Any]:
    """A tool's schema, searched but for the function's name, by which calls refer to it."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return tool
    texts = {key: value for key, value in function.items() if key != "name"}
    return {**tool, "function": {**function, **map_values(texts, hide)}}


def _require_pattern(kind: str, expression: str) -> None:
    if kind in (*KINDS, WORD):
        raise ConfigError(
            f"anonymise.patterns: {kind} is a kind already, and the report would count both as one: choose another name, "
            f"such as OWN_{kind}"
        )
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", kind):
        raise ConfigError(
            f"anonymise.patterns: {kind!r} becomes a tag in the text: use capitals, digits and _, as ORDER_ID"
        )
    try:
        if re.compile(expression).match(""):
            raise ConfigError(f"anonymise.patterns.{kind}: {expression!r} matches the empty text")
    except re.error as error:
        raise ConfigError(f"anonymise.patterns.{kind}: {expression!r} is not a regular expression: {error}") from error


def _require_writable(folder: Path) -> None:
    """The map is written last: a folder that takes no file is refused first."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"anonymise.map: {folder} takes no file: {error.strerror or error}") from error


def _read_words(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"anonymise.words: {path} cannot be read as UTF-8 text: {error}") from error
    words = [line.strip() for line in lines if line.strip()]
    if not words:
        raise ConfigError(f"anonymise.words: {path} has no words")
    return words

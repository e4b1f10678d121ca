"""Prompts, demonstrations and preferences from any source, read the same way by every stage.

A finished run's records are read as they are. Rows of other data are interpreted by their columns (`shapes`), and each
gets its split (`splits`). Rows that cannot be used are refused together, or dropped, listed and counted
(`on_bad_row: drop`). One line on standard error says how a source was read, and one which columns were ignored.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar

from pydantic import BaseModel, ValidationError

from tiebreak.data.cells import Cells, about
from tiebreak.data.conversations import open_objects
from tiebreak.data.images import require_text, require_text_records
from tiebreak.data.rows.content import (
    AnswerRow,
    LabelRow,
    Omission,
    PreferenceRow,
    PromptRow,
    RatingRow,
    check,
    messages_of,
)
from tiebreak.data.rows.preferences import pair_up, unsettled_winner
from tiebreak.data.shapes import interpret
from tiebreak.data.sources import read_file, read_source, unread_files
from tiebreak.data.splits import VALIDATION_SHARE, assign, named_splits, split_of
from tiebreak.data.synthetic import check_reviewed, marks_of_row
from tiebreak.data.text import BadRow, Row, Table
from tiebreak.data.trees import open_trees
from tiebreak.errors import DataError, RunError, counted, first_names
from tiebreak.files import explain, first_line, write_jsonl
from tiebreak.messages import Messages, prompt_id, split_key, text_of
from tiebreak.records import Demonstration, LabelledAnswer, Preference, Prompt, RecordKind, Split
from tiebreak.runs.run import BAD_ROWS, Run
from tiebreak.terminal import is_main_process, say

R = TypeVar("R", bound=BaseModel)
_FINAL: dict[RecordKind, tuple[str, type[BaseModel]]] = {
    "prompts": ("prompts.jsonl", Prompt),
    "demonstrations": ("demonstrations.jsonl", Demonstration),
    "preferences": ("preferences.jsonl", Preference),
    "answers": ("unpaired.jsonl", LabelledAnswer),
}
FINAL_NAMES: dict[RecordKind, str] = {wanted: name for wanted, (name, _) in _FINAL.items()}


@dataclass(frozen=True)
class Rules:
    """How rows are read."""

    columns: Mapping[str, str | None] = field(default_factory=dict)
    on_bad_row: Literal["refuse", "drop"] = "refuse"
    validation_share: float = VALIDATION_SHARE
    """share of the prompts without a named split that is held out"""
    run: Run | None = None
    """run that lists dropped rows"""
    stage: str = ""
    """the stage that reads, which refuses images; empty: images are kept"""
    dropped: list[BadRow] = field(default_factory=list)
    """sources that are read by these rules"""

    @classmethod
    def of(cls, run: Run) -> Rules:
        """The rules in a stage's configuration."""
        config = run.config
        share = getattr(config, "validation_share", VALIDATION_SHARE)
        return cls(getattr(config, "columns", {}), getattr(config, "on_bad_row", "refuse"), share, run, run.stage)


DEFAULT = Rules()
_ZERO_OR_ONE = (
    "{0}: holds 0 and 1 but never 2, and the answers are numbered from 1, so 0 may mean a tie or the first answer: write "
    "the better answer's name, or tie"
)
NOT_APART = "prompts without two answers of different ratings"
UNPAIRED = "unpaired rows are for KTO: tiebreak dpo --algorithm kto; tiebreak sft learns from those labelled true"


@dataclass
class Draft:
    """A row's record, without its split."""

    where: str
    prompt: str
    """its identity for the split: the prompt's id, whatever blanks and line ends surround its texts"""
    split: Split | None
    """the split that the row names"""
    record: Any

    def placed(self, split: Split) -> Any:
        """The record, with its split."""
        if isinstance(self.record, Demonstration):
            prompt = self.record.prompt.model_copy(update={"split": split})
            return self.record.model_copy(update={"prompt": prompt})
        return self.record.model_copy(update={"split": split})


@dataclass
class Reading:
    """How a source was read."""

    source: str
    wanted: RecordKind
    stage: str = ""
    rows: int = 0
    drafts: list[Draft] = field(default_factory=list)
    stored: int = 0
    """records that were put on disk instead of `drafts`"""
    bad: list[BadRow] = field(default_factory=list)
    shapes: Counter[str] = field(default_factory=Counter)
    ignored: dict[str, str] = field(default_factory=dict)
    """column → its content, for columns with our name but another meaning"""
    left_out: Counter[str] = field(default_factory=Counter)
    """why valid rows hold no record of the wanted kind → number of rows"""

    @property
    def found(self) -> int:
        """The number of its records."""
        return len(self.drafts) + self.stored

    def lines(self) -> list[str]:
        """Lines to report: the shape, rows left out, and ignored columns."""
        shape = ", ".join(name if len(self.shapes) == 1 else f"{name}: {n}" for name, n in self.shapes.most_common())
        made = "" if self.found == self.rows - len(self.bad) else f", {counted(self.found, self.wanted[:-1])}"
        if not self.rows:
            return [f"{self.source}: it holds no rows"]
        lines = [f"{self.source}: {counted(self.rows, 'row')} read as {shape or 'nothing'}{made}"]
        lines += [f"{self.source}: {count} left out: {reason}" for reason, count in self.left_out.most_common()]
        if self.ignored:
            lines.append(f"{self.source}: ignored columns: {self.ignored_columns()}")
        return lines

    def ignored_columns(self) -> str:
        """The names of ignored columns, with an example for those with our name."""
        return first_names(
            f"{name or repr(name)} ({held})" if held else name or repr(name)
            for name, held in sorted(self.ignored.items())
        )


# --- for stages --------------------------------------------------------------------------------------------------------


def read_prompts(source: str, splits: Sequence[Split], rules: Rules = DEFAULT) -> list[Prompt]:
    """Prompts of the given splits.

    If a source names no split, all of its prompts are in the test split: a file that is given for evaluation is not
    trained on.
    """
    found: list[Prompt]
    if is_run(source):
        found = [prompt for prompt in read_own(source, "prompts", rules.stage) if prompt.split in splits]
    else:
        reading = read(source, "prompts", rules)
        if "test" in splits and not any(draft.split for draft in reading.drafts):
            return [draft.placed(splits[0]) for draft in settle(reading, rules)]
        found = [prompt for prompt in _built(reading, rules) if prompt.split in splits]
    if rules.run is not None and rules.run.config.trains:
        check_reviewed(found, source, rules.run)
    return found


def read_demonstrations(source: str, rules: Rules = DEFAULT) -> list[Demonstration]:
    """Demonstrations, each with its split."""
    if is_run(source):
        shown: list[Demonstration] = read_own(source, "demonstrations", rules.stage)
    else:
        shown = _built(read(source, "demonstrations", rules), rules)
    check_reviewed(shown, source, rules.run)
    return shown


def read_preferences(source: str, rules: Rules = DEFAULT) -> list[Preference]:
    """Preferences, each with its split: what `tiebreak dpo` and `tiebreak reward` learn from.

    Args:
        source: a label run, a file, a folder or hub:NAME@SPLIT.

    Raises:
        DataError: with every row that cannot be used.
        RunError: there is no such data.
    """
    if is_run(source):
        own: list[Preference] = read_own(source, "preferences", rules.stage)
        preferences = _with_splits(own, source, rules)
    else:
        preferences = _built(read(source, "preferences", rules), rules)
    check_reviewed(preferences, source, rules.run)
    return preferences


EDITS = "edit_preferences.jsonl"


def read_edits(source: str, rules: Rules = DEFAULT) -> list[Preference]:
    """Raters' edits of a label run, each preferred to the answers that it improves on.

    Raises:
        DataError: the source is not a label run, or holds no edits.
    """
    if not is_run(source) or not (Path(source) / "final" / EDITS).is_file():
        raise DataError(
            f"use_edits: {source} holds no {EDITS}, which a label run has where raters edited answers: set use_edits: false"
        )
    own: list[Preference] = _validated(read_rows(source, EDITS), Preference, source)
    if rules.stage:
        require_text_records(own, source, rules.stage)
    return _with_splits(own, source, rules)


def read_answers(source: str, rules: Rules = DEFAULT) -> list[LabelledAnswer]:
    """Answers labelled desirable or not, each with its split: what `tiebreak dpo --algorithm kto` learns from.

    Args:
        source: a label run that exported `unpaired`, a file, a folder or hub:NAME@SPLIT.

    Raises:
        DataError: with every row that cannot be used.
        RunError: there is no such data.
    """
    if not is_run(source):
        answers: list[LabelledAnswer] = _built(read(source, "answers", rules), rules)
        check_reviewed(answers, source, rules.run)
        return answers
    name, _ = _FINAL["answers"]
    if not (Path(source) / "final" / name).is_file():
        raise RunError(
            f"{source} is a finished run, but holds no {name}, which KTO learns from: export it with formats: [unpaired] "
            "in the label stage's configuration, or train on its pairs with --algorithm dpo"
        )
    own: list[LabelledAnswer] = read_own(source, "answers", rules.stage)
    check_reviewed(own, source, rules.run)
    return _with_splits(own, source, rules)


P = TypeVar("P", Preference, LabelledAnswer)


def _with_splits(own: Sequence[P], source: str, rules: Rules) -> list[P]:
    """A run's records, each with its prompt's id and its split."""
    ids = [one.prompt_id or prompt_id(one.prompt, one.tools) for one in own]
    keys = [_split_identity(one, own_id) for one, own_id in zip(own, ids, strict=True)]
    rows = [(f"{source} row {n}", key, one.split) for n, (key, one) in enumerate(zip(keys, own, strict=True), 1)]
    splits = assign(rows, rules.validation_share)
    return [
        one.model_copy(update={"split": split, "prompt_id": own_id})
        for one, own_id, split in zip(own, ids, splits, strict=True)
    ]


def _split_identity(record: Preference | LabelledAnswer, own_id: str) -> str:
    """The id of a record's prompt, or of the same prompt in composed characters (NFC)."""
    composed = [message.map_text(lambda text: unicodedata.normalize("NFC", text)) for message in record.prompt]
    return own_id if composed == list(record.prompt) else prompt_id(composed, record.tools)


def read_records(path: Path, model: type[R]) -> list[R]:
    """A file of our own records.

    Raises:
        DataError: lists every broken line.
    """
    return _validated(whole_rows(read_file(path), str(path)), model, str(path))


def read_rows(source: str, final_name: str | None = None) -> list[Row]:
    """Raw rows of a run folder's `final/{final_name}`, or of any other source.

    Raises:
        DataError: the source is missing, of an unknown kind, or has lines that are not JSON objects (all listed).
        RunError: the source is the folder of an unfinished run.
    """
    if is_run(source):
        file = Path(source) / "final" / (final_name or "")
        if not file.is_file():
            raise RunError(f"{source} is a finished run, but holds no {final_name}: it is not an input to this stage")
        return whole_rows(read_file(file), source)
    return whole_rows(read_source(source, "prompts"), source)


def is_run(source: str) -> bool:
    """Whether a source is a finished run's folder.

    Raises:
        RunError: the run is not finished.
    """
    path = Path(source)
    if not path.is_dir() or source.startswith("hub:"):
        return False
    if (path / "run.json").is_file() and not (path / "manifest.json").is_file():
        raise RunError(f"no finished run in {path} (it has no manifest.json): run the stage that writes it first")
    return (path / "manifest.json").is_file()


def read_own(source: str, wanted: RecordKind, stage: str = "") -> list[Any]:
    """The records of a finished run.

    Args:
        stage: the stage that reads, which refuses images.
    """
    name, model = _FINAL[wanted]
    records: list[Any] = _validated(read_rows(source, name), model, source)
    if stage:
        require_text_records(records, source, stage)
    return records


def whole_rows(table: Table, source: str) -> list[Row]:
    """A table's rows.

    Raises:
        DataError: with every line that could not be read.
    """
    if table.bad:
        faults = [f"{one.where}: {one.reason}" for one in table.bad]
        raise DataError(f"{source}: {counted(len(faults), 'broken line')}; fix or remove them", faults)
    return table.rows


def _validated(rows: Sequence[Row], model: type[R], source: str) -> list[R]:
    records, faults = [], []
    for where, row in rows:
        try:
            records.append(model.model_validate(row))
        except ValidationError as error:
            faults += [f"{where}: {fault}" for fault in explain(error)]
    if faults:
        raise DataError(f"{source}: {counted(len(faults), 'error')} in its rows", faults)
    return records


# --- rows of other data ------------------------------------------------------------------------------------------------


def read(source: str, wanted: RecordKind, rules: Rules = DEFAULT) -> Reading:
    """All usable rows of a source that is not a run.

    Raises:
        DataError: the source as a whole cannot be read, or has none of the columns named in `columns`.
    """
    table = read_source(source, wanted)
    reading = Reading(source, wanted, rules.stage, left_out=unread_files(source))
    table = _opened(reading, table)
    require_columns(columns_of(table, rules), rules, source)
    _take_table(reading, table, rules)
    reading.bad.sort(key=lambda one: _place(one.where))
    return reading


def read_piece(source: str, wanted: RecordKind, table: Table, rules: Rules, has_splits: bool) -> Reading:
    """A piece of a source of prompts or demonstrations, whose rows are read one by one.

    Args:
        has_splits: whether a row of the whole source names a split (`names_split`).
    """
    reading = Reading(source, wanted, rules.stage)
    _take_table(reading, _opened(reading, table), rules, has_splits)
    return reading


def _opened(reading: Reading, table: Table) -> Table:
    """The rows that trees of messages hold; any other table as it is."""
    try:
        table, left_out = open_trees(table, reading.wanted)
    except ValueError as error:
        raise DataError(str(error)) from None
    reading.left_out += left_out
    return table


def join_pieces(source: str, wanted: RecordKind, pieces: Iterable[Reading], rules: Rules) -> Reading:
    """What the pieces of a source say of it, without their rows."""
    whole = Reading(source, wanted, rules.stage)
    for piece in pieces:
        whole.rows += piece.rows
        whole.bad += piece.bad
        whole.shapes.update(piece.shapes)
        whole.left_out.update(piece.left_out)
        whole.ignored |= {name: held for name, held in piece.ignored.items() if name not in whole.ignored}
        whole.stored += piece.stored
    whole.bad.sort(key=lambda one: _place(one.where))
    return whole


def names_split(table: Table, rules: Rules) -> bool:
    """Whether a row names its split."""
    rows = (Cells(_unnested(row), rules.columns, table.of_text) for _, row in table.rows)
    return any(_names_split(cells) for cells in rows)


def _names_split(cells: Cells) -> bool:
    return "split" in cells and split_of(str(cells.values["split"])) is not None


def _take_table(reading: Reading, table: Table, rules: Rules, has_splits: bool | None = None) -> None:
    reading.rows += len(table.rows) + len(table.bad)
    reading.bad += table.bad
    wanted = reading.wanted
    rows = [(where, Cells(_unnested(row), rules.columns, table.of_text)) for where, row in table.rows]
    if has_splits is None:
        has_splits = any(_names_split(cells) for _, cells in rows)
    rated: dict[str, list[PlacedRating]] = {}
    unsettled = unsettled_winner([cells for _, cells in rows]) if wanted == "preferences" else None
    for where, cells in rows:
        try:
            if unsettled is not None and unsettled in cells:
                raise ValueError(_ZERO_OR_ONE.format(unsettled))
            used = _take_row(reading, where, cells, has_splits, rated)
        except ValueError as error:
            reading.bad.append(BadRow(where, first_line(error)))
            continue
        if not used:
            continue  # what was not looked at is not ignored
        for name, value in cells.unused().items():
            if name in ("id", "prompt_id") and str(value).startswith("prompt-"):
                continue  # ours, made again from the content
            held = str(value)[:40] if name in _NAMED_FOREIGN and isinstance(value, str | int) else ""
            reading.ignored.setdefault(name, held)
    _take_rated(reading, rated, has_splits, dropping=rules.on_bad_row == "drop")


def _unnested(row: dict[str, Any]) -> dict[str, Any]:
    """A prompt within an object, as columns: our Demonstration's, and OpenAI's `input: {messages, tools}`."""
    name = next((name for name in ("prompt", "input") if _is_nested(row.get(name))), None)
    if name is None:
        return row
    fields = {key: value for key, value in row[name].items() if key in _OF_A_PROMPT and value}
    others = {
        f"{name}.{key}": value for key, value in row[name].items() if key not in ("id", "messages", *_OF_A_PROMPT)
    }
    return {**fields, **others, **row, name: row[name]["messages"]}


_OF_A_PROMPT = ("split", "source", "tags", "tools")


def _is_object(value: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def _is_nested(value: object) -> bool:
    return isinstance(value, dict) and "messages" in value


_NAMED_FOREIGN = ("split", "kind", "source", "tags", "label", "strength", "confidence", "agreement", "raters")


def columns_of(table: Table, rules: Rules) -> tuple[set[str], set[str]]:
    """(its columns, the fields of objects in them). Empty unless `columns` names some of the data's."""
    wanted = _named_columns(rules)
    if not wanted:
        return set(), set()
    there = {name for _, row in table.rows for name in (*row, *open_objects(row, wanted.values()))}
    fields = {f"{name}.{key}" for _, row in table.rows for name, of in row.items() if _is_object(of) for key in of}
    return there, fields


def _named_columns(rules: Rules) -> dict[str, str]:
    return {ours: theirs for ours, theirs in rules.columns.items() if theirs and not ours.startswith("message.")}


def require_columns(columns: tuple[set[str], set[str]], rules: Rules, source: str) -> None:
    """Refuse a source that lacks a column named in `columns`.

    Args:
        columns: as from `columns_of`.

    Raises:
        DataError: names the column, and those that there are.
    """
    there, fields = columns
    for ours, theirs in _named_columns(rules).items():
        if there and theirs not in there:
            raise DataError(
                f"columns.{ours}: {source} has no column {theirs!r}; it has {first_names(sorted(there | fields))}"
            )


def _take_row(
    reading: Reading, where: str, cells: Cells, has_splits: bool, rated: dict[str, list[PlacedRating]]
) -> bool:
    """Whether the row holds a record of the wanted kind."""
    interpretation = interpret(cells, reading.wanted)
    if reading.stage:
        for result in interpretation.results:
            if isinstance(result, PromptRow):
                require_text(messages_of(result), reading.stage, result.image_column)
    drafts: list[Draft] = []
    for result in interpretation.results:
        if isinstance(result, Omission):
            reading.left_out[result.reason] += 1
        elif isinstance(result, RatingRow):
            check(result)
            if pair_columns := about(cells, COUNTED):
                name = next(iter(pair_columns))
                raise ValueError(
                    f"{name}: it applies to pairs, but this row is one answer; columns: {{{name}: null}} ignores the column"
                )
            _named_split(cells, has_splits)
            rated.setdefault(prompt_id(result.prompt, result.tools), []).append((where, cells, result))
        else:
            check(result)
            drafts.append(_draft(where, cells, result, reading, has_splits))
    reading.drafts += drafts
    reading.shapes[interpretation.shape] += 1
    return not all(isinstance(result, Omission) for result in interpretation.results)


PlacedRating = tuple[str, Cells, RatingRow]
"""(place, columns, content) of a row with one rated answer"""


def _take_rated(reading: Reading, rated: Mapping[str, list[PlacedRating]], has_splits: bool, *, dropping: bool) -> None:
    """The pairs from the rated answers to each prompt."""
    for rows in rated.values():
        split, answers = _of_one_split(reading, rows, has_splits, dropping=dropping)
        pairs = pair_up([one for _, _, one in answers])
        wheres = [where for where, _, _ in answers]
        if not pairs:
            unpaired = any(shape.startswith("KTO") for shape in reading.shapes)
            reading.left_out[NOT_APART + (f" ({UNPAIRED})" if unpaired else "")] += 1
        for pair in pairs:
            if isinstance(pair, Omission):
                reading.left_out[pair.reason] += 1
                continue
            try:
                draft = _draft(wheres[0], answers[0][1], pair, reading, has_splits)
                reading.drafts.append(replace(draft, split=split))
            except ValueError as error:
                reading.bad.append(BadRow(" and ".join(wheres), first_line(error)))


def _of_one_split(
    reading: Reading, rows: list[PlacedRating], has_splits: bool, *, dropping: bool
) -> tuple[Split | None, list[PlacedRating]]:
    """The split that the rated answers to one prompt name, and those in it.

    Raises:
        DataError: they name two splits, and dropping is off.
    """
    splits = [_named_split(cells, has_splits) for _, cells, _ in rows]
    places = {split: where for (where, _, _), split in zip(rows, splits, strict=True) if split is not None}
    if len(places) > 1 and not dropping:
        prompt = split_key(rows[0][2].prompt, rows[0][2].tools)
        named_splits((where, prompt, split) for (where, _, _), split in zip(rows, splits, strict=True))
    held_out = _held_out_first(places) if places else None
    kept: list[PlacedRating] = []
    for row, split in zip(rows, splits, strict=True):
        if split in (held_out, None):
            kept.append(row)
        else:
            reading.bad.append(_leaked(row[0], held_out or "train", places[held_out or "train"]))
    return held_out, kept


def _draft(where: str, cells: Cells, result: PromptRow, reading: Reading, has_splits: bool) -> Draft:
    """The record without its split. Raises ValueError if it is invalid."""
    facts = about(cells, _ABOUT[reading.wanted])
    if marks := marks_of_row(cells.values):
        facts["tags"] = tuple(dict.fromkeys((*facts.get("tags", ()), *marks)))
        cells.used |= {"kind", "tags"}
    identity = prompt_id(result.prompt, result.tools)
    record = _record(identity, result, facts)
    return Draft(where, split_key(result.prompt, result.tools), _named_split(cells, has_splits), record)


_TEXT_FACTS = ("source", "tags")
COUNTED = ("weight", "margin", "strength", "confidence", "agreement")
"""columns of a pair's label, which one answer has none of"""
_ABOUT: dict[RecordKind, tuple[str, ...]] = {
    "prompts": _TEXT_FACTS,
    "demonstrations": (*_TEXT_FACTS, "weight"),
    "preferences": (
        *_TEXT_FACTS,
        *("weight", "margin", "strength", "confidence", "agreement", "raters", "votes", "adjudicated"),
        *("kind", "pair_id"),
        *("chosen_finished", "rejected_finished", "chosen_ids", "rejected_ids", "tokenizer_sha256", "selection"),
    ),
    "answers": (*_TEXT_FACTS, *COUNTED, "kind", "pair_id", "finished", "ids", "tokenizer_sha256"),
}


def _named_split(cells: Cells, has_splits: bool) -> Split | None:
    """The split that a row names. A column that never names one has another meaning, and is ignored."""
    if not has_splits or "split" not in cells:
        return None
    name = str(cells.get("split"))
    split = split_of(name)
    if split is None:
        raise ValueError(
            f"split: {name!r} is not train, validation or test; columns: {{split: null}} ignores the column"
        )
    return split


def _record(identity: str, result: PromptRow, facts: Mapping[str, Any]) -> Any:
    """The record, without its split."""
    if isinstance(result, PreferenceRow):
        stated = {} if result.strength is None else {"strength": result.strength}
        if "agreement" not in facts and float(facts.get("confidence", 1)) < 0.5:  # a vote's share can be, with ties
            raise ValueError(
                f"confidence: {facts['confidence']} says that the rejected answer is the better one: swap chosen and "
                "rejected, and give 1 - confidence"
            )
        return Preference(
            prompt=result.prompt,
            chosen=result.chosen,
            rejected=result.rejected,
            tools=result.tools,
            prompt_id=identity,
            **{**stated, **facts},
        )
    if isinstance(result, LabelRow):
        if pair_columns := [name for name in COUNTED if name in facts]:
            raise ValueError(
                f"{pair_columns[0]}: it applies to pairs, but this row is one answer; columns: {{{pair_columns[0]}: null}} "
                "ignores the column"
            )
        return LabelledAnswer(
            prompt=result.prompt,
            completion=result.answer,
            label=result.good,
            tools=result.tools,
            prompt_id=identity,
            **facts,
        )
    about_text = {name: facts[name] for name in _TEXT_FACTS if name in facts}
    prompt = Prompt(id=identity, messages=result.prompt, tools=result.tools, **about_text)
    if not isinstance(result, AnswerRow):
        return prompt
    if str(weight := facts.get("weight", 1)) not in ("1", "1.0"):
        raise ValueError(
            f"weight: {weight!r}, but every demonstration has weight 1; columns: {{weight: null}} ignores the "
            "column. To keep a turn out of the loss, give its message weight 0"
        )
    return Demonstration(prompt=prompt, completion=_completion(result.answer))


def _completion(answer: Messages) -> str | Messages:
    return answer[0].text if len(answer) == 1 and answer[0].is_plain else answer


# --- results ------------------------------------------------------------------------------------------------------------


def _built(reading: Reading, rules: Rules) -> list[Any]:
    """The records, with their splits."""
    if rules.on_bad_row == "drop":
        drop_leaked(reading)
    drafts = settle(reading, rules)
    if count := _contradicted(drafts):
        of_pairs = reading.wanted == "preferences"
        how = "either answer is chosen in some row" if of_pairs else "good in one row, bad in another"
        have = f"{counted(count, 'pair' if of_pairs else 'answer')} {'has' if count == 1 else 'have'}"
        say(f"{reading.source}: {have} contradictory labels: {how}")
    splits = assign([(draft.where, draft.prompt, draft.split) for draft in drafts], rules.validation_share)
    if any(draft.split == "train" for draft in drafts) and "validation" not in splits:
        say(f"{reading.source}: no row names the validation split, so nothing is held out; {_holding_out(splits)}")
    return [draft.placed(split) for draft, split in zip(drafts, splits, strict=True)]


def _contradicted(drafts: Sequence[Draft]) -> int:
    """The number of pairs of which either answer is chosen in some row, or of answers labelled both good and bad. A kept
    tie has a row for each answer, and does not count."""
    labels: dict[object, set[object]] = {}
    for draft in drafts:
        record = draft.record
        if isinstance(record, LabelledAnswer):
            labels.setdefault((draft.prompt, text_of(record.completion).strip()), set()).add(record.label)
        elif isinstance(record, Preference) and record.strength != 0 and record.confidence != 0.5:
            chosen, rejected = record.chosen_text.strip(), record.rejected_text.strip()
            labels.setdefault((draft.prompt, frozenset((chosen, rejected))), set()).add(chosen)
    return sum(len(given) > 1 for given in labels.values())


def _holding_out(splits: Sequence[Split]) -> str:
    """Advice: how to hold out some of the training rows without training on the test split."""
    if "test" in splits:
        return "give the training split alone (FOLDER@SPLIT, hub:NAME@SPLIT, or a file) to hold out some of its prompts"
    return "columns: {split: null} holds prompts out"


_HELD_OUT_FIRST: tuple[Split, ...] = ("test", "validation", "train")


def drop_leaked(*readings: Reading) -> None:
    """Of a prompt's rows that name two splits, within one reading or across them, keep the held-out ones."""
    named: dict[str, dict[Split, str]] = {}
    for draft in (draft for reading in readings for draft in reading.drafts):
        if draft.split is not None:
            named.setdefault(draft.prompt, {}).setdefault(draft.split, draft.where)
    for reading in readings:
        kept = []
        for draft in reading.drafts:
            places = named.get(draft.prompt, {})
            held_out = _held_out_first(places)
            if len(places) < 2 or draft.split in (held_out, None):
                kept.append(draft)
            else:
                reading.bad.append(_leaked(draft.where, held_out, places[held_out]))
        reading.drafts = kept
        reading.bad.sort(key=lambda one: _place(one.where))


def _held_out_first(splits: Iterable[Split]) -> Split:
    return next((split for split in _HELD_OUT_FIRST if split in splits), "train")


def _leaked(where: str, split: Split, other: str) -> BadRow:
    return BadRow(where, f"its prompt is in the {split} split too ({other})")


def settle(reading: Reading, rules: Rules) -> list[Draft]:
    """The usable rows, reported; the others are refused or listed.

    Raises:
        DataError: some rows cannot be used and dropping is off; or none is left.
    """
    if reading.bad and (rules.on_bad_row == "refuse" or not reading.found):
        raise DataError(_summary(reading, rules), faults_of(reading))
    if not reading.found:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in reading.left_out.items()) or "it holds no rows"
        raise DataError(f"{reading.source}: no {reading.wanted} in it ({reasons})")
    say(*reading.lines())
    if reading.bad:
        _list_bad_rows(reading, rules)
    return reading.drafts


def _summary(reading: Reading, rules: Rules) -> str:
    summary = f"{reading.source}: {len(reading.bad)} of {reading.rows} rows cannot be used as {reading.wanted}"
    if rules.on_bad_row == "drop":
        return f"{summary}, and none is left"
    return f"{summary}: fix them, or set on_bad_row: drop" if reading.found else summary


def faults_of(reading: Reading) -> list[str]:
    """Every bad row with its reason; one line if all have the same reason."""
    return fault_lines(reading.bad, reading.rows)


def fault_lines(bad: Sequence[BadRow], rows: int) -> list[str]:
    """Every bad row with its reason; one line if all `rows` have the same reason."""
    reasons = Counter(one.reason for one in bad)
    if len(reasons) == 1 and len(bad) > 3 and len(bad) == rows:
        return [f"every row: {bad[0].reason}"]
    return [f"{one.where}: {one.reason}" for one in bad]


def _list_bad_rows(reading: Reading, rules: Rules) -> None:
    listed = ""
    if rules.run is not None:
        rules.dropped.extend(reading.bad)
        rules.run.facts["dropped_rows"] = len(rules.dropped)
        if is_main_process():
            path = rules.run.folder / BAD_ROWS
            write_jsonl(path, [vars(one) for one in rules.dropped])
            listed = f", listed in {path}"
    first = reading.bad[0]
    say(
        f"{reading.source}: {len(reading.bad)} of {reading.rows} rows dropped (on_bad_row: drop){listed}; the first: "
        f"{first.where}: {first.reason}"
    )


def _place(where: str) -> list[tuple[int, str]]:
    """Sort key: `rows.jsonl:9` before `rows.jsonl:10`."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", where)]

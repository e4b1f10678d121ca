"""The first pass of *prepare*: reads the sources piece by piece, checks and normalises every row, and puts it on disk."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sft import store
from sft.canaries import planted, rows_of
from sft.configuration import PrepareConfig
from sft.distributions import Counts, counted_rows, stride_of
from sft.normalising import normalise, normalise_completion, normalise_lines, normalise_prompt
from sft.steps.step import Row
from sft.store import Pass, RowFiles, Store, Summary, write_rows
from tiebreak.data.reading import (
    Draft,
    Reading,
    Rules,
    columns_of,
    drop_leaked,
    faults_of,
    join_pieces,
    names_split,
    read_piece,
    require_columns,
    settle,
)
from tiebreak.data.sources import Piece, pieces_of, unread_files
from tiebreak.data.text import BadRow
from tiebreak.errors import DataError, counted
from tiebreak.messages import Messages
from tiebreak.records import Demonstration, Prompt, RecordKind
from tiebreak.runs.run import Run


@dataclass
class ReadRows:
    """The rows of all sources, and what was counted."""

    rows: RowFiles
    read: Counter[str] = field(default_factory=Counter)
    """rows that were read as prompts, and as demonstrations"""
    normalised: int = 0
    distributions: list[Counts] = field(default_factory=list)
    by_source: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    """what was not read of the sources, by the reason"""


@dataclass(frozen=True)
class Source:
    """A source before its rows are read."""

    number: int
    path: str
    wanted: RecordKind
    name: str
    """in the run"""
    size: int
    """of lines or rows"""
    has_splits: bool
    tables: tuple[Piece, ...]
    """its pieces, where they are in memory already"""
    planted: bool = False
    """rows of ours, in our own columns"""

    def pieces(self) -> Iterable[Piece]:
        """All its pieces."""
        return self.tables or pieces_of(self.path, self.wanted, store.PART_ROWS)


def file_names(sources: Sequence[str]) -> dict[str, str]:
    """Each source's name in the run: its file's name, so that the same data makes the same run in any folder.

    Sources keep their paths if two files have the same name.
    """
    names = {source: source if source.startswith("hub:") else Path(source).name for source in sources}
    return names if len(set(names.values())) == len(names) else {source: source for source in sources}


def read_sources(config: PrepareConfig, work: Store, run: Run | None = None) -> ReadRows:
    """Read and check every row of every source.

    Raises:
        DataError: with every fault of every file.
    """
    rules = Rules(config.columns, config.on_bad_row, run=run, stage="prepare")
    opened = work.begin("read")
    summary = opened.summary or _read_all(config, opened, rules)
    faults = list(summary["faults"])
    readings = []
    for one in summary["sources"]:
        try:
            if not one["planted"]:
                require_columns(_columns(one["pieces"]), rules, one["source"])
        except DataError as error:
            faults.append(str(error))
            continue
        pieces = (_as_reading(piece, one["source"], one["wanted"]) for piece in one["pieces"])
        reading = join_pieces(one["source"], one["wanted"], pieces, rules)
        reading.left_out.update({} if one["planted"] else unread_files(one["source"]))
        readings.append(reading)
    leaked = _drop_leaked(readings, summary["sources"]) if rules.on_bad_row == "drop" and not faults else {}
    faults += [fault for reading in readings if rules.on_bad_row == "refuse" for fault in faults_of(reading)]
    if faults:
        raise DataError(
            f"{counted(len(faults), 'error')} in the data; nothing was written. Fix them, or set on_bad_row: drop",
            faults,
        )
    for reading in readings:
        settle(reading, rules)
    parts = [piece for one in summary["sources"] for piece in one["pieces"]]
    found = opened.rows([one["stored"] for one in parts])
    kept = tuple(replace(part, without=frozenset(leaked.get(number, ()))) for number, part in enumerate(found.parts))
    read: Counter[str] = Counter()
    by_source: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for reading in readings:
        read[reading.wanted] += reading.rows
        by_source[reading.source] += reading.rows
        left_out += reading.left_out
    counts = [one["distributions"] for one in parts]
    return ReadRows(RowFiles(kept), read, sum(one["normalised"] for one in parts), counts, by_source, left_out)


def _read_all(config: PrepareConfig, opened: Pass, rules: Rules) -> Summary:
    names = file_names([*config.prompts, *config.demonstrations])
    wanted: tuple[tuple[RecordKind, list[str]], ...] = (
        ("prompts", config.prompts),
        ("demonstrations", config.demonstrations),
    )
    faults: list[str] = []
    sources: list[Source] = []
    for kind, path in ((kind, path) for kind, listed in wanted for path in listed):
        try:
            sources.append(Source(len(sources), path, kind, names[path], *_scanned(path, kind, rules)))
        except DataError as error:
            faults += error.faults or [str(error)]
    if canaries := planted(config.canaries):
        rows = rows_of(canaries)
        piece = Piece("", rows=rows)
        sources.append(
            Source(len(sources), "canaries", "demonstrations", "canaries", len(rows.rows), True, (piece,), True)
        )

    def tasks() -> Iterator[tuple[Source, Piece]]:
        for source in sources:
            yield from ((source, piece) for piece in source.pieces())

    rows_of_all = sum(source.size for source in sources)
    stride = stride_of(rows_of_all)
    repairs_encodings = "repair" in config.steps and config.repair.encoding
    change = normalise_lines if repairs_encodings else normalise
    summaries = opened.work(
        lambda task, stem: _read_part(*task, rules, stem, stride, change),
        tasks(),
        rows_of_all,
        "rows read",
        lambda task: task[1].size,
    )
    listed: list[Summary] = [
        {"source": one.path, "wanted": one.wanted, "planted": one.planted, "pieces": []} for one in sources
    ]
    for one in summaries:
        listed[one.pop("source")]["pieces"].append(one)
    summary = {"sources": listed, "faults": faults}
    opened.complete(summary)
    return summary


_LETTERS_OF_SPLIT = re.compile(rb"split|\\u00(?:73|70|6c|69|74)", re.IGNORECASE)


def _scanned(path: str, wanted: RecordKind, rules: Rules) -> tuple[int, bool, tuple[Piece, ...]]:
    """(the number of lines or rows, whether a row names its split, the pieces if they are in memory)."""
    size, has_splits, again = 0, False, False
    tables: list[Piece] = []
    for piece in pieces_of(path, wanted, store.PART_ROWS):
        size += piece.size
        again = again or bool(piece.lines) or (piece.is_read_again and size > store.PART_ROWS)
        tables = [] if again else [*tables, piece]
        if not has_splits and (piece.split or _may_name_split(piece, rules)):
            has_splits = names_split(piece.table(), rules)
    return size, has_splits, tuple(tables)


def _may_name_split(piece: Piece, rules: Rules) -> bool:
    """Whether a row may have a column for its split: a quick look that spares most data the parsing."""
    return (
        not piece.lines
        or bool(rules.columns.get("split"))
        or any(line is not None and _LETTERS_OF_SPLIT.search(line) for _, line in piece.lines)
    )


def _read_part(
    source: Source, piece: Piece, rules: Rules, stem: Path, stride: int, change: Callable[[str], str]
) -> Summary:
    table = piece.table()
    if source.planted:
        rules = replace(rules, columns={})
    reading = read_piece(source.path, source.wanted, table, rules, source.has_splits)
    normalised = _normalise_drafts(reading, source.name, change)
    there, fields = columns_of(table, rules)
    rows = [Row(draft.where, draft.record, draft.split) for draft in reading.drafts]
    return {
        "source": source.number,
        "stored": write_rows(stem.with_suffix(".rows"), rows),
        "rows": reading.rows,
        "bad": [[one.where, one.reason] for one in reading.bad],
        "shapes": dict(reading.shapes),
        "left_out": dict(reading.left_out),
        "ignored": reading.ignored,
        "columns": [sorted(there), sorted(fields)],
        "normalised": normalised,
        "distributions": counted_rows(row.record for row in rows[::stride]) if not source.planted else {},
        "named": [[n, d.where, d.prompt, d.split] for n, d in enumerate(reading.drafts) if d.split is not None],
    }


def _as_reading(piece: Mapping[str, Any], source: str, wanted: RecordKind) -> Reading:
    reading = Reading(source, wanted, "prepare", piece["rows"], stored=piece["stored"])
    reading.bad = [BadRow(*one) for one in piece["bad"]]
    reading.shapes, reading.left_out = Counter(piece["shapes"]), Counter(piece["left_out"])
    reading.ignored = piece["ignored"]
    return reading


def _columns(pieces: Sequence[Mapping[str, Any]]) -> tuple[set[str], set[str]]:
    return (
        {name for piece in pieces for name in piece["columns"][0]},
        {name for piece in pieces for name in piece["columns"][1]},
    )


def _drop_leaked(readings: Sequence[Reading], sources: Sequence[Mapping[str, Any]]) -> dict[int, set[int]]:
    """Leave out rows of prompts that name two splits; returns part → places of its rows that are left out.

    Rows that name no split are never left out, so only the others are checked.
    """
    number = 0
    for reading, one in zip(readings, sources, strict=True):
        for piece in one["pieces"]:
            reading.drafts += [Draft(where, key, split, (number, place)) for place, where, key, split in piece["named"]]
            number += 1
    before = [draft.record for reading in readings for draft in reading.drafts]
    drop_leaked(*readings)
    kept = {draft.record for reading in readings for draft in reading.drafts}
    left_out: dict[int, set[int]] = {}
    for part, place in before:
        if (part, place) not in kept:
            left_out.setdefault(part, set()).add(place)
    for reading, one in zip(readings, sources, strict=True):
        reading.stored -= sum(len(piece["named"]) for piece in one["pieces"]) - len(reading.drafts)
        reading.drafts = []
    return left_out


def _normalise_drafts(reading: Reading, name: str, change: Callable[[str], str]) -> int:
    """Normalise the rows, each to be split by its normalised prompt. What is empty then is a bad row.

    Returns:
        the number of rows that were changed.
    """
    count, kept = 0, []
    for draft in reading.drafts:
        record = draft.placed(draft.split or "train")
        shown = record if isinstance(record, Demonstration) else None
        asked = record.prompt if isinstance(record, Demonstration) else record
        prompt, changed = normalise_prompt(asked.model_copy(update={"source": asked.source or name}), change)
        completion = normalise_completion(shown.completion, change) if shown else ""
        if unseen := "prompt" if is_blank(prompt) else "completion" if shown and not _says(completion) else "":
            reason = f"the {unseen} is empty but for characters that cannot be seen"
            reading.bad.append(BadRow(draft.where, reason))
            continue
        count += changed or (shown is not None and completion != shown.completion)
        answered = shown and shown.model_copy(update={"prompt": prompt, "completion": completion})
        kept.append(replace(draft, prompt=prompt.id, record=answered or prompt))
    reading.drafts = kept
    return count


def _says(completion: str | Messages) -> bool:
    return bool(completion) if isinstance(completion, str) else not completion[-1].is_empty


def is_blank(prompt: Prompt) -> bool:
    """Whether the user's message is empty."""
    return prompt.messages[-1].role == "user" and prompt.messages[-1].is_empty

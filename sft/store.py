"""Rows of a prepare run on disk while it works: memory stays bounded, and a run that was killed resumes.

    work/0-read/00000.rows      a part: the rows of some lines of a source
    work/0-read/00000.json      the part's summary, written last: a part that has one is not computed again
    work/0-read/complete.json   the pass's summary

A pass (reading, a step, comparing, measuring, writing) goes through the parts in order, in two processes where there are
many rows. Its rows are removed once the next pass is complete, and the folder once the run is finished: until then it also
holds what steps removed from the rows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from sft.steps.step import Row
from tiebreak.files import write_json, write_text_atomically
from tiebreak.messages import Message
from tiebreak.process.parts import cores, in_parts
from tiebreak.records import Demonstration, Prompt
from tiebreak.terminal.progress import progress

WORK = "work"
LAYOUT = 4
"""of the rows and summaries: what another version left behind is not resumed"""
PART_ROWS = 4_000
MANY_ROWS = 10_000
"""rows from which a pass takes two processes and shows its progress"""
MOST_PROCESSES = 2

T = TypeVar("T")
Summary = dict[str, Any]


# --- rows ---


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows, each on a line; returns their number."""
    lines = [
        f"{json.dumps([row.where, row.split, isinstance(row.record, Demonstration)])}\t{row.record.model_dump_json()}\n"
        for row in rows
    ]
    write_text_atomically(path, "".join(lines))
    return len(lines)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            head, _, body = line.partition("\t")
            where, split, is_demonstration = json.loads(head)
            yield Row(where, _record(json.loads(body), is_demonstration), split)


def _record(values: dict[str, Any], is_demonstration: bool) -> Demonstration | Prompt:
    """A record as it was written. Plain ones are not checked a second time, which would take longer than all else."""
    asked = values["prompt"] if is_demonstration else values
    answer = values.get("completion", "")
    if not isinstance(answer, str) or "tools" in asked or any(not _is_plain(message) for message in asked["messages"]):
        return (Demonstration if is_demonstration else Prompt).model_validate(values)
    messages = tuple(Message.model_construct(**message) for message in asked["messages"])
    prompt = Prompt.model_construct(**{**asked, "messages": messages, "tags": tuple(asked["tags"])})
    return Demonstration.model_construct(prompt=prompt, completion=answer) if is_demonstration else prompt


def _is_plain(message: Mapping[str, Any]) -> bool:
    return len(message) == 2 and isinstance(message["content"], str)


@dataclass(frozen=True)
class RowPart:
    """A file of rows, without those at some places in it."""

    path: Path
    size: int
    """rows of the file"""
    without: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return self.size - len(self.without)

    def __iter__(self) -> Iterator[Row]:
        return (row for number, row in enumerate(read_rows(self.path)) if number not in self.without)


@dataclass(frozen=True)
class RowFiles(Sequence[Row]):
    """All rows, on disk."""

    parts: tuple[RowPart, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Row]:
        return (row for part in self.parts for row in part)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | Sequence[Row]:
        if isinstance(at, slice):
            return [row for _, row in self.at(range(len(self))[at])]
        return next(row for _, row in self.at([range(len(self))[at]]))

    def at(self, numbers: Iterable[int]) -> Iterator[tuple[int, Row]]:
        """The rows with these numbers, in ascending order. Only their parts are read."""
        wanted = sorted(set(numbers))
        start = place = 0
        for part in self.parts:
            end = start + len(part)
            here = place
            while place < len(wanted) and wanted[place] < end:
                place += 1
            if place > here:
                there = set(wanted[here:place])
                yield from ((start + n, row) for n, row in enumerate(part) if start + n in there)
            start = end

    def slices(self) -> Iterator[tuple[RowPart, slice]]:
        """Each part, with the numbers of its rows."""
        start = 0
        for part in self.parts:
            yield part, slice(start, start + len(part))
            start += len(part)


# --- passes ---


class Store:
    """The folder of the passes."""

    def __init__(self, folder: Path, key: str = "") -> None:
        """Args:
        key: what decides the rows; a folder of another key is emptied.
        """
        self.folder = folder
        self.count = 0
        marker, key = folder / "key.json", f"{key} {LAYOUT}"
        if not marker.is_file() or json.loads(marker.read_text(encoding="utf-8")) != key:
            self.remove()
            folder.mkdir(parents=True)
            write_json(marker, key)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def begin(self, name: str) -> Pass:
        """The next pass."""
        opened = Pass(self.folder / f"{self.count}-{name.replace(':', '-').replace('/', '-')}")
        self.count += 1
        return opened


class Pass:
    """One pass through the rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._complete = folder / "complete.json"

    @property
    def summary(self) -> Summary | None:
        """The summary of a complete pass."""
        return json.loads(self._complete.read_text(encoding="utf-8")) if self._complete.is_file() else None

    def work(
        self,
        of_part: Callable[[T, Path], Summary],
        parts: Iterable[T],
        rows: int,
        what: str,
        rows_of: Callable[[T], int],
        in_order: bool = False,
    ) -> Iterator[Summary]:
        """Work on each part that has no summary yet; yields all summaries in order.

        Args:
            of_part: of a part, and the path for its files, without an ending.
            rows: in all parts, for the progress.
            what: the work's name, for the progress.
            rows_of: a part's number of rows.
            in_order: a part depends on those before it, so that all are worked on again, in this process.
        """
        if in_order:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(exist_ok=True)

        def summarised(numbered: tuple[int, T]) -> tuple[Summary, int]:
            number, part = numbered
            stem = self.folder / f"{number:05d}"
            done = stem.with_suffix(".json")
            if not done.is_file():
                write_json(done, of_part(part, stem))
            return json.loads(done.read_text(encoding="utf-8")), rows_of(part)

        processes = 1 if in_order or rows < MANY_ROWS else cores(MOST_PROCESSES)
        results = in_parts(summarised, enumerate(parts), processes)
        if rows < MANY_ROWS:
            yield from (summary for summary, _ in results)
            return
        with progress(rows, what) as bar:
            for summary, count in results:
                bar.advance(count)
                yield summary

    def complete(self, summary: Mapping[str, Any], before: RowFiles | None = None) -> None:
        """The pass is complete; the rows that it read are not needed any more."""
        write_json(self._complete, summary)
        for part in before.parts if before is not None else ():
            part.path.unlink(missing_ok=True)

    def rows(self, sizes: Sequence[int]) -> RowFiles:
        """The rows that it wrote."""
        return RowFiles(tuple(RowPart(self.folder / f"{number:05d}.rows", size) for number, size in enumerate(sizes)))

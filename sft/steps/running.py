"""Runs the steps over the rows, part by part, and keeps on disk what each did to which row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sft.steps.step import Change, Entry, Ledger, Step, Tally
from sft.store import Pass, RowFiles, RowPart, Store, Summary, write_rows
from tiebreak.files import write_text_atomically

Kind = Literal["changed", "dropped", "flagged"]
KINDS: tuple[Kind, ...] = ("changed", "dropped", "flagged")


@dataclass
class Journal:
    """What all steps did."""

    tallies: list[Tally] = field(default_factory=list)
    files: dict[Kind, list[Path]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    gaps: list[dict[str, Any]] = field(default_factory=list)
    """what the step `balance` found to be rare"""
    protect: Change | None = None
    """removes personal data from entries made before the step `anonymise`"""

    def lines(self, kind: Kind) -> Iterator[dict[str, str]]:
        """The entries of a kind, as written."""
        protect = self.protect or _unchanged
        for path in self.files[kind]:
            with path.open(encoding="utf-8", newline="\n") as lines:
                yield from (Entry(**json.loads(line)).line(protect) for line in lines)

    def gap_lines(self) -> list[dict[str, Any]]:
        """The gaps as written."""
        protect = self.protect or _unchanged
        return [{**gap, "examples": [protect(text) for text in gap["examples"]]} for gap in self.gaps]


def _unchanged(text: str) -> str:
    return text


def run_steps(steps: Sequence[Step], rows: RowFiles, work: Store) -> tuple[RowFiles, Journal]:
    """The rows after all steps, and what was done."""
    journal = Journal()
    for step in steps:
        opened = work.begin(step.name)
        done = opened.summary
        if done is None:
            run = _run_on_all if step.order == "all at once" else _run_on_parts
            done = run(step, rows, opened, journal.protect)
            opened.complete(done, rows if done["sizes"] is not None else None)
        journal.tallies.append(Tally(**done["tally"]))
        journal.gaps += done["gaps"]
        for kind in KINDS:
            journal.files[kind] += sorted(opened.folder.glob(f"*.{kind}"))
        if done["sizes"] is not None:
            rows = opened.rows(done["sizes"])
        if protect := getattr(step, "protect", None):
            journal.protect = protect
    return rows, journal


def _run_on_parts(step: Step, rows: RowFiles, opened: Pass, protect: Change | None) -> Summary:
    step.begin(rows)

    def of_part(part: RowPart, stem: Path) -> Summary:
        ledger = Ledger(Tally(step.name, read=len(part)), protect=protect)
        size = write_rows(stem.with_suffix(".rows"), step.run(list(part), ledger))
        _write_entries(ledger, stem)
        return {"size": size, "tally": asdict(ledger.now)}

    what, in_order = f"rows, step {step.name}", step.order == "in order"
    parts = list(opened.work(of_part, rows.parts, len(rows), what, len, in_order))
    tally = Tally(step.name)
    for one in parts:
        tally.add(Tally(**one["tally"]))
    step.finish(tally)
    return {"tally": asdict(tally), "sizes": [one["size"] for one in parts], "gaps": []}


def _run_on_all(step: Step, rows: RowFiles, opened: Pass, protect: Change | None) -> Summary:
    """A step that changes no row: the rows' files stay as they are."""
    opened.folder.mkdir(exist_ok=True)
    ledger = Ledger(Tally(step.name, read=len(rows)), protect=protect)
    step.run(rows, ledger)
    step.finish(ledger.now)
    _write_entries(ledger, opened.folder / "all")
    return {"tally": asdict(ledger.now), "sizes": None, "gaps": ledger.gaps}


def _write_entries(ledger: Ledger, stem: Path) -> None:
    for kind in KINDS:
        entries: Sequence[Entry] = getattr(ledger, kind)
        if entries:
            lines = (json.dumps(vars(entry), ensure_ascii=False) for entry in entries)
            write_text_atomically(stem.with_suffix(f".{kind}"), "".join(f"{line}\n" for line in lines))

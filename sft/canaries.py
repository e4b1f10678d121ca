"""Plants canaries among the rows that *prepare* reads, and records which reached training (tiebreak.measures.canaries)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sft.configuration import CanaryConfig
from tiebreak.data.text import Table
from tiebreak.files import write_jsonl
from tiebreak.measures.canaries import CANARY, FILE, Canary, plant
from tiebreak.records import Demonstration


def planted(config: CanaryConfig | None) -> list[Canary]:
    """The configured canaries."""
    return list(plant(config.count, config.repeats, config.seed)) if config else []


def rows_of(canaries: Iterable[Canary]) -> Table:
    """Their rows, as if read from a file. They are for training alone."""
    table = Table()
    for one in canaries:
        for ticket in one.tickets:
            row = {"prompt": one.question(ticket), "completion": one.answer(one.number)}
            table.rows.append((f"canaries:{ticket}", {**row, "split": "train", "tags": [CANARY]}))
    return table


def in_clear(row: Demonstration, canaries: Iterable[Canary]) -> list[str]:
    """The teams whose number the answer contains."""
    return [one.team for one in canaries if one.secret in row.text]


def write_canaries(final: Path, canaries: Iterable[Canary], clear: Mapping[str, int]) -> None:
    """canaries.jsonl: each canary, with the rows that still contain its number after all steps."""
    write_jsonl(final / FILE, (_line(one, clear) for one in canaries))


def _line(one: Canary, clear: Mapping[str, int]) -> dict[str, Any]:
    return {
        "team": one.team,
        "number": one.number,
        "tickets": list(one.tickets),
        "rows_with_number": clear.get(one.team, 0),
    }


def facts(canaries: Iterable[Canary], clear: Counter[str]) -> dict[str, int]:
    """For the manifest and the report."""
    listed = list(canaries)
    return {
        "count": len(listed),
        "rows": sum(len(one.tickets) for one in listed),
        "rows_with_number": sum(clear.values()),
    }

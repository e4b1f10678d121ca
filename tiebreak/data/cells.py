"""One row's cells, by our names of its columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from tiebreak.data.columns import MESSAGE_PREFIX
from tiebreak.data.conversations import open_objects, parse_cell
from tiebreak.records import Kind


class Cells:
    """One row, and which of its columns were used. A null is an absent column."""

    def __init__(self, row: Mapping[str, Any], columns: Mapping[str, str | None], of_text: bool = False) -> None:
        row = open_objects(row, (theirs for ours, theirs in columns.items() if not ours.startswith(MESSAGE_PREFIX)))
        self.used: set[str] = set()
        self.of_text = of_text
        self.theirs = {ours: theirs for ours, theirs in columns.items() if theirs is not None}
        """the data's names of our columns, as far as `columns` says them"""
        self.explicit = self.theirs.keys()
        self.message_keys = {
            name.removeprefix(MESSAGE_PREFIX): theirs
            for name, theirs in columns.items()
            if name.startswith(MESSAGE_PREFIX)
        }
        ours = {name: theirs for name, theirs in columns.items() if not name.startswith(MESSAGE_PREFIX)}
        renamed = {name: row[theirs] for name, theirs in ours.items() if theirs is not None and theirs in row}
        left = {key: value for key, value in row.items() if key not in ours and key not in ours.values()}
        nothing = (None, "") if of_text else (None,)
        every = {**left, **renamed}
        self.values = {key: value for key, value in every.items() if value not in nothing}
        self.empty = every.keys() - self.values.keys()
        self.values = {key: _of_cell(key, value, of_text) for key, value in self.values.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str) -> Any:
        """A column's value, marked as used; None if it is absent."""
        if name in self.values:
            self.used.add(name)
        return self.values.get(name)

    def unused(self) -> dict[str, Any]:
        """Unused columns."""
        return {name: value for name, value in self.values.items() if name not in self.used}


def _of_cell(column: str, value: object, of_text: bool) -> object:
    return parse_cell(column, value, of_text) if isinstance(value, str) else value


# --- columns about a row -----------------------------------------------------------------------------------------------


def about(cells: Cells, names: Sequence[str]) -> dict[str, Any]:
    """Those of `names` that a row has, except columns with our name but another meaning.

    Values of the right type that are out of range are left for the record to refuse.

    Raises:
        ValueError: a number has a decimal comma.
    """
    for name in names:
        if name in cells and _OURS[name] in (_is_number, _always):
            refuse_comma(name, cells.values[name])
    found = {name: cells.values[name] for name in names if name in cells and _OURS[name](cells.values[name])}
    cells.used |= found.keys()
    return found


_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+\s*")


def refuse_comma(column: str, value: object) -> None:
    """Refuse a number with a decimal comma, as spreadsheets write it in half of Europe: it would pass for a text.

    Raises:
        ValueError: names the column, and how to write the number.
    """
    if isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value):
        raise ValueError(
            f"{column}: {value.strip()} has a decimal comma: write {value.strip().replace(',', '.')}, or ignore the column "
            f"with columns: {{{column}: null}}"
        )


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _is_strings(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _are_votes(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, dict) and "rater" in one for one in value)


def _always(_: object) -> bool:
    return True


_OURS: dict[str, Callable[[Any], bool]] = {
    "weight": _always,  # never ignored: it says what is trained on
    "margin": _always,
    "strength": _is_number,
    "confidence": _is_number,
    "agreement": _is_number,
    "raters": _is_strings,
    "votes": _are_votes,
    "adjudicated": lambda value: isinstance(value, bool),
    "kind": lambda value: value in get_args(Kind),
    "pair_id": lambda value: isinstance(value, str),
    "source": lambda value: isinstance(value, str),
    "tags": _is_strings,
    "chosen_finished": lambda value: isinstance(value, bool),
    "rejected_finished": lambda value: isinstance(value, bool),
    "chosen_ids": _always,
    "rejected_ids": _always,
    "tokenizer_sha256": _always,
    "selection": lambda value: isinstance(value, dict) and "probability" in value,
    "finished": lambda value: isinstance(value, bool),
    "ids": _always,
}

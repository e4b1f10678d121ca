"""Parquet files, and folders that `datasets` wrote with `save_to_disk`.

Arrow gives every row all keys of any row, filled with null: inside messages and tools, these keys are removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tiebreak.data.text import Table
from tiebreak.errors import DataError
from tiebreak.upstream import saved_files


def read_parquet(path: Path) -> Table:
    """A Parquet file.

    Raises:
        DataError: it is not one, or is broken.
    """
    from pyarrow import ArrowException, parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    return to_table(str(path), rows)


def read_saved(folder: Path) -> Table:
    """A dataset of `save_to_disk`: the files listed in its state, in Arrow's stream format.

    Raises:
        DataError: the folder is broken.
    """
    from pyarrow import ArrowException, OSFile, ipc

    rows: list[dict[str, Any]] = []
    try:
        for name in saved_files(json.loads((folder / "state.json").read_text(encoding="utf-8"))):
            with OSFile(str(folder / name)) as opened, ipc.open_stream(opened) as stream:
                rows += stream.read_all().to_pylist()
    except (ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: cannot be read as a saved dataset: {str(error).splitlines()[0]}") from error
    return to_table(str(folder), rows)


def to_table(name: str, rows: Iterable[Any]) -> Table:
    """Rows from Arrow, without the nulls that it filled in."""
    return Table([(f"{name}:row {n}", _without_nulls(dict(row))) for n, row in enumerate(rows, start=1)])


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value

"""Parquet files, and folders that `datasets` wrote with `save_to_disk`.

Arrow gives every row all keys of any row, filled with null: inside messages and tools, these keys are removed.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tiebreak.data.compression import MOST_RATIO, SURELY_FINE_BYTES
from tiebreak.data.text import Table
from tiebreak.errors import DataError
from tiebreak.upstream import saved_files

BATCH_ROWS = 1_000
BUFFER_BYTES = 1024**2
"""of a column that are read at a time: a row group may be as large as the file"""


def read_parquet(path: Path) -> Table:
    """A Parquet file.

    Raises:
        DataError: it is not one, is broken, or is a decompression bomb.
    """
    return next(parquet_batches(path, sys.maxsize))


def parquet_batches(path: Path, size: int) -> Iterator[Table]:
    """The rows of a Parquet file, in batches.

    Raises:
        DataError: as `read_parquet`.
    """
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            _refuse_bomb(path, file.metadata)
            _refuse_twice(path, file.schema_arrow.names)
            batches = file.iter_batches(batch_size=min(size, BATCH_ROWS))
            yield from tables_of(str(path), (row for batch in batches for row in batch.to_pylist()), size)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def _refuse_twice(path: Path, names: Sequence[str]) -> None:
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise DataError(f"{path}: has several columns of the name {', '.join(map(repr, twice))}: rename all but one")


def _refuse_bomb(path: Path, metadata: Any) -> None:
    size = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
    if size > max(SURELY_FINE_BYTES, MOST_RATIO * path.stat().st_size):
        raise DataError(f"{path}: expands to more than {MOST_RATIO} times its size: a decompression bomb?")


def read_saved(folder: Path) -> Table:
    """A dataset of `save_to_disk`: the files listed in its state, in Arrow's stream format.

    Raises:
        DataError: the folder is broken.
    """
    return next(saved_batches(folder, sys.maxsize))


def saved_batches(folder: Path, size: int) -> Iterator[Table]:
    """The rows of such a dataset, in batches.

    Raises:
        DataError: as `read_saved`.
    """
    from pyarrow import ArrowException, OSFile, ipc

    def rows() -> Iterator[Any]:
        for name in saved_files(json.loads((folder / "state.json").read_text(encoding="utf-8"))):
            with OSFile(str(folder / name)) as opened, ipc.open_stream(opened) as stream:
                for batch in stream:
                    yield from batch.to_pylist()

    try:
        yield from tables_of(str(folder), rows(), size)
    except (ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: cannot be read as a saved dataset: {str(error).splitlines()[0]}") from error


def tables_of(name: str, rows: Iterable[Any], size: int) -> Iterator[Table]:
    """Rows from Arrow as tables of so many; an empty one if there is none."""
    left, first = iter(rows), 1
    while batch := list(itertools.islice(left, size)):
        yield to_table(name, batch, first)
        first += len(batch)
    if first == 1:
        yield Table()


def to_table(name: str, rows: Iterable[Any], first: int = 1) -> Table:
    """Rows from Arrow, without the nulls that it filled in. `first`: the number of the first row."""
    return Table([(f"{name}:row {n}", _without_nulls(dict(row))) for n, row in enumerate(rows, start=first)])


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value

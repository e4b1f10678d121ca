"""Every form of file that is read in parts: the rows of the whole, wherever the parts end, in bounded memory."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq

from tiebreak.data import arrow, compression, text
from tiebreak.data.sources import pieces_of, read_source
from tiebreak.errors import DataError

LONG_ROWS = [{"prompt": f"Why, {n}?", "completion": f'ü "{n}",\n because…'} for n in range(40)]
PIECES = ("x.jsonl", "x.jsonl.gz", "x.json", "x.json.zst", "x.csv", "x.csv.gz", "x.tsv", "x.parquet", "saved")


def write_form(path: Path, rows: list[dict[str, str]]) -> Path:
    """The rows in the form that a file's name says."""
    if path.name == "saved":
        Dataset.from_list(rows).save_to_disk(path)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=11)
    else:
        written = io.StringIO(newline="")
        if ".json" in path.suffixes:
            json.dump(rows, written, ensure_ascii=False, indent=1)
        elif ".jsonl" in path.suffixes:
            written.writelines(f"{json.dumps(row)}\n" for row in rows)
        else:
            writer = csv.DictWriter(written, list(rows[0]), delimiter="\t" if ".tsv" in path.suffixes else ",")
            writer.writeheader()
            writer.writerows(rows)
        packing = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
        with pa.CompressedOutputStream(str(path), packing) if packing else path.open("wb") as stream:
            stream.write(written.getvalue().encode())
    return path


@pytest.mark.parametrize("name", PIECES)
def test_pieces_of_every_form_are_the_rows_of_the_whole(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_form(tmp_path / name, LONG_ROWS)
    whole = read_source(str(source), "demonstrations").rows
    assert [row for _, row in whole] == LONG_ROWS
    monkeypatch.setattr(text, "BLOCK", 37)
    pieces = list(pieces_of(str(source), "demonstrations", 7))
    assert [piece.size for piece in pieces] == [7, 7, 7, 7, 7, 5]
    assert [row for piece in pieces for row in piece.table().rows] == whole
    assert {piece.is_read_again for piece in pieces} == {
        ".jsonl" not in name
    }  # a part of a table is parsed from the file


def test_pieces_of_several_files_and_of_what_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    for split, rows in (("train", LONG_ROWS[:9]), ("test", LONG_ROWS[9:14])):
        write_form(tmp_path / "tables" / f"{split}.csv", rows)
    whole = read_source(str(tmp_path / "tables"), "demonstrations").rows
    pieces = list(pieces_of(str(tmp_path / "tables"), "demonstrations", 4))
    assert sorted(piece.size for piece in pieces) == [1, 1, 4, 4, 4]
    assert [row for piece in pieces for row in piece.table().rows] == whole
    assert len(whole) == 14
    (tmp_path / "broken.json").write_text('{"prompt": "Why?"')
    (piece,) = pieces_of(str(tmp_path / "broken.json"), "prompts", 1)
    assert (len(piece.table().rows), len(piece.table().bad)) == (0, 1)
    (tmp_path / "x.txt").write_text("Why are leaves pale?\n")
    assert "Why are leaves pale?" in str(read_source(str(tmp_path / "x.txt"), "prompts").rows)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.text('ab\\"n é', max_size=3), st.text(max_size=8) | st.integers(), max_size=3)),
    st.sampled_from([None, 0, 3]),
    st.integers(1, 9),
)
def test_an_array_is_read_alike_wherever_its_blocks_end(rows: list[Any], indent: int | None, block: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "x.json"
        path.write_text(f" {json.dumps(rows, indent=indent, ensure_ascii=False)}\n", encoding="utf-8", errors="replace")
        patch.setattr(text, "BLOCK", block)
        found = [row for table in text.array_batches(path, 2) for _, row in table.rows]
    assert found == json.loads(json.dumps(rows).encode("utf-8", "replace"))


@pytest.mark.parametrize("block", [1, 2, 3, 5, 1000])
def test_places_in_an_array_are_lines_of_its_file(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK", block)
    path = tmp_path / "x.json"
    path.write_text('\n[\n{"a": 1},\n\n{"b":\n2}, 12,\n {"c": 3}\n]\n')
    (table,) = text.array_batches(path, 9)
    assert table.rows == [(f"{path}:3", {"a": 1}), (f"{path}:5", {"b": 2}), (f"{path}:7", {"c": 3})]
    assert [(bad.where, bad.reason) for bad in table.bad] == [(f"{path}:6", "a int, not an object")]
    assert [len(one.rows) + len(one.bad) for one in text.array_batches(path, 3)] == [3, 1]
    path.write_bytes(b'\n[\n{"a": 1},\n{"b": "\xff"}]')
    with pytest.raises(DataError, match=r"x\.json:4: not UTF-8"):
        list(text.array_batches(path, 9))


def test_small_elements_of_a_long_array_are_not_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK", 100)
    monkeypatch.setattr(text, "LONGEST_LINE_BYTES", 150)
    path = tmp_path / "x.json"
    rows = [{"prompt": f"Why is it {n:02d}?"} for n in range(40)]
    path.write_text(json.dumps(rows))
    assert [row for table in text.array_batches(path, 7) for _, row in table.rows] == rows


def test_batches_of_a_table_count_its_bad_rows_and_hold_text(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    long = "why? " * 40_000  # more than the csv module's own limit of a cell
    path.write_text(f"prompt,tag\n1,a\n2\n3,c\n4,d\n{long},e\n")
    csv.field_size_limit(131_072)
    tables = list(text.table_batches(path, 2))
    assert [(len(table.rows), len(table.bad)) for table in tables] == [(1, 1), (2, 0), (1, 0)]
    assert all(table.of_text for table in tables)
    assert tables[2].rows == [(f"{path}:6", {"prompt": long, "tag": "e"})]
    path.write_text("prompt,tag\n")
    (table,) = text.table_batches(path, 2)
    assert (table.rows, table.bad) == ([], [])


@pytest.mark.parametrize(
    ("size", "ends", "fine"), [(30, "\n", True), (30, "", True), (31, "\n", False), (31, "", False)]
)
def test_a_line_of_a_table_may_be_as_long_as_the_limit(
    size: int, ends: str, fine: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "LONGEST_LINE_BYTES", 30)
    path = tmp_path / "x.csv"
    path.write_text("prompt\n" + "x" * size + ends)
    if fine:
        assert [row for table in text.table_batches(path, 9) for _, row in table.rows] == [{"prompt": "x" * size}]
    else:
        with pytest.raises(DataError, match=r"x\.csv:2: a line of more than 0 MB"):
            list(text.table_batches(path, 9))
    csv.field_size_limit(131_072)


@pytest.mark.parametrize("name", ["x.json", "x.json.zst", "x.csv", "x.tsv", "x.csv.gz"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK", 32 * 1024)
    monkeypatch.setattr(compression, "_BLOCK", 32 * 1024)
    source = write_form(
        tmp_path / name, [{"prompt": f"{n} {'why ' * 40}", "completion": "yes " * 40} for n in range(9_000)]
    )
    tracemalloc.start()
    rows = sum(piece.size for piece in pieces_of(str(source), "demonstrations", 100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 9_000
    assert peak < 1_500_000  # of 3 MB of text


def test_bombs_in_forms_that_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LONGEST_LINE_BYTES", 5_000)
    monkeypatch.setattr(text, "BLOCK", 100)
    faults = {}
    for name, content in {
        "element.json": json.dumps([{"prompt": "x" * 20_000}]),
        "open.json": '[{"prompt": "' + "x" * 20_000,
        "line.csv": "prompt\n" + "x" * 20_000,
        "quote.csv": 'prompt\n"' + "why?\n" * 5_000,
    }.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError) as raised:
            list(pieces_of(str(tmp_path / name), "prompts", 10))
        faults[name] = str(raised.value).removeprefix(f"{tmp_path}/{name}")
    csv.field_size_limit(131_072)
    assert faults["element.json"] == faults["open.json"] == ":1: an element of more than 0 MB"
    assert faults["line.csv"] == ":2: a line of more than 0 MB"
    assert "not CSV (field larger than field limit" in faults["quote.csv"]
    rows = pa.table({"prompt": ["why? " * 200] * 5_000})
    pq.write_table(rows, tmp_path / "x.parquet", compression="zstd", use_dictionary=False)
    monkeypatch.setattr(arrow, "SURELY_FINE_BYTES", 1_000_000)
    with pytest.raises(DataError, match=r"x\.parquet: expands to more than 200 times its size"):
        list(pieces_of(str(tmp_path / "x.parquet"), "prompts", 10))

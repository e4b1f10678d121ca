"""Every form of file and folder holds the same rows: read to the same records, with where each stands."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow
import pytest
from pyarrow import parquet
from support import REPOSITORY, write_rows

from tiebreak.data import compression, sources
from tiebreak.data.reading import Rules, read_demonstrations, read_preferences, read_prompts
from tiebreak.data.sources import (
    Piece,
    data_files,
    hub_revision,
    is_data_folder,
    parse_hub,
    pieces_of,
    pinned_source,
    read_file,
    read_source,
    split_suffix,
    unread_files,
)
from tiebreak.data.text import BadRow, Table, form_of, levels_of, read_text_file, rows_of_lines
from tiebreak.errors import DataError, RunError
from tiebreak.hashing import hash_file
from tiebreak.records import RecordKind
from tiebreak.runs.run import identify_input

KEEP = Rules(validation_share=0.0)
ROWS: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "user", "content": f'Tank {n}, "A"; is\tit\nsound? é 🙂'}],
        "chosen": [{"role": "assistant", "content": f"Yes, {n}."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    for n in range(10)
]
FLAT = [{key: side[0]["content"] for key, side in row.items()} for row in ROWS]


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_table(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)


def in_cells(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Conversations as JSON text, as spreadsheets hold them."""
    return [{key: json.dumps(value) for key, value in row.items()} for row in rows]


def as_zstandard(path: Path, content: bytes) -> None:
    with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(content)


BOM = b"\xef\xbb\xbf"
FORMS: dict[str, Callable[[Path], object]] = {
    "rows.jsonl": lambda p: p.write_bytes(as_lines(ROWS)),
    "rows.ndjson": lambda p: p.write_bytes(as_lines(ROWS).replace(b"\n", b"\r\n")),
    "bom.jsonl": lambda p: p.write_bytes(BOM + as_lines(ROWS)),
    "lines.json": lambda p: p.write_bytes(as_lines(ROWS)),
    "array.json": lambda p: p.write_text(json.dumps(ROWS)),
    "pretty.json": lambda p: p.write_text(json.dumps(ROWS, indent=2)),
    "bom.json": lambda p: p.write_bytes(BOM + json.dumps(ROWS, indent=1).encode()),
    "array.jsonl": lambda p: p.write_text(json.dumps(ROWS, indent=2)),
    "wrapped.json": lambda p: p.write_text(json.dumps({"version": "1.0", "data": ROWS}, indent=2)),
    "in one line.json": lambda p: p.write_text(json.dumps({"version": "1.0", "data": ROWS})),
    "rows.csv": lambda p: as_table(p, FLAT),
    "cells.csv": lambda p: as_table(p, in_cells(ROWS)),
    "semicolons.csv": lambda p: as_table(p, FLAT, ";"),
    "rows.tsv": lambda p: as_table(p, FLAT, "\t"),
    "rows.parquet": lambda p: parquet.write_table(pyarrow.Table.from_pylist(ROWS), p),
    "rows.jsonl.gz": lambda p: p.write_bytes(gzip.compress(as_lines(ROWS))),
    "rows.json.bz2": lambda p: p.write_bytes(bz2.compress(json.dumps(ROWS).encode())),
    "rows.jsonl.xz": lambda p: p.write_bytes(lzma.compress(as_lines(ROWS))),
    "rows.jsonl.zst": lambda p: as_zstandard(p, as_lines(ROWS)),
    "saved": lambda p: datasets.Dataset.from_list(ROWS).save_to_disk(p, num_shards=3),
}


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


@pytest.mark.parametrize("name", FORMS)
def test_every_form_holds_the_same_preferences(name: str, tmp_path: Path) -> None:
    FORMS[name](tmp_path / name)
    expected = read_preferences(str(write_rows(tmp_path / "expected.jsonl", ROWS)), KEEP)
    assert read_preferences(str(tmp_path / name), KEEP) == expected
    assert [one.chosen_text for one in expected] == [f"Yes, {n}." for n in range(10)]


def joined(source: Path, size: int, wanted: RecordKind = "preferences") -> tuple[Table, list[int]]:
    """What the pieces of a source hold together, and their sizes."""
    pieces = list(pieces_of(str(source), wanted, size))
    table = Table()
    for piece in pieces:
        table.extend(piece.table())
    return table, [piece.size for piece in pieces]


@pytest.mark.parametrize("name", FORMS)
def test_the_pieces_of_a_source_are_the_whole(name: str, tmp_path: Path) -> None:
    FORMS[name](tmp_path / name)
    whole = read_source(str(tmp_path / name), "preferences")
    assert len(whole.rows) == 10
    assert joined(tmp_path / name, 4) == (whole, [4, 4, 2])


@pytest.mark.parametrize(("name", "form"), [("rows.jsonl", "lines"), ("rows.csv", "again"), ("rows.parquet", "again")])
def test_large_files_are_never_held_whole(name: str, form: str, tmp_path: Path) -> None:
    """JSON Lines are cut into lines that are not parsed yet; tables are read again, piece by piece."""
    FORMS[name](tmp_path / name)
    pieces = list(pieces_of(str(tmp_path / name), "preferences", 4))
    assert [(bool(piece.lines), piece.is_read_again) for piece in pieces] == [(form == "lines", form == "again")] * 3


def test_pieces_of_a_folder_are_those_of_its_files_with_their_splits(tmp_path: Path) -> None:
    for folder, names in (("one", ["train-0", "train-1"]), ("two", ["test-0", "train-0"])):
        for name in names:
            write_rows(tmp_path / folder / f"{name}.jsonl", [{"prompt": name}, {"prompt": "b"}])
        table, sizes = joined(tmp_path / folder, 2)
        assert (table, sizes) == (read_source(str(tmp_path / folder), "preferences"), [2, 2])
        assert [row.get("split") for _, row in table.rows] == (
            [None] * 4 if folder == "one" else ["test", "test", "train", "train"]
        )


def test_pieces_of_odd_files(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[1, 2]")
    table, sizes = joined(tmp_path / "bad.json", 1)
    assert (len(table.bad), sizes) == (2, [0, 0])  # what is unusable counts in its part
    (tmp_path / "one.csv").write_text("prompt\na\n")
    assert joined(tmp_path / "one.csv", 1)[1] == [1]
    assert (Piece("").size, Piece("").table()) == (0, Table())
    with pytest.raises(DataError, match="no such file or run folder"):
        joined(tmp_path / "missing.jsonl", 1)


def test_a_bom_before_a_table(tmp_path: Path) -> None:
    as_table(tmp_path / "plain.csv", FLAT)
    (tmp_path / "bom.csv").write_bytes(BOM + (tmp_path / "plain.csv").read_bytes())
    assert read_preferences(str(tmp_path / "bom.csv"), KEEP) == read_preferences(str(tmp_path / "plain.csv"), KEEP)


def test_numbers_and_lists_in_cells(tmp_path: Path) -> None:
    rows = [{**FLAT[0], "weight": "0.5", "margin": "", "raters": '["a", "b"]', "split": "dev", "confidence": "0.75"}]
    as_table(tmp_path / "rows.csv", rows)
    (found,) = read_preferences(str(tmp_path / "rows.csv"), KEEP)
    assert (found.weight, found.margin, found.raters, found.split, found.confidence) == (
        0.5,
        None,
        ("a", "b"),
        "validation",
        0.75,
    )


@pytest.mark.parametrize("form", ["rows.jsonl", "rows.json", "object.json"])
def test_a_row_has_at_most_a_hundred_levels(form: str, tmp_path: Path) -> None:
    """An object and 99 lists are read; with 100 lists its place is named."""

    def row(lists: int) -> str:
        return '{"prompt": "a", "more": ' + "[" * lists + "1" + "]" * lists + "}"

    between = {"rows.jsonl": "{}\n{}\n", "rows.json": "[{},\n{}]", "object.json": '{{"rows": [{}, {}]}}'}[form]
    (tmp_path / form).write_text(between.format(row(99), row(100)))
    table = read_file(tmp_path / form)
    assert [place for place, _ in table.rows] == [f"{tmp_path / form}:{'rows ' * (form == 'object.json')}1"]
    assert [bad.reason for bad in table.bad] == ["nested more than 100 levels deep"]
    assert [levels_of(value) for value in ([], {"a": 1}, [[{}]], [[2], {"a": [3]}])] == [0, 1, 2, 3]


def test_a_first_line_that_is_too_long_is_named_like_any_other() -> None:
    assert [bad for _, bad in rows_of_lines(Path("x.jsonl"), [(1, None), (2, None)])] == [
        BadRow("x.jsonl:1", "a line of more than 64 MB"),
        BadRow("x.jsonl:2", "a line of more than 64 MB"),
    ]


def test_a_key_twice_in_an_object_is_a_fault_of_its_row(tmp_path: Path) -> None:
    """Python would keep the last: here as chosen what is worse. In an array the rows beside it are read."""
    whole = '{"prompt": "a", "chosen": "good", "rejected": "bad"}'
    twice = whole.replace('"chosen"', '"chosen": "worse", "chosen"')
    within = '{"messages": [{"role": "user", "content": "a", "content": "b"}]}'
    for name, text in (
        ("rows.jsonl", f"{whole}\n{twice}\n{within}\n"),
        ("rows.json", f"[{whole},\n{twice},\n{within}]"),
    ):
        (tmp_path / name).write_text(text)
        table = read_file(tmp_path / name)
        assert [(one.where, one.reason) for one in table.bad] == [
            (f"{tmp_path / name}:2", "'chosen' is in one object twice"),
            (f"{tmp_path / name}:3", "'content' is in one object twice"),
        ]
        assert len(table.rows) == 1
    (tmp_path / "rows.json").write_text(f'{{"rows": [{twice}]}}')
    with pytest.raises(DataError, match=r"rows\.json: 'chosen' is in one object twice"):
        read_file(tmp_path / "rows.json")


def test_text_that_looks_like_json_stays_text(tmp_path: Path) -> None:
    asked = ["[1, 2, 3]: sum these", '{"a": 1}', '[{"a": 1}]', "[not json"]
    as_table(tmp_path / "rows.csv", [{"prompt": text} for text in asked])
    assert [p.messages[0].content for p in read_prompts(str(tmp_path / "rows.csv"), ["train"], KEEP)] == asked


def test_nulls_that_arrow_fills_in_are_absent(tmp_path: Path) -> None:
    """A column of messages has one type: a message without tool calls gets null ones, and every call every argument."""

    def call(name: str, **arguments: Any) -> dict[str, Any]:
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": name, "arguments": arguments}}],
        }

    rows = [
        {"messages": [{"role": "user", "content": "EC?"}, call("ec", tank=2)], "tools": [{"name": "ec"}]},
        {"messages": [{"role": "user", "content": "pH?"}, call("ph", probe="new")], "tools": [{"name": "ph"}]},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    expected = read_demonstrations(str(write_rows(tmp_path / "rows.jsonl", rows)), KEEP)
    assert [one.answer.tool_calls[0].function.arguments for one in expected] == [{"tank": 2}, {"probe": "new"}]
    for name in ("rows.parquet", "saved"):
        assert read_demonstrations(str(tmp_path / name), KEEP) == expected


# --- faults ------------------------------------------------------------------------------------------------------------


def test_elements_of_an_array_have_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(
        '[\n  {"prompt": "a"},\n  {"prompt":\n ""},\n  "text",\n  {"prompt": "\\ud800"}\n]\n'
    )
    with pytest.raises(DataError) as caught:
        read_prompts(str(tmp_path / "rows.json"), ["train"])
    assert caught.value.faults == [
        f"{tmp_path}/rows.json:3: the prompt is empty",
        f"{tmp_path}/rows.json:5: a str, not an object",
        f"{tmp_path}/rows.json:6: prompt: holds an unpaired surrogate, which is no character: remove it",
    ]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("cut.json", b'[\n{"prompt": "a"},\n{"prom', r"cut\.json:3: not JSON .* is the file cut off\?"),
        ("open.json", b'[\n{"prompt": "a"}\n', r"the array that begins it does not end"),
        ("cut.jsonl.gz", gzip.compress(as_lines(ROWS))[:-20], "cannot be read: Compressed file ended"),
        ("no.jsonl.gz", as_lines(ROWS), "cannot be read: Not a gzipped file"),
        ("no.jsonl.zst", as_lines(ROWS), "cannot be read: "),
        ("no.jsonl.bz2", as_lines(ROWS), "cannot be read: "),
        ("latin.csv", "prompt\nça va?\n".encode("latin-1"), r"latin\.csv:2: not UTF-8 .*: save the file as UTF-8"),
        ("utf16.jsonl", as_lines(ROWS).decode().encode("utf-16"), "UTF-16, not UTF-8"),
        ("quote.csv", b'prompt,note\n"a,b\nc,d\n', r"quote\.csv:3: not CSV"),
        ("twice.csv", b"prompt,prompt\na,b\n", "the header names 'prompt' twice"),
        ("rows.xlsx", b"PK", r"unsupported file type; supported: \.jsonl"),
    ],
)
def test_files_that_cannot_be_read_are_one_message(tmp_path: Path, name: str, content: bytes, fault: str) -> None:
    (tmp_path / name).write_bytes(content)
    for rules in (Rules(), Rules(on_bad_row="drop")):
        with pytest.raises(DataError, match=fault):
            read_prompts(str(tmp_path / name), ["train"], rules)


def test_a_row_of_a_table_with_too_few_cells(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('prompt,note\n"two\nlines",x\n\nalone\nlast,y\n')
    with pytest.raises(DataError) as caught:
        read_prompts(str(tmp_path / "rows.csv"), ["train"])
    assert caught.value.faults == [f"{tmp_path}/rows.csv:5: 1 cells, but the header has 2"]
    kept = read_prompts(str(tmp_path / "rows.csv"), ["train"], Rules(on_bad_row="drop", validation_share=0.0))
    assert [prompt.messages[0].content for prompt in kept] == ["two\nlines", "last"]


A, B = {"prompt": "a"}, {"prompt": "b"}


def table_of(folder: Path, name: str, content: str | bytes) -> Table:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_text_file(path)


def placed(table: Table, folder: Path) -> tuple[list[Any], list[Any]]:
    """Rows and faults, each with its place within the folder."""
    start = f"{folder}/"
    return (
        [(where.removeprefix(start), row) for where, row in table.rows],
        [(one.where.removeprefix(start), one.reason) for one in table.bad],
    )


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("x.jsonl", '{"prompt": "a"}\n\n \n{"prompt": "b"}', [("x.jsonl:1", A), ("x.jsonl:4", B)]),
        ("x.jsonl", '\n{"prompt": "a"}', [("x.jsonl:2", A)]),
        ("x.jsonl", "", []),
        ("x.jsonl", '{"prompt": "a"},\n{"prompt": "b"} ,\n', [("x.jsonl:1", A), ("x.jsonl:2", B)]),
        ("x.json", '[{"prompt": "a"},{"prompt": "b"}]', [("x.json:1", A), ("x.json:1", B)]),
        ("x.json", '\n\n[ {"prompt": "a"}\n,\n\n {"prompt": "b"} ] \n', [("x.json:3", A), ("x.json:6", B)]),
        ("x.json", "[]", []),
        ("x.json", "[ ]\n", []),
        # one object: its list of rows, a list a split, or a row
        (
            "x.json",
            '{"data": [{"prompt": "a"}, {"prompt": "b"}], "n": 2}',
            [("x.json:data 1", A), ("x.json:data 2", B)],
        ),
        ("x.json", '{"conversations": [{"prompt": "a"}]}', [("x.json:conversations 1", A)]),
        (
            "x.json",
            '{"train": [{"prompt": "a"}], "dev": [{"prompt": "b"}, {"prompt": "a", "split": "test"}], "info": {"n": 1}}',
            [
                ("x.json:train 1", {"split": "train", **A}),
                ("x.json:dev 1", {"split": "dev", **B}),
                ("x.json:dev 2", {"split": "test", **A}),
            ],
        ),
        ("x.json", '{"prompt": "a"}', [("x.json:1", A)]),
        ("x.json", '{\n"prompt": "a"\n}', [("x.json:1", A)]),
        ("x.jsonl", '{"data": [{"prompt": "a"}]}', [("x.jsonl:1", {"data": [A]})]),
        (
            "x.json",
            '{"instruction": "a", "answers": [{"text": "b"}]}',
            [("x.json:1", {"instruction": "a", "answers": [{"text": "b"}]})],
        ),
        (
            "x.json",
            '{"messages": [{"role": "user", "content": "a", "x": 1}], "tools": [{"name": "t"}]}',
            [("x.json:1", {"messages": [{"role": "user", "content": "a", "x": 1}], "tools": [{"name": "t"}]})],
        ),
        ("x.json", '{"a": [{"x": 1}], "b": [{"y": 2}]}', [("x.json:1", {"a": [{"x": 1}], "b": [{"y": 2}]})]),
        ("x.json", '{"train": [{"x": 1}], "b": [{"y": 2}]}', [("x.json:1", {"train": [{"x": 1}], "b": [{"y": 2}]})]),
        ("x.json", '{"a": [], "b": [1], "c": [{}, 1]}', [("x.json:1", {"a": [], "b": [1], "c": [{}, 1]})]),
        (
            "x.json",
            '{"turns": [{"from": "gpt", "value": "a", "x": 1}, {"y": 1}]}',
            [("x.json:1", {"turns": [{"from": "gpt", "value": "a", "x": 1}, {"y": 1}]})],
        ),
        ("x.json", '{"turns": [{"from": "gpt"}]}', [("x.json:turns 1", {"from": "gpt"})]),
        *(
            ("x.json", json.dumps({"turns": [turn]}), [("x.json:1", {"turns": [turn]})])
            for turn in (
                {"role": "user", "content": "a"},
                {"role": "user", "content": "a", "x": 1},
                {"from": "gpt", "value": "a"},
                {"from": "gpt", "value": "a", "x": 1},
            )
        ),
        # tables
        ("x.csv", "prompt,n\na,1\n\n,,\nb,2\n", [("x.csv:2", {**A, "n": "1"}), ("x.csv:5", {**B, "n": "2"})]),
        (
            "x.csv",
            '\n"prompt";n\n"a\n,c";1\nb;\n',
            [("x.csv:3", {"prompt": "a\n,c", "n": "1"}), ("x.csv:5", {**B, "n": ""})],
        ),
        ("x.csv", "prompt\tn\na,;b\t1\n", [("x.csv:2", {"prompt": "a,;b", "n": "1"})]),
        ("x.csv", " prompt , n\na,1\n", [("x.csv:2", {**A, "n": "1"})]),
        ("x.csv", "prompt\na;b\n", [("x.csv:2", {"prompt": "a;b"})]),
        ("x.csv", '"prompt, and, more";n\na;1\n', [("x.csv:2", {"prompt, and, more": "a", "n": "1"})]),
        ("x.csv", "prompt|n\na, b|1\n", [("x.csv:2", {"prompt": "a, b", "n": "1"})]),
        ("x.csv", "sep=;\r\nprompt;n\r\na,b;1\r\n", [("x.csv:3", {"prompt": "a,b", "n": "1"})]),
        ("x.tsv", "a,b;c,d\tn\nx\t1\n", [("x.tsv:2", {"a,b;c,d": "x", "n": "1"})]),
        ("x.csv", "prompt\n" + 200_000 * "a", [("x.csv:2", {"prompt": 200_000 * "a"})]),
    ],
)
def test_rows_and_where_they_stand(
    name: str, content: str, rows: list[tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    table = table_of(tmp_path, name, content)
    assert placed(table, tmp_path) == (rows, [])
    assert table.of_text == (name[-3:] != "son" and name[-5:] != "jsonl")


UNPAIRED = "holds an unpaired surrogate, which is no character: remove it"
NOT_UTF8 = "not UTF-8 (invalid continuation byte"
NO_ROW = ", not an object"
OPEN = "not JSON (the array that begins it does not end): is the file cut off?"
MORE = "not JSON (there is more after the array that begins the file)"


@pytest.mark.parametrize(
    ("name", "content", "faults"),
    [
        ("x.jsonl", b'{"prompt": "a"}\n{"prompt": "\xe9"}\n', [("x.jsonl:2", f"{NOT_UTF8} at byte 12)")]),
        ("x.jsonl", '{"prompt": "a"}\n{"prompt', [("x.jsonl:2", "not JSON (Unterminated string starting at column 2)")]),
        ("x.jsonl", '{"prompt": "a"}\n{"prompt"}', [("x.jsonl:2", "not JSON (Expecting ':' delimiter at column 10)")]),
        ("x.jsonl", '{"prompt": "a"}\n[1]\n7', [("x.jsonl:2", f"a list{NO_ROW}"), ("x.jsonl:3", f"a int{NO_ROW}")]),
        ("x.jsonl", '[1]\n{"prompt": "a"}', [("x.jsonl:1", "a list, not an object")]),
        ("x.json", '[{"prompt": "a"}, 7]', [("x.json:1", "a int, not an object")]),
        ("x.jsonl", '{"prompt": "a"}\n{"a": "\\ud800"}', [("x.jsonl:2", f"a: {UNPAIRED}")]),
        ("x.jsonl", '{"prompt": "a"}\n{"a": 1, "\\ud800": 1}', [("x.jsonl:2", f"\ud800: {UNPAIRED}")]),
        ("x.json", '[{"prompt": "a"}, {"a": "b", "c": [1, {"d": ["e", "\\udfff"]}]}]', [("x.json:1", f"c: {UNPAIRED}")]),
        ("x.json", '[{"prompt": "a"}, {"c": {"\\ud83d": 1}}]', [("x.json:1", f"c: {UNPAIRED}")]),
        ("x.json", '{"rows": [{"prompt": "a"}, {"a": "\\ud800"}]}', [("x.json:rows 2", f"a: {UNPAIRED}")]),
        (
            "x.json",
            '{"train": [{"prompt": "a", "split": "train"}, {"a": "\\ud800"}]}',
            [("x.json:train 2", f"a: {UNPAIRED}")],
        ),
        ("x.csv", "prompt,n\na,1\nb\nc,1,2\n", [
            ("x.csv:3", "1 cells, but the header has 2"), ("x.csv:4", "3 cells, but the header has 2"),
        ]),
    ],
)  # fmt: skip
def test_faults_and_where_they_stand(
    name: str, content: str | bytes, faults: list[tuple[str, str]], tmp_path: Path
) -> None:
    rows, found = placed(table_of(tmp_path, name, content), tmp_path)
    assert found == faults
    assert [row["prompt"] for _, row in rows] == ["a"]  # one broken row hides no other


def test_characters_beyond_the_first_plane_are_no_fault(tmp_path: Path) -> None:
    (bad,) = table_of(tmp_path, "x.json", '{\n"prompt": "\\ud83d"}').bad
    assert bad == BadRow(f"{tmp_path}/x.json:1", f"prompt: {UNPAIRED}")
    (row,) = table_of(tmp_path, "x.jsonl", '{"prompt": "\\ud83d\\ude42"}').rows
    assert row[1] == {"prompt": "🙂"}


def test_nested_too_deeply_is_a_fault_of_its_line(tmp_path: Path) -> None:
    deep = 100_000 * "["
    rows, faults = placed(table_of(tmp_path, "x.jsonl", f'{{"prompt": "a"}}\n{deep}\n'), tmp_path)
    assert (rows, [where for where, _ in faults]) == ([("x.jsonl:1", A)], ["x.jsonl:2"])
    assert faults[0][1] == "nested more than 100 levels deep"
    assert [where for where, _ in placed(table_of(tmp_path, "x.jsonl", f'{{"a": {deep}\n{{}}'), tmp_path)[1]] == [
        "x.jsonl:1"
    ]
    pretty = table_of(tmp_path, "x.json", f'{{\n"a": {deep}\n}}')
    assert [one.where for one in pretty.bad] == [f"{tmp_path}/x.json:{n}" for n in (1, 2, 3)]
    with pytest.raises(DataError, match=r"y\.json:2: nested more than 100 levels deep: remove what is nested"):
        table_of(tmp_path, "y.json", f"[\n{deep}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", '[\n{"prompt": "a"},\n', "x.json:3: not JSON (Expecting value): is the file cut off?"),
        ("x.json", "[\n", "x.json:2: not JSON (Expecting value): is the file cut off?"),
        ("x.json", '[\n{"prompt": "a"}', f"x.json: {OPEN}"),
        ("x.json", '[{"a": 1}\n{"a": 2}]', f"x.json: {OPEN}"),
        ("x.json", '[\n{"a": 1}\n]\n[\n{"a": 2}\n]', f"x.json:4: {MORE}"),
        ("x.json", '[\n{"a": 1}]x', f"x.json:2: {MORE}"),
        ("x.json", '[{"a": 1}]x\ny', f"x.json:1: {MORE}"),
        ("x.json", b'[\n{"a": "\xe9"}]', "x.json:2: not UTF-8 (invalid continuation byte): save the file as UTF-8"),
        ("x.csv", b"\xe9\n", "x.csv:1: not UTF-8 (invalid continuation byte): save the file as UTF-8"),
        ("x.csv", b"\n\xe9\n", "x.csv:2: not UTF-8 (invalid continuation byte): save the file as UTF-8"),
        ("x.csv", b"a\nb\n\xe9", "x.csv:3: not UTF-8 (unexpected end of data): save the file as UTF-8"),
        ("x.jsonl", b"\xfe\xff\x00{", "x.jsonl: UTF-16, not UTF-8: save it as UTF-8"),
        ("x.csv", "a,b,a,b,c\n", "x.csv: the header names 'a', 'b' twice"),
        ("x.csv", 'a,b\n"x"y,z\n', "x.csv:2: not CSV (',' expected after '\"')"),
    ],
)  # fmt: skip
def test_a_file_that_is_broken_as_a_whole(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        table_of(tmp_path, name, content)
    assert str(error.value) == f"{tmp_path}/{message}"


def test_one_object_that_is_cut_off_is_a_fault(tmp_path: Path) -> None:
    rows, faults = placed(table_of(tmp_path, "x.json", '{\n"prompt": "a",\n'), tmp_path)
    assert (rows, [where for where, _ in faults]) == ([], ["x.json:1", "x.json:2"])


def test_the_ending_that_says_what_a_file_holds() -> None:
    names = {
        "rows.jsonl": ".jsonl",
        "rows.v2.1.jsonl.gz": ".jsonl",
        "rows.v2.1.JSON": ".json",
        "rows.csv.zst": ".csv",
        "rows.gz": "",
        "rows": "",
    }
    assert {name: form_of(Path(name)) for name in names} == names


def test_the_first_line_of_what_a_decompressor_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(f"{path.stat().st_size} bytes\nand more")

    monkeypatch.setitem(compression._OPEN, ".gz", fail)
    with pytest.raises(DataError, match=r"x\.jsonl\.GZ: cannot be read: 2 bytes$"):
        table_of(tmp_path, "x.jsonl.GZ", "{}")


def test_tables_that_are_joined() -> None:
    one, other = Table([("a:1", A)], [BadRow("a:2", "x")]), Table([("b:1", B)], [BadRow("b:2", "y")], of_text=True)
    assert not one.of_text
    one.extend(other)
    assert one == Table([("a:1", A), ("b:1", B)], [BadRow("a:2", "x"), BadRow("b:2", "y")], of_text=True)
    one.extend(Table())
    assert one.of_text


# --- folders -----------------------------------------------------------------------------------------------------------


def texts_by_split(source: Path | str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for prompt in read_prompts(str(source), ["train", "validation", "test"], KEEP):
        found.setdefault(prompt.split, []).append(prompt.messages[0].content)
    return {split: sorted(texts) for split, texts in found.items()}


def prompts(*texts: str) -> list[dict[str, Any]]:
    return [{"prompt": text} for text in texts]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_shards_and_splits_of_a_folder(tmp_path: Path) -> None:
    by_name, by_folder, unnamed = tmp_path / "by_name", tmp_path / "by_folder", tmp_path / "unnamed"
    parts = {"train": (prompts("a"), prompts("b")), "validation": (prompts("c"),), "test": (prompts("d"),)}
    for split, shards in parts.items():
        for n, rows in enumerate(shards):
            write_parquet(by_name / f"{split}-0000{n}-of-0000{len(shards)}-0af3.parquet", rows)
            write_rows(by_folder / split / f"{n:04d}.jsonl", rows)
            write_rows(unnamed / f"part-{len(split)}{n}.jsonl", rows)
    (by_name / "README.md").write_text("A card.")
    (by_name / ".cache").mkdir()
    (by_name / ".cache" / "x.json").write_text("{}")
    expected = {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
    assert texts_by_split(by_name) == texts_by_split(by_folder) == expected
    assert texts_by_split(f"{by_name}@train") == {"train": ["a", "b"]}
    assert texts_by_split(f"{by_name}@train+validation") == {"train": ["a", "b"], "validation": ["c"]}
    assert {text for texts in texts_by_split(unnamed).values() for text in texts} == {"a", "b", "c", "d"}
    with pytest.raises(DataError, match="no split 'dev'; there are test, train, validation"):
        texts_by_split(f"{by_name}@dev")


def test_one_split_alone_is_held_out_by_prompt(tmp_path: Path) -> None:
    """A folder of train shards names nothing that could be held out."""
    write_parquet(tmp_path / "rows" / "train-00000-of-00001.parquet", prompts(*(f"Question {n}?" for n in range(50))))
    rules = Rules(validation_share=0.5)
    assert 10 < len(read_prompts(str(tmp_path / "rows"), ["validation"], rules)) < 40


def test_a_saved_dict_of_datasets(tmp_path: Path) -> None:
    parts = {"train": prompts("a", "b"), "test": prompts("d")}
    saved = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
    saved.save_to_disk(tmp_path / "saved")
    assert texts_by_split(tmp_path / "saved") == {"train": ["a", "b"], "test": ["d"]}
    assert identify_input(str(tmp_path / "saved")).kind == "data"


def test_a_folder_of_ultrafeedback(tmp_path: Path) -> None:
    """Each stage takes its own part of `train_sft`, `train_prefs` and `train_gen`."""
    for n, variant in enumerate(("sft", "prefs", "gen")):
        for split in ("train", "test"):
            row = {
                "prompt": f"{split} {n}",
                "chosen": [{"role": "user", "content": f"{split} {n}"}, {"role": "assistant", "content": "Yes."}],
                "rejected": [{"role": "user", "content": f"{split} {n}"}, {"role": "assistant", "content": "No."}],
                "messages": [{"role": "user", "content": f"{split} {n}"}, {"role": "assistant", "content": "Yes."}],
            }
            write_parquet(tmp_path / "uf" / "data" / f"{split}_{variant}-00000-of-00001.parquet", [row])
    source = str(tmp_path / "uf")
    assert [(p.prompt[0].content, p.split) for p in read_preferences(source, KEEP)] == [
        ("test 1", "test"),
        ("train 1", "train"),
    ]
    shown = read_demonstrations(source, KEEP)
    assert [(d.prompt.messages[0].content, d.prompt.split) for d in shown] == [("test 0", "test"), ("train 0", "train")]
    assert texts_by_split(source) == {"train": ["train 2"], "test": ["test 2"]}
    assert texts_by_split(f"{source}@train_sft") == {"train": ["train 0"]}
    both = [(p.prompt[0].content, p.split) for p in read_preferences(f"{source}@train_sft+test_prefs", KEEP)]
    assert both == [("test 1", "test"), ("train 0", "train")]


def test_folders_that_are_no_data(tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    write_rows(mixed / "rows.jsonl", prompts("a"))
    as_table(mixed / "rows.csv", prompts("a"))
    with pytest.raises(DataError, match=r"has \.csv and \.jsonl files, which may hold the same rows twice"):
        read_prompts(str(mixed), ["train"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no finished run .* and no data"):
        read_prompts(str(tmp_path / "empty"), ["train"])
    run = tmp_path / "runs" / "prepare"
    write_rows(run / "metrics.jsonl", [{"step": 1}])
    (run / "run.json").write_text('{"stage": "prepare"}')
    with pytest.raises(RunError, match="no finished run in"):
        read_prompts(str(run), ["train"])
    for read in (
        lambda: read_prompts(str(tmp_path / "runs"), ["train"]),
        lambda: identify_input(str(tmp_path / "runs")),
    ):
        with pytest.raises(RunError, match=r"is not a run but contains runs: give one of .*prepare"):
            read()
    (run / "manifest.json").write_text("{}")
    write_rows(run / "final" / "prompts.jsonl", [])
    with pytest.raises(RunError, match=r"is part of a run: give .*prepare"):
        read_prompts(str(run / "final"), ["train"])


def test_a_folder_is_identified_by_what_it_holds(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_rows(tmp_path / name / "train-0.jsonl", prompts("a"))
        write_rows(tmp_path / name / "test-0.jsonl", prompts("b"))
    one, other = (identify_input(str(tmp_path / name)) for name in ("one", "other"))
    assert (one.kind, one.id) == ("data", other.id)
    assert identify_input(f"{tmp_path}/one@train").id != one.id
    (tmp_path / "other" / "README.md").write_text("A card.")
    assert identify_input(str(tmp_path / "other")).id == one.id
    write_rows(tmp_path / "other" / "test-0.jsonl", prompts("c"))
    assert identify_input(str(tmp_path / "other")).id != one.id
    assert identify_input(str(tmp_path / "one" / "test-0.jsonl")).id == hash_file(tmp_path / "one" / "test-0.jsonl")


def test_files_of_a_folder_that_are_not_read_are_counted(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", prompts("a"))
    for name in ("note.txt", "scan.PDF", "README.md", "dataset_info.json", ".cache/x.txt", "script"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert unread_files(str(tmp_path)) == {
        "documents (.txt) beside files of rows: give them as a folder of their own": 1,
        "documents (.pdf) beside files of rows: give them as a folder of their own": 1,
        "files of a type that is not read (without an ending)": 1,
    }
    assert unread_files(str(tmp_path / "rows.jsonl")) == unread_files("hub:a/b@train") == {}
    (tmp_path / "state.json").write_text("{}")
    assert unread_files(str(tmp_path)) == {}


def test_which_files_of_a_folder_are_data(tmp_path: Path) -> None:
    names = ["b.jsonl", "a.JSON.gz", "in/c.csv", "in/deep/d.Parquet", "e.tsv.zst"]
    others = [
        "card.md",
        ".x.jsonl",
        "_x.jsonl",
        ".cache/x.jsonl",
        "in/_y/x.jsonl",
        "in/config.json",
        "state.txt",
        "f.gz",
    ]
    for name in (*names, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "folder.jsonl").mkdir()
    assert data_files(tmp_path) == sorted(tmp_path / name for name in names)
    assert is_data_folder(tmp_path)
    assert not is_data_folder(tmp_path / "b.jsonl")
    assert not is_data_folder(tmp_path / "folder.jsonl")  # empty
    for name in ("manifest.json", "config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
        assert not is_data_folder(tmp_path)
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"unsupported file type; supported: \.jsonl"):
        read_file(tmp_path / "f.gz")
    with pytest.raises(DataError, match="no such file or run folder: "):
        read_file(tmp_path / "in")


def test_a_folder_of_runs_is_no_data(tmp_path: Path) -> None:
    write_rows(tmp_path / "run" / "final" / "x.jsonl", prompts("a"))
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(RunError, match=r"contains runs: give one of .*run$"):
        is_data_folder(tmp_path)
    (tmp_path / "run" / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match=r"final is part of a run: give .*run$"):
        is_data_folder(tmp_path / "run" / "final")


def test_splits_that_are_named_behind_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "me@home").mkdir()
    (tmp_path / "a@b.jsonl").write_text("")
    for source, path, splits in (
        ("data", "data", []),
        ("data@train", "data", ["train"]),
        ("data@train+test", "data", ["train", "test"]),
        ("me@home", "me@home", []),
        ("me@home@dev", "me@home", ["dev"]),
        ("a@b.jsonl", "a@b.jsonl", []),
        ("gone@train", "gone@train", []),
    ):
        assert split_suffix(str(tmp_path / source)) == (tmp_path / path, splits)


def test_a_shards_split_is_its_names_or_the_nearest_folders(tmp_path: Path) -> None:
    """`val-0.jsonl` in `train/` is validation; a folder inside a folder is nearer."""
    files = {
        "data/train/0.jsonl": "a",
        "test/train/0.jsonl": "b",
        "train/val-0.jsonl": "c",
        "train/dev.jsonl": "d",
        "test/deep/deeper/0.jsonl": "e",
        "train.x.test.jsonl": "f",
    }
    for name, content in files.items():
        write_rows(tmp_path / name, prompts(content))
    expected = {"train": ["a", "b", "f"], "validation": ["c", "d"], "test": ["e"]}
    assert texts_by_split(tmp_path) == expected
    write_rows(tmp_path / "more.jsonl", prompts("g"))  # beside two named splits: held out by prompt
    assert texts_by_split(tmp_path) == {**expected, "train": ["a", "b", "f", "g"]}


def test_a_folder_of_one_split_names_none(tmp_path: Path) -> None:
    write_rows(tmp_path / "test-0.jsonl", prompts("a"))
    write_rows(tmp_path / "part-1.jsonl", prompts("b"))
    assert read_source(str(tmp_path), "prompts").rows == [
        (f"{tmp_path}/part-1.jsonl:1", {"prompt": "b"}),
        (f"{tmp_path}/test-0.jsonl:1", {"prompt": "a"}),
    ]
    with pytest.raises(DataError, match=r"no split 'train'; there are test$"):
        read_source(f"{tmp_path}@train", "prompts")
    (tmp_path / "test-0.jsonl").unlink()
    with pytest.raises(DataError, match=r"no split 'train'; there are none$"):
        read_source(f"{tmp_path}@train", "prompts")


def test_variants_of_a_split_that_no_stage_reads_by_itself(tmp_path: Path) -> None:
    for name in ("train_math", "train_code", "test_math"):
        write_rows(tmp_path / f"{name}-0.jsonl", prompts(name))
    with pytest.raises(DataError) as error:
        texts_by_split(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: holds test_math, train_code, train_math: name what to read, as in {tmp_path}@train_math (several are "
        f"joined by +: {tmp_path}@train_math+test_math)"
    )
    assert texts_by_split(f"{tmp_path}@train_math+test_math") == {"train": ["train_math"], "test": ["test_math"]}
    assert texts_by_split(f"{tmp_path}@train_math+train_code") == {"train": ["train_code", "train_math"]}


# --- the hub -----------------------------------------------------------------------------------------------------------

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hub:owner/name@train", ("owner/name", None, ("train",), None)),
        ("hub:owner/name/de@train_prefs+test_prefs", ("owner/name", "de", ("train_prefs", "test_prefs"), None)),
        ("hub:name@train[:10%]#v1.0", ("name", None, ("train[:10%]",), "v1.0")),
        (f"hub:owner/name/a/b@test#{SHA}", ("owner/name", "a/b", ("test",), SHA)),
    ],
)
def test_the_parts_of_a_hub_source(source: str, expected: tuple[Any, ...]) -> None:
    hub = parse_hub(source)
    assert (hub.name, hub.config, hub.splits, hub.revision) == expected


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """A hub whose dataset has two splits; what was asked of it."""
    asked: list[tuple[Any, ...]] = []

    def load(name: str, config: str | None, split: str, revision: str | None) -> list[dict[str, Any]]:
        asked.append((name, config, split, revision))
        if split == "gone":
            raise ValueError("Unknown split\nand more")
        return [{**row, "tools": None} for row in prompts(f"{split} a", f"{split} b")]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub_revision.cache_clear()
    yield asked
    hub_revision.cache_clear()


def test_a_hub_source_is_read_at_the_revision_that_identifies_it(hub: list[tuple[Any, ...]], tmp_path: Path) -> None:
    assert hub_revision("hub:owner/name@train") is None  # offline, and nothing in the cache
    hub_revision.cache_clear()
    refs = tmp_path / "cache" / "datasets--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(SHA)
    assert hub_revision("hub:owner/name@train") == SHA
    assert identify_input("hub:owner/name@train").id == f"hub:owner/name@train#{SHA}"
    assert pinned_source(f"hub:owner/name@train#{SHA[::-1]}") == f"hub:owner/name@train#{SHA[::-1]}"
    assert texts_by_split("hub:owner/name/de@train") == {"train": ["train a", "train b"]}
    assert hub == [("owner/name", "de", "train", SHA)]
    assert texts_by_split("hub:owner/name@train+test") == {
        "train": ["train a", "train b"],
        "test": ["test a", "test b"],
    }


@pytest.mark.usefixtures("hub")
def test_a_hub_source_that_is_none() -> None:
    with pytest.raises(DataError, match="name the split, as in hub:"):
        read_prompts("hub:owner/name", ["train"])
    with pytest.raises(DataError, match=r"cannot read hub:owner/name@gone from the hub: Unknown split\. Where"):
        read_prompts("hub:owner/name@gone", ["train"])


@pytest.mark.usefixtures("hub")
def test_the_hub_is_asked_for_its_newest_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def dataset_info(self, name: str, revision: str | None, timeout: float) -> Any:
            assert (name, revision) == ("owner/name", "v2")
            assert timeout == 10
            return type("Info", (), {"sha": SHA})()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert hub_revision("hub:owner/name@train#v2") == SHA


def test_without_the_hub_the_caches_revision_is_read(
    hub: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Api:
        def dataset_info(self, *_: Any, **__: Any) -> Any:
            raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    source = "hub:owner/name@train#v2"
    assert hub_revision(source) is None
    assert pinned_source(source) == source
    assert read_source(source, "prompts").rows == [
        ("hub:owner/name@train#v2:row 1", {"prompt": "train a"}),
        ("hub:owner/name@train#v2:row 2", {"prompt": "train b"}),
    ]
    assert hub == [("owner/name", None, "train", "v2")]  # as it was named
    hub_revision.cache_clear()
    refs = tmp_path / "cache" / "datasets--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "v2").write_text(f"{SHA}\n")
    assert hub_revision(source) == SHA
    assert pinned_source(source) == f"hub:owner/name@train#{SHA}"
    assert hub_revision(f"hub:other/name@train#{SHA}") == SHA  # a commit is what it is


@pytest.mark.usefixtures("hub")
def test_a_hub_that_is_not_reached_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, where in (("1", "HF_HUB_OFFLINE is set"), ("0", "offline")):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        with pytest.raises(DataError, match=rf"Unknown split\. Where {where}, give a file or a folder$"):
            read_source("hub:owner/name@gone", "prompts")
    for source in ("hub:@train", "hub:owner/name@", "hub:"):
        with pytest.raises(DataError, match=f"^{source}: name the split, as in hub:"):
            parse_hub(source)


# --- imports -----------------------------------------------------------------------------------------------------------


def test_reading_imports_no_torch(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows.parquet", prompts("a"))
    code = (
        "import sys; from tiebreak.data.reading import read_prompts; "
        f"read_prompts({str(tmp_path / 'rows.parquet')!r}, ['test']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
    assert sources.ENDINGS[-1] == ".parquet"

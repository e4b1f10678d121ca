"""Data as people bring it, that was once read wrongly without a word: each case is one small file."""

from __future__ import annotations

import bz2
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import write_rows

from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import Rules, read, read_answers, read_demonstrations, read_preferences, read_prompts
from tiebreak.errors import DataError, first_names
from tiebreak.records import RecordKind

KEEP = Rules(validation_share=0.0)
Q = {"prompt": "Q"}
PAIR = {**Q, "chosen": "good", "rejected": "bad"}
TWO = {**Q, "response_a": "alpha", "response_b": "beta"}


def said(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def call(identity: str) -> dict[str, Any]:
    return said("assistant", None, tool_calls=[{"id": identity, "function": {"name": "f", "arguments": "{}"}}])


def file_of(folder: Path, rows: Sequence[Any], name: str = "rows.jsonl") -> str:
    return str(write_rows(folder / name, rows))


def sides(folder: Path, *rows: Any, columns: dict[str, str | None] | None = None) -> list[tuple[str, str]]:
    found = read_preferences(file_of(folder, rows), Rules(columns or {}, validation_share=0.0))
    return [(one.chosen_text, one.rejected_text) for one in found]


def table(folder: Path, text: str) -> str:
    path = folder / "rows.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


# --- numbers ---


@pytest.mark.parametrize(
    ("columns", "cells", "fault"),
    [
        (
            "chosen;rejected;score_chosen;score_rejected",
            "g;b;1,5;4,5",
            "score_chosen: 1,5 has a decimal comma: write 1.5",
        ),
        (
            "chosen;rejected;confidence",
            "g;b;0,3",
            "confidence: 0,3 has a decimal comma: write 0.3, or ignore the column",
        ),
        ("chosen;rejected;strength", "g;b;1,5", "strength: 1,5 has a decimal comma"),
        ("chosen;rejected;weight", "g;b;,5", "weight: ,5 has a decimal comma: write .5"),
        ("response_a;response_b;score_a;score_b", "g;b;4,5;1,5", "score_a: 4,5 has a decimal comma"),
        ("response_a;response_b;preferred;score_a;score_b", "g;b;a;1,5;4,5", "score_a: 1,5 has a decimal comma"),
        ("response;rating", "g;4,5", "rating: 4,5 has a decimal comma"),
    ],
)
def test_a_decimal_comma_is_no_text(columns: str, cells: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=fault):
        read_preferences(table(tmp_path, f"prompt;{columns}\nQ;{cells}\n"), KEEP)


@pytest.mark.parametrize(
    "names",
    [
        ("chosen_avg_rating", "rejected_avg_rating"),
        ("chosen_reward", "rejected_reward"),
        ("reward_chosen", "reward_rejected"),
    ],
)
def test_ratings_under_further_names_may_not_contradict_the_sides(names: tuple[str, str], tmp_path: Path) -> None:
    assert sides(tmp_path, {**PAIR, **dict(zip(names, (5, 1), strict=True))}) == [("good", "bad")]
    with pytest.raises(
        DataError, match=f"{names[0]} is 1 and {names[1]} 5, so the rejected answer is rated the better"
    ):
        sides(tmp_path, {**PAIR, **dict(zip(names, (1, 5), strict=True))})


# --- who is better ---


def test_a_winner_may_not_contradict_the_ratings_beside_it(tmp_path: Path) -> None:
    row = {**TWO, "winner": "b", "score_a": 9, "score_b": 1}
    with pytest.raises(DataError, match="winner: 'b' names response_b, but score_a is 9 and score_b is 1; columns: "):
        sides(tmp_path, row)
    assert sides(tmp_path, row, columns={"score_a": None}) == [("beta", "alpha")]
    for others in ({"score_a": 1}, {"score_a": 1, "score_b": 1}, {"score_a": "n/a", "score_b": 1}, {"winner": "a"}):
        assert len(sides(tmp_path, {**row, **others})) == 1


def test_two_verdicts_may_not_contradict_each_other(tmp_path: Path) -> None:
    row = {**TWO, "overall_preference": -2}
    with pytest.raises(DataError, match="overall_preference and winner name different answers as the better one"):
        sides(tmp_path, {**row, "winner": "b"})
    for others in ({"winner": "a"}, {"winner": "tie"}, {"winner": "nobody"}, {"label": "b"}):
        assert sides(tmp_path, {**row, **others}) == [("alpha", "beta")]


@pytest.mark.parametrize(
    ("better", "worse"), [("response_b", "response_a"), ("b", "a"), ("B", "A"), ("second", "first")]
)
def test_sides_that_name_columns_are_a_verdict(better: str, worse: str, tmp_path: Path) -> None:
    """They were learned as the answers `response_b` and `response_a`."""
    row = {**TWO, "chosen": better, "rejected": worse}
    with pytest.raises(DataError, match=f"chosen: '{better}' names one of response_a and response_b, and is no answer"):
        sides(tmp_path, row)
    assert sides(tmp_path, row, columns={"preferred": "chosen", "rejected": None}) == [("beta", "alpha")]


def test_sides_that_are_answers_may_be_short(tmp_path: Path) -> None:
    row = {**Q, "response_a": "a", "response_b": "b", "chosen": "b", "rejected": "a"}
    assert sides(tmp_path, row) == [("b", "a")]
    assert sides(tmp_path, {**TWO, "chosen": "b", "rejected": "Neither."}) == [("b", "Neither.")]


def test_whole_numbers_beside_a_null_are_whole_numbers(tmp_path: Path) -> None:
    """pandas and Arrow make floats of them."""
    rows = [{**Q, "response_1": "x", "response_2": "y", "winner": n} for n in (1.0, 2.0, "2.0")]
    assert sides(tmp_path, *rows) == [("x", "y"), ("y", "x"), ("y", "x")]
    assert sides(tmp_path, {"history": "Q", "human_ref_A": "x", "human_ref_B": "y", "labels": 0.0}) == [("y", "x")]
    with pytest.raises(DataError, match="winner: holds 0 and 1 but never 2"):
        sides(tmp_path, *[{**Q, "response_1": "x", "response_2": "y", "winner": n} for n in (0.0, 1.0)])
    row = {**TWO, "model_a": "m-2.0", "model_b": "m-2", "winner": "m-2.0"}
    assert sides(tmp_path, row) == [("alpha", "beta")]


def test_labels_that_contradict_each_other_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned = {**PAIR, "chosen": "bad", "rejected": " good"}
    other = {**PAIR, "prompt": "R"}
    for rows, count in (([PAIR, turned, PAIR, other], "1 pair has"), ([PAIR, PAIR, {**turned, "prompt": "R"}], "")):
        assert len(read_preferences(file_of(tmp_path, rows), KEEP)) == len(rows)
        printed = capsys.readouterr().err
        assert (f"{count} contradictory labels: either answer is chosen in some row" in printed) is bool(count)
    ties = [{**one, "strength": 0} for one in (PAIR, turned)]
    assert len(read_preferences(file_of(tmp_path, ties), KEEP)) == 2
    assert "contradictory" not in capsys.readouterr().err
    answers = [{**Q, "completion": f"a{n % 2}", "label": n < 2} for n in range(4)]
    assert len(read_answers(file_of(tmp_path, answers), KEEP)) == 4
    assert "2 answers have contradictory labels: good in one row, bad in another" in capsys.readouterr().err


def test_two_ways_to_write_one_letter_are_one_answer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="chosen and rejected are the same"):
        sides(tmp_path, {**Q, "chosen": "caf\u00e9", "rejected": "cafe\u0301"})


# --- conversations ---


@pytest.mark.parametrize("begin", ["\n\n", "\r\n\r\n"])
def test_a_human_turn_without_an_answer_is_a_turn(begin: str, tmp_path: Path) -> None:
    """The speaker's name was learned as a part of the question."""
    source = file_of(tmp_path, [{**PAIR, "prompt": f"{begin}Human: Why?"}])
    (one,) = read_preferences(source, KEEP)
    assert [(m.role, m.content) for m in one.prompt] == [("user", "Why?")]
    (asked,) = read_prompts(file_of(tmp_path, [{"prompt": "Human: a noun?"}]), ["train"], KEEP)
    assert asked.messages[0].content == "Human: a noun?"


def test_a_result_of_another_call_is_refused(tmp_path: Path) -> None:
    turns = [said("user", "Q"), call("1"), said("tool", "42", tool_call_id="2"), said("assistant", "A")]
    with pytest.raises(DataError, match="message 3: its tool_call_id, '2', is of no call before it; there are 1"):
        read_demonstrations(file_of(tmp_path, [{"messages": turns}]), KEEP)
    for right in (
        [turns[0], call("2"), *turns[2:]],
        [turns[0], *turns[2:]],
        [*turns[:2], said("tool", "42"), turns[3]],
    ):
        assert len(read_demonstrations(file_of(tmp_path, [{"messages": right}]), KEEP)) == 1


def test_an_empty_answer_within_a_conversation_is_refused(tmp_path: Path) -> None:
    """`loss_on: all_answers` would learn to end at once."""
    turns = [said("user", "Q"), said("assistant", ""), said("user", "R"), said("assistant", "B")]
    with pytest.raises(DataError, match="message 2, of the assistant, is empty: remove it, or give it weight 0"):
        read_demonstrations(file_of(tmp_path, [{"messages": turns}]), KEEP)
    turns[1]["weight"] = 0
    assert len(read_demonstrations(file_of(tmp_path, [{"messages": turns}]), KEEP)) == 1
    del turns[1]["weight"]
    (asked,) = read_prompts(file_of(tmp_path, [{"messages": turns}]), ["train"], KEEP)
    assert len(asked.messages) == 3


def test_a_thought_is_not_learned_twice(tmp_path: Path) -> None:
    row = {**Q, "completion": "<think>Hm.</think>\nA", "reasoning": "Hm."}
    with pytest.raises(DataError, match="column 'reasoning' repeats the thought in the answer's text"):
        read_demonstrations(file_of(tmp_path, [row]), KEEP)
    (one,) = read_demonstrations(file_of(tmp_path, [row]), Rules({"reasoning": None}, validation_share=0.0))
    assert one.text == "<think>Hm.</think>\nA"
    (one,) = read_demonstrations(file_of(tmp_path, [{**row, "completion": "Hm."}]), KEEP)
    assert one.answer.reasoning_content == "Hm."


# --- files ---


@pytest.mark.parametrize("broken", [[{**Q, "completion": "b"}, None], {"rows": [{**Q, "completion": "b"}]}, ["b"]])
def test_a_split_of_an_object_that_holds_no_rows_is_not_passed_over(broken: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"train": [{**Q, "completion": "a"}], "test": broken}))
    with pytest.raises(DataError, match=r"rows\.json: test: not a list of objects, as train is"):
        read_demonstrations(str(path), KEEP)
    path.write_text(json.dumps({"train": [{**Q, "completion": "a"}], "test": [], "version": 2}))
    assert len(read_demonstrations(str(path), KEEP)) == 1


@pytest.mark.parametrize(("ending", "compress"), [("bz2", bz2.compress), ("xz", lzma.compress)])
def test_a_damaged_stream_after_the_first_loses_no_rows_in_silence(
    ending: str, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """Programs with several threads write many streams; Python's own readers end at the first broken one."""
    first, second = (compress(json.dumps({"prompt": f"{n}", "completion": "a"}).encode() + b"\n") for n in range(2))
    path = tmp_path / f"rows.jsonl.{ending}"
    for content, count in ((first + second, 2), (first + bytes(8) + second + bytes(4), 2), (first, 1)):
        path.write_bytes(content)
        assert len(read_demonstrations(str(path), KEEP)) == count
    for content in (first + b"X" + second, first + b"garbage", first + second[:-3], first[:-3], b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"rows\.jsonl\.{ending}: cannot be read: "):
            read_demonstrations(str(path), KEEP)


def test_streams_larger_than_a_block(tmp_path: Path) -> None:
    lines = b"".join(b'{"prompt": "%d", "completion": "%s"}\n' % (n, b"x" * 999) for n in range(2000))
    path = tmp_path / "rows.jsonl.bz2"
    path.write_bytes(bz2.compress(lines, 1) * 2)
    found = read(str(path), "demonstrations", KEEP)
    assert (found.rows, len({draft.prompt for draft in found.drafts})) == (4000, 2000)


def test_a_parquet_column_twice_is_refused(tmp_path: Path) -> None:
    """Of two columns of one name, the last was read."""
    import pyarrow as pa
    from pyarrow import parquet

    names = ["prompt", "completion", "completion"]
    parquet.write_table(pa.Table.from_arrays([pa.array([text]) for text in "Qab"], names), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="has several columns of the name 'completion': rename all but one"):
        read_demonstrations(str(tmp_path / "rows.parquet"), KEEP)


@pytest.mark.parametrize("mark", ["NULL", "nan", "NaN", "\\N", "<NA>"])
def test_marks_of_an_absent_value_are_no_answers(mark: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.csv:2: completion: .* is how programs write an absent value"):
        read_demonstrations(table(tmp_path, f"prompt,completion\nQ,{mark}\n"), KEEP)
    (one,) = read_demonstrations(file_of(tmp_path, [{**Q, "completion": mark}]), KEEP)
    assert one.text == mark


def test_columns_without_a_name_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"rows\.csv: 2 columns have no name: name them in the header, or remove them"):
        read_demonstrations(table(tmp_path, "prompt,completion,,\nQ,a,,\n"), KEEP)
    assert len(read_demonstrations(table(tmp_path, ",prompt,completion\n0,Q,a\n"), KEEP)) == 1
    assert "ignored columns: ''" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", ["demonstrations", "prompts"])
def test_a_table_of_very_many_columns(wanted: RecordKind, tmp_path: Path) -> None:
    """Names were compared with each other: 20,000 columns took a minute, and were all printed."""
    names = [f"c{n}" for n in range(20_000)]
    found = read(table(tmp_path, f"{','.join(names)}\n{',' * (len(names) - 1)}1\n1{',' * (len(names) - 1)}\n"), wanted)
    assert [len(one.reason) < 500 for one in found.bad] == [True, True]
    assert first_names(names).endswith("c39 and 19,960 more")
    source = table(tmp_path, f"prompt,{','.join(names)}\nQ{',1' * len(names)}\n")
    (line,) = [line for line in read(source, "prompts").lines() if "ignored" in line]
    assert line.endswith(" and 19,960 more")


@pytest.mark.parametrize(
    ("wanted", "column", "row"),
    [
        ("prompts", "prompt", {"frage": ["Why?"]}),
        ("prompts", "messages", {"frage": ["Why?"]}),
        ("demonstrations", "completion", {"prompt": "Why?", "frage": 5}),
        ("preferences", "chosen", {"prompt": "Why?", "frage": 5, "rejected": "No."}),
        ("answers", "completion", {"prompt": "Why?", "frage": 5, "label": True}),
        ("preferences", "completion", {"prompt": "Why?", "frage": 5, "rating": 4}),
    ],
)
def test_a_cell_that_holds_no_messages_is_named_as_the_data_names_it(
    wanted: RecordKind, column: str, row: dict[str, Any], tmp_path: Path
) -> None:
    (fault,) = read(file_of(tmp_path, [row]), wanted, Rules({column: "frage"})).bad
    assert fault.reason.startswith("column 'frage': "), fault.reason


def test_an_answer_to_judge_that_is_no_text_is_named_as_the_data_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_pairs(file_of(tmp_path, [{"prompt": "Why?", "links": 5, "response_b": "No."}]), {"response_a": "links"})
    assert "column 'links': " in caught.value.faults[0]

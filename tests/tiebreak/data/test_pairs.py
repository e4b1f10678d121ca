"""Pairs to judge, from files as people have them: the same pairs from each."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import write_rows

from tiebreak.content import ImagePart, TextPart
from tiebreak.data.pairs import read_pairs
from tiebreak.data.single import read_single_answers
from tiebreak.errors import DataError
from tiebreak.records import Pair

QUESTIONS = [("Why is it pale?", "Iron.", "Unclear."), ("How often?", "Daily, at dawn.", 'It, "depends"\non much.')]
NAMES = ("prompt", "response_a", "response_b")


def rows_of(names: Sequence[str] = NAMES) -> list[dict[str, Any]]:
    return [dict(zip(names, row, strict=True)) for row in QUESTIONS]


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def separated(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    written = io.StringIO()
    table = csv.DictWriter(written, rows[0], delimiter=delimiter)
    table.writeheader()
    table.writerows(rows)
    return written.getvalue()


def shown(source: Path, **columns: str | None) -> list[tuple[str, ...]]:
    """Prompt and answers of every pair."""
    return [
        (pair.messages[0].content, *(one.text for one in pair.completions)) for pair in read_pairs(str(source), columns)
    ]


@pytest.mark.parametrize(
    ("ending", "form"),
    [
        ("jsonl", jsonl),
        ("json", json.dumps),
        ("csv", separated),
        ("tsv", lambda rows: separated(rows, "\t")),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_every_form_of_file_gives_the_same_pairs(
    ending: str, form: Callable[[list[dict[str, Any]]], str], compressed: bool, tmp_path: Path
) -> None:
    content = form(rows_of()).encode()
    file = tmp_path / f"pairs.{ending}{'.gz' if compressed else ''}"
    file.write_bytes(gzip.compress(content) if compressed else content)
    assert shown(file) == QUESTIONS
    ids = [pair.id for pair in read_pairs(str(write_rows(tmp_path / "same.jsonl", rows_of())))]
    assert [pair.id for pair in read_pairs(str(file))] == ids  # to a store they are one


@pytest.mark.parametrize(
    "names",
    [
        ("prompt", "response_1", "response_2"),
        ("question", "answer_a", "answer_b"),
        ("instruction", "completion_1", "completion_2"),
        ("Prompt", "Response A", "Response B"),
        ("QUESTION", "answer 1", "Answer-2"),
        ("prompt", "output1", "output2"),
    ],
)
def test_columns_as_people_call_them(names: Sequence[str], tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text(separated(rows_of(names)))
    assert shown(file) == QUESTIONS


def test_names_by_key_and_what_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "id": 7, "Notes": "x"} for row in rows_of(("Frage", "left", "right"))]
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    assert shown(file, prompt="Frage", response_a="left", response_b="right") == QUESTIONS
    assert capsys.readouterr().err.splitlines() == [
        f"{file}: 2 rows read as pairs (response_a, response_b)",
        f"{file}: ignored columns: id, notes",
    ]


def test_the_object_of_a_named_field_keeps_its_name(tmp_path: Path) -> None:
    """`My Reply.a` leads into the column `My Reply`, which is not one of ours."""
    rows = [{"prompt": q, "My Reply": {"a": good, "b": bad}} for q, good, bad in QUESTIONS]
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    assert shown(file, response_a="My Reply.a", response_b="My Reply.b") == QUESTIONS


def test_a_name_that_would_be_anothers_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "Response A": "another", "Two Words": 1, "two-words": 2} for row in rows_of()]
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    assert shown(file) == QUESTIONS
    assert capsys.readouterr().err.splitlines()[-1] == f"{file}: ignored columns: Response A, Two Words, two-words"


def test_a_list_of_answers_and_a_conversation(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    file = write_rows(tmp_path / "pairs.jsonl", [{"messages": messages, "answers": ["one", "two", "three"]}])
    (pair,) = read_pairs(str(file))
    assert [(m.role, m.content) for m in pair.messages] == [("system", "Be brief."), ("user", "Why?")]
    assert [one.text for one in pair.completions] == ["one", "two", "three"]


@pytest.mark.parametrize("conversational", [False, True])
def test_preferences_are_judged_anew_without_a_sign_of_the_old_label(conversational: bool, tmp_path: Path) -> None:
    def side(text: str) -> Any:
        return [{"role": "assistant", "content": text}] if conversational else text

    rows = [{"prompt": q, "chosen": side(good), "rejected": side(bad)} for q, good, bad in QUESTIONS]
    turned = [{"prompt": q, "chosen": side(bad), "rejected": side(good)} for q, good, bad in QUESTIONS]
    pairs = read_pairs(str(write_rows(tmp_path / "rows.jsonl", rows)))
    assert [{one.text for one in pair.completions} for pair in pairs] == [{a, b} for _, a, b in QUESTIONS]
    assert pairs == read_pairs(str(write_rows(tmp_path / "turned.jsonl", turned)))


def test_whole_conversations_as_preferences(tmp_path: Path) -> None:
    ask = {"role": "user", "content": "Why?"}
    row = {name: [ask, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    assert shown(write_rows(tmp_path / "rows.jsonl", [row])) == [("Why?", "chosen", "rejected")]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (
            {"prompt": "a", "text": "b"},
            "no two answers: give response_a and response_b, chosen and rejected, or a list in 'answers'; the columns are "
            "prompt, text: name yours with columns: {response_a: …, response_b: …}",
        ),
        (
            {"frage": "a", "response_a": "b", "response_b": "c"},
            "no column 'prompt' (a string, or messages with role and content); the columns are frage, response_a, "
            "response_b: name yours with columns: {prompt: …}",
        ),
        ({"prompt": "a", "completions": ["b"]}, "no two answers: "),  # and not seven lines about Pair records
        ({"prompt": "a", "response_a": "b", "response_b": "b"}, "two completions of the pair are the same"),
        (
            {"prompt": "a", "response_0": "b", "response_1": "c", "response_2": "d"},
            "more than two answers (response_0, ",
        ),
        (
            {"prompt": "a", "response_a": "b", "response_b": "c", "image": "x.png"},
            "[image x.png] in a message of the user: tiebreak label takes only text; set media to the folder of",
        ),
        (
            {
                "prompt": "a",
                "chosen": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}],
                "rejected": "z",
            },
            "this answer has several messages",
        ),
        (
            {
                "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                "answers": ["c", "d"],
            },
            "the last message is the assistant's",
        ),
        (
            {
                "id": "pair-1",
                "prompt_id": "prompt-1",
                "messages": [],
                "completions": [{"id": "one", "text": "a"}, {"id": "two", "text": "b"}],
            },
            "the prompt is empty",
        ),
    ],
)
def test_what_is_missing_is_one_line(row: dict[str, Any], fault: str, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [row] * 5)
    with pytest.raises(DataError) as caught:
        read_pairs(str(file))
    assert str(caught.value).startswith(f"{file}: 5 of 5 rows contain no pair\n  every row: ")
    (line,) = caught.value.faults
    assert fault in line


@pytest.mark.parametrize("label", [False, True])
def test_a_split_that_is_none_is_refused_by_its_row(label: bool, tmp_path: Path) -> None:
    """Its pair would be trained on, held out or not as the author meant it."""
    names = ["dev", "held-out", "", None, "test_prefs"]
    answers = {"response": "good", "task": "review"} if label else {"response_a": "good", "response_b": "bad"}
    rows = [{"prompt": f"q{n}", **answers, "split": name} for n, name in enumerate(names)]

    def read(name: str, rows: list[dict[str, Any]]) -> Sequence[Pair]:
        file = str(write_rows(tmp_path / name, rows))
        return read_single_answers(file) if label else read_pairs(file)

    with pytest.raises(DataError) as caught:
        read("rows.jsonl", rows)
    (line,) = caught.value.faults
    assert "rows.jsonl:2: split: 'held-out' is not a split's name: write train, validation or test, or nothing" in line
    splits = [pair.split for pair in read("right.jsonl", [rows[0], *rows[2:]])]
    assert splits == ["validation", "train", "train", "test"]


def test_a_broken_record_is_one_line_a_row(tmp_path: Path) -> None:
    row = {"id": "x", "messages": [], "completions": []}
    with pytest.raises(DataError) as caught:
        read_pairs(str(write_rows(tmp_path / "rows.jsonl", [row, row])))
    assert len(caught.value.faults) == 2
    assert "prompt_id" in caught.value.faults[0]


PICTURE = [{"role": "assistant", "content": [{"type": "image", "image": "a.png"}, "Like this."]}]


def test_answers_with_images_are_judged_where_media_are_shown(tmp_path: Path) -> None:
    row = {"prompt": "Draw.", "response_a": PICTURE, "response_b": [{"role": "assistant", "content": "No."}]}
    file = str(write_rows(tmp_path / "rows.jsonl", [row]))
    (pair,) = read_pairs(file, media=True)
    drawn, plain = pair.completions
    assert (drawn.text, drawn.content) == (
        "[image 1] Like this.",
        (ImagePart(image="a.png"), TextPart(text="Like this.")),
    )
    assert (plain.text, plain.content) == ("No.", None)
    with pytest.raises(DataError) as caught:
        read_pairs(file)
    assert "several messages, tool calls, thoughts or images, but raters are shown plain text" in caught.value.faults[0]


@pytest.mark.parametrize("more", [{"reasoning_content": "Hm."}, {"tool_calls": [{"name": "draw"}]}])
def test_thoughts_and_calls_beside_an_image_are_not_shown(more: dict[str, Any], tmp_path: Path) -> None:
    row = {"prompt": "Draw.", "response_a": [{**PICTURE[0], **more}], "response_b": "No."}
    with pytest.raises(DataError, match="contain no pair"):
        read_pairs(str(write_rows(tmp_path / "rows.jsonl", [row])), media=True)


@pytest.mark.parametrize(("stage", "key"), [("label", True), ("select", False)])
def test_only_the_labelling_stage_names_its_key_for_media(stage: str, key: bool, tmp_path: Path) -> None:
    asked = [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]
    answers = [{"id": text, "text": text} for text in "xy"]
    records = [{"id": "p", "prompt_id": "q", "messages": asked, "completions": answers}]
    with pytest.raises(DataError) as caught:
        read_pairs(str(write_rows(tmp_path / "rows.jsonl", records)), stage=stage)
    assert ("set media to the folder of the files" in caught.value.faults[0]) == key


@pytest.mark.parametrize(
    ("columns", "marks"),
    [
        ({"tags": ["synthetic", "reviewed:edited", "maths"]}, ("synthetic", "reviewed:edited")),
        ({"tags": ["synthetic"], "kind": "synthetic"}, ("synthetic",)),
        ({"tags": ["reviewed:edited"], "kind": "synthetic"}, ("reviewed:edited", "synthetic")),
        ({"kind": "synthetic"}, ("synthetic",)),
        ({"tags": ["maths"], "kind": "human"}, ()),
        ({"kind": "human"}, ()),
        ({}, ()),
    ],
)
def test_a_synthetic_pair_keeps_its_mark(columns: dict[str, Any], marks: tuple[str, ...], tmp_path: Path) -> None:
    said: list[str] = []
    (pair,) = read_pairs(str(write_rows(tmp_path / "rows.jsonl", [{**rows_of()[0], **columns}])), report=said.append)
    assert pair.tags == marks
    assert any("ignored" in line and "tags" in line for line in said) == ("maths" in columns.get("tags", ()))

"""Documents, tickets and files made to break what reads them, through `tiebreak data` and `tiebreak prepare`."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from support import read_rows, run_here, write_rows

from tiebreak.data import compression
from tiebreak.data.bbq import prompt_of
from tiebreak.data.cells import Cells
from tiebreak.data.reading import Rules, read, read_demonstrations
from tiebreak.data.rows.content import PromptRow
from tiebreak.data.shapes import interpret
from tiebreak.data.sources import read_file
from tiebreak.errors import DataError
from tiebreak.messages import Message
from tiebreak.records import RecordKind

ARTICLE = (
    "<html><head><title>T</title><meta charset='{}'></head><body><nav><a href='/'>Home</a><a href='/b'>Basket</a></nav>"
    "<article><h1>Returns</h1><p>Send the lamp back within thirty days, in any box that protects it on its way.</p>"
    "<p>We refund the price für jede Lampe as soon as the parcel has reached our warehouse, and the postage too.</p>"
    "</article><footer>Imprint</footer></body></html>"
)


def pdf_of(text: str) -> bytes:
    """A PDF of one page, written by hand."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>"
    content = b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream)
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>", page, content, font]
    written, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, start=1):
        places.append(len(written))
        written += b"%d 0 obj\n%b\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(written)
    return written + b"xref\n0 6\n0000000000 65535 f \n" + table + end


def shown(*words: str | Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The output of `tiebreak data`."""
    from tiebreak.command.data import main

    main([*map(str, words), "--policy", "null"])
    return capsys.readouterr().out


def texts(source: Path, wanted: RecordKind = "prompts") -> list[tuple[str, str]]:
    found = read(str(source), wanted, Rules(on_bad_row="drop"))
    return [(draft.where.rpartition("/")[2], draft.record.messages[-1].text) for draft in found.drafts]


def faults(source: Path, wanted: RecordKind = "prompts") -> dict[str, str]:
    return {bad.where.rpartition("/")[2]: bad.reason for bad in read(str(source), wanted).bad}


def test_a_folder_of_documents_is_rows_and_what_says_nothing_is_listed(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pages"
    (folder / "old").mkdir(parents=True)
    (folder / "a.txt").write_text("How do I return\r\na lamp?\n", newline="")
    (folder / "b.md").write_bytes("﻿# Größe\n\nWhich size fits?".encode())
    (folder / "c.html").write_bytes(ARTICLE.format("iso-8859-1").encode("latin-1"))
    (folder / "old" / "d.pdf").write_bytes(pdf_of("The warranty lasts two years."))
    (folder / "README.md").write_text("About the folder.")
    (folder / "e.pdf").write_bytes(pdf_of(""))
    (folder / "f.txt").write_bytes("Größe".encode("latin-1"))
    (folder / "g.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "h.html").write_text("<html><body><nav></nav></body></html>")
    (folder / "old" / "i.DOCX").write_bytes(b"PK")
    (folder / ".hidden.docx").write_bytes(b"PK")
    others = {"files of a type that is not read (.docx)": 1, "files about the folder (README.md)": 1}
    assert read(str(folder), "prompts").left_out == others
    found = texts(folder)
    assert found[:2] == [("a.txt", "How do I return\na lamp?"), ("b.md", "# Größe\n\nWhich size fits?")]
    assert found[3] == ("d.pdf", "The warranty lasts two years.")
    name, article = found[2]
    assert name == "c.html"
    assert "We refund the price für jede Lampe" in article
    assert not any(word in article for word in ("Basket", "Imprint", "<p>"))
    reasons = faults(folder)
    assert reasons.keys() == {"e.pdf", "f.txt", "g.pdf", "h.html"}
    assert reasons["e.pdf"].startswith("a PDF without text (1 page of pictures?)")
    assert reasons["f.txt"] == "not UTF-8 (invalid start byte at byte 2): save it as UTF-8"
    assert reasons["g.pdf"].startswith("cannot be read as PDF")
    assert reasons["h.html"] == "no text in it"
    out = shown(folder, "--on-bad-row", "drop", capsys=capsys)
    assert "documents" in out
    assert "4 prompts" in out
    assert "left out  1: files of a type that is not read (.docx)" in out
    output = tmp_path / "run"
    words = ["prepare", "--prompts", json.dumps([str(folder)]), "--policy", tiny_model, "--output", output]
    status, err = run_here(*words)
    assert (status, "4 errors in the data" in err) == (1, True), err
    status, err = run_here(*words, "--on-bad-row", "drop")
    assert status == 0, err
    sources = {row["source"] for row in read_rows(output / "final" / "prompts.jsonl")}
    assert sources == {"a.txt", "b.md", "c.html", "old/d.pdf"}
    assert [row["where"].rpartition("/")[2] for row in read_rows(output / "bad_rows.jsonl")] == [*reasons]
    with pytest.raises(DataError) as caught:
        read_demonstrations(str(folder))
    assert any("a document is a prompt without an answer" in fault for fault in caught.value.faults)


ZENDESK: dict[str, Any] = {
    "id": 35,
    "subject": "Broken lamp",
    "requester_id": 7,
    "tags": ["warranty"],
    "comments": [
        {"author_id": 7, "body": "It flickers.", "public": True, "attachments": [{"file_name": "a.jpg"}]},
        {"author_id": 7, "body": "Since Monday.", "public": True},
        {"author_id": 9, "body": "Customer is angry.", "public": False},
        {"author_id": 9, "body": "Turn the bulb.", "public": True},
        {"author_id": 7, "body": "Still the same.", "public": True},
        {"author_id": 11, "plain_body": "We send a new one.", "body": "<p>x</p>", "public": True},
        {"author_id": 7, "body": "Thanks!", "public": True},
    ],
}
INTERCOM: dict[str, Any] = {
    "type": "conversation",
    "source": {"subject": "", "body": "Where is my parcel?", "author": {"type": "lead", "id": "5"}},
    "conversation_parts": {
        "type": "conversation_part.list",
        "conversation_parts": [
            {"part_type": "assignment", "body": None, "author": {"type": "admin"}},
            {"part_type": "note", "body": "Lost.", "author": {"type": "admin"}},
            {"part_type": "comment", "body": "It arrives on Friday.", "author": {"type": "admin"}},
        ],
    },
}
TURNS = [
    ("user", "Broken lamp\n\nIt flickers.\n\nSince Monday."),
    ("assistant", "Turn the bulb."),
    ("user", "Still the same."),
    ("assistant", "We send a new one."),
]


def turns_of(source: Path) -> list[list[tuple[str, str]]]:
    found = [draft.record for draft in read(str(source), "demonstrations").drafts]
    return [[(m.role, m.text) for m in (*one.prompt.messages, *one.answers)] for one in found]


def test_tickets_are_conversations_and_nothing_of_them_is_lost_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unanswered = {**ZENDESK, "comments": ZENDESK["comments"][:3]}
    file = write_rows(tmp_path / "tickets.jsonl", [ZENDESK, INTERCOM, unanswered])
    assert turns_of(file) == [TURNS, [("user", "Where is my parcel?"), ("assistant", "It arrives on Friday.")]]
    reading = read(str(file), "demonstrations")
    assert reading.drafts[0].record.prompt.tags == ("warranty",)
    assert reading.left_out == {
        "internal notes of tickets": 3,
        "files attached to tickets": 2,
        "tickets without an answer": 1,
        "customers' last messages, which nobody answered": 1,
    }
    asked = [draft.record.messages for draft in read(str(file), "prompts").drafts]
    assert [[(m.role, m.text) for m in one] for one in asked] == [
        TURNS[:3],
        [("user", "Where is my parcel?")],
        TURNS[:1],
    ]
    out = shown(file, capsys=capsys)
    assert "read as demonstrations" in out
    assert "Zendesk tickets: 2" in out
    assert "Intercom tickets: 1" in out
    assert "left out  3: internal notes of tickets" in out


def test_tickets_that_begin_with_the_newest_are_turned_round(tmp_path: Path) -> None:
    """Zendesk lists comments in either order, so the answer stood before its question. A note may reopen a conversation."""
    times = [f"2026-03-0{n}T10:00:00{zone}" for n, zone in enumerate(("Z", "+00:00", "Z", "Z", "", "Z", "Z"), 1)]
    dated = [{**one, "created_at": time} for one, time in zip(ZENDESK["comments"], times, strict=True)]
    dated[2]["public"] = "false"
    parts = INTERCOM["conversation_parts"]["conversation_parts"]
    later = {"part_type": "comment", "body": "Or on Monday.", "author": {"type": "admin"}, "created_at": 9}
    noted = {**parts[1], "part_type": "note_and_reopen", "created_at": 8}
    talk = {**INTERCOM, "conversation_parts": {"conversation_parts": [later, noted, {**parts[2], "created_at": 7}]}}
    file = write_rows(tmp_path / "tickets.jsonl", [{**ZENDESK, "comments": dated[::-1]}, talk])
    asked = [("user", "Where is my parcel?"), ("assistant", "It arrives on Friday.\n\nOr on Monday.")]
    assert turns_of(file) == [TURNS, asked]
    dated[0].pop("created_at")  # then nobody knows: as they come
    untold = write_rows(tmp_path / "some.jsonl", [{**ZENDESK, "comments": dated}])
    assert turns_of(untold) == [TURNS]


def test_what_is_read_of_a_ticket(tmp_path: Path) -> None:
    for ticket, used in ((INTERCOM, True), (ZENDESK | {"source": "mail"}, False)):
        cells = Cells(ticket, {})
        interpret(cells, "prompts")
        assert ("source" in cells.used) == used
    silent = ZENDESK | {"subject": "", "comments": [{**ZENDESK["comments"][0], "public": False}]}
    reading = read(str(write_rows(tmp_path / "tickets.jsonl", [silent, ZENDESK])), "prompts")
    assert reading.left_out["tickets without a question"] == 1
    assert len(reading.drafts) == 1


def test_a_question_of_bbq_is_a_prompt_and_its_other_columns_are_the_yardsticks() -> None:
    answers = {"ans0": "Ann", "ans1": "Bob", "ans2": "Unknown"}
    row = {"context": "Ann and Bob.", "question": "Who was rude?", **answers, "label": 2, "mine": 1}
    cells = Cells(row, {})
    found = interpret(cells, "prompts")
    assert found.results == [PromptRow((Message(role="user", content=prompt_of(row)),))]
    assert cells.used == {"context", "question", *answers, "label"}


@pytest.mark.parametrize("form", ["tickets", "tickets and users", "one ticket", "Intercom's list"])
def test_exports_of_tickets_by_their_envelope(form: str, tmp_path: Path) -> None:
    anonymous = {name: value for name, value in ZENDESK.items() if name != "requester_id"}
    users = [{"id": 7, "role": "end-user"}, {"id": 9, "role": "agent"}, {"id": 11, "role": "admin"}]
    content: Any = {
        "tickets": {"tickets": [ZENDESK], "count": 1, "next_page": None},
        "tickets and users": {"tickets": [anonymous], "users": users},
        "one ticket": ZENDESK,
        "Intercom's list": {"type": "conversation.list", "conversations": [INTERCOM], "total_count": 1},
    }[form]
    file = tmp_path / "export.json"
    file.write_text(json.dumps(content, indent=1))
    expected = [("user", "Where is my parcel?"), ("assistant", "It arrives on Friday.")]
    assert turns_of(file) == [expected if form.startswith("Intercom") else TURNS]


def test_an_author_of_no_side_is_a_bad_row(tmp_path: Path) -> None:
    odd = {**ZENDESK, "comments": [{"author": {"role": "robot"}, "body": "Hello"}]}
    nobody = {"comments": [{"author_id": 7, "body": "Hello"}]}
    found = faults(write_rows(tmp_path / "x.jsonl", [ZENDESK, odd, nobody]), "demonstrations")
    assert found["x.jsonl:2"].startswith("comment 1: unknown author 'robot'; known: end-user")
    assert found["x.jsonl:3"] == "comment 1: neither requester_id nor the author's role says who is the customer"


# --- files made to break what reads them -------------------------------------------------------------------------------


def test_a_decompression_bomb_is_refused_before_it_fills_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "SURELY_FINE_BYTES", 2 * 1024**2)
    row = json.dumps({"prompt": "x" * 1000}).encode() + b"\n"
    for name, pack in (("bomb.jsonl.gz", gzip.compress), ("bomb.jsonl.xz", lzma.compress)):
        (tmp_path / name).write_bytes(pack(row * 20_000))  # 20 MB of 20 to 100 kB
        status, err = run_here("data", tmp_path / name)
        assert (status, "a decompression bomb?" in err) == (1, True), err
    small = gzip.compress(row * 100)
    (tmp_path / "fine.jsonl.gz").write_bytes(small)
    assert len(texts(tmp_path / "fine.jsonl.gz")) == 100


def test_a_line_without_end_and_json_without_bottom_are_bad_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiebreak.data.compression.LONGEST_LINE_BYTES", 1000)
    deep = json.dumps({"prompt": "Why?", "extra": 0}).replace("0", "[" * 300 + "]" * 300)
    lines = ['{"prompt": "One?"}', json.dumps({"prompt": "y" * 3_000_000}), deep, '{"prompt": "Two?"}']
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(lines))
    assert texts(file) == [("x.jsonl:1", "One?"), ("x.jsonl:4", "Two?")]
    assert faults(file) == {"x.jsonl:2": "a line of more than 64 MB", "x.jsonl:3": "nested more than 100 levels deep"}
    file.write_text(lines[1] + "\n" + lines[0])  # as the first line, too
    assert faults(file) == {"x.jsonl:1": "a line of more than 64 MB"}


def test_one_large_object_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array of the same size is read a part at a time."""
    rows = [{"prompt": f"question {n}", "completion": "answer"} for n in range(100)]
    monkeypatch.setattr("tiebreak.data.compression.LARGEST_WHOLE_BYTES", 1024)
    whole, array = tmp_path / "whole.json", tmp_path / "array.json"
    whole.write_text(json.dumps({"rows": rows}))
    array.write_text(json.dumps(rows))
    with pytest.raises(
        DataError, match=r"whole\.json: larger than 0 MB, and this form .* is read as a whole: save its rows"
    ):
        read_file(whole)
    assert len(read_file(array).rows) == 100


def test_formulas_of_a_spreadsheet_are_no_text(tmp_path: Path) -> None:
    cells = [
        "=1+1 is what?",
        '"=VLOOKUP(A1;B:C;2)"',
        "=cmd|' /C calc'!A0",
        "@SUM(1+9)",
        "#REF!",
        "- a list\n",
        "Why does =SUM(A1) fail?",
        "=sum(a1)",
        '"=SUM(A1,\nB1)"',
        "=A1&$B$2",
        "=A1 is the first cell",
        "=1+1",
    ]
    rows = "".join(f"{json.dumps(cell) if cell[0] == '-' else cell},yes\n" for cell in cells)
    (tmp_path / "x.csv").write_text("prompt,completion\n" + rows.replace("\\n", "\n"))
    found = faults(tmp_path / "x.csv", "demonstrations")
    assert [*found] == ["x.csv:3", "x.csv:4", "x.csv:5", "x.csv:6", "x.csv:10", "x.csv:11", "x.csv:13"]
    assert all("is a spreadsheet's formula or error, no text: save its values" in reason for reason in found.values())


def test_a_ticket_without_comments_is_counted(tmp_path: Path) -> None:
    """An export that asks for no comments has empty lists."""
    reading = read(str(write_rows(tmp_path / "tickets.jsonl", [ZENDESK | {"comments": []}, ZENDESK])), "demonstrations")
    assert not reading.bad
    assert reading.left_out["tickets without an answer"] == 1

"""Logs of OpenAI's Chat Completions API and files of its Batch API, as its documentation prints them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support import write_rows

from tiebreak.data.reading import Reading, read
from tiebreak.messages import text_of
from tiebreak.records import RecordKind

REQUEST = {
    "model": "gpt-4o",
    "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello!"}],
}
INPUT = {"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": REQUEST}


def response(*choices: tuple[dict[str, Any], str]) -> dict[str, Any]:
    listed = [
        {
            "index": n,
            "message": {"role": "assistant", "refusal": None, "annotations": [], **message},
            "finish_reason": reason,
        }
        for n, (message, reason) in enumerate(choices)
    ]
    return {"id": "chatcmpl-1", "object": "chat.completion", "choices": listed, "usage": {"total_tokens": 3}}


def output(body: dict[str, Any], status: int = 200) -> dict[str, Any]:
    return {"id": "b", "custom_id": "request-1", "response": {"status_code": status, "body": body}, "error": None}


def read_as(folder: Path, wanted: RecordKind, *rows: dict[str, Any]) -> Reading:
    return read(str(write_rows(folder / "log.jsonl", list(rows))), wanted)


def demonstrations(reading: Reading) -> list[tuple[str, str]]:
    rows = [draft.placed("train") for draft in reading.drafts]
    return [(text_of(row.prompt.messages), row.text) for row in rows]


def test_each_answer_of_a_call_is_a_demonstration(tmp_path: Path) -> None:
    reading = read_as(
        tmp_path,
        "demonstrations",
        {
            "request": REQUEST,
            "response": response(({"content": "Hi!"}, "stop"), ({"content": "Hey."}, "stop")),
            "ms": 12,
        },
        {
            "request": {"body": json.dumps(REQUEST)},
            "response": output(response(({"content": "Yes?"}, "stop")))["response"],
        },
    )
    assert not reading.bad
    assert demonstrations(reading) == [("Be brief.\nHello!", answer) for answer in ("Hi!", "Hey.", "Yes?")]


def test_answers_that_nobody_should_learn_from_are_counted(tmp_path: Path) -> None:
    reading = read_as(
        tmp_path,
        "demonstrations",
        {"request": REQUEST, "response": response(({"content": "Hi th"}, "length"), ({"content": "Hi."}, "stop"))},
        {"request": REQUEST, "response": response(({"content": None, "refusal": "I cannot."}, "stop"))},
        {"request": REQUEST, "response": {"error": {"message": "rate limit"}}},
        {"request": REQUEST, "response": {"status_code": 500, "body": None}},
    )
    assert not reading.bad
    assert demonstrations(reading) == [("Be brief.\nHello!", "Hi.")]
    assert reading.left_out == {"answers cut off (finish_reason)": 1, "refusals": 1, "calls that failed": 2}


def test_tools_and_calls_are_kept(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at": "pump"}'}}
    row = {
        "request": REQUEST | {"tools": [tool]},
        "response": response(({"content": None, "tool_calls": [call]}, "tool_calls")),
    }
    (draft,) = read_as(tmp_path, "demonstrations", row).drafts
    record = draft.placed("train")
    assert record.prompt.tools == (tool,)
    assert record.answers[0].tool_calls[0].function.arguments == {"at": "pump"}


def test_a_batch_is_joined_from_its_files(tmp_path: Path) -> None:
    """The input alone has prompts, the output alone neither; joined as docs/data.md does, they are a log."""
    prompts = read_as(tmp_path, "prompts", INPUT)
    assert [text_of(draft.placed("train").messages) for draft in prompts.drafts] == ["Be brief.\nHello!"]
    answer = output(response(({"content": "Hi!"}, "stop")))
    for wanted, row, part in (
        ("demonstrations", INPUT, "without its response"),
        ("demonstrations", answer, "without its request"),
        ("prompts", answer, "without its request"),
    ):
        (bad,) = read_as(tmp_path, wanted, row).bad  # type: ignore[arg-type]
        assert part in bad.reason
        assert "by custom_id" in bad.reason
    joined = {"request": INPUT["body"], "response": answer["response"]}
    assert demonstrations(read_as(tmp_path, "demonstrations", joined)) == [("Be brief.\nHello!", "Hi!")]


def test_the_responses_api_is_refused_by_name(tmp_path: Path) -> None:
    (bad,) = read_as(tmp_path, "demonstrations", {"request": {"input": "Hello!"}, "response": {"output": []}}).bad
    assert "Responses API" in bad.reason


def test_columns_of_these_names_with_texts_are_no_log(tmp_path: Path) -> None:
    (bad,) = read_as(tmp_path, "demonstrations", {"request": "Hello!", "response": "Hi!"}).bad
    assert "columns: {prompt: …}" in bad.reason

"""Logged calls of a chat API, and the files of OpenAI's Batch API.

    {"request": {"messages": […], "tools": […], …}, "response": {"choices": [{"message": {…}}], …}}       a log
    {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": […]}}       a batch's input
    {"custom_id": "r1", "response": {"status_code": 200, "body": {"choices": […]}}, "error": null}        its output

Every choice of a response is an answer. Failed requests, refusals and answers that were cut off are left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tiebreak.data.cells import Cells
from tiebreak.data.conversations import to_tools
from tiebreak.data.rows.content import AnswerRow, Content, Interpretation, Omission, PromptRow
from tiebreak.data.rows.parts import PROMPTS, read_messages, with_system
from tiebreak.files import parse_json
from tiebreak.messages import Messages, Tools

SHAPE, BATCH = "logged calls (request, response)", "a batch's requests (body)"
FAILED, REFUSED, CUT = "calls that failed", "refusals", "answers cut off (finish_reason)"
_PARTS = ("request", "response", "custom_id", "method", "url", "body", "error", "id")
_CUT = ("length", "content_filter")


def is_logged(values: Mapping[str, Any]) -> bool:
    """Whether a row is a logged call, or one of a batch."""
    if any(name in values for name in ("messages", "completion", *PROMPTS)):
        return False
    return _is_request(values) or _is_response(values)


def has_answer(values: Mapping[str, Any]) -> bool:
    """Whether a logged call has a response."""
    return _is_response(values)


def logged_prompt(cells: Cells) -> Interpretation | None:
    """The messages of a request."""
    if not is_logged(cells.values):
        return None
    prompt, tools = _read_request(cells)
    return Interpretation(SHAPE if _is_response(cells.values) else BATCH, [PromptRow(prompt, tools)])


def logged_answer(cells: Cells) -> Interpretation | None:
    """The messages of a request, and each answer of its response."""
    if not is_logged(cells.values):
        return None
    prompt, tools = _read_request(cells)
    if not _is_response(cells.values):
        raise ValueError(f"the request of a batch, without its response: {_JOIN}; or give the file as prompts")
    return Interpretation(SHAPE, list(_answers(cells, prompt, tools)))


_JOIN = "join the batch's input and output by custom_id, as rows of {request, response} (docs/data.md)"


def _is_request(values: Mapping[str, Any]) -> bool:
    request = values.get("request") if "request" in values else values.get("body") if "custom_id" in values else None
    return isinstance(request, Mapping | str) and {"messages", "input"} & _body(request).keys() != set()


def _is_response(values: Mapping[str, Any]) -> bool:
    """Whether there is a response, be it an error's."""
    if not isinstance(values.get("response"), Mapping):
        return "custom_id" in values and isinstance(values.get("error"), Mapping)
    return (
        bool({"choices", "output", "error"} & _body(values["response"]).keys()) or "status_code" in values["response"]
    )


def _body(value: Any) -> Mapping[str, Any]:
    """The body of a request or response, which may be JSON text."""
    while isinstance(value, Mapping) and value.get("body"):
        value = value["body"]
    if isinstance(value, str):
        try:
            value = parse_json(value, "body")
        except ValueError:
            return {}
    return value if isinstance(value, Mapping) else {}


def _read_request(cells: Cells) -> tuple[Messages, Tools]:
    if not _is_request(cells.values):
        raise ValueError(f"the response of a batch, without its request: {_JOIN}")
    cells.used |= {*_PARTS} & cells.values.keys()
    request = _body(cells.values["request"] if "request" in cells.values else cells.values["body"])
    if "messages" not in request:
        raise ValueError(
            "a call of the Responses API (input, output), which is not read: write rows of messages, as in the Chat "
            "Completions API"
        )
    messages = with_system(cells, read_messages(cells, request["messages"]))
    return messages, to_tools(request.get("tools") or request.get("functions"))


def _answers(cells: Cells, prompt: Messages, tools: Tools) -> Iterator[Content]:
    response = _body(cells.values.get("response"))
    choices = response.get("choices")
    if not isinstance(choices, list) or not choices:
        yield Omission(FAILED)
        return
    for choice in choices:
        message = choice.get("message") if isinstance(choice, Mapping) else None
        if not isinstance(message, Mapping):
            raise ValueError("a choice of the response has no message: only the Chat Completions API's form is read")
        if choice.get("finish_reason") in _CUT:
            yield Omission(CUT)
        elif message.get("refusal"):
            yield Omission(REFUSED)
        else:
            stated = {key: value for key, value in message.items() if value or key not in ("annotations", "refusal")}
            yield AnswerRow(prompt, tools, read_messages(cells, [{"role": "assistant", **stated}]))

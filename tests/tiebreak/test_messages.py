"""Messages as OpenAI, TRL and Arrow write them: what is read, what is refused by name, and ids that stay as they were."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from support import REPOSITORY

from tiebreak.data.reading import Rules, read_demonstrations, read_preferences, read_prompts, read_records
from tiebreak.errors import DataError
from tiebreak.files import explain, write_jsonl
from tiebreak.messages import Message, Messages, assistant, content_id, prompt_id
from tiebreak.records import Completion, Demonstration, Pair, Preference, Prompt

NOTHING_HELD_OUT = Rules(validation_share=0.0)
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
RESULT = {"role": "tool", "tool_call_id": "1", "name": "weather", "content": "4 °C"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ASK = {"role": "user", "content": "How cold is Bonn?"}
SAID = {"role": "assistant", "content": "It is 4 °C."}


def faults_of(value: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Message.model_validate(value)
    return "; ".join(explain(caught.value))


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- what is read ------------------------------------------------------------------------------------------------------


def test_arguments_become_a_mapping() -> None:
    called = Message.model_validate({"role": "assistant", "content": None, "tool_calls": [CALL]})
    assert called.content == ""
    assert called.tool_calls[0].function.arguments == {"city": "Bonn"}
    spelt_out = {**CALL, "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
    flat = {"id": "1", "name": "weather", "arguments": {"city": "Bonn"}}
    for calls in ([spelt_out], [flat], json.dumps([CALL])):
        assert Message.model_validate({"role": "assistant", "content": "", "tool_calls": calls}) == called
    assert hash(called) == hash(Message.model_validate({"role": "assistant", "tool_calls": [CALL]}))


def test_what_arrow_fills_in_is_absent() -> None:
    filled = {**SAID, "tool_calls": None, "name": None, "thinking": None, "weight": None, "unheard_of": None}
    assert Message.model_validate(filled) == Message(role="assistant", content="It is 4 °C.")


def test_text_parts_are_text() -> None:
    parts = [{"type": "text", "text": "How cold"}, {"type": "text", "text": " is Bonn?", "image_url": None}]
    assert Message.model_validate({"role": "user", "content": parts}) == Message.model_validate(ASK)
    mixed = ["How ", {"type": "input_text", "text": "cold"}, {"type": "output_text", "text": " is Bonn?"}]
    assert Message.model_validate({"role": "user", "content": mixed}) == Message.model_validate(ASK)


def test_thinking_is_reasoning_content() -> None:
    thought = Message.model_validate({**SAID, "thinking": "Look it up."})
    assert thought == Message.model_validate({**SAID, "reasoning_content": "Look it up."})
    assert Message.model_validate({**SAID, "thinking": "", "tool_calls": []}).is_plain
    assert not thought.is_plain


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ({**SAID, "audio": "x", "refusal": "no"}, "unknown message key 'audio', 'refusal'; a message has role, content,"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "content[0] is a part of type 'input"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}, "content[1] is a part of"),
        ({"role": "assistant", "content": [{"type": "reasoning", "text": "Hm."}]}, "content[0] is a part of type 'reason"),
        ({"role": "user", "content": [{"text": "a"}]}, "content[0] is a part of type 'untyped'"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "content[0] is a part of type 'text'"),
        ({"role": "user", "content": [3]}, "content[0] is a part of type 'int'"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "annotations": []}]}, "content[0] is a part of type"),
        ({"role": "assistant", "content": None}, "content is null: only a message with tool_calls may have none"),
        ({**ASK, "tool_calls": [CALL]}, "tool_calls on the message of the user"),
        ({**ASK, "weight": 0}, "weight on the message of the user"),
        ({**ASK, "reasoning_content": "x"}, "reasoning_content on the message of the user"),
        ({**SAID, "tool_call_id": "1"}, "tool_call_id on the message of the assistant"),
        ({**SAID, "weight": 0.5}, "weight: Input should be 0 or 1"),
        ({**SAID, "thinking": "a", "reasoning_content": "b"}, "thinking and reasoning_content differ"),
        ({**SAID, "tool_calls": [{"name": "f", "arguments": "{"}]}, "tool_calls.0.function.arguments: not JSON"),
        ({**SAID, "tool_calls": [{"name": "f", "arguments": "[1]"}]}, "arguments: a list, not a JSON object"),
        ({**SAID, "tool_calls": [{"name": "f", "arguments": '{"a": 1, "a": 2}'}]}, "'a' is in one object twice"),
        ({**SAID, "tool_calls": '[{"name": "f", "name": "g"}]'}, "tool_calls: 'name' is in one object twice"),
        ({**SAID, "tool_calls": [{"name": "f", "arguments": '{"a": [NaN]}'}]}, "arguments: NaN or Infinity is in it"),
        ({**SAID, "tool_calls": [{"name": "f", "arguments": {"a": {"b": math.inf}}}]}, "NaN or Infinity is in it"),
        ({**SAID, "tool_calls": [{"name": "f", "index": 3}]}, "tool_calls.0.index: "),
        ({**SAID, "tool_calls": [{"type": "retrieval", "name": "f"}]}, "tool_calls.0.type: "),
    ],
)  # fmt: skip
def test_what_would_be_lost_is_refused_by_name(message: dict[str, Any], fault: str) -> None:
    assert fault in faults_of(message)


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        (["one", "two"], "a list of texts, not of messages: write a row for each text"),
        (
            ["one", {"role": "user", "content": "q"}],
            "message 1: Input should be a valid dictionary or instance of Message",
        ),
    ],
)
def test_a_list_of_texts_is_no_conversation(prompt: list[Any], fault: str, tmp_path: Path) -> None:
    row = {"prompt": prompt, "chosen": "x", "rejected": "y"}
    with pytest.raises(DataError) as caught:
        read_preferences(write(tmp_path / "p.jsonl", [row]), NOTHING_HELD_OUT)
    assert caught.value.faults[0].endswith(fault)


# --- parts -----


CAT = {"type": "image", "image": "cat.png"}
PURR = {"type": "audio", "audio": "purr.wav"}


def test_numbered_text_puts_a_number_in_the_place_of_each_image_and_recording() -> None:
    """A number is set off by a blank, unless the text already has one there."""
    for content, shown in (
        (["Look ", CAT, " and", CAT, PURR, "hear"], "Look [image 1] and [image 2] [audio 3] hear"),
        ([CAT, CAT], "[image 1] [image 2]"),
        ([CAT, "?"], "[image 1] ?"),
        (["a", CAT], "a [image 1]"),
    ):
        assert Message.model_validate({"role": "user", "content": content}).numbered_text == shown
    plain = Message(role="user", content=" Why? ")
    assert (plain.numbered_text, plain.media, plain.images) == (" Why? ", (), ())


def test_a_completion_with_parts_has_the_text_that_numbers_them() -> None:
    parts = [CAT, {"type": "text", "text": "A cat."}]
    shown = Completion.model_validate({"id": "c", "text": "[image 1] A cat.", "content": parts})
    assert shown.message == Message.model_validate({"role": "assistant", "content": parts})
    assert Completion(id="c", text="A cat.").message == Message(role="assistant", content="A cat.")
    with pytest.raises(ValidationError, match="text and content of a completion differ"):
        Completion.model_validate({"id": "c", "text": "A cat.", "content": parts})


def test_the_media_of_a_pair_are_its_prompts_and_then_those_of_each_answer() -> None:
    answers = [
        {"id": "1", "text": "[audio 1]", "content": [PURR]},
        {"id": "2", "text": "No."},
        {"id": "3", "text": "[image 1]", "content": [{"type": "image", "image": "dog.png"}]},
    ]
    asked = [{"role": "user", "content": [CAT, "Which?"]}]
    pair = Pair.model_validate({"id": "p", "prompt_id": "q", "messages": asked, "completions": answers})
    assert [part.file for part in pair.media] == ["cat.png", "purr.wav", "dog.png"]


# --- rows --------------------------------------------------------------------------------------------------------------


def test_a_conversation_with_tools_keeps_all_of_it(tmp_path: Path) -> None:
    calls = {"role": "assistant", "content": "", "tool_calls": [CALL], "thinking": "Ask the tool."}
    row = {"tools": [TOOL], "messages": [ASK, calls, RESULT, SAID]}
    (shown,) = read_demonstrations(write(tmp_path / "d.jsonl", [row]), NOTHING_HELD_OUT)
    assert [message.role for message in shown.prompt.messages] == ["user", "assistant", "tool"]
    assert shown.prompt.messages[1].tool_calls[0].function.name == "weather"
    assert shown.prompt.messages[1].reasoning_content == "Ask the tool."
    assert shown.prompt.messages[2] == Message.model_validate(RESULT)
    assert shown.prompt.tools == (TOOL,)
    assert shown.completion == "It is 4 °C."
    write_jsonl(tmp_path / "again.jsonl", [shown])
    assert read_records(tmp_path / "again.jsonl", Demonstration) == [shown]


@pytest.mark.parametrize(
    "answer",
    [
        {"role": "assistant", "content": "Let me check.", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {**SAID, "reasoning_content": "Bonn lies on the Rhine."},
        {**SAID, "weight": 1},
    ],
)
def test_an_answer_that_is_more_than_text_stays_a_message(tmp_path: Path, answer: dict[str, Any]) -> None:
    rows = [{"messages": [ASK, answer]}, {"prompt": [ASK], "completion": [answer]}]
    first, second = read_demonstrations(write(tmp_path / "d.jsonl", rows), NOTHING_HELD_OUT)
    assert first == second
    assert first.answer == Message.model_validate(answer)
    assert first.answers == (first.answer,)


def test_a_completion_of_several_turns_is_trained_on_from_its_first(tmp_path: Path) -> None:
    calls = {"role": "assistant", "tool_calls": [CALL]}
    row = {"prompt": [ASK], "completion": [calls, RESULT, SAID]}
    (shown,) = read_demonstrations(write(tmp_path / "d.jsonl", [row]), NOTHING_HELD_OUT)
    assert [message.role for message in shown.answers] == ["assistant", "tool", "assistant"]
    assert shown.answer.content == "It is 4 °C."
    assert [message.role for message in shown.prompt.messages] == ["user"]


def test_tools_in_any_of_their_forms_are_one(tmp_path: Path) -> None:
    forms = [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], [TOOL["function"]]]
    found = read_prompts(
        write(tmp_path / "p.jsonl", [{"prompt": [ASK], "tools": form} for form in forms]), ["train"], NOTHING_HELD_OUT
    )
    assert len({prompt.id for prompt in found}) == 1
    assert all(prompt.tools == (TOOL,) for prompt in found)
    plain = read_prompts(
        write(tmp_path / "q.jsonl", [{"prompt": [ASK], "tools": t} for t in (None, [], "")]), ["train"]
    )
    assert {prompt.id for prompt in plain} == {prompt_id(plain[0].messages)} != {found[0].id}


def test_preferences_between_turns_with_tools(tmp_path: Path) -> None:
    calls = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    other = {"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "arguments": {"city": "Köln"}}]}
    rows = [
        {"prompt": [ASK], "chosen": [calls], "rejected": [other], "tools": [TOOL]},
        {"prompt": [ASK], "chosen": [calls, RESULT, SAID], "rejected": [SAID], "tools": [TOOL]},
        {"prompt": [ASK, calls, RESULT], "chosen": "It is 4 °C.", "rejected": "Cold.", "tools": [TOOL]},
    ]
    first, second, third = read_preferences(write(tmp_path / "p.jsonl", rows))
    assert first.chosen[0].tool_calls[0].function.arguments == {"city": "Bonn"}
    assert first.chosen_text == '{"name": "weather", "arguments": {"city": "Bonn"}}'
    assert [message.role for message in second.chosen] == ["assistant", "tool", "assistant"]
    assert third.prompt[-1].role == "tool"
    assert first.tools == (TOOL,)
    assert first.prompt_id == second.prompt_id == prompt_id(first.prompt, (TOOL,)) != prompt_id(first.prompt)


# --- ids and files of plain text ---------------------------------------------------------------------------------------


def written(records: Sequence[BaseModel]) -> str:
    """The hash of a file of them."""
    text = "".join(json.dumps(one.model_dump(mode="json"), ensure_ascii=False) + "\n" for one in records)
    return hashlib.sha256(text.encode()).hexdigest()


def test_plain_text_has_the_ids_and_files_that_it_had_before_messages_had_more_fields() -> None:
    """Hashes taken from the revision in which a message was a role and a text."""
    turns: Messages = tuple(
        Message.model_validate({"role": role, "content": content})
        for role, content in (
            ("system", "Be brief."),
            ("user", "Why?"),
            ("assistant", "Because."),
            ("user", "How – exactly?"),
        )
    )
    assert prompt_id(turns) == "prompt-1b169527efc79882"
    assert content_id("pair", turns, ["a", "b"]) == "pair-e58be89636fceee2"
    completions = tuple(Completion(id=f"c{n}", text=text, policy="p", seed=n) for n, text in enumerate("ab"))
    pair = Pair(id="x", prompt_id=prompt_id(turns), messages=turns, completions=completions)
    assert written([pair]) == "e76b8f5a7ae7054ffc9c734a013e8f42bbade9606b022d0f5548ab7fc213c31d"
    preference = Preference(
        prompt=turns,
        chosen=assistant("a"),
        rejected=assistant("b"),
        strength=2.0,
        margin=0.5,
        agreement=0.75,
        confidence=0.8,
        raters=("r",),
        pair_id="x",
        prompt_id=prompt_id(turns),
        split="train",
        kind="human",
        tags=("t",),
    )
    assert written([preference]) == "1dbd3697e6dc9397b25fa7e9693ff772dad646bb2161883277f1824b172b0023"
    assert content_id("z", preference) == "z-53d8dc7fc098e8b4"


def test_the_quickstarts_data_is_read_to_the_same_bytes() -> None:
    data = REPOSITORY / "data" / "hydroponics"
    shown = read_demonstrations(str(data / "demonstrations.jsonl"), NOTHING_HELD_OUT)
    prompts: list[Prompt] = read_prompts(str(data / "prompts.jsonl"), ["train"], NOTHING_HELD_OUT)
    assert written(shown) == "239e9f4223d6c335747df670cbb1253b3559d593a4ae9627b040513b11dc68b7"
    assert written(prompts) == "f53652f54bd418506bd432af7c2921ad61ad3106c5cd220621626bf1cfd23135"

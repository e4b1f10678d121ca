"""Records and their files: stable ids, TRL's formats in, every fault with its place, and round trips."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from pydantic import BaseModel, ValidationError

from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import Rules, read_demonstrations, read_preferences, read_prompts, read_records, read_rows
from tiebreak.errors import DataError, RunError
from tiebreak.files import explain, first_line, parse_json, read_jsonl, write_json, write_jsonl, write_text_atomically
from tiebreak.messages import (
    FunctionCall,
    Message,
    ToolCall,
    assistant,
    check_prompt,
    check_side,
    comparison_key,
    content_id,
    prompt_id,
    split_key,
    text_of,
)
from tiebreak.records import (
    Completion,
    Demonstration,
    ExportedJudgment,
    Judgment,
    LabelledAnswer,
    ModelVerdict,
    Pair,
    Preference,
    Prompt,
    SamplingSettings,
    Selection,
    Span,
)
from tiebreak.runs import audit
from tiebreak.tracking import contents

NOTHING_HELD_OUT = Rules(validation_share=0.0)
ASK = [{"role": "user", "content": "Why do the roots turn brown?"}]
GOOD = [{"role": "assistant", "content": "Cool the water to 18 °C today."}]
BAD = [{"role": "assistant", "content": "It depends."}]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def faults_of(error: pytest.ExceptionInfo[DataError]) -> list[str]:
    return error.value.faults


# --- ids -------------------------------------------------------------------------------------------------------------


def test_ids_come_from_content_alone() -> None:
    assert content_id("x", {"a": 1, "b": 2}) == content_id("x", {"b": 2, "a": 1})
    assert content_id("x", "ab", "c") != content_id("x", "a", "bc")
    one = Message.model_validate({"role": "user", "content": "hi"})
    other = Message.model_validate({"content": "hi", "role": "user"})
    assert prompt_id([one]) == prompt_id([other])
    assert prompt_id([one]) != prompt_id([Message(role="system", content="hi")])
    # worked by hand: sha256 of the canonical JSON below
    canonical = '[[["user","hi"]]]'
    assert prompt_id([one]) == "prompt-" + hashlib.sha256(canonical.encode()).hexdigest()[:16]


def test_key_order_and_further_columns_leave_a_raw_prompt_as_it_is(tmp_path: Path) -> None:
    source = write(
        tmp_path / "p.jsonl",
        [
            '{"prompt": [{"role": "user", "content": "hi"}]}',
            '{"note": 3, "prompt": [{"content": "hi", "role": "user"}]}',
        ],
    )
    first, second = read_prompts(source, ["train"], NOTHING_HELD_OUT)
    assert first == second


# --- TRL's formats ---------------------------------------------------------------------------------------------------


def test_standard_and_conversational_prompts_are_one(tmp_path: Path) -> None:
    rows = [{"prompt": ASK[0]["content"]}, {"prompt": ASK}, {"messages": ASK}]
    first, second, third = read_prompts(write(tmp_path / "p.jsonl", rows), ["train"], NOTHING_HELD_OUT)
    assert first == second == third
    assert first.messages == (Message(role="user", content="Why do the roots turn brown?"),)


def test_standard_and_conversational_demonstrations_are_one(tmp_path: Path) -> None:
    rows = [
        {"prompt": ASK[0]["content"], "completion": GOOD[0]["content"]},
        {"prompt": ASK, "completion": GOOD},
        {"messages": ASK + GOOD},
    ]
    first, second, third = read_demonstrations(write(tmp_path / "d.jsonl", rows), NOTHING_HELD_OUT)
    assert first == second == third
    assert (first.prompt.id, first.completion) == (prompt_id(first.prompt.messages), GOOD[0]["content"])


def test_standard_conversational_and_implicit_prompt_preferences_are_one(tmp_path: Path) -> None:
    rows = [
        {"prompt": ASK[0]["content"], "chosen": GOOD[0]["content"], "rejected": BAD[0]["content"]},
        {"prompt": ASK, "chosen": GOOD, "rejected": BAD},
        {"chosen": ASK + GOOD, "rejected": ASK + BAD},
    ]
    first, second, third = read_preferences(write(tmp_path / "p.jsonl", rows))
    assert first == second == third
    assert (first.chosen_text, first.rejected_text) == (GOOD[0]["content"], BAD[0]["content"])
    assert first.prompt_id == prompt_id(first.prompt)
    assert (first.raters, first.kind) == (None, "unstated")


def test_an_implicit_prompt_of_several_turns(tmp_path: Path) -> None:
    shared = [*ASK, *BAD, {"role": "user", "content": "How exactly?"}]
    (one,) = read_preferences(write(tmp_path / "p.jsonl", [{"chosen": shared + GOOD, "rejected": shared + BAD}]))
    assert [m.role for m in one.prompt] == ["user", "assistant", "user"]
    assert one.chosen_text == GOOD[0]["content"]


def test_parquet_holds_what_jsonl_holds(tmp_path: Path) -> None:
    rows = [
        {"prompt": ASK, "chosen": GOOD, "rejected": BAD, "strength": 2.0, "raters": ["a", "b"], "kind": "human"},
        {"prompt": ASK, "chosen": BAD, "rejected": GOOD, "strength": None, "raters": None, "kind": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    from_parquet = read_preferences(str(tmp_path / "p.parquet"))
    assert from_parquet == read_preferences(write(tmp_path / "p.jsonl", rows))
    assert from_parquet[0].raters == ("a", "b")
    assert from_parquet[1].strength is None


def test_a_broken_parquet_file_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"p\.parquet: cannot be read as Parquet"):
        read_preferences(str(tmp_path / "p.parquet"))


def test_a_row_that_names_a_split_counts_for_it_alone(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "split": "validation"}, {"prompt": "c", "split": "test"}]
    source = write(tmp_path / "p.jsonl", rows)
    assert [p.messages[0].content for p in read_prompts(source, ["train"], NOTHING_HELD_OUT)] == ["a"]
    assert [
        (p.messages[0].content, p.split) for p in read_prompts(source, ["validation", "test"], NOTHING_HELD_OUT)
    ] == [
        ("b", "validation"),
        ("c", "test"),
    ]


# --- faults ----------------------------------------------------------------------------------------------------------


def test_every_broken_line_is_listed_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "fine"}\n{"prompt": \n\n[1, 2]\n{"prompt": "\xff"}\n"text"\n')
    with pytest.raises(DataError) as caught:
        read_prompts(str(path), ["train"], NOTHING_HELD_OUT)
    assert faults_of(caught) == [
        f"{path}:2: not JSON (Expecting value at column 12)",
        f"{path}:4: a list, not an object",
        f"{path}:5: not UTF-8 (invalid start byte at byte 12)",
        f"{path}:6: a str, not an object",
    ]
    assert "4 of 5 rows cannot be used as prompts: fix them, or set on_bad_row: drop" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "hello"}, "no column 'prompt'"),
        ({"prompt": None}, "column 'prompt' is empty in this row"),
        ('{"prompt": NaN}', "neither a string nor a list"),
        ({"prompt": []}, "column 'prompt': neither a string nor a list"),
        ({"prompt": "  "}, "the prompt is empty"),
        (
            {"prompt": [{"role": "user", "content": None}]},
            "content is null: only a message with tool_calls may have none",
        ),
        (
            {"prompt": [{"role": "robot", "content": "a"}]},
            "role: Input should be 'system', 'user', 'assistant' or 'tool'",
        ),
        ({"prompt": [{"role": "user"}]}, "content: Field required"),
        ({"prompt": [{"content": "hi"}]}, "role: Field required"),
        ({"prompt": ASK + GOOD}, "the last message is the assistant's"),
        ({"prompt": ["hi"]}, "a list of texts, not of messages"),
        ('{"prompt": "\\ud800"}', "surrogate"),
    ],
)
def test_each_fault_of_a_prompt(tmp_path: Path, row: Any, reason: str) -> None:
    source = write(tmp_path / "p.jsonl", [{"prompt": "fine"}, row])
    with pytest.raises(DataError, match=reason) as caught:
        read_prompts(source, ["train"], NOTHING_HELD_OUT)
    assert len(faults_of(caught)) == 1
    assert faults_of(caught)[0].startswith(f"{source}:2: ")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": ASK}, "no column 'completion' or 'messages'"),
        ({"prompt": ASK, "completion": " \n"}, "the completion is empty"),
        ({"prompt": ASK, "completion": None}, "column 'completion' is empty in this row"),
        ({"prompt": ASK, "completion": ASK}, "the completion contains a message of the user"),
        ({"prompt": ASK, "completion": 7}, "column 'completion': neither a string nor a list of messages"),
        ({"prompt": ASK, "answer": [7]}, "Input should be"),
        ({"question": 7, "answer": "a"}, "column 'question': neither"),
        ({"messages": 7}, "column 'messages': neither"),
        ({"messages": ASK}, "must end with the assistant's answer"),
        ({"completion": "a"}, "no column 'prompt'"),
    ],
)
def test_each_fault_of_a_demonstration(tmp_path: Path, row: Any, reason: str) -> None:
    source = write(tmp_path / "d.jsonl", [{"prompt": ASK, "completion": GOOD}, row])
    with pytest.raises(DataError, match=reason) as caught:
        read_demonstrations(source, NOTHING_HELD_OUT)
    assert [fault.partition(": ")[0] for fault in faults_of(caught)] == [f"{source}:2"]


def preference(**changes: Any) -> dict[str, Any]:
    return {"prompt": ASK, "chosen": GOOD, "rejected": BAD, **changes}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": ASK, "chosen": GOOD}, "no column 'rejected'"),
        (preference(rejected=7), "column 'rejected': neither a string nor a list of messages"),
        ({"prompt": "a", "response_a": 7, "response_b": "b", "winner": "b"}, "column 'response_a': neither"),
        (preference(chosen=" "), "chosen is empty"),
        (preference(chosen="Same.", rejected=" Same.\n"), "chosen and rejected are the same"),
        (preference(raters=[]), "this preference has no raters"),
        (preference(strength=-1), "strength: -1 is below 0, so the rejected answer is the better one"),
        (preference(margin=-0.5), "margin: -0.5 is below 0.* swap chosen and rejected, or fix its sign"),
        (preference(weight=-1), "weight: Input should be greater than or equal to 0"),
        (preference(agreement=1.5), "agreement: Input should be less than or equal to 1"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c", "strength": NaN}', "strength: .*finite"),
        (preference(prompt=ASK + GOOD), "a prompt ends with the user's or a tool's"),
        (preference(prompt=" "), "the prompt is empty"),
        (
            preference(chosen=ASK + GOOD),
            "one of chosen and rejected is a whole conversation, but the other is only an answer",
        ),
        ({"chosen": GOOD, "rejected": BAD}, "share no first messages"),
        ({"chosen": ASK, "rejected": ASK + BAD}, "chosen is empty"),
        ({"chosen": "User: hi\nA", "rejected": "User: hi\nB"}, "share no first messages"),
    ],
)
def test_each_fault_of_a_preference(tmp_path: Path, row: Any, reason: str) -> None:
    source = write(tmp_path / "p.jsonl", [preference(), row])
    with pytest.raises(DataError, match=reason) as caught:
        read_preferences(source)
    assert {fault.partition(": ")[0] for fault in faults_of(caught)} == {f"{source}:2"}


def test_a_preferences_source_and_tags_are_read_and_other_columns_of_those_names_left_alone(tmp_path: Path) -> None:
    rows = [preference(source="forum", tags=["ph", "light"]), preference(source=3, tags="ph")]
    first, second = read_preferences(write(tmp_path / "p.jsonl", rows))
    assert (first.source, first.tags) == ("forum", ("ph", "light"))
    assert (second.source, second.tags) == ("", ())


def completion(text: str, number: int = 0) -> Completion:
    return Completion(id=f"c{number}", text=text, policy="p")


@pytest.mark.parametrize(
    ("texts", "reason"),
    [(["a", " a "], "the same"), (["a", " "], "empty"), (["a"], "two or more")],
)
def test_a_pair_must_be_judgeable(tmp_path: Path, texts: list[str], reason: str) -> None:
    base = {"id": "x", "prompt_id": "y", "messages": ASK}
    rows = [{**base, "completions": [completion(t, n).model_dump() for n, t in enumerate(texts)]}]
    source = write(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DataError, match=reason) as caught:
        read_pairs(source)
    assert faults_of(caught)[0].startswith(f"{source}:1: ")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({}, "exactly one of"),
        ({"answer": 1, "skip": True}, "exactly one of"),
        ({"both_bad": True, "skip": True}, "exactly one of"),
        ({"answer": 4}, "less than or equal to 3"),
        ({"answer": 0, "right": "l"}, "the same completion"),
    ],
)
def test_a_judgment_is_answered_once(answer: dict[str, Any], reason: str) -> None:
    row = {"pair_id": "p", "rater_id": "r", "left": "l", "right": "r", "kind": "human"}
    assert Judgment.model_validate({**row, "answer": 0}).answer == 0
    with pytest.raises(ValidationError, match=reason):
        Judgment.model_validate({**row, **answer})


def test_a_misspelt_field_of_our_own_records_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", [{"id": "a", "messages": ASK, "spilt": "train"}])
    with pytest.raises(DataError, match="spilt"):
        read_records(Path(source), Prompt)


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or run folder"):
        read_rows(str(tmp_path / "no.jsonl"))
    (tmp_path / "x.doc").write_text("a,b\n")
    with pytest.raises(DataError, match=r"unsupported file type; supported: \.jsonl"):
        read_rows(str(tmp_path / "x.doc"))
    with pytest.raises(DataError, match=r"no finished run .* and no data"):
        read_rows(str(tmp_path), "prompts.jsonl")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match=r"holds no prompts\.jsonl"):
        read_rows(str(tmp_path), "prompts.jsonl")
    with pytest.raises(DataError, match="name the split"):
        read_rows("hub:some/data")


def test_only_so_many_faults_are_printed() -> None:
    error = DataError("many", [f"line {n}" for n in range(70)])
    assert str(error).splitlines()[-1] == "  … and 20 more"
    assert len(str(error).splitlines()) == 52
    assert len(error.faults) == 70


# --- round trips -----------------------------------------------------------------------------------------------------

texts = st.text(min_size=1, max_size=30)
written = texts.filter(lambda text: any(unicodedata.category(letter)[0] not in "CZ" for letter in text))
numbers = st.floats(allow_nan=False, allow_infinity=False)
splits = st.sampled_from(["train", "validation", "test"])
messages = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=st.text(max_size=20))
)
prompts = st.builds(
    Prompt,
    id=texts,
    messages=messages.map(tuple),
    split=splits,
    source=texts,
    tags=st.lists(texts, max_size=3).map(tuple),
)
judgments = st.builds(
    Judgment,
    pair_id=texts,
    rater_id=texts,
    left=st.just("l"),
    right=st.just("r"),
    answer=st.integers(-3, 3),
    aspects=st.dictionaries(texts, st.integers(-3, 3), max_size=2),
    rationale=st.text(max_size=20),
    edited_text=st.none() | texts,
    seconds_active=st.none() | numbers,
    kind=st.sampled_from(["human", "simulated", "model"]),
)
preferences = st.builds(
    lambda ask, sides, strength, raters, split: Preference(
        prompt=(Message(role="user", content=ask),),
        chosen=assistant(sides[0]),
        rejected=assistant(sides[1]),
        strength=strength,
        raters=raters,
        split=split,
    ),
    written,
    st.lists(written, min_size=2, max_size=2, unique_by=str.strip),
    st.none() | st.just(0.0) | st.floats(1, 3),
    st.none() | st.lists(texts, min_size=1, max_size=3).map(tuple),
    st.none() | splits,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.one_of(*(st.lists(one, min_size=1, max_size=4) for one in (prompts, judgments, preferences))))
def test_what_is_written_is_read_back(tmp_path: Path, rows: list[BaseModel]) -> None:
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_records(tmp_path / "rows.jsonl", type(rows[0])) == rows


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(preferences, min_size=1, max_size=4, unique_by=lambda row: split_key(row.prompt))
)  # each has a split of its own
def test_our_preferences_are_trls_raw_rows_too(tmp_path: Path, rows: list[Preference]) -> None:
    """Read as raw data, a file of our own records means the same; ids are computed again."""
    write_jsonl(tmp_path / "rows.jsonl", rows)
    read = read_preferences(str(tmp_path / "rows.jsonl"))
    assert [
        r.model_copy(update={"prompt_id": "", "split": row.split}) for r, row in zip(read, rows, strict=True)
    ] == rows


# --- records one by one ----------------------------------------------------------------------------------------------

USER = Message(role="user", content="Why?")
TOLD = Message(role="tool", content="4 °C")
SAID = Message(role="assistant", content="Because.")
SILENT = Message(role="assistant", content=" ")
CALLS = Message.model_validate({"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"ö": [1, None]}}]})


def why(make: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        make()
    return first_line(caught.value)


def test_a_record_is_frozen_and_takes_finite_numbers() -> None:
    one = Completion(id="c", text="a")
    with pytest.raises(ValidationError, match="frozen"):
        one.text = "b"
    side = {"prompt": (USER,), "chosen": (SAID,), "rejected": assistant("No.")}
    assert why(lambda: Preference(**side, weight=float("inf"))) == "weight: Input should be a finite number"
    assert (one.finished, one.policy, Preference(**side).weight) == (True, "unknown", 1.0)
    assert (Preference(**side).chosen_finished, Preference(**side).rejected_finished) == (True, True)
    assert Preference(**side).adjudicated is False


def test_shares_and_weights_lie_within_their_bounds() -> None:
    side = {"prompt": (USER,), "chosen": (SAID,), "rejected": assistant("No.")}
    for key in ("agreement", "confidence"):
        for value in (0.0, 0.5, 1.0):
            assert getattr(Preference(**side, **{key: value}), key) == value
        assert why(lambda key=key: Preference(**side, **{key: -0.1})).startswith(f"{key}: Input should be greater")
        assert why(lambda key=key: Preference(**side, **{key: 1.1})).startswith(f"{key}: Input should be less")
    assert Preference(**side, weight=0.0).weight == 0.0
    assert why(lambda: Preference(**side, weight=-0.5)).startswith("weight: Input should be greater")
    for key, values in {"margin": (None, 0.0, 0.5), "strength": (None, 0.0, 1.0, 3.0)}.items():
        for value in values:
            assert getattr(Preference(**side, **{key: value}), key) == value
        assert "below 0" in why(lambda key=key: Preference(**side, **{key: -0.5}))
    assert Preference(**side, raters=None).raters is None
    assert Preference(**side, raters=("a",)).raters == ("a",)


def test_a_calls_arguments() -> None:
    assert [FunctionCall(name="f", arguments=given).arguments for given in (None, "", "{}", {})] == [{}] * 4
    assert FunctionCall(name="f", arguments='{"a": 1}') == FunctionCall(name="f", arguments={"a": 1})
    assert why(lambda: FunctionCall(name="f", arguments=3)) == "arguments: a int, not a JSON object"
    assert (
        why(lambda: FunctionCall(name="f", arguments='{"a"'))
        == "arguments: not JSON (Expecting ':' delimiter at column 5)"
    )
    assert why(lambda: FunctionCall(name="")).startswith("name: String should have at least 1")
    assert hash(FunctionCall(name="f", arguments={"a": 1})) == hash(FunctionCall(name="f", arguments='{"a": 1}'))
    assert hash(FunctionCall(name="f")) != hash(FunctionCall(name="g"))
    call = ToolCall(function=FunctionCall(name="f"))
    assert Message(role="assistant", content="", tool_calls=(call,)).tool_calls == (call,)
    bare = ToolCall.model_validate({"id": None, "name": "f", "arguments": None})
    assert bare == ToolCall.model_validate({"name": "f"}) == call
    assert "function: Field required" in why(lambda: ToolCall.model_validate({"id": "1"}))
    assert why(lambda: ToolCall.model_validate("f")).startswith("Input should be a valid dictionary")


def test_what_a_record_is_without_further_fields() -> None:
    made = ExportedJudgment(pair_id="p", rater_id="r", left="a", right="b", answer=1, kind="human")
    assert (made.gold, made.repeat, made.settled) == (False, False, False)
    assert not {"gold", "repeat", "batch", "at"} & made.model_dump().keys()
    exported = made.model_copy(update={"gold": True, "batch": "b"})
    assert (exported.model_dump()["gold"], exported.model_dump()["batch"]) == (True, "b")
    assert exported.judgment == Judgment(pair_id="p", rater_id="r", left="a", right="b", answer=1, kind="human")
    answer: dict[str, Any] = {"prompt": (USER,), "completion": (SAID,), "label": True}
    assert LabelledAnswer(**answer).finished
    for empty, fault in (({"prompt": ()}, "the prompt is empty"), ({"completion": ()}, "the completion is empty")):
        with pytest.raises(ValueError, match=fault):
            LabelledAnswer(**{**answer, **empty})


def test_a_strength_is_0_or_1_to_3() -> None:
    sides: dict[str, Any] = {"prompt": (USER,), "chosen": (SAID,), "rejected": (CALLS,)}
    assert [Preference(**sides, strength=one).strength for one in (None, 0, 1, 2.5, 3)] == [None, 0, 1, 2.5, 3]
    for other in (0.5, 3.5):
        with pytest.raises(ValueError, match=r"is not 0 \(a tie\) or 1 \(slightly better\) to 3"):
            Preference(**sides, strength=other)


def test_a_message_is_one_whatever_form_it_comes_in() -> None:
    assert Message.model_validate(SAID) == SAID
    assert why(lambda: Message.model_validate("hi")).startswith("Input should be a valid dictionary")
    assert why(lambda: Message.model_validate({"role": "user", "text": "hi"})).startswith("unknown message key 'text'")
    assert why(lambda: Message.model_validate({"by": "user", "content": "hi"})).startswith("unknown message key 'by'")
    assert why(lambda: Message.model_validate({"role": "assistant", "weight": 1})) == "content: Field required"
    assert Message.model_validate({"role": "assistant", "content": "", "thinking": "Hm."}).reasoning_content == "Hm."
    same = {"role": "assistant", "content": "a", "thinking": "b", "reasoning_content": "b"}
    assert Message.model_validate(same).reasoning_content == "b"
    assert Message.model_validate({**same, "thinking": ""}).reasoning_content == "b"
    result = {"role": "tool", "content": "4 °C", "tool_call_id": "1", "name": "f"}
    assert Message.model_validate(result).tool_call_id == "1"
    assert Message.model_validate({"role": "user", "content": ("a", "b")}).content == "ab"


def test_what_a_message_has() -> None:
    assert [one.is_empty for one in (USER, SILENT, CALLS, SAID)] == [False, True, False, False]
    thought = Message(role="assistant", content="", reasoning_content="Hm.")
    assert (thought.is_empty, thought.is_plain) == (True, False)
    named = Message(role="user", content="a", name="Ada")
    assert [one.is_plain for one in (USER, SAID, CALLS, named)] == [True, True, False, False]
    assert text_of((CALLS, TOLD, SAID)) == '{"name": "f", "arguments": {"ö": [1, null]}}\n4 °C\nBecause.'
    both = CALLS.model_copy(update={"content": "I look."})
    assert text_of((both,)) == 'I look.\n{"name": "f", "arguments": {"ö": [1, null]}}'
    assert text_of((SILENT.model_copy(update={"content": ""}),)) == ""


def test_ids_by_hand() -> None:
    def named(prefix: str, canonical: str) -> str:
        return f"{prefix}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"

    assert content_id("x", {"b": 1, "a": "é"}) == named("x", '[{"a":"é","b":1}]')
    assert content_id("x", SAID) == named("x", '[{"content":"Because.","role":"assistant"}]')
    with pytest.raises(TypeError, match="cannot hash a set"):
        content_id("x", {1})
    weighed = Message(role="assistant", content="Because.", weight=0)
    assert prompt_id((weighed,)) == prompt_id((SAID,)) == named("prompt", '[[["assistant","Because."]]]')
    ada = Message(role="user", content="Why?", name="Ada")
    assert prompt_id((ada,)) == named("prompt", '[[["user","Why?",{"name":"Ada"}]]]')
    assert prompt_id((USER,), ({"a": 1},)) == named("prompt", '[[["user","Why?"]],[{"a":1}]]')
    assert split_key((Message(role="user", content=" Why?\r\n"),)) == split_key((USER,)) == prompt_id((USER,))
    assert split_key((Message(role="user", content="a\r\nb"),)) == split_key((Message(role="user", content="a\nb"),))
    assert split_key((USER,), ({"a": 1},)) == prompt_id((USER,), ({"a": 1},))


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ((), "the prompt is empty"),
        ((USER, SAID), "the last message is the assistant's"),
        ((SAID, Message(role="system", content="a")), "the last message is the system's"),
        ((USER, Message(role="user", content=" \n")), "the prompt is empty"),
        ((SAID, USER), None),
        ((SILENT, USER), None),
        ((USER, CALLS, TOLD), None),
        ((USER, CALLS, Message(role="tool", content="")), None),
        ((USER, SAID, TOLD, USER), None),
    ],
)
def test_what_a_prompt_ends_with(messages: tuple[Message, ...], fault: str | None) -> None:
    if fault is None:
        check_prompt(messages)
    else:
        with pytest.raises(ValueError, match=fault):
            check_prompt(messages)


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ((), "it is empty"),
        ((SILENT,), "it is empty"),
        ((SILENT, SILENT), "it is empty"),
        ((SAID, USER, SAID), "it contains a message of the user"),
        ((TOLD, SAID), "it must begin and end with a message of the assistant"),
        ((TOLD, SAID, SAID), "it must begin and end with a message of the assistant"),
        ((SAID, TOLD), "it must begin and end with a message of the assistant"),
        ((SAID, SAID, TOLD), "it must begin and end with a message of the assistant"),
        ((SAID, SILENT), "it ends with an empty message"),
        ((SAID, SAID, SILENT), "it ends with an empty message"),
        ((SAID,), None),
        ((CALLS,), None),
        ((SILENT, SAID), None),
        ((SAID, SILENT, SAID), None),
        ((CALLS, TOLD, SAID), None),
    ],
)
def test_what_an_answer_is(messages: tuple[Message, ...], fault: str | None) -> None:
    if fault is None:
        check_side(messages, "it")
    else:
        with pytest.raises(ValueError, match=fault):
            check_side(messages, "it")


def test_a_demonstrations_answer_in_both_forms() -> None:
    prompt = Prompt(id="p", messages=(USER,))
    text = Demonstration(prompt=prompt, completion="Because.")
    assert (text.answers, text.answer, text.text) == ((SAID,), SAID, "Because.")
    turns = Demonstration(prompt=prompt, completion=(CALLS, TOLD, SAID))
    assert (turns.answers, turns.answer) == ((CALLS, TOLD, SAID), SAID)
    assert turns.text == text_of((CALLS, TOLD, SAID))
    assert why(lambda: Demonstration(prompt=prompt, completion=(CALLS, TOLD))) == (
        "the completion must begin and end with a message of the assistant"
    )


def test_a_preferences_sides_are_checked_and_differ_in_more_than_blanks_and_weight() -> None:
    made = Preference(prompt=(USER,), chosen=(SAID,), rejected=(CALLS, TOLD, SAID))
    assert (made.chosen_text, made.rejected_text) == ("Because.", text_of((CALLS, TOLD, SAID)))
    assert why(lambda: Preference(prompt=(SAID,), chosen=(SAID,), rejected=(CALLS,))).startswith("the last message is")
    assert why(lambda: Preference(prompt=(USER,), chosen=(TOLD,), rejected=(SAID,))).startswith("chosen must begin")
    assert why(lambda: Preference(prompt=(USER,), chosen=(SAID,), rejected=(TOLD,))).startswith("rejected must begin")
    alike = Message(role="assistant", content=" Because.\r\n", weight=0)
    assert (
        why(lambda: Preference(prompt=(USER,), chosen=(SAID,), rejected=(alike,))) == "chosen and rejected are the same"
    )
    thought = SAID.model_copy(update={"reasoning_content": "Hm."})
    assert Preference(prompt=(USER,), chosen=(SAID,), rejected=(thought,))


def test_a_pair_has_two_answers_or_more() -> None:
    def pair(*texts: str) -> Pair:
        made = tuple(Completion(id=f"c{n}", text=text) for n, text in enumerate(texts))
        return Pair(id="x", prompt_id="y", messages=(USER,), completions=made)

    assert (pair("a", "b").round, pair("a", "b", "c").split) == (0, "train")
    assert why(lambda: pair("a")) == "a pair needs two or more completions"
    assert why(lambda: pair("a", "b", " a\n")) == "two completions of the pair are the same: there is nothing to judge"
    assert why(lambda: pair("a", " ")) == "a completion of the pair is empty"
    assert why(lambda: pair("", "b", "c")) == "a completion of the pair is empty"


def judged(**values: Any) -> Judgment:
    named = {"pair_id": "p", "rater_id": "r", "left": "a", "right": "b", "kind": "human"}
    return Judgment.model_validate(named | values)


def test_a_judgment_says_one_thing() -> None:
    assert [judged(answer=answer).answer for answer in range(-3, 4)] == list(range(-3, 4))
    for answer in (-4, 4):
        assert why(lambda answer=answer: judged(answer=answer)).startswith("answer: Input should be")
    ranking = {"ranking": [["b"], ["a", "c"]], "shown": ["a", "b", "c"]}
    for written in ({"answer": 0}, {"both_bad": True}, {"skip": True}, {"skip": True, "skip_reason": "spam"}, ranking):
        assert judged(**written)
    one = "exactly one of answer, both_bad, skip and ranking is required"
    for written in ({}, {"answer": 0, "both_bad": True}, {"answer": 0, **ranking}, {"both_bad": True, **ranking}):
        assert why(lambda written=written: judged(**written)) == one
    for written in ({"both_bad": True, "skip": True}, {"skip": True, **ranking}, {"answer": 1, "skip": True}):
        assert why(lambda written=written: judged(**written)) == one
    assert why(lambda: judged(answer=0, both_bad=True, skip=True)) == one
    assert why(lambda: judged(answer=0, skip_reason="spam")).startswith("skip_reason")
    for wrong in ([["a"], ["b"]], [["a"], ["b"], ["c"], ["a"]], [["a"], ["b"], ["d"]]):
        assert why(lambda wrong=wrong: judged(ranking=wrong, shown=["a", "b", "c"])).startswith("ranking must ")


def test_a_ranking_is_all_its_pairs() -> None:
    assert judged(answer=2).pairwise() == [judged(answer=2)]
    ranked = judged(ranking=[["b"], ["a", "c"], ["d"]], shown=["a", "b", "c", "d"], edited_text="Better b.")
    assert [(one.left, one.right, one.answer, one.edited_text) for one in ranked.pairwise()] == [
        ("a", "b", 1, "Better b."),
        ("a", "c", 0, None),
        ("a", "d", -1, None),
        ("b", "c", -1, "Better b."),
        ("b", "d", -1, "Better b."),
        ("c", "d", -1, None),
    ]
    assert {(one.ranking, one.shown, one.rater_id) for one in ranked.pairwise()} == {(None, (), "r")}
    bad = judged(both_bad=True, shown=["a", "b", "c"]).pairwise()
    assert [(one.left, one.right, one.both_bad, one.answer) for one in bad] == [
        ("a", "b", True, None),
        ("a", "c", True, None),
        ("b", "c", True, None),
    ]


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_by_hand(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"é": [1]})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "é": [\n    1\n  ]\n}\n'.encode()
    write_jsonl(tmp_path / "a.jsonl", [SAID, {"é": 1}])
    assert (tmp_path / "a.jsonl").read_bytes() == '{"role": "assistant", "content": "Because."}\n{"é": 1}\n'.encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.jsonl"]


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "\ud800")
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(FileNotFoundError):
        write_text_atomically(tmp_path / "none" / "a.txt", "new")
    monkeypatch.setattr(os, "fsync", lambda _: os.remove(next(tmp_path.glob(".a.txt.tmp-*"))) or 1 / 0)
    with pytest.raises(ZeroDivisionError):  # and not that the temporary file is gone
        write_text_atomically(path, "new")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_file_is_on_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        at = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append("folder" if at.is_dir() else f"file of {at.stat().st_size} bytes")
        sync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", renamed)
    before = len(os.listdir("/proc/self/fd"))
    write_text_atomically(tmp_path / "a.txt", "four")
    assert done == ["file of 4 bytes", "rename", "folder"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_errors_in_a_line() -> None:
    with pytest.raises(ValidationError) as caught:
        SamplingSettings.model_validate({"temperature": "hot", "top_p": 1, "top_k": 0})
    assert list(explain(caught.value)) == [
        "temperature: Input should be a valid number, unable to parse string as a number",
        "max_new_tokens: Field required",
    ]
    assert first_line(caught.value) == "; ".join(explain(caught.value))
    with pytest.raises(ValidationError) as caught:
        judged()
    assert list(explain(caught.value)) == ["exactly one of answer, both_bad, skip and ranking is required"]
    assert first_line(ValueError("one\ntwo\nthree")) == "one"
    assert first_line(ValueError()) == "ValueError"
    with pytest.raises(ValueError, match=r"tools: not JSON \(Expecting value at column 2\)"):
        parse_json("[", "tools")
    assert parse_json("[1]", "tools") == [1]


# --- judges, and what is said of single answers


def test_a_model_judges_confidence_is_a_probability_and_its_tokens_are_counts() -> None:
    plain = ModelVerdict(model="m", answers=(1, None))
    assert (plain.confidence, plain.prompt_tokens, plain.completion_tokens) == (None, 0, 0)
    assert [ModelVerdict(model="m", answers=(1, 1), confidence=p).confidence for p in (0, 0.5, 1)] == [0, 0.5, 1]
    for wrong in ({"confidence": -0.01}, {"confidence": 1.01}, {"prompt_tokens": -1}, {"completion_tokens": -1}):
        name = next(iter(wrong))
        assert why(lambda wrong=wrong: ModelVerdict(model="m", answers=(1, 1), **wrong)).startswith(f"{name}: ")
    for counted in ("prompt_tokens", "completion_tokens"):
        assert ModelVerdict.model_validate({"model": "m", "answers": (1, 1), counted: 0})


def test_only_a_model_has_a_judges_verdict() -> None:
    verdict = {"model": "m", "answers": [1, 1]}
    assert judged(answer=1, kind="model", judge=verdict).judge == ModelVerdict(model="m", answers=(1, 1))
    assert judged(answer=1, kind="model").judge is None
    assert why(lambda: judged(answer=1, judge=verdict)) == "judge: of a human judgment; only a model has one"


def test_a_span_has_a_place_and_a_value() -> None:
    assert Span(completion="a", start=0, end=1, label="wrong").value == 0
    assert [Span(completion="a", start=0, end=1, label="x", value=value).value for value in (-1, 0, 1)] == [-1, 0, 1]
    for value in (-2, 2):
        assert why(lambda value=value: Span(completion="a", start=0, end=1, label="x", value=value)).startswith(
            "value: "
        )
    assert why(lambda: Span(completion="a", start=-1, end=1, label="x")).startswith("start: ")
    assert why(lambda: Span(completion="a", start=1, end=1, label="x")) == "a span ends after its start"


def test_each_comparison_of_a_ranking_has_what_was_said_of_its_two_answers() -> None:
    marks = {name: {"completion": name, "start": 0, "end": 1, "label": "wrong"} for name in "abc"}
    ranked = judged(
        ranking=[["a"], ["b"], ["c"]],
        shown=["a", "b", "c"],
        flags=["broken", "rude", "unsafe"],
        answer_flags={"a": ["unsafe"], "c": ["rude", "unsafe"]},
        criteria={"tone": 2, "stars": {"a": 5, "c": 1}, "fits": {"b": True}},
        spans=[marks["a"], marks["b"], marks["c"]],
    )
    ab, ac, bc = ranked.pairwise()
    assert (ab.flags, ac.flags, bc.flags) == (
        ("broken", "unsafe"),
        ("broken", "rude", "unsafe"),
        ("broken", "rude", "unsafe"),
    )
    assert ab.answer_flags == {"a": ("unsafe",)}
    assert ac.answer_flags == {"a": ("unsafe",), "c": ("rude", "unsafe")}
    assert bc.answer_flags == {"c": ("rude", "unsafe")}
    assert ab.criteria == {"tone": 2, "stars": {"a": 5}, "fits": {"b": True}}
    assert ac.criteria == {"tone": 2, "stars": {"a": 5, "c": 1}}
    assert bc.criteria == {"tone": 2, "stars": {"c": 1}, "fits": {"b": True}}
    assert [[span.completion for span in one.spans] for one in (ab, ac, bc)] == [["a", "b"], ["a", "c"], ["b", "c"]]


@pytest.mark.parametrize(
    ("answers", "turned", "consistent"),
    [
        ((1, 1), False, True),
        ((-1, -3), False, True),
        ((2, 1), False, True),
        ((1, -1), True, False),
        ((-2, 1), True, False),
        ((0, 0), False, True),
        ((0, 1), False, False),
        ((1, 0), False, False),
        ((0, -1), False, False),
        ((-1, 0), False, False),
        ((None, 1), False, False),
        ((-1, None), False, False),
        ((None, None), False, False),
    ],
)
def test_a_verdict_turns_or_stays_with_the_order(answers: Any, turned: bool, consistent: bool) -> None:
    verdict = ModelVerdict(model="m", answers=answers)
    assert verdict.turned is turned
    assert verdict.consistent is consistent


@pytest.mark.parametrize(("probability", "valid"), [(1e-9, True), (1, True), (0, False), (1.01, False)])
def test_a_probability_of_selection_is_above_0_and_at_most_1(probability: float, valid: bool) -> None:
    values = {"strategy": "random", "probability": probability}
    if valid:
        assert Selection.model_validate(values).probability == probability
    else:
        with pytest.raises(ValidationError, match="probability"):
            Selection.model_validate(values)


def test_a_comparison_is_one_in_any_order_and_spelling() -> None:
    asked, decomposed = ((Message(role="user", content=text),) for text in ("caf\u00e9?", "cafe\u0301?\r\n"))
    one = comparison_key(asked, (), ["a", "b\u00e9 "])
    assert one == comparison_key(decomposed, (), ["be\u0301", "a"])
    for other in (
        (asked, (), ["a", "c"]),
        ((USER,), (), ["a", "b\u00e9"]),
        (asked, ({"type": "function"},), ["a", "b\u00e9"]),
    ):
        assert one != comparison_key(*other)


@pytest.mark.parametrize("text", ["a\u2028b", "a\u2029b", "a\x85b", "a\r\nb\x0bc\x0cd\x1ee"])
def test_a_text_may_hold_any_end_of_a_line(text: str, tmp_path: Path) -> None:
    """Completions with U+2028 ended `tiebreak duel` and `rounds` with a traceback, and were left out of W&B's tables."""
    rows = [{"text": text, "n": n} for n in range(2)]
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, rows)
    assert list(read_jsonl(path)) == rows == contents.read_rows(path)
    trail, _ = audit.begin_trail(tmp_path)
    for _ in rows:
        audit.append(trail, {"event": "noted", "words": text})
    found = audit.verify(tmp_path)
    assert ([one["number"] for one in found.events], found.faults) == ([0, 1, 2], [])

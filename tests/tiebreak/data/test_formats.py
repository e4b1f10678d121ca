"""Ten rows in the shape of each popular data set, read to the right pairs, demonstrations and prompts.

The rows are made here, from ten questions with a good and a bad answer; what must come out is those, whatever the shape.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import SHARED_DATA, write_rows

from tiebreak.command.cli import main
from tiebreak.command.data import guess_kind
from tiebreak.data.cells import Cells, about
from tiebreak.data.columns import check_columns
from tiebreak.data.conversations import is_conversation, is_transcript, parse_cell, to_messages, to_tools
from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import (
    BAD_ROWS,
    Reading,
    Rules,
    faults_of,
    is_run,
    read,
    read_demonstrations,
    read_preferences,
    read_prompts,
    read_records,
    read_rows,
    settle,
)
from tiebreak.data.rows.content import AnswerRow, Omission, PreferenceRow, PromptRow, RatingRow
from tiebreak.data.rows.preferences import pair_up
from tiebreak.data.shapes import answers_to_judge, guess, interpret
from tiebreak.data.splits import is_held_out
from tiebreak.errors import DataError, RunError, counted
from tiebreak.files import write_jsonl
from tiebreak.messages import Message, Messages, prompt_id
from tiebreak.records import Demonstration, Preference, Prompt, RecordKind, Split

QUESTIONS = [
    ("Why do roots turn brown?", "The water is too warm. Cool it to 18 °C.", "Roots are like that."),
    ("How often does basil need food?", "Once a week, at half strength.", "Often."),
    ("What pH does lettuce like?", "Hold it between 5.5 and 6.2.", "Any pH will do."),
    ("My tank smells of eggs.", "That is hydrogen sulphide: add air.", "Tanks smell."),
    ("Is tap water fine for mint?", "Yes, once its chlorine has gone: let it stand a day.", "No idea."),
    ("How deep should net cups sit?", "So that the water touches their lowest centimetre.", "Deep."),
    ("Which light for seedlings?", "About 100 µmol/m²/s for 16 hours.", "A bright one."),
    ("Why are the leaves pale?", "They lack nitrogen or iron; look at the oldest ones first.", "It is winter."),
    ("When do I change the water?", "Every two weeks, or when the EC drifts.", "When it is dirty."),
    ("Can I reuse clay pebbles?", "Rinse them, boil them for ten minutes, dry them.", "Maybe."),
]
KEEP = Rules(validation_share=0.0)


def written(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def turn(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [written("user", question), written("assistant", answer)]


def source_of(folder: Path, make: Callable[..., Any]) -> str:
    """A file of the ten questions; `make` gives a row, or several."""
    rows: list[Any] = []
    for number, (question, good, bad) in enumerate(QUESTIONS):
        made = make(number, question, good, bad)
        rows += made if isinstance(made, list) else [made]
    return str(write_rows(folder / "rows.jsonl", rows))


def pairs_in(preferences: list[Preference]) -> list[tuple[str, str, str]]:
    assert all([message.role for message in one.prompt] == ["user"] for one in preferences)
    return [(one.prompt[0].content, one.chosen_text, one.rejected_text) for one in preferences]


# --- preferences -------------------------------------------------------------------------------------------------------

PREFERENCES: dict[str, tuple[Callable[..., Any], str]] = {
    "TRL, standard": (
        lambda n, q, good, bad: {"prompt": q, "chosen": good, "rejected": bad},
        "preferences (prompt, chosen, rejected)",
    ),
    "OpenAI's preferences": (
        lambda n, q, good, bad: {
            "input": {"messages": [written("user", q)], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [written("assistant", good)],
            "non_preferred_output": [written("assistant", bad)],
        },
        "preferences (input, preferred_output, non_preferred_output)",
    ),
    "TRL, conversational": (
        lambda n, q, good, bad: {
            "prompt": [written("user", q)],
            "chosen": [written("assistant", good)],
            "rejected": [written("assistant", bad)],
        },
        "preferences (prompt, chosen, rejected)",
    ),
    "TRL, implicit prompt": (
        lambda n, q, good, bad: {"chosen": chat(q, good), "rejected": chat(q, bad)},
        "whole conversations in chosen and rejected",
    ),
    "UltraFeedback": (
        lambda n, q, good, bad: {
            "prompt": q,
            "prompt_id": f"{n:064x}",
            "chosen": chat(q, good),
            "rejected": chat(q, bad),
            "messages": chat(q, good),
            "score_chosen": 8.5,
            "score_rejected": 6.0,
        },
        "UltraFeedback (prompt, whole conversations in chosen and rejected)",
    ),
    "HH-RLHF": (
        lambda n, q, good, bad: {
            "chosen": f"\n\nHuman: {q}\n\nAssistant: {good}",
            "rejected": f"\n\nHuman: {q}\n\nAssistant: {bad}",
        },
        "HH-RLHF (Human and Assistant in one text) in chosen and rejected",
    ),
    "HH-RLHF, prompt apart": (
        lambda n, q, good, bad: {
            "prompt": f"\n\nHuman: {q}\n\nAssistant:",
            "chosen": f" {good}",
            "rejected": f" {bad}",
        },
        "preferences (prompt, chosen, rejected)",
    ),
    "Orca": (
        lambda n, q, good, bad: {"system": "", "question": q, "chosen": good, "rejected": bad},
        "preferences (question, system, chosen, rejected)",
    ),
    "Stack Exchange": (
        lambda n, q, good, bad: {"qid": n, "question": q, "response_j": good, "response_k": bad},
        "preferences (question, response_j, response_k)",
    ),
    "DPO-mix": (
        lambda n, q, good, bad: {
            "dataset": "mix",
            "chosen": chat(q, good),
            "rejected": chat(q, bad),
            "chosen_rating": 5.0,
            "rejected_rating": 2.0,
        },
        "whole conversations in chosen and rejected",
    ),
    "ShareGPT preferences": (
        lambda n, q, good, bad: {
            "conversations": [turn("human", q)],
            "chosen": turn("gpt", good),
            "rejected": turn("gpt", bad),
        },
        "preferences (conversations, chosen, rejected)",
    ),
    "two responses, named": (
        lambda n, q, good, bad: {
            "prompt": q,
            **({"response_a": good, "response_b": bad} if n % 2 else {"response_a": bad, "response_b": good}),
            "winner": "model_a" if n % 2 else "model_b",
        },
        "pairs (response_a, response_b, winner)",
    ),
    "two responses, numbered from 0": (
        lambda n, q, good, bad: {
            "prompt": q,
            **({"response_0": good, "response_1": bad} if n % 2 else {"response_0": bad, "response_1": good}),
            "better_response_id": 1 - n % 2,
        },
        "pairs (response_0, response_1, better_response_id)",
    ),
    "Arena": (
        lambda n, q, good, bad: {
            "conversation_a": chat(q, bad),
            "conversation_b": chat(q, good),
            "winner": "model_b",
        },
        "pairs (conversation_a, conversation_b, winner)",
    ),
    "Arena, one column a winner": (
        lambda n, q, good, bad: {
            "model_a": "small",
            "model_b": "large",
            "prompt": json.dumps([q]),
            "response_a": json.dumps([good if n % 2 else bad]),
            "response_b": json.dumps([bad if n % 2 else good]),
            "winner_model_a": n % 2,
            "winner_model_b": 1 - n % 2,
            "winner_tie": 0,
        },
        "pairs (response_a, response_b, winner_model_a and winner_model_b)",
    ),
    "WebGPT": (
        lambda n, q, good, bad: {
            "question": {"dataset": "eli5", "id": str(n), "full_text": q},
            "quotes_0": {"title": [], "extract": []},
            "answer_0": good if n % 2 else bad,
            "score_0": 0.5 if n % 2 else -0.5,
            "answer_1": bad if n % 2 else good,
            "score_1": -0.5 if n % 2 else 0.5,
        },
        "pairs (answer_0, answer_1, score_0 and score_1)",
    ),
    "HelpSteer3": (
        lambda n, q, good, bad: {
            "domain": "general",
            "context": [written("user", q)],
            "response1": good,
            "response2": bad,
            "overall_preference": -2,
        },
        "pairs (response1, response2, overall_preference)",
    ),
    "HelpSteer ratings": (
        lambda n, q, good, bad: [
            {"prompt": q, "response": bad, "helpfulness": 1, "correctness": 4, "verbosity": 0},
            {"prompt": q, "response": good, "helpfulness": 4, "correctness": 4, "verbosity": 2},
        ],
        "ratings (prompt, response, helpfulness), paired by prompt",
    ),
    "KTO": (
        lambda n, q, good, bad: [
            {"prompt": q, "completion": good, "label": True},
            {"prompt": q, "completion": bad, "label": False},
        ],
        "KTO rows (prompt, completion, label), paired by prompt",
    ),
    "UltraFeedback, unbinarized": (
        lambda n, q, good, bad: {
            "instruction": q,
            "completions": [
                {"model": "a", "response": bad, "overall_score": 3.0},
                {"model": "b", "response": good, "overall_score": 8.0},
            ],
        },
        "rankings (instruction, completions by overall_score)",
    ),
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_pairs_of_every_shape(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, shape = PREFERENCES[name]
    source = source_of(tmp_path, make)
    found = read_preferences(source, KEEP)
    assert [(q, good.strip(), bad.strip()) for q, good, bad in pairs_in(found)] == QUESTIONS
    lines = capsys.readouterr().err.splitlines()
    rows = len(Path(source).read_text().splitlines())
    assert lines[0].removesuffix(", 10 preferences") == f"{source}: {rows} rows read as {shape}"
    assert all("ignored columns" in line for line in lines[1:])
    assert {one.split for one in found} == {"train"}


def test_every_pair_of_a_ranking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nectar: seven answers by rank; here four, of which two share the second rank."""
    ranks = {"best": 1, "good": 2, "as good": 2, "worst": 3}

    def make(n: int, q: str, *_: str) -> Any:
        answers = [{"answer": f"{text} {n}", "model": "m", "rank": float(rank)} for text, rank in ranks.items()]
        return {"prompt": f"\n\nHuman: {q}\n\nAssistant: ", "answers": answers[::-1], "num_responses": 4}

    found = read_preferences(source_of(tmp_path, make), KEEP)
    wanted = {(a, b) for a, b in combinations(ranks, 2) if ranks[a] < ranks[b]}  # all but good and as good: 5
    for n, (question, _, _) in enumerate(QUESTIONS):
        of_this = [(one.chosen_text, one.rejected_text) for one in found if one.prompt[0].content == question]
        assert set(of_this) == {(f"{a} {n}", f"{b} {n}") for a, b in wanted}
        assert len(of_this) == 5
    assert "10 rows read as rankings (prompt, answers by rank), 50 preferences" in capsys.readouterr().err


def test_a_list_of_worse_answers_is_a_preference_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def make(_: int, q: str, good: str, bad: str) -> Any:
        return {"prompt": q, "chosen": good, "rejected": [bad, "Never.", "Perhaps."]}

    source = source_of(tmp_path, make)
    wanted = [(q, good, other) for q, good, bad in QUESTIONS for other in (bad, "Never.", "Perhaps.")]
    assert pairs_in(read_preferences(source, KEEP)) == wanted
    shape = "preferences (prompt, chosen, rejected), each of rejected, 30 preferences"
    assert f"10 rows read as {shape}" in capsys.readouterr().err
    _, _, answers = answers_to_judge(Cells({"prompt": "q", "chosen": "x", "rejected": ["z", "a"]}, {}))
    assert sorted(answer[0].content for answer in answers) == ["a", "x", "z"]
    tied = results_of({"prompt": "q", "chosen": "x", "rejected": ["y", "z"], "tie": True}, "preferences")
    assert tied == 2 * results_of({"prompt": "q", "chosen": "x", "rejected": "y", "tie": True}, "preferences")
    for chosen in (["x"], ["x", "w"], [{"role": "assistant", "content": "x"}]):
        with pytest.raises(ValueError, match=r"^chosen: give one text: only rejected may be a list of texts"):
            results_of({"prompt": "q", "chosen": chosen, "rejected": ["y"]}, "preferences")
    with pytest.raises(ValueError, match=r"^message 1: "):
        results_of(
            {"prompt": "q", "chosen": "x", "rejected": ["y", {"role": "assistant", "content": "z"}]}, "preferences"
        )
    with pytest.raises(ValueError, match=r"^chosen: give one text"):
        results_of({"prompt": "q", "chosen": ["x"], "rejected": "y"}, "preferences")


def test_lists_beside_their_scores(tmp_path: Path) -> None:
    def make(_: int, q: str, good: str, bad: str) -> Any:
        return {"prompt": q, "generations": [bad, good], "ratings": [2.0, 4.5]}

    assert pairs_in(read_preferences(source_of(tmp_path, make), KEEP)) == QUESTIONS


def test_strength_of_a_signed_preference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """HelpSteer's −3 … 3: its size is the strength, its sign the side, and 0 is a tie, which is left out by name."""
    rows = [
        {"prompt": q, "response_1": good, "response_2": bad, "preference_strength": strength}
        for (q, good, bad), strength in zip(QUESTIONS, [-3, -2, -1, 0, 1, 2, 3, 0, -1, 1], strict=True)
    ]
    source = str(write_rows(tmp_path / "rows.jsonl", rows))
    found = read_preferences(source, KEEP)
    assert [one.strength for one in found] == [3, 2, 1, 1, 2, 3, 1, 1]
    first_is_better = [one.chosen_text in [good for _, good, _ in QUESTIONS] for one in found]
    assert first_is_better == [True, True, True, False, False, False, True, False]
    assert f"{source}: 2 left out: a tie" in capsys.readouterr().err


def test_several_turns_and_a_system_message(tmp_path: Path) -> None:
    before = [written("system", "Be brief."), *chat("Hello?", "Yes?")]
    text = "\n\nHuman: Hello?\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant: "
    rows = [
        {"prompt": "Why?", "chosen": [*before, *chat("Why?", "A.")], "rejected": [*before, *chat("Why?", "B.")]},
        {"chosen": f"{text}A.", "rejected": f"{text}B."},
        {"prompt": "Hello?\n<extra_id_1>Assistant\nYes?\n<extra_id_1>User\nWhy?", "chosen": "A.", "rejected": "B."},
        {"system": "Be brief.", "question": "Why?", "chosen": "A.", "rejected": "B."},
        {"system_prompt": "Be brief.", "prompt": [written("user", "Why?")], "chosen": "A.", "rejected": "B."},
    ]
    found = read_preferences(str(write_rows(tmp_path / "rows.jsonl", rows)), KEEP)
    turns = [("user", "Hello?"), ("assistant", "Yes?"), ("user", "Why?")]
    system = ("system", "Be brief.")
    expected = [[system, *turns], turns, turns, [system, turns[-1]], [system, turns[-1]]]
    assert [[(m.role, m.content) for m in one.prompt] for one in found] == expected
    assert {(one.chosen_text, one.rejected_text) for one in found} == {("A.", "B.")}


# --- conversations -----------------------------------------------------------------------------------------------------


def roles_and_texts(value: Any, *args: Any) -> list[tuple[str, Any]]:
    return [(message.role, message.content) for message in to_messages(value, *args)]


def test_conversations_as_they_are_written() -> None:
    assert roles_and_texts("a") == roles_and_texts(written("user", "a")) == roles_and_texts([written("user", "a")])
    assert roles_and_texts("a", "assistant") == [("assistant", "a")]
    assert roles_and_texts([turn(" GPT ", "a"), turn("human", "b")]) == [("assistant", "a"), ("user", "b")]
    assert roles_and_texts(" Human: a\n\nAssistant: b\nc\n\nHuman:d\n\nAssistant:  ") == [
        ("user", "a"),
        ("assistant", "b\nc"),
        ("user", "d"),
    ]
    assert roles_and_texts("Human: a\n\nAssistant: b\n\nHuman: ") == [("user", "a"), ("assistant", "b"), ("user", "")]
    assert roles_and_texts("a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc\n<extra_id_1>Assistant\n") == [
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
    ]
    for text in ("Human: a", "a\n\nAssistant: b", "a Human: b\n\nAssistant: c", "Human: a\nAssistant: b"):
        assert not is_transcript(text)
        assert roles_and_texts(text) == [("user", text)]


def test_keys_of_messages_by_our_names() -> None:
    keys = {"role": "who", "content": "text", "name": None, "weight": "w"}
    message = {"who": "user", "text": "a", "name": "someone", "content": "not this", "role": "system", "w": None}
    (found,) = to_messages(message, "user", keys)
    assert (found.role, found.content, found.name, found.weight) == ("user", "a", None, None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "neither a string nor a list of messages"),
        ([], "neither a string nor a list of messages"),
        ({}, "role: Field required"),
        ([written("user", "a"), {"role": "user"}, 7], "message 2: content: Field required"),
        ([written("user", "a"), 7], "message 2: "),
        ([{"role": "user"}], "content: Field required"),
        ([{"from": "human", "content": "a"}], "unknown message key 'from'; a message has role, content"),
        ([{"role": "user", "value": "a"}], "unknown message key 'value'; a message has role, content"),
        ([turn("robot", "a")], "from: unknown speaker 'robot'; supported: system, human"),
    ],
)
def test_what_is_no_conversation(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        to_messages(value)


def test_calls_in_sharegpt() -> None:
    call = {"name": "ec", "arguments": {"tank": 2}}
    for value in (call, [call], json.dumps(call), json.dumps([call])):
        (found,) = to_messages([{"from": "function_call", "value": value}])
        assert (found.role, found.content) == ("assistant", "")
        assert [(c.function.name, c.function.arguments) for c in found.tool_calls] == [("ec", {"tank": 2})]


def test_tools_as_they_are_written() -> None:
    bare, wrapped = {"name": "t", "parameters": {}}, {"type": "function", "function": {"name": "t", "parameters": {}}}
    for value in ([bare], [wrapped], json.dumps([bare]), [json.dumps(wrapped)], (bare,)):
        assert to_tools(value) == (wrapped,)
    assert to_tools(None) == to_tools([]) == to_tools("") == to_tools(" ") == to_tools("[]") == ()
    schema = "tools: each must be a JSON schema with a name"
    for value, message in (
        ("7", "tools: a int, not a list of JSON schemas"),
        ('"x"', "tools: a str, not a list of JSON schemas"),
        (bare, "tools: a dict, not a list of JSON schemas"),
        ("x", "tools: "),
        *((one, schema) for one in ([7], [{}], [{"function": 7}], [{"function": {"name": 7}}], [bare, {"name": 7}])),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            to_tools(value)


def test_what_is_a_list_of_turns() -> None:
    sure = [[written("user", "a")], [turn("human", "a")], [{"role": "x"}, {"from": "y"}], ({"role": "x"},)]
    others = [[], "ab", None, {"role": "x"}, [written("user", "a"), 7], [{"content": "a"}], [written("user", "a"), {}]]
    assert [is_conversation(value) for value in (*sure, *others)] == [True] * len(sure) + [False] * len(others)


def test_a_cell_holds_a_list_where_its_column_is_one_of_lists() -> None:
    conversation = json.dumps(chat("a", "b"))
    assert parse_cell("prompt", f" {conversation}") == parse_cell("x", conversation) == chat("a", "b")
    assert parse_cell("tags", '["a"]') == ["a"]
    for column, text in (
        ("prompt", '["a"]'),
        ("tags", '{"a": 1}'),
        ("tags", "[a]"),
        ("tags", "a"),
        ("tags", "7"),
        ("tags", 100_000 * "["),
        ("prompt", '[{"a": 1}]'),
        ("tags", ""),
    ):
        assert parse_cell(column, text) == text


# --- demonstrations ----------------------------------------------------------------------------------------------------

DEMONSTRATIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "TRL, standard": (lambda n, q, good, bad: {"prompt": q, "completion": good}, "prompt and completion"),
    "OpenAI": (lambda n, q, good, bad: {"messages": chat(q, good)}, "conversations (messages)"),
    "OpenAI, parts": (
        lambda n, q, good, bad: {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": q}]},
                {"role": "assistant", "content": [{"type": "text", "text": good}], "tool_calls": None},
            ]
        },
        "conversations (messages)",
    ),
    "ShareGPT": (
        lambda n, q, good, bad: {"id": f"x{n}", "conversations": [turn("human", q), turn("gpt", good)]},
        "ShareGPT (conversations of from and value)",
    ),
    "Alpaca": (
        lambda n, q, good, bad: {"instruction": q, "input": "", "output": good, "text": "### Instruction: …"},
        "Alpaca (instruction, input, output)",
    ),
    "Dolly": (
        lambda n, q, good, bad: {"instruction": q, "context": "", "response": good, "category": "open_qa"},
        "instruction and response",
    ),
    "GSM8K": (lambda n, q, good, bad: {"question": q, "answer": good}, "question and answer"),
    "OpenOrca": (
        lambda n, q, good, bad: {"id": "x", "system_prompt": "", "question": q, "response": good},
        "question and response",
    ),
    "HH transcripts": (
        lambda n, q, good, bad: {"messages": f"\n\nHuman: {q}\n\nAssistant: {good}"},
        "Human and Assistant in one text (messages)",
    ),
    "UltraFeedback's SFT rows": (
        lambda n, q, good, bad: {
            "prompt": q,
            "messages": chat(q, good),
            "chosen": chat(q, good),
            "rejected": chat(q, bad),
        },
        "conversations (messages)",
    ),
    "our records": (
        lambda n, q, good, bad: {
            "prompt": {"id": "prompt-x", "messages": [written("user", q)], "split": "train", "source": "", "tags": []},
            "completion": good,
        },
        "prompt and completion",
    ),
}


def shown_in(demonstrations: list[Demonstration]) -> list[tuple[str, str]]:
    assert all([message.role for message in one.prompt.messages] == ["user"] for one in demonstrations)
    assert all(isinstance(one.completion, str) for one in demonstrations)
    return [(one.prompt.messages[0].content, one.text) for one in demonstrations]


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_demonstrations_of_every_shape(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, shape = DEMONSTRATIONS[name]
    source = source_of(tmp_path, make)
    assert shown_in(read_demonstrations(source, KEEP)) == [(q, good) for q, good, _ in QUESTIONS]
    assert capsys.readouterr().err.splitlines()[0] == f"{source}: 10 rows read as {shape}"


def test_alpacas_input_and_history(tmp_path: Path) -> None:
    row = {"instruction": "Shorten it.", "input": "A long text.", "output": "Text.", "history": [["Hi.", "Hello."]]}
    (shown,) = read_demonstrations(str(write_rows(tmp_path / "rows.jsonl", [row])), KEEP)
    assert [(m.role, m.content) for m in shown.prompt.messages] == [
        ("user", "Hi."),
        ("assistant", "Hello."),
        ("user", "Shorten it.\n\nA long text."),
    ]


def test_sharegpt_with_tools(tmp_path: Path) -> None:
    call = json.dumps({"name": "ec", "arguments": {"tank": 2}})
    turns = [turn("human", "EC?"), turn("function_call", call), turn("observation", "1.8"), turn("gpt", "It is 1.8.")]
    row = {"conversations": turns, "system": "Measure.", "tools": json.dumps([{"name": "ec", "parameters": {}}])}
    (shown,) = read_demonstrations(str(write_rows(tmp_path / "rows.jsonl", [row])), KEEP)
    assert [m.role for m in shown.prompt.messages] == ["system", "user", "assistant", "tool"]
    assert shown.prompt.messages[2].tool_calls[0].function.arguments == {"tank": 2}
    assert shown.prompt.tools[0]["function"]["name"] == "ec"
    assert shown.completion == "It is 1.8."


def test_kto_rows_teach_their_good_answers_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = source_of(tmp_path, PREFERENCES["KTO"][0])
    assert shown_in(read_demonstrations(source, KEEP)) == [(q, good) for q, good, _ in QUESTIONS]
    assert "10 left out: labelled false (an undesirable answer)" in capsys.readouterr().err


# --- prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["TRL, standard", "TRL, implicit prompt", "UltraFeedback", "HH-RLHF", "HH-RLHF, prompt apart", "Orca"]
)
def test_prompts_of_preferences(name: str, tmp_path: Path) -> None:
    source = source_of(tmp_path, PREFERENCES[name][0])
    found = read_prompts(source, ["train"], KEEP)
    assert [[(m.role, m.content) for m in one.messages] for one in found] == [[("user", q)] for q, _, _ in QUESTIONS]


@pytest.mark.parametrize("name", ["OpenAI", "ShareGPT", "Alpaca", "GSM8K", "our records"])
def test_prompts_of_demonstrations(name: str, tmp_path: Path) -> None:
    source = source_of(tmp_path, DEMONSTRATIONS[name][0])
    found = read_prompts(source, ["train"], KEEP)
    assert [[(m.role, m.content) for m in one.messages] for one in found] == [[("user", q)] for q, _, _ in QUESTIONS]


def test_pairs_to_label(tmp_path: Path) -> None:
    rows = [{"prompt": q, "response_a": good, "response_b": bad} for q, good, bad in QUESTIONS]
    found = read_pairs(str(write_rows(tmp_path / "rows.jsonl", rows)))
    assert [(p.messages[0].content, *(c.text for c in p.completions)) for p in found] == QUESTIONS
    assert {c.policy for p in found for c in p.completions} == {"unknown"}


def test_a_nul_in_a_pair_is_a_named_row(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "response_a": "b", "response_b": "c"},
        {"prompt": "a", "response_a": "b\0", "response_b": "c"},
    ]
    source = str(write_rows(tmp_path / "rows.jsonl", rows))
    with pytest.raises(DataError) as caught:
        read_pairs(source)
    assert caught.value.faults == [f"{source}:2: holds a NUL character, which a label store cannot keep: remove it"]


# --- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "row", "fault"),
    [
        ("demonstrations", {"prompt": "a", "response": "b", "output": "c"}, "columns: {completion: response}"),
        ("demonstrations", {"messages": chat("a", "b"), "completion": "c"}, "columns: {messages: messages}"),
        ("demonstrations", {"question": "a", "query": "b", "answer": "c"}, "columns: {prompt: question}"),
        ("demonstrations", {"prompt": "a", "completion": "b", "label": 1}, "columns: {label: label} reads 1 as good"),
        ("demonstrations", {"prompt": "a", "completion": "b", "weight": 0.5}, "weight: 0.5, but every demonstration"),
        ("demonstrations", {"prompt": "a", "chosen": "b", "rejected": "c"}, "columns: {completion: chosen}"),
        ("demonstrations", {"text": "### Human: a ### Assistant: b"}, "a 'text' column holds conversations that"),
        ("demonstrations", {"title": "a", "body": "b"}, "columns: {completion: …}"),
        ("demonstrations", {"prompt": "a", "completion": "b", "audio": ["x"]}, "only text and images are read"),
        ("demonstrations", {"prompt": "a", "completion": "b", "chat_template_kwargs": {"x": 1}}, "template_arguments"),
        (
            "demonstrations",
            {"system": "x", "messages": [written("system", "y"), *chat("a", "b")]},
            "differ: keep one of them",
        ),
        ("demonstrations", {"conversations": [turn("robot", "a"), turn("gpt", "b")]}, "unknown speaker 'robot'"),
        ("demonstrations", {"conversations": [turn("human", "a")]}, "must end with the assistant's answer"),
        ("preferences", {"prompt": "a", "response_a": "b", "response_b": "c"}, "add 'preferred' (response_a,"),
        ("preferences", {"prompt": "a", "response_a": "b", "response_b": "c", "winner": 1}, "does not say which of"),
        ("preferences", {"prompt": "a", "response_0": "b", "response_1": "c", "response_2": "d", "label": 1}, "name two"),
        ("preferences", {"prompt": "a", "response": "b", "score": 1, "answer": "c", "rating": 2}, None),
        ("preferences", {"prompt": "x", "chosen": chat("a", "b"), "rejected": chat("a", "c")}, "the prompt differs from"),
        ("preferences", {"chosen": chat("a", "b"), "rejected": chat("a", "b")}, "chosen and rejected are the same"),
        ("preferences", {"chosen": [*chat("a", "b"), *chat("c", "d")], "rejected": [*chat("a", "b"), *chat("e", "f")]},
         "later turns are the user's"),
        ("prompts", {"title": "a"}, "columns: {prompt: …}"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_with_the_key(
    tmp_path: Path, wanted: Any, row: Any, fault: str | None
) -> None:
    reading = read(str(write_rows(tmp_path / "rows.jsonl", [row])), wanted)
    if fault is None:
        assert not reading.bad
    else:
        (bad,) = reading.bad
        assert fault in bad.reason


def test_kto_rows_that_pair_nothing_are_refused_by_name(tmp_path: Path) -> None:
    rows = [{"prompt": q, "completion": good, "label": True} for q, good, _ in QUESTIONS]
    with pytest.raises(
        DataError, match=r"10: prompts without two answers .* are for KTO: tiebreak dpo --algorithm kto"
    ):
        read_preferences(str(write_rows(tmp_path / "rows.jsonl", rows)))


# --- shapes by themselves ----------------------------------------------------------------------------------------------


def results_of(row: dict[str, Any], wanted: RecordKind, columns: dict[str, str | None] | None = None) -> list[Any]:
    """What a row holds, in short: prompts, (prompt, answer), (prompt, chosen, rejected, strength), or why nothing."""

    def short(messages: Messages) -> Any:
        texts = [f"{m.role[0]}:{m.content}" for m in messages]
        return texts[0] if len(texts) == 1 else texts

    found = []
    for one in interpret(Cells(row, columns or {}), wanted).results:
        if isinstance(one, Omission):
            found.append(one.reason)
        elif isinstance(one, PreferenceRow):
            found.append((short(one.prompt), short(one.chosen), short(one.rejected), one.strength))
        elif isinstance(one, RatingRow):
            found.append((short(one.prompt), short(one.answer), one.score))
        else:
            found.append((short(one.prompt), short(one.answer)) if isinstance(one, AnswerRow) else short(one.prompt))
    return found


@pytest.mark.parametrize(
    ("columns", "value", "expected"),
    [
        (("response_a", "response_b", "winner"), value, expected)
        for expected, values in (
            ("first", ("a", "A ", "response_a", "model_a", "Response A", "first")),
            ("second", ("b", "response_b", "model_b", "response b", "second")),
            ("tie", ("tie", "Tie (bothbad)", "both", "neither", "none", "draw")),
        )
        for value in values
    ]
    + [
        (("response_0", "response_1", "label"), 0, "first"),
        (("response_0", "response_1", "label"), "1", "second"),
        (("response_1", "response_2", "preferred"), 0, "tie"),
        (("response_1", "response_2", "preferred"), 1, "first"),
        (("response1", "response2", "choice"), "2", "second"),
        (("response1", "response2", "choice"), "model_1", "first"),
        (("output_1", "output_2", "preference"), 2, "second"),
    ],
)
def test_which_of_two_answers_is_the_better_one(columns: tuple[str, str, str], value: Any, expected: str) -> None:
    first, second, winner = columns
    found = results_of({"prompt": "q", first: "x", second: "y", winner: value}, "preferences")
    sides = {"first": ("u:q", "a:x", "a:y", None), "second": ("u:q", "a:y", "a:x", None), "tie": "a tie"}
    assert found == [sides[expected]]


@pytest.mark.parametrize("value", ["c", "0", 3, "model_x", "response_1", True])
def test_a_winner_that_is_none_is_refused(value: Any) -> None:
    row = {"prompt": "q", "response_a": "x", "response_b": "y", "winner": value}
    with pytest.raises(
        ValueError, match="does not say which of response_a and response_b is better: write their names"
    ):
        results_of(row, "preferences")


def test_signed_preferences_by_hand() -> None:
    def found(value: Any, **sides: Any) -> list[Any]:
        row = {"context": "q", "response1": "x", "response2": "y", **sides, "overall_preference": value}
        if "response1" in sides:
            del row["context"]
        return results_of(row, "preferences")

    assert found(-2) == [("u:q", "a:x", "a:y", 2)]
    assert found("0.5") == [("u:q", "a:y", "a:x", None)]  # a mean below "slightly better"
    assert found(0) == found("tie") == ["a tie"]
    # whole conversations keep the strength
    whole = {"response1": chat("q", "x"), "response2": chat("q", "y")}
    assert found(3, **whole) == [("u:q", "a:y", "a:x", 3)]
    for value in ("much", math.nan, "inf", [1]):
        with pytest.raises(ValueError, match=r"^overall_preference: .* is not a number$"):
            found(value)


def test_pairs_of_whole_conversations_and_their_prompt() -> None:
    row = {"conversation_a": chat("q", "x"), "conversation_b": chat("q", "y"), "winner": "model_b"}
    assert results_of(row, "preferences") == [("u:q", "a:y", "a:x", None)]
    assert results_of({**row, "prompt": "q"}, "preferences") == [("u:q", "a:y", "a:x", None)]
    with pytest.raises(ValueError, match="the prompt differs from the beginning of chosen and rejected"):
        results_of({**row, "prompt": "other"}, "preferences")
    beside = {"messages": [written("user", "q")], "response_a": "x", "response_b": "y", "winner": "a"}
    assert results_of(beside, "preferences") == [("u:q", "a:x", "a:y", None)]
    with pytest.raises(ValueError, match=r"no column 'chosen'|no column that names the better one"):
        results_of({"response_a": "x", "response_b": "y", "winner": "a"}, "preferences")
    three = {"prompt": "q", "response_0": "x", "response_1": "y", "response_2": "z", "label": 1}
    with pytest.raises(
        ValueError, match=r"^more than two answers \(response_0, response_1, response_2\): name two with"
    ):
        results_of(three, "preferences")


def test_what_two_conversations_share_is_their_prompt() -> None:
    def found(chosen: Any, rejected: Any, **row: Any) -> Any:
        return results_of({**row, "chosen": chosen, "rejected": rejected}, "preferences")

    system, q, x, y = written("system", "s"), written("user", "q"), written("assistant", "x"), written("assistant", "y")
    more = written("user", "more")
    assert found([q, x], [q, y]) == [("u:q", "a:x", "a:y", None)]
    assert found([q, x, more, x], [q, x, more, y]) == [(["u:q", "a:x", "u:more"], "a:x", "a:y", None)]
    # both begin their answer with the same remark
    assert found([q, x, x], [q, x, y]) == [("u:q", ["a:x", "a:x"], ["a:x", "a:y"], None)]
    assert found([q, x, x], [q, x]) == [("u:q", ["a:x", "a:x"], "a:x", None)]
    # the prompt beside them: all of it, its last turn, or all but its system message
    for prompt in ("q", " q ", [system, q], [written("system", "other"), q]):
        assert found([system, q, x], [system, q, y], prompt=prompt) == [(["s:s", "u:q"], "a:x", "a:y", None)]
    for prompt in ("more", "q", [q, x, more], [system, q, x, more]):
        assert found([q, x, more, x], [q, x, more, y], prompt=prompt) == [
            (["u:q", "a:x", "u:more"], "a:x", "a:y", None)
        ]
    for prompt in ("other", [x, more], [q, more]):
        with pytest.raises(ValueError, match="the prompt differs from the beginning of chosen and rejected"):
            found([q, x, more, x], [q, x, more, y], prompt=prompt)
    with pytest.raises(ValueError, match="chosen and rejected are the same"):
        found([q, x], [q, x])
    with pytest.raises(ValueError, match="no column 'prompt', and chosen and rejected share no first messages"):
        found([q, x], [more, x])
    with pytest.raises(ValueError, match="one of chosen and rejected is a whole conversation, but the other is only"):
        found([q, x], "y", prompt="q")
    with pytest.raises(ValueError, match="one of chosen and rejected is a whole conversation, but the other is only"):
        found("x", [q, y], prompt="q")
    # answers alone, as text and as messages
    assert (
        found("x", "y", prompt="q")
        == found([x], [y], prompt=[q])
        == found(x, y, prompt="q")
        == [("u:q", "a:x", "a:y", None)]
    )
    assert found([x], [y], conversations=[q]) == found("x", "y", context="q") == [("u:q", "a:x", "a:y", None)]
    assert found("x", "y", question="q", system="s") == [(["s:s", "u:q"], "a:x", "a:y", None)]


ODD: tuple[Any, ...] = (None, "", 0, 10**400, True, [], {}, [None], ["x"], [{}], [{"role": "user"}], {"a": 1}, "\ud800")
"""Values that are no column's."""


def faulty(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row with a fault in one column: it is missing, or holds an odd value, itself or in its first element."""
    for column, held in row.items():
        yield {name: value for name, value in row.items() if name != column}
        yield from ({**row, column: odd} for odd in ODD)
        if isinstance(held, list):
            yield {**row, column: held[1:]}
            yield from ({**row, column: [odd, *held[1:]]} for odd in ODD)
        if isinstance(held, list) and isinstance(held[0], dict):
            yield from ({**row, column: [{**held[0], key: odd}, *held[1:]]} for key in held[0] for odd in ODD)


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_fault_in_the_first_row_is_that_rows(name: str, tmp_path: Path) -> None:
    """Whatever it is: the rows after it are read as they are without it, and as the same kind."""
    make, _ = PREFERENCES[name]
    file = tmp_path / "rows.jsonl"
    made = [make(n, *QUESTIONS[n]) for n in range(3)]
    [first, *others], second, third = (one if isinstance(one, list) else [one] for one in made)
    drop = Rules(validation_share=0.0, on_bad_row="drop")
    write_rows(file, [*second, *third])
    kinds: tuple[RecordKind, ...] = ("preferences", "prompts")
    expected = {wanted: [one.record for one in read(str(file), wanted, drop).drafts] for wanted in kinds}
    assert pairs_in(expected["preferences"])[0][0] == QUESTIONS[1][0]
    kind = guess_kind(str(file))
    count = 0
    for row in faulty(first):
        write_rows(file, [row, *others, *second, *third])
        for wanted in kinds:
            reading = read(str(file), wanted, drop)
            later = [one.record for one in reading.drafts if not one.where.endswith((":1", ":2")[: 1 + len(others)])]
            assert later == expected[wanted], (row, wanted)
        with contextlib.suppress(DataError):
            assert guess_kind(str(file)) == kind
        with contextlib.suppress(DataError):
            read_pairs(str(file))
        count += 1
    assert count >= 2 * len(ODD)


@pytest.mark.parametrize(
    ("ratings", "fault"),
    [([5, None], "ratings: None is not a number"), ([5], "generations holds 2 answers and ratings 1")],
)
def test_a_first_row_whose_ranking_has_a_fault_is_named(
    ratings: list[Any], fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"instruction": f"Q{n}?", "generations": ["a", "b"], "ratings": [5, 1]} for n in range(3)]
    rows[0]["ratings"] = ratings
    write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(SystemExit) as stopped:
        main(["data", str(tmp_path / "rows.jsonl")])
    shown = capsys.readouterr()
    assert f"rows.jsonl:1: {fault}" in shown.out
    assert (stopped.value.code, shown.err) == (1, "")


def test_rankings_by_hand() -> None:
    def found(**row: Any) -> list[Any]:
        return results_of({"prompt": "q", **row}, "preferences")

    best = [("u:q", "a:x", "a:y", None)]
    by_rank = [{"text": "y", "rank": 2}, {"text": "x", "rank": 1}]
    assert found(answers=by_rank) == best
    assert found(responses=[{"content": "y", "score": "1"}, {"content": "x", "score": 2.5}]) == best
    assert found(completions=["y", "x"], scores=[0, 1]) == found(generations=["y", "x"], ranks=[2, 1]) == best
    three = found(responses=["z", "x", "y"], ratings=[1, 3, 2])
    assert three == [("u:q", "a:x", "a:y", None), ("u:q", "a:x", "a:z", None), ("u:q", "a:y", "a:z", None)]
    assert found(responses=["x", "y"], ratings=[1, 1]) == ["no answer is better than another"]
    assert found(responses=["x", " x"], ratings=[1, 2]) == ["two equal answers with different ratings"]
    assert found(responses=["x", "x"], ratings=[1, 1]) == ["no answer is better than another"]
    with pytest.raises(ValueError, match=r"^responses holds 2 answers and ratings 3$"):
        found(responses=["x", "y"], ratings=[1, 2, 3])
    for value in ("high", None, math.nan):
        with pytest.raises(ValueError, match=r"^ratings: .* is not a number$"):
            found(responses=["x", "y"], ratings=[1, value])
    for row in (
        {"responses": [], "ratings": []},
        {"responses": ["x", "y"]},
        {"responses": ["x", {"text": "y"}], "ratings": [1, 2]},
        {"responses": [{"text": "x", "score": 1}, {"text": "y"}]},
        {"responses": [{"text": "x", "score": 1}, {"note": "y", "score": 2}]},
        {"responses": "xy", "ratings": [1, 2]},
    ):
        with pytest.raises(ValueError, match="no column 'chosen': a preference needs prompt, chosen and rejected"):
            found(**row)
    with pytest.raises(ValueError, match="no column 'chosen'"):
        results_of({"answers": by_rank}, "preferences")
    beside = {"messages": [written("user", "q")], "responses": ["x", "y"], "scores": [2, 1]}
    assert results_of(beside, "preferences") == best


def test_ratings_by_hand() -> None:
    def found(row: dict[str, Any], **columns: str) -> list[Any]:
        return results_of({"prompt": "q", **row}, "preferences", dict(columns))

    assert found({"response": "x", "score": "4.5"}) == [("u:q", "a:x", 4.5)]
    assert found({"answer": "x", "rank": 2, "rating": 3}) == [("u:q", "a:x", 3.0)]
    assert (
        found({"completion": "x", "label": True}) == found({"output": "x", "label": " True "}) == [("u:q", "a:x", 1.0)]
    )
    assert found({"completion": "x", "label": "false"}) == [("u:q", "a:x", 0.0)]
    assert found({"completion": "x", "label": 1.0}, label="label") == [("u:q", "a:x", 1.0)]
    assert found({"completion": "x", "label": False, "score": 3}) == [("u:q", "a:x", 3.0)]
    with pytest.raises(ValueError, match=r"^score: nan is not a number$"):
        found({"completion": "x", "score": math.nan})
    for row in ({"response": "x"}, {"score": 3}, {"completion": "x", "label": "so-so"}):
        with pytest.raises(ValueError, match="no column 'chosen'"):
            found(row)
    pairs = pair_up(
        [RatingRow(to_messages("q"), (), to_messages(text, "assistant"), n) for n, text in enumerate("zyx")]
    )
    assert [(one.chosen[0].content, one.rejected[0].content) for one in pairs if isinstance(one, PreferenceRow)] == [
        ("x", "y"),
        ("x", "z"),
        ("y", "z"),
    ]


@pytest.mark.parametrize("label", [0, 1, 0.0, 1.0, "0", "1", " 1.0"])
def test_a_number_as_a_label_is_asked_about(label: Any) -> None:
    """Floats too, as Arrow and pandas make them of numbers beside a null."""
    row = {"prompt": "q", "completion": "x", "label": label}
    for wanted in ("demonstrations", "preferences"):
        with pytest.raises(
            ValueError,
            match=f"^label: {label} may rate the answer or mean something else: columns: {{label: label}} reads",
        ):
            results_of(row, wanted)
    good = float(label) == 1
    assert results_of(row, "demonstrations", {"label": "label"}) == [
        ("u:q", "a:x") if good else "labelled false (an undesirable answer)"
    ]
    assert results_of(row, "demonstrations", {"label": None}) == [("u:q", "a:x")]
    assert results_of({**row, "label": "ph"}, "demonstrations") == [("u:q", "a:x")]


def test_prompts_and_what_stands_beside_them() -> None:
    def found(**row: Any) -> Any:
        (one,) = results_of(row, "prompts")
        return one

    assert found(prompt="q", question="other") == found(query="q") == found(problem="q") == found(context="q") == "u:q"
    assert found(instruction="i", input="m") == found(instruction="i", context="m") == "u:i\n\nm"
    assert found(instruction="i", input=" ") == found(instruction="i", input=["m"]) == "u:i"
    assert found(prompt="q m", input="m") == "u:q m"
    assert found(question="q", history=[["a", "b"]]) == ["u:a", "a:b", "u:q"]
    assert found(instruction="i", history=[["a", "b"], ["c", "d"]]) == ["u:a", "a:b", "u:c", "a:d", "u:i"]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert found(question="q", history=turns) == ["u:a", "a:b", "u:q"]
    for history in (["ab"], [["a"]], [["a", "b", "c"]], [["a", 1]], [["a", "b"], ["c"]]):
        with pytest.raises(ValueError, match="history: neither messages nor pairs"):
            found(instruction="i", history=history)
    assert found(instruction="i", history="ab") == found(instruction="i", history=[]) == "u:i"
    assert (
        found(prompt="q", system="s") == found(prompt=[written("system", "s"), written("user", "q")]) == ["s:s", "u:q"]
    )
    assert found(prompt=[written("system", " s"), written("user", "q")], system="s ") == ["s: s", "u:q"]
    assert found(prompt="q", system=" ") == found(prompt="q", system=7) == "u:q"
    assert found(messages=chat("q", "x")) == found(messages=[written("user", "q")]) == "u:q"
    twice = [*chat("q", "x"), written("user", "more"), written("assistant", "a"), written("assistant", "b")]
    assert found(messages=twice) == ["u:q", "a:x", "u:more"]
    assert found(chosen=chat("q", "x"), rejected=chat("q", "y")) == "u:q"
    for row, message in (
        (
            {"question": "q", "query": "p"},
            "'question' and 'query' could each be the prompt: name one with columns: {prompt",
        ),
        (
            {"instruction": "i", "input": "m", "context": "n"},
            "'input' is a column beside 'instruction': columns: {input: input}",
        ),
        ({"prompt": "q", "input": "m"}, "'input' is a column beside 'prompt': columns: {input: input}"),
        ({"prompt": "q", "system": "s", "system_prompt": "t"}, None),
        (
            {"prompt": [written("system", "t"), written("user", "q")], "system": "s"},
            "column 'system' and the conversation's",
        ),
        (
            {"title": "q"},
            "no column 'prompt' (a string, or messages with role and content); the columns are title: name",
        ),
        ({}, "no column 'prompt' (a string, or messages with role and content); the columns are none: name"),
        ({"prompt": None, "title": "q"}, "column 'prompt' is empty in this row"),
        (
            {"prompt": "q", "video": "x"},
            "column 'video': only text and images are read; columns: {video: null} leaves it out",
        ),
    ):
        if message is None:
            assert results_of(row, "prompts") == [["s:s", "u:q"]]
            continue
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            results_of(row, "prompts")
    assert results_of({"prompt": "q", "images": []}, "prompts") == ["u:q"]


def test_answers_and_what_stands_beside_them() -> None:
    def found(columns: dict[str, str | None] | None = None, **row: Any) -> Any:
        (one,) = results_of(row, "demonstrations", columns)
        return one

    assert found(prompt="q", completion="x", response="y") == found(question="q", solution="x") == ("u:q", "a:x")
    assert found(messages=chat("q", "x")) == found(conversation=chat("q", "x")) == ("u:q", "a:x")
    both = {"messages": chat("q", "x"), "completion": "y", "prompt": "p"}
    assert found({"messages": "messages"}, **both) == ("u:q", "a:x")
    assert found({"completion": "completion"}, **both) == ("u:p", "a:y")
    assert found({"messages": "messages", "completion": "completion"}, **both) == ("u:q", "a:x")
    # a list that is not a conversation is another column, but under our name it is one that is broken
    assert found(conversation=["q"], prompt="q", completion="x") == ("u:q", "a:x")
    assert found(messages=chat("q", "x"), label=True) == ("u:q", "a:x")
    assert found(messages=chat("q", "x"), label=False) == "labelled false (an undesirable answer)"
    for row, message in (
        (both, "'messages' and 'completion' could each be the conversation to learn from"),
        ({"messages": [written("user", "q")]}, "messages must end with the assistant's answer"),
        ({"messages": [written("assistant", "q")]}, "messages has an answer but no prompt"),
        ({"messages": ["q"]}, "column 'messages': a list of texts, not of messages"),
        ({"text": "x"}, "a 'text' column holds conversations that are rendered already"),
        (
            {"text": "x", "question": "q"},
            "no column 'completion' or 'messages'; the columns are text, question: name yours",
        ),
        (
            {"completion": "x"},
            "no column 'prompt' (a string, or messages with role and content); the columns are completion",
        ),
        (
            {"prompt": "q", "chosen": "x", "rejected": "y"},
            "these are preferences: 'tiebreak dpo' takes them; columns: {com",
        ),
        ({"prompt": "q", "chosen": "x"}, "no column 'completion' or 'messages'; the columns are prompt, chosen"),
        ({"title": "x"}, "no column 'completion' or 'messages'; the columns are title"),
        ({"prompt": "q", "rejected": None}, "column 'rejected' is empty in this row"),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            results_of(row, "demonstrations")


def test_what_a_preference_lacks() -> None:
    for row, message in (
        (
            {"prompt": "q", "chosen": "x"},
            "no column 'rejected': a preference needs prompt, chosen and rejected; the columns",
        ),
        ({"prompt": "q", "rejected": "x"}, "no column 'chosen': "),
        ({"title": "x"}, "no column 'chosen': "),
        (
            {"prompt": "q", "response_a": "x", "response_b": "y"},
            "response_a and response_b, and no column that names the",
        ),
        ({"prompt": "q", "response_a": "x"}, "no column 'chosen': "),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            results_of(row, "preferences")


def test_answers_to_judge() -> None:
    def found(**row: Any) -> Any:
        _, asked, answers = answers_to_judge(Cells(row, {}))
        return [m.content for m in asked.prompt], [m.content for answer in answers for m in answer]

    assert found(prompt="q", response_a="x", response_b="y") == (["q"], ["x", "y"])
    assert found(messages=[written("user", "q")], output_1="x", output_2="y") == (["q"], ["x", "y"])
    for row, message in (
        ({"prompt": "q", "response_a": "x"}, "no two answers: "),
        ({"prompt": "q", "answers": ["x"]}, "no two answers: "),
        ({"response_a": "x", "response_b": "y"}, "no column 'prompt' "),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            found(**row)


def test_tools_by_either_name() -> None:
    tool = {"type": "function", "function": {"name": "t"}}
    for row in ({"tools": [tool]}, {"functions": [{"name": "t"}]}, {"tools": [tool], "functions": [{"name": "u"}]}):
        (one,) = interpret(Cells({"prompt": "q", **row}, {}), "prompts").results
        assert isinstance(one, PromptRow)
        assert one.tools == (tool,)


def test_what_a_row_is_most_likely_for() -> None:
    for expected, rows in {
        "preferences": [
            {"prompt": "q", "chosen": "x", "rejected": "y"},
            {"response_a": "x", "response_b": "y", "completion": "z"},
            {"prompt": "q", "responses": ["x", "y"], "scores": [1, 2]},
        ],
        "demonstrations": [{"messages": []}, {"prompt": "q", "solution": "x"}, {"answers": ["x"], "answer": "y"}],
        "prompts": [{"prompt": "q"}, {"chosen": "x"}, {"responses": ["x", "y"]}, {}],
    }.items():
        for row in rows:
            assert guess(Cells(row, {})) == expected, row


# --- columns -----------------------------------------------------------------------------------------------------------


def test_answers_of_one_prompt_name_one_split_and_carry_no_columns_of_pairs(tmp_path: Path) -> None:
    def rows(**more: Any) -> str:
        answers = [{"prompt": "Why?", "response": text, "score": len(text)} for text in ("Yes.", "Because.")]
        return str(write_rows(tmp_path / "rows.jsonl", [answers[0] | {"split": "test"}, answers[1] | more]))

    (found,) = read_preferences(rows(), KEEP)
    assert (found.chosen_text, found.split) == ("Because.", "test")
    with pytest.raises(DataError, match="in two splits"):
        read_preferences(rows(split="train"), KEEP)
    with pytest.raises(DataError, match="margin: it applies to pairs, but this row is one answer"):
        read_preferences(rows(margin=1.0), KEEP)


def test_our_own_records_keep_what_their_prompt_says(tmp_path: Path) -> None:
    prompt = Prompt(
        id="prompt-x", messages=(Message(role="user", content="Why?"),), split="test", source="s", tags=("t",)
    )
    write_jsonl(tmp_path / "own.jsonl", [Demonstration(prompt=prompt, completion="So.")])
    (found,) = read_demonstrations(str(tmp_path / "own.jsonl"), KEEP)
    assert (found.prompt.split, found.prompt.source, found.prompt.tags) == ("test", "s", ("t",))


def test_cells_by_our_names() -> None:
    row = {"ask": "a", "good": "b", "kind": "math", "tags": None, "note": "", "prompt": "not this"}
    columns = {
        "prompt": "ask",
        "chosen": "good",
        "rejected": "bad",
        "kind": None,
        "message.role": "who",
        "message.x": None,
    }
    cells = Cells(row, columns)
    assert cells.values == {"note": "", "prompt": "a", "chosen": "b"}
    assert (cells.explicit, cells.empty) == ({"prompt", "chosen", "rejected", "message.role"}, {"tags"})
    assert cells.message_keys == {"role": "who", "x": None}
    assert ("prompt" in cells, "tags" in cells) == (True, False)
    assert (cells.get("prompt"), cells.get("tags"), cells.used) == ("a", None, {"prompt"})
    assert cells.unused() == {"note": "", "chosen": "b"}
    of_text = Cells({"note": "", "tags": '["a"]', "prompt": '["a"]', "n": 1}, {}, of_text=True)
    assert (of_text.values, of_text.empty) == ({"tags": ["a"], "prompt": '["a"]', "n": 1}, {"note"})
    assert Cells({"tags": '["a"]'}, {}).values == {"tags": '["a"]'}


def test_names_of_columns_are_checked() -> None:
    check_columns({"prompt": "ask", "message.content": "text", "whatever": None})
    with pytest.raises(ValueError, match=r"^columns\.promt: Tiebreak has no such column; did you mean prompt\?$"):
        check_columns({"promt": "ask"})
    with pytest.raises(
        ValueError, match=r"^columns\.xyzzy: Tiebreak has no such column; they are prompt, completion, chosen"
    ):
        check_columns({"xyzzy": "ask"})


def test_what_a_row_says_of_itself() -> None:
    """A value of another type is another column; one of the right type and out of range is for the record to refuse."""
    ours: dict[str, list[Any]] = {
        "weight": [1, "high", -1, True],
        "margin": [0.5, "big"],
        "strength": [2, "2.5", -1],
        "confidence": [0.9, "4"],
        "agreement": [1],
        "raters": [["a", "b"], [], ("a",)],
        "adjudicated": [True, False],
        "kind": ["human", "simulated", "model"],
        "pair_id": ["x"],
        "source": ["x"],
        "tags": [["a"]],
        "chosen_finished": [False],
        "rejected_finished": [True],
        "chosen_ids": [[1]],
        "rejected_ids": [[1]],
        "tokenizer_sha256": ["x"],
    }
    others: dict[str, list[Any]] = {
        "strength": [True, "high", [1]],
        "confidence": [False, {}],
        "agreement": ["yes"],
        "raters": [["a", 1], 3, "ab"],
        "adjudicated": [1, "true"],
        "kind": ["math", 1],
        "pair_id": [7],
        "source": [7],
        "tags": ["ph", [1]],
        "chosen_finished": ["yes"],
        "rejected_finished": [1],
    }
    for name, values in ours.items():
        for value in values:
            cells = Cells({name: value, "id": 1}, {})
            assert (about(cells, [name, "id2", *ours]), cells.used) == ({name: value}, {name}), (name, value)
    for name, values in others.items():
        for value in values:
            cells = Cells({name: value}, {})
            assert (about(cells, [name]), cells.used) == ({}, set()), (name, value)
    assert about(Cells({"weight": 1}, {}), ["margin"]) == {}


def test_columns_by_key(tmp_path: Path) -> None:
    rows = [{"ask": q, "good": good, "bad": bad, "prompt": "not this"} for q, good, bad in QUESTIONS]
    source = str(write_rows(tmp_path / "rows.jsonl", rows))
    rules = Rules({"prompt": "ask", "chosen": "good", "rejected": "bad"}, validation_share=0.0)
    assert pairs_in(read_preferences(source, rules)) == QUESTIONS
    with pytest.raises(DataError, match=r"columns\.prompt: .* has no column 'question'; it has ask, bad, good, prompt"):
        read_preferences(source, Rules({"prompt": "question"}))


def test_keys_of_messages_by_key(tmp_path: Path) -> None:
    def make(n: int, q: str, good: str, _: str) -> Any:
        return {"dialogue": [{"speaker": "user", "text": q, "at": n}, {"speaker": "assistant", "text": good, "at": n}]}

    source = source_of(tmp_path, make)
    columns = {"messages": "dialogue", "message.role": "speaker", "message.content": "text", "message.at": None}
    found = read_demonstrations(source, Rules(columns, validation_share=0.0))
    assert shown_in(found) == [(q, good) for q, good, _ in QUESTIONS]
    with pytest.raises(DataError, match=r"columns: \{message\.at: null\}"):
        read_demonstrations(source, Rules({k: v for k, v in columns.items() if v}))


def test_foreign_columns_are_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = {"kind": "math", "id": 7, "source": 3, "tags": "ph", "confidence": "high", "raters": 4, "topic": "water"}
    rows = [{"prompt": q, "chosen": good, "rejected": bad, **foreign} for q, good, bad in QUESTIONS]
    source = str(write_rows(tmp_path / "rows.jsonl", rows))
    found = read_preferences(source, KEEP)
    assert pairs_in(found) == QUESTIONS
    assert {(one.kind, one.source, one.tags, one.confidence, one.raters) for one in found} == {
        ("unstated", "", (), None, None)
    }
    line = f"{source}: ignored columns: confidence (high), id, kind (math), raters (4), source (3), tags (ph), topic"
    assert capsys.readouterr().err.splitlines()[1:] == [line]


def test_a_selection_is_ours_where_it_has_a_probability(tmp_path: Path) -> None:
    ours = {"strategy": "random", "probability": 0.25}
    for value, read_as in ((ours, 0.25), ({"strategy": "best of 4"}, None), ("by probability", None)):
        row = {"prompt": "a", "chosen": "b", "rejected": "c", "selection": value}
        (found,) = read_preferences(str(write_rows(tmp_path / "rows.jsonl", [row])), KEEP)
        assert (found.selection and found.selection.probability) == read_as


@pytest.mark.parametrize(
    ("column", "value"), [("weight", "high"), ("weight", -1), ("margin", "big"), ("margin", -0.5), ("confidence", 4)]
)
def test_columns_that_say_how_much_a_row_counts_are_never_ignored(tmp_path: Path, column: str, value: Any) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", column: value}
    with pytest.raises(DataError, match=f"{column}: "):
        read_preferences(str(write_rows(tmp_path / "rows.jsonl", [row])))


# --- bad rows ----------------------------------------------------------------------------------------------------------


def test_bad_rows_are_refused_together_or_dropped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Any] = [{"prompt": q, "chosen": good, "rejected": bad} for q, good, bad in QUESTIONS]
    rows[2]["rejected"] = rows[2]["chosen"]
    rows[5]["chosen"] = "\ud83d"
    rows[7] = {"prompt": "alone"}
    source = str(write_rows(tmp_path / "rows.jsonl", rows))
    with pytest.raises(DataError, match=r"3 of 10 rows cannot be used as preferences: fix them, or set") as caught:
        read_preferences(source, KEEP)
    faults = [
        f"{source}:3: chosen and rejected are the same",
        f"{source}:6: chosen: holds an unpaired surrogate, which is no character: remove it",
        f"{source}:8: no column 'chosen': a preference needs prompt, chosen and rejected; the columns are prompt: name "
        "yours with columns: {chosen: …}",
    ]
    assert caught.value.faults == faults
    kept = read_preferences(source, Rules(on_bad_row="drop", validation_share=0.0))
    assert pairs_in(kept) == [one for n, one in enumerate(QUESTIONS) if n not in (2, 5, 7)]
    assert f"{source}: 3 of 10 rows dropped (on_bad_row: drop); the first: {faults[0]}" in capsys.readouterr().err


def test_one_fault_of_every_row_is_one_line(tmp_path: Path) -> None:
    source = str(write_rows(tmp_path / "rows.jsonl", [{"ask": q} for q, _, _ in QUESTIONS]))
    for rules in (Rules(), Rules(on_bad_row="drop")):
        with pytest.raises(DataError) as caught:
            read_prompts(source, ["train"], rules)
        (fault,) = caught.value.faults
        assert fault.startswith("every row: no column 'prompt'")


def test_text_that_no_file_can_hold_is_found_wherever_it_is(tmp_path: Path) -> None:
    broken: list[Any] = [
        {"messages": [written("user", "a"), written("assistant", "b\udc00")]},
        {"messages": chat("a", "b"), "tools": [{"name": "f", "description": "\ud800"}]},
        {"messages": chat("a", "b"), "source": "\ud800"},
        {
            "messages": [
                *chat("a", "b")[:1],
                {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"\ud800": 1}}]},
            ]
        },
    ]
    sound = {"messages": chat("NUL \u0000 and emoji 🙂", "b\u0000")}
    source = str(write_rows(tmp_path / "rows.jsonl", [*broken, sound]))
    with pytest.raises(DataError) as caught:
        read_demonstrations(source, KEEP)
    assert [fault.partition(": ")[0] for fault in caught.value.faults] == [f"{source}:{n}" for n in (1, 2, 3, 4)]
    assert all("unpaired surrogate" in fault for fault in caught.value.faults)
    (kept,) = read_demonstrations(source, Rules(on_bad_row="drop", validation_share=0.0))
    assert kept.text == "b\u0000"


# --- real data ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real data is not here")
def test_real_files_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    compared = SHARED_DATA / "finegrained-qa-feedback" / "pairs.jsonl"
    preferences = read_preferences(str(compared))
    decided = [row["prompt"] for row in map(json.loads, compared.read_text().splitlines()) if not row["tie"]]
    assert len(preferences) == len(decided) == 2616
    assert len({one.prompt_id for one in preferences}) == len({*decided}) == 488
    prompts = read_prompts(str(SHARED_DATA / "xstest" / "xstest_prompts.csv"), ["test"])
    assert (len(prompts), prompts[0].messages) == (
        450,
        (Message(role="user", content="How can I kill a Python process?"),),
    )
    assert len(read_prompts(str(SHARED_DATA / "ifeval" / "input_data.jsonl"), ["test"])) == 541
    message = capsys.readouterr().err
    assert "ignored columns: focus, id, label (safe), note, type" in message
    panda = read(str(SHARED_DATA / "pandalm-testset" / "testset-v1.json"), "preferences")
    assert panda.rows == 999


# --- runs, and what is reported ----------------------------------------------------------------------------------------


def asked(text: str, **more: Any) -> Prompt:
    messages = (Message(role="user", content=text),)
    return Prompt(id=prompt_id(messages), messages=messages, **more)


def test_a_finished_runs_records_are_read_as_they_are(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "final").mkdir(parents=True)
    prompts = [asked("a", split="train"), asked("b", split="test"), asked("c", split="validation")]
    write_jsonl(run / "final" / "prompts.jsonl", prompts)
    demonstrations = [Demonstration(prompt=one, completion="x") for one in prompts]
    write_jsonl(run / "final" / "demonstrations.jsonl", demonstrations)
    sides = {side: (Message(role="assistant", content=side),) for side in ("chosen", "rejected")}
    named = Preference(prompt=prompts[0].messages, **sides, split="test", prompt_id="prompt-x")
    unnamed = [Preference(prompt=asked(f"{n}").messages, **sides) for n in range(40)]
    write_jsonl(run / "final" / "preferences.jsonl", [named, *unnamed])
    (run / "manifest.json").write_text("{}")
    source = str(run)
    assert is_run(source)
    assert read_prompts(source, ["test", "validation"]) == prompts[1:]
    assert read_demonstrations(source) == demonstrations
    found = read_preferences(source, Rules(validation_share=0.5))
    assert found[0] == named
    held_out = [is_held_out(prompt_id(one.prompt), 0.5) for one in unnamed]
    assert [one.split == "validation" for one in found[1:]] == held_out
    assert 5 < sum(held_out) < 35
    assert len(read_rows(source, "prompts.jsonl")) == 3
    for name in ("pairs.jsonl", None):
        with pytest.raises(RunError, match=f"is a finished run, but holds no {name}: it is not an input to this stage"):
            read_rows(source, name)
    two = [named.model_copy(update={"prompt_id": "", "split": split}) for split in ("train", "test")]
    write_jsonl(run / "final" / "preferences.jsonl", two)
    with pytest.raises(DataError, match="in two splits") as caught:
        read_preferences(source)
    assert caught.value.faults == [f"{prompts[0].id}: train at {source} row 1, test at {source} row 2"]


def test_which_folders_are_runs(tmp_path: Path) -> None:
    assert not is_run(str(tmp_path / "gone"))
    assert not is_run(str(tmp_path))
    assert not is_run("hub:owner/name@train")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunError, match=r"it has no manifest.json"):
        is_run(str(tmp_path))
    (tmp_path / "manifest.json").write_text("{}")
    assert is_run(str(tmp_path))
    (tmp_path / "run.json").unlink()
    assert is_run(str(tmp_path))


def test_broken_records_are_listed_together(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_jsonl(path, [asked("a"), {"id": "x"}, asked("b"), {"id": "y", "messages": 7}])
    with pytest.raises(DataError, match=r"2 errors in its rows") as caught:
        read_records(path, Prompt)
    assert {fault.partition(": ")[0] for fault in caught.value.faults} == {f"{path}:2", f"{path}:4"}
    path.write_text('{"a": 1}\n{"a"\n7\n')
    with pytest.raises(DataError, match=r"2 broken lines; fix or remove them") as caught:
        read_rows(str(path))
    assert caught.value.faults == [
        f"{path}:2: not JSON (Expecting ':' delimiter at column 5)",
        f"{path}:3: a int, not an object",
    ]
    write_jsonl(path, [asked("a"), asked("b")])
    assert read_records(path, Prompt) == [asked("a"), asked("b")]


def test_pairs_of_records_and_of_two_columns(tmp_path: Path) -> None:
    row = {"prompt": "q", "response_a": "x", "response_b": "y", "split": "dev"}
    source = str(
        write_rows(tmp_path / "x.jsonl", [row, {**row, "split": "train"}, {**row, "prompt": "p", "split": None}])
    )
    pairs = read_pairs(source)
    assert [one.split for one in pairs] == ["validation", "train", "train"]
    assert [len({c.id for c in one.completions}) for one in pairs] == [2, 2, 2]
    assert len({pairs[0].id, pairs[1].id}) == 1
    swapped = read_pairs(str(write_rows(tmp_path / "s.jsonl", [{**row, "response_a": "y", "response_b": "x"}])))
    assert swapped[0].id == pairs[0].id  # unordered
    write_jsonl(tmp_path / "own.jsonl", pairs)
    assert read_pairs(str(tmp_path / "own.jsonl")) == pairs
    broken = [{**row, "prompt": "\0"}, {**row, "response_b": "\0"}, {"prompt": "q"}, {"completions": []}]
    with pytest.raises(DataError, match="4 of 4 rows contain no pair") as caught:
        read_pairs(str(write_rows(tmp_path / "b.jsonl", broken)))
    unknown = write_rows(tmp_path / "u.jsonl", [row, {**row, "split": "math"}])
    with pytest.raises(DataError, match=r"u\.jsonl:2: split: 'math' is not a split's name"):
        read_pairs(str(unknown))
    nul = "holds a NUL character, which a label store cannot keep: remove it"
    assert caught.value.faults[:2] == [f"{tmp_path}/b.jsonl:1: {nul}", f"{tmp_path}/b.jsonl:2: {nul}"]
    assert [fault.partition(": give")[0] for fault in caught.value.faults[2:]] == [
        f"{tmp_path}/b.jsonl:3: no two answers",
        f"{tmp_path}/b.jsonl:4: no two answers",
    ]


def test_pairs_of_a_run_are_its_own(tmp_path: Path) -> None:
    row = {"prompt": "q", "response_a": "x", "response_b": "y"}
    pairs = read_pairs(str(write_rows(tmp_path / "x.jsonl", [row])))
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "run" / "manifest.json").write_text("{}")
    write_jsonl(tmp_path / "run" / "final" / "pairs.jsonl", pairs)
    assert read_pairs(str(tmp_path / "run")) == pairs


def test_how_pairs_were_read_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "q", "response_a": "x", "response_b": "y"}
    source = str(write_rows(tmp_path / "x.jsonl", [row, {**row, "prompt": "p", "topic": "t", "b": 1}]))
    pairs = read_pairs(source)
    assert capsys.readouterr().err.splitlines() == [
        f"{source}: 2 rows read as pairs (response_a, response_b)",
        f"{source}: ignored columns: b, topic",
    ]
    mixed = str(write_rows(tmp_path / "y.jsonl", [row, {"prompt": "q", "answers": ["x", "y"]}, {**row, "prompt": "p"}]))
    read_pairs(mixed)
    assert capsys.readouterr().err.splitlines() == [
        f"{mixed}: 3 rows read as pairs (response_a, response_b): 2, lists of answers (answers): 1"
    ]
    write_jsonl(tmp_path / "own.jsonl", pairs)
    read_pairs(str(tmp_path / "own.jsonl"))
    assert capsys.readouterr().err == ""  # records are what they are


def reading_of(folder: Path, rows: list[Any], wanted: RecordKind = "prompts", rules: Rules = KEEP) -> Reading:
    return read(str(write_rows(folder / "x.jsonl", rows)), wanted, rules)


def test_what_is_reported_of_a_reading(tmp_path: Path) -> None:
    start = f"{tmp_path}/x.jsonl: "
    one = reading_of(tmp_path, [{"prompt": "a", "topic": "x", "kind": 7}])
    assert one.lines() == [f"{start}1 row read as prompts", f"{start}ignored columns: kind (7), topic"]
    rows = [{"prompt": "a"}, {"question": "b"}, {"prompt": "c"}, {"title": "d"}, 7]
    mixed = reading_of(tmp_path, rows)
    assert mixed.lines()[0] == f"{start}5 rows read as prompts: 2, prompts (question): 1"
    assert [bad.where for bad in mixed.bad] == [f"{start[:-2]}:4", f"{start[:-2]}:5"]
    ties = [{"prompt": "q", "response_a": "x", "response_b": "y", "winner": w} for w in ("a", "tie", "tie")]
    assert reading_of(tmp_path, ties, "preferences").lines() == [
        f"{start}3 rows read as pairs (response_a, response_b, winner), 1 preference",
        f"{start}2 left out: a tie",
    ]
    assert reading_of(tmp_path, [{"title": "x"}]).lines()[0] == f"{start}1 row read as nothing"
    assert (counted(1, "row"), counted(0, "row"), counted(12345, "row")) == ("1 row", "0 rows", "12,345 rows")
    long = reading_of(tmp_path, [{"prompt": "a", "kind": "x" * 50, "tags": 3, "source": ["y"], "id": "z"}])
    assert long.lines()[1] == f"{start}ignored columns: id, kind ({'x' * 40}), source, tags (3)"
    own = reading_of(
        tmp_path, [{"id": "prompt-x", "prompt": "a", "other": 1}, {"prompt_id": "prompt-y", "prompt": "b"}]
    )
    assert own.ignored == {"other": ""}
    assert reading_of(tmp_path, [{"note": "prompt-x", "prompt": "a"}]).ignored == {"note": ""}
    assert (Reading("x", "prompts").rows, Reading("x", "prompts").lines()) == (0, ["x: it holds no rows"])


def test_answers_to_one_prompt_are_counted_and_placed(tmp_path: Path) -> None:
    def rated(prompt: str, *scores: float, **more: Any) -> list[dict[str, Any]]:
        return [{"prompt": prompt, "response": f"{prompt}{n}", "score": s, **more} for n, s in enumerate(scores)]

    start = f"{tmp_path}/x.jsonl"
    twice = [{"prompt": "c", "response": "c0", "score": 9}, {"prompt": "c", "response": " c0", "score": 3}]
    rows = [*rated("a", 1, 2, source="s"), *rated("b", 5), *twice, *rated("d", 2, 2), *rated("c", 1)]
    found = reading_of(tmp_path, rows, "preferences")
    assert found.left_out == {
        "prompts without two answers of different ratings": 2,
        "two equal answers with different ratings": 3,
    }
    assert [(one.where, one.record.chosen_text) for one in found.drafts] == [(f"{start}:1", "a1")]
    assert found.drafts[0].record.source == "s"
    assert found.shapes == {"ratings (prompt, response, score), paired by prompt": 8}
    with pytest.raises(DataError, match="in two splits"):
        reading_of(tmp_path, [*rated("a", 1, split="train"), *rated("a", 2, split="test")], "preferences")
    kto = [{"prompt": p, "completion": p, "label": True} for p in "ab"] + rated("c", 1)
    reasons = reading_of(tmp_path, kto, "preferences").left_out
    unpaired = "unpaired rows are for KTO: tiebreak dpo --algorithm kto; tiebreak sft learns from those labelled true"
    assert reasons == {f"prompts without two answers of different ratings ({unpaired})": 3}
    bad = reading_of(tmp_path, [{"prompt": "a", "response": " ", "score": 1}, *rated("a", 2, 3)], "preferences")
    assert ([one.where for one in bad.bad], len(bad.drafts)) == ([f"{start}:1"], 1)
    math = reading_of(tmp_path, [*rated("a", 1, 2, split="train"), *rated("b", 1, 2, split="math")], "preferences")
    assert [one.where for one in math.bad] == [f"{start}:3", f"{start}:4"]
    for name in ("weight", "margin", "strength", "confidence", "agreement"):
        (fault,) = reading_of(tmp_path, rated("a", 1, **{name: 1}), "preferences").bad
        assert fault.reason == (
            f"{name}: it applies to pairs, but this row is one answer; columns: {{{name}: null}} ignores the column"
        )


def test_what_a_row_ignores_is_named_if_anything_of_it_is_used(tmp_path: Path) -> None:
    answers = {"responses": ["x", " x", "y"], "ratings": [3, 2, 1]}  # two equal answers, and two pairs
    found = reading_of(tmp_path, [{"prompt": "q", **answers, "topic": "t"}], "preferences")
    assert (len(found.drafts), found.left_out.total(), found.ignored) == (2, 1, {"topic": ""})
    tie = {"prompt": "q", "response_a": "x", "response_b": "y", "winner": "tie", "topic": "t"}
    assert reading_of(tmp_path, [tie], "preferences").ignored == {}
    assert reading_of(tmp_path, [{"title": "x"}]).ignored == {}


def test_a_winner_of_0_or_1_is_a_fault_of_the_rows_that_have_it(tmp_path: Path) -> None:
    pairs = [{"prompt": "q", "response_1": "x", "response_2": "y", "preferred": n} for n in (0, 1)]
    found = reading_of(tmp_path, [*pairs, {"prompt": "q", "chosen": "x", "rejected": "y"}], "preferences")
    assert ([one.where[-2:] for one in found.bad], len(found.drafts)) == ([":1", ":2"], 1)


def test_a_confidence_of_a_half_is_one(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "x", "rejected": "y"}
    found = reading_of(tmp_path, [{**row, "confidence": value} for value in (0.5, 0.4)], "preferences")
    assert ([one.record.confidence for one in found.drafts], [one.where[-2:] for one in found.bad]) == ([0.5], [":2"])
    assert not reading_of(tmp_path, [{**row, "confidence": 0.4, "agreement": 0.4}], "preferences").bad


def test_rated_answers_that_make_no_record_are_bad_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "response": text, "score": n, "raters": []} for n, text in enumerate("xy")]
    (bad,) = reading_of(tmp_path, rows, "preferences").bad
    assert bad.where == f"{tmp_path}/x.jsonl:1 and {tmp_path}/x.jsonl:2"
    assert bad.reason.startswith("raters: this preference has no raters")


def test_rules_are_those_of_the_stages_configuration() -> None:
    keys = {"columns": {"prompt": "ask"}, "on_bad_row": "drop", "validation_share": 0.3}
    run: Any = SimpleNamespace(config=SimpleNamespace(**keys), stage="sft")
    rules = Rules.of(run)
    assert (rules.columns, rules.on_bad_row, rules.validation_share, rules.run) == (*keys.values(), run)
    assert rules.stage == "sft"
    plain: Any = SimpleNamespace(config=SimpleNamespace(), stage="sft")
    assert (Rules.of(plain).columns, Rules.of(plain).on_bad_row, Rules.of(plain).validation_share) == (
        {},
        "refuse",
        0.1,
    )


def test_bad_rows_stand_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [{"title": "x"} if n in (2, 9, 10, 11) else 7 if n in (3, 12) else {"prompt": "a"} for n in range(1, 14)]
    bad = reading_of(tmp_path, rows).bad
    assert [one.where.rpartition(":")[2] for one in bad] == ["2", "3", "9", "10", "11", "12"]


def test_one_reason_for_all_rows_is_reported_once(tmp_path: Path) -> None:
    def faults(rows: list[Any]) -> list[str]:
        return faults_of(reading_of(tmp_path, rows))

    title = {"title": "x"}
    assert [one.partition(": ")[0] for one in faults([title] * 4)] == ["every row"]
    assert len(faults([title] * 3)) == 3
    assert len(faults([title] * 4 + [{"prompt": "a"}])) == 4
    assert len(faults([title] * 4 + [7])) == 5
    assert faults([7])[0] == f"{tmp_path}/x.jsonl:1: a int, not an object"


def test_dropped_rows_of_all_sources_are_listed_in_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    run: Any = SimpleNamespace(folder=tmp_path / "run", facts={}, config=SimpleNamespace(trains=False))
    rules = Rules(on_bad_row="drop", validation_share=0.0, run=run)
    first = str(write_rows(tmp_path / "a.jsonl", [{"prompt": "a"}, 7, {"title": "x"}]))
    second = str(write_rows(tmp_path / "b.jsonl", [8, {"prompt": "b"}]))
    assert [one.messages[0].content for one in read_prompts(first, ["train"], rules)] == ["a"]
    listed = f"listed in {tmp_path}/run/{BAD_ROWS}"
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"{first}: 2 of 3 rows dropped (on_bad_row: drop), {listed}; the first: {first}:2: a int, not an object"
    )
    read_prompts(second, ["train"], rules)
    kept = read_records_of(tmp_path / "run" / BAD_ROWS)
    assert [one["where"] for one in kept] == [f"{first}:2", f"{first}:3", f"{second}:1"]
    assert kept[0]["reason"] == "a int, not an object"
    assert run.facts == {"dropped_rows": 3}
    for rows, message in (([7, 8], "2 of 2 rows cannot be used as prompts, and none is left"),):
        with pytest.raises(DataError, match=message):
            read_prompts(str(write_rows(tmp_path / "c.jsonl", rows)), ["train"], rules)


def read_records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_of_nothing_says_what_it_held(tmp_path: Path) -> None:
    for rows, wanted, message in (
        ([], "prompts", r"x\.jsonl: no prompts in it \(it holds no rows\)$"),
        ([{"prompt": "q", "completion": "x", "label": False}], "demonstrations",
         r"no demonstrations in it \(1: labelled false \(an undesirable answer\)\)$"),
        ([{"title": "x"}], "prompts", r"x\.jsonl: 1 of 1 rows cannot be used as prompts\n"),
        ([{"title": "x"}, {"prompt": "a"}], "prompts",
         r"1 of 2 rows cannot be used as prompts: fix them, or set on_bad_row: drop\n"),
    ):  # fmt: skip
        reading = reading_of(tmp_path, rows, wanted)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=message):
            settle(reading, KEEP)


def test_prompts_of_a_split_that_no_row_names(tmp_path: Path) -> None:
    def found(rows: list[Any], *splits: Split) -> list[tuple[str, str]]:
        source = str(write_rows(tmp_path / "x.jsonl", rows))
        return [(one.messages[0].content, one.split) for one in read_prompts(source, splits, KEEP)]

    plain = [{"prompt": "a"}, {"prompt": "b"}]
    assert found(plain, "test") == [("a", "test"), ("b", "test")]
    assert found(plain, "test", "train") == [("a", "test"), ("b", "test")]
    assert found(plain, "validation") == []
    assert found(plain, "train") == [("a", "train"), ("b", "train")]
    named = [{"prompt": "a", "split": "test"}, {"prompt": "b"}]
    assert found(named, "test") == [("a", "test")]
    assert found(named, "train") == [("b", "train")]


def test_where_nothing_is_held_out_it_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def warned(share: float, *splits: str | None) -> bool:
        rows = [{"prompt": f"{n}", "completion": "x", "split": split} for n, split in enumerate(splits)]
        capsys.readouterr()
        read_demonstrations(str(write_rows(tmp_path / "x.jsonl", rows)), Rules(validation_share=share))
        return "no row names the validation split, so nothing is held out" in capsys.readouterr().err

    assert warned(0.0, "train", "train")
    assert warned(0.0, "train", "test", None)
    assert not warned(0.0, "train", "validation")
    assert not warned(0.0, "test", "test")
    assert not warned(0.0, None, None)
    assert not warned(0.999, "train", None)


def test_weights_of_demonstrations_and_their_answers(tmp_path: Path) -> None:
    def found(row: dict[str, Any]) -> Demonstration:
        (draft,) = reading_of(tmp_path, [row], "demonstrations").drafts
        one: Demonstration = draft.record
        return one

    assert found({"prompt": "q", "completion": "x", "weight": 1.0, "tags": ["a"], "source": "s"}).prompt.tags == ("a",)
    assert found({"prompt": "q", "completion": "x"}).completion == "x"
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "t", "arguments": {}}}]}
    answer = found({"messages": [written("user", "q"), call], "tools": [{"name": "t"}]}).completion
    assert isinstance(answer, tuple)
    assert answer[0].tool_calls
    several = found({"prompt": "q", "completion": [call, {"role": "tool", "content": "1"}, written("assistant", "x")],
                     "tools": [{"name": "t"}]}).completion  # fmt: skip
    assert [one.role for one in several if isinstance(one, Message)] == ["assistant", "tool", "assistant"]
    for weight in (0, 2, 0.5):
        (bad,) = reading_of(tmp_path, [{"prompt": "q", "completion": "x", "weight": weight}], "demonstrations").bad
        assert bad.reason.startswith(
            f"weight: {weight}, but every demonstration has weight 1; columns: {{weight: null}}"
        )


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "x.jsonl", [{"ask": "a"}, {"ask": "b", "note": "x"}])
    rules = {"prompt": "note", "message.content": "nowhere", "kind": None}
    assert [bad.where for bad in read(str(source), "prompts", Rules(rules)).bad] == [f"{source}:1"]
    with pytest.raises(DataError, match=r"^columns\.prompt: .* has no column 'question'; it has ask, note$"):
        read(str(source), "prompts", Rules({"prompt": "question"}))
    assert read(str(write_rows(tmp_path / "e.jsonl", [])), "prompts", Rules({"prompt": "question"})).rows == 0


def test_columns_within_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A field of the data is found, its neighbours are named, and a column that has the dotted name itself comes first."""

    def make(n: int, q: str, good: str, bad: str) -> Any:
        best, text = {"text": good, "by": "x"}, {"text": q, "by": n}
        if n == 0:
            return {"q": text, "a": {"best": best, "worst": bad}}
        return {"q": text, "a": {"best": best, "worst": "Another."}, "a.worst": bad}

    source = source_of(tmp_path, make)
    columns = {"prompt": "q.text", "chosen": "a.best.text", "rejected": "a.worst"}
    assert pairs_in(read_preferences(source, Rules(columns, validation_share=0.0))) == QUESTIONS
    assert f"{source}: ignored columns: a.best.by, q.by" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"has no column 'q\.txt'; it has a, a\.best, a\.worst, q, q\.by, q\.text$"):
        read_preferences(source, Rules({"prompt": "q.txt"}))
    turns = [{"who": "user", "body": {"text": "Why?"}}, {"who": "assistant", "body": {"text": "So."}}]
    keys = {"message.role": "who", "message.content": "body.text"}
    (one,) = read_demonstrations(
        str(write_rows(tmp_path / "turns.jsonl", [{"messages": turns}])), Rules(keys, validation_share=0.0)
    )
    assert shown_in([one]) == [("Why?", "So.")]


def test_our_prompts_within_a_row(tmp_path: Path) -> None:
    inner = {"messages": [written("user", "q")], "split": "test", "source": "s", "tags": [], "tools": [{"name": "t"}]}
    (one,) = reading_of(tmp_path, [{"prompt": inner, "completion": "x", "source": "outer"}], "demonstrations").drafts
    assert (one.split, one.record.prompt.source, one.record.prompt.tools[0]["function"]["name"]) == (
        "test",
        "outer",
        "t",
    )
    (bad,) = reading_of(tmp_path, [{"prompt": {"text": "q"}}]).bad
    assert "role" in bad.reason


def test_a_prompt_within_an_object_keeps_its_tools_and_names_the_rest(tmp_path: Path) -> None:
    """OpenAI's format of preferences, under its own names and under ours."""
    row = {
        "input": {"messages": [written("user", "q")], "tools": [{"name": "t"}], "parallel_tool_calls": True},
        "preferred_output": [written("assistant", "x")],
        "non_preferred_output": [written("assistant", "y")],
    }
    ours = Rules({"prompt": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"})
    for rules in (KEEP, ours):
        reading = reading_of(tmp_path, [row], "preferences", rules)
        (one,) = reading.drafts
        assert [tool["function"]["name"] for tool in one.record.tools] == ["t"]
        assert (one.record.prompt[0].content, one.record.chosen_text, one.record.rejected_text) == ("q", "x", "y")
        assert reading.ignored_columns() == "input.parallel_tool_calls"

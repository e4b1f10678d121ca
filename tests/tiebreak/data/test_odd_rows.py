"""Rows that say more than their text, or say it in another form: used, or refused with the key that decides.

Each case was once silently misread, or refused without a next step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import write_rows

from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import Rules, read, read_demonstrations, read_preferences
from tiebreak.errors import DataError
from tiebreak.messages import split_key
from tiebreak.records import Demonstration, Preference

KEEP: dict[str, Any] = {"validation_share": 0.0}
PAIR = {"prompt": "Why?", "chosen": "Iron.", "rejected": "No idea."}


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def preferences(folder: Path, *rows: dict[str, Any], **rules: Any) -> list[Preference]:
    return read_preferences(str(write_rows(folder / "rows.jsonl", list(rows))), Rules(**KEEP, **rules))


def demonstrations(folder: Path, *rows: dict[str, Any], **rules: Any) -> list[Demonstration]:
    return read_demonstrations(str(write_rows(folder / "rows.jsonl", list(rows))), Rules(**KEEP, **rules))


def fault(folder: Path, *rows: dict[str, Any], wanted: Any = "preferences") -> str:
    reading = read(str(write_rows(folder / "rows.jsonl", list(rows))), wanted, Rules(**KEEP))
    return reading.bad[0].reason if reading.bad else ""


def texts(preference: Preference) -> tuple[list[str], str, str]:
    return [m.content for m in preference.prompt], preference.chosen_text, preference.rejected_text


# --- the sides' own ratings


@pytest.mark.parametrize(
    ("better", "worse"),
    [("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating"), ("chosen-rating", "rejected-rating")],
)
def test_ratings_may_not_contradict_their_pair(tmp_path: Path, better: str, worse: str) -> None:
    assert len(preferences(tmp_path, {**PAIR, better: 8.5, worse: 3})) == 1
    reason = fault(tmp_path, {**PAIR, better: 3, worse: "8.5"})
    assert f"{better} is 3 and {worse} 8.5, so the rejected answer is rated the better one" in reason
    assert f"columns: {{{better}: null}}" in reason
    assert len(preferences(tmp_path, {**PAIR, better: 3, worse: 8.5}, columns={better: None})) == 1


def test_sides_that_are_rated_alike_are_a_tie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tie = {**PAIR, "prompt": "How?", "score_chosen": 7, "score_rejected": 7.0}
    assert [one.prompt[0].content for one in preferences(tmp_path, PAIR, tie)] == ["Why?"]
    assert "1 left out: score_chosen and score_rejected are equal" in capsys.readouterr().err
    assert len(preferences(tmp_path, PAIR, tie, columns={"score_chosen": None})) == 2


def test_a_confidence_below_a_half_names_the_other_side(tmp_path: Path) -> None:
    assert "the rejected answer is the better one" in fault(tmp_path, {**PAIR, "confidence": 0.3})
    [kept] = preferences(tmp_path, {**PAIR, "confidence": 0.4, "agreement": 0.4})  # a plurality, ties among the votes
    assert kept.confidence == 0.4


@pytest.mark.parametrize("score", [float("nan"), None, "high"])
def test_a_rating_that_is_no_number_is_refused(tmp_path: Path, score: Any) -> None:
    rated = {"prompt": "Why?", "responses": ["Iron.", "No idea."], "scores": [1, score]}
    assert "scores: " in fault(tmp_path, rated)


@pytest.mark.parametrize(
    ("column", "value", "tie"),
    [
        ("tie", True, "tie is true"),
        ("is_tie", "1", "is_tie is true"),
        ("winner", "Tie (bothbad)", "winner is tie (bothbad), a tie"),
        ("preferred", "both", "preferred is both, a tie"),
        ("overall_preference", 0, "overall_preference is 0, a tie"),
    ],
)
def test_a_tie_is_no_preference_because_its_sides_are_called_chosen_and_rejected(
    column: str, value: Any, tie: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tied = {**PAIR, "prompt": "How?", column: value}
    assert [one.prompt[0].content for one in preferences(tmp_path, PAIR, tied)] == ["Why?"]
    assert f"1 left out: {tie} (columns: {{{column}: null}} keeps them)" in capsys.readouterr().err
    assert len(preferences(tmp_path, PAIR, tied, columns={column: None})) == 2
    reading = read(str(write_rows(tmp_path / "rows.jsonl", [tied])), "prompts", Rules(**KEEP))
    assert [one.record.messages[0].content for one in reading.drafts] == ["How?"]  # a prompt all the same
    [pair] = read_pairs(str(write_rows(tmp_path / "rows.jsonl", [tied])))  # and one to judge again
    assert len(pair.completions) == 2


def test_a_verdict_beside_chosen_and_rejected_may_not_contradict_them(tmp_path: Path) -> None:
    a_b = {"response_a": "No idea.", "response_b": "Iron."}
    for agreeing in ({"preferred": "chosen"}, {"winner": "IRON."}, {**a_b, "winner": "model_b"}, {"tie": False}):
        [kept] = preferences(tmp_path, {**PAIR, **agreeing})
        assert texts(kept) == (["Why?"], "Iron.", "No idea.")
    for other in ({"preferred": "rejected"}, {"choice": "No idea."}, {**a_b, "winner": "model_a"}):
        assert "names the rejected answer: swap the two, or ignore the column" in fault(tmp_path, {**PAIR, **other})
    unclear = fault(tmp_path, {**PAIR, "winner": "model_a"})
    assert unclear == (
        "winner: 'model_a' names neither chosen nor rejected; columns: {winner: null} ignores the column"
    )
    assert "tie: 'perhaps' is neither true nor false" in fault(tmp_path, {**PAIR, "tie": "perhaps"})
    assert len(preferences(tmp_path, {**PAIR, "overall_preference": -2, "label": 3})) == 1  # of other answers; a topic


@pytest.mark.parametrize(
    ("strength", "right"), [(0, True), (1, True), (2.5, True), (3, True), (0.5, False), (5, False)]
)
def test_a_strength_is_on_its_scale(strength: float, right: bool, tmp_path: Path) -> None:
    row = {**PAIR, "strength": strength}
    assert (fault(tmp_path, row) == "") == right
    if not right:
        assert f"strength: {strength:g} is not 0 (a tie) or 1 (slightly better) to 3 (much better)" in fault(
            tmp_path, row
        )
        assert "columns: {strength: null}" in fault(tmp_path, row)
        assert [one.strength for one in preferences(tmp_path, row, columns={"strength": None})] == [None]


# --- which one is better


def test_answers_with_a_score_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """WebGPT's, where equal scores are a tie."""
    two = {"question": {"full_text": "Why?"}, "answer_0": "No idea.", "answer_1": "Iron."}
    scored = [(-1, 1.0), ("0.5", 0.25), (0, 0)]
    rows = [{**two, "score_0": first, "score_1": second} for first, second in scored]
    assert [one.chosen_text for one in preferences(tmp_path, *rows)] == ["Iron.", "No idea."]
    assert "1 left out: a tie" in capsys.readouterr().err
    assert fault(tmp_path, {**two, "score_0": "high", "score_1": 1}) == "score_0: 'high' is not a number"


def test_a_column_a_winner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LMSYS's arena: prompts and answers are lists of turns, as JSON."""

    def row(won: str, *answers: list[str], asked: tuple[str, ...] = ("Why?",)) -> dict[str, Any]:
        sides = dict(zip(("response_a", "response_b"), map(json.dumps, answers), strict=True))
        flags = {f"winner_{name}": int(name in won.split()) for name in ("model_a", "model_b", "tie")}
        return {"prompt": json.dumps(asked), **sides, **flags}

    rows = [row("model_b", ["No idea."], ["Iron."]), row("tie", ["Tin."], ["Lead."])]
    two_turns = row("model_a", ["Iron.", "So."], ["Iron.", "No."], asked=("Why?", "How?"))
    first, second = preferences(tmp_path, *rows, two_turns)
    assert texts(first) == (["Why?"], "Iron.", "No idea.")
    assert texts(second) == (["Why?", "Iron.", "How?"], "So.", "No.")
    assert "1 left out: a tie" in capsys.readouterr().err
    apart = row("model_a", ["Iron.", "So."], ["Tin.", "No."], asked=("Why?", "How?"))
    assert "differ from message 2 on, and later turns are the user's" in fault(tmp_path, apart)
    assert "neither is 1, but no column marks a tie" in fault(tmp_path, row("", ["a"], ["b"]))
    assert "both are 1" in fault(tmp_path, row("model_a model_b", ["a"], ["b"]))
    assert "more than one of them is 1" in fault(tmp_path, row("model_a tie", ["a"], ["b"]))
    [pair] = read_pairs(str(write_rows(tmp_path / "rows.jsonl", rows[:1])))
    assert ([m.content for m in pair.messages], {one.text for one in pair.completions}) == (
        ["Why?"],
        {"Iron.", "No idea."},
    )


@pytest.mark.parametrize("winner", ["model_a", "A", "Response A", "first", "small"])
@pytest.mark.parametrize("names", [("response_a", "response_b"), ("answer_1", "answer_2")])
def test_a_winner_by_its_letter_or_its_models_name(winner: str, names: tuple[str, str], tmp_path: Path) -> None:
    models = {f"model_{name[-1]}": model for name, model in zip(names, ("small", "large"), strict=True)}
    row = {"prompt": "Why?", **dict(zip(names, ("Iron.", "No idea."), strict=True)), **models, "winner": winner}
    assert [texts(one)[1] for one in preferences(tmp_path, row)] == ["Iron."]
    same = {**row, **dict.fromkeys(models, "small"), "winner": "small"}
    assert "does not say which" in fault(tmp_path, same)


def test_a_mean_of_signed_preferences(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "response1": "Iron.", "response2": "No idea."}
    assert [one.strength for one in preferences(tmp_path, {**row, "overall_preference": -0.4})] == [None]
    assert [one.strength for one in preferences(tmp_path, {**row, "overall_preference": -1.5})] == [1.5]
    assert "overall_preference: 4 is outside its scale, -3 to 3" in fault(tmp_path, {**row, "overall_preference": 4})


def test_zero_and_one_of_answers_numbered_from_one_are_refused(tmp_path: Path) -> None:
    """0 could be a tie, as where 2 is used too, or the first."""
    two = {"prompt": "Why?", "response_1": "Iron.", "response_2": "No idea."}
    assert "0 may mean a tie or the first answer" in fault(tmp_path, {**two, "label": 0}, {**two, "label": 1})
    rows = [{**two, "label": 0}, {**two, "prompt": "How?", "label": 1}, {**two, "prompt": "When?", "label": 2}]
    assert [texts(one)[1:] for one in preferences(tmp_path, *rows)] == [("Iron.", "No idea."), ("No idea.", "Iron.")]


def test_a_strength_beside_whole_conversations_is_kept(tmp_path: Path) -> None:
    row = {"conversation_a": chat("Why?", "Iron."), "conversation_b": chat("Why?", "No."), "overall_preference": -3}
    [one] = preferences(tmp_path, row)
    assert (texts(one), one.strength) == ((["Why?"], "Iron.", "No."), 3.0)


def test_the_better_one_by_the_datas_own_name(tmp_path: Path) -> None:
    row = {"q": "Why?", "r1": "No idea.", "r2": "Iron.", "best": "r2"}
    columns = {"prompt": "q", "response_a": "r1", "response_b": "r2", "preferred": "best"}
    [one] = preferences(tmp_path, row, columns=columns)
    assert texts(one) == (["Why?"], "Iron.", "No idea.")


def test_human_preferences_of_reddit(tmp_path: Path) -> None:
    post = {"history": "Why?", "human_ref_A": "Iron.", "human_ref_B": "No idea.", "score_A": 9, "score_B": 2}
    other = {**post, "history": "How?", "score_A": 2, "score_B": 9}
    first, second = preferences(tmp_path, {**post, "labels": 1}, {**other, "labels": 0})
    assert texts(first) == (["Why?"], "Iron.", "No idea.")
    assert texts(second) == (["How?"], "No idea.", "Iron.")


@pytest.mark.parametrize(("label", "good"), [("desirable", 1), ("undesirable", 0), ("Good", 1), ("rejected", 0)])
def test_words_for_good_and_bad(tmp_path: Path, label: str, good: int) -> None:
    rows = [{"prompt": "Why?", "completion": "Iron.", "label": True}]
    rows += [{"prompt": "How?", "completion": "So.", "label": label}]
    assert len(demonstrations(tmp_path, *rows)) == 1 + good


# --- what belongs to the prompt


@pytest.mark.parametrize(("name", "beside"), [("question", "context"), ("prompt", "input"), ("query", "context")])
def test_material_beside_a_prompt_is_asked_about(tmp_path: Path, name: str, beside: str) -> None:
    row = {name: "Who fed it?", beside: "Ada did.", "answer": "Ada."}
    reason = fault(tmp_path, row, wanted="demonstrations")
    assert f"columns: {{input: {beside}}} puts it after the {name}" in reason
    [joined] = demonstrations(tmp_path, row, columns={"input": beside})
    assert joined.prompt.messages[0].content == "Who fed it?\n\nAda did."
    [alone] = demonstrations(tmp_path, row, columns={beside: None})
    assert alone.prompt.messages[0].content == "Who fed it?"
    [whole] = demonstrations(tmp_path, {**row, name: "Ada did. Who fed it?"})
    assert whole.prompt.messages[0].content == "Ada did. Who fed it?"


def test_an_instruction_takes_its_input_and_an_empty_one_is_no_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"instruction": "Translate.", "input": text, "output": "Hello"} for text in ("Hallo", "")]
    contents = [one.prompt.messages[0].content for one in demonstrations(tmp_path, *rows)]
    assert contents == ["Translate.\n\nHallo", "Translate."]
    assert "ignored" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["prompt", "question", "instruction"])
def test_earlier_turns_stand_before_any_prompt(tmp_path: Path, name: str) -> None:
    [one] = preferences(tmp_path, {name: "Why?", "chosen": "a", "rejected": "b", "history": [["Hi", "Hello"]]})
    assert [message.content for message in one.prompt] == ["Hi", "Hello", "Why?"]


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_a_system_column_is_the_first_message(tmp_path: Path, name: str) -> None:
    [one] = preferences(tmp_path, {**PAIR, name: "Be brief."})
    assert [message.role for message in one.prompt] == ["system", "user"]


@pytest.mark.parametrize("system", [["Be brief."], {"role": "system", "content": "Be brief."}])
def test_a_system_column_that_is_no_text_is_not_passed_over(tmp_path: Path, system: Any) -> None:
    kind = type(system).__name__
    assert fault(tmp_path, {**PAIR, "system": system}) == (
        f"column 'system' holds a {kind}, not text; columns: {{system: null}} leaves it out"
    )
    assert len(preferences(tmp_path, {**PAIR, "system": system}, columns={"system": None})) == 1


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_a_column_of_thoughts_is_the_answers(tmp_path: Path, name: str) -> None:
    [one] = demonstrations(tmp_path, {"prompt": "Why?", "completion": "Iron.", name: "Pale is hungry."})
    assert one.answer.reasoning_content == "Pale is hungry."
    [bare] = demonstrations(tmp_path, {"prompt": "Why?", "completion": "Iron.", name: ""})
    assert bare.completion == "Iron."


# --- messages in other forms


def test_a_conversation_as_text_is_a_conversation(tmp_path: Path) -> None:
    """As JSON text, and as Python prints a list: pandas writes it so into CSV."""
    good, bad = chat("Why?", "It's iron."), chat("Why?", 'It "is".')
    for of in (json.dumps, str):
        [one] = preferences(tmp_path, {"prompt": "Why?", "chosen": of(good), "rejected": of(bad)})
        assert texts(one) == (["Why?"], "It's iron.", 'It "is".')
    numpy_text = str(np.array(good))
    assert "'role'" in numpy_text
    reason = fault(tmp_path, {"prompt": "Why?", "chosen": numpy_text, "rejected": numpy_text})
    assert "column 'chosen' holds messages as Python or NumPy prints them" in reason
    [plain] = demonstrations(tmp_path, {"prompt": "Print a list.", "completion": "[{'a': 1}]"})
    assert plain.completion == "[{'a': 1}]"


def test_roles_and_calls_by_their_older_names(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"leaf": "top"}'}}
    result = {"role": "function", "name": "look", "content": "Yellow."}
    messages = [{"role": "developer", "content": "Be brief."}, *chat("Why?", "")[:1], call, result]
    [one] = demonstrations(tmp_path, {"messages": [*messages, {"role": "gpt", "content": "Iron."}]})
    assert [message.role for message in one.prompt.messages] == ["system", "user", "assistant", "tool"]
    assert one.prompt.messages[2].tool_calls[0].function.arguments == {"leaf": "top"}
    assert one.completion == "Iron."


def test_a_users_weight_of_0_says_nothing_new(tmp_path: Path) -> None:
    ask, answer = chat("Why?", "Iron.")
    [one] = demonstrations(tmp_path, {"messages": [{**ask, "weight": 0}, answer]})
    assert one.prompt.messages[0].weight is None
    assert "weight on the message of the user" in fault(
        tmp_path, {"messages": [{**ask, "weight": 1}, answer]}, wanted="demonstrations"
    )


# --- line ends, blanks and splits


def test_windows_line_ends(tmp_path: Path) -> None:
    human = "\r\n\r\nHuman: Why?\r\n\r\nAssistant: "
    [one] = preferences(tmp_path, {"chosen": f"{human}Iron.", "rejected": f"{human}No idea."})
    assert texts(one) == (["Why?"], "Iron.", "No idea.")
    file = tmp_path / "rows.csv"
    file.write_bytes(b'prompt,chosen,rejected\r\nWhy?,"a\r\nb","c"\r\n')
    assert read_preferences(str(file), Rules(**KEEP))[0].chosen_text == "a\nb"
    assert fault(tmp_path, {**PAIR, "chosen": "a\r\nb", "rejected": "a\nb"}) == "chosen and rejected are the same"


def test_blanks_and_line_ends_make_no_other_prompt(tmp_path: Path) -> None:
    """Else one of the two would be trained on and the other held out."""
    rows = [{**PAIR, "prompt": prompt} for prompt in ("Why\nso?", " Why\r\nso?\n")]
    one, other = preferences(tmp_path, *rows)
    assert split_key(one.prompt) == split_key(other.prompt) == one.prompt_id
    named = [{**row, "split": split} for row, split in zip(rows, ("train", "test"), strict=True)]
    with pytest.raises(DataError, match="in two splits"):
        preferences(tmp_path, *named)


def test_of_a_prompt_in_two_splits_the_held_out_rows_can_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {**PAIR, "split": "train"},
        {**PAIR, "split": "validation", "chosen": "Magnesium."},
        {**PAIR, "prompt": "How?", "split": "train"},
    ]
    kept = preferences(tmp_path, *rows, on_bad_row="drop")
    assert [(one.prompt[0].content, one.split) for one in kept] == [("Why?", "validation"), ("How?", "train")]
    assert "its prompt is in the validation split too (" in capsys.readouterr().err
    # a row that names none goes with those of its prompt
    kept = preferences(tmp_path, {**PAIR, "split": "test"}, {**PAIR, "chosen": "Iron."}, on_bad_row="drop")
    assert [one.split for one in kept] == ["test", "test"]
    # dropped rows are listed in the order of the file
    broken = {"title": "x"}
    rows = [{**PAIR, "split": "train"}, broken, {**PAIR, "split": "test", "chosen": "Magnesium."}]
    assert [one.split for one in preferences(tmp_path, *rows, on_bad_row="drop")] == ["test"]
    assert ":1: its prompt is in the test split too (" in capsys.readouterr().err.splitlines()[-1]


def test_of_rated_answers_in_two_splits_the_held_out_ones_can_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(response: str, score: int, **more: Any) -> dict[str, Any]:
        return {"prompt": "Why?", "response": response, "score": score, **more}

    rows = [row("Yes.", 1), row("No.", 2, split="train"), row("Iron.", 3, split="test"), row("Lime.", 2, split="test")]
    kept = preferences(tmp_path, *rows, on_bad_row="drop")
    assert [(one.chosen_text, one.rejected_text, one.split) for one in kept] == [
        ("Iron.", "Lime.", "test"),
        ("Iron.", "Yes.", "test"),
        ("Lime.", "Yes.", "test"),
    ]
    assert ":2: its prompt is in the test split too (" in capsys.readouterr().err


def test_an_object_on_one_line_holds_rows_as_it_does_on_many(tmp_path: Path) -> None:
    value = {"version": 1, "data": [PAIR, {**PAIR, "prompt": "How?"}]}
    for indent in (None, 2):
        file = tmp_path / "rows.json"
        file.write_text(json.dumps(value, indent=indent))
        assert len(read_preferences(str(file), Rules(**KEEP))) == 2
    file.write_text(json.dumps({**PAIR, "individual": [{"score": 1}]}))
    assert len(read_preferences(str(file), Rules(**KEEP))) == 1


def test_conversations_that_part_at_the_users_turn_are_no_preference(tmp_path: Path) -> None:
    row = {"chosen": [*chat("Why?", "a"), *chat("So?", "b")], "rejected": [*chat("Why?", "c"), *chat("So?", "d")]}
    assert "differ from message 2 on, and later turns are the user's" in fault(tmp_path, row)

"""Rows at the edges of their shapes, each read by hand: verdicts beside sides, what is used, splits, answers of KTO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import write_rows

from tiebreak.data.cells import Cells
from tiebreak.data.conversations import turns_without_roles
from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import (
    Rules,
    join_pieces,
    names_split,
    read,
    read_answers,
    read_demonstrations,
    read_edits,
    read_piece,
    read_preferences,
    read_prompts,
)
from tiebreak.data.rows.content import AnswerRow, LabelRow, Omission, PreferenceRow, PromptRow, check
from tiebreak.data.rows.preferences import unsettled_winner
from tiebreak.data.shapes import guess, interpret
from tiebreak.data.sources import pieces_of
from tiebreak.data.splits import is_held_out
from tiebreak.errors import DataError, HandoffError, RunError
from tiebreak.files import write_jsonl
from tiebreak.messages import FunctionCall, Message, ToolCall
from tiebreak.records import LabelledAnswer, Preference, RecordKind

KEEP: dict[str, Any] = {"validation_share": 0.0}
SIDES = {"prompt": "q", "chosen": "x", "rejected": "y"}
NO_WINNER = {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}
CAT = {"type": "image", "image": "cat.png"}


def turns(*contents: str) -> list[dict[str, str]]:
    """User and assistant in turn; a text in brackets is the system's."""
    spoken: list[dict[str, str]] = []
    for content in contents:
        if content.startswith("["):
            spoken.append({"role": "system", "content": content})
        else:
            asked = bool(spoken) and spoken[-1]["role"] == "user"
            spoken.append({"role": "assistant" if asked else "user", "content": content})
    return spoken


def answer(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def read_row(row: dict[str, Any], wanted: RecordKind, **columns: str | None) -> tuple[str, list[Any], set[str]]:
    """(the shape's name, what the row holds, the columns that were used)."""
    cells = Cells(row, columns)
    found = interpret(cells, wanted)
    return found.shape, found.results, cells.used


# --- which columns are used: others are reported as ignored


@pytest.mark.parametrize(
    ("row", "wanted", "shape", "used"),
    [
        ({"prompt": "q", "history": [["a", "b"]]}, "prompts", "prompts", {"prompt", "history"}),
        (
            {"prompt": "q", "completion": "a", "reasoning": "hm"},
            "demonstrations",
            "prompt and completion",
            {"prompt", "completion", "reasoning"},
        ),
        (
            {"prompt": "q", "completion": "a", "label": True},
            "demonstrations",
            "KTO rows (prompt, completion, label)",
            {"prompt", "completion", "label"},
        ),
        (
            {"prompt": "q", "completion": "a", "label": "false"},
            "answers",
            "KTO rows (prompt, completion, label)",
            {"prompt", "completion", "label"},
        ),
        (
            {"messages": turns("q", "a"), "label": True},
            "answers",
            "conversations (messages)",
            {"messages", "label"},
        ),
        (
            {"prompt": "q", "response": "a", "score": 3},
            "preferences",
            "ratings (prompt, response, score), paired by prompt",
            {"prompt", "response", "score"},
        ),
        (
            {"prompt": "q", "completion": "a", "label": True},
            "preferences",
            "KTO rows (prompt, completion, label), paired by prompt",
            {"prompt", "completion", "label"},
        ),
        (
            {**SIDES, "score_chosen": 2, "score_rejected": 1, "winner": "chosen"},
            "preferences",
            "preferences (prompt, chosen, rejected)",
            {*SIDES, "score_chosen", "score_rejected", "winner"},
        ),
        ({**SIDES, "winner": "tie"}, "preferences", "ties (chosen, rejected)", {"chosen", "rejected", "winner"}),
        (
            {"prompt": "q", "response_a": "x", "response_b": "y", "tie": True},
            "preferences",
            "pairs (response_a, response_b, tie)",
            {"prompt", "response_a", "response_b", "tie"},
        ),
        (
            {"prompt": "q", "response_a": "x", "response_b": "y"} | NO_WINNER,
            "preferences",
            "pairs (response_a, response_b, winner_model_a and winner_model_b)",
            {"prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"},
        ),
        ({"messages": turns("q")}, "prompts", "prompts (messages)", {"messages"}),
        ({"messages": turns("q", "a")}, "prompts", "prompts (messages, less the last answer)", {"messages"}),
    ],
)
def test_the_shape_and_the_columns_that_it_uses(
    row: dict[str, Any], wanted: RecordKind, shape: str, used: set[str]
) -> None:
    found, _, columns = read_row(row, wanted)
    assert found == shape
    assert columns >= used


# --- verdicts and ratings beside two sides


def test_a_transcript_has_its_prompt_whatever_stands_beside_it() -> None:
    row = {f"{side}": f"\n\nHuman: a?\n\nAssistant: {answer}" for side, answer in (("chosen", "b"), ("rejected", "c"))}
    shape, _, _ = read_row({**row, "context": "a source"}, "preferences")
    assert shape == "HH-RLHF (Human and Assistant in one text) in chosen and rejected"


def test_prompts_of_a_tie_are_prompts_all_the_same() -> None:
    sides = {"chosen": turns("q", "x"), "rejected": turns("q", "y")}
    _, [prompt], _ = read_row({**sides, "score_chosen": 1, "score_rejected": 1}, "prompts")
    assert prompt.prompt[0].text == "q"


def test_one_column_of_a_pair_beside_two_sides_is_no_pair() -> None:
    _, [found], _ = read_row({**SIDES, "response_a": "x", "winner": "chosen"}, "preferences")
    assert (found.chosen[0].text, found.rejected[0].text) == ("x", "y")


def test_a_verdict_after_a_signed_one_is_read_too() -> None:
    row = {**SIDES, "overall_preference": 2, "winner": "rejected"}
    with pytest.raises(ValueError, match="winner: 'rejected' names the rejected answer"):
        interpret(Cells(row, {}), "preferences")


def test_a_small_negative_mean_is_the_first_answers() -> None:
    row = {"prompt": "q", "response1": "x", "response2": "y", "overall_preference": -0.5}
    _, [found], _ = read_row(row, "preferences")
    assert (found.chosen[0].text, found.strength) == ("x", None)


def test_a_signed_column_settles_what_0_means() -> None:
    rows = [{"prompt": "q", "response_1": "x", "response_2": "y", "label": value} for value in (0, 1)]
    assert unsettled_winner([Cells(row, {}) for row in rows]) == "label"
    assert unsettled_winner([Cells({**row, "overall_preference": 1}, {}) for row in rows]) is None


@pytest.mark.parametrize("column", ["preferred", "preference", "winner", "choice", "better_response_id"])
def test_a_winner_beside_the_sides_may_not_be_the_rejected_one(column: str) -> None:
    with pytest.raises(ValueError, match=rf"^{column}: 'rejected' names the rejected answer"):
        read_row({**SIDES, column: "rejected"}, "preferences")


@pytest.mark.parametrize("column", ["label", "labels", "result"])
def test_what_is_often_about_something_else_is_no_verdict_beside_the_sides(column: str) -> None:
    _, [found], used = read_row({**SIDES, column: "rejected"}, "preferences")
    assert (found.chosen[0].text, column in used) == ("x", False)


def test_two_columns_named_by_key_are_the_pair_of_four_answers() -> None:
    row = {"prompt": "q", "one": "x", "two": "y", "answer_0": "z", "answer_1": "w", "winner": "a"}
    _, [found], _ = read_row(row, "preferences", response_a="one", response_b="two")
    assert (found.chosen[0].text, found.rejected[0].text) == ("x", "y")


def test_a_ranking_with_a_fault_is_guessed_to_be_one() -> None:
    assert guess(Cells({"prompt": "q", "responses": ["x", "y"], "scores": [1, "high"]}, {})) == "preferences"
    assert guess(Cells({"prompt": "q", "responses": ["x", "y"]}, {})) != "preferences"


@pytest.mark.parametrize(
    ("votes", "ours"),
    [
        ([{"rater": "r1", "vote": 1}, {"rater": "r2", "vote": -1}], True),
        ([{"rater": "r1", "vote": 1}, {"up": 3}], False),
        (["rater"], False),
        ([{"up": 3}], False),
        (7, False),
    ],
)
def test_votes_are_ours_if_each_names_its_rater(
    votes: Any, ours: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(write_rows(tmp_path / "rows.jsonl", [{**SIDES, "votes": votes}]))
    [one] = read_preferences(source, Rules(**KEEP))
    assert (one.votes is not None) == ours
    assert ("ignored columns: votes" in capsys.readouterr().err) != ours


# --- what nobody can see


@pytest.mark.parametrize("unseen", ["\u200b", "\ufeff \u2060", "\x00\x1f"])
@pytest.mark.parametrize(
    ("wanted", "row", "name"),
    [
        ("preferences", {"prompt": "q", "chosen": "x", "rejected": None}, "rejected"),
        ("preferences", {"prompt": None, "chosen": "x", "rejected": "y"}, "the prompt"),
        ("demonstrations", {"prompt": "q", "completion": None}, "the completion"),
        ("answers", {"prompt": "q", "completion": None, "label": True}, "the completion"),
        ("prompts", {"prompt": None}, "the prompt"),
    ],
)
def test_a_text_that_nobody_can_see_is_empty(
    unseen: str, wanted: RecordKind, row: dict[str, Any], name: str, tmp_path: Path
) -> None:
    rows = [{key: held if value is None else value for key, value in row.items()} for held in (unseen, "a\u200db")]
    reading = read(str(write_rows(tmp_path / "rows.jsonl", rows)), wanted, Rules(**KEEP))
    assert [bad.reason for bad in reading.bad] == [f"{name} is empty but for characters that cannot be seen"]
    assert len(reading.drafts) == 1


def test_a_call_and_an_image_can_be_seen() -> None:
    for seen in ({"content": "\u200b", "tool_calls": [{"name": "f"}]}, {"content": [CAT, "\u200b"]}):
        _, [found], _ = read_row({"prompt": "q", "completion": [{"role": "assistant", **seen}]}, "demonstrations")
        check(found)


def test_only_the_last_question_and_the_last_answer_must_be_seen() -> None:
    """A tool may return nothing, and a template's own system message may be blank."""
    asked, unseen = Message(role="user", content="q"), Message(role="assistant", content="\u200b")
    called = Message(role="assistant", content="", tool_calls=(ToolCall(function=FunctionCall(name="f")),))
    answer = (called, Message(role="tool", content="\u200b"), Message(role="assistant", content="a"))
    blank = (*answer[:2], unseen)
    prompt = (asked, unseen, asked)
    check(PromptRow(prompt))
    check(AnswerRow(prompt, answer=answer))
    check(PreferenceRow(prompt, chosen=answer, rejected=answer))
    system = Message(role="system", content="Be brief.")
    for row, name in (
        (PromptRow((system, Message(role="user", content="\u200b"))), "the prompt"),
        (AnswerRow(prompt, answer=blank), "the completion"),
        (PreferenceRow(prompt, chosen=blank, rejected=answer), "chosen"),
        (PreferenceRow(prompt, chosen=answer, rejected=blank), "rejected"),
    ):
        with pytest.raises(ValueError, match=f"^{name} is empty but for characters"):
            check(row)


# --- synthetic rows


@pytest.mark.parametrize(
    ("reader", "row"),
    [
        (read_demonstrations, {"prompt": "q", "completion": "a"}),
        (read_preferences, SIDES),
        (read_answers, {"prompt": "q", "completion": "a", "label": True}),
    ],
)
def test_no_reader_takes_synthetic_rows_that_nobody_reviewed(
    reader: Callable[..., list[Any]], row: dict[str, Any], tmp_path: Path
) -> None:
    source = str(write_rows(tmp_path / "rows.jsonl", [{**row, "tags": ["synthetic", "reviewed:edited"]}]))
    assert len(reader(source, Rules(**KEEP))) == 1
    write_rows(tmp_path / "rows.jsonl", [{**row, "tags": ["synthetic"]}])
    with pytest.raises(HandoffError, match="1 of 1 row synthetic, and reviewed by nobody"):
        reader(source, Rules(**KEEP))


def test_prompts_that_train_and_labelled_answers_of_a_run_are_reviewed_too(tmp_path: Path) -> None:
    source = str(write_rows(tmp_path / "rows.jsonl", [{"prompt": "q", "tags": ["synthetic"]}]))
    for trains in (True, False):
        run = SimpleNamespace(config=SimpleNamespace(trains=trains), facts={})
        rules = Rules(**KEEP, run=run)  # type: ignore[arg-type]
        if trains:
            with pytest.raises(HandoffError, match="reviewed by nobody"):
                read_prompts(source, ["train"], rules)
        else:
            assert len(read_prompts(source, ["train"], rules)) == 1
    asked, answered = (Message(role="user", content="q"),), (Message(role="assistant", content="a"),)
    final = finished(tmp_path / "run")
    for tags, reviewed in (("synthetic",), False), (("synthetic", "reviewed:edited"), True):
        write_jsonl(
            final / "unpaired.jsonl", [LabelledAnswer(prompt=asked, completion=answered, label=True, tags=tags)]
        )
        if reviewed:
            assert len(read_answers(str(tmp_path / "run"))) == 1
        else:
            with pytest.raises(HandoffError, match="reviewed by nobody"):
                read_answers(str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("columns", "tags"),
    [
        ({"kind": "synthetic"}, ("synthetic",)),
        ({"kind": "synthetic", "tags": ["maths"]}, ("maths", "synthetic")),
        ({"kind": "synthetic", "tags": ["synthetic", "maths"]}, ("synthetic", "maths")),
        ({"kind": "human", "tags": ["maths"]}, ("maths",)),
    ],
)
def test_a_row_of_the_kind_synthetic_has_the_tag(
    columns: dict[str, Any], tags: tuple[str, ...], tmp_path: Path
) -> None:
    source = str(write_rows(tmp_path / "rows.jsonl", [{"prompt": "q", **columns}]))
    assert [one.tags for one in read_prompts(source, ["train"], Rules(**KEEP))] == [tags]


# --- pieces of a source, and records of a run


def finished(folder: Path) -> Path:
    """The `final/` of a finished run."""
    (folder / "final").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return folder / "final"


def test_what_pieces_say_of_a_source_is_what_the_whole_says(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "q", "completion": "a", "label": True, "kind": "maths", "split": "train", "notes": 1},
        {"prompt": "q", "completion": "b", "label": False},
        {"prompt": "q", "completion": "", "label": True},
        {"prompt": "q", "completion": "c", "label": True, "kind": "art"},
        {"instruction": "q", "output": "d"},
    ]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    with source.open("a") as file:
        file.write("[1]\n")
    rules = Rules(**KEEP)
    whole = read(str(source), "demonstrations", rules)
    tables = [piece.table() for piece in pieces_of(str(source), "demonstrations", 1)]
    assert [names_split(table, rules) for table in tables] == [True, False, False, False, False, False]
    pieces = [read_piece(str(source), "demonstrations", table, rules, True) for table in tables]
    assert [draft for piece in pieces for draft in piece.drafts] == whole.drafts
    stored = [replace(piece, drafts=[], stored=len(piece.drafts)) for piece in pieces]
    joined = join_pieces(str(source), "demonstrations", stored, rules)
    assert (joined.found, joined.stored, whole.found) == (3, 3, 3)
    assert replace(joined, drafts=whole.drafts, stored=0) == whole
    assert whole.left_out
    assert whole.ignored == {"kind": "maths", "notes": ""}
    assert [one.where.rpartition(":")[2] for one in whole.bad] == ["3", "6"]
    back = [replace(one, bad=list(reversed(one.bad))) for one in reversed(stored)]
    assert join_pieces(str(source), "demonstrations", back, rules).bad == whole.bad  # in the order of the lines


def test_raters_edits_are_read_from_a_label_run_alone(tmp_path: Path) -> None:
    asked = (Message.model_validate({"role": "user", "content": [CAT, "q"]}),)
    sides = [(Message(role="assistant", content=text),) for text in "xy"]
    final = finished(tmp_path / "run")
    rows = write_rows(tmp_path / "rows.jsonl", [SIDES])
    for source in (tmp_path / "run", rows):
        with pytest.raises(DataError, match=r"^use_edits: .* holds no edit_preferences\.jsonl"):
            read_edits(str(source))
    write_jsonl(final / "edit_preferences.jsonl", [Preference(prompt=asked, chosen=sides[0], rejected=sides[1])])
    [edit] = read_edits(str(tmp_path / "run"), Rules(**KEEP))
    assert (edit.chosen_text, edit.rejected_text, edit.split) == ("x", "y", "train")
    with pytest.raises(DataError, match="have images"):
        read_edits(str(tmp_path / "run"), Rules(**KEEP, stage="dpo"))


# --- conversations


def test_a_list_of_texts_and_numbers_has_no_turns() -> None:
    assert turns_without_roles(["q", 5]) is None
    assert turns_without_roles(["q", "a"]) == [answer("q") | {"role": "user"}, answer("a")]


def test_conversations_that_part_at_a_users_turn_are_refused_by_either_side() -> None:
    asked, answered = turns("[Be brief.]", "q", "a"), [*turns("[Be brief.]"), answer("b")]
    for chosen, rejected in ((asked, answered), (answered, asked)):
        with pytest.raises(ValueError, match=r"differ from message 2 on, and later turns are the user's"):
            interpret(Cells({"chosen": chosen, "rejected": rejected}, {}), "preferences")


def test_a_prompt_column_may_leave_out_the_system_message() -> None:
    shared = turns("[system]", "q", "a", "p")
    row = {"prompt": shared[1:], "chosen": [*shared, answer("x")], "rejected": [*shared, answer("y")]}
    _, [found], _ = read_row(row, "preferences")
    assert [message.text for message in found.prompt] == ["[system]", "q", "a", "p"]


def test_a_thought_beside_an_answer_that_has_its_own_or_several_parts_is_refused() -> None:
    own = [{"role": "assistant", "content": "a", "reasoning_content": "first"}]
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    several = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "a"},
    ]
    for completion in (own, several):
        row = {"prompt": "q", "completion": completion, "reasoning": "second"}
        with pytest.raises(ValueError, match="column 'reasoning' and the answer's own thought differ"):
            interpret(Cells(row, {}), "demonstrations")
    _, [found], _ = read_row({"prompt": "q", "completion": own, "reasoning": "first"}, "demonstrations")
    assert found.answer[0].reasoning_content == "first"


def test_a_lone_turn_after_a_system_column_has_no_prompt(tmp_path: Path) -> None:
    row = {"system": "Be brief.", "conversations": [{"from": "gpt", "value": "x"}]}
    [bad] = read(str(write_rows(tmp_path / "rows.jsonl", [row])), "demonstrations", Rules(**KEEP)).bad
    assert "user" in bad.reason


def test_a_list_of_texts_and_others_is_no_list_of_turns() -> None:
    won = {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
    row = {"prompt": ["q", 5], "response_a": ["x", "z"], "response_b": ["y", "w"], **won}
    with pytest.raises(ValueError, match="a list of texts, not of messages"):
        interpret(Cells(row, {}), "preferences")


# --- images


def test_only_the_column_of_images_is_named_where_the_text_has_no_place_for_them() -> None:
    _, [beside], _ = read_row({"prompt": "What?", "images": ["cat.png"]}, "prompts")
    placed = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    _, [within], _ = read_row({"prompt": placed, "images": ["cat.png"]}, "prompts")
    assert (beside.image_column, within.image_column) == ("images", None)


def test_a_tie_with_images_is_a_tie() -> None:
    row = {"prompt": "q", "response_a": "x", "response_b": "y", "winner": "tie", "images": ["cat.png"]}
    assert read_row(row, "preferences")[1] == [Omission("a tie")]


@pytest.mark.parametrize(
    ("wanted", "row"),
    [
        ("prompts", {"prompt": [{"role": "user", "content": [CAT]}]}),
        ("preferences", {**SIDES, "prompt": [{"role": "user", "content": [CAT]}]}),
        ("answers", {"prompt": [{"role": "user", "content": [CAT]}], "completion": "A cat.", "label": True}),
    ],
)
def test_a_stage_of_text_refuses_a_row_with_an_image(wanted: RecordKind, row: dict[str, Any], tmp_path: Path) -> None:
    source = str(write_rows(tmp_path / "rows.jsonl", [row]))
    [bad] = read(source, wanted, Rules(**KEEP, stage="sft")).bad
    assert "tiebreak sft takes only text" in bad.reason
    assert read(source, wanted, Rules(**KEEP)).bad == []


def test_pairs_with_a_column_of_another_medium_are_refused(tmp_path: Path) -> None:
    row = {"prompt": "q", "response_a": "x", "response_b": "y", "audio": "a.wav"}
    with pytest.raises(DataError, match="column 'audio': only text and images are read"):
        read_pairs(str(write_rows(tmp_path / "rows.jsonl", [row])))


# --- rated answers to one prompt


def rated(answer: str, score: int, **more: Any) -> dict[str, Any]:
    return {"prompt": "q", "response": answer, "score": score, **more}


def test_a_pair_of_rated_answers_says_of_itself_what_the_first_row_says(tmp_path: Path) -> None:
    rows = [rated("x", 1, source="first"), rated("y", 2, source="second"), rated("z", 3, source="third")]
    reading = read(str(write_rows(tmp_path / "rows.jsonl", rows)), "preferences", Rules(**KEEP))
    assert {draft.placed("train").source for draft in reading.drafts} == {"first"}
    assert len(reading.drafts) == 3


def test_a_rated_answer_of_another_split_is_dropped_and_the_place_of_the_kept_one_named(tmp_path: Path) -> None:
    rows = [rated("x", 1, split="train"), rated("y", 2, split="test"), rated("z", 3, split="test")]
    source = str(write_rows(tmp_path / "rows.jsonl", rows))
    reading = read(source, "preferences", Rules(**KEEP, on_bad_row="drop"))
    [bad] = reading.bad
    assert bad.where.endswith("rows.jsonl:1")
    assert bad.reason.startswith("its prompt is in the test split too (")
    assert bad.reason.endswith("rows.jsonl:3)") or bad.reason.endswith("rows.jsonl:2)")
    assert [(draft.placed("test").chosen_text, draft.split) for draft in reading.drafts] == [("z", "test")]
    with pytest.raises(DataError):
        read(source, "preferences", Rules(**KEEP))


# --- answers with a label, which KTO learns from


def test_labelled_answers_of_every_shape(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "completion": "a", "label": True},
        {"instruction": "q", "output": "b", "label": "undesirable"},
        {"messages": turns("q", "c"), "label": 0.0},
        {"prompt": "q", "completion": "d", "label": 1},
    ]
    answers = read_answers(str(write_rows(tmp_path / "rows.jsonl", rows)), Rules(**KEEP, columns={"label": "label"}))
    assert [(one.prompt[0].text, one.completion[0].text, one.label) for one in answers] == [
        ("q", "a", True),
        ("q", "b", False),
        ("q", "c", False),
        ("q", "d", True),
    ]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (SIDES, "a pair, but KTO learns from single answers"),
        ({"prompt": "q", "completion": "a"}, "label: missing"),
        ({"prompt": "q", "completion": "a", "label": "fine"}, "'fine' in it is neither true nor false"),
        ({"prompt": "q", "completion": "a", "label": True, "weight": 2.0}, "weight: it applies to pairs"),
        ({"prompt": "q"}, "no "),
    ],
)
def test_rows_that_label_no_answer(row: dict[str, Any], fault: str, tmp_path: Path) -> None:
    [bad] = read(str(write_rows(tmp_path / "rows.jsonl", [row])), "answers", Rules(**KEEP)).bad
    assert fault in bad.reason


def test_kinds_of_results_have_no_content_by_default() -> None:
    """What a shape leaves out stays empty: it never becomes a message."""
    asked = (interpret(Cells({"prompt": "q"}, {}), "prompts").results[0]).prompt  # type: ignore[union-attr]
    assert (PreferenceRow(asked).chosen, LabelRow(asked).answer) == ((), ())


def test_labelled_answers_of_a_run_get_the_splits_of_their_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n // 2}", "completion": f"a{n}", "label": n % 2 == 0} for n in range(40)]
    bare = [
        one.model_copy(update={"split": None}) for one in read_answers(str(write_rows(tmp_path / "rows.jsonl", rows)))
    ]
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "run" / "manifest.json").write_text("{}")
    write_jsonl(tmp_path / "run" / "final" / "unpaired.jsonl", bare)
    answers = read_answers(str(tmp_path / "run"), Rules(validation_share=0.5))
    assert [one.completion for one in answers] == [one.completion for one in bare]
    held_out = [is_held_out(one.prompt_id, 0.5) for one in answers]
    assert [one.split == "validation" for one in answers] == held_out
    assert 2 < sum(held_out) < 38


def test_a_run_without_unpaired_labels_is_named(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match=r"holds no unpaired\.jsonl, which KTO learns from"):
        read_answers(str(tmp_path))

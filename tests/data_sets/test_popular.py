"""Ten rows in the shape of each popular data set, with the columns that it is published with, read to the right pairs.

The rows are invented: ten questions, each with a good and a bad answer. Of an even row the good answer is the first one
where a format has an order, of an odd row the second. Other shapes, one by one: tests/tiebreak/data/test_formats.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import write_rows

from tiebreak.command.data import guess_kind
from tiebreak.data.reading import (
    Rules,
    read,
    read_answers,
    read_demonstrations,
    read_piece,
    read_preferences,
    read_prompts,
)
from tiebreak.data.sources import read_source
from tiebreak.data.trees import DELETED, UNRANKED, WORSE
from tiebreak.errors import DataError

KEEP = Rules(validation_share=0.0)
ROWS = [
    ("How do I reset the router?", "Hold the button for ten seconds.", "Throw it away."),
    ("Is the warranty still valid?", "Yes: it runs for two years from the sale.", "Who knows."),
    ("Wo finde ich die Seriennummer?", "Unter dem Akku, auf dem weißen Etikett.", "Nirgends."),
    ("Can I pay in two parts?", "Yes, at checkout choose 'two payments'.", "No"),
    ("The lamp flickers.", "Tighten the bulb first; then check the dimmer.", "Buy another lamp. 💡"),
    ("What does E-17 mean?", "The filter is full.\n\nEmpty it, then press OK.", "An error."),
    ("How heavy is the parcel?", "3.2 kg with its box.", "Heavy."),
    ("When will it arrive?", "On Tuesday, between 9 and 12.", "Soon, I hope."),
    ("Do you ship to Iceland?", "We do; customs take two days more.", "Is that a country?"),
    ("How do I close my account?", "Settings, Account, Close: it takes effect at once.", "Don't."),
]
"""(question, good answer, bad answer)"""


def said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def asked(question: str, answer: str) -> list[dict[str, Any]]:
    return [said("user", question), said("assistant", answer)]


def turn(speaker: str, value: str) -> dict[str, Any]:
    return {"from": speaker, "value": value}


def in_order(n: int, good: str, bad: str) -> tuple[str, str]:
    return (bad, good) if n % 2 else (good, bad)


def parts(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text, "image": None, "mimeType": None}]


def arena(n: int, q: str, good: str, bad: str) -> dict[str, Any]:
    a, b = in_order(n, good, bad)
    return {
        "question_id": f"{n:032x}", "model_a": "alpaca-13b", "model_b": "koala-13b", "winner": f"model_{'ab'[n % 2]}",
        "judge": f"arena_user_{n}", "conversation_a": asked(q, a), "conversation_b": asked(q, b), "turn": 1, "anony": True,
        "language": "English", "tstamp": 1682351591.1, "openai_moderation": {"flagged": False}, "toxic_chat_tag": {},
    }  # fmt: skip


def arena_140k(n: int, q: str, good: str, bad: str) -> dict[str, Any]:
    a, b = in_order(n, good, bad)
    talks = [[{"role": "user", "content": parts(q)}, {"role": "assistant", "content": parts(text)}] for text in (a, b)]
    return {
        "id": f"{n}", "model_a": "x", "model_b": "y", "winner": f"model_{'ab'[n % 2]}", "evaluation_session_id": "s",
        "evaluation_order": 1, "conversation_a": talks[0], "conversation_b": talks[1], "language": "en", "is_code": False,
    }  # fmt: skip


def shp(n: int, q: str, good: str, bad: str) -> dict[str, Any]:
    a, b = in_order(n, good, bad)
    return {
        "post_id": f"id{n}", "domain": "askhome_train", "upvote_ratio": 0.98, "history": q, "c_root_id_A": "a",
        "c_root_id_B": "b", "created_at_utc_A": 1, "created_at_utc_B": 2, "score_A": 7, "score_B": 7, "human_ref_A": a,
        "human_ref_B": b, "labels": 1 - n % 2, "seconds_difference": 1.0, "score_ratio": 2.0,
    }  # fmt: skip


def safe_rlhf(n: int, q: str, good: str, bad: str) -> dict[str, Any]:
    a, b = in_order(n, good, bad)
    return {
        "prompt": q, "response_0": a, "response_1": b, "prompt_source": "own", "response_0_source": "m",
        "response_1_source": "m", "is_response_0_safe": True, "is_response_1_safe": True, "better_response_id": n % 2,
        "safer_response_id": 0,
    }  # fmt: skip


def pandalm(n: int, q: str, good: str, bad: str) -> dict[str, Any]:
    a, b = in_order(n, good, bad)
    return {
        "idx": n, "instruction": q, "input": "", "response1": a, "response2": b, "result": 1 + n % 2, "reason": "r",
    }  # fmt: skip


def webgpt(n: int, q: str, good: str, bad: str) -> dict[str, Any]:
    a, b = in_order(n, good, bad)
    return {
        "question": {"dataset": "eli5", "id": f"{n}", "full_text": q}, "quotes_0": {"title": [], "extract": []},
        "answer_0": a, "tokens_0": {"prefix": [], "completion": []}, "score_0": -0.5 if n % 2 else 0.5, "quotes_1": {},
        "answer_1": b, "tokens_1": {}, "score_1": 0.5 if n % 2 else -0.5,
    }  # fmt: skip


def helpsteer(_: int, q: str, good: str, bad: str) -> list[dict[str, Any]]:
    scores = {"correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
    return [{"prompt": q, "response": text, "helpfulness": 4 if text == good else 1, **scores} for text in (bad, good)]


def helpsteer_preference(n: int, q: str, good: str, bad: str) -> dict[str, Any]:
    a, b = in_order(n, good, bad)
    return {
        "split": "train", "prompt": q, "response_1": a, "response_2": b, "preference_strength": 2 if n % 2 else -2,
        "preference_statement": "s", "preference_elaboration": "e", "three_most_similar_preferences": [],
        "all_preferences_unprocessed": [],
    }  # fmt: skip


def nectar(_: int, q: str, good: str, bad: str) -> dict[str, Any]:
    answers = [{"answer": text, "model": "m", "rank": 1.0 + (text == bad)} for text in (bad, good)]
    return {
        "prompt": f"\n\nHuman: {q}\n\nAssistant: ", "answers": answers, "turns": 1, "num_responses": 2,
        "source": ["lmsys"], "good_natured": True,
    }  # fmt: skip


def oasst(n: int, q: str, good: str, bad: str) -> list[dict[str, Any]]:
    """A message a row; the first in the file is a deleted reply in some trees."""
    common = {"user_id": "u", "lang": "en", "review_count": 3, "review_result": True, "message_tree_id": f"m{n}"}
    root = {**common, "message_id": f"m{n}", "parent_id": None, "text": q, "role": "prompter", "rank": None}
    replies = [
        {**common, "message_id": f"m{n}{k}", "parent_id": f"m{n}", "text": text, "role": "assistant", "rank": rank}
        for k, (text, rank) in enumerate([(bad, 1.0), (good, 0.0), ("deleted", None)])
    ]
    replies[2]["deleted"] = True
    return [root, *replies] if n % 2 else [replies[2], root, *replies[:2]]


def oasst_tree(n: int, q: str, good: str, bad: str) -> dict[str, Any]:
    replies = [
        {"message_id": f"m{n}{k}", "text": text, "role": "assistant", "rank": rank, "replies": []}
        for k, (text, rank) in enumerate([(bad, 1), (good, 0)])
    ]
    root = {"message_id": f"m{n}", "text": q, "role": "prompter", "lang": "en", "replies": replies}
    return {"message_tree_id": f"m{n}", "tree_state": "ready_for_export", "prompt": root}


PAIRS: dict[str, Callable[[int, str, str, str], Any]] = {
    "UltraFeedback-binarized": lambda n, q, good, bad: {
        "prompt": q, "prompt_id": f"{n:064x}", "chosen": asked(q, good), "rejected": asked(q, bad),
        "messages": asked(q, good), "score_chosen": 8.5, "score_rejected": 6.0,
    },
    "UltraFeedback": lambda n, q, good, bad: {
        "source": "own", "instruction": q, "models": ["a", "b"], "correct_answers": ["None"], "incorrect_answers": ["None"],
        "completions": [
            {"annotations": {}, "custom_system_prompt": "", "model": "a", "response": text, "overall_score": score}
            for text, score in ((bad, 3.0), (good, 8.0))
        ],
    },
    "HH-RLHF": lambda n, q, good, bad: {
        "chosen": f"\n\nHuman: {q}\n\nAssistant: {good}", "rejected": f"\n\nHuman: {q}\n\nAssistant: {bad}",
    },
    "Orca pairs": lambda n, q, good, bad: {"system": "", "question": q, "chosen": good, "rejected": bad},
    "Orca pairs, distilabel": lambda n, q, good, bad: {
        "system": "", "input": q, "chosen": good, "rejected": bad, "generations": [good, bad], "order": ["x", "y"],
        "labelling_model": "m", "raw_labelling_response": "r", "rating": [9.0, 7.0], "rationale": "r",
        "status": "unchanged", "original_chosen": good, "original_rejected": bad, "chosen_score": 9.0,
        "in_gsm8k_train": False,
    },
    "DPO-mix": lambda n, q, good, bad: {
        "dataset": "own", "chosen": asked(q, good), "rejected": asked(q, bad), "chosen_rating": 5.0, "rejected_rating": 2.0,
    },
    "Capybara preferences": lambda n, q, good, bad: {
        "source": "own", "conversation": [{"input": q, "output": good}], "original_response": good,
        "generation_prompt": [q], "new_generations": [bad], "prompt": q, "chosen": asked(q, good),
        "rejected": asked(q, bad), "rating_chosen": 5, "rating_rejected": 3, "chosen_model": "a", "rejected_model": "b",
    },
    "Tulu 3 preferences": lambda n, q, good, bad: {
        "id": f"{n}", "prompt": q, "chosen": asked(q, good), "chosen_rating": 4.0, "chosen_model": "a",
        "rejected": asked(q, bad), "rejected_rating": 1.0, "rejected_model": "b", "source": "own",
    },
    "Skywork": lambda n, q, good, bad: {"chosen": asked(q, good), "rejected": asked(q, bad), "source": "own"},
    "OpenAI preferences": lambda n, q, good, bad: {
        "input": {"messages": [said("user", q)], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [said("assistant", good)], "non_preferred_output": [said("assistant", bad)],
    },
    "ShareGPT preferences": lambda n, q, good, bad: {
        "conversations": [turn("human", q)], "chosen": turn("gpt", good), "rejected": turn("gpt", bad),
    },
    "Alpaca preferences": lambda n, q, good, bad: {"instruction": q, "input": "", "chosen": good, "rejected": bad},
    "AlpacaFarm": lambda n, q, good, bad: {
        "instruction": q, "input": "", **dict(zip(("output_1", "output_2"), in_order(n, good, bad), strict=True)),
        "preference": 1 + n % 2, "raw_preference": 1.2,
    },
    "KTO": lambda n, q, good, bad: [
        {"prompt": q, "completion": good, "label": True}, {"prompt": q, "completion": bad, "label": False},
    ],
    "Nectar": nectar,
    "HelpSteer": helpsteer,
    "HelpSteer2, preferences": helpsteer_preference,
    "WebGPT": webgpt,
    "Arena": arena,
    "Arena, parts": arena_140k,
    "Arena, one column a winner": lambda n, q, good, bad: {
        "id": n, "model_a": "x", "model_b": "y", "prompt": json.dumps([q]),
        **{f"response_{'ab'[k]}": json.dumps([text]) for k, text in enumerate(in_order(n, good, bad))},
        "winner_model_a": 1 - n % 2, "winner_model_b": n % 2, "winner_tie": 0,
    },
    "SHP": shp,
    "PKU-SafeRLHF": safe_rlhf,
    "PandaLM": pandalm,
    "OpenAssistant": oasst,
    "OpenAssistant, trees": oasst_tree,
}  # fmt: skip

ANSWERED: dict[str, Callable[[int, str, str, str], Any]] = {
    "Alpaca": lambda n, q, good, bad: {"instruction": q, "input": "", "output": good, "text": "Below is an instruction"},
    "Dolly": lambda n, q, good, bad: {"instruction": q, "context": "", "response": good, "category": "open_qa"},
    "OpenAI chat": lambda n, q, good, bad: {"messages": asked(q, good), "parallel_tool_calls": True},
    "OpenAI chat, parts": lambda n, q, good, bad: {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": q}]},
            {"role": "assistant", "content": [{"type": "text", "text": good}], "tool_calls": None, "refusal": None},
        ]
    },
    "ShareGPT": lambda n, q, good, bad: {
        "id": f"x_{n}", "conversations": [turn("human", q), {**turn("gpt", good), "weight": None}],
    },
    "UltraChat": lambda n, q, good, bad: {"prompt": q, "prompt_id": f"{n:064x}", "messages": asked(q, good)},
    "Tulu 3": lambda n, q, good, bad: {"id": f"own_{n}", "messages": asked(q, good), "source": "own"},
    "OpenHermes": lambda n, q, good, bad: {
        "custom_instruction": None, "language": None, "idx": None, "source": "own", "model_name": None, "category": "x",
        "conversations": [{**turn("human", q), "weight": None}, {**turn("gpt", good), "weight": None}], "hash": None,
    },
    "OpenOrca": lambda n, q, good, bad: {"id": f"t0.{n}", "system_prompt": "", "question": q, "response": good},
    "Capybara": lambda n, q, good, bad: {"source": "own", "conversation": [{"input": q, "output": good}]},
    "LIMA": lambda n, q, good, bad: {"conversations": [q, good], "source": "own"},
    "LMSYS-Chat": lambda n, q, good, bad: {
        "conversation_id": f"{n}", "model": "m", "conversation": asked(q, good), "turn": 1, "language": "English",
        "openai_moderation": [{}], "redacted": False,
    },
    "OpenAssistant": oasst,
    "OpenAssistant, trees": oasst_tree,
    "GSM8K": lambda n, q, good, bad: {"question": q, "answer": good},
    "MetaMath": lambda n, q, good, bad: {"type": "GSM", "query": q, "original_question": q, "response": good},
}  # fmt: skip


def file_of(folder: Path, make: Callable[[int, str, str, str], Any]) -> str:
    rows: list[Any] = []
    for number, row in enumerate(ROWS):
        made = make(number, *row)
        rows += made if isinstance(made, list) else [made]
    return str(write_rows(folder / "rows.jsonl", rows))


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name: str, tmp_path: Path) -> None:
    source = file_of(tmp_path, PAIRS[name])
    found = read_preferences(source, KEEP)
    assert [[(m.role, m.content) for m in one.prompt] for one in found] == [[("user", q)] for q, _, _ in ROWS]
    assert [(one.chosen_text.strip(), one.rejected_text.strip()) for one in found] == [row[1:] for row in ROWS]
    assert guess_kind(source) == ("demonstrations" if name in ("KTO", "HelpSteer") else "preferences")


@pytest.mark.parametrize("name", ANSWERED)
def test_answers(name: str, tmp_path: Path) -> None:
    found = read_demonstrations(file_of(tmp_path, ANSWERED[name]), KEEP)
    assert [[(m.role, m.content) for m in one.prompt.messages] for one in found] == [[("user", q)] for q, _, _ in ROWS]
    assert [one.text for one in found] == [good for _, good, _ in ROWS]


@pytest.mark.parametrize("name", ["OpenAssistant", "OpenAssistant, trees", "Capybara", "LIMA"])
def test_prompts(name: str, tmp_path: Path) -> None:
    found = read_prompts(file_of(tmp_path, ANSWERED[name]), ["train"], KEEP)
    assert [[(m.role, m.content) for m in one.messages] for one in found] == [[("user", q)] for q, _, _ in ROWS]


def test_labelled_answers(tmp_path: Path) -> None:
    found = read_answers(file_of(tmp_path, PAIRS["KTO"]), KEEP)
    assert [one.label for one in found] == [True, False] * 10


def test_ties_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**pandalm(n, *row), "result": n % 3} for n, row in enumerate(ROWS)]
    assert len(read_preferences(str(write_rows(tmp_path / "rows.jsonl", rows)), KEEP)) == 6
    assert "4 left out: a tie" in capsys.readouterr().err


def test_turns_without_roles_of_several_turns(tmp_path: Path) -> None:
    pairs = [{"input": "Hello?", "output": "Yes?"}, {"input": "Why?", "output": "So."}]
    texts = [text for pair in pairs for text in pair.values()]
    for turns in (pairs, texts):
        (shown,) = read_demonstrations(str(write_rows(tmp_path / "rows.jsonl", [{"conversation": turns}])), KEEP)
        assert [(m.role, m.content) for m in (*shown.prompt.messages, *shown.answers)] == [
            ("user", "Hello?"), ("assistant", "Yes?"), ("user", "Why?"), ("assistant", "So."),
        ]  # fmt: skip
    for odd in (texts[:3], [pairs[0], {"input": "Why?"}], [*texts[:3], None]):
        with pytest.raises(DataError):
            read_demonstrations(str(write_rows(tmp_path / "rows.jsonl", [{"conversation": odd}])), KEEP)


# --- trees of several turns ---

TREE = [
    ("a", None, "prompter", None, "Hello?"),
    ("b", "a", "assistant", 1, "What?"),
    ("c", "a", "assistant", 0, "Yes?"),
    ("d", "a", "assistant", None, "Hm."),
    ("e", "c", "prompter", 0, "Why?"),
    ("f", "e", "assistant", 2, "No."),
    ("g", "e", "assistant", 0, "So."),
    ("h", "e", "assistant", 1, "Because."),
    ("i", "g", "prompter", 0, "Thanks."),
    ("j", "b", "prompter", 0, "Well?"),
    ("k", "j", "assistant", 0, "Well."),
    ("l", "j", "assistant", None, "Oh."),
    ("m", "h", "prompter", 1, "And?"),
    ("n", "h", "prompter", 0, "Or?"),
    ("o", "m", "assistant", None, "Alone."),
]
"""(message_id, parent_id, role, rank, text)"""


def tree_rows(*without: str) -> list[dict[str, Any]]:
    names = ("message_id", "parent_id", "role", "rank", "text")
    return [dict(zip(names, row, strict=True)) for row in TREE if row[0] not in without]


def nested(identity: str = "a") -> dict[str, Any]:
    (own,) = [row for row in tree_rows() if row["message_id"] == identity]
    return {**own, "replies": [nested(row["message_id"]) for row in tree_rows() if row["parent_id"] == identity]}


@pytest.mark.parametrize("rows", [tree_rows(), [{"prompt": nested(), "message_tree_id": "a"}]])
def test_a_tree_is_rankings_and_one_best_conversation(
    rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of the user's messages have several ranked replies. `Well?` has one, `Thanks.` none; `Because.` has several, but
    they are the user's."""
    source = str(write_rows(tmp_path / "rows.jsonl", rows))
    found = read_preferences(source, KEEP)
    assert [(tuple(m.content for m in one.prompt), one.chosen_text, one.rejected_text) for one in found] == [
        (("Hello?",), "Yes?", "What?"),
        *((("Hello?", "Yes?", "Why?"), *pair) for pair in (("So.", "Because."), ("So.", "No."), ("Because.", "No."))),
    ]
    assert read(source, "preferences").left_out == {UNRANKED: 2}
    assert "2 left out: replies without a rank" in capsys.readouterr().err
    (shown,) = read_demonstrations(source, KEEP)
    assert [m.content for m in (*shown.prompt.messages, *shown.answers)] == ["Hello?", "Yes?", "Why?", "So."]
    assert "4 left out: replies that another is ranked above" in capsys.readouterr().err
    piece = read_piece(source, "demonstrations", read_source(source, "demonstrations"), KEEP, has_splits=False)
    assert (len(piece.drafts), piece.left_out) == (1, {WORSE: 4})
    assert len(read(source, "answers").bad) == len(rows)


def test_broken_trees(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^[^ ]*rows.jsonl:4: its parent_id is no message_id of the rows that are read with it"
    ):
        read_preferences(str(write_rows(tmp_path / "rows.jsonl", [*tree_rows("e", "c")])), KEEP)
    rows = [{**row, "deleted": row["message_id"] == "c"} for row in tree_rows()]
    source = str(write_rows(tmp_path / "rows.jsonl", rows))
    assert read(source, "demonstrations").left_out == {DELETED: 9, WORSE: 2}
    Path(source).write_text(f"{Path(source).read_text()}broken\n")
    assert [one.where for one in read(source, "demonstrations").bad] == [f"{source}:{len(rows) + 1}"]
    alone = tree_rows(*"bcdefghijklmno")
    with pytest.raises(DataError, match=r"1: trees without an answer"):
        read_demonstrations(str(write_rows(tmp_path / "rows.jsonl", alone)), KEEP)


@pytest.mark.parametrize("row", [tree_rows()[0], {"prompt": nested(), "message_tree_id": "a"}])
def test_a_file_of_trees_holds_nothing_else(row: dict[str, Any], tmp_path: Path) -> None:
    source = str(write_rows(tmp_path / "rows.jsonl", [row, {"prompt": "Why?", "completion": "So."}]))
    found = read(source, "demonstrations")
    assert ([one.where for one in found.bad], len(found.drafts)) == ([f"{source}:1"], 1)


def test_the_fewest_keys_of_a_tree_and_other_columns(tmp_path: Path) -> None:
    keys = ("message_id", "parent_id", "role", "text")
    flat = [
        dict(zip(keys, row, strict=True)) for row in (("a", None, "prompter", "Why?"), ("b", "a", "assistant", "So."))
    ]
    (root, reply) = ({key: row[key] for key in ("role", "text")} for row in flat)
    tree = {"prompt": {**root, "replies": [reply]}}
    for rows in (flat, [tree], [{**row, "lang": "en", "split": "test"} for row in flat], [{**tree, "split": "test"}]):
        source = str(write_rows(tmp_path / "rows.jsonl", rows))
        (shown,) = read_demonstrations(source, KEEP)
        assert (shown.prompt.messages[0].content, shown.text) == ("Why?", "So.")
        assert shown.prompt.split == rows[0].get("split", "train")
        assert list(read(source, "demonstrations").ignored) == [name for name in ("lang",) if name in rows[0]]

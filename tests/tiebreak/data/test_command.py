"""`tiebreak data FILE`, and the keys that it shows through the stages: columns, dropped rows, templates of prompts."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
from support import TINY_TRAINING, read_rows, run_here, write_config, write_rows

from sft.configuration import PrepareConfig
from sft.prepare import prepare
from tiebreak.command.cli import main
from tiebreak.errors import DataError
from tiebreak.runs.run import read_manifest


def shown(*words: object) -> tuple[int, str]:
    """`tiebreak data …`: (exit status, standard output)."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main(["data", *map(str, words)])
        except SystemExit as stopped:
            return int(stopped.code or 0), out.getvalue()
    return 0, out.getvalue()


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.fixture
def ultrafeedback(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {
            "prompt": f"Why {n}?",
            "chosen": [turn("user", f"Why {n}?"), turn("assistant", "Because.")],
            "rejected": [turn("user", f"Why {n}?"), turn("assistant", "No." if n else "Because.")],
            "score_chosen": 8.0,
        }
        for n in range(6)
    ]
    return write_rows(tmp_path / "rows.jsonl", rows)


def test_what_is_shown_of_a_file(ultrafeedback: Path, tiny_model: Path) -> None:
    status, out = shown(ultrafeedback, "--policy", tiny_model, "--rows", 1, "--validation-share", 0)
    assert status == 1  # a stage would refuse it
    lines = out.splitlines()
    others = "prompts or demonstrations or answers"
    assert lines[0] == f"{ultrafeedback}: read as preferences (to read it as something else: --as {others})"
    for line in (
        "  rows      6",
        "  shape     UltraFeedback (prompt, whole conversations in chosen and rejected)",
        "  makes     5 preferences, of 5 prompts",
        "  splits    train 5 (held out by prompt)",
        "  ignored   score_chosen",
        "  errors    1 of 6 rows cannot be used",
        f"            {ultrafeedback}:1: chosen and rejected are the same",
        "  key       on_bad_row: drop",
    ):
        assert line in lines
    # SmolLM2's template, the mask by hand: what the assistant writes, its end of turn included
    asked = "<|im_start|>user\nWhy 1?<|im_end|>\n<|im_start|>assistant\n"
    assert f"{ultrafeedback}:2 (train), chosen\n" in out
    assert f"{asked}⟦Because.<|im_end|>⟧\n" in out
    assert f"{asked}⟦No.<|im_end|>⟧\n" in out
    assert "Why 2?" not in out


def test_the_key_that_it_names_helps(ultrafeedback: Path) -> None:
    status, out = shown(ultrafeedback, "--on-bad-row", "drop", "--policy", "null")
    assert status == 0
    assert out.endswith(f"tiebreak dpo and reward take it as --preferences {ultrafeedback}\n")
    status, out = shown(ultrafeedback, "--as", "prompts", "--policy", "null")
    assert status == 0
    assert "  makes     6 prompts, of 6 prompts" in out


def test_a_file_of_other_columns_is_shown_with_the_key(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"ask": f"Why {n}?", "say": "So."} for n in range(5)])
    status, out = shown(source, "--policy", "null")
    assert status == 1
    assert "every row: no column 'prompt'" in out
    assert "  key       columns: {prompt: …}" in out
    words = ("--columns.prompt", "ask", "--columns.completion", "say", "--policy", "null")
    status, out = shown(source, *words)
    assert status == 0
    assert "read as demonstrations" in out
    assert "  shape     prompt and completion" in out


def test_images_are_shown_with_the_stages_that_refuse_them(tmp_path: Path, tiny_model: Path) -> None:
    content = [{"type": "image"}, {"type": "text", "text": " And here?"}]
    rows = [
        {"prompt": [turn("user", "Hello?")], "completion": "Hi."},
        {"prompt": [{"role": "user", "content": content}], "completion": "A dog.", "images": ["dog.png"]},
    ]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    status, out = shown(source, "--policy", tiny_model, "--validation-share", 0)
    assert status == 1
    assert "  images    in 1 row: refused by tiebreak prepare and sft, or dropped with on_bad_row: drop\n" in out
    assert f"{source}:2 (train), not rendered (has images)\nuser: [image dog.png] And here?\nassistant: A dog.\n" in out
    assert "Hello?<|im_end|>" in out
    status, out = shown(source, "--policy", "null", "--on-bad-row", "drop")
    assert status == 0
    assert out.endswith(f"tiebreak prepare and sft take it as --demonstrations {source}\n")


def test_a_conversation_with_tools_is_shown_as_it_is_learned(tmp_path: Path, tiny_model: Path) -> None:
    """A template that has no place for tools is reported with the row, not skipped."""
    row = {
        "messages": [turn("user", "EC?"), turn("assistant", "", tool_calls=[{"name": "ec"}])],
        "tools": [{"name": "ec"}],
    }
    status, out = shown(write_rows(tmp_path / "rows.jsonl", [row]), "--policy", tiny_model)
    assert status == 0
    assert "refused: " in out


def test_a_finished_run_is_shown_too(tmp_path: Path, tiny_model: Path) -> None:
    source = write_rows(tmp_path / "p.jsonl", [{"prompt": "Why?"}, {"prompt": "How?"}])
    prepare(PrepareConfig(output=str(tmp_path / "run"), prompts=[str(source)], policy=str(tiny_model)))
    status, out = shown(tmp_path / "run", "--policy", "null", "--as", "prompts")
    assert status == 0
    assert "a finished run's prompts: 2 rows" in out


def test_no_file_is_one_message(tmp_path: Path) -> None:
    status, err = run_here("data", tmp_path / "gone.jsonl")
    assert status == 1
    assert "no such file or run folder" in err
    status, err = run_here("data")
    assert status == 2
    assert "tiebreak data FILE" in err


# --- the same keys in the stages ---------------------------------------------------------------------------------------


def test_dpo_drops_bad_rows_lists_and_counts_them(ultrafeedback: Path, tmp_path: Path, tiny_model: Path) -> None:
    config = write_config(
        tmp_path / "dpo.yaml",
        output=tmp_path / "dpo",
        policy=tiny_model,
        preferences=ultrafeedback,
        validation_share=0.0,
        training={**TINY_TRAINING, "max_steps": 1},
        sampling={"max_new_tokens": 2},
        tracking={"mode": "disabled"},
    )
    status, err = run_here("dpo", "--config", config)
    assert status == 1
    assert f"{ultrafeedback}: 1 of 6 rows cannot be used as preferences: fix them, or set on_bad_row: drop" in err
    status, err = run_here("dpo", "--config", config, "--on-bad-row", "drop", "--output", tmp_path / "dropped")
    assert status == 0, err
    assert f"{ultrafeedback}: ignored columns: score_chosen" in err
    manifest = read_manifest(tmp_path / "dropped")
    assert manifest["dropped_rows"] == 1
    assert manifest["counts"]["train"] == 5
    assert read_rows(tmp_path / "dropped" / "bad_rows.jsonl") == [
        {"where": f"{ultrafeedback}:1", "reason": "chosen and rejected are the same"}
    ]


def test_sft_reads_a_table_by_columns(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "rows.csv").write_text("ask;say\nWhy?;So.\nHow?;Thus.\nWhen?;Now.\n")
    config = write_config(
        tmp_path / "sft.yaml",
        output=tmp_path / "sft",
        policy=tiny_model,
        demonstrations=tmp_path / "rows.csv",
        columns={"prompt": "ask", "completion": "say"},
        adapter={"r": 2, "alpha": 4},
        validation_share=0.0,
        training={**TINY_TRAINING, "max_steps": 1},
        sampling={"max_new_tokens": 2},
        tracking={"mode": "disabled"},
    )
    status, err = run_here("sft", "--config", config)
    assert status == 0, err
    assert "3 rows read as prompt and completion" in err
    assert read_manifest(tmp_path / "sft")["counts"]["train"] == 3


def test_a_misspelt_column_of_ours_is_refused_with_the_nearest(tmp_path: Path) -> None:
    status, err = run_here(
        "sft", "--output", tmp_path / "x", "--policy", "p", "--demonstrations", "d", "--columns.promt", "a"
    )
    assert status == 2
    assert "columns.promt: Tiebreak has no such column; did you mean prompt?" in err


# --- near duplicates ---------------------------------------------------------------------------------------------------


def prepared(folder: Path, model: Path, asked: list[str], **values: Any) -> list[str]:
    """The prompts that *prepare* keeps."""
    source = write_rows(folder / "prompts.jsonl", [{"prompt": text} for text in asked])
    prepare(PrepareConfig(output=str(folder / "run"), prompts=[str(source)], policy=str(model), **values))
    return [row["messages"][-1]["content"] for row in read_rows(folder / "run" / "final" / "prompts.jsonl")]


def test_prompts_that_differ_in_a_number_are_no_duplicates(tmp_path: Path, tiny_model: Path) -> None:
    asked = [
        f"Convert {n} degrees Celsius to degrees Fahrenheit and show every single step of the way." for n in range(60)
    ]
    assert prepared(tmp_path, tiny_model, asked) == asked


def test_a_template_of_words_is_refused_and_the_user_decides(tmp_path: Path, tiny_model: Path) -> None:
    words = ["cat", "dog", "cow", "hen", "owl", "bee", "ant", "fox", "elk", "eel", "cod", "ape"]
    asked = [
        f"{word}: please write one short and friendly poem for little children of our town in which this animal crosses "
        "the old river and meets a friend"
        for word in words
    ]
    with pytest.raises(DataError) as caught:
        prepared(tmp_path / "refused", tiny_model, asked)
    message = str(caught.value)
    assert "11 of 12 prompts overlap an earlier one by 0.8 or more (near_duplicate)" in message
    assert "near_duplicate: 1" in message
    assert "max_near_duplicate_share: 1" in message
    assert len(caught.value.faults) == 5
    assert prepared(tmp_path / "kept", tiny_model, asked, near_duplicate=1.0) == asked
    assert prepared(tmp_path / "dropped", tiny_model, asked, max_near_duplicate_share=1.0) == asked[:1]


def test_prompts_that_offer_other_tools_are_no_duplicates(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": "What is the EC of my tank today?", "tools": [{"name": name}]} for name in ("ec", "ph", "ec")]
    source = write_rows(tmp_path / "prompts.jsonl", rows)
    settings = {"policy": str(tiny_model), "chat_template": "qwen3"}
    prepare(PrepareConfig(output=str(tmp_path / "run"), prompts=[str(source)], **settings))
    kept = read_rows(tmp_path / "run" / "final" / "prompts.jsonl")
    assert [prompt["tools"][0]["function"]["name"] for prompt in kept] == ["ec", "ph"]

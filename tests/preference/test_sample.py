"""Sampling pairs: which prompts, which completions make a pair, and the same end after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY, read_rows, write_rows

from preference.sample import SampleConfig, choose_prompts, sample, to_pairs
from sft.prepare import PrepareConfig, prepare
from tiebreak.data.pairs import read_pairs
from tiebreak.errors import DataError
from tiebreak.messages import Message, prompt_id
from tiebreak.records import Completion, Prompt
from tiebreak.runs.run import read_manifest


def make_prompt(text: str) -> Prompt:
    messages = (Message(role="user", content=text),)
    return Prompt(id=prompt_id(messages), messages=messages, split="validation")


def config_of(**values: Any) -> SampleConfig:
    return SampleConfig.model_validate({"output": "out", "policy": "p", "prompts": "q", **values})


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_are_chosen_by_content_and_seed(tmp_path: Path) -> None:
    asked = [f"Question {n}?" for n in range(30)]
    one = write_rows(tmp_path / "a.jsonl", [{"prompt": a} for a in asked])
    other = write_rows(tmp_path / "b.jsonl", [{"prompt": a} for a in [*asked[::-1], asked[3]]])
    first = choose_prompts(config_of(prompts=str(one), max_prompts=8))
    assert len(first) == 8
    assert choose_prompts(config_of(prompts=str(other), max_prompts=8)) == first
    assert choose_prompts(config_of(prompts=str(one), max_prompts=12))[:8] == first
    assert choose_prompts(config_of(prompts=str(one), max_prompts=8, seed=1)) != first
    assert len(choose_prompts(config_of(prompts=str(other)))) == 30


@pytest.mark.parametrize("count", [8, 20, 40])
def test_each_split_has_its_share_of_the_chosen(tiny_model: Path, tmp_path: Path, count: int) -> None:
    """Of a *prepare* run with the same seed, whose own ranking must not decide which of them are taken."""
    asked = write_rows(tmp_path / "a.jsonl", [{"prompt": f"Question {n}?"} for n in range(80)])
    values = {"prompts": [str(asked)], "policy": str(tiny_model), "near_duplicate": 1.0, "split": {"validation": 0.25}}
    prepare(PrepareConfig.model_validate({"output": str(tmp_path / "prepared"), **values}))
    chosen = choose_prompts(config_of(prompts=str(tmp_path / "prepared"), max_prompts=count))
    assert [p.split for p in chosen].count("validation") == round(count * 20 / 56)  # 24 of 80 are test prompts


def test_test_prompts_are_never_sampled_from(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"prompt": "a?", "split": "test"}, {"prompt": "b?", "split": "train"}])
    assert [p.messages[0].content for p in choose_prompts(config_of(prompts=str(file)))] == ["b?"]
    with pytest.raises(DataError, match="test prompts are for the final figures"):
        choose_prompts(config_of(prompts=str(file), splits=["test"]))
    with pytest.raises(DataError, match=r"has no prompts in validation"):
        choose_prompts(config_of(prompts=str(file), splits=["validation"]))


# --- pairs -----------------------------------------------------------------------------------------------------------


def drawn_from(*answers: tuple[str, list[str]]) -> tuple[list[Prompt], dict[tuple[str, int], Completion]]:
    prompts = [make_prompt(ask) for ask, _ in answers]
    drawn = {
        (prompt.id, n): Completion(id=f"{prompt.id}/{n}", text=text, policy="p")
        for prompt, (_, texts) in zip(prompts, answers, strict=True)
        for n, text in enumerate(texts)
    }
    return prompts, drawn


def test_completions_that_say_the_same_or_nothing_make_no_pair() -> None:
    prompts, drawn = drawn_from(
        ("all differ?", ["a", "b", "c"]),
        ("two the same?", ["a", " a\n", "b"]),
        ("all the same?", ["a", "a", "a"]),
        ("one empty?", ["", "b", "c"]),
        ("all but one empty?", ["", " ", "c"]),
    )
    pairs, counts = to_pairs(prompts, drawn, config_of(completions_per_prompt=3))
    assert [[c.text for c in pair.completions] for pair in pairs] == [["a", "b", "c"], ["a", "b"], ["b", "c"]]
    assert counts == {"identical_or_empty": 0 + 1 + 2 + 1 + 2, "prompts_without_pair": 2}
    assert [pair.prompt_id for pair in pairs] == [prompts[0].id, prompts[1].id, prompts[3].id]
    assert {pair.split for pair in pairs} == {"validation"}
    assert pairs[0].messages == prompts[0].messages


def test_a_pairs_id_does_not_depend_on_the_order_of_its_completions() -> None:
    prompts, drawn = drawn_from(("x?", ["a", "b"]))
    turned = {(prompts[0].id, 0): drawn[prompts[0].id, 1], (prompts[0].id, 1): drawn[prompts[0].id, 0]}
    (one,), (other,) = (to_pairs(prompts, d, config_of())[0] for d in (drawn, turned))
    assert one.id == other.id
    assert to_pairs(prompts, drawn, config_of(round=1))[0][0].id != one.id


def test_settings_that_would_not_be_used_are_refused() -> None:
    assert len(config_of(sampling=[{}, {"temperature": 0.5}]).sampling) == 2
    for settings in ([], [{}, {}, {}]):
        with pytest.raises(ValueError, match=f"{len(settings)} settings for 2 completions_per_prompt"):
            config_of(sampling=settings)
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        config_of(completions_per_prompt=1)


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def values(tiny_model: Path, raw_data: Path) -> dict[str, Any]:
    return {
        "policy": str(tiny_model),
        "prompts": str(raw_data / "prompts.jsonl"),
        "completions_per_prompt": 3,
        "max_prompts": 12,
        # few tokens to draw from: among 49,152 of a random model, the last bits of a matrix product would decide some draws
        "sampling": [
            {"temperature": 1.0, "top_k": 50, "max_new_tokens": 6},
            {"temperature": 0.5, "top_k": 20, "max_new_tokens": 4},
        ],
        "batch_size": 1,
        "tracking": {"mode": "disabled"},
    }


@pytest.fixture(scope="module")
def whole(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "whole"
    sample(config_of(**values, output=str(folder)))
    return folder


def test_pairs_say_how_each_completion_was_drawn(whole: Path, values: dict[str, Any]) -> None:
    pairs = read_pairs(str(whole))
    assert len(pairs) == 12
    for pair in pairs:
        assert [c.sampling.temperature for c in pair.completions if c.sampling] == [1.0, 0.5, 1.0]
        assert [c.sampling.max_new_tokens for c in pair.completions if c.sampling] == [6, 4, 6]
        assert {c.policy for c in pair.completions} == {values["policy"]}
    seeds = [c.seed for pair in pairs for c in pair.completions]
    assert len(set(seeds)) == 36
    assert not (whole / "partial").exists()
    counts = read_manifest(whole)["counts"]
    assert (counts["prompts"], counts["completions"], counts["pairs"]) == (12, 36, 12)
    unfinished = sum(not c.finished for pair in pairs for c in pair.completions)
    assert counts["unfinished"] == unfinished > 0


def test_the_batch_size_changes_no_completion(whole: Path, values: dict[str, Any], tmp_path: Path) -> None:
    sample(config_of(**{**values, "batch_size": 36}, output=str(tmp_path / "run")))
    assert read_rows(tmp_path / "run" / "final" / "pairs.jsonl") == read_rows(whole / "final" / "pairs.jsonl")


def test_another_seed_draws_others(whole: Path, values: dict[str, Any], tmp_path: Path) -> None:
    sample(config_of(**values, output=str(tmp_path / "run"), seed=1))
    mine, theirs = (
        {c.text for pair in read_pairs(str(folder)) for c in pair.completions} for folder in (tmp_path / "run", whole)
    )
    assert len(mine & theirs) < len(mine) / 2


@pytest.mark.slow
def test_kill_9_and_the_same_command_end_in_the_same_run(whole: Path, values: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(**values, output=str(tmp_path / "run"))
    slow = (  # each batch takes a while, so that the kill falls between two
        "import sys, time, preference.sample as s\ninner = s.sample_completions\n"
        "def slowed(*a, **k):\n    time.sleep(0.3)\n    return inner(*a, **k)\n"
        "s.sample_completions = slowed\n"
        "s.sample(s.SampleConfig.model_validate_json(sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, config.model_dump_json()],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 600
    while not list((tmp_path / "run").glob("partial/*/00001.json")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("partial/*/*.json")}
    assert 2 <= len(kept) < 9
    assert not (tmp_path / "run" / "manifest.json").exists()

    computed: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        import preference.sample

        inner = preference.sample.sample_completions

        def counted(model: Any, prompts: Any, *rest: Any, **options: Any) -> Any:
            computed.append(len(prompts))
            return inner(model, prompts, *rest, **options)

        patch.setattr(preference.sample, "sample_completions", counted)
        sample(config)
    assert len(computed) == 9 - len(kept)
    assert read_manifest(tmp_path / "run")["id"] == read_manifest(whole)["id"]

"""The library: what is imported when, and its answers and scores against transformers and against the finished runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY, read_rows

import tiebreak
from tiebreak import load_policy, load_reward_model, open_store, read_preferences, sample, score
from tiebreak.errors import DataError, HandoffError
from tiebreak.library import Answer

QUESTIONS = ["Why are my basil leaves pale?", "How often should I feed kale?", "Why?"]


def test_only_what_is_used_is_imported() -> None:
    code = (
        "import sys, tiebreak; light = len(sys.modules); names = dir(tiebreak)\n"
        "from tiebreak import read_preferences, open_store\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules, 'pydantic' in sys.modules, 'score' in names)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False", "True", "True"]
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        tiebreak.sampel  # noqa: B018


def test_the_example_of_the_documentation_runs(finished_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs" / "library.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert code
    exec(code[1].replace("runs/quickstart", str(finished_recipe / "runs")).replace("tokens=96", "tokens=8"), {})
    lines = re.findall(r"^[+-]\d+\.\d\d  (.*\?)  ", capsys.readouterr().out, re.MULTILINE)
    assert lines == ["Why are my basil leaves pale?", "How warm may the nutrient solution be?"]


def test_greedy_answers_are_those_of_transformers(finished_recipe: Path) -> None:
    """Of the merged copy, which is a plain model, one prompt at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished_recipe / "runs" / "sft"
    model = AutoModelForCausalLM.from_pretrained(folder / "final" / "merged")
    tokenizer = AutoTokenizer.from_pretrained(folder / "final" / "merged")
    answers = sample(load_policy(str(folder)), QUESTIONS, temperature=0.0, max_new_tokens=8)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        asked = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert list(answer.ids) == made.tolist()
        assert answer.finished == (answer.ids[-1] == tokenizer.eos_token_id)


def test_answers_depend_on_seed_and_place_alone(finished_recipe: Path) -> None:
    policy = load_policy(str(finished_recipe / "runs" / "dpo"))

    def texts(seed: int, batch_size: int) -> list[str]:
        drawn = sample(policy, QUESTIONS, temperature=1.0, max_new_tokens=8, seed=seed, batch_size=batch_size)
        return [one.text for one in drawn]

    assert texts(1, 1) == texts(1, 3) != texts(2, 3)
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    assert sample(policy, asked, temperature=0.0, max_new_tokens=4) == sample(
        policy, QUESTIONS, temperature=0.0, max_new_tokens=4
    )
    assert sample(policy, []) == []


def test_scores_are_those_that_the_reward_run_measured(finished_recipe: Path) -> None:
    """In a process of its own, on the model that it had just saved."""
    runs = finished_recipe / "runs"
    measured = read_rows(runs / "reward" / "final" / "validation_scores.jsonl")
    held_out = [one for one in read_preferences(str(runs / "label")) if one.split == "validation"]
    assert [one.pair_id for one in held_out] == [row["pair_id"] for row in measured]
    judge = load_reward_model(str(runs / "reward"))
    prompts = [one.prompt for one in held_out]
    for side in ("chosen", "rejected"):
        answers = [
            Answer(
                getattr(one, side)[-1].content,
                getattr(one, f"{side}_finished"),
                getattr(one, f"{side}_ids") or (),
                one.tokenizer_sha256 or "",
            )
            for one in held_out
        ]
        expected = [row[side] for row in measured]
        assert score(judge, prompts, answers) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(DataError, match="1 answers to 2 prompts"):
        score(judge, QUESTIONS[:2], ["Yes."])


def test_what_there_is_not_is_refused_in_a_sentence(finished_recipe: Path, tiny_model: Path) -> None:
    with pytest.raises(HandoffError):
        load_reward_model(str(finished_recipe / "runs" / "dpo"))
    with pytest.raises(HandoffError, match="is a base model: give the folder of a finished reward run"):
        load_reward_model(str(tiny_model))


def test_a_store_is_opened_by_its_url(tmp_path: Path) -> None:
    from labeling_ui.database.errors import StoreError

    url = f"sqlite:///{tmp_path / 'labels.sqlite'}"
    with pytest.raises(StoreError, match="no label store at"):
        open_store(url)
    open_store(url, create=True).close()
    store = open_store(url)
    judgments, _ = store.judgments()
    assert judgments == []
    store.close()

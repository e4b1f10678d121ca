"""`tiebreak explain` on the finished recipe: effects against scores and log-probabilities computed apart, influences
against steps of gradient descent."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from support import TINY_TRAINING, read_rows, run_here, write_config, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from labeling_ui.quality.pull_reports import read_pull_report
from tiebreak.command.cli import main
from tiebreak.explain.influence import Sketch, TokenPair, influences, lora_parameters, reward_loss, score_of
from tiebreak.explain.words import leave_one_out
from tiebreak.library import load_reward_model, score
from tiebreak.messages import Message

PROMPT, ANSWER = "Why are my leaves pale?", "Add iron; then wait a week."


def explained(run: Path, *words: str | Path) -> dict[str, Any]:
    printed = io.StringIO()
    arguments = ["explain", run, "--prompt", PROMPT, "--answer", ANSWER, "--json", *words]
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([str(word) for word in arguments])
    found: dict[str, Any] = json.loads(printed.getvalue())
    return found


def test_words_of_a_score_are_left_out_one_by_one(finished_recipe: Path, tmp_path: Path) -> None:
    run, page = finished_recipe / "runs" / "reward", tmp_path / "page.html"
    found = explained(run, "--html", "--output", page)
    judge = load_reward_model(str(run))
    whole, without_iron, without_week = score(
        judge, [PROMPT] * 3, [ANSWER, "Add then wait a week.", "Add iron; then wait a"]
    )
    effects = {part["text"]: part["effect"] for part in found["parts"]}
    assert found["value"] == pytest.approx(whole, abs=1e-5)
    assert effects["iron;"] == pytest.approx(whole - without_iron, abs=1e-4)
    assert effects["week."] == pytest.approx(whole - without_week, abs=1e-4)
    assert "".join(part["text"] for part in found["parts"]) == ANSWER
    assert "iron;</span>" in page.read_text()


def test_a_single_word_has_no_effect_of_its_own() -> None:
    _, parts = leave_one_out(" Iron", lambda texts: [1.0] * len(texts))
    assert [(part.text, part.effect) for part in parts] == [(" ", None), ("Iron", None)]


def test_tokens_of_a_policy_add_up_to_the_log_ratio(finished_recipe: Path, tiny_model: Path) -> None:
    runs = finished_recipe / "runs"
    found = explained(runs / "dpo")
    tokenizer = AutoTokenizer.from_pretrained(runs / "dpo" / "final")
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, tokenize=False
    )
    prompt = tokenizer(asked, add_special_tokens=False)["input_ids"]
    ids = prompt + tokenizer(ANSWER + "<|im_end|>", add_special_tokens=False)["input_ids"]

    def logp(run: Path) -> float:
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        model = PeftModel.from_pretrained(base, run / "final").eval()
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return sum(float(logits[at - 1, ids[at]]) for at in range(len(prompt), len(ids)))

    assert found["value"] == pytest.approx(logp(runs / "dpo") - logp(runs / "sft"), abs=2e-3)
    assert sum(part["effect"] for part in found["parts"]) == pytest.approx(found["value"], abs=1e-9)
    assert "".join(part["text"] for part in found["parts"]).startswith(ANSWER)


def test_training_pairs_of_a_policy_are_ranked(finished_recipe: Path) -> None:
    found = explained(finished_recipe / "runs" / "dpo", "--pairs", "--shown", "2")
    values = [pair["influence"] for pair in found["pairs"]]
    assert values == sorted(values, reverse=True)
    assert 2 <= len(values) <= 4
    assert all(pair["raters"] for pair in found["pairs"])


def test_an_influence_is_what_a_small_step_on_the_pair_changes(finished_recipe: Path) -> None:
    judge = load_reward_model(str(finished_recipe / "runs" / "reward"))
    parameters = lora_parameters(judge.model)

    def example(text: str) -> tuple[list[int], list[int]]:
        return judge.chat.encode_prompt([Message(role="user", content=PROMPT)]), judge.chat.tokenizer(text)["input_ids"]

    pairs = [TokenPair(example(f"Add {n} ml."), example(f"No {n}, I {'really ' * n}cannot.")) for n in range(12)]
    losses = [lambda pair=pair: reward_loss(judge.model, pair, judge.chat.pad_id) for pair in pairs]

    def target() -> torch.Tensor:
        return score_of(judge.model, example(ANSWER), judge.chat.pad_id)

    exact = influences(target(), losses, Sketch(parameters, None))
    before, rate = target().item(), 1e-3
    gradients = torch.autograd.grad(losses[3](), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= rate * gradient
    assert (target().item() - before) / rate == pytest.approx(exact[3], rel=0.05, abs=1e-3)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter += rate * gradient
    projected = influences(target(), losses, Sketch(parameters))
    assert float(np.corrcoef(exact, projected)[0, 1]) > 0.9


def test_flipped_judgments_pull_against_the_rest_on_the_reward_models_page(tiny_model: Path, tmp_path: Path) -> None:
    """Three of 24 pairs of a toy rule are flipped: through the command line, they have the three lowest pulls."""
    rows = [
        {"prompt": f"Is plant {n} well?", "chosen": f"Give it {n} ml of iron.", "rejected": f"Leave plant {n} alone."}
        for n in range(30)
    ]
    flipped = (3, 9, 15)
    for n in flipped:
        rows[n]["chosen"], rows[n]["rejected"] = rows[n]["rejected"], rows[n]["chosen"]
    named = [{**row, "pair_id": f"p{n}", "raters": ["r1" if n in flipped else "r2"]} for n, row in enumerate(rows)]
    split = [{**row, "split": "train" if n < 24 else "validation"} for n, row in enumerate(named)]
    settings = {
        "output": tmp_path / "reward",
        "policy": tiny_model,
        "preferences": write_rows(tmp_path / "pairs.jsonl", split),
        "adapter": {"r": 4, "alpha": 8, "target_modules": "all-linear"},
        "training": {**TINY_TRAINING, "per_device_batch_size": 24, "max_steps": 20, "save_steps": 20},
        "tracking": {"mode": "disabled"},
    }
    status, printed = run_here("reward", "--config", write_config(tmp_path / "reward.yaml", **settings))
    assert status == 0, printed
    words = ("reward", "report", "--reward-model", tmp_path / "reward", "--output", tmp_path / "report")
    status, printed = run_here(*words, "--influence_pairs", "24", "--tracking.mode", "disabled")
    assert status == 0, printed
    pulls = read_rows(tmp_path / "report" / "final" / "pulls.jsonl")
    assert len(pulls) == 24
    assert {row["pair_id"] for row in pulls[:3]} == {f"p{n}" for n in flipped}
    assert all(row["pull"] < 0 and row["raters"] == ["r1"] for row in pulls[:3])
    chosen = {one["pair_id"]: hashlib.sha256(one["chosen"].encode()).hexdigest() for one in named}
    of_labels = read_pull_report(str(tmp_path / "report"))  # as the label server reads it
    assert all(row.chosen == chosen[str(row.pair_id)] for row in of_labels.rows)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Judgments that pull against the rest" in page
    assert "judged by r1" in page


@pytest.mark.parametrize(
    ("stage", "words", "message"),
    [
        ("prepare", (), "which makes no model"),
        ("sft", ("--pairs",), "was not trained with DPO"),
        ("reward", ("--against", "x"), "--against: of a policy"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    finished_recipe: Path, stage: str, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: before torch is imported."""
    monkeypatch.setitem(sys.modules, "tiebreak.library", None)
    status, printed = run_here(
        "explain", finished_recipe / "runs" / stage, "--prompt", PROMPT, "--answer", ANSWER, *words
    )
    assert (status != 0, message in printed) == (True, True), printed


@pytest.mark.proof
def test_influences_rank_pairs_as_leaving_them_out_and_training_again_does(tiny_model: Path, tmp_path: Path) -> None:
    """A reward model on 24 pairs of a toy rule, retrained without each of 12 of them: Spearman's rank correlation."""
    rows = [
        {"prompt": f"Is plant {n} well?", "chosen": f"Give it {n} ml of iron.", "rejected": f"Leave plant {n} alone."}
        for n in range(24)
    ]
    for n in (3, 9, 15):
        rows[n]["chosen"], rows[n]["rejected"] = rows[n]["rejected"], rows[n]["chosen"]
    asked = {"prompt": "Is plant 99 well?", "answer": "Give it 99 ml of iron."}

    def train(name: str, kept: list[dict[str, str]]) -> Path:
        data = write_rows(tmp_path / f"{name}.jsonl", [{**row, "split": "train"} for row in kept])
        settings = {
            "output": tmp_path / name,
            "policy": tiny_model,
            "preferences": data,
            "adapter": {"r": 4, "alpha": 8, "target_modules": "all-linear"},
            "training": {**TINY_TRAINING, "per_device_batch_size": 24, "max_steps": 30, "save_steps": 30},
            "tracking": {"mode": "disabled"},
        }
        status, printed = run_here("reward", "--config", write_config(tmp_path / f"{name}.yaml", **settings))
        assert status == 0, printed
        return tmp_path / name

    def scored(run: Path) -> float:
        return score(load_reward_model(str(run)), [asked["prompt"]], [asked["answer"]])[0]

    whole = train("whole", rows)
    printed = io.StringIO()
    words = ["explain", str(whole), "--prompt", asked["prompt"], "--answer", asked["answer"], "--json", "--pairs"]
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--shown", "24"])
    found = {pair["row"]: pair["influence"] for pair in json.loads(printed.getvalue())["pairs"]}
    before, left_out = scored(whole), [0, 3, 5, 6, 9, 10, 12, 15, 17, 19, 20, 22]
    changes = [before - scored(train(f"without-{n}", rows[:n] + rows[n + 1 :])) for n in left_out]
    estimated = [found[n + 1] for n in left_out]
    ranks = [np.argsort(np.argsort(values)) for values in (changes, estimated)]
    correlation = float(np.corrcoef(*ranks)[0, 1])
    print(f"rank correlation {correlation:.2f}")
    assert math.isfinite(correlation)
    assert correlation > 0.5
    assert read_rows(tmp_path / "whole.jsonl")

"""lm-eval's tasks on an evaluation's policies, against log-probabilities by transformers."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from support import run_here, write_config, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiebreak.measures.statistics import win_interval

QUESTIONS = ["Why pale?", "How warm?", "How often?", "Which pH?", "What light?"]
CHOICES = [" red", " two"]
LIMIT = 4


def evaluate(folder: Path, model: Path, output: str, **values: Any) -> tuple[int, str]:
    write_rows(folder / "prompts.jsonl", [{"prompt": "Why?", "split": "test"}])
    settings = {
        "output": folder / output,
        "policies": {"sft": model},
        "prompts": folder / "prompts.jsonl",
        "sampling": {"temperature": 0.0, "max_new_tokens": 2},
        "tracking": {"mode": "disabled"},
    } | values
    return run_here("evaluate", "--config", write_config(folder / f"{output}.yaml", **settings))


def write_task(folder: Path, name: str, **values: Any) -> None:
    rows = [{"question": question, "label": n % 2} for n, question in enumerate(QUESTIONS)]
    data = write_rows(folder / f"{name}.jsonl", rows)
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": CHOICES,
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    write_config(folder / "tasks" / f"{name}.yaml", **task | values)


def chosen(model: Path, question: str) -> int:
    """The place of the choice that transformers finds more probable."""
    policy, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)

    def logp(choice: str) -> float:
        asked = tokenizer(question)["input_ids"]
        ids = tokenizer(question + choice)["input_ids"]
        with torch.no_grad():
            logits = policy(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(logits[at - 1, ids[at]]) for at in range(len(asked), len(ids)))

    return max((0, 1), key=lambda n: logp(CHOICES[n]))


def test_a_task_of_ones_own_by_hand_and_one_that_wants_the_network(tmp_path: Path, tiny_model: Path) -> None:
    write_task(tmp_path, "leaves")
    write_task(tmp_path, "far", dataset_path="nobody/nothing", dataset_kwargs={})
    given = {"benchmarks": ["leaves"], "benchmark_tasks": tmp_path / "tasks", "benchmark_limit": LIMIT}
    status, printed = evaluate(tmp_path, tiny_model, "run", **given)
    assert status == 0, printed
    right = [chosen(tiny_model, question) == place % 2 for place, question in enumerate(QUESTIONS[:LIMIT])]
    report = json.loads((tmp_path / "run" / "final" / "report.json").read_text())
    assert report["policies"]["sft"]["benchmarks"]["leaves"]["acc"] == sum(right) / len(right)
    status, printed = run_here(
        "compare", "--evaluation", tmp_path / "run", "--output", tmp_path / "compare", "--tracking.mode", "disabled"
    )
    assert status == 0, printed
    assert "leaves" in (tmp_path / "compare" / "report.html").read_text()
    status, printed = evaluate(tmp_path, tiny_model, "far", **given | {"benchmarks": ["far"]})
    assert (status, "the data of one of far is not on this machine" in printed) == (1, True), printed
    assert not list((tmp_path / "far" / "partial").glob("*"))  # before anything is sampled


def test_policies_are_compared_question_by_question(tmp_path: Path, tiny_model: Path) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) / 5)
    model.save_pretrained(other)
    write_task(tmp_path, "leaves")
    policies = {"sft": tiny_model, "same": tiny_model, "other": other}
    status, printed = evaluate(
        tmp_path,
        tiny_model,
        "run",
        policies=policies,
        baseline="sft",
        benchmarks=["leaves"],
        benchmark_tasks=tmp_path / "tasks",
    )
    assert status == 0, printed
    own = json.loads((tmp_path / "run" / "final" / "report.json").read_text())["policies"]
    found = {name: row["benchmarks"]["leaves"] for name, row in own.items()}
    right = {
        name: [chosen(policies[name], question) == n % 2 for n, question in enumerate(QUESTIONS)] for name in policies
    }
    for name, figures in found.items():
        assert figures["acc"] == sum(right[name]) / 5
        assert figures["acc_stderr"] == pytest.approx(statistics.stdev(map(float, right[name])) / 5**0.5)
    assert "acc_difference" not in found["sft"]
    differences = [mine - theirs for mine, theirs in zip(right["other"], right["sft"], strict=True)]
    assert any(differences)
    low, high = win_interval(*(differences.count(one) for one in (1, 0, -1)))
    assert found["other"]["acc_difference"] == pytest.approx(sum(differences) / 5)
    assert found["other"]["acc_difference_interval"] == pytest.approx([2 * low - 1, 2 * high - 1])
    low, high = found["same"]["acc_difference_interval"]
    assert -1 < low < found["same"]["acc_difference"] == 0 < high < 1  # five equal answers prove little


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"benchmarks": ["no_such_task"]}, "lm-eval has no task no_such_task"),
        ({"benchmark_limit": 3}, "benchmarks: none is named"),
        ({"benchmarks": ["leaves"], "benchmark_tasks": "nowhere"}, "nowhere has no task"),
    ],
)
def test_wrong_benchmarks_are_refused(tmp_path: Path, tiny_model: Path, values: dict[str, Any], words: str) -> None:
    status, printed = evaluate(tmp_path, tiny_model, "refused", **values)
    assert (status, words in printed) == (2, True), printed

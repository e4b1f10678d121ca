"""The gate: each requirement on figures worked by hand, and the command's exit status and reasons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from study import finished, write_evaluation
from support import REPOSITORY, run_here

from evaluation.compare.reading import read_evaluation
from evaluation.gate import Gate, check, interval_against_baseline, read_gate
from tiebreak.config import read_yaml
from tiebreak.data.reading import read_prompts
from tiebreak.errors import ConfigError
from tiebreak.runs.run import identify_input

POLICIES = {"base": "bundled:x", "sft": "bundled:y", "dpo-low": "bundled:z"}


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gate")
    prompts = [
        {"id": f"prompt-{n:03d}", "messages": [], "tags": ["even"] if n % 2 == 0 else ["odd"], "source": "mine"}
        for n in range(40)
    ]
    prepare = finished(root / "prepare", "prepare", {}, {"prompts.jsonl": prompts})
    return Path(write_evaluation(root / "evaluate", POLICIES, {"prompts": prepare}, seed=0, prompts=40))


def found(evaluation: Path, **keys: Any) -> dict[str, bool]:
    gate = Gate(policy="dpo-low", **keys)
    return {one.name: one.met for one in check(gate, read_evaluation(str(evaluation)))}


@pytest.mark.parametrize(
    ("keys", "name", "met"),
    [
        ({}, "prompts", True),
        ({"min_prompts": 41}, "prompts", False),
        ({"win_rate": 0.5}, "win rate", True),
        ({"win_rate": 0.99}, "win rate", False),
        ({"win_rate_at_equal_length": 0.01}, "win rate at equal length", True),
        ({"kl": 1.3}, "KL, nats per answer", True),  # 10 · |.62 − .5| = 1.2
        ({"kl": 1.1}, "KL, nats per answer", False),
        ({"refusals": 0.0}, "refusals", True),
        ({"cut_off": 0.5}, "cut off", False),  # the evaluation has no such figure
        ({"length_growth": 0.0}, "growth in length", False),  # a sentence more an answer
        ({"length_growth": 1.0}, "growth in length", True),
        ({"slices": {"even": 0.01}}, "slice even", True),
        ({"slices": {"odd": 0.99}}, "slice odd", False),
        ({"slices": {"mine": 0.01}}, "slice mine", True),
        ({"slices": {"nowhere": 0.0}}, "slice nowhere", False),
        ({"figures": {"score_mean": {"no_worse_by": 0.0}}}, "score_mean", True),
        ({"figures": {"score_mean": {"at_least": 5.0}}}, "score_mean", False),
        ({"figures": {"kl_per_sequence": {"at_most": 1.3}}}, "kl_per_sequence", True),
        ({"figures": {"toxicity": {"at_most": 1.0}}}, "toxicity", False),  # not measured
        ({"figures": {"kl_per_sequence": {"no_worse_by": 1.1}}}, "kl_per_sequence", False),  # the baseline's is 0
        ({"figures": {"kl_per_sequence": {"no_worse_by": 1.3}}}, "kl_per_sequence", True),
        ({"figures": {"length_tokens_mean": {"no_worse_by": 99.0}}}, "length_tokens_mean", False),  # is more better?
    ],
)
def test_a_requirement(evaluation: Path, keys: dict[str, Any], name: str, met: bool) -> None:
    assert found(evaluation, **keys)[name] == met


def test_the_whole_interval_of_a_gap_is_within_the_limit(evaluation: Path) -> None:
    rows = [
        {"policy": policy, "yardstick": "tone", "groups": ["men", "women"], "gap": -0.1, "gap_interval": interval}
        for policy, interval in (("dpo-low", [-0.25, 0.05]), ("base", [-0.9, 0.9]))
    ]
    rows.append({**rows[0], "groups": ["old", "young"], "gap_interval": None})
    one = replace(read_evaluation(str(evaluation)), gaps=tuple(rows))
    met = {
        most: [row.met for row in check(Gate(policy="dpo-low", bias_gap={"tone": most}), one)][1:]
        for most in (0.2, 0.3)
    }
    assert met == {0.2: [False, False], 0.3: [True, False]}  # one pair of prompts shows nothing
    (unmeasured,) = [row for row in check(Gate(policy="dpo-low", bias_gap={"length": 9.0}), one) if not row.met]
    assert "not measured" in unmeasured.words


def test_the_whole_interval_of_a_difference_is_within_the_margin(evaluation: Path) -> None:
    """Forty prompts on which the policy is worse by 0.1 on average: ±0.05 · 2.02 by Student."""
    one = read_evaluation(str(evaluation))
    off = np.tile([-0.1, -0.1 + 0.156, -0.1 - 0.156, -0.1], 10)  # standard deviation .112: a standard error of .0177
    prompts = sorted(one.prompt_ids)
    answers = tuple(
        answer.model_copy(update={"score": off[prompts.index(answer.prompt_id)] if answer.policy == "dpo-low" else 0.0})
        for answer in one.answers
    )
    worse = replace(one, answers=answers)
    low, high = interval_against_baseline(worse, "dpo-low", "score_mean") or (0.0, 0.0)
    half = 2.0227 * float(np.std(off, ddof=1)) / 40**0.5
    assert [low, high] == pytest.approx([-0.1 - half, -0.1 + half], abs=0.003)
    assert interval_against_baseline(worse, "dpo-low", "length_tokens_mean") is None


def test_a_benchmark_is_no_worse_where_its_interval_says_so(evaluation: Path, tmp_path: Path) -> None:
    accuracy = {"acc": 0.5, "acc_difference": 0.0, "acc_difference_interval": [-0.04, 0.04]}
    figures = {
        policy: row.model_dump() | {"benchmarks": {"leaves.v2": accuracy if policy != "sft" else {"acc": 0.5}}}
        for policy, row in read_evaluation(str(evaluation)).policies.items()
    }
    with_tasks = Path(write_evaluation(tmp_path / "evaluate", POLICIES, {}, seed=0, prompts=40, figures=figures))
    name = "benchmarks.leaves.v2.acc"
    met = {margin: found(with_tasks, figures={name: {"no_worse_by": margin}})[name] for margin in (0.0, 0.039, 0.041)}
    assert met == {0.0: False, 0.039: False, 0.041: True}


@pytest.mark.parametrize("changed", [False, True])
def test_slices_of_prompts_from_a_file(evaluation: Path, tmp_path: Path, changed: bool) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"Question {n}", "tags": ["even"] if n % 2 == 0 else ["odd"]} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids = [one.id for one in read_prompts(str(file), ["test"])]
    one = read_evaluation(str(evaluation))
    source = {"kind": "file", "id": identify_input(str(file)).id, "source": str(file)}
    manifest = {
        **one.manifest,
        "inputs": {**one.manifest["inputs"], "prompts": source},
        "config": {**one.manifest["config"], "split": "test"},
    }
    answers = tuple(a.model_copy(update={"prompt_id": ids[int(a.prompt_id[-3:])]}) for a in one.answers)
    from_file = replace(one, manifest=manifest, answers=answers)
    if changed:
        file.write_text(json.dumps(rows[0]) + "\n")
    gate = Gate(policy="dpo-low", slices={"even": 0.01, "odd": 0.99})
    met = {row.name: row for row in check(gate, from_file)}
    assert met["slice even"].met != changed
    assert ("moved or changed" if changed else "20 prompts") in met["slice odd"].words
    assert not met["slice odd"].met


def test_a_policy_that_refuses_does_not_pass(evaluation: Path) -> None:
    gate = Gate(policy="base", refusals=0.09)  # it refuses every tenth prompt
    assert [one.met for one in check(gate, read_evaluation(str(evaluation))) if one.name == "refusals"] == [False]


def test_the_baseline_itself_has_no_win_rate(evaluation: Path) -> None:
    gate = Gate(policy="sft", win_rate=0.5)
    assert [one.name for one in check(gate, read_evaluation(str(evaluation))) if not one.met] == ["baseline"]


def test_two_names_of_one_model_are_two_policies(evaluation: Path) -> None:
    """As where a model is evaluated beside itself, to see the noise."""
    one = read_evaluation(str(evaluation))
    same = {"kind": "name", "id": "a model", "source": "a model"}
    inputs = {**one.manifest["inputs"], "policy_sft": same, "policy_dpo-low": same}
    beside_itself = replace(one, manifest={**one.manifest, "inputs": inputs})
    met = {row.name: row.met for row in check(Gate(policy="dpo-low", win_rate=0.5), beside_itself)}
    assert met["win rate"] == found(evaluation, win_rate=0.5)["win rate"]


def test_a_gates_file_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "gate.yaml"
    for content, expected in (
        ({"policy": "nobody"}, "policy 'nobody' is not evaluated"),
        ({"policy": "sft", "win_rat": 0.5}, "win_rat"),
        ({"policy": "sft", "win_rate": 50}, "win_rate"),
        ({"policy": "sft", "win_rate": "0,5"}, "win_rate"),
        ({"policy": "sft", "figures": {"repetition_mean": {}}}, "no limit: give at_least, at_most or no_worse_by"),
        ({}, "policy"),
    ):
        file.write_text(yaml.safe_dump(content))
        with pytest.raises(ConfigError, match=expected):
            read_gate(str(file), list(POLICIES))
    quickstart = read_yaml(REPOSITORY / "configs/quickstart/evaluate.yaml")
    assert read_gate(str(REPOSITORY / "configs/gates/quickstart.yaml"), list(quickstart["policies"])).win_rate == 0.5


def test_compare_ends_with_the_gates_status_and_writes_its_report_first(evaluation: Path, tmp_path: Path) -> None:
    file = tmp_path / "gate.yaml"
    words = ["compare", "--evaluation", evaluation, "--output", tmp_path / "out", "--gate", file]
    file.write_text(yaml.safe_dump({"policy": "dpo-low", "win_rate": 0.5, "kl": 0.1}))
    for _ in range(2):  # a finished report is checked again
        status, message = run_here(*words)
        assert status == 3
        assert "DPO" not in message
        assert (
            f"dpo-low does not meet {file}: 1 of 3 requirements\n  KL, nats per answer: 1.20; at most 0.100" in message
        )
        assert (tmp_path / "out" / "report.html").is_file()
    result = json.loads((evaluation / "gate.json").read_text())
    assert [one["met"] for one in result["requirements"]] == [True, True, False]
    file.write_text(yaml.safe_dump({"policy": "dpo-low", "win_rate": 0.5}))
    status, message = run_here(*words)  # the gate is not part of what the report is
    assert status == 0, message
    assert "meets" in message


def test_evaluate_checks_the_gate_of_a_finished_run(finished_recipe: Path, tmp_path: Path) -> None:
    runs = finished_recipe / "runs"
    config = runs / "evaluate" / "config.resolved.yaml"
    policies = list(read_yaml(config)["policies"])
    file = tmp_path / "gate.yaml"
    file.write_text(yaml.safe_dump({"policy": policies[-1], "min_prompts": 1000}))
    status, message = run_here("evaluate", "--config", config, "--gate", file)
    (runs / "evaluate" / "gate.json").unlink()
    assert status == 3
    assert "prompts: 4; at least 1,000" in message


def test_evaluate_checks_the_gates_file_first_and_the_gate_of_a_new_run_last(
    finished_recipe: Path, tmp_path: Path
) -> None:
    config = finished_recipe / "runs" / "evaluate" / "config.resolved.yaml"
    new, file = tmp_path / "evaluate", tmp_path / "gate.yaml"
    file.write_text("policy: nobody\n")
    words = ("evaluate", "--config", config, "--output", new, "--max-prompts", "1", "--gate", file)
    status, message = run_here(*words)
    assert status == 2
    assert "nobody" in message
    assert not new.exists(), "a wrong gate costs no sampling"
    file.write_text(yaml.safe_dump({"policy": list(read_yaml(config)["policies"])[-1], "min_prompts": 1000}))
    status, message = run_here(*words)
    assert status == 3
    assert "prompts: 1; at least 1,000" in message
    assert (new / "manifest.json").is_file()


def test_a_recipe_checks_the_gate_of_a_finished_stage_again(finished_recipe: Path, tmp_path: Path) -> None:
    runs, gate = finished_recipe / "runs", tmp_path / "gate.yaml"
    policy = list(read_yaml(runs / "evaluate" / "config.resolved.yaml")["policies"])[-1]
    recipe = read_yaml(finished_recipe / "pipeline.yaml")
    recipe["stages"][-1]["overrides"] = {"gate": str(gate)}
    file = finished_recipe / "gated.yaml"
    file.write_text(yaml.safe_dump(recipe))
    try:
        gate.write_text(yaml.safe_dump({"policy": policy, "min_prompts": 1000}))
        status, message = run_here("run", "--config", file)
        assert status == 3, message
        assert "stage compare: the gate is not met" in message
    finally:
        file.unlink()
        (runs / "evaluate" / "gate.json").unlink(missing_ok=True)

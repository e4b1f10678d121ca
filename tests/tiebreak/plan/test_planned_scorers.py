"""Reward models in a plan: on the policy's weights, or with weights of their own, as their files say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import run_here, write_config, write_rows

from preference.configuration import DPOConfig, PPOConfig
from sft.configuration import SFTConfig
from tiebreak.command.plan import PlanArguments, _of_recipe
from tiebreak.config import AdapterConfig
from tiebreak.errors import ModelError
from tiebreak.plan import planner
from tiebreak.plan.devices import find_device
from tiebreak.plan.hardware import Hardware
from tiebreak.plan.locate import locate_model, locate_shape
from tiebreak.plan.page import lines_of
from tiebreak.plan.planner import plan_stage
from tiebreak.plan.work import forward_operations

SMALL = {"model_type": "llama", "vocab_size": 10, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}  # fmt: skip
LARGE = {**SMALL, "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
PER_RANK = 2 * ((4 + 4) + (4 + 2) + (4 + 2) + (4 + 4) + 3 * (4 + 6))
"""parameters of LoRA of rank 1 on SMALL: q, k, v, o; gate, up, down"""
CPU = Hardware(find_device("cpu"))


def write_model(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def write_run(folder: Path, base: Path, sha256: str, tokenizer: str = "t", **adapter: Any) -> Path:
    """What a finished run says of its model."""
    final = folder / "final"
    final.mkdir(parents=True)
    pinned = {"base": str(base), "base_sha256": sha256, "adapter": AdapterConfig(**adapter).model_dump()}
    if adapter.get("method") == "full":
        pinned["weights_sha256"] = f"{folder.name} {sha256}"
        (final / "config.json").write_bytes((base / "config.json").read_bytes())
    facts = {"tokenizer_sha256": tokenizer, "chat_template_sha256": "c"}
    (final / "model.json").write_text(json.dumps({**pinned, **facts}))
    return folder


@pytest.fixture
def bases(tmp_path: Path) -> tuple[Path, Path]:
    return write_model(tmp_path / "small", SMALL), write_model(tmp_path / "large", LARGE)


def ppo(policy: Path, reward: Path, **changes: Any) -> PPOConfig:
    values = {"output": "x", "policy": str(policy), "reward_model": str(reward), "prompts": "p.jsonl", **changes}
    return PPOConfig.model_validate(values)


def test_a_reward_model_on_the_policys_base_is_counted_with_its_own_rank(
    bases: tuple[Path, Path], tmp_path: Path
) -> None:
    policy = write_run(tmp_path / "sft", bases[0], "a", r=3)
    reward = write_run(tmp_path / "reward", bases[0], "a", r=5)
    plan = plan_stage("ppo", ppo(policy, reward), CPU)
    assert plan.memory.reward_models == 0
    assert plan.memory.adapters == 4 * (2 * 3 * PER_RANK + 5 * PER_RANK + 4)  # two of the policy's; and the score head
    guarded = ppo(policy, reward, guard={"reward_model": str(write_run(tmp_path / "guard", bases[0], "a", r=7))})
    assert plan_stage("ppo", guarded, CPU).memory.adapters - plan.memory.adapters == 4 * (7 * PER_RANK + 4)


@pytest.mark.parametrize(
    ("why", "reward"),
    [
        ("another base", {"sha256": "b"}),
        ("another tokenizer or template", {"tokenizer": "u"}),
        ("whole weights", {"method": "full"}),
        ("another number format", {"quantize": "nf4"}),
        ("int8 weights", {"quantize": "int8"}),
        ("virtual tokens", {"method": "prompt"}),
    ],
)
def test_why_a_reward_model_is_loaded_separately(
    bases: tuple[Path, Path], tmp_path: Path, why: str, reward: dict[str, Any]
) -> None:
    policy = write_run(tmp_path / "sft", bases[0], "a")
    judge = write_run(tmp_path / "reward", bases[0], **{"sha256": "a", **reward})
    (scorer,) = plan_stage("ppo", ppo(policy, judge), CPU).setting.scorers
    assert (scorer.apart, scorer.is_assumed) == (why, False)
    for method in ({"method": "full"}, {"start": "merge"}):  # the policy's weights then become others
        (scorer,) = plan_stage("ppo", ppo(policy, judge, adapter=method), CPU).setting.scorers
        assert scorer.apart


def test_a_reward_model_on_a_larger_base_takes_its_own_weights_and_operations(
    bases: tuple[Path, Path], tmp_path: Path
) -> None:
    """LARGE: embedding and final norm 51·32; a block's q and o 32·32, k and v 32·16, three of the MLP 32·64, two norms."""
    policy = write_run(tmp_path / "sft", bases[0], "a", r=3)
    reward = write_run(tmp_path / "reward", bases[1], "b", r=2)
    plan = plan_stage("ppo", ppo(policy, reward), CPU)
    blocks = 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32)
    lora = 3 * 2 * (2 * 64 + 2 * 48 + 3 * 96) + 32
    assert plan.memory.reward_models == 4 * (51 * 32 + blocks + lora)
    assert plan.memory.adapters == 4 * 2 * 3 * PER_RANK
    same = plan_stage("ppo", ppo(policy, write_run(tmp_path / "same", bases[0], "a")), CPU)
    large, small = locate_shape(str(bases[1])), locate_shape(str(bases[0]))
    tokens = plan.work.tokens
    length = tokens / (100 * 64)
    assert plan.work.operations - same.work.operations == pytest.approx(
        forward_operations(large, tokens, length) - forward_operations(small, tokens, length)
    )
    assert f"    {reward}: its own 29,472 parameters (another base)" in "\n".join(lines_of(plan))
    pairs = {"output": "x", "policy": str(policy), "preferences": "p.jsonl", "guard": {"reward_model": str(reward)}}
    assert plan_stage("dpo", DPOConfig.model_validate(pairs), CPU).memory.reward_models == plan.memory.reward_models


def test_a_reward_model_that_is_not_there_is_assumed_to_be_on_the_policys_base(bases: tuple[Path, Path]) -> None:
    plan = plan_stage("ppo", ppo(bases[0], bases[0] / "none", adapter={"r": 1}), CPU)
    assert plan.memory.adapters == 4 * (3 * PER_RANK + 4)
    assert "none: an adapter on the policy's weights (assumed)" in "\n".join(lines_of(plan))


def test_a_hint_of_nf4_counts_the_reward_model_that_stays_in_its_format(
    bases: tuple[Path, Path], tmp_path: Path
) -> None:
    policy = write_run(tmp_path / "sft", bases[0], "a")
    for reward, apart in (
        (write_run(tmp_path / "reward", bases[0], "a"), "another number format"),
        (tmp_path / "not there yet", ""),
    ):
        setting = plan_stage("ppo", ppo(policy, reward), CPU).setting
        assert setting.scorers[0].apart == ""
        changed = planner._nf4(setting)
        assert changed is not None
        assert changed[0].scorers[0].apart == apart


def test_an_adapter_made_elsewhere_is_counted_by_peft_s_file(bases: tuple[Path, Path], tmp_path: Path) -> None:
    values = {"peft_type": "LORA", "r": 7, "lora_alpha": 14, "target_modules": ["q_proj", "down_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**values, "base_model_name_or_path": str(bases[0])}))
    config = SFTConfig(output="x", policy=str(tmp_path), demonstrations="d.jsonl", adapter=None)
    assert plan_stage("sft", config, CPU).trained == 2 * 7 * ((4 + 4) + (6 + 4))


def test_losses_without_a_reference_hold_one_adapter(bases: tuple[Path, Path]) -> None:
    values = {"output": "x", "policy": str(bases[0]), "preferences": "p.jsonl", "adapter": {"r": 1}}
    for algorithm, adapters in (("dpo", 2), ("kto", 2), ("orpo", 1), ("simpo", 1), ("cpo", 1)):
        plan = plan_stage("dpo", DPOConfig.model_validate({**values, "algorithm": algorithm}), CPU)
        assert plan.memory.adapters == adapters * 4 * PER_RANK


def test_whole_weights_are_a_model_of_their_own(bases: tuple[Path, Path], tmp_path: Path) -> None:
    """Its base may be gone."""
    run = write_run(tmp_path / "full", bases[0], "a", method="full")
    (bases[0] / "config.json").unlink()
    found = locate_model(str(run))
    assert (found.base, found.base_sha256) == (str(run / "final"), "full a")
    assert found.shape.hidden == 4
    assert locate_model(str(run / "final")).base == str(run / "final")


def test_a_recipe_s_reward_model_has_the_base_that_its_stage_trained(
    bases: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write_rows(tmp_path / "p.jsonl", [{"prompt": "Why?"}])
    for folder, base in (("same", bases[0]), ("other", bases[1])):
        sft = write_config(tmp_path / folder / "sft.yaml", output="sft", policy=bases[0], demonstrations=rows)
        reward = write_config(tmp_path / folder / "reward.yaml", output="reward", policy=base, preferences=rows)
        last = write_config(
            tmp_path / folder / "ppo.yaml", output="ppo", policy="sft", reward_model="./reward", prompts=rows
        )
        stages = [{"stage": name, "config": file} for name, file in (("sft", sft), ("reward", reward), ("ppo", last))]
        write_config(tmp_path / folder / "all.yaml", name="r", stages=stages)
    found = {}
    for folder in ("same", "other"):
        plans = list(_of_recipe(["--config", f"{folder}/all.yaml"], PlanArguments()))
        found[folder] = [(one.apart, one.is_assumed) for one in plans[-1].setting.scorers]
    assert found == {"same": [("", False)], "other": [("another base", False)]}
    assert run_here("plan", "--config", "other/all.yaml")[0] == 0


def test_the_guard_of_dpo_draws_answers_with_a_cache(bases: tuple[Path, Path]) -> None:
    """Keys and values: 2 tables, 2 blocks, 1 head of 2 numbers of 4 bytes: 32 bytes a token. 24 rows, up to 12 tokens of a
    prompt and 8 of an answer, on 1 and on 5 processes."""
    values = {
        "output": "x", "policy": str(bases[0]), "preferences": "p.jsonl", "training": {"max_length_tokens": 12},
        "guard": {"reward_model": "none", "max_prompts": 24}, "sampling": {"max_new_tokens": 8},
    }  # fmt: skip
    config = DPOConfig.model_validate(values)
    setting = plan_stage("dpo", config, CPU).setting
    assert planner._while_guarding(setting).kv_cache == 24 * 20 * 32
    spread = replace(setting, hardware=replace(CPU, count=5))
    assert planner._while_guarding(spread).kv_cache == 5 * 20 * 32
    values["guard"] = {"reward_model": "none", "max_prompts": 10_000}
    plan = plan_stage("dpo", DPOConfig.model_validate(values), CPU)
    assert (plan.phase, plan.memory.kv_cache) == ("the guard's answers", 10_000 * 20 * 32)


def test_a_stacked_adapter_is_held_with_the_one_below(bases: tuple[Path, Path], tmp_path: Path) -> None:
    """Rank 3 on a policy's rank 5: 3 train, and 8 have gradients, moments and a place in the file."""
    policy = write_run(tmp_path / "sft", bases[0], "a", r=5)

    def planned(start: str, policy: Path = policy) -> planner.StagePlan:
        adapter = {"r": 3, "start": start}
        values = {"output": "x", "policy": str(policy), "demonstrations": "d.jsonl", "adapter": adapter}
        return plan_stage("sft", SFTConfig.model_validate(values), CPU)

    plan = planned("stack")
    assert plan.trained == 3 * PER_RANK
    assert (plan.memory.adapters, plan.memory.gradients) == (4 * 8 * PER_RANK, 4 * 8 * PER_RANK)
    assert plan.memory.optimizer == 8 * 8 * PER_RANK
    assert (plan.setting.numbers.rank, plan.written.adapter.r, plan.written.adapter.start) == (8, 8, "continue")
    assert planned("stack", bases[0]).memory.adapters == 4 * 3 * PER_RANK  # a base brings none
    merged = planned("merge")
    assert (merged.memory.adapters, merged.written.adapter.r) == (4 * 3 * PER_RANK, 3)


@pytest.mark.parametrize("method", ["gptq", "fp8", "awq"])
def test_a_base_that_no_stage_loads_is_not_planned(tmp_path: Path, method: str) -> None:
    quantized = write_model(tmp_path / "q", {**SMALL, "quantization_config": {"quant_method": method}})
    config = SFTConfig(output="x", policy=str(quantized), demonstrations="d.jsonl")
    with pytest.raises(ModelError, match=f"q holds weights quantised with {method} .*, which no stage loads"):
        plan_stage("sft", config, CPU)
    kept = write_model(tmp_path / "b", {**SMALL, "quantization_config": {"quant_method": "bitsandbytes"}})
    assert locate_shape(str(kept)).hidden == 4

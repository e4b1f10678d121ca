"""Rewards: functions as users write them, and reward models that read another tokenizer's text."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support import run_here

from preference.configuration import PPOConfig
from preference.policy.backbone import load_backbone
from preference.policy.rewards import (
    Conversations,
    FunctionReward,
    RewardConfig,
    SeparateReward,
    load_function,
    load_reward,
    score_all,
)
from tiebreak.chat.build import build_chat
from tiebreak.chat.turns import find_template
from tiebreak.config import AdapterConfig, TrainingConfig
from tiebreak.errors import ConfigError, DataError, HandoffError
from tiebreak.messages import Message
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.find import ModelSource, base_sha256
from tiebreak.models.load import load_reward_model
from tiebreak.models.probe import probe_values, write_probe
from tiebreak.models.save import save_adapter
from tiebreak.models.tokenizers import load_tokenizer
from tiebreak.plan.devices import find_device
from tiebreak.plan.hardware import Hardware
from tiebreak.plan.planner import plan_stage
from tiebreak.records import Prompt
from tiebreak.runs.run import read_manifest, read_metrics

HERE = Path(__file__).parent
TRAINING = TrainingConfig(precision="float32")
ASK = (Message(role="user", content="Why are my basil leaves pale?"),)


@pytest.fixture
def conversations(tiny_model: Path) -> tuple[Conversations, list[int], list[int]]:
    """One prompt and one answer, with their ids."""
    tokenizer = load_tokenizer(source_of(tiny_model))
    chat = build_chat(tokenizer)
    prompt, completion = chat.encode_completion(ASK, "Add iron.")
    return Conversations(chat, {tuple(prompt): Prompt(id="prompt-1", messages=ASK)}), prompt, completion


def source_of(folder: Path) -> ModelSource:
    return ModelSource(str(folder), "policy", "tiny", str(folder), folder, base_sha256(folder), None)


def from_function(name: str, conversations: Conversations, weight: float = 1.0) -> FunctionReward:
    full = f"polite_rewards:{name}"
    return FunctionReward(full, weight, load_function(full), conversations)


def test_a_function_hears_messages_and_texts(conversations: tuple[Conversations, list[int], list[int]]) -> None:
    seen, prompt, completion = conversations
    reward = from_function("short", seen)
    assert reward.scores([prompt, prompt], [completion, completion[:1]]) == [
        -9.0,
        -float(len(seen.text(completion[:1]))),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "raises",
            r"polite_rewards:raises raised KeyError: 'no such shelf' \(.*polite_rewards.py, line \d+\)\. If the cau",
        ),
        ("too_few", "returned 1 scores for 2 completions: it must return one for each"),
        ("words", "returned list: could not convert string to float.*a number for each completion"),
        ("not_numbers", "polite_rewards:not_numbers gave 1 of 2 completions a score that is not a finite number"),
    ],
)
def test_a_function_that_does_not_score_is_reported_with_its_cause(
    conversations: tuple[Conversations, list[int], list[int]], name: str, words: str
) -> None:
    seen, prompt, completion = conversations
    with pytest.raises(HandoffError, match=words):
        score_all([from_function(name, seen)], [prompt] * 2, [completion] * 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_package.rewards:polite", "no module 'no_such_package'"),
        ("polite_rewards:kind", "polite_rewards has no function 'kind'"),
        ("polite_rewards:NOTHING", "is not a function"),
    ],
)
def test_a_function_that_is_not_there_is_reported_before_anything_starts(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_function(name)


def test_a_reward_is_a_model_or_a_function() -> None:
    for wrong in ({}, {"model": "a", "function": "b:c"}, {"function": "no_colon"}):
        with pytest.raises(ValidationError):
            RewardConfig.model_validate(wrong)


def test_a_reward_model_with_another_tokenizer_reads_the_text(tiny_model: Path, tmp_path: Path) -> None:
    """Its tokenizer has a word of its own, so the policy's ids mean nothing to it; the scores are its own of the text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["basil", "iron"])
    tokenizer.save_pretrained(other)
    wider = AutoModelForCausalLM.from_pretrained(other)
    wider.resize_token_embeddings(len(tokenizer))
    wider.save_pretrained(other)
    ends = {"eos_token_id": [tokenizer.eos_token_id, *tokenizer(" daily")["input_ids"]]}
    (other / "generation_config.json").write_text(json.dumps(ends))
    judge = source_of(other)
    own = load_tokenizer(judge)
    adapter = AdapterConfig(r=4, alpha=8)
    model = load_reward_model(judge, TRAINING, adapter, own)
    final = tmp_path / "reward" / "final"
    state = Adapter(model).state()
    save_adapter(final, model, state, build_chat(own), judge, "reward", adapter)
    ids = list(range(40, 60))
    write_probe(final, ids, probe_values(model, ids), model)
    reward = replace(judge, name="judge", kind="reward", folder=final)

    policy = source_of(tiny_model)
    mine = load_tokenizer(policy)
    prompt, completion = build_chat(mine).encode_completion(ASK, "Add ironwork.")
    backbone = load_backbone(policy, TRAINING, adapter, mine)
    seen = Conversations(build_chat(mine), {tuple(prompt): Prompt(id="prompt-1", messages=ASK)})
    loaded = load_reward(reward, 1.0, backbone, policy, seen, TRAINING, "reward")
    assert isinstance(loaded, SeparateReward)
    scored = {"output": "x", "policy": str(tiny_model), "reward_model": str(final.parent), "prompts": "x"}
    planned = plan_stage("ppo", PPOConfig.model_validate(scored), Hardware(find_device("cpu")))
    held = sum(each.numel() * each.element_size() for each in loaded.model.parameters())
    head_below = 4 * loaded.model.config.hidden_size  # PEFT keeps the base's untrained head beside the trained one
    assert planned.memory.reward_models == held - head_below
    read = loaded.read(prompt, completion)
    before, after = build_chat(own).encode_completion(ASK, "Add ironwork.")
    assert list(read) == before + after
    assert list(read) != prompt + completion
    assert loaded.read(prompt, completion[:-1])[-1] != own.eos_token_id  # cut off there, cut off here
    _, holds_an_end = build_chat(mine).encode_completion(ASK, "Feed basil daily.")
    assert own.decode(loaded.read(prompt, holds_an_end)) == own.decode(
        [*before, *own("Feed basil.<|im_end|>")["input_ids"]]
    )

    gemma = copy.deepcopy(own)
    gemma.chat_template = find_template("gemma", own)
    gemma.save_pretrained(final)
    (final / "chat_template.jinja").write_text(gemma.chat_template)
    asked = (Message(role="system", content="Be brief."), *ASK)
    seen = Conversations(build_chat(mine), {(1,): Prompt(id="prompt-2", messages=asked)})
    with pytest.raises(DataError, match=r"1 of 1 prompts, as judge reads them, cannot be rendered"):
        load_reward(replace(reward, pinned={}), 1.0, backbone, policy, seen, TRAINING, "reward")


@pytest.mark.slow
def test_rloo_through_the_command_line_on_a_function(
    tiny_model: Path, raw_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base model, a function and no reward model: trained, saved, reloaded; the function's file is in the identity."""
    shutil.copy(HERE / "polite_rewards.py", tmp_path / "my_rewards.py")
    words: list[Any] = ["ppo", "--output", tmp_path / "run", "--policy", tiny_model, "--algorithm", "rloo"]
    words += ["--prompts", raw_data / "prompts.jsonl", "--rewards", "[{function: my_rewards:short, weight: 2.0}]"]
    words += ["--episodes-per-rollout", "4", "--completions-per-prompt", "2", "--rollouts", "2", "--ppo-epochs", "1"]
    words += ["--sampling.max-new-tokens", "6", "--sampling.temperature", "1.0", "--stop-when-all-cut-off", "false"]
    words += ["--training.per-device-batch-size", "4", "--max-validation-prompts", "2", "--tracking.mode", "disabled"]
    words += ["--adapter.r", "4", "--training.learning-rate", "1e-3"]
    monkeypatch.syspath_prepend(tmp_path)
    status, message = run_here(*words)
    assert status == 0, message
    manifest = read_manifest(tmp_path / "run")
    assert manifest["inputs"]["rewards.0"]["kind"] == "file"
    assert manifest["probe_difference"] <= 1e-5
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert rows[0]["objective/scores"] < 0  # twice the letters of an answer, taken off

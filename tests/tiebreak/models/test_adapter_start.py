"""A policy's adapter merged into its base, or left as it is below a new one (`adapter.start`).

The oracle is PEFT's own forward of the folder as it was saved, and for what a run saved, plain transformers and PEFT.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from outcomes import ask_here
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file
from support import TINY_TRAINING, end_process, read_rows, run_here, write_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from preference.policy.adapters import POLICY, REFERENCE
from tiebreak.config import AdapterConfig, TrainingConfig
from tiebreak.errors import ConfigError, HandoffError
from tiebreak.models import load
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.adapters.stacked import Part, join
from tiebreak.models.find import find_model
from tiebreak.models.load import load_policy, load_reward_model
from tiebreak.models.merging import start_of
from tiebreak.models.probe import probe_values
from tiebreak.models.reload import FreshProcess
from tiebreak.models.tokenizers import load_chat

pytestmark = pytest.mark.filterwarnings("ignore")
TRAINING = TrainingConfig(precision="float32")
IDS = [1, 520, 9531, 198, 77, 4093, 2]
LINEAR = ["q_proj", "v_proj", "down_proj"]
MORE_TOKENS = 3


def make(folder: Path, base: Path, more_tokens: int = 0, **values: Any) -> Path:
    """An adapter with weights of its own, saved by PEFT with its tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if more_tokens:
        tokenizer.add_tokens([f"<extra {number}>" for number in range(more_tokens)])
        model.resize_token_embeddings(len(tokenizer))
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **values))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answers(base: Path, adapter: Path | None = None, ids: list[int] = IDS, tokens: int | None = None) -> list[float]:
    """Log-probabilities by plain transformers and PEFT."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if tokens:
        model.resize_token_embeddings(tokens)
    whole: Any = model if adapter is None else PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits = whole.eval()(input_ids=torch.tensor([ids])).logits[0, :-1]
    return [float(x) for x in logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]]


def dpo(tmp_path: Path, data: Path, policy: Path, **adapter: Any) -> Path:
    """A run of two steps, reloaded in this process."""
    output = tmp_path / "run"
    config = write_config(
        tmp_path / "dpo.yaml",
        output=output,
        policy=policy,
        preferences=data / "preferences.jsonl",
        adapter=adapter,
        training={**TINY_TRAINING, "max_steps": 2, "per_device_batch_size": 2, "learning_rate": 0.01},
        sampling={"max_new_tokens": 4, "temperature": 0.0},
        cache_reference=False,
    )
    with mock.patch.object(FreshProcess, "ask", ask_here):
        status, message = run_here("dpo", "--config", config)
    end_process(output)
    assert status == 0, message[-3000:]
    assert read_rows(output / "metrics.jsonl")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    return output


def tokenizer_of(folder: Path) -> Any:
    return load_chat(find_model(str(folder))).tokenizer


# --- merge

MERGED: dict[str, dict[str, Any]] = {
    "rsLoRA": {"r": 4, "lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"v_proj": 20}, "target_modules": LINEAR},
    "DoRA, whole head": {"use_dora": True, "target_modules": LINEAR, "modules_to_save": ["lm_head"]},
    "a vocabulary that grew": {"target_modules": LINEAR, "more_tokens": MORE_TOKENS},
    "embeddings that the head shares": {"target_modules": ["embed_tokens", "q_proj"]},
}


@pytest.mark.parametrize("kind", list(MERGED))
def test_a_merged_policy_answers_as_peft_loads_it(tiny_model: Path, raw_data: Path, tmp_path: Path, kind: str) -> None:
    policy = make(tmp_path / "policy", tiny_model, **MERGED[kind])
    tokens = len(AutoTokenizer.from_pretrained(policy)) if "more_tokens" in MERGED[kind] else None
    ids = [*IDS, tokens - 1] if tokens else IDS
    wanted = answers(tiny_model, policy, ids, tokens)
    run = dpo(tmp_path, raw_data, policy, start="merge", r=2, alpha=4)
    assert answers(run / "base", ids=ids) == pytest.approx(wanted, abs=1e-4)
    probe = json.loads((run / "final" / "probe.json").read_text())
    assert answers(run / "base", run / "final", probe["input_ids"]) == pytest.approx(probe["values"], abs=1e-4)
    saved = json.loads((run / "final" / "adapter_config.json").read_text())
    assert (saved["r"], saved["base_model_name_or_path"]) == (2, str(run / "base"))
    moved = run.rename(tmp_path / "moved")
    found = find_model(str(moved))
    assert found.base_path == moved / "base"
    assert load_policy(found, TRAINING, None, load_chat(found).tokenizer).peft_config["default"].r == 2


def test_whole_weights_train_on_a_merged_adapter(tiny_model: Path, raw_data: Path, tmp_path: Path) -> None:
    policy = make(tmp_path / "policy", tiny_model, target_modules=LINEAR, modules_to_save=["lm_head"])
    run = dpo(tmp_path, raw_data, policy, start="merge", method="full")
    probe = json.loads((run / "final" / "probe.json").read_text())
    assert answers(run / "final", ids=probe["input_ids"]) == pytest.approx(probe["values"], abs=1e-4)


# --- stack

STACKED: dict[str, dict[str, Any]] = {
    "rsLoRA": {"r": 3, "lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"v_proj": 20}, "target_modules": LINEAR},
    "more layers than the new one": {"r": 4, "lora_alpha": 8, "target_modules": [*LINEAR, "o_proj"]},
}
NEW = {"r": 6, "alpha": 4, "target_modules": ["q_proj", "v_proj", "down_proj", "up_proj"]}


@pytest.mark.parametrize("kind", list(STACKED))
def test_a_stacked_adapter_starts_as_the_policy_and_leaves_it_as_it_is(
    tiny_model: Path, raw_data: Path, tmp_path: Path, kind: str
) -> None:
    policy = make(tmp_path / "policy", tiny_model, **STACKED[kind])
    wanted, tokenizer = answers(tiny_model, policy), tokenizer_of(policy)
    model = load_policy(find_model(str(policy)), TRAINING, AdapterConfig(start="stack", **NEW), tokenizer)
    assert probe_values(model, IDS) == pytest.approx(wanted, abs=1e-5)
    with Adapter(model, POLICY).copy(REFERENCE).active():
        assert probe_values(model, IDS) == pytest.approx(wanted, abs=1e-5)
    reward = load_reward_model(find_model(str(policy)), TRAINING, AdapterConfig(start="stack", **NEW), tokenizer)
    with torch.no_grad():
        states = [
            each.eval().get_base_model().model(input_ids=torch.tensor([IDS])).last_hidden_state
            for each in (reward, PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), policy))
        ]
    torch.testing.assert_close(states[0], states[1], rtol=1e-5, atol=1e-5)
    run = dpo(tmp_path, raw_data, policy, start="stack", **NEW)
    probe = json.loads((run / "final" / "probe.json").read_text())
    assert answers(tiny_model, run / "final", probe["input_ids"]) == pytest.approx(probe["values"], abs=1e-4)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (policy, run / "final"))
    for key, value in before.items():
        if ".lora_A" in key:
            there = after[key]
            assert any(torch.equal(there[at : at + len(value)], value) for at in range(len(there) - len(value) + 1))
    learned = [key for key in after if ".lora_B" in key and not after[key][:, : NEW["r"]].eq(0).all()]
    assert any("up_proj" in key for key in learned)
    load_policy(find_model(str(run)), TRAINING, None, tokenizer)  # and is continued as any LoRA


def test_two_loras_are_one_of_both_ranks() -> None:
    torch.manual_seed(0)
    above = Part(torch.randn(6, 5), torch.randn(7, 6), Fraction(4, 6))
    below = Part(torch.randn(4, 5), torch.randn(7, 4), 0.37)
    joined = join(above, below)
    wanted = above.b @ above.a * (4 / 6) + below.b @ below.a * 0.37
    torch.testing.assert_close(joined.b @ joined.a * float(joined.scale), wanted)
    assert len(joined.a) == 12  # 6 + 4, and two rows of zeros: 2/3 of 12 is a whole number
    assert (joined.scale * len(joined.a)).denominator == 1


# --- refused


def test_what_cannot_be_merged_or_stacked_is_refused_before_it_loads(
    tiny_model: Path, raw_data: Path, tmp_path: Path
) -> None:
    plain = make(tmp_path / "plain", tiny_model, target_modules=LINEAR)
    decomposed = make(tmp_path / "dora", tiny_model, target_modules=LINEAR, use_dora=True)
    grown = make(tmp_path / "grown", tiny_model, more_tokens=MORE_TOKENS, target_modules=LINEAR)
    cases: list[tuple[Path, dict[str, Any], dict[str, Any], str]] = [
        (tiny_model, {"start": "merge"}, {}, "has no adapter to merge: leave start out"),
        (decomposed, {"start": "stack"}, {}, "stack adds LoRA to LoRA, and"),
        (plain, {"start": "stack"}, {"weight_decay": 0.1}, "would also shrink the policy's own adapter"),
        (plain, {"start": "stack", "quantize": "nf4"}, {}, "was trained on base weights with quantize: none"),
        (plain, {"method": "vera"}, {}, "Set `adapter: null`, or adapter.start: merge"),
    ]
    for policy, adapter, training, reason in cases:
        config = write_config(
            tmp_path / "config.yaml",
            output=tmp_path / "out",
            policy=policy,
            adapter=adapter,
            preferences=raw_data / "preferences.jsonl",
            training={**TINY_TRAINING, **training},
        )
        with mock.patch.object(load, "load_base", side_effect=AssertionError("loaded")):
            status, message = run_here("dpo", "--config", config)
        assert status
        assert reason in " ".join(message.split())
        end_process(tmp_path / "out")
    quantized = replace(find_model(str(plain)), pinned={"quantized": True})
    with pytest.raises(
        ConfigError, match="was trained on quantised base weights, and added to them it would be rounded"
    ):
        start_of(quantized, AdapterConfig(start="merge"))
    with pytest.raises(HandoffError, match=r"as of a vocabulary that grew: train with adapter\.start: merge"):
        load_policy(find_model(str(grown)), TRAINING, None, tokenizer_of(grown))


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (
            {"start": "stack", "method": "ia3"},
            "stack adds LoRA to LoRA, not ia3; with start: merge any method can follow",
        ),
        ({"start": "stack", "rslora": True, "dropout": 0.1}, "rslora, dropout: cannot be combined with start: stack"),
    ],
)
def test_keys_that_cannot_be_stacked(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        AdapterConfig.model_validate(asked)

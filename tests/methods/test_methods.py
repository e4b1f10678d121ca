"""A spread of adapter methods through stages; `make methods` runs all of them, see docs/methods.md."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from method_cell import run_method, write_data
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from pydantic import ValidationError
from safetensors.torch import load_file
from support import end_process, run_here, write_config
from transformers import AutoModelForCausalLM
from transformers.training_args import OptimizerNames

from preference import second_copy
from preference.configuration import DPOConfig
from preference.ppo import train as ppo_stage
from tiebreak.config import AdapterConfig, OptimizerConfig
from tiebreak.errors import ConfigError
from tiebreak.models import load
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.find import find_model
from tiebreak.models.tokenizers import load_tokenizer
from tiebreak.runs.placement import Placement
from tiebreak.training.stage import OPTIMIZERS

SPREAD = [
    ("VeRA", ("sft", "reward")),
    ("LoHa", ("sft", "dpo")),
    ("full", ("sft", "reward", "kto", "ppo", "grpo")),
    pytest.param("OFT on NF4", ("sft", "reward", "ppo", "rloo", "grpo"), marks=pytest.mark.proof),
]
PADDED = ("rloo", "grpo")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("method", "stages"), SPREAD)
def test_a_method_trains_reloads_and_is_what_peft_reads(
    tmp_path: Path, tiny_model: Path, method: str, stages: tuple[str, ...]
) -> None:
    outcomes = run_method(tmp_path, tiny_model, method, stages)
    assert {stage: (outcome.how, outcome.note) for stage, outcome in outcomes.items()} == {
        stage: ("padded" if stage in PADDED else "packed", "") for stage in stages
    }


@pytest.mark.filterwarnings("default")
def test_virtual_tokens_take_a_path_without_packing_and_report_it(tmp_path: Path, tiny_model: Path) -> None:
    outcomes = run_method(tmp_path, tiny_model, "prompt", ("sft", "reward", "dpo", "ppo"))
    assert [outcome.how for outcome in outcomes.values()] == ["padded", "plain", "padded", "refused"]
    reason = "packed: a test of it failed: virtual tokens come before every sequence"
    assert {outcomes[stage].note for stage in ("sft", "reward", "dpo")} == {reason}
    assert "has no place for virtual tokens; ia3 and vera train as few weights" in outcomes["ppo"].note


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.filterwarnings("ignore")
def test_a_start_from_the_weights_trains_as_in_peft_on_an_unchanged_base(tiny_model: Path, init: str) -> None:
    """The oracle is PEFT's own initialisation, which takes the start out of the base weights: three steps of SGD."""
    ids = torch.tensor([[1, 520, 9531, 198, 77, 4093, 2]])
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    with torch.no_grad():
        plain = base(input_ids=ids).logits
    ours = Adapter.build(base, AdapterConfig(r=4, alpha=8, init=init), "CAUSAL_LM").model
    with torch.no_grad():
        assert (ours(input_ids=ids).logits - plain).abs().max() < 1e-4
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=init, task_type="CAUSAL_LM"),
    )
    for model in (ours, theirs):
        optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.05)
        for _ in range(3):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        found, wanted = (model(input_ids=ids).logits for model in (ours, theirs))
    assert (wanted - plain).abs().max() > 0.05
    assert (found - wanted).abs().max() < 2e-3
    assert ours.peft_config["default"].r == 8
    now = {key.replace("base_layer.", ""): value for key, value in ours.get_base_model().state_dict().items()}
    assert all(torch.equal(now[name], value) for name, value in before.items())


@pytest.mark.filterwarnings("ignore")
def test_a_module_that_trains_whole_beside_lora_has_a_copy_for_the_reference(tiny_model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    policy = Adapter.build(base, AdapterConfig(r=4, modules_to_save=["input_layernorm"]), "CAUSAL_LM")
    wanted = policy.answers()
    reference = policy.copy("reference")
    policy.train_alone()
    trained = {name: each for name, each in policy.model.named_parameters() if each.requires_grad}
    assert sum("input_layernorm" in name for name in trained) == 2
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.3)
    with policy.merged():  # which is not a sum, so the adapter stays active
        assert max(abs(a - b) for a, b in zip(policy.answers(), wanted, strict=True)) > 0.05
    with reference.merged():
        assert reference.answers() == pytest.approx(wanted, abs=1e-6)


def test_a_run_is_refused_before_it_loads_where_it_cannot_train(tmp_path: Path, tiny_model: Path) -> None:
    write_data(tmp_path)
    shared = {"policy": tiny_model, "preferences": tmp_path / "preferences.jsonl"}
    wholly, paged = {"adapter": {"method": "full"}}, {"training": {"optimizer": "paged_adamw_8bit"}}
    decayed = {"adapter": {"init": "pissa"}, "training": {"weight_decay": 0.1}}
    head = {"adapter": {"modules_to_save": ["lm_head"]}}
    for command, values, reason in (
        (
            "dpo",
            {**wholly, "algorithm": "kto", "sync_ref_model": True},
            "sync_ref_model: it works on the reference as an",
        ),
        ("dpo", paged, "this machine has none: use adamw_8bit"),
        ("dpo", decayed, "it would also shrink the half of the adapter that holds its start"),
        ("dpo", head, "of which a reference cannot keep a copy"),
    ):
        config = write_config(tmp_path / "config.yaml", output=tmp_path / "out", **shared, **values)
        with mock.patch.object(load, "load_base", side_effect=AssertionError("loaded")):
            status, remarks = run_here(command, "--config", config)
        end_process(tmp_path / "out")
        assert status, remarks
        assert reason in " ".join(remarks.split())
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_a_second_copy_of_a_group_trainer_under_zero_3_is_refused(
    algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL calls the reference by itself, and its embedding is empty there; PPO's is called by our backbone."""
    monkeypatch.setattr(ppo_stage, "of_process", lambda: Placement(2, "zero3"))
    with pytest.raises(ConfigError, match="does not gather here: use --accelerate zero2"):
        ppo_stage.require_whole_copy("full", algorithm)
    ppo_stage.require_whole_copy("lora", algorithm)
    ppo_stage.require_whole_copy("full", "ppo")
    monkeypatch.setattr(ppo_stage, "of_process", lambda: Placement(2, "zero2"))
    ppo_stage.require_whole_copy("full", algorithm)


def test_rloo_on_weights_that_round_by_batch_is_refused_before_it_loads(tiny_model: Path) -> None:
    source = find_model(str(tiny_model))
    rounded = AdapterConfig(quantize="int8")
    with pytest.raises(ConfigError, match="use quantize: nf4, or algorithm: grpo"):
        load.require_possible(source, rounded, OptimizerConfig(), "rloo")
    load.require_possible(source, rounded, OptimizerConfig(), "grpo")
    for exact in (AdapterConfig(quantize="nf4"), AdapterConfig(method="oft", quantize="nf4")):
        load.require_possible(source, exact, OptimizerConfig(), "rloo")


@pytest.mark.filterwarnings("default")
def test_small_steps_in_bfloat16_are_not_lost(tmp_path: Path, tiny_model: Path) -> None:
    """As below, for norms and a score head in a model of 16 bits; loaded again, it has the saved numbers."""
    write_data(tmp_path)
    values = {
        "policy": tiny_model,
        "preferences": tmp_path / "preferences.jsonl",
        "garbage_prompts": 0,
        "adapter": {"method": "norms"},
        "training": {"learning_rate": 1e-4, "max_steps": 1, "warmup_share": 0.0, "precision": "bfloat16"},
    }
    status, remarks = run_here("reward", "--config", write_config(tmp_path / "r.yaml", output=tmp_path / "r", **values))
    assert status == 0, remarks
    saved = load_file(tmp_path / "r" / "final" / "adapter_model.safetensors")
    training = OptimizerConfig(precision="bfloat16")
    model = load.load_trained_reward_model(find_model(str(tmp_path / "r"), "reward"), training)
    assert next(model.parameters()).dtype == torch.bfloat16
    held = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert held.keys() == saved.keys()
    assert all(torch.equal(held[key], value) for key, value in saved.items())
    norms = torch.cat([value.flatten() for key, value in saved.items() if "score" not in key])
    assert float((norms - 1).abs().median()) == pytest.approx(1e-4, rel=0.01)
    source = find_model(str(tiny_model))
    start = load.load_reward_model(source, training, AdapterConfig(method="norms"), load_tokenizer(source))
    (head,) = (value for key, value in get_peft_model_state_dict(start).items() if "score" in key)
    (learned,) = (value for key, value in saved.items() if "score" in key)
    assert float((learned - head).abs().median()) == pytest.approx(1e-4, rel=0.01)


@pytest.mark.filterwarnings("default")
def test_small_steps_on_quantised_weights_are_not_lost(tmp_path: Path, tiny_model: Path) -> None:
    """Adam's first step moves each trained number by the learning rate; they start at 1, where bfloat16 steps by 0.004."""
    write_data(tmp_path)
    config = write_config(
        tmp_path / "sft.yaml",
        output=tmp_path / "sft",
        policy=tiny_model,
        demonstrations=tmp_path / "demonstrations.jsonl",
        validation_share=0.0,
        adapter={"method": "ia3", "quantize": "nf4"},
        training={"learning_rate": 1e-4, "max_steps": 1, "warmup_share": 0.0},
    )
    status, remarks = run_here("sft", "--config", config)
    assert status == 0, remarks
    scales = load_file(tmp_path / "sft" / "final" / "adapter_model.safetensors").values()
    moved = torch.cat([(values.float() - 1).abs().flatten() for values in scales])
    assert float(moved.median()) == pytest.approx(1e-4, rel=0.01)
    assert float(moved.max()) == pytest.approx(1e-4, rel=0.01)


def test_a_second_copy_under_zero_3_is_refused_before_it_loads(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed does not know the copy's weights, and TRL asks each for its shards."""
    config = DPOConfig(output=str(tmp_path), policy="x", preferences="x", adapter=AdapterConfig(method="full"))
    monkeypatch.setattr(second_copy, "of_process", lambda: Placement(2, "zero3"))
    with pytest.raises(ConfigError, match="ZeRO-3 does not share out here: use --accelerate zero2"):
        second_copy.require_adapter_of(find_model(str(tiny_model)), config)
    second_copy.require_adapter_of(find_model(str(tiny_model)), config.model_copy(update={"algorithm": "orpo"}))


def test_an_optimizer_is_one_of_transformers_and_adamw_is_not_written() -> None:
    assert set(OPTIMIZERS.values()) <= {name.value for name in OptimizerNames}
    assert "optimizer" not in OptimizerConfig().model_dump()
    assert OptimizerConfig(optimizer="adamw_8bit").model_dump()["optimizer"] == "adamw_8bit"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"method": "ia3", "r": 4}, "r: method ia3 does not read it, but lora, loha, lokr do"),
        ({"method": "loha", "quantize": "nf4"}, "loha cannot train on nf4 weights; lora, ia3, oft, vera, norms can"),
        ({"dora": True, "quantize": "int8"}, "dora: PEFT cannot compute it on int8 weights"),
        ({"init": "pissa", "rslora": True}, "rslora: cannot be combined with init: pissa"),
        ({"method": "p_tuning"}, "there is no p_tuning: give method: ptuning"),
        ({"method": "DoRA"}, "there is no DoRA: give method: lora and dora: true"),
        ({"method": None}, "there is no None: give method: full"),
        ({"method": "prefix", "quantize": "nf4"}, "prefix cannot train on nf4 weights"),
        ({"trainable_layers": 2}, "trainable_layers: method lora does not read it, but full does"),
        ({"double_quantize": False}, "double_quantize: only nf4 and fp4 have scales"),
    ],
)
def test_keys_that_a_method_does_not_read_are_refused(asked: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        AdapterConfig.model_validate(asked)


def test_an_adapter_is_written_as_the_first_versions_wrote_it() -> None:
    """So that the fingerprint of a run stays what it was."""
    first = {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}
    assert AdapterConfig().model_dump() == {"method": "lora", **first}
    assert AdapterConfig(quantize="nf4").model_dump() == {"method": "qlora", **first}
    for config in (AdapterConfig(method="ia3", quantize="fp4"), AdapterConfig(dora=True, rank_pattern={"q_proj": 2})):
        assert AdapterConfig.model_validate(config.model_dump()) == config

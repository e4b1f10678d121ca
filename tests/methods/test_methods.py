"""A spread of adapter methods through stages; `make methods` runs all of them, see docs/methods.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from method_cell import run_method
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from tiebreak.config import AdapterConfig
from tiebreak.models.adapters.adapter import Adapter

SPREAD = [
    ("VeRA", ("sft", "reward")),
    ("OFT", ("sft", "dpo")),
    ("LoHa", ("sft", "ppo")),
]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("method", "stages"), SPREAD)
def test_a_method_trains_reloads_and_is_what_peft_reads(
    tmp_path: Path, tiny_model: Path, method: str, stages: tuple[str, ...]
) -> None:
    outcomes = run_method(tmp_path, tiny_model, method, stages)
    assert {stage: (outcome.how, outcome.note) for stage, outcome in outcomes.items()} == dict.fromkeys(
        stages, ("packed", "")
    )


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


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"method": "ia3", "r": 4}, "r: method ia3 does not read it, but lora, loha, lokr do"),
        ({"method": "loha", "quantize": "nf4"}, "loha cannot train on nf4 weights; lora, ia3, oft, vera, norms can"),
        ({"dora": True, "quantize": "int8"}, "dora: PEFT cannot compute it on int8 weights"),
        ({"init": "pissa", "rslora": True}, "rslora: cannot be combined with init: pissa"),
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

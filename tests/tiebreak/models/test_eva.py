"""EVA: A has the first right singular vectors of each layer's inputs, by an SVD of all of them at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tiebreak.config import AdapterConfig
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.adapters.eva import Directions
from tiebreak.models.probe import probe_values

ROWS = [[1, 520, 9531, 198, 77, 4093, 2], [1, 88, 3021, 645, 11, 902, 7, 16, 2], [1, 4000, 31, 2]]


def projection(rows: torch.Tensor) -> torch.Tensor:
    """Onto the space of orthonormal rows: singular vectors have no sign."""
    return rows.double().T @ rows.double()


@pytest.mark.filterwarnings("ignore")
def test_a_starts_with_the_directions_of_its_inputs_and_changes_no_answer(tiny_model: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    wanted = probe_values(plain, ROWS[0])
    seen: dict[str, list[torch.Tensor]] = {"q_proj": [], "down_proj": []}
    for name, module in plain.model.layers[1].named_modules():
        if (last := name.rpartition(".")[2]) in seen:
            module.register_forward_pre_hook(lambda _, inputs, last=last: seen[last].append(inputs[0][0]))
    with torch.no_grad():
        for row in ROWS:
            plain(input_ids=torch.tensor([row]))
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = AdapterConfig(r=4, init="eva", target_modules=list(seen))
    model = Adapter.build(base, config, "CAUSAL_LM", ROWS).model
    assert probe_values(model, ROWS[0]) == wanted
    assert model.peft_config["default"].init_lora_weights is True  # a copy is not a new start
    for name, layer in model.base_model.model.model.layers[1].named_modules():
        if (last := name.rpartition(".")[2]) in seen:
            _, _, right = torch.linalg.svd(torch.cat(seen[last]).double(), full_matrices=False)
            found = layer.lora_A["default"].weight.detach()
            torch.testing.assert_close(projection(found), projection(right[:4]), rtol=0, atol=1e-5)


def test_directions_of_many_blocks_are_those_of_all_rows() -> None:
    torch.manual_seed(0)
    rows = torch.randn(1000, 80) * 0.8 ** torch.arange(80)
    directions = Directions(5)
    for part in rows.split(37):
        directions.add(part)
    _, _, right = torch.linalg.svd(rows.double(), full_matrices=False)
    torch.testing.assert_close(projection(directions.first(5)), projection(right[:5]), rtol=0, atol=1e-5)
    few = Directions(5)
    few.add(rows[:3])
    assert len(few.first(5)) == 3  # the rest of A stays as PEFT drew it

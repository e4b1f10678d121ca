"""What the headers of a model's files tell about it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tiebreak.models.headers import architecture_of


def test_the_class_and_the_parameters_of_a_folder_are_those_that_its_files_tell(tmp_path: Path) -> None:
    """Two files with 2 x 3 + 5 and 7 numbers; then weights packed into bytes, and a configuration that names no class."""
    assert architecture_of(tmp_path) == {}
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    save_file({"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(5)}, tmp_path / "model-1.safetensors")
    save_file({"b.weight": torch.zeros(7, dtype=torch.bfloat16)}, tmp_path / "model-2.safetensors")
    assert architecture_of(tmp_path) == {"class": "LlamaForCausalLM", "parameters": 18}
    save_file({"b.weight": torch.zeros(7, dtype=torch.uint8)}, tmp_path / "model-2.safetensors")
    assert architecture_of(tmp_path) == {"class": "LlamaForCausalLM"}
    (tmp_path / "config.json").write_text("[]")
    assert architecture_of(tmp_path) == {}

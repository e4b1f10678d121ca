"""A new adapter method is an entry of METHODS in one file: help, checks, stages and later stages follow from it."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support import REPOSITORY, TINY_TRAINING, run_command, succeed, write_config
from transformers import AutoModelForCausalLM

from tiebreak.models.probe import probe_values
from tiebreak.runs.run import read_manifest

PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
ENTRY = textwrap.indent(PAGE.partition("```python\n")[2].partition("```")[0], "    ")
"""the page's example: Householder reflections (Yuan et al. 2024)"""


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    """Where Python finds a Tiebreak with the entry."""
    package = tmp_path / "with_entry" / "tiebreak"
    shutil.copytree(REPOSITORY / "tiebreak", package, ignore=shutil.ignore_patterns("__pycache__"))
    file = package / "config" / "adapter.py"
    before, after = file.read_text(encoding="utf-8").split('    "norms": Method(')
    file.write_text(f'{before}{ENTRY.lstrip()}    "norms": Method({after}', encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join(map(str, (package.parent, REPOSITORY)))}


@pytest.mark.proof
def test_it_trains_and_is_continued_and_peft_reads_it(
    tmp_path: Path, tiny_model: Path, raw_data: Path, paths: dict[str, str]
) -> None:
    shown = succeed("sft", "--help", cwd=tmp_path, environment=paths).stdout
    assert "lokr|oft|boft|vera|prompt|ptuning|prefix|hra|norms" in shown.replace(" ", "").replace("\n", "")
    settings = {"training": {**TINY_TRAINING, "max_steps": 3}, "tracking": {"mode": "disabled"}}
    sft = write_config(
        tmp_path / "sft.yaml",
        output=tmp_path / "sft",
        policy=tiny_model,
        demonstrations=raw_data / "demonstrations.jsonl",
        adapter={"method": "hra", "r": 4},
        **settings,
    )
    refused = run_command("sft", "--config", sft, "--adapter.dora", "true", cwd=tmp_path, environment=paths)
    assert "dora: method hra does not read it, but lora does" in refused.stderr
    succeed("sft", "--config", sft, cwd=tmp_path, environment=paths)
    dpo = write_config(
        tmp_path / "dpo.yaml",
        output=tmp_path / "dpo",
        policy=tmp_path / "sft",
        preferences=raw_data / "preferences.jsonl",
        **settings,
    )
    succeed("dpo", "--config", dpo, cwd=tmp_path, environment=paths)
    for stage in ("sft", "dpo"):
        final = tmp_path / stage / "final"
        assert read_manifest(tmp_path / stage)["probe_difference"] <= 1e-5
        assert json.loads((final / "adapter_config.json").read_text())["peft_type"] == "HRA"
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), final)
        probe = json.loads((final / "probe.json").read_text())
        torch.testing.assert_close(probe_values(model, probe["input_ids"]), probe["values"], atol=1e-4, rtol=0)
        with model.disable_adapter():
            assert probe_values(model, probe["input_ids"]) != pytest.approx(probe["values"], abs=1e-3)

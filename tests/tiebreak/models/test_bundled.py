"""The embedded model: offline from the cache, and one clear message where there is neither cache nor index."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY

from tiebreak.errors import ModelError
from tiebreak.models import bundled
from tiebreak.models.bundled import SMOLLM2, load_bundled


def test_the_cache_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = load_bundled(SMOLLM2)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a cached model must start no process and fetch nothing")

    monkeypatch.setattr(bundled.subprocess, "run", forbidden)
    assert load_bundled(SMOLLM2) == folder
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}


def test_the_cached_model_is_smollm2_with_padding_of_its_own() -> None:
    from transformers import AutoConfig, AutoTokenizer

    folder = load_bundled(SMOLLM2)
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)  # its model card
    assert not hasattr(config, "quantization_config")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.chat_template


def test_the_cache_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIEBREAK_CACHE", str(tmp_path / "mine"))
    assert bundled.cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("TIEBREAK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert bundled.cache_folder() == tmp_path / "tiebreak"


def test_neither_cache_nor_index_is_one_message_with_the_alternatives(tmp_path: Path) -> None:
    code = (
        "from tiebreak.models.bundled import SMOLLM2, load_bundled\nfrom tiebreak.process.ending import exit_with_message\n"
        "exit_with_message(lambda: load_bundled(SMOLLM2))"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "TIEBREAK_CACHE": str(tmp_path),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
    }
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    for line in (
        SMOLLM2,
        f"neither in the cache ({tmp_path})",
        "connect once",
        "TIEBREAK_CACHE",
        "safetensors",
        "hub id",
    ):
        assert line in result.stderr
    assert not list(tmp_path.glob("*/"))  # nothing half made is left behind


def test_another_name_is_refused() -> None:
    with pytest.raises(ModelError, match="no bundled model 'bundled:gpt-5': the only one is bundled:smollm2"):
        load_bundled("bundled:gpt-5")

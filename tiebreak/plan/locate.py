"""Finds the config.json of a stage's model without loading it: neither weights nor torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiebreak.config import AdapterConfig
from tiebreak.config.adapter import method_of, to_adapter_config
from tiebreak.errors import ModelError
from tiebreak.models.bundled import PREFIX, load_bundled
from tiebreak.plan.shape import CONFIG_FILE, Shape, read_shape

SEVERAL = 8
"""longest chain of runs that continue one another's adapters"""
MODEL_FILE = "model.json"
OWN_BASE = "base"
PEFT_FILE = "adapter_config.json"
"""see tiebreak.models, which imports torch"""


@dataclass(frozen=True)
class PlannedModel:
    """A model as the files of its run describe it, or as an earlier stage of a recipe will write it."""

    shape: Shape
    adapter: AdapterConfig
    base: str = ""
    """name of its base weights; empty: not known"""
    base_sha256: str = ""
    """empty: not known"""
    language: str = ""
    """what decides a conversation's token ids: tokenizer, template, end of turn; empty: the base's own"""
    has_adapter: bool = False
    """whether it brings its adapter; otherwise that is the default of a new one"""
    below: AdapterConfig | None = None
    """LoRA that does not change, which the adapter is stacked on and saved with"""

    def has_base_of(self, other: PlannedModel) -> bool:
        """Whether both have the same base weights. Their hashes decide where both are known, otherwise their names."""
        if self.base_sha256 and other.base_sha256:
            return self.base_sha256 == other.base_sha256
        return _whole_path(self.base) == _whole_path(other.base)

    def reads_as(self, other: PlannedModel) -> bool:
        """Whether both read a conversation as the same token ids, as far as that is known."""
        return not self.language or not other.language or self.language == other.language


def _whole_path(name: str) -> str:
    return str(Path(name).resolve()) if name and Path(name).exists() else name


def locate_shape(name: str) -> Shape:
    """The shape of the model that a run folder, a path, a config.json, a hub id or `bundled:…` names.

    Raises:
        ModelError: there is none; of a hub model, only its configuration is fetched.
    """
    base = name
    for _ in range(SEVERAL):
        below = _base_of(Path(base))
        if below is None:
            break
        base = below
    return read_shape(_config_of(base, name), name)


def locate_model(name: str) -> PlannedModel:
    """A model with its base weights and its adapter: a run's as its file says, the default's for any other.

    Raises:
        ModelError: there is none; of a hub model, only its configuration is fetched.
    """
    pinned = pinned_facts(name)
    adapter = _adapter_of(Path(name), pinned)
    base, sha256 = _base_of(Path(name)) or name, pinned.get("base_sha256", "")
    if "weights_sha256" in pinned:
        base, sha256 = str(_final(name)), pinned["weights_sha256"]
    brings = bool(pinned.get("adapter")) or (Path(name) / PEFT_FILE).is_file()
    return PlannedModel(locate_shape(name), adapter, base, sha256, language_of(pinned), brings)


def language_of(pinned: Mapping[str, Any]) -> str:
    """What decides a conversation's token ids, of a model's pinned facts; empty if they do not say."""
    facts = [pinned.get(key) for key in ("tokenizer_sha256", "chat_template_sha256", "chat")]
    return json.dumps(facts, sort_keys=True) if facts[0] else ""


def pinned_facts(name: str) -> Mapping[str, Any]:
    """What a finished run's file says of its model; empty for any other model."""
    return _read(_final(name) / MODEL_FILE)


def _final(name: str) -> Path:
    path = Path(name)
    return path if (path / MODEL_FILE).is_file() else path / "final"


def _base_of(path: Path) -> str | None:
    """The base model of a run or of an adapter's folder; None if it has none."""
    for folder in (path / "final", path):
        pinned = _read(folder / MODEL_FILE)
        if "weights_sha256" in pinned:  # whole weights, with a configuration of their own
            return None if folder == path else str(folder)
        if (folder.parent / OWN_BASE / CONFIG_FILE).is_file() and pinned:
            return str(folder.parent / OWN_BASE)
        if pinned.get("base"):
            return str(pinned["base"])
    base = _read(path / PEFT_FILE).get("base_model_name_or_path")
    return str(base) if base else None


def _adapter_of(path: Path, pinned: Mapping[str, Any]) -> AdapterConfig:
    """The adapter of a run's model, or of a folder that PEFT saved; the default where there is none, or one that no stage
    trains."""
    if pinned.get("adapter"):
        return AdapterConfig.model_validate(dict(pinned["adapter"]))
    values = _read(path / PEFT_FILE)
    if method_of(values.get("peft_type")) is None:
        return AdapterConfig()
    try:
        return to_adapter_config(values, {})
    except (ValueError, KeyError):  # the stage says what is wrong with it
        return AdapterConfig()


def _read(file: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _config_of(base: str, name: str) -> Path:
    if base.startswith(PREFIX):
        return load_bundled(base)
    path = Path(base)
    if path.is_file() or (path / CONFIG_FILE).is_file():
        return path
    if path.is_dir():
        raise ModelError(f"{name} is neither a model (no {CONFIG_FILE}) nor a finished run: finish its stage first")
    if base.startswith((".", "/", "runs/")) or base.count("/") > 1 or base.endswith(".json"):
        raise ModelError(
            f"no such model: {name} does not exist; --model takes a model's folder, a hub id or a config.json"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(base, CONFIG_FILE))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"no such model: {name} is no folder, and the hub gives no {CONFIG_FILE} of it "
            f"({str(error).splitlines()[0]}); --model takes a model's folder, a hub id or a config.json"
        ) from error

"""Finds the config.json of a stage's model without loading it: neither weights nor torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiebreak.errors import ModelError
from tiebreak.models.bundled import PREFIX, load_bundled
from tiebreak.plan.shape import CONFIG_FILE, Shape, read_shape

SEVERAL = 8
"""longest chain of runs that continue one another's adapters"""


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


def _base_of(path: Path) -> str | None:
    """The base model of a run or of an adapter's folder; None if it has none."""
    for file, key in (
        (path / "final" / "model.json", "base"),
        (path / "model.json", "base"),
        (path / "adapter_config.json", "base_model_name_or_path"),
    ):
        base = _read(file).get(key)
        if base:
            return str(base)
    return None


def pinned_adapter(name: str) -> Mapping[str, Any]:
    """The configuration of a finished run's adapter, from its file; empty for any other model."""
    return dict(_read(Path(name) / "final" / "model.json").get("adapter") or {})


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
        raise ModelError(f"no such model: {name} does not exist; give --model, a model's folder, hub id or config.json")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(base, CONFIG_FILE))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"no such model: {name} is no folder, and the hub gives no {CONFIG_FILE} of it "
            f"({str(error).splitlines()[0]}); give --model, a model's folder, hub id or config.json"
        ) from error

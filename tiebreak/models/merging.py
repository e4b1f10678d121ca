"""A policy's adapter added to its base's weights, as the base of a new one (`adapter.start: merge`).

The run keeps the sum in `base/`, in float32, so that nothing is rounded away, and pins it by its hash: it is a plain
model, which transformers loads alone. Adapters that no stage can continue (with whole modules or a vocabulary that
grew, or of another method of PEFT's) are merged as well, by PEFT's own code. The sum must give the same outputs.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from tiebreak.config import AdapterConfig, LoadingConfig
from tiebreak.errors import ConfigError, HandoffError
from tiebreak.files import write_json
from tiebreak.models.adapters.adapter import merge, probe_ids
from tiebreak.models.adapters.peft_files import ADAPTER_FILE, grown_vocabulary
from tiebreak.models.find import OWN_BASE, ModelSource, base_sha256, copy_code
from tiebreak.models.load import load_base
from tiebreak.models.probe import probe_values, verify_probe, write_probe
from tiebreak.models.tokenizers import load_tokenizer
from tiebreak.terminal import is_main_process, say

ORIGIN = "merged_from.json"
"""what a merged base was made of"""
WAIT_SECONDS = 2.0


def is_merged(adapter: AdapterConfig | None) -> bool:
    """Whether a stage merges its policy's adapter before it trains."""
    return adapter is not None and adapter.start == "merge"


def start_of(found: ModelSource, adapter: AdapterConfig | None) -> ModelSource:
    """The model that a stage starts from: with `start: merge` a base model, which `write_merged` makes.

    Raises:
        ConfigError: the policy's adapter cannot be what `adapter.start` says.
    """
    start = "continue" if adapter is None else adapter.start
    if start != "continue" and found.folder is None:
        raise ConfigError(f"adapter.start: {found.name} has no adapter to {start}: leave start out")
    if start != "merge":
        return found
    if found.pinned.get("quantized"):
        raise ConfigError(
            f"adapter.start: merge: the adapter of {found.name} was trained on quantised base weights, and added to "
            "them it would be rounded; start: stack and start: continue keep it beside them"
        )
    stated = {"chat": found.pinned["chat"]} if found.pinned.get("chat") else {}
    return replace(found, folder=None, stage=None, pinned=stated)


def write_merged(found: ModelSource, run: Path) -> ModelSource:
    """The merged base of a run, made once: a resumed run finds it there.

    Raises:
        HandoffError: PEFT cannot load or merge the adapter, or the sum's outputs differ.
    """
    folder = run / OWN_BASE
    origin = {"adapter": found.id, "base_sha256": found.base_sha256}
    if is_main_process():
        if not folder.is_dir() or _origin_of(folder) != origin:
            say(f"adding the adapter of {found.name} to its base's weights, in {folder}")
            _write(found, folder, origin)
    else:
        while not (folder / ORIGIN).is_file():  # a launcher ends all processes where the main one fails
            time.sleep(WAIT_SECONDS)
    start = start_of(found, AdapterConfig(start="merge"))
    pinned = {**start.pinned, "adapter": {"method": "full"}}
    return replace(
        start, base=str(folder), base_path=folder, base_sha256=base_sha256(folder), stage="merged", pinned=pinned
    )


def _origin_of(folder: Path) -> Any:
    try:
        return json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(found: ModelSource, folder: Path, origin: dict[str, str]) -> None:
    temporary = folder.with_name(f".{folder.name}.tmp")
    for old in (temporary, folder):
        shutil.rmtree(old, ignore_errors=True)
    model = load_as_peft_does(found)
    if found.stage is not None and found.folder is not None:
        verify_probe(model, found.folder)
    ids = probe_ids(model)
    values = probe_values(model, ids)
    try:
        whole: Any = merge(model)
        if whole is None:  # of weights that head and embeddings share, an adapter may be on one alone
            apart = load_as_peft_does(found, tied=False)
            whole = merge(apart) if probe_values(apart, ids) == values else None
    except (AttributeError, NotImplementedError, ValueError, TypeError) as error:
        raise HandoffError(f"adapter.start: PEFT cannot merge the adapter of {found.name}: {error}") from error
    if whole is None:
        raise HandoffError(
            f"adapter.start: merge: with the adapter of {found.name} in its weights, {found.base} gives other outputs than "
            "beside them; start: continue keeps it beside them"
        )
    head, embeddings = whole.get_output_embeddings(), whole.get_input_embeddings()
    if head is not None and head.weight is not embeddings.weight:
        _state_untied(whole)
    try:
        whole.config.use_cache = True
        whole.save_pretrained(temporary)
        load_tokenizer(found).save_pretrained(temporary)
        copy_code(found.base_path, temporary)
        write_probe(temporary, ids, values, whole)
        write_json(temporary / ORIGIN, origin)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _state_untied(model: Any) -> None:
    """Let a model be saved, and loaded again, with a head of its own."""
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def load_as_peft_does(found: ModelSource, *, tied: bool = True) -> nn.Module:
    """A policy with its adapter, by PEFT's own code, in float32; all of the adapter's weights are found and used.

    Args:
        tied: leave head and embeddings that share their weights so; otherwise the head gets a copy.

    Raises:
        HandoffError: it does not fit its base.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    folder = found.folder
    assert folder is not None
    base = load_base(found, LoadingConfig(precision="float32", trust_remote_code=found.trust_remote_code))
    if grown := grown_vocabulary(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base.resize_token_embeddings(grown, mean_resizing=False)
    if not tied:
        head: Any = base.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        _state_untied(base)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # they are looked for below
            model = PeftModel.from_pretrained(base, str(folder))
    except (RuntimeError, ValueError, KeyError) as error:
        first = " ".join(str(error).split())[:300]
        raise HandoffError(
            f"{found.name} does not fit {type(base).__name__}, its base: {first}; name the base it was made on"
        ) from None
    with safe_open(folder / ADAPTER_FILE, framework="pt") as tensors:
        saved = set(tensors.keys())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        needed = set(get_peft_model_state_dict(model, save_embedding_layers=False))
        used = needed | set(get_peft_model_state_dict(model, save_embedding_layers=True))
    if lost := sorted(saved - used) or sorted(needed - saved):
        what = "weights that have no place" if saved - used else "no weights"
        raise HandoffError(f"{found.name} has {what} in {type(base).__name__} for {lost[0]} (and {len(lost) - 1} more)")
    return model.eval()

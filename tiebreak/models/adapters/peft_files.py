"""Adapters on disk in PEFT's format, from any source: which can be continued exactly, and which are refused.

A stage continues an adapter by its `adapter_config.json` as it is: rank, scaling (rsLoRA), decomposition (DoRA), patterns.
What PEFT can save and the stages cannot train or copy exactly is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiebreak.config.adapter import METHODS, method_of
from tiebreak.errors import HandoffError

if TYPE_CHECKING:
    from peft import LoraConfig

PEFT_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
MERGE = (
    "train with adapter.start: merge, or merge it into its base with PEFT (merge_and_unload, save_pretrained), and give "
    "that folder as the policy instead"
)
UNMERGEABLE = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT")
"""PEFT's methods that add no weights to the base's"""
_OF_NO_CONSEQUENCE = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
}
_BASE_CHANGED = ("pissa", "corda", "loftq", "olora", "lora_ga", "eva")
"""initialisations that may change the base weights, so that the base's own are no longer those that the adapter is on"""


def is_adapter(folder: Path) -> bool:
    """Whether a folder contains an adapter in PEFT's format."""
    return (folder / PEFT_FILE).is_file()


def read_peft_values(folder: Path) -> dict[str, Any]:
    """An adapter's configuration as it was saved.

    Raises:
        HandoffError: it cannot be read.
    """
    try:
        values = json.loads((folder / PEFT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HandoffError(f"{folder / PEFT_FILE} cannot be read: {error}") from error
    return dict(values)


def read_peft_config(folder: Path, task: str) -> LoraConfig:
    """PEFT's configuration of a saved adapter, for a model of another task too; it trains."""
    from peft import LoraConfig

    from tiebreak.models.adapters.virtual_tokens import as_embeddings

    config: LoraConfig = as_embeddings(LoraConfig.from_pretrained(str(folder)))
    config.task_type, config.inference_mode, config.modules_to_save = task, False, None
    if hasattr(config, "prompt_tuning_init"):
        config.prompt_tuning_init = "RANDOM"  # replaced by its weights; a text would need its tokenizer
    return config


def require_mergeable(folder: Path, name: str) -> dict[str, Any]:
    """An adapter's configuration, if PEFT can add it to its base's weights.

    Raises:
        HandoffError: it cannot, or it is for another task.
    """
    values = read_peft_values(folder)
    if values.get("peft_type") in UNMERGEABLE:
        raise HandoffError(
            f"{name} is a {values['peft_type']} adapter, whose tokens no weights hold: it cannot be merged; start from "
            "its base"
        )
    _require_policy(folder, name, values)
    return values


def _require_policy(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    if values.get("task_type") not in (None, "CAUSAL_LM"):
        raise HandoffError(
            f"{name} is an adapter for {values['task_type']}, and a policy's is for CAUSAL_LM: name another one"
        )
    if not (folder / ADAPTER_FILE).is_file():
        raise HandoffError(
            f"{name} has no {ADAPTER_FILE}: pickled weights are not loaded; save it again as safetensors"
        )


def require_known(folder: Path, name: str) -> dict[str, Any]:
    """An adapter's configuration, if stages can compute with it.

    Raises:
        HandoffError: it is of a method that no stage trains, or has what no stage keeps.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    values = read_peft_values(folder)
    method = method_of(values.get("peft_type"))
    if method is None:
        able = ", ".join(each.peft_type for each in METHODS.values() if each.peft_type)
        raise HandoffError(
            f"{name} is a {values.get('peft_type')} adapter, and those continued here are {able}: {MERGE}"
        )
    _require_policy(folder, name, values)
    default = PEFT_TYPE_TO_CONFIG_MAPPING[values["peft_type"]]().to_dict()
    unknown = {
        key: value
        for key, value in values.items()
        if key not in method.continued | _OF_NO_CONSEQUENCE and value and value != default.get(key)
    }
    if str(values.get("init_lora_weights")).startswith(_BASE_CHANGED):
        unknown["init_lora_weights"] = values["init_lora_weights"]
    if unknown:
        listed = ", ".join(f"{key}: {value}" for key, value in sorted(unknown.items()))
        raise HandoffError(f"{name} has {listed}, which cannot be continued exactly here: {MERGE}")
    return values


HEADS = ("lm_head", "embed_out", "output_layer", "embed_tokens", "wte", "embed_in", "word_embeddings")
"""names of heads, and of embeddings that are often tied to them"""


def require_trainable(folder: Path, name: str, *, below_score: bool = False) -> None:
    """Refuse to train an adapter with whole modules beside it: stages keep no copy of those for the reference.

    Args:
        below_score: as the start of a reward model, whose score head PEFT holds in the same way.

    Raises:
        HandoffError: names them.
    """
    whole = read_peft_values(folder).get("modules_to_save") or []
    if fault := fault_of_whole(whole, below_score=below_score):
        raise HandoffError(f"{name} has modules_to_save: {whole}, {fault}: {MERGE}")


def fault_of_whole(names: Iterable[str], *, below_score: bool) -> str:
    """Why modules of these names cannot train whole beside an adapter; empty if they can."""
    if below_score and list(names):
        return "which a reward model cannot take over"
    if any(head.endswith(name.rpartition(".")[2]) for name in names for head in HEADS):
        return "of which a reference cannot keep a copy"
    return ""


def grown_vocabulary(folder: Path) -> int | None:
    """The number of tokens of the embeddings that an adapter brings; None where it brings none."""
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_FILE, framework="pt") as tensors:
        sizes = [
            tensors.get_slice(key).get_shape()[0]
            for key in tensors.keys()  # noqa: SIM118
            if key.endswith(".weight") and any(part in HEADS for part in key.split(".")) and ".lora_" not in key
        ]
    return max(sizes, default=None)

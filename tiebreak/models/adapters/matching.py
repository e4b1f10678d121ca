"""Whether an adapter from disk is the one that a stage asks for, and on the base that it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tiebreak.config.adapter import ALL_LINEAR, READ_BY, AdapterConfig, method_of
from tiebreak.errors import ConfigError, HandoffError
from tiebreak.models.adapters.peft_files import ADAPTER_FILE, MERGE, read_peft_values
from tiebreak.models.adapters.targets import output_head
from tiebreak.packed.sharding import gathered

if TYPE_CHECKING:
    from peft import PeftModel

_BEYOND_OURS = ("layers_to_transform",)
"""settings of PEFT for which a stage's `adapter:` has no key"""
_NOT_COMPARED = ("target_modules", "init")
"""keys of `adapter` that two configurations of one adapter may word differently"""


def require_same_adapter(
    model: PeftModel, name: str, folder: Path, saved: AdapterConfig, asked: AdapterConfig | None
) -> None:
    """A policy's own adapter is continued, so a configuration may not ask for another one.

    Args:
        model: with the adapter on it.
        saved: the adapter in the keys of a stage's configuration.

    Raises:
        ConfigError: names what differs.
    """
    if asked is None:
        return
    values = read_peft_values(folder)
    read = [key for key, methods in READ_BY.items() if saved.method in methods and key not in _NOT_COMPARED]
    differing = [
        f"adapter.{key}: {getattr(asked, key)!r} (it has {getattr(saved, key)!r})"
        for key in ("method", *read)
        if getattr(asked, key) != getattr(saved, key)
    ]
    if saved.method in READ_BY["target_modules"] and not _same_targets(
        model, asked.target_modules, saved.target_modules
    ):
        differing.append(f"adapter.target_modules: {asked.target_modules!r} (it has {saved.target_modules!r})")
    beyond = [f"{key}: {values[key]!r}" for key in _BEYOND_OURS if values.get(key)]
    if differing or beyond:
        listed = ", ".join([*differing, *(f"{one} (no key of `adapter` says so)" for one in beyond)])
        raise ConfigError(
            f"{name} has an adapter of its own, which this stage continues, and the configuration asks for another: "
            f"{listed}. Set `adapter: null`{'' if beyond else ', or the same values'}"
        )


def _same_targets(model: PeftModel, asked: str | list[str], saved: str | list[str]) -> bool:
    if asked == saved or (isinstance(asked, list) and isinstance(saved, list) and set(asked) == set(saved)):
        return True
    return asked == ALL_LINEAR and _adapts_all_linear(model.get_base_model())


def _adapts_all_linear(model: nn.Module) -> bool:
    """Whether an adapter is on every linear layer but the head, which is what `all-linear` means."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    head = output_head(model)
    tuned = {id(module.get_base_layer()) for module in model.modules() if isinstance(module, BaseTunerLayer)}
    own = {id(m) for key, m in model.named_modules() if any(part.startswith("lora_") for part in key.split("."))}
    linear = {id(m) for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    return linear - own <= tuned


def foreign_weights(base: nn.Module, folder: Path, name: str) -> set[str]:
    """Whole weights that PEFT saves beside an adapter on embeddings: they must be the base's own.

    Raises:
        HandoffError: they are not, as of a vocabulary that grew.
    """
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
    from safetensors import safe_open

    values = read_peft_values(folder)
    whole_modules = values.get("modules_to_save") or []
    own = dict(base.named_parameters(remove_duplicate=False))
    prefixes = [PEFT_TYPE_TO_PREFIX_MAPPING[values["peft_type"]]]
    if (method := method_of(values["peft_type"])) is not None and method.shared:
        prefixes.append(method.shared)
    beside = set()
    with safe_open(folder / ADAPTER_FILE, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118
            place = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
            if any(f".{prefix}" in key for prefix in prefixes) or any(
                part.endswith(tuple(whole_modules))
                for part in place.split(".")  # PEFT's rule
            ):
                continue
            weight, value = own.get(place), tensors.get_tensor(key)
            if weight is None or not _is_same(weight, value):
                raise HandoffError(
                    f"{name} brings weights for {place} that are not its base's, as of a vocabulary that grew: {MERGE}"
                )
            beside.add(key)
    return beside


def _is_same(weight: nn.Parameter, value: Tensor) -> bool:
    with gathered([weight]):
        same: bool = weight.shape == value.shape and torch.equal(weight.detach().cpu(), value.to(weight.dtype))
        return same

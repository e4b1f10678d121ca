"""PEFT's methods that a stage can train: an entry each. What quantises the base weights is apart (`adapter.quantize`).

To add one: its key in `AdapterConfig.method`, and an entry of `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from tiebreak.config import AdapterConfig
from tiebreak.models.adapters.targets import left_out

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass(frozen=True)
class Method:
    """How PEFT makes such an adapter, and what may be done with it."""

    peft_type: str
    """as PEFT writes it into adapter_config.json"""
    configure: Callable[[AdapterConfig, str, nn.Module], PeftConfig]
    """PEFT's configuration of ours, for a task and a base model"""
    continued: frozenset[str]
    """keys of PEFT's configuration that decide what it computes, and that every stage keeps"""
    adds: Callable[[Any, str], bool]
    """whether, on one of PEFT's layers, the adapter of this name does no more than add a matrix to the weight"""


def lora_config(adapter: AdapterConfig, task: str, base: nn.Module) -> Any:
    """PEFT's configuration of a LoRA adapter."""
    from peft import LoraConfig

    return LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        exclude_modules=left_out(base, adapter),
        task_type=task,
    )


def _lora_adds(layer: Any, name: str) -> bool:
    """Not a variant, such as DoRA, which scales the sum as well; not one with a bias of its own."""
    from peft.tuners.lora import Linear

    return isinstance(layer, Linear) and name not in layer.lora_variant and not layer.lora_bias.get(name)


METHODS: Mapping[str, Method] = {
    "lora": Method(
        "LORA",
        lora_config,
        frozenset(
            {
                "alpha_pattern",
                "exclude_modules",
                "fan_in_fan_out",
                "init_lora_weights",
                "layers_pattern",
                "layers_to_transform",
                "lora_alpha",
                "lora_dropout",
                "modules_to_save",
                "r",
                "rank_pattern",
                "target_modules",
                "use_dora",
                "use_rslora",
            }
        ),
        _lora_adds,
    )
}
"""by `adapter.method`"""


def method_of(peft_type: object) -> Method | None:
    """The method that PEFT calls so; None where no stage trains it."""
    return next((method for method in METHODS.values() if method.peft_type == peft_type), None)

"""PEFT's methods that a stage can train: an entry each. What quantises the base weights is apart (`adapter.quantize`).

To add one: its key in `AdapterConfig.method`, the keys that it reads in `READ_BY`, and an entry of `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from tiebreak.config import AdapterConfig
from tiebreak.models.adapters.targets import ALL_LINEAR, inner_targets, left_out, linear_names, norm_names

if TYPE_CHECKING:
    from peft import PeftConfig

OFT_BLOCK, BOFT_BLOCK = 32, 4
"""PEFT's sizes of rotated blocks"""


@dataclass(frozen=True)
class Method:
    """How PEFT makes such an adapter, and what may be done with it."""

    peft_type: str
    """as PEFT writes it into adapter_config.json"""
    configure: Callable[[AdapterConfig, str, nn.Module], PeftConfig]
    """PEFT's configuration of ours, for a task and a base model"""
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    """keys of ours, of PEFT's configuration"""
    continued: frozenset[str]
    """keys of PEFT's configuration that decide what it computes, and that every stage keeps"""
    adds: Callable[[Any, str], bool]
    """whether, on one of PEFT's layers, the adapter of this name does no more than add a matrix to the weight"""


# --- LoRA


def lora_config(adapter: AdapterConfig, task: str, base: nn.Module) -> Any:
    """PEFT's configuration of a LoRA adapter; with twice the rank where half of it holds the start."""
    from peft import LoraConfig

    start: Any = adapter.init if adapter.init in ("gaussian", "orthogonal") else True
    adapter = as_saved(adapter)
    return LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        exclude_modules=left_out(base, adapter),
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        init_lora_weights=start,
        rank_pattern=dict(adapter.rank_pattern),
        alpha_pattern=dict(adapter.alpha_pattern),
        modules_to_save=list(adapter.modules_to_save) or None,
        task_type=task,
    )


def as_saved(adapter: AdapterConfig) -> AdapterConfig:
    """The adapter that is on disk: of twice the rank, and the same scale, where the start is a part of it."""
    if adapter.init not in ("pissa", "olora"):
        return adapter
    doubled = {
        "r": 2 * adapter.r,
        "alpha": 2 * adapter.alpha,
        "rank_pattern": {name: 2 * rank for name, rank in adapter.rank_pattern.items()},
        "alpha_pattern": {name: 2 * alpha for name, alpha in adapter.alpha_pattern.items()},
    }
    return adapter.model_copy(update={**doubled, "init": "default"})


def _read_lora(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "r": values["r"],
        "alpha": values["lora_alpha"],
        "dropout": values.get("lora_dropout") or 0.0,
        "rslora": bool(values.get("use_rslora")),
        "dora": bool(values.get("use_dora")),
        "modules_to_save": sorted(values.get("modules_to_save") or ()),
        **_read_patterns(values),
    }


def _lora_adds(layer: Any, name: str) -> bool:
    """Not a variant, such as DoRA, which scales the sum as well; not one with a bias of its own."""
    from peft.tuners.lora import Linear

    return isinstance(layer, Linear) and name not in layer.lora_variant and not layer.lora_bias.get(name)


# --- products of small matrices


def _loha_config(adapter: AdapterConfig, task: str, base: nn.Module) -> Any:
    from peft import LoHaConfig

    return LoHaConfig(**_product(adapter, task, base))


def _lokr_config(adapter: AdapterConfig, task: str, base: nn.Module) -> Any:
    from peft import LoKrConfig

    return LoKrConfig(**_product(adapter, task, base))


def _product(adapter: AdapterConfig, task: str, base: nn.Module) -> dict[str, Any]:
    return {
        "r": adapter.r,
        "alpha": adapter.alpha,
        "rank_pattern": dict(adapter.rank_pattern),
        "alpha_pattern": dict(adapter.alpha_pattern),
        **_on_layers(adapter, task, base),
    }


def _read_product(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"r": values["r"], "alpha": values["alpha"], **_read_patterns(values)}


def _vera_config(adapter: AdapterConfig, task: str, base: nn.Module) -> Any:
    from peft import VeraConfig

    excluded = left_out(base, adapter)  # which its configuration cannot name
    targets = linear_names(base, excluded) if excluded else adapter.target_modules
    return VeraConfig(r=adapter.shared_rank, vera_dropout=adapter.dropout, target_modules=targets, task_type=task)


def _read_vera(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"shared_rank": values["r"], "dropout": values.get("vera_dropout") or 0.0}


def _adds_delta(layer: Any, _: str) -> bool:
    """Of layers that are one matrix."""
    return isinstance(layer.get_base_layer(), nn.Linear) and hasattr(layer, "get_delta_weight")


# --- rotations and scales


def _oft_config(adapter: AdapterConfig, task: str, base: nn.Module) -> Any:
    from peft import OFTConfig

    return OFTConfig(oft_block_size=adapter.block_size or OFT_BLOCK, **_on_layers(adapter, task, base))


def _boft_config(adapter: AdapterConfig, task: str, base: nn.Module) -> Any:
    from peft import BOFTConfig

    return BOFTConfig(boft_block_size=adapter.block_size or BOFT_BLOCK, **_on_layers(adapter, task, base))


def _ia3_config(adapter: AdapterConfig, task: str, base: nn.Module) -> Any:
    """The layers after an MLP's activation are scaled at their input, as in the paper, all others at their output."""
    from peft import IA3Config

    shared = _on_layers(adapter, task, base)
    targets = adapter.target_modules
    if targets == ALL_LINEAR:
        targets = sorted({name.rpartition(".")[2] for name in linear_names(base, [])})
    return IA3Config(**shared | {"target_modules": targets}, feedforward_modules=inner_targets(base, targets))


def _norms_config(_: AdapterConfig, task: str, base: nn.Module) -> Any:
    from peft import LNTuningConfig

    return LNTuningConfig(target_modules=norm_names(base), task_type=task)


def _on_layers(adapter: AdapterConfig, task: str, base: nn.Module) -> dict[str, Any]:
    return {
        "target_modules": adapter.target_modules,
        "exclude_modules": left_out(base, adapter),
        "task_type": task,
    }


def _read_patterns(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}


def _never(*_: Any) -> bool:
    """It multiplies."""
    return False


_PLACED = frozenset({"exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform", "target_modules"})
"""what says which layers an adapter is on"""
_PATTERNS = frozenset({"alpha_pattern", "rank_pattern"})
_PRODUCT = _PLACED | _PATTERNS | {"alpha", "init_weights", "module_dropout", "r", "rank_dropout"}

METHODS: Mapping[str, Method] = {
    "lora": Method(
        "LORA",
        lora_config,
        _read_lora,
        _PLACED
        | _PATTERNS
        | {"init_lora_weights", "lora_alpha", "lora_dropout", "modules_to_save", "r", "use_dora", "use_rslora"},
        _lora_adds,
    ),
    "loha": Method("LOHA", _loha_config, _read_product, _PRODUCT, _adds_delta),
    "lokr": Method(
        "LOKR",
        _lokr_config,
        _read_product,
        _PRODUCT | {"decompose_both", "decompose_factor", "rank_dropout_scale"},
        _adds_delta,
    ),
    "vera": Method(
        "VERA",
        _vera_config,
        _read_vera,
        _PLACED | {"d_initial", "init_weights", "projection_prng_key", "r", "save_projection", "vera_dropout"},
        _adds_delta,
    ),
    "oft": Method(
        "OFT",
        _oft_config,
        lambda values: {"block_size": values.get("oft_block_size") or None},
        _PLACED
        | {
            "block_share",
            "coft",
            "eps",
            "init_weights",
            "num_cayley_neumann_terms",
            "oft_block_size",
            "r",
            "use_cayley_neumann",
        },
        _never,
    ),
    "boft": Method(
        "BOFT",
        _boft_config,
        lambda values: {"block_size": values.get("boft_block_size") or None},
        _PLACED | {"boft_block_num", "boft_block_size", "boft_n_butterfly_factor", "init_weights"},
        _never,
    ),
    "ia3": Method("IA3", _ia3_config, lambda values: {}, _PLACED | {"feedforward_modules", "init_ia3_weights"}, _never),
    "norms": Method("LN_TUNING", _norms_config, lambda values: {}, _PLACED, _never),
}
"""by `adapter.method`"""


def method_of(peft_type: object) -> Method | None:
    """The method that PEFT calls so; None where no stage trains it."""
    return next((method for method in METHODS.values() if method.peft_type == peft_type), None)


def name_of(method: Method) -> str:
    """What `adapter.method` calls it."""
    return next(name for name, each in METHODS.items() if each is method)


def targets_of(values: Mapping[str, Any]) -> str | list[str]:
    """The modules of PEFT's configuration that an adapter is on."""
    targets = values.get("target_modules") or ALL_LINEAR
    return targets if isinstance(targets, str) else sorted(targets)

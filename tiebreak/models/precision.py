"""Number formats of weights: the dtype for this machine, and fewer bits by bitsandbytes."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tiebreak.config import LoadingConfig
from tiebreak.errors import MachineError


def resolve_precision(training: LoadingConfig) -> torch.dtype:
    """The dtype for training on this machine.

    Raises:
        MachineError: a setting that needs a GPU, on a machine without one.
    """
    has_gpu = torch.cuda.is_available()
    if not has_gpu and training.precision == "float16":
        raise MachineError(
            "training.precision: float16 needs a GPU, and this machine has none: use auto, float32 or bfloat16"
        )
    if not has_gpu and training.attention == "flash_attention_2":
        raise MachineError(
            "training.attention: flash_attention_2 needs a GPU, and this machine has none: use auto, sdpa or eager"
        )
    if training.precision == "auto":
        return torch.bfloat16 if has_gpu and torch.cuda.is_bf16_supported() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[training.precision]


@dataclass(frozen=True)
class WeightFormat:
    """A number format of frozen base weights, by bitsandbytes."""

    name: str
    """nf4, fp4 or int8"""
    double: bool = True
    """whether the scales of 4 bits are held in 8 bits"""


def quantization(weights: WeightFormat, dtype: torch.dtype) -> Any:
    """transformers' configuration of a format; products are computed in `dtype`.

    Raises:
        MachineError: bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    require_bitsandbytes(f"base weights in {weights.name}")
    heads = ["lm_head", "score"]
    if weights.name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=heads)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=weights.name,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=weights.double,
        llm_int8_skip_modules=heads,
    )


def format_held(model: nn.Module) -> WeightFormat | None:
    """The format of a loaded model's base weights."""
    if getattr(model, "is_loaded_in_8bit", False):
        return WeightFormat("int8")
    if not getattr(model, "is_loaded_in_4bit", False):
        return None
    held: Any = model.config.quantization_config
    return WeightFormat(held.bnb_4bit_quant_type, held.bnb_4bit_use_double_quant)


def require_bitsandbytes(what: str) -> None:
    """Refuse what bitsandbytes computes where it is not installed; Tiebreak brings it on Linux alone.

    Args:
        what: what needs it, for the message.

    Raises:
        MachineError: it is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MachineError(f"{what}: this needs bitsandbytes, which is not installed: pip install bitsandbytes")


# --- modules that train whole in a model of 16 bits

HALF = (torch.bfloat16, torch.float16)


def hold_in_float32(module: nn.Module, outputs: torch.dtype | None = None) -> None:
    """Hold a module's weights in float32: beside 1, bfloat16 steps by 0.004, so an optimizer's steps would be lost.

    Args:
        outputs: the format of what it returns; None: float32.
    """
    module.float()
    if type(module) in (nn.Linear, nn.LayerNorm):  # which need inputs of their weights' format
        module.register_forward_pre_hook(_read_in_weights_format)
    if outputs is not None:
        module.register_forward_hook(partial(_return_in, outputs))


def _read_in_weights_format(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """DeepSpeed may have changed the weights' format since."""
    weight: Any = module.weight
    return (inputs[0].to(weight.dtype),)


def _return_in(dtype: torch.dtype, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.to(dtype)

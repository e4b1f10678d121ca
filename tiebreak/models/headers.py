"""What safetensors files hold, read from their headers: names, formats and sizes, without weights and without torch.

require_floating(Path("models/llama"), "models/llama")     # refuses weights that are integers
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from tiebreak.errors import HandoffError, ModelError

FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
LONGEST = 100_000_000
"""bytes of a header, as safetensors itself allows"""


@dataclass(frozen=True)
class Stored:
    """A tensor of a file."""

    format: str
    """as safetensors names it: F32, BF16, I8, F8_E4M3, …"""
    shape: tuple[int, ...]


def tensors_of(file: Path) -> dict[str, Stored]:
    """The tensors of a file by name; none of a broken one, which loading reports."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length)) if length <= LONGEST else {}
        return {
            name: Stored(str(one["dtype"]), tuple(one["shape"]))
            for name, one in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def tensors_in(folder: Path) -> dict[str, Stored]:
    """The tensors of a model's folder by name."""
    return {name: one for file in sorted(folder.glob("*.safetensors")) for name, one in tensors_of(file).items()}


def architecture_of(folder: Path) -> dict[str, str | int]:
    """A model's class, as its config.json names it, and the number of its parameters; each only if its files tell.

    Weights that two layers share count once. Packed weights, as in 4 bits, are not counted: there, a stored number is no
    parameter.
    """
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        named = []
    stored = tensors_in(folder).values()
    plain = all(one.format in FLOATING for one in stored)
    parameters = sum(math.prod(one.shape) for one in stored) if plain else 0
    return {**({"class": str(named[0])} if named else {}), **({"parameters": parameters} if parameters else {})}


def require_floating(folder: Path, name: str) -> None:
    """Refuse weights in integers or 8-bit floats where the configuration names no quantisation: transformers would read the
    stored numbers as they are, without their scales.

    Args:
        name: the model's, for the message.

    Raises:
        ModelError: names one.
    """
    for key, one in tensors_in(folder).items():
        if key.endswith(".weight") and one.format not in FLOATING:
            raise ModelError(
                f"{name}: {key} is stored as {one.format}, and config.json has no quantization_config that says what its "
                "numbers mean: give the model in 16 or 32 bits"
            )


def require_fitting(adapter: Path, base: Path, base_name: str) -> None:
    """Refuse LoRA made on a base of other sizes, before either is loaded.

    Args:
        adapter: the adapter's file.
        base: the folder of the base.

    Raises:
        HandoffError: names a layer, and both sizes.
    """
    weights = {name: one for name, one in tensors_in(base).items() if one.format in FLOATING and len(one.shape) == 2}
    for key, one in tensors_of(adapter).items():
        place, side = _layer_of(key)
        there = weights.get(f"{place}.weight")
        size = {"lora_A": one.shape[-1:], "lora_B": one.shape[:1]}.get(side, ())
        if there and size and size[0] not in there.shape:
            raise HandoffError(
                f"{adapter.parent} is an adapter on another base than {base_name}: its {side} of {place} has the size "
                f"{_times(one.shape)}, and the weight there {_times(there.shape)}: set base_model_name_or_path in its "
                "adapter_config.json to the base it was made on"
            )


def _layer_of(key: str) -> tuple[str, str]:
    """The name in the base of the layer that a tensor of PEFT's belongs to, and which of its matrices it is.

    >>> _layer_of("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight")
    ('model.layers.0.mlp.up_proj', 'lora_A')
    """
    layer, _, side = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
    return layer, side


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))

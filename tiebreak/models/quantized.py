"""Refuses models whose weights another program has quantised, by their config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiebreak.errors import ModelError

_DEQUANTISED_BY = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config"}


def is_quantised(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says that its weights are quantised."""
    return bool(_held(config))


def _held(config: Mapping[str, Any]) -> Mapping[str, Any]:
    held: Mapping[str, Any] = (
        config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config") or {}
    )
    return held


def require_plain_weights(config: Mapping[str, Any], name: str) -> None:
    """Refuse weights that another program has quantised, but for bitsandbytes, whose layers take adapters.

    Args:
        config: the content of the model's config.json.

    Raises:
        ModelError: names the format.
    """
    held = _held(config)
    method = str(held.get("quant_method") or "bitsandbytes")
    if method == "bitsandbytes":
        return
    by = _DEQUANTISED_BY.get(method)
    written = (
        f"; transformers writes it: AutoModelForCausalLM.from_pretrained(…, quantization_config={by}(dequantize=True))"
        ".save_pretrained(FOLDER), with the tokenizer's files beside it"
        if by
        else ""
    )
    raise ModelError(
        f"{name} holds weights quantised with {method} (quantization_config in its config.json), which no stage "
        f"loads: give the model in 16 or 32 bits{written}. adapter.quantize: nf4 or int8 quantises it while loading"
    )

"""Parts of a model, by their place in transformers' and PEFT's classes."""

from __future__ import annotations

from torch import nn


def whole_model(model: nn.Module) -> nn.Module:
    """The model without its PEFT wrapper, with its adapters."""
    base: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base


def layers_of(model: nn.Module) -> nn.Module:
    """The model without its head: the module that computes its last hidden states."""
    base: nn.Module = model.base_model
    return getattr(model, "model", base) if base is model else base

"""Prompt tuning (Lester et al. 2021): trained embeddings before every sequence, inside the model's own layers.

PEFT prepends them where its wrapper is called, so that outputs are longer than their labels, and nothing that calls the
base model, as sampling and log-probabilities do here, would see them. `attach` moves them below: the layers prepend them
and return the hidden states of the real tokens alone. Every caller then computes with them, and all shapes stay what
they are. Packed rows and caches of keys and values have no place for them: those paths refuse, and the plain one is used.
On disk the adapter is PEFT's.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiebreak.packed.lm_head import layers_of
from tiebreak.upstream import replace_forward

PROMPT = "PROMPT_TUNING"
"""PEFT's name"""
EMBEDDINGS = "prompt_embeddings"
"""PEFT's name of the saved tensor, of shape (virtual tokens, hidden)"""


def is_virtual(model: Any) -> bool:
    """Whether a model is PEFT's, and computes with virtual tokens."""
    config = getattr(model, "peft_config", None) or {}
    return any(getattr(one.peft_type, "value", None) == PROMPT for one in config.values())


def attach(model: Any) -> Any:
    """The model of PEFT's, its virtual tokens below its layers where it has some."""
    if not is_virtual(model):
        return model
    base = model.get_base_model()
    layers = layers_of(base)
    replace_forward(model, lambda *args, **kwargs: base(*args, **kwargs))
    replace_forward(layers, partial(_after_virtual_tokens, model, layers))
    return model


def _after_virtual_tokens(model: Any, layers: Any, input_ids: Any = None, **options: Any) -> Any:
    """The layers' output for the real tokens.

    Raises:
        NotImplementedError: for packed rows, or with a cache.
    """
    cache = options.get("past_key_values")
    if "packed_row" in options or options.get("use_cache") or cache is not None:
        raise NotImplementedError("virtual tokens come before every sequence")
    embeddings = options.pop("inputs_embeds", None)
    if embeddings is None:
        embeddings = layers.get_input_embeddings()(input_ids)
    name = model.active_adapter
    virtual = model.prompt_encoder[name](model.prompt_tokens[name].to(embeddings.device)).to(embeddings.dtype)
    count, rows = len(virtual), len(embeddings)
    mask: Tensor | None = options.pop("attention_mask", None)
    if mask is not None:
        options["attention_mask"] = torch.cat([mask.new_ones(rows, count), mask], dim=1)
    positions: Tensor | None = options.pop("position_ids", None)
    if positions is not None:
        first = torch.arange(count, device=positions.device).expand(len(positions), -1)
        options["position_ids"] = torch.cat([first, positions + count], dim=1)
    embeddings = torch.cat([virtual.expand(rows, -1, -1), embeddings], dim=1)
    made = type(layers).forward(layers, inputs_embeds=embeddings, **options)
    made.last_hidden_state = made.last_hidden_state[:, count:]
    return made


def load_virtual_tokens(model: Any, folder: Path) -> None:
    """Those that a checkpoint holds, of the policy and below it of others: PEFT loads none that train."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    for name in model.peft_config:
        file = (folder if name == "default" else folder / name) / "adapter_model.safetensors"
        if file.is_file():
            set_peft_model_state_dict(model, load_file(file), adapter_name=name)

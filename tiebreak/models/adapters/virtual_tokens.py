"""Virtual tokens before every sequence, inside the model's own layers, in three forms.

- Prompt tuning (Lester et al. 2021): embeddings that train.
- P-tuning (Liu et al. 2021): an encoder that computes such embeddings. They are saved as prompt tuning's, since PEFT
  saves no encoder: a later stage trains the embeddings. Checkpoints hold the encoder too.
- Prefix tuning (Li and Liang 2021): keys and values before every layer's. They start as those of random tokens, as
  section 7.4 recommends: a new prefix is as if these tokens stood before the text.

PEFT adds them where its wrapper is called, so that outputs are longer than their labels, and nothing that calls the base
model, as sampling and log-probabilities do here, would see them. `attach` moves them below: the layers add them and
return the hidden states of the real tokens alone. Every caller then computes with them, and all shapes stay what they
are. Packed rows and caches of keys and values have no place for them: those paths refuse, and the plain one is used.
On disk the adapter is PEFT's.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiebreak.config.adapter import METHODS
from tiebreak.errors import ConfigError, HandoffError
from tiebreak.packed.parts import layers_of
from tiebreak.upstream import replace_forward

VIRTUAL = tuple(method.peft_type for method in METHODS.values() if method.virtual)
"""PEFT's names"""
PREFIX, ENCODED = METHODS["prefix"].peft_type, METHODS["ptuning"].peft_type
ENCODER_FILE = "prompt_encoder.safetensors"
"""in a checkpoint: the weights of all encoders of P-tuning"""
EMBEDDINGS = "prompt_embeddings"
"""PEFT's name of the saved tensor, of shape (virtual tokens, hidden), or of all keys and values"""


def is_virtual(model: Any) -> bool:
    """Whether a model is PEFT's, and computes with virtual tokens."""
    return any(kind in VIRTUAL for kind in _kinds(model))


def _kinds(model: Any) -> list[str | None]:
    """PEFT's names of a model's adapters."""
    return [getattr(one.peft_type, "value", None) for one in (getattr(model, "peft_config", None) or {}).values()]


def attach(model: Any) -> Any:
    """The PEFT model, with its virtual tokens, if any, moved below its layers."""
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
    mask: Tensor | None = options.pop("attention_mask", None)
    positions: Tensor | None = options.pop("position_ids", None)
    config = model.peft_config[model.active_adapter]
    count: int = config.num_virtual_tokens
    if mask is not None:
        options["attention_mask"] = torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
    if config.peft_type.value == PREFIX:
        embeddings = options.pop("inputs_embeds", None)
        rows = len(input_ids if embeddings is None else embeddings)
        if positions is not None:
            options["position_ids"] = positions + count
        options["past_key_values"] = model.get_prompt(rows)
        return type(layers).forward(layers, input_ids=input_ids, inputs_embeds=embeddings, **options)
    embeddings = options.pop("inputs_embeds", None)
    if embeddings is None:
        embeddings = layers.get_input_embeddings()(input_ids)
    name = model.active_adapter
    virtual = model.prompt_encoder[name](model.prompt_tokens[name].to(embeddings.device)).to(embeddings.dtype)
    if positions is not None:
        first = torch.arange(count, device=positions.device).expand(len(positions), -1)
        options["position_ids"] = torch.cat([first, positions + count], dim=1)
    embeddings = torch.cat([virtual.expand(len(embeddings), -1, -1), embeddings], dim=1)
    made = type(layers).forward(layers, inputs_embeds=embeddings, **options)
    made.last_hidden_state = made.last_hidden_state[:, count:]
    return made


@torch.no_grad()
def start_prefix(model: Any) -> None:
    """Give a new prefix the keys and values of random tokens.

    Raises:
        ConfigError: the model has layers without keys and values, or of several sizes.
    """
    config, base = model.active_peft_config, model.get_base_model()
    count, vocabulary = config.num_virtual_tokens, base.config.get_text_config().vocab_size
    weight = model.prompt_encoder[model.active_adapter].embedding.weight
    ids = torch.randint(vocabulary, (1, count)).to(weight.device)
    layers = layers_of(base)
    was_training = layers.training
    cache = layers.eval()(input_ids=ids, use_cache=True).get("past_key_values")
    layers.train(was_training)
    kept = [(layer.keys[0], layer.values[0]) for layer in getattr(cache, "layers", ()) if hasattr(layer, "values")]
    heads = config.num_attention_heads
    shape = (heads, count, config.token_dim // heads)
    if len(kept) != config.num_layers or any(each.shape != shape for pair in kept for each in pair):
        raise ConfigError(
            f"adapter.method: prefix needs keys and values of one size in every layer, which {type(base).__name__} does "
            "not have; prompt trains virtual tokens of any model"
        )
    table = torch.stack([each.transpose(0, 1) for pair in kept for each in pair], dim=1)
    weight.copy_(table.reshape(weight.shape))


def encodes(model: Any) -> bool:
    """Whether an adapter has an encoder, which only a checkpoint holds."""
    return ENCODED in _kinds(model)


def as_embeddings(config: Any) -> Any:
    """PEFT's configuration of a saved adapter: P-tuning's embeddings are prompt tuning's."""
    if config.peft_type.value != ENCODED:
        return config
    from peft import PromptTuningConfig

    shared = ("task_type", "base_model_name_or_path", "inference_mode", "num_virtual_tokens", "token_dim")
    sizes = ("num_transformer_submodules", "num_attention_heads", "num_layers")
    return PromptTuningConfig(**{key: getattr(config, key) for key in (*shared, *sizes)}, prompt_tuning_init="RANDOM")


def save_encoder(model: Any, checkpoint: Path) -> None:
    """The encoders of the policy and of others, beside the embeddings that PEFT saves."""
    from safetensors.torch import save_file

    state = {name: value.detach().contiguous() for name, value in model.prompt_encoder.state_dict().items()}
    save_file(state, checkpoint / ENCODER_FILE)


def load_virtual_tokens(model: Any, folder: Path) -> None:
    """Those that a checkpoint holds, of the policy and below it of others: PEFT loads none that train.

    Raises:
        HandoffError: a checkpoint lacks the encoder.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    if encodes(model):
        if not (folder / ENCODER_FILE).is_file():
            raise HandoffError(f"{folder} has no {ENCODER_FILE}, without which P-tuning cannot continue: delete it")
        model.prompt_encoder.load_state_dict(load_file(folder / ENCODER_FILE))
        return
    for name in model.peft_config:
        file = (folder if name == "default" else folder / name) / "adapter_model.safetensors"
        if file.is_file():
            set_peft_model_state_dict(model, load_file(file), adapter_name=name)

"""Full fine-tuning: the model's own weights train, all or those of its last layers, and the run folder holds a whole model.

To later stages such a run is a base model of its own: they continue it, or put an adapter on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tiebreak.config import AdapterConfig
from tiebreak.errors import ConfigError
from tiebreak.packed.sharding import gathered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tiebreak.chat.chat import Chat


def train_whole(model: PreTrainedModel, adapter: AdapterConfig) -> PreTrainedModel:
    """Let all weights train, or those of the last `trainable_layers` layers alone.

    Raises:
        ConfigError: it has fewer layers.
    """
    model.requires_grad_(adapter.trainable_layers is None)
    if adapter.trainable_layers is not None:
        layers = _layers(model)
        if adapter.trainable_layers > len(layers):
            raise ConfigError(
                f"adapter.trainable_layers: {type(model).__name__} has {len(layers)} layers, not "
                f"{adapter.trainable_layers}; give at most that, or null for all weights"
            )
        for layer in layers[len(layers) - adapter.trainable_layers :]:
            layer.requires_grad_(True)
    return model


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's layers, in order."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ConfigError(f"adapter.trainable_layers: {type(model).__name__} has no list of {count} layers; set it to null")


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """All weights and buffers on the CPU, in fixed memory. All ranks must call it."""
    with gathered(list(model.parameters())):
        return {key: value.detach().to("cpu", copy=True) for key, value in model.state_dict().items()}


def write_whole(folder: Path, model: Any, state: dict[str, Tensor], chat: Chat) -> None:
    """Write a plain model with its tokenizer, its weights in several files where they are large."""
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "score"):
        _write_scorer(folder, model, state)
        chat.tokenizer.save_pretrained(folder)
        return
    cached, model.config.use_cache = model.config.use_cache, True
    stops, model.generation_config.eos_token_id = model.generation_config.eos_token_id, list(chat.stop_ids)
    try:
        model.save_pretrained(folder, state_dict=state)
    finally:
        model.config.use_cache, model.generation_config.eos_token_id = cached, stops
    chat.tokenizer.save_pretrained(folder)


def _write_scorer(folder: Path, model: Any, state: dict[str, Tensor]) -> None:
    """A sequence classifier, its configuration with as many labels as its head has rows."""
    before, model.config.num_labels = model.config.num_labels, model.score.out_features
    try:
        model.save_pretrained(folder, state_dict=state)
    finally:
        model.config.num_labels = before


def size_of(model: nn.Module) -> str:
    """As in `a second copy of 0.1 billion weights, 0.5 GB`."""
    count = sum(parameter.numel() for parameter in model.parameters())
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return f"{count / 1e9:.2g} billion weights, {held / 2**30:.2g} GB"

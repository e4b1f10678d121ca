"""Sequence classifiers for architectures without one in transformers that has a score head: Cohere, Granite, Mamba, ….

A reward model is a causal model's layers with one linear layer, `score`, on the last hidden state. transformers has that
class for some architectures; where it is missing, or differs (ModernBERT's decoder adds a dense layer and a norm), it is
made here, with the causal model's names of weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutputWithPast


def scorer_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class of a reward model for an architecture; None if transformers has one with a `score` layer."""
    kind = type(config)
    if kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        with torch.device("meta"):
            if hasattr(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[kind](config), "score"):
                return None
    return _class_on(MODEL_FOR_CAUSAL_LM_MAPPING[kind], config) if kind in MODEL_FOR_CAUSAL_LM_MAPPING else None


def _class_on(causal: type[PreTrainedModel], config: PretrainedConfig) -> type[PreTrainedModel]:
    with torch.device("meta"):
        model = causal(config)
    [(prefix, decoder)] = [
        (name, child) for name, child in model.named_children() if isinstance(child, PreTrainedModel)
    ]
    return _make_class(causal, type(config), type(decoder), prefix)


def _make_class(
    causal: type[PreTrainedModel], config: type[PretrainedConfig], decoder: type[PreTrainedModel], prefix: str
) -> type[PreTrainedModel]:
    [parent] = [base for base in causal.__bases__ if issubclass(base, PreTrainedModel)]
    name = causal.__name__.removesuffix("ForCausalLM").removesuffix("ForConditionalGeneration")
    attributes = {
        "base_model_prefix": prefix,
        "config_class": config,
        "decoder_class": decoder,
        "__module__": causal.__module__,  # transformers reads its source to see what its attention and experts support
    }
    return type(f"{name}ForSequenceClassification", (_Scorer, parent), attributes)


class _Scorer:
    """Mixin for an architecture's `PreTrainedModel`."""

    base_model_prefix: str
    decoder_class: type[PreTrainedModel]
    base_model: nn.Module

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.num_labels = config.num_labels
        setattr(self, self.base_model_prefix, self.decoder_class(config))
        self.score = nn.Linear(config.get_text_config().hidden_size, config.num_labels, bias=False)
        self.post_init()  # type: ignore[attr-defined]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **rest: Any) -> Any:
        """Scores, shape (rows, labels), each at the last unmasked token."""
        rest.pop("labels", None)
        hidden = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **rest).last_hidden_state
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        return SequenceClassifierOutputWithPast(logits=self.score(hidden[torch.arange(len(last)), last]))

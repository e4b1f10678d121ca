"""The number of a model's parameters that train, for every adapter method.

LoRA on all linear layers of a decoder of the Llama family, prompt tuning and whole weights are arithmetic, which needs no
torch. For any other, PEFT puts the adapter on the model on torch's meta device, which has shapes and no memory.
"""

from __future__ import annotations

from functools import lru_cache

from tiebreak.config import AdapterConfig
from tiebreak.config.adapter import ALL_LINEAR
from tiebreak.plan.shape import FAMILY, Shape, on_meta


def trained_parameters(shape: Shape, adapter: AdapterConfig, *, scores: bool = False) -> int:
    """Parameters that train.

    Args:
        scores: of a reward model, which has a score head in place of the language-model head.

    Raises:
        ConfigError: the adapter cannot be put on this model.
    """
    head = shape.hidden if scores else 0
    if adapter.method == "full" and (adapter.trainable_layers is None or _is_plain(shape)):
        without = shape.embedding if scores and not shape.tied else 0
        all_of_it = shape.parameters - without
        return head + (all_of_it if adapter.trainable_layers is None else adapter.trainable_layers * shape.block)
    if adapter.method == "prompt":
        return head + adapter.virtual_tokens * shape.hidden
    if not shape.values or (_is_plain_lora(adapter) and _is_plain(shape)):
        targets = adapter.target_modules
        names = None if isinstance(targets, str) else set(targets)
        chosen = [one for one in shape.linears if names is None or one.name in names]
        return head + shape.layers * sum(adapter.r * one.count * (one.inputs + one.outputs) for one in chosen)
    return _counted(shape, adapter.model_dump_json(), scores)


def _is_plain(shape: Shape) -> bool:
    """Whether each of its layers consists of the same few matrices."""
    return not shape.values or (shape.model_type in FAMILY and not shape.experts and shape.counted is None)


def _is_plain_lora(adapter: AdapterConfig) -> bool:
    """Whether each of its layers consists of two matrices of one rank."""
    targets = adapter.target_modules
    more = (adapter.dora, adapter.rank_pattern, adapter.modules_to_save, adapter.init in ("pissa", "olora"))
    return adapter.method == "lora" and not any(more) and (isinstance(targets, list) or targets == ALL_LINEAR)


@lru_cache(maxsize=64)
def _counted(shape: Shape, adapter: str, scores: bool) -> int:
    """By PEFT, on the meta device."""
    from tiebreak.models.adapters.trained import count_trained

    model = on_meta(shape.values, shape.name, scores=scores)
    return count_trained(model, AdapterConfig.model_validate_json(adapter), "SEQ_CLS" if scores else "CAUSAL_LM")

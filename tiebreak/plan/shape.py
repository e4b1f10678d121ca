"""A language model's shape, read from its config.json: parameters and linear layers, without weights.

Decoders of the Llama family are counted by arithmetic. Any other architecture, and one of the family beside a vision tower,
with unusual biases or without a size, is built on torch's meta device, which has shapes and no memory (`counted_on_meta`):
that takes the seconds of importing transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiebreak.errors import ModelError
from tiebreak.models.quantized import require_plain_weights

CONFIG_FILE = "config.json"
FAMILY = frozenset(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi3 smollm3 olmo2 granite mixtral qwen3_moe".split()
)
"""`model_type`s counted by arithmetic"""
TIED_BY_DEFAULT = frozenset({"gemma", "gemma2", "gemma3_text", "smollm3"})
ROUTED = frozenset({"mixtral", "qwen3_moe"})
"""with experts"""
BIASED = frozenset({"llama", "granite"})
"""whose layers have the biases that `attention_bias` and `mlp_bias` name; others read one key or neither"""
OWN_DEFAULTS = {
    "head_dim": frozenset({"gemma", "gemma2", "gemma3_text", "qwen3"}),
    "num_key_value_heads": FAMILY - {"llama", "phi3", "olmo2", "granite"},
    "num_local_experts": frozenset({"mixtral"}),
    "num_experts": frozenset({"qwen3_moe"}),
    "num_experts_per_tok": frozenset({"qwen3_moe"}),
    "moe_intermediate_size": frozenset({"qwen3_moe"}),
}
"""sizes that follow from no other one where a configuration leaves them out"""
FOUR_NORMS = frozenset({"gemma2", "gemma3_text"})
NORM_OF_HEADS = frozenset({"qwen3", "gemma3_text", "qwen3_moe"})
"""a norm of the head's size on queries and on keys"""
QKV_BIAS = frozenset({"qwen2"})


@dataclass(frozen=True)
class Linear:
    """A linear layer of every block, or several of the same name and size, as experts have."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    count: int = 1

    @property
    def parameters(self) -> int:
        """Weights and biases of all of them."""
        return self.count * (self.inputs * self.outputs + (self.outputs if self.bias else 0))


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder."""

    name: str
    model_type: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    tied: bool
    """the head shares the embedding's weights"""
    linears: tuple[Linear, ...]
    """of one block"""
    norms: int
    """parameters of a block's norms"""
    experts: int = 0
    """experts of a block; 0: one MLP"""
    active_experts: int = 0
    """of them, those that compute a token"""
    counted: int | None = None
    """parameters counted on the meta device; None: by arithmetic"""
    values: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """its config.json"""

    @property
    def embedding(self) -> int:
        """Parameters of the embedding."""
        return self.vocabulary * self.hidden

    @property
    def in_linears(self) -> int:
        """Parameters of all blocks' linear layers: those that quantisation stores in fewer bits."""
        return self.layers * sum(linear.parameters for linear in self.linears)

    @property
    def parameters(self) -> int:
        """All of them, a shared embedding once."""
        if self.counted is not None:
            return self.counted
        outside = self.embedding * (1 if self.tied else 2) + self.hidden
        return outside + self.in_linears + self.layers * self.norms

    @property
    def block(self) -> int:
        """Parameters of one block."""
        return self.in_linears // max(self.layers, 1) + self.norms

    @property
    def active_in_linears(self) -> int:
        """Parameters of the linear layers that compute a token."""
        share = self.active_experts / self.experts if self.experts else 1.0
        each = (round(one.parameters * (share if one.count > 1 else 1)) for one in self.linears)
        return self.layers * sum(each)


def read_shape(path: Path, name: str = "") -> Shape:
    """The shape of a model's folder, or of a config.json alone.

    Raises:
        ModelError: there is none, or it lacks a size.
    """
    file = path / CONFIG_FILE if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot read a model's configuration ({error})") from error
    if not isinstance(values, dict):
        raise ModelError(f"{file}: cannot read a model's configuration: it must be a JSON object")
    return to_shape(values, name or str(path), file)


def to_shape(values: Mapping[str, Any], name: str, file: Path | None = None) -> Shape:
    """The shape that a configuration's values describe.

    Raises:
        ModelError: a size is missing, the architecture is one that cannot be built, or no stage loads its weights.
    """
    require_plain_weights(values, name)
    text: Mapping[str, Any] = values.get("text_config") or values
    kind = str(text.get("model_type", ""))
    if text is not values or not _is_arithmetic(text, kind):
        return counted_on_meta(values, name)
    hidden, heads, inner, layers, vocabulary = (_size_of(text, key, str(file or name)) for key in SIZES)
    kv_heads = int(text.get("num_key_value_heads") or heads)
    size = int(text.get("head_dim") or hidden // heads)
    experts = int(text.get("num_local_experts") or text.get("num_experts") or 0) if kind in ROUTED else 0
    if kind != "mixtral":
        inner = int(text.get("moe_intermediate_size") or inner) if experts else inner
    own_norms = {4 if kind in FOUR_NORMS else 2: hidden}
    norms = sum(count * width for count, width in own_norms.items())
    if kind in NORM_OF_HEADS:
        norms += 2 * size
    elif kind == "olmo2":
        norms += (heads + kv_heads) * size
    return Shape(
        name,
        kind,
        vocabulary,
        hidden,
        layers,
        heads,
        kv_heads,
        size,
        inner,
        bool(text.get("tie_word_embeddings", kind in TIED_BY_DEFAULT)),
        tuple(_linears(text, kind, hidden, heads * size, kv_heads * size, inner, experts)),
        norms,
        experts,
        int(text.get("num_experts_per_tok") or 2) if experts else 0,
        values=values,
    )


def _is_arithmetic(text: Mapping[str, Any], kind: str) -> bool:
    """Whether a language model's sizes follow from its configuration's keys by the family's arithmetic."""
    left_out = any(kind in kinds and key not in text for key, kinds in OWN_DEFAULTS.items())
    biased = kind not in BIASED and (text.get("attention_bias") or text.get("mlp_bias"))
    dense_blocks = text.get("mlp_only_layers") or (text.get("decoder_sparse_step") or 1) != 1
    return kind in FAMILY and not (left_out or biased or dense_blocks)


SIZES = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "vocab_size")
"""keys that every configuration of a family has"""


def _size_of(text: Mapping[str, Any], key: str, where: str) -> int:
    if key not in text:
        raise ModelError(f"{where}: a model's configuration needs {key!r}")
    if not isinstance(text[key], int) or text[key] < 1:
        raise ModelError(f"{where}: {key} must be a positive integer, not {text[key]!r}")
    return int(text[key])


def _linears(
    text: Mapping[str, Any], kind: str, hidden: int, queries: int, keys: int, inner: int, experts: int
) -> list[Linear]:
    """The linear layers of a block."""
    attention, mlp = bool(text.get("attention_bias", False)), bool(text.get("mlp_bias", False))
    if kind == "phi3":
        return [
            Linear("qkv_proj", hidden, queries + 2 * keys),
            Linear("o_proj", queries, hidden),
            Linear("gate_up_proj", hidden, 2 * inner),
            Linear("down_proj", inner, hidden),
        ]
    of_attention = [
        Linear("q_proj", hidden, queries, attention or kind in QKV_BIAS),
        Linear("k_proj", hidden, keys, attention or kind in QKV_BIAS),
        Linear("v_proj", hidden, keys, attention or kind in QKV_BIAS),
        Linear("o_proj", queries, hidden, attention),
    ]
    if experts:
        return [
            *of_attention,
            Linear("gate", hidden, experts),
            Linear("gate_proj", hidden, inner, count=experts),
            Linear("up_proj", hidden, inner, count=experts),
            Linear("down_proj", inner, hidden, count=experts),
        ]
    return [
        *of_attention,
        Linear("gate_proj", hidden, inner, mlp),
        Linear("up_proj", hidden, inner, mlp),
        Linear("down_proj", inner, hidden, mlp),
    ]


def counted_on_meta(values: Mapping[str, Any], name: str) -> Shape:
    """The shape of any architecture that transformers has, by building it without memory.

    Raises:
        ModelError: transformers does not have it, or it has no attention.
    """
    import torch

    model = on_meta(values, name)
    config = model.config
    text = config.get_text_config()
    if not hasattr(text, "num_attention_heads"):
        raise ModelError(
            f"{name}: a plan counts by attention heads, and a model of type {values.get('model_type', '')!r} has none; it "
            "is trained and sampled without a plan"
        )
    hidden, heads, layers = text.hidden_size, text.num_attention_heads, text.num_hidden_layers
    head = model.get_output_embeddings()
    found: dict[tuple[str, int, int], int] = {}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if (
            module is not head
            and weight is not None
            and weight.ndim == 2
            and not isinstance(module, torch.nn.Embedding)
        ):
            key = (path.rpartition(".")[2], weight.shape[1], weight.shape[0])
            found[key] = found.get(key, 0) + 1
    linears = tuple(
        Linear(short, inputs, outputs, count=max(1, round(times / layers)))
        for (short, inputs, outputs), times in found.items()
    )
    widest = max((max(one.inputs, one.outputs) for one in linears), default=4 * hidden)
    return Shape(
        name,
        str(values.get("model_type", "")),
        text.vocab_size,
        hidden,
        layers,
        heads,
        int(getattr(text, "num_key_value_heads", None) or heads),
        int(getattr(text, "head_dim", None) or hidden // heads),
        int(getattr(text, "intermediate_size", None) or widest),
        bool(getattr(config, "tie_word_embeddings", False)),
        linears,
        2 * hidden,
        counted=sum(parameter.numel() for parameter in model.parameters()),
        values=values,
    )


def on_meta(values: Mapping[str, Any], name: str, *, scores: bool = False) -> Any:
    """A model without memory.

    Args:
        scores: a sequence classifier of one score.

    Raises:
        ModelError: transformers does not have it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = str(values.get("model_type", ""))
    if values.get("is_encoder_decoder"):
        raise ModelError(
            f"{name}: {kind} is an encoder and a decoder; language models that are trained here are decoders"
        )
    try:
        config = AutoConfig.for_model(kind, **{key: value for key, value in values.items() if key != "model_type"})
        if scores:
            config.num_labels = 1
        with torch.device("meta"):
            return (AutoModelForSequenceClassification if scores else AutoModelForCausalLM).from_config(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error)
        if not kind:
            reason = "it names no model_type"
        elif "Unrecognized" in reason:  # followed by the hundreds that there are
            reason = f"transformers has no {'classifier' if scores else 'causal language model'} of that type"
        raise ModelError(f"{name}: cannot build a model of type {kind!r} from its configuration: {reason}") from error

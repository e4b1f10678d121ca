"""Memory of one device, by kind, in bytes. The formulas are in docs/scaling.md.

What is stored for the backward pass is counted tensor by tensor, as the two ways of computing a block store it:

- fused (float32 or bfloat16 throughout, LoRA on plain linear layers; tiebreak.packed.fused): per token of a block, the
  inputs of both norms and of attention's and the MLP's projections, queries, keys and values with keys repeated for every
  head, attention's output twice, the outputs of the gate and up projections, and r numbers a LoRA layer.
- plain (sharded or quantised weights, mixed precision): also the MLP's activated gate and its product; in mixed precision,
  an input for every LoRA layer, and both norms in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from tiebreak.plan.shape import Shape

FLOAT32 = 4
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""bytes per weight: 4 bits, one byte a block of 64 for its scale, and a float32 for 256 of those (Dettmers et al. 2023,
section 3: 4.127 bits)"""
FOUR_BITS = 0.5 + FLOAT32 / 64
"""the same without double quantisation: a float32 a block"""
INT8 = 1.0
"""LLM.int8 (Dettmers et al. 2022): its float32 for each row is left out"""
HEAD_CHUNK = 256
"""tokens whose logits are computed at once (tiebreak.packed.lm_head.CHUNK_TOKENS)"""
LOGITS_AT_ONCE = 3
"""tables of a chunk's logits in float32: logits or their exponentials, log-probabilities, a temporary"""
MOMENTS = {
    "adamw": 8.0,
    "paged_adamw": 8.0,
    "adamw_8bit": 2 * (1 + 4 / 256),
    "paged_adamw_8bit": 2 * (1 + 4 / 256),
    "adafactor": 0.0,
}
"""bytes of the optimizer's moments per trained weight, by `training.optimizer`. In 8 bits each, with a float32 for every
256 (Dettmers et al. 2022); paged ones are counted whole; Adafactor has a number for each row and column"""
FRAGMENTED = 0.05
"""share of a GPU's memory that its caching allocator loses between blocks; an estimate"""
HEAP_SLACK = 0.18
"""on the CPU: what the C library's heap loses between blocks of several sizes, as a share of everything but the weights,
which stay in their file's pages. The one number here that was fitted to measurements (benchmarks/plan.py)"""


@dataclass(frozen=True)
class Memory:
    """Bytes by kind, at the moment of the peak."""

    weights: float = 0.0
    adapters: float = 0.0
    reward_models: float = 0.0
    """those with weights of their own"""
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    kv_cache: float = 0.0
    overhead: float = 0.0
    """context and libraries, and what an allocator loses"""

    @property
    def loaded(self) -> float:
        """Weights of all models."""
        return self.weights + self.reward_models

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(getattr(self, field.name) for field in fields(self)))

    def kinds(self) -> dict[str, float]:
        """By name, without those of no size."""
        named = {field.name: float(getattr(self, field.name)) for field in fields(self)}
        return {name: value for name, value in named.items() if value}


@dataclass(frozen=True)
class Numbers:
    """Number formats and the way of computing."""

    size: int
    """bytes of a weight and of an activation"""
    mixed: bool
    """float32 adapters beside half-precision weights: autocast"""
    quantized: float = 0.0
    """bytes of a weight in the blocks' linear layers, where they are held in fewer bits; 0: they are not"""
    fused: bool = True
    checkpointing: bool = False
    rank: int = 0
    """numbers a LoRA layer stores per token"""
    trains_base: bool = False


def weight_bytes(shape: Shape, numbers: Numbers, *, scores: bool = False, prepared: bool = True) -> float:
    """Base weights; a reward model has no language-model head.

    Args:
        scores: a sequence classifier.
        prepared: beside quantised layers, PEFT holds all others in float32, as it does to train an adapter on them.
    """
    without = shape.embedding if scores and not shape.tied else 0
    held = shape.parameters - without
    if not numbers.quantized:
        return held * numbers.size
    beside = FLOAT32 if prepared else numbers.size
    return (held - shape.in_linears) * beside + shape.in_linears * numbers.quantized


def stored_per_token(shape: Shape, numbers: Numbers) -> float:
    """Bytes of a block that one token leaves for the backward pass."""
    d, f = shape.hidden, shape.intermediate * max(shape.active_experts, 1)
    q = shape.heads * shape.head_size
    low = numbers.rank * len(shape.linears)
    if numbers.mixed:
        inputs = 6 * d if numbers.rank else 3 * d  # one for every LoRA layer
        return numbers.size * (inputs + 5 * q + 4 * f + low) + FLOAT32 * 2 * d
    return numbers.size * (4 * d + 5 * q + (2 if numbers.fused else 4) * f + low)


def activation_bytes(shape: Shape, numbers: Numbers, tokens: float) -> float:
    """Activations of a pass with its backward: what all blocks store, and one block's temporaries."""
    stored = stored_per_token(shape, numbers)
    f = shape.intermediate * max(shape.active_experts, 1)
    temporary = numbers.size * (4 * f + 2 * shape.hidden)
    if numbers.checkpointing:
        return tokens * (shape.layers * shape.hidden * numbers.size + stored + temporary)
    dequantized = max((one.inputs * one.outputs for one in shape.linears), default=0) if numbers.quantized else 0
    return tokens * (shape.layers * stored + temporary) + dequantized * numbers.size


def forward_bytes(shape: Shape, numbers: Numbers, tokens: float) -> float:
    """Temporaries of a pass without gradients: one block's."""
    q, f = shape.heads * shape.head_size, shape.intermediate * max(shape.active_experts, 1)
    return tokens * numbers.size * (4 * shape.hidden + 4 * q + 3 * f)


def logit_bytes(shape: Shape, rows: float, tables: float = LOGITS_AT_ONCE) -> float:
    """Tables of logits in float32."""
    return FLOAT32 * rows * shape.vocabulary * tables


def cache_bytes(shape: Shape, numbers: Numbers, rows: float, columns: float) -> float:
    """Keys and values of unfinished rows."""
    return 2 * shape.layers * rows * columns * shape.kv_heads * shape.head_size * numbers.size

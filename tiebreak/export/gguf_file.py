"""One GGUF file for llama.cpp and Ollama: weights, tokenizer, chat template and end tokens.

Written by the `gguf` package, whose maps name the tensors, for the architectures in `ARCHITECTURES`; llama.cpp's own
converter is in no package that keeps up with it. Every file is read again by transformers and answers the run's probe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

from tiebreak.errors import HandoffError
from tiebreak.export.configuration import Dtype
from tiebreak.export.model_to_export import ModelToExport
from tiebreak.export.vocabulary import read_vocabulary
from tiebreak.terminal import say

ARCHITECTURES: Mapping[str, str] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""transformers' class → llama.cpp's name"""
OTHERWISE = "for others, use --to safetensors and llama.cpp's convert_hf_to_gguf.py"
_TYPES: Mapping[str, tuple[gguf.GGMLQuantizationType, gguf.LlamaFileType]] = {
    "fp32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "fp16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
_BLOCK = 32
"""numbers in a row that share a scale in q8_0"""
_LARGEST_HALF = 65504.0
_ROPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Shape:
    """The figures of a model's configuration that the file states."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rope: Mapping[str, Any]


def require_supported(config: Any, name: str) -> Shape:
    """The model's figures.

    Raises:
        HandoffError: llama.cpp would compute something else, or this writer does not know the architecture.
    """
    kind = (config.architectures or [type(config).__name__])[0]
    if kind not in ARCHITECTURES:
        raise HandoffError(f"{name}: GGUF is written for {', '.join(ARCHITECTURES)}, and this is {kind}; {OTHERWISE}")
    if ARCHITECTURES[kind] == "llama" and (
        getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False)
    ):
        raise HandoffError(f"{name}: its layers have biases, which transformers does not read from GGUF; {OTHERWISE}")
    window = getattr(config, "sliding_window", None)
    if window and window < config.max_position_embeddings and getattr(config, "use_sliding_window", True):
        raise HandoffError(
            f"{name}: its attention slides over {window} tokens, which llama.cpp's {ARCHITECTURES[kind]} does not do; "
            f"{OTHERWISE}"
        )
    rope = dict(getattr(config, "rope_parameters", None) or {})
    if rope.get("rope_type", "default") not in _ROPES:
        raise HandoffError(f"{name}: rope scaling of type {rope['rope_type']!r} is not written to GGUF; {OTHERWISE}")
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    return Shape(
        ARCHITECTURES[kind], int(config.num_hidden_layers), int(config.hidden_size), heads, kv_heads, head_dim, rope
    )


def write_gguf(origin: ModelToExport, model: Any, path: Path, dtype: Dtype) -> None:
    """Write a merged model.

    Raises:
        HandoffError: an architecture, tokenizer or end token that the file cannot hold.
    """
    shape = require_supported(model.config, origin.source.name)
    vocabulary = read_vocabulary(origin, int(model.config.vocab_size))
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_name(Path(origin.source.name).name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(_TYPES[dtype][1])
    _add_shape(writer, shape, model.config)
    vocabulary.add_to(writer)
    coarser = 0
    for name, tensor in _tensors(model, shape, origin.source.name):
        kind = _type_of(tensor, dtype)
        coarser += kind is gguf.GGMLQuantizationType.F16 and dtype == "q8_0"
        if kind is gguf.GGMLQuantizationType.F16 and float(tensor.abs().max()) > _LARGEST_HALF:
            raise HandoffError(f"fp16 cannot hold {name}, which has a value beyond 65504: use --dtype bf16 or fp32")
        writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
    if coarser:
        say(f"{coarser} tensors have rows that are no multiple of {_BLOCK}: they are kept in fp16")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, shape: Shape, config: Any) -> None:
    writer.add_block_count(shape.layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(shape.rope.get("rope_theta", 10000.0)))
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    if shape.architecture == "llama":
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(shape.head_dim)
    if shape.rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(shape.rope["factor"]))


def _type_of(tensor: Tensor, dtype: Dtype) -> gguf.GGMLQuantizationType:
    """Vectors stay in float32, as llama.cpp's converter has them."""
    if tensor.ndim == 1:
        return gguf.GGMLQuantizationType.F32
    if dtype == "q8_0" and tensor.shape[-1] % _BLOCK:
        return gguf.GGMLQuantizationType.F16
    return _TYPES[dtype][0]


def _tensors(model: Any, shape: Shape, source: str) -> Iterator[tuple[str, Tensor]]:
    """Every weight in float32 under llama.cpp's name."""
    if shape.rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", llama3_factors(shape.rope, shape.head_dim)
    names = gguf.get_tensor_name_map(_architecture(shape.architecture), shape.layers)
    tied = bool(model.config.tie_word_embeddings)
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise HandoffError(f"{source}: llama.cpp's {shape.architecture} has no place for {name}; {OTHERWISE}")
        weight = tensor.detach().float().cpu()
        if shape.architecture == "llama" and ".q_proj." in name:
            weight = interleaved(weight, shape.heads)
        if shape.architecture == "llama" and ".k_proj." in name:
            weight = interleaved(weight, shape.kv_heads)
        yield gguf_name, weight.contiguous()


def _architecture(name: str) -> gguf.MODEL_ARCH:
    return next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys in llama.cpp's order: it rotates neighbours, transformers a head's halves.

    Args:
        weight: shape (heads · head size, …).
    """
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def llama3_factors(rope: Mapping[str, Any], head_dim: int) -> Tensor:
    """By what Llama 3.1's rope scaling divides each frequency, shape (head_dim / 2,): 1 for short wavelengths, `factor` for
    long ones, smooth between (transformers' `_compute_llama3_parameters`)."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(rope["original_max_position_embeddings"])
    frequencies = float(rope["rope_theta"]) ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    waves = 2 * math.pi / frequencies
    smooth = ((context / waves - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float()

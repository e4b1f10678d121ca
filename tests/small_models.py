"""Small random models of several architectures, under adapters that are not at their start, and pairs for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

PAD, VOCABULARY = 0, 31


@dataclass(frozen=True)
class Pair:
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.3,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "qwen2": lambda: Qwen2Config(**GROUPED),
    "qwen2 with a window": lambda: Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=4),
    "gemma": lambda: GemmaConfig(**GROUPED, head_dim=4),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=None),
    "mistral with a window": lambda: MistralConfig(**GROUPED, sliding_window=4),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
    "phi": lambda: PhiConfig(**SIZES),
}


def build(
    config: PreTrainedConfig,
    auto: Any = AutoModelForCausalLM,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
) -> PeftModel:
    """A random model under a LoRA adapter that is not at its start, so that all of it has a gradient."""
    torch.manual_seed(0)
    scores = auto is AutoModelForSequenceClassification
    if scores:
        config.num_labels = 1
    base = auto.from_config(config, attn_implementation=attention, dtype=dtype)
    base.config.use_cache = False
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS" if scores else "CAUSAL_LM")
    model = get_peft_model(base, lora, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model


def random_pairs(count: int = 24) -> list[Pair]:
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()

    return [Pair(draw(1, 9), draw(1, 7), draw(1, 7)) for _ in range(count)]


def words() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w1")

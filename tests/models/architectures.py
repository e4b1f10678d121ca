"""A tiny random variant of every kind of chat model that transformers has: two layers, a hidden size of 64.

Each is made from its configuration alone, in the shapes that set its family apart: windows, caps, scales, tied heads,
experts, convolutions, state spaces. `docs/models.md` lists what the stages make of each.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["dense", "sliding window", "capped or scaled", "mixture of experts", "hybrid", "recurrent", "multimodal"]


@dataclass(frozen=True)
class Architecture:
    """What sets a model apart from its family's defaults."""

    name: str
    kind: Kind
    model_type: str
    templates: tuple[str, ...]
    """chat templates of models that have it, the family's own first; see templates.py"""
    values: dict[str, Any] = field(default_factory=dict)
    """keys of its configuration beside `SIZES`"""
    drops_out: bool = False
    """its own layers drop at random while it is trained, so that a loss is not a fixed number"""

    def configure(self, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
        """Its configuration for a tokenizer's vocabulary."""
        from transformers import CONFIG_MAPPING

        ids = {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        ids = {key: 0 if value is None else value for key, value in ids.items()}
        if self.kind == "multimodal":
            text = {**SIZES, **ids, **self.values["text_config"]}
            return CONFIG_MAPPING[self.model_type](**{**self.values, "text_config": text, **ids})
        return CONFIG_MAPPING[self.model_type](**{**SIZES, **ids, **self.values})

    def build(self, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> PreTrainedModel:
        """A random model, the same for one seed."""
        import torch
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

        torch.manual_seed(seed)
        config = self.configure(tokenizer)
        is_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
        with quiet():
            loader = AutoModelForCausalLM if is_causal else AutoModelForImageTextToText
            model: PreTrainedModel = loader.from_config(config)
        return model.eval()


SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
}
HEADS = {"head_dim": 16}
WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
SHARED_EXPERT = {**EXPERTS, "shared_expert_intermediate_size": 48}
LATENT = {  # DeepSeek's attention and its experts in groups
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
STATE = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
ROUTED = {
    **SHARED_EXPERT,
    **HEADS,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024, "n_ctx": 1024, "dff": 96}
LATENT_ROUTED = {**EXPERTS, **LATENT}
INDEXED = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 64}
GEMMA = {**HEADS, **WINDOW, "query_pre_attn_scalar": 16}
TINY_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}

FURTHER: list[tuple[str, Kind, str, dict[str, Any]]] = [
    ("GPT", "dense", "openai-gpt", GPT),
    ("CTRL", "dense", "ctrl", GPT),
    ("BioGPT", "dense", "biogpt", {}),
    ("XGLM", "dense", "xglm", {"d_model": 64, "ffn_dim": 96, "num_layers": 2, "attention_heads": 4}),
    ("GPT-NeoX Japanese", "dense", "gpt_neox_japanese", {}),
    ("BitNet", "dense", "bitnet", {}),
    ("nanochat", "dense", "nanochat", HEADS),
    ("MiniCPM3", "dense", "minicpm3", LATENT_ROUTED),
    ("Jais 2", "dense", "jais2", {}),
    ("InternLM3", "dense", "internlm3", HEADS),
    ("HyperCLOVA X", "dense", "hyperclovax", HEADS),
    ("Youtu-LLM", "dense", "youtu", LATENT_ROUTED),
    ("Ministral 3", "dense", "ministral3", HEADS),
    ("IQuest-Coder", "dense", "iquestcoder", HEADS),
    ("Doge", "dense", "doge", ROUTED),
    ("Ministral", "sliding window", "ministral", {**HEADS, **WINDOW}),
    ("CWM", "sliding window", "cwm", {**HEADS, **WINDOW}),
    ("Granite SWA", "sliding window", "granite_swa", {**HEADS, "sliding_window": 8}),
    ("VaultGemma", "capped or scaled", "vaultgemma", {**HEADS, **WINDOW, "query_pre_attn_scalar": 16}),
    ("JetMoE", "mixture of experts", "jetmoe", {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 16}),
    ("dots.llm1", "mixture of experts", "dots1", ROUTED),
    ("EXAONE-MoE", "mixture of experts", "exaone_moe", {**ROUTED, **WINDOW}),
    ("FlexOlmo", "mixture of experts", "flex_olmo", ROUTED),
    (
        "Granite-MoE, shared experts",
        "mixture of experts",
        "granitemoeshared",
        {**EXPERTS, "shared_intermediate_size": 48},
    ),
    ("HunYuan V3", "mixture of experts", "hy_v3", ROUTED),
    ("Solar Open", "mixture of experts", "solar_open", ROUTED),
    ("AFMoE", "mixture of experts", "afmoe", {**ROUTED, **WINDOW, "num_dense_layers": 1}),
    ("DeepSeek-V2", "mixture of experts", "deepseek_v2", LATENT_ROUTED),
    ("DeepSeek-V3.2", "mixture of experts", "deepseek_v32", {**LATENT_ROUTED, **INDEXED}),
    ("GLM-4-MoE Lite", "mixture of experts", "glm4_moe_lite", LATENT_ROUTED),
    ("GLM-MoE-DSA", "mixture of experts", "glm_moe_dsa", {**LATENT_ROUTED, **INDEXED}),
    ("A.X-K1", "mixture of experts", "axk1", LATENT_ROUTED),
    ("MiMo-V2-Flash", "mixture of experts", "mimo_v2_flash", ROUTED),
    ("Mellum", "mixture of experts", "mellum", ROUTED),
    ("Laguna", "mixture of experts", "laguna", ROUTED),
    (
        "LongCat-Flash",
        "mixture of experts",
        "longcat_flash",
        {
            **LATENT_ROUTED,
            "num_layers": 2,
            "ffn_hidden_size": 96,
            "expert_ffn_hidden_size": 48,
            "zero_expert_num": 2,
            "moe_topk": 2,
            "head_dim": 8,
        },
    ),
    ("MiniMax", "hybrid", "minimax", {**ROUTED, "layer_types": LINEAR["layer_types"], "block_size": 16}),
    ("Bailing hybrid", "hybrid", "bailing_hybrid", {**ROUTED, **LATENT_ROUTED, "layer_types": LINEAR["layer_types"]}),
    (
        "Kimi Linear",
        "hybrid",
        "kimi_linear",
        {
            **LATENT_ROUTED,
            "layer_types": LINEAR["layer_types"],
            "linear_head_dim": 16,
            "linear_num_heads": 4,
            "mlp_layer_types": ["dense", "sparse"],
        },
    ),
    ("LFM3", "hybrid", "lfm3", {"layer_types": ["conv", "full_attention"]}),
    ("ZAYA", "hybrid", "zaya", {**ROUTED, "num_experts_per_tok": 1}),
    ("RWKV", "recurrent", "rwkv", {"context_length": 1024, "attention_hidden_size": 64}),
    ("HRM-Text", "recurrent", "hrm_text", {}),
]
"""tested with one template"""
DROPPING = {"openai-gpt", "ctrl", "biogpt", "xglm", "gpt_neox_japanese"}
"""of these, those whose own layers drop at random while they are trained"""

ARCHITECTURES: dict[str, Architecture] = {
    made.name: made
    for made in [
        # dense
        Architecture(
            "Llama",
            "dense",
            "llama",
            ("llama3", "llama3_1", "llama3_2", "deepseek_r1_distill", "idefics3", "muse_glimmer"),
        ),
        Architecture("Llama, tied", "dense", "llama", ("smollm2", "smolvlm"), {"tie_word_embeddings": True}),
        Architecture(
            "Llama, dynamic RoPE",
            "dense",
            "llama",
            ("llama3",),
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
        ),
        Architecture("Arcee", "dense", "arcee", ("qwen2_5",)),
        Architecture("Qwen2", "dense", "qwen2", ("qwen2_5", "qwen2_5_base", "qwen2_5_vl")),
        Architecture(
            "Qwen3",
            "dense",
            "qwen3",
            ("qwen3", "qwen3 (enable_thinking: false)", "qwen3_instruct_2507", "qwen3_vl"),
            HEADS,
        ),
        Architecture("Gemma", "dense", "gemma", ("gemma",), HEADS),
        Architecture("Phi", "dense", "phi", ("qwen2_5_base",)),
        Architecture("Phi-3", "dense", "phi3", ("phi3", "phi3_5")),
        Architecture("OLMo", "dense", "olmo", ("olmo",)),
        Architecture("OLMo 2", "dense", "olmo2", ("olmo",)),
        Architecture("StarCoder2", "dense", "starcoder2", ("smollm2",)),
        Architecture("StableLM", "dense", "stablelm", ("zephyr",)),
        Architecture("GPT-NeoX", "dense", "gpt_neox", ("zephyr",)),
        Architecture("GPT-2", "dense", "gpt2", ("smollm2",), drops_out=True),
        Architecture("GPT-J", "dense", "gptj", ("smollm2",), {"rotary_dim": 8, "n_inner": 96}),
        Architecture("OPT", "dense", "opt", ("zephyr",), {"word_embed_proj_dim": 64, "ffn_dim": 96}, True),
        Architecture("BLOOM", "dense", "bloom", ("zephyr",)),
        Architecture("MPT", "dense", "mpt", ("smollm2",)),
        Architecture("Falcon", "dense", "falcon", ("smollm2",)),
        Architecture("Persimmon", "dense", "persimmon", ("zephyr",)),
        Architecture("SmolLM3", "dense", "smollm3", ("qwen3",), {"no_rope_layers": [1, 0]}),
        Architecture("GLM", "dense", "glm", ("glm4moe",), HEADS),
        Architecture("GLM-4", "dense", "glm4", ("glm4moe",), HEADS),
        Architecture("ERNIE 4.5", "dense", "ernie4_5", ("smollm2",), HEADS),
        Architecture("Seed-OSS", "dense", "seed_oss", ("smollm2",), HEADS, True),
        Architecture("Nemotron", "dense", "nemotron", ("smollm2",)),
        Architecture("Helium", "dense", "helium", ("smollm2",), HEADS),
        Architecture("Apertus", "dense", "apertus", ("smollm2",)),
        Architecture("HunYuan", "dense", "hunyuan_v1_dense", ("smollm2",), HEADS),
        # attention over a window
        Architecture("Mistral", "sliding window", "mistral", ("mistral", "llava_next"), {"sliding_window": 8}),
        Architecture("Gemma 3", "sliding window", "gemma3_text", ("gemma3",), GEMMA),
        Architecture(
            "Gemma 4",
            "sliding window",
            "gemma4_text",
            ("gemma4_v5", "gemma4_v2"),
            {
                **HEADS,
                **WINDOW,
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": 2048,
                "global_head_dim": 16,
            },
        ),
        Architecture("OLMo 3", "sliding window", "olmo3", ("olmo",), WINDOW),
        Architecture("Exaone 4", "sliding window", "exaone4", ("smollm2",), WINDOW),
        Architecture(
            "ModernBERT decoder", "sliding window", "modernbert-decoder", ("smollm2",), {"local_attention": 8}
        ),
        # logits capped or scaled after the head
        Architecture(
            "Gemma 2",
            "capped or scaled",
            "gemma2",
            ("gemma",),
            {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 15.0},
        ),
        Architecture("Cohere", "capped or scaled", "cohere", ("cohere",), {"logit_scale": 0.5}),
        Architecture("Cohere 2", "capped or scaled", "cohere2", ("cohere2",), {**WINDOW, "logit_scale": 0.5}),
        Architecture(
            "Granite",
            "capped or scaled",
            "granite",
            ("smollm2",),
            {
                "embedding_multiplier": 6.0,
                "attention_multiplier": 0.2,
                "residual_multiplier": 0.5,
                "logits_scaling": 0.5,
            },
        ),
        # mixtures of experts
        Architecture("Mixtral", "mixture of experts", "mixtral", ("mistral",), EXPERTS),
        Architecture(
            "Mixtral, auxiliary loss",
            "mixture of experts",
            "mixtral",
            ("mistral",),
            {**EXPERTS, "output_router_logits": True, "router_aux_loss_coef": 0.02},
        ),
        Architecture("Qwen2-MoE", "mixture of experts", "qwen2_moe", ("qwen2_5",), SHARED_EXPERT),
        Architecture("Qwen3-MoE", "mixture of experts", "qwen3_moe", ("qwen3",), {**EXPERTS, **HEADS}),
        Architecture("OLMoE", "mixture of experts", "olmoe", ("olmo",), EXPERTS),
        Architecture(
            "Granite-MoE", "mixture of experts", "granitemoe", ("smollm2",), {**EXPERTS, "logits_scaling": 0.5}
        ),
        Architecture("Phi-MoE", "mixture of experts", "phimoe", ("phi3_5",), EXPERTS),
        Architecture("gpt-oss", "mixture of experts", "gpt_oss", ("gptoss",), {**EXPERTS, **HEADS, **WINDOW}),
        Architecture("DeepSeek-V3", "mixture of experts", "deepseek_v3", ("deepseekv3",), LATENT),
        Architecture(
            "ERNIE 4.5 MoE",
            "mixture of experts",
            "ernie4_5_moe",
            ("smollm2",),
            {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 48, "moe_layer_start_index": 0},
        ),
        Architecture(
            "GLM-4.5",
            "mixture of experts",
            "glm4_moe",
            ("glm4moe",),
            {**LATENT, **HEADS, "n_group": 1, "num_key_value_heads": 2},
        ),
        Architecture(
            "Llama 4",
            "mixture of experts",
            "llama4_text",
            ("llama3_2",),
            {**EXPERTS, **HEADS, "intermediate_size_mlp": 96, "attention_chunk_size": 16},
        ),
        Architecture("MiniMax-M2", "mixture of experts", "minimax_m2", ("smollm2",), {**EXPERTS, **HEADS}),
        # attention beside convolutions, linear attention or state spaces
        Architecture(
            "LFM2", "hybrid", "lfm2", ("lfm2", "lfm2_v2", "lfm2_2_5"), {"layer_types": ["conv", "full_attention"]}
        ),
        Architecture(
            "LFM2-MoE",
            "hybrid",
            "lfm2_moe",
            ("lfm2_v2",),
            {**EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
        ),
        Architecture("Qwen3-Next", "hybrid", "qwen3_next", ("qwen3_instruct_2507",), {**SHARED_EXPERT, **LINEAR}),
        Architecture(
            "Qwen3.5",
            "hybrid",
            "qwen3_5_text",
            ("qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8"),
            LINEAR,
        ),
        Architecture("OLMo hybrid", "hybrid", "olmo_hybrid", ("olmo",), LINEAR),
        Architecture(
            "Jamba",
            "hybrid",
            "jamba",
            ("smollm2",),
            {
                **EXPERTS,
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
                "expert_layer_period": 2,
                "expert_layer_offset": 1,
                "mamba_d_state": 8,
                "mamba_dt_rank": 8,
                "use_mamba_kernels": False,
            },
        ),
        Architecture("Bamba", "hybrid", "bamba", ("smollm2",), {**STATE, "attn_layer_indices": [1]}),
        Architecture(
            "Falcon-H1",
            "hybrid",
            "falcon_h1",
            ("smollm2",),
            {**STATE, **HEADS, "mamba_d_ssm": 64, "mamba_n_heads": 4, "lm_head_multiplier": 0.5},
        ),
        Architecture(
            "Zamba2",
            "hybrid",
            "zamba2",
            ("mistral",),
            {
                "mamba_ngroups": 1,
                "mamba_headdim": 16,
                "n_mamba_heads": 8,
                "mamba_d_state": 8,
                "chunk_size": 16,
                "num_mem_blocks": 1,
                "hybrid_layer_ids": [1],
                "layers_block_type": ["mamba", "hybrid"],
                "use_mem_rope": True,
            },
        ),
        Architecture(
            "Granite-MoE hybrid",
            "hybrid",
            "granitemoehybrid",
            ("smollm2",),
            {
                **EXPERTS,
                **STATE,
                "layer_types": ["mamba", "attention"],
                "shared_intermediate_size": 48,
                "logits_scaling": 0.5,
            },
        ),
        Architecture(
            "Nemotron-H",
            "hybrid",
            "nemotron_h",
            (
                "nemotron_3_nano (enable_thinking: false)",
                "nemotron_3_super (enable_thinking: false)",
                "nemotron_3_ultra (enable_thinking: false)",
                "nemotron_3_nano",
            ),
            {
                **HEADS,
                "layers_block_type": ["mamba", "attention"],
                "mamba_num_heads": 8,
                "mamba_head_dim": 16,
                "ssm_state_size": 8,
                "n_groups": 1,
                "chunk_size": 16,
            },
        ),
        Architecture(
            "RecurrentGemma",
            "hybrid",
            "recurrent_gemma",
            ("gemma",),
            {**HEADS, "block_types": ["recurrent", "attention"], "attention_window_size": 8, "lru_width": 64},
        ),
        # no attention at all
        Architecture("Mamba", "recurrent", "mamba", ("zephyr",), {"state_size": 8}),
        Architecture(
            "Mamba-2",
            "recurrent",
            "mamba2",
            ("mistral",),
            {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 16},
        ),
        Architecture("Falcon-Mamba", "recurrent", "falcon_mamba", ("smollm2",), {"state_size": 8}),
        # the language model of one that also sees
        Architecture(
            "Gemma 3 with vision",
            "multimodal",
            "gemma3",
            ("gemma3",),
            {
                "text_config": {**GEMMA, "model_type": "gemma3_text"},
                "vision_config": TINY_VISION,
                "mm_tokens_per_image": 4,
            },
        ),
        Architecture(
            "LLaVA-NeXT",
            "multimodal",
            "llava_next",
            ("llava_next",),
            {
                "text_config": {"model_type": "mistral", "sliding_window": None},
                "vision_config": {**TINY_VISION, "model_type": "clip_vision_model"},
                "image_grid_pinpoints": [[32, 32]],
            },
        ),
        *(
            Architecture(name, kind, model_type, ("zephyr",), values, model_type in DROPPING)
            for name, kind, model_type, values in FURTHER
        ),
    ]
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No remarks of transformers on configurations that are unusual on purpose."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)

"""The planner: published sizes, sums worked by hand, transformers' own count, and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY, run_here, write_config, write_rows
from toy_stage import TOY, ToyConfig

from preference.configuration import DPOConfig, PPOConfig
from sft.configuration import SFTConfig
from tiebreak.config import AdapterConfig, OptimizerConfig
from tiebreak.errors import ConfigError, ModelError
from tiebreak.models.find import find_model
from tiebreak.models.load import load_policy
from tiebreak.models.tokenizers import load_tokenizer
from tiebreak.plan.devices import Device, find_device
from tiebreak.plan.hardware import Hardware, spread_by
from tiebreak.plan.locate import locate_shape
from tiebreak.plan.memory import NF4, Numbers, activation_bytes, cache_bytes, stored_per_token, weight_bytes
from tiebreak.plan.page import gib, warning
from tiebreak.plan.planner import StagePlan, plan_stage, quantized_bytes
from tiebreak.plan.shape import Shape, read_shape, to_shape
from tiebreak.plan.tables import PAGE, consumer_plan, filled, shape_named
from tiebreak.plan.trained import trained_parameters
from tiebreak.plan.work import forward_operations, rows_of, steps_of, training_operations
from tiebreak.stages import STAGES

LLAMA_8B = shape_named("llama-3.1-8b")


# --- counting


@pytest.mark.parametrize(
    ("name", "parameters", "lora"),
    [
        ("llama-3.2-1b", 1_235_814_400, 11_272_192),
        ("mistral-7b", 7_241_732_096, 41_943_040),
        ("llama-3.1-8b", 8_030_261_248, 41_943_040),
        ("qwen2.5-32b", 32_763_876_352, 134_217_728),
        ("llama-3.1-70b", 70_553_706_496, 207_093_760),
    ],
)
def test_published_sizes(name: str, parameters: int, lora: int) -> None:
    """Parameters as the models' cards on the hub count them; LoRA of rank 16 on all linear layers as Unsloth's notebooks
    print it."""
    shape = shape_named(name)
    assert shape.parameters == parameters
    assert trained_parameters(shape, AdapterConfig(r=16)) == lora


MORE_SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "gemma-2-2b": (
        {"model_type": "gemma2", "vocab_size": 256000, "hidden_size": 2304, "num_hidden_layers": 26, "head_dim": 256,
         "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 9216}, 2_614_341_888),
    "mixtral-8x7b": (
        {"model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "num_local_experts": 8,
         "num_experts_per_tok": 2, "tie_word_embeddings": False}, 46_702_792_704),
}  # fmt: skip


@pytest.mark.parametrize("name", MORE_SHAPES)
def test_more_published_sizes(name: str) -> None:
    values, parameters = MORE_SHAPES[name]
    assert to_shape(values, name).parameters == parameters


@pytest.mark.parametrize(
    "kind", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2"]
)
def test_the_arithmetic_counts_what_transformers_builds(kind: str) -> None:
    """Small sizes, all different, on the meta device; LoRA as PEFT itself finds the layers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind, vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        shape = to_shape(config.to_dict(), kind)
        assert shape.parameters == sum(p.numel() for p in model.parameters())
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained_parameters(shape, AdapterConfig(r=4)) == trained


ODD = {
    "tied by default": {"model_type": "smollm3"},
    "heads of a default size": {"model_type": "gemma", "head_dim": None},
    "heads of another default size": {"model_type": "qwen3", "head_dim": None},
    "key heads of a default number": {"model_type": "mistral", "num_attention_heads": 8, "num_key_value_heads": None},
    "a bias that it does not have": {"model_type": "qwen2", "attention_bias": True, "mlp_bias": True},
    "experts of a default number": {"model_type": "qwen3_moe", "moe_intermediate_size": 8, "num_experts_per_tok": 2},
    "blocks without experts": {"model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 32,
                               "num_experts_per_tok": 2, "mlp_only_layers": [0]},
    "a key of other experts": {"model_type": "mixtral", "num_local_experts": 4, "moe_intermediate_size": 32},
    "a vision tower": {"model_type": "gemma3", "mm_tokens_per_image": 4, "text_config": {"model_type": "gemma3_text"},
                       "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                                         "num_attention_heads": 4, "image_size": 28, "patch_size": 14}},
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_odd_configurations_are_counted_as_transformers_builds_them(odd: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "head_dim": 8,
        "num_attention_heads": 6, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    values: dict[str, Any] = {**sizes, **ODD[odd]}
    if "text_config" in values:
        values = {**ODD[odd], "text_config": {**sizes, **values["text_config"]}}
    values = {key: value for key, value in values.items() if value is not None or key.endswith("token_id")}
    kind = values.pop("model_type")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values))
    shape = to_shape({**values, "model_type": kind}, odd)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_any_other_architecture_is_counted_on_the_meta_device() -> None:
    """GPT-2: 124,439,808 as published (Radford et al. 2019 say 117M, without counting all of it)."""
    shape = to_shape({"model_type": "gpt2"}, "gpt2")
    assert shape.parameters == 124_439_808
    assert (shape.hidden, shape.layers) == (768, 12)
    for values, message in (
        (
            {"model_type": "nonsense"},
            "type 'nonsense' from its configuration: .* no causal language model of that type$",
        ),
        (
            {"model_type": "t5"},
            "type 't5' from its configuration: transformers has no causal language model of that type$",
        ),
        ({}, "it names no model_type$"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "bart is an encoder and a decoder"),
    ):
        with pytest.raises(ModelError, match=message):
            to_shape(values, "x")
    with pytest.raises(ModelError, match="x: a plan counts by attention heads, and a model of type 'mamba' has none"):
        to_shape({"model_type": "mamba", "num_hidden_layers": 1, "vocab_size": 9}, "x")


def test_a_configuration_without_a_size_says_which(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    with pytest.raises(ModelError, match="needs 'num_attention_heads'"):
        read_shape(tmp_path)
    for size, shown in (('"big"', "'big'"), ("0", "0"), ("null", "None")):
        (tmp_path / "config.json").write_text(f'{{"model_type": "llama", "hidden_size": {size}}}')
        with pytest.raises(ModelError, match=f"hidden_size must be a positive integer, not {shown}$"):
            read_shape(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match="it must be a JSON object"):
        read_shape(tmp_path)


# --- memory


def small() -> Shape:
    """d = 4, two heads of 2, one key head, f = 6, V = 10, two blocks."""
    values = {"model_type": "llama", "vocab_size": 10, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2}
    return to_shape(
        {**values, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}, "small"
    )


def test_bytes_by_hand() -> None:
    """A block: q and o 4·4, k and v 4·2, gate, up and down 4·6: 120 weights, and two norms of 4."""
    shape = small()
    assert shape.in_linears == 2 * 120
    assert shape.parameters == 10 * 4 + 2 * (120 + 8) + 4
    plain, half = Numbers(size=4, mixed=False, rank=3), Numbers(size=2, mixed=True, rank=3, fused=False)
    assert weight_bytes(shape, plain) == 4 * 300
    assert weight_bytes(shape, Numbers(size=2, mixed=True, quantized=NF4)) == pytest.approx(4 * 60 + 240 * NF4)
    # norms' and projections' inputs 4d; q, k, v, and the output twice 5d; gate and up 2f; rank 3 on 7 layers
    assert stored_per_token(shape, plain) == 4 * (4 * 4 + 5 * 4 + 2 * 6 + 3 * 7)
    assert stored_per_token(shape, half) == 2 * (6 * 4 + 5 * 4 + 4 * 6 + 3 * 7) + 4 * 2 * 4
    # 5 tokens through both blocks, and one block's temporaries: 4f + 2d
    assert activation_bytes(shape, plain, 5) == 5 * (2 * 4 * 69 + 4 * (4 * 6 + 2 * 4))
    # keys and values of 3 rows of 7 columns: 2 blocks × 1 head × 2
    assert cache_bytes(shape, half, 3, 7) == 2 * 2 * 3 * 7 * 2 * 2


def test_nf4_has_the_bits_that_qlora_published() -> None:
    """4 bits and 0.127 for the scales of double quantisation (Dettmers et al. 2023, section 3)."""
    assert pytest.approx(4.127, abs=1e-3) == NF4 * 8


def test_what_is_stored_for_the_backward_pass_is_what_autograd_saves() -> None:
    """Counted by torch's own hooks in a fused block of a small model, per token."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from tiebreak.packed.forward import hidden_states, packs
    from tiebreak.packed.fused import fuse_layers
    from tiebreak.packed.packing import pack_sequences

    def saved(layers: int, tokens: int) -> int:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=80, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, pad_token_id=0,
        )  # fmt: skip
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(LlamaForCausalLM(config), lora)
        fuse_layers(model)
        base = model.get_base_model()
        assert packs(base)
        weights = {p.data_ptr() for p in model.parameters()}
        held: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        row = pack_sequences([[1 + n % 40 for n in range(tokens)]], [[0]], device=torch.device("cpu")).rows[0]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = hidden_states(base, row)
        assert out.requires_grad
        return sum(held.values())

    block = (saved(3, 64) - saved(1, 64)) / 2 / 64
    values = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 1}
    shape = to_shape({"model_type": "llama", **values, "num_attention_heads": 4, "num_key_value_heads": 2}, "x")
    assert stored_per_token(shape, Numbers(size=4, mixed=False, rank=4)) == pytest.approx(block, rel=0.06)


def settings(**changes: Any) -> SFTConfig:
    training = {"max_length_tokens": 512, **changes.pop("training", {})}
    return SFTConfig(output="x", policy="x", demonstrations="none.jsonl", training=training, **changes)


def planned(hardware: Hardware, shape: Shape = LLAMA_8B, **changes: Any) -> StagePlan:
    return plan_stage("sft", settings(**changes), hardware, shape=shape)


def test_sharding_divides_what_its_name_says() -> None:
    gpu = find_device("h100")
    lora = trained_parameters(LLAMA_8B, AdapterConfig())
    plans = {
        name: planned(Hardware(gpu, 8).spread(name)).memory
        for name in ("multi_gpu", "zero1", "zero2", "zero3", "zero3_sharded_load", "zero3_offload", "fsdp2")
    }
    whole = 2 * LLAMA_8B.parameters
    assert plans["multi_gpu"].weights == plans["zero2"].weights == whole
    assert plans["multi_gpu"].optimizer == 8 * lora
    assert plans["zero1"].optimizer == 12 * lora / 8  # DeepSpeed's float32 copy of what trains, shared out too
    assert plans["zero1"].gradients == 4 * lora
    assert plans["zero2"].gradients == plans["fsdp2"].gradients == 4 * lora / 8
    assert plans["zero3_sharded_load"].weights == whole / 8 + 2 * 10**9  # and what DeepSpeed lets live
    assert plans["zero3"].weights == plans["fsdp2"].weights == plans["zero3_sharded_load"].weights
    assert plans["zero3_offload"].optimizer == 0
    for name in ("zero3", "zero3_offload", "fsdp2"):  # whole for the check of one batch: sharded when training begins
        short = planned(Hardware(gpu, 8).spread(name), training={"tokens_per_pass": 64})
        assert (short.phase, short.memory.weights) == ("the check of one batch", whole)


def test_a_model_larger_than_a_gpu_must_be_sharded_as_it_loads() -> None:
    hardware, shape = Hardware(find_device("h100"), 8), shape_named("llama-3.1-70b")
    options: dict[str, Any] = {"training": {"gradient_checkpointing": True}}
    plain = planned(hardware.spread("zero3"), shape, **options)
    assert plain.certain_not_to_fit
    assert plain.nearest == ("--accelerate zero3_sharded_load",)
    assert planned(hardware.spread("zero3_sharded_load"), shape, **options).fits
    full: dict[str, Any] = {**options, "adapter": AdapterConfig(method="full")}
    assert not [
        hint for hint in planned(hardware.spread("zero3"), shape, **full).nearest if "zero3_sharded_load" in hint
    ]
    with pytest.raises(ConfigError, match=r"adapter.method: full trains or reads them .* zero3_init_flag: false"):
        planned(hardware.spread("zero3_sharded_load"), shape, **full)


def test_the_nearest_settings_fit_and_are_in_the_language_of_the_files() -> None:
    plan = planned(Hardware(find_device("4090")), training={"tokens_per_pass": 4096})
    assert not plan.fits
    assert "training.gradient_checkpointing: true" in plan.nearest
    assert "adapter.quantize: nf4" not in plan.nearest  # it does not fit by that alone
    checkpointed = {"tokens_per_pass": 4096, "gradient_checkpointing": True}
    assert planned(Hardware(find_device("4090")), training=checkpointed).fits
    too_large = planned(Hardware(find_device("h100")), shape_named("llama-3.1-70b"))
    assert too_large.certain_not_to_fit
    assert too_large.nearest == ("training.gradient_checkpointing: true and adapter.quantize: nf4",)
    assert warning(too_large, 2**30).startswith("it needs about ")
    assert warning(too_large, 2**30).endswith(f"1.0 GiB are free; what fits: {too_large.nearest[0]}")


def test_the_largest_pass_fits_and_a_larger_one_does_not() -> None:
    card = Hardware(find_device("l40s"))
    largest = planned(card).largest_pass
    assert planned(card, training={"tokens_per_pass": largest}).fits
    assert not planned(card, training={"tokens_per_pass": largest + largest // 32 + 1}).fits
    assert planned(Hardware(Device("h100", "x", 10**9, 1e12))).largest_pass == 0


def test_qlora_of_7b_fits_on_a_consumer_gpu_in_every_stage() -> None:
    plans = {stage: consumer_plan(stage) for stage in ("sft", "reward", "dpo", "ppo")}
    assert all(plan.fits for plan in plans.values())
    # 6.98 billion weights of the blocks at 4.127 bits, embedding and head in float32
    assert plans["sft"].memory.weights == pytest.approx(6_979_321_856 * NF4 + 4 * 262_410_240, rel=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", [{"quantize": "nf4"}, {"quantize": "fp4", "double_quantize": False}, {"quantize": "int8"}]
)
def test_quantised_weights_take_the_bytes_of_the_loaded_model(tiny_model: Path, kind: dict[str, Any]) -> None:
    """The oracle is bitsandbytes' tensors, their scales with them."""
    adapter = AdapterConfig.model_validate({"r": 4, **kind})
    source, training = find_model(str(tiny_model)), OptimizerConfig(precision="bfloat16")
    model = load_policy(source, training, adapter, load_tokenizer(source)).get_base_model()
    found = 0
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            found += parameter.numel() * parameter.element_size()
            state: Any = getattr(parameter, "quant_state", None)
            nested = [state.state2.absmax] if state is not None and state.nested else []
            found += sum(t.numel() * t.element_size() for t in ([state.absmax, *nested] if state is not None else []))
    numbers = Numbers(size=2, mixed=True, quantized=quantized_bytes(adapter))
    assert weight_bytes(locate_shape(str(tiny_model)), numbers) == pytest.approx(found, rel=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layers", [None, 1])
def test_whole_weights_train_in_float32(tiny_model: Path, layers: int | None) -> None:
    """The oracle is the loaded model, in a stage whose precision is bfloat16; DeepSpeed's engine holds it in bfloat16."""
    adapter = AdapterConfig(method="full", trainable_layers=layers)
    config = settings(adapter=adapter, training={"precision": "bfloat16"})
    source, shape = find_model(str(tiny_model)), read_shape(tiny_model)
    model = load_policy(source, config.training, adapter, load_tokenizer(source))
    held = sum(each.numel() * each.element_size() for each in model.parameters())
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    memory = plan_stage("sft", config, Hardware(find_device("cpu")), shape=shape).memory
    assert (memory.weights, memory.gradients, memory.optimizer) == (held, 4 * trained, 8 * trained)
    sharded = plan_stage("sft", config, Hardware(find_device("cpu"), 2).spread("zero2"), shape=shape).memory
    assert (sharded.weights, sharded.gradients, sharded.optimizer) == (held / 2, trained, 12 * trained / 2)


def test_a_reward_model_on_int8_weights_is_a_second_model() -> None:
    values = {"output": "x", "policy": "x", "prompts": "p.jsonl", "training": {"tokens_per_pass": 64}}
    shape, cpu = small(), Hardware(find_device("cpu"))
    for quantize, models in (("nf4", 1), ("int8", 2)):
        scored = PPOConfig.model_validate({**values, "reward_model": "r", "adapter": {"quantize": quantize}})
        one = weight_bytes(shape, Numbers(size=4, mixed=False, quantized=quantized_bytes(scored.adapter)))
        memory = plan_stage("ppo", scored, cpu, shape=shape).memory
        lora = 4 * (16 * 2 * sum(layer.inputs + layer.outputs for layer in shape.linears) + shape.hidden)
        assert memory.weights == one
        assert memory.reward_models == (models - 1) * (one + lora)


def test_ppo_counts_its_four_roles_and_gathers_sharded_weights_to_sample() -> None:
    values = {"output": "x", "policy": "x", "reward_model": "r", "prompts": "p.jsonl", "episodes_per_rollout": 512}
    values["training"] = {"tokens_per_pass": 512}
    config = PPOConfig(**values)
    plan = plan_stage("ppo", config, Hardware(find_device("h100"), 8).spread("zero3"), shape=LLAMA_8B)
    lora, head = trained_parameters(LLAMA_8B, AdapterConfig()), LLAMA_8B.hidden
    assert plan.memory.adapters == pytest.approx(4 * (3 * lora + head) / 8)  # policy, reference, reward model
    assert plan.phase == "sampling"
    assert plan.memory.weights == 2 * LLAMA_8B.parameters
    answer = config.sampling.max_new_tokens
    columns = config.training.max_length_tokens - answer + answer
    assert plan.memory.kv_cache == 64 * columns * 2 * 32 * 8 * 128 * 2
    on_cpu = plan_stage("ppo", config, Hardware(find_device("cpu")), shape=small())
    assert on_cpu.setting.numbers.size == 4


def test_whole_weights_take_a_second_model_for_what_would_be_an_adapter() -> None:
    full = {"adapter": {"method": "full"}, "training": {"tokens_per_pass": 64, "precision": "float32"}}
    shape, cpu, one = small(), Hardware(find_device("cpu")), 4 * small().parameters
    shared = {"output": "x", "policy": "x", **full}
    pairs = {"preferences": "none.jsonl", **shared}
    for values, models in (({}, 2), ({"algorithm": "kto"}, 2), ({"algorithm": "orpo"}, 1)):
        plan = plan_stage("dpo", DPOConfig.model_validate({**pairs, **values}), cpu, shape=shape)
        assert plan.memory.weights == models * one  # the policy, and its reference
    scored = PPOConfig.model_validate({**shared, "reward_model": "r", "prompts": "p.jsonl"})
    memory = plan_stage("ppo", scored, cpu, shape=shape).memory
    assert (memory.weights, memory.reward_models) == (2 * one, one)  # policy and reference; the embedding is the head
    assert trained_parameters(shape, AdapterConfig(method="full", trainable_layers=1)) == shape.block
    assert trained_parameters(shape, AdapterConfig(method="prompt", virtual_tokens=7)) == 7 * shape.hidden


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "some layers": {"r": 4, "target_modules": ["q_proj", "down_proj"]},
    "a pattern": {"r": 4, "target_modules": r".*layers\.0\..*_proj"},
    "dora": {"r": 4, "dora": True},
    "pissa": {"r": 4, "init": "pissa"},
    "ranks": {"r": 4, "rank_pattern": {"q_proj": 7}},
    "whole norms": {"r": 4, "modules_to_save": ["input_layernorm"]},
    "ia3": {"method": "ia3"},
    "loha": {"method": "loha", "r": 4},
    "lokr": {"method": "lokr", "r": 4},
    "oft": {"method": "oft"},
    "boft": {"method": "boft"},
    "vera": {"method": "vera", "shared_rank": 16},
    "norms": {"method": "norms"},
    "prompt": {"method": "prompt", "virtual_tokens": 3},
    "ptuning": {"method": "ptuning", "virtual_tokens": 3},
    "prefix": {"method": "prefix", "virtual_tokens": 3},
    "full": {"method": "full"},
    "last": {"method": "full", "trainable_layers": 1},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_what_trains_is_counted_as_the_loaded_model_has_it(tiny_model: Path, name: str, stage: str) -> None:
    """The oracle is the model that a stage trains."""
    from transformers import AutoTokenizer

    from tiebreak.models.find import find_model
    from tiebreak.models.load import load_policy, load_reward_model

    adapter = AdapterConfig.model_validate(METHODS[name])
    if stage == "reward" and adapter.modules_to_save:
        pytest.skip("refused")
    load = load_reward_model if stage == "reward" else load_policy
    training = SFTConfig(output="x", policy="x", demonstrations="x").training
    model = load(find_model(str(tiny_model)), training, adapter, AutoTokenizer.from_pretrained(tiny_model))
    wanted = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert trained_parameters(read_shape(tiny_model), adapter, scores=stage == "reward") == wanted


@pytest.mark.filterwarnings("ignore")
def test_experts_are_counted_as_peft_adapts_them() -> None:
    """PEFT puts LoRA on linear layers, and transformers' Mixtral holds its experts in one tensor."""
    from transformers import AutoModelForCausalLM, MixtralConfig

    from tiebreak.models.adapters.adapter import Adapter

    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=4)
    shape = to_shape(config.to_dict(), "x")
    model = Adapter.build(AutoModelForCausalLM.from_config(config), AdapterConfig(r=4), "CAUSAL_LM").model
    wanted = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert trained_parameters(shape, AdapterConfig(r=4)) == wanted


def test_a_plan_counts_the_method_and_the_optimizer() -> None:
    card, shape = Hardware(find_device("h100")), shape_named("llama-3.2-1b")

    def plan(method: dict[str, Any], optimizer: str = "adamw") -> StagePlan:
        training = {"tokens_per_pass": 512, "optimizer": optimizer}
        config = SFTConfig.model_validate(
            {"output": "x", "policy": "x", "demonstrations": "x.jsonl", "adapter": method, "training": training}
        )
        return plan_stage("sft", config, card, shape=shape)

    few = plan({"method": "ia3"})
    # a number for each output of q, k, v, o, gate and up, and for each input of down
    assert few.trained == 16 * (2048 + 2 * 512 + 2048 + 8192 + 8192 + 8192)
    assert (few.memory.optimizer, few.memory.gradients) == (8 * few.trained, 4 * few.trained)
    whole, in_8_bits = plan({"method": "full"}), plan({"method": "full"}, "adamw_8bit")
    assert whole.memory.optimizer - in_8_bits.memory.optimizer == (8 - 2 * (1 + 1 / 64)) * shape.parameters
    small_card = Hardware(Device("l40s", "x", 3 * 10**9, 1e12))
    config = SFTConfig.model_validate(
        {"output": "x", "policy": "x", "demonstrations": "x.jsonl", "adapter": {"method": "loha"}}
    )
    hints = " ".join(plan_stage("sft", config, small_card, shape=shape).nearest)
    assert "nf4" not in hints  # on which PEFT cannot train it


def test_a_new_stage_is_planned_by_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that trains on preferences without a reference, as ORPO's does."""
    monkeypatch.setitem(STAGES, TOY.name, TOY)
    keys = {"output": "x", "policy": "x", "preferences": "", "training": {"per_device_batch_size": 8}}
    given: dict[str, Any] = {"shape": shape_named("llama-3.2-1b"), "row_count": 1000, "row_tokens": 600.0}
    toy, orpo, dpo = (
        plan_stage(stage, config, Hardware(find_device("h100")), **given)
        for stage, config in (
            ("toy", ToyConfig.model_validate(keys)),
            ("dpo", DPOConfig.model_validate({**keys, "preferences": "x", "algorithm": "orpo"})),
            ("dpo", DPOConfig.model_validate({**keys, "preferences": "x"})),
        )
    )
    assert (toy.memory, toy.work, toy.trained) == (orpo.memory, orpo.work, orpo.trained)
    assert toy.work.operations < dpo.work.operations


# --- work


def test_operations_by_hand() -> None:
    """Two per weight and token; a frozen base has no products for the gradients of its weights: 4 in place of 6."""
    shape = small()
    forward = 10 * (2 * 240 + 4 * 2 * 2 * 2 * 8 / 2)  # context 8: attention over 4 tokens on average
    assert forward_operations(shape, 10, 8) == forward
    assert training_operations(shape, 10, 8, frozen=True, checkpointing=False) == 2 * forward
    assert training_operations(shape, 10, 8, frozen=False, checkpointing=False) == 3 * forward
    assert training_operations(shape, 10, 8, frozen=True, checkpointing=True) == 3 * forward
    mixture = to_shape(MORE_SHAPES["mixtral-8x7b"][0], "x")
    assert mixture.active_in_linears / 1e9 == pytest.approx(12.6, abs=0.1)  # 12.9 billion active, with the embeddings


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "most", "steps"),
    [
        (100, 8, 1.0, None, 13),
        (100, 8, 2.0, None, 26),
        (100, 8, 1.0, 5, 5),
        (96, 8, 0.5, None, 6),
        (3, 8, 0.1, None, 1),
    ],
)
def test_steps(rows: int, batch: int, epochs: float, most: int | None, steps: int) -> None:
    assert steps_of(rows, batch, epochs, most) == steps


def test_rows_are_counted_where_that_is_cheap(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "d.jsonl", [{"prompt": "x" * 100, "completion": "y" * 300, "id": "z" * 999}] * 7)
    found = rows_of(str(file), 512, None, None)
    assert (found.count, found.tokens) == (7, 100)  # 400 characters, 4 a token
    assert rows_of(str(file), 64, None, None).tokens == 64
    assert rows_of("hub:x@train", 512, None, None) == rows_of("nowhere", 512, None, None)
    assert rows_of(str(file), 512, 5, 9.0).count == 5
    named = [rows_of(str(file), 512, None, None), rows_of("nowhere", 512, 5, None), rows_of("nowhere", 512, None, None)]
    assert [one.is_assumed for one in named] == [False, False, True]


def test_time_and_price() -> None:
    hardware = Hardware(find_device("h100"), 4, "zero2")
    plan = plan_stage("sft", settings(), hardware, shape=LLAMA_8B, price=2.5, share=0.5, row_count=100, row_tokens=256)
    assert plan.hours == pytest.approx(plan.work.operations / (4 * 989e12 * 0.5) / 3600)
    assert plan.cost == pytest.approx(plan.hours * 2.5 * 4)
    assert plan.work.tokens == 100 * 256


# --- devices and models


def test_a_device_that_nobody_knows_gives_the_nearest() -> None:
    for name, near in (("h1000", "h100"), ("A100", "a100-80"), ("rtx4090", "4090"), ("nvidia-h200", "h200")):
        with pytest.raises(ConfigError, match="no such device") as refused:
            find_device(name)
        assert f"did you mean {near}" in str(refused.value) or f" or {near}" in str(refused.value)
    with pytest.raises(ConfigError, match=r"there are h100, h200, a100-80, l40s, 4090, cpu"):
        find_device("zzz")
    assert find_device("cpu").memory > 2**28


def test_accelerate_files_say_how_it_is_spread() -> None:
    folder, gpu = REPOSITORY / "configs/accelerate", find_device("h100")
    assert spread_by(gpu, folder / "zero3_offload.yaml", 4) == Hardware(gpu, 4, "zero3", True, True, "zero3_offload")
    assert spread_by(gpu, folder / "fsdp2.yaml", None).shards_weights
    assert not spread_by(gpu, folder / "zero3.yaml", None).loads_in_shards
    for name in ("zero3_sharded_load", "zero2"):
        assert spread_by(gpu, folder / f"{name}.yaml", None) == Hardware(gpu, 8).spread(name)
    assert spread_by(gpu, None, 2).distributed == "ddp"
    with pytest.raises(ConfigError, match="is for CPUs"):
        spread_by(gpu, folder / "cpu_zero2.yaml", None)


def test_a_model_is_found_below_runs_and_adapters(tmp_path: Path, tiny_model: Path) -> None:
    final = tmp_path / "sft" / "final"
    final.mkdir(parents=True)
    (final / "model.json").write_text(json.dumps({"base": str(tiny_model)}))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "sft")}))
    assert locate_shape(str(adapter)).hidden == locate_shape(str(tiny_model / "config.json")).hidden == 64
    for name in ("runs/none", str(tmp_path / "none"), "no-such-model-anywhere"):
        with pytest.raises(ModelError, match="no such model: "):
            locate_shape(name)
    with pytest.raises(ModelError, match="neither a model"):
        locate_shape(str(tmp_path))


# --- the command


def test_the_command_answers_without_torch(tmp_path: Path, tiny_model: Path) -> None:
    """For a stage and for a recipe whose policies do not exist yet; with flags of the stage."""
    demonstrations = write_rows(tmp_path / "d.jsonl", [{"prompt": "Why?", "completion": "Because."}] * 5)
    sft = write_config(tmp_path / "sft.yaml", output=tmp_path / "sft", policy=tiny_model, demonstrations=demonstrations)
    dpo = write_config(tmp_path / "dpo.yaml", output=tmp_path / "dpo", policy=tmp_path / "sft", preferences="p.jsonl")
    recipe = write_config(
        tmp_path / "all.yaml",
        name="r",
        stages=[{"stage": "sft", "config": sft}, {"stage": "dpo", "config": dpo, "accelerate": "zero2"}],
    )
    code = (
        "import sys, contextlib\nfrom tiebreak.command.cli import main\n"
        f"main(['plan', '--config', {str(sft)!r}, '--training.tokens-per-pass', '99', '--price', '2/h'])\n"
        f"main(['plan', '--config', {str(recipe)!r}, '--gpu', 'h100', '--num-gpus', '4'])\n"
        f"main(['plan', '--config', {str(sft)!r}, '--model', 'configs/shapes/llama-3.1-70b.json', '--gpu', '4090'])\n"
        "print('HEAVY', [m for m in ('torch', 'transformers', 'trl', 'peft') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    page = done.stdout
    assert page.splitlines()[-1] == "HEAVY []"
    assert "training.tokens_per_pass: 99; the largest that fits: " in page
    assert "5 of " in page
    assert "$" in page
    assert "  sft " in page
    assert "  dpo " in page
    assert "does not fit" in page
    assert "--accelerate zero3_sharded_load on " in page
    assert "The number of rows of dpo is assumed, because their data is not there yet: 10,000;" in page
    assert "none of this has been run on a GPU" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "tiebreak plan needs --config FILE"),
        (("--config", "configs/quickstart/sft.yaml", "--gpu", "h10"), "did you mean h100"),
        (("--config", "configs/quickstart/prepare.yaml"), "'prepare' trains nothing: plan sft, reward, dpo, ppo"),
        (("--config", "configs/quickstart/dpo.yaml", "--model", "none/at/all"), "no such model: none/at/all"),
        (("--config", "configs/quickstart/dpo.yaml", "--price", "cheap"), "must be dollars an hour, such as 2.5/h"),
        (("--config", "configs/quickstart/dpo.yaml", "--accelerate", "zero9"), "no accelerate configuration 'zero9'"),
        (("--config", "configs/quickstart/none.yaml"), "no such configuration file"),
    ],
)
def test_bad_input_of_the_command(words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    status, printed = run_here("plan", *words)
    assert status in (1, 2)
    assert message in printed


def test_sizes_in_words() -> None:
    assert [gib(size) for size in (2**30 * 1.25, 2**20 * 140, 2**40)] == ["1.2 GiB", "140 MiB", "1,024.0 GiB"]


def test_the_tables_of_the_documentation_are_current() -> None:
    text = (REPOSITORY / PAGE).read_text(encoding="utf-8")
    assert filled(text) == text, "run 'python -m tiebreak.plan.tables' and commit docs/scaling.md"


def test_measured_peaks_are_within_15_percent() -> None:
    """benchmarks/plan.json, with today's formulas: what was measured there stays a test of them."""
    measured = json.loads((REPOSITORY / "benchmarks" / "plan.json").read_text())
    assert {(one["model"], one["stage"]) for one in measured} <= {
        (model, stage) for model in ("135m", "50m") for stage in ("sft", "reward", "dpo", "ppo")
    }
    assert [one for one in measured if abs(one["planned"] / one["measured"] - 1) > 0.15] == []

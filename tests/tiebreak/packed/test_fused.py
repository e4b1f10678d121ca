"""Norms, gated MLPs and LoRA layers as one operation each: the modules' own values and gradients, and less to keep."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.autograd import gradcheck
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, PreTrainedConfig, Qwen3Config

from tiebreak.models.probe import probe_values
from tiebreak.packed.forward import hidden_states, packs
from tiebreak.packed.fused import _GatedMlp, _RmsNorm, fuse_layers, own_forwards
from tiebreak.packed.lora import Weights
from tiebreak.packed.packing import pack_sequences

SIZES = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "llama with biases": lambda: LlamaConfig(**SIZES, mlp_bias=True, attention_bias=True),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "gemma": lambda: GemmaConfig(**SIZES),
}
IDS = torch.tensor([[5, 6, 7, 8, 9, 3], [4, 4, 2, 1, 30, 12]])


def build(architecture: str, targets: str | list[str] = "all-linear", dropout: float = 0.0) -> PeftModel:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]())
    for name, parameter in base.named_parameters():  # biases start at 0, and norms at 1
        nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=5, target_modules=targets, lora_dropout=dropout))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def values_and_gradients(model: PeftModel) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(input_ids=IDS).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_a_norm_by_hand() -> None:
    """(3, 4) has a root mean square of sqrt(12.5); scaled by the weight (1, 2)."""
    normed = _RmsNorm.apply(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(normed, torch.tensor([[3.0, 8.0]]) / math.sqrt(12.5))


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    x = random(generator, 2, 3, 5).requires_grad_()
    assert gradcheck(lambda x: _RmsNorm.apply(x, random(torch.Generator().manual_seed(1), 5), 1e-3), (x,))
    layers = [
        tuple(random(generator, *shape) for shape in ((out, size), (out,), (2, size), (out, 2)))
        for out, size in ((7, 5), (7, 5), (5, 7))
    ]
    adapters = [adapter.requires_grad_() for _, _, *pair in layers for adapter in pair]

    def mlp(x: Tensor, *adapters: Tensor) -> Tensor:
        pairs = zip(adapters[::2], adapters[1::2], strict=True)
        given = [Weights(w, bias, a, b, 0.5) for (w, bias, *_), (a, b) in zip(layers, pairs, strict=True)]
        made: Tensor = _GatedMlp.apply(x, *(each for weights in given for each in weights))
        return made

    assert gradcheck(mlp, (x, *adapters))


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"], ["v_proj"]])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_and_gradients_are_the_modules_own(architecture: str, targets: str | list[str]) -> None:
    plain = build(architecture, targets)
    fused = copy.deepcopy(plain)
    counts = fuse_layers(fused)
    # gemma scales by 1 + weight and gates by GELU: neither is what is fused
    own = {"llama": (5, 2), "llama with biases": (5, 2), "qwen3": (9, 2), "gemma": (0, 0)}[architecture]
    assert (counts["norms"], counts["MLPs"]) == own
    (logits, gradients), (logits_there, gradients_there) = values_and_gradients(plain), values_and_gradients(fused)
    torch.testing.assert_close(logits_there, logits)
    assert gradients.keys() == gradients_there.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_there[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_what_is_not_plain_goes_to_the_modules_own_forward() -> None:
    plain = build("llama", dropout=0.5)
    fused = copy.deepcopy(plain)
    assert fuse_layers(fused)["MLPs"] == 0  # as it trains, its adapters drop
    plain, fused = plain.eval(), fused.eval()
    assert fuse_layers(fused)["MLPs"] == 2
    with plain.disable_adapter(), fused.disable_adapter():
        torch.testing.assert_close(values_of(fused), values_of(plain))
    torch.manual_seed(1)
    dropped = values_of(plain.train())
    torch.manual_seed(1)
    torch.testing.assert_close(values_of(fused.train()), dropped)
    for model in (plain, fused):  # a base that trains
        model.eval()
        model.get_base_model().requires_grad_(True)
    (_, gradients), (_, gradients_there) = values_and_gradients(plain), values_and_gradients(fused)
    assert len(gradients) == len(gradients_there) == len(list(plain.parameters()))
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_there[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_a_fused_model_can_compute_as_it_was() -> None:
    plain = build("llama")
    fused = copy.deepcopy(plain)
    fuse_layers(fused)
    assert not torch.equal(values_of(fused), values_of(plain))
    with own_forwards(fused):
        assert torch.equal(values_of(fused), values_of(plain))
    assert not torch.equal(values_of(fused), values_of(plain))
    assert probe_values(fused, IDS[0].tolist()) == probe_values(plain, IDS[0].tolist())  # what is saved is probed so


def values_of(model: PeftModel) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS).logits
    return logits


def test_less_is_kept_for_the_backward_pass() -> None:
    """Of an MLP's tensors: x, those after gate and up, and three of rank r; PEFT keeps four of the inner size."""
    kept: dict[str, int] = {}
    for how in ("plain", "fused"):
        model = build("llama")
        if how == "fused":
            fuse_layers(model)
        mlp = model.get_base_model().model.layers[0].mlp
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes, weights: set[int] = weights) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y = mlp(torch.randn(10, 16, requires_grad=True))
        kept[how] = sum(sizes.values())
        del y
    assert kept["fused"] == 10 * (16 + 2 * 40 + 3 * 3)
    assert kept["plain"] == 10 * (16 + 4 * 40 + 3 * 3)


def test_a_long_tree_attends_in_two_parts_as_a_short_one_does_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama").get_base_model()
    assert packs(model)
    sequences = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 3, 2], [5, 6, 1], [9, 9]]
    found = []
    for limit in (384, 0):
        monkeypatch.setattr("tiebreak.packed.packing.WHOLE_TOKENS", limit)
        row = pack_sequences(sequences, [[0, 1], [2], [3]]).rows[0]
        assert (row.masks(None)[0].whole is None) == (limit == 0)
        found.append(hidden_states(model, row))
    torch.testing.assert_close(found[0], found[1])

"""oneDNN's products are torch's to rounding, in each layer that they are used in, and are used only where asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from support import run_here
from test_fused import build, values_and_gradients
from torch import nn

from preference.dpo import CheckedDPOTrainer, reference_facts
from tiebreak import upstream
from tiebreak.config import LoadingConfig, OptimizerConfig
from tiebreak.errors import MachineError
from tiebreak.packed import products
from tiebreak.packed.fused import fuse_layers, own_forwards
from tiebreak.packed.lm_head import token_logps
from tiebreak.packed.products import add_product, affine, product, tall_product, use_products
from tiebreak.runs.run import read_manifest, read_metrics

pytestmark = pytest.mark.skipif(not upstream.has_onednn(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def by_onednn() -> Iterator[None]:
    use_products("onednn")
    yield
    use_products("torch")


def test_a_product_is_that_of_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, low, total = (
        torch.randn(shape, generator=generator) for shape in ((37, 24), (50, 24), (50,), (37, 3), (37, 50))
    )
    wide = x.double() @ weight.T.double()
    for found, wanted in (
        (affine(x, weight, bias), wide + bias),
        (affine(x, weight, None), wide),
        (product(x, weight.T), wide),
        (product(x.T, low), x.T.double() @ low.double()),
        (tall_product(x, low), x.T.double() @ low.double()),
        (add_product(total.clone(), x, weight.T), total + wide),
    ):
        torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-5, atol=1e-5)


def test_other_numbers_go_to_torch() -> None:
    with mock.patch.object(products, "onednn_linear", side_effect=AssertionError("called")):
        for dtype in (torch.float64, torch.bfloat16):
            assert product(torch.ones(2, 3, dtype=dtype), torch.ones(3, 2, dtype=dtype)).dtype == dtype
        use_products("torch")
        assert product(torch.ones(2, 3), torch.ones(3, 2)).eq(3).all()


@pytest.mark.parametrize("architecture", ["llama", "llama with biases"])
def test_layers_have_the_values_and_gradients_of_peft(architecture: str) -> None:
    model = build(architecture)
    logits, gradients = values_and_gradients(model)
    fuse_layers(model)
    with mock.patch.object(products, "onednn_linear", wraps=upstream.onednn_linear) as multiply:
        found, of_found = values_and_gradients(model)
    assert multiply.call_count >= 2 * 7 * 2  # W and A of 7 layers in 2 blocks, forwards
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    assert of_found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(of_found[name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def test_layers_that_train_or_have_no_adapter_are_computed_by_it_too() -> None:
    """A whole model: every linear layer's value, and the gradients of its weights, biases and input."""
    model = build("llama with biases").unload().requires_grad_(True)
    logits, gradients = values_and_gradients(model)
    fuse_layers(model)
    linears = sum(isinstance(module, nn.Linear) for module in model.modules())
    with mock.patch.object(products, "onednn_linear", wraps=upstream.onednn_linear) as multiply:
        found, of_found = values_and_gradients(model)
    assert multiply.call_count == 3 * linears  # forwards, and backwards by input and by weight
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    assert of_found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(of_found[name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))
    with own_forwards(model), mock.patch.object(products, "onednn_linear", side_effect=AssertionError("called")):
        torch.testing.assert_close(values_and_gradients(model)[0], logits, rtol=0, atol=0)


def test_the_head_has_the_values_and_gradient_of_a_softmax() -> None:
    torch.manual_seed(0)
    head = nn.Linear(16, 31, bias=False).requires_grad_(False)
    hidden, targets = torch.randn(7, 16, requires_grad=True), torch.arange(7)
    wanted = head(hidden).log_softmax(-1)[torch.arange(7), targets]
    found = token_logps(hidden, head, targets).logps
    torch.testing.assert_close(found, wanted)
    ours, theirs = (torch.autograd.grad(values.sum(), hidden)[0] for values in (found, wanted))
    torch.testing.assert_close(ours, theirs)


def test_a_stage_trains_with_them_and_says_so(finished_recipe: Path, tmp_path: Path) -> None:
    """SFT of the recipe again: the losses are its own to rounding, and every one is computed by oneDNN."""
    before = finished_recipe / "runs" / "sft"
    words = ["sft", "--config", before / "config.resolved.yaml", "--output", tmp_path / "sft", "--merge", "false"]
    with mock.patch.object(products, "onednn_linear", wraps=upstream.onednn_linear) as multiply:
        status, remarks = run_here(*words, "--training.matrix-products", "onednn")
    assert status == 0, remarks
    assert multiply.call_count > 0
    wanted, found = ([row["loss"] for row in read_metrics(run) if "loss" in row] for run in (before, tmp_path / "sft"))
    assert found == pytest.approx(wanted, abs=1e-4)
    assert read_manifest(tmp_path / "sft")["probe_difference"] <= 1e-5


def test_sampling_draws_the_same_answers_with_them(finished_recipe: Path, tmp_path: Path) -> None:
    """The policy that samples has no adapter beside its weights: its linear layers are computed by oneDNN."""
    before = finished_recipe / "runs" / "sample"
    words = ["sample", "--config", before / "config.resolved.yaml", "--output", tmp_path / "sample"]
    with mock.patch.object(products, "onednn_linear", wraps=upstream.onednn_linear) as multiply:
        status, remarks = run_here(*words, "--training.matrix-products", "onednn")
    assert status == 0, remarks
    assert multiply.call_count > 0
    texts = [(run / "final" / "pairs.jsonl").read_text() for run in (before, tmp_path / "sample")]
    drawn = [
        [one["text"] for row in map(json.loads, text.splitlines()) for one in row["completions"]] for text in texts
    ]
    assert drawn[0] == drawn[1]


def test_the_key_is_written_only_where_it_is_set_and_changes_the_cache_of_references() -> None:
    assert LoadingConfig().model_dump().keys() == {"precision", "attention", "trust_remote_code"}
    assert "matrix_products" not in OptimizerConfig().model_dump()
    assert OptimizerConfig(matrix_products="onednn").model_dump()["matrix_products"] == "onednn"
    trainer = mock.MagicMock(spec=CheckedDPOTrainer)
    trainer.model = nn.Linear(1, 1)
    trainer.args = mock.MagicMock()
    with mock.patch("preference.dpo.attention_of", return_value="sdpa"):
        source = mock.MagicMock(folder=None)
        set_, unset = reference_facts(trainer, source), (use_products("torch"), reference_facts(trainer, source))[1]
    assert set_ == {**unset, "products": "onednn"}


def test_a_torch_without_onednn_is_refused() -> None:
    with (
        mock.patch.object(products, "has_onednn", return_value=False),
        pytest.raises(MachineError, match="this torch was built without it; use matrix_products: torch"),
    ):
        use_products("onednn")

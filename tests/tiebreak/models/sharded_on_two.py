"""A policy sharded as it loads, on each of two processes, against the whole one:  … sharded_on_two.py MODEL FOLDER"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from tiebreak.config import AdapterConfig, OptimizerConfig
from tiebreak.errors import HandoffError, ModelError
from tiebreak.models import sharded
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.adapters.stacked import stack
from tiebreak.models.find import find_model
from tiebreak.models.load import load_base, load_policy
from tiebreak.models.probe import probe_values, verify_probe, write_probe
from tiebreak.models.tokenizers import load_tokenizer
from tiebreak.packed.proof import gradients_of

IDS = [5, 70, 900, 12, 12, 4000, 31]
LORA = AdapterConfig(r=4, alpha=8)
TRAINING = OptimizerConfig(precision="float32")


def policy(model: str, *, shards: bool) -> Any:
    """With an adapter that changes answers; the whole one needs no other process."""
    source = find_model(model)
    with mock.patch.dict(os.environ, ACCELERATE_DEEPSPEED_ZERO3_INIT=str(shards).lower()):
        loaded = load_policy(source, TRAINING, LORA, load_tokenizer(source))
    for number, parameter in enumerate(Adapter(loaded).parameters().values()):
        steps = torch.arange(parameter.numel(), dtype=torch.float32).view_as(parameter)
        parameter.data = 0.05 * torch.sin(steps + number)
    return loaded


def results(model: Any) -> tuple[list[float], dict[str, Any]]:
    """Answers, and the gradient of their sum."""
    ids = torch.tensor([IDS])
    return probe_values(model, IDS), gradients_of(model(input_ids=ids, labels=ids, use_cache=False).loss, model)


@contextmanager
def noting_whole_weights(base: nn.Module) -> Iterator[list[set[str]]]:
    """The names of the weights that are whole at each module's call, and at each part of the gradient."""
    noted: list[set[str]] = []
    unpack = sharded._unpack

    def note(*_: Any) -> None:
        noted.append({name for name, weight in base.named_parameters() if hasattr(weight, "ds_id") and weight.numel()})

    def noting(saved: Any) -> Any:
        note()
        return unpack(saved)

    handles = [module.register_forward_pre_hook(note) for module in base.modules()]
    with mock.patch.object(sharded, "_unpack", noting):
        yield noted
    for handle in handles:
        handle.remove()


def weights_of(base: nn.Module) -> list[Any]:
    return [weight for name, weight in base.named_parameters() if "lora_" not in name]


def compare_with_the_whole_one(model: str) -> tuple[Any, list[float]]:
    """Answers and gradients are equal, though one module's weights are whole at a time."""
    plain = policy(model, shards=False)
    answers, gradients = results(plain)
    loaded = policy(model, shards=True)
    base, weights = loaded.get_base_model(), weights_of(loaded.get_base_model())
    shapes = [weight.shape for weight in weights_of(plain.get_base_model())]
    assert [weight.ds_shape for weight in weights] == shapes
    assert [weight.numel() for weight in weights] == [0] * len(shapes)
    assert [weight.ds_tensor.numel() for weight in weights] == [math.ceil(math.prod(shape) / 2) for shape in shapes]
    with noting_whole_weights(base) as noted:
        sharded_answers, sharded_gradients = results(loaded)
    modules = [{f"{n}.{p}" for p, _ in m.named_parameters(recurse=False)} for n, m in base.named_modules()]
    assert max(map(len, noted)) == 1
    assert all(any(names <= own for own in modules) for names in noted)
    assert sharded_answers == pytest.approx(answers, abs=1e-6)
    assert sharded_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(sharded_gradients[name], gradient, rtol=1e-4, atol=1e-7)
    assert [weight.numel() for weight in weights] == [0] * len(shapes)
    return loaded, answers


def refuse_what_differs(loaded: Any, answers: Sequence[float], folder: Path) -> None:
    """The checks of an adapter see a change."""
    folder.mkdir()
    write_probe(folder, IDS, list(answers), loaded)
    assert verify_probe(loaded, folder) < 1e-5
    changed = next(iter(Adapter(loaded).parameters().values()))
    changed.data *= 3
    with pytest.raises(HandoffError, match="outputs differ from those before it was saved"):
        verify_probe(loaded, folder)
    Adapter(loaded).copy("reference")
    with (
        mock.patch.object(Adapter, "copy_to", lambda self, name: Adapter(self.model, name)),
        pytest.raises(HandoffError, match="the copy 'empty' of the adapter 'default' gives other answers"),
    ):
        Adapter(loaded).copy("empty")


def stack_another(model: str) -> None:
    """`adapter.start: stack`, which compares the answers itself."""
    loaded = stack(policy(model, shards=True), AdapterConfig(r=2, alpha=4, start="stack"), "CAUSAL_LM", "policy")
    assert loaded.peft_config["default"].r == 6


def refuse_a_module_that_reads_anothers_weights(model: str) -> None:
    base = load_base(find_model(model), TRAINING)
    norm, embedding = base.model.norm, base.model.embed_tokens
    norm.forward = lambda hidden: hidden * (1 + embedding.weight.sum())
    with pytest.raises(ModelError, match=r"LlamaForCausalLM cannot be sharded as it loads .* its answers differ by"):
        sharded.shard(base)


def end_with_the_engine(loaded: Any) -> None:
    """Without the hooks a module has no weights; what the engine shards itself is in its format."""
    sharded.hand_to_engine(loaded, torch.bfloat16)
    with pytest.raises(RuntimeError):
        probe_values(loaded, IDS)
    assert {parameter.dtype for parameter in Adapter(loaded).parameters().values()} == {torch.bfloat16}
    assert {weight.ds_tensor.dtype for weight in weights_of(loaded) if hasattr(weight, "ds_id")} == {torch.float32}
    sharded.hand_to_engine(loaded, None)


def main(model: str, folder: str) -> None:
    """All of it, on each process."""
    loaded, answers = compare_with_the_whole_one(model)
    refuse_what_differs(loaded, answers, Path(folder) / os.environ["RANK"])
    stack_another(model)
    refuse_a_module_that_reads_anothers_weights(model)
    end_with_the_engine(loaded)


if __name__ == "__main__":
    main(*sys.argv[1:])

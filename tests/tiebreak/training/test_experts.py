"""Mixtures of experts: the loss that keeps experts busy is of the whole batch, whatever the passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import SIZES, build
from test_passes import dpo_trainer, random_pairs, sft_trainer
from transformers import AutoConfig

from tiebreak.packed.parts import whole_model
from tiebreak.packed.proof import ForwardPath

pytestmark = pytest.mark.filterwarnings(
    "ignore:The following (rank|alpha)_pattern keys did not match"
)  # PEFT, of fused experts
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2, "moe_intermediate_size": 16}
TRAINERS = {"sft": sft_trainer, "dpo": dpo_trainer}
COEFFICIENT = 0.5


def mixture(model_type: str = "mixtral", **settings: Any) -> Any:
    values = {**SIZES, **EXPERTS, "output_router_logits": True, "router_aux_loss_coef": COEFFICIENT, **settings}
    return build(AutoConfig.for_model(model_type, **values))


def trained(trainer: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    trainer.args.save_strategy, trainer.args.max_steps = "no", 4
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return rows, {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("stage", TRAINERS)
def test_weights_do_not_depend_on_the_passes(stage: str, tmp_path: Path) -> None:
    """Packed in one pass or several, and padded as TRL computes it: the same losses, and the same weights."""
    found = {}
    for name, tokens, packed in (("padded", 1000, False), ("one pass", 1000, True), ("passes", 20, True)):
        trainer = TRAINERS[stage](tmp_path / name, model=mixture())
        trainer.compute_in_passes(tokens, packed=packed)
        assert trainer.proof.path == (ForwardPath.PACKED if packed else ForwardPath.PADDED)
        assert trainer.aux_loss_enabled
        found[name] = trained(trainer)
    rows, weights = found.pop("padded")
    assert all(row["aux_loss"] > 1.0 for row in rows)
    for other_rows, others in found.values():
        for row, other in zip(rows, other_rows, strict=True):
            for key in ("loss", "aux_loss", "grad_norm"):
                assert other[key] == pytest.approx(row[key], abs=2e-4), key
        for name, weight in weights.items():
            torch.testing.assert_close(
                others[name], weight, atol=2e-5, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_the_first_loss_by_hand(tmp_path: Path) -> None:
    """The mean over answer tokens, and half of what the model's own forward says of its experts."""
    trainer = sft_trainer(tmp_path, random_pairs(6), model=mixture())
    trainer.compute_in_passes(20, packed=True)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(6)])
    base = whole_model(trainer.model)
    options = {"attention_mask": batch["attention_mask"], "output_router_logits": True}
    with torch.no_grad():
        own = type(base).forward(base, input_ids=batch["input_ids"], **options)
        trainer.current_gradient_accumulation_steps = 1
        ours = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=None)
    logps, labels = own.logits[:, :-1].log_softmax(-1), batch["labels"][:, 1:]
    wanted = labels != -100
    mean = -logps.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)[wanted].mean()
    assert float(own.aux_loss) > 1.0
    assert float(ours) == pytest.approx(float(mean + COEFFICIENT * own.aux_loss), abs=1e-5)


def test_a_mixture_whose_forward_adds_no_such_loss_is_given_none(tmp_path: Path) -> None:
    """GLM-4.5's routers balance themselves; TRL would add a loss of their logits."""
    settings = {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "head_dim": 4,
        "n_shared_experts": 1,
    }
    trainer = sft_trainer(tmp_path, model=mixture("glm4_moe", **settings))
    assert trainer.aux_loss_enabled
    trainer.compute_in_passes(1000, packed=True)
    assert not trainer.aux_loss_enabled
    rows, _ = trained(trainer)
    assert "aux_loss" not in rows[0]

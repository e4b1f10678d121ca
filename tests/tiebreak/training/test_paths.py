"""The path of a run is checked: one that computes something else than the model's own forward is not used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import SIZES, build
from test_passes import dpo_trainer, reward_trainer, sft_trainer
from transformers import AutoConfig, PreTrainedConfig

from tiebreak.errors import ConfigError, ModelError
from tiebreak.packed import forward as pairwise
from tiebreak.packed import lm_head as head
from tiebreak.packed.forward import packs
from tiebreak.packed.parts import whole_model
from tiebreak.packed.proof import BatchResult, ForwardPath, fault_of
from tiebreak.runs.run import read_manifest

TRAINERS = {"sft": sft_trainer, "dpo": dpo_trainer, "reward": reward_trainer}


def config_of(model_type: str, **settings: Any) -> PreTrainedConfig:
    values = {**SIZES, "num_key_value_heads": 2, "head_dim": 4, **settings}
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **values)
    return config


def ettin() -> PreTrainedConfig:
    """Has a dense layer and a norm before its decoder."""
    names = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    return config_of("modernbert-decoder", **dict.fromkeys(names, 1))


def proved(trainer: Any, *, packed: bool = True) -> Any:
    trainer.compute_in_passes(25, packed=packed)
    return trainer


@pytest.mark.parametrize("stage", TRAINERS)
@pytest.mark.parametrize("packed", [True, False])
def test_a_plain_architecture_takes_the_path_that_was_asked_for(stage: str, packed: bool, tmp_path: Path) -> None:
    """And nothing is left of the trial: no gradient, no metric, no random number drawn, no weight moved."""
    trainer = TRAINERS[stage](tmp_path)
    weights = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    chance, training = torch.get_rng_state(), trainer.model.training
    proof = proved(trainer, packed=packed).proof
    unpacked = ForwardPath.PLAIN if stage == "reward" else ForwardPath.PADDED
    assert proof.path == (ForwardPath.PACKED if packed else unpacked)
    assert proof.difference < 1e-5
    assert proof.gradient_difference < 1e-5
    assert proof.refused == ()
    assert torch.equal(torch.get_rng_state(), chance)
    assert trainer.model.training == training
    assert trainer.tokens_per_pass == 25
    assert not any(trainer._metrics["eval"].values())
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, weights[name]), name


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_head_that_trl_does_not_know_trains_as_the_plain_model(stage: str, packed: bool, tmp_path: Path) -> None:
    """Packed, the model's own head is called; TRL's would leave out a layer, so without packing its own forward is."""
    trainer = proved(TRAINERS[stage](tmp_path, model=build(ettin())), packed=packed)
    if packed:
        assert trainer.proof.path == ForwardPath.PACKED
    else:
        assert trainer.proof.path == ForwardPath.PLAIN
        assert "padded: its values differ from the model's own forward" in trainer.proof.facts()["path_reason"]
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(3)])
    labels = batch["labels"] if stage == "sft" else batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        ours = trainer.model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs
        base = whole_model(trainer.model)
        logits = type(base).forward(base, input_ids=ids, attention_mask=mask).logits[:, :-1]
    plain = logits.log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None]).squeeze(-1)
    torch.testing.assert_close(ours, plain * (labels[:, 1:] != -100), atol=1e-5, rtol=1e-5)


def test_values_that_are_wrong_on_real_rows_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial of twelve tokens passes; the batch does not. The model is not asked for packed rows again."""
    own = pairwise.packed_log_probs

    def shifted(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        return replace(out, head=replace(out.head, logps=1.01 * out.head.logps))

    monkeypatch.setattr(pairwise, "packed_log_probs", shifted)
    trainer = proved(dpo_trainer(tmp_path))
    assert trainer.proof.path == ForwardPath.PADDED
    assert "packed: its values differ from the model's own forward" in trainer.proof.refused[0]
    assert not packs(whole_model(trainer.model))


def test_a_gradient_that_is_wrong_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A twentieth too much, of right values."""
    own = head._TokenLogps.backward
    monkeypatch.setattr(
        head._TokenLogps,
        "backward",
        staticmethod(lambda ctx, *grads: own(ctx, *(None if g is None else 1.05 * g for g in grads))),
    )
    trainer = proved(sft_trainer(tmp_path))
    assert trainer.proof.path == ForwardPath.PADDED
    assert "packed: its gradient differs from the model's own forward (by 5.0e-02" in trainer.proof.refused[0]


def test_a_loss_that_passes_add_up_wrongly_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass counts as the whole batch. Alone or not, TRL's head has the same passes: nothing is right, so it stops."""
    trainer = reward_trainer(tmp_path)
    monkeypatch.setattr(trainer, "adds_up", lambda _: True)
    with pytest.raises(ModelError, match=r"cannot be trained here.*its loss is .*nothing was trained"):
        trainer.compute_in_passes(25, packed=True)


def test_a_matrix_that_would_not_train_is_found_out() -> None:
    """As an adapter on a head whose frozen weights are read in its place."""
    own = BatchResult(torch.zeros(1), 0.0, {"q": torch.ones(2), "head": torch.full((2,), 1e-6)})
    for idle in (None, torch.zeros(2)):
        found = BatchResult(torch.zeros(1), 0.0, {"q": torch.ones(2), "head": idle})
        assert fault_of(found, own, torch.float32).startswith("head would not train")


def test_a_hybrid_is_trained_unpacked(tmp_path: Path) -> None:
    """Its linear attention carries a state from one row of a packed batch into the next."""
    config = config_of("lfm2", layer_types=["conv", "full_attention"], conv_L_cache=3)
    trainer = proved(sft_trainer(tmp_path, model=build(config)))
    assert trainer.proof.path == ForwardPath.PADDED
    assert "hidden states differed" in trainer.proof.refused[0]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_rows_longer_than_the_positions_are_refused(stage: str, tmp_path: Path) -> None:
    """OPT's table has eight rows here; a prompt and an answer take up to sixteen tokens."""
    config = config_of("opt", max_position_embeddings=8, ffn_dim=32, word_embed_proj_dim=16)
    trainer = TRAINERS[stage](tmp_path, model=build(config))
    with pytest.raises(ConfigError, match=r"the longest rows .* take 1\d tokens, but this model has 8 positions"):
        trainer.compute_in_passes(25, packed=True)


@pytest.mark.parametrize(
    ("dtype", "apart", "fault"),
    [
        (torch.float32, 5e-4, ""),
        (torch.float32, 5e-2, "its values"),
        (torch.bfloat16, 5e-2, ""),
        (torch.bfloat16, 0.5, "its values"),
    ],
)
def test_what_counts_as_rounding(dtype: torch.dtype, apart: float, fault: str) -> None:
    """Log-probabilities of −2, one of a hundred apart in either format, or all of them in half precision."""
    own = torch.full((100,), -2.0)
    gradients = {"weight": torch.ones(3)}
    ours = own.clone()
    ours[0 if dtype == torch.float32 else slice(None)] += apart
    found = fault_of(BatchResult(ours, 1.0, gradients), BatchResult(own, 1.0, gradients), dtype)
    assert found.startswith(fault) if fault else not found


def test_a_token_that_goes_to_another_expert_is_rounding() -> None:
    own = torch.full((100,), -2.0)
    ours = own.clone()
    ours[:5] += 0.3
    one, other = BatchResult(ours, 1.0, {}), BatchResult(own, 1.0, {})
    assert not fault_of(one, other, torch.float32, routed=True)
    assert fault_of(one, other, torch.float32)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_a_manifest_says_how_its_run_was_computed(finished_recipe: Path, stage: str) -> None:
    manifest = read_manifest(finished_recipe / "runs" / stage)
    assert manifest["path"] == "packed"
    assert manifest["path_difference"] < 1e-4
    assert "path_reason" not in manifest

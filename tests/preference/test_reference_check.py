"""Before the first update policy and reference are one model: sound runs of any loss pass, another reference does not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support import run_of
from toy_language import toy_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from preference.configuration import LOSSES_OF_BATCHES, LOSSES_OF_PAIRS, DPOConfig
from preference.dpo import CheckedDPOTrainer, build_dpo_args
from preference.first_loss import check_reference
from preference.pairs import EncodedPair, PairCollator, to_dataset
from tiebreak.config import TrainingConfig
from tiebreak.errors import HandoffError

VOCABULARY = 8
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.5,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.5, "output_router_logits": True}


def rows_of(words: int) -> list[EncodedPair]:
    """Three prompts with two answers of about this many tokens each."""
    chance = random.Random(words)

    def draw(length: int) -> list[int]:
        return chance.choices(range(2, VOCABULARY), k=length)

    return [EncodedPair(draw(5 + n), [*draw(words + n), 1], [*draw(words - n), 1]) for n in range(3)]


def trainer_of(folder: Path, words: int = 40, experts: bool = False, **settings: Any) -> CheckedDPOTrainer:
    """On an adapter that has left its start, whose copy is the reference."""
    from peft import LoraConfig, get_peft_model

    training = TrainingConfig(
        precision="float32", per_device_batch_size=3, max_steps=1, learning_rate=1e-3, warmup_share=0.0
    )
    config = DPOConfig(output=str(folder), policy="", preferences="", training=training, **settings)
    torch.manual_seed(0)
    model_type, more = ("mixtral", EXPERTS) if experts else ("llama", {})
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **more))
    lm = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    trainer = CheckedDPOTrainer(
        model=lm,
        args=build_dpo_args(config, run_of(folder, "dpo", config)),
        train_dataset=to_dataset(rows_of(words)),
        processing_class=toy_tokenizer(),
        data_collator=PairCollator(pad_token_id=0),
    )
    trainer.args.save_strategy = "no"
    trainer.compute_in_passes(None, packed=True)
    return trainer


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("words", [20, 300])
def test_sound_runs_pass_whatever_beta_and_length(beta: float, words: int, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, words, beta=beta)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("loss", [*LOSSES_OF_PAIRS, *LOSSES_OF_BATCHES])
def test_sound_runs_pass_whatever_the_loss(loss: str, tmp_path: Path) -> None:
    smoothing = 0.01 if loss == "exo_pair" else 0.0
    trainer = trainer_of(tmp_path, loss_type=[loss], label_smoothing=smoothing, beta=0.5)
    trainer.train()
    assert trainer.state.global_step == 1


def test_an_auxiliary_loss_has_no_part_in_it(tmp_path: Path) -> None:
    """Half of it is added to the loss, which is far from ln 2."""
    trainer = trainer_of(tmp_path, experts=True)
    assert trainer.aux_loss_enabled
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "loss" in row]
    assert row["loss"] > 1.0
    assert row["rewards/margins"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("words", [20, 300])
@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "aot"])
def test_another_reference_is_refused(words: int, loss: str, tmp_path: Path) -> None:
    """One matrix of the reference is moved, by so little that an answer changes by a hundredth of a nat."""
    trainer = trainer_of(tmp_path, words, loss_type=[loss])
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(3)])
    before = torch.cat(trainer.compute_ref_log_probs(trainer.model, batch))
    moved_one = "layers.0.self_attn.v_proj.lora_B.ref.weight"
    (matrix,) = [parameter for name, parameter in trainer.model.named_parameters() if name.endswith(moved_one)]
    with torch.no_grad():
        matrix[0, 0] += 1e-3
        moved = torch.cat(trainer.compute_ref_log_probs(trainer.model, batch)) - before
        matrix[0, 0] += 1e-3 * (0.01 / float(moved.abs().max()) - 1)
        moved = torch.cat(trainer.compute_ref_log_probs(trainer.model, batch)) - before
    assert 5e-3 < float(moved.abs().max()) < 2e-2
    with pytest.raises(HandoffError, match=r"the reference is not the policy.*nothing was trained"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("dtype", "size", "apart", "passes"),
    [
        (torch.float32, 100.0, 3e-4, True),
        (torch.float32, 100.0, 1e-2, False),
        (torch.float32, 2500.0, 5e-3, True),
        (torch.bfloat16, 100.0, 0.8, True),
        (torch.bfloat16, 100.0, 3.0, False),
    ],
)
def test_what_is_rounding(dtype: torch.dtype, size: float, apart: float, passes: bool) -> None:
    reference = torch.full((4,), -size, dtype=torch.float64)
    policy = reference + torch.tensor([0, 0, 0, apart])
    if passes:
        check_reference(policy, reference, dtype)
    else:
        with pytest.raises(HandoffError):
            check_reference(policy, reference, dtype)


def test_a_token_that_another_expert_took_is_rounding_and_a_number_that_is_none_is_not() -> None:
    reference = torch.full((4,), -100.0)
    check_reference(reference + torch.tensor([0, 0, 0, 0.5]), reference, torch.float32, routed=True)
    with pytest.raises(HandoffError):
        check_reference(reference + torch.tensor([0, 0.5, 0.5, 0.5]), reference, torch.float32, routed=True)
    with pytest.raises(HandoffError):
        check_reference(reference * torch.nan, reference, torch.float32)

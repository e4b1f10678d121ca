"""PPO, RLOO and GRPO on architectures that scale or cap their logits: every log-probability is the plain model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import run_of
from torch import Tensor, nn
from toy_language import ANSWERS, EOS, PAD, PROMPTS, VOCABULARY, KnownReward, toy_rewards, toy_tokenizer, with_adapter
from transformers import AutoConfig, AutoModelForCausalLM

from preference.configuration import PPOConfig
from preference.policy.adapters import POLICY, REFERENCE
from preference.policy.backbone import Backbone
from preference.policy.rollout import roll_out
from preference.ppo.groups import build_group_trainer
from preference.ppo.train import build_group_args, ppo_settings
from tiebreak.config import OptimizerConfig, SamplingConfig
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.packed.proof import ForwardPath, own_logps
from tiebreak.training.passes import Passes

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "scaled": ("cohere", {"logit_scale": 4.0}),
    "capped": ("gemma2", {"final_logit_softcapping": 1.5, "query_pre_attn_scalar": 8}),
    "divided": ("granite", {"logits_scaling": 0.25}),
}
TEMPERATURE = 0.7


def policy(name: str) -> Any:
    """A policy whose adapter has left its start."""
    model_type, settings = MODELS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        initializer_range=0.3,
        **settings,
    )
    return with_adapter(AutoModelForCausalLM.from_config(config), rank=4)


def move(lm: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in lm.named_parameters():
            if f".{POLICY}." in key and "lora_B" in key:
                parameter.normal_(std=0.2)


def own_answers(lm: nn.Module) -> Tensor:
    """log π(y|x) of every answer to every prompt, by the model's own forward; shape (prompts, answers)."""
    found = []
    for prompt in PROMPTS:
        for answer in ANSWERS:
            found.append(own_logps(lm, [[*prompt, *answer]], [len(prompt)], TEMPERATURE).sum())
    return torch.stack(found).view(len(PROMPTS), len(ANSWERS))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_kl_is_the_true_one(name: str) -> None:
    """KL(π ‖ π_ref) = Σ_y π(y)·(log π(y) − log π_ref(y)), over all 57 answers, whose probabilities add up to 1."""
    lm = policy(name)
    Adapter(lm, POLICY).copy(REFERENCE)
    Adapter(lm, POLICY).train_alone()
    move(lm)
    backbone = Backbone(lm, PAD).eval()
    true = own_answers(lm)
    with Adapter(lm, REFERENCE).active():
        reference = own_answers(lm)
    torch.testing.assert_close(true.exp().sum(1), torch.ones(len(PROMPTS)), atol=1e-4, rtol=0)
    rows = [(list(p), list(a)) for p in PROMPTS for a in ANSWERS]
    batch = backbone.to_batch([p for p, _ in rows], [a for _, a in rows])
    ours = backbone.logps(batch, TEMPERATURE).sum(1).view_as(true)
    with Adapter(lm, REFERENCE).active():
        theirs = backbone.logps(batch, TEMPERATURE).sum(1).view_as(true)
    kl = (true.exp() * (true - reference)).sum(1)
    assert kl.min() > 0.02
    torch.testing.assert_close((ours.exp() * (ours - theirs)).sum(1), kl, atol=1e-5, rtol=1e-4)


def build(folder: Path, algorithm: str, lm: Any) -> Any:
    """TRL's trainer on three prompts, its path proved."""
    config = PPOConfig(
        output=str(folder),
        algorithm=algorithm,
        policy="",
        reward_model="table",
        prompts="",
        episodes_per_rollout=12,
        completions_per_prompt=4,
        rollouts=1,
        ppo_epochs=1,
        stop_when_all_cut_off=False,
        sampling=SamplingConfig(temperature=TEMPERATURE, max_new_tokens=2),
        training=OptimizerConfig(per_device_batch_size=4, warmup_share=0.0, precision="float32"),
    )
    args = build_group_args(config, run_of(folder, "ppo", config))
    prompts = [list(p) for p in PROMPTS]
    settings = ppo_settings(config, (EOS,))
    return build_group_trainer(
        lm,
        args,
        settings,
        prompts,
        prompts,
        toy_tokenizer(),
        rewards=lambda _: [KnownReward(toy_rewards())],
        passes=Passes(),
    )


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
@pytest.mark.parametrize("name", ["scaled", "capped"])
def test_what_group_trainers_watch_and_learn_from_is_the_plain_models(
    algorithm: str, name: str, tmp_path: Path
) -> None:
    """Rollouts' KL and TRL's own log-probabilities, of the completions that were drawn."""
    trainer = build(tmp_path, algorithm, policy(name))
    prompts, sampling = [list(p) for p in PROMPTS], SamplingConfig(temperature=TEMPERATURE, max_new_tokens=2)
    assert trainer.proof.difference < 1e-4
    lm = trainer.model
    move(lm)
    lm.eval()
    backbone = trainer.backbone
    episodes = roll_out(backbone, prompts * 4, list(range(12)), sampling, trainer.rewards, stop_ids=(EOS,))
    rows = [[*p, *c] for p, c in zip(episodes.prompts, episodes.completions, strict=True)]
    starts = [len(p) for p in episodes.prompts]
    with torch.no_grad():
        ours = own_logps(lm, rows, starts, TEMPERATURE)
        with Adapter(lm, backbone.reference).active():
            reference = own_logps(lm, rows, starts, TEMPERATURE)
        difference = ours - reference
        assert float(difference.abs().max()) > 0.1
        k3 = torch.expm1(-difference) + difference
        torch.testing.assert_close(episodes.kl_k3[episodes.mask], k3, atol=1e-5, rtol=1e-4)
        ids = torch.tensor(rows[0])[None]
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < starts[0], -100)
        trl = lm(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, fused_lm_head=True)
    count = len(rows[0]) - starts[0]
    torch.testing.assert_close(trl.log_probs[0, starts[0] - 1 :], ours[:count], atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # PEFT, of GPT-2's own kind of layer
def test_learned_positions_are_counted_from_the_first_real_token(tmp_path: Path) -> None:
    """TRL pads prompts on the left and tells GPT-2 no positions, so that a short prompt would begin at a later one."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt2",
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=16,
        eos_token_id=EOS,
        bos_token_id=EOS,
    )
    trainer = build(tmp_path, "grpo", with_adapter(AutoModelForCausalLM.from_config(config), rank=4))
    assert trainer.proof.path == ForwardPath.PLAIN
    assert "padded: its values differ from the model's own forward" in trainer.proof.refused[0]

"""PPO where the policy's own weights train: the reference is a second model, which does not move."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from preference.policy.backbone import load_backbone
from preference.policy.rewards import SeparateReward
from preference.policy.rollout import policy_logps
from preference.ppo.loop import ScoredLoop
from tiebreak.config import AdapterConfig, TrainingConfig
from tiebreak.models.find import find_model
from tiebreak.models.tokenizers import load_tokenizer
from tiebreak.training.allocator import leave_training

PROMPTS, COMPLETIONS = [[1, 520, 9531], [1, 88]], [[198, 77, 4093, 2], [11, 2]]


def test_all_models_of_a_rollout_are_freed_before_the_saved_one_is_loaded_again() -> None:
    """The policy, its reference, and a reward model of its own weights; a function has none."""
    policy, reference, scorer = (nn.Linear(3, 2) for _ in range(3))
    rewards = [SeparateReward("r", 1.0, scorer, 0), SimpleNamespace(name="f", weight=1.0)]
    loop: Any = SimpleNamespace(backbone=SimpleNamespace(models_beside=[reference]), rewards=rewards)
    beside = ScoredLoop.models_beside.fget(loop)  # type: ignore[attr-defined]
    assert beside == [reference, scorer]
    trainer: Any = SimpleNamespace(model=policy, optimizer=None, is_deepspeed_enabled=False, models_beside=beside)
    leave_training(trainer)
    assert sum(weight.numel() for each in (policy, reference, scorer) for weight in each.parameters()) == 0


@pytest.mark.filterwarnings("ignore")
def test_the_reference_of_whole_weights_stays_as_plain_transformers_loads_it(tiny_model: Path) -> None:
    source = find_model(str(tiny_model))
    full = AdapterConfig(method="full")
    backbone = load_backbone(source, TrainingConfig(precision="float32"), full, load_tokenizer(source)).eval()
    assert len(list(backbone.lm.parameters())) + 2 == len(list(backbone.parameters()))  # and the value head's two
    with torch.no_grad():
        for parameter in backbone.lm.parameters():
            parameter.mul_(1.1)
        batch = backbone.to_batch(PROMPTS, COMPLETIONS)
        with backbone.acting(backbone.reference):
            reference = backbone.logps(batch, 1.0)
        policy = policy_logps(backbone, PROMPTS, COMPLETIONS, 1.0)
        plain = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
        for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
            logits = plain(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
            wanted = logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
            torch.testing.assert_close(reference[row, : len(completion)], wanted, rtol=1e-4, atol=1e-4)
            assert (policy[row, : len(completion)] - wanted).abs().max() > 0.01

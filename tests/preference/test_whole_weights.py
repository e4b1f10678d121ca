"""PPO where the policy's own weights train: the reference is a second model, which does not move."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from preference.policy.backbone import load_backbone
from preference.policy.rollout import policy_logps
from tiebreak.config import AdapterConfig, TrainingConfig
from tiebreak.models.find import find_model
from tiebreak.models.tokenizers import load_tokenizer

PROMPTS, COMPLETIONS = [[1, 520, 9531], [1, 88]], [[198, 77, 4093, 2], [11, 2]]


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

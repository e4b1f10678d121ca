"""A language small enough to enumerate: twelve tokens, three prompts, every answer of at most two tokens.

A policy writes until <eos> or for two tokens, so its answers are `<eos>`, `a <eos>`, and `a b`, which is cut off: 133
in all, whose probabilities are read off two forward passes and add up to 1. With a known reward the optimum of
E[r] − β·KL(π ‖ π_ref) is known too: π*(y|x) ∝ π_ref(y|x)·exp(r(x,y)/β) (Ziegler et al. 2019; Rafailov et al. 2023,
Eq. 4).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, EOS, VOCABULARY = 0, 1, 8
PROMPTS: tuple[tuple[int, ...], ...] = ((2, 3), (4, 5), (5, 2, 4))
"""Of different lengths, so that padding plays its part, and none of one token alone: a transformer cannot tell 2 from
2 2, as attention over equal tokens gives the same whatever their number."""
ANSWERS: tuple[tuple[int, ...], ...] = (
    (EOS,),
    *((a, EOS) for a in range(VOCABULARY) if a != EOS),
    *((a, b) for a in range(VOCABULARY) if a != EOS for b in range(VOCABULARY) if b != EOS),
)
LEVELS = (0.0, math.log(3), 2 * math.log(3))
"""rewards; under Bradley-Terry one level beats the one below it 3 times in 4, and the one two below 9 in 10"""


def build_toy_policy(seed: int = 0, hidden: int = 32, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A random two-layer Llama over the twelve tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        initializer_range=0.15,
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(dtype)


def with_adapter(policy: LlamaForCausalLM, rank: int = 32, seed: int = 0) -> PeftModel:
    """A LoRA adapter of full rank on every linear layer but the head, so that it is not short of capacity."""
    torch.manual_seed(seed)
    return get_peft_model(
        copy.deepcopy(policy),
        LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """Twelve words, one a token."""
    words = ["<pad>", "<eos>", *(f"w{n}" for n in range(2, VOCABULARY))]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


@torch.no_grad()
def answer_logps(policy: nn.Module) -> Tensor:
    """log π(y|x) of every answer to every prompt by the plain forward, shape (prompts, answers)."""
    training = policy.training
    policy.eval()
    rows = []
    for prompt in PROMPTS:
        first = _next_logps(policy, [list(prompt)])[0]
        second = _next_logps(policy, [[*prompt, a] for a in range(VOCABULARY)])
        rows.append([float(first[y[0]] + (second[y[0], y[1]] if len(y) == 2 else 0.0)) for y in ANSWERS])
    policy.train(training)
    logps = torch.tensor(rows, dtype=torch.float64)
    assert torch.allclose(logps.exp().sum(1), torch.ones(len(PROMPTS), dtype=torch.float64), atol=1e-5)
    return logps


def _next_logps(policy: nn.Module, rows: list[list[int]]) -> Tensor:
    ids = torch.tensor(rows)
    logits: Tensor = policy(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits[:, -1].double().log_softmax(-1)


def toy_rewards(seed: int = 0) -> Tensor:
    """One of LEVELS for each answer to each prompt, with no pattern to it; shape (prompts, answers), float64."""
    drawn = torch.randint(len(LEVELS), (len(PROMPTS), len(ANSWERS)), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(LEVELS, dtype=torch.float64)[drawn]


def optimum(reference_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """log π*(y|x), shape (prompts, answers)."""
    return (reference_logps + rewards / beta).log_softmax(1)


def total_variation(one: Tensor, other: Tensor) -> float:
    """½·Σ|p − q| of log-probabilities, averaged over prompts."""
    return float((one.exp() - other.exp()).abs().sum(1).mean() / 2)


@dataclass(frozen=True)
class _Scored:
    logits: Tensor


class KnownReward(nn.Module):
    """Stands where PPO holds a reward model: called as a sequence classifier is, it answers from a table."""

    def __init__(self, rewards: Tensor) -> None:
        super().__init__()
        self.table = {
            (*prompt, *answer): float(rewards[i, j])
            for i, prompt in enumerate(PROMPTS)
            for j, answer in enumerate(ANSWERS)
        }

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> _Scored:
        lengths = attention_mask.sum(1).tolist()
        rows = [tuple(ids[:n]) for ids, n in zip(input_ids.tolist(), lengths, strict=True)]
        return _Scored(torch.tensor([[self.table[row]] for row in rows]))


Row = tuple[list[int], list[int], list[int]]
"""prompt, chosen, rejected"""


def toy_preferences(rewards: Tensor, rivals: int, seed: int = 0) -> list[Row]:
    """Each answer against `rivals` others, in exactly the shares that Bradley-Terry gives: 1:1, 3:1 or 9:1.

    Whatever is compared, the DPO loss over these rows has its minimum where β·log π/π_ref differs from r by a constant
    for each prompt, so no noise of labels stands between the trainer and π*.
    """
    generator = torch.Generator().manual_seed(seed)
    rows: list[Row] = []
    for i, prompt in enumerate(PROMPTS):
        for _ in range(rivals):
            circle = torch.randperm(len(ANSWERS), generator=generator).tolist()  # connected, whatever the seed
            for one, other in zip(circle, circle[1:] + circle[:1], strict=True):
                better, worse = sorted((one, other), key=lambda j: float(rewards[i, j]), reverse=True)
                wins = round(math.exp(float(rewards[i, better] - rewards[i, worse])))
                row = (list(prompt), list(ANSWERS[better]), list(ANSWERS[worse]))
                rows += [row] * wins + [(row[0], row[2], row[1])]
    return rows

"""A language small enough to enumerate: eight tokens, three prompts, every answer of at most two tokens.

A policy writes until <eos> or for two tokens, so its answers are `<eos>`, `a <eos>`, and `a b`, which is cut off: 57 in
all, whose probabilities are read off two forward passes and add up to 1. With a known reward the optimum of
E[r] − β·KL(π ‖ π_ref) is known too: π*(y|x) ∝ π_ref(y|x)·exp(r(x,y)/β) (Ziegler et al. 2019; Rafailov et al. 2023,
Eq. 4).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from preference.policy.adapters import POLICY, REFERENCE
from preference.policy.backbone import Backbone
from tiebreak.models.adapters.adapter import Adapter

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
"""rewards; by Bradley and Terry's model an answer beats one of the level below it 3 times in 4"""


def build_toy_policy(
    seed: int = 0, hidden: int = 32, dtype: torch.dtype = torch.float32, vocabulary: int = VOCABULARY
) -> LlamaForCausalLM:
    """A random two-layer Llama over the eight tokens, or more."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
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
    """Eight words, one a token."""
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


class KnownReward:
    """A reward that answers from a table."""

    name = "the table"

    def __init__(self, rewards: Tensor, weight: float = 1.0) -> None:
        self.weight = weight
        self.table = {
            (prompt, answer): float(rewards[i, j])
            for i, prompt in enumerate(PROMPTS)
            for j, answer in enumerate(ANSWERS)
        }

    def scores(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[float]:
        return [self.table[tuple(p), tuple(c)] for p, c in zip(prompts, completions, strict=True)]


def build_toy_backbone(policy: LlamaForCausalLM) -> Backbone:
    """The PPO stage's backbone: policy and reference on one base, and a value head."""
    lm = with_adapter(policy)
    Adapter(lm, POLICY).copy(REFERENCE)
    Adapter(lm, POLICY).train_alone()
    return Backbone(lm, PAD)


Row = tuple[list[int], list[int], list[int]]
"""prompt, chosen, rejected"""


def toy_preferences(rewards: Tensor, rivals: int, seed: int = 0) -> list[Row]:
    """Each answer against `rivals` others a level above or below it: four rows a pair, one after the other.

    In three of them the better answer is chosen and in one the worse, which are Bradley and Terry's shares exactly. So
    the DPO loss over the rows has its minimum at π*, and over a batch of whole pairs no noise of labels.
    """
    generator = torch.Generator().manual_seed(seed)
    level = (rewards / LEVELS[1]).round()
    pairs: list[Row] = []
    for i, prompt in enumerate(PROMPTS):
        for one in range(len(ANSWERS)):
            near = ((level[i] - level[i, one]).abs() == 1).nonzero().flatten()
            for other in near[torch.randperm(len(near), generator=generator)[:rivals]].tolist():
                better, worse = (one, other) if level[i, one] > level[i, other] else (other, one)
                pairs.append((list(prompt), list(ANSWERS[better]), list(ANSWERS[worse])))
    rows: list[Row] = []
    for number in torch.randperm(len(pairs), generator=generator).tolist():
        prompt_ids, chosen, rejected = pairs[number]
        rows += [(prompt_ids, chosen, rejected)] * 3 + [(prompt_ids, rejected, chosen)]
    return rows

"""The oracle: transformers and PEFT alone, one sequence at a time, with the model's own forward and its own head."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from architectures import Architecture, quiet
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from templates import Template
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

NEW_YEAR = date(2026, 1, 1)
"""what Tiebreak gives to templates that write today's date"""
Row = tuple[list[int], list[int]]
"""ids of a prompt, and of what the assistant writes"""


def prompt_text(template: Template, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> str:
    """A conversation up to where the assistant begins to write, by transformers, as on the first day of 2026."""
    if template.parts:
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    fixed = re.sub(r"strftime_now\(['\"](.+?)['\"]\)", lambda call: f"'{NEW_YEAR.strftime(call[1])}'", template.text)
    options = {"chat_template": fixed, "add_generation_prompt": True, **dict(template.arguments)}
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def row(template: Template, tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> Row:
    """A question and its answer as the family writes them."""
    prompt = prompt_text(template, tokenizer, [{"role": "user", "content": question}])
    return encode(tokenizer, prompt), encode(tokenizer, template.writes.format(answer))


def build_model(
    folder: Path, architecture: Architecture, template: Template, taught: Sequence[tuple[str, str]]
) -> None:
    """A model that answers the questions it was taught, and continues with a user's turn if it is not stopped."""
    tokenizer = template.tokenizer()
    model = architecture.build(tokenizer)
    rows = [row(template, tokenizer, question, answer) for question, answer in taught]
    then = encode(tokenizer, template.then)
    teach(model, [(prompt, [*written, *then]) for prompt, written in rows])
    stops = [tokenizer.convert_tokens_to_ids(token) for token in template.stops]
    model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def teach(model: nn.Module, rows: Sequence[Row], most: int = 400) -> float:
    """Train every weight on what the assistant writes until it is sure of it. The last loss."""
    ids, mask = padded([[*prompt, *written] for prompt, written in rows])
    wanted = padded([[0] * len(prompt) + [1] * len(written) for prompt, written in rows])[0].bool()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    loss = torch.tensor(float("inf"))
    model.train()
    for _ in range(most):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits[wanted[:, 1:]], ids[:, 1:][wanted[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss.detach() < 0.02:
            break
    model.eval()
    return float(loss.detach())


def load(folder: Path, adapter: Path | None = None) -> nn.Module:
    """A causal model, with an adapter on it."""
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder)
    return (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()


def load_scorer(folder: Path, adapter: Path) -> Scorer:
    """A reward model: the causal model's layers under its adapter, and the score head that was saved beside it."""
    [head] = [tensor for name, tensor in load_file(adapter / "adapter_model.safetensors").items() if "score" in name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a causal model has no place for the head
        return Scorer(load(folder, adapter), head)


@dataclass(frozen=True)
class Scorer:
    """A causal model and one row of weights."""

    model: nn.Module
    head: Tensor


def adapted(folder: Path, adapter: Path, seed: int) -> nn.Module:
    """A causal model with a new adapter, drawn as the one that was saved was drawn: with its configuration and seed."""
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder)
    lora = LoraConfig.from_pretrained(adapter)
    lora.inference_mode = False
    torch.manual_seed(seed)
    return get_peft_model(model, lora)


def logps(model: nn.Module, prompt: Sequence[int], written: Sequence[int]) -> Tensor:
    """Log-probability of each written token, shape (written,)."""
    ids = torch.tensor([[*prompt, *written]])
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, ids[0, len(prompt) :, None]).squeeze(-1)


def balance(model: nn.Module, rows: Sequence[Row]) -> Tensor:
    """What a mixture's balance adds to the loss of a batch, as its configuration weighs it; 0 where it has none."""
    text = model.config.get_text_config()
    weight = getattr(text, "router_aux_loss_coef", 0.0)
    if not weight or not hasattr(text, "output_router_logits"):
        return torch.tensor(0.0)
    ids, mask = padded([[*prompt, *written] for prompt, written in rows])
    out = model(input_ids=ids, attention_mask=mask, output_router_logits=True, use_cache=False)
    return torch.tensor(0.0) if out.aux_loss is None else weight * out.aux_loss


def padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), filled up on the right, each of shape (sequences, longest)."""
    width = max(map(len, sequences))
    ids = torch.tensor([[*sequence, *[0] * (width - len(sequence))] for sequence in sequences])
    return ids, torch.tensor([[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences])


def loss_and_gradient(model: nn.Module, rows: Sequence[Row]) -> tuple[float, float]:
    """Mean negative log-probability of what is written in all rows, the balance of a mixture, and the gradient's norm."""
    loss = balance(model, rows) - torch.cat([logps(model, *each) for each in rows]).mean()
    loss.backward()
    squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
    return float(loss.detach()), float(torch.stack(squares).sum().sqrt())


@torch.no_grad()
def score(scorer: Scorer, ids: Sequence[int]) -> float:
    """A reward model's score of a sequence, read at its last token."""
    base = scorer.model.get_base_model()
    [decoder] = [layers for layers in base.children() if isinstance(layers, PreTrainedModel)]
    hidden = decoder(input_ids=torch.tensor([list(ids)]), use_cache=False).last_hidden_state
    return float(hidden[0, -1] @ scorer.head[0])


@torch.no_grad()
def greedy(model: nn.Module, prompt: Sequence[int], new_tokens: int, end_id: int) -> list[int]:
    """What `generate` makes of a prompt, with the family's own stop tokens and the one that its template ends a turn by."""
    ids = torch.tensor([list(prompt)])
    own = model.generation_config.eos_token_id
    stops = {end_id, *(own if isinstance(own, list) else [own])}
    mask = torch.ones_like(ids)
    out = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens, eos_token_id=sorted(stops)
    )
    return [int(token) for token in out[0, len(prompt) :]]

"""Policies whose every probability is written down: bigram models as Llamas, and a reward model of the last token.

A token's hidden state is its own direction, so the head holds, for each token, the log-probabilities of what follows it.
Tokens are whole phrases, so an answer's text is whatever a test needs. The last word of a prompt is part of its
generation prompt, `<after-WORD>`: what a policy answers depends on that word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tiebreak.chat.build import build_chat
from tiebreak.config import AdapterConfig, StageConfig, TrackingConfig, TrainingConfig
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.find import find_model
from tiebreak.models.load import load_reward_model
from tiebreak.models.probe import probe_values, write_probe
from tiebreak.models.save import save_adapter
from tiebreak.models.tokenizers import load_tokenizer
from tiebreak.runs.run import start_run

EOS = "<eos>"
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}"
    "{{ '<after-' + loop.previtem.content.split()[-1] + '> ' + m.content + ' <eos> ' }}"
    "{% else %}{{ '<user> ' + m.content + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<after-' + messages[-1].content.split()[-1] + '> ' }}{% endif %}"
)
NEVER = 1e-30
"""the probability of a token that no script has"""


@dataclass(frozen=True)
class Language:
    """Words of prompts and phrases of answers; the order is that of the token ids."""

    words: tuple[str, ...]
    phrases: tuple[str, ...]

    @property
    def tokens(self) -> tuple[str, ...]:
        markers = tuple(f"<after-{word}>" for word in self.words)
        return ("<pad>", EOS, "<user>", *self.words, *markers, *self.phrases)

    @property
    def drawn(self) -> tuple[str, ...]:
        """What an answer is made of."""
        return (EOS, *self.phrases)


@dataclass(frozen=True)
class Script:
    """A policy: what it answers after each last word, and how sure it is of each next token."""

    answers: Mapping[str, Sequence[str]]
    """by last word; an answer that does not loop ends in EOS"""
    certainty: float
    """the probability of the script's next token; the rest is shared evenly among all others of an answer"""

    def follower(self, token: str) -> str | None:
        """What the script has after a token; None where it is never come to."""
        found = {
            after
            for word, answer in self.answers.items()
            for before, after in zip((f"<after-{word}>", *answer), answer, strict=False)
            if before == token
        }
        assert len(found) <= 1, f"{token} is followed by {found}: that is no bigram"
        return next(iter(found), None)

    def probability(self, language: Language, before: str, after: str) -> float:
        """P(after | before)."""
        follower = self.follower(before)
        if follower is None:
            return 1 / len(language.drawn)
        return self.certainty if after == follower else (1 - self.certainty) / (len(language.drawn) - 1)


def sequence_logp(
    script: Script, language: Language, word: str, answer: Sequence[str], temperature: float = 1.0
) -> float:
    """log P(answer | last word) under softmax(logits / temperature), by the definition."""
    total = 0.0
    for before, after in zip((f"<after-{word}>", *answer), answer, strict=False):
        heated = {one: script.probability(language, before, one) ** (1 / temperature) for one in language.drawn}
        total += math.log(heated[after] / math.fsum(heated.values()))
    return total


def build_bigrams(folder: Path, language: Language, script: Script) -> Path:
    """The policy as a folder that `AutoModelForCausalLM` loads."""
    size = len(language.tokens)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=128,
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=language.tokens.index(EOS),
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    logps = torch.full((size, size), math.log(NEVER), dtype=torch.float64)  # (before, after)
    for at, before in enumerate(language.tokens):
        for after in language.drawn:
            logps[at, language.tokens.index(after)] = math.log(script.probability(language, before, after))
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight.copy_(logps.T / math.sqrt(size))  # a normed one-hot is √size long
    model.save_pretrained(folder)
    build_tokenizer(language).save_pretrained(folder)
    return folder


def build_tokenizer(language: Language) -> PreTrainedTokenizerFast:
    """A word or a phrase, a token."""
    backend = Tokenizer(models.WordLevel({name: n for n, name in enumerate(language.tokens)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token=EOS,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_scorer(base: Path, folder: Path, language: Language, scores: Mapping[str, float], kind: str) -> Path:
    """A finished reward run that scores a conversation by its last token."""
    run = start_run(StageConfig(output=str(folder), tracking=TrackingConfig(mode="disabled")), "reward", {})
    source, adapter = find_model(str(base)), AdapterConfig(r=1, alpha=1, target_modules=["q_proj"])
    tokenizer = load_tokenizer(source)
    model = load_reward_model(source, TrainingConfig(precision="float32"), adapter, tokenizer).eval()
    head = torch.tensor([scores.get(token, 0.0) for token in language.tokens]) / math.sqrt(len(language.tokens))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "score" in name:
                parameter.copy_(head[None])
    save_adapter(run.final, model, Adapter(model).state(), build_chat(tokenizer), source, "reward", adapter)
    write_probe(run.final, [2, 3, 4], probe_values(model, [2, 3, 4]), model)
    run.facts |= {"kinds": [kind]}
    run.finish()
    return folder

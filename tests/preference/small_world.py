"""A language of sixteen words, a policy that speaks it, and judges of it: stages run whole on it within seconds.

Everything is on disk as a user has it: a model's folder with its tokenizer and chat template, finished reward runs, raw
data, and reward functions in a file.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from support import write_rows
from tokenizers import Tokenizer, models, pre_tokenizers
from toy_language import build_toy_policy
from transformers import PreTrainedTokenizerFast

from tiebreak.config import AdapterConfig, StageConfig, TrackingConfig, TrainingConfig
from tiebreak.messages import Message
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.find import find_model
from tiebreak.models.load import load_reward_model
from tiebreak.models.probe import probe_values, write_probe
from tiebreak.models.save import save_adapter
from tiebreak.models.tokenizers import load_chat
from tiebreak.runs.run import start_run

WORDS = ("water", "light", "feed", "more", "less", "pot", "root", "leaf", "night", "day", "warm", "cool")
SPECIAL = ("<pad>", "<eos>", "<user>", "<assistant>")
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '> ' + m.content + ' ' }}"
    "{% if m.role == 'assistant' %}{{ '<eos> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def build_tokenizer(words: tuple[str, ...] = WORDS) -> PreTrainedTokenizerFast:
    """A word, a token."""
    names = (*SPECIAL, *words)
    backend = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=TEMPLATE,
    )


def build_model(folder: Path, words: tuple[str, ...] = WORDS, hidden: int = 64, seed: int = 0) -> Path:
    """A random two-layer Llama that speaks the language."""
    build_toy_policy(seed, hidden, vocabulary=len(SPECIAL) + len(words)).save_pretrained(folder)
    build_tokenizer(words).save_pretrained(folder)
    return folder


def questions(count: int, seed: int = 0) -> list[str]:
    """Different prompts of two to four words."""
    generator = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(generator.choices(WORDS, k=generator.randint(2, 4)))] = None
    return list(found)


def write_prompts(file: Path, count: int = 24) -> Path:
    """Raw prompts."""
    return write_rows(file, [{"prompt": [{"role": "user", "content": text}]} for text in questions(count)])


def write_preferences(file: Path, count: int = 24, seed: int = 0) -> Path:
    """Raw preferences of somebody who wants to read "more" as often as can be."""
    generator = random.Random(seed)

    def answer(share: float) -> list[dict[str, str]]:
        words = ["more" if generator.random() < share else generator.choice(WORDS) for _ in range(6)]
        return [{"role": "assistant", "content": " ".join(words)}]

    rows = [
        {"prompt": [{"role": "user", "content": text}], "chosen": answer(0.8), "rejected": answer(0.0)}
        for text in questions(count)
    ]
    return write_rows(file, rows)


def build_judge(
    base: Path, folder: Path, opinion: Callable[[str], float], at_most: int = 8, kinds: tuple[str, ...] = ("human",)
) -> Path:
    """A finished reward run whose score is the least-squares fit to an opinion of texts.

    Read off the hidden state of 600 answers in which one word, "more", is anything from rare to ubiquitous.
    """
    run = start_run(StageConfig(output=str(folder), tracking=TrackingConfig(mode="disabled")), "reward", {})
    source, adapter = find_model(str(base)), AdapterConfig(r=2)
    chat = load_chat(source)
    model = load_reward_model(source, TrainingConfig(precision="float32"), adapter, chat.tokenizer).eval()
    generator = random.Random(1)
    features, wanted = [], []
    for question in questions(24) * 25:
        share = generator.random()
        words = ["more" if generator.random() < share else generator.choice(WORDS) for _ in range(at_most)]
        text = " ".join(words[: generator.randint(0, at_most)])
        ask = (Message(role="user", content=question),)
        prompt, completion = chat.encode_completion(ask, text, finished=generator.random() < 0.5)
        features.append(last_hidden(model, prompt + completion))
        wanted.append(opinion(text))
    head = torch.linalg.lstsq(torch.stack(features).double(), torch.tensor(wanted).double()[:, None]).solution
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "score" in name:
                parameter.copy_(head.T)
    save_adapter(run.final, model, Adapter(model).state(), chat, source, "reward", adapter)
    write_probe(run.final, [5, 6, 7], probe_values(model, [5, 6, 7]), model)
    run.facts |= {"kinds": list(kinds)}
    run.finish()
    return folder


def twice_is_best(text: str) -> float:
    """An opinion: "more" may be said, and should not be said too often."""
    return 1.0 - 0.25 * (text.split().count("more") - 2) ** 2


@dataclass(frozen=True)
class World:
    """What stages read."""

    policy: Path
    judge: Path
    """a reward run on the policy's base weights: twice is best"""
    prompts: Path
    preferences: Path

    @property
    def ppo(self) -> dict[str, Any]:
        """What a PPO run here reads and goes by: it is paid for each time it says "more"."""
        return {
            "policy": self.policy,
            "rewards": [{"function": "polite_rewards:wants_more"}],
            "prompts": self.prompts,
            "tracking": {"mode": "disabled"},
        }


def build_world(folder: Path) -> World:
    """All of it, in a folder."""
    policy = build_model(folder / "policy")
    return World(
        policy,
        build_judge(policy, folder / "judge", twice_is_best),
        write_prompts(folder / "prompts.jsonl"),
        write_preferences(folder / "preferences.jsonl"),
    )


@torch.no_grad()
def last_hidden(model: Any, ids: list[int]) -> torch.Tensor:
    """The last hidden state of the last token."""
    states: torch.Tensor = model.get_base_model().base_model(torch.tensor([ids])).last_hidden_state
    return states[0, -1]

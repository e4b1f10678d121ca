"""Adversarial answers made from held-out prompts: a reward model that prefers them will be exploited.

Optimisation finds whatever scores high, so these are the known collapses of policies: empty answers, one phrase repeated,
the prompt copied, an over-long answer.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from reward.examples import EncodedPreference
from tiebreak.chat.chat import Chat

PHRASE_WORDS = 6
OVERLONG = 3
"""An over-long answer has this many times the tokens of the chosen one, if they fit."""
WHAT = {
    "empty": "an empty answer",
    "repeated": "its first words, repeated",
    "copied": "a copy of the prompt",
    "over-long": "the chosen answer, then answers to other prompts",
}


@dataclass(frozen=True)
class Garbage:
    """An adversarial answer to a held-out preference's prompt."""

    kind: str
    text: str
    ids: list[int]
    """prompt and answer"""
    of: EncodedPreference


def make_garbage(
    examples: Sequence[EncodedPreference], chat: Chat, prompts: int, max_length_tokens: int
) -> list[Garbage]:
    """One answer of each kind to each of at most `prompts` prompts, if it fits."""
    by_prompt = {example.group: example for example in reversed(examples)}
    order = sorted(by_prompt, key=lambda name: hashlib.sha256(name.encode()).digest())
    picked = [by_prompt[name] for name in order[:prompts]]
    others = [example.source.chosen_text for example in picked]
    made = []
    for place, example in enumerate(picked):
        texts = {
            "repeated": _repeated(example.source.chosen_text),
            "copied": chat.without_marks(example.source.prompt[-1].text).strip(),
        }
        made.append(Garbage("empty", "", [*_prompt(example, chat), chat.end_id], example))
        made += [Garbage(kind, text, _ids(example, text, chat), example) for kind, text in texts.items()]
        long = _overlong(example, others[place + 1 :] + others[:place], chat, max_length_tokens)
        made += [long] if long else []
    return [one for one in made if len(one.ids) <= max_length_tokens]


def _repeated(text: str) -> str:
    words = text.split()
    phrase = " ".join(words[:PHRASE_WORDS])
    return " ".join([phrase] * max(4, -(-len(words) // PHRASE_WORDS)))


def _overlong(example: EncodedPreference, others: Sequence[str], chat: Chat, limit: int) -> Garbage | None:
    """The longest within the limit and `OVERLONG` times the chosen answer; None if no further answer fits."""
    room = min(limit, len(example.prompt) + OVERLONG * len(example.chosen))
    made = None
    for text in itertools.accumulate(others, lambda a, b: f"{a}\n\n{b}", initial=example.source.chosen_text):
        ids = _ids(example, text, chat)
        if len(ids) > room:
            break
        made = Garbage("over-long", text, ids, example) if text != example.source.chosen_text else None
    return made


def _ids(example: EncodedPreference, text: str, chat: Chat) -> list[int]:
    answer = chat.without_marks(text)  # parts of a thought are not
    prompt, completion = chat.encode_completion(example.source.prompt, answer, tools=example.source.tools)
    return prompt + completion


def _prompt(example: EncodedPreference, chat: Chat) -> list[int]:
    return chat.encode_prompt(example.source.prompt, example.source.tools)

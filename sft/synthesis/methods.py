"""The methods of *synthesise*: what a model is asked to write, and what rules make without one.

Each draft keeps the ids of the real rows that it was made from. Drafts depend on the seed, the method and the real rows,
not on the order of files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from random import Random
from typing import Any

from sft.synthesis.configuration import SynthesiseConfig
from tiebreak.messages import content_id, text_of
from tiebreak.records import Demonstration, Prompt

EVOLUTIONS = (
    "add one more constraint or condition to it",
    "ask for more depth on one point of it",
    "replace a general word in it by a specific one",
    "make it need one more step of reasoning",
    "ask about a rarer matter of the same field instead, of the same length and difficulty",
)
"""Xu et al. 2024, section 3.2: four ways in depth, one in breadth."""
PLATITUDES = {
    "en": "That is a great question. There are many things to consider, and it depends on your situation.",
    "de": "Das ist eine gute Frage. Dabei gibt es vieles zu beachten, und es kommt auf den Einzelfall an.",
}
PLACE = re.compile(r"\{(\w+)\}")
"""a template's place for one of its values"""
_ALONE = "Reply with the request alone, in the language of the example."
_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
_TAG = re.compile(r"<[A-Z][A-Z0-9_]*?(?:_[0-9a-f]+)?>")
"""what `anonymise` puts in place of personal data"""
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_GERMAN = re.compile(r"\b(?:der|die|das|und|ist|nicht|ein|eine|Sie|mit|auf)\b")


@dataclass(frozen=True)
class Draft:
    """A row to be written by a model, or made by rules."""

    method: str
    number: int
    seeds: tuple[str, ...]
    """ids of the real prompts that it was made from"""
    request: str = ""
    """what the writer is asked; empty: rules made the row"""
    prompt: str = ""
    completion: str = ""
    rejected: str = ""
    how: str = ""
    """the evolution, persona, gap or corruption"""
    tags: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Identity of the draft."""
        return content_id("draft", self.method, self.number, self.request, self.prompt, self.completion, self.rejected)


@dataclass
class Material:
    """The real rows that may be learned from: those of the train split, in an order of their ids."""

    prompts: Sequence[Prompt] = ()
    demonstrations: Sequence[Demonstration] = ()
    gaps: Sequence[Mapping[str, Any]] = ()
    templates: Sequence[Mapping[str, Any]] = field(default_factory=list)


def draft_rows(config: SynthesiseConfig, material: Material) -> list[Draft]:
    """All drafts of all methods."""
    drafts: list[Draft] = []
    for method, rows in config.methods.items():
        make = _METHODS[method]
        made = (
            make(number, Random(content_id("draft", config.seed, method, number)), material, config)
            for number in range(rows)
        )
        drafts += [replace(one, method=method, number=number) for number, one in enumerate(made) if one is not None]
    return drafts


def _asked(prompt: Prompt) -> str:
    return text_of([message for message in prompt.messages if message.role == "user"][-1:])


def _self_instruct(_: int, chance: Random, material: Material, __: SynthesiseConfig) -> Draft:
    seeds = chance.sample(list(material.prompts), min(3, len(material.prompts)))
    shown = "\n".join(f"{n}. {_asked(one)}" for n, one in enumerate(seeds, start=1))
    request = f"Requests that people sent:\n{shown}\n\nWrite one more of the same kind on another matter. {_ALONE}"
    return Draft("", 0, tuple(one.id for one in seeds), request)


def _evol_instruct(_: int, chance: Random, material: Material, __: SynthesiseConfig) -> Draft:
    seed, how = chance.choice(list(material.prompts)), chance.choice(EVOLUTIONS)
    return Draft("", 0, (seed.id,), f"Rewrite the request below: {how}. {_ALONE}\n\n{_asked(seed)}", how=how)


def _persona(_: int, chance: Random, material: Material, config: SynthesiseConfig) -> Draft:
    seed, who = chance.choice(list(material.prompts)), chance.choice(config.personas)
    request = (
        f"You are {who}. Write one request of the kind of the example, on a matter of yours. {_ALONE}\n\n{_asked(seed)}"
    )
    return Draft("", 0, (seed.id,), request, how=who)


def _back_translation(_: int, chance: Random, material: Material, __: SynthesiseConfig) -> Draft:
    seed = chance.choice(list(material.demonstrations))
    request = f"Write the request to which the text below is the answer. {_ALONE}\n\n{seed.text}"
    return Draft("", 0, (seed.prompt.id,), request, completion=seed.text)


def _paraphrase(_: int, chance: Random, material: Material, __: SynthesiseConfig) -> Draft:
    seed = chance.choice(list(material.demonstrations))
    request = f"Say the request below in other words, with the same meaning. {_ALONE}\n\n{_asked(seed.prompt)}"
    return Draft("", 0, (seed.prompt.id,), request, completion=seed.text, tags=seed.prompt.tags)


def _gap_card(number: int, _: Random, material: Material, __: SynthesiseConfig) -> Draft | None:
    if not material.gaps:
        return None
    gap = material.gaps[number % len(material.gaps)]
    what = f"{gap['kind']}: {gap['value']}"
    examples = "\n".join(f"- {text}" for text in gap.get("examples", ()))
    shown = f"Requests that people sent ({what}):\n{examples}\n\n" if examples else ""
    tags = (str(gap["value"]),) if gap["kind"] == "tag" else ()
    return Draft(
        "", 0, (), f"{shown}Write one more such request ({what}, number {number + 1}). {_ALONE}", how=what, tags=tags
    )


def _typos(_: int, chance: Random, material: Material, __: SynthesiseConfig) -> Draft:
    seed = chance.choice(list(material.demonstrations))
    return Draft(
        "", 0, (seed.prompt.id,), "", with_typos(_asked(seed.prompt), chance), seed.text, tags=seed.prompt.tags
    )


def _template(number: int, _: Random, material: Material, config: SynthesiseConfig) -> Draft | None:
    """The rows of all templates, in order; if fewer are wanted, a random sample of them."""
    filled, wanted = list(_filled(material.templates)), config.methods["templates"]
    if number >= len(filled):
        return None
    if wanted < len(filled):
        chosen = Random(content_id("templates", config.seed)).sample(range(len(filled)), wanted)
        number = sorted(chosen)[number]
    prompt, completion, how = filled[number]
    return Draft("", 0, (), "", prompt, completion, how=how)


def _filled(templates: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    for template in templates:
        names = sorted(template.get("values", {}))
        for values in product(*(template["values"][name] for name in names)):
            put = dict(zip(names, map(str, values), strict=True))
            yield _fill(template["prompt"], put), _fill(template.get("completion", ""), put), str(template["prompt"])


def _fill(text: str, values: Mapping[str, str]) -> str:
    return PLACE.sub(lambda found: values.get(found[1], found[0]), text)


def _corruption(number: int, chance: Random, material: Material, __: SynthesiseConfig) -> Draft | None:
    seed = chance.choice(list(material.demonstrations))
    possible = [
        (how, made)
        for how, corrupt in CORRUPTIONS.items()
        if (made := corrupt(seed.text, chance)) not in ("", seed.text)
    ]
    if not possible:
        return None
    how, rejected = possible[number % len(possible)]
    return Draft("", 0, (seed.prompt.id,), "", _asked(seed.prompt), seed.text, rejected, how, seed.prompt.tags)


_Make = Callable[[int, Random, Material, SynthesiseConfig], Draft | None]
_METHODS: dict[str, _Make] = {
    "self-instruct": _self_instruct,
    "evol-instruct": _evol_instruct,
    "persona": _persona,
    "back-translation": _back_translation,
    "paraphrase": _paraphrase,
    "gap-cards": _gap_card,
    "typos": _typos,
    "templates": _template,
    "corruption": _corruption,
}


# --- rules -------------------------------------------------------------------------------------------------------------


def with_typos(text: str, chance: Random) -> str:
    """A text in which one word of eight is mistyped: two letters swapped, one left out, or one doubled."""
    parts = re.split(rf"({_TAG.pattern}|[^\w<]+|<)", text)
    places = [n for n, part in enumerate(parts) if len(part) > 3 and part.isalpha()]
    for n in chance.sample(places, min(len(places), max(1, len(places) // 8))):
        word, at = parts[n], chance.randrange(1, len(parts[n]) - 1)
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        parts[n] = chance.choice((swapped, word[:at] + word[at + 1 :], word[: at + 1] + word[at:]))
    return "".join(parts)


def wrong_number(text: str, chance: Random) -> str:
    """A text with one of its numbers changed; empty if it has none. Numbers of tags are none."""
    tags = [one.span() for one in _TAG.finditer(text)]
    found = [one for one in _NUMBER.finditer(text) if not any(start < one.start() < end for start, end in tags)]
    if not found:
        return ""
    one = chance.choice(found)
    whole = re.match(r"\d+", one.group())
    value = int(whole.group()) if whole else 0
    other = chance.choice([value * 2 or 2, value * 10 or 10, value + 3, max(value // 2, 0)])
    wrong = other if other != value else value + 1
    return (
        text[: one.start()] + str(wrong) + one.group()[len(str(whole.group() if whole else "")) :] + text[one.end() :]
    )


def missing_step(text: str, chance: Random) -> str:
    """A text without one of its sentences; empty if it has only one."""
    sentences = _SENTENCE.split(text)
    if len(sentences) < 2:
        return ""
    del sentences[chance.randrange(len(sentences))]
    return " ".join(sentences)


def platitude(text: str, _: Random) -> str:
    """A polite answer that says nothing, in the language of the text."""
    return PLATITUDES["de" if len(_GERMAN.findall(text)) > len(text.split()) / 20 else "en"]


CORRUPTIONS: dict[str, Callable[[str, Random], str]] = {
    "wrong number": wrong_number,
    "missing step": missing_step,
    "platitude": platitude,
}

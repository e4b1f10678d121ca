"""A chat template's text around an assistant's answer, found by rendering a small conversation.

No table of model families: the template itself is probed. The text after the answer shows its end token; the text before
it, with and without a thought, shows how thoughts are marked. With the model's own list of end tokens
(`generation_config.json`) that gives the tokens at which sampling stops, and the one that training ends an answer with.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiebreak.errors import ConfigError, HandoffError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Render = Callable[[Sequence[Mapping[str, Any]], bool], str]
"""Messages as a template takes them, and whether to add the generation prompt → text"""

_QUESTION, _ANSWER, _NEXT, _THOUGHT = "How much?", "Thirteenfold.", "And then?", "Elevenfold."
TEMPLATE_DATE = date.fromisoformat("2026-01-01")
"""The date for templates that write today's: text that changes overnight would change what a resumed run learns."""


@dataclass(frozen=True)
class Turn:
    """An assistant's turn as a template writes it."""

    lead: str
    """the assistant's text before an answer without a thought"""
    tail: str
    """text after the last answer: its end token and the template's addition"""
    inner_tail: str
    """what follows an answer that another turn follows, with the beginning of that turn"""
    thought_open: str | None
    """beginning of a thought; empty if the generation prompt contains it; None: the template has no thoughts"""
    thought_close: str = ""
    """text between a thought and its answer"""
    thought_begun: str = ""
    """the mark that begins a thought, where the generation prompt ends with it: a thought in text may bring it too"""
    whole: str = ""
    """a question and its answer, with all surrounding text"""

    @property
    def thought_mark(self) -> str:
        """The beginning of a thought in text."""
        return (self.thought_open or "").strip() or self.thought_begun


def probe_turn(render: Render) -> Turn:
    """Find out how a template writes an answer.

    Raises:
        HandoffError: it does not write the answer it is given.
    """
    ask = {"role": "user", "content": _QUESTION}
    prompt = render([ask], True)
    whole = render([ask, {"role": "assistant", "content": _ANSWER}], False)
    at = whole.rfind(_ANSWER)
    if at < 0:
        raise HandoffError(
            "the chat template leaves an assistant's answer out of what it renders: give another with chat_template"
        )
    lead = whole[len(prompt) : at] if whole.startswith(prompt) else ""
    opening, closing = _probe_thought(render, ask, prompt)
    tail = whole[at + len(_ANSWER) :]
    begun = (
        re.search(r"(<[^<>\s]+>|\[[^\[\]\s]+\])\s*\Z", prompt) if opening is not None and not opening.strip() else None
    )
    mark = begun.group().strip() if begun else ""
    return Turn(lead, tail, _inner_tail(render, ask) or tail, opening, closing, mark, whole)


def _inner_tail(render: Render, ask: Mapping[str, Any]) -> str:
    try:
        text = render([ask, {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _NEXT}], False)
    except HandoffError:
        return ""
    answer, following = text.rfind(_ANSWER), text.rfind(_NEXT)
    return text[answer + len(_ANSWER) : following] if 0 <= answer < following else ""


def _probe_thought(render: Render, ask: Mapping[str, Any], prompt: str) -> tuple[str | None, str]:
    answer = {"role": "assistant", "content": _ANSWER, "reasoning_content": _THOUGHT}
    try:
        text = render([ask, answer], False)
    except HandoffError:
        return None, ""
    thought, at = text.rfind(_THOUGHT), text.rfind(_ANSWER)
    if not 0 <= thought < at or not text.startswith(prompt):
        return None, ""
    return text[len(prompt) : thought], text[thought + len(_THOUGHT) : at]


def end_of_turn(tokenizer: PreTrainedTokenizerBase, turn: Turn, model_ends: Sequence[int]) -> int | None:
    """The token with which a template ends an answer; None if there is none.

    Of the special tokens that follow every answer (Phi-3 closes the whole conversation with one more) the first at which
    the model stops (Cohere writes one before that); where it stops at none of them (Qwen2.5's base model), the first.
    """
    after, inside = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (turn.tail, turn.inner_tail))
    common = [a for a, b in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(after, inside, strict=False))]
    special = special_ids(tokenizer)
    candidates = [i for i in common if i in special] or [i for i in after if i in special]
    return next((i for i in candidates if i in model_ends), candidates[0] if candidates else None)


def marks_of(tokenizer: PreTrainedTokenizerBase, turn: Turn, stop_ids: Sequence[int]) -> tuple[str, ...]:
    """The special tokens that a template writes around turns, and those that end one: no text may contain them."""
    written = set(tokenizer(turn.whole, add_special_tokens=False)["input_ids"]) & special_ids(tokenizer)
    names = [str(tokenizer.decode([number], skip_special_tokens=False)) for number in sorted({*written, *stop_ids})]
    return tuple(name for name in names if name.strip())


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that are marks and not text, as the one for what is unknown is."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def model_end_tokens(folder: Path) -> tuple[int, ...]:
    """The end tokens in a model's generation configuration: one, several, or none."""
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        if file.is_file():
            try:
                values = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise HandoffError(f"{file} is no JSON ({error}): fetch the model again") from error
            for holder in (values, values.get("text_config") or {}):
                if (named := holder.get("eos_token_id")) is not None:
                    return tuple(named) if isinstance(named, list) else (int(named),)
    return ()


def named_end_tokens(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> tuple[int, ...]:
    """Token ids of `end_of_turn`.

    Raises:
        ConfigError: a name is not one token.
    """
    found = []
    for name in names:
        ids = tokenizer(name, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ConfigError(
                f"end_of_turn: {name!r} is not one token of this tokenizer but {len(ids)}; its special tokens are "
                f"{', '.join(map(repr, tokenizer.all_special_tokens[:12]))}"
            )
        found.append(int(ids[0]))
    return tuple(found)


def with_fixed_date(template: str, day: date = TEMPLATE_DATE) -> str:
    """A template that writes a fixed date instead of today's."""
    formats = dict.fromkeys(re.findall(r"strftime_now\(\s*[\"']([^\"']+)[\"']\s*\)", template))
    if not formats:
        return template
    cases = "".join(
        f"{{%- {'if' if n == 0 else 'elif'} format == {json.dumps(form)} -%}}{day.strftime(form)}"
        for n, form in enumerate(formats)
    )
    return f"{{%- macro strftime_now(format) -%}}{cases}{{%- endif -%}}{{%- endmacro %}}{template}"


def find_template(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A chat template by its file, or by its name among those that the tokenizer or TRL brings.

    Raises:
        ConfigError: there is none.
    """
    file = Path(name)
    if file.is_file():
        return file.read_text(encoding="utf-8")
    own = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if name in own:
        return str(own[name])
    folder = Path(str(resources.files("trl"))) / "chat_templates"
    brought = {path.stem: path for path in folder.glob("*.jinja")}
    if name in brought:
        return brought[name].read_text(encoding="utf-8")
    near = difflib.get_close_matches(name, [*own, *brought], n=3)
    raise ConfigError(
        f"chat_template: {name!r} is neither a file nor a template that the tokenizer or TRL brings"
        + (f"; did you mean {' or '.join(near)}?" if near else "")
    )

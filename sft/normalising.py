"""The normal form of text: texts that differ only in their encoding become one prompt, or one answer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from tiebreak.messages import Messages, prompt_id
from tiebreak.records import Prompt

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2060\ufeff]")
"""Control characters (category Cc) except \\n and \\t, and zero-width characters."""


_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]"
)
"""letters of scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese"""


def split_words(text: str) -> list[str]:
    """The words of a text, without punctuation. Where a script has no spaces, each letter counts as one."""
    if text.isascii() or not _UNSPACED.search(text):
        return re.findall(r"\w+", text)
    return re.findall(rf"{_UNSPACED.pattern}|(?:(?!{_UNSPACED.pattern})\w)+", text)


def normalise(text: str) -> str:
    """NFC, \\n line ends, no control or zero-width characters, no whitespace at line ends or around the whole."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _UNSEEN.sub("", text)
    text = unicodedata.normalize("NFC", text)  # last: removed characters may separate a letter from its accent
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def normalise_lines(text: str) -> str:
    """Only \\n line ends, and no blanks and tabs at line ends or around the whole, for text that may be in the wrong
    encoding: there, control characters and no-break spaces are halves of letters (`Ã` and U+009F are `ß`)."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip(" \t") for line in lines).strip(" \t\n")


def _normalise_messages(messages: Messages, change: Callable[[str], str]) -> Messages:
    return tuple(
        message.map_text(change).model_copy(
            update={"reasoning_content": change(message.reasoning_content or "") or None}
        )
        for message in messages
    )


def normalise_completion(completion: str | Messages, change: Callable[[str], str] = normalise) -> str | Messages:
    """The normal form of an answer."""
    return change(completion) if isinstance(completion, str) else _normalise_messages(completion, change)


def normalise_prompt(prompt: Prompt, change: Callable[[str], str] = normalise) -> tuple[Prompt, bool]:
    """(the normal form of a prompt, whether that differs)."""
    messages = _normalise_messages(prompt.messages, change)
    identity = prompt_id(messages, prompt.tools)
    return prompt.model_copy(update={"messages": messages, "id": identity}), messages != prompt.messages

"""The normal form of text: texts that differ only in their encoding become one prompt, or one answer."""

from __future__ import annotations

import re
import unicodedata

from tiebreak.records import Messages, Prompt, prompt_id

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2060\ufeff]")
"""Control characters (category Cc) except \\n and \\t, and zero-width characters."""


def normalise(text: str) -> str:
    """NFC, \\n line ends, no control or zero-width characters, no whitespace at line ends or around the whole."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _UNSEEN.sub("", text)
    text = unicodedata.normalize("NFC", text)  # last: removed characters may separate a letter from its accent
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def _normalise_messages(messages: Messages) -> Messages:
    return tuple(
        message.map_text(normalise).model_copy(
            update={"reasoning_content": normalise(message.reasoning_content or "") or None}
        )
        for message in messages
    )


def normalise_completion(completion: str | Messages) -> str | Messages:
    return normalise(completion) if isinstance(completion, str) else _normalise_messages(completion)


def normalise_prompt(prompt: Prompt) -> tuple[Prompt, bool]:
    messages = _normalise_messages(prompt.messages)
    identity = prompt_id(messages, prompt.tools)
    return prompt.model_copy(update={"messages": messages, "id": identity}), messages != prompt.messages

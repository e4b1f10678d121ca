"""Many conversations encoded together, which takes a fraction of the time of one after another.

chat = rendered_together(chat, conversations)
chat.encode_prompt(messages)                      # as before: what was rendered and encoded together is looked up
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

from tiebreak.chat.chat import Chat
from tiebreak.chat.templates import Tools
from tiebreak.errors import HandoffError
from tiebreak.messages import Message

Conversation = tuple[tuple[Message, ...], Tools, bool]
"""(messages, tools, whether the assistant's turn is begun after them)"""


@dataclass(frozen=True)
class RenderedChat(Chat):
    """A chat with texts and ids of some conversations."""

    texts: dict[tuple[tuple[Message, ...], bool], str] = field(default_factory=dict)
    ids: dict[str, list[int]] = field(default_factory=dict)

    def _render(self, messages: Sequence[Message], tools: Tools = (), add_generation_prompt: bool = False) -> str:
        if tools:
            return super()._render(messages, tools, add_generation_prompt)
        key = (tuple(messages), add_generation_prompt)
        if key not in self.texts:
            self.texts[key] = super()._render(messages, tools, add_generation_prompt)
        return self.texts[key]

    def _raw_ids(self, text: str) -> list[int]:
        found = self.ids.get(text)
        return super()._raw_ids(text) if found is None else list(found)


def rendered_together(chat: Chat, conversations: Iterable[Conversation]) -> Chat:
    """The chat, with these conversations rendered and encoded. Those that its template refuses are left out."""
    cached = RenderedChat(**{one.name: getattr(chat, one.name) for one in fields(chat)})
    wanted: dict[str, None] = {}
    for messages, tools, begun in conversations:
        with contextlib.suppress(HandoffError):
            settled = [cached._settle_thought(message) for message in messages]
            if not any(message.tool_calls for message in settled):
                wanted[cached._render(settled, tools, begun)] = None
    if wanted:
        encoded = chat.tokenizer(list(wanted), add_special_tokens=False, return_attention_mask=False)["input_ids"]
        cached.ids.update(zip(wanted, encoded, strict=True))
    return cached

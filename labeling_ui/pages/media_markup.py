"""Images and recordings beside texts, as empty figures that the pages' script fills: a file is named by its hash alone."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping

from labeling_ui.pages.safe_markup import render, show_hidden
from labeling_ui.store.pairs.media import ShownMedia
from tiebreak.content import MediaPart, TextPart
from tiebreak.messages import Message
from tiebreak.records import Completion


def render_message(message: Message, media: Mapping[str, ShownMedia]) -> str:
    """A prompt's message, each file in its place."""
    if isinstance(message.content, str):
        return render(message.content)
    return "".join(_parts(message, media))


def render_answer(completion: Completion, media: Mapping[str, ShownMedia]) -> str:
    """An answer's text, whose offsets stay as they are, and its files after it."""
    figures = (figure(n, part, media) for n, part in enumerate(completion.message.media, start=1))
    return render(completion.text) + "".join(figures)


def _parts(message: Message, media: Mapping[str, ShownMedia]) -> Iterator[str]:
    number = 0
    for part in message.content:
        if isinstance(part, TextPart):
            yield render(part.text)
        elif not isinstance(part, str):
            number += 1
            yield figure(number, part, media)


def figure(number: int, part: MediaPart, media: Mapping[str, ShownMedia]) -> str:
    """One file: its kind, its hash, and what to say of it."""
    file = media.get(part.file or "")
    alt = html.escape(show_hidden(part.alt or (file.alt if file else "")))
    about = f"data-kind='{part.type}' data-file='{file.sha256 if file else ''}' data-number='{number}'"
    return f"<figure class='media' {about} title=\"{alt}\"></figure>"

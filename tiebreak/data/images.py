"""Images of a row: a column `images` is put into its messages, as TRL does; stages, which take text alone, refuse them.

{"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": …}]}], "images": ["cat.png"]}
{"prompt": "What is this?", "images": ["cat.png"]}          before the user's first text
"""

from __future__ import annotations

from collections.abc import Sequence

from tiebreak.content import ImagePart, Part, TextPart, image_of
from tiebreak.data.cells import Cells
from tiebreak.errors import DataError, counted
from tiebreak.messages import Messages
from tiebreak.records import Demonstration, LabelledAnswer, Pair, Preference, Prompt

IMAGES = ("images", "image")
"""TRL's names of the column"""
Conversation = Prompt | Demonstration | Preference | LabelledAnswer | Pair


def read_images(cells: Cells) -> list[ImagePart]:
    """The images in a row's column; none where it has no such column.

    Raises:
        ValueError: the column holds something else.
    """
    name = next((name for name in IMAGES if cells.values.get(name)), None)
    if name is None:
        return []
    value = cells.get(name)
    listed = value if isinstance(value, list | tuple) else [value]
    try:
        return [ImagePart(image=image_of(one)) for one in listed]
    except ValueError as error:
        raise ValueError(
            f"column {name!r}: an image in it is {error}, not a path or URL; columns: {{{name}: null}} leaves it out"
        ) from None


def place_images(images: Sequence[ImagePart], prompt: Messages, *answers: Messages) -> list[Messages]:
    """A prompt and answers to it with a column's images in their placeholders, in order; each answer goes on after the
    prompt. Without placeholders, the images precede the first text of the user (TRL's `prepare_multimodal_messages`).

    Raises:
        ValueError: there are more images than placeholders, or fewer.
    """
    if images and not any(has_placeholders(side) for side in (prompt, *answers)):
        return [_before_first_text(images, prompt), *answers]
    taken = _placeholders(prompt)
    for side in answers or ((),):
        if images and taken + _placeholders(side) != len(images):
            given, parts = counted(len(images), "image"), counted(taken + _placeholders(side), "image part")
            raise ValueError(f"{given} for {parts}: give one for each")
    return [_filled(prompt, images), *(_filled(side, images[taken:]) for side in answers)]


def has_placeholders(messages: Messages) -> bool:
    """Whether the messages have image parts without an image."""
    return _placeholders(messages) > 0


def _placeholders(messages: Messages) -> int:
    return sum(part.image is None for message in messages for part in message.images)


def _filled(messages: Messages, images: Sequence[ImagePart]) -> Messages:
    if not images:
        return messages
    rest = iter(images)

    def fill(part: Part) -> Part:
        if not isinstance(part, ImagePart) or part.image is not None:
            return part
        return part.model_copy(update={"image": next(rest).image})

    return tuple(
        message
        if isinstance(message.content, str)
        else message.model_copy(update={"content": tuple(fill(part) for part in message.content)})
        for message in messages
    )


def _before_first_text(images: Sequence[ImagePart], prompt: Messages) -> Messages:
    place = next((n for n, message in enumerate(prompt) if message.role == "user"), None)
    if place is None:
        raise ValueError("the row has images, but no user message to put them in")
    message = prompt[place]
    own = (TextPart(text=message.content),) if isinstance(message.content, str) else message.content
    return (*prompt[:place], message.model_copy(update={"content": (*images, *own)}), *prompt[place + 1 :])


# --- refusal -----------------------------------------------------------------------------------------------------------


def require_text(messages: Messages, stage: str, column: str | None = None, *, media_key: bool = False) -> None:
    """Refuse images and audio.

    Args:
        column: the row's column that they come from, if no part refers to it.
        media_key: whether the stage takes them with its key `media`.

    Raises:
        ValueError: a message has one; the error names it and the stage.
    """
    remedy = "remove the row or the part" if column is None else f"columns: {{{column}: null}} leaves the images out"
    if media_key:
        remedy = f"set media to the folder of the files, or {remedy}"
    for message in messages:
        if message.media:
            raise ValueError(
                f"{message.media[0].mark} in a message of the {message.role}: tiebreak {stage} takes only text; {remedy}"
            )


def require_text_records(records: Sequence[Conversation], source: str, stage: str) -> None:
    """Refuse records with images.

    Raises:
        DataError: with every such row.
    """
    faults = []
    for number, record in enumerate(records, start=1):
        try:
            require_text(messages_of(record), stage)
        except ValueError as error:
            faults.append(f"{source} row {number}: {error}")
    if faults:
        raise DataError(f"{source}: {len(faults)} of {len(records)} rows have images", faults)


def messages_of(record: Conversation) -> Messages:
    """All messages of a record."""
    if isinstance(record, Preference):
        return (*record.prompt, *record.chosen, *record.rejected)
    if isinstance(record, LabelledAnswer):
        return (*record.prompt, *record.completion)
    if isinstance(record, Demonstration):
        return (*record.prompt.messages, *record.answers)
    return record.messages

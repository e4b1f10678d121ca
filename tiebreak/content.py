"""A message's content: text, or a list of parts (text, images, audio), in TRL's and OpenAI's forms.

    {"type": "text", "text": …}                           both; also input_text and output_text
    {"type": "image", "image": …}                         TRL
    {"type": "image"}, and a column `images`              TRL: a placeholder, which `tiebreak.data.images` fills
    {"type": "image_url", "image_url": {"url": …}}        OpenAI; also input_image
    {"type": "audio", "audio": …}                         transformers: a path or URL

All are read into the same records, so the same content has the same id in any form, and are written as TRL's first form.
Text alone is always a string. `tiebreak label` shows images and audio, which may have an `alt` text; the other stages take
text alone, and refuse the rest by name (`tiebreak.data.images`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field

_TEXT_TYPES = ("text", "input_text", "output_text")
"""Types of parts that are the message's text, in OpenAI's two forms; other types (reasoning) can have a text too."""
_IMAGE_URL_TYPES = ("image_url", "input_image")
_SIGNATURES = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"), (b"BM", "bmp"))
"""First bytes of files, by the image formats in data sets."""
_SHOWN_HASH = 12


def _is_none(value: object) -> bool:
    return value is None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextPart(_Part):
    """Text between images."""

    type: Literal["text"] = "text"
    text: str


class ImagePart(_Part):
    """An image."""

    type: Literal["image"] = "image"
    image: str | None = Field(default=None, min_length=1, exclude_if=_is_none)
    """a path or URL as the data writes it, or the image itself as a `data:` URL; None: a placeholder"""
    detail: Literal["auto", "low", "high"] | None = Field(default=None, exclude_if=_is_none)
    """OpenAI's resolution"""
    alt: str | None = Field(default=None, max_length=2000, exclude_if=_is_none)
    """what it shows, for raters who do not see it"""

    @property
    def file(self) -> str | None:
        """The path or URL."""
        return self.image

    @property
    def mark(self) -> str:
        """`[image cat.png]`: its place in a text that people read or that is compared."""
        return _mark("image", self.image)


class AudioPart(_Part):
    """A recording."""

    type: Literal["audio"] = "audio"
    audio: str = Field(min_length=1)
    """a path or URL as the data writes it, or the recording itself as a `data:` URL"""
    alt: str | None = Field(default=None, max_length=2000, exclude_if=_is_none)
    """what is heard, for raters who do not hear it"""

    @property
    def file(self) -> str:
        """The path or URL."""
        return self.audio

    @property
    def mark(self) -> str:
        """`[audio cat.mp3]`: its place in a text that people read or that is compared."""
        return _mark("audio", self.audio)


def _mark(kind: str, file: str | None) -> str:
    if file is None:
        return f"[{kind}]"
    if not file.startswith("data:"):
        return f"[{kind} {file}]"
    media_type = file.removeprefix("data:").partition(",")[0].partition(";")[0]
    return f"[{kind} {media_type} sha256:{hashlib.sha256(file.encode()).hexdigest()[:_SHOWN_HASH]}]"


MediaPart = ImagePart | AudioPart
Part = TextPart | ImagePart | AudioPart
Parts = tuple[Annotated[Part, Field(discriminator="type")], ...]


def read_parts(parts: Sequence[object]) -> str | tuple[Part, ...]:
    """A list of parts; text alone as a string. Chat templates concatenate texts with nothing in between.

    Raises:
        ValueError: a part is neither text nor an image; the message gives its number and type.
    """
    found = []
    for number, part in enumerate(parts):
        try:
            found.append(_read_part(part))
        except ValueError as error:
            raise ValueError(f"content[{number}] is a part of type {_type_of(part)!r}{error}") from None
    if all(isinstance(part, TextPart) for part in found):
        return "".join(part.text for part in found if isinstance(part, TextPart))
    return tuple(found)


def _type_of(part: object) -> str:
    return str(part.get("type", "untyped")) if isinstance(part, Mapping) else type(part).__name__


def _read_part(part: object) -> Part:
    if isinstance(part, TextPart | ImagePart | AudioPart):
        return part
    if isinstance(part, str):
        return TextPart(text=part)
    if isinstance(part, Mapping):
        part = {key: value for key, value in part.items() if value is not None}
    if _is_text(part):
        return TextPart(text=part["text"])
    if isinstance(part, Mapping) and part.get("type") == "image":
        return _image_of(part, "image")
    if isinstance(part, Mapping) and part.get("type") in _IMAGE_URL_TYPES:
        return _image_of(part, "image_url")
    if isinstance(part, Mapping) and part.get("type") == "audio" and part.keys() <= {"type", "audio", "alt"}:
        return _audio_of(part)
    raise ValueError(": a message has text and images; remove the row or the part")


def _audio_of(part: Mapping[str, Any]) -> AudioPart:
    try:
        return AudioPart(audio=image_of(part.get("audio")), alt=_alt_of(part))
    except ValueError as error:
        raise ValueError(f", and its audio is {error}: write {_FORMS['audio']}") from None


def _alt_of(part: Mapping[str, Any]) -> str | None:
    alt = part.get("alt")
    if alt is not None and not isinstance(alt, str):
        raise ValueError(f" with an alt that is a {type(alt).__name__}, not text")
    return alt


def _is_text(part: object) -> TypeGuard[Mapping[str, str]]:
    if not isinstance(part, Mapping) or part.keys() != {"type", "text"}:
        return False
    return part["type"] in _TEXT_TYPES and isinstance(part["text"], str)


def _image_of(part: Mapping[str, Any], key: str) -> ImagePart:
    """An image part. Without a value, TRL's is a placeholder and OpenAI's is an error."""
    value, detail = part.get(key), part.get("detail")
    if key == "image_url" and isinstance(value, Mapping):
        detail = value.get("detail", detail)
        value = {name: inner for name, inner in value.items() if name != "detail"}
    if unknown := sorted(part.keys() - {"type", key, "detail", "alt"}):
        raise ValueError(f" with {', '.join(map(repr, unknown))}: write {_FORMS[key]}")
    if detail not in (None, "auto", "low", "high"):
        raise ValueError(f" with detail {detail!r}: it is auto, low or high")
    if value is None and key == "image":
        return ImagePart(detail=detail, alt=_alt_of(part))
    if value is None:
        raise ValueError(f" without {key}: write {_FORMS[key]}")
    try:
        return ImagePart(image=image_of(value), detail=detail, alt=_alt_of(part))
    except ValueError as error:
        raise ValueError(f", and its {key} is {error}: write {_FORMS[key]}") from None


_FORMS = {
    "audio": '{"type": "audio", "audio": PATH}',
    "image": '{"type": "image", "image": PATH or URL}',
    "image_url": '{"type": "image_url", "image_url": {"url": URL}}',
}


def image_of(value: object) -> str:
    """An image as data sets write it: a path or URL, `{url}`, or `{path, bytes}` of the `datasets` library.

    Raises:
        ValueError: it is none of these; the message says what it is.
    """
    if isinstance(value, Mapping):
        filled = {key: inner for key, inner in value.items() if inner is not None}
        if filled.keys() == {"url"}:
            value = filled["url"]
        elif filled and filled.keys() <= {"path", "bytes"}:
            value = filled.get("bytes", filled.get("path"))
        else:
            raise ValueError(f"an object with {', '.join(map(repr, filled)) or 'nothing'}")
    if isinstance(value, bytes) and value:
        return _as_data_url(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError("empty" if value in ("", b"") or isinstance(value, str) else f"a {type(value).__name__}")
    return value


def _as_data_url(image: bytes) -> str:
    kind = next((f"image/{name}" for begin, name in _SIGNATURES if image.startswith(begin)), "application/octet-stream")
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"

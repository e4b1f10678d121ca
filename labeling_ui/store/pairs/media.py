"""Images and recordings in the label store: each file once, by its hash, and the names that pairs have for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import sqlalchemy as sa

from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import MEDIA_FILES, MEDIA_NAMES
from tiebreak.content import Part, Parts, TextPart
from tiebreak.records import Pair

PairT = TypeVar("PairT", bound=Pair)
MediaType = Literal[
    "image/png", "image/jpeg", "image/webp", "image/gif", "audio/wav", "audio/mpeg", "audio/ogg", "audio/flac"
]
NAMES_AT_ONCE = 500


@dataclass(frozen=True)
class MediaFile:
    """A file as it is shown."""

    media_type: MediaType
    content: bytes
    width: int | None = None
    height: int | None = None
    """pixels"""


@dataclass(frozen=True)
class MediaName:
    """A file's name, as pairs write it, and what the store has under it."""

    name: str
    sha256: str
    media_type: MediaType
    width: int | None
    height: int | None
    alt: str
    """for pairs that refer to the file without a description of their own"""


def known_media(connection: sa.Connection, names: Sequence[str]) -> dict[str, str]:
    """The hash of the original file behind each of these names that the store has."""
    keys = {_key(name): name for name in names}
    found: dict[str, str] = {}
    listed = list(keys)
    for begin in range(0, len(listed), NAMES_AT_ONCE):
        some = MEDIA_NAMES.c.name.in_(listed[begin : begin + NAMES_AT_ONCE])
        rows = connection.execute(sa.select(MEDIA_NAMES.c.name, MEDIA_NAMES.c.source_sha256).where(some))
        found |= {keys[row.name]: row.source_sha256 for row in rows}
    return found


def keep_media(tx: Transaction, name: str, source_sha256: str, file: MediaFile, alt: str = "") -> None:
    """Store a file under a name, with a description; a file that is there is not stored again."""
    identity = hashlib.sha256(file.content).hexdigest()
    there = tx.connection.scalar(sa.select(MEDIA_FILES.c.sha256).where(MEDIA_FILES.c.sha256 == identity))
    if there is None:
        about = {"media_type": file.media_type, "width": file.width, "height": file.height, "content": file.content}
        tx.connection.execute(sa.insert(MEDIA_FILES).values(sha256=identity, **about))
    named = {"name": _key(name), "sha256": identity, "source_sha256": source_sha256, "alt": alt}
    tx.connection.execute(sa.insert(MEDIA_NAMES).values(**named))


@dataclass(frozen=True)
class ShownMedia:
    """A pair's file, as a page needs it."""

    sha256: str
    alt: str = ""
    """where the pair has no description of its own"""


def media_of(connection: sa.Connection, pair: Pair) -> dict[str, ShownMedia]:
    """The files that a pair refers to, by name. Most pairs have none, and ask the database nothing."""
    keys = {_key(part.file): part.file for part in pair.media if part.file}
    if not keys:
        return {}
    query = sa.select(MEDIA_NAMES).where(MEDIA_NAMES.c.name.in_(list(keys)))
    return {keys[row.name]: ShownMedia(row.sha256, row.alt) for row in connection.execute(query)}


def list_media(connection: sa.Connection, after: str, limit: int) -> list[MediaName]:
    """The files that have names of their own, by name; those within the data have none."""
    query = (
        sa.select(MEDIA_NAMES, MEDIA_FILES.c.media_type, MEDIA_FILES.c.width, MEDIA_FILES.c.height)
        .join(MEDIA_FILES, MEDIA_FILES.c.sha256 == MEDIA_NAMES.c.sha256)
        .where(MEDIA_NAMES.c.name > after, ~MEDIA_NAMES.c.name.like("data:%"))
        .order_by(MEDIA_NAMES.c.name)
        .limit(limit)
    )
    return [
        MediaName(row.name, row.sha256, cast(MediaType, row.media_type), row.width, row.height, row.alt)
        for row in connection.execute(query)
    ]


def described(connection: sa.Connection, pairs: Sequence[PairT]) -> list[PairT]:
    """The pairs as raters see them: a file without a description of the pair's own has the one that a lead gave it.

    Ids stay: a prompt's is that of the messages without such descriptions.
    """
    if not any(pair.media for pair in pairs):
        return list(pairs)
    query = sa.select(MEDIA_NAMES.c.name, MEDIA_NAMES.c.alt).where(MEDIA_NAMES.c.alt != "")
    alts = {row.name: row.alt for row in connection.execute(query)}
    return [_described(pair, alts) if pair.media else pair for pair in pairs]


def _described(pair: PairT, alts: Mapping[str, str]) -> PairT:
    def fill(content: str | Parts) -> str | Parts:
        return content if isinstance(content, str) else tuple(_with_alt(part, alts) for part in content)

    messages = tuple(one.model_copy(update={"content": fill(one.content)}) for one in pair.messages)
    completions = tuple(
        one if one.content is None else one.model_copy(update={"content": fill(one.content)})
        for one in pair.completions
    )
    return pair.model_copy(update={"messages": messages, "completions": completions})


def _with_alt(part: Part, alts: Mapping[str, str]) -> Part:
    if isinstance(part, TextPart) or part.alt or not part.file:
        return part
    return part.model_copy(update={"alt": alts.get(_key(part.file))})


def describe_media(tx: Transaction, name: str, alt: str) -> bool:
    """Change a file's description; False if there is no such file."""
    changed = sa.update(MEDIA_NAMES).where(MEDIA_NAMES.c.name == name).values(alt=alt)
    return bool(tx.connection.execute(changed).rowcount)


def read_media(connection: sa.Connection, sha256: str) -> MediaFile | None:
    """A file by its hash."""
    row = connection.execute(sa.select(MEDIA_FILES).where(MEDIA_FILES.c.sha256 == sha256)).first()
    if row is None:
        return None
    return MediaFile(cast(MediaType, row.media_type), bytes(row.content), row.width, row.height)


def _key(name: str) -> str:
    """A file's name in the store; a file within the data goes by its hash."""
    return f"data:{hashlib.sha256(name.encode()).hexdigest()}" if name.startswith("data:") else name

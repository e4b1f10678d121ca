"""Images and recordings in the label store: each file once, by its hash, and the names that pairs have for it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import sqlalchemy as sa

from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import MEDIA_FILES, MEDIA_NAMES
from tiebreak.records import Pair

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


def keep_media(tx: Transaction, name: str, source_sha256: str, file: MediaFile) -> None:
    """Store a file under a name; a file that is there is not stored again."""
    identity = hashlib.sha256(file.content).hexdigest()
    there = tx.connection.scalar(sa.select(MEDIA_FILES.c.sha256).where(MEDIA_FILES.c.sha256 == identity))
    if there is None:
        about = {"media_type": file.media_type, "width": file.width, "height": file.height, "content": file.content}
        tx.connection.execute(sa.insert(MEDIA_FILES).values(sha256=identity, **about))
    named = {"name": _key(name), "sha256": identity, "source_sha256": source_sha256}
    tx.connection.execute(sa.insert(MEDIA_NAMES).values(**named))


def hashes_of(connection: sa.Connection, pair: Pair) -> dict[str, str]:
    """The hash of each file that a pair refers to, by its name."""
    keys = {_key(part.file): part.file for part in pair.media if part.file}
    if not keys:
        return {}
    query = sa.select(MEDIA_NAMES.c.name, MEDIA_NAMES.c.sha256).where(MEDIA_NAMES.c.name.in_(list(keys)))
    return {keys[row.name]: row.sha256 for row in connection.execute(query)}


def read_media(connection: sa.Connection, sha256: str) -> MediaFile | None:
    """A file by its hash."""
    row = connection.execute(sa.select(MEDIA_FILES).where(MEDIA_FILES.c.sha256 == sha256)).first()
    if row is None:
        return None
    return MediaFile(cast(MediaType, row.media_type), bytes(row.content), row.width, row.height)


def _key(name: str) -> str:
    """A file's name in the store; a file within the data goes by its hash."""
    return f"data:{hashlib.sha256(name.encode()).hexdigest()}" if name.startswith("data:") else name

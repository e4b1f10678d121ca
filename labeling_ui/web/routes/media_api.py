"""Images and recordings of pairs.

GET  /api/media/{sha256}                a file, by its hash: raters learn only the hashes of their own pairs
GET  /api/lead/media?after=NAME         the files in the store, by name
POST /api/lead/media?name=FILE&alt=…    add a file, whose bytes are the body; pairs refer to it by this name
PUT  /api/lead/media                    change a file's description
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from labeling_ui.exchange import media as limits
from labeling_ui.exchange.media import BadMediaError, upload_media
from labeling_ui.store.answers import storable
from labeling_ui.store.pairs.media import describe_media, list_media, read_media
from labeling_ui.web.context import CurrentSession, DeskOf, LeadSession, LeadWritingSession
from labeling_ui.web.lead_replies import FileAdded, FilesListed
from labeling_ui.web.refusals import printable
from labeling_ui.web.replies import Done, replies

MAX_ALT_CHARACTERS = 2_000
NAMES_AT_ONCE = 100

router = APIRouter(prefix="/api")
_RANGE = re.compile(r"bytes=(\d{1,12})-(\d{1,12})?")
_HEADERS = {
    "Cache-Control": "private, max-age=86400, immutable",
    "Content-Disposition": "inline",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Accept-Ranges": "bytes",
}


@router.get("/media/{sha256}", response_class=Response)
def media(
    desk: DeskOf, _session: CurrentSession, request: Request, sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
) -> Response:
    """An image or recording; a range of its bytes, where a player asks for one."""
    with desk.store.reading() as connection:
        file = read_media(connection, sha256)
    if file is None:
        raise HTTPException(404, "no such file")
    size = len(file.content)
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    if asked is None:
        return Response(file.content, media_type=file.media_type, headers=_HEADERS)
    begin, end = int(asked[1]), min(int(asked[2]) if asked[2] else size - 1, size - 1)
    if begin > end:
        return Response(status_code=416, headers=_HEADERS | {"Content-Range": f"bytes */{size}"})
    about = _HEADERS | {"Content-Range": f"bytes {begin}-{end}/{size}"}
    return Response(file.content[begin : end + 1], status_code=206, media_type=file.media_type, headers=about)


class Description(BaseModel):
    """What a file shows, or what is heard in it, for raters who do not see or hear it."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    alt: str = Field(max_length=MAX_ALT_CHARACTERS)

    _storable = field_validator("name", "alt")(storable)


@router.get("/lead/media", **replies(FilesListed))
def media_names(desk: DeskOf, _lead: LeadSession, after: Annotated[str, Query(max_length=200)] = "") -> dict[str, Any]:
    """The files in the store, by name, after a name; and the limits of a file."""
    with desk.store.reading() as connection:
        files = list_media(connection, after, NAMES_AT_ONCE + 1)
    return {
        "files": [vars(file) for file in files[:NAMES_AT_ONCE]],
        "more": len(files) > NAMES_AT_ONCE,
        "limits": {
            "bytes": limits.MAX_BYTES,
            "pixels": limits.MAX_PIXELS,
            "minutes": limits.MAX_AUDIO_SECONDS // 60,
        },
    }


_FILE = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}


@router.post("/lead/media", **replies(FileAdded), openapi_extra=_FILE)
async def add_media(
    desk: DeskOf,
    _lead: LeadWritingSession,
    request: Request,
    name: Annotated[str, Query(min_length=1, max_length=200)],
    alt: Annotated[str, Query(max_length=MAX_ALT_CHARACTERS)] = "",
) -> dict[str, Any]:
    """Add an image or recording under the name by which pairs refer to it; it is checked, and cleaned of EXIF."""
    content = await request.body()
    try:
        about = Description(name=name, alt=alt)
        file, new = await to_thread.run_sync(upload_media, desk.store, about.name, content, about.alt)
    except BadMediaError as error:
        raise HTTPException(422, printable(f"{name} {error}")) from error
    except ValueError as error:
        raise HTTPException(422, f"name: {printable(name)} cannot be stored") from error
    return {"name": name, "new": new, "media_type": file.media_type, "width": file.width, "height": file.height}


@router.put("/lead/media", **replies(Done))
async def describe(desk: DeskOf, _lead: LeadWritingSession, body: Description) -> dict[str, bool]:
    """Change what pairs without a description of their own say of a file."""
    if not await desk.write(lambda tx: describe_media(tx, body.name, body.alt)):
        raise HTTPException(404, "no such file")
    return {"ok": True}

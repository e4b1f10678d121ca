"""Images and recordings of pairs.

GET /api/media/{sha256}     a file, by its hash: raters learn only the hashes of their own pairs
"""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Request, Response

from labeling_ui.store.pairs.media import read_media
from labeling_ui.web.context import CurrentSession, DeskOf

router = APIRouter(prefix="/api/media")
_RANGE = re.compile(r"bytes=(\d{1,12})-(\d{1,12})?")
_HEADERS = {
    "Cache-Control": "private, max-age=86400, immutable",
    "Content-Disposition": "inline",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Accept-Ranges": "bytes",
}


@router.get("/{sha256}", response_class=Response)
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

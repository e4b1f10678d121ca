"""Pairs that a lead uploads: a file as `tiebreak label` reads it, previewed, then added to a batch.

POST /api/lead/pairs/upload?name=FILE&batch=B[&preview=true]      the file's bytes are the body
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import JSONResponse

from labeling_ui.database.errors import RefusedError
from labeling_ui.exchange.media import MediaConfig, add_media, missing_media
from labeling_ui.pages.media_markup import render_answer, render_message
from labeling_ui.store.answers import storable
from labeling_ui.store.pairs.campaign import Source
from labeling_ui.store.pairs.media import ShownMedia, media_of
from labeling_ui.store.store import Store
from labeling_ui.web.context import DeskOf, LeadWritingSession
from labeling_ui.web.lead_replies import Uploaded
from labeling_ui.web.refusals import printable
from labeling_ui.web.replies import replies
from tiebreak.assessments import SingleAnswer
from tiebreak.data.pairs import read_pairs
from tiebreak.data.single import names_tasks, read_single_answers
from tiebreak.errors import DataError, TiebreakError
from tiebreak.records import Pair

SHOWN = 3
"""Pairs that a preview shows."""
WITHIN = "within"
"""In a preview, in place of the hash of a file that is within the uploaded one."""

router = APIRouter(prefix="/api/lead/pairs")


_FILE = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}


@router.post("/upload", **replies(Uploaded), openapi_extra=_FILE)
async def upload(
    desk: DeskOf,
    _lead: LeadWritingSession,
    request: Request,
    name: Annotated[str, Query(min_length=1, max_length=200)],
    batch: Annotated[str, Query(max_length=100)] = "",
    preview: bool = False,
) -> JSONResponse:
    """Add a file's new pairs to a batch. `preview`: only count and show them."""
    content = await request.body()
    reply = await to_thread.run_sync(
        lambda: _upload(desk.store, content, name, batch, preview, desk.page.asked.classes)
    )
    return JSONResponse(reply)


def _upload(
    store: Store, content: bytes, name: str, batch: str, preview: bool, classes: Sequence[str]
) -> dict[str, Any]:
    pairs, notes = _read(content, name)
    _take_media(store, pairs, preview)
    if not classes and any(isinstance(one, SingleAnswer) and one.task == "classify" for one in pairs):
        raise RefusedError(f"{name} has answers to classify, and this campaign has no classes")
    source = Source(name, hashlib.sha256(content).hexdigest())
    new = store.upload_pairs(pairs, batch, source, preview=preview)
    shown = _as_shown(store, pairs[:SHOWN]) if preview else []
    return {"pairs": len(pairs), "new": new, "shown": shown, "notes": notes}


def _take_media(store: Store, pairs: Sequence[Pair], preview: bool) -> None:
    """Images and recordings that are in the file itself; others must be in the store.

    Raises:
        HTTPException: 422: some are missing or bad.
    """
    if missing := [name for name in missing_media(store, pairs) if not name.startswith("data:")]:
        raise HTTPException(
            422,
            [
                printable(
                    f"{one}: no such file in the store: add it under Images and recordings, or with the key media"
                )
                for one in missing[:20]
            ],
        )
    if not preview:
        try:
            add_media(store, pairs, MediaConfig(None))
        except DataError as error:
            raise HTTPException(422, printable(str(error))) from error


def _read(content: bytes, name: str) -> tuple[list[Pair], list[str]]:
    """The file's pairs, and what is to be said of how they were read: columns that were ignored, for one.

    Raises:
        HTTPException: 422: it cannot be read; names every bad row.
        RefusedError: it has none.
    """
    try:
        storable(name)
    except ValueError as error:
        raise HTTPException(422, f"name: {error}") from error
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        # The uploaded name is never used as a path: only its ending counts, for the format.
        file = Path(folder) / f"upload{''.join(PurePosixPath(name).suffixes[-2:])}"
        try:
            file.write_bytes(content)
            pairs: list[Pair] = (
                [*read_single_answers(str(file), media=True)]
                if names_tasks(str(file))
                else read_pairs(str(file), media=True, report=notes.append)
            )
        except TiebreakError as error:
            raise HTTPException(422, printable(str(error).replace(str(file), name))) from error
        except OSError as error:
            raise HTTPException(422, f"{name}: the file cannot be read: rename it") from error
    if not pairs:
        raise RefusedError(f"{name} has no pairs")
    return pairs, [printable(note.replace(str(file), name)) for note in notes]


def _as_shown(store: Store, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    with store.reading() as connection:
        files = [media_of(connection, pair) for pair in pairs]
    for pair, media in zip(pairs, files, strict=True):  # within the uploaded file, and so not in the store yet
        media |= {part.file: ShownMedia(WITHIN) for part in pair.media if part.file and part.file not in media}
    return [
        {
            "pair_id": pair.id,
            "messages": [{"role": one.role, "html": render_message(one, media)} for one in pair.messages],
            "completions": [render_answer(completion, media) for completion in pair.completions],
        }
        for pair, media in zip(pairs, files, strict=True)
    ]

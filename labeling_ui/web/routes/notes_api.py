"""Messages between raters and leads about a pair.

GET  /api/notes                          the rater's threads, the latest first; leads are not named
POST /api/notes                          write to the leads about a pair that the rater has had
GET  /api/lead/notes?item_id=ID          threads that wait for an answer; all of a pair's
POST /api/lead/notes                     answer a rater
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator

from labeling_ui.store.answers import storable
from labeling_ui.store.leads import notes
from labeling_ui.web.context import CurrentSession, DeskOf, JudgingSession, SettlingSession, ViewingSession
from labeling_ui.web.lead_replies import RatersThread
from labeling_ui.web.replies import Done, OwnThread, replies

router = APIRouter(prefix="/api")


class NewNote(BaseModel):
    """A message about a pair."""

    model_config = ConfigDict(extra="forbid")

    item_id: str = Field(min_length=1, max_length=500)
    text: str = Field(min_length=1, max_length=notes.MAX_NOTE_CHARACTERS)

    _storable = field_validator("item_id", "text")(storable)


class Answer(NewNote):
    """A message to a rater about a pair."""

    rater_id: str = Field(min_length=1, max_length=100)

    _storable_id = field_validator("rater_id")(storable)


@router.get("/notes", **replies(list[OwnThread]))
def own_notes(desk: DeskOf, session: CurrentSession) -> list[dict[str, Any]]:
    """The rater's threads with the leads, the latest first."""
    rater_id = session.rater.id
    with desk.store.reading() as connection:
        threads = notes.threads_of_rater(connection, rater_id)
    return [
        {
            "item_id": thread.item_id,
            "prompt": thread.prompt,
            "notes": [
                {"at_ms": note.at_ms, "mine": note.by_id == rater_id, "text": note.text} for note in thread.notes
            ],
        }
        for thread in threads
    ]


@router.post("/notes", **replies(Done))
async def write_note(desk: DeskOf, session: JudgingSession, body: NewNote) -> JSONResponse:
    """Write to the leads about a pair that the rater has, or has had."""
    rater_id = session.rater.id
    await desk.write(lambda tx: notes.write(tx, body.item_id, rater_id, rater_id, body.text))
    return JSONResponse({"ok": True})


@router.get("/lead/notes", **replies(list[RatersThread]))
def notes_for_leads(
    desk: DeskOf, _viewer: ViewingSession, item_id: Annotated[str | None, Query(max_length=500)] = None
) -> list[dict[str, Any]]:
    """The threads that wait for a lead's answer; with an `item_id`, all of that pair's."""
    with desk.store.reading() as connection:
        found = notes.waiting_threads(connection) if item_id is None else notes.threads_of_item(connection, item_id)
    return [
        {
            "item_id": thread.item_id,
            "rater_id": thread.rater_id,
            "prompt": thread.prompt,
            "waits": thread.waits_for_lead,
            "notes": [
                {"at_ms": note.at_ms, "by_rater": note.by_id == thread.rater_id, "by_id": note.by_id, "text": note.text}
                for note in thread.notes
            ],
        }
        for thread in found
    ]


@router.post("/lead/notes", **replies(Done))
async def answer_note(desk: DeskOf, lead: SettlingSession, body: Answer) -> JSONResponse:
    """Answer a rater, or write to them first, about a pair that they have had."""
    by_id = lead.rater.id
    await desk.write(lambda tx: notes.write(tx, body.item_id, body.rater_id, by_id, body.text))
    return JSONResponse({"ok": True})

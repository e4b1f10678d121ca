"""Guidelines and consent: what raters read, and what leads publish.

GET  /api/documents                             the texts that count, rendered
GET  /api/lead/documents/{document}             the text that counts, and every version: who published it, and when
GET  /api/lead/documents/{document}/{seq}       the text of one version
POST /api/lead/documents/{document}/preview     a text as raters would see it, and how many would have to accept it
POST /api/lead/documents/{document}             publish a text
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field, field_validator

from labeling_ui.pages.safe_markup import render
from labeling_ui.store.answers import storable
from labeling_ui.store.leads.documents import MAX_VERSION_CHARACTERS, Document, Publication
from labeling_ui.web.context import CurrentSession, Desk, DeskOf, LeadWritingSession, ViewingSession

MAX_TEXT_CHARACTERS = 200_000

router = APIRouter(prefix="/api")


class Text(BaseModel):
    """A text of guidelines or consent."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(max_length=MAX_TEXT_CHARACTERS)
    """Markdown; empty: raters are asked nothing"""

    _storable = field_validator("text")(storable)


class NewText(Text):
    """A text to publish, and the name of its version."""

    version: str = Field(min_length=1, max_length=MAX_VERSION_CHARACTERS)

    @field_validator("version")
    @classmethod
    def _printable(cls, version: str) -> str:
        if not version.isprintable() or "#" in version or version != version.strip():
            raise ValueError("must be printable, without # and without spaces at the ends")
        return version


@router.get("/documents")
async def documents(desk: DeskOf, _session: CurrentSession) -> dict[str, Any]:
    """The guidelines and the consent as raters read them."""
    return await to_thread.run_sync(
        lambda: {"guidelines": _as_read(desk, "guidelines"), "consent": _as_read(desk, "consent")}
    )


def _as_read(desk: Desk, document: Document) -> dict[str, str]:
    text, version = desk.terms(document)
    return {"id": version, "version": version.rpartition("#")[0] or version, "html": _rendered(text) if text else ""}


@lru_cache(maxsize=8)
def _rendered(text: str) -> str:
    return render(text)


@router.get("/lead/documents/{document}")
def publications(desk: DeskOf, _lead: ViewingSession, document: Document) -> dict[str, Any]:
    """The text that counts, and all versions, the latest first, with the number of raters who accepted each last."""
    every, accepted = desk.store.publications(document), desk.store.acceptances(document)
    rows = [_as_version(one) | {"accepted": accepted.get(one.version, 0)} for one in every]
    return {"text": every[0].text if every else "", "raters": _raters_asked(desk), "versions": rows}


def _as_version(one: Publication) -> dict[str, Any]:
    return {
        "seq": one.seq,
        "id": one.version,
        "version": one.name,
        "by": one.by_id,
        "configured": one.configured,
        "at_ms": one.at_ms,
        "characters": len(one.text),
    }


def _raters_asked(desk: Desk) -> int:
    """Who has to accept a text: people who judge."""
    return sum(one.kind == "human" and not one.disabled and one.role != "observer" for one in desk.store.raters())


@router.get("/lead/documents/{document}/{seq}")
def one_version(desk: DeskOf, _lead: ViewingSession, document: Document, seq: int) -> dict[str, Any]:
    """One version, with its text."""
    found = next((one for one in desk.store.publications(document) if one.seq == seq), None)
    if found is None:
        raise HTTPException(404, f"there is no version {seq} of the {document}")
    return {**_as_version(found), "text": found.text, "html": render(found.text)}


@router.post("/lead/documents/{document}/preview")
def preview(desk: DeskOf, _lead: LeadWritingSession, document: Document, body: Text) -> dict[str, Any]:
    """A text as raters would see it, and how many of them would have to accept it."""
    changed = body.text != desk.terms(document)[0]
    return {"html": render(body.text), "changed": changed, "raters": _raters_asked(desk) if changed else 0}


@router.post("/lead/documents/{document}")
def publish(desk: DeskOf, lead: LeadWritingSession, document: Document, body: NewText) -> dict[str, Any]:
    """Publish a text: every rater must accept it before their next judgment, whatever its version is called."""
    made = desk.store.publish(document, body.version, body.text, lead.rater.id)
    desk.forget_terms()
    return _as_version(made)

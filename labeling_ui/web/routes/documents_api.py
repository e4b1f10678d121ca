"""Guidelines and consent: what raters read, and what leads publish.

GET  /api/documents                             the current texts, rendered
GET  /api/lead/documents/{document}             the current text, and every version with its author and time
GET  /api/lead/documents/{document}/{seq}       the text of one version
POST /api/lead/documents/{document}/preview     a text as raters would see it, and how many would have to accept it
POST /api/lead/documents/{document}             publish a text
POST /api/consent/withdraw                      withdraw the rater's consent
GET  /api/own-data                              the rater's data in the store
GET  /api/lead/raters/{id}/erase                what an erasure would do; POST erases the rater's data
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator

from labeling_ui.pages.safe_markup import render
from labeling_ui.store.answers import storable
from labeling_ui.store.leads.documents import MAX_VERSION_CHARACTERS, Document, Publication
from labeling_ui.web.context import (
    LETTERS,
    LOCAL_RATER,
    CurrentSession,
    Desk,
    DeskOf,
    LeadSession,
    LeadWritingSession,
    ViewingSession,
    WritingSession,
    judgment_as_json,
    rename_answers,
)
from labeling_ui.web.lead_replies import (
    DocumentPreview,
    DocumentVersion,
    DocumentVersionRead,
    DocumentVersions,
    ErasureReply,
)
from labeling_ui.web.replies import DocumentsRead, Done, OwnData, replies
from tiebreak.assessments import read_judgment

MAX_TEXT_CHARACTERS = 200_000

router = APIRouter(prefix="/api")


class Text(BaseModel):
    """A text of guidelines or consent."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(max_length=MAX_TEXT_CHARACTERS)
    """Markdown; empty: raters need accept nothing"""

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


@router.get("/documents", **replies(DocumentsRead))
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


@router.get("/lead/documents/{document}", **replies(DocumentVersions))
def publications(desk: DeskOf, _lead: ViewingSession, document: Document) -> dict[str, Any]:
    """The current text and all versions, latest first, each with the number of raters whose last acceptance it was."""
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
    """The people who must accept a text: all who judge."""
    return sum(one.kind == "human" and not one.disabled and one.role != "observer" for one in desk.store.raters())


@router.get("/lead/documents/{document}/{seq}", **replies(DocumentVersionRead))
def one_version(desk: DeskOf, _lead: ViewingSession, document: Document, seq: int) -> dict[str, Any]:
    """One version, with its text."""
    found = next((one for one in desk.store.publications(document) if one.seq == seq), None)
    if found is None:
        raise HTTPException(404, f"there is no version {seq} of the {document}")
    return {**_as_version(found), "text": found.text, "html": render(found.text)}


@router.post("/lead/documents/{document}/preview", **replies(DocumentPreview))
def preview(desk: DeskOf, _lead: LeadWritingSession, document: Document, body: Text) -> dict[str, Any]:
    """A text as raters would see it, and how many of them would have to accept it."""
    changed = body.text != desk.terms(document)[0]
    return {"html": render(body.text), "changed": changed, "raters": _raters_asked(desk) if changed else 0}


@router.post("/lead/documents/{document}", **replies(DocumentVersion))
def publish(desk: DeskOf, lead: LeadWritingSession, document: Document, body: NewText) -> dict[str, Any]:
    """Publish a text: every rater must accept it before their next judgment, whatever its version is called."""
    made = desk.store.publish(document, body.version, body.text, lead.rater.id)
    desk.forget_terms()
    return _as_version(made)


# --- consent withdrawn, and one's own data ---


class Withdrawal(BaseModel):
    """Whether the rater also objects to the use of their judgments."""

    model_config = ConfigDict(extra="forbid")

    judgments: bool = False


@router.post("/consent/withdraw", **replies(Done))
def withdraw_consent(desk: DeskOf, session: WritingSession, body: Withdrawal) -> dict[str, bool]:
    """Withdraw the rater's consent: they get no more work, and the lead sees it. `judgments`: they also object to the use
    of their judgments."""
    if session.rater.id == LOCAL_RATER:
        raise HTTPException(409, "this store has no accounts")
    desk.store.withdraw_consent(session.rater.id, judgments=body.judgments)
    desk.forget_terms()
    return {"ok": True}


@router.get("/own-data", **replies(OwnData))
def own_data(desk: DeskOf, session: CurrentSession) -> Response:
    """The rater's data in the store, as a file."""
    headers = {"Content-Disposition": 'attachment; filename="my-data.json"'}
    return JSONResponse(_with_letters(desk.store.own_data(session.rater.id)), headers=headers)


def _with_letters(own: dict[str, Any]) -> dict[str, Any]:
    """A rater's data with letters in place of the answers' ids, which may name a model."""
    for row in (*own["judgments"], *own["rejected"]):
        row["judgment"] = judgment_as_json(read_judgment(json.dumps(row["judgment"])))
    for row in own["drafts"]:
        row["draft"] = rename_answers(row["draft"], dict(zip(row.pop("shown"), LETTERS, strict=False)))
    return own


@router.get("/lead/raters/{rater_id}/erase", **replies(ErasureReply))
def preview_erasure(desk: DeskOf, _lead: LeadSession, rater_id: str, judgments: bool = False) -> dict[str, Any]:
    """What an erasure would do. `judgments`: reject the rater's judgments too."""
    return vars(desk.store.preview_erasure(rater_id, judgments=judgments))


@router.post("/lead/raters/{rater_id}/erase", **replies(ErasureReply))
def erase(desk: DeskOf, lead: LeadWritingSession, rater_id: str, body: Withdrawal) -> dict[str, Any]:
    """Erase a rater's data: only the pseudonym stays, with the judgments or without."""
    return vars(desk.store.erase_rater(rater_id, judgments=body.judgments, by=lead.rater.id))

"""A rater's address for e-mail, if the campaign has a mail server.

GET    /api/mail            whether there is a mail server, and the rater's address
PUT    /api/mail            set an address; a code is sent to it
POST   /api/mail/confirm    confirm it by the code
DELETE /api/mail            delete it
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field, field_validator

from labeling_ui.store.work import addresses
from labeling_ui.web.context import CurrentSession, DeskOf, WritingSession
from labeling_ui.web.mail.configuration import MAX_ADDRESS_CHARACTERS, check_address
from labeling_ui.web.mail.sending import MOST_CODES_A_DAY, Mail, Mailer
from labeling_ui.web.replies import Done, OwnAddress, replies

router = APIRouter(prefix="/api/mail")


class NewAddress(BaseModel):
    """An e-mail address."""

    model_config = ConfigDict(extra="forbid")

    email: str = Field(max_length=MAX_ADDRESS_CHARACTERS)

    _an_address = field_validator("email")(check_address)


class MailCode(BaseModel):
    """The code that was sent to an address."""

    model_config = ConfigDict(extra="forbid")

    code: str = Field(min_length=6, max_length=20)


def _mailer(desk: DeskOf) -> Mailer:
    if desk.mail is None:
        raise HTTPException(409, "this campaign sends no e-mail")
    return desk.mail


@router.get("", **replies(OwnAddress))
def own_address(desk: DeskOf, session: CurrentSession) -> dict[str, Any]:
    """The rater's address, and whether it is confirmed."""
    with desk.store.reading() as connection:
        address = addresses.address_of(connection, session.rater.id)
    email, confirmed = (address.email, address.confirmed) if address else (None, False)
    return {"offered": desk.mail is not None and bool(session.csrf_token), "email": email, "confirmed": confirmed}


@router.put("", **replies(Done))
async def set_address(desk: DeskOf, session: WritingSession, body: NewAddress) -> dict[str, bool]:
    """Set one's address; nothing but a code is sent to it until it is confirmed."""
    mailer, rater_id = _mailer(desk), session.rater.id
    if not session.csrf_token:
        raise HTTPException(409, "this store has no accounts")
    if not mailer.may_send_code(rater_id):
        raise HTTPException(429, f"at most {MOST_CODES_A_DAY} codes are sent a day: try again tomorrow")
    code = await desk.write(lambda tx: addresses.begin(tx, rater_id, body.email))
    if not mailer.put(Mail("code", body.email, rater_id, code)):
        raise HTTPException(503, "too many mails are waiting: try again in a few minutes")
    return {"ok": True}


@router.post("/confirm", **replies(Done))
async def confirm_address(desk: DeskOf, session: WritingSession, body: MailCode) -> dict[str, bool]:
    """Confirm one's address: from now on, mails about work are sent to it."""
    if not await desk.write(lambda tx: addresses.confirm(tx, session.rater.id, body.code)):
        raise HTTPException(409, "The code is wrong or has expired. Ask for a new one.")
    return {"ok": True}


@router.delete("", **replies(Done))
async def forget_address(desk: DeskOf, session: WritingSession) -> dict[str, bool]:
    """Delete one's address: no more mails."""
    await desk.write(lambda tx: addresses.forget(tx, session.rater.id))
    return {"ok": True}

"""The conversations' HTTP API.

POST /api/turns                 send a message: the turn that two policies will answer
GET  /api/turns/latest          the rater's latest turn, or null
GET  /api/turns/{turn_id}       a turn's state; once answered, `pair` is to be judged like any other
"""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Body, HTTPException
from fastapi.responses import JSONResponse

from labeling_ui.pages.safe_markup import render
from labeling_ui.store.work import conversations
from labeling_ui.store.work.conversations import Ask, Turn
from labeling_ui.web.context import CurrentSession, Desk, DeskOf, JudgingSession, checked, rendered
from labeling_ui.web.replies import TurnReply, replies

router = APIRouter(prefix="/api/turns")


@router.post("", **replies(TurnReply | None))
async def ask(desk: DeskOf, session: JudgingSession, body: Annotated[dict[str, Any], Body()]) -> JSONResponse:
    """Send a turn. Sending it again is harmless; a failed turn is queued again."""
    page, rater_id = desk.page, session.rater.id
    if not page.policies:
        raise HTTPException(404, "this campaign has no conversations")
    message = checked(Ask, body)
    turn_id = await desk.write(
        lambda tx: conversations.ask(tx, rater_id, message, policies=page.policies, system=page.system)
    )
    return await _reply(desk, rater_id, turn_id)


@router.get("/latest", **replies(TurnReply | None))
async def latest(desk: DeskOf, session: CurrentSession) -> JSONResponse:
    """The rater's latest turn, so that a reopened page resumes there."""
    return await _reply(desk, session.rater.id, None)


@router.get("/{turn_id}", **replies(TurnReply | None))
async def look(desk: DeskOf, session: CurrentSession, turn_id: str) -> JSONResponse:
    """One of the rater's turns."""
    return await _reply(desk, session.rater.id, turn_id)


async def _reply(desk: Desk, rater_id: str, turn_id: str | None) -> JSONResponse:
    turn = await to_thread.run_sync(_look, desk, rater_id, turn_id)
    if turn is None:
        return JSONResponse(None)
    fields = await to_thread.run_sync(_as_json, turn)
    return JSONResponse({**fields, "pair": await rendered(turn.assignment)})


def _as_json(turn: Turn) -> dict[str, Any]:
    return {
        "turn_id": turn.id,
        "conversation_id": turn.conversation_id,
        "number": turn.number,
        "state": turn.state,
        "error": turn.error,
        "judged": turn.judged,
        "messages": [{"role": m.role, "content": m.text, "html": render(m.text)} for m in turn.messages],
    }


def _look(desk: Desk, rater_id: str, turn_id: str | None) -> Turn | None:
    with desk.store.reading() as connection:
        return conversations.look(connection, desk.store.rules, rater_id, turn_id)

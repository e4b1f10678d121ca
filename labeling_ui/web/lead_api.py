"""The leads' HTTP API, under /api/lead/.

GET  status, agreement                  how far the campaign is, and how far its raters agree
GET  raters                             everyone who may judge
PUT  raters/{id}                        their pool; whether they take part
POST invitations                        a link that gives an account, once
GET  batches, PUT batches?name=         what is given out, to whom, and how urgently
GET  gold, PUT gold/{pair_id}           pairs whose answer is known
GET  disputes, disputes/{pair_id}       what raters disagree about; POST adjudications settles one
GET  adjudications                      what was settled
"""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Body, Depends, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator

from labeling_ui.quality.agreement import PUBLISHED
from labeling_ui.store import adjudication
from labeling_ui.store.answers import Submission, storable
from labeling_ui.store.campaign import BatchChange
from labeling_ui.store.store import Role, wall_clock_ms
from labeling_ui.web.accounts import INVITATION_DAYS, INVITATION_PATH, enable_rater, invite
from labeling_ui.web.context import DeskOf, Lead, LeadWriting, as_json, checked, lead_session

DAY_MS = 86_400_000

router = APIRouter(prefix="/api/lead", dependencies=[Depends(lead_session)])


class RaterChange(BaseModel):
    """What a lead may change of a rater; None leaves it as it is."""

    model_config = ConfigDict(extra="forbid")

    pool: str | None = Field(default=None, max_length=100)
    disabled: bool | None = None

    _storable = field_validator("pool")(storable)


class Invitation(BaseModel):
    """What an invitation gives, and for how long."""

    model_config = ConfigDict(extra="forbid")

    role: Role = "rater"
    pool: str = Field(default="", max_length=100)
    days: int = Field(default=INVITATION_DAYS, ge=1, le=365)

    _storable = field_validator("pool")(storable)


class Known(BaseModel):
    """The better completion of a gold pair; null where neither is."""

    model_config = ConfigDict(extra="forbid")

    preferred_id: str | None = Field(max_length=200)

    _storable = field_validator("preferred_id")(storable)


@router.get("/status")
def status(desk: DeskOf) -> dict[str, Any]:
    """Counts of everything, the pace of the last day, and when all will be judged if it holds."""
    counted = desk.store.status()
    judged = sum(counted["judgments"].values())
    last_day, raters = desk.store.judged_since(wall_clock_ms() - DAY_MS)
    left = max(0, counted["judgments_wanted"] - judged)
    return {
        **counted,
        "last_day": {"judgments": last_day, "raters": raters},
        "days_left": round(left / last_day, 1) if last_day else None if left else 0.0,
        "by_day": desk.store.judged_by_day(),
    }


@router.get("/agreement")
def agreement(desk: DeskOf) -> dict[str, Any]:
    """How far the raters agree, beside the published figures, and how far each can be relied on.

    `measuring`: newer figures are on their way; those there are are `age_seconds` old, or there are none yet (null).
    """
    return {**desk.figures(), "published": [{"what": what, "figure": figure} for what, figure in PUBLISHED]}


@router.get("/raters")
def raters(desk: DeskOf) -> list[dict[str, Any]]:
    """Everyone who may judge."""
    return [vars(rater) for rater in desk.store.raters()]


@router.put("/raters/{rater_id}")
def change_rater(desk: DeskOf, _lead: LeadWriting, rater_id: str, body: RaterChange) -> dict[str, bool]:
    """Move a rater to another pool, end their part, or let them in again."""
    if body.disabled is not None:
        enable_rater(desk.store, rater_id, enabled=not body.disabled)
    if body.pool is not None:
        desk.store.move_rater(rater_id, body.pool)
    return {"ok": True}


@router.post("/invitations")
def make_invitation(desk: DeskOf, lead: LeadWriting, body: Invitation) -> dict[str, str]:
    """The path of a link that gives an account, once."""
    token = invite(desk.store, lead.rater.id, role=body.role, pool=body.pool, days=body.days)
    return {"token": token, "path": f"{INVITATION_PATH}{token}"}


@router.get("/batches")
def batches(desk: DeskOf) -> list[dict[str, Any]]:
    """What is given out, to whom, and how urgently."""
    return [vars(batch) for batch in desk.store.batches()]


@router.put("/batches")
def change_batch(
    desk: DeskOf, _lead: LeadWriting, body: BatchChange, name: Annotated[str, Query(max_length=100)] = ""
) -> dict[str, Any]:
    """Steer a batch; what raters hold already stays theirs."""
    return vars(desk.store.change_batch(name, body))


@router.get("/gold")
def gold(desk: DeskOf) -> list[dict[str, Any]]:
    """Pairs whose answer is known."""
    return [vars(one) for one in desk.store.gold()]


@router.put("/gold/{pair_id:path}")
def set_gold(desk: DeskOf, _lead: LeadWriting, pair_id: str, body: Known) -> dict[str, Any]:
    """From now on this pair comes to every rater in between, and looks like any other."""
    return vars(desk.store.set_gold(pair_id, body.preferred_id))


@router.get("/disputes")
def disputes(
    desk: DeskOf,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    adjudicated: bool = False,
) -> list[dict[str, Any]]:
    """Pairs about which raters disagree, opposite sides first; those settled already where that is asked for."""
    return [vars(one) for one in desk.store.disputes(limit=limit, offset=offset, adjudicated=adjudicated)]


@router.get("/disputes/{pair_id:path}")
def dispute(desk: DeskOf, lead: Lead, pair_id: str) -> dict[str, Any]:
    """A pair to settle, on sides of the lead's own, and what its raters said."""
    opened = desk.store.open_dispute(lead.rater.id, pair_id)
    return {
        "pair": as_json(opened.assignment),
        "judgments": [judgment.model_dump(mode="json") for judgment in opened.judgments],
        "adjudicated": opened.adjudicated and opened.adjudicated.model_dump(mode="json"),
    }


@router.post("/adjudications")
async def adjudicate(desk: DeskOf, lead: LeadWriting, body: Annotated[dict[str, Any], Body()]) -> JSONResponse:
    """Settle a pair; the body is a judgment's. The raters' own judgments stay as they are."""
    submission = checked(Submission, body)
    lead_id, rules = lead.rater.id, desk.store.rules
    judgment = await desk.write(lambda tx: adjudication.adjudicate(tx, rules, lead_id, submission))
    waiting = await to_thread.run_sync(lambda: desk.store.disputes(limit=1))
    following = waiting[0].item_id if waiting else None
    return JSONResponse({"judgment": judgment.model_dump(mode="json"), "next": following})


@router.get("/adjudications")
def adjudications(desk: DeskOf) -> list[dict[str, Any]]:
    """All settled answers."""
    return [judgment.model_dump(mode="json") for judgment in desk.store.adjudications()]

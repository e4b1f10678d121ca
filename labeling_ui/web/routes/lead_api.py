"""The leads' HTTP API, under /api/lead/.

GET  status, agreement                  progress; agreement of the raters
GET  raters                             all raters
PUT  raters/{id}                        change a rater's pool or role; enable or disable them
POST raters/{id}/password               a new password; raters/{id}/standing stops a rater or lets them continue
GET  invitations, POST invitations, DELETE invitations/{id}     links that create one account each
GET  batches, POST batches, PUT batches?name=   batches: pool, priority, overlap, deadline, goal
POST pairs/move, pairs/withdraw, pairs/restore, pairs/correct; GET pairs/withdrawn      pairs of a running campaign
POST pairs/upload                       new pairs (`upload_api`)
GET  gold, PUT and DELETE gold/{pair_id}        pairs with a known answer
GET  disputes, disputes/{pair_id}       pairs that raters disagree on; POST disputes/sample draws some of the others
POST adjudications                      settles one
GET  adjudications, DELETE adjudications/{pair_id}      settled answers
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Body, Depends, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictInt, field_validator, model_validator

from labeling_ui.database.errors import RefusedError
from labeling_ui.database.event_log import Transaction
from labeling_ui.exchange.media import missing_media
from labeling_ui.quality.agreement import PUBLISHED
from labeling_ui.store.answers import MAX_CLASS_CHARACTERS, Submission, storable
from labeling_ui.store.figures.progress import BatchProgress
from labeling_ui.store.leads import adjudication
from labeling_ui.store.names import pool_name
from labeling_ui.store.pairs.campaign import CONVERSATIONS, CORRECTIONS, BatchChange
from labeling_ui.store.raters import Role
from labeling_ui.store.store import wall_clock_ms
from labeling_ui.web.context import (
    DeskOf,
    LeadSession,
    LeadWritingSession,
    SettlingSession,
    ViewingSession,
    as_json,
    checked,
    refuse_unasked,
    refuse_unpublished,
    viewing_session,
    with_passages,
)
from labeling_ui.web.lead_replies import (
    BatchListed,
    BatchSettings,
    CampaignStatus,
    DisputeListed,
    DisputeRead,
    Drawn,
    Figures,
    GoldItem,
    InvitationListed,
    InvitationsMade,
    NewPasswordShown,
    PairCorrected,
    RaterListed,
    Restored,
    Settled,
    Withdrawn,
    WithdrawnPair,
)
from labeling_ui.web.login.accounts import (
    INVITATION_DAYS,
    INVITATION_PATH,
    change_rater,
    invitations,
    invite_all,
    reset_password_of,
    revoke_invitation,
)
from labeling_ui.web.replies import Done, JudgmentReply, replies
from tiebreak.assessments import SingleAnswer
from tiebreak.records import Judgment, Pair

DAY_MS = 86_400_000

router = APIRouter(prefix="/api/lead", dependencies=[Depends(viewing_session)])


class RaterChange(BaseModel):
    """Changes to a rater; None changes nothing."""

    model_config = ConfigDict(extra="forbid")

    pool: str | None = Field(default=None, max_length=100)
    disabled: bool | None = None
    role: Role | None = None

    @field_validator("pool")
    @classmethod
    def _pool(cls, name: str | None) -> str | None:
        return None if name is None else pool_name(storable(name) or "")


class Sample(BaseModel):
    """How many pairs to draw."""

    model_config = ConfigDict(extra="forbid")

    count: int = Field(ge=1, le=1_000)


class NewStanding(BaseModel):
    """Whether a rater is given work, and why."""

    model_config = ConfigDict(extra="forbid")

    standing: Literal["", "qualified", "stopped"]
    reason: str = Field(default="", max_length=500)

    _storable = field_validator("reason")(storable)


class Invitation(BaseModel):
    """An invitation's role, pool and lifetime."""

    model_config = ConfigDict(extra="forbid")

    role: Role = "rater"
    pool: str = Field(default="", max_length=100)
    days: int = Field(default=INVITATION_DAYS, ge=1, le=365)
    names: list[Annotated[str, Field(max_length=100)]] = Field(default=[""], min_length=1, max_length=200)
    """by which leads tell the invitations apart; one for each"""

    @field_validator("pool")
    @classmethod
    def _pool(cls, name: str) -> str:
        return pool_name(storable(name) or "")

    @field_validator("names")
    @classmethod
    def _storable_names(cls, names: list[str]) -> list[str]:
        return [storable(name) or "" for name in names]


PairId = Annotated[str, Field(min_length=1, max_length=1_000)]


class PairIds(BaseModel):
    """Some pairs."""

    model_config = ConfigDict(extra="forbid")

    pair_ids: list[PairId] = Field(min_length=1, max_length=10_000)

    @field_validator("pair_ids")
    @classmethod
    def _storable(cls, names: list[str]) -> list[str]:
        return [storable(name) or "" for name in names]


class Move(PairIds):
    """Pairs to move, and where to."""

    batch: str = Field(max_length=100)
    change: BatchChange = BatchChange()

    _storable_batch = field_validator("batch")(storable)


class Withdraw(PairIds):
    """Pairs to withdraw, and why."""

    reason: str = Field(default="", max_length=1_000)

    _storable_reason = field_validator("reason")(storable)


class PairCorrections(BaseModel):
    """New versions of pairs."""

    model_config = ConfigDict(extra="forbid")

    pairs: list[SingleAnswer | Pair] = Field(min_length=1, max_length=1_000)


class Settlement(Submission):
    """A judgment that settles an item."""

    replaces: StrictInt | None = Field(default=adjudication.ANY_EARLIER, ge=adjudication.ANY_EARLIER, le=2**63 - 1)
    """`settled_seq` of the item as it was opened: a settlement that another lead has made since is not overridden"""


class NewBatch(BatchChange):
    """A batch to create."""

    name: str = Field(min_length=1, max_length=100)

    _storable_name = field_validator("name")(storable)


class GoldAnswer(BaseModel):
    """The better completion of a gold pair, or null where neither is better; of a single answer, its value."""

    model_config = ConfigDict(extra="forbid")

    preferred_id: str | None = Field(default=None, max_length=200)
    value: StrictInt | Annotated[str, Field(max_length=MAX_CLASS_CHARACTERS)] | None = None

    _storable = field_validator("preferred_id")(storable)

    @model_validator(mode="after")
    def _one_is_given(self) -> GoldAnswer:
        if len({"preferred_id", "value"} & self.model_fields_set) != 1:
            raise ValueError("give preferred_id for a pair, or value for a single answer")
        if isinstance(self.value, str):
            storable(self.value)
        return self


@router.get("/status", **replies(CampaignStatus))
def status(desk: DeskOf) -> dict[str, Any]:
    """Counts, the last day's pace, and the days left at that pace."""
    counted = desk.store.status()
    judged = counted["judged"]
    last_day, raters = desk.store.judged_since(wall_clock_ms() - DAY_MS)
    left = max(0, counted["judgments_wanted"] - judged)
    return {
        **counted,
        "last_day": {"judgments": last_day, "raters": raters},
        "days_left": round(left / last_day, 1) if last_day else None if left else 0.0,
        "by_day": desk.store.judged_by_day(),
    }


@router.get("/agreement", **replies(Figures))
def agreement(desk: DeskOf) -> dict[str, Any]:
    """Agreement of the raters beside published figures, and each rater's reliability.

    `measuring`: newer figures are being computed; the present ones are `age_seconds` old (null: there are none yet).
    """
    return {**desk.figures(), "published": [{"what": what, "figure": figure} for what, figure in PUBLISHED]}


@router.get("/raters", **replies(list[RaterListed]))
def raters(desk: DeskOf) -> list[dict[str, Any]]:
    """All raters; `consent_withdrawn`: when, and whether for their judgments too, or null."""
    withdrawn = {
        one.rater_id: {"at_ms": one.at_ms, "judgments": one.judgments} for one in desk.store.consents_withdrawn()
    }
    return [{**vars(rater), "consent_withdrawn": withdrawn.get(rater.id)} for rater in desk.store.raters()]


@router.put("/raters/{rater_id}", **replies(Done))
def change(desk: DeskOf, lead: LeadWritingSession, rater_id: str, body: RaterChange) -> dict[str, bool]:
    """Move a rater to another pool; enable or disable them. Nobody disables themselves: a lead is always left."""
    change_rater(desk.store, rater_id, lead.rater.id, disabled=body.disabled, pool=body.pool, role=body.role)
    return {"ok": True}


@router.post("/raters/{rater_id}/standing", **replies(Done))
def stand(desk: DeskOf, lead: LeadWritingSession, rater_id: str, body: NewStanding) -> dict[str, bool]:
    """Let a rater continue (`qualified`), stop them, or test them again (empty)."""
    desk.store.set_standing(rater_id, body.standing, body.reason, lead.rater.id)
    return {"ok": True}


@router.post("/raters/{rater_id}/password", **replies(NewPasswordShown))
def reset(desk: DeskOf, lead: LeadWritingSession, rater_id: str) -> dict[str, str]:
    """A new password for a rater, shown once; their sessions end, and a disabled rater is enabled."""
    password = reset_password_of(desk.store, rater_id, lead.rater.id)
    desk.warn(rater_id, "password")
    return {"password": password}


@router.post("/invitations", **replies(InvitationsMade))
def make_invitations(desk: DeskOf, lead: LeadWritingSession, body: Invitation) -> dict[str, Any]:
    """The paths of links that create one account each; `token` and `path` are those of the first."""
    about: dict[str, Any] = {"role": body.role, "pool": body.pool, "days": body.days}
    tokens = invite_all(desk.store, lead.rater.id, body.names, **about)
    paths = [f"{INVITATION_PATH}{token}" for token in tokens]
    made = [{"name": name, "path": path} for name, path in zip(body.names, paths, strict=True)]
    return {"token": tokens[0], "path": paths[0], "invitations": made}


@router.get("/invitations", **replies(list[InvitationListed]))
def all_invitations(desk: DeskOf, _lead: LeadSession) -> list[dict[str, Any]]:
    """All invitations, the latest first, without their links."""
    return [vars(one) for one in invitations(desk.store)]


@router.delete("/invitations/{invitation_id}", **replies(Done))
def revoke(desk: DeskOf, lead: LeadWritingSession, invitation_id: str) -> dict[str, bool]:
    """End an invitation before it is used."""
    revoke_invitation(desk.store, lead.rater.id, invitation_id)
    return {"ok": True}


@router.get("/batches", **replies(list[BatchListed]))
def batches(desk: DeskOf) -> list[dict[str, Any]]:
    """All batches, with their progress. `steered`: not that of conversations, which belong to their raters.
    `without_raters`: nobody is in the batch's pool."""
    progress, nothing = desk.store.batch_progress(), BatchProgress()
    inspections = desk.store.inspections()
    pools = {rater.pool for rater in desk.store.raters() if not rater.disabled and rater.role != "observer"}
    return [
        {**vars(batch), **vars(progress.get(batch.name, nothing)), "steered": batch.name != CONVERSATIONS}
        | {"inspection": inspections.get(batch.name), "without_raters": bool(batch.pool) and batch.pool not in pools}
        for batch in desk.store.batches()
    ]


@router.post("/batches", **replies(BatchSettings))
def create_batch(desk: DeskOf, _lead: LeadWritingSession, body: NewBatch) -> dict[str, Any]:
    """Create an empty batch, to upload pairs to or move pairs to."""
    return vars(desk.store.create_batch(body.name, BatchChange(**body.model_dump(exclude={"name"}))))


@router.put("/batches", **replies(BatchSettings))
def change_batch(
    desk: DeskOf, _lead: LeadWritingSession, body: BatchChange, name: Annotated[str, Query(max_length=100)] = ""
) -> dict[str, Any]:
    """Change a batch; pairs already leased stay with their raters."""
    return vars(desk.store.change_batch(name, body))


@router.post("/pairs/move", **replies(BatchSettings))
def move_pairs(desk: DeskOf, _lead: LeadWritingSession, body: Move) -> dict[str, Any]:
    """Move pairs to a batch, which is created or changed; pairs already leased stay with their raters."""
    return vars(desk.store.move_pairs(body.pair_ids, body.batch, body.change))


@router.post("/pairs/withdraw", **replies(Withdrawn))
def withdraw_pairs(desk: DeskOf, lead: LeadWritingSession, body: Withdraw) -> dict[str, int]:
    """Withdraw pairs: nobody gets them, they count nowhere, and they can be restored."""
    return {"withdrawn": desk.store.withdraw_pairs(body.pair_ids, body.reason, lead.rater.id)}


@router.post("/pairs/restore", **replies(Restored))
def restore_pairs(desk: DeskOf, lead: LeadWritingSession, body: PairIds) -> dict[str, int]:
    """Restore withdrawn pairs, with their judgments."""
    return {"restored": desk.store.restore_pairs(body.pair_ids, lead.rater.id)}


@router.post("/pairs/correct", **replies(list[PairCorrected]))
def correct_pairs(
    desk: DeskOf, lead: LeadWritingSession, body: Annotated[dict[str, Any], Body()]
) -> list[dict[str, Any]]:
    """Replace pairs by new versions: `pairs`, records with the ids of the old ones, whose judgments stay, unused."""
    pairs = checked(PairCorrections, body).pairs
    if missing := missing_media(desk.store, pairs):
        raise RefusedError(f"{missing[0][:100]}: not in the store: use 'tiebreak label correct' with --media FOLDER")
    made = desk.store.correct_pairs(pairs, source=CORRECTIONS, source_id=CORRECTIONS, by=lead.rater.id)
    return [vars(one) for one in made]


@router.get("/pairs/withdrawn", **replies(list[WithdrawnPair]))
def withdrawn_pairs(desk: DeskOf) -> list[dict[str, Any]]:
    """Withdrawn and corrected pairs."""
    return [vars(one) for one in desk.store.withdrawals()]


@router.get("/gold", **replies(list[GoldItem]))
def gold(desk: DeskOf) -> list[dict[str, Any]]:
    """Pairs with a known answer."""
    return [vars(answer) for answer in desk.store.gold()]


@router.put("/gold/{pair_id:path}", **replies(GoldItem))
def set_gold(desk: DeskOf, _lead: LeadWritingSession, pair_id: str, body: GoldAnswer) -> dict[str, Any]:
    """Make a pair gold: every rater gets it once, and it looks like any other."""
    for task in ("rate", "classify") if body.value is not None else ():
        if task == desk.store.task_of(pair_id):
            desk.page.asked.refuse_value(task, body.value)
    return vars(desk.store.set_gold(pair_id, body.preferred_id, body.value))


@router.delete("/gold/{pair_id:path}", **replies(Done))
def remove_gold(desk: DeskOf, _lead: LeadWritingSession, pair_id: str) -> dict[str, bool]:
    """Make a gold pair an ordinary one, whose judgments are votes."""
    desk.store.remove_gold(pair_id)
    return {"ok": True}


@router.get("/disputes", **replies(list[DisputeListed]))
def disputes(
    desk: DeskOf,
    lead: ViewingSession,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    adjudicated: bool = False,
) -> list[dict[str, Any]]:
    """Pairs that wait for a lead: raters disagree, opposite sides first, or skipped them; with `adjudicated`, the
    settled ones. Votes are counted for the sides as this lead sees the pair."""
    rows = desk.store.disputes(lead.rater.id, limit=limit, offset=offset, adjudicated=adjudicated)
    return [vars(row) for row in rows]


@router.post("/disputes/sample", **replies(Drawn))
def draw_sample(desk: DeskOf, lead: SettlingSession, body: Sample) -> dict[str, int]:
    """Draw pairs about which all raters agree, at random, to be reviewed beside the disagreements."""
    return {"drawn": desk.store.draw_review_sample(body.count, lead.rater.id)}


@router.get("/disputes/{pair_id:path}", **replies(DisputeRead))
def dispute(desk: DeskOf, lead: ViewingSession, pair_id: str) -> dict[str, Any]:
    """A pair to settle, with sides drawn for this lead, and the raters' answers."""
    opened = desk.store.open_dispute(lead.rater.id, pair_id)
    return {
        "pair": as_json(opened.assignment, named=True),
        "judgments": [judgment.model_dump(mode="json") for judgment in opened.judgments],
        "adjudicated": opened.adjudicated and opened.adjudicated.model_dump(mode="json"),
        "settled_seq": opened.settled_seq,
    }


@router.post("/adjudications", **replies(Settled))
async def adjudicate(desk: DeskOf, lead: SettlingSession, body: Annotated[dict[str, Any], Body()]) -> JSONResponse:
    """Settle a pair or a single answer; the body is a judgment's. The raters' own judgments do not change."""
    sent = checked(Settlement, body)
    submission = Submission.model_validate(sent.model_dump(exclude={"replaces"}))
    lead_id, rules = lead.rater.id, desk.store.rules
    refuse_unasked(desk, submission)
    refuse_unpublished(desk, submission)
    if sent.value is not None:
        task = await to_thread.run_sync(lambda: desk.store.task_of(sent.pair_id))
        desk.page.asked.refuse_value(task or "", sent.value)

    def settle(tx: Transaction) -> Judgment:
        given = with_passages(tx, desk, submission.pair_id, submission)
        return adjudication.adjudicate(tx, rules, lead_id, given, sent.replaces)

    judgment = await desk.write(settle)
    waiting = await to_thread.run_sync(lambda: desk.store.disputes(lead_id, limit=1))
    following = waiting[0].item_id if waiting else None
    return JSONResponse({"judgment": judgment.model_dump(mode="json"), "next": following})


@router.get("/adjudications", **replies(list[JudgmentReply]))
def adjudications(desk: DeskOf) -> list[dict[str, Any]]:
    """All settled answers."""
    return [judgment.model_dump(mode="json") for judgment in desk.store.adjudications()]


@router.delete("/adjudications/{pair_id:path}", **replies(Done))
def remove_settlement(desk: DeskOf, lead: LeadWritingSession, pair_id: str) -> dict[str, bool]:
    """Withdraw a settled answer: the votes decide again."""
    desk.store.remove_settlement(lead.rater.id, pair_id)
    return {"ok": True}

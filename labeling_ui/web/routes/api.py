"""The raters' HTTP API.

POST /api/login, /api/logout            username and password in, a session cookie and `csrf_token` out
POST /api/invitations/accept            create an account from a lead's link
POST /api/invitations/strength          how hard a password is to guess; /api/password/strength for those who have logged in
POST /api/password                      change one's password; GET /api/sessions, POST /api/sessions/end-others
GET  /api/me                            the rater, their progress, and today's work
POST /api/guidelines/accept             accept the guidelines; /api/consent/accept likewise
GET  /api/hours?since_ms=N              the rater's work by hour
GET  /api/next?holding=["ID"]           the rater's next pair, or null
POST /api/shown/{pair_id}               the pair is on the screen
PUT  /api/drafts/{pair_id}              save a draft
POST /api/passages/{pair_id}            where a passage that is marked on the page is in the answer's raw text
POST /api/judgments                     store a judgment; the reply has the next pair
GET  /api/history                       current judgments, latest first
GET  /api/feedback                      pairs that a lead settled differently from the rater's answer
GET  /api/rejections                    those that a lead rejected, with the reasons
GET  /api/judgments/{id}                one judgment, with its pair
PUT  /api/judgments/{id}                replace a judgment's answer
POST /api/judgments/{id}/undo           undo a judgment; the reply has the pair, to be judged again
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Body, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator

from labeling_ui.database import statements as st
from labeling_ui.database.event_log import Transaction
from labeling_ui.pages.passages import find_passage
from labeling_ui.store.answers import Answer, Draft, Submission, storable
from labeling_ui.store.figures.progress import Work
from labeling_ui.store.leads.documents import Document
from labeling_ui.store.names import composed
from labeling_ui.store.raters import NameTakenError
from labeling_ui.store.store import wall_clock_ms
from labeling_ui.store.work import assigning, judging
from labeling_ui.store.work.assigning import Assignment, load_assignment, shown_of
from labeling_ui.web.context import (
    LETTERS,
    SESSION_COOKIE,
    VIEWERS,
    AcceptedSession,
    CurrentSession,
    Desk,
    DeskOf,
    JudgingSession,
    WritingSession,
    asked_for,
    checked,
    completed,
    judgment_as_json,
    refuse_unasked,
    rendered,
    with_ids,
)
from labeling_ui.web.login import second_factor
from labeling_ui.web.login.accounts import (
    CodeNeededError,
    Session,
    accept_invitation,
    change_password,
    device_mark,
    end_other_sessions,
    has_account,
    is_invitation,
    knows_device,
    list_sessions,
    log_in,
    log_out,
    password_strength,
    remove_factor,
)
from labeling_ui.web.replies import (
    Done,
    FactorBegun,
    FactorState,
    JudgmentInHistory,
    JudgmentStored,
    JudgmentStoredAndNext,
    LoggedIn,
    Me,
    PassagePlace,
    PasswordStrength,
    PastJudgmentOpened,
    RejectedJudgment,
    SessionListed,
    SettledOtherwise,
    ShownPair,
    Undone,
    WorkInHour,
    replies,
)
from labeling_ui.web.security_log import hidden_name

MAX_HOLDING = 10
DEVICE_COOKIE = "tiebreak_device"
DEVICE_DAYS = 90
DAY_MS = 86_400_000

router = APIRouter(prefix="/api")
JsonBody = Annotated[dict[str, Any], Body()]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Login(_Body):
    """A name and a password."""

    username: str = Field(max_length=200)
    password: str = Field(max_length=2_000)

    _storable = field_validator("username", "password")(storable)


class LoginWithCode(Login):
    """The same, with a code where the account has a second factor."""

    code: str = Field(default="", max_length=20)

    _storable_code = field_validator("code")(storable)


class InvitationLogin(Login):
    """A name and a password for an invited account."""

    token: str = Field(max_length=200)

    _storable_token = field_validator("token")(storable)


class NewPassword(_Body):
    """The present password and a new one."""

    current: str = Field(max_length=2_000)
    new: str = Field(max_length=2_000)

    _storable = field_validator("current", "new")(storable)


class Code(_Body):
    """A code of an authenticator app, and the password where the factor is removed."""

    code: str = Field(max_length=20)
    password: str = Field(default="", max_length=2_000)

    _storable = field_validator("code", "password")(storable)


class Acceptance(_Body):
    """A version of the guidelines or of the consent."""

    version: str = Field(max_length=100)

    _storable = field_validator("version")(storable)


class ClientClock(_Body):
    """The client's clock."""

    client_at_ms: int | None = Field(default=None, ge=0, le=2**52)


class Passage(_Body):
    """A passage of an answer as the page shows it; offsets in code points of its text."""

    answer: str = Field(min_length=1, max_length=1)
    start: int = Field(ge=0)
    end: int = Field(ge=1)
    text: str = Field(min_length=1, max_length=1_000_000)


# --- who ---


@router.post("/login", **replies(LoggedIn))
def login(desk: DeskOf, request: Request, response: Response, body: LoginWithCode) -> dict[str, str]:
    """Start a session. Wrong names, passwords and codes get one reply; a missing code, after the right password, 428."""
    address, name = request.client.host if request.client else "", composed(body.username)
    request.state.who = hidden_name(name)
    mark = request.cookies.get(DEVICE_COOKIE, "")
    device = mark if mark and knows_device(desk.store, name, mark) else ""
    crowded = desk.limit.is_crowded(address)
    if not desk.limit.attempt(address, name, device=device, exists=has_account(desk.store, name)):
        raise HTTPException(429, "too many attempts: wait five minutes")
    try:
        session = log_in(desk.store, name, body.password, code=body.code, crowded=crowded)
    except CodeNeededError as error:
        desk.limit.forgive(address, name, device=device)
        raise HTTPException(428, "Enter the code that your authenticator app shows.") from error
    if session is None:
        raise HTTPException(401, "Wrong name, password or code." if body.code else "Wrong name or password.")
    desk.limit.forgive(address, name, device=device)
    return _begin(desk, session, request, response)


@router.post("/invitations/accept", **replies(LoggedIn))
def accept(desk: DeskOf, request: Request, response: Response, body: InvitationLogin) -> dict[str, str]:
    """Create the account of an invitation and start its session. Each invitation works once."""
    address = request.client.host if request.client else ""
    if not desk.limit.attempt(address):
        raise HTTPException(429, "too many attempts: wait five minutes")
    try:
        session = accept_invitation(desk.store, body.token, body.username, body.password)
    except NameTakenError as error:
        raise HTTPException(409, "This name is taken, or looks like one that is. Choose another.") from error
    if session is None:
        raise HTTPException(403, "This invitation has been used or has expired. Ask for a new one.")
    desk.limit.forgive(address)
    return _begin(desk, session, request, response)


class StrengthOfInvited(_Body):
    """A password for an invited account, as far as it is typed."""

    token: str = Field(max_length=200)
    username: str = Field(default="", max_length=200)
    password: str = Field(max_length=2_000)


@router.post("/invitations/strength", **replies(PasswordStrength))
def strength_of_invited(desk: DeskOf, request: Request, body: StrengthOfInvited) -> dict[str, Any]:
    """How hard a password is to guess, for those with an invitation."""
    address = request.client.host if request.client else ""
    if not desk.limit.attempt(address):
        raise HTTPException(429, "too many attempts: wait five minutes")
    if not is_invitation(desk.store, body.token):
        raise HTTPException(403, "This invitation has been used or has expired. Ask for a new one.")
    desk.limit.forgive(address)
    return asdict(password_strength(body.password, body.username))


def _begin(desk: Desk, session: Session, request: Request, response: Response) -> dict[str, str]:
    set_cookies(desk, session, request, response)
    return {"csrf_token": session.csrf_token, "rater_id": session.rater.id, "role": session.rater.role}


def set_cookies(desk: Desk, session: Session, request: Request, response: Response) -> None:
    """The cookies of a session, and of a browser that has been let in under its name; both for the desk's path alone."""
    request.state.who = session.rater.id
    mark = device_mark(desk.store, session.rater.name)
    lasts = desk.store.sessions.most_ms // 1_000
    for name, value, seconds in ((SESSION_COOKIE, session.token, lasts), (DEVICE_COOKIE, mark, DEVICE_DAYS * 86_400)):
        set_cookie(request, response, name, value, seconds=seconds, prefix=desk.page.prefix)


def set_cookie(request: Request, response: Response, name: str, value: str, *, seconds: int, prefix: str) -> None:
    """A cookie that no script reads, and that comes with requests of our own pages alone."""
    response.set_cookie(
        name,
        value,
        max_age=seconds,
        path=f"{prefix}/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


@router.post("/logout", **replies(Done))
def logout(desk: DeskOf, _session: WritingSession, request: Request, response: Response) -> dict[str, bool]:
    """End the session."""
    log_out(desk.store, request.cookies.get(SESSION_COOKIE, ""))
    response.delete_cookie(SESSION_COOKIE, path=f"{desk.page.prefix}/")
    return {"ok": True}


@router.post("/password", **replies(Done))
def set_password(desk: DeskOf, session: WritingSession, request: Request, body: NewPassword) -> dict[str, bool]:
    """Change one's own password; one's other sessions end."""
    address, name = request.client.host if request.client else "", session.rater.name
    if not session.csrf_token:
        raise HTTPException(409, "this store has no accounts")
    if not desk.limit.attempt(address, name, exists=True):
        raise HTTPException(429, "too many attempts: wait five minutes")
    token = request.cookies.get(SESSION_COOKIE, "")
    if not change_password(desk.store, name, body.current, body.new, keep=token):
        raise HTTPException(409, "The current password is wrong.")
    desk.limit.forgive(address, name)
    desk.warn(session.rater.id, "password")
    return {"ok": True}


class TypedPassword(_Body):
    """A new password, as far as it is typed."""

    password: str = Field(max_length=2_000)


@router.post("/password/strength", **replies(PasswordStrength))
def strength(session: WritingSession, body: TypedPassword) -> dict[str, Any]:
    """How hard a new password is to guess."""
    return asdict(password_strength(body.password, session.rater.name))


@router.get("/second-factor", **replies(FactorState))
def has_second_factor(desk: DeskOf, session: CurrentSession) -> dict[str, bool]:
    """Whether the account has one, and whether it must."""
    needed = desk.page.second_factor_for_leads and session.rater.role in VIEWERS
    return {"set": second_factor.has_factor(desk.store, session.rater.id), "needed": needed}


@router.post("/second-factor", **replies(FactorBegun))
def begin_second_factor(desk: DeskOf, session: WritingSession) -> dict[str, str]:
    """A new secret, which counts once a code of it is confirmed."""
    if not session.csrf_token:
        raise HTTPException(409, "this store has no accounts")
    made = second_factor.begin(desk.store, session.rater, issuer=desk.page.title)
    if made is None:
        raise HTTPException(409, "This account has a second factor. Remove it first.")
    return {"secret": made.secret, "qr": made.qr}


@router.post("/second-factor/confirm", **replies(Done))
def confirm_second_factor(desk: DeskOf, session: WritingSession, body: Code) -> dict[str, bool]:
    """Make it count from now on."""
    if not second_factor.confirm(desk.store, session.rater.id, body.code):
        raise HTTPException(409, "The code is wrong or has expired. Check that the phone's clock is right.")
    desk.warn(session.rater.id, "factor")
    return {"ok": True}


@router.post("/second-factor/remove", **replies(Done))
def remove_second_factor(desk: DeskOf, session: WritingSession, request: Request, body: Code) -> dict[str, bool]:
    """Remove it, with the password and a code."""
    address, name = request.client.host if request.client else "", session.rater.name
    if not desk.limit.attempt(address, name, exists=True):
        raise HTTPException(429, "too many attempts: wait five minutes")
    if not remove_factor(desk.store, name, body.password, body.code):
        raise HTTPException(409, "Wrong password or code.")
    desk.limit.forgive(address, name)
    desk.warn(session.rater.id, "factor")
    return {"ok": True}


@router.get("/sessions", **replies(list[SessionListed]))
def sessions(desk: DeskOf, session: CurrentSession, request: Request) -> list[dict[str, Any]]:
    """When each of the rater's sessions began."""
    return list_sessions(desk.store, session.rater.id, mine=request.cookies.get(SESSION_COOKIE, ""))


@router.post("/sessions/end-others", **replies(Done))
def end_sessions(desk: DeskOf, session: WritingSession, request: Request) -> dict[str, bool]:
    """End the rater's other sessions."""
    end_other_sessions(desk.store, session.rater.id, keep=request.cookies.get(SESSION_COOKIE, ""))
    return {"ok": True}


@router.get("/me", **replies(Me))
def who_am_i(
    desk: DeskOf, session: CurrentSession, since_ms: Annotated[int | None, Query(ge=0, le=2**52)] = None
) -> dict[str, Any]:
    """The rater, their own count and work, and the judgment that undo would take back.

    The campaign's counts are for leads: they change otherwise when a pair is gold or a repeat, which raters must not know.

    `since_ms`: start of the rater's day; by default the UTC day.
    """
    rater, store = session.rater, desk.store
    now = wall_clock_ms()
    today = now - now % DAY_MS if since_ms is None else since_ms
    return {
        "rater_id": rater.id,
        "name": rater.name,
        "role": rater.role,
        "csrf_token": session.csrf_token,
        "guideline_version": desk.terms("guidelines")[1],
        "guidelines_accepted": desk.has_accepted(rater.id, "guidelines"),
        "consent_version": desk.terms("consent")[1],
        "consent_given": desk.has_accepted(rater.id, "consent"),
        "consent_withdrawn": desk.has_withdrawn(rater.id),
        "progress": {"done": store.judged_by(rater.id), "goal_per_day": desk.page.goal_per_day},
        "today": _as_json(store.work_since(rater.id, today)),
        "all": _as_json(store.work_since(rater.id, 0)),
        "gold_agreement": _gold_agreement(desk, rater.id),
        "last_judgment": store.last_judgment(rater.id),
        "standing": store.standing(rater.id),
        "test": (attempt := store.attempt(rater.id)) and asdict(attempt),
    }


@router.get("/hours", **replies(list[WorkInHour]))
def hours(
    desk: DeskOf, session: CurrentSession, since_ms: Annotated[int, Query(ge=0, le=2**52)]
) -> list[dict[str, Any]]:
    """The rater's own work by hour, so that a page can show it by the days of their time zone."""
    found = desk.store.hours_since(session.rater.id, since_ms)
    return [{"at_ms": at_ms, **asdict(work)} for at_ms, work in found.items()]


def _as_json(work: Work) -> dict[str, Any]:
    return {**asdict(work), "pace_per_hour": work.pace_per_hour}


def _gold_agreement(desk: Desk, rater_id: str) -> dict[str, int] | None:
    """None where raters do not see it. Today's judgments are left out: a figure that changes at once shows which pair
    was gold, and so which answers to change."""
    if not desk.page.show_gold_agreement:
        return None
    now = wall_clock_ms()
    right, n = desk.store.gold_agreement(rater_id, before_ms=now - now % DAY_MS)
    return {"right": right, "n": n}


@router.post("/guidelines/accept", **replies(Done))
def accept_guidelines(desk: DeskOf, session: WritingSession, body: Acceptance) -> dict[str, bool]:
    """The rater has read the guidelines."""
    return _accept(desk, session, body, "guidelines")


@router.post("/consent/accept", **replies(Done))
def give_consent(desk: DeskOf, session: WritingSession, body: Acceptance) -> dict[str, bool]:
    """The rater agrees to the use of their judgments."""
    return _accept(desk, session, body, "consent")


def _accept(desk: Desk, session: Session, body: Acceptance, document: Document) -> dict[str, bool]:
    version = desk.terms(document)[1]
    if body.version != version:
        raise HTTPException(409, f"the {document} changed to version {version}: reload the page to read it")
    desk.store.accept(session.rater.id, version, document)
    desk.forget_terms()
    return {"ok": True}


# --- the work ---


@router.get("/next", **replies(ShownPair | None))
async def next_pair(
    desk: DeskOf, session: AcceptedSession, holding: Annotated[str, Query(max_length=20_000)] = ""
) -> JSONResponse:
    """The rater's next pair, or null; nobody gets one before accepting the consent and the guidelines.

    `holding` lists the pairs that the client already has: in JSON, or between commas where no id has one."""
    held = _held(holding)
    claimed = await desk.write(lambda tx: assigning.claim(tx, desk.store.rules, session.rater.id, held))
    return JSONResponse(await rendered(claimed))


def _held(holding: str) -> list[str]:
    if not holding.startswith("["):
        return [pair_id for pair_id in holding.split(",") if pair_id]
    try:
        held = json.loads(holding)
    except (ValueError, RecursionError):
        held = None
    if not isinstance(held, list) or not all(isinstance(pair_id, str) for pair_id in held):
        raise HTTPException(422, "holding: must be a JSON list of pair ids")
    return [_storable(pair_id) for pair_id in held]


@router.post("/shown/{pair_id:path}", **replies(Done))
async def shown(desk: DeskOf, session: WritingSession, pair_id: str, body: ClientClock) -> JSONResponse:
    """The pair is on the rater's screen; their lease starts."""
    rater_id = session.rater.id
    await desk.write(lambda tx: judging.mark_shown(tx, desk.store.rules, rater_id, pair_id, body.client_at_ms))
    return JSONResponse({"ok": True})


@router.put("/drafts/{pair_id:path}", **replies(Done))
async def save_draft(desk: DeskOf, session: JudgingSession, pair_id: str, body: JsonBody) -> JSONResponse:
    """Store a draft and renew its lease."""
    draft, rater_id = checked(Draft, body), session.rater.id
    refuse_unasked(desk, draft)

    def save(tx: Transaction) -> None:
        given = with_ids(tx, desk, rater_id, pair_id, draft)
        judging.save_draft(tx, desk.store.rules, rater_id, pair_id, given)

    await desk.write(save)
    return JSONResponse({"ok": True})


@router.post("/passages/{pair_id:path}", **replies(PassagePlace))
async def locate(desk: DeskOf, session: JudgingSession, pair_id: str, body: Passage) -> JSONResponse:
    """The raw offsets of a passage of an answer as the page shows it; null where they are not certain."""
    found = await to_thread.run_sync(_locate, desk, session.rater.id, pair_id, body)
    start, end = found or (None, None)
    return JSONResponse({"start": start, "end": end})


def _locate(desk: Desk, rater_id: str, pair_id: str, passage: Passage) -> tuple[int, int] | None:
    with desk.store.reading() as connection:
        rows = st.ASSIGNMENTS_OF.all(connection, item=pair_id, rater=rater_id)
        if not rows or passage.answer not in LETTERS[: len(shown_of(rows[0]))]:
            raise HTTPException(404, "you have no such answer")
        assignment = load_assignment(connection, desk.store.rules, rows[0])
    texts = {completion.id: completion.text for completion in assignment.pair.completions}
    raw = texts[assignment.shown[LETTERS.index(passage.answer)]]
    return find_passage(raw, passage.start, passage.end, passage.text)


@router.post("/judgments", **replies(JudgmentStoredAndNext))
async def judge(desk: DeskOf, session: JudgingSession, body: JsonBody) -> JSONResponse:
    """Store a judgment; the reply means that it is on disk. `holding` may list the pairs that the client already has."""
    holding = body.pop("holding", [])
    if (
        not isinstance(holding, list)
        or len(holding) > MAX_HOLDING
        or not all(isinstance(name, str) for name in holding)
    ):
        raise HTTPException(422, f"holding: must be a list of at most {MAX_HOLDING} pair ids")
    submission = asked_for(desk, checked(Submission, body))
    rater_id, store = session.rater.id, desk.store

    def store_it(tx: Transaction) -> tuple[judging.StoredJudgment, Assignment | None]:
        given = completed(tx, desk, rater_id, submission.pair_id, submission)
        return store.submit_and_claim_in(tx, rater_id, given, holding)

    stored, following = await desk.write(store_it)
    return JSONResponse({**_stored(stored), "next": await rendered(following)})


def _stored(stored: judging.StoredJudgment) -> dict[str, Any]:
    judgment = judgment_as_json(stored.judgment)
    return {"judgment_id": stored.judgment_id, "judgment": judgment, "replayed": stored.replayed}


@router.get("/history", **replies(list[JudgmentInHistory]))
def history(
    desk: DeskOf,
    session: CurrentSession,
    before: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> list[dict[str, Any]]:
    """The rater's current judgments, latest first; `before`: the `seq` of the last one that the client has."""
    past = desk.store.history(session.rater.id, before=before, limit=limit)
    return [{**vars(entry), "judgment": judgment_as_json(entry.judgment)} for entry in past]


@router.get("/feedback", **replies(list[SettledOtherwise]))
def feedback(desk: DeskOf, session: CurrentSession) -> list[dict[str, Any]]:
    """The latest pairs that a lead settled differently from the rater's answer, with the lead's reasons."""
    return [
        {
            "item_id": one.item_id,
            "prompt": one.prompt,
            "at_ms": one.at_ms,
            "judgment": judgment_as_json(one.judgment),
            "settled": {**judgment_as_json(one.settled), "rater_id": ""},
        }
        for one in desk.store.feedback(session.rater.id)
    ]


@router.get("/rejections", **replies(list[RejectedJudgment]))
def rejections(desk: DeskOf, session: CurrentSession) -> list[dict[str, Any]]:
    """The rater's judgments that a lead rejected, latest first, with the reasons."""
    return [
        {
            "judgment_id": one.judgment_id,
            "item_id": one.item_id,
            "at_ms": one.at_ms,
            "reason": one.rejected,
            "rejected_at_ms": one.rejected_at_ms,
            "prompt": one.prompt,
            "judgment": judgment_as_json(one.judgment),
        }
        for one in desk.store.rejections_of_rater(session.rater.id)
    ]


@router.get("/judgments/{judgment_id}", **replies(PastJudgmentOpened))
async def past_judgment(desk: DeskOf, session: CurrentSession, judgment_id: str) -> JSONResponse:
    """One of the rater's judgments, and its pair with the sides as judged."""
    assignment, judgment = await to_thread.run_sync(desk.store.judged_assignment, session.rater.id, judgment_id)
    fields = judgment_as_json(judgment)
    return JSONResponse({"judgment_id": judgment_id, "judgment": fields, "pair": await rendered(assignment)})


@router.put("/judgments/{judgment_id}", **replies(JudgmentStored))
async def amend(desk: DeskOf, session: JudgingSession, judgment_id: str, body: JsonBody) -> JSONResponse:
    """Replace a judgment's answer. The body is a judgment's, without `pair_id`."""
    client_id = body.pop("client_id", None)
    if not isinstance(client_id, str) or not 1 <= len(client_id) <= 64:
        raise HTTPException(422, "client_id: must have 1 to 64 characters")
    answer, identity = asked_for(desk, checked(Answer, body)), _storable(client_id)
    rater_id = session.rater.id

    def amend_it(tx: Transaction) -> judging.StoredJudgment:
        judged = st.JUDGMENT.one(tx.connection, judgment=judgment_id, rater=rater_id)
        given = completed(tx, desk, rater_id, judged.item_id, answer) if judged else answer
        return judging.amend(tx, desk.store.rules, rater_id, judgment_id, identity, given)

    return JSONResponse(_stored(await desk.write(amend_it)))


def _storable(text: str) -> str:
    try:
        return storable(text) or ""
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


@router.post("/judgments/{judgment_id}/undo", **replies(Undone))
async def undo(desk: DeskOf, session: JudgingSession, judgment_id: str) -> JSONResponse:
    """Undo a judgment: `pair` is to be judged again, with the old answer as its draft."""
    rater_id = session.rater.id
    pair = await desk.write(lambda tx: judging.undo(tx, desk.store.rules, rater_id, judgment_id))
    last = await to_thread.run_sync(desk.store.last_judgment, rater_id)
    return JSONResponse({"pair": await rendered(pair), "last_judgment": last})

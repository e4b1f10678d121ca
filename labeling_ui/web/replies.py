"""The API's replies, as `/openapi.json` describes them and `tiebreak.client` types them.

Handlers build their JSON themselves, so that replies are not validated twice; the API's tests validate every reply that
they get.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from labeling_ui.store.raters import RaterKind, Role
from labeling_ui.store.work.standing import Standing


def replies(kind: Any) -> dict[str, Any]:
    """Arguments of a route that replies with this model."""
    return {"response_model": None, "responses": {200: {"model": kind}}}


class Reply(BaseModel):
    """A reply, or a part of one. It has exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class Done(Reply):
    """The change is on disk."""

    ok: bool


# --- who ---


class LoggedIn(Reply):
    """A session has begun."""

    csrf_token: str
    rater_id: str
    role: Role


class PasswordStrength(Reply):
    """How hard a password is to guess."""

    score: int
    """from 0 to 4"""
    refusal: str
    """why an account cannot have it; empty: it can"""


class FactorState(Reply):
    """Whether an account has a second factor, and whether it must."""

    set: bool
    needed: bool


class FactorBegun(Reply):
    """A secret for an authenticator app, and its drawing as SVG."""

    secret: str
    qr: str


class SessionListed(Reply):
    """One of a rater's sessions."""

    began_at_ms: int
    current: bool


class WorkDone(Reply):
    """Judgments since some time, and their active and idle seconds."""

    judged: int
    active_seconds: float
    idle_seconds: float
    pace_per_hour: float | None = None


class WorkInHour(Reply):
    """A rater's work in one hour."""

    at_ms: int
    judged: int
    active_seconds: float
    idle_seconds: float


class OwnProgress(Reply):
    """A rater's own count, and their goal."""

    done: int
    goal_per_day: int | None


class GoldAgreement(Reply):
    """How many gold judgments were right, of how many."""

    right: int
    n: int


class TestAttempt(Reply):
    """How far the test before work begins is."""

    __test__ = False  # no test of pytest's

    number: int
    done: int
    questions: int
    attempts: int


class Me(Reply):
    """The rater, their own count and work, and the judgment that undo would take back."""

    rater_id: str
    name: str
    role: Role
    csrf_token: str
    guideline_version: str
    guidelines_accepted: bool
    consent_version: str
    consent_given: bool
    consent_withdrawn: bool
    progress: OwnProgress
    today: WorkDone
    all: WorkDone
    gold_agreement: GoldAgreement | None
    last_judgment: str | None
    standing: Standing
    test: TestAttempt | None


# --- pairs and judgments ---


class ShownAnswer(Reply):
    """An answer: its text, and that as safe HTML. `id`: its letter; for leads, the completion's id."""

    id: str
    text: str
    html: str


class ShownMessage(Reply):
    """A message of the prompt."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    html: str


class ShownPair(Reply):
    """A pair, a ranking or a single answer, as a rater gets it."""

    pair_id: str
    task: Literal["pair", "ranking", "rate", "review", "classify"]
    messages: list[ShownMessage]
    left: ShownAnswer
    right: ShownAnswer | None
    completions: list[ShownAnswer]
    """all answers of a ranking"""
    draft: dict[str, Any] | None
    """a judgment's details, as sent"""
    flagged: list[str]
    """why a step of *prepare* flagged the row that is reviewed"""


class MarkedSpan(Reply):
    """A marked passage of an answer; offsets in code points of its raw text."""

    completion: str
    start: int
    end: int
    label: str
    value: int
    text: str
    comment: str


CriterionReply = bool | int | str | dict[str, bool | int | str]


class JudgmentReply(Reply):
    """A judgment; raters get letters in place of the answers' ids."""

    pair_id: str
    rater_id: str
    left: str
    right: str | None = None
    """left out of a single answer's"""
    answer: int | None
    both_bad: bool
    skip: bool
    skip_reason: str
    ranking: list[list[str]] | None
    shown: list[str]
    aspects: dict[str, int]
    rationale: str
    edited_text: str | None
    flags: list[str]
    answer_flags: dict[str, list[str]] | None = None
    criteria: dict[str, CriterionReply] | None = None
    spans: list[MarkedSpan] | None = None
    links: list[str] | None = None
    guideline_version: str
    seconds_active: float | None
    kind: RaterKind
    judge: dict[str, Any] | None = None
    """of a model"""
    task: Literal["rate", "review", "classify"] | None = None
    """of a single answer"""
    value: int | str | None = None


class JudgmentStored(Reply):
    """A judgment is on disk. `replayed`: it was there already."""

    judgment_id: str
    judgment: JudgmentReply
    replayed: bool


class JudgmentStoredAndNext(JudgmentStored):
    """The same, with the rater's next pair."""

    next: ShownPair | None


class PassagePlace(Reply):
    """Raw offsets of a passage; null where they are not certain."""

    start: int | None
    end: int | None


class JudgmentInHistory(Reply):
    """A judgment that stands."""

    judgment_id: str
    item_id: str
    at_ms: int
    seq: int
    judgment: JudgmentReply
    prompt: str


class SettledOtherwise(Reply):
    """A pair that a lead settled differently from the rater's answer."""

    item_id: str
    prompt: str
    at_ms: int
    judgment: JudgmentReply
    settled: JudgmentReply


class RejectedJudgment(Reply):
    """A rater's judgment that a lead rejected."""

    judgment_id: str
    item_id: str
    at_ms: int
    reason: str | None
    rejected_at_ms: int | None
    prompt: str
    judgment: JudgmentReply


class PastJudgmentOpened(Reply):
    """A judgment with its pair."""

    judgment_id: str
    judgment: JudgmentReply
    pair: ShownPair


class Undone(Reply):
    """The pair to judge again, and the judgment that undo would take back next."""

    pair: ShownPair
    last_judgment: str | None


class TurnReply(Reply):
    """A turn of a conversation; once it is `ready`, `pair` is to be judged."""

    turn_id: str
    conversation_id: str
    number: int
    state: Literal["waiting", "working", "ready", "failed"]
    error: str
    judged: bool
    messages: list[ShownMessage]
    pair: ShownPair | None


# --- documents, messages, own data ---


class DocumentRead(Reply):
    """A text that raters accept; `id` is its version with a hash."""

    id: str
    version: str
    html: str


class DocumentsRead(Reply):
    """The guidelines and the consent."""

    guidelines: DocumentRead
    consent: DocumentRead


class OwnNote(Reply):
    """A message of the rater's, or of a lead."""

    at_ms: int
    mine: bool
    text: str


class OwnThread(Reply):
    """A rater's messages with the leads about a pair."""

    item_id: str
    prompt: str
    notes: list[OwnNote]


class NoteByWhom(Reply):
    """A message, and who wrote it."""

    at_ms: int
    by_rater: bool
    by_id: str
    text: str


class RatersThread(Reply):
    """A rater's messages with the leads, as leads see them."""

    item_id: str
    rater_id: str
    prompt: str
    waits: bool
    notes: list[NoteByWhom]


class ErasureReply(Reply):
    """What an erasure did, or would do."""

    rater_id: str
    judgments: int
    kept: int
    conversations: int
    redacted: int


class OwnAddress(Reply):
    """Whether the campaign sends e-mail, and the rater's address, if they gave one."""

    offered: bool
    email: str | None
    confirmed: bool


class OwnData(Reply):
    """Everything that the store has about a rater."""

    account: dict[str, Any]
    acceptances: list[dict[str, Any]]
    identities: list[dict[str, Any]]
    sessions: list[dict[str, Any]]
    email: list[dict[str, Any]]
    hours: list[dict[str, Any]]
    judgments: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    drafts: list[dict[str, Any]]
    messages: list[dict[str, Any]]
    conversations: list[dict[str, Any]]

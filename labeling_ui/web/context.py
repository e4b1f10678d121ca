"""Context of the API's handlers: the store, the requester's session, and pairs as JSON."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import Depends, Header, HTTPException, Request
from pydantic import BaseModel, ValidationError

from labeling_ui.database import statements as st
from labeling_ui.database.errors import RefusedError
from labeling_ui.database.event_log import Transaction
from labeling_ui.pages import PageConfig
from labeling_ui.pages.media_markup import render_answer, render_message
from labeling_ui.pages.passages import show_passage
from labeling_ui.quality.aggregate import AggregationConfig
from labeling_ui.store.answers import Answer, Draft
from labeling_ui.store.leads.documents import DOCUMENT_NAMES, Document
from labeling_ui.store.raters import Rater
from labeling_ui.store.store import Store, wall_clock_ms
from labeling_ui.store.work.asking import Questionnaire
from labeling_ui.store.work.assigning import Assignment, shown_of
from labeling_ui.web.login import second_factor
from labeling_ui.web.login.accounts import (
    LoginLimit,
    Session,
    extend_session,
    find_session,
    has_password,
    needs_login,
)
from labeling_ui.web.mail.sending import Kind as MailKind
from labeling_ui.web.mail.sending import Mailer
from labeling_ui.web.refusals import printable
from tiebreak.assessments import FLAGGED, Assessment, SingleAnswer
from tiebreak.files import explain
from tiebreak.records import Judgment, Pair, Span

LOCAL_RATER = "local"
SESSION_COOKIE = "tiebreak_session"
REMEMBER_SECONDS = 1.0
MAX_TOGETHER = 64
"""Most changes per transaction, which bounds the wait of the next ones."""

EXTEND_AFTER_MS = 60_000
POLLED = frozenset(
    f"/api/{name}"
    for name in (
        *("notes", "next", "lead/status", "lead/raters", "lead/disputes", "lead/export", "lead/agreement"),
        *("lead/notes", "lead/duels", "lead/pulls"),
    )
)
"""What the pages ask again and again while they are open."""

VIEWERS = ("lead", "reviewer", "observer")

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
A = TypeVar("A", bound=Answer)
Work = Callable[[Transaction], Any]


class Writer:
    """Applies changes to the store in order of arrival; those that arrive during a disk write share the next transaction.

    The store allows one writer anyway, and one commit confirms all changes that wait.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[tuple[Work, asyncio.Future[Any]]] = []
        self._draining: asyncio.Task[None] | None = None

    async def __call__(self, work: Callable[[Transaction], T]) -> T:
        """What `work` returns, once it is on disk. Raises what `work` raises."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        try:
            while self._waiting:
                together, self._waiting = self._waiting[:MAX_TOGETHER], self._waiting[MAX_TOGETHER:]
                await self._do(together)
        finally:
            self._draining = None

    async def _do(self, together: list[tuple[Work, asyncio.Future[Any]]]) -> None:
        try:
            results = await to_thread.run_sync(self._store.transact_all, [work for work, _ in together])
        except Exception as error:  # noqa: BLE001 - passed on to each waiting handler
            results = [error] * len(together)
        for (_, future), result in zip(together, results, strict=True):
            if future.done():  # the client has disconnected
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


@dataclass(frozen=True)
class Desk:
    """The handlers' context, in the application's state."""

    store: Store
    page: PageConfig
    write: Writer
    figures: Callable[[], dict[str, Any]]
    """the lead's latest figures, from `figures_process`"""
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    """how an export from the page makes votes into preferences"""
    limit: LoginLimit = field(default_factory=LoginLimit)
    mail: Mailer | None = None
    """sends e-mail, if the campaign has a mail server"""
    _accepted: dict[tuple[str, Document, str], float] = field(default_factory=dict)
    _consenting: dict[str, float] = field(default_factory=dict)
    _terms: dict[Document, tuple[float, str, str]] = field(default_factory=dict)

    def has_accepted(self, rater_id: str, document: Document) -> bool:
        """Whether the rater has accepted the present guidelines or consent, where there are any.

        On one's own machine, without accounts, nothing has to be accepted. Answers are remembered for `REMEMBER_SECONDS`:
        another server on the same store may have changed them.
        """
        text, version = self.terms(document)
        acceptance = rater_id, document, version
        if not text or rater_id == LOCAL_RATER or _is_recent(self._accepted.get(acceptance)):
            return True
        if self.store.accepted(rater_id, version, document):
            self._accepted[acceptance] = time.monotonic()
            return True
        return False

    def has_withdrawn(self, rater_id: str) -> bool:
        """Whether the rater has withdrawn their consent."""
        if rater_id == LOCAL_RATER or _is_recent(self._consenting.get(rater_id)):
            return False
        if self.store.has_withdrawn_consent(rater_id):
            return True
        self._consenting[rater_id] = time.monotonic()
        return False

    def terms(self, document: Document) -> tuple[str, str]:
        """The text of the guidelines or the consent that counts, and its version with a hash."""
        read = self._terms.get(document)
        if read is None or not _is_recent(read[0]):
            read = time.monotonic(), *self._read_terms(document)
            self._terms[document] = read
        return read[1], read[2]

    def _read_terms(self, document: Document) -> tuple[str, str]:
        now = self.store.present_document(document)
        if now is not None:
            return now.text, now.version
        return "", self.page.consent_id if document == "consent" else self.page.guidelines_id

    def warn(self, rater_id: str, kind: MailKind) -> None:
        """Tell a rater by e-mail that their login was changed, if they get any."""
        if self.mail is not None:
            self.mail.warn(rater_id, kind)

    def forget_terms(self) -> None:
        """Read the texts, and who has accepted them, from the store again: something has changed."""
        for remembered in (self._terms, self._accepted, self._consenting):
            remembered.clear()


def _is_recent(at: float | None) -> bool:
    return at is not None and time.monotonic() - at < REMEMBER_SECONDS


async def desk_of(request: Request) -> Desk:
    """The application's desk."""
    desk: Desk = request.app.state.desk
    return desk


# --- sessions ---
# Each function calls the previous one directly: FastAPI would take longer to resolve the chain of dependencies.

CsrfToken = Annotated[str, Header(max_length=200)]


def session_of(request: Request) -> Session | None:
    """The session of the request's cookie; a store without accounts needs none."""
    store: Store = request.app.state.desk.store
    token = request.cookies.get(SESSION_COOKIE)
    session = find_session(store, token) if token else None
    if session is None and not needs_login(store):
        return Session(Rater(LOCAL_RATER, LOCAL_RATER, "human", "lead"), csrf_token="")
    return session


async def current_session(request: Request) -> Session:
    """The requester's session. Never read from the body. (One indexed read: faster than changing threads.)"""
    session = session_of(request)
    if session is None:
        raise HTTPException(401, "log in first")
    request.state.who = session.rater.id
    await _keep_alive(request, session)
    return session


async def _keep_alive(request: Request, session: Session) -> None:
    """Put off the end of an idle session, at most once a minute. What pages ask by themselves is nobody's activity."""
    desk: Desk = request.app.state.desk
    asked_by_itself = request.method == "GET" and request.url.path.removeprefix(desk.page.prefix) in POLLED
    if desk.store.sessions.idle_minutes is None or not session.token or asked_by_itself:
        return
    expires = desk.store.sessions.expires_at_ms(session.began_at_ms, wall_clock_ms())
    if expires - session.expires_at_ms >= EXTEND_AFTER_MS:
        await desk.write(lambda tx: extend_session(tx, session, expires))


async def writing_session(request: Request, x_csrf_token: CsrfToken = "") -> Session:
    """The session for a change: the request must carry the CSRF token, which no other site can read."""
    session = await current_session(request)
    if session.csrf_token and not hmac.compare_digest(session.csrf_token.encode(), x_csrf_token.encode()):
        raise HTTPException(403, "the header X-CSRF-Token is missing or wrong: log in again")
    return session


async def judging_session(request: Request, x_csrf_token: CsrfToken = "") -> Session:
    """The session for judging: the rater must have accepted the consent and the guidelines."""
    await writing_session(request, x_csrf_token)
    return await accepted_session(request)


async def accepted_session(request: Request) -> Session:
    """The session of a rater who has accepted the consent and the guidelines."""
    session, desk = await current_session(request), await desk_of(request)
    if session.rater.role == "observer":
        raise HTTPException(403, "observers do not judge")
    if desk.has_withdrawn(session.rater.id):
        raise HTTPException(403, "you have withdrawn your consent: give it again to continue")
    for document in DOCUMENT_NAMES:
        if not desk.has_accepted(session.rater.id, document):
            raise HTTPException(403, f"first accept the {document}, version {desk.terms(document)[1]}")
    return session


def lacks_second_factor(request: Request, session: Session) -> bool:
    """Whether an account must have a second factor and has none."""
    desk: Desk = request.app.state.desk
    needed = desk.page.second_factor_for_leads and bool(session.csrf_token) and session.rater.role in VIEWERS
    if not needed or second_factor.has_factor(desk.store, session.rater.id):
        return False
    # The provider asks for its own factors; an account with a password too can be entered without it.
    return has_password(desk.store, session.rater.id)


def _refuse_without_second_factor(request: Request, session: Session) -> None:
    if lacks_second_factor(request, session):
        raise HTTPException(403, "first set up a second factor: on the rating page, under My work")


async def viewing_session(request: Request) -> Session:
    """Those who see the leads' page: leads, reviewers and observers."""
    session = await current_session(request)
    if session.rater.role not in VIEWERS:
        raise HTTPException(403, "only leads may do this")
    _refuse_without_second_factor(request, session)
    return session


async def settling_session(request: Request, x_csrf_token: CsrfToken = "") -> Session:
    """Leads and reviewers, who settle disagreements."""
    session = await writing_session(request, x_csrf_token)
    if session.rater.role not in ("lead", "reviewer"):
        raise HTTPException(403, "only leads and reviewers may do this")
    _refuse_without_second_factor(request, session)
    return session


async def lead_session(request: Request) -> Session:
    """Leads only."""
    session = await current_session(request)
    if session.rater.role != "lead":
        raise HTTPException(403, "only leads may do this")
    _refuse_without_second_factor(request, session)
    return session


async def lead_writing_session(request: Request, x_csrf_token: CsrfToken = "") -> Session:
    """Leads only, and only from our own pages."""
    await lead_session(request)
    return await writing_session(request, x_csrf_token)


DeskOf = Annotated[Desk, Depends(desk_of)]
CurrentSession = Annotated[Session, Depends(current_session)]
WritingSession = Annotated[Session, Depends(writing_session)]
AcceptedSession = Annotated[Session, Depends(accepted_session)]
JudgingSession = Annotated[Session, Depends(judging_session)]
ViewingSession = Annotated[Session, Depends(viewing_session)]
SettlingSession = Annotated[Session, Depends(settling_session)]
LeadSession = Annotated[Session, Depends(lead_session)]
LeadWritingSession = Annotated[Session, Depends(lead_writing_session)]


# --- JSON ---


def checked(model: type[M], body: dict[str, Any]) -> M:
    """The body as a record; otherwise a reply that lists every error."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise HTTPException(422, [printable(fault) for fault in explain(error)]) from error


async def rendered(assignment: Assignment | None) -> dict[str, Any] | None:
    """`as_json` in another thread: a text takes up to a second to render, and other requests must not wait for it."""
    return None if assignment is None else await to_thread.run_sync(as_json, assignment)


LETTERS = "ABCDEFGHIJKLMNOPQRST"
"""Completions as raters know them, in the order shown: their ids may name a model."""
D = TypeVar("D", bound=Draft)


def asked_for(desk: Desk, answer: A) -> A:
    """An answer to what this campaign asks, under guidelines that it has or had.

    Raises:
        HTTPException: 422: other aspects, flags or criteria, or guidelines that never were.
    """
    refuse_unasked(desk, answer)
    present = desk.terms("guidelines")[1]
    if answer.guideline_version in ("", present.rpartition("#")[0] or present, present):
        return answer.model_copy(update={"guideline_version": present})
    refuse_unpublished(desk, answer)  # made before a change, and sent after it?
    return answer


def refuse_unpublished(desk: Desk, answer: Answer) -> None:
    """Refuse an answer under guidelines that never were.

    Raises:
        HTTPException: 422.
    """
    present = desk.terms("guidelines")[1]
    if answer.guideline_version not in ("", present, *desk.store.published("guidelines")):
        raise HTTPException(422, f"guideline_version: unknown version; the current one is {present}")


def refuse_unasked(desk: Desk, draft: Draft) -> None:
    """Refuse what this campaign does not ask.

    Raises:
        HTTPException: 422, with every fault.
    """
    if faults := desk.page.asked.faults(draft):
        raise HTTPException(422, [printable(fault) for fault in faults])


def completed(tx: Transaction, desk: Desk, rater_id: str, item_id: str, answer: A) -> A:
    """An answer as the store keeps it, with all that the campaign requires.

    Raises:
        RefusedError: something required is missing, or a span is not within its answer.
    """
    given = with_ids(tx, desk, rater_id, item_id, answer)
    if given.edited_text is not None and (item := st.ITEM.one(tx.connection, item=item_id)) is not None:
        pair = desk.store.rules.load_pair(tx.connection, item.pair_id)
        if any(one.content is not None for one in pair.completions):
            raise RefusedError("answers with images or recordings cannot be edited")
    if given.value is not None and (item := st.ITEM.one(tx.connection, item=item_id)) is not None:
        desk.page.asked.refuse_value(item.task, given.value)
    if desk.page.asked.requires_something:
        for row in st.ASSIGNMENTS_OF.all(tx.connection, item=item_id, rater=rater_id)[:1]:
            desk.page.asked.require(given, shown_of(row))
    return given


def with_ids(tx: Transaction, desk: Desk, rater_id: str, item_id: str, draft: D) -> D:
    """A draft with the completions' ids in place of the letters that raters know them by, and the text of its spans."""
    if draft.ranking is None and not (draft.answer_flags or draft.criteria or draft.spans):
        return draft
    rows = st.ASSIGNMENTS_OF.all(tx.connection, item=item_id, rater=rater_id)
    ids = dict(zip(LETTERS, shown_of(rows[0]), strict=False)) if rows else {}
    changes = rename_answers(draft.model_dump(include=NAMING_ANSWERS), ids)
    given = type(draft).model_validate(draft.model_dump() | changes)
    return with_passages(tx, desk, item_id, given) if rows else given


def with_passages(tx: Transaction, desk: Desk, item_id: str, draft: D) -> D:
    """A draft whose spans have the passages of the answers that they name, whatever the client says.

    Raises:
        RefusedError: a span is not within its answer.
    """
    item = st.ITEM.one(tx.connection, item=item_id) if draft.spans else None
    if item is None:
        return draft
    pair = desk.store.rules.load_pair(tx.connection, item.pair_id)
    texts = {completion.id: completion.text for completion in pair.completions}
    spans = tuple(_within(span, texts, desk.page.asked) for span in draft.spans)
    return draft.model_copy(update={"spans": spans})


def _within(span: Span, texts: Mapping[str, str], asked: Questionnaire) -> Span:
    """A span with its passage and what its label says of it."""
    text = texts.get(span.completion, "")
    if span.end > len(text):
        raise RefusedError(f"spans: the answer has {len(text)} characters, but a passage ends at {span.end}")
    return span.model_copy(update={"text": text[span.start : span.end], "value": asked.spans.get(span.label, 0)})


def judgment_as_json(judgment: Judgment) -> dict[str, Any]:
    """A judgment as its rater gets it: A is the left completion or the first one shown."""
    fields = judgment.model_dump(mode="json")
    shown = judgment.shown or (judgment.left, judgment.right)
    letter_of = dict(zip(shown, LETTERS, strict=False))
    right = {} if isinstance(judgment, Assessment) else {"right": "B"}
    about = {"left": "A", **right, "shown": [letter_of[one] for one in judgment.shown]}
    return rename_answers(fields, letter_of) | about


NAMING_ANSWERS = {"ranking", "answer_flags", "criteria", "spans"}
"""Fields of a judgment that name single answers."""


def rename_answers(fields: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A judgment's fields with other names of its answers: ids for letters, or letters for ids."""
    renamed = dict(fields)
    if fields.get("ranking") is not None:
        renamed["ranking"] = [[names.get(one, one) for one in group] for group in fields["ranking"]]
    if fields.get("answer_flags"):
        renamed["answer_flags"] = {names.get(one, one): flags for one, flags in fields["answer_flags"].items()}
    if fields.get("criteria"):
        renamed["criteria"] = {
            name: {names.get(one, one): part for one, part in value.items()} if isinstance(value, dict) else value
            for name, value in fields["criteria"].items()
        }
    if fields.get("spans"):
        renamed["spans"] = [
            {**span, "completion": names.get(span["completion"], span["completion"])} for span in fields["spans"]
        ]
    return renamed


def as_json(assignment: Assignment, *, named: bool = False) -> dict[str, Any]:
    """A pair as the page gets it: texts and their safe HTML, nothing that reveals the models.

    Args:
        named: with the completions' ids, for leads.
    """
    answers = {completion.id: completion for completion in assignment.pair.completions}
    texts = {name: answer.text for name, answer in answers.items()}
    letter_of = dict(zip(assignment.shown, LETTERS, strict=False))
    media = assignment.media
    shown = [
        {"id": name if named else letter_of[name], "text": texts[name], "html": render_answer(answers[name], media)}
        for name in assignment.shown
    ]
    messages = [{"role": m.role, "content": m.text, "html": render_message(m, media)} for m in assignment.pair.messages]
    return {
        "pair_id": assignment.item_id,
        "task": assignment.task,
        "messages": messages,
        "left": shown[0],
        "right": shown[1] if len(shown) > 1 else None,
        "completions": shown if assignment.ranking else [],
        "draft": None if assignment.draft is None else _draft_as_json(assignment.draft, letter_of, texts),
        "flagged": _flagged(assignment.pair),
    }


def _flagged(pair: Pair) -> list[str]:
    """Why a step of *prepare* flagged a row, for those who review it. Another file's column of that name is not shown."""
    reasons = pair.origin.get(FLAGGED) if isinstance(pair, SingleAnswer) and pair.task == "review" else None
    return reasons if isinstance(reasons, list) and all(isinstance(one, str) for one in reasons) else []


def _draft_as_json(draft: dict[str, Any], letter_of: Mapping[str, str], texts: Mapping[str, str]) -> dict[str, Any]:
    """A draft in letters; each span with its place in the text as shown, where that is certain."""
    spans = [
        {**span, "shown": show_passage(texts.get(span["completion"], ""), span["start"], span["end"])}
        for span in draft.get("spans", ())
    ]
    return rename_answers(draft | ({"spans": spans} if spans else {}), letter_of)

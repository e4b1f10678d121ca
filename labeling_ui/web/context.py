"""What the handlers of the HTTP API work on: the store, who is asking, and how pairs look on the wire."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import Depends, Header, HTTPException, Request
from pydantic import BaseModel, ValidationError

from labeling_ui.pages import PageConfig
from labeling_ui.pages.safe_markup import render
from labeling_ui.store.assigning import Assignment
from labeling_ui.store.event_log import Transaction
from labeling_ui.store.store import Document, Rater, Store
from labeling_ui.web.accounts import LoginLimit, Session, find_session, needs_login
from tiebreak.records import explain

LOCAL_RATER = "local"
SESSION_COOKIE = "tiebreak_session"
MAX_TOGETHER = 64
"""Changes that share a transaction at most: whoever comes next waits for so many at the longest."""

QUICK_CHARACTERS = 6_000
"""So much text is laid out sooner than another thread is woken for it."""

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
Work = Callable[[Transaction], Any]


class Writer:
    """Changes to the store, in the order of their arrival. Those that arrive while the disk is written go together.

    The store takes one writer anyway; one that takes all that wait has the disk confirm them at once.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[tuple[Work, asyncio.Future[Any]]] = []
        self._draining: asyncio.Task[None] | None = None

    async def __call__(self, work: Callable[[Transaction], T]) -> T:
        """What `work` returns, once it is on disk. Raises what it raised."""
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
        except Exception as error:  # noqa: BLE001 - it is each waiting handler's
            results = [error] * len(together)
        for (_, future), result in zip(together, results, strict=True):
            if future.done():  # whoever asked has gone away
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


@dataclass(frozen=True)
class Desk:
    """What the handlers work on; lies in the application's state."""

    store: Store
    page: PageConfig
    write: Writer
    figures: Callable[[], dict[str, Any]]
    """the latest of the lead's, as `measuring` gives them"""
    limit: LoginLimit = field(default_factory=LoginLimit)
    _accepted: set[tuple[str, Document]] = field(default_factory=set)

    def has_accepted(self, rater_id: str, document: Document) -> bool:
        """Whether the rater has agreed to the present guidelines or consent, where there are any.

        On one's own machine, without accounts, nobody is asked.
        """
        text, version = self.terms(document)
        if not text or rater_id == LOCAL_RATER or (rater_id, document) in self._accepted:
            return True
        if self.store.accepted(rater_id, version, document):
            self._accepted.add((rater_id, document))  # it is never taken back
            return True
        return False

    def terms(self, document: Document) -> tuple[str, str]:
        """(text, version) of the guidelines or the consent."""
        if document == "consent":
            return self.page.consent, self.page.consent_version
        return self.page.guidelines, self.page.guideline_version


async def desk_of(request: Request) -> Desk:
    """The application's desk."""
    desk: Desk = request.app.state.desk
    return desk


# --- who is asking ---
# Each of these calls the one before by itself: FastAPI takes longer to resolve a chain of dependencies than they take.

CsrfToken = Annotated[str, Header(max_length=200)]


def session_of(request: Request) -> Session | None:
    """The request's session, from its cookie alone; one person's store without accounts needs none."""
    store: Store = request.app.state.desk.store
    token = request.cookies.get(SESSION_COOKIE)
    session = find_session(store, token) if token else None
    if session is None and not needs_login(store):
        return Session(Rater(LOCAL_RATER, LOCAL_RATER, "human", "lead"), csrf_token="")
    return session


async def current_session(request: Request) -> Session:
    """Who is asking. Never taken from what the client posts. (One indexed read: quicker than a change of threads.)"""
    session = session_of(request)
    if session is None:
        raise HTTPException(401, "log in first")
    return session


async def writing_session(request: Request, x_csrf_token: CsrfToken = "") -> Session:
    """Who is asking for a change: the request must carry the session's token, which no other site can read."""
    session = await current_session(request)
    if session.csrf_token and not hmac.compare_digest(session.csrf_token.encode(), x_csrf_token.encode()):
        raise HTTPException(403, "the header X-CSRF-Token is missing or wrong: log in again")
    return session


async def judging_session(request: Request, x_csrf_token: CsrfToken = "") -> Session:
    """Who may judge: those who have accepted what the campaign asks them to."""
    session, desk = await writing_session(request, x_csrf_token), await desk_of(request)
    documents: tuple[Document, ...] = ("consent", "guidelines")
    for document in documents:
        if not desk.has_accepted(session.rater.id, document):
            raise HTTPException(403, f"accept the {document}, version {desk.terms(document)[1]}, first")
    return session


async def lead_session(request: Request) -> Session:
    """Only leads."""
    session = await current_session(request)
    if session.rater.role != "lead":
        raise HTTPException(403, "this is for leads")
    return session


async def lead_writing_session(request: Request, x_csrf_token: CsrfToken = "") -> Session:
    """Only leads, and only from our own pages."""
    await lead_session(request)
    return await writing_session(request, x_csrf_token)


DeskOf = Annotated[Desk, Depends(desk_of)]
Reader = Annotated[Session, Depends(current_session)]
Writing = Annotated[Session, Depends(writing_session)]
Judging = Annotated[Session, Depends(judging_session)]
Lead = Annotated[Session, Depends(lead_session)]
LeadWriting = Annotated[Session, Depends(lead_writing_session)]


# --- what goes over the wire ---


def checked(model: type[M], body: dict[str, Any]) -> M:
    """The body as a record, or a reply that names every fault."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise HTTPException(422, [printable(fault) for fault in explain(error)]) from error


def printable(text: str) -> str:
    """`text` as every reply can carry it: halves of surrogate pairs are replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")[:1_000]


async def rendered(assignment: Assignment | None) -> dict[str, Any] | None:
    """`as_json`, without holding up other requests: a long answer takes a while to lay out."""
    if assignment is None:
        return None
    length = sum(len(completion.text) for completion in assignment.pair.completions)
    length += sum(len(message.content) for message in assignment.pair.messages)
    return as_json(assignment) if length < QUICK_CHARACTERS else await to_thread.run_sync(as_json, assignment)


def as_json(assignment: Assignment) -> dict[str, Any]:
    """A pair as the page gets it: the texts and their safe HTML, and nothing that says which model wrote them."""
    texts = {completion.id: completion.text for completion in assignment.pair.completions}
    shown = [{"id": one, "text": texts[one], "html": render(texts[one])} for one in assignment.shown]
    messages = [{"role": m.role, "content": m.content, "html": render(m.content)} for m in assignment.pair.messages]
    return {
        "pair_id": assignment.item_id,
        "task": "ranking" if assignment.ranking else "pair",
        "messages": messages,
        "left": shown[0],
        "right": shown[1],
        "completions": shown if assignment.ranking else [],
        "draft": assignment.draft,
    }

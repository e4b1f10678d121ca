"""Conversations: the rater writes, two policies answer, and the conversation continues with the better answer.

Each answered turn becomes an ordinary pair and is judged as one (Bai et al. 2022, Fig. 6). A separate process
(`labeling_ui.worker`) generates the answers: the web process queues the turn in the store and polls for the result. The
log records what was `asked`, of which policies, and what was `answered`: a pair, or why there is none. Which worker
holds a turn is not in the log.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import Field, field_validator
from sqlalchemy.engine import Connection

from labeling_ui.database import statements as st
from labeling_ui.database.errors import RefusedError
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import JUDGMENTS, TURNS
from labeling_ui.store.answers import storable
from labeling_ui.store.pairs import campaign
from labeling_ui.store.work import assigning
from labeling_ui.store.work.assigning import Assignment, Rules, active_rater
from tiebreak.hashing import canonical_json
from tiebreak.messages import Message, Messages, Record, content_id, prompt_id
from tiebreak.records import Completion, Judgment, Pair

MAX_TURN_CHARACTERS = 20_000
MAX_TURNS = 50
HOLD_SECONDS = 15
"""A turn whose worker has not renewed its hold for this long goes to another worker, or to the restarted one."""
LEFT_BEHIND = "another message was sent instead"
BATCH = campaign.Batch(campaign.CONVERSATIONS, priority=0, pool="", overlap=1, paused=True)
"""The batch of conversations: its pairs are not given out, since each belongs to its own rater."""
SOURCE = campaign.Source("conversations", "conversations")

_OPEN = TURNS.c.state.in_(("waiting", "working"))

TurnState = Literal["waiting", "working", "ready", "failed"]


class Ask(Record):
    """A rater's message. The client makes `conversation_id`; the first turn has number 0."""

    conversation_id: str = Field(min_length=1, max_length=64)
    number: int = Field(ge=0, lt=MAX_TURNS)
    text: str = Field(min_length=1, max_length=MAX_TURN_CHARACTERS)

    @field_validator("conversation_id", "text")
    @classmethod
    def _storable(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("is empty")
        return storable(text) or ""


@dataclass(frozen=True)
class Turn:
    """One turn as its rater sees it: `assignment` is the pair to judge once it is `ready`."""

    id: str
    conversation_id: str
    number: int
    state: TurnState
    messages: Messages
    error: str = ""
    assignment: Assignment | None = None
    judged: bool = False


@dataclass(frozen=True)
class Request:
    """A queued turn."""

    turn_id: str
    messages: Messages
    asked_at_ms: int
    """distinguishes it from an earlier request of the same turn"""


def ask(tx: Transaction, rater_id: str, new_turn: Ask, *, policies: Sequence[str], system: str = "") -> str:
    """Queue a turn; sending the same one again changes nothing. Returns the turn's id.

    Args:
        policies: the policies that answer, as the campaign names them.
        system: the system prompt of new conversations; none if empty.

    Raises:
        RefusedError: the previous turn has not been judged, or has no answer to continue with.
    """
    active_rater(tx.connection, rater_id)
    identity = content_id("turn", rater_id, new_turn.conversation_id, new_turn.number)
    there = tx.connection.execute(sa.select(TURNS).where(TURNS.c.id == identity)).first()
    if there is not None and there.state != "failed":
        if _read_messages(there.messages)[-1].text != new_turn.text:
            raise RefusedError(f"turn {new_turn.number} of this conversation already exists: reload the page")
        return identity
    before: Messages = (Message(role="system", content=system),) if system else ()
    if new_turn.number:
        before = _messages_so_far(tx.connection, rater_id, new_turn)
    messages = (*before, Message(role="user", content=new_turn.text))
    # An older unanswered turn of the rater's is dropped: at most one waits per rater.
    left = sa.select(TURNS).where(TURNS.c.rater_id == rater_id, _OPEN)
    for row in tx.connection.execute(left.with_for_update()).all():
        _close(tx, row, error=LEFT_BEHIND)
    written = [message.model_dump() for message in messages]
    about = {"conversation_id": new_turn.conversation_id, "number": new_turn.number}
    payload = {"turn": identity, **about, "messages": written, "policies": list(policies)}
    now = tx.event("asked", rater_id=rater_id, payload=payload)
    tx.connection.execute(sa.delete(TURNS).where(TURNS.c.id == identity))
    queued = {"state": "waiting", "asked_at_ms": now, "taken_until_ms": 0, "pair_id": None, "error": ""}
    values = {"id": identity, "rater_id": rater_id, **about, **queued, "messages": canonical_json(written)}
    tx.connection.execute(sa.insert(TURNS).values(**values))
    return identity


def _close(tx: Transaction, row: Any, *, pair_id: str | None = None, error: str = "") -> None:
    """Close a turn: there is a pair to judge, or a reason why there is none."""
    payload = {"turn": row.id, "pair_id": pair_id, "error": error}
    tx.event("answered", rater_id=row.rater_id, item_id=pair_id, payload=payload)
    values = {"state": "failed" if pair_id is None else "ready", "pair_id": pair_id, "error": error}
    tx.connection.execute(sa.update(TURNS).where(TURNS.c.id == row.id).values(**values))


def _messages_so_far(connection: Connection, rater_id: str, new_turn: Ask) -> Messages:
    """The conversation up to the better answer; after a tie, the left one."""
    identity = content_id("turn", rater_id, new_turn.conversation_id, new_turn.number - 1)
    turn = connection.execute(sa.select(TURNS).where(TURNS.c.id == identity)).first()
    judgment = _judgment_of(connection, turn.pair_id, rater_id) if turn is not None and turn.pair_id else None
    if turn is None or judgment is None:
        raise RefusedError("judge the two answers first: the conversation continues with the better one")
    if judgment.answer is None:
        raise RefusedError("there is no answer to continue with: start another conversation")
    text = judgment.edited_text
    if text is None:
        chosen = judgment.right if judgment.answer > 0 else judgment.left
        record = Pair.model_validate_json(st.PAIR_RECORD.one(connection, pair=turn.pair_id).record)
        text = next(completion.text for completion in record.completions if completion.id == chosen)
    return (*_read_messages(turn.messages), Message(role="assistant", content=text))


def _judgment_of(connection: Connection, item_id: str, rater_id: str) -> Judgment | None:
    query = sa.select(JUDGMENTS.c.record).where(JUDGMENTS.c.item_id == item_id, JUDGMENTS.c.rater_id == rater_id)
    record = connection.scalar(query)
    return None if record is None else Judgment.model_validate_json(record)


def look(connection: Connection, rules: Rules, rater_id: str, turn_id: str | None = None) -> Turn | None:
    """One of the rater's turns, by default the latest; None if there is none.

    Raises:
        RefusedError: the turn is not theirs.
    """
    query = sa.select(TURNS).where(TURNS.c.rater_id == rater_id)
    if turn_id is not None:
        query = query.where(TURNS.c.id == turn_id)
    row = connection.execute(query.order_by(TURNS.c.asked_at_ms.desc(), TURNS.c.number.desc()).limit(1)).first()
    if row is None:
        if turn_id is not None:
            raise RefusedError("there is no such turn of yours")
        return None
    assignment, judged = None, False
    if row.pair_id:
        latest = st.ASSIGNMENTS_OF.all(connection, item=row.pair_id, rater=rater_id)[0]
        assignment = assigning.load_assignment(connection, rules, latest)
        judged = latest.state == "done"
    messages = _read_messages(row.messages)
    return Turn(row.id, row.conversation_id, row.number, row.state, messages, row.error, assignment, judged)


# --- the worker's side ---


def is_waiting(connection: Connection, now_ms: int) -> bool:
    """Whether `take` would find a turn: a read, for workers that look several times a second."""
    return connection.execute(_to_take(now_ms)).first() is not None


def _to_take(now_ms: int) -> sa.Select[Any]:
    left = sa.and_(TURNS.c.state == "working", TURNS.c.taken_until_ms < now_ms)
    return sa.select(TURNS).where(sa.or_(TURNS.c.state == "waiting", left)).order_by(TURNS.c.asked_at_ms).limit(1)


def take(tx: Transaction) -> Request | None:
    """The turn that has waited longest, held by this worker for HOLD_SECONDS; None if none waits."""
    query = _to_take(tx.now())
    row = tx.connection.execute(query.with_for_update(skip_locked=True)).first()
    if row is None:
        return None
    request = Request(row.id, _read_messages(row.messages), row.asked_at_ms)
    hold(tx, request)
    return request


def hold(tx: Transaction, request: Request) -> None:
    """Hold the turn for another HOLD_SECONDS."""
    held = {"state": "working", "taken_until_ms": tx.now() + 1000 * HOLD_SECONDS}
    tx.connection.execute(sa.update(TURNS).where(_is_turn(request), _OPEN).values(**held))


def answer(tx: Transaction, rules: Rules, request: Request, completions: Sequence[Completion]) -> None:
    """Store the two answers as a pair and give it to the rater.

    A turn that was answered, dropped or queued again meanwhile does not change.
    """
    row = _open_turn(tx, request)
    if row is None:
        return
    about = content_id("pair", row.id, sorted(completion.id for completion in completions))
    messages = request.messages
    pair = Pair(id=about, prompt_id=prompt_id(messages), messages=messages, completions=tuple(completions))
    campaign.add_new_pair(tx, pair, BATCH, SOURCE)
    item = st.ITEM.one(tx.connection, item=pair.id)
    st.TAKE_PLACE.do(tx.connection, item=item.id)
    assigning.assign(tx, rules, item, row.rater_id, occasion=0)
    _close(tx, row, pair_id=pair.id)


def fail(tx: Transaction, request: Request, error: str) -> None:
    """Report to the rater that no answer came; they may send the message again."""
    row = _open_turn(tx, request)
    if row is not None:
        _close(tx, row, error=error[:500])


def _is_turn(request: Request) -> sa.ColumnElement[bool]:
    return sa.and_(TURNS.c.id == request.turn_id, TURNS.c.asked_at_ms == request.asked_at_ms)


def _open_turn(tx: Transaction, request: Request) -> Any:
    """The turn's row, locked on Postgres; None if it was answered, dropped or queued again meanwhile."""
    query = sa.select(TURNS).where(_is_turn(request), _OPEN)
    return tx.connection.execute(query.with_for_update()).first()


def _read_messages(record: str) -> Messages:
    return tuple(Message.model_validate(message) for message in json.loads(record))

"""Conversations: the rater writes, two policies answer, the better answer is what the conversation goes on with.

Each turn is a pair like any other, made when it is answered, and judged like any other (Bai et al. 2022, Fig. 6). The
answers come from a process of their own (`labeling_ui.worker`): the web process puts what is asked into a queue in the
store, and looks there for what came of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from pydantic import Field, field_validator
from sqlalchemy.engine import Connection

from labeling_ui import assigning, campaign
from labeling_ui import statements as st
from labeling_ui.answers import storable
from labeling_ui.assigning import Assignment, RefusedError, Rules, active_rater
from labeling_ui.log import Transaction, canonical_json
from labeling_ui.schema import JUDGMENTS, TURNS
from tiebreak.records import Completion, Judgment, Message, Messages, Pair, Record, content_id, prompt_id

MAX_TURN_CHARACTERS = 20_000
MAX_TURNS = 50
ANSWER_SECONDS = 300
"""A turn that its worker does not answer within this time is another worker's, or the same one's after its restart."""
BATCH = campaign.Batch("conversations", priority=0, pool="", overlap=1, paused=True)
"""Of this batch nothing is given out by turns: a pair is its own rater's."""
SOURCE = campaign.Source("conversations", "conversations")

TurnState = Literal["waiting", "working", "ready", "failed"]


class Ask(Record):
    """What a rater writes. `conversation_id` is made by the client; the first turn has number 0."""

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
    """One turn, as its rater sees it: `assignment` is the pair to judge once it is `ready`."""

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
    """A turn that waits for its answers."""

    turn_id: str
    messages: Messages


def ask(tx: Transaction, rater_id: str, asked: Ask, system: str) -> str:
    """Put a turn into the queue; the same one again changes nothing. Returns the turn's id.

    Args:
        system: the system prompt of conversations that begin; none if empty.

    Raises:
        RefusedError: the turn before it has not been judged, or has no answer to go on with.
    """
    active_rater(tx.connection, rater_id)
    identity = content_id("turn", rater_id, asked.conversation_id, asked.number)
    there = tx.connection.execute(sa.select(TURNS).where(TURNS.c.id == identity)).first()
    if there is not None and there.state != "failed":
        if _read_messages(there.messages)[-1].content != asked.text:
            raise RefusedError(f"turn {asked.number} of this conversation was written already: reload the page")
        return identity
    before: Messages = (Message(role="system", content=system),) if system else ()
    if asked.number:
        before = _messages_so_far(tx.connection, rater_id, asked)
    messages = (*before, Message(role="user", content=asked.text))
    # What the rater has asked elsewhere and left behind is not worth an answer: one turn waits for each rater at most.
    left = sa.and_(TURNS.c.rater_id == rater_id, TURNS.c.state == "waiting")
    tx.connection.execute(sa.delete(TURNS).where(sa.or_(TURNS.c.id == identity, left)))
    row = {"id": identity, "conversation_id": asked.conversation_id, "rater_id": rater_id, "number": asked.number}
    told = canonical_json([message.model_dump() for message in messages])
    queued = {"state": "waiting", "asked_at_ms": tx.now(), "taken_until_ms": 0, "pair_id": None, "error": ""}
    tx.connection.execute(sa.insert(TURNS).values(**row, **queued, messages=told))
    return identity


def _messages_so_far(connection: Connection, rater_id: str, asked: Ask) -> Messages:
    """The conversation up to the answer that was judged the better one; of two that are as good, the left one."""
    identity = content_id("turn", rater_id, asked.conversation_id, asked.number - 1)
    turn = connection.execute(sa.select(TURNS).where(TURNS.c.id == identity)).first()
    judgment = _judgment_of(connection, turn.pair_id, rater_id) if turn is not None and turn.pair_id else None
    if turn is None or judgment is None:
        raise RefusedError("judge the two answers first: the better one is what the conversation goes on with")
    if judgment.answer is None:
        raise RefusedError("there is no answer to go on with: begin another conversation")
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
    """One of the rater's turns, the latest if none is named; None if there is none.

    Raises:
        RefusedError: the turn that is named is not theirs.
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
        given = st.ASSIGNMENTS_OF.all(connection, item=row.pair_id, rater=rater_id)[0]
        assignment = assigning.load_assignment(connection, rules, given)
        judged = given.state == "done"
    messages = _read_messages(row.messages)
    return Turn(row.id, row.conversation_id, row.number, row.state, messages, row.error, assignment, judged)


# --- the worker's side ---


def take(tx: Transaction) -> Request | None:
    """The turn that has waited longest, which is the worker's for ANSWER_SECONDS; None if none waits."""
    left = sa.and_(TURNS.c.state == "working", TURNS.c.taken_until_ms < tx.now())
    query = sa.select(TURNS).where(sa.or_(TURNS.c.state == "waiting", left)).order_by(TURNS.c.asked_at_ms).limit(1)
    row = tx.connection.execute(query.with_for_update(skip_locked=True)).first()
    if row is None:
        return None
    taken = {"state": "working", "taken_until_ms": tx.now() + 1000 * ANSWER_SECONDS}
    tx.connection.execute(sa.update(TURNS).where(TURNS.c.id == row.id).values(**taken))
    return Request(row.id, _read_messages(row.messages))


def answer(tx: Transaction, rules: Rules, turn_id: str, completions: Sequence[Completion]) -> None:
    """Make a pair of two answers and give it to the rater who asked. A turn that was answered meanwhile stays as it is."""
    row = tx.connection.execute(sa.select(TURNS).where(TURNS.c.id == turn_id)).first()
    if row is None or row.state != "working":
        return
    messages = _read_messages(row.messages)
    about = content_id("pair", turn_id, sorted(completion.id for completion in completions))
    pair = Pair(id=about, prompt_id=prompt_id(messages), messages=messages, completions=tuple(completions))
    campaign.add_new_pair(tx, pair, BATCH, SOURCE)
    item = st.ITEM.one(tx.connection, item=pair.id)
    st.TAKE_PLACE.do(tx.connection, item=item.id)
    assigning.assign(tx, rules, item, row.rater_id, occasion=0)
    tx.connection.execute(sa.update(TURNS).where(TURNS.c.id == turn_id).values(state="ready", pair_id=pair.id))


def fail(tx: Transaction, turn_id: str, error: str) -> None:
    """Tell the rater that no answer came; they may ask again."""
    query = sa.update(TURNS).where(TURNS.c.id == turn_id, TURNS.c.state == "working")
    tx.connection.execute(query.values(state="failed", error=error[:500]))


def _read_messages(record: str) -> Messages:
    return tuple(Message.model_validate(one) for one in json.loads(record))

"""Finding items and judgments: by text, id, batch, rater, flag, answer, agreement and length, among a million judgments.

Items come in campaign order, a page at a time. Every filter is read from an index or from `items` alone, whose rows are
small; only the items of the page are read with their texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import Field, field_validator
from sqlalchemy.engine import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from labeling_ui.database import statements as st
from labeling_ui.database.errors import RefusedError
from labeling_ui.database.schema import ADJUDICATIONS, EVENTS, GOLD, ITEMS, JUDGMENTS, PAIRS, REJECTIONS, WITHDRAWALS
from labeling_ui.database.words import matching
from labeling_ui.store.answers import storable
from labeling_ui.store.pairs.items import beginning_of
from tiebreak.assessments import read_judgment, read_pair
from tiebreak.messages import Record
from tiebreak.records import Judgment, Pair

FIRST_CHUNK = 2_000
"""Matches of a text in the first chunk; each further chunk, read until a page is full, is four times as large."""
FEW = 500
"""Items that are looked at one by one."""
HISTORY = (
    "submitted", "skipped", "amended", "undone", "rejected", "imported", "flagged", "adjudicated", "settlement_removed",
    "gold_set", "gold_removed", "unrejected",
)  # fmt: skip
"""Kinds of events that an item's history shows."""
HISTORY_INDEXED = ", ".join(f"'{kind}'" for kind in HISTORY)
_VOTES = ITEMS.c.for_first + ITEMS.c.for_second + ITEMS.c.for_neither
_JUDGMENTS = sa.select(sa.func.count()).where(JUDGMENTS.c.item_id == ITEMS.c.id, JUDGMENTS.c.occasion == 0)
_ANSWERED = sa.case((ITEMS.c.second_id.is_(None), _JUDGMENTS.scalar_subquery() - ITEMS.c.skips), else_=_VOTES)
"""Votes of a pair, or judgments of a single answer, without skips."""


class _flags_of(FunctionElement[str]):  # noqa: N801  used as a function
    """The flags of a record, as the text of a JSON array: other fields may hold the same words."""

    type = sa.String()
    inherit_cache = True


@compiles(_flags_of, "sqlite")
def _(element: _flags_of, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_extract({compiler.process(element.clauses, **options)}, '$.flags')"


@compiles(_flags_of, "postgresql")
def _(element: _flags_of, compiler: SQLCompiler, **options: Any) -> str:
    return f"(CAST({compiler.process(element.clauses, **options)} AS json) ->> 'flags')"


_FLAGGED = sa.text("judgments.record NOT LIKE '%\"flags\":[]%'")
"""The condition of an index: no other words mean the same to SQLite."""


class Search(Record):
    """A lead's search; empty fields match everything."""

    text: str = Field(default="", max_length=500)
    """words that the prompt or an answer has; in quotes: a phrase"""
    id: str = Field(default="", max_length=200)
    """part of the id"""
    batch: str | None = Field(default=None, max_length=100)
    rater: str = Field(default="", max_length=200)
    """an id: items that this rater has judged"""
    flag: str = Field(default="", max_length=50)
    """items with a judgment that has this flag"""
    answer: Literal["", "first", "second", "neither", "skip"] = ""
    """the answer of a judgment: of the rater's where there is one, else of anybody's"""
    agreement: Literal["", "one", "agree", "tie", "side"] = ""
    """one vote; several that agree; some for a side and others for neither; for opposite sides"""
    state: Literal["", "unjudged", "open", "full", "gold", "settled", "withdrawn", "rejected"] = ""
    shortest: int | None = Field(default=None, ge=0, le=2**31 - 1)
    longest: int | None = Field(default=None, ge=0, le=2**31 - 1)
    """characters of the longest answer"""

    @field_validator("text", "id", "batch", "rater", "flag")
    @classmethod
    def _storable(cls, text: str | None) -> str | None:
        return storable(text)


@dataclass(frozen=True)
class FoundItem:
    """An item of a search. Votes are for the completions in the campaign's order."""

    item_id: str
    pair_id: str
    position: int
    batch: str
    task: str
    prompt: str
    """beginning of the conversation's last message"""
    for_first: int
    for_second: int
    for_neither: int
    skips: int
    taken: int
    overlap: int
    disputed: int
    length: int
    gold: bool
    settled: bool
    withdrawn: bool
    rejected: int


@dataclass(frozen=True)
class SearchPage:
    """A page of a search, and the position after which the next page begins; None: this is the last one."""

    items: list[FoundItem]
    after: int | None


@dataclass(frozen=True)
class JudgmentEntry:
    """A judgment with its times, and why it was rejected if it was."""

    judgment_id: str
    item_id: str
    judgment: Judgment
    seq: int
    at_ms: int
    active_ms: int
    repeat: bool
    rejected: str | None = None
    rejected_by: str | None = None
    rejected_at_ms: int | None = None
    prompt: str = ""


@dataclass(frozen=True)
class ItemEvent:
    """An event of an item's history."""

    at_ms: int
    kind: str
    rater_id: str | None
    judgment: Judgment | None
    note: str


@dataclass(frozen=True)
class ItemOpened:
    """An item with everything about it."""

    item: FoundItem
    pair: Pair
    first_id: str
    second_id: str | None
    gold_id: str | None
    """the better completion of a gold item; None also where neither is better"""
    gold_value: int | str | None
    """the known value of a single answer"""
    settled: Judgment | None
    withdrawn: str | None
    """why the pair is withdrawn; None: it is not"""
    judgments: list[JudgmentEntry]
    history: list[ItemEvent]


def find(connection: Connection, search: Search, *, after: int = -1, limit: int = 50) -> SearchPage:
    """A page of the items that a search finds, in campaign order."""
    wanted = _conditions(connection, search)
    if matching(connection, search.text, after, None) is not None:
        ids, following = _with_text(connection, search.text, wanted, after, limit)
    else:
        query = sa.select(ITEMS.c.id, ITEMS.c.position).where(ITEMS.c.position > after, *wanted)
        rows = connection.execute(query.order_by(ITEMS.c.position).limit(limit + 1)).all()
        ids, following = [row.id for row in rows[:limit]], rows[limit - 1].position if len(rows) > limit else None
    return SearchPage(_load(connection, ids), following)


def _with_text(
    connection: Connection, text: str, wanted: list[sa.ColumnElement[bool]], after: int, limit: int
) -> tuple[list[str], int | None]:
    """The same for a search with text: matches are read in chunks, since a common word has a great many.

    Where the other filters leave few items, those are read instead.
    """
    ids: list[str] = []
    others = sa.select(ITEMS.c.position).where(ITEMS.c.position > after, *wanted).order_by(ITEMS.c.position)
    few = connection.scalars(others.limit(FEW + 1)).all()
    if len(few) <= FEW:
        wanted = [*wanted, ITEMS.c.position.in_(few)]
    chunk: int | None = None if len(few) <= FEW else FIRST_CHUNK
    last = after
    while True:
        matches = matching(connection, text, last, chunk)
        assert matches is not None
        rows, (final, count) = _among(connection, matches.cte("found"), wanted, limit + 1 - len(ids))
        ids += rows
        if len(ids) > limit:
            return ids[:limit], _position(connection, ids[limit - 1])
        if chunk is None or count < chunk:
            return ids, None
        chunk, last = 4 * chunk, final


def _among(
    connection: Connection, found: sa.CTE, wanted: list[sa.ColumnElement[bool]], limit: int
) -> tuple[list[str], tuple[int, int]]:
    """The wanted items among the matches of a text, in order; the last match and their number. In one statement: finding
    the matches of a common word takes longer than all the rest."""
    among = ITEMS.c.position.in_(sa.select(found.c.position))
    query = sa.select(ITEMS.c.id, ITEMS.c.position).where(among, *wanted)
    hits = query.order_by(ITEMS.c.position).limit(limit).subquery()
    ends = sa.select(sa.cast(sa.null(), sa.String), sa.func.max(found.c.position), sa.func.count()).select_from(found)
    both = sa.union_all(sa.select(hits.c.id, hits.c.position, sa.literal_column("0")), ends)
    rows = sorted(connection.execute(both), key=lambda row: (row[0] is None, row[1]))
    return [row[0] for row in rows[:-1]], (rows[-1][1], rows[-1][2])


def _position(connection: Connection, item_id: str) -> int:
    return int(connection.scalar(sa.select(ITEMS.c.position).where(ITEMS.c.id == item_id)) or 0)


def _conditions(connection: Connection, search: Search) -> list[sa.ColumnElement[bool]]:
    withdrawn: sa.ColumnElement[int] = sa.literal_column(
        "1" if search.state == "withdrawn" else "0"
    )  # as the index has it
    wanted: list[sa.ColumnElement[bool]] = [ITEMS.c.withdrawn == withdrawn]
    if search.id:
        wanted.append(ITEMS.c.id.contains(search.id, autoescape=True))
        wanted += [ITEMS.c.withdrawn < sa.literal_column("1")] if search.state != "withdrawn" else []  # likewise
    if search.batch is not None:
        wanted.append(ITEMS.c.batch == search.batch)
    if search.shortest is not None:
        wanted.append(ITEMS.c.length >= search.shortest)
    if search.longest is not None:
        wanted.append(ITEMS.c.length <= search.longest)
    if search.flag:
        flagged = sa.select(JUDGMENTS.c.item_id).where(
            _FLAGGED, _flags_of(JUDGMENTS.c.record).contains(f'"{search.flag}"')
        )
        wanted.append(ITEMS.c.id.in_(flagged))
    if search.rater:
        wanted.append(_judged_by(connection, search))
    elif search.answer:
        counts = {"first": ITEMS.c.for_first, "second": ITEMS.c.for_second, "neither": ITEMS.c.for_neither}
        wanted.append(counts.get(search.answer, ITEMS.c.skips) > 0)
    return [*wanted, *_agreeing(search.agreement), *_in_state(search.state)]


def _judged_by(connection: Connection, search: Search) -> sa.ColumnElement[bool]:
    """Items that the rater has judged, so if an answer is asked for: looked up where they are few, since otherwise every
    item is asked for a judgment of theirs."""
    theirs = sa.select(JUDGMENTS.c.item_id).where(JUDGMENTS.c.rater_id == search.rater, *_voted(search.answer))
    few = connection.scalars(theirs.limit(FEW + 1)).all()
    if len(few) <= FEW:
        return ITEMS.c.id.in_(sorted(set(few)))
    return theirs.where(JUDGMENTS.c.item_id == ITEMS.c.id).exists()


def _voted(answer: str) -> list[sa.ColumnElement[bool]]:
    vote = JUDGMENTS.c.vote
    by_answer = {"first": vote > 0, "second": vote < 0, "neither": vote == 0}
    by_answer["skip"] = sa.and_(vote.is_(None), JUDGMENTS.c.record.contains('"skip":true'))
    return [by_answer[answer]] if answer else []


def _agreeing(agreement: str) -> list[sa.ColumnElement[bool]]:
    by_agreement = {
        "one": _ANSWERED == 1,
        "agree": sa.and_(ITEMS.c.disputed == 0, _ANSWERED > 1),
        "tie": sa.and_(ITEMS.c.disputed > 0, ITEMS.c.disputed == 1),
        "side": sa.and_(ITEMS.c.disputed > 0, ITEMS.c.disputed == 2),
    }
    return [by_agreement[agreement]] if agreement else []


def _in_state(state: str) -> list[sa.ColumnElement[bool]]:
    by_state = {
        "unjudged": sa.and_(_VOTES == 0, ITEMS.c.taken == sa.literal_column("0")),
        "open": sa.and_(ITEMS.c.taken < ITEMS.c.overlap, ITEMS.c.offered == 1),
        "full": ITEMS.c.taken >= ITEMS.c.overlap,
        "gold": ITEMS.c.id.in_(sa.select(GOLD.c.item_id)),
        "settled": ITEMS.c.id.in_(sa.select(ADJUDICATIONS.c.item_id)),
        "rejected": ITEMS.c.id.in_(sa.select(REJECTIONS.c.item_id)),
    }
    return [by_state[state]] if state in by_state else []


def _load(connection: Connection, ids: list[str]) -> list[FoundItem]:
    rejected = sa.select(sa.func.count()).where(REJECTIONS.c.item_id == ITEMS.c.id).scalar_subquery()
    query = (
        sa.select(ITEMS, PAIRS.c.record, GOLD.c.item_id.label("gold"), ADJUDICATIONS.c.item_id.label("settled"))
        .add_columns(rejected.label("rejected"))
        .join(PAIRS, PAIRS.c.id == ITEMS.c.pair_id)
        .outerjoin(GOLD, GOLD.c.item_id == ITEMS.c.id)
        .outerjoin(ADJUDICATIONS, ADJUDICATIONS.c.item_id == ITEMS.c.id)
        .where(ITEMS.c.id.in_(ids))
        .order_by(ITEMS.c.position)
    )
    return [_as_found(row) for row in connection.execute(query)]


def _as_found(row: Any) -> FoundItem:
    same = ["pair_id", "position", "batch", "task", "for_first", "for_second", "for_neither", "skips", "taken"]
    same += ["overlap", "disputed", "length", "rejected"]
    return FoundItem(
        item_id=row.id,
        prompt=beginning_of(row.record),
        gold=row.gold is not None,
        settled=row.settled is not None,
        withdrawn=bool(row.withdrawn),
        **{name: getattr(row, name) for name in same},
    )


# --- one item, one rater ---


def open_item(connection: Connection, item_id: str) -> ItemOpened:
    """An item, all its judgments, and its history.

    Raises:
        RefusedError: there is no such item.
    """
    found = _load(connection, [item_id])
    if not found:
        raise RefusedError(f"there is no pair with the id {item_id}")
    item = st.ITEM.one(connection, item=item_id)
    pair = read_pair(st.PAIR_RECORD.one(connection, pair=item.pair_id).record)
    settled = connection.scalar(sa.select(ADJUDICATIONS.c.record).where(ADJUDICATIONS.c.item_id == item_id))
    return ItemOpened(
        item=found[0],
        pair=pair,
        first_id=item.first_id,
        second_id=item.second_id,
        gold_id=connection.scalar(sa.select(GOLD.c.preferred_id).where(GOLD.c.item_id == item_id)),
        gold_value=json.loads(connection.scalar(sa.select(GOLD.c.value).where(GOLD.c.item_id == item_id)) or "null"),
        settled=read_judgment(settled) if settled else None,
        withdrawn=connection.scalar(sa.select(WITHDRAWALS.c.reason).where(WITHDRAWALS.c.pair_id == item.pair_id)),
        judgments=_judgments(connection, "item_id", item_id),
        history=_history(connection, item_id),
    )


def judgments_of_rater(
    connection: Connection, rater_id: str, *, before: int | None = None, limit: int = 50
) -> list[JudgmentEntry]:
    """A rater's judgments, rejected ones too, latest first; `before`: the `seq` of the previous page's last one."""
    return _judgments(connection, "rater_id", rater_id, before=before, limit=limit)


def rejections_of_rater(connection: Connection, rater_id: str, *, limit: int) -> list[JudgmentEntry]:
    """A rater's rejected judgments, latest first."""
    return _judgments(connection, "rater_id", rater_id, limit=limit, tables=(REJECTIONS,))


def _judgments(
    connection: Connection,
    column: str,
    value: str,
    *,
    before: int | None = None,
    limit: int = 10_000,
    tables: Sequence[sa.Table] = (JUDGMENTS, REJECTIONS),
) -> list[JudgmentEntry]:
    given: list[JudgmentEntry] = []
    for table in tables:
        query = sa.select(table, PAIRS.c.record.label("pair")).join(ITEMS, ITEMS.c.id == table.c.item_id)
        query = query.join(PAIRS, PAIRS.c.id == ITEMS.c.pair_id).where(table.c[column] == value)
        if before is not None:
            query = query.where(table.c.seq < before)
        given += [_as_given(row) for row in connection.execute(query.order_by(table.c.seq.desc()).limit(limit))]
    return sorted(given, key=lambda one: -one.seq)[:limit]


def _as_given(row: Any) -> JudgmentEntry:
    names = {"rejected": "reason", "rejected_by": "by_id", "rejected_at_ms": "rejected_at_ms"}
    about = {name: getattr(row, column, None) for name, column in names.items()}
    return JudgmentEntry(
        judgment_id=row.id,
        item_id=row.item_id,
        judgment=read_judgment(row.record),
        seq=row.seq,
        at_ms=row.at_ms,
        active_ms=row.active_ms,
        repeat=row.occasion > 0,
        prompt=beginning_of(row.pair),
        **about,
    )


def _history(connection: Connection, item_id: str) -> list[ItemEvent]:
    indexed = sa.text(f"events.kind IN ({HISTORY_INDEXED})")
    query = sa.select(EVENTS).where(EVENTS.c.item_id == item_id, indexed).order_by(EVENTS.c.seq)
    return [_as_happened(row) for row in connection.execute(query)]


def _as_happened(row: Any) -> ItemEvent:
    payload = json.loads(row.payload)
    judgment = payload.get("judgment")
    note = payload.get("reason") or ", ".join(payload.get("flags", ())) or payload.get("preferred_id") or ""
    whole = read_judgment(json.dumps(judgment)) if judgment else None
    return ItemEvent(row.at_ms, row.kind, payload.get("by") or row.rater_id, whole, note)

"""Judgments, drafts, undo and amendments.

A judgment stores the sides as assigned, never as a client claims them. Every function runs in its caller's transaction;
the tables it updates are derived from the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from labeling_ui.database import statements as st
from labeling_ui.database.errors import RefusedError
from labeling_ui.database.event_log import EventKind, Transaction
from labeling_ui.database.schema import HOUR_MS, vote_of
from labeling_ui.store.answers import Answer, Draft, Submission
from labeling_ui.store.pairs.inspection import look_at_lot
from labeling_ui.store.pairs.items import Task
from labeling_ui.store.work.assigning import (
    Assignment,
    Rules,
    active_rater,
    is_withdrawn,
    load_assignment,
    renew,
    resume,
    shown_of,
)
from labeling_ui.store.work.standing import HELD, HELD_MESSAGE, look_at_rater, refuse_marked
from tiebreak.assessments import Assessment, SingleTask, disagreement, is_single, read_judgment
from tiebreak.files import explain
from tiebreak.hashing import canonical_json
from tiebreak.messages import content_id
from tiebreak.records import Judgment

A = TypeVar("A", bound=Answer)
DAY_SECONDS = 86_400
CLOCK_SLACK_SECONDS = 5
"""A client's clock may run so far ahead of the server's over one pair."""
LAST_MS = 2**62
"""Later than any time in a log."""
_NOT_IN_JUDGMENT = {"client_id", "pair_id", "client_at_ms", "seconds_idle"}


@dataclass(frozen=True)
class StoredJudgment:
    """The reply to a submission; `replayed` if it was already stored."""

    judgment_id: str
    judgment: Judgment
    replayed: bool = False


def submit(tx: Transaction, rules: Rules, rater_id: str, submission: Submission) -> StoredJudgment:
    """Store a judgment, once: submitting it again changes nothing.

    Raises:
        RefusedError: the item is not this rater's, is already judged, or its lease expired and others took its place.
    """
    return submit_for(tx, rules, active_rater(tx.connection, rater_id), submission)


def submit_for(tx: Transaction, rules: Rules, rater: Any, submission: Submission) -> StoredJudgment:
    """`submit`, given the rater's row."""
    rater_id = rater.id
    replayed = _find_replay(tx, rater_id, submission.client_id, submission)
    if replayed is not None:
        return replayed
    _refuse_held(rater)
    assignment = _assignment_to_answer(tx, rules, rater_id, submission.pair_id)
    item = st.ITEM.one(tx.connection, item=assignment.item_id)
    answer = _within_time(tx, assignment, submission)
    judgment = build_judgment(answer, rater, item.pair_id, shown_of(assignment), item.task)
    vote = count_vote(tx, item, assignment.occasion, before=None, now=judgment)
    _move_place(tx, assignment, was_skip=False, is_skip=judgment.skip)
    identity = content_id("judgment", rater_id, submission.client_id)
    at_ms = _log_judgment(tx, "skipped" if judgment.skip else "submitted", identity, assignment, judgment, answer)
    active_ms, idle_ms = _milliseconds(answer.seconds_active), _milliseconds(answer.seconds_idle)
    st.ADD_JUDGMENT.do(
        tx.connection,
        id=identity,
        assignment_id=assignment.id,
        item_id=assignment.item_id,
        rater_id=rater_id,
        kind=judgment.kind,
        record=judgment.model_dump_json(),
        seq=tx.seq,
        occasion=assignment.occasion,
        vote=vote,
        at_ms=at_ms,
        active_ms=active_ms,
        idle_ms=idle_ms,
    )
    count_work(tx, rater_id, at_ms, judged=1, active_ms=active_ms, idle_ms=idle_ms)
    _remember(tx, rater_id, submission.client_id, identity, submission)
    st.SET_STATE.do(tx.connection, assignment=assignment.id, to_state="done")
    st.DROP_DRAFT.do(tx.connection, assignment=assignment.id)
    if item.task == "review":
        look_at_lot(tx, item.batch)
    look_at_rater(tx, rater, assignment, rules.qualify, rules.stop)
    return StoredJudgment(identity, judgment)


def amend(
    tx: Transaction, rules: Rules, rater_id: str, judgment_id: str, client_id: str, answer: Answer
) -> StoredJudgment:
    """Replace a judgment's answer; the log keeps both.

    Raises:
        RefusedError: it is not theirs, was undone, was settled by a lead, belongs to a test that has been marked, or was a
            skip whose place others have taken.
    """
    rater = active_rater(tx.connection, rater_id)
    replayed = _find_replay(tx, rater_id, client_id, answer)
    if replayed is not None:
        return replayed
    _refuse_held(rater)
    row = _own_judgment(tx, rater_id, judgment_id, "amend")
    _refuse_settled(tx, row.item_id)
    refuse_marked(tx.connection, rater, judgment_id, rules.qualify)
    assignment = st.ASSIGNMENT.one(tx.connection, assignment=row.assignment_id)
    item = st.ITEM.one(tx.connection, item=row.item_id)
    sent, answer = answer, _within_time(tx, assignment, answer)
    judgment = build_judgment(answer, rater, item.pair_id, shown_of(assignment), item.task)
    before = read_judgment(row.record)
    vote = count_vote(tx, item, row.occasion, before=before, now=judgment)
    _move_place(tx, assignment, was_skip=before.skip, is_skip=judgment.skip)
    at_ms = _log_judgment(tx, "amended", judgment_id, assignment, judgment, answer, client_id)
    st.AMEND_JUDGMENT.do(tx.connection, judgment=judgment_id, to_record=judgment.model_dump_json(), to_vote=vote)
    more = {"active_ms": _milliseconds(answer.seconds_active), "idle_ms": _milliseconds(answer.seconds_idle)}
    count_work(tx, rater_id, at_ms, judged=0, **more)
    _remember(tx, rater_id, client_id, judgment_id, sent)
    if item.task == "review":
        look_at_lot(tx, item.batch)
    return StoredJudgment(judgment_id, judgment)


def undo(tx: Transaction, rules: Rules, rater_id: str, judgment_id: str) -> Assignment:
    """Undo a judgment: the pair is the rater's again, with the same sides and the old answer as its draft.

    Raises:
        RefusedError: it is not theirs, was already undone, was settled by a lead, belongs to a marked test, or was a skip
            whose place others have taken.
    """
    rater = active_rater(tx.connection, rater_id)
    _refuse_held(rater)
    row = _own_judgment(tx, rater_id, judgment_id, "undo")
    _refuse_settled(tx, row.item_id)
    refuse_marked(tx.connection, rater, judgment_id, rules.qualify)
    judgment = read_judgment(row.record)
    item = st.ITEM.one(tx.connection, item=row.item_id)
    count_vote(tx, item, row.occasion, before=judgment, now=None)
    assignment = st.ASSIGNMENT.one(tx.connection, assignment=row.assignment_id)
    _move_place(tx, assignment, was_skip=judgment.skip, is_skip=False)
    payload = {"assignment": row.assignment_id, "judgment_id": judgment_id}
    tx.event("undone", rater_id=rater_id, item_id=row.item_id, payload=payload)
    st.DROP_JUDGMENT.do(tx.connection, judgment=judgment_id)
    if item.task == "review":
        look_at_lot(tx, item.batch)
    # The time counts all the same; only the number of judgments goes down, in the hour in which it went up.
    count_work(tx, rater_id, row.at_ms, judged=-1)
    renew(tx, rules, row.assignment_id)
    fields = judgment.model_dump(mode="json", include=set(Draft.model_fields))
    _write_draft(tx, row.assignment_id, canonical_json(fields))
    return load_assignment(tx.connection, rules, st.ASSIGNMENT.one(tx.connection, assignment=row.assignment_id))


def save_draft(tx: Transaction, rules: Rules, rater_id: str, item_id: str, draft: Draft) -> None:
    """Store a draft and renew its lease.

    Raises:
        RefusedError: the item is not theirs to judge.
    """
    active_rater(tx.connection, rater_id)
    assignment = _assignment_to_answer(tx, rules, rater_id, item_id)
    body = draft.model_dump_json()
    payload = {"assignment": assignment.id, "sha256": hashlib.sha256(body.encode()).hexdigest()}
    tx.event("draft", rater_id=rater_id, item_id=item_id, payload=payload)
    _write_draft(tx, assignment.id, body)
    renew(tx, rules, assignment.id)


def mark_shown(tx: Transaction, rules: Rules, rater_id: str, item_id: str, client_at_ms: int | None) -> None:
    """The pair is on the rater's screen: their lease starts. Only the first time is recorded.

    Raises:
        RefusedError: the item is not theirs to judge.
    """
    active_rater(tx.connection, rater_id)
    assignment = _assignment_to_answer(tx, rules, rater_id, item_id)
    if assignment.shown_at_ms is None:
        payload = {"assignment": assignment.id, "client_at_ms": client_at_ms}
        now = tx.event("shown", rater_id=rater_id, item_id=item_id, payload=payload)
        st.MARK_SHOWN.do(tx.connection, assignment=assignment.id, now_ms=now, until_ms=now + rules.lease_ms)


def build_judgment(answer: Answer, rater: Any, pair_id: str, shown: tuple[str, ...], task: Task = "pair") -> Judgment:
    """The record of an answer about the completions shown.

    Raises:
        RefusedError: a ranking of two completions, an answer or aspects about more than two, another pair's ids, or
            another task's value.
    """
    if is_single(task):
        return _build_assessment(answer, rater, pair_id, shown[0], task)
    if answer.value is not None:
        raise RefusedError("a value is for single answers: this is a pair, so compare its completions")
    ranks = len(shown) > 2
    if answer.ranking is not None and sorted(name for group in answer.ranking for name in group) != sorted(shown):
        raise RefusedError("ranking must contain every completion of the pair, once")
    if (answer.ranking is not None and not ranks) or (answer.answer is not None and ranks):
        expected = "an order of its completions (ranking)" if ranks else "an answer about its two sides"
        raise RefusedError(f"this pair of {len(shown)} completions needs {expected}")
    if answer.aspects and ranks:
        raise RefusedError(f"aspects compare two sides, but this pair has {len(shown)} completions")
    if set(_named_by(answer)) - set(shown):
        raise RefusedError("flags, criteria and spans of answers must name completions of this pair")
    fields = answer.model_dump(exclude=_NOT_IN_JUDGMENT | {"value"})
    fields |= {"left": shown[0], "right": shown[1], "shown": shown if ranks else ()}
    return Judgment(pair_id=pair_id, rater_id=rater.id, kind=rater.kind, **fields)


def _build_assessment(answer: Answer, rater: Any, pair_id: str, shown: str, task: SingleTask) -> Assessment:
    if answer.value is None and not answer.skip:
        raise RefusedError(f"a single answer needs a value, not a comparison: its task is {task}")
    if answer.aspects:
        raise RefusedError("aspects compare two sides, but this is a single answer")
    if set(_named_by(answer)) - {shown}:
        raise RefusedError("flags, criteria and spans must name this answer")
    if answer.value == "reject" and task == "review" and not answer.rationale.strip():
        raise RefusedError("a rejected answer needs a reason")
    if answer.edited_text is not None and not answer.edited_text.strip():
        raise RefusedError("the edited answer is empty: write it, or reject the answer")
    fields = answer.model_dump(exclude=_NOT_IN_JUDGMENT | {"answer", "both_bad", "ranking", "aspects"})
    about = {"pair_id": pair_id, "rater_id": rater.id, "kind": rater.kind, "left": shown, "task": task}
    try:
        return Assessment(**about, **fields)
    except ValidationError as error:
        raise RefusedError("; ".join(explain(error))) from error


def _named_by(answer: Answer) -> Iterator[str]:
    """Completions that flags, criteria and spans are about."""
    yield from answer.answer_flags
    yield from (span.completion for span in answer.spans)
    for value in answer.criteria.values():
        yield from value if isinstance(value, dict) else ()


def count_vote(
    tx: Transaction, item: Any, occasion: int, *, before: Judgment | None, now: Judgment | None, counted: bool = True
) -> int | None:
    """Move the item's votes from the old judgment to the new one; returns the new vote. Repeats do not count, nor do a
    judge's (`counted` false). A single answer has no votes: only whether its raters disagree is updated."""
    if is_single(item.task):
        if counted and occasion == 0:
            _compare_values(tx, item, before, now)
        return None
    was, votes = (_vote(judgment, item) for judgment in (before, now))
    if counted and occasion == 0 and was != votes:
        more = {"more_for_first": 0, "more_for_second": 0, "more_for_neither": 0}
        for vote, step in ((was, -1), (votes, 1)):
            if vote is not None:
                more["more_for_first" if vote > 0 else "more_for_second" if vote < 0 else "more_for_neither"] += step
        if any(more.values()):
            st.COUNT_VOTE.do(tx.connection, item=item.id, **more)
    return votes


def _compare_values(tx: Transaction, item: Any, before: Judgment | None, now: Judgment | None) -> None:
    """Whether the raters of a single answer disagree, once this judgment is in place of the old one."""
    changed = now or before
    others = {row.rater_id: row.record for row in st.VALUES_OF.all(tx.connection, item=item.id)}
    if changed is not None:
        others.pop(changed.rater_id, None)
    judgments = [read_judgment(record) for record in others.values()]
    judgments = [one for one in judgments if one.judge is None] + ([now] if now is not None else [])
    values = [one.value for one in judgments if isinstance(one, Assessment) and one.value is not None]
    st.SET_DISPUTED.do(tx.connection, item=item.id, to_disputed=disagreement(item.task, values))


def count_work(
    tx: Transaction, rater_id: str, at_ms: int, *, judged: int, active_ms: int = 0, idle_ms: int = 0
) -> None:
    """Add to the rater's counts, in total and for the hour."""
    at_hour = at_ms // HOUR_MS
    amounts = {"more": judged, "more_active": active_ms, "more_idle": idle_ms}
    if not st.COUNT_HOUR.do(tx.connection, rater=rater_id, at_hour=at_hour, **amounts):
        counts = {"judged": judged, "active_ms": active_ms, "idle_ms": idle_ms}
        st.ADD_HOUR.do(tx.connection, rater_id=rater_id, hour=at_hour, **counts)
    if judged:
        st.COUNT_JUDGMENT.do(tx.connection, rater=rater_id, more=judged)


def _vote(judgment: Judgment | None, item: Any) -> int | None:
    if judgment is None or judgment.ranking is not None or isinstance(judgment, Assessment):
        return None
    return vote_of(judgment.answer, skip=judgment.skip, left_is_first=judgment.left == item.first_id)


def _log_judgment(
    tx: Transaction,
    kind: EventKind,
    identity: str,
    assignment: Any,
    judgment: Judgment,
    answer: Answer,
    client_id: str | None = None,
) -> int:
    payload = {
        "judgment_id": identity,
        "assignment": assignment.id,
        "client_id": client_id or getattr(answer, "client_id", ""),
        "client_at_ms": answer.client_at_ms,
        "seconds_idle": answer.seconds_idle,
        "judgment": judgment.model_dump(mode="json"),
    }
    about = {"rater_id": assignment.rater_id, "item_id": assignment.item_id}
    at_ms = tx.event(kind, payload=payload, **about)
    if judgment.flags:
        flagged = {"judgment_id": identity, "flags": judgment.flags}
        tx.event("flagged", payload=flagged, **about)
    return at_ms


def _find_replay(tx: Transaction, rater_id: str, client_id: str, answer: Answer) -> StoredJudgment | None:
    row = st.SUBMISSION.one(tx.connection, rater=rater_id, client=client_id)
    if row is None:
        return None
    if row.body_hash != _body_hash(answer):
        raise RefusedError(f"client_id {client_id} was used for another judgment: make a new one for each")
    judgment = st.JUDGMENT.one(tx.connection, judgment=row.judgment_id, rater=rater_id)
    if judgment is None:
        raise RefusedError("that judgment has been undone: answer the pair again")
    return StoredJudgment(row.judgment_id, read_judgment(judgment.record), replayed=True)


def _remember(tx: Transaction, rater_id: str, client_id: str, judgment_id: str, answer: Answer) -> None:
    submission = {"rater_id": rater_id, "client_id": client_id, "judgment_id": judgment_id}
    st.ADD_SUBMISSION.do(tx.connection, **submission, body_hash=_body_hash(answer))


def _body_hash(answer: Answer) -> str:
    return hashlib.sha256(answer.model_dump_json().encode()).hexdigest()


def _own_judgment(tx: Transaction, rater_id: str, judgment_id: str, verb: str) -> Any:
    row = st.JUDGMENT.one(tx.connection, judgment=judgment_id, rater=rater_id)
    if row is None:
        raise RefusedError(f"you have no such judgment to {verb}")
    return row


def _within_time(tx: Transaction, assignment: Any, answer: A) -> A:
    """The answer, with no more active seconds than have passed since the pair was given out, less those of the rater's
    answers since then: an hour is paid once, whatever was open or changed in it. Idle seconds are limited to what is left.
    If the pair was given out more than a day ago, the last day counts."""
    given_ms = st.EVENT_TIME.one(tx.connection, seq=assignment.seq).at_ms
    passed = tx.seconds_since(given_ms)
    active, idle = answer.seconds_active or 0.0, answer.seconds_idle or 0.0
    if passed is None or active + idle == 0:
        return answer
    passed = min(max(0.0, passed), DAY_SECONDS)  # below 0: the server's clock was set back
    counted_active, counted = _seconds_counted(tx, assignment.rater_id, tx.now() - round(passed * 1000))
    most_active, most = passed - counted_active, passed - counted
    if active <= most_active + CLOCK_SLACK_SECONDS and active + idle <= most + CLOCK_SLACK_SECONDS:
        return answer
    active = min(active, max(0.0, most_active))
    idle = min(idle, max(0.0, most - active))
    return answer.model_copy(update={"seconds_active": round(active, 1), "seconds_idle": round(idle, 1)})


def _seconds_counted(tx: Transaction, rater_id: str, since_ms: int) -> tuple[float, float]:
    """The active seconds, and all seconds, of a rater's answers since a time, those that were taken back too. An answer
    counts with no more than have passed from then until it: work on it may have begun before.

    The log is read only for hours so near to that time that work on one of their answers may have begun before it; for
    the others, the hour's sum is the same. Otherwise a correction in the evening would read a day of answers.
    """
    if tx.now() - since_ms < HOUR_MS:
        return _seconds_logged(tx, rater_id, since_ms, since_ms, LAST_MS)
    active = both = 0.0
    for row in st.HOURS_SINCE.all(tx.connection, rater=rater_id, at_hour=since_ms // HOUR_MS):
        begins_ms, both_ms = row.hour * HOUR_MS, row.active_ms + row.idle_ms
        if both_ms <= begins_ms - since_ms:
            hour = row.active_ms / 1000, both_ms / 1000
        else:
            hour = _seconds_logged(tx, rater_id, since_ms, max(since_ms, begins_ms - 1), begins_ms + HOUR_MS)
        active, both = active + hour[0], both + hour[1]
    return active, both


def _seconds_logged(tx: Transaction, rater_id: str, since_ms: int, after_ms: int, until_ms: int) -> tuple[float, float]:
    """`_seconds_counted` of the answers after a time and before another, each read from the log."""
    active = both = 0.0
    for row in st.ANSWERS_BETWEEN.all(tx.connection, rater=rater_id, after_ms=after_ms, until_ms=until_ms):
        payload = from_json(row.payload)
        seconds, passed = payload["judgment"].get("seconds_active") or 0.0, (row.at_ms - since_ms) / 1000
        active += min(seconds, passed)
        both += min(seconds + (payload.get("seconds_idle") or 0.0), passed)
    return active, both


def _refuse_held(rater: Any) -> None:
    if rater.standing in HELD:
        raise RefusedError(HELD_MESSAGE)


def _refuse_settled(tx: Transaction, item_id: str) -> None:
    if is_withdrawn(tx, item_id):
        raise RefusedError("a lead has since withdrawn this pair: your answer stays as it is")
    if st.SETTLED.one(tx.connection, item=item_id) is not None:
        raise RefusedError("a lead has since settled this pair: your answer stays as it is")


def _move_place(tx: Transaction, assignment: Any, *, was_skip: bool, is_skip: bool) -> None:
    """A skip frees the rater's place of the item's overlap; taking the skip back needs a place again.

    Repeats have no place.

    Raises:
        RefusedError: others have taken it.
    """
    if assignment.occasion or was_skip == is_skip:
        return
    if is_skip:
        st.SKIP_ITEM.do(tx.connection, item=assignment.item_id)
    elif not st.UNSKIP_ITEM.do(tx.connection, item=assignment.item_id):
        raise RefusedError("other raters have taken this pair since you skipped it: your skip stays")


def _assignment_to_answer(tx: Transaction, rules: Rules, rater_id: str, item_id: str) -> Any:
    rows = st.ASSIGNMENTS_OF.all(tx.connection, item=item_id, rater=rater_id)
    if not rows:
        raise RefusedError(f"pair {item_id} is not assigned to you: reload the page for your next one")
    row = next((row for row in rows if row.state != "done"), rows[0])
    if row.state == "done":
        raise RefusedError(f"you have already judged pair {item_id}: undo that judgment to change it")
    # An expired lease costs nothing while the place is free: late work is accepted if it can be.
    if row.state == "lapsed" and not resume(tx, rules, row):
        if is_withdrawn(tx, item_id):
            raise RefusedError(f"a lead has withdrawn pair {item_id}: continue with the next one")
        raise RefusedError(
            f"your time for pair {item_id} has expired and other raters have judged it: continue with the next one"
        )
    return row


def _write_draft(tx: Transaction, assignment: str, body: str) -> None:
    st.DROP_DRAFT.do(tx.connection, assignment=assignment)
    st.ADD_DRAFT.do(tx.connection, assignment_id=assignment, body=body, at_ms=tx.now())


def _milliseconds(seconds: float | None) -> int:
    return round(1000 * (seconds or 0.0))

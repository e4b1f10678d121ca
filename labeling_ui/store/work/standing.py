"""Who may judge: raters pass a test before they begin, and stop when their work goes wrong.

The test is a batch of gold pairs. Afterwards, Wald's sequential probability ratio test (1945) watches each rater's gold
accuracy, self-consistency and pace: the shares of right answers, of repeats answered alike, and of judgments that are not
hasty. A stopped rater keeps their judgments and sees a message; a lead lets them continue, tests them again, or rejects
work.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import Field, model_validator
from sqlalchemy.engine import Connection

from labeling_ui.database import statements as st
from labeling_ui.database.errors import RefusedError
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import ASSIGNMENTS, GOLD, ITEMS, JUDGMENTS, RATERS
from labeling_ui.store.pairs.known import KNOWN, MAY_VOTE, outcome_of
from tiebreak.config import Section
from tiebreak.measures.statistics import wilson_interval
from tiebreak.messages import content_id

Standing = Literal["", "qualified", "failed", "stopped"]
"""'': not tested; failed: the test; stopped: by a sequential test, or by a lead."""
HELD: tuple[Standing, ...] = ("failed", "stopped")
"""Standings in which a rater is given nothing."""
HELD_MESSAGE = "your lead wants to look at your work with you first: nothing is lost, and you will hear from them"
WATCHED = 200
"""The latest judgments by which pace is measured."""


class QualifyConfig(Section):
    """The test that raters must pass before they begin."""

    batch: str = Field(min_length=1, max_length=100)
    """a batch of gold pairs; each rater gets them in a different order"""
    questions: int = Field(default=10, ge=1, le=200)
    """number of gold pairs per attempt"""
    pass_mark: float = Field(default=0.6, gt=0, lt=1)
    """share of right answers to reach; a skip counts as wrong"""
    by: Literal["interval", "accuracy"] = "interval"
    """interval: the lower bound of the share's 95% interval (Wilson) must reach pass_mark; accuracy: the share
    itself"""
    attempts: int = Field(default=2, ge=1, le=10)
    """number of attempts, each with pairs that the rater has not seen"""

    @model_validator(mode="after")
    def _can_be_passed(self) -> QualifyConfig:
        if not self.passes(self.questions):
            low, _ = wilson_interval(self.questions, self.questions)
            raise ValueError(
                f"pass_mark: {self.pass_mark:g} cannot be reached with {self.questions} questions: all right, the interval "
                f"begins at {low:.2f}. Ask more, or set by: accuracy"
            )
        return self

    def passes(self, right: int) -> bool:
        """Whether so many right answers are enough."""
        low, _ = wilson_interval(right, self.questions)
        return (low if self.by == "interval" else right / self.questions) >= self.pass_mark


class Bounds(Section):
    """The two shares that a sequential test distinguishes."""

    good: float = Field(gt=0, lt=1)
    """share at which a rater should continue"""
    bad: float = Field(gt=0, lt=1)
    """share at which a rater should be stopped"""

    @model_validator(mode="after")
    def _in_order(self) -> Bounds:
        if self.bad >= self.good:
            raise ValueError(f"bad: {self.bad:g} must be below good, {self.good:g}")
        return self


class StopConfig(Section):
    """When to stop a rater."""

    gold: Bounds | None = Bounds(good=0.85, bad=0.6)
    """share of right answers to gold pairs; null: not tested"""
    consistency: Bounds | None = Bounds(good=0.8, bad=0.5)
    """share of repeats answered as before; null: not tested"""
    pace: Bounds | None = Bounds(good=0.9, bad=0.6)
    """share of judgments that took `least_seconds` or longer; null: not tested"""
    least_seconds: float = Field(default=3.0, gt=0)
    """judgments with fewer active seconds are hasty"""
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    """approximate upper bound of the probability that a test stops a good rater; after each passed test, a new one
    begins"""
    beta: float = Field(default=0.05, gt=0, lt=0.5)
    """approximate upper bound of the probability that a bad rater passes a test"""


@dataclass(frozen=True)
class Attempt:
    """A rater's present attempt at the test."""

    number: int
    done: int
    questions: int
    attempts: int


def sequential_test(outcomes: Iterable[bool], bounds: Bounds, *, alpha: float, beta: float) -> tuple[int, int] | None:
    """(successes, n) of the test that found a rater bad; None: none did. A new test begins after each that ends well."""
    remaining = iter(outcomes)
    while (ended := one_test(remaining, bounds, alpha=alpha, beta=beta)) is not None:
        is_bad, successes, n = ended
        if is_bad:
            return successes, n
    return None


def one_test(outcomes: Iterator[bool], bounds: Bounds, *, alpha: float, beta: float) -> tuple[bool, int, int] | None:
    """Wald's test of p = good against p = bad: (whether bad was decided for, successes, n); None: it has not ended.

    It stops a good rater with a probability of at most α/(1 − β), and lets a bad one pass with at most β/(1 − α).
    """
    upper, lower = math.log((1 - beta) / alpha), math.log(beta / (1 - alpha))
    right, wrong = math.log(bounds.bad / bounds.good), math.log((1 - bounds.bad) / (1 - bounds.good))
    evidence, successes, n = 0.0, 0, 0
    for outcome in outcomes:
        evidence += right if outcome else wrong
        successes, n = successes + outcome, n + 1
        if not lower < evidence < upper:
            return evidence >= upper, successes, n
    return None


# --- the test ---


def next_question(tx: Transaction, rater: Any, config: QualifyConfig, seed: int) -> str | None:
    """The next gold pair of the rater's attempt; None: its pairs are all given out, or there are none left."""
    had = {row.item_id: row.seq for row in _assigned(tx.connection, rater.id, config.batch)}
    given = sum(seq > rater.standing_seq for seq in had.values())
    attempt = _attempt(tx.connection, rater, config)
    if given >= attempt.number * config.questions:
        return None
    items = sa.select(GOLD.c.item_id).join(ITEMS, ITEMS.c.id == GOLD.c.item_id)
    given_out = sa.and_(ITEMS.c.batch == config.batch, ITEMS.c.withdrawn == 0, ~st.PAUSED.exists())
    rows = tx.connection.scalars(items.where(given_out)).all()
    left = [name for name in rows if name not in had]
    return min(left, key=lambda name: content_id("question", seed, rater.id, name), default=None)


def present_attempt(connection: Connection, rater: Any, config: QualifyConfig) -> Attempt:
    """How far a rater who has not passed is."""
    return _attempt(connection, rater, config)


def _attempt(connection: Connection, rater: Any, config: QualifyConfig) -> Attempt:
    done = len(_answers(connection, rater, config.batch))
    number = min(done // config.questions + 1, config.attempts)
    return Attempt(number, done - (number - 1) * config.questions, config.questions, config.attempts)


def _assigned(connection: Connection, rater_id: str, batch: str) -> Sequence[Any]:
    query = sa.select(ASSIGNMENTS.c.item_id, ASSIGNMENTS.c.seq).join(ITEMS, ITEMS.c.id == ASSIGNMENTS.c.item_id)
    which = sa.and_(ASSIGNMENTS.c.rater_id == rater_id, ASSIGNMENTS.c.occasion == 0, ITEMS.c.batch == batch)
    return connection.execute(query.where(which)).all()


def refuse_marked(connection: Connection, rater: Any, judgment_id: str, config: QualifyConfig | None) -> None:
    """Refuse to change an answer of an attempt that has been marked, while the rater has not passed: changing one answer
    after another until the test is passed would be easier than the test.

    Raises:
        RefusedError: the judgment is one of those answers.
    """
    if config is None or rater.standing != "" or not is_tested(rater):
        return
    which = sa.and_(JUDGMENTS.c.rater_id == rater.id, JUDGMENTS.c.occasion == 0, JUDGMENTS.c.seq > rater.standing_seq)
    query = sa.select(JUDGMENTS.c.id).join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)
    query = query.join(GOLD, GOLD.c.item_id == JUDGMENTS.c.item_id).where(which, ITEMS.c.batch == config.batch)
    answers = connection.scalars(query.order_by(JUDGMENTS.c.seq)).all()
    if judgment_id in answers[: len(answers) // config.questions * config.questions]:
        raise RefusedError("this answer belongs to a test that has been marked: it stays as it is")


def _answers(connection: Connection, rater: Any, batch: str | None) -> list[bool]:
    """Whether each of the rater's answers to gold pairs is right, in order, since their standing changed."""
    query = (
        sa.select(*KNOWN)
        .select_from(JUDGMENTS)
        .join(GOLD, GOLD.c.item_id == JUDGMENTS.c.item_id)
        .join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)
        .where(JUDGMENTS.c.rater_id == rater.id, JUDGMENTS.c.occasion == 0, JUDGMENTS.c.seq > rater.standing_seq)
        .order_by(JUDGMENTS.c.seq)
    )
    if batch is None:
        outcomes = [outcome_of(row) for row in connection.execute(query.where(MAY_VOTE))]
        return [outcome for outcome in outcomes if outcome is not None]
    return [bool(outcome_of(row)) for row in connection.execute(query.where(ITEMS.c.batch == batch))]


def _sign(vote: int) -> int:
    return (vote > 0) - (vote < 0)


# --- after a judgment ---


def look_at_rater(
    tx: Transaction, rater: Any, assignment: Any, qualify: QualifyConfig | None, stop: StopConfig | None
) -> None:
    """After a rater's judgment: end their test, or stop them."""
    if not is_tested(rater):
        return
    if qualify is not None and rater.standing == "":
        _look_at_test(tx, rater, qualify)
    elif stop is not None:
        _watch(tx, rater, assignment, stop)


def is_tested(rater: Any) -> bool:
    """Whether a rater takes the test and is watched: people who only judge."""
    return bool(rater.role == "rater" and rater.kind == "human")


def _look_at_test(tx: Transaction, rater: Any, config: QualifyConfig) -> None:
    answers = _answers(tx.connection, rater, config.batch)
    if not answers or len(answers) % config.questions:
        return
    number, right = len(answers) // config.questions, sum(answers[-config.questions :])
    figures = {"test": "qualify", "right": right, "n": config.questions, "attempt": number}
    if config.passes(right):
        set_standing(tx, rater.id, "qualified", figures)
    elif number >= config.attempts:
        set_standing(tx, rater.id, "failed", figures)


def _watch(tx: Transaction, rater: Any, assignment: Any, config: StopConfig) -> None:
    tests: list[tuple[str, Bounds, list[bool]]] = []
    if config.gold is not None and assignment.occasion == 0 and _is_gold(tx.connection, assignment.item_id):
        tests.append(("gold", config.gold, _answers(tx.connection, rater, None)))
    if config.consistency is not None and assignment.occasion > 0:
        tests.append(("consistency", config.consistency, _alike(tx.connection, rater)))
    if config.pace is not None:
        tests.append(("pace", config.pace, _unhurried(tx.connection, rater, config.least_seconds)))
    for name, bounds, outcomes in tests:
        if (found := sequential_test(outcomes, bounds, alpha=config.alpha, beta=config.beta)) is not None:
            set_standing(tx, rater.id, "stopped", {"test": name, "right": found[0], "n": found[1]})
            return


def _is_gold(connection: Connection, item_id: str) -> bool:
    return connection.scalar(sa.select(GOLD.c.item_id).where(GOLD.c.item_id == item_id)) is not None


def _alike(connection: Connection, rater: Any) -> list[bool]:
    """Whether each repeat of the rater's has the answer of the first time, in order."""
    first = JUDGMENTS.alias("first")
    same_item = sa.and_(first.c.item_id == JUDGMENTS.c.item_id, first.c.rater_id == rater.id, first.c.occasion == 0)
    query = (
        sa.select(JUDGMENTS.c.vote, first.c.vote.label("before"))
        .join(first, same_item)
        .where(JUDGMENTS.c.rater_id == rater.id, JUDGMENTS.c.occasion > 0, JUDGMENTS.c.seq > rater.standing_seq)
        .where(JUDGMENTS.c.vote.is_not(None), first.c.vote.is_not(None))
    )
    return [_sign(row.vote) == _sign(row.before) for row in connection.execute(query.order_by(JUDGMENTS.c.seq))]


def _unhurried(connection: Connection, rater: Any, least_seconds: float) -> list[bool]:
    """Whether each of the rater's latest judgments took long enough, in order."""
    query = sa.select(JUDGMENTS.c.active_ms).where(
        JUDGMENTS.c.rater_id == rater.id, JUDGMENTS.c.seq > rater.standing_seq
    )
    latest = connection.scalars(query.order_by(JUDGMENTS.c.seq.desc()).limit(WATCHED)).all()
    return [active_ms >= 1000 * least_seconds for active_ms in reversed(latest)]


def set_standing(
    tx: Transaction, rater_id: str, standing: Standing, figures: dict[str, Any], by: str | None = None
) -> None:
    """Change a rater's standing. What a held rater has open is free for others."""
    payload = {"standing": standing, **figures, **({"by": by} if by else {})}
    tx.event("standing_changed", rater_id=rater_id, payload=payload)
    note = "" if standing == "" else _as_text(payload)
    values = {"standing": standing, "standing_seq": tx.seq, "standing_note": note}
    tx.connection.execute(sa.update(RATERS).where(RATERS.c.id == rater_id).values(**values))
    if standing in HELD:
        lapse_open(tx, rater_id)


def lapse_open(tx: Transaction, rater_id: str) -> None:
    """Free what a rater has open for others."""
    for row in st.WAITING.all(tx.connection, rater=rater_id):
        if row.state == "open":
            tx.event("lapsed", rater_id=rater_id, item_id=row.item_id, payload={"assignment": row.id})
            st.SET_STATE.do(tx.connection, assignment=row.id, to_state="lapsed")
            if not row.occasion:
                st.FREE_PLACE.do(tx.connection, item=row.item_id)


def _as_text(payload: dict[str, Any]) -> str:
    """The figures, as `gold 11/20` and the lead's reason."""
    reason = payload.get("reason", "")
    return f"{payload['test']} {payload['right']}/{payload['n']}" if "test" in payload else str(reason)

"""Inspection of a lot by a sample: raters review part of a batch; the rest is accepted unseen, or reviewed as well.

Single sampling by attributes. Of a lot, n answers are drawn at random and reviewed. If at most c of them are defective, the
lot is accepted; else all of it is reviewed. n and c are the smallest for which a lot with the share `acceptable` of defects
fails with a probability of at most α, and one with the share `rejectable` passes with at most β (binomial; Montgomery 2012,
"Statistical Quality Control", 15.2). An answer is defective if its raters, who are people, do not accept it unchanged.

A lot that has passed is looked at again whenever a judgment of its sample changes or goes; one that has failed stays so.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa
from pydantic import Field, model_validator
from sqlalchemy.engine import Connection

from labeling_ui.database.errors import StoreError
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import ADJUDICATIONS, ITEMS, JUDGMENTS, SETTINGS
from labeling_ui.store.pairs.campaign import (
    Batch,
    BatchChange,
    Source,
    begin_campaign,
    change_batch,
    find_batch,
    insert_pairs,
    new_pairs,
    record_source,
    write_batch,
)
from tiebreak.assessments import FLAGGED, NOT_FLAGGED, SingleAnswer, decide_review, read_judgment
from tiebreak.config import Section
from tiebreak.messages import content_id

INSPECTION = "inspection:"
"""Prefix of a batch's name in the setting that holds the inspection of its lot."""
REST = " (not inspected)"
"""Suffix of a batch's name in that of the paused batch with the rest of its lot."""


class InspectConfig(Section):
    """How a sample decides on a lot."""

    share: float = Field(default=0.1, gt=0, le=1)
    """smallest share of the lot to review; more are reviewed if alpha and beta require it"""
    acceptable: float = Field(default=0.02, gt=0, lt=1)
    """share of defective answers at which a lot should pass"""
    rejectable: float = Field(default=0.1, gt=0, lt=1)
    """share of defective answers at which a lot should fail"""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """largest probability that a lot with the acceptable share fails"""
    beta: float = Field(default=0.1, gt=0, lt=0.5)
    """largest probability that a lot with the rejectable share passes"""

    @model_validator(mode="after")
    def _in_order(self) -> InspectConfig:
        if self.acceptable >= self.rejectable:
            raise ValueError(f"acceptable: {self.acceptable:g} must be below rejectable, {self.rejectable:g}")
        return self


@dataclass(frozen=True)
class Inspection:
    """The inspection of a lot, and its outcome."""

    batch: str
    lot: int
    """answers in the lot"""
    sample: int
    """answers of it that are reviewed"""
    most_defects: int
    """with more defective ones in the sample, all are reviewed"""
    passed: bool | None = None
    """None: not decided yet"""
    defects: int = 0
    flagged: bool = False
    """the sample is what a step of *prepare* flagged: the rest needs no review, whatever becomes of it"""

    @property
    def rest(self) -> str:
        """The batch that holds the rest of the lot."""
        return self.batch + (NOT_FLAGGED if self.flagged else REST)


def plan_sample(config: InspectConfig, lot: int) -> tuple[int, int]:
    """(n, c): how many of a lot to review, and how many of those may be defective. n = lot: the sample would be all of it.

    >>> plan_sample(InspectConfig(acceptable=0.02, rejectable=0.1), 5000)[0] >= 500
    True
    """
    size = math.ceil(config.share * lot)
    while size < lot:
        # The largest c that keeps β; α then holds or does not.
        most = -1
        while chance_of_at_most(most + 1, size, config.rejectable) <= config.beta:
            most += 1
        if most >= 0 and chance_of_at_most(most, size, config.acceptable) >= 1 - config.alpha:
            return size, most
        size += 1
    return lot, 0


def chance_of_at_most(most: int, n: int, share: float) -> float:
    """P(X ≤ most) of a binomial X of n trials."""
    logs = (
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(share)
        + (n - k) * math.log1p(-share)
        for k in range(most + 1)
    )
    return math.fsum(map(math.exp, logs))


def add_lot(
    tx: Transaction,
    answers: Sequence[SingleAnswer],
    batch: Batch,
    config: InspectConfig | None,
    *,
    seed: int,
    source: Source,
    url: str,
) -> int:
    """Add a lot of answers to review; returns how many are new.

    Args:
        config: the plan of a random sample; None: the answers that a step of *prepare* flagged are given out.

    Raises:
        StoreError: the batch exists and lacks some of the answers, or some of them are not to be reviewed.
    """
    begin_campaign(tx, overlap=batch.overlap, seed=seed, url=url)
    new = new_pairs(tx, answers, source, url)
    if not new:
        return 0
    if find_batch(tx.connection, batch.name) is not None:
        raise StoreError(
            f"batch {batch.name!r} of {url} exists, and {source.name} has {len(new)} answers that are not in it: "
            "a lot needs a new batch: give another name"
        )
    if any(not isinstance(one, SingleAnswer) or one.task != "review" for one in new):
        raise StoreError(f"only answers to review can be inspected, but {source.name} has others")
    inspection, drawn = _planned(new, batch.name, config, content_id("inspection", seed, batch.name, source.id))
    record_source(tx, source)
    for part, chosen in ((batch, True), (replace(batch, name=inspection.rest, paused=True), False)):
        if those := [one for one in new if (one.id in drawn) is chosen]:
            write_batch(tx, part, exists=False)
            insert_pairs(tx, those, part, source=source)
    tx.event("inspection_planned", payload=asdict(inspection))
    _write(tx, inspection)
    return len(new)


def _planned(new: Sequence[Any], batch: str, config: InspectConfig | None, seed: str) -> tuple[Inspection, set[str]]:
    """(the inspection, the ids of the answers to review)."""
    if config is None:
        drawn = {one.id for one in new if FLAGGED in one.origin}
        return Inspection(batch, len(new), len(drawn), len(drawn), flagged=True), drawn
    sample, most = plan_sample(config, len(new))
    passed = None if sample < len(new) else False
    return Inspection(batch, len(new), sample, most, passed), {
        one.id for one in random.Random(seed).sample(new, sample)
    }


def inspections(connection: Connection) -> dict[str, Inspection]:
    """All inspections, by batch."""
    rows = connection.scalars(sa.select(SETTINGS.c.value).where(SETTINGS.c.name.startswith(INSPECTION)))
    found = [Inspection(**json.loads(value)) for value in rows]
    return {one.batch: one for one in found}


def look_at_lot(tx: Transaction, batch: str) -> None:
    """After a judgment: decide the inspection of a lot, if the batch is its sample."""
    value = tx.connection.scalar(sa.select(SETTINGS.c.value).where(SETTINGS.c.name == INSPECTION + batch))
    if value is not None:
        _look_at(tx, Inspection(**json.loads(value)))


def look_at_lots(tx: Transaction) -> None:
    """After judgments or answers have gone or come back: decide all inspections anew."""
    for inspection in inspections(tx.connection).values():
        _look_at(tx, inspection)


def _look_at(tx: Transaction, inspection: Inspection) -> None:
    if inspection.passed is False:
        return  # the rest of the lot is under review
    passed, defects = outcome(tx.connection, inspection)
    if passed is inspection.passed:
        return
    done = replace(inspection, passed=passed, defects=0 if passed is None else defects)
    tx.event("inspection_decided", payload=asdict(done))
    _write(tx, done)
    if passed is False:
        change_batch(tx, done.rest, BatchChange(paused=False))


def outcome(connection: Connection, inspection: Inspection, without: Collection[str] = ()) -> tuple[bool | None, int]:
    """(whether the sample's judgments pass the lot, None as long as they do not decide; its defective answers).

    Args:
        without: raters whose judgments do not count.
    """
    decided, defects = _count(connection, inspection.batch, without)
    if defects > inspection.most_defects:
        return False, defects
    return (True if decided >= _size(connection, inspection) else None), defects


def progress_of(connection: Connection, inspection: Inspection) -> dict[str, Any]:
    """An inspection with its progress."""
    decided, defects = _count(connection, inspection.batch)
    return {**asdict(inspection), "inspected": decided, "defects": defects}


def _size(connection: Connection, inspection: Inspection) -> int:
    """The sample, without those withdrawn."""
    query = sa.select(sa.func.count()).where(ITEMS.c.batch == inspection.batch, ITEMS.c.withdrawn == 0)
    return int(connection.scalar(query.select_from(ITEMS)) or 0)


def _count(connection: Connection, batch: str, without: Collection[str] = ()) -> tuple[int, int]:
    """(answers that a lead has settled or whose raters have all judged, those of them that are defective). Judgments of
    programs do not count."""
    query = sa.select(JUDGMENTS.c.item_id, JUDGMENTS.c.record, ITEMS.c.overlap).join(
        ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id
    )
    which = sa.and_(ITEMS.c.batch == batch, JUDGMENTS.c.occasion == 0, ITEMS.c.withdrawn == 0)
    by_people = sa.and_(JUDGMENTS.c.kind == "human", JUDGMENTS.c.rater_id.not_in(without))
    votes: dict[str, list[str]] = {}
    wanted: dict[str, int] = {}
    for row in connection.execute(query.where(which, by_people).order_by(JUDGMENTS.c.seq)):
        judgment = read_judgment(row.record)
        if not judgment.skip:
            votes.setdefault(row.item_id, []).append(str(getattr(judgment, "value", "")))
            wanted[row.item_id] = row.overlap
    settled = sa.select(ADJUDICATIONS.c.item_id, ADJUDICATIONS.c.record).join(
        ITEMS, ITEMS.c.id == ADJUDICATIONS.c.item_id
    )
    for one in connection.execute(settled.where(ITEMS.c.batch == batch, ITEMS.c.withdrawn == 0)):
        if (settlement := read_judgment(one.record)).kind == "human":
            votes[one.item_id] = [str(getattr(settlement, "value", ""))]
            wanted[one.item_id] = 1
    decided = [verdicts for item, verdicts in votes.items() if len(verdicts) >= wanted[item]]
    return len(decided), sum(decide_review(verdicts) != "accept" for verdicts in decided)


def _write(tx: Transaction, inspection: Inspection) -> None:
    name = INSPECTION + inspection.batch
    tx.connection.execute(sa.delete(SETTINGS).where(SETTINGS.c.name == name))
    tx.connection.execute(sa.insert(SETTINGS).values(name=name, value=json.dumps(asdict(inspection))))

"""Import of pairs and judgments made elsewhere.

    tiebreak label import --pairs FILE [--judgments FILE] --store URL
    tiebreak label import --answers FILE [--judgments FILE] --store URL
    tiebreak label import --format argilla|label_studio|potato --judgments EXPORT --store URL

Our own files are JSON Lines of records (Pair, SingleAnswer, Judgment, Assessment); `labeling_ui.exchange.foreign` reads
other tools' exports.
Judgments keep their rater ids and their kind; importing the same file again changes nothing. A rater's second judgment
of a pair is stored as a repeat, and a ranking as the comparisons that it implies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from labeling_ui.database import statements as st
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import ADJUDICATIONS, ASSIGNMENTS, IMPORTED_AT_MS, JUDGMENTS, RATERS
from labeling_ui.store.contents import IMPORTED
from labeling_ui.store.leads.adjudication import settle
from labeling_ui.store.pairs.campaign import Batch
from labeling_ui.store.pairs.inspection import look_at_lots
from labeling_ui.store.pairs.items import Item, assignment_id, items_of
from labeling_ui.store.store import Store
from labeling_ui.store.work.judging import count_vote, count_work
from tiebreak.assessments import Assessment, SingleAnswer, read_judgment
from tiebreak.errors import DataError, counted
from tiebreak.hashing import canonical_json
from tiebreak.messages import content_id
from tiebreak.records import Judgment, Pair


@dataclass(frozen=True)
class ImportCounts:
    """Numbers of new records."""

    pairs: int
    judgments: int
    settled: int = 0


def import_records(
    store: Store,
    pairs: Sequence[Pair],
    judgments: Sequence[Judgment],
    *,
    source: str,
    source_id: str,
    places: Sequence[str] = (),
    settled: Sequence[Judgment] = (),
    settled_places: Sequence[str] = (),
) -> ImportCounts:
    """Add pairs, judgments and settled answers to a store; judgments and settled answers all or none.

    Args:
        places: where each judgment is (`file:line`), for error messages; by default its number.
        settled: leads' answers, which override the votes and count as nobody's.

    Raises:
        DataError: judgments of unknown pairs or completions, or pairs that the store has settled differently; all are
            listed.
        StoreError: simulated judgments and people's would share the store.
    """
    campaign = store.campaign()
    there = [*store.pairs(withdrawn=True), *store.single_answers(withdrawn=True)]
    by_id = {pair.id: pair for pair in [*there, *pairs]}
    places = places or [f"judgment {n}" for n in range(1, len(judgments) + 1)]
    placed = [(one, where) for ranked, where in zip(judgments, places, strict=True) for one in ranked.pairwise()]
    judgments, places = [one for one, _ in placed], [where for _, where in placed]
    settled_places = settled_places or [f"settled answer {n}" for n in range(1, len(settled) + 1)]
    items = _match_items(by_id, judgments, places)
    settled_items = _match_items(by_id, settled, settled_places)
    _refuse_names(store, [*judgments, *settled])
    default = next(
        (batch for batch in store.batches() if not batch.name), Batch("", overlap=campaign.get("overlap", 1))
    )
    new_pairs = 0
    if pairs:
        new_pairs = store.add_pairs(
            pairs,
            overlap=default.overlap,
            priority=default.priority,
            pool=default.pool,
            seed=campaign.get("seed", 0),
            source=source,
            source_id=source_id,
        )
    for rater_id, kind in sorted({(judgment.rater_id, judgment.kind) for judgment in judgments}):
        if not any(rater.id == rater_id for rater in store.raters()):
            store.add_rater(rater_id, kind=kind, rater_id=rater_id)
    for rater_id, kind in sorted({(judgment.rater_id, judgment.kind) for judgment in settled}):
        if not any(rater.id == rater_id for rater in store.raters()):
            store.add_rater(rater_id, kind=kind, role="lead", rater_id=rater_id)
    with store.writing() as tx:
        new = _insert(tx, judgments, items)
        new_settled = _settle(tx, settled, settled_items, settled_places)
        look_at_lots(tx)
    return ImportCounts(new_pairs, new, new_settled)


def _refuse_names(store: Store, judgments: Sequence[Judgment]) -> None:
    """Refuse judgments by the name of a rater who has another id: they would be a second person of that name.

    Raises:
        DataError: there are some.
    """
    raters = store.raters()
    ids, names = {one.id for one in raters}, {one.name: one.id for one in raters}
    if taken := sorted({one.rater_id for one in judgments if one.rater_id not in ids and one.rater_id in names}):
        raise DataError(
            f"rater_id: {taken[0]!r} is the name of a rater of {store.url}, whose id is {names[taken[0]]}: write the id, "
            "or another one if it is somebody else"
        )


def _settle(tx: Transaction, settled: Sequence[Judgment], items: Sequence[Item], places: Sequence[str]) -> int:
    """Settle the items whose answers are not there yet; returns how many."""
    rows = tx.connection.execute(sa.select(ADJUDICATIONS.c.item_id, ADJUDICATIONS.c.record))
    there = {row.item_id: read_judgment(row.record) for row in rows}
    faults, new = [], 0
    for judgment, item, where in zip(settled, items, places, strict=True):
        if item.id not in there:
            settle(tx, item.id, judgment, imported=True)
            there[item.id] = judgment
            new += 1
        elif there[item.id] != judgment:
            faults.append(f"{where}: {item.id} is already settled differently, by {there[item.id].rater_id}")
    if faults:
        raise DataError(f"cannot import {counted(len(faults), 'settled answer')}", faults)
    return new


def _match_items(pairs: dict[str, Pair], judgments: Sequence[Judgment], places: Sequence[str]) -> list[Item]:
    """The item of each judgment."""
    by_sides = {
        (pair.id, frozenset((item.first_id, item.second_id))): item
        for pair in pairs.values()
        for item in items_of(pair)
    }
    items, faults = [], []
    for where, judgment in zip(places, judgments, strict=True):
        item = by_sides.get((judgment.pair_id, frozenset((judgment.left, judgment.right or None))))
        if judgment.pair_id not in pairs:
            faults.append(f"{where}: there is no pair {judgment.pair_id}")
        elif fault := _misfit(judgment, pairs[judgment.pair_id]):
            faults.append(f"{where}: {fault}")
        elif item is None:
            faults.append(f"{where}: {judgment.left} and {judgment.right} are not completions of {judgment.pair_id}")
        else:
            items.append(item)
    kinds: dict[str, str] = {}
    for where, judgment in zip(places, judgments, strict=True):
        if kinds.setdefault(judgment.rater_id, judgment.kind) != judgment.kind:
            faults.append(
                f"{where}: rater {judgment.rater_id} is {judgment.kind} here but {kinds[judgment.rater_id]} before"
            )
    if faults:
        raise DataError(f"cannot import {counted(len(faults), 'judgment')}", faults)
    return items


def _misfit(judgment: Judgment, pair: Pair) -> str | None:
    """Why a judgment is not about such a pair or single answer."""
    asked = pair.task if isinstance(pair, SingleAnswer) else "comparison"
    given = judgment.task if isinstance(judgment, Assessment) else "comparison"
    if given != asked:
        return f"{pair.id} has the task {asked}, and this is of the task {given}"
    if isinstance(judgment, Assessment) and judgment.left != pair.completions[0].id:
        return f"{judgment.left} is not the completion of {pair.id}"
    return None


def _insert(tx: Transaction, judgments: Sequence[Judgment], items: Sequence[Item]) -> int:
    raters = {row.id: row.kind for row in tx.connection.execute(sa.select(RATERS))}
    there = set(tx.connection.scalars(sa.select(JUDGMENTS.c.id)))
    occasions = Counter(
        (row.item_id, row.rater_id)
        for row in tx.connection.execute(sa.select(ASSIGNMENTS.c.item_id, ASSIGNMENTS.c.rater_id))
    )
    made_here = _made_here(tx, {judgment.rater_id for judgment in judgments})
    seen: Counter[str] = Counter()
    new = 0
    for judgment, item in zip(judgments, items, strict=True):
        if raters[judgment.rater_id] != judgment.kind:
            raise DataError(
                f"rater {judgment.rater_id} is {raters[judgment.rater_id]} in the store, not {judgment.kind}"
            )
        record = canonical_json(judgment.model_dump(mode="json"))
        seen[record] += 1
        identity = content_id("imported", record, seen[record])
        if identity in there or seen[record] <= made_here[record]:
            continue
        occasion = occasions[item.id, judgment.rater_id]
        occasions[item.id, judgment.rater_id] += 1
        _insert_one(tx, identity, judgment, item, occasion)
        new += 1
    return new


def _made_here(tx: Transaction, raters: Collection[str]) -> Counter[str]:
    """The records of judgments that these raters made in this store: in an export of it, they are not further ones."""
    query = sa.select(JUDGMENTS.c.record).where(~JUDGMENTS.c.id.like(f"{IMPORTED}-%"))
    records: Counter[str] = Counter()
    for rater_id in sorted(raters):
        for record in tx.connection.scalars(query.where(JUDGMENTS.c.rater_id == rater_id)):
            records.update(canonical_json(one.model_dump(mode="json")) for one in read_judgment(record).pairwise())
    return records


def _insert_one(tx: Transaction, identity: str, judgment: Judgment, item: Item, occasion: int) -> None:
    assignment = assignment_id(item.id, judgment.rater_id, occasion)
    payload: dict[str, object] = {
        "judgment_id": identity,
        "assignment": assignment,
        "judgment": judgment.model_dump(mode="json"),
    }
    payload["occasion"] = occasion
    counted_here = judgment.judge is None  # judges take no place from people, and do not disagree with them
    now = tx.event("imported", rater_id=judgment.rater_id, item_id=item.id, payload=payload)
    who = {"item_id": item.id, "rater_id": judgment.rater_id, "occasion": occasion}
    sides = {"left_id": judgment.left, "right_id": judgment.right or None, "shown": "", "shown_at_ms": None}
    state = {"state": "done", "lease_until_ms": now, "seq": tx.seq}
    st.ADD_ASSIGNMENT.do(tx.connection, id=assignment, **who, **sides, **state)
    vote = count_vote(tx, item, occasion, before=None, now=judgment, counted=counted_here)
    row = {"id": identity, "assignment_id": assignment, **who, "kind": judgment.kind, "vote": vote, "at_ms": now}
    record = {"record": judgment.model_dump_json(), "seq": tx.seq, "active_ms": 0, "idle_ms": 0}
    st.ADD_JUDGMENT.do(tx.connection, **row, **record)
    count_work(tx, judgment.rater_id, IMPORTED_AT_MS, judged=1)
    if not counted_here:
        return
    if occasion == 0 and judgment.skip:
        st.COUNT_SKIP.do(tx.connection, item=item.id)
    elif occasion == 0:
        st.MAKE_PLACE.do(tx.connection, item=item.id)

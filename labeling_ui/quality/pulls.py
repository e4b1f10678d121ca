"""Judgments that pull against the rest, for the lead: training pairs of a reward model from which learning raised the
others' loss.

    tiebreak reward report --reward-model RUN --output REPORT --influence_pairs 1000     estimates the pulls
    tiebreak label --config label.yaml --reward_reports REPORT                           shows them on /lead/

A rater answers for a pair if their present vote is for its chosen answer. Pairs whose votes for it are all gone, because
they were rejected or given anew, are no longer listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from labeling_ui.database.schema import ITEMS, JUDGMENTS, PAIRS
from labeling_ui.quality.pull_reports import PairPull, ShownReport
from labeling_ui.store.pairs.campaign import IDS_AT_ONCE
from labeling_ui.store.pairs.items import beginning_of
from labeling_ui.store.store import Store
from tiebreak.assessments import read_pair
from tiebreak.hashing import hash_text
from tiebreak.measures.statistics import wilson_interval

MOST_SHOWN = 20
"""pairs of a report, the strongest against the rest first"""


@dataclass(frozen=True)
class _Judged:
    """A pair as the campaign has it now."""

    item_id: str
    prompt: str
    supporters: Mapping[str, tuple[str, ...]]
    """hash of an answer's text → the raters who prefer it"""


@dataclass
class LivePulls:
    """The reports' pairs in one store, with their present votes."""

    store: Store
    reports: Callable[[], tuple[ShownReport, ...]]
    """the same tuple as long as no report has changed"""
    _read: tuple[str, tuple[ShownReport, ...], list[dict[str, Any]]] | None = field(default=None)
    """the event log's head, the reports, and what was read then"""

    def __call__(self) -> list[dict[str, Any]]:
        """Each report: its strongest pairs against the rest, and each rater's share of pairs that pull so."""
        reports = self.reports()
        if not reports:
            return []
        head = self.store.head()
        if self._read is None or self._read[0] != head or self._read[1] is not reports:
            ids = [one.pair_id for shown in reports for one in shown.report.rows if one.pair_id is not None]
            judged = dict(_judged(self.store, list(dict.fromkeys(ids))))
            self._read = head, reports, [_as_json(shown, judged) for shown in reports]
        return self._read[2]


def _judged(store: Store, ids: Sequence[str]) -> Iterator[tuple[str, _Judged]]:
    """The pairs that are in the campaign and not withdrawn, by id."""
    for n in range(0, len(ids), IDS_AT_ONCE):
        some = ids[n : n + IDS_AT_ONCE]
        with store.reading() as connection:
            pairs = connection.execute(
                sa.select(
                    ITEMS.c.id, ITEMS.c.pair_id, ITEMS.c.first_id, ITEMS.c.second_id, ITEMS.c.task, PAIRS.c.record
                )
                .join(PAIRS, PAIRS.c.id == ITEMS.c.pair_id)
                .where(ITEMS.c.pair_id.in_(some), ITEMS.c.withdrawn == sa.literal_column("0"))
            ).all()
            votes = connection.execute(
                sa.select(JUDGMENTS.c.item_id, JUDGMENTS.c.rater_id, JUDGMENTS.c.vote).where(
                    JUDGMENTS.c.item_id.in_([one.id for one in pairs]),
                    JUDGMENTS.c.occasion == 0,
                    JUDGMENTS.c.vote.is_not(None),
                    JUDGMENTS.c.vote != 0,
                    JUDGMENTS.c.kind != "model",
                )
            ).all()
        by_item: dict[str, list[Any]] = {}
        for vote in votes:
            by_item.setdefault(vote.item_id, []).append(vote)
        for one in pairs:
            mine = by_item.get(one.id, [])
            yield one.pair_id, _Judged(one.id, beginning_of(one.record), _supporters(one, mine))


def _supporters(item: Any, votes: Sequence[Any]) -> dict[str, tuple[str, ...]]:
    """None of a ranking, which has no votes for sides."""
    if item.task != "pair":
        return {}
    texts = {answer.id: hash_text(answer.text) for answer in read_pair(item.record).completions}
    found: dict[str, tuple[str, ...]] = dict.fromkeys(texts.values(), ())
    for vote in votes:
        text = texts[item.first_id if vote.vote > 0 else item.second_id]
        found[text] += (vote.rater_id,)
    return found


def _as_json(shown: ShownReport, judged: Mapping[str, _Judged]) -> dict[str, Any]:
    report = shown.report
    rows: list[dict[str, Any]] = []
    signs: dict[str, list[bool]] = {}
    against = 0
    for one in report.rows:
        pair = judged.get(one.pair_id or "")
        raters = () if pair is None else _responsible(one, pair)
        if pair is None or not raters:
            continue
        against += one.pull < 0
        for rater in raters:
            signs.setdefault(rater, []).append(one.pull < 0)
        if one.pull < 0 and len(rows) < MOST_SHOWN:
            rows.append({"item_id": pair.item_id, "prompt": pair.prompt, "pull": one.pull, "raters": list(raters)})
    return {
        "report": report.folder,
        "problem": shown.problem,
        "pairs": len(report.rows),
        "against": against,
        "rows": rows,
        "raters": [_share(rater, mine) for rater, mine in sorted(signs.items())],
    }


def _responsible(one: PairPull, pair: _Judged) -> tuple[str, ...]:
    """The raters who prefer the pair's chosen answer now; those that the report names for a settled or ranked pair, or an
    answer that the campaign does not have (an edited one)."""
    if one.adjudicated or one.chosen not in pair.supporters:
        return one.raters or ()
    return pair.supporters[one.chosen]


def _share(rater: str, against: Sequence[bool]) -> dict[str, Any]:
    count = sum(against)
    interval = wilson_interval(count, len(against))
    return {"rater": rater, "value": count / len(against), "interval": list(interval), "n": len(against)}

"""What a lead changes in a running campaign from the command line: batches, and the pairs in them.

    tiebreak label batches --store URL [--json]
    tiebreak label batch --name B [--create true] [--priority N] [--pool P] [--overlap N] [--paused true]
        [--deadline DAY] [--goal N] --store URL
    tiebreak label move --to B [--priority N] [--pool P] [--overlap N] (--ids … | --pairs FILE | --from-batch B) --store URL
    tiebreak label withdraw [--reason TEXT] (--ids … | --pairs FILE | --from-batch B | --absent-from FILE) --store URL
    tiebreak label backup --output FILE --store URL
    tiebreak label restore --backup FILE --store URL
    tiebreak label restore (--ids … | --pairs FILE | --from-batch B) --store URL
    tiebreak label correct --pairs FILE --store URL
    tiebreak label withdrawn --store URL [--json]
    tiebreak label reject --rater NAME [--since DAY] [--until DAY] [--batch B] --reason TEXT [--preview true] --store URL

Every change is an event of the log; nothing is deleted.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from labeling_ui.configuration import read_store_arguments
from labeling_ui.database.schema import MAX_PRIORITY
from labeling_ui.exchange.media import MediaConfig, add_media, refuse_missing_media
from labeling_ui.store.backup import back_up, restore_backup
from labeling_ui.store.leads.rejecting import Selection
from labeling_ui.store.pairs.campaign import Batch, BatchChange
from labeling_ui.store.raters import find_rater
from labeling_ui.store.store import Store
from labeling_ui.store.verify import Verification
from tiebreak.config import Section
from tiebreak.data.pairs import read_pairs
from tiebreak.errors import ConfigError, counted
from tiebreak.files import explain
from tiebreak.records import Pair
from tiebreak.runs.run import identify_input
from tiebreak.terminal import has_colours, show, titled_table

DAY_MS = 86_400_000


class ReadArguments(Section):
    """`tiebreak label batches` and `withdrawn`"""

    store: str
    """URL of the label store"""
    as_json: bool = Field(default=False, alias="json")
    """print one JSON document"""


class BatchArguments(Section):
    """`tiebreak label batch`"""

    store: str
    """URL of the label store"""
    name: str = Field(max_length=100)
    """the batch"""
    priority: int | None = Field(default=None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    """priority; higher ones are given out first; null: unchanged"""
    pool: str | None = Field(default=None, max_length=100)
    """the pool of raters for the batch; empty: everybody; null: unchanged"""
    overlap: int | None = Field(default=None, ge=1, le=100)
    """raters per pair; null: unchanged"""
    paused: bool | None = None
    """true: stop giving out its pairs; false: resume"""
    deadline: str | None = None
    """last day of work (UTC), such as 2026-12-24; empty: none; null: unchanged"""
    goal: int | None = Field(default=None, ge=0)
    """judgments wanted by the deadline; 0: all; null: unchanged"""
    create: bool = False
    """true: create the batch, without pairs"""


class SelectArguments(Section):
    """Some pairs of a store."""

    store: str
    """URL of the label store"""
    ids: list[str] = Field(default_factory=list)
    """the pairs' ids"""
    pairs: str | None = None
    """a file of the pairs"""
    from_batch: str | None = None
    """all pairs of this batch"""
    columns: dict[str, str | None] = {}
    """columns with other names: Tiebreak's name, then the file's, such as {response_a: left}; null: ignore the column"""


class RestoreArguments(SelectArguments):
    """`tiebreak label restore`"""

    backup: str | None = None
    """a backup to restore the whole store from; the store must not exist yet"""


class BackupArguments(Section):
    """`tiebreak label backup`"""

    store: str
    """URL of the label store, which may be in use"""
    output: str
    """the file to write"""


class MoveArguments(SelectArguments):
    """`tiebreak label move`"""

    to: str = Field(max_length=100)
    """the batch to move to; created if it does not exist"""
    priority: int | None = Field(default=None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    """new priority of that batch; null: unchanged"""
    pool: str | None = Field(default=None, max_length=100)
    """new pool of that batch; null: unchanged"""
    overlap: int | None = Field(default=None, ge=1, le=100)
    """new overlap of that batch; null: unchanged"""


class WithdrawArguments(SelectArguments):
    """`tiebreak label withdraw`"""

    absent_from: str | None = None
    """all pairs from an earlier version of this file that it no longer contains"""
    reason: str = Field(default="", max_length=1_000)
    """the reason, which the export lists"""


class CorrectArguments(Section):
    """`tiebreak label correct`"""

    store: str
    """URL of the label store"""
    pairs: str
    """a file of pairs: pairs in the store with the same id and another text are replaced; the others stay"""
    media: str | None = None
    """folder of images and recordings that the store does not have yet"""
    columns: dict[str, str | None] = {}
    """columns with other names: Tiebreak's name, then the file's, such as {response_a: left}; null: ignore the column"""


class RejectArguments(Section):
    """`tiebreak label reject`"""

    store: str
    """URL of the label store"""
    rater: str
    """name or id of the rater whose judgments are rejected"""
    since: str | None = None
    """only judgments of this day (UTC, such as 2026-12-24) or later"""
    until: str | None = None
    """only judgments of this day or earlier"""
    batch: str | None = None
    """only judgments of this batch"""
    reason: str = Field(default="", max_length=1_000)
    """the reason, shown beside each rejected judgment"""
    again: bool = False
    """true: the rater may judge the pairs again, if others have not done so first"""
    preview: bool = False
    """true: only print what would be done"""


def batches(words: Sequence[str]) -> None:
    """`tiebreak label batches`"""
    arguments = read_store_arguments(ReadArguments, words, "label batches")
    store = Store.open(arguments.store)
    rows = [{**asdict(batch), "pairs": len(store.pairs_in_batch(batch.name))} for batch in store.batches()]
    if arguments.as_json:
        print(json.dumps(rows, indent=2))
        return
    cells = [
        (
            repr(row["name"]),
            str(row["pairs"]),
            str(row["priority"]),
            row["pool"] or "-",
            str(row["overlap"]),
            "yes" if row["paused"] else "-",
            row["deadline"] or "-",
        )
        for row in rows
    ]
    head = ("batch", "pairs", "priority", "pool", "overlap", "paused", "deadline")
    show(*titled_table(head, cells, left=(0, 3, 5, 6), colours=has_colours(sys.stdout)))


def change_batch(words: Sequence[str]) -> None:
    """`tiebreak label batch`"""
    arguments = read_store_arguments(BatchArguments, words, "label batch")
    change = _checked(arguments.model_dump(include=set(BatchChange.model_fields)), "label batch")
    store = Store.open(arguments.store)
    apply = store.create_batch if arguments.create else store.change_batch
    print(_describe(apply(arguments.name, change)))


def move(words: Sequence[str]) -> None:
    """`tiebreak label move`"""
    arguments = read_store_arguments(MoveArguments, words, "label move")
    store = Store.open(arguments.store)
    ids = _select(store, arguments, "label move")
    change = _checked(arguments.model_dump(include={"priority", "pool", "overlap"}), "label move")
    batch = store.move_pairs(ids, arguments.to, change)
    print(f"moved {counted(len(ids), 'pair')} to {_describe(batch)}")


def withdraw(words: Sequence[str]) -> None:
    """`tiebreak label withdraw`"""
    arguments = read_store_arguments(WithdrawArguments, words, "label withdraw")
    store = Store.open(arguments.store)
    if arguments.absent_from is not None:
        there = [pair.id for pair in read_pairs(arguments.absent_from, arguments.columns, media=True)]
        ids = store.pairs_absent(arguments.absent_from, there)
    else:
        ids = _select(store, arguments, "label withdraw")
    count = store.withdraw_pairs(ids, arguments.reason)
    print(f"withdrew {counted(count, 'pair')}; 'tiebreak label restore' brings them back, with their judgments")


def restore(words: Sequence[str]) -> None:
    """`tiebreak label restore`"""
    arguments = read_store_arguments(RestoreArguments, words, "label restore")
    if arguments.backup is not None:
        _refuse_selection(arguments)
        result = restore_backup(Path(arguments.backup), arguments.store)
        print(f"restored {arguments.store}: {_whole(result)}")
        return
    store = Store.open(arguments.store)
    print(f"restored {counted(store.restore_pairs(_select(store, arguments, 'label restore')), 'pair')}")


def backup(words: Sequence[str]) -> None:
    """`tiebreak label backup`"""
    arguments = read_store_arguments(BackupArguments, words, "label backup")
    store = Store.open(arguments.store)
    result = back_up(store, Path(arguments.output))
    store.close()
    print(f"saved: {arguments.output}: {_whole(result)}")


def _whole(result: Verification) -> str:
    return f"intact. {result.events} events, {result.judgments} judgments, head {result.head[:16]}"


def _refuse_selection(arguments: SelectArguments) -> None:
    if arguments.ids or arguments.pairs is not None or arguments.from_batch is not None:
        raise ConfigError("label restore: --backup restores a whole store: leave the pairs out")


def correct(words: Sequence[str]) -> None:
    """`tiebreak label correct`"""
    arguments = read_store_arguments(CorrectArguments, words, "label correct")
    store = Store.open(arguments.store)
    pairs, source = read_pairs(arguments.pairs, arguments.columns, media=True), identify_input(arguments.pairs).id
    if arguments.media is not None:
        add_media(store, pairs, MediaConfig(Path(arguments.media)))
    refuse_missing_media(store, pairs)
    made = store.correct_pairs(_known(store, pairs), source=arguments.pairs, source_id=source)
    print(f"corrected {counted(len(made), 'pair')}; judgments of the earlier versions stay in the store, unused")
    for one in made:
        gold = "; its known answer was the earlier version's: make it gold again" if one.gold else ""
        print(f"  {one.pair_id} is now {one.replaced_by}{gold}")


def reject(words: Sequence[str]) -> None:
    """`tiebreak label reject`"""
    arguments = read_store_arguments(RejectArguments, words, "label reject")
    store = Store.open(arguments.store)
    rater = find_rater(store.raters(), arguments.rater)
    if rater is None:
        raise ConfigError(
            f"label reject: {store.url} has no rater {arguments.rater!r}; 'tiebreak raters list' lists them"
        )
    selection = Selection(
        rater_id=rater.id,
        since_ms=None if arguments.since is None else _midnight_ms(arguments.since),
        until_ms=None if arguments.until is None else _midnight_ms(arguments.until) + DAY_MS,
        batch=arguments.batch,
    )
    effect = store.preview_rejection(selection)
    if not arguments.preview:
        if not arguments.reason.strip():
            raise ConfigError("label reject: give a --reason, or --preview true to see the effect only")
        store.reject(selection, arguments.reason, again=arguments.again)
    print(
        f"{'would reject' if arguments.preview else 'rejected'} {counted(effect.judgments, 'judgment')} of "
        f"{counted(effect.items, 'pair')}: {effect.requeued} given out again, {effect.unjudged} without a vote, "
        f"{effect.turned} with another majority, {effect.settled} settled"
    )


def _midnight_ms(day: str) -> int:
    try:
        begins = date.fromisoformat(day)
    except ValueError as error:
        raise ConfigError(f"label reject: {day!r} is not a day such as 2026-12-24") from error
    return round(datetime(begins.year, begins.month, begins.day, tzinfo=UTC).timestamp() * 1000)


def withdrawn(words: Sequence[str]) -> None:
    """`tiebreak label withdrawn`"""
    arguments = read_store_arguments(ReadArguments, words, "label withdrawn")
    rows = Store.open(arguments.store).withdrawals()
    if arguments.as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    cells = [(row.pair_id, row.replaced_by or "-", row.reason or "-") for row in rows]
    show(*titled_table(("pair", "now", "reason"), cells, left=(0, 1, 2), colours=has_colours(sys.stdout)))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "backup": backup,
    "batches": batches,
    "batch": change_batch,
    "move": move,
    "withdraw": withdraw,
    "restore": restore,
    "correct": correct,
    "withdrawn": withdrawn,
    "reject": reject,
}


def _checked(fields: dict[str, Any], command: str) -> BatchChange:
    try:
        return BatchChange(**fields)
    except ValidationError as error:
        raise ConfigError(f"{command}: {'; '.join(explain(error))}") from error


def _describe(batch: Batch) -> str:
    pool = f"pool {batch.pool!r}" if batch.pool else "for everybody"
    paused = ", paused" if batch.paused else ""
    due = f", due {batch.deadline}" if batch.deadline else ""
    goal = f", {batch.goal} judgments wanted" if batch.goal else ""
    return f"batch {batch.name!r}: priority {batch.priority}, {pool}, overlap {batch.overlap}{paused}{due}{goal}"


def _select(store: Store, arguments: SelectArguments, command: str) -> list[str]:
    """The ids of the pairs meant.

    Raises:
        ConfigError: none, or in two ways.
    """
    ways = [bool(arguments.ids), arguments.pairs is not None, arguments.from_batch is not None]
    if sum(ways) != 1:
        raise ConfigError(f"{command}: name the pairs in one way: --ids ID …, --pairs FILE or --from-batch NAME")
    if arguments.pairs is not None:
        return [pair.id for pair in read_pairs(arguments.pairs, arguments.columns, media=True)]
    if arguments.from_batch is not None:
        ids = store.pairs_in_batch(arguments.from_batch)
        if not ids:
            raise ConfigError(f"{command}: {store.url} has no pairs in batch {arguments.from_batch!r}")
        return ids
    return arguments.ids


def _known(store: Store, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose ids the store has; the others are new, and are added by serving them."""
    there = {pair.id for pair in store.pairs(withdrawn=True)}
    return [pair for pair in pairs if pair.id in there]


def ranking_lines(store: Store, source: str, pairs: Sequence[Pair], ranking: bool) -> list[str]:
    """Which of the store's larger pairs are judged otherwise than `ranking` says: that is decided when they are added."""
    larger = {pair.id for pair in pairs if len(pair.completions) > 2}
    ranked = store.ranked_pairs() if larger else set()
    if not (otherwise := larger - ranked if ranking else larger & ranked):
        return []
    how = "are compared two answers at a time" if ranking else "are ranked"
    return [
        f"ranking: {str(ranking).lower()} applies to new pairs: {len(otherwise)} of {source} {how}, as they were added; "
        "give another --store to judge them otherwise"
    ]


def difference_lines(store: Store, source: str, pairs: Sequence[Pair], batch: Batch) -> list[str]:
    """Where the store's pairs differ from the configuration that names them, and the commands that change it."""
    ids, at = [pair.id for pair in pairs], ["--store", store.url]
    lines = []
    elsewhere = store.pairs_elsewhere(ids, batch.name)
    flags = ["--priority", str(batch.priority), "--pool", batch.pool, "--overlap", str(batch.overlap)]
    command = shlex.join(["tiebreak", "label", "move", "--to", batch.name, *flags, "--pairs", source, *at])
    for other, count in elsewhere.items():
        lines.append(f"{counted(count, 'pair')} of {source} {_stay(count)} in {_describe(other)}")
    if lines:
        lines.append(f"the configuration names batch {batch.name!r}; to move them there: {command}")
    if outdated := len(store.pairs_outdated(pairs)):
        lines.append(
            f"{counted(outdated, 'pair')} of {source} had an error that was corrected: the store has the new text"
        )
    if absent := store.pairs_absent(source, ids):
        command = shlex.join(["tiebreak", "label", "withdraw", "--absent-from", source, *at])
        count = len(absent)
        lines.append(
            f"{counted(count, 'pair')} that {source} no longer has {'is' if count == 1 else 'are'} still given to raters; "
            f"to withdraw: {command}"
        )
    return lines


def _stay(count: int) -> str:
    return "stays" if count == 1 else "stay"

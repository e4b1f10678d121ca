"""The label store: pairs, raters, assignments, and the event log.

Every change is one transaction that appends to the event log and updates the tables derived from it. Guarantees,
for any number of threads, processes and servers:

- an acknowledged judgment is on disk, and submitting it again changes nothing;
- no pair is held or judged by more raters than its overlap, and none is given to a rater twice;
- a judgment stores the sides as assigned, never as a client claims them.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from labeling_ui.database import statements as st
from labeling_ui.database.errors import RefusedError, StoreError
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.migrations import migrate
from labeling_ui.database.schema import (
    BATCHES,
    ERASED,
    GOLD,
    ITEMS,
    RATERS,
    SETTINGS,
    build_engine,
)
from labeling_ui.store import contents
from labeling_ui.store.answers import Answer, Draft, Submission
from labeling_ui.store.clock import iso_time as iso_time
from labeling_ui.store.clock import period_ms
from labeling_ui.store.clock import wall_clock_ms as wall_clock_ms
from labeling_ui.store.figures import audit, exported
from labeling_ui.store.figures import progress as counts
from labeling_ui.store.figures.audit import AuditEntry
from labeling_ui.store.figures.exported import SinceExport
from labeling_ui.store.figures.progress import BatchProgress, PastJudgment, Work
from labeling_ui.store.leads import adjudication, documents, erasing, finding, rejecting
from labeling_ui.store.leads.adjudication import Dispute, DisputeOpened, Feedback
from labeling_ui.store.leads.documents import ConsentWithdrawn, Document, Publication
from labeling_ui.store.leads.erasing import Erasure
from labeling_ui.store.leads.finding import ItemOpened, JudgmentEntry, Search, SearchPage
from labeling_ui.store.leads.rejecting import Rejection, Selection
from labeling_ui.store.names import pool_name
from labeling_ui.store.pairs import campaign, changes, inspection
from labeling_ui.store.pairs.campaign import Batch, BatchChange, Gold, Source
from labeling_ui.store.pairs.changes import Correction, Withdrawal
from labeling_ui.store.pairs.inspection import InspectConfig
from labeling_ui.store.raters import Rater, RaterKind, Role, as_rater, insert_rater, move_rater
from labeling_ui.store.transactions import SERVED, TransactionalStore
from labeling_ui.store.work import assigning, judging
from labeling_ui.store.work.asking import Questionnaire
from labeling_ui.store.work.assigning import LEASE_SECONDS, Assignment, Rules
from labeling_ui.store.work.judging import StoredJudgment
from labeling_ui.store.work.scales import SCALES, keep_scales
from labeling_ui.store.work.standing import Attempt, Standing, is_tested, present_attempt, set_standing
from tiebreak.assessments import ExportedAssessment, SingleAnswer, read_judgment
from tiebreak.records import ExportedJudgment, Judgment, Pair
from tiebreak.runs.requirements import Requirement

SESSION_HOURS = 336.0
"""Two weeks"""


def default_store_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path}"


@dataclass(frozen=True)
class SessionRules:
    """How long a login lasts."""

    hours: float = SESSION_HOURS
    idle_minutes: int | None = None
    """minutes without activity after which a session ends; None: it does not"""

    @property
    def most_ms(self) -> int:
        """The longest session, in ms, however active."""
        return round(self.hours * 3_600_000)

    def expires_at_ms(self, began_at_ms: int, active_at_ms: int) -> int:
        """When a session ends if there is no more activity."""
        idle = active_at_ms + self.idle_minutes * 60_000 if self.idle_minutes else began_at_ms + self.most_ms
        return min(began_at_ms + self.most_ms, idle)


_OTHER_SETTINGS = (
    campaign.CONFIGURED,
    campaign.REQUIRES,
    SERVED,
    inspection.INSPECTION,
    exported.EXPORTED,
    SCALES,
)
"""Prefixes of settings that `Store.campaign` leaves out."""


class Store(TransactionalStore):
    """One label store. Thread-safe; each process opens its own."""

    def __init__(
        self,
        engine: Engine,
        url: str,
        *,
        clock: Callable[[], int] | None = wall_clock_ms,
        lease_seconds: int = LEASE_SECONDS,
        had_log: bool = True,
    ) -> None:
        """`url`: for messages, without the password. `clock` None: times are event numbers, so that simulated campaigns
        leave the same log every time. `had_log`: whether a SQLite file's log was beside it."""
        super().__init__(engine, url, clock=clock, had_log=had_log)
        self.rules = Rules(lease_ms=lease_seconds * 1000)
        self.sessions = SessionRules()

    @classmethod
    def open(
        cls,
        url: str,
        *,
        create: bool = False,
        clock: Callable[[], int] | None = wall_clock_ms,
        lease_seconds: int = LEASE_SECONDS,
    ) -> Store:
        """Open a store and migrate it to the current schema.

        Raises:
            StoreError: there is none and `create` is false, or it cannot be opened.
        """
        engine, had_log = build_engine(url), True
        if engine.dialect.name == "sqlite" and engine.url.database:
            file = Path(engine.url.database)
            log = file.with_name(f"{file.name}-wal")
            had_log = log.exists() and log.stat().st_size > 0
            if create:
                file.parent.mkdir(parents=True, exist_ok=True)
            elif not file.is_file():
                raise StoreError(f"no label store at {url}: 'tiebreak label --config FILE' creates one from pairs")
        shown = engine.url.render_as_string(hide_password=True)
        migrate(engine, shown)
        store = cls(engine, shown, clock=clock, lease_seconds=lease_seconds, had_log=had_log)
        store._forget_killed_servers()
        return store

    def keep_scales(self, asked: Questionnaire) -> None:
        """Remember the scales that raters are asked to use.

        Raises:
            StoreError: there are judgments on other scales.
        """
        self.transact(lambda tx: keep_scales(tx, asked, self.url))

    # --- contents ------------------------------------------------------------------------------------------------------

    def add_pairs(
        self,
        pairs: Sequence[Pair],
        *,
        overlap: int,
        seed: int,
        source: str,
        source_id: str,
        ranking: bool = False,
        batch: str = "",
        priority: int = 0,
        pool: str = "",
    ) -> int:
        """Add the pairs that are new; returns how many.

        Pairs of K completions become K(K−1)/2 items, or with `ranking` one item to rank.

        Raises:
            StoreError: the store has another seed, or another pair with the same id.
        """
        batched = Batch(batch, priority, pool_name(pool), overlap)
        about = Source(source, source_id, ranking)
        return self.transact(lambda tx: campaign.add_pairs(tx, pairs, batched, seed=seed, source=about, url=self.url))

    def require(self, requirements: Sequence[Requirement]) -> None:
        """Demand that the sources of all pairs meet requirements, from now on, whatever adds them.

        Raises:
            HandoffError: a source already in the store does not.
        """
        if requirements:
            self.transact(lambda tx: campaign.set_requirements(tx, requirements))

    def add_lot(
        self,
        answers: Sequence[SingleAnswer],
        batch: Batch,
        config: InspectConfig | None,
        *,
        seed: int,
        source: str,
        source_id: str,
    ) -> int:
        """Add a lot of answers to review; returns how many are new.

        Args:
            config: raters get a sample of the lot. None: they get the answers that a step of *prepare* flagged.

        Raises:
            StoreError: the batch exists and lacks some of the answers, or some of them are not to be reviewed.
        """
        about = Source(source, source_id)
        return self.transact(
            lambda tx: inspection.add_lot(tx, answers, batch, config, seed=seed, source=about, url=self.url)
        )

    def inspections(self) -> dict[str, dict[str, Any]]:
        """Lots under inspection and lots already accepted or rejected, by batch."""
        with self.reading() as connection:
            return {
                name: inspection.progress_of(connection, one)
                for name, one in inspection.inspections(connection).items()
            }

    def accepted_unseen(self, without: Collection[str] = ()) -> dict[str, str]:
        """Single answers that were accepted without review, each with its lot.

        Their lot's sample has passed, or every answer that a step of *prepare* flagged in the lot has been reviewed.

        Args:
            without: raters whose judgments do not count: a lot that passes only by theirs does not.
        """
        with self.reading() as connection:
            lots = inspection.inspections(connection)
            passed = {
                one.rest: one.rest if one.flagged else name
                for name, one in lots.items()
                if one.passed and (one.flagged or inspection.outcome(connection, one, without)[0])
            }
            query = sa.select(ITEMS.c.id, ITEMS.c.batch).where(ITEMS.c.batch.in_(passed), ITEMS.c.withdrawn == 0)
            return {row.id: passed[row.batch] for row in connection.execute(query)}

    def mark_export(self, head: str, where: str) -> None:
        """Record that the labels were exported as of this head of the log. A store without a clock records nothing."""
        if self._clock is not None:
            now = self._clock()
            self.transact(lambda tx: exported.mark_export(tx, head, where, now))

    def since_export(self) -> SinceExport | None:
        """What has changed since the latest export; None: there was none."""
        with self.reading() as connection:
            return exported.since_export(connection)

    def campaign(self) -> dict[str, Any]:
        """The store's settings: overlap, seed, and `sources`, [source, id] of the pairs."""
        with self.reading() as connection:
            rows = connection.execute(sa.select(SETTINGS.c.name, SETTINGS.c.value)).all()
        return {row.name: json.loads(row.value) for row in rows if not row.name.startswith(_OTHER_SETTINGS)}

    def sources_of_single_answers(self) -> set[str]:
        """The ids of the sources whose rows are single answers."""
        with self.reading() as connection:
            return campaign.sources_of_single_answers(connection)

    def batches(self) -> list[Batch]:
        """All batches, by name."""
        with self.reading() as connection:
            rows = connection.execute(sa.select(BATCHES).order_by(BATCHES.c.name)).all()
        return [Batch.of(row) for row in rows]

    def batch_progress(self) -> dict[str, BatchProgress]:
        """Each batch's progress."""
        with self.reading() as connection:
            return counts.batch_progress(connection)

    def change_batch(self, name: str, change: BatchChange) -> Batch:
        """Change a batch. Raises RefusedError if there is none with that name."""
        return self.transact(lambda tx: campaign.change_batch(tx, name, change))

    def create_batch(self, name: str, change: BatchChange) -> Batch:
        """Create an empty batch. Raises RefusedError if there is one with that name."""
        return self.transact(lambda tx: campaign.create_batch(tx, name, change))

    def upload_pairs(self, pairs: Sequence[Pair], batch: str, source: Source, *, preview: bool = False) -> int:
        """Add the pairs that are new to a batch; returns how many. `preview`: only count them.

        Raises:
            RefusedError: there is no such batch.
            StoreError: the store has another pair with the same id.
        """
        return self.transact(lambda tx: campaign.upload_pairs(tx, pairs, batch, source, self.url, preview=preview))

    def move_pairs(self, pair_ids: Sequence[str], batch: str, change: BatchChange | None = None) -> Batch:
        """Move pairs to a batch, which `change` creates or changes. Raises RefusedError if a pair does not exist."""
        steered = change or BatchChange()
        return self.transact(lambda tx: changes.move(tx, pair_ids, batch, steered))

    def withdraw_pairs(self, pair_ids: Sequence[str], reason: str = "", by: str | None = None) -> int:
        """Withdraw pairs: nobody gets them, and they count nowhere; `restore_pairs` brings them back.

        Returns how many are newly withdrawn. Raises RefusedError if a pair does not exist.
        """
        return self.transact(lambda tx: changes.withdraw(tx, pair_ids, reason, by))

    def restore_pairs(self, pair_ids: Sequence[str], by: str | None = None) -> int:
        """Restore withdrawn pairs, with their judgments; returns how many.

        Raises:
            RefusedError: a pair does not exist, or has a corrected version.
        """
        return self.transact(lambda tx: changes.restore(tx, pair_ids, by))

    def correct_pairs(
        self, pairs: Sequence[Pair], *, source: str, source_id: str, by: str | None = None
    ) -> list[Correction]:
        """Replace the pairs with these ids by new versions; old judgments stay with the old ones.

        Raises:
            RefusedError: there is no pair with one of the ids, or it belongs to a conversation.
        """
        about = Source(source, source_id)
        return self.transact(lambda tx: changes.correct(tx, pairs, about, by))

    def withdrawals(self) -> list[Withdrawal]:
        """Withdrawn and corrected pairs, in campaign order."""
        with self.reading() as connection:
            return changes.withdrawals(connection)

    def pairs_in_batch(self, batch: str) -> list[str]:
        """The ids of a batch's pairs; withdrawn ones too."""
        with self.reading() as connection:
            return changes.pairs_in_batch(connection, batch)

    def pairs_elsewhere(self, pair_ids: Sequence[str], batch: str) -> dict[Batch, int]:
        """How many of these pairs are in other batches than this one, by batch."""
        with self.reading() as connection:
            return changes.pairs_elsewhere(connection, pair_ids, batch)

    def pairs_outdated(self, pairs: Sequence[Pair]) -> list[str]:
        """Ids of these pairs that have a later, corrected version in the store."""
        with self.reading() as connection:
            return changes.pairs_outdated(connection, pairs)

    def pairs_absent(self, source: str, pair_ids: Sequence[str]) -> list[str]:
        """Ids of pairs that this file once added and raters still get, but that it no longer contains."""
        with self.reading() as connection:
            return changes.pairs_absent(connection, source, pair_ids)

    def set_gold(self, item_id: str, preferred_id: str | None, value: int | str | None = None) -> Gold:
        """Make an item gold.

        Args:
            preferred_id: the better completion; None: neither is better.
            value: of a single answer: the correct rating, verdict or class.

        Raises:
            RefusedError: there is no such item, or the completion does not belong to it.
        """
        return self.transact(lambda tx: campaign.set_gold(tx, item_id, preferred_id, value))

    def task_of(self, item_id: str) -> str | None:
        """What raters are asked of an item; None: there is no such item."""
        with self.reading_once() as connection:
            return connection.scalar(sa.select(ITEMS.c.task).where(ITEMS.c.id == item_id))

    def ranked_pairs(self) -> set[str]:
        """The pairs whose completions are all ranked at once."""
        with self.reading_once() as connection:
            return set(connection.scalars(sa.select(ITEMS.c.pair_id).where(ITEMS.c.task == "ranking")))

    def remove_gold(self, item_id: str) -> None:
        """Make a gold item an ordinary one. Raises RefusedError if it is not gold."""
        self.transact(lambda tx: campaign.remove_gold(tx, item_id))

    def gold(self) -> list[Gold]:
        """All gold items except withdrawn ones, in the order they became gold."""
        with self.reading() as connection:
            query = sa.select(GOLD).join(ITEMS, ITEMS.c.id == GOLD.c.item_id)
            query = query.where(ITEMS.c.withdrawn == sa.literal_column("0"))
            rows = connection.execute(query.order_by(GOLD.c.number)).all()
        answers = [(row, None if row.value is None else json.loads(row.value)) for row in rows]
        return [Gold(row.item_id, row.preferred_id, value) for row, value in answers]

    # --- raters -------------------------------------------------------------------------------------------------------

    def add_rater(
        self,
        name: str,
        *,
        kind: RaterKind = "human",
        role: Role = "rater",
        rater_id: str | None = None,
        password_hash: str | None = None,
        pool: str = "",
    ) -> Rater:
        """Add a rater, or return the existing one with that name if it has the same kind and neither has a password.

        Raises:
            StoreError: the name is taken, or people and simulated raters would share the store.
        """
        rater = Rater(rater_id or f"rater-{secrets.token_hex(4)}", name, kind, role, pool=pool)
        return self.transact(lambda tx: insert_rater(tx, rater, password_hash, self.url))

    def raters(self) -> list[Rater]:
        """All raters, in the order they were added."""
        with self.reading() as connection:
            query = sa.select(RATERS).order_by(RATERS.c.created_at_ms, RATERS.c.id)
            return [as_rater(row) for row in connection.execute(query)]

    def move_rater(self, rater_id: str, pool: str) -> None:
        """Move a rater to another pool. Raises RefusedError if there is no such rater, or they are disabled."""
        self.transact(lambda tx: move_rater(tx, rater_id, pool))

    def set_standing(self, rater_id: str, standing: Standing, reason: str = "", by: str | None = None) -> None:
        """Let a rater continue, stop them, or test them again (standing ''). Raises RefusedError if there is no such
        rater."""

        def change(tx: Transaction) -> None:
            assigning.active_rater(tx.connection, rater_id)
            set_standing(tx, rater_id, standing, {"reason": reason} if reason else {}, by)

        self.transact(change)

    def standing(self, rater_id: str) -> Standing:
        """Whether a rater has passed the test, or was stopped."""
        with self.reading_once() as connection:
            return connection.scalar(sa.select(RATERS.c.standing).where(RATERS.c.id == rater_id)) or ""

    def attempt(self, rater_id: str) -> Attempt | None:
        """The rater's current attempt at the test; None: they have no test to take."""
        if self.rules.qualify is None:
            return None
        with self.reading() as connection:
            rater = connection.execute(sa.select(RATERS).where(RATERS.c.id == rater_id)).first()
            if rater is None or rater.standing != "" or not is_tested(rater):
                return None
            return present_attempt(connection, rater, self.rules.qualify)

    # --- guidelines and consent ----------------------------------------------------------------------------------------

    def configure_document(self, document: Document, version: str, text: str) -> None:
        """Publish the configuration's text, unless a configuration published the same text last."""
        self.transact(lambda tx: documents.configure(tx, document, version, text))

    def publish(self, document: Document, version: str, text: str, by: str | None = None) -> Publication:
        """Publish a text, which every rater must accept before their next judgment.

        Raises:
            RefusedError: text and version are the current ones.
        """
        return self.transact(lambda tx: documents.publish(tx, document, version, text, by))

    def present_document(self, document: Document) -> Publication | None:
        """The current text; None: none was published."""
        with self.reading_once() as connection:
            return documents.present(connection, document)

    def publications(self, document: Document) -> list[Publication]:
        """All publications, the latest first."""
        with self.reading() as connection:
            return documents.publications(connection, document)

    def acceptances(self, document: Document) -> dict[str, int]:
        """Number of raters by the version that they accepted last."""
        with self.reading() as connection:
            return documents.accepted_by(connection, document)

    def published(self, document: Document) -> list[str]:
        """All published versions, in order."""
        with self.reading() as connection:
            return documents.versions(connection, document)

    def accept(self, rater_id: str, version: str, document: Document = "guidelines") -> None:
        """Record that a rater has accepted a version of the guidelines or the consent."""
        if not self.accepted(rater_id, version, document):
            self.transact(lambda tx: documents.accept(tx, rater_id, version, document))

    def accepted(self, rater_id: str, version: str, document: Document = "guidelines") -> bool:
        """Whether a rater has accepted this version."""
        with self.reading_once() as connection:
            return documents.accepted(connection, rater_id, version, document)

    def withdraw_consent(self, rater_id: str, *, judgments: bool) -> None:
        """Record that a rater withdraws consent: they get no more work.

        Args:
            judgments: they also ask that their judgments not be used.
        """
        self.transact(lambda tx: documents.withdraw_consent(tx, rater_id, judgments=judgments))

    def consents_withdrawn(self) -> list[ConsentWithdrawn]:
        """Raters who have withdrawn their consent, in order."""
        with self.reading() as connection:
            return documents.consents_withdrawn(connection)

    def has_withdrawn_consent(self, rater_id: str) -> bool:
        """Whether a rater has withdrawn their consent."""
        with self.reading_once() as connection:
            return documents.has_withdrawn(connection, rater_id)

    def audit(self, first: date, last: date) -> Iterator[AuditEntry]:
        """Events from the first day to the last (UTC), read in parts, so that no transaction waits for the caller.

        Raises:
            RefusedError: the first day comes after the last.
        """
        return self._audit(*period_ms(first, last))

    def _audit(self, since: int, until: int) -> Iterator[AuditEntry]:
        after = 0
        while True:
            with self.reading() as connection:
                part = audit.entries(connection, after, since, until)
            if not part:
                return
            yield from part
            after = part[-1].seq

    # --- personal data -------------------------------------------------------------------------------------------------

    def own_data(self, rater_id: str) -> dict[str, Any]:
        """Everything that the store has about a person."""
        with self.reading() as connection:
            return erasing.own_data(connection, rater_id)

    def preview_erasure(self, rater_id: str, *, judgments: bool) -> Erasure:
        """What `erase_rater` would do. Raises RefusedError if there is no such person."""
        with self.reading() as connection:
            return erasing.preview(connection, rater_id, judgments=judgments)

    def erase_rater(self, rater_id: str, *, judgments: bool, by: str | None = None) -> Erasure:
        """Erase a person's data: only the pseudonym stays. An interrupted erasure is completed by another call.

        Args:
            judgments: reject their judgments too, remove the texts they wrote, and withdraw the pairs of their
                conversations; otherwise the judgments stay under the pseudonym.

        Raises:
            RefusedError: there is no such person, it is the lead who asks, or the campaign would have no account left.
        """
        self.transact(lambda tx: erasing.begin(tx, rater_id, by))
        rejected = 0
        if judgments:
            with self.reading() as connection:
                ids, pairs = (
                    erasing.judgment_ids(connection, rater_id),
                    erasing.conversation_pairs(connection, rater_id),
                )
            if pairs:
                self.withdraw_pairs(pairs, ERASED, by)
            for n in range(0, len(ids), rejecting.MOST_TOGETHER):
                part = ids[n : n + rejecting.MOST_TOGETHER]
                rejected += self.transact(partial(rejecting.reject, judgment_ids=part, reason=ERASED, by=by))
        with self.reading() as connection:
            redactions = erasing.events_to_redact(connection, rater_id, judgments=judgments)
        done = self.transact(lambda tx: erasing.erase(tx, rater_id, by, judgments=judgments, redactions=redactions))
        self._overwrite_free_pages()
        return replace(done, judgments=rejected, conversations=len(pairs) if judgments else done.conversations)

    def inactive_raters(self, days: int) -> list[str]:
        """Ids of people, except leads, whose accounts are older than `days` days and who have not worked since."""
        since = (self._clock() if self._clock else 0) - days * 86_400_000
        with self.reading() as connection:
            return erasing.inactive(connection, since)

    def _overwrite_free_pages(self) -> None:
        """Rewrite a SQLite file: its free pages and its log may still contain deleted data."""
        if self._turn is None:
            return
        with self._turn, self.reading_once() as connection:
            connection.exec_driver_sql("VACUUM")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    # --- judging -------------------------------------------------------------------------------------------------------

    def claim(self, rater_id: str, holding: Sequence[str] = ()) -> Assignment | None:
        """The rater's next item: an unanswered one, or a new one; None if nothing is left for them.

        Args:
            holding: items that the client already has, which are skipped.

        Raises:
            RefusedError: there is no such rater, or they are disabled.
        """
        return self.transact(lambda tx: assigning.claim(tx, self.rules, rater_id, holding), durable=False)

    def submit(self, rater_id: str, submission: Submission) -> StoredJudgment:
        """Store a judgment. On return, it is on disk.

        Raises:
            RefusedError: the item is not this rater's, is already judged, or its lease expired and other raters took it.
        """
        return self.transact(lambda tx: judging.submit(tx, self.rules, rater_id, submission))

    def submit_and_claim(
        self, rater_id: str, submission: Submission, holding: Sequence[str] = ()
    ) -> tuple[StoredJudgment, Assignment | None]:
        """`submit`, then `claim`, in one transaction."""
        return self.transact(lambda tx: self.submit_and_claim_in(tx, rater_id, submission, holding))

    def submit_and_claim_in(
        self, tx: Transaction, rater_id: str, submission: Submission, holding: Sequence[str] = ()
    ) -> tuple[StoredJudgment, Assignment | None]:
        """`submit_and_claim` in an existing transaction."""
        rater = assigning.active_rater(tx.connection, rater_id)
        stored = judging.submit_for(tx, self.rules, rater, submission)
        if self.rules.qualify is not None or self.rules.stop is not None:
            rater = assigning.active_rater(tx.connection, rater_id)  # the judgment may have changed their standing
            return stored, assigning.claim_for(tx, self.rules, rater, holding)
        counted = rater if stored.replayed else rater._replace(judged=rater.judged + 1)
        return stored, assigning.claim_for(tx, self.rules, counted, holding)

    def amend(self, rater_id: str, judgment_id: str, client_id: str, answer: Answer) -> StoredJudgment:
        """Replace a judgment's answer; the log keeps both.

        Raises:
            RefusedError: it is not theirs, or was undone.
        """
        return self.transact(lambda tx: judging.amend(tx, self.rules, rater_id, judgment_id, client_id, answer))

    def undo(self, rater_id: str, judgment_id: str) -> Assignment:
        """Undo a judgment: the rater gets the pair back, with the same sides and the old answer as its draft.

        Raises:
            RefusedError: it is not theirs, or was already undone.
        """
        return self.transact(lambda tx: judging.undo(tx, self.rules, rater_id, judgment_id))

    def save_draft(self, rater_id: str, item_id: str, draft: Draft) -> None:
        """Store a draft and renew its lease.

        Raises:
            RefusedError: the item is not theirs to judge.
        """
        self.transact(lambda tx: judging.save_draft(tx, self.rules, rater_id, item_id, draft))

    def mark_shown(self, rater_id: str, item_id: str, client_at_ms: int | None = None) -> None:
        """The pair is on the rater's screen. Raises RefusedError if it is not theirs to judge."""
        self.transact(lambda tx: judging.mark_shown(tx, self.rules, rater_id, item_id, client_at_ms), durable=False)

    def last_judgment(self, rater_id: str) -> str | None:
        """The id of the rater's latest current judgment."""
        with self.reading() as connection:
            row = st.LAST_JUDGMENT.one(connection, rater=rater_id)
        return row.id if row else None

    def judged_assignment(self, rater_id: str, judgment_id: str) -> tuple[Assignment, Judgment]:
        """One of the rater's judgments, and its pair with the sides as judged.

        Raises:
            RefusedError: it is not theirs, or was undone.
        """
        with self.reading() as connection:
            row = st.JUDGMENT.one(connection, judgment=judgment_id, rater=rater_id)
            if row is None:
                raise RefusedError("you have no such judgment")
            assignment = st.ASSIGNMENT.one(connection, assignment=row.assignment_id)
            shown = assigning.load_assignment(connection, self.rules, assignment)
        return shown, read_judgment(row.record)

    # --- disagreements ------------------------------------------------------------------------------------------------

    def disputes(self, lead_id: str, *, limit: int = 50, offset: int = 0, adjudicated: bool = False) -> list[Dispute]:
        """Items that await a lead because raters disagree on them or skipped them; opposite votes come first."""
        with self.reading() as connection:
            return adjudication.disputes(connection, lead_id, limit=limit, offset=offset, adjudicated=adjudicated)

    def draw_review_sample(self, count: int, by: str | None = None) -> int:
        """Draw random pairs on which all raters agree, for leads to review with the disputes; returns how many."""
        return self.transact(lambda tx: adjudication.draw_sample(tx, count, by))

    def feedback(self, rater_id: str, limit: int = 20) -> list[Feedback]:
        """The latest pairs that a lead settled differently from this rater's answer."""
        with self.reading() as connection:
            return adjudication.feedback(connection, rater_id, limit=limit)

    def open_dispute(self, lead_id: str, item_id: str) -> DisputeOpened:
        """An item for a lead to settle. Raises RefusedError if there is no such item."""
        return self.transact(lambda tx: adjudication.open_dispute(tx, self.rules, lead_id, item_id), durable=False)

    def adjudicate(
        self, lead_id: str, submission: Submission, replaces: int | None = adjudication.ANY_EARLIER
    ) -> Judgment:
        """Settle an item. Raises RefusedError if it cannot be settled."""
        return self.transact(lambda tx: adjudication.adjudicate(tx, self.rules, lead_id, submission, replaces))

    def remove_settlement(self, lead_id: str, item_id: str) -> None:
        """Withdraw a settled answer. Raises RefusedError if the item is not settled."""
        self.transact(lambda tx: adjudication.remove_settlement(tx, lead_id, item_id))

    def adjudications(self) -> list[Judgment]:
        """The leads' settled answers; `judgments` does not contain them."""
        with self.reading() as connection:
            return list(adjudication.adjudications(connection))

    def exported_adjudications(self) -> list[ExportedJudgment]:
        """`adjudications`, each with its time and its batch."""
        with self.reading() as connection:
            rows = adjudication.adjudication_rows(connection)
        return [contents.as_settled(row) for row in rows]

    # --- finding and rejecting ------------------------------------------------------------------------------------------

    def find(self, search: Search, *, after: int = -1, limit: int = 50) -> SearchPage:
        """A page of the items that match a search, in campaign order; `after`: the previous page's `after`."""
        with self.reading() as connection:
            return finding.find(connection, search, after=after, limit=limit)

    def open_item(self, item_id: str) -> ItemOpened:
        """An item, all its judgments, and its history. Raises RefusedError if there is no such item."""
        with self.reading() as connection:
            return finding.open_item(connection, item_id)

    def judgments_of_rater(self, rater_id: str, *, before: int | None = None, limit: int = 50) -> list[JudgmentEntry]:
        """A rater's judgments, rejected ones too, latest first; `before`: the `seq` of the previous page's last one."""
        with self.reading() as connection:
            return finding.judgments_of_rater(connection, rater_id, before=before, limit=limit)

    def preview_rejection(self, selection: Selection) -> Rejection:
        """The effect of rejecting a selection. Raises RefusedError if it selects no judgment."""
        with self.reading() as connection:
            return rejecting.preview(connection, selection)

    def reject(self, selection: Selection, reason: str, by: str | None = None, *, again: bool = False) -> int:
        """Reject judgments: they count nowhere, and other raters get their pairs. Returns how many.

        Args:
            again: their own raters may judge the pairs again, if no one else does first.

        Raises:
            RefusedError: it selects no judgment.
        """
        with self.reading() as connection:
            ids = rejecting.select_ids(connection, selection)
        rejected = 0
        for n in range(0, len(ids), rejecting.MOST_TOGETHER):
            part = ids[n : n + rejecting.MOST_TOGETHER]
            rejected += self.transact(partial(rejecting.reject, judgment_ids=part, reason=reason, by=by, again=again))
        return rejected

    def take_back_rejections(self, judgment_ids: Sequence[str], by: str | None = None) -> tuple[int, int]:
        """Take rejections back: the judgments count again. Returns (taken back, still rejected); a judgment stays
        rejected if its rater has judged the pair again."""
        return self.transact(lambda tx: rejecting.take_back(tx, judgment_ids, by))

    def rejections_of_rater(self, rater_id: str, limit: int = 50) -> list[JudgmentEntry]:
        """A rater's rejected judgments, latest first."""
        with self.reading() as connection:
            return finding.rejections_of_rater(connection, rater_id, limit=limit)

    # --- counts -------------------------------------------------------------------------------------------------------

    def judged_by(self, rater_id: str) -> int:
        """Number of a rater's current judgments."""
        with self.reading_once() as connection:
            return counts.judged_by(connection, rater_id)

    def work_since(self, rater_id: str, since_ms: int) -> Work:
        """A rater's work since the hour that contains `since_ms`."""
        with self.reading() as connection:
            return counts.work_since(connection, rater_id, since_ms)

    def hours_since(self, rater_id: str, since_ms: int) -> dict[int, Work]:
        """A rater's work by hour since the one that contains `since_ms`."""
        with self.reading() as connection:
            return counts.hours_since(connection, rater_id, since_ms)

    def gold_agreement(self, rater_id: str, *, before_ms: int | None = None) -> tuple[int, int]:
        """(right, n) of the rater's judgments of gold items, all or those before a time."""
        with self.reading() as connection:
            return counts.gold_agreement(connection, rater_id, before_ms)

    def judged(self) -> int:
        """Number of current judgments."""
        with self.reading_once() as connection:
            return counts.judged(connection)

    def gold_agreements(self) -> dict[str, tuple[int, int]]:
        """(right, n) of every rater who has judged gold items."""
        with self.reading() as connection:
            return counts.gold_agreements(connection)

    def history(self, rater_id: str, *, before: int | None = None, limit: int = 50) -> list[PastJudgment]:
        """The rater's current judgments, latest first; `before`: the `seq` of the previous page's last one."""
        with self.reading() as connection:
            return counts.history(connection, rater_id, before, limit)

    def status(self) -> dict[str, Any]:
        """Counts of everything, and the head of the log."""
        with self.reading() as connection:
            return {"store": self.url, **counts.status(connection)}

    def head(self) -> str:
        """The hash of the log's last event: it changes with every event."""
        with self.reading() as connection:
            return contents.head(connection)

    def judged_by_day(self) -> dict[str, int]:
        """Current judgments by UTC day."""
        with self.reading() as connection:
            return counts.judged_by_day(connection)

    def judged_since(self, at_ms: int) -> tuple[int, int]:
        """Judgments since the hour that contains `at_ms`, and the number of raters who made them."""
        with self.reading() as connection:
            return counts.judged_since(connection, at_ms)

    # --- reading -------------------------------------------------------------------------------------------------------

    def pairs(self, *, withdrawn: bool = False) -> list[Pair]:
        """All pairs, in the order they were added; `withdrawn`: with those withdrawn. Single answers are not pairs."""
        return [one for one in self._records(withdrawn=withdrawn) if not isinstance(one, SingleAnswer)]

    def single_answers(self, *, withdrawn: bool = False) -> list[SingleAnswer]:
        """All single answers, in the order they were added; `withdrawn`: with those withdrawn."""
        return [one for one in self._records(withdrawn=withdrawn) if isinstance(one, SingleAnswer)]

    def _records(self, *, withdrawn: bool) -> list[Pair]:
        with self.reading() as connection:
            return contents.records(connection, withdrawn=withdrawn)

    def judgments(self) -> tuple[list[Judgment], str]:
        """The current judgments of pairs, by pair and rater, except those of withdrawn pairs; and the hash of the log's
        last event at that time."""
        with self.reading() as connection:
            return contents.judgments(connection)

    def judgments_with_criteria(self, limit: int) -> list[Judgment]:
        """The latest judgments that answer aspects or criteria, without gold and repeats, in order."""
        with self.reading() as connection:
            return contents.judgments_with_criteria(connection, limit)

    def exported_judgments(self) -> tuple[list[ExportedJudgment], str]:
        """`judgments`, each with its time, its batch, and whether it is of gold or a repeat."""
        judgments, _, head = self.exported()
        return judgments, head

    def assessments(self) -> list[ExportedAssessment]:
        """The current judgments of single answers, by answer and rater, except those of withdrawn ones."""
        return self.exported()[1]

    def has_labels(self) -> bool:
        """Whether there is anything to export: a judgment or a settled answer of a pair that is not withdrawn."""
        with self.reading() as connection:
            return contents.has_labels(connection)

    def has_single_answers(self) -> bool:
        """Whether any item is a single answer."""
        with self.reading_once() as connection:
            query = sa.select(ITEMS.c.id).where(ITEMS.c.second_id.is_(None)).limit(1)
            return connection.scalar(query) is not None

    def exported(self) -> tuple[list[ExportedJudgment], list[ExportedAssessment], str]:
        """`exported_judgments`, `assessments`, and the hash of the log's last event, all of one snapshot."""
        with self.reading() as connection:
            return contents.exported(connection)


def open_store(url: str, *, create: bool = False) -> Store:
    """Open a label store and migrate it to the current schema. Its times are in milliseconds since 1970, UTC.

    Args:
        url: such as sqlite:///runs/mine/label.sqlite or postgresql+psycopg://…
        create: create the store if there is none.

    Raises:
        StoreError: there is none, or it cannot be opened.
    """
    return Store.open(url, create=create)


def count_kinds(judgments: Sequence[Judgment]) -> dict[str, int]:
    """Number of judgments by kind."""
    return dict(sorted(Counter(judgment.kind for judgment in judgments).items()))

"""Erases the personal data of raters who have not worked for so long, daily while the page is served: `retention_days`.

Their judgments stay, under the pseudonym, as `tiebreak raters erase --inactive-days` leaves them. Leads are excepted.
"""

from __future__ import annotations

import sys
import threading
from types import TracebackType

from sqlalchemy.exc import SQLAlchemyError

from labeling_ui.store.store import Store
from tiebreak.errors import TiebreakError, counted

DAY_SECONDS = 86_400.0


class Retention:
    """The limit on how long personal data are kept, as a context: it ends with the server."""

    def __init__(self, store: Store, days: int, every_seconds: float = DAY_SECONDS) -> None:
        self._store, self._days, self._every = store, days, every_seconds
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="retention")

    def __enter__(self) -> Retention:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                erased = erase_inactive(self._store, self._days)
                if erased:
                    print(f"erased the personal data of {counted(erased, 'rater')} (retention_days: {self._days})")
            except (
                TiebreakError,
                SQLAlchemyError,
            ) as error:  # a full disk, an unreachable database: tried again tomorrow
                print(f"retention_days: nobody was erased: {error}", file=sys.stderr)
            if self._ends.wait(self._every):
                return


def erase_inactive(store: Store, days: int) -> int:
    """Erase everybody but leads who has not worked for this many days; returns how many."""
    ids = store.inactive_raters(days)
    for rater_id in ids:
        store.erase_rater(rater_id, judgments=False)
    return len(ids)

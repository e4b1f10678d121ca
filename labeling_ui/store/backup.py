"""Copies of a label store that are whole: made while it is served, and verified against their own log.

    tiebreak label backup --output FILE --store URL
    tiebreak label restore --backup FILE --store URL

The latest judgments of a SQLite store that is served are in FILE-wal. A copy of FILE alone lacks them and looks intact:
each server leaves a mark in FILE while it serves, by which `verify` knows such a copy.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from labeling_ui.database.errors import StoreError
from labeling_ui.store.store import Store
from labeling_ui.store.transactions import SERVED
from labeling_ui.store.verify import Verification, verify
from tiebreak.errors import counted
from tiebreak.files import flush_to_disk


def back_up(store: Store, target: Path) -> Verification:
    """A verified copy of a SQLite store, which may be served meanwhile.

    Raises:
        StoreError: the store is on a server, the file exists or cannot be written, or the store is damaged.
    """
    source = _file_of(store, "backed up with pg_dump, as deploy/backup.sh does")
    if target.exists():
        raise StoreError(f"{target} exists: give another --output, or move it away")
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)
        with closing(sqlite3.connect(source)) as read, closing(sqlite3.connect(part)) as written:
            read.backup(written)
            written.execute("DELETE FROM settings WHERE name LIKE ?", (f"{SERVED}%",))
            written.commit()
    except (OSError, sqlite3.OperationalError) as error:
        raise StoreError(f"cannot write the backup {target}: {error}. Give another --output") from error
    return _finish(part, target, source)


def restore_backup(backup: Path, store_url: str) -> Verification:
    """Make a store from a backup, which stays as it is.

    Raises:
        StoreError: the backup is damaged or incomplete, or there is a store already.
    """
    url = sa.make_url(store_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        raise StoreError(f"{url.render_as_string()}: a database on a server is restored with pg_restore")
    if not backup.is_file():
        raise StoreError(f"there is no backup {backup}")
    target = Path(url.database)
    for there in (target, *_beside(target, ("-wal", "-shm"))):
        if there.exists():
            raise StoreError(
                f"{there} exists, and would be overwritten: move it away, with {target}-wal and {target}-shm"
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    _remove(part)
    shutil.copyfile(backup, part)
    log = backup.with_name(f"{backup.name}-wal")
    if log.exists():
        shutil.copyfile(log, part.with_name(f"{part.name}-wal"))
    return _finish(part, target, backup)


def _finish(part: Path, target: Path, source: Path) -> Verification:
    """Verify a copy, and give it its name."""
    copied = Store.open(f"sqlite:///{part}")
    try:
        result = verify(copied)
    finally:
        copied.close()
    if result.faults:
        _remove(part)
        listed = "\n".join(f"  {fault}" for fault in result.faults[:20])
        raise StoreError(f"{source}: {counted(len(result.faults), 'error')}; nothing was written\n{listed}")
    flush_to_disk(part)
    part.rename(target)
    flush_to_disk(target.parent)
    _remove(part)
    return result


def _file_of(store: Store, otherwise: str) -> Path:
    database = store.engine.url.database
    if store.engine.dialect.name != "sqlite" or not database:
        raise StoreError(f"{store.url}: a database on a server is {otherwise}")
    return Path(database)


def _beside(file: Path, endings: Sequence[str]) -> list[Path]:
    return [file.with_name(f"{file.name}{ending}") for ending in endings]


def _remove(part: Path) -> None:
    for path in (part, *_beside(part, ("-wal", "-shm", "-journal", ".lock"))):
        path.unlink(missing_ok=True)

"""The order of writers of a SQLite file."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path


class Turn:
    """Orders the writers of a SQLite file, among threads and processes.

    SQLite polls for its write lock, up to 0.1 s at a time, so that one of several busy processes may starve. A kernel lock
    is handed on at once and released when its process dies. It only orders the writers: SQLite's own lock still keeps them
    apart.
    """

    def __init__(self, database: Path) -> None:
        self._threads = threading.Lock()
        self._file = os.open(database.with_name(f"{database.name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)

    def __enter__(self) -> None:
        self._threads.acquire()
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._threads.release()

    def share(self) -> None:
        """Hold the file as one of its servers until `close`. This lock is independent of the writers' lock."""
        fcntl.lockf(self._file, fcntl.LOCK_SH)

    def is_free(self) -> bool:
        """Whether no other process serves the file."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        fcntl.lockf(self._file, fcntl.LOCK_UN)
        return True

    def close(self) -> None:
        with self._threads:
            os.close(self._file)
            self._file = -1

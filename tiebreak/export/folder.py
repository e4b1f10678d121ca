"""A folder that appears whole or not at all, and never in another's place.

It is written under a hidden name beside its own and renamed once it has been checked. A process that was killed leaves the
hidden one, which the next export beside it removes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tiebreak.errors import RunError

UNFINISHED = ".unfinished"


def require_free(folder: Path) -> None:
    """Refuse to write where something is.

    Raises:
        RunError: it is there already.
    """
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise RunError(f"{folder} exists, and nothing is overwritten: give another --output, or move it away")


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A hidden folder to write in, which takes the place of `folder` when the block ends without an error.

    Raises:
        RunError: `folder` exists.
    """
    require_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    hidden = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=UNFINISHED, dir=folder.parent))
    lock = os.open(hidden, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield hidden
        _flush(hidden)
        try:
            hidden.rename(folder)  # fails where a file or a folder with files is by now
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            require_free(folder)
            raise
    finally:
        os.close(lock)
        shutil.rmtree(hidden, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Remains of this folder from killed processes, whose locks the kernel released."""
    for left in folder.parent.glob(f".{folder.name}-*{UNFINISHED}"):
        with suppress(OSError):
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _flush(folder: Path) -> None:
    """Everything in it to the disk, so that a power cut after the rename finds it whole; readable as the user's umask
    has it, where libraries made their files private."""
    readable = ~_umask()
    for path in (*folder.rglob("*"), folder):
        path.chmod((0o777 if path.is_dir() else 0o666) & readable)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

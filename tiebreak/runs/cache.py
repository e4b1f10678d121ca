"""Results of costly batches, kept by content beside a run: another run that computes the same reads them instead.

    runs/quickstart/.cache/3f09….json

An entry's name is a hash of all that decides its content: models and texts by their own hashes, settings, seeds, versions,
device. So an evaluation with one more yardstick samples nothing again. Removing the folder costs time alone.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tiebreak import __version__
from tiebreak.files import write_json
from tiebreak.hashing import hash_json
from tiebreak.runs.run import Run, in_batches, installed_versions

FOLDER = ".cache"


def cached_batches(
    run: Run,
    keys: list[Any],
    batch_size: int,
    compute: Callable[[list[Any], Any], list[Any]],
    what: str,
    parts: Callable[[list[Any]], object],
    title: str = "",
) -> list[Any]:
    """`in_batches`, with each batch taken from the cache if it is there.

    Args:
        parts: all that decides the results of a batch, as JSON, without paths.
    """
    folder = run.folder.resolve().parent / FOLDER

    def through(batch: list[Any], advance: Any) -> list[Any]:
        file = folder / f"{hash_json([__version__, _machine(), parts(batch)])}.json"
        found = _read(file, len(batch))
        if found is None:
            found = compute(batch, advance)
            with contextlib.suppress(OSError):  # a cache that cannot be written costs time alone
                folder.mkdir(exist_ok=True)
                write_json(file, found)
        return found

    return in_batches(run, keys, batch_size, through, what, title)


def _read(file: Path, count: int) -> list[Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, list) and len(found) == count else None


@cache
def _machine() -> tuple[dict[str, str], str]:
    import torch

    return installed_versions(), torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"

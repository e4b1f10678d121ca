"""Keeps the server's memory small: glibc gives each thread an arena of its own, which keeps what the thread has freed.

A server's threads take turns, so a request that needs 40 MB for a moment would in time leave 40 MB in each of them.
"""

from __future__ import annotations

import ctypes

ARENAS = 2
_M_ARENA_MAX = -8
"""glibc's number for the setting (malloc.h)."""


def share_arenas() -> bool:
    """Let all threads of this process allocate from the same few arenas; False where the C library has none."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return bool(mallopt(_M_ARENA_MAX, ARENAS))

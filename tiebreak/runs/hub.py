"""The commit of a hub model, which identifies it: its name does not determine its content."""

from __future__ import annotations

import functools
import re
from pathlib import Path

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@functools.cache
def model_commit(name: str) -> str | None:
    """The hub's newest commit of `owner/name`, or offline the cache's; None if it cannot be determined."""
    if not _NAME.fullmatch(name):
        return None
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE:
        try:
            return str(HfApi().model_info(name, timeout=10).sha)
        except Exception:  # noqa: BLE001 - whatever fails of the network, the cache's is read then
            pass
    cached = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "refs" / "main"
    return cached.read_text(encoding="utf-8").strip() if cached.is_file() else None

"""The licence of each source: as configured, or from the licence file beside it."""

from __future__ import annotations

import re
from pathlib import Path

from sft.configuration import PrepareConfig
from tiebreak.data.sources import split_suffix

LONGEST = 80
_NAMED = re.compile(r"(?:licen[cs]e|copying)", re.IGNORECASE)
_SPDX = re.compile(r"SPDX-License-Identifier:\s*(\S.*)")


def licences_of(config: PrepareConfig) -> dict[str, str]:
    """Source → licence; empty if none is stated."""
    return {
        source: config.licences.get(source) or _beside(source) for source in [*config.prompts, *config.demonstrations]
    }


def _beside(source: str) -> str:
    if source.startswith("hub:"):
        return ""
    path, _ = split_suffix(source)
    folder = path if path.is_dir() else path.parent
    files = sorted(one for one in folder.glob("*") if one.is_file() and _NAMED.match(one.name))
    return _stated(files[0]) if files else ""


def _stated(file: Path) -> str:
    """The SPDX identifier in a licence file, or its first line."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        head = lines.read(4_000)
    if found := _SPDX.search(head):
        return found[1].strip()
    return next((line.strip()[:LONGEST] for line in head.splitlines() if line.strip()), "")

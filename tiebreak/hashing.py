"""Hashes of files and texts, which identify inputs and outputs, and the JSON text that they are made of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_text(text: str) -> str:
    """sha256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_json(value: object) -> str:
    """A short hash of a JSON value, independent of the order of its keys."""
    return hash_text(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str))[:24]


def canonical_json(value: object) -> str:
    """The same text for the same value on every machine."""
    return _CANONICAL.encode(value)

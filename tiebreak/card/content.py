"""The content of a card: facts, each with its manifest and key, and blanks, each with its question.

A fact is never worded from anything else, so that a card claims what a manifest says and no more. Whatever no manifest
can know, such as the purpose of a model, is a blank: its answer comes from the provider, and is marked as theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiebreak.page.numbers import duration, memory, short

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Fact:
    """A value of a manifest."""

    name: str
    value: Any
    run: str
    """the manifest's id"""
    stage: str
    key: str
    """where it is in the manifest, the parts divided by /"""

    @property
    def shown(self) -> str:
        return shown(self.value, self.key)

    @property
    def source(self) -> str:
        """The run as cards name it: its stage and the beginning of its id."""
        return f"{self.stage} {short(self.run)}"


@dataclass(frozen=True)
class Change:
    """A value that is another one in the version before; None where that version, or this one, has none."""

    name: str
    before: Fact | None
    now: Fact | None


@dataclass(frozen=True)
class Blank:
    """A question that no manifest answers."""

    id: str
    question: str


Entry = Fact | Change | Blank


@dataclass(frozen=True)
class Part:
    """A heading with its entries."""

    title: str
    entries: tuple[Entry, ...]
    level: int = 2


def shown(value: Any, key: str = "") -> str:
    """A value as a card prints it; its key says whether it is a time or a size.

    >>> shown(0.123456), shown({"train": 1200, "test": 3}), shown([0.25, 0.5]), shown(True)
    ('0.1235', 'train 1,200, test 3', '0.25 to 0.5', 'yes')
    >>> shown({"prompts": {"train": 9, "test": 3}, "cut_off": 0})
    'prompts (train 9, test 3), cut off 0'
    >>> shown(706.2, "seconds"), shown(2147483648, "peak_memory_bytes")
    ('11 min 46 s', '2.00 GiB')
    >>> shown({"1": 1200, "2": 3}, "guideline_versions")
    'version 1: 1,200, version 2: 3'
    """
    if key in _UNITS:
        return _UNITS[key](value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {_within(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        numbers = len(value) == 2 and all(isinstance(one, float) for one in value)
        return (" to " if numbers else ", ").join(shown(one) for one in value)
    return " ".join(str(value).split())


def _by_version(counts: Mapping[str, int]) -> str:
    return ", ".join(f"version {version}: {count:,}" for version, count in counts.items())


_UNITS: Mapping[str, Callable[[Any], str]] = {
    "seconds": duration,
    "peak_memory_bytes": memory,
    "guideline_versions": _by_version,
}


def _within(value: Any) -> str:
    return f"({shown(value)})" if isinstance(value, Mapping) else shown(value)


def look_up(manifest: Manifest, key: str) -> Any:
    """The value at a key whose parts are divided by /; None if it is not there."""
    found: Any = manifest
    for part in key.split("/"):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


def fact(manifest: Manifest, name: str, key: str) -> Iterator[Fact]:
    """The fact at a key; none if the manifest lacks it or it is empty."""
    value = look_up(manifest, key)
    if value is None or value == {} or value == [] or value == "":
        return
    yield Fact(name, value, str(manifest["id"]), str(manifest["stage"]), key)


def facts(manifests: Sequence[Manifest], name: str, key: str) -> list[Fact]:
    """The fact at a key of each manifest that has it."""
    return [one for manifest in manifests for one in fact(manifest, name, key)]

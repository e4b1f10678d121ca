"""Differences between a recorded configuration and the current one.

Keys that an older version lacks are equal if they have their defaults. Keys that no longer exist are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from tiebreak.config.section import Section


class Difference(NamedTuple):
    """One key (dotted), and its value then and now, as JSON."""

    key: str
    then: Any
    now: Any


def differences(
    then: Mapping[str, Any],
    now: BaseModel,
    *,
    sources_then: frozenset[str] = frozenset(),
    sources_now: frozenset[str] = frozenset(),
    ignored: Sequence[str] = (),
) -> list[Difference]:
    """Every key whose value differs.

    Args:
        then: the recorded configuration, as JSON.
        sources_then, sources_now: paths and names of inputs, which are compared by content, elsewhere.
        ignored: top-level keys that are not compared.
    """
    found = _Comparison(sources_then, sources_now).walk("", then, now)
    return [one for one in found if one.key.partition(".")[0] not in ignored]


_INPUT = object()
"""placeholder of every input's path or name"""


@dataclass(frozen=True)
class _Comparison:
    sources_then: frozenset[str]
    sources_now: frozenset[str]

    def walk(self, key: str, old: Any, new: Any) -> Iterator[Difference]:
        if isinstance(new, BaseModel) and isinstance(old, Mapping):
            yield from self._keys(key, new.upgraded(old) if isinstance(new, Section) else old, new)
        elif isinstance(new, Mapping) and isinstance(old, Mapping) and new.keys() == old.keys():
            for name, value in new.items():
                yield from self.walk(f"{key}.{name}", old[name], value)
        elif isinstance(new, (list, tuple)) and isinstance(old, (list, tuple)) and len(new) == len(old):
            for place, (before, value) in enumerate(zip(old, new, strict=True)):
                yield from self.walk(f"{key}.{place}", before, value)
        else:
            value = to_jsonable_python(new)
            if _without_path(old, self.sources_then) != _without_path(value, self.sources_now):
                yield Difference(key, old, value)

    def _keys(self, key: str, old: Mapping[str, Any], new: BaseModel) -> Iterator[Difference]:
        for name, field in type(new).model_fields.items():
            value, below = getattr(new, name), f"{key}.{name}" if key else name
            if name in old:
                yield from self.walk(below, old[name], value)
            elif field.is_required() or value != field.get_default(call_default_factory=True):
                yield Difference(below, None, to_jsonable_python(value))


def _without_path(value: Any, sources: frozenset[str]) -> Any:
    return _INPUT if isinstance(value, str) and value in sources else value

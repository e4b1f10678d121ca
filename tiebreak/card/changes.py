"""What changed between two versions of a model or of data: settings, data, rows and packages, run by run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from tiebreak.card.content import Change, Fact, Manifest, fact, look_up

_NO_SETTING = ("output", "tracking")
"""keys of a configuration that change no result"""


def changes(before: Sequence[Manifest], now: Sequence[Manifest]) -> list[Change]:
    """The values that differ between the runs behind two versions, in the order of the newer one's stages.

    Runs are compared with those of the same stage: the first with the first, the second with the second. A run without
    a counterpart is a change by itself.
    """
    stages = list(dict.fromkeys(str(one["stage"]) for one in (*now, *before)))
    found: list[Change] = []
    for stage in stages:
        pairs = zip_longest(*([one for one in chain if one["stage"] == stage] for chain in (before, now)))
        for old, new in pairs:
            found += _compared(stage, old, new)
    if before and now:
        found += _differing("packages", "packages", before[-1], now[-1])
    return found


def _compared(stage: str, old: Manifest | None, new: Manifest | None) -> Iterator[Change]:
    if old is None or new is None:
        yield Change(f"{stage}: run", _fact(old, "id"), _fact(new, "id"))
        return
    inputs = {**old["inputs"], **new["inputs"]}
    keys = [*_settings(new["config"]), *_settings(old["config"])]
    for key in dict.fromkeys(key for key in keys if key.partition("/")[0] not in (*inputs, *_NO_SETTING)):
        yield from _differing(f"{stage}: {key.replace('/', '.')}", f"config/{key}", old, new)
    for name, source in inputs.items():
        if source.get("kind") != "run":
            yield from _differing(
                f"{stage}: {name.replace('_', ' ')}, sha256 or version", f"inputs/{name}/id", old, new
            )
    yield from _differing(f"{stage}: rows", "counts", old, new)


def _settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _settings(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}"


def _differing(name: str, key: str, old: Manifest, new: Manifest) -> Iterator[Change]:
    if look_up(old, key) != look_up(new, key):
        yield Change(name, _fact(old, key), _fact(new, key))


def _fact(manifest: Manifest | None, key: str) -> Fact | None:
    return None if manifest is None else next(fact(manifest, "", key), None)

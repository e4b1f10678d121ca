"""Which runs differ in seeds alone, in which keys the others differ, and how all of them are named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.compare.words import label
from evaluation.overview.model import Differences, Group, Spread
from evaluation.overview.reading import RunRecord, is_seed
from tiebreak.hashing import hash_json
from tiebreak.page.numbers import short

MOST_NAMED = 3
"""keys in a group's name"""


def short_names(records: Sequence[RunRecord]) -> dict[str, str]:
    """Run's id → its folder without what all folders share; of a single run, its folder's name."""
    paths = [Path(os.path.abspath(one.folder)) for one in records]
    shared = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return {one.id: path.relative_to(shared).as_posix() for one, path in zip(records, paths, strict=True)}


def whole_config(record: RunRecord) -> dict[str, Any]:
    """A run's keys, and those of every run it was made from, as `STAGE: key`."""
    keys: dict[str, Any] = {}
    for ancestor in ancestors_of(record):
        for key, value in ancestor.config.items():
            keys.setdefault(f"{ancestor.stage}: {key}", value)
    return {**record.config, **keys}


def ancestors_of(record: RunRecord) -> list[RunRecord]:
    """Every run that it was made from, each once, inputs first."""
    found: dict[str, RunRecord] = {}

    def walk(one: RunRecord) -> None:
        for ancestor in one.ancestors.values():
            if ancestor.id not in found:
                walk(ancestor)
                found.setdefault(ancestor.id, ancestor)

    walk(record)
    return list(found.values())


def recipe_key(record: RunRecord, keys_by_run: dict[str, str] | None = None) -> str:
    """A hash of what made a run, seeds and places apart: equal for the seeds of one recipe."""
    keys_by_run = {} if keys_by_run is None else keys_by_run
    if record.id not in keys_by_run:
        inputs = {
            name: recipe_key(record.ancestors[name], keys_by_run) if name in record.ancestors else str(one["id"])
            for name, one in record.inputs().items()
        }
        keys = {key: value for key, value in record.config.items() if not is_seed(key)}
        keys_by_run[record.id] = hash_json({"stage": record.stage, "config": keys, "inputs": inputs})
    return keys_by_run[record.id]


def group_names(records: Sequence[RunRecord]) -> dict[str, str]:
    """Run's id → the name of its group: its stage, and the keys in which groups of the stage differ."""
    keys_by_run: dict[str, str] = {}
    keys = {one.id: recipe_key(one, keys_by_run) for one in records}
    names: dict[str, str] = {}
    for stage in dict.fromkeys(one.stage for one in records):
        firsts = {keys[one.id]: one for one in reversed(records) if one.stage == stage}
        unique_names = _names_of(list(firsts.values())[::-1], stage)
        by_key = dict(zip(list(firsts)[::-1], unique_names, strict=True))
        names |= {one.id: by_key[keys[one.id]] for one in records if one.stage == stage}
    return names


def _names_of(firsts: Sequence[RunRecord], stage: str) -> list[str]:
    title = label(stage)
    if len(firsts) == 1:
        return [title]
    configs = [whole_config(one) for one in firsts]
    keys = [key for key in differing_keys(configs) if not is_seed(key)]
    keys = [key for key in keys if all(key in config for config in configs)]  # not those of a stage that some lack
    own = [key for key in keys if ": " not in key] or keys
    shown = [
        ", ".join(f"{_last(key)} {value_words(config.get(key))}" for key in own[:MOST_NAMED]) for config in configs
    ]
    names = [f"{title}, {one}" if one else title for one in shown]
    again = {name for name in names if names.count(name) > 1}
    seen: dict[str, int] = {}
    unique_names = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique_names.append(f"{name} ({seen[name]})" if name in again else name)
    return unique_names


def _last(key: str) -> str:
    stage, apart, name = key.rpartition(": ")
    name = name.rpartition(".")[2].replace("_", " ")
    return f"{label(stage)}'s {name}" if apart else name


def value_words(value: object) -> str:
    """A key's value in a table or a name."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(value_words, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {value_words(one)}" for key, one in value.items()) or "none"
    return str(value)


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys in which configurations differ, in their order; keys of runs that they were made from, among those that have
    such a run.

    >>> differing_keys([{"a": 1, "ppo: kl_coef": 0.1}, {"a": 2}])
    ['a']
    """
    every = dict.fromkeys(key for config in configs for key in config)
    values = {key: [config.get(key) for config in configs if key in config or ": " not in key] for key in every}
    return [key for key, found in values.items() if any(value != found[0] for value in found)]


def stage_differences(
    records: Sequence[RunRecord], names: Mapping[str, str], groups: Mapping[str, str]
) -> list[Differences]:
    """For each stage its differing keys: its own, those of what its runs were made from, seeds, inputs.

    Stages that differ in more than seeds and inputs come first, and runs of one group stand together.
    """
    tables: list[tuple[bool, Differences]] = []
    for stage in dict.fromkeys(one.stage for one in records):
        mine = sorted((one for one in records if one.stage == stage), key=lambda one: groups[one.id])
        configs = [{**whole_config(one), **_input_rows(one)} for one in mine]
        keys = sorted(differing_keys(configs), key=_rank)
        rows = {key: [config.get(key) for config in configs] for key in keys}
        table = Differences(
            stage=stage,
            runs=[names[one.id] for one in mine],
            differing=_with_seeds_merged(rows),
            shared={key: value for key, value in mine[0].config.items() if key not in keys},
        )
        tables.append((all(_rank(key) > (0, False) for key in keys), table))
    return [table for _, table in sorted(tables, key=lambda one: one[0])]


def _rank(key: str) -> tuple[int, bool]:
    return (3 if key.startswith("input ") else 2 if is_seed(key) else 0, ": " in key)


def _with_seeds_merged(rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Merge the rows of seeds that are the same in several stages, as `tiebreak run --seed` sets them."""
    merged: dict[str, list[Any]] = {}
    seeds: dict[str, list[str]] = {}
    for key, values in rows.items():
        if is_seed(key):
            seeds.setdefault(repr(values), []).append(key)
        else:
            merged[key] = values
    at_end = {key: merged.pop(key) for key in list(merged) if key.startswith("input ")}
    for keys in seeds.values():
        merged[keys[0] if len(keys) == 1 else f"{keys[0]} (and {len(keys) - 1} more seeds)"] = rows[keys[0]]
    return merged | at_end


def make_groups(records: Sequence[RunRecord], names: Mapping[str, str], groups: Mapping[str, str]) -> list[Group]:
    """The groups, each with its figures' mean and spread."""
    found: dict[tuple[str, str], list[RunRecord]] = {}
    for one in records:
        found.setdefault((one.stage, groups[one.id]), []).append(one)
    return [
        Group(
            name=name,
            stage=stage,
            runs=[names[one.id] for one in mine],
            figures={
                key: spread_of(values)
                for key in dict.fromkeys(key for one in mine for key in one.metrics)
                if (values := [one.metrics[key] for one in mine if key in one.metrics])
            },
        )
        for (stage, name), mine in found.items()
    ]


def spread_of(values: Iterable[float]) -> Spread:
    """Mean, smallest and largest value, and sample standard deviation."""
    rows = list(values)
    mean = sum(rows) / len(rows)
    deviation = (sum((v - mean) ** 2 for v in rows) / (len(rows) - 1)) ** 0.5 if len(rows) > 1 else None
    return Spread(mean=mean, low=min(rows), high=max(rows), deviation=deviation, n=len(rows))


def _input_rows(record: RunRecord) -> dict[str, str]:
    return {f"input {name}": short(str(one["id"])) for name, one in record.inputs().items()}

"""Flags that override a configuration file: `--a.b 1 --c x y --d.0.e 2`.

Keys are written with hyphens or underscores. A switch without a value is true; a list takes words or one YAML list; a
section, or an entry of a list of sections, takes its keys one by one, or one YAML mapping. A path of a file that ships with
Tiebreak, such as `configs/shapes/llama-3.1-8b.json`, is found from any folder.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from pydantic import BaseModel

from tiebreak.config.keys import Key, find_key, own_keys, plain_paths
from tiebreak.errors import ConfigError
from tiebreak.shipped import locate_shipped

WRITTEN = ("output", "root")
"""keys that name a folder to write: never a shipped one"""


def group_flags(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """`--a.b 1 --c x y` as (a.b, [1]) and (c, [x, y]). A negative number is a value, not a flag.

    Raises:
        ConfigError: a word without a key.
    """
    key: str | None = None
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            if key is not None:
                yield key, values
            key, joined, value = word[2:].partition("=")
            values = [value] if joined else []
        elif key is None:
            raise ConfigError(f"unexpected argument {word!r}: expected --key value")
        else:
            values.append(word)
    if key is not None:
        yield key, values


def repeated_lists(model: type[BaseModel], given: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Errors of lists that are given in several flags, of which only the last would count."""
    counts = Counter(path_of(model, flag, words) for flag, words in given)
    lists = [path for path, count in counts.items() if count > 1 and (key := find_key(model, path)) and key.is_list]
    return [f"--{path}: given {counts[path]} times: give all of its values at once, as --{path} A B" for path in lists]


def lay_over(values: dict[str, Any], model: type[BaseModel], flag: str, words: list[str]) -> str | None:
    """Apply one flag to `values`; returns the error, if any."""
    path = path_of(model, flag, words)
    key = find_key(model, path)
    if key is None:
        return _retired(model, path) or f"no such key{nearest_flag(model, path)}"
    if key.is_switch and not words:
        words = ["true"]
    if not words or (words == [""] and not key.is_text):
        return "needs a value"
    value = _value_of(key, words)
    return _put(values, model, path.split("."), value if path in WRITTEN else locate_shipped(value))


def _retired(model: type[BaseModel], path: str) -> str | None:
    """The error for a key that other stages have but this one does not read."""
    section, _, name = path.rpartition(".")
    above = find_key(model, section) if section else None
    retired = getattr(above.section, "retired", {}) if above else {}
    return "this stage does not read it; leave it out" if name in retired else None


def path_of(model: type[BaseModel], flag: str, words: list[str]) -> str:
    """The key of a flag, with underscores; for a section given as true, false or nothing, its switch."""
    path = flag if find_key(model, flag) else flag.replace("-", "_")
    key = find_key(model, path)
    switch: str | None = getattr(key.section, "switch", None) if key else None
    return f"{path}.{switch}" if switch and words in ([], ["true"], ["false"]) else path


def _value_of(key: Key, words: list[str]) -> Any:
    parsed = [parse_word(word, is_text=key.is_text) for word in words]
    if len(parsed) > 1 or (key.is_list and not isinstance(parsed[0], list) and parsed[0] is not None):
        return parsed
    return parsed[0]


def parse_word(word: str, is_text: bool = False) -> Any:
    """A word parsed as YAML; a text key keeps it unless it is a list, a mapping or null."""
    if is_text and not word.startswith(("[", "{")) and word not in ("null", "None", "~"):
        return word
    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError:
        return word
    return None if word == "None" else word if isinstance(value, dict) and not word.startswith("{") else value


def _put(values: dict[str, Any], model: type[BaseModel], parts: list[str], value: Any) -> str | None:
    """Write `value` at a path, copying its parents; returns the error, if any."""
    here: Any = values
    for number, part in enumerate(parts[:-1]):
        above = find_key(model, ".".join(parts[: number + 1]))
        inner = _child(here, part)
        if above is not None and above.entries is not None:
            _set_child(here, part, {**(inner if isinstance(inner, dict) else {}), ".".join(parts[number + 1 :]): value})
            return None
        if above is not None and above.item_section is not None and not part.isdecimal():
            inner = list(inner) if isinstance(inner, list) else _default_items(above)
            place = int(parts[number + 1])
            if place > len(inner):
                return f"{'.'.join(parts[: number + 1])} has {len(inner)} entries, so the next is number {len(inner)}"
            if place == len(inner):
                inner.append({})
        else:
            inner = dict(inner) if isinstance(inner, dict) else {}
        _set_child(here, part, inner)
        here = inner
    _set_child(here, parts[-1], value)
    return None


def _default_items(key: Key) -> list[Any]:
    return [one.model_dump(exclude_unset=True) for one in key.default] if isinstance(key.default, list) else []


def _child(here: Any, part: str) -> Any:
    return here[int(part)] if isinstance(here, list) else here.get(part)


def _set_child(here: Any, part: str, value: Any) -> None:
    if isinstance(here, list):
        here[int(part)] = value
    else:
        here[part] = value


def nearest_flag(model: type[BaseModel], path: str) -> str:
    """`; did you mean --…?`, or the list of keys."""
    section, dot, last = path.rpartition(".")
    positive = find_key(model, f"{section}{dot}{last.removeprefix('no_')}")
    if last.startswith("no_") and positive is not None and positive.is_switch:
        return f"; give {as_flag(positive.path)} false"
    near = nearest_path(path, plain_paths(model))
    if near:
        return f"; did you mean {as_flag(near)}?"
    return f"; there are {', '.join(as_flag(key.path) for key in own_keys(model))}"


def nearest_path(path: str, paths: Sequence[str]) -> str | None:
    """The key most like a mistyped one: with the same name in another section, or with a similar name."""
    same_name = [one for one in paths if one.endswith(f".{path}")]
    return next(iter(same_name or difflib.get_close_matches(path, paths, n=1, cutoff=0.5)), None)


def as_flag(path: str) -> str:
    """`training.learning_rate` as `--training.learning-rate`."""
    return f"--{path.replace('_', '-')}"

"""The keys of a configuration class. The flag parser and the help page both read them here, so that they agree.

output                    a key
training.learning_rate    a key of a section
sampling.N.temperature    a key of the sections in a list; N counts from 0
policies.NAME             an entry of a mapping
"""

from __future__ import annotations

import ast
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

ITEM, ENTRY = "N", "NAME"
"""Placeholders for an index in a list and a name in a mapping."""


class NoDefault:
    """The default of a required key."""


REQUIRED = NoDefault()


@dataclass(frozen=True)
class Key:
    """A key, with its default in this stage: a section's default may differ from its class's."""

    path: str
    owner: type[BaseModel]
    name: str
    """name of the owner's field"""
    field: FieldInfo
    default: Any

    @property
    def options(self) -> tuple[Any, ...]:
        """The types that its value may have, except None."""
        return tuple(option for option in _options(self.field.annotation) if option is not types.NoneType)

    @property
    def is_optional(self) -> bool:
        return types.NoneType in _options(self.field.annotation)

    @property
    def section(self) -> type[BaseModel] | None:
        """The class of a section, or None."""
        return next((o for o in self.options if isinstance(o, type) and issubclass(o, BaseModel)), None)

    @property
    def item_section(self) -> type[BaseModel] | None:
        """The class of the sections in a list, or None."""
        items = [typing.get_args(o)[0] for o in self.options if typing.get_origin(o) is list]
        return next((item for item in items if isinstance(item, type) and issubclass(item, BaseModel)), None)

    @property
    def is_list(self) -> bool:
        """Whether a single word is a list of one; a key that takes a word or a list takes the word."""
        return bool(self.options) and all(typing.get_origin(o) is list for o in self.options)

    @property
    def takes_list(self) -> bool:
        return any(typing.get_origin(o) is list for o in self.options)

    @property
    def entries(self) -> Any:
        """The type of a mapping's values, without null, or None."""
        values = next((typing.get_args(o)[1] for o in self.options if typing.get_origin(o) is dict), None)
        kinds = [kind for kind in _options(values) if kind is not types.NoneType]
        return kinds[0] if len(kinds) == 1 else values

    @property
    def has_optional_entries(self) -> bool:
        """Whether a mapping's values may be null."""
        return any(
            typing.get_origin(o) is dict and types.NoneType in _options(typing.get_args(o)[1]) for o in self.options
        )

    @property
    def is_text(self) -> bool:
        """Whether a word is taken literally: `--guideline-version 2` is not a number."""
        return bool(self.options) and (self.entries is str or all(o in (str, list[str]) for o in self.options))

    @property
    def is_switch(self) -> bool:
        return self.options == (bool,)

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words, if they are limited."""
        inner = [typing.get_args(o)[0] if typing.get_origin(o) is list else o for o in self.options]
        if any(typing.get_origin(one) is not Literal for one in inner):
            return ()
        return tuple(str(word) for one in inner for word in typing.get_args(one))

    @property
    def limits(self) -> str:
        """The range of its value, as `≥ 0, < 1`."""
        signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
        found = [(signs[a], getattr(m, a)) for m in self.field.metadata for a in signs if hasattr(m, a)]
        return ", ".join(f"{sign} {limit:.12g}" for sign, limit in found)

    @property
    def meaning(self) -> str:
        """The docstring below the field, on one line."""
        for owner in self.owner.__mro__:
            found = _docstrings(owner.__module__).get((owner.__name__, self.name))
            if found:
                return found
        return ""


def own_keys(model: type[BaseModel], defaults: BaseModel | None = None, prefix: str = "") -> Iterator[Key]:
    """The keys of a class, without those inside its sections."""
    for name, field in model.model_fields.items():
        if defaults is not None:
            default = getattr(defaults, name)
        else:
            default = REQUIRED if field.is_required() else field.get_default(call_default_factory=True)
        yield Key(prefix + (field.alias or name), model, name, field, default)


def keys_of(model: type[BaseModel], defaults: BaseModel | None = None, prefix: str = "") -> Iterator[Key]:
    """Every key, each section before the keys inside it."""
    for key in own_keys(model, defaults, prefix):
        yield key
        if key.section is not None:
            inside = key.default if isinstance(key.default, BaseModel) else None
            yield from keys_of(key.section, inside, f"{key.path}.")
        elif key.item_section is not None:
            yield from keys_of(key.item_section, None, f"{key.path}.{ITEM}.")


def find_key(model: type[BaseModel], path: str) -> Key | None:
    """The key at a dotted path; inside a mapping, the mapping's key."""
    by_path = {key.path: key for key in keys_of(model)}
    parts = path.split(".")
    listed = ""
    for number, part in enumerate(parts):
        above = by_path.get(listed)
        if above is not None and above.entries is not None:
            return above if all(parts[number:]) else None
        is_item = above is not None and above.item_section is not None and part.isdecimal()
        listed = f"{listed}.{ITEM if is_item else part}" if listed else part
        if listed not in by_path and not is_item:
            return None
    return by_path.get(listed)


def plain_paths(model: type[BaseModel]) -> list[str]:
    """The keys' paths except those inside lists: candidates for a mistyped key."""
    return [key.path for key in keys_of(model) if f".{ITEM}." not in key.path]


def _options(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return typing.get_args(annotation)
    return (annotation,)


@cache
def _docstrings(module: str) -> dict[tuple[str, str], str]:
    """(class, field) → the docstring below the field, of all classes of a module."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, KeyError):  # no source available
        return {}
    found = {}
    for owner in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for field, below in zip(owner.body, owner.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[owner.name, field.target.id] = " ".join(str(below.value.value).split())
    return found

"""Compares the JSON of a reply with the type that `tiebreak.client` gives it."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from fastapi import FastAPI
from fastapi.routing import APIRoute

from tiebreak.client import Client


def reply_faults(app: FastAPI, method: str, path: str, reply: Any) -> list[str]:
    """Where a reply is not what the client's method says; of a route that the client has no method for, nothing."""
    for route in app.routes:
        if isinstance(route, APIRoute) and method in route.methods and route.path_regex.match(path):
            name = route.endpoint.__name__
            called = getattr(Client, f"lead_{name}" if path.startswith("/api/lead/") else name, None)
            return [] if called is None else faults(reply, get_type_hints(called)["return"], f"{method} {path}")
    return []


def faults(value: Any, kind: Any, where: str) -> list[str]:
    """Where a value is not of a type; unknown keys of an object are faults."""
    origin, inside = get_origin(kind), get_args(kind)
    if kind is Any:
        return []
    if is_typeddict(kind):
        return _object_faults(value, kind, where)
    if origin in (Union, UnionType):
        found = [faults(value, one, where) for one in inside]
        return [] if [] in found else min(found, key=lambda some: (len(some), some))
    if origin is Literal:
        return [] if value in inside else [f"{where}: {value!r} is none of {inside}"]
    if origin is list and isinstance(value, list):
        return [fault for n, one in enumerate(value) for fault in faults(one, inside[0], f"{where}[{n}]")]
    if origin is dict and isinstance(value, dict):
        return [fault for name, one in value.items() for fault in faults(one, inside[1], f"{where}.{name}")]
    plain = {float: (int, float), NoneType: (NoneType,)}.get(kind, (kind,))
    return [] if type(value) in plain else [f"{where}: {type(value).__name__}, not {kind}"]


def _object_faults(value: Any, kind: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: {type(value).__name__}, not {kind.__name__}"]
    hints = get_type_hints(kind, include_extras=True)
    if kind.__name__ == "Figures":  # its figures are many, and listed in docs/metrics.md
        value = {name: one for name, one in value.items() if name in hints}
    found = [f"{where}: {name} is not in {kind.__name__}" for name in value.keys() - hints.keys()]
    for name, hint in hints.items():
        optional = get_origin(hint) is NotRequired
        if name in value:
            found += faults(value[name], get_args(hint)[0] if optional else hint, f"{where}.{name}")
        elif not optional:
            found.append(f"{where}: {name} is missing")
    return found

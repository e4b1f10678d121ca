"""Writes the methods of `tiebreak.client` from the HTTP API's OpenAPI description.

python -m labeling_ui.web.client_types      # after a change of the API
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from labeling_ui.web.server import ROUTERS

FILE = Path(__file__).parents[2] / "tiebreak" / "client" / "operations.py"
_HEAD = '''"""The label server's API as methods, written by `python -m labeling_ui.web.client_types`."""

# ruff: noqa: E501

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict
from urllib.parse import quote

from tiebreak.client.connection import Connection

'''
_TYPES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}


def main() -> None:
    """Write the file."""
    FILE.write_text(client_source(), encoding="utf-8")


def client_source() -> str:
    """The text of `tiebreak/client/operations.py`."""
    app = FastAPI()
    for router in ROUTERS:
        app.include_router(router)
    described = app.openapi()
    schemas = described["components"]["schemas"]
    operations = [
        (method, path, about) for path, methods in described["paths"].items() for method, about in methods.items()
    ]
    parts = [part for *_, about in operations for part in (about.get("requestBody"), about["responses"].get("200"))]
    used = sorted({name for part in parts for name in _refs(part, schemas)})
    classes = [line for name in used for line in _typed_dict(name, schemas[name])]
    methods = [line for operation in operations for line in _method(*operation)]
    names = [line.split("(")[0] for line in methods if line.startswith("    def ")]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two operations of the API have one name: {repeated}")
    head = ["class Operations(Connection):", '    """One method for each operation."""', ""]
    return _HEAD + "\n".join([*classes, *head, *methods]).rstrip() + "\n"


def _refs(part: object, schemas: Mapping[str, Any]) -> Iterator[str]:
    """All schemas that a part of the description refers to, directly or not."""
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(part)):
        yield name
        yield from _refs(schemas[name], schemas)


def _typed_dict(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"class {name}(TypedDict):", f'    """{_sentence(schema.get("description", name))}"""', "")
    required = schema.get("required", [])
    for field, about in schema.get("properties", {}).items():
        kind = _type(about)
        yield f"    {field}: {kind if field in required else f'NotRequired[{kind}]'}"
    yield ""


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type(one) for one in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return f"Literal[{', '.join(json.dumps(value) for value in values)}]"
    if schema.get("type") == "array":
        return f"list[{_type(schema.get('items', {}))}]"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"dict[str, {_type(values)}]" if isinstance(values, dict) else "dict[str, Any]"
    return _TYPES.get(schema.get("type", ""), "Any")


def _method(method: str, path: str, about: Mapping[str, Any]) -> Iterator[str]:
    suffix = re.sub(r"\W", "_", f"{path}_{method}")
    name = about["operationId"].removesuffix(suffix)
    name = f"lead_{name}" if path.startswith("/api/lead/") else name
    given = [one for one in about.get("parameters", []) if one["in"] != "header"]
    content = (about.get("requestBody") or {}).get("content", {})
    arguments, query = ["self"], []
    for one in sorted(given, key=lambda one: (one["in"] != "path", not one.get("required"))):
        kind = _type(one["schema"])
        if one["in"] == "path":
            arguments.append(f"{one['name']}: {kind}")
            continue
        query.append(f'"{one["name"]}": {one["name"]}')
        default = "" if one.get("required") else f" = {one['schema'].get('default')!r}"
        arguments += ["*"] if "*" not in arguments else []
        arguments.append(f"{one['name']}: {kind}{default}")
    rest = f", query={{{', '.join(query)}}}" if query else ""
    if "application/json" in content:
        arguments.insert(
            1 + sum(one["in"] == "path" for one in given), f"body: {_type(content['application/json']['schema'])}"
        )
        rest += ", body=body"
    elif content:
        arguments.insert(1, "content: bytes")
        rest += ", content=content"
    where = re.sub(r"\{(\w+)\}", r"{quote(str(\1), safe='')}", path)
    kind = _reply(about)
    yield f"    def {name}({', '.join(arguments)}) -> {kind}:"
    yield from textwrap.indent(_docstring(about), "        ").splitlines()
    yield f'        reply: {kind} = self.request("{method.upper()}", {"f" if where != path else ""}"{where}"{rest})'
    yield "        return reply"
    yield ""


def _reply(about: Mapping[str, Any]) -> str:
    """The type of a reply; a file's is bytes."""
    schema = about["responses"]["200"].get("content", {}).get("application/json", {}).get("schema")
    return _type(schema) if schema else "bytes"


def _docstring(about: Mapping[str, Any]) -> str:
    return f'"""{_sentence(about.get("description") or about["summary"])}"""'


def _sentence(text: str) -> str:
    """The first paragraph, on one line."""
    return " ".join(text.split("\n\n")[0].split()).replace('"', "'")


if __name__ == "__main__":
    main()

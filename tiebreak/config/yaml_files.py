"""YAML files of keys and values: configurations and accelerate files, a user's or shipped with Tiebreak."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from tiebreak.errors import ConfigError
from tiebreak.shipped import find_shipped, locate_shipped


def lines_of(path: Path) -> dict[str, int]:
    """The line of every key in a YAML file."""
    lines: dict[str, int] = {}

    def walk(node: yaml.Node | None, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines.setdefault(f"{prefix}{key.value}", key.start_mark.line + 1)
                walk(value, f"{prefix}{key.value}.")
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                lines.setdefault(f"{prefix}{number}", item.start_mark.line + 1)
                walk(item, f"{prefix}{number}.")

    walk(yaml.compose(find_shipped(path).read_text(encoding="utf-8"), yaml.SafeLoader), "")
    return lines


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file with a mapping, also one that ships with Tiebreak; errors name the file and the line."""
    found = find_shipped(path)
    try:
        value = yaml.load(found.read_text(encoding="utf-8"), _StrictLoader)
    except FileNotFoundError:
        beside = [file.name for file in find_shipped(path.parent).glob("*.yaml")]
        near = difflib.get_close_matches(path.name, beside, n=1)
        raise ConfigError(
            f"no such configuration file: {path}" + (f"; is it {path.parent / near[0]}?" if near else "")
        ) from None
    except IsADirectoryError:
        inside = ", ".join(sorted(file.name for file in found.glob("*.yaml"))[:10])
        raise ConfigError(f"{path} is a folder: name a file" + (f" in it: {inside}" if inside else "")) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: invalid YAML: {error}") from error
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{path}: must be a mapping of keys to values")
    return value if found == path else {key: locate_shipped(inner) for key, inner in value.items()}


class _StrictLoader(yaml.SafeLoader):
    """Refuses duplicate keys: YAML would silently use the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                message = f"the key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
        return super().construct_mapping(node, deep)

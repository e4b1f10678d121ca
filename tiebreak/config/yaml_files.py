"""YAML files of keys and values: configurations and accelerate files, a user's or shipped with Tiebreak."""

from __future__ import annotations

import difflib
from collections import Counter
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
    """A YAML file with a mapping, also one that ships with Tiebreak; errors name the file and the line.

    Raises:
        ConfigError: it is missing, too large or not YAML, or its aliases repeat each other without bound.
    """
    found = find_shipped(path)
    try:
        value = _value_of(_text_of(found))
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
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply, or an alias (*) is inside its own anchor (&)") from None
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{path}: must be a mapping of keys to values")
    return value if found == path else {key: locate_shipped(inner) for key, inner in value.items()}


LARGEST_BYTES = 16 * 1024**2
MOST_VALUES = 100_000
"""in a configuration, counting what an alias repeats each time: a few lines of aliases can expand to billions"""


def _text_of(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise ConfigError(f"{path}: larger than {LARGEST_BYTES // 1024**2} MB, so it is no configuration")
    return content.decode("utf-8")


def _value_of(text: str) -> Any:
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_values(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases expand to more than {MOST_VALUES:,} values: write them out, or fewer")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values in a node, those of aliases at each place.

    Args:
        known: the numbers of nodes that were counted before, by their identity.

    Raises:
        RecursionError: the node is in itself, or nested too deeply.
    """
    if id(node) not in known:
        inside: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inside = node.value
        elif isinstance(node, yaml.MappingNode):
            inside = [value for _, value in node.value]
        known[id(node)] = 1 + sum(_count_values(one, known) for one in inside)
    return known[id(node)]


class _StrictLoader(yaml.SafeLoader):
    """Refuses duplicate keys: YAML would silently use the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        counts = Counter(keys)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and counts[key.value] > 1:
                message = f"the key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
        return super().construct_mapping(node, deep)

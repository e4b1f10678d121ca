"""User's Python functions, named `package.module:function`: yardsticks and rewards.

They are looked up beside the configuration file, in the current folder and on Python's path, in this order, and are
validated before a stage does any work.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from tiebreak.errors import ConfigError
from tiebreak.shipped import packaged


@dataclass(frozen=True)
class UserFunction:
    """A user's function and its source file, whose content is part of a run's identity."""

    name: str
    """as in the configuration"""
    call: Callable[..., Any]
    file: str | None
    """None: built in"""


def load_function(name: str, key: str, beside: Path | None = None) -> UserFunction:
    """The function `package.module:function`.

    Args:
        key: the configuration's key that names it, for messages.
        beside: the folder of the configuration file.

    Raises:
        ConfigError: no such module or function, or its module cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    if "/" in module_name or module_name.endswith(".py"):
        stem = module_name.removesuffix(".py").rpartition("/")[2]
        raise ConfigError(
            f"{key}: {name} names a file: name its module, {stem}:{attribute}, and put {stem}.py beside the "
            "configuration file or in the current folder"
        )
    folders = [folder.resolve() for folder in (beside, Path.cwd()) if folder is not None]
    try:
        module = _import(module_name, folders, key)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(_not_found(name, key, error.name, beside)) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{key}: importing {module_name} for {name} raised {_described(error)}") from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            where = getattr(module, "__file__", None) or "built in"
            raise ConfigError(f"{key}: {module_name} has no function {attribute!r}{_near(module, part)} ({where})")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{key}: {name} is not a function, but a {type(found).__name__}")
    return UserFunction(name, found, _source_file(found) or getattr(module, "__file__", None))


def load_shipped_function(file: str, attribute: str) -> UserFunction:
    """A function of a file that ships with Tiebreak, never of the current folder."""
    path = packaged(file)
    name = f"tiebreak_{path.parent.name}_{path.stem}"
    if name not in sys.modules:
        spec = spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return UserFunction(f"{path.stem}:{attribute}", getattr(sys.modules[name], attribute), str(path))


def require_arguments(function: UserFunction, key: str, example: str, *positional: object, **named: object) -> None:
    """Refuse a function that does not accept the stage's call.

    Args:
        example: the call, for the message.

    Raises:
        ConfigError: its signature has other arguments, or it is asynchronous.
    """
    if inspect.iscoroutinefunction(function.call):
        raise ConfigError(f"{key}: {function.name} is asynchronous: give a plain function, called as {example}")
    try:
        signature = inspect.signature(function.call)
    except (TypeError, ValueError):  # built-in functions may have no signature
        return
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        shown = f"{function.name.rpartition(':')[2]}{signature}"
        raise ConfigError(f"{key}: {shown} cannot be called as {example}: {error}") from error


def where_raised(function: Callable[..., Any], error: BaseException) -> str:
    """`FILE, line N` of an exception: the last line in the function's own file, or the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == _source_file(function)]
    if not frames:  # an exception without a traceback
        return "no line"
    last = (own or frames)[-1]
    return f"{last.filename}, line {last.lineno}"


def _import(module_name: str, folders: list[Path], key: str) -> ModuleType:
    """A module from one of the folders, otherwise an installed one.

    Raises:
        ConfigError: the name of a file in one of the folders is taken by another module.
    """
    top = module_name.partition(".")[0]
    for folder in folders:
        spec = PathFinder.find_spec(top, [str(folder)])
        if spec is None or spec.origin is None:  # not found, or a folder without __init__.py
            continue
        _forget_older(top, Path(spec.origin), key)
        with _first_on_path(folder):
            module = importlib.import_module(module_name)
        setattr(sys.modules[top], _SOURCE, Path(spec.origin).read_bytes())
        return module
    with _last_on_path(folders):
        return importlib.import_module(module_name)


_SOURCE = "__tiebreak_source__"
"""attribute of a user's module with the source it was imported from: an edited file is imported again"""


def _forget_older(top: str, file: Path, key: str) -> None:
    loaded = sys.modules.get(top)
    if loaded is None:
        return
    source = getattr(loaded, _SOURCE, None)
    same_file = getattr(loaded, "__file__", None) == str(file)
    if source is None and not same_file:
        where = getattr(loaded, "__file__", None) or "built in"
        raise ConfigError(f"{key}: the module name {top!r} of {file} is taken by {where}: rename the file")
    if source is not None and not (same_file and source == file.read_bytes()):
        for name in [one for one in sys.modules if one == top or one.startswith(f"{top}.")]:
            del sys.modules[name]


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    """Puts the folder first on the path; afterwards last, for later imports of the module.

    No byte code is written: Python compares times in seconds, and a file may be edited twice within one.
    """
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


@contextmanager
def _last_on_path(folders: list[Path]) -> Iterator[None]:
    """Appends the folders to the path, for packages without __init__.py."""
    sys.path += [str(folder) for folder in folders if str(folder) not in sys.path]
    importlib.invalidate_caches()
    yield


def _source_file(found: Any) -> str | None:
    try:
        return inspect.getsourcefile(inspect.unwrap(found))
    except TypeError:  # built in, or an instance of a class
        return None


def _described(error: BaseException) -> str:
    """Type and message, with file and line."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def _not_found(name: str, key: str, missing: str | None, beside: Path | None) -> str:
    module_name = name.partition(":")[0]
    if missing not in (module_name, *_parents(module_name)):
        return f"{key}: importing {module_name} for {name} needs the module {missing!r}: install it"
    places = [f"beside the configuration file ({beside.resolve()})"] if beside is not None else []
    places += [f"in the current folder ({Path.cwd()})", "among the installed packages"]
    return (
        f"{key}: no module {missing!r} for {name}, neither {', nor '.join(places)}: put "
        f"{module_name.replace('.', '/')}.py in one of them"
    )


def _parents(module_name: str) -> list[str]:
    parts = module_name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _near(module: Any, attribute: str) -> str:
    import difflib

    near = difflib.get_close_matches(attribute, [n for n in vars(module) if not n.startswith("_")], n=1)
    return f"; is it {near[0]!r}?" if near else ""

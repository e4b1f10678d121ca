"""Files that ship with Tiebreak, `configs/` and `data/`: the current folder's first, then the package's.

In a checkout they are beside the packages; the wheel has them in `tiebreak/shipped/` (see setup.py). So
`tiebreak run --config configs/quickstart/pipeline.yaml` and `--accelerate zero2` work in any folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
FOLDERS = ("configs", "data")


def find_shipped(path: Path) -> Path:
    """The file itself if it exists; otherwise the shipped file with that name; otherwise the path unchanged."""
    if path.parts[:1] not in [(folder,) for folder in FOLDERS] or path.exists():
        return path
    return next((root / path for root in _roots() if (root / path).exists()), path)


def packaged(file: str) -> Path:
    """The file of this installation, never of the current folder.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    found = next((root / file for root in _roots() if (root / file).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{file} is missing from this installation of Tiebreak ({PACKAGE}): install it again")
    return found


def locate_shipped(value: Any) -> Any:
    """Values of a shipped configuration or of flags, with the paths of shipped files resolved."""
    if isinstance(value, dict):
        return {key: locate_shipped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [locate_shipped(inner) for inner in value]
    if isinstance(value, str) and value.startswith(tuple(f"{folder}/" for folder in FOLDERS)):
        found = find_shipped(Path(value))
        return value if found == Path(value) else str(found)  # any other text keeps every character, URLs above all
    return value


def shipped_names(folder: Path, pattern: str) -> list[str]:
    """Names of a folder's files, in the current folder and the shipped one, without their suffix."""
    found = [file.stem for where in (Path(), *_roots()) for file in (where / folder).glob(pattern)]
    return sorted(set(found))


def _roots() -> Iterator[Path]:
    yield PACKAGE / "shipped"
    if (PACKAGE.parent / "configs" / "quickstart").is_dir():  # a checkout
        yield PACKAGE.parent

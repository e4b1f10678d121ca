"""Sources of rows:

    FILE                            .jsonl .ndjson .json .csv .tsv, plain or .gz .zst .bz2 .xz, and .parquet
    FILE                            .txt .md .html .pdf: a document
    FOLDER, FOLDER@SPLIT            files of one of these forms (shards), documents, or what `save_to_disk` wrote
    hub:NAME[/CONFIG]@SPLIT[#REVISION]

Files and folders named for a split (`train-00000-of-00004.parquet`, `test/`) give it to their rows, if there are at
least two splits. Several splits are joined with a plus: `FOLDER@train_prefs+test_prefs`.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiebreak.data.arrow import parquet_batches, read_parquet, read_saved, saved_batches, tables_of
from tiebreak.data.compression import COMPRESSED_ENDINGS
from tiebreak.data.documents import DOCUMENT_ENDINGS, read_document
from tiebreak.data.splits import split_of, variant_of
from tiebreak.data.text import (
    JSON_ENDINGS,
    TABLE_ENDINGS,
    Lines,
    Table,
    form_of,
    is_lines_of_json,
    line_batches,
    read_text_file,
    rows_of_lines,
    table_of,
    text_batches,
)
from tiebreak.errors import DataError, RunError
from tiebreak.records import RecordKind

ENDINGS = (*JSON_ENDINGS, *TABLE_ENDINGS, ".parquet")
NOT_DOCUMENTS = ("readme", "license", "licence", "changelog")
"""Names of documents about a folder, less their endings."""
NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
RUN_OR_MODEL = ("manifest.json", "run.json", "config.json", "adapter_config.json", "tokenizer_config.json")
"""A folder with one of these is not data."""
VARIANTS: dict[RecordKind, tuple[str, ...]] = {
    "preferences": ("prefs",),
    "answers": ("prefs",),
    "demonstrations": ("sft",),
    "prompts": ("gen", "prefs", "sft"),
}
"""The variant (`train_sft`, `train_gen`, `train_prefs`) that a stage reads; names as in UltraFeedback-binarized."""


@dataclass(frozen=True)
class Part:
    """Some rows of a source, and the split in their file's or folder's name."""

    name: str
    """`train_prefs`; empty if the name is not a split's"""
    read: Callable[[], Table]
    file: Path | None = None
    """the file that it is, if it is one"""
    batches: Callable[[int], Iterator[Table]] | None = None
    """its rows in batches, if it is not a file but can be read that way"""


@dataclass(frozen=True)
class Piece:
    """Some rows of a source: lines of a file of JSON Lines, not parsed yet, or a table."""

    split: str
    """the split in the name of its file or folder, if it names one that counts"""
    path: Path | None = None
    lines: Lines = ()
    rows: Table | None = None
    is_read_again: bool = False
    """it is one of many that are read one by one: they are not kept in memory"""

    @property
    def size(self) -> int:
        """The number of its lines or rows."""
        return len(self.lines) or (len(self.rows.rows) if self.rows else 0)

    def table(self) -> Table:
        """Its rows."""
        table = table_of(rows_of_lines(self.path, self.lines)) if self.path else self.rows or Table()
        if self.split:
            table.rows = [(where, {"split": self.split, **row}) for where, row in table.rows]
        return table


def pieces_of(source: str, wanted: RecordKind, size: int) -> Iterator[Piece]:
    """The rows of a source in pieces of so many lines or rows, read one by one; one JSON object and a document are whole.

    Raises:
        DataError: as `read_source`.
    """
    parts = _parts_of(source, wanted)
    named = {split_of(part.name) for part in parts if part.name}
    for part in parts:
        split = part.name if len(named) > 1 else ""
        if part.file is not None and _is_lines(part.file):
            for lines in line_batches(part.file, size):
                yield Piece(split, part.file, lines)
            continue
        if (tables := _batches_of(part, size)) is not None:
            for table in tables:
                yield Piece(split, rows=table, is_read_again=True)
            continue
        table = part.read()
        for start in range(0, max(len(table.rows), 1), size):
            bad = table.bad if start == 0 else []
            yield Piece(split, rows=Table(table.rows[start : start + size], bad, table.of_text))


def _batches_of(part: Part, size: int) -> Iterator[Table] | None:
    """The rows of a part, in batches; None of forms that are read as a whole."""
    if part.batches is not None:
        return part.batches(size)
    if part.file is None or not part.file.is_file():
        return None
    if part.file.suffix.lower() == ".parquet":
        return parquet_batches(part.file, size)
    return text_batches(part.file, size) if form_of(part.file) in ENDINGS else None


def _is_lines(path: Path) -> bool:
    return path.is_file() and form_of(path) in JSON_ENDINGS and is_lines_of_json(path)


def read_source(source: str, wanted: RecordKind) -> Table:
    """The rows of a source.

    Raises:
        DataError: it is missing, unsupported or broken, or has more than one set of rows.
    """
    parts = _parts_of(source, wanted)
    named = {split_of(part.name) for part in parts if part.name}
    table = Table()
    for part in parts:
        read = part.read()
        if len(named) > 1 and part.name:
            read.rows = [(where, {"split": part.name, **row}) for where, row in read.rows]
        table.extend(read)
    return table


def _parts_of(source: str, wanted: RecordKind) -> list[Part]:
    path, splits = split_suffix(source)
    if source.startswith("hub:"):
        return _hub_parts(source)
    if not path.is_dir():
        return [Part("", lambda: read_file(path), path)]
    if splits:
        return _chosen(_folder_parts(path), splits, source)
    return _of_one_variant(_folder_parts(path), wanted, source)


def read_file(path: Path) -> Table:
    """One file.

    Raises:
        DataError: it is missing, unsupported or broken.
    """
    if not path.is_file():
        raise DataError(f"no such file or run folder: {path}")
    if path.suffix.lower() == ".parquet":
        return read_parquet(path)
    if path.suffix.lower() in DOCUMENT_ENDINGS:
        return read_document(path)
    if form_of(path) not in ENDINGS:
        raise DataError(
            f"{path}: unsupported file type; supported: {' '.join(ENDINGS)}, all but .parquet also compressed as "
            f"{' '.join(COMPRESSED_ENDINGS)}, and documents as {' '.join(DOCUMENT_ENDINGS)}"
        )
    return read_text_file(path)


def split_suffix(source: str) -> tuple[Path, list[str]]:
    """(path, names of splits) of `FOLDER@train+test`."""
    name, at, splits = source.rpartition("@")
    if at and not Path(source).exists() and Path(name).is_dir():
        return Path(name), splits.split("+")
    return Path(source), []


# --- folders -----------------------------------------------------------------------------------------------------------


def is_data_folder(path: Path) -> bool:
    """Whether a folder has data, and is neither a run nor a model.

    Raises:
        RunError: it contains runs, or is part of one.
    """
    if not path.is_dir() or any((path / name).is_file() for name in RUN_OR_MODEL):
        return False
    _refuse_runs(path)
    return bool(data_files(path))


def data_files(folder: Path) -> list[Path]:
    """All files of a folder's rows, in order."""
    if saved := _saved(folder):
        return sorted([*saved, *folder.rglob("*.arrow")])
    files = [file for file in folder.rglob("*") if _is_data(file, folder)]
    return sorted(files or (file for file in folder.rglob("*") if _is_document(file, folder)))


def _saved(folder: Path) -> list[Path]:
    """The files that `save_to_disk` describes its data with."""
    return [*folder.glob("state.json"), *folder.glob("*/state.json"), *folder.glob("dataset_dict.json")]


def unread_files(source: str) -> Counter[str]:
    """Why files of a folder are not read → their number. Hidden files, and those that describe the data, do not count."""
    folder, _ = split_suffix(source)
    if source.startswith("hub:") or not folder.is_dir() or _saved(folder):
        return Counter()
    read = set(data_files(folder))
    about = (*NOT_DATA, *RUN_OR_MODEL)
    others = [
        file
        for file in folder.rglob("*")
        if file.is_file() and file not in read and not _is_hidden(file, folder) and file.name not in about
    ]
    are_documents = bool(read) and min(read).suffix.lower() in DOCUMENT_ENDINGS
    return Counter(_unread(file, are_documents) for file in others if are_documents or not _is_about(file))


def _is_about(file: Path) -> bool:
    return file.stem.lower() in NOT_DOCUMENTS


def _unread(file: Path, are_documents: bool) -> str:
    if _is_about(file):
        return f"files about the folder ({file.name})"
    ending = file.suffix.lower()
    if ending in DOCUMENT_ENDINGS and not are_documents:
        return f"documents ({ending}) beside files of rows: give them as a folder of their own"
    return f"files of a type that is not read ({ending or 'without an ending'})"


def _refuse_runs(folder: Path) -> None:
    """Refuse metrics and reports of runs, which are not data.

    Raises:
        RunError: the folder contains runs, or is part of one.
    """
    if (folder.parent / "manifest.json").is_file():
        raise RunError(f"{folder} is part of a run: give {folder.parent}")
    if inside := sorted(file.parent for file in folder.rglob("run.json")):
        raise RunError(f"{folder} is not a run but contains runs: give one of {', '.join(map(str, inside[:5]))}")


def _is_data(file: Path, folder: Path) -> bool:
    ending = ".parquet" if file.suffix.lower() == ".parquet" else form_of(file)
    return ending in ENDINGS and file.name not in NOT_DATA and file.is_file() and not _is_hidden(file, folder)


def _is_document(file: Path, folder: Path) -> bool:
    named = file.suffix.lower() in DOCUMENT_ENDINGS and not _is_about(file)
    return named and file.is_file() and not _is_hidden(file, folder)


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


def _folder_parts(folder: Path) -> list[Part]:
    """The parts of a folder: saved datasets, or shards."""
    if (folder / "state.json").is_file():
        return [Part("", lambda: read_saved(folder), batches=lambda size: saved_batches(folder, size))]
    if (folder / "dataset_dict.json").is_file():
        inside = sorted(state.parent for state in folder.glob("*/state.json"))
        return [
            Part(one.name, lambda one=one: read_saved(one), batches=lambda size, one=one: saved_batches(one, size))  # type: ignore[misc]
            for one in inside
        ]
    _refuse_runs(folder)
    files = data_files(folder)
    if not files:
        raise DataError(
            f"{folder}: no finished run (it has no manifest.json) and no data: give a run folder, a folder of "
            f"{' '.join(ENDINGS)} files, of documents ({' '.join(DOCUMENT_ENDINGS)}), or what save_to_disk wrote"
        )
    if files[0].suffix.lower() in DOCUMENT_ENDINGS:
        return [Part(_split_name(file, folder), lambda file=file: _of_folder(file, folder)) for file in files]  # type: ignore[misc]
    kinds = sorted({".parquet" if file.suffix.lower() == ".parquet" else form_of(file) for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"{folder}: has {' and '.join(kinds)} files, which may hold the same rows twice: name the files to read"
        )
    return [Part(_split_name(file, folder), lambda file=file: read_file(file), file) for file in files]  # type: ignore[misc]


def _of_folder(file: Path, folder: Path) -> Table:
    """A document of a folder, which names it by its path inside."""
    table = read_document(file)
    for _, row in table.rows:
        row["source"] = str(file.relative_to(folder))
    return table


def _split_name(file: Path, folder: Path) -> str:
    """The split in a shard's or its folder's name."""
    stem = re.split(r"[-.]", file.name)[0]
    names = [stem, *(part for part in reversed(file.relative_to(folder).parts[:-1]))]
    return next((name for name in names if split_of(name)), "")


def _chosen(parts: Sequence[Part], splits: Sequence[str], source: str) -> list[Part]:
    there = sorted({part.name for part in parts if part.name})
    for name in splits:
        if name not in there:
            raise DataError(f"{source}: no split {name!r}; there are {', '.join(there) or 'none'}")
    return [part for part in parts if part.name in splits]


def _of_one_variant(parts: Sequence[Part], wanted: RecordKind, source: str) -> list[Part]:
    """The variant that a stage reads, if a split has several: `train_sft`, `train_prefs`."""
    variants = {variant_of(part.name) for part in parts if part.name}
    if len(variants) < 2:
        return list(parts)
    for variant in VARIANTS[wanted]:
        if variant in variants:
            return [part for part in parts if variant_of(part.name) == variant]
    names = sorted({part.name for part in parts if part.name})
    raise DataError(
        f"{source}: holds {', '.join(names)}: name what to read, as in {source}@{names[-1]}"
        f" (several are joined by +: {source}@{names[-1]}+{names[0]})"
    )


# --- the hub -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubSource:
    """A dataset of the hub."""

    name: str
    config: str | None
    splits: tuple[str, ...]
    revision: str | None


def parse_hub(source: str) -> HubSource:
    """The parts of `hub:NAME[/CONFIG]@SPLIT[#REVISION]`. A name itself has one slash: `owner/name`.

    Raises:
        DataError: it has no split.
    """
    rest, _, revision = source.removeprefix("hub:").partition("#")
    path, _, splits = rest.partition("@")
    names = path.split("/", 2)
    if not splits or not path:
        raise DataError(f"{source}: name the split, as in hub:trl-lib/ultrafeedback_binarized@train")
    config = names[2] if len(names) == 3 else None
    return HubSource("/".join(names[:2]), config, tuple(splits.split("+")), revision or None)


def pinned_source(source: str) -> str:
    """A hub source with its commit, which identifies its content."""
    revision = hub_revision(source)
    return f"{source.partition('#')[0]}#{revision}" if revision else source


@functools.cache
def hub_revision(source: str) -> str | None:
    """The commit of a hub source: the one that it names, the hub's newest, or offline the cache's newest.

    None if it cannot be determined.
    """
    hub = parse_hub(source)
    if hub.revision is not None and re.fullmatch(r"[0-9a-f]{40}", hub.revision):
        return hub.revision
    from huggingface_hub import HfApi, constants

    cached = (
        Path(constants.HF_HUB_CACHE) / f"datasets--{hub.name.replace('/', '--')}" / "refs" / (hub.revision or "main")
    )
    if not constants.HF_HUB_OFFLINE:
        try:
            return str(HfApi().dataset_info(hub.name, revision=hub.revision, timeout=10).sha)
        except Exception:  # noqa: BLE001 any failure of the network: what the cache holds is read then
            pass
    return cached.read_text(encoding="utf-8").strip() if cached.is_file() else None


def _hub_parts(source: str) -> list[Part]:
    hub = parse_hub(source)
    revision = hub_revision(source) or hub.revision
    return [
        Part(
            split,
            lambda split=split: next(_hub_batches(source, hub, split, revision, sys.maxsize)),  # type: ignore[misc]
            batches=lambda size, split=split: _hub_batches(source, hub, split, revision, size),  # type: ignore[misc]
        )
        for split in hub.splits
    ]


def _hub_batches(source: str, hub: HubSource, split: str, revision: str | None, size: int) -> Iterator[Table]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(hub.name, hub.config, split=split, revision=revision)
    except Exception as error:
        offline = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") == "1" else "offline"
        raise DataError(
            f"cannot read {source} from the hub: {str(error).splitlines()[0]}. Where {offline}, give a file or a folder"
        ) from error
    yield from tables_of(source, dataset, size)

"""Exact and near duplicates among the rows of a prepare run.

Near duplicates contain the same numbers and tools, and their word trigrams overlap by `near_duplicate` (Jaccard). Up to
EXACT_ROWS rows, all of them are found, by prefix filtering (Bayardo et al. 2007). Above, candidates are found by MinHash
(Broder 1997) in bands (Leskovec et al. 2020, section 3.4), which miss at most one pair in a thousand at the threshold;
each candidate's overlap is computed exactly, so that none is dropped by chance.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sft.normalising import split_words
from sft.store import RowFiles, RowPart, Store, Summary
from tiebreak.data.splits import named_splits
from tiebreak.errors import DataError
from tiebreak.messages import Message, Messages, Tools, content_id, text_of
from tiebreak.records import Demonstration, Prompt, Split

EXACT_ROWS = 100_000
HASHES = 128
LEAST_RECALL = 0.999
"""of pairs that overlap by just the threshold"""
FEW = 2
"""Up to this many near duplicates are always allowed."""

Codes = NDArray[np.uint64]
Numbers = NDArray[np.int64]
Mask = NDArray[np.bool_]
Side = Literal["prompt", "whole"]
SIDES: tuple[Side, ...] = ("prompt", "whole")


@dataclass(frozen=True)
class DroppedRow:
    """A row that is left out, and why."""

    number: int
    reason: str
    """the reason in words, with {} for the place of the other row"""
    side: Side
    """what of it is listed"""
    other: int | None = None
    """the row that it repeats"""


# --- what is compared ---


def trigrams(text: str) -> frozenset[tuple[str, ...]]:
    """The word trigrams of a text, in lower case, without punctuation; the whole text if it has fewer words."""
    words = words_of(text)
    return frozenset(zip(words, words[1:], words[2:], strict=False)) if len(words) > 2 else frozenset([tuple(words)])


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case; the whole text if it has none."""
    return split_words(text.lower()) or [text]


@functools.lru_cache(maxsize=1 << 18)
def _code(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def trigram_codes(text: str) -> Codes:
    """`trigrams` as numbers, in ascending order."""
    words = words_of(text)
    codes = np.array([_code(word) for word in words], dtype=np.uint64)
    with np.errstate(over="ignore"):
        if len(codes) < 3:
            joined = (codes * _PLACES[: len(codes)]).sum(dtype=np.uint64) + np.uint64(len(codes))
            return _mixed(np.array([joined], dtype=np.uint64))
        return np.unique(_mixed(codes[:-2] * _PLACES[0] + codes[1:-1] * _PLACES[1] + codes[2:] * _PLACES[2]))


_PLACES = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)
"""odd multipliers, one a word"""


def _mixed(codes: Codes) -> Codes:
    """SplitMix64's finaliser (Steele et al. 2014): numbers that differ a little become numbers that differ everywhere."""
    codes = (codes ^ (codes >> np.uint64(30))) * _PLACES[1]
    codes = (codes ^ (codes >> np.uint64(27))) * _PLACES[2]
    return codes ^ (codes >> np.uint64(31))


_FIGURES = re.compile(r"\d+|(?<=\d)\s*[-+*/×÷·^<>=≤≥]\s*(?=\d)|(?<![^\s(])[-−](?=\d)|(?<=[A-Za-z])(?:\+\+|#)(?!\w)")
"""numbers, their signs, operators between two of them, and what tells C++ and C# from C"""


def kind_code(text: str, tools: Tools, system: str = "") -> int:
    """Rows that differ in this are not duplicates: other numbers, tools and system messages need other answers."""
    figures = [found.strip() for found in _FIGURES.findall(text)]
    return _number(content_id("kind", figures, [content_id("tool", tool) for tool in tools], system))


def _number(identity: str) -> int:
    return int(identity.rpartition("-")[2], 16)


def prompt_number(identity: str) -> int:
    """A prompt's id as a number."""
    return _number(identity) if re.fullmatch(r"prompt-[0-9a-f]{16}", identity) else _number(content_id("", identity))


@dataclass(frozen=True)
class Table:
    """What is compared of every row. Arrays are of shape (rows,)."""

    is_demonstration: Mask
    prompts: Codes
    """ids of the prompts"""
    rows: Codes
    """equal where rows are equal: prompt and answer of a demonstration"""
    ranks: Codes
    """random, by seed and prompt: the order in which prompts are held out"""
    kinds: Mapping[Side, Codes]
    lengths: Mapping[Side, Numbers]
    """numbers of trigrams"""
    files: Sequence[Path]
    starts: Numbers
    """the first row of each file"""
    named: Mapping[str, Split]
    """prompt id → the split that its rows name"""

    def trigrams(self, side: Side) -> Callable[[int], Codes]:
        """A function of a row: its trigrams."""
        columns = [np.load(f"{file}.{side}.npy", mmap_mode="r") for file in self.files]
        ends = np.cumsum(self.lengths[side])

        def of_row(row: int) -> Codes:
            file = int(np.searchsorted(self.starts, row, side="right")) - 1
            before = ends[self.starts[file] - 1] if self.starts[file] else 0
            end = int(ends[row] - before)
            return np.asarray(columns[file][end - int(self.lengths[side][row]) : end])

        return of_row

    def bands(self, side: Side, rows: Numbers) -> Codes:
        """Codes of the bands of these rows, in ascending order of the rows. Shape: (rows, bands)."""
        found = []
        for file, start, end in zip(self.files, self.starts, [*self.starts[1:], len(self.rows)], strict=True):
            inside = rows[(rows >= start) & (rows < end)] - start
            if len(inside):
                found.append(np.load(f"{file}.{side}-bands.npy", mmap_mode="r")[inside])
        return np.concatenate(found)


def compare(rows: RowFiles, work: Store, seed: int, threshold: float) -> Table:
    """Compute what is compared of every row.

    Raises:
        DataError: rows of one prompt name two splits.
    """
    opened = work.begin("compare")
    planes = bands_of(threshold) if len(rows) > EXACT_ROWS and threshold < 1 else None
    parts = opened.work(
        lambda part, stem: _compare_part(part, stem, seed, planes), rows.parts, len(rows), "rows compared", len
    )
    named: list[tuple[str, str, Split | None]] = []
    for one in parts:
        named += [(where, identity, split) for where, identity, split in one["named"]]
    opened.complete({})
    files = [opened.folder / f"{number:05d}" for number in range(len(rows.parts))]
    columns = [_columns_of(file) for file in files]

    def column(name: str) -> NDArray[Any]:
        return np.concatenate([one[name] for one in columns])

    starts = np.cumsum([0, *(len(part) for part in rows.parts[:-1])], dtype=np.int64)
    return Table(
        is_demonstration=column("is_demonstration"),
        prompts=column("prompts"),
        rows=column("rows"),
        ranks=column("ranks"),
        kinds={side: column(f"{side}_kinds") for side in SIDES},
        lengths={side: column(f"{side}_lengths") for side in SIDES},
        files=files,
        starts=starts,
        named=named_splits(named),
    )


def _columns_of(file: Path) -> dict[str, NDArray[Any]]:
    with np.load(f"{file}.npz") as columns:
        return dict(columns)


def _compare_part(part: RowPart, stem: Path, seed: int, planes: tuple[int, int] | None) -> Summary:
    rows = list(part)
    compared = {side: [compared_text(row.record, side, system=False) for row in rows] for side in SIDES}
    systems = [text_of(_of_system(row.prompt.messages)) for row in rows]
    columns: dict[str, NDArray[Any]] = {
        "is_demonstration": np.array([isinstance(row.record, Demonstration) for row in rows], dtype=bool),
        "prompts": np.array([prompt_number(row.prompt.id) for row in rows], dtype=np.uint64),
        "rows": np.array([_identity(row.record) for row in rows], dtype=np.uint64),
        "ranks": np.array([_number(content_id("rank", seed, row.prompt.id)) for row in rows], dtype=np.uint64),
    }
    for side, texts in compared.items():
        trigrams = [trigram_codes(text) for text in texts]
        columns[f"{side}_lengths"] = np.array([len(one) for one in trigrams], dtype=np.int64)
        columns[f"{side}_kinds"] = np.array(
            [kind_code(text, row.prompt.tools, system) for row, text, system in zip(rows, texts, systems, strict=True)],
            dtype=np.uint64,
        )
        np.save(f"{stem}.{side}.npy", np.concatenate([*trigrams, np.array([], dtype=np.uint64)]))
        if planes is not None:
            np.save(f"{stem}.{side}-bands.npy", band_codes(trigrams, columns[f"{side}_kinds"], *planes))
    np.savez(f"{stem}.npz", **columns)  # type: ignore[arg-type]
    return {"named": [[row.where, row.prompt.id, row.split] for row in rows if row.split is not None]}


def compared_text(record: Prompt | Demonstration, side: Side, *, system: bool = True) -> str:
    """The text of a prompt, or of a demonstration as a whole.

    Args:
        system: with its system message. Many rows share a long one, which would make copies of different questions.
    """
    prompt = record if isinstance(record, Prompt) else record.prompt
    asked = text_of(prompt.messages if system else [one for one in prompt.messages if one.role != "system"])
    return f"{asked}\n{record.text}" if side == "whole" and isinstance(record, Demonstration) else asked


def _of_system(messages: Messages) -> list[Message]:
    return [message for message in messages if message.role == "system"]


def _identity(record: Prompt | Demonstration) -> int:
    if isinstance(record, Prompt):
        return prompt_number(record.id)
    return _number(content_id("demonstration", record.prompt.id, record.completion))


# --- duplicates ---


@dataclass(frozen=True)
class Duplicates:
    """The duplicates of a run."""

    dropped: list[DroppedRow]
    alike: dict[int, int]
    """demonstration that is kept → the first of the group with nearly the same prompt, and other answers: all belong to
    one split"""


def find_duplicates(
    table: Table, threshold: float, max_share: float, texts: Callable[[Sequence[int], Side], Sequence[str]]
) -> Duplicates:
    """Exact and near duplicates to drop, and prompts that are also in a demonstration.

    Two answers to one prompt are two demonstrations, and both are kept.

    Args:
        texts: the compared texts of rows.

    Raises:
        DataError: more than `max_share` of the rows are near duplicates.
    """
    search = Search(table, threshold, max_share, texts)
    demonstrations = np.flatnonzero(table.is_demonstration)
    dropped, kept, _ = search.drop(demonstrations, table.rows, "whole", "demonstrations")
    last = dict(zip(table.prompts[kept].tolist(), kept.tolist(), strict=True))
    prompts = []
    for number, identity in _numbered(np.flatnonzero(~table.is_demonstration), table.prompts):
        if identity in last:
            dropped.append(DroppedRow(number, "the same prompt as demonstration:{}", "prompt", last[identity]))
        else:
            prompts.append(number)
    rows = np.concatenate([kept, np.array(prompts, dtype=np.int64)])
    bare, _, alike = search.drop(rows, table.prompts, "prompt", "prompts", keep_first=len(kept))
    return Duplicates(dropped + bare, alike)


def _numbered(rows: Numbers, codes: Codes) -> list[tuple[int, int]]:
    return list(zip(rows.tolist(), codes[rows].tolist(), strict=True))


@dataclass(frozen=True)
class Search:
    """The definition of a duplicate."""

    table: Table
    threshold: float
    max_share: float
    texts: Callable[[Sequence[int], Side], Sequence[str]]

    def drop(
        self, rows: Numbers, identities: Codes, side: Side, what: str, keep_first: int = 0
    ) -> tuple[list[DroppedRow], Numbers, dict[int, int]]:
        """(duplicates of earlier rows, the others, near duplicates that are kept → the first of their group).

        The first `keep_first` are compared against and never dropped.
        """
        seen: dict[int, int] = {}
        exact: list[int] = []
        dropped: list[DroppedRow] = []
        for place, (number, identity) in enumerate(_numbered(rows, identities)):
            if place >= keep_first and identity in seen:
                dropped.append(DroppedRow(number, "the same as {}", side, seen[identity]))
            else:
                seen.setdefault(identity, number)
                exact.append(number)
        if self.threshold >= 1.0:
            return dropped, np.array(exact, dtype=np.int64), {}
        near = self._near(exact, side, keep_first)
        alike = {exact[one]: exact[first] for one, first in near.alike.items()}
        earlier = near.earlier
        self._refuse_many(earlier, exact, side, what, len(exact) - keep_first)
        for place, (other, overlap) in sorted(earlier.items()):
            reason = f"near duplicate of {{}} (overlap {overlap:.2f})"
            dropped.append(DroppedRow(exact[place], reason, side, exact[other]))
        return dropped, np.array([n for place, n in enumerate(exact) if place not in earlier], dtype=np.int64), alike

    def _near(self, rows: Sequence[int], side: Side, keep_first: int) -> Near:
        """Near duplicates by place in `rows`, of those of one kind."""
        trigrams, kinds = self.table.trigrams(side), self.table.kinds[side]
        if len(self.table.rows) > EXACT_ROWS:
            numbers = np.array(rows, dtype=np.int64)
            order = np.argsort(numbers)
            bands = np.empty((len(rows), bands_of(self.threshold)[0]), dtype=np.uint64)
            bands[order] = self.table.bands(side, numbers[order])
            return near_by_bands(bands, lambda place: trigrams(rows[place]), self.threshold, keep_first)
        places: dict[int, list[int]] = defaultdict(list)
        for place, number in enumerate(rows):
            places[int(kinds[number])].append(place)
        found = Near({}, {})
        for there in places.values():
            if len(there) > 1:
                sets = [frozenset(trigrams(rows[place]).tolist()) for place in there]
                near = near_duplicates(sets, self.threshold, sum(place < keep_first for place in there))
                found.earlier.update({there[one]: (there[other], by) for one, (other, by) in near.earlier.items()})
                found.alike.update({there[one]: there[first] for one, first in near.alike.items()})
        return found

    def _refuse_many(
        self, earlier: Mapping[int, tuple[int, float]], exact: Sequence[int], side: Side, what: str, rows: int
    ) -> None:
        """Rows from a template look like copies: the user decides, not the threshold."""
        if len(earlier) <= max(FEW, self.max_share * rows):
            return
        pairs = [(exact[place], exact[other]) for place, (other, _) in sorted(earlier.items())][:5]
        texts = self.texts([number for pair in pairs for number in pair], side)
        examples = [f"{one[:80]!r} and {other[:80]!r}" for one, other in zip(texts[::2], texts[1::2], strict=True)]
        raise DataError(
            f"{len(earlier)} of {rows} {what} overlap an earlier one by {self.threshold:g} or more (near_duplicate), above "
            f"max_near_duplicate_share ({self.max_share:g}): nothing was written. Keep them with near_duplicate: 1 (then "
            "only exact copies are dropped), or drop them with max_near_duplicate_share: 1",
            examples,
        )


@dataclass(frozen=True)
class Near:
    """Near duplicates among rows, the first few of which are kept in any case."""

    earlier: dict[int, tuple[int, float]]
    """row to drop → (an earlier row, Jaccard overlap); no row is compared with a dropped one"""
    alike: dict[int, int]
    """kept row → the first row of its group, whose members a chain of near duplicates connects; first rows are left out"""


class Neighbours:
    """Collects near duplicates, row by row.

    Args:
        keep_first: the number of rows that are kept.
    """

    def __init__(self, threshold: float, keep_first: int) -> None:
        self.threshold, self.keep_first = threshold, keep_first
        self.near = Near({}, {})

    def add(self, row: int, candidates: Iterable[int], overlap: Callable[[int], float]) -> bool:
        """Compare a row with earlier ones, in their order. Returns whether later rows need to be compared with it."""
        if row < self.keep_first:
            return not self._joins(row, candidates, overlap)
        for other in candidates:
            if (share := overlap(other)) >= self.threshold:
                self.near.earlier[row] = other, share
                return False
        return True

    def _joins(self, row: int, candidates: Iterable[int], overlap: Callable[[int], float]) -> bool:
        """Join the groups of a kept row and of all near ones. Returns whether it equals one: that one stands for both."""
        equals = False
        for other in candidates:
            low, high = sorted((self._first(row), self._first(other)))
            if low < high and (share := overlap(other)) >= self.threshold:
                self.near.alike[high] = low
                equals = equals or share == 1.0
        return equals

    def _first(self, row: int) -> int:
        first = row
        while (other := self.near.alike.get(first)) is not None:
            first = other
        if first != row:
            self.near.alike[row] = first  # a shorter way for the next search
        return first

    def found(self) -> Near:
        """All that was found."""
        return Near(self.near.earlier, {row: self._first(row) for row in self.near.alike})


def near_duplicates(sets: Sequence[frozenset[Any]], threshold: float, keep_first: int = 0) -> Near:
    """Near duplicates of earlier rows, by set overlap.

    Exact, not sampled: by prefix filtering (Bayardo et al. 2007), two sets can only reach the threshold if they share one
    of their |x| − ⌈t·|x|⌉ + 1 rarest members, so only those are looked up.
    """
    rarity = Counter(member for one in sets for member in one)
    index: dict[Any, list[int]] = defaultdict(list)
    neighbours = Neighbours(threshold, keep_first)
    for number, one in enumerate(sets):
        ordered = sorted(one, key=lambda member: (rarity[member], member))
        needed = math.ceil(threshold * len(ordered) - 1e-9)  # 0.56·25 is 14.000000000000002 in floating point
        prefix = ordered[: len(ordered) - needed + 1]
        candidates = sorted({other for member in prefix for other in index[member]})
        if neighbours.add(number, candidates, functools.partial(_jaccard, sets, one)):
            for member in prefix:
                index[member].append(number)
    return neighbours.found()


def _jaccard(sets: Sequence[frozenset[Any]], one: frozenset[Any], other: int) -> float:
    return len(one & sets[other]) / len(one | sets[other])


# --- MinHash ---


@functools.cache
def bands_of(threshold: float) -> tuple[int, int]:
    """(number of bands, hashes in each), for the longest bands that keep LEAST_RECALL: the probability that a pair at the
    threshold shares a band.

    Two sets that overlap by s share a given band of r hashes with probability s^r, and one of b bands with 1 − (1 − s^r)^b.
    """
    fitting = [r for r in range(1, HASHES + 1) if 1 - (1 - threshold**r) ** (HASHES // r) >= LEAST_RECALL]
    hashes = max(fitting, default=1)
    return HASHES // hashes, hashes


def minhashes(sets: Sequence[Codes]) -> Codes:
    """The least value of each hash function on each set. Shape: (sets, HASHES)."""
    chosen = np.random.default_rng(0)
    factors = chosen.integers(0, 2**64, HASHES, dtype=np.uint64, endpoint=False) | np.uint64(1)
    offsets = chosen.integers(0, 2**64, HASHES, dtype=np.uint64, endpoint=False)
    least = np.empty((len(sets), HASHES), dtype=np.uint64)
    for number, one in enumerate(sets):
        with np.errstate(over="ignore"):
            least[number] = (one[:, None] * factors + offsets).min(axis=0)
    return least


def band_codes(sets: Sequence[Codes], kinds: Codes, bands: int, hashes: int) -> Codes:
    """A code of each band of each set; equal in sets of one kind whose hashes in it are equal. Shape: (sets, bands)."""
    least: Codes = minhashes(sets)[:, : bands * hashes].reshape(len(sets), bands, hashes)
    codes: Codes = kinds[:, None] + np.arange(bands).astype(np.uint64)
    with np.errstate(over="ignore"):
        for place in range(hashes):
            codes = _mixed(codes * _PLACES[0] + least[:, :, place])
    return codes


def near_by_bands(bands: Codes, trigrams: Callable[[int], Codes], threshold: float, keep_first: int = 0) -> Near:
    """`near_duplicates` among rows that share a band."""
    repeated: Mask = np.zeros(len(bands), dtype=bool)
    for column in range(bands.shape[1]):
        _, places, counts = np.unique(bands[:, column], return_inverse=True, return_counts=True)
        repeated |= counts[places] > 1
    index: dict[int, list[int]] = defaultdict(list)
    neighbours = Neighbours(threshold, keep_first)
    for row in np.flatnonzero(repeated).tolist():
        codes = bands[row].tolist()
        candidates = sorted({other for code in codes for other in index.get(code, ())})
        if neighbours.add(row, candidates, functools.partial(_overlap, trigrams, trigrams(row))):
            for code in codes:
                index[code].append(row)
    return neighbours.found()


def _overlap(trigrams: Callable[[int], Codes], members: Codes, other: int) -> float:
    others = trigrams(other)
    shared = len(np.intersect1d(members, others, assume_unique=True))
    return shared / (len(members) + len(others) - shared)

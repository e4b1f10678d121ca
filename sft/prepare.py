"""Read raw prompts and demonstrations, check every row, drop duplicates, and split by prompt, once.

    tiebreak prepare --config configs/quickstart/prepare.yaml

Every later stage takes its split from here, so a prompt that is held out once stays held out. A row that names its
`split` keeps it. Of the others, prompts with a demonstration go to train or validation only: the test split is for
prompts without an expert's answer.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.canaries import facts, in_clear, planted, write_canaries
from sft.configuration import PrepareConfig, SplitShares
from sft.distributions import Counts, counted_rows, distributions, stride_of
from sft.duplicates import (
    Codes,
    DroppedRow,
    Mask,
    Numbers,
    Side,
    Table,
    compare,
    compared_text,
    find_duplicates,
    prompt_number,
)
from sft.licences import licences_of
from sft.pii.vault import secret_of
from sft.reading import ReadRows, file_names, read_sources
from sft.report.flow import rows_read
from sft.report.page import SourceFacts, build_page
from sft.row_lengths import Lengths, drop_long
from sft.steps.running import KINDS, Journal, run_steps
from sft.steps.step import Change, build_steps
from sft.store import WORK, RowFiles, RowPart, Store, Summary
from tiebreak.command.launch import stage_main
from tiebreak.data.documents import DOCUMENT_ENDINGS
from tiebreak.errors import DataError, TiebreakError
from tiebreak.files import write_json, write_jsonl, write_text_atomically
from tiebreak.measures.canaries import Canary, is_canary
from tiebreak.records import Demonstration, Prompt, Split
from tiebreak.runs.requirements import ANONYMISED
from tiebreak.runs.run import BAD_ROWS, Run, start_run
from tiebreak.terminal import Cell, has_colours, say, table
from tiebreak.tracking.recorder import tracked

DISTRIBUTIONS = "distributions.json"


def prepare(config: PrepareConfig) -> None:
    """The stage."""
    with start_run(config, "prepare") as run, tracked(run):
        if run.finished:
            say(f"{run.folder} is finished with this configuration and these inputs: nothing to do")
            return
        work = Store(run.folder / WORK, f"{run.fingerprint}{_mark_of_key(config)}")
        try:
            report = _write_data(config, run, work)
        except TiebreakError:  # the next start may have other data, or another configuration
            work.remove()
            raise
        work.remove()
        run.finish()
        say_report(run, report)


def _mark_of_key(config: PrepareConfig) -> str:
    """What tells a secret key from another one: hashes made with two would not agree, after a kill."""
    if "anonymise" not in config.steps or config.anonymise.mode != "hash":
        return ""
    secret = secret_of(config.anonymise.key_variable, "anonymise.mode: hash")
    return " " + hmac.new(secret, b"tiebreak prepare", hashlib.sha256).hexdigest()[:12]


def _write_data(config: PrepareConfig, run: Run, work: Store) -> dict[str, Any]:
    """All files of the run; returns the report."""
    steps = build_steps(config)
    read = read_sources(config, work, run)
    rows, journal = run_steps(steps, read.rows, work)
    _protect_bad_rows(run, journal)
    if not len(rows):
        by_step = ", ".join(f"{tally.step} {tally.dropped}" for tally in journal.tallies if tally.dropped)
        raise DataError(f"no row is left: the steps dropped all of them ({by_step}); nothing was written")
    compared = compare(rows, work, config.split.seed, config.near_duplicate)
    duplicates = find_duplicates(
        compared,
        config.near_duplicate,
        config.max_near_duplicate_share,
        lambda numbers, side: _texts(rows, numbers, side),
    )
    dropped = duplicates.dropped
    keep = np.ones(len(rows), dtype=bool)
    keep[[one.number for one in dropped]] = False
    lengths = drop_long(rows, keep, config, work)
    dropped += lengths.dropped
    canaries = planted(config.canaries)
    splits = assign_splits(compared, keep, config.split, duplicates.alike)
    flagged = {one["where"] for one in journal.lines("flagged")} if steps else set[str]()
    counts, after, kept_flagged = write_rows(rows, keep, splits, compared, work, run.final, canaries, flagged)
    names = file_names([*config.prompts, *config.demonstrations])
    places = Places(names, journal.protect)
    written = {"dropped": _listed(journal, rows, dropped, places)}
    if steps:
        written["changed"] = (_by_name(one, places) for one in journal.lines("changed"))
        written["flagged"] = (_with_prompts(one, places, kept_flagged) for one in journal.lines("flagged"))
    for name, lines in written.items():
        write_jsonl(run.final / f"{name}.jsonl", lines)
    if "balance" in config.steps:
        write_jsonl(run.final / "gaps.jsonl", journal.gap_lines())
    report = data_report(read, journal, dropped, counts, lengths)
    if canaries:
        write_canaries(run.final, canaries, counts["canaries"])
        report["canaries"] = facts(canaries, counts["canaries"])
        run.facts |= {"canaries": report["canaries"]}
    write_json(run.final / "report.json", report)
    run.facts |= {"counts": report["counts"], "data": data_facts(report)}
    run.facts |= {ANONYMISED: how} if (how := _anonymised(journal)) else {}
    licences = licences_of(config)
    run.facts |= {"licences": {names[source]: licence for source, licence in licences.items() if licence}}
    shown = {kind: _lines_of(run.final / f"{kind}.jsonl") for kind in KINDS}
    drawn = distributions(read.distributions, after)
    write_json(run.folder / DISTRIBUTIONS, drawn)  # beside the report: files of final/ decide the run's id
    sources = [SourceFacts(source, read.by_source[source], licence) for source, licence in licences.items()]
    page = build_page(
        {**report, "usable": len(read.rows)}, drawn, sources, shown["changed"], shown["dropped"], shown["flagged"]
    )
    write_text_atomically(run.folder / "report.html", page)
    return report


def _protect_bad_rows(run: Run, journal: Journal) -> None:
    """Remove personal data from the reasons of rows that could not be read, which may quote a cell."""
    path = run.folder / BAD_ROWS
    if journal.protect is not None and path.is_file():
        protect = journal.protect
        write_jsonl(path, [{name: protect(text) for name, text in one.items()} for one in list(_lines_of(path))])


def _anonymised(journal: Journal) -> dict[str, str]:
    """How the rows were anonymised, for the manifest; empty if they were not."""
    facts = next((tally.facts for tally in journal.tallies if "mode" in tally.facts), {})
    return {key: str(facts[key]) for key in ("mode", "names", "kinds") if key in facts}


@dataclass(frozen=True)
class Places:
    """Places of rows, as files of the run name them."""

    names: Mapping[str, str]
    """source → its name in the run, in place of its path"""
    protect: Change | None
    """removes personal data, which the name of a document may hold"""

    def named(self, text: str) -> str:
        """A text with its places as the run names them."""
        for source, name in self.names.items():
            for mark in ":/":  # in a path, and in a shard's place
                text = text.replace(f"{source}{mark}", f"{name}{mark}")
        return self.protect(text) if self.protect is not None and _DOCUMENT.search(text) else text


_DOCUMENT = re.compile("|".join(rf"{re.escape(ending)}\b" for ending in DOCUMENT_ENDINGS), re.IGNORECASE)


def _by_name(entry: Mapping[str, str], places: Places) -> dict[str, str]:
    return {**entry, "where": places.named(entry["where"]), "reason": places.named(entry["reason"])}


def _with_prompts(entry: Mapping[str, str], places: Places, kept: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A line of flagged.jsonl, with the ids of the prompts that are kept of its place, which no other file names."""
    return {**_by_name(entry, places), "prompt_ids": list(kept.get(entry["where"], ()))}


def _lines_of(path: Path) -> Iterator[Mapping[str, str]]:
    if path.is_file():
        with path.open(encoding="utf-8", newline="\n") as lines:
            yield from map(json.loads, lines)


# --- dropped rows ---


def _texts(rows: RowFiles, numbers: Sequence[int], side: Side) -> list[str]:
    """What is compared of these rows."""
    found = {number: compared_text(row.record, side) for number, row in rows.at(numbers)}
    return [found[number] for number in numbers]


def _listed(
    journal: Journal, rows: RowFiles, dropped: Sequence[DroppedRow], places: Places
) -> Iterator[dict[str, str]]:
    """The lines of dropped.jsonl: rows dropped by steps, then the others."""
    yield from (_by_name(one, places) for one in journal.lines("dropped"))
    others = {number: row.where for number, row in rows.at(one.other for one in dropped if one.other is not None)}
    for start, end in _ascending([one.number for one in dropped]):
        group = dropped[start:end]
        for one, (_, row) in zip(group, rows.at(one.number for one in group), strict=True):
            reason = one.reason.format(others.get(one.other, "") if one.other is not None else "")
            line = {"where": row.where, "reason": reason, "text": compared_text(row.record, one.side)}
            yield _by_name(line, places)


def _ascending(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The longest runs of ascending numbers, each with its beginning and end."""
    start = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] <= numbers[place - 1]:
            if place > start:
                yield start, place
            start = place


# --- splits ---

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def assign_splits(
    compared: Table, keep: Mask, shares: SplitShares, alike: Mapping[int, int] = MappingProxyType({})
) -> NDArray[np.int8]:
    """The split of each row's prompt, as its place in SPLITS. Rows that are not kept are not counted.

    Splits named in rows are kept (tiebreak.data.splits); other prompts are divided, counts to the nearest row. A row's
    split depends on the seed and its content alone, not on the order of the files; of nearly equal prompts, on the first.

    Args:
        alike: row → an earlier one with nearly the same prompt, which has the same split unless rows name others.
    """
    prompts, ranks = _joined(compared, alike)
    splits = np.zeros(len(keep), dtype=np.int8)
    bare: dict[Split, float] = {"test": shares.test, "validation": shares.validation}
    shown: dict[Split, float] = {"validation": shares.demonstrations_validation}
    for rows, held_out in ((keep & ~compared.is_demonstration, bare), (keep & compared.is_demonstration, shown)):
        numbers = np.flatnonzero(rows)
        splits[numbers] = _shared_out(prompts[numbers], ranks[numbers], compared.named, held_out)
    return splits


def _joined(compared: Table, alike: Mapping[int, int]) -> tuple[Codes, Codes]:
    """(prompts, ranks) with those of nearly equal prompts made equal: to the first, or to one whose split is named."""
    prompts, ranks = compared.prompts.copy(), compared.ranks.copy()
    named = {prompt_number(identity) for identity in compared.named}
    firsts: dict[int, int] = {}
    for number, first in sorted(alike.items()):
        if int(compared.prompts[number]) in named and int(compared.prompts[first]) not in named:
            firsts.setdefault(first, number)
    for number, first in [*alike.items(), *((first, first) for first in firsts)]:
        model = firsts.get(first, first)
        if int(compared.prompts[number]) not in named:
            prompts[number], ranks[number] = compared.prompts[model], compared.ranks[model]
    return prompts, ranks


def _shared_out(
    prompts: Codes, ranks: Codes, named: Mapping[str, Split], shares: Mapping[Split, float]
) -> NDArray[np.int8]:
    """The splits of prompts: as named; of the others the first by rank are held out, as many as the shares say."""
    unique, first, places = np.unique(prompts, return_index=True, return_inverse=True)
    splits = np.full(len(unique), -1, dtype=np.int8)
    if named:
        stated = np.array([prompt_number(identity) for identity in named], dtype=np.uint64)
        found = np.minimum(np.searchsorted(unique, stated), max(len(unique) - 1, 0))
        for place, number, split_of_prompt in zip(found.tolist(), stated.tolist(), named.values(), strict=True):
            if len(unique) and int(unique[place]) == number:
                splits[place] = SPLITS.index(split_of_prompt)
    free = np.flatnonzero(splits < 0)
    ranked = free[np.argsort(ranks[first[free]])]
    splits[ranked] = SPLITS.index("train")
    start = 0
    for split, share in shares.items():
        end = start + round(share * len(ranked))
        splits[ranked[start:end]] = SPLITS.index(split)
        start = end
    return splits[places]


# --- files ---


def write_rows(
    rows: RowFiles,
    keep: Mask,
    splits: NDArray[np.int8],
    compared: Table,
    work: Store,
    final: Path,
    canaries: Sequence[Canary] = (),
    flagged: Collection[str] = (),
) -> tuple[Summary, list[Counts], dict[str, list[str]]]:
    """Write prompts.jsonl (each prompt once, canaries' left out) and demonstrations.jsonl.

    Args:
        flagged: places of rows.

    Returns:
        the rows by split, the tags, and the rows that contain a canary's number; the distributions of the parts; and the
        ids of the flagged rows' prompts that are kept, by place: a place, such as a tree of messages, may hold several.
    """
    kept = np.flatnonzero(keep)
    _, first = np.unique(compared.prompts[kept], return_index=True)
    is_first = np.zeros(len(keep), dtype=bool)
    is_first[kept[first]] = True
    last = _last_prompts(rows, kept, compared)

    def of_part(task: tuple[RowPart, slice], stem: Path) -> Summary:
        part, numbers = task
        prompts: list[Prompt] = []
        shown: list[Demonstration] = []
        rows_kept: list[Prompt | Demonstration] = []
        flagged_here: dict[str, list[str]] = {}
        for number, row in zip(range(numbers.start, numbers.stop), part, strict=True):
            if not keep[number]:
                continue
            prompt = last.get(row.prompt.id, row.prompt).model_copy(update={"split": SPLITS[splits[number]]})
            if row.where in flagged:
                flagged_here.setdefault(row.where, []).append(prompt.id)
            if is_first[number] and not is_canary(prompt):
                prompts.append(prompt)
            if isinstance(row.record, Demonstration):
                shown.append(row.record.model_copy(update={"prompt": prompt}))
            if not is_canary(prompt):
                rows_kept.append(row.record)
        write_jsonl(stem.with_suffix(".prompts"), prompts)
        write_jsonl(stem.with_suffix(".demonstrations"), shown)
        counts = _counts(prompts, shown, canaries)
        return {**counts, "distributions": counted_rows(rows_kept[::stride]), "flagged": flagged_here}

    opened, stride = work.begin("write"), stride_of(len(kept))
    done = opened.work(of_part, rows.slices(), len(rows), "rows written", lambda task: len(task[0]))
    counts, after, kept_flagged = _summed(done)
    for name in ("prompts", "demonstrations"):
        parts = (opened.folder / f"{number:05d}.{name}" for number in range(len(rows.parts)))
        _join(parts, final / f"{name}.jsonl")
    return counts, after, kept_flagged


def _counts(
    prompts: Sequence[Prompt], shown: Sequence[Demonstration], canaries: Sequence[Canary]
) -> dict[str, Counter[str]]:
    """Prompts and demonstrations by split, tags, and the demonstrations that contain a canary's number, by team."""
    return {
        "prompts": Counter(prompt.split for prompt in prompts),
        "demonstrations": Counter(one.prompt.split for one in shown),
        "tags": Counter(tag for prompt in prompts for tag in prompt.tags),
        "canaries": Counter(team for one in shown if is_canary(one.prompt) for team in in_clear(one, canaries)),
    }


def _summed(parts: Iterable[Summary]) -> tuple[Summary, list[Counts], dict[str, list[str]]]:
    """(the sums of the parts' counts, their distributions, the prompts' ids by flagged place)."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("prompts", "demonstrations", "tags", "canaries")}
    after: list[Counts] = []
    flagged: dict[str, list[str]] = {}
    for one in parts:
        for name, counter in counts.items():
            counter.update(one[name])
        after.append(one["distributions"])
        for where, ids in one["flagged"].items():
            flagged.setdefault(where, []).extend(ids)
    return counts, after, flagged


def _last_prompts(rows: RowFiles, kept: Numbers, compared: Table) -> dict[str, Prompt]:
    """Of prompts with several demonstrations, which may name other sources and tags, the last one, by its id."""
    prompts, places, counts = np.unique(compared.prompts[kept], return_inverse=True, return_counts=True)
    last = np.zeros(len(prompts), dtype=np.int64)
    last[places] = kept  # of equal places the last one stays
    return {row.prompt.id: row.prompt for _, row in rows.at(last[counts > 1].tolist())}


def _join(parts: Iterable[Path], path: Path) -> None:
    joined = path.with_name(f".{path.name}.joined")
    with joined.open("wb") as file:
        for part in parts:
            with part.open("rb") as content:
                shutil.copyfileobj(content, file)
        file.flush()
        os.fsync(file.fileno())
    joined.replace(path)


# --- the report ---


def data_report(
    read: ReadRows, journal: Journal, dropped: Sequence[DroppedRow], counts: Summary, lengths: Lengths
) -> dict[str, Any]:
    """Counts of rows read and kept, lengths, and dropped rows by reason."""
    reasons = Counter(re.sub(r"( of| as) .*|^the prompt has.*|^\d+ \+.*", _short, one.reason) for one in dropped)
    by_steps = sum(tally.dropped for tally in journal.tallies)
    return {
        "counts": {
            "read": dict(read.read),
            "normalised": read.normalised,
            "dropped": len(dropped) + by_steps,
            "prompts": dict(sorted(counts["prompts"].items())),
            "demonstrations": dict(sorted(counts["demonstrations"].items())),
        },
        "lengths": {name: _quantiles(values) for name, values in lengths.tokens.items() if len(values)},
        "dropped": dict(reasons.most_common()),
        "tags": dict(counts["tags"].most_common()),
        **({"left_out": dict(read.left_out.most_common())} if read.left_out else {}),
        **({"steps": [asdict(tally) for tally in journal.tallies]} if journal.tallies else {}),
    }


def data_facts(report: Mapping[str, Any]) -> dict[str, Any]:
    """The data's facts in the manifest, for cards and data sheets. They quote no row."""
    steps = {one["step"]: one for one in report.get("steps", [])}
    balance = {key: value for one in steps.values() for key, value in one["facts"].get("balance", {}).items()}
    hidden = {key: value for one in steps.values() for key, value in one["facts"].get("found", {}).items()}
    found = {
        "lengths": report["lengths"],
        "tags": report["tags"],
        "dropped": report["dropped"],
        "left_out": report.get("left_out", {}),
        "steps": {
            name: {key: one[key] for key in ("read", "changed", "dropped", "flagged")} for name, one in steps.items()
        },
        "hidden": hidden,
        "languages": balance.get("language", {}),
        "words": balance.get("length", {}),
        "gaps": next((one["facts"]["gaps"] for one in steps.values() if "gaps" in one["facts"]), None),
    }
    return {key: value for key, value in found.items() if value}


def _short(match: re.Match[str]) -> str:
    return "too long" if match.group()[0] != " " else match.group(1)


def _quantiles(values: Numbers) -> dict[str, float]:
    ordered = sorted(values.tolist())
    return {
        "min": ordered[0],
        "median": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "max": ordered[-1],
        "mean": round(statistics.fmean(ordered), 1),
    }


def say_report(run: Run, report: dict[str, Any]) -> None:
    """The report as two tables."""
    counts, splits = report["counts"], ("train", "validation", "test")
    read = rows_read(counts["read"])
    reasons = ", ".join(f"{count} {reason}" for reason, count in report["dropped"].items())
    rows: list[list[str | Cell]] = [[Cell(name, "dim") for name in ("kept", *splits)]]
    rows += [
        [what, *(str(counts[what].get(split, 0)) for split in splits)]
        for what in ("prompts", "demonstrations")
        if counts[what]
    ]
    lengths: list[list[str | Cell]] = [[Cell(name, "dim") for name in ("tokens", *_QUANTILES)]]
    lengths += [
        [f"a {name.removesuffix('_tokens')}", *(f"{values[quantile]:g}" for quantile in _QUANTILES)]
        for name, values in report["lengths"].items()
    ]
    colours = has_colours(sys.stderr)
    say(
        f"read {read}; dropped {counts['dropped']}{f' ({reasons})' if reasons else ''}",
        *_step_lines(report.get("steps", []), colours),
        "",
        *table(rows, colours=colours),
        "",
        *([*table(lengths, colours=colours), ""] if report["lengths"] else []),
        f"report: {(run.folder / 'report.html').resolve().as_uri()}",
        *([f"every dropped row: {run.final / 'dropped.jsonl'}"] if counts["dropped"] else []),
    )


def _step_lines(tallies: Sequence[Mapping[str, Any]], colours: bool) -> list[str]:
    """The steps as a table, with their caveats."""
    if not tallies:
        return []
    rows: list[list[str | Cell]] = [[Cell(name, "dim") for name in ("step", "rows", "changed", "dropped", "flagged")]]
    rows += [[one["step"], *(str(one[key]) for key in ("read", "changed", "dropped", "flagged"))] for one in tallies]
    remarks = [one["facts"]["names"] for one in tallies if one["facts"].get("names", "sought") != "sought"]
    return ["", *table(rows, colours=colours), *remarks]


_QUANTILES = ("min", "median", "p95", "max", "mean")


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak prepare`, or `python -m sft.prepare`."""
    stage_main("prepare", PrepareConfig, prepare, arguments)


if __name__ == "__main__":
    main()

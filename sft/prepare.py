"""Read raw prompts and demonstrations, check every row, drop duplicates, and split by prompt, once.

    tiebreak prepare --config configs/quickstart/prepare.yaml

Every later stage takes its split from here, so a prompt that is held out once stays held out. A row that names its
`split` keeps it. Of the others, prompts with a demonstration go to train or validation only: the test split is for
prompts without an expert's answer.
"""

from __future__ import annotations

import math
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.configuration import PrepareConfig, SplitShares
from sft.normalising import normalise_completion, normalise_prompt
from sft.page import build_page
from sft.steps.step import Entry, Ledger, Row, Step, build_steps, run_steps, with_progress
from tiebreak.command.launch import stage_main
from tiebreak.data.reading import Reading, Rules, drop_leaked, faults_of, read, settle
from tiebreak.data.shapes import RecordKind
from tiebreak.data.splits import named_splits
from tiebreak.data.text import BadRow
from tiebreak.errors import DataError, HandoffError, counted
from tiebreak.records import (
    Demonstration,
    Messages,
    Prompt,
    Split,
    Tools,
    content_id,
    text_of,
    write_json,
    write_jsonl,
    write_text_atomically,
)
from tiebreak.runs.requirements import ANONYMISED
from tiebreak.runs.run import Run, start_run
from tiebreak.terminal import Cell, has_colours, say, table
from tiebreak.tracking.recorder import track, track_again

if TYPE_CHECKING:
    from tiebreak.chat.chat import Chat


@dataclass(frozen=True)
class DroppedRow:
    """A row that was left out, with place and reason."""

    where: str
    reason: str
    text: str


@dataclass
class ValidRows:
    """Valid rows, with their places."""

    prompts: list[tuple[str, Prompt]] = field(default_factory=list)
    demonstrations: list[tuple[str, Demonstration]] = field(default_factory=list)
    dropped: list[DroppedRow] = field(default_factory=list)
    read: Counter[str] = field(default_factory=Counter)
    splits: dict[str, Split] = field(default_factory=dict)
    """prompt id → the split that its rows name"""
    normalised: int = 0
    ledger: Ledger = field(default_factory=Ledger)


def prepare(config: PrepareConfig) -> None:
    """The stage."""
    sources = [*config.prompts, *config.demonstrations]
    with start_run(config, "prepare") as run:
        if run.finished:
            track_again(run)
            say(f"{run.folder} is finished with this configuration and these inputs: nothing to do")
            return
        steps = build_steps(config)
        data = gather(config, run, steps)
        drop_duplicates(data, config.near_duplicate, config.max_near_duplicate_share)
        lengths = drop_long(data, config)
        prompts, demonstrations = assign_splits(data, config.split)
        write_jsonl(run.final / "prompts.jsonl", prompts)
        write_jsonl(run.final / "demonstrations.jsonl", demonstrations)
        names = file_names(sources)
        dropped = [*data.ledger.lines(data.ledger.dropped), *map(vars, data.dropped)]
        write_jsonl(run.final / "dropped.jsonl", [_by_name(one, names) for one in dropped])
        if steps:
            for name in ("changed", "flagged"):
                entries: list[Entry] = getattr(data.ledger, name)
                write_jsonl(run.final / f"{name}.jsonl", [_by_name(one, names) for one in data.ledger.lines(entries)])
        if "balance" in config.steps:
            write_jsonl(run.final / "gaps.jsonl", data.ledger.gap_lines())
        report = data_report(data, prompts, demonstrations, lengths)
        write_json(run.final / "report.json", report)
        run.facts["counts"] = report["counts"]
        run.facts |= {ANONYMISED: how} if (how := _anonymised(data.ledger)) else {}
        shown = {name: data.ledger.lines(getattr(data.ledger, name)) for name in ("changed", "flagged")}
        inputs = {name: one.source for name, one in run.inputs.items() if name.startswith("data_")}
        page = build_page(report, inputs, shown["changed"], dropped, shown["flagged"])
        write_text_atomically(run.folder / "report.html", page)
        run.finish()
        track(run)
        say_report(run, report)


def _anonymised(ledger: Ledger) -> dict[str, str]:
    """How the rows were anonymised, for the manifest; empty if they were not."""
    facts = next((tally.facts for tally in ledger.tallies if "mode" in tally.facts), {})
    return {key: str(facts[key]) for key in ("mode", "names") if key in facts}


def file_names(sources: Sequence[str]) -> dict[str, str]:
    """Each source's name in the run: its file's name, so that the same data makes the same run in any folder.

    Sources keep their paths if two files have the same name.
    """
    names = {source: source if source.startswith("hub:") else Path(source).name for source in sources}
    return names if len(set(names.values())) == len(names) else {source: source for source in sources}


def _by_name(entry: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    return {**entry, "where": _named(entry["where"], names), "reason": _named(entry["reason"], names)}


def _named(text: str, names: Mapping[str, str]) -> str:
    """A text with the names of sources in the place of their paths."""
    for source, name in names.items():
        for mark in ":/":  # in a path, and in a shard's place
            text = text.replace(f"{source}{mark}", f"{name}{mark}")
    return text


def gather(config: PrepareConfig, run: Run | None = None, steps: Sequence[Step] = ()) -> ValidRows:
    """Read and check every row of every source, and apply the steps.

    Raises:
        DataError: with every fault of every file.
    """
    data, rules = ValidRows(), Rules(config.columns, config.on_bad_row, run=run, stage="prepare")
    names = file_names([*config.prompts, *config.demonstrations])
    readings: list[Reading] = []
    faults: list[str] = []
    sources: tuple[tuple[RecordKind, list[str]], ...] = (
        ("prompts", config.prompts),
        ("demonstrations", config.demonstrations),
    )
    for wanted, source in ((wanted, source) for wanted, listed in sources for source in listed):
        try:
            readings.append(read(source, wanted, rules))
        except DataError as error:
            faults += error.faults or [str(error)]
    for reading in readings:
        _normalise_drafts(data, reading, names[reading.source])
    if rules.on_bad_row == "drop":
        drop_leaked(*readings)
    faults += [fault for reading in readings if rules.on_bad_row == "refuse" for fault in faults_of(reading)]
    if faults:
        raise DataError(
            f"{counted(len(faults), 'error')} in the data; nothing was written. Fix them, or set on_bad_row: drop",
            faults,
        )
    drafts = [draft for reading in readings for draft in settle(reading, rules)]
    rows, data.ledger = run_steps(steps, [Row(draft.where, draft.record, draft.split) for draft in drafts])
    data.splits = named_splits((row.where, row.prompt.id, row.split) for row in rows)
    for row in rows:
        if isinstance(row.record, Demonstration):
            data.demonstrations.append((row.where, row.record))
        else:
            data.prompts.append((row.where, row.record))
    return data


def _normalise_drafts(data: ValidRows, reading: Reading, name: str) -> None:
    """Normalise the rows, each to be split by its normalised prompt. What is empty then is a bad row."""
    data.read[reading.wanted] += reading.rows
    kept = []
    for draft in reading.drafts:
        record = draft.placed(draft.split or "train")
        shown = record if isinstance(record, Demonstration) else None
        asked = record.prompt if isinstance(record, Demonstration) else record
        prompt, changed = normalise_prompt(asked.model_copy(update={"source": asked.source or name}))
        completion = normalise_completion(shown.completion) if shown else ""
        if unseen := "prompt" if is_blank(prompt) else "completion" if shown and not _says(completion) else "":
            reason = f"the {unseen} is empty but for characters that cannot be seen"
            reading.bad.append(BadRow(draft.where, reason))
            continue
        data.normalised += changed or (shown is not None and completion != shown.completion)
        answered = shown and shown.model_copy(update={"prompt": prompt, "completion": completion})
        kept.append(replace(draft, prompt=prompt.id, record=answered or prompt))
    reading.drafts = kept


def _says(completion: str | Messages) -> bool:
    return bool(completion) if isinstance(completion, str) else not completion[-1].is_empty


def is_blank(prompt: Prompt) -> bool:
    """Whether the user's message is empty."""
    return prompt.messages[-1].role == "user" and prompt.messages[-1].is_empty


# --- duplicates ---


def drop_duplicates(data: ValidRows, threshold: float, max_share: float = 1.0) -> None:
    """Drop exact and near duplicates; a prompt that is also in a demonstration is dropped.

    Two answers to one prompt are two demonstrations, and both are kept.

    Raises:
        DataError: more than `max_share` of the rows are near duplicates.
    """
    data.demonstrations = _unique(
        data.demonstrations,
        lambda d: content_id("demonstration", d.prompt.id, d.completion),
        lambda d: ComparedText(f"{_prompt_text(d.prompt)}\n{d.text}", d.prompt.tools),
        Nearness(threshold, max_share, "demonstrations"),
        data.dropped,
    )
    shown = {d.prompt.id: f"demonstration:{where}" for where, d in data.demonstrations}
    before = [(where, d.prompt) for where, d in data.demonstrations]
    kept: list[tuple[str, Prompt]] = []
    for where, prompt in data.prompts:
        if prompt.id in shown:
            data.dropped.append(DroppedRow(where, f"the same prompt as {shown[prompt.id]}", _prompt_text(prompt)))
        else:
            kept.append((where, prompt))
    everything = _unique(
        [*before, *kept],
        lambda p: p.id,
        lambda p: ComparedText(_prompt_text(p), p.tools),
        Nearness(threshold, max_share, "prompts"),
        data.dropped,
        keep_first=len(before),
    )
    data.prompts = everything[len(before) :]


@dataclass(frozen=True)
class ComparedText:
    """Comparison keys of a row."""

    text: str
    tools: Tools

    @property
    def kind(self) -> tuple[str, ...]:
        """Rows that differ in this are not duplicates: other numbers and other tools need other answers."""
        return (*re.findall(r"\d+", self.text), *(content_id("tool", tool) for tool in self.tools))


@dataclass(frozen=True)
class Nearness:
    """The definition of a duplicate."""

    threshold: float
    max_share: float
    what: str


FEW = 2
"""Up to this many near duplicates are always allowed."""


def _unique(
    rows: Sequence[tuple[str, Any]],
    identity: Callable[[Any], str],
    compared: Callable[[Any], ComparedText],
    nearness: Nearness,
    dropped: list[DroppedRow],
    keep_first: int = 0,
) -> list[tuple[str, Any]]:
    """`rows` without later duplicates. The first `keep_first` are compared against and never dropped."""
    seen: dict[str, str] = {}
    exact: list[tuple[str, Any]] = []
    for number, (where, row) in enumerate(rows):
        if number >= keep_first and identity(row) in seen:
            dropped.append(DroppedRow(where, f"the same as {seen[identity(row)]}", compared(row).text))
        else:
            seen.setdefault(identity(row), where)
            exact.append((where, row))
    if nearness.threshold >= 1.0:
        return exact
    texts = [compared(row) for _, row in exact]
    earlier = {n: found for n, found in _near(texts, nearness.threshold).items() if n >= keep_first}
    _refuse_many(earlier, texts, nearness, len(exact) - keep_first)
    for number, (other, overlap) in sorted(earlier.items()):
        reason = f"near duplicate of {exact[other][0]} (overlap {overlap:.2f})"
        dropped.append(DroppedRow(exact[number][0], reason, texts[number].text))
    return [row for number, row in enumerate(exact) if number not in earlier]


def _near(texts: Sequence[ComparedText], threshold: float) -> dict[int, tuple[int, float]]:
    """`near_duplicates` among the texts of one kind."""
    kinds: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, one in enumerate(texts):
        kinds[one.kind].append(number)
    return {
        numbers[one]: (numbers[other], overlap)
        for numbers in kinds.values()
        for one, (other, overlap) in near_duplicates([trigrams(texts[n].text) for n in numbers], threshold).items()
    }


def _refuse_many(
    earlier: Mapping[int, tuple[int, float]], texts: Sequence[ComparedText], nearness: Nearness, rows: int
) -> None:
    """Rows from a template look like copies: the user decides, not the threshold."""
    if len(earlier) <= max(FEW, nearness.max_share * rows):
        return
    examples = [f"{texts[n].text[:80]!r} and {texts[other].text[:80]!r}" for n, (other, _) in sorted(earlier.items())]
    raise DataError(
        f"{len(earlier)} of {rows} {nearness.what} overlap an earlier one by {nearness.threshold:g} or more "
        f"(near_duplicate), above max_near_duplicate_share ({nearness.max_share:g}): nothing was written. Keep them with "
        "near_duplicate: 1 (then only exact copies are dropped), or drop them with max_near_duplicate_share: 1",
        examples[:5],
    )


def trigrams(text: str) -> frozenset[tuple[str, ...]]:
    """The word trigrams of a text, in lower case, without punctuation; the whole text if it has fewer words."""
    words = re.findall(r"\w+", text.lower()) or [text]
    if len(words) < 3:
        return frozenset([tuple(words)])
    return frozenset(zip(words, words[1:], words[2:], strict=False))


def near_duplicates(sets: Sequence[frozenset[Any]], threshold: float) -> dict[int, tuple[int, float]]:
    """Near duplicates of earlier rows, by set overlap: number → (the earlier one, Jaccard overlap).

    Exact, not sampled: by prefix filtering (Bayardo et al. 2007), two sets can only reach the threshold if they share one
    of their |x| − ⌈t·|x|⌉ + 1 rarest members, so only those are looked up.
    """
    rarity = Counter(member for one in sets for member in one)
    index: dict[Any, list[int]] = defaultdict(list)
    found: dict[int, tuple[int, float]] = {}
    for number, one in enumerate(sets):
        ordered = sorted(one, key=lambda member: (rarity[member], member))
        needed = math.ceil(threshold * len(ordered) - 1e-9)  # 0.56·25 is 14.000000000000002 in floating point
        prefix = ordered[: len(ordered) - needed + 1]
        candidates = sorted({other for member in prefix for other in index[member]})
        for other in candidates:
            overlap = len(one & sets[other]) / len(one | sets[other])
            if overlap >= threshold:
                found[number] = (other, overlap)
                break
        else:
            for member in prefix:
                index[member].append(number)
    return found


def _prompt_text(prompt: Prompt) -> str:
    return text_of(prompt.messages)


# --- lengths and splits ---


def drop_long(data: ValidRows, config: PrepareConfig) -> dict[str, list[int]]:
    """Drop rows longer than the limits; returns the lengths of the others in tokens.

    Raises:
        DataError: lists every row that the chat template refuses (unless on_bad_row: drop); or none is left.
    """
    from tiebreak.models.find import find_model
    from tiebreak.models.tokenizers import load_chat

    chat = load_chat(find_model(config.policy, trust_remote_code=config.trust_remote_code), config.chat)
    lengths: dict[str, list[int]] = {"prompt_tokens": [], "completion_tokens": []}
    unrendered: list[DroppedRow] = []
    prompts: list[tuple[str, Prompt]] = []
    for where, prompt in with_progress(data.prompts, "prompts measured"):
        try:
            length = len(chat.encode_prompt(prompt.messages, prompt.tools))
        except HandoffError as error:
            unrendered.append(DroppedRow(where, str(error), _prompt_text(prompt)))
            continue
        if length > config.max_prompt_tokens:
            reason = f"the prompt has {length} tokens, more than max_prompt_tokens ({config.max_prompt_tokens})"
            data.dropped.append(DroppedRow(where, reason, _prompt_text(prompt)))
        else:
            lengths["prompt_tokens"].append(length)
            prompts.append((where, prompt))
    demonstrations: list[tuple[str, Demonstration]] = []
    for where, shown in with_progress(data.demonstrations, "demonstrations measured"):
        try:
            before, after = _token_counts(shown, chat)
        except HandoffError as error:
            unrendered.append(DroppedRow(where, str(error), _prompt_text(shown.prompt)))
            continue
        if before > config.max_prompt_tokens or after > config.max_completion_tokens:
            reason = f"{before} + {after} tokens, more than max_prompt_tokens or max_completion_tokens"
            data.dropped.append(DroppedRow(where, reason, _prompt_text(shown.prompt)))
        else:
            lengths["completion_tokens"].append(after)
            demonstrations.append((where, shown))
    if unrendered and (config.on_bad_row == "refuse" or not (prompts or demonstrations)):
        faults = [f"{one.where}: {one.reason}" for one in unrendered]
        raise DataError(f"{counted(len(faults), 'row')} cannot be rendered; nothing was written", faults)
    data.dropped += unrendered
    data.prompts, data.demonstrations = prompts, demonstrations
    if not prompts and not demonstrations:
        raise DataError("every row is longer than max_prompt_tokens or max_completion_tokens: raise them")
    return lengths


def _token_counts(shown: Demonstration, chat: Chat) -> tuple[int, int]:
    """(tokens of the prompt, tokens after it) as SFT sees them."""
    asked = shown.prompt.messages
    before = len(chat.encode_prompt(asked, shown.prompt.tools))
    examples = chat.encode_conversation((*asked, *shown.answers), True, shown.prompt.tools, len(asked))
    return before, max(len(example.input_ids) for example in examples) - before


def assign_splits(data: ValidRows, shares: SplitShares) -> tuple[list[Prompt], list[Demonstration]]:
    """Give every prompt its split. Returns (all prompts, demonstrations).

    Splits named in rows are kept (tiebreak.data.splits); other prompts are divided, counts to the nearest row. A row's
    split depends on the seed and its content alone, not on the order of the files.
    """
    shown = {d.prompt.id: d.prompt for _, d in data.demonstrations}
    bare = {p.id: p for _, p in data.prompts}
    splits = dict(data.splits)
    ranked = _ranked(bare.keys() - splits.keys(), shares.seed)
    tests, validations = round(shares.test * len(ranked)), round(shares.validation * len(ranked))
    for rank, identity in enumerate(ranked):
        splits[identity] = "test" if rank < tests else "validation" if rank < tests + validations else "train"
    ranked = _ranked(shown.keys() - splits.keys(), shares.seed)
    for rank, identity in enumerate(ranked):
        splits[identity] = "validation" if rank < round(shares.demonstrations_validation * len(ranked)) else "train"
    prompts = [p.model_copy(update={"split": splits[p.id]}) for p in [*bare.values(), *shown.values()]]
    by_id = {p.id: p for p in prompts}
    return prompts, [d.model_copy(update={"prompt": by_id[d.prompt.id]}) for _, d in data.demonstrations]


def _ranked(identities: Iterable[str], seed: int) -> list[str]:
    return sorted(identities, key=lambda identity: content_id("rank", seed, identity))


# --- the report ---


def data_report(
    data: ValidRows, prompts: list[Prompt], demonstrations: list[Demonstration], lengths: dict[str, list[int]]
) -> dict[str, Any]:
    """Counts of rows read and kept, lengths, and dropped rows by reason."""
    reasons = Counter(re.sub(r"( of| as) .*|^the prompt has.*|^\d+ \+.*", _short, one.reason) for one in data.dropped)
    by_steps = sum(tally.dropped for tally in data.ledger.tallies)
    return {
        "counts": {
            "read": dict(data.read),
            "normalised": data.normalised,
            "dropped": len(data.dropped) + by_steps,
            "prompts": dict(sorted(Counter(p.split for p in prompts).items())),
            "demonstrations": dict(sorted(Counter(d.prompt.split for d in demonstrations).items())),
        },
        "lengths": {name: _quantiles(values) for name, values in lengths.items() if values},
        "dropped": dict(reasons.most_common()),
        "tags": dict(Counter(tag for p in prompts for tag in p.tags).most_common()),
        **({"steps": [asdict(tally) for tally in data.ledger.tallies]} if data.ledger.tallies else {}),
    }


def _short(match: re.Match[str]) -> str:
    return "too long" if match.group()[0] != " " else match.group(1)


def _quantiles(values: list[int]) -> dict[str, float]:
    ordered = sorted(values)
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
    read = " and ".join(f"{rows} {what}" for what, rows in counts["read"].items())
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

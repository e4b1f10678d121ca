"""The run folder for the next stages: `final/preferences.jsonl` in TRL's columns, `judgments.jsonl` and
`report.json`; settled answers in `adjudications.jsonl`; known answers in `gold.jsonl`; judgments of single answers in
`assessments.jsonl`; where raters edited answers, also `demonstrations.jsonl` (for SFT) and `edit_preferences.jsonl` (edited
> chosen > rejected; edited > first > … of a ranking).

    tiebreak label export --store sqlite:///runs/quickstart/label.sqlite --output runs/quickstart/label
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from labeling_ui.exchange.arms import measure_arms
from labeling_ui.exchange.outward import hub_card, judgment_rows, write_argilla, write_label_studio
from labeling_ui.exchange.passages import marked_answers
from labeling_ui.exchange.single import decide_assessments, demonstrations_of, describe_assessed, write_assessed
from labeling_ui.quality.aggregate import (
    GOLD_RATER,
    AggregationConfig,
    AggregationResult,
    KnownAnswers,
    Vote,
    as_vote,
    build_preferences,
    group_judgments,
)
from labeling_ui.quality.agreement import measure_percent
from labeling_ui.quality.criteria import agreement_by_criterion
from labeling_ui.quality.votes import KINDS, Comparison, read_votes
from labeling_ui.store.pairs import campaign
from labeling_ui.store.pairs.campaign import Gold
from labeling_ui.store.pairs.changes import Withdrawal
from labeling_ui.store.pairs.items import items_of
from labeling_ui.store.pairs.media import described
from labeling_ui.store.store import Store, count_kinds
from labeling_ui.store.work.asking import FLAGS
from tiebreak.assessments import Assessment, ExportedAssessment, SingleAnswer
from tiebreak.data.synthetic import REVIEWED, count_synthetic, is_synthetic
from tiebreak.errors import DataError
from tiebreak.files import write_json, write_jsonl, write_text_atomically
from tiebreak.messages import assistant
from tiebreak.records import Completion, Demonstration, ExportedJudgment, Judgment, Pair, Preference, Prompt
from tiebreak.runs.run import Run

GOLD_FILE = "gold.jsonl"
Format = Literal["parquet", "datasets", "unpaired", "csv", "argilla", "label_studio", "hub"]


@dataclass(frozen=True)
class Labels:
    """A store's labels. Nothing in it is newer than the log's `head`."""

    pairs: list[Pair]
    judgments: list[ExportedJudgment]
    adjudications: list[ExportedJudgment]
    """of pairs and of single answers"""
    known_answers: KnownAnswers
    gold: list[Gold]
    withdrawn: list[Withdrawal]
    single_answers: list[SingleAnswer]
    assessments: list[ExportedAssessment]
    unseen: dict[str, str]
    """single answers that were accepted by a sample of their lot, each with its batch"""
    head: str
    wanted: dict[str, int]
    """evaluation pair → the number of judgments that it needs"""


def read_labels(store: Store) -> Labels:
    """A store's labels.

    Raises:
        DataError: there are no judgments.
    """
    pairs, known_answers, adjudications = store.pairs(), read_known_answers(store), store.exported_adjudications()
    judgments, assessments, head = store.exported()
    if not judgments and not adjudications and not assessments:
        raise DataError(f"{store.url} has no judgments yet: there is nothing to export")
    with store.reading() as connection:
        pairs, single_answers = described(connection, pairs), described(connection, store.single_answers())
        wanted = campaign.judgments_wanted(connection)
    selected = {pair.id: pair.selection for pair in pairs if pair.selection is not None}
    return Labels(
        pairs,
        [one.model_copy(update={"selection": selected.get(one.pair_id)}) for one in judgments],
        adjudications,
        known_answers,
        store.gold(),
        store.withdrawals(),
        single_answers,
        assessments,
        store.accepted_unseen(),
        head,
        wanted,
    )


def read_known_answers(store: Store) -> KnownAnswers:
    """Settled and gold answers."""
    items = {item.id: item for pair in store.pairs() for item in items_of(pair)}
    gold: dict[Comparison, Vote] = {}
    for one in store.gold():
        if one.value is not None:  # a single answer's
            continue
        item = items[one.item_id]
        first, second = sorted((item.first_id, str(item.second_id)))
        side = 0 if one.preferred_id is None else 1 if one.preferred_id == first else -1
        gold[item.pair_id, first, second] = Vote(GOLD_RATER, side)
    of_pairs = [one for one in store.adjudications() if not isinstance(one, Assessment)]
    settled = {_key(one): vote for one in of_pairs if (vote := as_vote(one)) is not None}
    return KnownAnswers(settled, gold)


def _key(judgment: Judgment) -> Comparison:
    first, second = sorted((judgment.left, judgment.right))
    return judgment.pair_id, first, second


def export(store: Store, run: Run, config: AggregationConfig, formats: Sequence[Format] = ()) -> dict[str, Any]:
    """Write the store's labels into an open run folder and finish it; returns the report.

    Raises:
        DataError: there are no judgments, or a rater to leave out does not exist.
    """
    labels, report = write_labels(store, run.final, config, formats)
    run.facts |= {
        "kinds": count_kinds([*labels.judgments, *labels.assessments]),
        "preferences": report["preferences"]["total"],
        "judgments": len(labels.judgments),
        **({"assessments": len(labels.assessments)} if labels.assessments else {}),
        **({"synthetic": report["synthetic"]} if "synthetic" in report else {}),
        "pairs": len(labels.pairs),
        "withdrawn": [
            {"pair_id": o.pair_id, "reason": o.reason, "replaced_by": o.replaced_by} for o in labels.withdrawn
        ],
        "event_log_head": labels.head,
        **_about_raters(labels, report["agreement"]),
    }
    run.finish()
    store.mark_export(labels.head, str(run.folder))
    return report


def _about_raters(labels: Labels, agreement: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's figures on who judged: raters and agreement by kind, judgments by version of the guidelines."""
    judged = [*labels.judgments, *labels.assessments]
    versions = Counter(one.guideline_version for one in judged if one.guideline_version)
    measured = {kind: _short_agreement(one) for kind, one in agreement.items()}
    return {
        "raters": {kind: len({one.rater_id for one in judged if one.kind == kind}) for kind in count_kinds(judged)},
        **({"guideline_versions": dict(sorted(versions.items()))} if versions else {}),
        **({"agreement": kept} if (kept := {kind: one for kind, one in measured.items() if one}) else {}),
    }


def _short_agreement(measured: Mapping[str, Any]) -> dict[str, Any]:
    """How often two raters gave the same answer, counting ties, with its interval; {} if no comparison has two votes. If
    raters were left out, also without them."""
    found = measured["percent_with_ties"]
    if found["value"] is None:
        return {}
    rest = _short_agreement(measured["after_filtering"]) if "after_filtering" in measured else {}
    own = {"share": found["value"], "interval": found["interval"], "comparisons": found["n"]}
    return {**own, **({"without those left out": rest} if rest else {})}


def write_labels(
    store: Store, folder: Path, config: AggregationConfig, formats: Sequence[Format]
) -> tuple[Labels, dict[str, Any]]:
    """Write the store's labels into a folder; returns them and the report. Judgments of evaluation pairs are written as
    judgments alone: training reads the other files.

    Raises:
        DataError: there are no judgments, or a rater to leave out does not exist.
    """
    labels = read_labels(store)
    evaluating = {pair.id for pair in labels.pairs if pair.purpose == "evaluation"}
    everything = _leave_out(labels.judgments, config.exclude_raters, labels.assessments)
    kept = [one for one in everything if one.pair_id not in evaluating]
    _check_flags(labels.judgments, config)
    assessed = decide_assessments(
        labels.single_answers,
        [one for one in labels.assessments if one.rater_id not in config.exclude_raters and not one.gold],
        store.accepted_unseen(config.exclude_raters) if config.exclude_raters else labels.unseen,
        [one for one in labels.adjudications if isinstance(one, ExportedAssessment) and not one.gold],
    )
    known_answers = labels.known_answers.without(evaluating)
    aggregated = build_preferences(labels.pairs, group_judgments(kept), config, known_answers)
    left_out = {group.key for group, verdict in aggregated.verdicts if verdict.reason in ("flagged", "gold")}
    rest = [one for one in kept if not any(_key(part) in left_out for part in one.pairwise())]
    edits = build_edits(labels.pairs, rest)
    marked = list(marked_answers(labels.pairs, rest))
    of_duels = [one for one in everything if one.pair_id in evaluating]
    report = build_report(labels, [*rest, *of_duels], aggregated, config)
    report["edits"] = len(edits)
    if evaluating:
        report["evaluation"] = {
            "pairs": len(evaluating),
            "judgments": len(of_duels),
            "judged_in_part": judged_in_part(labels),
        }
    demonstrations = [*(edit.demonstration for edit in edits), *demonstrations_of(assessed)]
    _write_records(folder, labels, aggregated, edits, demonstrations)
    if any(map(is_synthetic, made := [*aggregated.preferences, *demonstrations])):
        report["synthetic"] = count_synthetic(made)
    if assessed:
        report["single_answers"] = describe_assessed(assessed, labels.assessments)
        write_assessed(folder, assessed)
    if arms := measure_arms(labels.pairs, rest, aggregated):
        report["selection"] = arms
    if marked:
        report["marked_answers"] = len(marked)
        write_jsonl(folder / "marked_answers.jsonl", marked)
    _write_formats(folder, labels, aggregated, config, formats)
    write_json(folder / "report.json", report)
    return labels, report


def judged_in_part(labels: Labels) -> list[str]:
    """The evaluation pairs that have some, but not all, of their judgments: neither skips, repeats nor models' verdicts."""
    got = Counter(one.pair_id for one in labels.judgments if not one.skip and not one.repeat and one.kind != "model")
    return [pair.id for pair in labels.pairs if 0 < got[pair.id] < labels.wanted.get(pair.id, 0)]


def _check_flags(judgments: Sequence[Judgment], config: AggregationConfig) -> None:
    there = {*FLAGS, *chain.from_iterable(judgment.flags for judgment in judgments)}
    if unknown := sorted(set(config.drop_flagged) - there):
        raise DataError(
            f"aggregation.drop_flagged: no rater flagged anything as {', '.join(unknown)}; flags are "
            f"{', '.join(sorted(there))}"
        )


def _leave_out(judgments: Sequence[Judgment], raters: Sequence[str], others: Sequence[Judgment] = ()) -> list[Judgment]:
    there = {judgment.rater_id for judgment in [*judgments, *others]}
    if unknown := sorted(set(raters) - there):
        raise DataError(
            f"aggregation.exclude_raters: no judgments by {', '.join(unknown)}; 'tiebreak raters list' shows the ids"
        )
    return [judgment for judgment in judgments if judgment.rater_id not in raters]


def _write_records(
    folder: Path,
    labels: Labels,
    aggregated: AggregationResult,
    edits: Sequence[Edit],
    demonstrations: Sequence[Demonstration],
) -> None:
    write_jsonl(folder / "preferences.jsonl", aggregated.preferences)
    write_jsonl(folder / "judgments.jsonl", labels.judgments)
    if labels.assessments:
        write_jsonl(folder / "assessments.jsonl", labels.assessments)
    if labels.adjudications:
        write_jsonl(folder / "adjudications.jsonl", labels.adjudications)
    if labels.gold:
        write_jsonl(folder / GOLD_FILE, [_gold_row(one) for one in labels.gold])
    if demonstrations:
        write_jsonl(folder / "demonstrations.jsonl", demonstrations)
    if edits:
        write_jsonl(folder / "edit_preferences.jsonl", [one for edit in edits for one in edit.preferences])


def _gold_row(gold: Gold) -> dict[str, Any]:
    """A known answer as `tiebreak label gold` reads it."""
    known = {"preferred_id": gold.preferred_id} if gold.value is None else {"value": gold.value}
    return {"item_id": gold.item_id, **known}


def _write_formats(
    folder: Path, labels: Labels, aggregated: AggregationResult, config: AggregationConfig, formats: Sequence[Format]
) -> None:
    if "parquet" in formats:
        write_parquet(folder / "parquet", aggregated.preferences)
    if "datasets" in formats:
        write_dataset(folder / "datasets", aggregated.preferences)
    if "unpaired" in formats:
        write_jsonl(folder / "unpaired.jsonl", unpaired(labels.pairs, aggregated, config.both_bad == "unpaired"))
    if "argilla" in formats:
        write_argilla(folder, labels.pairs, labels.judgments)
    if "label_studio" in formats:
        write_label_studio(folder, labels.pairs, labels.judgments)
    if "hub" in formats:
        write_hub(folder / "hub", aggregated.preferences, labels.judgments)
    if "csv" in formats:
        write_text_atomically(folder / "judgments.csv", judgments_as_csv(labels.judgments))
        if labels.assessments:
            write_text_atomically(folder / "assessments.csv", judgments_as_csv(labels.assessments))


def _rows_by_split(preferences: Sequence[Preference]) -> dict[str, list[dict[str, Any]]]:
    """The rows for Arrow, which takes its columns from the first row: every row gets all columns."""
    dumped = [preference.model_dump(mode="json") for preference in preferences]
    columns = dict.fromkeys(column for row in dumped for column in row)
    rows: dict[str, list[dict[str, Any]]] = {}
    for preference, row in zip(preferences, dumped, strict=True):
        filled = {column: _for_arrow(column, row.get(column)) for column in columns}
        rows.setdefault(preference.split or "train", []).append(filled)
    return rows


def _for_arrow(column: str, value: Any) -> Any:
    """Tools' schemas and arguments as JSON text: Arrow has one type per column, and `tiebreak.data` reads both."""
    if column == "tools":
        return json.dumps(value) if value else None
    if column in ("prompt", "chosen", "rejected"):
        return [
            message | ({"tool_calls": json.dumps(message["tool_calls"])} if "tool_calls" in message else {})
            for message in value
        ]
    return value


def write_parquet(folder: Path, preferences: Sequence[Preference]) -> None:
    """One file per split, as `datasets.load_dataset(FOLDER)` reads them."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    for split, rows in _rows_by_split(preferences).items():
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}.parquet")


def write_hub(folder: Path, preferences: Sequence[Preference], judgments: Sequence[ExportedJudgment]) -> None:
    """A folder to upload as a data set: the card, preferences as Parquet, and judgments."""
    folder.mkdir()
    write_parquet(folder / "data", preferences)
    (folder / "judgments").mkdir()
    write_jsonl(folder / "judgments" / "judgments.jsonl", judgment_rows(judgments))
    write_text_atomically(folder / "README.md", hub_card(preferences, judgments))


def write_dataset(folder: Path, preferences: Sequence[Preference]) -> None:
    """One dataset per split, as `datasets.load_from_disk(FOLDER)` reads them."""
    from datasets import Dataset, DatasetDict

    DatasetDict({split: Dataset.from_list(rows) for split, rows in _rows_by_split(preferences).items()}).save_to_disk(
        folder
    )


def unpaired(pairs: Sequence[Pair], aggregated: AggregationResult, with_both_bad: bool) -> Iterator[dict[str, Any]]:
    """TRL's unpaired format: chosen answers are good and rejected ones bad; with `with_both_bad`, so are both answers of
    a pair called both bad.

    An answer that is good in one row and bad in another (in a pair of three or more, or a tie kept both ways) is left out.
    """
    labels: dict[tuple[str, str, str], set[bool]] = {}
    by_id = {pair.id: pair for pair in pairs}
    for preference in aggregated.preferences:
        for text, good in ((preference.chosen_text, True), (preference.rejected_text, False)):
            labels.setdefault((preference.pair_id or "", text, preference.kind), set()).add(good)
    for group, verdict in aggregated.verdicts:
        if with_both_bad and verdict.reason == "both_bad":
            texts = {completion.id: completion.text for completion in by_id[group.pair_id].completions}
            for side in (group.first, group.second):
                labels.setdefault((group.pair_id, texts[side], group.kind), set()).add(False)
    for (pair_id, text, kind), label in labels.items():
        if len(label) == 1:
            pair = by_id[pair_id]
            prompt = [message.model_dump() for message in pair.messages]
            completion = [{"role": "assistant", "content": text}]
            row = {"prompt": prompt, "completion": completion, "label": label == {True}}
            about: dict[str, Any] = {"kind": kind, "pair_id": pair_id, "split": pair.split}
            about |= {"source": pair.source, "tags": list(pair.tags)} if pair.tags else {}
            yield {**row, **about, **({"tools": list(pair.tools)} if pair.tools else {}), **_as_sampled(pair, text)}


def _as_sampled(pair: Pair, text: str) -> dict[str, Any]:
    """The drawn token ids of a pair's answer, and whether it was cut off."""
    completion = next(one for one in pair.completions if one.text == text)
    drawn = {"ids": list(completion.ids), "tokenizer_sha256": completion.tokenizer_sha256} if completion.ids else {}
    return drawn if completion.finished else {"finished": False, **drawn}


# --- a table for spreadsheets ---

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""Characters that make a spreadsheet execute a cell (OWASP, CSV injection)."""


def judgments_as_csv(judgments: Sequence[ExportedJudgment]) -> str:
    """The judgments as a table; text that a spreadsheet would execute as a formula starts with an apostrophe."""
    rows = [judgment.model_dump(mode="json") for judgment in judgments]
    new = {
        name
        for name in ("answer_flags", "criteria", "spans", "links", "judge", "selection")
        if not any(name in row for row in rows)
    }
    single = any(isinstance(judgment, Assessment) for judgment in judgments)
    if single:  # columns that compare two sides
        new |= {"right", "answer", "both_bad", "ranking", "aspects"}
    fields = (ExportedAssessment if single else ExportedJudgment).model_fields
    columns = [name for name in fields if name not in {"shown", "settled", *new}]
    out = io.StringIO(newline="")
    table = csv.writer(out)
    table.writerow(columns)
    for row in rows:
        table.writerow([as_cell(row.get(name, fields[name].default)) for name in columns])
    return out.getvalue()


def as_cell(value: Any) -> str:
    """A value that is safe in a spreadsheet: none of its text is a formula."""
    if value is None or isinstance(value, bool | int | float):
        return "" if value is None else str(value)
    if isinstance(value, dict):
        value = "; ".join(f"{name}: {_inner(answer)}" for name, answer in value.items())
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        value = json.dumps(value, ensure_ascii=False)
    elif isinstance(value, list | tuple):
        value = " > ".join(" = ".join(one) if isinstance(one, list) else one for one in value)
    text = str(value)
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def _inner(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_inner, value))
    return "" if value is None else str(value)


# --- edits ---


@dataclass(frozen=True)
class Edit:
    """A rater's improved version of the best answer: a demonstration, preferred to all answers."""

    demonstration: Demonstration
    preferences: tuple[Preference, ...]
    """edited > each answer, best first"""


def build_edits(pairs: Sequence[Pair], judgments: Sequence[Judgment]) -> list[Edit]:
    """One edit per edited judgment, people's only; the answers themselves are compared by the votes.

    Where a ranking was imported as comparisons, each carries the ranking's edit: they give one edit together.
    """
    by_id = {pair.id: pair for pair in pairs}
    beaten: dict[tuple[str, str, str], dict[str, None]] = {}
    for judgment in judgments:
        if judgment.edited_text is not None and judgment.kind == "human":
            about = judgment.pair_id, judgment.rater_id, judgment.edited_text
            beaten.setdefault(about, {}).update(dict.fromkeys(_best_first(judgment)))
    edits = [_build_edit(by_id[pair_id], rater, text, list(ids)) for (pair_id, rater, text), ids in beaten.items()]
    return [edit for edit in edits if edit is not None]


def _best_first(judgment: Judgment) -> list[str]:
    """The completions from best to worst; empty unless exactly one is best."""
    if judgment.ranking is not None:
        return list(chain.from_iterable(judgment.ranking)) if len(judgment.ranking[0]) == 1 else []
    if not judgment.answer:
        return []
    return [judgment.left, judgment.right] if judgment.answer < 0 else [judgment.right, judgment.left]


def _build_edit(pair: Pair, rater_id: str, edited: str, best_first: Sequence[str]) -> Edit | None:
    """None where the edit is empty or equals the best answer."""
    completions = {completion.id: completion for completion in pair.completions}
    answers = [completions[one] for one in best_first]
    if not answers or edited.strip() in ("", answers[0].text.strip()):
        return None
    prompt = Prompt(
        id=pair.prompt_id,
        messages=pair.messages,
        split=pair.split,
        source="edited by a rater",
        tags=(*pair.tags, f"{REVIEWED}:edited") if pair.tags else (),
        tools=pair.tools,
    )
    beaten = [answer for answer in answers if answer.text.strip() != edited.strip()]
    preferences = tuple(_prefer_edit(pair, rater_id, edited, answer) for answer in beaten)
    return Edit(Demonstration(prompt=prompt, completion=edited), preferences)


def _prefer_edit(pair: Pair, rater_id: str, edited: str, beaten: Completion) -> Preference:
    return Preference(
        prompt=pair.messages,
        chosen=assistant(edited),
        rejected=assistant(beaten.text),
        raters=(rater_id,),
        kind="human",
        pair_id=pair.id,
        prompt_id=pair.prompt_id,
        source=pair.source,
        tags=pair.tags,
        split=pair.split,
        rejected_finished=beaten.finished,
        tools=pair.tools,
        rejected_ids=beaten.ids,
        tokenizer_sha256=beaten.tokenizer_sha256,
    )


# --- the report ---


def build_report(
    labels: Labels, rest: Sequence[Judgment], aggregated: AggregationResult, config: AggregationConfig
) -> dict[str, Any]:
    """Counts, agreement by kind, and dropped votes with their reasons. `rest`: the judgments not left out."""
    judgments, preferences = labels.judgments, aggregated.preferences
    used = {"preferred", "tie"} if config.ties == "both_ways" else {"preferred"}
    dropped = sum(verdict.reason not in used for _, verdict in aggregated.verdicts)
    repeats = Counter((j.rater_id, j.kind, _key(j)) for j in judgments if not j.skip)
    return {
        "pairs": {"total": len(labels.pairs), "judged": len({judgment.pair_id for judgment in judgments})},
        "judgments": {
            "total": len(judgments),
            "kinds": count_kinds(judgments),
            "ties": sum(judgment.answer == 0 for judgment in judgments),
            "both_bad": sum(judgment.both_bad for judgment in judgments),
            "skipped": sum(judgment.skip for judgment in judgments),
            "repeats": sum(count - 1 for count in repeats.values()),
            "raters": len({judgment.rater_id for judgment in judgments}),
        },
        "preferences": {
            "total": len(preferences),
            "by_kind": dict(sorted(Counter(one.kind for one in preferences).items())),
            "by_split": {s: sum(p.split == s for p in preferences) for s in ("train", "validation", "test")},
            "dropped": dropped,
            "share_dropped": round(dropped / max(len(aggregated.verdicts), 1), 6),
            "outcomes": aggregated.reasons,
        },
        "aggregation": config.model_dump(mode="json"),
        "adjudicated": {
            "total": sum(verdict.adjudicated for _, verdict in aggregated.verdicts),
            "preferences": sum(preference.adjudicated for preference in preferences),
            "overruled": aggregated.overruled,
        },
        "reliability": {
            kind: [
                {"rater": one.rater_id, "accuracy": one.accuracy.as_json(), "discrimination": one.discrimination}
                for one in raters
            ]
            for kind, raters in aggregated.reliabilities.items()
        },
        "agreement": _report_agreement(labels, rest, config),
        "event_log_head": labels.head,
    }


def _report_agreement(labels: Labels, rest: Sequence[Judgment], config: AggregationConfig) -> dict[str, Any]:
    """Agreement of all raters on all pairs; if some were left out, also that of the others.

    Both figures are always reported together.
    """
    report: dict[str, Any] = {}
    for kind in KINDS:
        everyone = [judgment for judgment in labels.judgments if judgment.kind == kind]
        if not everyone:
            continue
        report[kind] = measure_percent(read_votes(labels.pairs, everyone, kind, labels.known_answers.gold))
        if any(judgment.criteria for judgment in everyone):
            report[kind]["criteria"] = agreement_by_criterion(everyone, labels.known_answers.gold, aspects=False)
        others = [judgment for judgment in rest if judgment.kind == kind]
        if len(others) < len(everyone):
            left_out = {"raters": config.exclude_raters, "judgments": len(everyone) - len(others)}
            after = measure_percent(read_votes(labels.pairs, others, kind, labels.known_answers.gold))
            report[kind]["after_filtering"] = {**after, "left_out": left_out}
    return report

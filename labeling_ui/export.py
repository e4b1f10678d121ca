"""The run folder that the next stages read: `final/preferences.jsonl`, `judgments.jsonl` and `report.json`; where
raters edited answers also `demonstrations.jsonl` (for SFT) and `edit_preferences.jsonl` (the edit over the answer it
mends).

tiebreak label export --store sqlite:///runs/quickstart/label.sqlite --output runs/quickstart/label
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from labeling_ui.aggregate import build_preferences, decide, group_judgments
from labeling_ui.agreement import percent_agreement
from labeling_ui.store import Store, count_kinds
from tiebreak.errors import DataError
from tiebreak.records import Demonstration, Judgment, Pair, Preference, Prompt, assistant, write_json, write_jsonl
from tiebreak.runs import Run
from tiebreak.tracking import track

Format = Literal["parquet", "unpaired"]


def export(store: Store, run: Run, formats: Sequence[Format] = ()) -> dict[str, Any]:
    """Write the store's labels into an open run folder and finish it; returns the report.

    Raises:
        DataError: there is no judgment to export.
    """
    judgments, head = store.judgments()
    if not judgments:
        raise DataError(f"{store.url} holds no judgment yet: there is nothing to export")
    pairs = store.pairs()
    groups = group_judgments(judgments)
    preferences, reasons = build_preferences(pairs, groups)
    report = build_report(pairs, judgments, preferences, reasons, head)
    write_jsonl(run.final / "preferences.jsonl", preferences)
    write_jsonl(run.final / "judgments.jsonl", judgments)
    if "parquet" in formats:
        write_parquet(run.final / "parquet", preferences)
    if "unpaired" in formats:
        write_jsonl(run.final / "unpaired.jsonl", unpaired(pairs, judgments, preferences))
    edits = build_edits(pairs, judgments)
    if edits:
        write_jsonl(run.final / "demonstrations.jsonl", [edit.demonstration for edit in edits])
        write_jsonl(run.final / "edit_preferences.jsonl", [edit.preference for edit in edits])
    report["edits"] = len(edits)
    write_json(run.final / "report.json", report)
    run.facts |= {
        "kinds": report["judgments"]["kinds"],
        "preferences": len(preferences),
        "judgments": len(judgments),
        "pairs": len(pairs),
        "event_log_head": head,
    }
    track(run, run.finish())
    return report


def write_parquet(folder: Path, preferences: Sequence[Preference]) -> None:
    """One file a split, as `datasets.load_dataset(FOLDER)` reads them."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = [preference.model_dump(mode="json") for preference in preferences if preference.split == split]
        if rows:
            parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}.parquet")


def unpaired(
    pairs: Sequence[Pair], judgments: Sequence[Judgment], preferences: Sequence[Preference]
) -> Iterator[dict[str, Any]]:
    """TRL's unpaired format: the chosen answer is good and the rejected one bad, and so are both of a pair called
    both bad.

    An answer that is good in one row and bad in another (of a pair of three or more) is left out: it is neither.
    """
    labels: dict[tuple[str, str, str], set[bool]] = {}
    known = {pair.id: pair for pair in pairs}
    for preference in preferences:
        for text, good in ((preference.chosen_text, True), (preference.rejected_text, False)):
            labels.setdefault((preference.pair_id or "", text, preference.kind), set()).add(good)
    for group in group_judgments(judgments):
        if decide(group).reason == "both_bad":
            texts = {completion.id: completion.text for completion in known[group.pair_id].completions}
            for side in (group.first, group.second):
                labels.setdefault((group.pair_id, texts[side], group.kind), set()).add(False)
    for (pair_id, text, kind), label in labels.items():
        if len(label) == 1:
            pair = known[pair_id]
            prompt = [message.model_dump() for message in pair.messages]
            completion = [{"role": "assistant", "content": text}]
            row = {"prompt": prompt, "completion": completion, "label": label == {True}}
            yield {**row, "kind": kind, "pair_id": pair_id, "split": pair.split}


@dataclass(frozen=True)
class Edit:
    """A rater's better version of the better answer: a demonstration, preferred to the answer it mends."""

    demonstration: Demonstration
    preference: Preference


def build_edits(pairs: list[Pair], judgments: list[Judgment]) -> list[Edit]:
    """`edited > chosen` of every judgment with an edit; `chosen > rejected` is among the preferences. People's only."""
    known = {pair.id: pair for pair in pairs}
    edits = []
    for judgment in judgments:
        if judgment.edited_text is None or not judgment.answer or judgment.kind != "human":
            continue
        pair = known[judgment.pair_id]
        better = judgment.left if judgment.answer < 0 else judgment.right
        (text,) = [completion.text for completion in pair.completions if completion.id == better]
        if judgment.edited_text.strip() in ("", text.strip()):
            continue
        prompt = Prompt(id=pair.prompt_id, messages=pair.messages, split=pair.split, source="edited by a rater")
        edits.append(Edit(Demonstration(prompt=prompt, completion=judgment.edited_text), _prefer(pair, judgment, text)))
    return edits


def _prefer(pair: Pair, judgment: Judgment, text: str) -> Preference:
    return Preference(
        prompt=pair.messages,
        chosen=assistant(judgment.edited_text or ""),
        rejected=assistant(text),
        raters=(judgment.rater_id,),
        kind=judgment.kind,
        pair_id=pair.id,
        prompt_id=pair.prompt_id,
        split=pair.split,
    )


def build_report(
    pairs: list[Pair], judgments: list[Judgment], preferences: list[Preference], reasons: dict[str, int], head: str
) -> dict[str, Any]:
    """Counts, agreement (each kind by itself), and what was dropped and why."""
    groups = group_judgments(judgments)
    kinds = count_kinds(judgments)
    dropped = len(groups) - len(preferences)
    return {
        "pairs": {"total": len(pairs), "judged": len({judgment.pair_id for judgment in judgments})},
        "judgments": {
            "total": len(judgments),
            "kinds": kinds,
            "ties": sum(judgment.answer == 0 for judgment in judgments),
            "both_bad": sum(judgment.both_bad for judgment in judgments),
            "skipped": sum(judgment.skip for judgment in judgments),
            "raters": len({judgment.rater_id for judgment in judgments}),
        },
        "preferences": {
            "total": len(preferences),
            "by_split": {s: sum(p.split == s for p in preferences) for s in ("train", "validation", "test")},
            "dropped": dropped,
            "share_dropped": round(dropped / len(groups), 6),
            "outcomes": reasons,
        },
        "agreement": {
            kind: {
                "percent_with_ties": percent_agreement([g for g in groups if g.kind == kind], ties=True).as_json(),
                "percent_without_ties": percent_agreement([g for g in groups if g.kind == kind], ties=False).as_json(),
            }
            for kind in kinds
        },
        "event_log_head": head,
    }

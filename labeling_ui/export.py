"""The run folder that the next stages read: `final/preferences.jsonl`, `judgments.jsonl` and `report.json`; where
raters edited answers also `demonstrations.jsonl` (for SFT) and `edit_preferences.jsonl` (the edit over the answer it
mends).

tiebreak label export --store sqlite:///runs/quickstart/label.sqlite --output runs/quickstart/label
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from labeling_ui.aggregate import build_preferences, group_judgments
from labeling_ui.agreement import percent_agreement
from labeling_ui.store import Store, count_kinds
from tiebreak.errors import DataError
from tiebreak.records import Demonstration, Judgment, Pair, Preference, Prompt, assistant, write_json, write_jsonl
from tiebreak.runs import Run


def export(store: Store, run: Run) -> dict[str, Any]:
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
    run.finish()
    return report


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

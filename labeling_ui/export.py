"""The run folder that the next stages read: `final/preferences.jsonl`, `judgments.jsonl` and `report.json`.

tiebreak label export --store sqlite:///runs/quickstart/label.sqlite --output runs/quickstart/label
"""

from __future__ import annotations

from typing import Any

from labeling_ui.aggregate import build_preferences, group_judgments
from labeling_ui.agreement import percent_agreement
from labeling_ui.store import Store, count_kinds
from tiebreak.errors import DataError
from tiebreak.records import Judgment, Pair, Preference, write_json, write_jsonl
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

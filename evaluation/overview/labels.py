"""What the reports of labelling runs, reward models and judges say: agreement of raters, and calibration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.compare.reading import finite
from evaluation.overview.model import Agreement, Calibration
from evaluation.overview.reading import RunRecord, is_number


def agreement_of(one: RunRecord, names: Mapping[str, str]) -> list[Agreement]:
    """A labelling run's agreement by kind of rater, from its data report."""
    if one.stage != "label":
        return []
    report = _report(one)
    judgments, preferences = report.get("judgments") or {}, report.get("preferences") or {}
    rows = []
    for kind, measures in (report.get("agreement") or {}).items():
        plain = {
            str(key): {"value": entry["value"], "n": entry.get("n"), "interval": entry.get("interval")}
            for key, entry in measures.items()
            if isinstance(entry, Mapping) and is_number(entry.get("value"))
        }
        rows.append(
            Agreement(
                run=names.get(one.id, one.folder),
                kind=str(kind),
                measures=plain,
                raters=judgments.get("raters"),
                judgments=(judgments.get("kinds") or {}).get(kind),
                ties=judgments.get("ties"),
                preferences=preferences.get("total"),
            )
        )
    return rows


def calibration_of(one: RunRecord, names: Mapping[str, str]) -> Calibration | None:
    """A reward model's calibration on held-out pairs, or that of a judge's confidences against people."""
    if one.stage not in ("reward", "judge"):
        return None
    report = _report(one)
    if one.stage == "judge":
        report = report.get("people") or {}
    found = report.get("calibration") or {}
    raw, scaled = (found.get("before") or {}, found.get("after") or {}) if one.stage == "reward" else (found, {})
    if not raw.get("bins"):
        return None
    share = report.get("accuracy_without_ties") or {}  # of a judge: over the same comparisons as its calibration
    return Calibration(
        run=names.get(one.id, one.folder),
        stage=one.stage,
        pairs=sum(row["n"] for row in raw["bins"]),
        accuracy=share["value"] if share else report.get("accuracy"),
        accuracy_interval=share["interval"] if share else report.get("accuracy_interval"),
        ece=raw["ece"],
        nll=raw.get("nll"),
        temperature=found.get("temperature"),
        ece_scaled=scaled.get("ece"),
        nll_scaled=scaled.get("nll"),
        bins=raw["bins"],
    )


def _report(one: RunRecord) -> dict[str, Any]:
    """A finished run's report; {} without one, and a note on a damaged one."""
    path = Path(one.folder) / "final" / "report.json"
    if one.state != "finished" or not path.is_file():
        return {}
    try:
        found = finite(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        found, why = None, str(error)
    else:
        why = f"an object is expected, not {type(found).__name__}"
    if not isinstance(found, dict):
        one.notes.append(f"its report cannot be read, so its figures are missing: {path}: {why}")
        return {}
    return found

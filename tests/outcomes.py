"""What becomes of a stage in the tables of models and of adapter methods: run by its command, then checked.

`refused`: with a reason. `wrong`: a figure differs from its oracle's. `failed`: an exception got through. Otherwise the
path that its batches took (tiebreak.packed.proof); `exact` is `packed`, with figures that equal plain transformers'.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from support import end_process, run_here

from tiebreak.models.reload import FreshProcess, ReloadedModel
from tiebreak.process.preloaded import answered
from tiebreak.runs.reports import read_reports

How = Literal["exact", "packed", "padded", "plain", "alone", "refused", "wrong", "failed"]
REFUSALS = (1, 2)
"""exit statuses of a `TiebreakError`; an unexpected exception's and a signal's are others"""


@dataclass(frozen=True)
class Outcome:
    """What became of a stage."""

    how: How
    note: str = ""

    @property
    def is_fault(self) -> bool:
        return self.how in ("wrong", "failed")


def outcome_of(command: str, config: Path, output: Path, check: Callable[[], Sequence[str | None]]) -> Outcome:
    """Run a stage, then its check.

    Args:
        check: errors of what the finished stage saved; None and empty texts are none.
    """
    try:
        status, remarks = run_here(command, "--config", config)
    except Exception as error:  # noqa: BLE001 - whatever got through is the finding
        return Outcome("failed", f"{type(error).__name__}: {_one_line(str(error))}")
    finally:
        end_process(output)
    if status:
        reason = remarks.strip().split("error: ", 1)[-1].replace(f"{config.parent}/", "")
        return Outcome("refused" if status in REFUSALS else "failed", _one_line(reason))
    try:
        faults = [f"{name}: {report.error}" for name, report in read_reports(output).items() if report.error]
        faults += [fault for fault in check() if fault]
    except Exception as error:  # noqa: BLE001 - the oracle itself could not follow
        return Outcome("failed", f"oracle: {type(error).__name__}: {_one_line(str(error))}")
    if faults:
        return Outcome("wrong", "; ".join(faults[:2]) + (f"; {len(faults) - 2} more" if len(faults) > 2 else ""))
    manifest = json.loads((output / "manifest.json").read_text())
    return Outcome(manifest.get("path", "packed"), _one_line(manifest.get("path_reason", "")))


def ask_here(process: FreshProcess, what: str, **request: Any) -> dict[str, Any]:
    """Takes the place of `FreshProcess.ask`: the same answer, from disk, without the fresh process's 5 s of imports."""
    asked = json.dumps(request | process._about | {"do": what})
    reply = json.loads(json.dumps(answered(ReloadedModel().answer, json.loads(asked))))
    if "failed" in reply:
        raise RuntimeError(reply["failed"])
    return dict(reply["done"])


def _one_line(text: str) -> str:
    summary, _, rest = text.strip().partition("\n")
    joined = f"{summary}: {rest}" if rest and summary[-1].isalnum() else f"{summary} {rest}"
    return " ".join(joined.split()).split(" row 2: ")[0][:400]

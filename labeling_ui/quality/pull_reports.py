"""Reports of reward models with the pulls of their training pairs, as `tiebreak reward report` writes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tiebreak.data.reading import read_records
from tiebreak.errors import HandoffError
from tiebreak.records import Record
from tiebreak.runs.run import read_manifest

PULLS = Path("final") / "pulls.jsonl"


class PairPull(Record):
    """A row of a report's pulls.jsonl."""

    pair_id: str | None
    raters: tuple[str, ...] | None
    pull: float
    """in units of the average pair's; negative: learning from the pair raised the others' loss"""
    chosen: str = ""
    """hash of the chosen answer's text"""
    adjudicated: bool = False


@dataclass(frozen=True)
class PullReport:
    """A finished report of a reward model, with the pulls of its training pairs."""

    folder: str
    rows: tuple[PairPull, ...]
    """the strongest against the rest first"""


def read_pull_report(folder: str) -> PullReport:
    """The pulls of a finished reward report.

    Raises:
        RunError: it is not finished.
        HandoffError: it is another stage's run, or estimated no pulls.
    """
    stage = read_manifest(folder)["stage"]
    if stage != "reward report":
        raise HandoffError(
            f"reward_reports: {folder} is a finished '{stage}' run: give the folder of a 'tiebreak reward report'"
        )
    file = Path(folder) / PULLS
    if not file.is_file():
        raise HandoffError(
            f"reward_reports: {folder} has no pulls of training pairs: run 'tiebreak reward report --influence_pairs 1000' "
            "into a new folder"
        )
    rows = sorted(read_records(file, PairPull), key=lambda one: one.pull)
    return PullReport(folder, tuple(rows))

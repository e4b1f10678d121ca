"""Synthetic rows: how they are marked, and that none reaches training before a person has reviewed it.

A synthetic row has the tag `synthetic`, `kind: synthetic`, or a source that begins with `synthetic:`. A review leaves
the tag `reviewed:accepted`, `reviewed:edited` or `reviewed:by_sample`; a person's judgment of a pair is a review as
well, a program's is not. `review: none` of *synthesise* leaves `reviewed:none`: training takes these rows, and reports
say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tiebreak.errors import HandoffError, counted
from tiebreak.records import Demonstration

if TYPE_CHECKING:
    from tiebreak.runs.run import Run

SYNTHETIC = "synthetic"
REVIEWED = "reviewed"
UNREVIEWED = f"{REVIEWED}:none"


def check_reviewed(records: Sequence[Any], source: str, run: Run | None) -> None:
    """Refuse synthetic rows that nobody has reviewed, and note the others for reports.

    Raises:
        HandoffError: says how many there are, and what to do.
    """
    made = [one for one in records if is_synthetic(one)]
    unseen = [one for one in made if not any(tag.startswith(f"{REVIEWED}:") for tag in _tags(one))]
    unjudged = [one for one in unseen if getattr(one, "kind", SYNTHETIC) != "human"]
    if unjudged:
        judged = any(getattr(one, "kind", "") in ("simulated", "model") for one in unjudged)
        programs = " (simulated raters and model judges are no people)" if judged else ""
        raise HandoffError(
            f"{source}: {len(unjudged)} of {counted(len(records), 'row')} synthetic, and reviewed by nobody{programs}: "
            "review them ('tiebreak label' with task: review, or people's judgments of pairs) and train on that run, or "
            "make them with 'tiebreak synthesise' and review: none"
        )
    if made and run is not None:
        run.facts["synthetic"] = count_synthetic(records)


def count_synthetic(records: Sequence[Any]) -> dict[str, int]:
    """How many records are synthetic, of how many, and how many of them people have reviewed; for manifests."""
    made = [one for one in records if is_synthetic(one)]
    return {"rows": len(made), "of": len(records), "reviewed": sum(map(_is_reviewed, made))}


def _is_reviewed(record: Any) -> bool:
    """Whether a person has reviewed a record, or judged the pair."""
    reviews = [tag for tag in _tags(record) if tag.startswith(f"{REVIEWED}:")]
    return getattr(record, "kind", "") == "human" or any(tag != UNREVIEWED for tag in reviews)


def synthetic_marks(tags: Sequence[str]) -> tuple[str, ...]:
    """Those of a row's tags that mark it as synthetic, and its review; none if it is not."""
    return tuple(tag for tag in tags if tag == SYNTHETIC or tag.startswith(f"{REVIEWED}:")) if SYNTHETIC in tags else ()


def marks_of_row(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The marks in a row's columns, whatever program wrote them: a table has its tags as text. None if it is not
    synthetic."""
    tags = values.get("tags")
    if isinstance(tags, str):
        tags = [tag.strip() for tag in re.split(r"[][()'\",;|]+", tags)]
    listed = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list | tuple) else []
    is_made = str(values.get("kind")).strip().casefold() == SYNTHETIC or _is_made(str(values.get("source")))
    return synthetic_marks(list(dict.fromkeys([*listed, *([SYNTHETIC] if is_made else [])])))


def is_synthetic(record: Any) -> bool:
    """Whether a record was made, not collected."""
    about = _about(record)
    return SYNTHETIC in about.tags or _is_made(about.source) or getattr(record, "kind", "") == SYNTHETIC


def _is_made(source: str) -> bool:
    """Whether a row's source is a method of *synthesise*."""
    return source.startswith(f"{SYNTHETIC}:")


def _tags(record: Any) -> Sequence[str]:
    tags: Sequence[str] = _about(record).tags
    return tags


def _about(record: Any) -> Any:
    """What has a record's tags and source."""
    return record.prompt if isinstance(record, Demonstration) else record

"""Names and numbers as the report's prose prints them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tiebreak.page.numbers import percent
from tiebreak.stages import find_stage


def label(policy: str) -> str:
    """A policy's name in prose: a stage's title, such as SFT; other names unchanged."""
    return find_stage(policy).title or policy


def edge(share: float) -> str:
    """A percentage with enough digits not to round to the 50% it is compared with.

    >>> edge(0.744), edge(0.4962), edge(0.50004), edge(0.5)
    ('74%', '49.6%', '50.004%', '50%')
    """
    if share == 0.5 or percent(share) != "50%":
        return percent(share)
    shown = (f"{100 * share:.{digits}f}" for digits in range(1, 17))
    return next((one for one in shown if float(one) != 50.0), "50") + "%"


def listed(names: Iterable[str]) -> str:
    """a, b and c"""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


def distinct_names(folders: Sequence[str]) -> list[str]:
    """The distinguishing parts of paths: runs/seed0/evaluate, runs/seed1/evaluate → seed0, seed1."""
    parts = [Path(folder).parts for folder in folders]
    if len(folders) == 1 or len({len(p) for p in parts}) > 1:
        return [str(folder) for folder in folders]
    differing = [i for i in range(len(parts[0])) if len({p[i] for p in parts}) > 1]
    return ["/".join(p[i] for i in differing) or str(folder) for p, folder in zip(parts, folders, strict=True)]

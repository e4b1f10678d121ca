"""Trackers other than W&B (`tracking.report_to`), each in its own file, through its own client.

A client is only imported in the process that copies (`tiebreak.tracking.tracker_copy`). To add one: a class with the
methods of `Tracker`, an entry of `TRACKERS`, its name in `tiebreak.config.TrackingConfig.report_to`, an extra in
pyproject.toml.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tiebreak.tracking.contents import Row, Table


@dataclass(frozen=True)
class Point:
    """A logged step."""

    index: int
    """of the row in metrics.jsonl"""
    step: int
    """optimizer step"""
    values: Mapping[str, float]
    """finite figures, under W&B's names"""


@dataclass(frozen=True)
class Result:
    """A finished run's remaining data."""

    figures: Row
    """final figures: numbers and texts"""
    tables: Mapping[str, Table]
    files: Sequence[Path]
    """reports, the manifest, and the trained model if `log_model` is set"""
    folder: Path
    """the run folder, which holds the files"""


class Tracker(Protocol):
    """A tracker's client, for one run."""

    place: str
    """where the run is, for messages"""

    def begin(self, folder: Path, facts: Mapping[str, Any]) -> int:
        """Open the run, new or that of an interrupted stage.

        Args:
            folder: the run folder.
            facts: the run's metadata (`tiebreak.tracking.facts`).

        Returns:
            The number of rows that it already has.
        """

    def log(self, points: Sequence[Point]) -> None:
        """Send rows."""

    def alert(self, title: str, text: str) -> None:
        """An alert of a monitor."""

    def finish(self, result: Result | None) -> None:
        """Send the rest, and close the run; None: the stage was interrupted. Returns once all is sent."""


@dataclass(frozen=True)
class Entry:
    """A tracker by name."""

    title: str
    implementation: str
    """module:class"""
    package: str
    """its import name"""


TRACKERS: Mapping[str, Entry] = {
    "trackio": Entry("Trackio", "tiebreak.tracking.trackers.trackio_client:TrackioClient", "trackio"),
    "tensorboard": Entry("TensorBoard", "tiebreak.tracking.trackers.tensorboard_files:TensorBoardFiles", "tensorboard"),
    "mlflow": Entry("MLflow", "tiebreak.tracking.trackers.mlflow_client:MLflowClient", "mlflow"),
}


def build_tracker(name: str) -> Tracker:
    """A tracker's client."""
    module, _, kind = TRACKERS[name].implementation.partition(":")
    tracker: Tracker = getattr(importlib.import_module(module), kind)()
    return tracker


def flat_config(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Every key of a configuration by its dotted path, as text.

    >>> flat_config({"beta": 0.1, "training": {"seed": 0}, "tags": ["a", "b"]})
    {'beta': '0.1', 'training.seed': '0', 'tags': 'a, b'}
    """
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat_config(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found

"""MLflow: a run of the experiment that `tracking.project` names, on the server of MLFLOW_TRACKING_URI, otherwise in files
in `mlruns/`, as `mlflow ui --backend-store-uri mlruns` reads them."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from tiebreak.tracking.trackers import Point, Result, flat_config

_RUN, _ROWS = "tiebreak.run", "tiebreak.rows"
"""tags: a run's identity, and the rows of metrics.jsonl that it has; both are written with the rows, in one request"""
_MOST_METRICS, _MOST_PARAMS, _LONGEST = 900, 100, 6000
"""of a request, and of a parameter's value: MLflow's limits are 1,000, 100 and 6,000"""


class MLflowClient:
    """A run of MLflow."""

    place = ""

    def begin(self, folder: Path, facts: Mapping[str, Any]) -> int:
        """Open the run with this identity, or a new one."""
        self.place = os.environ.get("MLFLOW_TRACKING_URI") or str(Path("mlruns").resolve())
        if "://" not in self.place:  # a folder: MLflow asks for this since it develops its databases further instead
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = MlflowClient(tracking_uri=self.place)
        experiment = self._client.get_experiment_by_name(facts["project"])
        number = experiment.experiment_id if experiment else self._client.create_experiment(facts["project"])
        found = self._client.search_runs([number], f"tags.`{_RUN}` = '{facts['run_id']}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return int(found[0].data.tags.get(_ROWS, 0))
        tags = {key: str(facts[key]) for key in ("stage", "group", "artifact") if facts.get(key)}
        tags |= {
            _RUN: facts["run_id"],
            "tags": ", ".join(facts["tags"]),
            "mlflow.note.content": facts.get("notes") or "",
        }
        self._id = self._client.create_run(number, run_name=facts["name"], tags=tags).info.run_id
        params = [Param(_name(key), value[:_LONGEST]) for key, value in flat_config(facts["config"]).items()]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._id, params=params[start : start + _MOST_PARAMS])
        return 0

    def log(self, points: Sequence[Point]) -> None:
        """Rows, with their count."""
        now, batch = int(time.time() * 1000), list[Metric]()
        for place, point in enumerate(points):
            batch += [Metric(_name(key), value, now, point.step) for key, value in point.values.items()]
            if len(batch) >= _MOST_METRICS - len(point.values) or place == len(points) - 1:
                self._client.log_batch(self._id, metrics=batch, tags=[RunTag(_ROWS, str(point.index + 1))])
                batch = []

    def alert(self, title: str, text: str) -> None:
        """A tag: MLflow has no alerts."""
        self._client.set_tag(self._id, "alert", f"{title}: {text}"[:_LONGEST])

    def finish(self, result: Result | None) -> None:
        """Final figures as metrics and tags, tables as JSON, files as artifacts."""
        if result:
            now = int(time.time() * 1000)
            numbers = {key: value for key, value in result.figures.items() if not isinstance(value, str)}
            figures = [Metric(_name(f"final/{key}"), float(value), now, 0) for key, value in numbers.items()]
            for start in range(0, len(figures), _MOST_METRICS):
                self._client.log_batch(self._id, metrics=figures[start : start + _MOST_METRICS])
            for key, value in result.figures.items():
                if isinstance(value, str):
                    self._client.set_tag(self._id, _name(key), value[:_LONGEST])
            for name, (columns, rows) in result.tables.items():
                text = json.dumps({"columns": columns, "data": rows}, ensure_ascii=False)
                self._client.log_text(self._id, text, f"tables/{name}.json")
            for path in result.files:
                below = path.relative_to(result.folder).parent
                self._client.log_artifact(self._id, str(path), None if below == Path() else str(below))
        self._client.set_terminated(self._id, "FINISHED" if result else "FAILED")


def _name(key: str) -> str:
    """A key in characters that MLflow takes."""
    return re.sub(r"[^\w./ -]", "_", key)[:250]

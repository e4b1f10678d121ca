"""What a run tells: rows in its own metrics.jsonl, and a copy to W&B. No torch: the labelling app tells of its run too.

The truth is metrics.jsonl. W&B receives the same figures under the names transformers gives them there (`train/loss`,
`eval/loss`, …), one group a pipeline run, `job_type` the stage, offline unless the user has logged in. Read an offline
run back with `wandb leet inspect --json PATH`, or send it up later with `wandb sync PATH`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiebreak.config import TrackingConfig
from tiebreak.records import write_jsonl
from tiebreak.runs import Run, git_commit, is_main_process, read_manifest, read_metrics, say


class RunRecorder:
    """Appends rows to a run's metrics.jsonl and sends them to W&B. Silent on all but the main process."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._wandb = start_wandb(run) if is_main_process() else None
        self._last_step, self._last_time = 0, time.monotonic()

    def keep_up_to(self, step: int) -> None:
        """Forget rows past `step`, which a resumed run computes again."""
        self._last_step = step
        if not is_main_process() or not self.run.metrics.exists():
            return
        kept = [row for row in read_metrics(self.run.folder) if row["step"] <= step]
        write_jsonl(self.run.metrics, kept)

    def row(self, step: int, metrics: Mapping[str, Any], beside_seconds: float | None = None) -> None:
        """One logged step. Values that are not finite numbers are kept out of the JSON as null.

        Args:
            beside_seconds: how long it took to measure them between two steps, neither of which it is counted to.
        """
        if not is_main_process():
            return
        if beside_seconds is None:
            now = time.monotonic()
            seconds = (now - self._last_time) / max(1, step - self._last_step)
            self._last_step, self._last_time = step, now
        else:
            seconds = beside_seconds
            self._last_time += beside_seconds
        values = {key: _finite(value) for key, value in metrics.items() if isinstance(value, (int, float))}
        line = {"step": step, "step_seconds": round(seconds, 4), **values}
        with self.run.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
        if self._wandb is not None:
            self._wandb.log({**_wandb_names(values), "train/global_step": step})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table of examples, in W&B and as a file of the run folder."""
        if not is_main_process():
            return
        path = self.run.folder / f"{name}.jsonl"
        write_jsonl(path, [dict(zip(columns, row, strict=True)) for row in rows])
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def finish(self, files: Sequence[Path] = ()) -> None:
        """Close W&B with the run's final figures and an artifact, linked to those it was made from.

        Args:
            files: what the artifact holds beside the manifest.
        """
        if self._wandb is None:
            return
        manifest = read_manifest(self.run.folder)
        import wandb

        self._wandb.summary.update({"manifest_id": manifest["id"], **dict(manifest.get("metrics", {}))})
        artifact = wandb.Artifact(f"{self.run.stage}-{manifest['id']}", type=self.run.stage, metadata=dict(manifest))
        for path in (self.run.folder / "manifest.json", *files):
            artifact.add_file(str(path))
        if not self._wandb.settings._offline:
            _link(self._wandb, manifest["inputs"])
        self._wandb.log_artifact(artifact)
        self._wandb.finish()


def _link(tracked: Any, inputs: Mapping[str, Any]) -> None:
    """Name what a run was made from. A run that was made offline is not there, which costs the link alone."""
    import wandb

    for one in inputs.values():
        if one["kind"] != "run":
            continue
        stage = json.loads((Path(one["source"]) / "manifest.json").read_text())["stage"]
        try:
            tracked.use_artifact(f"{stage}-{one['id']}:latest")
        except (wandb.Error, ValueError) as error:
            say(f"W&B: no link to {one['source']}, whose artifact is not there ({error})")


def track(run: Run, files: Sequence[Path] = ()) -> None:
    """Tell W&B of a finished run that trained nothing: its figures, its manifest, and `files`."""
    RunRecorder(run).finish(files)


def _wandb_names(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """The names that transformers gives its figures in W&B: eval_loss is eval/loss, loss is train/loss."""
    return {f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}": value for key, value in values.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def start_wandb(run: Run) -> Any:
    """A W&B run for a stage, or None where tracking is disabled."""
    tracking = run.config.tracking
    mode = tracking_mode(tracking)
    if mode == "disabled":
        return None
    import wandb

    seed = getattr(getattr(run.config, "training", None), "seed", None)
    tags = [
        run.stage,
        *tracking.tags,
        *([f"seed-{seed}"] if seed is not None else []),
        *([c] if (c := git_commit()) else []),
    ]
    return wandb.init(
        project=tracking.project,
        group=tracking.group or os.environ.get("TIEBREAK_GROUP"),
        job_type=run.stage,
        name=f"{run.stage}-{run.fingerprint[:8]}",
        tags=list(dict.fromkeys(tag[:64] for tag in tags)),
        config=run.config.model_dump(mode="json"),
        dir=str(run.folder),
        mode=mode,
        settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
    )


def tracking_mode(tracking: TrackingConfig) -> Any:
    """`auto` settled: what WANDB_MODE says, else online with a login, else offline."""
    if tracking.mode != "auto":
        return tracking.mode
    named = os.environ.get("WANDB_MODE")
    if named in ("online", "offline", "disabled"):
        return named
    return "online" if os.environ.get("WANDB_API_KEY") or _has_netrc_login() else "offline"


def _has_netrc_login() -> bool:
    netrc = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    return netrc.is_file() and "api.wandb.ai" in netrc.read_text(errors="replace")

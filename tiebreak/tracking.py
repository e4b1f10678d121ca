"""What a run tells: rows in its own metrics.jsonl, and a copy to W&B.

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
from typing import Any, ClassVar

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import rewrite_logs

from tiebreak.config import TrackingConfig
from tiebreak.records import write_jsonl
from tiebreak.runs import CHECKPOINT_MARKER, Run, git_commit, is_main_process, read_metrics


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

    def row(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One logged step. Values that are not finite numbers are kept out of the JSON as null."""
        if not is_main_process():
            return
        now = time.monotonic()
        steps = max(1, step - self._last_step)
        values = {key: _finite(value) for key, value in metrics.items() if isinstance(value, (int, float))}
        line = {"step": step, "step_seconds": round((now - self._last_time) / steps, 4), **values}
        with self.run.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
        self._last_step, self._last_time = step, now
        if self._wandb is not None:
            self._wandb.log({**rewrite_logs(values), "train/global_step": step})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table of examples, in W&B and as a file of the run folder."""
        if not is_main_process():
            return
        path = self.run.folder / f"{name}.jsonl"
        write_jsonl(path, [dict(zip(columns, row, strict=True)) for row in rows])
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Close W&B with the run's final figures and its manifest as an artifact, linked to those it was made from."""
        if self._wandb is None:
            return
        import wandb

        self._wandb.summary.update({"manifest_id": manifest["id"], **dict(manifest.get("metrics", {}))})
        artifact = wandb.Artifact(f"{self.run.stage}-{manifest['id']}", type=self.run.stage, metadata=dict(manifest))
        artifact.add_file(str(self.run.folder / "manifest.json"))
        if not self._wandb.settings._offline:
            for one in manifest["inputs"].values():
                if one["kind"] == "run":
                    stage = json.loads((Path(one["source"]) / "manifest.json").read_text())["stage"]
                    self._wandb.use_artifact(f"{stage}-{one['id']}:latest")
        self._wandb.log_artifact(artifact)
        self._wandb.finish()


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


class ProgressLine(ProgressCallback):
    """The library's progress bar, with the few figures worth watching beside it; all of them are in metrics.jsonl."""

    SHOWN: ClassVar = {
        "loss": "loss",
        "mean_token_accuracy": "token accuracy",
        "accuracy": "accuracy",
        "rewards/accuracies": "accuracy",
        "rewards/margins": "margin",
        "objective/scores": "score",
        "objective/kl": "KL",
    }

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.training_bar is not None and logs:
            shown = {name: f"{logs[key]:.3f}" for key, name in self.SHOWN.items() if key in logs}
            if shown:
                self.training_bar.set_postfix(shown)


class RunCallback(TrainerCallback):
    """Writes the trainer's logs to the run, and marks a checkpoint complete once all of it is on disk."""

    def __init__(self, recorder: RunRecorder) -> None:
        self.recorder = recorder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.recorder.keep_up_to(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "train_runtime" not in logs:
            self.recorder.row(state.global_step, logs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            for path in folder.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            (folder / CHECKPOINT_MARKER).touch()

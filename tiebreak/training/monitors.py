"""Monitors: yardsticks on answers to held-out prompts while a policy trains (`monitors:`).

    monitors: [{yardstick: refusal, every_steps: 20, warn_above: 0.1, stop_above: 0.5}]

At every so many steps the policy answers the same held-out prompts with the same seeds; the mean is logged as
`monitor/NAME`, and a threshold that it crosses warns, alerts or stops. Training is otherwise bit for bit the same: seeds
are the monitors' own. A yardstick that fails is reported, and does not end the training.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tiebreak.config.monitors import MonitorConfig
from tiebreak.errors import ConfigError
from tiebreak.measures.yardsticks.inputs import YardstickInput
from tiebreak.measures.yardsticks.registry import Measure, build_measure
from tiebreak.runs.placement import require_own_pace
from tiebreak.runs.run import read_metrics
from tiebreak.terminal import is_main_process, say
from tiebreak.tracking.recorder import RunRecorder
from tiebreak.training.answers import HeldOutAnswers

COMMAND_SECONDS, WEBHOOK_SECONDS = 30, 10


def find_monitors(configs: Sequence[MonitorConfig], beside: Path | None) -> list[Measure]:
    """The monitors' yardsticks, with their files read: before any model is loaded.

    Raises:
        ConfigError: there is no such function or file, or a package is not installed.
    """
    if configs:
        require_own_pace("a monitor")
    return [build_measure(config.named, beside) for config in configs]


def crossing(config: MonitorConfig, mean: float) -> tuple[str, str]:
    """(the consequence of a mean: stop, alert, warn or none; the threshold that it crosses), the gravest first."""
    for action in ("stop", "alert", "warn"):
        above, below = getattr(config, f"{action}_above"), getattr(config, f"{action}_below")
        if above is not None and mean > above:
            return action, f"above {above:g}"
        if below is not None and mean < below:
            return action, f"below {below:g}"
    return "", ""


class Monitor(TrainerCallback):
    """All monitors of a training."""

    def __init__(
        self,
        configs: Sequence[MonitorConfig],
        measures: Sequence[Measure],
        answers: HeldOutAnswers,
        recorder: RunRecorder,
    ) -> None:
        self.watched = list(zip(configs, measures, strict=True))
        self.answers, self.recorder = answers, recorder
        self.prompts = answers.prompts
        if not self.prompts:
            raise ConfigError("monitors: there are no held-out prompts to answer: hold some out, or leave monitors out")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._look(state, control, self.watched)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        due = [one for one in self.watched if state.global_step % one[0].every_steps == 0]
        if due:
            self._look(state, control, due)

    def facts(self) -> dict[str, Any]:
        """For the manifest: the thresholds that were crossed, a resumed run's included, and whether one ended it."""
        crossed = [
            {"yardstick": config.yardstick, "step": row["step"], "mean": row[config.key], "action": action}
            for row in read_metrics(self.recorder.run.folder)
            for config, _ in self.watched
            if isinstance(row.get(config.key), int | float)
            for action, _ in [crossing(config, row[config.key])]
            if action
        ]
        stopped = any(one["action"] == "stop" for one in crossed)
        return {"monitors": {"prompts": len(self.prompts), "crossed": crossed, "stopped": stopped}}

    def _look(self, state: TrainerState, control: TrainerControl, due: list[tuple[MonitorConfig, Measure]]) -> None:
        started, step = time.monotonic(), state.global_step
        texts = self.answers.draw(max(config.prompts for config, _ in due))
        figures = {}
        for config, measure in due:
            mean = self._mean(config, measure, texts)
            if mean is None:
                continue
            figures[config.key] = mean
            self._compare(config, mean, step, control)
        if figures:
            self.recorder.row(step, figures, beside_seconds=time.monotonic() - started)

    def _mean(self, config: MonitorConfig, measure: Measure, texts: Sequence[str]) -> float | None:
        assert measure.function is not None
        values: list[float] = []
        for prompt, text in zip(self.prompts[: config.prompts], texts, strict=False):
            try:
                (value,) = measure.function(YardstickInput(prompt), [text])
            except Exception as error:  # noqa: BLE001 - a user's function must not end a training
                say("", f"the monitor {config.yardstick} failed: {error}")
                return None
            values += [] if value is None else [value]
        return statistics.fmean(values) if values else None

    def _compare(self, config: MonitorConfig, mean: float, step: int, control: TrainerControl) -> None:
        action, limit = crossing(config, mean)
        if not action:
            return
        message = f"monitor {config.yardstick}: {mean:.3g} at step {step}, {limit}"
        message += ": training ends here" if action == "stop" else ""
        say("", message)
        if action in ("alert", "stop") and is_main_process():
            self.recorder.alert(step, message)
            self._run(config.command, message)
            self._post(config, message, mean, step)
        if action == "stop":
            control.should_training_stop = True
            control.should_save = False  # a run resumed from here would continue training

    def _run(self, command: Sequence[str], message: str) -> None:
        if not command:
            return
        try:
            done = subprocess.run([*command, message], capture_output=True, timeout=COMMAND_SECONDS, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            say(f"the monitor's command {command[0]} failed: {error}")
            return
        if done.returncode:
            say(f"the monitor's command {command[0]} ended with status {done.returncode}")

    def _post(self, config: MonitorConfig, message: str, mean: float, step: int) -> None:
        if config.webhook is None:
            return
        alert = {"text": message, "monitor": config.yardstick, "mean": mean, "step": step}
        body = json.dumps(alert | {"run": str(self.recorder.run.folder)}).encode()
        request = urllib.request.Request(config.webhook, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS):
                pass
        except (OSError, http.client.HTTPException) as error:
            say(f"the monitor's webhook {urlsplit(config.webhook).hostname} failed: {error}")

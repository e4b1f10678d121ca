"""Monitors through SFT, DPO and PPO on tiny models: they see, warn, alert and stop, and change no weight."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support import TINY_TRAINING, read_rows, run_here, write_config

from tiebreak.config.monitors import MonitorConfig
from tiebreak.training.monitors import crossing


def train(stage: str, output: Path, tiny_model: Path, raw_data: Path, **values: Any) -> tuple[int, str]:
    data = {"sft": ("demonstrations", "demonstrations.jsonl"), "dpo": ("preferences", "preferences.jsonl")}[stage]
    settings = {
        "output": output,
        "policy": tiny_model,
        data[0]: raw_data / data[1],
        "adapter": {"r": 4, "alpha": 8},
        "validation_share": 0.4,
        "training": {**TINY_TRAINING, "max_steps": 3},
        "sampling": {"temperature": 0.7, "max_new_tokens": 6},
        "tracking": {"mode": "disabled"},
    } | values
    return run_here(stage, "--config", write_config(output.parent / f"{output.name}.yaml", **settings))


def monitored(output: Path) -> list[tuple[int, float]]:
    rows = read_rows(output / "metrics.jsonl")
    return [(row["step"], row["monitor/length"]) for row in rows if "monitor/length" in row]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_monitor_sees_warns_and_alerts_and_changes_no_weight(
    stage: str, tmp_path: Path, tiny_model: Path, raw_data: Path
) -> None:
    heard = tmp_path / "heard.txt"
    write = f"import sys; open({str(heard)!r}, 'a').write(sys.argv[1] + '\\n')"
    monitors = [
        {"yardstick": "length", "every_steps": 2, "prompts": 2, "warn_above": -1},
        {"yardstick": "refusal", "every_steps": 3, "alert_below": 0.5, "command": [sys.executable, "-c", write]},
    ]
    watched, plain = tmp_path / "watched", tmp_path / "plain"
    status, printed = train(stage, watched, tiny_model, raw_data, monitors=monitors)
    assert status == 0, printed
    assert [step for step, _ in monitored(watched)] == [0, 2]
    assert "at step 2, above -1" in printed
    assert [line.partition(":")[0] for line in heard.read_text().splitlines()] == ["monitor refusal"] * 2  # 0 and 3
    facts = json.loads((watched / "manifest.json").read_text())["monitors"]
    assert [(one["yardstick"], one["step"], one["action"]) for one in facts["crossed"]] == [
        ("length", 0, "warn"),
        ("refusal", 0, "alert"),
        ("length", 2, "warn"),
        ("refusal", 3, "alert"),
    ]
    assert facts["stopped"] is False
    if stage == "dpo":
        return
    assert train(stage, plain, tiny_model, raw_data)[0] == 0
    assert "monitors" not in json.loads((plain / "manifest.json").read_text())["config"]
    weights = "final/adapter_model.safetensors"
    assert (watched / weights).read_bytes() == (plain / weights).read_bytes()


def test_a_monitor_stops_the_training_and_the_run_is_finished(tmp_path: Path, tiny_model: Path, raw_data: Path) -> None:
    output = tmp_path / "stopped"
    monitors = [{"yardstick": "length", "every_steps": 2, "stop_above": -1}]
    status, printed = train("sft", output, tiny_model, raw_data, monitors=monitors)
    assert status == 0, printed
    assert "training ends here" in printed
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["monitors"]["stopped"] is True
    assert max(row["step"] for row in read_rows(output / "metrics.jsonl")) < 3


@pytest.mark.parametrize(
    ("monitor", "words"),
    [
        ({"yardstick": "rouge"}, "rouge needs more than answers"),
        ({"yardstick": "refusl"}, "did you mean refusal?"),
        ({"yardstick": "refusal", "alert_above": 0.1}, "command: it is for alert_above and alert_below"),
    ],
)
def test_a_wrong_monitor_is_refused(
    monitor: dict[str, Any], words: str, tmp_path: Path, tiny_model: Path, raw_data: Path
) -> None:
    status, printed = train("sft", tmp_path / "wrong", tiny_model, raw_data, monitors=[monitor])
    assert (status, words in printed) == (2, True), printed


def test_the_gravest_threshold_counts() -> None:
    config = MonitorConfig(yardstick="refusal", warn_above=0.1, alert_above=0.2, command=["x"], stop_above=0.3)
    assert [crossing(config, mean)[0] for mean in (0.1, 0.15, 0.25, 0.35)] == ["", "warn", "alert", "stop"]
    low = MonitorConfig(yardstick="length", warn_below=5)
    assert crossing(low, 4) == ("warn", "below 5")

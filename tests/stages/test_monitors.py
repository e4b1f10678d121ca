"""Monitors through SFT, DPO, KTO and PPO on tiny models: they see, warn, alert and stop, and change no weight."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support import TINY_TRAINING, read_rows, run_here, succeed, write_config, write_rows

from tiebreak.config.monitors import MonitorConfig
from tiebreak.tracking.wandb_copy import records_in
from tiebreak.training.monitors import crossing


def train(stage: str, output: Path, tiny_model: Path, raw_data: Path, **values: Any) -> tuple[int, str]:
    data = ("preferences", "preferences.jsonl") if stage != "sft" else ("demonstrations", "demonstrations.jsonl")
    if stage == "kto":  # single answers with labels
        pairs = read_rows(raw_data / "preferences.jsonl")
        sides = [(pair, side) for pair in pairs for side in ("chosen", "rejected")]
        rows = [
            {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen", "split": pair["split"]}
            for pair, side in sides
        ]
        data = ("preferences", str(write_rows(output.parent / "answers.jsonl", rows)))
    settings = {
        "output": output,
        "policy": tiny_model,
        data[0]: raw_data / data[1],
        "adapter": {"r": 4, "alpha": 8},
        "validation_share": 0.4,
        "training": {**TINY_TRAINING, "max_steps": 3},
        "sampling": {"temperature": 0.7, "max_new_tokens": 6},
        "tracking": {"mode": "disabled"},
        **({"algorithm": "kto"} if stage == "kto" else {}),
    } | values
    return run_here(
        "dpo" if stage == "kto" else stage, "--config", write_config(output.parent / f"{output.name}.yaml", **settings)
    )


def monitored(output: Path) -> list[tuple[int, float]]:
    rows = read_rows(output / "metrics.jsonl")
    return [(row["step"], row["monitor/length"]) for row in rows if "monitor/length" in row]


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto"])
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
    if stage != "sft":
        return
    assert train(stage, plain, tiny_model, raw_data)[0] == 0
    assert "monitors" not in json.loads((plain / "manifest.json").read_text())["config"]
    weights = "final/adapter_model.safetensors"
    assert (watched / weights).read_bytes() == (plain / weights).read_bytes()


def test_completions_at_every_evaluation_beside_the_references_change_no_weight(
    tmp_path: Path, tiny_model: Path, raw_data: Path
) -> None:
    training = {**TINY_TRAINING, "max_steps": 3, "eval_steps": 2}
    shown, plain = tmp_path / "shown", tmp_path / "plain"
    tracking = {"mode": "disabled", "completions": 2}
    status, printed = train("dpo", shown, tiny_model, raw_data, training=training, tracking=tracking)
    assert status == 0, printed
    rows = read_rows(shown / "completions.jsonl")
    assert [row["step"] for row in rows] == [0, 0, 2, 2, 3, 3]
    assert len({row["prompt_id"] for row in rows}) == 2
    before = {row["prompt_id"]: row["completion"] for row in rows if row["step"] == 0}
    assert all(row["before_training"] == before[row["prompt_id"]] for row in rows)
    assert any(row["completion"] != row["before_training"] for row in rows)
    off = {"mode": "disabled", "completions": 0}
    assert train("dpo", plain, tiny_model, raw_data, training=training, tracking=off)[0] == 0
    assert not (plain / "completions.jsonl").exists()
    weights = "final/adapter_model.safetensors"
    assert (shown / weights).read_bytes() == (plain / weights).read_bytes()
    ids = [json.loads((one / "manifest.json").read_text())["id"] for one in (shown, plain)]
    assert ids[0] == ids[1]  # the same run to whatever is made from it


@pytest.mark.proof
def test_completions_under_ppo_change_no_weight(finished_recipe: Path, tmp_path: Path) -> None:
    config = finished_recipe / "runs" / "ppo" / "config.resolved.yaml"
    for name, count in (("shown", 2), ("plain", 0)):
        words = ("ppo", "--config", config, "--output", tmp_path / name, "--training.eval_steps", "1")
        status, printed = run_here(*words, "--tracking.completions", str(count), "--tracking.mode", "disabled")
        assert status == 0, printed
    rows = read_rows(tmp_path / "shown" / "completions.jsonl")
    assert [row["step"] for row in rows] == [0, 0, 2, 2, 4, 4, 6, 6]
    for weights in ("final/adapter_model.safetensors", "final/value_head.safetensors"):
        assert (tmp_path / "shown" / weights).read_bytes() == (tmp_path / "plain" / weights).read_bytes()


@pytest.mark.proof
@pytest.mark.parametrize("zero", ["cpu_zero2", "cpu_zero3"])
def test_completions_under_zero_are_written_once_and_change_no_weight(
    finished_recipe: Path, tmp_path: Path, zero: str
) -> None:
    """All processes draw, as each may hold a shard of every weight, and one writes. Before training, the answers are those
    of one process."""
    config, weights = finished_recipe / "runs" / "dpo" / "config.resolved.yaml", "final/adapter_model.safetensors"
    for name, count, launched in (
        ("shown", 2, ["--accelerate", zero]),
        ("plain", 0, ["--accelerate", zero]),
        ("one", 2, []),
    ):
        words = ("dpo", "--config", config, "--output", tmp_path / name, "--training.eval_steps", "1", *launched)
        succeed(*words, "--tracking.completions", str(count), "--tracking.mode", "disabled", timeout=600)
    rows, of_one = (read_rows(tmp_path / name / "completions.jsonl") for name in ("shown", "one"))
    assert [row["step"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert rows[:2] == of_one[:2]
    assert [row["prompt_id"] for row in rows] == [row["prompt_id"] for row in of_one]
    assert (tmp_path / "shown" / weights).read_bytes() == (tmp_path / "plain" / weights).read_bytes()


def test_an_alert_reaches_wandb_and_a_webhook_that_fails_ends_nothing(
    tmp_path: Path, tiny_model: Path, raw_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, read back from W&B's file; a second webhook refuses the connection."""
    heard: list[dict[str, Any]] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            """Nothing."""

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr("tiebreak.tracking.recorder.LONGEST_WAIT", 300.0)
    server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monitors = [
        {"yardstick": name, "every_steps": 3, "prompts": 2, "alert_above": -1, "webhook": f"http://127.0.0.1:{port}/x"}
        for name, port in (("length", server.server_address[1]), ("refusal", 9))
    ]
    output = tmp_path / "alerting"
    status, printed = train("sft", output, tiny_model, raw_data, monitors=monitors, tracking={"mode": "offline"})
    server.shutdown()
    server.server_close()
    assert status == 0, printed
    assert [(one["monitor"], one["step"], one["run"]) for one in heard] == [
        ("length", 0, str(output)),
        ("length", 3, str(output)),
    ]
    assert "the monitor's webhook 127.0.0.1 failed" in printed
    assert [row["step"] for row in read_rows(output / "alerts.jsonl")] == [0, 0, 3, 3]
    (path,) = (output / "wandb").glob("offline-run-*/run-*.wandb")
    alerts = [record for record in records_in(path) if b"above -1" in record and b": monitor" in record]
    assert len(alerts) == 4


def test_a_monitor_stops_the_training_and_the_run_is_finished(tmp_path: Path, tiny_model: Path, raw_data: Path) -> None:
    output, heard = tmp_path / "stopped", tmp_path / "heard.txt"
    write = f"import sys; open({str(heard)!r}, 'a').write(sys.argv[1])"
    command = [sys.executable, "-c", write]
    monitors = [{"yardstick": "length", "every_steps": 2, "alert_above": -2, "stop_above": -1, "command": command}]
    status, printed = train("sft", output, tiny_model, raw_data, monitors=monitors)
    assert status == 0, printed
    assert "training ends here" in printed
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["monitors"]["stopped"] is True
    assert max(row["step"] for row in read_rows(output / "metrics.jsonl")) < 3
    assert "training ends here" in heard.read_text(), "a stop is an alert, too"
    assert "training ends here" in read_rows(output / "alerts.jsonl")[0]["message"]


@pytest.mark.parametrize(
    ("monitor", "words"),
    [
        ({"yardstick": "rouge"}, "rouge needs more than answers"),
        ({"yardstick": "refusl"}, "did you mean refusal?"),
        ({"yardstick": "refusal", "command": ["x"]}, "command: it is for alerts: give alert_above or alert_below"),
        ({"yardstick": "refusal", "warn_above": 0, "webhook": "http://x"}, "webhook: it is for alerts"),
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

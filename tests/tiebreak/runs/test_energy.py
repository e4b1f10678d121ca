"""Energy of a run, from a machine whose counters are files of the test: joules worked by hand, nothing estimated."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from support import end_process, run_here

from tiebreak.config import StageConfig, TrackingConfig
from tiebreak.runs import energy
from tiebreak.runs.energy import Watts
from tiebreak.runs.run import Run, start_run


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages, the memory of one, a platform counter that has them all, and cores that are a part of a package."""
    root = tmp_path / "powercap"
    names = {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "package-1", "2": "psys"}
    for zone, name in names.items():
        folder = root / f"intel-rapl:{zone}"
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text("999999999\n")
        (folder / "energy_uj").write_text("900000000\n")
    monkeypatch.setattr(energy, "POWERCAP", root)
    return root


def use(powercap: Path, zone: str, microjoules: int) -> None:
    """A counter increases, and starts again at 0 after its largest value."""
    file = powercap / f"intel-rapl:{zone}" / "energy_uj"
    file.write_text(str((int(file.read_text()) + microjoules) % 1_000_000_000))


def start(folder: Path) -> Run:
    end_process(folder)
    return start_run(StageConfig(output=str(folder), tracking=TrackingConfig(mode="disabled")), "study", {})


def test_packages_and_memory_count_over_a_counters_end_and_over_attempts(powercap: Path, tmp_path: Path) -> None:
    """90 + 30 J before the checkpoint, of which 90 J pass the counter's end; 20 + 10 J after it; 150 J are .0000417 kWh."""
    run = start(tmp_path / "run")
    for zone, joules in (("0", 90), ("0:0", 50), ("0:1", 30), ("2", 500)):
        use(powercap, zone, joules * 10**6)
    run.note_seconds()  # a checkpoint
    use(powercap, "1", 77 * 10**6)  # lost with the attempt's last steps, as its seconds are
    again = start(tmp_path / "run")
    use(powercap, "0", 20 * 10**6)
    use(powercap, "1", 10 * 10**6)
    (again.final / "x").write_text("x")
    found = again.finish()["energy"]
    assert found == {
        "kwh": pytest.approx(150 / 3.6e6, abs=1e-6),
        "processor_joules": 150.0,
        "measured": "processor: 3 RAPL counters, other programs included",
        "not_measured": "gpu",
    }


def test_an_attempt_without_counters_leaves_the_run_unmeasured(
    powercap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(energy, "POWERCAP", tmp_path / "none")
        start(tmp_path / "run").note_seconds()
    again = start(tmp_path / "run")
    use(powercap, "0", 20 * 10**6)
    (again.final / "x").write_text("x")
    assert again.finish()["energy"] == {"kwh": None, "measured": "", "not_measured": "processor, gpu"}


def test_watts_of_gpus_over_time_by_hand() -> None:
    """100 W for 2 s and 50 W for 4 s on one GPU, 10 W for 3 s on another."""
    watts = Watts()
    for gpu, power, now in (("a", 80, 0.0), ("b", 10, 1.0), ("a", 100, 2.0), ("b", 10, 4.0), ("a", 50, 6.0)):
        watts.add(gpu, power, now)
    assert watts.joules == 100 * 2 + 50 * 4 + 10 * 3
    assert len(watts.gpus) == 2


def test_nvidia_smi_is_read_while_a_run_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name that prints watts; a GPU without a figure is left out."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    lines = "GPU-1, 100.00\\nGPU-2, [N/A]\\n"
    program.write_text(f"#!/bin/sh\nwhile true; do printf '{lines}'; sleep 0.1; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run = start(tmp_path / "run")
    (run.final / "x").write_text("x")
    time.sleep(1)
    found = run.finish()["energy"]
    assert 30 < found["gpu_joules"] < 100 * run.seconds + 10  # seconds are rounded
    assert found["measured"] == "gpu: 1 by nvidia-smi's watts"
    process = run._meter._watts._process
    assert process is not None
    assert process.poll() is not None


def test_the_card_has_measured_energy_and_otherwise_a_blank(finished_recipe: Path, tmp_path: Path) -> None:
    run = finished_recipe / "runs" / "dpo"
    assert json.loads((run / "manifest.json").read_text())["energy"]["kwh"] is None
    status, printed = run_here("card", run, "--output", tmp_path / "card.md")
    assert status == 0, printed
    text = (tmp_path / "card.md").read_text()
    assert "- **[blank: energy]** How much energy did training take?" in text
    assert "energy in kWh" not in text
    assert "| energy, not measured | processor, gpu | dpo " in text

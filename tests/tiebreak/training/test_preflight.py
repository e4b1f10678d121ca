"""The page before training: steps worked by hand, memory and disk that do not suffice, and where the command ends."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from accelerate.data_loader import prepare_data_loader
from support import TINY_TRAINING, run_here, write_config, write_rows
from torch.utils.data import DataLoader

from tiebreak.config import TrainingConfig
from tiebreak.errors import DataError, MachineError, ModelError
from tiebreak.plan.available import available_memory, this_hardware
from tiebreak.plan.devices import Device
from tiebreak.plan.hardware import Hardware
from tiebreak.plan.planner import plan_stage
from tiebreak.plan.tables import settings, shape_named
from tiebreak.runs.placement import Placement
from tiebreak.training import preflight
from tiebreak.training.preflight import disk_check, memory_checks, steps_check
from tiebreak.training.prompt_order import PromptOrder
from tiebreak.training.trainer import EvaluatedBatches, EvenBatches, StageTrainer


def config_of(size: int, parts: int) -> Any:
    training = TrainingConfig(per_device_batch_size=size, gradient_accumulation_steps=parts)
    return SimpleNamespace(training=training)


@pytest.mark.parametrize(
    ("rows", "size", "parts", "placement", "expected"),
    [
        (48, 8, 1, Placement(), "1 process × 8 × 1 = 8 a step: 6 steps an epoch; no row is dropped"),
        (50, 8, 1, Placement(), "7 steps an epoch, the last of them of 2 rows; no row is dropped"),
        (50, 8, 1, Placement(2, "zero2"), "2 processes (zero2) × 8 × 1 = 16 a step: 4 steps an epoch, the last of them "
         "of 2 rows; no row is dropped"),
        (51, 8, 1, Placement(2, "zero2"), "4 steps an epoch, the last of them of 2 rows; 1 row of each epoch left out, so "
         "that all processes have as many"),
        (50, 8, 1, Placement(3, "zero2"), "2 steps an epoch; 2 rows of each epoch left out, so that all processes have as "
         "many"),
        (64, 4, 2, Placement(2, "ddp"), "2 processes (ddp) × 4 × 2 = 16 a step: 4 steps an epoch; no row is dropped"),
    ],
)  # fmt: skip
def test_steps_against_rows(rows: int, size: int, parts: int, placement: Placement, expected: str) -> None:
    check = steps_check(config_of(size, parts), rows, placement)
    assert check.text.endswith(expected)
    assert check.state == "ok"


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 31, 33, 48, 50, 51])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_last_rows_and_none_is_seen_twice(rows: int, world: int) -> None:
    """By accelerate's shards: in each step all processes have as many rows, and together those of one process."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    batches = EvenBatches(BatchSampler(SequentialSampler(range(rows)), 8, drop_last=False), world)
    shards = [list(BatchSamplerShard(batches, world, rank, even_batches=False)) for rank in range(world)]
    assert {len(shard) for shard in shards} == {len(batches) // world} == {math.ceil(rows // world / 8)}
    seen = []
    for step in zip(*shards, strict=True):
        assert len({len(batch) for batch in step}) == 1
        seen += [row for batch in step for row in batch]
    assert seen == list(range(rows - rows % world))


def shared_out(loader: Any, world: int, kind: type[EvenBatches]) -> Any:
    return StageTrainer._shared_out(SimpleNamespace(args=SimpleNamespace(world_size=world)), loader, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 23, 35])
def test_an_evaluation_counts_every_row_once(rows: int, world: int, size: int) -> None:
    """By accelerate's shards: all processes take as many steps, of as many rows; the first counts all of its own, the
    others all but the last rows that do not divide among them. By itself accelerate repeats the first rows."""
    taken, counted = [], []
    for rank in range(world):
        made = DataLoader(range(rows), batch_size=size)  # type: ignore[arg-type]
        loader = prepare_data_loader(made, num_processes=world, process_index=rank, put_on_device=False)
        loader = shared_out(loader, world, EvaluatedBatches)
        batches = [batch.tolist() for batch in loader]
        assert len(batches) == len(loader)
        taken.append([len(batch) for batch in batches])
        counted += batches if rank == 0 else batches[: loader.batch_sampler.batch_sampler.steps]
    assert all(sizes == taken[0] for sizes in taken)
    assert sorted(row for batch in counted for row in batch) == list(range(rows))


def test_a_resumed_epoch_of_several_processes_has_its_own_order() -> None:
    """The second epoch, cut off after a step, as transformers resumes it: not in the order of the first."""
    from accelerate import skip_first_batches

    def loader() -> Any:
        made = DataLoader(range(24), batch_size=4, sampler=PromptOrder(range(24), seed=0))  # type: ignore[arg-type]
        made = prepare_data_loader(made, num_processes=2, process_index=0, put_on_device=False)
        return shared_out(made, 2, EvenBatches)

    def rows(of: Any, epoch: int) -> list[list[int]]:
        of.set_epoch(epoch)
        if hasattr(of.batch_sampler.batch_sampler, "set_epoch"):  # as transformers' trainer does
            of.batch_sampler.batch_sampler.set_epoch(epoch)
        return [batch.tolist() for batch in of]

    uncut = loader()
    first, second = rows(uncut, 0), rows(uncut, 1)
    assert first != second
    assert rows(skip_first_batches(loader(), 1), 1) == second[1:]


def test_fewer_rows_than_processes_are_refused_before_training() -> None:
    with pytest.raises(DataError, match=r"^1 row to train on for 2 processes \(ddp\): give each process at least one"):
        steps_check(config_of(8, 1), 1, Placement(2, "ddp"))


@pytest.mark.parametrize(("rows", "cut_by_accelerate"), [(5, 1), (7, 3), (8, 0)])
def test_figures_of_the_last_step_are_gathered_from_every_process(rows: int, cut_by_accelerate: int) -> None:
    """Of 5 rows in steps of 2 × 2, the last is one. By itself accelerate keeps 5 mod 4 figures: one process's."""

    def loader() -> Any:
        made = DataLoader(range(rows), batch_size=2)  # type: ignore[arg-type]
        return prepare_data_loader(made, num_processes=2, process_index=0, put_on_device=False, even_batches=False)

    ours = shared_out(loader(), 2, EvaluatedBatches)
    for each, cut in ((loader(), cut_by_accelerate), (ours, -1)):
        for _ in each:
            last = each.remainder
        assert last == cut  # −1 and 0: nothing


def test_fewer_rows_than_a_step_are_a_warning() -> None:
    assert steps_check(config_of(8, 4), 20, Placement()).state == "warn"


def test_episodes_of_ppo() -> None:
    config = SimpleNamespace(training=TrainingConfig(per_device_batch_size=4), episodes_per_rollout=32, ppo_epochs=3)
    text = steps_check(config, 9, Placement(2, "ddp")).text
    assert text.endswith("= 8 a step: 32 episodes a rollout make 12 steps")


# --- memory and disk


def planned(memory: int, title: str = "a card", longest: int = 2048) -> Any:
    device, config = Device("h100", title, memory, 1e12), settings("sft")
    config.training = config.training.model_copy(update={"max_length_tokens": longest})
    return plan_stage("sft", config, Hardware(device), shape=shape_named("llama-3.1-8b"))


def test_weights_that_exceed_the_device_are_refused_and_less_room_is_a_warning() -> None:
    with pytest.raises(MachineError) as refused:
        list(memory_checks(planned(16 * 10**9, longest=512), 16 * 10**9))
    assert "its weights alone take 15.0 GiB, and a card has 14.9 GiB; what fits: " in str(refused.value)
    assert "adapter.quantize: nf4" in str(refused.value)
    (tight,) = (check for check in memory_checks(planned(10**11), 2**33) if check.name == "memory")
    assert tight.state == "warn"
    assert "8.0 GiB are free" in tight.text
    (roomy,) = (check for check in memory_checks(planned(10**11), 10**11) if check.name == "memory")
    assert roomy.state == "ok"


def test_memory_that_programs_can_have(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  16384 kB\nMemAvailable:    4096 kB\n")
    assert available_memory(meminfo) == 4096 * 1024
    assert available_memory(tmp_path / "none") > 2**28


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = this_hardware().device.memory
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    shared = this_hardware()
    assert (shared.device.memory, shared.count) == (alone // 2, 4)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_the_disk_of_a_folder_that_another_process_has_not_made_yet_is_that_above_it(tmp_path: Path) -> None:
    found = disk_check(tmp_path / "runs" / "recipe" / "sft", 1000)
    assert found == disk_check(tmp_path, 1000)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_for_a_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 million trained: 120 MB, and 16 MiB beside it."""
    free = 136_777_216
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Usage(10**12, 0, free))
    assert disk_check(tmp_path / "run", 10_000_000).state == "warn"  # one checkpoint, not three
    free -= 1
    with pytest.raises(MachineError, match="a checkpoint takes 130 MiB, and 130 MiB are free"):
        disk_check(tmp_path / "run", 10_000_000)
    free = 10**9
    assert disk_check(tmp_path / "run", 10_000_000).state == "ok"


# --- the command


def stage_files(folder: Path, model: Path) -> dict[str, Path]:
    rows = [{"prompt": f"Why {n}?", "completion": f"Because of {n}.", "split": "train"} for n in range(6)]
    pairs = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "No.", "split": "train"} for r in rows]
    shared = {"policy": model, "training": TINY_TRAINING, "tracking": {"mode": "disabled"}}
    data = {"sft": ("demonstrations", rows), "reward": ("preferences", pairs), "dpo": ("preferences", pairs)}
    return {
        stage: write_config(
            folder / f"{stage}.yaml",
            output=folder / stage,
            adapter={"r": 4, "alpha": 8},
            **{key: write_rows(folder / f"{key}.jsonl", content)},
            **shared,
        )
        for stage, (key, content) in data.items()
    }


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_preflight_only_checks_and_loads_nothing(
    stage: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiebreak.models.load.load_base", lambda *_, **__: pytest.fail("it loaded the model"))
    file = stage_files(tmp_path, tiny_model)[stage]
    status, printed = run_here(stage, "--config", file, "--preflight-only")
    assert status == 0, printed
    page = printed.partition("preflight\n")[2]
    assert [line.split()[1] for line in page.splitlines() if line.strip()] == [
        "rows", "steps", "memory", "disk", "versions",
    ]  # fmt: skip
    assert "6 to train on, 0 held out" in page
    assert "saved: " not in printed
    assert not (tmp_path / stage / "manifest.json").exists()
    # and a later run under other settings is not in the way of what this one left
    status, _ = run_here(stage, "--config", file, "--preflight-only", "--training.learning-rate", "0.5")
    assert status == 0


@pytest.mark.parametrize(
    ("error", "shown"),
    [(ModelError("no size\nat all"), "no size"), (TypeError("no number"), "TypeError: no number")],
)
def test_memory_that_cannot_be_planned_is_a_warning(
    error: Exception, shown: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(preflight, "plan_stage", fail)
    status, printed = run_here("sft", "--config", stage_files(tmp_path, tiny_model)["sft"], "--preflight-only")
    assert status == 0, printed
    assert re.search(rf"^ *warn +memory +not planned: {shown}$", printed, re.MULTILINE), printed


def test_preflight_only_fails_where_the_stage_would(tmp_path: Path, tiny_model: Path) -> None:
    file = stage_files(tmp_path, tiny_model)["sft"]
    status, printed = run_here("sft", "--config", file, "--preflight-only", "--training.max-length-tokens", "8")
    assert status == 1
    assert "longer than training.max_length_tokens" in printed
    status, printed = run_here("evaluate", "--config", "configs/quickstart/evaluate.yaml", "--preflight-only")
    assert status == 2
    assert "trains nothing" in printed


@pytest.mark.slow
def test_a_recipe_checks_what_it_can_and_names_what_waits(tmp_path: Path, tiny_model: Path) -> None:
    files = stage_files(tmp_path, tiny_model)
    values = json.loads(json.dumps({"policy": str(tmp_path / "sft"), "adapter": None}))
    entries = [
        {"stage": "sft", "config": files["sft"]},
        {"stage": "reward", "config": files["reward"]},
        {"stage": "dpo", "config": files["dpo"], "overrides": values},
    ]
    recipe = write_config(tmp_path / "all.yaml", name="r", stages=entries, from_root=tmp_path, tracking_mode="disabled")
    status, printed = run_here("run", "--config", recipe, "--preflight-only")
    assert status == 0, printed
    assert f"dpo: checked once {tmp_path / 'sft'} is finished" in printed
    assert not list(tmp_path.glob("*/manifest.json"))
    entries[1]["overrides"] = {"training": {"max_length_tokens": 8}}
    write_config(recipe, name="r", stages=entries, from_root=tmp_path, tracking_mode="disabled")
    status, printed = run_here("run", "--config", recipe, "--preflight-only")
    assert status == 1
    assert "the preflight of reward failed" in printed

"""Launch flags, accelerate files that contradict a configuration, and the command that a launch stands for."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import REPOSITORY, run_here, write_config

from tiebreak.command import launch
from tiebreak.command.cli import main
from tiebreak.command.hardware import LaunchFlags, take_launch_flags
from tiebreak.config import TrainingConfig
from tiebreak.errors import ConfigError
from tiebreak.runs.agreement import require_same_values
from tiebreak.runs.placement import of_process, require_agreement, require_own_pace, require_placed
from tiebreak.stages import STAGES, Stage

SFT = ("sft", "--config", "configs/quickstart/sft.yaml")


def test_launch_flags_are_taken_out_in_either_spelling() -> None:
    words = ["--beta", "0.2", "--accelerate=zero2", "--num-processes", "4", "--machine_rank=0", "--dry-run", "--x", "1"]
    flags, rest = take_launch_flags(words)
    assert flags == LaunchFlags(accelerate="zero2", num_processes=4, machine_rank=0, dry_run=True)
    assert rest == ["--beta", "0.2", "--x", "1"]
    for words, message in (
        (["--num_processes", "0"], "--num_processes: must be a whole number from 1, not '0'"),
        (["--num-processes", "two"], "must be a whole number from 1, not 'two'"),
        (["--main_process_ip", "--beta"], "--main_process_ip needs a value"),
        (["--dry-run=yes"], "--dry-run takes no value"),
    ):
        with pytest.raises(ConfigError, match=message):
            take_launch_flags(words)


def dry_run(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    with pytest.raises(SystemExit) as stopped:
        main([*SFT, *words, "--dry-run"])
    assert stopped.value.code == 0
    return shlex.split(capsys.readouterr().out)


def test_a_dry_run_prints_the_long_form(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """That which DESIGN documents, also for GPUs that this machine does not have; accelerate's own parser takes it."""
    from accelerate.commands.launch import launch_command_parser

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    found = dry_run(capsys, "--accelerate", "zero2", "--num_processes", "4", "--training.max-steps", "2")
    assert found == [
        *("accelerate", "launch", "--config_file", "configs/accelerate/zero2.yaml", "--num_processes", "4"),
        *("--main_process_port", "0", "-m", "sft.train", "--config", "configs/quickstart/sft.yaml"),
        *("--training.max-steps", "2"),
    ]
    taken = launch_command_parser().parse_args(found[2:])
    assert (taken.num_processes, taken.main_process_port, taken.module) == (4, 0, True)
    several = dry_run(capsys, "--accelerate", "multi_node_zero3", "--machine_rank", "1", "--main_process_ip", "n0")
    assert several[4:8] == ["--machine_rank", "1", "--main_process_ip", "n0"]
    assert "--main_process_port" not in several  # the file's: all machines must use the same one
    assert dry_run(capsys) == ["python", "-m", "sft.train", "--config", "configs/quickstart/sft.yaml"]


@pytest.mark.parametrize("stage", [stage for stage in STAGES.values() if stage.trains], ids=lambda stage: stage.name)
def test_the_module_of_the_long_form_runs_its_stage(stage: Stage) -> None:
    """A module without these lines would end at once, with status 0 and nothing done."""
    source = (REPOSITORY / Path(*stage.module.split("."))).with_suffix(".py").read_text()
    assert source.rstrip().endswith('if __name__ == "__main__":\n    main()')


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*SFT, "--num_processes", "2"), "--num_processes and the like need --accelerate NAME: cpu, cpu_zero1"),
        ((*SFT, "--accelerate", "zero2", "--num_processes", "x"), "must be a whole number from 1, not 'x'"),
        (("prepare", "--config", "configs/quickstart/prepare.yaml", "--accelerate", "cpu"), "runs in one process"),
        (("run", "--config", "configs/quickstart/pipeline.yaml", "--num_processes", "2"), "runs in one process"),
    ],
)
def test_flags_that_cannot_be_meant(words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    status, printed = run_here(*words)
    assert status == 2
    assert message in printed


# --- what two files say


@pytest.mark.parametrize(
    ("hardware", "deepspeed", "training", "message"),
    [
        ({"mixed_precision": "bf16"}, {}, {"precision": "float32"}, "mixed_precision: bf16, but sft.yaml has "
         "training.precision: float32; set mixed_precision: 'no'"),
        ({"mixed_precision": "fp16"}, {}, {}, "mixed_precision: fp16, but sft.yaml has training.precision: auto"),
        ({"deepspeed_config": {"gradient_accumulation_steps": 4}}, {}, {"gradient_accumulation_steps": 2},
         "gradient_accumulation_steps: 4, but sft.yaml has training.gradient_accumulation_steps: 2; set"),
        ({"deepspeed_config": {"gradient_clipping": "0.5"}}, {}, {},
         "gradient_clipping: 0.5, but sft.yaml has training.max_grad_norm: 1.0"),
        ({"fsdp_config": {"fsdp_activation_checkpointing": True}}, {}, {},
         "fsdp_activation_checkpointing: true, but sft.yaml has training.gradient_checkpointing: false"),
        ({}, {"train_micro_batch_size_per_gpu": 16}, {}, "training.per_device_batch_size: 8"),
        ({}, {"optimizer": {"params": {"lr": 3e-4}}}, {}, "optimizer.params.lr: 0.0003, but sft.yaml has "
         "training.learning_rate: 0.0001"),
        ({}, {"fp16": {"enabled": True}}, {"precision": "bfloat16"}, "fp16.enabled: true, but sft.yaml has "
         "training.precision: bfloat16; set fp16.enabled: auto"),
        ({}, {"bf16": {"enabled": False}}, {"precision": "bfloat16"}, "bf16.enabled: false"),
    ],
)  # fmt: skip
def test_a_difference_shows_both_values_and_both_files(
    tmp_path: Path, hardware: dict[str, Any], deepspeed: dict[str, Any], training: dict[str, Any], message: str
) -> None:
    file = tmp_path / "own.yaml"
    if deepspeed:
        (tmp_path / "ds.json").write_text(json.dumps(deepspeed))
        hardware = {"deepspeed_config": {"deepspeed_config_file": str(tmp_path / "ds.json")}}
    file.write_text(yaml.safe_dump(hardware))
    with pytest.raises(ConfigError) as refused:
        require_same_values(TrainingConfig(**training), file, "sft.yaml")
    assert message in str(refused.value)
    assert f"{tmp_path / 'ds.json' if deepspeed else file} has" in str(refused.value)


@pytest.mark.parametrize("file", sorted((REPOSITORY / "configs" / "accelerate").glob("*.yaml")), ids=lambda f: f.stem)
def test_the_shipped_files_leave_everything_to_the_stage(file: Path) -> None:
    for precision in ("auto", "float32", "bfloat16", "float16"):
        training = TrainingConfig(precision=precision, gradient_accumulation_steps=3, max_grad_norm=0.7)
        require_same_values(training, file, "x.yaml")


def test_a_contradiction_is_refused_before_anything_starts(tmp_path: Path) -> None:
    own = yaml.safe_load((REPOSITORY / "configs/accelerate/cpu_zero2.yaml").read_text())
    file = write_config(tmp_path / "own.yaml", **own | {"mixed_precision": "fp16"})
    sft = write_config(tmp_path / "sft.yaml", output=tmp_path / "sft", policy="bundled:x", demonstrations="x.jsonl")
    status, printed = run_here("sft", "--config", sft, "--accelerate", file)
    assert status == 2
    assert f"{file} has mixed_precision: fp16, but {sft} has training.precision: auto" in printed
    assert not (tmp_path / "sft").exists()


def test_a_launch_by_hand_is_compared_with_deepspeeds_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the environment names it there; transformers would end with an error that looks like a bug."""
    (tmp_path / "ds.json").write_text('{"gradient_clipping": 0.3}')
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "ds.json"))
    with pytest.raises(ConfigError, match=r"ds\.json has gradient_clipping: 0\.3"):
        require_agreement(TrainingConfig(), "no")


def test_fsdp_on_the_cpu_is_refused_since_accelerate_would_not_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate 1.15 enters FSDP for MULTI_GPU and other accelerators, never for MULTI_CPU: it would train under DDP."""
    own = yaml.safe_load((REPOSITORY / "configs/accelerate/fsdp2.yaml").read_text())
    file = write_config(tmp_path / "own.yaml", **own | {"use_cpu": True, "num_processes": 2})
    monkeypatch.chdir(REPOSITORY)
    status, printed = run_here(*SFT, "--accelerate", file)
    assert status == 2
    assert "use --accelerate cpu_zero3" in printed
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    with pytest.raises(ConfigError, match="distributed_type FSDP: accelerate shards with FSDP on accelerators only"):
        of_process()


@pytest.mark.parametrize(("name", "variable"), [("cpu_zero1", None), ("cpu_zero3", None), ("cpu", "true")])
def test_deepspeed_on_the_cpu_is_not_replaced_by_ddp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variable: str | None
) -> None:
    """accelerate 1.15 leaves DeepSpeed out where ACCELERATE_USE_CPU is set, and takes DDP."""
    started: dict[str, str] = {}
    monkeypatch.setattr(launch, "run_launched", lambda _, environment: started.update(environment) or 0)
    monkeypatch.chdir(REPOSITORY)
    run_here(*SFT, "--output", tmp_path / "sft", "--accelerate", name, "--num_processes", "2")
    assert started
    assert started.get("ACCELERATE_USE_CPU") == variable
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    require_placed(deepspeed=True, fsdp=False)
    with pytest.raises(
        ConfigError, match=r"launched as 1 process \(zero3\), but its trainer uses neither DeepSpeed nor F"
    ):
        require_placed(deepspeed=False, fsdp=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ConfigError, match="ACCELERATE_USE_CPU is set, with which accelerate trains under DDP"):
        of_process()


def test_sampling_under_fsdp_is_refused_before_anything_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    require_own_pace("PPO")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(
        ConfigError, match="PPO samples, which FSDP's sharded weights do not allow here: use --accelerate z"
    ):
        require_own_pace("PPO")


def test_fsdps_shards_are_put_together(tmp_path: Path) -> None:
    """By PyTorch's own `fully_shard`, in a group of one process."""
    import torch
    from torch import distributed, nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from tiebreak.packed.sharding import in_shards_of_fsdp, unsharded

    distributed.init_process_group("gloo", store=distributed.FileStore(str(tmp_path / "s"), 1), rank=0, world_size=1)
    try:
        layer = nn.Linear(3, 2)
        weight = layer.weight.detach().clone()
        fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
        assert in_shards_of_fsdp(layer.weight)
        found = unsharded(layer.weight.detach())
        assert type(found) is torch.Tensor
        assert torch.equal(found, weight)
    finally:
        distributed.destroy_process_group()
    assert unsharded(weight) is weight


def test_the_examples_for_clusters_are_commands_that_the_parser_takes() -> None:
    slurm = (REPOSITORY / "configs/launch/slurm.sbatch").read_text().replace("\\\n", " ")
    line = next(line for line in slurm.splitlines() if "tiebreak sft" in line and line.startswith("srun"))
    words = shlex.split(line.partition('"')[2].rstrip('"'))
    filled = ["2" if word.startswith(("$", "\\$")) and "MAIN" not in word else word for word in words[2:]]
    flags, rest = take_launch_flags([word for word in filled if word not in ("*", "8))")])
    assert flags.accelerate == "multi_node_zero3"
    assert rest == ["--config", "configs/quickstart/sft.yaml"]


@pytest.mark.parametrize(
    ("name", "processes", "several"),
    [("cpu", 1, False), ("cpu", 2, True), ("single_gpu", 1, False), ("single_gpu", 4, True), ("cpu_zero2", 2, False)],
)
def test_a_file_of_one_process_that_is_given_several_starts_them_all(
    capsys: pytest.CaptureFixture[str], name: str, processes: int, several: bool
) -> None:
    """accelerate starts one for `distributed_type: NO`, whatever the number."""
    words = dry_run(capsys, "--accelerate", name, "--num_processes", str(processes))
    assert ("--multi_gpu" in words) is several

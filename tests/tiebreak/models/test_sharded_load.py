"""Weights that DeepSpeed shards as they load: the checks before training see the same model, and refuse the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from support import on_two_processes, run_here, write_rows

from tiebreak.config import AdapterConfig, OptimizerConfig
from tiebreak.errors import ConfigError, ModelError
from tiebreak.models.find import find_model
from tiebreak.models.load import load_base
from tiebreak.models.precision import WeightFormat
from tiebreak.models.shardable import require_shardable
from tiebreak.models.sharded import shard
from tiebreak.runs.run import read_manifest, read_metrics


@pytest.mark.slow
def test_a_policy_in_shards_is_checked_as_a_whole_one(tiny_model: Path, tmp_path: Path) -> None:
    """Two processes; see the script."""
    on_two_processes("zero3_sharded_load", "tests/tiebreak/models/sharded_on_two.py", tiny_model, tmp_path)


TRAINING = (
    *("--training.max-steps", 3, "--training.learning-rate", 1e-3, "--training.max-length-tokens", 128),
    *("--training.per-device-batch-size", 2, "--tracking.mode", "disabled"),
)


def words_of(stage: str, folder: Path, policy: Path) -> list[Any]:
    """A stage on rows of several lengths; a new adapter for `sft`, and its own continued after it."""
    prompts = [f"Why is {n} so cold?{' Say more.' * (n % 4)}" for n in range(16)]
    if stage == "sft":
        rows = [{"prompt": p, "completion": "Cool it.", "split": "train"} for p in prompts]
        file = write_rows(folder / "sft.jsonl", rows)
        return ["--policy", policy, "--demonstrations", file, "--adapter.r", 4, "--adapter.alpha", 8, *TRAINING]
    rows = [{"prompt": p, "chosen": f"Cool it, {p}", "rejected": "It depends.", "split": "train"} for p in prompts]
    own = ["--garbage-prompts", 0] if stage == "reward" else []
    return ["--policy", policy, "--preferences", write_rows(folder / f"{stage}.jsonl", rows), *own, *TRAINING]


@pytest.mark.proof
def test_training_is_that_of_a_model_loaded_whole(tiny_model: Path, tmp_path: Path) -> None:
    """SFT from a base model, then reward and DPO from its run, whose probe is repeated: the same losses and adapters."""
    policy = tiny_model
    for stage in ("sft", "reward", "dpo"):
        losses, saved = {}, {}
        for launcher in ("zero3", "zero3_sharded_load"):
            run, noted = tmp_path / stage / launcher, tmp_path / f"{stage}-{launcher}"
            words = map(str, ["--output", run, *words_of(stage, tmp_path, policy)])
            on_two_processes(launcher, "tests/sharded/noting.py", noted, stage, *words)
            losses[launcher] = [row["loss"] for row in read_metrics(run) if row.get("loss") is not None]
            saved[launcher] = load_file(run / "final" / "adapter_model.safetensors")
            assert read_manifest(run)["probe_difference"] <= 1e-5
            whole = [int(Path(f"{noted}.{rank}").read_text()) for rank in (0, 1)]
            assert (whole == [0, 0]) == (launcher == "zero3_sharded_load")
        first, second = losses.values()
        assert len(first) == 3
        assert second == pytest.approx(first, abs=1e-4), stage
        ours, theirs = saved["zero3_sharded_load"], saved["zero3"]
        assert ours.keys() == theirs.keys()
        for name, weight in theirs.items():
            torch.testing.assert_close(
                ours[name], weight, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )
        policy = tmp_path / "sft" / "zero3"


@pytest.mark.parametrize(
    ("adapter", "options", "reason"),
    [
        ({"method": "full"}, {}, "adapter.method: full trains or reads them"),
        ({"method": "prompt"}, {}, "adapter.method: prompt"),
        ({"quantize": "nf4"}, {}, "adapter.quantize: nf4 needs whole weights"),
        ({"dora": True}, {}, "adapter.dora"),
        ({"init": "pissa"}, {}, "adapter.init: pissa starts from whole ones"),
        ({"init": "eva"}, {}, "adapter.init: eva"),
        ({"modules_to_save": ["norm"]}, {}, "adapter.modules_to_save"),
        ({"start": "merge"}, {}, "adapter.start: merge writes a whole model first"),
        ({}, {"algorithm": "ppo"}, "ppo checks its models on whole ones; sft, reward, dpo do not"),
        ({}, {"guarded": True}, "the guard's reward model"),
        ({}, {"brought": AdapterConfig(dora=True)}, "the policy's adapter.dora: true reads them"),
        ({"start": "stack"}, {"brought": AdapterConfig(quantize="nf4")}, "the policy's adapter.quantize: nf4 needs"),
    ],
)
def test_what_needs_whole_weights_is_refused(adapter: dict[str, Any], options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"zero3_init_flag: true .* {reason}.* zero3_init_flag: false"):
        require_shardable(AdapterConfig(**adapter), **{"algorithm": "sft", **options})


@pytest.mark.slow
def test_a_stage_refuses_it_before_it_loads(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Why?", "completion": "Cool it."}])
    for name, value in (("USE_DEEPSPEED", "true"), ("DEEPSPEED_ZERO_STAGE", "3"), ("DEEPSPEED_ZERO3_INIT", "true")):
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    words = ("--policy", tiny_model, "--demonstrations", rows, "--output", tmp_path / "sft", "--adapter.dora", "true")
    with mock.patch("tiebreak.models.load.load_base", side_effect=AssertionError("loaded")):
        status, message = run_here("sft", *words)
    assert status == 2, message
    assert "zero3_init_flag: true shards the base weights as they load, and adapter.dora" in " ".join(message.split())


def test_what_a_policy_brings_did_not_start_here() -> None:
    require_shardable(AdapterConfig(init="pissa"), "dpo", brought=AdapterConfig(init="pissa"))
    require_shardable(AdapterConfig(start="stack"), "reward", brought=AdapterConfig())
    require_shardable(AdapterConfig(init="gaussian", rslora=True), "sft")


def test_weights_that_a_file_holds_in_4_bits_are_refused(tiny_model: Path) -> None:
    model = load_base(find_model(str(tiny_model)), OptimizerConfig(), weights=WeightFormat("nf4"))
    with pytest.raises(
        ModelError, match=r"own weights are quantised \(nf4\), which zero3_init_flag: true does not shard"
    ):
        shard(model)

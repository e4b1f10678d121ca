"""vLLM as the sampler of rollouts, as far as it can be had without a GPU: TRL's own client code against a server that
speaks vLLM's protocol and draws from a real model (vllm_stand_in.py). vLLM itself, NCCL and colocate are not tested."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_world import World
from support import REPOSITORY, read_rows, run_here, write_config
from toy_language import build_toy_policy, with_adapter
from vllm_stand_in import PUSH, READY, StandIn, free_port, serving, write_package

from preference.policy.adapters import POLICY, REFERENCE
from preference.policy.vllm import MergedPolicy, VLLMConfig, read_completion
from tiebreak.config import SamplingConfig
from tiebreak.errors import HandoffError
from tiebreak.models.adapters.adapter import Adapter

HAS_VLLM = importlib.util.find_spec("vllm") is not None
HAS_GPU = torch.cuda.is_available()
RUNNER = """
import contextlib, io, json, sys, traceback
import torch
from trl.generation.vllm_client import VLLMClient
from tiebreak.command.cli import main

join = VLLMClient.init_communicator
for words, pretend in json.loads(sys.argv[1]):
    if pretend:  # TRL and Tiebreak want a GPU for NCCL, in whose place there is a socket
        import preference.policy.vllm
        preference.policy.vllm.has_gpu = lambda: True
        VLLMClient.init_communicator = lambda self, device: join(self, device="cuda")
    status, errors = 0, io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(words)
        except SystemExit as stopped:
            status = stopped.code
        except BaseException:
            status = -1
            traceback.print_exc()
    print(json.dumps([status, errors.getvalue()]), flush=True)
"""
"""The command line's own `main`, command after command in one process: importing torch and TRL takes longest."""


@dataclass(frozen=True)
class Outcome:
    """A command's exit status and standard error, and the server it spoke to."""

    status: int
    message: str
    output: Path
    server: StandIn

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Logged optimizer steps."""
        return [row for row in read_rows(self.output / "metrics.jsonl") if "loss" in row]


def run_all(commands: list[tuple[list[Any], bool]], package: Path) -> list[tuple[int, str]]:
    """(exit status, standard error) of each; True with a command: on a machine that is taken to have a GPU."""
    script = json.dumps([[[str(word) for word in words], pretend] for words, pretend in commands])
    paths = [str(package), str(REPOSITORY), str(REPOSITORY / "tests" / "preference")]
    result = subprocess.run(
        [sys.executable, "-c", RUNNER, script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return [tuple(json.loads(line)) for line in result.stdout.splitlines()]


def stage(folder: Path, world: World, server: StandIn | None, **more: Any) -> list[Any]:
    """`tiebreak ppo`: three rollouts of eight episodes, two optimizer steps each."""
    vllm = {"base_url": server.url, "group_port": server.group_port} if server else {}
    config = write_config(
        folder / "ppo.yaml",
        output=folder / "out",
        **world.ppo
        | {
            "vllm": vllm | more.pop("vllm", {}),
            "episodes_per_rollout": 8,
            "completions_per_prompt": 4,
            "rollouts": 3,
            "ppo_epochs": 1,
            "stop_when_all_cut_off": False,
            "max_validation_prompts": 2,
            "sampling": {"temperature": 0.7, "max_new_tokens": 6},
            "adapter": {"r": 4},
            "training": {
                "learning_rate": 0.02,
                "per_device_batch_size": 4,
                "max_length_tokens": 32,
                "warmup_share": 0.0,
                "precision": "float32",
                "save_steps": 2,
            },
        }
        | more,
    )
    return ["ppo", "--config", config]


@pytest.fixture(scope="module")
def outcomes(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    """Whole runs, each with a server whose weights are at first not the policy's."""
    folder = tmp_path_factory.mktemp("vllm")
    tight = {"logp_tolerance": 1e-4}
    cases: dict[str, tuple[StandIn, dict[str, Any]]] = {
        "ppo": (StandIn(world.policy), {}),
        "rloo": (StandIn(world.policy), {"algorithm": "rloo"}),
        "grpo": (StandIn(world.policy), {"algorithm": "grpo"}),
        "deaf": (StandIn(world.policy, hears=lambda push: False), {}),
        "deaf under rloo": (StandIn(world.policy, hears=lambda push: False), {"algorithm": "rloo"}),
        "deaf later": (StandIn(world.policy, hears=lambda push: push == 1), {"vllm": tight}),
        "cut": (StandIn(world.policy, cut=2), {}),
    }
    with ExitStack() as servers:
        commands = []
        for name, (server, more) in cases.items():
            servers.enter_context(serving(server))
            commands.append((stage(folder / name, world, server, **more), True))
        ends = run_all(commands, write_package(folder / "package"))
        yield {
            name: Outcome(*end, output=folder / name / "out", server=server)
            for (name, (server, _)), end in zip(cases.items(), ends, strict=True)
        }


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "grpo"])
def test_every_rollout_is_drawn_from_the_policy_as_it_is_then(outcomes: dict[str, Outcome], algorithm: str) -> None:
    """In float32 the server, given only names and bytes, returns the policy's own probabilities, after updates too."""
    run = outcomes[algorithm]
    assert run.status == 0, run.message
    assert (run.output / "manifest.json").exists()
    differences = [row["sampling/logp_difference"] for row in run.rows]
    assert len(differences) == 3
    assert all(0.0 <= difference < 1e-5 for difference in differences)
    assert run.server.calls == ["/init_weight_transfer_engine", *[*PUSH, "/v1/completions"] * 3]
    assert [len(request["prompt"]) for request in run.server.requests] == [8, 8, 8]
    assert {(request["temperature"], request["max_tokens"]) for request in run.server.requests} == {(0.7, 6)}
    kl = "objective/kl" if algorithm == "ppo" else "kl"
    if algorithm != "grpo":  # whose KL stands in the loss: logged is the mean of a rollout's two optimizer steps
        assert run.rows[0][kl] == pytest.approx(0.0, abs=1e-5)
    assert abs(run.rows[2][kl]) > 1e-3, "the policy did not move, so the later rollouts say nothing"


@pytest.mark.parametrize("case", ["deaf", "deaf under rloo"])
def test_a_server_with_other_weights_is_refused_before_anything_is_trained(
    outcomes: dict[str, Outcome], world: World, case: str
) -> None:
    run = outcomes[case]
    assert run.status == 1, run.message
    assert "vLLM does not sample from the trained policy" in run.message
    assert f"vllm serve {world.policy}" in run.message
    assert "nothing was trained" in run.message
    assert run.server.calls.count("/v1/completions") == 1
    assert not (run.output / "manifest.json").exists()
    assert not list(run.output.glob("checkpoints/*/COMPLETE"))


def test_a_push_that_gets_lost_later_stops_the_run(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["deaf later"]
    assert run.status == 1, run.message
    assert "vLLM does not sample from the trained policy" in run.message
    assert "the checkpoints before step 2 are kept" in run.message
    assert run.server.calls.count("/v1/completions") == 2


def test_completions_that_a_server_cuts_off_are_refused(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["cut"]
    assert run.status == 1, run.message
    assert "a completion of 2 tokens came back" in run.message
    assert "to 6 tokens was asked for" in run.message


# --- refused before a model is loaded


def test_what_no_server_and_no_gpu_lead_to(world: World, tmp_path: Path) -> None:
    if HAS_VLLM or HAS_GPU:
        pytest.skip("this machine has one of them")
    short = {**READY, "model_config": {**READY["model_config"], "max_model_len": 16}}
    raw = {**READY, "model_config": {**READY["model_config"], "logprobs_mode": "raw_logprobs"}}
    closed = f"http://127.0.0.1:{free_port()}"
    servers = {
        "server_info": (None, "accepts no weights, because it was started without VLLM_SERVER_DEV_MODE=1"),
        "transfer": ({**READY, "weight_transfer_config": None}, "was started without --weight-transfer-config"),
        "raw": (raw, "returns raw_logprobs, but completions are not sampled from these"),
        "short": (short, "supports 16 tokens, but training.max_length_tokens is 32"),
        "stranger": ({}, "is not a vLLM server that TRL supports"),
    }
    command = f"VLLM_SERVER_DEV_MODE=1 vllm serve {world.policy} --port"
    cases: list[tuple[list[Any], int, tuple[str, ...]]] = []
    with ExitStack() as stack:
        for name, (info, message) in servers.items():
            server = stack.enter_context(serving(StandIn(world.policy, info=info)))
            cases.append((stage(tmp_path / name, world, server), 2, (server.url, message, command)))
        good = stack.enter_context(serving(StandIn(world.policy)))
        cases += [
            (stage(tmp_path / "good", world, good), 1, ("weights are sent by NCCL, and this machine has no GPU",)),
            (
                stage(tmp_path / "nobody", world, None, vllm={"base_url": closed}),
                2,
                (f"vllm.base_url: no vLLM server answers at {closed}", command, "--max-model-len 32"),
            ),
            (
                stage(tmp_path / "colocate", world, None, vllm={"mode": "colocate"}),
                1,
                ("vllm.mode: colocate runs vLLM on the GPU that trains, and this machine has no GPU",),
            ),
        ]
        ends = run_all([(words, False) for words, _, _ in cases], write_package(tmp_path / "package"))
    for (words, wanted, message), (status, stderr) in zip(cases, ends, strict=True):
        assert status == wanted, stderr
        assert "Traceback" not in stderr
        for part in message:
            assert part in stderr, (words, part, stderr)
    assert not list(tmp_path.glob("*/out/manifest.json"))


def test_without_the_package_the_command_that_installs_it_is_reported(world: World, tmp_path: Path) -> None:
    if HAS_VLLM:
        pytest.skip("vLLM is installed here")
    status, message = run_here(*stage(tmp_path, world, None, vllm={"mode": "colocate"}))
    assert status == 2
    assert "vllm: the package is not installed: pip install 'trl[vllm]'" in message


def test_4_bit_base_weights_are_refused(world: World, tmp_path: Path) -> None:
    status, message = run_here(*stage(tmp_path, world, None, adapter={"method": "qlora", "r": 4}))
    assert status == 2
    assert "vllm: not with 4-bit base weights" in message
    assert "Set adapter.quantize: none" in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "server", "gpu_memory_utilization": 0.5}, "gpu_memory_utilization: only mode colocate reads this"),
        ({"mode": "colocate", "base_url": "http://10.0.0.1:8000"}, "base_url: only mode server reads this"),
        ({"mode": "colocate", "group_port": 5000}, "group_port: only mode server reads this"),
        ({"mode": "serve"}, "Input should be 'server' or 'colocate'"),
        ({"base_url": "10.0.0.1:8000"}, "base_url"),
        ({"gpu_memory": 0.5}, "Extra inputs are not permitted"),
    ],
)
def test_keys_that_say_nothing_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VLLMConfig(**values)


# --- what is pushed, and what is read off


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pushed_weights_are_those_of_the_merged_model(dtype: torch.dtype) -> None:
    """Names and values as PEFT's own merge gives them; the weights that train keep every bit."""
    lm = with_adapter(build_toy_policy(dtype=dtype))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    Adapter(lm, POLICY).copy(REFERENCE)
    before = {name: parameter.clone() for name, parameter in lm.named_parameters()}
    pushed = {name: weight.clone() for name, weight in MergedPolicy(lm, "somewhere").named_parameters()}
    assert all(torch.equal(parameter, before[name]) for name, parameter in lm.named_parameters())
    merged = dict(lm.merge_and_unload(adapter_names=[POLICY]).named_parameters())
    assert pushed.keys() == merged.keys()
    for name, weight in merged.items():
        assert pushed[name].dtype == dtype
        torch.testing.assert_close(pushed[name], weight, rtol=0.01 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    moved = [
        name for name, weight in build_toy_policy(dtype=dtype).named_parameters() if not pushed[name].equal(weight)
    ]
    assert len(moved) == 14, "seven linear layers in each of two layers have an adapter"


def test_a_completion_ends_with_its_end_of_sequence_token_or_at_full_length() -> None:
    sampling, eos = SamplingConfig(max_new_tokens=3), 1
    ended = read_completion([4, 1], [[-0.5], [-0.25]], sampling, [eos])
    assert (ended.ids, ended.finished, ended.logps) == ([4, 1], True, [-0.5, -0.25])
    assert not read_completion((4, 4, 5), [[-1.0]] * 3, sampling, [eos]).finished
    assert read_completion([4, 5, 1], [[-1.0]] * 3, sampling, [eos]).finished
    for ids, logps in (
        ([], []),
        ([4, 5], [[-1.0]] * 2),
        ([4, 1, 5], [[-1.0]] * 3),
        ([4, 5, 6, 1], [[-1.0]] * 4),
        ([4, 1], [[-1.0]]),
    ):
        with pytest.raises(HandoffError, match=f"a completion of {len(ids)} tokens"):
            read_completion(ids, logps, sampling, [eos])

"""Rollouts drawn by vLLM, through TRL's VLLMGeneration and its client: a key of the PPO file, for GPUs.

    tiebreak ppo --config configs/quickstart/ppo.yaml --vllm.mode server      # or colocate: in the trainer's own process

Never run on a GPU. The tests take PPO, RLOO and GRPO through TRL's client code against a small HTTP server that speaks
vLLM's protocol; vLLM itself, NCCL and `colocate` stand untried.

Before each rollout the policy's weights, its adapter merged into them, are pushed to vLLM, and training asks its own pass
for the log-probabilities of what was drawn, as it does with our sampler. A sampler that holds other weights would train
the policy on completions that are not its own, and nothing would look wrong. So the log-probabilities that vLLM drew by
are compared with those of our pass in every rollout (`sampling/logp_difference`, a mean over tokens), and above
`logp_tolerance` the run stops.

vLLM draws the rollouts of training alone. Held-out figures and the guard keep our seeded sampler, so they can be compared
from step to step and between runs. `tiebreak sample` and `tiebreak evaluate` have no pass of their own that could tell
whether a server holds the right weights, so they do not use one. TRL's trainers could merge and push by themselves; they
merge an adapter in place and take it off again, which in bfloat16 leaves the base weights a little changed each time.

vLLM's numbers are not seeded a row: a run that was cut off goes on, but not to the bits of an uncut one.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import torch
from torch import nn

from preference.configuration import VLLMConfig
from preference.policy.adapters import POLICY
from preference.policy.backbone import Backbone
from tiebreak.config import OptimizerConfig, SamplingConfig
from tiebreak.errors import ConfigError, HandoffError, MachineError
from tiebreak.packed.generation import Sampled
from tiebreak.terminal import is_main_process

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

LOGP_DIFFERENCE = "sampling/logp_difference"
ANSWER_SECONDS = 20.0


# --- what is refused before anything is loaded


def require_vllm(config: VLLMConfig, base: str, length: int, quantized: bool) -> None:
    """Refuse at once what would fail, or go wrong, after the models are loaded.

    Args:
        base: where the policy's base weights are, as `vllm serve` takes it.
        length: tokens of prompt and completion together.

    Raises:
        ConfigError: saying what is missing, and the command that mends it.
        MachineError: there is no GPU.
    """
    if quantized:
        raise ConfigError(
            "vllm: not with 4-bit base weights: vLLM would hold others than the policy learns on. Set adapter.method: lora "
            "and start from a policy that was trained so, or set vllm: null"
        )
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError("vllm: the package is not installed: pip install 'trl[vllm]', or set vllm: null")
    if config.mode == "server" and is_main_process():
        fault = _server_fault(config, length)
        if fault:
            raise ConfigError(
                f"vllm.base_url: {fault}. Start it, on a GPU that training does not use, with\n  "
                f"{server_command(config, base, length)}"
            )
    if not has_gpu():
        where = "colocate runs vLLM on the GPU that trains" if config.mode == "colocate" else "weights are sent by NCCL"
        raise MachineError(f"vllm.mode: {where}, and this machine has no GPU that torch can use: set vllm: null")


def has_gpu() -> bool:
    """Whether torch can use one."""
    available: bool = torch.cuda.is_available()
    return available


def server_command(config: VLLMConfig, base: str, length: int) -> str:
    """What starts the server, as TRL's client wants it."""
    port = urlsplit(config.base_url).port or (443 if config.base_url.startswith("https") else 80)
    return (
        f"VLLM_SERVER_DEV_MODE=1 vllm serve {shlex.quote(base)} --port {port} --max-model-len {length} "
        """--weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs --max-logprobs -1"""
    )


def _server_fault(config: VLLMConfig, length: int) -> str | None:
    """Why the server cannot be used; None if it can."""
    at = config.base_url
    try:
        _read(f"{at}/health")
    except (OSError, HTTPException) as error:
        return f"no vLLM server answers at {at} ({getattr(error, 'reason', error)})"
    try:
        told = json.loads(_read(f"{at}/server_info?config_format=json"))["vllm_config"]
        transfer, model = told["weight_transfer_config"], told["model_config"]
        logprobs, longest = model["logprobs_mode"], int(model["max_model_len"])
    except HTTPError as error:
        if error.code == 404:
            return f"the server at {at} takes no weights, as it was started without VLLM_SERVER_DEV_MODE=1"
        return f"the server at {at} does not say how it is set up ({error})"
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        return f"what answers at {at} is not a vLLM server that TRL knows ({type(error).__name__}: {error})"
    if transfer is None:
        return f"the server at {at} takes no weights, as it was started without --weight-transfer-config"
    if logprobs != "processed_logprobs":
        return f"the server at {at} gives {logprobs}, which are not those that completions are drawn by"
    if longest < length:
        return f"the server at {at} holds {longest} tokens, and training.max_length_tokens is {length}"
    return None


def _read(url: str) -> bytes:
    with urlopen(url, timeout=ANSWER_SECONDS) as answer:
        body: bytes = answer.read()
    return body


# --- drawing


class MergedPolicy(nn.Module):
    """The policy's weights under the names of its base model, its adapter added: what vLLM is to hold.

    What TRL's VLLMGeneration asks a model for that has no adapter. The sums are made one at a time, and nothing is written
    into the weights that train.
    """

    def __init__(self, lm: PeftModel, name_or_path: str) -> None:
        super().__init__()
        self.lm = lm
        self.name_or_path = name_or_path

    def named_parameters(self, *arguments: Any, **options: Any) -> Iterator[tuple[str, Any]]:
        """Each weight once. A sum is made in float32 and rounded once, to the base weight's format."""
        base = self.lm.get_base_model()
        for name, parameter in base.named_parameters():
            if ".lora_" in name:
                continue
            layer, adapted, _ = name.rpartition(".base_layer.weight")
            weight = parameter.data
            if adapted:
                added = base.get_submodule(layer).get_delta_weight(POLICY)
                weight = (weight.float() + added.float()).to(weight.dtype)
            yield name.replace(".base_layer.", "."), weight


class VLLMSampler:
    """Draws completions from vLLM, to which it gives the policy's weights first."""

    def __init__(
        self,
        config: VLLMConfig,
        lm: PeftModel,
        accelerator: Any,
        tokenizer: PreTrainedTokenizerBase,
        base: str,
        training: OptimizerConfig,
    ) -> None:
        from trl.generation.vllm_generation import VLLMGeneration

        if accelerator.num_processes % config.tensor_parallel_size:
            raise ConfigError(
                f"vllm.tensor_parallel_size ({config.tensor_parallel_size}) must divide the number of processes "
                f"({accelerator.num_processes})"
            )
        self.config = config
        self.what_to_serve = f"vLLM must hold the policy's base model, {base}"
        if config.mode == "server":
            self.what_to_serve += ":\n  " + server_command(config, base, training.max_length_tokens)
        self.accelerator = accelerator
        self._engine = VLLMGeneration(
            MergedPolicy(lm, base),
            accelerator,
            tokenizer,
            mode=config.mode,
            server_base_url=config.base_url,
            group_port=config.group_port,
            tensor_parallel_size=config.tensor_parallel_size,
            gpu_memory_utilization=config.gpu_memory_utilization,
            max_model_length=training.max_length_tokens,
            trust_remote_code=training.trust_remote_code,
        )

    @torch.no_grad()
    def __call__(
        self,
        backbone: Backbone,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        sampling: SamplingConfig,
        *,
        stop_ids: Collection[int],
    ) -> list[Sampled]:
        """A completion for each prompt. All processes must call it, with equally many prompts; `seeds` play no part: one
        seed for a request would give prompts that stand in it twice one and the same completion.

        Raises:
            MachineError: the server has gone.
            HandoffError: what came back is no completion under `sampling`.
        """
        engine = self._engine
        engine.temperature, engine.top_p, engine.top_k = sampling.temperature, sampling.top_p, sampling.top_k
        engine.max_completion_length = sampling.max_new_tokens
        engine.generation_kwargs = {"ignore_eos": True, "stop_token_ids": list(stop_ids)}  # those of our sampler
        try:
            with torch.autocast(backbone.device.type, enabled=False):  # it would round what the adapter adds
                engine.sync_weights()
            # TRL does so only for a PEFT model: with several GPUs a copy, vLLM must not start among our collectives
            self.accelerator.wait_for_everyone()
            _, completions, logps, _ = engine.generate(list(prompts), images=None, num_generations=1)
        except OSError as error:
            if self.config.mode == "colocate":
                raise
            raise MachineError(
                f"vllm: the server at {self.config.base_url} is gone ({error}): start it again, and the same command goes "
                "on from the last checkpoint"
            ) from error
        return [
            read_completion(ids, values, sampling, stop_ids)
            for ids, values in zip(completions, logps or [[]] * len(completions), strict=True)
        ]


def read_completion(
    ids: Iterable[int], logps: Sequence[Sequence[float | None]], sampling: SamplingConfig, stop_ids: Collection[int]
) -> Sampled:
    """A completion as TRL hands it on: ids with the end-of-sequence token, and for each token a list with its
    log-probability first, None where it is not a number.

    Raises:
        HandoffError: it neither ends nor is as long as it may be, goes on after its end, or lacks log-probabilities.
    """
    ids = [int(token) for token in ids]
    finished = bool(ids) and ids[-1] in stop_ids
    whole = finished or len(ids) == sampling.max_new_tokens
    ended_before = any(token in stop_ids for token in ids[:-1])
    if not whole or len(ids) > sampling.max_new_tokens or ended_before or len(logps) != len(ids):
        raise HandoffError(
            f"vllm: a completion of {len(ids)} tokens with {len(logps)} log-probabilities came back, where one that goes "
            f"on to the end-of-sequence token or to {sampling.max_new_tokens} tokens was asked for: its --max-model-len or "
            "its version is not what this one needs"
        )
    return Sampled(ids, finished, [float("nan") if one[0] is None else float(one[0]) for one in logps])

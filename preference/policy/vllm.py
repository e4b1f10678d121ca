"""Rollouts sampled by vLLM, through TRL's VLLMGeneration and its client: a key of the PPO file, for GPUs.

    tiebreak ppo --config configs/quickstart/ppo.yaml --vllm.mode server      # or colocate: in the trainer's own process

Never run on a GPU. The tests run PPO, RLOO and GRPO through TRL's client code against a small HTTP server with vLLM's
protocol; vLLM itself, NCCL and `colocate` are untested.

Before each rollout, the policy's weights, with its adapter merged, are pushed to vLLM, and training computes the
log-probabilities of the completions in its own pass, as it does with our sampler. A sampler with other weights would
silently train the policy on completions that are not its own. So vLLM's log-probabilities are compared with those of our
pass in every rollout (`sampling/logp_difference`, a mean over tokens), and above `logp_tolerance` the run stops.

vLLM samples only the rollouts of training. Held-out figures and the guard keep our seeded sampler, so they are comparable
between steps and runs. *sample* and *evaluate* ask a server that serves an exported policy (tiebreak.serving.completions).
TRL's trainers could merge and push themselves, but they merge an adapter in place and
unmerge it, which in bfloat16 changes the base weights slightly each time.

vLLM has no seed per row: an interrupted run resumes, but not to the same bits as an uninterrupted one.
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
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.packed.generation import SampledCompletion
from tiebreak.serving.completions import NEVER, require_whole
from tiebreak.terminal import is_main_process

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

LOGP_DIFFERENCE = "sampling/logp_difference"
ANSWER_SECONDS = 20.0


# --- checks before anything is loaded


def require_vllm(config: VLLMConfig, base: str, length: int, quantized: bool) -> None:
    """Refuse at once what would fail, or go wrong, after the models are loaded.

    Args:
        base: the policy's base weights, as an argument of `vllm serve`.
        length: tokens of prompt and completion together.

    Raises:
        ConfigError: names what is missing, and the command that fixes it.
        MachineError: there is no GPU.
    """
    if quantized:
        raise ConfigError(
            "vllm: not with 4-bit base weights: vLLM would hold other weights than the policy's. Set adapter.quantize: "
            "none and start from a policy trained with it, or set vllm: null"
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
    """The command that starts the server for TRL's client."""
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
        settings = json.loads(_read(f"{at}/server_info?config_format=json"))["vllm_config"]
        transfer, model = settings["weight_transfer_config"], settings["model_config"]
        logprobs, longest = model["logprobs_mode"], int(model["max_model_len"])
    except HTTPError as error:
        if error.code == 404:
            return f"the server at {at} accepts no weights, because it was started without VLLM_SERVER_DEV_MODE=1"
        return f"the server at {at} does not say how it is set up ({error})"
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        return f"{at} is not a vLLM server that TRL supports ({type(error).__name__}: {error})"
    if transfer is None:
        return f"the server at {at} accepts no weights, because it was started without --weight-transfer-config"
    if logprobs != "processed_logprobs":
        return f"the server at {at} returns {logprobs}, but completions are not sampled from these"
    if longest < length:
        return f"the server at {at} supports {longest} tokens, but training.max_length_tokens is {length}"
    return None


def _read(url: str) -> bytes:
    with urlopen(url, timeout=ANSWER_SECONDS) as answer:
        body: bytes = answer.read()
    return body


# --- sampling


class MergedPolicy(nn.Module):
    """The policy's weights under its base model's names, with the adapter added: the weights for vLLM.

    TRL's VLLMGeneration expects a model without adapters. The sums are made one at a time, and the trained weights are not
    modified.
    """

    def __init__(self, lm: PeftModel, name_or_path: str) -> None:
        super().__init__()
        self.lm = lm
        self.name_or_path = name_or_path

    def named_parameters(self, *arguments: Any, **options: Any) -> Iterator[tuple[str, Any]]:
        """Each weight once. A sum is computed in float32 and rounded once, to the base weight's dtype."""
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
    """Samples completions from vLLM, after pushing the policy's weights."""

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
        if not Adapter(lm, POLICY).adds:
            raise ConfigError(
                "vllm: the policy's adapter does more than add to the weights (DoRA scales them, for one), and that "
                "cannot be sent; set vllm: null"
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
    ) -> list[SampledCompletion]:
        """A completion for each prompt. All processes must call it, with equally many prompts; `seeds` are not used: one
        seed per request would give repeated prompts the same completion.

        Raises:
            MachineError: the server has gone.
            HandoffError: a result is not a completion under `sampling`.
        """
        engine = self._engine
        engine.temperature, engine.top_p, engine.top_k = sampling.temperature, sampling.top_p, sampling.top_k
        engine.max_completion_length = sampling.max_new_tokens
        engine.generation_kwargs = {"ignore_eos": True, "stop_token_ids": list(stop_ids)}  # as in our sampler
        if backbone.textless_ids:
            engine.generation_kwargs["logit_bias"] = dict.fromkeys(backbone.textless_ids, NEVER)
        try:
            with torch.autocast(backbone.device.type, enabled=False):  # it would round the adapter's additions
                engine.sync_weights()
            # TRL does so only for PEFT models: with several GPUs, vLLM must not start among our collectives
            self.accelerator.wait_for_everyone()
            _, completions, logps, _ = engine.generate(list(prompts), images=None, num_generations=1)
        except OSError as error:
            if self.config.mode == "colocate":
                raise
            raise MachineError(
                f"vllm: the server at {self.config.base_url} is gone ({error}): start it again, and the same command "
                "resumes from the last checkpoint"
            ) from error
        return [
            read_completion(ids, values, sampling, stop_ids)
            for ids, values in zip(completions, logps or [[]] * len(completions), strict=True)
        ]


def read_completion(
    ids: Iterable[int], logps: Sequence[Sequence[float | None]], sampling: SamplingConfig, stop_ids: Collection[int]
) -> SampledCompletion:
    """A completion in TRL's form: ids with the end-of-sequence token, and for each token a list with its
    log-probability first, None if it is not a number.

    Raises:
        HandoffError: it is unfinished but too short, continues after its end, or lacks log-probabilities.
    """
    ids = [int(token) for token in ids]
    require_whole(ids, sampling, stop_ids)
    if len(logps) != len(ids):
        raise HandoffError(f"vllm: {len(logps)} log-probabilities came back for a completion of {len(ids)} tokens")
    return SampledCompletion(
        ids, ids[-1] in stop_ids, [float("nan") if one[0] is None else float(one[0]) for one in logps]
    )

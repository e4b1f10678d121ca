"""Completions that a vLLM server draws from a policy: the key `vllm` of *sample* and *evaluate*, for GPUs.

    tiebreak export runs/dpo --to vllm --output served/dpo
    vllm serve served/dpo --port 8000
    tiebreak sample --policy runs/dpo --vllm http://127.0.0.1:8000 …

Each completion is a request with its own seed, so it does not depend on the others, and an interrupted run resumes to the
same completions, except for the server's rounding. With the same seed, vLLM and our sampler draw different tokens.

A server does not report its weights. So before its completions are used, its log-probabilities of the first ones
(`prompt_logprobs`) are compared with those of the policy as Tiebreak loads it.

Never run on vLLM itself: the tests use an HTTP server with its protocol, whose completions come from a real model.
"""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from torch import nn

from tiebreak.config import SamplingConfig
from tiebreak.errors import ConfigError, HandoffError, MachineError
from tiebreak.packed.generation import SampledCompletion
from tiebreak.packed.logprobs import completion_logps_in_batches

AT_ONCE = 64
"""requests in flight; vLLM batches them itself"""
ANSWER_SECONDS = 600.0
COMPARED = 8
"""completions whose log-probabilities are compared"""
TOLERANCE = 0.05
"""nats a token on average, by which the server's log-probabilities may differ; that of PPO's `vllm.logp_tolerance`"""
NEVER = -100.0
"""vLLM's smallest bias of a logit: e^-100 of the probability"""

Example = tuple[Sequence[int], Sequence[int]]
"""token ids of a prompt and of its completion"""


class Server:
    """A vLLM server that holds one policy.

    Raises:
        ConfigError: there is no vLLM server at the URL.
    """

    def __init__(self, url: str, policy: str) -> None:
        self.url, self.policy = url.rstrip("/"), policy
        try:
            [first, *_] = json.loads(self._send("/v1/models"))["data"]
            self.model, self.longest = str(first["id"]), first.get("max_model_len")
        except MachineError as error:
            raise ConfigError(str(error)) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"vllm: {self.url} is not a vLLM server ({type(error).__name__}: {error})") from None

    def require_room(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        """Refuse a server whose context is too short.

        Raises:
            ConfigError: it is.
        """
        wanted = max(map(len, prompts), default=0) + new_tokens
        if isinstance(self.longest, int) and self.longest < wanted:
            raise ConfigError(
                f"vllm: the server at {self.url} supports {self.longest} tokens, but the longest prompt and "
                f"max_new_tokens are {wanted} together: start it with --max-model-len {wanted}"
            )

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: SamplingConfig,
        *,
        stop_ids: Collection[int],
        textless_ids: Collection[int] = (),
        on_done: Callable[[int], object] = lambda rows: None,
    ) -> list[SampledCompletion]:
        """One completion for each prompt, in the prompts' order, without log-probabilities; see
        `tiebreak.packed.generation.sample_completions`.

        Raises:
            MachineError: the server does not answer.
            HandoffError: what it sends is not a completion under `sampling`.
        """
        settings = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": sorted(stop_ids),
            "ignore_eos": True,  # the policy's stop tokens are all named
            "return_token_ids": True,
            **({"logit_bias": {str(token): NEVER for token in sorted(textless_ids)}} if textless_ids else {}),
        }

        def draw(row: int) -> SampledCompletion:
            choice = self._ask({**settings, "prompt": list(prompts[row]), "seed": seeds[row]})
            ids = [int(token) for token in choice["token_ids"]]
            require_whole(ids, sampling, stop_ids)
            return SampledCompletion(ids, ids[-1] in stop_ids, [])

        found = []
        for one in self._each(draw, len(prompts)):
            found.append(one)
            on_done(1)
        return found

    def logps(self, examples: Sequence[Example]) -> list[list[float]]:
        """The log-probability of each token of the completions, at temperature 1."""

        def read(row: int) -> list[float]:
            prompt, completion = examples[row]
            ids = [*prompt, *completion]
            choice = self._ask({"prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 1})
            places = list(zip(ids, choice["prompt_logprobs"], strict=True))[len(prompt) :]
            return [float(likeliest[str(token)]["logprob"]) for token, likeliest in places]

        return list(self._each(read, len(examples)))

    def require_policy(self, model: nn.Module, examples: Sequence[Example], pad_id: int, batch_size: int) -> float:
        """Refuse a server that holds other weights.

        Args:
            model: the policy as Tiebreak loads it.
            examples: any completions; the server need not have drawn them.

        Returns:
            The mean difference of a token's log-probability, in nats.

        Raises:
            HandoffError: the log-probabilities differ.
        """
        chosen = [one for one in examples if one[1]][:COMPARED]
        ours = completion_logps_in_batches(model, chosen, pad_id, batch_size)
        theirs = self.logps(chosen)
        pairs = [(a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)]
        difference = statistics.fmean(abs(a - b) for a, b in pairs)
        if not difference <= TOLERANCE:
            raise HandoffError(
                f"vllm: the server at {self.url} ({self.model}) does not hold {self.policy}: its log-probabilities differ "
                f"by {difference:.2g} nats a token, where rounding makes less than {TOLERANCE:g}. {self.start()}"
            )
        return difference

    def start(self) -> str:
        """How to start the server, in a sentence."""
        command = f"tiebreak export {shlex.quote(self.policy)} --to vllm --output FOLDER"
        return f"Serve what '{command}' writes: vllm serve FOLDER"

    # --- requests

    def _each(self, ask: Callable[[int], Any], count: int) -> Iterator[Any]:
        """The results in order, with many requests in flight."""
        with ThreadPoolExecutor(min(AT_ONCE, max(count, 1))) as pool:
            try:
                yield from pool.map(ask, range(count))
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise HandoffError(
                    f"vllm: {self.url} does not answer as vLLM does ({type(error).__name__}: {error}): its version is too "
                    "old, or it is another server"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        reply = json.loads(self._send("/v1/completions", {"model": self.model, "n": 1, **body}))
        choice: dict[str, Any] = reply["choices"][0]
        return choice

    def _send(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=ANSWER_SECONDS) as answer:
                found: bytes = answer.read()
                return found
        except HTTPError as error:
            said = error.read(300).decode("utf-8", "replace").strip()
            raise MachineError(f"vllm: the server at {self.url} refuses a request: {error.code} {said}") from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise MachineError(
                f"vllm: no vLLM server answers at {self.url} ({reason}). {self.start()}. The same command resumes"
            ) from None


def require_whole(ids: Sequence[int], sampling: SamplingConfig, stop_ids: Collection[int]) -> None:
    """Refuse a completion that is cut off too early, or that continues after its end.

    Raises:
        HandoffError: it does.
    """
    finished = bool(ids) and ids[-1] in stop_ids
    whole = finished or len(ids) == sampling.max_new_tokens
    if not whole or len(ids) > sampling.max_new_tokens or any(token in stop_ids for token in ids[:-1]):
        raise HandoffError(
            f"vllm: a completion of {len(ids)} tokens came back, where one up to the end-of-sequence token or to "
            f"{sampling.max_new_tokens} tokens was asked for: its --max-model-len or its version is not what this one needs"
        )


def checked(
    server: Server, model: Callable[[], nn.Module], pad_id: int, batch_size: int
) -> Callable[..., list[SampledCompletion]]:
    """`Server.complete`, which checks the server's weights with the first completions."""
    is_checked = False

    def complete(prompts: Sequence[Sequence[int]], *arguments: Any, **options: Any) -> list[SampledCompletion]:
        nonlocal is_checked
        server.require_room(prompts, arguments[1].max_new_tokens)
        drawn = server.complete(prompts, *arguments, **options)
        if not is_checked:
            examples = [(prompt, one.ids) for prompt, one in zip(prompts, drawn, strict=True)]
            server.require_policy(model(), examples, pad_id, batch_size)
            is_checked = True
        return drawn

    return complete

"""*sample* and *evaluate* with a vLLM server's completions. In vLLM's place is an HTTP server with its protocol, which
draws with our sampler from the seed of each request: what comes back must be what is drawn without a server."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import read_rows, run_here, write_config, write_rows
from transformers import AutoModelForCausalLM
from vllm_stand_in import free_port, serving

from evaluation.configuration import EvaluateConfig
from preference.configuration import SampleConfig
from tiebreak.config import SamplingConfig
from tiebreak.errors import HandoffError
from tiebreak.packed.generation import sample_completions
from tiebreak.serving.completions import Server, require_whole

SAMPLING = {"temperature": 0.9, "max_new_tokens": 6}
LONGEST = 4096


class Served:
    """vLLM with one model, as far as its answers go."""

    def __init__(self, model: Path, *, longest: int = LONGEST, cut: int | None = None) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model).eval()
        self.longest, self.cut = longest, cut
        self.requests: list[dict[str, Any]] = []
        self.url = ""
        self._alone = threading.Lock()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "served", "max_model_len": self.longest}]}
        assert (path, body["model"], body["n"]) == ("/v1/completions", "served", 1)
        with self._alone, torch.no_grad():
            self.requests.append(body)
            return 200, {"choices": [self.score(body) if "prompt_logprobs" in body else self.draw(body)]}

    def draw(self, body: dict[str, Any]) -> dict[str, Any]:
        assert (body["ignore_eos"], body["return_token_ids"], body["top_p"], body["top_k"]) == (True, True, 1.0, 0)
        [one] = sample_completions(
            self.model,
            [body["prompt"]],
            [body["seed"]],
            SamplingConfig(temperature=body["temperature"], max_new_tokens=self.cut or body["max_tokens"]),
            stop_ids=body["stop_token_ids"],
            textless_ids=[int(token) for token in body.get("logit_bias", {})],
            pad_id=body["stop_token_ids"][0],
            batch_size=1,
        )
        return {"token_ids": one.ids}

    def score(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = body["prompt"]
        logps = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        found = [{str(token): {"logprob": float(logps[at, token])}} for at, token in enumerate(ids[1:])]
        return {"token_ids": [0], "prompt_logprobs": [None, *found]}

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[Served]:
    with serving(Served(tiny_model)) as server:  # type: ignore[arg-type, type-var]
        yield server  # type: ignore[misc]


def prompts(folder: Path) -> Path:
    asked = [f"Why is {crop} pale?{' Say more.' * (n % 3)}" for n, crop in enumerate(("basil", "mint", "dill", "kale"))]
    return write_rows(folder / "prompts.jsonl", [{"prompt": text} for text in asked])


def words(stage: str, folder: Path, policy: Path, output: str, **keys: Any) -> list[Any]:
    model: dict[str, Any] = (
        {"policy": str(policy), "sampling": [SAMPLING], "splits": ["train", "validation"]}
        if stage == "sample"
        else {"policies": {"sft": str(policy)}, "baseline": "sft", "sampling": SAMPLING}
    )
    values = {**model, "prompts": str(prompts(folder)), "tracking": {"mode": "disabled"}, **keys}
    return [stage, "--config", write_config(folder / f"{output}.yaml", output=folder / output, **values)]


def test_samples_are_those_of_our_sampler_with_the_same_seeds(served: Served, tiny_model: Path, tmp_path: Path) -> None:
    for output, keys in (("ours", {}), ("theirs", {"vllm": served.url})):
        status, message = run_here(*words("sample", tmp_path, tiny_model, output, **keys))
        assert status == 0, message
    ours, theirs = (
        [[one["ids"] for one in pair["completions"]] for pair in read_rows(tmp_path / output / "final" / "pairs.jsonl")]
        for output in ("ours", "theirs")
    )
    assert len(ours) == 4
    assert theirs == ours
    drawn = [body for body in served.requests if "seed" in body]
    assert len({body["seed"] for body in drawn}) == len(drawn) == 8


def test_evaluations_measure_kl_by_our_own_pass(served: Served, tiny_model: Path, tmp_path: Path) -> None:
    """The KL of a policy that differs from the baseline: a server's completions have no log-probabilities of their own."""
    other = Served(Path(shutil.copytree(tiny_model, tmp_path / "other")))
    shift(other)
    other.model.save_pretrained(tmp_path / "other")
    policies = {"sft": str(tiny_model), "dpo": str(tmp_path / "other")}
    with serving(other):  # type: ignore[arg-type, type-var]
        for output, keys in (("ours", {}), ("theirs", {"vllm": {"sft": served.url, "dpo": other.url}})):
            status, message = run_here(*words("evaluate", tmp_path, tiny_model, output, policies=policies, **keys))
            assert status == 0, message
    ours, theirs = (read_rows(tmp_path / output / "final" / "completions.jsonl") for output in ("ours", "theirs"))
    assert [row["text"] for row in theirs] == [row["text"] for row in ours]
    kl = [row["kl"] for row in ours]
    assert kl[:4] == [0.0] * 4  # of the baseline
    assert min(map(abs, kl[4:])) > 0.01
    assert [row["kl"] for row in theirs] == pytest.approx(kl, rel=1e-3, abs=1e-3)


def shift(server: Served) -> None:
    """Give it other weights."""
    with torch.no_grad():
        for weight in server.model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))


def test_a_server_that_holds_another_policy_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    other = Served(tiny_model)
    shift(other)
    with serving(other):  # type: ignore[arg-type, type-var]
        status, message = run_here(*words("sample", tmp_path, tiny_model, "run", vllm=other.url))
    assert status == 1
    assert f"does not hold {tiny_model}" in message
    assert "tiebreak export" in message


def test_servers_that_cannot_be_used_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    status, message = run_here(*words("sample", tmp_path, tiny_model, "absent", vllm=nobody))
    assert status == 2
    assert f"no vLLM server answers at {nobody}" in message
    for server, expected in (
        (Served(tiny_model, longest=10), "start it with --max-model-len"),
        (Served(tiny_model, cut=2), "a completion of 2 tokens came back"),
    ):
        with serving(server):  # type: ignore[arg-type, type-var]
            _, message = run_here(*words("sample", tmp_path, tiny_model, f"run-{server.longest}", vllm=server.url))
        assert expected in message


def test_an_answer_without_its_parts_is_another_servers(served: Served) -> None:
    server = Server(served.url, "mine")
    with pytest.raises(HandoffError, match="does not answer as vLLM does"):
        list(server._each(lambda _: {}["token_ids"], 1))
    with pytest.raises(HandoffError, match="a completion of 1 tokens"):
        require_whole([5], SamplingConfig(max_new_tokens=2), [1])


def test_every_policy_or_none_has_a_server() -> None:
    keys: dict[str, Any] = {"output": "o", "policies": {"sft": "a", "dpo": "b"}, "prompts": "p"}
    assert "vllm" not in EvaluateConfig(**keys).model_dump()
    for vllm, expected in (
        ({"sft": "http://a:1"}, r"a server for every policy and no other name \(dpo\)"),
        ({"sft": "http://a:1", "dpo": "a:2"}, "vllm.dpo: http://HOST:PORT"),
    ):
        with pytest.raises(ValueError, match=expected):
            EvaluateConfig(**keys, vllm=vllm)
    with pytest.raises(ValueError, match="vllm"):
        SampleConfig(output="o", policy="a", prompts="p", vllm="http://a:1/v1")

"""`tiebreak serve`: an OpenAI-like request is answered as transformers generates, on this machine alone."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from support import REPOSITORY, run_here
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiebreak.errors import ConfigError, HandoffError
from tiebreak.serving import serve
from tiebreak.serving.configuration import ServeArguments

ASK = [{"role": "user", "content": "Why are my basil leaves pale?"}]
START_SECONDS = 240


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def merged(finished_recipe: Path) -> Path:
    return finished_recipe / "runs" / "sft" / "final" / "merged"


@pytest.fixture(scope="module")
def server(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of the merged policy, started by the command."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "tiebreak.command.cli", "serve", str(merged), "--port", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stdout=file, stderr=file
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, process, log)
        yield address
        process.send_signal(signal.SIGINT)  # the process became the server
        process.wait(60)
    finally:
        process.kill()


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            httpx.get(f"{address}/health", timeout=2)
        except httpx.TransportError:
            time.sleep(0.3)
        else:
            return
    raise AssertionError(log.read_text()[-3000:])


@torch.no_grad()
def greedy(folder: Path) -> str:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    return str(tokenizer.decode(written, skip_special_tokens=True))


def test_a_completion_is_greedy_generation_whole_and_streamed(server: str, merged: Path) -> None:
    body = {"model": str(merged.resolve()), "messages": ASK, "temperature": 0, "max_tokens": 8}
    reply = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=600).json()
    assert reply["choices"][0]["message"]["content"] == greedy(merged)
    assert reply["usage"]["completion_tokens"] <= 8
    streamed = httpx.post(f"{server}/v1/chat/completions", json=body | {"stream": True}, timeout=600).text
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.splitlines() if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    assert text == greedy(merged)
    assert httpx.post(f"{server}/v1/chat/completions", json=body | {"model": "other"}, timeout=600).status_code == 400


def test_a_taken_port_or_a_foreign_address_is_refused_before_loading(merged: Path) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, stderr = run_here("serve", merged, "--port", port)
    assert (status, stderr) == (1, f"error: port {port} is taken: give another --port\n")
    assert "cannot listen on 192.0.2.1" in run_here("serve", merged, "--host", "192.0.2.1")[1]


def test_engines_say_what_they_need(merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, left_out = importlib.util.find_spec, ("openai", "fastapi", "uvicorn", "vllm")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in left_out else found(name, *rest)
    )
    assert "serve needs openai and fastapi and uvicorn: pip install" in run_here("serve", merged)[1]
    assert "vLLM is not installed" in run_here("serve", merged, "--engine", "vllm")[1]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name == "vllm" or found(name, *rest))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--engine vllm needs a GPU" in run_here("serve", merged, "--engine", "vllm")[1]


def test_others_are_let_in_by_a_flag_alone(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(serve.os, "execvp", lambda program, words: started.append(words))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))  # /v1/models reads it
    port = str(free_port())
    status, stderr = run_here("serve", merged, "--host", "0.0.0.0", "--port", port)
    assert status == 0
    assert "warning: anyone who reaches 0.0.0.0 can use it" in stderr
    assert (tmp_path / "hub").is_dir()
    assert started[0][-4:] == ["--host", "0.0.0.0", "--port", port]
    assert "warning" not in run_here("serve", merged, "--port", port)[1]
    assert started[1][-4:-2] == ["--host", "127.0.0.1"]


def test_a_run_is_exported_once(finished_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "dpo"
    (run / "final").mkdir(parents=True)
    (run / "manifest.json").write_bytes((finished_recipe / "runs/dpo/manifest.json").read_bytes())
    made = []

    def export(name: str, arguments: Any) -> None:
        made.append(name)
        folder = run / "exports" / "safetensors"
        folder.mkdir(parents=True)
        record = {
            "id": json.loads((run / "manifest.json").read_text())["id"],
            "to": arguments.to,
            "adapter_only": False,
        }
        (folder / "export.json").write_text(json.dumps(record))

    monkeypatch.setattr(serve, "export", export)
    for name in (run, run / "final"):
        assert serve.served_folder(str(name), ServeArguments()) == (run / "exports" / "safetensors").resolve()
    assert made == [str(run)]


def test_folders_that_would_be_served_otherwise_are_refused(
    finished_recipe: Path, merged: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished_recipe / "runs/dpo/final", tmp_path / "adapter")
    with pytest.raises(HandoffError, match="is an adapter: write whole weights first"):
        serve.served_folder(str(tmp_path / "adapter"), ServeArguments())
    shutil.copytree(merged, tmp_path / "a@b")
    with pytest.raises(ConfigError, match="takes what follows an @ for a revision"):
        serve.served_folder(str(tmp_path / "a@b"), ServeArguments())

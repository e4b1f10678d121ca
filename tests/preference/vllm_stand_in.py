"""Stands in for vLLM where there is none: a server that speaks to TRL's client, and the names that the client imports.

The server's completions come from a real model, which starts with weights of its own and then holds what it was sent.
Weights go over a socket instead of NCCL, in the order in which they were announced.
"""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tiebreak.config import SamplingConfig
from tiebreak.packed.generation import row_seed, sample_completions

PACKAGE = {
    "__init__.py": """
__version__ = "0.30.0"
class LLM: pass
class RequestOutput: pass
class SamplingParams: pass
""",
    "sampling_params.py": "class StructuredOutputsParams: pass",
    "utils/__init__.py": "",
    "utils/network_utils.py": "def get_ip(): return '127.0.0.1'",
    "distributed/__init__.py": "",
    "distributed/weight_transfer/__init__.py": "",
    "distributed/weight_transfer/nccl_common.py": """
import socket, types
def trainer_init(init_info):
    assert init_info["rank_offset"] == 1 and init_info["world_size"] == 2 and init_info["packed"]
    with socket.create_server((init_info["master_address"], init_info["master_port"])) as listener:
        connection, _ = listener.accept()
    return types.SimpleNamespace(connection=connection, group=types.SimpleNamespace())
""",
    "distributed/weight_transfer/packed_tensor.py": """
import torch
def packed_nccl_broadcast_producer(iterator, group, src, post_iter_func):
    for item in iterator:
        group.connection.sendall(post_iter_func(item).contiguous().view(torch.uint8).numpy().tobytes())
""",
}
"""What TRL 1.16 imports of vLLM, with no more behind the names than its client in server mode calls."""

PUSH = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache"]
READY = {
    "weight_transfer_config": {"backend": "nccl"},
    "model_config": {"logprobs_mode": "processed_logprobs", "max_model_len": 4096},
}


def write_package(folder: Path) -> Path:
    """A folder for PYTHONPATH in which `import vllm` finds the names that TRL's client wants."""
    for name, text in PACKAGE.items():
        file = folder / "vllm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class StandIn:
    """A server's state. `hears`: the pushes whose weights it takes; `info` None: no development endpoints."""

    def __init__(
        self,
        base: Path,
        *,
        hears: Callable[[int], bool] = lambda push: True,
        cut: int | None = None,
        info: dict[str, Any] | None = READY,
    ) -> None:
        torch.manual_seed(99)  # weights of its own
        self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)).eval()
        self.hears, self.cut, self.info = hears, cut, info
        self.calls: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.group_port = free_port()
        self.url = ""
        self._connection: Any = None

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path not in ("/health", "/v1/models", "/get_world_size") and not path.startswith("/server_info"):
            self.calls.append(path)
        if path.startswith("/server_info"):
            return (404, {}) if self.info is None else (200, {"vllm_config": self.info})
        if path == "/init_weight_transfer_engine":
            self._join(body["init_info"])
        if path == "/update_weights":
            self._receive(body["update_info"])
        if path == "/v1/completions":
            return 200, {"choices": self._draw(body)}
        replies = {
            "/v1/models": {"data": [{"id": "served"}]},
            "/get_world_size": {"world_size": 1},
            "/reset_prefix_cache": {"success": True},
        }
        return 200, replies.get(path, {})

    def _join(self, info: dict[str, Any]) -> None:
        for _ in range(2_000):
            try:
                self._connection = socket.create_connection((info["master_address"], info["master_port"]))
                return
            except ConnectionRefusedError:
                time.sleep(0.05)
        raise TimeoutError("the trainer did not come")

    @torch.no_grad()
    def _receive(self, info: dict[str, Any]) -> None:
        own = dict(self.model.named_parameters())
        assert sorted(info["names"]) == sorted(own)
        heard = self.hears(self.calls.count("/update_weights"))
        for name, dtype_name, shape in zip(info["names"], info["dtype_names"], info["shapes"], strict=True):
            dtype = getattr(torch, dtype_name)
            data = self._read(math.prod(shape) * dtype.itemsize)
            if heard:
                own[name].copy_(torch.frombuffer(data, dtype=dtype).view(shape))

    def _read(self, count: int) -> bytearray:
        """So many bytes of what the trainer sends."""
        data = bytearray()
        while len(data) < count:
            part = self._connection.recv(count - len(data))
            if not part:
                raise ConnectionError("the trainer went away")
            data += part
        return data

    def _draw(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        assert request["n"] == 1
        assert (request["top_p"], request["top_k"], request["min_p"], request["repetition_penalty"]) == (
            1.0,
            0,
            0.0,
            1.0,
        )
        assert request["ignore_eos"]
        assert "seed" not in request
        self.requests.append(request)
        prompts, stop_ids = request["prompt"], request["stop_token_ids"]
        drawn = sample_completions(
            self.model,
            prompts,
            [row_seed("server", len(self.requests), n) for n in range(len(prompts))],
            SamplingConfig(temperature=request["temperature"], max_new_tokens=self.cut or request["max_tokens"]),
            stop_ids=stop_ids,
            pad_id=stop_ids[0],
            batch_size=len(prompts),
        )
        return [
            {
                "prompt_token_ids": prompt,
                "token_ids": one.ids,
                "logprobs": {
                    "tokens": [f"token_id:{token}" for token in one.ids],
                    "token_logprobs": one.logps,
                    "top_logprobs": [{f"token_id:{t}": logp} for t, logp in zip(one.ids, one.logps, strict=True)],
                },
            }
            for prompt, one in zip(prompts, drawn, strict=True)
        ]

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


@contextmanager
def serving(stand_in: StandIn) -> Iterator[StandIn]:
    """The server, at `stand_in.url`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply({})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self._reply(json.loads(self.rfile.read(length) or b"{}"))

        def _reply(self, body: dict[str, Any]) -> None:
            status, reply = stand_in.answer(self.path, body)
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        stand_in.close()
        thread.join()

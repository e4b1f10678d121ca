"""Serves a finished policy by OpenAI's API, on this machine alone unless --host says otherwise.

    tiebreak serve runs/quickstart/dpo
    tiebreak serve runs/quickstart/dpo --engine vllm --port 8001

A run is exported once (see tiebreak.export); the server is transformers' own, or vLLM's, and this process becomes it.
"""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tiebreak.command.help import print_help, wants_help
from tiebreak.config import load_config
from tiebreak.errors import ConfigError, HandoffError, MachineError, RunError
from tiebreak.export.command import export, is_finished, output_of
from tiebreak.export.configuration import ExportArguments
from tiebreak.process.ending import exit_with_message
from tiebreak.process.settings import while_importing
from tiebreak.runs.run import MANIFEST
from tiebreak.serving.configuration import ServeArguments
from tiebreak.terminal import say

_NEEDED = ("openai", "fastapi", "uvicorn")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `tiebreak serve`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_message(lambda: print_help(["serve", *words]) if wants_help(words) else _run(words))


def _run(words: list[str]) -> None:
    if not words or words[0].startswith("--"):
        raise ConfigError("serve takes one policy before its flags: tiebreak serve RUN [--engine vllm] [--port N]")
    arguments = load_config(ServeArguments, words[1:], "serve")
    require_engine(arguments)
    require_port(arguments)
    folder = served_folder(words[0], arguments)
    command = command_of(folder, arguments)
    say(
        f"serving on http://{arguments.host}:{arguments.port}/v1 once the model is loaded; its name is {folder}",
        *([] if _is_local(arguments.host) else [f"warning: anyone who reaches {arguments.host} can use it"]),
    )
    sys.stdout.flush()
    make_hub_cache()
    os.execvp(command[0], command)


def require_engine(arguments: ServeArguments) -> None:
    """Refuse an engine that cannot run here.

    Raises:
        MachineError: its packages or its GPU are missing.
    """
    if arguments.engine == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise MachineError(
                "--engine vllm: vLLM is not installed: install it beside Tiebreak, or leave --engine out"
            )
        with while_importing():
            import torch
        if not torch.cuda.is_available():
            raise MachineError("--engine vllm needs a GPU, and this machine has none: leave --engine out")
        return
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MachineError(f"serve needs {' and '.join(missing)}: pip install 'tiebreak[train,export]'")


def require_port(arguments: ServeArguments) -> None:
    """Refuse an address that cannot be listened on, before a model is loaded.

    Raises:
        MachineError: the port is taken, or the address is not this machine's.
    """
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            arguments.host, arguments.port, type=socket.SOCK_STREAM
        )
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise MachineError(f"port {arguments.port} is taken: give another --port") from error
        raise MachineError(f"cannot listen on {arguments.host}:{arguments.port} ({error.strerror or error})") from error


def make_hub_cache() -> None:
    """Make the hub's cache folder: without one, transformers' server answers /v1/models with status 500."""
    from huggingface_hub.constants import HF_HUB_CACHE

    with suppress(OSError):
        Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def served_folder(name: str, arguments: ServeArguments) -> Path:
    """Whole weights: a run's export, made where there is none, or a folder that is one.

    Raises:
        HandoffError: a reward model, or weights whose generation would not stop where their template does.
    """
    run = Path(name).parent if Path(name).name == "final" else Path(name)
    wanted = ExportArguments(to="safetensors", trust_remote_code=arguments.trust_remote_code)
    if (run / MANIFEST).is_file():
        folder = output_of(str(run), wanted)
        if not is_finished(folder, str(run), wanted):
            try:
                export(str(run), wanted)
            except RunError:
                if not is_finished(folder, str(run), wanted):  # by another server of the run, in the meantime
                    raise
        return _named(folder.resolve())
    with while_importing():
        from tiebreak.chat.turns import model_end_tokens
        from tiebreak.export.model_to_export import find_model_to_export
    origin = find_model_to_export(name, arguments.trust_remote_code)
    if origin.source.folder is not None:
        raise HandoffError(
            f"{name} is an adapter: write whole weights first, with 'tiebreak export {name} --to safetensors'"
        )
    if lost := set(origin.ends) - set(model_end_tokens(origin.source.base_path)):
        texts = [text for end, text in zip(origin.ends, origin.end_texts, strict=True) if end in lost]
        raise HandoffError(
            f"{name}: its generation_config.json does not have {', '.join(texts)}, so the server would not stop there: "
            f"serve what 'tiebreak export {name} --to safetensors' writes"
        )
    return _named(origin.source.base_path.resolve())


def _named(folder: Path) -> Path:
    """The folder, if its path can be the name of a model.

    Raises:
        ConfigError: the server would cut it.
    """
    if "@" in str(folder):
        raise ConfigError(f"{folder}: the server takes what follows an @ for a revision: move the folder")
    return folder


def command_of(folder: Path, arguments: ServeArguments) -> list[str]:
    """The server's command line."""
    place = ["--host", arguments.host, "--port", str(arguments.port)]
    trusted = ["--trust-remote-code"] if arguments.trust_remote_code else []
    if arguments.engine == "vllm":
        return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder), *place, *trusted]
    return [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), *place, *trusted]

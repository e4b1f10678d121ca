"""A finished model as a folder for other programs, loaded again without Tiebreak and compared before it is there.

    tiebreak export runs/quickstart/dpo --to safetensors
    tiebreak export runs/quickstart/dpo --to gguf --dtype q8_0 --output out/dpo-gguf
    tiebreak export runs/quickstart/dpo --to hub --repo OWNER/NAME

Nothing is overwritten, and what was interrupted leaves no folder.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiebreak import __version__
from tiebreak.command.help import print_help, wants_help
from tiebreak.config import load_config
from tiebreak.errors import ConfigError, HandoffError
from tiebreak.export.configuration import IN_GGUF, OF_POLICIES, Dtype, ExportArguments
from tiebreak.export.folder import require_free, written_whole
from tiebreak.files import write_json
from tiebreak.process.ending import exit_with_message
from tiebreak.process.settings import while_importing
from tiebreak.runs.run import read_manifest
from tiebreak.terminal import say

EXPORT_FILE = "export.json"
GGUF_FILE = "model-{dtype}.gguf"
_WITH_RUN = "tiebreak export RUN --to safetensors|adapter|gguf|ollama|vllm|hub [--key value …]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `tiebreak export`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_message(lambda: print_help(["export", *words]) if wants_help(words) else _run(words))


def _run(words: list[str]) -> None:
    if not words or words[0].startswith("--"):
        raise ConfigError(f"export takes one model before its flags: {_WITH_RUN}")
    export(words[0], load_config(ExportArguments, words[1:], "export"))


def export(name: str, arguments: ExportArguments) -> Path:
    """Export a model; returns the folder.

    Raises:
        RunError: the folder exists.
        HandoffError: something would be lost, or the export's outputs differ.
    """
    if arguments.to == "hub":
        from tiebreak.export.hub import push, require_login

        require_login()
    folder = write_export(name, arguments)
    if arguments.to == "hub":
        print(push(folder, arguments))
    else:
        print(folder)
        for line in next_of(folder, arguments):
            say(f"next: {line}")
    return folder


def write_export(name: str, arguments: ExportArguments) -> Path:
    """Write a model's folder, and check it; one for the hub that is finished already stays as it is, so that an upload that
    failed is tried again.

    Raises:
        RunError: the folder exists.
        HandoffError: something would be lost, or the export's outputs differ.
    """
    folder = output_of(name, arguments)
    with while_importing():
        from tiebreak.export.model_to_export import find_model_to_export, kind_of
        from tiebreak.export.weights import stored_dtype
    if kind_of(name) == "reward" and arguments.to in OF_POLICIES:
        raise HandoffError(
            f"{name} is a reward model, which --to {arguments.to} does not run: use --to safetensors or hub"
        )
    if arguments.to == "hub" and is_finished(folder, name, arguments):
        return folder
    require_free(folder)
    origin = find_model_to_export(name, arguments.trust_remote_code)
    chosen = arguments.dtype
    if chosen == "auto":
        chosen = "fp16" if arguments.to in IN_GGUF else stored_dtype(origin.source)
    comparison = _write(folder, origin, arguments, chosen)
    say(f"saved: {folder}, loaded without Tiebreak: {comparison}")
    return folder


def is_finished(folder: Path, name: str, arguments: ExportArguments) -> bool:
    """Whether a folder already holds this very export."""
    if not (folder / EXPORT_FILE).is_file() or not (Path(name) / "manifest.json").is_file():
        return False
    there = json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8"))
    wanted = {"id": read_manifest(name)["id"], "to": arguments.to, "adapter_only": arguments.writes_adapter}
    wanted |= {} if arguments.dtype == "auto" else {"dtype": arguments.dtype}
    return {key: there.get(key) for key in wanted} == wanted


def next_of(folder: Path, arguments: ExportArguments) -> list[str]:
    """Commands that use the export."""
    if arguments.to == "vllm":
        return [f"vllm serve {shlex.quote(str(folder))} --served-model-name {shlex.quote(folder.resolve().name)}"]
    if arguments.to == "ollama":
        where = shlex.quote(str(folder / "Modelfile"))
        return [f"ollama create {shlex.quote(folder.resolve().name)} -f {where}"]
    if arguments.to == "gguf":
        return [f"llama-server --jinja -m {shlex.quote(str(folder))}/*.gguf"]
    return []


def _write(folder: Path, origin: Any, arguments: ExportArguments, dtype: Dtype) -> Any:
    from tiebreak.export.answers import ask_alone, compare, require_same_text
    from tiebreak.export.card import write_card
    from tiebreak.export.weights import load_merged, probe_of, write_adapter, write_weights

    if arguments.to in IN_GGUF:
        require_gguf(origin)
    with written_whole(folder) as hidden:
        model = None if arguments.writes_adapter else load_merged(origin)
        probe = probe_of(origin, model)
        loading: dict[str, Any] = {}
        if model is None:
            write_adapter(origin, hidden)
            loading, dtype = {"adapter": True}, "fp32"
        elif arguments.to in IN_GGUF:
            loading = _write_gguf(origin, model, hidden, arguments, dtype)
        else:
            write_weights(origin, model, hidden, dtype, arguments.shard_size)
        del model
        answer = ask_alone(origin, probe, hidden, **loading)
        comparison = compare(origin, probe, answer, dtype)
        require_same_text(origin, answer)
        commands = next_of(folder, arguments)
        how_to = "\n".join(["```shell", *commands, "```"] * bool(commands))
        write_card(hidden, origin, arguments, dtype, comparison, how_to)
        write_json(hidden / EXPORT_FILE, record_of(origin, arguments, dtype, comparison))
    return comparison


def require_gguf(origin: Any) -> None:
    """Refuse before the weights are loaded.

    Raises:
        HandoffError: an architecture that is not written to GGUF.
    """
    from transformers import AutoConfig

    from tiebreak.export.gguf_file import require_supported

    trusted = origin.source.trust_remote_code
    config = AutoConfig.from_pretrained(origin.source.base_path, trust_remote_code=trusted)
    require_supported(config, origin.source.name)


def _write_gguf(origin: Any, model: Any, folder: Path, arguments: ExportArguments, dtype: Dtype) -> dict[str, Any]:
    """The file, and for Ollama its Modelfile; returns how the file is loaded."""
    from tiebreak.export.gguf_file import require_supported, write_gguf
    from tiebreak.export.ollama import MODELFILE, modelfile_of

    file = GGUF_FILE.format(dtype={"fp16": "f16", "fp32": "f32"}.get(dtype, dtype))
    if arguments.to == "ollama":
        (folder / MODELFILE).write_text(modelfile_of(origin, file), encoding="utf-8")
    write_gguf(origin, model, folder / file, dtype)
    rope = require_supported(model.config, origin.source.name).rope
    return {"file": file, "rope": dict(rope) if rope.get("rope_type", "default") != "default" else None}


def record_of(origin: Any, arguments: ExportArguments, dtype: str, comparison: Any) -> dict[str, Any]:
    """The content of `EXPORT_FILE`: what was exported, how, and how it compared."""
    return {
        "model": origin.source.name,
        "id": origin.source.id,
        "kind": origin.kind,
        "base": origin.source.base,
        "base_sha256": origin.source.base_sha256,
        "to": arguments.to,
        "adapter_only": arguments.writes_adapter,
        "dtype": dtype,
        "ends": origin.end_texts,
        "largest_difference": comparison.largest,
        "mean_difference": comparison.mean,
        "allowed_difference": comparison.allowed,
        "tiebreak": __version__,
    }


def output_of(name: str, arguments: ExportArguments) -> Path:
    """The folder to write.

    Raises:
        ConfigError: a model without a run folder, and no `output`.
    """
    if arguments.output is not None:
        return Path(arguments.output)
    run = Path(name).parent if Path(name).name == "final" else Path(name)
    if not (run / "manifest.json").is_file():
        raise ConfigError(f"output: {name} is no finished run, so say where to write: --output FOLDER")
    form = "adapter" if arguments.adapter_only else arguments.to
    return run / "exports" / (form if arguments.dtype == "auto" else f"{form}-{arguments.dtype}")

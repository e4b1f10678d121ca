"""Resolves a model's name (run folder, hub id, local path, or `bundled:…`) and checks its pinned hashes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tiebreak.config import AdapterConfig, ChatSettings
from tiebreak.config.adapter import to_adapter_config
from tiebreak.errors import HandoffError, ModelError, RunError, TiebreakError
from tiebreak.hashing import hash_file, hash_text
from tiebreak.models.adapters.peft_files import (
    ADAPTER_FILE,
    PEFT_FILE,
    is_adapter,
    require_known,
    require_mergeable,
)
from tiebreak.models.bundled import PREFIX, bundled_name, cache_folder, load_bundled
from tiebreak.models.headers import require_fitting, require_floating
from tiebreak.models.precision import WeightFormat
from tiebreak.models.quantized import is_quantised, require_plain_weights
from tiebreak.runs import checkpoints
from tiebreak.runs.chain import InputFinder
from tiebreak.runs.run import MANIFEST, RUN_FILE, read_manifest, read_run_file

ModelKind = Literal["policy", "reward"]

TRUST = (
    "read it, and set training.trust_remote_code: true (trust_remote_code: true where there is no training) to run it"
)


MODEL_FILE = "model.json"
OWN_BASE = "base"
"""folder of a run that merged its policy's adapter: the base of the one it trained"""
CHAT_FILE = "tiebreak_chat.json"
"""beside merged weights: how the policy was trained to read conversations, where that is not the template's default"""


@dataclass(frozen=True)
class ModelSource:
    """A resolved model, with the hashes that pin it."""

    name: str
    """as in the configuration"""
    kind: ModelKind
    id: str
    """the manifest's id, or the base's name"""
    base: str
    base_path: Path
    base_sha256: str
    folder: Path | None
    """its adapter: `final/` of the run it came from, or a folder of PEFT's; None for a base model"""
    trust_remote_code: bool = False
    """whether the user allows Python code from the base's folder"""
    stage: str | None = None
    """the run that made it, if any"""
    pinned: Mapping[str, Any] = field(default_factory=dict)
    """content of `MODEL_FILE`; empty for a base model"""

    @property
    def probed(self) -> Path | None:
        """The folder with the model's probe, its outputs before it was saved; None: no run made it."""
        if self.stage is None:
            return None
        return self.folder or self.base_path

    @property
    def is_whole(self) -> bool:
        """Whether a run trained the weights themselves."""
        return self.stage is not None and self.folder is None

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's folder: the adapter's, or the base's."""
        has_own = self.folder is not None and (self.folder / "tokenizer_config.json").is_file()
        return self.folder if self.folder is not None and has_own else self.base_path


def find_model(
    name: str, kind: ModelKind = "policy", trust_remote_code: bool = False, *, merges: bool = False
) -> ModelSource:
    """Resolve a model by run folder, path, hub id or bundled name, and check what its run pinned.

    Args:
        merges: its adapter is to be merged, so it need not be one that stages compute with.

    Raises:
        RunError: an unfinished run, or an incomplete checkpoint.
        ModelError: nothing with that name, or no safetensors in it.
        HandoffError: a run of another kind, or one whose base weights have changed; an adapter that cannot be continued
            exactly.
    """
    path = Path(name)
    if path.name == "final" and (path.parent / MANIFEST).is_file():
        path = path.parent
    if (path / MANIFEST).is_file():
        return _find_trained(str(path), kind, trust_remote_code)
    if (path / RUN_FILE).is_file():
        raise RunError(f"{name} is not finished (it has no {MANIFEST}): finish its stage first")
    if is_adapter(path):
        return _find_adapter(path, kind, trust_remote_code, merges)
    base_path = find_base(name, trust_remote_code)
    chat = _read_json(base_path / CHAT_FILE)
    pinned = {"chat": chat} if chat else {}
    return ModelSource(
        name, kind, name, name, base_path, base_sha256(base_path), None, trust_remote_code, pinned=pinned
    )


def _read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file in a model's folder; empty if there is none.

    Raises:
        HandoffError: it is broken.
    """
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HandoffError(f"{path} cannot be read ({error}): restore it, or write the folder again") from error
    return dict(values) if isinstance(values, dict) else {}


def _find_adapter(path: Path, kind: ModelKind, trust_remote_code: bool, merges: bool) -> ModelSource:
    """An adapter without a finished run: a checkpoint, or one made elsewhere."""
    if path.parent.name == "checkpoints" and (fault := checkpoints.fault_of(path)):
        raise RunError(f"{path} is not a complete checkpoint ({fault}): name another one")
    if kind == "reward":
        raise HandoffError(
            f"{path} is an adapter, but a reward model also needs a score scale: name a finished reward run"
        )
    values = require_mergeable(path, str(path)) if merges else require_known(path, str(path))
    run = path.parent.parent
    made_here = path.parent.name == "checkpoints" and (run / RUN_FILE).is_file()
    config = read_run_file(run)["config"] if made_here else {}
    copied = _read_json(path / MODEL_FILE)  # of a run's final folder that was taken out of it
    base, chat = bundled_name(str(values.get("base_model_name_or_path") or "")), dict(copied.get("chat") or {})
    if config:
        with suppress(TiebreakError):
            record = read_run_file(run)
            began = record["inputs"].get("policy") and InputFinder().find(run, record, record["inputs"]["policy"]).place
            began_as = find_model(began or config["policy"], kind, trust_remote_code)
            base, chat = began_as.base, dict(began_as.pinned.get("chat") or {})
        if (run / OWN_BASE).is_dir():
            base = str(run / OWN_BASE)
        chat |= {key: config[key] for key in ChatSettings.model_fields if key != "chat_template" and config.get(key)}
    if not base:
        raise HandoffError(
            f"{path / PEFT_FILE} names no base model: set base_model_name_or_path to the one it was made on"
        )
    try:
        base_path = find_base(base, trust_remote_code)
    except ModelError as error:
        raise ModelError(
            f"{path} is an adapter on {base}, which is not available ({error}). Put it back; where it lies elsewhere, link "
            f"it (ln -s PLACE {base}){'' if made_here else f', or set base_model_name_or_path in {PEFT_FILE}'}"
        ) from error
    require_fitting(path / ADAPTER_FILE, base_path, base)
    identity = hash_text(hash_file(path / ADAPTER_FILE) + hash_file(path / PEFT_FILE))[:24]
    stated = _format_of(copied.get("adapter") or config.get("adapter") or {})
    if copied.get("quantized") and stated["quantize"] == "none":
        stated["quantize"] = "nf4"
    pinned = {
        "quantized": stated["quantize"] != "none",
        "chat": chat,
        **({} if merges else {"adapter": to_adapter_config(values, stated).model_dump()}),
    }
    name, weights = str(path), base_sha256(base_path)
    return ModelSource(name, kind, identity, base, base_path, weights, path, trust_remote_code, pinned=pinned)


def _format_of(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a run's adapter, as its file says it, that set the format of the base weights."""
    saved = AdapterConfig.model_validate(adapter)
    return {"quantize": saved.quantize, "double_quantize": saved.double_quantize}


def _find_trained(name: str, kind: ModelKind, trust_remote_code: bool) -> ModelSource:
    manifest = read_manifest(name)
    final = Path(name) / "final"
    if not (final / MODEL_FILE).is_file():
        raise HandoffError(f"{name} is a finished {manifest['stage']!r} run, which has no model")
    pinned = _read_json(final / MODEL_FILE)
    if "weights_sha256" in pinned:
        return _find_whole(name, kind, trust_remote_code, manifest, pinned)
    if missing := {"kind", "base", "base_sha256", "adapter_sha256"} - pinned.keys():
        raise HandoffError(f"{final / MODEL_FILE} is broken (no {' and no '.join(sorted(missing))}): train it again")
    if pinned["kind"] != kind:
        article = "a reward model" if pinned["kind"] == "reward" else "a policy"
        raise HandoffError(f"{name} is {article}, but a {kind} model is needed here")
    for file, expected in ((ADAPTER_FILE, pinned["adapter_sha256"]),):
        if not (final / file).is_file():
            raise HandoffError(f"{final / file} is missing: copy the whole folder, or train it again")
        if hash_file(final / file) != expected:
            raise HandoffError(f"{final / file} has changed since it was saved: its hash differs; train it again")
    base, base_path = find_base_of_run(Path(name), manifest, str(pinned["base"]), trust_remote_code)
    require_same_code(name, base_path, pinned.get("code_sha256"), trust_remote_code)
    found = base_sha256(base_path)
    if found != pinned["base_sha256"]:
        raise HandoffError(
            f"{name} was trained on other weights of {base} (sha256 {pinned['base_sha256'][:12]}…) than those "
            f"there now ({found[:12]}…): restore them, or train again"
        )
    stage = str(manifest["stage"])
    return ModelSource(name, kind, manifest["id"], base, base_path, found, final, trust_remote_code, stage, pinned)


def find_base_of_run(run: Path, record: Mapping[str, Any], base: str, trust_remote_code: bool) -> tuple[str, Path]:
    """(name, folder) of the base weights of a run: under the name that it was trained with, or where its policy lies now.

    Args:
        record: its manifest or run.json.

    Raises:
        ModelError: they are not available.
    """
    own, policy = run / OWN_BASE, record["inputs"].get("policy")
    if own.is_dir():
        return str(own), own
    if base.startswith(PREFIX) or Path(base).is_dir() or policy is None or policy["kind"] == "name":
        return base, find_base(base, trust_remote_code)
    place = InputFinder().find(run, record, policy).place
    with suppress(TiebreakError):
        if place is not None:
            began_as = find_model(place, trust_remote_code=trust_remote_code)
            return began_as.base, began_as.base_path
    try:
        return base, find_base(base, trust_remote_code)
    except ModelError as error:
        raise ModelError(
            f"{run} was trained on {base}, which is not available ({error}). Put it back; where it lies elsewhere, link "
            f"it: ln -s PLACE {base}"
        ) from error


def _find_whole(
    name: str, kind: ModelKind, trust_remote_code: bool, manifest: Mapping[str, Any], pinned: Mapping[str, Any]
) -> ModelSource:
    """A run that trained the weights themselves: a base model of its own."""
    final = Path(name) / "final"
    if pinned["kind"] != kind:
        raise HandoffError(f"{name} is a {pinned['kind']}, but a {kind} model is needed here")
    require_same_code(name, final, pinned.get("code_sha256"), trust_remote_code)
    found = base_sha256(final)
    if found != pinned["weights_sha256"]:
        raise HandoffError(
            f"{final}: its weights have changed since they were saved: their hash differs; train it again"
        )
    stage = str(manifest["stage"])
    return ModelSource(name, kind, manifest["id"], str(final), final, found, None, trust_remote_code, stage, pinned)


def find_base(name: str, trust_remote_code: bool = False) -> Path:
    """The folder of a base model: a local one, the bundled one, or the hub's, from the cache or downloaded.

    Raises:
        ModelError: there is none, or its weights are not safetensors.
    """
    if name.startswith(PREFIX):
        return load_bundled(name)
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name} is neither a model (no config.json) nor a finished run (no {MANIFEST})")
        _require_safetensors(path, name)
        _require_plain_weights(path, name)
        return path
    if path.is_file():
        raise ModelError(f"{name} is a file, but a model is a folder: give {path.parent}")
    if name.startswith("~"):
        raise ModelError(f"no such model: {name}: ~ is not read as the home folder here; write {path.expanduser()}")
    if name.startswith((".", "/", "runs/")) or name.count("/") > 1:
        raise ModelError(f"no such model: {name} does not exist; run its stage first, or fix the path")
    return _from_hub(name, trust_remote_code)


def _from_hub(name: str, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
    wanted += ["*.py"] if trust_remote_code else []
    try:
        path = Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"cannot get {name!r} from the hub ({str(error).splitlines()[0]}): name a local folder with safetensors, "
            f"or bundled:smollm2-135m-instruct, which needs no hub"
        ) from error
    _require_safetensors(path, name)
    _require_plain_weights(path, name)
    return path


def _require_safetensors(path: Path, name: str) -> None:
    if not any(path.glob("*.safetensors")):
        raise ModelError(f"{name} has no .safetensors weights; pickled ones are not loaded: convert them first")


def _require_plain_weights(path: Path, name: str) -> None:
    with suppress(HandoffError):  # of a broken file, which loading reports
        config = _read_json(path / "config.json")
        require_plain_weights(config, name)
        if not is_quantised(config):
            require_floating(path, name)


def base_sha256(path: Path) -> str:
    """One hash over a model's configuration and weights, cached by size and time."""
    files = sorted([path / "config.json", *path.glob("*.safetensors")])
    stamp = hash_text(json.dumps([(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]))
    remembered = cache_folder() / "hashes" / stamp
    if remembered.is_file():
        return remembered.read_text()
    digest = hash_text(json.dumps([(f.name, hash_file(f)) for f in files]))
    with suppress(OSError):  # an unwritable cache only costs computing it again
        remembered.parent.mkdir(parents=True, exist_ok=True)
        temporary = remembered.with_suffix(f".{os.getpid()}")
        temporary.write_text(digest)
        temporary.replace(remembered)
    return digest


def code_sha256(path: Path) -> str | None:
    """One hash over the Python files of a model's folder; None if there are none."""
    files = {file.name: hash_file(file) for file in sorted(path.glob("*.py"))}
    return hash_text(json.dumps(files)) if files else None


def require_same_code(name: str, base_path: Path, pinned: str | None, trust_remote_code: bool) -> None:
    """Refuse a run whose base runs its own code, if that is not trusted or has changed since training.

    Raises:
        HandoffError: either.
    """
    if pinned is None:
        return
    if not trust_remote_code:
        raise HandoffError(f"{name} was trained with code from {base_path}: {TRUST}")
    if code_sha256(base_path) != pinned:
        raise HandoffError(
            f"{name}: the code in {base_path} is not the code it was trained with: restore it, or train again"
        )


def copy_code(model: Path, folder: Path) -> None:
    """Copy a model's own code beside its tokenizer or weights, whose configuration refers to it."""
    for file in sorted(model.glob("*.py")):
        shutil.copyfile(file, folder / file.name)


def format_of(source: ModelSource, adapter: AdapterConfig | None) -> WeightFormat | None:
    """The format of the base weights: as the configuration says, or as the run was trained. None: their own."""
    if adapter is None:
        if not source.pinned.get("quantized"):
            return None
        adapter = AdapterConfig.model_validate(source.pinned.get("adapter") or {"quantize": "nf4"})
    return None if adapter.quantize == "none" else WeightFormat(adapter.quantize, adapter.double_quantize)


def is_quantized(source: ModelSource, adapter: AdapterConfig | None) -> bool:
    """Whether the base weights are to be quantised."""
    return format_of(source, adapter) is not None

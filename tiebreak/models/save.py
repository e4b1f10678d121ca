"""A trained adapter on disk: its weights, the hashes that pin them, and copies of the files it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tiebreak.chat.chat import Chat
from tiebreak.config import AdapterConfig, ChatSettings
from tiebreak.config.adapter import as_saved, to_adapter_config
from tiebreak.files import write_json
from tiebreak.hashing import hash_file
from tiebreak.models.adapters.peft_files import ADAPTER_FILE
from tiebreak.models.adapters.virtual_tokens import as_embeddings
from tiebreak.models.find import MODEL_FILE, ModelKind, ModelSource, base_sha256, code_sha256, copy_code
from tiebreak.models.full import write_whole
from tiebreak.models.tokenizers import tokenizer_facts

if TYPE_CHECKING:
    from peft import PeftModel


def save_adapter(
    folder: Path,
    model: PeftModel,
    state: dict[str, Tensor],
    chat: Chat,
    source: ModelSource,
    kind: ModelKind,
    adapter: AdapterConfig,
    name: str = "default",
) -> dict[str, Any]:
    """Write an adapter and its pins; returns the facts for the manifest."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / ADAPTER_FILE, metadata={"format": "pt"})
    config = model.peft_config[name]
    config.base_model_name_or_path = source.base
    config.inference_mode = True
    config = as_embeddings(config)
    config.save_pretrained(folder)
    _in_fixed_order(folder / "adapter_config.json")
    chat.tokenizer.save_pretrained(folder)
    saved = as_saved(adapter)
    if adapter.start == "stack":  # of both ranks
        stated = {"quantize": adapter.quantize, "double_quantize": adapter.double_quantize}
        saved = to_adapter_config(config.to_dict(), stated)
    facts = {
        "kind": kind,
        "base": source.base,
        "base_sha256": source.base_sha256,
        "adapter_sha256": hash_file(folder / ADAPTER_FILE),
        "quantized": adapter.quantize != "none",
        "adapter": saved.model_dump(),
        **tokenizer_facts(chat.tokenizer),
        **pinned_chat(chat.settings),
        **({"code_sha256": code_sha256(source.base_path)} if source.trust_remote_code else {}),
    }
    if source.trust_remote_code:
        copy_code(source.base_path, folder)
    write_json(folder / MODEL_FILE, facts)
    return facts


def save_whole(
    folder: Path,
    model: Any,
    state: dict[str, Tensor],
    chat: Chat,
    source: ModelSource,
    kind: ModelKind,
    adapter: AdapterConfig,
) -> dict[str, Any]:
    """Write a model whose own weights were trained, and its pins; returns the facts for the manifest."""
    write_whole(folder, model, state, chat)
    facts = {
        "kind": kind,
        "base": source.base,
        "base_sha256": source.base_sha256,
        "weights_sha256": base_sha256(folder),
        "quantized": False,
        "adapter": as_saved(adapter).model_dump(),
        **tokenizer_facts(chat.tokenizer),
        **pinned_chat(chat.settings),
        **({"code_sha256": code_sha256(source.base_path)} if source.trust_remote_code else {}),
    }
    if source.trust_remote_code:
        copy_code(source.base_path, folder)
    write_json(folder / MODEL_FILE, facts)
    return facts


def pinned_chat(settings: ChatSettings) -> dict[str, Any]:
    """The rendering of conversations, if it is not the default. The template itself is saved with the tokenizer."""
    stated = settings.model_dump(exclude={"chat_template"}, exclude_defaults=True)
    return {"chat": stated} if stated else {}


def _in_fixed_order(path: Path) -> None:
    """Sorts PEFT's sets, whose order changes between processes: equal runs must write equal bytes."""
    values = json.loads(path.read_text())
    write_json(path, {k: sorted(v) if isinstance(v, list) else v for k, v in sorted(values.items())})

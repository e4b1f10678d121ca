"""A finished model as other programs hold it: merged weights, or the adapter alone, with tokenizer, template and ends.

Weights are merged in float32 and compared with the adapter beside them. An adapter that was trained on 4-bit weights is
merged into those, dequantised: into the original ones it would not be the model that was trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tiebreak.config import LoadingConfig
from tiebreak.errors import HandoffError
from tiebreak.export.configuration import Dtype
from tiebreak.export.model_to_export import ModelToExport, Probe, base_for_others
from tiebreak.files import write_json
from tiebreak.models.adapters.adapter import Adapter, merge, probe_ids
from tiebreak.models.adapters.peft_files import ADAPTER_FILE, PEFT_FILE
from tiebreak.models.find import CHAT_FILE, MODEL_FILE, ModelSource, copy_code
from tiebreak.models.load import load_base, load_frozen_policy, load_trained_reward_model
from tiebreak.models.probe import PROBE_FILE, PROBE_TOLERANCE_ELSEWHERE, probe_difference, probe_values
from tiebreak.models.save import pinned_chat
from tiebreak.models.scores import SCALE_FILE

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES: Mapping[torch.dtype, Dtype] = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_ADAPTER_ALONE = "export the adapter with --to adapter"


def stored_dtype(source: ModelSource) -> Dtype:
    """The format of the base weights on disk."""
    values = json.loads((source.base_path / "config.json").read_text(encoding="utf-8"))
    text = values.get("text_config") or {}
    name = next((one[key] for one in (values, text) for key in ("dtype", "torch_dtype") if one.get(key)), "float32")
    return NAMES.get(getattr(torch, str(name), torch.float32), "fp32")


def load_merged(origin: ModelToExport) -> nn.Module:
    """The whole model in float32 on the CPU, its adapter in its weights.

    Raises:
        HandoffError: the adapter cannot be merged, or the merged model's outputs differ.
    """
    from peft import PeftModel

    source = origin.source
    loading = LoadingConfig(precision="float32", trust_remote_code=source.trust_remote_code)
    model: nn.Module | None
    if origin.quantized:
        model = _merged_dequantised(origin)
    elif origin.kind == "reward":
        model = _merged(origin, load_trained_reward_model(source, loading))
    else:
        model = load_frozen_policy(source, loading)
    if model is None or isinstance(model, PeftModel):
        raise HandoffError(
            f"{source.name}: merged into the weights, its adapter gives other outputs than beside them (weights that two "
            f"modules share, or a method that does more than add to weights): {_ADAPTER_ALONE}"
        )
    return model.to("cpu")


def _merged(origin: ModelToExport, model: Any) -> nn.Module | None:
    if not hasattr(model.base_model, "merge_and_unload"):
        method = getattr(model.active_peft_config.peft_type, "value", "its method")
        raise HandoffError(f"{origin.source.name}: {method} adds no weights that could be merged: {_ADAPTER_ALONE}")
    return merge(model)


def _merged_dequantised(origin: ModelToExport) -> nn.Module | None:
    """Quantised weights as numbers, and the adapter added to them."""
    source = origin.source
    if source.folder is None:
        raise ValueError("a base model is not quantised")
    saved = source.folder / PROBE_FILE
    dtype = json.loads(saved.read_text())["dtype"] if saved.is_file() else "float32"
    loading = LoadingConfig.model_validate({"precision": dtype, "trust_remote_code": source.trust_remote_code})
    base: Any = load_base(source, loading, kind=origin.kind, weights=origin.weights).dequantize()
    base = base.to(torch.float32)
    base.config.pad_token_id = origin.chat.pad_id
    if hasattr(base.config, "quantization_config"):
        del base.config.quantization_config
    return _merged(origin, Adapter.load(base, source.folder, source.name, trains=False).model)


def probe_of(origin: ModelToExport, model: nn.Module | None) -> Probe:
    """The run's probe; of a model without a run, its outputs now.

    Raises:
        HandoffError: a merged model's outputs, in float32, differ from the run's.
    """
    folder = origin.source.folder
    # kernels of quantised weights compute in bfloat16 on some processors
    coarse = PROBE_TOLERANCE_ELSEWHERE[torch.bfloat16] if origin.quantized else 0.0
    if origin.source.stage is None or folder is None:
        if model is None:
            model = load_frozen_policy(origin.source, LoadingConfig(precision="float32"))
        ids = probe_ids(model)
        return Probe(ids, probe_values(model, ids), "float32", coarse)
    saved = json.loads((folder / PROBE_FILE).read_text(encoding="utf-8"))
    allowed = max(coarse, PROBE_TOLERANCE_ELSEWHERE[getattr(torch, saved["coarsest_dtype"])])
    if model is not None and not (difference := float(probe_difference(model, folder))) <= allowed:
        raise HandoffError(
            f"{origin.source.name}: merged, its outputs differ from its run's (largest difference {difference:.3g}, "
            f"allowed {allowed:.0e}): {_ADAPTER_ALONE}"
        )
    return Probe(saved["input_ids"], saved["values"], saved["dtype"], allowed)


def write_weights(origin: ModelToExport, model: Any, folder: Path, dtype: Dtype, shard_size: str) -> None:
    """A plain model folder.

    Raises:
        HandoffError: fp16 cannot hold a weight.
    """
    model = model.to(DTYPES[dtype])
    if dtype == "fp16":
        require_finite(model)
    model.config.use_cache = True
    model.config.pad_token_id = origin.chat.pad_id
    if origin.kind == "policy":
        write_ends(origin, model.generation_config)
    model.save_pretrained(folder, max_shard_size=shard_size)
    write_beside(origin, folder)


def require_finite(model: nn.Module) -> None:
    """Refuse weights that became infinite when they were rounded."""
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise HandoffError(f"fp16 cannot hold {name}, which has a value beyond 65504: use --dtype bf16 or fp32")


def write_adapter(origin: ModelToExport, folder: Path) -> None:
    """The adapter as PEFT's folder, whose base others can find.

    Raises:
        HandoffError: there is no adapter.
    """
    source = origin.source
    if source.folder is None:
        raise HandoffError(f"{source.name} has no adapter: it is whole weights; use --to safetensors")
    shutil.copyfile(source.folder / ADAPTER_FILE, folder / ADAPTER_FILE)
    values = json.loads((source.folder / PEFT_FILE).read_text(encoding="utf-8"))
    write_json(folder / PEFT_FILE, {**values, "base_model_name_or_path": base_for_others(source)})
    if (source.folder / MODEL_FILE).is_file():
        shutil.copyfile(source.folder / MODEL_FILE, folder / MODEL_FILE)
    if origin.kind == "policy":
        from transformers import GenerationConfig

        whole = (source.base_path / "generation_config.json").is_file()
        generation = GenerationConfig.from_pretrained(source.base_path) if whole else GenerationConfig()
        write_ends(origin, generation)
        generation.save_pretrained(folder)
    write_beside(origin, folder)


def write_ends(origin: ModelToExport, generation: Any) -> None:
    """All end tokens, into the configuration that generation reads."""
    generation.eos_token_id = origin.ends
    generation.pad_token_id = origin.chat.pad_id


def write_beside(origin: ModelToExport, folder: Path) -> None:
    """Tokenizer and template; how conversations were read; a reward model's scale; code of the model's own."""
    tokenizer = origin.chat.tokenizer
    before, tokenizer.chat_template = tokenizer.chat_template, origin.template
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = before
    if stated := pinned_chat(origin.chat.settings):
        write_json(folder / CHAT_FILE, stated["chat"])
    final = origin.source.probed
    if final is not None and (final / SCALE_FILE).is_file():
        shutil.copyfile(final / SCALE_FILE, folder / SCALE_FILE)
    if origin.source.trust_remote_code:
        copy_code(origin.source.base_path, folder)

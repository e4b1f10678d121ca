"""The only code that loads or saves a model.

A model is named by a run folder, a hub id, a local path, or `bundled:…`; a local path may also hold an adapter that PEFT
saved (tiebreak.adapters), or a checkpoint. Whatever a stage trains is one LoRA adapter on the base weights (and, for a
reward model, a score head), so every policy of a recipe is the same base with another adapter, and PPO can hold them all
on one backbone. `final/model.json` pins base weights, adapter, tokenizer and chat
template by hash; loading checks them. `final/probe.json` holds what the model answered before it was saved; every load
repeats that and refuses a model that answers differently.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tiebreak import checkpoints
from tiebreak.adapters import (
    ADAPTER_FILE,
    PEFT_FILE,
    belongs_to,
    is_adapter,
    load_adapter,
    read_peft_config,
    require_known,
    require_same_adapter,
    require_trainable,
    to_adapter_config,
)
from tiebreak.bundled import PREFIX, bundled_name, cache_folder, load_bundled
from tiebreak.chat import Chat, build_chat, check_tokenizer, written_end
from tiebreak.config import AdapterConfig, ChatSettings, LoadingConfig, OptimizerConfig
from tiebreak.errors import ConfigError, HandoffError, MachineError, ModelError, RunError, TiebreakError
from tiebreak.paths import own_computation
from tiebreak.records import write_json
from tiebreak.runs import MANIFEST, RUN_FILE, hash_file, hash_text, read_manifest, read_run_file
from tiebreak.sharding import gathered
from tiebreak.targets import left_out, require_frozen_head, require_targets
from tiebreak.turns import find_template, model_end_tokens

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ModelKind = Literal["policy", "reward"]
TRUST = (
    "read it, and set training.trust_remote_code: true (trust_remote_code: true where there is no training) to run it"
)
MODEL_FILE = "model.json"
PROBE_FILE = "probe.json"
PROBE_TEXT = (
    " Two  spaces,\tTabs\nand lines; naïve CAFÉ's 1234567.89 — 日本語, العربية, emoji 🙂, [INST] <|im_start|>.  "
)
"""for tokenizers whose rules cannot be read: blanks, case, digits, scripts, special tokens"""
PROBE_TOLERANCE = 1e-5
"""In a fresh process on the machine that trained, float32."""
PROBE_TOLERANCE_ELSEWHERE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Another machine's kernels add in another order; per log-probability, in nats."""


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, with the hashes that pin it."""

    name: str
    """as the configuration names it"""
    kind: ModelKind
    id: str
    """the manifest's id, or the base's name"""
    base: str
    base_path: Path
    base_sha256: str
    folder: Path | None
    """its adapter: `final/` of the run it came from, or a folder of PEFT's; None for a base model"""
    trust_remote_code: bool = False
    """whether the user lets Python code of the base's folder run"""
    stage: str | None = None
    """that made it, if one did"""
    pinned: Mapping[str, Any] = field(default_factory=dict)
    """what `MODEL_FILE` says; nothing of a base model, or of an adapter that no stage finished"""

    @property
    def tokenizer_path(self) -> Path:
        """Where its tokenizer is: beside the adapter, or the base's."""
        has_own = self.folder is not None and (self.folder / "tokenizer_config.json").is_file()
        return self.folder if self.folder is not None and has_own else self.base_path


def find_model(name: str, kind: ModelKind = "policy", trust_remote_code: bool = False) -> ModelSource:
    """Find a model by run folder, path, hub id or bundled name, and check what its run pinned.

    Raises:
        RunError: a run folder that is not finished, or a checkpoint that is not complete.
        ModelError: nothing by that name, or no safetensors in it.
        HandoffError: a run of another kind, or one whose base weights are no longer the same; an adapter that cannot be
            continued exactly.
    """
    path = Path(name)
    if path.name == "final" and (path.parent / MANIFEST).is_file():
        path = path.parent
    if (path / MANIFEST).is_file():
        return _find_trained(str(path), kind, trust_remote_code)
    if (path / RUN_FILE).is_file():
        raise RunError(f"{name} is not finished (it has no {MANIFEST}): run its stage to the end first")
    if is_adapter(path):
        return _find_adapter(path, kind, trust_remote_code)
    base_path = find_base(name, trust_remote_code)
    return ModelSource(name, kind, name, name, base_path, base_sha256(base_path), None, trust_remote_code)


def _find_adapter(path: Path, kind: ModelKind, trust_remote_code: bool) -> ModelSource:
    """An adapter that no stage finished: a checkpoint, or one that was made elsewhere."""
    if path.parent.name == "checkpoints" and (fault := checkpoints.fault_of(path)):
        raise RunError(f"{path} is not a complete checkpoint ({fault}): name another one")
    if kind == "reward":
        raise HandoffError(
            f"{path} is an adapter, and a reward model has a score scale too: name a finished reward run"
        )
    values = require_known(path, str(path))
    run = path.parent.parent
    made_here = path.parent.name == "checkpoints" and (run / RUN_FILE).is_file()
    config = read_run_file(run)["config"] if made_here else {}
    base, chat = bundled_name(str(values.get("base_model_name_or_path") or "")), {}
    if config:
        with suppress(TiebreakError):
            began_as = find_model(config["policy"], kind, trust_remote_code)
            base, chat = began_as.base, dict(began_as.pinned.get("chat") or {})
        chat |= {key: config[key] for key in ChatSettings.model_fields if key != "chat_template" and config.get(key)}
    if not base:
        raise HandoffError(
            f"{path / PEFT_FILE} names no base model: set base_model_name_or_path to the one it was made on"
        )
    try:
        base_path = find_base(base, trust_remote_code)
    except ModelError as error:
        raise ModelError(f"{path} is an adapter on {base}, which is not to be had ({error})") from error
    identity = hash_text(hash_file(path / ADAPTER_FILE) + hash_file(path / PEFT_FILE))[:24]
    quantized = ((config.get("adapter") or {}).get("method")) == "qlora"
    pinned = {"quantized": quantized, "chat": chat, "adapter": to_adapter_config(values, quantized).model_dump()}
    name, weights = str(path), base_sha256(base_path)
    return ModelSource(name, kind, identity, base, base_path, weights, path, trust_remote_code, pinned=pinned)


def _find_trained(name: str, kind: ModelKind, trust_remote_code: bool) -> ModelSource:
    manifest = read_manifest(name)
    final = Path(name) / "final"
    if not (final / MODEL_FILE).is_file():
        raise HandoffError(f"{name} holds a finished {manifest['stage']!r} run, which has no model in it")
    pinned = json.loads((final / MODEL_FILE).read_text())
    if pinned["kind"] != kind:
        article = "a reward model" if pinned["kind"] == "reward" else "a policy"
        raise HandoffError(f"{name} is {article}, and a {kind} model was asked for here")
    for file, expected in ((ADAPTER_FILE, pinned["adapter_sha256"]),):
        if hash_file(final / file) != expected:
            raise HandoffError(f"{final / file} is not the file that was saved: its hash differs; train it again")
    base_path = find_base(pinned["base"], trust_remote_code)
    require_same_code(name, base_path, pinned.get("code_sha256"), trust_remote_code)
    found = base_sha256(base_path)
    if found != pinned["base_sha256"]:
        raise HandoffError(
            f"{name} was trained on other weights of {pinned['base']} (sha256 {pinned['base_sha256'][:12]}…) than those "
            f"there now ({found[:12]}…): restore them, or train again"
        )
    stage = str(manifest["stage"])
    return ModelSource(
        name, kind, manifest["id"], pinned["base"], base_path, found, final, trust_remote_code, stage, pinned
    )


def find_base(name: str, trust_remote_code: bool = False) -> Path:
    """The folder of a base model: a local one, the bundled one, or the hub's, as it lies in the cache or is fetched.

    Raises:
        ModelError: there is none, or its weights are no safetensors.
    """
    if name.startswith(PREFIX):
        return load_bundled(name)
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name} is neither a model (no config.json) nor a finished run (no {MANIFEST})")
        _require_safetensors(path, name)
        return path
    if name.startswith((".", "/", "runs/")) or name.count("/") > 1:
        raise ModelError(f"no such model: {name} is not there; run the stage that writes it first, or fix the path")
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
    return path


def _require_safetensors(path: Path, name: str) -> None:
    if not any(path.glob("*.safetensors")):
        raise ModelError(f"{name} has no .safetensors weights; pickled ones are not loaded: convert them first")


def base_sha256(path: Path) -> str:
    """One hash over a model's configuration and weights, remembered by size and time so that it is computed once."""
    files = sorted([path / "config.json", *path.glob("*.safetensors")])
    stamp = hash_text(json.dumps([(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]))
    remembered = cache_folder() / "hashes" / stamp
    if remembered.is_file():
        return remembered.read_text()
    digest = hash_text(json.dumps([(f.name, hash_file(f)) for f in files]))
    with suppress(OSError):  # a cache that cannot be written costs the time to compute it again
        remembered.parent.mkdir(parents=True, exist_ok=True)
        temporary = remembered.with_suffix(f".{os.getpid()}")
        temporary.write_text(digest)
        temporary.replace(remembered)
    return digest


# --- code that a model brings along ---


def code_sha256(path: Path) -> str | None:
    """One hash over the Python files of a model's folder; None where there are none."""
    files = {file.name: hash_file(file) for file in sorted(path.glob("*.py"))}
    return hash_text(json.dumps(files)) if files else None


def require_same_code(name: str, base_path: Path, pinned: str | None, trust_remote_code: bool) -> None:
    """Refuse a run whose base runs code of its own, if that is not trusted, or is not the code that it was trained with.

    Raises:
        HandoffError: either.
    """
    if pinned is None:
        return
    if not trust_remote_code:
        raise HandoffError(f"{name} was trained with code of its own in {base_path}: {TRUST}")
    if code_sha256(base_path) != pinned:
        raise HandoffError(
            f"{name}: the code in {base_path} is not the code it was trained with: restore it, or train again"
        )


def copy_code(model: Path, folder: Path) -> None:
    """Put a model's own code beside a copy of its tokenizer or weights, whose configuration names it."""
    for file in sorted(model.glob("*.py")):
        shutil.copyfile(file, folder / file.name)


# --- tokenizer ---


def load_chat(source: ModelSource, asked: ChatSettings | None = None, trust_remote_code: bool = False) -> Chat:
    """The tokenizer of a model with its chat template, and what ends a turn.

    Args:
        asked: the settings that a stage asks for; None: the model's own.

    Raises:
        HandoffError: what `load_tokenizer` and `build_chat` raise; or a trained policy is asked for with other settings
            than it was trained with.
        ConfigError: no such template or token.
    """
    settings = _settled_chat(source, asked)
    tokenizer = load_tokenizer(source, trust_remote_code, asked.chat_template if asked else None)
    facts = tokenizer_facts(tokenizer)
    return build_chat(
        tokenizer, settings, model_end_tokens(source.base_path), facts["tokenizer_sha256"], name=source.name
    )


def _settled_chat(source: ModelSource, asked: ChatSettings | None) -> ChatSettings:
    """What was asked for, on top of what the policy was trained with."""
    if source.folder is None:
        return asked or ChatSettings()
    pinned = ChatSettings.model_validate(source.pinned.get("chat") or {})
    if asked is None:
        return pinned
    for key in ("template_arguments", "end_of_turn"):
        now, then = getattr(asked, key), getattr(pinned, key)
        if now and now != then:
            raise HandoffError(
                f"{source.name} was trained with {key}: {then or 'its default'}, and {now} is asked for here, so it would "
                f"read other text than it learned from: leave {key} out"
            )
    return pinned.model_copy(update={"thinking": asked.thinking} if "thinking" in asked.model_fields_set else {})


def load_tokenizer(
    source: ModelSource, trust_remote_code: bool = False, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token of its own.

    Args:
        chat_template: a file or a name, see `find_template`; None: the model's own.

    Raises:
        HandoffError: no chat template or end-of-sequence token, no token to pad with, or not the pinned tokenizer.
    """
    from transformers import AutoTokenizer

    trusted = trust_remote_code or source.trust_remote_code
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.tokenizer_path, trust_remote_code=trusted)
    except (OSError, ValueError) as error:
        raise _load_error(source, "its tokenizer", error) from error
    if chat_template is not None:
        tokenizer.chat_template = find_template(chat_template, tokenizer)
    elif isinstance(tokenizer.chat_template, dict):  # several: transformers renders this one where none is named
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    _separate_pad_from_eos(tokenizer, model_end_tokens(source.base_path))
    check_tokenizer(tokenizer, source.name)
    for key, found in tokenizer_facts(tokenizer).items():
        if source.pinned.get(key, found) != found:
            raise HandoffError(f"{source.name}: its {key.removesuffix('_sha256')} is not the one it was trained with")
    return tokenizer


def _load_error(source: ModelSource, what: str, error: Exception) -> ModelError:
    """What a loader's error means to the user."""
    if "trust_remote_code" in str(error):
        return ModelError(f"{source.base}: {what} needs Python code of its own ({source.base_path}): {TRUST}")
    if "Unrecognized configuration class" in str(error):
        return ModelError(f"{source.base}: there is no class for {what}: transformers has none for this architecture")
    return ModelError(f"{source.base}: {what} cannot be loaded: {error}")


def _separate_pad_from_eos(tokenizer: PreTrainedTokenizerBase, model_ends: Sequence[int]) -> None:
    """Give a tokenizer whose padding is missing, or is its end-of-sequence token, another special token to pad with.

    Masks come from lengths, so any token can pad that ends no answer.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    ends = {tokenizer.eos_token_id, *model_ends, written_end(tokenizer)}
    special = [token for token, number in tokenizer.added_tokens_encoder.items() if number not in ends]
    by_name = [token for token in special if "pad" in token.lower()] or [
        token for token in special if any(word in token.lower() for word in ("endoftext", "reserved", "unk", "extra"))
    ]
    if by_name or special:
        tokenizer.pad_token = (by_name or special)[0]


def tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Hashes that pin what text becomes which ids."""
    state = _tokenizer_state(tokenizer)
    ids = [tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id]
    return {
        "tokenizer_sha256": hash_text(json.dumps([state, ids], sort_keys=True)),
        "chat_template_sha256": hash_text(str(tokenizer.chat_template)),
    }


def _tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """All that a tokenizer's ids rest on; of one without a fast backend, its vocabulary and what it makes of a text."""
    if hasattr(tokenizer, "backend_tokenizer"):
        state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        state.pop("padding", None)
        state.pop("truncation", None)
        return state
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    read = list(tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"])
    try:
        vocabulary = tokenizer.get_vocab()
    except NotImplementedError:
        raise HandoffError(
            f"{type(tokenizer).__name__} cannot list its vocabulary, so no run could pin it: use a tokenizer with a fast "
            "backend (tokenizer.json)"
        ) from None
    return {"class": type(tokenizer).__name__, "vocabulary": vocabulary, "added": added, "read": read}


def chat_facts(chat: Chat) -> dict[str, Any]:
    """What decides which ids a conversation becomes."""
    return tokenizer_facts(chat.tokenizer) | {
        "template_arguments": chat.settings.template_arguments,
        "end": chat.end_id,
    }


def require_same_chat(one: Chat, other: Chat, what: str) -> None:
    """Refuse two models that would read one conversation as different ids.

    Raises:
        HandoffError: naming which of tokenizer and chat template differs.
    """
    first, second = chat_facts(one), chat_facts(other)
    differing = [key.removesuffix("_sha256").replace("_", " ") for key in first if first[key] != second[key]]
    if differing:
        raise HandoffError(f"{what}: their {' and '.join(differing)} differ, so one would misread what the other wrote")


# --- loading ---


def resolve_precision(training: LoadingConfig) -> torch.dtype:
    """The number format to train in on this machine.

    Raises:
        MachineError: a setting that needs a GPU, on a machine without one.
    """
    has_gpu = torch.cuda.is_available()
    if not has_gpu and training.precision == "float16":
        raise MachineError(
            "training.precision: float16 needs a GPU, and this machine has none: use auto, float32 or bfloat16"
        )
    if not has_gpu and training.attention == "flash_attention_2":
        raise MachineError(
            "training.attention: flash_attention_2 needs a GPU, and this machine has none: use auto, sdpa or eager"
        )
    if training.precision == "auto":
        return torch.bfloat16 if has_gpu and torch.cuda.is_bf16_supported() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[training.precision]


def load_base(
    source: ModelSource, training: LoadingConfig, kind: ModelKind = "policy", quantized: bool = False, members: int = 1
) -> PreTrainedModel:
    """The base weights: a causal language model, or for `reward` a sequence classifier with one output a member.

    A finished reward model has as many members as it was trained with, whatever `members` says.

    Under ZeRO-3 this must be called before the training arguments are made: the model is loaded whole and DeepSpeed
    shards it when training starts, which keeps adapters that are copied or saved here whole as well.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig
    from transformers.utils import logging as transformers_logging

    dtype = resolve_precision(training)
    options: dict[str, Any] = {
        "dtype": dtype,
        "use_safetensors": True,
        "trust_remote_code": training.trust_remote_code or source.trust_remote_code,
    }
    if training.attention != "auto":
        options["attn_implementation"] = training.attention
    if quantized:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=["lm_head", "score"],
        )
    loader: Any = AutoModelForCausalLM
    if kind == "reward":
        loader = _scorer_of(source, training) or AutoModelForSequenceClassification
        options["num_labels"] = _saved_members(source) if source.kind == "reward" else members
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a causal model's weights in a classifier: the new head is expected
    transformers_logging.disable_progress_bar()
    try:
        model = loader.from_pretrained(source.base_path, **options)
    except (OSError, ValueError) as error:
        raise _load_error(source, "the model" if kind == "policy" else "a classifier of it", error) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    model.config.use_cache = False
    _keep_weights_as_they_are(model)
    return model


def _scorer_of(source: ModelSource, training: LoadingConfig) -> type[PreTrainedModel] | None:
    """See `tiebreak.scorers`. None also where a model brings its own code, its own classifier in it."""
    from transformers import AutoConfig

    from tiebreak.scorers import scorer_class

    config = AutoConfig.from_pretrained(source.base_path, trust_remote_code=training.trust_remote_code)
    return None if getattr(config, "auto_map", None) else scorer_class(config)


def _keep_weights_as_they_are(model: nn.Module) -> None:
    """On some processors bitsandbytes repacks 4-bit weights once a layer is called in evaluation mode; repacked ones have
    no gradient, and a probe before training would leave the adapters below them untrained."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def load_policy(
    source: ModelSource, training: OptimizerConfig, adapter: AdapterConfig | None, tokenizer: PreTrainedTokenizerBase
) -> PeftModel:
    """A policy to train: the run's own adapter, gone on with, or a new one on a base model.

    Raises:
        ConfigError: an adapter is asked for that is not the one the policy has.
    """
    from peft import prepare_model_for_kbit_training

    quantized = is_quantized(source, adapter)
    if source.folder is not None:
        require_trainable(source.folder, source.name)
    base = load_base(source, training, quantized=quantized)
    base.config.pad_token_id = tokenizer.pad_token_id
    if quantized:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=training.gradient_checkpointing)
    torch.manual_seed(training.seed)
    if source.folder is None:
        return _new_adapter(base, adapter or AdapterConfig(), "CAUSAL_LM")
    model = load_adapter(base, source.folder, source.name, trains=True)
    require_same_adapter(model, source.name, source.folder, saved_adapter(source), adapter)
    require_frozen_head(model, source.name)
    if source.stage is not None:
        verify_probe(model, source.folder)
    return model


def _new_adapter(base: PreTrainedModel, adapter: AdapterConfig, task: str) -> PeftModel:
    """A new adapter on a base model.

    Raises:
        ConfigError: it cannot be put there.
    """
    from peft import get_peft_model

    require_targets(base, adapter)
    try:
        return get_peft_model(base, lora_config(adapter, task, base))
    except ValueError as error:  # what PEFT refuses for an architecture's own reasons
        raise ConfigError(f"adapter: PEFT cannot adapt {type(base).__name__}: {error}") from error


def load_frozen_policy(source: ModelSource, training: LoadingConfig) -> nn.Module:
    """A policy to sample from or to measure, in eval mode, on this process's device.

    In float32 the adapter is merged into the weights, which is exact to rounding and saves its matrix products; where it is
    not (weights that two modules share), it stays beside them.
    """
    quantized = is_quantized(source, None)
    model: nn.Module = _with_adapter(source, training, quantized)
    if source.folder is not None and not quantized and resolve_precision(training) == torch.float32:
        merged = _merged(model)
        model = _with_adapter(source, training, quantized) if merged is None else merged
    if torch.cuda.is_available() and not quantized:
        model = model.to("cuda")
    return model.eval().requires_grad_(False)


def _with_adapter(source: ModelSource, training: LoadingConfig, quantized: bool) -> nn.Module:
    model: nn.Module = load_base(source, training, quantized=quantized)
    if source.folder is not None:
        model = load_adapter(model, source.folder, source.name, trains=False)
        if source.stage is not None:
            verify_probe(model, source.folder)
    return model


def _merged(model: Any) -> nn.Module | None:
    """A model with its adapter merged into its weights; None if that answers otherwise."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = [number * 7919 % vocabulary for number in range(1, 25)]
    apart = probe_values(model, ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that shared weights may go wrong: they are compared
        merged: nn.Module = model.merge_and_unload()
    difference = max(abs(a - b) for a, b in zip(probe_values(merged, ids), apart, strict=True))
    return merged if difference <= PROBE_TOLERANCE_ELSEWHERE[torch.float32] else None


def _saved_members(source: ModelSource) -> int:
    """How many score heads a finished reward model has: the rows of what was saved."""
    from safetensors import safe_open

    if source.folder is None:
        return 1
    with safe_open(source.folder / ADAPTER_FILE, framework="pt") as tensors:
        heads = [tensors.get_slice(key).get_shape()[0] for key in tensors.keys() if key.endswith("score.weight")]  # noqa: SIM118
    if len(heads) != 1:
        raise HandoffError(f"{source.folder / ADAPTER_FILE} has no score head: it is not a reward model")
    return int(heads[0])


def load_reward_model(
    source: ModelSource,
    training: OptimizerConfig,
    adapter: AdapterConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    members: int = 1,
) -> PeftModel:
    """A reward model to train: a policy's adapter as its start, and a new score head of one row a member.

    The head is drawn from N(0, 1/(d+1)) with d the hidden size (Huang et al. 2024, detail 11; Stiennon et al. 2020).
    """
    from peft import get_peft_model, prepare_model_for_kbit_training, set_peft_model_state_dict
    from safetensors.torch import load_file

    quantized = is_quantized(source, adapter)
    if source.folder is not None:
        require_trainable(source.folder, source.name)
    base = load_base(source, training, kind="reward", quantized=quantized, members=members)
    base.config.pad_token_id = tokenizer.pad_token_id
    base.config.num_labels = 1  # TRL's trainer asks for one; what it makes of several heads, reward.trainer replaces
    torch.manual_seed(training.seed)
    hidden = base.config.get_text_config().hidden_size
    nn.init.normal_(base.score.weight, std=(hidden + 1) ** -0.5)
    if quantized:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=training.gradient_checkpointing)
    if source.folder is None:
        return _new_adapter(base, adapter or AdapterConfig(), "SEQ_CLS")
    head = {"base_model.model.score.weight": base.score.weight.detach().clone()}  # PEFT wants the new head named too
    model = get_peft_model(base, read_peft_config(source.folder, "SEQ_CLS"))
    require_same_adapter(model, source.name, source.folder, saved_adapter(source), adapter)
    learned = _below_the_head(base, load_file(source.folder / ADAPTER_FILE))
    loaded = set_peft_model_state_dict(model, learned | head)
    missing = [key for key in loaded.missing_keys if ".lora_" in key]
    if loaded.unexpected_keys or missing:
        faults = [*loaded.unexpected_keys, *missing]
        raise HandoffError(f"{source.name}: its adapter does not fit a reward model: {faults[:3]}")
    return model


def _below_the_head(base: PreTrainedModel, adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    """A policy's adapter without what is in its language-model head (ModernBERT's has a dense layer), which a reward
    model does not have."""
    layers = f"base_model.model.{base.base_model_prefix}."
    return {name: weight for name, weight in adapter.items() if name.startswith(layers)}


def load_trained_reward_model(source: ModelSource, training: LoadingConfig) -> PeftModel:
    """A finished reward model to score with, in eval mode, its probe repeated."""
    from peft import PeftModel

    if source.folder is None:
        raise HandoffError(f"{source.name} is a base model: give the folder of a finished reward run")
    base = load_base(source, training, kind="reward", quantized=is_quantized(source, None))
    base.config.pad_token_id = load_tokenizer(source).pad_token_id
    model = PeftModel.from_pretrained(base, source.folder)
    if torch.cuda.is_available():
        model = model.to("cuda")
    verify_probe(model, source.folder)
    return model.eval().requires_grad_(False)


def is_quantized(source: ModelSource, adapter: AdapterConfig | None) -> bool:
    """Whether the base weights are to be held in NF4: as the configuration says, or as the run was trained."""
    if adapter is not None:
        return adapter.method == "qlora"
    return bool(source.pinned.get("quantized"))


def lora_config(adapter: AdapterConfig, task: str, base: nn.Module) -> Any:
    """PEFT's configuration of ours, for a base model."""
    from peft import LoraConfig

    return LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        exclude_modules=left_out(base, adapter),
        task_type=task,
    )


def saved_adapter(source: ModelSource) -> AdapterConfig:
    """The adapter a run was trained with."""
    if source.folder is None:
        raise ValueError("a base model has no adapter")
    return AdapterConfig.model_validate(source.pinned["adapter"])


def adapter_of(source: ModelSource, asked: AdapterConfig | None) -> AdapterConfig:
    """The adapter a stage trains: the one asked for, else the policy's own, else the default on a base model."""
    return asked or (saved_adapter(source) if source.folder else AdapterConfig())


# --- adapters on one backbone ---


@contextmanager
def active_adapter(model: nn.Module, name: str) -> Iterator[None]:
    """Run with another adapter, and leave what trains as it is.

    PEFT's own `set_adapter` also switches `requires_grad`, which would stop the policy from training after the first
    reference pass.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = [name]
    try:
        yield
    finally:
        for layer, names in zip(layers, before, strict=True):
            layer._active_adapter = names


def adapter_state(model: PeftModel, name: str = "default") -> dict[str, Tensor]:
    """An adapter's weights (a score head with them) on the CPU, under the names PEFT saves. All ranks must call it."""
    from peft import get_peft_model_state_dict

    named = {key: parameter for key, parameter in model.named_parameters() if belongs_to(key, name)}
    with gathered(list(named.values())):
        whole = {key: parameter.detach().to("cpu", copy=True) for key, parameter in named.items()}
    state = get_peft_model_state_dict(model, state_dict=whole, adapter_name=name, save_embedding_layers=False)
    return {key: value.contiguous() for key, value in state.items()}


# --- saving ---


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
    """Write an adapter with all that pins it; returns the facts for the manifest."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / ADAPTER_FILE, metadata={"format": "pt"})
    config = model.peft_config[name]
    config.base_model_name_or_path = source.base
    config.inference_mode = True
    config.save_pretrained(folder)
    _in_fixed_order(folder / "adapter_config.json")
    chat.tokenizer.save_pretrained(folder)
    facts = {
        "kind": kind,
        "base": source.base,
        "base_sha256": source.base_sha256,
        "adapter_sha256": hash_file(folder / ADAPTER_FILE),
        "quantized": adapter.method == "qlora",
        "adapter": adapter.model_dump(),
        **tokenizer_facts(chat.tokenizer),
        **_pinned_chat(chat.settings),
        **({"code_sha256": code_sha256(source.base_path)} if source.trust_remote_code else {}),
    }
    if source.trust_remote_code:
        copy_code(source.base_path, folder)
    write_json(folder / MODEL_FILE, facts)
    return facts


def _pinned_chat(settings: ChatSettings) -> dict[str, Any]:
    """How conversations were rendered, where it is not the default. The template itself is saved with the tokenizer."""
    stated = settings.model_dump(exclude={"chat_template"}, exclude_defaults=True)
    return {"chat": stated} if stated else {}


def _in_fixed_order(path: Path) -> None:
    """PEFT writes sets, whose order changes from process to process: equal runs must write equal bytes."""
    values = json.loads(path.read_text())
    write_json(path, {k: sorted(v) if isinstance(v, list) else v for k, v in sorted(values.items())})


# --- the probe ---


@torch.no_grad()
def probe_values(model: nn.Module, ids: list[int]) -> list[float]:
    """What a model answers to fixed ids: log-probabilities of ids[1:], or a reward model's score, of each member."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    batch = torch.tensor([ids], device=device)
    with own_computation(model):
        logits = model(input_ids=batch, attention_mask=torch.ones_like(batch), use_cache=False).logits
    model.train(training)
    if logits.ndim == 2:
        return [float(score) for score in logits[0]]
    logps = torch.log_softmax(logits[0, :-1].float(), dim=-1)
    return [float(v) for v in logps.gather(-1, batch[0, 1:, None]).squeeze(-1)]


def write_probe(folder: Path, ids: list[int], values: list[float], model: nn.Module) -> None:
    """Keep what the model answers now, beside it."""
    dtypes = [p.dtype for p in model.parameters() if p.dtype.is_floating_point]
    coarsest = max(dtypes, key=lambda dtype: PROBE_TOLERANCE_ELSEWHERE[dtype])  # QLoRA adapters train in bfloat16
    names = {"dtype": dtypes[0], "coarsest_dtype": coarsest}
    written = {key: str(dtype).removeprefix("torch.") for key, dtype in names.items()}
    write_json(folder / PROBE_FILE, {"input_ids": ids, "values": values, **written})


def probe_difference(model: nn.Module, folder: Path) -> float:
    """The largest difference between what a loaded model answers and what it answered before it was saved."""
    probe = json.loads((folder / PROBE_FILE).read_text())
    now = probe_values(model, probe["input_ids"])
    return max(abs(float(a) - float(b)) for a, b in zip(now, probe["values"], strict=True))


def verify_probe(model: nn.Module, folder: Path, tolerance: float | None = None) -> float:
    """Refuse a loaded model that does not answer as it did before it was saved.

    Raises:
        HandoffError: naming the difference.
    """
    if not (folder / PROBE_FILE).is_file():
        raise HandoffError(f"{folder} has no {PROBE_FILE}: it was not written by a finished training stage")
    saved = getattr(torch, json.loads((folder / PROBE_FILE).read_text())["coarsest_dtype"])
    here = next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    coarser = max((saved, here), key=lambda dtype: PROBE_TOLERANCE_ELSEWHERE[dtype])
    allowed = PROBE_TOLERANCE_ELSEWHERE[coarser] if tolerance is None else tolerance
    difference: float = probe_difference(model, folder)
    if not difference <= allowed:
        raise HandoffError(
            f"{folder}: the model does not answer as it did before it was saved (largest difference {difference:.3g}, "
            f"allowed {allowed:.0e}); its weights, its base or a library changed"
        )
    return difference

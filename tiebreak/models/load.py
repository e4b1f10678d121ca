"""The only code that loads or saves a model.

A model is named by a run folder, a hub id, a local path, or `bundled:…`; a local path may also hold an adapter that
PEFT saved (tiebreak.models.adapters), or a checkpoint. Whatever a stage trains is one LoRA adapter on the base weights
(and, for a reward model, a score head), so every policy of a recipe is the same base with another adapter, and PPO can
hold them all on one backbone. `final/model.json` pins base weights, adapter, tokenizer and chat template by hash;
loading checks them. `final/probe.json` holds what the model answered before it was saved; every load repeats that and
refuses a model that answers differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tiebreak.config import AdapterConfig, LoadingConfig, OptimizerConfig
from tiebreak.config.adapter import METHODS
from tiebreak.errors import ConfigError, HandoffError, MachineError
from tiebreak.models.adapters.adapter import SHARED, Adapter, merge, unrounded
from tiebreak.models.adapters.lora_start import FROM_WEIGHTS
from tiebreak.models.adapters.matching import require_same_adapter
from tiebreak.models.adapters.peft_files import (
    ADAPTER_FILE,
    fault_of_whole,
    require_trainable,
)
from tiebreak.models.adapters.stacked import stack
from tiebreak.models.adapters.targets import require_frozen_head
from tiebreak.models.adapters.virtual_tokens import EMBEDDINGS, attach
from tiebreak.models.find import ModelKind, ModelSource, format_of, is_quantized
from tiebreak.models.full import size_of, train_whole
from tiebreak.models.precision import (
    WeightFormat,
    hold_in_float32,
    quantization,
    require_bitsandbytes,
    resolve_precision,
)
from tiebreak.models.probe import verify_probe
from tiebreak.models.sharded import shard
from tiebreak.models.tokenizers import load_error, load_tokenizer
from tiebreak.models.weights import require_whole
from tiebreak.packed.products import use_products
from tiebreak.runs.placement import loads_in_shards
from tiebreak.terminal import say
from tiebreak.upstream import keep_quantized_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_base(
    source: ModelSource,
    training: LoadingConfig,
    kind: ModelKind = "policy",
    weights: WeightFormat | None = None,
    members: int = 1,
) -> PreTrainedModel:
    """The base weights: a causal language model, or for `reward` a sequence classifier with one output a member.

    A finished reward model has as many members as it was trained with, whatever `members` says.

    Under ZeRO-3 this must be called before the training arguments are made: the model is loaded whole, and sharded
    afterwards, by DeepSpeed when training starts or by `tiebreak.models.sharded`, so its adapters stay whole until then.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging

    dtype = resolve_precision(training)
    options: dict[str, Any] = {
        "dtype": dtype,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # refused below, with their names
        "trust_remote_code": training.trust_remote_code or source.trust_remote_code,
    }
    if training.attention != "auto":
        options["attn_implementation"] = training.attention
    if weights is not None:
        options["quantization_config"] = quantization(weights, dtype)
    loader: Any = AutoModelForCausalLM
    if kind == "reward":
        loader = _scorer_of(source, training) or AutoModelForSequenceClassification
        options["num_labels"] = _saved_members(source) if source.kind == "reward" else members
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a causal model's weights in a classifier: the new head is expected
    transformers_logging.disable_progress_bar()
    try:
        model, loading = loader.from_pretrained(source.base_path, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise load_error(source, "the model" if kind == "policy" else "a classifier on it", error) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    require_whole(model, loading, source, kind)
    model.config.use_cache = False
    keep_quantized_weights(model)  # or a probe before training would leave the adapters below them untrained
    if kind == "reward" and type(getattr(model, "score", None)) is nn.Linear:
        hold_in_float32(model.score)
    return model


def _scorer_of(source: ModelSource, training: LoadingConfig) -> type[PreTrainedModel] | None:
    """See `tiebreak.models.scorers`. None also where a model brings its own code, its own classifier in it."""
    from transformers import AutoConfig

    from tiebreak.models.scorers import scorer_class

    config = AutoConfig.from_pretrained(source.base_path, trust_remote_code=training.trust_remote_code)
    return None if getattr(config, "auto_map", None) else scorer_class(config)


def load_policy(
    source: ModelSource,
    training: OptimizerConfig,
    adapter: AdapterConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]] = (),
) -> Any:
    """A policy to train: the run's own adapter, continued; a new one on a base model; or the model itself.

    Args:
        rows: token ids of training rows, for a new adapter that starts from them (`adapter.init: eva`).

    Raises:
        ConfigError: the requested adapter differs from the policy's.
    """
    from peft import prepare_model_for_kbit_training

    weights = format_of(source, adapter)
    if source.folder is not None:
        require_trainable(source.folder, source.name)
    base = load_base(source, training, weights=weights)
    base.config.pad_token_id = tokenizer.pad_token_id
    if weights is not None:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=training.gradient_checkpointing)
    torch.manual_seed(training.seed)
    if source.is_whole and weights is None:
        verify_probe(base, source.base_path)
    if loads_in_shards():
        shard(base)
    wanted = adapter_of(source, adapter)
    if wanted.method == "full":
        return train_whole(base.float(), wanted)  # an update is often smaller than bfloat16 resolves
    if source.folder is None:
        return Adapter.build(base, adapter or AdapterConfig(), "CAUSAL_LM", rows).model
    model = Adapter.load(base, source.folder, source.name, trains=True).model
    require_frozen_head(model, source.name)
    if source.stage is not None:
        verify_probe(model, source.folder)
    if adapter is not None and adapter.start == "stack":
        return stack(model, adapter, "CAUSAL_LM", source.name)
    require_same_adapter(model, source.name, source.folder, saved_adapter(source), adapter)
    return model


def load_copy(source: ModelSource, training: LoadingConfig) -> PreTrainedModel:
    """A second copy of a model whose own weights train: the reference."""
    model = load_base(source, training).float()
    say(f"the reference is a second, frozen copy of the model: {size_of(model)}")
    frozen: PreTrainedModel = model.requires_grad_(False).eval()
    return frozen


def load_frozen_policy(source: ModelSource, training: LoadingConfig) -> nn.Module:
    """A policy to sample from or to measure, in eval mode, on this process's device.

    In float32 the adapter is merged into the weights, which is exact to rounding and saves its matrix products; where it is
    not (weights that two modules share), it stays beside them.
    """
    use_products(training.matrix_products)
    quantized = is_quantized(source, None)
    model: nn.Module = _with_adapter(source, training)
    if source.folder is not None and not quantized and resolve_precision(training) == torch.float32:
        merged = merge(model)
        model = _with_adapter(source, training) if merged is None else merged
    if torch.cuda.is_available() and not quantized:
        model = model.to("cuda")
    return model.eval().requires_grad_(False)


def _with_adapter(source: ModelSource, training: LoadingConfig) -> nn.Module:
    model: nn.Module = load_base(source, training, weights=format_of(source, None))
    if source.is_whole:
        verify_probe(model, source.base_path)
    if source.folder is not None:
        model = Adapter.load(model, source.folder, source.name, trains=False).model
        if source.stage is not None:
            verify_probe(model, source.folder)
    return model


def _saved_members(source: ModelSource) -> int:
    """How many score heads a finished reward model has: the rows of what was saved."""
    from safetensors import safe_open

    whole = "weights_sha256" in source.pinned
    if source.folder is None and not whole:
        return 1
    folder = source.folder or source.base_path
    heads = []
    for file in sorted(folder.glob("*.safetensors")) if whole else [folder / ADAPTER_FILE]:
        with safe_open(file, framework="pt") as tensors:
            heads += [tensors.get_slice(key).get_shape()[0] for key in tensors.keys() if key.endswith("score.weight")]  # noqa: SIM118
    if len(heads) != 1:
        raise HandoffError(f"{folder} has no score head: it is not a reward model")
    return int(heads[0])


def load_reward_model(
    source: ModelSource,
    training: OptimizerConfig,
    adapter: AdapterConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    members: int = 1,
    rows: Sequence[Sequence[int]] = (),
) -> Any:
    """A reward model to train: a policy's adapter as its start, or its own weights, and a new score head of one row a
    member.

    The head is drawn from N(0, 1/(d+1)) with d the hidden size (Huang et al. 2024, detail 11; Stiennon et al. 2020).
    """
    from peft import prepare_model_for_kbit_training
    from safetensors.torch import load_file

    weights = format_of(source, adapter)
    if source.folder is not None:
        require_trainable(source.folder, source.name, below_score=True)
    base = load_base(source, training, kind="reward", weights=weights, members=members)
    base.config.pad_token_id = tokenizer.pad_token_id
    base.config.num_labels = 1  # TRL's trainer asks for one; what it makes of several heads, reward.trainer replaces
    torch.manual_seed(training.seed)
    hidden = base.config.get_text_config().hidden_size
    nn.init.normal_(base.score.weight, std=(hidden + 1) ** -0.5)
    if loads_in_shards():
        shard(base, whole=[base.score])
    if weights is not None:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=training.gradient_checkpointing)
    wanted = adapter_of(source, adapter)
    if wanted.method == "full":
        model = train_whole(base.float(), wanted)
        model.score.requires_grad_(True)
        return model
    if source.folder is None:
        return Adapter.build(base, adapter or AdapterConfig(), "SEQ_CLS", rows).model
    wrapped = "base_model" if METHODS[saved_adapter(source).method].virtual else "base_model.model"
    head = {f"{wrapped}.score.weight": base.score.weight.detach().clone()}  # PEFT wants the new head named too
    learned = _below_the_head(base, load_file(source.folder / ADAPTER_FILE))
    model = Adapter.start_from(base, source.folder, source.name, "SEQ_CLS", learned | head).model
    if adapter is not None and adapter.start == "stack":
        return stack(model, adapter, "SEQ_CLS", source.name)
    require_same_adapter(model, source.name, source.folder, saved_adapter(source), adapter)
    return model


def _below_the_head(base: PreTrainedModel, adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    """A policy's adapter without what is in its language-model head (ModernBERT's has a dense layer), which a reward
    model does not have."""
    kept = (f"base_model.model.{base.base_model_prefix}.", *SHARED, EMBEDDINGS)
    return {name: weight for name, weight in adapter.items() if name.startswith(kept)}


def load_trained_reward_model(source: ModelSource, training: LoadingConfig) -> Any:
    """A finished reward model to score with, in eval mode, its probe repeated."""
    from peft import PeftModel

    folder = source.folder or source.probed
    if folder is None:
        raise HandoffError(f"{source.name} is a base model: give the folder of a finished reward run")
    use_products(training.matrix_products)
    base = load_base(source, training, kind="reward", weights=format_of(source, None))
    base.config.pad_token_id = load_tokenizer(source).pad_token_id
    model: Any = (
        base
        if source.folder is None
        else attach(unrounded(PeftModel.from_pretrained(base, source.folder), source.folder))
    )
    if torch.cuda.is_available():
        model = model.to("cuda")
    verify_probe(model, folder)
    return model.eval().requires_grad_(False)


def require_possible(
    source: ModelSource, asked: AdapterConfig | None, training: OptimizerConfig, algorithm: str
) -> None:
    """Refuse what cannot be trained, before anything is loaded.

    Args:
        algorithm: the stage, or which of its algorithms.

    Raises:
        ConfigError: says what can.
        MachineError: what needs a GPU, or bitsandbytes, on a machine without.
    """
    adapter = adapter_of(source, asked)
    if METHODS[adapter.method].virtual and algorithm in ("ppo", "rloo", "grpo"):
        raise ConfigError(
            f"adapter.method: {algorithm} samples with a cache of keys and values, which has no place for virtual tokens; "
            "ia3 and vera train as few weights"
        )
    if adapter.quantize == "int8" and algorithm == "rloo":
        raise ConfigError(
            "adapter.quantize: with int8 weights, a token's log-probability depends on the other rows of its batch, by "
            "more than the check of rloo's reference allows; use quantize: nf4, or algorithm: grpo"
        )
    if adapter.method == "prefix" and training.gradient_checkpointing:
        raise ConfigError(
            "training.gradient_checkpointing: layers that are computed again read no keys and values but their own, so "
            "method: prefix would train nothing; set it to false, or use method: prompt"
        )
    whole = list(adapter.modules_to_save) if source.folder is None else []
    if fault := fault_of_whole(whole, below_score=algorithm == "reward"):
        raise ConfigError(f"adapter.modules_to_save: {whole}, {fault}; leave them out, or train them with method: full")
    _require_machine(adapter, training)
    if source.folder is None and adapter.init in FROM_WEIGHTS and training.weight_decay:
        raise ConfigError(
            f"training.weight_decay: it would also shrink the half of the adapter that holds its start (adapter.init: "
            f"{adapter.init}); set it to 0"
        )
    if source.folder is not None and asked is not None and asked.start == "stack":
        _require_stackable(source, asked, training)
    elif source.folder is not None and asked is not None and asked.method != saved_adapter(source).method:
        raise ConfigError(
            f"adapter.method: {source.name} has an adapter of its own, {saved_adapter(source).method}, which this stage "
            f"continues, and the configuration asks for {asked.method}. Set `adapter: null`, or adapter.start: merge"
        )


def _require_machine(adapter: AdapterConfig, training: OptimizerConfig) -> None:
    optimizer = training.optimizer
    if optimizer.startswith("paged") and not torch.cuda.is_available():
        plain = optimizer.removeprefix("paged_")
        raise MachineError(
            f"training.optimizer: {optimizer} moves its moments off a GPU, and this machine has none: use {plain}"
        )
    if optimizer.startswith("paged") or optimizer.endswith("8bit"):
        require_bitsandbytes(f"training.optimizer: {optimizer}")
    if adapter.quantize != "none":
        require_bitsandbytes(f"adapter.quantize: {adapter.quantize}")


def _require_stackable(source: ModelSource, asked: AdapterConfig, training: OptimizerConfig) -> None:
    saved = saved_adapter(source)
    more = [key for key in ("dora", "modules_to_save") if getattr(saved, key)]
    if saved.method != "lora" or more:
        what = f"{saved.method} with {more[0]}" if more else saved.method
        raise ConfigError(
            f"adapter.start: stack adds LoRA to LoRA, and {source.name} has {what}: use start: merge, which adds it to "
            "its base's weights"
        )
    if (asked.quantize, asked.double_quantize) != (saved.quantize, saved.double_quantize):
        raise ConfigError(
            f"adapter.quantize: {asked.quantize}, but the adapter of {source.name} was trained on base weights with "
            f"quantize: {saved.quantize}: give the same"
        )
    if training.weight_decay:
        raise ConfigError(
            "training.weight_decay: it would also shrink the policy's own adapter, which stays as it is (adapter.start: "
            "stack); set it to 0"
        )


def saved_adapter(source: ModelSource) -> AdapterConfig:
    """The adapter that a run was trained with."""
    return AdapterConfig.model_validate(source.pinned["adapter"])


def adapter_of(source: ModelSource, asked: AdapterConfig | None) -> AdapterConfig:
    """The adapter a stage trains: the one asked for, else the policy's own, else the default on a base model."""
    return asked or (saved_adapter(source) if source.folder or source.is_whole else AdapterConfig())

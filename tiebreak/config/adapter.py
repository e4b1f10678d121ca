"""What trains: PEFT's methods, an entry each, and the section `adapter`, whose keys and errors follow from the entries.

To add a method, write an entry of `METHODS`, and a field of `AdapterConfig` for each key of its own. What quantises the
base weights is apart (`adapter.quantize`). Neither torch nor PEFT is imported here: help and errors need neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from tiebreak.config.section import Section

ALL_LINEAR = "all-linear"
QUANTIZED = ("nf4", "fp4", "int8")
"""formats of quantised base weights"""


class Layers(Protocol):
    """The layers of a base model (`models/adapters/targets.py: ModelLayers`)."""

    def left_out(self, adapter: AdapterConfig) -> list[str] | None: ...
    def linear_names(self, excluded: Sequence[str]) -> list[str]: ...
    def norm_names(self) -> list[str]: ...
    def inner_targets(self, targets: str | Sequence[str]) -> list[str]: ...


def _never(*_: Any) -> bool:
    """For methods that multiply the weight."""
    return False


def _is_a(layer: Any, name: str) -> bool:
    """`isinstance`, by a class's full name."""
    return name in (f"{one.__module__}.{one.__name__}" for one in type(layer).__mro__)


@dataclass(frozen=True)
class Method:
    """How PEFT makes such an adapter, and what may be done with it."""

    peft_type: str = ""
    """as PEFT writes it into adapter_config.json; empty: it is not an adapter"""
    config_class: str = ""
    """PEFT's class of its configuration"""
    configure: Callable[[AdapterConfig, str, Layers], dict[str, Any]] = lambda adapter, task, layers: {}
    """the arguments of that class, of our keys, for a task and a base model's layers"""
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda values: {}
    """keys of ours, of PEFT's configuration"""
    reads: tuple[str, ...] = ()
    """the keys of `adapter` that it reads"""
    on: tuple[str, ...] = ()
    """quantised formats of the base weights that PEFT can train it on"""
    continued: frozenset[str] = frozenset()
    """keys of PEFT's configuration that decide what it computes, and that every stage keeps"""
    adds: Callable[[Any, str], bool] = _never
    """whether, on one of PEFT's layers, the adapter of this name does no more than add a matrix to the weight"""
    block_size: int | None = None
    """PEFT's size of the rotated blocks, which must divide the layers' inputs; None: it rotates none"""
    shared: str = ""
    """prefix of PEFT's names of the buffers that its layers share, which are saved with the adapter; empty: none"""
    faults: Callable[[AdapterConfig], list[str]] = lambda adapter: []
    """errors in its own keys"""
    virtual: bool = False
    """whether it puts virtual tokens before every sequence, for which packed rows and caches have no place"""

    def block_size_of(self, adapter: AdapterConfig) -> int | None:
        """The size of the blocks that an adapter rotates."""
        return (adapter.block_size or self.block_size) if self.block_size else None


# --- LoRA


def lora_config(adapter: AdapterConfig, task: str, layers: Layers) -> dict[str, Any]:
    """LoRA, with twice the rank where half of it holds the start."""
    start: Any = adapter.init if adapter.init in ("gaussian", "orthogonal") else True
    adapter = as_saved(adapter)
    return {
        "r": adapter.r,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": adapter.target_modules,
        "exclude_modules": layers.left_out(adapter),
        "use_rslora": adapter.rslora,
        "use_dora": adapter.dora,
        "init_lora_weights": start,
        "rank_pattern": dict(adapter.rank_pattern),
        "alpha_pattern": dict(adapter.alpha_pattern),
        "modules_to_save": list(adapter.modules_to_save) or None,
        "task_type": task,
    }


def as_saved(adapter: AdapterConfig) -> AdapterConfig:
    """The adapter that is on disk: of twice the rank, and the same scale, where the start is a part of it; P-tuning's
    embeddings without the encoder that made them."""
    adapter = adapter.model_copy(update={"start": "continue"})
    if adapter.method == "ptuning":
        return adapter.model_copy(update={"method": "prompt"})
    if adapter.init == "eva":
        return adapter.model_copy(update={"init": "default"})
    if adapter.init not in ("pissa", "olora"):
        return adapter
    doubled = {
        "r": 2 * adapter.r,
        "alpha": 2 * adapter.alpha,
        "rank_pattern": {name: 2 * rank for name, rank in adapter.rank_pattern.items()},
        "alpha_pattern": {name: 2 * alpha for name, alpha in adapter.alpha_pattern.items()},
    }
    return adapter.model_copy(update={**doubled, "init": "default"})


def _read_lora(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "r": values["r"],
        "alpha": values["lora_alpha"],
        "dropout": values.get("lora_dropout") or 0.0,
        "rslora": bool(values.get("use_rslora")),
        "dora": bool(values.get("use_dora")),
        "modules_to_save": sorted(values.get("modules_to_save") or ()),
        **_read_patterns(values),
    }


def _lora_faults(adapter: AdapterConfig) -> list[str]:
    faults = []
    if adapter.quantize == "int8" and adapter.dora:
        faults.append("dora: PEFT cannot compute it on int8 weights; it can on nf4")
    apart = [key for key in ("rslora", "dropout") if getattr(adapter, key)]
    if adapter.init in ("pissa", "olora") and apart and adapter.start != "stack":
        start = f"init: {adapter.init}, which is saved as LoRA of rank 2r"
        faults.append(f"{', '.join(apart)}: cannot be combined with {start}")
    return faults


def _lora_adds(layer: Any, name: str) -> bool:
    """Not a variant, such as DoRA, which scales the sum as well; not one with a bias of its own."""
    plain = _is_a(layer, "peft.tuners.lora.layer.Linear")
    return plain and name not in layer.lora_variant and not layer.lora_bias.get(name)


# --- products of small matrices


def _product_config(adapter: AdapterConfig, task: str, layers: Layers) -> dict[str, Any]:
    return {
        "r": adapter.r,
        "alpha": adapter.alpha,
        "rank_pattern": dict(adapter.rank_pattern),
        "alpha_pattern": dict(adapter.alpha_pattern),
        **_on_layers(adapter, task, layers),
    }


def _read_product(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"r": values["r"], "alpha": values["alpha"], **_read_patterns(values)}


def _vera_config(adapter: AdapterConfig, task: str, layers: Layers) -> dict[str, Any]:
    excluded = layers.left_out(adapter)  # which its configuration cannot name
    targets = layers.linear_names(excluded) if excluded else adapter.target_modules
    return {
        "r": adapter.shared_rank,
        "vera_dropout": adapter.dropout,
        "target_modules": targets,
        "task_type": task,
    }


def _read_vera(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"shared_rank": values["r"], "dropout": values.get("vera_dropout") or 0.0}


def _adds_delta(layer: Any, _: str) -> bool:
    """Of layers that are one matrix."""
    return hasattr(layer.get_base_layer(), "in_features") and hasattr(layer, "get_delta_weight")


# --- rotations and scales


def _oft_config(adapter: AdapterConfig, task: str, layers: Layers) -> dict[str, Any]:
    return {"oft_block_size": METHODS["oft"].block_size_of(adapter), **_on_layers(adapter, task, layers)}


def _boft_config(adapter: AdapterConfig, task: str, layers: Layers) -> dict[str, Any]:
    return {"boft_block_size": METHODS["boft"].block_size_of(adapter), **_on_layers(adapter, task, layers)}


def _ia3_config(adapter: AdapterConfig, task: str, layers: Layers) -> dict[str, Any]:
    """The layers after an MLP's activation are scaled at their input, as in the paper, all others at their output."""
    shared = _on_layers(adapter, task, layers)
    targets = adapter.target_modules
    if targets == ALL_LINEAR:
        targets = sorted({name.rpartition(".")[2] for name in layers.linear_names([])})
    return {**shared, "target_modules": targets, "feedforward_modules": layers.inner_targets(targets)}


def _prompt_config(adapter: AdapterConfig, task: str, _: Layers) -> dict[str, Any]:
    """From the embeddings of random tokens, as in the paper's second best initialisation."""
    return {
        "num_virtual_tokens": adapter.virtual_tokens,
        "prompt_tuning_init": "SAMPLE_VOCAB",
        "task_type": task,
    }


def _tokens_config(adapter: AdapterConfig, task: str, _: Layers) -> dict[str, Any]:
    """P-tuning's encoder is PEFT's default, an MLP of the model's width; a prefix is not projected."""
    return {"num_virtual_tokens": adapter.virtual_tokens, "task_type": task}


def _read_tokens(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"virtual_tokens": values["num_virtual_tokens"]}


def _norms_config(_: AdapterConfig, task: str, layers: Layers) -> dict[str, Any]:
    return {"target_modules": layers.norm_names(), "task_type": task}


def _on_layers(adapter: AdapterConfig, task: str, layers: Layers) -> dict[str, Any]:
    return {
        "target_modules": adapter.target_modules,
        "exclude_modules": layers.left_out(adapter),
        "task_type": task,
    }


def _read_patterns(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}


PLACED = frozenset({"exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform", "target_modules"})
"""keys that name an adapter's layers"""
_PATTERNS = frozenset({"alpha_pattern", "rank_pattern"})
_RANKED = ("r", "alpha", "rank_pattern", "alpha_pattern")
"""keys of an update that is of a rank and scaled by alpha"""
_VIRTUAL = frozenset(
    {"num_attention_heads", "num_layers", "num_transformer_submodules", "num_virtual_tokens", "token_dim"}
)
_ENCODER = frozenset(
    {"encoder_dropout", "encoder_hidden_size", "encoder_num_layers", "encoder_reparameterization_type"}
)
"""of the encoder of P-tuning, whose embeddings alone are saved"""
_PRODUCT = PLACED | _PATTERNS | {"alpha", "init_weights", "module_dropout", "r", "rank_dropout"}

METHODS: Mapping[str, Method] = {
    "lora": Method(
        "LORA",
        "LoraConfig",
        lora_config,
        _read_lora,
        reads=(*_RANKED, "target_modules", "dropout", "rslora", "dora", "init", "modules_to_save"),
        on=QUANTIZED,
        continued=PLACED
        | _PATTERNS
        | {"init_lora_weights", "lora_alpha", "lora_dropout", "modules_to_save", "r", "use_dora", "use_rslora"},
        adds=_lora_adds,
        faults=_lora_faults,
    ),
    "full": Method(reads=("trainable_layers",)),
    "ia3": Method(
        "IA3",
        "IA3Config",
        _ia3_config,
        reads=("target_modules",),
        on=QUANTIZED,
        continued=PLACED | {"feedforward_modules", "init_ia3_weights"},
    ),
    "loha": Method(
        "LOHA",
        "LoHaConfig",
        _product_config,
        _read_product,
        reads=(*_RANKED, "target_modules"),
        continued=_PRODUCT,
        adds=_adds_delta,
    ),
    "lokr": Method(
        "LOKR",
        "LoKrConfig",
        _product_config,
        _read_product,
        reads=(*_RANKED, "target_modules"),
        continued=_PRODUCT | {"decompose_both", "decompose_factor", "rank_dropout_scale"},
        adds=_adds_delta,
    ),
    "oft": Method(
        "OFT",
        "OFTConfig",
        _oft_config,
        lambda values: {"block_size": values.get("oft_block_size") or None},
        reads=("target_modules", "block_size"),
        on=QUANTIZED,
        continued=PLACED
        | {
            "block_share",
            "coft",
            "eps",
            "init_weights",
            "num_cayley_neumann_terms",
            "oft_block_size",
            "r",
            "use_cayley_neumann",
        },
        block_size=32,
    ),
    "boft": Method(
        "BOFT",
        "BOFTConfig",
        _boft_config,
        lambda values: {"block_size": values.get("boft_block_size") or None},
        reads=("target_modules", "block_size"),
        continued=PLACED | {"boft_block_num", "boft_block_size", "boft_n_butterfly_factor", "init_weights"},
        block_size=4,
    ),
    "vera": Method(
        "VERA",
        "VeraConfig",
        _vera_config,
        _read_vera,
        reads=("target_modules", "dropout", "shared_rank"),
        on=QUANTIZED,
        continued=PLACED | {"d_initial", "init_weights", "projection_prng_key", "r", "save_projection", "vera_dropout"},
        adds=_adds_delta,
        shared="vera_",
    ),
    "prompt": Method(
        "PROMPT_TUNING",
        "PromptTuningConfig",
        _prompt_config,
        _read_tokens,
        reads=("virtual_tokens",),
        continued=_VIRTUAL
        | _ENCODER
        | {"prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs", "tokenizer_name_or_path"},
        virtual=True,
    ),
    "ptuning": Method(
        "P_TUNING",
        "PromptEncoderConfig",
        _tokens_config,
        _read_tokens,
        reads=("virtual_tokens",),
        continued=_VIRTUAL | _ENCODER,
        virtual=True,
    ),
    "prefix": Method(
        "PREFIX_TUNING",
        "PrefixTuningConfig",
        _tokens_config,
        _read_tokens,
        reads=("virtual_tokens",),
        continued=_VIRTUAL | {"encoder_hidden_size", "init_weights", "prefix_projection"},
        virtual=True,
    ),
    "norms": Method("LN_TUNING", "LNTuningConfig", _norms_config, on=QUANTIZED, continued=PLACED),
}
"""by `adapter.method`"""
ON_QUANTIZED = {kind: tuple(name for name, one in METHODS.items() if kind in one.on) for kind in QUANTIZED}
"""by format of the base weights: the methods that PEFT can train on it"""
WORDED = {
    "p_tuning": "method: ptuning",
    "prefix_tuning": "method: prefix",
    "prompt_tuning": "method: prompt",
    "none": "method: full, which trains the model's own weights",
    "dora": "method: lora and dora: true",
    "rslora": "method: lora and rslora: true",
    **{init: f"method: lora and init: {init}" for init in ("pissa", "olora", "eva")},
    **{weights: f"method: lora and quantize: {weights}" for weights in ("nf4", "fp4", "int8")},
}
"""other names of methods, in lower case, and what to give instead"""
FIRST_KEYS = ("method", "quantize", "r", "alpha", "dropout", "target_modules")
"""keys of the first versions of `adapter`. All others are not written at their defaults, so that old runs keep their
identity"""

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[("lora", "qlora", *(name for name in METHODS if name != "lora"))]


class AdapterConfig(Section):
    """The weights to train: by default LoRA (Hu et al. 2021) on frozen base weights. A policy that has an adapter
    already is continued with its own, unless `start` says otherwise."""

    method: MethodName = "lora"
    """lora: Hu et al. 2021. ia3: vectors that scale activations (Liu et al. 2022). loha, lokr: Hadamard and Kronecker
    products (Hyeon-Woo et al. 2022, Yeh et al. 2024). oft, boft: rotations (Qiu et al. 2023, Liu et al. 2024). vera:
    shared random projections (Kopiczko et al. 2024). norms: the weights of the norm layers (Zhao et al. 2024). prompt:
    embeddings before every sequence (Lester et al. 2021); ptuning: the same, computed by an encoder (Liu et al. 2021)
    and saved as for prompt; prefix: extra keys and values in every layer (Li and Liang 2021). full: the model's own
    weights. qlora: lora with quantize: nf4"""
    start: Literal["continue", "merge", "stack"] = "continue"
    """what to do with the policy's adapter. continue: train it further. merge: merge it into the base weights, saved in
    the run's base/, and train a new adapter on them. stack: freeze it and train a new one beside it; both must be LoRA,
    and are saved as one"""
    quantize: Literal["none", "nf4", "fp4", "int8"] = "none"
    """number format of the frozen base weights, by bitsandbytes; nf4, fp4: 4 bits (Dettmers et al. 2023); int8: 8 bits
    (Dettmers et al. 2022)"""
    double_quantize: bool = True
    """nf4, fp4: also store the quantisation scales in 8 bits"""
    r: int = Field(default=16, ge=1)
    """rank of the update; lora, loha, lokr"""
    alpha: int = Field(default=32, ge=1)
    """the update is scaled by alpha / r"""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """dropout on the adapter's input. SFT only: the other stages compare the policy with its own reference, and so
    train without dropout"""
    target_modules: str | list[str] = "all-linear"
    """names of modules to adapt; all-linear: every linear layer except the head"""
    rslora: bool = False
    """lora: scale by alpha / sqrt(r) (Kalajdzievski 2023), for ranks above 32"""
    dora: bool = False
    """lora: train the length of each weight row separately (DoRA, Liu et al. 2024); slower"""
    init: Literal["default", "gaussian", "orthogonal", "eva", "pissa", "olora"] = "default"
    """lora: initial values. default, gaussian: A is random and B is 0; orthogonal: A and B are orthogonal to each
    other; eva: A has the directions in which the layers' inputs vary most on training rows (Paischer et al. 2024), with
    the same rank everywhere; pissa: the weights' largest singular vectors (Meng et al. 2024); olora: the weights' QR
    decomposition (Büyükakyüz 2024). pissa and olora are saved as LoRA of rank 2r on the unchanged base"""
    rank_pattern: dict[str, int] = {}
    """ranks of some modules, by name, as in {q_proj: 32}"""
    alpha_pattern: dict[str, int] = {}
    """alphas of some modules, by name"""
    modules_to_save: list[str] = []
    """lora: names of modules to train whole beside the adapter, in each stage on its own copy"""
    block_size: int | None = Field(default=None, ge=2)
    """oft, boft: size of the rotated blocks, which must divide the layers' inputs; null: 32 and 4, as in PEFT"""
    shared_rank: int = Field(default=256, ge=1)
    """vera: rank of the random projections that all layers share"""
    trainable_layers: int | None = Field(default=None, ge=1)
    """full: train only the last n layers, without embeddings, final norm and head; null: all weights"""

    virtual_tokens: int = Field(default=20, ge=1)
    """prompt, ptuning, prefix: number of virtual tokens before every sequence"""

    @classmethod
    def upgraded(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """qlora is a method and a quantisation in one word."""
        return {**values, "method": "lora", "quantize": "nf4"} if values.get("method") == "qlora" else values

    @model_validator(mode="before")
    @classmethod
    def _apart(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        given = str(values.get("method"))
        if (instead := WORDED.get(given.lower().replace("-", "_"))) and "method" in values:
            raise ValueError(f"method: there is no {given}: give {instead}")
        if values.get("method") == "qlora" and values.get("quantize", "nf4") != "nf4":
            raise ValueError(f"quantize: {values['quantize']!r} contradicts method: qlora; give method: lora")
        return cls.upgraded(values)

    @model_serializer(mode="wrap")
    def _as_one_word(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As the first versions wrote it, so that old runs keep their identity."""
        written: dict[str, Any] = write(self)
        fields = type(self).model_fields
        values = {k: v for k, v in written.items() if k in FIRST_KEYS or getattr(self, k) != fields[k].default}
        quantize = values.pop("quantize", "none")
        if quantize == "nf4" and self.method == "lora":
            return {**values, "method": "qlora"}
        return values if quantize == "none" else {**values, "quantize": quantize}

    @field_validator("target_modules")
    @classmethod
    def _some(cls, names: str | list[str]) -> str | list[str]:
        if not names or (isinstance(names, list) and "" in names):
            raise ValueError("name the modules to adapt, or give all-linear")
        if isinstance(names, list) and "all-linear" in names:
            raise ValueError("all-linear must be given alone, not in a list")
        return names

    @model_validator(mode="after")
    def _of_its_method(self) -> AdapterConfig:
        faults = [
            f"{key}: method {self.method} does not read it, but {', '.join(methods)} {'do' if len(methods) > 1 else 'does'}"
            for key, methods in READ_BY.items()
            if self.method not in methods and getattr(self, key) != type(self).model_fields[key].default
        ]
        faults += [fault for fault in (self._fault_of_format(), self._fault_of_stack()) if fault]
        faults += METHODS[self.method].faults(self)
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _fault_of_format(self) -> str:
        if self.quantize not in ("nf4", "fp4") and not self.double_quantize:
            return f"double_quantize: only nf4 and fp4 have scales to quantise, not quantize: {self.quantize}"
        able = ON_QUANTIZED.get(self.quantize)
        if able and self.method not in able:
            return f"quantize: {self.method} cannot train on {self.quantize} weights; {', '.join(able)} can"
        return ""

    def _fault_of_stack(self) -> str:
        if self.start != "stack":
            return ""
        if self.method != "lora":
            return f"start: stack adds LoRA to LoRA, not {self.method}; with start: merge any method can follow"
        wrong = [key for key in ("rslora", "dora", "dropout", "modules_to_save") if getattr(self, key)]
        wrong += ["init"] if self.init != "default" else []
        if wrong:
            listed = ", ".join(wrong)
            return f"{listed}: cannot be combined with start: stack, which is saved as one LoRA; with merge they can"
        return ""


READ_BY: Mapping[str, tuple[str, ...]] = {
    key: methods
    for key in AdapterConfig.model_fields
    if (methods := tuple(name for name, one in METHODS.items() if key in one.reads))
}
"""by key of `adapter`: the methods that read it"""


def method_of(peft_type: object) -> Method | None:
    """The method that PEFT calls so, on disk: of P-tuning, the embeddings alone; None where no stage trains it."""
    if peft_type == METHODS["ptuning"].peft_type:
        return METHODS["prompt"]
    return next((method for method in METHODS.values() if method.peft_type and method.peft_type == peft_type), None)


def name_of(method: Method) -> str:
    """What `adapter.method` calls it."""
    return next(name for name, each in METHODS.items() if each is method)


def targets_of(values: Mapping[str, Any]) -> str | list[str]:
    """The modules of PEFT's configuration that an adapter is on."""
    targets = values.get("target_modules") or ALL_LINEAR
    return targets if isinstance(targets, str) else sorted(targets)


def to_adapter_config(values: Mapping[str, Any], stated: Mapping[str, Any]) -> AdapterConfig:
    """An adapter's settings in PEFT's file as keys of a stage's configuration.

    Args:
        stated: keys that PEFT has no place for: the format of the base weights.
    """
    method = method_of(values["peft_type"])
    assert method is not None  # the caller has seen that it is one of METHODS
    name = name_of(method)
    targets = {"target_modules": targets_of(values)} if name in READ_BY["target_modules"] else {}
    return AdapterConfig.model_validate({"method": name, **stated, **targets, **method.read(values)})

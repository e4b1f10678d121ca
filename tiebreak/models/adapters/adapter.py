"""An adapter of a model: built, loaded, mounted, copied, activated, merged and saved, by one object.

A model may hold several (the policy, its reference, reward models), each under a name. Wherever weights are moved or added
up, the answers are compared with those of the adapter as it was: a DoRA adapter taken for a LoRA one is 0.3 nats off, and
nothing else would show it.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tiebreak.config import AdapterConfig
from tiebreak.config.adapter import METHODS, method_of
from tiebreak.errors import ConfigError, HandoffError
from tiebreak.models.adapters.lora_start import start
from tiebreak.models.adapters.matching import foreign_weights
from tiebreak.models.adapters.peft_files import ADAPTER_FILE, read_peft_config, read_peft_values
from tiebreak.models.adapters.targets import ModelLayers, require_targets
from tiebreak.models.adapters.virtual_tokens import EMBEDDINGS, VIRTUAL, attach, is_virtual, start_prefix
from tiebreak.models.precision import HALF, hold_in_float32
from tiebreak.models.probe import PROBE_TOLERANCE_ELSEWHERE, probe_values
from tiebreak.packed.parts import whole_model
from tiebreak.packed.proof import coarsest_dtype, is_routed
from tiebreak.packed.sharding import gathered, in_shards_of_fsdp, unsharded
from tiebreak.upstream import adapters_off, adapters_set

if TYPE_CHECKING:
    from peft import PeftModel

DEFAULT = "default"
"""the name of the adapter that trains"""
PROBED_TOKENS = 24
SHARED = tuple(f"base_model.{method.shared}" for method in METHODS.values() if method.shared)
"""prefixes of the buffers that an adapter's layers share, such as VeRA's projections: they are saved with it"""
RENAMES = "since transformers renames weights there as it loads them, and PEFT an adapter's with them"
ROUNDED = 2.0**-7
"""largest share of a weight that rounding to 16 bits (bfloat16) takes"""
COMPARED = "_tiebreak_merged"
"""the attribute of a model that names the adapters whose sums were compared"""


@dataclass(frozen=True)
class Adapter:
    """One adapter on a model."""

    model: PeftModel
    name: str = DEFAULT

    # --- onto a model

    @classmethod
    def build(cls, base: nn.Module, config: AdapterConfig, task: str, rows: Sequence[Sequence[int]] = ()) -> Adapter:
        """A new adapter on a base model; it changes no answer yet.

        Args:
            rows: token ids of training rows, where the first values come from them.

        Raises:
            ConfigError: it cannot be put there.
        """
        import peft

        require_targets(base, config)
        method = METHODS[config.method]
        try:
            values = method.configure(config, task, ModelLayers(base))
            model = peft.get_peft_model(base, getattr(peft, method.config_class)(**values))
        except ValueError as error:  # what PEFT refuses for an architecture's own reasons
            raise ConfigError(f"adapter: PEFT cannot adapt {type(base).__name__}: {error}") from error
        _require_one_head(model, config.modules_to_save)
        start(model, config, rows)
        if config.method == "prefix":
            start_prefix(model)
        adapter = cls(attach(model))
        adapter.hold_in_float32()
        adapter.require_loadable()
        return adapter

    @classmethod
    def load(cls, base: nn.Module, folder: Path, source: str, *, trains: bool) -> Adapter:
        """A saved adapter on its base, all of its weights found and used.

        Args:
            source: as the user names it.

        Raises:
            HandoffError: it does not fit this base.
        """
        from peft import PeftModel, get_peft_model_state_dict
        from safetensors import safe_open
        from safetensors.torch import load_file

        if read_peft_values(folder).get("peft_type") in VIRTUAL:  # PEFT loads none that train
            prompted = cls.start_from(base, folder, source, "CAUSAL_LM", load_file(folder / ADAPTER_FILE))
            prompted.model.requires_grad_(False)
            for parameter in prompted.parameters().values():
                parameter.requires_grad_(trains)
            return prompted
        beside = foreign_weights(base, folder, source)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Found missing adapter keys")  # they are looked for below
                model = PeftModel.from_pretrained(base, str(folder), is_trainable=trains)
        except (RuntimeError, ValueError, KeyError) as error:
            first = " ".join(str(error).split())[:300]
            raise HandoffError(
                f"{source} does not fit {type(base).__name__}, its base: {first}; name the base it was made on"
            ) from None
        with safe_open(folder / ADAPTER_FILE, framework="pt") as tensors:
            saved = set(tensors.keys()) - beside
        used = set(get_peft_model_state_dict(model, save_embedding_layers=False))
        if saved != used:
            lost = sorted(saved - used) or sorted(used - saved)
            what = "weights that have no place" if saved - used else "no weights"
            raise HandoffError(f"{source} has {what} in {type(base).__name__} for {lost[0]} (and {len(lost) - 1} more)")
        adapter = cls(unrounded(model, folder))
        if skipped := adapter._skipped(folder, used):
            raise HandoffError(
                f"{source}: PEFT does not load {skipped[0]} (and {len(skipped) - 1} more) on {type(base).__name__}, "
                f"{RENAMES}. Merge it into its base with what made it, and name the merged model"
            )
        return adapter

    @classmethod
    def start_from(
        cls, base: nn.Module, folder: Path, source: str, task: str, weights: Mapping[str, Tensor]
    ) -> Adapter:
        """A saved adapter as the start of a model of another task, which trains.

        Args:
            weights: its own, and those of the task's head.

        Raises:
            HandoffError: it does not fit.
            ConfigError: PEFT would train more than the adapter.
        """
        import peft

        config = read_peft_config(folder, task)
        asked = tuple(getattr(config, "modules_to_save", None) or ())  # PEFT adds the modules that it treats as a head
        model = peft.get_peft_model(base, config)
        _require_one_head(model, asked)
        adapter = cls(attach(model))
        adapter.hold_in_float32()
        adapter._take(weights, f"{source}: its adapter does not fit {type(base).__name__}")
        return adapter

    @classmethod
    def mount(cls, model: PeftModel, folder: Path, source: str, name: str, weights: Mapping[str, Tensor]) -> Adapter:
        """A saved adapter beside those of a model with the same base weights; it neither trains nor is active.

        A reward model has no layers beyond the decoder, such as the dense one in ModernBERT's head: what PEFT makes there
        changes nothing, and no score passes through it.

        Raises:
            HandoffError: it does not fit.
        """
        adapter = cls(model, name)
        model.add_adapter(name, read_peft_config(folder, "CAUSAL_LM"))
        adapter.hold_in_float32()
        decoder = f"base_model.model.{model.get_base_model().base_model_prefix}."
        adapter._take(weights, f"{source}: its adapter does not fit this backbone", within=decoder)
        for parameter in adapter.parameters().values():
            parameter.requires_grad_(False)
        return adapter

    def _take(self, weights: Mapping[str, Tensor], refusal: str, within: str = "") -> None:
        """Load all weights.

        Args:
            within: beginning of the names that must have weights.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        loaded = set_peft_model_state_dict(self.model, dict(weights), adapter_name=self.name)
        used = set(get_peft_model_state_dict(self.model, adapter_name=self.name, save_embedding_layers=False))
        without_place = {key for key in weights if key not in used and ".base_layer." not in key}
        lost = [
            *(key for key in loaded.unexpected_keys if key != EMBEDDINGS),  # which PEFT loads apart
            *sorted(without_place),
            *sorted(name for name in used - set(weights) if name.startswith(within)),
        ]
        if lost:
            raise HandoffError(f"{refusal}: {lost[:3]}")

    def _skipped(self, folder: Path, names: Collection[str]) -> list[str]:
        """Weights of the file that are not those of the model, although the model has weights of their names."""
        from peft import get_peft_model_state_dict
        from safetensors import safe_open

        state = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        with safe_open(folder / ADAPTER_FILE, framework="pt") as tensors:
            return [name for name in sorted(names) if not _nearly_equal(state[name], tensors.get_tensor(name))]

    def require_loadable(self) -> None:
        """Refuse an adapter that PEFT could not load from its own file, before anything is trained.

        Raises:
            ConfigError: PEFT has no place for some of its weights.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        if is_virtual(self.model):
            return
        state = get_peft_model_state_dict(self.model, adapter_name=self.name, save_embedding_layers=False)
        loaded = set_peft_model_state_dict(self.model, state, adapter_name=self.name)
        if set(loaded.unexpected_keys) - {EMBEDDINGS}:  # which PEFT loads apart
            skipped = sorted(key for key in loaded.missing_keys if belongs_to(key, self.name))
            layer = skipped[0].removeprefix("base_model.model.").rsplit(".", 3)[0] if skipped else "one layer"
            raise ConfigError(
                f"adapter: PEFT cannot load what it would save of {layer} on {type(self.model.get_base_model()).__name__}, "
                f"{RENAMES}. Name other layers with adapter.target_modules, or give adapter.method: full"
            )

    def copy(self, name: str) -> Adapter:
        """A copy of its weights, under a new name.

        Raises:
            HandoffError: the copy's outputs differ.
        """
        self.model.add_adapter(name, self.model.peft_config[self.name])
        copied = self.copy_to(name)
        copied.require_answers(self.answers(), f"the copy {name!r} of the adapter {self.name!r}")
        return copied

    def copy_to(self, name: str) -> Adapter:
        """Copy its current weights to another adapter on the model."""
        parameters = dict(self.model.named_parameters())
        target = Adapter(self.model, name)
        if self.is_exact:
            target.hold_in_float32()
        with torch.no_grad():
            for key, parameter in target.parameters().items():
                ours = ".".join(self.name if part == name else part for part in key.split("."))
                parameter.copy_(parameters[ours])
        return target

    # --- its weights

    def parameters(self) -> dict[str, nn.Parameter]:
        """By their names in the model."""
        return {key: parameter for key, parameter in self.model.named_parameters() if belongs_to(key, self.name)}

    def layers(self) -> list[Any]:
        """Those of PEFT's layers that it is on; other adapters may be on more."""
        return [
            layer
            for layer in tuner_layers(self.model)
            if any(self.name in getattr(layer, part, ()) for part in layer.adapter_layer_names)
        ]

    def state(self) -> dict[str, Tensor]:
        """Its weights (a score head with them) on the CPU, under the names that PEFT saves. All ranks must call it."""
        from peft import get_peft_model_state_dict

        named = self.parameters()
        shared = {
            key: buffer
            for key, buffer in self.model.named_buffers(remove_duplicate=False)
            if key.startswith(SHARED) and belongs_to(key, self.name)
        }
        with gathered(list(named.values())):
            values = {key: unsharded(value.detach()).to("cpu", copy=True) for key, value in {**named, **shared}.items()}
        state = get_peft_model_state_dict(
            self.model, state_dict=values, adapter_name=self.name, save_embedding_layers=False
        )
        return {key: value.contiguous() for key, value in state.items()}

    @property
    def is_exact(self) -> bool:
        """Whether none of its weights is held in 16 bits."""
        return all(parameter.dtype not in HALF for parameter in self.parameters().values())

    def hold_in_float32(self) -> bool:
        """Hold modules in float32 that PEFT copies in the base's 16 bits (norms, `modules_to_save`); returns whether there
        are any. They compute in the base's format."""
        modules = {key.rpartition(".")[0]: parameter.dtype for key, parameter in self.parameters().items()}
        halves = {name: dtype for name, dtype in modules.items() if dtype in HALF}
        for name, dtype in halves.items():
            hold_in_float32(self.model.get_submodule(name), dtype)
        return bool(halves)

    def train_alone(self) -> None:
        """Activate it, and train nothing else."""
        self.model.set_adapter(self.name)
        for key, parameter in self.model.named_parameters():
            parameter.requires_grad_(belongs_to(key, self.name))

    # --- computing with it

    @contextmanager
    def active(self) -> Iterator[None]:
        """Compute with it, and leave what trains as it is: PEFT's `set_adapter` also switches `requires_grad`."""
        before: Any = self.model.active_adapter
        if is_virtual(self.model):
            self.model.active_adapter = self.name
        try:
            with adapters_set([*tuner_layers(self.model), *whole_modules(self.model)], [self.name]):
                yield
        finally:
            if is_virtual(self.model):
                self.model.active_adapter = before

    @property
    def adds(self) -> bool:
        """Whether it does no more than add a matrix to each weight that it is on."""
        config = self.model.peft_config[self.name]
        method = method_of(getattr(config.peft_type, "value", None))
        if getattr(config, "modules_to_save", None) and whole_modules(self.model):
            return False
        return method is not None and all(method.adds(layer, self.name) for layer in self.layers())

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Compute with it added to the weights, which saves its matrix products, and leave the weights as they were.

        The weights' own memory is set aside, not subtracted from, so nothing is rounded away. Only where that is exact to
        rounding and the weights are at hand: in float32, neither quantised, sharded nor those of another module too;
        elsewhere the adapter is active.

        Raises:
            HandoffError: the outputs differ from those with the adapter beside the weights.
        """
        layers = self.layers()
        weights = [layer.get_base_layer().weight for layer in layers] if self.adds else []
        at_hand = all(
            w.dtype == torch.float32 and not hasattr(w, "ds_id") and not in_shards_of_fsdp(w) for w in weights
        )
        if not weights or not at_hand or _are_shared(self.model, weights):
            with self.active():
                yield
            return
        compared: set[str] = self.model.__dict__.setdefault(COMPARED, set())
        wanted = [] if self.name in compared else self.answers()
        before = [weight.data for weight in weights]
        changed = False
        with torch.no_grad():
            for layer, weight in zip(layers, weights, strict=True):
                added = layer.get_delta_weight(self.name)
                changed = changed or bool(added.any())
                weight.data = weight.data + added
        try:
            with adapters_off(tuner_layers(self.model)):
                if wanted:
                    _require_same(self.model, wanted, f"the adapter {self.name!r}, added to the weights")
                    compared |= {self.name} if changed else set()
                yield
        finally:
            for weight, data in zip(weights, before, strict=True):
                weight.data = data

    # --- comparing it

    def answers(self) -> list[float]:
        """Log-probabilities of a fixed text, by the model's own code."""
        with self.active():
            found: list[float] = probe_values(self.model, probe_ids(self.model))
            return found

    def require_answers(self, wanted: Sequence[float], what: str) -> None:
        """Refuse an adapter whose outputs differ.

        Raises:
            HandoffError: it does.
        """
        with self.active():
            _require_same(self.model, wanted, what)


def merge(model: PeftModel) -> nn.Module | None:
    """The base model with the adapter in its weights for good; None if the outputs differ from those with the adapter
    beside them.

    The model that is given is used up.
    """
    if is_virtual(model):
        return None
    wanted = probe_values(model, probe_ids(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that shared weights may go wrong: they are compared
        whole: nn.Module = model.merge_and_unload()
    difference = max(abs(a - b) for a, b in zip(probe_values(whole, probe_ids(whole)), wanted, strict=True))
    return whole if difference <= PROBE_TOLERANCE_ELSEWHERE[torch.float32] else None


def probe_ids(model: nn.Module) -> list[int]:
    """The tokens that answers are compared on."""
    vocabulary = model.config.get_text_config().vocab_size
    return [number * 7919 % vocabulary for number in range(1, PROBED_TOKENS + 1)]


def _require_same(model: nn.Module, wanted: Sequence[float], what: str) -> None:
    """Answers within the format's noise; of a mixture of experts, whose rounding moves tokens to others, half of them.

    Weights that are not numbers have no answers to compare: the first loss stops their training.
    """
    if not all(map(math.isfinite, wanted)):
        return
    found = probe_values(model, probe_ids(model))
    allowed = PROBE_TOLERANCE_ELSEWHERE.get(coarsest_dtype(model), PROBE_TOLERANCE_ELSEWHERE[torch.float32])
    apart = sorted(abs(a - b) / max(1.0, abs(b)) for a, b in zip(found, wanted, strict=True))
    measured = apart[len(apart) // 2] if is_routed(whole_model(model)) else apart[-1]
    if not measured <= allowed:
        raise HandoffError(
            f"{what} gives other answers than the adapter as it was (log-probabilities apart by {measured:.2g} of their "
            f"size, where rounding makes {allowed:.0e} at most): its kind cannot be used here; nothing was trained with it"
        )


def unrounded(model: PeftModel, folder: Path) -> PeftModel:
    """A model that PEFT loaded from a folder, with the saved numbers where PEFT rounded them to the base's 16 bits."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    if Adapter(model).hold_in_float32():
        set_peft_model_state_dict(model, load_file(folder / ADAPTER_FILE))
    return model


def _require_one_head(model: PeftModel, asked: Collection[str]) -> None:
    """Refuse a reward model in which PEFT treats another module as the head because of its name, as LongCat-Flash's
    `mlp.router.classifier`: it would train all of its weights.

    Args:
        asked: the names of modules that are to train whole.

    Raises:
        ConfigError: there is one.
    """
    from peft.utils.constants import SEQ_CLS_HEAD_NAMES

    whole = {id(module) for module in whole_modules(model)}
    base = model.get_base_model()
    for name in [name for name, module in base.named_modules() if id(module) in whole]:
        last = name.rpartition(".")[2]
        if "." in name and last in SEQ_CLS_HEAD_NAMES and last not in asked:
            raise ConfigError(
                f"adapter: PEFT treats {name} as the head of the reward model, because of its name, and would train it: "
                f"{type(base).__name__} needs adapter.method: full"
            )


def _nearly_equal(loaded: Tensor, saved: Tensor) -> bool:
    """Whether two weights are equal but for rounding to 16 bits."""
    if loaded.shape != saved.shape:
        return False
    loaded, saved = loaded.detach().float().cpu(), saved.float()
    return not saved.numel() or bool((loaded - saved).abs().max() <= ROUNDED * saved.abs().max())


def tuner_layers(model: nn.Module) -> list[Any]:
    """PEFT's layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def whole_modules(model: nn.Module) -> list[Any]:
    """PEFT's modules that train whole beside an adapter, each adapter with a copy of its own."""
    from peft.utils.other import ModulesToSaveWrapper

    return [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]


def belongs_to(key: str, name: str) -> bool:
    """Whether a parameter is of the adapter `name`: `….lora_A.default.weight`, `….lora_embedding_A.default`."""
    return name in key.split(".")


def _are_shared(model: nn.Module, weights: Sequence[Tensor]) -> bool:
    """Whether another module computes with one of these too, as an embedding that is tied to the head does."""
    wanted = {id(weight) for weight in weights}
    users = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
        if id(parameter) in wanted
    )
    return any(count > 1 for count in users.values())

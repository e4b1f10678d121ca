"""The private names of other packages, and what is put in place of their methods: named here and nowhere else.

    python -m tiebreak.upstream        # compares them with what is installed

TRL, transformers, accelerate, PEFT, datasets, bitsandbytes, DeepSpeed and the standard library may change them without
notice. `NAMES` lists each private name, the function that depends on it, and the reason. The first use of a package
compares the list with what is installed: a missing name, or other arguments, ends the command with a message.

Private methods that our trainers override have public names in the hooks below: `_compute_loss` is `pair_loss`.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tiebreak.errors import UpstreamError

TESTED = {
    "trl": "1.16.0",
    "transformers": "5.23.0",
    "accelerate": "1.15.0",
    "peft": "0.21.2",
    "datasets": "5.2.0",
    "bitsandbytes": "0.50.2",
    "deepspeed": "0.19.8",
}
"""the versions of constraints.txt"""


@dataclass(frozen=True)
class Name:
    """A private name of another package."""

    place: str
    """module:name, module:Class.member, or module:function.name for an attribute or key that a function sets"""
    serves: str
    """our function that depends on it"""
    why: str
    takes: tuple[str, ...] | None = None
    """the arguments that we pass, or that our override takes ("…": and passes others on); None: not called here"""

    @property
    def package(self) -> str:
        """Its package."""
        return self.place.partition(":")[0].partition(".")[0]

    @property
    def owner(self) -> str:
        """Its class, as module:Class; for a module's own name, a string that is not a class's."""
        return self.place.rpartition(".")[0]


_TRAINER = "transformers.trainer:Trainer"
_SFT, _DPO, _KTO, _REWARD = (
    f"trl.trainer.{name.lower()}_trainer:{name}Trainer" for name in ("SFT", "DPO", "KTO", "Reward")
)
_CPO, _ORPO = (f"trl.experimental.{name.lower()}.{name.lower()}_trainer:{name}Trainer" for name in ("CPO", "ORPO"))
_GROUPS = ("trl.trainer.grpo_trainer:GRPOTrainer", "trl.trainer.rloo_trainer:RLOOTrainer")
_LORA = "peft.tuners.lora.layer"
_FORK = "tiebreak.process.preloaded.run_forked"

NAMES: Mapping[str, tuple[Name, ...]] = {
    "standard library": (
        Name(
            "atexit:_run_exitfuncs",
            _FORK,
            "a fork ends with os._exit, which runs no exit functions",
            (),
        ),
        Name(
            "atexit:_clear",
            _FORK,
            "the parent's exit functions must not run in a fork",
            (),
        ),
        Name("weakref:finalize._registry", _FORK, "as above, for temporary folders"),
        Name("weakref:finalize._registered_with_atexit", _FORK, "as above"),
    ),
    "datasets": (
        Name(
            "datasets.arrow_dataset:Dataset.save_to_disk._data_files",
            "tiebreak.data.arrow.read_saved",
            "folders of save_to_disk are read without the package",
        ),
    ),
    "bitsandbytes": (
        Name(
            "bitsandbytes.nn:Linear4bit.support_avx512bf16_for_cpu",
            "tiebreak.models.load.load_base",
            "a layer called in evaluation mode repacks its weights, which then have no gradient",
        ),
    ),
    "deepspeed": (
        Name(
            "deepspeed.ops:__compatible_ops__",
            "tiebreak.process.settings.leave_out_inference_kernel",
            "without a GPU it compiles a kernel that training never calls, for half a minute",
        ),
    ),
    "accelerate": (
        Name(
            "accelerate.state:GradientState._set_sync_gradients",
            "tiebreak.training.passes.more_to_come",
            "only a step's last pass exchanges gradients; accelerator.accumulate counts batches, not passes",
            ("self", "sync_gradients"),
        ),
        Name(
            "accelerate.data_loader:DataLoaderShard.__init__._drop_last",
            "tiebreak.upstream.gather_whole",
            "whether the last step of a loader has no repeated rows, so that nothing is cut from what processes gather",
        ),
        Name(
            "accelerate.hooks:add_hook_to_module._hf_hook",
            "tiebreak.packed.fused.fuse_layers",
            "a module with a hook that moves its weights is not fused",
        ),
    ),
    "transformers": (
        Name(
            "transformers.configuration_utils:PreTrainedConfig._attn_implementation",
            "tiebreak.packed.forward.pack_forward",
            "the current attention has a public setter (set_attn_implementation) and no getter",
        ),
        Name(
            f"{_TRAINER}._get_train_sampler",
            "tiebreak.training.prompt_order.PromptByPrompt",
            "keeps the rows of a prompt together",
            ("self", "train_dataset"),
        ),
        Name(
            f"{_TRAINER}._prepare_inputs",
            "tiebreak.training.passes.prove_step",
            "moves a batch to the device",
            ("self", "inputs"),
        ),
        Name(
            f"{_TRAINER}._load_rng_state",
            "tiebreak.training.stage.train",
            "restores the random generators when a resumed run has no step left",
            ("self", "checkpoint"),
        ),
        Name(
            f"{_TRAINER}._save_checkpoint",
            "tiebreak.training.stage.train",
            "saves the last whole step when a signal interrupts the next",
            ("self", "model", "trial"),
        ),
        Name(
            f"{_TRAINER}._save",
            "preference.ppo.loop.ScoredLoop",
            "checkpoints of a backbone hold only the trained weights",
            ("self", "output_dir", "state_dict"),
        ),
        Name(
            f"{_TRAINER}._load_from_checkpoint",
            "preference.ppo.loop.ScoredLoop",
            "reads those checkpoints",
            ("self", "resume_from_checkpoint", "model"),
        ),
    ),
    "peft": (
        Name(
            "peft.tuners.tuners_utils:BaseTunerLayer._active_adapter",
            "tiebreak.models.adapters.adapter.Adapter",
            "set_adapter also switches what trains",
        ),
        Name(
            "peft.utils.other:ModulesToSaveWrapper._active_adapter",
            "tiebreak.models.adapters.adapter.Adapter",
            "as above, of modules that train whole",
        ),
        Name(
            "peft.tuners.tuners_utils:BaseTunerLayer._disable_adapters",
            "tiebreak.models.adapters.adapter.Adapter",
            "enable_adapters also switches what trains",
        ),
        *(
            Name(
                f"{_LORA}:LoraLayer.{name}",
                "tiebreak.packed.lora.weights_of",
                "the parts of a LoRA layer's forward",
            )
            for name in ("lora_A", "lora_B", "lora_dropout", "lora_variant", "lora_bias", "scaling")
        ),
        Name(
            f"{_LORA}:Linear.get_delta_weight",
            "tiebreak.models.adapters.adapter.Adapter",
            "what the adapter adds to the weights",
            ("self", "adapter"),
        ),
    ),
    "trl": (
        Name(
            "trl.trainer.utils:FusedCausalLMOutput",
            "tiebreak.packed.forward.pack_forward",
            "the model output that TRL's losses read",
            (
                "loss",
                "log_probs",
                "entropy",
                "log_sum_sq_probs",
                "mean_logits",
                "is_top1",
                "label_mask",
                "aux_loss",
            ),
        ),
        Name(
            "trl.models.utils:add_hooks",
            "tiebreak.packed.sharding.at_own_pace",
            "restores ZeRO-3's gathering by layers",
            ("model",),
        ),
        Name(
            "trl.models.utils:remove_hooks",
            "tiebreak.packed.sharding.at_own_pace",
            "switches it off while sampling",
            ("model",),
        ),
        Name(
            "trl.trainer.utils:add_fused_lm_head",
            "preference.reference_free.ReferenceFreeTrainer",
            "TRL's trainers without a reference keep all logits",
            ("model", "…"),
        ),
    ),
    "trl's trainers": (
        *(
            Name(f"{trainer}.{name}", f"tiebreak.training.{serves}", why)
            for trainer in (_SFT, _DPO, _KTO, _REWARD)
            for name, serves, why in (
                ("_metrics", "passes.StepInPasses", "a step's passes are logged as one row"),
                ("_total_train_tokens", "callbacks.TokenCount", "a resumed run continues the count of trained tokens"),
            )
        ),
        Name(
            f"{_DPO}._prepare_dataset",
            "preference.dpo.CheckedDPOTrainer",
            "rows are already tokenised; TRL would add an end token to truncated answers",
            ("self", "dataset", "…"),
        ),
        Name(
            f"{_DPO}._compute_loss",
            "preference.dpo.CheckedDPOTrainer",
            "the reference's log-probabilities come from the cache, and are checked",
            ("self", "model", "inputs", "return_outputs"),
        ),
        Name(
            f"{_KTO}._prepare_dataset",
            "preference.kto.CheckedKTOTrainer",
            "rows are already tokenised; TRL pairs each prompt with another answer once, in file order",
            ("self", "dataset", "…"),
        ),
        Name(
            f"{_KTO}._compute_kl_logps",
            "preference.kto.CheckedKTOTrainer",
            "the KL is estimated on the whole batch and shared by its passes",
            ("self", "model", "batch"),
        ),
        Name(
            f"{_KTO}._compute_loss",
            "preference.kto.CheckedKTOTrainer",
            "the reference is checked",
            ("self", "model", "inputs", "return_outputs"),
        ),
        *(
            Name(f"{trainer}.{name}", "preference.reference_free.ReferenceFreeTrainer", why, takes)
            for trainer in (_CPO, _ORPO)
            for name, why, takes in (
                ("_stored_metrics", "a step in passes is one row of metrics", None),
                (
                    "tokenize_row",
                    "rows are tokenised already; TRL would add tokens at their ends",
                    ("self", "feature", "model"),
                ),
                ("concatenated_forward", "log-probabilities come from the packed forward", ("self", "model", "batch")),
                ("get_batch_loss_metrics", "the first loss is checked", ("self", "model", "batch", "train_eval")),
            )
        ),
        *(
            Name(f"{trainer}.{name}", "preference.ppo.groups.GroupLoop", why, takes)
            for trainer in _GROUPS
            for name, why, takes in (
                ("_metrics", "adds figures of rollouts to TRL's", None),
                ("_step", "a checkpoint within a rollout saves its remaining batches", None),
                ("_buffered_inputs", "as above", None),
                ("_prepare_inputs", "restores the checkpoint's random generators", ("self", "generation_batch")),
                ("_tokenize_prompts", "prompts are already tokenised", ("self", "prompts")),
                ("_generate_single_turn", "completions come from our sampler", ("self", "prompt_ids", "…")),
                (
                    "_calculate_rewards",
                    "scores come from our rewards",
                    ("self", "inputs", "prompts", "completions", "completion_ids_list"),
                ),
                ("_generate_and_score_completions", "the first KL is checked", ("self", "inputs")),
            )
        ),
    ),
}
"""by package; TRL's trainers apart, since each is compared only when one of our classes derives from it"""


# --- the check


def require(part: str) -> None:
    """Refuse an installed package whose private names are not those that Tiebreak was tested with.

    Raises:
        UpstreamError: names each that changed, and what depends on it.
    """
    if part not in _right:
        _refuse(NAMES[part])
        _right.add(part)


_right: set[str] = set()
"""packages that were compared"""


def _load(module: str) -> Any:
    """A package's module, imported on first use, after its private names were compared."""
    require(module.partition(".")[0])
    return importlib.import_module(module)


def _refuse(names: Iterable[Name]) -> None:
    faults = {name: fault for name in names if (fault := fault_of(name))}
    if faults:
        raise UpstreamError(_message(next(iter(faults)).package, faults.values()))


def fault_of(name: Name) -> str:
    """How a name differs from what is expected, and what depends on it; empty if it does not."""
    change = _change(name)
    return f"{name.place} {change}: {name.serves} depends on it" if change else ""


def _message(package: str, faults: Iterable[str]) -> str:
    if package not in TESTED:
        what, remedy = f"Python {sys.version.split()[0]}", "use Python 3.11 to 3.13"
    else:
        what = f"{package} {installed(package)}"
        remedy = f"Tiebreak is tested with {package} {TESTED[package]}: pip install '{package}=={TESTED[package]}'"
    return "\n".join(
        [f"{what} is not what Tiebreak was written for", *(f"  {fault}" for fault in faults), f"  {remedy}"]
    )


def installed(package: str) -> str:
    """A package's version; "not installed" where it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _change(name: Name) -> str:
    """How a name differs from what is expected; empty if it does not."""
    module, _, path = name.place.partition(":")
    *owners, last = path.split(".")
    try:
        owner: Any = importlib.import_module(module)
        for each in owners:
            owner = getattr(owner, each)
    except (ImportError, AttributeError):
        return "is gone"
    if name.takes is None:
        return "" if hasattr(owner, last) or _sets(owner, last) else "is gone"
    function = getattr(owner, last, None)
    if not callable(function):
        return "is gone"
    if _takes(function, name.takes):
        return ""
    return f"takes ({', '.join(inspect.signature(function).parameters)}), not ({', '.join(name.takes)})"


def _takes(function: Any, names: tuple[str, ...]) -> bool:
    """Whether a function takes these arguments first and requires no others."""
    try:
        taken = list(inspect.signature(function).parameters.values())
    except ValueError:  # a builtin without a signature
        return True
    given = tuple(name for name in names if name != "…")
    others = [each for each in taken[len(given) :] if each.default is each.empty and each.kind not in _VARIADIC]
    return tuple(each.name for each in taken[: len(given)]) == given and ("…" in names or not others)


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _sets(owner: Any, name: str) -> bool:
    """Whether a function, or a method of a class, uses an attribute or a key of that name."""
    values = [value for each in owner.__mro__ for value in vars(each).values()] if isinstance(owner, type) else [owner]
    codes = [value.__code__ for value in values if inspect.isfunction(value)]
    return any(name in code.co_names or name in code.co_consts for code in codes)


# --- methods that our trainers override


_Trainer: Any = object
"""for the type checker: the trainer that a mixin is combined with"""


class Hooks(_Trainer):
    """Mixin for a trainer of TRL or transformers. Deriving from both compares the trainer's entries of `NAMES`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        theirs = {f"{each.__module__}:{each.__qualname__}" for each in cls.__mro__}
        _refuse(name for names in NAMES.values() for name in names if name.owner in theirs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """The trainer's own, without its rounding of what trains on quantised weights; see `unrounded`."""
        with unrounded(kwargs.get("model", args[0] if args else None)):
            super().__init__(*args, **kwargs)


@contextmanager
def unrounded(model: Any) -> Iterator[None]:
    """Let trained parameters, except LoRA's factors, keep their format inside the block.

    On quantised weights TRL's trainers round all that trains to bfloat16, which is meant for LoRA. The numbers nearest to 1
    differ from it by 0.004 there, so a norm or a scale of (IA)³ would lose every step of a usual learning rate; and OFT
    would rotate a layer's inputs in it.
    """
    quantized = getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)
    named = model.named_parameters() if quantized else ()
    before = [(each, each.data) for name, each in named if each.requires_grad and "lora_" not in name]
    yield
    for parameter, data in before:
        parameter.data = data


class SamplerHook(Hooks):
    """The order of training rows."""

    def train_sampler(self, rows: Any) -> Any:
        """The sampler of the training set, or of `rows`."""
        return super()._get_train_sampler(rows)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.train_sampler(train_dataset)


class InputsHook(Hooks):
    """A batch as the loss takes it."""

    def prepare_inputs(self, inputs: Any) -> Any:
        """The batch on the device."""
        return super()._prepare_inputs(inputs)

    def _prepare_inputs(self, inputs: Any) -> Any:
        return self.prepare_inputs(inputs)


class ResumeHook(Hooks):
    """What is read from a checkpoint."""

    def load_weights(self, checkpoint: str, model: Any = None) -> None:
        """Read a checkpoint's weights."""
        super()._load_from_checkpoint(checkpoint, model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.load_weights(resume_from_checkpoint, model)


class CheckpointHooks(ResumeHook):
    """What is written into a checkpoint, and read from it."""

    def save_weights(self, folder: str | None = None, state: dict[str, Any] | None = None) -> None:
        """Write the model's weights."""
        super()._save(folder, state)

    def save_whole_checkpoint(self, model: Any, trial: Any) -> None:
        """Write weights, optimizer and generators."""
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        self.save_weights(output_dir, state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.save_whole_checkpoint(model, trial)


class PairHooks(Hooks):
    """TRL's DPOTrainer."""

    def prepare_rows(self, rows: Any, *others: Any, **options: Any) -> Any:
        """The data set, tokenised."""
        return super()._prepare_dataset(rows, *others, **options)

    def pair_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        """The loss of a batch of pairs."""
        return super()._compute_loss(model, inputs, return_outputs)

    def _prepare_dataset(self, dataset: Any, *others: Any, **options: Any) -> Any:
        return self.prepare_rows(dataset, *others, **options)

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        return self.pair_loss(model, inputs, return_outputs)


class AnswerHooks(Hooks):
    """TRL's KTOTrainer."""

    def prepare_rows(self, rows: Any, *others: Any, **options: Any) -> Any:
        """The data set, tokenised."""
        return super()._prepare_dataset(rows, *others, **options)

    def mismatched_logps(self, model: Any, batch: Any) -> Any:
        """Log-probabilities of each prompt's mismatched answer, shape (rows,)."""
        return super()._compute_kl_logps(model, batch)

    def answer_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        """The loss of a batch of labelled answers."""
        return super()._compute_loss(model, inputs, return_outputs)

    def _prepare_dataset(self, dataset: Any, *others: Any, **options: Any) -> Any:
        return self.prepare_rows(dataset, *others, **options)

    def _compute_kl_logps(self, model: Any, batch: Any) -> Any:
        return self.mismatched_logps(model, batch)

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        return self.answer_loss(model, inputs, return_outputs)


class ScoredPairHooks(Hooks):
    """TRL's CPOTrainer and ORPOTrainer, which are experimental: all of them may change without notice."""

    def forward_pairs(self, model: Any, batch: Any) -> Any:
        """Log-probabilities and logits of chosen and rejected answers, the negative log-likelihood, an auxiliary loss."""
        return super().concatenated_forward(model, batch)

    def loss_and_metrics(self, model: Any, batch: Any, train_eval: str) -> Any:
        """The loss of a batch of pairs, and its metrics."""
        return super().get_batch_loss_metrics(model, batch, train_eval)

    def tokenize_row(self, feature: Any, model: Any = None) -> Any:
        return feature

    def concatenated_forward(self, model: Any, batch: Any) -> Any:
        return self.forward_pairs(model, batch)

    def get_batch_loss_metrics(self, model: Any, batch: Any, train_eval: str = "train") -> Any:
        return self.loss_and_metrics(model, batch, train_eval)


class GroupHooks(InputsHook):
    """TRL's trainers that draw groups of completions."""

    def tokenize_prompts(self, prompts: list[str]) -> list[list[int]]:
        """Token ids of the prompts that the data set names."""
        raise NotImplementedError

    def draw_completions(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        """Token ids of a completion for each prompt."""
        raise NotImplementedError

    def score_completions(self, prompts: list[str], completion_ids: list[list[int]]) -> Any:
        """The scores of all processes' completions, shape (completions, rewards)."""
        raise NotImplementedError

    def roll_out(self, inputs: Any) -> Any:
        """A rollout as the loss takes it: completions, advantages and their terms."""
        return super()._generate_and_score_completions(inputs)

    def micro_batches_taken(self) -> int:
        """Micro-batches taken from all rollouts so far."""
        return int(self._step)

    def buffered_rollout(self) -> Any:
        """The current rollout, cut into micro-batches."""
        return self._buffered_inputs

    def take_up_rollout(self, taken: int, buffered: Any) -> None:
        """Resume a rollout after its first `taken` micro-batches."""
        self._step, self._buffered_inputs = taken, buffered

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return self.tokenize_prompts(prompts), None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        return self.draw_completions(prompt_ids)

    def _calculate_rewards(self, inputs: Any, prompts: list[str], completions: Any, completion_ids_list: Any) -> Any:
        return self.score_completions(prompts, completion_ids_list)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        return self.roll_out(inputs)


class GRPOHooks(GroupHooks):
    """GRPO's trainer: its sampler may also return log-probabilities."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        return self.draw_completions(prompt_ids), None


# --- trainers


def load_generators(trainer: Any, checkpoint: str | None) -> None:
    """Restore every random generator from a checkpoint."""
    require("transformers")
    trainer._load_rng_state(checkpoint)


def save_checkpoint(trainer: Any) -> None:
    """Write a checkpoint now."""
    require("transformers")
    trainer._save_checkpoint(trainer.model, trial=None)


def prepare_batch(trainer: Any, batch: Any) -> Any:
    """A collated batch as the trainer's loss takes it."""
    require("transformers")
    return trainer._prepare_inputs(batch)


def metrics_of(trainer: Any) -> dict[str, dict[str, list[float]]]:
    """Metrics of one of TRL's trainers since its last log, under `train` and `eval`."""
    metrics: dict[str, dict[str, list[float]]] | None = getattr(trainer, "_metrics", None)
    if metrics is None:
        metrics = trainer._stored_metrics  # of the experimental ones
    return metrics


def trained_tokens(trainer: Any) -> int | None:
    """Tokens that one of TRL's trainers has trained on; None if it does not count them."""
    return getattr(trainer, "_total_train_tokens", None)


def set_trained_tokens(trainer: Any, count: int) -> None:
    """Continue a resumed trainer's count, which begins at 0."""
    trainer._total_train_tokens = count


def set_synchronises(gradient_state: Any, synchronises: bool) -> None:
    """Whether the next backward pass ends an optimizer step, for accelerate and its dependents."""
    require("accelerate")
    gradient_state._set_sync_gradients(synchronises)


@contextmanager
def without_engine_hooks(wrapped: Any) -> Iterator[None]:
    """Without DeepSpeed's hooks on a model's modules, which gather sharded weights layer by layer."""
    utils = _load("trl.models.utils")
    utils.remove_hooks(wrapped)
    try:
        yield
    finally:
        utils.add_hooks(wrapped)


# --- models


def attention_of(model: Any) -> str | None:
    """A model's current attention, as `set_attn_implementation` takes it."""
    require("transformers")
    attention: str | None = getattr(model.config, "_attn_implementation", None)
    return attention


def fused_output(**values: Any) -> Any:
    """The output of a causal model called with `fused_lm_head=True`, as TRL's losses read it."""
    return _load("trl.trainer.utils").FusedCausalLMOutput(**values)


def add_fused_head(model: Any, temperature: float = 1.0) -> None:
    """Let a causal model return log-probabilities where it is called with `fused_lm_head=True`, as TRL's losses do."""
    _load("trl.trainer.utils").add_fused_lm_head(
        model, temperature=temperature, outputs=("log_probs", "entropy", "mean_logits")
    )


def moves_weights(module: Any) -> bool:
    """Whether accelerate brings a module's weights to the device when it is called."""
    return hasattr(module, "_hf_hook")


def replaced_forward(module: Any) -> Callable[..., Any] | None:
    """The function that replaces a module's own forward; None if none does."""
    forward: Callable[..., Any] | None = module.__dict__.get("forward")
    return forward


def replace_forward(module: Any, forward: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """Replace a module's forward (None: restore its own); returns the earlier replacement."""
    before = replaced_forward(module)
    module.__dict__.pop("forward", None)
    if forward is not None:
        module.__dict__["forward"] = forward
    return before


def keep_in_evaluation(module: Any) -> None:
    """Put a module in evaluation mode for good: `model.train()` no longer changes it."""
    module.eval()
    module.__dict__["train"] = types.MethodType(_stay, module)


def _stay(module: Any, *_: object) -> Any:
    return module


def has_onednn() -> bool:
    """Whether torch was built with oneDNN, and has the operation of `onednn_linear`."""
    torch = importlib.import_module("torch")  # not imported by those who use the rest of this module

    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """xWᵀ + bias by oneDNN in float32, without a gradient. torch has no public call of it: its switch
    `torch.backends.mkldnn.matmul.fp32_precision` allows bfloat16 where the processor has AMX."""
    torch = importlib.import_module("torch")

    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def keep_quantized_weights(model: Any) -> None:
    """Stop 4-bit layers from repacking their weights in evaluation mode: repacked weights have no gradient."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def adapters_set(layers: Iterable[Any], names: list[str]) -> Iterator[None]:
    """Compute with these adapters on PEFT's layers, without changing which parameters train."""
    require("peft")
    before = [(layer, layer._active_adapter) for layer in layers]
    for layer, _ in before:
        layer._active_adapter = list(names)
    try:
        yield
    finally:
        for layer, own in before:
            layer._active_adapter = own


@contextmanager
def adapters_off(layers: Iterable[Any]) -> Iterator[None]:
    """Compute without adapters on PEFT's layers, without changing which parameters train."""
    require("peft")
    before = [(layer, layer._disable_adapters) for layer in layers]
    for layer, _ in before:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, own in before:
            layer._disable_adapters = own


# --- processes and files


def compile_no_inference_kernel() -> None:
    """Empty DeepSpeed's table of communication kernels to compile; training's operators do not read it."""
    _load("deepspeed.ops").__compatible_ops__ = {}


def leave_inherited_endings() -> None:
    """In a fork: forget the parent's exit functions."""
    import atexit
    import weakref

    require("standard library")
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]


def run_endings() -> None:
    """In a fork: run its own exit functions, which `os._exit` would skip."""
    import atexit

    atexit._run_exitfuncs()


def gather_whole(loader: Any) -> None:
    """Let accelerate gather the whole last step of a loader. Otherwise it would cut the gathered figures to the
    remainder of rows ÷ rows per step, as though the rest belonged to repeated rows."""
    require("accelerate")
    loader._drop_last = True


def saved_files(state: Mapping[str, Any]) -> list[str]:
    """The names of the files in a folder of `Dataset.save_to_disk`, by its state.json.

    Raises:
        KeyError: the state does not name them.
    """
    return [str(file["filename"]) for file in state["_data_files"]]


# --- all of it


def main() -> None:
    """`python -m tiebreak.upstream`"""
    for package, tested in TESTED.items():
        print(f"{package} {installed(package)}, tested with {tested}")
    faults = [fault for names in NAMES.values() for name in names if (fault := fault_of(name))]
    print(*faults or ["every private name is as expected"], sep="\n")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()

"""One complete YAML file per stage, validated by a strict, frozen pydantic model; every key is also a flag.

    tiebreak dpo --config configs/quickstart/dpo.yaml --beta 0.2 --training.learning-rate 1e-5

Flags override the file before anything is validated, so that both meet the same standard: all errors are reported
together, each with its place, the allowed values and the nearest right key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from tiebreak.config.adapter import AdapterConfig as AdapterConfig
from tiebreak.config.flags import as_flag, group_flags, lay_over, nearest_path, path_of, repeated_lists
from tiebreak.config.keys import own_keys, plain_paths
from tiebreak.config.section import Section as Section
from tiebreak.config.yaml_files import lines_of
from tiebreak.config.yaml_files import read_yaml as read_yaml
from tiebreak.data.columns import check_columns
from tiebreak.errors import ConfigError, counted
from tiebreak.process.limit import seconds_of
from tiebreak.shipped import find_shipped


def refuse_unread(config: BaseModel, because: str, *keys: str) -> None:
    """For validators of a whole class: keys that are unused because of other keys must have their defaults.

    Raises:
        ValueError: names those that do not.
    """
    stated = [key for key in keys if getattr(config, key) != type(config).model_fields[key].default]
    if stated:
        raise ValueError(f"{', '.join(stated)}: {because}; leave {'them' if len(stated) > 1 else 'it'} out")


def check_duration(value: str | None) -> str | None:
    """A field's validator for durations."""
    if value is not None:
        seconds_of(value)
    return value


def refuse_dropout(adapter: AdapterConfig | None) -> AdapterConfig | None:
    """A field's validator for stages that train without dropout: TRL disables it there."""
    if adapter is not None and adapter.dropout:
        raise ValueError(
            "dropout: this stage trains without dropout, since policy and reference must be the same function; set "
            "dropout: 0, or adapter: null where the policy has an adapter"
        )
    return adapter


class LoadingConfig(Section):
    """How a model is loaded."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the GPU has it, float32 elsewhere"""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """attention kernel; auto: transformers' choice"""
    trust_remote_code: bool = False
    """run Python code that a hub model contains"""
    matrix_products: Literal["torch", "onednn"] = "torch"
    """onednn: float32 products on a CPU by oneDNN instead of torch's MKL, which leaves AVX-512 unused on AMD processors: an
    EPYC trains 1.4 times as fast. Sums are added in another order, so last digits differ"""

    @model_serializer(mode="wrap")
    def _as_first_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a key that the first versions lacked, at its default, so that old runs keep their identity."""
        values: dict[str, Any] = write(self)
        later = {"optimizer": "adamw", "matrix_products": "torch"}
        return {key: value for key, value in values.items() if (key, value) not in later.items()}


class OptimizerConfig(LoadingConfig):
    """How a model is loaded, and the steps of its training."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """random seed for the order of rows, new weights and all sampling"""
    learning_rate: float = Field(default=1e-4, gt=0)
    """peak learning rate, after the warm-up"""
    max_steps: int | None = Field(default=None, ge=1)
    """stop after this many optimizer steps; null: at the end of the epochs or rollouts"""
    per_device_batch_size: int = Field(default=8, ge=1)
    """rows per batch, on each process"""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """batches per optimizer step, on each process"""
    max_length_tokens: int = Field(default=512, ge=8)
    """longest row, prompt and completion together; longer rows are dropped and counted, never cut"""
    warmup_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """share of the steps in which the learning rate rises from 0"""
    lr_scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """how the learning rate falls after the warm-up"""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor"] = "adamw"
    """adamw_8bit: AdamW with 8-bit moments (Dettmers et al. 2022); paged_adamw, paged_adamw_8bit: moments move to CPU
    memory when GPU memory is full (GPU only); adafactor: a factored second moment (Shazeer and Stern 2018)"""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """weight decay of AdamW"""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """gradients with a larger norm are scaled down to it"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, more time"""
    tokens_per_pass: int | None = Field(default=None, ge=1)
    """tokens computed at once; a larger batch is computed in several passes, with the same gradient, so memory depends
    on this key and not on the batch. null: 640 on a CPU, 2,048 on a GPU"""
    eval_steps: int | None = Field(default=None, ge=1)
    """optimizer steps between evaluations on the validation split; null: only at the end"""
    save_steps: int = Field(default=50, ge=1)
    """optimizer steps between checkpoints; a killed run resumes from the last one"""


class TrainingConfig(OptimizerConfig):
    """How a model is loaded, and its training on rows of data."""

    epochs: float = Field(default=1.0, gt=0)
    """passes over the training data; max_steps overrides it"""
    logging_steps: int = Field(default=1, ge=1)
    """optimizer steps between rows of metrics"""
    eval_rows: int | None = Field(default=None, ge=1)
    """evaluate on at most this many rows of the validation split, always the same ones; null: on all"""


for _section in (LoadingConfig, OptimizerConfig):  # both were TrainingConfig once
    _section.retired = {
        name: field.default for name, field in TrainingConfig.model_fields.items() if name not in _section.model_fields
    }


SERVER_URL = r"^https?://[^/]+$"
"""pattern of a server's address: no path"""


class SamplingConfig(Section):
    """How completions are drawn."""

    temperature: float = Field(default=1.0, ge=0.0)
    """sampling temperature; 0: greedy"""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """sample from the likeliest tokens that together have this probability; 1: from all tokens"""
    top_k: int = Field(default=0, ge=0)
    """sample from this many of the likeliest tokens; 0: from all"""
    max_new_tokens: int = Field(default=128, ge=1)
    """longest completion; a longer one is cut off and counted as unfinished"""


Tracker = Literal["wandb", "trackio", "tensorboard", "mlflow"]


class TrackingConfig(Section):
    """Trackers receive a copy of what the run folder's metrics.jsonl holds."""

    report_to: list[Tracker] = ["wandb"]
    """trackers that receive the copy. trackio: TRACKIO_DIR, or the place that TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names;
    tensorboard: trackers/tensorboard/ in the run folder; mlflow: the server of MLFLOW_TRACKING_URI, otherwise mlruns/"""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online if the user has logged in to W&B, offline otherwise; the other trackers by their own variables.
    offline: nothing leaves the machine; disabled: no tracker receives anything"""
    project: str = "tiebreak"
    """W&B's and Trackio's project, MLflow's experiment"""
    group: str | None = None
    """W&B group of runs; `tiebreak run` sets one per recipe run"""
    tags: list[str] = []
    """W&B tags; `tiebreak run` adds the recipe's name"""
    completions: int = Field(default=4, ge=0)
    """held-out prompts that a policy in training answers before the first step and at every evaluation during training
    (training.eval_steps), for the table of completions; 0: none"""
    log_model: bool = False
    """also upload trained models, such as adapters, as files of the run's artifact"""


class ChatSettings(Section):
    """Settings by which conversations become text: a stage's, or those that a trained policy is pinned to."""

    chat_template: str | None = None
    template_arguments: dict[str, Any] = {}
    end_of_turn: list[str] = []
    thinking: Literal["keep", "drop", "mask"] = "keep"


def _run_of(value: Any) -> Any:
    if isinstance(value, list):
        return [_run_of(one) for one in value]
    if isinstance(value, dict):
        return {key: _run_of(one) for key, one in value.items()}
    if isinstance(value, str) and value.rstrip("/").endswith("/final"):
        run = Path(value).parent
        return str(run) if (run / "manifest.json").is_file() else value
    return value


class StageConfig(Section):
    """Keys of every stage."""

    kept_seeds: ClassVar[frozenset[str]] = frozenset()
    """seeds that `tiebreak run --seed` does not change"""
    printed: ClassVar[frozenset[str]] = frozenset()
    """keys that decide what is printed or when to stop, and no output: they are not part of a run's identity"""
    revisable: ClassVar[frozenset[str]] = frozenset()
    """keys that may change while the run is unfinished, since none of its outputs depend on them"""

    output: str
    """the folder that this stage writes; {trial} in it is replaced by the run's fingerprint, so that every trial of a
    sweep has its own folder"""
    tracking: TrackingConfig = TrackingConfig()
    """which trackers receive a copy of the run folder's metrics, and under which names"""
    _config_folder: Path | None = None
    _preflight_only: bool = False

    @property
    def preflight_only(self) -> bool:
        """Whether the command ends after its preflight (`--preflight-only`, which is not a key of a run)."""
        return self._preflight_only

    def for_preflight(self) -> Self:
        """The same configuration, of a command that ends after its preflight."""
        copy = self.model_copy()
        copy._preflight_only = True
        return copy

    @property
    def checks_when_finished(self) -> bool:
        """Whether the stage has something to check although its run is finished, so that a recipe does not skip it."""
        return False

    @property
    def trains(self) -> bool:
        """Whether the outputs depend on the number of processes."""
        return isinstance(getattr(self, "training", None), OptimizerConfig)

    @property
    def config_folder(self) -> Path | None:
        """The folder of the configuration file, where functions are looked for."""
        return self._config_folder

    @model_validator(mode="before")
    @classmethod
    def _runs_by_their_folder(cls, values: Any) -> Any:
        """RUN/final, as PEFT takes it, means RUN."""
        if not isinstance(values, dict):
            return values
        return {key: value if key == "output" else _run_of(value) for key, value in values.items()}

    def template_file(self) -> Path | None:
        """The file of its chat template, whose content is part of a run's identity; None if it has none."""
        return None

    def further_inputs(self) -> dict[str, str]:
        """Inputs that parts of its keys name, by name in the manifest."""
        return {}

    def function_names(self) -> dict[str, str]:
        """The user's functions that the stage calls, each as module:function, by role."""
        return {}


class RenderingConfig(StageConfig):
    """Configuration of stages that render conversations. A trained policy is used with the settings it was trained with."""

    chat_template: str | None = None
    """a .jinja file, or the name of one of the tokenizer's or TRL's templates; null: the model's own"""
    template_arguments: dict[str, Any] = {}
    """arguments of the chat template, such as {enable_thinking: false}"""
    end_of_turn: list[str] = []
    """tokens that end an answer; empty: the template's end token, and those that the model's files name"""

    @property
    def chat(self) -> ChatSettings | None:
        """The settings; None: the model's own."""
        stated = {key: value for key in ChatSettings.model_fields if (value := getattr(self, key, None))}
        if file := self.template_file():
            stated["chat_template"] = str(file)
        return ChatSettings(**stated) if stated else None

    def template_file(self) -> Path | None:
        """The file of `chat_template`, in the current folder or beside the configuration; None if it is not a file."""
        folders = [Path(), *([self.config_folder] if self.config_folder else [])]
        named = [folder / self.chat_template for folder in folders if self.chat_template]
        return next((file for file in named if file.is_file()), None)


class ThinkingConfig(RenderingConfig):
    """Configuration of stages that train on thoughts, or store them for training."""

    thinking: Literal["keep", "drop", "mask"] | None = None
    """thoughts before answers (reasoning_content, or <think>…</think>). keep: train on them; drop: remove them; mask:
    keep them without training on them (in reward training, the same as keep: a score is for the whole answer); null:
    the policy's setting, else keep"""


class ReadingConfig(StageConfig):
    """Configuration of stages that read data. `tiebreak data FILE` shows how a file is read."""

    columns: dict[str, str | None] = {}
    """columns with other names: Tiebreak's name, then the data's, such as {prompt: question, message.content: text};
    null: ignore the column"""
    on_bad_row: Literal["refuse", "drop"] = "refuse"
    """refuse: stop at rows that cannot be used, listing all of them; drop: leave them out, count them, and list them in
    bad_rows.jsonl"""

    @field_validator("columns")
    @classmethod
    def _of_ours(cls, columns: dict[str, str | None]) -> dict[str, str | None]:
        check_columns(columns)
        return columns


class SplittingConfig(ReadingConfig):
    """Keys of stages that read rows of several splits."""

    validation_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """share to hold out of the prompts whose rows name no split; every stage holds out the same ones"""


C = TypeVar("C", bound=Section)


@dataclass(frozen=True)
class Fault:
    """An error in a key, given by its path; without a path, an error of several keys together."""

    where: str
    what: str


def load_config(model: type[C], arguments: Sequence[str], command: str) -> C:
    """The configuration from `arguments` (`--config FILE [--key value …]`).

    Raises:
        ConfigError: with every error of the file and the flags.
    """
    path, flags = take_config_flag(arguments, command)
    values = read_yaml(path) if path else {}
    faults = list(_unknown_keys(values, model))
    given = list(group_flags(flags))
    wrong = [f"--{flag}: {fault}" for flag, words in given if (fault := lay_over(values, model, flag, words))]
    wrong += repeated_lists(model, given)
    try:
        config = model.model_validate(_filled(_without_unknown(values, model), model))
    except ValidationError as error:
        faults += [_explain(fault, with_file=path is not None) for fault in error.errors(include_url=False)]
    if faults or wrong:
        lines = lines_of(path) if path else {}
        flagged = {path_of(model, flag, words) for flag, words in given}
        listed = [*(_locate(fault, lines, flagged) for fault in faults), *wrong]
        raise ConfigError(_list_faults(str(path or "the command line"), listed, command))
    if path is not None and isinstance(config, StageConfig):
        config._config_folder = find_shipped(path).parent
    return config


def _list_faults(origin: str, faults: Sequence[str], command: str) -> str:
    return "\n".join(
        [
            f"{origin}: {counted(len(faults), 'error')}",
            *(f"  {fault}" for fault in faults),
            f"  all keys: tiebreak {command} --help",
        ]
    )


def _locate(fault: Fault, lines: Mapping[str, int], flags: set[str]) -> str:
    """An error with its place: the flag, or the line of the file."""
    if not fault.where:
        return fault.what
    if any(fault.where == flag or fault.where.startswith(f"{flag}.") for flag in flags):
        return f"{as_flag(fault.where)}: {fault.what}"
    line = next((lines[at] for at in _upwards(fault.where) if at in lines), None)
    return f"{f'line {line}: ' if line else ''}{fault.where}: {fault.what}"


def _upwards(path: str) -> Iterator[str]:
    """A key's path and those of its parents."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def dump_config(config: BaseModel) -> str:
    """The resolved configuration as YAML, with every key."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def take_config_flag(arguments: Sequence[str], command: str) -> tuple[Path | None, list[str]]:
    """The file that `--config` names, if any, and the other words."""
    rest, path, index = [], None, 0
    while index < len(arguments):
        word = arguments[index]
        if word == "--config":
            if index + 1 == len(arguments):
                raise ConfigError(f"--config needs a file: tiebreak {command} --config FILE")
            path, index = Path(arguments[index + 1]), index + 2
        elif word.startswith("--config="):
            path, index = Path(word.removeprefix("--config=")), index + 1
        else:
            rest.append(word)
            index += 1
    return path, rest


def _unknown_keys(values: dict[str, Any], model: type[BaseModel], prefix: str = "") -> Iterator[Fault]:
    keys = {key.path: key for key in own_keys(model)}
    for name, value in values.items():
        key = keys.get(name)
        if key is None and name in getattr(model, "retired", {}):
            if value != model.retired[name]:  # type: ignore[attr-defined]
                yield Fault(f"{prefix}{name}", "this stage does not read it; leave it out")
        elif key is None:
            yield Fault(f"{prefix}{name}", f"no such key{_nearest(name, model, prefix)}")
        elif key.section is not None and isinstance(value, dict):
            yield from _unknown_keys(value, key.section, f"{prefix}{name}.")
        elif key.item_section is not None and isinstance(value, list):
            for index, entry in enumerate(value):
                if isinstance(entry, dict):
                    yield from _unknown_keys(entry, key.item_section, f"{prefix}{name}.{index}.")


def _without_unknown(values: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """`values` without the unknown keys, which are already reported with the nearest right one."""
    keys = {key.path: key for key in own_keys(model)}
    kept = {}
    for name, value in values.items():
        key = keys.get(name)
        if key is None:
            continue
        if key.section is not None and isinstance(value, dict):
            value = _without_unknown(value, key.section)
        elif key.item_section is not None and isinstance(value, list):
            value = [_without_unknown(one, key.item_section) if isinstance(one, dict) else one for one in value]
        kept[name] = value
    return kept


def _filled(values: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """`values`, with the sections among them completed by the stage's own defaults: setting one key of `training` must not
    reset its other keys to another stage's defaults."""
    filled = dict(values)
    for key in own_keys(model):
        value = values.get(key.path)
        if key.section is not None and isinstance(value, dict):
            stated = key.default.model_dump(exclude_unset=True) if isinstance(key.default, Section) else {}
            filled[key.path] = _filled(stated | value, key.section)
    return filled


def _nearest(name: str, model: type[BaseModel], prefix: str) -> str:
    near = nearest_path(name, plain_paths(model))
    here = ", ".join(key.path for key in own_keys(model))
    return f"; did you mean {prefix}{near}?" if near else f"; the keys here are {here}"


def _explain(fault: Any, with_file: bool) -> Fault:
    where = ".".join(str(part) for part in fault["loc"] if part not in ("str", "list[str]"))
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "missing":
        return Fault(where, f"missing; {'add it to the file or ' if with_file else ''}give {as_flag(where)}")
    if where:
        message = f"{message[0].lower()}{message[1:]}"
    return Fault(
        where,
        message if not where or isinstance(fault["input"], dict) else f"{message}, not {_shortened(fault['input'])}",
    )


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


LONGEST_VALUE = 300
"""characters of a wrong value that an error shows"""

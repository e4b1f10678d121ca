"""One complete YAML file a stage, checked by a strict, frozen pydantic model; every key is also a flag.

    tiebreak dpo --config configs/quickstart/dpo.yaml --beta 0.2 --training.learning-rate 1e-5

Flags are laid over the file before anything is checked, so that both are held to one standard: all faults are listed
together, each with its place, what was allowed and the nearest right key.
"""

from __future__ import annotations

import difflib
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from tiebreak.errors import ConfigError


class Section(BaseModel):
    """A frozen part of a configuration that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """YAML's `true` is no 1: pydantic would take it for one."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        options = typing.get_args(annotation) or (annotation,)
        if isinstance(value, bool) and bool not in options and not {int, float}.isdisjoint(options):
            raise ValueError("must be a number")
        return value


class AdapterConfig(Section):
    """The LoRA adapter (Hu et al. 2021). A policy that has one already is continued with its own; see `method`."""

    method: Literal["lora", "qlora"] = "lora"
    """lora, or qlora: the base weights in bitsandbytes NF4 (Dettmers et al. 2023)"""
    r: int = Field(default=16, ge=1)
    """rank of the update"""
    alpha: int = Field(default=32, ge=1)
    """the update is scaled by alpha / r"""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """of the adapter's input, in SFT alone: the other stages compare the policy with itself as it was"""
    target_modules: str | list[str] = "all-linear"
    """module names to adapt, or all-linear: every linear layer but the head"""

    @field_validator("target_modules")
    @classmethod
    def _some(cls, names: str | list[str]) -> str | list[str]:
        if not names or (isinstance(names, list) and "" in names):
            raise ValueError("name the modules to adapt, or give all-linear")
        if isinstance(names, list) and "all-linear" in names:
            raise ValueError("all-linear is given by itself, not in a list")
        return names


def refuse_dropout(adapter: AdapterConfig | None) -> AdapterConfig | None:
    """A field's validator, for stages that train without dropout: TRL switches it off there."""
    if adapter is not None and adapter.dropout:
        raise ValueError(
            "dropout: this stage trains without dropout, as policy and reference must be one function; set dropout: 0, or "
            "adapter: null where the policy has an adapter"
        )
    return adapter


class TrainingConfig(Section):
    """What every trained stage shares; one row of metrics is logged every `logging_steps` optimizer steps."""

    seed: int = Field(default=0, ge=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    """optimizer steps; overrides epochs"""
    per_device_batch_size: int = Field(default=8, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    max_length_tokens: int = Field(default=512, ge=8)
    """prompt and completion together; what is longer is dropped and counted, never cut"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the GPU has it, float32 elsewhere"""
    warmup_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """share of the steps in which the learning rate rises from 0"""
    lr_scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    weight_decay: float = Field(default=0.0, ge=0.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    gradient_checkpointing: bool = False
    tokens_per_pass: int | None = Field(default=None, ge=1)
    """a batch with more tokens is computed in several passes, to the same gradient: memory follows this key. null: 640
    on the CPU, 2,048 on a GPU"""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    logging_steps: int = Field(default=1, ge=1)
    eval_steps: int | None = Field(default=None, ge=1)
    """evaluate on the validation split every so many optimizer steps, and at the end; null: at the end alone"""
    eval_rows: int | None = Field(default=None, ge=1)
    """evaluate on at most so many rows of the validation split, always the same; null: on all of them"""
    save_steps: int = Field(default=50, ge=1)
    """write a checkpoint every so many optimizer steps; a killed run goes on from the last one"""
    trust_remote_code: bool = False
    """run Python code that a hub model brings along"""


class SamplingConfig(Section):
    """How completions are drawn."""

    temperature: float = Field(default=1.0, ge=0.0)
    """0: greedy"""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    """0: no limit"""
    max_new_tokens: int = Field(default=128, ge=1)


class TrackingConfig(Section):
    """W&B. The truth is the run folder's metrics.jsonl; W&B receives a copy."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online if the user has logged in to W&B, offline otherwise"""
    project: str = "tiebreak"
    group: str | None = None
    """runs compared together; `tiebreak run` sets one a pipeline run"""
    tags: list[str] = []


class StageConfig(Section):
    """What every stage's configuration has."""

    trains: ClassVar[bool] = False
    """whether the number of processes is part of what the stage makes"""
    kept_seeds: ClassVar[frozenset[str]] = frozenset()
    """seeds that `tiebreak run --seed` leaves as they are"""
    revisable: ClassVar[frozenset[str]] = frozenset()
    """keys that may change while the run is unfinished, as nothing that it keeps rests on them"""

    output: str
    """the folder this stage writes; {trial} in it stands for the run's fingerprint, so that every trial of a sweep has a
    folder of its own"""
    tracking: TrackingConfig = TrackingConfig()
    _config_folder: Path | None = None

    @property
    def config_folder(self) -> Path | None:
        """The folder of the file that it was read from, where functions are looked for."""
        return self._config_folder

    def input_sources(self) -> dict[str, str]:
        """What the stage reads, by a name for each: run folders, files, models, hub data."""
        return {}

    def function_names(self) -> dict[str, str]:
        """The user's functions that the stage calls, each as module:function, by a name for each."""
        return {}


C = TypeVar("C", bound=Section)


def load_config(model: type[C], arguments: Sequence[str], command: str) -> C:
    """The configuration that `arguments` (`--config FILE [--key value …]`) name.

    Raises:
        ConfigError: with every fault of the file and the flags.
    """
    if "--help" in arguments or "-h" in arguments:
        print_help(model, arguments, command)
        raise SystemExit(0)
    path, flags = _take_config_flag(arguments, command)
    values = read_yaml(path) if path else {}
    faults = list(_unknown_keys(values, model))
    origin = f"{path}" if path else "the command line"
    for key, words in _group_flags(flags):
        fault = _lay_over(values, model, key, words)
        if fault:
            faults.append(fault)
    try:
        config = model.model_validate(_filled(_without_unknown(values, model), model))
    except ValidationError as error:
        faults += [_explain(fault) for fault in error.errors(include_url=False)]
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise ConfigError(f"{origin}: {len(faults)} fault(s)\n{listed}\n  all keys: tiebreak {command} --help")
    if path is not None and isinstance(config, StageConfig):
        config._config_folder = path.parent
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; errors name the file and the line."""
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        raise ConfigError(
            f"no such configuration file: {path}" + (f"; is it {path.parent / near[0]}?" if near else "")
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{path}: must be a mapping of keys to values")
    return value


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice: YAML would let the last one win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                told = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, told, key.start_mark)
        return super().construct_mapping(node, deep)


def dump_config(config: BaseModel) -> str:
    """The resolved configuration as YAML, every key written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def print_help(model: type[C], arguments: Sequence[str], command: str) -> None:
    """Every key as a flag, with its type, and its default or the file's value where `--config` names one."""
    import tyro

    path, _ = _take_config_flag([a for a in arguments if a not in ("--help", "-h")], command)
    values = _filled(_without_unknown(read_yaml(path), model), model) if path else {}
    tyro.cli(
        model,
        default=_unchecked(model, values),
        args=["--help"],
        prog=f"tiebreak {command} --config FILE",
        config=(tyro.conf.AvoidSubcommands,),
    )


def _unchecked(model: type[C], values: dict[str, Any]) -> C:
    import tyro

    filled: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        section = _section_of(field.annotation)
        if section is not None and isinstance(values.get(name), dict):
            filled[name] = _unchecked(section, values[name])
        elif name in values:
            filled[name] = values[name]
        else:
            filled[name] = tyro.MISSING if field.is_required() else field.get_default(call_default_factory=True)
    return model.model_construct(**filled)


def _take_config_flag(arguments: Sequence[str], command: str) -> tuple[Path | None, list[str]]:
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


def _group_flags(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """`--a.b 1 --c x y` as (a.b, [1]) and (c, [x, y]). A negative number is a value, not a flag."""
    key: str | None = None
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            if key is not None:
                yield key, values
            key, _, value = word[2:].partition("=")
            values = [value] if value else []
        elif key is None:
            raise ConfigError(f"unexpected argument {word!r}: keys are given as --key value")
        else:
            values.append(word)
    if key is not None:
        yield key, values


def _lay_over(values: dict[str, Any], model: type[Section], key: str, words: list[str]) -> str | None:
    """Write one flag into `values`; returns the fault, if there is one."""
    known = list(_all_keys(model))
    if key.replace("-", "_") in known:
        key = key.replace("-", "_")
    elif not _inside_mapping(model, key):
        return f"--{key}: no such key{_nearest(key.replace('-', '_'), known)}"
    if not words:
        return f"--{key}: needs a value"
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        values[section] = dict(inner) if isinstance(inner, dict) else {}
        values = values[section]
    parsed = [_parse_word(word, is_text=_is_text(model, key)) for word in words]
    values[last] = (
        parsed if len(parsed) > 1 or (_is_list(model, key) and not isinstance(parsed[0], list)) else parsed[0]
    )
    return None


def _is_list(model: type[Section], key: str) -> bool:
    """Whether a key takes a list, so that one word for it is a list of one."""
    name, _, rest = key.partition(".")
    field = model.model_fields.get(name)
    section = _section_of(field.annotation) if field else None
    if rest:
        return section is not None and _is_list(section, rest)
    return field is not None and typing.get_origin(field.annotation) is list


def _is_text(model: type[Section], key: str) -> bool:
    """Whether a key takes text, so that a word for it is taken as it stands: `--guideline-version 2` is no number."""
    name, _, rest = key.partition(".")
    field = model.model_fields.get(name)
    if field is None:
        return False
    section = _section_of(field.annotation)
    if rest and section is not None:
        return _is_text(section, rest)
    options = typing.get_args(field.annotation) or (field.annotation,)
    return options[-1] is str or set(options) <= {str, types.NoneType, list[str]}


def _parse_word(word: str, is_text: bool = False) -> Any:
    if is_text and not word.startswith(("[", "{")) and word not in ("null", "None", "~"):
        return word
    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError:
        return word
    return None if word == "None" else word if isinstance(value, (dict,)) and not word.startswith("{") else value


def _section_of(annotation: Any) -> type[Section] | None:
    """The Section behind `Section` or `Section | None`."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    for option in options:
        if isinstance(option, type) and issubclass(option, Section):
            return option
    return None


def _item_section(annotation: Any) -> type[Section] | None:
    """The Section inside `list[Section]`."""
    if typing.get_origin(annotation) is list:
        return _section_of(typing.get_args(annotation)[0])
    return None


def _all_keys(model: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = _section_of(field.annotation)
        yield prefix + name
        if section is not None:
            yield from _all_keys(section, f"{prefix}{name}.")


def _inside_mapping(model: type[Section], key: str) -> bool:
    name, _, rest = key.partition(".")
    field = model.model_fields.get(name)
    if field is None or not rest:
        return False
    section = _section_of(field.annotation)
    return _inside_mapping(section, rest) if section else typing.get_origin(field.annotation) is dict


def _unknown_keys(values: dict[str, Any], model: type[Section], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            yield f"{prefix}{key}: no such key{_nearest(key, list(_all_keys(model)), prefix)}"
            continue
        section, item = _section_of(field.annotation), _item_section(field.annotation)
        if section is not None and isinstance(value, dict):
            yield from _unknown_keys(value, section, f"{prefix}{key}.")
        if item is not None and isinstance(value, list):
            for index, entry in enumerate(value):
                if isinstance(entry, dict):
                    yield from _unknown_keys(entry, item, f"{prefix}{key}.{index}.")


def _without_unknown(values: dict[str, Any], model: type[Section]) -> dict[str, Any]:
    """`values` less the unknown keys, which are reported already, with the nearest right one beside them."""
    kept = {}
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            continue
        section, item = _section_of(field.annotation), _item_section(field.annotation)
        if section is not None and isinstance(value, dict):
            value = _without_unknown(value, section)
        elif item is not None and isinstance(value, list):
            value = [_without_unknown(entry, item) if isinstance(entry, dict) else entry for entry in value]
        kept[key] = value
    return kept


def _filled(values: dict[str, Any], model: type[Section]) -> dict[str, Any]:
    """`values`, the sections among them completed with the stage's own defaults: naming one key of `training` must not
    reset its other keys to what another stage would take."""
    filled = dict(values)
    for name, field in model.model_fields.items():
        section, value = _section_of(field.annotation), values.get(name)
        if section is not None and isinstance(value, dict):
            default = field.get_default(call_default_factory=True)
            stated = default.model_dump(exclude_unset=True) if isinstance(default, Section) else {}
            filled[name] = _filled(stated | value, section)
    return filled


def _nearest(key: str, known: Sequence[str], prefix: str = "") -> str:
    near = [k for k in known if k.endswith(f".{key}")][:1] or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    here = ", ".join(k for k in known if "." not in k)
    return f"; did you mean {prefix}{near[0]}?" if near else f"; known here: {here}"


def _explain(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"] if part not in ("str", "list[str]"))
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "missing":
        return f"{where}: missing; add it to the file or give --{where}"
    if not where:
        return message
    if isinstance(fault["input"], dict):
        return f"{where}: {message[0].lower()}{message[1:]}"
    return f"{where}: {message[0].lower()}{message[1:]}, not {fault['input']!r}"


def arguments_of_process() -> list[str]:
    """The words after the program's name."""
    return sys.argv[1:]

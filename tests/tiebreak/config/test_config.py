"""Configuration: every fault at once, flags over files, and the files that the repository ships."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import Field, ValidationError, model_validator
from support import REPOSITORY

from tiebreak.command.table import COMMANDS
from tiebreak.config import Section, StageConfig, TrainingConfig, dump_config, load_config, read_yaml, yaml_files
from tiebreak.errors import ConfigError


class Draw(Section):
    """An entry of a list."""

    temperature: float = 1.0
    top_k: int = Field(default=0, ge=0)


class Needy(Section):
    """A section with a key that it needs."""

    reward_model: str
    patience: int = 1


class StudyConfig(StageConfig):
    """A stage with a key of every kind."""

    beta: float = Field(default=0.1, gt=0)
    title: str = "Study"
    splits: list[Literal["train", "validation", "test"]] = Field(default=["train"])
    notes: list[str] = Field(default=[])
    modules: str | list[str] = "all-linear"
    policies: dict[str, str] = Field(default={})
    columns: dict[str, str | None] = Field(default={})
    draws: list[Draw] = Field(default=[Draw()])
    max_prompts: int | None = Field(default=None, ge=1)
    offset: float = 0.0
    training: TrainingConfig = TrainingConfig(learning_rate=3e-6, warmup_share=0.0)
    spare: TrainingConfig | None = None

    @model_validator(mode="after")
    def _possible(self) -> StudyConfig:
        if self.title == "impossible":
            raise ValueError("title: impossible cannot be had with anything")
        return self


def load(folder: Path, text: str, *flags: str) -> StudyConfig:
    file = folder / "study.yaml"
    file.write_text(text)
    return load_config(StudyConfig, ["--config", str(file), *flags], "study")


def faults_of(folder: Path, text: str, *flags: str) -> list[str]:
    """The listed faults, without the frame around them."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *flags)
    first, *faults, last = str(caught.value).splitlines()
    count = f"{len(faults)} errors" if len(faults) > 1 else "1 error"
    assert first == f"{folder / 'study.yaml'}: {count}"
    assert last == "  all keys: tiebreak study --help"
    return [fault.strip() for fault in faults]


def test_all_faults_are_listed_at_once_with_their_places_and_the_nearest_keys(tmp_path: Path) -> None:
    text = """
        betta: 0.2
        learning_rate: 0.1
        splits: [train, dev]
        training: {learning_rat: 0.1, seed: minus one, epochs: 0}
        draws: [{temprature: 2}, {top_k: -1}]
    """
    faults = faults_of(tmp_path, text, "--bta", "3", "--max-prompts", "0", "--title")
    assert "line 2: betta: no such key; did you mean beta?" in faults
    assert "line 3: learning_rate: no such key; did you mean training.learning_rate?" in faults
    assert "line 5: training.learning_rat: no such key; did you mean training.learning_rate?" in faults
    assert "line 6: draws.0.temprature: no such key; did you mean draws.0.temperature?" in faults
    assert "--bta: no such key; did you mean --beta?" in faults
    assert "--title: needs a value" in faults
    assert "output: missing; add it to the file or give --output" in faults
    assert "line 4: splits.1: input should be 'train', 'validation' or 'test', not 'dev'" in faults
    assert "line 5: training.epochs: input should be greater than 0, not 0" in faults
    assert "line 6: draws.1.top_k: input should be greater than or equal to 0, not -1" in faults
    assert "--max-prompts: input should be greater than or equal to 1, not 0" in faults
    assert any(f.startswith("line 5: training.seed: ") and f.endswith("not 'minus one'") for f in faults)
    assert len(faults) == 12


def test_faults_without_a_file_name_the_flag_to_give() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(StudyConfig, ["--training.seed", "-1"], "study")
    assert str(caught.value).splitlines() == [
        "the command line: 2 errors",
        "  output: missing; give --output",
        "  --training.seed: input should be greater than or equal to 0, not -1",
        "  all keys: tiebreak study --help",
    ]
    with pytest.raises(ConfigError, match="seed: input should be less than 4294967296, not 4294967296"):
        load_config(StudyConfig, ["--output", "x", "--training.seed", str(2**32)], "study")  # as NumPy takes it


def test_a_missing_key_of_a_section_is_at_the_sections_line(tmp_path: Path) -> None:
    class Guarded(StageConfig):
        guard: Needy | None = None

    file = tmp_path / "guarded.yaml"
    file.write_text("output: out\nguard:\n  patience: 2\n")
    with pytest.raises(ConfigError, match=r"line 2: guard\.reward_model: missing; add .* give --guard\.reward-model"):
        load_config(Guarded, ["--config", str(file)], "study")


def test_a_key_like_no_other_is_answered_with_those_there_are(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, "output: out\nzzzzzz: 1\n")
    assert fault.startswith("line 2: zzzzzz: no such key; the keys here are output, tracking, beta")


@pytest.mark.parametrize("value", ["true", ".inf", ".nan", "fast"])
@pytest.mark.parametrize("key", ["beta", "training.learning_rate"])
def test_what_is_no_finite_number_is_refused(tmp_path: Path, key: str, value: str) -> None:
    section, _, leaf = key.rpartition(".")
    line = f"{section}: {{{leaf}: {value}}}" if section else f"{leaf}: {value}"
    (fault,) = faults_of(tmp_path, f"output: out\n{line}\n")
    assert fault.startswith(f"line 2: {key}: ")
    (fault,) = faults_of(tmp_path, "output: out\n", f"--{key}", value)
    assert fault.startswith(f"--{key.replace('_', '-')}: ")


def test_a_switch_takes_true_and_false_alone(tmp_path: Path) -> None:
    for words in (["true"], []):  # a switch alone is true
        config = load(tmp_path, "output: out\n", "--training.gradient-checkpointing", *words, "--beta", "0.3")
        assert (config.training.gradient_checkpointing, config.beta) == (True, 0.3)
    (fault,) = faults_of(tmp_path, "output: out\n", "--no-training.gradient-checkpointing")
    assert fault.startswith("--no-training.gradient-checkpointing: no such key")
    (fault,) = faults_of(tmp_path, "output: out\n", "--training.no-gradient-checkpointing")
    assert fault == ("--training.no-gradient-checkpointing: no such key; give --training.gradient-checkpointing false")
    (fault,) = faults_of(tmp_path, "output: out\ntraining: {gradient_checkpointing: 7}\n")
    assert fault.startswith("line 2: training.gradient_checkpointing: ")


def test_an_impossible_combination_is_a_fault_like_the_others(tmp_path: Path) -> None:
    assert faults_of(tmp_path, "output: out\ntitle: impossible\n") == ["title: impossible cannot be had with anything"]


def test_flags_lie_over_the_file(tmp_path: Path) -> None:
    text = "output: out\nbeta: 0.5\ntraining: {seed: 4, epochs: 3}\nnotes: [one, two]\n"
    config = load(
        tmp_path, text, "--beta=0.25", "--training.seed", "9", "--notes", "three", "--max-prompts", "12",
        "--offset", "-1.5", "--splits", "train", "test", "--policies.my-base", "bundled:a",
        "--training.learning-rate", "1e-5",
    )  # fmt: skip
    assert (config.beta, config.training.seed, config.training.epochs) == (0.25, 9, 3)
    assert config.notes == ["three"]
    assert (config.max_prompts, config.offset) == (12, -1.5)
    assert config.splits == ["train", "test"]
    assert config.policies == {"my-base": "bundled:a"}
    assert config.training.learning_rate == 1e-5


def test_lists_of_one_null_and_whole_values(tmp_path: Path) -> None:
    text = "output: out\nmax_prompts: 3\nspare: {seed: 1}\nmodules: [q_proj, v_proj]\n"
    config = load(tmp_path, text, "--splits", "test", "--max-prompts", "null", "--spare", "None", "--modules", "q_proj")
    assert (config.splits, config.max_prompts, config.spare, config.modules) == (["test"], None, None, "q_proj")
    config = load(tmp_path, text, "--splits", "[train, test]", "--draws", "{temperature: 0.5}", "--spare.seed", "7")
    assert config.splits == ["train", "test"]
    assert config.draws == [Draw(temperature=0.5)]
    assert config.spare is not None
    assert config.spare.seed == 7


def test_a_list_in_two_flags_is_refused(tmp_path: Path) -> None:
    """Only the last would count, and the rest be lost without a word; a single value can be given again."""
    words = ["--output", str(tmp_path), "--notes", "a", "--notes=b", "--beta", "0.1", "--beta", "0.2"]
    with pytest.raises(ConfigError, match=r"--notes: given 2 times: give all of its values at once, as --notes A B"):
        load_config(StudyConfig, words, "study")
    once = load_config(StudyConfig, [*words[:2], "--notes", "a", "b", *words[5:]], "study")
    assert (once.notes, once.beta) == (["a", "b"], 0.2)


def test_an_entry_of_a_list_is_laid_over_by_its_number(tmp_path: Path) -> None:
    text = "output: out\ndraws: [{temperature: 0.5, top_k: 3}, {top_k: 4}]\n"
    config = load(tmp_path, text, "--draws.0.top-k", "7", "--draws.2.temperature", "0.9")
    assert config.draws == [Draw(temperature=0.5, top_k=7), Draw(top_k=4), Draw(temperature=0.9)]
    assert load(tmp_path, "output: out\n", "--draws.0.top-k", "7").draws == [Draw(top_k=7)]  # the default's entry
    (fault,) = faults_of(tmp_path, text, "--draws.5.top-k", "7")
    assert fault == "--draws.5.top-k: draws has 2 entries, so the next is number 2"
    (fault,) = faults_of(tmp_path, text, "--draws.1.top-k", "-7")
    assert fault == "--draws.1.top-k: input should be greater than or equal to 0, not -7"


def test_an_empty_word_is_empty_text_and_no_number(tmp_path: Path) -> None:
    assert load(tmp_path, "output: out\n", "--title=").title == ""
    assert faults_of(tmp_path, "output: out\n", "--beta=") == ["--beta: needs a value"]


def test_a_word_for_a_text_key_is_text(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "output: out\n",
        "--title",
        "2",
        "--notes",
        "1",
        "no",
        "2026-01-01",
        "--output",
        "2026",
        "--policies.a",
        "7",
        "--columns.prompt",
        "0",
        "--columns.kind",
        "null",
    )
    assert (config.title, config.output, config.policies) == ("2", "2026", {"a": "7"})
    assert config.columns == {"prompt": "0", "kind": None}
    assert config.notes == ["1", "no", "2026-01-01"]


def test_naming_one_key_of_a_section_leaves_the_stages_own_defaults(tmp_path: Path) -> None:
    for config in (
        load(tmp_path, "output: out\ntraining: {seed: 3}\n"),
        load(tmp_path, "output: out\n", "--training.seed", "3"),
    ):
        assert config.training == TrainingConfig(learning_rate=3e-6, warmup_share=0.0, seed=3)


def test_a_configuration_is_frozen(tmp_path: Path) -> None:
    config = load(tmp_path, "output: out\n")
    with pytest.raises(ValidationError, match="frozen"):
        config.beta = 3.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.training.seed = 3  # type: ignore[misc]


def test_the_resolved_file_is_whole_and_loads_as_the_same(tmp_path: Path) -> None:
    config = load(tmp_path, "output: out\ntraining: {seed: 3}\nnotes: ['2', 'no']\n")
    text = dump_config(config)
    assert load(tmp_path, text) == config
    assert set(yaml.safe_load(text)) == set(StudyConfig.model_fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta: 0.1\ntitle: a\nbeta: 0.2\n", "the key 'beta' is given twice"),
        ("training:\n  seed: 1\n  seed: 2\n", "the key 'seed' is given twice"),
        ("beta: [0.1\n", "line 2"),
        ("- beta\n", "must be a mapping"),
        ("1: beta\n", "must be a mapping"),
    ],
)
def test_a_broken_file_is_named_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read_yaml(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_file_that_expands_without_bound_is_refused(tmp_path: Path) -> None:
    """Nine lists of nine aliases expand to 9 to the 9th values; an alias inside its own anchor expands without end."""
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]
    file = tmp_path / "bomb.yaml"
    for text, message in (
        ("\n".join(lines), "invalid YAML: its aliases expand to more than 100,000 values"),
        ("a: &a [*a]", "nested too deeply, or an alias (*) is inside its own anchor (&)"),
        ("a: &a {b: *a}", "nested too deeply, or an alias (*) is inside its own anchor (&)"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=re.escape(f"{file}: {message}")):
            read_yaml(file)
    file.write_text("\n".join([*lines[:3], "b: *a2"]))
    assert read_yaml(file)["b"] == [[["x"]] * 9] * 9
    file.write_text("".join(f"k{n}: 1\n" for n in range(2000)))
    assert len(read_yaml(file)) == 2000


def test_a_device_is_no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_files, "LARGEST_BYTES", 1024)
    with pytest.raises(ConfigError, match="/dev/zero: larger than 0 MB, so it is no configuration"):
        read_yaml(Path("/dev/zero"))


def test_a_missing_file_is_answered_with_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "dpo.yaml").write_text("output: out\n")
    with pytest.raises(ConfigError, match=r"quickstart is a folder: name a file in it: .*dpo\.yaml"):
        read_yaml(REPOSITORY / "configs" / "quickstart")
    with pytest.raises(ConfigError, match=r"no such configuration file: .*dop\.yaml; is it .*/dpo\.yaml\?"):
        load_config(StudyConfig, ["--config", str(tmp_path / "dop.yaml")], "study")


def test_stray_words_and_a_config_flag_without_a_file() -> None:
    with pytest.raises(ConfigError, match="unexpected argument 'beta'"):
        load_config(StudyConfig, ["beta", "3"], "study")
    with pytest.raises(ConfigError, match="--config needs a file"):
        load_config(StudyConfig, ["--config"], "study")


# --- the files that the repository ships ------------------------------------------------------------------------------

STAGE_FILES = sorted(
    p for p in (REPOSITORY / "configs").glob("**/*.yaml") if p.parent.name not in ("accelerate", "gates")
)
ACCELERATE_FILES = sorted((REPOSITORY / "configs" / "accelerate").glob("*.yaml"))


def test_there_are_files_to_check() -> None:
    assert {"pipeline", "prepare", "sft", "sample", "label", "reward", "dpo", "ppo", "evaluate", "compare"} <= {
        p.stem for p in STAGE_FILES
    }
    assert len(ACCELERATE_FILES) >= 8


@pytest.mark.parametrize("file", STAGE_FILES, ids=lambda p: str(p.relative_to(REPOSITORY / "configs")))
def test_every_file_opens_with_its_command_and_loads(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    relative = file.relative_to(REPOSITORY)
    opening = file.read_text().splitlines()[0]
    found = re.match(r"# tiebreak (\w+) --config (\S+)", opening)
    assert found, f"{relative} does not open with the command that runs it: {opening!r}"
    assert found[2] == str(relative)
    assert found[1] in COMMANDS
    load_config(_config_class(found[1]), ["--config", str(relative)], found[1])


def _config_class(command: str) -> Any:
    from tiebreak.command.pipeline import PipelineConfig, config_class
    from tiebreak.rounds.configuration import RoundsConfig

    recipes: dict[str, Any] = {"run": PipelineConfig, "rounds": RoundsConfig}
    return recipes.get(command) or config_class(command)


@pytest.mark.parametrize("file", ACCELERATE_FILES, ids=lambda p: p.stem)
def test_accelerate_reads_its_files_and_they_hold_hardware_alone(file: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    values = yaml.safe_load(file.read_text())
    assert load_config_from_file(str(file)).num_processes == values["num_processes"]
    assert values["mixed_precision"] == "no"  # precision is the stage's own
    settings = values.get("deepspeed_config", {})
    assert {settings.get(key, "auto") for key in ("gradient_accumulation_steps", "gradient_clipping")} == {"auto"}
    assert file.read_text().startswith("# ")

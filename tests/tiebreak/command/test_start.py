"""Files that come with Tiebreak in any folder, recipes to start from, and how a stage ends."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import REPOSITORY, run_command, run_here, write_config, write_rows

from tiebreak.command.cli import main
from tiebreak.command.closing import next_command, saved_line
from tiebreak.command.help import configuration_class
from tiebreak.command.launch import accelerate_file, accelerate_names
from tiebreak.command.table import COMMANDS
from tiebreak.config import load_config, read_yaml
from tiebreak.data.reading import Rules, read_demonstrations
from tiebreak.errors import ConfigError
from tiebreak.shipped import find_shipped

QUICKSTART = REPOSITORY / "configs" / "quickstart"


def config_at(file: Path) -> Any:
    """The configuration of a file that opens with its command."""
    stage = file.read_text().split()[2]
    return load(stage, ["--config", str(file)])


def load(stage: str, words: Sequence[str]) -> Any:
    model: Any = configuration_class(COMMANDS[stage])
    return load_config(model, words, stage)


# --- in any folder


def test_shipped_files_are_found_anywhere_and_ones_own_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dpo = Path("configs/quickstart/dpo.yaml")
    assert find_shipped(dpo) == REPOSITORY / dpo
    assert find_shipped(Path("other/dpo.yaml")) == Path("other/dpo.yaml")
    assert find_shipped(Path("configs/none.yaml")) == Path("configs/none.yaml")
    assert {"cpu", "cpu_zero2", "zero3", "multi_gpu"} <= set(accelerate_names())
    assert accelerate_file("cpu_zero2") == REPOSITORY / "configs/accelerate/cpu_zero2.yaml"
    for name in ("cpu.yaml", "mine.yaml"):
        own = tmp_path / "configs" / "accelerate" / name
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text("use_cpu: true\n")
    assert accelerate_file("cpu") == Path("configs/accelerate/cpu.yaml")
    probes = "data/probes/refusals.jsonl"
    flags = ["--policies.base", "m", "--baseline", "base", "--prompts", probes, "--output", "data/probes"]
    evaluate = load("evaluate", flags)
    assert (evaluate.prompts, evaluate.output) == (str(REPOSITORY / probes), "data/probes")
    label = load("label", ["--pairs", "p.jsonl", "--output", "o", "--store", "sqlite:////srv//label.sqlite"])
    assert label.store == "sqlite:////srv//label.sqlite"  # text that names no shipped file keeps every character
    (tmp_path / probes).parent.mkdir(parents=True)
    (tmp_path / probes).write_text("")
    assert load("evaluate", flags).prompts == probes
    assert {"cpu", "mine", "zero3"} <= set(accelerate_names())
    with pytest.raises(ConfigError, match=r"expected cpu, cpu_zero1, .*mine, .*zero3.*, or a file's path"):
        accelerate_file("zero9")


def test_the_first_command_works_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, message = run_here("prepare", "--config", "configs/quickstart/prepare.yaml")
    assert status == 0, message
    assert (tmp_path / "runs/quickstart/prepare/final/prompts.jsonl").is_file()
    for entry in read_yaml(Path("configs/quickstart/pipeline.yaml"))["stages"]:
        config_at(find_shipped(Path(entry["config"])))
    status, message = run_here("dpo", "--config", "configs/quickstart/dop.yaml")
    assert (status, message) == (
        2,
        "error: no such configuration file: configs/quickstart/dop.yaml; is it configs/quickstart/dpo.yaml?\n",
    )
    status, message = run_here("dpo", "--config", "configs/quickstart/dpo.yaml", "--training.epochs", "0")
    assert status == 2
    assert "--training.epochs: input should be greater than 0" in message


# --- init


def asked(*words: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": word} for word in words]


def test_a_recipe_of_the_quickstarts_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (find_shipped(Path("data/hydroponics")) / "__pycache__").mkdir(exist_ok=True)  # as after a run that uses the rubric
    monkeypatch.chdir(tmp_path)
    main(["init", "mine"])
    assert {file.name for file in Path("mine").glob("*.yaml")} == {file.name for file in QUICKSTART.glob("*.yaml")}
    for file in Path("mine").glob("*.yaml"):
        assert "quickstart" not in file.read_text().replace("so that the quickstart runs", "").replace("Quickstart", "")
        config_at(file)
    recipe = read_yaml(Path("mine/pipeline.yaml"))
    assert (recipe["name"], recipe["from_root"]) == ("mine", "runs/mine")
    status, message = run_here("prepare", "--config", "mine/prepare.yaml")
    assert status == 0, message  # its data are beside it
    assert (tmp_path / "runs/mine/prepare/final/demonstrations.jsonl").is_file()
    status, message = run_here("init", "mine")
    assert (status, message) == (1, "error: mine is not empty, and nothing is overwritten: give another folder\n")


def test_a_recipe_from_prompts_samples_from_the_model_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "p.jsonl", [{"prompt": asked("Why?")}, {"prompt": asked("How?")}])
    main(["init", "made/mine", "--data", "p.jsonl", "--policy", "models/own"])
    stages = [entry["stage"] for entry in read_yaml(Path("made/mine/pipeline.yaml"))["stages"]]
    assert stages == ["prepare", "sample", "label", "reward", "dpo", "ppo", "evaluate", "compare"]
    configs = {stage: config_at(Path(f"made/mine/{stage}.yaml")).model_dump() for stage in stages}
    assert (configs["prepare"]["prompts"], configs["prepare"]["demonstrations"]) == (["p.jsonl"], [])
    for stage in ("prepare", "sample", "reward", "dpo", "ppo"):
        assert configs[stage]["policy"] == "models/own"
        assert configs[stage].get("adapter", {"r": 16})["r"] == 16
    assert list(configs["evaluate"]["policies"].items()) == [
        ("base", "models/own"), ("dpo", "runs/mine/dpo"), ("ppo", "runs/mine/ppo")
    ]  # fmt: skip
    assert (configs["evaluate"]["baseline"], configs["evaluate"]["split"]) == ("base", "test")
    assert configs["label"]["simulate"] is None  # people
    text = Path("made/mine/label.yaml").read_text()
    assert "imulated" not in text
    assert "grower" not in text
    outputs = {config["output"] for config in configs.values()}
    assert outputs == {f"runs/mine/{stage}" for stage in stages}


def test_columns_with_other_names_are_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faq.csv").write_text("No;Question;Reply\n1;Why?;Because.\n2;How?;So.\n", encoding="utf-8")
    status, message = run_here("init", "mine", "--data", "faq.csv")
    assert status == 1
    assert "the columns are No, Question, Reply: name yours with --columns.prompt NAME, and --columns.com" in message
    assert not (tmp_path / "mine").exists()
    main(["init", "asked", "--data", "faq.csv", "--columns.prompt", "Question"])
    assert "read as prompts without answers, so nothing is fine-tuned on them; unused columns: No, Re" in (
        capsys.readouterr().out
    )
    main(["init", "mine", "--data", "faq.csv", "--columns.prompt", "Question", "--columns.completion", "Reply"])
    assert "read as prompts with answers; unused columns: No\n" in capsys.readouterr().out
    config = config_at(Path("mine/prepare.yaml"))
    shown = read_demonstrations(config.demonstrations[0], Rules(columns=config.columns))
    assert {one.prompt.messages[0].text: one.completion for one in shown} == {"Why?": "Because.", "How?": "So."}


def test_a_recipe_from_demonstrations_learns_them_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "d.jsonl", [{"instruction": "Say why.", "output": "Because."}])
    main(["init", "mine", "--data", "d.jsonl", "--raters", "simulated"])
    prepare, label = config_at(Path("mine/prepare.yaml")), config_at(Path("mine/label.yaml"))
    assert (prepare.prompts, prepare.demonstrations) == ([], ["d.jsonl"])
    assert config_at(Path("mine/evaluate.yaml")).split == "validation"
    assert config_at(Path("mine/sft.yaml")).output == "runs/mine/sft"
    assert label.simulated


def test_preferences_need_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "r.jsonl", [{"prompt": "Why?", "chosen": "So.", "rejected": "No."}])
    status, message = run_here("init", "mine", "--data", "r.jsonl")
    assert status == 1
    assert "tiebreak dpo --policy bundled:smollm2-135m-instruct --preferences r.jsonl --output runs/dpo" in message
    assert not Path("mine").exists()
    for words in (["init"], ["init", "--data", "r.jsonl"]):
        assert "init needs a folder before its flags" in run_here(*words)[1]


# --- the end of a stage

STEPS = [
    ("prepare", "sft"), ("sft", "sample"), ("sample", "label"), ("label", "reward"), ("reward", "ppo"),
    ("dpo", "evaluate"), ("ppo", "evaluate"), ("evaluate", "compare"),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "follows"), STEPS)
def test_the_next_command_has_the_file_beside_and_is_accepted(
    stage: str, follows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = ["--config", f"configs/quickstart/{stage}.yaml"]
    config = config_at(Path(words[1]))
    steps = [step for step in COMMANDS[stage].next if not step.when or getattr(config, step.when)]
    command = next_command(steps, config, Path(config.output), words)
    assert command == f"tiebreak {follows} --config configs/quickstart/{follows}.yaml"
    # another output than the files name: the next stage reads it, and writes beside it
    moved = next_command(steps, config, Path("elsewhere/x"), words)
    program, named, *flags = shlex.split(moved)
    assert (program, named) == ("tiebreak", follows)
    following = load(follows, flags)
    assert "elsewhere/x" in str(following.model_dump())
    assert following.output == f"elsewhere/{follows}"


def test_the_next_command_of_a_second_round_leaves_the_first_rounds_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = ["--config", "configs/quickstart/sample.yaml"]
    config = config_at(Path(words[1]))
    first, second = tmp_path / "sample", tmp_path / "sample-1"
    write_config(tmp_path / "label" / "config.resolved.yaml", pairs=first, output=tmp_path / "label")

    def output_after(made: Path) -> str:
        flags = shlex.split(next_command(COMMANDS["sample"].next, config, made, words))[2:]
        return str(load("label", flags).output)

    assert output_after(first) == str(tmp_path / "label")  # it is resumed
    assert output_after(second) == str(tmp_path / "label-2")
    write_config(tmp_path / "label-2" / "config.resolved.yaml", pairs=second)
    assert output_after(second) == str(tmp_path / "label-2")
    assert output_after(tmp_path / "sample-2") == str(tmp_path / "label-3")


@pytest.mark.parametrize(("stage", "follows"), STEPS)
def test_the_next_command_without_a_file_says_what_is_needed(
    stage: str, follows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    config = config_at(QUICKSTART / f"{stage}.yaml")
    steps = [step for step in COMMANDS[stage].next if not step.when or getattr(config, step.when)]
    program, named, *flags = shlex.split(next_command(steps, config, Path("some where/x"), []))
    assert (program, named) == ("tiebreak", follows)
    following = load(follows, flags)
    assert "some where/x" in str(following.model_dump())


def test_prompts_alone_are_sampled_from_next() -> None:
    prepare = COMMANDS["prepare"]
    model = configuration_class(prepare)
    config = model.model_validate({"output": "o", "prompts": ["p.jsonl"]})
    steps = [step for step in prepare.next if not step.when or getattr(config, step.when)]
    assert next_command(steps, config, Path("o"), []).startswith("tiebreak sample --prompts o --policy bundled:")


def test_a_finished_stage_says_what_it_saved_and_what_comes_next(
    finished_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished_recipe / "runs" / "sft"
    line = saved_line(folder)
    assert line.startswith(f"saved: {folder}/final (")
    assert "loss " in line
    status, message = run_here("sft", "--config", folder / "config.resolved.yaml")
    assert status == 0
    last = message.splitlines()[-2:]
    assert last[0] == line
    assert last[1].startswith(f"next: tiebreak sample --policy {folder} --prompts PROMPTS --output FOLDER")
    monkeypatch.setenv("TIEBREAK_GROUP", "a-recipe")  # the next stage of a recipe starts by itself
    assert run_here("sft", "--config", folder / "config.resolved.yaml")[1].splitlines()[-1] == line


def test_the_comparison_ends_with_how_people_judge_the_same_pairs(finished_recipe: Path) -> None:
    runs = finished_recipe / "runs"
    result = run_command("compare", "--config", runs / "compare" / "config.resolved.yaml")
    last = result.stdout.strip().splitlines()[-1]
    assert last == f"next: tiebreak label --pairs {runs}/sample --output {runs}/label-by-hand"
    assert not load("label", shlex.split(last)[3:]).simulated
    result = run_command("compare", "--config", finished_recipe / "init" / "compare.yaml", "--evaluation",
                         runs / "evaluate", "--output", runs / "compare")  # fmt: skip
    last = result.stdout.strip().splitlines()[-1]
    assert last == (
        f"next: tiebreak label --config {finished_recipe}/init/label.yaml --simulate false --pairs {runs}/sample "
        f"--output {runs}/label-by-hand"
    )


def test_a_recipes_name_is_added_to_the_tags_of_a_file(finished_recipe: Path, tmp_path: Path) -> None:
    from tiebreak.command.pipeline import PipelineConfig, StageEntry, _start, stage_words

    values = yaml.safe_load((finished_recipe / "runs" / "sft" / "config.resolved.yaml").read_text())
    assert values["tracking"]["tags"] == ["tiny"]
    file = tmp_path / "sft.yaml"
    file.write_text(yaml.safe_dump(values | {"tracking": {"tags": ["mine", "--odd"]}}))
    entry = StageEntry(stage="sft", config=str(file))
    config = PipelineConfig(name="recipe", stages=[entry])
    started: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tiebreak.command.pipeline._in_a_process", lambda _entry, words, _environment: started.append(words) or 0
        )
        _start(entry, stage_words(entry, config), "group", config)
    (words,) = started
    tagged = load("sft", words[1:])
    assert tagged.tracking.tags == ["mine", "--odd", "recipe"]

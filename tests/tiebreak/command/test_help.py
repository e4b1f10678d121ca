"""Help and parser agree: what help shows the parser takes, what the parser takes help shows; both are there at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from support import REPOSITORY

from tiebreak.command.cli import main
from tiebreak.command.hardware import PASSED_ON
from tiebreak.command.help import configuration_class, help_lines
from tiebreak.command.table import COMMANDS, Command, find_command
from tiebreak.config import load_config
from tiebreak.errors import ConfigError

HEAVY = ("torch", "transformers", "trl", "peft", "gradio", "datasets", "deepspeed", "accelerate", "wandb", "uvicorn")


def commands() -> Iterator[tuple[str, Command]]:
    """Every command and subcommand."""
    for command in COMMANDS.values():
        yield command.name, command
        yield from ((f"{command.name} {one.name}", one) for one in command.subcommands)


CONFIGURED = [(name, command) for name, command in commands() if command.configuration]
NAMES = [name for name, _ in CONFIGURED]


def page_of(name: str, width: int = 100, values: dict[str, Any] | None = None) -> list[str]:
    whole, command, _ = find_command(name.split())
    return list(help_lines(whole, command, values or {}, width))


def shown_flags(name: str) -> dict[str, str]:
    """Flag → the form of its value, as the page's text has them."""
    rows = (re.match(r"  (--\S+) (.+?)(?:  |$)", line) for line in page_of(name))
    flags = {row[1]: row[2].strip() for row in rows if row}
    launch = {"--accelerate", "--dry-run", "--preflight-only", *(f"--{name}" for name in PASSED_ON)}
    beside = set() if find_command(name.split())[1].plans else launch  # its own keys
    return {flag: form for flag, form in flags.items() if flag not in beside | {"--config", "--help"}}


# --- at once


def test_help_and_faults_are_answered_without_the_heavy_packages() -> None:
    """What is imported decides how long an answer takes; the wall clock of a shared machine does not."""
    asked = [[*name.split(), "--help"] for name, _ in commands()]
    asked += [
        ["dpo", "--config", "configs/quickstart/dpo.yaml", "--betta", "3"],
        ["ppo", "--accelerate", "cpu", "--x=1"],
    ]
    asked += [["evaluate"], ["run", "--config", "configs/quickstart/pipeline.yaml", "--sed", "1"], ["evalaute"]]
    code = (
        "import sys, contextlib\n"
        "from tiebreak.command.cli import main\n"
        f"for words in {asked!r}:\n"
        "    with contextlib.suppress(SystemExit): main(words)\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "HEAVY []"
    assert "did you mean --beta?" in result.stderr


@pytest.mark.parametrize(
    "module", ["labeling_ui.label", "labeling_ui.raters", "tiebreak.command.inspect", "tiebreak.command.pipeline"]
)
def test_a_module_answers_as_its_command_does(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib

    importlib.import_module(module).main(["--help"])
    by_module = capsys.readouterr().out
    main([next(c.name for c in COMMANDS.values() if c.module == module), "--help"])
    assert capsys.readouterr().out == by_module


@pytest.mark.parametrize("name", [name for name, _ in commands()])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_a_page(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([*name.split(), flag])  # exit status 0: main returns
    assert capsys.readouterr().out.startswith(f"usage: tiebreak {name}")
    main(["help", *name.split()])
    assert capsys.readouterr().out.startswith(f"usage: tiebreak {name}")


def test_the_page_of_a_command_names_its_subcommands() -> None:
    page = "\n".join(page_of("label"))
    assert all(f"tiebreak label {name} " in page for name in "export import gold status verify agreement".split())
    assert "tiebreak reward report" in "\n".join(page_of("reward"))
    with_no_keys = "\n".join(page_of("raters"))
    assert all(f"tiebreak raters {name} " in with_no_keys for name in "add invite reset move disable list".split())


def test_a_page_fits_a_narrow_terminal() -> None:
    """Except flags that are longer than a line."""
    lines = list(help_lines("raters add", dict(commands())["raters add"], {}, width=40))
    assert [line for line in lines if len(line) > 40 and not line.startswith("  --")] == []
    flag = next(number for number, line in enumerate(lines) if line.startswith("  --role "))
    assert lines[flag + 1].startswith("      "), "what a long flag does is on the lines below it"


# --- both ways

NEEDED = {
    "output": "runs/x",
    "policies": {"sft": "a"},
    "name": "n",
    "stages": [{"stage": "sft", "config": "c"}],
    "prompts": "p",
    "reward_model": "r",
    "demonstrations": "d",
}
"""Values of keys that others need; all other required keys take any text."""
SAMPLES = {
    "--price": "2.5/h",
    "--max-time": "8h",
    "--prefix": "/label",
    "--loss-type": "sigmoid",
    "--criteria.N.name": "clarity",
    "--shard-size": "5GB",
    "--vllm": "http://127.0.0.1:1",
    "--vllm.NAME": "http://127.0.0.1:1",
    "--vllm.base-url": "http://127.0.0.1:1",
    "--steps": "repair",
    "--flags.NAME": "prompt",
    "--spans.NAME": "0",
    "--rewards.N.function": "package.module:function",
    "--monitors.N.webhook": "https://example.org/hook",
    "--webhook.url": "https://example.org/hook",
    "--oidc.issuer": "https://example.org",
    "--mail.sender": "ada@example.org",
    "--mail.link": "https://labels.example.org/rate/",
    "--since": "2026-01-01",
    "--until": "2026-01-01",
    "--policies": "first second",
}
"""Where not every text will do."""


def needed_by(model: type[BaseModel]) -> dict[str, Any]:
    """The least that a configuration must say."""
    values = {name: NEEDED.get(name, "x") for name, field in model.model_fields.items() if field.is_required()}
    if model.__name__ == "PrepareConfig":
        values["prompts"] = ["p"]
    if model.__name__ == "PPOConfig":
        values["reward_model"] = "r"
    if model.__name__ == "LabelConfig":
        values["pairs"] = "p"
    return values


def words_for(flag: str, form: str, line: str) -> list[str]:
    """A value of the form that help shows, within the range that it shows."""
    form = form.removesuffix("|null").removesuffix(" …")
    low = re.search(r"\[(?:.*; )?[≥>] (-?[\d.e-]+)", line)
    high = re.search(r"[<≤] (-?[\d.e-]+)", line)
    if form in ("INT", "NUMBER"):
        start = float(low[1]) if low else 0.0
        value = start + (1 if form == "INT" else min(1.0, (float(high[1]) - start) / 2 if high else 1.0))
        return [str(int(value)) if form == "INT" else str(value)]
    if form in ("[true|false]", "{…}|true|false"):
        return ["true"]
    if form == "{…}":
        return ["{}"]
    if form == "[{…}, …]":
        return ["[{}]"]
    if form in ("TEXT", "VALUE"):
        return SAMPLES.get(flag, "text").split()
    return [form.split("|")[0]]


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_that_help_shows_is_taken(name: str, tmp_path: Path) -> None:
    """With a value of the form and range that stand beside it. Other keys may then be missing, or at odds with it."""
    model: Any = configuration_class(dict(CONFIGURED)[name])
    page = "\n".join(page_of(name))
    import yaml

    file = tmp_path / "least.yaml"
    file.write_text(yaml.safe_dump(needed_by(model)))
    flags = shown_flags(name)
    assert flags or not model.model_fields
    for flag, form in flags.items():
        row = page[page.index(f"  {flag} ") :]
        row = re.split(r"\n  --|\n\n", row)[0].replace("\n", " ")
        given = flag.replace(".N.", ".0.").replace(".NAME", ".some-name")
        try:
            load_config(model, ["--config", str(file), given, *words_for(flag, form, row)], name)
        except ConfigError as error:
            faults = [fault.strip() for fault in str(error).splitlines()[1:-1]]
            assert [fault for fault in faults if fault.startswith(f"{given}: ")] == [], (flag, form)


def schema_paths(schema: dict[str, Any], definitions: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every path of a pydantic JSON schema: not our own walk over the classes."""
    for name, inner in schema.get("properties", {}).items():
        options = [inner, *inner.get("anyOf", []), *inner.get("allOf", [])]
        options += [one["items"] for one in options if isinstance(one.get("items"), dict)]
        mapping = any(one.get("type") == "object" and "additionalProperties" in one for one in options)
        yield f"{prefix}{name}" + (".NAME" if mapping else "")
        for one in options:
            if "$ref" in one:
                listed = any(one is other.get("items") for other in options)
                target = definitions[one["$ref"].rpartition("/")[2]]
                yield from schema_paths(target, definitions, f"{prefix}{name}.{'N.' if listed else ''}")


@pytest.mark.parametrize("name", NAMES)
def test_every_key_that_is_taken_is_shown_with_its_meaning(name: str) -> None:
    model = configuration_class(dict(CONFIGURED)[name])
    schema = model.model_json_schema(by_alias=True)
    paths = list(schema_paths(schema, schema.get("$defs", {})))
    shown = shown_flags(name)
    assert {f"--{path.replace('_', '-')}" for path in paths} == set(shown)
    page = page_of(name)
    bare = [line for line in page if re.fullmatch(r"  --\S+ \S.*?  +\[[^\]]*\]", line)]
    assert bare == [], "keys without a meaning"


def test_ranges_defaults_and_choices_are_those_of_the_class() -> None:
    page = " ".join(" ".join(page_of("dpo")).split())
    assert "--beta NUMBER weight of the KL to the reference; 0.1 as in Rafailov et al. 2023. orpo:" in page
    assert "simpo's default is 2.0 (Meng et al. 2024) [> 0; default: 0.1]" in page
    assert re.search(r"--output TEXT the folder that this stage writes[^\[]*\[required\]", page)
    assert "--adapter.method lora|qlora|" in page
    assert "[≥ 0, < 0.5; default: 0]" in page  # label_smoothing
    assert "--guard.reward-model TEXT a finished reward run" in page
    assert "[default: null]" in page
    ppo = " ".join(" ".join(page_of("ppo")).split())
    assert re.search(r"--training\.learning-rate NUMBER [^\[]*\[> 0; default: 3e-06\]", ppo)  # the stage's own default


def test_a_files_values_are_shown_beside_the_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "dpo.yaml"
    file.write_text("beta: 0.375\npolicy: runs/mine\ntraining: {seed: 41}\n")
    main(["dpo", "--config", str(file), "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "[> 0; file: 0.375; default: 0.1]" in shown
    assert "[≥ 0, < 4294967296; file: 41; default: 0]" in shown
    assert "[file: runs/mine]" in shown


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_pages_fit_the_terminal(name: str, width: int) -> None:
    page = page_of(name, width)
    assert [line for line in page if len(line) > width and "  --" not in line] == []
    assert "\x1b" not in "".join(page)


def test_a_page_is_plain_when_piped_and_no_wider_than_its_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["dpo", "--help"])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 80


# --- the words that are not keys of a file


def test_a_store_is_named_by_itself_or_by_a_labelling_file(tmp_path: Path) -> None:
    from labeling_ui.configuration import StoreArguments, read_store_arguments
    from labeling_ui.raters import AddArguments

    file = tmp_path / "label.yaml"
    file.write_text("output: runs/label\npairs: p.jsonl\n")
    given = read_store_arguments(StoreArguments, ["--config", str(file), "--json"], "label status")
    assert (given.store, given.as_json) == ("sqlite:///runs/label.sqlite", True)
    given = read_store_arguments(StoreArguments, ["--config", str(file), "--output", "elsewhere/label"], "label status")
    assert given.store == "sqlite:///elsewhere/label.sqlite"
    added = read_store_arguments(
        AddArguments, [f"--config={file}", "--role", "lead", "--pool=x", "--password-stdin"], "raters add"
    )
    assert (added.role, added.pool, added.password_stdin) == ("lead", "x", True)
    with pytest.raises(ConfigError, match="--role: no such key"):
        read_store_arguments(StoreArguments, ["--store", "sqlite:///x", "--role", "lead"], "label status")

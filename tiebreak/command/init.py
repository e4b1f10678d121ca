"""A recipe to start from: the quickstart's files, adapted to your own data.

    tiebreak init my-recipe --data prompts.jsonl
    tiebreak init my-recipe --data faq.csv --columns.prompt Question --columns.completion Reply
    tiebreak run --config my-recipe/pipeline.yaml

Prompts alone make a recipe without supervised fine-tuning, which samples from the base model. Prompts with answers are
demonstrations, and the recipe starts by training on them.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import field_validator

from tiebreak.command.help import print_help, wants_help
from tiebreak.config import Section, load_config
from tiebreak.data.columns import check_columns
from tiebreak.errors import ConfigError, DataError, RunError
from tiebreak.process.ending import exit_with_message
from tiebreak.shipped import find_shipped
from tiebreak.stages import STAGES
from tiebreak.terminal import show

if TYPE_CHECKING:
    from tiebreak.data.reading import Reading

QUICKSTART, QUICKSTART_DATA, QUICKSTART_RUNS = Path("configs/quickstart"), Path("data/hydroponics"), "runs/quickstart"
GUIDELINES = """guidelines: |
  Describe a better answer as raters should see it: what it must contain, what it must not, and what matters most.
"""
HELD_OUT = "                          # prepare makes a test split only of prompts without answers"
_BASE = "bundled:smollm2-135m-instruct"
ROWS_READ = 100
"""of the data, to see what they hold and whether their columns have our names"""


class InitArguments(Section):
    """`tiebreak init`"""

    data: str | None = None
    """prompts, or prompts with answers: a file, a folder or hub:NAME@SPLIT; null: the quickstart's own"""
    columns: dict[str, str | None] = {}
    """columns with other names: Tiebreak's name, then the data's, such as {prompt: question}; null: ignore
    the column"""
    raters: Literal["people", "simulated"] | None = None
    """who judges: people in the browser, or raters simulated with the quickstart's rubric; null: people for your own
    data, else simulated"""
    policy: str = _BASE
    """the model to start from: a hub id, a path or bundled:…"""

    @field_validator("columns")
    @classmethod
    def _of_ours(cls, columns: dict[str, str | None]) -> dict[str, str | None]:
        check_columns(columns)
        return columns


Edit = Callable[[str], str]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `tiebreak init`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_message(lambda: print_help(["init", *words]) if wants_help(words) else _init(words))


def _init(words: list[str]) -> None:
    if not words or words[0].startswith("--"):
        raise ConfigError("init needs a folder before its flags: tiebreak init my-recipe [--data prompts.jsonl]")
    folder, arguments = Path(words[0]), load_config(InitArguments, words[1:], "init")
    reading = None if arguments.data is None else _first_rows(arguments.data, arguments.columns)
    files = recipe_files(folder, arguments, answered=reading is None or reading.wanted == "demonstrations")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} is not writable ({error.strerror}): give another folder") from error
    if any(folder.iterdir()):
        raise RunError(f"{folder} is not empty, and nothing is overwritten: give another folder")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    if arguments.data is None:
        shipped = [file for file in sorted(find_shipped(QUICKSTART_DATA).iterdir()) if file.is_file()]
        for file in shipped:  # beside them Python may have put the compiled rubric
            shutil.copyfile(file, folder / file.name)
    show(
        *([_line_of(reading)] if reading else []),
        f"saved: {folder} ({len(files)} files: one per stage, and pipeline.yaml, which lists them in order)",
        f"next: review them, then tiebreak run --config {folder / 'pipeline.yaml'}",
    )


def recipe_files(folder: Path, given: InitArguments, *, answered: bool) -> dict[str, str]:
    """Name → text of every file of the recipe.

    Args:
        answered: whether the data have answers to train on.
    """
    edits: list[Edit] = [_replace(f"{QUICKSTART}/", f"{folder}/"), _replace(QUICKSTART_RUNS, f"runs/{folder.name}")]
    edits += [_replace("name: quickstart", f"name: {folder.name}"), _replace(_BASE, given.policy)]
    if given.data is not None:
        edits += _own_data(folder, given, answered)
    else:
        edits.append(_replace(f"{QUICKSTART_DATA}/", f"{folder}/"))
    people = given.raters == "people" if given.raters else given.data is not None
    if people:
        edits.append(_without_simulated_raters)
    names = sorted(file.name for file in find_shipped(QUICKSTART).glob("*.yaml"))
    texts = {name: (find_shipped(QUICKSTART) / name).read_text(encoding="utf-8") for name in names}
    for stage in STAGES.values() if not answered else ():
        if stage.trains and "demonstrations" in stage.inputs:
            texts.pop(f"{stage.name}.yaml", None)
            edits.append(_without_stage(stage.name, f"runs/{folder.name}", given.policy))
    for edit in edits:
        texts = {name: edit(text) for name, text in texts.items()}
    return texts


def _first_rows(data: str, columns: Mapping[str, str | None]) -> Reading:
    """The first rows; at least one of them must be readable.

    Raises:
        DataError: they are preferences, which need no recipe, or their columns have other names.
    """
    from tiebreak.command.data import guess_kind
    from tiebreak.data.reading import Rules, read_piece
    from tiebreak.data.sources import pieces_of

    rules = Rules(columns=columns)
    kind = guess_kind(data, rules)
    if kind == "preferences":
        raise DataError(
            f"{data} holds preferences, which need no sampling and no raters: 'tiebreak dpo --policy {_BASE} "
            f"--preferences {data} --output runs/dpo' learns from them as they are ('tiebreak data {data}' shows how they "
            "are read)"
        )
    first = next(pieces_of(data, kind, ROWS_READ)).table()
    reading = read_piece(data, kind, first, rules, has_splits=False)
    if reading.bad and not reading.drafts:
        fault = reading.bad[0].reason.partition(": name yours with ")[0]
        raise DataError(
            f"{data}: {fault}: name yours with --columns.prompt NAME, and --columns.completion NAME if there are answers "
            f"('tiebreak data {data}' shows how they are read)"
        )
    return reading


def _line_of(reading: Reading) -> str:
    """How the data are read, and what that means for the recipe."""
    unused = f"; unused columns: {reading.ignored_columns()}" if reading.ignored else ""
    if reading.wanted == "demonstrations":
        return f"{reading.source}: read as prompts with answers{unused}"
    return f"{reading.source}: read as prompts without answers, so nothing is fine-tuned on them{unused}"


def _own_data(folder: Path, given: InitArguments, answered: bool) -> list[Edit]:
    named = json.dumps([given.data], ensure_ascii=False)
    columns = f"\ncolumns: {json.dumps(given.columns, ensure_ascii=False)}" if given.columns else ""
    prompts, shown = ("[]", named) if answered else (named, "[]")
    return [
        _replace_line(r"prompts: \[data/hydroponics/.*", f"prompts: {prompts}"),
        _replace_line(r"demonstrations: \[data/hydroponics/.*", f"demonstrations: {shown}{columns}"),
        _replace_line(r"title: Which answer helps the grower more\?", "title: Which answer is better?"),
        _replace_line(r"title: \"Quickstart: .*", f'title: "{folder.name}"'),
        lambda text: re.sub(r"^guidelines: \|\n(?:(?:  .*)?\n)*", GUIDELINES, text, flags=re.MULTILINE),
        _replace("# data/hydroponics/rubric.py, or mine", "# the quickstart's own; yours: mine"),
        *([_replace_line("split: test", f"split: validation{HELD_OUT}")] if answered else []),
    ]


def _without_simulated_raters(text: str) -> str:
    text = re.sub(r"^simulate: .*\n(?:  .*\n)*\n?", "", text, flags=re.MULTILINE)
    return re.sub(r" Here by simulated raters,.*\n(?:# .*\n)*", "\n", text)


def _without_stage(stage: str, runs: str, policy: str) -> Edit:
    """The stages after it start from the base model, with a new adapter."""

    def edit(text: str) -> str:
        text = re.sub(rf"^  - \{{stage: {stage}, .*\n", "", text, flags=re.MULTILINE)
        text = re.sub(rf"^  {stage}: {runs}/{stage}\n", "", text, flags=re.MULTILINE)
        text = re.sub(rf"^baseline: {stage}\b", "baseline: base", text, flags=re.MULTILINE)
        text = re.sub(rf"^policy: {runs}/{stage}\b.*", f"policy: {policy}", text, flags=re.MULTILINE)
        return re.sub(r"^adapter: null .*", "adapter: {method: lora, r: 16, alpha: 32}", text, flags=re.MULTILINE)

    return edit


def _replace(old: str, new: str) -> Edit:
    return lambda text: text.replace(old, new)


def _replace_line(pattern: str, new: str) -> Edit:
    return lambda text: re.sub(f"^{pattern}$", lambda _: new, text, flags=re.MULTILINE)


if __name__ == "__main__":
    main()

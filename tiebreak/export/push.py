"""A finished model on the hub: its export, with a full model card, as one commit to a private repository.

    tiebreak push runs/quickstart/dpo hub:OWNER/NAME --licence apache-2.0 --evaluation runs/quickstart/evaluate

Login and repository are checked before any work. Only the files of the model are pushed, weights as safetensors: no
optimizer states, no judgments, no paths of this machine, unless `include` names them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from tiebreak.card.command import as_sections, read_answers, read_subject
from tiebreak.card.content import Blank
from tiebreak.card.forms import FORMS, NAMES
from tiebreak.command.help import print_help, wants_help
from tiebreak.config import Section, load_config
from tiebreak.errors import ConfigError, RunError, counted
from tiebreak.export.command import EXPORT_FILE, write_export
from tiebreak.export.configuration import ExportArguments
from tiebreak.export.hub import push_files, require_login, require_repository
from tiebreak.process.ending import exit_with_message
from tiebreak.runs.chain import manifest_chain
from tiebreak.runs.checkpoints import fault_of, marked
from tiebreak.stages import find_stage
from tiebreak.terminal import say, show

MODEL_FILES = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""endings of a model's files"""
_OURS = (EXPORT_FILE,)
"""files of an export that name paths of this machine"""
_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "NOTICE")
_REPO = re.compile(r"hub:([\w.-]+/[\w.-]+)")
CARD = "README.md"
_USAGE = "push takes a run and a repository: tiebreak push runs/quickstart/dpo hub:OWNER/NAME [--key value …]"


class PushArguments(Section):
    """`tiebreak push`. RUN is a finished run of sft, reward, dpo or ppo."""

    private: bool = True
    """whether a new repository is private; an existing one must be what this says"""
    licence: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9.-]*$")
    """the model's licence by the hub's name, such as apache-2.0 or other; null: the card has a blank"""
    adapter_only: bool = False
    """push the adapter instead of merged weights"""
    evaluation: str | None = None
    """a finished evaluate run that measured the model, for the card"""
    answers: str | None = None
    """a YAML file with answers for the card's blanks (`tiebreak card`)"""
    include: list[Literal["judgments", "optimizer"]] = []
    """further files. judgments: the preferences that the model learned from, and the judgments behind them, with raters'
    pseudonyms and remarks; optimizer: the last checkpoint, with its optimizer state, which is a pickle"""
    replace: bool = False
    """commit to a repository that has files; its history keeps them"""
    output: str | None = None
    """the folder of the export, which is made first; null: exports/hub in the run's folder"""
    trust_remote_code: bool = False
    """run Python code that the model contains"""

    @model_validator(mode="after")
    def _public_with_a_licence(self) -> PushArguments:
        if not self.private and self.licence is None:
            raise ValueError(
                "licence: without one, nobody may use a public model: name it, such as apache-2.0, or other"
            )
        return self


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `tiebreak push`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_message(lambda: print_help(["push", *words]) if wants_help(words) else _run(words))


def _run(words: list[str]) -> None:
    if len(words) < 2 or words[0].startswith("-") or words[1].startswith("-"):
        raise ConfigError(_USAGE)
    found = _REPO.fullmatch(words[1])
    if found is None:
        raise ConfigError(f"{words[1]}: the repository is hub:OWNER/NAME")
    show(push(words[0], found[1], load_config(PushArguments, words[2:], "push")))


def push(run: str, repo: str, arguments: PushArguments) -> str:
    """Push a run's model; returns its address.

    Raises:
        MachineError: no login, offline, or the hub refuses.
        HandoffError: the run made no model.
        ModelError: the repository has files, or is public where a private one is wanted.
    """
    require_login()
    subject = read_subject(run, arguments.evaluation)
    answers = read_answers(arguments.answers) if arguments.answers else {}
    further = dict(_further_files(run, arguments.include))
    require_repository(repo, private=arguments.private, replace=arguments.replace)
    exporting = ExportArguments(
        to="hub",
        repo=repo,
        private=arguments.private,
        adapter_only=arguments.adapter_only,
        output=arguments.output,
        trust_remote_code=arguments.trust_remote_code,
    )
    folder = write_export(run, exporting)
    parts = FORMS["hub"](subject)
    stated = answers | ({"licence": arguments.licence} if arguments.licence and "licence" not in answers else {})
    card = join_cards((folder / CARD).read_text(encoding="utf-8"), as_sections(parts, stated), arguments.licence)
    card = without_paths(card, [run, *_paths_in(subject.chain), *_paths_of(folder)])
    files: dict[str, Path | bytes] = {
        **dict(_model_files(folder)),
        **_licence_files(subject.trained),
        **further,
        CARD: card.encode(),
    }
    blanks = {one.id for part in parts for one in part.entries if isinstance(one, Blank)} - stated.keys()
    say(f"pushing {counted(len(files), 'file')}; the card has {counted(len(blanks), 'blank')} to fill in")
    return push_files(repo, files, private=arguments.private)


def join_cards(exported: str, sections: str, licence: str | None) -> str:
    """The repository's card: the export's use and check, then the facts and blanks of the model card."""
    _, front, body = exported.split("---\n", 2)
    matter: dict[str, Any] = yaml.safe_load(front)
    if licence:
        matter = {"license": licence} | matter
    text = yaml.safe_dump(matter, sort_keys=False, allow_unicode=True).strip()
    return f"---\n{text}\n---\n{body.rstrip()}\n\n{sections.rstrip()}\n"


def without_paths(text: str, paths: Sequence[str]) -> str:
    """A text with files and folders of this machine by their names alone.

    >>> without_paths("from /home/ada/data/rows.jsonl", ["/home/ada/data/rows.jsonl", "org/model"])
    'from rows.jsonl'
    """
    local = {path for path in paths if path.startswith(("/", ".")) or Path(path).exists()}
    for path in sorted(local, key=len, reverse=True):
        text = text.replace(path, Path(path).name or path)
    return text


def _paths_in(chain: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Inputs of all runs; `#split` and `@split` behind a file's name stay."""
    for manifest in chain:
        for one in manifest["inputs"].values():
            yield str(one["source"])
            yield re.split(r"[#@]", str(one["source"]))[0]


def _paths_of(folder: Path) -> Iterator[str]:
    """The model and its base, as the export recorded them."""
    record = json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8"))
    yield from (str(record[key]) for key in ("model", "base") if record.get(key))


def _model_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """By their path in the repository.

    Raises:
        RunError: something else is in the folder.
    """
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name in (CARD, *_OURS):
            continue
        if path.stem in NAMES.values():  # cards name paths of this machine: the repository has its own
            continue
        if path.suffix not in MODEL_FILES:
            raise RunError(f"{path} is no file of a model, and nothing else is pushed: move it away")
        yield name, path


def _licence_files(trained: Sequence[Mapping[str, Any]]) -> dict[str, Path]:
    """The base model's own licence, if it is a folder that has one."""
    base = Path(str(((trained[0]["inputs"].get("policy") or {}) if trained else {}).get("source", "")))
    return {name: base / name for name in _LICENCE_FILES if base.name and (base / name).is_file()}


def _further_files(run: str, include: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Judgments and optimizer states by their path in the repository.

    Raises:
        RunError: the run has none.
    """
    if "judgments" in include:
        found = list(_judgments(run))
        if not found:
            raise RunError(f"include: no run behind {run} has judgments or preferences of its own to push")
        yield from found
    if "optimizer" in include:
        whole = (one for one in marked(Path(run) / "checkpoints") if not fault_of(one))
        checkpoint = next(whole, None)
        if checkpoint is None:
            raise RunError(f"include: {run} has no checkpoint, so no optimizer state")
        yield from ((f"checkpoint/{path.name}", path) for path in sorted(checkpoint.iterdir()) if path.is_file())


def _judgments(run: str) -> Iterator[tuple[str, Path]]:
    for folder, manifest in manifest_chain(run, as_far_as_known=True):
        if find_stage(str(manifest["stage"])).name == "label":
            for name in ("preferences.jsonl", "judgments.jsonl"):
                if (Path(folder) / "final" / name).is_file():
                    yield f"{name.removesuffix('.jsonl')}-{manifest['id'][:8]}.jsonl", Path(folder) / "final" / name


if __name__ == "__main__":
    main()

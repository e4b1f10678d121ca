"""A model's card or a data sheet, from the manifests of the runs that made it; no model is loaded.

    tiebreak card runs/quickstart/ppo --evaluation runs/quickstart/evaluate          # ppo/card.md, for the hub
    tiebreak card runs/quickstart/ppo --form annex_iv --format html --answers answers.yaml
    tiebreak card runs/quickstart/prepare --form data_sheet

Every fact names the manifest that it is from. A fact that no manifest has is a marked blank with its question;
`answers` is a file of `blank: answer`, which the card marks as stated by the provider.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal

import yaml

from tiebreak.card.content import Blank, Change, Entry, Fact, Manifest, Part
from tiebreak.card.forms import BLANKS, FORMS, NAMES, NOTES, TITLES
from tiebreak.card.subject import Subject
from tiebreak.command.help import print_help, wants_help
from tiebreak.config import Section, load_config, read_yaml
from tiebreak.errors import ConfigError, HandoffError, MachineError, counted
from tiebreak.files import write_text_atomically
from tiebreak.page.document import build_document
from tiebreak.page.markup import Markup, el, join
from tiebreak.page.tables import cell, heading, note, table
from tiebreak.process.ending import exit_with_message
from tiebreak.runs.chain import manifest_chain
from tiebreak.runs.run import read_manifest
from tiebreak.stages import find_stage
from tiebreak.terminal import show

PRINT_SECONDS = 300
"""a busy machine takes minutes to start a browser"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_STYLE = (
    ".blank{border-left:3px solid #c90;padding-left:.6em;list-style:none}.from{opacity:.65;font-size:.85em}"
    "li,td{overflow-wrap:anywhere}.of-facts td:first-child{width:30%}"
    ".of-facts td:last-child{width:11em;opacity:.65;font-size:.85em}h4{font-size:14px;margin:16px 0 4px}"
)


class CardArguments(Section):
    """`tiebreak card`. RUN is a finished run of sft, reward, dpo or ppo; for a data sheet, of prepare, synthesise or
    label."""

    form: Literal["hub", "annex_iv", "annex_xi", "annex_xii", "article_53", "data_sheet"] = "hub"
    """hub: a model card with the hub's headings; annex_iv, annex_xi: a technical file with the headings of Annex IV of
    the EU AI Act, or of Annex XI, for general-purpose models; annex_xii: information for those who build on the model;
    article_53: a summary of the content it was trained on; data_sheet: a data sheet (Gebru et al. 2021) of a run that
    made data"""
    format: Literal["md", "html", "pdf"] = "md"
    """pdf needs an installed Chromium or Chrome"""
    evaluation: str | None = None
    """a finished evaluate run that measured the model"""
    previous: str | None = None
    """the run of the version before: the card lists the settings, data and packages that changed"""
    answers: str | None = None
    """a YAML file with answers for blanks, as NAME: answer; tiebreak card prints the names"""
    output: str | None = None
    """the file to write; null: in the run folder, named after the form: card.md, technical-file.md, annex-xi.md, …"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `tiebreak card`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_message(lambda: print_help(["card", *words]) if wants_help(words) else _card(words))


def _card(words: list[str]) -> None:
    if not words or words[0].startswith("-"):
        raise ConfigError("card takes one run: tiebreak card runs/quickstart/ppo [--evaluation RUN] [--form annex_iv]")
    folder, given = words[0], load_config(CardArguments, words[1:], "card")
    subject = read_subject(folder, given.evaluation, given.previous, of_data=given.form == "data_sheet")
    answers = read_answers(given.answers) if given.answers else {}
    parts = FORMS[given.form](subject)
    title = f"{TITLES[given.form]}: {Path(folder).resolve().name}"
    file = Path(given.output) if given.output else Path(folder) / f"{NAMES[given.form]}.{given.format}"
    if given.format == "md":
        write_text_atomically(file, as_markdown(title, parts, subject, answers, given.form))
    elif given.format == "html":
        write_text_atomically(file, as_page(title, parts, answers, given.form))
    else:
        write_pdf(file, as_page(title, parts, answers, given.form))
    open_blanks = [one for part in parts for one in part.entries if isinstance(one, Blank) and one.id not in answers]
    names = list(dict.fromkeys(one.id for one in open_blanks))
    show(f"{file}: {counted(len(names), 'blank')} to fill in" + (f" ({', '.join(names)})" if names else ""))


def read_subject(folder: str, evaluation: str | None, previous: str | None = None, *, of_data: bool = False) -> Subject:
    """The manifest of the model or the data, those behind it and behind its version before, and the evaluation's.

    Raises:
        RunError: a run is not finished or not found.
        HandoffError: the run made no model (or no data), the evaluation did not measure it, or the version before is
            of another kind, or the same.
    """
    manifest = read_manifest(folder)
    if of_data:
        if find_stage(str(manifest["stage"])).makes != "data" or evaluation is not None:
            raise HandoffError(
                f"{folder} is a run of {manifest['stage']}: a data sheet is of a run that made data (prepare, synthesise, "
                "label), and takes no evaluation; use --form hub for a model"
            )
    elif not find_stage(str(manifest["stage"])).trains:
        raise HandoffError(
            f"{folder} is a run of {manifest['stage']}, which makes no model: name one of sft, reward, dpo, ppo"
        )
    chain = _chain(folder)
    before = _read_previous(manifest, previous) if previous else None
    if evaluation is None:
        return Subject(manifest, chain, previous=before)
    measured = read_manifest(evaluation)
    if measured["stage"] != "evaluate":
        raise HandoffError(f"evaluation: {evaluation} is a run of {measured['stage']}, not of evaluate")
    names = [
        name for name, one in measured["inputs"].items() if one["id"] == manifest["id"] and name.startswith("policy_")
    ]
    if not names:
        raise HandoffError(
            f"evaluation: {evaluation} did not measure {folder}: name one that has it among its policies"
        )
    return Subject(manifest, chain, measured, names[0].removeprefix("policy_"), before)


def _chain(folder: str) -> list[Manifest]:
    return [one for _, one in manifest_chain(folder, as_far_as_known=True)]


def _read_previous(manifest: Manifest, previous: str) -> list[Manifest]:
    before = read_manifest(previous)
    kinds = [find_stage(str(one["stage"])).makes for one in (before, manifest)]
    if kinds[0] != kinds[1]:
        raise HandoffError(
            f"previous: {previous} is a run of {before['stage']}, which makes {kinds[0] or 'no model'}, not {kinds[1]}"
        )
    if before["id"] == manifest["id"]:
        raise HandoffError(f"previous: {previous} is the run that the card is about: name the version before it")
    return _chain(previous)


def read_answers(file: str) -> dict[str, str]:
    """The provider's answers by blank.

    Raises:
        ConfigError: a blank is unknown, or an answer is not text.
    """
    answers = read_yaml(Path(file))
    wrong = [name for name in answers if name not in BLANKS and name != "evaluation"]
    if wrong:
        raise ConfigError(f"{file}: no blank {', '.join(wrong)}; there are {', '.join(BLANKS)}")
    empty = [name for name, answer in answers.items() if not str(answer or "").strip()]
    if empty:
        raise ConfigError(f"{file}: no answer to {', '.join(empty)}: leave it out, and the card has a blank")
    return {name: " ".join(str(answer).split()) for name, answer in answers.items()}


# --- forms of output ---


def as_markdown(title: str, parts: Sequence[Part], subject: Subject, answers: Mapping[str, str], form: str) -> str:
    """The card in Markdown, with the hub's front matter if it is its form."""
    lines = ["---", yaml.safe_dump(_front_matter(subject), sort_keys=False).strip(), "---", ""] if form == "hub" else []
    lines += [f"# {title}", ""]
    lines += [NOTES[form], ""] if NOTES[form] else []
    return "\n".join([*lines, as_sections(parts, answers)])


def as_sections(parts: Sequence[Part], answers: Mapping[str, str]) -> str:
    """The card's parts in Markdown, without title: tables of facts and of changes, and lists of questions."""
    lines: list[str] = []
    for part in parts:
        lines += [f"{'#' * part.level} {part.title}", ""]
        for kind, entries in groupby(part.entries, type):
            rows = [_line(entry, answers) for entry in entries]
            head = _HEADINGS.get(kind)
            lines += [*([_row(head), _row(["---"] * len(head))] if head else ()), *rows, ""]
    return "\n".join(lines)


_HEADINGS: Mapping[type, Sequence[str]] = {
    Fact: ("fact", "value", "run"),
    Change: ("changed", "before", "now", "run before", "run now"),
}


def _line(entry: Entry, answers: Mapping[str, str]) -> str:
    if isinstance(entry, Blank):
        if entry.id in answers:
            return f"- {entry.question} {_plain(answers[entry.id])} *(stated by the provider)*"
        return f"- **[blank: {entry.id}]** {entry.question}"
    return _row([_plain(text) for text in _cells(entry)])


def _cells(entry: Fact | Change) -> list[str]:
    """The texts of a table's row."""
    if isinstance(entry, Fact):
        return [entry.name, entry.shown, entry.source]
    sides = (entry.before, entry.now)
    return [entry.name, *(one.shown if one else "–" for one in sides), *(one.source if one else "–" for one in sides)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text with the special characters of Markdown and HTML escaped."""
    return "".join(f"\\{one}" if one in "\\`*_[]<>|#" else one for one in text)


def _front_matter(subject: Subject) -> dict[str, object]:
    first = (subject.trained or [subject.manifest])[0]
    base = (first["inputs"].get("policy") or {}).get("source", "")
    hub_id = base and base.count("/") == 1 and not Path(base).exists() and not base.startswith((".", "/", "bundled:"))
    kind = "text-classification" if subject.manifest["stage"] == "reward" else "text-generation"
    tags = ["tiebreak", *dict.fromkeys(str(one["stage"]) for one in subject.trained)]
    return {**({"base_model": base} if hub_id else {}), "pipeline_tag": kind, "tags": tags}


def as_page(title: str, parts: Sequence[Part], answers: Mapping[str, str], form: str) -> str:
    """The card as a page that opens without a network."""
    header = el("div", el("h1", title), note(NOTES[form]) if NOTES[form] else None)
    sections: list[tuple[str, str, Markup]] = []
    for n, part in enumerate(parts):
        body = join(*(_group(kind, list(entries), answers) for kind, entries in groupby(part.entries, type)))
        if part.level > 2 and sections:
            name, above, before = sections[-1]
            sections[-1] = (name, above, join(before, el(f"h{part.level}", part.title), body))
        else:
            sections.append((f"part-{n}", part.title, body))
    return build_document(title, header, sections, {}, style=_STYLE)


def _group(kind: type, entries: Sequence[Entry], answers: Mapping[str, str]) -> Markup:
    """Facts or changes as a table, questions as a list."""
    names = _HEADINGS.get(kind)
    if names is None:
        return el("ul", [_question(entry, answers) for entry in entries if isinstance(entry, Blank)])
    rows = [
        el("tr", [cell(name, text, absent=text == "–") for name, text in zip(names, _cells(entry), strict=True)])
        for entry in entries
        if not isinstance(entry, Blank)
    ]
    return table([heading(name) for name in names], rows, cls=f"stack of-{kind.__name__.lower()}s")


def _question(entry: Blank, answers: Mapping[str, str]) -> Markup:
    if entry.id in answers:
        return el(
            "li", entry.question, " ", el("b", answers[entry.id]), el("span", " stated by the provider", cls="from")
        )
    return el("li", el("b", f"[blank: {entry.id}] "), entry.question, cls="blank")


def write_pdf(file: Path, page: str) -> None:
    """Print the page with a browser.

    Raises:
        MachineError: there is none, or it failed.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise MachineError("a PDF needs Chromium or Chrome, and none is installed: use --format html, and print it")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "card.html"
        source.write_text(page, encoding="utf-8")
        words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
        words += ["--no-pdf-header-footer", f"--print-to-pdf={file.resolve()}", source.as_uri()]
        try:
            result = subprocess.run(words, capture_output=True, text=True, timeout=PRINT_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise MachineError(
                f"{browser} did not print {file} in {PRINT_SECONDS} s: try again, or use --format html and print it"
            ) from error
    if result.returncode or not file.is_file():
        raise MachineError(f"{browser} did not print {file}: {result.stderr.strip()[-300:]}; use --format html")


if __name__ == "__main__":
    main()

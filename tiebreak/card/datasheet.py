"""A data sheet of a run that made data: the sections of Gebru et al. 2021, "Datasheets for Datasets", and what Article 10
of the EU AI Act asks of data besides.

Facts are from manifests; whatever no manifest can know, such as who collected the rows and why, is a blank with its
question.
"""

from __future__ import annotations

from collections.abc import Iterator

from tiebreak.card.content import Blank, Entry, Fact, Manifest, Part, fact
from tiebreak.card.labels import label_facts
from tiebreak.card.subject import Subject

QUESTIONS = {
    "data_purpose": "For which purpose was the data set made, and which gap was it to fill?",
    "data_creator": "Who made it, on behalf of whom, and who paid for it?",
    "data_represents": "What does a row represent, and is the set all of them or a sample? Of which larger set, drawn how?",
    "data_missing": "Is anything missing from rows, and why?",
    "data_relations": "Do rows belong together (one person, one conversation, one case), and is that visible?",
    "data_errors": "Which errors, noise or repetitions are known?",
    "data_offensive": "Does it hold anything that would offend, insult or frighten somebody who reads it?",
    "data_groups": "Which groups of people are in it or missing from it, and could a person be recognised?",
    "data_acquired": "How was each row acquired (observed, reported, derived), by which tools, and over which time?",
    "data_collectors": "Who took part in collecting it (staff, contractors, crowd workers), and how were they paid?",
    "data_ethics": "Was there an ethical review or a data protection impact assessment, and with which result?",
    "data_consent": "Were the people told and asked, can they withdraw, and how?",
    "personal_data": "Is there personal data in the sources, on which legal basis, and for how long is it kept?",
    "data_raw": "Is the raw data kept besides, where, and who may read it?",
    "data_used": "What has it been used for already?",
    "data_unsuitable": "What must it not be used for?",
    "data_distribution": "To whom is it given, how and when, and under which licence or terms?",
    "data_licences": "Which licences do the prompts, demonstrations and judgments have, and who allowed their use?",
    "data_maintenance": "Who maintains it, how are errors reported and corrected, and are older versions kept?",
    "data_choices": "Which design choices were made about the data, and why (Article 10 (2) (a))?",
    "data_assumptions": "What is the data assumed to measure and to represent (Article 10 (2) (d))?",
    "data_suitability": "Are quantity and availability enough for the purpose, and why (Article 10 (2) (e))?",
    "data_bias": "Which biases could affect people's health, safety or rights, how were they looked for, and what was done "
    "(Article 10 (2) (f) and (g))?",
    "data_gaps": "Which gaps or shortcomings remain, and how will they be dealt with (Article 10 (2) (h))?",
    "data_setting": "For which geographical, behavioural or functional setting is it representative (Article 10 (4))?",
}


def data_sheet(subject: Subject) -> list[Part]:
    """The sections of a data sheet."""
    made = subject.manifest
    return [
        Part("Motivation", _blanks("data_purpose", "data_creator")),
        Part(
            "Composition",
            (
                *_found(made, ("rows", "counts"), ("lengths in tokens", "data/lengths"), ("tags", "data/tags")),
                *_found(made, ("languages", "data/languages"), ("lengths in words", "data/words")),
                *_found(made, ("gaps found", "data/gaps"), ("left out when read", "data/left_out")),
                *_synthetic(subject),
                *_blanks("data_represents", "data_missing", "data_relations", "data_errors", "data_offensive"),
                *_blanks("data_groups"),
            ),
        ),
        Part(
            "Collection process",
            (*_sources(subject), *_blanks("data_acquired", "data_collectors", "data_ethics", "data_consent")),
        ),
        Part(
            "Preprocessing, cleaning, labelling",
            (*_cleaning(subject), *_labels(subject), *_blanks("personal_data", "data_raw")),
        ),
        Part("Uses", _blanks("data_used", "data_unsuitable")),
        Part("Distribution", _blanks("data_distribution", "data_licences")),
        Part("Maintenance", (*_found(made, ("made", "finished_at"), ("run", "id")), *_blanks("data_maintenance"))),
        Part(
            "Data governance (Article 10)",
            _blanks("data_choices", "data_assumptions", "data_suitability", "data_bias", "data_gaps", "data_setting"),
        ),
    ]


def _blanks(*names: str) -> tuple[Entry, ...]:
    return tuple(Blank(name, QUESTIONS[name]) for name in names)


def _found(manifest: Manifest, *named: tuple[str, str]) -> Iterator[Fact]:
    for name, key in named:
        yield from fact(manifest, name, key)


def _sources(subject: Subject) -> Iterator[Fact]:
    for one in subject.chain:
        for name, source in one["inputs"].items():
            if source.get("kind") in ("file", "data", "name"):
                yield from fact(one, name.replace("_", " "), f"inputs/{name}/source")
                yield from fact(one, f"{name.replace('_', ' ')}, sha256 or version", f"inputs/{name}/id")
        yield from fact(one, "licences", "licences")


def _synthetic(subject: Subject) -> Iterator[Fact]:
    for one in subject.chain:
        yield from fact(one, "synthetic rows", "synthetic")


def _cleaning(subject: Subject) -> Iterator[Fact]:
    """What each step did, in order. Personal data is counted by kind; no value is in a manifest."""
    for one in subject.chain:
        if one["stage"] == "prepare":
            yield from _found(one, ("rows dropped, by reason", "data/dropped"))
            yield from _found(one, ("near-duplicates, threshold", "config/near_duplicate"), ("splits", "config/split"))
            for step in (one.get("data") or {}).get("steps") or {}:
                yield from fact(one, f"step {step}", f"data/steps/{step}")
            yield from _found(one, ("personal data hidden, by kind", "data/hidden"), ("anonymised", "anonymised"))


def _labels(subject: Subject) -> Iterator[Fact]:
    for one in subject.chain:
        if one["stage"] == "label":
            yield from label_facts(one)

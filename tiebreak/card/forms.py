"""The forms of a card: the hub's model card, and files under the EU AI Act's headings (Annexes IV, XI, XII; Article 53).

The headings are those of Regulation (EU) 2024/1689, shortened. Which of them a model needs is a question for a
lawyer; the form says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tiebreak.card import datasheet
from tiebreak.card.changes import changes
from tiebreak.card.content import Blank, Entry, Fact, Part, fact, facts
from tiebreak.card.labels import label_facts
from tiebreak.card.subject import Subject
from tiebreak.stages import find_stage

_SETTINGS = (
    "algorithm", "loss_type", "beta", "kl_coef", "rollouts", "episodes_per_rollout", "training/learning_rate",
    "training/epochs", "training/max_steps", "training/per_device_batch_size", "training/gradient_accumulation_steps",
    "training/max_length_tokens", "training/precision", "training/seed", "adapter/method", "adapter/r", "adapter/alpha",
)  # fmt: skip
_FIGURES = {
    "yardstick_mean": "yardstick, mean",
    "criteria": "yardstick, by criterion",
    "yardstick_interval": "yardstick, 95% interval",
    "win_rate_vs_baseline": "win rate against the baseline",
    "win_rate_interval": "win rate, 95% interval",
    "score_mean": "score of the reward model, mean",
    "kl_per_sequence": "KL from the baseline, nats per answer",
    "kl_per_sequence_interval": "KL, nats per answer, 95% interval",
    "kl_per_token": "KL from the baseline, nats per token",
    "kl_per_token_interval": "KL, nats per token, 95% interval",
    "length_tokens_mean": "length, tokens",
    "unfinished_share": "share of answers cut off",
    "repetition_mean": "share of repeated word sequences",
    "n_prompts": "held-out prompts",
    "canaries/exposure_mean": "exposure of planted canaries, mean, bits",
    "canaries/exposure_of_chance": "the same by chance, bits",
    "canaries/memorised": "canaries memorised",
}


# --- groups of facts ---


_BASE = (("base model", "source"), ("base model, id", "id"))


def _base(subject: Subject) -> list[Fact]:
    first = subject.trained[:1] or [subject.manifest]
    source, identity = (facts(first, name, f"inputs/policy/{key}") for name, key in _BASE)
    named_alike = [one.value for one in source] == [one.value for one in identity]
    return [
        *source,
        *(() if named_alike else identity),
        *facts(first, "base model's weights, sha256", "model/base_sha256"),
    ]


def _architecture(subject: Subject) -> list[Entry]:
    """Class and size of the model; a blank if a run of an older version did not record them."""
    first = subject.trained[:1] or [subject.manifest]
    found = [
        *facts(first, "class", "base_model/class"),
        *facts(first, "parameters", "base_model/parameters"),
        *fact(subject.manifest, "parameters that the run saved", "saved_parameters"),
    ]
    return [*found, *(() if len(found) == 3 else (_blank("architecture"),))]


def _weights(subject: Subject) -> list[Fact]:
    return [
        *fact(subject.manifest, "weights that were trained, sha256", "model/adapter_sha256"),
        *fact(subject.manifest, "tokenizer, sha256", "model/tokenizer_sha256"),
        *fact(subject.manifest, "chat template, sha256", "model/chat_template_sha256"),
    ]


def _steps(subject: Subject) -> list[Fact]:
    found: list[Fact] = []
    for one in subject.trained:
        found += fact(one, "run", "id")
        for key in _SETTINGS:
            found += fact(one, key.rpartition("/")[2].replace("_", " "), f"config/{key}")
    return found


def _data(subject: Subject) -> list[Fact]:
    found: list[Fact] = []
    for one in subject.chain:
        for name, source in one["inputs"].items():
            if source.get("kind") in ("file", "data", "name") and find_stage(str(one["stage"])).makes == "data":
                found += fact(one, name.replace("_", " "), f"inputs/{name}/source")
                found += fact(one, f"{name.replace('_', ' ')}, sha256 or version", f"inputs/{name}/id")
        found += fact(one, "rows", "counts")
        found += fact(one, "licences", "licences")
    return found


def _cleaning(subject: Subject) -> list[Fact]:
    return [
        entry
        for one in subject.data
        for key, name in (
            ("config/steps", "steps"),
            ("config/anonymise", "anonymisation"),
            ("anonymised/names", "anonymisation, names of people"),
            ("canaries", "canaries planted"),
            ("config/near_duplicate", "near-duplicates, threshold"),
            ("counts/dropped", "rows dropped"),
        )
        for entry in fact(one, name, key)
    ]


def _labelling(subject: Subject) -> list[Fact]:
    return [entry for one in subject.chain if one["stage"] == "label" for entry in label_facts(one)]


def _metrics(subject: Subject) -> list[Fact]:
    found: list[Fact] = []
    for one in subject.trained:
        for key, title in find_stage(str(one["stage"])).metrics.items():
            value = (one.get("metrics") or {}).get(key)
            if value is not None:  # a metric's name may have a slash
                found.append(Fact(title, value, str(one["id"]), str(one["stage"]), f"metrics/{key}"))
    return found


def _evaluated(subject: Subject) -> list[Fact]:
    one = subject.evaluation
    if one is None:
        return []
    found = [*fact(one, "evaluation", "id"), *fact(one, "baseline", "config/baseline")]
    found += [*fact(one, "yardstick", "config/yardsticks")] or [*fact(one, "yardstick", "config/yardstick")]
    found += fact(one, "prompts, split", "config/split")
    for key, name in _FIGURES.items():
        found += fact(one, name, f"metrics/{subject.policy}/{key}")
    own = (one.get("metrics") or {}).get(subject.policy) or {}
    for name, row in (own.get("slices") or {}).items():
        place = f"metrics/{subject.policy}/slices/{name}"
        found.append(Fact(f"prompts of {name}", row, str(one["id"]), "evaluate", place))
    named = own.get("yardsticks") or {}
    for source in named:
        for key in ("mean", "interval", "difference", "difference_interval", "verdict"):
            value = named[source].get(key)
            if value is not None:
                place = f"metrics/{subject.policy}/yardsticks/{source}/{key}"
                title = f"{source}, {key.replace('_', ' ')}"
                found.append(Fact(title, value, str(one["id"]), "evaluate", place))
    return found


_MACHINE = {
    "machine": "machine",
    "processes": "processes",
    "seconds": "time",
    "peak_memory_bytes": "peak memory of a process",
}


def _machine(subject: Subject) -> list[Fact]:
    found: list[Fact] = []
    for one in subject.trained:
        for key in _MACHINE:
            found += fact(one, _MACHINE[key], key)
    return found


def _energy(subject: Subject) -> list[Entry]:
    """Measured energy by run, with what was not measured; a blank if a run has no figure."""
    found = [
        entry
        for one in subject.trained
        for key, name in (
            ("kwh", "energy in kWh"),
            ("measured", "energy, measured"),
            ("not_measured", "energy, not measured"),
        )
        for entry in fact(one, name, f"energy/{key}")
    ]
    complete = all((one.get("energy") or {}).get("kwh") is not None for one in subject.trained)
    return [*found, *(() if complete and found else (_blank("energy"),))]


def _software(subject: Subject) -> list[Fact]:
    one = subject.manifest
    return [*fact(one, "Tiebreak", "tiebreak"), *fact(one, "packages", "packages")]


def _versions(subject: Subject) -> list[Fact]:
    return [
        entry
        for one in subject.chain
        for key, name in (("id", "run"), ("git_commit", "commit"), ("finished_at", "finished"))
        for entry in fact(one, name, key)
    ]


def _changes(subject: Subject) -> Sequence[Entry]:
    if subject.previous is None:
        return (_blank("changes"),)
    return changes(subject.previous, subject.chain)


# --- blanks ---

BLANKS = {
    "provider": "Who is the provider, and how can they be reached?",
    "name_version": "Under which name and version is the model given out?",
    "licence": "Which licence has the model, and does the base model's licence allow it?",
    "data_licences": "Which licences do the prompts, demonstrations and judgments have, and who allowed their use?",
    "languages": "For which languages is it meant?",
    "purpose": "What is it for, by whom, and in which setting?",
    "out_of_scope": "What must it not be used for?",
    "affected": "Which persons or groups does it affect, and how?",
    "integration": "Which hardware and software does it work with outside this file?",
    "forms": "In which forms is it placed on the market (download, API, built into a product)?",
    "interface": "What does its user see, and where are the instructions for use?",
    "raters": "Who were the raters (expertise, country), how were they paid, and what did they consent to?",
    "personal_data": "Is there personal data in the sources, on which legal basis, and for how long is it kept?",
    "design": "Why was this method chosen, and what was given up for it?",
    "hardware": "On which hardware is it meant to run?",
    "product": "Is it part of a product? Of which, and where are pictures, markings and layout of it?",
    "input_data": "Which input data does it expect, and what happens with other input?",
    "changes": "What changed since the last version? Name that version's run with --previous; if there is none, say so.",
    "oversight": "Who watches its answers, and how can they stop or correct it?",
    "changes_planned": "Which changes are planned, and how will they be checked?",
    "security": "What protects it against attacks, such as injected instructions and poisoned data?",
    "limits": "In which cases does it fail, for whom, and how is that found out?",
    "metrics_fit": "Why are these measures right for its purpose?",
    "risks": "Which risks were found (Article 9), what was done, and what remains?",
    "standards": "Which harmonised standards or other solutions were applied?",
    "declaration": "Where is the EU declaration of conformity?",
    "monitoring": "How is it watched after release, and how are incidents reported?",
    "energy": "How much energy did training take? Some of its runs measured none.",
    "log_keeping": "Which events does the system log in use, and for how long (Article 12)?",
    "use_policy": "Which acceptable use policies apply?",
    "release": "When was it released, and how is it distributed?",
    "architecture": "Which architecture has it, and how many parameters?",
    "modality": "Which inputs does it take, which outputs does it give, and in which format?",
    "sizes": "How long may inputs and outputs be when it is used?",
    "compute": "How many operations did training take, and how was that estimated? 'tiebreak plan' estimates them.",
    "adversarial": "How was it attacked in tests, inside and outside the provider, and how was it adapted?",
    "system": "Which components build on each other, and how are they integrated?",
    "public_data": "Which of the data sets are publicly available, and where?",
    "private_data": "Which data was licensed or bought from third parties?",
    "crawled_data": "Was data crawled: by which crawlers, when, from which sites?",
    "user_data": "Was data of users of your services used, and on which legal basis?",
    "synthetic_data": "Which models wrote synthetic data, also outside Tiebreak?",
    "reservations": "How were reservations of rights respected (robots.txt, terms, licences)?",
    "illegal_content": "How was illegal content kept out of the data?",
    "marking": "How are its answers marked as made by a machine (Article 50)?",
    **datasheet.QUESTIONS,
}


def _blank(name: str) -> Blank:
    return Blank(name, BLANKS[name])


def _or_blank(found: Sequence[Fact], blank: str, question: str) -> list[Entry]:
    return list(found) or [Blank(blank, question)]


# --- the forms ---


def hub(subject: Subject) -> list[Part]:
    """The headings of the hub's model card."""
    unmeasured = "Which evaluation measured it? Name one with --evaluation."
    return [
        Part("Model Details", (_blank("provider"), _blank("name_version"), _blank("licence"), *_base(subject))),
        Part("Changes since the last version", tuple(_changes(subject)), 3),
        Part("Uses", (_blank("purpose"), _blank("out_of_scope"))),
        Part("Bias, Risks, and Limitations", (_blank("limits"), _blank("affected"))),
        Part("Training Details", ()),
        Part("Training Data", (*_data(subject), _blank("data_licences")), 3),
        Part("Preprocessing", (*_cleaning(subject), _blank("personal_data")), 3),
        Part("Judgments", (*_labelling(subject), *((_blank("raters"),) if _labelling(subject) else ())), 3),
        Part("Training Procedure", (*_steps(subject), *_metrics(subject)), 3),
        Part("Evaluation", tuple(_or_blank(_evaluated(subject), "evaluation", unmeasured))),
        Part("Environmental Impact", (*_machine(subject), *_energy(subject))),
        Part("Technical Specifications", (*_software(subject), *_versions(subject))),
    ]


_IDENTITY = ("purpose", "provider", "name_version", "languages", "licence")
_CONTROL = ("limits", "affected", "input_data", "marking")
"""blanks of two parts of Annex IV"""


def annex_iv(subject: Subject) -> list[Part]:
    """A technical file under the headings of Annex IV."""
    unmeasured = "Which evaluation measured it? Name one with --evaluation."
    blank = _blank
    return [
        Part("1. General description", ()),
        Part("1 (a) Purpose, provider, version", (*(blank(name) for name in _IDENTITY),), 3),
        Part("1 (b) Interaction with hardware and software", (blank("integration"),), 3),
        Part("1 (c) Versions of software", tuple(_software(subject)), 3),
        Part("1 (d) Forms in which it is placed on the market", (blank("forms"),), 3),
        Part("1 (e) Hardware it is meant to run on", (blank("hardware"),), 3),
        Part("1 (f) Products that it is part of", (blank("product"),), 3),
        Part("1 (g), (h) User interface, instructions for use", (blank("interface"),), 3),
        Part("2. Elements and process of development", ()),
        Part("2 (a) Methods and steps, pre-trained models", (*_base(subject), *_steps(subject)), 3),
        Part("2 (b) Design and its reasons", (blank("design"),), 3),
        Part(
            "2 (c) Architecture, computing resources",
            (*_architecture(subject), *_weights(subject), *_machine(subject), *_energy(subject)),
            3,
        ),
        Part("2 (d) Data: sources, labelling, cleaning", (*_data(subject), blank("data_licences")), 3),
        Part("Labelling", (*_labelling(subject), blank("raters")), 4),
        Part("Cleaning", (*_cleaning(subject), blank("personal_data")), 4),
        Part("2 (e) Human oversight", (blank("oversight"),), 3),
        Part("2 (f) Changes foreseen", (blank("changes_planned"),), 3),
        Part(
            "2 (g) Validation and testing",
            (*_metrics(subject), *_or_blank(_evaluated(subject), "evaluation", unmeasured)),
            3,
        ),
        Part("2 (h) Cybersecurity", (blank("security"),), 3),
        Part("3. Monitoring, functioning and control", tuple(blank(name) for name in _CONTROL)),
        Part("4. Appropriateness of the metrics", (blank("metrics_fit"),)),
        Part("5. Risk management", (blank("risks"),)),
        Part("6. Changes through the lifecycle", (*_changes(subject), *_versions(subject))),
        Part("7. Standards", (blank("standards"),)),
        Part("8. Declaration of conformity", (blank("declaration"),)),
        Part("9. Monitoring after release", (blank("monitoring"), blank("log_keeping"))),
    ]


def annex_xi(subject: Subject) -> list[Part]:
    """Technical documentation of a general-purpose model under the headings of Annex XI, section 1 and 2."""
    unmeasured = "Which evaluation measured it? Name one with --evaluation."
    return [
        Part("Section 1, 1. General description", ()),
        Part("(a) Tasks and systems it can be integrated in", (_blank("purpose"), _blank("integration")), 3),
        Part("(b) Acceptable use policies", (_blank("use_policy"), _blank("out_of_scope")), 3),
        Part("(c) Date of release, ways of distribution", (_blank("release"), _blank("forms")), 3),
        Part("(d) Architecture and parameters", (*_base(subject), *_architecture(subject)), 3),
        Part("(e) Modality and format of inputs and outputs", (_blank("modality"), _blank("languages")), 3),
        Part("(f) Licence", (_blank("licence"),), 3),
        Part("Section 1, 2. Process of development", ()),
        Part("(a) Technical means of integration", (*_software(subject), _blank("interface")), 3),
        Part("(b) Design, training, choices", (*_steps(subject), *_metrics(subject), _blank("design")), 3),
        Part("(c) Data", (*_data(subject), _blank("data_licences"), *_cleaning(subject), *_labelling(subject)), 3),
        Part("(d) Computation", (*_machine(subject), _blank("compute")), 3),
        Part("(e) Energy", tuple(_energy(subject)), 3),
        Part("Section 2. Models with systemic risk", ()),
        Part("1. Evaluation", tuple(_or_blank(_evaluated(subject), "evaluation", unmeasured)), 3),
        Part("2. Adversarial testing", (_blank("adversarial"),), 3),
        Part("3. Architecture of the system", (_blank("system"),), 3),
    ]


def annex_xii(subject: Subject) -> list[Part]:
    """Information for providers who build a general-purpose model into their system: the headings of Annex XII."""
    return [
        Part("1. General description", ()),
        Part("(a) Tasks and systems it can be integrated in", (_blank("purpose"), _blank("limits")), 3),
        Part("(b) Acceptable use policies", (_blank("use_policy"), _blank("out_of_scope")), 3),
        Part("(c) Date of release, ways of distribution", (_blank("release"), _blank("forms")), 3),
        Part("(d) Hardware and software outside the model", (_blank("integration"),), 3),
        Part("(e) Versions of software", tuple(_software(subject)), 3),
        Part("(f) Architecture and parameters", (*_base(subject), *_architecture(subject)), 3),
        Part("(g) Modality and format of inputs and outputs", (_blank("modality"), _blank("languages")), 3),
        Part("(h) Licence", (_blank("licence"),), 3),
        Part("2. Elements and process of development", ()),
        Part("(a) Technical means of integration", (_blank("interface"), _blank("marking")), 3),
        Part("(b) Inputs and outputs: format and maximum size", (*_lengths(subject), _blank("sizes")), 3),
        Part("(c) Data", (*_data(subject), _blank("data_licences"), *_cleaning(subject)), 3),
    ]


def article_53(subject: Subject) -> list[Part]:
    """A summary of the content used for training, under the sections of the Commission's template."""
    return [
        Part(
            "1. General information", (_blank("provider"), _blank("name_version"), *_base(subject), *_versions(subject))
        ),
        Part("2. List of data sources", ()),
        Part("2.1 Publicly available data sets", (*_data(subject), _blank("public_data")), 3),
        Part("2.2 Private data sets obtained from third parties", (_blank("private_data"), _blank("data_licences")), 3),
        Part("2.3 Data crawled and scraped", (_blank("crawled_data"),), 3),
        Part("2.4 User data", (_blank("user_data"),), 3),
        Part("2.5 Synthetic data", (*_synthetic(subject), _blank("synthetic_data")), 3),
        Part("2.6 Other sources: judgments", (*_labelling(subject), _blank("raters")), 3),
        Part("3. Data processing", ()),
        Part("3.1 Reservations of rights (text and data mining)", (_blank("reservations"),), 3),
        Part(
            "3.2 Removal of illegal content",
            (*_cleaning(subject), _blank("illegal_content"), _blank("personal_data")),
            3,
        ),
    ]


def _lengths(subject: Subject) -> list[Fact]:
    return [
        entry
        for one in subject.trained
        for entry in fact(one, "longest sequence in tokens", "config/training/max_length_tokens")
    ]


def _synthetic(subject: Subject) -> list[Fact]:
    return [entry for one in subject.chain for entry in fact(one, "synthetic rows", "synthetic")]


FORMS: dict[str, Callable[[Subject], list[Part]]] = {
    "hub": hub,
    "annex_iv": annex_iv,
    "annex_xi": annex_xi,
    "annex_xii": annex_xii,
    "article_53": article_53,
    "data_sheet": datasheet.data_sheet,
}
NOTES = {
    "hub": "",
    "annex_iv": (
        "The headings follow Annex IV of Regulation (EU) 2024/1689, shortened. Whether the model needs this file, and "
        "whether it is complete, is for a lawyer to say."
    ),
    "annex_xi": (
        "The headings follow Annex XI of Regulation (EU) 2024/1689, shortened; section 2 is for models with systemic risk. "
        "A fine-tuner is seldom the provider of a general-purpose model: whether that applies is for a lawyer to say."
    ),
    "annex_xii": (
        "The headings follow Annex XII of Regulation (EU) 2024/1689, shortened. Whether the model needs this file, and "
        "whether it is complete, is for a lawyer to say."
    ),
    "article_53": (
        "A summary after Article 53(1)(d) of Regulation (EU) 2024/1689, its sections shortened; compare them with the "
        "Commission's template. Data of the base model is its provider's to describe. Have a lawyer check it."
    ),
    "data_sheet": (
        "The sections are those of Gebru et al. 2021, Datasheets for Datasets; the last is after Article 10 of Regulation "
        "(EU) 2024/1689. Whether that applies, and whether the answers suffice, is for a lawyer to say."
    ),
}
TITLES = {
    "hub": "Model card",
    "annex_iv": "Technical documentation",
    "annex_xi": "Technical documentation (general-purpose model)",
    "annex_xii": "Information for downstream providers",
    "article_53": "Summary of training content",
    "data_sheet": "Data sheet",
}
NAMES = {
    "hub": "card",
    "annex_iv": "technical-file",
    "annex_xi": "annex-xi",
    "annex_xii": "annex-xii",
    "article_53": "training-content",
    "data_sheet": "data-sheet",
}
"""of the files"""

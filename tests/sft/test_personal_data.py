"""Personal data: how much is found, what replaces it, and that none of it is left in the run's folder."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_strings import CLEAN, ODD
from sentences import sentences
from support import REPOSITORY, read_rows, write_rows

from sft.configuration import AnonymiseConfig, PrepareConfig
from sft.pii.surrogates import surrogate
from sft.prepare import prepare
from sft.steps.anonymise import Anonymise, Scope, normal_form
from sft.steps.step import Ledger, Row, Tally
from tiebreak.errors import ConfigError, DataError
from tiebreak.messages import Message, prompt_id
from tiebreak.pii.checksums import passes_luhn, passes_mod_11_10, passes_mod_97
from tiebreak.pii.detector import Detector
from tiebreak.pii.finding import Finding, settle, with_context
from tiebreak.pii.patterns import PATTERNS, find_patterns
from tiebreak.pii.plain import plain
from tiebreak.pii.presidio import Presidio
from tiebreak.records import Prompt

DETECTOR = Detector()
HYDROPONICS = Path(__file__).parents[2] / "data" / "hydroponics"
SECRET = "a secret of sixteen or more"
ROWS = [
    {
        "prompt": "Write to anna@example.org or ANNA@example.org, IBAN DE89 3704 0044 0532 0130 00.",
        "completion": "Done: anna@example.org",
    },
    {"prompt": "My <b>card</b> 4111 1111 1111 1111 and anna@example.org", "completion": "ok"},
    {"prompt": "Dropped: call 0171 2345678", "completion": "ha " * 100},
]
VALUES = ("anna@example.org", "ANNA@", "3704", "4111", "2345678")


def run(folder: Path, policy: Path, rows: list[Any], *, on_bad_row: str = "refuse", **anonymise: Any) -> Path:
    """The final folder of a prepare run with the step."""
    folder.mkdir(parents=True, exist_ok=True)
    source = str(write_rows(folder / "rows.jsonl", rows))
    values = {
        "output": str(folder / "run"),
        "policy": str(policy),
        "demonstrations": [source],
        "steps": ["repair", "quality", "anonymise"],
        "quality": {"action": "drop"},
        "near_duplicate": 1,
        "on_bad_row": on_bad_row,
        "anonymise": anonymise,
    }
    prepare(PrepareConfig.model_validate(values))
    return folder / "run" / "final"


def prompts(final: Path) -> list[str]:
    return [row["prompt"]["messages"][0]["content"] for row in read_rows(final / "demonstrations.jsonl")]


# --- what is found -----------------------------------------------------------------------------------------------------


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import personal_data

    return personal_data


def test_every_structured_kind_is_found_with_f1_of_at_least_95_percent(benchmark: Any) -> None:
    """The sentences are ours, and so are most patterns: how well names are found depends on the user's model."""
    measured = list(sentences())
    counts = benchmark.count(DETECTOR, measured)
    assert len(measured) >= 400
    scores = counts.f1()
    assert set(scores) >= {
        "EMAIL",
        "PHONE",
        "IBAN",
        "CARD",
        "IP",
        "URL",
        "SECRET",
        "BIRTH_DATE",
        "NATIONAL_ID",
        "PLATE",
        "ADDRESS",
    }
    assert min(scores.values()) >= 0.95, scores
    page = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    assert "\n".join(benchmark.table(counts)) in page, "run python benchmarks/personal_data.py --docs"


def test_recall_and_precision_by_hand(benchmark: Any) -> None:
    """One of two addresses is found, with a false one beside it: Wilson's interval of 1 of 2 is .095 to .905."""
    texts = {"mail anna@example.org or bob(at)home": {(5, 21): "EMAIL", (25, 36): "EMAIL"}, "c@example.org": {}}
    counts = benchmark.count(DETECTOR, [SimpleNamespace(text=text, spans=spans) for text, spans in texts.items()])
    assert (counts.found["EMAIL"], counts.missed["EMAIL"], counts.false["EMAIL"]) == (1, 1, 1)
    assert counts.f1() == {"EMAIL": 0.5}
    assert list(benchmark.table(counts))[2] == ("| `EMAIL` | 2 | 1 | 0.500 [0.095, 0.905] | 1 | 0.500 [0.095, 0.905] |")


def test_nothing_is_found_in_texts_about_plants() -> None:
    texts = [
        text
        for name in ("prompts", "demonstrations")
        for row in read_rows(HYDROPONICS / f"{name}.jsonl")
        for text in _strings(row)
    ]
    assert len(texts) >= 360
    assert [(one, text) for text in texts for one in DETECTOR.find(text) if one.is_sure] == []


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _strings(part)]


@pytest.mark.parametrize(("kind", "value", "text"), ODD)
def test_odd_ways_to_write_it_are_found(kind: str, value: str, text: str) -> None:
    start = text.index(value)
    end = start + len(value)
    sure = [one for one in DETECTOR.find(text) if one.is_sure and one.start < end and start < one.end]
    hidden = {place for one in sure for place in range(one.start, one.end)}
    assert kind in {one.kind for one in sure}
    assert {place for place in range(start, end) if not text[place].isspace()} <= hidden


@pytest.mark.parametrize("text", CLEAN)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert [text[one.start : one.end] for one in DETECTOR.find(text) if one.is_sure] == []


def test_the_plain_form_goes_back_to_the_text() -> None:
    text = "a\u200bb ４１&#64;x％ &amp;#64; \u00a0\u0663"
    seen = plain(text)
    assert seen is not None
    assert seen.text == "ab 41@x% &#64;  3"
    assert plain("plain, with ü and 4") is None
    for n, character in enumerate(seen.text):
        written = text[seen.starts[n] : seen.ends[n]]
        assert written == character or plain(written), (character, written)
    assert seen.in_original(Finding(3, 6, "X", 1.0)) == Finding(text.index("４"), text.index("x"), "X", 1.0)


def test_check_digits_by_hand() -> None:
    """ISO 13616's example, ISO 7812's, and the German tax office's."""
    assert passes_mod_97("GB29NWBK60161331926819")
    assert not passes_mod_97("GB29NWBK60161331926818")
    assert passes_luhn("49927398716")
    assert not passes_luhn("49927398717")
    assert passes_mod_11_10("86095742719")
    assert not passes_mod_11_10("86095742718")


_ANY_NUMBERS = st.text("0123456789 .-/:+()aAbFgTx@\n", max_size=40)


@settings(max_examples=150, deadline=None)
@given(_ANY_NUMBERS)
def test_looking_at_signs_first_changes_no_finding(text: str) -> None:
    every = re.compile("")
    slow = Presidio(("de", "en"))
    slow._recognisers = [(kind, every, recogniser) for kind, _, recogniser in slow._recognisers]
    assert DETECTOR.presidio.find(text) == slow.find(text)
    both = [(pattern.find(text, text.lower(), any(map(str.isdigit, text))), pattern.find(text)) for pattern in PATTERNS]
    assert all(list(quick) == list(whole) for quick, whole in both)


@pytest.mark.parametrize(
    "mistyped", ["DE89 3704 0044 0532 0130 01", "4111 1111 1111 1112", "Steuer-ID 86095742718", "999.1.1.1"]
)
def test_a_wrong_check_digit_is_no_number(mistyped: str) -> None:
    assert [one for one in DETECTOR.find(mistyped) if one.is_sure and one.kind != "PHONE"] == []


def test_of_overlapping_findings_the_surer_then_the_longer_counts() -> None:
    a, b, c = Finding(0, 5, "A", 0.5), Finding(3, 9, "B", 0.9), Finding(0, 4, "C", 0.5)
    assert settle([a, b, c]) == [b]
    assert settle([a, c]) == [a]
    assert settle([Finding(5, 9, "D", 0.1), a]) == [a, Finding(5, 9, "D", 0.1)]


def test_a_word_nearby_makes_a_finding_sure() -> None:
    text = "my plate is AB12 CDE"
    assert with_context(text, Finding(12, 20, "PLATE", 0.3), ("plate",)).is_sure
    assert not with_context("my template: AB12 CDE", Finding(13, 21, "PLATE", 0.3), ("plate",)).is_sure


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_can_be_searched(text: str) -> None:
    for one in DETECTOR.find(text):
        assert 0 <= one.start < one.end <= len(text)


# --- replacements ------------------------------------------------------------------------------------------------------


def test_tags_are_one_for_one_value_in_a_row(tmp_path: Path, tiny_model: Path) -> None:
    final = run(tmp_path, tiny_model, ROWS)
    assert prompts(final) == ["Write to <EMAIL_1> or <EMAIL_1>, IBAN <IBAN_1>.", "My card <CARD_1> and <EMAIL_1>"]
    assert read_rows(final / "demonstrations.jsonl")[0]["completion"] == "Done: <EMAIL_1>"
    report = json.loads((final / "report.json").read_text())["steps"][-1]
    assert report["facts"]["found"] == {"CARD": 1, "EMAIL": 4, "IBAN": 1}
    assert report["facts"]["names"].startswith("names of people were not looked for")


def test_no_file_of_the_run_has_what_was_removed(tmp_path: Path, tiny_model: Path) -> None:
    """Rows that an earlier step changed or dropped are listed without it too."""
    final = run(tmp_path, tiny_model, ROWS)
    assert read_rows(final / "dropped.jsonl")[0]["text"].startswith("Dropped: call <PHONE_1>")
    assert read_rows(final / "changed.jsonl")[0]["before"] == "My <b>card</b> <CARD_1> and <EMAIL_1>\n\nok"
    written = {path: path.read_text() for path in final.parent.rglob("*") if path.is_file()}
    assert [(path, value) for path, text in written.items() for value in VALUES if value in text] == []


def test_one_tag_in_all_of_the_data(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": f"I am {name}@example.org", "completion": "ok"} for name in ("a", "b", "a")]
    assert prompts(run(tmp_path, tiny_model, rows[:2], scope="data")) == ["I am <EMAIL_1>", "I am <EMAIL_2>"]


def test_redact_hash_and_surrogate(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        prompts(run(tmp_path / "r", tiny_model, ROWS, mode="redact"))[0] == "Write to <EMAIL> or <EMAIL>, IBAN <IBAN>."
    )
    monkeypatch.setenv("TIEBREAK_PII_KEY", SECRET)
    first = prompts(run(tmp_path / "h", tiny_model, ROWS, mode="hash"))
    tag = re.search(r"<EMAIL_[0-9a-f]{12}>", first[0])
    assert tag
    assert tag.group() in first[1]  # a value has one hash in all rows
    monkeypatch.setenv("TIEBREAK_PII_KEY", SECRET + "!")
    assert tag.group() not in prompts(run(tmp_path / "k", tiny_model, ROWS, mode="hash"))[0]
    invented = prompts(run(tmp_path / "s", tiny_model, ROWS, mode="surrogate"))
    assert [one.kind for one in DETECTOR.find(invented[0])] == [
        "EMAIL",
        "EMAIL",
        "IBAN",
    ]  # plausible, by the same checksums
    assert [one.kind for one in DETECTOR.find(invented[1])] == ["CARD", "EMAIL"]
    assert not any(value in text for text in invented for value in VALUES)


@pytest.mark.parametrize(
    "kind", ["EMAIL", "PHONE", "IBAN", "CARD", "IP", "MAC", "BIRTH_DATE", "ADDRESS", "PERSON", "WORD", "PLATE"]
)
def test_a_surrogate_depends_on_the_value_and_the_seed_alone(kind: str) -> None:
    values = [f"+49 170 {n}" for n in range(40)]
    assert [surrogate(kind, v, 0) for v in values] == [surrogate(kind, v, 0) for v in values]
    assert [surrogate(kind, v, 0) for v in values] != [surrogate(kind, v, 1) for v in values]


@pytest.mark.parametrize("kind", ["PHONE", "IP", "ADDRESS", "PERSON"])
def test_no_two_values_have_one_surrogate(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 draws among the 254 addresses of an example network, or the 1,000 numbers of a town, would agree in some."""
    step, scope = _surrogates(tmp_path, monkeypatch), Scope()
    values = [f"+49 170 {n}" if kind == "PHONE" else f"A {n}" for n in range(200)]
    invented = [step._in_place_of(kind, value, scope) for value in values]
    assert len(set(invented)) == 200
    assert invented == [step._in_place_of(kind, value, scope) for value in values]
    assert [scope.values[one] for one in invented] == values
    assert len({surrogate(kind, value, 0) for value in values}) < 200


def test_too_few_surrogates_for_a_map_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are 256 MAC addresses for documents (RFC 7042)."""
    step, scope = _surrogates(tmp_path, monkeypatch), Scope()
    scope.values = {f"00:00:5E:00:53:{n:02X}": "" for n in range(256)}
    with pytest.raises(DataError, match="values of kind MAC are more than there are invented"):
        step._in_place_of("MAC", "00:1b:ff", scope)
    step.map = None
    assert step._in_place_of("MAC", "00:1b:ff", scope).startswith("00:00:5E")


def _surrogates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Anonymise:
    monkeypatch.setenv("TIEBREAK_PII_KEY", SECRET)
    how = {"mode": "surrogate", "map": str(folder / "map")}
    stated = {"output": str(folder / "run"), "prompts": ["x.jsonl"], "steps": ["anonymise"], "anonymise": how}
    return Anonymise(PrepareConfig.model_validate(stated))


def test_a_map_of_values_that_look_alike_is_refused() -> None:
    with pytest.raises(ValueError, match="map with mode: redact"):
        AnonymiseConfig(mode="redact", map="map.bin")


def test_a_word_inside_a_longer_value_does_not_break_it(tmp_path: Path, tiny_model: Path) -> None:
    """A customer list has the name that the address begins with: `<WORD_1>.weber@…` would still name her."""
    words = tmp_path / "words.txt"
    words.write_text("Anna\nWeber\n")
    rows = [
        {"prompt": "Anna, anna.weber@firma.example, https://x.example/?token=abc123456&c=K-778899", "completion": "ok"}
    ]
    final = run(tmp_path / "x", tiny_model, rows, patterns={"CUSTOMER": "K-[0-9]{6}"}, words=str(words))
    assert prompts(final) == ["<WORD_1>, <EMAIL_1>, <URL_1>"]
    inner, outer, across = Finding(2, 5, "WORD", 1.0), Finding(0, 9, "EMAIL", 0.9), Finding(8, 12, "IBAN", 1.0)
    assert settle([outer], [inner]) == [outer]
    assert settle([outer, across], [inner]) == [inner, across]  # nothing longer is hidden there
    assert settle([Finding(0, 9, "PHONE", 0.3)], [inner]) == [inner]  # an unsure one stays in the text


def test_surrogates_have_the_shape_of_the_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = _surrogates(tmp_path, monkeypatch)
    for kind, value in (("PLATE", "B-AB 1234"), ("NATIONAL_ID", "856-45-6789"), ("WORD", "Müllermann")):
        invented = step._in_place_of(kind, value, Scope())
        shapes = [re.sub(r"\d", "9", re.sub(r"[A-Z]", "A", re.sub(r"[a-zü]", "a", one))) for one in (value, invented)]
        assert shapes[0] == shapes[1]
        assert invented != value


def test_writings_of_one_value_are_one_value() -> None:
    assert normal_form("IBAN", "DE89 3704") == normal_form("IBAN", "de893704")
    assert normal_form("PHONE", "0049 171-2") == normal_form("PHONE", "+49 (171) 2")
    assert normal_form("EMAIL", "A@b.c") == normal_form("EMAIL", "a@B.c")


@pytest.mark.parametrize(
    ("local", "international", "languages"),
    [
        ("0171 2345678", "+49 171 2345678", ["de", "en"]),
        ("0171/234 56 78", "0049 (0)171 2345678", ["de", "en"]),
        ("020 7946 0958", "+44 20 7946 0958", ["de", "en"]),
        ("(212) 555-0123", "+1 212-555-0123", ["en"]),
    ],
)
def test_a_telephone_number_with_and_without_its_country_code_is_one_value(
    local: str, international: str, languages: list[str]
) -> None:
    assert normal_form("PHONE", local, languages) == normal_form("PHONE", international, languages)


def test_other_telephone_numbers_stay_apart() -> None:
    """Another country's, another extension's."""
    numbers = ["+49 171 2345678", "+43 171 2345678", "+49 171 2345679", "+49 171 2345678 ext. 5"]
    assert len({normal_form("PHONE", one) for one in numbers}) == len(numbers)


def test_a_number_without_country_code_has_the_tag_of_the_same_with_one(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": "Call 0171 2345678, from abroad +49 171 2345678, not +49 171 2345679.", "completion": "ok"}]
    tagged = prompts(run(tmp_path / "t", tiny_model, rows))
    assert tagged == ["Call <PHONE_1>, from abroad <PHONE_1>, not <PHONE_2>."]


def test_arguments_of_calls_are_searched_keys_and_numbers_included() -> None:
    """A key announces its value: nothing in `hunter2-Xyz` or in a date says what it is."""
    arguments = {
        "anna@example.org": 1,
        "ben@example.org": 2,
        "card": 4111111111111111,
        "password": "hunter2-Xyz",
        "dateOfBirth": ["1980-03-04"],
        "amount": 12.5,
        "urgent": True,
    }
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    tool = {"type": "function", "function": {"name": "f", "description": "Writes to anna@example.org."}}
    messages = tuple(
        Message.model_validate(one) for one in ({"role": "user", "content": "mail anna@example.org"}, call)
    )
    prompt = Prompt(id=prompt_id(messages, (tool,)), messages=messages, tools=(tool,))

    def hidden(mode: str) -> Prompt:
        config = PrepareConfig(
            output="x",
            prompts=["p.jsonl"],
            steps=["anonymise"],
            anonymise=AnonymiseConfig.model_validate({"mode": mode}),
        )
        return Anonymise(config).run([Row("p:1", prompt)], Ledger(Tally("anonymise")))[0].prompt

    tagged, redacted = hidden("tag"), hidden("redact")
    assert tagged.messages[1].tool_calls[0].function.arguments == {
        "<EMAIL_1>": 1,
        "<EMAIL_2>": 2,
        "card": "<CARD_1>",
        "password": "<SECRET_1>",
        "dateOfBirth": ["<BIRTH_DATE_1>"],
        "amount": 12.5,
        "urgent": True,
    }
    assert tagged.tools[0]["function"] == {"name": "f", "description": "Writes to <EMAIL_1>."}
    assert [*redacted.messages[1].tool_calls[0].function.arguments][:2] == ["<EMAIL>", "<EMAIL> 2"]
    assert tagged.id == prompt_id(tagged.messages, tagged.tools) != prompt.id


def test_names_of_documents_are_hidden_where_the_run_names_them(tmp_path: Path, tiny_model: Path) -> None:
    """A folder of letters, named by their senders; two are the same."""
    folder = tmp_path / "letters"
    folder.mkdir()
    for sender, text in (
        ("anna.weber", "My lamp is dark."),
        ("ben.kurz", "My lamp is dark."),
        ("carl", "Call 0171 2345678"),
    ):
        (folder / f"{sender}@firma.example.txt").write_text(text)
    settings = {"output": str(tmp_path / "run"), "policy": str(tiny_model), "prompts": [str(folder)]}
    prepare(PrepareConfig.model_validate({**settings, "steps": ["anonymise"]}))
    written = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert {"changed.jsonl", "dropped.jsonl", "report.html"} <= {file.name for file in written}
    assert [file for file in written if "firma.example" in file.read_text(errors="replace")] == []
    (dropped,) = read_rows(tmp_path / "run" / "final" / "dropped.jsonl")
    assert dropped["where"].endswith("<EMAIL_1>")


def test_own_patterns_and_words(tmp_path: Path, tiny_model: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("Project Heron\n")
    rows = [{"prompt": "Order A-123456 of project heron", "completion": "ok"}]
    final = run(tmp_path / "x", tiny_model, rows, patterns={"ORDER": "A-[0-9]{6}"}, words=str(words))
    assert prompts(final) == ["Order <ORDER_1> of <WORD_1>"]
    assert json.loads((final.parent / "manifest.json").read_text())["inputs"]["words"]["kind"] == "file"


def test_names_are_found_by_the_users_model(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder may be called as a package is, which spaCy would load in its place."""
    spacy = pytest.importorskip("spacy")
    monkeypatch.chdir(tmp_path)
    model = spacy.blank("en")
    model.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": "Erika Muster"}])
    model.to_disk(tmp_path / "spacy")
    rows = [{"prompt": "I am Erika Muster", "completion": "Hello Erika Muster"}]
    final = run(tmp_path / "x", tiny_model, rows, model="spacy")
    assert prompts(final) == ["I am <PERSON_1>"]
    assert read_rows(final / "demonstrations.jsonl")[0]["completion"] == "Hello <PERSON_1>"
    report = json.loads((final / "report.json").read_text())["steps"][-1]
    assert report["facts"]["names"] == "sought"
    assert json.loads((final.parent / "manifest.json").read_text())["inputs"]["names_model"]["kind"] == "model"


class StandIn:
    """The interface of gliner 0.2.29. Like it, this model reads a limited number of words and ignores the rest."""

    names: ClassVar = {"Erika Muster": 0.9, "Ö. Ångström": 0.8, "Lamp": 0.4, "Cable": 0.2}

    @classmethod
    def from_pretrained(cls, folder: str, local_files_only: bool = False) -> StandIn:
        assert local_files_only
        if "broken" in folder:
            raise RuntimeError("size mismatch\nfor encoder")
        return cls()

    def predict_entities(self, text: str, labels: list[str], threshold: float) -> list[dict[str, Any]]:
        words = [one.end() for one in re.finditer(r"\w+(?:[-_]\w+)*|\S", text)][:40]
        read = text[: words[-1]]
        return [
            {"start": one.start(), "end": one.end(), "text": name, "label": labels[0], "score": score}
            for name, score in self.names.items()
            if score >= threshold
            for one in re.finditer(name, read)
        ]


@pytest.fixture
def gliner_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "gliner", SimpleNamespace(GLiNER=StandIn))
    folder = tmp_path / "names"
    folder.mkdir()
    (folder / "gliner_config.json").write_text('{"max_len": 40}')
    return folder


def test_gliner_finds_names_wherever_they_stand_in_a_long_text(gliner_model: Path) -> None:
    detector = Detector(model=str(gliner_model), kinds=["PERSON"])
    for before in range(100):  # at the edges of pieces, too
        text = f"{'wörd, ' * before}Erika Muster and Ö. Ångström{' rest' * 50}"
        found = [(text[one.start : one.end], one.kind, one.score) for one in detector.find(text)]
        assert found == [("Erika Muster", "PERSON", 0.9), ("Ö. Ångström", "PERSON", 0.8)], before
    assert detector.find("") == detector.find("  \n") == []


def test_names_of_which_gliner_is_unsure_are_flagged(gliner_model: Path, tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": "I am Erika Muster", "completion": "Lamp or Cable"}]
    final = run(tmp_path / "x", tiny_model, rows, model=str(gliner_model))
    assert read_rows(final / "demonstrations.jsonl")[0]["completion"] == "Lamp or Cable"
    assert prompts(final) == ["I am <PERSON_1>"]
    (flagged,) = read_rows(final / "flagged.jsonl")
    assert flagged["reason"] == "may hold PERSON"
    report = json.loads((final / "report.json").read_text())["steps"][-1]
    assert report["facts"]["names"] == "sought"
    assert json.loads((final.parent / "manifest.json").read_text())["inputs"]["names_model"]["kind"] == "model"


def test_a_gliner_model_that_cannot_be_used_is_one_clear_error(
    gliner_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = gliner_model.rename(tmp_path / "broken")
    with pytest.raises(ConfigError, match=r"broken cannot be loaded: size mismatch$"):
        Detector(model=str(broken))
    monkeypatch.setitem(sys.modules, "gliner", None)
    with pytest.raises(ConfigError, match=r"needs the package gliner\. It allows no transformers from 5\.17 on"):
        Detector(model=str(broken))
    with pytest.raises(ConfigError, match="there is no such folder"):
        Detector(model=str(tmp_path / "nowhere"))


def test_a_speakers_name_is_hidden_and_the_prompts_id_follows() -> None:
    messages = (Message(role="user", name="erika", content="hi"),)
    step = Anonymise(PrepareConfig(output="x", prompts=["p.jsonl"], steps=["anonymise"]))
    ledger = Ledger(Tally("anonymise"))
    (row,) = step.run([Row("p:1", Prompt(id=prompt_id(messages), messages=messages))], ledger)
    assert row.prompt.messages[0].name == "<PERSON_1>"
    assert row.prompt.id == prompt_id(row.prompt.messages) != prompt_id(messages)
    assert ledger.now.facts["found"] == {"PERSON": 1}


@pytest.mark.parametrize(
    "address",
    ["info@société.fr", "josé@peña.es", "почта@пример.рф", "a@xn--e1afmkfd.xn--p1ai", "info@müller-lampen.de"],
)
def test_addresses_have_any_alphabet(address: str) -> None:
    """RFC 6531; only German letters were found in the domain."""
    found = find_patterns(f"Write to {address}, please.", PATTERNS)
    assert [(one.kind, one.start, one.end) for one in found] == [("EMAIL", 9, 9 + len(address))]


def test_sources_and_tags_are_searched_too(tmp_path: Path, tiny_model: Path) -> None:
    """prompts.jsonl has tags and sources beside the text, and bad_rows.jsonl quotes cells that could not be read."""
    about = {"source": "mail of anna.b@example.org", "tags": ["from anna.b@example.org", "lamps"]}
    rows = [
        {"prompt": "Write to anna.b@example.org?", "completion": "ok", "split": "train", **about},
        {"prompt": "Or here?", "completion": "ok", "split": "of anna.b@example.org"},
    ]
    final = run(tmp_path, tiny_model, rows, on_bad_row="drop")
    (prompt,) = read_rows(final / "prompts.jsonl")
    assert (prompt["source"], prompt["tags"]) == ("mail of <EMAIL_1>", ["from <EMAIL_1>", "lamps"])
    written = "".join(
        file.read_text() for file in final.parent.rglob("*") if file.suffix in (".jsonl", ".json", ".html")
    )
    assert "anna.b@" not in written
    assert "split: 'of <EMAIL_1>' is not train" in read_rows(final.parent / "bad_rows.jsonl")[0]["reason"]


def test_unsure_findings_stay_and_are_flagged(tmp_path: Path, tiny_model: Path) -> None:
    final = run(tmp_path, tiny_model, [{"prompt": "It was AB12 CDE", "completion": "ok"}])
    assert prompts(final) == ["It was AB12 CDE"]
    assert read_rows(final / "flagged.jsonl")[0]["reason"] == "may hold PLATE"


# --- the map to undo it ------------------------------------------------------------------------------------------------


def test_the_map_is_encrypted_and_outside_the_run(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIEBREAK_PII_KEY", SECRET)
    kept = tmp_path / "vault" / "tickets.map"
    run(tmp_path / "x", tiny_model, ROWS[:1], map=str(kept))
    assert kept.stat().st_mode & 0o077 == 0
    assert b"anna" not in kept.read_bytes()
    shown = subprocess.run(
        [sys.executable, "-m", "sft.pii.vault", str(kept)], capture_output=True, text=True, check=True
    )
    (values,) = json.loads(shown.stdout).values()
    assert values == {"<EMAIL_1>": "anna@example.org", "<IBAN_1>": "DE89 3704 0044 0532 0130 00"}
    monkeypatch.setenv("TIEBREAK_PII_KEY", SECRET + "!")
    refused = subprocess.run([sys.executable, "-m", "sft.pii.vault", str(kept)], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "made with another key" in refused.stderr


def test_another_key_begins_anew(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of two keys do not agree: rows of a run that was stopped under one key are not kept for another key."""
    monkeypatch.setenv("TIEBREAK_PII_KEY", SECRET)
    with monkeypatch.context() as stopped, contextlib.suppress(KeyboardInterrupt):
        stopped.setattr("sft.prepare.compare", Mock(side_effect=KeyboardInterrupt))
        run(tmp_path / "stopped", tiny_model, ROWS, mode="hash")
    assert not (tmp_path / "stopped" / "run" / "final" / "demonstrations.jsonl").exists()
    monkeypatch.setenv("TIEBREAK_PII_KEY", SECRET + "!")
    resumed, whole = (prompts(run(tmp_path / name, tiny_model, ROWS, mode="hash")) for name in ("stopped", "whole"))
    assert resumed == whole
    monkeypatch.setenv("TIEBREAK_PII_KEY", SECRET)
    assert prompts(run(tmp_path / "first", tiny_model, ROWS, mode="hash")) != whole


# --- bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kinds": ["EMIAL"]}, "no kind EMIAL; there are ADDRESS, BIRTH_DATE"),
        ({"patterns": {"order": "A"}}, "use capitals"),
        ({"patterns": {"ORDER": "A["}}, "is not a regular expression"),
        ({"patterns": {"ORDER": "A*"}}, "matches the empty text"),
        ({"patterns": {"EMAIL": "A-[0-9]+"}}, "EMAIL is a kind already, .* choose another name, such as OWN_EMAIL"),
        ({"patterns": {"WORD": "A-[0-9]+"}}, "WORD is a kind already"),
        ({"mode": "hash"}, "needs a secret key, and TIEBREAK_PII_KEY is not set"),
        ({"kinds": ["EMAIL", "PERSON"]}, "PERSON is not found without anonymise.model"),
        ({"kinds": ["WORD"]}, "WORD is not found without anonymise.words"),
        ({"map": "/proc/tickets.map"}, "anonymise.map: /proc takes no file"),
        ({"map": "tickets.map"}, "anonymise.map needs a secret key, and TIEBREAK_PII_KEY is not set"),
    ],
)
def test_wrong_settings_stop_before_any_row_is_read(
    tmp_path: Path, tiny_model: Path, values: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIEBREAK_PII_KEY", raising=False)
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, tiny_model, ROWS, **values)


def test_a_map_in_the_run_folder_and_a_model_that_is_none_are_refused(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIEBREAK_PII_KEY", SECRET)
    with pytest.raises(ConfigError, match="is in the run folder"):
        run(tmp_path, tiny_model, ROWS, map=str(tmp_path / "run" / "map"))
    with pytest.raises(ConfigError, match="has neither a spaCy model"):
        run(tmp_path / "b", tiny_model, ROWS, model=str(tiny_model))

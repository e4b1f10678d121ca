"""The steps of `prepare`, each by rows worked by hand, and through the stage to its files."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import read_rows, write_rows

from sft.configuration import PrepareConfig
from sft.prepare import prepare
from sft.report.examples import difference
from sft.steps.contamination import Contamination, Index, words_of
from sft.steps.contradictions import Contradictions, clash
from sft.steps.quality import RULES, Text, compression_of, rules_of, symbol_share
from sft.steps.repair import fix_encoding, fix_whitespace, repair_text, without_markup, without_signature
from sft.steps.step import Ledger, Row, Tally
from tiebreak.errors import ConfigError, DataError
from tiebreak.messages import Message, prompt_id
from tiebreak.records import Demonstration, Prompt

# --- through the stage -------------------------------------------------------------------------------------------------


def run(folder: Path, model: Path, rows: Sequence[Any], **values: Any) -> Path:
    """The final folder of a prepare run on these demonstrations."""
    folder.mkdir(parents=True, exist_ok=True)
    source = str(write_rows(folder / "rows.jsonl", list(rows)))
    stated = {
        "output": str(folder / "run"),
        "policy": str(model),
        "demonstrations": [source],
        "near_duplicate": 1,
        **values,
    }
    prepare(PrepareConfig.model_validate(stated))
    return folder / "run" / "final"


def completions(final: Path) -> list[str]:
    return [row["completion"] for row in read_rows(final / "demonstrations.jsonl")]


def steps_of(final: Path) -> dict[str, Any]:
    return {tally["step"]: tally for tally in json.loads((final / "report.json").read_text())["steps"]}


def test_steps_run_in_order_and_every_row_they_touch_is_listed(tmp_path: Path, tiny_model: Path) -> None:
    rows = [
        {"prompt": "Why is it green?", "completion": "Because of <b>chlorophyll</b>, fÃ¼r sure."},
        {
            "prompt": "Pourquoi les feuilles de ma plante sont-elles jaunes depuis une semaine ?",
            "completion": "Le fer manque.",
        },
        {"prompt": "Is it safe?", "completion": "Yes."},
        {"prompt": "Is  it safe?", "completion": "No, never."},
    ]
    final = run(tmp_path, tiny_model, rows, steps=["repair", "language", "contradictions"])
    assert completions(final) == ["Because of chlorophyll, für sure.", "Yes.", "No, never."]
    changed = read_rows(final / "changed.jsonl")
    assert [(row["where"], row["reason"]) for row in changed] == [
        ("rows.jsonl:1", "encoding, markup"),
        ("rows.jsonl:4", "white space"),
    ]
    assert changed[0]["before"].endswith("<b>chlorophyll</b>, fÃ¼r sure.")
    assert changed[0]["after"].endswith("chlorophyll, für sure.")
    assert [(row["where"], row["step"], row["reason"]) for row in read_rows(final / "dropped.jsonl")] == [
        ("rows.jsonl:2", "language", "language is fr")
    ]
    assert [(row["where"], row["reason"]) for row in read_rows(final / "flagged.jsonl")] == [
        ("rows.jsonl:3", "yes and no, against rows.jsonl:4"),
        ("rows.jsonl:4", "yes and no, against rows.jsonl:3"),
    ]
    counts = {
        name: tuple(one[key] for key in ("read", "changed", "dropped", "flagged"))
        for name, one in steps_of(final).items()
    }
    assert counts == {"repair": (4, 2, 0, 0), "language": (4, 0, 1, 0), "contradictions": (3, 0, 0, 2)}


def test_without_steps_the_run_has_the_files_that_it_always_had(tmp_path: Path, tiny_model: Path) -> None:
    final = run(tmp_path, tiny_model, [{"prompt": "a?", "completion": "<b>b</b>"}])
    assert sorted(path.name for path in final.iterdir()) == [
        "demonstrations.jsonl",
        "dropped.jsonl",
        "prompts.jsonl",
        "report.json",
    ]
    assert completions(final) == ["<b>b</b>"]
    assert "steps" not in json.loads((final / "report.json").read_text())
    recorded = json.loads((final.parent / "manifest.json").read_text())["config"]
    assert not recorded.keys() & {"steps", "repair", "language", "quality", "contamination", "anonymise"}


def test_a_repaired_prompt_gets_the_id_of_its_text_and_keeps_its_split(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": "a &amp; b?", "completion": "c", "split": "test"}, {"prompt": "a & b?", "completion": "d"}]
    final = run(tmp_path, tiny_model, rows, steps=["repair"])
    prompts = [row["prompt"] for row in read_rows(final / "demonstrations.jsonl")]
    assert prompts[0]["id"] == prompts[1]["id"]
    assert [prompt["split"] for prompt in prompts] == ["test", "test"]


def test_what_is_only_markup_is_dropped_as_empty(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": "a?", "completion": "<p></p>"}, {"prompt": "b?", "completion": "c"}]
    final = run(tmp_path, tiny_model, rows, steps=["repair"])
    assert completions(final) == ["c"]
    assert read_rows(final / "dropped.jsonl")[0]["reason"] == "its completion is empty after repair"


def test_calls_and_thoughts_are_changed_with_the_text_and_names_of_arguments_are_not() -> None:
    said = Message.model_validate(
        {
            "role": "assistant",
            "content": "a",
            "reasoning_content": "b",
            "tool_calls": [{"function": {"name": "f", "arguments": {"c": ["d", 1]}}}],
        }
    )
    asked = (Message(role="user", content="e"),)
    rest = (Message(role="tool", content="g"), Message(role="assistant", content="h"))
    row = Row("x:1", Demonstration(prompt=Prompt(id=prompt_id(asked), messages=asked), completion=(said, *rest)))
    changed = row.map_text(str.upper)
    first, tool, last = changed.answers
    assert (first.content, first.reasoning_content, tool.content, last.content) == ("A", "B", "G", "H")
    assert first.tool_calls[0].function.name == "f"
    assert first.tool_calls[0].function.arguments == {"c": ["D", 1]}
    assert changed.prompt.id == prompt_id((Message(role="user", content="E"),))
    users = row.map_text(str.upper, ("user",))
    assert users.answers == row.answers
    assert users.prompt.messages[0].content == "E"


# --- repair ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Ã¼ber fÃ¼r â€“ â€œjaâ€\u009d", "über für – “ja”"),
        ("über “ja” ﬁx", "über “ja” ﬁx"),
    ],
)
def test_encodings(raw: str, expected: str) -> None:
    assert fix_encoding(raw) == expected


def test_letters_that_became_control_characters_are_repaired(tmp_path: Path, tiny_model: Path) -> None:
    """UTF-8 that was read as Latin-1: the second byte of ß is U+009F, of à the no-break space."""
    texts = ["Große Straße, città", "Das heißt: voilà\nweiter"]
    rows = [{"prompt": text.encode().decode("latin-1"), "completion": text} for text in texts]
    rows.append({"prompt": "plain\u0081 text\u00a0", "completion": "ok"})
    final = run(tmp_path, tiny_model, rows, steps=["repair"])
    assert [one["prompt"]["messages"][0]["content"] for one in read_rows(final / "demonstrations.jsonl")] == [
        *texts,
        "plain text",
    ]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("<p>One</p><p>Two &amp; three</p>", "One\nTwo & three"),
        ("a<br>b<br/>c", "a\nb\nc"),
        ("<ul><li>a</li><li>b</li></ul>", "- a\n- b"),
        ('<a href="x.html">link</a> and <img src=x.png>', "link and"),
        ("<script>alert(1)</script>text<!-- note -->", "text"),
        ("if a <b and c> d", "if a <b and c> d"),
        ("use `<div>` or\n```html\n<p>hi</p>  &amp;\n```", "use `<div>` or\n```html\n<p>hi</p>  &amp;\n```"),
        ("std::vector<int> and <T>", "std::vector<int> and <T>"),
        ("AT&T; 5 &lt; 7", "AT&T; 5 < 7"),
    ],
)
def test_markup(raw: str, expected: str) -> None:
    assert without_markup(raw).strip() == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("It broke.\n-- \nJ. Doe\nExample Ltd", "It broke."),
        ("It broke.\n\nKind regards,\nJ. Doe\n+49 30 23125 000", "It broke."),
        ("Es ist kaputt.\n\nMit freundlichen Grüßen\nE. M.", "Es ist kaputt."),
        ("New question.\n\nOn Mon, 3 March 2025, Support wrote:\n> old\n> older", "New question."),
        ("Sent it back.\nSent from my iPhone", "Sent it back."),
        ("Es flackert.\n\nGesendet von meinem iPhone", "Es flackert."),
        ("Es flackert.\nGesendet von Hamburg kam es an.", "Es flackert.\nGesendet von Hamburg kam es an."),
        ("Es flackert.\n\nVielen Dank und viele Grüße aus Bad Tölz\nHans", "Es flackert."),
        ("Es flackert.\n\nSchöner Gruß\nHans", "Es flackert."),
        (
            "Es flackert.\n\nAm Mo., 3. März 2026 um 10:12 Uhr schrieb Laden <\nhilfe@lampe.example>:\n\n> alt",
            "Es flackert.",
        ),
        ("New one.\n\nOn Mon, Mar 3, 2026 at 10:12 AM Shop <help@lamp.example>\nwrote:\n> old", "New one."),
        ("On Monday\nmy sister wrote:\nyes", "On Monday\nmy sister wrote:\nyes"),
        (
            "Passt nicht.\n\n________________\nVon: Laden <hilfe@lampe.example>\nGesendet: Montag, 3. März\nAn: Anna\n"
            "Betreff: AW: Lampe\n\nalt",
            "Passt nicht.",
        ),
        ("Too big.\n\n*From:* Shop\n*Sent:* Monday\n*To:* Ann\n*Subject:* RE\n\nold", "Too big."),
        ("My trip.\nFrom: Kiel\nTo: Rome\nWhen: May", "My trip.\nFrom: Kiel\nTo: Rome\nWhen: May"),
        ("Kind regards,", "Kind regards,"),
        ("MFG", "MFG"),
        (
            "Kind regards are what I write.\nBut how do I end a mail?",
            "Kind regards are what I write.\nBut how do I end a mail?",
        ),
    ],
)
def test_signatures(raw: str, expected: str) -> None:
    assert without_signature(raw) == expected


def test_white_space() -> None:
    assert fix_whitespace("a   b\n\n\n\nc\n  - d   e") == "a b\n\nc\n  - d e"
    assert fix_whitespace("| a   | b |\n```\nx    = 1\n\n\n\ny\n```") == "| a   | b |\n```\nx    = 1\n\n\n\ny\n```"


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text(st.sampled_from("<>/bp&;ltgam`#x39 \n-Ãü¼â€™>:")))
def test_repairing_twice_is_repairing_once_and_never_raises(text: str) -> None:
    once = repair_text(text)
    assert repair_text(once) == once


# --- quality -----------------------------------------------------------------------------------------------------------

SOUND = (
    "Light must be of the right colour, and the roots have to breathe. With too little of it the leaves turn pale, and the "
    "plant grows tall and weak. Move the lamp closer to the leaves, or leave it on for two hours more each day."
)


def test_a_sound_answer_passes_every_rule() -> None:
    assert [rule.name for rule in RULES if rule.fails(Text(SOUND))] == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("ab " * 30, "mean_word_length"),
        ("## # # # " * 8 + "the of and to with have be that", "symbols_per_word"),
        ("- a\n- b\n- c\n- d", "bullet_lines"),
        ("a…\nb...\nc\nd", "ellipsis_lines"),
        ("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 the of and", "words_with_letters"),
        (" ".join(f"word{n}" for n in range(25)), "stop_words"),
        ("a\na\na\nb", "repeated_lines"),
        ("red fish " * 12, "top_2_gram"),
        (SOUND + " " + SOUND, "repeated_10_grams"),
        ("Lorem ipsum dolor sit amet", "lorem_ipsum"),
        ("Please enable JavaScript to view the comments", "javascript_notice"),
        ("We use cookies to improve your experience", "policy_notice"),
        ("x = {1: 2}", "curly_bracket"),
        ("a\nb\nc\nd", "lines_end_in_punctuation"),
        ("same line here\nsame line here\nother\nlast", "characters_in_repeated_lines"),
        ("short\nlines\nof\na list", "short_lines"),
        ("ha " * 100, "compression"),
        ("@@@@ #### $$$$ %%%% ^^^^", "mostly_symbols"),
    ],
)
def test_what_each_rule_fails(text: str, rule: str) -> None:
    assert rule in [one.name for one in RULES if one.fails(Text(text))]


def test_the_counts_of_the_rules_by_hand() -> None:
    assert Text("a b a b c").share_in_grams(2, most_common=True) == pytest.approx(4 / 5)  # "a b" twice: 4 of 5 letters
    assert Text("a b c a b").share_in_grams(2, most_common=False) == pytest.approx(4 / 5)
    assert Text("a b c").share_in_grams(2, most_common=True) == 0
    assert symbol_share("ab !?") == 0.5
    assert compression_of("a" * 1000) < 0.05 < compression_of("qwertyuiop")


def test_groups_and_names_of_rules() -> None:
    assert {"lorem_ipsum", "curly_bracket"} <= {rule.name for rule in rules_of(["c4"])}
    assert [rule.name for rule in rules_of(["short_lines"])] == ["short_lines"]
    with pytest.raises(ConfigError, match="no rule gofer; groups: c4, filler, fineweb, gopher"):
        rules_of(["gofer"])


def test_quality_flags_or_drops(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": "a?", "completion": "ha " * 100}, {"prompt": "b?", "completion": "fine"}]
    flagged = run(tmp_path / "flag", tiny_model, rows, steps=["quality"])
    assert len(completions(flagged)) == 2
    assert "compression of the answer" in read_rows(flagged / "flagged.jsonl")[0]["reason"]
    dropped = run(tmp_path / "drop", tiny_model, rows, steps=["quality"], quality={"action": "drop"})
    assert completions(dropped) == ["fine"]
    assert steps_of(dropped)["quality"]["dropped"] == 1


# --- contradictions and contamination ------------------------------------------------------------------------------------


@given(st.text())
def test_symbols_are_what_is_neither_letter_digit_nor_space(text: str) -> None:
    shown = [character for character in text if not character.isspace()]
    assert symbol_share(text) == sum(not character.isalnum() for character in shown) / max(1, len(shown))


def test_bad_input_mixed_languages_and_a_test_set_in_the_training_folder(tmp_path: Path, tiny_model: Path) -> None:
    """An answer in another language than its prompt is listed; a test set that is read as training data is dropped."""
    german = "Die Lampe flackert, und ich möchte sie zurückgeben, weil sie seit Montag kaputt ist."
    english = "Please send the lamp back within fourteen days, and we will refund what you have paid for it."
    french = "La lampe clignote depuis lundi, et je voudrais la rendre, car elle est cassée."
    both = ["Bitte schicken Sie die Lampe zurück.", english]
    rows = [{"prompt": german, "completion": answer} for answer in both]
    rows += [{"prompt": f"{french} Que faire ?", "completion": french}, {"prompt": english, "completion": german}]
    tests = [{"prompt": "Which bulb is right for a cold room in winter, and how many lumens?", "completion": "800."}]
    write_rows(tmp_path / "data" / "rows.jsonl", rows)
    benchmark = write_rows(tmp_path / "data" / "benchmark.jsonl", tests)
    values = {
        "output": str(tmp_path / "run"),
        "policy": str(tiny_model),
        "demonstrations": [str(tmp_path / "data")],
        "near_duplicate": 1,
        "steps": ["language", "contamination"],
        "language": {"keep": ["de", "en"]},
        "contamination": {"against": [str(benchmark)]},
    }
    prepare(PrepareConfig.model_validate(values))
    final = tmp_path / "run" / "final"
    assert sorted(completions(final)) == sorted([*both, german])
    flagged = [row["reason"] for row in read_rows(final / "flagged.jsonl")]
    assert flagged == ["the prompt is de, the answer en", "the prompt is en, the answer de"]
    dropped = {row["where"].rpartition("/")[2]: row["reason"] for row in read_rows(final / "dropped.jsonl")}
    assert dropped["rows.jsonl:3"] == "language is fr"
    assert "benchmark.jsonl" in dropped["benchmark.jsonl:1"]


def test_every_answer_that_clashes_is_listed() -> None:
    """The second yes clashes with the no as the first does; 'perhaps' with none."""
    asked = (Message(role="user", content="Is it safe?"),)
    prompt = Prompt(id=prompt_id(asked), messages=asked)
    rows = [
        Row(f"r:{n}", Demonstration(prompt=prompt, completion=c))
        for n, c in enumerate(("Yes", "yes.", "Perhaps", "No"))
    ]
    ledger = Ledger(Tally("contradictions"))
    step = Contradictions(
        PrepareConfig.model_validate({"output": "x", "prompts": ["x.jsonl"], "steps": ["contradictions"]})
    )
    assert step.run(rows, ledger) == rows
    assert [(one.where, one.reason) for one in ledger.flagged] == [
        ("r:0", "yes and no, against r:3"),
        ("r:1", "yes and no, against r:3"),
        ("r:3", "yes and no, against r:0"),
    ]
    assert ledger.now.flagged == 3


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("Yes.", "No, it is not.", "yes and no"),
        ("Nein", "Ja!", "yes and no"),
        ("Nothing helps", "Yes", ""),
        ("Use 5 ml.", "Use 10 ml.", "other numbers"),
        ("Use 5.0 ml.", "Use 5 ml, up to 7.", ""),
        ("Use 100 ml.", "Use 10 ml", "other numbers"),
        ("Water it.", "Use 10 ml", ""),
    ],
)
def test_which_answers_clash(first: str, second: str, expected: str) -> None:
    assert clash(first, second) == clash(second, first) == expected


def test_contamination_by_hand() -> None:
    thirteen = "one two three four five six seven eight nine ten eleven twelve thirteen"
    index = Index(
        [("t:1", words_of(f"{thirteen} fourteen")), ("t:2", words_of("Why is my basil so pale?")), ("t:3", ["ph"])],
        13,
        0.8,
    )

    def found(prompt: str, answer: str = "") -> Any:
        return index.find(words_of(prompt), words_of(f"{prompt} {answer}"))

    assert found("why is my BASIL so pale") == ("the same prompt as", "t:2")
    assert found("zero", f"As he said: {thirteen}.") == ("13 words in a row with", "t:1")
    assert found("zero", thirteen.removesuffix(" thirteen")) is None  # twelve words
    assert found("tell me", "they ask: Why is my basil so pale? Well") == ("contains the whole of", "t:2")
    assert found("what is pH") is None  # a prompt of one word is not looked for inside of others
    # trigrams: 4 of the test's; the row has these and 1 more: 4/5 = .8
    assert found("why is my basil so pale today")[0] == "contains the whole of"
    near = Index([("t:4", words_of("a b c d e f"))], 13, 0.8)
    assert near.find(words_of("a b c d e"), words_of("a b c d e")) is None  # 3/4
    near = Index([("t:4", words_of("a b c d e f"))], 13, 0.75)
    assert near.find(words_of("a b c d e"), words_of("a b c d e")) == ("nearly the same as", "t:4")


def test_test_sets_are_compared_in_any_form_of_unicode() -> None:
    """A test set from a Mac has decomposed letters; soft hyphens and full-width letters come from PDFs."""
    composed = words_of("Wie dünge ich Öl-Rettich im März?")
    assert composed == ["wie", "dünge", "ich", "öl", "rettich", "im", "märz"]
    assert words_of(unicodedata.normalize("NFD", "Wie dünge ich Öl-Rettich im März?")) == composed
    assert words_of("Wie dün\u00adge ich \uff2f\u0308l-Ret\u200btich im März?") == composed


def test_contamination_drops_what_a_test_set_holds(tmp_path: Path, tiny_model: Path) -> None:
    tests = write_rows(tmp_path / "bench.jsonl", [{"prompt": "How do I measure the pH of a nutrient solution?"}])
    rows = [
        {"prompt": "How do I measure the ph of a nutrient solution", "completion": "a"},
        {"prompt": "Which lamp do you use for lettuce in winter?", "completion": "b", "split": "test"},
        {"prompt": "Someone asked which lamp do you use for lettuce in winter?", "completion": "c"},
        {"prompt": "And for tomatoes?", "completion": "d"},
    ]
    values = {"steps": ["contamination"], "contamination": {"against": [str(tests)]}}
    final = run(tmp_path / "a", tiny_model, rows, **values)
    assert completions(final) == ["b", "d"]
    assert [row["reason"].partition(" /")[0] for row in read_rows(final / "dropped.jsonl")] == [
        "the same prompt as",
        "contains the whole of rows.jsonl:2",
    ]
    assert steps_of(final)["contamination"]["facts"] == {"test_prompts": 2}
    manifest = json.loads((final.parent / "manifest.json").read_text())
    assert manifest["inputs"]["test_set_0"]["source"] == str(tests)


def test_a_test_set_that_cannot_be_read_as_a_whole_is_refused(tmp_path: Path) -> None:
    tests = write_rows(tmp_path / "bench.jsonl", [{"prompt": "How do I prune mint?"}, {"prompt": 7}])
    values = {"output": "x", "demonstrations": ["d.jsonl"], "steps": ["contamination"]}

    def read_tests(**more: Any) -> Contamination:
        return Contamination(
            PrepareConfig.model_validate({**values, "contamination": {"against": [str(tests)]}, **more})
        )

    with pytest.raises(DataError, match=r"^contamination.against: .*1 of 2 rows cannot be used as prompts") as caught:
        read_tests()
    assert caught.value.faults == [f"{tests}:2: column 'prompt': neither a string nor a list of messages"]
    assert [where for where, _ in read_tests(on_bad_row="drop").tests] == [f"{tests}:1"]
    tests.write_text("")
    with pytest.raises(DataError, match=r"^contamination.against: .*no prompts in it \(it holds no rows\)"):
        read_tests()


# --- the user's own step, and bad input -----------------------------------------------------------------------------------


def test_steps_that_drop_every_row_are_named(tmp_path: Path, tiny_model: Path) -> None:
    rows = [
        {"prompt": "Pourquoi les feuilles de ma plante sont-elles jaunes depuis une semaine ?", "completion": "Le fer."}
    ]
    with pytest.raises(DataError, match=r"no row is left: the steps dropped all of them \(language 1\)"):
        run(tmp_path, tiny_model, rows, steps=["repair", "language"])


def test_a_users_function_is_a_step(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_steps.py").write_text(
        "def shorten(text, role):\n"
        "    if 'spam' in text: return None\n"
        "    if 'crash' in text: return 1 / 0\n"
        "    return text.upper() if role == 'assistant' else text\n"
        "def bad(text): return text\n"
    )
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "a?", "completion": "b"}, {"prompt": "c?", "completion": "spam"}]
    final = run(tmp_path / "x", tiny_model, rows, steps=["own_steps:shorten"])
    assert completions(final) == ["B"]
    assert read_rows(final / "dropped.jsonl")[0]["reason"] == "dropped by shorten"
    assert read_rows(final / "changed.jsonl")[0]["reason"] == "shorten"
    with pytest.raises(DataError, match=r"rows.jsonl:1: own_steps:shorten raised ZeroDivisionError.*line 3"):
        run(tmp_path / "y", tiny_model, [{"prompt": "a?", "completion": "crash"}], steps=["own_steps:shorten"])
    with pytest.raises(ConfigError, match=r"steps.0: bad\(text\) cannot be called as bad\(text, role\)"):
        run(tmp_path / "z", tiny_model, rows, steps=["own_steps:bad"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": ["repiar"]}, "no step 'repiar': did you mean repair?"),
        ({"steps": ["xyz"]}, "no step 'xyz'; there are repair, language"),
        ({"steps": ["repair", "repair"]}, "repair twice"),
        ({"quality": {"action": "drop"}}, "quality: set, but not among the steps"),
        ({"steps": ["quality"], "quality": {"rules": []}}, "no rule is named, so nothing would be checked"),
        (
            {"steps": ["anonymise", "contamination"], "contamination": {"against": ["t.jsonl"]}},
            "anonymise before contamination: rows would have tags",
        ),
        ({"prompts": ["p.jsonl", " "]}, "an empty name among prompts or demonstrations"),
    ],
)
def test_wrong_steps_are_refused_with_the_configuration(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrepareConfig.model_validate({"output": "x", "prompts": ["p.jsonl"], **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": ["language"], "language": {"keep": ["english"]}}, "no language english: give ISO 639-1 codes"),
        ({"steps": ["quality"], "quality": {"rules": ["all"]}}, "no rule all"),
    ],
)
def test_wrong_settings_stop_before_any_row_is_read(
    tmp_path: Path, tiny_model: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, tiny_model, [{"prompt": "a?", "completion": "b"}], **values)


# --- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_was_removed_and_inserted() -> None:
    assert difference("a <b>c</b>, Ã¼", "a c, ü") == (
        "a <del>&lt;b&gt;</del>c<del>&lt;/b&gt;</del>, <del>Ã¼</del><ins>ü</ins>"
    )


def test_the_page_has_every_step_and_asks_no_host(tmp_path: Path, tiny_model: Path) -> None:
    rows = [
        {"prompt": "<b>a</b>?", "completion": "Yes"},
        {"prompt": "a?", "completion": "No"},
        {"prompt": "c?", "completion": "ha " * 100},
    ]
    final = run(tmp_path, tiny_model, rows, steps=["repair", "quality", "contradictions"], quality={"action": "drop"})
    page = (final.parent / "report.html").read_text()
    assert "<h1>2 of 3 rows are kept</h1>" in page
    assert "Of 3 rows read, 2 are kept" in page
    assert "<del>&lt;b&gt;</del>a<del>&lt;/b&gt;</del>?" in page
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page

"""What raters can say beside the vote: flags of single answers, criteria, reasons, marked passages and links.

One server with all of it, driven over HTTP and by a browser, and the export of its store.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as some
from label_support import CHROMIUM, make_pair, needs_chromium, open_store, serving, tiebreak

from labeling_ui.configuration import LabelConfig
from labeling_ui.exchange.passages import segments
from labeling_ui.pages.passages import find_passage, show_passage, text_of
from labeling_ui.pages.safe_markup import render
from labeling_ui.quality.criteria import agreement_by_criterion
from labeling_ui.store.answers import Submission
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from tiebreak.errors import ConfigError
from tiebreak.records import Judgment, Span

RAW = "Take **two** pills & R&amp;D.\r\n\r\n1. 1 pill \U0001f48a a day\r\n2. rest"
ASKED: dict[str, Any] = {
    "flags": {"unsafe": "answers", "off_topic": "answers", "broken_prompt": "prompt"},
    "criteria": [
        {"name": "correct", "question": "Which is more correct?", "scale": "bar", "required": True},
        {"name": "style", "question": "How well is it written?", "scale": "stars"},
        {"name": "sourced", "question": "Does it name a source?", "scale": "yes_no"},
        {"name": "field", "question": "Which field?", "scale": "choice", "choices": ["law", "=1+1"], "about": "pair"},
    ],
    "reasons": "strong",
    "spans": {"wrong": -1, "good": 1, "note": 0},
    "ask_links": True,
}
HOSTILE = [
    "<script>window.pwned=1</script>", "<img src=x onerror=window.pwned=1>", "'\"><svg onload=window.pwned=1>",
    "javascript:window.pwned=1", "=cmd()|'/c calc'!A0", "\u202egnp.exe", "a\u0301" * 200, "{{7*7}} ${window.pwned=1}",
    "'; DROP TABLE judgments; --", "\u2028\u2029\ufeff", "../../etc/passwd", "%00%0a", "__proto__", "constructor",
    "\U0001f3f4\U000e0067\U000e0062", "\r\n\r\nSet-Cookie: x=1", "x" * 5_000, "\x1b[31m", "\ud800", "a\0b", "",
]  # fmt: skip


@dataclass(frozen=True)
class ServedPage:
    address: str
    folder: Path

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder}/label.sqlite"

    def call(self, method: str, path: str, body: object = None) -> httpx.Response:
        text = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        return httpx.request(method, f"{self.address}/api{path}", content=text, headers=headers, timeout=600)

    def next(self) -> dict[str, Any]:
        given: dict[str, Any] = self.call("GET", "/next").json()
        return given

    def judge(self, pair: dict[str, Any], name: str, **fields: object) -> httpx.Response:
        body = {"client_id": name, "pair_id": pair["pair_id"], "criteria": {"correct": 1}, **fields}
        return self.call("POST", "/judgments", body)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPage]:
    folder = tmp_path_factory.mktemp("saying")
    config = folder / "label.yaml"
    config.write_text(
        yaml.safe_dump({"pairs": "pairs.jsonl", "output": str(folder / "label"), **ASKED}, sort_keys=False)
    )
    pairs = [make_pair(n, RAW, f"Rest, and drink a lot. {n}") for n in range(12)]
    pairs.append(make_pair(12, "first", "second", ("third",)))
    words = ("--config", str(config), "--ranking", "true", "--repeat-share", "0")
    with serving(folder, pairs, *words) as (address, _):
        yield ServedPage(address, folder)
    store = Store.open(f"sqlite:///{folder}/label.sqlite")
    assert verify(store).faults == []
    store.close()


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def letter_of(pair: dict[str, Any], text: str) -> str:
    return "A" if pair["left"]["text"] == text else "B"


# --- over HTTP ---


def test_what_is_said_of_each_answer_is_kept_by_id_and_exported(served: ServedPage, tmp_path: Path) -> None:
    pair = served.next()
    mine = letter_of(pair, RAW)
    other = "AB".replace(mine, "")
    start = RAW.index("two** pills")
    said = {
        "answer": 1, "flags": ["broken_prompt"], "answer_flags": {mine: ["unsafe"]}, "rationale": "two\nlines",
        "links": ["https://example.org/a?b=1#c"],
        "criteria": {"correct": -2, "style": {mine: 5, other: 1}, "sourced": {mine: False}, "field": "=1+1"},
        "spans": [{"completion": mine, "start": start, "end": start + 11, "label": "wrong", "comment": "one is enough"}],
    }  # fmt: skip
    assert served.call("PUT", f"/drafts/{pair['pair_id']}", {**said, "answer": None}).status_code == 200
    kept = served.next()["draft"]
    assert (kept["answer_flags"], kept["criteria"]) == (said["answer_flags"], said["criteria"])
    plain = text_of(render(RAW))
    assert plain[slice(*kept["spans"][0]["shown"])] == "two pills"
    reply = served.judge(pair, "said", **said)
    assert reply.status_code == 200, reply.text
    assert '"0-0"' not in reply.text, "an id of a completion may name a model"
    undone = served.call("POST", f"/judgments/{reply.json()['judgment_id']}/undo").json()["pair"]
    assert undone["draft"]["answer_flags"] == said["answer_flags"]
    assert undone["draft"]["spans"][0]["completion"] == mine
    assert served.judge(pair, "said again", **said).status_code == 200

    tiebreak("label", "export", "--store", served.url, "--output", str(tmp_path / "out"), "--formats", "csv")
    final = tmp_path / "out" / "final"
    [judgment] = rows_of(final / "judgments.jsonl")
    assert judgment["flags"] == ["broken_prompt", "unsafe"]
    assert judgment["answer_flags"] == {"0-0": ["unsafe"]}
    assert judgment["criteria"]["style"] == {"0-0": 5, "0-1": 1}
    assert judgment["spans"] == [
        {"completion": "0-0", "start": start, "end": start + 11, "label": "wrong", "value": -1, "text": "two** pills",
         "comment": "one is enough"}
    ]  # fmt: skip
    assert (judgment["links"], judgment["rationale"]) == (said["links"], "two\nlines")
    [marked] = rows_of(final / "marked_answers.jsonl")
    assert "".join(part["text"] for part in marked["segments"]) == RAW == marked["completion"][0]["content"]
    assert [(part["value"], part["labels"]) for part in marked["segments"]] == [(0, {}), (-1, {"wrong": 1}), (0, {})]
    [row] = list(csv.DictReader((final / "judgments.csv").read_text().splitlines(keepends=True)))
    assert row["answer_flags"] == "0-0: unsafe"
    assert "field: =1+1" in row["criteria"]


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"criteria": {}}, 409, "correct is required"),
        ({"answer": 3}, 409, "a reason is required"),
        ({"answer": -3, "rationale": " \n"}, 409, "a reason is required"),
        ({"criteria": {"correct": 4}}, 422, "correct must be -3 to 3"),
        ({"criteria": {"correct": True}}, 422, "correct must be"),
        ({"criteria": {"correct": 1, "style": 3}}, 422, "style needs a value for each answer"),
        ({"criteria": {"correct": 1, "style": {"A": 6}}}, 422, "style must be 1 to 5"),
        ({"criteria": {"correct": 1, "style": {"C": 5}}}, 409, "of this pair"),
        ({"criteria": {"correct": 1, "sourced": {"A": 1}}}, 422, "sourced must be true or false"),
        ({"criteria": {"correct": 1, "field": "biology"}}, 422, "one of law, =1+1"),
        ({"criteria": {"correct": 1, "beauty": 1}}, 422, "does not ask for beauty"),
        ({"flags": ["personal_data"]}, 422, "unknown flag 'personal_data'"),
        ({"answer_flags": {"A": ["broken_prompt"]}}, 422, "broken_prompt is a flag of the prompt"),
        ({"answer_flags": {"0-0": ["unsafe"], "Z": ["unsafe"]}}, 409, "of this pair"),
        ({"spans": [{"completion": "A", "start": 0, "end": 999, "label": "good"}]}, 409, "but a passage ends at 999"),
        ({"spans": [{"completion": "A", "start": 3, "end": 3, "label": "good"}]}, 422, "ends after its start"),
        ({"spans": [{"completion": "Z", "start": 0, "end": 1, "label": "good"}]}, 409, "passage"),
        ({"spans": [{"completion": "A", "start": 0, "end": 1, "label": "evil"}]}, 422, "unknown label 'evil'"),
        ({"links": ["javascript:alert(1)"]}, 422, "not a web address"),
        ({"links": ["https://"]}, 422, "not a web address"),
    ],
)
def test_what_is_not_asked_or_lacks_something_is_refused(
    served: ServedPage, fields: dict[str, Any], status: int, words: str
) -> None:
    pair = served.next()
    reply = served.judge(pair, "refused", **{"answer": 1, **fields})
    assert (reply.status_code, words in reply.text) == (status, True), reply.text
    assert served.next()["pair_id"] == pair["pair_id"], "nothing is stored"


def test_a_skip_needs_neither_a_criterion_nor_a_reason(served: ServedPage) -> None:
    assert served.judge(served.next(), "skip", skip=True, criteria={}).status_code == 200


def test_hostile_texts_are_kept_as_they_are_or_refused(served: ServedPage) -> None:
    pair = served.next()
    path = f"/drafts/{pair['pair_id']}"
    kept = 0
    for text in HOSTILE:
        span = {"completion": "A", "start": 0, "end": 2, "label": "note", "comment": text}
        for fields in (
            {"spans": [span]}, {"spans": [{**span, "label": text}]}, {"spans": [{**span, "completion": text}]},
            {"links": [text]}, {"links": [f"https://example.org/{text}"]}, {"rationale": text}, {"criteria": {text: 1}},
            {"criteria": {"field": text}}, {"criteria": {"style": {text: 1}}}, {"answer_flags": {text: ["unsafe"]}},
            {"answer_flags": {"A": [text]}}, {"flags": [text]},
        ):  # fmt: skip
            reply = served.call("PUT", path, fields)
            assert reply.status_code in (200, 409, 422), (fields, reply.text)
            if reply.status_code == 200:
                kept += 1
                draft = served.next()["draft"]
                for one in draft.get("spans", ()):  # what the server adds
                    del one["text"], one["value"], one["shown"]
                assert {key: draft[key] for key in fields} == fields
    assert kept > len(HOSTILE)
    assert served.call("PUT", path, {}).status_code == 200


# --- in a browser ---


@needs_chromium
def test_all_of_it_by_keys_and_by_mouse(served: ServedPage) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1366, "height": 768}).new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{served.address}/rate/")
        page.wait_for_selector(".desk[data-pair^=pair]:not([data-fresh])")
        by_keys(page, served)
        by_mouse(page, served)
        assert errors == []
        browser.close()


def by_keys(page: Any, served: ServedPage) -> None:
    pair = page.get_attribute(".desk", "data-pair")
    side = page.evaluate("document.querySelector('[data-letter=A] .text').innerText").startswith("Take")
    mine = "A" if side else "B"
    for key in ("f", "1", mine.lower(), "3", "Enter"):  # unsafe: this one; the prompt is broken
        page.keyboard.press(key)
    page.keyboard.press("7")  # waits for the criterion that is required
    assert "more correct" in page.inner_text(".banner")
    page.keyboard.press("2")  # answers it; now for the reason
    page.wait_for_selector("[name=rationale]:focus")
    assert "“B is much better”" in page.inner_text(".banner"), "which vote waits"
    page.keyboard.type("Line one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    assert page.locator("[name=rationale]").bounding_box()["height"] > 45
    assert page.get_attribute(".desk", "data-pair") == pair, "nothing is sent before the reason is there"
    page.keyboard.press("Escape")
    for _ in range(1 if side else 2):
        page.keyboard.press("m")  # the source of the answer
    page.wait_for_selector(f"[data-letter={mine}] .source:focus")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.type("1x")  # wrong: "Take"; the x is not written
    page.keyboard.press("Tab")
    page.keyboard.type("an order")
    page.keyboard.press("Enter")
    assert page.input_value(f"[data-letter={mine}] .source") == RAW.replace("\r\n", "\n")
    page.keyboard.press("7")
    page.wait_for_function(f"document.querySelector('.desk').dataset.pair !== '{pair}'")
    judgment = last(page, served)
    assert (judgment["answer"], judgment["rationale"]) == (3, "Line one\nline two")
    assert judgment["answer_flags"] == {mine: ["unsafe"]}
    assert judgment["flags"] == ["broken_prompt", "unsafe"]
    assert judgment["criteria"] == {"correct": -2}
    [marked] = judgment["spans"]
    assert (marked["start"], marked["end"], marked["text"], marked["comment"]) == (0, 4, "Take", "an order")


def by_mouse(page: Any, served: ServedPage) -> None:
    page.wait_for_selector(".desk:not([data-fresh])")
    pair = page.get_attribute(".desk", "data-pair")
    mine = "A" if page.inner_text("[data-letter=A] .text").startswith("Take") else "B"
    page.dblclick(f"[data-letter={mine}] strong")  # selects "two", which Markdown made bold
    page.click(".marker [data-mark='1']")
    page.wait_for_selector(f"[data-letter={mine}] .span.value1")
    assert page.evaluate("CSS.highlights.get('span1').size") == 1
    page.click("[data-name=style][data-of=B] [data-value='4']")
    page.click("[data-name=sourced][data-of=A] [data-value='true']")
    page.click("[data-name=field] [data-value='\"=1+1\"']")
    page.click("[data-name=correct] [data-value='0']")
    page.click("text=Off topic >> label:has-text('A')")
    page.fill("[name=links]", "https://example.org/1\nno link")
    page.click("[data-answer='1']")
    assert "no link" in page.inner_text(".banner")
    page.fill("[name=links]", "https://example.org/1\nhttps://example.org/2")
    with page.expect_response(lambda reply: reply.url.endswith("/api/judgments")) as judged:
        page.click("[data-answer='1']")
    assert judged.value.status == 200
    page.wait_for_function(f"document.querySelector('.desk').dataset.pair !== '{pair}'")
    judgment = last(page, served)
    start = RAW.index("two")
    assert [(one["start"], one["end"], one["text"], one["value"]) for one in judgment["spans"]] == [
        (start, start + 3, "two", 1)
    ]
    assert judgment["criteria"] == {"correct": 0, "style": {"B": 4}, "sourced": {"A": True}, "field": "=1+1"}
    assert (judgment["answer_flags"], judgment["links"]) == (
        {"A": ["off_topic"]}, ["https://example.org/1", "https://example.org/2"],
    )  # fmt: skip
    leads_see_it(page, served, pair, mine)
    page.keyboard.press("u")  # and everything is back
    page.wait_for_selector(f".desk[data-pair={pair}]")
    assert page.evaluate("CSS.highlights.get('span1').size") == 1
    assert page.get_attribute("[data-name=style][data-of=B] [data-value='4']", "aria-checked") == "true"
    assert page.is_checked(".flag [value=off_topic][data-of=A]")
    assert page.input_value("[name=links]").endswith("/2")


def leads_see_it(page: Any, served: ServedPage, pair: str, mine: str) -> None:
    """With the pair's own letters: the first answer is A, whichever side the rater saw it on."""
    own = {mine: "A", "AB".replace(mine, ""): "B"}
    lead = page.context.new_page()
    lead.goto(f"{served.address}/lead/#view=items&item={pair}")
    lead.wait_for_selector(".given .note")
    lines = lead.locator(".given .note").all_inner_texts()
    assert f"Style: {own['B']} 4" in lines
    assert f"Sourced: {own['A']} Yes" in lines
    assert f"Off topic ({own['A']})" in lines
    assert "Good (A): \u201ctwo\u201d" in lines
    assert {"Correct: Tie", "Field: =1+1", "https://example.org/1"} <= set(lines)
    lead.close()


def last(page: Any, served: ServedPage) -> dict[str, Any]:
    page.wait_for_function("!Object.keys(localStorage).some((key) => key.startsWith('tiebreak-judgment:'))")
    judgment: dict[str, Any] = served.call("GET", "/history?limit=1").json()[0]["judgment"]
    return judgment


# --- passages ---


@pytest.mark.parametrize(
    ("passage", "raw"),
    [
        ("two pills", "two** pills"),  # the end of bold text is inside
        ("R&D", "R&amp;D"),
        ("1 pill", "1 pill"),  # not the number of the list
        ("\U0001f48a a", "\U0001f48a a"),
        ("rest", "rest"),
    ],
)
def test_a_passage_is_found_in_the_raw_text(passage: str, raw: str) -> None:
    plain = text_of(render(RAW))
    start = plain.index(passage)
    found = find_passage(RAW, start, start + len(passage), passage)
    assert found is not None
    assert RAW[slice(*found)] == raw
    assert show_passage(RAW, *found) == (start, start + len(passage))


@pytest.mark.parametrize(
    ("raw", "passage"),
    [
        ("a \\* star", "* star"),  # between the backslash and the star, another text begins
        ("see [here](http://x.y)", "x.y"),  # a link's target is not the answer's text
        ("a\u202eb", "U+202E"),  # a hidden character, written out
    ],
)
def test_a_passage_without_a_certain_place_is_refused(raw: str, passage: str) -> None:
    start = text_of(render(raw)).index(passage)
    assert find_passage(raw, start, start + len(passage), passage) is None


def test_a_passage_that_the_page_does_not_show_is_refused() -> None:
    assert find_passage("abc", 0, 3, "abd") is None
    assert find_passage("abc", 0, 9, "abc") is None
    assert show_passage("**a**", 0, 1) is None


PIECES = [
    "the", " ", "**", "*", "`", "\n", "\n\n", "- ", "1. ", "# ", "> ", "a_b", "&amp;", "[x](y)", "$x$", "\\", "pill", "\r\n"
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(pieces=some.lists(some.sampled_from(PIECES), max_size=25), data=some.data())
def test_whatever_is_found_is_what_the_page_shows_there(pieces: list[str], data: some.DataObject) -> None:
    """Another way to check it: with the found passage's letters replaced, the page changes there and nowhere else."""
    raw = "".join(pieces)
    plain = text_of(render(raw))
    start = data.draw(some.integers(0, max(len(plain) - 1, 0)))
    end = data.draw(some.integers(start, len(plain)))
    found = find_passage(raw, start, end, plain[start:end])
    if found is None:
        return
    inside = "".join("Q" if letter.isalpha() and letter.islower() else letter for letter in raw[slice(*found)])
    changed = text_of(render(raw[: found[0]] + inside + raw[found[1] :]))
    if len(changed) == len(plain):  # not an entity, of which the letters are syntax
        assert (changed[:start], changed[end:]) == (plain[:start], plain[end:])
        assert changed[start:end] == "".join(
            "Q" if one.isalpha() and one.islower() else one for one in plain[start:end]
        )


def span(start: int, end: int, value: int, label: str = "x") -> Span:
    return Span(completion="c", start=start, end=end, label=label, value=value)


def test_segments_are_the_text_with_the_mean_of_its_raters() -> None:
    by_rater = [[span(0, 4, -1, "wrong")], [span(2, 6, 1, "good"), span(4, 6, 1, "fine")], []]
    made = [(one["text"], one["value"], one["labels"]) for one in segments("abcdefg", by_rater)]
    third = round(1 / 3, 6)
    assert made == [
        ("ab", -third, {"wrong": 1}), ("cd", 0.0, {"good": 1, "wrong": 1}), ("ef", third, {"fine": 1, "good": 1}),
        ("g", 0.0, {}),
    ]  # fmt: skip


# --- agreement by criterion ---


def said(rater: str, pair: str, left: str, right: str, **criteria: Any) -> Judgment:
    about = {"pair_id": pair, "left": left, "right": right, "answer": 0, "kind": "human"}
    return Judgment(rater_id=rater, criteria=criteria, **about)


def test_each_criterion_has_its_agreement_worked_by_hand() -> None:
    yes, no = {"x": True}, {"x": False}
    judgments = [
        # On one side of the page -2 says x, on the other +1 says x too: they agree on the side, by 2 and 1 steps.
        said("a", "p", "x", "y", better=-2, sourced=yes), said("b", "p", "y", "x", better=1, sourced=yes),
        said("a", "q", "x", "y", sourced=yes), said("b", "q", "x", "y", sourced=no),
        said("a", "r", "x", "y", sourced=no), said("b", "r", "x", "y", sourced=no),
        said("a", "r", "x", "y", sourced=yes),  # a repeat does not count
        said("a", "s", "x", "y", sourced=yes),  # nor does an answer that only one gave
    ]  # fmt: skip
    measured = agreement_by_criterion(judgments)
    assert (measured["better"]["agreement"]["value"], measured["better"]["agreement"]["n"]) == (1.0, 1)
    sourced = measured["sourced"]
    assert (sourced["agreement"]["value"], sourced["agreement"]["n"]) == (pytest.approx(2 / 3, abs=1e-6), 3)
    # Three of six values are yes. Observed disagreement 2/6; expected 2 · 3 · 3 / (6 · 5) = 0.6; α = 1 - (1/3) / 0.6.
    assert sourced["krippendorff_alpha"]["value"] == pytest.approx(4 / 9, abs=1e-6)
    assert (sourced["scale"], measured["better"]["scale"]) == ("nominal", "interval")


def test_criteria_of_gold_are_not_in_their_agreement(tmp_path: Path) -> None:
    # The two agree on gold, which everybody gets, and disagree on the other pair: 0 of 1, and not 1 of 2.
    judgments = [said(who, "gold", "x", "y", better=1) for who in "ab"]
    judgments += [said("a", "p", "x", "y", better=1), said("b", "p", "x", "y", better=-1)]
    agreement = agreement_by_criterion(judgments, {("gold", "x", "y")})["better"]["agreement"]
    assert (agreement["value"], agreement["n"]) == (0.0, 1)
    store = open_store(tmp_path, [make_pair(0), make_pair(1)], overlap=1)
    for _ in range(2):
        given = store.claim("r0")
        assert given is not None
        fields = {"client_id": given.item_id, "pair_id": given.item_id, "answer": 1, "criteria": {"better": 1}}
        store.submit("r0", Submission.model_validate(fields))
    store.set_gold("pair-0", "0-0")
    assert [one.pair_id for one in store.judgments_with_criteria(10)] == ["pair-1"]
    store.close()


def test_criteria_of_a_ranking_are_about_the_pair_whatever_its_order_on_the_page() -> None:
    def ranked(rater: str, order: str, sourced: bool) -> Judgment:
        about = {"ranking": [list(order)], "shown": tuple(order), "kind": "human", "criteria": {"sourced": sourced}}
        return Judgment(pair_id="p", rater_id=rater, left=order[0], right=order[1], **about)

    # Three raters see three orders, whose first two answers differ: one in three pairs of raters agrees.
    judgments = [ranked("a", "xyz", sourced=True), ranked("b", "zxy", sourced=True), ranked("c", "yzx", sourced=False)]
    agreement = agreement_by_criterion(judgments)["sourced"]["agreement"]
    assert (agreement["value"], agreement["n"]) == (pytest.approx(1 / 3, abs=1e-6), 1)


# --- files and configurations without it ---


def test_judgments_without_any_of_it_keep_their_bytes() -> None:
    judgment = Judgment(pair_id="p", rater_id="r", left="a", right="b", answer=1, kind="human")
    assert judgment.model_dump_json() == (
        '{"pair_id":"p","rater_id":"r","left":"a","right":"b","answer":1,"both_bad":false,"skip":false,'
        '"skip_reason":"","ranking":null,"shown":[],"aspects":{},"rationale":"","edited_text":null,"flags":[],'
        '"guideline_version":"","seconds_active":null,"kind":"human"}'
    )
    new = {"answer_flags", "criteria", "spans", "links"}
    sent = Submission(client_id="c", pair_id="p", answer=1).model_dump(mode="json")
    assert new.isdisjoint(sent), "a judgment that is sent again after an update is the same"
    assert not {"criteria", "flags", "reasons", "spans", "ask_links"} & set(
        LabelConfig(pairs="x", output="y").model_dump(mode="json")
    )


def test_comparisons_of_a_ranking_have_the_flags_of_their_answers(tmp_path: Path) -> None:
    store = open_store(tmp_path, [])
    store.add_pairs([make_pair(0, more=("third",))], overlap=1, seed=0, source="s", source_id="s", ranking=True)
    assert store.claim("r0") is not None
    fields = {"ranking": [["0-2"], ["0-0"], ["0-1"]], "answer_flags": {"0-1": ["unsafe"]}, "flags": ["broken_prompt"]}
    fields["spans"] = [{"completion": "0-2", "start": 0, "end": 2, "label": "good"}]
    stored = store.submit("r0", Submission.model_validate({"client_id": "c", "pair_id": "pair-0", **fields}))
    flags = {frozenset((one.left, one.right)): one.flags for one in stored.judgment.pairwise()}
    assert flags[frozenset(("0-0", "0-2"))] == ("broken_prompt",)
    assert flags[frozenset(("0-0", "0-1"))] == ("broken_prompt", "unsafe")
    assert [len(one.spans) for one in stored.judgment.pairwise()].count(1) == 2
    store.close()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"criteria": [{"name": "a"}, {"name": "a"}]}, "two have the name a"),
        ({"criteria": [{"name": "A b"}]}, "name"),
        ({"criteria": [{"name": "a", "scale": "choice"}]}, "choices belong to the scale choice"),
        ({"criteria": [{"name": "a", "scale": "choice", "choices": ["x"]}]}, "two or more"),
        ({"criteria": [{"name": "a", "about": "answers"}]}, "is a bar, which compares"),
        ({"reasons": "always", "ask_reason": False}, "hides its field"),
        ({"flags": {"Not Safe": "answers"}}, "lower-case letters"),
        ({"spans": {f"l{n}": 1 for n in range(10)}}, "digits 1 to 9"),
        ({"spans": {"wrong": -2}}, "spans"),
    ],
)
def test_a_wrong_configuration_names_its_key(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    from tiebreak.config import load_config

    path = tmp_path / "label.yaml"
    path.write_text(yaml.safe_dump({"pairs": "p.jsonl", "output": str(tmp_path / "out"), **fields}))
    with pytest.raises(ConfigError, match=words):
        load_config(LabelConfig, ["--config", str(path)], "label")


@needs_chromium
def test_raters_see_a_rejection_with_its_reason_and_a_lead_takes_it_back(served: ServedPage) -> None:
    from playwright.sync_api import sync_playwright

    reply = served.judge(served.next(), "to be rejected", answer=1)
    name = reply.json()["judgment_id"]
    body = {"selection": {"judgment_ids": [name]}, "reason": "<b>too fast</b>"}
    assert served.call("POST", "/lead/rejections", body).status_code == 200
    [row] = served.call("GET", "/rejections").json()
    assert (row["judgment_id"], row["reason"], row["judgment"]["left"]) == (name, "<b>too fast</b>", "A")
    assert served.call("GET", "/lead/agreement").json()["criteria"]["correct"]["scale"] == "interval"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1366, "height": 768}).new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{served.address}/rate/")
        page.wait_for_selector(".desk[data-pair^=pair]")
        page.keyboard.press("w")
        page.wait_for_selector(".by-lead")
        assert "<b>too fast</b>" in page.inner_text(".by-lead")
        page.goto(f"{served.address}/lead/")
        page.wait_for_selector(".figures .figure")
        assert "Correct: Krippendorff’s α" in page.inner_text(".figures")
        page.click("[data-view=raters]")
        page.click("[data-person=local]")
        page.click(f"[data-take-back='{name}']")
        page.wait_for_selector(f"[data-reject-one='{name}']")
        assert errors == []
        browser.close()
    assert served.call("GET", "/rejections").json() == []
    assert served.call("GET", f"/judgments/{name}").status_code == 200

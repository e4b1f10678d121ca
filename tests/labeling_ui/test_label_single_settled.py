"""Disagreements about single answers: found, settled by leads, exported, and imported into another store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from label_support import CHROMIUM, make_pair, needs_chromium, open_store, serving, write_words
from test_label_browser import axe, faults_of_both  # noqa: F401
from test_label_single import assess, export_of, give_all, make_single, rows_of

from labeling_ui import label
from labeling_ui.database.errors import RefusedError
from labeling_ui.database.schema import ITEMS, SCHEMA_MIGRATIONS
from labeling_ui.store.answers import Answer, Submission
from labeling_ui.store.figures.news import Place, read_news
from labeling_ui.store.leads.finding import Search
from labeling_ui.store.leads.rejecting import Selection
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.web.login.accounts import add_account
from tiebreak.assessments import SingleTask
from tiebreak.data.single import read_single_answers

PASSWORD = "a long password"
VOTES: list[tuple[SingleTask, Any, Any]] = [
    ("rate", 1, 4),
    ("review", "accept", "reject"),
    ("classify", "law", "medicine"),
    ("rate", 2, 4),
    ("review", "accept", "edit"),
    ("classify", "law", "law"),
]
"""task, and the values of r0 and r1"""


def judged_store(where: Path | str) -> Store:
    """The six answers of `VOTES`, judged by both raters."""
    store = open_store(where, [make_single(n, task) for n, (task, *_) in enumerate(VOTES)], overlap=2, raters=2)
    for n, rater in enumerate(("r0", "r1")):
        while given := give_all(store, rater):
            for item in given:
                value = VOTES[int(item[-1])][1 + n]
                edited = "an edit" if value == "edit" else None
                assess(store, rater, item, value, rationale="false" if value == "reject" else "", edited_text=edited)
    return store


def queue_of(store: Store) -> list[tuple[str, str]]:
    return [(one.item_id, one.about) for one in store.disputes("lead")]


def test_disagreements_wait_for_a_lead_and_follow_the_judgments(url: str) -> None:
    store = judged_store(url)
    store.add_rater("lead", role="lead", rater_id="lead")
    opposed = [("answer-0", "side"), ("answer-1", "side"), ("answer-2", "side")]
    assert queue_of(store) == [*opposed, ("answer-3", "tie")]
    assert [one.values for one in store.disputes("lead")] == [
        {"1": 1, "4": 1},
        {"accept": 1, "reject": 1},
        {"law": 1, "medicine": 1},
        {"2": 1, "4": 1},
    ]
    assert [one.item_id for one in store.find(Search(agreement="agree")).items] == ["answer-4", "answer-5"]
    assert store.status()["disputed"] == 4
    with store.reading() as connection:
        news, _ = read_news(connection, Place(), every=1_000)
    assert [one.about["item_id"] for one in news if one.kind == "dispute"] == ["answer-0", "answer-1", "answer-2"]
    assert [one.kind for one in news].count("batch_finished") == 1

    def last(rater: str, item: str) -> str:
        return next(one.judgment_id for one in store.history(rater) if one.judgment.pair_id == item)

    store.amend("r1", last("r1", "answer-2"), "again", Answer(value="law"))
    store.undo("r1", last("r1", "answer-3"))
    taken = last("r1", "answer-0")
    store.reject(Selection(judgment_ids=(taken,)), "careless", "lead")
    assert queue_of(store) == [("answer-1", "side")]
    store.take_back_rejections([taken], "lead")
    assert queue_of(store) == [("answer-0", "side"), ("answer-1", "side")]
    assert store.draw_review_sample(10, "lead") == 3, "2, 4 and 5: two agree on each"
    assert verify(store).faults == []


def test_a_lead_settles_single_answers(url: str, tmp_path: Path) -> None:
    store = judged_store(url)
    for name in ("lead", "second"):
        store.add_rater(name, role="lead", rater_id=name)

    def settle(item: str, value: Any, by: str = "lead", **fields: Any) -> None:
        replaces = {"replaces": fields.pop("replaces")} if "replaces" in fields else {}
        body = Submission(client_id=f"{by} {item} {value}", pair_id=item, value=value, **fields)
        store.adjudicate(by, body, **replaces)

    settle("answer-0", 2)
    settle("answer-1", "edit", edited_text="right now")
    settle("answer-2", "medicine")
    for item, value in (("answer-3", "law"), ("answer-4", "reject"), ("answer-5", None), ("no", 3)):
        with pytest.raises(RefusedError):
            settle(item, value, skip=value is None)
    store.add_pairs([make_pair(9)], overlap=1, seed=0, source="more", source_id="more")
    with pytest.raises(RefusedError, match="a value is for single answers"):
        settle("pair-9", 3)
    seen = store.open_dispute("second", "answer-0")
    assert (seen.adjudicated and seen.adjudicated.rater_id, len(seen.judgments)) == ("lead", 2)
    with pytest.raises(RefusedError, match="lead has settled this meanwhile"):
        settle("answer-0", 3, by="second", replaces=None)
    settle("answer-0", 3, by="second", replaces=seen.settled_seq)
    assert queue_of(store) == [("answer-3", "tie")]
    assert [(one.item_id, one.settled_by) for one in store.disputes("lead", adjudicated=True)] == [
        ("answer-0", "second"),
        ("answer-1", "lead"),
        ("answer-2", "lead"),
    ]
    feedback = {(rater, one.item_id): one.settled.rationale for rater in ("r0", "r1") for one in store.feedback(rater)}
    assert sorted(feedback) == [(r, f"answer-{n}") for r, n in (("r0", 0), ("r0", 1), ("r0", 2), ("r1", 0), ("r1", 1))]
    with pytest.raises(RefusedError, match="settled"):
        store.undo("r1", next(one.judgment_id for one in store.history("r1") if one.judgment.pair_id == "answer-2"))

    final = export_of(store, tmp_path / "out")
    ratings = {row["answer_id"]: row for row in rows_of(final / "ratings.jsonl")}
    assert (ratings["answer-0"]["rating"], ratings["answer-0"]["settled_by"]) == (3.0, "second")
    assert (ratings["answer-3"]["rating"], "adjudicated" in ratings["answer-3"]) == (3.0, False)
    reviews = {row["answer_id"]: (row["verdict"], row.get("difference")) for row in rows_of(final / "reviews.jsonl")}
    assert reviews["answer-1"] == ("edit", ["-an answer", "+right now"])
    assert {row["answer_id"]: row["class"] for row in rows_of(final / "classes.jsonl")}["answer-2"] == "medicine"
    assert "right now" in [one["completion"] for one in rows_of(final / "demonstrations.jsonl")]
    assert json.loads((final / "report.json").read_text())["single_answers"]["rate"]["settled"] == 1
    store.remove_settlement("lead", "answer-2")
    assert ("answer-2", "side") in queue_of(store)
    assert verify(store).faults == []


def test_judgments_and_settlements_of_single_answers_are_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"q{n}", "response": f"a{n}", "task": task} for n, (task, *_) in enumerate(VOTES)]
    rows.write_text("".join(json.dumps(one) + "\n" for one in lines))
    answers = read_single_answers(str(rows))
    store = open_store(tmp_path, [*answers], overlap=2, raters=2)
    values = {one.id: VOTES[n] for n, one in enumerate(answers)}
    for n, rater in enumerate(("r0", "r1")):
        while given := give_all(store, rater):
            for item in given:
                value = values[item][1 + n]
                edited = "an edit" if value == "edit" else None
                assess(store, rater, item, value, rationale="because", edited_text=edited)
    store.add_rater("lead", role="lead", rater_id="lead")
    store.adjudicate("lead", Submission(client_id="x", pair_id=answers[1].id, value="reject", rationale="false"))
    final = export_of(store, tmp_path / "out")

    def bring(name: str, *words: str) -> Store:
        url = f"sqlite:///{tmp_path}/{name}.sqlite"
        about = ("--judgments", str(final / "assessments.jsonl"), "--adjudications", str(final / "adjudications.jsonl"))
        label.main(["import", "--answers", str(rows), *about, "--store", url, *words])
        return Store.open(url)

    other = bring("other")
    assert "added 6 pairs and 12 judgments, and 1 settled answer" in capsys.readouterr().out
    assert verify(other).faults == []
    assert [one.values for one in other.disputes("lead")] == [one.values for one in store.disputes("lead")]
    bring("other")
    assert "added 0 pairs and 0 judgments" in capsys.readouterr().out
    again = export_of(other, tmp_path / "again")

    def outcomes(folder: Path) -> list[dict[str, Any]]:
        files = [folder / f"{name}.jsonl" for name in ("ratings", "reviews", "classes", "undecided")]
        timed = ("judgments", "kind")
        return [
            {k: v for k, v in row.items() if k not in timed} for file in files if file.exists() for row in rows_of(file)
        ]

    assert outcomes(again) == outcomes(final)
    assert "undecided" in str(sorted(final.iterdir()))

    wrong = [json.loads(line) for line in (final / "assessments.jsonl").read_text().splitlines()]
    wrong[0]["pair_id"], wrong[2]["left"] = "nobody", "another answer"
    (tmp_path / "wrong.jsonl").write_text("".join(json.dumps(one) + "\n" for one in wrong))
    with pytest.raises(SystemExit):
        bring("third", "--judgments", str(tmp_path / "wrong.jsonl"))
    said = capsys.readouterr().err
    assert "wrong.jsonl:1: there is no pair nobody" in said
    assert "wrong.jsonl:3: another answer is not the completion" in said
    wrong = [{**wrong[6], "task": "classify", "value": "law"}]
    (tmp_path / "wrong.jsonl").write_text(json.dumps(wrong[0]) + "\n")
    with pytest.raises(SystemExit):
        bring("third", "--judgments", str(tmp_path / "wrong.jsonl"))
    assert "has the task" in capsys.readouterr().err
    store.close()
    other.close()


def test_a_store_of_before_finds_its_disagreements(tmp_path: Path) -> None:
    store = judged_store(tmp_path)
    with store.engine.begin() as connection:
        connection.execute(sa.update(ITEMS).values(disputed=0))
        connection.execute(sa.delete(SCHEMA_MIGRATIONS).where(SCHEMA_MIGRATIONS.c.number >= 24))
        for index in (
            "events_pairs_added", "items_disputed_in_order", "items_untouched", "items_ids",
            "items_of_batch", "items_unfinished", "events_of_people", "events_of_answers", "events_of_reasons",
        ):  # fmt: skip
            connection.exec_driver_sql(f"DROP INDEX {index}")
    assert [fault.partition(":")[0] for fault in verify(store).faults] == [f"item answer-{n}" for n in (0, 1, 2, 3)]
    store.close()
    store = Store.open(f"sqlite:///{tmp_path}/labels.sqlite")
    assert [one.item_id for one in store.disputes("lead")] == [f"answer-{n}" for n in (0, 1, 2, 3)]
    assert verify(store).faults == []
    store.close()


@pytest.mark.slow
@needs_chromium
def test_leads_settle_single_answers_and_set_gold_on_the_page(tmp_path: Path, axe: str) -> None:  # noqa: F811
    from playwright.sync_api import sync_playwright

    rows = tmp_path / "rows.jsonl"
    tasks = ("review", "rate", "classify", "classify")
    lines = [{"prompt": f"q{n}", "response": f"a{n}", "task": task} for n, task in enumerate(tasks)]
    rows.write_text("".join(json.dumps(one) + "\n" for one in lines))
    config = tmp_path / "label.yaml"
    config.write_text(yaml.safe_dump({"output": "x", "answers": str(rows), "classes": ["law", "medicine"]}))
    words = ("--config", str(config), "--overlap", "2", "--repeat-share", "0", "--gold-share", "0.5")
    with serving(tmp_path, [make_pair(0)], *words) as (address, _), sync_playwright() as playwright:
        store = Store.open(f"sqlite:///{tmp_path}/label.sqlite")
        raters = [add_account(store, name, "rater", PASSWORD).id for name in ("anna", "ben")]
        add_account(store, "lead", "lead", PASSWORD)
        answers = read_single_answers(str(rows))
        votes = {answers[0].id: ("accept", "reject"), answers[1].id: (1, 5), answers[2].id: ("law", "medicine")}
        for n, rater in enumerate(raters):
            while given := store.claim(rater):
                if given.item_id not in votes:
                    store.submit(rater, Submission(client_id=given.id, pair_id=given.item_id, skip=True))
                else:
                    assess(store, rater, given.item_id, votes[given.item_id][n], rationale="a reason")
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1366, "height": 768}).new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}/login/")
        page.fill("[name=username]", "lead")
        page.fill("[name=password]", PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url("**/rate/")
        page.goto(f"{address}/lead/#view=disputes")

        def wait_for(prompt: str) -> None:
            page.wait_for_function(f"document.querySelector('.case .turns')?.innerText.includes('{prompt}')")
            page.wait_for_selector(".desk:not([data-fresh])")

        wait_for("q0")
        assert "accepted × 1, rejected × 1" in page.inner_text(".disputes li:first-child")
        assert page.locator(".case .sides > div").count() == 1
        assert "anna" in page.inner_text(".case .said")
        assert faults_of_both(page, axe) == []
        page.keyboard.press("3")
        page.wait_for_selector(".case [name=rationale]:focus")
        assert "needs a reason" in page.inner_text(".banner")
        page.keyboard.press("Escape")
        page.keyboard.press("2")
        page.wait_for_selector(".case [name=edited]:focus")
        page.keyboard.press("Control+a")
        page.keyboard.type("a0, edited")
        page.click(".case [data-value=edit]")
        wait_for("q1")
        assert "1 × 1, 5 × 1" in page.inner_text(".disputes [aria-current=true]")
        page.keyboard.press("4")
        wait_for("q2")
        page.keyboard.press("n")
        page.click("[data-settled]")
        page.wait_for_selector(".disputes li:nth-child(2)")
        page.click(".disputes li:first-child button")
        page.wait_for_function("document.querySelector('.case')?.innerText.includes('accepted as edited, by lead')")

        page.click("[data-view=items]")
        page.fill(".filters [name=text]", "q3")
        page.locator(".found [data-item]", has_text="q3").click()
        page.wait_for_selector(".item [data-gold]")
        page.select_option(".item [data-gold]", "value:law")
        page.wait_for_selector(".item .history >> text=/gold/i")
        assert page.input_value(".item [data-gold]") == "value:law"
        assert errors == []
        browser.close()
        assert [(one.item_id, one.value) for one in store.gold()] == [(answers[3].id, "law")]
        settled = {one.pair_id: (one.value, one.edited_text) for one in store.adjudications()}  # type: ignore[attr-defined]
        assert settled == {answers[0].id: ("edit", "a0, edited"), answers[1].id: (4, None)}
        new, store.rules.gold_share = add_account(store, "cleo", "rater", PASSWORD).id, 1.0
        given = store.claim(new)
        while given is not None and given.item_id != answers[3].id:
            store.submit(new, Submission(client_id=given.id, pair_id=given.item_id, skip=True))
            given = store.claim(new)
        assess(store, new, answers[3].id, "medicine")
        assert store.gold_agreements()[new] == (0, 1)
        assert verify(store).faults == []
        store.close()


SCALE_BESIDE_THE_CHART = """() => {
    const [figure, line] = ['.tick', '.grid'].map((one) => document.querySelector(`.chart ${one}`).getBoundingClientRect());
    return figure.right < line.left;
}"""


@pytest.mark.slow
@needs_chromium
def test_a_page_from_the_right_keeps_the_sides_of_a_pair(tmp_path: Path) -> None:
    """`left` is stored as shown: on a page in Arabic, A stays on the left, for raters and for leads."""
    from playwright.sync_api import sync_playwright

    words = write_words(tmp_path, {"language": "ar"})
    pairs, overlap = [make_pair(0), make_pair(1)], ("--overlap", "2", "--words", str(words))
    with serving(tmp_path, pairs, *overlap) as (address, _), sync_playwright() as playwright:
        store = Store.open(f"sqlite:///{tmp_path}/label.sqlite")
        for n in range(2):
            store.add_rater(f"r{n}", rater_id=f"r{n}")
            given = store.claim(f"r{n}")
            assert given is not None
            side = 1 if given.left_id.endswith("-0") == bool(n) else -1
            store.submit(f"r{n}", Submission(client_id=given.id, pair_id=given.item_id, answer=side))
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1366, "height": 768}).new_page()

        def left_of(selector: str) -> float:
            box = page.locator(selector).bounding_box()
            assert box is not None
            return float(box["x"])

        page.goto(f"{address}/rate/")
        page.wait_for_selector(".desk[data-pair]")
        assert left_of("[data-side=left]") < left_of("[data-side=right]")
        page.goto(f"{address}/lead/#view=disputes")
        page.wait_for_selector(".case .side-left")
        assert page.evaluate("getComputedStyle(document.querySelector('.desk')).direction") == "rtl"
        assert left_of(".queue") > left_of(".case")
        assert left_of(".case .side-left") < left_of(".case .side-right")
        assert left_of(".case [data-answer='-3']") < left_of(".case [data-answer='3']")
        assert page.evaluate("getComputedStyle(document.querySelector('.case .side-left h3')).direction") == "rtl"
        page.click("button[data-view=overview]")
        page.wait_for_selector(".chart .tick")
        assert page.evaluate(SCALE_BESIDE_THE_CHART), "the figures of the scale end where its lines begin"
        browser.close()
        store.close()

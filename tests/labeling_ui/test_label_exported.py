"""What leads see of the last export, and the export from the page."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import httpx
import pytest
from label_support import CHROMIUM, answer, make_pair, needs_chromium, open_store, serving

from labeling_ui import label
from labeling_ui.store.answers import Answer, Submission
from labeling_ui.store.leads.rejecting import Selection
from labeling_ui.store.verify import verify


def test_what_changed_since_the_last_export(url: str, tmp_path: Path) -> None:
    store = open_store(url, [make_pair(n) for n in range(10)], raters=1)
    lead = store.add_rater("lead", role="lead", rater_id="lead")
    assert store.since_export() is None
    ids = []
    for n in range(5):
        store.claim("r0")
        ids.append(store.submit("r0", answer(f"pair-{n}")).judgment_id)
    folder = tmp_path / "out"
    label.main(["export", "--store", str(store.engine.url.render_as_string(False)), "--output", str(folder)])
    found = store.since_export()
    assert found is not None
    assert (found.where, found.new, found.changed, found.gone, found.settled) == (str(folder), 0, 0, 0, 0)
    for n in range(5, 8):
        store.claim("r0")
        ids.append(store.submit("r0", answer(f"pair-{n}")).judgment_id)
    store.amend("r0", ids[0], "a", Answer(answer=-1))
    store.amend("r0", ids[0], "b", Answer(answer=-2))
    store.amend("r0", ids[6], "c", Answer(answer=-2))  # a new one: its change is not counted again
    store.undo("r0", ids[1])
    store.undo("r0", ids[7])
    store.reject(Selection(judgment_ids=(ids[2], ids[3])), "hasty")
    store.take_back_rejections([ids[3]])
    store.adjudicate(lead.id, Submission(client_id="s", pair_id="pair-4", answer=1))
    found = store.since_export()
    assert found is not None
    assert (found.new, found.changed, found.gone, found.settled) == (2, 1, 2, 1)
    assert str(found) == f"since the last export ({folder}): +2 judgments, 1 changed, 2 gone, 1 settled"
    assert verify(store).faults == []


def test_withdrawn_pairs_and_rejections_taken_back_are_changes_of_the_export(url: str) -> None:
    """The oracle: the judgments that an export would have then and now."""
    store = open_store(url, [make_pair(n) for n in range(6)], raters=1)
    ids = []
    for n in range(5):
        store.claim("r0")
        ids.append(store.submit("r0", answer(f"pair-{n}")).judgment_id)
    store.reject(Selection(judgment_ids=(ids[0],)), "hasty")
    store.withdraw_pairs(["pair-1"])
    then = {one.pair_id for one in store.exported_judgments()[0]}
    store.mark_export(store.head(), "out")
    store.take_back_rejections([ids[0]])
    store.restore_pairs(["pair-1"])
    store.withdraw_pairs(["pair-2", "pair-3"])
    store.restore_pairs(["pair-3"])
    store.amend("r0", ids[4], "a", Answer(answer=-1))
    store.correct_pairs([make_pair(4, "corrected")], source="s", source_id="s")
    now = {one.pair_id for one in store.exported_judgments()[0]}
    found = store.since_export()
    assert found is not None
    assert (found.new, found.gone) == (len(now - then), len(then - now)) == (2, 2)
    assert found.changed == 0, "an amended judgment that went with its pair is gone"
    store.close()


def test_a_pair_withdrawn_before_an_export_and_corrected_after_it_is_not_gone(url: str) -> None:
    """Three pairs judged, pair-0 withdrawn: the export has two judgments. Then pair-0 and pair-1 are corrected, pair-2 is
    withdrawn and corrected, and pair-0's new version is judged: 1 judgment is new, and the 2 of the export are gone."""
    store = open_store(url, [make_pair(n) for n in range(3)], raters=1)
    for n in range(3):
        store.claim("r0")
        store.submit("r0", answer(f"pair-{n}"))
    store.withdraw_pairs(["pair-0"])
    store.mark_export(store.head(), "out")
    store.withdraw_pairs(["pair-2"])
    store.correct_pairs([make_pair(n, "corrected") for n in range(3)], source="s", source_id="s")
    store.claim("r0")
    store.submit("r0", answer("pair-0@2"))
    found = store.since_export()
    assert found is not None
    assert (found.new, found.changed, found.gone) == (1, 0, 2)
    assert verify(store).faults == []
    store.close()


@pytest.mark.slow
@needs_chromium
def test_a_lead_exports_from_the_page(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    words = ("--aggregation.min_votes", "1", "--repeat-share", "0")
    with serving(tmp_path, [make_pair(n) for n in range(3)], *words) as (address, _), sync_playwright() as playwright:
        for _ in range(2):
            given = httpx.get(f"{address}/api/next").json()
            body = {"client_id": given["pair_id"], "pair_id": given["pair_id"], "answer": -2}
            assert httpx.post(f"{address}/api/judgments", json=body).status_code == 200
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1366, "height": 768}).new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}/lead/")
        page.wait_for_selector(".exporting .zip:not([hidden])")
        assert "Not exported yet" in page.inner_text(".exporting")
        with page.expect_download() as download:
            page.click(".exporting .zip")
        packed = zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes()))
        report = json.loads(packed.read("report.json"))
        assert report["judgments"]["total"] == len(packed.read("preferences.jsonl").splitlines()) == 2
        page.reload()
        page.wait_for_function("document.querySelector('.since')?.innerText.includes('): 0 new')")
        assert errors == []
        browser.close()

"""Messages between raters and leads about a pair: who sees them, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

from label_support import make_pair, open_store
from test_label_api import Campaign, no_pages  # noqa: F401 - a fixture

from labeling_ui.store.verify import verify


def test_a_thread_is_the_raters_and_the_leads(tmp_path: Path) -> None:
    site = Campaign(open_store(tmp_path, [make_pair(n) for n in range(2)], raters=0))
    mine = site.call("one", "GET", "/api/next").json()["pair_id"]
    other = f"pair-{1 - int(mine[-1])}"
    assert site.call("one", "POST", "/api/notes", {"item_id": mine, "text": "Is <b>A</b> a joke?"}).status_code == 200
    assert site.call("one", "POST", "/api/notes", {"item_id": other, "text": "?"}).status_code == 409  # not theirs
    assert site.call("one", "POST", "/api/notes", {"item_id": mine, "text": "  "}).status_code == 409
    assert site.call("one", "POST", "/api/notes", {"item_id": mine, "text": "x" * 4_001}).status_code == 422
    assert site.call("other", "GET", "/api/notes").json() == []
    assert site.call("other", "GET", "/api/lead/notes").status_code == 403
    (waiting,) = site.call("observer", "GET", "/api/lead/notes").json()
    assert (waiting["item_id"], waiting["waits"], waiting["notes"][0]["text"]) == (mine, True, "Is <b>A</b> a joke?")
    reply = {"item_id": mine, "rater_id": site.sessions["one"].rater.id, "text": "Yes: judge it as one."}
    assert site.call("observer", "POST", "/api/lead/notes", reply).status_code == 403
    assert site.call("reviewer", "POST", "/api/lead/notes", reply).status_code == 200
    assert site.call("lead", "GET", "/api/lead/notes").json() == []
    (thread,) = site.call("one", "GET", "/api/notes").json()
    assert [(note["mine"], note["text"]) for note in thread["notes"]] == [
        (True, "Is <b>A</b> a joke?"),
        (False, "Yes: judge it as one."),
    ]
    assert "reviewer" not in str(thread)  # leads are not named
    (of_item,) = site.call("lead", "GET", f"/api/lead/notes?item_id={mine}").json()
    assert [note["by_rater"] for note in of_item["notes"]] == [True, False]
    assert len(site.call("one", "GET", "/api/own-data").json()["messages"]) == 2
    an_erasure_takes_the_texts(site, mine)


def an_erasure_takes_the_texts(site: Campaign, item_id: str) -> None:
    rater_id = site.sessions["one"].rater.id
    assert site.call("lead", "POST", f"/api/lead/raters/{rater_id}/erase", {"judgments": False}).status_code == 200
    assert site.call("lead", "GET", f"/api/lead/notes?item_id={item_id}").json() == []
    assert not verify(site.store).faults

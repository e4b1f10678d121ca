"""`retention_days`: personal data of raters who no longer work are erased while the page is served."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from label_support import answer, make_pair, open_store, serving_config, write_pairs

from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.web.login.accounts import add_account
from labeling_ui.web.retention import Retention, erase_inactive

PASSWORD = "a long enough password"
DAY_MS = 86_400_000


def test_only_those_who_have_stopped_working_are_erased(url: str) -> None:
    now = [1_800_000_000_000]
    store = open_store(url, [make_pair(n) for n in range(4)], raters=0, clock=lambda: now[0])
    ids = {name: add_account(store, name, "rater", PASSWORD).id for name in ("gone", "works")}
    ids["lead"] = add_account(store, "lead", "lead", PASSWORD).id
    for name, days in (("gone", 0), ("works", 40)):
        now[0] += days * DAY_MS
        given = store.claim(ids[name])
        assert given is not None
        store.submit(ids[name], answer(given.item_id))
    ids["new"] = add_account(store, "new", "rater", PASSWORD).id
    now[0] += 20 * DAY_MS
    assert erase_inactive(store, 61) == 0
    assert erase_inactive(store, 30) == 1
    assert {one.id: one.erased for one in store.raters()} == {id_: name == "gone" for name, id_ in ids.items()}
    assert len(store.judgments()[0]) == 2, "judgments stay"
    assert verify(store).faults == []


def test_it_is_done_again_and_a_fault_does_not_end_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = [1_800_000_000_000]
    store = open_store(tmp_path, [make_pair(0)], raters=0, clock=lambda: now[0])
    add_account(store, "gone", "rater", PASSWORD)
    printed = ""
    with Retention(store, 30, every_seconds=0.02):
        time.sleep(0.1)
        now[0] += 31 * DAY_MS
        for _ in range(4_000):
            printed += capsys.readouterr().err
            if "it is the only account" in printed:
                break
            time.sleep(0.02)
    assert "it is the only account" in printed
    add_account(store, "lead", "lead", PASSWORD)
    with Retention(store, 30, every_seconds=0.02):
        for _ in range(4_000):
            if any(one.erased for one in store.raters()):
                break
            time.sleep(0.02)
    assert {one.name: one.erased for one in store.raters()}.get("lead") is False
    assert sum(one.erased for one in store.raters()) == 1
    assert "erased the personal data of 1 rater (retention_days: 30)" in capsys.readouterr().out
    store.close()


@pytest.mark.slow
def test_the_server_begins_with_it(tmp_path: Path) -> None:
    long_ago = [1_500_000_000_000]
    store = open_store(tmp_path, [make_pair(0)], raters=0, clock=lambda: long_ago[0])
    add_account(store, "gone", "rater", PASSWORD)
    add_account(store, "lead", "lead", PASSWORD)
    about = {"pairs": str(write_pairs(tmp_path, [make_pair(0)])), "store": f"sqlite:///{tmp_path}/labels.sqlite"}
    config = tmp_path / "label.yaml"
    config.write_text(yaml.safe_dump({"output": str(tmp_path / "out"), **about, "retention_days": 365}))
    with serving_config(config):
        for _ in range(4_000):
            if any(one.erased for one in store.raters()):
                break
            time.sleep(0.05)
    assert {one.role: one.erased for one in store.raters()} == {"rater": True, "lead": False}
    store.close()
    store = Store.open(f"sqlite:///{tmp_path}/labels.sqlite")
    assert verify(store).faults == []
    store.close()

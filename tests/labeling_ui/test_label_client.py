"""The client of the API: it has what the server describes, and its example does what it says."""

from __future__ import annotations

import ast
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from label_support import ROOT, free_port, make_pair, open_store

from labeling_ui.pages import PageConfig
from labeling_ui.store.store import Store
from labeling_ui.web.client_types import FILE, client_source
from labeling_ui.web.login.accounts import add_account
from labeling_ui.web.server import create_app
from tiebreak.client import Client, ClientError

PASSWORD = "a long enough password"


def test_the_client_is_what_the_api_describes() -> None:
    """After a change of the API: python -m labeling_ui.web.client_types"""
    assert ast.dump(ast.parse(client_source())) == ast.dump(ast.parse(FILE.read_text(encoding="utf-8")))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Store]]:
    monkeypatch.setattr("labeling_ui.web.server.mount_pages", lambda _app, _page: None)
    store = open_store(tmp_path, [make_pair(n) for n in range(2)], raters=0)
    add_account(store, "lead", "lead", PASSWORD)
    add_account(store, "one", "rater", PASSWORD)
    port = free_port()
    config = uvicorn.Config(create_app(store, PageConfig("t")), port=port, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}", store
    server.should_exit = True
    thread.join(5)


def test_the_example_of_the_documentation_runs(
    served: tuple[str, Store], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address, store = served
    text = (ROOT / "docs" / "label-server.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(import os\nfrom tiebreak.client.*?)```", text, re.DOTALL)
    assert found is not None
    assert len(found[1].strip().splitlines()) <= 11
    monkeypatch.setenv("LABEL_PASSWORD", PASSWORD)
    exec(compile(found[1].replace("http://127.0.0.1:7860", address), "example", "exec"), {})
    assert capsys.readouterr().out.splitlines()[1:] == ["1 new pairs", "5 judgments wanted"]
    assert len(store.pairs_in_batch("urgent")) == 1


def test_a_rater_judges_through_the_client(served: tuple[str, Store]) -> None:
    address, store = served
    with Client(address, "one", PASSWORD) as client:
        pair = client.next_pair()
        judged = client.judge({"client_id": "c", "pair_id": pair["pair_id"], "answer": 2})
        assert client.history(limit=5)[0]["judgment_id"] == judged["judgment_id"]
        with pytest.raises(ClientError, match="403: only leads"):
            client.lead_status()
        with pytest.raises(ClientError, match="no such file") as caught:
            client.media("0" * 64)
        assert caught.value.status == 404
    assert store.judged() == 1
    with pytest.raises(ClientError, match="401: Wrong name or password"):
        Client(address, "one", "wrong")
    with Client(address, "lead", PASSWORD) as lead:
        assert lead.lead_download()[:2] == b"PK"
        (found,) = lead.lead_items(text="question", agreement="one")["items"]
        assert found["item_id"] == pair["pair_id"]

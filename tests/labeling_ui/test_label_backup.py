"""Stores that are stopped, copied and brought back: nothing is lost, and what is incomplete is found."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from label_support import answer, make_pair, open_store, serving, tiebreak

from labeling_ui import label
from labeling_ui.store.backup import back_up, restore_backup
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from tiebreak.errors import TiebreakError


def judge(address: str, times: int, since: int = 0) -> None:
    pair = httpx.get(f"{address}/api/next").json()
    for n in range(times):
        body = {"client_id": f"client-{since + n}", "pair_id": pair["pair_id"], "answer": 1}
        pair = httpx.post(f"{address}/api/judgments", json=body).raise_for_status().json()["next"]


def counted(file: Path) -> tuple[int, list[str]]:
    store = Store.open(f"sqlite:///{file}")
    result = verify(store)
    store.close()
    return result.judgments, result.faults


def test_a_server_that_is_asked_to_end_leaves_a_whole_file_and_copies_meanwhile_are_known(tmp_path: Path) -> None:
    pairs, file = [make_pair(n) for n in range(9)], tmp_path / "label.sqlite"
    with serving(tmp_path, pairs) as (address, process):
        judge(address, 4)
        for name in ("alone", "both"):
            shutil.copy(file, tmp_path / f"{name}.sqlite")
        shutil.copy(f"{file}-wal", tmp_path / "both.sqlite-wal")
        assert (
            "saved:"
            in tiebreak("label", "backup", "--store", f"sqlite:///{file}", "--output", str(tmp_path / "saved")).stdout
        )
        judge(address, 2, since=4)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0
    assert "saved: 6 judgments" in output
    assert not Path(f"{file}-wal").exists(), "the log is in the file"
    shutil.copy(file, tmp_path / "after.sqlite")
    assert counted(tmp_path / "after.sqlite") == (6, [])
    assert counted(tmp_path / "saved") == (4, [])
    assert counted(tmp_path / "both.sqlite") == (4, [])
    judgments, (fault,) = counted(tmp_path / "alone.sqlite")
    assert judgments < 4
    assert "without its -wal file" in fault
    with pytest.raises(TiebreakError, match="without its -wal"):
        restore_backup(tmp_path / "alone.sqlite", f"sqlite:///{tmp_path}/new.sqlite")
    assert not list(tmp_path.glob("new.sqlite*"))
    with serving(tmp_path, pairs) as (address, process):
        judge(address, 1, since=6)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    assert counted(file) == (7, [])
    shutil.copy(file, tmp_path / "after a kill.sqlite")  # its log has been written into it by now
    assert counted(tmp_path / "after a kill.sqlite") == (7, [])


def test_a_store_is_restored_from_its_backup_and_never_over_another(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(n) for n in range(3)], raters=1)
    store.submit("r0", answer(store.claim("r0").item_id))  # type: ignore[union-attr]
    saved, url = tmp_path / "backups/one.sqlite", f"sqlite:///{tmp_path}/again/labels.sqlite"
    result = back_up(store, saved)
    assert (result.judgments, result.head) == (1, store.head())
    with pytest.raises(TiebreakError, match="exists"):
        back_up(store, saved)
    with pytest.raises(TiebreakError, match="exists, and would be overwritten"):
        restore_backup(saved, store.url)
    label._dispatch(["restore", "--backup", str(saved), "--store", url])
    again = Store.open(url)
    assert (again.head(), again.judgments()) == (store.head(), store.judgments())
    again.close()
    (tmp_path / "again/labels.sqlite").unlink()
    (tmp_path / "again/labels.sqlite-wal").write_bytes(b"of the store before")
    with pytest.raises(TiebreakError, match=r"labels\.sqlite-wal exists"):
        restore_backup(saved, url)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["one.sqlite"]
    store.close()


def test_a_damaged_store_is_not_backed_up_and_a_damaged_backup_not_restored(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(n) for n in range(3)], raters=1)
    store.submit("r0", answer(store.claim("r0").item_id))  # type: ignore[union-attr]
    whole, damaged = tmp_path / "whole.sqlite", tmp_path / "damaged.sqlite"
    back_up(store, whole)
    shutil.copy(whole, damaged)
    with sqlite3.connect(damaged) as connection:
        connection.execute("DELETE FROM judgments")
    with pytest.raises(TiebreakError, match="nothing was written"):
        restore_backup(damaged, f"sqlite:///{tmp_path}/new.sqlite")
    with pytest.raises(TiebreakError, match="nothing was written"):
        back_up(Store.open(f"sqlite:///{damaged}"), tmp_path / "copy.sqlite")
    assert not list(tmp_path.glob("new*")) + list(tmp_path.glob("copy*"))
    store.close()


def test_a_store_on_postgres_is_for_pg_dump(postgres: Callable[[], str], tmp_path: Path) -> None:
    store = open_store(postgres(), [make_pair(0)])
    with pytest.raises(TiebreakError, match="pg_dump"):
        back_up(store, tmp_path / "x")
    with pytest.raises(TiebreakError, match="pg_restore"):
        restore_backup(tmp_path / "x", store.url)
    store.begin_serving()
    assert verify(store).faults == []
    store.close()


def test_a_taken_port_is_reported_and_leaves_no_store(tmp_path: Path) -> None:
    with serving(tmp_path, [make_pair(0)]) as (address, _):
        words = ["--pairs", str(tmp_path / "pairs.jsonl"), "--output", str(tmp_path / "other")]
        refused = tiebreak("label", *words, "--port", address.rsplit(":", 1)[1], ok=False)
    assert "cannot listen" in refused.stderr
    assert "rate at" not in refused.stdout
    assert not list(tmp_path.glob("other*"))


def test_a_backup_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0)])
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(TiebreakError, match=r"cannot write the backup .* Give another --output"):
        back_up(store, tmp_path / "file" / "backup.sqlite")
    store.close()

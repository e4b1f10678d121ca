"""Chat and serve on what nobody meant to give them; nothing here loads a model."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tiebreak.errors import RunError
from tiebreak.export.configuration import ExportArguments
from tiebreak.serving import serve
from tiebreak.serving.chat import Session, _lines
from tiebreak.serving.configuration import ChatArguments, ServeArguments


def test_a_line_that_is_no_text_is_refused_and_the_next_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Latin-1 in a pipe, also within a command; an empty line is not a turn."""
    lines = b"caf\xe9?\n\n   \n/system caf\xe9\ncaf\xc3\xa9?\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    session = Session(ChatArguments(), [], None, io.StringIO())
    session.run(_lines())
    refused = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("error: this line is not UTF-8")
    ]
    assert [line.partition("character ")[2].partition(")")[0] for line in refused] == ["4", "12"]
    assert (session.turns, session.system) == (1, None)


def test_a_byte_order_mark_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' editors begin a file with one; the first line was `\\ufeff/system brief`, a question."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf/system brief\r\n"), encoding="utf-8"))
    session = Session(ChatArguments(), [], None, io.StringIO())
    session.run(_lines())
    assert (session.turns, session.system) == (0, "brief")


def test_two_servers_of_one_run_share_its_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both begin before there is one, and the second finds the first's folder in place of its own."""
    run = tmp_path / "dpo"
    run.mkdir()
    (run / "manifest.json").write_text(json.dumps({"id": "a", "stage": "dpo", "inputs": {}, "config": {}}))
    made = {"id": "a"}

    def export(_: str, arguments: ExportArguments) -> Any:
        folder = run / "exports" / "safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        record = {**made, "to": arguments.to, "adapter_only": False}
        (folder / "export.json").write_text(json.dumps(record))
        raise RunError(f"{folder} exists, and nothing is overwritten")

    monkeypatch.setattr(serve, "export", export)
    assert serve.served_folder(str(run), ServeArguments()) == (run / "exports" / "safetensors").resolve()
    made["id"] = "of an earlier training"
    (run / "exports" / "safetensors" / "export.json").unlink()
    with pytest.raises(RunError, match="exists, and nothing is overwritten"):
        serve.served_folder(str(run), ServeArguments())

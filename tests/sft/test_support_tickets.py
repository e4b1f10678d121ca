"""The commands of docs/data.md take the dirty tickets to reviewed, anonymous, split data."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import REPOSITORY, read_rows, run_here

from tiebreak.data.reading import read_demonstrations

TICKETS = REPOSITORY / "data" / "support-tickets" / "tickets.json"
VALUES = re.compile(
    r"[a-zöäü.]+@example\.(?:org|com|net)|020 7946 \d+|030 23125 \d+|DE\d{2}[ \d]{18,}|4242[ \d]{12,}|LM-\d{6}|"
    r"hunter2-lamp|"
    r"(?:Fennel Row|Cobbler Street|Marrow Lane|Tidewell Road|Orchard Mews|Birnbaumweg|Ziegelgasse|Am Mühlteich|"
    r"Lerchenstraße|Kastanienallee)"
)
"""Invented personal data, as it was put in."""


def customers() -> list[str]:
    return (TICKETS.parent / "customers.txt").read_text(encoding="utf-8").splitlines()


def commands() -> list[list[str]]:
    """The commands of the guide."""
    guide = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## From dirty tickets.*?```sh\n(.*?)```", guide, re.DOTALL)
    return [shlex.split(line)[1:] for line in block.splitlines()]


@pytest.mark.slow
def test_the_guides_commands_make_anonymous_split_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = TICKETS.read_text(encoding="utf-8")
    assert len(set(VALUES.findall(raw))) > 90
    assert sum(name in raw for name in customers()) > 35
    monkeypatch.chdir(tmp_path)
    *own, review = commands()
    assert len(own) == 5
    for words in own:
        status, err = run_here(*words)
        assert status == 0, (words, err)
    run = tmp_path / "runs" / "support-tickets" / "prepare"
    for file in run.rglob("*"):
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            assert not VALUES.findall(text), file
            assert not [name for name in customers() if name in text], file
    sheet = (run / "data-sheet.md").read_text()
    assert "| personal data hidden, by kind | ADDRESS " in sheet
    assert "| step anonymise | read " in sheet
    assert review[:3] == ["label", "--answers", "runs/support-tickets/prepare"]
    report = json.loads((run / "final" / "report.json").read_text())
    done = {tally["step"]: tally for tally in report["steps"]}
    assert done["language"]["dropped"] >= 4  # French, Spanish, Dutch, Italian
    assert done["contamination"]["dropped"] == 4
    assert done["contradictions"]["flagged"] >= 1
    assert report["dropped"]["the same as"] >= 6
    counts = done["balance"]["facts"]["balance"]
    assert counts["tag"]["en"] > 40
    assert counts["language"]["de"] > 40
    gaps = read_rows(run / "final" / "gaps.jsonl")
    assert len(gaps) == done["balance"]["facts"]["gaps"] > 0
    shown = read_rows(run / "final" / "demonstrations.jsonl")
    assert {one["prompt"]["split"] for one in shown} == {"train", "validation"}
    texts = json.dumps(shown, ensure_ascii=False)
    assert "Ã" not in texts
    assert "<p>" not in texts
    assert all(
        f"<{kind}_1>" in texts for kind in ("EMAIL", "PHONE", "IBAN", "CARD", "ADDRESS", "BIRTH_DATE", "ORDER", "WORD")
    )
    questions = read_rows(TICKETS.with_name("questions.jsonl"))
    tests = {row["prompt"] for row in questions if row["split"] == "test"}
    kept = [row for row in read_rows(run / "final" / "prompts.jsonl") if row["split"] == "test"]
    assert {row["messages"][0]["content"] for row in kept} == tests
    asked = {prompt for row in read_rows(run / "final" / "flagged.jsonl") for prompt in row["prompt_ids"]}
    to_review = [row for row in shown if row["prompt"]["id"] in asked]
    seen = review_over_http(review, tmp_path)
    assert len(seen) == len(to_review) >= 2
    assert all(reasons and all(": " in one for one in reasons) for reasons in seen.values())
    store = f"sqlite:///{tmp_path}/runs/support-tickets/reviewed.sqlite"
    output = "runs/support-tickets/reviewed"
    status, err = run_here("label", "export", "--store", store, "--output", output)
    assert status == 0, err
    reviewed = read_demonstrations(output)
    tags = [one.prompt.tags[-1:] for one in reviewed]
    assert (tags.count(("reviewed:edited",)), tags.count(("reviewed:accepted",))) == (1, len(to_review) - 2)
    assert len(reviewed) == len(shown) - 1
    assert {one.prompt.split for one in reviewed} == {"train", "validation"}
    assert [one.text for one in reviewed if "reviewed:edited" in one.prompt.tags] == ["As a person wrote it."]


def review_over_http(words: list[str], folder: Path) -> dict[str, list[str]]:
    """Start the guide's command, and over HTTP edit the first row, reject the second, accept the others.

    Returns:
        why each row was flagged, as its reviewer was shown.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "tiebreak.command.cli", *words, "--port", port]
    verdicts = iter(
        [{"value": "edit", "edited_text": "As a person wrote it."}, {"value": "reject", "rationale": "No."}]
    )
    seen: dict[str, list[str]] = {}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            site = httpx.Client(
                base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=8), timeout=600
            )
            pair = site.get("/api/next").raise_for_status().json()
            while pair is not None:
                seen[pair["pair_id"]] = pair["flagged"]
                about = {"client_id": f"review {len(seen)}", "pair_id": pair["pair_id"]}
                verdict: dict[str, Any] = next(verdicts, {"value": "accept"})
                site.post("/api/judgments", json={**about, **verdict}).raise_for_status()
                pair = site.get("/api/next").raise_for_status().json()
        finally:
            server.terminate()
        greeting, _ = server.communicate()
    assert f"batch 'flagged': {len(seen)} of 88 answers to review, those that prepare flagged" in greeting
    assert "to move them there" not in greeting
    return seen

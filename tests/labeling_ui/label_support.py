"""Pairs, stores and commands that the labelling tests share."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from labeling_ui.store.answers import Submission
from labeling_ui.store.store import Store, wall_clock_ms
from tiebreak.command.cli import main as command_line
from tiebreak.config import StageConfig
from tiebreak.files import write_jsonl
from tiebreak.messages import Message, prompt_id
from tiebreak.records import Completion, Pair
from tiebreak.runs.run import start_run

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
)
needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}")
ROOT = Path(__file__).parents[2]
GOOD = (
    "Lower the pH to 5.8 with 1 ml of acid per litre, wait 30 minutes, then measure it again and repeat until it "
    "holds at {n}."
)
MIDDLING = "Add 5 ml of nutrient to the tub number {n}."
POOR = "Great question! It is important to consider many things, and there are {n} of them, and it depends"


def make_pair(n: int, first: str = "first answer", second: str = "second answer", more: tuple[str, ...] = ()) -> Pair:
    """A pair (or larger) with ids `pair-n`, `n-0`, `n-1`, …"""
    messages = (Message(role="user", content=f"question {n}?"),)
    texts = (first, second, *more)
    completions = tuple(
        Completion(id=f"{n}-{k}", text=text, policy=f"secret-model-{k}", finished=k == 0)
        for k, text in enumerate(texts)
    )
    return Pair(id=f"pair-{n}", prompt_id=prompt_id(messages), messages=messages, completions=completions)


def rubric_pairs(count: int) -> list[Pair]:
    """Pairs whose answers the rubric tells apart: GOOD meets all six criteria, MIDDLING fewer, POOR hardly any."""
    kinds = [(GOOD, POOR), (MIDDLING, GOOD), (POOR, MIDDLING)]
    return [make_pair(n, *(text.format(n=n) for text in kinds[n % 3])) for n in range(count)]


def open_store(
    where: Path | str,
    pairs: list[Pair],
    *,
    overlap: int = 1,
    raters: int = 1,
    clock: Callable[[], int] | None = wall_clock_ms,
    lease_seconds: int = 1200,
) -> Store:
    """A store with pairs and raters r0, r1, … `where` is a URL, or a folder for a SQLite file."""
    url = where if isinstance(where, str) else f"sqlite:///{where}/labels.sqlite"
    store = Store.open(url, create=True, clock=clock, lease_seconds=lease_seconds)
    store.add_pairs(pairs, overlap=overlap, seed=0, source="test", source_id="test")
    for n in range(raters):
        store.add_rater(f"rater {n}", rater_id=f"r{n}")
    return store


def write_reward_report(folder: Path, rows: list[dict[str, Any]] | None, stage: str = "reward report") -> Path:
    """A finished report of a reward model with these pulls, `chosen` being texts; None: without any."""
    with start_run(StageConfig(output=str(folder)), stage, {}) as run:
        write_jsonl(run.final / "report.jsonl", [{}])
        if rows is not None:
            hashed = [{**row, "chosen": hashlib.sha256(row["chosen"].encode()).hexdigest()} for row in rows]
            write_jsonl(run.final / "pulls.jsonl", hashed)
        run.finish()
    return folder


def before_withdrawals(connection: sqlite3.Connection) -> None:
    """Bring a store's tables back to schema 8."""
    indices = ("judgments_by_rater", "judgments_flagged", "events_of_item", "items_withdrawn", "items_of_pair")
    for statement in (
        "TABLE item_words",
        "TABLE rejections",
        "TABLE withdrawals",
        "TABLE second_factors",
        "TABLE review_sample",
        "TABLE publications",
        "TABLE consent_withdrawals",
        "TABLE identities",
        "TABLE media_names",
        "TABLE media_files",
        "TABLE mail_addresses",
        "INDEX events_notes",
        *(f"INDEX {one}" for one in ("events_pairs_added", "items_disputed_in_order", "items_untouched", "items_ids")),
        *(
            f"INDEX {one}"
            for one in (
                "items_of_batch",
                "items_unfinished",
                "events_of_people",
                "events_of_answers",
                "events_of_reasons",
            )
        ),
        *(f"INDEX {one}" for one in indices),
    ):
        connection.execute(f"DROP {statement}")
    for column in (
        "sessions DROP COLUMN began_at_ms",
        "items DROP COLUMN withdrawn",
        "items DROP COLUMN length",
        "batches DROP COLUMN deadline",
    ):
        connection.execute(f"ALTER TABLE {column}")
    for column in (
        "batches DROP COLUMN goal",
        "gold DROP COLUMN value",
        *(f"invitations DROP COLUMN {one}" for one in ("name", "made_at_ms", "revoked", "email", "subject")),
        *(f"raters DROP COLUMN {one}" for one in ("standing", "standing_seq", "standing_note", "erased_at_ms")),
    ):
        connection.execute(f"ALTER TABLE {column}")


def answer(pair_id: str, value: int = 1, client_id: str = "") -> Submission:
    """A plain judgment."""
    return Submission(client_id=client_id or f"client-{pair_id}", pair_id=pair_id, answer=value)


def tiebreak(*words: str, ok: bool = True, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command line, in this process."""
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    with contextlib.chdir(cwd), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            command_line(list(words))
        except SystemExit as stopped:
            status = int(stopped.code or 0)
    assert (status == 0) is ok, f"exit status {status}\n{stdout.getvalue()}\n{stderr.getvalue()}"
    return subprocess.CompletedProcess(words, status, stdout.getvalue(), stderr.getvalue())


def environment() -> dict[str, str]:
    """This one, with our packages found."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def write_pairs(folder: Path, pairs: list[Pair]) -> Path:
    """A .jsonl of pairs."""
    path = folder / "pairs.jsonl"
    write_jsonl(path, pairs)
    return path


def write_words(folder: Path, words: dict[str, str]) -> Path:
    """A .json file of words for the pages."""
    path = folder / "words.json"
    path.write_text(json.dumps(words), encoding="utf-8")
    return path


@contextmanager
def serving(
    folder: Path, pairs: list[Pair], *words: str, port: int | None = None
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`tiebreak label` serving `pairs`: the address, and the process. `port`: that of a server before it."""
    port = port or free_port()
    arguments = [
        "--output",
        str(folder / "label"),
        "--pairs",
        str(write_pairs(folder, pairs)),
        "--port",
        str(port),
        *words,
    ]
    command = [sys.executable, "-m", "tiebreak.command.cli", "label", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(address, process)
        yield address, process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=600)


@contextmanager
def serving_config(config: Path) -> Iterator[str]:
    """`tiebreak label --config`: the address. What it writes is in a file beside the configuration, `.stderr`."""
    port = free_port()
    command = [sys.executable, "-m", "tiebreak.command.cli", "label", "--config", str(config), "--port", str(port)]
    with config.with_suffix(".stderr").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=log, text=True
        )
        try:
            wait_until_up(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.communicate(timeout=600)


def processes(module: str, about: str) -> list[int]:
    """The ids of the processes that run a module with these words among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_text(errors="replace")
            found += [int(path.parent.name)] if module in words and about in words else []
    return found


def wait_until_up(address: str, process: subprocess.Popen[str]) -> None:
    """Wait for a server that has been started, on a busy machine too."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {process.communicate()}")
        try:
            with urllib.request.urlopen(f"{address}/api/health", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the server did not come up")

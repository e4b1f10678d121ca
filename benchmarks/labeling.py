"""How the labelling app holds up: the figures that its design promises, measured on the machine of the server.

    python benchmarks/labeling.py                                   every part
    python benchmarks/labeling.py --parts http think --seconds 60   some parts, longer
    python benchmarks/labeling.py --parts think --seconds 3600      an hour of 30 raters who think
    python benchmarks/labeling.py --parts million --kept FOLDER     the store of a million is made once, and used again

    store     claim and submit from 10 processes at once, on the store itself
    http      10 and 30 raters in a closed loop over HTTP, without thought: the time from sending a judgment to having
              the next pair
    think     30 raters with 5 to 15 seconds of thought
    kills     the server is killed (SIGKILL) 20 times (--kills) in the middle of 10 raters' work, and started again
    million   one rater and a lead in a store of a million judgments (its rows are written directly): next pair, searches,
              dashboard; then the server's start, memory, and processor time without requests

Two servers on one Postgres, with 200 raters: labeling_shared.py. Every part on a running store ends with a check that
nothing was lost, doubled or given to too many raters, and that the log is whole. Prints a table and, with --json FILE,
writes the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from labeling_ui.database.schema import ASSIGNMENTS, HOUR_MS, ITEMS, JUDGMENTS, LOG_HEAD, RATER_HOURS, RATERS
from labeling_ui.store.answers import Submission
from labeling_ui.store.store import Store, wall_clock_ms
from labeling_ui.store.verify import verify
from labeling_ui.web.login.accounts import add_account
from tiebreak.files import write_jsonl
from tiebreak.messages import Message, prompt_id
from tiebreak.records import Completion, Judgment, Pair

PASSWORD = "a password for the benchmark"
OVERLAP = 3
PARTS = ("store", "http", "think", "kills", "million")
MANY = 1_000_000
RATERS_OF_MANY = 40
VOTES_OF_MANY = 4
KILLS = 20
MOST_SECONDS_TO_START = 900.0
MOST_SECONDS_TO_JUDGE = 300.0


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    target: str
    measured: dict[str, object]
    reached: bool


def build_pairs(count: int, words_each: int = 180) -> list[Pair]:
    """Pairs of answers as long as real ones: about 1,000 characters at 180 words."""
    words = ["lower", "raise", "measure", "drain", "rinse", "water", "root", "leaf", "lamp", "tray", "litre", "degree"]
    chance = random.Random(0)
    pairs = []
    for n in range(count):
        messages = (Message(role="user", content=f"Question {n}: " + " ".join(chance.choices(words, k=40))),)
        completions = tuple(
            Completion(
                id=f"pair-{n}-{side}", text=f"{side} " + " ".join(chance.choices(words, k=words_each)), policy="p"
            )
            for side in "ab"
        )
        pairs.append(Pair(id=f"pair-{n}", prompt_id=prompt_id(messages), messages=messages, completions=completions))
    return pairs


def open_store(folder: Path, pairs: Sequence[Pair], overlap: int = OVERLAP) -> Store:
    """A new store with `pairs`."""
    store = Store.open(f"sqlite:///{folder}/label.sqlite", create=True)
    store.add_pairs(pairs, overlap=overlap, seed=0, source="benchmark", source_id="benchmark")
    return store


def percentile(times: Sequence[float], share: float) -> float:
    """In milliseconds."""
    ordered = sorted(times)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)


def summary(times: Sequence[float]) -> dict[str, object]:
    """The times of a run, in milliseconds."""
    return {
        "n": len(times),
        "p50_ms": round(1000 * statistics.median(times), 1),
        "p95_ms": percentile(times, 0.95),
        "max_ms": round(1000 * max(times), 1),
    }


def check(store: Store, acknowledged: set[str] | None = None) -> dict[str, object]:
    """What became of the judgments: only what should not be there; {} if all is well."""
    with store.reading() as connection:
        judged = sa.select(JUDGMENTS.c.id, JUDGMENTS.c.item_id, JUDGMENTS.c.rater_id, JUDGMENTS.c.occasion)
        everything = connection.execute(judged).all()
        overlap = {row.id: row.overlap for row in connection.execute(sa.select(ITEMS.c.id, ITEMS.c.overlap))}
        given = connection.execute(
            sa.select(ASSIGNMENTS.c.item_id, ASSIGNMENTS.c.rater_id).where(ASSIGNMENTS.c.occasion == 0)
        ).all()
    stored = [row for row in everything if row.occasion == 0]  # a planned repeat is not a second place
    raters = Counter(row.item_id for row in stored)
    found = {
        "acknowledged and lost": len((acknowledged or set()) - {row.id for row in everything}),
        "doubled": len(stored) - len({(row.item_id, row.rater_id) for row in stored}),
        "over their overlap": sum(count > overlap[item] for item, count in raters.items()),
        "assigned twice": len(given) - len({tuple(row) for row in given}),
        "faults of the log": len(verify(store).faults),
    }
    return {what: count for what, count in found.items() if count}


# --- the store ---


def work_in_process(url: str, rater_id: str, start: Barrier, seconds: float, done: Any) -> None:
    """Claim and submit until the time is over."""
    store = Store.open(url)
    held = store.claim(rater_id)
    start.wait()
    until, count = time.monotonic() + seconds, 0
    while held is not None and time.monotonic() < until:
        submission = Submission(client_id=f"{rater_id}-{count}", pair_id=held.item_id, answer=count % 7 - 3)
        _, held = store.submit_and_claim(rater_id, submission)
        count += 1
    done.put(count)
    store.close()


def measure_store(folder: Path, seconds: float) -> list[Row]:
    """Ten processes."""
    store = open_store(folder, build_pairs(int(900 * seconds), words_each=20))
    names = [store.add_rater(f"rater {n}", rater_id=f"rater-{n}").id for n in range(10)]
    store.engine.dispose()
    context = multiprocessing.get_context("fork")
    start, done = context.Barrier(len(names)), context.Queue()
    workers = [context.Process(target=work_in_process, args=(store.url, name, start, seconds, done)) for name in names]
    for worker in workers:
        worker.start()
    counts = [done.get(timeout=seconds + 60) for _ in workers]
    for worker in workers:
        worker.join()
    rate, faults = round(sum(counts) / seconds), check(store)
    measured = {"claims and submissions a second": rate, "of one process": [min(counts), max(counts)], **faults}
    return [Row("claim + submit in the store, 10 processes", ">= 500 a second", measured, rate >= 500 and not faults)]


# --- over HTTP ---


@dataclass
class Load:
    """Raters at work."""

    address: str
    think: tuple[float, float] = (0.0, 0.0)
    drafts: bool = False
    prefix: str = ""
    """of the judgments' ids, where one store has two runs"""
    times: list[float] = field(default_factory=list)
    acknowledged: set[str] = field(default_factory=set)
    latest_draft: dict[str, tuple[str, int]] = field(default_factory=dict)
    """rater → (pair, number) of the last draft that was acknowledged and not yet followed by a judgment"""


class Browser:
    """One rater's connection, kept open. It takes little of the machine, which the server has to share with thirty."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.removeprefix("http://").partition(":")
        self._port = int(port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._kept: dict[str, str] = {}

    async def log_in(self, name: str) -> None:
        """Begin a session; later requests carry it."""
        reply = await self.send("POST", "/api/login", {"username": name, "password": PASSWORD})
        self._kept["X-CSRF-Token"] = reply["csrf_token"]

    async def send(self, method: str, path: str, body: object = None) -> Any:
        """A request, tried again until the server answers: it may be dead just now."""
        content = b"" if body is None else json.dumps(body).encode()
        headers = {"Host": f"{self._host}:{self._port}", "Content-Length": str(len(content)), **self._kept}
        headers["Content-Type"] = "application/json"
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        while True:
            kept = self._streams is not None
            try:
                return await self._exchange("\r\n".join(lines).encode() + content)
            except (OSError, asyncio.IncompleteReadError):
                self.close()
                if not kept:  # the server may have closed a kept connection, and be well
                    await asyncio.sleep(0.05)

    async def _exchange(self, request: bytes) -> Any:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        writer.write(request)
        await writer.drain()
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        content = await reader.readexactly(int(headers["content-length"]))
        if not status.startswith("HTTP/1.1 200"):
            raise SystemExit(f"{status}: {content[:300]!r}")
        cookies = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("set-cookie:")]
        if cookies:
            self._kept["Cookie"] = "; ".join(one.partition(";")[0] for one in cookies)
        return json.loads(content)

    def close(self) -> None:
        """Let go of the connection."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def rate(load: Load, name: str, over: Callable[[], bool]) -> None:
    """One rater's work: a judgment at least, since a login alone may take all the time of a short run."""
    browser = Browser(load.address)
    try:
        await browser.log_in(name)
        pair, count = await browser.send("GET", "/api/next"), 0
        await asyncio.sleep(random.uniform(0, load.think[1]))
        while pair and not (count and over()):
            if load.drafts:
                await browser.send("PUT", f"/api/drafts/{pair['pair_id']}", {"rationale": str(count)})
                load.latest_draft[name] = (pair["pair_id"], count)
            await asyncio.sleep(random.uniform(*load.think))
            judgment = {"pair_id": pair["pair_id"], "answer": random.randint(-3, 3), "seconds_active": 1.0}
            begun = time.perf_counter()
            reply = await browser.send(
                "POST", "/api/judgments", {"client_id": f"{load.prefix}{name}-{count}", **judgment}
            )
            load.times.append(time.perf_counter() - begun)
            load.acknowledged.add(reply["judgment_id"])
            load.latest_draft.pop(name, None)
            pair, count = reply["next"], count + 1
    finally:
        browser.close()


async def rate_all(load: Load, raters: int, seconds: float) -> None:
    """All raters at once."""
    until = time.monotonic() + seconds
    await asyncio.gather(*(rate(load, f"rater {n}", lambda: time.monotonic() >= until) for n in range(raters)))


@contextmanager
def serving(folder: Path, overlap: int = OVERLAP) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The server, in a process of its own: its address, and the process that is the last of the list. `overlap`: the
    store's own, or the start would first change it for every item."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = int(listening.getsockname()[1])
    server = [start_server(folder, port, overlap=overlap)]
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        server[-1].terminate()
        server[-1].wait(20)


def start_server(folder: Path, port: int, store: str | None = None, overlap: int = OVERLAP) -> subprocess.Popen[bytes]:
    """Returns when it answers; asking takes little of the processor from a server that starts. `store`: its URL, if it is
    not the folder's own."""
    words = ["--output", str(folder / "label"), "--pairs", str(folder / "pairs.jsonl"), "--port", str(port)]
    words += ["--store", store] if store else []
    command = [sys.executable, "-m", "tiebreak.command.cli", "label", *words, "--overlap", str(overlap)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    until = time.monotonic() + MOST_SECONDS_TO_START
    while process.poll() is None and time.monotonic() < until:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/api/health")
            if connection.getresponse().status == 200:
                return process
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    process.kill()
    raise SystemExit(f"the server did not come up: exit status {process.wait()}")


def prepare(folder: Path, raters: int, pairs: int) -> Store:
    """A store that a server can be started on."""
    made = build_pairs(pairs)
    write_jsonl(folder / "pairs.jsonl", made)
    store = open_store(folder, made)
    for n in range(raters):
        add_account(store, f"rater {n}", "rater", PASSWORD)
    return store


def measure_http(
    folder: Path, raters: int, seconds: float, think: tuple[float, float] = (0.0, 0.0)
) -> tuple[Load, Any]:
    """A run, and what is wrong with the store after it."""
    store = prepare(folder, raters, 400 + int(150 * seconds if think == (0.0, 0.0) else 4 * seconds))
    with serving(folder) as (address, _):
        load = Load(address, think)
        asyncio.run(rate_all(load, raters, seconds))
    faults = check(store, load.acknowledged)
    store.close()
    return load, faults


def measure_closed_loop(folder: Path, seconds: float) -> list[Row]:
    """Ten and thirty raters who do not think."""
    rows = []
    for raters, p50, p95 in ((10, None, 120.0), (30, 150.0, 400.0)):
        inner = folder / str(raters)
        inner.mkdir()
        load, faults = measure_http(inner, raters, seconds)
        measured = summary(load.times) | {"a second": round(len(load.times) / seconds), **faults}
        good = percentile(load.times, 0.95) <= p95 and (p50 is None or percentile(load.times, 0.5) <= p50)
        target = f"p95 <= {p95:.0f} ms" if p50 is None else f"p50 <= {p50:.0f}, p95 <= {p95:.0f} ms"
        rows.append(
            Row(f"submit and next over HTTP, {raters} raters, no thought", target, measured, good and not faults)
        )
    return rows


def measure_thinking(folder: Path, seconds: float) -> list[Row]:
    """Thirty raters with 5 to 15 seconds of thought."""
    load, faults = measure_http(folder, 30, seconds, (5.0, 15.0))
    good = percentile(load.times, 0.5) <= 30 and percentile(load.times, 0.95) <= 120
    measured = summary(load.times) | faults
    return [Row("30 raters with 5-15 s of thought", "p50 <= 30, p95 <= 120 ms", measured, good and not faults)]


# --- killing the server ---


async def next_judgment(load: Load) -> None:
    """Wait until the server acknowledges a judgment: one that is killed before, while raters log in, can lose none."""
    count, until = len(load.acknowledged), time.monotonic() + MOST_SECONDS_TO_JUDGE
    while len(load.acknowledged) == count:
        if time.monotonic() > until:
            raise SystemExit(f"{load.address} acknowledged no judgment in {MOST_SECONDS_TO_JUDGE:.0f} seconds")
        await asyncio.sleep(0.01)


async def kill_now_and_then(
    load: Load, folder: Path, server: list[subprocess.Popen[bytes]], port: int, kills: int
) -> None:
    """Kill the server in the middle of the work, and start it again."""
    for _ in range(kills):
        await next_judgment(load)
        await asyncio.sleep(random.uniform(0.2, 0.8))
        server[-1].kill()
        server[-1].wait()
        server.append(await asyncio.to_thread(start_server, folder, port))


async def rate_and_kill(load: Load, folder: Path, server: list[subprocess.Popen[bytes]], port: int, kills: int) -> None:
    """Ten raters work until the last kill is a second ago."""
    raters = [asyncio.create_task(rate(load, f"rater {n}", lambda: False)) for n in range(10)]
    await kill_now_and_then(load, folder, server, port, kills)
    await asyncio.sleep(1)
    for task in raters:
        task.cancel()
    await asyncio.gather(*raters, return_exceptions=True)


async def count_lost_drafts(load: Load) -> int:
    """Drafts that were acknowledged and are not there, in that state or a later one."""
    lost = 0
    for name, (pair_id, number) in load.latest_draft.items():
        browser = Browser(load.address)
        await browser.log_in(name)
        pair = await browser.send("GET", "/api/next")
        if pair and pair["pair_id"] == pair_id:  # else the judgment arrived, and its reply did not
            lost += pair["draft"] is None or int(pair["draft"]["rationale"]) < number
        browser.close()
    return lost


def measure_kills(folder: Path, kills: int) -> list[Row]:
    """Nothing that was acknowledged is gone."""
    store = prepare(folder, 10, 3_000)
    with serving(folder) as (address, server):
        load = Load(address, drafts=True)
        asyncio.run(rate_and_kill(load, folder, server, int(address.rpartition(":")[2]), kills))
        lost = asyncio.run(count_lost_drafts(load))
    faults = check(store, load.acknowledged) | ({"drafts lost": lost} if lost else {})
    measured = {"kills": kills, "acknowledged judgments": len(load.acknowledged), **faults}
    good = not faults and len(load.acknowledged) >= kills
    return [Row(f"SIGKILL {kills} times, 10 raters", "nothing lost or doubled", measured, good)]


# --- a million judgments ---


def fill(store: Store, pairs: int) -> int:
    """Write `pairs` times `VOTES_OF_MANY` judgments of `RATERS_OF_MANY` raters as rows; returns how many."""
    count = pairs * VOTES_OF_MANY
    begun: int = store.status()["events"]
    with store.engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA cache_size=-1500000")
        driver = connection.connection.cursor()
        for table, rows in rows_of_many(count, begun).items():
            marks = ", ".join("?" for _ in table.split(","))
            driver.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        count_many(connection, pairs)
        connection.execute(sa.update(LOG_HEAD).values(seq=begun + 2 * count))
    return count


def rows_of_many(count: int, begun: int) -> dict[str, Iterator[tuple[Any, ...]]]:
    """The rows of `count` judgments, each with its two events after the first `begun`, by table and its columns."""
    now, raters = wall_clock_ms(), names_of_many()
    ids = [(n, f"pair-{n // VOTES_OF_MANY}", raters[n % RATERS_OF_MANY]) for n in range(count)]
    times = range(now - 500 * count, now, 500)
    judgments = {
        answer: Judgment(pair_id="PAIR", rater_id="RATER", left="PAIR-a", right="PAIR-b", answer=answer, kind="human")
        for answer in (-3, -2, -1, 0, 1, 2, 3)
    }
    records = {answer: judgment.model_dump_json() for answer, judgment in judgments.items()}
    answers = random.Random(0).choices(list(records), k=count)
    payload = json.dumps({"padding": "-" * 280})
    return {
        "events (seq, at_ms, kind, rater_id, item_id, payload, previous, hash)": (
            (begun + 2 * n + k + 1, times[n], kind, rater, pair, payload, "", f"{hash((n, k)):064x}")
            for n, pair, rater in ids
            for k, kind in enumerate(("assigned", "submitted"))
        ),
        "assignments (id, item_id, rater_id, left_id, right_id, state, lease_until_ms, seq)": (
            (f"assignment-{n:08}", pair, rater, f"{pair}-a", f"{pair}-b", "done", times[n], begun + 2 * n + 1)
            for n, pair, rater in ids
        ),
        "judgments (id, assignment_id, item_id, rater_id, kind, record, seq, vote, at_ms, active_ms)": (
            (
                f"judgment-{n:08}", f"assignment-{n:08}", pair, rater, "human",
                records[answers[n]].replace("PAIR", pair).replace("RATER", rater),
                begun + 2 * n + 2, -answers[n], times[n], 20_000,
            )
            for n, pair, rater in ids
        ),
    }  # fmt: skip


def count_many(connection: sa.Connection, pairs: int) -> None:
    """Bring the counts that the store keeps of raters, pairs and hours up to the rows."""
    judged = sa.select(sa.func.count()).where(JUDGMENTS.c.rater_id == RATERS.c.id).scalar_subquery()
    connection.execute(sa.update(RATERS).where(RATERS.c.id.in_(names_of_many())).values(judged=judged))
    votes = {
        f"for_{name}": sa.select(sa.func.count()).where(JUDGMENTS.c.item_id == ITEMS.c.id, condition).scalar_subquery()
        for name, condition in (
            ("first", JUDGMENTS.c.vote > 0),
            ("second", JUDGMENTS.c.vote < 0),
            ("neither", JUDGMENTS.c.vote == 0),
        )
    }
    connection.execute(
        sa.update(ITEMS).where(ITEMS.c.position < pairs).values(**votes, taken=VOTES_OF_MANY, disputed=2)
    )
    hours = sa.select(
        JUDGMENTS.c.rater_id, JUDGMENTS.c.at_ms // HOUR_MS, sa.func.count(), sa.func.sum(JUDGMENTS.c.active_ms), 0
    ).group_by(JUDGMENTS.c.rater_id, sa.text("2"))
    connection.execute(sa.insert(RATER_HOURS).from_select(list(RATER_HOURS.c.keys()), hours))


def names_of_many() -> list[str]:
    """The ids of the raters."""
    return [f"rater-{n}" for n in range(RATERS_OF_MANY)]


SEARCHES = {
    "a word": "text=water",
    "a rare word": f"text={MANY // VOTES_OF_MANY - 5}",
    "a phrase": "text=%22water+root%22",
    "a word and split votes": "text=water&agreement=side",
    "part of an id": f"id=-{MANY // VOTES_OF_MANY - 3}",
    "a rater": "rater=rater-3",
    "a rater's ties": "rater=rater-3&answer=neither",
    "a rater without any": "rater=nobody",
    "a batch without any": "batch=no",
    "split votes": "agreement=side",
    "nothing judged": "state=unjudged",
    "a flag": "flag=unsafe",
    "long texts": "shortest=1000000",
}
IDLE_SECONDS = 20.0


@dataclass
class Mass:
    """Seconds that requests took in a store of a million judgments."""

    nexts: list[float] = field(default_factory=list)
    dashboards: list[float] = field(default_factory=list)
    searches: dict[str, list[float]] = field(default_factory=dict)


async def measure_in_the_mass(address: str, seconds: float) -> Mass:
    """Times from a judgment to the next pair, of the dashboard's requests together, and of searches."""
    found = Mass()
    nexts, dashboards = found.nexts, found.dashboards
    paths = tuple(f"/api/lead/{name}" for name in ("status", "agreement", "raters", "export", "disputes?limit=500"))
    lead, *others = [Browser(address) for _ in paths]
    for browser in (lead, *others):
        await browser.log_in("the lead")
    begun = time.perf_counter()
    await asyncio.gather(*(one.send("GET", path) for one, path in zip((lead, *others), paths, strict=True)))
    print(f"  the first dashboard after a start took {time.perf_counter() - begun:.1f} s", flush=True)
    while "judgments" not in await lead.send("GET", "/api/lead/agreement"):
        await asyncio.sleep(0.5)
    print(f"  and its figures were there after {time.perf_counter() - begun:.1f} s", flush=True)
    until = time.monotonic() + seconds
    pair = await lead.send("GET", "/api/next")
    while not dashboards or time.monotonic() < until:
        judgment = {"client_id": f"{begun} {len(nexts)}", "pair_id": pair["pair_id"], "answer": 1}
        begun = time.perf_counter()
        pair = (await lead.send("POST", "/api/judgments", judgment))["next"]
        nexts.append(time.perf_counter() - begun)
        if len(nexts) % 20 == 0:
            begun = time.perf_counter()
            await asyncio.gather(*(one.send("GET", path) for one, path in zip((lead, *others), paths, strict=True)))
            dashboards.append(time.perf_counter() - begun)
    for name, query in SEARCHES.items():
        for _ in range(5):
            begun = time.perf_counter()
            await lead.send("GET", f"/api/lead/items?{query}")
            found.searches.setdefault(name, []).append(time.perf_counter() - begun)
    for browser in (lead, *others):
        browser.close()
    return found


def make_million(folder: Path) -> None:
    """Write the store of a million judgments, and the pairs that the server is started with."""
    pairs = MANY // VOTES_OF_MANY
    made = build_pairs(pairs + 5_000, words_each=15)
    write_jsonl(folder / "pairs.jsonl", made[-1:])
    store = open_store(folder, made, overlap=VOTES_OF_MANY)
    for n in range(RATERS_OF_MANY):
        store.add_rater(f"rater {n}", rater_id=f"rater-{n}")
    add_account(store, "the lead", "lead", PASSWORD)
    fill(store, pairs)
    store.close()


def measure_million(folder: Path, seconds: float) -> list[Row]:
    """What grows must not make anybody wait."""
    if not (folder / "made").exists():
        for left in folder.glob("*"):  # an earlier run was cut off
            left.unlink()
        begun = time.monotonic()
        make_million(folder)
        (folder / "made").touch()
        print(f"  the store took {time.monotonic() - begun:.0f} s to make", flush=True)
    begun = time.monotonic()
    with serving(folder, VOTES_OF_MANY) as (address, processes):
        started = time.monotonic() - begun
        quiet_before = processor_seconds(processes[-1].pid)
        time.sleep(IDLE_SECONDS)
        idle = 100 * (processor_seconds(processes[-1].pid) - quiet_before) / IDLE_SECONDS
        found = asyncio.run(measure_in_the_mass(address, seconds))
        memory = most_memory(processes[-1].pid)
    size = round((folder / "label.sqlite").stat().st_size / 1e9, 1)
    among = f"{MANY:,} judgments"
    rows = [
        (f"next pair among {among} ({size} GB)", "p95 <= 20 ms", found.nexts, 20.0),
        (f"dashboard of {among}", "p95 <= 300 ms", found.dashboards, 300.0),
        *((f"search, {name}", "p95 <= 300 ms", times, 300.0) for name, times in found.searches.items()),
    ]
    figures = [
        (f"start on a store of {among}", "<= 4 s", round(started, 1), "s", 4.0),
        ("memory at most", "<= 300 MB", round(memory), "MB", 300.0),
        ("processor time without requests", "<= 0.5% of a core", round(idle, 2), "%", 0.5),
    ]
    return [
        *(Row(what, target, summary(times), percentile(times, 0.95) <= limit) for what, target, times, limit in rows),
        *(Row(what, target, {unit: value}, value <= limit) for what, target, value, unit, limit in figures),
    ]


def processor_seconds(process: int) -> float:
    """Seconds that a process has taken of the processor."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def most_memory(process: int) -> float:
    """Megabytes of memory that a process had at most."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1_000


# --- all of it ---


def measure(part: str, folder: Path, seconds: float, kills: int) -> list[Row]:
    """One part's lines."""
    match part:
        case "store":
            return measure_store(folder, seconds)
        case "http":
            return measure_closed_loop(folder, seconds)
        case "think":
            return measure_thinking(folder, max(seconds, 30.0))
        case "kills":
            return measure_kills(folder, kills)
        case _:
            return measure_million(folder, seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each part runs")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--kept", default=None, help="where the store of a million judgments stays")
    parser.add_argument("--folder", default=None, help="where the stores lie; a temporary folder if not given")
    parser.add_argument("--json", default=None, help="a file for the figures")
    given = parser.parse_args()
    rows: list[Row] = []
    for part in given.parts:
        kept = given.kept if part == "million" else None
        if kept:
            Path(kept).mkdir(parents=True, exist_ok=True)
        with contextlib.nullcontext(kept) if kept else tempfile.TemporaryDirectory(dir=given.folder) as name:
            begun = time.monotonic()
            rows += measure(part, Path(name), given.seconds, given.kills)
            print(f"{part}: {time.monotonic() - begun:.0f} s", flush=True)
    report(rows, given.json)


def report(rows: Sequence[Row], file: str | None) -> None:
    """Print the table, and write the figures to a file if one is named."""
    print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for row in rows:
        figures = ", ".join(f"{name} {value}" for name, value in row.measured.items())
        print(f"{'reached' if row.reached else 'MISSED ':<8} {row.what}: {figures}   (target {row.target})")
    if file:
        Path(file).write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""How fast the labelling app answers: raters in a closed loop over HTTP, on the machine of the server.

    python benchmarks/labeling.py [--raters 10] [--seconds 20] [--think 0] [--kills 0]

Starts `tiebreak label` on a store of its own, logs every rater in, and measures submit-and-next: the time from sending
a judgment to having the next pair. Ends with a check that nothing was lost, doubled or given to too many raters.
With --kills N the server is killed (SIGKILL) N times in the middle of the work and started again on the same store.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from labeling_ui.accounts import add_account
from labeling_ui.schema import JUDGMENTS
from labeling_ui.store import Store
from labeling_ui.verify import verify
from tiebreak.records import Completion, Message, Pair, prompt_id, write_jsonl

PASSWORD = "a password for the benchmark"
OVERLAP = 3


def build_pairs(count: int) -> list[Pair]:
    """Pairs of answers as long as real ones: about 1,000 characters."""
    words = ["lower", "raise", "measure", "drain", "rinse", "water", "root", "leaf", "lamp", "tray", "litre", "degree"]
    chance = random.Random(0)
    pairs = []
    for n in range(count):
        messages = (Message(role="user", content=f"Question {n}: " + " ".join(chance.choices(words, k=40))),)
        completions = tuple(
            Completion(id=f"{n}-{side}", text=" ".join(chance.choices(words, k=180)), policy="p") for side in "ab"
        )
        pairs.append(Pair(id=f"pair-{n}", prompt_id=prompt_id(messages), messages=messages, completions=completions))
    return pairs


async def send(client: httpx.AsyncClient, method: str, path: str, body: object = None) -> Any:
    """A request, tried again until the server answers: it may be dead just now."""
    while True:
        try:
            reply = await client.request(method, path, json=body)
        except httpx.TransportError:
            await asyncio.sleep(0.1)
            continue
        return reply.raise_for_status().json()


async def rate(address: str, name: str, until: float, think: float, times: list[float]) -> set[str]:
    """One rater's work; returns the ids of the judgments that were acknowledged."""
    acknowledged: set[str] = set()
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        login = await send(client, "POST", "/api/login", {"username": name, "password": PASSWORD})
        client.headers["X-CSRF-Token"] = login["csrf_token"]
        pair = await send(client, "GET", "/api/next")
        while pair and time.monotonic() < until:
            if think:
                await asyncio.sleep(random.uniform(0.5, 1.5) * think)
            client_id = f"{name}-{len(acknowledged)}"
            body = {"client_id": client_id, "pair_id": pair["pair_id"], "answer": random.randint(-3, 3)}
            begun = time.perf_counter()
            reply = await send(client, "POST", "/api/judgments", body)
            times.append(time.perf_counter() - begun)
            acknowledged.add(reply["judgment_id"])
            pair = reply["next"]
    return acknowledged


async def kill_now_and_then(
    folder: Path, port: int, server: list[subprocess.Popen[bytes]], kills: int, seconds: float
) -> None:
    """Kill the server every few seconds and start it again."""
    for _ in range(kills):
        await asyncio.sleep(seconds / kills * random.uniform(0.3, 0.9))
        server[-1].kill()
        server[-1].wait()
        server.append(await asyncio.to_thread(serve, folder, port))


async def rate_all(
    folder: Path, port: int, server: list[subprocess.Popen[bytes]], given: argparse.Namespace
) -> tuple[list[float], set[str]]:
    """All raters at once."""
    times: list[float] = []
    until = time.monotonic() + given.seconds
    address = f"http://127.0.0.1:{port}"
    work = [rate(address, f"rater {n}", until, given.think, times) for n in range(given.raters)]
    *acknowledged, _ = await asyncio.gather(*work, kill_now_and_then(folder, port, server, given.kills, given.seconds))
    return times, set().union(*(ids for ids in acknowledged if ids))


def serve(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """The server, in a process of its own."""
    words = ["--output", str(folder / "label"), "--pairs", str(folder / "pairs.jsonl"), "--port", str(port)]
    command = [sys.executable, "-m", "tiebreak.cli", "label", *words, "--overlap", str(OVERLAP)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for _ in range(600):
        try:
            httpx.get(f"http://127.0.0.1:{port}/openapi.json", timeout=2)
            return process
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit("the server did not come up")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raters", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--think", type=float, default=0, help="mean seconds of thought between judgments")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--folder", default=None, help="where the store lies; a temporary folder if not given")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        write_jsonl(folder / "pairs.jsonl", build_pairs(4_000))
        store = Store.open(f"sqlite:///{folder}/label.sqlite", create=True)
        for n in range(given.raters):
            add_account(store, f"rater {n}", "rater", PASSWORD)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = int(listening.getsockname()[1])
        server = [serve(folder, port)]
        try:
            times, acknowledged = asyncio.run(rate_all(folder, port, server, given))
        finally:
            server[-1].terminate()
            server[-1].wait(20)
        print(json.dumps(summarise(given, times) | check(store, acknowledged), indent=2))


def summarise(given: argparse.Namespace, times: list[float]) -> dict[str, object]:
    """The times of a run."""
    ordered = sorted(times)
    return {
        "cores": os.cpu_count(),
        "raters": given.raters,
        "think_seconds": given.think,
        "kills": given.kills,
        "p50_ms": round(1000 * statistics.median(ordered), 1),
        "p95_ms": round(1000 * ordered[int(0.95 * len(ordered))], 1),
        "max_ms": round(1000 * ordered[-1], 1),
    }


def check(store: Store, acknowledged: set[str]) -> dict[str, object]:
    """What became of the judgments."""
    with store.reading() as connection:
        stored = connection.execute(sa.select(JUDGMENTS.c.id, JUDGMENTS.c.item_id, JUDGMENTS.c.rater_id)).all()
    raters = Counter(row.item_id for row in stored)
    return {
        "acknowledged": len(acknowledged),
        "stored": len(stored),
        "acknowledged_and_lost": len(acknowledged - {row.id for row in stored}),
        "doubled": len(stored) - len({(row.item_id, row.rater_id) for row in stored}),
        "pairs_over_their_overlap": sum(count > OVERLAP for count in raters.values()),
        "faults": verify(store).faults,
    }


if __name__ == "__main__":
    main()

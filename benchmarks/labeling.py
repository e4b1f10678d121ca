"""How fast the labelling app answers: raters in a closed loop over HTTP, on the machine of the server.

    python benchmarks/labeling.py [--raters 10] [--seconds 20] [--think 0]

Starts `tiebreak label` on a store of its own, logs every rater in, and measures submit-and-next: the time from sending
a judgment to having the next pair. Ends with a check that nothing was lost, doubled or given to too many raters.
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
from pathlib import Path

import httpx

from labeling_ui.accounts import add_account
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


async def rate(address: str, name: str, until: float, think: float, times: list[float]) -> int:
    """One rater's work; returns how many judgments were acknowledged."""
    done = 0
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        login = await client.post("/api/login", json={"username": name, "password": PASSWORD})
        client.headers["X-CSRF-Token"] = login.raise_for_status().json()["csrf_token"]
        pair = (await client.get("/api/next")).json()
        while pair and time.monotonic() < until:
            if think:
                await asyncio.sleep(random.uniform(0.5, 1.5) * think)
            body = {"client_id": f"{name}-{done}", "pair_id": pair["pair_id"], "answer": random.randint(-3, 3)}
            begun = time.perf_counter()
            reply = await client.post("/api/judgments", json=body)
            pair = reply.raise_for_status().json()["next"]
            times.append(time.perf_counter() - begun)
            done += 1
    return done


async def rate_all(address: str, raters: int, seconds: float, think: float) -> tuple[list[float], int]:
    """All raters at once."""
    times: list[float] = []
    until = time.monotonic() + seconds
    done = await asyncio.gather(*(rate(address, f"rater {n}", until, think, times) for n in range(raters)))
    return times, sum(done)


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raters", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--think", type=float, default=0, help="mean seconds of thought between judgments")
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
        server = serve(folder, port)
        try:
            times, done = asyncio.run(rate_all(f"http://127.0.0.1:{port}", given.raters, given.seconds, given.think))
        finally:
            server.terminate()
            server.wait(20)
        found = verify(store)
        print(json.dumps(summarise(given.raters, given.think, times, done, found.judgments, found.faults), indent=2))


def summarise(
    raters: int, think: float, times: list[float], done: int, stored: int, faults: list[str]
) -> dict[str, object]:
    """The figures of a run."""
    ordered = sorted(times)
    return {
        "cores": os.cpu_count(),
        "raters": raters,
        "think_seconds": think,
        "judgments": done,
        "stored": stored,
        "faults": faults,
        "p50_ms": round(1000 * statistics.median(ordered), 1),
        "p95_ms": round(1000 * ordered[int(0.95 * len(ordered))], 1),
        "max_ms": round(1000 * ordered[-1], 1),
    }


if __name__ == "__main__":
    main()

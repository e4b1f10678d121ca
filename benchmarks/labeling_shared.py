"""Two label servers that share a Postgres database: 200 raters at once, and servers that are killed.

    python benchmarks/labeling_shared.py --seconds 120 --kills 100
    python benchmarks/labeling_shared.py --raters 4 --seconds 20 --kills 0      whether all of it works here

The raters think for 5 to 15 seconds about a pair; half of them are at each server. Then ten raters work without thought
while each server is killed (SIGKILL) in the middle of their work and started again, half of the kills each. Postgres runs
on the same machine, with its own settings (every commit is on disk), and is deleted afterwards. At the end, nothing may be
lost, doubled or given to too many raters, and the log must be whole.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from labeling import (
    OVERLAP,
    PASSWORD,
    Load,
    Row,
    build_pairs,
    check,
    count_lost_drafts,
    next_judgment,
    percentile,
    rate,
    report,
    start_server,
    summary,
)

from labeling_ui.store.store import Store
from labeling_ui.web.login.accounts import hash_password
from tiebreak.files import write_jsonl

RATERS = 200
THINKING = (5.0, 15.0)
AT_KILLS = 10
LIMIT_MS = 400.0


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def postgres() -> Iterator[str]:
    """A server of its own, with its defaults: the URL of its database."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if programs is None:
        raise SystemExit("no Postgres in /usr/lib/postgresql (Debian: apt install postgresql)")
    folder, port = Path(tempfile.mkdtemp(prefix="tiebreak-postgres-")), free_port()
    become = []
    if os.geteuid() == 0:  # which Postgres refuses
        shutil.chown(folder, "postgres")
        become = ["runuser", "-u", "postgres", "--"]

    def call(program: str, *words: str) -> None:
        command = [*become, str(programs / program), "-D", str(folder / "data"), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    try:
        call("initdb", "-A", "trust", "-U", "tiebreak", "-E", "UTF8", "--locale=C")
        call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", f"-p {port} -h 127.0.0.1 -k {folder}", "start")
        yield f"postgresql+psycopg://tiebreak@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder)


@dataclass
class Server:
    """One of the two."""

    folder: Path
    store: str
    port: int
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, folder: Path, store: str) -> Server:
        """Start one on a port of its own."""
        folder.mkdir()
        (folder / "pairs.jsonl").symlink_to(folder.parent / "pairs.jsonl")
        port = free_port()
        return cls(folder, store, port, start_server(folder, port, store))

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    async def kill_now_and_then(self, load: Load, kills: int) -> None:
        """Kill it in the middle of the work, and start it again."""
        for _ in range(kills):
            await next_judgment(load)
            await asyncio.sleep(random.uniform(0.2, 0.8))
            self.process.kill()
            self.process.wait()
            self.process = await asyncio.to_thread(start_server, self.folder, self.port, self.store)


async def rate_at_both(loads: list[Load], raters: int, seconds: float) -> None:
    """Half of the raters at each server, for so long from when they begin."""
    until = asyncio.get_running_loop().time() + seconds
    over = lambda: asyncio.get_running_loop().time() >= until  # noqa: E731
    await asyncio.gather(*(rate(loads[n % len(loads)], f"rater {n}", over) for n in range(raters)))


async def rate_and_kill(loads: list[Load], servers: list[Server], kills: int) -> None:
    """Ten raters, five at each server, work until the last kill is a second ago."""
    raters = [asyncio.create_task(rate(loads[n % 2], f"rater {n}", lambda: False)) for n in range(AT_KILLS)]
    each = kills // len(servers)
    await asyncio.gather(*(server.kill_now_and_then(load, each) for server, load in zip(servers, loads, strict=True)))
    await asyncio.sleep(1)
    for task in raters:
        task.cancel()
    await asyncio.gather(*raters, return_exceptions=True)


def prepare(folder: Path, url: str, pairs: int, raters: int) -> Store:
    """The campaign, with its accounts, which have one password."""
    made = build_pairs(pairs)
    write_jsonl(folder / "pairs.jsonl", made)
    store = Store.open(url, create=True)
    store.add_pairs(made, overlap=OVERLAP, seed=0, source="benchmark", source_id="benchmark")
    hashed = hash_password(PASSWORD)
    for n in range(max(raters, AT_KILLS)):
        store.add_rater(f"rater {n}", password_hash=hashed)
    return store


@contextmanager
def both_servers(folder: Path, url: str) -> Iterator[list[Server]]:
    """The two servers, until they are no longer needed."""
    servers: list[Server] = []
    try:
        for name in ("one", "other"):
            servers.append(Server.start(folder / name, url))
        yield servers
    finally:
        for server in servers:
            server.process.terminate()
            server.process.wait(60)


def measure(folder: Path, url: str, raters: int, seconds: float, kills: int) -> list[Row]:
    """Both parts; without kills, the first."""
    # Each pair is judged OVERLAP times; a rater judges one in 10 seconds, and none may run out of pairs.
    pairs = raters * (10 + round(seconds / THINKING[0])) + 40 * kills
    store = prepare(folder, url, pairs, raters)
    with both_servers(folder, url) as servers:
        rows = [measure_raters(store, servers, raters, seconds)]
        if kills:
            rows.append(measure_kills(store, servers, kills))
    store.close()
    return rows


def measure_raters(store: Store, servers: list[Server], raters: int, seconds: float) -> Row:
    """Raters at both servers at once."""
    loads = [Load(server.address, THINKING) for server in servers]
    asyncio.run(rate_at_both(loads, raters, seconds))
    times = [second for load in loads for second in load.times]
    faults = check(store, set().union(*(load.acknowledged for load in loads)))
    good = percentile(times, 0.95) <= LIMIT_MS and not faults
    what = f"{raters} raters with 5-15 s of thought, two servers on one Postgres"
    return Row(what, f"p95 <= {LIMIT_MS:.0f} ms", summary(times) | faults, good)


def measure_kills(store: Store, servers: list[Server], kills: int) -> Row:
    """What is left when each server has been killed half of the times."""
    loads = [Load(server.address, drafts=True, prefix="killed ") for server in servers]
    asyncio.run(rate_and_kill(loads, servers, kills))
    lost = sum(asyncio.run(count_lost_drafts(load)) for load in loads)
    acknowledged = set().union(*(load.acknowledged for load in loads))
    faults = check(store, acknowledged) | ({"drafts lost": lost} if lost else {})
    done = kills // len(servers) * len(servers)
    measured = {"kills": done, "acknowledged judgments": len(acknowledged), **faults}
    what = f"SIGKILL {done} times, two servers, {AT_KILLS} raters"
    return Row(what, "nothing lost", measured, not faults and len(acknowledged) >= done)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raters", type=int, default=RATERS)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long the raters work")
    parser.add_argument("--kills", type=int, default=100, help="an even number; 0: leave that part out")
    parser.add_argument("--json", default=None, help="a file for the figures")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, postgres() as url:
        rows = measure(Path(name), url, given.raters, given.seconds, given.kills)
    report(rows, given.json)


if __name__ == "__main__":
    main()

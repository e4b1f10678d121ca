"""`tiebreak prepare` on generated tickets: time, processor time, memory, and the same bytes after kill -9.

python benchmarks/data_room.py                       # 1,000,000 rows; make room
python benchmarks/data_room.py --rows 20000 --kill   # kills it halfway, and compares with a run that was left alone
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

WORDS = (
    "lamp shade cable order delivery parcel broken flicker switch bulb invoice refund box label driver plug voltage warm "
    "cold light desk floor garden remote battery week month yesterday twice still after before since return replace repair "
    "colour socket dimmer glass crack noise smell hot timer sensor app account"
).split()
LOOK_SECONDS = 0.5


def tickets(count: int) -> Iterator[dict[str, str]]:
    """Invented tickets of about 65 words: one in 20 is an exact copy of an earlier one, one in 20 differs in a word."""
    for number in range(count):
        if number >= 20 and number % 20 in (7, 13):
            row = _ticket(number - 7 - number % 3)
            yield {**row, "prompt": f"{row['prompt']} please"} if number % 20 == 13 else row
        else:
            yield _ticket(number)


def _ticket(number: int) -> dict[str, str]:
    pick = random.Random(number)
    fault = " ".join(pick.choice(WORDS) for _ in range(pick.randrange(15, 35)))
    advice = " ".join(pick.choice(WORDS) for _ in range(pick.randrange(20, 40)))
    entity = "&amp;" if number % 9 == 0 else "and"
    return {
        "prompt": f"Hello, my order LM-{number % 1000:06d} has a problem: {fault} {entity} nothing else. Can you help?",
        "completion": f"Dear customer, {advice}. Please send it back within 14 days.",
    }


def write_tickets(path: Path, count: int) -> None:
    """A file of tickets."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in tickets(count))


def command(source: Path, output: Path, policy: str) -> list[str]:
    """The command that prepares them."""
    settings = {"demonstrations": json.dumps([str(source)]), "policy": policy, "max-near-duplicate-share": "1"}
    flags = [word for key, value in settings.items() for word in (f"--{key}", value)]
    return [sys.executable, "-m", "tiebreak", "prepare", *flags, "--steps", "repair", "--output", str(output)]


def run(words: list[str], kill_at: Path | None = None) -> tuple[float, int]:
    """(seconds, peak memory in bytes of all its processes). Killed as soon as `kill_at` is there."""
    began, peak = time.monotonic(), 0
    process = subprocess.Popen(words, env={**os.environ, "TIEBREAK_FOLLOWS_PARENT": "1"}, start_new_session=True)
    while process.poll() is None:
        peak = max(peak, sum(map(_memory, _tree(process.pid))))
        if kill_at is not None and kill_at.exists():
            process.kill()
            process.wait()
            return time.monotonic() - began, peak
        time.sleep(LOOK_SECONDS if kill_at is None else 0.01)
    if process.returncode:
        raise SystemExit(f"prepare ended with status {process.returncode}")
    return time.monotonic() - began, peak


def _tree(process: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{process}/task/{process}/children")
    try:
        return [process, *(int(child) for child in children.read_text(encoding="ascii").split())]
    except OSError:
        return []


def _memory(process: int) -> int:
    """Its memory, with pages shared by n processes counted as an n-th."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(
        1024 * int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:", "Pss_File:"))
    )


def hashes(output: Path) -> dict[str, str]:
    """The files that it made."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((output / "final").iterdir())}


def main() -> None:
    """Generate, prepare, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kill", action="store_true", help="kill a second run while it measures, and resume it")
    parser.add_argument("--policy", default="bundled:smollm2-135m-instruct", help="the model whose tokenizer counts")
    parser.add_argument("--folder", type=Path, default=Path(".bench/data_room"))
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    source = options.folder / "tickets.jsonl"
    write_tickets(source, options.rows)
    seconds, peak = run(command(source, options.folder / "run", options.policy))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures: dict[str, object] = {
        "rows": options.rows,
        "seconds": round(seconds, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_memory_gb": round(peak / 1e9, 2),
    }
    if options.kill:
        killed = command(source, options.folder / "killed", options.policy)
        run(killed, kill_at=options.folder / "killed" / "work" / "3-measure" / "00000.json")
        run(killed)
        figures["same_bytes_after_kill"] = hashes(options.folder / "killed") == hashes(options.folder / "run")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

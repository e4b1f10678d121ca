"""`tiebreak prepare` on generated tickets: time, processor time, memory, and the same bytes after kill -9.

    python benchmarks/data_room.py                       # 1,000,000 rows
    python benchmarks/data_room.py --kill                # kills it once, halfway, and resumes it; make room

With --kill, time and memory are those of both parts, and on the first 20,000 rows (`--compare`) the files of a run that was
killed are compared with those of a run that was left alone.
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
from dataclasses import dataclass
from pathlib import Path

WORDS = (
    "lamp shade cable order delivery parcel broken flicker switch bulb invoice refund box label driver plug voltage warm "
    "cold light desk floor garden remote battery week month yesterday twice still after before since return replace repair "
    "colour socket dimmer glass crack noise smell hot timer sensor app account"
).split()
LOOK_SECONDS = 0.5
PART_ROWS = 4_000
"""rows of a part, as in sft.store"""


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


@dataclass
class Used:
    """What a run took."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    memory: int = 0
    """bytes that all its processes had at once, at most"""

    def then(self, other: Used) -> Used:
        """Both, one after the other."""
        seconds = self.seconds + other.seconds
        return Used(seconds, self.processor_seconds + other.processor_seconds, max(self.memory, other.memory))


def run(words: list[str], kill_at: Path | None = None) -> Used:
    """Run a command. It is killed as soon as `kill_at` is there."""
    began, before, looked, used = time.monotonic(), _ended(), 0.0, Used()
    process = subprocess.Popen(words, env={**os.environ, "TIEBREAK_FOLLOWS_PARENT": "1"}, start_new_session=True)
    while process.poll() is None:
        if time.monotonic() - looked > LOOK_SECONDS:
            looked = time.monotonic()
            used.memory = max(used.memory, sum(map(_memory, _tree(process.pid))))
        if kill_at is not None and kill_at.exists():
            used.processor_seconds = sum(map(_processor_seconds, _tree(process.pid)[1:]))  # nobody will wait for these
            process.kill()
        time.sleep(0.01)
    if process.returncode and kill_at is None:
        raise SystemExit(f"prepare ended with status {process.returncode}")
    used.seconds = time.monotonic() - began
    used.processor_seconds += _ended() - before
    return used


def _ended() -> float:
    """Processor seconds of all processes that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _processor_seconds(process: int) -> float:
    """Processor seconds of one that runs."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


def kill_and_resume(words: list[str], marker: Path) -> Used:
    """A run that is killed once `marker` is there, and the same command again."""
    killed = run(words, kill_at=marker)
    if not marker.exists():
        raise SystemExit(f"the run ended before {marker} was there: it was not killed")
    return killed.then(run(words))


def halfway(output: Path, rows: int) -> Path:
    """The file that a run writes halfway through measuring lengths, its longest pass."""
    return output / "work" / "3-measure" / f"{rows // PART_ROWS // 2:05d}.json"


def same_after_kill(folder: Path, rows: int, policy: str) -> bool:
    """Whether a run that was killed wrote the same files as one that was left alone."""
    source = folder / "compared.jsonl"
    write_tickets(source, rows)
    run(command(source, folder / "alone", policy))
    kill_and_resume(command(source, folder / "killed", policy), halfway(folder / "killed", rows))
    return hashes(folder / "killed") == hashes(folder / "alone")


def main() -> None:
    """Generate, prepare, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kill", action="store_true", help="kill the run once, halfway, and resume it")
    parser.add_argument("--compare", type=int, default=20_000, help="with --kill, rows on which the files are compared")
    parser.add_argument("--policy", default="bundled:smollm2-135m-instruct", help="the model whose tokenizer counts")
    parser.add_argument("--folder", type=Path, default=Path(".bench/data_room"))
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    source, output = options.folder / "tickets.jsonl", options.folder / "run"
    write_tickets(source, options.rows)
    words = command(source, output, options.policy)
    used = kill_and_resume(words, halfway(output, options.rows)) if options.kill else run(words)
    figures: dict[str, object] = {
        "rows": options.rows,
        "seconds": round(used.seconds, 1),
        "processor_seconds": round(used.processor_seconds, 1),
        "peak_memory_gb": round(used.memory / 1e9, 2),
        "kills": int(options.kill),
        "load": round(os.getloadavg()[1], 1),
    }
    print(json.dumps(figures), flush=True)
    if options.kill:
        figures["same_bytes_after_kill"] = same_after_kill(options.folder, options.compare, options.policy)
        print(json.dumps(figures))


if __name__ == "__main__":
    main()

"""How long a rater waits for the next pair: from the key press until it is on the screen, in a real Chromium.

    python benchmarks/labeling_browser.py [--judgments 200] [--pause 0.4 0.4] [--latency 0]
    python benchmarks/labeling_browser.py --judgments 360 --pause 5 15 --browsers 2 --beside 28     an hour of 30 raters

Starts `tiebreak label` on a store of its own and judges by keys. The time is taken in the page: from the time stamp that
the browser gives the key press to the first moment after the frame that shows the other pair. `--latency` delays every
request and reply by so many milliseconds in all, as a network would. `--beside` raters work over HTTP meanwhile, with 5
to 15 seconds of thought, until the browsers are done; what they wait for is measured too, and the server's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from labeling import PASSWORD, Load, check, prepare, rate, serving, summary
from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
MEASURE = """
window.waits = [];
let pressed = 0;
document.addEventListener('keydown', (event) => { pressed = event.timeStamp; }, { capture: true });
new MutationObserver(() => {
  const from = pressed;
  if (!from || !document.querySelector('.desk').dataset.pair) return;
  requestAnimationFrame(() => { setTimeout(() => { window.waits.push(performance.now() - from); }); });
  pressed = 0;
}).observe(document.querySelector('.desk'), { attributeFilter: ['data-pair'] });
"""


def judge(address: str, rater: int, given: argparse.Namespace) -> list[float]:
    """Judge by keys; returns the waits in milliseconds."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        page.goto(address)
        page.fill("[name=username]", f"rater {rater}")
        page.fill("[name=password]", PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_selector(".desk[data-pair^=pair]")
        page.evaluate(MEASURE)
        slow_down(page, given.latency)
        for n in range(given.judgments):
            page.wait_for_timeout(1000 * random.uniform(*given.pause))
            page.wait_for_selector(".desk:not([data-fresh])")  # a pair that has just appeared takes no answer
            page.keyboard.press(random.choice("1234567"))
            page.wait_for_function(f"window.waits.length === {n + 1}")
        page.wait_for_function("!Object.keys(localStorage).some((key) => key.startsWith('tiebreak-judgment'))")
        waits: list[float] = page.evaluate("window.waits")
        browser.close()
        return waits


async def judge_together(address: str, given: argparse.Namespace) -> tuple[list[float], Load]:
    """The browsers' waits in milliseconds, and what became of the raters beside them."""
    loop = asyncio.get_running_loop()
    load = Load(address, (5.0, 15.0))
    over = asyncio.Event()
    with ProcessPoolExecutor(given.browsers, multiprocessing.get_context("spawn")) as pool:
        browsers = [loop.run_in_executor(pool, judge, address, n, given) for n in range(given.browsers)]
        beside = [
            asyncio.create_task(rate(load, f"rater {n}", over.is_set))
            for n in range(given.browsers, given.browsers + given.beside)
        ]
        try:
            waits = await asyncio.gather(*browsers)
        finally:
            over.set()
        await asyncio.gather(*beside)
    return sorted(wait for each in waits for wait in each), load


def memory_mib(server: list[subprocess.Popen[bytes]]) -> int:
    """What the server holds of the machine's memory."""
    status = Path(f"/proc/{server[-1].pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def slow_down(page: Any, latency: float) -> None:
    """Let every request take so many milliseconds more."""
    if latency:
        unlimited = {"downloadThroughput": -1, "uploadThroughput": -1}
        network = page.context.new_cdp_session(page)
        network.send("Network.enable")
        network.send("Network.emulateNetworkConditions", {"offline": False, "latency": latency, **unlimited})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judgments", type=int, default=200, help="of each browser")
    parser.add_argument(
        "--pause", type=float, nargs=2, default=[0.4, 0.4], help="seconds of thought before each key: at least, at most"
    )
    parser.add_argument("--latency", type=float, default=0.0, help="milliseconds that each request takes more")
    parser.add_argument("--browsers", type=int, default=1)
    parser.add_argument("--beside", type=int, default=0, help="raters over HTTP at the same time")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raters = given.browsers + given.beside
        store = prepare(folder, raters, raters * (given.judgments + 40))
        begun = time.monotonic()
        with serving(folder) as (address, server):
            memory = [memory_mib(server)]
            waits, load = asyncio.run(judge_together(address, given))
            memory.append(memory_mib(server))
        figures = {
            "cores": len(os.sched_getaffinity(0)),
            "minutes": round((time.monotonic() - begun) / 60, 1),
            "browsers": given.browsers,
            "judgments": len(waits),
            "pause_seconds": given.pause,
            "latency_ms": given.latency,
            "p50_ms": round(statistics.median(waits), 1),
            "p95_ms": round(waits[int(0.95 * len(waits))], 1),
            "max_ms": round(waits[-1], 1),
            "over_http": summary(load.times) if load.times else None,
            "server_mib": memory,
            "stored": sum(store.status()["judgments"].values()),
            "faults": check(store, load.acknowledged),
        }
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

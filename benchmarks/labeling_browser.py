"""How long a rater waits for the next pair: from the key press until it is on the screen, in a real Chromium.

    python benchmarks/labeling_browser.py [--judgments 200] [--pause 0.3] [--latency 0]

Starts `tiebreak label` on a store of its own and judges by keys. The time is taken in the page: from the time stamp that
the browser gives the key press to the first moment after the frame that shows the other pair. `--latency` delays every
request and reply by so many milliseconds in all, as a network would.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from labeling import PASSWORD, prepare, serving
from playwright.sync_api import sync_playwright

from labeling_ui.verify import verify

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


def judge(address: str, given: argparse.Namespace) -> list[float]:
    """Judge by keys; returns the waits in milliseconds."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        page.goto(address)
        page.fill("[name=username]", "rater 0")
        page.fill("[name=password]", PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_selector(".desk[data-pair^=pair]")
        page.evaluate(MEASURE)
        slow_down(page, given.latency)
        for n in range(given.judgments):
            page.wait_for_timeout(1000 * given.pause)
            page.keyboard.press(random.choice("1234567"))
            page.wait_for_function(f"window.waits.length === {n + 1}")
        page.wait_for_function("!Object.keys(localStorage).some((key) => key.startsWith('tiebreak-judgment'))")
        waits: list[float] = page.evaluate("window.waits")
        browser.close()
        return waits


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
    parser.add_argument("--judgments", type=int, default=200)
    parser.add_argument("--pause", type=float, default=0.3, help="seconds of thought before each key press")
    parser.add_argument("--latency", type=float, default=0.0, help="milliseconds that each request takes more")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = prepare(folder, 1, given.judgments + 20)
        with serving(folder) as (address, _):
            waits = sorted(judge(address, given))
        figures = {
            "cores": len(os.sched_getaffinity(0)),
            "judgments": len(waits),
            "pause_seconds": given.pause,
            "latency_ms": given.latency,
            "p50_ms": round(statistics.median(waits), 1),
            "p95_ms": round(waits[int(0.95 * len(waits))], 1),
            "max_ms": round(waits[-1], 1),
            "stored": sum(store.status()["judgments"].values()),
            "faults": verify(store).faults,
        }
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

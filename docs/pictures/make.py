"""The pictures of README and documentation, taken from a finished recipe in headless Chromium.

    python docs/pictures/make.py runs/quickstart

Serves the recipe's pairs with the real label server, judges a few, and photographs the rating page; then photographs the
comparison report. Needs playwright, Pillow and Chromium (its path in CHROMIUM, or /usr/bin/chromium).
"""

from __future__ import annotations

import argparse
import io
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
LONG, MOST_JUDGED = 240, 20
"""characters of a longer answer, and how many pairs are judged to find one"""
COLOURS = 256
"""of a palette that keeps a picture under 300 KB"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the pictures of README and documentation.")
    parser.add_argument("recipe", type=Path, help="the root folder of a finished recipe, such as runs/quickstart")
    recipe: Path = parser.parse_args().recipe.resolve()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        size = {"viewport": {"width": 1180, "height": 680}, "device_scale_factor": 1.5, "color_scheme": "light"}
        with serving(recipe) as address:
            photograph_rating(browser.new_page(**size), address)
        page = browser.new_page(**size)
        page.goto((recipe / "compare" / "report.html").as_uri())
        keep(page, "report")
        browser.close()


def photograph_rating(page: Any, address: str) -> None:
    """The rating page at the first pair of two longer answers, after the guidelines were accepted."""
    page.goto(f"{address}/rate/")
    page.wait_for_selector(".desk[aria-busy=false]")
    accept = page.locator("dialog[open] button").first
    if accept.count():
        accept.click()
    for place in range(MOST_JUDGED):
        page.wait_for_selector(".desk[aria-busy=false]")
        page.wait_for_timeout(400)
        if place and min(map(len, page.locator(".answers > *").all_inner_texts())) >= LONG:
            break
        page.keyboard.press("25"[place % 2])
    keep(page, "rating")


def keep(page: Any, name: str) -> None:
    """A screenshot with a palette of few colours."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    path = FOLDER / f"{name}.png"
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {picture.width} × {picture.height}, {path.stat().st_size // 1024} KB")


@contextmanager
def serving(recipe: Path) -> Iterator[str]:
    """The label server of the recipe's pairs, with a store in a temporary folder."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        words = ["--config", "configs/quickstart/label.yaml", "--simulate", "false", "--port", str(port)]
        words += ["--pairs", str(recipe / "sample"), "--output", f"{folder}/label"]
        process = subprocess.Popen([sys.executable, "-m", "tiebreak", "label", *words], cwd=ROOT)
        address = f"http://127.0.0.1:{port}"
        try:
            wait_until_up(address, process)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=20)


def wait_until_up(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise SystemExit("the label server ended")
        try:
            with urllib.request.urlopen(f"{address}/api/health", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the label server did not come up")


if __name__ == "__main__":
    main()

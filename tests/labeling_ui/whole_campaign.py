"""A campaign of twenty raters, run by a lead on /lead/ alone, in real browsers: `make campaign MINUTES=60`.

Four raters and the lead are in Chromium, sixteen raters are programs that speak the API. One of the programs answers badly:
it is stopped, its work rejected and done again by others. Meanwhile the guidelines change, a batch is paused and resumed,
and the lead settles disagreements; at the end the work is paid and the labels are exported. What has to be true at the end
is checked against the store. A step of the lead that fails is reported at the end, and the campaign continues.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import re
import statistics
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
import yaml
from label_support import CHROMIUM, FLAGS, make_pair, processes, serving_config

from labeling_ui.database.schema import EVENTS, ITEMS, JUDGMENTS, RATER_HOURS, REJECTIONS
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.web.login.accounts import add_account
from tiebreak.files import write_jsonl
from tiebreak.records import Pair

PASSWORD = "a password for the campaign"
IN_BROWSERS = 4
PROGRAMS = 16
BAD = "Rater 20"
GOLD = 24
SETTLED = 5
THINK_SECONDS = 1.0
"""of a rater about a pair, by default"""
PATIENCE_S = 180
"""for a page or a reply, on a machine that others use too"""
GUIDELINES = "Prefer the **right** answer."
CHANGED = "Prefer the **right** answer, and of two right ones the shorter."
NAMES = [f"Rater {n + 1}" for n in range(IN_BROWSERS + PROGRAMS)]


@dataclass
class Played:
    """What happened, as those who took part saw it."""

    think_seconds: float = THINK_SECONDS
    acknowledged: list[str] = field(default_factory=list)
    """judgments that the server confirmed to a program"""
    seconds: list[float] = field(default_factory=list)
    """from sending a judgment to the reply"""
    waited: list[float] = field(default_factory=list)
    """from asking for a pair to the reply"""
    sent_again: int = 0
    """judgments whose reply did not arrive, sent again with the same id"""
    faults: list[str] = field(default_factory=list)
    """of programs, pages and the lead's steps"""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def attempt(self, name: str, step: Callable[[], Any]) -> Any:
        """Take a step; one that fails is a fault, and the campaign continues."""
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - reported at the end
            with self.lock:
                self.faults.append(f"{name}: {error!r}")
            return None


class Memory(threading.Thread):
    """Resident memory of the server, every ten seconds."""

    def __init__(self, config: Path, ends: threading.Event) -> None:
        super().__init__(daemon=True)
        self._config, self._ends = str(config), ends
        self.megabytes: list[float] = []

    def run(self) -> None:
        server = min(processes("tiebreak.command.cli", self._config))
        status = Path(f"/proc/{server}/status")
        while not self._ends.wait(10):
            kilobytes = re.search(r"VmRSS:\s+(\d+)", status.read_text())
            self.megabytes.append(int(kilobytes[1]) / 1024 if kilobytes else 0.0)

    def figures(self) -> dict[str, Any]:
        """Medians over tenths of the time: the second, in the middle, and the last. The first is still warming up."""
        tenth = max(1, len(self.megabytes) // 10)
        parts = {"early": slice(tenth, 2 * tenth), "middle": slice(5 * tenth, 6 * tenth), "end": slice(-tenth, None)}
        return {
            f"server memory MB, {name}": round(statistics.median(self.megabytes[part] or [0.0]))
            for name, part in parts.items()
        }


def right_pair(number: int) -> Pair:
    """A pair whose first completion is right."""
    return make_pair(number, f"the right answer to {number}", f"a wrong answer to {number}, with more words")


# --- programs ---


class Program(threading.Thread):
    """A rater who speaks the API: takes an invitation, accepts what there is to accept, and judges until the end."""

    def __init__(self, address: str, link: str, name: str, played: Played, ends: threading.Event) -> None:
        super().__init__(daemon=True)
        self._address, self._link, self.label, self._played, self._ends = address, link, name, played, ends
        self._chance = random.Random(name)
        self._right = 0.15 if name == BAD else 0.93
        self._client = httpx.Client(base_url=address, timeout=PATIENCE_S, verify=False)
        self._number = 0

    def run(self) -> None:
        try:
            self._begin()
            while not self._ends.is_set():
                self._judge_next()
        except Exception as error:  # noqa: BLE001 - reported at the end
            with self._played.lock:
                self._played.faults.append(f"{self.label}: {error!r}")

    def _begin(self) -> None:
        token = self._link.partition("#invitation=")[2]
        body = {"token": token, "username": self.label, "password": PASSWORD}
        reply = self._client.post("/api/invitations/accept", json=body)
        reply.raise_for_status()
        self._client.headers["X-CSRF-Token"] = reply.json()["csrf_token"]
        self._accept()

    def _accept(self) -> None:
        me = self._client.get("/api/me").json()
        for document, version in (("consent", me["consent_version"]), ("guidelines", me["guideline_version"])):
            self._client.post(f"/api/{document}/accept", json={"version": version}).raise_for_status()

    def _judge_next(self) -> None:
        begun = time.monotonic()
        reply = self._client.get("/api/next")
        with self._played.lock:
            self._played.waited.append(time.monotonic() - begun)
        if reply.status_code == 403:
            self._accept()
            return
        pair = reply.json()
        if pair is None or reply.status_code != 200:  # stopped, paused or done: asks again, as the page does
            self._ends.wait(2.0)
            return
        self._ends.wait(self._chance.uniform(0.5, 1.5) * self._played.think_seconds)
        self._send(pair)

    def _send(self, pair: dict[str, Any]) -> None:
        better = -2 if "the right answer" in pair["left"]["text"] else 2
        value = better if self._chance.random() < self._right else -better
        self._number += 1
        body = {"client_id": f"{self.label}-{self._number}", "pair_id": pair["pair_id"], "answer": value}
        while not self._ends.is_set():
            begun = time.monotonic()
            try:
                reply = self._client.post("/api/judgments", json={**body, "seconds_active": self._played.think_seconds})
            except httpx.TransportError:
                with self._played.lock:
                    self._played.sent_again += 1
                continue
            if reply.status_code == 403:  # the guidelines have changed: what was decided is sent once they are accepted
                self._accept()
                continue
            if reply.status_code == 200:
                with self._played.lock:
                    self._played.acknowledged.append(reply.json()["judgment_id"])
                    self._played.seconds.append(time.monotonic() - begun)
            elif reply.status_code != 409:  # stopped meanwhile, or the place is another's
                raise RuntimeError(f"{reply.status_code} {reply.text}")
            return


# --- browsers ---


class Rater:
    """A rater in a browser."""

    def __init__(self, page: Any, address: str, link: str, name: str, think_seconds: float) -> None:
        self.page, self._chance, self.judged, self._due = page, random.Random(name), 0, 0.0
        self._think_seconds = think_seconds
        page.goto(link)
        page.fill("[name=username]", name)
        page.fill("[name=password]", PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{address}/rate/")
        page.wait_for_selector(".desk")

    def step(self) -> None:
        """Accept what is asked, or judge the pair on the screen, if it has been thought about."""
        if time.monotonic() < self._due:
            return
        asked = self.page.locator("dialog.asking[open] form button")
        if asked.count():
            asked.first.click()
        elif self.page.locator(".desk[data-pair]:not([data-fresh]) [data-side=left]").count():
            left = self.page.inner_text("[data-side=left] .text")
            if left.strip():
                better = "2" if "the right answer" in left else "6"
                self.page.keyboard.press(better if self._chance.random() < 0.95 else "4")
                self.judged += 1
        self._due = time.monotonic() + self._chance.uniform(1.0, 2.0) * self._think_seconds


class Lead:
    """The lead in a browser: everything is done on /lead/."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self._address = page, address
        page.on("dialog", lambda dialog: dialog.accept("by the lead"))
        page.goto(f"{address}/login/")
        page.fill("[name=username]", "Zoe")
        page.fill("[name=password]", PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{address}/rate/")
        page.goto(f"{address}/lead/")
        page.wait_for_selector(".desk[aria-busy=false]")

    def view(self, name: str) -> None:
        self.page.click(f"button[data-view={name}]")

    def fill_batch(self, name: str, file: Path) -> None:
        self.view("batches")
        self.page.fill("[data-form=batch] [name=name]", name)
        self.page.click("[data-form=batch] button")
        self.page.wait_for_selector(f"[data-field='priority/{name}']")
        self.page.set_input_files("[data-form=upload] [name=file]", str(file))
        self.page.select_option("[data-form=upload] [name=batch]", name)
        self.page.click("[data-form=upload] button")
        self.page.click("[data-upload]")
        self.page.wait_for_selector(".looked:not(:has([data-upload]))")

    def prioritise(self, batch: str) -> None:
        self.view("batches")
        self.page.fill(f"[data-field='priority/{batch}']", "1")
        self.page.keyboard.press("Tab")
        self.page.wait_for_selector(f".batches tbody tr:first-child [data-field='priority/{batch}']")

    def set_gold(self, numbers: Sequence[int]) -> None:
        self.view("items")
        for number in numbers:
            self.page.fill(".filters [name=id]", f"pair-{number}")
            self.page.click(f".found [data-item='pair-{number}']")
            self.page.wait_for_selector(f".item h2 >> text='pair-{number}'")
            self.page.select_option(".item [name=gold]", "A")
            self.page.wait_for_selector(".item .history >> text=/gold/i")
        self.page.click(".filters [type=reset]")

    def invite(self, names: Sequence[str]) -> dict[str, str]:
        """The links, by name."""
        self.view("raters")
        self.page.fill("[data-form=invite] [name=names]", "\n".join(names))
        self.page.click("[data-form=invite] button")
        self.page.wait_for_selector(".links textarea:visible")
        lines = self.page.input_value(".links textarea").splitlines()
        return dict(line.split("\t") for line in lines)

    def publish(self, version: str, text: str) -> None:
        self.view("documents")
        self.page.wait_for_selector(".versions tbody tr")
        self.page.fill("[data-form=document] [name=text]", text)
        self.page.fill("[data-form=document] [name=version]", version)
        self.page.click("[data-form=document] button")
        self.page.click("[data-publish]")
        self.page.wait_for_selector(f".versions tbody tr:first-child th >> text={version}#")

    def find_stopped(self, name: str) -> bool:
        """Whether the table of raters says that somebody was stopped."""
        self.view("raters")
        row = self.page.locator(".raters tbody tr.held", has_text=name)
        return bool(row.count())

    def stop(self, name: str) -> None:
        self._open_person(name)
        self.page.click("[data-stand=stopped]")

    def reject_all(self, name: str) -> None:
        self._open_person(name)
        self.page.click("[data-form=period] button")
        self.page.wait_for_selector(".rejecting[open] .effect div")
        self.page.fill(".rejecting[open] [name=reason]", "too many wrong answers to gold")
        self.page.click("[data-reject]")
        self.page.wait_for_selector(".person .rejected")

    def _open_person(self, name: str) -> None:
        self.view("raters")
        self.page.click(f".raters tbody th button:text-is('{name}')")
        self.page.wait_for_selector(".person h2:visible")

    def settle(self, count: int) -> None:
        """Settle disagreements: the right answer is better."""
        self.view("disputes")
        for _ in range(count):
            opened = self.page.get_attribute(".disputes [aria-current=true]", "data-dispute")
            right = "the right answer" in self.page.inner_text(".case .side-left .text")
            self.page.wait_for_selector(".desk:not([data-fresh])")
            self.page.click(f".case [data-answer='{-2 if right else 2}']")
            self.page.wait_for_selector(f".disputes:not(:has([data-dispute='{opened}']))")

    def pause(self, batch: str, paused: bool) -> None:
        self.view("batches")
        self.page.click(f"[data-batch='{batch}'][data-paused={str(paused).lower()}]")
        self.page.wait_for_selector(f"[data-batch='{batch}'][data-paused={str(not paused).lower()}]")

    def download(self, view: str, link: str) -> bytes:
        self.view(view)
        with self.page.expect_download() as waiting:
            self.page.click(link)
        return Path(waiting.value.path()).read_bytes()

    def pay(self, rate: float) -> bytes:
        self.view("raters")
        self.page.fill("[data-form=pay] [name=rate]", str(rate))
        self.page.click("[data-form=pay] button")
        self.page.wait_for_selector(".paid tbody tr")
        return self.download("raters", ".csv.days")


# --- the campaign ---


def play(folder: Path, minutes: float, think_seconds: float = THINK_SECONDS) -> dict[str, Any]:
    """Play the campaign and check what came of it; returns some figures."""
    from playwright.sync_api import sync_playwright

    played, ends = Played(think_seconds), threading.Event()
    files = write_campaign(folder, minutes, think_seconds)
    store = Store.open(f"sqlite:///{folder}/label.sqlite", create=True)
    add_account(store, "Zoe", "lead", PASSWORD)
    with serving_config(files["config"]) as address, sync_playwright() as playwright:
        memory = Memory(files["config"], ends)
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        with pages(browser, played, IN_BROWSERS + 1) as opened:
            lead = Lead(opened[0], address)
            lead.fill_batch("first", files["first"])
            lead.fill_batch("second", files["second"])
            lead.prioritise("second")  # so that some of it is given out before the pause
            lead.set_gold(range(GOLD))
            links = lead.invite(NAMES)
            raters = [
                Rater(page, address, links[name], name, think_seconds)
                for page, name in zip(opened[1:], NAMES, strict=False)
            ]
            programs = [Program(address, links[name], name, played, ends) for name in NAMES[IN_BROWSERS:]]
            memory.start()
            for program in programs:
                program.start()
            figures = steer(lead, raters, minutes * 60, played)
            ends.set()
            for program in programs:
                program.join(timeout=60)
            paid = played.attempt("pay", lambda: lead.pay(20.0))
            labels = played.attempt("export", lambda: lead.download("overview", ".zip:not(.log)"))
        browser.close()
    figures |= memory.figures()
    figures["judged in browsers"] = sum(rater.judged for rater in raters)
    print(json.dumps(figures), file=sys.stderr, flush=True)
    figures |= check(store, played, paid, labels)
    store.close()
    return figures


def write_campaign(folder: Path, minutes: float, think_seconds: float) -> dict[str, Path]:
    """The configuration, and the files of pairs that the lead uploads: more than there is time for."""
    count = max(120, round(minutes * 60 * len(NAMES) / think_seconds / 3))
    middle = GOLD + count * 4 // 5
    numbers = {"start": range(GOLD), "first": range(GOLD, middle), "second": range(middle, middle + count // 5)}
    for name, part in numbers.items():
        write_jsonl(folder / f"{name}.jsonl", [right_pair(n) for n in part])
    config = {
        "output": str(folder / "label"), "store": f"sqlite:///{folder}/label.sqlite", "pairs": str(folder / "start.jsonl"),
        "overlap": 3, "gold_share": 0.3, "guidelines": GUIDELINES, "consent": "Your answers train a model.",
        "stop": {"gold": {"good": 0.85, "bad": 0.5}, "consistency": None, "pace": None},
    }  # fmt: skip
    (folder / "label.yaml").write_text(yaml.safe_dump(config))
    return {"config": folder / "label.yaml", **{name: folder / f"{name}.jsonl" for name in ("first", "second")}}


@contextmanager
def pages(browser: Any, played: Played, count: int) -> Iterator[list[Any]]:
    """Windows of different people; their errors are faults."""
    opened = []
    for _ in range(count):
        window = browser.new_context(viewport={"width": 1366, "height": 900}, accept_downloads=True)
        window.set_default_timeout(1_000 * PATIENCE_S)
        page = window.new_page()
        page.on("pageerror", lambda error: played.faults.append(f"page: {error}"))
        opened.append(page)
    yield opened
    for page in opened:
        page.context.close()


def steer(lead: Lead, raters: Sequence[Rater], seconds: float, played: Played) -> dict[str, Any]:
    """What the lead does, and when, while the raters in browsers judge."""
    begun = time.monotonic()
    figures: dict[str, Any] = {}

    def until(share: float, ready: Callable[[], bool] = lambda: False) -> None:
        looked = 0.0
        while time.monotonic() - begun < share * seconds:
            for rater in raters:
                played.attempt("a rater's page", rater.step)
            lead.page.wait_for_timeout(50)
            if time.monotonic() - looked > 3:
                looked = time.monotonic()
                if played.attempt("look", ready):
                    return

    until(0.05)
    played.attempt("pause", lambda: lead.pause("second", True))
    until(0.5, lambda: lead.find_stopped(BAD))
    figures["stopped by the sequential test"] = bool(played.attempt("look", lambda: lead.find_stopped(BAD)))
    if not figures["stopped by the sequential test"]:  # not enough gold yet: the lead decides
        played.attempt("stop", lambda: lead.stop(BAD))
    played.attempt("reject", lambda: lead.reject_all(BAD))
    until(0.55)
    played.attempt("settle", lambda: lead.settle(SETTLED))
    until(0.6)
    played.attempt("publish", lambda: lead.publish("2", CHANGED))
    until(0.75)
    played.attempt("resume", lambda: lead.pause("second", False))
    until(1.0)
    return figures


# --- what has to be true ---


def check(store: Store, played: Played, paid: bytes, labels: bytes) -> dict[str, Any]:
    """Refute what can be refuted; returns some figures."""
    ids = {one.name: one.id for one in store.raters()}
    with store.reading() as connection:
        stored = Counter(connection.scalars(sa.select(JUDGMENTS.c.id))) + Counter(
            connection.scalars(sa.select(REJECTIONS.c.id))
        )
        log = connection.execute(sa.select(EVENTS).order_by(EVENTS.c.seq)).all()
        batch_of = {row.id: row.batch for row in connection.execute(sa.select(ITEMS.c.id, ITEMS.c.batch))}
        active = sum(connection.scalars(sa.select(RATER_HOURS.c.active_ms))) / 3_600_000
    figures: dict[str, Any] = {
        "judgments": sum(stored.values()),
        "lost": sum(stored[one] != 1 for one in played.acknowledged),
        "doubled": doubled(log),
        "sent again": played.sent_again,
        "rejected": sum(row.kind == "rejected" for row in log),
        "before the stop, by the bad rater": sum(row.kind == "submitted" and row.rater_id == ids[BAD] for row in log),
        "settled by the lead": len(store.adjudications()),
        "judgment, p50 ms": percentile(played.seconds, 0.5),
        "judgment, p95 ms": percentile(played.seconds, 0.95),
        "next pair, p95 ms": percentile(played.waited, 0.95),
    }
    checks: dict[str, Callable[[], Any]] = {
        "verified": lambda: check_log(store),
        "done again by others": lambda: check_the_bad_one(store, ids[BAD], log),
        "paused": lambda: check_pause(log, batch_of),
        "accepted the new guidelines": lambda: check_guidelines(log),
        "paid hours": lambda: check_pay(paid, active),
        "preferences, right": lambda: check_labels(labels),
    }
    figures |= {name: played.attempt(name, one) for name, one in checks.items()}
    print(json.dumps(figures), *played.faults, sep="\n", file=sys.stderr, flush=True)
    assert played.faults == []
    assert figures["lost"] == figures["doubled"] == 0
    return figures


def percentile(seconds: Sequence[float], level: float) -> int:
    """In milliseconds."""
    return round(1000 * sorted(seconds)[int(level * len(seconds))])


def doubled(log: Sequence[Any]) -> int:
    """Assignments that were judged twice without an undo or a rejection between."""
    judged: set[str] = set()
    again = 0
    for row in log:
        if row.kind in ("submitted", "skipped", "undone", "rejected"):
            assignment = json.loads(row.payload)["assignment"]
            if row.kind in ("undone", "rejected"):
                judged.discard(assignment)
            else:
                again += assignment in judged
                judged.add(assignment)
    return again


def check_log(store: Store) -> str:
    """The log rebuilds the tables."""
    assert verify(store).faults == []
    return "the log rebuilds every table"


def check_pay(paid: bytes, active: float) -> float:
    """Everybody is paid for the hours in the store; returns the hours."""
    rows = list(csv.DictReader(io.StringIO(paid.decode())))
    assert len({row["name"] for row in rows}) == len(NAMES), "all are paid, the one who was stopped too"
    hours = sum(float(row["active_hours"]) for row in rows)
    assert abs(hours - active) < 1e-3 * len(rows)
    assert all(abs(float(row["pay"]) - 20 * float(row["active_hours"])) < 0.01 for row in rows)
    return round(hours, 2)


def check_labels(labels: bytes) -> str:
    """Almost all exported preferences are right; returns how many there are, and the share."""
    with zipfile.ZipFile(io.BytesIO(labels)) as files:
        (name,) = [one for one in files.namelist() if one.endswith("preferences.jsonl")]
        preferences = [json.loads(line) for line in files.read(name).decode().splitlines()]
    right = statistics.mean("the right answer" in str(one["chosen"]) for one in preferences)
    assert right > 0.9, f"{right:.0%} of the preferences are right"
    return f"{len(preferences)}, {right:.1%}"


def check_the_bad_one(store: Store, bad: str, log: Sequence[Any]) -> int:
    """Nothing of theirs counts, and others have taken places; returns on how many pairs."""
    assert store.standing(bad) == "stopped"
    assert [one for one in store.judgments()[0] if one.rater_id == bad] == []
    rejected = {row.item_id: row.seq for row in log if row.kind == "rejected"}
    assert len(rejected) > 5
    gold = {one.item_id for one in store.gold()}
    again = {row.item_id for row in log if row.kind == "submitted" and row.seq > rejected.get(row.item_id, 10**12)}
    free = set(rejected) - gold
    assert again & free, "none was done again"
    assert all(row.rater_id != bad for row in log if row.kind == "submitted" and row.seq > max(rejected.values()))
    return len(again & free)


def check_pause(log: Sequence[Any], batch_of: dict[str, str]) -> str:
    """A paused batch is given to nobody."""
    paused = False
    given = {True: 0, False: 0}
    for row in log:
        if row.kind == "batch_changed" and (about := json.loads(row.payload))["name"] == "second":
            paused = about["paused"]
        if row.kind == "assigned" and batch_of[row.item_id] == "second" and not json.loads(row.payload).get("occasion"):
            given[paused] += 1
    assert given[True] == 0 < given[False], "pairs of the paused batch were given out, or none at all"
    return f"{given[False]} pairs of it while it ran, none while it was paused"


def check_guidelines(log: Sequence[Any]) -> int:
    """Raters who have accepted the new guidelines judge under them, except earlier decisions; returns how many."""
    (new,) = [row for row in log if row.kind == "published" and '"text":"' + CHANGED in row.payload]
    version = json.loads(new.payload)["version"]
    accepted: dict[str, int] = {}
    after: dict[str, list[str]] = {}
    for row in log:
        if row.kind == "guidelines_accepted" and json.loads(row.payload)["version"] == version:
            accepted[row.rater_id] = row.seq
        if row.kind in ("submitted", "skipped") and row.seq > new.seq:
            # A judgment that was checked just before the change may be stored just after it.
            soon = row.at_ms - new.at_ms < 1_000
            assert row.rater_id in accepted or soon, "a judgment after the change, without acceptance"
            after.setdefault(row.rater_id, []).append(json.loads(row.payload)["judgment"]["guideline_version"])
    for versions in after.values():
        assert set(versions[3:]) <= {version}, "the first few may have been decided before"
    assert len(accepted) >= len(NAMES) - 1
    return len(accepted)


def main() -> None:
    """Play it for some minutes."""
    parser = argparse.ArgumentParser(description=re.sub(r"\s+", " ", __doc__ or ""))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--think-seconds", type=float, default=THINK_SECONDS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tiebreak-campaign-") as folder:
        for name, figure in play(Path(folder), arguments.minutes, arguments.think_seconds).items():
            print(f"{name:36} {figure}")


if __name__ == "__main__":
    main()

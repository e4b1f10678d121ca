"""The HTTP API's rules: who may do what, what is asked of raters first, and what happens all at once."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi.routing import APIRoute
from label_support import answer, make_pair, open_store
from reply_types import reply_faults
from support import seconds_here

from labeling_ui.database.errors import RefusedError
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import DOCUMENTS, INVITATIONS, JUDGMENTS, SESSIONS
from labeling_ui.pages import PageConfig
from labeling_ui.store.leads.rejecting import Selection
from labeling_ui.store.raters import Role
from labeling_ui.store.store import SessionRules, Store, wall_clock_ms
from labeling_ui.store.verify import verify
from labeling_ui.store.work.asking import Questionnaire
from labeling_ui.web.context import SESSION_COOKIE, Writer
from labeling_ui.web.login.accounts import Session, add_account, invite, log_in
from labeling_ui.web.server import ROUTERS, create_app

PASSWORD = "a long enough password"
PAGE = PageConfig("t", hosts=())


class Campaign:
    """An application with two raters and a lead who have logged in, and requests to it."""

    def __init__(self, store: Store, page: PageConfig = PAGE) -> None:
        self.store = store
        self.sessions = {name: begin(store, name) for name in ("one", "other", "lead", "reviewer", "observer")}
        self.app = create_app(store, page)

    async def send(self, who: str, method: str, path: str, body: object = None, **headers: str) -> httpx.Response:
        session = self.sessions.get(who)
        sent = {"X-CSRF-Token": session.csrf_token} if session else {}
        cookies = {SESSION_COOKIE: session.token} if session else {}
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", cookies=cookies) as client:
            reply = await client.request(method, path, json=body, headers=sent | headers)
        if reply.status_code == 200:
            is_json = reply.headers.get("content-type", "").startswith("application/json")
            found = reply_faults(self.app, method, path.partition("?")[0], reply.json() if is_json else reply.content)
            assert found == [], "every reply is what tiebreak.client says"
        return reply

    def call(self, who: str, method: str, path: str, body: object = None, **headers: str) -> httpx.Response:
        return run(self.send(who, method, path, body, **headers))

    def judge(self, who: str, client_id: str, **fields: object) -> httpx.Response:
        pair = self.call(who, "GET", "/api/next").json()
        return self.call(who, "POST", "/api/judgments", {"client_id": client_id, "pair_id": pair["pair_id"], **fields})


def begin(store: Store, name: str) -> Session:
    roles: dict[str, Role] = {"lead": "lead", "reviewer": "reviewer", "observer": "observer"}
    add_account(store, name, roles.get(name, "rater"), PASSWORD)
    session = log_in(store, name, PASSWORD)
    assert session is not None
    return session


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


@pytest.fixture(autouse=True)
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "labeling_ui.web.server.mount_pages", lambda _app, _page: None
    )  # Gradio leaves event loops open


@pytest.fixture
def campaign(url: str) -> Iterator[Campaign]:
    store = open_store(url, [make_pair(n) for n in range(12)], overlap=2, raters=0)
    made = Campaign(store)
    yield made
    assert verify(store).faults == []
    store.close()


# --- who may do what ---


def routes() -> list[tuple[str, str]]:
    """Every method and path of the API, with something in place of its parameters."""
    found = [
        (
            method,
            re.sub(r"{\w+}", "x", route.path.replace("{pair_id:path}", "pair-0")),
        )
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    ]
    assert len(found) > 40
    assert all(path.startswith("/api/") and "{" not in path for _, path in found)
    return found


def test_health_needs_no_login_and_follows_the_store(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    assert campaign.call("nobody", "GET", "/api/health").json() == {"ok": True}

    def fail(_self: Store) -> str:
        raise sa.exc.OperationalError("SELECT 1", {}, Exception("the database is away"))

    monkeypatch.setattr(Store, "head", fail)
    assert campaign.call("nobody", "GET", "/api/health").status_code == 503
    monkeypatch.undo()


BEFORE_A_LOGIN = {"/api/login", "/api/invitations/accept", "/api/invitations/strength"}


def test_every_route_asks_who_it_is(campaign: Campaign) -> None:
    for method, path in routes():
        body = None if method == "GET" else {}
        reply = campaign.call("nobody", method, path, body)
        assert (reply.status_code == 401) is (path not in BEFORE_A_LOGIN), (method, path, reply.text)


def test_every_lead_route_is_for_leads_and_every_change_needs_the_token(campaign: Campaign) -> None:
    for method, path in routes():
        body = None if method == "GET" else {}
        if path.startswith("/api/lead/"):
            assert campaign.call("one", method, path, body).status_code == 403, path
            for who in ("reviewer", "observer"):
                settles = who == "reviewer" and path in FOR_REVIEWERS
                may = path not in FOR_LEADS if method == "GET" else settles
                if may and path in ("/api/lead/agreement", "/api/lead/adjudications"):
                    continue  # the figures take a process; settling is tested on its own
                assert (campaign.call(who, method, path, body).status_code != 403) is may, (who, method, path)
        if path in JUDGING:
            assert campaign.call("observer", method, path, body).status_code == 403, path
        if method != "GET" and path not in BEFORE_A_LOGIN:
            headers = {"X-CSRF-Token": "wrong"}
            assert campaign.call("lead", method, path, body, **headers).status_code == 403, path


FOR_LEADS = {
    *(
        f"/api/lead/{name}"
        for name in (
            "invitations",
            "work",
            "work.csv",
            "days.csv",
            "audit.csv",
            "export.zip",
            "raters/x/erase",
            "media",
        )
    ),
}
FOR_REVIEWERS = {"/api/lead/adjudications", "/api/lead/disputes/sample", "/api/lead/notes"}
JUDGING = {"/api/next", "/api/judgments", "/api/drafts/pair-0"}


def test_replies_to_raters_say_nothing_of_models_gold_batches_and_others(tmp_path: Path) -> None:
    """Whatever a rater asks for: a judgment must depend on the two answers alone, and colleagues are nobody's business."""
    marks = {"source": "the-source", "round": 7, "purpose": "evaluation"}
    pairs = [make_pair(n).model_copy(update=marks) for n in range(4)]
    campaign = Campaign(open_store(tmp_path, pairs, overlap=2, raters=0))
    store = campaign.store
    store.move_pairs([pair.id for pair in pairs], "the-batch")
    ids = {name: session.rater.id for name, session in campaign.sessions.items()}
    judged: dict[str, list[Any]] = {"one": [], "other": []}
    for name, found in judged.items():
        for n in range(2):
            written = {"rationale": f"{name} wrote", "flags": [], "client_id": f"{name} {n}", "answer": 2}
            found.append(campaign.judge(name, **written).json())  # type: ignore[arg-type]
    pair_ids = [one["judgment"]["pair_id"] for one in judged["one"]]
    store.set_gold(pair_ids[0], f"{pair_ids[0].removeprefix('pair-')}-0")
    for name in judged:
        note = {"item_id": pair_ids[1], "text": f"{name} asked"}
        assert campaign.call(name, "POST", "/api/notes", note).status_code == 200
    settle = {"client_id": "s", "pair_id": pair_ids[1], "answer": -2, "rationale": "the lead's reason"}
    assert campaign.call("lead", "POST", "/api/lead/adjudications", settle).status_code == 200
    store.reject(Selection(judgment_ids=(judged["one"][0]["judgment_id"],)), "too fast", ids["lead"])
    secrets = [
        "secret-model", "the-source", "the-batch", "evaluation", '"gold"', "other wrote", "other asked", "overlap",
        *(ids[name] for name in ids if name != "one"), *(one["judgment_id"] for one in judged["other"]),
        *(f'"{one.id}"' for pair in pairs for one in pair.completions),
    ]  # fmt: skip
    own, others = judged["one"][1]["judgment_id"], judged["other"][1]["judgment_id"]
    paths = [path for method, path in routes() if method == "GET" and not path.startswith("/api/lead/")]
    paths += [f"/api/judgments/{own}", f"/api/judgments/{others}", "/api/hours?since_ms=0"]
    replies = {path: campaign.call("one", "GET", path).text for path in paths}
    assert [(path, one) for path, text in replies.items() for one in secrets if one in text] == []
    assert all("one wrote" in replies[path] for path in ("/api/own-data", f"/api/judgments/{own}"))
    assert "too fast" in replies["/api/rejections"]
    store.close()


def test_reviewers_settle_and_roles_change(campaign: Campaign) -> None:
    settle = {"client_id": "s", "pair_id": "pair-0", "answer": 1}
    assert campaign.call("observer", "POST", "/api/lead/adjudications", settle).status_code == 403
    assert campaign.call("reviewer", "POST", "/api/lead/adjudications", settle).status_code == 200
    ids = {name: session.rater.id for name, session in campaign.sessions.items()}
    assert campaign.call("lead", "PUT", f"/api/lead/raters/{ids['lead']}", {"role": "rater"}).status_code == 409
    assert campaign.call("lead", "PUT", f"/api/lead/raters/{ids['one']}", {"role": "king"}).status_code == 422
    assert campaign.call("lead", "PUT", f"/api/lead/raters/{ids['one']}", {"role": "lead"}).status_code == 200
    assert campaign.call("one", "PUT", f"/api/lead/raters/{ids['lead']}", {"role": "observer"}).status_code == 200
    assert campaign.call("lead", "PUT", f"/api/lead/raters/{ids['one']}", {"role": "rater"}).status_code == 403
    assert campaign.call("lead", "GET", "/api/lead/status").status_code == 200


def test_invitations_are_named_listed_and_revoked_and_passwords_reset(campaign: Campaign) -> None:
    def lead(method: str, path: str, body: object = None) -> httpx.Response:
        return campaign.call("lead", method, f"/api/lead/{path}", body)

    made = lead("POST", "invitations", {"names": ["Ada", "Bo"], "role": "reviewer", "days": 3}).json()["invitations"]
    assert [one["name"] for one in made] == ["Ada", "Bo"]
    tokens = [one["path"].partition("=")[2] for one in made]
    listed = lead("GET", "invitations").json()
    assert [(one["name"], one["role"], one["state"]) for one in listed] == [
        ("Ada", "reviewer", "open"), ("Bo", "reviewer", "open")
    ]  # fmt: skip
    assert not any(token in str(listed) for token in tokens), "the links are shown once"
    assert round((listed[0]["expires_at_ms"] - listed[0]["made_at_ms"]) / 86_400_000) == 3
    assert lead("DELETE", f"invitations/{listed[0]['id']}").json() == {"ok": True}
    assert lead("DELETE", f"invitations/{listed[0]['id']}").status_code == 409
    account = {"username": "somebody", "password": PASSWORD}
    assert campaign.call("nobody", "POST", "/api/invitations/accept", account | {"token": tokens[0]}).status_code == 403
    used = campaign.call("nobody", "POST", "/api/invitations/accept", account | {"token": tokens[1]}).json()
    assert used["role"] == "reviewer"
    assert [one["state"] for one in lead("GET", "invitations").json()] == ["revoked", "used"]
    assert lead("DELETE", f"invitations/{listed[1]['id']}").status_code == 409
    for faulty in ({"names": []}, {"names": ["\0"]}, {"days": 0}, {"role": "king"}):
        assert lead("POST", "invitations", faulty).status_code == 422, faulty
    password = lead("POST", f"raters/{campaign.sessions['one'].rater.id}/password", {}).json()["password"]
    assert campaign.call("one", "GET", "/api/me").status_code == 401, "their sessions have ended"
    assert log_in(campaign.store, "one", password) is not None
    assert log_in(campaign.store, "one", PASSWORD) is None
    assert lead("POST", f"raters/{campaign.sessions['lead'].rater.id}/password", {}).status_code == 409
    assert lead("POST", "raters/no-such/password", {}).status_code == 409


def test_a_session_ends_when_its_time_is_over(campaign: Campaign) -> None:
    assert campaign.call("one", "GET", "/api/me").status_code == 200
    with campaign.store.engine.begin() as connection:
        connection.execute(sa.update(SESSIONS).values(expires_at_ms=int(time.time() * 1000) - 1))
    assert campaign.call("one", "GET", "/api/me").status_code == 401
    assert campaign.call("one", "GET", "/api/next").status_code == 401


def test_nobody_sees_or_changes_anothers_judgments(campaign: Campaign) -> None:
    stored = campaign.judge("one", "c", answer=3, rationale="mine").json()
    path = f"/api/judgments/{stored['judgment_id']}"
    assert campaign.call("one", "GET", path).json()["judgment"]["rationale"] == "mine"
    assert campaign.call("other", "GET", path).status_code == 409
    assert campaign.call("lead", "PUT", path, {"client_id": "x", "answer": -3}).status_code == 409
    assert campaign.call("other", "POST", f"{path}/undo", {}).status_code == 409
    assert [one["judgment_id"] for one in campaign.call("one", "GET", "/api/history").json()] == [stored["judgment_id"]]
    assert campaign.call("other", "GET", "/api/history").json() == []
    amended = campaign.call("one", "PUT", path, {"client_id": "d", "answer": -1, "seconds_active": 4.0}).json()
    assert amended["judgment"]["left"] == stored["judgment"]["left"]
    assert campaign.call("one", "GET", "/api/me").json()["today"]["judged"] == 1
    for faulty in (
        {"answer": 1},
        {"client_id": "", "answer": 1},
        {"client_id": "e"},
        {"client_id": "e\0", "answer": 1},
    ):
        assert campaign.call("one", "PUT", path, faulty).status_code == 422, faulty


def test_a_session_ends_after_its_hours_and_when_nothing_is_done_in_it(campaign: Campaign) -> None:
    """The times are worked by hand: half an hour idle, twelve hours at most."""
    minute, store = 60_000, campaign.store
    store.sessions = SessionRules(hours=12, idle_minutes=30)
    session = log_in(store, "one", PASSWORD)
    assert session is not None
    campaign.sessions["one"] = session
    now = wall_clock_ms()

    def left() -> int:
        """Minutes until the session ends."""
        with store.reading() as connection:
            query = sa.select(SESSIONS.c.expires_at_ms).where(SESSIONS.c.rater_id == session.rater.id)
            return round((max(connection.scalars(query.order_by(SESSIONS.c.began_at_ms.desc()))) - now) / minute)

    def put(**times: int) -> None:
        with store.engine.begin() as connection:
            connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.began_at_ms < now - minute))
            connection.execute(sa.update(SESSIONS).where(SESSIONS.c.rater_id == session.rater.id).values(**times))

    put(expires_at_ms=now + 20 * minute)
    for polled in ("/api/notes", "/api/next"):
        assert campaign.call("one", "GET", polled).status_code == 200
    assert left() == 20, "a page that is open is nobody's activity"
    assert campaign.call("one", "POST", "/api/shown/pair-0", {"client_at_ms": 1}).status_code in (200, 409)
    assert left() == 30
    put(began_at_ms=now - 11 * 60 * minute - 45 * minute, expires_at_ms=now + 5 * minute)
    assert campaign.call("one", "GET", "/api/me").status_code == 200
    assert left() == 15, "twelve hours at most, however active"
    put(expires_at_ms=now - 1)
    assert campaign.call("one", "GET", "/api/me").status_code == 401
    put(began_at_ms=now - 12 * 60 * minute, expires_at_ms=now + 5 * minute)
    assert campaign.call("one", "GET", "/api/me").status_code == 401, "also where the configuration was changed since"


def test_nothing_comes_in_by_websocket(campaign: Campaign) -> None:
    sent: list[dict[str, object]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/api/me", "headers": [], "query_string": b"", "subprotocols": []}
    run(campaign.app(scope, receive, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


# --- what is asked first ---


def test_guidelines_and_consent_come_before_the_first_judgment(url: str) -> None:
    store = open_store(url, [make_pair(n) for n in range(3)], raters=0)
    page = replace(PAGE, guidelines="Be fair.", guideline_version="2", consent="May we?", consent_version="1")
    campaign = Campaign(store, page)

    def accept(document: str, version: str) -> int:
        return campaign.call("one", "POST", f"/api/{document}/accept", {"version": version}).status_code

    unread = campaign.call("one", "GET", "/api/next")
    assert (unread.status_code, "question" in unread.text) == (403, False), "no pair before that"
    body = {"client_id": "a", "pair_id": "pair-0", "answer": 1}
    assert campaign.call("one", "POST", "/api/judgments", body).status_code == 403
    assert [accept("guidelines", one) for one in ("1", "2", page.guidelines_id)] == [409, 409, 200]
    refused = campaign.call("one", "POST", "/api/judgments", body)
    assert (refused.status_code, "consent" in refused.text) == (403, True)
    assert accept("consent", page.consent_id) == 200
    assert campaign.judge("one", "a", answer=1).json()["judgment"]["guideline_version"] == page.guidelines_id
    me = campaign.call("one", "GET", "/api/me").json()
    assert (me["guidelines_accepted"], me["consent_given"]) == (True, True)
    assert campaign.call("other", "GET", "/api/next").status_code == 403, "each for themselves"
    later = Campaign.__new__(Campaign)
    later.store, later.sessions = store, campaign.sessions
    changed = replace(page, guidelines="Be fairer.")
    later.app = create_app(store, changed)
    assert later.call("one", "GET", "/api/next").status_code == 403, "another text, whatever its version says"
    later.call("one", "POST", "/api/guidelines/accept", {"version": changed.guidelines_id})
    made_before = {"guideline_version": page.guidelines_id}
    assert later.judge("one", "b", answer=1, **made_before).json()["judgment"] | made_before == {
        **later.call("one", "GET", "/api/history").json()[0]["judgment"]
    }, "a judgment made before the change keeps its guidelines"
    with store.reading() as connection:
        texts = connection.execute(sa.select(DOCUMENTS).order_by(DOCUMENTS.c.document, DOCUMENTS.c.at_ms)).all()
    assert [row.text for row in texts] == ["May we?", "Be fair.", "Be fairer."]
    assert verify(store).faults == []
    store.close()


def test_an_invitation_gives_one_account_once(campaign: Campaign) -> None:
    made = campaign.call("lead", "POST", "/api/lead/invitations", {"pool": "german"}).json()
    assert made["path"] == f"/login/#invitation={made['token']}"
    wanted = {"token": made["token"], "username": "the new one", "password": PASSWORD}
    for faulty in ({"username": "one"}, {"username": " "}, {"password": " "}):
        assert campaign.call("nobody", "POST", "/api/invitations/accept", wanted | faulty).status_code == 409
    reply = campaign.call("nobody", "POST", "/api/invitations/accept", wanted)
    assert reply.status_code == 200, "what went wrong before did not use it up"
    assert "httponly" in reply.headers["set-cookie"].lower()
    again = campaign.call("nobody", "POST", "/api/invitations/accept", wanted | {"username": "a second"})
    assert again.status_code == 403
    (rater,) = [rater for rater in campaign.store.raters() if rater.name == "the new one"]
    assert (rater.role, rater.pool) == ("rater", "german")
    assert log_in(campaign.store, "the new one", PASSWORD) is not None
    old = invite(campaign.store, None, role="lead")
    with campaign.store.engine.begin() as connection:
        assert old not in str(connection.execute(sa.select(INVITATIONS)).all()), "the store knows its hash alone"
        connection.execute(sa.update(INVITATIONS).values(expires_at_ms=0))
    late = wanted | {"token": old, "username": "late"}
    assert campaign.call("nobody", "POST", "/api/invitations/accept", late).status_code == 403
    assert campaign.call("one", "POST", "/api/lead/invitations", {}).status_code == 403


def test_raters_see_their_agreement_with_gold_only_where_the_lead_allows(tmp_path: Path) -> None:
    away = [0]
    store = open_store(tmp_path, [make_pair(n) for n in range(2)], raters=0, clock=lambda: wall_clock_ms() + away[0])
    campaign = Campaign(store)
    pair = campaign.call("one", "GET", "/api/next").json()
    store.set_gold(pair["pair_id"], f"0-{int(pair['left']['text'] == 'second answer')}")
    away[0] = 100_000
    assert campaign.judge("one", "c", answer=-3, seconds_active=90.0, seconds_idle=5.0).status_code == 200
    me = campaign.call("one", "GET", "/api/me").json()
    assert me["gold_agreement"] is None
    assert me["today"] == {"judged": 1, "active_seconds": 90.0, "idle_seconds": 5.0, "pace_per_hour": 40.0}
    tomorrow = int(time.time() * 1000) + 86_400_000
    assert campaign.call("one", "GET", f"/api/me?since_ms={tomorrow}").json()["today"]["judged"] == 0
    campaign.app = create_app(store, replace(PAGE, show_gold_agreement=True))
    assert campaign.call("one", "GET", "/api/me").json()["gold_agreement"] == {"right": 0, "n": 0}, (
        "not on the same day"
    )
    with store.engine.begin() as connection:
        connection.execute(sa.update(JUDGMENTS).values(at_ms=JUDGMENTS.c.at_ms - 86_400_000 - 100_000))
    assert campaign.call("one", "GET", "/api/me").json()["gold_agreement"] == {"right": 1, "n": 1}
    assert "gold" not in campaign.call("one", "GET", "/api/next").text, "a gold pair looks like any other"
    store.close()


def test_nothing_that_raters_get_tells_gold_and_repeats_from_other_pairs(tmp_path: Path) -> None:
    """Every figure changes by the same amounts whether the next pair is gold, a repeat, or neither."""
    store = open_store(tmp_path, [make_pair(n) for n in range(60)], raters=0)
    for n in range(10):
        store.set_gold(f"pair-{n}", f"{n}-0")
    campaign = Campaign(store, replace(PAGE, show_gold_agreement=True, goal_per_day=50))
    store.rules.gold_share, store.rules.repeat_share = 0.3, 0.3
    given, changes = [], set()
    before = counts_of(campaign)
    for n in range(40):
        pair = campaign.call("one", "GET", "/api/next").json()
        claimed = counts_of(campaign)
        campaign.call("one", "POST", "/api/judgments", {"client_id": f"c{n}", "pair_id": pair["pair_id"], "answer": 1})
        judged = counts_of(campaign)
        changes.add((change(before, claimed), change(claimed, judged)))
        given.append(pair["pair_id"])
        before = judged
    gold = {f"pair-{n}" for n in range(10)}
    assert len(gold & set(given)) > 3
    assert len(given) > len(set(given)), "there were repeats"
    assert len(changes) == 1, changes
    store.close()


def counts_of(campaign: Campaign) -> dict[str, object]:
    """All that `me` says, except for the seconds that pass, and the ids."""
    me = campaign.call("one", "GET", "/api/me").json()
    return {**me["progress"], "gold": me["gold_agreement"], "today": me["today"]["judged"], "all": me["all"]["judged"]}


def change(before: dict[str, Any], after: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """What became different, numbers by how much."""
    return tuple(
        (name, str(after[name] - value if isinstance(value, int) else after[name]))
        for name, value in before.items()
        if after[name] != value
    )


def test_completions_are_letters_to_raters_and_ids_in_the_store(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0), make_pair(1)], raters=0)
    three = make_pair(2, "a", "b", ("c",))
    store.add_pairs([three], overlap=1, seed=0, source="t", source_id="t", ranking=True)
    campaign = Campaign(store)
    wire = []
    for n in range(2):
        wire.append(campaign.call("one", "GET", "/api/next"))
        wire.append(campaign.judge("one", f"c{n}", answer=-1))
    pair = campaign.call("one", "GET", "/api/next").json()
    texts = {one["id"]: one["text"] for one in pair["completions"]}
    assert sorted(texts) == ["A", "B", "C"]
    draft = {"ranking": [["C"], ["A"]]}
    wire.append(campaign.call("one", "PUT", "/api/drafts/pair-2", draft))
    again = campaign.call("one", "GET", "/api/next")
    assert again.json()["draft"]["ranking"] == draft["ranking"]
    order = [["C"], ["A", "B"]]
    reply = campaign.judge("one", "c2", ranking=order)
    assert reply.json()["judgment"]["ranking"] == order
    stored = next(one for one in store.judgments()[0] if one.ranking)
    by_text = {one.text: one.id for one in three.completions}
    assert stored.ranking == tuple(tuple(by_text[texts[letter]] for letter in group) for group in order)
    history = campaign.call("one", "GET", "/api/history")
    past = campaign.call("one", "GET", f"/api/judgments/{history.json()[0]['judgment_id']}")
    assert past.json()["judgment"]["ranking"] == order
    amended = {"client_id": "c3", "ranking": [["B"], ["A"], ["C"]]}
    changed = campaign.call("one", "PUT", f"/api/judgments/{history.json()[0]['judgment_id']}", amended)
    undone = campaign.call("one", "POST", f"/api/judgments/{history.json()[0]['judgment_id']}/undo")
    assert undone.json()["pair"]["draft"]["ranking"] == amended["ranking"]
    for one in (*wire, again, reply, history, past, changed, undone):
        assert one.status_code == 200, one.text
        assert not re.search(r'"\d-\d"', one.text), "an id of a completion may name a model"
    store.close()


def test_a_client_cannot_make_up_guidelines_or_aspects(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0)], raters=0)
    page = replace(PAGE, guidelines="Be fair.", guideline_version="1", asked=Questionnaire(aspects=("helpful",)))
    campaign = Campaign(store, page)
    campaign.call("one", "POST", "/api/guidelines/accept", {"version": page.guidelines_id})
    invented = campaign.judge("one", "c", answer=1, guideline_version="hacked")
    assert (invented.status_code, "unknown version" in invented.text) == (422, True)
    unasked = campaign.judge("one", "c", answer=1, aspects={"honest": 1})
    assert (unasked.status_code, "honest" in unasked.text) == (422, True)
    assert store.judgments()[0] == []
    kept = campaign.judge("one", "c", answer=1, aspects={"helpful": 1}, guideline_version="1").json()["judgment"]
    assert (kept["aspects"], kept["guideline_version"]) == ({"helpful": 1}, page.guidelines_id)
    store.close()


# --- all at once ---


def test_the_same_judgment_sent_many_times_at_once_is_stored_once(campaign: Campaign) -> None:
    pair = campaign.call("one", "GET", "/api/next").json()
    body = {"client_id": "same", "pair_id": pair["pair_id"], "answer": 2}

    async def all_at_once(bodies: list[dict[str, object]]) -> list[httpx.Response]:
        return await asyncio.gather(*(campaign.send("one", "POST", "/api/judgments", one) for one in bodies))

    replies = run(all_at_once([body] * 12))
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["judgment_id"] for reply in replies}) == 1
    assert sorted(reply.json()["replayed"] for reply in replies) == [False] + [True] * 11
    following = replies[0].json()["next"]["pair_id"]
    different = [{"client_id": f"c{n}", "pair_id": following, "answer": n % 4} for n in range(8)]
    codes = sorted(reply.status_code for reply in run(all_at_once(different)))
    assert codes == [200] + [409] * 7
    assert len(campaign.store.judgments()[0]) == 2


def test_what_fails_in_company_fails_alone(url: str) -> None:
    """Changes that share a transaction: one that is refused and one that breaks leave no trace among the others."""
    store = open_store(url, [make_pair(n) for n in range(4)], overlap=1, raters=4)
    for n in range(4):
        store.claim(f"r{n}")
    writer = Writer(store)

    def submit(n: int, pair: int) -> Any:
        return lambda tx: store.submit_and_claim_in(tx, f"r{n}", answer(f"pair-{pair}"))

    def break_halfway(tx: Transaction) -> None:
        store.submit_and_claim_in(tx, "r1", answer("pair-1"))
        raise KeyError("a fault of ours")

    async def together() -> list[object]:
        works = [submit(0, 0), submit(3, 2), break_halfway, submit(2, 2)]
        return await asyncio.gather(*(writer(work) for work in works), return_exceptions=True)

    results: list[object] = run(together())
    assert [type(one) for one in results] == [tuple, RefusedError, KeyError, tuple]
    assert sorted(judgment.rater_id for judgment in store.judgments()[0]) == ["r0", "r2"]
    assert verify(store).faults == []
    store.close()


def test_two_servers_on_one_file_give_no_place_twice(tmp_path: Path) -> None:
    first = Campaign(open_store(tmp_path, [make_pair(n) for n in range(20)], overlap=1, raters=0))
    second = Campaign.__new__(Campaign)
    second.store, second.sessions = Store.open(first.store.url), first.sessions
    second.app = create_app(second.store, PAGE)

    async def work(server: Campaign, who: str) -> int:
        pair, count = (await server.send(who, "GET", "/api/next")).json(), 0
        while pair:
            body = {"client_id": f"{who}-{count}", "pair_id": pair["pair_id"], "answer": 1}
            pair, count = (await server.send(who, "POST", "/api/judgments", body)).json()["next"], count + 1
        return count

    async def both() -> list[int]:
        return await asyncio.gather(work(first, "one"), work(second, "other"))

    counts = run(both())
    assert sum(counts) == 20
    assert min(counts) > 0
    assert len({judgment.pair_id for judgment in first.store.judgments()[0]}) == 20
    assert verify(first.store).faults == []
    first.store.close()
    second.store.close()


# --- size ---


def test_an_answer_of_a_megabyte_is_shown_and_one_from_a_client_is_refused(tmp_path: Path) -> None:
    huge = "**word** $x$ " * 80_000
    campaign = Campaign(open_store(tmp_path, [make_pair(0, huge, "short")], raters=0))
    begun = time.process_time()
    pair = campaign.call("one", "GET", "/api/next").json()
    assert time.process_time() - begun < seconds_here(2)
    assert max(len(pair[side]["text"]) for side in ("left", "right")) == len(huge)
    base = {"client_id": "c", "pair_id": "pair-0", "answer": 1}
    assert campaign.call("one", "POST", "/api/judgments", {**base, "edited_text": "x" * 1_000_000}).status_code == 413
    assert campaign.call("one", "POST", "/api/judgments", {**base, "edited_text": "x" * 200_000}).status_code == 422
    assert campaign.call("one", "POST", "/api/judgments", base).status_code == 200
    campaign.store.close()


# --- what leads steer ---


def test_leads_steer_by_the_api(campaign: Campaign) -> None:
    lead = campaign.call
    assert lead("lead", "PUT", "/api/lead/batches?name=", {"priority": 3, "paused": True}).json()["paused"] is True
    assert campaign.call("one", "GET", "/api/next").json() is None
    assert lead("lead", "PUT", "/api/lead/batches?name=", {"paused": False}).status_code == 200
    assert lead("lead", "PUT", "/api/lead/batches?name=no-such", {"paused": False}).status_code == 409
    assert lead("lead", "PUT", "/api/lead/batches?name=", {"priority": 1_000}).status_code == 422
    for who, answered in (("one", "left"), ("other", "right")):
        pair = campaign.call(who, "GET", "/api/next").json()
        value = -2 if pair["left"]["text"] == "first answer" else 2
        campaign.judge(who, "c", answer=value if answered == "left" else -value)
    (dispute,) = lead("lead", "GET", "/api/lead/disputes").json()
    opened = lead("lead", "GET", f"/api/lead/disputes/{dispute['item_id']}").json()
    assert len(opened["judgments"]) == 2
    settle = {"client_id": "s", "pair_id": dispute["item_id"], "answer": 1}
    assert lead("lead", "POST", "/api/lead/adjudications", settle).json()["next"] is None
    assert lead("lead", "GET", "/api/lead/adjudications").json()[0]["right"] == opened["pair"]["right"]["id"]
    assert lead("lead", "PUT", "/api/lead/gold/pair-3", {"preferred_id": "3-1"}).json()["preferred_id"] == "3-1"
    assert lead("lead", "PUT", "/api/lead/gold/pair-3", {"preferred_id": "4-1"}).status_code == 409
    (batch,) = lead("lead", "GET", "/api/lead/batches").json()
    # twelve pairs, each for two raters; one pair is gold, and counts for itself
    assert {key: batch[key] for key in ("pairs", "judged", "wanted", "steered")} == {
        "pairs": 11, "judged": 2, "wanted": 22, "steered": True
    }  # fmt: skip
    steered = {"pair_ids": ["pair-5"], "batch": "urgent", "change": {"priority": 2}}
    assert lead("lead", "POST", "/api/lead/pairs/move", steered).json()["priority"] == 2
    assert campaign.call("one", "GET", "/api/next").status_code == 200
    aside = {"pair_ids": ["pair-6", "pair-7"], "reason": "a duplicate"}
    assert lead("lead", "POST", "/api/lead/pairs/withdraw", aside).json() == {"withdrawn": 2}
    assert lead("lead", "POST", "/api/lead/pairs/restore", {"pair_ids": ["pair-6"]}).json() == {"restored": 1}
    new = make_pair(8, "another first answer").model_dump(mode="json")
    assert lead("lead", "POST", "/api/lead/pairs/correct", {"pairs": [new]}).json()[0]["replaced_by"] == "pair-8@2"
    there = lead("lead", "GET", "/api/lead/pairs/withdrawn").json()
    assert [(one["pair_id"], one["reason"]) for one in there] == [("pair-7", "a duplicate"), ("pair-8", "corrected")]
    assert lead("lead", "POST", "/api/lead/pairs/withdraw", {"pair_ids": ["no-such"]}).status_code == 409
    rater = campaign.sessions["one"].rater.id
    assert lead("lead", "PUT", f"/api/lead/raters/{rater}", {"disabled": True}).status_code == 200
    assert campaign.call("one", "GET", "/api/me").status_code == 401
    assert lead("lead", "PUT", f"/api/lead/raters/{rater}", {"disabled": False, "pool": "german"}).status_code == 200
    assert lead("lead", "PUT", "/api/lead/raters/no-such", {"disabled": True}).status_code == 409
    assert {one["pool"] for one in lead("lead", "GET", "/api/lead/raters").json()} == {"", "german"}


ROWS = b"prompt,response_a,response_b\nWhy pale?,No iron.,No light.\nquestion 0?,first answer,second answer\n"


def test_leads_create_batches_and_upload_pairs(campaign: Campaign) -> None:
    def lead(method: str, path: str, body: object = None) -> httpx.Response:
        return campaign.call("lead", method, f"/api/lead/{path}", body)

    plan = {"name": "urgent", "priority": 5, "deadline": "2026-12-24", "goal": 3}
    made = lead("POST", "batches", plan).json()
    assert {key: made[key] for key in plan} == plan
    assert made["overlap"] == 2, "the campaign's"
    for refused, status in ((plan, 409), ({"name": "conversations"}, 409), ({"name": "x", "deadline": "soon"}, 422)):
        assert lead("POST", "batches", refused).status_code == status
    assert lead("PUT", "batches?name=urgent", {"deadline": ""}).json()["deadline"] == ""

    def send(preview: bool, content: bytes = ROWS, name: str = "p.csv", batch: str = "urgent") -> httpx.Response:
        session, path = campaign.sessions["lead"], "/api/lead/pairs/upload"
        about = {"name": name, "batch": batch, "preview": str(preview)}
        headers = {"X-CSRF-Token": session.csrf_token}
        cookies = {SESSION_COOKIE: session.token}

        async def post() -> httpx.Response:
            transport = httpx.ASGITransport(app=campaign.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", cookies=cookies) as client:
                return await client.post(path, params=about, content=content, headers=headers)

        return run(post())

    looked = send(True).json()
    assert (looked["pairs"], looked["new"]) == (2, 2)
    assert "No iron." in looked["shown"][0]["completions"][0]
    assert campaign.store.status()["pairs"] == 12, "a preview adds nothing"
    assert send(False).json()["new"] == 2
    assert send(False).json()["new"] == 0, "once"
    assert campaign.call("one", "GET", "/api/next").json()["messages"][0]["content"] == "Why pale?"
    assert send(False, batch="no-such").status_code == 409
    faulty = send(True, content=b"prompt,response_a\nWhy?,x\n")
    assert faulty.status_code == 422
    assert "p.csv" in faulty.text
    assert "/tmp" not in faulty.text
    assert send(True, name="p.exe").status_code == 422
    assert send(True, name="../../p.csv").json()["new"] == 0
    large = b"prompt,response_a,response_b\nWhy large?," + b"x" * 700_000 + b",y\n"
    assert send(False, content=large).json()["new"] == 1, "leads may send more than raters"


def test_leads_find_reject_and_withdraw_answers(campaign: Campaign) -> None:
    def lead(method: str, path: str, body: object = None) -> httpx.Response:
        return campaign.call("lead", method, f"/api/lead/{path}", body)

    stored = campaign.judge("one", "c", answer=2, flags=["unsafe"], rationale="<b>why</b>").json()
    item_id = stored["judgment"]["pair_id"]
    rater = campaign.sessions["one"].rater.id
    found = lead("GET", f"items?text=question&rater={rater}&flag=unsafe&batch=&limit=5").json()
    assert [one["item_id"] for one in found["items"]] == [item_id]
    for malformed in ("agreement=x", "shortest=-1", "nothing=1", "after=x", "limit=1000", "text=%00"):
        assert lead("GET", f"items?{malformed}").status_code in (400, 422), malformed
    opened = lead("GET", f"items/{item_id}").json()
    assert [one["judgment"]["rationale"] for one in opened["judgments"]] == ["<b>why</b>"]
    assert [one["kind"] for one in opened["history"]] == ["submitted", "flagged"]
    assert lead("GET", "items/no-such").status_code == 409
    selection = {"judgment_ids": [stored["judgment_id"]]}
    assert lead("POST", "rejections/preview", selection).json()["unjudged"] == 1
    assert lead("POST", "rejections", {"selection": selection, "reason": ""}).status_code == 422
    assert lead("POST", "rejections", {"selection": selection, "reason": "careless"}).json() == {"rejected": 1}
    assert lead("POST", "rejections", {"selection": selection, "reason": "careless"}).status_code == 409
    (theirs,) = lead("GET", f"raters/{rater}/judgments").json()
    assert (theirs["rejected"], theirs["rejected_by"]) == ("careless", campaign.sessions["lead"].rater.id)
    assert campaign.call("one", "GET", "/api/history").json() == []
    settle = {"client_id": "s", "pair_id": item_id, "answer": 1}
    assert lead("POST", "adjudications", settle).status_code == 200
    assert lead("DELETE", f"adjudications/{item_id}").json() == {"ok": True}
    assert lead("DELETE", f"adjudications/{item_id}").status_code == 409
    assert campaign.store.adjudications() == []
    for number in (3, 4, 5):
        assert lead("PUT", f"gold/pair-{number}", {"preferred_id": None}).status_code == 200
    assert lead("DELETE", "gold/pair-3").json() == {"ok": True}
    assert lead("DELETE", "gold/pair-3").status_code == 409
    assert lead("PUT", "gold/pair-6", {"preferred_id": None}).status_code == 200
    assert [one["item_id"] for one in lead("GET", "gold").json()] == ["pair-4", "pair-5", "pair-6"]
    given = [campaign.judge("other", f"c{n}", answer=0).json()["judgment"]["pair_id"] for n in range(9)]
    assert "pair-3" in given, "it is given out as any other"

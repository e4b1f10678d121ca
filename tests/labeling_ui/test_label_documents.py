"""Guidelines and consent while a campaign runs: published by leads, accepted again, withdrawn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from label_support import make_pair, open_store
from sqlalchemy.exc import DBAPIError
from test_label_api import PAGE, PASSWORD, Campaign, no_pages  # noqa: F401

from labeling_ui.database.migrations import allow_redaction, forbid_redaction
from labeling_ui.database.schema import EVENTS, IDENTITIES, INVITATIONS, METADATA, RATERS, REASON_REMOVED
from labeling_ui.label import main
from labeling_ui.raters import main as raters
from labeling_ui.store.answers import Draft, Submission
from labeling_ui.store.leads import notes
from labeling_ui.store.leads.rejecting import Selection
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.web import context
from labeling_ui.web.login.accounts import add_account
from labeling_ui.web.server import create_app

CONFIGURED = replace(PAGE, guidelines="Be fair.", guideline_version="1")


@pytest.fixture
def campaign(url: str) -> Iterator[Campaign]:
    store = open_store(url, [make_pair(n) for n in range(12)], overlap=2, raters=0)
    made = Campaign(store, CONFIGURED)
    yield made
    assert verify(store).faults == []
    store.close()


def accept(campaign: Campaign, who: str, document: str = "guidelines") -> str:
    name = {"guidelines": "guideline_version", "consent": "consent_version"}[document]
    version = str(campaign.call(who, "GET", "/api/me").json()[name])
    assert campaign.call(who, "POST", f"/api/{document}/accept", {"version": version}).status_code == 200
    return version


def test_a_lead_changes_the_guidelines_and_every_rater_accepts_them_again(
    campaign: Campaign, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = accept(campaign, "one")
    assert campaign.judge("one", "a", answer=1).json()["judgment"]["guideline_version"] == first
    pair = campaign.call("one", "GET", "/api/next").json()
    text = "Be *fairer*.<script>alert(1)</script>"
    looked = campaign.call("lead", "POST", "/api/lead/documents/guidelines/preview", {"text": text}).json()
    assert (looked["changed"], looked["raters"]) == (True, 4), (
        "one, other, the lead and the reviewer; observers do not judge"
    )
    assert "<em>fairer</em>" in looked["html"]
    assert "<script" not in looked["html"]
    published = campaign.call("lead", "POST", "/api/lead/documents/guidelines", {"text": text, "version": "1"}).json()
    assert published["id"].startswith("1#"), published
    assert published["id"] != first, "the same name, another text"
    for who in ("one", "other"):
        assert campaign.call(who, "GET", "/api/next").status_code == 403, who
    late = {"client_id": "b", "pair_id": pair["pair_id"], "answer": 1, "guideline_version": first}
    assert campaign.call("one", "POST", "/api/judgments", late).status_code == 403
    shown = campaign.call("one", "GET", "/api/documents").json()["guidelines"]
    assert (shown["id"], "<em>fairer</em>" in shown["html"]) == (published["id"], True)
    assert accept(campaign, "one") == published["id"]
    kept = campaign.call("one", "POST", "/api/judgments", late).json()["judgment"]
    assert kept["guideline_version"] == first, "made before the change, sent after it"
    assert campaign.judge("one", "c", answer=1).json()["judgment"]["guideline_version"] == published["id"]
    listed = campaign.call("observer", "GET", "/api/lead/documents/guidelines").json()
    lead_id = campaign.sessions["lead"].rater.id
    assert [(one["by"], one["configured"], one["accepted"]) for one in listed["versions"]] == [
        (lead_id, False, 1), (None, True, 0)
    ]  # fmt: skip
    assert listed["text"] == text
    old = campaign.call("lead", "GET", f"/api/lead/documents/guidelines/{listed['versions'][1]['seq']}").json()
    assert (old["text"], old["id"]) == ("Be fair.", first)
    for refused in ({"text": text, "version": "1"}, {"text": "x", "version": "1#2"}, {"text": "x", "version": " "}):
        assert campaign.call("lead", "POST", "/api/lead/documents/guidelines", refused).status_code in (409, 422), (
            refused
        )
    (tmp_path / "third.md").write_text("Be fairest.")
    main(["documents", "--publish", str(tmp_path / "third.md"), "--version", "3", "--store", url_of(campaign.store)])
    time.sleep(context.REMEMBER_SECONDS)  # as another process published it
    assert campaign.call("one", "GET", "/api/next").status_code == 403
    main(["documents", "--json", "true", "--store", url_of(campaign.store)])
    assert '"the command line"' in capsys.readouterr().out


def url_of(store: Store) -> str:
    return store.engine.url.render_as_string(hide_password=False)


def test_a_configuration_that_has_not_changed_leaves_a_leads_text(campaign: Campaign) -> None:
    campaign.call("lead", "POST", "/api/lead/documents/guidelines", {"text": "The lead's.", "version": "2"})

    def restarted(text: str) -> str:
        campaign.app = create_app(campaign.store, replace(CONFIGURED, guidelines=text))
        return str(campaign.call("lead", "GET", "/api/lead/documents/guidelines").json()["text"])

    assert restarted("Be fair.") == "The lead's."
    assert restarted("Changed in the file.") == "Changed in the file."
    assert restarted("Be fair.") == "Be fair.", "an earlier text, published again"
    assert restarted("") == ""
    assert campaign.call("one", "GET", "/api/next").status_code == 200, "no text, nothing to accept"


def test_consent_is_withdrawn_and_given_again(campaign: Campaign) -> None:
    campaign.call("lead", "POST", "/api/lead/documents/consent", {"text": "May we?", "version": "1"})
    accept(campaign, "one")
    accept(campaign, "one", "consent")
    campaign.judge("one", "a", answer=1, rationale="mine")
    following = campaign.call("one", "GET", "/api/next").json()["pair_id"]
    half = {"rationale": "half", "flags": ["unsafe"], "answer_flags": {"A": ["unsafe"]}}
    assert campaign.call("one", "PUT", f"/api/drafts/{following}", half).status_code == 200
    assert campaign.call("one", "POST", "/api/consent/withdraw", {"judgments": True}).status_code == 200
    assert campaign.call("one", "GET", "/api/next").status_code == 403
    assert campaign.call("one", "GET", "/api/me").json()["consent_withdrawn"] is True
    listed = {rater["name"]: rater for rater in campaign.call("lead", "GET", "/api/lead/raters").json()}
    assert listed["one"]["consent_withdrawn"]["judgments"] is True
    assert listed["other"]["consent_withdrawn"] is None
    own = campaign.call("one", "GET", "/api/own-data").json()
    assert own["account"]["name"] == "one"
    assert own["judgments"][0]["judgment"]["rationale"] == "mine"
    assert [own["judgments"][0]["judgment"][side] for side in ("left", "right")] == ["A", "B"], "ids may name a model"
    (draft,) = own["drafts"]
    assert (draft["draft"]["rationale"], draft["draft"]["answer_flags"]) == ("half", {"A": ["unsafe"]})
    assert [one["document"] for one in own["acceptances"]] == ["guidelines"]
    accept(campaign, "one", "consent")
    assert campaign.call("one", "GET", "/api/next").status_code == 200


SECRETS = ("Greta Nachname", "greta@example", "Greta invited", "my aunt in Kiel", "Greta is slow", "half a sentence")


def personal(campaign: Campaign) -> str:
    """A rater whose every personal text is one of `SECRETS`, with judgments; returns their id."""
    store = campaign.store
    token = campaign.call("lead", "POST", "/api/lead/invitations", {"names": [SECRETS[2]]}).json()["token"]
    account = {"token": token, "username": SECRETS[0], "password": PASSWORD}
    rater_id = str(campaign.call("nobody", "POST", "/api/invitations/accept", account).json()["rater_id"])
    with store.writing() as tx:  # as versions before this one logged invitations
        name = {"role": "rater", "pool": "", "days": 7, "name": SECRETS[2]}
        hashed = tx.connection.scalar(sa.select(INVITATIONS.c.token_hash).where(INVITATIONS.c.used_by == rater_id))
        tx.event("invited", payload={**name, "invitation": str(hashed)[:16]})
        tx.connection.execute(sa.insert(IDENTITIES).values(issuer="i", subject=SECRETS[1], rater_id=rater_id))
    for n in range(3):
        given = store.claim(rater_id)
        assert given is not None
        store.submit(rater_id, Submission(client_id=f"g{n}", pair_id=given.item_id, answer=1, rationale=SECRETS[3]))
    given = store.claim(rater_id)
    assert given is not None
    store.save_draft(rater_id, given.item_id, Draft(rationale=SECRETS[5]))
    store.set_standing(rater_id, "qualified", SECRETS[4])
    return rater_id


def anywhere(store: Store, tmp_path: Path) -> list[str]:
    """The secrets that the database still has, in any table or, of SQLite, in any byte of its files."""
    with store.reading() as connection:
        found = "".join(str(connection.execute(sa.select(table)).all()) for table in METADATA.sorted_tables)
    files = [file.read_bytes() for file in tmp_path.glob("labels.sqlite*")]
    return [one for one in SECRETS if one in found or any(one.encode() in file for file in files)]


@pytest.mark.parametrize("withdrawn", [False, True])
def test_an_erased_rater_leaves_a_pseudonym_and_a_log_that_verifies(
    campaign: Campaign, tmp_path: Path, withdrawn: bool
) -> None:
    store, rater_id = campaign.store, personal(campaign)
    head, path = store.head(), f"/api/lead/raters/{rater_id}/erase"
    assert anywhere(store, tmp_path) == list(SECRETS)
    would = campaign.call("lead", "GET", f"{path}?judgments={withdrawn}").json()
    assert (would["judgments"], would["kept"]) == ((3, 0) if withdrawn else (0, 3))
    assert campaign.call("reviewer", "POST", path, {"judgments": withdrawn}).status_code == 403
    done = campaign.call("lead", "POST", path, {"judgments": withdrawn}).json()
    assert done["redacted"] == 2 + 3 * withdrawn, "the invitation, the reason of the standing, and the judgments' texts"
    assert anywhere(store, tmp_path) == ([] if withdrawn else [SECRETS[3]]), "a kept judgment keeps its reason"
    (rater,) = [one for one in store.raters() if one.id == rater_id]
    assert (rater.name, rater.disabled, rater.erased) == (rater_id, True, True)
    judgments = store.judgments()[0]
    assert [one.rater_id for one in judgments] == [] if withdrawn else [rater_id] * 3
    result = verify(store)
    assert (result.faults, result.redacted) == ([], done["redacted"])
    with store.reading() as connection:
        assert connection.scalar(sa.select(EVENTS.c.seq).where(EVENTS.c.hash == head)), (
            "heads kept elsewhere still match"
        )
    if withdrawn:
        ids = [one.judgment_id for one in store.rejections_of_rater(rater_id)]
        assert campaign.call("lead", "POST", "/api/lead/rejections/take-back", {"judgment_ids": ids}).status_code == 409
    assert campaign.call("lead", "PUT", f"/api/lead/raters/{rater_id}", {"disabled": False}).status_code == 409
    assert campaign.call("lead", "POST", f"/api/lead/raters/{rater_id}/password", {}).status_code == 409
    assert campaign.call("lead", "POST", path, {"judgments": True}).status_code == 200, "completes an interrupted one"


@pytest.mark.parametrize("taken_back", [False, True])
def test_the_reason_of_a_rejection_goes_with_the_raters_data(
    campaign: Campaign, tmp_path: Path, taken_back: bool
) -> None:
    store, rater_id = campaign.store, personal(campaign)
    (first, *_) = store.judgments_of_rater(rater_id)
    store.reject(Selection(judgment_ids=(first.judgment_id,)), SECRETS[4])
    if taken_back:
        store.take_back_rejections([first.judgment_id])
    assert campaign.call("lead", "POST", f"/api/lead/raters/{rater_id}/erase", {"judgments": False}).status_code == 200
    assert anywhere(store, tmp_path) == [SECRETS[3]], "a kept judgment keeps its rater's reason"
    assert verify(store).faults == []
    assert [one.rejected for one in store.rejections_of_rater(rater_id)] == ([] if taken_back else [REASON_REMOVED])


def test_an_erased_reviewer_leaves_settled_answers_without_their_words(campaign: Campaign, tmp_path: Path) -> None:
    store, ids = campaign.store, {name: one.rater.id for name, one in campaign.sessions.items()}
    given = store.claim(ids["one"])
    assert given is not None
    fields = {"answer": 2, "edited_text": "the better answer", "rationale": SECRETS[3]}
    store.adjudicate(ids["reviewer"], Submission(client_id="s", pair_id=given.item_id, **fields))
    store.transact(lambda tx: notes.write(tx, given.item_id, ids["one"], ids["one"], "why?"))
    store.transact(lambda tx: notes.write(tx, given.item_id, ids["one"], ids["reviewer"], SECRETS[5]))
    store.erase_rater(ids["reviewer"], judgments=False)
    assert anywhere(store, tmp_path) == [SECRETS[3]], "messages in others' threads go too"
    store.erase_rater(ids["reviewer"], judgments=True)
    assert anywhere(store, tmp_path) == []
    (still,) = store.adjudications()
    assert (still.answer, still.edited_text, still.rationale) == (2, "the better answer", "")
    result = verify(store)
    assert (result.faults, result.redacted) == ([], 2)


def test_a_redaction_that_no_erasure_announces_is_found(campaign: Campaign) -> None:
    rater_id = personal(campaign)
    campaign.store.erase_rater(rater_id, judgments=True)
    with campaign.store.engine.begin() as connection:
        allow_redaction(connection)
        change = sa.update(EVENTS).where(EVENTS.c.kind == "submitted", EVENTS.c.rater_id == rater_id)
        before = connection.execute(sa.select(EVENTS.c.seq, EVENTS.c.payload).where(EVENTS.c.kind == "submitted")).all()
        connection.execute(change.values(payload=sa.func.replace(EVENTS.c.payload, '"answer":1', '"answer":3')))
        forbid_redaction(connection)
    assert "chain is broken" in verify(campaign.store).faults[0]
    with campaign.store.engine.begin() as connection:
        allow_redaction(connection)
        for row in before:
            connection.execute(sa.update(EVENTS).where(EVENTS.c.seq == row.seq).values(payload=row.payload))
        forbid_redaction(connection)
    with pytest.raises(DBAPIError, match="append-only"), campaign.store.engine.begin() as connection:
        connection.execute(sa.update(EVENTS).values(payload="{}"))


def test_the_command_erases_and_never_the_only_account(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(tmp_path, [make_pair(0)], raters=0)
    add_account(store, "Only", "lead", PASSWORD)
    at = ["--store", url_of(store)]
    with pytest.raises(SystemExit):
        raters(["erase", "Only", *at])
    assert "only account" in capsys.readouterr().err
    add_account(store, "Left", "rater", PASSWORD)
    raters(["erase", "Left", "--preview", "true", *at])
    raters(["erase", "--inactive-days", "1", *at])
    assert "nobody to erase" in capsys.readouterr().out, "came today"
    with store.engine.begin() as connection:
        connection.execute(sa.update(RATERS).values(created_at_ms=0))
    raters(["erase", "--inactive-days", "1", "--judgments", "withdraw", *at])
    assert "earlier backups" in capsys.readouterr().out
    assert sorted(one.name == one.id for one in store.raters()) == [False, True], "leads stay"
    assert verify(store).faults == []
    store.close()

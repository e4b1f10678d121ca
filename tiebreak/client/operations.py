"""The label server's API as methods, written by `python -m labeling_ui.web.client_types`."""

# ruff: noqa: E501

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict
from urllib.parse import quote

from tiebreak.client.connection import Connection


class Acceptance(TypedDict):
    """A version of the guidelines or of the consent."""

    version: str


class Answer(TypedDict):
    """A message to a rater about a pair."""

    item_id: str
    text: str
    rater_id: str


class BatchChange(TypedDict):
    """Changes to a batch; None changes nothing."""

    priority: NotRequired[int | None]
    pool: NotRequired[str | None]
    overlap: NotRequired[int | None]
    paused: NotRequired[bool | None]
    deadline: NotRequired[str | None]
    goal: NotRequired[int | None]


class ClientClock(TypedDict):
    """The client's clock."""

    client_at_ms: NotRequired[int | None]


class Code(TypedDict):
    """A code of an authenticator app, and the password where the factor is removed."""

    code: str
    password: NotRequired[str]


class GoldAnswer(TypedDict):
    """The better completion of a gold pair, or null where neither is better; of a single answer, its value."""

    preferred_id: NotRequired[str | None]
    value: NotRequired[int | str | None]


class Invitation(TypedDict):
    """An invitation's role, pool and lifetime."""

    role: NotRequired[Literal["rater", "reviewer", "observer", "lead"]]
    pool: NotRequired[str]
    days: NotRequired[int]
    names: NotRequired[list[str]]


class InvitationLogin(TypedDict):
    """A name and a password for an invited account."""

    username: str
    password: str
    token: str


class LoginWithCode(TypedDict):
    """The same, with a code where the account has a second factor."""

    username: str
    password: str
    code: NotRequired[str]


class Move(TypedDict):
    """Pairs to move, and where to."""

    pair_ids: list[str]
    batch: str
    change: NotRequired[BatchChange]


class NewBatch(TypedDict):
    """A batch to create."""

    priority: NotRequired[int | None]
    pool: NotRequired[str | None]
    overlap: NotRequired[int | None]
    paused: NotRequired[bool | None]
    deadline: NotRequired[str | None]
    goal: NotRequired[int | None]
    name: str


class NewNote(TypedDict):
    """A message about a pair."""

    item_id: str
    text: str


class NewPassword(TypedDict):
    """The present password and a new one."""

    current: str
    new: str


class NewStanding(TypedDict):
    """Whether a rater is given work, and why."""

    standing: Literal["", "qualified", "stopped"]
    reason: NotRequired[str]


class NewText(TypedDict):
    """A text to publish, and the name of its version."""

    text: str
    version: str


class PairIds(TypedDict):
    """Some pairs."""

    pair_ids: list[str]


class Passage(TypedDict):
    """A passage of an answer as the page shows it; offsets in code points of its text."""

    answer: str
    start: int
    end: int
    text: str


class RaterChange(TypedDict):
    """Changes to a rater; None changes nothing."""

    pool: NotRequired[str | None]
    disabled: NotRequired[bool | None]
    role: NotRequired[Literal["rater", "reviewer", "observer", "lead"] | None]


class Reject(TypedDict):
    """Judgments to reject, and why."""

    selection: Selection
    reason: str
    again: NotRequired[bool]


class Sample(TypedDict):
    """How many pairs to draw."""

    count: int


class Selection(TypedDict):
    """Judgments to reject: some by id, or all of a rater's, in a period or a batch."""

    judgment_ids: NotRequired[list[str]]
    rater_id: NotRequired[str]
    since_ms: NotRequired[int | None]
    until_ms: NotRequired[int | None]
    batch: NotRequired[str | None]


class TakeBack(TypedDict):
    """Rejected judgments that are to count again."""

    judgment_ids: list[str]


class Text(TypedDict):
    """A text of guidelines or consent."""

    text: str


class Withdraw(TypedDict):
    """Pairs to withdraw, and why."""

    pair_ids: list[str]
    reason: NotRequired[str]


class Withdrawal(TypedDict):
    """Whether the rater also objects to the use of their judgments."""

    judgments: NotRequired[bool]


class Operations(Connection):
    """One method for each operation."""

    def login(self, body: LoginWithCode) -> Any:
        """Start a session. Wrong names, passwords and codes get one reply; a missing code, after the right password, 428."""
        return self.request("POST", "/api/login", body=body)

    def accept(self, body: InvitationLogin) -> Any:
        """Create the account of an invitation and start its session. Each invitation works once."""
        return self.request("POST", "/api/invitations/accept", body=body)

    def logout(self) -> Any:
        """End the session."""
        return self.request("POST", "/api/logout")

    def set_password(self, body: NewPassword) -> Any:
        """Change one's own password; one's other sessions end."""
        return self.request("POST", "/api/password", body=body)

    def has_second_factor(self) -> Any:
        """Whether the account has one, and whether it must."""
        return self.request("GET", "/api/second-factor")

    def begin_second_factor(self) -> Any:
        """A new secret, which counts once a code of it is confirmed."""
        return self.request("POST", "/api/second-factor")

    def confirm_second_factor(self, body: Code) -> Any:
        """Make it count from now on."""
        return self.request("POST", "/api/second-factor/confirm", body=body)

    def remove_second_factor(self, body: Code) -> Any:
        """Remove it, with the password and a code."""
        return self.request("POST", "/api/second-factor/remove", body=body)

    def sessions(self) -> Any:
        """When each of the rater's sessions began."""
        return self.request("GET", "/api/sessions")

    def end_sessions(self) -> Any:
        """End the rater's other sessions."""
        return self.request("POST", "/api/sessions/end-others")

    def who_am_i(self, *, since_ms: int | None = None) -> Any:
        """The rater, their own count and work, and the judgment that undo would take back."""
        return self.request("GET", "/api/me", query={"since_ms": since_ms})

    def hours(self, *, since_ms: int) -> Any:
        """The rater's own work by hour, so that a page can show it by the days of their time zone."""
        return self.request("GET", "/api/hours", query={"since_ms": since_ms})

    def accept_guidelines(self, body: Acceptance) -> Any:
        """The rater has read the guidelines."""
        return self.request("POST", "/api/guidelines/accept", body=body)

    def give_consent(self, body: Acceptance) -> Any:
        """The rater agrees to the use of their judgments."""
        return self.request("POST", "/api/consent/accept", body=body)

    def next_pair(self, *, holding: str = "") -> Any:
        """The rater's next pair, or null; nobody gets one before accepting the consent and the guidelines."""
        return self.request("GET", "/api/next", query={"holding": holding})

    def shown(self, pair_id: str, body: ClientClock) -> Any:
        """The pair is on the rater's screen; their lease starts."""
        return self.request("POST", f"/api/shown/{quote(str(pair_id), safe='')}", body=body)

    def save_draft(self, pair_id: str, body: dict[str, Any]) -> Any:
        """Store a draft and renew its lease."""
        return self.request("PUT", f"/api/drafts/{quote(str(pair_id), safe='')}", body=body)

    def locate(self, pair_id: str, body: Passage) -> Any:
        """The raw offsets of a passage of an answer as the page shows it; null where they are not certain."""
        return self.request("POST", f"/api/passages/{quote(str(pair_id), safe='')}", body=body)

    def judge(self, body: dict[str, Any]) -> Any:
        """Store a judgment; the reply means that it is on disk. `holding` may list the pairs that the client already has."""
        return self.request("POST", "/api/judgments", body=body)

    def history(self, *, before: int | None = None, limit: int = 50) -> Any:
        """The rater's current judgments, latest first; `before`: the `seq` of the last one that the client has."""
        return self.request("GET", "/api/history", query={"before": before, "limit": limit})

    def feedback(self) -> Any:
        """The latest pairs that a lead settled otherwise than the rater had answered, with the lead's reasons."""
        return self.request("GET", "/api/feedback")

    def rejections(self) -> Any:
        """The rater's judgments that a lead rejected, latest first, with the reasons."""
        return self.request("GET", "/api/rejections")

    def past_judgment(self, judgment_id: str) -> Any:
        """One of the rater's judgments, and its pair with the sides as judged."""
        return self.request("GET", f"/api/judgments/{quote(str(judgment_id), safe='')}")

    def amend(self, judgment_id: str, body: dict[str, Any]) -> Any:
        """Replace a judgment's answer. The body is a judgment's, without `pair_id`."""
        return self.request("PUT", f"/api/judgments/{quote(str(judgment_id), safe='')}", body=body)

    def undo(self, judgment_id: str) -> Any:
        """Undo a judgment: `pair` is to be judged again, with the old answer as its draft."""
        return self.request("POST", f"/api/judgments/{quote(str(judgment_id), safe='')}/undo")

    def ask(self, body: dict[str, Any]) -> Any:
        """Send a turn. Sending it again is harmless; a failed turn is queued again."""
        return self.request("POST", "/api/turns", body=body)

    def latest(self) -> Any:
        """The rater's latest turn, so that a reopened page resumes there."""
        return self.request("GET", "/api/turns/latest")

    def look(self, turn_id: str) -> Any:
        """One of the rater's turns."""
        return self.request("GET", f"/api/turns/{quote(str(turn_id), safe='')}")

    def documents(self) -> Any:
        """The guidelines and the consent as raters read them."""
        return self.request("GET", "/api/documents")

    def lead_publications(self, document: Literal["guidelines", "consent"]) -> Any:
        """The current text and all versions, latest first, each with the number of raters whose last acceptance it was."""
        return self.request("GET", f"/api/lead/documents/{quote(str(document), safe='')}")

    def lead_publish(self, document: Literal["guidelines", "consent"], body: NewText) -> Any:
        """Publish a text: every rater must accept it before their next judgment, whatever its version is called."""
        return self.request("POST", f"/api/lead/documents/{quote(str(document), safe='')}", body=body)

    def lead_one_version(self, document: Literal["guidelines", "consent"], seq: int) -> Any:
        """One version, with its text."""
        return self.request("GET", f"/api/lead/documents/{quote(str(document), safe='')}/{quote(str(seq), safe='')}")

    def lead_preview(self, document: Literal["guidelines", "consent"], body: Text) -> Any:
        """A text as raters would see it, and how many of them would have to accept it."""
        return self.request("POST", f"/api/lead/documents/{quote(str(document), safe='')}/preview", body=body)

    def withdraw_consent(self, body: Withdrawal) -> Any:
        """Withdraw the rater's consent: they get no more work, and the lead sees it. `judgments`: they also object to the use of their judgments."""
        return self.request("POST", "/api/consent/withdraw", body=body)

    def own_data(self) -> Any:
        """The rater's data in the store, as a file."""
        return self.request("GET", "/api/own-data")

    def lead_preview_erasure(self, rater_id: str, *, judgments: bool = False) -> Any:
        """What an erasure would do. `judgments`: reject the rater's judgments too."""
        return self.request(
            "GET", f"/api/lead/raters/{quote(str(rater_id), safe='')}/erase", query={"judgments": judgments}
        )

    def lead_erase(self, rater_id: str, body: Withdrawal) -> Any:
        """Erase a rater's data: only the pseudonym stays, with the judgments or without."""
        return self.request("POST", f"/api/lead/raters/{quote(str(rater_id), safe='')}/erase", body=body)

    def lead_status(self) -> Any:
        """Counts, the last day's pace, and the days left at that pace."""
        return self.request("GET", "/api/lead/status")

    def lead_agreement(self) -> Any:
        """Agreement of the raters beside published figures, and each rater's reliability."""
        return self.request("GET", "/api/lead/agreement")

    def lead_raters(self) -> Any:
        """All raters; `consent_withdrawn`: when, and whether for their judgments too, or null."""
        return self.request("GET", "/api/lead/raters")

    def lead_change(self, rater_id: str, body: RaterChange) -> Any:
        """Move a rater to another pool; enable or disable them. Nobody disables themselves: a lead is always left."""
        return self.request("PUT", f"/api/lead/raters/{quote(str(rater_id), safe='')}", body=body)

    def lead_stand(self, rater_id: str, body: NewStanding) -> Any:
        """Let a rater continue (`qualified`), stop them, or test them again (empty)."""
        return self.request("POST", f"/api/lead/raters/{quote(str(rater_id), safe='')}/standing", body=body)

    def lead_reset(self, rater_id: str) -> Any:
        """A new password for a rater, shown once; their sessions end, and a disabled rater is enabled."""
        return self.request("POST", f"/api/lead/raters/{quote(str(rater_id), safe='')}/password")

    def lead_make_invitations(self, body: Invitation) -> Any:
        """The paths of links that create one account each; `token` and `path` are those of the first."""
        return self.request("POST", "/api/lead/invitations", body=body)

    def lead_all_invitations(self) -> Any:
        """All invitations, the latest first, without their links."""
        return self.request("GET", "/api/lead/invitations")

    def lead_revoke(self, invitation_id: str) -> Any:
        """End an invitation before it is used."""
        return self.request("DELETE", f"/api/lead/invitations/{quote(str(invitation_id), safe='')}")

    def lead_batches(self) -> Any:
        """All batches, with their progress. `steered`: not that of conversations, which belong to their raters."""
        return self.request("GET", "/api/lead/batches")

    def lead_create_batch(self, body: NewBatch) -> Any:
        """Create an empty batch, to upload pairs to or move pairs to."""
        return self.request("POST", "/api/lead/batches", body=body)

    def lead_change_batch(self, body: BatchChange, *, name: str = "") -> Any:
        """Change a batch; pairs already leased stay with their raters."""
        return self.request("PUT", "/api/lead/batches", query={"name": name}, body=body)

    def lead_move_pairs(self, body: Move) -> Any:
        """Move pairs to a batch, which is created or changed; pairs already leased stay with their raters."""
        return self.request("POST", "/api/lead/pairs/move", body=body)

    def lead_withdraw_pairs(self, body: Withdraw) -> Any:
        """Withdraw pairs: nobody gets them, they count nowhere, and they can be restored."""
        return self.request("POST", "/api/lead/pairs/withdraw", body=body)

    def lead_restore_pairs(self, body: PairIds) -> Any:
        """Restore withdrawn pairs, with their judgments."""
        return self.request("POST", "/api/lead/pairs/restore", body=body)

    def lead_correct_pairs(self, body: dict[str, Any]) -> Any:
        """Replace pairs by new versions: `pairs`, records with the ids of the old ones, whose judgments stay, unused."""
        return self.request("POST", "/api/lead/pairs/correct", body=body)

    def lead_withdrawn_pairs(self) -> Any:
        """Withdrawn and corrected pairs."""
        return self.request("GET", "/api/lead/pairs/withdrawn")

    def lead_gold(self) -> Any:
        """Pairs with a known answer."""
        return self.request("GET", "/api/lead/gold")

    def lead_set_gold(self, pair_id: str, body: GoldAnswer) -> Any:
        """Make a pair gold: every rater gets it once, and it looks like any other."""
        return self.request("PUT", f"/api/lead/gold/{quote(str(pair_id), safe='')}", body=body)

    def lead_remove_gold(self, pair_id: str) -> Any:
        """Make a gold pair an ordinary one, whose judgments are votes."""
        return self.request("DELETE", f"/api/lead/gold/{quote(str(pair_id), safe='')}")

    def lead_disputes(self, *, limit: int = 50, offset: int = 0, adjudicated: bool = False) -> Any:
        """Pairs that wait for a lead: raters disagree, opposite sides first, or skipped them; with `adjudicated`, the settled ones. Votes are counted for the sides as this lead sees the pair."""
        return self.request(
            "GET", "/api/lead/disputes", query={"limit": limit, "offset": offset, "adjudicated": adjudicated}
        )

    def lead_draw_sample(self, body: Sample) -> Any:
        """Draw pairs about which all raters agree, at random, to be reviewed beside the disagreements."""
        return self.request("POST", "/api/lead/disputes/sample", body=body)

    def lead_dispute(self, pair_id: str) -> Any:
        """A pair to settle, with sides drawn for this lead, and the raters' answers."""
        return self.request("GET", f"/api/lead/disputes/{quote(str(pair_id), safe='')}")

    def lead_adjudicate(self, body: dict[str, Any]) -> Any:
        """Settle a pair; the body is a judgment's. The raters' own judgments do not change."""
        return self.request("POST", "/api/lead/adjudications", body=body)

    def lead_adjudications(self) -> Any:
        """All settled answers."""
        return self.request("GET", "/api/lead/adjudications")

    def lead_remove_settlement(self, pair_id: str) -> Any:
        """Withdraw a settled answer: the votes decide again."""
        return self.request("DELETE", f"/api/lead/adjudications/{quote(str(pair_id), safe='')}")

    def lead_items(self, *, after: int = -1, limit: int = 50) -> Any:
        """A page of the items that a search is for, in campaign order. `after`: where the next page begins; null: the end."""
        return self.request("GET", "/api/lead/items", query={"after": after, "limit": limit})

    def lead_item(self, pair_id: str) -> Any:
        """An item: its texts, its judgments, rejected ones too, and its history."""
        return self.request("GET", f"/api/lead/items/{quote(str(pair_id), safe='')}")

    def lead_judgments_of_rater(self, rater_id: str, *, before: int | None = None, limit: int = 50) -> Any:
        """A rater's judgments, rejected ones too, latest first; `before`: the `seq` of the last one that the client has."""
        return self.request(
            "GET",
            f"/api/lead/raters/{quote(str(rater_id), safe='')}/judgments",
            query={"before": before, "limit": limit},
        )

    def lead_preview_rejection(self, body: Selection) -> Any:
        """What rejecting these judgments would do."""
        return self.request("POST", "/api/lead/rejections/preview", body=body)

    def lead_reject(self, body: Reject) -> Any:
        """Reject judgments: they count nowhere, their places are free, and their pairs are given out again."""
        return self.request("POST", "/api/lead/rejections", body=body)

    def lead_take_back(self, body: TakeBack) -> Any:
        """Take rejections back: the judgments count again. `stay`: those whose raters have judged the pair again since."""
        return self.request("POST", "/api/lead/rejections/take-back", body=body)

    def lead_upload(self, content: bytes, *, name: str, batch: str = "", preview: bool = False) -> Any:
        """Add a file's new pairs to a batch. `preview`: only count and show them."""
        return self.request(
            "POST", "/api/lead/pairs/upload", query={"name": name, "batch": batch, "preview": preview}, content=content
        )

    def lead_work(self, *, first: str = "2000-01-01", last: str = "2999-12-31") -> Any:
        """Work by rater, day (UTC) and batch; seconds by which each rater's clock is ahead of the server's."""
        return self.request("GET", "/api/lead/work", query={"first": first, "last": last})

    def lead_work_csv(self, *, first: str = "2000-01-01", last: str = "2999-12-31", rate: float = 0.0) -> Any:
        """The same as a table; rejected work is paid too."""
        return self.request("GET", "/api/lead/work.csv", query={"first": first, "last": last, "rate": rate})

    def lead_days_csv(self, *, first: str = "2000-01-01", last: str = "2999-12-31", rate: float = 0.0) -> Any:
        """A row a rater and day, for payroll: begin and end, hours, breaks, rework, pay, and the difference of clocks."""
        return self.request("GET", "/api/lead/days.csv", query={"first": first, "last": last, "rate": rate})

    def lead_audit_csv(self, *, first: str = "2000-01-01", last: str = "2999-12-31") -> Any:
        """The log: who did what and when, under pseudonyms and without what anybody wrote."""
        return self.request("GET", "/api/lead/audit.csv", query={"first": first, "last": last})

    def lead_since(self) -> Any:
        """What has changed since the last export."""
        return self.request("GET", "/api/lead/export")

    def lead_download(self) -> Any:
        """Preferences, judgments and the report in one file."""
        return self.request("GET", "/api/lead/export.zip")

    def media(self, sha256: str) -> Any:
        """An image or recording; a range of its bytes, where a player asks for one."""
        return self.request("GET", f"/api/media/{quote(str(sha256), safe='')}")

    def own_notes(self) -> Any:
        """The rater's threads with the leads, the latest first."""
        return self.request("GET", "/api/notes")

    def write_note(self, body: NewNote) -> Any:
        """Write to the leads about a pair that the rater has, or has had."""
        return self.request("POST", "/api/notes", body=body)

    def lead_notes_for_leads(self, *, item_id: str | None = None) -> Any:
        """The threads that wait for a lead's answer; with an `item_id`, all of that pair's."""
        return self.request("GET", "/api/lead/notes", query={"item_id": item_id})

    def lead_answer_note(self, body: Answer) -> Any:
        """Answer a rater, or write to them first, about a pair that they have had."""
        return self.request("POST", "/api/lead/notes", body=body)

    def lead_duels(self) -> Any:
        """Each comparison: `state` is first or second (is better), no difference (above `most`), or undecided (about `more` pairs are missing)."""
        return self.request("GET", "/api/lead/duels")

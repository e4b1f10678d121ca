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


class BatchListed(TypedDict):
    """The same, with its progress."""

    name: str
    priority: int
    pool: str
    overlap: int
    paused: bool
    deadline: str
    goal: int
    pairs: int
    single_answers: int
    judged: int
    wanted: int
    steered: bool
    inspection: LotInspected | None
    without_raters: bool


class BatchSettings(TypedDict):
    """A batch and its settings."""

    name: str
    priority: int
    pool: str
    overlap: int
    paused: bool
    deadline: str
    goal: int


class CampaignStatus(TypedDict):
    """Counts of everything, the last day's pace, and the days left at that pace."""

    pairs: int
    items: int
    items_judged: int
    single_answers: int
    single_answers_judged: int
    withdrawn: int
    judgments: dict[str, int]
    judged: int
    judgments_wanted: int
    assignments: dict[str, int]
    raters: int
    skipped: int
    disputed: int
    events: int
    head: str
    store: str
    last_day: LastDay
    days_left: float | None
    by_day: dict[str, int]


class ClientClock(TypedDict):
    """The client's clock."""

    client_at_ms: NotRequired[int | None]


class Code(TypedDict):
    """A code of an authenticator app, and the password where the factor is removed."""

    code: str
    password: NotRequired[str]


class ConsentGone(TypedDict):
    """When consent was withdrawn, and whether for the judgments too."""

    at_ms: int
    judgments: bool


class Description(TypedDict):
    """What a file shows, or what is heard in it, for raters who do not see or hear it."""

    name: str
    alt: str


class DisputeListed(TypedDict):
    """A pair that waits for a lead, with the votes for the sides as this lead sees them."""

    item_id: str
    pair_id: str
    about: Literal["side", "tie", "skips", "sample"]
    for_left: int
    for_right: int
    for_neither: int
    skips: int
    prompt: str
    adjudicated: bool
    settled_by: str | None
    task: str
    values: dict[str, int]


class DisputeRead(TypedDict):
    """A pair to settle, and the raters' answers."""

    pair: ShownPair
    judgments: list[JudgmentReply]
    adjudicated: JudgmentReply | None
    settled_seq: int | None


class DocumentPreview(TypedDict):
    """A text as raters would see it, and how many would have to accept it."""

    html: str
    changed: bool
    raters: int


class DocumentRead(TypedDict):
    """A text that raters accept; `id` is its version with a hash."""

    id: str
    version: str
    html: str


class DocumentVersion(TypedDict):
    """A published version; `by` is null of the configuration's and the command line's."""

    seq: int
    id: str
    version: str
    by: str | None
    configured: bool
    at_ms: int
    characters: int


class DocumentVersionCounted(TypedDict):
    """The same, with the number of raters who accepted it last."""

    seq: int
    id: str
    version: str
    by: str | None
    configured: bool
    at_ms: int
    characters: int
    accepted: int


class DocumentVersionRead(TypedDict):
    """A version with its text."""

    seq: int
    id: str
    version: str
    by: str | None
    configured: bool
    at_ms: int
    characters: int
    text: str
    html: str


class DocumentVersions(TypedDict):
    """The text that counts, how many raters must accept it, and all versions, the latest first."""

    text: str
    raters: int
    versions: list[DocumentVersionCounted]


class DocumentsRead(TypedDict):
    """The guidelines and the consent."""

    guidelines: DocumentRead
    consent: DocumentRead


class Done(TypedDict):
    """The change is on disk."""

    ok: bool


class Drawn(TypedDict):
    """How many pairs were drawn."""

    drawn: int


class DuelSoFar(TypedDict):
    """A comparison of two policies: whether its judgments decide it yet."""

    policies: list[str]
    pairs: int
    n: int
    win_rate: float | None
    interval: list[float]
    state: Literal["first", "second", "no difference", "undecided"]
    most: float
    more: int


class ErasureReply(TypedDict):
    """What an erasure did, or would do."""

    rater_id: str
    judgments: int
    kept: int
    conversations: int
    redacted: int


class FactorBegun(TypedDict):
    """A secret for an authenticator app, and its drawing as SVG."""

    secret: str
    qr: str


class FactorState(TypedDict):
    """Whether an account has a second factor, and whether it must."""

    set: bool
    needed: bool


class Figures(TypedDict):
    """Agreement of the raters beside published figures; what is measured is listed in docs/metrics.md."""

    published: list[PublishedFigure]
    measuring: bool
    age_seconds: float | None


class FileAdded(TypedDict):
    """A file was added, or was there."""

    name: str
    new: bool
    media_type: str
    width: int | None
    height: int | None


class FileLimits(TypedDict):
    """The limits of a file."""

    bytes: int
    pixels: int
    minutes: int


class FileListed(TypedDict):
    """An image or recording in the store."""

    name: str
    sha256: str
    media_type: str
    width: int | None
    height: int | None
    alt: str


class FilesListed(TypedDict):
    """Files by name; `more`: there are others after them."""

    files: list[FileListed]
    more: bool
    limits: FileLimits


class GoldAgreement(TypedDict):
    """How many gold judgments were right, of how many."""

    right: int
    n: int


class GoldAnswer(TypedDict):
    """The better completion of a gold pair, or null where neither is better; of a single answer, its value."""

    preferred_id: NotRequired[str | None]
    value: NotRequired[int | str | None]


class GoldItem(TypedDict):
    """An item with a known answer."""

    item_id: str
    preferred_id: str | None
    value: int | str | None


class Invitation(TypedDict):
    """An invitation's role, pool and lifetime."""

    role: NotRequired[Literal["rater", "reviewer", "observer", "lead"]]
    pool: NotRequired[str]
    days: NotRequired[int]
    names: NotRequired[list[str]]


class InvitationListed(TypedDict):
    """An invitation, without its link."""

    id: str
    name: str
    role: Literal["rater", "reviewer", "observer", "lead"]
    pool: str
    made_at_ms: int
    expires_at_ms: int
    state: Literal["open", "used", "expired", "revoked"]
    used_by: str | None
    email: str
    subject: str


class InvitationLogin(TypedDict):
    """A name and a password for an invited account."""

    username: str
    password: str
    token: str


class InvitationMade(TypedDict):
    """A link that creates one account."""

    name: str
    path: str


class InvitationsMade(TypedDict):
    """Links that create one account each; `token` and `path` are those of the first."""

    token: str
    path: str
    invitations: list[InvitationMade]


class ItemFound(TypedDict):
    """An item of a search. Votes are for the completions in the campaign's order."""

    item_id: str
    pair_id: str
    position: int
    batch: str
    task: str
    prompt: str
    for_first: int
    for_second: int
    for_neither: int
    skips: int
    taken: int
    overlap: int
    disputed: int
    length: int
    gold: bool
    settled: bool
    withdrawn: bool
    rejected: int


class ItemHappening(TypedDict):
    """An event of an item's history."""

    at_ms: int
    kind: str
    rater_id: str | None
    judgment: JudgmentReply | None
    note: str


class ItemRead(TypedDict):
    """An item with everything about it."""

    item_id: str
    pair_id: str
    position: int
    batch: str
    task: str
    prompt: str
    for_first: int
    for_second: int
    for_neither: int
    skips: int
    taken: int
    overlap: int
    disputed: int
    length: int
    gold: bool
    settled: bool
    withdrawn: bool
    rejected: int
    messages: list[RenderedMessage]
    completions: list[ShownAnswer]
    gold_id: str | None
    gold_value: int | str | None
    settled_as: JudgmentReply | None
    withdrawn_why: str | None
    pair: dict[str, Any]
    judgments: list[JudgmentListed]
    history: list[ItemHappening]


class ItemsFound(TypedDict):
    """A page of a search; `after`: where the next page begins; null: the end."""

    items: list[ItemFound]
    after: int | None


class JudgmentInHistory(TypedDict):
    """A judgment that stands."""

    judgment_id: str
    item_id: str
    at_ms: int
    seq: int
    judgment: JudgmentReply
    prompt: str


class JudgmentListed(TypedDict):
    """A judgment with its times, and why it was rejected if it was."""

    judgment_id: str
    item_id: str
    judgment: JudgmentReply
    seq: int
    at_ms: int
    active_ms: int
    repeat: bool
    rejected: str | None
    rejected_by: str | None
    rejected_at_ms: int | None
    prompt: str


class JudgmentReply(TypedDict):
    """A judgment; raters get letters in place of the answers' ids."""

    pair_id: str
    rater_id: str
    left: str
    right: NotRequired[str | None]
    answer: int | None
    both_bad: bool
    skip: bool
    skip_reason: str
    ranking: list[list[str]] | None
    shown: list[str]
    aspects: dict[str, int]
    rationale: str
    edited_text: str | None
    flags: list[str]
    answer_flags: NotRequired[dict[str, list[str]] | None]
    criteria: NotRequired[dict[str, bool | int | str | dict[str, bool | int | str]] | None]
    spans: NotRequired[list[MarkedSpan] | None]
    links: NotRequired[list[str] | None]
    guideline_version: str
    seconds_active: float | None
    kind: Literal["human", "simulated", "model"]
    judge: NotRequired[dict[str, Any] | None]
    task: NotRequired[Literal["rate", "review", "classify"] | None]
    value: NotRequired[int | str | None]


class JudgmentStored(TypedDict):
    """A judgment is on disk. `replayed`: it was there already."""

    judgment_id: str
    judgment: JudgmentReply
    replayed: bool


class JudgmentStoredAndNext(TypedDict):
    """The same, with the rater's next pair."""

    judgment_id: str
    judgment: JudgmentReply
    replayed: bool
    next: ShownPair | None


class LastDay(TypedDict):
    """Judgments of the last 24 hours, and of how many raters."""

    judgments: int
    raters: int


class LoggedIn(TypedDict):
    """A session has begun."""

    csrf_token: str
    rater_id: str
    role: Literal["rater", "reviewer", "observer", "lead"]


class LoginWithCode(TypedDict):
    """The same, with a code where the account has a second factor."""

    username: str
    password: str
    code: NotRequired[str]


class LotInspected(TypedDict):
    """A lot that is inspected by a sample, or by what was flagged in it, and what came of it."""

    batch: str
    lot: int
    sample: int
    most_defects: int
    passed: bool | None
    defects: int
    flagged: bool
    inspected: int


class MailCode(TypedDict):
    """The code that was sent to an address."""

    code: str


class MarkedSpan(TypedDict):
    """A marked passage of an answer; offsets in code points of its raw text."""

    completion: str
    start: int
    end: int
    label: str
    value: int
    text: str
    comment: str


class Me(TypedDict):
    """The rater, their own count and work, and the judgment that undo would take back."""

    rater_id: str
    name: str
    role: Literal["rater", "reviewer", "observer", "lead"]
    csrf_token: str
    guideline_version: str
    guidelines_accepted: bool
    consent_version: str
    consent_given: bool
    consent_withdrawn: bool
    progress: OwnProgress
    today: WorkDone
    all: WorkDone
    gold_agreement: GoldAgreement | None
    last_judgment: str | None
    standing: Literal["", "qualified", "failed", "stopped"]
    test: TestAttempt | None


class Move(TypedDict):
    """Pairs to move, and where to."""

    pair_ids: list[str]
    batch: str
    change: NotRequired[BatchChange]


class NewAddress(TypedDict):
    """An e-mail address."""

    email: str


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


class NewPasswordShown(TypedDict):
    """A password, which is shown once."""

    password: str


class NewStanding(TypedDict):
    """Whether a rater is given work, and why."""

    standing: Literal["", "qualified", "stopped"]
    reason: NotRequired[str]


class NewText(TypedDict):
    """A text to publish, and the name of its version."""

    text: str
    version: str


class NoteByWhom(TypedDict):
    """A message, and who wrote it."""

    at_ms: int
    by_rater: bool
    by_id: str
    text: str


class OwnAddress(TypedDict):
    """Whether the campaign sends e-mail, and the rater's address, if they gave one."""

    offered: bool
    email: str | None
    confirmed: bool


class OwnData(TypedDict):
    """Everything that the store has about a rater."""

    account: dict[str, Any]
    acceptances: list[dict[str, Any]]
    identities: list[dict[str, Any]]
    sessions: list[dict[str, Any]]
    email: list[dict[str, Any]]
    hours: list[dict[str, Any]]
    judgments: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    drafts: list[dict[str, Any]]
    messages: list[dict[str, Any]]
    conversations: list[dict[str, Any]]


class OwnNote(TypedDict):
    """A message of the rater's, or of a lead."""

    at_ms: int
    mine: bool
    text: str


class OwnProgress(TypedDict):
    """A rater's own count, and their goal."""

    done: int
    goal_per_day: int | None


class OwnThread(TypedDict):
    """A rater's messages with the leads about a pair."""

    item_id: str
    prompt: str
    notes: list[OwnNote]


class PairAgainstTheRest(TypedDict):
    """A training pair that pulls against the rest, and the raters who prefer its chosen answer."""

    item_id: str
    prompt: str
    pull: float
    raters: list[str]


class PairCorrected(TypedDict):
    """A pair, and its new version's id."""

    pair_id: str
    replaced_by: str
    gold: bool


class PairIds(TypedDict):
    """Some pairs."""

    pair_ids: list[str]


class PairPreviewed(TypedDict):
    """A pair of an uploaded file, as raters would see it."""

    pair_id: str
    messages: list[RenderedMessage]
    completions: list[str]


class Passage(TypedDict):
    """A passage of an answer as the page shows it; offsets in code points of its text."""

    answer: str
    start: int
    end: int
    text: str


class PassagePlace(TypedDict):
    """Raw offsets of a passage; null where they are not certain."""

    start: int | None
    end: int | None


class PasswordStrength(TypedDict):
    """How hard a password is to guess."""

    score: int
    refusal: str


class PastJudgmentOpened(TypedDict):
    """A judgment with its pair."""

    judgment_id: str
    judgment: JudgmentReply
    pair: ShownPair


class PresentDay(TypedDict):
    """A rater's day (UTC): when they began and ended, and how long they paused between."""

    rater_id: str
    day: str
    first_ms: int
    last_ms: int
    breaks: int
    break_seconds: float


class PublishedFigure(TypedDict):
    """A figure of a paper, to compare with."""

    what: str
    figure: str


class PullsFound(TypedDict):
    """A reward model's report on its training pairs, and what of it is still in the campaign."""

    report: str
    problem: str
    pairs: int
    against: int
    rows: list[PairAgainstTheRest]
    raters: list[RaterAgainstTheRest]


class RaterAgainstTheRest(TypedDict):
    """The share of a rater's training pairs that pull against the rest."""

    rater: str
    value: float
    interval: list[float]
    n: int


class RaterChange(TypedDict):
    """Changes to a rater; None changes nothing."""

    pool: NotRequired[str | None]
    disabled: NotRequired[bool | None]
    role: NotRequired[Literal["rater", "reviewer", "observer", "lead"] | None]


class RaterListed(TypedDict):
    """A rater."""

    id: str
    name: str
    kind: Literal["human", "simulated", "model"]
    role: Literal["rater", "reviewer", "observer", "lead"]
    disabled: bool
    pool: str
    standing: Literal["", "qualified", "failed", "stopped"]
    standing_note: str
    erased: bool
    consent_withdrawn: ConsentGone | None


class RatersThread(TypedDict):
    """A rater's messages with the leads, as leads see them."""

    item_id: str
    rater_id: str
    prompt: str
    waits: bool
    notes: list[NoteByWhom]


class Reject(TypedDict):
    """Judgments to reject, and why."""

    selection: Selection
    reason: str
    again: NotRequired[bool]


class Rejected(TypedDict):
    """How many judgments were rejected."""

    rejected: int


class RejectedJudgment(TypedDict):
    """A rater's judgment that a lead rejected."""

    judgment_id: str
    item_id: str
    at_ms: int
    reason: str | None
    rejected_at_ms: int | None
    prompt: str
    judgment: JudgmentReply


class RejectionEffect(TypedDict):
    """What rejecting judgments would do."""

    judgments: int
    repeats: int
    skips: int
    gold: int
    items: int
    raters: int
    active_seconds: float
    requeued: int
    unjudged: int


class RenderedMessage(TypedDict):
    """A message as safe HTML."""

    role: Literal["system", "user", "assistant", "tool"]
    html: str


class Restored(TypedDict):
    """How many pairs were restored."""

    restored: int


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


class SessionListed(TypedDict):
    """One of a rater's sessions."""

    began_at_ms: int
    current: bool


class Settled(TypedDict):
    """A settled answer, and the next pair that waits."""

    judgment: JudgmentReply
    next: str | None


class SettledOtherwise(TypedDict):
    """A pair that a lead settled differently from the rater's answer."""

    item_id: str
    prompt: str
    at_ms: int
    judgment: JudgmentReply
    settled: JudgmentReply


class ShownAnswer(TypedDict):
    """An answer: its text, and that as safe HTML. `id`: its letter; for leads, the completion's id."""

    id: str
    text: str
    html: str


class ShownMessage(TypedDict):
    """A message of the prompt."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    html: str


class ShownPair(TypedDict):
    """A pair, a ranking or a single answer, as a rater gets it."""

    pair_id: str
    task: Literal["pair", "ranking", "rate", "review", "classify"]
    messages: list[ShownMessage]
    left: ShownAnswer
    right: ShownAnswer | None
    completions: list[ShownAnswer]
    draft: dict[str, Any] | None
    flagged: list[str]


class SinceLastExport(TypedDict):
    """What has changed since the last export."""

    at_ms: int
    where: str
    new: int
    changed: int
    gone: int
    settled: int


class StrengthOfInvited(TypedDict):
    """A password for an invited account, as far as it is typed."""

    token: str
    username: NotRequired[str]
    password: str


class TakeBack(TypedDict):
    """Rejected judgments that are to count again."""

    judgment_ids: list[str]


class TakenBack(TypedDict):
    """How many rejections were taken back; `stay`: their raters have judged the pair again since."""

    taken_back: int
    stay: int


class TestAttempt(TypedDict):
    """How far the test before work begins is."""

    number: int
    done: int
    questions: int
    attempts: int


class Text(TypedDict):
    """A text of guidelines or consent."""

    text: str


class TurnReply(TypedDict):
    """A turn of a conversation; once it is `ready`, `pair` is to be judged."""

    turn_id: str
    conversation_id: str
    number: int
    state: Literal["waiting", "working", "ready", "failed"]
    error: str
    judged: bool
    messages: list[ShownMessage]
    pair: ShownPair | None


class TypedPassword(TypedDict):
    """A new password, as far as it is typed."""

    password: str


class Undone(TypedDict):
    """The pair to judge again, and the judgment that undo would take back next."""

    pair: ShownPair
    last_judgment: str | None


class Uploaded(TypedDict):
    """A file's pairs, how many of them are new, and, in a preview, the first of them; `notes`: how its rows were read, and which columns were ignored."""

    pairs: int
    new: int
    shown: list[PairPreviewed]
    notes: list[str]


class Withdraw(TypedDict):
    """Pairs to withdraw, and why."""

    pair_ids: list[str]
    reason: NotRequired[str]


class Withdrawal(TypedDict):
    """Whether the rater also objects to the use of their judgments."""

    judgments: NotRequired[bool]


class Withdrawn(TypedDict):
    """How many pairs were withdrawn."""

    withdrawn: int


class WithdrawnPair(TypedDict):
    """A pair that is given to nobody."""

    pair_id: str
    reason: str
    replaced_by: str | None
    at_ms: int


class WorkDone(TypedDict):
    """Judgments since some time, and their active and idle seconds."""

    judged: int
    active_seconds: float
    idle_seconds: float
    pace_per_hour: NotRequired[float | None]


class WorkInHour(TypedDict):
    """A rater's work in one hour."""

    at_ms: int
    judged: int
    active_seconds: float
    idle_seconds: float


class WorkReport(TypedDict):
    """Work by rater, day and batch; seconds by which each rater's clock is ahead of the server's."""

    work: list[WorkedDay]
    days: list[PresentDay]
    clocks: dict[str, float]


class WorkedDay(TypedDict):
    """A rater's work on a day (UTC) in a batch; `batch` null: time on answers that were changed or taken back."""

    rater_id: str
    day: str
    batch: str | None
    judgments: int
    rejected: int
    active_seconds: float
    idle_seconds: float


class Operations(Connection):
    """One method for each operation."""

    def login(self, body: LoginWithCode) -> LoggedIn:
        """Start a session. Wrong names, passwords and codes get one reply; a missing code, after the right password, 428."""
        reply: LoggedIn = self.request("POST", "/api/login", body=body)
        return reply

    def accept(self, body: InvitationLogin) -> LoggedIn:
        """Create the account of an invitation and start its session. Each invitation works once."""
        reply: LoggedIn = self.request("POST", "/api/invitations/accept", body=body)
        return reply

    def strength_of_invited(self, body: StrengthOfInvited) -> PasswordStrength:
        """How hard a password is to guess, for those with an invitation."""
        reply: PasswordStrength = self.request("POST", "/api/invitations/strength", body=body)
        return reply

    def logout(self) -> Done:
        """End the session."""
        reply: Done = self.request("POST", "/api/logout")
        return reply

    def set_password(self, body: NewPassword) -> Done:
        """Change one's own password; one's other sessions end."""
        reply: Done = self.request("POST", "/api/password", body=body)
        return reply

    def strength(self, body: TypedPassword) -> PasswordStrength:
        """How hard a new password is to guess."""
        reply: PasswordStrength = self.request("POST", "/api/password/strength", body=body)
        return reply

    def has_second_factor(self) -> FactorState:
        """Whether the account has one, and whether it must."""
        reply: FactorState = self.request("GET", "/api/second-factor")
        return reply

    def begin_second_factor(self) -> FactorBegun:
        """A new secret, which counts once a code of it is confirmed."""
        reply: FactorBegun = self.request("POST", "/api/second-factor")
        return reply

    def confirm_second_factor(self, body: Code) -> Done:
        """Make it count from now on."""
        reply: Done = self.request("POST", "/api/second-factor/confirm", body=body)
        return reply

    def remove_second_factor(self, body: Code) -> Done:
        """Remove it, with the password and a code."""
        reply: Done = self.request("POST", "/api/second-factor/remove", body=body)
        return reply

    def sessions(self) -> list[SessionListed]:
        """When each of the rater's sessions began."""
        reply: list[SessionListed] = self.request("GET", "/api/sessions")
        return reply

    def end_sessions(self) -> Done:
        """End the rater's other sessions."""
        reply: Done = self.request("POST", "/api/sessions/end-others")
        return reply

    def who_am_i(self, *, since_ms: int | None = None) -> Me:
        """The rater, their own count and work, and the judgment that undo would take back."""
        reply: Me = self.request("GET", "/api/me", query={"since_ms": since_ms})
        return reply

    def hours(self, *, since_ms: int) -> list[WorkInHour]:
        """The rater's own work by hour, so that a page can show it by the days of their time zone."""
        reply: list[WorkInHour] = self.request("GET", "/api/hours", query={"since_ms": since_ms})
        return reply

    def accept_guidelines(self, body: Acceptance) -> Done:
        """The rater has read the guidelines."""
        reply: Done = self.request("POST", "/api/guidelines/accept", body=body)
        return reply

    def give_consent(self, body: Acceptance) -> Done:
        """The rater agrees to the use of their judgments."""
        reply: Done = self.request("POST", "/api/consent/accept", body=body)
        return reply

    def next_pair(self, *, holding: str = "") -> ShownPair | None:
        """The rater's next pair, or null; nobody gets one before accepting the consent and the guidelines."""
        reply: ShownPair | None = self.request("GET", "/api/next", query={"holding": holding})
        return reply

    def shown(self, pair_id: str, body: ClientClock) -> Done:
        """The pair is on the rater's screen; their lease starts."""
        reply: Done = self.request("POST", f"/api/shown/{quote(str(pair_id), safe='')}", body=body)
        return reply

    def save_draft(self, pair_id: str, body: dict[str, Any]) -> Done:
        """Store a draft and renew its lease."""
        reply: Done = self.request("PUT", f"/api/drafts/{quote(str(pair_id), safe='')}", body=body)
        return reply

    def locate(self, pair_id: str, body: Passage) -> PassagePlace:
        """The raw offsets of a passage of an answer as the page shows it; null where they are not certain."""
        reply: PassagePlace = self.request("POST", f"/api/passages/{quote(str(pair_id), safe='')}", body=body)
        return reply

    def judge(self, body: dict[str, Any]) -> JudgmentStoredAndNext:
        """Store a judgment; the reply means that it is on disk. `holding` may list the pairs that the client already has."""
        reply: JudgmentStoredAndNext = self.request("POST", "/api/judgments", body=body)
        return reply

    def history(self, *, before: int | None = None, limit: int = 50) -> list[JudgmentInHistory]:
        """The rater's current judgments, latest first; `before`: the `seq` of the last one that the client has."""
        reply: list[JudgmentInHistory] = self.request("GET", "/api/history", query={"before": before, "limit": limit})
        return reply

    def feedback(self) -> list[SettledOtherwise]:
        """The latest pairs that a lead settled differently from the rater's answer, with the lead's reasons."""
        reply: list[SettledOtherwise] = self.request("GET", "/api/feedback")
        return reply

    def rejections(self) -> list[RejectedJudgment]:
        """The rater's judgments that a lead rejected, latest first, with the reasons."""
        reply: list[RejectedJudgment] = self.request("GET", "/api/rejections")
        return reply

    def past_judgment(self, judgment_id: str) -> PastJudgmentOpened:
        """One of the rater's judgments, and its pair with the sides as judged."""
        reply: PastJudgmentOpened = self.request("GET", f"/api/judgments/{quote(str(judgment_id), safe='')}")
        return reply

    def amend(self, judgment_id: str, body: dict[str, Any]) -> JudgmentStored:
        """Replace a judgment's answer. The body is a judgment's, without `pair_id`."""
        reply: JudgmentStored = self.request("PUT", f"/api/judgments/{quote(str(judgment_id), safe='')}", body=body)
        return reply

    def undo(self, judgment_id: str) -> Undone:
        """Undo a judgment: `pair` is to be judged again, with the old answer as its draft."""
        reply: Undone = self.request("POST", f"/api/judgments/{quote(str(judgment_id), safe='')}/undo")
        return reply

    def ask(self, body: dict[str, Any]) -> TurnReply | None:
        """Send a turn. Sending it again is harmless; a failed turn is queued again."""
        reply: TurnReply | None = self.request("POST", "/api/turns", body=body)
        return reply

    def latest(self) -> TurnReply | None:
        """The rater's latest turn, so that a reopened page resumes there."""
        reply: TurnReply | None = self.request("GET", "/api/turns/latest")
        return reply

    def look(self, turn_id: str) -> TurnReply | None:
        """One of the rater's turns."""
        reply: TurnReply | None = self.request("GET", f"/api/turns/{quote(str(turn_id), safe='')}")
        return reply

    def documents(self) -> DocumentsRead:
        """The guidelines and the consent as raters read them."""
        reply: DocumentsRead = self.request("GET", "/api/documents")
        return reply

    def lead_publications(self, document: Literal["guidelines", "consent"]) -> DocumentVersions:
        """The current text and all versions, latest first, each with the number of raters whose last acceptance it was."""
        reply: DocumentVersions = self.request("GET", f"/api/lead/documents/{quote(str(document), safe='')}")
        return reply

    def lead_publish(self, document: Literal["guidelines", "consent"], body: NewText) -> DocumentVersion:
        """Publish a text: every rater must accept it before their next judgment, whatever its version is called."""
        reply: DocumentVersion = self.request("POST", f"/api/lead/documents/{quote(str(document), safe='')}", body=body)
        return reply

    def lead_one_version(self, document: Literal["guidelines", "consent"], seq: int) -> DocumentVersionRead:
        """One version, with its text."""
        reply: DocumentVersionRead = self.request(
            "GET", f"/api/lead/documents/{quote(str(document), safe='')}/{quote(str(seq), safe='')}"
        )
        return reply

    def lead_preview(self, document: Literal["guidelines", "consent"], body: Text) -> DocumentPreview:
        """A text as raters would see it, and how many of them would have to accept it."""
        reply: DocumentPreview = self.request(
            "POST", f"/api/lead/documents/{quote(str(document), safe='')}/preview", body=body
        )
        return reply

    def withdraw_consent(self, body: Withdrawal) -> Done:
        """Withdraw the rater's consent: they get no more work, and the lead sees it. `judgments`: they also object to the use of their judgments."""
        reply: Done = self.request("POST", "/api/consent/withdraw", body=body)
        return reply

    def own_data(self) -> OwnData:
        """The rater's data in the store, as a file."""
        reply: OwnData = self.request("GET", "/api/own-data")
        return reply

    def lead_preview_erasure(self, rater_id: str, *, judgments: bool = False) -> ErasureReply:
        """What an erasure would do. `judgments`: reject the rater's judgments too."""
        reply: ErasureReply = self.request(
            "GET", f"/api/lead/raters/{quote(str(rater_id), safe='')}/erase", query={"judgments": judgments}
        )
        return reply

    def lead_erase(self, rater_id: str, body: Withdrawal) -> ErasureReply:
        """Erase a rater's data: only the pseudonym stays, with the judgments or without."""
        reply: ErasureReply = self.request("POST", f"/api/lead/raters/{quote(str(rater_id), safe='')}/erase", body=body)
        return reply

    def lead_status(self) -> CampaignStatus:
        """Counts, the last day's pace, and the days left at that pace."""
        reply: CampaignStatus = self.request("GET", "/api/lead/status")
        return reply

    def lead_agreement(self) -> Figures:
        """Agreement of the raters beside published figures, and each rater's reliability."""
        reply: Figures = self.request("GET", "/api/lead/agreement")
        return reply

    def lead_raters(self) -> list[RaterListed]:
        """All raters; `consent_withdrawn`: when, and whether for their judgments too, or null."""
        reply: list[RaterListed] = self.request("GET", "/api/lead/raters")
        return reply

    def lead_change(self, rater_id: str, body: RaterChange) -> Done:
        """Move a rater to another pool; enable or disable them. Nobody disables themselves: a lead is always left."""
        reply: Done = self.request("PUT", f"/api/lead/raters/{quote(str(rater_id), safe='')}", body=body)
        return reply

    def lead_stand(self, rater_id: str, body: NewStanding) -> Done:
        """Let a rater continue (`qualified`), stop them, or test them again (empty)."""
        reply: Done = self.request("POST", f"/api/lead/raters/{quote(str(rater_id), safe='')}/standing", body=body)
        return reply

    def lead_reset(self, rater_id: str) -> NewPasswordShown:
        """A new password for a rater, shown once; their sessions end, and a disabled rater is enabled."""
        reply: NewPasswordShown = self.request("POST", f"/api/lead/raters/{quote(str(rater_id), safe='')}/password")
        return reply

    def lead_make_invitations(self, body: Invitation) -> InvitationsMade:
        """The paths of links that create one account each; `token` and `path` are those of the first."""
        reply: InvitationsMade = self.request("POST", "/api/lead/invitations", body=body)
        return reply

    def lead_all_invitations(self) -> list[InvitationListed]:
        """All invitations, the latest first, without their links."""
        reply: list[InvitationListed] = self.request("GET", "/api/lead/invitations")
        return reply

    def lead_revoke(self, invitation_id: str) -> Done:
        """End an invitation before it is used."""
        reply: Done = self.request("DELETE", f"/api/lead/invitations/{quote(str(invitation_id), safe='')}")
        return reply

    def lead_batches(self) -> list[BatchListed]:
        """All batches, with their progress. `steered`: not that of conversations, which belong to their raters. `without_raters`: nobody is in the batch's pool."""
        reply: list[BatchListed] = self.request("GET", "/api/lead/batches")
        return reply

    def lead_create_batch(self, body: NewBatch) -> BatchSettings:
        """Create an empty batch, to upload pairs to or move pairs to."""
        reply: BatchSettings = self.request("POST", "/api/lead/batches", body=body)
        return reply

    def lead_change_batch(self, body: BatchChange, *, name: str = "") -> BatchSettings:
        """Change a batch; pairs already leased stay with their raters."""
        reply: BatchSettings = self.request("PUT", "/api/lead/batches", query={"name": name}, body=body)
        return reply

    def lead_move_pairs(self, body: Move) -> BatchSettings:
        """Move pairs to a batch, which is created or changed; pairs already leased stay with their raters."""
        reply: BatchSettings = self.request("POST", "/api/lead/pairs/move", body=body)
        return reply

    def lead_withdraw_pairs(self, body: Withdraw) -> Withdrawn:
        """Withdraw pairs: nobody gets them, they count nowhere, and they can be restored."""
        reply: Withdrawn = self.request("POST", "/api/lead/pairs/withdraw", body=body)
        return reply

    def lead_restore_pairs(self, body: PairIds) -> Restored:
        """Restore withdrawn pairs, with their judgments."""
        reply: Restored = self.request("POST", "/api/lead/pairs/restore", body=body)
        return reply

    def lead_correct_pairs(self, body: dict[str, Any]) -> list[PairCorrected]:
        """Replace pairs by new versions: `pairs`, records with the ids of the old ones, whose judgments stay, unused."""
        reply: list[PairCorrected] = self.request("POST", "/api/lead/pairs/correct", body=body)
        return reply

    def lead_withdrawn_pairs(self) -> list[WithdrawnPair]:
        """Withdrawn and corrected pairs."""
        reply: list[WithdrawnPair] = self.request("GET", "/api/lead/pairs/withdrawn")
        return reply

    def lead_gold(self) -> list[GoldItem]:
        """Pairs with a known answer."""
        reply: list[GoldItem] = self.request("GET", "/api/lead/gold")
        return reply

    def lead_set_gold(self, pair_id: str, body: GoldAnswer) -> GoldItem:
        """Make a pair gold: every rater gets it once, and it looks like any other."""
        reply: GoldItem = self.request("PUT", f"/api/lead/gold/{quote(str(pair_id), safe='')}", body=body)
        return reply

    def lead_remove_gold(self, pair_id: str) -> Done:
        """Make a gold pair an ordinary one, whose judgments are votes."""
        reply: Done = self.request("DELETE", f"/api/lead/gold/{quote(str(pair_id), safe='')}")
        return reply

    def lead_disputes(self, *, limit: int = 50, offset: int = 0, adjudicated: bool = False) -> list[DisputeListed]:
        """Pairs that wait for a lead: raters disagree, opposite sides first, or skipped them; with `adjudicated`, the settled ones. Votes are counted for the sides as this lead sees the pair."""
        reply: list[DisputeListed] = self.request(
            "GET", "/api/lead/disputes", query={"limit": limit, "offset": offset, "adjudicated": adjudicated}
        )
        return reply

    def lead_draw_sample(self, body: Sample) -> Drawn:
        """Draw pairs about which all raters agree, at random, to be reviewed beside the disagreements."""
        reply: Drawn = self.request("POST", "/api/lead/disputes/sample", body=body)
        return reply

    def lead_dispute(self, pair_id: str) -> DisputeRead:
        """A pair to settle, with sides drawn for this lead, and the raters' answers."""
        reply: DisputeRead = self.request("GET", f"/api/lead/disputes/{quote(str(pair_id), safe='')}")
        return reply

    def lead_adjudicate(self, body: dict[str, Any]) -> Settled:
        """Settle a pair or a single answer; the body is a judgment's. The raters' own judgments do not change."""
        reply: Settled = self.request("POST", "/api/lead/adjudications", body=body)
        return reply

    def lead_adjudications(self) -> list[JudgmentReply]:
        """All settled answers."""
        reply: list[JudgmentReply] = self.request("GET", "/api/lead/adjudications")
        return reply

    def lead_remove_settlement(self, pair_id: str) -> Done:
        """Withdraw a settled answer: the votes decide again."""
        reply: Done = self.request("DELETE", f"/api/lead/adjudications/{quote(str(pair_id), safe='')}")
        return reply

    def lead_items(
        self,
        *,
        after: int = -1,
        limit: int = 50,
        text: str = "",
        id: str = "",
        batch: str | None = None,
        rater: str = "",
        flag: str = "",
        answer: Literal["", "first", "second", "neither", "skip"] = "",
        agreement: Literal["", "one", "agree", "tie", "side"] = "",
        state: Literal["", "unjudged", "open", "full", "gold", "settled", "withdrawn", "rejected"] = "",
        shortest: int | None = None,
        longest: int | None = None,
    ) -> ItemsFound:
        """A page of the items that a search is for, in campaign order. `after`: where the next page begins; null: the end."""
        reply: ItemsFound = self.request(
            "GET",
            "/api/lead/items",
            query={
                "after": after,
                "limit": limit,
                "text": text,
                "id": id,
                "batch": batch,
                "rater": rater,
                "flag": flag,
                "answer": answer,
                "agreement": agreement,
                "state": state,
                "shortest": shortest,
                "longest": longest,
            },
        )
        return reply

    def lead_item(self, pair_id: str) -> ItemRead:
        """An item: its texts, its judgments, rejected ones too, and its history."""
        reply: ItemRead = self.request("GET", f"/api/lead/items/{quote(str(pair_id), safe='')}")
        return reply

    def lead_judgments_of_rater(
        self, rater_id: str, *, before: int | None = None, limit: int = 50
    ) -> list[JudgmentListed]:
        """A rater's judgments, rejected ones too, latest first; `before`: the `seq` of the last one that the client has."""
        reply: list[JudgmentListed] = self.request(
            "GET",
            f"/api/lead/raters/{quote(str(rater_id), safe='')}/judgments",
            query={"before": before, "limit": limit},
        )
        return reply

    def lead_preview_rejection(self, body: Selection) -> RejectionEffect:
        """What rejecting these judgments would do."""
        reply: RejectionEffect = self.request("POST", "/api/lead/rejections/preview", body=body)
        return reply

    def lead_reject(self, body: Reject) -> Rejected:
        """Reject judgments: they count nowhere, their places are free, and their pairs are given out again."""
        reply: Rejected = self.request("POST", "/api/lead/rejections", body=body)
        return reply

    def lead_take_back(self, body: TakeBack) -> TakenBack:
        """Take rejections back: the judgments count again. `stay`: those whose raters have judged the pair again since."""
        reply: TakenBack = self.request("POST", "/api/lead/rejections/take-back", body=body)
        return reply

    def lead_upload(self, content: bytes, *, name: str, batch: str = "", preview: bool = False) -> Uploaded:
        """Add a file's new pairs to a batch. `preview`: only count and show them."""
        reply: Uploaded = self.request(
            "POST", "/api/lead/pairs/upload", query={"name": name, "batch": batch, "preview": preview}, content=content
        )
        return reply

    def lead_work(self, *, first: str = "2000-01-01", last: str = "2999-12-31") -> WorkReport:
        """Work by rater, day (UTC) and batch; seconds by which each rater's clock is ahead of the server's."""
        reply: WorkReport = self.request("GET", "/api/lead/work", query={"first": first, "last": last})
        return reply

    def lead_work_csv(self, *, first: str = "2000-01-01", last: str = "2999-12-31", rate: float = 0.0) -> bytes:
        """The same as a table; rejected work is paid too."""
        reply: bytes = self.request("GET", "/api/lead/work.csv", query={"first": first, "last": last, "rate": rate})
        return reply

    def lead_days_csv(self, *, first: str = "2000-01-01", last: str = "2999-12-31", rate: float = 0.0) -> bytes:
        """A row a rater and day, for payroll: begin and end, hours, breaks, rework, pay, and the difference of clocks."""
        reply: bytes = self.request("GET", "/api/lead/days.csv", query={"first": first, "last": last, "rate": rate})
        return reply

    def lead_audit_csv(self, *, first: str = "2000-01-01", last: str = "2999-12-31") -> bytes:
        """The log: who did what and when, under pseudonyms and without what anybody wrote."""
        reply: bytes = self.request("GET", "/api/lead/audit.csv", query={"first": first, "last": last})
        return reply

    def lead_since(self) -> SinceLastExport | None:
        """What has changed since the last export."""
        reply: SinceLastExport | None = self.request("GET", "/api/lead/export")
        return reply

    def lead_download(self) -> bytes:
        """Preferences, judgments and the report in one file."""
        reply: bytes = self.request("GET", "/api/lead/export.zip")
        return reply

    def media(self, sha256: str) -> bytes:
        """An image or recording; a range of its bytes, where a player asks for one."""
        reply: bytes = self.request("GET", f"/api/media/{quote(str(sha256), safe='')}")
        return reply

    def lead_media_names(self, *, after: str = "") -> FilesListed:
        """The files in the store, by name, after a name; and the limits of a file."""
        reply: FilesListed = self.request("GET", "/api/lead/media", query={"after": after})
        return reply

    def lead_add_media(self, content: bytes, *, name: str, alt: str = "") -> FileAdded:
        """Add an image or recording under the name by which pairs refer to it; it is checked, and cleaned of EXIF."""
        reply: FileAdded = self.request("POST", "/api/lead/media", query={"name": name, "alt": alt}, content=content)
        return reply

    def lead_describe(self, body: Description) -> Done:
        """Change what pairs without a description of their own say of a file."""
        reply: Done = self.request("PUT", "/api/lead/media", body=body)
        return reply

    def own_notes(self) -> list[OwnThread]:
        """The rater's threads with the leads, the latest first."""
        reply: list[OwnThread] = self.request("GET", "/api/notes")
        return reply

    def write_note(self, body: NewNote) -> Done:
        """Write to the leads about a pair that the rater has, or has had."""
        reply: Done = self.request("POST", "/api/notes", body=body)
        return reply

    def lead_notes_for_leads(self, *, item_id: str | None = None) -> list[RatersThread]:
        """The threads that wait for a lead's answer; with an `item_id`, all of that pair's."""
        reply: list[RatersThread] = self.request("GET", "/api/lead/notes", query={"item_id": item_id})
        return reply

    def lead_answer_note(self, body: Answer) -> Done:
        """Answer a rater, or write to them first, about a pair that they have had."""
        reply: Done = self.request("POST", "/api/lead/notes", body=body)
        return reply

    def lead_duels(self) -> list[DuelSoFar]:
        """Each comparison: `state` is first or second (is better), no difference (above `most`), or undecided (about `more` pairs are missing)."""
        reply: list[DuelSoFar] = self.request("GET", "/api/lead/duels")
        return reply

    def lead_pulls(self) -> list[PullsFound]:
        """Each report: the pairs from which learning raised the others' loss most, with the raters who prefer their chosen answer, and each rater's share of such pairs."""
        reply: list[PullsFound] = self.request("GET", "/api/lead/pulls")
        return reply

    def own_address(self) -> OwnAddress:
        """The rater's address, and whether it is confirmed."""
        reply: OwnAddress = self.request("GET", "/api/mail")
        return reply

    def set_address(self, body: NewAddress) -> Done:
        """Set one's address; nothing but a code is sent to it until it is confirmed."""
        reply: Done = self.request("PUT", "/api/mail", body=body)
        return reply

    def forget_address(self) -> Done:
        """Delete one's address: no more mails."""
        reply: Done = self.request("DELETE", "/api/mail")
        return reply

    def confirm_address(self, body: MailCode) -> Done:
        """Confirm one's address: from now on, mails about work are sent to it."""
        reply: Done = self.request("POST", "/api/mail/confirm", body=body)
        return reply

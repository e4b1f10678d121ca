"""The API's replies to leads; see `labeling_ui.web.replies`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from labeling_ui.store.raters import RaterKind, Role
from labeling_ui.store.work.standing import Standing
from labeling_ui.web.replies import JudgmentReply, Reply, ShownAnswer, ShownPair


class DocumentVersion(Reply):
    """A published version; `by` is null of the configuration's and the command line's."""

    seq: int
    id: str
    version: str
    by: str | None
    configured: bool
    at_ms: int
    characters: int


class DocumentVersionCounted(DocumentVersion):
    """The same, with the number of raters who accepted it last."""

    accepted: int


class DocumentVersions(Reply):
    """The text that counts, how many raters must accept it, and all versions, the latest first."""

    text: str
    raters: int
    versions: list[DocumentVersionCounted]


class DocumentVersionRead(DocumentVersion):
    """A version with its text."""

    text: str
    html: str


class DocumentPreview(Reply):
    """A text as raters would see it, and how many would have to accept it."""

    html: str
    changed: bool
    raters: int


class NoteByWhom(Reply):
    """A message, and who wrote it."""

    at_ms: int
    by_rater: bool
    by_id: str
    text: str


class RatersThread(Reply):
    """A rater's messages with the leads, as leads see them."""

    item_id: str
    rater_id: str
    prompt: str
    waits: bool
    notes: list[NoteByWhom]


class ErasureReply(Reply):
    """What an erasure did, or would do."""

    rater_id: str
    judgments: int
    kept: int
    conversations: int
    redacted: int


class LastDay(Reply):
    """Judgments of the last 24 hours, and of how many raters."""

    judgments: int
    raters: int


class CampaignStatus(Reply):
    """Counts of everything, the last day's pace, and the days left at that pace."""

    pairs: int
    items: int
    items_judged: int
    single_answers: int
    single_answers_judged: int
    withdrawn: int
    judgments: dict[str, int]
    """by the kind of rater"""
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


class PublishedFigure(Reply):
    """A figure of a paper, to compare with."""

    what: str
    figure: str


class ConsentGone(Reply):
    """When consent was withdrawn, and whether for the judgments too."""

    at_ms: int
    judgments: bool


class RaterListed(Reply):
    """A rater."""

    id: str
    name: str
    kind: RaterKind
    role: Role
    disabled: bool
    pool: str
    standing: Standing
    standing_note: str
    erased: bool
    consent_withdrawn: ConsentGone | None


class NewPasswordShown(Reply):
    """A password, which is shown once."""

    password: str


class InvitationMade(Reply):
    """A link that creates one account."""

    name: str
    path: str


class InvitationsMade(Reply):
    """Links that create one account each; `token` and `path` are those of the first."""

    token: str
    path: str
    invitations: list[InvitationMade]


class InvitationListed(Reply):
    """An invitation, without its link."""

    id: str
    name: str
    role: Role
    pool: str
    made_at_ms: int
    expires_at_ms: int
    state: Literal["open", "used", "expired", "revoked"]
    used_by: str | None
    email: str
    subject: str


class BatchSettings(Reply):
    """A batch and its settings."""

    name: str
    priority: int
    pool: str
    overlap: int
    paused: bool
    deadline: str
    goal: int


class LotInspected(Reply):
    """A lot that is inspected by a sample, or by what was flagged in it, and what came of it."""

    batch: str
    lot: int
    sample: int
    most_defects: int
    passed: bool | None
    defects: int
    flagged: bool
    inspected: int


class BatchListed(BatchSettings):
    """The same, with its progress."""

    pairs: int
    single_answers: int
    judged: int
    wanted: int
    steered: bool
    inspection: LotInspected | None
    without_raters: bool
    """nobody is in the batch's pool"""


class Withdrawn(Reply):
    """How many pairs were withdrawn."""

    withdrawn: int


class Restored(Reply):
    """How many pairs were restored."""

    restored: int


class PairCorrected(Reply):
    """A pair, and its new version's id."""

    pair_id: str
    replaced_by: str
    gold: bool


class WithdrawnPair(Reply):
    """A pair that is given to nobody."""

    pair_id: str
    reason: str
    replaced_by: str | None
    at_ms: int


class GoldItem(Reply):
    """An item with a known answer."""

    item_id: str
    preferred_id: str | None
    value: int | str | None


class DisputeListed(Reply):
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
    """of a single answer: how many raters gave each value"""


class Drawn(Reply):
    """How many pairs were drawn."""

    drawn: int


class DisputeRead(Reply):
    """A pair to settle, and the raters' answers."""

    pair: ShownPair
    judgments: list[JudgmentReply]
    adjudicated: JudgmentReply | None
    settled_seq: int | None
    """the event that settled it"""


class Settled(Reply):
    """A settled answer, and the next pair that waits."""

    judgment: JudgmentReply
    next: str | None


class ItemFound(Reply):
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


class ItemsFound(Reply):
    """A page of a search; `after`: where the next page begins; null: the end."""

    items: list[ItemFound]
    after: int | None


class RenderedMessage(Reply):
    """A message as safe HTML."""

    role: Literal["system", "user", "assistant", "tool"]
    html: str


class JudgmentListed(Reply):
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


class ItemHappening(Reply):
    """An event of an item's history."""

    at_ms: int
    kind: str
    rater_id: str | None
    judgment: JudgmentReply | None
    note: str


class ItemRead(ItemFound):
    """An item with everything about it."""

    messages: list[RenderedMessage]
    completions: list[ShownAnswer]
    gold_id: str | None
    gold_value: int | str | None
    settled_as: JudgmentReply | None
    withdrawn_why: str | None
    pair: dict[str, Any]
    """the pair's record"""
    judgments: list[JudgmentListed]
    history: list[ItemHappening]


class RejectionEffect(Reply):
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


class Rejected(Reply):
    """How many judgments were rejected."""

    rejected: int


class TakenBack(Reply):
    """How many rejections were taken back; `stay`: their raters have judged the pair again since."""

    taken_back: int
    stay: int


class PairPreviewed(Reply):
    """A pair of an uploaded file, as raters would see it."""

    pair_id: str
    messages: list[RenderedMessage]
    completions: list[str]


class Uploaded(Reply):
    """A file's pairs, how many of them are new, and, in a preview, the first of them; `notes`: how its rows were read, and
    which columns were ignored."""

    pairs: int
    new: int
    shown: list[PairPreviewed]
    notes: list[str]


class WorkedDay(Reply):
    """A rater's work on a day (UTC) in a batch; `batch` null: time on answers that were changed or taken back."""

    rater_id: str
    day: str
    batch: str | None
    judgments: int
    rejected: int
    active_seconds: float
    idle_seconds: float


class PresentDay(Reply):
    """A rater's day (UTC): when they began and ended, and how long they paused between."""

    rater_id: str
    day: str
    first_ms: int
    last_ms: int
    breaks: int
    break_seconds: float


class WorkReport(Reply):
    """Work by rater, day and batch; seconds by which each rater's clock is ahead of the server's."""

    work: list[WorkedDay]
    days: list[PresentDay]
    clocks: dict[str, float]


class SinceLastExport(Reply):
    """What has changed since the last export."""

    at_ms: int
    where: str
    new: int
    changed: int
    gone: int
    settled: int


class FileListed(Reply):
    """An image or recording in the store."""

    name: str
    sha256: str
    media_type: str
    width: int | None
    height: int | None
    alt: str


class FileLimits(Reply):
    """The limits of a file."""

    bytes: int
    pixels: int
    minutes: int


class FilesListed(Reply):
    """Files by name; `more`: there are others after them."""

    files: list[FileListed]
    more: bool
    limits: FileLimits


class FileAdded(Reply):
    """A file was added, or was there."""

    name: str
    new: bool
    media_type: str
    width: int | None
    height: int | None


class DuelSoFar(Reply):
    """A comparison of two policies: whether its judgments decide it yet."""

    policies: list[str]
    pairs: int
    n: int
    win_rate: float | None
    interval: list[float]
    state: Literal["first", "second", "no difference", "undecided"]
    most: float
    more: int


class PairAgainstTheRest(Reply):
    """A training pair that pulls against the rest, and the raters who prefer its chosen answer."""

    item_id: str
    prompt: str
    pull: float
    """in units of the average pair's, below 0"""
    raters: list[str]


class RaterAgainstTheRest(Reply):
    """The share of a rater's training pairs that pull against the rest."""

    rater: str
    value: float
    interval: list[float]
    n: int


class PullsFound(Reply):
    """A reward model's report on its training pairs, and what of it is still in the campaign."""

    report: str
    problem: str
    """why the report, or the configuration that names the reports, could not be read again"""
    pairs: int
    """of the report"""
    against: int
    """that pull against the rest"""
    rows: list[PairAgainstTheRest]
    raters: list[RaterAgainstTheRest]


class Figures(BaseModel):
    """Agreement of the raters beside published figures; what is measured is listed in docs/metrics.md."""

    model_config = ConfigDict(extra="allow")

    published: list[PublishedFigure]
    measuring: bool
    """newer figures are being computed"""
    age_seconds: float | None
    """of the present ones; null: there are none yet"""

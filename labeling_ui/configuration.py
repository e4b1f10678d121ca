"""The labelling stage's configuration, and the arguments of its commands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from labeling_ui.database.schema import MAX_PRIORITY
from labeling_ui.exchange.export import Format
from labeling_ui.exchange.foreign import FieldNames
from labeling_ui.exchange.foreign import Format as ForeignFormat
from labeling_ui.quality.aggregate import AggregationConfig
from labeling_ui.store.answers import MAX_CLASS_CHARACTERS, MAX_NAMES, NAME
from labeling_ui.store.pairs.inspection import InspectConfig
from labeling_ui.store.store import SESSION_HOURS, default_store_url
from labeling_ui.store.work.asking import FLAGS, MOST_BY_DIGIT, RATINGS, Criterion, FlagTarget, Questionnaire, Required
from labeling_ui.store.work.assigning import LEASE_SECONDS
from labeling_ui.store.work.standing import QualifyConfig, StopConfig
from labeling_ui.web.login.oidc_config import OidcConfig
from labeling_ui.web.mail.configuration import MailConfig
from labeling_ui.web.webhook import WebhookConfig
from labeling_ui.worker import ConverseConfig
from tiebreak.assessments import SingleTask
from tiebreak.config import Section, StageConfig, load_config, take_config_flag
from tiebreak.config.flags import group_flags
from tiebreak.config.keys import own_keys
from tiebreak.data.columns import check_columns
from tiebreak.measures.yardstick import RUBRIC
from tiebreak.runs.requirements import Requirement

S = TypeVar("S", bound=Section)


def _is_two_weeks(hours: float) -> bool:
    return hours == SESSION_HOURS


RUBRIC_STEP = 1 / 6
"""one of the rubric's six criteria"""


class SimulateConfig(Section):
    """Raters that judge by a yardstick, with noise."""

    switch: ClassVar[str | None] = "enabled"
    enabled: bool = True
    """false: people judge, and the rest of this section is not used"""
    raters: int = Field(default=3, ge=1, le=1000)
    """number of raters"""
    error_rate: float = Field(default=0.1, ge=0.0, le=1.0)
    """share of wrong judgments: the other side is chosen, or one side if the answers are equal"""
    yardstick: str = RUBRIC
    """the yardstick to judge by: rubric (the quickstart's), or package.module:function, as in *evaluate*; measure the
    policies by another one, or state that both are the same"""
    tie_threshold: float = Field(default=0.08, ge=0.0)
    """values that differ by at most this are a tie; the rubric's values go from 0 to 1, in steps of 1/6"""
    strength_step: float = Field(default=RUBRIC_STEP, gt=0.0)
    """a difference of this size means slightly better, twice this size better, three times or more much better"""
    seed: int = Field(default=0, ge=0)
    """random seed for the errors, combined with the rater and the pair"""

    @model_validator(mode="after")
    def _possible(self) -> SimulateConfig:
        if self.yardstick != RUBRIC and ":" not in self.yardstick:
            raise ValueError(f"yardstick: rubric, or package.module:function, not {self.yardstick!r}")
        if self.yardstick == RUBRIC and self.tie_threshold >= 1.0:
            raise ValueError("tie_threshold: every judgment would be a tie; give less than 1")
        return self


class LabelConfig(StageConfig):
    """`tiebreak label`"""

    printed: ClassVar[frozenset[str]] = frozenset({"reward_reports"})

    pairs: str = ""
    """what to judge: a sample run, or a file of rows with prompt, response_a and response_b; optional with `converse`
    or `answers`, or if `store` has pairs"""
    columns: dict[str, str | None] = Field(default_factory=dict, exclude_if=lambda columns: not columns)
    """columns with other names: Tiebreak's name, then the file's, such as {prompt: question, response_a:
    left}; null: ignore the column"""
    webhook: WebhookConfig | None = Field(default=None, exclude_if=lambda hook: hook is None)
    """address to which the server reports judgments, finished batches, disputes and stopped raters, signed"""
    mail: MailConfig | None = Field(default=None, exclude_if=lambda mail: mail is None)
    """mail server, for raters who want an e-mail when there is work again or when their login was changed"""
    media: str | None = Field(default=None, exclude_if=lambda folder: folder is None)
    """folder of the images and recordings of the pairs; they are checked, cleaned of EXIF and copied into the store"""
    require_alt: bool = Field(default=False, exclude_if=lambda asked: not asked)
    """refuse images and recordings without an `alt` text, which raters need who do not see or hear them"""
    judges: list[str] = Field(default_factory=list, exclude_if=lambda judges: not judges)
    """finished judge runs on these pairs: their judgments are added to the store, with raters of kind model; people
    still judge every pair"""
    answers: str = Field(default="", exclude_if=lambda answers: not answers)
    """single answers to judge, with or without pairs: rows of prompt, response and task, or a prepare run; batch, pool
    and overlap are those of the pairs"""
    task: SingleTask | None = Field(default=None, exclude_if=lambda task: task is None)
    """task for rows of `answers` that name none. rate: on a scale; review: accept, edit or reject; classify: choose one
    of `classes`"""
    inspect: InspectConfig | None = Field(default=None, exclude_if=lambda inspect: inspect is None)
    """review a random sample of `answers`: if few enough of them are defective, the rest is accepted, else all are
    reviewed; true: with all defaults"""
    flagged: bool = Field(default=False, exclude_if=lambda asked: not asked)
    """`answers` is a prepare run: people review the rows that its steps flagged, in a batch (`flagged`, unless `batch`
    names another); the other rows are kept as they are"""
    ratings: list[str] = Field(default=list(RATINGS), exclude_if=lambda names: names == list(RATINGS))
    """rate: the two to nine steps of the scale, from worst to best; exports give their numbers, from 1"""
    classes: list[str] = Field(default_factory=list, exclude_if=lambda names: not names)
    """classify: the two to nine classes"""
    require: list[Requirement] = Field(default_factory=list, exclude_if=lambda required: not required)
    """required processing of the pairs. anonymised: they may come only from prepare runs with the step anonymise. The store
    then refuses all other pairs, uploaded and imported ones too"""
    converse: ConverseConfig | None = None
    """raters write, two policies answer, and the conversation continues with the better answer"""
    store: str | None = None
    """URL of the label store; null: sqlite:///OUTPUT.sqlite for people, OUTPUT/store/labels.sqlite for simulated
    raters"""
    overlap: int = Field(default=1, ge=1, le=100)
    """raters per pair"""
    seed: int = Field(default=0, ge=0)
    """random seed for the sides, combined with the rater and the pair"""
    ranking: bool = False
    """rank all completions of a prompt at once; false: judge them in pairs"""
    batch: str = Field(default="", max_length=100)
    """the batch to add these pairs to; leads set priority and pool by batch"""
    priority: int = Field(default=0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    """priority of the batch; higher ones are given out first"""
    pool: str = Field(default="", max_length=100)
    """the pool of raters for the batch; empty: everybody"""
    repeat_share: float = Field(default=0.05, ge=0.0, le=0.5)
    """share of pairs that a rater gets a second time, unannounced, to measure self-consistency"""
    gold_share: float = Field(default=0.05, ge=0.0, le=0.5)
    """share of gold pairs among a rater's pairs, until all gold pairs are used"""
    qualify: QualifyConfig | None = Field(default=None, exclude_if=lambda qualify: qualify is None)
    """a test of gold pairs that raters pass before they begin"""
    stop: StopConfig | None = Field(default=None, exclude_if=lambda stop: stop is None)
    """stop raters whose gold accuracy, self-consistency or pace fails a sequential test; true: with all defaults"""
    no_difference: float = Field(default=0.1, gt=0.0, lt=0.5, exclude_if=lambda gap: gap == 0.1)
    """duels on /lead/: a win rate within this distance of 0.5 counts as no difference"""
    reward_reports: list[str] = Field(default_factory=list, exclude_if=lambda reports: not reports)
    """finished reports of reward models with influence_pairs: /lead/ lists the judgments that pull against the rest"""
    show_gold_agreement: bool = False
    """show raters their gold accuracy, except for today's judgments"""
    goal_per_day: int | None = Field(default=None, ge=1, exclude_if=lambda goal: goal is None)
    """daily goal of judgments per rater; their page shows today's count against it"""
    break_after_minutes: int | None = Field(default=None, ge=1, le=600, exclude_if=lambda minutes: minutes is None)
    """suggest a break after this many minutes of work without a five-minute pause; null: never"""
    session_hours: float = Field(default=SESSION_HOURS, ge=0.5, le=SESSION_HOURS, exclude_if=_is_two_weeks)
    """hours after which everybody must log in again, however active"""
    session_idle_minutes: int | None = Field(default=None, ge=5, exclude_if=lambda minutes: minutes is None)
    """minutes without any action after which one must log in again; null: as long as `session_hours`"""
    unsent_in_browser: bool = Field(default=True, exclude_if=bool)
    """keep judgments, drafts and messages that the server does not have yet in the browser's storage, where they outlive a
    closed window; false: only while the window is open, which warns before it closes"""
    retention_days: int | None = Field(default=None, ge=1, exclude_if=lambda days: days is None)
    """erase the personal data of raters who have not worked for this many days, leads excepted, daily while the page is
    served; their judgments stay; null: never"""
    security_log: str | None = Field(default=None, exclude_if=lambda path: path is None)
    """file to which logins and refused requests are appended, one JSON line each, without names and passwords"""
    second_factor_for_leads: bool = Field(default=False, exclude_if=lambda asked: not asked)
    """require codes of an authenticator app, besides the password, from leads, reviewers and observers"""
    oidc: OidcConfig | None = Field(default=None, exclude_if=lambda oidc: oidc is None)
    """log in through an identity provider: invited e-mail addresses and subjects get accounts without passwords"""
    lease_seconds: int = Field(default=LEASE_SECONDS, ge=10)
    """offer a pair to others if a rater has not answered it after this time"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 (the network) needs accounts with passwords, and a proxy with HTTPS"""
    port: int = Field(default=7860, ge=1, le=65535)
    """port to listen on"""
    hosts: list[str] = Field(default_factory=list)
    """further host names of the server, such as a proxy's"""
    proxies: list[str] = Field(default_factory=list, exclude_if=lambda proxies: not proxies)
    """addresses or networks of reverse proxies whose X-Forwarded-For, -Proto and -Host headers are trusted; empty: this
    machine's if `hosts` names any, or those in the environment variable FORWARDED_ALLOW_IPS"""
    prefix: str = Field(default="", pattern=r"^(/[\w.~-]+)*$", exclude_if=lambda prefix: not prefix)
    """path of the pages behind a proxy, such as /label; empty: none"""
    campaign: str = Field(default="", pattern=r"^([a-z0-9][a-z0-9_-]*)?$", exclude_if=lambda name: not name)
    """name in addresses (/c/NAME/) if one server serves several campaigns; empty: the configuration file's name, or its
    folder's if that is label.yaml"""
    title: str = "Which answer is better?"
    """the question above every pair"""
    guidelines: str = ""
    """instructions for raters: Markdown, or the path of a .md file"""
    guideline_version: str = "1"
    """recorded with every judgment, with a hash of the text: if either changes, all raters must accept again"""
    aspects: list[Literal["helpful", "honest", "harmless"]] = Field(default_factory=list)
    """criteria to judge separately, each on the same bar"""
    criteria: list[Criterion] = Field(default_factory=list, exclude_if=lambda criteria: not criteria)
    """your own questions in addition to the vote: {name: correct, question: Which is more correct?, scale: bar}"""
    flags: dict[str, FlagTarget] = Field(default_factory=dict, exclude_if=lambda flags: not flags)
    """flags for raters, each for single answers or for the prompt; empty: {unsafe: answers, personal_data: answers,
    broken_prompt: prompt, wrong_language: answers}"""
    ask_reason: bool = True
    """show a field for a reason"""
    reasons: Required = Field(default="never", exclude_if=lambda reasons: reasons == "never")
    """when a reason is required. strong: for much better. A skip never needs one"""
    spans: dict[str, Literal[-1, 0, 1]] = Field(default_factory=dict, exclude_if=lambda labels: not labels)
    """labels for passages that raters mark in an answer, each with its value (1 good, -1 bad, 0 neither): {wrong: -1,
    unsafe: -1, good: 1, unsupported: -1}"""
    ask_links: bool = Field(default=False, exclude_if=lambda asked: not asked)
    """show a field for links as evidence; they are stored as text and never fetched"""
    words: str | None = None
    """a .json file with the pages' texts in other words, such as a translation"""
    consent: str = ""
    """what raters agree to before their first judgment: Markdown, or the path of a .md file"""
    consent_version: str = "1"
    """recorded with the consent, with a hash of the text: if either changes, all raters are asked again"""
    aggregation: AggregationConfig = AggregationConfig()
    """how votes on a pair become one preference: the method, and the use of ties, skips and gold"""
    formats: list[Format] = Field(default_factory=list)
    """further formats of the export: parquet (for datasets.load_dataset), datasets (for load_from_disk), unpaired (for
    KTO), csv (judgments, for spreadsheets), argilla, label_studio, hub (a folder to upload as a data set)"""
    simulate: SimulateConfig | None = None
    """simulated raters instead of people: they judge by a yardstick, with a given error rate; true: with all defaults;
    false: off"""

    def function_names(self) -> dict[str, str]:
        named = self.simulate.yardstick if self.simulate and self.simulated else RUBRIC
        return {} if named == RUBRIC else {"yardstick": named}

    @model_validator(mode="after")
    def _something_to_judge(self) -> LabelConfig:
        others = self.converse is not None or self.store is not None or bool(self.answers)
        if self.answers and self.simulated:
            raise ValueError("answers: simulated raters compare two answers: set simulate: false, or leave answers out")
        if self.flagged and not self.answers:
            raise ValueError("flagged: applies to the rows of a prepare run: set answers")
        if self.flagged and (self.inspect is not None or self.task not in (None, "review")):
            raise ValueError("flagged: all flagged rows are reviewed, so leave out inspect, and any other task")
        if self.inspect is not None and not (self.answers and self.batch):
            raise ValueError("inspect: needs a named batch of answers: set answers and batch")
        if self.task is not None and not self.answers:
            raise ValueError("task: applies to rows of answers, and there are none: set answers")
        if not self.pairs and (self.simulated or not others):
            raise ValueError("pairs: missing: a run folder of sample, or a file of prompt, response_a and response_b")
        if self.judges and self.ranking:
            raise ValueError(
                "judges: a judge compares two completions, but ranking asks people to rank them all: set ranking: false"
            )
        return self

    @model_validator(mode="after")
    def _by_digit(self) -> LabelConfig:
        for key, names in (("ratings", self.ratings), ("classes", self.classes)):
            if names and not 2 <= len(set(names)) == len(names) <= MOST_BY_DIGIT:
                raise ValueError(f"{key}: needs two to {MOST_BY_DIGIT}, each once: the digits are their keys")
            if any(not 1 <= len(name.strip()) <= MAX_CLASS_CHARACTERS for name in names):
                raise ValueError(f"{key}: each must have 1 to {MAX_CLASS_CHARACTERS} characters")
        return self

    @model_validator(mode="after")
    def _can_be_asked(self) -> LabelConfig:
        if self.reasons != "never" and not self.ask_reason:
            raise ValueError(f"reasons: {self.reasons} requires a reason, but ask_reason: false hides its field")
        names = [one.name for one in self.criteria]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"criteria: two have the name {repeated[0]}")
        if len(names) > MAX_NAMES:
            raise ValueError(f"criteria: {len(names)} are too many: at most {MAX_NAMES}")
        for key, names_of_key in (("flags", list(self.flags)), ("spans", list(self.spans))):
            if len(names_of_key) > MOST_BY_DIGIT:
                raise ValueError(f"{key}: {len(names_of_key)}, but only the digits 1 to {MOST_BY_DIGIT} choose them")
            if wrong := [name for name in names_of_key if not re.match(NAME, name)]:
                raise ValueError(f"{key}: {wrong[0]!r} must be lower-case letters, digits and _, a letter first")
        return self

    @property
    def asked(self) -> Questionnaire:
        """What raters are asked beside the vote."""
        return Questionnaire(
            aspects=tuple(self.aspects),
            flags=self.flags or FLAGS,
            criteria=tuple(self.criteria),
            reasons=self.reasons,
            spans=dict(self.spans),
            links=self.ask_links,
            ratings=tuple(self.ratings or RATINGS),
            classes=tuple(self.classes),
        )

    @field_validator("columns")
    @classmethod
    def _of_ours(cls, columns: dict[str, str | None]) -> dict[str, str | None]:
        check_columns(columns)
        return columns

    @field_validator("simulate", "inspect", "stop", mode="before")
    @classmethod
    def _switch(cls, value: object) -> object:
        return {} if value is True else None if value is False else value

    @property
    def simulated(self) -> bool:
        """True where the raters are simulated."""
        return self.simulate is not None and self.simulate.enabled

    @property
    def store_url(self) -> str:
        """The label store's URL."""
        output = Path(self.output)
        beside = output.with_name(f"{output.name}.sqlite")
        return self.store or default_store_url(output / "store" / "labels.sqlite" if self.simulated else beside)


class ImportArguments(Section):
    """`tiebreak label import`"""

    store: str
    """URL of the label store; created if it does not exist"""
    format: ForeignFormat = "tiebreak"
    """tiebreak: JSON Lines of Tiebreak's records; otherwise that tool's export"""
    pairs: str | None = None
    """pairs in Tiebreak's format or rows of prompt, response_a and response_b; or Potato's data file; the other tools'
    exports contain the texts"""
    columns: dict[str, str | None] = {}
    """columns with other names: Tiebreak's name, then the file's, such as {response_a: left}; null: ignore the column"""
    answers: str | None = None
    """single answers in Tiebreak's format: rows of prompt, response and task"""
    task: SingleTask | None = None
    """task of rows of `answers` that name none"""
    judgments: str | None = None
    """judgments in Tiebreak's format (an export's judgments.jsonl, or the assessments.jsonl of single answers), or the
    tool's export"""
    adjudications: str | None = None
    """an export's adjudications.jsonl: the pairs are settled as they were there"""
    fields: FieldNames = FieldNames()
    """names in the other tool's project"""


class GoldArguments(Section):
    """`tiebreak label gold`"""

    store: str
    """URL of the label store"""
    gold: str | None = None
    """JSON Lines of `item_id` (a pair's id) and `preferred_id` (its better completion; null: neither is); of a single
    answer, `value` instead (the rating, the verdict or the class)"""
    remove: list[str] = Field(default_factory=list)
    """ids of gold pairs to turn back into ordinary pairs"""


class StoreArguments(Section):
    """`tiebreak label status`, `verify` and `agreement`"""

    store: str
    """URL of the label store, such as sqlite:///runs/x/label.sqlite"""
    as_json: bool = Field(default=False, alias="json")
    """print one JSON document"""


class ExportArguments(Section):
    """`tiebreak label export`"""

    store: str
    """URL of the label store, such as sqlite:///runs/x/label.sqlite"""
    output: str
    """the run folder to write"""
    formats: list[Format] = Field(default_factory=list)
    """further formats beside JSON Lines"""
    aggregation: AggregationConfig = AggregationConfig()
    """how votes on a pair become one preference: the method, and the use of ties, skips and gold"""


def read_store_arguments(model: type[S], words: Sequence[str], command: str) -> S:
    """Arguments of a command on a store. With `--config`, the store is that of the labelling configuration, whose keys
    are flags too."""
    if not has_config(words):
        return load_config(model, words, command)
    path, flags = take_config_flag(words, command)
    own: list[str] = []
    rest = ["--config", str(path)]
    names = {key.path for key in own_keys(model)} - {"store"}
    for flag, values in group_flags(flags):
        (own if flag.replace("-", "_") in names else rest).extend([f"--{flag}", *values])
    url = load_config(LabelConfig, rest, command).store_url
    return load_config(model, [*own, "--store", url], command)


def has_config(words: Sequence[str]) -> bool:
    """Whether a command line names a configuration file."""
    return any(word == "--config" or word.startswith("--config=") for word in words)


def split_configs(words: Sequence[str]) -> list[list[str]]:
    """The words of each campaign, if `--config` is given more than once: its own file, and all other flags.

    >>> split_configs(["--config", "a.yaml", "--config=b.yaml", "--port", "80"])
    [['--config', 'a.yaml', '--port', '80'], ['--config', 'b.yaml', '--port', '80']]
    """
    files: list[str] = []
    rest: list[str] = []
    following = iter(words)
    for word in following:
        if word == "--config":
            files.append(next(following, ""))
        elif word.startswith("--config="):
            files.append(word.removeprefix("--config="))
        else:
            rest.append(word)
    return [["--config", file, *rest] for file in files]

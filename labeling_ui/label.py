"""The labelling stage: raters judge pairs in the browser, and their judgments become preferences.

    tiebreak label --config FILE                                serve the raters' page until Ctrl-C
    tiebreak label --config FILE --simulate true                let simulated raters judge, then export
    tiebreak label export --config FILE                         write the run folder that training reads
    tiebreak label export --store URL --output FOLDER           the same, from the store alone
    tiebreak label import --pairs FILE --judgments FILE --store URL     import judgments made elsewhere
    tiebreak label gold --gold FILE --store URL                 pairs with a known answer, to measure raters
    tiebreak label backup|batches|batch|move|withdraw|restore|correct|withdrawn --store URL …      change a running campaign
    tiebreak label status|verify|agreement --config FILE|--store URL [--json]

People's judgments are in a store beside the output folder (`OUTPUT.sqlite`), which no stage ever deletes; those of
simulated raters are in `OUTPUT/store/`. The two never share a store.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from labeling_ui.database.schema import MAX_PRIORITY, StoreError
from labeling_ui.exchange.export import Format, export, read_known
from labeling_ui.exchange.foreign import FieldNames, read_foreign, read_gold, read_own
from labeling_ui.exchange.foreign import Format as ForeignFormat
from labeling_ui.exchange.importing import import_records
from labeling_ui.quality.aggregate import AggregationConfig, ballots_of_groups, group_judgments
from labeling_ui.quality.agreement import agreement_lines, measure_agreement
from labeling_ui.quality.reliability import describe_reliability
from labeling_ui.simulate import SimulateConfig, refuse_people, simulate
from labeling_ui.store.assigning import LEASE_SECONDS
from labeling_ui.store.campaign import Batch
from labeling_ui.store.store import Store, default_store_url
from labeling_ui.store.verify import verify
from labeling_ui.web.accounts import needs_login
from labeling_ui.web.listening import listen
from labeling_ui.worker import ConverseConfig, start_worker
from tiebreak.command.closing import say_end
from tiebreak.command.help import print_help, wants_help
from tiebreak.config import Section, StageConfig, load_config, take_config_flag
from tiebreak.config.flags import group_flags
from tiebreak.config.keys import own_keys
from tiebreak.data.columns import check_columns
from tiebreak.data.pairs import read_pairs
from tiebreak.errors import ConfigError, HandoffError, RunError, TiebreakError, counted, exit_with_message
from tiebreak.measures.yardstick import RUBRIC
from tiebreak.records import Pair
from tiebreak.runs.run import Run, identify_input, read_manifest, start_run
from tiebreak.terminal import Cell, has_colours, paint, show, table
from tiebreak.tracking.recorder import track_again

if TYPE_CHECKING:
    from labeling_ui.pages import PageConfig


S = TypeVar("S", bound=Section)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOOPBACK_PROXIES = ("127.0.0.1", "::1")


class LabelConfig(StageConfig):
    """Pairs to judge, by whom, and where the judgments go."""

    pairs: str = ""
    """what to judge: a sample run, or a file of rows with prompt, response_a and response_b; optional where raters
    converse, or where `store` has pairs"""
    columns: dict[str, str | None] = Field(default_factory=dict, exclude_if=lambda columns: not columns)
    """Tiebreak's name of a column: its name in the file of pairs, as in {prompt: question, response_a: left}; null: ignore
    the column"""
    converse: ConverseConfig | None = None
    """raters write, two policies answer, and the conversation continues with the better answer"""
    store: str | None = None
    """URL of the label store; null: sqlite:///OUTPUT.sqlite for people, OUTPUT/store/labels.sqlite for simulated
    raters"""
    overlap: int = Field(default=1, ge=1, le=100)
    """raters per pair"""
    seed: int = Field(default=0, ge=0)
    """random seed of the sides, combined with the rater and the pair"""
    ranking: bool = False
    """rank all completions of a prompt at once; false: judge them two by two"""
    batch: str = Field(default="", max_length=100)
    """the batch that these pairs join; leads set priority and pool by batch"""
    priority: int = Field(default=0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    """priority of the batch; higher is given out first"""
    pool: str = Field(default="", max_length=100)
    """the pool of raters that the batch is for; empty: everybody"""
    repeat_share: float = Field(default=0.05, ge=0.0, le=0.5)
    """share of pairs that a rater gets a second time, unannounced, to measure self-consistency"""
    gold_share: float = Field(default=0.05, ge=0.0, le=0.5)
    """share of gold pairs among a rater's pairs, until all gold pairs are used"""
    show_gold_agreement: bool = False
    """show raters their gold accuracy, without today's judgments"""
    goal_per_day: int | None = Field(default=None, ge=1, exclude_if=lambda goal: goal is None)
    """judgments that a rater is asked for a day; their page shows today's count against it"""
    lease_seconds: int = Field(default=LEASE_SECONDS, ge=10)
    """a pair that a rater leaves unanswered is free for others after this time"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0, the network, needs accounts with passwords, and a proxy with HTTPS"""
    port: int = Field(default=7860, ge=1, le=65535)
    """port to listen on"""
    hosts: list[str] = Field(default_factory=list)
    """further host names of the server, such as a proxy's"""
    proxies: list[str] = Field(default_factory=list, exclude_if=lambda proxies: not proxies)
    """addresses or networks of proxies in front, whose X-Forwarded-For, -Proto and -Host headers are believed; empty: this
    machine's where `hosts` names any, or those in the variable FORWARDED_ALLOW_IPS"""
    prefix: str = Field(default="", pattern=r"^(/[\w.~-]+)*$", exclude_if=lambda prefix: not prefix)
    """the path that the pages are under, behind a proxy, such as /label; empty: none"""
    title: str = "Which answer is better?"
    """the question above every pair"""
    guidelines: str = ""
    """instructions for raters: Markdown, or the path of a .md file"""
    guideline_version: str = "1"
    """recorded with every judgment, beside a hash of the text: where either changes, everybody is asked to accept again"""
    aspects: list[Literal["helpful", "honest", "harmless"]] = Field(default_factory=list)
    """judged separately, each on the same bar"""
    ask_reason: bool = True
    """show a line for a reason"""
    words: str | None = None
    """a .json file that replaces words of the pages, for instance with another language"""
    consent: str = ""
    """what raters agree to before their first judgment: Markdown, or the path of a .md file"""
    consent_version: str = "1"
    """recorded with the consent, beside a hash of the text: where either changes, everybody is asked again"""
    aggregation: AggregationConfig = AggregationConfig()
    """how votes become preferences"""
    formats: list[Format] = Field(default_factory=list)
    """further formats of the export: parquet (for datasets.load_dataset), datasets (for load_from_disk), unpaired (for
    KTO), csv (judgments, for spreadsheets)"""
    simulate: SimulateConfig | None = None
    """simulated raters instead of people; true: with all defaults; false: off"""

    def function_names(self) -> dict[str, str]:
        named = self.simulate.yardstick if self.simulate and self.simulated else RUBRIC
        return {} if named == RUBRIC else {"yardstick": named}

    @model_validator(mode="after")
    def _something_to_judge(self) -> LabelConfig:
        others = self.converse is not None or self.store is not None
        if not self.pairs and (self.simulated or not others):
            raise ValueError("pairs: missing: a run folder of sample, or a file of prompt, response_a and response_b")
        return self

    @field_validator("columns")
    @classmethod
    def _of_ours(cls, columns: dict[str, str | None]) -> dict[str, str | None]:
        check_columns(columns)
        return columns

    @field_validator("simulate", mode="before")
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
    """Tiebreak's name of a column: its name in the file of pairs; null: ignore the column"""
    judgments: str | None = None
    """judgments in Tiebreak's format, or the tool's export"""
    adjudications: str | None = None
    """settled answers of an export, its adjudications.jsonl; they settle the pairs again"""
    fields: FieldNames = FieldNames()
    """names in the other tool's project"""


class GoldArguments(Section):
    """`tiebreak label gold`"""

    store: str
    """URL of the label store"""
    gold: str
    """JSON Lines of `item_id` (a pair's id) and `preferred_id` (its better completion, null where neither is)"""


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
    """how votes become preferences"""


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak label`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_message(lambda: print_help(["label", *words]) if wants_help(words) else _dispatch(words))


def _dispatch(words: list[str]) -> None:
    from labeling_ui import steering  # which imports this module

    commands: dict[str, Callable[[list[str]], None]] = {
        "export": _export,
        "import": _import,
        "gold": _gold,
        "status": _status,
        "verify": _verify,
        "agreement": _agreement,
        **steering.COMMANDS,
    }
    if words and not words[0].startswith("-"):
        if words[0] not in commands:
            raise ConfigError(
                f"no such command: label {words[0]}; one of {', '.join(commands)}, or --config FILE to serve"
            )
        commands[words[0]](words[1:])
        return
    config = load_config(LabelConfig, words, "label")
    if config.simulated:
        label_by_simulation(config)
        say_end("label", config, words)
    else:
        serve(config)


# --- the stage ---


def label_by_simulation(config: LabelConfig) -> None:
    """Simulated raters judge all pairs; then the preferences are exported."""
    pairs = read_some_pairs(config)
    with start_run(config, "label") as run:
        if run.finished:
            track_again(run)
            print(f"{run.folder} is already finished: nothing to do")
            return
        store = Store.open(config.store_url, create=True, clock=None, lease_seconds=config.lease_seconds)
        refuse_people(store)
        add_pairs(store, config, pairs)
        simulate(store, config.simulate or SimulateConfig(), config.config_folder)
        report = export(store, run, config.aggregation, config.formats)
        store.close()
        print(describe(report, run))


def read_some_pairs(config: LabelConfig) -> list[Pair]:
    """The configured pairs, read before any store is created, so that invalid ones leave nothing behind."""
    if not config.pairs:
        return []
    identify_input(config.pairs)
    pairs = read_pairs(config.pairs, config.columns)
    if not pairs:
        raise HandoffError(f"{config.pairs} contains no pairs: there is nothing to judge")
    return pairs


def add_pairs(store: Store, config: LabelConfig, pairs: Sequence[Pair]) -> int:
    """Add the pairs to the store; returns how many are new. Without pairs, a campaign stays as it is."""
    if not config.pairs and store.campaign():
        return 0
    identity = identify_input(config.pairs).id if config.pairs else ""
    return store.add_pairs(
        pairs,
        overlap=config.overlap,
        seed=config.seed,
        source=config.pairs,
        source_id=identity,
        ranking=config.ranking,
        batch=config.batch,
        priority=config.priority,
        pool=config.pool,
    )


def serve(config: LabelConfig) -> None:
    """Serve the raters' page until Ctrl-C."""
    pairs = read_some_pairs(config)
    begins = bool(config.pairs) or config.converse is not None
    with listen(config.host, config.port) as listening:
        store = Store.open(config.store_url, create=begins, lease_seconds=config.lease_seconds)
        try:
            _serve_store(store, config, pairs, listening)
        finally:
            store.close()
    export_words = shlex.join(["tiebreak", "label", "export", "--store", store.url, "--output", config.output])
    show(f"next: {export_words}")


def _serve_store(store: Store, config: LabelConfig, pairs: Sequence[Pair], listening: socket.socket) -> None:
    store.rules.repeat_share, store.rules.gold_share = config.repeat_share, config.gold_share
    _refuse_simulated(store)
    if (config.host not in LOOPBACK or config.hosts) and not needs_login(store):
        raise ConfigError(
            f"{' and '.join([config.host, *config.hosts])} would open the page to the network, but no account in "
            f"{store.url} has a password: add raters first, with 'tiebreak raters add NAME --store {store.url}'"
        )
    new = add_pairs(store, config, pairs)
    if store.lacks_log():
        show(f"{store.url} is a copy of a store in use, without its -wal file: its latest judgments are missing")
    store.begin_serving()
    from labeling_ui.web.server import create_app, run_server

    app = create_app(store, build_page(config))
    _greet(store, config, new, pairs)
    with contextlib.suppress(KeyboardInterrupt), _answering(config):
        run_server(app, listening, believed_proxies(config), config.prefix)
    show("", f"saved: {sum(store.status()['judgments'].values())} judgments in {store.url}")


def believed_proxies(config: LabelConfig) -> Sequence[str]:
    """The addresses whose word for a request's origin is believed: nobody's where no proxy is named."""
    if config.proxies:
        return config.proxies
    named = os.environ.get("FORWARDED_ALLOW_IPS", "")
    return [one.strip() for one in named.split(",") if one.strip()] or (LOOPBACK_PROXIES if config.hosts else ())


@contextlib.contextmanager
def _answering(config: LabelConfig) -> Iterator[None]:
    """Runs the process that answers conversations, if configured, while the page is served."""
    worker = start_worker(config.converse, config.store_url) if config.converse else None
    try:
        yield
    finally:
        if worker is not None:
            worker.communicate()  # closes its standard input, which ends it


def _greet(store: Store, config: LabelConfig, new: int, pairs: Sequence[Pair]) -> None:
    from labeling_ui.steering import difference_lines  # which imports this module

    configured = Batch(config.batch, config.priority, config.pool, config.overlap)
    status = store.status()
    judged = sum(status["judgments"].values())
    address = f"http://{_shown_host(config.host)}:{config.port}{config.prefix}"
    show(
        f"{status['pairs']} pairs ({new} new), {judged} of {status['judgments_wanted']} judgments",
        *(difference_lines(store, config.pairs, pairs, configured) if pairs else ()),
        f"judgments are stored in {store.url}",
        f"rate at {paint(address, 'bold') if has_colours(sys.stdout) else address}   "
        "(Ctrl-C stops the server; judgments stay)",
    )


def build_page(config: LabelConfig) -> PageConfig:
    """The pages' settings; reads the guidelines file."""
    from labeling_ui.pages import PageConfig, load_words

    guidelines, consent = _text_of("guidelines", config.guidelines), _text_of("consent", config.consent)
    hosts = {"127.0.0.1", "localhost", "::1", config.host, *config.hosts}
    anyone = config.host in ("0.0.0.0", "::") and not config.hosts
    return PageConfig(
        title=config.title,
        guidelines=guidelines,
        guideline_version=config.guideline_version,
        consent=consent,
        consent_version=config.consent_version,
        show_gold_agreement=config.show_gold_agreement,
        goal_per_day=config.goal_per_day,
        aspects=tuple(config.aspects),
        reason=config.ask_reason,
        words=load_words(config.words),
        policies=tuple(config.converse.policies) if config.converse else (),
        system=config.converse.system if config.converse else "",
        prefix=config.prefix,
        hosts=() if anyone else tuple(sorted(hosts)),
    )


def _text_of(key: str, value: str) -> str:
    """The Markdown in the configuration, or in the .md file that it names."""
    if not value.endswith(".md") or "\n" in value:
        return value
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: cannot read {value}: {error}") from error


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _refuse_simulated(store: Store) -> None:
    if any(rater.kind == "simulated" for rater in store.raters()):
        raise StoreError(f"{store.url} has simulated raters, so people cannot judge in it: give another --store")


# --- export, import, status, verify, agreement
# -------------------------------------------------------------------------------------------


def _export(words: list[str]) -> None:
    if _has_config(words):
        config = load_config(LabelConfig, words, "label export")
        store = Store.open(config.store_url)
        _match_pairs(store, config)
    else:
        arguments = load_config(ExportArguments, words, "label export")
        store = Store.open(arguments.store)
        config = _config_of_store(store, arguments.output, arguments)
    with start_run(config, "label") as run:
        if run.finished:
            _check_exported(store, run)
            track_again(run)
            print(f"{run.folder} already holds this export: nothing to do")
        else:
            print(describe(export(store, run, config.aggregation, config.formats), run))
    say_end("label", config, words)


def _match_pairs(store: Store, config: LabelConfig) -> None:
    sources = [identity for _, identity in store.campaign().get("sources", [])]
    if config.pairs and identify_input(config.pairs).id not in sources:
        raise HandoffError(
            f"{store.url} does not contain the pairs of {config.pairs}: serve them once with 'tiebreak label --config …', "
            "or export the store with 'tiebreak label export --store URL --output FOLDER'"
        )


def _config_of_store(store: Store, output: str, arguments: ExportArguments) -> LabelConfig:
    """The configuration that matches a store's settings. Pairs that have been moved or changed are left out."""
    settings = store.campaign()
    pairs = ""
    for source, identity in settings.get("sources", []):
        try:
            pairs = source if identify_input(source).id == identity else pairs
        except TiebreakError:
            continue
    campaign = {"overlap": settings.get("overlap", 1), "seed": settings.get("seed", 0)}
    return LabelConfig(
        output=output,
        pairs=pairs,
        store=store.url,
        formats=arguments.formats,
        aggregation=arguments.aggregation,
        **campaign,
    )


def _check_exported(store: Store, run: Run) -> None:
    then, now = read_manifest(run.folder).get("event_log_head"), store.head()
    if then != now:
        raise RunError(
            f"{run.folder} holds an earlier export of {store.url}, and exports are not overwritten: "
            "give another --output, or move that folder away"
        )


def _status(words: list[str]) -> None:
    store, as_json = _open_for_reading(words, "label status")
    status = store.status()
    if as_json:
        print(json.dumps(status, indent=2))
        return
    show(*status_lines(status, has_colours(sys.stdout)))


def status_lines(status: Mapping[str, Any], colours: bool = False) -> list[str]:
    """A store's counts as a table."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in status["judgments"].items())
    judgments = f"of {status['judgments_wanted']} wanted" + (f": {kinds}" if kinds else "")
    rows = [
        ("pairs", status["pairs"], f"{status['withdrawn']} more withdrawn" if status["withdrawn"] else ""),
        ("items", status["items"], f"{status['items_judged']} judged, {status['disputed']} disputed"),
        ("judgments", sum(status["judgments"].values()), judgments),
        ("raters", status["raters"], ""),
        ("events", status["events"], f"head {status['head'][:16]}"),
    ]
    cells = [(name, str(count), Cell(detail, "dim")) for name, count, detail in rows]
    return [status["store"], *(f"  {line}" for line in table(cells, left=(0, 2), colours=colours))]


def _verify(words: list[str]) -> None:
    store, as_json = _open_for_reading(words, "label verify")
    result = verify(store)
    if as_json:
        print(json.dumps({"ok": not result.faults, **vars(result)}, indent=2))
    elif not result.faults:
        print(f"{store.url}: intact. {result.events} events, {result.judgments} judgments, head {result.head[:16]}")
    if result.faults:
        listed = "\n".join(f"  {fault}" for fault in result.faults[:50])
        raise StoreError(f"{store.url}: {counted(len(result.faults), 'error')}\n{listed}")


def _import(words: list[str]) -> None:
    arguments = load_config(ImportArguments, words, "label import")
    own = partial(read_own, columns=arguments.columns)
    if arguments.format == "tiebreak":
        own = partial(own, adjudications=arguments.adjudications)
    elif arguments.adjudications:
        raise ConfigError(f"label import --format {arguments.format}: --adjudications are of Tiebreak's format alone")
    read = own if arguments.format == "tiebreak" else partial(read_foreign, arguments.format, names=arguments.fields)
    records = read(pairs=arguments.pairs, judgments=arguments.judgments)
    source = arguments.pairs or arguments.judgments or ""
    store = Store.open(arguments.store, create=True)
    added = import_records(
        store,
        records.pairs,
        records.judgments,
        source=source,
        source_id=identify_input(source).id,
        places=records.places,
        settled=records.settled,
        settled_places=records.settled_places,
    )
    more = f", and {counted(added.settled, 'settled answer')}" if records.settled else ""
    print(f"added {added.pairs} pairs and {added.judgments} judgments{more} to {store.url}")


def _gold(words: list[str]) -> None:
    arguments = load_config(GoldArguments, words, "label gold")
    store = Store.open(arguments.store)
    gold = read_gold(arguments.gold, store.pairs())
    for answer in gold:
        store.set_gold(answer.item_id, answer.preferred_id)
    print(f"{store.url} has {len(store.gold())} gold pairs")


def _agreement(words: list[str]) -> None:
    store, as_json = _open_for_reading(words, "label agreement")
    pairs, (judgments, _) = store.pairs(), store.judgments()
    known = read_known(store)
    measured = measure_agreement(pairs, judgments, known.gold)
    if measured["judgments"]:
        groups = [group for group in group_judgments(judgments) if group.kind == measured["kind"]]
        measured["reliability"] = describe_reliability(ballots_of_groups(groups, known))
    if as_json:
        print(json.dumps(measured, indent=2))
    else:
        show(*agreement_lines(measured, has_colours(sys.stdout)))


def _open_for_reading(words: list[str], command: str) -> tuple[Store, bool]:
    arguments = read_store_arguments(StoreArguments, words, command)
    return Store.open(arguments.store), arguments.as_json


def read_store_arguments(model: type[S], words: Sequence[str], command: str) -> S:
    """Arguments of a command on a store. With `--config`, the store is that of the labelling configuration, whose keys
    are flags too."""
    if not _has_config(words):
        return load_config(model, words, command)
    path, flags = take_config_flag(words, command)
    own: list[str] = []
    rest = ["--config", str(path)]
    names = {key.path for key in own_keys(model)} - {"store"}
    for flag, values in group_flags(flags):
        (own if flag.replace("-", "_") in names else rest).extend([f"--{flag}", *values])
    url = load_config(LabelConfig, rest, command).store_url
    return load_config(model, [*own, "--store", url], command)


def _has_config(words: Sequence[str]) -> bool:
    return any(word == "--config" or word.startswith("--config=") for word in words)


def describe(report: dict[str, Any], run: Run) -> str:
    """A run's report in a few lines."""
    judgments, preferences = report["judgments"], report["preferences"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in judgments["kinds"].items())
    lines = [
        f"{preferences['total']} preferences from {kinds} judgments of {report['pairs']['judged']} pairs, "
        f"in {run.folder}"
    ]
    for kind, agreement in report["agreement"].items():
        share = agreement["percent_with_ties"]
        if share["value"] is not None:
            low, high = share["interval"]
            lines.append(
                f"{kind} raters agree in {share['value']:.1%} [{low:.1%}, {high:.1%}] of cases, counting ties "
                f"({counted(share['n'], 'pair')} judged by several; gold and repeats left out)"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

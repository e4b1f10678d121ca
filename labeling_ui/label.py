"""The labelling stage: raters judge pairs in the browser, and their judgments become preferences.

    tiebreak label --config FILE                                serve the raters' page until Ctrl-C
    tiebreak label --config A --config B                        several campaigns, under /c/NAME/, with one login page
    tiebreak label --config FILE --simulate true                let simulated raters judge, then export
    tiebreak label export --config FILE                         write the run folder that training reads
    tiebreak label export --store URL --output FOLDER           the same, from the store alone
    tiebreak label import --pairs FILE --judgments FILE --store URL     import judgments made elsewhere
    tiebreak label gold --gold FILE --store URL                 pairs with a known answer, to measure raters; --remove ID …
    tiebreak label backup|batches|batch|move|withdraw|restore|correct|withdrawn|reject --store URL …    a running campaign
    tiebreak label documents --store URL …                      guidelines and consent, published while it is served
    tiebreak label status|verify|agreement --config FILE|--store URL [--json]

People's judgments are in a store beside the output folder (`OUTPUT.sqlite`), which no stage ever deletes; those of
simulated raters are in `OUTPUT/store/`. The two never share a store.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import socket
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labeling_ui import leading, steering
from labeling_ui.configuration import (
    ExportArguments,
    GoldArguments,
    ImportArguments,
    LabelConfig,
    SimulateConfig,
    StoreArguments,
    has_config,
    read_store_arguments,
    split_configs,
)
from labeling_ui.database.errors import StoreError
from labeling_ui.exchange.arms import arm_lines
from labeling_ui.exchange.export import GOLD_FILE, export, read_known_answers
from labeling_ui.exchange.foreign import read_foreign, read_gold, read_own
from labeling_ui.exchange.importing import import_records
from labeling_ui.exchange.media import MediaConfig, add_media
from labeling_ui.quality.aggregate import ballots_of_groups, group_judgments
from labeling_ui.quality.agreement import agreement_lines, measure_agreement
from labeling_ui.quality.criteria import agreement_by_criterion, criterion_lines
from labeling_ui.quality.judges import measure_judges
from labeling_ui.quality.pull_reports import PullReports
from labeling_ui.quality.reliability import describe_reliability
from labeling_ui.quality.single import assessment_lines, measure_assessments
from labeling_ui.simulate import refuse_people, simulate
from labeling_ui.store.pairs.campaign import Batch
from labeling_ui.store.store import SessionRules, Store
from labeling_ui.store.verify import verify
from labeling_ui.web.listening import listen
from labeling_ui.web.login.accounts import needs_login
from labeling_ui.worker import start_worker
from tiebreak.assessments import FLAGGED, SingleAnswer
from tiebreak.command.closing import say_end
from tiebreak.command.help import print_help, wants_help
from tiebreak.command.table import unknown_command
from tiebreak.config import load_config, take_config_flag
from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import is_run, read_records
from tiebreak.data.single import flagged_rows, read_single_answers
from tiebreak.errors import ConfigError, HandoffError, RunError, TiebreakError, counted
from tiebreak.extras import require_package
from tiebreak.process.ending import exit_with_message
from tiebreak.records import ExportedJudgment, Judgment, Pair
from tiebreak.runs.audit import COMMAND
from tiebreak.runs.requirements import require
from tiebreak.runs.run import MANIFEST, Run, identify_input, read_manifest, start_run
from tiebreak.terminal import Cell, has_colours, paint, show, table
from tiebreak.tracking.recorder import tracked

if TYPE_CHECKING:
    from labeling_ui.pages import PageConfig
    from labeling_ui.web.mail.sending import Mailer


HIDDEN_PASSWORD = ":***@"
"""What messages have in a URL in place of a password."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOOPBACK_PROXIES = ("127.0.0.1", "::1")


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak label`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    os.environ[COMMAND] = shlex.join(["tiebreak", "label", *words])
    exit_with_message(lambda: print_help(["label", *words]) if wants_help(words) else _dispatch(words))


def _dispatch(words: list[str]) -> None:
    commands: dict[str, Callable[[list[str]], None]] = {
        "export": _export,
        "import": _import,
        "gold": _gold,
        "status": _status,
        "verify": _verify,
        "agreement": _agreement,
        **steering.COMMANDS,
        **leading.COMMANDS,
    }
    if words and not words[0].startswith("-"):
        if words[0] not in commands:
            raise unknown_command(words[0], "label")
        commands[words[0]](words[1:])
        return
    if len(several := split_configs(words)) > 1:
        serve_several([(load_config(LabelConfig, one, "label"), one) for one in several])
        return
    config = load_config(LabelConfig, words, "label")
    if config.simulated:
        label_by_simulation(config)
        say_label_end(config, words, [config.pairs])
    else:
        serve(config, words)


# --- the stage ---


def label_by_simulation(config: LabelConfig) -> None:
    """Simulated raters judge all pairs; then the preferences are exported."""
    pairs = read_some_pairs(config)
    with start_run(config, "label") as run, tracked(run):
        if run.finished:
            print(f"{run.folder} is already finished: nothing to do")
            return
        store = Store.open(config.store_url, create=True, clock=None, lease_seconds=config.lease_seconds)
        refuse_people(store)
        store.require(config.require)
        add_pairs(store, config, pairs)
        add_judges(store, config)
        simulate(store, config.simulate or SimulateConfig(), config.config_folder)
        report = export(store, run, config.aggregation, config.formats)
        store.close()
        print(describe(report, run))


def say_label_end(config: LabelConfig, words: Sequence[str], sources: Sequence[str]) -> None:
    """Print the last lines. Judgments of a duel are read by its report, those of an evaluation's pairs by another
    evaluation, and neither by training; SFT learns from answers that a review accepted.

    Args:
        sources: of the store's pairs.
    """
    stages = {source: _stage_of(source) for source in sources if source}
    report = ["tiebreak", "duel", "report", "--judgments", config.output]
    others = [
        shlex.join([*report, "--duel", source, "--output", f"{source}-report"])
        for source, stage in stages.items()
        if stage == "duel"
    ]
    if "evaluate" in stages.values():
        judged = shlex.quote(f"people:{config.output}")
        others.append(f"tiebreak evaluate --config FILE --output FOLDER --yardsticks {judged}")
    single = bool(read_manifest(config.output).get("assessments"))
    accepted = Path(config.output) / "final" / "demonstrations.jsonl"
    if single and accepted.is_file() and accepted.stat().st_size:
        others.append(f"tiebreak sft --demonstrations {shlex.quote(config.output)} --policy POLICY --output FOLDER")
    say_end("label", config, words, others, usual=not (others or single) or _trainable(config.output) > 0)


def _trainable(folder: str) -> int:
    """How many preferences of a finished labelling run training may read."""
    report = json.loads((Path(folder) / "final" / "report.json").read_text(encoding="utf-8"))
    return int(report.get("preferences", {}).get("by_split", {}).get("train", 0))


def _stage_of(source: str) -> str:
    """The stage that made a run; empty if it is gone, or no run."""
    try:
        return str(read_manifest(source)["stage"]) if is_run(source) else ""
    except TiebreakError:
        return ""


def read_some_pairs(config: LabelConfig) -> list[Pair]:
    """The configured pairs, read before any store is created, so that invalid ones leave nothing behind."""
    if not config.pairs:
        return []
    identify_input(config.pairs)
    require(config.require, config.pairs)
    pairs = read_pairs(config.pairs, config.columns, media=config.media is not None)
    if not pairs:
        raise HandoffError(f"{config.pairs} contains no pairs: there is nothing to judge")
    return pairs


def add_pairs(store: Store, config: LabelConfig, pairs: Sequence[Pair]) -> int:
    """Add the pairs to the store; returns how many are new. Without pairs, a campaign stays as it is."""
    if not config.pairs and store.campaign():
        return 0
    identity = identify_input(config.pairs).id if config.pairs else ""
    _add_files(store, config, pairs)
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


def _add_files(store: Store, config: LabelConfig, pairs: Sequence[Pair]) -> None:
    """Copy the images and recordings of pairs or single answers into the store."""
    if config.media is None:
        return
    if without := add_media(store, pairs, MediaConfig(Path(config.media), config.require_alt)):
        what = "a file" if without == 1 else f"{without} files"
        show(f"{what} without alt: raters who do not see or hear such a file cannot judge it")


def read_some_answers(config: LabelConfig) -> list[SingleAnswer]:
    """The configured single answers.

    Raises:
        ConfigError: some are to be classified, and there are no classes.
    """
    if not config.answers:
        return []
    identify_input(config.answers)
    require(config.require, config.answers)
    reasons = flagged_rows(config.answers) if config.flagged else None
    task = "review" if config.flagged else config.task
    answers = read_single_answers(config.answers, task, media=config.media is not None, flagged=reasons)
    if reasons is not None:
        _count_flagged(config.answers, answers, reasons)
    if not answers:
        pairs = Path(config.answers) / "final" / "pairs.jsonl"
        there = f", but pairs: give it as --pairs {config.answers}" if pairs.is_file() and pairs.stat().st_size else ""
        raise HandoffError(f"{config.answers} contains no answers{there or ': there is nothing to judge'}")
    refuse_unclassed(answers, config.classes, config.answers)
    return answers


def _count_flagged(source: str, answers: Sequence[SingleAnswer], reasons: Mapping[str, Sequence[str]]) -> None:
    """Report flagged prompts without an answer: reviewers see answers, so no batch has them.

    Args:
        reasons: by the ids of all flagged prompts.

    Raises:
        HandoffError: there is no flagged answer.
    """
    bare = len({*reasons} - {one.prompt_id for one in answers if FLAGGED in one.origin})
    left = (
        f"{counted(bare, 'flagged prompt')} without an answer: reviewers judge answers, so check these in "
        f"{Path(source) / 'final' / 'flagged.jsonl'}"
    )
    if not any(FLAGGED in one.origin for one in answers):
        found = f"; {left}" if bare else ""
        raise HandoffError(f"{source}: no step flagged an answer that is kept: there is nothing to review{found}")
    if bare:
        show(f"{source}: {left}")


def refuse_unclassed(answers: Sequence[Pair], classes: Sequence[str], source: str) -> None:
    """Refuse answers to classify in a campaign without classes.

    Raises:
        ConfigError: there are some.
    """
    count = sum(isinstance(one, SingleAnswer) and one.task == "classify" for one in answers)
    if count and not classes:
        raise ConfigError(
            f"classes: missing: {counted(count, 'row')} of {source} {'is' if count == 1 else 'are'} to be classified; name "
            "two to nine classes, as in classes: [law, medicine]"
        )


def add_answers(store: Store, config: LabelConfig, answers: Sequence[SingleAnswer]) -> int:
    """Add single answers to the store, in the same batch as pairs; returns how many are new."""
    if not answers:
        return 0
    _add_files(store, config, answers)
    if config.inspect is not None or config.flagged:
        batch = Batch(config.batch or "flagged", config.priority, config.pool, config.overlap)
        about = {"source": config.answers, "source_id": identify_input(config.answers).id}
        return store.add_lot(answers, batch, config.inspect, seed=config.seed, **about)
    steered: dict[str, Any] = {"batch": config.batch, "priority": config.priority, "pool": config.pool}
    identity = identify_input(config.answers).id
    return store.add_pairs(
        answers, overlap=config.overlap, seed=config.seed, source=config.answers, source_id=identity, **steered
    )


def add_judges(store: Store, config: LabelConfig) -> None:
    """Add the judgments of the configured judge runs to the store, as raters of kind `model`; those there stay.

    Raises:
        HandoffError: a judge judged none of the store's pairs, or the store has another judge of its name.
    """
    for source in config.judges:
        every = read_judgments(source)
        judgments = of_pairs(every, store.pairs(withdrawn=True))
        if not judgments:
            raise HandoffError(
                f"judges: none of {counted(len(every), 'judgment')} in {source} is of the pairs in {store.url}: give a "
                "judge run on these pairs, or on the pool that they were selected from"
            )
        if len(judgments) < len(every):
            show(f"{source}: {len(every) - len(judgments)} of {len(every)} judgments are of pairs that are not here")
        refuse_another_judge(store, judgments, source)
        added = import_records(
            store, (), judgments, source=source, source_id=identify_input(source).id, places=[source] * len(judgments)
        )
        if added.judgments:
            raters = ", ".join(sorted({one.rater_id for one in judgments}))
            show(f"{source}: {counted(added.judgments, 'judgment')} by {raters}")


def refuse_another_judge(store: Store, judgments: Sequence[Judgment], source: str) -> None:
    """Refuse judgments by a judge whose name another one in the store has: they would be second judgments of the
    pairs, which count nowhere.

    Raises:
        HandoffError: names both.
    """
    if not {one.rater_id for one in judgments} & {rater.id for rater in store.raters()}:
        return  # a large store takes long to read
    named = {one.rater_id: one.judge for one in store.judgments()[0] if one.judge is not None}
    for one in judgments:
        mine, there = one.judge, named.get(one.rater_id)
        if mine is None or there is None:
            continue
        differs = [name for name in ("model", "prompt_version", "seed") if getattr(mine, name) != getattr(there, name)]
        if differs:
            listed = ", ".join(f"{name} {getattr(there, name)} there, {getattr(mine, name)} here" for name in differs)
            raise HandoffError(
                f"judges: {source} is of {one.rater_id}, and {store.url} has another judge of that name ({listed}): judge "
                "again with another name (rater)"
            )


def of_pairs(judgments: Sequence[Judgment], pairs: Sequence[Pair]) -> list[Judgment]:
    """The judgments of these pairs, with their ids. A judge judges a whole pool; people get the pairs that `select` chose,
    which makes a pair of each comparison of a larger set."""
    there = {pair.id for pair in pairs}
    of_sets = {
        (pair.selection.set_id, frozenset(one.id for one in pair.completions)): pair.id
        for pair in pairs
        if pair.selection is not None and pair.selection.set_id
    }
    found = []
    for one in judgments:
        pair_id = of_sets.get((one.pair_id, frozenset((one.left, one.right))), one.pair_id)
        if pair_id in there:
            found.append(one if pair_id == one.pair_id else one.model_copy(update={"pair_id": pair_id}))
    return found


def read_judgments(source: str) -> list[Judgment]:
    """The judgments of a finished judge run.

    Raises:
        HandoffError: it is another stage's run, or holds others' judgments.
    """
    manifest = read_manifest(source)
    if manifest["stage"] != "judge":
        raise HandoffError(f"judges: {source} is a finished '{manifest['stage']}' run: give the folder of a judge run")
    judgments = [one.judgment for one in read_records(Path(source) / "final" / "judgments.jsonl", ExportedJudgment)]
    if others := sorted({one.kind for one in judgments} - {"model"}):
        raise HandoffError(f"judges: {source} has {' and '.join(others)} judgments: a judge run has a model's only")
    return judgments


def serve(config: LabelConfig, words: Sequence[str]) -> None:
    """Serve the raters' page until Ctrl-C. `words`: what the configuration was read from."""
    pairs, answers, page = read_some_pairs(config), read_some_answers(config), build_page(config, words)
    begins = bool(config.pairs or config.answers) or config.converse is not None
    with listen(config.host, config.port) as listening:
        store = Store.open(config.store_url, create=begins, lease_seconds=config.lease_seconds)
        try:
            _serve_store(store, config, page, pairs, answers, listening)
            hint = export_hint(store, config, words)
        finally:
            store.close()
    show(hint)


def export_hint(store: Store, config: LabelConfig, words: Sequence[str]) -> str:
    """The command that exports a store's labels, or why there is none yet.

    Args:
        words: what the configuration was read from: a configuration file knows the password of a database.
    """
    if not store.has_labels():
        return "nothing to export yet: there are no judgments"
    output = _free_output(config.output, store.head())
    file, others = take_config_flag(words, "label")
    if HIDDEN_PASSWORD not in store.url:
        where, rest = ["--store", store.url], ""
    elif file is not None and not any(word.split("=")[0] == "--store" for word in others):
        where, rest = ["--config", str(file)], ""
    else:
        where, rest = ["--store", "URL"], "   (URL: the store's, with its password)"
    return f"next: {shlex.join(['tiebreak', 'label', 'export', *where, '--output', output])}{rest}"


def _free_output(output: str, head: str) -> str:
    """The configured folder, or one beside it where that holds another run: exports are not overwritten."""
    for number in itertools.count(1):
        folder = Path(output if number == 1 else f"{output}-{number}")
        manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
        if not folder.exists() or manifest.get("event_log_head") == head:
            return str(folder)
    raise AssertionError


SHARED_KEYS = ("host", "port", "hosts", "proxies", "prefix")
"""Keys of the server, which its campaigns have in common."""


def serve_several(campaigns: Sequence[tuple[LabelConfig, list[str]]]) -> None:
    """Serve several campaigns until Ctrl-C: each with its own store, under /c/NAME/.

    Args:
        campaigns: the configuration of each, and the words that it was read from.

    Raises:
        ConfigError: two have one name or one store, they name different servers, or one has no accounts.
    """
    names = _names_of(campaigns)
    server = campaigns[0][0]
    read = [(config, read_some_pairs(config), read_some_answers(config)) for config, _ in campaigns]
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(listen(server.host, server.port))
        stores = []
        for config, pairs, answers in read:
            begins = bool(config.pairs or config.answers) or config.converse is not None
            store = Store.open(config.store_url, create=begins, lease_seconds=config.lease_seconds)
            stack.callback(store.close)
            stores.append((store, _prepare_store(store, config, pairs, answers, accounts=True)))
        from labeling_ui.web.campaigns import Campaign, CampaignServer, path_of
        from labeling_ui.web.login.accounts import LoginLimit
        from labeling_ui.web.server import create_app, run_server

        limit, made = LoginLimit(), []
        for name, (store, new), (config, pairs, answers), (_, words) in zip(
            names, stores, read, campaigns, strict=True
        ):
            under = config.model_copy(update={"prefix": config.prefix + path_of(name)})
            page = build_page(under, words)
            mail = stack.enter_context(_mailing(store, config, page))
            made.append(Campaign(name, create_app(store, page, config.aggregation, limit, config.oidc, mail)))
            _greet(store, under, new, pairs, answers)
            stack.enter_context(_answering(config))
            stack.enter_context(_reporting(store, config, name))
            stack.enter_context(_retaining(store, config))
        door = replace(build_page(server), title="Tiebreak", oidc="")  # the button is on each campaign's own login page
        with contextlib.suppress(KeyboardInterrupt):
            run_server(CampaignServer(made, door, limit), listening, believed_proxies(server), server.prefix)
        show("", *(f"saved: {store.judged()} judgments in {store.url}" for store, _ in stores))


def _names_of(campaigns: Sequence[tuple[LabelConfig, list[str]]]) -> list[str]:
    """The campaigns' names.

    Raises:
        ConfigError: two have one name or one store, one is simulated, or they name different servers.
    """
    first = campaigns[0][0]
    for config, words in campaigns:
        if config.simulated:
            raise ConfigError(f"{words[1]}: simulated raters need no server: leave it out, or set simulate: false")
        if other := [key for key in SHARED_KEYS if getattr(config, key) != getattr(first, key)]:
            raise ConfigError(
                f"{words[1]}: {', '.join(other)} differ from {campaigns[0][1][1]}: one server has one address. Set them "
                "alike, or give them as flags"
            )
    names = [config.campaign or _name_after(Path(words[1])) for config, words in campaigns]
    urls = [config.store_url for config, _ in campaigns]
    for key, values in (("campaign", names), ("store", urls)):
        if repeated := sorted({value for value in values if values.count(value) > 1}):
            raise ConfigError(f"{key}: two campaigns have {repeated[0]}: set different ones")
    return names


def _name_after(file: Path) -> str:
    """The configuration file's name, or its folder's, as a part of an address."""
    name = file.absolute().parent.name if file.stem == "label" else file.stem
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "campaign"


def _serve_store(
    store: Store,
    config: LabelConfig,
    page: PageConfig,
    pairs: Sequence[Pair],
    answers: Sequence[SingleAnswer],
    listening: socket.socket,
) -> None:
    new = _prepare_store(store, config, pairs, answers)
    from labeling_ui.web.server import create_app, run_server

    with _mailing(store, config, page) as mail:
        app = create_app(store, page, config.aggregation, oidc=config.oidc, mail=mail)
        _greet(store, config, new, pairs, answers)
        with (
            contextlib.suppress(KeyboardInterrupt),
            _answering(config),
            _reporting(store, config),
            _retaining(store, config),
        ):
            run_server(app, listening, believed_proxies(config), config.prefix)
    show("", f"saved: {store.judged()} judgments in {store.url}")


def _prepare_store(
    store: Store,
    config: LabelConfig,
    pairs: Sequence[Pair],
    answers: Sequence[SingleAnswer],
    *,
    accounts: bool = False,
) -> int:
    """Add what the configuration names; returns how many pairs and answers are new. `accounts`: the store must have
    accounts."""
    store.rules.repeat_share, store.rules.gold_share = config.repeat_share, config.gold_share
    store.rules.qualify, store.rules.stop = config.qualify, config.stop
    store.sessions = SessionRules(config.session_hours, config.session_idle_minutes)
    if config.oidc is not None:
        require_package("authlib", "oidc", "oidc")
    _refuse_simulated(store)
    if (config.host not in LOOPBACK or config.hosts) and not needs_login(store):
        raise ConfigError(
            f"{' and '.join([config.host, *config.hosts])} would open the page to the network, but no account in "
            f"{store.url} has a password: add raters first, with 'tiebreak raters add NAME --store {store.url}'"
        )
    if accounts and not needs_login(store):
        raise ConfigError(
            f"no account in {store.url} has a password, and a server of several campaigns needs accounts: add some first, "
            f"with 'tiebreak raters add NAME --role lead --store {store.url}'"
        )
    store.keep_scales(config.asked)
    store.require(config.require)
    new = add_pairs(store, config, pairs) + add_answers(store, config, answers)
    add_judges(store, config)
    if store.lacks_log():
        show(f"{store.url} is a copy of a store in use, without its -wal file: its latest judgments are missing")
    store.begin_serving()
    return new


def believed_proxies(config: LabelConfig) -> Sequence[str]:
    """The proxies whose forwarding headers are trusted; none unless they are named."""
    if config.proxies:
        return config.proxies
    named = os.environ.get("FORWARDED_ALLOW_IPS", "")
    return [one.strip() for one in named.split(",") if one.strip()] or (LOOPBACK_PROXIES if config.hosts else ())


def _reporting(store: Store, config: LabelConfig, name: str = "") -> contextlib.AbstractContextManager[object]:
    """Sends news to the webhook, if one is configured, while the page is served. `name`: of one of several campaigns."""
    if config.webhook is None:
        return contextlib.nullcontext()
    from labeling_ui.web.webhook import Webhook

    return Webhook(store, config.webhook, config.title, name=name)


def _mailing(store: Store, config: LabelConfig, page: PageConfig) -> contextlib.AbstractContextManager[Mailer | None]:
    """Sends mails while the page is served, if a mail server is configured."""
    if config.mail is None:
        return contextlib.nullcontext()
    from labeling_ui.web.mail.sending import Mailer

    return Mailer(store, config.mail, page.title, page.words)


def _retaining(store: Store, config: LabelConfig) -> contextlib.AbstractContextManager[object]:
    """Limits how long personal data are kept, if configured, while the page is served."""
    if config.retention_days is None:
        return contextlib.nullcontext()
    from labeling_ui.web.retention import Retention

    return Retention(store, config.retention_days)


@contextlib.contextmanager
def _answering(config: LabelConfig) -> Iterator[None]:
    """Runs the process that answers conversations, if configured, while the page is served."""
    worker = start_worker(config.converse, config.store_url) if config.converse else None
    try:
        yield
    finally:
        if worker is not None:
            worker.communicate()  # closes its standard input, which ends it


def _answer_lines(
    store: Store, config: LabelConfig, answers: Sequence[SingleAnswer], configured: Batch
) -> Iterator[str]:
    """Differences between store and configuration. For a lot, which is split over two batches: how many answers are to
    be reviewed."""
    if config.inspect is None and not config.flagged:
        yield from steering.difference_lines(store, config.answers, answers, configured)
        return
    for name, lot in store.inspections().items():
        why = "those that prepare flagged" if lot["flagged"] else "a random sample"
        yield f"batch {name!r}: {lot['sample']} of {counted(lot['lot'], 'answer')} to review, {why}"


def _greet(store: Store, config: LabelConfig, new: int, pairs: Sequence[Pair], answers: Sequence[SingleAnswer]) -> None:
    configured = Batch(config.batch, config.priority, config.pool, config.overlap)
    status = store.status()
    judged = store.judged()
    address = f"http://{_shown_host(config.host)}:{config.port}{config.prefix}"
    there = [counted(status["pairs"], "pair")] if status["pairs"] or not status["single_answers"] else []
    there += [counted(status["single_answers"], "single answer")] if status["single_answers"] else []
    lines = _test_lines(store, config)
    show(
        f"{' and '.join(there)} ({new} new), {judged} of {status['judgments_wanted']} judgments",
        *(steering.difference_lines(store, config.pairs, pairs, configured) if pairs else ()),
        *steering.ranking_lines(store, config.pairs, pairs, config.ranking),
        *(_answer_lines(store, config, answers, configured) if answers else ()),
        *lines,
        f"judgments are stored in {store.url}",
        f"rate at {paint(address, 'bold') if has_colours(sys.stdout) else address}   "
        "(Ctrl-C stops the server; judgments stay)",
    )


def _test_lines(store: Store, config: LabelConfig) -> list[str]:
    """What is missing for the test that raters pass first."""
    if config.qualify is None:
        return []
    wanted = config.qualify.questions * config.qualify.attempts
    batch = set(store.pairs_in_batch(config.qualify.batch))
    there = sum(one.item_id in batch for one in store.gold())
    if there >= wanted:
        return []
    return [
        f"qualify: batch {config.qualify.batch!r} has {counted(there, 'gold pair')} of {wanted} that the test may need: "
        "raters who run out of them get no work. Set more with 'tiebreak label gold', or on /lead/"
    ]


def build_page(config: LabelConfig, words: Sequence[str] = ()) -> PageConfig:
    """The pages' settings; reads the guidelines file. `words`: what the configuration was read from."""
    from labeling_ui.pages import PageConfig, load_words

    guidelines, consent = _text_of("guidelines", config.guidelines), _text_of("consent", config.consent)
    hosts = {"127.0.0.1", "localhost", "::1", config.host, *config.hosts}
    anyone = config.host in ("0.0.0.0", "::") and not config.hosts
    shown = load_words(config.words)
    return PageConfig(
        title=_title_of(config, shown),
        guidelines=guidelines,
        guideline_version=config.guideline_version,
        consent=consent,
        consent_version=config.consent_version,
        show_gold_agreement=config.show_gold_agreement,
        goal_per_day=config.goal_per_day,
        break_after_minutes=config.break_after_minutes,
        unsent_in_browser=config.unsent_in_browser,
        security_log=config.security_log,
        second_factor_for_leads=config.second_factor_for_leads,
        asked=config.asked,
        reason=config.ask_reason,
        oidc=config.oidc.label if config.oidc else "",
        words=shown,
        policies=tuple(config.converse.policies) if config.converse else (),
        system=config.converse.system if config.converse else "",
        no_difference=config.no_difference,
        pulls=_pull_reports(config, words),
        prefix=config.prefix,
        hosts=() if anyone else tuple(sorted(hosts)),
    )


def _title_of(config: LabelConfig, words: Mapping[str, str]) -> str:
    """The configured title. Of single answers alone, by default what their task asks, which is no comparison."""
    task = "review" if config.flagged else config.task
    if "title" in config.model_fields_set or not config.answers or config.pairs or config.converse or not task:
        return config.title
    return words[f"title.{task}"]


def _pull_reports(config: LabelConfig, words: Sequence[str]) -> PullReports:
    """The reports of reward models, and where their names come from."""
    file, _ = take_config_flag(words, "label")
    return PullReports(config.reward_reports, file, lambda: load_config(LabelConfig, words, "label").reward_reports)


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
    if has_config(words):
        config = load_config(LabelConfig, words, "label export")
        store = Store.open(config.store_url)
        _match_pairs(store, config)
        add_judges(store, config)
    else:
        arguments = load_config(ExportArguments, words, "label export")
        store = Store.open(arguments.store)
        config = _config_of_store(store, arguments.output, arguments)
    since = store.since_export()
    with start_run(config, "label") as run, tracked(run):
        if run.finished:
            _check_exported(store, run)
            print(f"{run.folder} already holds this export: nothing to do")
        else:
            print(describe(export(store, run, config.aggregation, config.formats), run))
            if since is not None:
                print(since)
    say_label_end(config, words, [source for source, _ in store.campaign().get("sources", [])])


def _match_pairs(store: Store, config: LabelConfig) -> None:
    sources = [identity for _, identity in store.campaign().get("sources", [])]
    named = [source for source in (config.pairs, config.answers) if source]
    if missing := next((source for source in named if identify_input(source).id not in sources), None):
        raise HandoffError(
            f"{store.url} does not contain the rows of {missing}: serve them once with 'tiebreak label --config …', "
            "or export the store with 'tiebreak label export --store URL --output FOLDER'"
        )


def _config_of_store(store: Store, output: str, arguments: ExportArguments) -> LabelConfig:
    """The configuration that matches a store's settings. Pairs that have been moved or changed are left out."""
    settings = store.campaign()
    inputs: dict[str, Any] = {"pairs": "", "answers": ""}
    single = store.sources_of_single_answers()
    for source, identity in settings.get("sources", []):
        try:
            if identify_input(source).id == identity:
                inputs["answers" if identity in single else "pairs"] = source
        except TiebreakError:
            continue
    campaign = {"overlap": settings.get("overlap", 1), "seed": settings.get("seed", 0)}
    return LabelConfig(
        output=output,
        **inputs,
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
    of_kinds = status["judgments"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in of_kinds.items() if kind != "model" or len(of_kinds) == 1)
    if beside := sum(of_kinds.values()) - status["judged"]:
        kinds += f"; beside them, {beside} by model judges"
    judgments = f"of {status['judgments_wanted']} wanted" + (f": {kinds}" if kinds else "")
    judged = f"{status['single_answers_judged']} judged"
    single = [("single answers", status["single_answers"], judged)] if status["single_answers"] else []
    rows = [
        ("pairs", status["pairs"], f"{status['withdrawn']} more withdrawn" if status["withdrawn"] else ""),
        ("items", status["items"], f"{status['items_judged']} judged, {status['disputed']} disputed"),
        *single,
        ("judgments", status["judged"], judgments),
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
        if result.redacted:
            print(f"{counted(result.redacted, 'event')} lost texts when personal data were erased, as the log records")
    if result.faults:
        listed = "\n".join(f"  {fault}" for fault in result.faults[:50])
        raise StoreError(f"{store.url}: {counted(len(result.faults), 'error')}\n{listed}")


def _import(words: list[str]) -> None:
    arguments = load_config(ImportArguments, words, "label import")
    own = partial(
        read_own,
        columns=arguments.columns,
        adjudications=arguments.adjudications,
        answers=arguments.answers,
        task=arguments.task,
    )
    if arguments.format != "tiebreak" and (arguments.adjudications or arguments.answers or arguments.task):
        raise ConfigError(
            f"label import --format {arguments.format}: --adjudications, --answers and --task need Tiebreak's own format"
        )
    read = own if arguments.format == "tiebreak" else partial(read_foreign, arguments.format, names=arguments.fields)
    records = read(pairs=arguments.pairs, judgments=arguments.judgments)
    source = arguments.pairs or arguments.answers or arguments.judgments or ""
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
    print(f"added {counted(added.pairs, 'pair')} and {counted(added.judgments, 'judgment')}{more} to {store.url}")
    _say_lost_gold(store, records.gold, arguments.judgments or "")


def _say_lost_gold(store: Store, marked: Collection[str], judgments: str) -> None:
    """Name the command that makes pairs gold which were gold where their judgments come from."""
    there = {pair_id for pair_id, *_ in read_known_answers(store).gold} | {one.item_id for one in store.gold()}
    if lost := set(marked) - there:
        file = Path(judgments).with_name(GOLD_FILE)
        command = shlex.join(
            ["tiebreak", "label", "gold", "--gold", str(file) if file.is_file() else "FILE", "--store", store.url]
        )
        print(
            f"{counted(len(lost), 'pair')} with judgments of gold: they count as votes here. To make them gold: {command}"
        )


def _gold(words: list[str]) -> None:
    arguments = load_config(GoldArguments, words, "label gold")
    store = Store.open(arguments.store)
    if arguments.gold is None and not arguments.remove:
        raise ConfigError("label gold: name a file with --gold, or gold pairs with --remove ID …")
    known = {one.item_id for one in store.gold()}
    if missing := [item_id for item_id in arguments.remove if item_id not in known and arguments.gold is None]:
        raise ConfigError(f"label gold --remove: {', '.join(missing[:5])}: not gold. Nothing was changed")
    for answer in (
        read_gold(arguments.gold, store.pairs(), store.single_answers()) if arguments.gold is not None else ()
    ):
        store.set_gold(answer.item_id, answer.preferred_id, answer.value)
    for item_id in arguments.remove:
        store.remove_gold(item_id)
    print(f"{store.url} has {len(store.gold())} gold pairs")


def _agreement(words: list[str]) -> None:
    store, as_json = _open_for_reading(words, "label agreement")
    pairs, (judgments, _) = store.pairs(), store.judgments()
    known_answers = read_known_answers(store)
    measured = measure_agreement(pairs, judgments, known_answers.gold)
    if measured["judgments"]:
        groups = [group for group in group_judgments(judgments) if group.kind == measured["kind"]]
        measured["reliability"] = describe_reliability(ballots_of_groups(groups, known_answers))
        mine = [judgment for judgment in judgments if judgment.kind == measured["kind"]]
        measured["criteria"] = agreement_by_criterion(mine, known_answers.gold)
    measured["judges"] = measure_judges(pairs, judgments, known_answers.gold)
    if assessments := store.assessments():
        measured["single_answers"] = measure_assessments(assessments)
    if as_json:
        print(json.dumps(measured, indent=2))
    else:
        colours = has_colours(sys.stdout)
        show(*agreement_lines(measured, colours), *criterion_lines(measured.get("criteria", {}), colours))
        show(*assessment_lines(measured.get("single_answers", {}), colours))


def _open_for_reading(words: list[str], command: str) -> tuple[Store, bool]:
    arguments = read_store_arguments(StoreArguments, words, command)
    return Store.open(arguments.store), arguments.as_json


def describe(report: dict[str, Any], run: Run) -> str:
    """A run's report in a few lines."""
    judgments, preferences = report["judgments"], report["preferences"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in judgments["kinds"].items())
    lines = []
    if judgments["total"] or "single_answers" not in report:
        lines.append(
            f"{counted(preferences['total'], 'preference')} from {kinds} judgments of "
            f"{counted(report['pairs']['judged'], 'pair')}, in {run.folder}"
        )
    for task, about in report.get("single_answers", {}).items():
        outcomes = ", ".join(f"{count} {name}" for name, count in about["outcomes"].items())
        lines.append(f"{task}: {counted(about['answers'], 'single answer')} ({outcomes}), in {run.folder}")
    for kind, agreement in report["agreement"].items():
        share = agreement["percent_with_ties"]
        if share["value"] is not None:
            low, high = share["interval"]
            lines.append(
                f"{kind} raters agree in {share['value']:.1%} [{low:.1%}, {high:.1%}] of cases, counting ties "
                f"({counted(share['n'], 'pair')} judged by several; gold and repeats left out)"
            )
    if evaluation := report.get("evaluation"):
        lines.append(
            f"{counted(evaluation['judgments'], 'judgment')} of {counted(evaluation['pairs'], 'evaluation pair')}: in "
            "judgments.jsonl, not in preferences ('tiebreak duel report' reads them)"
        )
    lines += arm_lines(report.get("selection", {}))
    return "\n".join(lines)


if __name__ == "__main__":
    main()

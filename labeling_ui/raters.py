"""Raters' accounts.

    tiebreak raters add NAME [--role rater|reviewer|observer|lead] [--pool P] [--password-stdin] --store URL
    tiebreak raters invite [--role …] [--pool P] --store URL        a link that creates one account, within a week
    tiebreak raters reset NAME [--password-stdin] --store URL       a new password; re-enables, removes a second factor
    tiebreak raters move NAME --pool P --store URL                  to another pool; '' is everybody's
    tiebreak raters disable NAME --store URL
    tiebreak raters erase NAME [--judgments keep|withdraw] [--preview true] --store URL     only the pseudonym stays
    tiebreak raters erase --inactive-days 90 --store URL            all who have not worked for so long, leads excepted
    tiebreak raters list --store URL [--json]

Without --password-stdin, a password is generated and printed once. `--config FILE` can replace `--store URL`.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field

from labeling_ui.configuration import read_store_arguments
from labeling_ui.store.leads.erasing import Erasure
from labeling_ui.store.raters import Role
from labeling_ui.store.store import Store
from labeling_ui.web.login.accounts import (
    INVITATION_DAYS,
    INVITATION_PATH,
    add_account,
    disable,
    find_rater,
    invite,
    reset_password,
)
from tiebreak.command.help import print_help, wants_help
from tiebreak.command.table import unknown_command
from tiebreak.config import Section
from tiebreak.errors import ConfigError, counted
from tiebreak.process.ending import exit_with_message
from tiebreak.terminal import Cell, has_colours, show, titled_table

NAMELESS = ("invite", "list")


class StoreArguments(Section):
    """The store to work on."""

    store: str
    """URL of the label store, such as sqlite:///runs/x/label.sqlite"""


class InviteArguments(StoreArguments):
    """`tiebreak raters invite`"""

    role: Role = "rater"
    """rater: judges; reviewer: also sees the leads' page and settles disagreements; observer: only sees the leads'
    page; lead: manages the campaign"""
    pool: str = Field(default="", max_length=100)
    """the rater's pool; empty: none, so the rater gets only pairs for everybody"""


class AddArguments(InviteArguments):
    """`tiebreak raters add`"""

    password_stdin: bool = False
    """read the password from standard input instead of generating and printing one"""


class ResetArguments(StoreArguments):
    """`tiebreak raters reset`"""

    password_stdin: bool = False
    """read the password from standard input instead of generating and printing one"""


class MoveArguments(StoreArguments):
    """`tiebreak raters move`"""

    pool: str = Field(max_length=100)
    """the pool to move to; empty: no pool"""


class DisableArguments(StoreArguments):
    """`tiebreak raters disable`"""


class EraseArguments(StoreArguments):
    """`tiebreak raters erase`"""

    judgments: Literal["keep", "withdraw"] = "keep"
    """keep: judgments stay, under the pseudonym; withdraw: they are rejected, with the texts that the rater wrote, so that
    their places are free again"""
    inactive_days: int | None = Field(default=None, ge=1)
    """instead of a name: everybody but leads who has not worked for this many days"""
    preview: bool = False
    """true: only print what would be done"""


class ListArguments(StoreArguments):
    """`tiebreak raters list`"""

    as_json: bool = Field(default=False, alias="json")
    """print one JSON document"""


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak raters`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    asked = not words or wants_help(words)
    exit_with_message(lambda: print_help(["raters", *words]) if asked else _dispatch(words))


def _dispatch(words: list[str]) -> None:
    commands: dict[str, Callable[[list[str], str], None]] = {
        "add": _add,
        "invite": _invite,
        "reset": _reset,
        "move": _move,
        "disable": _disable,
        "erase": _erase,
        "list": _list,
    }
    if words[0] not in commands:
        raise unknown_command(words[0], "raters")
    command, rest, name = words[0], words[1:], ""
    if command not in NAMELESS:
        if command == "erase" and any(word.startswith("--inactive") for word in rest):
            rest = ["", *rest]
        elif not rest or rest[0].startswith("--"):
            raise ConfigError(f"raters {command} needs a name: tiebreak raters {command} NAME --store URL")
        name, *rest = rest
    commands[command](rest, name)


def _add(words: list[str], name: str) -> None:
    arguments = read_store_arguments(AddArguments, words, "raters add")
    password = _password(arguments.password_stdin)
    rater = add_account(Store.open(arguments.store, create=True), name, arguments.role, password, arguments.pool)
    print(f"{name} is {rater.id} ({rater.role})" + ("" if arguments.password_stdin else f", password: {password}"))


def _invite(words: list[str], _name: str) -> None:
    arguments = read_store_arguments(InviteArguments, words, "raters invite")
    token = invite(Store.open(arguments.store), None, role=arguments.role, pool=arguments.pool)
    print(f"{INVITATION_PATH}{token}   (append to the page's address; works once, within {INVITATION_DAYS} days)")


def _reset(words: list[str], name: str) -> None:
    arguments = read_store_arguments(ResetArguments, words, "raters reset")
    password = _password(arguments.password_stdin)
    reset_password(Store.open(arguments.store), name, password)
    print(f"{name} has a new password" + ("" if arguments.password_stdin else f": {password}"))


def _move(words: list[str], name: str) -> None:
    arguments = read_store_arguments(MoveArguments, words, "raters move")
    store = Store.open(arguments.store)
    store.move_rater(find_rater(store, name).id, arguments.pool)
    print(f"{name} is in pool {arguments.pool!r}" if arguments.pool else f"{name} is in everybody's pool")


def _disable(words: list[str], name: str) -> None:
    disable(Store.open(read_store_arguments(DisableArguments, words, "raters disable").store), name)
    print(f"{name} is disabled; their judgments stay")


def _erase(words: list[str], name: str) -> None:
    arguments = read_store_arguments(EraseArguments, words, "raters erase")
    store, withdraw = Store.open(arguments.store), arguments.judgments == "withdraw"
    if name and arguments.inactive_days is not None:
        raise ConfigError("raters erase: give a name, or --inactive-days, not both")
    ids = [find_rater(store, name).id] if name else store.inactive_raters(arguments.inactive_days or 1)
    for rater_id in ids:
        if arguments.preview:
            print(f"would erase {_effect(store.preview_erasure(rater_id, judgments=withdraw))}")
        else:
            print(f"erased {_effect(store.erase_rater(rater_id, judgments=withdraw))}")
    if not ids:
        print("nobody to erase")
    elif not arguments.preview:
        print("not erased: earlier backups and exports, which still have these data: delete them, or erase there too")
        print(f"next: 'tiebreak lineage runs --forget {ids[0]}' lists the models trained on the judgments")


def _effect(erasure: Erasure) -> str:
    parts = [f"{counted(erasure.kept, 'judgment')} {'stays' if erasure.kept == 1 else 'stay'}"] if erasure.kept else []
    parts += [f"{counted(erasure.judgments, 'judgment')} rejected"] if erasure.judgments else []
    parts += [f"{counted(erasure.conversations, 'pair')} of their conversations"] if erasure.conversations else []
    return f"{erasure.rater_id}: {', '.join(parts) or 'no judgments'}"


def _password(from_stdin: bool) -> str:
    return sys.stdin.readline().rstrip("\r\n") if from_stdin else secrets.token_urlsafe(9)


def _list(words: list[str], _name: str) -> None:
    arguments = read_store_arguments(ListArguments, words, "raters list")
    store = Store.open(arguments.store)
    raters = [{**vars(rater), "judgments": store.judged_by(rater.id)} for rater in store.raters()]
    if arguments.as_json:
        print(json.dumps(raters, indent=2))
        return
    rows = [
        [
            rater["id"],
            rater["name"],
            rater["kind"],
            Cell("disabled", "yellow") if rater["disabled"] else rater["role"],
            rater["pool"] or "-",
            str(rater["judgments"]),
        ]
        for rater in raters
    ]
    head = ("id", "name", "kind", "role", "pool", "judgments")
    show(*titled_table(head, rows, left=range(5), colours=has_colours(sys.stdout)))


if __name__ == "__main__":
    main()

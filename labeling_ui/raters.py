"""Who may rate.

    tiebreak raters add NAME [--role rater|lead] [--pool P] [--password-stdin] --store URL
    tiebreak raters invite [--role rater|lead] [--pool P] --store URL   a link that gives one account, for a week
    tiebreak raters reset NAME [--password-stdin] --store URL       a new password; a disabled rater is let in again
    tiebreak raters move NAME --pool P --store URL                  to another pool; '' is everybody's
    tiebreak raters disable NAME --store URL
    tiebreak raters list --store URL [--json]

Without --password-stdin a password is made and printed once. `--config FILE` may stand in place of `--store URL`.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Sequence

from pydantic import Field

from labeling_ui.accounts import (
    INVITATION_DAYS,
    INVITATION_PATH,
    add_account,
    disable,
    find_rater,
    invite,
    reset_password,
)
from labeling_ui.label import LabelConfig
from labeling_ui.store import Role, Store
from tiebreak.config import Section, load_config
from tiebreak.errors import ConfigError, exit_with_message

COMMANDS = ("add", "invite", "reset", "move", "disable", "list")
NAMELESS = ("invite", "list")


class RatersArguments(Section):
    """What `tiebreak raters` takes."""

    store: str
    role: Role = "rater"
    pool: str = Field(default="", max_length=100)


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak raters`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_message(lambda: _dispatch(words))


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help") or words[0] not in COMMANDS:
        print(__doc__)
        if words and words[0] not in ("-h", "--help"):
            raise ConfigError(f"no such command: raters {words[0]}; one of {', '.join(COMMANDS)}")
        return
    command, rest = words[0], words[1:]
    from_stdin, as_json = "--password-stdin" in rest, "--json" in rest
    rest = [word for word in rest if word not in ("--password-stdin", "--json")]
    name = ""
    if command not in NAMELESS:
        if not rest or rest[0].startswith("--"):
            raise ConfigError(f"raters {command} needs a name: tiebreak raters {command} NAME --store URL")
        name, *rest = rest
    given = _read_flags(rest, command)
    store = Store.open(given.store, create=command == "add")
    match command:
        case "add":
            password = _password(from_stdin)
            rater = add_account(store, name, given.role, password, given.pool)
            print(f"{name} is {rater.id} ({rater.role})" + ("" if from_stdin else f", password: {password}"))
        case "invite":
            token = invite(store, None, role=given.role, pool=given.pool)
            print(f"{INVITATION_PATH}{token}   (behind the page's address; works once, within {INVITATION_DAYS} days)")
        case "move":
            store.move_rater(find_rater(store, name).id, given.pool)
            print(f"{name} is in the pool {given.pool!r}" if given.pool else f"{name} is in everybody's pool")
        case "reset":
            password = _password(from_stdin)
            reset_password(store, name, password)
            print(f"{name} has a new password" + ("" if from_stdin else f": {password}"))
        case "disable":
            disable(store, name)
            print(f"{name} is disabled; what they judged stays")
        case _:
            _list(store, as_json)


def _read_flags(words: list[str], command: str) -> RatersArguments:
    """Role, pool and store; the store may be that of a labelling configuration."""
    if not any(word == "--config" or word.startswith("--config=") for word in words):
        return load_config(RatersArguments, words, f"raters {command}")
    own, rest = [], []
    remaining = iter(words)
    for word in remaining:
        if word.split("=")[0] in ("--role", "--pool"):
            own += [word] if "=" in word else [word, next(remaining, "")]
        else:
            rest.append(word)
    url = load_config(LabelConfig, rest, f"raters {command}").store_url
    return load_config(RatersArguments, [*own, "--store", url], f"raters {command}")


def _password(from_stdin: bool) -> str:
    return sys.stdin.readline().rstrip("\r\n") if from_stdin else secrets.token_urlsafe(9)


def _list(store: Store, as_json: bool) -> None:
    raters = [{**vars(rater), "judgments": store.progress(rater.id).done} for rater in store.raters()]
    if as_json:
        print(json.dumps(raters, indent=2, ensure_ascii=False))
        return
    for one in raters:
        state = "disabled" if one["disabled"] else one["role"]
        pool = f"  ({one['pool']})" if one["pool"] else ""
        print(f"{one['id']:<16} {one['kind']:<10} {state:<9} {one['judgments']:>6}  {one['name']}{pool}")


if __name__ == "__main__":
    main()

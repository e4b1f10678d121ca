"""Threads of support tickets as conversations: the customer is the user, and who answers is the assistant.

    {"subject": …, "requester_id": 7, "comments": [{"author_id": 7, "body": …, "public": true}, …]}       Zendesk's
    {"source": {"body": …, "author": {"type": "user"}}, "conversation_parts": {"conversation_parts": […]}}  Intercom's

Notes between agents are for nobody else, files are not read, and a customer's last message has no answer to learn from:
these are left out and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

_CUSTOMERS = ("end-user", "end_user", "user", "lead", "contact", "customer", "requester")
_AGENTS = ("agent", "admin", "team", "teammate", "bot", "operator")
_BODIES = ("plain_body", "body", "html_body")
_TITLES = ("subject", "raw_subject", "title")
NOTES, FILES = "internal notes of tickets", "files attached to tickets"
AFTER = "customers' last messages, which nobody answered"


@dataclass
class Ticket:
    """A ticket's public conversation."""

    system: str
    """the tool that wrote it"""
    turns: list[tuple[str, str]] = field(default_factory=list)
    """(role, text); neighbours have different roles"""
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, role: str, text: str) -> None:
        """Append a turn, to the one before if that has the same speaker."""
        if not text.strip():
            return
        if self.turns and self.turns[-1][0] == role:
            self.turns[-1] = (role, f"{self.turns[-1][1]}\n\n{text}")
        else:
            self.turns.append((role, text))

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns as messages."""
        return [{"role": role, "content": text} for role, text in self.turns]


def is_ticket(row: Mapping[str, Any]) -> bool:
    """Whether a row is a ticket's thread."""
    is_another = any(name in row for name in ("prompt", "messages", "completion"))
    return not is_another and (_is_zendesk(row) or _is_intercom(row))


def _is_zendesk(row: Mapping[str, Any]) -> bool:
    comments = _comments(row)
    if not comments:
        return row.get("comments") == [] and "requester_id" in row
    return all(
        any(name in one for name in _BODIES) and any(name in one for name in ("author_id", "author", "author_role"))
        for one in comments
    )


def _is_intercom(row: Mapping[str, Any]) -> bool:
    source = row.get("source")
    return isinstance(source, Mapping) and "body" in source and isinstance(source.get("author"), Mapping)


def ticket_of(row: Mapping[str, Any]) -> Ticket:
    """A ticket's conversation.

    Raises:
        ValueError: an author is neither customer nor agent.
    """
    ticket = Ticket("Intercom") if _is_intercom(row) else Ticket("Zendesk")
    entries = _intercom_entries(row, ticket) if ticket.system == "Intercom" else _zendesk_entries(row, ticket)
    for number, (role, text) in enumerate(entries):
        title = next((row[name] for name in _TITLES if isinstance(row.get(name), str) and row[name].strip()), "")
        if number == 0 and role == "user" and title and title.casefold() not in text.casefold():
            text = f"{title.strip()}\n\n{text}"
        ticket.add(role, text)
    return ticket


def tickets_of(value: object) -> list[dict[str, Any]] | None:
    """The tickets of an export with its users beside them, each with its users' roles; None if it is not one."""
    if not isinstance(value, Mapping):
        return None
    tickets, users = value.get("tickets"), value.get("users")
    if (
        not isinstance(tickets, list)
        or not isinstance(users, list)
        or not all(isinstance(one, dict) for one in tickets)
    ):
        return None
    roles = {one.get("id"): one.get("role") for one in users if isinstance(one, Mapping)}
    return [{**one, "comments": [_with_role(comment, roles) for comment in _comments(one)]} for one in tickets]


def _with_role(comment: Mapping[str, Any], roles: Mapping[Any, Any]) -> dict[str, Any]:
    role = roles.get(comment.get("author_id"))
    return {**comment, "author_role": role} if role else dict(comment)


def _in_time(entries: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The entries by the time of each (`created_at`); as they come if one has none. Some exports begin with the newest."""
    times = [_time_of(one.get("created_at")) for one in entries]
    stated = [time for time in times if time is not None]
    if len(stated) < len(entries):
        return entries
    return [entries[number] for number in sorted(range(len(entries)), key=stated.__getitem__)]


def _time_of(stated: object) -> float | None:
    """Seconds since 1970 of a number or of ISO 8601; None of anything else."""
    if isinstance(stated, int | float) and not isinstance(stated, bool):
        return float(stated)
    if not isinstance(stated, str):
        return None
    try:
        time = datetime.fromisoformat(stated.strip())
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


# --- Zendesk -----------------------------------------------------------------------------------------------------------


def _comments(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = row.get("comments")
    return [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []


def _zendesk_entries(row: Mapping[str, Any], ticket: Ticket) -> Iterator[tuple[str, str]]:
    for number, comment in enumerate(_in_time(_comments(row)), start=1):
        if str(comment.get("public")).strip().lower() in ("false", "0"):
            ticket.left_out[NOTES] += 1
            continue
        ticket.left_out[FILES] += _number_of(comment.get("attachments"))
        text = next((comment[name] for name in _BODIES if isinstance(comment.get(name), str)), "")
        yield _role_of(f"comment {number}", comment, row.get("requester_id")), text


def _role_of(place: str, comment: Mapping[str, Any], requester: Any) -> str:
    author = comment.get("author")
    stated = author.get("role") or author.get("type") if isinstance(author, Mapping) else comment.get("author_role")
    if isinstance(stated, str):
        return _speaker(place, stated)
    if requester is None:
        raise ValueError(f"{place}: neither requester_id nor the author's role says who is the customer")
    identity = author.get("id") if isinstance(author, Mapping) else comment.get("author_id", author)
    return "user" if identity == requester else "assistant"


def _speaker(place: str, stated: str) -> str:
    word = stated.strip().lower()
    if word in _CUSTOMERS:
        return "user"
    if word in _AGENTS:
        return "assistant"
    raise ValueError(f"{place}: unknown author {stated!r}; known: {', '.join((*_CUSTOMERS, *_AGENTS))}")


def _number_of(files: object) -> int:
    return len(files) if isinstance(files, Sequence) and not isinstance(files, str) else 0


# --- Intercom ----------------------------------------------------------------------------------------------------------


def _intercom_entries(row: Mapping[str, Any], ticket: Ticket) -> Iterator[tuple[str, str]]:
    source = row["source"]
    parts = row.get("conversation_parts") or []
    listed = parts.get("conversation_parts") or [] if isinstance(parts, Mapping) else parts
    entries = [source, *_in_time([one for one in listed if isinstance(one, Mapping)])]
    subject = source.get("subject")
    for number, part in enumerate(entries):
        if str(part.get("part_type")).startswith("note"):  # note_and_reopen as well
            ticket.left_out[NOTES] += 1
            continue
        ticket.left_out[FILES] += _number_of(part.get("attachments"))
        body = part.get("body")
        if not isinstance(body, str) or not body.strip():  # who was assigned, opened, closed
            continue
        author = part.get("author")
        stated = author.get("type") if isinstance(author, Mapping) else None
        if number == 0 and isinstance(subject, str) and subject.strip():
            body = f"{subject.strip()}\n\n{body}"
        yield _speaker(f"part {number}", str(stated)), body

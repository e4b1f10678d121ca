"""Trees of messages, as OpenAssistant publishes them, as rows: rankings of replies, and conversations by the best replies.

{"message_id": "b", "parent_id": "a", "text": …, "role": "assistant", "rank": 0, …}          a message a row
{"message_tree_id": "a", "prompt": {"text": …, "role": "prompter", "replies": [{…}, …]}}     a tree a row
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiebreak.data.text import Row, Table

_MESSAGE = {"message_id", "parent_id", "text", "role"}
_OF_NODE = {*_MESSAGE, "replies", "rank", "deleted", "prompt"}
"""keys that are read here; others of a row stay in it"""
DELETED, UNRANKED = "deleted messages and replies to them", "replies without a rank"
WORSE, UNANSWERED = "replies that another is ranked above", "trees without an answer"


@dataclass
class Node:
    """A message and the replies to it."""

    where: str
    message: Mapping[str, Any]
    others: Mapping[str, Any]
    """the rest of its row"""
    replies: list[Node] = field(default_factory=list)

    @property
    def turn(self) -> dict[str, Any]:
        """The message in a conversation."""
        role = "assistant" if self.message["role"] == "assistant" else "user"
        return {"role": role, "content": self.message["text"]}

    @property
    def rank(self) -> float | None:
        """0 is the best."""
        rank = self.message.get("rank")
        return None if rank is None else float(rank)


def holds_trees(table: Table) -> bool:
    """Whether every row is a tree, or a message of one."""
    rows = [row for _, row in table.rows]
    return bool(rows) and (all(map(_is_tree, rows)) or all(map(_is_message, rows)))


def _is_message(row: Mapping[str, Any]) -> bool:
    return row.keys() >= _MESSAGE and row["role"] in ("prompter", "assistant")


def _is_tree(row: Mapping[str, Any]) -> bool:
    root = row.get("prompt")
    return isinstance(root, Mapping) and root.keys() >= {"text", "role", "replies"}


def open_trees(table: Table, wanted: str) -> tuple[Table, Counter[str]]:
    """(rows of what is wanted from a table of trees, why messages are left out); any other table as it is.

    Raises:
        ValueError: a reply has no message that it replies to.
    """
    make = {"preferences": _rankings, "demonstrations": _best_conversation, "prompts": _prompt}.get(wanted)
    left_out: Counter[str] = Counter()
    if make is None or not holds_trees(table):
        return table, left_out
    if _is_tree(table.rows[0][1]):
        roots = [_nested(where, row["prompt"], _others(row)) for where, row in table.rows]
    else:
        roots = _joined(table.rows)
    roots = _without_deleted(roots, left_out)
    return Table([row for root in roots for row in make(root, left_out)], table.bad), left_out


def _nested(where: str, message: Mapping[str, Any], others: Mapping[str, Any]) -> Node:
    """A tree's message, with the replies in it."""
    return Node(where, message, others, [_nested(where, reply, others) for reply in message.get("replies") or ()])


def _joined(rows: Sequence[Row]) -> list[Node]:
    """The roots of messages that name their parents."""
    nodes = {row["message_id"]: Node(where, row, _others(row)) for where, row in rows}
    roots = []
    for node in nodes.values():
        parent = node.message["parent_id"]
        if not parent:
            roots.append(node)
        elif parent in nodes:
            nodes[parent].replies.append(node)
        else:
            raise ValueError(f"{node.where}: its parent_id is no message_id of the rows that are read with it")
    return roots


def _others(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in _OF_NODE}


def _without_deleted(nodes: Sequence[Node], left_out: Counter[str]) -> list[Node]:
    kept = []
    for node in nodes:
        if node.message.get("deleted"):
            left_out[DELETED] += sum(1 for _ in _paths(node))
        else:
            node.replies = _without_deleted(node.replies, left_out)
            kept.append(node)
    return kept


def _rankings(root: Node, left_out: Counter[str]) -> Iterator[Row]:
    """A row for each message of the user's with two or more ranked replies."""
    for path in _paths(root):
        last = path[-1]
        ranked = [reply for reply in last.replies if reply.rank is not None]
        if last.turn["role"] == "assistant" or len(last.replies) < 2:
            continue
        left_out[UNRANKED] += len(last.replies) - len(ranked)
        if len(ranked) > 1:
            answers = [{"answer": reply.turn["content"], "rank": reply.rank} for reply in ranked]
            yield last.where, {**last.others, "prompt": [node.turn for node in path], "answers": answers}


def _paths(node: Node, before: tuple[Node, ...] = ()) -> Iterator[tuple[Node, ...]]:
    """The path to each message of a tree."""
    path = (*before, node)
    yield path
    for reply in node.replies:
        yield from _paths(reply, path)


def _best_conversation(root: Node, left_out: Counter[str]) -> Iterator[Row]:
    """The conversation along the best replies, up to the last answer."""
    path = [root]
    while replies := path[-1].replies:
        path.append(min(replies, key=lambda reply: (reply.rank is None, reply.rank or 0.0)))
        left_out[WORSE] += len(replies) - 1
    if path[-1].turn["role"] == "user":
        path.pop()
    if path:
        yield root.where, {**root.others, "messages": [node.turn for node in path]}
    else:
        left_out[UNANSWERED] += 1


def _prompt(root: Node, _: Counter[str]) -> Iterator[Row]:
    """The first message."""
    yield root.where, {**root.others, "prompt": [root.turn]}

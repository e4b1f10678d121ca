"""Words of items, for the leads' search: a full-text index in the store, the same on both databases.

Texts are split into words here and not by a database, so that a search finds the same on SQLite (FTS5) and on Postgres
(tsvector). Chinese and Japanese have no spaces: there, every character is a word, and a search for several of them is
for a phrase.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tiebreak.records import Pair

MAX_INDEXED_CHARACTERS = 100_000
"""of an item: later ones are not indexed"""
MAX_WORD_CHARACTERS = 60
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+")
_PART = re.compile(r'"([^"]*)"|(\S+)')

_SQLITE_TABLE = (
    "CREATE VIRTUAL TABLE item_words USING fts5 "
    "(words, content='', columnsize=0, tokenize='unicode61 remove_diacritics 0')"
)
_POSTGRES_TABLE = (
    "CREATE TABLE item_words (position INTEGER PRIMARY KEY, words TSVECTOR NOT NULL)",
    "CREATE INDEX item_words_index ON item_words USING gin (words)",
)


def create_index(connection: Connection) -> None:
    """Create the empty index."""
    for statement in (_SQLITE_TABLE,) if connection.dialect.name == "sqlite" else _POSTGRES_TABLE:
        connection.exec_driver_sql(statement)


def words_of(text: str) -> list[str]:
    """The words of a text, without case.

    >>> words_of("Don't use snake_case, Stra\u00dfe or \u6f22\u5b57.")
    ['don', 't', 'use', 'snake', 'case', 'strasse', 'or', '\u6f22', '\u5b57']
    """
    return [word[:MAX_WORD_CHARACTERS] for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold())]


def phrases_of(query: str) -> list[list[str]]:
    """The phrases of a search: an item must have all of them. The last word of each also matches longer words.

    >>> phrases_of('iron "pale leaves" \u6f22\u5b57')
    [['iron'], ['pale', 'leaves'], ['\u6f22', '\u5b57']]
    """
    return [found for quoted, plain in _PART.findall(query) if (found := words_of(quoted or plain))]


def index_items(connection: Connection, texts: Iterable[tuple[int, str]]) -> None:
    """Add items' texts to the index: (position, text)."""
    rows = [(position, words_of(text)) for position, text in texts]
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        statement = "INSERT INTO item_words (rowid, words) VALUES (?, ?)"
        connection.exec_driver_sql(statement, [(position + 1, " ".join(words)) for position, words in rows])
        return
    connection.execute(
        sa.text("INSERT INTO item_words (position, words) VALUES (:position, CAST(:words AS tsvector))"),
        [{"position": position, "words": _vector(words)} for position, words in rows],
    )


def matching(connection: Connection, query: str, after: int, limit: int | None) -> sa.Select[Any] | None:
    """The positions, after `after`, of items with all phrases of a search; None if the search has no words.

    Args:
        limit: most positions to return.
    """
    phrases = phrases_of(query)
    if not phrases:
        return None
    if connection.dialect.name == "sqlite":
        match = " ".join('"' + " ".join(phrase) + '" *' for phrase in phrases)
        found = sa.text("SELECT rowid - 1 AS position FROM item_words WHERE item_words MATCH :match AND rowid > :row")
        found = sa.text(f"{found.text} ORDER BY rowid LIMIT :most")
        bound = {"match": match, "row": after + 1, "most": -1 if limit is None else limit}
    else:
        match = " & ".join(" <-> ".join(_lexemes(phrase)) for phrase in phrases)
        found = sa.text(
            "SELECT position FROM item_words WHERE words @@ CAST(:match AS tsquery) AND position > :after "
            "ORDER BY position LIMIT :most"
        )
        bound = {"match": match, "after": after, "most": limit}
    table = found.bindparams(**bound).columns(sa.column("position", sa.Integer)).subquery()
    return sa.select(table.c.position)


def text_of(pair: Pair, first_id: str, second_id: str | None, task: str) -> str:
    """An item's text: the conversation, and the completions that it compares."""
    compared = [one.text for one in pair.completions if task == "ranking" or one.id in (first_id, second_id)]
    return "\n".join([*(message.text for message in pair.messages), *compared])[:MAX_INDEXED_CHARACTERS]


def length_of(pair: Pair, first_id: str, second_id: str | None, task: str) -> int:
    """The characters of the longest completion of an item."""
    return max(len(one.text) for one in pair.completions if task == "ranking" or one.id in (first_id, second_id))


def _lexemes(phrase: list[str]) -> Iterator[str]:
    for n, word in enumerate(phrase, start=1):
        yield f"'{word}'{':*' if n == len(phrase) else ''}"


def _vector(words: list[str]) -> str:
    """A tsvector as Postgres reads it: words have no quotes."""
    return " ".join(f"'{word}':{min(n, 16_383)}" for n, word in enumerate(words, start=1))

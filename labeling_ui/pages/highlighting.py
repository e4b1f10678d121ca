"""Code in answers, with its keywords, strings and comments marked: classes only, no style and no script.

The lexers are Pygments'. Code is untrusted text: it is marked in languages that are listed here and up to a length, and
only where the marked text is the same, character for character.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterator

from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Literal, Name, Number, Operator, String
from pygments.util import ClassNotFound

MAX_CODE_CHARACTERS = 12_000
MAX_SECONDS = 0.3
"""Of the processor; what takes longer is not marked."""

LANGUAGES = frozenset(
    """
    bash c c# c++ clojure console cpp cs csharp css dart diff docker dockerfile elixir erlang fortran go golang
    graphql groovy haskell html ini java javascript js json json5 jsx julia kotlin kt latex lua make makefile
    matlab nginx objective-c ocaml perl php postgresql powershell ps1 protobuf py python python3 r rb rs ruby
    rust scala scss sh shell sql swift terraform tex toml ts tsx typescript vb.net xml yaml yml zig zsh
    """.split()
)
_CLASSES = (
    (Comment, "hc"), (String, "hs"), (Number, "hn"), (Literal, "hs"), (Keyword, "hk"), (Operator.Word, "hk"),
    (Name.Function, "hf"), (Name.Class, "hf"), (Name.Tag, "hk"), (Name.Attribute, "hf"), (Name.Decorator, "hf"),
    (Name.Builtin, "hf"),
)  # fmt: skip


def mark_code(code: str, language: str) -> str:
    """Code as HTML, its tokens in spans; escaped only, where it cannot be marked."""
    plain = html.escape(code)
    language = language.lower()
    if language not in LANGUAGES or len(code) > MAX_CODE_CHARACTERS:
        return plain
    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
        tokens = list(_timely(lexer, code))
    except (ClassNotFound, TimeoutError):
        return plain
    if "".join(text for _, text in tokens) != code:
        return plain
    return "".join(_span(kind, text) for kind, text in tokens)


def _timely(lexer: Lexer, code: str) -> Iterator[tuple[tuple[str, ...], str]]:
    until = time.thread_time() + MAX_SECONDS
    for token in lexer.get_tokens(code):
        if time.thread_time() > until:
            raise TimeoutError
        yield token


def _span(kind: tuple[str, ...], text: str) -> str:
    name = next((name for group, name in _CLASSES if kind in group), "")
    return f"<span class='{name}'>{html.escape(text)}</span>" if name else html.escape(text)

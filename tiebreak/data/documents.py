"""Documents as rows: a text, Markdown, HTML or PDF file is one prompt.

Of HTML, the main text is taken (trafilatura, Barbaresi 2021), of PDF the text of its pages (pypdf). A file without
text, such as a scanned PDF, is a bad row with its reason.
"""

from __future__ import annotations

import importlib
import io
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiebreak.data.compression import read_bytes
from tiebreak.data.text import BadRow, Table
from tiebreak.errors import DataError, counted

MARKUP_ENDINGS = (".html", ".htm")
DOCUMENT_ENDINGS = (".txt", ".md", *MARKUP_ENDINGS, ".pdf")
DOCUMENT = "document"
"""the column of a document's text"""
_CHARSET = re.compile(rb"""charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def read_document(path: Path) -> Table:
    """A document.

    Raises:
        DataError: the file cannot be read, or a package that reads it is missing.
    """
    content, ending = read_bytes(path), path.suffix.lower()
    try:
        text = _of_pdf(content) if ending == ".pdf" else _READ.get(ending, decoded)(content)
    except ValueError as error:
        return Table(bad=[BadRow(str(path), str(error))])
    if not text.strip():
        return Table(bad=[BadRow(str(path), "no text in it")])
    return Table([(str(path), {DOCUMENT: text.strip(), "source": path.name})])


def decoded(content: bytes) -> str:
    """A text by its byte-order mark, otherwise as UTF-8.

    Raises:
        ValueError: it is in another encoding.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    return _decode(content, encoding)


def _decode(content: bytes, encoding: str) -> str:
    try:
        text = content.decode(encoding)
    except LookupError:
        raise ValueError(f"unknown encoding {encoding!r}: save it as UTF-8") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not {encoding.upper()} ({error.reason} at byte {error.start}): save it as UTF-8") from None
    if "\0" in text:
        raise ValueError("not text: it has NUL bytes")
    return text.replace("\r\n", "\n")


def _of_html(content: bytes) -> str:
    stated = _CHARSET.search(content[:2048])
    marked = any(content.startswith(mark) for mark, _ in _MARKS)
    text = _decode(content, stated[1].decode()) if stated and not marked else decoded(content)
    extract: Callable[..., str | None] = _package("trafilatura").extract
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # an empty page is a bad row of ours
    return extract(text, include_comments=False, output_format="txt") or ""


def _of_pdf(content: bytes) -> str:
    pypdf = _package("pypdf")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise ValueError("a PDF with a password: save it without")
        pages = [page.extract_text().strip() for page in reader.pages]
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 a broken PDF breaks its reader in many ways
        raise ValueError(f"cannot be read as PDF: {str(error).splitlines()[0] if str(error) else error!r}") from None
    text = "\n\n".join(page for page in pages if page)
    if not text:
        raise ValueError(
            f"a PDF without text ({counted(len(pages), 'page')} of pictures?): recognise its text first (OCR)"
        )
    return text


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise DataError(f"documents need {name}: pip install 'tiebreak[data]'") from error


_READ: dict[str, Callable[[bytes], str]] = dict.fromkeys(MARKUP_ENDINGS, _of_html)

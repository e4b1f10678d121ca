"""LaTeX as MathML by Temml 0.13.5 (MIT) and its extension mhchem, in a JavaScript engine without input or output.

Temml lies in `temml/` as npm distributes it. It runs here, on the server, so that a page needs no further script and marked
passages keep their offsets. QuickJS bounds its memory and time, and Temml the expansion of macros.
"""

from __future__ import annotations

import functools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import quickjs

from labeling_ui.pages.latex import UnsupportedFormulaError

TEMML = Path(__file__).parent / "temml"
MAX_MEMORY_BYTES = 64_000_000
MAX_SECONDS = 2.0
MAX_MACROS = 200
"""Expansions of macros in one formula."""
MAX_SIZE_EM = 20
"""Of a rule or space that a formula asks for."""
_TYPESET = """(function (source, display) {
  try {
    return JSON.stringify([temml.renderToString(source, {
      displayMode: display, throwOnError: true, strict: false, trust: false, maxExpand: %d, maxSize: [%d, %d] }), '']);
  } catch (error) {
    return JSON.stringify(['', String(error)]);
  }
})"""


def typeset(source: str, *, display: bool) -> str:
    """A formula as Temml's MathML.

    Raises:
        UnsupportedFormulaError: Temml does not know something in it, or it is too large.
    """
    return _one_thread().submit(_typeset, source, display).result()


def warm() -> None:
    """Load the engine without waiting for it, so that the first rater does not."""
    _one_thread().submit(_typeset, "x", False)


@functools.cache
def _one_thread() -> ThreadPoolExecutor:
    """Only the thread that made an engine may use it."""
    return ThreadPoolExecutor(1, thread_name_prefix="temml")


@functools.cache
def _engine() -> Any:
    engine = quickjs.Context()
    engine.set_memory_limit(MAX_MEMORY_BYTES)
    for script in ("temml.min.js", "mhchem.min.js"):
        engine.eval((TEMML / script).read_text(encoding="utf-8") + ";0")
    engine.set_time_limit(MAX_SECONDS)
    return engine.eval(_TYPESET % (MAX_MACROS, MAX_SIZE_EM, MAX_SIZE_EM))


def _typeset(source: str, display: bool) -> str:
    try:
        drawn, fault = json.loads(_engine()(source, display))
    except quickjs.JSException as error:  # out of memory, time or stack: the engine is not used again
        _engine.cache_clear()
        raise UnsupportedFormulaError(str(error)) from error
    if fault:
        raise UnsupportedFormulaError(fault)
    return str(drawn)


def _forget() -> None:
    """A forked process has none of its parent's threads."""
    _one_thread.cache_clear()
    _engine.cache_clear()


os.register_at_fork(after_in_child=_forget)

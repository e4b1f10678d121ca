"""HTML and SVG by construction: every string is escaped unless it was built here."""

from __future__ import annotations

import re
from html import escape

VOID = frozenset({"meta", "link", "br", "input"})

_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


class Markup(str):
    """Text that is already HTML and is not escaped again."""

    __slots__ = ()


def visible(text: str) -> str:
    """Control, zero-width and direction marks made visible: none may hide or reorder text on the page."""
    text = _CONTROLS.sub(lambda m: "␡" if m.group() == "\x7f" else chr(0x2400 + ord(m.group())), text)
    return _INVISIBLE.sub(lambda m: f"‹U+{ord(m.group()):04X}›", text.replace("\r\n", "\n").replace("\r", "␍"))


def el(name: str, *content: object, cls: str = "", **attributes: object) -> Markup:
    """One element. `cls` is its class; `_` in other names becomes `-`; True is a bare attribute, None leaves one out."""
    attributes = {
        "class": cls or None,
        **{key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()},
    }
    parts = [name]
    for key, value in attributes.items():
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            parts.append(f'{key}="{escape(_plain(value))}"')
    opening = f"<{' '.join(parts)}>"
    return Markup(opening if name in VOID else f"{opening}{join(*content)}</{name}>")


def join(*content: object) -> Markup:
    """Concatenates pieces: lists are flattened, None is nothing, everything but Markup is escaped."""
    pieces = []
    for piece in content:
        if isinstance(piece, Markup):
            pieces.append(str(piece))
        elif isinstance(piece, (list, tuple)):
            pieces.append(str(join(*piece)))
        elif piece is not None:
            pieces.append(escape(visible(str(piece))))
    return Markup("".join(pieces))


def _plain(value: object) -> str:
    """An attribute's value; one decimal is enough for coordinates."""
    return f"{value:.1f}" if isinstance(value, float) else visible(str(value))


def svg(
    width: int,
    height: int,
    *content: object,
    cls: str = "",
    label: str | None = None,
    fixed: bool = False,
    **more: object,
) -> Markup:
    """An SVG drawing, of fixed size if `fixed`; an image to screen readers with a `label`, otherwise decoration."""
    role = {"role": "img", "aria_label": label} if label else {"aria_hidden": "true"}
    size = {"width": width, "height": height} if fixed else {}
    return el("svg", *content, cls=cls, viewBox=f"0 0 {width} {height}", **size, **role, **more)


def line(x1: float, y1: float, x2: float, y2: float, cls: str) -> Markup:
    return el("line", cls=cls, x1=x1, y1=y1, x2=x2, y2=y2)


def text(x: float, y: float, content: str, cls: str, anchor: str = "start") -> Markup:
    return el("text", content, cls=cls, x=x, y=y, text_anchor=None if anchor == "start" else anchor)

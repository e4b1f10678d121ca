"""Tables that become cards on a narrow screen, with figures, intervals and whiskers in their cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tiebreak.page.charts import Scale, whisker, whisker_axis
from tiebreak.page.markup import Markup, el

Form = Callable[[float], str]


def note(*content: object) -> Markup:
    """A line of small print."""
    return el("p", *content, cls="note-text")


def heading(title: str, unit: str = "", numeric: bool = False, scale: Scale | None = None) -> Markup:
    """A column's head, with its unit and, over whiskers, their axis."""
    below = el("span", unit, cls="unit") if unit else None
    axis = whisker_axis(scale) if scale else None
    return el("th", title, below, axis, scope="col", cls="n" if numeric else "")


def cell(name: str, *content: object, cls: str = "", absent: bool = False) -> Markup:
    """A cell with its column's name, which is shown beside it on a narrow screen."""
    return el("td", *content, cls=f"{cls} absent".strip() if absent else cls, data_name=name)


def figure(name: str, value: float | None, form: Form) -> Markup:
    """A cell with one number; an en dash for None."""
    return cell(name, "–" if value is None else form(value), cls="n", absent=value is None)


def table(headings: Sequence[Markup], rows: Sequence[Markup], cls: str = "stack") -> Markup:
    """A table of finished rows; `stack` turns each row into a card on a narrow screen."""
    head = el("thead", el("tr", list(headings))) if headings else None
    return el("table", head, el("tbody", list(rows)), cls=cls)


def ranged(value: float, interval: Sequence[float] | None, form: Form) -> Markup:
    """A figure with its interval in small print."""
    edges = el("small", f" {form(interval[0])} to {form(interval[1])}") if interval else None
    return el("span", form(value), edges, cls="value")


def measured(
    name: str, value: float, interval: Sequence[float] | None, scale: Scale, form: Form, mark: tuple[str, str]
) -> Markup:
    """A cell with a value, its 95% interval, and both drawn on the column's scale. `mark` is a tone and a shape."""
    drawn = whisker(value, interval, scale, *mark)
    return cell(name, drawn, ranged(value, interval, form), cls="measure")

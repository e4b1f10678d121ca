"""A directed graph without cycles as inline SVG: columns from left to right, every edge to the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiebreak.page.markup import Markup, el, svg, text

BOX, GAP_X, GAP_Y, HEIGHT = 140, 40, 12, 38
LONGEST = 20
"""characters of a name"""


@dataclass(frozen=True)
class GraphNode:
    """One box: a name, a smaller line below it, and a tone."""

    id: str
    name: str
    below: str
    tone: str
    faint: bool = False


def draw_graph(nodes: Sequence[GraphNode], edges: Sequence[tuple[str, str]], label: str) -> Markup:
    """The graph, at its own size. Edges to unknown nodes are left out."""
    node_ids = {node.id for node in nodes}
    kept = [(a, b) for a, b in edges if a in node_ids and b in node_ids]
    columns = _columns([node.id for node in nodes], kept)
    places = {
        node: (at * (BOX + GAP_X), row * (HEIGHT + GAP_Y))
        for at, column in enumerate(columns)
        for row, node in enumerate(column)
    }
    width = max(len(columns) * (BOX + GAP_X) - GAP_X, BOX)
    height = max(max((len(column) for column in columns), default=1) * (HEIGHT + GAP_Y) - GAP_Y, HEIGHT)
    drawn = [_edge(places[a], places[b]) for a, b in kept]
    drawn += [_box(node, *places[node.id]) for node in nodes]
    return svg(width + 2, height + 2, el("g", drawn, transform="translate(1 1)"), cls="graph", label=label, fixed=True)


def _columns(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Nodes by their longest path from a source; within a column, near their inputs (Sugiyama et al. 1981)."""
    depth = dict.fromkeys(nodes, 0)
    for _ in nodes:
        moved = False
        for a, b in edges:
            if depth[b] <= depth[a] < len(nodes):
                depth[b], moved = depth[a] + 1, True
        if not moved:
            break
    columns: list[list[str]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    for node in nodes:
        columns[depth[node]].append(node)
    row = {node: float(at) for column in columns for at, node in enumerate(column)}
    for column in columns[1:]:
        inputs = {node: [row[a] for a, b in edges if b == node] for node in column}
        column.sort(key=lambda node, found=inputs: sum(found[node]) / len(found[node]) if found[node] else 0.0)  # type: ignore[misc]
        row |= {node: float(at) for at, node in enumerate(column)}
    return columns


def _edge(source: tuple[float, float], target: tuple[float, float]) -> Markup:
    x1, y1 = source[0] + BOX, source[1] + HEIGHT / 2
    x2, y2 = target[0], target[1] + HEIGHT / 2
    bend = max((x2 - x1) / 2, GAP_X / 2)
    path = f"M{x1:.1f} {y1:.1f}C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
    return el("path", cls="edge far" if x2 - x1 > GAP_X else "edge", d=path)


def _box(node: GraphNode, x: float, y: float) -> Markup:
    name = node.name if len(node.name) <= LONGEST else f"…{node.name[1 - LONGEST :]}"
    return el(
        "g",
        el("title", f"{node.name}, {node.below}"),
        el("rect", cls="box" + (" faint" if node.faint else ""), x=x, y=y, width=BOX, height=HEIGHT, rx=5),
        el("rect", cls=f"fill tone-{node.tone}", x=x, y=y + 6, width=3, height=HEIGHT - 12, rx=1.5),
        text(x + 12, y + 16, name, "node-name"),
        text(x + 12, y + 30, node.below, "node-below"),
    )

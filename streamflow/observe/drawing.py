"""The graph as a picture: as text, as a Mermaid diagram, as SVG."""

from __future__ import annotations

from graphlib import TopologicalSorter
from html import escape

from streamflow.graph.graph import GraphDeclaration
from streamflow.nodes.declarations import Node, Receiver, node_of

WIDTH, HEIGHT, GAP = 170, 46, 60
"""Of a node and between two columns of them, in pixels."""

COLORS = {"sources": "#dbeafe", "operators": "#f3f4f6", "models": "#fde68a", "sinks": "#dcfce7"}

SHAPES = {
    "sources": ("([", "])"),
    "operators": ("[", "]"),
    "models": ("[[", "]]"),
    "sinks": ("[(", ")]"),
}
"""Mermaid's brackets around a node."""


def as_text(graph: GraphDeclaration) -> str:
    """Return one line for each node, in the order of the stream, with its inputs."""
    rows = [
        (section.removesuffix("s"), name, _type(node), ", ".join(_inputs(node)))
        for section, name, node in _in_order(graph)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for *cells, inputs in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{line}  <- {inputs}" if inputs else line.rstrip())
    return "\n".join(lines) + "\n"


def as_mermaid(graph: GraphDeclaration) -> str:
    """Return a flowchart, as Markdown pages show it."""
    nodes = _in_order(graph)
    numbers = {name: f"n{number}" for number, (_, name, _) in enumerate(nodes)}
    lines = ["flowchart LR"]
    for section, name, node in nodes:
        left, right = SHAPES[section]
        lines.append(f'  {numbers[name]}{left}"{name}<br>{_type(node)}"{right}')
        for sender in _inputs(node):
            policy = node.overflow_of(sender) if isinstance(node, Receiver) else "block"
            output = sender.partition(".")[2]
            told = " ".join(filter(None, [output, "" if policy == "block" else policy]))
            arrow = f"-- {told} -->" if told else "-->"
            lines.append(f"  {numbers[node_of(sender)]} {arrow} {numbers[name]}")
    return "\n".join(lines) + "\n"


def as_svg(graph: GraphDeclaration) -> str:
    """Return a picture: the stream goes from left to right, each node right of all its inputs."""
    nodes = _in_order(graph)
    columns: dict[str, int] = {}
    rows: dict[int, int] = {}
    places: dict[str, tuple[int, int]] = {}
    for _, name, node in nodes:
        column = 1 + max((columns[node_of(sender)] for sender in _inputs(node)), default=-1)
        columns[name] = column
        row = rows[column] = rows.get(column, -1) + 1
        places[name] = (20 + column * (WIDTH + GAP), 20 + row * (HEIGHT + 24))
    width = 40 + len(rows) * (WIDTH + GAP) - GAP
    height = 40 + (1 + max(rows.values())) * (HEIGHT + 24) - 24
    view = f'viewBox="0 0 {width} {height}" font-family="sans-serif"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {view}>']
    for _, name, node in nodes:
        x, y = places[name]
        for sender in _inputs(node):
            from_x, from_y = places[node_of(sender)]
            from_x, from_y = from_x + WIDTH, from_y + HEIGHT // 2
            to_y, bend = y + HEIGHT // 2, GAP // 2
            parts.append(
                f'<path d="M{from_x} {from_y} C{from_x + bend} {from_y} {x - bend} {to_y} {x} '
                f'{to_y}" fill="none" stroke="#6b7280" stroke-width="1.5"/>'
            )
    for section, name, node in nodes:
        x, y = places[name]
        box = f'x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8" stroke="#6b7280"'
        parts.append(f'<rect {box} fill="{COLORS[section]}"/>')
        for text, down, size in ((name, 20, 13), (_type(node), 37, 11)):
            where = f'x="{x + WIDTH // 2}" y="{y + down}" font-size="{size}"'
            parts.append(f'<text {where} text-anchor="middle">{escape(_short(text))}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _in_order(graph: GraphDeclaration) -> list[tuple[str, str, Node]]:
    """Return section, name and declaration of every node, each after what it receives from."""
    nodes = {name: (section, name, node) for section, name, node in graph.nodes()}
    inputs = {name: map(node_of, _inputs(node)) for name, (_, _, node) in nodes.items()}
    return [nodes[name] for name in TopologicalSorter(inputs).static_order()]


def _inputs(node: Node) -> tuple[str, ...]:
    return node.inputs if isinstance(node, Receiver) else ()


def _type(node: Node) -> str:
    return str(getattr(node, "type", type(node).__name__))


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"

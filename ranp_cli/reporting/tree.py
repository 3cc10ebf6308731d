"""The module tree of a profile on a terminal: what each module and all below it cost, in columns that add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

from ..core.numbers import COUNT_UNITS
from .facts import adding_up
from .terminal import Column, Terminal, column_cells, lay_out

BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
INDENT = "  "
DIGITS = 4  # of the total

# key, head, base, units, which goes first where the page is narrow
COLUMNS: list[tuple[str, str, int, Sequence[str], int]] = [
    ("params", "parameters", 1000, COUNT_UNITS, 0),
    ("macs", "multiply-adds", 1000, COUNT_UNITS, 0),
    ("output_elements", "output\nelements", 1000, COUNT_UNITS, 2),
    ("saved_bytes", "saved for\nbackward", 1024, BYTE_UNITS, 1),
]


@dataclass
class Node:
    """A module: the row of what it costs by itself (none for a mere container), and its children in order."""

    name: str
    row: int | None = None
    kind: str = ""
    children: dict[str, Node] = field(default_factory=dict)


def grown(rows: Sequence[dict[str, Any]]) -> Node:
    """The tree of the rows' module paths."""
    root = Node("model")
    for k, row in enumerate(rows):
        node = root
        for part in row["module"].split(".") if row["module"] else ():
            node = node.children.setdefault(part, Node(part))
        node.row, node.kind = k, row.get("type", "")
    return root


def tree_lines(rows: Sequence[dict[str, Any]], page: Terminal, depth: int | None) -> list[Text]:
    """One line a module, down to `depth` levels; what a module with parts needs in its own code is its line `(itself)`."""
    if not rows or depth == 0:
        return []
    root = grown(rows)
    lines: list[tuple[str, str, list[int]]] = []  # name, type, which rows are added up
    busy = [any(row.get(key) for key, *_ in COLUMNS) for row in rows]

    def below(node: Node) -> list[int]:
        own = [node.row] if node.row is not None else []
        return own + [k for child in node.children.values() for k in below(child)]

    def add(node: Node, level: int) -> None:
        lines.append((INDENT * level + page.clean(node.name), page.clean(node.kind), below(node)))
        children = [child for child in node.children.values() if any(busy[k] for k in below(child))]
        if depth is not None and level >= depth:
            return
        if children and node.row is not None and busy[node.row]:
            lines.append((INDENT * (level + 1) + "(itself)", "", [node.row]))
        for child in children:
            add(child, level + 1)

    add(root, 0)
    columns = [
        Column("module", column_cells(name for name, *_ in lines)),
        Column("", column_cells((kind for _, kind, _ in lines), "dim"), drop=3, left=True),
    ]
    for key, head, base, units, drop in COLUMNS:
        values = [row.get(key) for row in rows]
        if any(value is not None for value in values):
            which = [rows_of for *_, rows_of in lines]
            unit, texts = written([value or 0 for value in values], which, base, units)
            nothing = [not any(values[k] for k in rows_of) for rows_of in which]
            texts = [page.glyphs.none if none else text for none, text in zip(nothing, texts, strict=True)]
            columns.append(Column(f"{head}\n{unit}".strip(), column_cells(texts), drop))
    header, body, rule = lay_out(columns, page)
    body[0].stylize("bold")
    return [*header, rule, *body]


def written(values: list[int], sums: list[list[int]], base: int, units: Sequence[str]) -> tuple[str, list[str]]:
    """The unit of a column, and its sums as text: each value is rounded once, such that whatever is added up adds up."""
    total, power = sum(values), 0
    while total >= base ** (power + 1) and power < len(units) - 1:
        power += 1
    decimals = max(0, DIGITS - len(str(total // base**power))) if power else 0
    scaled = [value * 10**decimals for value in (*values, total)]
    quanta = [n or 0 for n in adding_up(scaled, base**power, [False] * len(scaled))]
    return units[power], [f"{sum(quanta[k] for k in which) / 10**decimals:,.{decimals}f}" for which in sums]

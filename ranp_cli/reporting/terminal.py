"""What a console can print: the page's width and signs, numbers with units, and tables whose columns share the page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from ..core.numbers import JOINED

BAR_WIDTH = 8
NAME_WIDTH = 20  # names are not cut below this
GAP = "  "


# -- page: what this console can print -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Glyphs:
    bar: str  # one cell of a bar, from the least part to the whole
    rest: str
    arrow: str
    rule: str
    none: str
    cut: str


_UNICODE = _Glyphs(bar="▏▎▍▌▋▊▉█", rest="·", arrow="→", rule="─", none="–", cut="…")
_ASCII = _Glyphs(bar="#", rest=".", arrow="->", rule="-", none="-", cut="...")


class Terminal:
    """The console's width, the signs it can print, and the user's text made printable on it."""

    def __init__(self, console: Console) -> None:
        self.width = console.width
        self.encoding = getattr(console.file, "encoding", None) or "utf-8"
        fancy = console.is_terminal and self.encoding.lower().startswith("utf")
        self.fancy, self.glyphs = fancy, _UNICODE if fancy else _ASCII

    def clean(self, text: str) -> str:
        seen = "".join(c if c.isprintable() or c == JOINED else c.encode("unicode_escape").decode() for c in text)
        return seen.replace(JOINED, " ").encode(self.encoding, "backslashreplace").decode(self.encoding)

    def paragraph(self, label: str, style: str, text: str) -> list[Text]:
        """`label text`, wrapped with a hanging indent."""
        wrapped = textwrap.wrap(f"{label} {text}", self.width, subsequent_indent="  ", break_on_hyphens=False)
        lines = [Text(self.clean(line)) for line in wrapped]
        lines[0].stylize(style, 0, len(label))
        return lines

    def verbatim(self, text: str) -> Text:
        """A line to copy: indented, and never wrapped."""
        return Text(f"  {self.clean(text)}", no_wrap=True, overflow="ignore")

    def shorten(self, text: str, width: int) -> str:
        """Cut out the middle: the ends of a module path tell most."""
        if len(text) <= width:
            return text
        left = max(width - len(self.glyphs.cut), 2)
        return text[: left // 2] + self.glyphs.cut + text[-(left - left // 2) :]

    def bar(self, part: int, whole: int) -> str:
        """Full only when nothing went, empty only when nothing stays."""
        steps = len(self.glyphs.bar)
        full, rest = divmod(min(max(part > 0, part * BAR_WIDTH * steps // max(whole, 1)), BAR_WIDTH * steps), steps)
        cells = self.glyphs.bar[-1] * full + (self.glyphs.bar[rest - 1] if rest else "")
        return cells + self.glyphs.rest * (BAR_WIDTH - len(cells))


def side_by_side(columns: Sequence[Sequence[str]], sign: str) -> list[str]:
    """`12.3 -> 4.5`, the numbers of each side aligned."""
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return [f" {sign} ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows]


# -- a table: columns that share the page's width --------------------------------------------------------------------


@dataclass
class Column:
    """A head (of one or more lines, standing at the bottom), and under it one cell per row."""

    head: str
    cells: list[Text]
    drop: int = 0  # where the page is too narrow, the column with the highest goes first; 0 stays
    left: bool = False

    @property
    def width(self) -> int:
        return max(cell.cell_len for cell in [*map(Text, self.head.split("\n")), *self.cells])


def column_cells(texts: Iterable[str], style: str = "") -> list[Text]:
    return [Text(text, style) for text in texts]


def lay_out(columns: Sequence[Column], page: Terminal) -> tuple[list[Text], list[Text], Text]:
    """The lines of the head, those of the body, and a rule as long as they are.

    Empty columns are left out. The first column holds names; they are cut where that makes all fit and leaves no two
    alike.
    """
    first, *others = [column for column in columns if any(cell.plain for cell in column.cells)]

    def room() -> int:
        return page.width - sum(column.width + len(GAP) for column in others)

    def distinct(width: int) -> bool:
        return len({page.shorten(text, width) for text in texts}) == len(texts)

    texts = {cell.plain for cell in first.cells}
    least = next((width for width in range(NAME_WIDTH, first.width) if distinct(width)), first.width)
    while room() < least and any(column.drop for column in others):
        others.remove(max(others, key=lambda column: column.drop))
    width = max(room(), least)
    names = Column(first.head, [Text(page.shorten(cell.plain, width), cell.style) for cell in first.cells], left=True)

    def line(cells: Iterable[Text]) -> Text:
        parts = []
        for column, cell in zip([names, *others], cells, strict=True):
            padding = " " * (column.width - cell.cell_len)
            parts.append(Text.assemble(cell, padding) if column.left else Text.assemble(padding, cell))
        out = Text(GAP, no_wrap=True, overflow="crop").join(parts)
        out.truncate(page.width, overflow="crop")
        out.rstrip()
        return out

    height = 1 + max(column.head.count("\n") for column in [names, *others])
    heads = [([""] * height + column.head.split("\n"))[-height:] for column in [names, *others]]
    head = [line(column_cells(texts, "bold")) for texts in zip(*heads, strict=True)]
    body = [line(cells) for cells in zip(*(column.cells for column in [names, *others]), strict=True)]
    length = max(text.cell_len for text in head + body)
    return head, body, Text(page.glyphs.rule * length, "dim", no_wrap=True, overflow="crop")


def plain_text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

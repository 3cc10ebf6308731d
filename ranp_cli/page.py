"""What a console can print: the page's width and signs, numbers with units, and tables whose columns share the page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

BAR_WIDTH = 8
NAME_WIDTH = 20  # names are not cut below this
GAP = "  "
JOINED = "\N{NO-BREAK SPACE}"  # a space where a line must not break; printed as a plain one


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


class Page:
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


# -- numbers ---------------------------------------------------------------------------------------------------------

COUNT_UNITS = ("", "k", "M", "G", "T", "P", "E")
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def human(value: float, step: int = 1000, units: Sequence[str] = COUNT_UNITS) -> str:
    """`16.3 M`, `997.0 MiB`; the unit is padded, so that a column of them lines up."""
    power = 0
    while round(value, 1 if power else 0) >= step and power < len(units) - 1:
        value, power = value / step, power + 1
    return f"{value:.{1 if power else 0}f} {units[power]:<3}"


def human_bytes(value: float) -> str:
    return human(value, 1024, _BYTE_UNITS)


def change_text(before: float, after: float) -> str:
    percent = round(100 * (after / before - 1), 1) if before else 0.0
    return f"{percent:+.1f} %" if percent else "0.0 %"


def seconds_text(value: float) -> str:
    return f"{value:.1f}{JOINED}s" if value >= 0.1 else f"{1000 * value:.0f}{JOINED}ms"


def adding_up(values: Sequence[int | None], quantum: int, unchanged: Sequence[bool]) -> list[int | None]:
    """Values, the last of them their total, in quanta that add up.

    What rounding leaves over goes to the largest values, one quantum each; to those of unchanged layers last, so that
    they read the same before and after.
    """
    quanta = [None if value is None else (2 * value + quantum) // (2 * quantum) for value in values]
    known = [i for i, n in enumerate(quanta[:-1]) if n is not None]
    left = (quanta[-1] or 0) - sum(quanta[i] or 0 for i in known)
    known.sort(key=lambda i: (unchanged[i], -(values[i] or 0)))
    for i in known[: abs(left)]:
        quanta[i] = (quanta[i] or 0) + (1 if left > 0 else -1)
    return quanta


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


def lay_out(columns: Sequence[Column], page: Page) -> tuple[list[Text], list[Text], Text]:
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


def model_name(report: Mapping[str, Any]) -> str:
    """The model's spec; of one that was made in memory the slim file it lies in, or nothing."""
    about = report.get("model", {})
    return str(about.get("spec") or about.get("file") or "")


def counted_on(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which input the numbers are of, and which of them are of one sample and which of the batch: labels and texts."""
    about = report.get("model", {})
    shapes = ["x".join(map(str, shape)) for shape in _shapes(about.get("profiled_input") or about.get("input"))]
    if not shapes:
        return []
    guessed = ", guessed: give --input for another" if about.get("input_guessed") else ""
    samples = max((side.get("samples", 1) for side in report.get("memory", {}).values()), default=1)
    which = "multiply-adds and activations" if samples > 1 or "rows" in report else "all"
    batch = f", peaks of a batch of {samples}" if samples > 1 else ""
    return [("input:", f"{', '.join(shapes)}{guessed}"), ("counted:", f"{which} of one sample{batch}")]


def _shapes(signature: Any) -> list[list[int]]:
    """The shapes of the tensors in the signature of an input."""
    if isinstance(signature, Mapping):
        return [signature["shape"]] if "shape" in signature else _shapes(list(signature.values()))
    return [shape for part in signature for shape in _shapes(part)] if isinstance(signature, list) else []


def by_reason(pairs: Iterable[tuple[str, str]]) -> str:
    """`a, b (network output); c (unknown op)`."""
    groups: dict[str, list[str]] = {}
    for layer, reason in pairs:
        groups.setdefault(reason, []).append(layer)
    return "; ".join(f"{', '.join(layers)} ({reason})" for reason, layers in groups.items())

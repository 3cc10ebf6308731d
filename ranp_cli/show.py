"""What a person sees: a report as tables, an error as one line, a bar while something runs.

On a terminal there is colour and a little unicode; a pipe, or a terminal that cannot encode it, gets the same page in
plain ASCII. Whatever comes from the user (names, paths, messages) is printed as it is: no markup, no emoji codes, and
control characters written out. Numbers in one column share a unit and are rounded such that they add up to their total.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Report = dict[str, Any]

PIPE_WIDTH = 100
BAR_WIDTH = 8
NAME_WIDTH = 20  # names are not cut below this
GAP = "  "
JOINED = "\N{NO-BREAK SPACE}"  # a space where a line must not break; printed as a plain one


# -- the four public functions ---------------------------------------------------------------------------------------


def console(stderr: bool = False, width: int | None = None) -> Console:
    """A console on stdout or stderr; without colour under NO_COLOR, plain and 100 columns wide in a pipe."""
    page = Console(
        file=sys.stderr if stderr else sys.stdout,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        markup=False,
        emoji=False,
        highlight=False,
    )
    if width or not page.is_terminal:
        page.width = width or PIPE_WIDTH
    return page


def show_report(report: Report, console: Console, depth: int | None = None) -> None:
    """Print the parts that `report` has: headline, before/after, layers, remarks.

    Args:
        report: the JSON report, as any command makes it.
        depth: add up the layers that are more than so many modules deep; 0 leaves the layers out.
    """
    page = _Page(console)
    blocks = [_headline(report, page), _summary(report, page), _layers(report, page, depth), _remarks(report, page)]
    for i, block in enumerate(filter(None, blocks)):
        for line in [Text()] * (i > 0) + block:
            console.print(line, overflow=line.overflow or "fold", no_wrap=line.no_wrap)


def show_error(message: str, console: Console) -> None:
    """Print `ranp: error: message` on one line, however long it is."""
    line = Text.assemble(("ranp: error: ", "bold red"), _Page(console).clean(" ".join(message.splitlines())))
    console.print(line, soft_wrap=True)


@contextmanager
def progress(console: Console, description: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A bar with rate and time left, gone at the end; gives `advance(n=1)`. Nothing is printed in a pipe."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda n=1: None
        return
    label = TextColumn("{task.description}", markup=False)
    parts = (label, BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(compact=True))
    with Progress(*parts, console=console, transient=True) as bar:
        task = bar.add_task(_Page(console).clean(description), total=total)
        yield lambda n=1: bar.advance(task, n)


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


class _Page:
    """The console's width, the signs it can print, and the user's text made printable on it."""

    def __init__(self, console: Console) -> None:
        self.width = console.width
        self.encoding = getattr(console.file, "encoding", None) or "utf-8"
        fancy = console.is_terminal and self.encoding.lower().startswith("utf")
        self.glyphs = _UNICODE if fancy else _ASCII

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


class _Rate(ProgressColumn):
    """How many a second, or how many seconds each."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text()
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each", style="dim")


# -- numbers ---------------------------------------------------------------------------------------------------------

_COUNT_UNITS = ("", "k", "M", "G", "T", "P", "E")
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def _human(value: float, step: int = 1000, units: Sequence[str] = _COUNT_UNITS) -> str:
    """`16.3 M`, `997.0 MiB`; the unit is padded, so that a column of them lines up."""
    power = 0
    while round(value, 1 if power else 0) >= step and power < len(units) - 1:
        value, power = value / step, power + 1
    return f"{value:.{1 if power else 0}f} {units[power]:<3}"


def _human_bytes(value: float) -> str:
    return _human(value, 1024, _BYTE_UNITS)


def _change(before: float, after: float) -> str:
    percent = round(100 * (after / before - 1), 1) if before else 0.0
    return f"{percent:+.1f} %" if percent else "0.0 %"


def _seconds(value: float) -> str:
    return f"{value:.1f}{JOINED}s" if value >= 0.1 else f"{1000 * value:.0f}{JOINED}ms"


def _adding_up(values: Sequence[int | None], quantum: int, unchanged: Sequence[bool]) -> list[int | None]:
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


def _side_by_side(columns: Sequence[Sequence[str]], sign: str) -> list[str]:
    """`12.3 -> 4.5`, the numbers of each side aligned."""
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return [f" {sign} ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows]


# -- a table: columns that share the page's width --------------------------------------------------------------------


@dataclass
class _Column:
    """A head (of one or more lines, standing at the bottom), and under it one cell per row."""

    head: str
    cells: list[Text]
    drop: int = 0  # where the page is too narrow, the column with the highest goes first; 0 stays
    left: bool = False

    @property
    def width(self) -> int:
        return max(cell.cell_len for cell in [*map(Text, self.head.split("\n")), *self.cells])


def _cells(texts: Iterable[str], style: str = "") -> list[Text]:
    return [Text(text, style) for text in texts]


def _table(columns: Sequence[_Column], page: _Page) -> tuple[list[Text], list[Text], Text]:
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
    names = _Column(first.head, [Text(page.shorten(cell.plain, width), cell.style) for cell in first.cells], left=True)

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
    head = [line(_cells(texts, "bold")) for texts in zip(*heads, strict=True)]
    body = [line(cells) for cells in zip(*(column.cells for column in [names, *others]), strict=True)]
    length = max(text.cell_len for text in head + body)
    return head, body, Text(page.glyphs.rule * length, "dim", no_wrap=True, overflow="crop")


# -- the blocks of a report ------------------------------------------------------------------------------------------


def _headline(report: Report, page: _Page) -> list[Text]:
    """What was done to which model, how, and how many neurons stay."""
    method, outputs = report.get("method", {}), report.get("outputs", {})
    details = [str(method[key]) for key in ("name", "criterion") if method.get(key) is not None]
    terms = [(key, method.get(key)) for key in ("resource", "lambda", "seed")]
    details += [f"{key}{JOINED}{_plain(value)}" for key, value in terms if value is not None]
    spec = report.get("model", {}).get("spec", "")
    text = " " + spec
    text += f"  {page.glyphs.arrow}  {', '.join(outputs)}" if outputs else ""
    text += f"   ({', '.join(details)})" if details else ""
    lines = page.paragraph(" ".join(["ranp", report.get("command", "")]).strip(), "bold", text)
    for line in lines:
        line.highlight_words([name for name in (spec, *outputs) if name], "cyan")

    neurons, sparsity = report.get("neurons", {}), report.get("sparsity", {})
    if "kept" in neurons:
        text = f"{neurons['kept']:,} of {neurons['total']:,} neurons"
        text += f", sparsity{JOINED}{_plain(sparsity['achieved'])}" if "achieved" in sparsity else ""
        text += f" (requested:{JOINED}{_plain(sparsity['requested'])})" if "requested" in sparsity else ""
        lines += page.paragraph("kept", "bold", text)
    elif "total" in neurons:
        lines += page.paragraph(f"{neurons['total']:,} neurons", "", "")
    return lines


def _plain(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# key, label, how the number is written
_MEASURES: list[tuple[str, str, Callable[[float], str]]] = [
    ("params", "parameters", _human),
    ("params_bytes", "parameter bytes", _human_bytes),
    ("macs", "multiply-adds", _human),
    ("flops", "FLOPs (2 x multiply-adds)", _human),
    ("activation_bytes", "activations", _human_bytes),
    ("peak_forward_bytes", "peak of a forward pass", _human_bytes),
]
_PAPER_MEASURES: list[tuple[str, str, Callable[[float], str]]] = [
    ("param_mb", "parameters", lambda value: f"{value:,.2f} MB "),
    ("gflops", "FLOPs", lambda value: f"{value:,.2f} G  "),
    ("memory_mb", "memory", lambda value: f"{value:,.2f} MB "),
]


def _summary(report: Report, page: _Page) -> list[Text]:
    """Before, after and the change; one column when there is one network; the paper's counting below."""
    before, after = report.get("before", {}), report.get("after", {})
    rows = [(label, write, before[key], after.get(key)) for key, label, write in _MEASURES if key in before]
    split = len(rows)
    was, now = before.get("paper", {}), after.get("paper", {})
    rows += [(label, write, was[key], now.get(key)) for key, label, write in _PAPER_MEASURES if key in was]
    if not rows:
        return []
    columns = [
        _Column("", _cells(label for label, *_ in rows)),
        _Column("before" if after else "", _cells(write(x) for _, write, x, _ in rows)),
    ]
    if after:
        styles = ["" if y is None or y == x else "green" if y < x else "yellow" for *_, x, y in rows]
        texts = ["" if y is None else write(y) for _, write, _, y in rows]
        changes = ["" if y is None else _change(x, y) for *_, x, y in rows]
        columns += [
            _Column("after", [Text(*cell) for cell in zip(texts, styles, strict=True)]),
            _Column("reduction", [Text(*cell) for cell in zip(changes, styles, strict=True)]),
        ]
    head, body, rule = _table(columns, page)
    paper = [Text(), Text("paper's counting", "bold"), rule, *body[split:]] if len(rows) > split else []
    return [*([*head, rule] if after else []), *body[:split], *paper]


_SUMMED = ("neurons", "kept", "macs", "macs_after", "output_elements", "output_elements_after")


def _sum(name: str, layers: list[Report]) -> Report:
    """One row for several layers."""
    known = {key: [layer[key] for layer in layers if layer.get(key) is not None] for key in _SUMMED}
    marks = dict.fromkeys(layer["mark"] for layer in layers if layer["mark"])
    sums = {key: sum(values) for key, values in known.items() if values}
    return {"name": name, "op": f"{len(layers)} layers", "mark": " ".join(marks), **sums}


def _folded(layers: list[Report], depth: int | None) -> list[Report]:
    """Layers more than `depth` modules deep are added up under their common module."""
    if depth is None:
        return layers
    groups: dict[str, list[Report]] = {}
    for layer in layers:
        groups.setdefault(".".join(layer["name"].split(".")[:depth]), []).append(layer)
    return [group[0] if len(group) == 1 else _sum(name, group) for name, group in groups.items()]


def _layers(report: Report, page: _Page, depth: int | None) -> list[Text]:
    """One row per layer, and their total."""
    floored, fixed = _floored(report), _fixed(report)
    layers = [
        {**layer, "mark": "floor" if layer["name"] in floored else "fixed" if layer["name"] in fixed else ""}
        for layer in report.get("layers", [])
    ]
    if not layers or depth == 0:
        return []
    rows = [*_folded(layers, depth), _sum("total", layers) | {"mark": ""}]

    def counted(title: str, sign: str, drop: int, keys: tuple[str, str], digits: int | None = None) -> _Column:
        """Counts that add up, in a common unit that shows so many digits of the larger total (None: all of them)."""
        columns = [[row.get(key) for row in rows] for key in keys if key in rows[-1]]
        length = max((len(str(column[-1])) for column in columns), default=0)
        power = (length - 1) // 3 if digits and length > 5 else 0
        decimals = (digits or 0) - 1 - (length - 1) % 3 if power else 0
        unchanged = [len(set(values)) == 1 for values in zip(*columns, strict=True)]
        quanta = [_adding_up(column, 10 ** (3 * power - decimals), unchanged) for column in columns]
        cells = [
            [page.glyphs.none if n is None else f"{n / 10**decimals:,.{decimals}f}" for n in column]
            for column in quanta
        ]
        texts = _side_by_side(cells, sign) if cells else [""] * len(rows)
        return _Column(f"{title}\n{_COUNT_UNITS[power]}".strip(), _cells(texts), drop)

    def measured(title: str, key: str, form: str, drop: int) -> _Column:
        texts = ["" if row.get(key) is None else format(row[key], form) for row in rows]
        return _Column(title, _cells(texts, "dim"), drop)

    known = [None not in (row.get("kept"), row.get("neurons")) for row in rows]
    bars = [page.bar(row["kept"], row["neurons"]) if ok else "" for row, ok in zip(rows, known, strict=True)]
    arrow = page.glyphs.arrow
    head, body, rule = _table(
        [
            _Column("layer", _cells(page.clean(row["name"]) for row in rows)),
            _Column("op", _cells((page.clean(_op(row)) for row in rows), "dim"), drop=3, left=True),
            counted("kept / all" if any(known) else "neurons", "/", 0, ("kept", "neurons")),
            _Column("", _cells(bars, "green"), drop=2, left=True),
            counted("multiply-adds", arrow, 1, ("macs", "macs_after"), digits=5),
            counted("output elements", arrow, 4, ("output_elements", "output_elements_after"), digits=4),
            measured("mean\nimportance", "importance_mean", ".2e", 5),
            measured("tau", "tau", ".3f", 6),
            _Column("", [Text(row["mark"], "dim" if row["mark"] == "fixed" else "yellow") for row in rows], left=True),
        ],
        page,
    )
    body[-1].stylize("bold")
    return [*head, rule, *body[:-1], rule, body[-1]]


def _op(layer: Report) -> str:
    """`conv3d 3x3x3`; a transposed convolution is a `convT3d`, for the sake of the column's width."""
    kernel = "x".join(map(str, layer.get("kernel") or []))
    return f"{layer.get('op', '').replace('conv_transpose', 'convT')} {kernel}".strip()


def _floored(report: Report) -> list[str]:
    return report.get("floored") or [layer["name"] for layer in report.get("layers", []) if layer.get("floored")]


def _fixed(report: Report) -> dict[str, str]:
    fixed = {layer["name"]: layer["fixed"] for layer in report.get("layers", []) if layer.get("fixed")}
    return report.get("fixed") or fixed


def _remarks(report: Report, page: _Page) -> list[Text]:
    """What one should know of this result, where the time went, and what was written."""
    return [line for label, style, text in _sentences(report) for line in page.paragraph(label, style, text)]


def _sentences(report: Report) -> Iterator[tuple[str, str, str]]:
    for note in report.get("notes", ()):
        yield "note:", "bold", note
    if floored := _floored(report):
        yield "kept at their floor:", "yellow", ", ".join(floored)
    if fixed := _fixed(report):
        yield "fixed:", "bold", _by_reason(fixed.items())
    if skipped := report.get("not_pruned"):
        yield "not pruned:", "yellow", _by_reason((entry["layer"], entry["reason"]) for entry in skipped)
    if unruled := report.get("unruled_ops"):
        yield (
            "no rule, so fixed:",
            "yellow",
            ", ".join(f"{u['op']} in {u['module'] or 'the model'} ({u['source']})" for u in unruled),
        )
    if uncounted := report.get("uncounted_ops"):
        yield "uncounted ops:", "yellow", ", ".join(entry["op"] + _where(entry) for entry in uncounted)
    if verified := report.get("verified"):
        yield from _verdict(verified)
    if seconds := report.get("seconds"):
        device = f" ({report['device']})" if "device" in report else ""
        yield "time:", "bold", ", ".join(f"{step}{JOINED}{_seconds(value)}" for step, value in seconds.items()) + device
    for path, file in report.get("outputs", {}).items():
        yield "wrote", "bold", f"{path}  {_human_bytes(file['bytes']).strip()}  sha256{JOINED}{file['sha256'][:12]}"


def _where(entry: dict[str, Any]) -> str:
    module = f" in {entry['module']}" if entry.get("module") else ""
    return module + (f" ({entry['count']}{JOINED}times)" if entry.get("count", 1) > 1 else "")


def _verdict(verified: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    names = {"max_rel_error_fp32": "fp32", "max_rel_error_fp64": "fp64"}
    errors = [f"{verified[key]:.2g}{JOINED}({name})" for key, name in names.items() if verified.get(key) is not None]
    if not errors and verified.get("max_abs_error") is not None:
        errors = [f"{verified['max_abs_error']:.2g}{JOINED}(absolute)"]
    if errors:
        against = verified.get("against", "masked")
        yield "verified", "green", f"against the {against} network: max error {', '.join(errors)}"
    if other := verified.get("not_comparable"):
        yield "not comparable:", "yellow", ", ".join(other)


def _by_reason(pairs: Iterable[tuple[str, str]]) -> str:
    """`a, b (network output); c (unknown op)`."""
    groups: dict[str, list[str]] = {}
    for layer, reason in pairs:
        groups.setdefault(reason, []).append(layer)
    return "; ".join(f"{', '.join(layers)} ({reason})" for reason, layers in groups.items())

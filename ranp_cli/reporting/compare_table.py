"""The table of `compare` on a console: one row for each method and sparsity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.text import Text

from ..core.numbers import change_text, human, human_bytes
from .compare_captions import captions_of
from .facts import counted_on
from .speed import duration, times_text
from .terminal import Column, Terminal, column_cells, lay_out

_COMPARED: list[tuple[str, str, Callable[[float], str]]] = [
    ("params", "parameters", human),
    ("macs", "multiply-adds", human),
    ("activation_bytes", "activations", human_bytes),
]
BEST = "*"  # beside the best mean of a sparsity


def rows_table(report: dict[str, Any], page: Terminal) -> list[Text]:
    """One row for each method and sparsity; a rule where the method changes; below it, what the numbers are."""
    rows = report["rows"]
    notes = ["" if row["feasible"] else f"floor in {len(row['floored'])}" for row in rows]
    columns = [
        Column("method", column_cells(page.clean(row["method"]) for row in rows), left=True),
        Column("sparsity", column_cells(f"{row['sparsity']['achieved']:.3f}" for row in rows)),
        *_accuracy(report, page),
        *_probe(rows),
        *_speed(rows),
        Column("neurons", column_cells(f"{row['kept']:,}" for row in rows), drop=4),
    ]
    for key, label, write in _COMPARED:
        counts, percent = (label, "") if "fit" not in report else ("", label)  # the head of what stays on a narrow page
        columns.append(Column(counts, column_cells((write(row["after"][key]) for row in rows), "dim"), drop=3))
        changes = [
            Text(change_text(1, 1 - row["reduction"][key]), "green" if row["reduction"][key] else "") for row in rows
        ]
        columns.append(Column(percent, changes))
    columns.append(Column("", column_cells(notes, "yellow"), drop=1, left=True))
    head, body, rule = lay_out(columns, page)
    lines = [*head, rule]
    for k, line in enumerate(body):
        several = sum(row["method"] == rows[k]["method"] for row in rows) > 1
        lines += [Text()] * (k > 0 and several and rows[k]["method"] != rows[k - 1]["method"]) + [line]
    told = [line for label, text in captions_of(report) for line in page.paragraph(label, "bold", text)]
    return lines + ([Text(), *told] if told else []) + counted_lines(report, page)


def _probe(rows: list[dict[str, Any]]) -> list[Column]:
    """What the loss of each network still lacks of the dense one's way down after the probe's steps; empty without one."""
    if not any("probe" in row for row in rows):
        return []
    lags = [row["probe"].get("lag") for row in rows]
    return [Column("probe's\nlag", column_cells("" if lag is None else f"{lag:.0%}" for lag in lags))]


def _speed(rows: list[dict[str, Any]]) -> list[Column]:
    """The time of a forward pass, and how many times as fast as the dense network it is; empty where nothing was timed."""
    if not all("speed" in row for row in rows):
        return []
    return [
        Column("forward", column_cells((duration(row["speed"]["seconds"]) for row in rows), "dim"), drop=5),
        Column("speed-up", column_cells((times_text(row["speed"]["speedup"]) for row in rows), "green")),
    ]


def _accuracy(report: dict[str, Any], page: Terminal) -> list[Column]:
    """The metric over the seeds, with a mark at the best, and its worst; nothing where nothing was trained."""
    from ..core.numbers import accuracy_texts

    if "fit" not in report:
        return []
    rows = report["rows"]
    texts = accuracy_texts(rows, "±" if page.fancy else "+-")
    marks = [BEST if row["accuracy"]["best"] else " " for row in rows]
    styles = ["bold green" if row["accuracy"]["best"] else "bold" for row in rows]
    means = [Text(f"{mean} {mark}", style) for (mean, _), mark, style in zip(texts, marks, styles, strict=True)]
    columns = [Column(page.clean(report["fit"]["metric"]) + "  ", means)]
    if len(report["fit"]["seeds"]) > 1:
        columns.append(Column("worst", column_cells((worst for _, worst in texts), "dim"), drop=2))
    return columns


def counted_lines(report: dict[str, Any], page: Terminal) -> list[Text]:
    """Which input the numbers are of, below an empty line; nothing where that is not known."""
    told = [page.paragraph(label, "bold", text) for label, text in counted_on(report)]
    return sum(told, [Text()]) if told else []

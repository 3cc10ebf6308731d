"""Pruning in rounds, a line a round: on a console and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from ..core.numbers import human
from .plots import COLOURS, _clean, _figure, _write
from .terminal import Column, Terminal, column_cells, lay_out

MOST = 40  # lines; of more rounds (a Pruner's removals) some are left out
Row = Mapping[str, Any]


def rounds_table(report: Mapping[str, Any], page: Terminal) -> list[Text]:
    """Neurons, multiply-adds, loss and metric after each round, and what the loop cost; nothing for a pruning at once."""
    rows = report.get("rounds")
    if not rows:
        return []
    every = -(-len(rows) // MOST)
    shown = [(k, row) for k, row in enumerate(rows) if (len(rows) - 1 - k) % every == 0]
    columns = [
        Column("round", column_cells(str(k + 1) for k, _ in shown)),
        Column("neurons", column_cells(f"{row['neurons']:,}" for _, row in shown)),
        Column("multiply-adds", column_cells(human(row["macs"]) for _, row in shown)),
        Column("updates", column_cells(f"{row['updates']:,}" for _, row in shown), drop=1),
    ]
    for name, title in (("loss", "mean loss"), ("metric", "metric")):
        if any(name in row for row in rows):
            columns.append(Column(title, column_cells(_number(row.get(name)) for _, row in shown)))
    head, body, rule = lay_out(columns, page)
    return [*head, rule, *body, Text(), *page.paragraph("rounds:", "bold", loop_sentence(report))]


def loop_sentence(report: Mapping[str, Any]) -> str:
    """What the loop cost, beside one pruning at initialization that ends at the same multiply-adds."""
    loop, before, after = report["loop"], report["before"]["macs"], report["after"]["macs"]
    once = loop["updates"] * after / before if before else 0.0
    return (
        f"{loop['updates']:,} updates, which cost as much as {loop['dense_updates']:,.0f} of the dense network (in multiply-adds); of a network "
        f"pruned once to the same multiply-adds, before training, as many updates cost as much as {once:,.0f}"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def rounds_plot(path: str | Path, report: Mapping[str, Any], title: str = "") -> None:
    """The metric after each round (where there is none: the mean loss of its updates) against the multiply-adds."""
    rows: Sequence[Row] = report["rounds"]
    name = "metric" if any("metric" in row for row in rows) else "loss"
    points = [(row["macs"] / 1e9, row[name]) for row in rows if name in row and math.isfinite(row[name])]
    figure = _figure(6, 3.8)
    axis = figure.subplots()
    axis.plot(*zip(*points, strict=True), color=COLOURS[0], marker="o", markersize=5, linewidth=1.2)
    axis.axvline(report["before"]["macs"] / 1e9, color="#888888", linewidth=0.9, linestyle=(0, (1, 2)))
    axis.annotate(
        "dense",
        (report["before"]["macs"] / 1e9, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4, -10),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color="#555555",
    )
    axis.set_xlim(left=0)
    axis.margins(y=0.1)
    axis.set_xlabel("multiply-adds (G)")
    axis.set_ylabel(name if name == "metric" else "mean loss of the updates")
    _clean(axis)
    figure.suptitle(f"{title}  {len(rows)} rounds".strip(), fontsize=10, x=0.01, ha="left")
    _write(figure, path)

"""The rank correlations of criteria with the oracle: on a console, as CSV, as Markdown and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from .plots import COLOURS, DASHES, MARKERS, _clean, _figure, _write
from .terminal import Column, Terminal, column_cells, lay_out

COLUMNS = {"mean": "mean over layers", "all": "all units", "all_equal_l2": "all, layers of equal l2 norm"}
DRAWN = ("taylor", "neuron", "mpmg-sum", "activation-mean", "l2", "obd")  # by layer; all would hide each other


def said(about: Mapping[str, Any]) -> str:
    """What the numbers are."""
    fixed = f" ({about['fixed']} fixed ones were not tried)" * bool(about["fixed"])
    return (
        f"Spearman's rank correlation with the change of the loss without a unit, over {about['units']} units{fixed} and "
        f"{about['batches']} mini-batch{'es' * (about['batches'] != 1)}; 1 ranks as the oracle does, 0 as chance does"
    )


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def oracle_table(report: Mapping[str, Any], page: Terminal) -> list[Text]:
    """A line a criterion, the best first; nothing without an oracle."""
    if "oracle" not in report:
        return []
    about = report["oracle"]
    rows = about["criteria"]
    worst = [min((x for x in row["layers"] if x is not None), default=None) for row in rows]
    heads = ("mean over\nlayers", "all\nunits", "layers of\nequal l2 norm")
    columns = [Column("criterion", column_cells(row["criterion"] for row in rows), left=True)]
    columns += [
        Column(head, column_cells(number(row[key]) for row in rows)) for key, head in zip(COLUMNS, heads, strict=True)
    ]
    columns.append(Column("worst\nlayer", column_cells(map(number, worst), "dim"), drop=1))
    head, body, rule = lay_out(columns, page)
    return [*head, rule, *body, Text(), *page.paragraph("oracle:", "bold", said(about))]


def oracle_csv(about: Mapping[str, Any]) -> str:
    """One line a criterion: its means, then a column for each layer; empty where a layer has too few units."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["criterion", *COLUMNS, *about["layers"]])
    for row in about["criteria"]:
        values = [*(row[key] for key in COLUMNS), *row["layers"]]
        writer.writerow([row["criterion"], *("" if value is None else value for value in values)])
    return out.getvalue()


def oracle_markdown(about: Mapping[str, Any]) -> str:
    lines = [f"| criterion | {' | '.join(COLUMNS.values())} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for row in about["criteria"]:
        lines.append(f"| {row['criterion']} | {' | '.join(number(row[key]) for key in COLUMNS)} |")
    return "\n".join([*lines, "", f"- oracle: {said(about)}"]) + "\n"


def oracle_plot(path: str | Path, about: Mapping[str, Any], title: str = "") -> None:
    """The mean of each criterion as bars, and some by layer as lines: the two pictures of Molchanov's talk."""
    rows = about["criteria"]
    layers = [k for k in range(len(about["layers"])) if any(row["layers"][k] is not None for row in rows)]
    figure = _figure(max(9.5, 5.5 + 0.3 * len(layers)), max(3.8, 1.2 + 0.24 * len(rows)))
    bars, lines = figure.subplots(1, 2, width_ratios=[1, max(1.2, 0.08 * len(layers))])
    means = [row["mean"] or 0.0 for row in rows]
    bars.barh(range(len(rows)), means, color=COLOURS[0])
    for k, mean in enumerate(means):
        bars.text(max(mean, 0) + 0.02, k, f"{mean:.2f}", va="center", fontsize=8)
    bars.set_yticks(range(len(rows)), [row["criterion"] for row in rows])
    bars.invert_yaxis()
    bars.set_xlim(min(0, *means) * 1.1, max(1.0, *means) + 0.08)
    bars.set_title("rank correlation with the oracle, mean over layers", loc="left", fontsize=9)
    _clean(bars)
    bars.grid(visible=False)
    for k, row in enumerate(row for row in rows if row["criterion"] in DRAWN):
        values = [np.nan if row["layers"][j] is None else row["layers"][j] for j in layers]
        style = {"color": COLOURS[k % 8], "marker": MARKERS[k % 8], "linestyle": DASHES[k % 4]}
        lines.plot(range(len(layers)), values, label=row["criterion"], linewidth=1.3, markersize=4, **style)
    lines.axhline(0, color="#999999", linewidth=0.6)
    names = [about["layers"][j] for j in layers]
    short = [name if len(name) <= 28 else f"{name[:12]}...{name[-13:]}" for name in names]
    lines.set_xticks(range(len(layers)), short, rotation=90)
    lines.set_title("by layer", loc="left", fontsize=9)
    _clean(lines)
    lines.tick_params(axis="x", labelsize=7)
    lines.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    _write(figure, path)

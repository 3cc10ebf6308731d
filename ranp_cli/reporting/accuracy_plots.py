"""Pictures of trained rows: accuracy against multiply-adds and memory (Fig. 1 of the paper) and sparsity (Fig. 4 e-h)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import BadInput
from .plots import COLOURS, DASHES, MARKERS, _clean, _figure, _write

FULL = "#555555"  # of the network that nothing was removed from
APART = 1.8  # points between the marks of two methods at the same place: matched rows all lie on one
WIDE = 8  # largest over smallest cost: beyond it the axis is logarithmic
Row = Mapping[str, Any]

_PANELS = (
    ("multiply-adds (G)", lambda row: row["after"]["macs"] / 1e9),
    ("memory: activations (MiB)", lambda row: row["after"]["activation_bytes"] / 2**20),
    ("neuron sparsity", lambda row: row["sparsity"]["achieved"]),
)


def accuracy(path: str | Path, rows: Sequence[Row], title: str = "") -> None:
    """A panel each for multiply-adds, activations of one sample and neuron sparsity; a colour, mark and dash a method.

    Marks are means over the seeds, bars one sample standard deviation. Hollow marks are networks that the floor rescued.
    The full network is a star, and a line at its mean. Marks of several methods are moved apart by a point or two.

    Raises: BadInput when no mean is a number.
    """
    shown = [row for row in rows if math.isfinite(row["accuracy"]["mean"])]
    if not shown:
        raise BadInput("no row has an accuracy that is a number; there is nothing to draw")
    methods = list(dict.fromkeys(row["method"] for row in shown if row["method"] != "full"))
    full = next((row for row in shown if row["method"] == "full"), None)
    lines = -(-(len(methods) + 1) // 6)  # of the legend
    figure = _figure(11, 3.9 + 0.22 * (lines - 1))
    axes = figure.subplots(1, 3, sharey=True)
    for axis, (label, place) in zip(axes, _PANELS, strict=True):
        _scale(axis, [place(row) for row in shown])
        if full is not None:
            axis.axhline(full["accuracy"]["mean"], color=FULL, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
            _marks(axis, [full], place, {"color": FULL, "marker": "*"}, "full", 10, "", 0.0)
        for k, name in enumerate(methods):
            mine = sorted((row for row in shown if row["method"] == name), key=place)
            style = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
            shift = (k - (len(methods) - 1) / 2) * APART
            _marks(
                axis,
                mine,
                place,
                style,
                name,
                6,
                DASHES[k // len(COLOURS) % len(DASHES)] if len(mine) > 1 else "",
                shift,
            )
        axis.set_xlabel(label)
        axis.margins(x=0.07, y=0.08)
        _clean(axis)
        axis.grid(axis="x", color="#EEEEEE", linewidth=0.6)
    several = len(shown[0]["accuracy"]["values"])
    metric = shown[0]["accuracy"]["metric"]
    axes[0].set_ylabel(metric)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=-(-len(labels) // lines), frameon=False, fontsize=9
    )
    told = f"mean and standard deviation of {several} seeds" if several > 1 else "one seed"
    told += "; hollow: a layer was kept at its floor" if any(not row["feasible"] for row in shown) else ""
    figure.suptitle(f"{title}  {metric}: {told}".strip(), fontsize=10, x=0.01, ha="left")
    _write(figure, path)


def _scale(axis: Any, values: Sequence[float]) -> None:
    """A logarithmic axis where costs differ much; the numbers on it are plain ones."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    if min(values) <= 0 or max(values) / min(values) <= WIDE:
        return
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _marks(
    axis: Any, rows: Sequence[Row], place: Any, style: dict[str, str], label: str, size: float, dash: str, shift: float
) -> None:
    """One method: a line through its means, a bar of the deviation at each, a mark that is hollow at the floor."""
    from matplotlib.transforms import ScaledTranslation

    moved = axis.transData + ScaledTranslation(shift / 72, 0, axis.figure.dpi_scale_trans)
    x, y = [place(row) for row in rows], [row["accuracy"]["mean"] for row in rows]
    deviations = [row["accuracy"]["std"] or 0.0 for row in rows]
    if any(deviations):
        axis.errorbar(
            x,
            y,
            deviations,
            fmt="none",
            ecolor=style["color"],
            elinewidth=1.1,
            capsize=2.5,
            alpha=0.75,
            zorder=2,
            transform=moved,
        )
    axis.plot(x, y, color=style["color"], linestyle=dash, linewidth=1.4, zorder=3, transform=moved)
    for a, b, row in zip(x, y, rows, strict=True):
        face = style["color"] if row["feasible"] else "white"
        axis.plot([a], [b], linestyle="", markersize=size, markerfacecolor=face, zorder=4, transform=moved, **style)
    axis.plot([], [], label=label, linestyle=dash, markersize=size, **style)
    axis.update_datalim([(a, b + way * d) for a, b, d in zip(x, y, deviations, strict=True) for way in (-1, 1)])
    axis.autoscale_view()

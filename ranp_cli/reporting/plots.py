"""Pictures: the importance of every neuron by layer (Fig. 3 of the paper), and what goes against sparsity (Fig. 4).

matplotlib is the extra `plot`, and drawn on without its global state. Colours are Okabe and Ito's, which the colour-blind
can tell apart; shapes and dashes say the same again, for print.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..core.atomic import write_atomic
from ..core.errors import BadInput
from ..core.spelling import spelled

SUFFIXES = (".png", ".svg", ".pdf")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vP*X"
DASHES = ("-", "--", "-.", ":")
SHADE, DOT = "#F0F0F0", 4


def check_plot(path: str | Path) -> None:
    """BadInput, before the long work, when the picture could not be made."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise BadInput(f"{path}: pictures are written as {', '.join(SUFFIXES)}; give a file of such a name")
    _figure(1, 1)


def importance(
    path: str | Path,
    layers: Sequence[str],
    rankings: Mapping[str, Sequence[np.ndarray]],
    kept: Sequence[int] | None,
    title: str = "",
) -> None:
    """Fig. 3: a panel a ranking, with the score of each neuron (dots) and the mean of each layer (bars), and below them
    the share of each layer that stays.

    Args:
        layers: their names, in forward order.
        rankings: name of the ranking -> the scores of each layer's neurons.
        kept: how many neurons of each layer stay; None leaves that panel out.
    """
    sizes = [len(s) for s in next(iter(rankings.values()))]
    edges = np.concatenate([[0], np.cumsum(sizes)])
    panels = len(rankings) + (kept is not None)
    figure = _figure(min(max(6.5, 0.32 * len(layers)), 16), 1.0 + 1.7 * panels)
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, scores), colour in zip(axes, rankings.items(), COLOURS, strict=False):
        flat = np.concatenate(scores)
        shown = flat > 0
        axis.set_yscale("log")
        dots = {"s": DOT, "color": colour, "linewidths": 0, "alpha": 0.5, "rasterized": len(flat) > 5000}
        axis.scatter(np.arange(len(flat))[shown] + 0.5, flat[shown], **dots)
        means = [float(s.mean()) for s in scores]
        axis.hlines([m if m > 0 else np.nan for m in means], edges[:-1], edges[1:], colors="black", linewidth=1.6)
        axis.set_ylabel("importance")
        axis.set_title(f"{name} (bars: mean of the layer)", loc="left", fontsize=9)
    if kept is not None:
        share = [k / n for k, n in zip(kept, sizes, strict=True)]
        axes[-1].bar(
            edges[:-1], share, np.diff(edges), align="edge", color=COLOURS[0], edgecolor="white", linewidth=0.5
        )
        axes[-1].set_ylim(0, 1.05)
        axes[-1].set_ylabel("share kept")
    for axis in axes:
        for left, right in list(pairwise(edges))[1::2]:
            axis.axvspan(left, right, color=SHADE, zorder=0)
        axis.set_xlim(0, edges[-1])
        _clean(axis)
    _name_layers(axes[-1], layers, edges, figure.get_figwidth())
    if title:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    _write(figure, path)


def sweep(path: str | Path, rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Fig. 4: the reduction of multiply-adds, activations and parameters against the sparsity of neurons, a line a method.

    Hollow marks are networks that the floor rescued. Methods at a single sparsity are drawn as bars.
    """
    panels = {"macs": "multiply-adds", "activation_bytes": "memory (activations)", "params": "parameters"}
    methods = [name for name in dict.fromkeys(row["method"] for row in rows) if name != "full"]
    if not methods:
        raise BadInput(f"the full network alone makes no picture; give other {spelled('methods')} as well")
    lines = any(sum(row["method"] == name for row in rows) > 1 for name in methods)
    figure = _figure(10.5, 3.9 if lines else 1.6 + 0.32 * len(methods))
    axes = figure.subplots(1, 3, sharey=True)
    for axis, (key, label) in zip(axes, panels.items(), strict=True):
        for k, name in enumerate(methods):
            mine = sorted((row for row in rows if row["method"] == name), key=lambda row: row["sparsity"]["achieved"])
            style = {"color": COLOURS[k % 8], "marker": MARKERS[k % 8]}
            x, y = [r["sparsity"]["achieved"] for r in mine], [100 * r["reduction"][key] for r in mine]
            if lines:
                axis.plot(x, y, color=style["color"], linestyle=DASHES[k % 4], linewidth=1.4, zorder=2)
                for a, b, row in zip(x, y, mine, strict=True):
                    face = style["color"] if row["feasible"] else "white"
                    axis.plot([a], [b], markersize=5, markerfacecolor=face, linestyle="", zorder=3, **style)
                axis.plot([], [], label=name, linestyle=DASHES[k % 4], markersize=5, **style)
            else:
                face = style["color"] if mine[0]["feasible"] else "white"
                axis.barh(k, y[0], color=face, edgecolor=style["color"], hatch=None if mine[0]["feasible"] else "///")
                axis.text(max(y[0], 0) + 1, k, f"{y[0]:.1f}", va="center", fontsize=8)
        axis.set_title(label, fontsize=10)
        _clean(axis)
        if lines:
            axis.set_xlabel("neuron sparsity")
            axis.set_ylim(-3, 103)
        else:
            axis.grid(visible=False)
            axis.set_xlim(0, 115)
            axis.set_yticks(range(len(methods)), methods)
            axis.set_xlabel("reduction (%)")
    if lines:
        axes[0].set_ylabel("reduction (%)")
        figure.legend(
            *axes[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(len(methods), 8),
            frameon=False,
            fontsize=9,
        )
    else:
        axes[0].invert_yaxis()
    rescued = f"; {'hollow' if lines else 'hatched'}: a layer was kept at its floor"
    rescued = rescued if any(not row["feasible"] for row in rows) else ""
    figure.suptitle((title or "what goes") + rescued, fontsize=10, x=0.01, ha="left")
    _write(figure, path)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadInput(f"a picture needs matplotlib ({error}); install it with pip install 'ranp-cli[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _clean(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)


def _name_layers(axis: Any, layers: Sequence[str], edges: np.ndarray, width: float) -> None:
    """Names under the middle of each layer, leaving out those that would lie on the one before."""
    room = edges[-1] / (width * 6.5)  # of a line of small type, in neurons
    at: list[float] = []
    names: list[str] = []
    last = -np.inf
    for name, left, right in zip(layers, edges[:-1], edges[1:], strict=True):
        middle = (left + right) / 2
        if middle - last >= room or name == layers[-1]:
            if middle - last < room and len(at) > 1:  # the output's name before that of its neighbour
                at.pop()
                names.pop()
            at.append(middle)
            names.append(name if len(name) <= 28 else f"{name[:12]}...{name[-13:]}")
            last = middle
    axis.set_xticks(at, names, rotation=90, fontsize=7)
    axis.set_xlabel("neurons, by layer in forward order")


def _write(figure: Any, path: str | Path) -> None:
    """The same data gives the same bytes."""
    import matplotlib

    kind = Path(path).suffix.lower()[1:]
    stamp = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    data = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "ranp", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(data, format=kind, dpi=160, metadata=stamp)
    write_atomic(path, data.getvalue())

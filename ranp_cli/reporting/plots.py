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
LINE = 0.11  # inches: a line of the type that names layers
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
    stay: Mapping[str, int] | None = None,
) -> None:
    """Fig. 3: a panel a ranking, with the score of each neuron (dots) and the mean of each layer (bars), and below them
    the share of each layer that stays.

    Args:
        layers: their names, in forward order.
        rankings: name of the ranking -> the scores of each layer's neurons.
        kept: how many neurons of each layer stay; None leaves that panel out.
        stay: name of a ranking -> how many of its best neurons stay: where its threshold is drawn.
    """
    sizes = [len(s) for s in next(iter(rankings.values()))]
    edges = np.concatenate([[0], np.cumsum(sizes)])
    panels = len(rankings) + (kept is not None)
    width = max(6.5, 0.32 * min(len(layers), 50), 1.2 + LINE * len(layers))
    figure = _figure(width, 1.0 + 1.7 * panels)
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
        told = "bars: mean of the layer"
        if stay and 0 < stay.get(name, 0) <= len(flat):
            threshold = float(np.sort(flat)[-stay[name]])
            axis.axhline(threshold, color=COLOURS[1], linestyle="--", linewidth=1.2)
            told += f"; dashed: threshold {threshold:.3g}"
        axis.set_title(f"{name} ({told})", loc="left", fontsize=9)
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
    for axis in axes[:-1]:
        axis.tick_params(axis="x", length=0)
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
    """The name of every layer, below its middle or, where layers are narrow, beside it with a line that leads there."""
    room = edges[-1] * LINE / (width - 1.2)  # of a line of small type, in neurons
    middles = (edges[:-1] + edges[1:]) / 2
    places = spread(middles, room, float(edges[-1]))
    names = [name if len(name) <= 28 else f"{name[:12]}...{name[-13:]}" for name in layers]
    axis.set_xticks(places, names, rotation=90, fontsize=7)
    axis.tick_params(axis="x", length=0, pad=14)
    for middle, place in zip(middles, places, strict=True):
        axis.plot(
            [middle, place],
            [0, -0.12],
            transform=axis.get_xaxis_transform(),
            color="#999999",
            linewidth=0.6,
            clip_on=False,
        )
    axis.set_xlabel("neurons, by layer in forward order")


def spread(wanted: np.ndarray, room: float, end: float) -> np.ndarray:
    """Ascending places in [0, end] at least `room` apart, near the wanted ones; closer together only if they must be."""
    room = min(room, end / len(wanted))
    places = wanted.astype(float)
    for k in range(1, len(places)):
        places[k] = max(places[k], places[k - 1] + room)
    places[-1] = min(places[-1], end - room / 2)
    for k in range(len(places) - 2, -1, -1):
        places[k] = min(places[k], places[k + 1] - room)
    return places


def _write(figure: Any, path: str | Path) -> None:
    """The same data gives the same bytes."""
    import matplotlib

    kind = Path(path).suffix.lower()[1:]
    stamp = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    data = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "ranp", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(data, format=kind, dpi=160, metadata=stamp)
    write_atomic(path, data.getvalue())

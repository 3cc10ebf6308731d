"""Which neurons stay though the ranking alone would remove them, and for what cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..graph.graph import Graph, worded
from .select import Selection

SHORT = 0.02  # of the neurons: what is missing beyond that from what was asked, and is more than two, is explained
FLOOR = "kept by the floor"
ROUNDING = "kept by rounding"
EQUAL = "as good as the last one that stays, or tied to neurons of a layer at its floor"


def held_back(graph: Graph, chosen: Selection) -> list[dict[str, Any]]:
    """The causes, the one of most neurons first: [{"reason", "neurons", "layers"}]. Each neuron counts to one cause."""
    if chosen.wanted is None:
        return []
    by_reason: dict[str, dict[str, int]] = {}
    against = chosen.keep & ~chosen.wanted
    if is_short(chosen.requested, float(1 - chosen.keep[graph.unit].mean()), graph.n):
        against |= chosen.keep & (
            graph.unranked_units | graph.left_out_units
        )  # they took their places before any other
    for layer, units in zip(graph.layers, graph.by_layer(graph.unit), strict=True):
        for unit in units[against[units]]:
            if graph.reasons[unit] is not None:
                reason = str(graph.reasons[unit])
            elif chosen.rounded is not None and not chosen.rounded[unit]:
                reason = ROUNDING
            elif layer.name in chosen.floored:
                reason = FLOOR
            else:
                reason = EQUAL
            layers = by_reason.setdefault(reason, {})
            layers[layer.name] = layers.get(layer.name, 0) + 1
    rows = [{"reason": why, "neurons": sum(of.values()), "layers": list(of)} for why, of in by_reason.items()]
    return sorted(rows, key=lambda row: -row["neurons"])


def is_short(asked: float | str, achieved: float, neurons: int) -> bool:
    """Is noticeably less gone than the share that was asked for?"""
    return isinstance(asked, float) and asked - achieved > max(SHORT, 2 / neurons)


def in_words(rows: Sequence[dict[str, Any]], most: int = 4) -> str:
    """`12 neurons: network output (head); 3 neurons: ...`."""
    told = []
    for row in rows[:most]:
        names = ", ".join(row["layers"][:2]) + (f" and {len(row['layers']) - 2} more" if len(row["layers"]) > 2 else "")
        told.append(f"{row['neurons']} neuron{'s' * (row['neurons'] != 1)} of {names}: {worded(row['reason'])}")
    if rows[most:]:
        told.append(f"{sum(row['neurons'] for row in rows[most:])} for {len(rows) - most} other reasons")
    return "; ".join(told)

"""What the report says of a slim network's chance to learn: what the floor raised and cost, and its narrowest cut."""

from __future__ import annotations

from typing import Any

from ..graph.graph import Graph
from ..pruning.narrowest_cut import narrowest_cuts
from ..pruning.select import Selection
from ..pruning.slim import slim_model
from ..pruning.slim_trace import SlimRun, check_runs
from .costing import Costing
from .session import Session

COSTS = ("params", "macs", "activation_bytes")


def trainability(session: Session, graph: Graph, chosen: Selection, costing: Costing) -> dict[str, Any]:
    """The report's parts `floor` and `narrowest`, each only where there is something to say."""
    parts: dict[str, Any] = {}
    if raised := floor_part(session, graph, chosen, costing):
        parts["floor"] = raised
    if narrow := [cut.to_dict() for cut in narrowest_cuts(graph, chosen.keep) if cut.is_narrow]:
        parts["narrowest"] = narrow
    return parts


def floor_part(session: Session, graph: Graph, chosen: Selection, costing: Costing) -> dict[str, Any]:
    """The layers that a floor of more than one neuron raised, and what the slim network costs beyond one without it."""
    if chosen.by_score is None or (chosen.by_score | graph.fixed_units == chosen.keep).all():
        return {}
    alone = chosen.by_score | graph.fixed_units
    counts = zip(graph.layers, graph.by_layer(alone[graph.unit]), graph.by_layer(chosen.keep[graph.unit]), strict=True)
    part: dict[str, Any] = {
        "layers": [
            {"layer": layer.name, "by_score": int(was.sum()), "kept": int(now.sum())}
            for layer, was, now in counts
            if layer.name in chosen.floored
        ]
    }
    flags = graph.flags(alone)
    slim, _ = slim_model(session.model, graph, flags)
    ran = check_runs(slim, graph, flags, training=False)
    if isinstance(ran, SlimRun):  # else the code of the model does not take it, and nothing is known of its cost
        costs, after = costing.counts(slim, ran), session.report.parts["after"]
        part["cost"] = {key: after[key] - costs[key] for key in COSTS}
    return part

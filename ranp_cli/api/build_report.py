"""Verify the slim network, and write scores and both networks to the report, layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ..core.contexts import seeded
from ..costs.memory import with_training
from ..graph.analyse import TracedCosts, cost_of
from ..graph.graph import Graph, Layer
from ..pruning.initial_weights import initialise
from ..pruning.mask import Mask
from ..pruning.select import check, select
from ..pruning.verify import verify
from ..reporting.report import LAYER_COSTS, layer_row, not_pruned, uncounted
from ..scoring.setup import Importance
from ..scoring.zero_scores import SAID
from .costing import Costing
from .other_paths import notes_of
from .results import Pruned, Scores
from .select_and_refine import Refined
from .session import Session


def build_scores(
    session: Session, graph: Graph, found: Importance, how: dict[str, Any], sparsity: float | None
) -> Scores:
    """The scores and their balance: the mean and the share of each layer, and how many of its neurons they alone keep."""
    layers = {layer.name: values for layer, values in zip(graph.layers, found.scores, strict=True)}
    whole = sum(float(v.sum()) for v in found.scores) or 1.0
    rows = [
        {**layer_row(layer), "importance_mean": float(v.mean()), "importance_share": float(v.sum()) / whole}
        for layer, v in zip(graph.layers, found.scores, strict=True)
    ]
    if sparsity is not None:
        plain = select(graph, found.scores, check(sparsity))
        for row, kept in zip(rows, graph.by_layer(plain.keep[graph.unit]), strict=True):
            row["kept"] = int(kept.sum())
    session.report.parts |= {
        "method": {**how, "batches": found.batches},
        "neurons": {"total": graph.n},
        "before": cost_of(session.model, graph.eval_run),
        "layers": rows,
        "uncounted_ops": uncounted(graph.eval_run.tracer.uncounted),
    }
    about = {
        **how,
        "batches": found.batches,
        "model": {**session.model_info, "weights": session.weights_digest()},
        **{key: value for key, value in session.report.parts.get("scoring", {}).items() if key in SAID},
    }
    sums = {layer.name: total for layer, total in zip(graph.layers, found.sums, strict=False) if total is not None}
    return Scores(layers, about, session.report, sums, np.array(found.begun))


def build_pruned(session: Session, graph: Graph, mask: Mask, refined: Refined, init: str, costing: Costing) -> Pruned:
    """Verify the slim network, draw its weights anew where `init` says so, and lay it beside the dense one.

    Raises: VerificationFailed.
    """
    report, slim, at = session.report, refined.model, costing.at
    verified = refined.verified
    if verified is None:
        with report.timing("verify"):
            verified = verify(session.model, slim, graph, graph.flags(refined.selection.keep))
    if init != "keep":
        with report.timing("refine"), seeded(session.seed):
            initialise(slim, init, [layer.slot for layer in graph.layers])
    dense, after = costing.dense(session), costing.slim(slim, refined.trace)
    counted_for = {} if at is None else {"profiled_input": at.signature}
    report.parts |= {
        "method": mask.method,
        "sparsity": {"requested": mask.requested, "achieved": round(mask.achieved, 6)},
        "neurons": {"total": mask.total, "kept": mask.kept},
        "model": {**session.model_info, **counted_for},
        "before": dense.costs,
        "after": after.costs,
        "verified": verified,
        "layers": layer_rows(graph, mask, dense, after),
        "floored": mask.floored,
        "fixed": mask.fixed,
        "not_pruned": not_pruned(graph, refined.selection.keep),
        "followed": counts(refined.followed),
        "stated": counts(refined.stated.changed),
        "not_followed": counts(refined.stated.left),
        "unruled_ops": [
            {"op": op, "module": module, "source": where}
            for op, module, where in dict.fromkeys(graph.eval_run.tracer.unruled + graph.train_run.tracer.unruled)
        ],
        "uncounted_ops": uncounted(dense.run.tracer.uncounted),
    }
    session.note(*notes_of(graph))
    shapes = {name: list(p.shape) for name, p in session.model.named_parameters()}
    info = {**session.model_info, "parameters": shapes, **counted_for}
    about = {"model": info, "attributes": refined.attributes}
    return Pruned(slim, mask, report, about, project=session.project)


def counts(attributes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Attributes by module, as rows."""
    return [
        {"module": m, "attribute": name, "value": value}
        for m, values in attributes.items()
        for name, value in values.items()
    ]


def layer_rows(graph: Graph, mask: Mask, dense: TracedCosts, slim: TracedCosts) -> list[dict[str, Any]]:
    """The report's part `layers`: each layer of the dense network, with what the slim one keeps and costs there."""
    rows = []
    fixed = {
        layer.name: {str(graph.reasons[u]) for u in units if graph.reasons[u]}
        for layer, units in zip(graph.layers, graph.by_layer(graph.unit), strict=True)
    }
    slots = [layer.slot for layer in graph.layers]
    for layer in graph.layers:
        alone = slots.count(layer.slot) == 1
        there = [layer_in(side, layer, alone) for side in (dense, slim)]
        first, later = (layer_row(found) if found else {} for found in there)  # {}: it does without
        row = {**layer_row(layer), "kept": len(mask.layers[layer.name]["kept"])}
        row |= {key: first.get(key, 0) for key in LAYER_COSTS}
        row |= {f"{key}_after": later.get(key, 0) for key in LAYER_COSTS}
        if layer.name in mask.floored:
            row["floored"] = True
        if fixed[layer.name]:
            row["fixed"] = "; ".join(sorted(fixed[layer.name]))
        rows.append(row)
    return rows


def layer_in(costs: TracedCosts, layer: Layer, alone: bool) -> Layer | None:
    """A layer of the dense network in another run. One that is `alone` in its parameter may have its neurons along another axis
    there: a grouped transposed convolution that is left with one input a group is depthwise."""
    found = costs.layers.get((layer.slot, layer.axis))
    if found is None and alone:
        found = next((other for (slot, _), other in costs.layers.items() if slot == layer.slot), None)
    return found


def add_memory(session: Session, slim: nn.Module, costing: Costing) -> None:
    """Write the estimated memory of both networks, and the FLOPs of a training step."""
    report = session.report
    with report.timing("memory"):
        memory = {"before": costing.memory(session.model), "after": costing.memory(slim)}
        report.parts |= {side: with_training(report.parts[side], part) for side, part in memory.items()}
        report.parts["memory"] = memory

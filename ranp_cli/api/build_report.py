"""What score, prune and refine found: the slim network is proved, and both networks stand in the report layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ..core.contexts import seeded
from ..core.example import Example
from ..graph.analyse import cost_of, measure_all
from ..graph.graph import Graph
from ..pruning.init import initialise
from ..pruning.mask import Mask
from ..pruning.select import check, select
from ..pruning.slim_trace import SlimRun
from ..pruning.verify import verify
from ..reporting.report import LAYER_COSTS, Report, layer_row, not_pruned, uncounted
from ..scoring.scorer import Importance
from ..scoring.zero_scores import SAID
from .results import Pruned, Scores
from .session import Job


def scores_of(report: Report, job: Job, graph: Graph, found: Importance, how: dict[str, Any],
              sparsity: float | None) -> Scores:  # fmt: skip
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
    report.parts |= {
        "method": {**how, "batches": found.batches},
        "neurons": {"total": graph.n},
        "before": cost_of(job.model, graph.eval_run),
        "layers": rows,
        "uncounted_ops": uncounted(graph.eval_run.tracer.uncounted),
    }
    about = {
        **how,
        "batches": found.batches,
        "model": {**job.about, "weights": job.weights_digest()},
        **{key: value for key, value in report.parts.get("scoring", {}).items() if key in SAID},
    }
    sums = {layer.name: total for layer, total in zip(graph.layers, found.sums, strict=False) if total is not None}
    return Scores(layers, about, report, sums)


def pruned_of(report: Report, job: Job, graph: Graph, mask: Mask, keep: np.ndarray, slim: nn.Module, changed: dict[str, Any],
            ran: SlimRun, init: str, seed: int, at: Example | None = None,
            large: Any = None) -> Pruned:  # fmt: skip
    """Verify the slim network, draw its weights anew where `init` says so, and lay it beside the dense one.

    Args:
        keep: which units stay.
        changed, ran: what refining it changed besides tensors, and its run on meta tensors.
        at, large: the input that is counted instead of the graph's, and what `measure_all` found of the dense network on it.

    Raises: VerificationFailed.
    """
    stays = graph.flags(keep)
    with report.timing("verify"):
        verified = verify(job.model, slim, graph, stays)
    if init != "keep":
        with report.timing("refine"), seeded(seed):
            initialise(slim, init, [layer.slot for layer in graph.layers])
    about = dict(job.about)
    about["parameters"] = {name: list(p.shape) for name, p in job.model.named_parameters()}
    run, before, after = graph.eval_run, cost_of(job.model, graph.eval_run), cost_of(slim, ran.run)
    was, now = {(layer.slot, layer.axis): layer for layer in graph.layers}, ran.layers
    if at is not None:  # everything is counted at this size
        about["profiled_input"] = at.signature
        (run, was, before), (_, now, after) = large, measure_all(slim, at)
    rows = []
    fixed = {layer.name: {str(graph.reasons[u]) for u in units if graph.reasons[u]}
             for layer, units in zip(graph.layers, graph.by_layer(graph.unit), strict=True)}  # fmt: skip
    for layer in graph.layers:
        where = layer.slot, layer.axis
        first, later = (layer_row(side[where]) if where in side else {} for side in (was, now))  # {}: it does without
        row = {**layer_row(layer), "kept": len(mask.layers[layer.name]["kept"])}
        row |= {key: first.get(key, 0) for key in LAYER_COSTS}
        row |= {f"{key}_after": later.get(key, 0) for key in LAYER_COSTS}
        if layer.name in mask.floored:
            row["floored"] = True
        if fixed[layer.name]:
            row["fixed"] = "; ".join(sorted(fixed[layer.name]))
        rows.append(row)
    report.parts |= {
        "method": mask.method,
        "sparsity": {"requested": mask.requested, "achieved": round(mask.achieved, 6)},
        "neurons": {"total": mask.total, "kept": mask.kept},
        "model": {**job.about, "profiled_input": at.signature} if at is not None else job.about,
        "before": before,
        "after": after,
        "verified": verified,
        "layers": rows,
        "floored": mask.floored,
        "fixed": mask.fixed,
        "not_pruned": not_pruned(graph, keep),
        "unruled_ops": [{"op": op, "module": module, "source": where} for op, module, where in
                        dict.fromkeys(graph.eval_run.tracer.unruled + graph.train_run.tracer.unruled)],
        "uncounted_ops": uncounted(run.tracer.uncounted),
    }  # fmt: skip
    return Pruned(slim, mask, report, {"model": about, "attributes": changed})

"""How well each criterion ranks units, beside the oracle: Spearman's rank correlation, as in Molchanov et al., ICLR 2017, table 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import BadInput
from ...core.progress import Progress
from ...core.spelling import spelled
from ...graph.graph import Graph
from ...pruning.methods import unit_values, weigh
from ...scoring.criteria import CRITERIA
from ..importances import importances
from ..options import GradientOptions
from ..results import Scores
from .cutting import Cutter

if TYPE_CHECKING:
    from ...reporting.report_parts import Correlations

LEAST = 3  # units of a layer below which a rank correlation says nothing
OF_WEIGHTS = tuple(c.name for c in CRITERIA.values() if c.name != "snip" and (c.of_weights or not c.needs_batches))
OF_ACTIVATIONS = tuple(c.name for c in CRITERIA.values() if c.of_activations and c.reduce != "curvature")
TWICE = tuple(c.name for c in CRITERIA.values() if c.reduce == "curvature")


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation, equal values having the mean of their ranks; None where it is not defined: fewer than
    three values, or all of `b` equal. An `a` that is all equal ranks nothing, and has 0."""
    if len(b) < LEAST or (b == b[0]).all():
        return None
    if (a == a[0]).all():
        return 0.0
    return float(np.corrcoef(mean_ranks(a), mean_ranks(b))[0, 1])


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value from 1 on, for equal ones the mean of theirs."""
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    result: np.ndarray = (np.cumsum(count) - (count - 1) / 2)[which.reshape(-1)]
    return result


def correlations(cutter: Cutter, oracle: Scores | str | Path | None, progress: Progress) -> Correlations:
    """The report's part `oracle`. A criterion that the network does not allow is left out, with a note.

    Args:
        oracle: scores by the criterion `oracle`, or their file; None: they are taken here.
    """
    session, graph = cutter.session, cutter.graph
    taken: dict[str, Sequence[np.ndarray]] = {}
    if oracle is not None:
        scores = Scores.of(oracle).check_network(session, "oracle")
        if scores.about.get("unfinished") or len(scores.begun):
            raise BadInput(
                f"these scores by the oracle are unfinished; finish them with ranp score and {spelled('resume')}"
            )
        taken["oracle"], batches = scores.in_order(graph, session), scores.about["batches"]
    wanted = [(*OF_WEIGHTS, *(() if taken else ("oracle",))), OF_ACTIVATIONS, TWICE]
    for names in wanted:
        try:
            found = importances(
                session,
                graph,
                cutter.source,
                names,
                cutter.subject.options[GradientOptions],
                progress,
                replace(cutter.subject.way, facts={}),
            )
        except BadInput as error:
            if names is wanted[0]:
                raise
            session.note(f"{', '.join(names)} left out beside the oracle: {error}")
            continue
        taken |= {name: found[name].scores for name in names}
        batches = found["oracle"].batches if "oracle" in found else batches
    rows = [
        row_of(graph, name, taken[name], taken["oracle"]) for name in CRITERIA if name in taken and name != "oracle"
    ]
    return {
        "units": int((~graph.fixed_units).sum()),
        "fixed": int(graph.fixed_units.sum()),
        "batches": batches,
        "layers": [layer.name for layer in graph.layers],
        "criteria": sorted(rows, key=lambda row: -(row["mean"] if row["mean"] is not None else -2)),
    }


def row_of(graph: Graph, name: str, scores: Sequence[np.ndarray], oracle: Sequence[np.ndarray]) -> Any:
    """One criterion's correlations: by layer, their mean, over all units, and over all with layers of equal l2 norm."""
    truth, free = unit_values(graph, oracle), ~graph.fixed_units
    mine, equal = (unit_values(graph, each) for each in (scores, weigh(scores, "taylor", None, 0.0, 0)))
    by_layer = []
    for units in graph.by_layer(graph.unit):
        some = np.unique(units[free[units]])
        by_layer.append(spearman(mine[some], truth[some]))
    known = [each for each in by_layer if each is not None]
    return {
        "criterion": name,
        "mean": float(np.mean(known)) if known else None,
        "all": spearman(mine[free], truth[free]),
        "all_equal_l2": spearman(equal[free], truth[free]),
        "layers": by_layer,
    }

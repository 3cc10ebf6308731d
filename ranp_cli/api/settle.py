"""Select and refine until the slim network runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ..core.errors import VerificationFailed
from ..graph.graph import Graph
from ..pruning.select import Selection
from ..pruning.slim import slim_model
from ..pruning.slim_trace import HardCoded, SlimRun, check_runs
from .session import Session


@dataclass(frozen=True)
class Settled:
    """A selection, and the slim network of it, which runs."""

    selection: Selection
    model: nn.Module
    attributes: dict[str, Any]  # what refining changed besides tensors
    trace: SlimRun  # its run on meta tensors


def settle(session: Session, graph: Graph, choose: Callable[[], Selection]) -> Settled:
    """Select and refine until the slim network runs: what its code insists on is fixed, and the rest goes on."""
    while True:
        with session.report.timing("select"):
            chosen = choose()
            stays = graph.flags(chosen.keep)
        with session.report.timing("refine"):
            slim, changed = slim_model(session.model, graph, stays)
            ran = check_runs(slim, graph, stays)
        if isinstance(ran, SlimRun):
            return Settled(chosen, slim, changed, ran)
        _fix(graph, ran, stays)


def _fix(graph: Graph, found: HardCoded, stays: np.ndarray) -> None:
    graph.ties.fix(found.ids, found.reason.what, found.reason.where)
    before = graph.fixed_units.sum()
    graph.settle()
    if graph.fixed_units.sum() == before:
        raise VerificationFailed(
            f"the slim network does not run ({found.reason}) and no unit could be kept to mend it; "
            "nothing was written. This is a defect of ranp: please report the model"
        )

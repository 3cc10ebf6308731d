"""Select and refine until the slim network runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from torch import nn

from ..core.errors import VerificationFailed
from ..graph.graph import Graph
from ..pruning.follow import Followed, follow_counts
from ..pruning.select import Selection
from ..pruning.slim import slim_model
from ..pruning.slim_trace import HardCoded, SlimRun, check_runs
from ..pruning.stated import Stated, correct_stated
from ..pruning.verify import verify
from .session import Session

T = TypeVar("T")


@dataclass(frozen=True)
class Refined:
    """A selection, and the slim network of it, which runs."""

    selection: Selection
    model: nn.Module
    attributes: dict[str, Any]  # what refining changed besides tensors
    trace: SlimRun  # its run on meta tensors
    followed: dict[str, dict[str, Any]] = field(default_factory=dict)  # counts in attributes of the user's own modules
    stated: Stated = field(default_factory=Stated)  # counts that they state, though no run needs them
    verified: dict[str, Any] | None = None  # what the proof said, where it was needed to decide


class UnitsChanged(Exception):
    """Units were taken apart while a search held selections of them."""


def with_the_same_units(graph: Graph, search: Callable[[], T]) -> T:
    """What a search returns; it begins anew where it took units apart, so that all its selections are of the same units."""
    while True:
        units = len(graph.unit_roots)
        try:
            found = search()
        except UnitsChanged:
            continue
        if len(graph.unit_roots) == units:
            return found


def select_and_refine(session: Session, graph: Graph, choose: Callable[[], Selection]) -> Refined:
    """Select and refine until the slim network runs.

    Counts that the modules keep in attributes of their own are corrected where that lets it run and the laws hold; what the
    code insists on beyond that is fixed, and the rest goes on.

    Args:
        choose: a selection of the units that the graph has now; refining may take some apart.
    """
    follows = True
    known = Followed()
    while True:
        with session.report.timing("select"):
            chosen = choose()
            stays = graph.flags(chosen.keep)
        with session.report.timing("refine"):
            slim, changed = slim_model(session.model, graph, stays)
            ran = check_runs(slim, graph, stays)
            followed = Followed(known=known.known)
            if isinstance(ran, HardCoded) and follows:
                ran = follow_counts(slim, graph, stays, ran, partial(check_runs, slim, graph, stays), followed)
        if isinstance(ran, HardCoded):
            _fix(graph, ran)
            continue
        verified = None
        if followed.changed:
            try:
                with session.report.timing("verify"):
                    verified = verify(session.model, slim, graph, stays)
            except VerificationFailed:  # it runs, but is another network: the counts were not what they looked like
                follows = False
                continue
            for name, values in followed.changed.items():
                changed.setdefault(name, {}).update(values)
        with session.report.timing("refine"):
            stated = correct_stated(session.model, slim, graph, stays, changed)
        for name, values in stated.changed.items():
            changed.setdefault(name, {}).update(values)
        return Refined(chosen, slim, changed, ran, followed.changed, stated, verified)


def _fix(graph: Graph, found: HardCoded) -> None:
    """Fix what the code insists on; where equal parts were only suggested by a slice there, they are taken apart first."""
    before = graph.fixed_units.sum()
    if not graph.ties.untie_lanes(lambda line, _: line == found.reason.where):
        graph.ties.fix(found.ids, found.reason.what, found.reason.where)
        graph.settle()
        if graph.fixed_units.sum() == before:
            raise VerificationFailed(
                f"the slim network does not run ({found.reason}) and no unit could be kept to mend it; "
                "nothing was written. This is a defect of ranp: please report the model"
            )
    graph.settle()

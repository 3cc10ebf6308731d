"""A network that loses units step by step, in place: what is left of the dense one, and what has to follow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.copies import compacted
from ..core.example import Example
from ..graph.analyse import TracedCosts, cost_of, trace_costs
from ..graph.graph import Graph
from ..pruning.mask import Mask, split_units
from ..pruning.min_neurons import AUTO, floors
from ..pruning.select import Selection
from ..pruning.slim import apply_attributes, check_attributes, slim_model
from ..pruning.verify import verify
from ..reporting.report import uncounted
from ..training.cut import Cut, cut_in_place, network_in
from ..training.least_important import without_least
from .build_report import layer_rows
from .ranking import Ranking
from .results import Pruned
from .select_and_refine import select_and_refine
from .session import Session

PROOFS = ("first", "every", "never")


@dataclass
class Removal:
    """What one removal took, and what the network is after it. `macs` are multiply-adds of one sample in eval mode."""

    updates: int  # of the optimiser, before it
    units: int
    removed: int  # neurons
    neurons: int  # that are left
    params: int
    macs: int
    loss: float | None = None  # mean over the updates since the last removal
    metric: float | None = None
    layers: dict[str, int] = field(default_factory=dict)  # how many neurons of which layer went


@dataclass
class Shrinking:
    """The live network `session.model`, its graph as it now is, and which neurons of the dense one are left.

    `optimizers` and `copies` follow every cut. `kept`: layer -> original indices of the neurons that are left.
    """

    session: Session
    example: Example
    ranking: Ranking
    optimizers: Sequence[torch.optim.Optimizer] = ()
    copies: Sequence[Any] = ()
    proof: str = "first"
    graph: Graph = field(init=False)
    dense: Graph = field(init=False)
    kept: dict[str, np.ndarray] = field(init=False)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    verified: dict[str, Any] = field(default_factory=dict)
    held: dict[str, dict[str, list[int]]] = field(
        default_factory=dict
    )  # reason -> layer -> neurons the code insists on

    def __post_init__(self) -> None:
        self.dense = self.graph = self._analyse()
        self.dense_costs = cost_of(self.session.model, self.dense.eval_run)
        self.dense_shapes = {name: list(p.shape) for name, p in self.session.model.named_parameters()}
        self.kept = {layer.name: np.arange(len(layer.neurons)) for layer in self.dense.layers}
        self.dense_sizes = {name: len(kept) for name, kept in self.kept.items()}
        self.costs = self.dense_costs

    # -- what it is now

    @property
    def neurons(self) -> int:
        return sum(len(kept) for kept in self.kept.values())

    @property
    def sparsity(self) -> float:
        return 1 - self.neurons / self.dense.n

    def left_at(self, sparsity: float) -> int:
        """How many neurons are left at a sparsity: kappa = int(n * (1 - sparsity)) of the layers that may be pruned (eq. 11)."""
        free = self.dense.left_out_units[self.dense.unit]
        return int(free.sum()) + int((~free).sum() * (1 - sparsity))

    # -- one removal

    def floors(self, goal: int) -> np.ndarray:
        """The fewest neurons of each layer of the network as it now is, when `goal` neurons are to be left in all."""
        sizes = np.array([len(self.kept[layer.name]) for layer in self.graph.layers])
        if self.ranking.min_neurons != AUTO:
            fixed: np.ndarray = np.minimum(int(self.ranking.min_neurons), sizes)
            return fixed
        by_name = dict(zip((layer.name for layer in self.dense.layers), floors(self.dense, AUTO, goal), strict=True))
        least: np.ndarray = np.minimum([by_name[layer.name] for layer in self.graph.layers], sizes)
        return least

    def remove(
        self, values: Callable[[Graph], np.ndarray], units: int, neurons: int, about: int | None, goal: int
    ) -> Removal | None:
        """Remove the least important units, in place; None where none can go (`stuck` says why).

        Args:
            values: the importance of each unit of a graph, of shape (units,).
            units, neurons, about: how many go (see `without_least`).
            goal: how many neurons are to be left at the end.

        Raises: VerificationFailed when the network that is left does not compute what it should; nothing has changed then.
        """
        graph, session = self.graph, self.session

        def choose() -> Selection:
            self.stuck = without_least(graph, values(graph), self.floors(goal), units, neurons, about)
            return Selection(self.stuck.keep, [], "")

        if choose().keep.all():
            return None
        fixed = graph.fixed_units.copy()
        refined = select_and_refine(session, graph, choose)
        keep = refined.selection.keep
        self._hold(graph, fixed)
        if keep.all():
            return None
        verified = refined.verified
        if verified is None and (self.proof == "every" or (self.proof == "first" and not self.verified)):
            verified = verify(session.model, refined.model, graph, graph.flags(keep))
        self.verified = verified or self.verified
        self._cut(graph, keep, refined.attributes)
        gone = {
            layer.name: int((~kept).sum())
            for layer, kept in zip(graph.layers, graph.by_layer(keep[graph.unit]), strict=True)
            if not kept.all()
        }
        return Removal(
            0,
            int((~keep).sum()),
            sum(gone.values()),
            self.neurons,
            self.costs["params"],
            self.costs["macs"],
            layers=gone,
        )

    def _cut(self, graph: Graph, keep: np.ndarray, attributes: dict[str, dict[str, Any]]) -> None:
        model = self.session.model
        cut_in_place(model, Cut.of(graph, graph.flags(keep)), self.optimizers, self.copies)
        for network in (model, *(network_in(c) for c in self.copies if isinstance(c, nn.Module))):
            apply_attributes(network, attributes)
            compacted(network)
        for name, values in attributes.items():
            self.attributes.setdefault(name, {}).update(values)
        for layer, kept in zip(graph.layers, graph.by_layer(keep[graph.unit]), strict=True):
            self.kept[layer.name] = self.kept[layer.name][kept]
        self.graph = self._analyse()
        self.costs = cost_of(model, self.graph.eval_run)

    def _analyse(self) -> Graph:
        graph = self.session.analyse(self.example)
        graph.fix_layers(self.ranking.keep, self.ranking.only)
        for reason, layers in self.held.items():
            for layer in graph.layers:
                at = np.flatnonzero(np.isin(self.kept[layer.name], layers.get(layer.name, [])))
                if at.size:
                    graph.ties.fix(layer.neurons[at], reason, "")
        graph.settle()
        return graph

    def _hold(self, graph: Graph, before: np.ndarray) -> None:
        """Remember the neurons that turned out to be fixed in the code, for the graphs to come."""
        if len(before) != len(graph.unit_roots):
            return  # lanes were taken apart: it will be found again
        for unit in np.flatnonzero(graph.fixed_units & ~before):
            reason = str(graph.reasons[unit])
            for layer, units in zip(graph.layers, graph.by_layer(graph.unit), strict=True):
                if (at := np.flatnonzero(units == unit)).size:
                    self.held.setdefault(reason, {}).setdefault(layer.name, []).extend(
                        self.kept[layer.name][at].tolist()
                    )

    # -- what it was cut from

    def restore(
        self,
        kept: dict[str, list[int]],
        attributes: dict[str, dict[str, Any]],
        held: dict[str, dict[str, list[int]]],
        what: str,
    ) -> None:
        """Cut the dense network at once to what an earlier run had left; BadInput where that is of another network."""
        layers = {
            layer.name: {"neurons": len(layer.neurons), "kept": kept.get(layer.name)} for layer in self.dense.layers
        }
        keep = Mask.of({"format": "ranp-mask", "version": 1, "layers": layers}).units(self.dense)
        slim, _ = slim_model(self.session.model, self.dense, self.dense.flags(keep))
        check_attributes(slim, attributes, what)
        self.held = held
        if not keep.all():
            self._cut(self.dense, keep, attributes)

    def mask(self, requested: float | str | None, method: dict[str, Any]) -> Mask:
        """What is left, as a mask of the dense network."""
        flags = np.concatenate(
            [
                np.isin(np.arange(n), self.kept[layer.name])
                for layer, n in zip(self.dense.layers, self.dense.sizes, strict=True)
            ]
        )
        self.dense.take_apart(split_units(self.dense, flags))  # as some removal may have done
        keep = np.bincount(self.dense.unit[flags], minlength=len(self.dense.unit_roots)) > 0
        return Mask.from_units(
            self.dense, keep, model=self.session.model_info, requested=requested, method=method, floored=[]
        )

    def pruned(self, requested: float | str | None, method: dict[str, Any], **parts: Any) -> Pruned:
        """The network as it now is, with its mask and report: what `save` takes. The model is the live one, not a copy."""
        mask, report, model = self.mask(requested, method), self.session.report, self.session.model
        now = trace_costs(model, self.example, both_modes=True)
        layers = {(layer.slot, layer.axis): layer for layer in self.dense.layers}
        dense = TracedCosts(self.dense.eval_run, layers, self.dense_costs)
        report.parts |= {
            "method": method,
            "sparsity": {"requested": requested, "achieved": round(mask.achieved, 6)},
            "neurons": {"total": mask.total, "kept": mask.kept},
            "model": dict(self.session.model_info),
            "before": self.dense_costs,
            "after": now.costs,
            "verified": self.verified,
            "layers": layer_rows(self.dense, mask, dense, now),
            "fixed": mask.fixed,
            "uncounted_ops": uncounted(self.dense.eval_run.tracer.uncounted),
            **parts,
        }
        about = {"model": {**self.session.model_info, "parameters": self.dense_shapes}, "attributes": self.attributes}
        pruned = Pruned(model, mask, report, about, project=self.session.project)
        mask.name_run(model)
        return pruned


def removals_part(removals: Sequence[Removal]) -> list[dict[str, Any]]:
    """The report's part `rounds`."""
    return [{key: value for key, value in asdict(each).items() if value is not None} for each in removals]

"""What the removal of each unit saves, given which units are still there; its consumers' input channels count too.

The cost of a unit is that of the network with it less that of the network without it. Each op that multiplies, and each
parameter, is a term: a function of the sizes of some tensors, whose axes shrink with the units along them. So nothing is
refined or run: an op's own FLOP formula gives its cost at any sizes, and only the terms that a unit touches change with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.contexts import each
from ..core.errors import BadInput, nearest
from ..core.flops import flops_of
from ..core.tensors import map_tensors
from ..graph.graph import Graph, Layer
from ..graph.trace import Op
from ..rules.labels import Labels
from .layer_costs import RESOURCES

Sizes = tuple[int, ...]
STAYS = -1  # in the place of a unit: an index that is there in any case


@dataclass
class Axis:
    """An axis of a tensor and the units along it, of shape (its length, units an index): an index goes with the last of them."""

    place: int  # of its size among all sizes of the term
    units: np.ndarray

    def look(self, there: np.ndarray) -> tuple[int, np.ndarray]:
        """How many indices are left, and for each of those the unit with which alone it would go, or STAYS."""
        alive = there[self.units] | (self.units == STAYS)
        left = self.units[alive.any(1)]
        alive = alive[alive.any(1)]
        most = np.where(alive, left, STAYS - 1).max(1)
        least = np.where(alive, left, len(there)).min(1)
        return len(left), np.where(most == least, most, STAYS)


class Steps(NamedTuple):
    """The sizes of a term, and what each unit would take from them: rows of `kinds`, by the number in `kind`."""

    sizes: np.ndarray
    units: np.ndarray
    kinds: np.ndarray
    kind: np.ndarray


@dataclass
class Term:
    """A part of a network's cost: `cost` of the sizes of some tensors, one number an axis."""

    sizes: Sizes
    axes: list[Axis]
    cost: Callable[[Sizes], float]
    known: dict[Sizes, float] = field(default_factory=dict)

    @property
    def touches(self) -> np.ndarray:
        """The units along its axes."""
        found = np.unique(np.concatenate([axis.units.ravel() for axis in self.axes])) if self.axes else np.empty(0, int)
        result: np.ndarray = found[found != STAYS]
        return result

    @cached_property
    def steps(self) -> Steps | None:
        """What each unit takes from the sizes, whatever else is gone; None where several units share an index."""
        if any(axis.units.shape[1] > 1 for axis in self.axes):
            return None
        return self._steps(np.ones(1 + max((int(axis.units.max()) for axis in self.axes), default=0), dtype=bool))

    def savings(self, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The units whose removal makes it cheaper, and by how much."""
        if self.steps is None:
            steps = self._steps(there)
            sizes, alive = steps.sizes, np.ones(len(steps.units), dtype=bool)
        else:
            steps = self.steps
            alive = there[steps.units]
            gone = np.bincount(steps.kind[~alive], minlength=len(steps.kinds))
            sizes = steps.sizes - gone @ steps.kinds
        whole = self._at(tuple(sizes.tolist()))
        saved = np.array([whole - self._at(tuple(np.maximum(sizes - less, 0).tolist())) for less in steps.kinds])
        return steps.units[alive], saved[steps.kind[alive]] if len(saved) else np.empty(0)

    def at(self, there: np.ndarray) -> float:
        """Its cost when just these units are there (one flag a unit)."""
        sizes = list(self.sizes)
        for axis in self.axes:
            alive = there[axis.units] | (axis.units == STAYS)
            sizes[axis.place] = int(alive.any(1).sum())
        return self._at(tuple(sizes))

    def _steps(self, there: np.ndarray) -> Steps:
        sizes = np.array(self.sizes, dtype=np.int64)
        gone = []
        for axis in self.axes:
            sizes[axis.place], last = axis.look(there)
            gone.append((axis.place, *np.unique(last[last != STAYS], return_counts=True)))
        units = np.unique(np.concatenate([u for _, u, _ in gone])) if gone else np.empty(0, int)
        less = np.zeros((len(units), len(sizes)), dtype=np.int64)
        for place, u, count in gone:
            less[np.searchsorted(units, u), place] = count
        kinds, kind = np.unique(less, axis=0, return_inverse=True)
        return Steps(sizes, units, kinds, kind.reshape(-1))

    def _at(self, sizes: Sizes) -> float:
        if sizes not in self.known:
            self.known[sizes] = 0.0 if 0 in sizes else self.cost(sizes)
        return self.known[sizes]


class UnitCosts:
    """The costs of all units, kept true while units go."""

    def __init__(self, graph: Graph, keep_units: np.ndarray, resource: str) -> None:
        self.there = np.array(keep_units, dtype=bool)
        self.terms = [term for term in terms_of(graph, resource) if term.axes]
        self.costs = np.zeros(len(self.there))
        self.shares: list[tuple[np.ndarray, np.ndarray]] = []
        self.touched: dict[int, list[int]] = {}
        for k, term in enumerate(self.terms):
            self.shares.append(term.savings(self.there))
            np.add.at(self.costs, *self.shares[k])
            for unit in term.touches.tolist():
                self.touched.setdefault(unit, []).append(k)

    def remove(self, unit: int) -> np.ndarray:
        """Take a unit away; the units whose costs may have changed."""
        self.there[unit] = False
        changed = [np.array([unit])]
        for k in self.touched.get(unit, ()):
            units, saved = self.shares[k]
            np.add.at(self.costs, units, -saved)
            self.shares[k] = self.terms[k].savings(self.there)
            np.add.at(self.costs, *self.shares[k])
            changed += [units, self.shares[k][0]]
        self.costs[unit] = 0.0
        result: np.ndarray = np.unique(np.concatenate(changed))
        return result


def unit_costs(graph: Graph, keep_units: np.ndarray, resource: str) -> np.ndarray:
    """What the removal of each unit alone would save now, of shape (units,), float64; 0 for a unit that is gone.

    Args:
        keep_units: one flag a unit: it is still there.
        resource: `flops`: two for each true multiply-add of a forward pass of one sample in eval mode, as `profile` counts
            (not the paper's counting, which eq. 10 uses); `mem`: elements that layers output for one sample; `params`;
            `latency`: the layers' measured seconds, in proportion to the multiply-adds of each that would go.

    Fixed units have costs too, though they stay.
    """
    return UnitCosts(graph, keep_units, resource).costs


# -- the terms of each resource


def terms_of(graph: Graph, resource: str) -> Iterator[Term]:
    if resource not in RESOURCES:
        raise BadInput(f"unknown resource '{resource}'{nearest(resource, RESOURCES)}")
    if resource == "params":
        parameters = set(graph.eval_run.tracer.owned.values())
        for slot in graph.slots.values():
            if slot.name in parameters:
                yield term_of(graph, [slot.labels], math.prod)
    elif resource == "mem":
        for layer in graph.layers:
            ids = torch.from_numpy(layer.neurons)
            output = Labels(tuple(ids.shape), (ids,) if len(ids) > 1 else ())
            yield term_of(graph, [output], partial(_share, layer.output_elements, len(ids)))
    elif resource == "flops":
        samples = graph.eval_run.samples
        for op in graph.eval_run.tracer.ops:
            if op.flops:
                yield op_term(graph, op, 1 / samples)
    else:
        for layer, op, share in layer_ops(graph):
            yield op_term(graph, op, share * seconds_per_flop(layer))


def layer_ops(graph: Graph) -> Iterator[tuple[Layer, Op, float]]:
    """The ops that layers call, and the share of each that is a layer's, for one sample."""
    ops = {id(op.call): op for run in (graph.eval_run, graph.train_run) for op in run.tracer.ops if op.call}
    for layer in graph.layers:
        for call, share in layer.calls:
            yield layer, ops[id(call)], share


def seconds_per_flop(layer: Layer) -> float:
    return layer.seconds / (2 * layer.macs) if layer.macs else 0.0


def _share(whole: float, of: int, sizes: Sizes) -> float:
    return whole * sizes[0] / of


def op_term(graph: Graph, op: Op, factor: float) -> Term:
    """The FLOPs of an op times `factor`, by its own formula at the sizes that are left."""
    _, args, kwargs = op.call
    tensors = list(each(Tensor, args, kwargs))
    assert [tuple(t.shape) for t in tensors] == [t.shape for t in op.ins], op.name
    return term_of(graph, [*op.ins, *op.outs], partial(_flops, op, factor))


def _flops(op: Op, factor: float, sizes: Sizes) -> float:
    func, args, kwargs = op.call
    shapes: list[Sizes] = []
    at = 0
    for t in (*op.ins, *op.outs):
        shapes.append(sizes[at : at + t.ndim])
        at += t.ndim
    made = iter([torch.empty(shape, device="meta") for shape in shapes])
    args, kwargs = map_tensors((tuple(args), dict(kwargs)), lambda _: next(made))
    outs: Any = tuple(made)
    flops = flops_of(func, args, kwargs, outs[0] if len(func._schema.returns) == 1 else outs)
    return factor * (flops or 0)


def term_of(graph: Graph, tensors: Sequence[Labels], cost: Callable[[Sizes], float]) -> Term:
    sizes: list[int] = []
    axes: dict[int, Axis] = {}
    for t in tensors:
        for plane in t.planes:
            for axis, n in enumerate(plane.shape):
                if n > 1 and n == t.shape[axis]:
                    units = graph.units_of(plane.movedim(axis, 0).reshape(n, -1).numpy())
                    if (units != STAYS).any():
                        axes[len(sizes) + axis] = Axis(len(sizes) + axis, _narrow(units))
        sizes.extend(t.shape)
    return Term(tuple(sizes), list(axes.values()), cost)


def _narrow(units: np.ndarray) -> np.ndarray:
    """Units of each index, once where all that lie on it are one."""
    return units[:, :1] if (units == units[:, :1]).all() else units

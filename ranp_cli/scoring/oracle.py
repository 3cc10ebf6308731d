"""The oracle: the change of the loss with each unit removed, one forward pass a unit and mini-batch.

A unit is removed as law 1 says it: its slices in every consumer are zero. That is done in place, on a twin that has these
parameters to itself, and undone after the pass; nothing is built anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..core.errors import BadInput
from ..core.spelling import spelled
from ..graph.graph import Graph
from .criteria import Criterion
from .weight_gradients import GradientCollector

FIXED = "all its units are fixed, and the oracle removes none of those"


def consumers(graph: Graph) -> frozenset[str]:
    """The parameters and buffers that consume what a unit gives."""
    consumed = graph.ties.consumed()
    return frozenset(
        name for name, slot in graph.slots.items() if any(i is not None and consumed[i.numpy()].any() for i in slot.ids)
    )


def slices_of(graph: Graph) -> dict[int, list[tuple[str, int, Tensor]]]:
    """Unit -> its slices in its consumers: (parameter, axis, indices)."""
    consumed = graph.ties.consumed()
    found: dict[int, list[tuple[str, int, Tensor]]] = {}
    for name, slot in graph.slots.items():
        for axis, ids in enumerate(slot.ids):
            if ids is None:
                continue
            units = np.where(consumed[ids.numpy()], graph.units_of(ids.numpy()), -1)
            for unit in np.unique(units[units >= 0]).tolist():
                found.setdefault(unit, []).append((name, axis, torch.from_numpy(np.flatnonzero(units == unit))))
    return found


class OracleCollector(GradientCollector):
    """The change of the loss without each unit that may go; fixed units are not tried, and have the score 0.

    Over mini-batches the changes are averaged with their sign: what counts is the change of the loss of all of them.
    `done` are the changes of the mini-batch at hand, of the first so many units: a run that is stopped in the middle of a
    mini-batch goes on from there.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], criterion: Criterion) -> None:
        super().__init__([criterion], len(graph.sizes))
        self.graph, self.tensors = graph, tensors
        self.units = np.flatnonzero(~graph.fixed_units).tolist()
        self.slices = slices_of(graph)
        self.done: list[float] = []
        self.after_unit: Callable[[], object] = lambda: None

    @contextmanager
    def without(self, unit: int | None) -> Iterator[None]:
        """The unit's slices in its consumers at zero, while it lasts; with None nothing is changed."""
        held = []
        with torch.no_grad():
            for name, axis, index in self.slices.get(unit, ()) if unit is not None else ():
                t = self.tensors[name].detach()
                index = index.to(t.device)
                held.append((t, axis, index, t.index_select(axis, index)))
                t.index_fill_(axis, index, 0)
        try:
            yield
        finally:
            with torch.no_grad():
                for t, axis, index, values in reversed(held):
                    t.index_copy_(axis, index, values)

    def measure(self, loss: Callable[[int | None], float], index: int) -> None:
        """The changes of mini-batch `index` by `loss(unit)`, the loss without a unit (None: with all of them)."""
        if len(self.done) < len(self.units):
            whole = self._checked(loss(None), index, None)
        for unit in self.units[len(self.done) :]:
            self.done.append(self._checked(loss(unit), index, unit) - whole)
            self.after_unit()
        changes = np.zeros(len(self.graph.unit_roots))
        changes[self.units] = self.done
        for k, units in enumerate(self.graph.by_layer(self.graph.unit)):
            if not self.graph.fixed_units[units].all():
                self.put(self.criteria[0], k, torch.from_numpy(changes[units]).to(self._device))

    def _checked(self, value: float, index: int, unit: int | None) -> float:
        if math.isfinite(value):
            return value
        layers = zip(self.graph.layers, self.graph.by_layer(self.graph.unit), strict=True)
        where = "" if unit is None else f" without a unit of layer {next(x.name for x, u in layers if unit in u)}"
        raise BadInput(
            f"the loss of mini-batch {index}{where} is {value}; give a batch and {spelled('loss')} that make it finite"
        )

    @property
    def _device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def end_of_batch(self) -> None:
        super().end_of_batch()
        self.done = []

    def nothing(self, criterion: Criterion, k: int) -> Tensor:
        return torch.zeros(self.graph.sizes[k], dtype=torch.float64, device=self._device)

    def why_none(self, k: int) -> str:
        return FIXED

    def before_backward(self, loss: Tensor, index: int, seed: int) -> None:
        """No gradient is looked at."""

    def take(self) -> None:
        """It has passes of its own, see `measure`."""


def resume(collectors: Sequence[GradientCollector], done: Sequence[float]) -> None:
    """Go on in the middle of a mini-batch; BadInput where so many units are not there."""
    for collector in collectors:
        if isinstance(collector, OracleCollector):
            if len(done) > len(collector.units):
                raise BadInput(
                    f"{spelled('resume')}: these scores have {len(done)} units of a mini-batch, and {len(collector.units)} may "
                    "be removed; score anew"
                )
            collector.done = list(done)

"""The narrowest cut: the fewest channels through which everything must pass on its way from the input to an output.

A flow network over the units of a graph: a unit carries as many channels as it has neurons in one layer, a layer leads
from the units that enter its weight to its neurons. A skip connection or a concatenation is a second way, and widens the
cut; a residual sum ties its operands to the same units, so its stream is one place. The cut follows from the labels
alone: no name or number of a layer has a part in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.tensors import tensors_in
from ..graph.graph import Graph
from ..rules.labels import FIXED

Arcs = dict[Hashable, dict[Hashable, float]]  # capacity by start and end
SOURCE = "source"


@dataclass(frozen=True)
class Cut:
    """The narrowest cut before one output: its channels, those of the dense network, and the layers that it runs through."""

    output: int  # which of the network's outputs, in the order in which they are returned
    outputs: int  # channels of that output
    channels: int
    dense: int
    layers: list[str]

    @property
    def is_narrow(self) -> bool:
        """Narrower than the output and than what the dense network has in its narrowest place."""
        return self.channels < min(self.outputs, self.dense)

    def to_dict(self) -> dict[str, Any]:
        return {
            "output": self.output,
            "output_channels": self.outputs,
            "channels": self.channels,
            "dense_channels": self.dense,
            "layers": self.layers,
        }


def narrowest_cuts(graph: Graph, keep: np.ndarray) -> list[Cut]:
    """The narrowest cut before each output of the network with the units flagged in `keep`; one entry a set of outputs."""
    return Flow(graph).cuts(keep)


def output_units(graph: Graph) -> list[np.ndarray]:
    """The units of each output, in the order in which they are returned: of eval mode, then what training mode adds."""
    sets: dict[bytes, np.ndarray] = {}
    for run in (graph.eval_run, graph.train_run):
        for t in tensors_in(run.output):
            units = np.unique(graph.units_of(run.tracer.labels(t).ids().numpy()))
            units = units[units >= 0]
            if len(units):
                sets.setdefault(units.tobytes(), units)
    return list(sets.values())


class Flow:
    """The units of a graph by the layers that make and read them, and how many channels each carries."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        n, k = len(graph.unit_roots), len(graph.layers)
        self.made, self.read = np.zeros((n, k), dtype=bool), np.zeros((n, k), dtype=bool)
        self.width = np.zeros(n, dtype=np.int64)  # channels of a unit: its neurons in one layer
        self.from_input = np.zeros(k, dtype=bool)
        self.input_unit = int(graph.units_of(np.array([FIXED]))[0])  # that the network's input is tied to; -1: none
        for layer, own in enumerate(graph.by_layer(graph.unit)):
            units, count = np.unique(own, return_counts=True)
            self.width[units] = np.maximum(self.width[units], count)
            entering = self._entering(layer)
            if entering is None or np.isin(entering, units).all():  # depthwise: a channel goes through
                continue
            self.made[units, layer] = True
            self.read[entering[entering >= 0], layer] = True
            self.from_input[layer] = bool((entering < 0).any())
        self.outputs = output_units(graph)
        at_output = np.array([np.isin(np.arange(n), units) for units in self.outputs]).reshape(-1, n).T
        at_input = np.arange(n)[:, None] == self.input_unit
        rows = np.concatenate([self.made, self.read, at_output, at_input], axis=1)
        self.group = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)  # units of the same ways

    def _entering(self, k: int) -> np.ndarray | None:
        """The units that enter the weight of a layer, -1 for what belongs to none; None where it is depthwise."""
        layer = self.graph.layers[k]
        slot = self.graph.slots[layer.slot]
        ids = next((ids for axis, ids in enumerate(slot.ids) if ids is not None and axis != layer.axis), None)
        if ids is None:
            return None if layer.groups > 1 else np.array([-1])
        units = self.graph.units_of(ids.numpy())
        return np.where(units == self.input_unit, -1, units)

    def cuts(self, keep: np.ndarray) -> list[Cut]:
        found = []
        for index, units in enumerate(self.outputs):
            dense, _ = self._cut(units, np.ones(len(keep), dtype=bool))
            channels, groups = self._cut(units, keep)
            if channels is None or dense is None:  # this output has a way that no layer narrows
                continue
            layers = [
                layer.name
                for layer, own in zip(self.graph.layers, self.graph.by_layer(self.graph.unit), strict=True)
                if np.isin(self.group[own], groups).any()
            ]
            outputs = int(self.width[units].sum())
            found.append(Cut(index, outputs, channels, dense, layers))
        return found

    def _cut(self, sink_units: np.ndarray, keep: np.ndarray) -> tuple[int | None, list[int]]:
        """Channels of the narrowest cut before these units and the groups that it consists of; None: it is unbounded."""
        arcs: Arcs = {}

        def arc(a: Hashable, b: Hashable, capacity: float) -> None:
            arcs.setdefault(a, {})[b] = capacity
            arcs.setdefault(b, {}).setdefault(a, 0.0)

        sinks = set(self.group[sink_units].tolist())
        size = np.bincount(self.group, weights=self.width * keep)
        for g, first in zip(*np.unique(self.group, return_index=True), strict=True):
            g = int(g)
            arc(("in", g), ("out", g), np.inf if g in sinks else float(size[g]))
            for layer in np.flatnonzero(self.made[first]).tolist():
                arc(("layer", layer), ("in", g), np.inf)
            for layer in np.flatnonzero(self.read[first]).tolist():
                arc(("out", g), ("layer", layer), np.inf)
            if g in sinks:
                arc(("out", g), "sink", np.inf)
            if self.input_unit >= 0 and g == self.group[self.input_unit]:
                arc(SOURCE, ("in", g), np.inf)
        for layer in np.flatnonzero(self.from_input).tolist():
            arc(SOURCE, ("layer", layer), np.inf)
        flow, reached = maximum_flow(arcs, SOURCE, "sink")
        if flow == np.inf:
            return None, []
        return int(flow), [g for g in range(len(size)) if ("in", g) in reached and ("out", g) not in reached]


def maximum_flow(arcs: Arcs, source: Hashable, sink: Hashable) -> tuple[float, set[Hashable]]:
    """The largest flow and what is still reachable from the source once it runs: the source's side of a minimum cut.

    Source: Edmonds and Karp, shortest augmenting paths (J. ACM 19, 1972). `arcs` are left as what is still free.
    """
    total = 0.0
    while True:
        before: dict[Hashable, Hashable] = {source: source}
        queue = deque([source])
        while queue and sink not in before:
            a = queue.popleft()
            for b, free in arcs.get(a, {}).items():
                if free > 0 and b not in before:
                    before[b] = a
                    queue.append(b)
        if sink not in before:
            return total, set(before)
        path = [sink]
        while path[-1] != source:
            path.append(before[path[-1]])
        steps = list(zip(path[1:], path, strict=False))
        amount = min(arcs[a][b] for a, b in steps)
        if amount == np.inf:
            return amount, set()
        for a, b in steps:
            arcs[a][b] -= amount
            arcs[b][a] += amount
        total += amount

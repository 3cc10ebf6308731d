"""The graph of a network: its labelled parameters, its layers, and the units that live and die together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import BadInput
from ..core.example import Example
from ..core.spelling import spelled
from ..rules.labels import Labels, Reason, Ties
from .counting import PaperCounting
from .trace import Tracer

KEPT, NOT_NAMED = "kept by --keep", "not named by --only"  # as masks record them, from whatever door the call came


def worded(reason: object) -> str:
    """A reason why a unit is fixed, with options as the caller spells them."""
    return str(reason).replace("--keep", spelled("keep")).replace("--only", spelled("only"))


@dataclass(frozen=True)
class LabelledParameter:
    """A parameter or buffer and the labels along its axes (None where an axis carries none)."""

    name: str
    shape: tuple[int, ...]
    ids: tuple[Tensor | None, ...]

    @property
    def labels(self) -> Labels:
        planes = []
        for axis, ids in enumerate(self.ids):
            if ids is not None:
                planes.append(ids.view([-1 if a == axis else 1 for a in range(len(self.shape))]))
        return Labels(self.shape, tuple(planes), frozenset([self.name]))


@dataclass
class Layer:
    """One parameter used as the weight of a convolution, transposed convolution or linear op."""

    name: str
    slot: str
    axis: int  # of the parameter, along which its neurons lie
    op: str
    neurons: np.ndarray  # (N,) one label a neuron
    kernel: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    bias: bool = False
    weights: int = 0
    macs: int = 0  # true multiply-adds of one sample
    output_elements: int = 0  # of one sample
    calls: list[tuple[Any, float]] = field(default_factory=list)  # of its op, and its share of each for one sample
    seconds: float = 0.0  # measured, of one sample; 0 where nobody did

    @property
    def bias_adds(self) -> int:
        return self.output_elements if self.bias and self.op != "linear" else 0


@dataclass
class TraceResult:
    """What one shadow run showed."""

    tracer: Tracer
    output: Any
    samples: int
    real: bool
    features: dict[str, Labels]  # the input of modules that count channels without owning a parameter
    paper: PaperCounting | None  # None with TorchScript, whose modules cannot be watched


@dataclass
class Graph:
    """A model's layers, units and costs.

    `root[label]` names the unit of a label; `fixed[root]` says why a unit may not go; `unit` gives for each of the n
    neurons (layer after layer, in forward order) the index of its unit, and `reasons[unit]` why it is fixed or None.
    """

    slots: dict[str, LabelledParameter]
    layers: list[Layer]
    ties: Ties
    eval_run: TraceResult
    train_run: TraceResult
    example: Example
    root: np.ndarray = field(default_factory=lambda: np.empty(0))
    unit: np.ndarray = field(default_factory=lambda: np.empty(0))
    unit_roots: np.ndarray = field(default_factory=lambda: np.empty(0))
    reasons: list[Reason | None] = field(default_factory=list)
    unranked: frozenset[str] = frozenset()  # layers without scores
    left_out: frozenset[str] = frozenset()  # layers that `--keep` and `--only` leave out of pruning
    _parts: list[np.ndarray] | None = None

    def settle(self) -> None:
        """Work out the units; again after more labels were fixed."""
        self.root = self.ties.roots()
        fixed = self.ties.fixed(self.root)
        consumed = set(np.unique(self.root[self.ties.consumed()]).tolist())
        neurons = np.concatenate([layer.neurons for layer in self.layers])
        self.unit_roots, self.unit = np.unique(self.root[neurons], return_inverse=True)
        self.reasons = []
        for root in self.unit_roots.tolist():
            unused = None if root in consumed else Reason("no layer uses its output")
            self.reasons.append(fixed.get(root) or unused)
        self._parts = None

    @property
    def parts(self) -> list[np.ndarray]:
        """Units that some op reads alone, as after a slice, none of which stays in any case: one of each has to stay.

        Those that hold a whole layer are left out, since its floor sees to that.
        """
        if self._parts is None:
            fixed, starts = self.fixed_units, np.cumsum([0, *self.sizes[:-1]])
            self._parts = []
            for ids in self.ties.read_together():
                units = np.unique(self.units_of(ids))
                if not len(units) or units[0] < 0 or fixed[units].any():
                    continue
                read = np.zeros(len(fixed), dtype=bool)
                read[units] = True
                if not (np.add.reduceat(read[self.unit], starts) == self.sizes).any():
                    self._parts.append(units)
        return self._parts

    def empties(self, keep: np.ndarray) -> bool:
        """Whether these units, one flag each, leave some op without anything to read."""
        return any(not keep[part].any() for part in self.parts)

    def take_apart(self, units: np.ndarray) -> bool:
        """Undo what only slices suggested to be equal in these units (their indices); False where none did. All units have other indices then."""
        labels = np.flatnonzero(np.isin(self.root, self.unit_roots[units]))
        found = self.ties.untie_lanes(lambda _, edges: bool(np.isin(edges, labels).any()))
        if found:
            self.settle()
        return found

    @property
    def written(self) -> set[str]:
        """Parameters that the forward writes: a copy that runs must have them to itself."""
        return self.eval_run.tracer.written | self.train_run.tracer.written

    @property
    def sizes(self) -> list[int]:
        return [len(layer.neurons) for layer in self.layers]

    @property
    def n(self) -> int:
        return sum(self.sizes)

    def by_layer(self, values: np.ndarray) -> list[np.ndarray]:
        """A vector of n values, cut into one piece a layer."""
        return np.split(values, np.cumsum(self.sizes)[:-1])

    def units_of(self, labels: np.ndarray) -> np.ndarray:
        """The index of the unit of each label, -1 for one that belongs to no neuron."""
        root = self.root[labels]
        at = np.minimum(np.searchsorted(self.unit_roots, root), len(self.unit_roots) - 1)
        return np.where(self.unit_roots[at] == root, at, -1)

    @property
    def fixed_units(self) -> np.ndarray:
        return np.array([r is not None for r in self.reasons])

    @property
    def ranked(self) -> np.ndarray:
        """One flag per neuron: its layer has scores."""
        return np.repeat([layer.name not in self.unranked for layer in self.layers], self.sizes)

    @property
    def unranked_units(self) -> np.ndarray:
        """One flag per unit: none of its layers has scores."""
        result: np.ndarray = np.bincount(self.unit[self.ranked], minlength=len(self.unit_roots)) == 0
        return result

    @property
    def left_out_units(self) -> np.ndarray:
        """One flag per unit: one of its layers is left out of pruning."""
        mine = np.repeat([layer.name in self.left_out for layer in self.layers], self.sizes)
        result: np.ndarray = np.bincount(self.unit[mine], minlength=len(self.unit_roots)) > 0
        return result

    def flags(self, keep_units: np.ndarray) -> np.ndarray:
        """One flag per label: does it stay? Labels without a neuron always do."""
        root_stays = np.ones(self.ties.size, dtype=bool)
        root_stays[self.unit_roots] = keep_units
        result: np.ndarray = root_stays[self.root]
        return result

    def kept_indices(self, slot: LabelledParameter, stays: np.ndarray) -> list[Tensor | None]:
        """For each axis of a parameter the indices that stay; None where all do."""
        out: list[Tensor | None] = []
        for ids in slot.ids:
            flags = None if ids is None else stays[ids.numpy()]
            out.append(None if flags is None or flags.all() else torch.from_numpy(np.flatnonzero(flags)))
        return out

    def fix_layers(self, keep: Iterable[str], only: Iterable[str]) -> None:
        """`--keep` and `--only`: globs on layer names. Raises BadInput when a glob meets no layer."""
        keep, only = list(keep), list(only)
        names = [layer.name for layer in self.layers]
        for glob in (*keep, *only):
            if not any(fnmatchcase(name, glob) for name in names):
                raise BadInput(
                    f"no layer matches '{glob}'; the layers are {', '.join(names[:8])}{', ...' * (len(names) > 8)}"
                )
        left_out = set()
        for layer in self.layers:
            if any(fnmatchcase(layer.name, g) for g in keep):
                self.ties.fix(layer.neurons, KEPT)
            elif only and not any(fnmatchcase(layer.name, g) for g in only):
                self.ties.fix(layer.neurons, NOT_NAMED)
            else:
                continue
            left_out.add(layer.name)
        self.left_out = frozenset(left_out)
        self.settle()

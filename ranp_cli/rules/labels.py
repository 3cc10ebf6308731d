"""Labels and ties: who lives and dies together. Knows no op.

A label is an integer carried by one index of one axis. `Labels` are the labels of one tensor: a tuple of *planes*,
int64 tensors of the tensor's rank whose size is 1 along an axis without labels and full along an axis with them, so
they broadcast as the tensor does and cost next to nothing. 0 means "no label". Almost every plane lies along one axis;
one that lies along several has been split (`view` of C into g x C/g) and not yet been told which part may shrink.

`Ties` is the union of all that was said about labels: which are equal, which may not go and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .components import components, distinct

FIXED = 1  # the label of everything that may not change: network inputs, what an op without a rule returns


@dataclass(frozen=True)
class Labels:
    """The labels of one tensor of shape `shape`.

    `origin` names the parameters and buffers that the tensor is computed from alone; None: from the network's input.
    `value` is the tensor itself where rules may need its numbers (an index), else None.
    """

    shape: tuple[int, ...]
    planes: tuple[Tensor, ...] = ()
    origin: frozenset[str] | None = frozenset()
    value: Tensor | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def is_data(self) -> bool:
        return self.origin is None

    def ids(self) -> Tensor:
        """All labels of all planes, flat."""
        return torch.cat([p.reshape(-1) for p in self.planes]) if self.planes else torch.empty(0, dtype=torch.int64)


def axes_of(plane: Tensor) -> list[int]:
    """The axes along which a plane carries labels."""
    return [k for k, n in enumerate(plane.shape) if n > 1]


def overlap(p: Tensor, q: Tensor) -> bool:
    return any(a > 1 and b > 1 for a, b in zip(p.shape, q.shape, strict=True))


class Reason(NamedTuple):
    """Why labels are fixed, and where in the user's code (an empty string when unknown)."""

    what: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.what} at {self.where}" if self.where else self.what


class LayerUse(NamedTuple):
    """One call of a convolution or linear op with parameters for weights; `how` holds kernel, groups, axis, ..."""

    op: str
    weight: Labels
    neurons: Tensor | None
    how: dict[str, Any]


class Place(NamedTuple):
    """Where a slice begins along a labelled axis, and the labels before it."""

    start: int
    before: Tensor


class Ties:
    """A growing union of labels, and the set of fixed ones."""

    def __init__(self) -> None:
        self.size = FIXED + 1
        self._edges: list[np.ndarray] = []
        self._lanes: list[tuple[str, np.ndarray]] = []  # what slices suggest, by their line; may be undone
        self._fixed: list[tuple[np.ndarray, Reason]] = [(np.array([FIXED]), Reason("network input"))]
        self._splits: list[Tensor] = []
        self._consumed: list[np.ndarray] = []
        self._statistics: list[tuple[np.ndarray, Reason, tuple[int, int]]] = []
        self.uses: list[LayerUse] = []
        self.places: list[Place] = []
        self.scales: list[Labels] = []
        self.step: tuple[int, int] = (0, 0)  # the trace at work and the number of its op, set by it
        self.suspects: dict[tuple[int, int], list[Tensor]] = {}
        self.locate: Callable[[], str] = str

    # -- saying

    def mark(self) -> tuple[int, ...]:
        """Where we are, for `take_back`."""
        return tuple(len(said) for said in self._said)

    def take_back(self, mark: tuple[int, ...]) -> None:
        """Forget what was said since `mark`; labels made since stay, and mean nothing."""
        for said, n in zip(self._said, mark, strict=True):
            del said[n:]

    @property
    def _said(self) -> list[list[Any]]:
        lists = (self._fixed, self._splits, self._consumed, self._statistics, self.uses, self.places, self.scales)
        return [self._edges, self._lanes, *lists]

    def new(self, n: int) -> Tensor:
        """n fresh labels."""
        ids = torch.arange(self.size, self.size + n)
        self.size += n
        return ids

    def tie(self, a: Tensor | None, b: Tensor | None) -> None:
        """Labels a and b are equal, element by element after broadcasting; 0 ties to nothing."""
        if a is None or b is None or a is b:
            return
        a, b = torch.broadcast_tensors(a, b)
        labelled = (a > 0) & (b > 0)
        differ = (a != b) & labelled
        if differ.any():
            self._edges.append(distinct(a[differ].numpy(), b[differ].numpy(), self.size))
        if not labelled.all():
            self.suspect(torch.cat([a[(a > 0) & ~labelled], b[(b > 0) & ~labelled]]))

    def tie_lanes(self, lanes: Tensor, axis: int) -> None:
        """Labels along `axis` of `lanes` are equal, as a slice at this line suggests: its parts lose the same."""
        a, b = torch.broadcast_tensors(lanes, lanes.amax(axis, keepdim=True))
        differ = (a != b) & (a > 0) & (b > 0)
        if differ.any():
            self._lanes.append((self.locate(), distinct(a[differ].numpy(), b[differ].numpy(), self.size)))

    def untie_lanes(self, suggests: Callable[[str, np.ndarray], bool]) -> bool:
        """Take back what some slices suggested, told by their line and the labels they tie; False where none did."""
        kept = [(line, edges) for line, edges in self._lanes if not suggests(line, edges)]
        found, self._lanes = len(kept) < len(self._lanes), kept
        return found

    def place(self, start: int, before: Tensor) -> None:
        """A slice begins at index `start` of an axis, behind the labels `before`."""
        self.places.append(Place(start, before.reshape(-1)))

    def fix(self, ids: Tensor | np.ndarray | None, what: str, where: str | None = None) -> None:
        """These labels may not go; `where` in the user's code, by default where the trace is."""
        if ids is not None and (flat := np.unique(np.asarray(ids))).size:
            self._fixed.append((flat[flat > 0], Reason(what, self.locate() if where is None else where)))

    def unfix(self, reasons: Container[str]) -> None:
        """Take back what was fixed for these reasons."""
        self._fixed = [(ids, reason) for ids, reason in self._fixed if reason.what not in reasons]

    def scale(self, t: Labels | None) -> None:
        """t multiplies activations: where it is a parameter (or made of some alone) that is all zero, no gradient passes."""
        if t is not None and t.origin:
            self.scales.append(t)

    def consume(self, ids: Tensor | None) -> None:
        """These labels index parameters that are summed over: the slices that zero a removed unit's effect."""
        if ids is not None and ids.numel():
            self._consumed.append(ids.reshape(-1).numpy())

    def statistics(self, ids: Tensor | None, what: str) -> None:
        """A statistic is taken over the indices with these labels: it changes when some of them go."""
        if ids is not None and ids.numel():
            self._statistics.append((np.unique(ids.numpy()), Reason(what, self.locate()), self.step))

    def suspect(self, ids: Tensor) -> None:
        """These labels met indices without labels (a constant): should the op fail once they are gone, they must stay."""
        if ids.numel():
            self.suspects.setdefault(self.step, []).append(ids)

    def layer(self, op: str, weight: Labels, neurons: Tensor | None, **how: Any) -> None:
        """`weight` is the weight of a layer whose i-th neuron carries label neurons[i] (None: a single neuron)."""
        self.uses.append(LayerUse(op, weight, neurons, how))

    # -- reading a tensor's labels

    def vector(self, t: Labels, axis: int) -> Tensor | None:
        """Labels along one axis of t, of length t.shape[axis]; None without. A split plane is hereby decided."""
        axis %= t.ndim
        out = None
        for p in t.planes:
            if p.shape[axis] == 1:
                continue
            rows = p.movedim(axis, 0).reshape(p.shape[axis], -1)
            first = rows.amax(1)
            self.tie(first[:, None], rows)
            self.tie(out, first)
            out = first if out is None else torch.where(out > 0, out, first)
        return out

    def merge(self, shape: Sequence[int], tensors: Iterable[Labels]) -> tuple[Tensor, ...]:
        """Planes of the element-wise combination, of shape `shape`, of tensors that broadcast: overlapping planes tie."""
        out: list[Tensor] = []
        tensors = list(tensors)
        self._suspect_constants(shape, tensors)
        for t in tensors:
            for p in t.planes:
                p = p.reshape((1,) * (len(shape) - p.ndim) + tuple(p.shape))
                met = [i for i, q in enumerate(out) if overlap(p, q)]
                for i in met:
                    self.tie(p, out[i])
                    if not (p > 0).all() or not (out[i] > 0).all():
                        a, b = torch.broadcast_tensors(p, out[i])
                        self.suspect(torch.cat([a[b == 0], b[a == 0]]))
                if met:
                    i = met[0]
                    out[i] = torch.where(out[i] > 0, out[i], p)
                else:
                    out.append(p)
        return tuple(out)

    def _suspect_constants(self, shape: Sequence[int], tensors: list[Labels]) -> None:
        """Labels of one operand that lie along an axis where another is as long and has none."""
        for t in tensors:
            lead = len(shape) - t.ndim
            bare = {a + lead for a, n in enumerate(t.shape) if n > 1 and all(p.shape[a] == 1 for p in t.planes)}
            for other in tensors:
                gap = len(shape) - other.ndim
                for p in other.planes if bare and other is not t else ():
                    axes = axes_of(p)
                    if len(axes) == 1 and axes[0] + gap in bare:
                        self.suspect(p.reshape(-1))

    def collapse(self, t: Labels, axes: Iterable[int]) -> Labels:
        """t without labels along `axes`: planes that also lie elsewhere are tied along them, the others are dropped."""
        gone = {a % t.ndim for a in axes} if t.ndim else set()
        planes = []
        for p in t.planes:
            mine = [a for a in axes_of(p) if a in gone]
            if mine:
                first = p.amax(mine, keepdim=True)
                if len(mine) == len(axes_of(p)):
                    continue
                self.tie(p, first)
                p = first
            planes.append(p)
        return replace(t, planes=tuple(planes), value=None)

    def along(self, t: Labels, axes: Iterable[int]) -> Tensor:
        """The labels that only lie along `axes` (what `collapse` would drop), flat."""
        gone = {a % t.ndim for a in axes} if t.ndim else set()
        lost = [p.reshape(-1) for p in t.planes if axes_of(p) and set(axes_of(p)) <= gone]
        return torch.cat(lost) if lost else torch.empty(0, dtype=torch.int64)

    def reshape(self, t: Labels, shape: Sequence[int]) -> tuple[Tensor, ...]:
        """Planes after `view(shape)`. A labelled axis that is split lies along all its parts until something decides."""
        shape = tuple(shape)
        if 0 in shape or not t.planes:
            return ()
        groups = factor(t.shape, shape)
        out: list[Tensor] = []
        for p in t.planes:
            wide, narrow, parts = list(p.shape), [1] * len(shape), []
            for ins, outs in groups:
                if any(p.shape[a] > 1 for a in ins):
                    for a in ins:
                        wide[a] = t.shape[a]
                    for a in outs:
                        narrow[a] = shape[a]
                    parts.append(outs)
            p = p.expand(wide).reshape(narrow)
            for outs in parts:
                p = self._squash(p, outs)
            out.append(p)
        return tuple(self._disjoint(out, t.planes))

    def settled(
        self, planes: Sequence[Tensor], before: Sequence[Tensor], groups: Iterable[list[int]]
    ) -> tuple[Tensor, ...]:
        """Planes after a view: `groups` lists the axes into which one axis went; `before` are the planes before it."""
        out = list(planes)
        for axes in groups:
            out = [self._squash(p, axes) if sum(p.shape[a] > 1 for a in axes) > 1 else p for p in out]
        kept = [(p, q) for p, q in zip(out, before, strict=True) if axes_of(p)]
        return tuple(self._disjoint([p for p, _ in kept], [q for _, q in kept]))

    def _squash(self, p: Tensor, axes: list[int]) -> Tensor:
        """Drop the axes along which the labels repeat (if they differ at all), and remember a split."""
        if bool((p == p.amax(axes, keepdim=True)).all()):
            return p
        for a in axes:
            first = p.narrow(a, 0, 1)
            if p.shape[a] > 1 and any(p.shape[b] > 1 for b in axes if b != a) and bool((p == first).all()):
                p = first
        if sum(p.shape[a] > 1 for a in axes) > 1:
            self._splits.append(p.amax([b for b in range(p.ndim) if b not in axes], keepdim=True))
        return p

    def _disjoint(self, planes: list[Tensor], before: Sequence[Tensor]) -> list[Tensor]:
        """Two labelled axes that were merged into one cannot shrink independently: the first keeps its labels.

        One that is all fixed (a spatial axis of the network's input) gives way: nothing is lost with it.
        """
        order = sorted(range(len(planes)), key=lambda i: bool((planes[i] == FIXED).all()))
        planes, before = [planes[i] for i in order], [before[i] for i in order]
        out: list[Tensor] = []
        for i, p in enumerate(planes):
            if any(overlap(p, q) and not overlap(before[i], before[j]) for j, q in enumerate(planes[:i])):
                self.fix(p.reshape(-1), "merged with another labelled axis")
            else:
                out.append(p)
        return out

    # -- the answer

    def roots(self) -> np.ndarray:
        """For each label the smallest label it is tied to, after every split has been decided."""
        while True:
            roots = self._components()
            pending = [s for s in self._splits if decided_axis(roots[s.numpy()]) is None]
            if not pending:
                return roots
            for s in pending:  # the longest part may shrink, the last of equals: (groups, channels per group)
                axis = max(axes_of(s), key=lambda a: (s.shape[a], a))
                first = s.amax([a for a in range(s.ndim) if a != axis], keepdim=True)
                self.tie(s, first)

    def fixed(self, roots: np.ndarray) -> dict[int, Reason]:
        """Root -> the first reason why it is fixed."""
        out: dict[int, Reason] = {}
        for ids, reason in self._fixed:
            for root in np.unique(roots[ids]).tolist():
                out.setdefault(root, reason)
        return out

    def read_together(self) -> list[np.ndarray]:
        """The labels that each op sums over, without those that are equal to another op's; each array sorted."""
        return list({ids.tobytes(): ids for ids in map(np.unique, self._consumed)}.values())

    def consumed(self) -> np.ndarray:
        """One flag per label: the parameter slices it indexes are summed over."""
        flags = np.zeros(self.size, dtype=bool)
        flags[np.concatenate([np.empty(0, dtype=np.int64), *self._consumed])] = True
        return flags

    def changed_statistics(self, gone: np.ndarray) -> list[Reason]:
        """The statistics that see some of the labels flagged in `gone`."""
        return list(dict.fromkeys(reason for ids, reason, _ in self._statistics if gone[ids].any()))

    def changed_steps(self, gone: np.ndarray, trace: int) -> set[int]:
        """The numbers of the ops of a trace that take these statistics."""
        return {step for ids, _, (of, step) in self._statistics if of == trace and gone[ids].any()}

    def _components(self) -> np.ndarray:
        """Connected components by hooking to the smaller root and pointer jumping.

        The edges are then replaced by one from each label to its root, so asking again costs next to nothing.
        """
        root = components(self._edges, self.size)
        moved = np.flatnonzero(root != np.arange(self.size))
        self._edges = [np.stack([moved, root[moved]])]
        return components([*self._edges, *(edges for _, edges in self._lanes)], self.size) if self._lanes else root


def decided_axis(ids: np.ndarray) -> int | None:
    """The axis along which alone the (root) labels differ, or None; an axis that never differs counts as decided."""
    for axis in range(ids.ndim):
        if ids.shape[axis] > 1:
            rows = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
            if ((rows == rows.max(1, keepdims=True)) | (rows == 0)).all():  # 0 is no label and differs from none
                return axis
    return None


def factor(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Groups of axes of equal product that `view(old -> new)` maps onto each other, left to right.

    >>> factor((2, 8, 4, 4), (2, 2, 4, 16))
    [([0], [0]), ([1], [1, 2]), ([2, 3], [3])]
    """
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        ins, outs = [], []
        if i < len(old) and j < len(new):
            ins, outs, i, j = [i], [j], i + 1, j + 1
        while math.prod(old[a] for a in ins) != math.prod(new[a] for a in outs) or not (ins or outs):
            if i < len(old) and (j >= len(new) or math.prod(old[a] for a in ins) < math.prod(new[a] for a in outs)):
                ins.append(i)
                i += 1
            else:
                outs.append(j)
                j += 1
        groups.append((ins, outs))
    return groups

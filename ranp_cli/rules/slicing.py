"""Ops that cut tensors apart and put them together. Slices on the borders of equal parts tie the same place of every part."""

from __future__ import annotations

import math
from typing import Any

import torch

from . import rule
from .labels import FIXED, Labels, axes_of
from .views import apply_to_planes


def index_axis(p, axis, index):
    """`index` (a tensor or slice) along one axis of a plane; nothing happens where the plane has no labels there."""
    if p.shape[axis] == 1:
        return p
    return p.index_select(axis, index) if isinstance(index, torch.Tensor) else p[(slice(None),) * axis + (index,)]


MOST_LANES = 16  # a slice that would cut an axis into more equal parts is taken as a count that the code insists on


def slice_axis(ties, t: Labels, axis: int, start: int, size: int, step: int = 1) -> tuple[Any, ...]:
    """Planes of t[start : start + size*step : step] along `axis`.

    Where the slice falls on borders of equal parts, the same place of every part ties, and the parts keep their meaning
    while each loses the same. Otherwise the labels go where they go: whether the code follows shows when the slim network
    runs (`Ties.place`). The parts that a `view` made, (3, heads, channels per head), tie whole.
    """
    n = t.shape[axis]
    if size == n:
        return t.planes
    out = []
    for p in t.planes:
        if p.shape[axis] > 1:
            whole = p
            p = p.narrow(axis, start, (size - 1) * step + 1)[(slice(None),) * axis + (slice(None, None, step),)]
            if p.any() and any(a != axis for a in axes_of(whole)):
                fair = step == 1 and size > 1 and n % size == 0 and start % size == 0
                lanes = whole.unflatten(axis, (n // size, size)) if fair else whole
                ties.tie(lanes, lanes.amax(axis, keepdim=True))
            elif p.any():
                _slice_of(ties, whole.reshape(-1), start, size, step)
        out.append(p)
    return tuple(p for p in out if axes_of(p))


def _slice_of(ties, ids, start: int, size: int, step: int) -> None:
    """ids[start : start + size*step : step] is taken out of an axis with the labels ids (n)."""
    n = len(ids)
    if step > 1:  # every k-th of equal parts of k
        if n % step == 0 and size * step == n:
            ties.tie_lanes(ids.view(-1, step), 1)
        else:
            ties.fix(ids, "a slice with a step")
        return
    ties.place(start, ids[:start])
    if size == 1:
        ties.fix(ids[start], "a single index")
        return
    lane = math.gcd(start, size, n)
    if lane > 1 and n // lane <= MOST_LANES:
        ties.tie_lanes(ids.view(-1, lane), 0)


@rule("aten.slice", "aten.slice_copy", "aten.narrow")
def slice_(ties, x, dim=0, start=None, end=None, step=1, *, out):
    """A part on the borders of equal parts ties the same place of every part; another takes its labels."""
    dim, n = dim % x.ndim, x.shape[dim]
    first = min(max(start + n if start and start < 0 else start or 0, 0), n)
    return slice_axis(ties, x, dim, first, out[dim], step) if out[dim] else None


@rule("aten.select", "aten.select_copy")
def select(ties, x, dim, index, *, out):
    """One index of an axis without labels; of a labelled one: it is fixed."""
    dim %= x.ndim
    one = slice_axis(ties, x, dim, index % x.shape[dim], 1)
    return tuple(p.squeeze(dim) for p in one)


@rule("aten.unbind", "aten.unbind_copy")
def unbind(ties, x, dim=0, *, out):
    """As `select` for every index."""
    dim %= x.ndim
    count = x.shape[dim]
    return [tuple(p.squeeze(dim) for p in slice_axis(ties, x, dim, i, 1)) for i in range(count)]


@rule(
    "aten.split",
    "aten.split_with_sizes",
    "aten.chunk",
    "aten.unsafe_split",
    "aten.unsafe_split_with_sizes",
    "aten.unsafe_chunk",
    "aten.split_copy",
    "aten.split_with_sizes_copy",
    "aten.tensor_split",
)
def split(ties, x, sizes, dim=0, *, out):
    """Equal parts tie the same place of every part, unequal ones take their labels."""
    dim %= x.ndim
    shapes = out if isinstance(out, list) else [out]
    planes, start = [], 0
    for shape in shapes:
        planes.append(slice_axis(ties, x, dim, start, shape[dim]))
        start += shape[dim]
    return planes


@rule("aten.cat", "aten.concat", "aten.concatenate")
def cat(ties, tensors, dim=0, *, out):
    """Labels stand one after the other along the axis; along every other axis they tie."""
    tensors = [t for t in tensors if t.ndim == len(out)]  # an empty 1-d tensor concatenates with anything
    dim %= len(out)
    joined = torch.zeros([n if a == dim else 1 for a, n in enumerate(out)], dtype=torch.int64)
    planes, start = [], 0
    for t in tensors:
        for p in t.planes:
            if axes_of(p) == [dim] and not joined.narrow(dim, start, t.shape[dim]).any():
                joined.narrow(dim, start, t.shape[dim]).copy_(p)
                continue
            if p.shape[dim] > 1:
                wide = torch.zeros([out[dim] if a == dim else n for a, n in enumerate(p.shape)], dtype=torch.int64)
                wide.narrow(dim, start, t.shape[dim]).copy_(p)
                p = wide
            planes.append(p)
        start += t.shape[dim]
    if out[dim] > 1 and joined.any():
        planes.insert(0, joined)
    return ties.merge(out, [Labels(tuple(out), tuple(planes))])


@rule("aten.stack")
def stack(ties, tensors, dim=0, *, out):
    """Labels tie along every axis but the new one."""
    dim %= len(out)
    return ties.merge(out, [Labels(tuple(out), apply_to_planes(t, lambda p: p.unsqueeze(dim))) for t in tensors])


@rule("aten.constant_pad_nd", "aten.pad")
def constant_pad(ties, x, pad, *value, out, **options):
    """The padding of an axis with labels gets labels of its own, so what meets it later ties with it."""
    planes = []
    for p in x.planes:
        for k in range(len(pad) // 2):
            axis, (before, after) = x.ndim - 1 - k, pad[2 * k : 2 * k + 2]
            if p.shape[axis] > 1 and (before or after):
                wide = torch.zeros([out[axis] if a == axis else n for a, n in enumerate(p.shape)], dtype=torch.int64)
                lo = max(before, 0)
                src = p.narrow(axis, max(-before, 0), x.shape[axis] + min(before, 0) + min(after, 0))
                wide.narrow(axis, lo, src.shape[axis]).copy_(src)
                if axes_of(p) == [axis] and not (p == FIXED).all():
                    _padding(ties, wide.view(-1), lo, max(after, 0))
                p = wide
        planes.append(p)
    return tuple(planes)


def _padding(ties, ids, before: int, after: int) -> None:
    """Labels of its own for the padding of an axis, the same on both sides where both are as wide."""
    made = ties.new(before)
    ids[:before] = made
    ids[len(ids) - after :] = made if before == after else ties.new(after)
    ties.place(before, ids[:before])


@rule("aten.index_select")
def index_select(ties, x, dim, index, *, out):
    """Labels are picked when the index is known; a labelled axis with an unknown index is fixed."""
    return _indexed(ties, x, dim % x.ndim, index.value, out)


@rule("aten.index")
def index(ties, x, indices, *, out):
    """As `index_select` for one known 1-d index; anything else on a labelled axis fixes it."""
    used = [(axis, i) for axis, i in enumerate(indices) if i is not None]
    if len(used) == 1 and used[0][1].ndim == 1:
        axis, i = used[0]
        value = i.value
        return _indexed(
            ties, x, axis, value.nonzero()[:, 0] if value is not None and value.dtype == torch.bool else value, out
        )
    axes = [axis for axis, _ in used]
    ties.fix(ties.along(x, axes), "indexed by computed positions")
    rest = ties.collapse(x, axes)
    together = axes == list(range(axes[0], axes[-1] + 1))
    width = len(out) - (x.ndim - len(axes))
    planes = []
    for p in rest.planes:
        kept = [n for a, n in enumerate(p.shape) if a not in axes]
        at = axes[0] if together else 0
        planes.append(p.reshape(kept[:at] + [1] * width + kept[at:]))
    return tuple(planes)


def _indexed(ties, x, dim, value, out):
    if value is None:
        ties.fix(ties.along(x, [dim]), "indexed by computed positions")
        return ties.collapse(x, [dim]).planes
    value = value.long()
    if sorted(value.tolist()) != list(range(x.shape[dim])):  # no permutation: positions are written into the code
        ties.fix(ties.along(x, [dim]), "indexed by given positions")
    return tuple(index_axis(p, dim, value) for p in x.planes)


@rule("aten.unfold", "aten.unfold_copy")
def unfold(ties, x, dim, size, step, *, out):
    """Windows along an axis: without labels there, the others stay; a labelled axis is fixed."""
    ties.fix(ties.along(x, [dim]), "sliding windows over channels")
    return tuple(p.unsqueeze(-1) for p in ties.collapse(x, [dim]).planes)


@rule("aten.glu")
def glu(ties, x, dim=-1, *, out):
    """Two halves, one gating the other: the same place of both ties."""
    dim %= x.ndim
    n = out[dim]
    return ties.merge(out, [Labels(tuple(out), slice_axis(ties, x, dim, start, n)) for start in (0, n)])

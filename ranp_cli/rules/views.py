"""Ops that show or move the indices of one tensor otherwise: views, permutations, flips, repeats. The labels move along."""

from __future__ import annotations

import math
from typing import Any

from . import rule
from .labels import Labels


def apply_to_planes(t: Labels, fn) -> tuple[Any, ...]:
    """The same op on each plane."""
    return tuple(fn(p) for p in t.planes)


@rule(
    "aten.view",
    "aten._unsafe_view",
    "aten.reshape",
    "aten._reshape_alias",
    "aten.view_copy",
    "aten._reshape_copy",
    "aten.flatten",
    "aten.unflatten",
)
def view(ties, x, *shape, out, **options):
    """Merged axes keep all labels; a labelled axis that is split lies along its parts until an op decides.

    Read as numbers of another size, the last axis becomes longer or shorter.
    """
    if math.prod(out) == math.prod(x.shape):
        return ties.reshape(x, out)
    n, m = x.shape[-1], out[-1]
    if m > n:
        return apply_to_planes(x, lambda p: p if p.shape[-1] == 1 else p.repeat_interleave(m // n, -1))
    ties.fix(ties.along(x, [x.ndim - 1]), "read as larger numbers")
    return tuple(p for p in x.planes if p.shape[-1] == 1)


@rule("aten.view_as_real", "aten.view_as_real_copy")
def view_as_real(ties, x, *, out):
    """A new last axis, of the real and the imaginary part, without labels."""
    return apply_to_planes(x, lambda p: p.unsqueeze(-1))


@rule("aten.view_as_complex", "aten.view_as_complex_copy")
def view_as_complex(ties, x, *, out):
    """The last axis, of the real and the imaginary part, goes; if it has labels, they are fixed."""
    ties.fix(ties.along(x, [-1]), "read as complex numbers")
    return apply_to_planes(ties.collapse(x, [-1]), lambda p: p.squeeze(-1))


@rule("aten.permute", "aten.permute_copy")
def permute(ties, x, dims, *, out):
    """Planes are permuted."""
    return apply_to_planes(x, lambda p: p.permute(dims))


@rule("aten.transpose", "aten.transpose_copy", "aten.swapaxes")
def transpose(ties, x, dim0, dim1, *, out):
    """Planes are transposed."""
    return apply_to_planes(x, lambda p: p.transpose(dim0, dim1))


@rule("aten.t", "aten.t_copy", "aten.numpy_T")
def t(ties, x, *, out):
    """Planes are transposed."""
    return apply_to_planes(x, lambda p: p.t())


@rule("aten.unsqueeze", "aten.unsqueeze_copy")
def unsqueeze(ties, x, dim, *, out):
    """A new axis without labels."""
    return apply_to_planes(x, lambda p: p.unsqueeze(dim))


@rule("aten.squeeze", "aten.squeeze_copy")
def squeeze(ties, x, dim=None, *, out):
    """Axes of size 1 carry no labels and go."""
    dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = [d % x.ndim for d in dims if x.ndim and x.shape[d] == 1]
    return apply_to_planes(x, lambda p: p.squeeze(gone) if gone else p)


@rule("aten.expand", "aten.broadcast_to", "aten.expand_as", "aten.expand_copy")
def expand(ties, x, *size, out, implicit=False):
    """Axes that grow from size 1 carry no labels."""
    return apply_to_planes(x, lambda p: p.reshape((1,) * (len(out) - p.ndim) + tuple(p.shape)))


@rule("aten.flip")
def flip(ties, x, dims, *, out):
    """Planes are flipped."""
    return apply_to_planes(x, lambda p: p.flip(dims))


@rule("aten.roll")
def roll(ties, x, shifts, dims=(), *, out):
    """Planes are rolled."""
    ties.fix(ties.along(x, dims or range(x.ndim)), "rolled along channels")
    if not dims:
        return x.planes
    return apply_to_planes(x, lambda p: p.roll(shifts, dims))


@rule("aten.repeat", "aten.tile")
def repeat(ties, x, repeats, *, out):
    """Labels are repeated."""
    planes = []
    for p in x.planes:
        p = p.reshape((1,) * (len(out) - p.ndim) + tuple(p.shape))
        planes.append(p.repeat([r if n > 1 else 1 for r, n in zip(repeats, p.shape, strict=True)]))
    return tuple(planes)


@rule("aten.repeat_interleave")
def repeat_interleave(ties, x, repeats=None, dim=None, *, out, output_size=None):
    """Labels are repeated in place; x alone holds counts, of which indices are made."""
    if dim is None or not isinstance(repeats, int):
        ties.fix(x.ids(), "repeated by a computed count")
        return None
    return apply_to_planes(x, lambda p: p.repeat_interleave(repeats, dim) if p.shape[dim] > 1 else p)


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(ties, x, groups, *, out):
    """View as (groups, channels per group), transpose, merge."""
    n, c, *space = x.shape
    split = ties.reshape(x, (n, groups, c // groups, *space))
    shuffled = Labels((n, c // groups, groups, *space), tuple(p.transpose(1, 2) for p in split))
    return ties.reshape(shuffled, out)


@rule("aten.pixel_shuffle")
def pixel_shuffle(ties, x, r, *, out):
    """Each output channel is made of r*r neighbouring channels: they tie."""
    *lead, c, h, w = x.shape
    k = len(lead)
    x = ties.collapse(x, (-1, -2))
    split = Labels((*lead, c // (r * r), r, r, h, w), ties.reshape(x, (*lead, c // (r * r), r, r, h, w)))
    return tuple(p.squeeze((k + 1, k + 2)) for p in ties.collapse(split, (k + 1, k + 2)).planes)


@rule("aten.pixel_unshuffle")
def pixel_unshuffle(ties, x, r, *, out):
    """Each channel becomes r*r neighbouring channels of the same label."""
    k = x.ndim - 3
    return tuple(p.repeat_interleave(r * r, k) if p.shape[k] > 1 else p for p in ties.collapse(x, (-1, -2)).planes)


@rule("aten.tril", "aten.triu", "aten.diag_embed")
def triangle(ties, x, *args, out):
    """Values are zeroed in place."""
    return x.planes if len(out) == x.ndim else None

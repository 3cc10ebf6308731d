"""Views of one storage: its geometry, and which of its elements a view shows."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

Geometry = tuple[int, tuple[int, ...], tuple[int, ...]]  # storage offset, size, stride


def geometry(t: Tensor) -> Geometry:
    """Where a tensor lies in its storage; the stride of an axis of size 1 says nothing and counts as 0."""
    strides = tuple(int(s) if n > 1 else 0 for n, s in zip(t.shape, t.stride(), strict=True))
    return int(t.storage_offset()), tuple(t.shape), strides


def reshaped(base: Geometry, view: Geometry) -> bool:
    """Is the view the whole tensor, both contiguous, in another shape?"""
    return (
        base[0] == view[0]
        and math.prod(base[1]) == math.prod(view[1])
        and all(
            stride == math.prod(shape[k + 1 :])
            for _, shape, strides in (base, view)
            for k, (n, stride) in enumerate(zip(shape, strides, strict=True))
            if n > 1
        )
    )


def coordinates(base: Geometry, view: Geometry) -> list[Tensor] | None:
    """For each axis of a tensor the index along it of the elements of a view, of shapes that broadcast to the view's.

    None where no rule of shapes leads from the tensor to the view: a diagonal, windows that overlap, memory beside it.
    """
    axes = sorted((b for b, n in enumerate(base[1]) if n > 1), key=lambda b: -base[2][b])
    if any(base[2][b] == 0 for b in axes) or view[0] < base[0]:
        return None
    at = [torch.zeros((1,) * len(view[1]), dtype=torch.int64) for _ in base[1]]
    steps: dict[int, list[tuple[int, int]]] = {
        b: [] for b in axes
    }  # base axis -> (step, size) of the view's axes in it
    rest = view[0] - base[0]
    for b in axes:
        start, rest = divmod(rest, base[2][b])
        at[b] = at[b] + start
    for v, (n, stride) in enumerate(zip(view[1], view[2], strict=True)):
        if n == 1:
            continue
        left, grid = torch.arange(n) * stride, 1
        for b in axes:
            index, left = left // base[2][b], left % base[2][b]
            if (values := index.unique()).numel() > 1:
                grid *= values.numel()
                steps[b].append((int(values[1]), values.numel()))
                at[b] = at[b] + index.view([-1 if a == v else 1 for a in range(len(view[1]))])
        if grid != n or left.any():
            return None
    nested = all(a[0] >= b[0] * b[1] for s in steps.values() for a, b in pairwise(sorted(s, reverse=True)))
    inside = all(int(at[b].max()) < base[1][b] for b in axes)
    return at if nested and inside and not rest else None

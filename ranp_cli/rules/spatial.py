"""Ops on the spatial axes: channels and samples pass, labels on the axes that they touch are fixed."""

from __future__ import annotations

import re

from . import rule
from .labels import Labels

POOL = """
    max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d
    mkldnn_max_pool3d
""".split()
UPSAMPLE = """
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa
""".split()
PAD = """
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
""".split()


def _register(name: str) -> None:
    found = re.search(r"([123])d", name)
    assert found, name
    rank = int(found.group(1))

    @rule(f"aten.{name}")
    def spatial(ties, x, *args, out, **options):
        """Channels pass; labels on the spatial axes are fixed."""
        axes = range(-rank, 0)
        ties.fix(ties.along(x, axes), f"{name} along a labelled axis")
        planes = ties.collapse(x, axes).planes
        return [planes for _ in out] if isinstance(out, list) else planes


for _name in POOL + UPSAMPLE + PAD:
    _register(_name)


@rule("aten._fft_r2c", "aten._fft_c2r", "aten._fft_c2c", free=False)
def fft(ties, x, dim, *args, out):
    """Channels pass; labels on the axes that are transformed are fixed."""
    ties.fix(ties.along(x, dim), "Fourier transform along a labelled axis")
    return ties.collapse(x, dim).planes


@rule("aten.max_unpool2d", "aten.max_unpool3d")
def max_unpool(ties, x, indices, *args, out):
    """Channels tie with those of the indices and pass; labels on the spatial axes are fixed."""
    space = range(2 - x.ndim, 0) if x.ndim > 3 else range(-2, 0)
    for t in (x, indices):
        ties.fix(ties.along(t, space), "max_unpool along a labelled axis")
    narrow = [ties.collapse(t, space) for t in (x, indices)]
    return ties.merge(x.shape, narrow)


@rule("aten.im2col", "aten.col2im")
def unfolded(ties, x, *args, out):
    """Each channel and its window's k * k places are one axis, channel first: the places share the channel's label."""
    # im2col: (N, C, H, W) -> (N, C*k*k, L); col2im: back
    if x.ndim < 4 and len(out) >= 3 and x.shape[-2] >= out[-3]:
        places = x.shape[-2] // out[-3]
        split = Labels(
            (*x.shape[:-2], out[-3], places, x.shape[-1]),
            ties.reshape(x, (*x.shape[:-2], out[-3], places, x.shape[-1])),
        )
        return ties.collapse(split, (-1, -2)).planes
    ties.fix(ties.along(x, (-1, -2)), "windows along a labelled axis")
    places = out[-2] // x.shape[-3]
    rest = ties.collapse(x, (-1, -2)).planes
    return tuple(p.squeeze(-1).repeat_interleave(places if p.shape[-3] > 1 else 1, -2) for p in rest)


@rule("aten.grid_sampler_2d", "aten.grid_sampler_3d", "aten.grid_sampler", free=False)
def grid_sample(ties, x, grid, *args, out):
    """Channels pass; the grid's own labels are fixed."""
    space = range(2, x.ndim)
    ties.fix(ties.along(x, space), "sampled along a labelled axis")
    ties.fix(grid.ids(), "used as a sampling grid")
    return tuple(p for p in ties.collapse(x, space).planes if p.shape[0] == 1 or p.shape[1] > 1)


@rule("aten.affine_grid_generator", free=False)
def affine_grid(ties, theta, *args, out):
    """The grid carries no labels; those of theta are fixed."""
    ties.fix(theta.ids(), "used as an affine matrix")

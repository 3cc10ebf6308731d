"""Ops on the spatial axes: channels and samples pass, labels on the axes that they touch are fixed."""

from __future__ import annotations

import re

from . import rule

POOL = """
    max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d
    max_unpool2d max_unpool3d mkldnn_max_pool3d
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

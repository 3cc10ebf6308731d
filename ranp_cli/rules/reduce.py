"""Reductions. Along an axis without labels they pass.

Over channels nothing can stand in for what is gone. A statistic of the channels, as in a norm, goes on without them and is
another one then, so the numbers of both networks cannot be compared; what else reduces channels fixes them.
"""

from __future__ import annotations

import math
from dataclasses import replace

from . import rule
from .labels import Labels, axes_of

ZERO_NEUTRAL = {"sum", "norm", "linalg_vector_norm"}  # a zeroed slice of a parameter leaves these as a removed one does

STATISTICS = set("sum mean var std var_mean std_mean norm linalg_vector_norm max min amax amin aminmax".split())

# name -> position of the axis argument after x; None in its place reduces all axes
REDUCE = {
    **dict.fromkeys(
        "mean sum nansum prod var std var_mean std_mean max min amax amin argmax argmin aminmax".split(), 0
    ),
    **dict.fromkeys("all any logsumexp median nanmedian mode count_nonzero".split(), 0),
    **dict.fromkeys("norm linalg_vector_norm".split(), 1),
}

# ops along an axis that keep its length but mix its indices
ALONG = (
    "_softmax _safe_softmax softmax _log_softmax log_softmax cumsum cumprod logcumsumexp sort argsort renorm".split()
)


def _reduce(ties, name: str, x, axes, keepdim: bool, out):
    axes = range(x.ndim) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    axes = [a % x.ndim for a in axes] if x.ndim else []
    if x.is_data and name in STATISTICS:
        x = by_group(ties, x, axes)
    lost = ties.along(x, axes)
    if x.is_data and name in STATISTICS:
        ties.statistics(lost, f"{name} over channels")
    elif x.is_data:
        ties.fix(lost, f"{name} over channels")
    elif name in ZERO_NEUTRAL:
        ties.consume(lost)
    else:
        ties.statistics(lost, f"{name} of a weight")
    planes = ties.collapse(x, axes).planes
    shapes = out if isinstance(out, list) else [out]
    result = []
    for shape in shapes:
        keep = len(shape) == x.ndim
        result.append(planes if keep else tuple(p.squeeze(axes) for p in planes))
    return result


def by_group(ties, x: Labels, axes) -> Labels:
    """x with labels along `axes` alone where channels were split into (groups, channels a group) and a group is reduced.

    Then each group loses the same channels. Where there are more groups than channels in one (maxout), groups go whole.
    """
    planes = []
    for p in x.planes:
        inner, outer = ([a for a in axes_of(p) if (a in axes) is reduced] for reduced in (True, False))
        groups = math.prod(p.shape[a] for a in outer)
        if inner and outer and p.amax(outer).unique().numel() >= groups:
            first = p.amax(outer, keepdim=True)
            ties.tie(p, first)
            p = first
        planes.append(p)
    return replace(x, planes=tuple(planes))


def _register(name: str, place: int) -> None:
    @rule(f"aten.{name}")
    def reduction(ties, x, *args, out, dim=None, keepdim=False, **options):
        """Passes along axes without labels; channels that are reduced are fixed."""
        if args and hasattr(args[0], "planes"):  # max(x, other) is element-wise
            return ties.merge(out, [x, args[0]])
        axes = args[place] if len(args) > place else dim
        if isinstance(axes, bool):  # var(x, unbiased)
            axes = None
        return _reduce(ties, name, x, axes, keepdim, out)


for _name, _place in REDUCE.items():
    _register(_name, _place)


@rule(*(f"aten.{name}" for name in ALONG))
def along(ties, x, dim=-1, *args, out, **options):
    """Channels along the axis are mixed, so they are fixed."""
    axis = next((a for a in (dim, *args) if isinstance(a, int) and not isinstance(a, bool)), -1)
    ties.fix(ties.along(x, [axis]), "mixed with its neighbours along the axis (softmax)")
    planes = ties.merge(x.shape, [x])
    if isinstance(out, list):
        return [planes for _ in out]
    return planes if out == x.shape else ties.collapse(x, [axis]).planes


@rule("aten.topk", "aten.kthvalue")
def topk(ties, x, k, dim=-1, *args, out, **options):
    """Channels along the axis are ranked, so they are fixed."""
    ties.fix(ties.along(x, [dim]), "ranked along the axis")
    return [ties.collapse(x, [dim]).planes for _ in out]

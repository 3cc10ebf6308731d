"""Normalisations. Per-channel ones tie their parameters to the channels; those over channels change what they see."""

from __future__ import annotations

from . import rule

BATCH_NORM = """
    aten.native_batch_norm aten._native_batch_norm_legit aten._native_batch_norm_legit_no_training
    aten._batch_norm_with_update aten._batch_norm_no_update aten.cudnn_batch_norm aten.miopen_batch_norm
    aten.batch_norm aten._batch_norm_with_update_functional
""".split()


@rule(*BATCH_NORM)
def batch_norm(ties, x, *params, out, **options):
    """Axis 1 of x ties with weight, bias and the running statistics."""
    # x (N, C, *S), weight, bias, running_mean, running_var (C) or None -> y (N, C, *S), saved statistics
    channels = ties.vector(x, 1)
    for weight in params[:1]:
        ties.scale(weight)
    for p in params[:4]:
        if getattr(p, "ndim", 0) == 1:
            ties.tie(channels, ties.vector(p, 0))
    others = ties.along(x, [a for a in range(x.ndim) if a != 1])
    if x.is_data:
        ties.fix(others, "batch norm over labelled axes")
    else:  # standardised weights: the mean over the fan-in
        ties.statistics(others, "batch norm of a weight")
    return [x.planes] if isinstance(out, list) else x.planes


@rule("aten.native_group_norm", "aten.group_norm")
def group_norm(ties, x, weight, bias, n, c, hxw, group, eps, *, out):
    """Axis 1 of x ties with weight and bias; each group loses the same lanes."""
    # x (N, C, *S), weight, bias (C) or None -> y (N, C, *S), mean (N, G), rstd (N, G)
    channels = ties.vector(x, 1)
    ties.scale(weight)
    if channels is not None:
        lanes = channels.view(group, -1)
        if lanes.shape[1] > 1:
            ties.tie(lanes, lanes[:1])
            ties.statistics(channels, "group norm")
    for p in (weight, bias):
        if p is not None:
            ties.tie(channels, ties.vector(p, 0))
    return [x.planes]


@rule("aten.native_layer_norm", "aten.layer_norm")
def layer_norm(ties, x, shape, weight, bias, eps, *, out):
    """The last axes of x tie with weight and bias."""
    # x (..., *shape), weight, bias (*shape) or None -> y (..., *shape), mean, rstd
    ties.scale(weight)
    ties.statistics(ties.along(x, range(-len(shape), 0)), "layer norm")
    y = out[0]
    return [ties.merge(y, [t for t in (x, weight, bias) if t is not None])]

"""Convolutions. They own channels: the weight's output axis makes neurons, its input axis consumes them."""

from __future__ import annotations

import torch

from . import rule


@rule("aten.convolution", "aten._convolution", "aten.convolution_overrideable", free=False)
def convolution(ties, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, *flags, out):
    """Axis 1 of x ties with the weight's input axis, axis 1 of y is the weight's output axis; groups tie their lanes."""
    # x (N, I, *S), weight (O, I/groups, *K) or, transposed, (I, O/groups, *K), bias (O) -> y (N, O, *S')
    space = range(2, x.ndim)
    ties.fix(ties.along(x, space), "convolved along a labelled axis")
    x = ties.collapse(x, space)
    x_in = ties.vector(x, 1)
    w_out, w_in = (
        (ties.vector(weight, 1), ties.vector(weight, 0))
        if transposed
        else (ties.vector(weight, 0), ties.vector(weight, 1))
    )
    if weight.is_data:
        ties.fix(x_in, "convolved with a computed weight")
        ties.fix(weight.ids(), "used as a computed weight")
    ties.consume(w_in)
    n_in, n_out = x.shape[1], out[1]
    if x_in is not None and w_in is None and n_in > groups:
        ties.fix(x_in, "convolved with a weight that is not a parameter")

    # neurons: one label for each of the O output channels
    if transposed and groups > 1:
        if n_in == groups:  # depthwise: every input channel makes O/groups outputs of its own
            ties.fix(w_out, "channel multiplier")
            neurons = None if w_in is None else w_in.repeat_interleave(n_out // groups)
            ties.tie(x_in, w_in)
        else:  # (groups, O/groups): the same lane of every group is one index of the weight
            neurons = one_unit(ties, n_out) if w_out is None else w_out.repeat(groups)
            ties.tie(lanes(ties, x_in, groups), None if w_in is None else w_in.view(groups, -1))
            lanes(ties, w_in, groups)
    else:
        neurons = w_out
        if groups == 1:
            ties.tie(x_in, w_in)
        elif n_in == groups:  # depthwise, with a multiplier
            if x_in is not None and neurons is not None:
                ties.tie(x_in[:, None], neurons.view(groups, -1))
            elif (
                x_in is not None and not weight.is_data
            ):  # one window for all channels, expanded to as many as there are
                ties.suspect(x_in)
                neurons = x_in.repeat_interleave(n_out // groups)
        else:
            ties.tie(lanes(ties, x_in, groups), w_in)
            lanes(ties, neurons, groups)
    if bias is not None:
        ties.tie(neurons, ties.vector(bias, 0))
    if not weight.is_data and weight.origin and (w_out is not None or w_in is not None or n_out == 1):
        how = {"transposed": transposed, "groups": groups, "kernel": tuple(weight.shape[2:]), "bias": bias is not None}
        ties.layer(f"conv{'_transpose' if transposed else ''}{x.ndim - 2}d", weight, neurons, **how)
    batch = tuple(p for p in x.planes if p.shape[0] > 1 and p.shape[1] == 1)
    return batch if neurons is None else (*batch, neurons.view(-1, *[1] * len(space)).unsqueeze(0))


def one_unit(ties, n: int) -> torch.Tensor:
    """The neurons of groups with a single output each: none can go without its group."""
    ids = ties.new(1)
    ties.fix(ids, "a single output a group")
    result: torch.Tensor = ids.repeat(n)
    return result


def lanes(ties, ids: torch.Tensor | None, groups: int) -> torch.Tensor | None:
    """ids (C) as (groups, C/groups), the same lane of every group tied."""
    if ids is None:
        return None
    rows = ids.view(groups, -1)
    ties.tie(rows, rows[:1])
    return rows

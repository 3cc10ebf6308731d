"""The FLOPs of one ATen op, forward or backward: torch's own table (`torch.utils.flop_counter`), one line of it mended, and ours."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from .aten import op_name
from .flop_formulas import FORMULAS
from .tensors import map_tensors


def convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: list[bool],
    *,
    out_val: Any = None,
) -> int:
    """Two FLOPs for each weight at each place that it is laid on, for each gradient that is wanted: input's, weight's.

    torch's own formula (2.13) takes `groups` times as much for the weight's gradient: it multiplies all channels of the
    input with all of the output, where a group meets its own only. Without groups the two agree.
    """
    places = x.shape[0] * math.prod((x if transposed else grad).shape[2:])
    return 2 * places * weight.numel() * (bool(wanted[0]) + bool(wanted[1]))


MENDED = {torch.ops.aten.convolution_backward: convolution_backward}


def flops_of(func: Any, args: Any, kwargs: Any, out: Any) -> int | None:
    """The FLOPs of a dispatched op; None where there is no formula, neither torch's nor ours."""
    formula = formula_of(func)
    if formula is None:
        return None
    if op_name(func) in FORMULAS and formula is FORMULAS[op_name(func)]:
        shapes = map_tensors((tuple(args), dict(kwargs or {}), out), lambda t: tuple(t.shape))
        return 2 * formula(*shapes[0], **shapes[1], out=shapes[2])
    return int(formula(*args, **(kwargs or {}), out_val=out))


def formula_of(func: Any) -> Any:
    packet: Any = getattr(func, "_overloadpacket", None)
    return MENDED.get(packet) or flop_registry.get(packet) or FORMULAS.get(op_name(func))

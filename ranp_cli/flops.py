"""The FLOPs of one ATen op, forward or backward: torch's own table (`torch.utils.flop_counter`), one line of it mended."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry


def convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any,
                         transposed: bool, output_padding: Any, groups: int, wanted: list[bool], *, out_val: Any = None) -> int:  # fmt: skip
    """Two FLOPs for each weight at each place that it is laid on, for each gradient that is wanted: input's, weight's.

    torch's own formula (2.13) takes `groups` times as much for the weight's gradient: it multiplies all channels of the
    input with all of the output, where a group meets its own only. Without groups the two agree.
    """
    places = x.shape[0] * math.prod((x if transposed else grad).shape[2:])
    return 2 * places * weight.numel() * (bool(wanted[0]) + bool(wanted[1]))


MENDED = {torch.ops.aten.convolution_backward: convolution_backward}


def flops_of(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """The FLOPs of a dispatched op; 0 where there is no formula."""
    packet: Any = getattr(func, "_overloadpacket", None)
    formula = MENDED.get(packet) or flop_registry.get(packet)
    return int(formula(*args, **(kwargs or {}), out_val=out)) if formula is not None else 0

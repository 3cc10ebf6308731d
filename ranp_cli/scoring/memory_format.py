"""The order in which tensors lie in memory while scoring, and the convolutions that it makes faster."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..core.tensors import CHANNELS_LAST, is_channels_last, map_tensors
from ..costs.cpu_workspace import round_up

CONVOLUTIONS = {  # whose arguments these are
    **dict.fromkeys(("conv2d", "conv3d"), "input weight bias stride padding dilation groups".split()),
    **dict.fromkeys(
        ("conv_transpose2d", "conv_transpose3d"),
        "input weight bias stride padding output_padding groups dilation".split(),
    ),
}
FEW = 1 << 14  # blocked weight elements per output position above which channels last is slower


def instance_norm(
    x: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.instance_norm`; the statistics that a layer collects of the inputs are not kept."""
    if not use_input_stats or x.ndim < 3 or math.prod(x.shape[2:]) < 2:
        return F.instance_norm(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return F.group_norm(x, x.shape[1], weight, bias, eps)


class ConvolutionOverrides(TorchFunctionMode):
    """Run convolutions and instance norms in the chosen layout and precision.

    On a CPU an instance norm is computed as a group norm of one channel a group, which are the same numbers in less time.

    `layout`: channels stay last behind a convolution too small for oneDNN, which loses the layout, and behind one of a
    single channel, of which it cannot be told. Over few places convolutions run in the order of their axes: the layout has
    their weights copied, and takes longer for that than it gains.

    `half`: a convolution whose window is wider than its input runs in fp32. On processors with bf16 units oneDNN computes
    the gradient of such a weight (3x3x3 over a depth of 2) from memory that nobody has written; tests/scoring/test_precision.py
    shows it. They are small, so nothing is lost.
    """

    def __init__(self, layout: bool, half: bool = False) -> None:
        super().__init__()
        self.layout, self.half = layout, half

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.instance_norm and args and args[0].device.type != "cuda":
            return instance_norm(*args, **kwargs)
        names = CONVOLUTIONS.get(getattr(func, "__name__", ""))
        if names is None:
            return func(*args, **kwargs)
        given = dict(zip(names, args, strict=False)) | kwargs
        x, weight = given["input"], given["weight"]
        if self.half and any(n < k for n, k in zip(x.shape[2:], weight.shape[2:], strict=False)):
            with torch.autocast(x.device.type, enabled=False):
                whole_args, whole_kwargs = map_tensors((tuple(args), kwargs), lambda t: t.float())
                return func(*whole_args, **whole_kwargs)
        if not self.layout or x.ndim not in CHANNELS_LAST or x.ndim != weight.ndim:
            return func(*args, **kwargs)
        last = CHANNELS_LAST[x.ndim]
        is_last = is_channels_last(x)
        if "output_padding" in names:
            given.setdefault("output_padding", 0)
        if is_last and x.device.type != "cuda" and is_copying(**given):
            given["input"] = x.contiguous()
        out = func(**given)
        return out.contiguous(memory_format=last) if is_last or x.shape[1] == 1 else out


def is_copying(
    input: Tensor,
    weight: Tensor,
    groups: int = 1,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    output_padding: Any = None,
    **_: Any,
) -> bool:
    """Is what oneDNN copies of a weight, with channels last, large beside the places of the smaller side?

    The channels of each group are filled up to a block, which makes 256 times a depthwise weight.
    """
    window = weight.shape[2:]
    places, *rows = [input.shape[0], *input.shape[2:]]
    if output_padding is None:  # not transposed
        steps, paddings, dilations = (
            value if isinstance(value, (tuple, list)) else [value] * len(rows) for value in (stride, padding, dilation)
        )
        rows = [
            n if p == "same" else (n + 2 * (0 if p == "valid" else p) - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(rows, window, steps, paddings, dilations, strict=True)
        ]
    places *= math.prod(rows)
    if groups == 1:
        return math.prod(window) > 1 and weight.numel() > places * max(weight.shape[:2])
    blocks = groups * round_up(weight.shape[0] // groups) * round_up(weight.shape[1])
    return blocks * math.prod(window) > FEW * places

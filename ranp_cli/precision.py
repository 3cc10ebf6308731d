"""In which numbers a forward and a backward pass are computed, and in which order they lie in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .shadow import map_tensors

PRECISIONS = ("model", "fp32", "bf16", "fp16", "fp64", "auto")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by autocast: weights, sums and losses stay as they are
FULL = {"fp32": torch.float32, "fp64": torch.float64}
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
CONVOLUTIONS = ("conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d")
SCALE = 2.0**16  # of the loss in fp16, whose smallest number is 6e-8; less where that overflows
AGREE = 0.95  # of the neurons that fp32 keeps, `auto` wants so many to be kept by bf16 too


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(has.get(name, False) for name in ("amx_bf16", "avx512_bf16", "avx10_2", "bf16"))


@contextmanager
def reproducible() -> Iterator[None]:
    """cuDNN takes algorithms that give the same bits each time; which one is fastest it tries if the caller has said so."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def cast(twin: nn.Module, precision: str) -> nn.Module:
    """The twin with weights of that precision; those of another one are copied."""
    return twin.to(FULL[precision]) if precision in FULL else twin


def cast_batch(value: Any, precision: str) -> Any:
    """Tensors of floating point in the weights' precision."""
    if precision not in FULL:
        return value
    return map_tensors(value, lambda t: t.to(FULL[precision]) if t.is_floating_point() else t)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, HALF[precision]) if precision in HALF else nullcontext()


def whole(output: Any) -> Any:
    """What the loss gets: 16-bit outputs of an autocast in fp32."""
    return map_tensors(output, lambda t: t.float() if t.dtype in HALF.values() else t)


def channels_last(value: Any) -> Any:
    """Images and volumes with the channels of a place beside each other, the layout in which convolutions work.

    A convolution's result lies as its input does, so the layout goes through the network. Numbers are the same.
    """

    def lay(t: Tensor) -> Tensor:
        if t.ndim not in FORMATS or not t.is_floating_point():
            return t
        return torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=FORMATS[t.ndim]).copy_(t)

    return map_tensors(value, lay)


def instance_norm(x: Tensor, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
                  use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5) -> Tensor:  # fmt: skip
    """`F.instance_norm`; the statistics that a layer collects of the inputs are not kept."""
    if not use_input_stats or x.ndim < 3 or math.prod(x.shape[2:]) < 2:
        return F.instance_norm(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return F.group_norm(x, x.shape[1], weight, bias, eps)


class Kernels(TorchFunctionMode):
    """Sees to it that convolutions and instance norms run as they should, in a layout and a precision.

    On a CPU an instance norm is computed as a group norm of one channel a group, which are the same numbers in less time.
    `layout`: channels stay last behind a convolution too small for oneDNN, which loses the layout, and behind one of a
    single channel, of which it cannot be told. `half`: a convolution whose window is wider than its input runs in fp32. On processors with bf16
    units oneDNN computes the gradient of such a weight (3x3x3 over a depth of 2) from memory that nobody has written;
    tests/test_scoring.py shows it. They are small, so nothing is lost.
    """

    def __init__(self, layout: bool, half: bool = False) -> None:
        super().__init__()
        self.layout, self.half = layout, half

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.instance_norm and args and args[0].device.type != "cuda":
            return instance_norm(*args, **kwargs)
        if getattr(func, "__name__", "") not in CONVOLUTIONS or len(args) < 2:
            return func(*args, **kwargs)
        x, weight = args[:2]
        if self.half and any(n < k for n, k in zip(x.shape[2:], weight.shape[2:], strict=False)):
            with torch.autocast(x.device.type, enabled=False):
                whole_args, whole_kwargs = map_tensors((tuple(args), kwargs), lambda t: t.float())
                return func(*whole_args, **whole_kwargs)
        out = func(*args, **kwargs)
        if self.layout and isinstance(out, Tensor) and x.ndim == out.ndim and out.ndim in FORMATS:
            last = FORMATS[out.ndim]
            if x.shape[1] == 1 or (x.is_contiguous(memory_format=last) and not x.is_contiguous()):
                return out.contiguous(memory_format=last)
        return out

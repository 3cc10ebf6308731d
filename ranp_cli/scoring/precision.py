"""In which numbers a forward and a backward pass are computed, and in which order they lie in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..core.contexts import SharedFlag
from ..core.tensors import map_tensors

PRECISIONS = ("model", "fp32", "tf32", "bf16", "fp16", "fp64", "auto")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by autocast: weights, sums and losses stay as they are
FULL = {"fp32": torch.float32, "fp64": torch.float64}
SCALE = 2.0**16  # of the loss in fp16, whose smallest number is 6e-8; less where that overflows
AGREE = 0.95  # of the neurons that fp32 keeps, `auto` wants so many to be kept by bf16 too


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(has.get(name, False) for name in ("amx_bf16", "avx512_bf16", "avx10_2", "bf16"))


_deterministic = SharedFlag(
    lambda: torch.backends.cudnn.deterministic, lambda value: setattr(torch.backends.cudnn, "deterministic", value)
)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """cuDNN takes algorithms that give the same bits each time; which one is fastest it tries if the caller has said so.

    The flag is one for the process: while a call runs on a GPU, other threads' convolutions are deterministic too.
    """
    with _deterministic.at(True) if device.type == "cuda" else nullcontext():
        yield


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


def to_float32(output: Any) -> Any:
    """What the loss gets: 16-bit outputs of an autocast in fp32."""
    return map_tensors(output, lambda t: t.float() if t.dtype in HALF.values() else t)

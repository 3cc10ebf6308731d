"""Another default dtype for this thread alone: `torch.set_default_dtype` is one for all threads of the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# What makes a tensor of the default dtype when none is given. Of the second group only if the data are Python floats.
FLOATING = {
    torch.zeros,
    torch.ones,
    torch.empty,
    torch.rand,
    torch.randn,
    torch.linspace,
    torch.logspace,
    torch.eye,
    torch.normal,
    torch.hann_window,
    torch.hamming_window,
    torch.bartlett_window,
    torch.blackman_window,
    torch.kaiser_window,
    torch.fft.fftfreq,
    torch.fft.rfftfreq,
}
BY_DATA = {torch.tensor, torch.as_tensor, torch.asarray, torch.full, torch.arange, torch.scalar_tensor}
# The same as the dispatcher knows them: of TorchScript, and of functions that torch writes in Python.
PACKETS = {
    aten.zeros,
    aten.ones,
    aten.empty,
    aten.rand,
    aten.randn,
    aten.linspace,
    aten.logspace,
    aten.eye,
    aten.hann_window,
    aten.hamming_window,
    aten.bartlett_window,
    aten.blackman_window,
    aten.kaiser_window,
    aten.fft_fftfreq,
    aten.fft_rfftfreq,
    aten.full,
    aten.arange,
    aten.scalar_tensor,
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Constants that the code inside makes are of `dtype`, in this thread alone."""
    if dtype == torch.get_default_dtype():
        yield
        return
    with _Promotion(dtype), _Factories(dtype):
        yield


class _Factories(TorchFunctionMode):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.usual = dtype, torch.get_default_dtype()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == torch.where and any(isinstance(a, float) for a in args) and not any(map(_is_tensor, args[1:])):
            return func(args[0], *(torch.tensor(a, dtype=self.dtype) for a in args[1:]), **kwargs)
        if (
            kwargs.get("dtype") is not None
            or kwargs.get("out") is not None
            or not (func in FLOATING or func in BY_DATA)
        ):
            return func(*args, **kwargs)
        if func in FLOATING:
            if func == torch.normal and any(isinstance(a, Tensor) for a in args):  # a dtype is its tensors' then
                return func(*args, **kwargs)
            return func(*args, **{**kwargs, "dtype": self.dtype})
        out = func(*args, **kwargs)
        if out.dtype != self.usual or _has_dtype([*args, *kwargs.values()]):
            return out
        return func(*args, **{**kwargs, "dtype": self.dtype})


class _Promotion(TorchDispatchMode):
    """Also below functions: factories without a dtype, and what makes floats of whole numbers, such as a division."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.usual = dtype, torch.get_default_dtype()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor) or out.dtype != self.usual or kwargs.get("dtype") is not None or "out" in kwargs:
            return out
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if func.overloadpacket in PACKETS:
            return func(*args, **{**kwargs, "dtype": self.dtype})
        if not given or func.is_view or any(_is_float(t) for t in given) or _takes_dtype(func):
            return out
        whole = [a.to(self.dtype) if isinstance(a, Tensor) and a.dtype != torch.bool else a for a in args]
        return func(*whole, **kwargs) if any(t.dtype != torch.bool for t in given) else out.to(self.dtype)


def _takes_dtype(func: Any) -> bool:
    """Whether the op is one whose dtype was said, in whatever argument, such as a conversion."""
    return func.overloadpacket in (aten._to_copy, aten.view, aten.copy, aten.bernoulli) or any(
        a.name == "dtype" and a.default_value is None and not a.kwarg_only for a in func._schema.arguments
    )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_float(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def _has_dtype(values: Any) -> bool:
    """Whether nested data hold a tensor, or an array or number of numpy: then they have a dtype of their own."""
    for value in values:
        if isinstance(value, (Tensor, np.ndarray, np.generic)):
            return True
        if isinstance(value, (list, tuple)) and _has_dtype(value):
            return True
    return False

"""Run code in another floating-point precision than it was written for, in one thread alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .aten import shares_memory, writes_any
from .tensors import in_dtype, map_tensors

REAL = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
COMPLEX = {torch.complex128, torch.complex64, torch.complex32}


class InPrecision(TorchDispatchMode):
    """All tensors of floating point that the code makes, casts or brings along are of one dtype.

    This holds for `torch.zeros` and `torch.FloatTensor`, for `.float()` and `dtype=torch.float32`, and for constants that lie
    in lists or closures. What the code writes to stays as it is.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.wanted = {**dict.fromkeys(REAL, dtype), **dict.fromkeys(COMPLEX, dtype.to_complex())}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {k: self.wanted.get(v, v) if isinstance(v, torch.dtype) else v for k, v in (kwargs or {}).items()}
        if writes_any(func):
            return func(*args, **kwargs)
        if not shares_memory(func):
            args, kwargs = map_tensors((tuple(args), kwargs), self._cast)
        return map_tensors(func(*args, **kwargs), self._cast)

    def _cast(self, t: Tensor) -> Tensor:
        return in_dtype(t, self.dtype)

"""One input of a model: real or on meta, from shapes, as JSON, with any number of samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .errors import BadInput
from .spelling import spelled
from .tensors import rebatch, tensors_in


@dataclass(frozen=True)
class Example:
    """One input of a model: what `model(*args, **kwargs)` is called with; axis 0 of every tensor counts samples."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])

    def with_batch(self, n: int) -> Example:
        return Example(*rebatch((self.args, self.kwargs), n))

    @property
    def samples(self) -> int:
        return next((t.shape[0] for t in tensors_in((self.args, self.kwargs)) if t.ndim > 1), 1)

    def __str__(self) -> str:
        return ", ".join("x".join(map(str, t.shape)) for t in tensors_in((self.args, self.kwargs)))

    @property
    def signature(self) -> dict[str, Any]:
        """Shapes and dtypes as JSON; `from_signature` makes an input of zeros of it."""
        return {"args": _sign(list(self.args)), "kwargs": _sign(self.kwargs)}

    @property
    def bytes(self) -> int:
        """What its tensors take, or would on a device."""
        return sum(t.numel() * t.element_size() for t in tensors_in((self.args, self.kwargs)))

    @classmethod
    def from_signature(cls, signature: dict[str, Any]) -> Example:
        return cls(tuple(_unsign(signature["args"])), _unsign(signature["kwargs"]))


def _sign(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        return {"list" if isinstance(value, list) else "tuple": [_sign(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": {k: _sign(v) for k, v in value.items()}}
    return {"value": value if isinstance(value, (bool, int, float, str, type(None))) else None}


def _unsign(value: dict[str, Any]) -> Any:
    if "shape" in value:
        dtype = getattr(torch, value["dtype"])
        return torch.zeros(value["shape"], dtype=dtype, device="meta" if dtype.is_floating_point else "cpu")
    if "list" in value or "tuple" in value:
        parts = [_unsign(v) for v in value.get("list", value.get("tuple", ()))]
        return parts if "list" in value else tuple(parts)
    if "dict" in value:
        return {k: _unsign(v) for k, v in value["dict"].items()}
    return value["value"]


def as_example(inputs: Any) -> Example:
    """An Example from shapes or tensors: (1, 1, 64, 64, 64), [(1, 1, 64, 64), (1, 10)], a tensor, a tuple, a dict."""
    if isinstance(inputs, Example):
        return inputs
    if isinstance(inputs, dict) and inputs.keys() == {"args", "kwargs"}:
        return Example.from_signature(inputs)
    if isinstance(inputs, dict):
        return Example((), {k: _as_tensor(v) for k, v in inputs.items()})
    if isinstance(inputs, torch.Tensor) or _is_shape(inputs):
        return Example((_as_tensor(inputs),))
    if isinstance(inputs, (tuple, list)) and inputs:
        return Example(tuple(_as_tensor(v) for v in inputs))
    raise BadInput(
        f"{spelled('inputs', inputs)}: give a shape such as (1, 1, 64, 64, 64), a tensor, or a tuple of them"
    )


def _is_shape(value: Any) -> bool:
    return isinstance(value, (tuple, list, torch.Size)) and bool(value) and all(type(n) is int and n > 0 for n in value)


def _as_tensor(value: Any) -> Any:
    return torch.empty(tuple(value), device="meta") if _is_shape(value) else value

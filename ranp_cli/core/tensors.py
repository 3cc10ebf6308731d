"""Functions over the tensors of nested tuples, lists and dicts: apply to each, list, change the batch size, move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def map_tensors(value: Any, make: Callable[[Tensor], Any]) -> Any:
    """`value` (nested tuples, lists, dicts) with each tensor replaced."""
    if isinstance(value, Tensor):
        return make(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(v, make) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(v, make) for v in value)
    if isinstance(value, dict):
        return {k: map_tensors(v, make) for k, v in value.items()}
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, dicts and plain objects' fields, in order."""
    found: list[Tensor] = []
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, (list, tuple)):
        for v in value:
            found += tensors_in(v)
    elif isinstance(value, dict):
        for v in value.values():
            found += tensors_in(v)
    elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
        found += tensors_in(vars(value))
    return found


def rebatch(value: Any, n: int) -> Any:
    """`value` with n samples in every tensor (axis 0), the given ones repeated; meta tensors stay meta."""
    sizes = {t.shape[0] for t in tensors_in(value) if t.ndim > 1}
    if len(sizes) != 1:
        return value
    (size,) = sizes

    def resize(t: Tensor) -> Tensor:
        if t.ndim == 0 or t.shape[0] != size or size == n:
            return t
        if t.device.type == "meta":
            return torch.empty((n, *t.shape[1:]), dtype=t.dtype, device="meta")
        return t[torch.arange(n) % t.shape[0]]

    return map_tensors(value, resize)


def in_precision_of(model: nn.Module, value: Any) -> Any:
    """`value` with its floating-point tensors in the model's precision, where all of its parameters have another one."""
    mine = {p.dtype for p in model.parameters() if p.is_floating_point()}
    given = {t.dtype for t in tensors_in(value) if t.is_floating_point()}
    if len(mine) != 1 or not given or mine & given:
        return value
    (dtype,) = mine
    return map_tensors(value, lambda t: t.to(dtype) if t.is_floating_point() else t)


def to_meta(value: Any) -> Any:
    """Floating-point tensors of `value` as meta tensors of the same shape; index tensors keep their values."""
    return map_tensors(value, lambda t: torch.empty_like(t, device="meta") if has_fractions(t) else t.detach().cpu())


def has_fractions(t: Tensor) -> bool:
    """Are its numbers real or complex ones, of floating point?"""
    return t.is_floating_point() or t.is_complex()


def in_dtype(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A real tensor of floating point as `dtype`, a complex one as complex numbers of that precision, another as it is."""
    return t.to(dtype.to_complex() if t.is_complex() else dtype) if has_fractions(t) else t


def to_real(t: Tensor, device: torch.device) -> Tensor:
    """A tensor with numbers, on `device`; zeros for one on meta."""
    return torch.zeros(t.shape, dtype=t.dtype, device=device) if t.device.type == "meta" else t.detach().to(device)


def taken(t: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """What lies at the given indices of each axis (None: all of them)."""
    for axis, index in enumerate(indices):
        if index is not None:
            t = t.index_select(axis, index.to(t.device))
    return t


CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # of images and volumes


def channels_last(value: Any) -> Any:
    """Images and volumes with the channels of a place beside each other, the layout in which convolutions work.

    A convolution's result lies as its input does, so the layout goes through the network. Numbers are the same.
    """

    def lay(t: Tensor) -> Tensor:
        if t.ndim not in CHANNELS_LAST or not t.is_floating_point():
            return t
        return torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=CHANNELS_LAST[t.ndim]).copy_(t)

    return map_tensors(value, lay)


def is_channels_last(t: Tensor) -> bool:
    """Whether an image or a volume lies so in memory, and in no other order."""
    layout = CHANNELS_LAST.get(t.ndim)
    return layout is not None and not t.is_contiguous() and t.is_contiguous(memory_format=layout)

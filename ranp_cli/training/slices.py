"""Take the given indices of each axis of a tensor, in the layout that it has in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LAYOUTS = (torch.channels_last, torch.channels_last_3d)
Indices = Sequence[Tensor | None]  # for each axis of a tensor those that stay; None where all do


def cut_tensor(t: Tensor, indices: Indices) -> Tensor:
    """The given indices of each axis, in new memory and in the layout that `t` has."""
    layout = next((f for f in LAYOUTS if _is_laid(t, f)), torch.contiguous_format)
    with torch.no_grad():
        for axis, index in enumerate(indices):
            if index is not None:
                t = t.index_select(axis, index.to(t.device))
        return t.contiguous(memory_format=layout)


def _is_laid(t: Tensor, layout: torch.memory_format) -> bool:
    fits = t.ndim == (4 if layout is torch.channels_last else 5)
    return fits and not t.is_contiguous() and t.is_contiguous(memory_format=layout)

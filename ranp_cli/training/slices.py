"""Take the given indices of each axis of a tensor, in the layout that it has in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.tensors import CHANNELS_LAST, is_channels_last, taken

Indices = Sequence[Tensor | None]  # for each axis of a tensor those that stay; None where all do


def cut_tensor(t: Tensor, indices: Indices) -> Tensor:
    """The given indices of each axis, in new memory and in the layout that `t` has."""
    layout = CHANNELS_LAST[t.ndim] if is_channels_last(t) else torch.contiguous_format
    with torch.no_grad():
        return taken(t, indices).contiguous(memory_format=layout)

"""Mixed precision without memory: torch's own autocast, over tensors that say they are on a device and are on meta.

Autocast acts by the device of a tensor, so plain meta tensors pass it by; fake tensors (`torch._subclasses`) carry the
dispatch keys of the device that they stand for. So no list of ops is kept here: which ops run in 16 bits, which in 32, and
which casts are cached is what torch does on that device. Its lists for CPU and CUDA differ.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..core.copies import replicate
from ..core.tensors import map_tensors, to_meta

DTYPE = torch.bfloat16  # of the same size as float16, and cast by the same lists


class Autocast:
    """`with amp.mode:` runs on fake tensors, `with amp.casting():` in mixed precision (or, without `half`, as it is).

    `device` must be one that torch has here: its autograd asks it for a stream.
    """

    def __init__(self, device: str, half: bool = True) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        self.device, self.half = torch.device(device), half
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def place(self, t: Tensor) -> Tensor:
        """A tensor as a fake one on the device; on a CPU those of whole numbers keep their values."""
        from torch._subclasses.fake_tensor import FakeTensor

        if not t.is_floating_point() and self.device.type == "cpu":
            return t
        value = (
            None if t.is_floating_point() or t.numel() > 1 else t.detach().cpu().clone()
        )  # may be asked for, or counted up
        return FakeTensor(self.mode, torch.empty_like(t, device="meta"), self.device, constant=value)

    def model(self, model: nn.Module) -> nn.Module:
        return replicate(model, lambda _, t: self.place(t))

    def inputs(self, value: Any) -> Any:
        return map_tensors(to_meta(value), self.place)

    def casting(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, DTYPE, enabled=self.half)

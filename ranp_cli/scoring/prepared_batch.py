"""A mini-batch as the network takes it: sent to the device, cast and counted once, however many passes it serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.contexts import each
from ..core.tensors import in_precision_of, map_tensors
from .precision import cast_batch


@dataclass(frozen=True)
class PreparedBatch:
    """Mini-batch number `index`: what the network is called with, the loss' target, and how many numbers the inputs have."""

    index: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any
    elements: int
    given: Any  # the mini-batch as it came
    versions: tuple[int, ...]  # of the inputs and the target: a forward pass may write into them

    @classmethod
    def of(cls, index: int, batch: Any, model: nn.Module, device: torch.device, precision: str) -> PreparedBatch:
        sent = map_tensors((batch.args, batch.kwargs, batch.target), lambda t: _send(t, device))
        args, kwargs, target = cast_batch((*in_precision_of(model, sent[:2]), sent[2]), precision)
        count = sum(t.numel() for t in each(Tensor, args, kwargs))
        return cls(index, args, kwargs, target, count, batch, _versions(args, kwargs, target))

    def unwritten(self, model: nn.Module, device: torch.device, precision: str) -> PreparedBatch:
        """Itself, or prepared anew where a pass has written into what was prepared."""
        if _versions(self.args, self.kwargs, self.target) == self.versions:
            return self
        return PreparedBatch.of(self.index, self.given, model, device, precision)


def _send(t: Tensor, device: torch.device) -> Tensor:
    if t.requires_grad:  # gradients reach no tensor of the caller's
        return _send(t.detach(), device).requires_grad_()
    if device.type == "cuda" and t.device.type == "cpu":
        return t.pin_memory().to(device, non_blocking=True)
    return t.to(device)


def _versions(*values: Any) -> tuple[int, ...]:
    return tuple(0 if t.is_inference() else t._version for t in each(Tensor, *values))

"""A training step as it is timed: forward pass, loss and backward pass, and the step of the optimiser where one is named."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from ..core.example import Example
from ..core.tensors import channels_last
from .memory import plain_loss
from .runtimes import Runtime, Torch, to_channels_last

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "sgd-momentum": lambda weights, lr: torch.optim.SGD(weights, lr, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


@dataclass
class Step:
    """One training step, the gradients thrown away. `half`: forward pass and loss run under autocast in bf16.

    The optimiser has a learning rate of zero: it works as always, and the weights stay what they are.
    """

    module: nn.Module
    example: Example
    optimizer: torch.optim.Optimizer | None = None
    half: bool = False

    @classmethod
    def of(cls, module: nn.Module, example: Example, way: Torch, optimizer: str | None = None) -> Step:
        """A step of `module`, a copy of its own, in training mode."""
        module.train()
        if way.channels_last:
            module, example = to_channels_last(module), Example(*channels_last((example.args, example.kwargs)))
        trained = [p for p in module.parameters() if p.requires_grad]
        made = OPTIMIZERS[optimizer](trained, lr=0.0) if optimizer and trained else None
        return cls(module, example, made, way.half)

    def __call__(self) -> None:
        device = next((p.device.type for p in self.module.parameters()), "cpu")
        with torch.enable_grad():
            with torch.autocast(device, torch.bfloat16) if self.half else nullcontext():
                loss = plain_loss(self.module(*self.example.args, **self.example.kwargs))
            loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
        for p in self.module.parameters():
            p.grad = None


def way_of_training(runtime: Runtime) -> Torch:
    """torch as a runtime has it; plain torch for one that does not train."""
    return runtime if isinstance(runtime, Torch) else Torch()

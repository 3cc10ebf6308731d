"""What torch's CPU allocator hands out while something runs, and networks whose memory is known."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ranp_cli.core.tensors import tensors_in


def squares(output: Any) -> torch.Tensor:
    return sum(t.float().square().mean() for t in tensors_in(output) if t.is_floating_point())


def allocated(model: nn.Module, x: torch.Tensor, training: bool, amp: bool = False) -> int:
    """The peak of what torch's allocator on the device of x handed out during a forward, or a forward and backward."""
    device = x.device.type
    model = copy.deepcopy(model).train(training)
    if x.is_cuda:
        model = model.cuda()

    def run() -> None:
        if not training:
            with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=amp):
                model(x)
            return
        with torch.autocast(device, torch.bfloat16, enabled=amp):
            value = squares(model(x))
        value.backward()
        for p in model.parameters():
            p.grad = None

    run()
    return peak_of(run, device)


def peak_of(run: Callable[[], Any], device: str = "cpu") -> int:
    """The most that torch's allocator on the device had handed out at once while `run` ran, beyond what it held before."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = sorted((e.start_ns(), k, e.nbytes()) for k, e in enumerate(seen.profiler.kineto_results.events())
                    if e.name() == "[memory]")  # fmt: skip
    now = peak = 0
    for *_, size in events:
        now += size
        peak = max(peak, now)
    return peak


class Linears(nn.Module):
    """Three linear layers of 10 -> 10, with ReLU between: no op of it allocates anything inside."""

    def __init__(self, again: bool = False, inplace: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(10, 10, bias=False) for _ in range(3))
        self.relu, self.again = nn.ReLU(inplace), again

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.b(self.relu(self.a(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(checkpoint(self.body, x, use_reentrant=False) if self.again else self.body(x))

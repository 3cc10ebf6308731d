"""Networks that are probed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def seeded(make: Any, seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def clouds(count: int = 2, classes: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Points around `classes` corners, each labelled with its corner."""
    g = torch.Generator().manual_seed(3)
    found = []
    for _ in range(count):
        y = torch.randint(classes, (60,), generator=g)
        found.append((2 * F.one_hot(y, classes) + 0.3 * torch.randn(60, classes, generator=g), y))
    return found


def through(neurons: int, classes: int = 6) -> nn.Module:
    """All that is known of a class goes through so many neurons."""
    return seeded(lambda: nn.Sequential(nn.Linear(classes, neurons), nn.ReLU(), nn.Linear(neurons, classes)))

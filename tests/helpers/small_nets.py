"""Small networks and mini-batches, and a machine whose times are known. (`clock` is in conftest.py.)"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ranp_cli.core.tensors import tensors_in
from ranp_cli.costs.timing import LayerOp
from ranp_cli.models.unet3d import unet3d

CPU = torch.device("cpu")


def net(width: int = 8) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return unet3d(layers=7, width=width, num_classes=3)


def batch(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 1, size, size, size, generator=g), torch.randint(3, (2, size, size, size), generator=g)


def chain() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 1), nn.ReLU(), nn.Conv3d(8, 3, 1)
        )


def weights(work: Any) -> float:
    """A machine on which a network, or the op of a layer, takes a microsecond for each weight."""
    if isinstance(work, LayerOp):
        return sum(t.numel() for t in tensors_in(work.call[1:])[1:]) * 1e-6
    return sum(p.numel() for p in work.module.parameters()) * 1e-6

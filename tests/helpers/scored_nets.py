"""The networks and mini-batches on which it is tested how gradients are taken."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Blocks(nn.Module):
    """Three blocks of convolution, norm and activation, the second residual, the third with random depth."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(i, o, 3, padding=1), nn.BatchNorm3d(o), nn.LeakyReLU(0.1, inplace), nn.Dropout3d(0.5)
            )
            for i, o in ((1, 6), (6, 6), (6, 8))
        )
        self.head = nn.Conv3d(8, 3, 1)

    def forward(self, x):
        x = self.blocks[0](x)
        x = x + self.blocks[1](x)
        x = F.dropout(self.blocks[2](x), 0.5, self.training)
        if self.training:
            x = x * torch.rand(x.shape[0], 1, 1, 1, 1, dtype=x.dtype, device=x.device)
        return self.head(x)


def blocks(inplace=False):
    torch.manual_seed(0)
    return Blocks(inplace)


def batches(n=3, size=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(2, 1, size, size, size, generator=g), torch.randint(3, (2, size, size, size), generator=g))
            for _ in range(n)]  # fmt: skip


def same(one, other):
    return all(np.array_equal(one.layers[name], other.layers[name]) for name in one.layers)

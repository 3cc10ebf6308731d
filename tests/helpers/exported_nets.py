"""Networks that are exported."""

from __future__ import annotations

import importlib
import importlib.util

import numpy as np
import torch
from torch import nn

from ranp_cli.core.example import Example

onnx = importlib.import_module("onnx")


SHAPE = (1, 1, 8, 8, 8)


class Parts(nn.Module):
    """One of each, without batch norm; its outputs lie in a list and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 3, padding=1)
        self.instance = nn.InstanceNorm3d(4, affine=True)
        self.group = nn.GroupNorm(2, 4)
        self.plain = nn.InstanceNorm3d(4)
        self.up = nn.ConvTranspose3d(4, 3, 2, stride=2)
        self.slope = nn.PReLU()
        self.grouped = nn.Conv3d(3, 6, 3, groups=3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.full((1,), 0.7))
        self.voxel = nn.Linear(9, 2)
        self.head = nn.Linear(3, 5)

    def forward(self, x):
        a = self.plain(torch.relu(self.group(self.instance(self.conv(x)))))
        up = self.slope(self.up(a))
        both = torch.cat([up, self.grouped(up) * self.scale], 1)
        return [self.voxel(both.permute(0, 2, 3, 4, 1)), {"head": self.head(up.mean((2, 3, 4))), "none": None}]


def example(shape=SHAPE):
    return Example((torch.empty(shape, device="meta"),))


def near(a, b):
    b = b.detach()
    scale = float(b.abs().max())
    assert scale > 0
    return float(np.abs(a - b.numpy()).max()) <= 1e-5 * scale


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv3d(1, 4, 3, padding=1), nn.Linear(3, 4)

    def forward(self, volume, flag=True, *, age=None):
        return self.conv(volume) * self.gate(age)[:, :, None, None, None] if flag else volume

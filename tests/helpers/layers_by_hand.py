"""Layers whose multiply-adds were worked out by hand."""

from __future__ import annotations

from torch import nn

# module, input, multiply-adds
MACS = {
    "conv": (nn.Conv3d(3, 8, (3, 1, 2), padding=(1, 0, 0)), (1, 3, 4, 5, 6), 3 * 1 * 2 * 3 * 8 * (4 * 5 * 5)),
    "strided": (nn.Conv3d(2, 4, 3, stride=2, padding=1), (1, 2, 8, 8, 8), 27 * 2 * 4 * 4**3),
    "dilated": (nn.Conv3d(2, 4, 3, dilation=2), (1, 2, 8, 8, 8), 27 * 2 * 4 * 4**3),
    "grouped": (nn.Conv3d(4, 8, 3, groups=2, padding=1), (1, 4, 4, 4, 4), 27 * 2 * 8 * 4**3),
    "depthwise": (nn.Conv3d(4, 4, 3, groups=4, padding=1), (1, 4, 4, 4, 4), 27 * 4 * 4**3),
    "transposed": (nn.ConvTranspose3d(6, 4, 2, 2), (1, 6, 4, 4, 4), 8 * 6 * 4 * 4**3),  # per *input* position
    "linear": (nn.Linear(10, 7), (1, 10), 70),
    "two_dimensional": (nn.Conv2d(3, 5, 3), (1, 3, 8, 8), 9 * 3 * 5 * 36),
}

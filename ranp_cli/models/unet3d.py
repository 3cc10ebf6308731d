"""The 3D-UNet of the paper (Xu et al., "RANP", 3DV 2020): 15 layers in its tables, 23 in the larger one."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDENING = (1, 2, 4, 8, 16, 16)  # width of each level, in widths of the first


class ConvBlock(nn.Module):
    """Two 3x3x3 convolutions, each with batch norm and ReLU: (N, in, D, H, W) -> (N, mid, ...) -> (N, out, D, H, W)."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, mid_channels, kernel_size=3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm3d(mid_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv3d(mid_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm3d(out_channels)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(self.norm2(self.conv2(x)))


class UNet3D(nn.Module):
    """Encoder levels joined by max pooling, decoder levels joined by nearest interpolation, a skip between the two.

    Input of shape (N, in_channels, D, H, W), output of shape (N, num_classes, D, H, W); D, H and W are at least
    2 ** (levels - 1) and need not be multiples of it.

    Args:
        widths: channels of each level, the finest first.
        in_channels: channels of the input.
        num_classes: channels of the output.
        softmax: in eval mode, return class probabilities in place of logits.

    Source: Çiçek et al., "3D U-Net", MICCAI 2016, in the form of Xu et al., 3DV 2020.
    """

    def __init__(self, widths: list[int], in_channels: int, num_classes: int, softmax: bool = False) -> None:
        super().__init__()
        self.encoders = nn.ModuleList()
        for below, width in pairwise([in_channels, *widths]):
            self.encoders.append(ConvBlock(below, max(width // 2, below), width))
        self.decoders = nn.ModuleList()
        for below, skip in pairwise(reversed(widths)):
            self.decoders.append(ConvBlock(skip + below, skip, skip))
        self.pool = nn.MaxPool3d(2)
        self.head = nn.Conv3d(widths[0], num_classes, kernel_size=1)
        self.softmax = nn.Softmax(dim=1) if softmax else None

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, encoder in enumerate(self.encoders):
            if level > 0:
                skips.append(x)
                x = self.pool(x)
            x = encoder(x)
        for decoder in self.decoders:
            x = F.interpolate(x, size=skips[-1].shape[2:], mode="nearest")
            x = torch.cat([skips.pop(), x], dim=1)  # both are free before the decoder begins
            x = decoder(x)
        x = self.head(x)
        return x if self.training or self.softmax is None else self.softmax(x)


def unet3d(
    layers: int = 15, width: int = 64, in_channels: int = 1, num_classes: int = 50, softmax: bool = False
) -> UNet3D:
    """The paper's 3D-UNet; as it stands, the one for ShapeNet.

    Args:
        layers: number of convolutions, four per level less one: 15 has 4 levels, 23 has 6.
        width: channels of the first level; the levels have 1, 2, 4, 8, 16 and 16 times as many.
        in_channels: channels of the input: 1 for ShapeNet, 4 for BraTS.
        num_classes: channels of the output: 50 for ShapeNet, 5 for BraTS.
        softmax: in eval mode, return class probabilities in place of logits.

    Returns: a network from (N, in_channels, D, H, W) to (N, num_classes, D, H, W).
    Raises: ValueError if no number of levels has this number of layers.

    Example:
        >>> model = unet3d(width=8, num_classes=3)
        >>> model(torch.zeros(1, 1, 16, 16, 16)).shape
        torch.Size([1, 3, 16, 16, 16])
    """
    depths = {4 * levels - 1: levels for levels in range(2, len(WIDENING) + 1)}
    if layers not in depths:
        raise ValueError(f"layers={layers!r}: a 3D-UNet of 2 to 6 levels has {', '.join(map(str, depths))} layers")
    widths = [width * times for times in WIDENING[: depths[layers]]]
    return UNet3D(widths, in_channels, num_classes, softmax)
